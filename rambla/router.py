"""Channel name to pools: who gets what is published, accepted by all of them or by none."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rambla import telemetry
from rambla.delivery import Delivery, Publication
from rambla.errors import InvalidMessage, RamblaError, UnknownChannel
from rambla.ledger import weigh
from rambla.message import ATOMS, Message, Raw, copy_payload, is_call, numbers, unwrap
from rambla.pool import Pool

__all__ = ["Router"]


class Router:
    """The pools of a supervisor, by channel. Any thread may call it."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self.pools = tuple(pools)
        self.channels: dict[str, list[Pool]] = {}
        for pool in self.pools:
            self.channels.setdefault(pool.channel, []).append(pool)
        self._order = {pool: index for index, pool in enumerate(self.pools)}
        # Channels on the short way: one target, and nothing to be looked at before a plain mapping is queued.
        self.direct: dict[str, Pool] = {
            channel: pools[0]
            for channel, pools in self.channels.items()
            if len(pools) == 1 and pools[0].settings.queue_bytes is None and pools[0].treatment.convert is None
        }

    def targets(self, channels: str | Iterable[str], service: str | None = None) -> list[Pool]:
        """The pools that one or several channels go to; raises `UnknownChannel`, `InvalidMessage`."""
        if isinstance(channels, str):
            names: list[str] = [channels]
        elif isinstance(channels, Iterable) and not isinstance(channels, (bytes, Mapping)):
            names = list(dict.fromkeys(channels))
        else:
            raise InvalidMessage(f"a channel is a string, or several are a list of strings; found {channels!r:.60}")
        if not names:
            raise InvalidMessage("publish needs a channel, found an empty list of them")
        found = []
        for name in names:
            if not isinstance(name, str):
                raise InvalidMessage(f"a channel is named by a string, found {name!r:.60}")
            pools = [p for p in self.channels.get(name, ()) if service is None or p.service == service]
            if not pools:
                known = {p.channel for p in self.pools if service is None or p.service == service}
                raise UnknownChannel(name, known, service)
            found += pools
        return found

    def publish(
        self,
        channels: str | Iterable[str],
        payload: Any,
        service: str | None,
        options: Mapping[str, Any],
        policy: str | None = None,
    ) -> Publication:
        """Make the deliveries of a payload, have them accepted by all pools or by none, and return them."""
        pools = self.targets(channels, service)
        payloads = payload if payload.__class__ is list else [payload]
        number = next(numbers)
        single = len(payloads) * len(pools) == 1
        batches: list[list[Delivery]] = [[] for _ in pools]
        index = 0
        for element in payloads:
            for pool, batch in zip(pools, batches):
                batch.append(prepare(pool, element, options, number if single else (number, index)))
                index += 1
        if index:
            self._accept(dict(zip(pools, batches)), policy)
        ordered = [batch[i] for i in range(len(payloads)) for batch in batches]
        return Publication(ordered, number)

    def _accept(self, wanted: Mapping[Pool, Sequence[Delivery]], policy: str | None) -> None:
        began = time.monotonic()
        reserved: list[tuple[Pool, list[Delivery], list[Delivery]]] = []
        try:
            # In one order for all publishers: two that each hold what the other waits for would wait in vain.
            for pool in sorted(wanted, key=self._order.__getitem__):
                deliveries = wanted[pool]
                deadline = began + pool.settings.publish_timeout
                dropped = pool.reserve(deliveries, deadline, policy or pool.settings.when_full)
                gone = set(map(id, dropped))
                reserved.append((pool, [d for d in deliveries if id(d) not in gone], dropped))
        except BaseException:
            for pool, kept, _ in reserved:
                pool.cancel(kept)
            raise
        for pool, kept, dropped in reserved:
            pool.enqueue(kept, dropped)
        if telemetry.wanted("accepted"):
            for deliveries in wanted.values():
                for delivery in deliveries:
                    telemetry.emit("accepted", delivery)

    def bury(self, delivery: Delivery, reason: str, graveyard: str) -> None:
        """Publish a copy of a dead delivery's message to another channel; what goes wrong there is said aloud."""
        try:
            if is_call(delivery.message):
                return  # a function would run again, on a client that it was not written for
            self.publish(graveyard, Raw(delivery.message), None, {})
        except RamblaError as error:
            telemetry.aloud(f"dead letter {delivery.id} of {delivery.place} ({reason}) could not be published: {error}")


def prepare(pool: Pool, payload: Any, options: Mapping[str, Any], number: Any) -> Delivery:
    """Make one delivery: copy, unwrap, merge options, convert, check. Nothing is accepted yet; raises `InvalidMessage`."""
    if payload.__class__ is Raw:
        original = copy_payload(payload.payload)
        message, beside, call = original, None, False
    elif payload.__class__ in ATOMS:
        original = message = payload
        beside, call = None, False
    else:
        original = copy_payload(payload)
        message, beside = unwrap(original)
        call = is_call(message)
        if isinstance(original, Message):
            original = original.body
    treatment = pool.treatment
    if options or beside:
        treatment = treatment.override({**options, **(beside or {})}, str(pool))
    if not call:
        try:
            if treatment.convert is not None:
                message = treatment.convert(message)
            if pool.check is not None:
                pool.check(message, treatment.options)
        except InvalidMessage as error:
            raise type(error)(f"{pool}: {error}") from error
    delivery = Delivery(pool, message, original, treatment, number)
    delivery.alone = call
    if pool.settings.queue_bytes is not None:
        delivery.weight = weigh(message) + (0 if message is original else weigh(original))
    return delivery

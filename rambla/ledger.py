"""What a pool holds, and the counters that always add up.

::

    accepted = delivered + dead + dropped + kept + lost + waiting + running

Waiting is the queue and what waits for a retry. The bound is on waiting and running together, and on what is reserved for a
publication that other pools have yet to accept.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, TypeAlias

from rambla import telemetry
from rambla.delivery import Delivery
from rambla.errors import ChannelFull, MessageTooLarge, RamblaError
from rambla.outcome import Status
from rambla.settings import PoolSettings
from rambla.timer import Timer

__all__ = ["Ledger", "Token", "own", "weigh"]

# Which pool the calling thread works for: there nothing may block on a queue or on a delivery.
own = threading.local()

CLOSED = -1

_Ended: TypeAlias = "tuple[Delivery, Status, Any]"


class Token:
    """Who may settle what it has taken; an ``abandoned`` one may no more."""

    __slots__ = ()
    abandoned: bool
    batch: Sequence[Delivery]


def weigh(value: Any) -> int:
    """About how many bytes a payload takes in memory as objects (CPython's `sys.getsizeof`, walked through plain containers)."""
    size = sys.getsizeof(value)
    if isinstance(value, Mapping):
        return size + sum(weigh(k) + weigh(v) for k, v in value.items())
    if isinstance(value, (list, tuple, Set, deque)):
        return size + sum(weigh(item) for item in value)
    return size


class Ledger:
    """The queue of one pool, its bounds and its counts. Everything here stands under one re-entrant lock.

    Re-entrant, because a ``__del__`` that publishes may run wherever memory is allocated.
    """

    def __init__(self, channel: str, service: str, settings: PoolSettings, timer: Timer) -> None:
        self.channel = channel
        self.service = service
        self.settings = settings
        self.lock = threading.RLock()
        self.counts: Counter[str] = Counter()
        self._timer = timer
        self._accepted = self._delivered = 0  # the two that are counted for every message
        self._held = self._running = self._reserved = self._bytes = 0
        # What `accept` may hold without asking further: nothing, until a first worker runs, and after a close.
        self._bound = CLOSED
        self._refusal: Callable[[], RamblaError] | None = None
        self._final = False
        self._queue: deque[Delivery] = deque()
        self._delayed: dict[Delivery, float] = {}
        self._room = threading.Condition(self.lock)
        self._quiet = threading.Condition(self.lock)
        self._blocked = 0
        self._draining = False

    def _wake(self) -> None:
        """See to it that a worker comes for what waits; called with the lock held."""
        raise NotImplementedError

    def _staff(self) -> None:
        """See to it that there is a worker at all, or raise; called with the lock held."""
        raise NotImplementedError

    # In: reserve, then enqueue or cancel.

    def reserve(self, deliveries: Sequence[Delivery], deadline: float, policy: str) -> list[Delivery]:
        """Keep room for the deliveries and return those that there is none for (to be dropped, by a drop policy).

        Blocks until ``deadline`` (monotonic) under the policy ``block``, never on one of Rambla's own threads. Raises
        `ChannelFull`, `MessageTooLarge`, or why the pool takes nothing.
        """
        weight = sum(d.weight for d in deliveries)
        with self.lock:
            self._check_size(deliveries, weight)
            self._check_open()
            while not self._fits(len(deliveries), weight):
                if policy in ("drop_newest", "drop_oldest"):
                    break
                self._wait_for_room(deadline, policy)
                self._check_open()
            else:
                self._staff()
                self._held += len(deliveries)
                self._reserved += len(deliveries)
                self._bytes += weight
                return []
            dropped, evicted = self._reserve_or_drop(deliveries, policy)
        self._tell(evicted)
        return dropped

    def cancel(self, deliveries: Sequence[Delivery]) -> None:
        """Give up what was reserved."""
        with self.lock:
            self._held -= len(deliveries)
            self._reserved -= len(deliveries)
            self._bytes -= sum(d.weight for d in deliveries)
            self._made_room()

    def enqueue(self, deliveries: Sequence[Delivery], dropped: Sequence[Delivery]) -> None:
        """Accept what was reserved for, and end as dropped what was not."""
        evicted: list[Delivery] = []
        with self.lock:
            self._reserved -= len(deliveries)
            self._accepted += len(deliveries) + len(dropped)
            self._held += len(dropped)
            self._queue.extend(deliveries)
            self.counts["dropped"] += len(dropped)
            if self._final:  # closed for good between the two: what waits now is lost like the rest
                evicted = [*self._queue]
                self._queue.clear()
                self.counts["lost"] += len(evicted)
            told = [(d, Status.DROPPED, self._end(d, Status.DROPPED, "the queue was full")) for d in dropped]
            told += [(d, Status.LOST, self._end(d, Status.LOST, "stopped before its turn")) for d in evicted]
            self._wake()
        self._tell(told)

    def _check_open(self) -> None:
        # Handlers and callbacks may still publish while the pools drain: what they say is part of the work.
        if self._refusal is not None and (self._final or getattr(own, "pool", None) is None):
            raise self._refusal()

    def _check_size(self, deliveries: Sequence[Delivery], weight: int) -> None:
        limit, size = self.settings.queue_bytes, self.settings.queue_size
        if limit is not None and max((d.weight for d in deliveries), default=0) > limit:
            raise MessageTooLarge(
                f"{self} takes {limit:,} bytes of messages (pool.queue_bytes), and this one alone takes"
                f" {max(d.weight for d in deliveries):,}"
            )
        if len(deliveries) > size or (limit is not None and weight > limit):
            raise ChannelFull(
                f"a bulk of {len(deliveries):,} messages never fits into {self} (pool.queue_size {size:,}"
                f"{f', pool.queue_bytes {limit:,}' if limit else ''}); publish_many sends it in parts"
            )

    def _fits(self, count: int, weight: int) -> bool:
        limit = self.settings.queue_bytes
        return self._held + count <= self.settings.queue_size and (limit is None or self._bytes + weight <= limit)

    def _wait_for_room(self, deadline: float, policy: str) -> None:
        full = f"{self} is full: {self._held:,} messages wait or run (pool.queue_size {self.settings.queue_size:,}"
        full += f", {self._bytes:,} bytes)" if self.settings.queue_bytes else ")"
        if getattr(own, "pool", None) is not None:
            raise ChannelFull(f"{full}; on one of Rambla's own threads nothing waits for room")
        if policy == "raise":
            raise ChannelFull(f"{full}, and pool.when_full is 'raise'")
        left = deadline - time.monotonic()
        if left <= 0:
            raise ChannelFull(f"{full}, and no room came within publish_timeout {self.settings.publish_timeout:g} s")
        self._blocked += 1
        try:
            self._room.wait(left)
        finally:
            self._blocked -= 1

    def _reserve_or_drop(self, deliveries: Sequence[Delivery], policy: str) -> tuple[list[Delivery], list[_Ended]]:
        self._staff()
        dropped: list[Delivery] = []
        evicted: list[_Ended] = []
        for delivery in deliveries:
            while policy == "drop_oldest" and self._queue and not self._fits(1, delivery.weight):
                oldest = self._queue.popleft()
                self.counts["dropped"] += 1
                evicted.append((oldest, Status.DROPPED, self._end(oldest, Status.DROPPED, "a newer one took its place")))
            if self._fits(1, delivery.weight):
                self._held += 1
                self._reserved += 1
                self._bytes += delivery.weight
            else:
                dropped.append(delivery)
        return dropped, evicted

    # Out: the outcomes. Each is written once, by whoever holds the delivery.

    def end(
        self, worker: Token, delivery: Delivery, status: Status, *, value: Any = None, error: Any = None,
        reason: str | None = None, uncertain: bool = False,
    ) -> bool:  # fmt: skip
        """Write the outcome of a running delivery; False when the worker was taken over."""
        with self.lock:
            if worker.abandoned:
                return False
            delivery.uncertain |= uncertain
            self._running -= 1
            if status is Status.DELIVERED:
                self._delivered += 1
            else:
                self.counts[status.value] += 1
            watchers = self._end(delivery, status, error, reason, value)
        self._tell([(delivery, status, watchers)])
        return True

    def end_all(self, worker: Token, deliveries: Sequence[Delivery], values: Sequence[Any]) -> bool:
        """Write ``delivered`` for all; False when the worker was taken over. What every message passes: kept short."""
        told = []
        with self.lock:
            if worker.abandoned:
                return False
            count = len(deliveries)
            self._running -= count
            self._held -= count
            self._delivered += count
            for delivery, value in zip(deliveries, values):
                if delivery.weight:
                    self._bytes -= delivery.weight
                watchers = delivery.end(Status.DELIVERED, value, None, None)
                if watchers:
                    told.append((delivery, watchers))
            if self._blocked or self._draining:
                self._made_room()
        for delivery, watchers in told:
            delivery.tell(watchers)
        if telemetry.wanted("delivered"):
            for delivery in deliveries:
                telemetry.emit("delivered", delivery)
        return True

    def delay(self, worker: Token, delivery: Delivery, after: float, retries: int, *, uncertain: bool = False) -> bool:
        """Let a failed delivery wait for its retry, ``after`` seconds from now at the soonest."""
        due = time.monotonic() + after
        ttl = delivery.treatment.ttl
        if ttl is not None:
            due = min(due, delivery.accepted + ttl)  # then it ends there, and not later
        with self.lock:
            if worker.abandoned:
                return False
            delivery.uncertain |= uncertain
            delivery.retries = retries
            self._set_aside(delivery, due)
        self._timer.at(due, self._due, delivery)
        return True

    def put_back(self, worker: Token, delivery: Delivery, after: float) -> bool:
        """Let a delivery that was not tried after all wait again; its attempt is not counted."""
        with self.lock:
            if worker.abandoned:
                return False
            delivery.attempt -= 1
            if after:
                due = time.monotonic() + after
                self._set_aside(delivery, due)
            else:
                self._running -= 1
                self._queue.appendleft(delivery)
                return True
        self._timer.at(due, self._due, delivery)
        return True

    def _set_aside(self, delivery: Delivery, due: float) -> None:
        self._running -= 1
        self._delayed[delivery] = due
        if self._draining:
            self._quiet.notify_all()

    def _due(self, delivery: Delivery) -> None:
        with self.lock:
            if self._delayed.pop(delivery, None) is None:
                return  # a stop has ended it meanwhile
            self._queue.append(delivery)
            self._wake()

    def _end(
        self, delivery: Delivery, status: Status, error: Any = None, reason: str | None = None, value: Any = None
    ) -> Any:
        self._held -= 1
        self._bytes -= delivery.weight
        if self._blocked or self._draining:
            self._made_room()
        return delivery.end(status, value, error, reason)

    def _made_room(self) -> None:
        if self._blocked:
            self._room.notify_all()
        if self._draining:
            self._quiet.notify_all()

    def _tell(self, ended: Sequence[_Ended]) -> None:
        for delivery, status, watchers in ended:
            if telemetry.wanted(status.value):
                telemetry.emit(status.value, delivery, reason=delivery.reason, error=delivery.error)
            delivery.tell(watchers)

    def count(self, name: str) -> None:
        """Add one to a count beside the outcomes: ``failed_attempts``, ``late``, ``callback_errors``, ``overruns``."""
        with self.lock:
            self.counts[name] += 1

    # The end of a pool.

    def close(self, refusal: Callable[[], RamblaError]) -> None:
        """Take nothing more from outside; those who wait for room are refused too."""
        with self.lock:
            self._bound = CLOSED
            self._refusal = refusal
            self._room.notify_all()

    def drain(self, deadline: float, mine: int) -> bool:
        """Wait until all but ``mine`` deliveries have ended, or nothing more can before ``deadline``; True when all have."""
        with self.lock:
            self._draining = True
            while self._held > mine:
                delayed = self._delayed.values()
                hopeless = len(self._delayed) == self._held - mine and min(delayed, default=0.0) > deadline
                left = deadline - time.monotonic()
                if left <= 0 or hopeless:
                    return False
                self._quiet.wait(left)
            return True

    def abort(self, reason: object, spare: Token | None = None) -> list[Delivery]:
        """End everything that has not ended as lost, but what ``spare`` runs; returns those, for the report."""
        with self.lock:
            self._final = True
            waiting = [*self._queue, *self._delayed]
            self._queue.clear()
            self._delayed.clear()
            running = self._take_over_all(spare)
            self._running -= len(running)
            for delivery in running:
                delivery.uncertain = True
            lost = waiting + running
            self.counts["lost"] += len(lost)
            told = [(d, Status.LOST, self._end(d, Status.LOST, reason)) for d in lost]
        for delivery, _, watchers in told:
            if telemetry.observed("lost"):
                telemetry.observe("lost", delivery, error=reason)
            delivery.tell(watchers)
        return lost

    def _take_over_all(self, spare: Token | None) -> list[Delivery]:
        """Abandon every worker but ``spare``; returns what they had not settled. Called with the lock held."""
        raise NotImplementedError

    def refuse_waiting(self) -> None:
        """Raise on one of the pool's own threads: what it waits for might need that very thread."""
        if getattr(own, "pool", None) is self:
            raise RamblaError(f"a delivery of {self} cannot be waited for on one of its own threads: it could wait for ever")

    def figures(self) -> dict[str, int]:
        """The counts of this moment, consistent with each other."""
        with self.lock:
            waiting = self._held - self._running - self._reserved
            figures = {"accepted": self._accepted, "delivered": self._delivered}
            for name in ("dead", "dropped", "kept", "lost"):
                figures[name] = self.counts[name]
            figures |= {"waiting": waiting, "delayed": len(self._delayed), "running": self._running}
            for name in ("failed_attempts", "overruns", "late", "callback_errors"):
                figures[name] = self.counts[name]
            return figures

    def __str__(self) -> str:
        return f"channel {self.channel!r} of service {self.service!r}"

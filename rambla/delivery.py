"""What the publisher holds of what it published: the deliveries of a payload, which can be waited for."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

from rambla.errors import DeliveryError, InvalidMessage, RamblaError
from rambla.message import Number, identify
from rambla.outcome import Outcome, Status

__all__ = ["Delivery", "Place", "Publication"]

log = logging.getLogger("rambla")

# Users of like libraries hang in waits without an end: one that is to have none must be asked for, with None.
DEFAULT_WAIT: Final = 30.0


class Place(Protocol):
    """What a delivery must know of the pool it is in."""

    channel: str
    service: str
    lock: Any

    def refuse_waiting(self) -> None:
        """Raise when the calling thread is one of the pool's own."""


class Delivery:
    """One message for one pool. It can be waited for, from any thread; its pool alone writes to it, under its lock."""

    __slots__ = (
        "__weakref__", "accepted", "alone", "attempt", "error", "finished", "message", "number", "payload", "place", "reason",
        "retries", "status", "treatment", "uncertain", "value", "weight", "_watchers",
    )  # fmt: skip

    def __init__(
        self, place: Place, message: Any, payload: Any, treatment: Any, number: Number, weight: int = 0
    ) -> None:
        self.place = place
        self.message = message
        self.payload = payload
        self.treatment = treatment
        self.number = number
        self.weight = weight
        self.retries: int = treatment.retries
        self.accepted = time.monotonic()
        self.attempt = 0
        self.alone = False
        self.status: Status | None = None
        self.uncertain = False
        self._watchers: list[Callable[[Delivery], None]] | None = None

    @property
    def id(self) -> str:
        """The id of this delivery: the same on every attempt, and what duplicates carry."""
        return identify(self.number)

    @property
    def channel(self) -> str:
        """The channel it was published to."""
        return self.place.channel

    @property
    def service(self) -> str:
        """The service it goes to."""
        return self.place.service

    @property
    def outcome(self) -> Outcome | None:
        """How it ended, or None as long as it has not. Never blocks."""
        if self.status is None:
            return None
        return Outcome(
            self.id, self.place.channel, self.place.service, self.status, self.value, self.error, self.reason,
            self.attempt, max(0.0, self.finished - self.accepted), self.uncertain,
        )  # fmt: skip

    def done(self) -> bool:
        """Whether it has ended. Never blocks."""
        return self.status is not None

    def result(self, timeout: float | None = DEFAULT_WAIT) -> Any:
        """Wait at most ``timeout`` seconds (None: without end) and return the handler's value.

        Raises `DeliveryError` when it was not delivered, TimeoutError when it has not ended by then.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self.value

    def exception(self, timeout: float | None = DEFAULT_WAIT) -> DeliveryError | None:
        """Wait as `result` does, and return the `DeliveryError` that it would raise, or None."""
        if not self._wait(None if timeout is None else time.monotonic() + timeout):
            raise TimeoutError(f"{self!r} has not ended within timeout={timeout:g} s; it goes on")
        return _failure([self])

    def as_future(self) -> concurrent.futures.Future[Any]:
        """A `concurrent.futures.Future` of the result; cancelling it does not stop the delivery. Never blocks."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()

        def settle(_: Delivery) -> None:
            error = _failure([self])
            if error is None:
                future.set_result(self.value)
            else:
                future.set_exception(error)

        self._watch(settle)
        return future

    def end(self, status: Status, value: Any, error: Any, reason: str | None) -> list[Callable[[Delivery], None]]:
        """Write the outcome; the pool calls it, once, under its lock, and then `tell` with what it returns, outside."""
        self.value, self.error, self.reason = value, error, reason
        self.finished = time.monotonic()
        self.status = status
        watchers, self._watchers = self._watchers, None
        return watchers or []

    def tell(self, watchers: Sequence[Callable[[Delivery], None]]) -> None:
        """Call those who wait for the end, each isolated from the others."""
        for watcher in watchers:
            try:
                watcher(self)
            except Exception:
                log.exception("a done callback of %s raised", self.id)

    def _watch(self, watcher: Callable[[Delivery], None]) -> None:
        with self.place.lock:
            if self.status is None:
                self._watchers = [*(self._watchers or ()), watcher]
                return
        self.tell([watcher])

    def _unwatch(self, watcher: Callable[[Delivery], None]) -> None:
        with self.place.lock:
            self._watchers = [w for w in self._watchers or () if w is not watcher] or None

    def _wait(self, deadline: float | None) -> bool:
        if self.status is not None:
            return True
        self.place.refuse_waiting()
        gate = threading.Lock()
        gate.acquire()

        def open_gate(_: Delivery) -> None:
            gate.release()

        self._watch(open_gate)
        # An acquire without a timeout cannot be interrupted on every platform, and one of a year can.
        left = 3.0e7 if deadline is None else max(0.0, min(3.0e7, deadline - time.monotonic()))
        if not gate.acquire(timeout=left):
            self._unwatch(open_gate)
        return self.status is not None

    def __repr__(self) -> str:
        state = self.status.value if self.status else f"attempt {self.attempt}" if self.attempt else "waiting"
        return f"<Delivery {self.id} to {self.place.service} {self.place.channel!r} | {state}>"


class Publication:
    """What `rambla.publish` returns: the deliveries of one payload, one per target (and element of a bulk)."""

    __slots__ = ("_number", "deliveries")

    def __init__(self, deliveries: Sequence[Delivery], number: Number | None = None) -> None:
        self.deliveries = deliveries
        self._number = number

    @property
    def id(self) -> str:
        """The id of the publication: with one delivery it is that one's, else what the ids of all begin with."""
        return identify(self._number if self._number is not None else self.deliveries[0].number)

    def __len__(self) -> int:
        return len(self.deliveries)

    def __bool__(self) -> bool:
        return True  # an empty bulk is a publication too

    def __iter__(self) -> Iterator[Delivery]:
        return iter(self.deliveries)

    def done(self) -> bool:
        """Whether every delivery has ended. Never blocks."""
        return all(d.status is not None for d in self.deliveries)

    def wait(self, timeout: float | None = DEFAULT_WAIT) -> bool:
        """Wait at most ``timeout`` seconds for all (one deadline; None: without end); return whether all have ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return all(d.status is not None or d._wait(deadline) for d in self.deliveries)

    def outcomes(self, timeout: float | None = DEFAULT_WAIT) -> list[Outcome]:
        """Wait as `wait` does, and return one outcome per delivery, in their order; raises TimeoutError."""
        self._ended(timeout)
        return [outcome for d in self.deliveries if (outcome := d.outcome) is not None]

    def results(self, timeout: float | None = DEFAULT_WAIT) -> list[Any]:
        """Wait as `wait` does, and return one value per delivery, in their order.

        Raises `DeliveryError` (``.outcomes`` has all) when any was not delivered, TimeoutError when any has not ended.
        """
        self._ended(timeout)
        error = _failure(self.deliveries)
        if error is not None:
            raise error
        return [d.value for d in self.deliveries]

    def result(self, timeout: float | None = DEFAULT_WAIT) -> Any:
        """The value of the only delivery, as `results` has it; raises `RamblaError` when there is not exactly one."""
        if len(self.deliveries) != 1:
            raise RamblaError(
                f"result() is for exactly one delivery, and publication {self.id} has {len(self.deliveries)};"
                " use results()"
            )
        return self.results(timeout)[0]

    def add_done_callback(self, fn: Callable[[Publication], Any]) -> None:
        """Call ``fn(publication)`` once all deliveries have ended: at once, or on the thread that ends the last one.

        What it raises is logged. It should be short: it runs on a worker.
        """
        if not callable(fn):
            raise InvalidMessage(f"add_done_callback takes a callable, found {fn!r}")
        left = len(self.deliveries)
        if not left:
            _contained(fn, self)
            return
        lock = threading.Lock()

        def ended(_: Delivery) -> None:
            nonlocal left
            with lock:
                left -= 1
                last = left == 0
            if last:
                _contained(fn, self)

        for delivery in self.deliveries:
            delivery._watch(ended)

    def _ended(self, timeout: float | None) -> None:
        if not self.wait(timeout):
            waiting = sum(d.status is None for d in self.deliveries)
            raise TimeoutError(
                f"{waiting} of {len(self.deliveries)} deliveries of publication {self.id} have not ended within"
                f" timeout={timeout:g} s; they go on"
            )

    def __repr__(self) -> str:
        ended = sum(d.status is not None for d in self.deliveries)
        return f"<Publication {self.id if self.deliveries or self._number else '-'} | {ended} of {len(self)} ended>"


def _contained(fn: Callable[[Publication], Any], publication: Publication) -> None:
    try:
        fn(publication)
    except Exception:
        log.exception("a done callback of publication %s raised", publication.id)


def _failure(deliveries: Sequence[Delivery]) -> DeliveryError | None:
    if all(d.status is Status.DELIVERED for d in deliveries):
        return None
    error = DeliveryError([d.outcome for d in deliveries])
    causes = [d.error for d in deliveries if isinstance(getattr(d, "error", None), BaseException)]
    if len(deliveries) == 1 and causes:
        error.__cause__ = causes[0]
    return error

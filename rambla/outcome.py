"""What a handler may answer, what a callback may decide and is told, and how a delivery ended."""

from __future__ import annotations

import enum
from typing import Any, Final, Literal

import attrs

from rambla.safety import clean

__all__ = [
    "RETRY",
    "STOP",
    "Decision",
    "Error",
    "Event",
    "Ok",
    "Outcome",
    "Retry",
    "Status",
    "show",
]

@attrs.frozen
class Ok:
    """A handler's answer: delivered. ``value`` is what `Delivery.result` returns."""

    value: Any = None


@attrs.frozen
class Error:
    """A handler's answer: failed.

    ``permanent``: no retry can help. ``after``: seconds until the next attempt, in place of the back-off.
    ``uncertain``: it may have arrived all the same. The class itself is an answer too.
    """

    error: Any = None
    permanent: bool = attrs.field(default=False, kw_only=True)
    after: float | None = attrs.field(default=None, kw_only=True)
    uncertain: bool = attrs.field(default=False, kw_only=True)

    @after.validator
    def _seconds(self, attribute: attrs.Attribute[float | None], value: float | None) -> None:
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"Error(after=…) is a number of seconds, 0 or more; found {value!r}")


class Decision(enum.Enum):
    """What an ``on_failure`` callback may return, beside a `Retry`."""

    RETRY = "retry"
    STOP = "stop"

    def __repr__(self) -> str:
        return f"rambla.{self.name}"


RETRY: Final = Decision.RETRY
STOP: Final = Decision.STOP


@attrs.frozen
class Retry:
    """An ``on_failure`` callback's decision: try again. ``retries``: how many tries are left from now on (None: as many as
    there were); ``after``: seconds until the next (None: the back-off's)."""

    retries: int | None = attrs.field(default=None)
    after: float | None = attrs.field(default=None)

    @retries.validator
    def _count(self, attribute: attrs.Attribute[int | None], value: int | None) -> None:
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise ValueError(f"Retry(retries=…) is a whole number, 0 or more; found {value!r}")

    @after.validator
    def _seconds(self, attribute: attrs.Attribute[float | None], value: float | None) -> None:
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"Retry(after=…) is a number of seconds, 0 or more; found {value!r}")


class Status(str, enum.Enum):
    """How a delivery ended; each member equals its string."""

    DELIVERED = "delivered"
    DEAD = "dead"
    DROPPED = "dropped"
    KEPT = "kept"
    LOST = "lost"

    __str__ = str.__str__


def show(error: object) -> str:
    """An error in one line, with its type, and no secret."""
    if isinstance(error, BaseException):
        text = str(error)
        return clean(f"{type(error).__name__}: {text}" if text else type(error).__name__)
    return clean(str(error))


@attrs.frozen
class Outcome:
    """How one delivery ended.

    ``value`` is the handler's answer when delivered, ``error`` what it gave (a reason or an exception) when not; ``reason``
    is why a dead one is: ``exhausted``, ``permanent``, ``expired``, ``stopped`` or ``crashed``. ``seconds`` passed from
    acceptance to the end. ``uncertain``: an attempt may have arrived although no answer came.
    """

    id: str
    channel: str
    service: str
    status: Status
    value: Any = attrs.field(default=None, repr=False)
    error: Any = attrs.field(default=None, repr=lambda error: repr(show(error)) if error is not None else "None")
    reason: str | None = None
    attempts: int = 0
    seconds: float = 0.0
    uncertain: bool = False

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        tries = f" after {self.attempts} attempt{'' if self.attempts == 1 else 's'}" if self.attempts else ""
        maybe = ", it may have arrived" if self.uncertain and self.status != "delivered" else ""
        error = f": {show(self.error)}" if self.error is not None else ""
        return f"{self.service} {self.channel!r} {self.id} {self.status}{why}{tries}{maybe}{error}"


@attrs.frozen
class Event:
    """What a callback is given: one delivery, after an attempt.

    ``outcome`` is the value on success, else the error. ``resolution`` is ``"success"``, ``"error"`` (tries are left) or
    ``"fatal"``. ``attempt`` counts from 1; ``retries`` are the tries left.
    """

    id: str
    channel: str
    service: str
    outcome: Any = attrs.field(repr=False)
    resolution: Literal["success", "error", "fatal"]
    payload: Any = attrs.field(repr=False)
    attempt: int
    retries: int

"""How long until the next attempt: a frozen policy over the wait generators of ``backoff``.

Only its generators are used, never its decorators: those sleep in the thread that failed.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal

import attrs
import backoff

__all__ = ["Backoff"]

# Past this many doublings any policy has long reached its ``max``: the loop in `delay` needs no more.
_SETTLED = 200


def _positive(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not value >= 0:
        raise ValueError(f"expected 0 or more, found {value!r}")


def _at_least_one(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not value >= 1:
        raise ValueError(f"expected 1 or more, found {value!r}")


@attrs.frozen
class Backoff:
    """The time between two attempts, in seconds; safe to share between threads."""

    type: Literal["exponential", "fibonacci", "constant"] = attrs.field(
        default="exponential", metadata={"doc": "how the wait grows from one attempt to the next"}
    )
    initial: float = attrs.field(
        default=0.1, validator=_positive, metadata={"doc": "seconds before the second attempt; 0 is at once"}
    )
    multiplier: float = attrs.field(
        default=2.0, validator=_at_least_one, metadata={"doc": "what an exponential wait grows by each time"}
    )
    max: float = attrs.field(
        default=30.0, validator=_positive, metadata={"doc": "seconds that no wait exceeds, before jitter is applied"}
    )
    jitter: Literal["full", "random", "none"] = attrs.field(
        default="full",
        metadata={"doc": "full: evenly between 0 and the wait; random: up to a second more; none: exactly the wait"},
    )

    def ceiling(self, attempt: int) -> float:
        """The longest that may pass after failed attempt number ``attempt`` (1 is the first), in seconds, without jitter."""
        waits = self._waits()
        next(waits)  # the first value of every generator of backoff only primes it
        wait = 0.0
        for _ in range(min(attempt, _SETTLED)):
            wait = next(waits)
            if wait >= self.max:
                return self.max
        return wait

    def delay(self, attempt: int) -> float:
        """The wait after failed attempt number ``attempt`` (1 is the first), in seconds, jitter included."""
        wait = self.ceiling(attempt)
        if self.jitter == "full":
            return float(backoff.full_jitter(wait))
        if self.jitter == "random":
            return float(backoff.random_jitter(wait))
        return wait

    def _waits(self) -> Generator[float, Any, None]:
        if self.type == "constant" or not self.initial:
            return backoff.constant(min(self.initial, self.max))  # type: ignore[no-any-return,arg-type,unused-ignore]
        if self.type == "fibonacci":
            scaled = backoff.fibo(max_value=None)
            return _scale(scaled, self.initial)
        return backoff.expo(base=self.multiplier, factor=self.initial, max_value=self.max)


def _scale(waits: Generator[float, Any, None], factor: float) -> Generator[float, Any, None]:
    for wait in waits:
        yield wait * factor if wait is not None else wait

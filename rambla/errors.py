"""Every exception of Rambla. The tree:

::

    RamblaError
    ├── SettingsError            the configuration is wrong; ``.faults`` has all that is
    │   ├── MissingExtra         a handler's client library is not installed
    │   └── HandlerError         a class that does not fit the handler contract
    ├── UnknownChannel           no service has a channel of that name
    ├── ChannelFull              the queue has no room, and the policy is not to wait (any longer)
    ├── ChannelFailed            the channel's external server will not stay up
    ├── Stopped                  published before a start, or after a stop
    ├── InvalidMessage           this payload, or an option beside it, could never be sent
    │   └── MessageTooLarge
    ├── DeliveryError            waited for, and not delivered; ``.outcomes`` says what became of each
    ├── ExternalServerError      an external server did not start
    ├── OutboxError              the outbox could not store the message; it was not accepted
    ├── PermanentError           raised by a handler: trying again cannot help
    └── RetryAfter               raised by a handler: try again, not sooner than in ``.seconds``

Every text names the place, the rule and what was found, and holds no secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

__all__ = [
    "ChannelFailed",
    "ChannelFull",
    "DeliveryError",
    "ExternalServerError",
    "Fault",
    "HandlerError",
    "InvalidMessage",
    "MessageTooLarge",
    "MissingExtra",
    "OutboxError",
    "PermanentError",
    "RamblaError",
    "RetryAfter",
    "SettingsError",
    "Stopped",
    "UnknownChannel",
    "did_you_mean",
]


def did_you_mean(found: object, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest of ``known`` names, or an empty string."""
    near = get_close_matches(str(found), list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


class Fault(str):
    """One thing that is wrong with a configuration: a text, ``place: path: rule, found``, and its parts.

    ``file``, ``line`` and ``column`` are None where the value did not come from a file; lines and columns count from 1.
    """

    file: str | None
    line: int | None
    column: int | None
    path: str
    problem: str

    def __new__(
        cls, path: str, problem: str, file: str | None = None, line: int | None = None, column: int | None = None
    ) -> Fault:
        place = f"{file}:{line}:{column}: " if line is not None else f"{file}: " if file else ""
        where = f"{path}: " if path else ""
        fault = super().__new__(cls, f"{place}{where}{problem}")
        fault.file, fault.line, fault.column = file, line, column
        fault.path, fault.problem = path, problem
        return fault

    def __reduce__(self) -> tuple[Any, ...]:
        return (Fault, (self.path, self.problem, self.file, self.line, self.column))


class RamblaError(Exception):
    """What every error of Rambla is."""


class SettingsError(RamblaError):
    """The configuration is wrong. ``faults`` are all that were found, in the order of the file; each is a `Fault`, a str."""

    def __init__(self, faults: Sequence[str] | str) -> None:
        self.faults: tuple[Fault, ...] = tuple(
            f if isinstance(f, Fault) else Fault("", f) for f in ([faults] if isinstance(faults, str) else faults)
        )
        super().__init__(self.faults)

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return str(self.faults[0])
        return "\n".join([f"{len(self.faults)} faults in the configuration:", *(f"  {f}" for f in self.faults)])


class MissingExtra(SettingsError):
    """The client library of a service is not installed; the text says which command installs it."""

    def __init__(self, service: str, extra: str, module: str) -> None:
        self.service, self.extra, self.module = service, extra, module
        super().__init__(f"service {service!r} needs the package {module!r}: pip install rambla[{extra}]")

    def __reduce__(self) -> tuple[Any, ...]:
        return (MissingExtra, (self.service, self.extra, self.module))


class HandlerError(SettingsError):
    """A handler class does not fit the contract; the text says what to write."""


class UnknownChannel(RamblaError):
    """No service has that channel. ``channel`` is the name asked for, ``known`` are those there are."""

    def __init__(self, channel: str, known: Iterable[str] = (), service: str | None = None) -> None:
        self.channel, self.known, self.service = channel, tuple(sorted(known)), service
        whose = f"service {service!r} has no" if service else "no service has a"
        names = ", ".join(map(repr, self.known[:20])) or "none"
        more = f" and {len(self.known) - 20} more" if len(self.known) > 20 else ""
        super().__init__(
            f"{whose} channel {channel!r}{did_you_mean(channel, self.known)} (configured: {names}{more})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return (UnknownChannel, (self.channel, self.known, self.service))


class ChannelFull(RamblaError):
    """The channel's queue has no room; nothing was accepted, for none of the targets."""


class ChannelFailed(RamblaError):
    """The channel was failed, because what it depends on will not stay up; nothing was accepted."""


class Stopped(RamblaError):
    """Nothing is started that could take the message; nothing was accepted."""


class InvalidMessage(RamblaError):
    """This payload, or an option given with it, could never be sent; nothing was accepted."""


class MessageTooLarge(InvalidMessage):
    """The message alone is larger than what its channel may ever hold."""


class DeliveryError(RamblaError):
    """What was waited for was not delivered. ``outcomes``: one `rambla.Outcome` per target, the delivered ones too."""

    def __init__(self, outcomes: Sequence[Any]) -> None:
        self.outcomes = tuple(outcomes)
        failed = [o for o in self.outcomes if o.status != "delivered"]
        head = f"{len(failed)} of {len(self.outcomes)} deliveries failed: " if len(self.outcomes) > 1 else ""
        tail = f"; and {len(failed) - 10} more" if len(failed) > 10 else ""
        super().__init__(head + "; ".join(map(str, failed[:10])) + tail)

    def __reduce__(self) -> tuple[Any, ...]:
        return (DeliveryError, (self.outcomes,))


class ExternalServerError(RamblaError):
    """An external server did not start, or died while it did; the text has its name and its last output."""


class OutboxError(RamblaError):
    """The outbox could not store the message (it was not accepted), or there is none."""


class PermanentError(RamblaError):
    """Raise it in a handler: trying again cannot help. The message becomes a dead letter at once."""


class RetryAfter(RamblaError):
    """Raise it in a handler: failed, try again, not sooner than in ``seconds`` (a number, 0 or more)."""

    def __init__(self, seconds: float, reason: object = None) -> None:
        self.seconds, self.reason = float(seconds), reason
        super().__init__(f"try again in {self.seconds:g} s" + (f": {reason}" if reason is not None else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        return (RetryAfter, (self.seconds, self.reason))

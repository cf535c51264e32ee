"""Events to observers, each isolated from the others, and the log lines of the same words.

The events, one per station of a message: ``accepted``, ``attempt_failed``, ``delivered``, ``dead``, ``dropped``, ``kept``, ``lost``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

from rambla.delivery import Delivery
from rambla.errors import InvalidMessage
from rambla.outcome import show
from rambla.safety import clean

__all__ = ["EVENTS", "Observer", "aloud", "attach", "detach", "emit", "failures", "observe", "observed", "wanted"]

EVENTS = ("accepted", "attempt_failed", "delivered", "dead", "dropped", "kept", "lost")
Observer: TypeAlias = "Callable[[str, Mapping[str, Any]], Any]"

log = logging.getLogger("rambla")

_LEVELS = {"dead": logging.ERROR, "lost": logging.ERROR, "kept": logging.INFO, "attempt_failed": logging.INFO}
_LEVELS["dropped"] = logging.WARNING

_observers: dict[str, tuple[Observer, frozenset[str]]] = {}
failures: dict[str, int] = {}
"""How often each observer raised."""


def attach(name: str, observer: Observer, events: Collection[str] = EVENTS) -> None:
    """Call ``observer(event, fields)`` at each of ``events``, on the thread where it happens; a name is taken once.

    It must be short and must not block: it runs in the worker, and for ``accepted`` in `publish`. What it raises is logged,
    counted in `failures`, and it stays attached.
    """
    odd = set(events) - set(EVENTS)
    if odd:
        raise InvalidMessage(f"there is no event {sorted(odd)[0]!r}; there are {', '.join(EVENTS)}")
    _observers[name] = (observer, frozenset(events))
    failures.setdefault(name, 0)


def detach(name: str) -> None:
    """Forget an observer; unknown names are no error."""
    _observers.pop(name, None)


def wanted(event: str) -> bool:
    """Whether anyone listens to an event, the log included: what costs a hot path less than making the event."""
    return bool(_observers) or log.isEnabledFor(_LEVELS.get(event, logging.DEBUG))


def observed(event: str) -> bool:
    """Whether an observer listens to an event, the log not counted."""
    return any(event in events for _, events in _observers.values())


def emit(event: str, delivery: Delivery, **fields: Any) -> None:
    """Log one station of one delivery, and tell the observers; never raises. Not to be called with a lock held."""
    facts = _facts(delivery)
    level = _LEVELS.get(event, logging.DEBUG)
    if log.isEnabledFor(level):
        said = " ".join(f"{name}={show(value)}" for name, value in fields.items() if value is not None)
        log.log(
            level, "%s %s %r id=%s attempt=%s%s", event, facts["service"], facts["channel"], facts["id"],
            facts["attempt"], said and " " + clean(said), extra={"rambla": facts},
        )  # fmt: skip
    observe(event, delivery, **fields)


def observe(event: str, delivery: Delivery, **fields: Any) -> None:
    """Tell the observers alone, each isolated from the others."""
    facts = {**_facts(delivery), **fields}
    for name, (observer, events) in list(_observers.items()):
        if event in events:
            try:
                observer(event, facts)
            except Exception:
                failures[name] += 1
                log.exception("the observer %r raised at %s (%d times so far)", name, event, failures[name])


def _facts(delivery: Delivery) -> dict[str, Any]:
    return {
        "id": delivery.id, "channel": delivery.channel, "service": delivery.service, "attempt": delivery.attempt,
    }  # fmt: skip


def aloud(text: str) -> None:
    """Log an error that must be seen: on standard error too when no handler but a NullHandler would show it."""
    text = clean(text)
    log.error("%s", text)
    if not _heard(logging.ERROR) and sys.stderr is not None:
        try:
            sys.stderr.write(f"rambla: {text}\n")
        except (OSError, ValueError):
            pass  # a closed stderr: there is nobody left to tell


def _heard(level: int) -> bool:
    if not log.isEnabledFor(level):
        return False
    logger: logging.Logger | None = log
    silent = False
    while logger is not None:
        for handler in logger.handlers:
            if isinstance(handler, logging.NullHandler):
                silent = True
            elif level >= handler.level:
                return True
        logger = logger.parent if logger.propagate else None
    # Without any handler logging's last resort has written to standard error by itself.
    return not silent and logging.lastResort is not None

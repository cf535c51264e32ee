"""The handler contract: what a class may have, what it is given, and how it is found. One file per built-in service.

A handler is a plain class; nothing here has to be imported to write one. `rambla/handlers/README.rst` is the guide.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect as _inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import attrs

from rambla.delivery import Delivery
from rambla.errors import HandlerError, MissingExtra, did_you_mean
from rambla.safety import Parameters
from rambla.serial import resolve

__all__ = ["Handler", "State", "Traits", "find", "inspect", "needs", "service_name"]

ENTRY_POINTS = "rambla.handlers"


@runtime_checkable
class Handler(Protocol):
    """The one method that a handler must have; for type checkers, never needed at run time."""

    def handle_publish(self, message: Any, options: Mapping[str, Any], state: State) -> Any:
        """Send the message once, and return when the service has accepted it; must not retry by itself."""


@attrs.frozen
class Spot:
    """What is the same for every attempt of a pool."""

    channel: str
    service: str
    connection: Parameters


class State:
    """What a handler is told of an attempt, beside the message and its options. Valid on the calling thread, in the call."""

    __slots__ = ("_deliveries", "_spot", "attempt", "client")

    def __init__(self, spot: Spot, deliveries: Sequence[Delivery], client: Any) -> None:
        self._spot = spot
        self._deliveries = deliveries
        self.client = client
        self.attempt: int = deliveries[0].attempt

    @property
    def id(self) -> str:
        """The message's id, equal on every attempt; of a batch, the first one's."""
        return self._deliveries[0].id

    @property
    def ids(self) -> list[str]:
        """The ids of the batch, aligned with its messages."""
        return [delivery.id for delivery in self._deliveries]

    @property
    def attempts(self) -> list[int]:
        """The attempt each message of the batch is in, aligned with the messages; 1 is the first."""
        return [delivery.attempt for delivery in self._deliveries]

    @property
    def retries(self) -> int:
        """How many tries are left after this one; of a batch, the first one's."""
        return self._deliveries[0].retries

    @property
    def channel(self) -> str:
        """The channel that was published to."""
        return self._spot.channel

    @property
    def service(self) -> str:
        """The service that the handler works for."""
        return self._spot.service

    @property
    def connection(self) -> Parameters:
        """The parameters of the connection, a mapping whose repr shows no secret."""
        return self._spot.connection

    def __repr__(self) -> str:
        return f"<State of {self.service} {self.channel!r}, {len(self._deliveries)} messages, attempt {self.attempt}>"


# method -> (how a definition looks, how many arguments it is called with)
_METHODS = {
    "handle_publish": ("def handle_publish(self, message, options, state):", 3),
    "handle_batch": ("def handle_batch(self, messages, options, state):", 3),
    "check": ("def check(self, message, options):", 2),
    "config": ("def config(self):", 0),
    "external_servers": ("def external_servers(self, channel):", 1),
    "connect": ("def connect(self, connection):", 1),
    "disconnect": ("def disconnect(self, client):", 1),
    "on_fatal": ("def on_fatal(self, id, error):", 2),
}


@attrs.frozen
class Traits:
    """What was found on a handler when it was looked at, once: the methods, bound, and the attributes, checked."""

    service: str
    handler: Any
    handle_publish: Callable[[Any, Mapping[str, Any], State], Any]
    handle_batch: Callable[[list[Any], Mapping[str, Any], State], Any] | None
    check: Callable[[Any, Mapping[str, Any]], Any] | None
    config: Callable[[], Any] | None
    external_servers: Callable[[str], Iterable[Any] | None] | None
    connect: Callable[[Parameters], Any] | None
    disconnect: Callable[[Any], Any] | None
    on_fatal: Callable[[str, Any], Any] | None
    permanent: tuple[type[BaseException], ...]
    thread_safe: bool
    batch: int
    Connection: type | None
    Options: type | None


def service_name(handler: Any) -> str:
    """The name a handler goes by when given without one: its ``service``, else its class's name in snake case."""
    cls = handler if isinstance(handler, type) else type(handler)
    name = getattr(handler, "service", None)
    if isinstance(name, str) and name:
        return name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()


def inspect(service: str, handler: Any) -> Traits:
    """Look at a handler class (it is constructed, without arguments) or instance, once.

    Raises `HandlerError` with a sentence that says what to write, when it does not fit.
    """
    title = f"service {service!r}: handler {_title(handler)}"
    if isinstance(handler, type):
        _method(title, handler, "handle_publish", required=True, unbound=True)
        handler = _construct(title, handler)
    found = {name: _method(title, handler, name, required=name == "handle_publish") for name in _METHODS}
    if found["disconnect"] and not found["connect"]:
        raise HandlerError(f"{title} has disconnect but no connect: write `{_METHODS['connect'][0]}`")
    return Traits(service=service, handler=handler, **found, **_attributes(title, handler))  # type: ignore[arg-type]


def find(service: str, spec: str | None, given: Any = None) -> Traits:
    """Find and look at the handler of a service: what the YAML names, else what was given, else a built-in or an installed one.

    Raises `HandlerError` when there is none or it does not fit, `MissingExtra` when its client library is missing.
    """
    if spec is not None:
        return inspect(service, _named(service, spec))
    if given is not None:
        return inspect(service, given)
    return inspect(service, _built_in(service) or _installed(service) or _nowhere(service, service))


def needs(module: str, *, service: str, extra: str) -> Any:
    """Import a client library on first use; raises `MissingExtra` with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(service, extra, module.partition(".")[0]) from error


def _named(service: str, spec: str) -> Any:
    if ":" not in spec and "." not in spec:
        return _built_in(spec) or _installed(spec) or _nowhere(service, spec)
    try:
        found = resolve(spec)
    except Exception as error:  # whatever a user's module raises while it is imported
        if isinstance(error, MissingExtra):
            raise
        raise HandlerError(
            f"service {service!r}: handler {spec!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, type) and not hasattr(found, "handle_publish"):
        raise HandlerError(f"service {service!r}: handler {spec!r} is to be a class, found {found!r}")
    return found


def _built_in(name: str) -> type | None:
    if not name.isidentifier() or importlib.util.find_spec(f"{__name__}.{name}") is None:
        return None
    module = importlib.import_module(f"{__name__}.{name}")
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__ and vars(value).get("service") == name:
            return value
    return None


def _installed(name: str) -> Any:
    # Imported here: it costs as much as half of rambla, and only services of other packages need it.
    from importlib.metadata import entry_points

    for point in entry_points(group=ENTRY_POINTS, name=name):
        try:
            return point.load()
        except Exception as error:
            raise HandlerError(
                f"service {name!r}: the installed handler {point.value!r} cannot be imported:"
                f" {type(error).__name__}: {error}"
            ) from error
    return None


def _nowhere(service: str, name: str) -> Any:
    from importlib.metadata import entry_points
    from pkgutil import iter_modules

    known = {m.name for m in iter_modules(__path__)} | {p.name for p in entry_points(group=ENTRY_POINTS)}
    raise HandlerError(
        f"service {service!r}: there is no handler {name!r}{did_you_mean(name, known)}"
        f" (known: {', '.join(sorted(known))}); for a class of your own write `handler: package.module:Class`"
    )


def _construct(title: str, cls: type) -> Any:
    try:
        return cls()
    except MissingExtra:
        raise
    except Exception as error:
        raise HandlerError(
            f"{title} is constructed without arguments, which failed: {type(error).__name__}: {error}"
        ) from error


def _title(handler: Any) -> str:
    cls = handler if isinstance(handler, type) else type(handler)
    return f"{cls.__module__}.{cls.__qualname__}"


def _method(title: str, handler: Any, name: str, *, required: bool, unbound: bool = False) -> Any:
    method = getattr(handler, name, None)
    text, count = _METHODS[name]
    if method is None:
        if not required:
            return None
        near = did_you_mean(name, [m for m in dir(handler) if not m.startswith("__")])
        raise HandlerError(f"{title} has no {name}: write `{text}`{near}")
    if not callable(method):
        raise HandlerError(f"{title}: {name} is to be a method, found {method!r}: write `{text}`")
    if _inspect.iscoroutinefunction(method):
        raise HandlerError(f"{title}: {name} is a coroutine, which no worker would run: write `{text}`")
    if not unbound:
        _check_signature(title, method, name, text, count)
    return method


def _check_signature(title: str, method: Any, name: str, text: str, count: int) -> None:
    try:
        signature = _inspect.signature(method)
    except (TypeError, ValueError):
        return  # written in C: only a call would tell
    try:
        signature.bind(*range(count))
    except TypeError:
        raise HandlerError(
            f"{title}: {name} is called with {count} argument{'' if count == 1 else 's'}, and takes {signature}: write `{text}`"
        ) from None


def _attributes(title: str, handler: Any) -> dict[str, Any]:
    permanent = getattr(handler, "permanent", ())
    permanent = (permanent,) if isinstance(permanent, type) else permanent
    if not isinstance(permanent, (tuple, list)) or not all(
        isinstance(p, type) and issubclass(p, BaseException) for p in permanent
    ):
        raise HandlerError(f"{title}: permanent is to be a tuple of exception classes, found {permanent!r}")
    batch = getattr(handler, "batch", 100 if getattr(handler, "handle_batch", None) else 1)
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise HandlerError(f"{title}: batch is to be a whole number, 1 or more, found {batch!r}")
    found: dict[str, Any] = {"permanent": tuple(permanent), "batch": batch}
    found["thread_safe"] = bool(getattr(handler, "thread_safe", False))
    for name in ("Connection", "Options"):
        cls = getattr(handler, name, None)
        if cls is not None and not (isinstance(cls, type) and attrs.has(cls)):
            raise HandlerError(f"{title}: {name} is to be an attrs class, found {cls!r}")
        found[name] = cls
    return found

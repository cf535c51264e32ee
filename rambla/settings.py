"""The configuration as a frozen tree. It knows shapes, and no handlers. The fields' ``doc`` is the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from rambla.building import build, shown
from rambla.errors import Fault, SettingsError, did_you_mean
from rambla.loader import Document, KeyPath, Source
from rambla.retry import Backoff

__all__ = [
    "CORE_OPTIONS",
    "BreakerSettings",
    "Callbacks",
    "ChannelSettings",
    "CoreOptions",
    "PoolSettings",
    "ServiceSettings",
    "Settings",
    "build",
    "parse",
]

# A timeout past this is nearly always one in milliseconds.
LONGEST_TIMEOUT = 600.0


def _range(low: float, high: float | None = None, *, above: bool = False) -> Any:
    def check(instance: object, attribute: Any, value: float | None) -> None:
        if value is None:
            return
        if value < low or (above and value == low) or (high is not None and value > high):
            bounds = f"more than {low:g}" if above else f"{low:g} or more"
            raise ValueError(f"expected {bounds}{f', {high:,.0f} at most' if high is not None else ''}, found {value!r}")

    return check


def _timeout(instance: object, attribute: Any, value: float) -> None:
    if value > LONGEST_TIMEOUT:
        raise ValueError(f"expected {LONGEST_TIMEOUT:g} at most, found {value:g}: a timeout is in seconds; did you mean {value / 1000:g}?")
    _range(0, above=True)(instance, attribute, value)


def _field(doc: str, **given: Any) -> Any:
    size = given.pop("size", False)
    return attrs.field(metadata={"doc": doc, "size": size}, kw_only=True, **given)


@attrs.frozen
class Callbacks:
    """What is called with an `Event` when an attempt has ended; in YAML a dotted path, in Python a callable or a path."""

    on_success: str | Callable[..., Any] | None = _field("called after the handler returned", default=None)
    on_failure: str | Callable[..., Any] | None = _field(
        "called after each failed attempt; returns RETRY, Retry(…), STOP or None", default=None
    )


@attrs.frozen
class CoreOptions:
    """How a message is treated; each may be given per publish and beside a message too."""

    timeout: float = _field("seconds a handler call may take, 600 at most", default=30.0, validator=_timeout)
    retries: int | None = _field(
        "tries after the first; nothing: the top's max_retries", default=None, validator=_range(0, 1_000_000)
    )
    backoff: Backoff = _field("the waits between attempts", default=Backoff())
    ttl: float | None = _field(
        "seconds after which it is not tried any more; nothing: no limit", default=None, validator=_range(0, above=True)
    )
    callbacks: Callbacks = _field("functions to be called", default=Callbacks())
    preferred_format: Literal["map", "binary", "none"] = _field(
        "map: JSON text becomes a mapping; binary: a mapping becomes JSON text; none: as it is", default="none"
    )
    serializer: str | Callable[..., Any] = _field("json, or a dotted path to a function that returns bytes", default="json")


CORE_OPTIONS = frozenset(field.name for field in attrs.fields(CoreOptions))


@attrs.frozen
class PoolSettings:
    """The threads and the queue of a channel."""

    count: int = _field("threads", default=4, validator=_range(1, 1000))
    max_overflow: int = _field("threads beyond count", default=0, validator=_range(0, 1000))
    queue_size: int = _field("messages that may wait and run", default=10_000, validator=_range(1, 100_000_000))
    queue_bytes: int | None = _field(
        "bytes that they may take in memory, as 64MiB; nothing: no bound", default=None, validator=_range(1), size=True
    )
    when_full: Literal["block", "raise", "drop_newest", "drop_oldest"] = _field(
        "what publish does when the queue is full", default="block"
    )
    publish_timeout: float = _field("seconds that block waits for room", default=30.0, validator=_range(0, 86_400))
    batch: int | None = _field(
        "messages handed to handle_batch at once; nothing: the handler's own", default=None, validator=_range(1, 1_000_000)
    )
    linger: float = _field("seconds to wait for a fuller batch", default=0.0, validator=_range(0, 60))
    grace: float = _field(
        "seconds past its timeout after which a handler call is given up and its worker replaced",
        default=1.0, validator=_range(0, 600),
    )  # fmt: skip


@attrs.frozen
class BreakerSettings:
    """When to stop trying a connection for a while."""

    failures: int = _field("failed attempts in a row that open it", default=5, validator=_range(1, 1_000_000))
    open_for: float = _field("seconds until one attempt is let through", default=10.0, validator=_range(0, 86_400, above=True))


@attrs.frozen
class ChannelSettings:
    """A channel of a service."""

    name: str
    connection: str | None = _field("which of the service's connections; may be left out when there is one at most", default=None)
    durable: bool = _field("survive the end of the process (needs an outbox)", default=False)
    dead_letter: str | None = _field("a channel that also gets what died here", default=None)
    pool: PoolSettings = _field("threads and queue", default=PoolSettings())
    options: dict[str, Any] = _field("how a message is treated, and the handler's own options", factory=dict)


@attrs.frozen
class ServiceSettings:
    """A service: one handler, its connections and channels."""

    name: str
    handler: str | None = _field("package.module:Class, or the name of a built-in one; a built-in service needs none", default=None)
    breaker: BreakerSettings | None = _field("one per connection; nothing: none", default=None)
    connections: dict[str, dict[str, Any]] = _field("name to parameters, or to one URL", factory=dict)
    channels: dict[str, ChannelSettings] = _field("name to channel", factory=dict)


@attrs.frozen
class Settings:
    """The whole configuration."""

    max_retries: int = _field("tries after the first; a channel's or a publish's retries wins", default=5, validator=_range(0, 1_000_000))
    shutdown_timeout: float = _field("seconds a stop may take, all in all", default=25.0, validator=_range(0, 86_400))
    outbox: Any = _field("not in this version", default=None)
    services: dict[str, ServiceSettings] = _field("name to service", factory=dict)
    source: Source = attrs.field(factory=Source, repr=False, kw_only=True)
    base_dir: Path = attrs.field(factory=Path.cwd, kw_only=True)


def parse(document: Document) -> Settings:
    """Check a document and make the tree of it; raises `SettingsError` with all faults."""
    faults: list[Fault] = []
    parser = _Parser(document, faults)
    settings = parser.top()
    if faults:
        raise SettingsError(sorted(faults, key=lambda f: (f.file or "", f.line or 0, f.column or 0)))
    return settings


class _Parser:
    def __init__(self, document: Document, faults: list[Fault]) -> None:
        self.data, self.source, self.faults = document.data, document.source, faults
        self.base_dir = document.base_dir

    def fault(self, path: KeyPath, problem: str) -> None:
        self.faults.append(self.source.fault(path, problem))

    def mapping(self, value: Any, path: KeyPath) -> dict[str, Any]:
        if value is not None and not isinstance(value, dict):
            self.fault(path, f"expected a mapping, found {shown(value, path)}")
        return value if isinstance(value, dict) else {}

    def fields(self, cls: type, values: dict[str, Any], path: KeyPath, *apart: str) -> dict[str, Any]:
        """Check the keys of a mapping against a class, leaving those apart to the caller; returns what fits."""
        rest = {k: v for k, v in values.items() if k not in apart}
        probe = attrs.make_class("Probe", {}, frozen=True)
        hidden = {f.name for f in attrs.fields(cls)} & {"name", "source", "base_dir"}
        known = [f for f in attrs.fields(cls) if f.name not in hidden and f.name not in apart]
        names = [f.name for f in attrs.fields(cls) if f.name not in hidden]
        del probe
        made: dict[str, Any] = {}
        for key in rest:
            if key not in names:
                self.fault((*path, key), f"unknown key {key[:60]!r}{did_you_mean(key, names)} (known: {', '.join(names)})")
        for field in known:
            if field.name in rest:
                one = attrs.make_class(cls.__name__, {field.name: attrs.field(
                    type=_type(cls, field.name), validator=field.validator, metadata=field.metadata)})  # fmt: skip
                built = build(one, {field.name: rest[field.name]}, path, self.source, self.faults, base_dir=self.base_dir)
                if built is not None:
                    made[field.name] = getattr(built, field.name)
        return made

    def top(self) -> Settings:
        made = self.fields(Settings, self.data, (), "services", "outbox")
        if self.data.get("outbox") is not None:
            self.fault(("outbox",), "this version of rambla has no outbox yet: leave the key out")
        services = {}
        for name, section in self.mapping(self.data.get("services"), ("services",)).items():
            services[name] = self.service(name, self.mapping(section, ("services", name)))
        self.graveyards(services)
        return Settings(**made, services=services, source=self.source, base_dir=self.base_dir)

    def service(self, name: str, section: dict[str, Any]) -> ServiceSettings:
        path: KeyPath = ("services", name)
        made = self.fields(ServiceSettings, section, path, "connections", "channels")
        connections = {}
        for key, value in self.mapping(section.get("connections"), (*path, "connections")).items():
            at = (*path, "connections", key)
            connections[key] = {"url": value} if isinstance(value, str) else self.mapping(value, at)
        channels = {}
        for key, value in self.mapping(section.get("channels"), (*path, "channels")).items():
            at = (*path, "channels", key)
            channels[key] = self.channel(key, self.mapping(value, at), at, connections)
        return ServiceSettings(name, **made, connections=connections, channels=channels)

    def channel(self, name: str, section: dict[str, Any], path: KeyPath, connections: Mapping[str, Any]) -> ChannelSettings:
        made = self.fields(ChannelSettings, section, path, "options")
        if not name:
            self.fault(path, "a channel's name is not to be empty")
        connection = made.get("connection")
        if connection is None:
            if len(connections) > 1:
                self.fault(path, f"the key 'connection' is missing, and there are several: {', '.join(sorted(connections))}")
            made["connection"] = next(iter(connections), None)
        elif connection not in connections:
            near = did_you_mean(connection, connections)
            known = f" (known: {', '.join(sorted(connections)) or 'none'})"
            self.fault((*path, "connection"), f"there is no connection {connection!r} in this service{near}{known}")
        if made.get("durable"):
            self.fault((*path, "durable"), "a durable channel needs an outbox, which this version of rambla has not yet")
            if made.get("pool") is not None and made["pool"].when_full.startswith("drop"):
                self.fault((*path, "pool", "when_full"), "a durable channel drops nothing: expected block or raise")
        return ChannelSettings(name, **made, options=self.options(section.get("options"), (*path, "options")))

    def options(self, section: Any, path: KeyPath) -> dict[str, Any]:
        options = self.mapping(section, path)
        core = {key: value for key, value in options.items() if key in CORE_OPTIONS}
        build(CoreOptions, core, path, self.source, self.faults)
        return options

    def graveyards(self, services: Mapping[str, ServiceSettings]) -> None:
        leads: dict[str, set[str]] = {}
        places: dict[str, KeyPath] = {}
        for service in services.values():
            for name, channel in service.channels.items():
                leads.setdefault(name, set())
                if channel.dead_letter is not None:
                    leads[name].add(channel.dead_letter)
                    places[name] = ("services", service.name, "channels", name, "dead_letter")
        for name, targets in leads.items():
            for target in targets - leads.keys():
                self.fault(places[name], f"there is no channel {target!r}{did_you_mean(target, leads)}")
            if targets and _reaches(leads, targets, name):
                self.fault(places[name], f"what dies there would come back to {name!r}: expected no cycle")


def _reaches(leads: Mapping[str, set[str]], begin: set[str], end: str) -> bool:
    seen: set[str] = set()
    queue = list(begin)
    while queue:
        name = queue.pop()
        if name == end:
            return True
        if name not in seen:
            seen.add(name)
            queue += leads.get(name, ())
    return False


def _type(cls: type, name: str) -> Any:
    return _hints(cls)[name]


def _hints(cls: type) -> dict[str, Any]:
    from typing import get_type_hints

    return get_type_hints(cls)

"""How a message is treated: its options, merged from the top, the channel, the publish and the message, and made ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs

from rambla.errors import Fault, InvalidMessage
from rambla.handlers import Traits
from rambla.loader import Source
from rambla.outcome import Event
from rambla.retry import Backoff
from rambla.serial import as_binary, as_map, resolve, serializer
from rambla.settings import CORE_OPTIONS, CoreOptions, build

__all__ = ["Treatment", "treat"]

_CONVERTERS: dict[str, Callable[[Any], Any] | None] = {"none": None, "map": as_map, "binary": as_binary}
# Publishers repeat a few sets of options; those that never repeat must not pile up.
_REMEMBERED = 256


@attrs.frozen(eq=False)
class Treatment:
    """The options in force for some messages. ``options`` is what the handler is given, read-only, defaults filled in."""

    options: Mapping[str, Any]
    timeout: float
    retries: int
    backoff: Backoff
    ttl: float | None
    on_success: Callable[[Event], Any] | None
    on_failure: Callable[[Event], Any] | None
    convert: Callable[[Any], Any] | None
    _given: Mapping[str, Any] = attrs.field(repr=False)
    _traits: Traits = attrs.field(repr=False)
    _max_retries: int
    _known: dict[Any, Treatment] = attrs.field(factory=dict, repr=False)

    def override(self, options: Mapping[str, Any], where: str) -> Treatment:
        """The treatment with some options of a publish or of a message over these; raises `InvalidMessage`."""
        try:
            key = frozenset((name, type(value), value) for name, value in options.items())
            known = self._known.get(key)
        except TypeError:  # a value that cannot be hashed, such as a mapping of headers
            key = known = None
        if known is not None:
            return known
        faults: list[Fault] = []
        given = {**self._given, **options}
        treatment = treat(given, self._traits, self._max_retries, (), Source.nowhere(), faults)
        if treatment is None or faults:
            hint = " (rambla.raw(payload) sends a mapping exactly as it is)" if any("unknown" in f for f in faults) else ""
            raise InvalidMessage(f"{where}: {'; '.join(faults)}{hint}")
        if key is not None and len(self._known) < _REMEMBERED:
            self._known[key] = treatment
        return treatment


def treat(
    given: Mapping[str, Any],
    traits: Traits,
    max_retries: int,
    path: tuple[str | int, ...],
    source: Source,
    faults: list[Fault],
) -> Treatment | None:
    """Make a treatment of options; what is wrong is added to ``faults``, and then the answer may be None."""
    core_given = {name: value for name, value in given.items() if name in CORE_OPTIONS}
    own_given = {name: value for name, value in given.items() if name not in CORE_OPTIONS}
    core = build(CoreOptions, core_given, path, source, faults)
    own: Mapping[str, Any] = own_given
    if traits.Options is not None:
        made = build(traits.Options, own_given, path, source, faults, also=CORE_OPTIONS)
        own = {} if made is None else {f.name: getattr(made, f.name) for f in attrs.fields(traits.Options)}
    if core is None:
        return None
    on_success = _callback(core.callbacks.on_success, (*path, "callbacks", "on_success"), source, faults)
    on_failure = _callback(core.callbacks.on_failure, (*path, "callbacks", "on_failure"), source, faults)
    try:
        serializer(core.serializer)
    except Exception as error:
        faults.append(source.fault((*path, "serializer"), f"expected 'json' or a dotted path to a function: {error}"))
    retries = max_retries if core.retries is None else core.retries
    known = {f.name: getattr(core, f.name) for f in attrs.fields(CoreOptions)} | {"retries": retries}
    return Treatment(
        options=MappingProxyType({**known, **own}), timeout=core.timeout, retries=retries, backoff=core.backoff,
        ttl=core.ttl, on_success=on_success, on_failure=on_failure, convert=_CONVERTERS[core.preferred_format],
        given=dict(given), traits=traits, max_retries=max_retries,
    )  # fmt: skip


def _callback(value: Any, path: tuple[str | int, ...], source: Source, faults: list[Fault]) -> Any:
    if value is None or callable(value):
        return value
    try:
        found = resolve(value)
    except Exception as error:  # importing a user's module may raise anything
        faults.append(source.fault(path, f"expected a callable, {value!r} cannot be imported: {type(error).__name__}: {error}"))
        return None
    if not callable(found):
        faults.append(source.fault(path, f"expected a callable, {value!r} is {type(found).__name__}"))
    return found

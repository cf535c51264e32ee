"""An attrs class made of a mapping: its annotations and validators are the schema, and what does not fit are faults."""

from __future__ import annotations

import enum
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from rambla.errors import Fault, did_you_mean
from rambla.loader import KeyPath, Source
from rambla.safety import Secret, is_secret_name, mask_url

__all__ = ["build", "shown"]

_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMGT]i?B|B)?", re.IGNORECASE)
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


class Misfit(ValueError):
    """A value that does not fit: what was expected, without what was found."""


def build(
    cls: type,
    values: Mapping[str, Any],
    path: KeyPath,
    source: Source,
    faults: list[Fault],
    *,
    also: Collection[str] = (),
    base_dir: Path | None = None,
) -> Any:
    """Make an instance of an attrs class from a mapping, or None when something does not fit; each misfit becomes a fault.

    ``also`` are names to suggest for unknown keys beside the class's own. Relative paths are taken from ``base_dir``.
    """
    fields = {field.alias or field.name: field for field in attrs.fields(cls) if field.init}
    hints = _hints(cls)
    before = len(faults)
    for name in values:
        if name not in fields:
            near = did_you_mean(name, [*fields, *also])
            known = "" if near else f" (known: {', '.join(sorted(fields)) or 'none'})"
            faults.append(source.fault((*path, name), f"unknown key {str(name)[:60]!r}{near}{known}"))
    made: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            at = (*path, name)
            if field.metadata.get("size"):
                convert: Callable[[Any], Any] = _size
            else:
                convert = functools.partial(_convert, hint=hints[field.name], path=at, source=source, faults=faults, base_dir=base_dir)
            made[name] = _fitted(convert, field, values[name], at, source, faults)
        elif field.default is attrs.NOTHING:
            faults.append(source.fault(path, f"the key {name!r} is missing"))
    if len(faults) > before:
        return None
    try:
        return cls(**made)
    except (ValueError, TypeError) as error:
        faults.append(source.fault(path, str(error)))
        return None


def shown(value: Any, path: KeyPath) -> str:
    """A found value, short, or that it is not shown."""
    if any(is_secret_name(part) for part in path) or isinstance(value, Secret):
        return f"{_kind(value)} that is not shown"
    if isinstance(value, (Mapping, list)):
        return f"{_kind(value)} of {len(value)}"
    if isinstance(value, str):
        value = mask_url(value)
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


@functools.lru_cache(maxsize=256)
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _fitted(
    convert: Callable[[Any], Any], field: Any, value: Any, path: KeyPath, source: Source, faults: list[Fault]
) -> Any:
    before = len(faults)
    try:
        fitted = convert(value)
        if len(faults) == before and field.validator is not None:
            checked = field.converter(fitted) if callable(field.converter) else fitted
            field.validator(None, field, checked)
        return fitted
    except Misfit as error:
        faults.append(source.fault(path, f"expected {error}, found {shown(value, path)}"))
    except (ValueError, TypeError, AttributeError) as error:
        if any(is_secret_name(part) for part in path):
            faults.append(source.fault(path, "does not fit; its value is not shown"))
        else:
            faults.append(source.fault(path, str(error)))
    return None


def _convert(value: Any, hint: Any, path: KeyPath, source: Source, faults: list[Fault], base_dir: Path | None) -> Any:
    into = functools.partial(_convert, source=source, faults=faults, base_dir=base_dir)
    origin = get_origin(hint)
    if hint is Any or hint is object:
        return value
    if origin in (Union, types.UnionType):
        return _union(value, hint, path, into)
    if origin is Literal:
        if value not in get_args(hint) or isinstance(value, bool) != any(v is value for v in get_args(hint) if isinstance(v, bool)):
            names = [str(a) for a in get_args(hint)]
            raise Misfit(f"one of {', '.join(names)}{did_you_mean(value, names) if isinstance(value, str) else ''}")
        return value
    if origin in (list, tuple, set, frozenset) or hint in (list, tuple):
        return _items(value, hint, origin or hint, path, into)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping) or hint in (dict, Mapping):
        return _mapping(value, hint, path, into)
    if origin is not None and origin.__module__ == "collections.abc" and origin.__name__ == "Callable":
        if not callable(value):
            raise Misfit("a callable")
        return value
    if isinstance(hint, type) and attrs.has(hint):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise Misfit("a mapping")
        return build(hint, value, path, source, faults, base_dir=base_dir)
    return _scalar(value, hint, base_dir)


def _union(value: Any, hint: Any, path: KeyPath, into: Callable[..., Any]) -> Any:
    members = get_args(hint)
    if value is None and type(None) in members:
        return None
    expected = []
    for member in members:
        if member is type(None):
            continue
        try:
            return into(value, hint=member, path=path)
        except Misfit as error:
            expected.append(str(error))
    raise Misfit(" or ".join(expected) + (" or nothing" if type(None) in members else ""))


def _items(value: Any, hint: Any, kind: Any, path: KeyPath, into: Callable[..., Any]) -> Any:
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise Misfit("a list")
    args = get_args(hint)
    of = args[0] if args else Any
    made = []
    for index, item in enumerate(value):
        try:
            made.append(into(item, hint=of, path=(*path, index)))
        except Misfit as error:
            raise Misfit(f"a list, and at [{index}] {error}") from None
    return kind(made)


def _mapping(value: Any, hint: Any, path: KeyPath, into: Callable[..., Any]) -> Any:
    if not isinstance(value, Mapping):
        raise Misfit("a mapping")
    args = get_args(hint)
    of = args[1] if len(args) == 2 else Any
    made = {}
    for key, item in value.items():
        try:
            made[key] = into(item, hint=of, path=(*path, key))
        except Misfit as error:
            raise Misfit(f"a mapping, and at {key!r} {error}") from None
    return made


def _scalar(value: Any, hint: Any, base_dir: Path | None) -> Any:
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            if math.isfinite(float(value)):
                return float(value)
        except OverflowError:
            pass
        raise Misfit("a finite number")
    if hint is str and isinstance(value, str):
        return value
    if hint is Secret and isinstance(value, (str, Secret)):
        return Secret(value) if isinstance(value, str) else value
    if hint is Path and isinstance(value, (str, Path)) and str(value) and "\0" not in str(value):
        return (base_dir or Path.cwd()) / Path(value).expanduser()
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        for member in hint:
            if value == member.value or value is member:
                return member
        raise Misfit("one of " + ", ".join(str(m.value) for m in hint))
    if isinstance(hint, type) and hint not in _NAMES and isinstance(value, hint):
        return value
    raise Misfit(_NAMES.get(hint) or f"a {getattr(hint, '__name__', hint)}")


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Secret: "a text", Path: "a path"}
_NAMES[type(None)] = "nothing"


def _size(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) and len(value) < 40 else None
    if match is None:
        raise Misfit("a number of bytes such as 1048576 or 64MiB")
    return int(float(match["number"]) * _UNITS[(match["unit"] or "").upper()])


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list) else "a text" if isinstance(value, (str, Secret)) else f"a {type(value).__name__}"

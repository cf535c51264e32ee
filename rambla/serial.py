"""Serialisers, and dotted paths to things."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import functools
import importlib
import json
import math
import pathlib
import uuid
from collections.abc import Callable, Mapping, Set
from typing import Any

import attrs

from rambla.errors import InvalidMessage

__all__ = ["as_binary", "as_map", "check", "dumps", "loads", "resolve", "serializer"]

# Values that JSON always takes; floats are not among them, for NaN.
_PLAIN = frozenset({str, int, bool, type(None)})


def resolve(dotted: str) -> Any:
    """Import what ``package.module:name`` (or ``package.module.name``) names.

    Raises ImportError, AttributeError or ValueError that says what is missing, and whatever the import itself raises.
    """
    if not isinstance(dotted, str) or not dotted:
        raise ValueError(f"expected a dotted path such as 'package.module:name', found {dotted!r}")
    module, colon, name = dotted.partition(":")
    if not colon:
        module, _, name = dotted.rpartition(".")
    if not module or not name:
        raise ValueError(f"expected a dotted path such as 'package.module:name', found {dotted!r}")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _default(value: Any) -> Any:
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (uuid.UUID, decimal.Decimal, pathlib.PurePath)):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Set):
        return list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if attrs.has(type(value)):
        return {f.name: getattr(value, f.name) for f in attrs.fields(type(value))}
    if isinstance(value, (bytes, bytearray)):
        return value.decode()
    raise TypeError


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_default).encode


def dumps(value: Any) -> bytes:
    """Compact UTF-8 JSON.

    Dates and times as ISO 8601, UUID, Decimal and paths as text, enums by value, sets as lists, dataclasses and attrs
    classes as mappings, bytes as the UTF-8 text they must be. Raises `InvalidMessage` that names the place and the type.
    """
    try:
        return _encode(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMessage(f"cannot be made JSON: {_culprit(value, '$', 0) or error or 'it nests too deep'}") from None


def check(value: Any) -> None:
    """Raise `InvalidMessage` when `dumps` would."""
    if value.__class__ is dict and _PLAIN.issuperset(map(type, value.values())) and all(k.__class__ is str for k in value):
        if all(v.isascii() for v in value.values() if v.__class__ is str):
            return  # else a lone surrogate may hide in it
    dumps(value)


def _culprit(value: Any, path: str, depth: int) -> str | None:
    if depth > 200:
        return f"{path[:60]}… contains itself, or nests deeper than 200"
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, (str, int, float, bool, type(None))):
                return f"{path} has a key of type {type(key).__name__}, expected a string"
            if found := _culprit(item, f"{path}.{key}", depth + 1):
                return found
        return None
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            if found := _culprit(item, f"{path}[{index}]", depth + 1):
                return found
        return None
    return _atom_fault(value, path, depth)


def _atom_fault(value: Any, path: str, depth: int) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{path} is {value!r}, expected a finite number"
    if isinstance(value, str):
        return None if _encodable(value) else f"{path} holds a lone surrogate, which UTF-8 has no bytes for"
    if isinstance(value, (int, float, type(None))):
        return None
    try:
        inner = _default(value)
    except UnicodeDecodeError:
        return f"{path} is {type(value).__name__} that is not UTF-8 text"
    except TypeError:
        return f"{path} is of type {type(value).__name__}"
    return _culprit(inner, path, depth + 1)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def loads(text: str | bytes) -> Any:
    """What a JSON text says; raises `InvalidMessage`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"expected JSON: {error}") from None


@functools.lru_cache(maxsize=64)
def serializer(name: str | Callable[[Any], Any]) -> Callable[[Any], bytes]:
    """The function that makes bytes of a message: ``json``, or one by dotted path; its failures become `InvalidMessage`."""
    if name == "json":
        return dumps
    function = resolve(name) if isinstance(name, str) else name
    if not callable(function):
        raise ValueError(f"{name!r} is no function")
    return functools.partial(_serialize, function)


def _serialize(function: Callable[[Any], Any], value: Any) -> bytes:
    try:
        made = function(value)
        made = made.encode() if isinstance(made, str) else made
    except Exception as error:
        raise InvalidMessage(f"the serializer refused a {type(value).__name__}: {type(error).__name__}: {error}") from error
    if not isinstance(made, (bytes, bytearray)):
        raise InvalidMessage(f"a serializer returns bytes or a string, this one returned {type(made).__name__}")
    return bytes(made)


def as_map(message: Any) -> Any:
    """JSON text as the mapping it says; a mapping as it is. Raises `InvalidMessage` for anything else."""
    if isinstance(message, (str, bytes, bytearray)):
        message = loads(bytes(message) if isinstance(message, bytearray) else message)
    if not isinstance(message, Mapping):
        raise InvalidMessage(f"preferred_format is 'map': expected a mapping or JSON text of one, found {type(message).__name__}")
    return message


def as_binary(message: Any) -> Any:
    """A mapping or a list as JSON text; text and bytes as they are."""
    return message if isinstance(message, (str, bytes)) else dumps(message).decode()

"""Payload in, message out: copying what the caller may still change, unwrapping what stands beside a message, ids."""

from __future__ import annotations

import collections
import functools
import inspect
import itertools
import os
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from rambla.errors import InvalidMessage

__all__ = ["ATOMS", "Message", "Number", "Raw", "copy_payload", "identify", "is_call", "numbers", "raw", "unwrap"]

# Values of these classes cannot change: a container that holds nothing else is copied by one call in C.
ATOMS = frozenset({str, int, float, bool, type(None), bytes, complex})
_CALLS = frozenset(
    {types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.MethodWrapperType, functools.partial}
)

# An id is made of one random prefix per process and a number: uuid4 would cost more than the whole of publish.
Number: TypeAlias = "int | tuple[int, int] | str"
numbers = itertools.count(1)
_prefix = os.urandom(6).hex()


def _renew() -> None:
    global _prefix
    _prefix = os.urandom(6).hex()


os.register_at_fork(after_in_child=_renew)


def identify(number: Number) -> str:
    """The id that belongs to a number drawn from `numbers`: unique across processes, stable within this one."""
    if isinstance(number, int):
        return f"{_prefix}-{number:x}"
    if isinstance(number, tuple):
        return f"{_prefix}-{number[0]:x}.{number[1]}"
    return number


class Message:
    """A message with options beside it: ``Message({"n": 1}, retries=0)`` is what ``{"message": {"n": 1}, "retries": 0}`` is.

    The body is taken as it is, whatever it looks like.
    """

    __slots__ = ("body", "options")

    def __init__(self, body: Any, /, **options: Any) -> None:
        self.body = body
        self.options = options

    def __repr__(self) -> str:
        return f"Message({type(self.body).__name__}, options {sorted(self.options)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return bool(self.body == other.body and self.options == other.options)

    __hash__ = None  # type: ignore[assignment]  # its body may change


class Raw:
    """What `raw` returns: a payload that is exactly the message."""

    __slots__ = ("payload",)

    def __init__(self, payload: Any) -> None:
        self.payload = payload


def raw(payload: Any) -> Raw:
    """Mark a payload as exactly the message: no key of it is an option, a list is one message, a function is a value."""
    return payload if isinstance(payload, Raw) else Raw(payload)


def is_call(message: Any) -> bool:
    """Whether a message is a function, a method or a partial, which a worker calls; other callable objects are not."""
    return message.__class__ in _CALLS


def unwrap(payload: Any) -> tuple[Any, Mapping[str, Any] | None]:
    """Split a payload into the message and the options that stand beside it (None when there are none).

    Raises `InvalidMessage` for options that are no mapping of names, and for a coroutine function.
    """
    options: Mapping[str, Any] | None = None
    if isinstance(payload, Message):
        message, options = payload.body, payload.options
    elif isinstance(payload, Mapping) and "message" in payload:
        message = payload["message"]
        options = {name: value for name, value in payload.items() if name != "message"}
        odd = [name for name in options if not isinstance(name, str)]
        if odd:
            raise InvalidMessage(
                f"a mapping with the key 'message' holds options beside it, named by strings; found the key {odd[0]!r}"
                " (rambla.raw(payload) sends a mapping exactly as it is)"
            )
    else:
        message = payload
    if is_call(message) and inspect.iscoroutinefunction(message):
        raise InvalidMessage("a coroutine function cannot be published: a worker would not run it; found one")
    return message, options or None


def copy_payload(payload: Any) -> Any:
    """A copy that later changes by the caller do not reach: plain containers are copied, other objects are the same.

    Plain: dict, list, tuple, set, bytearray, and OrderedDict, defaultdict, deque of the standard library.
    Raises `InvalidMessage` when it contains itself, or is nested too deep.
    """
    try:
        return _copy(payload)
    except RecursionError:
        raise InvalidMessage("the payload contains itself, or is nested too deep to be copied") from None


def _copy(value: Any) -> Any:
    cls = value.__class__
    if cls in ATOMS:
        return value
    copier = _COPIERS.get(cls)
    return value if copier is None else copier(value)


def _copy_dict(value: dict[Any, Any]) -> dict[Any, Any]:
    if ATOMS.issuperset(map(type, value.values())):
        return value.copy()
    return {key: _copy(item) for key, item in value.items()}


def _copy_list(value: list[Any]) -> list[Any]:
    if ATOMS.issuperset(map(type, value)):
        return value.copy()
    return [_copy(item) for item in value]


def _copy_defaultdict(value: collections.defaultdict[Any, Any]) -> collections.defaultdict[Any, Any]:
    return collections.defaultdict(value.default_factory, _copy_dict(value))


_COPIERS: dict[type, Callable[[Any], Any]] = {
    dict: _copy_dict,
    list: _copy_list,
    tuple: lambda value: value if ATOMS.issuperset(map(type, value)) else tuple(_copy(item) for item in value),
    set: set,
    bytearray: bytearray,
    collections.OrderedDict: lambda value: collections.OrderedDict((k, _copy(v)) for k, v in value.items()),
    collections.defaultdict: _copy_defaultdict,
    collections.deque: lambda value: collections.deque((_copy(item) for item in value), value.maxlen),
    Message: lambda value: Message(_copy(value.body), **_copy_dict(value.options)),
    Raw: lambda value: Raw(_copy(value.payload)),
}

"""Secrets: one type for them, masks for what is shown, and a memory of those configured, to keep them out of texts."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

__all__ = ["MASK", "Parameters", "Secret", "clean", "is_secret_name", "mask", "mask_url", "register_secrets"]

MASK = "***"

_SECRET_NAME = re.compile(
    r"pass(word|wd|phrase)?$|pwd$|secret|token|authori[sz]ation|api.?key|access.?key|private.?key|shared.?key|account.?key"
    r"|credential|cookie|dsn$|signature|webhook|^auth$|bearer|session.?id",
    re.IGNORECASE,
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://[^\s'\"<>]+")
_USERINFO = re.compile(r"(?P<scheme>^[A-Za-z][A-Za-z0-9+.\-]*://)(?P<user>[^/?#]*)@(?=[^@/?#]*(?:[/?#]|$))")
_QUERY = re.compile(r"(?P<lead>[?&;])(?P<name>[^=&;#?]+)=(?P<value>[^&;#]*)")
# Shorter texts than this would be found everywhere, and hide more than they protect.
_SHORTEST = 4

_lock = threading.RLock()
_secrets: set[str] = set()
_pattern: re.Pattern[str] | None = None


class Secret:
    """A text that does not show itself: only `reveal` gives it out."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the client library alone."""
        return self._text

    def __repr__(self) -> str:
        return MASK

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self._text))


class Parameters(dict[str, Any]):
    """The parameters of a connection: a dict with the real values, whose repr shows no secret."""

    def __repr__(self) -> str:
        return repr(mask(dict(self)))

    __str__ = __repr__


def is_secret_name(name: object) -> bool:
    """Whether what goes by that name is not to be shown."""
    return isinstance(name, str) and _SECRET_NAME.search(name) is not None


def mask(value: Any, name: object = "") -> Any:
    """A copy of a value that is fit to be shown: secrets by name or type, and those within URLs, are ``***``."""
    if isinstance(value, Secret) or (is_secret_name(name) and value not in (None, "") and not isinstance(value, bool)):
        return MASK
    if isinstance(value, Mapping):
        return {key: mask(item, key) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [mask(item) for item in value]
    return mask_url(value) if isinstance(value, str) else value


def mask_url(text: str) -> str:
    """A text with the passwords and secret query values of the URLs in it masked."""
    return _URL.sub(lambda match: _mask_one(match[0]), text) if "://" in text else text


def _mask_one(url: str) -> str:
    def user(match: re.Match[str]) -> str:
        name, colon, _ = match["user"].partition(":")
        return f"{match['scheme']}{name if colon else MASK}{':' + MASK if colon else ''}@"

    def query(match: re.Match[str]) -> str:
        hidden = is_secret_name(unquote(match["name"])) or match["name"].lower() in ("key", "sig", "code")
        return f"{match['lead']}{match['name']}={MASK if hidden else match['value']}"

    return _QUERY.sub(query, _USERINFO.sub(user, url))


def register_secrets(value: Any) -> None:
    """Remember the secrets of a connection, for as long as the process lives, so that `clean` finds them in any text."""
    global _pattern
    found = {text for text in _walk(value, "") if len(text) >= _SHORTEST}
    forms = {form for text in found for form in (text, quote(text, safe=""), quote_plus(text), unquote(text))}
    forms |= {repr(text)[1:-1] for text in found}
    with _lock:
        if forms <= _secrets:
            return
        _secrets.update(form for form in forms if len(form) >= _SHORTEST)
        longest_first = sorted(_secrets, key=len, reverse=True)
        _pattern = re.compile("|".join(map(re.escape, longest_first)))


def clean(text: str) -> str:
    """A text in which every remembered secret, and every password of a URL, is ``***``."""
    pattern = _pattern
    if pattern is not None:
        text = pattern.sub(MASK, text)
    return mask_url(text)


def _walk(value: Any, name: object) -> Iterator[str]:
    if isinstance(value, Secret):
        value, name = value.reveal(), "secret"
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, name if is_secret_name(name) else key)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _walk(item, name)
    elif isinstance(value, str):
        if is_secret_name(name):
            yield value
            scheme, _, credential = value.partition(" ")
            if credential and scheme.isalpha():
                yield credential.strip()
        if "://" in value:
            yield from _url_secrets(value)


def _url_secrets(url: str) -> Iterator[str]:
    match = _USERINFO.match(url)
    if match:
        user, colon, password = match["user"].partition(":")
        yield password if colon else user
    try:
        query = urlsplit(url).query
    except ValueError:
        return
    for lead in _QUERY.finditer("?" + query):
        if is_secret_name(unquote(lead["name"])) or lead["name"].lower() in ("key", "sig", "code"):
            yield lead["value"]

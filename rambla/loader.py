"""YAML, found, read strictly, overlaid and filled in, with the place of every value."""

from __future__ import annotations

import datetime
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import yaml

from rambla.errors import Fault, SettingsError

__all__ = ["Document", "KeyPath", "Source", "load", "merge", "show_path"]

KeyPath: TypeAlias = "tuple[str | int, ...]"

NAMES = ("rambla.yaml", "rambla.yml", "config/rambla.yaml", "config/rambla.yml")
# A bomb of aliases is a small file that stands for a huge one: this many values is far past any configuration.
MOST_VALUES = 200_000
DEEPEST = 60

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CORE = ("null", "bool", "int", "float", "str", "map", "seq")
_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?:(?P<op>:-|:\?)(?P<text>[^}]*))?\}|(?P<bad>\{))")


def show_path(path: KeyPath) -> str:
    """``services.file.channels.greetings``, list items as ``[0]``."""
    shown = ""
    for part in path:
        shown += f"[{part}]" if isinstance(part, int) else f".{part}" if shown else part
    return shown


@attrs.frozen
class Source:
    """Where values came from: path to (file, line, column)."""

    places: dict[KeyPath, tuple[str, int, int]] = attrs.field(factory=dict, repr=False)
    label: str | None = None

    @classmethod
    def nowhere(cls) -> Source:
        """For values that came from no file."""
        return cls()

    def where(self, path: KeyPath) -> tuple[str, int, int] | None:
        """The place of a value, or of the nearest that holds it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return None

    def fault(self, path: KeyPath, problem: str) -> Fault:
        """A fault at a path."""
        file, line, column = self.where(path) or (self.label, None, None)
        return Fault(show_path(path), problem, file, line, column)


@attrs.frozen
class Document:
    """A configuration as data: plain dicts, lists and scalars. Relative paths in it are relative to ``base_dir``."""

    data: dict[str, Any]
    source: Source
    base_dir: Path
    file: Path | None = None


def load(config: str | os.PathLike[str] | Mapping[str, Any] | None = None, env: str | None = None) -> Document:
    """Find (for None), read and fill in a configuration, with its overlay for ``env`` (or ``$RAMBLA_ENV``).

    Raises `SettingsError` with all that is wrong with the YAML, and nothing else.
    """
    faults: list[Fault] = []
    if isinstance(config, Mapping):
        document = _from_mapping(config, faults)
    else:
        file = _find() if config is None else Path(config)
        document = _read(file, faults)
        env = env if env is not None else os.environ.get("RAMBLA_ENV") or None
        overlay = file.with_name(f"{file.stem}.{env}{file.suffix}") if env else None
        if overlay is not None and overlay.exists():
            over = _read(overlay, faults)
            places = {**document.source.places, **over.source.places}
            document = attrs.evolve(document, data=_over(document.data, over.data), source=Source(places))
    data = _fill(document.data, (), document.source, faults)
    if faults:
        raise SettingsError(faults)
    return attrs.evolve(document, data=data)


def merge(document: Document, fragment: Mapping[str, Any], at: KeyPath, label: str) -> Document:
    """Put a mapping under the document's own at a path: what the document says wins."""
    faults: list[Fault] = []
    under = _plain(fragment, (), Source(label=label), faults, 0)
    if not isinstance(under, dict):
        faults.append(Fault(show_path(at), f"{label} is to be a mapping, found {type(fragment).__name__}"))
    if faults:
        raise SettingsError(faults)
    for key in reversed(at):
        under = {key: under}
    return attrs.evolve(document, data=_over(under, document.data))


def _find() -> Path:
    named = os.environ.get("RAMBLA_CONFIG")
    if named:
        return Path(named)
    program = getattr(sys.modules.get("__main__"), "__file__", None)
    folders = ([Path(program).resolve().parent] if program else []) + [Path.cwd()]
    places = list(dict.fromkeys(folder / name for folder in folders for name in NAMES))
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(dict.fromkeys(str(f) for f in folders))
    raise SettingsError(
        f"no configuration found: looked for {', '.join(NAMES)} in {looked}; write one, set RAMBLA_CONFIG,"
        " or pass a path or a mapping to rambla.start()"
    )


def _read(file: Path, faults: list[Fault]) -> Document:
    name = str(file)
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError([Fault("", f"expected UTF-8 text, found something else at byte {error.start}", name)]) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SettingsError([Fault("", f"cannot be read: {reason}", name)]) from None
    source = Source(label=name)
    data = _Reader(name, source, faults).read(text)
    return Document(data, source, file.resolve().parent, file)


class _Reader:
    """One YAML text to plain data, with places; what is not strict is a fault."""

    def __init__(self, name: str, source: Source, faults: list[Fault]) -> None:
        self.name, self.source, self.faults = name, source, faults
        self.values = 0

    def read(self, text: str) -> dict[str, Any]:
        loader = None
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise SettingsError([_yaml_fault(error, self.name)]) from None
        finally:
            if loader is not None:
                loader.dispose()
        if node is None:
            return {}
        try:
            data = self._make(node, ())
        except RecursionError:
            raise SettingsError([Fault("", f"nests deeper than {DEEPEST}", self.name)]) from None
        if not isinstance(data, dict):
            raise SettingsError([self.source.fault((), f"expected a mapping at the top, found {_kind(data)}")])
        return data

    def _make(self, node: yaml.Node, path: KeyPath) -> Any:
        mark = node.start_mark
        self.source.places[path] = (self.name, mark.line + 1, mark.column + 1)
        self.values += 1
        if self.values > MOST_VALUES:
            raise SettingsError([self.source.fault(path[:1], f"expands to more than {MOST_VALUES:,} values (aliases?)")])
        if len(path) > DEEPEST:
            raise SettingsError([self.source.fault(path[:3], f"nests deeper than {DEEPEST}, or contains itself")])
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self._make(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and (kind in _CORE or kind == "timestamp"):
            return self._scalar(kind, node, path)
        self._fault(path, node, f"expected a plain YAML value, found the tag {node.tag[:60]!r}")
        return None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            tag = key_node.tag.removeprefix("tag:yaml.org,2002:")
            if key is None or tag not in (*_CORE, "timestamp"):
                problem = "merge keys ('<<') are not part of this format" if tag == "merge" else "expected a string as key"
                self._fault(path, key_node, problem if tag == "merge" else f"{problem}, found a {tag[:40]}")
                continue
            if key in made:
                self._fault((*path, key), key_node, f"the key {key[:60]!r} stands twice in one mapping")
                continue
            made[key] = None
            made[key] = self._make(value_node, (*path, key))
            key_mark = key_node.start_mark
            if not isinstance(value_node, yaml.ScalarNode):
                self.source.places[(*path, key)] = (self.name, key_mark.line + 1, key_mark.column + 1)
        return made

    def _scalar(self, kind: str, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text = node.value
        if kind == "int" and (":" in text or (text.lstrip("+-").startswith("0") and len(text.lstrip("+-")) > 1)):
            return text if not re.fullmatch(r"[+-]?0[xob][0-9a-fA-F_]+", text) else int(text.replace("_", ""), 0)
        if kind in ("str", "timestamp"):
            return text  # a date is text: nothing here wants one
        if kind == "bool":
            return text.lower() in ("yes", "true", "on")
        try:
            if kind == "int":
                return int(text.replace("_", ""))
            if kind == "float":
                return text if ":" in text else _float(text)
        except ValueError:
            self._fault(path, node, f"expected a number, found {text[:40]!r}")
        return None

    def _fault(self, path: KeyPath, node: yaml.Node, problem: str) -> None:
        mark = node.start_mark
        self.faults.append(Fault(show_path(path), problem, self.name, mark.line + 1, mark.column + 1))


def _float(text: str) -> float:
    text = text.replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan")) if "." in text and text.strip("+-")[:2] in (".i", ".n") else float(text)


def _yaml_fault(error: Exception, name: str) -> Fault:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    # Only the parser's own words: its snippets would quote the file, secrets and all.
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
    problem = f"is no YAML: {re.sub(r'[^ -~]', '?', str(problem))[:120]}"
    return Fault("", problem, name, mark.line + 1, mark.column + 1) if mark else Fault("", problem, name)


def _from_mapping(config: Mapping[str, Any], faults: list[Fault]) -> Document:
    source = Source()
    data = _plain(config, (), source, faults, 0)
    return Document(data if isinstance(data, dict) else {}, source, Path.cwd())


def _plain(value: Any, path: KeyPath, source: Source, faults: list[Fault], depth: int) -> Any:
    if depth > DEEPEST:
        faults.append(source.fault(path[:3], f"nests deeper than {DEEPEST}, or contains itself"))
        return None
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                faults.append(source.fault(path, f"expected strings as keys, found {key!r:.60}"))
        return {k: _plain(v, (*path, k), source, faults, depth + 1) for k, v in value.items() if isinstance(k, str)}
    if isinstance(value, (list, tuple)):
        return [_plain(item, (*path, i), source, faults, depth + 1) for i, item in enumerate(value)]
    return value.isoformat() if isinstance(value, (datetime.date, datetime.datetime)) else value


def _over(under: Any, over: Any) -> Any:
    if isinstance(under, dict) and isinstance(over, dict):
        return {k: _over(under[k], over[k]) if k in under and k in over else over.get(k, under.get(k)) for k in {**under, **over}}
    return over


def _fill(value: Any, path: KeyPath, source: Source, faults: list[Fault]) -> Any:
    if isinstance(value, dict):
        return {key: _fill(item, (*path, key), source, faults) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, (*path, index), source, faults) for index, item in enumerate(value)]
    if not isinstance(value, str) or "$" not in value:
        return value
    problems: list[str] = []
    filled = _VARIABLE.sub(lambda match: _variable(match, problems), value)
    faults += [source.fault(path, problem) for problem in problems]
    return filled


def _variable(match: re.Match[str], problems: list[str]) -> str:
    if match["bad"]:
        problems.append("expected ${NAME}, ${NAME:-default} or ${NAME:?message} (a dollar is $$)")
        return ""
    if match["name"] is None:
        return "$"
    value = os.environ.get(match["name"])
    if match["op"] == ":-":
        return value or match["text"]
    if match["op"] == ":?" and not value:
        problems.append(f"the environment variable {match['name']} is not set: {match['text'] or 'it is needed'}")
    elif value is None:
        problems.append(f"the environment variable {match['name']} is not set (${{{match['name']}:-default}} gives a default)")
    return value or ""


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "nothing"}.get(type(value), f"a {type(value).__name__}")


def walk(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value of a document with its path, outermost first."""
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from walk(item, (*path, key))

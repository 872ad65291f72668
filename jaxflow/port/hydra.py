"""Hydra's way of writing configs: YAML, overrides, interpolations, into one flat mapping of dotted keys.

Knows the grammar, no key. Nothing is imported or run; YAML is read with the safe loader.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence

import yaml

from jaxflow.types import UserError

_DEPTH = 20  # of interpolations within interpolations; deeper is a circle
_WORDS = {"null": None, "~": None, "true": True, "false": False}
_QUOTES = "'\""


class _Loader(yaml.SafeLoader):
    """The safe loader with the numbers that Hydra's users write: `1e-6` is one, and a key twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [str(name) for name in names if names.count(name) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[0]!r} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


_FLOAT = re.compile(r"[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


@dataclasses.dataclass(frozen=True)
class Deleted:
    """What `~key` leaves of a key."""


def read_yaml(path: pathlib.Path) -> dict[str, object]:
    """Return the values of a YAML file under their dotted keys, interpolations unresolved.

    Raises:
      UserError: there is no such file, it is not YAML, or not a mapping of names.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds {type(tree).__name__}, not keys with values")
    return dict(flatten(tree, ""))


def flatten(tree: Mapping[object, object], path: str) -> Iterator[tuple[str, object]]:
    """Yield every value of a tree under its dotted key; an empty mapping is a value."""
    for key, value in tree.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict) and value:
            yield from flatten(value, name)
        else:
            yield name, value


def override(values: Mapping[str, object], overrides: Sequence[str]) -> dict[str, object]:
    """Apply `key=value`, `+key=value`, `++key=value`, `~key` and `~key=value` in their order; the last one counts.

    A value that is a mapping sets the keys below; `~` takes a key, or all below it, away: they become `Deleted`.

    Raises:
      UserError: an override that is none of these, or whose value is not in Hydra's grammar.
    """
    result = dict(values)
    for text in overrides:
        key, equals, value = text.partition("=")
        name = key.lstrip("+~").strip()
        if not name or not (equals or key.startswith("~")) or key.startswith("-"):
            raise UserError(f"the override {text!r}: expected key=value, +key=value, ++key=value or ~key")
        below = [known for known in result if known.startswith(f"{name}.")]
        if key.startswith("~"):
            result.update(dict.fromkeys(below or [name], Deleted()))
            continue
        parsed = parse_value(value, text)
        if isinstance(parsed, dict) and parsed:
            result.update(flatten(parsed, name))
        else:
            for known in below:
                del result[known]
            result[name] = parsed
    return result


def parse_value(text: str, where: str) -> object:
    """Return what a value of Hydra's override grammar means: null, a number, true, text, a list, a mapping.

    Raises:
      UserError: brackets or quotes do not close, or several values are given (a sweep).
    """
    scanner = _Scanner(text, where)
    value = scanner.value(ends="")
    scanner.finish()
    return value


class _Scanner:
    """Reads one value from left to right."""

    def __init__(self, text: str, where: str) -> None:
        self._text = text
        self._where = where
        self._at = 0

    def value(self, ends: str) -> object:
        """Read a value up to one of the characters `ends`, or to the end of the text."""
        self._blank()
        start = self._peek()
        if start == "[":
            return self._list()
        if start == "{":
            return self._mapping()
        if start and start in _QUOTES:
            return self._quoted()
        return self._bare(ends)

    def finish(self) -> None:
        """Refuse what is left of the text."""
        self._blank()
        if self._at < len(self._text):
            self._fail(f"nothing is expected after {self._text[: self._at]!r}")

    def _list(self) -> list[object]:
        self._at += 1
        items: list[object] = []
        while not self._closed("]"):
            items.append(self.value(ends=",]"))
            self._separator("]")
        return items

    def _mapping(self) -> dict[str, object]:
        self._at += 1
        items: dict[str, object] = {}
        while not self._closed("}"):
            name = self.value(ends=":")
            if self._peek() != ":":
                self._fail("a mapping is written {name: value}")
            self._at += 1
            items[str(name)] = self.value(ends=",}")
            self._separator("}")
        return items

    def _closed(self, end: str) -> bool:
        self._blank()
        if self._peek() != end:
            return False
        self._at += 1
        return True

    def _separator(self, end: str) -> None:
        self._blank()
        if self._peek() == ",":
            self._at += 1
        elif self._peek() != end:
            self._fail(f"{end!r} is missing")

    def _quoted(self) -> str:
        quote, out = self._peek(), []
        self._at += 1
        while self._peek() != quote:
            if self._peek() == "\\" and self._text[self._at + 1 : self._at + 2] in (quote, "\\"):
                self._at += 1
            out.append(self._take())
        self._at += 1
        return "".join(out)

    def _bare(self, ends: str) -> object:
        start, depth = self._at, 0
        while self._at < len(self._text):
            character = self._text[self._at]
            if depth == 0 and ends and character in ends:
                break
            if depth == 0 and not ends and character == ",":
                self._fail("several values are a sweep; give one (a list is written [a,b])")
            opens = self._text.startswith("${", self._at)
            depth += opens - (character == "}" and depth > 0)
            self._at += 2 if opens else 1
        return plain(self._text[start : self._at].strip())

    def _take(self) -> str:
        if self._at >= len(self._text):
            self._fail("a bracket or quote does not close")
        self._at += 1
        return self._text[self._at - 1]

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _blank(self) -> None:
        while self._peek().isspace():
            self._at += 1

    def _fail(self, what: str) -> typing.NoReturn:
        raise UserError(f"the override {self._where!r}: {what}")


def plain(text: str) -> object:
    """Return what unquoted text means: nothing, true, a number or itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if re.fullmatch(r"[-+]?\d[\d_]*", text):
        return int(text)
    if re.fullmatch(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|[-+]?(inf|nan)", text):
        return float(text)
    return text


def resolve(values: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """Replace `${key}`, `${.key}`, `${oc.select:key,default}` and `${oc.env:NAME,default}` by what they stand for.

    `defaults` are the values of keys that are not given.

    Raises:
      UserError: every interpolation that stands for nothing known, with its key.
    """
    problems: list[str] = []

    def look_up(name: str, depth: int) -> object:
        for known in (values, defaults):
            if name in known:
                return walk(name, known[name], depth + 1)
        below = {
            key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")
        }
        if below:
            return below
        raise LookupError(name)

    def walk(key: str, value: object, depth: int) -> object:
        if depth > _DEPTH:
            raise LookupError(f"{key}, in a circle")
        if isinstance(value, list):
            return [walk(key, item, depth) for item in value]
        return _filled(key, value, lambda name: look_up(name, depth)) if isinstance(value, str) else value

    resolved = {}
    for key, value in values.items():
        try:
            resolved[key] = walk(key, value, 0)
        except LookupError as error:
            problems.append(f"{key} = {value}: {error.args[0]} has no value here; give {key}=VALUE")
    if problems:
        raise UserError("\n".join(["interpolations without a value:", *(f"  • {line}" for line in problems)]))
    return resolved


def _filled(key: str, text: str, look_up: Callable[[str], object]) -> object:
    """Replace the interpolations in a text; one that is all of it keeps its type."""
    start = text.find("${")
    if start < 0 or "$(" in text:  # what a shell's command would print is not known
        return text
    end = _closing(text, start)
    if end < 0:
        raise LookupError(f"{text!r}, whose bracket does not close,")
    value = _interpolated(key, text[start + 2 : end], look_up)
    if start == 0 and end == len(text) - 1:
        return value
    return f"{text[:start]}{value}{_filled(key, text[end + 1 :], look_up)}"


def _closing(text: str, start: int) -> int:
    depth = 0
    for at in range(start, len(text)):
        depth += text.startswith("${", at)
        if text[at] == "}":
            depth -= 1
            if depth == 0:
                return at
    return -1


def _interpolated(key: str, inside: str, look_up: Callable[[str], object]) -> object:
    resolver, colon, arguments = inside.partition(":")
    if not colon:
        return look_up(_absolute(key, inside.strip()))
    name, comma, default = arguments.partition(",")
    fallback = (lambda: _filled(key, default.strip(), look_up)) if comma else None
    if resolver == "oc.env" and name.strip() in os.environ:
        return plain(os.environ[name.strip()])
    if resolver == "oc.select":
        try:
            return look_up(_absolute(key, name.strip()))
        except LookupError:
            return None if fallback is None else _typed(fallback())
    if resolver == "oc.env" and fallback is not None:
        return _typed(fallback())
    raise LookupError("${" + inside + "}")


def _typed(value: object) -> object:
    return plain(value) if isinstance(value, str) else value


def _absolute(key: str, name: str) -> str:
    """Return the dotted key that a relative name (`.x`: beside the key, `..x`: one group up) stands for."""
    ups = len(name) - len(name.lstrip("."))
    if ups == 0:
        return name
    groups = key.split(".")
    return ".".join([*groups[: max(0, len(groups) - ups)], name[ups:]])

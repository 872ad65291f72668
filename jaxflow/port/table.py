"""How a table of translation is written: foreign keys, and the keys of jaxflow that follow from them.

Knows no dialect and no key. A dialect is data; what is computed from its values are small functions in it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable, Mapping

from jaxflow.dataflow import DATAFLOWS


@dataclasses.dataclass(frozen=True)
class Is:
    """The value that a key of jaxflow takes."""

    value: object
    shown: str = ""  # how it came about, in numbers and units; empty: it is the foreign value


@dataclasses.dataclass(frozen=True)
class Idle:
    """There is nothing to set: what the foreign key says has no effect, or is what jaxflow does by itself."""

    why: str


@dataclasses.dataclass(frozen=True)
class Refused:
    """jaxflow cannot do what the foreign key asks."""

    why: str
    instead: str  # what to do
    # Written so that jaxflow refuses to run until it is mended; None: its default stands
    placeholder: object = None


Outcome = Is | Idle | Refused


@dataclasses.dataclass(frozen=True)
class Values:
    """What a foreign config says, key by key: what was given, and the dialect's own default of everything else."""

    given: Mapping[str, object]
    defaults: Mapping[str, object]
    rows: int | None = None  # prompts in the training files; None: nobody knows

    def __getitem__(self, key: str) -> typing.Any:
        """Return the value that holds; KeyError for a key that the dialect has no default of.

        A default may be `${another.key}`: that key's value.
        """
        if key in self.given:
            return self.given[key]
        default = self.defaults[key]
        return self[default[2:-1]] if isinstance(default, str) and default.startswith("${") else default

    def below(self, prefix: str) -> dict[str, object]:
        """Return what was given below a key, by the rest of the name."""
        start = f"{prefix}."
        return {key.removeprefix(start): value for key, value in self.given.items() if key.startswith(start)}


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of the dialect. Without a setting that reads it, it asks for nothing where its value `fits`.

    A `*` in the name is any one part of it; `**` at its end is everything below.
    """

    name: str
    default: object = None  # the dialect's own
    fits: tuple[object, ...] | None = None  # values that need nothing; None: every value
    why: str = ""  # that nothing needs to be done; of a value that does not fit: what is missing
    instead: str = ""  # what to do about a value that does not fit
    # Where other keys decide what becomes of it; None from it: the settings do.
    judge: Callable[[Values], Idle | Refused | None] | None = None

    def is_pattern(self) -> bool:
        """Return whether the name stands for many."""
        return "*" in self.name

    def judged(self, values: Values) -> Idle | Refused | None:
        """Return what other keys decide of this one, if they do."""
        return None if self.judge is None else self.judge(values)

    def outcome(self, value: object, values: Values) -> Idle | Refused:
        """Say what becomes of a value that no setting reads."""
        judged = self.judged(values)
        if judged is not None:
            return judged
        if self.fits is None or any(same(value, fitting) for fitting in self.fits):
            return Idle(self.why)
        return Refused(self.why, self.instead)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One key of jaxflow (or flag of its command line, with --) and how it follows from foreign keys."""

    key: str
    reads: tuple[str, ...]  # foreign keys; the setting is told of under the first
    how: str  # the rule with its units, for the table
    outcome: Callable[[Values], Outcome]
    told_under_each: bool = False  # told of under every key that it reads: each asks for a part of its own

    def is_told_under(self, name: str) -> bool:
        """Return whether a foreign key's line says what became of the setting."""
        return name in (self.reads if self.told_under_each else self.reads[:1])


@dataclasses.dataclass(frozen=True)
class Dialect:
    """Another stack's config: every key that it knows, and every key of jaxflow that follows from them.

    Raises:
      ValueError: a setting reads a key that is not in the table.
    """

    name: str
    keys: tuple[Key, ...]
    settings: tuple[Setting, ...]
    aliases: Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )  # older spelling, or its start -> today's

    def __post_init__(self) -> None:
        known = {key.name for key in self.keys}
        strangers = sorted({name for setting in self.settings for name in setting.reads} - known)
        if strangers:
            raise ValueError(f"{self.name}: settings read keys that the table lacks: {', '.join(strangers)}")

    @functools.cached_property
    def defaults(self) -> Mapping[str, object]:
        """Return the dialect's default of every key that is not a pattern."""
        return types.MappingProxyType({key.name: key.default for key in self.keys if not key.is_pattern()})

    def today(self, name: str) -> str:
        """Return a key's spelling of today."""
        for old, new in self.aliases.items():
            if name == old or name.startswith(f"{old}."):
                return new + name.removeprefix(old)
        return name

    def find(self, name: str) -> Key | None:
        """Return the key of that name, or the pattern that covers it; None where the dialect has neither."""
        exact = self._exact.get(name)
        if exact is not None:
            return exact
        return next((key for regex, key in self._patterns if regex.fullmatch(name)), None)

    def settings_of(self, name: str) -> tuple[Setting, ...]:
        """Return the settings that read a key (or pattern) of the table, those that are told of under it first."""
        readers = [setting for setting in self.settings if name in setting.reads]
        return tuple(sorted(readers, key=lambda setting: not setting.is_told_under(name)))

    @functools.cached_property
    def _exact(self) -> dict[str, Key]:
        return {key.name: key for key in self.keys if not key.is_pattern()}

    @functools.cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], Key]]:
        return [(_regex(key.name), key) for key in self.keys if key.is_pattern()]


def same(left: object, right: object) -> bool:
    """Return whether two plain values are one: true is not 1, 1 is 1.0, a list is a tuple."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def copied(key: str, foreign: str, how: str = "the same") -> Setting:
    """Return a setting that takes the foreign value as it is."""
    return Setting(key, (foreign,), how, lambda values: Is(values[foreign]))


def number(key: str, foreign: str, how: str = "the same") -> Setting:
    """Return a setting that takes the foreign value as a floating-point number."""
    return Setting(key, (foreign,), how, lambda values: Is(float(values[foreign])))


def renamed(key: str, foreign: str, names: Mapping[object, object], instead: str) -> Setting:
    """Return a setting that gives the foreign value jaxflow's name; other values are refused with `instead`."""
    how = ", ".join(f"{old} → {new}" if old != new else str(old) for old, new in names.items())

    def outcome(values: Values) -> Outcome:
        value = values[foreign]
        if value in names:
            return Is(names[value])
        return Refused(f"jaxflow has no {value!r} here: it has {', '.join(map(str, names))}", instead)

    return Setting(key, (foreign,), how, outcome)


def cast_of(dataflow: str, kl: bool) -> Outcome:
    """Return the roles that the pools must have for a dataflow of jaxflow's: no reference where no KL reads it."""
    idle = () if kl else ("reference",)
    played = DATAFLOWS[dataflow]
    roles = tuple(role for role in played.cast if role not in idle or role not in played.optional)
    return Is(roles, f"the cast of {dataflow}" + ("" if kl else ", without a KL and so without a reference"))


def _regex(pattern: str) -> re.Pattern[str]:
    parts = [
        r".+" if part == "**" else r"[^.]+" if part == "*" else re.escape(part) for part in pattern.split(".")
    ]
    return re.compile(r"\.".join(parts))

"""From a foreign config's values to jaxflow's keys, with a line on what became of every value that was given.

Knows how tables are read, no dialect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from jaxflow.config import Config, flatten, refuse
from jaxflow.config.tree import unknown_key
from jaxflow.port.table import Dialect, Idle, Is, Outcome, Refused, Setting, Values, same

TRANSLATED, DEFAULTED, UNSUPPORTED = "translated", "defaulted", "unsupported"


@dataclasses.dataclass(frozen=True)
class Line:
    """What became of one key that was given."""

    key: str  # as it was spelled
    value: object
    status: str  # translated | defaulted | unsupported
    texts: tuple[str, ...]  # where to, or why


@dataclasses.dataclass(frozen=True)
class Assignment:
    """One key of jaxflow (or flag of its command line) and the value that it gets."""

    key: str
    value: object
    shown: str  # how it came about
    given: bool  # false: it follows from the dialect's defaults alone


@dataclasses.dataclass(frozen=True)
class Translation:
    """A foreign config in jaxflow's words."""

    dialect: str
    lines: tuple[Line, ...]  # in the order of the input
    assignments: tuple[Assignment, ...]  # what a config file must say, in the schema's order
    flags: tuple[Assignment, ...]  # what the command line must say
    open_ends: tuple[str, ...]  # what the dialect's defaults ask for and jaxflow cannot do or know

    def lines_of(self, status: str) -> list[Line]:
        """Return the lines with one status."""
        return [line for line in self.lines if line.status == status]


def translate(
    dialect: Dialect, spelled: Mapping[str, object], removed: Sequence[str] = (), rows: int | None = None
) -> Translation:
    """Translate values that are given under a dialect's keys; `removed` keys are told of and have their defaults.

    Raises:
      UserError: keys that the dialect lacks, each with the nearest that it has; one key under two spellings.
    """
    given, doubles, problems = _todays(dialect, spelled)
    known = dict.fromkeys(dialect.defaults, False)
    problems += [unknown_key(name, known) for name in given if dialect.find(dialect.today(name)) is None]
    refuse(f"the {dialect.name} config", problems)
    values = Values({dialect.today(name): value for name, value in given.items()}, dialect.defaults, rows)
    outcomes = {setting.key: _outcome(setting, values) for setting in dialect.settings}
    lines = [_line(dialect, name, value, values, outcomes) for name, value in given.items()]
    lines += doubles
    lines += [Line(name, None, DEFAULTED, ("taken away by ~",)) for name in removed]
    names = {dialect.find(name).name for name in values.given}
    assignments = [
        _assignment(s, any(map(s.is_told_under, names)), outcomes[s.key]) for s in dialect.settings
    ]
    told = [one for one in assignments if one is not None]
    order = {key: place for place, key in enumerate(flatten(Config()))}
    in_file = [one for one in told if not one.key.startswith("--") and _worth_writing(one)]
    return Translation(
        dialect=dialect.name,
        lines=tuple(lines),
        assignments=tuple(sorted(in_file, key=lambda one: order.get(one.key, len(order)))),
        flags=tuple(one for one in told if one.key.startswith("--")),
        open_ends=tuple(_open_ends(dialect, outcomes, lines)),
    )


def _todays(
    dialect: Dialect, spelled: Mapping[str, object]
) -> tuple[dict[str, object], list[Line], list[str]]:
    """Return the values, each key once; lines on older spellings that say nothing new; problems with the others."""
    given: dict[str, object] = {}
    doubles, problems = [], []
    first = {name: name for name in spelled if dialect.today(name) == name}
    for name, value in spelled.items():
        today = dialect.today(name)
        if today != name and value is None:
            doubles.append(Line(name, value, DEFAULTED, (f"an older spelling, and null: {today} counts",)))
        elif first.setdefault(today, name) == name:
            given[name] = value
        elif same(spelled[first[today]], value):
            doubles.append(
                Line(name, value, DEFAULTED, (f"another spelling of {first[today]}, which says the same",))
            )
        else:
            problems.append(
                f"{name} = {value!r} is {first[today]} = {spelled[first[today]]!r} by another name; give one"
            )
    return given, doubles, problems


def _outcome(setting: Setting, values: Values) -> Outcome:
    given = ", ".join(f"{key} = {values.given[key]!r}" for key in setting.reads if key in values.given)
    try:
        outcome = setting.outcome(values)
    except (TypeError, ValueError, LookupError, ZeroDivisionError, AttributeError) as error:
        return Refused(f"cannot be read: {given or setting.reads[0]} ({error})", "mend the value")
    if isinstance(outcome, Is) and not _is_of_kind(setting.key, outcome.value):
        return Refused(
            f"{setting.key} cannot be {outcome.value!r}, from {given or setting.reads[0]}", "mend the value"
        )
    return outcome


def _is_of_kind(key: str, value: object) -> bool:
    """Return whether a value is of the type of jaxflow's default for the key."""
    default = flatten(Config()).get(key)
    if default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    return isinstance(value, int | float if isinstance(default, float) else type(default))


def _line(
    dialect: Dialect, name: str, value: object, values: Values, outcomes: Mapping[str, Outcome]
) -> Line:
    key = dialect.find(dialect.today(name))
    settings = dialect.settings_of(key.name)
    own = [setting for setting in settings if setting.is_told_under(key.name)]
    if not settings or key.judged(values) is not None:
        outcome = key.outcome(value, values)
        return Line(
            name, value, UNSUPPORTED if isinstance(outcome, Refused) else DEFAULTED, (_said(outcome),)
        )
    found = [outcomes[setting.key] for setting in own or settings]
    telling = (Is, Refused) if own else (Refused,)
    told = [
        _told(setting, outcomes[setting.key])
        for setting in own or settings
        if isinstance(outcomes[setting.key], telling)
    ]
    others = [s.key for s in settings if s not in own and isinstance(outcomes[s.key], Is)]
    part_of = [key for key in others if not own or not _is_default(key, outcomes[key])]
    if part_of:
        told.append(f"{'also' if told else 'part'} in {', '.join(part_of)}")
    if any(isinstance(outcome, Refused) for outcome in found):
        return Line(name, value, UNSUPPORTED, tuple(told))
    if not told:
        idle = dict.fromkeys(_said(outcomes[setting.key]) for setting in settings)
        return Line(name, value, DEFAULTED, tuple(idle))
    ours = all(_is_default(setting.key, outcomes[setting.key]) for setting in own)
    if own and ours and same(value, key.default) and not part_of:
        return Line(name, value, DEFAULTED, tuple(f"{text}: jaxflow's default" for text in told))
    return Line(name, value, TRANSLATED, tuple(told))


def _told(setting: Setting, outcome: Outcome) -> str:
    if not isinstance(outcome, Is):
        return _said(outcome)
    return f"{setting.key} = {outcome.value!r}" + (f"  ({outcome.shown})" if outcome.shown else "")


def _said(outcome: Outcome) -> str:
    if isinstance(outcome, Refused):
        return f"{outcome.why}; {outcome.instead}"
    return outcome.why if isinstance(outcome, Idle) else ""


def _is_default(key: str, outcome: Outcome) -> bool:
    defaults = flatten(Config())
    return not isinstance(outcome, Is) or (key in defaults and same(outcome.value, defaults[key]))


def _assignment(setting: Setting, given: bool, outcome: Outcome) -> Assignment | None:
    if isinstance(outcome, Refused) and outcome.placeholder is not None:
        return Assignment(setting.key, outcome.placeholder, outcome.why, given)
    return Assignment(setting.key, outcome.value, outcome.shown, given) if isinstance(outcome, Is) else None


def _worth_writing(assignment: Assignment) -> bool:
    return assignment.given or not _is_default(assignment.key, Is(assignment.value))


def _open_ends(dialect: Dialect, outcomes: Mapping[str, Outcome], lines: Sequence[Line]) -> list[str]:
    told = {text for line in lines for text in line.texts}
    refused = {key: _said(outcome) for key, outcome in outcomes.items() if isinstance(outcome, Refused)}
    return [
        f"{s.key}: {refused[s.key]}" for s in dialect.settings if refused.get(s.key, "") not in {"", *told}
    ]

"""What people read of a translation: the list of keys, the config file, the tables of the documentation."""

from __future__ import annotations

from collections.abc import Iterator

from jaxflow.port.table import Dialect, Key
from jaxflow.port.translate import DEFAULTED, TRANSLATED, UNSUPPORTED, Assignment, Translation

_WIDTH = 110  # of a line of the config file


def report(translation: Translation) -> str:
    """List every key that was given, once, and what follows from keys that were not."""
    parts = [
        (TRANSLATED, ""),
        (DEFAULTED, ": nothing to do"),
        (UNSUPPORTED, ": the run is another in this"),
    ]
    counts = ", ".join(f"{len(translation.lines_of(status))} {status}" for status, _ in parts)
    lines = [f"{translation.dialect} → jaxflow: {len(translation.lines)} keys given: {counts}"]
    for status, heading in parts:
        found = translation.lines_of(status)
        lines += ["", f"{status}{heading}"] if found else []
        for line in found:
            lines.append(f"  {line.key} = {_plain(line.value)}")
            lines += [f"      {text}" for text in line.texts]
    assumed = [one for one in translation.assignments if not one.given]
    lines += ["", f"not given: {translation.dialect}'s defaults, where jaxflow's differ"] if assumed else []
    lines += [f"  {one.key} = {one.value!r}" + (f"  ({one.shown})" if one.shown else "") for one in assumed]
    lines += ["", "open"] if translation.open_ends else []
    return "\n".join([*lines, *(f"  {text}" for text in translation.open_ends)])


def config_file(translation: Translation, source: str) -> str:
    """Return a config file of jaxflow's: its defaults, with what this run changes."""
    unsupported = translation.lines_of(UNSUPPORTED)
    lines = [
        f'"""A run of {translation.dialect}, ported by jaxflow.port."""',
        "",
        *_comment(f"From {source}."),
    ]
    for line in unsupported:
        lines += _comment(f"Not ported: {line.key} = {_plain(line.value)}: {'; '.join(line.texts)}")
    for text in translation.open_ends:
        lines += _comment(f"Open: {text}")
    lines += [
        "",
        "from ml_collections import ConfigDict",
        "",
        "from jaxflow.config import default_config_dict",
        "",
        "",
        "def get_config() -> ConfigDict:",
        f'    """Return jaxflow\'s defaults with what {translation.dialect}\'s run changes."""',
        "    config = default_config_dict()",
    ]
    section = ""
    for one in translation.assignments:
        if one.key.partition(".")[0] != section:
            section = one.key.partition(".")[0]
            lines.append("")
        lines += _statement(one)
    return "\n".join([*lines, "    return config", ""])


def command(translation: Translation, file: str) -> str:
    """Return the command line that runs a ported config."""
    flags = [f"{flag.key}={flag.value}" for flag in translation.flags]
    return " ".join(["python -m jaxflow.main", f"--config={file}", *flags])


def table(dialect: Dialect, whole: bool = True) -> str:
    """Return the dialect's table in Markdown: a line per key with what becomes of it; or those alone that set one."""
    keys = [key for key in dialect.keys if whole or dialect.settings_of(key.name)]
    lines = [f"| {dialect.name} | its default | jaxflow |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(_row(dialect, key))} |" for key in keys)])


def _row(dialect: Dialect, key: Key) -> Iterator[str]:
    yield f"`{key.name}`"
    yield "" if key.is_pattern() else f"`{_plain(key.default)}`"
    own = [setting for setting in dialect.settings_of(key.name) if setting.is_told_under(key.name)]
    if own:
        yield "<br>".join(f"`{setting.key}`: {setting.how}" for setting in own)
    elif settings := dialect.settings_of(key.name):
        yield f"in {', '.join(f'`{setting.key}`' for setting in settings)}"
    elif key.fits is None:
        yield f"nothing to do: {key.why}"
    else:
        fitting = " or ".join(f"`{_plain(value)}`" for value in key.fits)
        yield f"nothing to do at {fitting}; else: {key.why}; {key.instead}"


def _statement(one: Assignment) -> list[str]:
    target = f"    config.{one.key} = {one.value!r}"
    if not one.shown:
        return [target]
    beside = f"{target}  # {_line(one.shown)}"
    return [beside] if len(beside) <= _WIDTH else [f"    # {_line(one.shown)}", target]


def _comment(text: str) -> list[str]:
    lines, current = [], "#"
    for word in _line(text).split(" "):
        if len(current) + len(word) + 1 > _WIDTH and current != "#":
            lines, current = [*lines, current], "#  "
        current += f" {word}"
    return [*lines, current]


def _plain(value: object) -> str:
    """Write a value as its config has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return _line(str(value))


def _line(text: str) -> str:
    return " ".join(text.split())

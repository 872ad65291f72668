"""Shell scripts that start a training, read without being run: variables and arrays become the command's words.

Knows assignments, quotes, continuations, `${NAME:-default}`, arrays and sums; no program is ever started, so what a
`$(command)` would print stays as it is written.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from jaxflow.types import UserError

_NAME = re.compile(r"[A-Za-z_]\w*")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
_OPENS, _CLOSES = ("if", "for", "while", "until", "case"), ("fi", "done", "esac")
_BETWEEN = (
    "then",
    "else",
    "do",
    "elif",
    "!",
    "{",
    "}",
    "exec",
    "export",
    "readonly",
    "local",
    "declare",
    "time",
)
_UNSET = "\0"  # stands around the name of a variable that has no value


@dataclasses.dataclass(frozen=True)
class _Word:
    """A word as it is written, or an operator between commands, or the words of an array."""

    text: str
    is_operator: bool = False
    array: tuple[str, ...] | None = None


def read_command(
    script: str, environment: Mapping[str, str], wanted: Callable[[Sequence[str]], bool], what: str
) -> list[str]:
    """Return the words of the first command of a script that is `wanted`.

    A variable that is set under a condition keeps the value that it has before.

    Raises:
      UserError: there is no such command, a quote does not close, or it uses variables that nothing sets.
    """
    variables: dict[str, list[str]] = {name: [value] for name, value in environment.items()}
    own: set[str] = set()
    depth = 0
    for command in _commands(_words(script)):
        depth += sum(word.text in _OPENS for word in command[:1]) - (command[0].text in _CLOSES)
        words = list(command)
        while words and words[0].text in (*_BETWEEN, *_OPENS[:1]):
            words.pop(0)
        while words and (match := _ASSIGNMENT.fullmatch(words[0].text)):
            name, adds, text = match.groups()
            raw = [text] if words[0].array is None else list(words[0].array)
            new = [item for piece in raw for item in _expand(piece, variables, words[0].array is None)]
            new = new if words[0].array is not None else [" ".join(new)]
            if depth <= 0 or name not in own:
                variables[name] = [*variables.get(name, []), *new] if adds else new
                own.add(name)
            words.pop(0)
        expanded = [item for word in words for item in _expand(word.text, variables, False)]
        if wanted(expanded):
            return _without_unset(expanded)
    raise UserError(f"no command that starts {what} was found")


def _without_unset(words: Sequence[str]) -> list[str]:
    unset = dict.fromkeys(name for word in words for name in re.findall(f"{_UNSET}(\\w+){_UNSET}", word))
    if unset:
        names = ", ".join(f"${name}" for name in unset)
        raise UserError(
            f"the command uses {names}, which nothing sets: export it before this program is called"
        )
    return list(words)


def _commands(words: Iterator[_Word]) -> Iterator[list[_Word]]:
    command: list[_Word] = []
    for word in words:
        if not word.is_operator:
            command.append(word)
        elif command:
            yield command
            command = []
    if command:
        yield command


def _words(script: str) -> Iterator[_Word]:
    """Yield the words of a script as written, operators and ends of lines between them."""
    at, end = 0, len(script)
    while at < end:
        character = script[at]
        if script.startswith("\\\n", at):
            at += 2
        elif character in " \t\r":
            at += 1
        elif character == "#":
            at = _line_end(script, at)
        elif redirection := re.compile(r"\d*(?:>>|>|<)&?\s*\S*").match(script, at):
            at = redirection.end()
        elif character in "\n;&|()":
            yield _Word(character, is_operator=True)
            at += 1
        else:
            start, at = at, _word_end(script, at)
            text = script[start:at]
            if script.startswith("(", at) and re.fullmatch(r"[A-Za-z_]\w*\+?=", text):
                array_end = _array_end(script, at + 1)
                inside = tuple(
                    word.text for word in _words(script[at + 1 : array_end]) if not word.is_operator
                )
                yield _Word(text, array=inside)
                at = array_end + 1
            else:
                yield _Word(text)


def _array_end(script: str, at: int) -> int:
    while at < len(script):
        if script[at] == ")":
            return at
        if script[at] == "#" and script[at - 1].isspace():
            at = _line_end(script, at)
        elif script[at].isspace() or script[at] in ";&|(":
            at += 1
        else:
            at = _word_end(script, at)
    raise UserError("an array of the script does not close")


def _line_end(script: str, at: int) -> int:
    newline = script.find("\n", at)
    return len(script) if newline < 0 else newline


def _word_end(script: str, at: int) -> int:
    while at < len(script):
        character = script[at]
        if character in " \t\r\n;&|()":
            return at
        if character == "\\":
            at += 2
        elif character == "'":
            at = _find(script, "'", at + 1) + 1
        elif character == '"':
            at = _double_end(script, at + 1) + 1
        elif script.startswith(("$(", "${"), at):
            at = _nested_end(script, at + 1) + 1
        elif character == "`":
            at = _find(script, "`", at + 1) + 1
        else:
            at += 1
    return at


def _find(script: str, what: str, at: int) -> int:
    found = script.find(what, at)
    if found < 0:
        raise UserError(f"a {what} of the script does not close: {script[at - 1 : at + 40]!r}")
    return found


def _double_end(script: str, at: int) -> int:
    start = at
    while at < len(script):
        if script[at] == '"':
            return at
        if script[at] == "\\":
            at += 2
        elif script.startswith(("$(", "${"), at):
            at = _nested_end(script, at + 1) + 1
        else:
            at += 1
    raise UserError(f'a " of the script does not close: {script[start - 1 : start + 40]!r}')


def _nested_end(script: str, at: int) -> int:
    """Return where the bracket at `at` closes."""
    start, depth, pairs = at, 0, {"(": ")", "{": "}"}
    opens, closes = script[at], pairs[script[at]]
    while at < len(script):
        depth += (script[at] == opens) - (script[at] == closes)
        if depth == 0:
            return at
        at = _find(script, "'", at + 1) + 1 if script[at] == "'" else at + 1
    raise UserError(f"a bracket of the script does not close: {script[start - 1 : start + 40]!r}")


def _expand(word: str, variables: Mapping[str, Sequence[str]], keep_whole: bool) -> list[str]:
    """Return what a word becomes: usually one word, several where an unquoted or array variable has several."""
    done: list[str] = []
    current, seen, at = "", False, 0
    while at < len(word):
        character = word[at]
        if character == "\\":
            current, seen, at = current + word[at + 1 : at + 2].replace("\n", ""), True, at + 2
        elif character == "'":
            end = _find(word, "'", at + 1)
            current, seen, at = current + word[at + 1 : end], True, end + 1
        elif character == '"':
            end = _double_end(word, at + 1)
            first, *others = _expand_quoted(word[at + 1 : end], variables)
            current, seen = current + first, seen or bool(first) or word[at + 1 : end] == ""
            for other in others:
                done, current = [*done, current], other
            at = end + 1
        elif character == "$":
            values, at = _variable(word, at, variables)
            # What a command would print is not known, nor how many words it has.
            whole = keep_whole or any("$(" in value for value in values)
            pieces = values if whole else [piece for value in values for piece in value.split()]
            current, seen = current + (pieces[0] if pieces else ""), seen or bool(pieces)
            for other in pieces[1:]:
                done, current = [*done, current], other
        else:
            current, seen, at = current + character, True, at + 1
    return [*done, current] if seen or done else []


def _expand_quoted(text: str, variables: Mapping[str, Sequence[str]]) -> list[str]:
    out, at = [""], 0
    while at < len(text):
        if text[at] == "\\" and text[at + 1 : at + 2] in '"\\$`\n':
            out[-1] += text[at + 1].replace("\n", "")
            at += 2
        elif text[at] == "$":
            values, at = _variable(text, at, variables)
            out[-1] += values[0] if values else ""
            out += values[1:]
        else:
            out[-1] += text[at]
            at += 1
    return out


def _variable(text: str, at: int, variables: Mapping[str, Sequence[str]]) -> tuple[list[str], int]:
    """Return the values of what begins with the $ at `at`, and where it ends."""
    if text.startswith("$((", at):
        end = _nested_end(text, at + 1) + 1
        return [_sum(text[at + 3 : end - 2], variables)], end
    if text.startswith("$(", at):
        end = _nested_end(text, at + 1) + 1
        return [text[at:end]], end
    if text.startswith("${", at):
        end = _nested_end(text, at + 1) + 1
        return _braced(text[at + 2 : end - 1], variables), end
    name = _NAME.match(text, at + 1)
    if name is not None:
        return _value(name[0], variables), name.end()
    if text[at + 1 : at + 2] in tuple("@*#?0123456789"):
        return [], at + 2
    return ["$"], at + 1


def _braced(inside: str, variables: Mapping[str, Sequence[str]]) -> list[str]:
    match = re.fullmatch(
        r"([A-Za-z_]\w*|\d+)(\[[@*]\])?(?::?([-=+?])(.*)|(##\*/|,,|\^\^))?", inside, re.DOTALL
    )
    if match is None:
        # ${a.b} is Hydra's, other edits are the shell's: both are kept for a reader to see.
        return ["${" + inside + "}"] if inside.strip("@*#") else []
    name, _, operator, default, edit = match.groups()
    known = [value for value in variables.get(name, []) if value] if operator else variables.get(name)
    if operator in ("-", "=") and not known:
        return [" ".join(_expand(default, variables, True))]
    if operator == "+":
        return [" ".join(_expand(default, variables, True))] if known else []
    values = [] if name.isdigit() else _value(name, variables)
    return [_edited(value, edit) for value in values]


def _edited(value: str, edit: str | None) -> str:
    """Apply one of the edits that scripts make of paths: what follows the last slash, small letters, capitals."""
    if edit is None or value.startswith(_UNSET):
        return value
    return {"##*/": value.rpartition("/")[2], ",,": value.lower(), "^^": value.upper()}[edit]


def _value(name: str, variables: Mapping[str, Sequence[str]]) -> list[str]:
    return list(variables[name]) if name in variables else [f"{_UNSET}{name}{_UNSET}"]


def _sum(text: str, variables: Mapping[str, Sequence[str]]) -> str:
    """Compute whole-number arithmetic of + - * / and brackets; anything else stays as written."""
    filled = "".join(_expand(text, variables, True))
    filled = _NAME.sub(lambda name: " ".join(_value(name[0], variables)), filled)
    if re.fullmatch(r"[\d\s+\-*/()]+", filled) is None:
        return f"$(({text}))"
    try:
        return str(_arithmetic(re.findall(r"\d+|[-+*/()]", filled)))
    except (IndexError, ValueError, ZeroDivisionError):
        return f"$(({text}))"


def _arithmetic(tokens: list[str]) -> int:
    value = _product(tokens)
    while tokens and tokens[0] in "+-":
        value = value + _product(tokens) if tokens.pop(0) == "+" else value - _product(tokens)
    return value


def _product(tokens: list[str]) -> int:
    value = _factor(tokens)
    while tokens and tokens[0] in "*/":
        value = value * _factor(tokens) if tokens.pop(0) == "*" else value // _factor(tokens)
    return value


def _factor(tokens: list[str]) -> int:
    token = tokens.pop(0)
    if token == "-":
        return -_factor(tokens)
    if token != "(":
        return int(token)
    value = _arithmetic(tokens)
    tokens.pop(0)
    return value

"""Files of the user's that a config names."""

import re
import textwrap

import pytest

from jaxflow.types import UserError
from jaxflow.user_code import load_from_file


def write(tmp_path, text, name="mine.py"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return str(path)


def load(file, name="answer"):
    return load_from_file(f"{file}:{name}", "some.key", "answer")


def test_a_name_is_found_in_the_file(tmp_path):
    assert load(write(tmp_path, "answer = 42")) == 42


def test_a_file_runs_once_so_that_its_classes_stay_the_same(tmp_path):
    file = write(tmp_path, "class Answer: pass")
    assert load(file, "Answer") is load(file, "Answer")


def test_a_file_is_the_same_by_whichever_path_it_is_named(tmp_path, monkeypatch):
    file = write(tmp_path, "class Answer: pass")
    monkeypatch.chdir(tmp_path)
    assert load("mine.py", "Answer") is load(file, "Answer")


def test_two_files_of_one_name_do_not_meet(tmp_path):
    files = [write(tmp_path / folder, f"answer = {folder!r}") for folder in ("a", "b")]
    assert [load(file) for file in files] == ["a", "b"]


def test_a_file_that_failed_is_run_again(tmp_path):
    file = write(tmp_path, "raise ValueError")
    with pytest.raises(UserError, match="ValueError"):
        load(file)
    write(tmp_path, "answer = 'mended'")
    assert load(file) == "mended"


def test_the_file_may_define_dataclasses(tmp_path):
    file = write(
        tmp_path,
        """
        from __future__ import annotations
        import dataclasses

        @dataclasses.dataclass
        class Answer:
            text: str

        answer = Answer("1") == Answer("1")
        """,
    )
    assert load(file) is True


@pytest.mark.parametrize("place", ["mine.py", ":answer", "mine.py:"])
def test_a_place_without_file_or_name_is_refused(place):
    with pytest.raises(UserError, match=r"some\.key is .*path\.py:name"):
        load_from_file(place, "some.key", "answer")


def test_a_missing_file_is_named_with_its_key(tmp_path):
    with pytest.raises(UserError, match=r"answer file .*absent\.py' does not exist; check some\.key"):
        load(f"{tmp_path}/absent.py")


def test_a_file_that_is_not_python_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"notes\.txt' is not a Python file"):
        load(write(tmp_path, "answer", "notes.txt"))


def test_a_missing_name_is_named_with_its_key(tmp_path):
    with pytest.raises(UserError, match=r"no 'answer' there; some\.key"):
        load(write(tmp_path, "question = 1"))


FAILING = [
    ("x = 1\nimport no_such_module_anywhere\n", 2, "ModuleNotFoundError"),
    ("x = 1\n\ndef f(:\n    pass\n", 3, "SyntaxError"),
    ("def f():\n    return 1 / 0\n\nf()\n", 2, "ZeroDivisionError"),
    ("raise SystemExit(3)\n", 1, "SystemExit"),
    ("import json\n\njson.loads('{')\n", 3, "JSONDecodeError"),
]


@pytest.mark.parametrize(("text", "line", "complaint"), FAILING)
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_a_failure_is_named_by_the_line_of_the_file(tmp_path, monkeypatch, text, line, complaint, relative):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path, text)
    named = "mine.py" if relative else file
    with pytest.raises(UserError, match=f"^{re.escape(named)}:{line}: .*{complaint}"):
        load(named)


def test_a_wish_to_stop_is_not_the_file_s_mistake(tmp_path):
    file = write(tmp_path, "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load(file)

"""Scripts are read as a shell would, and never run."""

import pytest

from jaxflow.port.shell import read_command
from jaxflow.types import UserError


def words(script, **environment):
    return read_command(script, environment, lambda found: "main" in found, "main")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("run main a=1 b=2", ["a=1", "b=2"]),
        ("run main \\\n  a=1 \\\n  b=2 # said", ["a=1", "b=2"]),
        ("""run main a='x y' b="p q" c=d\\ e""", ["a=x y", "b=p q", "c=d e"]),
        ("""run main l='["console","wandb"]'""", ['l=["console","wandb"]']),
        ("X=5\nrun main a=$X b=${X}c d='$X' e=\"$X y\"", ["a=5", "b=5c", "d=$X", "e=5 y"]),
        ("X=${X:-7}\nY=${X}_${Z:-q}\nrun main a=$Y", ["a=7_q"]),
        ("X=\"['$HOME/t', '$HOME/u']\"\nrun main a=\"$X\"", ["a=['/h/t', '/h/u']"]),
        (
            "A=(\n a=1 # first\n b='x y'\n)\nA+=(c=3)\nrun main \"${A[@]}\" d=4",
            ["a=1", "b=x y", "c=3", "d=4"],
        ),
        ("N=$((1024 * 2 + (3 - 1)))\nrun main a=$N b=$((N / 5))", ["a=2050", "b=410"]),
        ('run main a=1 "$@" $1 b=${1:-2}', ["a=1", "b=2"]),
        ("run main a=1 > log.txt 2>&1 &", ["a=1"]),
        ("set -x; cd /x && export Y=3 && run main a=$Y | tee log", ["a=3"]),
        ("M=A/B-C\nrun main a=${M##*/} b=${M,,}", ["a=B-C", "b=a/b-c"]),
        ("run main d=${a.b} e=\\${f.g}", ["d=${a.b}", "e=${f.g}"]),
        ("if [ $V = 1 ]; then\n X=2\nfi\nX=3\nif true; then X=4; fi\nrun main a=$X", ["a=3"]),
        ("if [ -z x ]; then run main a=1; fi", ["a=1"]),
        ("for i in 1 2; do\n X=1\n run main a=1\ndone", ["a=1"]),
        ("echo first\nrun main a=1\nrun main a=2", ["a=1"]),
    ],
)
def test_the_command_s_words_are_those_of_a_shell(script, expected):
    found = words(script, HOME="/h")
    assert found[found.index("main") + 1 :] == expected


def test_what_a_command_would_print_stays_as_it_is_written_and_nothing_runs(tmp_path):
    mark = tmp_path / "ran"
    found = words(f"NAME=x_$(touch {mark}; date +%Y %m)\ntouch {mark}\nrun main n=$NAME t=`touch {mark}`")
    assert found[-2] == f"n=x_$(touch {mark}; date +%Y %m)"
    assert not mark.exists()


def test_the_environment_comes_before_a_default_and_behind_an_assignment():
    assert words("A=${A:-1}\nB=2\nrun main $A $B", A="9", B="9")[-2:] == ["9", "2"]


def test_variables_that_nothing_sets_are_named_together():
    with pytest.raises(UserError, match=r"\$ROOT, \$MODEL, which nothing sets"):
        words("run main a=$ROOT/x b=${MODEL} c=$ROOT")


def test_variables_of_other_commands_need_no_value():
    assert words("echo $NOTHING\nrun main a=1")[-1] == "a=1"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo hello", "no command that starts main"),
        ("run main 'a", "does not close"),
        ('run main "a', "does not close"),
        ("run main ${a", "does not close"),
        ("A=(main", "does not close"),
    ],
)
def test_scripts_that_cannot_be_read_are_refused(script, message):
    with pytest.raises(UserError, match=message):
        words(script)

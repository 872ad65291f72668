"""Objectives of the user's: what is none is refused by the checks, before a device is touched."""

import numpy as np
import pytest
from good_config import config, problems

from jaxflow.checks import check
from jaxflow.dataflow.objective import load_objective
from jaxflow.types import UserError


def file_of(tmp_path, source):
    path = tmp_path / "own.py"
    path.write_text(source)
    return f"{path}:own"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("own = 3", "is a int, not a function"),
        ("def own(log_probs): ...", "cannot be called with"),
        ("def other(a, b, c, d): ...", "no 'own' there"),
        ("1 / 0", r"own\.py:1"),
    ],
)
def test_what_is_no_objective_is_refused_by_the_checks(tmp_path, source, message):
    place = file_of(tmp_path, source)
    with pytest.raises(UserError, match=message):
        load_objective(place)
    assert any("own.py" in problem for problem in problems(config(algorithm__objective=place)))


def test_an_objective_of_the_user_s_is_accepted(tmp_path):
    place = file_of(
        tmp_path, "def own(log_probs, old_log_probs, advantages, mask):\n    return -advantages * log_probs\n"
    )
    check(config(algorithm__objective=place), 100, 16)


def test_a_loss_that_is_aggregated_already_is_refused(tmp_path):
    place = file_of(
        tmp_path, "def own(log_probs, old, advantages, mask):\n    return (advantages * log_probs).mean()\n"
    )
    rows = np.ones((2, 3), np.float32)
    with pytest.raises(UserError, match="the loss of each token, \\(2, 3\\), and returned \\(\\)"):
        load_objective(place)(rows, rows, rows, rows > 0)

import re
import textwrap

import pytest

from jaxflow.rewards.function import exact_match, load_reward_function
from jaxflow.types import UserError


def write(tmp_path, text, name="reward.py"):
    path = tmp_path / name
    path.write_text(textwrap.dedent(text))
    return str(path)


@pytest.mark.parametrize(
    ("response", "ground_truth", "score"),
    [
        ("85", "85", 1.0),
        ("85", 85, 1.0),
        (" 85\n", "85", 1.0),
        ("085", "85", 0.0),
        ("85 ", "8 5", 0.0),
        ("", "85", 0.0),
    ],
)
def test_exact_match_compares_whole_answers(response, ground_truth, score):
    assert exact_match("addition", response, ground_truth) == score


def test_exact_match_refuses_a_ground_truth_it_cannot_compare():
    with pytest.raises(TypeError, match="dict"):
        exact_match("addition", "1", {"a": 1})


@pytest.mark.parametrize(
    "signature",
    [
        "data_source, solution_str, ground_truth, extra_info=None",
        "solution_str, ground_truth, **others",
        "data_source, solution_str, ground_truth, extra_info=None, strict=True",
    ],
)
def test_verls_signatures_are_called_by_name(tmp_path, signature):
    file = write(tmp_path, f"def compute_score({signature}):\n    return solution_str + ground_truth")
    function = load_reward_function(f"{file}:compute_score")
    assert function(data_source="d", solution_str="s", ground_truth="g", extra_info={}) == "sg"


def test_what_is_wrong_with_the_file_is_told_under_the_key_of_the_reward(tmp_path):
    file = write(tmp_path, "x = 1\nimport no_such_module_anywhere\n")
    with pytest.raises(UserError, match=f"^{re.escape(file)}:2: importing the reward file failed"):
        load_reward_function(f"{file}:compute_score")
    with pytest.raises(UserError, match=r"reward\.function is 'reward\.py'"):
        load_reward_function("reward.py")


@pytest.mark.parametrize(
    "text",
    [
        "compute_score = 3",
        "def compute_score(solution, truth): return 1.0",
        "async def compute_score(data_source, solution_str, ground_truth, extra_info): return 1.0",
    ],
)
def test_what_cannot_be_called_as_a_reward_is_refused_before_the_run(tmp_path, text):
    file = write(tmp_path, text)
    with pytest.raises(UserError, match="'compute_score'"):
        load_reward_function(f"{file}:compute_score")

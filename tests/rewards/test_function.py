import pytest

from jaxflow.rewards.function import read_arguments, read_function
from jaxflow.types import UserError


def test_a_file_is_read_and_not_run(tmp_path):
    path = tmp_path / "reward.py"
    path.write_bytes("raise SystemExit  # ü\n".encode("latin-1"))
    function = read_function(f"{path}:score", '{"strict": true}', batch=True)
    assert (function.path, function.name, function.batch) == (path, "score", True)
    assert function.arguments == {"strict": True}
    assert function.source.encode("utf-8", "surrogateescape") == path.read_bytes()


def test_what_is_wrong_with_the_place_is_told_under_the_key_of_the_reward(tmp_path):
    with pytest.raises(UserError, match=r"reward\.function is 'reward\.py'"):
        read_function("reward.py", "", batch=False)
    with pytest.raises(UserError, match=r"does not exist; check reward\.function"):
        read_function(f"{tmp_path}/reward.py:compute_score", "", batch=False)


@pytest.mark.parametrize("text", ["{", "[1]", "3", "null", "[" * 100_000])
def test_further_arguments_are_a_json_object(text):
    with pytest.raises(UserError, match=r"reward\.function_arguments"):
        read_arguments(text)


def test_no_text_is_no_arguments():
    assert read_arguments(" ") == {}

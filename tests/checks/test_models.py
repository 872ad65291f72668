"""What in a model's declared differences cannot be is said in one sentence each."""

import pytest
from good_config import config, problems


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"activation": "gelu"}, "did you mean 'gelu_tanh'?"),
        ({"rope_scaling": "yarn"}, "actor.model.rope_scaling = 'yarn': it is one of: none, linear, llama3"),
        ({"rope_factor": 0.0}, "actor.model.rope_factor = 0.0: must be above 0"),
        ({"rope_low_frequency_factor": 4.0}, "is not above actor.model.rope_low_frequency_factor = 4"),
        (
            {"global_every": 2},
            "actor.model.global_every is of local layers, but actor.model.sliding_window = 0",
        ),
        ({"local_rope_theta": 1e4}, "actor.model.local_rope_theta is of local layers"),
        ({"experts": 4}, "actor.model.experts_per_token = 0: a token goes to at least 1 and at most all 4"),
        ({"experts": 4, "experts_per_token": 5}, "experts_per_token = 5: a token goes to at least 1"),
        ({"experts_per_token": 2}, "actor.model.experts_per_token = 2, but actor.model.experts = 0"),
    ],
)
def test_a_difference_that_cannot_be_is_refused(changes, expected):
    found = problems(config(**{f"actor__model__{key}": value for key, value in changes.items()}))
    assert [problem for problem in found if expected in problem], found

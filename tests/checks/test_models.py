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


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"actor__router_aux_loss_coefficient": -1},
            "router_aux_loss_coefficient = -1.0: must be at least 0",
        ),
        (
            {"critic__router_aux_loss_coefficient": 0.01},
            "critic.router_aux_loss_coefficient = 0.01 is of a mixture of experts, and the model has none",
        ),
        (
            {
                "actor__model__experts": 4,
                "actor__model__experts_per_token": 2,
                "actor__router_aux_loss_coefficient": 0.01,
                "actor__lora__rank": 2,
                "actor__lora__targets": ("query",),
            },
            "beside adapters (actor.lora.rank = 2) no router is trained",
        ),
        ({"actor__lora__rank": -1}, "actor.lora.rank = -1: must be at least 0"),
        ({"critic__lora__alpha": 0.0}, "critic.lora.alpha = 0.0: must be above 0"),
        (
            {"actor__lora__base_dtype": "int8"},
            "actor.lora.base_dtype = 'int8': it is one of: float32, bfloat16",
        ),
        (
            {"actor__lora__rank": 2, "actor__lora__targets": ("queries",)},
            "actor.lora.targets: 'queries' is no weight that can be adapted; did you mean 'query'?",
        ),
        ({"critic__lora__rank": 2, "critic__lora__targets": ()}, "critic.lora.targets is empty"),
        (
            {"actor__lora__rank": 2, "actor__model__experts": 4, "actor__model__experts_per_token": 2},
            "actor.lora.targets: gate, up, down are a mixture's experts, which cannot be adapted",
        ),
        (
            {"critic__lora__rank": 2, "critic__model__layers": 2},
            "begins with random weights, which would never",
        ),
        ({"actor__lora__rank": 500}, "actor.lora.rank = 500 is above the model's width = 128"),
    ],
)
def test_adapters_that_cannot_be_are_refused(changes, expected):
    found = problems(config(**changes))
    assert [problem for problem in found if expected in problem], found

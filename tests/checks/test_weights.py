"""Weights that do not fit their role are refused before a device is touched."""

import json

import numpy as np
import pytest
from good_config import config, problems

from jaxflow.checks import check
from jaxflow.models.config_json import write_config
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.families import SCALAR, TOKENS
from jaxflow.models.tensor_files import NewTensor, write_tensors
from jaxflow.models.weight_names import weights_of

MODEL = DecoderConfig(vocabulary_size=128, width=8, layers=1, heads=8, kv_heads=8, head_width=2, mlp_width=8)


def checkpoint(directory, head, leave_out=()):
    """Write a checkpoint of zeros."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(write_config(MODEL, head, "float32", 128)))
    tensors = [
        NewTensor(name, "F32", weight.tensor_shape)
        for weight in weights_of(MODEL, head)
        for _, name in weight.tensors()
        if name not in leave_out
    ]
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    write_tensors(directory / "model.safetensors", tensors, lambda name: np.zeros(shapes[name], np.float32))
    return str(directory)


def asked(**weights):
    kinds = {f"{role}__kind": "model" for role in ("reward", "cost") if role in weights}
    named = {f"{role}__weights": directory for role, directory in weights.items()}
    return config(actor__model=vars(MODEL), **kinds, **named)


def test_weights_of_the_right_head_are_accepted(tmp_path):
    policy, judge = checkpoint(tmp_path / "policy", TOKENS), checkpoint(tmp_path / "judge", SCALAR)
    check(asked(actor=policy, critic=policy, reward=judge), 100, 8)
    check(asked(actor=policy, critic=judge, reward=judge), 100, 8)


def test_a_head_of_the_wrong_kind_is_refused_by_role(tmp_path):
    policy, judge = checkpoint(tmp_path / "policy", TOKENS), checkpoint(tmp_path / "judge", SCALAR)
    told = problems(asked(actor=judge, critic=judge, reward=policy))
    assert told == [
        f"actor.weights: {judge} ends in one number, not in a distribution over tokens",
        f"reward.weights: {policy} ends in a distribution over tokens, not in one number",
    ]


@pytest.mark.parametrize("role", ["actor", "critic", "reward", "cost"])
def test_missing_tensors_are_refused_by_role(role, tmp_path):
    judge = checkpoint(tmp_path / "judge", SCALAR)
    head = TOKENS if role == "actor" else SCALAR
    broken = checkpoint(tmp_path / "broken", head, ["model.layers.0.self_attn.k_proj.weight"])
    told = problems(asked(**{"reward": judge, role: broken}))
    assert told[0].startswith(f"{role}.weights: {broken}")
    assert "1 missing: model.layers.0.self_attn.k_proj.weight" in told[1]

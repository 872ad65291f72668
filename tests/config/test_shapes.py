"""A model's shape comes from its keys, a preset or its weights, and where two of them say it they agree."""

import dataclasses
import json
import shutil

import pytest

from jaxflow.config import default_config_dict, from_config_dict, from_json, to_json
from jaxflow.models.config_json import write_config
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.description import write_description
from jaxflow.models.families import SCALAR, TOKENS
from jaxflow.models.presets import PRESETS
from jaxflow.types import UserError

LLAMA, QWEN = PRESETS["llama-3.2-1b"], PRESETS["qwen2.5-0.5b"]


def read(**keys):
    values = default_config_dict()
    values.update_from_flattened_dict({key.replace("__", "."): value for key, value in keys.items()})
    return from_config_dict(values)


@pytest.fixture
def weights(tmp_path):
    """Directories that say what they hold: Hugging Face's of a policy, jaxflow's of a critic."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for directory in (theirs, ours):
        directory.mkdir()
    (theirs / "config.json").write_text(json.dumps(write_config(QWEN, TOKENS, "float32", 128)))
    write_description(ours, LLAMA, SCALAR)
    return {"theirs": str(theirs), "ours": str(ours)}


def test_a_preset_shapes_every_model_that_follows():
    config = read(
        actor__preset="llama-3.2-1b", actor__model__remat=False, actor__model__compute_dtype="bfloat16"
    )
    asked = dataclasses.replace(LLAMA, remat=False, compute_dtype="bfloat16")
    assert config.actor.model == config.critic_model == config.reward_model == asked
    smaller = read(actor__preset="llama-3.2-1b", critic__model__layers=2).critic_model
    assert smaller == dataclasses.replace(LLAMA, layers=2)


def test_weights_shape_their_model_and_the_config_how_it_is_computed(weights):
    config = read(
        actor__weights=weights["theirs"], critic__weights=weights["ours"], actor__model__head_padding=2
    )
    assert config.actor.model == dataclasses.replace(QWEN, head_padding=2)
    assert config.critic_model == dataclasses.replace(LLAMA, head_padding=2)
    assert config.reward_model == config.actor.model


def test_a_critic_of_another_preset_computes_as_the_actor_unless_told():
    config = read(
        actor__model__remat=False, critic__preset="qwen2.5-0.5b", critic__model__compute_dtype="bfloat16"
    )
    assert config.critic_model == dataclasses.replace(QWEN, remat=False, compute_dtype="bfloat16")
    assert config.actor.model == dataclasses.replace(DecoderConfig(), remat=False)


def test_a_resolved_config_is_saved_whole_and_read_without_its_weights(weights):
    config = read(actor__weights=weights["theirs"], critic__preset="llama-3.2-1b")
    saved = json.loads(json.dumps(to_json(config)))
    for directory in weights.values():
        shutil.rmtree(directory)
    assert from_json(saved) == config


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"actor__preset": "llama-3.2-1b", "actor__model__width": 64},
            r"actor\.model\.width = 64, but actor\.preset",
        ),
        (
            {"actor__weights": "theirs", "actor__model__layers": 3},
            r"actor\.model\.layers = 3, but actor\.weights .* 24",
        ),
        (
            {"critic__weights": "ours", "critic__model__heads": 4},
            r"critic\.model\.heads = 4, but critic\.weights .* 32",
        ),
        (
            {"actor__weights": "theirs", "actor__preset": "qwen2.5-1.5b"},
            r"actor\.preset: its width = 1536, but",
        ),
        ({"actor__preset": "llama-3.2-2b"}, r"nearest: llama-3\.2-"),
    ],
)
def test_what_contradicts_weights_or_preset_is_refused_by_key(keys, message, weights):
    with pytest.raises(UserError, match=message):
        read(**{key: weights.get(value, value) for key, value in keys.items()})


def test_keys_that_say_the_same_again_and_a_preset_beside_its_weights_are_accepted(weights):
    config = read(
        actor__weights=weights["theirs"],
        actor__preset="qwen2.5-0.5b",
        actor__model__width=QWEN.width,
        critic__model__heads=QWEN.heads,
    )
    assert config.actor.model == config.critic_model == QWEN


def test_a_directory_that_says_nothing_of_its_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds neither"):
        read(actor__weights=str(tmp_path))
    (tmp_path / "initial").mkdir()
    with pytest.raises(UserError, match="folder of a run"):
        read(actor__weights=str(tmp_path))
    (tmp_path / "decoder.json").write_text('{"head": "tokens", "decoder": {"depth": 3}}')
    with pytest.raises(UserError, match="depth cannot be read"):
        read(actor__weights=str(tmp_path))

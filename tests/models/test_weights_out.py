"""Weights become a checkpoint that transformers loads, bit for bit and whole or not at all."""

import json

import jax
import numpy as np
import pytest
import tiny
import torch
import transformers
from models.checkpoints import edit_tensors, loaded, logits_of, same_tensors, saved, scalar_model, tensors_of
from models.families import FAMILIES, VOCABULARY, in_our_names, torch_model
from models.test_weights_in import CUT, model_of, read

from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sharding import training_layout
from jaxflow.models import tensor_files
from jaxflow.models.config_json import write_config
from jaxflow.models.families import SCALAR, TOKENS
from jaxflow.models.transformer import ScalarModel
from jaxflow.models.weights_out import _gathering, entries_of, write_checkpoint
from jaxflow.types import UserError

ROWS = np.random.default_rng(0).integers(3, VOCABULARY, (3, 11))


def write(out, decoder, params, dtype="float32", head=TOKENS, **more):
    config = write_config(decoder, head, dtype, 256)
    return write_checkpoint(out, decoder, head, entries_of(params, dtype), dtype, config, **more)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_round_trip_is_bitwise_and_transformers_computes_as_before(name, tmp_path):
    given = saved(name, tmp_path / "given")
    model = model_of(name, head_padding=1)
    params, _ = read(given, model, CUT)
    size = write(tmp_path / "back", model.config, params, most_bytes_per_file=30_000)
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1
    assert same_tensors(given, tmp_path / "back")
    assert size == sum(tensor.nbytes for tensor in tensors_of(given).values())
    again, _ = read(tmp_path / "back", model)
    tiny.assert_same_bits(jax.device_get(again), jax.device_get(params))
    expected = logits_of(torch_model(name), ROWS)
    np.testing.assert_allclose(logits_of(loaded(tmp_path / "back"), ROWS), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["llama2", "gemma3", pytest.param("qwen3_moe", marks=pytest.mark.slow)])
def test_transformers_scores_with_an_exported_reward_model_as_before(name, tmp_path):
    scored = scalar_model(name, tmp_path / "given")
    model = model_of(name, ScalarModel)
    params, _ = read(tmp_path / "given", model)
    write(tmp_path / "out", model.config, params, head=SCALAR)
    assert same_tensors(tmp_path / "given", tmp_path / "out")
    back = loaded(tmp_path / "out", transformers.AutoModelForSequenceClassification)
    back.config.pad_token_id = 2
    np.testing.assert_allclose(logits_of(back, ROWS), logits_of(scored, ROWS), rtol=1e-5, atol=1e-6)


def test_a_narrow_checkpoint_comes_back_from_float32_masters_bit_for_bit(tmp_path):
    given = saved("gemma2", tmp_path / "given", torch.bfloat16)
    model = model_of("gemma2")
    write(tmp_path / "back", model.config, read(given, model)[0], "bfloat16")
    assert same_tensors(given, tmp_path / "back")


@pytest.mark.parametrize("name", ["qwen2", "qwen3_moe"])
def test_layers_that_lie_on_several_stages_come_out_one_by_one(name, tmp_path):
    given = saved(name, tmp_path / "given")

    def with_signed_zeros(tensors):
        for tensor in tensors.values():
            tensor.view(-1)[:3] = torch.tensor([-0.0, 0.0, torch.inf])
        return tensors

    edit_tensors(given, with_signed_zeros)
    model = model_of(name)
    mesh = make_mesh(1, 1, 2, 2, jax.devices()[:4], pipe=2, generation_pipe=2)
    params, _ = read(given, model, training_layout(mesh, model.config))
    gate = params["backbone"]["layers"]["mlp"]["gate"]
    assert gate.sharding.shard_shape(gate.shape)[0] == 1
    program = _gathering(gate, 1, "float32").lower(gate, (1,)).compile().as_text()
    # No device ever has the layers of several stages, not even its part of them.
    assert "all-gather" in program and f"[{gate.shape[0]},{gate.shape[1]}," not in program
    write(tmp_path / "back", model.config, params)
    assert same_tensors(given, tmp_path / "back")


def test_bfloat16_rounds_as_pytorch_does(tmp_path):
    params = in_our_names("llama2", lambda weight: weight.detach().numpy())
    write(tmp_path / "out", FAMILIES["llama2"].ours, jax.device_put(params), "bfloat16")
    saved("llama2", tmp_path / "expected", torch.bfloat16)
    assert same_tensors(tmp_path / "out", tmp_path / "expected")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match="exists already"):
        write(tmp_path / "out", FAMILIES["llama2"].ours, {})
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    params = jax.device_put(in_our_names("llama2", lambda weight: weight.detach().numpy()))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files.os, "fsync", full)
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors.*No space left"):
        write(tmp_path / "out", FAMILIES["llama2"].ours, params, most_bytes_per_file=40_000)
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_files_go_along(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "README.md", "model.safetensors"):
        (tmp_path / "tokenizer" / name).write_text("{}")
    params = jax.device_put(in_our_names("llama2", lambda weight: weight.detach().numpy()))
    write(tmp_path / "out", FAMILIES["llama2"].ours, params, tokenizer=tmp_path / "tokenizer")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    with pytest.raises(UserError, match="holds no file of a Hugging Face tokenizer"):
        write(tmp_path / "other", FAMILIES["llama2"].ours, params, tokenizer=tmp_path)


def test_only_dtypes_that_are_written_are_accepted(tmp_path):
    with pytest.raises(UserError, match="float32 or bfloat16"):
        write_checkpoint(tmp_path / "out", FAMILIES["llama2"].ours, TOKENS, None, "float16", {})

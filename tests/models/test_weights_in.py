"""A checkpoint becomes the weights that it holds, in any layout, and each shard reads its own slices alone."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny
import torch
import transformers
from models.checkpoints import edit_config, edit_tensors, saved, scalar_model, tensors_of
from models.families import FAMILIES, in_our_names, torch_model

from jaxflow.engine.sharding import training_layout
from jaxflow.models.transformer import LanguageModel, ScalarModel, describe
from jaxflow.models.weights_in import read_weights
from jaxflow.types import UserError

PARTS = ("backbone", "head")
CUT = training_layout(tiny.mesh_of((1, 2, 4, 2)))
WHOLE = training_layout(tiny.ONE_DEVICE)


def read(directory, model, layout=WHOLE, parts=PARTS):
    # Two key/value heads over four ranks: what does not divide stays whole, as the engine lays it out.
    layout = layout.fitting({"kv_heads": model.config.kv_heads, "heads": model.config.padded_heads})
    return read_weights(directory, model, layout.weights(model.names), parts)


def ours(name, dtype=np.float32):
    return in_our_names(name, lambda weight: weight.detach().numpy().astype(dtype).astype(np.float32))


def model_of(name, kind=LanguageModel, **changes):
    return describe(dataclasses.replace(FAMILIES[name].ours, **changes), kind)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_of_each_family_is_its_weights_in_any_layout(name, tmp_path):
    saved(name, tmp_path, most_bytes="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    expected = ours(name)
    for layout in (WHOLE, CUT):
        params, report = read(tmp_path, model_of(name), layout)
        tiny.assert_same_bits(jax.device_get(params), expected)
        size = sum(tensor.nbytes for tensor in tensors_of(tmp_path).values())
        # Replicated weights are read once for all devices of the process.
        assert report.bytes_read == size
        largest = max(s.data.nbytes for leaf in jax.tree.leaves(params) for s in leaf.addressable_shards)
        assert report.largest_buffer_bytes == largest
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    layout = CUT.fitting({"kv_heads": 2, "heads": 4})
    assert shardings == layout.weights(model_of(name).names)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_checkpoints_are_cast_to_what_the_model_asks(dtype, tmp_path):
    saved("qwen2", tmp_path, dtype)
    narrow = {torch.bfloat16: ml_dtypes.bfloat16, torch.float16: np.float16}[dtype]
    tiny.assert_same_bits(jax.device_get(read(tmp_path, model_of("qwen2"))[0]), ours("qwen2", narrow))
    model = model_of("qwen2")
    asked = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, ml_dtypes.bfloat16), model.shapes)
    params = read(tmp_path, dataclasses.replace(model, shapes=asked))[0]
    expected = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), ours("qwen2", narrow))
    tiny.assert_same_bits(jax.device_get(params), expected)


@pytest.mark.parametrize("name", ["qwen2", "qwen3_moe"])
def test_padding_heads_are_zeros_behind_each_group(name, tmp_path):
    saved(name, tmp_path)
    padded = model_of(name, head_padding=2)
    params = jax.device_get(read(tmp_path, padded, CUT)[0])
    attention, plain = (
        params["backbone"]["layers"]["attention"],
        ours(name)["backbone"]["layers"]["attention"],
    )
    for key, axis in (("query", 2), ("query_bias", 1), ("output", 1)):
        if key in plain:
            groups = np.moveaxis(attention[key], axis, 0).reshape(2, 4, -1)
            expected = np.moveaxis(plain[key], axis, 0).reshape(2, 2, -1)
            np.testing.assert_array_equal(groups[:, :2], expected)
            assert not groups[:, 2:].any()


def test_a_scalar_head_is_read_or_begins_at_zero(tmp_path):
    scored = scalar_model("gemma2", tmp_path / "scored")
    saved("gemma2", tmp_path / "plain")
    model = model_of("gemma2", ScalarModel)
    params, report = read(tmp_path / "scored", model)
    np.testing.assert_array_equal(params["head"]["weight"], scored.score.weight.detach().numpy()[0])
    assert report.notes == ()
    params, report = read(tmp_path / "plain", model)
    assert not np.asarray(params["head"]["weight"]).any() and "begins at zero" in report.notes[0]
    tiny.assert_same_bits(jax.device_get(params["backbone"]), ours("gemma2")["backbone"])


def test_a_backbone_is_read_from_under_any_head(tmp_path):
    scalar_model("llama2", tmp_path / "scored")
    saved("llama2", tmp_path / "plain")
    for directory in (tmp_path / "scored", tmp_path / "plain"):
        params, _ = read(directory, model_of("llama2"), parts=("backbone",))
        tiny.assert_same_bits(jax.device_get(params), {"backbone": ours("llama2")["backbone"]})


def test_a_tied_checkpoint_fills_an_untied_head(tmp_path):
    saved("qwen2", tmp_path)
    params, report = read(tmp_path, model_of("qwen2", tied_embeddings=False), CUT)
    np.testing.assert_array_equal(params["head"]["matrix"], ours("qwen2")["backbone"]["embedding"].T)
    assert "copied into the head" in report.notes[0]


def test_an_untied_head_goes_into_a_tied_model_only_if_it_is_the_table(tmp_path):
    saved("llama2", tmp_path)
    tied = model_of("llama2", tied_embeddings=True)
    with pytest.raises(UserError, match=r"without a place in the model: lm_head\.weight"):
        read(tmp_path, tied)
    edit_tensors(tmp_path, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"].clone()})
    tiny.assert_same_bits(jax.device_get(read(tmp_path, tied)[0]), {"backbone": ours("llama2")["backbone"]})


def test_the_text_model_of_a_checkpoint_that_reads_pictures_is_read(tmp_path):
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=FAMILIES["gemma3"].theirs.to_dict(),
        vision_config={**vision, "image_size": 16, "patch_size": 8},
        mm_tokens_per_image=4,
    )
    both = transformers.Gemma3ForConditionalGeneration(config)
    both.model.language_model.load_state_dict(torch_model("gemma3").model.state_dict())
    both.save_pretrained(tmp_path)
    params, report = read(tmp_path, model_of("gemma3"))
    tiny.assert_same_bits(jax.device_get(params), ours("gemma3"))
    assert report.notes == ("what reads pictures in it is left out",)
    edit_tensors(tmp_path, lambda tensors: tensors | {"ear.weight": torch.zeros(3)})
    with pytest.raises(UserError, match=r"1 without a place in the model: ear\.weight"):
        read(tmp_path, model_of("gemma3"))


def test_rotary_buffers_are_known(tmp_path):
    saved("llama2", tmp_path)
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    edit_tensors(tmp_path, lambda tensors: tensors | buffer)
    tiny.assert_same_bits(jax.device_get(read(tmp_path, model_of("llama2"))[0]), ours("llama2"))


def test_every_missing_unused_and_misshapen_tensor_is_named(tmp_path):
    saved("llama2", tmp_path)

    def spoil(tensors):
        tensors["model.layers.1.self_attn.q_proj.weight"] = torch.zeros(32, 31)
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(48, 32, dtype=torch.int32)
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(48, 32)
        tensors["score.weight"] = torch.zeros(1, 32)
        del tensors["model.norm.weight"]
        return tensors

    edit_tensors(tmp_path, spoil)
    with pytest.raises(UserError) as error:
        read(tmp_path, model_of("llama2"))
    for told in (
        "1 missing: model.norm.weight",
        "2 without a place in the model: model.layers.2.mlp.up_proj.weight, score.weight",
        "model.safetensors: tensor model.layers.1.self_attn.q_proj.weight is F32[32, 31], expected [32, 32]",
        "tensor model.layers.0.mlp.up_proj.weight is I32[48, 32]",
    ):
        assert told in str(error.value)


def test_a_bias_of_a_scalar_head_must_be_zero(tmp_path):
    scalar_model("llama2", tmp_path)
    model = model_of("llama2", ScalarModel)
    edit_tensors(tmp_path, lambda tensors: tensors | {"score.bias": torch.zeros(1)})
    read(tmp_path, model)
    edit_tensors(tmp_path, lambda tensors: tensors | {"score.bias": torch.ones(1)})
    with pytest.raises(UserError, match=r"score\.bias"):
        read(tmp_path, model)


def test_another_decoder_is_refused_by_what_differs(tmp_path):
    saved("mistral", tmp_path)
    edit_config(tmp_path, sliding_window=7, hidden_act="silu")
    with pytest.raises(UserError, match="sliding_window: the checkpoint has 7, the config 5"):
        read(tmp_path, model_of("mistral"))


def test_a_truncated_shard_is_named(tmp_path):
    saved("llama2", tmp_path, most_bytes="20KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{shard.name}: .*cut off"):
        read(tmp_path, model_of("llama2"))

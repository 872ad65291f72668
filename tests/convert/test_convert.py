"""The command line moves weights between both worlds, says what there is, and refuses what it cannot do."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from models.checkpoints import (
    edit_tensors,
    loaded,
    logits_of,
    same_tensors,
    saved,
    scalar_model,
    tensors_of,
)
from models.families import VOCABULARY, in_our_names, torch_model
from models.test_weights_in import model_of

from jaxflow.convert.__main__ import main
from jaxflow.engine.state import save_weights
from jaxflow.models.transformer import ScalarModel
from jaxflow.types import UserError

ROWS = np.random.default_rng(0).integers(3, VOCABULARY, (2, 9))


@pytest.fixture
def convert(capsys):
    """Run the command line; return its exit code and what it printed."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", ["qwen3_moe", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_import_and_export_are_each_other_s_way_back(name, convert, tmp_path):
    given = saved(name, tmp_path / "given")
    code, out = convert("import", given, tmp_path / "ours")
    assert code == 0 and "float32" in out
    code, out = convert("compare", given, tmp_path / "ours")
    assert code == 0 and out.endswith("equal\n")
    more = ("--dtype", "float32", "--file-bytes", 40_000)
    assert convert("export", tmp_path / "ours", tmp_path / "back", *more)[0] == 0
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1
    assert same_tensors(given, tmp_path / "back")
    expected = logits_of(torch_model(name), ROWS)
    np.testing.assert_allclose(logits_of(loaded(tmp_path / "back"), ROWS), expected, rtol=1e-5, atol=1e-6)


def test_a_reward_model_goes_out_as_a_classifier_like_the_checkpoint_that_it_came_from(convert, tmp_path):
    scored = scalar_model("qwen2", tmp_path / "given")
    assert convert("import", tmp_path / "given", tmp_path / "ours")[0] == 0
    more = ("--dtype", "float32", "--like", tmp_path / "given")
    assert convert("export", tmp_path / "ours", tmp_path / "back", *more)[0] == 0
    before, after = (json.loads((tmp_path / d / "config.json").read_text()) for d in ("given", "back"))
    kept = ("max_position_embeddings", "pad_token_id", "rope_parameters", "architectures", "id2label")
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}
    back = loaded(tmp_path / "back", transformers.AutoModelForSequenceClassification)
    np.testing.assert_allclose(logits_of(back, ROWS), logits_of(scored, ROWS), rtol=1e-5, atol=1e-6)


def test_padding_heads_and_a_padded_vocabulary_stay_at_home(convert, tmp_path):
    model = model_of("llama2", ScalarModel, head_padding=1)
    drawn = jax.tree.map(
        lambda shape: jax.numpy.asarray(np.random.default_rng(0).normal(size=shape.shape), np.float32),
        model.shapes,
    )
    save_weights(tmp_path / "ours", model, drawn)
    assert convert("export", tmp_path / "ours", tmp_path / "out")[0] == 0
    tensors = tensors_of(tmp_path / "out")
    assert tensors["model.embed_tokens.weight"].shape == (VOCABULARY, 32)
    query = np.asarray(drawn["backbone"]["layers"]["attention"]["query"][0])  # [D, N', H], N' = 2 × (2 + 1)
    expected = torch.tensor(np.delete(query, [2, 5], axis=1).reshape(32, -1).T).bfloat16()
    assert torch.equal(tensors["model.layers.0.self_attn.q_proj.weight"], expected)


def test_inspect_says_what_there_is_of_either_kind(convert, tmp_path):
    given = saved("llama2", tmp_path / "given", torch.bfloat16, most_bytes="20KB")
    convert("import", given, tmp_path / "ours")
    count = sum(tensor.numel() for tensor in tensors_of(given).values())
    for directory, kind, dtype in (
        (given, "Hugging Face, Llama", "bfloat16"),
        (tmp_path / "ours", "jaxflow", "float32"),
    ):
        code, out = convert("inspect", directory)
        assert code == 0
        for told in (
            f"kind        {kind}",
            f"parameters  {count:,}",
            f"dtypes      {dtype} {count:,}",
            "  heads = 4",
        ):
            assert told in out
        assert f"2 × model.layers.*.mlp.up_proj.weight {dtype}[48, 32]" in out
    _, out = convert("inspect", given)
    assert out.count("file        model-0000") == len(list(given.glob("*.safetensors")))


def test_compare_finds_what_differs_by_role(convert, tmp_path):
    for name in ("one", "other"):
        saved("llama2", tmp_path / name)

    def nudge(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] += 0.5
        return tensors

    edit_tensors(tmp_path / "other", nudge)
    code, out = convert("compare", tmp_path / "one", tmp_path / "other")
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert code == 1 and out.endswith("different\n")
    assert lines["model.layers.*.mlp.up_proj.weight"][:2] == ["2", "5.000e-01"]
    assert lines["model.layers.*.mlp.down_proj.weight"][:2] == ["2", "0.000e+00"]
    assert convert("compare", tmp_path / "one", tmp_path / "other", "--tolerance", 0.6)[0] == 0
    edit_tensors(
        tmp_path / "other", lambda tensors: tensors | {"model.norm.weight": torch.full((32,), torch.nan)}
    )
    assert convert("compare", tmp_path / "one", tmp_path / "other", "--tolerance", 0.6)[0] == 1


def test_nothing_is_overwritten_and_a_checkpoint_is_not_exported_again(convert, tmp_path):
    given = saved("llama2", tmp_path / "given")
    (tmp_path / "there").mkdir()
    for arguments, message in (
        (("import", given, tmp_path / "there"), "there: exists already"),
        (("export", given, tmp_path / "new"), "is a Hugging Face checkpoint already"),
        (("export", given, tmp_path / "new", "--step", "3"), "not the folder of a run"),
        (("import", tmp_path / "none", tmp_path / "new"), "no such directory"),
        (("inspect", tmp_path / "there"), "holds neither"),
    ):
        with pytest.raises(UserError, match=message):
            convert(*arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "there"]


def test_a_damaged_folder_of_weights_is_named(convert, tmp_path):
    model = model_of("llama2")
    save_weights(
        tmp_path / "ours",
        model,
        jax.device_put(in_our_names("llama2", lambda weight: weight.detach().numpy())),
    )
    tree = json.loads((tmp_path / "ours" / "decoder.json").read_text())
    tree["decoder"]["mlp_width"] = 49
    (tmp_path / "ours" / "decoder.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"layers/mlp/gate is float32\[2,32,48\], expected \[2, 32, 49\]"):
        convert("inspect", tmp_path / "ours")

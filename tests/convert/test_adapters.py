"""Adapters go out merged, or as the peft library reads them; either way the model is the one that was trained."""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from models.checkpoints import loaded, logits_of, saved
from models.families import FAMILIES, VOCABULARY
from models.test_adapters import peft_model

from jaxflow.convert.__main__ import main
from jaxflow.convert.actions import export_adapters
from jaxflow.engine import attention
from jaxflow.engine.adapter_files import AdapterNote, write_note
from jaxflow.engine.state import save_weights
from jaxflow.models.adapters import Adapters, join
from jaxflow.models.layers import Surroundings
from jaxflow.models.transformer import LanguageModel, ScalarModel, describe
from jaxflow.models.weights_in import read_weights
from jaxflow.types import UserError

ADAPTERS = Adapters(rank=3, alpha=5.0, targets=("query", "value", "output", "down"), base_dtype="float32")
# With padding heads, which are not to be seen in what goes out.
CONFIG = dataclasses.replace(FAMILIES["qwen2"].ours, head_padding=1)
ROWS = np.random.default_rng(0).integers(3, VOCABULARY, (2, 9))


def said(model, params):
    """Logits, or the numbers of a scalar model, of whole rows."""

    def traced(params):
        module = model.bind(params)
        around = Surroundings(attention.whole_sequence("cpu"), lambda x, _: x)
        hidden = module.backbone(jnp.asarray(ROWS), around)
        return (
            module.scalars(hidden) if model.kind is ScalarModel else module.logits(hidden)[..., :VOCABULARY]
        )

    return np.asarray(jax.jit(traced)(params))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return saved("qwen2", tmp_path_factory.mktemp("base"))


def trained(kind, base, directory):
    """Save random adapters beside the base as a checkpoint does; return what their model says."""
    model, generator = describe(CONFIG, kind, ADAPTERS), np.random.default_rng(1)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: here, model.base.shapes)
    params, _ = read_weights(base, model.base, shardings, tuple(model.base.shapes))
    own = jax.tree.map(
        lambda shape: jnp.asarray(generator.normal(size=shape.shape) / 4, jnp.float32),
        model.trained(model.shapes),
    )
    save_weights(directory, model, own)
    write_note(directory, AdapterNote(ADAPTERS, str(base)))
    return said(model, join(model.frozen(params), own))


def test_a_policy_goes_out_merged_or_as_an_adapter(base, tmp_path, capsys):
    expected = trained(LanguageModel, base, tmp_path / "adapters")
    more = ["--dtype", "float32"]
    assert main(["export", str(tmp_path / "adapters"), str(tmp_path / "merged"), *more]) == 0
    np.testing.assert_allclose(logits_of(loaded(tmp_path / "merged"), ROWS), expected, atol=1e-4)
    assert main(["compare", str(tmp_path / "adapters"), str(tmp_path / "merged")]) == 0
    assert main(["export", str(tmp_path / "adapters"), str(tmp_path / "out"), "--adapter", *more]) == 0
    assert "adapters of rank 3, merged into" in capsys.readouterr().out
    own = peft.PeftModel.from_pretrained(loaded(base), tmp_path / "out")
    with torch.no_grad():
        assert np.abs(logits_of(loaded(base), ROWS) - expected).max() > 0.1
    np.testing.assert_allclose(logits_of(own, ROWS), expected, atol=1e-4)
    with pytest.raises(UserError, match="holds no adapters"):
        list(export_adapters(base, tmp_path / "none", "actor", None, "float32"))


def test_a_critic_s_adapters_take_its_head_along(base, tmp_path):
    expected = trained(ScalarModel, base, tmp_path / "adapters")
    assert (
        main(["export", str(tmp_path / "adapters"), str(tmp_path / "out"), "--adapter", "--dtype", "float32"])
        == 0
    )
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    own = peft.PeftModel.from_pretrained(plain.eval(), tmp_path / "out")
    np.testing.assert_allclose(logits_of(own, ROWS)[:, 0], expected[:, -1], atol=1e-4)


def test_an_adapter_of_peft_is_merged_as_it_comes_in(base, tmp_path):
    peft_model().save_pretrained(tmp_path / "adapter")
    more = ["--adapter", str(tmp_path / "adapter")]
    assert main(["import", str(base), str(tmp_path / "ours"), *more]) == 0
    copy.deepcopy(peft_model()).merge_and_unload().save_pretrained(tmp_path / "expected")
    assert main(["compare", str(tmp_path / "ours"), str(tmp_path / "expected"), "--tolerance", "1e-6"]) == 0
    assert main(["compare", str(tmp_path / "ours"), str(base), "--tolerance", "1e-2"]) == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"r": 4}, r"lora_A\.weight is \[3, 32\], expected \[4, 32\]"),
        ({"r": "three"}, "r is 'three'"),
    ],
)
def test_another_kind_of_adapter_is_refused(keys, message, base, tmp_path):
    peft_model().save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    with pytest.raises(UserError, match=message):
        main(["import", str(base), str(tmp_path / "ours"), "--adapter", str(tmp_path)])
    assert not (tmp_path / "ours").exists()

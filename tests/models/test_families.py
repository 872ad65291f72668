"""Each family is the model that transformers says it is."""

import jax
import numpy as np
import pytest
import torch
from models.families import FAMILIES, VOCABULARY, in_our_names, torch_model

from jaxflow.engine import attention
from jaxflow.models.layers import Surroundings
from jaxflow.models.transformer import LanguageModel, describe

LENGTHS = np.array([14, 9, 3])
TOKENS = np.random.default_rng(0).integers(3, VOCABULARY, (3, 14)).astype(np.int32)


def padded(tokens, lengths):
    return np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens, 2).astype(np.int32)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_logits_are_those_of_transformers(name):
    model = describe(FAMILIES[name].ours, LanguageModel)
    params = in_our_names(name, lambda w: w.detach().numpy())
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda s: s.shape, model.shapes)
    assert model.config.parameter_count == sum(x.size for x in jax.tree.leaves(params))

    @jax.jit
    def logits(params, tokens):
        module = model.bind(params)
        return module.logits(
            module.backbone(tokens, Surroundings(attention.whole_sequence("cpu"), lambda x, _: x))
        )

    for lengths in (LENGTHS, np.full(3, 14)):
        tokens = padded(TOKENS, lengths)
        mask = np.arange(14) < lengths[:, None]
        with torch.no_grad():
            expected = torch_model(name)(
                torch.tensor(tokens), attention_mask=torch.tensor(mask.astype(np.int64))
            ).logits
        actual = np.asarray(logits(params, tokens))[..., :VOCABULARY]
        assert np.abs(expected.numpy()[mask]).max() > 1
        np.testing.assert_allclose(actual[mask], expected.numpy()[mask], atol=1e-4)

"""The parts of a block, each against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from jaxflow.models.layers import RMSNorm, project, turn


def test_rmsnorm_takes_its_mean_in_float32():
    x = 300.0 * np.random.default_rng(0).normal(size=(2, 64))
    expected = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5)
    half = RMSNorm(64, 1e-5)(jnp.asarray(x, jnp.float16))  # x² would overflow float16
    np.testing.assert_allclose(np.asarray(half, np.float64), expected, rtol=5e-3, atol=5e-3)


def test_rmsnorm_of_zeros_is_zero_with_a_finite_gradient():
    norm = RMSNorm(4, 1e-5)
    assert (np.asarray(norm(jnp.zeros((1, 4)))) == 0).all()
    assert np.isfinite(jax.grad(lambda x: jnp.sum(norm(x)))(jnp.zeros((1, 4)))).all()


def test_projection_contracts_the_width_and_keeps_every_other_dimension():
    generator = np.random.default_rng(0)
    x, weight = generator.normal(size=(2, 3, 4)), generator.normal(size=(4, 5, 6))
    expected = np.einsum("btd,dnh->btnh", x, weight)
    np.testing.assert_allclose(project(jnp.asarray(x), jnp.asarray(weight)), expected, rtol=1e-5, atol=1e-5)


def test_a_turned_weight_gives_the_product_of_the_weight_for_few_rows_and_for_many():
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(4, 5, 6)).astype(np.float32)
    for rows in (2, 100):
        x = generator.normal(size=(rows, 2, 20)).astype(np.float32)
        narrow = x[..., :4]
        expected = np.einsum("btd,dnh->btnh", narrow, weight)
        np.testing.assert_allclose(
            project(narrow, turn(jnp.asarray(weight), 1)), expected, rtol=1e-5, atol=1e-5
        )
        expected = x @ weight.reshape(20, 6)
        np.testing.assert_allclose(
            project(x, turn(jnp.asarray(weight), 2), 2), expected, rtol=1e-5, atol=1e-5
        )


def test_a_norm_with_an_offset_rounds_where_gemma_s_does():
    x, scale = np.random.default_rng(0).normal(size=(2, 5, 64)).astype(np.float32)
    norm = RMSNorm(64, 1e-6, offset=True)
    norm.scale.set_value(jnp.asarray(scale[0]))
    theirs = Gemma2RMSNorm(64, eps=1e-6)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(scale[0]))
        expected = theirs(torch.tensor(x, dtype=torch.bfloat16)).float().numpy()
    np.testing.assert_array_equal(np.asarray(norm(jnp.asarray(x, jnp.bfloat16)), np.float32), expected)

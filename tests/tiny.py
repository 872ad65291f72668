"""A decoder small enough to compile in a second, the meshes it is cut over, and batches to feed it."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxflow.algorithms.losses import PolicyLoss
from jaxflow.algorithms.objectives import by_token, clipped_objective
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.optimizer import Optimizer
from jaxflow.engine.sharding import training_layout
from jaxflow.engine.state import new_weights
from jaxflow.engine.train import count
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.transformer import LanguageModel, ScalarModel, describe
from jaxflow.types import Experience, PromptRow, Prompts

CONFIG = DecoderConfig(
    vocabulary_size=50, width=32, layers=2, heads=8, kv_heads=4, head_width=4, mlp_width=64, remat=True
)
LANGUAGE_MODEL = describe(CONFIG, LanguageModel)
SCALAR_MODEL = describe(CONFIG, ScalarModel)

# name -> (data, fsdp, training tensor size, generation tensor size)
MESHES = {
    "data2_fsdp2_tensor2": (2, 2, 2, 2),
    "data2_tensor4_to_2": (2, 1, 4, 2),
    "fsdp2_tensor4_to_1": (1, 2, 4, 1),
    "data8": (8, 1, 1, 1),
    "fsdp8": (1, 8, 1, 1),
}
# Two of the meshes use every axis between them; each other one costs seconds to compile for, and is slow.
FAST = ("data2_fsdp2_tensor2", "data2_tensor4_to_2")
ON_EVERY_MESH = pytest.mark.parametrize(
    "sizes",
    [
        pytest.param(sizes, id=name, marks=() if name in FAST else pytest.mark.slow)
        for name, sizes in MESHES.items()
    ],
)


def mesh_of(sizes):
    return make_mesh(*sizes, devices=jax.devices()[: sizes[0] * sizes[1] * sizes[2]])


ONE_DEVICE = mesh_of((1, 1, 1, 1))


def weights(model, layout, seed=0):
    """Random weights, of a wider spread than training starts from: distributions are far from flat.

    A fresh scalar head is zero and would hide everything: it gets random numbers as well.
    """
    return jax.device_put(_drawn(model.config, model.kind, seed), layout.weights(model.names))


@functools.cache
def _drawn(config, kind, seed):
    drawn = jax.device_get(new_weights(describe(config, kind), training_layout(ONE_DEVICE), seed, 0))
    drawn["backbone"]["embedding"] = 20 * drawn["backbone"]["embedding"]
    if kind is ScalarModel:
        drawn["head"] = {"weight": np.random.default_rng(seed).normal(size=CONFIG.width).astype(np.float32)}
    elif not config.tied_embeddings:
        drawn["head"] = {"matrix": 3 * drawn["head"]["matrix"]}
    return drawn


def experience(rows=13, length=32, seed=0):
    """A step's data with rows of many lengths: prompt of 1 to 6 tokens, response of 1 token or more."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(length * 5 // 8, length + 1, rows).astype(np.int32)
    prompt_lengths = generator.integers(1, 7, rows)
    column = np.arange(length)
    real = column < lengths[:, None]
    mask = real & (column >= prompt_lengths[:, None])
    numbers = {
        name: generator.normal(size=(rows, length)).astype(np.float32) * mask
        for name in ("values", "advantages", "returns")
    }
    log_probs = {
        name: -np.abs(generator.normal(3.5, 0.5, size=(rows, length))).astype(np.float32) * mask
        for name in ("actor_log_probs", "reference_log_probs")
    }
    tokens = generator.integers(0, CONFIG.vocabulary_size, (rows, length)).astype(np.int32) * real
    return Experience(
        tokens=tokens,
        lengths=lengths,
        response_mask=mask,
        policy_updates=np.zeros(rows, np.int32),
        **numbers,
        **log_probs,
    )


def policy_loss(clip_ratio_low=0.2, clip_ratio_high=0.2, dual_clip=3.0, **changes):
    """PPO's loss with every term in it."""
    widths = {"clip_ratio_low": clip_ratio_low, "clip_ratio_high": clip_ratio_high}
    loss = PolicyLoss(
        objective=by_token(clipped_objective, **widths, dual_clip=dual_clip),
        entropy_coefficient=0.01,
        aggregation="token-mean",
        kl_coefficient=0.1,
        kl_estimator="k3",
        length_constant=32.0,
        penalty_coefficient=0.0,
        negative_sequence_bound=0.0,
    )
    return dataclasses.replace(loss, **changes)


def prompts(rows=13, longest=12, seed=0):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, longest + 1, rows).astype(np.int32)
    tokens = generator.integers(0, CONFIG.vocabulary_size, (rows, longest)).astype(np.int32)
    tokens *= np.arange(longest) < lengths[:, None]
    ids = np.arange(rows, dtype=np.int32)
    row = PromptRow(prompt="", tokens=(), ground_truth="", data_source="tiny", extra_info={})
    return Prompts(tokens, lengths, ids, np.full(rows, -1, np.int32), ids, step=0, rows=(row,) * rows)


def rows_of(batch, rows):
    """The same rows in another order (or fewer of them)."""
    return jax.tree.map(lambda leaf: leaf[rows], batch)


def prompt_rows(given, rows):
    return dataclasses.replace(
        given,
        tokens=given.tokens[rows],
        lengths=given.lengths[rows],
        sequence_ids=given.sequence_ids[rows],
        own_seeds=given.own_seeds[rows],
        groups=given.groups[rows],
        rows=tuple(given.rows[row] for row in rows),
    )


def optimizer(**changes):
    # Epsilon is large: a first Adam step is g / (|g| + ε), which at small ε is the sign of rounding noise
    # wherever the gradient is nothing but noise.
    return dataclasses.replace(
        Optimizer(
            learning_rate=1e-2,
            schedule="constant",
            final_fraction=0.0,
            warmup_updates=0,
            total_updates=10,
            beta1=0.9,
            beta2=0.999,
            epsilon=1e-3,
            weight_decay=0.01,
            clip_norm=0.0,
        ),
        **changes,
    )


def assert_same_bits(actual, expected):
    for (path, left), right in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        left, right = np.asarray(left), np.asarray(right)
        assert left.dtype == right.dtype and left.shape == right.shape, path
        assert left.tobytes() == right.tobytes(), path


def counts_of(mask):
    """The counts of a whole mini-batch with this response mask."""
    return count(np.sum(np.asarray(mask), axis=1))

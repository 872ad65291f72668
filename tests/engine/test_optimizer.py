"""AdamW, its schedule and its clip, against NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny


def schedule_by_hand(update, kind):
    """Learning rate of update `update` (from 0): peak 1, 3 warm-up updates, end at 0.1 after 11."""
    if update < 3:
        return (update + 1) / 4
    done = min(1.0, (update - 3) / 8)
    return {
        "constant": 1.0,
        "cosine": 0.1 + 0.9 * (1 + np.cos(np.pi * done)) / 2,
        "linear": 1.0 - 0.9 * done,
    }[kind]


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear"])
def test_learning_rates_warm_up_and_decay_as_asked(kind):
    asked = tiny.optimizer(
        learning_rate=1.0, schedule=kind, final_fraction=0.1, warmup_updates=3, total_updates=11
    )
    rates = [float(asked.learning_rates()(update)) for update in range(15)]
    np.testing.assert_allclose(rates, [schedule_by_hand(update, kind) for update in range(15)], rtol=1e-6)


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear"])
def test_a_run_without_warm_up_starts_at_the_peak(kind):
    asked = tiny.optimizer(learning_rate=0.5, schedule=kind, final_fraction=0.0, total_updates=1)
    assert float(asked.learning_rates()(0)) == 0.5


@pytest.mark.parametrize("clip_norm", [0.0, 1.0, 1e6])
def test_updates_equal_numpy_adamw_with_clip_and_schedule(clip_norm):
    asked = tiny.optimizer(
        learning_rate=0.1, schedule="cosine", warmup_updates=2, total_updates=8, epsilon=1e-8, clip_norm=clip_norm,
        weight_decay=0.3,
    )  # fmt: skip
    generator = np.random.default_rng(0)
    params = {"matrix": generator.normal(size=(3, 4)), "scale": generator.normal(size=5)}
    first = {name: np.zeros_like(w) for name, w in params.items()}
    second = {name: np.zeros_like(w) for name, w in params.items()}
    narrow = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), params)
    transformation = asked.transformation()
    state = transformation.init(narrow)
    for update in range(6):
        gradients = {name: 2 * generator.normal(size=w.shape) for name, w in params.items()}
        moved, state = transformation.update(
            jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), gradients), state, narrow
        )
        narrow = optax.apply_updates(narrow, moved)
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        scale = min(1.0, clip_norm / norm) if clip_norm > 0 else 1.0
        rate = float(asked.learning_rates()(update))
        for name, gradient in gradients.items():
            clipped = scale * gradient
            first[name] = 0.9 * first[name] + 0.1 * clipped
            second[name] = 0.999 * second[name] + 0.001 * clipped**2
            adam = (first[name] / (1 - 0.9 ** (update + 1))) / (
                np.sqrt(second[name] / (1 - 0.999 ** (update + 1))) + 1e-8
            )
            params[name] = params[name] - rate * (adam + 0.3 * params[name])
    for name, weight in params.items():
        np.testing.assert_allclose(narrow[name], weight, rtol=1e-4, atol=1e-5)


def test_moments_are_float32():
    params = {"w": jnp.ones((2,), jnp.float32)}
    state = tiny.optimizer(clip_norm=1.0).transformation().init(params)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim > 0]
    assert len(moments) == 2 and {leaf.dtype for leaf in moments} == {np.dtype(np.float32)}

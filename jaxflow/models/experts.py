"""Mixture of experts: which experts a token goes to, and what they make of it. Pure functions of arrays.

No token is dropped and no capacity is set: tokens are sorted by expert and each expert multiplies its own run of
rows (`jax.lax.ragged_dot`). Knows no mesh: a device that holds some of the experts computes their part alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Routing:
    """How tokens choose experts, and what stands between an expert's matrices."""

    per_token: int  # k
    normalize: bool  # the k probabilities are rescaled to sum to 1
    activation: Callable[[Array], Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExpertWeights:
    """The matrices of all experts, or of some that lie on one device."""

    gate: Float[Array, "E D F"]
    up: Float[Array, "E D F"]
    down: Float[Array, "E F D"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choices:
    """Where tokens go."""

    experts: Int[Array, "n k"]  # most probable first
    shares: Float[Array, "n k"]  # float32, weight of each expert's result


def choose(logits: Float[Array, "n E"], routing: Routing) -> Choices:
    """Choose each token's k most probable experts, softmax over all of them in float32 (Qwen3-MoE)."""
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    shares, experts = jax.lax.top_k(probabilities, routing.per_token)
    if routing.normalize:
        shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
    return Choices(experts, shares)


def choice_counts(logits: Float[Array, "*B E"], routing: Routing) -> Float[Array, "*B E"]:
    """Return 1 for each of the k experts that a token goes to, 0 for the others; without a gradient."""
    experts = logits.shape[-1]
    chosen = choose(jax.lax.stop_gradient(logits).reshape(-1, experts), routing).experts
    return jnp.sum(jax.nn.one_hot(chosen, experts, dtype=jnp.float32), axis=1).reshape(logits.shape)


def expected_load(logits: Float[Array, "*B E"], loads: Float[Array, "E"]) -> Float[Array, "*B"]:
    """Return Σ_e f_e·p_e, p the router's probabilities over all experts: how loaded those are that a token leans to."""
    return jnp.sum(jax.nn.softmax(logits.astype(jnp.float32), axis=-1) * loads, axis=-1)


def run_experts(
    tokens: Float[Array, "n D"],
    choices: Choices,
    weights: ExpertWeights,
    first: int | Int[Array, ""],
    activation: Callable[[Array], Array],
) -> Float[Array, "n D"]:
    """Sum share · down(activation(gate(x)) · up(x)) over those of a token's experts that are held here.

    `weights` hold experts `first`, `first` + 1, …; a token that goes to none of them gets zeros. Rows are moved by
    a permutation and its inverse, so that neither the sum nor its gradient depends on the order of a scatter.
    """
    held, k = weights.gate.shape[0], choices.experts.shape[-1]
    local = choices.experts.reshape(-1) - first
    here = (local >= 0) & (local < held)
    local = jnp.where(here, local, held)  # those of other devices go behind all runs
    order = jnp.argsort(local, stable=True)
    back = jnp.argsort(order)
    runs = jnp.sum(local[:, None] == jnp.arange(held), axis=0, dtype=jnp.int32)
    rows = jnp.repeat(tokens, k, axis=0).at[order].get(unique_indices=True)
    gate, up, down = (w.astype(tokens.dtype) for w in (weights.gate, weights.up, weights.down))
    hidden = activation(jax.lax.ragged_dot(rows, gate, runs)) * jax.lax.ragged_dot(rows, up, runs)
    results = jax.lax.ragged_dot(hidden, down, runs).at[back].get(unique_indices=True)
    # Behind the runs a kernel may leave anything.
    results = jnp.where(here[:, None], results, 0).reshape(-1, k, tokens.shape[-1])
    mixed = jnp.einsum("nkd,nk->nd", results, choices.shares, preferred_element_type=jnp.float32)
    return mixed.astype(tokens.dtype)


def mix_experts(
    x: Float[Array, "B T D"], logits: Float[Array, "B T E"], weights: ExpertWeights, routing: Routing
) -> Float[Array, "B T D"]:
    """Send each token through its experts, all of which are at hand."""
    choices = choose(logits.reshape(-1, logits.shape[-1]), routing)
    return run_experts(x.reshape(-1, x.shape[-1]), choices, weights, 0, routing.activation).reshape(x.shape)

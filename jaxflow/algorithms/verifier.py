"""The outcome verifier: a scalar model that learns whether a whole response is right.

Knows arrays, never a model, and not from which state of the model its numbers were read.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxflow import types
from jaxflow.algorithms.losses import Parts
from jaxflow.algorithms.masked import masked_sum, on_mask


def last_value(values: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B"]:
    """Return each row's value at the last true position of its mask; 0 for a row without one."""
    chex.assert_rank(values, 2)
    chex.assert_type(values, float)
    positions_from_here = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]
    return jnp.sum(on_mask(values, mask & (positions_from_here == 1)), axis=1)


@dataclasses.dataclass(frozen=True)
class VerifierLoss:
    """Binary cross-entropy of one logit per response: L = −⟨y·log σ(s) + (1 − y)·log σ(−s)⟩ over sequences.

    s is the value at the last true position of the mask (Cobbe et al., arXiv:2110.14168, there at every token).
    """

    def __call__(
        self, values: Float[Array, "B T"], batch: types.Judgements, counts: types.Counts
    ) -> tuple[Float[Array, ""], Parts]:
        """Return the loss in nats per sequence and its parts; `verifier/accuracy` is how often s > 0 tells y."""
        judged = jnp.any(batch.response_mask, axis=1)
        logits, labels = last_value(values, batch.response_mask), on_mask(batch.labels, judged)
        # softplus(x) = −log σ(−x), finite in value and slope for every finite x.
        losses = labels * jax.nn.softplus(-logits) + (1 - labels) * jax.nn.softplus(logits)
        loss = masked_sum(losses, judged) / counts.sequences
        agreed = ((logits > 0) == (labels > 0.5)).astype(losses.dtype)
        return loss, {
            "verifier/loss": loss,
            "verifier/accuracy": masked_sum(agreed, judged) / counts.sequences,
        }

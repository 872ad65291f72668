"""Rotary positions: how fast each pair of a head turns, and the turning. Knows no weights and no attention."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxflow.models.decoder_config import DecoderConfig

Angles = tuple[Float[Array, "B T 1 H/2"], Float[Array, "B T 1 H/2"]]
"""Cosine and sine per position and pair, float32."""


def frequencies(head_width: int, theta: float) -> Float[np.ndarray, "H/2"]:
    """Return θ^(−2i/H), radians per position (RoFormer, arXiv 2104.09864)."""
    return (theta ** (-np.arange(0, head_width, 2, dtype=np.float32) / head_width)).astype(np.float32)


def scaled_frequencies(config: DecoderConfig) -> Float[np.ndarray, "H/2"]:
    """Return the frequencies of layers that see all, slowed as `rope_scaling` says.

    linear: f/s for all (arXiv 2306.15595). llama3: with r = f · original positions / 2π turns, f from the high
    factor on, f/s up to the low factor, and between them f·(w + (1 − w)/s), w = (r − low) / (high − low)
    (arXiv 2407.21783).
    """
    plain = frequencies(config.head_width, config.rope_theta)
    if config.rope_scaling == "none":
        return plain
    slowed = plain / np.float32(config.rope_factor)
    if config.rope_scaling == "linear":
        return slowed
    low, high = config.rope_low_frequency_factor, config.rope_high_frequency_factor
    turns = plain * (config.rope_original_positions / (2 * math.pi))
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0).astype(np.float32)
    return kept * plain + (1 - kept) * slowed


def rotary_angles(positions: Int[Array, "B T"], turned: Float[np.ndarray, "H/2"]) -> Angles:
    """Return cosine and sine of position · frequency, float32."""
    angles = positions.astype(jnp.float32)[..., None, None] * turned
    return jnp.cos(angles), jnp.sin(angles)


def rotate(heads: Float[Array, "B T N H"], angles: Angles) -> Float[Array, "B T N H"]:
    """Rotate each pair (i, i + H/2) of a head by its angle: the half-split convention of Llama weights."""
    cosine, sine = angles
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return rotated.astype(heads.dtype)

"""Decoders by name: the shapes of models that are published, for runs and plans that have no weights at hand.

Knows no weights; where there are any their own config.json counts.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping

from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.types import UserError


def _llama2(width: int, layers: int, heads: int, kv_heads: int, mlp_width: int) -> DecoderConfig:
    return DecoderConfig(
        vocabulary_size=32000,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=128,
        mlp_width=mlp_width,
        norm_epsilon=1e-5,
    )


def _llama3(
    width: int, layers: int, heads: int, head_width: int, mlp_width: int, rope_factor: float, tied: bool
) -> DecoderConfig:
    return DecoderConfig(
        vocabulary_size=128256,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=8,
        head_width=head_width,
        mlp_width=mlp_width,
        rope_theta=500000.0,
        norm_epsilon=1e-5,
        tied_embeddings=tied,
        rope_scaling="llama3",
        rope_factor=rope_factor,
        rope_low_frequency_factor=1.0,
        rope_high_frequency_factor=4.0,
        rope_original_positions=8192,
    )


def _qwen25(
    width: int, layers: int, heads: int, kv_heads: int, mlp_width: int, tied: bool, norm_epsilon: float = 1e-6
) -> DecoderConfig:
    return DecoderConfig(
        vocabulary_size=151936 if tied else 152064,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=width // heads,
        mlp_width=mlp_width,
        rope_theta=1e6,
        norm_epsilon=norm_epsilon,
        tied_embeddings=tied,
        attention_bias=True,
    )


def _qwen3(
    width: int, layers: int, heads: int, kv_heads: int, mlp_width: int, tied: bool, experts: int = 0
) -> DecoderConfig:
    return DecoderConfig(
        vocabulary_size=151936,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=128,
        mlp_width=mlp_width,
        rope_theta=1e6,
        norm_epsilon=1e-6,
        tied_embeddings=tied,
        query_key_norm=True,
        experts=experts,
        experts_per_token=8 if experts > 0 else 0,
    )


_GEMMA = DecoderConfig(
    norm_epsilon=1e-6,
    tied_embeddings=True,
    norm_offset=True,
    post_norms=True,
    activation="gelu_tanh",
    embedding_scale=True,
)


def _gemma2(
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_width: int,
    mlp_width: int,
    query_scale: float = 0.0,
) -> DecoderConfig:
    return dataclasses.replace(
        _GEMMA,
        vocabulary_size=256000,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        mlp_width=mlp_width,
        query_scale=query_scale,
        attention_softcap=50.0,
        logit_softcap=30.0,
        sliding_window=4096,
        global_every=2,
    )


def _gemma3(
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_width: int,
    mlp_width: int,
    query_scale: float = 0.0,
) -> DecoderConfig:
    """Return the text model of a size that also reads pictures."""
    return dataclasses.replace(
        _GEMMA,
        vocabulary_size=262208,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        mlp_width=mlp_width,
        rope_theta=1e6,
        query_key_norm=True,
        query_scale=query_scale,
        sliding_window=1024,
        global_every=6,
        local_rope_theta=10000.0,
        rope_scaling="linear",
        rope_factor=8.0,
    )


_MISTRAL = dataclasses.replace(_llama2(4096, 32, 32, 8, 14336), vocabulary_size=32768, rope_theta=1e6)

PRESETS: Mapping[str, DecoderConfig] = {
    "llama-2-7b": _llama2(4096, 32, 32, 32, 11008),
    "llama-2-13b": _llama2(5120, 40, 40, 40, 13824),
    "llama-34b": _llama2(8192, 48, 64, 8, 22016),  # HybridFlow's 34B; the shape of Code Llama
    "llama-2-70b": _llama2(8192, 80, 64, 8, 28672),
    "llama-3.1-8b": _llama3(4096, 32, 32, 128, 14336, 8.0, tied=False),
    "llama-3.1-70b": _llama3(8192, 80, 64, 128, 28672, 8.0, tied=False),
    "llama-3.2-1b": _llama3(2048, 16, 32, 64, 8192, 32.0, tied=True),
    "llama-3.2-3b": _llama3(3072, 28, 24, 128, 8192, 32.0, tied=True),
    "mistral-7b": _MISTRAL,  # version 0.3, without a window
    "mistral-7b-v0.1": dataclasses.replace(
        _MISTRAL, vocabulary_size=32000, rope_theta=10000.0, sliding_window=4096
    ),
    "qwen2.5-0.5b": _qwen25(896, 24, 14, 2, 4864, tied=True),
    "qwen2.5-1.5b": _qwen25(1536, 28, 12, 2, 8960, tied=True),
    "qwen2.5-3b": _qwen25(2048, 36, 16, 2, 11008, tied=True),
    "qwen2.5-7b": _qwen25(3584, 28, 28, 4, 18944, tied=False),
    "qwen2.5-14b": _qwen25(5120, 48, 40, 8, 13824, tied=False, norm_epsilon=1e-5),
    "qwen2.5-32b": _qwen25(5120, 64, 40, 8, 27648, tied=False, norm_epsilon=1e-5),
    "qwen2.5-72b": _qwen25(8192, 80, 64, 8, 29568, tied=False, norm_epsilon=1e-5),
    "qwen3-0.6b": _qwen3(1024, 28, 16, 8, 3072, tied=True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 8, 6144, tied=True),
    "qwen3-4b": _qwen3(2560, 36, 32, 8, 9728, tied=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 8, 12288, tied=False),
    "qwen3-14b": _qwen3(5120, 40, 40, 8, 17408, tied=False),
    "qwen3-32b": _qwen3(5120, 64, 64, 8, 25600, tied=False),
    "qwen3-30b-a3b": _qwen3(2048, 48, 32, 4, 768, tied=False, experts=128),
    "qwen3-235b-a22b": _qwen3(4096, 94, 64, 4, 1536, tied=False, experts=128),
    "gemma-2-2b": _gemma2(2304, 26, 8, 4, 256, 9216),
    "gemma-2-9b": _gemma2(3584, 42, 16, 8, 256, 14336),
    "gemma-2-27b": _gemma2(4608, 46, 32, 16, 128, 36864, query_scale=144.0),
    "gemma-3-1b": dataclasses.replace(
        _gemma3(1152, 26, 4, 1, 256, 6912),
        vocabulary_size=262144,
        sliding_window=512,
        rope_scaling="none",
        rope_factor=1.0,
    ),
    "gemma-3-4b": _gemma3(2560, 34, 8, 4, 256, 10240),
    "gemma-3-12b": _gemma3(3840, 48, 16, 8, 256, 15360),
    "gemma-3-27b": _gemma3(5376, 62, 32, 16, 128, 21504, query_scale=168.0),
}
"""The decoder of each name, its vocabulary the published one."""


def preset(name: str) -> DecoderConfig:
    """Return a preset by its name; UserError with the nearest names where there is none."""
    if name in PRESETS:
        return PRESETS[name]
    alike = difflib.get_close_matches(name.lower(), PRESETS, n=3, cutoff=0.5)
    hint = f"nearest: {', '.join(alike)}" if alike else f"these are: {', '.join(PRESETS)}"
    raise UserError(f"no preset is called {name!r}; {hint}")

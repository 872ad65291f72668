"""What experiments/generation.py measures: the models and their loads, both libraries, and the limit of the machine.

A long tail has the proportions of training on GSM8K with the settings that its recipes use: prompts of about 100
tokens, answers of 250 on average, a limit of 1,024, so 1 : 2.5 : 10, scaled to what a CPU can do in minutes. Lengths
fall off exponentially (most are below the mean, 2 % at the limit); answers there are spread less widely, so this is
the harder case. On a GPU prompts are as long as the limit. Requests are a multiple of every batch, so many that the
last slots to run dry are a part of the run and not the run. transformers takes batch after batch and gains nothing
from the number: it gets fewer requests of the same distribution, whole batches, so that it is done in minutes.

Knows no table and no clock.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
import transformers

from jaxflow.engine.generate import NO_EFFORT, Generator
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sampling import untruncated
from jaxflow.engine.sharding import generation_layout, training_layout
from jaxflow.engine.state import new_weights
from jaxflow.engine.transition import transition
from jaxflow.models.config_json import write_config
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.presets import preset
from jaxflow.models.transformer import LanguageModel, describe
from jaxflow.models.weights_out import entries_of, write_checkpoint
from jaxflow.types import PromptRow, Prompts

MEAN_SHARE = 0.25  # of the limit: the mean length before the longest are cut to the limit


@dataclasses.dataclass(frozen=True)
class Load:
    """One model and what it is asked."""

    model: str
    config: DecoderConfig
    dtype: str
    batches: Mapping[int, int]  # rows of a batch, and how many batches of the long tail transformers gets
    prompt_tokens: int
    response_tokens: int  # the limit
    tail_requests: int  # of the long tail


def _decoder(width: int, layers: int, heads: int, kv_heads: int, mlp_width: int, vocabulary: int):
    return DecoderConfig(
        vocabulary_size=vocabulary,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=width // heads,
        mlp_width=mlp_width,
        tied_embeddings=True,
    )


ON_CPU = (
    Load("1M", _decoder(128, 4, 4, 2, 512, 512), "float32", {16: 8, 64: 4}, 24, 232, 512),
    Load("25M", _decoder(512, 6, 8, 4, 1792, 8192), "float32", {16: 8, 64: 4}, 24, 232, 512),
    Load("100M", _decoder(768, 12, 12, 4, 2048, 32000), "float32", {16: 6, 64: 2}, 12, 116, 256),
)
# Presets compute in float32, in which no kernel of a GPU attends.
ON_GPU = tuple(
    Load(
        name,
        dataclasses.replace(preset(name), compute_dtype="bfloat16"),
        "bfloat16",
        {64: 4, 128: 2, 256: 2},
        512,
        512,
        1024,
    )
    for name in ("qwen2.5-1.5b", "qwen2.5-7b")
)
QUICK = (Load("quick", _decoder(32, 2, 4, 2, 64, 64), "float32", {4: 2}, 8, 12, 16),)


def tail_lengths(requests: int, limit: int, seed: int) -> np.ndarray:
    """Return lengths that fall off exponentially: the quantiles of the distribution, cut to the limit, shuffled."""
    quantiles = (np.arange(requests) + 0.5) / requests
    lengths = np.minimum(np.ceil(-MEAN_SHARE * limit * np.log1p(-quantiles)), limit).astype(np.int32)
    lengths[-1] = limit
    return np.random.default_rng(seed).permutation(lengths)


class Ours:
    """jaxflow's generator with its weights."""

    def __init__(self, load: Load, folder: pathlib.Path):
        """Draw weights, write them to `folder` for the other side, and bring them to the generation layout."""
        self._load, mesh = load, make_mesh(1, 1, 1, 1, jax.devices()[:1])
        model = describe(load.config, LanguageModel)
        training, generation = training_layout(mesh, load.config), generation_layout(mesh, load.config)
        params = new_weights(model, training, 0, 0)
        positions = load.prompt_tokens + load.response_tokens
        config = write_config(load.config, "tokens", load.dtype, positions)
        write_checkpoint(folder, load.config, "tokens", entries_of(params, load.dtype), load.dtype, config)
        shardings = generation.weights(model.names)
        moved, _ = transition(params, shardings, load.dtype, release=True)
        self._generators = {
            batch: Generator(model, generation, load.dtype, sequences_per_device=batch)
            for batch in load.batches
        }
        self._weights = next(iter(self._generators.values())).unstacked(moved, keep={})
        self._sampling = untruncated(load.response_tokens)
        self.effort = NO_EFFORT  # of the last run

    def run(self, batch: int, tokens: np.ndarray, lengths: np.ndarray) -> int:
        """Generate a response of each length and return how many tokens that were."""
        rows = np.arange(len(tokens), dtype=np.int32)
        row = PromptRow("", (), "", "random", {})
        widths = np.full(len(tokens), tokens.shape[1], np.int32)
        prompts = Prompts(tokens, widths, rows, np.full_like(rows, -1), rows, 0, (row,) * len(rows))
        rollout = self._generators[batch].generate(
            self._weights, prompts, self._sampling, 0, 0, 0, policy_updates=0, limits=lengths
        )
        self.effort = self._generators[batch].take_effort()
        return int(rollout.response_mask.sum())


class Theirs:
    """transformers' generate, eager or compiled, with the weights that jaxflow wrote."""

    def __init__(self, load: Load, folder: pathlib.Path, device: str):
        self._load = load
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, load.dtype), local_files_only=True
        )
        self._model = self._model.to("cuda" if device == "gpu" else "cpu").eval()
        generation = self._model.generation_config
        generation.eos_token_id, generation.pad_token_id = None, 0
        self._plain = self._model.forward
        self._compiled = torch.compile(self._plain)

    def run(self, batch: int, tokens: np.ndarray, lengths: np.ndarray, compiled: bool) -> int:
        """Generate batch after batch, each to its longest length; return the tokens that were asked for."""
        model = self._model
        model.forward = self._compiled if compiled else self._plain
        for start in range(0, len(tokens), batch):
            given = torch.tensor(tokens[start : start + batch].astype(np.int64), device=model.device)
            longest = int(lengths[start : start + batch].max())
            cache: dict[str, Any] = {}
            if compiled:
                positions = self._load.prompt_tokens + self._load.response_tokens
                cache = {
                    "past_key_values": transformers.StaticCache(config=model.config, max_cache_len=positions)
                }
            answer = model.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=longest,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                **cache,
            )
            assert answer.shape[1] == tokens.shape[1] + longest
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return int(lengths.sum())


def limit(
    load: Load, batch: int, lengths: np.ndarray, flops_rate: float, read_rate: float
) -> tuple[float, str]:
    """Return the seconds that cannot be undercut, and what takes them.

    Arithmetic: 2·(weights that multiply) per token, the vocabulary's for drawn tokens alone, and 4·N·H per layer and
    position attended to. Bytes: each prefill and each step reads the weights once, and a token its keys and values.
    """
    config, prompt = load.config, load.prompt_tokens
    table = config.padded_vocabulary_size * config.width
    body = config.parameter_count - table * (1 if config.tied_embeddings else 2)
    drawn = float(lengths.sum())
    # Token n of a response attends to the prompt and the n - 1 tokens before it, and itself.
    attended = float((lengths * prompt + lengths * (lengths + 1) / 2).sum())
    attended_in_prompts = len(lengths) * prompt * prompt / 2
    heads = 4.0 * config.layers * config.heads * config.head_width
    flops = 2.0 * body * (len(lengths) * prompt + drawn) + 2.0 * table * drawn
    flops += heads * (attended + attended_in_prompts)
    itemsize = 4 if load.dtype == "float32" else 2
    steps = math.ceil(drawn / batch) + math.ceil(len(lengths) / batch)
    cached = 2.0 * config.layers * config.kv_heads * config.head_width * attended
    read = itemsize * (steps * (body + table) + cached)
    arithmetic, reading = flops / flops_rate, read / read_rate
    return max(arithmetic, reading), "arithmetic" if arithmetic >= reading else "bytes"

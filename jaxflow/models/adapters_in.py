"""Adapters of the peft library, read and merged into the weights that they stand beside.

Knows no mesh; weights are given as they lie on this host.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxflow.models.adapters import TARGETS
from jaxflow.models.adapters_out import CONFIG_FILE, PREFIX
from jaxflow.models.tensor_files import open_directory, read_json
from jaxflow.models.weight_names import Weight
from jaxflow.types import UserError

# What an adapter may be beside a pair of matrices, and the values that say it is not.
_PLAIN: Mapping[str, tuple[object, ...]] = {
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "use_dora": (False,),
    "lora_bias": (False,),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
}


@dataclasses.dataclass(frozen=True)
class AdapterFile:
    """An adapter of peft's, opened."""

    directory: Path
    scale: float  # of B·A
    # Name of the adapted tensor -> A [r, in] and B [out, r]
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]


def open_adapter(directory: Path, weights: Sequence[Weight]) -> AdapterFile:
    """Open an adapter beside these weights.

    Raises UserError where it is another kind of adapter, or its tensors do not fit; all of them listed.
    """
    file = directory / CONFIG_FILE
    tree = read_json(file)
    rank, alpha = tree.get("r"), tree.get("lora_alpha")
    problems = [
        f"{key} is {tree[key]!r}" for key, plain in _PLAIN.items() if key in tree and tree[key] not in plain
    ]
    problems += [f"peft_type is {tree.get('peft_type')!r}"] if tree.get("peft_type") != "LORA" else []
    if not (isinstance(rank, int) and rank >= 1 and isinstance(alpha, int | float)):
        problems.append(f"r is {rank!r} and lora_alpha {alpha!r}")
    if problems:
        raise UserError(f"{file}: not an adapter that jaxflow computes: {'; '.join(problems)}")
    tensors = open_directory(directory)
    own = {name: weight for weight in _adaptable(weights) for _, name in weight.tensors()}
    found: dict[str, dict[str, np.ndarray]] = {}
    strange = []
    for name, tensor in tensors.items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", name)
        if match is None or f"{match[1]}.weight" not in own:
            strange.append(f"{name} has no place in the model")
            continue
        beside = f"{match[1]}.weight"
        out, wide = own[beside].tensor_shape
        expected = (rank, wide) if match[2] == "A" else (out, rank)
        if tensor.shape != expected:
            strange.append(f"{tensor.file}: {name} is {list(tensor.shape)}, expected {list(expected)}")
            continue
        found.setdefault(beside, {})[match[2]] = np.asarray(tensor.mapped(), np.float32)
    strange += [f"{name} has one half of an adapter alone" for name, pair in found.items() if len(pair) != 2]
    if strange:
        raise UserError(f"{directory}: its tensors are not the model's:\n  " + "\n  ".join(strange[:10]))
    scale = alpha / (math.sqrt(rank) if tree.get("use_rslora") is True else rank)
    return AdapterFile(directory, scale, {name: (pair["A"], pair["B"]) for name, pair in found.items()})


def _adaptable(weights: Sequence[Weight]) -> list[Weight]:
    return [weight for weight in weights if weight.path[-1] in TARGETS and len(weight.stack) == 1]


def merge_adapter(
    adapter: AdapterFile, params: Mapping[str, Any], weights: Sequence[Weight]
) -> dict[str, Any]:
    """Return weights that compute what these do with the adapter: W + scale·B·A, summed in float32."""
    merged = _copied(params)
    for weight in weights:
        beside = [(index, adapter.pairs[name]) for index, name in weight.tensors() if name in adapter.pairs]
        if not beside:
            continue
        place: Any = merged
        for key in weight.path[:-1]:
            place = place[key]
        whole = np.array(place[weight.path[-1]])
        everywhere = (slice(None),) * (whole.ndim - len(weight.stack))
        for index, (a, b) in beside:
            change = np.zeros_like(whole[index])
            weight.cut(b @ a * np.float32(adapter.scale), everywhere, change)
            whole[index] += change
        place[weight.path[-1]] = jnp.asarray(whole)
    return merged


def _copied(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in tree.items()}

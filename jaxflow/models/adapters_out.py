"""Adapters into a directory that the peft library loads: adapter_config.json and adapter_model.safetensors.

Knows neither mesh nor checkpoints of our own: where an adapter's entries come from is a function handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from jaxflow.models.adapters import INPUTS, Adapters
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.families import SCALAR
from jaxflow.models.tensor_files import DTYPES, NewTensor, write_tensors
from jaxflow.models.weight_names import SCALAR_HEAD, Weight, weights_of
from jaxflow.models.weights_out import STORED_DTYPES, new_folder, write_json
from jaxflow.types import UserError

Halves = Callable[[Weight, tuple[int, ...]], tuple[np.ndarray, np.ndarray]]
"""(adapted weight, its layer) -> (reduce [*in, r], expand [r, *out]) beside it, in the weight's own layout."""

CONFIG_FILE = "adapter_config.json"
PREFIX = "base_model.model."  # before every name: peft's wrapper around the model


def write_adapters(
    out: Path,
    decoder: DecoderConfig,
    head: str,
    adapters: Adapters,
    halves: Halves,
    scalar_head: np.ndarray | None,
    dtype: str,
    base: str,
) -> int:
    """Write adapters for peft, and return the bytes of their tensors.

    `scalar_head` [D] is a critic's, trained whole beside them; `base` is where the weights are that they stand
    beside. Padding heads are left out.

    Raises:
        UserError: `out` exists already, `dtype` is none that is written, or the file system refused.
    """
    if dtype not in STORED_DTYPES:
        raise UserError(f"dtype {dtype!r}: weights are written as {' or '.join(STORED_DTYPES)}")
    stored = STORED_DTYPES[dtype]
    sources: dict[str, Callable[[], np.ndarray]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for weight, index, name in _adapted(decoder, head, adapters):
        rows, columns = weight.tensor_shape
        module = PREFIX + name.removesuffix(".weight")
        for half, shape in ((0, (adapters.rank, columns)), (1, (rows, adapters.rank))):
            key = f"{module}.lora_{'AB'[half]}.weight"
            shapes[key] = shape
            sources[key] = lambda weight=weight, index=index, half=half: _turned(
                weight, halves(weight, index)
            )[half]
    if scalar_head is not None:
        shapes[PREFIX + SCALAR_HEAD] = (1, decoder.width)
        sources[PREFIX + SCALAR_HEAD] = lambda: scalar_head[None]
    tensors = [NewTensor(name, stored, shape) for name, shape in shapes.items()]

    def read(name: str) -> np.ndarray:
        return np.ascontiguousarray(sources[name]().astype(DTYPES[stored], copy=False))

    with new_folder(out) as folder:
        write_tensors(folder / "adapter_model.safetensors", tensors, read)
        write_json(folder / CONFIG_FILE, _config(decoder, head, adapters, base))
    return sum(tensor.bytes for tensor in tensors)


def _adapted(
    decoder: DecoderConfig, head: str, adapters: Adapters
) -> Iterator[tuple[Weight, tuple[int, ...], str]]:
    for weight in weights_of(decoder, head):
        if weight.path[-1] in adapters.targets:
            for index, name in weight.tensors():
                yield weight, index, name


def _turned(weight: Weight, halves: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return lora_A [r, in] and lora_B [out, r], padding left out."""
    reduce, expand = halves
    inputs = INPUTS.get(weight.path[-1], 1)
    if weight.padded is not None:
        real = np.flatnonzero(np.asarray(weight.places) >= 0)
        if weight.padded < inputs:
            reduce = np.take(reduce, real, axis=weight.padded)
        else:
            expand = np.take(expand, real, axis=1 + weight.padded - inputs)
    rank = expand.shape[0]
    return reduce.reshape(-1, rank).T, expand.reshape(rank, -1).T


def _config(decoder: DecoderConfig, head: str, adapters: Adapters, base: str) -> dict[str, object]:
    modules = {name.rsplit(".", 2)[-2] for _, _, name in _adapted(decoder, head, adapters)}
    scalar = head == SCALAR
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if scalar else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(modules),
        "modules_to_save": [SCALAR_HEAD.removesuffix(".weight")] if scalar else None,
    }

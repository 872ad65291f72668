"""What `python -m jaxflow.convert` does, as functions of paths; what there is to say is returned as lines.

Knows no command line. Whatever is written is written whole or not at all, and nothing is overwritten.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from jaxflow.convert.adapted import Adapted
from jaxflow.convert.stored import Stored, any_entries, find_source, open_stored, own_entries, role_of
from jaxflow.data.tokenizer import HuggingFaceTokenizer
from jaxflow.engine.adapter_files import holds_adapters
from jaxflow.engine.state import save_weights
from jaxflow.models.adapters_in import merge_adapter, open_adapter
from jaxflow.models.adapters_out import write_adapters
from jaxflow.models.config_json import rewrite_config, write_config
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.description import CONFIG_FILE, describe_directory, is_checkpoint
from jaxflow.models.families import SCALAR, TOKENS
from jaxflow.models.tensor_files import read_json
from jaxflow.models.transformer import LanguageModel, ScalarModel, describe
from jaxflow.models.weight_names import parameter_count, weights_of
from jaxflow.models.weights_in import open_checkpoint, read_weights
from jaxflow.models.weights_out import new_folder, write_checkpoint
from jaxflow.types import UserError

_KINDS = {TOKENS: LanguageModel, SCALAR: ScalarModel}


def import_checkpoint(source: Path, out: Path, adapter: Path | None) -> Iterator[str]:
    """Write a Hugging Face checkpoint, a peft adapter merged in if there is one, as float32 weights of jaxflow's."""
    described = open_checkpoint(source).described
    model = describe(described.decoder, _KINDS[described.head])
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    weights = weights_of(described.decoder, described.head)
    beside = open_adapter(adapter, weights) if adapter is not None else None
    shardings = jax.tree.map(lambda _: here, model.shapes)
    with new_folder(out) as folder:
        params, report = read_weights(source, model, shardings, tuple(model.shapes))
        if beside is not None:
            params = merge_adapter(beside, params, weights)
            yield f"{adapter}: adapters of {len(beside.pairs)} tensors, merged"
        save_weights(folder, model, params)
    yield f"read {report.bytes_read:,} bytes, {report.largest_buffer_bytes:,} at once beside the weights"
    yield from report.notes
    yield f"{out}: {parameter_count(described.decoder, described.head):,} parameters, float32"


def export_weights(
    source: Path,
    out: Path,
    role: str,
    step: int | None,
    dtype: str,
    tokenizer: Path | None,
    like: Path | None,
    most_positions: int,
    most_bytes_per_file: int,
) -> Iterator[str]:
    """Write weights of a run or a folder as a Hugging Face checkpoint, a tensor at a time; adapters are merged."""
    found = find_source(source, role, step)
    if is_checkpoint(found.weights):
        raise UserError(f"{found.weights}: is a Hugging Face checkpoint already; copy it")
    if holds_adapters(found.weights):
        adapted = Adapted(found.weights)
        entries = adapted.merged(any_entries(adapted.base))
        yield f"{found.weights}: adapters of rank {adapted.note.adapters.rank}, merged into {adapted.base}"
    else:
        entries, _ = own_entries(found.weights)
    description = describe_directory(found.weights)
    decoder, head = description.decoder, description.head
    if tokenizer is None:
        tokenizer = found.tokenizer
    like = found.like if like is None else like
    config = None
    if like is not None:
        file = like / CONFIG_FILE
        config = rewrite_config(read_json(file), str(file), decoder, head, dtype)
        if config is None:
            yield f"{file} is another decoder's: config.json is written anew"
    if config is None:
        config = write_config(decoder, head, dtype, most_positions)
        if tokenizer is not None:
            config |= _special_tokens(tokenizer)
    size = write_checkpoint(out, decoder, head, entries, dtype, config, tokenizer, most_bytes_per_file)
    yield f"{found.weights} → {out}: {config['architectures'][0]}, {size:,} bytes in {dtype}"
    if tokenizer is None:
        yield "no tokenizer was copied: the run has its task's own; --tokenizer names another"


def export_adapters(source: Path, out: Path, role: str, step: int | None, dtype: str) -> Iterator[str]:
    """Write the adapters of a run's role as a directory that the peft library loads."""
    found = find_source(source, role, step)
    if not holds_adapters(found.weights):
        raise UserError(f"{found.weights}: holds no adapters; export it without --adapter")
    adapted = Adapted(found.weights)
    description, adapters = adapted.description, adapted.note.adapters
    size = write_adapters(
        out,
        description.decoder,
        description.head,
        adapters,
        adapted.halves,
        adapted.scalar_head(),
        dtype,
        str(adapted.base),
    )
    yield f"{found.weights} → {out}: adapters of rank {adapters.rank}, {size:,} bytes in {dtype}"
    if not is_checkpoint(adapted.base):
        yield (
            f"their base {adapted.base} is jaxflow's: export it too, and set base_model_name_or_path in"
            f" {out / 'adapter_config.json'} to where it goes"
        )


def _special_tokens(directory: Path) -> dict[str, object]:
    tokenizer = HuggingFaceTokenizer(directory)
    ends = list(tokenizer.end_ids)
    return {"eos_token_id": ends[0] if len(ends) == 1 else ends, "pad_token_id": tokenizer.pad_id}


def inspect_weights(directory: Path) -> Iterator[str]:
    """Say what a directory of weights of either kind holds."""
    stored = open_stored(directory)
    said = stored.description
    unsaid = vars(DecoderConfig())
    ends = {TOKENS: "a distribution over tokens", SCALAR: "one number"}[said.head]
    yield f"kind        {f'Hugging Face, {said.family}' if said.family else 'jaxflow'}, ends in {ends}"
    yield f"parameters  {parameter_count(said.decoder, said.head):,}"
    for key, value in vars(said.decoder).items():
        if value != unsaid[key] or key in ("width", "layers", "heads", "kv_heads", "head_width", "mlp_width"):
            yield f"  {key} = {value}"
    numbers = collections.Counter[str]()
    files = collections.Counter[str]()
    for tensor in stored.tensors.values():
        numbers[tensor.dtype] += math.prod(tensor.shape)
        files[tensor.file] += 1
    yield "dtypes      " + ", ".join(f"{dtype} {count:,}" for dtype, count in sorted(numbers.items()))
    for file, count in sorted(files.items()):
        if file:
            yield f"file        {file}: {count} tensors, {(directory / file).stat().st_size:,} bytes"
    yield f"tensors     {len(stored.tensors)}"
    for role, names in _by_role(stored).items():
        first = stored.tensors[names[0]]
        yield f"  {len(names):5} × {role} {first.dtype}{list(first.shape)}"


def _by_role(stored: Stored) -> dict[str, list[str]]:
    roles: dict[str, list[str]] = {}
    for name in stored.tensors:
        roles.setdefault(role_of(name), []).append(name)
    return roles


@dataclasses.dataclass
class Difference:
    """What two sets of weights differ by in one role."""

    role: str
    tensors: int = 0
    missing: int = 0  # tensors that only one side has, or that have two shapes
    absolute: float = 0.0  # the largest |a − b|; not a number where one side is none
    largest: float = 0.0  # the largest |a|

    @property
    def relative(self) -> float:
        """Return the largest difference over the largest number."""
        return self.absolute / self.largest if self.largest > 0 else self.absolute


def compare_weights(one: Path, other: Path) -> list[Difference]:
    """Compare two directories of weights of either kind, a tensor at a time, role by role."""
    left, right = open_stored(one), open_stored(other)
    differences: dict[str, Difference] = {}
    for name in dict.fromkeys([*left.tensors, *right.tensors]):
        found = differences.setdefault(role_of(name), Difference(role_of(name)))
        found.tensors += 1
        in_both = name in left.tensors and name in right.tensors
        if not in_both or left.tensors[name].shape != right.tensors[name].shape:
            found.missing += 1
            continue
        a, b = (np.asarray(side.read(name), np.float32) for side in (left, right))
        found.absolute = float(np.maximum(found.absolute, np.abs(a - b).max()))
        found.largest = max(found.largest, float(np.abs(a).max()))
    return list(differences.values())

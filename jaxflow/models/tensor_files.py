"""The safetensors format: headers read and proved, tensors mapped, directories of files opened, files written.

Knows no model: a tensor is a name, a dtype and a shape. Nothing is unpickled, executed or downloaded, and every
statement of a header is checked against the file before a byte of data is looked at
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxflow.types import UserError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
DTYPES: Mapping[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""The dtypes that weights may have, by their name in the format."""

# Of the dtypes that weights may not have only the size is of interest: it proves the offsets of the others.
_ITEM_BYTES = {name: dtype.itemsize for name, dtype in DTYPES.items()} | {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("I32", "U32"), 4),
    **dict.fromkeys(("I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
# Bytes. A header is read whole; the largest that are published name some ten thousand tensors in 5 MB.
_LARGEST_HEADER = 2**25
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies."""

    name: str
    file: Path
    dtype: str  # as the format names it
    shape: tuple[int, ...]
    start: int  # byte of the file

    @property
    def bytes(self) -> int:
        """Count the tensor's bytes."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]

    def mapped(self) -> np.ndarray:
        """Return the tensor as a view of the file: what is copied out of it is all that is read.

        Raises UserError where its dtype is none that weights have.
        """
        if self.dtype not in DTYPES:
            raise UserError(
                f"{self.file}: tensor {self.name} is {self.dtype}; weights are read as {', '.join(DTYPES)}"
            )
        if math.prod(self.shape) == 0:
            raise UserError(f"{self.file}: tensor {self.name} of shape {list(self.shape)} is empty")
        try:
            return np.memmap(self.file, DTYPES[self.dtype], "r", self.start, self.shape)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.file}: tensor {self.name} could not be read: {error}") from error


@dataclasses.dataclass(frozen=True)
class NewTensor:
    """A tensor to be written."""

    name: str
    dtype: str  # as the format names it
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Count the tensor's bytes."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


def read_header(file: Path) -> list[StoredTensor]:
    """Return the tensors of one safetensors file, in the order of their data.

    Raises UserError, naming file and tensor, where the file is cut off or its header cannot be true: absurdly long,
    no JSON, unknown dtypes, shapes that do not fit their offsets, gaps or overlaps between tensors.
    """
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > min(_LARGEST_HEADER, size - 8):
                raise UserError(
                    f"{file}: its header is said to have {length} bytes, the file has {size}: it is cut off, or"
                    " no safetensors file"
                )
            text = opened.read(length)
    except OSError as error:
        raise UserError(f"{file}: could not be read: {error.strerror}") from error
    try:
        header = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise UserError(f"{file}: its header is no JSON object")
    data = 8 + length
    tensors = [_tensor(file, name, entry, data) for name, entry in header.items() if name != "__metadata__"]
    tensors.sort(key=lambda tensor: tensor.start)
    end = data
    for tensor in tensors:
        if tensor.start != end:
            raise UserError(
                f"{file}: tensor {tensor.name} begins at byte {tensor.start - data} of the data, the one before"
                f" it ends at {end - data}: its header is inconsistent"
            )
        end += tensor.bytes
    if end != size:
        raise UserError(
            f"{file}: its tensors end at byte {end}, the file has {size}: it is cut off or damaged; download or"
            " copy it again"
        )
    return tensors


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _tensor(file: Path, name: str, entry: object, data: int) -> StoredTensor:
    def whole(numbers: object) -> bool:
        return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise UserError(f"{file}: tensor {name}: its header entry must hold dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise UserError(f"{file}: tensor {name} has the unknown dtype {dtype!r}")
    if not whole(shape) or not whole(offsets) or len(offsets) != 2:
        raise UserError(f"{file}: tensor {name}: shape {shape!r} or data_offsets {offsets!r} cannot be")
    tensor = StoredTensor(name, file, dtype, tuple(shape), data + offsets[0])
    if offsets[1] - offsets[0] != tensor.bytes:
        raise UserError(
            f"{file}: tensor {name}, {dtype}{shape}, needs {tensor.bytes} bytes, its data_offsets {offsets} hold"
            f" {offsets[1] - offsets[0]}: its header is inconsistent"
        )
    return tensor


def has_tensors(directory: Path) -> bool:
    """Return whether a directory holds safetensors files."""
    return any(directory.glob("*.safetensors"))


def open_directory(directory: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a directory by name: of its index, or of its one file.

    Raises UserError where there are none, files or tensors are missing, or any header cannot be true.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    index = directory / INDEX_FILE
    if index.is_file():
        return _indexed(index)
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        pickled = sorted(file.name for file in directory.iterdir() if file.suffix in _PICKLED)
        mend = (
            f"; {pickled[0]} is a pickle, which can run any program and is never opened: save the model again"
            " with safe_serialization=True where you trust it"
            if pickled
            else ""
        )
        raise UserError(f"{directory}: holds no .safetensors file{mend}")
    if len(files) > 1:
        raise UserError(
            f"{directory}: holds {len(files)} .safetensors files and no {INDEX_FILE} that says what is where"
        )
    return {tensor.name: tensor for tensor in read_header(files[0])}


def _indexed(index: Path) -> dict[str, StoredTensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"{index}: weight_map must map names of tensors to names of files")
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(set(places.values())):
        file = index.parent / name
        # A name with a folder in it could lead anywhere on this machine.
        if Path(name).name != name or file.suffix != ".safetensors":
            raise UserError(f"{index}: {name!r} is not the name of a .safetensors file beside it")
        if not file.is_file():
            raise UserError(f"{index}: the file {name} is missing; download or copy it again")
        held = {tensor.name: tensor for tensor in read_header(file)}
        listed = {tensor for tensor, place in places.items() if place == name}
        if set(held) != listed:
            raise UserError(
                f"{index}: does not agree with {name}: {_shown(listed - set(held), 'missing in the file')}"
                f"{_shown(set(held) - listed, 'not in the index')}"
            )
        tensors |= held
    return tensors


def _shown(names: Iterable[str], what: str) -> str:
    ordered = sorted(names)
    return f"[{what}: {', '.join(ordered[:5])}{' …' if len(ordered) > 5 else ''}] " if ordered else ""


def read_json(file: Path) -> dict[str, object]:
    """Return the object that a JSON file holds; UserError, naming the file, where it holds none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: could not be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file}: holds no JSON object")
    return value


def in_files(tensors: Sequence[NewTensor], most_bytes: int) -> dict[str, list[NewTensor]]:
    """Share tensors out over files of at most this many bytes (or one tensor), in their order."""
    groups: list[list[NewTensor]] = []
    for tensor in tensors:
        if not groups or sum(held.bytes for held in groups[-1]) + tensor.bytes > most_bytes:
            groups.append([])
        groups[-1].append(tensor)
    if len(groups) == 1:
        return {SINGLE_FILE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def index_of(files: Mapping[str, Sequence[NewTensor]]) -> dict[str, object]:
    """Return what the index of these files says."""
    total = sum(tensor.bytes for held in files.values() for tensor in held)
    places = {tensor.name: file for file, held in files.items() for tensor in held}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}


def write_tensors(file: Path, tensors: Sequence[NewTensor], read: Callable[[str], np.ndarray]) -> None:
    """Write one safetensors file, a tensor at a time as `read` yields it, flushed to the disk.

    Raises UserError where the file system refuses, ValueError where an array is not what was announced.
    """
    # Readers of PyTorch's world ask for the format's name.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.bytes],
        }
        end += tensor.bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    try:
        with file.open("wb") as opened:
            opened.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors:
                array = np.ascontiguousarray(read(tensor.name))
                if array.dtype != DTYPES[tensor.dtype] or array.shape != tensor.shape:
                    raise ValueError(f"{tensor.name}: {array.dtype}{array.shape} is not what was announced")
                opened.write(array.view(np.uint8).data)
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        raise UserError(f"{file}: could not be written: {error.strerror}") from error

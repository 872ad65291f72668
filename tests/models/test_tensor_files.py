"""Safetensors files are read as the format says, and what cannot be true is refused by file and tensor."""

import json
import os
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxflow.models.tensor_files import (
    INDEX_FILE,
    NewTensor,
    in_files,
    index_of,
    open_directory,
    read_header,
    write_tensors,
)
from jaxflow.types import UserError

GENERATOR = np.random.default_rng(0)
ARRAYS = {
    "wide": GENERATOR.normal(size=(3, 4)).astype(np.float32),
    "half": GENERATOR.normal(size=(5,)).astype(np.float16),
    "brain": GENERATOR.normal(size=(2, 2, 3)).astype(ml_dtypes.bfloat16),
}
NAMES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16"}
NEW = [NewTensor(name, NAMES[array.dtype], array.shape) for name, array in ARRAYS.items()]


def same(left, right):
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def write(directory, header, data=b"", length=None):
    """Write a file with this header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    (directory / "model.safetensors").write_bytes(size.to_bytes(8, "little") + text + data)
    return directory / "model.safetensors"


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_files_of_the_safetensors_library_are_read_bit_for_bit(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tensors = open_directory(tmp_path)
    assert set(tensors) == set(ARRAYS)
    assert all(same(np.asarray(tensors[name].mapped()), array) for name, array in ARRAYS.items())


def test_the_safetensors_library_reads_written_files_bit_for_bit(tmp_path):
    write_tensors(tmp_path / "x.safetensors", NEW, ARRAYS.__getitem__)
    back = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert list(ARRAYS) == [tensor.name for tensor in read_header(tmp_path / "x.safetensors")]
    assert all(same(back[name], array) for name, array in ARRAYS.items())


def test_a_sharded_directory_is_its_index_and_every_tensor_once(tmp_path):
    files = in_files(NEW, most_bytes=50)
    assert list(files) == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for file, held in files.items():
        write_tensors(tmp_path / file, held, ARRAYS.__getitem__)
    index = index_of(files)
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in ARRAYS.values())
    tensors = open_directory(tmp_path)
    assert all(same(np.asarray(tensors[name].mapped()), array) for name, array in ARRAYS.items())
    (tmp_path / next(iter(files))).unlink()
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors is missing"):
        open_directory(tmp_path)


def test_an_array_that_is_not_what_was_announced_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="wide"):
        write_tensors(tmp_path / "x.safetensors", NEW[:1], lambda _: np.zeros((4, 3), np.float32))


@pytest.mark.parametrize(
    ("header", "data", "length", "message"),
    [
        pytest.param({"a": entry()}, b"\0" * 7, None, "cut off or damaged", id="truncated data"),
        pytest.param({"a": entry()}, b"\0" * 9, None, "cut off or damaged", id="more data than tensors"),
        pytest.param({"a": entry()}, b"\0" * 8, 2**62, f"{2**62} bytes, the file has", id="absurd length"),
        pytest.param({"a": entry()}, b"", 200, "cut off", id="truncated header"),
        pytest.param(b"{nonsense", b"", None, "not JSON", id="no JSON"),
        pytest.param(b"[" * 100_000, b"", None, "not JSON", id="nested without end"),
        pytest.param(b"[]", b"", None, "no JSON object", id="no object"),
        pytest.param(
            b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2),
            b"\0" * 8,
            None,
            "twice",
            id="twice",
        ),
        pytest.param({"a": entry(shape=(3,))}, b"\0" * 8, None, "tensor a.*needs 12 bytes", id="shape"),
        pytest.param({"a": entry(offsets=(8, 0))}, b"\0" * 8, None, "tensor a.*hold -8", id="backwards"),
        pytest.param({"a": entry(offsets=(-8, 0))}, b"\0" * 8, None, "tensor a.*cannot be", id="negative"),
        pytest.param({"a": entry(shape=(-2,))}, b"\0" * 8, None, "tensor a.*cannot be", id="negative shape"),
        pytest.param({"a": entry(shape=(2.0,))}, b"\0" * 8, None, "tensor a.*cannot be", id="fraction"),
        pytest.param({"a": entry(dtype="F33")}, b"\0" * 8, None, "unknown dtype 'F33'", id="unknown dtype"),
        pytest.param({"a": {"dtype": "F32"}}, b"", None, "tensor a.*must hold", id="incomplete entry"),
        pytest.param({"a": "b"}, b"", None, "tensor a.*must hold", id="no entry"),
        pytest.param(
            {"a": entry(), "b": entry(offsets=(4, 12))},
            b"\0" * 12,
            None,
            "tensor b begins at byte 4",
            id="overlap",
        ),
        pytest.param(
            {"a": entry(), "b": entry(offsets=(9, 17))},
            b"\0" * 17,
            None,
            "tensor b begins at byte 9",
            id="gap",
        ),
    ],
)
def test_a_header_that_cannot_be_true_is_refused_by_file_and_tensor(tmp_path, header, data, length, message):
    file = write(tmp_path, header, data, length)
    with pytest.raises(UserError, match=message) as error:
        open_directory(tmp_path)
    assert str(file) in str(error.value)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="the file has 0"):
        open_directory(tmp_path)


def test_integers_are_known_and_are_no_weights(tmp_path):
    write(tmp_path, {"a": entry("I64", (1,))}, b"\0" * 8)
    with pytest.raises(UserError, match="tensor a is I64"):
        open_directory(tmp_path)["a"].mapped()


def test_a_directory_of_pickles_is_refused_and_nothing_in_it_runs(tmp_path):
    bomb = f"cos\nsystem\n(S'touch {tmp_path / 'ran'}'\ntR."  # what a pickle that runs a program looks like
    (tmp_path / "pytorch_model.bin").write_text(bomb)
    with pytest.raises(UserError, match=r"pytorch_model.bin is a pickle.*never opened.*safe_serialization"):
        open_directory(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../model.safetensors"}}, "not the name of a .safetensors file beside it"),
        ({"weight_map": {"a": "model.bin"}}, "not the name of a .safetensors file beside it"),
        ({"weight_map": {"a": "model.safetensors", "c": "model.safetensors"}}, "missing in the file: c"),
        ({"weight_map": {"b": "model.safetensors"}}, "missing in the file: b.*not in the index: a"),
        ({"weight_map": ["a"]}, "weight_map must map"),
        ({}, "weight_map must map"),
    ],
)
def test_an_index_that_does_not_agree_with_its_files_is_refused(tmp_path, index, message):
    write(tmp_path, {"a": entry()}, b"\0" * 8)
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        open_directory(tmp_path)


def test_several_files_need_an_index(tmp_path):
    for name in ("a", "b"):
        safetensors.numpy.save_file(ARRAYS, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"2 \.safetensors files and no"):
        open_directory(tmp_path)


def test_a_huge_header_is_not_read(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes((100_000_000).to_bytes(8, "little") + b"{")
    os.truncate(file, 200_000_000)  # sparse: no disk is filled
    tracemalloc.start()
    with pytest.raises(UserError, match="its header is said to have 100000000 bytes"):
        open_directory(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_file_with_any_byte_changed_is_read_within_its_bounds_or_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    write_tensors(file, NEW, ARRAYS.__getitem__)
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    generator, refused = np.random.default_rng(0), 0
    for place in range(header):
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << generator.integers(8)
        file.write_bytes(spoilt)
        try:
            tensors = open_directory(tmp_path)
            read = sum(np.asarray(tensor.mapped()).nbytes for tensor in tensors.values())
            assert read == len(whole) - header
        except UserError as error:
            refused += 1
            assert str(file) in str(error)
    assert refused > header // 3

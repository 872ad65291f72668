"""Two processes read each its own shards of a checkpoint, and write one together."""

import pytest
import worlds
from models.checkpoints import same_tensors, saved, tensors_of
from models.read_and_write import story

pytestmark = pytest.mark.slow  # two processes start


def test_two_processes_read_their_own_shards_and_write_one_checkpoint(tmp_path):
    given = saved("qwen3_moe", tmp_path / "given", most_bytes="50KB")
    both = worlds.run(story, 2, 2, tmp_path, str(given), str(tmp_path / "out"))
    tensors = tensors_of(given)
    size = sum(tensor.nbytes for tensor in tensors.values())
    norms = sum(tensor.nbytes for name, tensor in tensors.items() if "norm" in name)
    # fsdp cuts every matrix over the two processes; norms are whole on each.
    assert [int(told["bytes_read"]) for told in both] == [(size - norms) // 2 + norms] * 2
    assert same_tensors(given, tmp_path / "out")
    # What process 0 alone was refused left the other one waiting for nothing.
    assert [int(told["refused"]) for told in both] == [1, 0]

"""Two processes read each its own shards of a checkpoint."""

import jax
import numpy as np
import pytest
import worlds
from models.checkpoints import saved, tensors_of
from models.read_in_world import read
from models.test_weights_in import ours

pytestmark = pytest.mark.slow  # two processes start


def test_two_processes_read_their_own_shards(tmp_path):
    given = saved("qwen3_moe", tmp_path / "given", most_bytes="50KB")
    both = worlds.run(read, 2, 2, tmp_path, str(given))
    tensors = tensors_of(given)
    size = sum(tensor.nbytes for tensor in tensors.values())
    norms = sum(tensor.nbytes for name, tensor in tensors.items() if "norm" in name)
    # fsdp cuts every matrix over the two processes; norms are whole on each.
    assert [int(told["bytes_read"]) for told in both] == [(size - norms) // 2 + norms] * 2
    for path, leaf in jax.tree.leaves_with_path(ours("qwen3_moe")):
        for told in both:
            np.testing.assert_array_equal(told[jax.tree_util.keystr(path)], leaf)

"""Saved arrays come back bitwise, on any mesh, or not at all."""

import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from jaxflow.engine import checkpoint
from jaxflow.engine.checkpoint import SavedArrays, restore_arrays, save_arrays
from jaxflow.types import UserError

ROWS, COLUMNS = 8, 16


def mesh_of(*shape):
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return jax.sharding.Mesh(devices, ("fsdp", "tensor"))


def sharding(mesh, *spec):
    return jax.sharding.NamedSharding(mesh, jax.P(*spec))


def host_params():
    generator = np.random.default_rng(0)
    return {
        "layers": {"w": generator.normal(size=(ROWS, COLUMNS)).astype(np.float32)},
        # Every bit pattern of 16 bits, NaN payloads included: nothing may pass through another dtype.
        "bits": np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16),
    }


def placed_state(mesh):
    """Parameters and an AdamW state after one update, sharded over the mesh."""
    host = host_params()
    params = {
        "layers": {"w": jax.device_put(host["layers"]["w"], sharding(mesh, "fsdp", "tensor"))},
        "bits": jax.device_put(host["bits"], sharding(mesh, ("fsdp", "tensor"))),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1e-3, 0.0, 10)))
    trained = {"layers": params["layers"]}
    gradients = jax.tree.map(lambda w: 0.1 * w, trained)
    _, optimizer_state = optimizer.update(gradients, optimizer.init(trained), trained)
    return {"params": params, "optimizer": optimizer_state}


def abstract_like(tree, placement):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement(x)), tree)


def assert_bitwise_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, left), right in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        assert left.dtype == right.dtype, path
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes(), path


@pytest.mark.parametrize("piece_bytes", [2**26, 2**12], ids=["one piece", "a piece for each layer"])
def test_an_entry_is_read_without_the_others(piece_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(checkpoint, "_SMALLEST_PIECE_BYTES", 2**11)
    generator = np.random.default_rng(0)
    layers = generator.normal(size=(3, 2, ROWS, 256)).astype(np.float32)
    placed = jax.device_put(layers, sharding(mesh_of(2, 4), None, None, "fsdp", "tensor"))
    bits = jnp.asarray(host_params()["bits"])
    save_arrays(tmp_path / "saved", {"layers": {"w": placed}, "bits": bits, "count": jnp.int32(7)})
    saved = SavedArrays(tmp_path / "saved")
    assert saved.types["layers/w"] == "float32[3,2,8,256]"
    np.testing.assert_array_equal(saved.read("layers/w", (1,)), layers[1])
    np.testing.assert_array_equal(saved.read("layers/w", (2, 1)), layers[2, 1])
    assert saved.read("bits", ()).tobytes() == np.asarray(bits).tobytes()
    abstract = {"layers": {"w": placed}, "bits": bits, "count": jnp.int32(7)}
    restored = restore_arrays(tmp_path / "saved", abstract_like(abstract, lambda x: x.sharding))
    np.testing.assert_array_equal(restored["layers"]["w"], layers)


def test_entries_of_a_damaged_folder_are_refused(tmp_path):
    save_arrays(tmp_path / "saved", {"w": jnp.ones((4, 8))})
    saved = SavedArrays(tmp_path / "saved")
    for file in (tmp_path / "saved").rglob("d/*"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="w could not be read, it is damaged"):
        saved.read("w", (0,))
    with pytest.raises(UserError, match="no such directory"):
        SavedArrays(tmp_path / "none")


def test_round_trip_is_bitwise_with_bfloat16_and_adamw_state(tmp_path):
    state = placed_state(mesh_of(4, 2))
    save_arrays(tmp_path / "actor", state)
    restored = restore_arrays(tmp_path / "actor", abstract_like(state, lambda x: x.sharding))
    assert_bitwise_equal(restored, state)
    assert np.asarray(restored["params"]["layers"]["w"]).tobytes() == host_params()["layers"]["w"].tobytes()
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: x.sharding == y.sharding, restored, state)))


@pytest.mark.parametrize("shape", [(2, 4), (8, 1), (2, 2), (1, 1)])
def test_restores_onto_another_mesh_and_device_count(tmp_path, shape):
    state = placed_state(mesh_of(4, 2))
    save_arrays(tmp_path / "actor", state)
    mesh = mesh_of(*shape)
    abstract = abstract_like(state, lambda x: sharding(mesh, *("tensor", "fsdp")[: x.ndim]))
    restored = restore_arrays(tmp_path / "actor", abstract)
    assert_bitwise_equal(restored, state)
    weight = restored["params"]["layers"]["w"]
    assert weight.sharding == sharding(mesh, "tensor", "fsdp")
    assert weight.addressable_shards[0].data.shape == (ROWS // shape[1], COLUMNS // shape[0])


def test_a_wrong_model_is_refused_with_the_names_of_its_leaves(tmp_path):
    one = jax.devices()[0]
    save_arrays(tmp_path / "actor", {"embed": jnp.zeros((8, 4)), "head": jnp.zeros(3), "old": jnp.zeros(2)})
    place = jax.sharding.SingleDeviceSharding(one)
    expected = {
        "embed": jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=place),
        "head": jax.ShapeDtypeStruct((3,), jnp.bfloat16, sharding=place),
        "new": jax.ShapeDtypeStruct((2,), jnp.float32, sharding=place),
    }
    with pytest.raises(UserError, match="checkpoint from another model") as caught:
        restore_arrays(tmp_path / "actor", expected)
    message = str(caught.value)
    assert str(tmp_path / "actor") in message
    assert "embed: it holds float32[8,4], expected float32[16,4]" in message
    assert "head: it holds float32[3], expected bfloat16[3]" in message
    assert "new: it holds nothing, expected float32[2]" in message
    assert "old: it holds float32[2], expected nothing" in message


def test_only_the_first_few_of_many_differences_are_named(tmp_path):
    save_arrays(tmp_path / "actor", {f"layer{i}": jnp.zeros(2) for i in range(9)})
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    expected = {f"layer{i}": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=place) for i in range(9)}
    with pytest.raises(UserError, match=r"9 of 9 arrays differ") as caught:
        restore_arrays(tmp_path / "actor", expected)
    assert str(caught.value).count("it holds") == 5
    assert "and 4 more" in str(caught.value)


def test_a_directory_without_saved_arrays_is_a_user_error(tmp_path):
    abstract = {"w": jax.ShapeDtypeStruct((1,), jnp.float32)}
    with pytest.raises(UserError, match="no such directory"):
        restore_arrays(tmp_path / "missing", abstract)
    (tmp_path / "weights.pkl").write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
    with pytest.raises(UserError, match="holds no arrays"):
        restore_arrays(tmp_path, abstract)
    assert not os.path.exists("canary")


def test_two_leaves_under_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one path"):
        save_arrays(tmp_path / "actor", {"a/b": jnp.zeros(1), "a": {"b": jnp.ones(1)}})


def run_python(program, *arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


WRITE_ON_A_FULL_DISK = """
import pathlib, resource, signal, sys
import numpy as np
from jaxflow.engine.checkpoint import save_arrays
from jaxflow.types import UserError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
target = pathlib.Path(sys.argv[1])
try:
    save_arrays(target, {"w": np.random.default_rng(0).normal(size=100_000)})
except UserError as error:
    print("refused:", error)
print("exists:", target.exists())
"""


def test_a_refused_write_is_one_message_and_leaves_no_directory(tmp_path):
    out, err = run_python(WRITE_ON_A_FULL_DISK, str(tmp_path / "actor")).communicate(timeout=120)
    assert f"refused: {tmp_path / 'actor'}: could not be written" in out, err
    assert "exists: False" in out
    assert "Traceback" not in err


TRUNCATE_EACH_FILE = """
import pathlib, sys
import jax
import numpy as np
from jaxflow.engine import checkpoint
from jaxflow.engine.checkpoint import SavedArrays, restore_arrays, save_arrays
from jaxflow.types import UserError

target = pathlib.Path(sys.argv[1])
values = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
save_arrays(target, {"w": values})
place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
abstract = {"w": jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=place)}
for file in [path for path in target.rglob("*") if path.is_file()]:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    try:
        np.testing.assert_array_equal(restore_arrays(target, abstract)["w"], values)
    except UserError as error:
        assert str(error).startswith(f"{target}: ") and "damaged" in str(error), error
        print("refused", file.name)
    file.write_bytes(whole)
"""


def test_truncating_any_file_is_a_user_error_or_changes_nothing(tmp_path):
    # In a child: a failed read leaves Orbax's coroutine open, which warns whenever it is collected.
    child = run_python(TRUNCATE_EACH_FILE, str(tmp_path / "actor"))
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert out.count("refused") >= 3


SAVE_FROM_TWO_PROCESSES = """
import pathlib, sys
import jax
import numpy as np

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))
from jaxflow.engine import checkpoint
from jaxflow.engine.checkpoint import SavedArrays, restore_arrays, save_arrays

mesh = jax.sharding.Mesh(np.array(jax.devices()), ("fsdp",))
sharded = jax.sharding.NamedSharding(mesh, jax.P("fsdp"))
values = np.arange(32.0, dtype=np.float32).reshape(16, 2)
array = jax.make_array_from_callback(values.shape, sharded, lambda index: values[index])
save_arrays(pathlib.Path(sys.argv[1]), {"w": array})
abstract = {"w": jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharded)}
restored = restore_arrays(pathlib.Path(sys.argv[1]), abstract)["w"]
for shard in restored.addressable_shards:
    np.testing.assert_array_equal(shard.data, values[shard.index])
print("restored", len(restored.addressable_shards), "shards")
"""


def test_what_two_processes_saved_one_process_restores(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    target = str(tmp_path / "actor")
    children = [run_python(SAVE_FROM_TWO_PROCESSES, target, coordinator, str(rank)) for rank in range(2)]
    for child in children:
        out, err = child.communicate(timeout=180)
        assert child.returncode == 0, err
        assert "restored 4 shards" in out
    abstract = {"w": jax.ShapeDtypeStruct((16, 2), jnp.float32, sharding=sharding(mesh_of(2, 2), "fsdp"))}
    restored = restore_arrays(tmp_path / "actor", abstract)["w"]
    np.testing.assert_array_equal(restored, np.arange(32.0).reshape(16, 2))

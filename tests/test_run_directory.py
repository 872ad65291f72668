"""A run's files are what one save wrote: after kills, damage, full disks and second runs."""

import errno
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxflow import run_directory
from jaxflow.engine.checkpoint import restore_arrays
from jaxflow.run_directory import RunDirectory
from jaxflow.types import UserError

ROLES = ("actor", "critic")


def write_roles(folder, step):
    for role in ROLES:
        (folder / role / "d").mkdir(parents=True)
        np.save(folder / role / "d" / "weights.npy", np.full(1000, step))
        (folder / role / "metadata.json").write_text(json.dumps({"role": role, "step": step}))


def save(run, step):
    write_roles(run.stage(step), step)
    run.commit(step, {"step": step, "kl_coefficient": 0.001 * step})


def assert_whole(checkpoint):
    """Every file and the state are of one step."""
    assert checkpoint.state == {"step": checkpoint.step, "kl_coefficient": 0.001 * checkpoint.step}
    for role in ROLES:
        weights = np.load(checkpoint.path / role / "d" / "weights.npy", allow_pickle=False)
        np.testing.assert_array_equal(weights, np.full(1000, checkpoint.step))


def committed(run):
    return sorted(path.name for path in (run.workdir / "checkpoints").iterdir())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x01
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def test_an_empty_workdir_has_no_checkpoint_config_or_initial_weights(tmp_path):
    run = RunDirectory(tmp_path / "never" / "made", keep=1)
    assert (run.latest(), run.read_config(), run.initial()) == (None, None, None)


def test_a_checkpoint_is_found_by_its_step_and_no_other_is_given_for_it(tmp_path):
    run = RunDirectory(tmp_path, keep=2)
    for step in (5, 10):
        save(run, step)
    assert (run.at(5).step, run.at(5).path) == (5, tmp_path / "checkpoints" / "step_00000005")
    assert_whole(run.at(5))
    with pytest.raises(UserError, match="no checkpoint of step 7; there are: 5, 10"):
        run.at(7)
    (run.at(5).path / "actor" / "metadata.json").write_text("{}")
    with pytest.raises(UserError, match=r"metadata\.json: has 2 bytes"):
        run.at(5)


def test_latest_returns_what_was_committed_last(tmp_path):
    run = RunDirectory(tmp_path, keep=2)
    save(run, 9)
    save(run, 10)
    latest = RunDirectory(tmp_path, keep=2).latest()
    assert (latest.step, latest.problems) == (10, ())
    assert latest.path == tmp_path / "checkpoints" / "step_00000010"
    assert_whole(latest)


def test_state_survives_bitwise(tmp_path):
    run = RunDirectory(tmp_path, keep=1)
    state = {
        "β": 0.1 + 0.2,
        "window": [1e-300, -0.0],
        "seed": 2**63,
        "none": None,
        "counts": {"10": 1, "9": 2},
    }
    run.stage(0)
    run.commit(0, state)
    assert repr(run.latest().state) == repr({key: state[key] for key in run.latest().state})
    assert run.latest().state.keys() == state.keys()


def test_only_the_newest_keep_remain(tmp_path):
    run = RunDirectory(tmp_path, keep=3)
    for step in (1, 2, 5, 100, 99_999_999, 100_000_000):
        save(run, step)
    assert committed(run) == ["step_00000100", "step_100000000", "step_99999999"]
    assert run.latest().step == 100_000_000


def test_an_unfinished_save_is_invisible_and_removed_by_the_next(tmp_path):
    run = RunDirectory(tmp_path, keep=2)
    save(run, 1)
    write_roles(run.stage(2), 2)
    assert run.latest().step == 1
    assert list(run.stage(3).iterdir()) == []
    assert committed(run) == [".writing_step_00000003", "step_00000001"]


def test_saving_a_step_twice_keeps_one_whole_checkpoint(tmp_path):
    run = RunDirectory(tmp_path, keep=1)
    save(run, 4)
    save(run, 4)
    assert committed(run) == ["step_00000004"]
    assert_whole(run.latest())


FILES = [f"{role}/{name}" for role in ROLES for name in ("d/weights.npy", "metadata.json")] + [
    "manifest.json"
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncate, flip, os.remove])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(tmp_path, damage, name):
    run = RunDirectory(tmp_path, keep=2)
    save(run, 1)
    save(run, 2)
    damaged = tmp_path / "checkpoints" / "step_00000002" / name
    damage(damaged)
    latest = RunDirectory(tmp_path, keep=2).latest()
    assert latest.step == 1
    assert_whole(latest)
    (problem,) = latest.problems
    assert str(damaged) in problem and "step 2" in problem


def test_a_flip_of_any_byte_of_the_manifest_is_found_or_changes_nothing(tmp_path):
    run = RunDirectory(tmp_path, keep=2)
    for step in (1, 2):
        run.stage(step)
        run.commit(step, {"kl_coefficient": 0.125 * step, "seed": 7})
    manifest = tmp_path / "checkpoints" / "step_00000002" / "manifest.json"
    whole = manifest.read_bytes()
    found = 0
    for position, bit in itertools.product(range(len(whole)), (0x01, 0x02)):
        manifest.write_bytes(whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :])
        latest = run.latest()
        if latest.step == 1:
            assert str(manifest) in latest.problems[0]
            found += 1
        else:
            assert latest.state == {"kl_coefficient": 0.25, "seed": 7}
    assert found > len(whole)


def test_the_parametrised_files_are_all_files_of_a_checkpoint(tmp_path):
    run = RunDirectory(tmp_path, keep=1)
    save(run, 1)
    path = run.latest().path
    assert sorted(str(f.relative_to(path)) for f in path.rglob("*") if f.is_file()) == sorted(FILES)


def test_a_checkpoint_under_another_name_is_not_taken_for_that_step(tmp_path):
    run = RunDirectory(tmp_path, keep=2)
    save(run, 1)
    save(run, 2)
    (tmp_path / "checkpoints" / "step_00000002").rename(tmp_path / "checkpoints" / "step_00000007")
    assert run.latest().step == 1


def test_no_whole_checkpoint_is_a_user_error_naming_every_problem(tmp_path):
    run = RunDirectory(tmp_path, keep=2)
    for step in (1, 2):
        save(run, step)
        flip(tmp_path / "checkpoints" / f"step_0000000{step}" / "actor" / "metadata.json")
    with pytest.raises(UserError, match="no checkpoint is whole") as caught:
        run.latest()
    assert all(f"step_0000000{step}/actor/metadata.json" in str(caught.value) for step in (1, 2))


@pytest.mark.parametrize("next_step", [2, 3])
@pytest.mark.parametrize("keep", [1, 2])
def test_going_on_past_a_damaged_checkpoint_replaces_it(tmp_path, keep, next_step):
    run = RunDirectory(tmp_path, keep=2)
    for step in (1, 2):
        save(run, step)
    flip(tmp_path / "checkpoints" / "step_00000002" / "actor" / "d" / "weights.npy")
    run = RunDirectory(tmp_path, keep=keep)
    assert run.latest().step == 1
    save(run, next_step)
    assert committed(run) == [f"step_{step:08d}" for step in (1, next_step)[-keep:]]
    assert run.latest().problems == ()
    assert_whole(run.latest())


def test_a_damaged_newer_checkpoint_never_pushes_out_the_only_whole_one(tmp_path):
    run = RunDirectory(tmp_path, keep=2)
    save(run, 1)
    save(run, 200)
    flip(tmp_path / "checkpoints" / "step_00000200" / "manifest.json")
    run = RunDirectory(tmp_path, keep=1)
    assert run.latest().step == 1
    save(run, 2)
    assert run.latest().step == 2


def resealed(path, **changes):
    """Rewrites a manifest as another version of the program would, its checksum right."""
    manifest = json.loads(path.read_text()) | changes
    del manifest["sha256"]
    text = json.dumps(manifest, sort_keys=True)
    digest = subprocess.run(["sha256sum"], input=text, capture_output=True, text=True, check=True).stdout[:64]
    path.write_text(json.dumps(manifest | {"sha256": digest}))


def test_a_newer_format_is_refused(tmp_path):
    run = RunDirectory(tmp_path, keep=2)
    save(run, 1)
    save(run, 2)
    manifest = tmp_path / "checkpoints" / "step_00000002" / "manifest.json"
    resealed(manifest, format=2)
    with pytest.raises(UserError, match=r"step_00000002/manifest.json: has format 2"):
        run.latest()
    resealed(manifest, format=1)
    assert run.latest().step == 2


def test_format_1_as_first_released_is_read(tmp_path):
    folder = tmp_path / "checkpoints" / "step_00000012"
    (folder / "actor").mkdir(parents=True)
    (folder / "actor" / "w").write_text("hello\n")
    (folder / "manifest.json").write_text(
        '{"format": 1, "step": 12, "state": {"seed": 3}, "files": {"actor/w": {"bytes": 6, "sha256": '
        '"5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"}}, "sha256": '
        '"0f4ab5d2ebb3f0dce0f4e8ee969e1d4671aa4783eb4807035c080b245d2138df"}'
    )
    latest = RunDirectory(tmp_path, keep=1).latest()
    assert (latest.step, latest.state, latest.problems) == (12, {"seed": 3}, ())


@pytest.mark.parametrize("operation", ["fsync", "rename", "replace"])
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch, operation):
    run = RunDirectory(tmp_path, keep=1)
    save(run, 1)
    write_roles(run.stage(2), 2)

    def refuse(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(run_directory.os, operation, refuse)
        with pytest.raises(UserError, match=r"step_00000002.*No space left on device"):
            run.commit(2, {"step": 2, "kl_coefficient": 0.002})
    assert committed(run) == ["step_00000001"]
    assert_whole(run.latest())
    save(run, 3)
    assert run.latest().step == 3


def save_until_killed(workdir, first_step, sender):
    run = RunDirectory(workdir, keep=2)
    for step in range(first_step, 10**6):
        save(run, step)
        sender.send_bytes(b"committed")


def save_until_operation(workdir, step, operation):
    """Kills this process just before its n-th change of the file system within one save."""
    run = RunDirectory(workdir, keep=1)
    left = operation

    def count(event, arguments):
        nonlocal left
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    save(run, step)


def forked():
    """Starts children from a process that has imported the package already: milliseconds each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["numpy", "pytest", "jaxflow.engine.checkpoint", "jaxflow.run_directory"])
    return context


def commits_until_killed(workdir, first_step, seconds):
    """Counts the commits that a saving child reports before it is killed, some time after the first."""
    receiver, sender = forked().Pipe(duplex=False)
    child = forked().Process(target=save_until_killed, args=(workdir, first_step, sender))
    child.start()
    sender.close()
    commits = 0
    receiver.poll(60)
    time.sleep(seconds)
    child.kill()
    child.join()
    while True:
        try:
            receiver.recv_bytes()
        except EOFError:
            return commits
        commits += 1


def test_sigkill_at_random_instants_leaves_the_step_before_or_after(tmp_path):
    generator = random.Random(0)
    step = 0
    for _ in range(15):
        commits = commits_until_killed(tmp_path, step + 1, seconds=generator.uniform(0, 0.03))
        run = RunDirectory(tmp_path, keep=2)
        latest = run.latest()
        assert latest.step in (step + commits, step + commits + 1)
        assert latest.problems == ()
        assert_whole(latest)
        step = latest.step
        run.stage(step + 1)
        assert [name for name in committed(run) if name.startswith(".")] == [f".writing_step_{step + 1:08d}"]


@pytest.mark.parametrize("advance", [0, 1])
def test_sigkill_before_every_file_operation_leaves_the_step_before_or_after(tmp_path, advance):
    run = RunDirectory(tmp_path, keep=1)
    save(run, 1)
    advances = []
    for operation in range(200):
        before = run.latest().step
        child = forked().Process(target=save_until_operation, args=(tmp_path, before + advance, operation))
        child.start()
        child.join()
        latest = run.latest()
        assert latest.problems == ()
        assert_whole(latest)
        visible = [tmp_path / "checkpoints" / name for name in committed(run) if not name.startswith(".")]
        assert all((folder / name).is_file() for folder in visible for name in FILES)
        advances.append(latest.step - before)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
    assert child.exitcode == 0
    assert set(advances) == {0, advance} and len(advances) > 10
    assert committed(run) == [f"step_{run.latest().step:08d}"]


SAVE_WITH_ORBAX = """
import pathlib, sys
import jax.numpy as jnp
from jaxflow.engine.checkpoint import save_arrays
from jaxflow.run_directory import RunDirectory

run = RunDirectory(pathlib.Path(sys.argv[1]), keep=2)
for step in range(1, 10**6):
    folder = run.stage(step)
    for role in ("actor", "critic"):
        save_arrays(folder / role, {"w": jnp.full(1000, step)})
    run.commit(step, {"step": step})
    print(step, flush=True)
"""


def test_sigkill_during_an_orbax_save_leaves_one_whole_step(tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", SAVE_WITH_ORBAX, str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "1\n"
    time.sleep(0.1)
    child.kill()
    acknowledged = [1, *map(int, child.communicate()[0].split())][-1]
    latest = RunDirectory(tmp_path, keep=2).latest()
    assert latest.step in (acknowledged, acknowledged + 1) and latest.problems == ()
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for role in ROLES:
        abstract = {"w": jax.ShapeDtypeStruct((1000,), jnp.int32, sharding=place)}
        np.testing.assert_array_equal(restore_arrays(latest.path / role, abstract)["w"], latest.step)


def test_initial_weights_exist_only_once_committed(tmp_path):
    run = RunDirectory(tmp_path, keep=1)
    (run.stage_initial() / "actor").mkdir()
    assert run.initial() is None
    folder = run.stage_initial()
    assert list(folder.iterdir()) == []
    write_roles(folder, 0)
    run.commit_initial()
    assert run.initial() == tmp_path / "initial"
    assert not folder.exists()
    flip(tmp_path / "initial" / "actor" / "d" / "weights.npy")
    with pytest.raises(UserError, match=r"initial/actor/d/weights.npy: its content differs"):
        run.initial()


def test_config_is_read_as_written_and_bad_json_names_its_line(tmp_path):
    run = RunDirectory(tmp_path, keep=1)
    run.write_config('{"run": {"seed": 1}}')
    run.write_config('{"run": {"seed": 2}}')
    assert run.read_config() == {"run": {"seed": 2}}
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    run.config.write_text('{\n"seed": oops}')
    with pytest.raises(UserError, match=r"config.json:2: not JSON"):
        run.read_config()
    run.config.write_text("[]")
    with pytest.raises(UserError, match="no JSON object"):
        run.read_config()


def test_a_second_run_is_refused_with_the_pid_of_the_first_until_it_dies(tmp_path):
    program = (
        "import pathlib, sys, time\n"
        "from jaxflow.run_directory import RunDirectory\n"
        "run = RunDirectory(pathlib.Path(sys.argv[1]), keep=1)\n"
        "run.acquire()\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "held\n"
    run = RunDirectory(tmp_path, keep=1)
    with pytest.raises(UserError, match=f"pid {first.pid} on "):
        run.acquire()
    first.kill()
    first.communicate()
    run.acquire()
    with pytest.raises(UserError, match=f"pid {os.getpid()} on "):
        RunDirectory(tmp_path, keep=1).acquire()
    run.release()
    again = RunDirectory(tmp_path, keep=1)
    again.acquire()
    again.release()


def test_a_workdir_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*could not be written"):
        RunDirectory(tmp_path / "file" / "run", keep=1).acquire()


@pytest.mark.parametrize("keep", [0, -1])
def test_keeping_no_checkpoint_is_refused(tmp_path, keep):
    with pytest.raises(ValueError, match="at least one"):
        RunDirectory(tmp_path, keep=keep)

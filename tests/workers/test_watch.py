"""What the watch concludes from what it sees, on a clock and a transport of the test's own."""

import dataclasses
import types

import pytest

from jaxflow.workers import watch as watch_module
from jaxflow.workers.future import CallList, PendingCall
from jaxflow.workers.protocol import InputLost, RoleError, RoleRefusal, WorkerLost
from jaxflow.workers.watch import Watch

HEARTBEAT, STAGE = 8.0, 20.0


@dataclasses.dataclass(eq=False)
class Reference:
    """A result that comes when the test says so."""

    ready: bool = False
    error: RoleError | None = None

    def come(self, error=None):
        self.ready, self.error = True, error


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def strftime(self, format):
        return "20260101-000000"


class Pool:
    """Two processes; those in `silent` answer nothing."""

    def __init__(self, name):
        self.pool, self.grid = name, types.SimpleNamespace(processes=2)
        self.silent, self.pings = set(), 0

    def ping(self, process):
        self.pings += 1
        return Reference(ready=process not in self.silent)

    def words(self, process):
        return f"pool {self.pool}, process {process} (pid {process + 40})"

    def stacks(self, seconds):
        return [None if process in self.silent else "in sleep\n" for process in range(2)]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()

    def wait(references, num_returns=1, timeout=None):
        found = [reference for reference in references if reference.ready]
        missing = [reference for reference in references if not reference.ready]
        clock.now += timeout if len(found) < num_returns else 0.0
        return found, missing

    def bring(references):
        for reference in references:
            if reference.error is not None:
                raise reference.error
        return ["value" for _ in references]

    monkeypatch.setattr(watch_module, "time", clock)
    monkeypatch.setattr(watch_module, "ray", types.SimpleNamespace(wait=wait))
    monkeypatch.setattr(watch_module, "bring", bring)
    return clock


@pytest.fixture
def scene(clock, tmp_path):
    """The watch over two pools, their calls, the pools, and a way to look for some seconds."""
    pools, calls = {name: Pool(name) for name in ("policy", "judges")}, CallList()
    watch = Watch(list(pools.values()), calls, HEARTBEAT, STAGE, tmp_path)

    def look_for(seconds):
        end = clock.now + seconds
        while clock.now < end:
            clock.now += 0.5
            watch.look()

    return types.SimpleNamespace(watch=watch, calls=calls, pools=pools, look_for=look_for, folder=tmp_path)


def call(scene, pool, method, *inputs):
    made = PendingCall(pool, "role", method, f"stage_of_{method}", inputs, (Reference(), Reference()))
    scene.calls.add(made)
    return made


def failure(process, message):
    return RoleError("role", "method", f"process {process}", message, "trace")


GONE = WorkerLost("pool", "call", "a process", "the process ended", "trace")
COLLECTIVE = "ValueError: UNKNOWN: Gloo AllGather failed: Connection closed by peer"


def test_waiting_for_inputs_and_for_ones_turn_does_not_count_as_a_calls_time(scene):
    first = call(scene, "policy", "generate")
    call(scene, "policy", "log_probs", first)
    score = call(scene, "judges", "score", first)
    call(scene, "judges", "update", score)
    for running in ([first], [score]):
        scene.look_for(STAGE - 1)
        assert all(c.running_since is not None for c in running)
        for record in running[0].records:
            record.come()
    with pytest.raises(WorkerLost, match="log_probs"):
        scene.look_for(STAGE)


def test_a_call_over_its_time_is_lost_with_the_process_that_has_not_answered(scene):
    made = call(scene, "policy", "generate")
    made.records[0].come()
    with pytest.raises(WorkerLost) as lost:
        scene.look_for(STAGE + 1)
    assert "role.generate failed in pool policy, process 1 (pid 41): over its 20 s" in str(lost.value)
    stacks = (scene.folder / "stacks_20260101-000000.txt").read_text()
    assert stacks.count("in sleep") == 4 and "=== pool judges, process 0 (pid 40)\n" in stacks


def test_a_call_over_its_time_in_all_its_processes_names_them_all(scene):
    call(scene, "policy", "generate")
    with pytest.raises(
        WorkerLost, match=r"process 0 \(pid 40\) and pool policy, process 1 \(pid 41\): over its"
    ):
        scene.look_for(STAGE + 1)


def test_a_silent_process_is_lost_after_the_timeout_and_named_with_what_its_pool_was_at(scene):
    call(scene, "policy", "generate")
    scene.look_for(HEARTBEAT)
    scene.pools["policy"].silent = {1}
    scene.look_for(HEARTBEAT - 1)
    with pytest.raises(WorkerLost) as lost:
        scene.look_for(HEARTBEAT / 4 + 2)
    assert "role.generate failed in pool policy, process 1 (pid 41): no sign of life for 8 s" in str(
        lost.value
    )
    assert "stage_of_generate" in str(lost.value)


def test_processes_that_answer_are_never_lost_however_long_a_call_of_another_pool_takes(scene):
    call(scene, "judges", "score")
    scene.look_for(STAGE - 1)
    assert scene.pools["policy"].pings > 2 * STAGE / HEARTBEAT


def test_nobody_is_blamed_for_the_time_in_which_the_controller_stood_still(scene, clock):
    call(scene, "policy", "generate")
    scene.look_for(1)
    scene.pools["judges"].silent = {0}
    scene.look_for(HEARTBEAT / 2)
    clock.now += 1000 * STAGE
    scene.watch.look()


def test_the_exception_of_one_process_explains_its_peers_broken_collective(scene, clock):
    made = call(scene, "policy", "generate")
    made.records[0].come(failure(0, COLLECTIVE))
    clock.sleep = lambda seconds: made.records[1].come(failure(1, "KeyError: 'x'"))
    with pytest.raises(RoleError, match="process 1: KeyError"):
        scene.watch.fetch([made.records[0]])


def test_the_death_of_a_process_explains_its_peers_broken_collective(scene, clock):
    made = call(scene, "policy", "generate")
    made.records[0].come(failure(0, COLLECTIVE))
    clock.sleep = lambda seconds: made.records[1].come(GONE)
    with pytest.raises(WorkerLost) as lost:
        scene.watch.fetch([made.records[0]])
    expected = "role.generate failed in pool policy, process 1 (pid 41): the process ended"
    assert str(lost.value).startswith(expected) and "in stage stage_of_generate" in str(lost.value)


def test_a_broken_collective_that_nothing_explains_is_told_as_it_is(scene, clock):
    made = call(scene, "policy", "generate")
    made.records[0].come(failure(0, COLLECTIVE))
    before = clock.now
    with pytest.raises(RoleError, match="Gloo AllGather"):
        scene.watch.fetch([made.records[0]])
    assert clock.now - before < 5


def test_a_process_that_ends_is_told_with_what_it_was_at_and_not_what_was_to_come(scene):
    done, at_work, to_come = (call(scene, "judges", method) for method in ("score", "values", "update"))
    for record in (*done.records, at_work.records[1]):
        record.come()
    to_come.records[0].come(GONE)
    with pytest.raises(WorkerLost, match=r"role\.values failed in pool judges, process 0 .* stage_of_values"):
        scene.watch.fetch([to_come.records[0]])


def test_what_fails_first_is_told_and_not_the_calls_that_wait_for_it(scene, clock):
    first = call(scene, "policy", "generate")
    second = call(scene, "judges", "score", first)
    for record in second.records:
        record.come(InputLost("pool", "call", "a process", "an input was lost", "trace"))
    clock.sleep = lambda seconds: first.records[1].come(GONE)
    with pytest.raises(WorkerLost, match=r"role\.generate failed in pool policy, process 1"):
        scene.watch.fetch([second.records[0]])


def test_a_refusal_reaches_the_user_as_it_is_while_others_still_run(scene):
    made = call(scene, "policy", "generate")
    other = call(scene, "judges", "score")
    other.records[1].come(RoleRefusal("reward", "score", "process 1", "reward.function: no such file", ""))
    with pytest.raises(RoleRefusal, match=r"^reward.function: no such file$"):
        scene.watch.fetch(made.records)


def test_process_0_is_blamed_where_an_idle_pool_ends_with_it(scene, clock):
    pool = scene.pools["judges"]
    scene.look_for(1)
    scene.watch._pulses["judges", 0].due = clock.now + HEARTBEAT  # process 1 is asked first
    pool.ping = lambda process: Reference(ready=True, error=GONE)
    with pytest.raises(WorkerLost, match=r"pool judges, process 0 \(pid 40\): the process ended"):
        scene.look_for(HEARTBEAT)


def test_a_full_disk_hides_no_loss(scene):
    call(scene, "policy", "generate")
    scene.folder.rmdir()
    with pytest.raises(WorkerLost, match=r"over its 20 s in stage .*could not be written"):
        scene.look_for(STAGE + 1)


def test_a_process_that_ends_while_its_pool_is_idle_is_lost(scene):
    scene.pools["judges"].ping = lambda process: Reference(ready=True, error=GONE if process == 1 else None)
    with pytest.raises(WorkerLost, match=r"pool judges, process 1 \(pid 41\): the process ended.*idle"):
        scene.look_for(HEARTBEAT)

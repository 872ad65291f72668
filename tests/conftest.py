"""Eight simulated devices for every test, and one cache of compiled programs for all tests and what they start."""

import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test's time is LLVM's on programs that run for milliseconds: without optimisation that is half as much.
# Which operations a program is made of, and in which order, is decided before LLVM.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax

# Whoever runs tests side by side reads this file as well, and hands its environment on.
_NAME = "jaxflow-test-programs"
_cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", tempfile.gettempdir()))
_cache = _cache if _cache.name == _NAME else _cache / _NAME
os.environ["XDG_CACHE_HOME"] = str(_cache)

jax.config.update("jax_num_cpu_devices", 8)
# Where runs have it: what a test compiled in this process, a run in it finds, and the other way round.
jax.config.update("jax_compilation_cache_dir", str(_cache / "jaxflow" / "programs"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"  # of worlds that tests start

# Files with the longest tests, longest first: where tests run side by side, what is left for the end is short.
_LONGEST = (
    "workers/test_failures.py",
    "workers/test_placements.py",
    "workers/test_processes.py",
    "test_stages.py",
    "engine/test_processes.py",
    "experiments/test_controller_overhead.py",
    "experiments/test_overlap.py",
    "experiments/test_transition.py",
    "workers/test_cluster.py",
    "workers/test_reward_model.py",
    "test_main.py",
    "docs/test_new_algorithm.py",
    "engine/test_transition.py",
    "engine/test_pipeline.py",
    "test_family_runs.py",
    "test_checkpoint_runs.py",
)


def pytest_collection_modifyitems(items):
    """Put the longest files first; the order within a file stays."""
    here = pathlib.Path(__file__).parent
    place = {here / name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))

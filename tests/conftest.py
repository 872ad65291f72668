"""Eight simulated devices for every test, and one compilation cache for the whole session's programs."""

import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_num_cpu_devices", 8)
_cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", tempfile.gettempdir())) / "jaxflow-test-programs"
jax.config.update("jax_compilation_cache_dir", str(_cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

"""Environment variables of JAX for test processes, to be set before JAX is imported."""

import os
from importlib.metadata import version
from pathlib import Path


def set_defaults():
    """Set the variables that the environment does not define."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Tests compile much and run little: without the backend's optimisations they take half the time.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    # Lowering is slightly faster without source locations of instructions, which tests do not use.
    os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
    # Most of what they compile is the same every time: keep it, in a folder for each version of jax.
    os.environ.setdefault(
        "JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "jaxmarket-tests" / f"jaxlib-{version('jaxlib')}")
    )
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

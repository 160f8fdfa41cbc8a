"""Environment variables of JAX for test processes, to be set before JAX is imported."""

import importlib.util
import mmap
import os
from importlib.metadata import version
from pathlib import Path


def set_defaults():
    """Set the variables that the environment does not define."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Tests compile much and run little: without the backend's optimisations they take half the time, and without its
    # emitters of fused kernels half of that. XLA_FLAGS="" asks for optimised programs, as `fit` has them on a CPU.
    if not os.environ.get("XLA_FLAGS"):
        level = 2 if "XLA_FLAGS" in os.environ else 0
        emitters = " --xla_cpu_use_fusion_emitters=false" if _known("xla_cpu_use_fusion_emitters") else ""
        os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level={level}{emitters}"
    # Lowering is slightly faster without source locations of instructions, which tests do not use.
    os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
    # Most of what they compile is the same every time: keep it, in a folder for each version of jax.
    os.environ.setdefault(
        "JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "jaxmarket-tests" / f"jaxlib-{version('jaxlib')}")
    )
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def _known(flag):
    """Whether this version of XLA has a flag; XLA aborts a process whose XLA_FLAGS contain an unknown one."""
    folder = Path(importlib.util.find_spec("jaxlib").origin).parent
    for library in folder.glob("*jax*.so"):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(flag.encode()) >= 0:
                return True
    return False

"""Shared by all tests: small configurations, trained once."""

import os
import signal
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and run little: without the backend's optimisations they take half the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Most of what they compile is the same every time: keep it, in a folder for each version of jax.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "jaxmarket-tests" / f"jaxlib-{version('jaxlib')}")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# A test run in the background, or under nohup, inherits ignored signals.
for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, default)

import jax
import pytest
import shapes

shapes.install()

from jaxmarket import TrainConfig, fit
from jaxmarket.runs import fitting

_MAPS = Path("/proc/self/maps")
_MANY = 20_000


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Compiled programs are kept, each in several memory maps, of which Linux grants a process 65,530: then it dies."""
    yield
    if _MAPS.exists() and _MAPS.read_text().count("\n") > _MANY:
        fitting._compiled.cache_clear()
        jax.clear_caches()


@pytest.fixture(scope="session")
def small():
    """Settings that train in a moment."""
    return {"steps": 4096, "instances": 8, "horizon": 16, "minibatch": 32}


@pytest.fixture(scope="session")
def bandit_run(tmp_path_factory):
    """A solved bandit, two seeds, with its folder."""
    out = tmp_path_factory.mktemp("runs") / "bandit"
    config = TrainConfig("Bandit-v0", learner="valuation", seeds=2, steps=40_000)
    return fit(config, jax.random.key(0), out), out

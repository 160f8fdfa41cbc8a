"""Shared by all tests: small configurations, trained once."""

import gc
import signal
from pathlib import Path

import jax_environment

jax_environment.set_defaults()

# A test run in the background, or under nohup, inherits ignored signals.
for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, default)

import functools

import jax
import pytest
import shapes
from jax._src.interpreters import mlir

# One MLIR context for all programs: a new one takes 4 ms, most of the time of lowering a small program. JAX has no
# public way to share it; with a version that has renamed this function, tests are slower and still right.
if hasattr(mlir, "make_ir_context"):
    mlir.make_ir_context = functools.cache(mlir.make_ir_context)

shapes.install()

from jaxmarket import TrainConfig, fit
from jaxmarket.view import plotting

plotting.DPI = 30  # tests write many figures; only test_plotting reads them

# Tracing makes many objects and hardly any cycles: Python's default is to look through all of them again and again.
gc.set_threshold(10_000, 10, 50)

_MAPS = Path("/proc/self/maps")
_MANY = 50_000
_PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """JAX keeps compiled programs, each in several memory maps; a process with more than Linux grants, 65,530, dies."""
    yield
    if _MAPS.exists() and _MAPS.read_text().count("\n") > _MANY:
        jax.clear_caches()
        gc.collect()


def pytest_sessionfinish():
    gc.freeze()  # else pytest and Python look through all objects once more before they end


@pytest.fixture(autouse=True, scope="module")
def _draw_nothing(request):
    """Training draws a figure after every run, in a tenth of a second; tests/view and tests/experiments draw theirs."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name in ("runs", "training"):
            patch.setattr(plotting, "_write", _write_nothing)
        yield


def _write_nothing(_fig, file, _kind):
    file.write(_PNG) if hasattr(file, "write") else Path(file).write_bytes(_PNG)


@pytest.fixture(scope="session")
def small():
    """Settings with a short training time."""
    return {"steps": 4096, "instances": 8, "horizon": 16, "minibatch": 32}


@pytest.fixture(scope="session")
def bandit_run(tmp_path_factory):
    """A solved bandit, two seeds, with its folder."""
    out = tmp_path_factory.mktemp("runs") / "bandit"
    config = TrainConfig("Bandit-v0", learner="valuation", seeds=2, steps=40_000)
    return fit(config, jax.random.key(0), out), out

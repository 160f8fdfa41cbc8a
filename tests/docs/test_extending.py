"""docs/extending.md is true: a module outside the package is trained, killed, resumed, loaded and compared."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from documentation import ROOT, python

import jaxmarket
from jaxmarket import TrainConfig, fit
from jaxmarket.runs import comparison, run_folder
from jaxmarket.testing import check_environment, check_learner, check_mechanism

MODULE, SCRIPT, AGENTS = python(ROOT / "docs" / "extending.md")


@pytest.fixture
def market(tmp_path, monkeypatch):
    """The module of the page, in a folder of its own."""
    (tmp_path / "my_market.py").write_text(MODULE)
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "my_agents.py").write_text(AGENTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("my_market", None)
    yield importlib.import_module("my_market")
    sys.modules.pop("my_market", None)


def test_the_saved_settings_of_the_page_are_restored(market):
    saved = run_folder.config_to_dict(market.config)
    names = [saved[field]["object"] for field in ("env", "learner", "bids", "auction")]
    assert names == [f"my_market:{name}" for name in ("Corridor", "LossAverse", "GaussianHead", "third_price")]
    assert run_folder.config_from_dict(Path("folder"), saved).settings == market.config.settings


def test_the_population_of_the_page_is_a_kind_of_agent(market):
    agents = importlib.import_module("my_agents").AGENTS
    sys.modules.pop("my_agents")
    settings = TrainConfig("Chain-v0", agent=agents).settings
    assert settings.trainable.market.capacity == agents.capacity


@pytest.mark.slow
def test_the_objects_of_the_page_keep_their_contracts(market):
    check_environment(market.Corridor())
    check_learner(market.LossAverse())
    check_mechanism(market.third_price, conserving=True)


@pytest.mark.slow
def test_the_page_is_trained_killed_resumed_loaded_and_compared(market, tmp_path):
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    out = tmp_path / "runs" / "mine"
    command = [sys.executable, "train.py"]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not list((out / "checkpoints").glob("*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert run_folder.summary_of(out) is None, "it ended before it was killed"
    resume = [sys.executable, "-m", "jaxmarket", "train", "--import", "my_market", "--resume", str(out)]
    subprocess.run(resume, cwd=tmp_path, env=env, check=True, capture_output=True, timeout=300)
    whole = fit(market.config, jax.random.key(0), tmp_path / "runs" / "whole", progress=False)
    assert run_folder.read(out).summary["params_sha256"] == whole.summary["params_sha256"]
    policy = jaxmarket.load(out)
    assert int(policy(jnp.eye(5)[0])) in (0, 1)
    found = comparison.compare([out, tmp_path / "runs" / "whole"])
    assert [run.env for run in found.runs] == ["Corridor", "Corridor"]
    assert found.runs[0].returns.tolist() == found.runs[1].returns.tolist()

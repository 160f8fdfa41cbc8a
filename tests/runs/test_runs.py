"""A run's folder and the way back: what is written, read, refused; the policy inside scan."""

import csv
import json
import math
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folders import reseal

import jaxmarket
from jaxmarket import TrainConfig, fit
from jaxmarket.environments import FiniteMDP
from jaxmarket.runs import run_folder


def test_folder_holds_everything(bandit_run):
    result, out = bandit_run
    names = {p.name for p in out.iterdir()}
    figures = {"learning_curve.png", "bids.png"}
    files = {"config.json", "metrics.csv", "summary.json", "networks.safetensors", "bids.csv", "SHA256SUMS"}
    assert names == files | {"checkpoints"} | figures
    for figure in figures:
        assert (out / figure).read_bytes().startswith(b"\x89PNG")
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    chunks, seeds = result.metrics["return_mean"].shape
    assert len(rows) == chunks * seeds
    assert [int(r["seed"]) for r in rows[:4]] == [0, 1, 0, 1]
    np.testing.assert_allclose(
        [float(r["auction_revenue"]) for r in rows], result.metrics["auction_revenue"].reshape(-1), rtol=1e-6
    )
    assert int(rows[-1]["env_steps"]) * seeds == result.summary["env_steps"]


def test_settings_and_parameters_come_back_exactly(bandit_run):
    result, out = bandit_run
    run = run_folder.read(out)
    assert run.config.settings == result.config.settings
    for saved, trained in zip(jax.tree.leaves(run.params), jax.tree.leaves(result.state.learner.params), strict=True):
        np.testing.assert_array_equal(saved, trained)


def test_loaded_policy_acts_optimally_inside_scan(bandit_run):
    policy = jaxmarket.load(bandit_run[1])
    env, params = jaxmarket.make("Bandit-v0")

    def body(carry, key):
        obs, state = carry
        key_policy, key_env = jax.random.split(key)
        obs, state, reward, *_ = env.step(key_env, state, policy(obs, key_policy), params)
        return (obs, state), reward

    start = env.reset(jax.random.key(0), params)
    _, rewards = jax.jit(lambda s: jax.lax.scan(body, s, jax.random.split(jax.random.key(1), 9)))(start)
    np.testing.assert_allclose(rewards, 0.8)


def test_loaded_policy_respects_legal_actions_and_needs_a_key_to_sample(bandit_run):
    obs = jnp.ones(1)
    policy = jaxmarket.load(bandit_run[1], seed=1)
    assert int(policy(obs)) == 3
    assert int(policy(obs, legal=jnp.array([True, True, False, False]))) == 1
    with pytest.raises(ValueError, match="key"):
        jaxmarket.load(bandit_run[1], greedy=False)(obs)
    with pytest.raises(ValueError, match="seed"):
        jaxmarket.load(bandit_run[1], seed=2)


def test_a_finished_run_is_not_overwritten(bandit_run, small):
    with pytest.raises(ValueError, match="finished run"):
        fit(TrainConfig("Bandit-v0", **small), jax.random.key(0), bandit_run[1])


def test_out_that_is_a_file_is_refused_before_training(tmp_path, small):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write"):
        fit(TrainConfig("Bandit-v0", **small), jax.random.key(0), tmp_path / "file")


@pytest.mark.slow  # test_env_params reads a run of an object too
def test_objects_are_given_back_on_reading(tmp_path, small):
    """A file cannot hold an environment object: it is asked for by name."""
    mdp = FiniteMDP([[[1.0]] * 2], [[0.0, 1.0]], 0.5, [1.0], horizon=3)
    fit(TrainConfig(mdp, learner="valuation", **small), jax.random.key(0), tmp_path / "run")
    with pytest.raises(ValueError, match=r"env: .*FiniteMDP.*objects="):
        run_folder.read(tmp_path / "run")
    assert int(jaxmarket.load(tmp_path / "run", objects={"env": mdp})(jnp.ones(1))) == 1


@pytest.mark.slow
def test_a_mechanism_of_ones_own_is_given_back_on_reading(tmp_path, small):
    free = jaxmarket.Mechanism("free", price=lambda o: 0 * o.winning_bid, payout=lambda o: 0 * o.winning_bid)
    fit(TrainConfig("Bandit-v0", auction=free, **small), jax.random.key(0), tmp_path / "run")
    with pytest.raises(ValueError, match=r"auction: .*objects="):
        run_folder.read(tmp_path / "run")
    assert run_folder.read(tmp_path / "run", {"auction": free}).config.auction == free


def damage_config(folder):
    (folder / "config.json").write_text("{")


def unknown_setting(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"colour": "red"}))


def another_society(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"env": "Chain-v0"}))


def no_parameters(folder):
    (folder / "networks.safetensors").unlink()


def list_for_object(folder):
    (folder / "summary.json").write_text("[]")


@pytest.mark.parametrize("sealed", [True, False], ids=["written so", "changed"])
@pytest.mark.parametrize("damage", [damage_config, unknown_setting, another_society, no_parameters, list_for_object])
def test_damaged_folders_are_one_clear_error(damage, sealed, bandit_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(bandit_run[1], folder)
    run_folder.read(folder)
    damage(folder)
    if sealed:
        reseal(folder)
    with pytest.raises(ValueError, match=str(tmp_path)):
        run_folder.read(folder)


def test_json_is_strict_and_one_line():
    text = run_folder.to_json({"a": math.nan, "b": [1.5, math.inf], "c": None})
    assert json.loads(text) == {"a": None, "b": [1.5, None], "c": None}
    assert "\n" not in text


def test_metrics_without_a_row_for_every_seed_are_one_clear_error(bandit_run, tmp_path):
    folder = shutil.copytree(bandit_run[1], tmp_path / "run")
    rows = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(rows[:-1]))
    reseal(folder)
    with pytest.raises(ValueError, match=r"metrics\.csv: expected 2 rows"):
        _ = run_folder.read(folder).metrics


@pytest.mark.slow
def test_a_run_compiles_few_programs():
    """Nine: whole functions are compiled, the host's arrays are NumPy's, and one program evaluates in both ways."""
    code = (
        "import jax\n"
        "programs = []\n"
        "def count(event, _, **__): programs.append(event) if event.endswith('backend_compile_duration') else None\n"
        "jax.monitoring.register_event_duration_secs_listener(count)\n"
        "from jaxmarket.cli import main\n"
        "main(['train', 'Chain-v0', '--steps', '2048', '--instances', '8', '--horizon', '16'])\n"
        "print(len(programs))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 4 <= int(run.stdout.splitlines()[-1]) <= 12

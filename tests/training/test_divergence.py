"""Seeds that diverge are found, named, left out of statistics, and never the best; unfinished episodes are reported."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import jaxmarket
from jaxmarket.cli import main
from jaxmarket.runs import comparison, estimates, fitting, run_folder, sinks, sweeps
from jaxmarket.training import divergence
from jaxmarket.view import tables

CONFIG = jaxmarket.TrainConfig("Bandit-v0", learner="valuation", steps=2048, instances=8, horizon=16, seeds=3)


class Faulty:
    """Every action ends the episode; action 1 earns a reward that is no number, the others 0.5."""

    name, num_actions = "Faulty", 3

    def reset(self, key, params=None):
        return jnp.ones(1), jnp.zeros(())

    def step(self, key, state, action, params=None):
        return jnp.ones(1), state, jnp.where(action == 1, jnp.nan, 0.5), jnp.asarray(True), {}


def text(*tables_):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(*tables_)
    return console.export_text()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sound"
    return jaxmarket.fit(CONFIG, jax.random.key(0), folder, progress=False), folder


@pytest.fixture(scope="module")
def partly(sound, tmp_path_factory):
    """A run whose seed 1 starts from parameters that are no numbers."""
    before, folder = sound[0], tmp_path_factory.mktemp("runs") / "partly"
    learner = before.state.learner
    params = jax.tree.map(lambda x: x.at[1].set(jnp.nan), learner.params)
    start = dataclasses.replace(before, state=before.state.replace(learner=learner.replace(params=params)))
    return jaxmarket.fit(CONFIG, jax.random.key(0), folder, start=start, progress=False), folder


# --- by hand


@pytest.mark.parametrize(
    ("parameter", "reward", "expected"),
    [(1.0, 2.0, 0), (np.nan, 2.0, 1), (-np.inf, 2.0, 1), (1e25, 2.0, 1), (1.0, np.nan, 1), (1.0, np.inf, 1)],
)
def test_parameters_and_rewards(parameter, reward, expected):
    parameters = {"a": jnp.array([[1.0, parameter]]), "count": jnp.array([3])}
    assert float(divergence.diverged(parameters, jnp.asarray(reward))) == expected
    assert np.isnan(divergence.valid(jnp.asarray(reward), parameters)) == expected


def test_seeds_are_named_with_chunk_and_cause():
    metrics = {
        "diverged": np.array([[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]]),
        "welfare": np.array([[1.0, 1, 1, 1], [1, 0, 1, 1], [1, np.nan, np.nan, 1]]),
    }
    found = divergence.find(metrics, [0.5, 0.5, 0.5, 0.5], np.array([[1, 2], [1, 2], [1, 2], [np.nan, 1]]))
    assert found == [
        {"seed": 1, "chunk": 2, "cause": "parameters"},
        {"seed": 2, "chunk": 3, "cause": "reward"},
        {"seed": 3, "chunk": None, "cause": "evaluation"},
    ]
    assert divergence.described(found, 4) == (
        "diverged: 3 of 4 seeds: seed 1 (parameters not finite since chunk 2), "
        "seed 2 (rewards not finite since chunk 3), seed 3 (returns or bids of the evaluation not finite)"
    )


def test_statistics_are_over_finite_values():
    assert divergence.spread([1.0, None, 3.0, np.nan, np.inf]) == (2, 1, 1, 3)
    assert np.isnan(divergence.spread([None, np.nan])).all()
    assert divergence.best([None, 0.2, np.inf, 0.8, np.nan]) == 3
    with pytest.raises(ValueError, match="seed: expected at least one finite return, got 2"):
        divergence.best([None, np.nan])
    assert np.isnan(estimates.interquartile_mean([0.1, 0.2, 0.3, np.nan]).value)
    assert np.isnan(estimates.probability_of_improvement([0.1, np.nan], [0.2, 0.1]).value)
    assert np.isnan(estimates.difference([0.1, np.nan], [0.2, 0.1]).value)


# --- a run


@pytest.mark.slow
def test_a_diverged_seed_is_named_and_left_out(partly, sound):
    result, whole = partly[0], sound[0].summary
    s = result.summary
    assert whole["diverged"] == []
    assert s["diverged"] == [{"seed": 1, "chunk": 1, "cause": "parameters"}]
    assert np.isnan(s["return_seeds"][1])
    kept = [s["return_seeds"][i] for i in (0, 2)]
    assert s["return_mean"] == pytest.approx(np.mean(kept))
    assert np.isfinite(s["sampled_return_mean"])
    assert s["bid_error"] is not None
    assert np.isnan(result.bids[1]).all()
    assert not result.visited[1].any()
    assert np.isfinite(result.bids[[0, 2]]).all()
    assert result.metrics["diverged"].max(0).tolist() == [0, 1, 0]
    shown = text(tables.returns_table(result), tables.bids_table(result))
    assert "diverged" in shown
    assert "nan" not in shown
    assert "diverged" not in text(tables.returns_table(sound[0]))
    assert "1 of 3 seeds diverged" in tables.return_note({k: v[-1] for k, v in result.metrics.items()})


@pytest.mark.slow
def test_the_best_seed_did_not_diverge_even_read_from_disk(partly):
    result, folder = partly
    run = run_folder.read(folder)
    expected = int(np.nanargmax(result.summary["return_seeds"]))
    assert run_folder.best_seed(result) == run.best_seed == expected != 1
    np.testing.assert_array_equal(run.summary["return_seeds"], result.summary["return_seeds"])
    assert np.isnan(run.bids[1]).all()
    assert callable(jaxmarket.load(folder))
    assert run.summary["diverged"] == result.summary["diverged"]
    written = json.loads((folder / "summary.json").read_text())
    assert written["return_seeds"][1] is None


def test_comparisons_count_diverged_seeds_and_leave_them_out(partly, sound):
    found = comparison.compare([sound[1], partly[1]])
    whole, rest = found.rows()
    assert (whole["diverged"], rest["diverged"]) == (0, 1)
    assert rest["seeds"] == 3
    assert rest["return"].value == pytest.approx(partly[0].summary["return_mean"])
    assert np.isfinite(rest["minus first"].value)
    assert np.isnan(found.runs[1].learning[:, 1]).all()
    shown = text(*(table.as_rich() for table in found.tables()))
    assert "diverged" in shown
    assert "nan" not in shown
    assert found.document()["runs"][1]["diverged_seeds"][0]["seed"] == 1
    found.figure()


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """A run that ended without a finite seed, by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "lost"
    command = "train Bandit-v0 --learner valuation --learning-rate 1e30 --steps 2048 --instances 8 --horizon 16"
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--seeds", "3", "--json", "--out", str(folder)])
    return stop.value.code, folder


def test_a_run_without_a_finite_seed_ends_with_exit_code_3(lost, capsys):
    code, folder = lost
    assert code == 3
    summary = json.loads((folder / "summary.json").read_text())
    assert [each["seed"] for each in summary["diverged"]] == [0, 1, 2]
    assert (summary["return_seeds"], summary["return_mean"], summary["bid_error"]) == ([None] * 3, None, None)
    with pytest.raises(ValueError, match="every seed diverged"):
        jaxmarket.load(folder)
    assert callable(jaxmarket.load(folder, seed=0))
    with pytest.raises(SystemExit) as stop:
        main(["train", "--resume", str(folder)])  # a finished run is shown again
    assert stop.value.code == 3
    assert "diverged: 3 of 3 seeds" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(folder), "--json"])
    out = capsys.readouterr().out
    assert stop.value.code == 3
    assert json.loads(out.splitlines()[-1])["greedy_return_mean"] is None
    assert "nan" not in out


def test_comparisons_with_a_run_that_has_no_finite_seed(lost, sound):
    best, worst = comparison.compare([lost[1], sound[1]], best_first=True).rows()
    assert (best["diverged"], worst["diverged"]) == (0, 3)
    assert np.isnan(worst["return"].value)
    assert np.isnan(worst["minus first"].value)
    found = comparison.compare([lost[1], sound[1]])
    assert "nan" not in text(*(table.as_rich() for table in found.tables()))
    run_folder.to_json(found.document())
    found.figure()


@pytest.mark.slow
def test_a_reward_that_is_not_finite_is_the_cause():
    config = dataclasses.replace(CONFIG, env=Faulty())
    summary = jaxmarket.fit(config, jax.random.key(0), progress=False).summary
    assert [(each["chunk"], each["cause"]) for each in summary["diverged"]] == [(1, "reward")] * 3
    assert np.isnan(summary["return_mean"])


@pytest.mark.slow
def test_a_monolithic_agent_diverges_too():
    config = jaxmarket.TrainConfig(
        "Bandit-v0", agent="monolith", learning_rate=1e30, steps=1024, instances=8, horizon=16, seeds=1
    )
    summary = jaxmarket.fit(config, jax.random.key(0), progress=False).summary
    assert [each["cause"] for each in summary["diverged"]] == ["parameters"]


@pytest.mark.slow
def test_a_sweep_ranks_diverged_runs_last(tmp_path, capsys):
    rates = {"learning_rate": [1e30, 1e-2]}
    settings = {"learner": "valuation", "steps": 2048, "instances": 8, "horizon": 16, "seeds": 3}  # as CONFIG
    found = sweeps.sweep("Bandit-v0", rates, tmp_path, progress=False, **settings)
    assert [run.settings["learning_rate"] for run in found.comparison.runs] == [1e-2, 1e30]
    rows = (tmp_path / "sweep.csv").read_text().splitlines()
    assert "diverged" in rows[0]
    assert len(rows) == 3
    command = (
        "sweep Bandit-v0 --vary learning_rate=1e30,1e29 --learner valuation --steps 2048 --instances 8 --horizon 16"
    )
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--seeds", "3", "--out", str(tmp_path / "lost")])
    assert stop.value.code == 3
    assert "every seed diverged" in capsys.readouterr().err


def test_the_console_logger_says_how_many_diverged(capsys):
    metrics = {"return_mean": np.array([1.0, 5.0]), "diverged": np.array([0.0, 1.0])}
    sinks.console()(sinks.Record(1, 2, 8, np.array([8, 8]), metrics))
    line = capsys.readouterr().out
    assert "1 of 2 seeds diverged" in line
    assert "return_mean 1.000 ± 0.000" in line


# --- unfinished episodes


def test_unfinished_episodes_are_reported_everywhere(sound, tmp_path, monkeypatch, capsys):
    both = fitting.evaluate_both

    def cut(*args):
        episodes = both(*args)
        half = jnp.arange(episodes["greedy"].finished.shape[1]) % 2 == 0
        return {how: some.replace(finished=some.finished & half) for how, some in episodes.items()}

    monkeypatch.setattr(fitting, "evaluate_both", cut)
    monkeypatch.setattr("jaxmarket.cli.evaluate_both", cut)
    folder = tmp_path / "cut"
    result = jaxmarket.fit(CONFIG, jax.random.key(0), folder, progress=False)
    s = result.summary
    assert (s["unfinished_share"], s["sampled_unfinished_share"]) == (0.5, 0.5)
    assert s["unfinished_share_seeds"] == [0.5] * 3
    assert sound[0].summary["unfinished_share"] == 0
    assert "50% / 50%" in text(tables.returns_table(result))
    assert "unfinished" not in text(tables.returns_table(sound[0]))
    found = comparison.compare([sound[1], folder])
    assert [row["unfinished"] for row in found.rows()] == [0, 0.5]
    assert "unfinished" in text(*(table.as_rich() for table in found.tables()))
    assert found.document()["runs"][1]["unfinished_share_seeds"] == [0.5] * 3
    main(["evaluate", str(folder), "--json"])
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["greedy_unfinished_share"] == 0.5
    assert "50.0%" in out

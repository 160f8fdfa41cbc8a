"""Runs that were stopped go on to the same bits, whatever stopped them."""

import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from folders import contents

import jaxmarket
from jaxmarket import TrainConfig, fit
from jaxmarket.cli import main
from jaxmarket.deep_market.evaluation import accuracy
from jaxmarket.experiments import Experiment, Scope, generality
from jaxmarket.experiments import experiment as engine
from jaxmarket.experiments.bucket_brigade import plans
from jaxmarket.experiments.conditions import Grow
from jaxmarket.runs import populations
from jaxmarket.runs.populations import finished, grow
from jaxmarket.training.arrays import flatten

SMALL = {"steps": 1024, "instances": 8, "horizon": 16, "minibatch": 32, "seeds": 2, "log_every": 1}
CONFIG = TrainConfig("Bandit-v0", learner="valuation", **SMALL)
KEY = jax.random.key(0)


def stop_after(chunk):
    """A logger that stops a run as Ctrl-C does."""

    def log(record):
        if record.chunk == chunk and not record.earlier:
            raise KeyboardInterrupt

    return log


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped, and its folder."""
    folder = tmp_path_factory.mktemp("resume") / "whole"
    return fit(CONFIG, KEY, folder, progress=False), folder


@pytest.fixture
def stopped(tmp_path, whole):
    """The folder of a run stopped in its third chunk of eight, with checkpoints of the second and third."""
    fit(CONFIG, KEY, tmp_path / "run", progress=False, loggers=[stop_after(3)], checkpoint_every=0)
    return tmp_path / "run"


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, arguments)))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("jaxmarket: ")
    assert error.count("\n") == 1
    return error


def test_a_stopped_run_ends_with_the_files_of_one_that_never_was(stopped, whole):
    assert json.loads((stopped / "summary.json").read_text())["interrupted"]
    seen = []
    result = fit(CONFIG, KEY, stopped, resume=True, progress=False, loggers=[seen.append], checkpoint_every=0)
    assert [(record.chunk, record.earlier) for record in seen] == [(i, i <= 3) for i in range(1, 9)]
    assert result.summary["params_sha256"] == whole[0].summary["params_sha256"]
    for found, wanted in zip(contents(stopped), contents(whole[1]), strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
    for name, values in whole[0].metrics.items():
        np.testing.assert_array_equal(result.metrics[name], values)
    assert sorted(path.name for path in (stopped / "checkpoints").iterdir()) == ["7.safetensors", "8.safetensors"]


def test_the_digest_is_of_the_whole_state(whole):
    assert whole[0].summary["params_sha256"] == json.loads((whole[1] / "summary.json").read_text())["params_sha256"]
    other = fit(CONFIG, jax.random.key(1), progress=False)
    assert other.summary["params_sha256"] != whole[0].summary["params_sha256"]


def test_a_finished_run_is_read_back_and_nothing_is_written(whole):
    result, folder = whole
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    seen = []
    again = fit(CONFIG, KEY, folder, resume=True, progress=False, loggers=[seen.append])
    assert [(record.chunk, record.earlier) for record in seen] == [(i, True) for i in range(1, 9)]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert again.summary == json.loads((folder / "summary.json").read_text())
    jax.tree.map(np.testing.assert_array_equal, flatten(again.state), flatten(result.state))
    for field in ("q", "bids", "visited"):
        np.testing.assert_array_equal(getattr(again, field), getattr(result, field))


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["checkpoints", "summary.json", "metrics.csv", "networks.safetensors"])
def test_whatever_is_missing_is_made_again(stopped, whole, lost, capsys):
    """Without checkpoints it begins at the beginning; from the command line, without an environment."""
    target = stopped / lost
    (shutil.rmtree if target.is_dir() else Path.unlink)(target)
    main(["train", "--resume", str(stopped), "--json"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["params_sha256"] == whole[0].summary["params_sha256"]
    for found, wanted in zip(contents(stopped), contents(whole[1]), strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_the_command_line_shows_a_finished_run(whole, capsys):
    main(["train", "--resume", str(whole[1]), "--json"])
    out = capsys.readouterr().out
    assert "greedy bids and Q*" in out
    assert json.loads(out.splitlines()[-1]) == json.loads((whole[1] / "summary.json").read_text())


def test_what_cannot_be_resumed_is_named(stopped, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    nowhere = tmp_path / "nowhere"
    assert "expected a run folder" in refused(capsys, "train", "--resume", nowhere)
    assert "leave out env" in refused(capsys, "train", "Bandit-v0", "--resume", stopped)
    assert "leave out seed" in refused(capsys, "train", "--resume", stopped, "--seed", 1)
    assert "with the settings in its folder" in refused(capsys, "train", "--resume", stopped, "--steps", 5)
    assert "env: expected an environment" in refused(capsys, "train")
    with pytest.raises(ValueError, match=r"resume: .*out"):
        fit(CONFIG, KEY, resume=True)
    with pytest.raises(ValueError, match=r"another run: gamma is 0\.99 there and 0\.5 here"):
        fit(dataclasses.replace(CONFIG, gamma=0.5), KEY, stopped, resume=True)
    with pytest.raises(ValueError, match=r"another run: key is .*\[0, 0\].* there"):
        fit(CONFIG, jax.random.key(1), stopped, resume=True)
    with pytest.raises(ValueError, match="another run: frozen is"):
        fit(CONFIG, KEY, stopped, resume=True, freeze=["policy/*"])
    with pytest.raises(ValueError, match=r"holds an interrupted run; resume it \(jaxmarket train --resume"):
        fit(CONFIG, KEY, stopped)
    (stopped / "summary.json").unlink()
    with pytest.raises(ValueError, match="holds an unfinished run; resume it"):
        fit(CONFIG, KEY, stopped)
    with pytest.raises(ValueError, match="cannot write to"):
        fit(CONFIG, KEY, tmp_path / "file" / "run")
    with pytest.raises(ValueError, match="checkpoint_every: expected a finite number >= 0"):
        fit(CONFIG, KEY, tmp_path / "run2", checkpoint_every=-1)


def test_checkpoints_of_other_runs_and_damaged_ones_are_refused(stopped, tmp_path):
    other = dataclasses.replace(CONFIG, gamma=0.5)
    fit(other, KEY, tmp_path / "other", progress=False, loggers=[stop_after(2)])
    shutil.rmtree(stopped / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", stopped / "checkpoints")
    with pytest.raises(ValueError, match=r"2.safetensors: a checkpoint of another run: gamma is 0.5 there"):
        fit(CONFIG, KEY, stopped, resume=True, progress=False)
    (tmp_path / "other" / "checkpoints" / "2.safetensors").write_text("{}")
    with pytest.raises(ValueError, match=r"2.safetensors: the checkpoint is damaged, .*; remove it to start over"):
        fit(other, KEY, tmp_path / "other", resume=True, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 3, 8], ids=["first", "middle", "last"])
def test_on_a_full_disk_a_run_ends_with_one_error_and_goes_on_where_there_is_room(tmp_path, whole, chunk):
    """From some chunk on no file may grow beyond 100 bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(record):
        if record.chunk == chunk:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))

    try:
        with pytest.raises(ValueError, match=r"cannot write|cannot be written"):
            fit(CONFIG, KEY, tmp_path / "run", progress=False, loggers=[fill], checkpoint_every=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again = fit(CONFIG, KEY, tmp_path / "run", resume=True, progress=False)
    assert again.summary["params_sha256"] == whole[0].summary["params_sha256"]
    for found, wanted in zip(contents(tmp_path / "run"), contents(whole[1]), strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.bits
@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"learner": "ppo"},
        {"learner": "reinforce", "dropout": 0.5, "clones": 3},
        {"agent": "monolith"},
        {"learner": "valuation", "share_clones": False},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_every_learner_goes_on_to_the_same_bits(tmp_path, settings):
    """Frozen parts and networks to start from, too: the masks are in the checkpoint."""
    config = TrainConfig("Chain-v0", **SMALL, **settings)
    first = fit(config, jax.random.key(7), progress=False)
    whole = fit(config, KEY, progress=False, start=first, freeze=["policy/*"])
    run = {"start": first, "freeze": ["policy/*"], "progress": False, "checkpoint_every": 0}
    for stop in (2, 5):
        fit(config, KEY, tmp_path / "run", **run, resume=True, loggers=[stop_after(stop)])
    again = fit(config, KEY, tmp_path / "run", **run, resume=True)
    assert again.summary["params_sha256"] == whole.summary["params_sha256"]


@pytest.mark.bits
@pytest.mark.slow
@pytest.mark.parametrize("kind", ("one buyer", "joint purchases"))
def test_a_population_goes_on_to_the_same_bits(tmp_path, kind):
    given = plans("multiplexer", quick=True) if kind == "one buyer" else generality.plans("6 bits", quick=True)
    plan = given["market"]
    market = dataclasses.replace(plan.market, capacity=24, instances=4)
    plan = dataclasses.replace(plan, market=market, rounds=8, num_agents=12, chunks=4, settling=1)
    told = {"seeds": 2, "seed": 0}
    wanted = grow(plan, accuracy, **told)

    class StopError(Exception):
        pass

    original = jaxmarket.runs.checkpoint.Checkpoints.save
    experiment = Experiment("small", "", "", [Grow("market", plan, accuracy)])
    for at in (1, 3):

        def save(self, step, arrays, note, at=at):
            original(self, step, arrays, note)
            if step == at:
                raise StopError

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jaxmarket.runs.checkpoint.Checkpoints, "save", save)
            with pytest.raises(StopError):
                grow(plan, accuracy, **told, folder=tmp_path / "alone")
            assert finished(plan, accuracy, tmp_path / "alone", **told) is None
            stopped = engine.run(experiment, Scope(2), tmp_path / "conditions", progress=False)
            assert "StopError" in stopped.failed["market"]
    (folder,) = (tmp_path / "conditions").iterdir()
    chunks = []
    with pytest.MonkeyPatch.context() as patch:
        run_chunk = populations._run_chunk
        patch.setattr(populations, "_run_chunk", lambda *given: chunks.append(1) or run_chunk(*given))
        by_engine = engine.run(experiment, Scope(2), tmp_path / "conditions", progress=False)["market"]
        found = grow(plan, accuracy, **told, folder=tmp_path / "alone")
        assert len(chunks) == 2, "both go on after the third of four chunks"
        again = grow(plan, accuracy, **told, folder=tmp_path / "alone")
        read = engine.run(experiment, Scope(2), tmp_path / "conditions", progress=False)["market"]
        assert len(chunks) == 2, "what is finished is read back"
    for grown in (found, again, by_engine, read, finished(plan, accuracy, tmp_path / "alone", **told)):
        for name in ("opened", "rounds", "measured", "economy"):
            one, other = (flatten(getattr(each, name)) for each in (grown, wanted))
            jax.tree.map(np.testing.assert_array_equal, one, other)
    assert [path.name for path in folder.iterdir()] == ["4.safetensors"]
    with pytest.raises(ValueError, match="a market with other settings"):
        grow(dataclasses.replace(plan, wealth=3.0), accuracy, **told, folder=tmp_path / "alone")
    other = Experiment("small", "", "", [Grow("market", dataclasses.replace(plan, wealth=3.0), accuracy)])
    engine.run(other, Scope(2), tmp_path / "conditions", progress=False)
    assert len(list((tmp_path / "conditions").iterdir())) == 2


@pytest.mark.full
def test_killed_and_interrupted_at_random_moments(tmp_path):
    """Four of the hundred whose log is in benchmarks/results: a learner, a sweep, a reproduction and two processes."""
    kinds = ["valuation", "sweep", "reproduce", "launch"]
    command = [sys.executable, "-m", "benchmarks", "sigkill", "--count", "4", "--seed", "1"]
    done = subprocess.run(
        [*command, "--kinds", *kinds, "--log", str(tmp_path / "log")],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[-1].startswith("4 of 4 ended with the same bits")
    assert [line.split()[1] for line in lines[:-1]] == kinds

"""The distance from equilibrium of trained societies: the metric along training, `evaluate`, trained best replies."""

import json
from typing import Any

import jax
import numpy as np
import pytest

from jaxmarket import TrainConfig, fit
from jaxmarket.cli import main
from jaxmarket.environments import Chain
from jaxmarket.interop.bidder import Exact, truthful
from jaxmarket.interop.deviations import best_replies
from jaxmarket.runs import best_replies as measured
from jaxmarket.runs import run_folder

SMALL: dict[str, Any] = {
    "learner": "ppo",
    "hidden": (4,),
    "instances": 8,
    "horizon": 16,
    "minibatch": 32,
    "seeds": 2,
    "log_every": 1,
}
CONFIG = TrainConfig("Bandit-v0", auction="bb", steps=5 * 128, **SMALL)
NAME = "best_reply_gain"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gain") / "run"
    fit(CONFIG, jax.random.key(0), folder, best_reply_every=2, progress=False)
    return folder


@pytest.mark.slow
def test_the_metric_is_that_of_the_society_at_that_time(folder):
    run = run_folder.read(folder)
    gains = run.metrics[NAME]
    np.testing.assert_array_equal(np.isfinite(gains).all(1), [False, True, False, True, True])
    society, params = CONFIG.settings.society, run.params
    for seed in range(2):
        own = jax.tree.map(lambda leaf, seed=seed: leaf[seed], params)
        assert gains[-1, seed] == pytest.approx(best_replies(society, own, "terminal").gains.max(), rel=1e-6)
    assert run.summary[NAME] == pytest.approx(gains[-1].mean())
    without = fit(CONFIG, jax.random.key(0), progress=False)
    assert NAME not in without.metrics
    np.testing.assert_array_equal(without.metrics["return_mean"], run.metrics["return_mean"])


@pytest.mark.slow
def test_a_resumed_run_has_the_same_metrics(folder, tmp_path):
    def stop(record):
        if record.chunk == 3:
            raise KeyboardInterrupt

    again = tmp_path / "run"
    fit(CONFIG, jax.random.key(0), again, best_reply_every=2, loggers=[stop], progress=False)
    fit(CONFIG, jax.random.key(0), again, best_reply_every=2, resume=True, progress=False)
    assert (again / "metrics.csv").read_text() == (folder / "metrics.csv").read_text()


@pytest.mark.slow
def test_a_resumed_run_may_begin_and_cease_to_measure(folder, tmp_path):
    def stop(record):
        if record.chunk == 3:
            raise KeyboardInterrupt

    for first, then, known in ((None, 1, [3, 4]), (1, None, [0, 1, 2])):
        again = tmp_path / str(first)
        fit(CONFIG, jax.random.key(0), again, best_reply_every=first, loggers=[stop], progress=False)
        fit(CONFIG, jax.random.key(0), again, best_reply_every=then, resume=True, progress=False)
        gains = run_folder.read(again).metrics[NAME]
        np.testing.assert_array_equal(np.flatnonzero(np.isfinite(gains).all(1)), known)


def test_the_figure_has_a_curve_of_the_gain(folder):
    fig = run_folder.read(folder).plot()
    assert [ax.get_title() for ax in fig.axes][1] == "distance from equilibrium"
    assert (folder / "best_reply_gain.png").exists()


@pytest.mark.parametrize(
    ("config", "every", "says"),
    [
        (CONFIG, 0, "best_reply_every"),
        (TrainConfig("Bandit-v0", **dict(SMALL, log_every=2), steps=512), 3, "best_reply_every: .* multiple"),
        (TrainConfig("CartPole-v1", **SMALL, steps=512), 1, "best_reply_every: expected a society over a FiniteMDP"),
        (TrainConfig("Bandit-v0", agent="monolith", steps=512), 1, "best_reply_every"),
    ],
)
def test_what_cannot_be_measured_is_refused(config, every, says):
    with pytest.raises(ValueError, match=says):
        fit(config, jax.random.key(0), best_reply_every=every, progress=False)


def test_other_parameters_of_the_environment_are_refused():
    params = CONFIG.adapter.default_params
    with pytest.raises(ValueError, match="best_reply_every"):
        fit(CONFIG, jax.random.key(0), env_params=params, best_reply_every=1, progress=False)


def test_evaluate_shows_the_gain_of_every_bidder(folder, capsys):
    main(["evaluate", str(folder), "--json"])
    out = capsys.readouterr().out
    assert "distance from equilibrium" in out
    found, run = json.loads(out.splitlines()[-1]), run_folder.read(folder)
    assert len(found["greedy_best_reply_gains"]) == CONFIG.settings.society.bidders
    assert found["sampled_best_reply_gain"] == pytest.approx(run.summary[NAME])
    assert found["greedy_best_reply_gain"] != found["sampled_best_reply_gain"]


@pytest.mark.slow
def test_a_trained_reply_says_what_it_earns():
    """An overbidder that never learns: its gain in episodes is that in exact expectation."""
    society, params = truthful(Chain())
    found = measured.trained(
        society, params, 2, (0.0, 0.9), jax.random.key(0),
        time_limits="terminal", episodes=2000, steps=2048, instances=4, seeds=2, hidden=(4,),
    )  # fmt: skip
    exact = Exact(found.env)
    strategies = exact.learned(found.config.settings.trainable.player(greedy=True), found.params)
    for gain, error, bids in zip(found.gains, found.errors, strategies, strict=True):
        assert abs(gain - exact.gain(bids)) < 4 * error + 1e-5

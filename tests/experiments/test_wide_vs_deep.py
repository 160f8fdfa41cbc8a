"""Agents that know their production functions, the arms, and what the report makes of curves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket.environments import SupplyChain
from jaxmarket.experiments import wide_vs_deep as experiment
from jaxmarket.experiments.report import ExperimentOptions
from jaxmarket.experiments.wide_vs_deep import GAMMA, QUOTING, Curve, points, prepare, quoting
from jaxmarket.training.choices import ProductHead
from jaxmarket.training.monolith import Monolith

KEY = jax.random.key(0)


@pytest.mark.slow
def test_quotes_are_backed_up_a_stage_a_round_and_come_to_what_pieces_are_worth():
    env = SupplyChain(2)
    wide = prepare("wide", 2, 640)[1].player(greedy=True)
    prices = np.asarray(jax.jit(lambda key: quoting(wide, key, 160))(KEY)).reshape(160, env.lines, env.stages)
    before = np.zeros((env.lines, env.stages))
    for found in prices[:20]:
        onward = np.append(before[:, 1:], before[:, :1], 1)
        onward = GAMMA * onward + np.eye(env.stages)[-1]  # the last stage sells for 1, and begins again
        before = np.maximum(onward, GAMMA * before[:, :1])  # or the piece is spoilt
        np.testing.assert_allclose(found, before, rtol=1e-5)
    np.testing.assert_allclose(prices[-1], np.tile(env.worth(GAMMA), (env.lines, 1)), rtol=1e-3)
    bids = experiment._expected(env, jnp.asarray(prices[-1]).reshape(-1)).reshape(env.lines, env.operations, env.stages)
    np.testing.assert_array_equal(bids.argmax(1), env.recipe)
    play = jax.jit(lambda prices: wide.play(experiment._expected(env, prices.reshape(-1)), KEY, env.default_params))
    first, last = (float(play(prices[t]).returns[0]) for t in (0, env.stages - 1))
    assert last == 2 * env.optimal_return() > first


def test_looks_are_whole_updates_and_end_with_the_run():
    looks = points(102_400, 256)
    assert looks[0] == 256 and looks[-1] == 102_400
    assert (np.diff(looks) > 0).all() and not (looks % 256).any()
    gaps = np.diff(points(102_400, 32))
    assert gaps[0] == 32 and gaps[-1] > 5000


def test_arms_differ_where_they_should():
    wide, deep = prepare("wide", 2, 640), prepare("deep", 2, 640)
    assert wide[0].env == deep[0].env and wide[0].settings.hyperparameters == deep[0].settings.hyperparameters
    assert wide[1].learner == deep[1].learner and wide[1].horizon == deep[1].horizon == 32
    assert deep[1].society.bidders == 2 * 4 * 2 and deep[1].instances == 1
    for arm, head in (("PPO, joint", 16), ("PPO, serial", 8)):
        learner = prepare(arm, 2, 640)[1]
        assert isinstance(learner, Monolith) and learner.learner.policy.head.outputs == head
    assert prepare("PPO, factored", 2, 640)[1].learner.policy.head == ProductHead(2, 4)
    assert prepare("deep", 2, 640, exploration=0.7)[0].exploration == 0.7


# --- the report


def curve(arm, lines, at, seeds=8, never=0):
    """A curve of seeds that jump from nothing to the optimum around step ``at``; the last ``never`` ones do not."""
    steps, serial = points(10_240, 32), 32.0
    jobs = lines if arm not in ("deep", "PPO, serial") else 1
    own = serial * jobs
    when = at * (1 + 0.02 * np.arange(seeds))
    returns = np.where((steps >= when[:, None]) & (np.arange(seeds)[:, None] < seeds - never), own, 0.0)
    prices = None
    if arm.startswith("wide"):
        worth = np.tile(SupplyChain(1).worth(GAMMA), lines)
        prices = np.tile(worth, (16 if arm == QUOTING else seeds, 1))
    if arm == QUOTING:
        steps = np.arange(1, 17)
        returns = np.tile(np.where(steps < 3, 0, own), (seeds, 1))
    return Curve(arm, lines, steps, returns, own, serial, jobs, prices, 1e-8 if arm == "wide" else None)


def test_curves_are_read_as_they_were_written():
    for arm in ("wide", "deep"):
        one = curve(arm, 2, 300)
        two = Curve.read(one.save())
        assert one.save() == two.save()
        np.testing.assert_array_equal(one.returns, two.returns)
        assert (two.prices is None) == (arm == "deep") and two.own == one.own


def test_steps_to_a_level_are_those_of_the_first_look_that_shows_it():
    one = Curve("deep", 2, np.array([10, 20, 40]), np.array([[0, 29, 32], [30, 0, 0], [0, 1, 2]]), 32.0, 32.0, 1)
    np.testing.assert_array_equal(one.steps_to(32), [20, 10, np.nan])
    np.testing.assert_array_equal(one.steps_to(32, 1.0), [40, np.nan, np.nan])
    np.testing.assert_array_equal(experiment.steps_to_own(one), one.steps_to(32))
    half = dataclasses.replace(one, own=64.0, jobs=2)
    np.testing.assert_array_equal(experiment.steps_to_serial(half), [20, 10, np.nan])
    np.testing.assert_array_equal(experiment.operations_per_line(dataclasses.replace(one, jobs=1)), [10, 5, np.nan])
    costs, there = experiment._least(one, experiment.operations_per_line)
    assert there.tolist() == [True, True, False] and costs.tolist() == [10, 5, 20]


def test_who_is_sooner():
    def judge(ours, theirs):
        return experiment.sooner("", ours, theirs, experiment.steps_to_own)

    fast, slow = [curve("wide", n, 300) for n in (2, 4)], [curve("deep", n, 900) for n in (2, 4)]
    assert judge(fast, slow).standing == "confirmed" and judge(slow, fast).standing == "not confirmed"
    assert judge(fast, fast).standing == "not confirmed"
    assert judge([fast[0], slow[1]], slow).standing == "not confirmed"  # on every number of lines
    late = [curve("deep", 2, 8000)]  # seeds that never reach it count as 10,240 steps
    assert judge([curve("wide", 2, 300, seeds=16, never=1)], late).standing == "confirmed"
    assert judge([curve("wide", 2, 300, seeds=16, never=1)], slow[:1]).standing == "not confirmed"
    assert judge([curve("wide", 2, 300, seeds=16, never=5)], late).standing == "not confirmed"
    assert judge(fast, [curve("deep", n, 300, never=8) for n in (2, 4)]).standing == "confirmed"
    verdict = judge(fast, slow)
    assert 0.3 < verdict.number < 0.4 and "2 lines" in verdict.evidence and "(8/8) against" in verdict.evidence
    assert "difference of the means -" in verdict.evidence


@pytest.mark.parametrize(("wide", "standing"), [(400.0, "confirmed"), (410.0, "confirmed"), (430.0, "not confirmed")])
def test_on_one_line_markets_are_equal_if_the_interval_of_the_difference_contains_zero(wide, standing):
    at = {"deep": 400.0, "wide": wide, QUOTING: 3.0}
    arms = (*at, *experiment._BASELINES)
    curves = {(arm, n): curve(arm, n, at.get(arm, 900.0)) for arm in arms for n in (1, 2)}
    control = next(iter(experiment._verdicts(curves)))
    assert "control" in control.claim and control.standing == standing
    assert "difference of the means " in control.evidence


def test_the_report_is_made_of_curves(tmp_path):
    options = ExperimentOptions(tmp_path, seeds=8, quick=True, progress=False)
    speed = {
        "deep": 400.0,
        "wide": 400.0,
        QUOTING: 3.0,
        "PPO, serial": 900.0,
        "PPO, joint": 5000.0,
        "PPO, factored": 2000.0,
    }
    for arm, lines in experiment._cells(options):
        made = curve(arm, lines, speed[arm] * (lines if arm == "deep" else 1))
        (tmp_path / f"{arm.replace(', ', '-')}-{lines}.json").write_text(made.save())
    report = experiment.run(options)
    table = report.tables[0].rows
    assert [row["lines"] for row in table] == [1] * 5 + [2] * 2 + [4] * 6
    deep, wide = (next(r for r in table if r["arm"] == arm and r["lines"] == 4) for arm in ("deep", "wide"))
    assert deep["of own optimum"].value == wide["of own optimum"].value == wide["of parallel optimum"].value == 1
    assert deep["of parallel optimum"].value == 0.25 and deep["reached"] == "8/8"
    assert deep["k operations per line"].value == pytest.approx(deep["k steps"].value / 4)
    assert wide["k operations per line"].value == wide["k steps"].value
    standings = {verdict.claim: verdict.standing for verdict in report.verdicts}
    assert len(standings) == 12
    failed = [claim for claim, standing in standings.items() if standing != "confirmed"]
    assert failed == ["the wide market reaches 90% of its own optimum with fewer operations per line than the deep one"]
    assert report.settings["conservation_residual"] == 1e-8
    assert set(report.figures) == {"steps", "learning", "prices"}
    written = report.write(tmp_path)
    assert {"steps.png", "prices.csv", "report.json"} <= set(written.written)


@pytest.mark.full
def test_the_wide_market_learns_all_lines_and_what_pieces_are_worth():
    wide = experiment.measure("wide", 2, seeds=8, seed=11, steps=20_480)
    deep = experiment.measure("deep", 2, seeds=8, seed=11, steps=20_480)
    assert wide.own == 2 * deep.own == 64
    np.testing.assert_array_equal(wide.final, wide.own)
    assert np.median(deep.final) >= 0.9 * deep.own
    assert np.nanmax(experiment.steps_to_own(wide)) < 5000
    assert wide.residual < 1e-5
    ratio = experiment._prices(wide) / SupplyChain(2).worth(GAMMA)
    assert np.abs(ratio - 1).max() < 0.2


@pytest.mark.full
@pytest.mark.parametrize("arm", ["PPO, serial", "PPO, joint", "PPO, factored", QUOTING])
def test_the_rivals_learn_too(arm):
    found = experiment.measure(arm, 2, seeds=8, seed=11, steps=20_480)
    assert np.median(found.final) >= 0.9 * found.own

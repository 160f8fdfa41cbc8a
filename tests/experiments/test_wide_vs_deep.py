"""Agents that know their production functions, the arms, and what the report makes of curves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket.environments import SupplyChain
from jaxmarket.experiments import Scope
from jaxmarket.experiments import experiment as engine
from jaxmarket.experiments import wide_vs_deep as experiment
from jaxmarket.experiments.results import Results
from jaxmarket.experiments.wide_vs_deep import BASELINES, EXPERIMENT, GAMMA, config, learn
from jaxmarket.runs.production_lines import QUOTING, environment, optima, price_rows, program_of
from jaxmarket.training.actions import ProductHead
from jaxmarket.training.learning_curves import evaluation_times
from jaxmarket.training.monolith import Monolith
from jaxmarket.training.quoting import play_quotes, quote, quoted_bids

KEY = jax.random.key(0)
MEASURES = EXPERIMENT.measures


def prepare(arm, lines, **settings):
    """Configuration and program of a condition that learns, for 640 steps."""
    made = config(arm, lines, 640, **settings)
    return made, program_of(arm, made)


@pytest.mark.slow
def test_quotes_are_backed_up_a_stage_a_round_and_come_to_what_pieces_are_worth():
    env = SupplyChain(2)
    params = env.default_params
    wide = prepare("wide", 2)[1].player(greedy=True)
    prices = jax.jit(lambda key: quote(wide, key, params, 160, gamma=GAMMA))(KEY)
    prices = np.asarray(prices).reshape(160, env.lines, env.stages)
    before = np.zeros((env.lines, env.stages))
    for found in prices[:20]:
        onward = np.append(before[:, 1:], before[:, :1], 1)
        onward = GAMMA * onward + np.eye(env.stages)[-1]  # the last stage sells for 1, and begins again
        before = np.maximum(onward, GAMMA * before[:, :1])  # or the piece is spoilt
        np.testing.assert_allclose(found, before, rtol=1e-5)
    np.testing.assert_allclose(prices[-1], np.tile(env.worth(GAMMA), (env.lines, 1)), rtol=1e-3)
    bids = quoted_bids(env, jnp.asarray(prices[-1]).reshape(-1), params, gamma=GAMMA)
    np.testing.assert_array_equal(bids.reshape(env.lines, env.operations, env.stages).argmax(1), env.recipe)
    returns, played = play_quotes(wide, KEY, env.stages, gamma=GAMMA)
    np.testing.assert_array_equal(played, prices[: env.stages].reshape(env.stages, -1))
    assert returns[-1] == 2 * env.optimal_return() > returns[0]


def test_looks_are_whole_updates_and_end_with_the_run():
    looks = evaluation_times(400, 96)
    assert looks[0] == 1 and looks[-1] == 400
    assert (np.diff(looks) > 0).all()
    gaps = np.diff(evaluation_times(3200, 96))
    assert gaps[0] == 1 and gaps[-1] > 5000 // 32


def test_arms_differ_where_they_should():
    wide, deep = prepare("wide", 2), prepare("deep", 2)
    assert wide[0].env == deep[0].env and wide[0].settings.hyperparameters == deep[0].settings.hyperparameters
    assert wide[1].learner == deep[1].learner and wide[1].horizon == deep[1].horizon == 32
    assert deep[1].society.bidders == 2 * 4 * 2 and deep[1].instances == 1
    for arm, head in (("PPO, joint", 16), ("PPO, serial", 8)):
        learner = prepare(arm, 2)[1]
        assert isinstance(learner, Monolith) and learner.learner.policy.head.outputs == head
    assert prepare("PPO, factored", 2)[1].learner.policy.head == ProductHead(2, 4)
    assert prepare("deep", 2, exploration=0.7)[0].exploration == 0.7


def test_on_one_line_all_ppo_agents_are_one_condition():
    """They are the same program there; elsewhere every arm has its own condition, where it is affordable."""
    serial, joint = (prepare(arm, 1)[1] for arm in ("PPO, serial", "PPO, joint"))
    assert serial.learner == joint.learner and serial.env.num_actions == joint.env.num_actions
    names = [condition.name for condition in EXPERIMENT.planned(Scope())]
    assert [name for name in names if name.endswith(", 1")] == ["deep, 1", "wide, 1", "PPO, serial, 1", f"{QUOTING}, 1"]
    assert len(names) == 4 + 6 + 6 + 5 and "PPO, joint, 8" not in names
    assert all(f"{arm}, 2" in names for arm in BASELINES)


# --- the report


def curve(arm, lines, at, seeds=8, never=0):
    """A curve of seeds that jump from nothing to the optimum around step ``at``; the last ``never`` ones do not."""
    steps, best = 32 * evaluation_times(320, 96), optima(arm, lines)
    when = at * (1 + 0.02 * np.arange(seeds))
    returns = np.where((steps >= when[:, None]) & (np.arange(seeds)[:, None] < seeds - never), best["own"], 0.0)
    found = {"steps": steps, "returns": returns, **best}
    if arm.startswith("wide"):
        worth = np.tile(SupplyChain(1).worth(GAMMA), lines)
        found["prices"] = np.tile(worth, (16 if arm == QUOTING else seeds, 1))
    if arm == "wide":
        found["residual"] = np.float32(1e-8)
    if arm == QUOTING:
        found["steps"] = np.arange(1, 17)
        found["returns"] = np.tile(np.where(found["steps"] < 3, 0, best["own"]), (seeds, 1))
    return found


def test_optima_are_those_of_the_actions():
    assert optima("deep", 2) == {"lines": 2, "own": 32, "serial": 32, "jobs": 1}
    for arm in ("wide", QUOTING, "PPO, factored", "PPO, joint"):
        assert optima(arm, 2) == {"lines": 2, "own": 64, "serial": 32, "jobs": 2}


def test_methods_without_an_agent_are_refused():
    with pytest.raises(ValueError, match="method: unknown method 'PPO'; choose from 'deep', 'PPO, serial', 'wide'"):
        environment("PPO", 2)


def test_the_price_of_a_stage_is_of_all_lines_and_the_quoted_one_of_the_first_line():
    learned = {"lines": 2, "prices": np.array([[1.0, 2, 3, 6], [1, 2, 3, 6], [1, 4, 3, 6]])}  # [seeds, lines * stages]
    quoted = {"lines": 2, "prices": np.array([[0.0, 1, 9, 9], [0.5, 1, 9, 9]])}
    first, last = price_rows(learned, quoted, 0.5, (1, 2))
    assert (first["stage"], first["worth"], first["lowest"], first["highest"]) == (0, 0.5 / 0.75, 1, 3)
    assert (last["stage"], last["worth"], last["lowest"], last["highest"]) == (1, 1 / 0.75, 2, 6)
    assert (first["learned"].value, last["learned"].value) == (2, pytest.approx(13 / 3))  # means over lines: 4, 4, 5
    assert [first["quoted, round 1"], first["quoted, round 2"], last["quoted, round 2"]] == [0, 0.5, 1]


def test_steps_to_a_level_are_those_of_the_first_look_that_shows_it():
    returns = np.array([[0, 29, 32], [30, 0, 0], [0, 1, 2]])
    one = {"steps": np.array([10, 20, 40]), "returns": returns, "own": 32.0, "serial": 32.0, "lines": 2, "jobs": 1}
    np.testing.assert_array_equal(MEASURES["steps"](one), [20, 10, 40])  # the last one never gets there
    np.testing.assert_array_equal(MEASURES["reached"](one), [True, True, False])
    np.testing.assert_array_equal(MEASURES["operations per line"](one), [10, 5, 20])
    half = one | {"own": 64.0, "jobs": 2}
    np.testing.assert_array_equal(MEASURES["steps"](half), [40, 40, 40])
    np.testing.assert_array_equal(MEASURES["operations per line"](half), [40, 40, 40])
    np.testing.assert_array_equal(MEASURES["steps to serial"](half), [20, 10, 40])
    np.testing.assert_array_equal(MEASURES["reached serial"](half), [True, True, False])
    np.testing.assert_array_equal(MEASURES["perfect from"](one), [40, np.nan, np.nan])
    np.testing.assert_array_equal(MEASURES["of parallel optimum"](one), [0.5, 0, 2 / 64])


def made_up(curves, scope=None):
    """The results of a full experiment, of which these conditions have finished."""
    return Results(scope or Scope(seeds=8), curves, {}, MEASURES)


@pytest.mark.parametrize(
    ("wide", "deep", "standing"),
    [
        ({"at": 300}, {"at": 900}, "confirmed"),
        ({"at": 900}, {"at": 300}, "not confirmed"),
        ({"at": 300}, {"at": 300}, "not confirmed"),
        # Seeds that never get there count as 10,240 steps.
        ({"at": 300, "seeds": 16, "never": 1}, {"at": 8000}, "confirmed"),
        ({"at": 300, "seeds": 16, "never": 1}, {"at": 900}, "not confirmed"),
        ({"at": 300, "seeds": 16, "never": 5}, {"at": 8000}, "not confirmed"),
        ({"at": 300}, {"at": 300, "never": 8}, "confirmed"),
    ],
)
def test_who_is_sooner(wide, deep, standing):
    results = made_up({"wide, 2": curve("wide", 2, **wide), "deep, 2": curve("deep", 2, **deep)})
    verdict = experiment._sooner("is sooner", "deep", 2).verdict(results)
    assert verdict.standing == standing and verdict.claim == "2 lines: the wide market is sooner than the deep one"
    seeds, never = wide.get("seeds", 8), wide.get("never", 0)
    assert f"reached by {seeds - never}/{seeds} and {8 - deep.get('never', 0)}/8" in verdict.evidence


def claim(text, scope=None):
    """The claim of that beginning."""
    (found,) = [each for each in EXPERIMENT.claimed(scope or Scope()) if each.text.startswith(text)]
    return found


@pytest.mark.parametrize(("wide", "standing"), [(400.0, "confirmed"), (410.0, "confirmed"), (430.0, "not confirmed")])
def test_on_one_line_markets_are_equal_if_the_interval_of_the_difference_contains_zero(wide, standing):
    results = made_up({"wide, 1": curve("wide", 1, wide), "deep, 1": curve("deep", 1, 400.0)})
    control = claim("on one line").verdict(results)
    assert control.standing == standing
    assert "difference of the means " in control.evidence


@pytest.mark.parametrize(("at", "grows"), [(400, False), (430, True), (300, False)])
def test_steps_grow_if_the_interval_of_the_difference_is_above_zero(at, grows):
    ends = {f"{arm}, {n}": curve(arm, n, at if n == 8 else 400) for arm in ("wide", "deep") for n in (1, 8)}
    wide = claim("from one line to 8 the wide market").verdict(made_up(ends))
    deep = claim("from one line to 8 the deep market").verdict(made_up(ends))
    assert (wide.standing, deep.standing) == (
        ("not confirmed", "confirmed") if grows else ("confirmed", "not confirmed")
    )


def test_prices_and_quotes_are_judged_on_every_seed():
    wide, known = curve("wide", 8, 400), {f"{QUOTING}, {n}": curve(QUOTING, n, 3) for n in (1, 2, 4, 8)}
    prices, quoted = claim("8 lines: final prices"), claim("quoting agents")
    assert prices.verdict(made_up({"wide, 8": wide})).standing == "confirmed"
    assert quoted.verdict(made_up(known)).standing == "confirmed"
    wide["prices"] = wide["prices"].copy()
    wide["prices"][3, 5] *= 1.06
    verdict = prices.verdict(made_up({"wide, 8": wide}))
    assert verdict.standing == "not confirmed" and verdict.number == pytest.approx(0.06)
    known[f"{QUOTING}, 2"]["returns"][5, 10] -= 1  # it does not stay at its optimum
    assert quoted.verdict(made_up(known)).standing == "not confirmed"


@pytest.mark.slow
def test_the_report_is_made_of_curves(tmp_path):
    scope = Scope(seeds=8, quick=True)
    speed = {"deep": 400, "wide": 400, QUOTING: 3, "PPO, serial": 900, "PPO, joint": 5000, "PPO, factored": 2000}
    curves = {}
    for condition in EXPERIMENT.planned(scope):
        arm, lines = condition.name.rsplit(", ", 1)
        never = 5 if condition.name == "PPO, joint, 4" else 0
        curves[condition.name] = curve(arm, int(lines), speed[arm] * (int(lines) if arm == "deep" else 1), never=never)
    report = engine.report(EXPERIMENT, made_up(curves, scope), tmp_path)
    table = report.tables[0].rows
    assert [row["condition"][-1] for row in table] == ["4"] * 6 + ["2"] * 2 + ["1"] * 3
    deep, wide, joint = (next(r for r in table if r["condition"] == f"{a}, 4") for a in ("deep", "wide", "PPO, joint"))
    assert deep["of own optimum"].value == wide["of own optimum"].value == wide["of parallel optimum"].value == 1
    assert deep["of parallel optimum"].value == 0.25 and deep["reached"] == "8/8"
    assert deep["operations per line"].value == pytest.approx(deep["steps"].value / 4)
    assert wide["operations per line"].value == wide["steps"].value
    # Three of eight seeds get there: the middle half of the seeds has one of them, and three whole runs.
    assert joint["reached"] == "3/8" and 8000 < joint["steps"].value < 10_240 == joint["steps"].high
    standings = {verdict.claim: verdict.standing for verdict in report.verdicts}
    assert len(standings) == 1 + 4 * 2 + 2 + 3 + 2
    failed = [claim for claim, standing in standings.items() if standing != "confirmed"]
    assert failed == [
        f"{n} lines: the wide market reaches 90% of its own optimum with fewer operations per line than the deep one"
        for n in (2, 4)
    ]
    assert report.settings["conservation_residual"] == pytest.approx(1e-8)
    assert {"steps.png", "learning.png", "prices.png", "prices.csv", "report.json"} <= set(report.written)


@pytest.mark.full
def test_the_wide_market_learns_all_lines_and_what_pieces_are_worth():
    keys = jax.random.split(jax.random.key(11), 8)
    wide, deep = (learn(arm, 2, 20_480, keys) for arm in ("wide", "deep"))
    assert wide["own"] == 2 * deep["own"] == 64
    np.testing.assert_array_equal(MEASURES["return"](wide), wide["own"])
    assert np.median(MEASURES["return"](deep)) >= 0.9 * deep["own"]
    assert MEASURES["steps"](wide).max() < 5000
    assert wide["residual"] < 1e-5
    assert MEASURES["error of prices"](wide).max() < 0.2


@pytest.mark.full
@pytest.mark.parametrize("arm", ["PPO, serial", "PPO, joint", "PPO, factored", QUOTING])
def test_the_rivals_learn_too(arm):
    keys = jax.random.split(jax.random.key(11), 8)
    found = learn(arm, 2, 20_480, keys)
    assert np.median(MEASURES["return"](found)) >= 0.9 * found["own"]

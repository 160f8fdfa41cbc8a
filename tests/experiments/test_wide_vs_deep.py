"""The wide market of workshops against plain Python and against the society, and what the report makes of curves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket import rollouts
from jaxmarket.environments import SupplyChain
from jaxmarket.experiments import wide_vs_deep as experiment
from jaxmarket.experiments.report import ExperimentOptions
from jaxmarket.experiments.wide_vs_deep import ARMS, GAMMA, QUOTING, Curve, Wide, WideSale, points, prepare, quoting
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.monolith import Monolith, ProductHead

KEY = jax.random.key(0)
CONFIG = TrainConfig(SupplyChain(3, 4, 3, material=0.25, seed=1), gamma=GAMMA, steps=64, **ARMS["wide"])
WIDE = Wide.of(CONFIG)
ENV = WIDE.env
HYPER = CONFIG.settings.hyperparameters.as_arrays()
JOBS, CLONES = ENV.lines * ENV.operations, WIDE.clones


def some_values(seed):
    """Bids without ties: f [L * M, K]."""
    count = JOBS * ENV.stages
    return np.random.default_rng(seed).permutation(count).reshape(JOBS, ENV.stages).astype(np.float32) / count


def trades(values, rounds, exploration=None):
    """Rounds of a market with these bids."""

    def one(economy, key):
        economy, sale = WIDE.trade(key, economy, exploration)
        return economy, (sale, economy.holdings, economy.wealth)

    return jax.jit(lambda: jax.lax.scan(one, WIDE.open(jnp.asarray(values)), jax.random.split(KEY, rounds))[1])()


def test_every_line_is_a_market_of_its_own():
    """Without exploration, in plain Python: the job that offers most for a line's piece gets it, at its clone's bid."""
    values = some_values(0)
    for job, (line, operation) in enumerate(np.ndindex(ENV.lines, ENV.operations)):
        for stage in range(ENV.stages):
            if ENV.recipe[line][stage] == operation and (line == 0 or (line == 1 and stage < 3)):
                values[job, stage] += 1  # one line works, one comes to the last stage, one does what it does
    sales, holdings, wealth = trades(values, 20)
    pieces, money = [0] * ENV.lines, np.full((JOBS, CLONES), 1e4)
    for t in range(20):
        for line in range(ENV.lines):
            stage, jobs = pieces[line], range(line * ENV.operations, (line + 1) * ENV.operations)
            winner = max(jobs, key=lambda job, stage=stage: values[job, stage])
            right = ENV.recipe[line][stage] == winner % ENV.operations
            sold = right and stage == ENV.stages - 1
            pieces[line] = stage + 1 if right and not sold else 0
            np.testing.assert_array_equal(sales.stage[t, line], np.eye(ENV.stages)[stage])
            assert sales.price[t, line] == sales.payout[t, line] == values[winner, stage]
            assert sales.reward[t, line] == (1.0 if sold else 0.0 if right else -0.25)
            assert np.asarray(sales.won[t]).reshape(JOBS, CLONES)[list(jobs)].sum(1).tolist() == [
                float(job == winner) for job in jobs
            ]
        assert sales.won[t].sum() == ENV.lines and not sales.outbid[t].any()
        shelf = np.asarray(holdings[t]).reshape(JOBS, CLONES, ENV.lines, ENV.stages).sum((0, 1))
        np.testing.assert_array_equal(shelf, np.eye(ENV.stages)[pieces])
        # What is made belongs to who made it.
        np.testing.assert_array_equal(np.asarray(holdings[t]).sum(1), sales.won[t])
        money = money + np.asarray(sales.reward[t]).sum() / money.size
        np.testing.assert_allclose(np.asarray(wealth[t], np.float64).sum(), money.sum(), rtol=1e-6)
    assert np.asarray(sales.reward).min() < 0 < np.asarray(sales.reward).max()


def test_exploration_gives_a_piece_to_any_worker_of_its_line_and_to_no_other():
    values = some_values(3)
    sales, _, _ = trades(values, 600, exploration=1.0)
    lines = np.repeat(np.arange(ENV.lines), ENV.operations * CLONES)
    won = np.asarray(sales.won)
    for line in range(ENV.lines):
        assert (won[:, lines == line].sum(1) == 1).all()
    counts = won.sum(0)
    assert counts.min() > 60 and counts.max() < 145  # 100 expected, a standard deviation of 9
    offers = np.einsum("tlk,lok->tlo", sales.stage, values.reshape(ENV.lines, ENV.operations, ENV.stages))
    # The other clone bids the same, so that the highest other bid is the highest, for every winner.
    np.testing.assert_allclose(sales.price, offers.max(2), rtol=1e-6)
    winner = won.reshape(600, ENV.lines, ENV.operations, CLONES).sum(3).argmax(2)
    np.testing.assert_array_equal(sales.outbid, winner != offers.argmax(2))


def test_on_one_line_the_wide_market_is_the_deep_one():
    """The same networks, in a society that owns the whole world in turn: the same sales, to the last bit."""
    config, wide = prepare("wide", 1, 64)
    society = config.settings.trainable.society
    params = jax.vmap(wide.learner.init, (0, None))(jax.random.split(KEY, 4), jnp.zeros(4)).params
    # Random bids, and more for what is right but at the last stage: pieces come that far, and are spoilt.
    right = (jnp.asarray(wide.env.recipe[0]) == jnp.arange(4)[:, None]).at[:, 3].set(False)
    bonus = jnp.pad(right, ((0, 0), (0, 1)))[..., None]
    params = jax.tree.map(lambda x: jax.random.uniform(KEY, x.shape) + 2 * bonus, params)
    greedy = dataclasses.replace(society, greedy=True)
    rows = jax.jit(lambda: rollouts.fresh_rollout(greedy, KEY, params, society.env.default_params, 40))()

    def one(economy, key):
        return wide.trade(key, economy)

    sales = jax.jit(lambda: jax.lax.scan(one, wide.open(wide.bids(params)), jax.random.split(KEY, 40))[1])()
    np.testing.assert_array_equal(sales.stage[:, 0], rows.obs)
    np.testing.assert_allclose(sales.price[:, 0], rows.price, rtol=1e-6)
    np.testing.assert_array_equal(sales.reward[:, 0], rows.reward)
    assert set(np.asarray(rows.obs).argmax(1).tolist()) == {0, 1, 2, 3}
    assert wide.learner == config.settings.trainable.learner


def test_settlement_is_a_loop_over_sales():
    rng, rounds = np.random.default_rng(0), 9
    price, reward = rng.random((rounds, 2)), rng.random((rounds, 2))
    outbid = rng.random((rounds, 2)) < 0.4
    sales = WideSale(
        stage=jnp.zeros((rounds, 2, 3)),
        won=jnp.zeros((rounds, 4)),
        price=jnp.asarray(price),
        payout=jnp.asarray(price + 0.5),
        reward=jnp.asarray(reward),
        outbid=jnp.asarray(outbid),
    )
    found = WIDE.settle(sales, HYPER.replace(trace_decay=0.6))
    plain = WIDE.settle(sales, HYPER.replace(trace_decay=None))
    assert found.shape == (rounds - 1, 2)
    np.testing.assert_allclose(plain, reward[:-1] + GAMMA * (price + 0.5)[1:], rtol=1e-6)
    for line in range(2):
        expected = 0.0
        for t in range(rounds - 2, -1, -1):
            share = 0 if t == rounds - 2 or outbid[t + 1, line] else 0.6
            payout = price[t + 1, line] + 0.5
            expected = reward[t, line] + GAMMA * ((1 - share) * payout + share * expected)
            np.testing.assert_allclose(found[t, line], expected, rtol=1e-5)


@pytest.fixture(scope="module")
def updated():
    """A market before and after updates; and the function that makes one."""
    update = jax.jit(lambda state: WIDE.update(state, HYPER))
    before = jax.jit(WIDE.init)(KEY, HYPER)
    middle = before
    for _ in range(40):
        middle = update(middle)
    return before, middle, update


def test_what_a_job_learns_does_not_depend_on_other_lines(updated):
    """Other bids on another line change everything there, and not a bit here."""
    _, state, update = updated
    elsewhere = jnp.arange(JOBS) // ENV.operations == 2

    def spoil(x):
        return jnp.where(elsewhere.reshape(-1, *[1] * (x.ndim - 1)), x + 0.3, x)

    learner = state.learner.replace(params=jax.tree.map(spoil, state.learner.params))
    other = state.replace(
        learner=learner,
        economy=state.economy.replace(agents=experiment.workers(ENV, WIDE.bids(learner.params), CLONES)),
    )
    one, two = update(state), update(other)
    for x, y in zip(jax.tree.leaves(one.learner), jax.tree.leaves(two.learner), strict=True):
        np.testing.assert_array_equal(x[~elsewhere], y[~elsewhere])
    moved = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), one.learner.params, state.learner.params)
    assert max(float(x) for x in jax.tree.leaves(moved)) > 0
    assert float(jnp.abs(one.economy.prices - two.economy.prices)[: 2 * ENV.stages].max()) == 0
    assert float(jnp.abs(one.economy.prices - two.economy.prices)[2 * ENV.stages :].max()) > 0


def test_agents_bid_what_they_have_learned_and_clones_the_same(updated):
    _, state, _ = updated
    values = np.asarray(state.economy.agents.values).reshape(JOBS, CLONES, ENV.stages)
    np.testing.assert_array_equal(values, np.repeat(np.asarray(WIDE.bids(state.learner.params))[:, None], CLONES, 1))
    assert len(np.unique(values)) > JOBS
    offers = jax.vmap(experiment._Bids(ENV), (0, None))(state.economy.agents, None).values
    own = np.isfinite(offers).reshape(-1, ENV.lines, ENV.stages)
    np.testing.assert_array_equal(own.all(2), np.eye(ENV.lines)[np.asarray(state.economy.agents.line)])
    np.testing.assert_array_equal(own.any(2), own.all(2))


def test_money_comes_from_rewards_alone(updated):
    before, state, _ = updated
    assert int(state.update) == 40 and float(WIDE.residual(before)) == 0
    assert 0 <= float(WIDE.residual(state)) < 1e-6
    assert float(state.earned) != 0 and float(state.moved) > abs(float(state.earned))
    stolen = state.replace(economy=state.economy.replace(wealth=state.economy.wealth.at[0].add(-0.01 * state.moved)))
    assert 0.009 < float(WIDE.residual(stolen)) < 0.011
    np.testing.assert_array_equal(state.economy.holdings.sum(0).reshape(ENV.lines, -1).sum(1), 1)


def test_quotes_are_backed_up_a_stage_a_round_and_come_to_what_pieces_are_worth():
    env = SupplyChain(2)
    wide = dataclasses.replace(WIDE, env=env)
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
    earn = jax.jit(lambda prices: wide.earn(experiment._expected(env, prices.reshape(-1)), KEY))
    assert float(earn(prices[env.stages - 1])) == 2 * env.optimal_return() > float(earn(prices[0]))


def test_looks_are_whole_updates_and_end_with_the_run():
    looks = points(102_400, 256)
    assert looks[0] == 256 and looks[-1] == 102_400
    assert (np.diff(looks) > 0).all() and not (looks % 256).any()
    gaps = np.diff(points(102_400, 32))
    assert gaps[0] == 32 and gaps[-1] > 5000


def test_arms_differ_where_they_should():
    wide, deep = prepare("wide", 2, 640), prepare("deep", 2, 640)
    assert dataclasses.replace(wide[0], env=deep[0].env) == deep[0]
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
    estimate, there = experiment._least(one, experiment.operations_per_line)
    assert there.tolist() == [True, True, False] and estimate.value == np.mean([10, 5, 20])


def test_who_is_sooner():
    def judge(ours, theirs):
        return experiment.sooner("", ours, theirs, experiment.steps_to_own)

    fast, slow = [curve("wide", n, 300) for n in (2, 4)], [curve("deep", n, 900) for n in (2, 4)]
    assert judge(fast, slow).standing == "confirmed" and judge(slow, fast).standing == "not confirmed"
    assert judge(fast, fast).standing == "not confirmed"
    assert judge([fast[0], slow[1]], slow).standing == "not confirmed"  # on every number of lines
    assert judge([curve("wide", 2, 300, seeds=16, never=1)], slow[:1]).standing == "confirmed"
    assert judge([curve("wide", 2, 300, seeds=16, never=5)], slow[:1]).standing == "not confirmed"
    assert judge(fast, [curve("deep", n, 300, never=8) for n in (2, 4)]).standing == "confirmed"
    verdict = judge(fast, slow)
    assert 0.3 < verdict.number < 0.4 and "2 lines" in verdict.evidence and "(8/8) against" in verdict.evidence


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

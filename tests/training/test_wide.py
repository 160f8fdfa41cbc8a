"""The wide market's training, against plain Python and against the society."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket import TrainConfig, rollouts
from jaxmarket.environments import SupplyChain
from jaxmarket.policies import bid_table
from jaxmarket.training.wide import LineSale, StageBids, WideMarketTraining, workers

KEY = jax.random.key(0)
GAMMA = 0.9
SETTINGS = {
    **{"agent": "wide", "gamma": GAMMA, "steps": 64, "instances": 1, "horizon": 32, "minibatch": 32, "log_every": 1},
    **{"learning_rate": 1e-2, "exploration": 0.4, "exploration_final": 0.4, "trace_decay": 0.65},
}
CONFIG = TrainConfig(SupplyChain(3, 4, 3, material=0.25, seed=1), **SETTINGS)
TRAINING = WideMarketTraining.of(CONFIG.settings)
WIDE = TRAINING.society
ENV, PARAMS = CONFIG.adapter.env, CONFIG.adapter.default_params
HYPER = CONFIG.settings.hyperparameters.as_arrays()
JOBS, CLONES = WIDE.jobs, WIDE.clones


def some_values(seed):
    """Bids without ties: f [L * M, K]."""
    count = JOBS * ENV.stages
    return np.random.default_rng(seed).permutation(count).reshape(JOBS, ENV.stages).astype(np.float32) / count


def trades(values, rounds, exploration=None):
    """Rounds of a market with these bids."""

    def one(economy, key):
        economy, sale = WIDE.trade(key, economy, PARAMS, exploration)
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
    config = TrainConfig(SupplyChain(1), **SETTINGS)
    society, training = config.settings.society, WideMarketTraining.of(config.settings)
    wide, env = training.society, config.adapter.env
    # Random bids, and more for what is right but at the last stage: pieces come that far, and are spoilt.
    right = (jnp.asarray(env.recipe[0]) == jnp.arange(4)[:, None]).at[:, 3].set(False)
    params = bid_table(jax.random.uniform(KEY, right.shape) + 2 * right)
    greedy = dataclasses.replace(society, greedy=True)
    rows = jax.jit(lambda: rollouts.fresh_rollout(greedy, KEY, params, society.env.default_params, 40))()

    def one(economy, key):
        return wide.trade(key, economy, env.default_params)

    sales = jax.jit(lambda: jax.lax.scan(one, wide.open(wide.bids(params)), jax.random.split(KEY, 40))[1])()
    np.testing.assert_array_equal(sales.stage[:, 0], rows.obs)
    np.testing.assert_allclose(sales.price[:, 0], rows.price, rtol=1e-6)
    np.testing.assert_array_equal(sales.reward[:, 0], rows.reward)
    assert set(np.asarray(rows.obs).argmax(1).tolist()) == {0, 1, 2, 3}


def test_settlement_is_a_loop_over_sales():
    rng, rounds = np.random.default_rng(0), 9
    price, reward = rng.random((rounds, 2)), rng.random((rounds, 2))
    outbid = rng.random((rounds, 2)) < 0.4
    sales = LineSale(
        stage=jnp.zeros((rounds, 2, 3)),
        won=jnp.zeros((rounds, 4)),
        price=jnp.asarray(price),
        payout=jnp.asarray(price + 0.5),
        reward=jnp.asarray(reward),
        outbid=jnp.asarray(outbid),
    )
    found = TRAINING.settle(sales, HYPER.replace(trace_decay=0.6))
    plain = TRAINING.settle(sales, HYPER.replace(trace_decay=None))
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
    update = jax.jit(lambda state: TRAINING.chunk(state, PARAMS, HYPER)[0])
    before = jax.jit(TRAINING.init)(KEY, PARAMS, HYPER)
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
        market=state.market.replace(
            agents=jax.tree.map(lambda x: x[None], workers(ENV, WIDE.bids(learner.params), CLONES))
        ),
    )
    one, two = update(state), update(other)
    for x, y in zip(jax.tree.leaves(one.learner), jax.tree.leaves(two.learner), strict=True):
        np.testing.assert_array_equal(x[~elsewhere], y[~elsewhere])
    moved = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), one.learner.params, state.learner.params)
    assert max(float(x) for x in jax.tree.leaves(moved)) > 0
    assert float(jnp.abs(one.market.prices - two.market.prices)[0, : 2 * ENV.stages].max()) == 0
    assert float(jnp.abs(one.market.prices - two.market.prices)[0, 2 * ENV.stages :].max()) > 0


def test_agents_bid_what_they_have_learned_and_clones_the_same(updated):
    _, state, _ = updated
    values = np.asarray(state.market.agents.values).reshape(JOBS, CLONES, ENV.stages)
    np.testing.assert_array_equal(values, np.repeat(np.asarray(WIDE.bids(state.learner.params))[:, None], CLONES, 1))
    assert len(np.unique(values)) > JOBS
    offers = jax.vmap(StageBids(ENV), (0, None))(jax.tree.map(lambda x: x[0], state.market.agents), None).values
    own = np.isfinite(offers).reshape(-1, ENV.lines, ENV.stages)
    np.testing.assert_array_equal(own.all(2), np.eye(ENV.lines)[np.asarray(state.market.agents.line[0])])
    np.testing.assert_array_equal(own.any(2), own.all(2))


def test_money_comes_from_rewards_alone(updated):
    before, state, _ = updated
    assert int(state.update) == 40 and float(TRAINING.residual(before)[0]) == 0
    assert 0 <= float(TRAINING.residual(state)[0]) < 1e-6
    assert float(state.earned[0]) != 0 and float(state.moved[0]) > abs(float(state.earned[0]))
    wealth = state.market.wealth.at[0, 0].add(-0.01 * state.moved[0])
    stolen = state.replace(market=state.market.replace(wealth=wealth))
    assert 0.009 < float(TRAINING.residual(stolen)[0]) < 0.011
    np.testing.assert_array_equal(state.market.holdings[0].sum(0).reshape(ENV.lines, -1).sum(1), 1)


def test_an_episode_of_the_market_is_an_episode_of_the_joint_environment():
    """`evaluate` earns what the policy of the same bids earns in the environment, step by step."""
    env = SupplyChain(2, 3, 3, joint=True, horizon=30, material=0.125)
    config = TrainConfig(env, **SETTINGS)
    training = config.settings.trainable
    # Random bids, and more for what is right but at one stage of a line.
    right = (jnp.asarray(env.recipe)[:, None] == jnp.arange(3)[:, None]).at[0, :, 1].set(False).reshape(6, 3)
    params = bid_table(jax.random.uniform(KEY, right.shape) + 2 * right)
    policy = training.policy(params, greedy=True)
    adapter, env_params = config.adapter, config.adapter.default_params

    def step(carry, key):
        obs, state = carry
        obs, state, reward, _, _ = env.step_env(key, state, policy(obs), env_params)
        return (obs, state), reward

    keys = jax.random.split(KEY, env.horizon)
    rewards = jax.jit(lambda: jax.lax.scan(step, env.reset_env(KEY, env_params), keys)[1])()
    episodes = jax.jit(lambda: training.player(greedy=True).evaluate(params, KEY, adapter.default_params, 3))()
    assert 5 < float(rewards.sum()) < env.optimal_return()
    assert float(rewards.min()) < 0
    np.testing.assert_allclose(episodes.returns, rewards.sum(), rtol=1e-6)
    assert episodes.lengths.tolist() == [30] * 3 and episodes.finished.all() and not episodes.terminated.any()


def test_the_parameters_of_the_environment_are_traced():
    """Other recipes and limits are learned and played, without the environment's own."""
    other = PARAMS.replace(recipe=(PARAMS.recipe + 1) % ENV.operations, max_steps_in_episode=8)
    values = (jax.nn.one_hot(other.recipe, ENV.operations, axis=1) * jnp.arange(1, 5)).reshape(JOBS, ENV.stages)
    play = jax.jit(lambda params: WIDE.play(values, KEY, params, 2))
    found, here = play(other), play(PARAMS)
    assert found.returns.tolist() == [6.0] * 2 and found.lengths.tolist() == [8] * 2
    assert here.lengths.tolist() == [128] * 2 and here.returns.max() < 0


def test_instances_learn_from_each_others_sales_and_minted_money_is_named():
    """Eight markets see different pieces and share networks; with Vickrey prices owners receive more than is paid."""
    config = TrainConfig(
        ENV, **SETTINGS | {"instances": 8, "auction": "vickrey", "clones": 1, "steps": 2048, "log_every": 8}
    )
    training = config.settings.trainable
    hyper = config.settings.hyperparameters.as_arrays()
    before = jax.jit(training.init)(KEY, PARAMS, hyper)
    state, metrics = jax.jit(training.chunk)(before, PARAMS, hyper)
    assert len(np.unique(np.asarray(state.market.holdings), axis=0)) > 1
    assert np.ptp(np.asarray(state.market.agents.values), axis=0).max() == 0
    np.testing.assert_allclose(metrics["wins"].sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(metrics["return_mean"], metrics["welfare"] * 128, rtol=1e-5)
    minted, moved = float(metrics["subsidy"]) * 8 * 32 * 8, float(state.moved.sum())
    rewards = float(metrics["welfare"]) * 8 * 32 * 8
    np.testing.assert_allclose(state.earned.sum(), minted + rewards, rtol=1e-4)
    change = float((np.float64(state.market.wealth) - 1e4).sum())
    assert abs(change - rewards) / moved > 0.01  # the rewards alone do not explain it
    assert float(metrics["conservation_residual"]) < 1e-3


@pytest.mark.parametrize(
    ("env", "settings", "message"),
    [
        ("Chain-v0", {}, "^env: a wide market needs production lines, Chain-v0 has no lines, stages, operations"),
        ("SupplyChain2-v0", {"learner": "ppo"}, "^learner: bidders of a wide market estimate values, got PPO; use"),
        ("SupplyChain2-v0", {"ties": "lowest"}, "^ties: agent wide has no such setting; leave it out"),
    ],
)
def test_what_a_wide_market_cannot_use_is_refused(env, settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(env, agent="wide", **settings)


def test_a_serial_action_cannot_act_on_all_lines():
    with pytest.raises(ValueError, match=r"^env: an action of SupplyChain3-v0 works on one line.*joint=True"):
        TRAINING.policy({}, greedy=True)

"""Monolithic agents: returns against a plain loop, rollouts against stepping by hand, learning against the optimum."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket import TrainConfig, fit, make, train
from jaxmarket.environments import SupplyChain, adapt
from jaxmarket.rollouts import cut_rows
from jaxmarket.runs import run_folder
from jaxmarket.settlement import lambda_returns
from jaxmarket.training import monolith as baselines
from jaxmarket.training.monolith import Categorical, Product, ProductHead


def test_lambda_returns_are_generalised_advantages_plus_values():
    """Schulman et al. (2016), equation 16, by its sum of discounted temporal differences."""
    rng = np.random.default_rng(0)
    steps, gamma, decay = 12, 0.9, 0.7
    reward, value = rng.normal(size=steps), rng.normal(size=steps + 1)
    terminated = np.zeros(steps, bool)
    terminated[4] = True
    ahead = np.where(terminated, 0, value[1:])
    decays = np.where(terminated | (np.arange(steps) == steps - 1), 0, decay)
    discounts = np.full(steps, gamma)
    found = jax.jit(lambda_returns)(reward, discount=discounts, value=ahead, trace_decay=decays)
    delta = reward + gamma * ahead - value[:-1]
    for t in range(steps):
        end = 4 if t <= 4 else steps - 1
        advantage = sum((gamma * decay) ** (k - t) * delta[k] for k in range(t, end + 1))
        np.testing.assert_allclose(found[t], advantage + value[t], rtol=1e-5, atol=1e-5)


def test_nothing_leaks_into_a_return_without_a_trace():
    def returns(last):
        ones, discount = jnp.array([1.0, 1.0, last]), jnp.array([0.9, 0.9, last])
        return lambda_returns(ones, discount=discount, value=ones, trace_decay=jnp.array([0.5, 0.0, 0.5]))

    np.testing.assert_array_equal(returns(1.0)[:2], returns(np.nan)[:2])


def test_categorical_agrees_with_its_own_samples():
    logits = jnp.array([0.3, -1.0, 2.0, 0.0])
    distribution = Categorical(logits)
    probability = np.asarray(jax.nn.softmax(logits))
    choices = jnp.arange(4.0)
    np.testing.assert_allclose(jnp.exp(distribution.log_prob(choices)), probability, rtol=1e-6)
    np.testing.assert_allclose(distribution.entropy(), -(probability * np.log(probability)).sum(), rtol=1e-6)
    assert float(distribution.mean()) == 2
    grid = (jnp.arange(100_000) + 0.5) / 100_000
    shares = np.bincount(np.asarray(distribution.quantile(grid), int), minlength=4) / grid.size
    np.testing.assert_allclose(shares, probability, atol=2e-5)
    assert float(distribution.quantile(jnp.float32(np.nextafter(np.float32(1), np.float32(0))))) == 3
    drawn = np.asarray(distribution.sample(jax.random.key(0), (20_000,)), int)
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / drawn.size, probability, atol=0.02)


@pytest.mark.parametrize(("factors", "base"), [(1, 3), (3, 4)])
def test_a_product_is_the_categorical_of_all_its_choices(factors, base):
    """Against the flat distribution, whose logits are sums: the same numbers, entropies, shares and gradients."""
    logits = jnp.asarray(np.random.default_rng(factors).normal(size=(5, factors, base)), jnp.float32)
    count = base**factors
    digits = np.stack(np.unravel_index(np.arange(count), (base,) * factors))  # [factors, count]
    everything = jnp.arange(float(count))

    def flat(logits):
        return Categorical(sum(logits[..., i, digits[i]] for i in range(factors)))

    product, whole = ProductHead(factors, base).distribution(logits.reshape(5, -1)), flat(logits)
    np.testing.assert_array_equal(product.logits, logits)
    logs = jax.jit(jax.vmap(lambda one: jax.vmap(one.log_prob)(everything)))
    np.testing.assert_allclose(logs(product), logs(whole), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(product.entropy(), whole.entropy(), rtol=1e-5)
    np.testing.assert_array_equal(product.mean(), whole.mean())
    grid = (jnp.arange(10_000) + 0.5) / 10_000
    quantiles = jax.jit(jax.vmap(lambda d: jax.vmap(d.quantile)(grid)))
    one, other = (np.asarray(quantiles(d), int) for d in (product, whole))
    assert (one != other).mean() <= 1e-3  # rounding, at the edges of shares
    shares = np.stack([np.bincount(row, minlength=count) for row in one]) / grid.size
    np.testing.assert_allclose(shares, np.exp(logs(whole)), atol=3e-4)
    drawn = np.asarray(product.sample(jax.random.key(0), (4000,)), int)
    assert drawn.shape == (4000, 5)
    for i in range(5):
        found = np.bincount(drawn[:, i], minlength=count) / 4000
        np.testing.assert_allclose(found, np.exp(logs(whole)[i]), atol=0.04)
    choices = jnp.asarray(np.random.default_rng(0).integers(count, size=5), jnp.float32)

    def loss(make, logits):
        return (make(logits).log_prob(choices) * jnp.arange(1.0, 6.0)).sum() + make(logits).entropy().sum()

    slopes = (jax.jit(jax.grad(lambda x, make=make: loss(make, x)))(logits) for make in (Product, flat))
    np.testing.assert_allclose(*slopes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("u", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_a_product_stays_within_its_choices(u):
    """However lopsided: no share is ever divided by."""
    logits = jnp.array([[0.0, -200.0, 0.0], [-200.0, 50.0, -200.0]])
    assert float(Product(logits).quantile(jnp.float32(u))) == (1 if u == 0 else 7)
    assert ProductHead(2, 3).low == 0 and ProductHead(2, 3).high == 8


def test_heads_fit_their_environments():
    joint = TrainConfig(SupplyChain(3, 2, 2, joint=True), agent="monolith")
    agent = baselines.Monolith.of(joint.as_monolith().settings, hidden=(5,), head=ProductHead(3, 2))
    assert agent.learner.policy.head == ProductHead(3, 2)
    assert agent != baselines.Monolith.of(joint.as_monolith().settings, hidden=(5,))
    state = jax.eval_shape(agent.learner.init, jax.random.key(0), jnp.zeros(6))
    assert baselines.parameters(state) == (7 * 5 + 6 * 6) + (7 * 5 + 6 * 1)
    with pytest.raises(ValueError, match=r"head: 2\^2 = 4 choices, but SupplyChain3-v0-joint has 8 actions"):
        baselines.Monolith.of(joint.as_monolith().settings, head=ProductHead(2, 2))
    with pytest.raises(ValueError, match="base: expected an integer >= 1, got 0"):
        ProductHead(2, 0)
    with pytest.raises(ValueError, match=r"factors: 4\^13 choices are more than 2\^24"):
        ProductHead(13, 4)


def test_roaming_is_stepping_by_hand():
    """Chain with scripted actions: right five times ends an episode, left runs into the limit of twenty."""
    env = adapt(make("Chain-v0")[0])
    params = env.default_params
    script = jnp.array([1] * 5 + [0] * 20 + [1] * 3)

    def act(action, obs):
        return action, action

    running = baselines.start(env, jax.random.key(0), params)
    running, rows = jax.jit(lambda r: baselines.rollout_policy(env, act, jax.random.key(1), r, params, script))(running)
    assert np.flatnonzero(rows.terminated).tolist() == [4]
    assert np.flatnonzero(rows.truncated).tolist() == [24]
    assert rows.episode_length.tolist() == [*range(1, 6), *range(1, 21), 1, 2, 3]
    np.testing.assert_allclose(rows.episode_return[4], 0.8)
    assert not rows.episode_return[5:].any()
    position = [0, 1, 2, 3, 4, *[0] * 20, 0, 1, 2]
    assert rows.obs.argmax(1).tolist() == position
    assert rows.next_obs.argmax(1).tolist() == [1, 2, 3, 4, 5, *[0] * 20, 1, 2, 3]
    assert int(running.obs.argmax()) == 3
    assert int(running.episode_length) == 3


@pytest.mark.parametrize("limit", [None, 1, 3, 7, 8, 9, 100])
def test_cut_rows_are_those_that_go_on_unseen(limit):
    """Against NumPy, for every pattern a clock of that limit allows, and for any pattern without one."""
    rng = np.random.default_rng(0)
    find = jax.jit(cut_rows, static_argnums=2)
    for _ in range(30):
        terminated, clock = rng.random(8) < 0.2, rng.integers(0, limit or 1)
        truncated = np.zeros(8, bool)
        for t in range(8):
            clock += 1
            truncated[t] = rng.random() < 0.5 if limit is None else clock == limit
            clock = 0 if truncated[t] or terminated[t] else clock
        expected = np.flatnonzero(~terminated & (truncated | (np.arange(8) == 7)))
        rows = np.asarray(find(jnp.asarray(terminated), jnp.asarray(truncated), limit))
        np.testing.assert_array_equal(rows[: len(expected)], expected)
        assert (rows[len(expected) :] == 8).all()


def test_utilities_bootstrap_where_an_episode_was_cut_and_nowhere_else():
    """Against a loop, across an end, a time-out and the end of the rollout, from the middle of an episode on."""
    env = adapt(make("Chain-v0")[0])
    params = env.default_params
    script = jnp.array([1, 1] + [0] * 20 + [1] * 5 + [1, 0])
    running = baselines.start(env, jax.random.key(0), params)
    act = lambda action, obs: (action, action)  # noqa: E731
    running, _ = baselines.rollout_policy(env, act, jax.random.key(1), running, params, jnp.array([1, 1]))
    _, rows = baselines.rollout_policy(env, act, jax.random.key(1), running, params, script)
    weights = jnp.array([0.3, 0.5, -0.2, 0.7, 0.1, 9.0])
    value = lambda obs: obs @ weights  # noqa: E731
    hyper = TrainConfig("Chain-v0", trace_decay=0.8).settings.hyperparameters
    found = baselines.utilities(rows, value(rows.obs), value, hyper, env.longest_episode(params))
    everywhere = baselines.utilities(rows, value(rows.obs), value, hyper, None)
    np.testing.assert_allclose(found, everywhere, rtol=1e-6)
    assert np.flatnonzero(rows.truncated).tolist() == [17]
    assert np.flatnonzero(rows.terminated).tolist() == [26]
    reward, done = np.asarray(rows.reward), np.asarray(rows.done)
    after, last = np.asarray(value(rows.next_obs)), len(script) - 1
    expected = np.zeros(len(script))
    for t in range(last, -1, -1):
        if rows.terminated[t]:
            expected[t] = reward[t]
        elif done[t] or t == last:
            expected[t] = reward[t] + 0.99 * after[t]
        else:
            expected[t] = reward[t] + 0.99 * (0.2 * after[t] + 0.8 * expected[t + 1])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_monolithic_agent_solves_the_bandit_on_every_seed():
    config = TrainConfig("Bandit-v0", instances=32, horizon=32, steps=98_304, learning_rate=5e-3, entropy=0.01)
    agent = baselines.Monolith.of(config.as_monolith().settings)
    params, hyper = config.adapter.default_params, config.settings.hyperparameters.as_arrays()

    @jax.jit
    @jax.vmap
    def trained(key):
        state = agent.init(key, params)
        state, metrics = jax.lax.scan(
            lambda s, _: agent.chunk(s, params, hyper), state, None, length=config.settings.chunks
        )
        greedy = agent.player(greedy=True)
        return metrics["return_mean"], greedy.evaluate(state.learner.params, key, params, 64).returns.mean()

    returns, greedy = trained(jax.random.split(jax.random.key(0), 8))
    np.testing.assert_allclose(greedy, 0.8, rtol=1e-6)
    np.testing.assert_allclose(returns[:, 0], 0.5, atol=0.15)  # at first it acts at random


class Picky:
    """An environment with illegal actions."""

    num_actions = 2

    def reset(self, key, params):
        return jnp.zeros(1), jnp.zeros(())

    def step(self, key, state, action, params):
        return jnp.zeros(1), state, jnp.zeros(()), jnp.zeros((), bool), {}

    def legal_actions(self, state, params):
        return jnp.array([True, False])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TrainConfig("Bandit-v0", learner="valuation"), "^learner: a monolithic agent learns by PPO"),
        (TrainConfig("Bandit-v0", time_limits="terminal"), "time_limits: a monolithic agent estimates"),
        (TrainConfig(Picky()), "env: Picky has illegal actions"),
    ],
)
def test_a_monolithic_agent_refuses_what_it_would_get_wrong(config, message):
    with pytest.raises(ValueError, match=message):
        baselines.Monolith.of(config.as_monolith().settings)


def test_parameters_are_counted_in_both_networks():
    agent = baselines.Monolith.of(TrainConfig("Chain-v0", agent="monolith").settings, hidden=(5,))
    state = jax.eval_shape(agent.learner.init, jax.random.key(0), jnp.zeros(6))
    assert baselines.parameters(state) == (7 * 5 + 6 * 2) + (7 * 5 + 6 * 1)
    assert dataclasses.replace(agent, instances=1) != agent


@pytest.mark.slow
def test_a_monolith_is_trained_by_fit_and_by_train(tmp_path):
    """`fit` trains, evaluates and saves it; `train` gives the same networks."""
    config = TrainConfig("Bandit-v0", agent="monolith", instances=8, horizon=8, minibatch=64, steps=512, seeds=2)
    result = fit(config, jax.random.key(0), tmp_path / "run", progress=False)
    assert result.summary["env_steps"] == 2 * 512
    assert result.summary["auction"] is None
    np.testing.assert_array_equal(result.metrics["termination_rate"], 1)
    saved = run_folder.read(tmp_path / "run")
    assert saved.config.settings == config.settings
    assert (saved.q, saved.bids, saved.visited) == (None, None, None)
    jax.tree.map(np.testing.assert_array_equal, saved.networks, result.networks)
    keys = jax.random.split(jax.random.key(0), 2)
    state, _ = jax.jit(jax.vmap(lambda key: train(config, key)))(keys)
    jax.tree.map(np.testing.assert_array_equal, state.learner.params, result.networks["policy"])
    with pytest.raises(ValueError, match=r"^dropout: "):
        dataclasses.replace(config, dropout=0.1)
    with pytest.raises(ValueError, match="agent: unknown value 'anarchist'"):
        dataclasses.replace(config, agent="anarchist")
    with pytest.raises(ValueError, match=r"^convolutions: "):
        dataclasses.replace(config, convolutions=(4,))

"""Monolithic agents: returns against a plain loop, learning against the optimum."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket import TrainConfig, fit, make, train
from jaxmarket.environments import SupplyChain, adapt
from jaxmarket.rollouts import rollout_policy, start
from jaxmarket.runs import run_folder
from jaxmarket.training import monolith as baselines
from jaxmarket.training.actions import ProductHead


def test_heads_fit_their_environments():
    joint = TrainConfig(SupplyChain(3, 2, 2, joint=True), agent="monolith")
    agent = baselines.Monolith.of(joint.as_monolith().settings, hidden=(5,), head=ProductHead(3, 2))
    assert agent.learner.policy.head == ProductHead(3, 2)
    assert agent != baselines.Monolith.of(joint.as_monolith().settings, hidden=(5,))
    state = jax.eval_shape(agent.learner.init, jax.random.key(0), jnp.zeros(6))
    assert baselines.parameters(state) == (7 * 5 + 6 * 6) + (7 * 5 + 6 * 1)
    with pytest.raises(ValueError, match=r"head: 2\^2 = 4 choices, but SupplyChain3-v0-joint has 8 actions"):
        baselines.Monolith.of(joint.as_monolith().settings, head=ProductHead(2, 2))


def test_utilities_bootstrap_where_an_episode_was_cut_and_nowhere_else():
    """Against a loop, across an end, a time-out and the end of the rollout, from the middle of an episode on."""
    env = adapt(make("Chain-v0")[0])
    params = env.default_params
    script = jnp.array([1, 1] + [0] * 20 + [1] * 5 + [1, 0])
    running = start(env, jax.random.key(0), params)
    act = lambda action, obs: (action, action)  # noqa: E731
    running, _ = rollout_policy(env, act, jax.random.key(1), running, params, jnp.array([1, 1]))
    _, rows = rollout_policy(env, act, jax.random.key(1), running, params, script)
    weights = jnp.array([0.3, 0.5, -0.2, 0.7, 0.1, 9.0])
    value = lambda obs: obs @ weights  # noqa: E731
    hyper = TrainConfig("Chain-v0", trace_decay=0.8).settings.hyperparameters
    explored = jnp.zeros(len(script), bool).at[jnp.array([3, 4, 23])].set(True)
    limit = env.longest_episode(params)
    found = baselines.utilities(rows, value(rows.obs), explored, value=value, hyper=hyper, limit=limit)
    everywhere = baselines.utilities(rows, value(rows.obs), explored, value=value, hyper=hyper, limit=None)
    np.testing.assert_allclose(found, everywhere, rtol=1e-6)
    assert np.flatnonzero(rows.truncated).tolist() == [17]
    assert np.flatnonzero(rows.terminated).tolist() == [26]
    reward, done = np.asarray(rows.reward), np.asarray(rows.done)
    after, last = np.asarray(value(rows.next_obs)), len(script) - 1
    expected = np.zeros(len(script))
    for t in range(last, -1, -1):
        if rows.terminated[t]:
            expected[t] = reward[t]
        elif done[t] or t == last or explored[t + 1]:
            expected[t] = reward[t] + 0.99 * after[t]
        else:
            expected[t] = reward[t] + 0.99 * (0.2 * after[t] + 0.8 * expected[t + 1])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_monolithic_agent_solves_the_bandit_on_every_seed():
    own = {"instances": 32, "horizon": 32, "learning_rate": 5e-3, "trace_decay": 0.95}
    config = TrainConfig("Bandit-v0", learner="ppo", steps=98_304, entropy=0.01, **own)
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
        (TrainConfig("Bandit-v0", learner="reinforce"), "^learner: a monolithic agent learns by PPO or Valuation"),
        (
            TrainConfig("Bandit-v0", learner="ppo", exploration=0.1),
            "^exploration: a monolithic agent that learns by PPO",
        ),
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

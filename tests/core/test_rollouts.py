"""Rollouts: against stepping by hand, memory, first states made beforehand or in their step, and cuts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket import BidPolicy, Society, make, reset, rollout
from jaxmarket.environments import adapt, adapter
from jaxmarket.policies import KumaraswamyHead, mlp
from jaxmarket.rollouts import cut_rows, rollout_policy, start

KEY = jax.random.key(0)


class Large:
    """An environment with a state of 64 kB and episodes of three steps."""

    num_actions = 2

    def reset(self, key, params):
        return jnp.ones(2), (jnp.zeros(2**14) + jax.random.uniform(key), jnp.int32(0))

    def step(self, key, state, action, params):
        weights, time = state
        time = time + 1
        return jnp.ones(2) * weights[time], (weights.at[time].add(1.0), time), 1.0, time >= 3, False, {}


def society(env):
    return Society(env=env, policy=BidPolicy(mlp(4), KumaraswamyHead()))


def roll(env, steps):
    market = society(env)

    def run(key):
        state, _ = reset(market, key, market.env.default_params)
        return rollout(market, key, market.init(key), state, market.env.default_params, steps)

    return jax.jit(run)


def wander(env, steps):
    world = adapt(env)

    def act(draws, obs):
        return jnp.int32(draws * world.num_actions), draws

    def run(key):
        draws = jax.random.uniform(key, (steps,))
        return rollout_policy(world, act, key, start(world, key, world.default_params), world.default_params, draws)

    return jax.jit(run)


@pytest.mark.slow
@pytest.mark.parametrize("play", [roll, wander])
def test_temporary_memory_does_not_grow_with_the_horizon(play):
    def temporary(steps):
        return play(Large(), steps).lower(KEY).compile().memory_analysis().temp_size_in_bytes

    assert temporary(64) < temporary(256) + 2**20 < 2**22  # 256 first states are 16 MB


@pytest.mark.parametrize("play", [roll, wander])
@pytest.mark.parametrize("env", ["Chain-v0", "CartPole-v1"])
def test_first_states_are_the_same_beforehand_and_in_their_step(play, env, monkeypatch):
    env = make(env)[0]
    before = play(env, 64)(KEY)
    monkeypatch.setattr(adapter, "_MOST_AHEAD", 0)
    # Two programs may round the dynamics of CartPole differently; any other first state shows in every digit.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), before, play(env, 64)(KEY))


def test_a_rollout_of_a_policy_is_stepping_by_hand():
    """Chain with scripted actions: right five times ends an episode, left runs into the limit of twenty."""
    env = adapt(make("Chain-v0")[0])
    params = env.default_params
    script = jnp.array([1] * 5 + [0] * 20 + [1] * 3)

    def act(action, obs):
        return action, action

    running = start(env, jax.random.key(0), params)
    running, rows = jax.jit(lambda r: rollout_policy(env, act, jax.random.key(1), r, params, script))(running)
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

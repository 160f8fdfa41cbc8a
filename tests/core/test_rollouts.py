"""Rollouts: memory, and first states made beforehand or in their step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket import BidPolicy, Society, make, reset, rollout
from jaxmarket.environments import adapt, adapter
from jaxmarket.policies import KumaraswamyHead, mlp
from jaxmarket.training.monolith import rollout_policy, start

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


@pytest.mark.parametrize("play", [roll, wander])
def test_temporary_memory_does_not_grow_with_the_horizon(play):
    def temporary(steps):
        return play(Large(), steps).lower(KEY).compile().memory_analysis().temp_size_in_bytes

    assert temporary(64) < temporary(256) + 2**20 < 2**22  # 256 first states are 16 MB


@pytest.mark.bits
@pytest.mark.parametrize("play", [roll, wander])
@pytest.mark.parametrize("env", ["Chain-v0", "CartPole-v1"])
def test_first_states_are_the_same_beforehand_and_in_their_step(play, env, monkeypatch):
    env = make(env)[0]
    before = play(env, 64)(KEY)
    monkeypatch.setattr(adapter, "_MOST_AHEAD", 0)
    jax.tree.map(np.testing.assert_array_equal, before, play(env, 64)(KEY))

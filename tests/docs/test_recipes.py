"""The adapters of docs/environments.md for Brax and Jumanji, on environments with their step signatures."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from documentation import ROOT, python

from jaxmarket import TrainConfig
from jaxmarket.testing import check_environment


class BraxState(NamedTuple):
    pipeline_state: jax.Array
    obs: jax.Array
    reward: jax.Array
    done: jax.Array
    metrics: dict
    info: dict


class Ball:
    """A point on a line, pushed by two forces; a Brax environment's ``done`` is a float."""

    action_size = 2

    def reset(self, rng):
        x = jax.random.uniform(rng, (2,))
        return BraxState(x, x, jnp.zeros(()), jnp.zeros(()), {}, {})

    def step(self, state, action):
        x = state.pipeline_state + 0.1 * action
        return state._replace(pipeline_state=x, obs=x, reward=-jnp.abs(x).sum(), done=(x > 2).any().astype(float))


class TimeStep(NamedTuple):
    step_type: jax.Array
    reward: jax.Array
    discount: jax.Array
    observation: dict

    def last(self):
        return self.step_type == 2


class Row:
    """A row of five cells; the episode ends at its end (discount 0), or after eight steps (discount 1)."""

    class action_spec:  # noqa: N801
        num_values = jnp.int32(2)

    def _timestep(self, cell, t):
        ended = (cell == 4) | (t == 8)
        return TimeStep(
            jnp.where(ended, 2, jnp.where(t == 0, 0, 1)),
            (cell == 4).astype(float),
            jnp.where(cell == 4, 0.0, 1.0),
            {"cell": cell.astype(float), "t": t.astype(float)},
        )

    def reset(self, key):
        state = jnp.int32(0), jnp.int32(0)
        return state, self._timestep(*state)

    def step(self, state, action):
        state = jnp.clip(state[0] + 2 * action - 1, 0, 4), state[1] + 1
        return state, self._timestep(*state)


@pytest.fixture(scope="module")
def recipes():
    found = {}
    exec(python(ROOT / "docs" / "environments.md")[-1], found)
    return found


def test_a_brax_environment_can_be_traded(recipes):
    env = recipes["FromBrax"](Ball(), steps=20)
    check_environment(env)
    society = TrainConfig(env).settings.society
    assert society.learned is not None and society.env.action.shape == (2,)
    _, state = env.reset_env(jax.random.key(0), None)
    for t in range(20):
        _, state, _, terminated, truncated, _ = env.step_env(None, state, jnp.zeros(2), None)
        assert not terminated and truncated == (t == 19)


def test_a_jumanji_environment_can_be_traded(recipes):
    env = recipes["FromJumanji"](Row())
    check_environment(env)
    assert TrainConfig(env).settings.society.primitives == 2
    ends = []
    for action in (1, 0):
        obs, state = env.reset_env(jax.random.key(0), None)
        ended = False
        while not ended:
            obs, state, reward, terminated, truncated, _ = env.step_env(None, state, action, None)
            ended = bool(terminated | truncated)
        ends.append((bool(terminated), bool(truncated), float(obs["t"]), float(reward)))
    assert ends == [(True, False, 4, 1), (False, True, 8, 0)]

"""The T-maze against a walk in plain Python, and what is known of it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket.environments import Memory, TMaze, adapt
from jaxmarket.environments.tmaze import TMazeState

LENGTH = 3
NORTH, EAST, SOUTH, WEST = range(4)


def walk(north, actions):
    """Observations, rewards and whether the episode has ended, of a walk in a maze of `LENGTH`."""
    place = 0
    for action in actions:
        reward, over = 0.0, False
        if place == LENGTH and action in (NORTH, SOUTH):
            reward, over = (4.0 if (action == NORTH) == north else -0.1), True
        elif action == EAST and place < LENGTH:
            place += 1
        elif action == WEST and place > 0:
            place -= 1
        else:
            reward = -0.1
        seen = {0: (0, 1, 1) if north else (1, 1, 0), LENGTH: (0, 1, 0)}.get(place, (1, 0, 1))
        yield seen, reward, over
        if over:
            return


@pytest.mark.parametrize("north", [False, True])
def test_walks_are_those_of_plain_python(north):
    env = TMaze(LENGTH)
    params, step, key = env.default_params, jax.jit(env.step_env), jax.random.key(0)
    first = jax.tree.map(lambda leaf: leaf[int(north)], env.first_states())
    for walked in itertools.product(range(4), repeat=4):
        state = first
        for (seen, reward, over), action in zip(walk(north, walked), walked, strict=False):
            obs, state, *found = step(key, state, action, params)
            assert obs.tolist() == list(seen)
            np.testing.assert_allclose(found[0], reward, rtol=1e-6)
            assert bool(found[1]) == over


def test_goals_are_on_either_side_equally_often_and_shown_in_the_first_cell():
    env = TMaze()
    obs, state = jax.vmap(lambda key: env.reset_env(key, env.default_params))(jax.random.split(jax.random.key(0), 1000))
    assert abs(float(state.north.mean()) - 0.5) < 0.05
    np.testing.assert_array_equal(obs, jnp.where(state.north[:, None], jnp.array([0, 1, 1]), jnp.array([1, 1, 0])))


def test_an_episode_is_truncated_at_its_limit():
    adapter = adapt(TMaze(LENGTH, limit=5))
    state = TMazeState(position=jnp.asarray(1), north=jnp.asarray(True), time=jnp.asarray(4))
    after = adapter.step(jax.random.key(0), state, jnp.asarray(EAST), adapter.default_params)
    assert bool(after.truncated) and not bool(after.terminated)
    assert adapter.longest_episode(adapter.default_params) == 5


def test_a_policy_without_memory_guesses_and_one_with_a_bit_does_not():
    """Every policy from the view at the junction to an action has at most the mean reward of a guess."""
    env = TMaze(LENGTH)
    rewards = {
        action: [list(walk(north, [EAST] * LENGTH + [action]))[-1][1] for north in (False, True)] for action in range(4)
    }
    assert max(np.mean(each) for each in rewards.values()) == env.memoryless_return() == 1.95
    memory = Memory(env)
    adapter, key = adapt(memory), jax.random.key(0)
    for north in (0, 1):
        state = jax.tree.map(lambda leaf: leaf[north], env.first_states())  # noqa: B023
        obs, state = memory.cleared(adapter.env.adapter.encode(env.get_obs(state)), state)
        total = 0.0
        for time in range(LENGTH + 1):
            move = (NORTH if obs[3] == 1 else SOUTH) if time == LENGTH else EAST
            write = 2 if time == 0 and obs[0] == 0 else 0  # sets the bit if the goal is north
            obs, state, reward, *_ = memory.step_env(key, state, jnp.asarray(move + 4 * write), adapter.default_params)
            total += float(reward)
        assert total == env.optimal_return() == 4

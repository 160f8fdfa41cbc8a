"""Memory compared with a list of bits; gymnax's MemoryChain, which only policies with memory can solve."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmarket import make
from jaxmarket.environments import Memory, Option, Options, TwoRooms, Woods101, adapt
from jaxmarket.testing import check_environment

KEY = jax.random.key(0)
TWO_BITS = Memory(Woods101(), registers=2)
STEP = jax.jit(TWO_BITS.step_env)
THREE_SYMBOLS = Memory(Woods101(), 2, symbols=3, write_price=0.25)
STEP_OF_THREE = jax.jit(THREE_SYMBOLS.step_env)
INNER_STEP = jax.jit(Woods101().step_env)


# --- reading and writing


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 39), min_size=1, max_size=8))
def test_against_a_list_of_bits(actions):
    """Actions: one of Woods101's eight moves and a write operation: none, bit 0 = 0 or 1, bit 1 = 0 or 1."""
    maze, params = Woods101(), TWO_BITS.default_params
    obs, state = TWO_BITS.reset_env(KEY, params)
    first, inner = maze.reset_env(KEY, params.env)
    memory = [0, 0]
    np.testing.assert_array_equal(obs, [*first, *memory])
    for action in actions:
        write, move = divmod(action, 8)
        assert TWO_BITS.split(action) == (move, write)
        if write:
            memory[(0, 0, 1, 1)[write - 1]] = (0, 1, 0, 1)[write - 1]
        seen, inner, *rest = INNER_STEP(KEY, inner, move, params.env)
        obs, state, reward, terminated, info = STEP(KEY, state, action, params)
        np.testing.assert_array_equal(obs, [*seen, *memory])
        assert state.registers.tolist() == memory and obs.dtype == jnp.float32
        assert state.env_state.index == inner.index and state.env_state.time == inner.time
        assert (reward, terminated) == (rest[0], rest[1])
        assert bool(TWO_BITS.is_truncated(state, params)) == bool(maze.is_truncated(inner, params.env))
        assert float(info["duration"]) == 1 and info["undiscounted"] == reward


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 8 * 7 - 1), min_size=1, max_size=8))
def test_registers_of_three_symbols_and_the_price_of_writing(actions):
    """Write operations: none, then symbols 0, 1 and 2 of the first register and of the second one."""
    obs, state = THREE_SYMBOLS.reset_env(KEY, THREE_SYMBOLS.default_params)
    _, inner = Woods101().reset_env(KEY, THREE_SYMBOLS.default_params.env)
    memory = [0, 0]
    for action in actions:
        write, move = divmod(action, 8)
        if write:
            memory[(write - 1) // 3] = (write - 1) % 3
        _, inner, reward, *_ = INNER_STEP(KEY, inner, move, THREE_SYMBOLS.default_params.env)
        obs, state, paid, _, info = STEP_OF_THREE(KEY, state, action, THREE_SYMBOLS.default_params)
        assert state.registers.tolist() == memory
        np.testing.assert_array_equal(obs[-4:], [float(m == symbol) for m in memory for symbol in (1, 2)])
        np.testing.assert_allclose([paid, info["undiscounted"]], float(reward) - 0.25 * (write > 0))


def test_durations_and_discounts_pass():
    """An option of two steps: its reward is discounted within, and the record says so."""
    options = Options(Woods101(), [Option(lambda obs, key: jnp.asarray(4), length=2)], discount=0.5)
    env = adapt(Memory(options, registers=1))
    params = env.default_params
    _, state = env.reset(KEY, params)
    inside = state.env_state.replace(env_state=Woods101().state_at((1, 3)))
    after = env.step(KEY, state.replace(env_state=inside), jnp.asarray(2), params)
    assert after.terminated and float(after.duration) == 2 and float(after.reward) == 0.5
    assert float(after.undiscounted) == 1 and after.obs[-1] == 1
    assert env.gamma == 0.5 and env.longest_episode(params) is None
    assert np.isnan(env.optimal_return())


class PickyParams(NamedTuple):
    max_steps_in_episode: int = 7


class Picky:
    """A user-defined environment with two actions, the second legal at the start only, and its own truncation rule."""

    num_actions = 2
    default_params = PickyParams()

    def reset(self, key, params):
        return jnp.zeros((2, 2)), jnp.zeros((), jnp.int32)

    def step(self, key, state, action, params):
        return jnp.full((2, 2), state), state + 1, 0.0, jnp.asarray(False), {"truncated": state >= 1}

    def legal_actions(self, state, params):
        return jnp.asarray([True, state == 0])


def test_legal_actions_and_cuts_pass():
    env = Memory(Picky(), registers=2)
    obs, state = env.reset_env(KEY, env.default_params)
    assert obs.tolist() == [0] * 6
    assert env.legal_actions(state, env.default_params).tolist() == [True] * 10
    for cut in (False, True):
        obs, state, _, terminated, _ = env.step_env(KEY, state, 9, env.default_params)
        assert env.legal_actions(state, env.default_params).tolist() == [True, False] * 5
        assert bool(env.is_truncated(state, env.default_params)) == cut and not terminated
    assert obs.tolist() == [1, 1, 1, 1, 0, 1]


def test_actions_are_restricted_where_the_wrapped_environment_restricts_them():
    assert [adapt(Memory(env)).restricts_actions for env in (Picky(), Woods101())] == [True, False]


def test_only_a_clock_that_is_known_is_counted_on():
    assert adapt(Memory(Woods101())).longest_episode(Memory(Woods101()).default_params) == 3
    longer = Woods101().default_params.replace(max_steps_in_episode=9)
    assert adapt(TWO_BITS).longest_episode(TWO_BITS.default_params.replace(env=longer)) == 9
    picky = Memory(Picky())
    assert adapt(picky).longest_episode(picky.default_params) is None


# --- MemoryChain


def chain():
    env, _ = make("MemoryChain-bsuite")
    return env


def test_what_memory_chain_shows():
    """Six steps; the context in the first two observations, the time left always, late by a step; ±1 for the last."""
    env = chain()
    params = env.default_params
    assert params.memory_length == 5
    for context in (0, 1):
        obs, state = env.reset_env(KEY, params)
        state = state.replace(context=jnp.asarray([context], jnp.int32))
        sign = 2 * context - 1
        seen, paid, ends = [env.get_obs(state, params)], [], []
        for _ in range(6):
            obs, state, reward, terminated, _ = env.step_env(KEY, state, context, params)
            seen.append(obs)
            paid.append(float(reward))
            ends.append(bool(terminated))
        expected = [[1, 0, sign], [1, 0, sign], [0.8, 0, 0], [0.6, 0, 0], [0.4, 0, 0], [0.2, 0, 0]]
        np.testing.assert_allclose(seen[:6], expected, atol=1e-6)
        assert paid == [0] * 5 + [1] and ends == [False] * 5 + [True]


def returns(env, policy, rules):
    """Return of an episode for each rule and both contexts: f [rules, 2], and whether it was over at the sixth step."""
    params = env.default_params

    def play(rule, context):
        _, state = env.reset_env(KEY, params)
        env_state = state.env_state.replace(context=context[None])
        state = state.replace(env_state=env_state)
        obs = jnp.append(chain().get_obs(env_state, params.env), 0.0)

        def body(carry, _):
            obs, state = carry
            obs, state, reward, terminated, _ = env.step_env(KEY, state, policy(rule, obs), params)
            return (obs, state), (reward, terminated)

        reward, terminated = jax.lax.scan(body, (obs, state), None, length=6)[1]
        return reward.sum(), terminated

    total, terminated = jax.jit(jax.vmap(jax.vmap(play, (None, 0)), (0, None)))(rules, jnp.arange(2))
    np.testing.assert_array_equal(terminated, np.broadcast_to(np.arange(6) == 5, terminated.shape))
    return np.asarray(total)


def test_a_bit_solves_memory_chain():
    """A policy that writes the context while it is observed, and then answers with the bit."""
    env = Memory(chain())

    def policy(rule, obs):
        context, bit = obs[2], obs[3].astype(jnp.int32)
        return jnp.where(context == 0, bit, 2 * (1 + (context > 0)))

    np.testing.assert_array_equal(returns(env, policy, jnp.zeros(1)), [[1, 1]])


def test_without_memory_it_is_a_coin():
    """Every deterministic rule from what MemoryChain shows to an action earns ±1, 0 on average; so do mixtures."""
    env = Memory(chain())
    kinds = jnp.asarray([[1, -1], [1, 1], [0.8, 0], [0.6, 0], [0.4, 0], [0.2, 0]])  # time left, context

    def policy(rule, obs):
        return rule[jnp.argmin(jnp.abs(kinds - obs[jnp.asarray([0, 2])]).sum(-1))]

    rules = jnp.asarray(list(itertools.product((0, 1), repeat=6)), jnp.int32)
    total = returns(env, policy, rules)
    np.testing.assert_array_equal(total.sum(1), np.zeros(64))
    np.testing.assert_array_equal(np.abs(total), np.ones((64, 2)))


# --- the contract of an environment


@pytest.mark.parametrize("env", [Memory(Woods101()), Memory(make("MemoryChain-bsuite")[0], registers=2)])
def test_contract(env):
    check_environment(env)


def test_images_and_indices_become_vectors():
    env = Memory(TwoRooms(), registers=3)
    obs, _ = jax.eval_shape(env.reset_env, KEY, env.default_params)
    assert obs.shape == env.observation_space().shape == (7 * 7 * 3 + 3,)
    frozen, _ = make("FrozenLake-misc")
    obs, _ = Memory(frozen).reset_env(KEY, Memory(frozen).default_params)
    assert obs.shape == (17,) and float(obs.sum()) == 1


def test_dtypes_under_x64():
    with jax.enable_x64(True):
        obs, state = jax.eval_shape(TWO_BITS.reset_env, KEY, TWO_BITS.default_params)
        after = jax.eval_shape(TWO_BITS.step_env, KEY, state, 0, TWO_BITS.default_params)
        assert obs.dtype == after[0].dtype == after[2].dtype == jnp.float64
        assert state == after[1] and state.registers.dtype == jnp.int32


def test_instances_compare_by_value():
    assert Memory(Woods101()) == Memory(adapt(Woods101()), registers=1) and hash(Memory(Woods101())) == hash(
        Memory(Woods101())
    )
    assert THREE_SYMBOLS.name == "Woods101-v0 with 2 registers of 3 symbols, 0.25 for a write"
    assert len({Memory(Woods101()), TWO_BITS, THREE_SYMBOLS, Memory(TwoRooms())}) == 4 and Woods101() != TWO_BITS
    assert TWO_BITS.name == "Woods101-v0 with 2 bits" and Memory(Woods101()).name == "Woods101-v0 with 1 bit"
    assert TWO_BITS.num_actions == adapt(TWO_BITS).num_actions == 40 and TWO_BITS.optimal_return() == 1
    assert not adapt(Memory(make("Chain-v0")[0])).one_hot and TWO_BITS.gamma is None


@pytest.mark.parametrize("registers", [0, 1.5, True])
def test_bad_input_is_refused(registers):
    with pytest.raises(ValueError, match="registers: expected an integer >= 1, got"):
        Memory(Woods101(), registers)
    with pytest.raises(ValueError, match="symbols: expected an integer >= 2, got 1"):
        Memory(Woods101(), symbols=1)
    with pytest.raises(ValueError, match="write_price: "):
        Memory(Woods101(), write_price=-1.0)
    with pytest.raises(ValueError, match=r"env: .* is not a gymnax-style environment"):
        Memory(object())

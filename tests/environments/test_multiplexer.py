"""The multiplexer compared with a look-up in a list, for all inputs of the small ones."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket import make
from jaxmarket.environments import Multiplexer, adapt
from jaxmarket.environments.multiplexer import MultiplexerState
from jaxmarket.testing import check_environment

KEY = jax.random.key(0)


def look_up(bits, address):
    """The data bit at the address, in plain Python."""
    where = int("".join(str(bit) for bit in bits[:address]), 2)
    return bits[address:][where]


@pytest.mark.parametrize("address", [1, 2, 3])
def test_every_input_and_answer(address):
    env = Multiplexer(address)
    inputs = np.array(list(itertools.product((0, 1), repeat=env.bits)), np.int32)
    states = MultiplexerState(bits=jnp.asarray(inputs), time=jnp.zeros(len(inputs), jnp.int32))
    step = jax.jit(jax.vmap(jax.vmap(env.step_env, (None, None, 0, None)), (None, 0, None, None)))
    obs, after, reward, terminated, _ = step(KEY, states, jnp.arange(2), env.default_params)
    right = np.array([look_up(bits, address) for bits in inputs.tolist()])
    np.testing.assert_array_equal(reward, np.eye(2)[right])
    assert terminated.all() and (after.time == 1).all()
    np.testing.assert_array_equal(obs, np.repeat(inputs[:, None], 2, 1))


@pytest.mark.parametrize("address", [4, 5])
def test_long_inputs(address):
    env = Multiplexer(address)
    assert env.bits == address + 2**address
    _, states = jax.vmap(env.reset_env, (0, None))(jax.random.split(KEY, 200), env.default_params)
    right = [look_up(bits, address) for bits in states.bits.tolist()]
    np.testing.assert_array_equal(env.answer(states.bits), right)
    assert len({tuple(bits[:address]) for bits in states.bits.tolist()}) > 2**address * 0.9


def test_first_bits_are_fair_coins():
    env = Multiplexer(1)
    n = 8000
    obs, states = jax.jit(jax.vmap(env.reset_env, (0, None)))(jax.random.split(KEY, n), env.default_params)
    assert set(np.unique(obs)) == {0, 1} and not states.time.any()
    np.testing.assert_array_equal(obs, states.bits)
    counts = np.bincount(np.asarray(obs, int) @ [4, 2, 1], minlength=8)
    # Hoeffding and a union bound: fails with probability 1e-6.
    assert np.abs(counts / n - 1 / 8).max() < np.sqrt(np.log(2 * 8 / 1e-6) / (2 * n))


@pytest.mark.parametrize(
    ("address", "env_id"), [(2, "Multiplexer6-v0"), (3, "Multiplexer11-v0"), (4, "Multiplexer20-v0")]
)
def test_ids(address, env_id):
    env, params = make(env_id)
    assert env == Multiplexer(address) and hash(env) == hash(Multiplexer(address)) and env.name == env_id
    assert env is make(env_id)[0] and env != Multiplexer(1) and env != env_id
    adapter = adapt(env)
    assert adapter.num_actions == 2 and adapter.longest_episode(params) == 1 and adapter.optimal_return() == 1
    obs, _ = jax.eval_shape(adapter.reset, KEY, params)
    assert obs.shape == (env.bits,) and obs.dtype == jnp.float32


def test_contract():
    check_environment(Multiplexer())


def test_dtypes_under_x64():
    with jax.enable_x64(True):
        env = Multiplexer(3)
        obs, state = jax.eval_shape(env.reset_env, KEY, env.default_params)
        after = jax.eval_shape(env.step_env, KEY, state, 0, env.default_params)
        assert obs.dtype == after[0].dtype == after[2].dtype == jnp.float64
        assert jax.tree.leaves(state) == jax.tree.leaves(after[1]) and state.bits.dtype == jnp.int32


@pytest.mark.parametrize("address", [0, 6, 2.5, True])
def test_bad_input_is_refused(address):
    with pytest.raises(ValueError, match="address: expected an integer from 1 to 5, got"):
        Multiplexer(address)

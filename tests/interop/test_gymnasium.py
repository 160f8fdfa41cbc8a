"""Our environments as Gymnasium's, judged by Gymnasium; our societies in Gymnasium's own environments."""

import dataclasses

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnax.wrappers.gym import GymnaxToGymWrapper

import jaxmarket
from jaxmarket.environments import OURS, adapt
from jaxmarket.environments.tabular import FiniteMDP
from jaxmarket.interop.bidder import BidderEnv
from jaxmarket.interop.embedding import given_bids
from jaxmarket.interop.gymnasium_env import GymnasiumEnv, actor
from jaxmarket.keys import key_for


class Restricted(FiniteMDP):
    def legal_actions(self, state, params):
        return jnp.arange(3) != state.index


WORLD = Restricted(np.full((3, 3, 3), 1 / 3), np.arange(9).reshape(3, 3) / 8, 0.9, [1 / 3] * 3, horizon=5)
# Every episode has one step, which check_env takes for an error.
ONE_STEP = ("Bandit-v0", "Multiplexer6-v0", "Multiplexer11-v0", "Multiplexer20-v0")
# Two Rooms are one program, and Mental Rotation first trains a reader of digits.
NOT_HERE = ("MentalRotation-v0", "TwoRooms-Red-v0", "TwoRooms-Green-v0", "TwoRooms-Blue-v0", "TwoRooms-BlueTask-v0")
# Of gymnax, one of each kind: continuous actions, images, integer rewards and observations, a scalar observation, both
# flags at once. Its others pass too (MinAtar was not tried), but MemoryChain
# and GaussianBandit, whose declared spaces are wrong in 1.0.1.
GYMNAX = (
    "CartPole-v1",
    "Pendulum-v1",
    "Catch-bsuite",
    "DeepSea-bsuite",
    "UmbrellaChain-bsuite",
    "FourRooms-misc",
    "FrozenLake-misc",
    "Reacher-misc",
)


def episode(env, seed, actions):
    history = [env.reset(seed=seed)]
    for action in actions:
        history.append(env.step(action))
    return history


@pytest.mark.filterwarnings("ignore:.*Box observation space m", "ignore:.*Box action spaces")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name != "Chain-v0"))
        for name in (*OURS, *GYMNAX)
        if name not in ONE_STEP + NOT_HERE
    ],
)
def test_gymnasium_check_env_passes(name):
    env = name if name in OURS else gymnax.make(name)[0]  # with continuous actions too
    check_env(GymnasiumEnv(env), skip_render_check=True)


@pytest.mark.slow
def test_gymnax_wrapper_fails_check_env():
    """The reason for `GymnasiumEnv`. If this test fails, gymnax has fixed its wrapper, and ours can be removed."""
    env, env_params = gymnax.make("CartPole-v1")
    theirs = GymnaxToGymWrapper(env, env_params)
    with pytest.raises(AssertionError, match="super"):
        check_env(theirs, skip_render_check=True)
    theirs.reset(seed=0)
    while True:
        obs, _, terminated, *_ = theirs.step(0)
        if terminated:
            break
    assert not isinstance(obs, np.ndarray)
    assert abs(obs).max() < 0.05  # where the next episode begins, not where this one ended


def test_an_episode_is_that_of_the_environment_under_jax():
    adapter, params, actions = adapt(WORLD), WORLD.default_params, [0, 1, 2, 0, 1]
    first, *rest = episode(GymnasiumEnv(WORLD), 7, actions)
    key, key_reset = jax.random.split(key_for(jax.random.key(7), "gymnasium"))
    obs, state = adapter.raw_reset(key_reset, params)
    step = jax.jit(adapter.raw_step)
    assert np.array_equal(first[0], obs)
    for t, (action, (theirs, reward, terminated, truncated, info)) in enumerate(zip(actions, rest, strict=True)):
        key, key_step = jax.random.split(key)
        after = step(key_step, state, action, params)
        state = after.env_state
        assert np.array_equal(theirs, after.obs)
        assert (type(theirs), type(reward), type(terminated), type(truncated)) == (np.ndarray, float, bool, bool)
        assert (reward, terminated, truncated) == (float(after.reward), False, t == 4)  # cut, and not reset
        assert info == {"duration": 1.0, "undiscounted": reward}


def test_seeds_make_episodes_again():
    env, actions = GymnasiumEnv(WORLD), [0, 1, 2, 0, 1]

    def states(seed):
        return [int(row[0].argmax()) for row in episode(env, seed, actions)]

    many = [states(seed) for seed in range(4)]
    assert [states(seed) for seed in range(4)] == many
    assert len(set(map(tuple, many))) > 1
    assert states(2**32 + 1) == many[1]
    states(0)
    assert len({tuple(states(None)) for _ in range(4)}) > 1  # without a seed the stream goes on
    fresh = {int(GymnasiumEnv(WORLD).reset()[0].argmax()) for _ in range(20)}
    assert len(fresh) > 1  # and begins anywhere


def test_invalid_actions_are_refused():
    env = GymnasiumEnv(WORLD)
    for call in (lambda: env.step(0), env.action_masks):
        with pytest.raises(gymnasium.error.ResetNeeded):
            call()
    env.reset(seed=0)
    for action in (3, -1, 0.5, None):
        with pytest.raises(ValueError, match=f"action: expected an integer from 0 to 2, got {action}"):
            env.step(action)
    with pytest.raises(ValueError, match="did you mean 'Chain-v0'"):
        GymnasiumEnv("Chain-v1")


def test_legal_choices_and_other_parameters():
    env = GymnasiumEnv(WORLD)
    obs, _ = env.reset(seed=0)
    assert env.action_masks().tolist() == [i != obs.argmax() for i in range(3)]
    generous = WORLD.default_params.replace(rewards=jnp.full((3, 3), 5.0))
    env.reset(options={"env_params": generous})
    assert env.step(0)[1] == 5.0
    env.reset(seed=0)
    assert env.step(0)[1] == 5.0  # from here on


class Bare:
    """An environment without spaces, parameters or gymnax's base class."""

    num_actions = 2

    def __init__(self, pair=False):
        self.pair = pair

    def reset(self, key, params):
        return self._obs(jnp.zeros(2)), jnp.zeros(2)

    def step(self, key, state, action, params):
        state = state + action
        return self._obs(state), state, 1.0, state.sum() > 3, {}

    def _obs(self, state):
        return (state, state) if self.pair else state


def test_an_environment_without_spaces():
    env = GymnasiumEnv(Bare())
    assert (env.action_space, env.observation_space.shape) == (gymnasium.spaces.Discrete(2), (2,))
    env.reset(seed=0)
    assert env.step(1)[0].tolist() == [1, 1]
    with pytest.raises(ValueError, match="Bare has no observation_space"):
        GymnasiumEnv(Bare(pair=True))


def test_actor_maps_numpy_to_integers():
    society = given_bids(jaxmarket.TrainConfig("Bandit-v0", clones=1).settings.society)
    act = actor(jaxmarket.MarketPolicy(jnp.array([0.1, 0.2, 0.3, 0.9]), society))
    env = GymnasiumEnv("Bandit-v0")
    obs, _ = env.reset(seed=0)
    chosen = act(obs)
    assert (type(chosen), chosen) == (int, 3)
    assert act(obs, np.array([True, True, True, False])) == 2
    assert env.step(chosen)[1] == pytest.approx(0.8)


def test_an_actors_draws_are_those_of_its_seed():
    def noise(obs, key):
        return jax.random.randint(key, (), 0, 1000)

    def draws(seed):
        act = actor(noise, seed)
        return [act(np.zeros(1)) for _ in range(5)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)
    assert len(set(draws(3))) > 1


@pytest.mark.full
def test_trained_society_solves_gymnasium_cartpole():
    """Training uses gymnax's CartPole, evaluation Gymnasium's (NumPy, float64)."""
    run = jaxmarket.fit(
        jaxmarket.TrainConfig("CartPole-v1", learner="valuation", steps=300_000), jax.random.key(0), progress=False
    )
    act = actor(jaxmarket.as_policy(run))
    env = gymnasium.make("CartPole-v1")
    returns = []
    for seed in range(5):
        obs, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(act(obs))
            total, over = total + reward, terminated or truncated
        returns.append(total)
    assert np.mean(returns) > 200, returns  # 22 at random


@pytest.mark.slow
def test_gymnasiums_vector_environment_and_wrappers():
    vector = gymnasium.vector.SyncVectorEnv([lambda: GymnasiumEnv("Chain-v0")] * 3)
    obs, _ = vector.reset(seed=0)
    assert obs.shape == (3, 6)
    for _ in range(5):
        obs, rewards, terminated, *_ = vector.step(np.array([1, 1, 0]))
    assert rewards.tolist() == pytest.approx([0.8, 0.8, 0.0])
    assert terminated.tolist() == [True, True, False]
    recorded = gymnasium.wrappers.RecordEpisodeStatistics(GymnasiumEnv("Chain-v0"))
    *_, last = episode(recorded, 0, [1] * 5)
    assert last[-1]["episode"]["r"] == pytest.approx(0.8)
    assert dataclasses.is_dataclass(recorded.unwrapped.adapter)


@pytest.mark.slow
def test_bidder_env_is_a_gymnasium_environment():
    society = jaxmarket.TrainConfig("Chain-v0", clones=1).settings.society
    market = BidderEnv(society, society.init(jax.random.key(0)), bidder=1, levels=(0.0, 0.5, 1.0))
    check_env(GymnasiumEnv(market), skip_render_check=True)

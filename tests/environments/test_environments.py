"""The paper's tasks, finite processes, the gymnax contract, `make`, and the adapter."""

import functools
import math
import re
from typing import NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces
from gymnax.environments.classic_control.cartpole import CartPole
from gymnax.environments.environment import Environment
from gymnax.wrappers.purerl import LogWrapper, StickyActionWrapper
from thinned import thinned

from jaxmarket import TrainConfig, make
from jaxmarket.environments import (
    OURS,
    Bandit,
    BlocksWorld,
    Chain,
    Duality,
    FiniteMDP,
    Maze,
    Memory,
    SupplyChain,
    adapt,
    environment_ids,
    garnet,
)
from jaxmarket.environments.rooms import TASKS
from jaxmarket.environments.tabular import MDPState
from jaxmarket.interop.gymnasium_env import GymnasiumEnv
from jaxmarket.testing import check_environment

KEY = jax.random.key(0)
GAMMA = 0.99


def play(env, actions):
    """Rewards, states (after each step) and ends of a fixed course of actions, by `adapt` and thus without reset."""
    adapter = adapt(env)
    params = adapter.default_params
    obs, state = adapter.reset(KEY, params)

    def body(state, action):
        after = adapter.step(KEY, state, action, params)
        return after.env_state, after

    _, rows = jax.lax.scan(body, state, jnp.asarray(actions))
    return int(obs.argmax()), rows


# --- the paper's tasks


def test_bandit():
    for action, reward in enumerate((0.2, 0.4, 0.6, 0.8)):
        first, rows = play(Bandit(), [action])
        assert first == 0 and rows.obs.shape == (1, 1)
        np.testing.assert_allclose(rows.reward, [reward], rtol=1e-6)
        assert rows.terminated.all()
    np.testing.assert_allclose(Bandit().optimal_q(GAMMA), [[0.2, 0.4, 0.6, 0.8]])


def test_chain():
    left, right = 0, 1
    first, rows = play(Chain(), [left, right, right, left, right, right, right, right])
    assert first == 0
    np.testing.assert_array_equal(rows.obs, np.eye(6)[[0, 1, 2, 1, 2, 3, 4, 5]])
    np.testing.assert_allclose(rows.reward, [0] * 7 + [0.8], rtol=1e-6)
    np.testing.assert_array_equal(rows.terminated, [False] * 7 + [True])
    assert not rows.truncated.any()
    _, rows = play(Chain(), [left] * 20)
    np.testing.assert_array_equal(rows.truncated, [False] * 19 + [True])
    assert not rows.terminated.any() and not rows.reward.any()


def test_duality():
    a0, a1 = 0, 1
    first, rows = play(Duality(), [a1, a0, a1, a1, a0, a0, a0, a1])
    assert first == 0
    np.testing.assert_array_equal(rows.obs, np.eye(3)[[1, 0, 1, 1, 0, 2, 2, 2]])
    np.testing.assert_allclose(rows.reward, [0.5, 0.5, 0.5, 0.3, 0.5, 0, -1, -1], rtol=1e-6)
    for actions, total in (([a1, a0] * 5, 5.0), ([a1] * 10, 3.2), ([a0] * 10, -9.0)):
        _, rows = play(Duality(), actions)
        np.testing.assert_allclose(rows.reward.sum(), total, rtol=1e-5)
        np.testing.assert_array_equal(rows.truncated, [False] * 9 + [True])
        assert not rows.terminated.any()


def slow_value_iteration(P, R, terminal, gamma):
    """Q* by value iteration until convergence, one state and action at a time."""
    states, actions = R.shape
    Q = np.zeros((states, actions))
    while True:
        value, old = Q.max(1), Q.copy()
        for s in range(states):
            for a in range(actions):
                Q[s, a] = R[s, a] + gamma * sum(P[s, a, t] * value[t] for t in range(states) if not terminal[t])
        if np.abs(Q - old).max() < 1e-11 * (1 - gamma):
            return Q


def test_optimal_values_of_the_papers_tasks():
    chain = Chain().optimal_q(GAMMA)
    np.testing.assert_allclose(chain[:5, 1], [0.8 * GAMMA ** (4 - s) for s in range(5)], rtol=1e-12)
    np.testing.assert_allclose(chain[:5, 0], [GAMMA * chain[max(s - 1, 0), 1] for s in range(5)], rtol=1e-12)
    np.testing.assert_allclose(Duality().optimal_q(GAMMA), [[-99, 50], [50, 49.8], [-100, -100]], rtol=1e-12)
    for env in (Bandit(), Chain(), Duality()):
        assert env.gamma == GAMMA == adapt(env).gamma
        slow = slow_value_iteration(env.transitions, env.rewards, env.terminal, 0.9)
        np.testing.assert_allclose(env.optimal_q(0.9), slow, atol=1e-9)
        np.testing.assert_array_equal(adapt(env).optimal_q(0.9), env.optimal_q(0.9))


# --- finite processes of one's own


def random_process(seed, states=4, actions=3):
    """Arguments of a `FiniteMDP`: the best action is often not the best paid, and some transitions are impossible."""
    rng = np.random.default_rng(seed)
    P, start = rng.exponential(size=(states, actions, states)) ** 4, rng.exponential(size=states)
    P *= rng.random(P.shape) < 0.7
    P[..., 0] += 0.01
    start[1:2] = 0
    return {
        "P": P / P.sum(-1, keepdims=True),
        "R": (rng.normal(size=(states, actions)) + 3 * rng.normal(size=(states, 1))) * 10 ** rng.uniform(-3, 1),
        "gamma": rng.uniform(0.3, 0.95),
        "start": start / start.sum(),
        "terminal": rng.random(states) < 0.2,
    }


@pytest.mark.parametrize("seed", thinned(range(30), lambda seed: seed < 5))
def test_optimal_q_is_that_of_slow_value_iteration(seed):
    rng = np.random.default_rng(seed)
    process = random_process(seed, *rng.integers(1, 6, 2))
    slow = slow_value_iteration(*(process[name] for name in ("P", "R", "terminal", "gamma")))
    q = FiniteMDP(**process).optimal_q()
    assert q.dtype == np.float64
    np.testing.assert_allclose(q, slow, atol=1e-8)


def test_equal_actions_do_not_stall_policy_iteration():
    env = FiniteMDP(np.full((3, 4, 3), 1 / 3), np.ones((3, 4)), 0.9, np.full(3, 1 / 3))
    np.testing.assert_allclose(env.optimal_q(), 10.0)


def test_frequencies_of_a_stochastic_process_match_its_probabilities():
    process, n = random_process(3), 10_000
    states, actions = process["R"].shape
    env = FiniteMDP(**process)
    params = env.default_params
    # Hoeffding and a union bound over every frequency below: all of them hold with probability 1 - 1e-6.
    bound = math.sqrt(math.log(2 * states * (states * actions + 1) / 1e-6) / (2 * n))

    def check(drawn, probabilities):
        frequencies = np.bincount(np.asarray(drawn), minlength=states) / n
        assert np.abs(frequencies - probabilities).max() < bound
        assert not frequencies[probabilities == 0].any()

    keys = jax.random.split(KEY, n)
    first, _ = jax.jit(jax.vmap(env.reset_env, (0, None)))(keys, params)
    check(first.argmax(-1), process["start"])

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    @functools.partial(jax.vmap, in_axes=(None, 0, None))
    @functools.partial(jax.vmap, in_axes=(None, None, 0))
    def step(s, a, key):
        return env.step_env(key, MDPState(index=s, time=jnp.asarray(0)), a, params)[:4]

    obs, state, reward, terminated = step(jnp.arange(states), jnp.arange(actions), keys)
    assert (state.time == 1).all()
    np.testing.assert_array_equal(obs.argmax(-1), state.index)
    np.testing.assert_array_equal(terminated, process["terminal"][state.index])
    for s in range(states):
        for a in range(actions):
            check(state.index[s, a], process["P"][s, a])
            np.testing.assert_allclose(reward[s, a], process["R"][s, a], rtol=1e-6)


GOOD = {"P": np.full((2, 3, 2), 0.5), "R": np.zeros((2, 3)), "gamma": 0.9, "start": np.array([1.0, 0.0])}


def changed(name, index, value):
    array = GOOD[name].copy()
    array[index] = value
    return {name: array}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"P": np.ones((2, 2))}, r"P: expected 3 axes, got shape \(2, 2\)"),
        ({"P": np.ones((2, 3, 4)) / 4}, r"P: expected shape \[S, A, S\].*\(2, 3, 4\)"),
        ({"P": np.ones((0, 3, 0))}, r"P: expected shape \[S, A, S\] with S, A >= 1"),
        ({"P": "rain"}, "P: expected an array of numbers"),
        ({"P": [[[10**400, 0]]]}, "P: expected an array of numbers"),
        (changed("P", (1, 2, 0), np.nan), r"P: .*finite.*, P\[1, 2, 0\] is nan"),
        (changed("P", (1, 2), [-0.5, 1.5]), r"P: .* >= 0, P\[1, 2, 0\] is -0.5"),
        (changed("P", (1, 2, 0), 0.6), r"P\[1, 2\]: .* sum 1.1"),
        (changed("P", (0, 1, 0), 0.50002), r"P\[0, 1\]: .* sum 1.00002"),
        ({"R": np.zeros((2, 2))}, r"R: expected shape \(2, 3\), got shape \(2, 2\)"),
        (changed("R", (1, 0), np.inf), r"R: .*finite.*, R\[1, 0\] is inf"),
        ({"start": [1.0, 0.0, 0.0]}, r"start: expected shape \(2,\)"),
        ({"start": [1.5, -0.5]}, r"start: .* >= 0, start\[1\] is -0.5"),
        ({"start": [0.5, 0.4]}, "start: .* sum 0.9"),
        ({"start": [np.nan, 1.0]}, "start: .*finite"),
        ({"terminal": [0, 1]}, "terminal: expected a boolean mask"),
        ({"terminal": [[1], [1, 2]]}, "terminal: expected a boolean mask"),
        ({"terminal": np.zeros(3, bool)}, "terminal: expected a boolean mask"),
        ({"gamma": 1.0}, r"gamma: .* \[0, 1\), got 1.0"),
        ({"gamma": -0.1}, "gamma: expected a number in"),
        ({"gamma": np.nan}, "gamma: expected a number in"),
        ({"horizon": 0}, "horizon: expected an integer >= 1, got 0"),
        ({"horizon": 2.5}, "horizon: expected an integer >= 1, got 2.5"),
        ({"horizon": np.inf}, "horizon: .* got inf"),
        ({"horizon": None}, "horizon: .* got None"),
        ({"horizon": True}, "horizon: .* got True"),
        ({"gamma": "x"}, "gamma: .* got 'x'"),
        ({"gamma": None}, "gamma: .* got None"),
    ],
)
def test_invalid_processes_are_refused(change, message):
    FiniteMDP(**GOOD)
    with pytest.raises(ValueError, match=message):
        FiniteMDP(**GOOD | change)


def test_probabilities_may_be_rounded_to_float32():
    process = random_process(5)
    FiniteMDP(**process | {"P": process["P"].astype(np.float32)})


def test_optimal_q_refuses_an_undefined_discount():
    with pytest.raises(ValueError, match="gamma"):
        Chain().optimal_q(1.0)


def test_processes_compare_by_value_and_compile_once():
    env, twin = (
        FiniteMDP(**GOOD),
        FiniteMDP(**{name: np.array(value) for name, value in GOOD.items() if name != "gamma"}, gamma=0.9),
    )
    assert env == twin and hash(env) == hash(twin) and adapt(env) == adapt(twin)
    others = [
        FiniteMDP(**GOOD | change)
        for change in (
            changed("P", (1, 2), [0.25, 0.75]),
            changed("R", (1, 0), 1.0),
            {"gamma": 0.8},
            {"start": [0.0, 1.0]},
            {"terminal": [False, True]},
            {"horizon": 99},
            {"name": "Other"},
        )
    ]
    assert len({env, twin, *others}) == 1 + len(others)
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def reset(env, key, params):
        traces.append(env)
        return env.reset_env(key, params)

    reset(env, KEY, env.default_params)
    reset(twin, KEY, twin.default_params)
    assert len(traces) == 1


# --- the contract of gymnax, kept by ours


@pytest.mark.parametrize(
    ("env", "action", "steps", "terminated", "truncated"),
    [
        (Bandit(), 0, 1, True, True),
        (Chain(), 1, 5, True, False),
        (Chain(), 0, 20, False, True),
        (Duality(), 1, 10, False, True),
    ],
)
def test_ours_are_gymnax_environments(env, action, steps, terminated, truncated):
    assert isinstance(env, Environment)
    start, state = env.reset(KEY)
    for t in range(steps):
        assert state.time == t
        obs, state, reward, ended, cut, info = env.step(KEY, state, action)
        assert reward.shape == ended.shape == cut.shape == ()
        if t < steps - 1:
            assert not ended and not cut
            np.testing.assert_array_equal(obs, info["final_observation"])
    assert (bool(ended), bool(cut)) == (terminated, truncated)
    # Reset in the same step; where the episode ended is in info.
    assert state.time == 0
    np.testing.assert_array_equal(obs, start)
    _, rows = play(env, [action] * steps)
    np.testing.assert_array_equal(info["final_observation"], rows.obs[-1])
    assert env.observation_space(env.default_params).shape == obs.shape
    assert env.action_space(env.default_params).n == env.num_actions


# --- make

IMAGES = {
    **dict.fromkeys(TASKS, (7, (7, 7, 3))),
    "Asterix-MinAtar": (5, (10, 10, 4)),
    "Breakout-MinAtar": (3, (10, 10, 4)),
    "Freeway-MinAtar": (3, (10, 10, 7)),
    "Seaquest-MinAtar": (6, (10, 10, 10)),
    "SpaceInvaders-MinAtar": (4, (10, 10, 6)),
    "Pong-misc": (3, (30, 40, 3)),
}
VECTORS = {
    "Bandit-v0": (4, (1,)),
    "Chain-v0": (2, (6,)),
    "Duality-v0": (2, (3,)),
    "BlocksWorld3-v0": (6, (13,)),
    "TMaze10-v0": (4, (3,)),
    "Multiplexer6-v0": (2, (6,)),
    "Multiplexer11-v0": (2, (11,)),
    "Multiplexer20-v0": (2, (20,)),
    "Regimes-v0": (4, (6,)),
    "SupplyChain2-v0": (8, (8,)),
    "Targets-v0": (4, (12,)),
    **dict.fromkeys(("Maze4-v0", "Maze5-v0", "Maze6-v0"), (8, (16,))),
    "Woods1-v0": (8, (16,)),
    "Woods101-v0": (8, (16,)),
    "CartPole-v1": (2, (4,)),
    "Acrobot-v1": (3, (6,)),
    "MountainCar-v0": (3, (2,)),
    "Catch-bsuite": (3, (50,)),
    "DeepSea-bsuite": (2, (64,)),
    "MemoryChain-bsuite": (2, (3,)),
    "UmbrellaChain-bsuite": (2, (3,)),
    "DiscountingChain-bsuite": (5, (2,)),
    "SimpleBandit-bsuite": (11, (1,)),
    "FourRooms-misc": (4, (44,)),
    "MetaMaze-misc": (4, (15,)),
    "BernoulliBandit-misc": (2, (4,)),
    "GaussianBandit-misc": (2, (4,)),
    "FrozenLake-misc": (4, (16,)),
}
VARIED = ("Chain-v0", "CartPole-v1", "Breakout-MinAtar", "UmbrellaChain-bsuite", "FourRooms-misc", "FrozenLake-misc")
CONTINUOUS = ["Pendulum-v1", "MountainCarContinuous-v0", "PointRobot-misc", "Reacher-misc", "Swimmer-misc"]
DOWNLOADS = ["MNISTBandit-bsuite"]
TRAINED = [
    "MentalRotation-v0",  # building it trains a classifier: see test_mental_rotation.py
    "TrainingChain-v0",  # a step trains a society: see tests/training/test_training_environment.py
]


def test_every_id_is_accounted_for():
    assert set(environment_ids()) == {*OURS, *gymnax.registered_envs}
    assert {*IMAGES, *VECTORS, *CONTINUOUS, *DOWNLOADS, *TRAINED} == set(environment_ids())


@pytest.mark.parametrize("env_id", thinned([*VECTORS, *IMAGES], lambda env_id: env_id in VARIED))
def test_discrete_environments_adapt_and_step(env_id):
    env, params = make(env_id)
    adapter = adapt(env)
    actions, shape = (VECTORS | IMAGES)[env_id]
    assert adapter.num_actions == actions
    assert TrainConfig(env_id).settings.adapter.observation.shape == shape

    def once(key):
        obs, state = adapter.reset(key, params)
        return obs, adapter.step(key, state, jnp.asarray(actions - 1), params)

    # MinAtar and Pong take seconds to compile: their shapes have to do.
    obs, after = (jax.eval_shape if env_id in IMAGES else lambda f, key: jax.jit(f)(key))(once, KEY)
    for x, kind in (
        (obs, float),
        (after.obs, float),
        (after.reward, float),
        (after.terminated, bool),
        (after.truncated, bool),
        (after.duration, float),
    ):
        assert x.dtype == jnp.zeros((), kind).dtype
    assert obs.shape == after.obs.shape == shape
    assert after.reward.shape == after.terminated.shape == after.truncated.shape == after.duration.shape == ()
    if env_id not in IMAGES:
        assert jnp.isfinite(after.obs).all() and jnp.isfinite(after.reward) and after.duration == 1


@pytest.mark.slow
@pytest.mark.parametrize("env_id", CONTINUOUS)
def test_continuous_environments_keep_the_contract(env_id):
    env, _ = make(env_id)
    check_environment(env, instances=2, steps=8)
    adapter = adapt(env)
    assert len(adapter.box.low) == len(adapter.box.high) == math.prod(adapter.action.shape)
    assert adapter.to_action(jnp.zeros(len(adapter.box.low))).shape == adapter.action.shape
    with pytest.raises(ValueError, match=rf"^env: {env_id} has the action space Box.*primitives='learned'"):
        TrainConfig(env_id, agent="population")


@pytest.mark.parametrize("env_id", DOWNLOADS)
def test_missing_data_error_names_the_environment(env_id, monkeypatch):
    def offline(*args, **settings):
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("urllib.request.urlretrieve", offline)
    with pytest.raises(ValueError, match=f"{env_id} cannot be built.*no network in tests"):
        make(env_id)


@pytest.mark.parametrize(
    ("env_id", "hint"),
    [("chain-v0", "'Chain-v0'"), ("CartPole-v0", "'CartPole-v1'"), ("zzz", "choose from Bandit-v0, ")],
)
def test_unknown_ids_are_refused_with_a_suggestion(env_id, hint):
    with pytest.raises(ValueError, match=f"unknown environment '{env_id}'.*{hint}"):
        make(env_id)


@pytest.mark.parametrize("env_id", ["Chain-v0", "CartPole-v1"])
def test_an_id_always_makes_the_same_environment(env_id):
    (one, params), (other, same_params) = make(env_id), make(env_id)
    assert one == other and hash(one) == hash(other)
    assert adapt(one) == adapt(other) and adapt(adapt(one)) is not None
    jax.tree.map(np.testing.assert_array_equal, params, same_params)


def test_adapter_reads_optional_members():
    chain, cartpole = adapt(make("Chain-v0")[0]), adapt(make("CartPole-v1")[0])
    assert (chain.name, cartpole.name) == ("Chain-v0", "CartPole-v1")
    assert cartpole.gamma is None and cartpole.optimal_q() is None
    assert chain.one_hot and not cartpole.one_hot and adapt(make("FrozenLake-misc")[0]).one_hot
    assert chain.longest_episode(chain.default_params) == 20
    assert cartpole.longest_episode(cartpole.default_params.replace(max_steps_in_episode=7)) == 7
    assert (
        jax.jit(lambda limit: cartpole.longest_episode(cartpole.default_params.replace(max_steps_in_episode=limit)))(7)
        is None
    )
    assert adapt(chain) is chain
    # Only where the clock is known to be the only cut: another's environment may cut as it pleases.
    own = adapt(Walk(six).with_(default_params=chain.default_params))
    assert own.longest_episode(own.default_params) is None


# --- observations


def raw_and_encoded(env_id):
    env, params = make(env_id)
    adapter = adapt(env)
    return env.reset(KEY, params)[0], adapter.reset(KEY, params)[0]


def test_integers_become_one_hot():
    raw, encoded = raw_and_encoded("FrozenLake-misc")
    assert raw.shape == ()
    np.testing.assert_array_equal(encoded, np.eye(16)[int(raw)])
    raw, encoded = raw_and_encoded("FourRooms-misc")
    assert raw.shape == (4,)
    np.testing.assert_array_equal(encoded, np.eye(11)[np.asarray(raw) - 1].reshape(-1))  # its map counts from 1 to 11


@pytest.mark.parametrize("unit", [1e-12, 1e-100, 1e100])
def test_optimal_values_do_not_depend_on_the_unit_of_rewards(unit):
    plain = garnet(0, 8, 3, 0.9, 2)
    other = FiniteMDP(plain.transitions, plain.rewards * unit, 0.9, plain.start)
    np.testing.assert_allclose(other.optimal_q() / unit, plain.optimal_q(), rtol=1e-9)


def test_small_rewards_count_beside_large_ones():
    stay = np.eye(2)[[[0, 0], [1, 1]]]  # two states that are never left
    q = FiniteMDP(stay, [[1e-12, 2e-12], [1.0, 2.0]], 0.5, [1, 0]).optimal_q()
    np.testing.assert_allclose(q, [[3e-12, 4e-12], [3, 4]], rtol=1e-12)


@pytest.mark.parametrize("gamma", [0.999999, 1 - 1e-12])
def test_optimal_values_end_at_discounts_close_to_one(gamma):
    for seed in range(20):
        env = garnet(seed, 6, 4, gamma, 3)
        twins = FiniteMDP(
            np.repeat(env.transitions, 2, 1), np.repeat(env.rewards / 3, 2, 1), gamma, env.start
        )  # each action twice
        assert np.isfinite(twins.optimal_q()).all()


@pytest.mark.parametrize("env_id", ["Catch-bsuite", "DeepSea-bsuite"])
def test_matrices_are_flattened(env_id):
    raw, encoded = raw_and_encoded(env_id)
    assert raw.ndim == 2
    np.testing.assert_array_equal(encoded, np.asarray(raw).reshape(-1))


def test_images_stay_images():
    raw, encoded = raw_and_encoded("Breakout-MinAtar")
    assert encoded.ndim == 3 and encoded.dtype == jnp.float32
    np.testing.assert_array_equal(encoded, raw)


# --- environments of one's own


class Walk:
    """Counts up by 1 + action; ends at 5 or more, cut after 3 steps. ``answer`` decides what a step returns."""

    num_actions = 2

    def __init__(self, answer, observe=lambda x: x[None].astype(jnp.float32)):
        self.answer, self.observe = answer, observe

    def reset(self, key, params):
        state = (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
        return self.observe(state[0]), state

    def step(self, key, state, action, params):
        x, time = state[0] + 1 + action, state[1] + 1
        return self.answer(self.observe(x), (x, time), jnp.asarray(x), x >= 5, time >= 3)

    def with_(self, **attributes):
        vars(self).update(attributes)
        return self


def six(obs, state, reward, terminated, truncated):
    return obs, state, reward, terminated, truncated, {}


def auto_reset(obs, state, reward, terminated, truncated):
    done = terminated | truncated
    state = jax.tree.map(lambda x: jnp.where(done, 0, x), state)
    return jnp.where(done, 0, obs), state, reward, terminated, truncated, {"final_observation": obs}


def five(obs, state, reward, terminated, truncated):
    return obs, state, reward, terminated | truncated, {}


def five_that_tells(obs, state, reward, terminated, truncated):
    return obs, state, reward, terminated | truncated, {"truncated": truncated}


@pytest.mark.parametrize(
    ("answer", "terminated", "truncated"),
    [
        (six, [0, 0, 0], [0, 0, 1]),
        (auto_reset, [0, 0, 0], [0, 0, 1]),
        (five, [0, 0, 1], [0, 0, 0]),  # a done that does not say why counts as terminated
        (five_that_tells, [0, 0, 0], [0, 0, 1]),
    ],
)
def test_every_known_kind_of_step(answer, terminated, truncated):
    _, rows = play(Walk(answer), [0, 0, 0])
    np.testing.assert_array_equal(rows.obs[:, 0], [1, 2, 3])  # the last one before any reset
    np.testing.assert_array_equal(rows.reward, [1.0, 2.0, 3.0])
    assert rows.obs.dtype == rows.reward.dtype == rows.duration.dtype == jnp.float32
    np.testing.assert_array_equal(rows.terminated, np.array(terminated, bool))
    np.testing.assert_array_equal(rows.truncated, np.array(truncated, bool))
    np.testing.assert_array_equal(rows.duration, [1, 1, 1])
    _, rows = play(Walk(answer), [1, 1, 1])
    np.testing.assert_array_equal(rows.terminated[:2] | rows.truncated[:2], [False, False])
    assert rows.terminated[2] != (
        answer is five_that_tells
    )  # an end of both kinds, where a five-value step tells of one


def test_step_env_and_is_truncated_are_preferred():
    def step_env(key, state, action, params):
        x, time = state[0] + 1 + action, state[1] + 1
        return jnp.ones(1), (x, time), jnp.ones(()), x >= 5, {}

    env = Walk(lambda *_: pytest.fail("step was called")).with_(
        step_env=step_env, is_truncated=lambda state, params: state[1] >= 2
    )
    _, rows = play(env, [0, 0, 1, 1])
    np.testing.assert_array_equal(rows.terminated, [False, False, False, True])
    np.testing.assert_array_equal(rows.truncated, [False, True, True, True])


class Clock(Environment):
    """Episodes of three steps, in gymnax's style; ``seen`` maps the time to the observation."""

    def __init__(self, seen, observes_time=None):
        super().__init__()
        self.seen = seen
        if observes_time is not None:
            self.observes_time = observes_time

    @property
    def num_actions(self):
        return 1

    def action_space(self, params=None):
        return spaces.Discrete(1)

    def get_obs(self, state, params=None, key=None):
        return self.seen(state.time)[None].astype(jnp.float32)

    def reset_env(self, key, params):
        state = MDPState(index=jnp.int32(0), time=jnp.int32(0))
        return self.get_obs(state), state

    def step_env(self, key, state, action, params):
        state = state.replace(time=state.time + 1)
        return self.get_obs(state), state, jnp.ones(()), jnp.zeros((), bool), {}

    def is_truncated(self, state, params):
        return state.time >= 3

    @property
    def default_params(self):
        return None


@pytest.mark.parametrize(
    ("env", "observed"),
    [
        (Clock(lambda time: time / 3), True),
        (Clock(lambda time: jnp.where(time == 0, 1, 0)), True),
        (Clock(lambda time: jnp.ones(())), False),
        (Clock(lambda time: time / 3, observes_time=False), False),  # a clock of something else, say
        (Clock(lambda time: jnp.ones(()), observes_time=True), True),
    ],
)
def test_a_limit_whose_time_is_observed_terminates(env, observed):
    adapter = adapt(env)
    assert adapter.observes_time is observed
    for wrapped in (env, Memory(env)):
        _, rows = play(wrapped, [0, 0, 0])
        np.testing.assert_array_equal(rows.terminated, [False, False, observed])
        np.testing.assert_array_equal(rows.truncated, [False, False, not observed])


def test_whether_time_is_observed_must_be_a_boolean():
    with pytest.raises(ValueError, match="observes_time of Clock: expected True or False, got 1"):
        adapt(Clock(lambda time: time, observes_time=1))


def test_which_environments_observe_the_time():
    made = (adapt(make(name)[0]) for name in environment_ids() if name != "MNISTBandit-bsuite")
    assert {adapter.name for adapter in made if adapter.observes_time} == {
        "TrainingChain-v0",
        "MemoryChain-bsuite",
        "UmbrellaChain-bsuite",
        "DiscountingChain-v0",
        "MetaMaze-misc",
        "PointRobot-misc",
        "BernoulliBandit-misc",
        "GaussianBandit-misc",
    }


def test_a_step_of_another_length_is_refused():
    with pytest.raises(ValueError, match="step of Walk, got 4 values"):
        play(Walk(lambda *five: five[:4]), [0])


def test_legal_actions_are_read():
    env = Walk(six).with_(
        legal_actions=lambda state, params: jnp.array([True, False]) | (state[0] > params), default_params=2
    )
    adapter = adapt(env)
    _, state = adapter.reset(KEY, 2)
    np.testing.assert_array_equal(adapter.legal(state, 2), [True, False])
    np.testing.assert_array_equal(adapter.legal(state, -1), [True, True])
    np.testing.assert_array_equal(adapt(Walk(six)).legal(state, 2), [True, True])


def test_step_duration_is_read():
    _, rows = play(Walk(lambda obs, state, *rest: (obs, state, *rest, {"duration": state[0]})), [0, 1])
    np.testing.assert_array_equal(rows.duration, [1.0, 3.0])


def test_a_dict_observation_is_joined():
    def observe(x):
        return {"b": jnp.array([True, False]), "a": x, "image": jnp.full((2, 1, 2), 3.0)}

    adapter = adapt(Walk(six, observe))
    obs, state = adapter.reset(KEY, None)
    np.testing.assert_array_equal(obs, [0, 1, 0, 3, 3, 3, 3])  # keys in order, each leaf flat
    np.testing.assert_array_equal(adapter.step(KEY, state, 1, None).obs, [2, 1, 0, 3, 3, 3, 3])
    assert obs.dtype == jnp.float32


class Pair(NamedTuple):
    left: jax.Array
    right: jax.Array


ROOM, NEAR = spaces.Discrete(4), spaces.Box(0, 1, (2,))


@pytest.mark.parametrize(
    ("wrap", "space"),
    [
        (lambda room, near: {"room": room, "v": near}, spaces.Dict({"v": NEAR, "room": ROOM})),
        (lambda room, near: (room, near), spaces.Tuple([ROOM, NEAR])),
        (Pair, spaces.Tuple([ROOM, NEAR])),
        (lambda room, near: {"a": {"room": room}, "b": (near,)}, {"a": {"room": ROOM}, "b": [NEAR]}),
    ],
    ids=["dict", "tuple", "named tuple", "nested"],
)
def test_parts_of_an_observation_are_read_by_their_own_bounds(wrap, space):
    def nested(space):
        if isinstance(space, dict):
            return spaces.Dict({name: nested(part) for name, part in space.items()})
        return spaces.Tuple([nested(part) for part in space]) if isinstance(space, list) else space

    env = Walk(six, lambda x: wrap(x, jnp.full(2, 7.0))).with_(observation_space=lambda params: nested(space))
    adapter = adapt(env)
    obs, state = adapter.reset(KEY, None)
    np.testing.assert_array_equal(obs, [1, 0, 0, 0, 7, 7])
    np.testing.assert_array_equal(adapter.step(KEY, state, 1, None).obs, [0, 0, 1, 0, 7, 7])


@pytest.mark.parametrize(
    ("dtype", "shape", "space", "scaled"),
    [
        (jnp.uint8, (2, 2, 3), spaces.Box(0, 255, (2, 2, 3)), True),
        (jnp.uint8, (2, 2, 3), None, True),
        (jnp.uint8, (2, 2, 3), spaces.Box(0, 10, (2, 2, 3)), False),
        (jnp.uint8, (4,), spaces.Box(0, 255, (4,)), True),
        (jnp.uint8, (4,), None, False),
        (jnp.float32, (2, 2, 3), spaces.Box(0, 255, (2, 2, 3)), True),
        (jnp.float32, (2, 2, 3), spaces.Box(0, 1, (2, 2, 3)), False),
    ],
)
def test_intensities_are_scaled(dtype, shape, space, scaled):
    env = Walk(six, lambda x: jnp.full(shape, 51, dtype))
    env = env if space is None else env.with_(observation_space=lambda params: space)
    obs, _ = adapt(env).reset(KEY, None)
    assert obs.shape == shape
    np.testing.assert_allclose(obs, 0.2 if scaled else 51)


# --- the contract, as far as shapes tell


class Bare:
    """An environment with the required members only."""

    num_actions = 2

    def reset(self, key, params):
        return jnp.zeros(2), jnp.int32(0)

    def step(self, key, state, action, params):
        return jnp.zeros(2), state + 1, 1.0, state > 2, False, {}


class Unhashable(Bare):
    __hash__ = None


def steps(*result):
    return {"step": lambda key, state, action, params: result}


FINE = (jnp.zeros(2), jnp.int32(0), 1.0, False, False, {})
SPACES = {"d": spaces.Discrete(3), "v": NEAR}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (steps(*FINE[:4]), "truncated, info) from step of Bare, got 4 values"),
        ({"step": lambda *_: jnp.zeros(5)}, "step of Bare, got one value"),
        (steps(*FINE[:5], "nothing"), "info of Bare to be a dict, got 'nothing'; return a dict"),
        ({"reset": lambda key, params: jnp.zeros(2)}, "reset of Bare, got one value"),
        ({"reset": lambda key, params: (1, 2, 3)}, "expected (obs, env_state) from reset of Bare, got 3 values"),
        ({"reset": lambda key: FINE[:2]}, "reset of Bare failed under jit with TypeError"),
        ({"reset": lambda key, params: (jnp.zeros(2), "here")}, "reset of Bare failed under jit with TypeError"),
        ({"reset": lambda key, params: ({}, jnp.int32(0))}, "expected an observation from Bare, got"),
        ({"reset": lambda key, params: (key, jnp.int32(0))}, "observation of Bare, got key<fry>[] at its root"),
        (steps(jnp.zeros(3), *FINE[1:]), "the observation after a step of Bare is float32[3] at its root, before it"),
        (steps(FINE[:1], *FINE[1:]), "the observation after a step of Bare has the structure"),
        (steps(FINE[0], jnp.float32(0), *FINE[2:]), "the state after a step of Bare is float32[] at its root, before"),
        (steps(FINE[0], (0, 0), *FINE[2:]), "the state after a step of Bare has the structure"),
        (steps(*FINE[:2], jnp.ones(2), *FINE[3:]), "reward of Bare to be a number, got float32[2]"),
        (steps(*FINE[:2], 1j, *FINE[3:]), "reward of Bare to be a number, got complex64[]"),
        (steps(*FINE[:2], None, *FINE[3:]), "step of Bare failed under jit with"),
        (steps(*FINE[:3], jnp.zeros(2, bool), *FINE[4:]), "terminated of Bare to be a number, got bool[2]"),
        (steps(*FINE[:5], {"duration": jnp.ones(3)}), "info['duration'] of Bare to be a number, got float32[3]"),
        ({"step": lambda k, s, a, p: FINE if s > 0 else None}, "failed under jit with TracerBoolConversionError"),
        ({"step": lambda k, s, a, p: np.asarray(s)}, "failed under jit with TracerArrayConversionError"),
        ({"num_actions": 2.5}, "the number of actions of Bare: expected an integer"),
        ({"num_actions": 0}, "the number of actions of Bare: expected an integer"),
        ({"num_actions": lambda: 2}, "the number of actions of Bare: expected an integer"),
        ({"gamma": "high"}, "gamma of Bare: expected a number in [0, 1], got 'high'"),
        ({"gamma": 1.5}, "gamma of Bare: expected a number in [0, 1], got 1.5"),
        ({"name": 3}, "expected a string as name of Bare, got 3"),
        ({"legal_actions": lambda state, params: jnp.ones(3, bool)}, "legal_actions of Bare of shape (2,), got (3,)"),
        ({"legal_actions": lambda state: jnp.ones(2, bool)}, "legal_actions of Bare failed under jit with TypeError"),
        ({"observation_space": lambda params: 1 / 0}, "observation_space of Bare failed with ZeroDivisionError"),
        ({"observation_space": lambda params: spaces.Dict(SPACES)}, "the observation is one array"),
        ({"reset": lambda k, p: ({"a": 0, "b": 0}, 0), "observation_space": lambda p: NEAR}, "has 2 arrays"),
        (
            {"reset": lambda k, p: ({"d": 0, "w": 0}, 0), "observation_space": lambda p: spaces.Dict(SPACES)},
            "the observation has ['d', 'w'], the space has ['d', 'v']; give both the same structure",
        ),
    ],
)
def test_what_breaks_the_contract_is_refused_in_one_line(attributes, message):
    env = Bare()
    vars(env).update(attributes)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        TrainConfig(env, learner="valuation", instances=8, horizon=16)
    assert str(error.value).startswith("env: ") and "\n" not in str(error.value)
    with pytest.raises(AssertionError, match=re.escape(message)):
        check_environment(env)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Unhashable(), "a hashable environment"),
        (Bare, r"call it: Bare\(\)"),
        (GymnasiumEnv("Chain-v0"), "the Gymnasium environment"),
    ],
)
def test_objects_that_are_not_environments_are_refused(env, message):
    with pytest.raises(ValueError, match=message) as error:
        TrainConfig(env, learner="valuation", instances=8, horizon=16)
    assert "\n" not in str(error.value)


def test_the_contract_is_checked_once_for_each_environment():
    calls = []
    env = Bare()
    env.step = lambda *args: (calls.append(1), Bare.step(env, *args))[1]
    adapt(env)
    once = len(calls)
    adapt(env)
    assert 0 < once == len(calls)


class Space:
    def __init__(self, **attributes):
        vars(self).update(attributes)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (Space(n=4), [[0, 0, 1, 0], [0, 1, 0, 0]]),
        (Space(low=np.array([-1, 0]), high=2), [[0, 0, 0, 1], [0, 0, 1, 0]]),
        (Space(low=0, high=1), [2, 1]),  # flags stay numbers
        (Space(low=0, high=5_000), [2, 1]),  # and so do counts
        (Space(low=-np.inf, high=np.inf), [2, 1]),
        (None, [2, 1]),
    ],
)
def test_bounded_integers_become_one_hot(space, expected):
    env = Walk(six, lambda x: jnp.stack([x + 2, x + 1]))
    env = env if space is None else env.with_(observation_space=lambda params: space)
    obs, _ = adapt(env).reset(KEY, None)
    np.testing.assert_array_equal(obs, np.ravel(expected))
    assert obs.dtype == jnp.float32


@pytest.mark.parametrize("thing", [object(), None, Space(reset=1), Space(step=1)])
def test_what_is_no_environment_is_refused(thing):
    with pytest.raises(ValueError, match="is not a gymnax-style environment"):
        adapt(thing)


@pytest.mark.parametrize("attributes", [{"num_actions": None}, {"action_space": lambda params: Space(shape=(2,))}])
def test_an_environment_without_discrete_actions_is_refused(attributes):
    with pytest.raises(ValueError, match=r"Walk has the action space .* needs discrete actions"):
        adapt(Walk(six).with_(**attributes))


def test_adapter_episodes_equal_gymnax():
    env, params = gymnax.make("CartPole-v1")
    adapter, params = adapt(env), params.replace(max_steps_in_episode=20)

    @jax.jit
    def paths(key):
        key_reset, key_actions, key_steps = jax.random.split(key, 3)
        actions = jax.random.randint(key_actions, (300,), 0, 2)

        def theirs(state, xs):
            obs, state, reward, terminated, truncated, info = env.step(xs[0], state, xs[1], params)
            return state, (obs, reward, terminated, truncated, info["final_observation"])

        def ours(state, xs):
            key_step, key_again = jax.random.split(xs[0])
            after = adapter.step(key_step, state, xs[1], params)
            obs, fresh = adapter.reset(key_again, params)
            done = after.terminated | after.truncated
            onward = after.env_state, after.obs
            state, obs = jax.tree.map(functools.partial(jnp.where, done), (fresh, obs), onward)
            return state, (obs, after.reward, after.terminated, after.truncated, after.obs)

        xs = jax.random.split(key_steps, 300), actions
        start = env.reset(key_reset, params), adapter.reset(key_reset, params)
        return start, jax.lax.scan(theirs, start[0][1], xs), jax.lax.scan(ours, start[1][1], xs)

    start, theirs, ours = paths(jax.random.key(4))
    jax.tree.map(np.testing.assert_array_equal, *start)
    _, rows = ours
    assert rows[2].sum() > 3 and rows[3].sum() > 3 and (rows[2] != rows[3]).any()  # both kinds of end occurred
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), theirs, ours)


def test_wrapper_methods_are_used_instead_of_the_wrapped_ones():
    """Gymnax wrappers pass on the inner environment's ``step_env``, which would leave the wrapper out."""
    env, params = make("CartPole-v1")
    sticky = adapt(StickyActionWrapper(env, 1.0))
    _, state = sticky.reset(jax.random.key(0), params)
    first = sticky.step(jax.random.key(1), state, jnp.asarray(1), params)
    stuck = sticky.step(jax.random.key(2), first.env_state, jnp.asarray(0), params)
    pushed = sticky.step(jax.random.key(2), first.env_state, jnp.asarray(1), params)
    np.testing.assert_array_equal(stuck.obs, pushed.obs)
    assert adapt(StickyActionWrapper(make("Chain-v0")[0], 0.5)).optimal_q() is None


def test_longest_episode_is_known_only_for_time_limits():
    """A user's own ``is_truncated`` may cut earlier: then no bound is promised, wrapped or not."""

    class Impatient(CartPole):
        def is_truncated(self, state, params):
            return state.time >= 3

    env, params = make("CartPole-v1")
    assert adapt(env).longest_episode(params) == 500
    assert adapt(make("Chain-v0")[0]).longest_episode(make("Chain-v0")[1]) == 20
    for unknown in (Impatient(), LogWrapper(Impatient()), LogWrapper(env)):
        assert adapt(unknown).longest_episode(params) is None


# --- exact returns, and random processes


@pytest.mark.parametrize(("env", "optimum"), [("Bandit-v0", 0.8), ("Chain-v0", 0.8), ("Duality-v0", 5.0)])
def test_optimal_return_of_the_papers_tasks(env, optimum):
    assert make(env)[0].optimal_return() == pytest.approx(optimum)
    assert adapt(make(env)[0]).optimal_return() == pytest.approx(optimum)


def test_other_returns_by_hand():
    duality = make("Duality-v0")[0]
    assert duality.episode_return(np.array([1, 1, 0])) == pytest.approx(0.5 + 9 * 0.3)
    assert duality.episode_return(np.array([0, 0, 0])) == pytest.approx(-9)
    chain = make("Chain-v0")[0]
    assert chain.episode_return(np.ones(6, int), gamma=0.99) == pytest.approx(0.8 * 0.99**4)
    assert chain.episode_return(np.zeros(6, int)) == 0
    half = np.full((6, 2), 0.5)
    assert 0 < chain.episode_return(half) < 0.8


def test_episode_return_is_the_mean_of_simulated_episodes():
    process = FiniteMDP(**random_process(7), horizon=6)
    policy = np.random.default_rng(0).dirichlet(np.ones(process.num_actions), process.num_states)
    rng, returns = np.random.default_rng(1), []
    for _ in range(4000):
        state, total = rng.choice(process.num_states, p=process.start), 0.0
        for _ in range(process.horizon):
            action = rng.choice(process.num_actions, p=policy[state])
            total += process.rewards[state, action]
            state = rng.choice(process.num_states, p=process.transitions[state, action])
            if process.terminal[state]:
                break
        returns.append(total)
    error = np.std(returns) / np.sqrt(len(returns))
    assert abs(np.mean(returns) - process.episode_return(policy)) < 5 * error


@pytest.mark.parametrize("branching", [None, 1, 2])
def test_garnets_are_processes_and_equal_seeds_give_equal_ones(branching):
    process = garnet(3, 5, 2, 0.9, branching)
    assert ((process.transitions > 0).sum(-1) == (branching or 5)).all()
    assert process == garnet(3, 5, 2, 0.9, branching)
    assert process != garnet(4, 5, 2, 0.9, branching)
    with pytest.raises(ValueError, match="branching"):
        garnet(0, 5, 2, 0.9, 6)


@pytest.mark.parametrize("value", [float("nan"), "no", 2, None])
def test_options_that_are_true_or_false_accept_nothing_else(value):
    for make_one, field in (
        (lambda: BlocksWorld(done=value), "done"),
        (lambda: Maze(["OOO", "O.O", "OFO", "OOO"], wrap=value), "wrap"),
        (lambda: SupplyChain(joint=value), "joint"),
    ):
        with pytest.raises(ValueError, match=f"^{field}: expected True or False"):
            make_one()

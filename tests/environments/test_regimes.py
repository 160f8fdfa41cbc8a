"""Regimes compared with a plain-Python version, and its optimum with an exact solution of the whole process."""

import functools

import jax
import numpy as np
import pytest

from jaxmarket import make
from jaxmarket.environments import FiniteMDP, Regimes, adapt
from jaxmarket.environments.regimes import RegimesState
from jaxmarket.testing import check_environment

MOVES = {"east": (1, 0), "north": (0, 1), "west": (-1, 0), "south": (0, -1)}
KEY = jax.random.key(0)


def moved(offset, regime, action, radius):
    """The offset after an action, by hand: the point goes one way, so its goal comes nearer from there."""
    dx, dy = list(MOVES.values())[(action + regime) % 4]
    wrapped = [(x + radius) % (2 * radius + 1) - radius for x in (offset[0] - dx, offset[1] - dy)]
    return tuple(wrapped)


def offsets(radius):
    side = range(-radius, radius + 1)
    return [(x, y) for x in side for y in side if (x, y) != (0, 0)]


@functools.partial(jax.jit, static_argnums=0)
def every_step(env, states, keys):
    """One step from every state by every action, with every key."""

    def step(state, action, key):
        return env.step_env(key, state, action, env.default_params)

    over_keys = jax.vmap(step, (None, None, 0))
    return jax.vmap(jax.vmap(over_keys, (None, 0, None)), (0, None, None))(states, np.arange(4), keys)


def as_process(env):
    """The same world as a `FiniteMDP`: a state is an offset and a regime."""
    places = [(offset, regime) for offset in offsets(env.radius) for regime in range(env.regimes)]
    number = {place: i for i, place in enumerate(places)}
    onward, rewards = np.zeros((len(places), 4, len(places))), np.zeros((len(places), 4))
    for (offset, regime), i in number.items():
        for action in range(4):
            after = moved(offset, regime, action, env.radius)
            if after != (0, 0):
                onward[i, action, number[after, regime]] = 1
                continue
            rewards[i, action] = 1
            others = [other for other in range(env.regimes) if env.regimes == 1 or other != regime]
            for offset_next in offsets(env.radius):
                for other in others:
                    onward[i, action, number[offset_next, other]] += 1 / (len(offsets(env.radius)) * len(others))
    start = np.full(len(places), 1 / len(places))
    return FiniteMDP(onward, rewards, env.gamma, start, env.default_params.max_steps_in_episode)


def test_a_step_is_that_of_the_transcription():
    env, keys = Regimes(), jax.random.split(KEY, 400)
    places = [(offset, regime) for offset in offsets(2) for regime in range(4)]
    states = RegimesState(
        offset=np.array([offset for offset, _ in places], np.int32),
        regime=np.array([regime for _, regime in places], np.int32),
        time=np.zeros(len(places), np.int32),
    )
    obs, after, rewards, terminated, _ = jax.device_get(every_step(env, states, keys))
    for i, (offset, regime) in enumerate(places):
        for action in range(4):
            expected = moved(offset, regime, action, 2)
            np.testing.assert_array_equal(rewards[i, action], expected == (0, 0))
            if expected != (0, 0):
                np.testing.assert_array_equal(after.offset[i, action], np.broadcast_to(expected, (400, 2)))
                np.testing.assert_array_equal(after.regime[i, action], regime)
                continue
            drawn, counts = np.unique(after.offset[i, action], axis=0, return_counts=True)
            assert {tuple(each) for each in drawn.tolist()} == set(offsets(2)) and counts.max() < 3 * 400 / 24
            assert set(after.regime[i, action].tolist()) == {0, 1, 2, 3} - {regime}
    assert not terminated.any() and (after.time == 1).all()
    np.testing.assert_allclose(obs[..., :2], after.offset / 2)
    np.testing.assert_array_equal(obs[..., 2:], np.eye(4)[after.regime])
    np.testing.assert_array_equal(env.regime_of(obs), after.regime)
    np.testing.assert_array_equal(env.regime_of(np.concatenate([obs, obs + 9], -1)), after.regime)


def test_what_is_right_in_one_regime_leads_away_in_all_others():
    """One step before the goal: each regime has one right action, and no two regimes have the same one."""
    for offset in MOVES.values():
        right = [[moved(offset, regime, action, 2) for action in range(4)].index((0, 0)) for regime in range(4)]
        assert sorted(right) == [0, 1, 2, 3]


@pytest.mark.parametrize("env", [Regimes(), Regimes(2, 1), Regimes(1, 3)], ids=lambda env: env.name)
def test_the_optimum_is_that_of_the_exact_solution(env):
    process = as_process(env)
    assert env.optimal_return() == adapt(env).optimal_return() == pytest.approx(process.optimal_return(), abs=1e-9)


@pytest.mark.parametrize(("regimes", "lasting"), [(3, 5), (1, 4)])
def test_the_optimum_of_lasting_regimes_is_that_of_backward_induction(regimes, lasting):
    env, after = Regimes(regimes, 1, lasting), dict.fromkeys(offsets(1), 0.0)
    for time in reversed(range(regimes * lasting)):
        again = 1 + np.mean(list(after.values()))
        worth = after | {(0, 0): again}
        after = {place: max(worth[moved(place, time // lasting, action, 1)] for action in range(4)) for place in after}
    assert env.optimal_return() == pytest.approx(np.mean(list(after.values())), abs=1e-5)


def test_lasting_regimes_follow_the_clock_and_not_the_goals():
    env = Regimes(3, 1, lasting=4)
    assert env.default_params.max_steps_in_episode == 12
    _, first = jax.vmap(env.reset_env, (0, None))(jax.random.split(KEY, 20), env.default_params)
    assert not first.regime.any()
    places = [(place, time) for place in offsets(1) for time in range(12)]
    states = RegimesState(
        offset=np.array([place for place, _ in places], np.int32),
        regime=np.array([time // 4 for _, time in places], np.int32),
        time=np.array([time for _, time in places], np.int32),
    )
    _, after, rewards, _, _ = jax.device_get(every_step(env, states, jax.random.split(KEY, 2)))
    for i, (place, time) in enumerate(places):
        assert (after.regime[i] == (time + 1) // 4 % 3).all()
        for action in range(4):
            np.testing.assert_array_equal(rewards[i, action], moved(place, time // 4, action, 1) == (0, 0))


def test_the_environment_keeps_the_contract_and_its_id():
    env, params = make("Regimes-v0")
    assert env == Regimes() and env.name == "Regimes-v0" != Regimes(3).name
    assert Regimes(3, 1, 9).name == "Regimes(3, 1, lasting=9)"
    assert adapt(env).longest_episode(params) == 50 and not adapt(env).one_hot
    check_environment(Regimes(2, 1))
    check_environment(Regimes(2, 1, lasting=5))


def test_a_first_state_is_any_offset_and_regime():
    obs, states = jax.vmap(Regimes(3, 1).reset_env, (0, None))(jax.random.split(KEY, 300), Regimes().default_params)
    assert {tuple(each) for each in states.offset.tolist()} == set(offsets(1))
    assert set(states.regime.tolist()) == {0, 1, 2} and obs.shape == (300, 5)


def test_the_picture_has_the_goal_in_its_place():
    state = RegimesState(offset=np.array([2, 1]), regime=np.array(2), time=np.array(0))
    cells = Regimes().picture(state)[::16, ::16]
    assert cells.shape == (5, 5, 3) and cells[2, 2].tolist() == [30] * 3
    assert cells[1, 4].tolist() == [189, 31, 1] and len(np.unique(cells.reshape(-1, 3), axis=0)) == 3


@pytest.mark.parametrize(
    ("arguments", "field"),
    [((0,), "regimes"), ((5,), "regimes"), ((4, 0), "radius"), ((4, 1001), "radius"), ((4, 2, 0), "lasting")],
)
def test_numbers_out_of_range_are_refused(arguments, field):
    with pytest.raises(ValueError, match=f"^{field}: "):
        Regimes(*arguments)

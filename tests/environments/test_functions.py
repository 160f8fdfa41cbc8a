"""Functions as primitives: episodes by hand, a plain-Python interpreter as reference, and trained societies."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmarket import MECHANISMS, BidPolicy, MarketPolicy, Rules, Society, TrainConfig, as_policy, fit, metrics
from jaxmarket.environments import Functions, adapt
from jaxmarket.environments.functions import STOP, compose, search
from jaxmarket.policies import KumaraswamyHead, ValueHead, bid_table, linear
from jaxmarket.rollouts import cut_rows, fresh_rollout
from jaxmarket.testing import check_environment

KEY = jax.random.key(0)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def increment(x):
    return x + 1


def double(x):
    return 2 * x


def closeness(value, target):
    return 10 - abs(value - target)


def arithmetic(**settings):
    """Integers with targets: 3 → 8 and 1 → 9."""
    settings = {"steps": 3, **settings}
    return Functions([increment, double], (np.array([3, 1]), np.array([8, 9])), closeness, **settings)


def episode(env, choices, params=None):
    """The initial state and all steps of an episode, continued after termination."""
    params = env.default_params if params is None else params
    obs, state = env.reset_env(KEY, params)
    rows = []
    for choice in choices:
        after = adapt(env).raw_step(KEY, state, jnp.asarray(choice), params)
        state = after.env_state
        rows.append(after)
    return obs, rows


def only(env, index):
    """Parameters with which every episode begins with that example."""
    params = env.default_params
    return params.replace(dataset=jax.tree.map(lambda leaf: leaf[index : index + 1], params.dataset))


# --- episodes by hand


def test_an_episode_of_three_functions():
    """3 + 1 = 4, 2 · 4 = 8, 8 + 1 = 9: one away from 8, which pays 9."""
    env = arithmetic(price=0.25)
    (value, left), rows = episode(env, [0, 1, 0], only(env, 0))
    assert int(value) == 3
    np.testing.assert_array_equal(left, [0, 0, 0, 1])  # three functions are left
    assert [int(row.obs[0]) for row in rows] == [int(row.env_state.value) for row in rows] == [4, 8, 9]
    np.testing.assert_array_equal([row.obs[1] for row in rows], np.eye(4)[[2, 1, 0]])
    np.testing.assert_allclose([row.reward for row in rows], [-0.25, -0.25, 9 - 0.25])
    assert [bool(row.terminated) for row in rows] == [False, False, True]
    assert not any(row.truncated for row in rows)
    assert [int(row.env_state.applied) for row in rows] == [1, 2, 3]
    assert env.num_actions == env.action_space().n == 2
    assert env.names == ("increment", "double")


@pytest.mark.parametrize(
    ("choices", "values", "rewards"),
    [
        ([2], [3], [5]),  # stopping changes nothing and costs nothing
        ([0, 2], [4, 4], [-0.25, 6]),
        ([0, 1, 2], [4, 8, 8], [-0.25, -0.25, 10]),
        ([0, 1, 0], [4, 8, 9], [-0.25, -0.25, 9 - 0.25]),  # the third is the last in any case
    ],
)
def test_an_episode_that_may_stop(choices, values, rewards):
    env = arithmetic(stop=True, price=0.25)
    assert env.num_actions == env.action_space().n == 3
    assert env.names == ("increment", "double", STOP)
    _, rows = episode(env, choices, only(env, 0))
    assert [int(row.env_state.value) for row in rows] == [int(row.obs[0]) for row in rows] == values
    np.testing.assert_allclose([row.reward for row in rows], rewards)
    assert [bool(row.terminated) for row in rows] == [False] * (len(choices) - 1) + [True]
    np.testing.assert_array_equal(rows[-1].obs[1].argmax(), 3 - sum(choice < 2 for choice in choices))


def test_without_a_clock_the_observation_is_what_is_observed_of_the_value():
    obs, (after, _) = episode(arithmetic(clock=False), [1, 1], only(arithmetic(), 0))
    assert (int(obs), int(after.obs)) == (3, 6)
    env = arithmetic(clock=False, observe=lambda value: jax.nn.one_hot(value, 7))
    obs, (after, _) = episode(env, [1, 1], only(env, 0))
    np.testing.assert_array_equal([obs, after.obs], np.eye(7)[[3, 6]])
    assert adapt(env).encode(obs).shape == env.observation_space().shape == (7,)
    env = arithmetic(observe=lambda value: jax.nn.one_hot(value, 7))
    assert adapt(env).encode(env.reset_env(KEY, env.default_params)[0]).shape == (7 + 4,)  # joined with the clock


def test_where_an_example_starts():
    """Examples are single numbers: the value is the tens, the target the units."""
    env = Functions(
        [increment],
        np.array([37]),
        closeness,
        start=lambda number: (number // 10, number % 10),
        steps=1,
        names=["next"],
    )
    (value, _), (after,) = episode(env, [0])
    assert (int(value), int(after.env_state.value), int(after.env_state.target)) == (3, 4, 7)
    assert float(after.reward) == 10 - 3
    assert env.names == ("next",)


def test_it_steps_as_gymnax_environments_do():
    """Gymnax's own `step` resets at the end, and says where the episode ended."""
    env = arithmetic(stop=True)
    _, state = env.reset(KEY, only(env, 0))
    _, state, reward, terminated, truncated, _ = env.step(KEY, state, 1, only(env, 0))
    assert (int(state.value), float(reward), bool(terminated), bool(truncated)) == (6, 0, False, False)
    obs, state, reward, terminated, truncated, info = env.step(KEY, state, 2, only(env, 0))
    assert (float(reward), bool(terminated), bool(truncated)) == (8, True, False)
    assert (int(state.value), int(state.applied), int(obs[0]), int(info["final_observation"][0])) == (3, 0, 3, 6)


def test_contract():
    check_environment(arithmetic(stop=True, price=0.1))


# --- against plain Python

PRIMITIVES = (
    lambda v: {"x": v["x"] + 3, "y": v["y"]},
    lambda v: {"x": 2 * v["x"], "y": 2 * v["y"]},
    lambda v: {"x": -v["x"], "y": v["y"] + 1},
    lambda v: {"x": v["x"], "y": v["y"] / 2},
)
STEPS, DEPTH = 4, 3


def pay(value, target):
    return value["x"] - value["y"] * target


def interpret(program, value, target, price):
    """Run a program in plain Python: ``(value, reward, ended)`` of each of its steps."""
    for taken, choice in enumerate(program, 1):
        stops = choice == len(PRIMITIVES)
        value = value if stops else PRIMITIVES[choice](value)
        ended = stops or taken == STEPS
        yield value, (pay(value, target) if ended else 0) - (0 if stops else price), ended
        if ended:
            return


@functools.cache
def compiled(stop):
    """The environment, compiled once: its steps, `compose` with a policy that plays a program, and `search`."""
    dataset = ({"x": np.zeros(1, np.int32), "y": np.zeros(1, np.float32)}, np.zeros(1, np.float32))
    env = Functions(PRIMITIVES, dataset, pay, steps=STEPS, stop=stop)

    @jax.jit
    def steps(program, example, price):
        params = env.default_params.replace(dataset=jax.tree.map(lambda leaf: leaf[None], example), price=price)
        obs, state = adapt(env).raw_reset(KEY, params)

        def body(state, choice):
            after = adapt(env).raw_step(KEY, state, choice, params)
            return after.env_state, after

        return obs, jax.lax.scan(body, state, program)[1]

    @jax.jit
    def composed(program, example):
        return compose(env, lambda obs, key: program[STEPS - obs[1].argmax()], example)

    return steps, composed, jax.jit(lambda example: search(env, example, DEPTH))


@settings(max_examples=60, deadline=None)
@given(
    stop=st.booleans(),
    program=st.lists(st.integers(0, len(PRIMITIVES)), min_size=STEPS, max_size=STEPS),
    x=st.integers(-9, 9),
    y=st.integers(-9, 9),
    target=st.integers(-9, 9),
    price=st.floats(-1, 2, width=32),
)
def test_programs_compute_what_plain_python_does(stop, program, x, y, target, price):
    """One program, step by step, composed, and among all those searched. All numbers are exact but the price."""
    program = [choice % (len(PRIMITIVES) + stop) for choice in program]
    value = {"x": x, "y": y}
    expected = list(interpret(program, value, target, price))
    values = [value, *(row[0] for row in expected)]
    played = [choice for choice in program[: len(expected)] if choice < len(PRIMITIVES)]
    example = ({"x": jnp.asarray(x, jnp.int32), "y": jnp.asarray(y, jnp.float32)}, jnp.asarray(target, jnp.float32))
    steps, composed, searched = compiled(stop)

    (first, _), rows = steps(jnp.asarray(program), example, price)
    assert (int(first["x"]), float(first["y"])) == (x, y)
    for t, (after, reward, ended) in enumerate(expected):
        assert (int(rows.obs[0]["x"][t]), float(rows.obs[0]["y"][t])) == (after["x"], after["y"])
        np.testing.assert_allclose(rows.reward[t], reward, rtol=1e-6, atol=1e-6)
        assert bool(rows.terminated[t]) == ended
        assert not rows.truncated[t]

    program_of = composed(jnp.asarray(program), example)
    after_the_end = STEPS - len(expected)
    for name in ("x", "y"):
        trace = [value[name] for value in values]
        assert program_of.values[name].tolist() == trace + trace[-1:] * after_the_end
        assert program_of.obs[0][name].tolist()[: len(expected)] == trace[:-1]  # before each choice
    assert program_of.choices.tolist() == program[: len(expected)] + [-1] * after_the_end
    assert int(program_of.applied) == len(played)
    assert float(program_of.reward) == pay(values[-1], target)  # the price is not taken off

    for length in range(min(len(played), DEPTH) + 1):
        assert float(searched(example)[tuple(played[:length])]) == pay(values[length], target)


def test_search_finds_every_program():
    found = search(arithmetic(), (3, 8), 3)
    assert list(found) == [program for length in range(4) for program in itertools.product(range(2), repeat=length)]
    assert len(found) == 1 + 2 + 4 + 8
    assert float(found[()]) == 10 - 5
    # In the order they are applied: 2 · (3 + 1) is 8, and 2 · 3 + 1 is 7.
    assert (float(found[0, 1]), float(found[1, 0])) == (10, 9)
    assert max(found, key=found.get) == (0, 1)
    assert list(search(arithmetic(), (3, 8), 0)) == [()]


# --- parameters of an episode


@pytest.mark.slow
def test_nothing_is_ever_cut():
    """A rollout needs no bootstrap auction but the one at its end."""
    env = arithmetic(stop=True)
    limit = adapt(env).longest_episode(env.default_params)
    assert limit > 1e9
    assert cut_rows(jnp.zeros(64, bool), jnp.zeros(64, bool), limit).tolist() == [63, 64]
    _, rows = traded("ccv")
    assert not rows.truncated.any()
    assert 60 / 3 - 1 < rows.terminated.sum() < 60
    assert not rows.bootstrap_value[:-1].any()


def test_episodes_begin_with_every_example_alike():
    env = Functions([increment], (np.arange(5), np.zeros(5, int)), closeness, steps=1, clock=False)
    first, _ = jax.jit(jax.vmap(env.reset_env, (0, None)))(jax.random.split(KEY, 5000), env.default_params)
    # Hoeffding and a union bound: all five lie within this with probability 1 - 1e-6.
    np.testing.assert_allclose(np.bincount(first) / 5000, 0.2, atol=np.sqrt(np.log(1e7) / 1e4))


def test_another_dataset_comes_with_the_parameters():
    """A larger dataset with other examples replaces the old one completely."""
    env = arithmetic(clock=False)
    params = env.default_params.replace(dataset=(jnp.arange(100, 107), jnp.zeros(7, int)), price=1.5)
    first, state = jax.jit(jax.vmap(env.reset_env, (0, None)))(jax.random.split(KEY, 300), params)
    assert set(first.tolist()) == set(range(100, 107))
    assert not state.target.any()
    _, (after, *_) = episode(env, [0, 0, 0], params)
    assert float(after.reward) == -1.5


def test_everything_is_float64_under_x64(x64):
    env = Functions([increment, double], (np.array([0.1]), np.array([0.3])), closeness, steps=2, price=0.1)
    (value, left), rows = episode(env, [1, 0])
    composed = compose(env, lambda obs, key: 0, (0.1, 0.3))
    searched = search(env, (0.1, 0.3), 1)
    numbers = [value, left, rows[0].obs, rows[-1].reward, composed.values, composed.reward, list(searched.values())]
    assert {leaf.dtype for leaf in jax.tree.leaves(numbers)} == {jnp.dtype("float64")}
    assert float(rows[0].reward) == -0.1  # no float32 on the way
    assert float(rows[1].reward) == 10 - abs(2 * 0.1 + 1 - 0.3) - 0.1


# --- policies and societies


def test_a_policy_that_samples_draws_afresh_at_every_step():
    env = arithmetic(steps=6)
    example = (0, 0)
    toss = jax.jit(
        jax.vmap(lambda key: compose(env, lambda obs, key: jax.random.bernoulli(key).astype(int), example, key).choices)
    )
    choices = np.asarray(toss(jax.random.split(KEY, 2000)))
    assert choices.shape == (2000, 6)
    # Independent fair coins: five standard deviations of a mean and of a correlation.
    np.testing.assert_allclose(choices.mean(0), 0.5, atol=5 * 0.5 / np.sqrt(2000))
    assert np.abs(np.corrcoef(choices.T)[~np.eye(6, dtype=bool)]).max() < 5 / np.sqrt(2000)
    np.testing.assert_array_equal(toss(jax.random.split(KEY, 2000)), choices)
    keys = []
    compose(env, lambda obs, key: keys.append(key) or 0, example)
    assert set(keys) == {None}


def test_after_the_end_a_policy_that_samples_changes_nothing_any_more():
    """Actions of a stochastic policy after the end are ignored (a greedy policy would repeat ``stop``)."""
    env = arithmetic(steps=5, stop=True)
    policy = jax.jit(
        jax.vmap(lambda key: compose(env, lambda obs, key: jax.random.randint(key, (), 0, 3), (1, 9), key))
    )
    found = policy(jax.random.split(KEY, 40))
    for choices, values, applied, reward in zip(
        found.choices.tolist(), found.values.tolist(), found.applied, found.reward, strict=True
    ):
        end = choices.index(2) if 2 in choices else 5
        assert applied == end
        assert set(choices[end + 1 :]) <= {-1}
        assert values == list(itertools.accumulate(choices[:end], lambda x, f: [x + 1, 2 * x][f], initial=1)) + (
            values[end : end + 1] * (5 - end)
        )
        assert reward == closeness(values[-1], 9)
    assert len(set(found.applied.tolist())) > 3


def test_a_society_composes_as_it_would_step_by_step():
    """A greedy market inside jit and vmap, against a loop that asks it and steps the environment."""
    env = Functions(
        [increment, double, lambda x: x - 3],
        (np.arange(8), np.arange(8) * 2),
        closeness,
        steps=4,
        stop=True,
        price=0.1,
        observe=lambda value: jax.nn.one_hot(value % 8, 8),
    )
    society = Society(env, BidPolicy(linear(), ValueHead()), greedy=True, ties="lowest")
    params = bid_table(jax.random.normal(KEY, (society.primitives, *society.observation.shape)))
    policy = MarketPolicy(params, society)
    found = jax.jit(jax.vmap(lambda policy, example: compose(env, policy, example), (None, 0)))(policy, env.dataset)
    ask = jax.jit(lambda policy, obs: policy(obs))
    for i in range(8):
        obs, state = env.reset_env(KEY, only(env, i))
        choices, values, total, ended = [], [i], 0.0, False
        while not ended:
            choices.append(int(ask(policy, obs)))
            after = adapt(env).raw_step(KEY, state, choices[-1], env.default_params)
            obs, state, ended = after.obs, after.env_state, bool(after.terminated)
            values.append(int(state.value))
            total += float(after.reward)
        rest = 4 - len(choices)
        assert found.choices[i].tolist() == choices + [-1] * rest
        assert found.values[i].tolist() == values + values[-1:] * rest
        np.testing.assert_allclose(found.reward[i] - 0.1 * found.applied[i], total, rtol=1e-5)
    assert len(np.unique(found.choices, axis=0)) > 2  # it does compose different programs
    assert (found.choices == -1).any()


@functools.cache
def traded(mechanism):
    """An untrained society and 60 of its auctions."""
    env = arithmetic(stop=True, price=0.5)
    society = Society(env, BidPolicy(linear(4), KumaraswamyHead()), MECHANISMS[mechanism])
    run = jax.jit(fresh_rollout, static_argnums=(0, 4))
    return society, run(society, KEY, society.init(KEY), env.default_params, 60, Rules(exploration=0.3))


@pytest.mark.parametrize("mechanism", ["ccv", "vickrey"])  # one that mints no money, and one that does
def test_no_money_is_lost(mechanism):
    """The price of a function is a negative reward of the agent that applies it, and is recorded in the flows."""
    society, rows = traded(mechanism)
    assert metrics.conservation_residual(rows) < 1e-5
    applied = (rows.outcome.winner // society.clones < 2) & (rows.outcome.winner >= 0)
    ended = np.asarray(rows.terminated)
    np.testing.assert_allclose(rows.reward[~ended], -0.5)
    earned = (rows.reward + 0.5 * applied).sum()
    money = rows.accounts.wealth[-1].sum() + rows.accounts.auctioneer[-1]
    np.testing.assert_allclose(money, earned - 0.5 * applied.sum() + (rows.payout - rows.price).sum(), rtol=1e-5)


def shortest(value, target, most):
    """The reward of the best program and its number of functions; without such a program, stopping immediately."""
    for length in range(most):
        for program in itertools.product((lambda x: min(x + 1, 7), lambda x: min(2 * x, 7)), repeat=length):
            if functools.reduce(lambda x, f: f(x), program, value) == target:
                return 1 - 0.1 * length, length
    return 0, 0


@pytest.mark.full
def test_a_society_learns_the_shortest_programs():
    """From any number to any other by + 1 and × 2, where there is a way; its bids are a table of all pairs."""
    pairs = np.array(list(itertools.product(range(8), repeat=2)))
    env = Functions(
        [lambda v: (jnp.minimum(v[0] + 1, 7), v[1]), lambda v: (jnp.minimum(2 * v[0], 7), v[1])],
        (pairs[:, 0], pairs[:, 1]),
        lambda value, target: value[0] == target,
        start=lambda pair: (pair, pair[1]),
        steps=5,
        stop=True,
        price=0.1,
        observe=lambda value: jax.nn.one_hot(8 * value[0] + value[1], 64),
        clock=False,
    )
    config = TrainConfig(env, learner="valuation", hidden=(), learning_rate=3e-2, steps=40_000)
    run = fit(config, jax.random.key(0), progress=False)
    policy = as_policy(run)
    found = jax.jit(jax.vmap(lambda example: compose(env, policy, example)))(env.dataset)
    best = np.array([shortest(*pair, most=5) for pair in pairs.tolist()])
    assert (best[:, 1] == 0).sum() > 8  # stopping at once is right where the number is there, or out of reach
    np.testing.assert_array_equal(found.applied, best[:, 1])
    np.testing.assert_allclose(found.reward - 0.1 * found.applied, best[:, 0], atol=1e-6)
    np.testing.assert_allclose(run.summary["return_mean"], best[:, 0].mean(), atol=0.05)


# --- what is wrong is named


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"functions": []}, "functions: expected at least one"),
        ({"functions": [lambda x: x * 1.5]}, r"functions: function 0 .*int32\[\] to float32\[\]"),
        ({"functions": [increment, lambda x: x[None]]}, r"functions: function 1 .*int32\[\] to int32\[1\]"),
        ({"functions": [lambda x: (x, x)], "names": ["pair"]}, "functions: pair .* same shapes and dtypes"),
        ({"dataset": ()}, "dataset: expected leaves"),
        (
            {"dataset": (np.zeros(0, int), np.zeros(0, int))},
            r"dataset: .* N >= 1 examples, got leading axes \[\(0,\)\]",
        ),
        ({"dataset": (np.arange(2), np.arange(3))}, r"dataset: .* leading axes \[\(2,\), \(3,\)\]"),
        ({"dataset": (np.arange(2), 3)}, r"dataset: .* leading axes \[\(\), \(2,\)\]"),
        ({"dataset": np.arange(2)}, "start: expected a function"),
        ({"dataset": (np.arange(2),) * 3}, "start: expected a function"),
        ({"start": lambda example: example[0]}, "start: expected a function"),
        ({"reward": lambda value, target: jnp.ones(2)}, "reward: .* scalar"),
        ({"reward": lambda value, target: (value, target)}, "reward: .* scalar"),
        ({"steps": 0}, "steps: .* >= 1, got 0"),
        ({"steps": 2.5}, "steps: .* got 2.5"),
        ({"steps": True}, "steps: .* got True"),
        ({"price": np.nan}, "price: expected a finite number, got nan"),
        ({"price": np.inf}, "price: expected a finite number, got inf"),
        ({"names": ["one"]}, "names: expected 2 .* got 1"),
        ({"names": ["a", "b", "stop"], "stop": True}, "names: expected 2 .* got 3"),
    ],
)
def test_bad_input_is_refused(change, message):
    good = {
        "functions": [increment, double],
        "dataset": (np.array([3, 1]), np.array([8, 9])),
        "reward": closeness,
        "steps": 2,
    }
    Functions(**good)
    with pytest.raises(ValueError, match=message):
        Functions(**good | change)

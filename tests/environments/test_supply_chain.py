"""SupplyChain compared with a plain-Python version, and its optimum with an exhaustive search."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket import make
from jaxmarket.environments import SupplyChain, adapt
from jaxmarket.environments.supply_chain import SupplyChainState
from jaxmarket.testing import check_environment

KEY = jax.random.key(0)


class PlainSupplyChain:
    """The same world in plain Python: pieces in a list."""

    def __init__(self, recipe, material):
        self.recipe, self.material, self.pieces = recipe, material, [0] * len(recipe)

    def work(self, line, operation):
        """One operation on one line; returns what it earns."""
        row = self.recipe[line]
        if operation != row[self.pieces[line]]:
            self.pieces[line] = 0
            return -self.material
        self.pieces[line] += 1
        if self.pieces[line] == len(row):
            self.pieces[line] = 0
            return 1.0
        return 0.0

    def step(self, jobs):
        """Several jobs (line, operation), in the same step."""
        return sum(self.work(*job) for job in jobs)


def jobs_of(env, action):
    """The operations of an action, by `numpy.unravel_index`."""
    if env.joint:
        return list(enumerate(np.unravel_index(action, (env.operations,) * env.lines)))
    return [divmod(action, env.operations)]


@functools.partial(jax.jit, static_argnums=0)
def play(env, actions):
    """Rows of one episode that is not reset."""

    def step(state, action):
        obs, state, reward, terminated, _ = env.step_env(KEY, state, action, env.default_params)
        return state, (obs, state, reward, terminated, env.is_truncated(state, env.default_params))

    obs, state = env.reset_env(KEY, env.default_params)
    return (obs, state), jax.lax.scan(step, state, actions)[1]


WORLDS = [
    SupplyChain(2, 3, 2, material=0.25, horizon=17),
    SupplyChain(3, 2, 3, joint=True, material=0.5, seed=4),
    SupplyChain(1, 1, 2, joint=True),
    SupplyChain(8, 4, 4),
]


@pytest.mark.parametrize("env", WORLDS, ids=lambda env: env.name)
def test_it_does_what_the_transcription_does(env):
    rng = np.random.default_rng(1)
    plain, clever = PlainSupplyChain(env.recipe, env.material), np.array(env.recipe)
    actions, expected = [], []
    for _ in range(300):
        # Half of the time something right, so that pieces come to the end.
        line = rng.integers(env.lines)
        action = int(rng.integers(env.num_actions))
        if rng.random() < 0.7:
            right = clever[np.arange(env.lines), plain.pieces]
            action = np.ravel_multi_index(right, (env.operations,) * env.lines) if env.joint else 0
            action = int(action) if env.joint else int(line * env.operations + right[line])
        reward = plain.step(jobs_of(env, action))
        actions.append(action)
        expected.append((reward, list(plain.pieces)))
    (first, start), (obs, states, rewards, terminated, truncated) = play(env, jnp.asarray(actions))
    np.testing.assert_array_equal(first, np.eye(env.stages)[np.zeros(env.lines, int)].reshape(-1))
    assert not start.stages.any() and not start.time.any()
    np.testing.assert_array_equal(states.stages, [pieces for _, pieces in expected])
    np.testing.assert_allclose(rewards, [reward for reward, _ in expected], atol=1e-6)
    np.testing.assert_array_equal(obs, np.eye(env.stages)[states.stages].reshape(300, -1))
    assert not terminated.any() and (np.asarray(rewards) > 0).any()
    np.testing.assert_array_equal(truncated, np.arange(1, 301) >= env.horizon)


@pytest.mark.parametrize(("lines", "stages", "operations"), [(1, 1, 2), (2, 3, 4), (4, 2, 3)])
def test_an_operation_touches_its_own_line_only_and_the_views_agree(lines, stages, operations):
    """One joint step is one serial step per line, in any order."""
    rng, n = np.random.default_rng(0), 64
    serial, joint = (SupplyChain(lines, stages, operations, joint=view, material=0.125) for view in (False, True))
    recipes = jnp.asarray(rng.integers(operations, size=(n, lines, stages)), jnp.int32)
    before = SupplyChainState(jnp.asarray(rng.integers(stages, size=(n, lines)), jnp.int32), jnp.zeros(n, jnp.int32))
    work = rng.integers(operations, size=(n, lines))

    def stepping(env):
        def step(state, action, recipe):
            return env.step_env(KEY, state, action, env.default_params.replace(recipe=recipe))[1:3]

        return jax.jit(jax.vmap(step))

    action = np.ravel_multi_index(tuple(work.T), (operations,) * lines)
    np.testing.assert_array_equal(joint.chosen(jnp.asarray(action)), work)
    together, reward = stepping(joint)(before, jnp.asarray(action), recipes)
    one, earned, step = before, 0.0, stepping(serial)
    for line in rng.permutation(lines):
        after, part = step(one, jnp.asarray(line * operations + work[:, line]), recipes)
        others = np.arange(lines) != line
        np.testing.assert_array_equal(after.stages[:, others], one.stages[:, others])
        one, earned = after, earned + part
    np.testing.assert_array_equal(one.stages, together.stages)
    np.testing.assert_array_equal(reward, earned)
    assert (together.time == 1).all() and len(set(reward.tolist())) > 1


def best(env, steps):
    """Highest return from raw pieces, by trying everything."""

    @functools.cache
    def ahead(pieces, left):
        if left == 0:
            return 0.0
        values = []
        for action in range(env.num_actions):
            plain = PlainSupplyChain(env.recipe, env.material)
            plain.pieces = list(pieces)
            reward = plain.step(jobs_of(env, action))
            values.append(reward + ahead(tuple(plain.pieces), left - 1))
        return max(values)

    return ahead((0,) * env.lines, steps)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(
    ("lines", "stages", "material"), [(1, 1, 0.0), (1, 3, 0.5), (2, 2, 0.0), (3, 2, 0.1), (2, 3, 0)]
)
def test_the_optimum_is_what_a_search_finds(joint, lines, stages, material):
    for horizon in (1, 4, 6, 7):
        env = SupplyChain(lines, stages, 2, joint=joint, horizon=horizon, material=material)
        assert env.optimal_return() == adapt(env).optimal_return() == pytest.approx(best(env, horizon))


@pytest.mark.parametrize("material", [0.0, 0.3])
def test_the_worth_of_a_piece_solves_bellmans_equation_of_its_line(material):
    """Value iteration over one line's stages, every operation tried."""
    env, gamma = SupplyChain(1, 5, 3, material=material, seed=2), 0.9
    stages, work = np.meshgrid(np.arange(5), np.arange(3), indexing="ij")
    after, reward = jax.jit(env.transform)(0, stages, work, env.default_params)
    value, after, reward = np.zeros(5), np.asarray(after), np.asarray(reward, np.float64)
    for _ in range(400):
        q = reward + gamma * value[after]
        value = q.max(1)
    np.testing.assert_allclose(env.worth(gamma), value, rtol=1e-6)
    np.testing.assert_array_equal(q.argmax(1), env.recipe[0])
    wrong = np.sort(q, 1)[:, :-1]
    np.testing.assert_allclose(wrong, gamma * value[0] - material, rtol=1e-5)
    with pytest.raises(ValueError, match="gamma: "):
        env.worth(1)


def test_recipes_are_drawn_once_and_for_all():
    recipes = [SupplyChain(6, 5, 3, seed=seed).recipe for seed in range(20)]
    assert len(set(recipes)) == 20 and recipes[3] == SupplyChain(6, 5, 3, seed=3).recipe
    pairs = [pair for recipe in recipes for row in recipe for pair in itertools.pairwise(row)]
    assert all(one != other for one, other in pairs)
    assert set(sum((row for recipe in recipes for row in recipe), ())) == {0, 1, 2}


def test_id_and_equality():
    env, params = make("SupplyChain2-v0")
    assert env == SupplyChain(2) == SupplyChain(2, recipe=env.recipe) and hash(env) == hash(SupplyChain(2))
    assert env.name == "SupplyChain2-v0" and make("SupplyChain2-v0")[0] is env and env != "SupplyChain2-v0"
    for other in (
        SupplyChain(2, joint=True),
        SupplyChain(2, seed=1),
        SupplyChain(2, material=1),
        SupplyChain(2, horizon=9),
    ):
        assert env != other
    assert env != SupplyChain(2, operations=5, recipe=env.recipe)
    adapter = adapt(env)
    assert adapter.num_actions == 8 and adapter.longest_episode(params) == 128 and not adapter.one_hot
    assert SupplyChain(8, joint=True).num_actions == 4**8 == SupplyChain(8, joint=True).action_space().n
    assert SupplyChain(3, joint=True).name == "SupplyChain3-v0-joint"


@pytest.mark.parametrize("joint", [False, True])
def test_contract(joint):
    check_environment(SupplyChain(2, 2, 2, joint=joint, horizon=10, material=0.1))


def test_dtypes_under_x64():
    with jax.enable_x64(True):
        env = SupplyChain(2, material=0.1)
        obs, state = jax.eval_shape(env.reset_env, KEY, env.default_params)
        after = jax.eval_shape(env.step_env, KEY, state, 0, env.default_params)
        assert obs.dtype == after[0].dtype == after[2].dtype == jnp.float64
        assert jax.tree.leaves(state) == jax.tree.leaves(after[1]) and state.stages.dtype == jnp.int32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lines": 0}, "lines: expected an integer >= 1, got 0"),
        ({"stages": 2.5}, "stages: expected an integer"),
        ({"operations": 1}, "operations: expected an integer >= 2"),
        ({"horizon": True}, "horizon: expected an integer"),
        ({"material": -0.1}, "material: expected a finite number >= 0"),
        ({"lines": 16, "joint": True}, r"joint: .* 4\^16"),
        ({"recipe": [[0, 1]]}, "recipe: expected 2 rows of 4 operations"),
        ({"recipe": [[0, 1, 2, 4], [0] * 4]}, "recipe: expected operations from 0 to 3, got 4"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SupplyChain(**arguments)

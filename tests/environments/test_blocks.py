"""Blocks world compared with lists of lists; the distribution of resets, the solver, and a policy for all sizes."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmarket import make
from jaxmarket.environments import BlocksWorld, adapt
from jaxmarket.environments.blocks import DONE, MOVES, SENSORS
from jaxmarket.testing import check_environment

KEY = jax.random.key(0)
CAPACITY = 5
# One shape for all tests on single states: few compilations.
ENV = BlocksWorld((1, 2, 3, 4, 5), colours=3, sensors=SENSORS)
CLAIM = BlocksWorld((1, 2, 3, 4, 5), colours=3, done=True, reward="size", sensors=SENSORS)
STEP = {env: jax.jit(env.step_env) for env in (ENV, CLAIM)}
OBS = jax.jit(ENV.get_obs)


@st.composite
def instances(draw, most=CAPACITY):
    """Any four stacks, solved ones too."""
    template = draw(st.lists(st.integers(1, 3), min_size=1, max_size=most))
    blocks = draw(st.permutations(template))
    low, high = sorted(draw(st.tuples(*[st.integers(0, len(template))] * 2)))
    return [template, list(blocks[:low]), list(blocks[low:high]), list(blocks[high:])]


def lists(state):
    return [list(stack) for stack in BlocksWorld.stacks_of(state)]


def reference_sensors(stacks):
    template, one, two, three = stacks
    correct = 0
    while correct < len(one) and one[correct] == template[correct]:
        correct += 1
    needed = template[correct] if correct < len(template) else 0
    depths = []
    for stack in (one[correct:], two, three):
        colours = stack[::-1]
        depths.append(colours.index(needed) if needed in colours else -1)
    tops = [stack[-1] if stack else 0 for stack in (one, two, three)]
    heights = [len(one), len(two), len(three)]
    distances = [len(template) if depth < 0 else depth for depth in depths]
    return [correct, len(one) - correct, needed, *tops, *heights, *depths, len(template), *distances]


# --- the rules


@settings(max_examples=60, deadline=None)
@given(instances(), st.lists(st.integers(0, 5), max_size=12), st.booleans())
def test_moves_against_lists(stacks, actions, claim):
    env = CLAIM if claim else ENV
    params, state = env.default_params, env.instance(stacks)
    for time, action in enumerate(actions, 1):
        source, target = MOVES[action]
        if stacks[source]:
            stacks[target].append(stacks[source].pop())
        obs, state, reward, terminated, _ = STEP[env](KEY, state, action, params)
        assert lists(state) == stacks and int(state.time) == time
        assert state.heights.tolist() == [len(stack) for stack in stacks]
        assert not any(state.stacks[i, len(stack) :].any() for i, stack in enumerate(stacks))
        assert obs.tolist() == reference_sensors(stacks)
        succeeded = not claim and stacks[0] == stacks[1]
        assert bool(terminated) == succeeded and float(reward) == succeeded
        assert bool(env.is_truncated(state, params)) == (time >= 10 * len(stacks[0]))


@settings(max_examples=30, deadline=None)
@given(instances())
def test_a_claim_pays_the_size_where_it_is_true(stacks):
    obs, state, reward, terminated, _ = STEP[CLAIM](KEY, CLAIM.instance(stacks), DONE, CLAIM.default_params)
    assert terminated and lists(state) == stacks and obs.tolist() == reference_sensors(stacks)
    assert float(reward) == (len(stacks[0]) if stacks[0] == stacks[1] else 0)


def test_sensors_by_hand():
    stacks = [[1, 2, 3, 1], [1, 3], [2, 1], []]
    seen = dict(zip(SENSORS, OBS(ENV.instance(stacks)).tolist(), strict=True))
    assert seen == {
        "correct": 1,
        "surplus": 1,
        "needed": 2,
        "top1": 3,
        "top2": 1,
        "top3": 0,
        "height1": 2,
        "height2": 2,
        "height3": 0,
        "depth1": -1,
        "depth2": 1,
        "depth3": -1,
        "size": 4,
        "distance1": 4,
        "distance2": 1,
        "distance3": 4,
    }


@settings(max_examples=30, deadline=None)
@given(instances())
def test_sensors_do_not_depend_on_the_capacity(stacks):
    wide = BlocksWorld(capacity=9, sensors=SENSORS)
    np.testing.assert_array_equal(wide.get_obs(wide.instance(stacks)), OBS(ENV.instance(stacks)))


def test_an_episode_is_cut_by_its_size():
    env = BlocksWorld((1, 4), limit=2)
    params = env.default_params
    one, four = env.instance([[1], [], [1], []]), env.instance([[1] * 4, [], [1] * 4, []])
    for time in range(1, 10):
        assert bool(env.is_truncated(one.replace(time=time), params)) == (time >= 2)
        assert bool(env.is_truncated(four.replace(time=time), params)) == (time >= 8)
    assert adapt(env).longest_episode(params) is None, "the limit depends on the instance"


@pytest.mark.parametrize(("colours", "limit"), [(1, 10), (2, 10), (3, 10), (4, 13), (9, 20)])
def test_the_papers_limit(colours, limit):
    assert BlocksWorld(colours=colours).default_params.steps_per_block == limit


# --- resets


def arrangements(template):
    """Weights of all unsolved arrangements: every order of the blocks and every split, equal colours told apart."""
    counts = collections.Counter()
    for order in itertools.permutations(template):
        for low, high in itertools.combinations_with_replacement(range(len(template) + 1), 2):
            counts[order[:low], order[low:high], order[high:]] += 1
    counts.pop((template, (), ()))
    total = sum(counts.values())
    return {key: count / total for key, count in counts.items()}


def test_resets_are_uniform():
    env = BlocksWorld((1, 2), colours=2, capacity=3)
    n = 20_000
    _, states = jax.jit(jax.vmap(env.reset_env, (0, None)))(jax.random.split(KEY, n), env.default_params)
    assert not states.time.any()
    rows = np.concatenate([states.stacks.reshape(n, -1), states.heights], 1)
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    drawn = {}
    for row, count in zip(distinct, counts, strict=True):
        stacks = [
            tuple(stack[:height].tolist()) for stack, height in zip(row[:12].reshape(4, 3), row[12:], strict=True)
        ]
        drawn[tuple(stacks)] = count
    expected = {
        (template, *rest): weight / 2 / 2**size
        for size in (1, 2)
        for template in itertools.product((1, 2), repeat=size)
        for rest, weight in arrangements(template).items()
    }
    assert set(drawn) == set(expected)
    # Hoeffding and a union bound: fails with probability 1e-6.
    bound = np.sqrt(np.log(2 * len(expected) / 1e-6) / (2 * n))
    assert max(abs(drawn[key] / n - p) for key, p in expected.items()) < bound
    for size in (1, 2):
        share = sum(count for key, count in drawn.items() if len(key[0]) == size) / n
        assert abs(share - 0.5) < bound


@pytest.mark.slow
def test_instances_of_a_size():
    env = BlocksWorld((1,), colours=4, capacity=12)
    sizes = jnp.arange(1, 13)
    states = jax.jit(jax.vmap(env.initial))(jax.random.split(KEY, 12), sizes)
    for i in range(12):
        state = jax.tree.map(lambda leaf, i=i: leaf[i], states)
        stacks = lists(state)
        again = env.instance(stacks)  # refuses what is no instance
        assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), state, again))
        assert len(stacks[0]) == i + 1 and stacks[0] != stacks[1]


def test_equal_scores_lose_no_block(monkeypatch):
    env = BlocksWorld((4,), colours=4)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.asarray([0.7, 0.2, 0.7, 0.7, 0.5, 0.2]))
    dealt = env._deal(KEY, jnp.asarray([1, 2, 3, 4]), jnp.asarray(4))
    assert lists(dealt) == [[1, 2, 3, 4], [2], [], [1, 3, 4]]


def test_sizes_are_traced():
    env = BlocksWorld((1, 2, 3), capacity=6)
    reset = jax.jit(jax.vmap(env.reset_env, (0, None)))
    keys = jax.random.split(KEY, 64)
    for sizes in ([1, 2, 3], [6, 6, 5]):
        _, states = reset(keys, env.default_params.replace(sizes=jnp.asarray(sizes, jnp.int32)))
        assert set(states.heights[:, 0].tolist()) == set(sizes)
    assert reset._cache_size() == 1


# --- solutions


def dig(seen):
    """A policy from the sensors alone, whatever the size: clear the surplus, fetch what is needed, else dig for it."""
    seen = dict(zip(SENSORS, seen, strict=True))
    if not seen["needed"]:
        return DONE
    if seen["surplus"]:
        # Not onto the stack that has the block needed on top, if it can be helped.
        return MOVES.index((1, 3 if seen["depth2"] == 0 else 2))
    where = 2 if seen["depth3"] < 0 or 0 <= seen["depth2"] <= seen["depth3"] else 3
    return MOVES.index((where, 1 if seen[f"depth{where}"] == 0 else 5 - where))


def walk(stacks, policy, most=200):
    """Actions until the policy claims success, in lists."""
    stacks, actions = [list(stack) for stack in stacks], []
    while (action := policy(reference_sensors(stacks))) != DONE:
        source, target = MOVES[action]
        stacks[target].append(stacks[source].pop())
        actions.append(action)
        assert len(actions) <= most
    assert stacks[0] == stacks[1]
    return actions


@settings(max_examples=40, deadline=None)
@given(instances())
def test_plans_are_shortest(stacks):
    """The plan of `solve` succeeds, and exhaustive search finds no shorter one."""
    plan = ENV.solve(stacks)
    assert len(plan) == ENV.shortest(stacks) <= len(walk(stacks, dig))
    assert CLAIM.solve(stacks) == [*plan, DONE]
    reached, frontier = 0, {tuple(map(tuple, stacks[1:]))}
    while not any(list(here[0]) == stacks[0] for here in frontier):
        reached += 1
        after = set()
        for here in frontier:
            for source, target in MOVES:
                there = [list(stack) for stack in here]
                if there[source - 1]:
                    there[target - 1].append(there[source - 1].pop())
                after.add(tuple(map(tuple, there)))
        frontier = after
    assert reached == len(plan)
    state, params = CLAIM.instance(stacks), CLAIM.default_params
    for action in [*plan, DONE]:
        _, state, reward, terminated, _ = STEP[CLAIM](KEY, state, action, params)
    assert terminated and float(reward) == len(stacks[0])


def test_plans_by_hand():
    env = BlocksWorld((4,))
    assert env.solve([[1], [], [1], []]) == [MOVES.index((2, 1))]
    assert env.shortest([[1, 2], [2, 1], [], []]) == 4  # both off to different stacks, and back
    assert env.shortest([[1, 2, 3, 1], [1, 2, 3], [1], []]) == 1
    assert env.solve([[1, 2], [1, 2], [], []]) == []


@settings(max_examples=60, deadline=None)
@given(instances(most=12))
def test_one_policy_solves_every_size(stacks):
    n = len(stacks[0])
    assert len(walk(stacks, dig)) <= min(n + n * (n + 1) // 2, 10 * n), "within the limit"


def test_the_policy_in_the_environment():
    """The sensors of many sizes at once, from the environment itself."""
    env = BlocksWorld((1, 6, 12), colours=3, sensors=SENSORS)
    index = np.zeros((4, 4), np.int32)
    for action, pair in enumerate(MOVES):
        index[pair] = action
    index = jnp.asarray(index)

    def policy(obs):
        seen = dict(zip(SENSORS, obs, strict=True))
        deep2, deep3 = seen["depth2"], seen["depth3"]
        where = jnp.where((deep3 < 0) | ((deep2 >= 0) & (deep2 <= deep3)), 2, 3)
        fetch = jnp.where(jnp.where(where == 2, deep2, deep3) == 0, 1, 5 - where)
        clear = jnp.where(deep2 == 0, 3, 2)
        surplus = seen["surplus"] > 0
        return index[jnp.where(surplus, 1, where), jnp.where(surplus, clear, fetch)]

    def play(key):
        obs, state = env.reset_env(key, env.default_params)

        def body(carry, _):
            obs, state, ended, total = carry
            after = env.step_env(key, state, policy(obs), env.default_params)
            end = after[3] | env.is_truncated(after[1], env.default_params)
            total += jnp.where(ended, 0, after[2])
            return (after[0], after[1], ended | end, total), None

        return jax.lax.scan(body, (obs, state, jnp.zeros((), bool), jnp.zeros(())), None, length=120)[0][2:]

    ended, total = jax.jit(jax.vmap(play))(jax.random.split(KEY, 32))
    assert ended.all() and (total == 1).all()


def test_optimal_return():
    assert BlocksWorld().optimal_return() == BlocksWorld(done=True).optimal_return(0.9) == 1
    assert BlocksWorld((1, 4), reward="size").optimal_return() == 2.5
    assert np.isnan(BlocksWorld((3,), limit=2).optimal_return())
    assert np.isnan(BlocksWorld((1,), limit=2, done=True).optimal_return()), "two moves and a claim"
    assert BlocksWorld((3,), limit=3).optimal_return() == 1


# --- the contract of an environment


def test_contract():
    check_environment(BlocksWorld((2, 4), done=True, capacity=6))


def test_dtypes_under_x64():
    with jax.enable_x64(True):
        obs, state = jax.eval_shape(ENV.reset_env, KEY, ENV.default_params)
        after = jax.eval_shape(STEP[ENV].__wrapped__, KEY, state, 0, ENV.default_params)
        assert obs.dtype == after[0].dtype == after[2].dtype == jnp.float64
        assert state.stacks.dtype == state.heights.dtype == state.time.dtype == jnp.int32
        assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, after[1])


def test_instances_compare_by_value():
    env, params = make("BlocksWorld3-v0")
    assert env is make("BlocksWorld3-v0")[0] and env == BlocksWorld([1, 2, 3]) and hash(env) == hash(BlocksWorld())
    assert env.name == "BlocksWorld3-v0" and params.sizes.tolist() == [1, 2, 3]
    others = [{"sizes": (1, 2)}, {"colours": 2}, {"capacity": 4}, {"limit": 9}, {"done": True}, {"reward": "size"}]
    assert len({env, *(BlocksWorld(**other) for other in others)}) == 7
    assert env != "BlocksWorld3-v0"
    assert adapt(env).num_actions == 6 and adapt(BlocksWorld(done=True)).num_actions == 7
    np.testing.assert_array_equal(adapt(env).encode(jnp.arange(13.0)), jnp.arange(13.0))


def test_a_vocabulary_names_sensors_by_stack():
    sensors = ("needed", "surplus", "top1", "top2", "top3", "depth1", "depth2", "depth3")
    vocabulary = BlocksWorld(sensors=sensors).vocabulary
    assert (vocabulary.numbers, vocabulary.features) == (("needed", "surplus"), ("top", "depth"))
    assert vocabulary.size == len(sensors) and vocabulary.num_actions == len(MOVES)
    for source, row in enumerate(vocabulary.actions, 1):
        for target, action in enumerate(row, 1):
            assert MOVES[action] == (source, target) if source != target else action == -1


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"sensors": ("surplus", "top1", "top3", "top2")}, "sensors"),
        ({"sensors": ("top1", "top2", "top3", "surplus")}, "sensors"),
        ({"sensors": ("surplus", "top1", "top2")}, "sensors"),
        ({"sensors": ("surplus", "top1", "top2", "top3"), "done": True}, "done"),
    ],
)
def test_sensors_without_order_have_no_vocabulary(arguments, field):
    with pytest.raises(ValueError, match=f"^{field}: "):
        _ = BlocksWorld(**arguments).vocabulary


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": ()}, "sizes: expected at least one"),
        ({"sizes": (1, 0)}, "sizes: expected an integer >= 1, got 0"),
        ({"colours": 2.5}, "colours: expected an integer >= 1, got 2.5"),
        ({"capacity": 2}, "capacity: .* 3, .* got 2"),
        ({"limit": 0}, "limit: expected an integer >= 1, got 0"),
        ({"reward": "much"}, "reward: .* got 'much'"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BlocksWorld(**arguments)


@pytest.mark.parametrize(
    ("stacks", "message"),
    [
        ([[1], [1], []], "stacks: .* got 3"),
        ([[], [], [], []], "expected a template of 1 to 3 blocks, got 0"),
        ([[1] * 4, [1] * 4, [], []], "expected a template of 1 to 3 blocks, got 4"),
        ([[4], [4], [], []], "expected colours from 1 to 3, got 4"),
        ([[1, 2], [1], [1], []], "expected the blocks of the template"),
    ],
)
def test_what_is_no_instance_is_refused(stacks, message):
    with pytest.raises(ValueError, match=message):
        BlocksWorld().instance(stacks)
    with pytest.raises(ValueError, match=message):
        BlocksWorld().solve(stacks)

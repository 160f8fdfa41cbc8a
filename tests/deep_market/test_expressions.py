"""Expressions: values against plain Python, types under mutation and crossover, text, and bids in a market."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lessons import lessons, random_purchases

from jaxmarket import deep_market
from jaxmarket.deep_market import (
    DeepMarket,
    EstimatingExpression,
    EstimatingExpressions,
    Expressions,
    Terms,
    make_population,
)
from jaxmarket.deep_market.evaluation import actor, success_by_size
from jaxmarket.environments import Vocabulary, adapt
from jaxmarket.environments.blocks import BlocksWorld
from jaxmarket.environments.tabular import Chain
from jaxmarket.runs.populations import MarketPlan, grow

SENSORS = ("correct", "surplus", "needed", *(f"{name}{i}" for name in ("top", "height", "distance") for i in (1, 2, 3)))
BLOCKS = Expressions(BlocksWorld(sensors=SENSORS).vocabulary)
ARMS = Expressions(Vocabulary(("time",), ("left", "right"), ("width",), (0, 1)), constants=(0.5,))
PLAIN = Expressions(Vocabulary(("x", "y"), actions=3), depth=4)
ALL = {"blocks": BLOCKS, "arms": ARMS, "plain": PLAIN}
EACH = ["arms", *(pytest.param(name, marks=pytest.mark.slow) for name in ("blocks", "plain"))]
BY_HAND = (
    "(if (> surplus 0) (do s1 s2))",
    "(if (and (= surplus 0) (= (min distance(it)) 0)) (do (argmin distance(it)) s1))",
    "(if (= surplus 0) (do (argmin distance(it)) (other s1 (argmin distance(it)))))",
)


def read(text):
    """Nested lists."""
    words, parts = re.findall(r"\w+\(it\)|[()]|[^\s()]+", text), [[]]
    for word in words:
        if word == "(":
            parts.append([])
        elif word == ")":
            done = parts.pop()
            parts[-1].append(done)
        else:
            parts[-1].append(word)
    return parts[0][0]


def meaning(e, seen, v, it=None) -> Any:
    """The value of an expression in plain Python; items are numbers."""

    def value(e, it=it):
        return meaning(e, seen, v, it)

    def feature(name, item):
        return seen[len(v.numbers) + v.features.index(name) * len(v.items) + item]

    if isinstance(e, str):
        if e.endswith("(it)"):
            return feature(e[:-4], it)
        if e in v.numbers:
            return seen[v.numbers.index(e)]
        if e in v.items:
            return v.items.index(e)
        return True if e == "true" else int(e[6:]) if e.startswith("action") else float(e)
    name, *operands = e
    each = range(len(v.items))
    if name in v.features:
        return feature(name, value(operands[0]))
    if name in ("min", "max", "any", "count", "argmin", "argmax", "first"):
        values = [value(operands[0], i) for i in each]
        if name in ("argmin", "argmax", "first"):
            return values.index({"argmin": min, "argmax": max, "first": max}[name](values))
        return {"min": min, "max": max, "any": any, "count": sum}[name](values)
    a = [value(operand) for operand in operands]
    if name == "other":
        return next((i for i in each if i not in a), len(v.items) - 1)
    if name == "do":
        return v.actions[a[0]] if len(a) == 1 else v.actions[a[0]][a[1]]
    return {
        "if": lambda: (a[0] and a[1] >= 0, a[1]),
        "not": lambda: not a[0],
        "and": lambda: a[0] and a[1],
        "or": lambda: a[0] or a[1],
        "+": lambda: a[0] + a[1],
        "-": lambda: a[0] - a[1],
        "=": lambda: a[0] == a[1],
        "<": lambda: a[0] < a[1],
        ">": lambda: a[0] > a[1],
    }[name]()


def agents_of(representation, count, seed=0):
    """Random expressions, their children and the observations they were born into."""

    @jax.jit
    def draw(key):
        keys = jax.random.split(key, (3, count))
        obs = jax.random.randint(key, (count, representation.vocabulary.size), 0, 4).astype(float)
        new = jax.vmap(representation.init)(keys[0], obs)
        children = jax.vmap(representation.mutate)(keys[1], new, jax.tree.map(lambda leaf: jnp.roll(leaf, 1, 0), new))
        return new, children, obs

    return jax.device_get(draw(jax.random.key(seed)))


def one(agents, i):
    return jax.tree.map(lambda leaf: leaf[i], agents)


@pytest.mark.parametrize("name", EACH)
def test_expressions_against_plain_python(name):
    representation = dataclasses.replace(ALL[name], leaf=0.3)
    _, agents, obs = agents_of(representation, 300)
    holds, actions = jax.jit(jax.vmap(representation.evaluate))(agents.nodes, obs)
    cost = jax.jit(jax.vmap(representation.cost))(agents)
    used = set()
    for i in range(300):
        text = representation.show(one(agents, i))
        expected = meaning(read(text), obs[i].tolist(), representation.vocabulary)
        assert (bool(holds[i]), int(actions[i])) == (bool(expected[0]), expected[1]), text
        words = re.findall(r"\w+\(it\)|[^\s()]+", text)
        assert cost[i] == len(words)
        used |= set(words)
    assert used == set(representation.operators)
    assert 0.1 < np.mean(holds) < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_children_keep_types_and_differ_in_one_subtree(name):
    representation = dataclasses.replace(ALL[name], crossover=0.0)
    new, children, _ = agents_of(representation, 200)
    for i in range(200):
        parent, child = one(new, i), one(children, i)
        for agent in (parent, child):
            text = representation.show(agent)  # an operator of another type has no operands there: KeyError
            np.testing.assert_array_equal(representation.parse(text).nodes, agent.nodes)
        changed = np.flatnonzero(parent.nodes != child.nodes)
        root = changed
        while len(np.unique(root)) > 1:  # the lowest common ancestor of what has changed is not the root
            root = np.where(root == root.max(), (root - 1) // 2, root)
        assert not len(changed) or root[0] > 0
    assert 0.3 < np.mean((new.nodes != children.nodes).any(1)) <= 1
    assert (new.price != children.price).all()


@pytest.mark.slow
def test_crossover_takes_a_subtree_of_the_same_type_from_the_mate():
    representation = dataclasses.replace(BLOCKS, crossover=1.0)
    new, children, _ = agents_of(representation, 200)
    mates = np.roll(new.nodes, 1, 0)
    assert ((children.nodes == new.nodes) | (children.nodes == mates)).all()
    assert (children.nodes != new.nodes).any(1).mean() > 0.5
    for i in range(200):
        child = one(children, i)
        np.testing.assert_array_equal(representation.parse(representation.show(child)).nodes, child.nodes)


@pytest.mark.slow
def test_new_agents_bid_where_they_are_born():
    for draws, least, most in ((1, 0.0, 0.75), (16, 0.95, 1.0)):
        representation = dataclasses.replace(PLAIN, draws=draws)
        new, _, obs = agents_of(representation, 200)
        share = np.mean(jax.jit(jax.vmap(representation.evaluate))(new.nodes, obs)[0])
        assert least <= share <= most


@pytest.mark.parametrize("text", BY_HAND)
def test_an_expression_is_read_as_it_is_shown(text):
    assert BLOCKS.show(jax.device_get(BLOCKS.parse(text))) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "surplus",
        "(if surplus (do s1 s2))",
        "(if true (do s1))",
        "(if true (do s1 s2)",
        "(if true (do s1 s2)) true",
        "(if (any true) (do s1 s2))",
        "(if (= height(it) 0) (do s1 s2))",
        "(if (not (not (not (not true)))) (do s1 s2))",
        "(if true (do s1 (s2)))",
    ],
)
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(ValueError, match=r"^text: "):
        BLOCKS.parse(text)


def test_an_action_that_does_not_exist_is_no_bid():
    agent, obs = BLOCKS.parse("(if true (do s1 s1))", 2.0), jnp.zeros(len(SENSORS))
    assert BLOCKS.bid(agent, obs, 1.0) == -jnp.inf and int(BLOCKS.act(agent, obs)) == 0
    assert BLOCKS.bid(BLOCKS.parse("(if true (do s1 s2))", 2.0), obs, 1.0) == 2


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("numbers", lambda: Vocabulary(("a b",))),
        ("numbers", lambda: Vocabulary(("a", "a"))),
        ("features", lambda: Vocabulary(("a",), ("i",))),
        ("actions", lambda: Vocabulary(("a",), actions=0)),
        ("actions", lambda: Vocabulary(("a",), ("i", "j"), ("f",), (0, 1, 2))),
        ("vocabulary", lambda: dataclasses.replace(BLOCKS, vocabulary=("a",))),
        ("vocabulary", lambda: Expressions(Vocabulary(("true",)))),
        ("depth", lambda: dataclasses.replace(BLOCKS, depth=2)),
        ("constants", lambda: dataclasses.replace(BLOCKS, constants=())),
        ("leaf", lambda: dataclasses.replace(BLOCKS, leaf=2.0)),
        ("progress", lambda: dataclasses.replace(BLOCKS, progress="top")),
        ("bid_sensors", lambda: EstimatingExpressions(BLOCKS.vocabulary, bid_sensors=("top", "colour"))),
        ("bid_sensors", lambda: EstimatingExpressions(BLOCKS.vocabulary, bid_sensors="surplus")),
        ("margin", lambda: EstimatingExpressions(BLOCKS.vocabulary, margin=1.5)),
        ("decay", lambda: EstimatingExpressions(BLOCKS.vocabulary, decay=-0.1)),
        ("cap", lambda: EstimatingExpressions(BLOCKS.vocabulary, cap=0)),
        ("prior", lambda: EstimatingExpressions(BLOCKS.vocabulary, prior=0.0)),
    ],
)
def test_bad_settings_are_refused(field, make):
    with pytest.raises(ValueError, match=rf"^{field}: "):
        make()


# --- estimates

ESTIMATING = EstimatingExpressions(ARMS.vocabulary, depth=4, bid_sensors=("time", "width"), cap=4, margin=0.25)


def estimating(text, weights):
    nodes = ESTIMATING.parse(text).nodes
    return EstimatingExpression(nodes, jnp.asarray(weights, jnp.float32), jnp.asarray(0))


def test_estimates_are_exponential_in_capped_sensors():
    obs = jnp.array([6.0, 3.0, 0.0])  # the time, and the widths of both arms, of which the smaller one counts
    assert ESTIMATING.inputs(obs).tolist() == [1, 1, 0, 0, 1]
    assert ESTIMATING.inputs(jnp.array([0.0, 3.0, 1.0])).tolist() == [1, 0, 0.25, 1, 0]
    agent = estimating("(if (> time 0) (do left))", [-0.5, 0.2, 9.0, 9.0, -0.1])
    assert float(ESTIMATING.bid(agent, obs, 5.0)) == pytest.approx(0.75 * np.exp(-0.5 + 0.2 - 0.1))
    assert float(ESTIMATING.bid(agent, obs, 0.1)) == pytest.approx(0.1)
    assert float(ESTIMATING.bid(agent, obs.at[0].set(0), 5.0)) == -np.inf
    assert dataclasses.replace(ESTIMATING, bid_sensors=()).inputs(obs).tolist() == [1]
    plain = EstimatingExpressions(PLAIN.vocabulary, depth=4, bid_sensors=("y",))
    assert plain.inputs(jnp.array([[9.0, 1.0], [9.0, -3.0]])).tolist() == [[1, 0.5, 0], [1, 0, 0]]


def test_new_agents_and_children_expect_the_prior():
    obs = jnp.array([6.0, 3.0, 0.0])
    new = ESTIMATING.init(jax.random.key(0), obs)
    assert float(ESTIMATING.bid(new, obs, 5.0)) == pytest.approx(0.75 * 0.1)
    child = ESTIMATING.mutate(jax.random.key(1), new.replace(weights=new.weights + 1, count=jnp.asarray(7)), new)
    np.testing.assert_array_equal(child.weights, new.weights)
    assert int(child.count) == 0 and ESTIMATING.show(jax.device_get(child)) != ESTIMATING.show(jax.device_get(new))


@pytest.mark.parametrize("whose", ("public", "own", "shared"))
def test_estimates_against_plain_python(whose):
    draw, (steps, instances, count) = np.random.default_rng(0), (24, 2, 5)
    representation = dataclasses.replace(ESTIMATING, public=whose == "public", decay=0.6)
    obs = jnp.asarray(draw.integers(0, 4, (steps, instances, 3)), jnp.float32)
    agents = jax.vmap(representation.init)(jax.random.split(jax.random.key(3), count), obs[:count, 0])
    each_agent = jax.vmap(representation.bid, (0, None, None))
    bids = jax.vmap(jax.vmap(each_agent, (None, 0, None)), (None, 0, None))(agents, obs, 9.0)
    intended = jax.vmap(jax.vmap(jax.vmap(representation.act, (0, None)), (None, 0)), (None, 0))(agents, obs)
    purchases = random_purchases(draw, bids, obs, shared=whose == "shared")
    weights, counts = np.asarray(agents.weights, np.float64), np.zeros(count)
    for t, i, a, revenue in lessons(purchases, np.asarray(intended), whose):
        time, width = float(obs[t, i, 0]), float(obs[t, i, 1:].min())
        f = np.array([1, time / 4, width / 4, time == 0, width == 0])
        expected = np.exp(weights[a] @ f)
        error = np.clip((revenue - expected) / (expected + 1e-3 * 0.1), -1, 2)
        weights[a] += (counts[a] + 2) ** -0.6 * error * f / (f @ f)
        counts[a] += 1
    learned = jax.jit(representation.learn)(agents, purchases)
    np.testing.assert_allclose(learned.weights, weights, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(learned.count, counts)
    assert counts.max() > 5


@pytest.mark.slow
def test_estimates_become_the_revenues():
    """Revenues that are exponential in the sensors are learned; where nothing is ever earned, the estimate vanishes."""
    draw, steps = np.random.default_rng(1), 2000
    representation = dataclasses.replace(ESTIMATING, decay=0.3)
    obs = jnp.asarray(draw.integers(0, 5, (steps, 1, 3)), jnp.float32)
    agents = jax.tree.map(lambda x: x[None], estimating("(if true (do left))", jnp.zeros(5)))
    truth = jnp.array([0.3, -1.0, 0.8, 0.4, -0.2])
    purchases = random_purchases(draw, jnp.ones((steps, 1, 1)), obs, shared=False)
    revenue = jnp.exp(representation.inputs(obs) @ truth)
    for scale in (1.0, 0.0):
        bought = purchases.replace(
            action=jnp.zeros((steps, 1), jnp.int32), income=scale * revenue, terminated=jnp.ones((steps, 1), bool)
        )
        learned = jax.jit(representation.learn)(agents, bought)
        found = jnp.exp(representation.inputs(obs) @ learned.weights[0])
        np.testing.assert_allclose(found, scale * revenue, rtol=0.02, atol=1e-4)


@pytest.mark.slow
def test_a_market_of_estimating_expressions_solves_blocks_that_it_has_not_seen():
    env = BlocksWorld((1, 2, 3), sensors=("correct", "surplus", "distance1", "distance2", "distance3"))
    agents = EstimatingExpressions(env.vocabulary, depth=4, bid_sensors=("surplus", "distance"))
    terms = Terms(exploration=0.02, child_endowment=1.0, inheritance=0.0, replace_poorest=True)
    market = DeepMarket(adapt(env), agents, 64, joint_purchases=0.9)
    plan = MarketPlan(market, terms, 1000, 32, max_births=1, num_agents=0, wealth=1.0, chunks=1)
    tests = adapt(BlocksWorld((1,), sensors=env.sensors, capacity=4))

    def evaluate(market, key, population, terms):
        return {"solved": success_by_size(actor(market, population, terms), key, tests, (1, 4), 32)[1]}

    grown = grow(plan, evaluate, seeds=4, seed=0)
    assert grown.summary()["solved"] > 0.9
    assert np.mean(grown.measured["solved"]) > 0.75
    assert grown.residual < 1e-5


# --- in a market


def team(representation):
    """The agents of `BY_HAND`, which bid .5, .7 and .6."""
    agents = [representation.parse(text, price) for text, price in zip(BY_HAND, (0.5, 0.7, 0.6), strict=True)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *agents)


@pytest.mark.slow
def test_three_expressions_solve_instances_of_every_size():
    sizes = (1, 5, 12, 25)
    env = adapt(BlocksWorld((1,), sensors=SENSORS, capacity=max(sizes)))

    @jax.jit
    def solved(alive):
        population = make_population(team(BLOCKS), jnp.ones(3), alive)
        act = actor(DeepMarket(env, BLOCKS, 3), population, Terms())
        return success_by_size(act, jax.random.key(0), env, sizes, 32)

    np.testing.assert_array_equal(solved(jnp.ones(3, bool)), np.ones(4))
    for missing in range(3):  # where no agent bids, the action is random
        assert solved(jnp.arange(3) != missing)[-1] < 0.8


@pytest.mark.slow
def test_bids_that_are_fixed_at_entry_grow_with_progress():
    representation = dataclasses.replace(BLOCKS, progress="correct")
    env = BlocksWorld(sensors=SENSORS)
    market = DeepMarket(adapt(env), representation, 3)
    population = make_population(team(representation), jnp.full(3, 10.0)).replace(offer=jnp.array([0.5, 0.8, jnp.nan]))
    # Two of three blocks are right, and the third one is on top of a stack: the second and the third agent bid.
    state = jax.tree.map(lambda leaf: leaf[None], env.instance([[1, 2, 3], [1, 2], [3], []]))
    opened = deep_market.init(market, jax.random.key(0), env.default_params, population)
    opened = opened.replace(env_state=state, obs=jax.vmap(env.get_obs)(state).astype(opened.obs.dtype))
    after, happened = jax.jit(deep_market.step, static_argnums=0)(
        market, jax.random.key(1), opened, env.default_params, Terms(markup=0.1)
    )
    # The second bids .8 for each of the correct blocks and one more, and the newcomer .1 more per unit.
    assert float(after.population.offer[2]) == pytest.approx(0.9)
    assert float(happened.flows["sales"]) == pytest.approx(0.9 * 3)


def test_agents_on_probation_bid_in_the_first_instances_only():
    market = DeepMarket(adapt(Chain()), deep_market.BidTables(6, 2), 2, instances=4)
    agents = deep_market.BidTable(jnp.array([[9.0] * 6, [0.5] * 6]), jnp.zeros(2, jnp.int32))
    population = make_population(agents, jnp.array([3.0, 8.0]))
    opened = deep_market.init(market, jax.random.key(0), market.env.default_params, population)
    terms = Terms(proof=5.0, probation=2)
    _, happened = jax.jit(deep_market.step, static_argnums=0)(
        market, jax.random.key(1), opened, market.env.default_params, terms
    )
    assert happened.wins.tolist() == [2, 2]  # the first agent is poor and outbids the second in two instances
    assert float(happened.flows["sales"]) == pytest.approx(2 * 3.0 / 2 + 2 * 0.5)
    outcome, _, _ = deep_market.forward(
        market, jax.random.key(1), population, opened.obs, opened.env_state, market.env.default_params, terms
    )
    assert outcome.winner.tolist() == [1] * 4, "a frozen market is without agents on probation"


@pytest.mark.slow
@pytest.mark.bits
def test_an_interrupted_market_of_expressions_resumes_with_the_same_bits(tmp_path):
    env = BlocksWorld((1,), sensors=("surplus", "needed"), reward="size")
    programs = Expressions(Vocabulary(env.sensors, actions=6), depth=4, progress="surplus")
    terms = Terms(markup=0.1, rent=0.01, birth_rate=0.5, replace_poorest=True, endowment=8.0, proof=4.0, probation=1)
    market = DeepMarket(adapt(env), programs, 12, instances=2)
    plan = MarketPlan(market, terms, 20, 3, max_births=2, num_agents=8, wealth=8.0, chunks=2)

    def evaluate(market, key, population, terms):
        return {"wealth": population.wealth.sum()}

    def interrupt(chunk, measured):
        raise KeyboardInterrupt

    whole = grow(plan, evaluate, seeds=2, seed=0)
    with pytest.raises(KeyboardInterrupt):
        grow(plan, evaluate, seeds=2, seed=0, folder=tmp_path, on_chunk=interrupt)
    resumed = grow(plan, evaluate, seeds=2, seed=0, folder=tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed.economy, whole.economy)
    jax.tree.map(np.testing.assert_array_equal, resumed.rounds, whole.rounds)
    assert whole.residual < 1e-5
    assert (whole.rounds.births.ident >= 0).any() and whole.rounds.flows["sales"].sum() > 0

"""Representations: what rules, programs, networks and tables bid and do, and how their children differ."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lessons import lessons, random_purchases

from jaxmarket.deep_market.representations import (
    TESTS,
    WILDCARD,
    BidTable,
    BidTables,
    ClassifierRule,
    ClassifierRules,
    GuardedProgram,
    GuardedPrograms,
    NeuralNetworks,
    RiskAverseRules,
)

REPRESENTATIONS = {
    "rules": ClassifierRules(6, 3),
    "risk averse": RiskAverseRules(6, 3),
    "programs": GuardedPrograms(6, 3),
    "linear": NeuralNetworks(6, 3),
    "networks": NeuralNetworks(6, 3, (4,)),
    "tables": BidTables(6, 3),
}
OBS = jax.nn.one_hot(2, 6)


def rule(text, action=0):
    return ClassifierRule(jnp.array([WILDCARD if c == "#" else int(c) for c in text], jnp.int32), jnp.asarray(action))


# --- the protocol


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_contract(name):
    """Jit and vmap, stable types and shapes, legal actions, equality by value."""
    representation = REPRESENTATIONS[name]
    keys = jax.random.split(jax.random.key(0), 64)

    @jax.jit
    def lives(keys):
        agents = jax.vmap(representation.init, (0, None))(keys, OBS)
        children = jax.vmap(representation.mutate)(keys, agents, jax.tree.map(lambda x: x[::-1], agents))
        bids = jax.vmap(representation.bid, (0, None, None))(children, OBS, jnp.asarray(2.0))
        return (
            agents,
            children,
            bids,
            jax.vmap(representation.act, (0, None))(children, OBS),
            jax.vmap(representation.cost)(agents),
        )

    agents, children, bids, actions, costs = lives(keys)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), agents) == jax.tree.map(lambda x: (x.shape, x.dtype), children)
    assert bids.dtype == costs.dtype == jnp.float32
    assert bids.shape == actions.shape == costs.shape == (64,)
    assert set(np.asarray(actions).tolist()) == {0, 1, 2}
    assert (np.asarray(costs) > 0).all()
    assert not np.isnan(np.asarray(bids)).any()
    assert np.isfinite(np.asarray(bids)).any()
    changed = [np.asarray(a != b).any() for a, b in zip(*map(jax.tree.leaves, (agents, children)), strict=True)]
    assert any(changed)
    assert representation == type(representation)(
        **{f: getattr(representation, f) for f in representation.__dataclass_fields__}
    )
    assert len({representation, type(representation)(**representation.__dict__)}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_types_survive_x64(name):
    with jax.enable_x64(True):
        representation = REPRESENTATIONS[name]
        agent = representation.init(jax.random.key(0), OBS.astype(jnp.float64))
        child = representation.mutate(jax.random.key(1), agent, agent)
        assert jax.tree.map(lambda x: x.dtype, agent) == jax.tree.map(lambda x: x.dtype, child)
        assert representation.bid(agent, OBS.astype(jnp.float64), jnp.asarray(1.0)).dtype == jnp.float64


# --- rules


@given(st.text("01#", min_size=6, max_size=6), st.lists(st.integers(0, 1), min_size=6, max_size=6))
@settings(max_examples=60, deadline=None)
def test_rules_match_as_strings_do(text, bits):
    representation = ClassifierRules(6, 2, coefficient=0.125)
    agent, obs = rule(text), jnp.asarray(bits, jnp.float32)
    matches = all(c in ("#", str(b)) for c, b in zip(text, bits, strict=True))
    assert bool(representation.matches(agent, obs)) == matches
    bid = float(representation.bid(agent, obs, jnp.asarray(8.0)))
    specificity = sum(c != "#" for c in text) / 6
    assert bid == (pytest.approx(0.125 * specificity * 8) if matches else -np.inf)


def test_base_is_what_specificity_does_not_decide():
    bids = [
        float(ClassifierRules(4, 2, coefficient=0.5, base=b).bid(rule("1###"), jnp.ones(4), jnp.asarray(1.0)))
        for b in (0, 0.5, 1)
    ]
    assert bids == pytest.approx([0.125, 0.3125, 0.5])


def test_a_new_rule_matches_where_it_is_born():
    representation = ClassifierRules(5, 2, wildcards=0.3)
    obs = jnp.array([0.0, 1, 1, 0, 1])
    rules = jax.vmap(representation.init, (0, None))(jax.random.split(jax.random.key(0), 300), obs)
    assert jax.vmap(representation.matches, (0, None))(rules, obs).all()
    assert float((rules.condition == WILDCARD).mean()) == pytest.approx(0.3, abs=0.04)


def test_crossover_takes_a_segment_of_the_mate():
    representation = ClassifierRules(12, 2, crossover=1.0, mutation=0.0)
    children = jax.vmap(representation.mutate, (0, None, None))(
        jax.random.split(jax.random.key(1), 200), rule("0" * 12), rule("1" * 12, action=1)
    )
    conditions = np.asarray(children.condition)
    assert set(conditions.reshape(-1).tolist()) == {0, 1}
    assert (np.abs(np.diff(conditions, axis=1)).sum(1) <= 2).all(), "one segment"
    assert (np.asarray(children.action) == 0).all()
    assert 0.2 < conditions.mean() < 0.5


def test_mutation_changes_symbols_into_others():
    representation = ClassifierRules(200, 2, crossover=0.0, mutation=0.25)
    child = representation.mutate(jax.random.key(2), rule("#" * 200), rule("1" * 200))
    values, counts = np.unique(np.asarray(child.condition), return_counts=True)
    assert values.tolist() == [0, 1, 2]
    assert counts[2] / 200 == pytest.approx(0.75, abs=0.1)


# --- rules that learn what they earn


def test_a_risk_averse_rule_bids_its_value_less_margin_and_risk():
    representation = RiskAverseRules(4, 2, margin=0.25, risk_aversion=2.0, prior_value=0.8, prior_error=0.4)
    obs, budget = jnp.ones(4), jnp.asarray(5.0)
    new = representation.init(jax.random.key(0), obs)
    assert float(representation.bid(new, obs, budget)) == pytest.approx(0.75 * 0.8 * np.exp(-2 * 0.4 / 0.8))
    assert float(representation.bid(new, obs, jnp.asarray(0.1))) == pytest.approx(0.1)
    assert float(representation.bid(new.replace(value=jnp.asarray(-0.3)), obs, budget)) == 0
    assert float(representation.bid(new.replace(condition=jnp.zeros(4, jnp.int32)), obs, budget)) == -np.inf
    proven = new.replace(value=jnp.asarray(0.9), error=jnp.asarray(0.0), count=jnp.asarray(9))
    assert float(representation.bid(proven, obs, budget)) == pytest.approx(0.75 * 0.9)
    child = representation.mutate(jax.random.key(1), proven, proven)
    assert [float(x) for x in (child.value, child.error, child.count)] == pytest.approx([0.8, 0.4, 0])


@pytest.mark.parametrize("whose", ("public", "own", "shared"))
def test_risk_averse_rules_learn_from_every_known_purchase(whose):
    """Means at first, recent averages later, in plain Python; the deviation is from the value before.

    Of all purchases that agree, of its own, or of those in which it has a stake.
    """
    draw, (steps, instances, rules) = np.random.default_rng(0), (24, 2, 5)
    representation = RiskAverseRules(3, 2, rate=0.2, public=whose == "public")
    obs = jnp.asarray(draw.integers(0, 2, (steps, instances, 3)), jnp.float32)
    agents = jax.vmap(representation.init, (0, None))(jax.random.split(jax.random.key(3), rules), obs[0, 0])
    agents = agents.replace(action=jnp.array([0, 1, 0, 1, 0], jnp.int32))
    bids = jax.vmap(jax.vmap(jax.vmap(representation.bid, (0, None, None)), (None, 0, None)), (None, 0, None))(
        agents, obs, jnp.asarray(9.0)
    )
    purchases = random_purchases(draw, bids, obs, shared=whose == "shared")
    expected = [[0.3, 0.4, 0] for _ in range(rules)]
    intended = np.broadcast_to(agents.action, bids.shape)
    for _, _, a, revenue in lessons(purchases, intended, whose):
        value, error, count = expected[a]
        weight = max(0.2, 1 / (count + 2))
        change = revenue - value
        expected[a] = [value + weight * change, error + weight * (abs(change) - error), count + 1]
    learned = jax.jit(representation.learn)(agents, purchases)
    np.testing.assert_allclose(np.stack([learned.value, learned.error, learned.count], 1), expected, rtol=1e-5)
    assert max(count for _, _, count in expected) > 5


# --- programs


def program(lines, action=0, price=0.5):
    names = [name for name, _ in TESTS]
    return GuardedProgram(
        jnp.array([names.index(test) for test, _, _ in lines]),
        jnp.array([[a, b] for _, a, b in lines]),
        jnp.asarray(action),
        jnp.asarray(price),
    )


@given(
    lines=st.lists(
        st.tuples(st.sampled_from([name for name, _ in TESTS]), st.integers(0, 4), st.integers(0, 4)),
        min_size=3,
        max_size=3,
    ),
    obs=st.lists(st.integers(-1, 2), min_size=3, max_size=3),
)
@settings(max_examples=80, deadline=None)
def test_programs_against_plain_python(lines, obs):
    representation = GuardedPrograms(3, 2, length=3, constants=(0.0, 1.0))
    values = [*obs, 0, 1]
    tests = {
        "skip": lambda a, b: True,
        "=": lambda a, b: a == b,
        "≠": lambda a, b: a != b,
        ">": lambda a, b: a > b,
        "<": lambda a, b: a < b,
    }
    holds = all(tests[test](values[a], values[b]) for test, a, b in lines)
    bid = float(representation.bid(program(lines), jnp.asarray(obs, jnp.float32), jnp.asarray(9.0)))
    assert bid == (0.5 if holds else -np.inf)
    assert float(representation.cost(program(lines))) == 1 + sum(test != "skip" for test, _, _ in lines)


def test_programs_can_be_read():
    representation = GuardedPrograms(2, 3, length=3, names=("depth", "height"))
    assert (
        representation.show(program([("=", 0, 2), ("skip", 1, 1), (">", 1, 0)], 2))
        == "if depth = 0 and height > depth: 2"
    )
    assert representation.show(program([("skip", 0, 0)] * 3)) == "if anything: 0"


def test_a_childs_program_differs_a_little():
    representation = GuardedPrograms(4, 3, length=4, mutation=0.0)
    parent = representation.init(jax.random.key(0), OBS)
    children = jax.vmap(representation.mutate, (0, None, None))(
        jax.random.split(jax.random.key(1), 100), parent, parent
    )
    changed = np.stack(
        [
            np.asarray((children.tests != parent.tests) | (children.operands != parent.operands).any(-1)).sum(-1),
            np.asarray(children.action != parent.action),
        ]
    ).sum(0)
    assert (changed <= 1).all()
    assert changed.mean() > 0.5
    assert np.asarray(children.price != parent.price).all()


def test_new_programs_follow_their_prior():
    representation = GuardedPrograms(4, 3, length=5, skip=0.4, constant=0.7)
    new = jax.vmap(representation.init, (0, None))(jax.random.split(jax.random.key(0), 400), OBS)
    assert float((new.tests == 0).mean()) == pytest.approx(0.4, abs=0.04)
    assert float((new.operands[..., 1] >= 4).mean()) == pytest.approx(0.7, abs=0.04)
    assert int(new.operands.max()) == 4
    assert int(new.operands[..., 0].max()) == 3


# --- networks and tables


def test_networks_against_numpy():
    representation = NeuralNetworks(3, 2, (4,))
    (w1, b1), (w2, b2) = (tuple(map(np.asarray, layer)) for layer in representation.init(jax.random.key(0), OBS))
    agent = [(jnp.asarray(w1), jnp.asarray(b1 + 0.1)), (jnp.asarray(w2), jnp.asarray(b2))]
    x = np.array([0.5, -1.0, 2.0], np.float32)
    out = np.tanh(x @ w1 + b1 + 0.1) @ w2 + b2
    assert float(representation.bid(agent, jnp.asarray(x), jnp.asarray(1.0))) == pytest.approx(
        np.log1p(np.exp(out[0])), rel=1e-5
    )
    assert int(representation.act(agent, jnp.asarray(x))) == out[1:].argmax()
    assert float(representation.cost(agent)) == pytest.approx((3 * 4 + 4 * 3) / 1000)


def test_network_mutations_are_gaussian():
    representation = NeuralNetworks(40, 10, mutation=0.25)
    parent = representation.init(jax.random.key(0), OBS)
    child = representation.mutate(jax.random.key(1), parent, parent)
    change = np.concatenate(
        [np.asarray(a - b).ravel() for a, b in zip(*map(jax.tree.leaves, (child, parent)), strict=True)]
    )
    assert change.std() == pytest.approx(0.25, rel=0.1)
    assert abs(change.mean()) < 0.03


def test_tables_are_looked_up():
    representation = BidTables(3, 2)
    agent = BidTable(jnp.array([0.1, 0.2, 0.3]), jnp.asarray(1))
    bids = [float(representation.bid(agent, jax.nn.one_hot(s, 3), jnp.asarray(1.0))) for s in range(3)]
    assert bids == pytest.approx([0.1, 0.2, 0.3])
    assert int(representation.act(agent, jax.nn.one_hot(0, 3))) == 1
    new = jax.vmap(BidTables(3, 2, highest=4.0).init, (0, None))(jax.random.split(jax.random.key(0), 200), OBS)
    assert 3.9 < float(new.bids.max()) <= 4
    pairs = itertools.pairwise(np.unique(np.asarray(new.action)).tolist())
    assert list(pairs) == [(0, 1)]

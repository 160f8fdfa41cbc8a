"""Populations: who dies, who is born, what it costs, and who descends from whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmarket.deep_market import (
    OFFSPRING,
    RANDOM,
    REPAIRED,
    BidTable,
    BidTables,
    Births,
    ClassifierRule,
    ClassifierRules,
    Lineage,
    Terms,
    make_population,
    random_population,
    turnover,
)
from jaxmarket.types import NOBODY

STATES, PLACES, MAX_BIRTHS = 3, 8, 3
REPRESENTATION = BidTables(STATES, 2)
OBS = jnp.zeros((MAX_BIRTHS, STATES))


def people(wealth, alive=None):
    """Agent i bids i everywhere."""
    n = len(wealth)
    bids = jnp.broadcast_to(jnp.arange(n, dtype=jnp.float32)[:, None], (n, STATES))
    return make_population(BidTable(bids, jnp.zeros(n, jnp.int32)), jnp.asarray(wealth), alive)


@jax.jit
def year(key, population, terms, step=10):
    return turnover(REPRESENTATION, key, population, OBS, jnp.asarray(step), terms, MAX_BIRTHS)


NOBODY_BORN = Terms(birth_rate=0.0)


def test_the_poor_and_the_idle_die_and_take_what_they_have():
    p = people([1.0, 0.2, 3.0, 0.1]).replace(won=jnp.array([9, 9, 2, 9]))
    p = p.replace(wealth=p.wealth.at[3].set(-0.5))  # debts
    terms = NOBODY_BORN.replace(bankruptcy=0.2, max_idle_steps=5)
    after, flows, births, died = year(jax.random.key(0), p, terms)
    assert died.tolist() == [False, True, True, True]
    assert after.alive.tolist() == [True, False, False, False]
    np.testing.assert_allclose(after.wealth, [1, 0, 0, 0])
    assert float(flows.estate) == pytest.approx(0.2 + 3.0 - 0.5)
    assert (float(flows.allowance), int(births.deaths)) == (0, 3)
    assert (np.asarray(births.ident) == NOBODY).all()


@pytest.mark.parametrize("wealth", (np.nan, np.inf, -np.inf))
def test_an_agent_whose_wealth_is_not_finite_dies_and_is_counted(wealth):
    p = people([1.0, 2.0, 3.0, 4.0])
    p = p.replace(wealth=p.wealth.at[1].set(wealth))
    after, flows, births, died = year(jax.random.key(0), p, NOBODY_BORN.replace(bankruptcy=1.0))
    assert died.tolist() == [True, True, False, False]
    assert after.wealth.tolist() == [0, 0, 3, 4]
    assert (float(flows.estate), float(flows.nonfinite), int(births.deaths)) == (1, 1, 2)
    assert float(flows.net) == -1
    full, flows, _, died = year(jax.random.key(0), p, Terms(p_offspring=0.0, replace_poorest=True, endowment=5.0))
    assert died.tolist() == [True, True, True, False], "newborns take its slot first"
    assert full.wealth.tolist() == [5, 5, 5, 4]
    assert (float(flows.estate), float(flows.nonfinite), float(flows.allowance)) == (4, 1, 15)


def test_parents_that_give_away_all_are_not_left_with_debts():
    """Three thirds, rounded, can be more than the whole."""
    wealth = jnp.linspace(1, 9, 400)
    terms = Terms(p_offspring=1.0, min_parent_wealth=0.5, inheritance=1.0)

    def one(wealth):
        p = people([1.0, 0, 0, 0], jnp.arange(4) < 1)
        after, flows, _, _ = year(jax.random.key(0), p.replace(wealth=p.wealth.at[0].set(wealth)), terms)
        return after.wealth, flows

    after, flows = jax.vmap(one)(wealth)
    assert float(after.min()) >= 0
    np.testing.assert_allclose(after.sum(1) - wealth, flows.net, atol=2e-6)


def test_debtors_have_no_children():
    p = people([0.0, 0.0, 2.0, 0.0], jnp.arange(4) < 3)
    p = p.replace(wealth=p.wealth.at[0].set(-1.0))
    _, _, births, _ = year(jax.random.key(0), p, Terms(p_offspring=1.0, min_parent_wealth=-3.0, bankruptcy=-2.0))
    assert (np.asarray(births.parent)[np.asarray(births.ident) >= 0] == 2).all()


def test_random_agents_take_free_slots_with_an_endowment():
    p = people([1.0] * PLACES, jnp.arange(PLACES) < 6)
    after, flows, births, _ = year(jax.random.key(1), p, Terms(p_offspring=0.0, endowment=2.5))
    assert after.alive.all()  # two places for three max_births
    np.testing.assert_allclose(after.wealth, [1] * 6 + [2.5] * 2)
    assert float(flows.allowance) == 5
    assert sorted(np.asarray(births.ident).tolist()) == [NOBODY, 6, 7]
    assert np.asarray(births.kind)[np.asarray(births.ident) >= 0].tolist() == [RANDOM, RANDOM]
    assert after.parent[6:].tolist() == [NOBODY, NOBODY]
    assert after.ident.tolist() == list(range(8))
    assert after.born[6:].tolist() == after.won[6:].tolist() == [10, 10]
    assert np.isnan(np.asarray(after.offer)).all()


def test_children_of_the_rich_are_endowed_by_their_parent():
    p = people([8.0, 1.0, 1.0, 0.0, 0.0, 0.0], jnp.arange(6) < 3)
    terms = Terms(p_offspring=1.0, min_parent_wealth=2.0, inheritance=0.75, child_endowment=0.5, endowment=9.0)
    after, flows, births, _ = year(jax.random.key(2), p, terms)
    assert (np.asarray(births.kind) == OFFSPRING).all()
    assert (np.asarray(births.parent) == 0).all(), "nobody else is rich"
    np.testing.assert_allclose(
        after.wealth, [2, 1, 1, 2.5, 2.5, 2.5]
    )  # a third of .75 · 8 each, and the child endowment
    assert float(flows.allowance) == 1.5
    drawn = np.asarray(after.agents.bids)[3:]
    kept = (drawn == 0).mean()
    assert 0.5 < kept <= 1, "they bid like their parent, except for a mutation here and there"


def test_without_the_rich_there_are_no_children():
    p = people([1.0, 1.0, 0.0, 0.0], jnp.arange(4) < 2)
    _, _, births, _ = year(jax.random.key(3), p, Terms(p_offspring=1.0, min_parent_wealth=2.0))
    used = np.asarray(births.ident) >= 0
    assert used.sum() == 2
    assert (np.asarray(births.kind)[used] == RANDOM).all()


def test_the_bankrupt_are_repaired():
    p = people([5.0, 0.0, 5.0, 0.0], jnp.array([True, True, True, False]))
    terms = Terms(p_repair=1.0, endowment=3.0, p_offspring=0.0)
    after, flows, births, died = year(jax.random.key(4), p, terms)
    kinds, idents = np.asarray(births.kind), np.asarray(births.ident)
    assert died.tolist() == [False, True, False, False]
    repaired = (idents >= 0) & (kinds == REPAIRED)
    assert repaired.sum() == 1
    assert np.asarray(births.parent)[repaired].tolist() == [1]
    assert int(after.parent[1]) == 1
    assert int(after.ident[1]) != 1, "an agent of its own"
    assert float(after.wealth[1]) == 3
    assert float(np.mean(np.asarray(after.agents.bids[1]) == 1)) > 0, "most of what it was"
    assert int(after.parent[3]) == NOBODY, "the other newborn is random"
    assert float(flows.allowance) == 6


def test_newborns_replace_the_poorest_of_a_full_population():
    p = people([5.0, 0.5, 4.0, 0.25, 3.0])
    after, flows, births, died = year(jax.random.key(5), p, Terms(p_offspring=0.0, replace_poorest=True, endowment=1.0))
    assert died.tolist() == [False, True, False, True, True]
    assert after.alive.all()
    np.testing.assert_allclose(after.wealth, [5, 1, 4, 1, 1])
    assert (float(flows.estate), float(flows.allowance), int(births.deaths)) == (3.75, 3, 3)
    stays, _, births, died = year(jax.random.key(5), p, Terms(p_offspring=0.0, replace_poorest=False))
    assert not died.any()
    assert (np.asarray(births.ident) == NOBODY).all()
    assert stays.ident.tolist() == p.ident.tolist()


def test_birth_rates_are_probabilities():
    p = people([1.0] * 4, jnp.arange(4) < 1)
    keys = jax.random.split(jax.random.key(6), 400)
    _, _, births, _ = jax.vmap(year, (0, None, None))(
        keys, p, Terms(birth_rate=0.3, p_offspring=0.5, min_parent_wealth=0.5)
    )
    used = np.asarray(births.ident) >= 0
    assert used.mean() == pytest.approx(0.3, abs=0.05)
    assert (np.asarray(births.kind)[used] == OFFSPRING).mean() == pytest.approx(0.5, abs=0.08)


def test_parents_are_drawn_in_proportion_to_wealth():
    p = people([6.0, 3.0, 1.0, 0.0], jnp.arange(4) < 3)
    keys = jax.random.split(jax.random.key(7), 600)
    _, _, births, _ = jax.vmap(year, (0, None, None))(keys, p, Terms(p_offspring=1.0))
    parents = np.asarray(births.parent)[np.asarray(births.ident) >= 0]
    np.testing.assert_allclose(np.bincount(parents, minlength=3) / len(parents), [0.6, 0.3, 0.1], atol=0.06)


@given(
    wealth=st.lists(st.floats(-1, 8, width=32), min_size=PLACES, max_size=PLACES),
    dead=st.lists(st.booleans(), min_size=PLACES, max_size=PLACES),
    seed=st.integers(0, 2**16),
    rates=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    replace_poorest=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_places_and_money_add_up(wealth, dead, seed, rates, replace_poorest):
    p = people([0.0] * PLACES, ~jnp.asarray(dead))
    p = p.replace(wealth=jnp.where(p.alive, jnp.asarray(wealth, jnp.float32), 0))
    birth_rate, mutants, repair, inheritance = map(jnp.asarray, rates)
    terms = Terms(
        birth_rate=birth_rate, p_offspring=mutants, p_repair=repair, inheritance=inheritance,
        replace_poorest=jnp.asarray(replace_poorest), bankruptcy=jnp.asarray(0.5), max_idle_steps=jnp.asarray(20),
    )  # fmt: skip
    after, flows, births, died = year(jax.random.key(seed), p, terms)
    born = np.asarray(births.ident) >= 0
    alive = np.asarray(after.alive)
    assert alive.sum() == np.asarray(p.alive).sum() - int(births.deaths) + born.sum()
    assert int(births.deaths) == np.asarray(died).sum()
    change = float(after.wealth.sum()) - float(p.wealth.sum())
    assert change == pytest.approx(float(flows.allowance - flows.estate), abs=1e-4)
    assert float(flows.net) == pytest.approx(change, abs=1e-4)
    assert not np.asarray(after.wealth)[~alive].any()
    assert not (np.asarray(died) & ~np.asarray(p.alive)).any(), "only the living die"
    idents = np.asarray(after.ident)[alive]
    assert len(set(idents.tolist())) == len(idents)
    assert int(after.count) == int(p.count) + born.sum()
    kept = alive & ~np.asarray(died) & np.asarray(p.alive)
    np.testing.assert_array_equal(np.asarray(after.ident)[kept], np.asarray(p.ident)[kept])
    np.testing.assert_array_equal(np.asarray(after.agents.bids)[kept], np.asarray(p.agents.bids)[kept])


def test_newcomers_are_born_into_states():
    """Wilson's covering: a new rule matches the state it is born into."""
    representation = ClassifierRules(4, 2, wildcards=0.5)
    states = jnp.array([[0.0, 1, 1, 0], [1, 1, 0, 0]])
    p = random_population(representation, jax.random.key(0), states, 6, 4, 2.0)
    assert p.alive.tolist() == [True] * 4 + [False] * 2
    assert p.wealth.tolist() == [2.0] * 4 + [0.0] * 2
    for i in range(6):
        agent = jax.tree.map(lambda leaf, i=i: leaf[i], p.agents)
        assert bool(representation.matches(agent, states[i % 2]))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="agents: expected 3 of them"):
        make_population(ClassifierRule(jnp.zeros((2, 4), jnp.int32), jnp.zeros(2, jnp.int32)), jnp.ones(3))
    with pytest.raises(ValueError, match="wealth: agents cannot start with debts, the least is -1"):
        people([1.0, -1.0])


def test_lineage():
    births = Births(
        ident=np.array([[3, -1], [4, 5], [6, -1]]),
        parent=np.array([[1, -1], [3, -1], [4, -1]]),
        kind=np.array([[OFFSPRING, 0], [REPAIRED, RANDOM], [OFFSPRING, 0]]),
        deaths=np.zeros(3),
    )
    lineage = Lineage(births, founders=3)
    assert lineage.parent.tolist() == [-1, -1, -1, 1, 3, -1, 4]
    assert lineage.kind.tolist() == [RANDOM, RANDOM, RANDOM, OFFSPRING, REPAIRED, RANDOM, OFFSPRING]
    assert lineage.born.tolist() == [-1, -1, -1, 0, 1, 1, 2]
    assert lineage.ancestors(6) == [6, 4, 3, 1]
    assert lineage.family(4) == [1, 3, 4, 6]
    assert lineage.family(5) == [5]


def test_lineage_of_a_real_history():
    """The records kept on the device, against parents looked up as they were."""
    p = people([3.0, 2.0, 1.0, 0.0, 0.0], jnp.arange(5) < 3)
    terms, history, known = (
        Terms(p_offspring=0.8, min_parent_wealth=0.5, replace_poorest=True),
        [],
        {0: -1, 1: -1, 2: -1},
    )
    for t in range(6):
        p, _, births, _ = year(jax.random.key(t), p, terms)
        history.append(births)
        known |= dict(zip(np.asarray(p.ident).tolist(), np.asarray(p.parent).tolist(), strict=True))
    stacked = jax.tree.map(lambda *x: np.stack(x), *history)
    lineage = Lineage(stacked, founders=3)
    assert len(lineage.parent) == int(p.count)
    assert {who: int(lineage.parent[who]) for who in known} == known

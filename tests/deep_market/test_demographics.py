"""Populations: deaths, births, cash flows and lineage."""

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

STATES, SLOTS, BIRTHS = 3, 8, 3
REPRESENTATION = BidTables(STATES, 2)
OBS = jnp.zeros((BIRTHS, STATES))


def people(wealth, alive=None):
    """A population in which agent i bids i in every state."""
    n = len(wealth)
    bids = jnp.broadcast_to(jnp.arange(n, dtype=jnp.float32)[:, None], (n, STATES))
    return make_population(BidTable(bids, jnp.zeros(n, jnp.int32)), jnp.asarray(wealth), alive)


@jax.jit
def change(key, population, terms, step=10):
    return turnover(REPRESENTATION, key, population, OBS, jnp.asarray(step), terms, BIRTHS)


def year(key, population, terms):
    """The fields of a turnover as a tuple."""
    t = change(key, population, terms)
    return t.population, t.flows, t.births, t.died


NO_BIRTHS = Terms(birth_rate=0.0)


def test_bankrupt_and_idle_agents_die_with_their_wealth():
    p = people([1.0, 0.2, 3.0, 0.1]).replace(won=jnp.array([9, 9, 2, 9]))
    p = p.replace(wealth=p.wealth.at[3].set(-0.5))  # debts
    terms = NO_BIRTHS.replace(bankruptcy=0.2, max_idle_steps=5)
    after, flows, births, died = year(jax.random.key(0), p, terms)
    assert died.tolist() == [False, True, True, True]
    assert after.alive.tolist() == [True, False, False, False]
    np.testing.assert_allclose(after.wealth, [1, 0, 0, 0])
    assert -float(flows["wealth_of_the_dead"]) == pytest.approx(0.2 + 3.0 - 0.5)
    assert (float(flows["endowment"]), int(births.deaths)) == (0, 3)
    assert (np.asarray(births.ident) == NOBODY).all()


@pytest.mark.parametrize("wealth", (np.nan, np.inf, -np.inf))
def test_an_agent_whose_wealth_is_not_finite_dies_and_is_counted(wealth):
    p = people([1.0, 2.0, 3.0, 4.0])
    p = p.replace(wealth=p.wealth.at[1].set(wealth))
    terms = NO_BIRTHS.replace(bankruptcy=1.0)
    after, flows, births, died = year(jax.random.key(0), p, terms)
    assert died.tolist() == [True, True, False, False]
    assert after.wealth.tolist() == [0, 0, 3, 4]
    assert (
        -float(flows["wealth_of_the_dead"]),
        float(change(jax.random.key(0), p, terms).nonfinite_deaths),
        int(births.deaths),
    ) == (1, 1, 2)
    assert float(flows.net) == -1
    terms = Terms(p_offspring=0.0, replace_poorest=True, endowment=5.0)
    full, flows, _, died = year(jax.random.key(0), p, terms)
    assert died.tolist() == [True, True, True, False], "newborns take its slot first"
    assert full.wealth.tolist() == [5, 5, 5, 4]
    assert (
        -float(flows["wealth_of_the_dead"]),
        float(change(jax.random.key(0), p, terms).nonfinite_deaths),
        float(flows["endowment"]),
    ) == (4, 1, 15)


def test_parents_that_give_away_all_are_not_left_with_debts():
    """Three rounded thirds of the wealth may exceed it."""
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
    p = people([1.0] * SLOTS, jnp.arange(SLOTS) < 6)
    after, flows, births, _ = year(jax.random.key(1), p, Terms(p_offspring=0.0, endowment=2.5))
    assert after.alive.all()  # two free slots for three births
    np.testing.assert_allclose(after.wealth, [1] * 6 + [2.5] * 2)
    assert float(flows["endowment"]) == 5
    assert sorted(np.asarray(births.ident).tolist()) == [NOBODY, 6, 7]
    assert np.asarray(births.kind)[np.asarray(births.ident) >= 0].tolist() == [RANDOM, RANDOM]
    assert after.parent[6:].tolist() == [NOBODY, NOBODY]
    assert after.ident.tolist() == list(range(8))
    assert after.born[6:].tolist() == after.won[6:].tolist() == [10, 10]
    assert np.isnan(np.asarray(after.offer)).all()


def test_children_of_rich_agents_are_endowed_by_their_parent():
    p = people([8.0, 1.0, 1.0, 0.0, 0.0, 0.0], jnp.arange(6) < 3)
    terms = Terms(p_offspring=1.0, min_parent_wealth=2.0, inheritance=0.75, child_endowment=0.5, endowment=9.0)
    after, flows, births, _ = year(jax.random.key(2), p, terms)
    assert (np.asarray(births.kind) == OFFSPRING).all()
    assert (np.asarray(births.parent) == 0).all(), "only agent 0 is rich"
    np.testing.assert_allclose(after.wealth, [2, 1, 1, 2.5, 2.5, 2.5])  # a third of .75 · 8, and the endowment
    assert float(flows["endowment"]) == 1.5
    drawn = np.asarray(after.agents.bids)[3:]
    kept = (drawn == 0).mean()
    assert 0.5 < kept <= 1, "they bid like their parent, except for a mutation here and there"


def test_without_rich_agents_there_are_no_children():
    p = people([1.0, 1.0, 0.0, 0.0], jnp.arange(4) < 2)
    _, _, births, _ = year(jax.random.key(3), p, Terms(p_offspring=1.0, min_parent_wealth=2.0))
    used = np.asarray(births.ident) >= 0
    assert used.sum() == 2
    assert (np.asarray(births.kind)[used] == RANDOM).all()


def test_bankrupt_agents_are_repaired():
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
    assert float(flows["endowment"]) == 6


def test_newborns_replace_the_poorest_agents_of_a_full_population():
    p = people([5.0, 0.5, 4.0, 0.25, 3.0])
    after, flows, births, died = year(jax.random.key(5), p, Terms(p_offspring=0.0, replace_poorest=True, endowment=1.0))
    assert died.tolist() == [False, True, False, True, True]
    assert after.alive.all()
    np.testing.assert_allclose(after.wealth, [5, 1, 4, 1, 1])
    assert (-float(flows["wealth_of_the_dead"]), float(flows["endowment"]), int(births.deaths)) == (3.75, 3, 3)
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
    wealth=st.lists(st.floats(-1, 8, width=32), min_size=SLOTS, max_size=SLOTS),
    dead=st.lists(st.booleans(), min_size=SLOTS, max_size=SLOTS),
    seed=st.integers(0, 2**16),
    rates=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    replace_poorest=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_slots_and_money_add_up(wealth, dead, seed, rates, replace_poorest):
    p = people([0.0] * SLOTS, ~jnp.asarray(dead))
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
    gained = float(after.wealth.sum()) - float(p.wealth.sum())
    assert gained == pytest.approx(float(flows["endowment"] + flows["wealth_of_the_dead"]), abs=1e-4)
    assert float(flows.net) == pytest.approx(gained, abs=1e-4)
    assert not np.asarray(after.wealth)[~alive].any()
    assert not (np.asarray(died) & ~np.asarray(p.alive)).any(), "only the living die"
    idents = np.asarray(after.ident)[alive]
    assert len(set(idents.tolist())) == len(idents)
    assert int(after.count) == int(p.count) + born.sum()
    kept = alive & ~np.asarray(died) & np.asarray(p.alive)
    np.testing.assert_array_equal(np.asarray(after.ident)[kept], np.asarray(p.ident)[kept])
    np.testing.assert_array_equal(np.asarray(after.agents.bids)[kept], np.asarray(p.agents.bids)[kept])


def test_newborns_match_the_state_they_are_born_into():
    """Wilson's covering: a new rule matches the state it is born into."""
    representation = ClassifierRules(4, 2, wildcards=0.5)
    states = jnp.array([[0.0, 1, 1, 0], [1, 1, 0, 0]])
    p = random_population(representation, jax.random.key(0), states, 6, 4, 2.0)
    assert p.alive.tolist() == [True] * 4 + [False] * 2
    assert p.wealth.tolist() == [2.0] * 4 + [0.0] * 2
    for i in range(6):
        agent = jax.tree.map(lambda leaf, i=i: leaf[i], p.agents)
        assert bool(representation.matches(agent, states[i % 2]))


def test_local_parents_bid_for_the_state_of_their_child():
    """Two rules of equal wealth, of which one bids for the state that the children are born into."""
    representation = ClassifierRules(4, 2, crossover=0.0, mutation=0.0)
    conditions = jnp.array([[0, 2, 2, 2], [1, 2, 2, 2]], jnp.int32)
    agents = ClassifierRule(jnp.resize(conditions, (SLOTS, 4)), jnp.zeros(SLOTS, jnp.int32))
    p = make_population(agents, jnp.ones(SLOTS), jnp.arange(SLOTS) < 2)

    @jax.jit
    def children(key, p_local, state):
        terms = Terms(p_offspring=1.0, inheritance=0.0, p_local=p_local, child_endowment=1.0)
        states = jnp.resize(state, (BIRTHS, 4))
        t = turnover(representation, key, p, states, jnp.asarray(1), terms, BIRTHS)
        return t.population.agents.condition[2 : 2 + BIRTHS, 0]

    keys = jax.random.split(jax.random.key(0), 40)
    born = jax.vmap(children, (0, None, None))
    assert (born(keys, 1.0, jnp.array([0.0, 0, 1, 1])) == 0).all()
    assert (born(keys, 1.0, jnp.array([1.0, 0, 1, 1])) == 1).all()
    assert 0.35 < float(born(keys, 0.0, jnp.array([0.0, 0, 1, 1])).mean()) < 0.65


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
    """The lineage recorded on the device equals the parents looked up in every round."""
    p = people([3.0, 2.0, 1.0, *[0.0] * 5], jnp.arange(SLOTS) < 3)
    terms = Terms(p_offspring=0.8, min_parent_wealth=0.5, replace_poorest=True)
    history, known = [], {0: -1, 1: -1, 2: -1}
    for t in range(6):
        p, _, births, _ = year(jax.random.key(t), p, terms)
        history.append(births)
        known |= dict(zip(np.asarray(p.ident).tolist(), np.asarray(p.parent).tolist(), strict=True))
    stacked = jax.tree.map(lambda *x: np.stack(x), *history)
    lineage = Lineage(stacked, founders=3)
    assert len(lineage.parent) == int(p.count)
    assert {who: int(lineage.parent[who]) for who in known} == known

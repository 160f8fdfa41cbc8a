"""Deep markets: the published algorithm, cash flows, consumers, and invariants."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmarket import deep_market
from jaxmarket.auctions import BUCKET_BRIGADE, CREDIT_CONSERVING_VICKREY, VICKREY
from jaxmarket.deep_market import DeepMarket, Terms, forward, init, make_population, money, run
from jaxmarket.deep_market.representations import NO_BID, BidTable, BidTables, NeuralNetworks
from jaxmarket.environments import make
from jaxmarket.environments.tabular import FiniteMDP, garnet
from jaxmarket.types import AUCTIONEER

STATES, ACTIONS, AGENTS = 4, 3, 6
WORLD = garnet(3, STATES, ACTIONS, 0.9, branching=1)  # never ends, deterministic, rewards in [0, 1)
REPRESENTATION = BidTables(STATES, ACTIONS)
step = jax.jit(deep_market.step, static_argnums=0)


def tables(seed, agents=AGENTS, silent=0.2):
    rng = np.random.default_rng(seed)
    bids = rng.random((agents, STATES))
    bids[rng.random(bids.shape) < silent] = -np.inf
    return BidTable(jnp.asarray(bids, jnp.float32), jnp.asarray(rng.integers(0, ACTIONS, agents), jnp.int32))


def lived(market, terms=None, *, seed=0, rounds=5, period=7, max_births=2, **opening):
    """The initial state, the final state and the rounds of an economy."""
    env_params = market.env.default_params
    start = init(market, jax.random.key(seed), env_params, **opening)

    @jax.jit
    def go(start):
        return run(
            market,
            jax.random.key(seed + 1),
            start,
            env_params,
            terms,
            rounds=rounds,
            period=period,
            max_births=max_births,
        )

    return start, *go(start)


# --- Algorithm 1


def printed_algorithm(agents, wealth, owner, state, steps, rent=0.0):
    """Sudhir and Tran-Thanh (2025), Algorithm 1, as printed, in plain Python."""
    bids, actions = np.asarray(agents.bids, float), np.asarray(agents.action)
    wealth, history = [float(w) for w in wealth], []
    transitions, rewards = np.asarray(WORLD.transitions).argmax(-1), np.asarray(WORLD.rewards)
    for _ in range(steps):
        previous = owner
        b = [min(bids[a, state], wealth[a]) for a in range(len(wealth))]
        owner = max(range(len(wealth)), key=lambda a: b[a])
        action = actions[owner]
        wealth[owner] -= b[owner]
        wealth[previous] += b[owner]
        reward = rewards[state, action]
        state = transitions[state, action]
        wealth[owner] += reward
        wealth[owner] *= 1 - rent
        history.append((owner, state, *wealth))
    return np.array(history)


@pytest.mark.parametrize("rent", [None, 0.05])
@pytest.mark.parametrize("seed", (1, 2, 3))
def test_one_instance_is_the_printed_algorithm(seed, rent):
    agents, steps = tables(seed), 60
    wealth = np.random.default_rng(seed + 10).random(AGENTS) * 3 + 0.1  # no ties between agents without money
    market = DeepMarket(WORLD, REPRESENTATION, AGENTS)
    economy = init(
        market, jax.random.key(seed), WORLD.default_params, make_population(agents, wealth), original_owner=2
    )
    state = int(economy.env_state.index[0])
    terms = Terms(rent=rent)
    ours = []
    for key in jax.random.split(jax.random.key(7), steps):
        economy, _ = step(market, key, economy, WORLD.default_params, terms)
        ours.append((int(economy.owner[0]), int(economy.env_state.index[0]), *np.asarray(economy.population.wealth)))
    theirs = printed_algorithm(agents, wealth, 2, state, steps, rent or 0.0)
    np.testing.assert_array_equal(np.array(ours)[:, :2], theirs[:, :2])
    np.testing.assert_allclose(np.array(ours)[:, 2:], theirs[:, 2:], rtol=2e-5, atol=1e-5)
    assert len(set(theirs[:, 0])) > 1, "a test in which one agent always wins shows little"


@pytest.mark.parametrize("mechanism", [BUCKET_BRIGADE, CREDIT_CONSERVING_VICKREY, VICKREY], ids=lambda m: m.name)
def test_instances_share_one_table_of_wealth(mechanism):
    """Three instances against plain loops: every budget is a third, payments of all instances add up."""
    agents, wealth = tables(5, silent=0.3), np.random.default_rng(1).random(AGENTS) * 4
    market = DeepMarket(WORLD, REPRESENTATION, AGENTS, instances=3, mechanism=mechanism)
    before = init(market, jax.random.key(2), WORLD.default_params, make_population(agents, wealth))
    before = before.replace(owner=jnp.array([0, AUCTIONEER, 4], jnp.int32))
    after, happened = step(market, jax.random.key(3), before, WORLD.default_params)
    expected, house, minted, won = wealth.copy(), 0.0, 0.0, np.zeros(AGENTS, int)
    for instance, owner in enumerate((0, AUCTIONEER, 4)):
        state = int(before.env_state.index[instance])
        bids = [min(float(agents.bids[a, state]), wealth[a] / 3) for a in range(AGENTS)]
        ranked = sorted((b for b in bids if np.isfinite(b)), reverse=True)
        winner = bids.index(ranked[0])
        second = ranked[1] if len(ranked) > 1 else 0.0
        price = ranked[0] if mechanism is BUCKET_BRIGADE else second
        payout = second if mechanism is CREDIT_CONSERVING_VICKREY else ranked[0]
        expected[winner] += WORLD.rewards[state, int(agents.action[winner])] - price
        minted += payout - price
        won[winner] += 1
        if owner == AUCTIONEER:
            house += payout
        else:
            expected[owner] += payout
    np.testing.assert_allclose(after.population.wealth, expected, rtol=1e-5)
    np.testing.assert_allclose(
        [-happened.flows["auctioneer"], happened.flows["subsidy"]], [house, minted], rtol=1e-5, atol=1e-7
    )
    np.testing.assert_array_equal(happened.wins, won)


def joint_purchases(agents, wealth, owners, states, steps, threshold, mechanism, rent):
    """Agents that do the same and bid enough buy together, in plain Python: the wealth and the stakes after each step.

    Args:
        owners: for each instance, the stake of each agent in its state; the auctioneer has the rest.
    """
    transitions, rewards = np.asarray(WORLD.transitions).argmax(-1), np.asarray(WORLD.rewards)
    bids, actions = np.asarray(agents.bids, float), np.asarray(agents.action)
    wealth, states, owners, history = wealth.copy(), list(states), [dict(o) for o in owners], []
    for _ in range(steps):
        before, bought = wealth.copy(), np.zeros(len(wealth))
        for i, state in enumerate(states):
            offers = {a: min(bids[a, state], before[a] / len(states)) for a in range(len(before))}
            offers = {a: bid for a, bid in offers.items() if np.isfinite(bid)}
            winner = max(offers, key=lambda a: offers[a])
            second = max([bid for a, bid in offers.items() if a != winner], default=0.0)
            price = offers[winner] if mechanism is BUCKET_BRIGADE else second
            payout = second if mechanism is CREDIT_CONSERVING_VICKREY else offers[winner]
            partners = [
                a
                for a in offers
                if actions[a] == actions[winner] and offers[a] >= threshold * offers[winner] and offers[a] > 0
            ]
            together = sum(offers[a] for a in partners)
            stakes = {a: offers[a] / together for a in partners}
            for a, stake in owners[i].items():
                wealth[a] += stake * payout
            for a, stake in stakes.items():
                wealth[a] += stake * (rewards[state, actions[winner]] - price)
                bought[a] += stake
            owners[i], states[i] = stakes, transitions[state, actions[winner]]
        wealth *= 1 - rent * bought / len(states)
        history.append(np.concatenate([wealth, *([o.get(a, 0.0) for a in range(len(wealth))] for o in owners)]))
    return np.array(history)


JOINT = {
    "all that agree": (0.0, BUCKET_BRIGADE),
    "half of the bid": (0.5, BUCKET_BRIGADE),
    "second price": (0.5, CREDIT_CONSERVING_VICKREY),
    "mint": (0.5, VICKREY),
}


@pytest.mark.parametrize("name", JOINT)
def test_joint_purchases_against_plain_python(name):
    """Three instances: price, income and ownership are shared in proportion to the bids."""
    threshold, mechanism = JOINT[name]
    agents, wealth = tables(8, silent=0.3), np.random.default_rng(4).random(AGENTS) * 4 + 0.5
    agents = agents.replace(action=agents.action % 2)
    market = DeepMarket(WORLD, REPRESENTATION, AGENTS, instances=3, mechanism=mechanism, joint_purchases=threshold)
    economy = init(market, jax.random.key(2), WORLD.default_params, make_population(agents, wealth))
    states, steps = np.asarray(economy.env_state.index), 12
    theirs = joint_purchases(agents, wealth, [{}] * 3, states, steps, threshold, mechanism, 0.05)
    ours, wins = [], 0
    for key in jax.random.split(jax.random.key(7), steps):
        economy, happened = step(market, key, economy, WORLD.default_params, Terms(rent=0.05))
        ours.append(np.concatenate([economy.population.wealth, *economy.stakes]))
        wins = wins + happened.wins
    np.testing.assert_allclose(np.array(ours), theirs, rtol=2e-5, atol=1e-5)
    np.testing.assert_array_equal(wins, (theirs[:, AGENTS:].reshape(steps, 3, AGENTS) > 0).sum((0, 1)))
    assert int(wins.sum()) > 3 * steps, "no state was bought by several agents"


def test_a_stake_of_a_dead_agent_is_paid_to_the_auctioneer():
    """Of two agents that own a state together, one dies before it is sold."""
    market = DeepMarket(FiniteMDP([[[1.0]]], [[0.0]], 0.9, [1.0]), BidTables(1, 1), 2, joint_purchases=0.0)
    agents, params = BidTable(jnp.array([[0.5], [0.25]]), jnp.zeros(2, jnp.int32)), market.env.default_params
    economy = init(market, jax.random.key(0), params, make_population(agents, jnp.array([0.5, 2.0])))
    terms = Terms(birth_rate=0.0, bankruptcy=0.2)
    sold = []
    for rounds in range(2):
        economy, history = run(market, jax.random.key(rounds), economy, params, terms, rounds=1, period=1)
        sold.append(float(-history.flows["auctioneer"][0]))
    # First .5 in proportion 2 : 1, which leaves 1/6 and 11/6; then the second agent pays .25 for its own third.
    assert np.asarray(economy.population.alive).tolist() == [False, True]
    np.testing.assert_allclose(sold, [0.5, 0.25 * 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(economy.population.wealth, [0, 11 / 6 - 0.25 * 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(economy.stakes, [[0, 1]])


def test_agents_that_own_a_state_together_sell_it_to_a_consumer():
    market = DeepMarket(WORLD, REPRESENTATION, 2, consumers=(lambda obs: jnp.ones(()),), joint_purchases=0.0)
    agents = BidTable(jnp.array([[0.3] * STATES, [0.1] * STATES]), jnp.zeros(2, jnp.int32))
    economy = init(market, jax.random.key(0), WORLD.default_params, make_population(agents, jnp.ones(2)), consumers=10)
    for key in jax.random.split(jax.random.key(1), 2):
        economy, _ = step(market, key, economy, WORLD.default_params)
    assert not economy.stakes.any() and economy.owner.tolist() == [2]
    # Both pay .3 twice, in proportion 3 : 1, and are paid 1 twice; the consumer is paid .3 once.
    np.testing.assert_allclose(economy.population.wealth, [1 + 2 * 0.7 * 0.75, 1 + 2 * 0.7 * 0.25], rtol=1e-6)
    np.testing.assert_allclose(economy.consumers, [10 - 2 + 0.3], rtol=1e-6)


# --- money


@st.composite
def lives(draw):
    """Terms of every kind, and an environment."""
    some = st.floats(0.0, 0.3)
    return {
        "seed": draw(st.integers(0, 2**16)),
        "rent": draw(some),
        "wealth_tax": draw(some),
        "compute_tax": draw(some),
        "exploration": draw(some),
        "birth_rate": draw(st.floats(0.2, 1)),
        "p_offspring": draw(st.floats(0, 1)),
        "p_repair": draw(st.floats(0, 1)),
        "p_local": draw(st.floats(0, 1)),
        "child_endowment": draw(some),
        "bankruptcy": draw(some),
        "replace_poorest": draw(st.booleans()),
        "max_idle_steps": draw(st.integers(1, 30)),
        "proof": draw(st.floats(0, 4)),
        "probation": draw(st.integers(1, 3)),
    }


MORTAL = DeepMarket(make("Duality-v0")[0], BidTables(3, 2), 7, instances=3)  # rewards of both signs: there are debts
MARKETS = {
    "first price": MORTAL,
    "mint": dataclasses.replace(MORTAL, mechanism=VICKREY),
    "theft": dataclasses.replace(MORTAL, property_rights=False),
    "joint": dataclasses.replace(MORTAL, joint_purchases=0.3),
    "joint theft": dataclasses.replace(MORTAL, joint_purchases=0.3, property_rights=False),
}


@pytest.fixture(scope="module")
def longer():
    """`run` compiled once per market: every term is traced."""

    def compiled(market):
        params = market.env.default_params

        @jax.jit
        def go(key, terms):
            start = init(market, key, params, num_agents=5, wealth=2.0)
            end, rounds = run(market, key, start, params, terms, rounds=6, period=5, max_births=3)
            return start, end, rounds

        return go

    return {name: compiled(market) for name, market in MARKETS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", MARKETS)
@given(life=lives())
@settings(max_examples=20, deadline=None)
def test_every_change_of_the_money_supply_has_a_name(longer, name, life):
    terms = Terms(**{k: jnp.asarray(v) for k, v in life.items() if k != "seed"}, markup=jnp.asarray(0.1))
    start, end, rounds = longer[name](jax.random.key(life["seed"]), terms)
    flows = jax.tree.map(lambda x: np.asarray(x, np.float64), rounds.flows)
    b = {name: flows[name].sum() for name in flows.names}
    named = b["reward"] + b["subsidy"] + b["consumer_income"] + b["endowment"] + b["auctioneer"]
    named += b["rent"] + b["wealth_tax"] + b["compute_tax"] + b["wealth_of_the_dead"]
    assert named == pytest.approx(flows.net.sum())
    assert float(money(end)) - float(money(start)) == pytest.approx(named, abs=1e-5 * max(1, flows.moved.sum()))
    np.testing.assert_allclose(np.asarray(rounds.money)[-1], money(end), rtol=1e-6)
    assert b["subsidy"] == 0 or name == "mint"
    dead = ~np.asarray(end.population.alive)
    assert not np.asarray(end.population.wealth)[dead].any()
    owners = np.asarray(end.owner)
    assert not dead[owners[owners >= 0]].any()
    if end.stakes is not None:
        assert not np.asarray(end.stakes)[:, dead].any()


@pytest.mark.slow
def test_the_ledger_adds_up_over_a_long_run():
    """A hundred thousand auctions with births, deaths, rent, taxes."""
    market = DeepMarket(make("Chain-v0")[0], BidTables(6, 2), 32, instances=8)
    terms = Terms(
        rent=0.001,
        wealth_tax=1e-4,
        compute_tax=1e-4,
        exploration=0.05,
        endowment=4.0,
        p_offspring=0.5,
        birth_rate=0.5,
        max_idle_steps=200,
    )
    start, _, rounds = lived(market, terms, rounds=200, period=64, max_births=2, num_agents=20, wealth=4.0)
    history = jax.tree.map(lambda x: np.asarray(x, np.float64), rounds)
    assert history.residual(float(money(start))) < 1e-6
    sums = {name: history.flows[name].sum() for name in history.flows.names}
    assert sums["reward"] > 0 and sums["endowment"] > 0
    for name in ("auctioneer", "rent", "wealth_tax", "compute_tax", "wealth_of_the_dead"):
        assert sums[name] < 0, f"{name} took no part"
    assert history.statistics.auctions.sum() == 200 * 64 * 8
    assert int(rounds.births.deaths.sum()) > 100


@given(
    seed=st.integers(0, 2**16),
    wealth=st.lists(st.floats(0, 3), min_size=AGENTS, max_size=AGENTS),
    proof=st.floats(0, 3),
    probation=st.integers(1, 5),
)
@settings(max_examples=25, deadline=None)
def test_wealth_is_never_below_zero_while_rewards_are_not(seed, wealth, proof, probation):
    """Five instances may each spend a fifth of the wealth; five rounded fifths may exceed the wealth."""
    economy = init(CROWDED, jax.random.key(seed), WORLD.default_params, make_population(tables(1), jnp.asarray(wealth)))
    economy, _ = _crowded(jax.random.key(seed + 1), economy, proof, probation)
    assert float(economy.population.wealth.min()) >= 0


class Faulty:
    """An environment in which action 1 has the reward NaN, and action 0 the reward 1."""

    name, num_actions = "Faulty", 2

    def __init__(self, fault):
        self.fault = fault

    def reset(self, key, params=None):
        return jnp.ones(1), jnp.zeros(())

    def step(self, key, state, action, params=None):
        return jnp.ones(1), state, jnp.where(action == 1, self.fault, 1.0), jnp.asarray(False), {}


@pytest.mark.slow
@pytest.mark.parametrize("max_births", (0, 2))
@pytest.mark.parametrize("fault", (np.nan, np.inf))
@pytest.mark.parametrize("joint", (None, 0.5))
def test_a_reward_that_is_not_finite_ends_its_agent_and_the_flows_add_up(joint, fault, max_births):
    market = DeepMarket(Faulty(fault), BidTables(1, 2), 4, instances=2, joint_purchases=joint)
    agents = BidTable(jnp.array([[0.5], [0.4], [0.3], [0.2]]), jnp.array([1, 0, 0, 0], jnp.int32))
    population = make_population(agents, jnp.array([3.0, 2.0, 2.0, 2.0]))
    start, end, rounds = lived(market, Terms(birth_rate=0.0), rounds=3, max_births=max_births, population=population)
    assert end.population.alive.tolist() == [False, True, True, True]
    assert float(end.population.wealth[0]) == 0
    assert np.isfinite(end.population.wealth).all()
    flows = jax.tree.map(lambda flow: np.asarray(flow, np.float64), rounds.flows)
    assert rounds.statistics.nonfinite_deaths.tolist() == [1, 0, 0]
    assert flows["wealth_of_the_dead"][0] == pytest.approx(-2.0, abs=1e-5)  # it had paid .5 to the auctioneer twice
    money_then = np.concatenate([[float(money(start))], np.asarray(rounds.money)])
    np.testing.assert_allclose(np.diff(money_then), flows.net, rtol=1e-5)
    assert (np.asarray(end.owner) != 0).all()


@pytest.mark.parametrize("instances", (3, 8))
def test_an_agent_that_spends_all_in_many_instances_owns_exactly_nothing(instances):
    market = DeepMarket(Faulty(0.0), BidTables(1, 2), 1, instances=instances)  # action 1 earns nothing
    wealth = jnp.linspace(0.1, 9, 500)

    def one(wealth):
        agent = BidTable(jnp.full((1, 1), 1e9), jnp.ones(1, jnp.int32))
        start = init(market, jax.random.key(0), market.env.default_params, make_population(agent, wealth[None]))
        after, happened = deep_market.step(market, jax.random.key(1), start, market.env.default_params)
        return after.population.wealth[0], happened.flows

    left, flows = jax.jit(jax.vmap(one))(wealth)
    assert float(left.min()) >= 0
    np.testing.assert_allclose(left - wealth, flows.net, atol=1e-6)


CROWDED = DeepMarket(WORLD, REPRESENTATION, AGENTS, instances=5, mechanism=CREDIT_CONSERVING_VICKREY)


@jax.jit
def _crowded(key, economy, proof, probation):
    terms = Terms(rent=0.1, wealth_tax=0.01, compute_tax=0.05, exploration=0.3, proof=proof, probation=probation)
    return run(CROWDED, key, economy, WORLD.default_params, terms, rounds=1, period=40, max_births=0)


def test_exploration_never_charges_more_than_the_budget():
    agents = BidTable(jnp.array([[0.9] * STATES, [0.1] * STATES]), jnp.array([0, 1], jnp.int32))
    market = DeepMarket(WORLD, REPRESENTATION, 2, mechanism=CREDIT_CONSERVING_VICKREY)
    economy = init(market, jax.random.key(0), WORLD.default_params, make_population(agents, jnp.array([5.0, 0.2])))
    poor = 0
    for key in jax.random.split(jax.random.key(1), 12):
        _, happened = step(market, key, economy, WORLD.default_params, Terms(exploration=1.0))
        if happened.wins[1]:
            poor += 1
            assert float(happened.flows["sales"]) == pytest.approx(0.2)  # the other bid is .9
            assert float(-happened.flows["auctioneer"]) == pytest.approx(0.2)
        assert float(happened.flows["subsidy"]) == 0
    assert poor > 2


# --- owners, the house, consumers


def test_auctioneer_sells_first_states_and_acts_without_bids():
    market = DeepMarket(make("Bandit-v0")[0], BidTables(1, 4), 2, instances=2)
    silent = BidTable(jnp.full((2, 1), NO_BID), jnp.zeros(2, jnp.int32))
    economy = init(market, jax.random.key(0), market.env.default_params, make_population(silent, jnp.ones(2)))
    after, happened = step(market, jax.random.key(1), economy, market.env.default_params)
    assert (float(happened.statistics.unsold), float(happened.flows["sales"])) == (2, 0)
    assert float(happened.flows["reward"]) == 0, "no agent earns it"
    assert float(happened.statistics.returns) > 0
    eager = BidTable(jnp.array([[0.3], [0.2]]), jnp.array([3, 0], jnp.int32))
    economy = init(market, jax.random.key(0), market.env.default_params, make_population(eager, jnp.ones(2)))
    after, happened = step(market, jax.random.key(1), economy, market.env.default_params)
    assert float(-happened.flows["auctioneer"]) == pytest.approx(0.6)
    np.testing.assert_allclose(after.population.wealth, [1 + 2 * (0.8 - 0.3), 1], rtol=1e-6)
    assert (np.asarray(after.owner) == AUCTIONEER).all(), "a new episode belongs to the original owner"
    assert (float(happened.statistics.episodes), float(happened.statistics.returns)) == pytest.approx((2, 1.6))


def test_an_original_owner_sells_first_states():
    market = DeepMarket(make("Bandit-v0")[0], BidTables(1, 4), 2)
    eager = BidTable(jnp.array([[0.3], [0.2]]), jnp.array([3, 0], jnp.int32))
    params = market.env.default_params
    economy = init(market, jax.random.key(0), params, make_population(eager, jnp.ones(2)), original_owner=1)
    for sales in (1, 2):
        economy, _ = step(market, jax.random.key(sales), economy, params)
        assert float(economy.population.wealth[1]) == pytest.approx(1 + 0.3 * sales)


def test_states_of_dead_agents_belong_to_the_auctioneer():
    """If the owner of the state dies of bankruptcy, the auctioneer receives the payout of the next sale."""
    agents = BidTable(jnp.array([[0.5] * STATES, [0.25] * STATES]), jnp.array([0, 0], jnp.int32))
    market = DeepMarket(FiniteMDP([[[1.0]]], [[0.0]], 0.9, [1.0]), BidTables(1, 1), 2)
    agents = BidTable(agents.bids[:, :1], agents.action)
    params = market.env.default_params
    economy = init(market, jax.random.key(0), params, make_population(agents, jnp.array([0.5, 2.0])), original_owner=0)
    economy = economy.replace(owner=jnp.array([AUCTIONEER], jnp.int32))
    terms = Terms(birth_rate=0.0, bankruptcy=0.1)
    economy, rounds = run(market, jax.random.key(1), economy, params, terms, rounds=1, period=1, max_births=1)
    assert np.asarray(economy.population.alive).tolist() == [False, True]
    assert (int(economy.owner[0]), int(economy.original_owner)) == (AUCTIONEER, AUCTIONEER)
    assert float(-rounds.flows["auctioneer"][0]) == 0.5
    economy, rounds = run(market, jax.random.key(2), economy, params, terms, rounds=1, period=1, max_births=1)
    assert float(-rounds.flows["auctioneer"][0]) == 0.25
    assert int(economy.owner[0]) == 1


def test_consumers_pay_instead_of_rewards():
    """One consumer values Chain's goal at .6, another at 5; the latter owns 1.5, so its budget is .5 per instance."""
    consumers = (lambda obs: 0.6 * obs[5], lambda obs: 5.0 * obs[5])
    market = DeepMarket(make("Chain-v0")[0], BidTables(6, 2), 1, instances=3, consumers=consumers)
    right = BidTable(jnp.full((1, 6), 0.1), jnp.ones(1, jnp.int32))
    params = market.env.default_params
    economy = init(
        market, jax.random.key(0), params, make_population(right, jnp.array([3.0])), consumers=jnp.array([6.0, 1.5])
    )
    terms = Terms(consumer_income=0.01)
    for t in range(5):
        economy, happened = step(market, jax.random.key(t), economy, params, terms)
        assert float(happened.flows["reward"]) == 0
        assert float(happened.flows["consumer_income"]) == pytest.approx(0.02)
    # The first budget is 2, so its whole value counts; the second bids a third of what it owns, about .5.
    assert float(happened.flows["consumption"]) == pytest.approx(3 * 0.6)
    np.testing.assert_allclose(economy.consumers, [6 + 5 * 0.01 - 1.8, 1.5 + 5 * 0.01], rtol=1e-6)
    # Each instance: .1 to the house for the first state, .1 to itself four times, .6 from the consumer.
    assert float(economy.population.wealth[0]) == pytest.approx(3 - 3 * 0.1 + 1.8)
    assert float(money(economy)) == pytest.approx(3 + 7.5 + 0.1 - 0.3)


def test_a_consumer_owns_what_it_bought_and_sells_it_on():
    market = DeepMarket(WORLD, REPRESENTATION, 1, consumers=(lambda obs: jnp.ones(()),))
    agent = BidTable(jnp.full((1, STATES), 0.25), jnp.zeros(1, jnp.int32))
    params = WORLD.default_params
    economy = init(market, jax.random.key(0), params, make_population(agent, jnp.ones(1)), consumers=10.0)
    for t in range(3):
        economy, _ = step(market, jax.random.key(t), economy, params)
        assert int(economy.owner[0]) == 1  # place N + 0
    assert float(economy.consumers[0]) == pytest.approx(10 - 3 * 1 + 2 * 0.25)
    assert float(economy.population.wealth[0]) == pytest.approx(1 + 3 * (1 - 0.25))


def test_without_property_rights_a_random_agent_is_paid():
    """Without property rights the payout goes to a random agent instead of the owner."""
    agents = BidTable(jnp.array([[0.5] * STATES] + [[0.1] * STATES] * 4), jnp.zeros(5, jnp.int32))
    market = DeepMarket(WORLD, REPRESENTATION, 5, property_rights=False)
    economy = init(market, jax.random.key(0), WORLD.default_params, make_population(agents, jnp.full(5, 9.0)))
    economy = economy.replace(owner=jnp.zeros(1, jnp.int32))
    paid = set()
    for t in range(30):
        after, happened = step(market, jax.random.key(t), economy, WORLD.default_params)
        gains = np.asarray(after.population.wealth) - 9 - np.array([float(happened.flows["reward"]) - 0.5, 0, 0, 0, 0])
        assert gains.sum() == pytest.approx(0.5, abs=1e-5)
        paid.add(int(gains.argmax()))
    assert paid == set(range(5))


def test_illegal_actions_are_not_bid_for():
    class Careful(type(WORLD)):
        def legal_actions(self, state, params):
            return jnp.arange(ACTIONS) != 1

    world = Careful(WORLD.transitions, WORLD.rewards, 0.9, WORLD.start)
    agents = BidTable(jnp.array([[0.1] * STATES, [0.9] * STATES]), jnp.array([0, 1], jnp.int32))
    market = DeepMarket(world, REPRESENTATION, 2)
    economy = init(market, jax.random.key(0), world.default_params, make_population(agents, jnp.ones(2)))
    _, happened = step(market, jax.random.key(1), economy, world.default_params)
    assert happened.wins.tolist() == [1, 0]


def test_dead_agents_do_not_bid_pay_or_act():
    """A dead agent with the highest bid table, and another dead agent, have no cash flows."""
    agents = BidTable(jnp.array([[0.9] * STATES, [0.1] * STATES, [0.8] * STATES]), jnp.array([0, 1, 2], jnp.int32))
    alive = jnp.array([False, True, False])
    market = DeepMarket(WORLD, REPRESENTATION, 3)
    economy = init(market, jax.random.key(0), WORLD.default_params, make_population(agents, jnp.full(3, 5.0), alive))
    terms = Terms(rent=0.1, wealth_tax=0.1, compute_tax=0.1, exploration=0.5, markup=0.2)
    for t in range(10):
        economy, happened = step(market, jax.random.key(t), economy, WORLD.default_params, terms)
        assert happened.wins.tolist() == [0, 1, 0]
        assert float(happened.flows["sales"]) == pytest.approx(0.2)
    assert np.asarray(economy.population.wealth)[[0, 2]].tolist() == [0, 0]
    assert np.isnan(np.asarray(economy.population.offer)[[0, 2]]).all()


# --- entry


def test_newborn_bid_is_fixed_above_the_highest_other_bid():
    agents = BidTable(jnp.ones((3, STATES)), jnp.zeros(3, jnp.int32))
    market = DeepMarket(WORLD, REPRESENTATION, 3)
    population_ = make_population(agents, jnp.array([2.0, 2.0, 0.3])).replace(offer=jnp.array([0.5, jnp.nan, 0.9]))
    economy = init(market, jax.random.key(0), WORLD.default_params, population_)
    terms = Terms(markup=0.25)
    for t in range(3):
        economy, happened = step(market, jax.random.key(t), economy, WORLD.default_params, terms)
        # The rival with an offer of .9 can pay .3 only: the best of the others is .5.
        np.testing.assert_allclose(economy.population.offer, [0.5, 0.75, 0.9])
        assert float(happened.flows["sales"]) == 0.75
    outcome, prices, _ = forward(
        market, jax.random.key(9), economy.population, economy.obs, economy.env_state, WORLD.default_params, terms
    )
    assert (int(outcome.winner[0]), float(prices[0])) == (1, 0.75)
    newcomer = economy.population.replace(offer=jnp.array([0.5, jnp.nan, 0.9]))
    outcome, _, _ = forward(
        market, jax.random.key(9), newcomer, economy.obs, economy.env_state, WORLD.default_params, terms
    )
    assert int(outcome.winner[0]) == 0, "a frozen market has no births"


def test_newborn_without_a_bid_enters_later():
    agents = BidTable(jnp.array([[NO_BID, 1.0]]), jnp.zeros(1, jnp.int32))
    world = FiniteMDP([[[0.0, 1.0]], [[1.0, 0.0]]], [[0.0], [0.0]], 0.9, [1.0, 0.0])
    market = DeepMarket(world, BidTables(2, 1), 1)
    economy = init(market, jax.random.key(0), world.default_params, make_population(agents, jnp.ones(1)))
    terms = Terms(markup=0.25)
    economy, _ = step(market, jax.random.key(0), economy, world.default_params, terms)
    assert np.isnan(economy.population.offer[0])
    economy, _ = step(market, jax.random.key(0), economy, world.default_params, terms)
    assert float(economy.population.offer[0]) == 0.25


# --- as a JAX program


@pytest.mark.slow
def test_churn_compiles_once():
    market = DeepMarket(make("Chain-v0")[0], BidTables(6, 2), 16, instances=4)
    traces = []

    @jax.jit
    def go(key, economy, terms):
        traces.append(None)
        return run(market, key, economy, market.env.default_params, terms, rounds=4, period=3, max_births=4)

    economy = init(market, jax.random.key(0), market.env.default_params, num_agents=3)
    living = []
    for t in range(4):
        terms = Terms(endowment=1.0 + t, birth_rate=0.9, max_idle_steps=10 - t)
        economy, rounds = go(jax.random.key(t), economy, jax.tree.map(jnp.asarray, terms))
        living.extend(np.asarray(rounds.num_agents).tolist())
    assert len(traces) == 1
    assert len(set(living)) > 3, "the population did change"


@pytest.mark.slow
def test_vmapped_over_seeds_and_terms():
    """Results per seed equal those of separate runs, up to rounding."""
    market = DeepMarket(make("Chain-v0")[0], BidTables(6, 2), 8, instances=2)
    params = market.env.default_params

    def go(key, rent):
        economy = init(market, key, params, wealth=2.0)
        terms = Terms(rent=rent)
        return run(market, key, economy, params, terms, rounds=3, period=4, max_births=2)[1].money

    keys, rents = jax.random.split(jax.random.key(0), 3), jnp.array([0.0, 0.01, 0.2])
    many = jax.jit(jax.vmap(go))(keys, rents)
    for i in range(3):
        np.testing.assert_allclose(many[i], jax.jit(go)(keys[i], rents[i]), rtol=1e-5)


def test_types_survive_x64():
    market = DeepMarket(make("Chain-v0")[0], NeuralNetworks(6, 2, (3,)), 4, instances=2)

    def lives(key):
        params = market.env.default_params
        start = init(market, key, params)
        return start, *run(market, key, start, params, Terms(markup=0.1, rent=0.1), rounds=2, period=2, max_births=2)

    def types(tree):
        return jax.tree.map(lambda leaf: leaf.dtype, tree)

    with jax.enable_x64(True):
        start, end, rounds = jax.eval_shape(lives, jax.random.key(0))
        assert types(start) == types(end)
        assert end.population.wealth.dtype == rounds.money.dtype == jnp.float64
    start, end, rounds = jax.eval_shape(lives, jax.random.key(0))
    assert types(start) == types(end)
    assert end.population.wealth.dtype == rounds.money.dtype == jnp.float32


def test_names_are_public():
    for module in (deep_market, deep_market.market, deep_market.demographics):
        assert all(hasattr(module, name) for name in module.__all__)

"""Wide markets: Algorithm 2 against plain Python, the books, and the deep market as the case of one good."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from thinned import thinned

from benchmarks import equilibrium
from jaxmarket import deep_market, wide_market
from jaxmarket.auctions import BUCKET_BRIGADE, CREDIT_CONSERVING_VICKREY, VICKREY
from jaxmarket.checking import checked
from jaxmarket.deep_market import DeepMarket, Terms, make_population
from jaxmarket.deep_market.representations import NO_BID, BidTable, BidTables
from jaxmarket.environments.adapter import Adapter
from jaxmarket.environments.tabular import garnet
from jaxmarket.wide_market import (
    Additive,
    ConvexProgram,
    Equilibrium,
    EquilibriumCertificate,
    Produced,
    Quadratic,
    SealedBids,
    Tatonnement,
    WideMarket,
    init,
    per_agent,
    run,
)

# --- the deep market is the case of one indivisible good

STATES, ACTIONS, AGENTS = 4, 3, 6
WORLD = garnet(3, STATES, ACTIONS, 0.9, branching=1)  # never ends, deterministic, rewards in [0, 1)
LANGUAGE = BidTables(STATES, ACTIONS)
ADAPTER = Adapter(WORLD)


def bid(agent, world):
    """A valuation that is the bid of the agent's representation."""
    return Additive(LANGUAGE.bid(agent, world[1], jnp.inf)[None])


def act(key, agents, world, bundles):
    """The owner of the world transforms it."""
    owner = jnp.argmax(bundles[:, 0])
    action = LANGUAGE.act(jax.tree.map(lambda leaf: leaf[owner], agents), world[1])
    after = ADAPTER.step(key, world[0], action, WORLD.default_params)
    reward = jnp.where(jnp.arange(bundles.shape[0]) == owner, after.reward, 0)
    return Produced(holdings=bundles, reward=reward, world=(after.env_state, after.obs))


_deep_step = jax.jit(deep_market.step, static_argnums=0)
_wide_step = jax.jit(wide_market.step, static_argnums=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mechanism", "rent"),
    thinned(
        [(BUCKET_BRIGADE, None), (BUCKET_BRIGADE, 0.05), (CREDIT_CONSERVING_VICKREY, None), (VICKREY, None)],
        lambda mechanism, rent: rent is not None or mechanism is VICKREY,
    ),
    ids=["bb", "bb-rent", "ccv", "vickrey"],
)
def test_the_deep_market_is_the_case_of_one_good(mechanism, rent):
    """Winners, prices, wealth and minted money are equal in every step."""
    deep = DeepMarket(WORLD, LANGUAGE, AGENTS, mechanism=mechanism)
    wide = WideMarket(bid, act, SealedBids(mechanism))
    winners = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        bids = rng.random((AGENTS, STATES)) * 2
        bids[rng.random(bids.shape) < 0.2] = NO_BID
        agents = BidTable(jnp.asarray(bids, jnp.float32), jnp.asarray(rng.integers(0, ACTIONS, AGENTS), jnp.int32))
        wealth = jnp.asarray(rng.random(AGENTS) + 0.1, jnp.float32)  # often less than what is bid
        one = deep_market.init(
            deep, jax.random.key(seed), WORLD.default_params, make_population(agents, wealth), original_owner=2
        )
        world = jax.tree.map(lambda leaf: leaf[0], (one.env_state, one.obs))
        other = init(agents, jnp.zeros((AGENTS, 1)).at[2].set(1), wealth, world)
        for key in jax.random.split(jax.random.key(7), 40):
            one, happened = _deep_step(deep, key, one, WORLD.default_params, Terms(rent=rent))
            other, traded = _wide_step(wide, key, other, rent=rent)
            winners.append(int(one.owner[0]))
            assert int(jnp.argmax(traded.bundles[:, 0])) == winners[-1]
            np.testing.assert_array_equal(other.world[1], one.obs[0])
            np.testing.assert_allclose(traded.prices[0], happened.flows["sales"], rtol=1e-5)
            np.testing.assert_allclose(other.wealth, one.population.wealth, rtol=1e-5, atol=1e-6)
            subsidy = (traded.flows["sale"] + traded.flows["purchase"]).sum()
            np.testing.assert_allclose(subsidy, happened.flows["subsidy"], rtol=1e-4, atol=1e-6)
    assert len(set(winners)) > 2, "a test in which one agent always wins shows little"


# --- Algorithm 2 in plain Python


class Maker(struct.PyTreeNode):
    """The valuation and production of one agent."""

    taste: Quadratic
    recipe: jax.Array  # f [G, G]
    pay: jax.Array  # f [G] reward per unit made


N, G = 5, 3
MARKET = WideMarket(
    valuation=lambda agent, world: agent.taste,
    production=per_agent(lambda a, x: x @ a.recipe, lambda a, x, h: a.pay @ h),
    solver=Tatonnement(),
)


def makers(seed):
    rng = np.random.default_rng(seed)

    def numbers(*shape, low=0.0, high=1.0):
        return jnp.asarray(rng.uniform(low, high, shape), jnp.float32)

    agents = Maker(
        Quadratic(numbers(N, G, low=0.3, high=2.0), numbers(N, G, low=0.5, high=2.0)),
        numbers(N, G, G, high=0.6),
        numbers(N, G, high=0.2),
    )
    return init(agents, numbers(N, G), 10 * numbers(N))


def clears(slope, curvature, wealth, supply):
    """Prices of capped quadratic agents by a general optimiser of the dual (SciPy), and demands. Plain Python."""

    def demand(prices):
        bundles = []
        for a, b, w in zip(slope, curvature, wealth, strict=True):

            def at(scale, a=a, b=b):
                return np.maximum(a - prices / scale, 0) / b

            def worth(x, a=a, b=b):
                return (a * x - b * x * x / 2).sum()

            scale = 1.0
            if worth(at(1.0)) > w:
                scale = optimize.brentq(lambda s, at=at, worth=worth, w=w: worth(at(s)) - w, 1e-9, 1.0, xtol=1e-14)
            bundles.append(at(scale))
        return np.array(bundles)

    def dual(prices):
        x = demand(prices)
        worth = (slope * x - curvature * x * x / 2).sum(1)
        return prices @ supply + (np.minimum(worth, wealth) - x @ prices).sum(), supply - x.sum(0)

    best = optimize.minimize(
        dual, slope.mean(0) / 2, jac=True, bounds=[(1e-4, None)] * G, options={"ftol": 1e-15, "gtol": 1e-9}
    )
    return best.x, demand(best.x)


def test_algorithm_two():
    """Three rounds of the clean Algorithm 2 in plain Python, equilibria by SciPy."""
    for seed in (2, 6, 16):  # seeds without free goods, whose bundles are not unique
        economy = makers(seed)
        a = jax.tree.map(lambda leaf: np.asarray(leaf, float), economy.agents)
        holdings, wealth = np.asarray(economy.holdings, float), np.asarray(economy.wealth, float)
        for key in jax.random.split(jax.random.key(seed), 3):
            economy, traded = _wide_step(MARKET, key, economy)
            assert bool(traded.certificate.converged)
            prices, x = clears(a.taste.slope, a.taste.curvature, wealth, holdings.sum(0))
            supply = holdings.sum(0)
            wealth = wealth + (holdings - x) @ prices
            holdings = np.einsum("ng,ngh->nh", x, a.recipe)
            wealth = wealth + (a.pay * holdings).sum(1)
            np.testing.assert_allclose(traded.prices, prices, atol=2e-3)
            np.testing.assert_allclose(traded.bundles, x, atol=5e-3 * supply.max())
            np.testing.assert_allclose(economy.holdings, holdings, atol=1e-2)
            np.testing.assert_allclose(economy.wealth, wealth, atol=2e-2)
            np.testing.assert_array_equal(economy.prices, traded.prices)


# --- the books


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), rent=st.sampled_from([None, 0.1]), income=st.sampled_from([None, 0.3]))
def test_every_change_of_the_money_supply_has_a_name(seed, rent, income):
    """Trade conserves goods, only rewards, incomes and rents change money, and no agent gets into debt."""
    before = makers(seed)
    after, rounds = _lives(before, rent, income)
    net = np.asarray(rounds.flows.net)
    before, after, rounds = jax.device_get((before, after, rounds))
    b = rounds.flows
    named = sum(b[name].sum() for name in ("reward", "income", "rent", "sale", "purchase"))
    assert float(after.wealth.sum() - before.wealth.sum()) == pytest.approx(float(named), abs=2e-4)
    each = before.wealth + net.sum(0)
    np.testing.assert_allclose(after.wealth, each, rtol=1e-4, atol=2e-4)
    np.testing.assert_allclose(b["sale"].sum(1), -b["purchase"].sum(1), rtol=1e-4, atol=1e-5)
    assert float(after.wealth.min()) >= -1e-6
    owned = np.concatenate([before.holdings[None], rounds.holdings[:-1]])
    np.testing.assert_allclose(rounds.bundles.sum(1), owned.sum(1), rtol=1e-5, atol=1e-6)
    assert float(b["reward"].sum()) > 0


@jax.jit
def _lives(economy, rent, income):
    return run(MARKET, jax.random.key(0), economy, rounds=6, rent=rent, income=income)


def test_consumers_use_up_what_they_buy_and_live_on_their_income():
    """A baker (one loaf of every unit of grain) and a consumer who wants bread: grain goes in, bread comes out."""
    agents = Maker(
        Quadratic(jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.ones((2, 2))),
        jnp.array([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]),
        jnp.zeros((2, 2)),
    )
    economy = init(agents, jnp.array([[0.5, 0.0], [0.5, 0.0]]), jnp.array([5.0, 5.0]))
    economy, first = _wide_step(MARKET, jax.random.key(0), economy, income=jnp.array([0.0, 1.0]))
    # Only the baker demands grain: slope 1, curvature 1, one unit: price 0. No payments are made.
    assert float(first.prices[0]) == pytest.approx(0, abs=5e-3)
    np.testing.assert_allclose(economy.holdings.sum(0), [0, first.bundles[0, 0]], atol=1e-5)
    economy, second = _wide_step(MARKET, jax.random.key(0), economy, income=jnp.array([0.0, 1.0]))
    # Then there is bread, slope 2: so much that it is worth 2 - quantity to the consumer, who eats it up.
    bread = float(first.bundles[0, 0])
    assert float(second.prices[1]) == pytest.approx(2 - bread, abs=1e-3)
    assert float(second.bundles[1, 1]) == pytest.approx(bread, abs=1e-3)
    np.testing.assert_allclose(economy.holdings, 0, atol=1e-3)
    np.testing.assert_allclose(economy.wealth, [5 + bread * (2 - bread), 7 - bread * (2 - bread)], atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [Tatonnement(), ConvexProgram()])
def test_bakery_that_runs_out_of_grain_goes_on_without_an_error(solver):
    """The example of the README for 20 rounds; after the second there is almost no trade."""
    likes = Quadratic(slope=jnp.array([[1.0, 0.0], [0.0, 2.0]]), curvature=jnp.ones((2, 2)))
    bakes = jnp.array([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    market = WideMarket(
        valuation=lambda agent, world: agent[0],
        production=per_agent(lambda agent, x: x @ agent[1]),
        solver=solver,
    )
    economy = init((likes, bakes), holdings=[[0.2, 0.0], [0.4, 0.0]], wealth=5.0)
    income = jnp.array([0.0, 1.0])
    _, rounds = jax.jit(lambda e: run(market, jax.random.key(0), e, rounds=20, income=income))(economy)
    assert bool(rounds.certificate.converged.all()), rounds.certificate
    assert int(rounds.certificate.iterations.max()) < 100
    assert bool(rounds.certificate.converged.all())
    np.testing.assert_allclose(rounds.prices[:2, [0, 1]].diagonal(), [0.4, 1.4], rtol=1e-4)


# --- rounds without an equilibrium


@dataclasses.dataclass(frozen=True)
class Standstill:
    """A solver without trade that reports convergence until a good is scarce."""

    def __call__(self, valuations, wealth, holdings, *, key=None, prices=None):
        zero = jnp.zeros(holdings.shape[1])
        certificate = EquilibriumCertificate(
            excess_demand=jnp.float32(0.25), complementary_slackness=zero[0], duality_gap=jnp.float32(0.5),
            iterations=jnp.int32(3), converged=holdings.sum() > 1,
        )  # fmt: skip
        return Equilibrium(zero, zero, holdings, certificate)


def halving(nonconvergence="record"):
    """Every round half of 4 units are used up: no equilibrium in the third round and later."""
    produce = per_agent(lambda agent, bundle: bundle / 2)
    market = WideMarket(lambda agent, world: Additive(agent), produce, Standstill(), nonconvergence=nonconvergence)
    return market, init(jnp.ones((2, 1)), jnp.full((2, 1), 2.0), 1.0)


def test_rounds_without_an_equilibrium_are_counted():
    market, economy = halving()
    _, rounds = jax.jit(lambda e: run(market, jax.random.key(0), e, rounds=4))(economy)
    np.testing.assert_array_equal(rounds.certificate.converged, [True, True, False, False])
    hasty = WideMarket(MARKET.valuation, MARKET.production, Tatonnement(max_iterations=1))
    assert not _wide_step(hasty, jax.random.key(0), makers(0))[1].certificate.converged
    assert _wide_step(MARKET, jax.random.key(0), makers(0))[1].certificate.converged


def test_a_market_can_insist_on_an_equilibrium():
    """An error is raised outside of ``jit`` and in checked programs; other compiled programs reject the option."""
    market, economy = halving("raise")
    key, scarce = jax.random.key(0), economy.replace(holdings=economy.holdings / 8, time=jnp.int32(7))
    words = r"^nonconvergence: .*step {} .*0\.25.*0\.5"
    with pytest.raises(ValueError, match=words.format(7)):
        wide_market.step(market, key, scarce)
    with pytest.raises(ValueError, match=words.format(2)):
        run(market, key, economy, rounds=4)
    with pytest.raises(ValueError, match=words.format(7)):
        checked(wide_market.step, static_argnums=0)(market, key, scarce)
    with pytest.raises(ValueError, match=words.format(2)):
        checked(lambda e: run(market, key, e, rounds=4))(economy)
    for unchecked in (lambda e: wide_market.step(market, key, e), lambda e: run(market, key, e, rounds=2)):
        with pytest.raises(ValueError, match=r"^nonconvergence: .*jaxmarket\.checking"):
            jax.jit(unchecked)(economy)
    after, _ = run(market, key, economy, rounds=2)
    same, _ = checked(lambda e: run(market, key, e, rounds=2))(economy)
    np.testing.assert_array_equal(after.holdings, same.holdings)


@pytest.mark.slow
def test_derivatives_go_through_rounds_of_trade_and_production():
    """Wealth after two rounds by a recipe, against central differences."""
    with jax.enable_x64(True):
        market = WideMarket(MARKET.valuation, MARKET.production, Tatonnement(tolerance=1e-10))
        economy = jax.tree.map(lambda leaf: leaf.astype(float) if leaf.ndim else leaf, makers(16))

        @jax.jit
        @jax.value_and_grad
        def later(recipe):
            agents = economy.agents.replace(recipe=recipe)
            after, _ = run(market, jax.random.key(0), economy.replace(agents=agents), rounds=2)
            return after.wealth[0] + after.holdings[1, 1]

        recipe = economy.agents.recipe
        way = jnp.asarray(np.random.default_rng(0).normal(size=recipe.shape))
        inner = float((later(recipe)[1] * way).sum())
        between = float(later(recipe + 1e-5 * way)[0] - later(recipe - 1e-5 * way)[0]) / 2e-5
        assert inner == pytest.approx(between, rel=1e-4)
        assert abs(inner) > 1e-3


@pytest.mark.slow
def test_a_round_starts_from_the_prices_of_the_last():
    """In an economy that stands still, the second round needs fewer iterations than the first."""
    valuations, _, holdings = equilibrium.market(equilibrium.CASES["Quadratic"], 20, 4, 0)
    market = WideMarket(lambda agent, world: agent, lambda key, agents, world, bundles: still, ConvexProgram())
    still = Produced(holdings=jnp.asarray(holdings), reward=jnp.zeros(20), world=None)
    state = init(valuations, holdings, 1000.0)  # so that no cap binds, and trade does not change demand
    _, rounds = jax.jit(functools.partial(run, market, jax.random.key(0), rounds=3))(state)
    first, *others = rounds.certificate.iterations.tolist()
    assert first > 2
    assert max(others) <= 1
    np.testing.assert_allclose(rounds.prices[1], rounds.prices[0], rtol=1e-4)
    assert bool(rounds.certificate.converged.all())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Quadratic", "Logarithmic"])
@pytest.mark.parametrize("solver", [Tatonnement(), ConvexProgram()])
def test_twenty_economies_stay_in_equilibrium_for_a_hundred_rounds(solver, kind):
    """100 agents and 8 goods, supply and wealth that change: excess demand and gap of every round below 1e-3."""
    drawn = equilibrium.economies(equilibrium.CASES[kind], 100, 8, 20)

    def lives(key, *drawn):
        return equilibrium.trade(solver, key, *drawn, rounds=100)

    found = jax.jit(jax.vmap(lives))(jax.random.split(jax.random.key(1), 20), *drawn)
    assert found.converged.shape == (20, 100)
    assert float(found.excess_demand.max()) < 1e-3
    assert float(found.duality_gap.max()) < 1e-3
    assert float(found.complementary_slackness.max()) < 1e-2


@pytest.mark.slow
def test_many_instances():
    economies = [makers(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *economies)
    together, _ = jax.jit(jax.vmap(functools.partial(wide_market.step, MARKET, jax.random.key(0))))(stacked)
    for index, economy in enumerate(economies):
        alone, _ = _wide_step(MARKET, jax.random.key(0), economy)
        np.testing.assert_allclose(together.wealth[index], alone.wealth, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(together.holdings[index], alone.holdings, rtol=1e-3, atol=1e-4)


def test_dtypes_do_not_drift():
    before = makers(0)
    after = jax.eval_shape(functools.partial(wide_market.step, MARKET, jax.random.key(0), income=1, rent=0.1), before)[
        0
    ]
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, before)


def test_refusals():
    agents, ones = jnp.zeros((2, 3)), jnp.ones((2, 1))
    for arguments, words in (
        ((agents, jnp.ones(2), 1.0), r"^holdings: .*\(2,\)"),
        ((agents, jnp.ones((3, 1)), 1.0), r"^agents: .*\[3, ...\]"),
        ((agents, -ones, 1.0), r"^holdings: .*-1\.0"),
        ((agents, ones, jnp.array([1.0, -2.0])), r"^wealth: .*-2\.0"),
    ):
        with pytest.raises(ValueError, match=words):
            init(*arguments)
    with pytest.raises(ValueError, match=r"^nonconvergence: .*stop"):
        WideMarket(MARKET.valuation, MARKET.production, MARKET.solver, nonconvergence="stop")
    with pytest.raises(ValueError, match=r"^rounds: "):
        run(MARKET, jax.random.key(0), makers(0), rounds=0)

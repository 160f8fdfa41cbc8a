"""Welfare, the spread of prices and the supply of money: by hand, by brute force, in closed form."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thinned import thinned

from jaxmarket import wide_market
from jaxmarket.auctions import VICKREY
from jaxmarket.wide_market import (
    Additive,
    ConvexProgram,
    Linear,
    Logarithmic,
    Produced,
    Quadratic,
    SealedBids,
    Tatonnement,
    WideMarket,
    init,
)
from jaxmarket.wide_market.welfare import (
    efficiency,
    money_supply,
    price_dispersion,
    price_stability,
    total_welfare,
    wealth_history,
    welfare_bound,
)

_bound, _total, _efficiency = jax.jit(welfare_bound), jax.jit(total_welfare), jax.jit(efficiency)


def market(seed, kind, agents=5, goods=3):
    """Valuations, wealth, holdings of a random market."""
    rng = np.random.default_rng(seed)
    first, second = rng.uniform(0.1, 2, (2, agents, goods))
    valuations = kind(jnp.asarray(first)) if kind is Linear else kind(jnp.asarray(first), jnp.asarray(second))
    return valuations, jnp.asarray(rng.exponential(1.5, agents)), jnp.asarray(rng.random((agents, goods)))


# --- welfare


def test_welfare_by_hand():
    """Two agents: 2 · 3 and 1 · 4 uncapped; the first has 5."""
    valuations, bundles = Linear(jnp.array([[2.0, 0.0], [9.0, 1.0]])), jnp.array([[3.0, 0.0], [0.0, 4.0]])
    assert float(total_welfare(valuations, None, bundles)) == 10
    assert float(total_welfare(valuations, jnp.array([5.0, 7.0]), bundles)) == 9
    assert float(total_welfare(valuations, jnp.array([-1.0, 7.0]), bundles)) == 4
    # All of the first good is worth 27 to the second agent.
    assert float(efficiency(valuations, None, bundles)) == pytest.approx(10 / 31)
    assert np.isnan(efficiency(valuations, None, jnp.zeros((2, 2))))


def test_the_dual_by_hand():
    """One agent, one good of which there is 1: v = 10 x, w = 5, p = 5.5. Its best is .5 for 5 - 2.75."""
    valuations, wealth, supply, price = Linear(jnp.array([[10.0]])), jnp.array([5.0]), jnp.ones(1), jnp.array([5.5])
    assert float(_bound(valuations, wealth, supply, price)) == pytest.approx(5.5 + 2.25)
    assert float(_bound(valuations, wealth, supply, jnp.zeros(1))) == pytest.approx(5)  # it is reached: half is free
    # v = 4 x - x² without binding wealth: the best bundle at p = 2 is x = 1, with 3 - 2. At most 3 for a unit.
    quadratic = Quadratic(jnp.array([[4.0]]), jnp.array([[2.0]]))
    assert float(_bound(quadratic, None, supply, jnp.array([2.0]))) == pytest.approx(3)
    assert float(_bound(quadratic, None, supply, jnp.array([1.0]))) == pytest.approx(1 + 2.25)
    slope = jax.jit(jax.grad(lambda p: welfare_bound(quadratic, None, supply, p)))(jnp.array([1.0]))
    np.testing.assert_allclose(slope, [1 - 1.5], rtol=1e-5)  # supply minus demand


@pytest.mark.parametrize("kind", [Quadratic, Logarithmic, Linear])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.0, 3))
def test_no_allocation_has_more_welfare_than_the_dual_at_any_prices(kind, seed, scale):
    valuations, wealth, holdings = market(seed, kind)
    rng = np.random.default_rng(seed)
    supply, prices = holdings.sum(0), jnp.asarray(rng.random(3) * scale)
    shares = rng.dirichlet(np.full(5, 0.3), 3).T
    bundles = jnp.asarray(shares) * supply
    capped, free = _bound(valuations, wealth, supply, prices), _bound(valuations, None, supply, prices)
    assert float(_total(valuations, wealth, bundles)) <= float(capped) * (1 + 1e-5)
    assert float(_total(valuations, None, bundles)) <= float(free) * (1 + 1e-5)
    assert 0 <= float(_efficiency(valuations, wealth, bundles, prices)) <= 1 + 1e-5


@pytest.mark.parametrize("kind", thinned([Quadratic, Logarithmic, Linear], lambda kind: kind is Quadratic))
def test_an_equilibrium_is_efficient_and_others_are_less_so(kind):
    solver = jax.jit(ConvexProgram())
    for seed in range(5):
        valuations, wealth, holdings = market(seed, kind)
        found = solver(valuations, wealth, holdings)
        best = float(_efficiency(valuations, wealth, found.bundles, found.prices))
        # The certificate's gap is (bound - welfare) / welfare: two ways to the same number.
        assert best == pytest.approx(1 / (1 + float(found.certificate.duality_gap)), abs=1e-5)
        assert best == pytest.approx(1, abs=1.1e-3)
        assert float(_efficiency(valuations, wealth, holdings, found.prices)) < best


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_indivisible_goods_against_brute_force(seed):
    """All 27 ways to give three goods to three agents; with caps the maximum may be lower than the bound."""
    rng = np.random.default_rng(seed)
    values = rng.normal(1, 1, (3, 3))
    values[rng.random((3, 3)) < 0.3] = -np.inf
    supply, wealth = np.array([1.0, 2.0, 0.5]), rng.exponential(1.0, 3)
    finite = np.where(np.isfinite(values), values, 0)
    worth = {
        owners: sum(np.eye(3)[list(owners)].T[i] * supply @ finite[i] for i in range(3))
        for owners in itertools.product(range(3), repeat=3)
    }
    capped = [
        sum(min((np.eye(3)[list(owners)].T[i] * supply) @ finite[i], wealth[i]) for i in range(3)) for owners in worth
    ]
    # No agent has to take a good with a negative value: such a good is not sold.
    best = max(worth.values()) - sum(min(0, finite[:, j].max()) * supply[j] for j in range(3))
    most = float(_bound(Additive(jnp.asarray(values)), jnp.asarray(wealth), jnp.asarray(supply)))
    assert most == pytest.approx(best, rel=1e-5, abs=1e-6)
    assert max(capped) <= most + 1e-5


# --- prices


def test_dispersion_by_hand():
    prices = jnp.array([[1.0, jnp.nan, 0.0, jnp.nan], [3.0, 2.0, 0.0, jnp.nan]])
    np.testing.assert_allclose(price_dispersion(prices), [0.5, 0, np.nan, np.nan])
    np.testing.assert_allclose(price_dispersion(prices[:, :2], axis=1), [0, 0.2])
    np.testing.assert_allclose(price_dispersion(-7 * prices[:, 0]), 0.5)


def interior(agents, seed=0):
    """One good, log valuations, plenty of money: p = Σ a / Σ (s + h) over those present."""
    weight, size, stock = np.random.default_rng(seed).uniform(1, 1.5, (3, agents))
    valuations = Logarithmic(jnp.asarray(weight)[:, None], jnp.asarray(size)[:, None])
    return valuations, jnp.full(agents, 100.0), jnp.asarray(stock)[:, None]


@pytest.mark.slow
def test_prices_of_those_present_in_closed_form():
    valuations, wealth, holdings = interior(8)
    present = jnp.array([[1] * 8, [1, 1, 1, 0, 0, 0, 1, 1], [0, 1, 0, 0, 1, 1, 0, 0]], bool)
    found = jax.jit(functools.partial(price_stability, Tatonnement()))(valuations, wealth, holdings, present)
    here = np.asarray(present, float)
    exact = here @ valuations.weight[:, 0] / (here @ (valuations.size + holdings)[:, 0])
    np.testing.assert_allclose(found.prices[:, 0], exact, rtol=1e-4)
    assert found.certificate.converged.all()
    np.testing.assert_array_equal(np.asarray(found.bundles)[~np.asarray(present)], 0)
    np.testing.assert_allclose(found.bundles.sum(1), here @ holdings, rtol=1e-5)


@pytest.mark.full
def test_the_spread_of_prices_falls_with_the_square_root_of_the_market():
    """Copies of eight agents, each present with probability 1/2; the spread of prices equals the closed form."""
    valuations, wealth, holdings = jax.tree.map(lambda leaf: jnp.tile(leaf, (64, *[1] * (leaf.ndim - 1))), interior(8))
    solve = jax.jit(functools.partial(price_stability, Tatonnement()))
    coins = jax.random.bernoulli(jax.random.key(0), 0.5, (400, 512))
    a, b = np.asarray(valuations.weight)[:, 0], np.asarray(valuations.size + holdings)[:, 0]
    spreads = []
    for copies in (4, 16, 64):
        present = coins & (jnp.arange(512) < 8 * copies)
        spreads.append(float(price_dispersion(solve(valuations, wealth, holdings, present).prices)[0]))
        exact = (np.asarray(present) @ a) / (np.asarray(present) @ b)
        assert spreads[-1] == pytest.approx(exact.std() / exact.mean(), rel=1e-3)
    assert np.polyfit(np.log([4, 16, 64]), np.log(spreads), 1)[0] == pytest.approx(-0.5, abs=0.06)


def test_absent_agents_win_no_auction():
    """The first agent is absent; no other agent demands the third good, which stays with its owner."""
    valuations = Additive(jnp.array([[9.0, 9.0, 9.0], [2.0, 3.0, -jnp.inf], [1.0, 4.0, -jnp.inf]]))
    holdings = jnp.zeros((3, 3)).at[2].set(1)
    present = jnp.array([[False, True, True], [True, True, True]])
    auctions = jax.jit(functools.partial(price_stability, SealedBids()))
    found = auctions(valuations, jnp.full(3, 100.0), holdings, present, key=jax.random.key(0))
    np.testing.assert_array_equal(found.bundles[0], [[0, 0, 0], [1, 0, 0], [0, 1, 1]])
    np.testing.assert_array_equal(found.prices, [[1, 3, 0], [2, 4, 0]])
    np.testing.assert_array_equal(found.bundles[1], [[1, 1, 1], [0, 0, 0], [0, 0, 0]])


# --- the way to an equilibrium


@pytest.mark.slow
@pytest.mark.parametrize("kind", thinned([Quadratic, Logarithmic], lambda kind: kind is Quadratic))
def test_the_path_leads_where_the_solver_ends(kind):
    solver = Tatonnement(max_iterations=200)
    path = jax.jit(solver.trajectory)
    for seed in range(3):
        valuations, wealth, holdings = market(seed, kind)
        found = jax.jit(solver)(valuations, wealth, holdings)
        prices, excess = path(valuations, wealth, holdings)
        assert prices.shape == excess.shape == (201, 3)
        last = int(found.certificate.iterations)
        assert 3 < last < 200
        np.testing.assert_allclose(prices[last], found.prices, rtol=1e-5)
        assert float(excess[last].max()) <= solver.tolerance < float(np.abs(excess[last - 1]).max())
        # The first adjustment, by hand.
        np.testing.assert_allclose(prices[1], prices[0] * (1 + 0.1 * jnp.clip(excess[0], -0.9, 9)), rtol=1e-6)
        warm, _ = path(valuations, wealth, holdings, prices=2 * prices[0])
        np.testing.assert_array_equal(warm[0], 2 * prices[0])


# --- money


def toss(key, agents, world, bundles):
    """All agents have random incomes, and one agent gets the good."""
    owner = jax.random.randint(key, (), 0, 4)
    return Produced(
        holdings=(jnp.arange(4) == owner).astype(bundles.dtype)[:, None],
        reward=jax.random.uniform(key, (4,)),
        world=world,
    )


@pytest.mark.parametrize("mechanism", ["minting", "conserving"])
def test_all_money_has_a_name(mechanism):
    solver = SealedBids(VICKREY) if mechanism == "minting" else SealedBids()
    wide = WideMarket(lambda agent, world: Additive(agent), toss, solver)
    wealth = jnp.array([3.0, 1.0, 4.0, 1.5])
    start = init(jnp.array([[1.0], [2.0], [0.5], [3.0]]), jnp.eye(4)[:, :1], wealth)
    end, rounds = jax.jit(lambda e: wide_market.run(wide, jax.random.key(0), e, rounds=30, income=0.1, rent=0.2))(start)
    supply, each = money_supply(wealth, rounds.flows), wealth_history(wealth, rounds.flows)
    np.testing.assert_allclose(each[-1], end.wealth, rtol=1e-4)
    np.testing.assert_allclose(each.sum(1), supply, rtol=1e-5)
    subsidy = np.asarray((rounds.flows["sale"] + rounds.flows["purchase"]).sum(1))
    assert (float(subsidy.sum()) > 1) == (mechanism == "minting")
    # The first round in plain Python.
    b = jax.tree.map(lambda leaf: np.asarray(leaf[0], float), rounds.flows)
    assert float(supply[0]) == pytest.approx(9.5 + b["reward"].sum() + 4 * 0.1 + b["rent"].sum() + subsidy[0], rel=1e-5)
    assert float(rounds.flows.residual(wealth, end.wealth)) < 1e-6
    assert float(rounds.flows.residual(wealth, end.wealth.at[0].add(1))) > 1e-3


# --- batches and refusals


def test_many_markets_at_once():
    markets = [market(seed, Quadratic) for seed in range(3)]
    prices = jnp.asarray(np.random.default_rng(0).random((3, 3)))
    valuations, wealth, holdings = jax.tree.map(lambda *leaves: jnp.stack(leaves), *markets)
    together = jax.jit(jax.vmap(efficiency))(valuations, wealth, holdings, prices)
    alone = [_efficiency(*one, p) for one, p in zip(markets, prices, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_refusals():
    valuations, wealth, holdings = market(0, Quadratic)
    with pytest.raises(ValueError, match=r"^prices: .*Quadratic"):
        welfare_bound(valuations, wealth, holdings.sum(0))
    with pytest.raises(ValueError, match=r"present: expected bool \[K, N\] with N = 5, got \(4,\)"):
        price_stability(Tatonnement(), valuations, wealth, holdings, jnp.ones(4, bool))

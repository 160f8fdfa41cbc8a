"""Equilibria: conservation, budgets, optimality at the quoted prices, other people's solvers, derivatives."""

import functools

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize

from jaxmarket.auctions import BUCKET_BRIGADE, CREDIT_CONSERVING_VICKREY, VICKREY, Mechanism
from jaxmarket.wide_market import (
    Additive,
    ConvexProgram,
    Linear,
    Logarithmic,
    ProportionalResponse,
    Quadratic,
    SealedBids,
    Tatonnement,
    best_response_gain,
    capped_demand,
    capped_values,
    ration,
)
from jaxmarket.wide_market.convex_program import Proximal
from jaxmarket.wide_market.equilibrium import all_demands, linearised_demands

AGENTS, GOODS = 6, 4
CAPPED = [
    pytest.param(Tatonnement(), Quadratic, id="tatonnement-quadratic"),
    pytest.param(Tatonnement(), Logarithmic, id="tatonnement-logarithmic"),
    pytest.param(ConvexProgram(), Quadratic, id="convex-quadratic"),
    pytest.param(ConvexProgram(), Logarithmic, id="convex-logarithmic"),
    pytest.param(ConvexProgram(), Linear, id="convex-linear"),
]


TWO = [CAPPED[0], CAPPED[3]]
"""One solver and one class each; all four combinations would only compile for longer, and the rest are slow tests."""


def slow(param):
    return pytest.param(*param.values, id=param.id, marks=pytest.mark.slow)


REST = [slow(CAPPED[1]), slow(CAPPED[2])]


@functools.lru_cache
def compiled(solver):
    return jax.jit(solver)


capped = jax.jit(capped_values)
gain_of_best = jax.jit(best_response_gain)


def market(seed, kind, tight=3.0, agents=AGENTS, goods=GOODS):
    """Valuations, wealth, holdings of a random market; some agents care for some goods only."""
    rng = np.random.default_rng(seed)
    first = rng.uniform(0.2, 2, (agents, goods)) * (rng.random((agents, goods)) < 0.8) + 0.01
    second = rng.uniform(0.5, 2, (agents, goods))
    valuations = kind(jnp.asarray(first)) if kind is Linear else kind(jnp.asarray(first), jnp.asarray(second))
    return valuations, jnp.asarray(rng.exponential(tight, agents)), jnp.asarray(rng.random((agents, goods)))


def worth(valuations, agent, bundles):
    """min(v, w) of bundles [K, G] for one agent, an independent version in NumPy."""
    v = jax.tree.map(lambda leaf: np.asarray(leaf, float)[agent], valuations)
    if isinstance(valuations, Linear):
        return bundles @ v.values
    if isinstance(valuations, Logarithmic):
        return np.log1p(bundles / v.size) @ v.weight
    x = np.minimum(bundles, v.slope / v.curvature)
    return (v.slope * x - v.curvature * x**2 / 2).sum(-1)


# --- what must hold of every market


@pytest.mark.parametrize(("solver", "kind"), [*TWO, *REST, CAPPED[4]])
# The same examples in every run, and two on which L-BFGS does not converge.
@pytest.mark.slow
@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), tight=st.sampled_from([0.05, 0.5, 1.0, 3.0, 30.0]), absent=st.booleans())
@example(seed=2524, tight=3.0, absent=False)
@example(seed=65411, tight=1.0, absent=False)
def test_no_agent_prefers_another_bundle(solver, kind, seed, tight, absent):
    """Goods are conserved, payments cancel, budgets hold, and no random bundle is better at these prices.

    Tolerance: 2e-3 of welfare, twice the gap at which a solver may stop.
    """
    valuations, wealth, holdings = market(seed, kind, tight)
    if absent:
        holdings = holdings.at[:, 0].set(0)
    found = compiled(solver)(valuations, wealth, holdings)
    prices, bundles = np.asarray(found.prices, float), np.asarray(found.bundles, float)
    w, h = np.asarray(wealth, float), np.asarray(holdings, float)
    np.testing.assert_allclose(bundles.sum(0), h.sum(0), rtol=2e-6, atol=1e-6)
    assert abs((prices * (h - bundles)).sum()) < 1e-5 * (1 + prices @ h.sum(0))
    assert (bundles >= 0).all()
    assert (prices >= 0).all()
    assert (w + (h - bundles) @ prices >= -1e-6).all(), "an agent pays more than it has"

    certificate = found.certificate
    if tight >= 1 or isinstance(solver, Tatonnement):
        assert bool(certificate.converged), certificate
    if not bool(
        certificate.converged
    ):  # says so; and it can only happen where all agents can have enough of everything
        assert float(prices[h.sum(0) > 0].max()) < 1e-3  # the price of an absent good is anything above its choke price
        return
    welfare = float(capped(valuations, wealth, found.bundles).sum())
    spent = bundles @ prices
    assert (spent <= w * (1 + 1e-5) + 2e-3 * welfare).all()
    rng = np.random.default_rng(seed)
    regrets = np.asarray(gain_of_best(valuations, wealth, found.prices, found.bundles))
    for agent in range(AGENTS):
        own = min(worth(valuations, agent, bundles[agent]), w[agent]) - spent[agent]
        others = rng.exponential(h.sum(0) / AGENTS + 0.1, (300, GOODS)) * (rng.random((300, GOODS)) < 0.6)
        gains = np.minimum(worth(valuations, agent, others), w[agent]) - others @ prices - own
        assert gains.max() <= 2e-3 * welfare
        # Nor does any of them gain more than `best_response_gain` says is possible.
        assert gains.max() <= regrets[agent] + 1e-4 * (1 + welfare)


def test_certificate_reports_a_bad_solver_and_no_agent_overspends():
    """After one iteration, far from an equilibrium, goods and money are conserved and no agent overspends."""
    for seed in range(20):
        valuations, wealth, holdings = market(seed, Quadratic, 0.5)
        found = compiled(Tatonnement(max_iterations=1))(valuations, wealth, holdings)
        assert not bool(found.certificate.converged)
        assert float(found.certificate.excess_demand + found.certificate.complementary_slackness) > 0.01
        np.testing.assert_allclose(found.bundles.sum(0), holdings.sum(0), rtol=1e-5)
        assert float((wealth + (holdings - found.bundles) @ found.prices).min()) >= 0


def test_early_stop_of_a_proximal_sequence_never_overspends():
    """Agents with low wealth, half of them without holdings, demand bundles that cost far more than their wealth."""
    for seed in range(10):
        valuations, wealth, holdings = market(seed, Linear, 0.2)
        holdings = holdings.at[::2].set(0)
        found = compiled(ConvexProgram(proximal_steps=4, inner_iterations=1))(valuations, wealth, holdings)
        assert float((wealth + (holdings - found.bundles) @ found.prices).min()) >= 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 3))
def test_the_short_side_decides(seed, scale):
    rng = np.random.default_rng(seed)
    demands, holdings = rng.random((5, 3)) * scale, rng.random((5, 3)) * (rng.random((5, 3)) < 0.7)
    bundles = np.asarray(ration(jnp.asarray(demands), jnp.asarray(holdings)), float)
    np.testing.assert_allclose(bundles.sum(0), holdings.sum(0), atol=1e-5)
    for good in range(3):
        demand, supply = demands[:, good].sum(), holdings[:, good].sum()
        if demand >= supply:
            np.testing.assert_allclose(bundles[:, good], demands[:, good] * supply / demand, atol=1e-5)
        else:
            kept = holdings[:, good] * (supply - demand) / supply
            np.testing.assert_allclose(bundles[:, good], demands[:, good] + kept, atol=1e-5)


# --- units, scarcity and poverty


UNITS = [
    *CAPPED,
    pytest.param(ProportionalResponse(), Linear, id="response-quasilinear"),
    pytest.param(ProportionalResponse(quasilinear=False), Linear, id="response-fisher"),
    pytest.param(SealedBids(), Additive, id="sealed-bids"),
]


def in_units(valuations, wealth, holdings, money, unit):
    """The same market in other units: ``money`` times the amount of money, ``unit`` [G] times the goods."""
    if isinstance(valuations, Quadratic):
        valuations = Quadratic(valuations.slope * money / unit, valuations.curvature * money / unit**2)
    elif isinstance(valuations, Logarithmic):
        valuations = Logarithmic(valuations.weight * money, valuations.size * unit)
    else:
        valuations = type(valuations)(valuations.values * money / unit)
    return valuations, wealth * money, holdings * unit


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "kind"), UNITS)
def test_units_do_not_matter(solver, kind):
    """In other units of money and goods, the solver takes the same iterations to the same equilibrium."""
    for seed in range(2):
        one = market(seed, Linear if kind is Additive else kind, 2.0)
        if kind is Additive:
            one = Additive(one[0].values), one[1], jnp.asarray(np.eye(AGENTS)[seed : seed + GOODS].T)
        if seed:
            one = (*one[:2], one[2].at[:, 0].set(0))
        found = compiled(solver)(*one)
        assert bool(found.certificate.converged)
        for money, goods in [(1e-6, 1.0), (1e6, 1.0), (1.0, 1e-6), (1.0, 1e6), (1e6, 1e6), (1.0, [1e-6, 1, 1e3, 1e6])]:
            unit = jnp.broadcast_to(jnp.asarray(goods), (GOODS,))
            other = compiled(solver)(*in_units(*one, money, unit))
            assert bool(other.certificate.converged), (money, goods, other.certificate)
            # Numbers are rounded elsewhere, and a search of many steps may take some more or fewer.
            usual = int(found.certificate.iterations)
            assert abs(int(other.certificate.iterations) - usual) <= 5 + 0.3 * usual, (money, goods)
            if kind is Linear and isinstance(solver, ConvexProgram):  # neither prices nor bundles are unique
                value = capped_values(one[0], one[1], other.bundles / unit).sum()
                assert float(value) == pytest.approx(float(capped_values(*one[:2], found.bundles).sum()), rel=2e-3)
                continue
            there = np.asarray(one[2].sum(0) > 0)
            prices = (other.prices * unit / money)[there]
            np.testing.assert_allclose(prices, found.prices[there], rtol=2e-3, atol=1e-3 * found.prices.max())
            np.testing.assert_allclose(other.bundles / unit, found.bundles, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize(("solver", "kind"), CAPPED[:4])
@pytest.mark.parametrize("scarce", [1e-3, 1e-6, 1e-9])
def test_goods_of_which_there_is_next_to_nothing(solver, kind, scarce):
    """Supply far below demand, down to less than the change of demand by a rounding error of the price."""
    for seed in range(3):
        valuations, wealth, holdings = market(seed, kind, 3.0)
        holdings = holdings * jnp.asarray([scarce, 1, 1, scarce])
        found = compiled(solver)(valuations, wealth, holdings)
        assert bool(found.certificate.converged), found.certificate
        assert int(found.certificate.iterations) < 600
        np.testing.assert_allclose(found.bundles.sum(0), holdings.sum(0), rtol=2e-6)
        # A vanishing supply is sold at the price at which demand vanishes: the largest λ_i a_ij of all agents.
        first, second = (np.asarray(leaf, float) for leaf in jax.tree.leaves(valuations))
        most = first if kind is Quadratic else first / second
        assert (np.asarray(found.prices)[[0, 3]] <= most.max(0)[[0, 3]] * (1 + 1e-5)).all()
        if scarce < 1e-3 and float(wealth.min()) > 10:
            np.testing.assert_allclose(np.asarray(found.prices)[[0, 3]], most.max(0)[[0, 3]], rtol=1e-4)


@pytest.mark.parametrize("solver", [Tatonnement(), pytest.param(ConvexProgram(), marks=pytest.mark.slow)])
def test_the_price_of_a_scarce_good_in_closed_form(solver):
    """Uncapped quadratic agents: Σ max(a - p, 0) / b = S, solved in double precision."""
    valuations, _, _ = market(0, Quadratic, goods=1)
    a, b = np.asarray(valuations.slope, float)[:, 0], np.asarray(valuations.curvature, float)[:, 0]
    for supply in (1e-1, 1e-4, 1e-7, 1e-10, 0.0):
        holdings = jnp.zeros((AGENTS, 1)).at[0].set(supply)
        exact = optimize.brentq(lambda p, s=supply: np.maximum(a - p, 0) @ (1 / b) - s, 0, a.max(), xtol=1e-12)
        found = compiled(solver)(valuations, jnp.full(AGENTS, 100.0), holdings)
        assert bool(found.certificate.converged)
        if supply:
            assert float(found.prices[0]) == pytest.approx(exact, rel=1e-5)
        else:  # any price without demand
            assert float(found.prices[0]) >= exact * (1 - 1e-4)


@pytest.mark.parametrize(("solver", "kind"), CAPPED[:4])
@pytest.mark.parametrize("poor", [1e-3, 1e-6, 1e-10])
def test_poor_agents_have_equilibria_too(solver, kind, poor):
    """All agents have much less wealth than the value of the goods, or half of the agents have none."""
    valuations, wealth, holdings = market(3, kind, 1.0)
    for money in (wealth * poor, wealth.at[::2].set(0), wealth.at[::2].multiply(poor)):
        found = compiled(solver)(valuations, money, holdings)
        assert bool(found.certificate.converged), found.certificate
        assert int(found.certificate.iterations) < 300
        # An upper bound on welfare that does not use the solver's demand: every agent is worth at most what it has.
        if money is not wealth and float(money.max()) < 1e-2:
            welfare = float(capped_values(valuations, money, found.bundles).sum())
            assert welfare == pytest.approx(float(money.sum()), rel=2e-3)
            assert float(found.prices @ holdings.sum(0)) < 1e-2 * welfare


EMPTY = {
    "values": lambda v, w, h: (jax.tree.map(jnp.zeros_like, v), w, h),
    "wealth": lambda v, w, h: (v, 0 * w, h),
    "goods": lambda v, w, h: (v, w, 0 * h),
    "anything": lambda v, w, h: (jax.tree.map(jnp.zeros_like, v), 0 * w, 0 * h),
}


@pytest.mark.parametrize(("solver", "kind"), UNITS)
@pytest.mark.parametrize("absent", EMPTY)
def test_empty_markets_are_in_equilibrium(solver, kind, absent):
    """Without demand, money or goods there is no trade, the gap is 0, and prices are 0."""
    valuations, wealth, holdings = market(0, Linear if kind is Additive else kind)
    valuations = Additive(valuations.values) if kind is Additive else valuations
    second = jax.tree.leaves(valuations)[1:]
    v, w, h = EMPTY[absent](valuations, wealth, holdings)
    if second:
        v = kind(jax.tree.leaves(v)[0], second[0])  # curvatures and sizes are not worth anything
    found = compiled(solver)(v, w, h)
    assert float(found.certificate.duality_gap) == pytest.approx(0, abs=1e-6)
    assert bool(found.certificate.converged), found.certificate
    if kind is Additive:  # a bid of 0 wins a good that no agent values
        np.testing.assert_allclose(found.bundles.sum(0), h.sum(0), rtol=1e-6)
    else:
        np.testing.assert_array_equal(found.bundles, h)
    assert np.isfinite(found.prices).all()
    if absent != "goods":
        np.testing.assert_allclose(found.prices, 0, atol=1e-30)


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "kind"), [UNITS[0], *map(slow, UNITS[1:3]), UNITS[3], slow(UNITS[4]), *UNITS[5:]])
def test_one_agent(solver, kind):
    """A single agent keeps its holdings, at prices at which its demand equals them."""
    valuations, wealth, holdings = market(1, Linear if kind is Additive else kind, 30.0, agents=1)
    valuations = Additive(valuations.values) if kind is Additive else valuations
    found = compiled(solver)(valuations, wealth, holdings)
    assert bool(found.certificate.converged), found.certificate
    np.testing.assert_allclose(found.bundles, holdings, rtol=1e-5, atol=1e-6)
    if kind is Logarithmic:
        exact = valuations.weight[0] / (valuations.size[0] + holdings[0])
        np.testing.assert_allclose(found.prices, exact, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "kind"),
    [
        (Tatonnement(tolerance=1e-9), Quadratic),
        (Tatonnement(tolerance=1e-9), Logarithmic),
        (ConvexProgram(tolerance=1e-9), Logarithmic),
        (ConvexProgram(gap_tolerance=0.0), Linear),
        (ProportionalResponse(gap_tolerance=-1.0), Linear),
    ],
)
def test_a_solver_that_cannot_improve_stops(solver, kind):
    """Tolerances below single precision, or 0."""
    found = compiled(solver)(*market(0, kind, 3.0))
    most = {Tatonnement: 500, ConvexProgram: 800, ProportionalResponse: 5000}[type(solver)]
    assert int(found.certificate.iterations) < most
    assert float(found.certificate.duality_gap) < 1e-3, "and returns the best that it has seen"


@pytest.mark.parametrize(("solver", "kind"), UNITS[:-1])
def test_numbers_that_are_not_finite_end_the_search(solver, kind):
    for leaf in range(2 if kind is Linear else 3):
        for bad in (jnp.nan, jnp.inf):
            leaves, tree = jax.tree.flatten(market(0, kind))
            leaves[leaf] = leaves[leaf].at[(0,) * leaves[leaf].ndim].set(bad)
            if bad == jnp.inf and leaf > 0 and kind is not Linear:
                continue  # an infinite curvature or size: the agent does not want the good; infinite wealth: no cap
            found = compiled(solver)(*jax.tree.unflatten(tree, leaves))
            assert not bool(found.certificate.converged)
            assert int(found.certificate.iterations) < 250


@pytest.mark.parametrize(("solver", "kind"), UNITS)
@pytest.mark.parametrize("field", ["valuations", "wealth", "holdings", "prices"])
def test_nan_is_an_error_outside_of_compiled_programs(solver, kind, field):
    valuations, wealth, holdings = market(0, Linear if kind is Additive else kind)
    if kind is Additive:
        valuations = Additive(valuations.values)
    given = {"valuations": valuations, "wealth": wealth, "holdings": holdings, "prices": jnp.ones(GOODS)}
    leaves, tree = jax.tree.flatten(given[field])
    leaves[-1] = leaves[-1].at[(1,) * leaves[-1].ndim].set(jnp.nan)
    given[field] = jax.tree.unflatten(tree, leaves)
    if kind is Additive and field in ("valuations", "wealth"):
        assert jnp.isfinite(solver(**given).bundles).all(), "excluded from the auctions"
        return
    with pytest.raises(ValueError, match=f"^{field}:"):
        solver(**given)
    with pytest.raises(ValueError, match=f"^{field}:"):  # values of closures are known inside jit
        jax.jit(lambda: solver(**given))()
    if isinstance(solver, Tatonnement):
        with pytest.raises(ValueError, match=f"^{field}:"):
            solver.trajectory(**given)


@pytest.mark.parametrize(("solver", "kind"), [UNITS[0], UNITS[4]])
def test_first_prices_are_one_for_each_good(solver, kind):
    for wrong in (jnp.ones(GOODS + 1), jnp.ones((1, GOODS)), jnp.ones(GOODS, jnp.float16), [1.0] * GOODS):
        with pytest.raises(ValueError, match=r"^prices:"):
            solver(*market(0, kind), prices=wrong)


def test_a_bidder_whose_wealth_is_not_a_number_does_not_bid():
    found = sold([[3.0], [5.0], [2.0]], wealth=[10, np.nan, 10])
    np.testing.assert_array_equal(found.bundles, [[1], [0], [0]])
    assert float(found.prices[0]) == 2
    np.testing.assert_array_equal(sold([[3.0], [np.nan], [np.inf]]).bundles[:, 0], [1, 0, 0])


# --- demand


@pytest.mark.parametrize("kind", [Quadratic, Logarithmic])
@pytest.mark.parametrize("wealth", [0.1, 0.6, 50.0])
def test_capped_demand_is_what_a_general_optimiser_finds(kind, wealth):
    demand = jax.jit(capped_demand)
    for seed in range(5):
        valuations, _, _ = market(seed, kind)
        one = jax.tree.map(lambda leaf: leaf[0], valuations)
        prices = np.random.default_rng(seed).uniform(0.1, 1, GOODS)

        def loss(x, valuations=valuations, prices=prices):
            return -(worth(valuations, 0, x) - prices @ x)

        def room(x, valuations=valuations):
            return wealth - worth(valuations, 0, x)

        # Beyond the cap nothing is gained, so the optimum of the capped valuation is one with v(x) <= w.
        theirs = optimize.minimize(
            loss,
            np.full(GOODS, 0.01),
            bounds=[(0, None)] * GOODS,
            constraints=[{"type": "ineq", "fun": room}],
            options={"ftol": 1e-12, "maxiter": 500},
        )
        ours = np.asarray(demand(one, jnp.asarray(wealth), jnp.asarray(prices)), float)
        assert -loss(ours) >= -theirs.fun - 1e-5
        np.testing.assert_allclose(ours, theirs.x, atol=2e-3)
        assert worth(valuations, 0, ours) <= wealth * (1 + 1e-5)


class Searched(struct.PyTreeNode):
    """A user-defined valuation: one of the library's without its closed form."""

    inner: Quadratic | Logarithmic

    def value(self, bundle):
        return self.inner.value(bundle)

    def demand(self, prices, scale):
        return self.inner.demand(prices, scale)


@pytest.mark.parametrize("kind", [Quadratic, Logarithmic])
def test_closed_forms_of_capped_demand_are_what_a_search_finds(kind):
    """Demand and its derivatives, in double precision: some caps bind, and some goods are nearly or entirely free."""
    with jax.enable_x64(True):
        valuations, wealth, _ = market(0, kind, 1.0, agents=40)
        wealth = wealth.at[:8].multiply(1e-6).at[0].set(0).at[1].set(jnp.inf)
        demands = jax.jit(all_demands)
        slopes = jax.jit(jax.jacobian(all_demands, argnums=(1, 2)))
        for prices in ([0.5, 0.3, 0.8, 1.1], [1e-9, 1e-4, 0.5, 3.0], [0.0, 0.0, 0.2, 0.1], [1e-9, 1e-9, 2e-9, 1e-8]):
            arguments = wealth, jnp.asarray(prices)
            ours, theirs = demands(valuations, *arguments), demands(Searched(valuations), *arguments)
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)
            if min(prices) > 0:
                ours, theirs = slopes(valuations, *arguments), slopes(Searched(valuations), *arguments)
                for one, other in zip(ours, theirs, strict=True):
                    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 * float(jnp.abs(other).max()))
        assert 0.2 < float((capped_values(valuations, wealth, demands(valuations, *arguments)) >= wealth).mean()) < 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Quadratic, Logarithmic])
def test_the_hessian_of_the_dual_is_the_jacobian_of_demand(kind):
    with jax.enable_x64(True):
        valuations, wealth, _ = market(1, kind, 1.0, agents=20)
        for seed in range(3):
            prices = jnp.asarray(np.random.default_rng(seed).uniform(0.05, 1, GOODS))
            demands, matrix = jax.jit(linearised_demands)(valuations, wealth, prices)
            np.testing.assert_allclose(demands, all_demands(valuations, wealth, prices), rtol=1e-12)
            jacobian = jax.jit(jax.jacobian(lambda p: all_demands(valuations, wealth, p).sum(0)))(prices)
            np.testing.assert_allclose(matrix, -prices[:, None] * jacobian * prices, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", [Quadratic, slow(pytest.param(Logarithmic, id="logarithmic"))])
def test_user_defined_valuations_have_the_same_equilibrium(kind):
    """A class without a closed form takes other methods: a search for the cap's scale, and L-BFGS."""
    for seed in range(2):
        valuations, wealth, holdings = market(seed, kind, 2.0)
        ours = compiled(ConvexProgram())(valuations, wealth, holdings)
        theirs = compiled(ConvexProgram())(Searched(valuations), wealth, holdings)
        assert bool(ours.certificate.converged)
        assert bool(theirs.certificate.converged)
        assert int(ours.certificate.iterations) < int(theirs.certificate.iterations)
        np.testing.assert_allclose(ours.prices, theirs.prices, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "kind"), TWO + REST)
def test_a_warm_start_reaches_the_same_equilibrium(solver, kind):
    """From the prices of the equilibrium, from others, and from unknown ones, which are negative."""
    valuations, wealth, holdings = market(4, kind)  # no good is free: bundles of free goods are not unique
    cold = compiled(solver)(valuations, wealth, holdings)
    warm = jax.jit(lambda prices, *of: solver(*of, prices=prices))
    factors = np.random.default_rng(1).uniform(0.3, 3, GOODS).astype(np.float32)
    near = warm(cold.prices, valuations, wealth, holdings)
    assert int(near.certificate.iterations) < int(cold.certificate.iterations) / 2
    unknown = warm(jnp.full(GOODS, -1.0), valuations, wealth, holdings)
    assert int(unknown.certificate.iterations) == int(cold.certificate.iterations)
    for found in (near, unknown, warm(cold.prices * factors, valuations, wealth, holdings)):
        assert bool(found.certificate.converged)
        np.testing.assert_allclose(found.prices, cold.prices, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.bundles, cold.bundles, rtol=2e-3, atol=1e-3)


def test_cap_differs_from_budget():
    """v = 10 x, w = 5, p = 5.5: the capped optimum is .5, a budget would allow .909."""
    valuations, wealth, prices = Linear(jnp.array([[10.0]])), jnp.array([5.0]), jnp.array([5.5])

    def gain(quantity):
        return float(best_response_gain(valuations, wealth, prices, jnp.array([[quantity]]))[0])

    assert gain(0.5) == pytest.approx(0, abs=1e-6)
    assert float(best_response_gain(valuations, wealth, prices, jnp.array([[0.909]]))[0]) == pytest.approx(
        2.25, abs=1e-2
    )
    assert gain(0.0) == pytest.approx(2.25, abs=1e-6)


# --- other people's solvers


def program(valuations, wealth, holdings):
    """max Σ t, t_i <= w_i, t_i <= v_i(x_i), Σ x = Σ h by CVXPY: welfare and prices."""
    n, g = holdings.shape
    x, t = cp.Variable((n, g), nonneg=True), cp.Variable(n)
    value = []
    v = jax.tree.map(lambda leaf: np.asarray(leaf, float), valuations)
    for i in range(n):
        if isinstance(valuations, Linear):
            value.append(v.values[i] @ x[i])
        elif isinstance(valuations, Logarithmic):
            value.append(v.weight[i] @ cp.log1p(cp.multiply(1 / v.size[i], x[i])))
        else:
            # Up to the peak: what is beyond is thrown away.
            used = cp.minimum(x[i], v.slope[i] / v.curvature[i])
            value.append(
                v.slope[i] @ x[i] - v.curvature[i] / 2 @ cp.square(x[i])
                if False
                else cp.sum(
                    cp.multiply(v.slope[i] ** 2 / v.curvature[i] / 2, np.ones(g))
                    - cp.multiply(v.curvature[i] / 2, cp.square(cp.pos(v.slope[i] / v.curvature[i] - used)))
                )
            )
    clearing = cp.sum(x, axis=0) <= np.asarray(holdings, float).sum(0)
    problem = cp.Problem(cp.Maximize(cp.sum(t)), [clearing, t <= np.asarray(wealth, float), t <= cp.hstack(value)])
    problem.solve(solver=cp.CLARABEL)
    return problem.value, clearing.dual_value


@pytest.mark.parametrize(("solver", "kind"), CAPPED)
def test_welfare_and_prices_are_cvxpys(solver, kind):
    for seed, tight in [(0, 0.7), (1, 2.0), (2, 20.0)]:
        valuations, wealth, holdings = market(seed, kind, tight)
        found = compiled(solver)(valuations, wealth, holdings)
        welfare, prices = program(valuations, wealth, holdings)
        ours = float(capped_values(valuations, wealth, found.bundles).sum())
        assert ours == pytest.approx(welfare, rel=1e-3 if kind is Linear else 1e-4)
        if kind is not Linear:  # whose prices are not unique
            np.testing.assert_allclose(found.prices, prices, atol=2e-3 * max(0.1, prices.max()))


def fisher(valuations, wealth, holdings, quasilinear):
    """Eisenberg and Gale's program, and its quasilinear form (Cole et al. 2017), by CVXPY: prices, and utilities."""
    v, w = np.asarray(valuations.values, float), np.asarray(wealth, float)
    x, money = cp.Variable(v.shape, nonneg=True), cp.Variable(len(w), nonneg=True)
    utility = cp.sum(cp.multiply(v, x), axis=1) + (money if quasilinear else 0)
    clearing = cp.sum(x, axis=0) <= np.asarray(holdings, float).sum(0)
    problem = cp.Problem(cp.Maximize(w @ cp.log(utility) - (cp.sum(money) if quasilinear else 0)), [clearing])
    problem.solve(solver=cp.CLARABEL)
    return clearing.dual_value, utility.value


@pytest.mark.parametrize("quasilinear", [False, True])
def test_proportional_response_finds_eisenbergs_and_gales_market(quasilinear):
    solver = ProportionalResponse(quasilinear=quasilinear, gap_tolerance=1e-5)
    for seed, tight in [(0, 0.3), (1, 1.0), (2, 10.0)]:
        valuations, wealth, holdings = market(seed, Linear, tight)
        found = compiled(solver)(valuations, wealth, holdings)
        assert bool(found.certificate.converged)
        prices, utilities = fisher(valuations, wealth, holdings, quasilinear)
        np.testing.assert_allclose(found.prices, prices, rtol=2e-2, atol=1e-3 * prices.max())
        spent = found.bundles @ found.prices
        money = wealth - spent if quasilinear else 0
        np.testing.assert_allclose((valuations.values * found.bundles).sum(1) + money, utilities, rtol=2e-2, atol=1e-4)
        assert (np.asarray(spent) <= np.asarray(wealth) * (1 + 1e-5)).all()
        if not quasilinear:
            np.testing.assert_allclose(spent, wealth, rtol=1e-4)
        np.testing.assert_allclose(found.bundles.sum(0), holdings.sum(0), rtol=1e-5)


def test_proportional_response_by_hand():
    """Two agents, each fond of one good, a Fisher market: each buys it all, and its price is that agent's budget."""
    valuations = Linear(jnp.array([[1.0, 0.0], [0.0, 2.0]]))
    found = ProportionalResponse(quasilinear=False)(
        valuations, jnp.array([3.0, 5.0]), jnp.array([[1.0, 1.0], [1.0, 0.0]])
    )
    np.testing.assert_allclose(found.prices, [1.5, 5.0], rtol=1e-5)
    np.testing.assert_allclose(found.bundles, [[2, 0], [0, 1]], atol=1e-5)
    # If money has value (quasilinear), no agent pays more than the value of a good.
    found = ProportionalResponse()(valuations, jnp.array([3.0, 5.0]), jnp.array([[1.0, 1.0], [1.0, 0.0]]))
    np.testing.assert_allclose(found.prices, [1.0, 2.0], rtol=1e-2)


# --- derivatives


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "kind"), [TWO[0], slow(TWO[1]), *REST])
def test_derivatives_are_those_of_the_equilibrium(solver, kind):
    """Against central differences, in double precision; some wealth binds and some does not."""
    with jax.enable_x64(True):
        exact = type(solver)(tolerance=1e-11, max_iterations=2000)
        valuations, wealth, holdings = market(4, kind)  # no good is free: bundles of free goods are not unique
        assert wealth.dtype == jnp.float64
        weights = jnp.asarray(np.random.default_rng(0).random((AGENTS, GOODS)))

        def outcome(wealth, holdings, valuations):
            found = exact(valuations, wealth, holdings)
            return jnp.sum(weights * found.bundles) + found.prices @ weights[0], found.bundles

        arguments = wealth, holdings, valuations
        both = jax.jit(jax.value_and_grad(outcome, (0, 1, 2), has_aux=True))
        (_, bundles), slopes = both(*arguments)
        binds = np.asarray(capped(valuations, wealth, bundles)) > np.asarray(wealth) * (1 - 1e-9)
        assert 0 < binds.sum() < AGENTS, "a test in which no cap binds, or every one, shows half of it"
        rng = np.random.default_rng(2)
        for _ in range(3):
            way = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), arguments)
            inner = sum(
                float((a * b).sum()) for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(way), strict=True)
            )
            ahead = both(*jax.tree.map(lambda a, b: a + 1e-5 * b, arguments, way))[0][0]
            back = both(*jax.tree.map(lambda a, b: a - 1e-5 * b, arguments, way))[0][0]
            assert inner == pytest.approx(float(ahead - back) / 2e-5, rel=1e-3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "kind"), TWO + REST)
def test_derivative_of_welfare_by_supply_is_the_price(solver, kind):
    """The envelope theorem: d welfare / d supply = p, also where goods are free."""

    def welfare(holdings, valuations, wealth):
        return capped_values(valuations, wealth, solver(valuations, wealth, holdings).bundles).sum()

    slope = jax.jit(jax.grad(welfare))
    for seed in range(4):
        valuations, wealth, holdings = market(seed, kind)
        prices = compiled(solver)(valuations, wealth, holdings).prices
        np.testing.assert_allclose(
            slope(holdings, valuations, wealth), jnp.broadcast_to(prices, holdings.shape), rtol=2e-2, atol=5e-3
        )


@pytest.mark.parametrize(("solver", "kind"), [TWO[0], slow(TWO[1]), *REST])
def test_derivatives_exist_where_hardly_anything_is_traded(solver, kind):
    """Derivatives are finite with an absent good, a scarce good, agents without money, or an empty market."""

    def outcome(wealth, holdings, valuations):
        found = solver(valuations, wealth, holdings)
        return (found.bundles * jnp.arange(GOODS)).sum() + found.prices.sum()

    slopes = jax.jit(jax.grad(outcome, (0, 1, 2)))
    valuations, wealth, holdings = market(4, kind)
    for w, h in [
        (wealth, holdings.at[:, 0].set(0)),
        (wealth, holdings.at[:, 0].multiply(1e-6)),
        (wealth.at[::2].set(0), holdings),
        (0 * wealth, holdings),
        (1e-6 * wealth, holdings),
        (wealth, 0 * holdings),
    ]:
        for leaf in jax.tree.leaves(slopes(w, h, valuations)):
            assert np.isfinite(leaf).all()


def test_derivatives_do_not_depend_on_units():
    """The price of each good by the supply of each, with goods counted in units a million times as small or large."""
    unit = jnp.asarray([1e-3, 1.0, 1e3, 1e6])
    valuations, wealth, holdings = market(4, Quadratic)

    def prices(more, valuations, wealth, holdings):
        return Tatonnement()(valuations, wealth, holdings.at[0].add(more)).prices

    slope = jax.jit(jax.jacobian(prices))
    plain = slope(jnp.zeros(GOODS), valuations, wealth, holdings)
    other = slope(jnp.zeros(GOODS), *in_units(valuations, wealth, holdings, 1.0, unit))
    np.testing.assert_allclose(other * unit[:, None] * unit, plain, rtol=1e-2, atol=1e-2 * float(jnp.abs(plain).max()))


# --- batches and types


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "kind"),
    [
        CAPPED[0],
        slow(CAPPED[3]),  # much of it is in the linear case
        *REST,
        CAPPED[4],
        pytest.param(ProportionalResponse(), Linear, id="response"),
    ],
)
def test_many_markets_at_once(solver, kind):
    markets = [market(seed, kind, 2.0) for seed in range(3)]
    together = jax.jit(jax.vmap(solver))(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *markets))
    for index, one in enumerate(markets):
        alone = compiled(solver)(*one)
        # Within the certified gap, prices are not unique: jax 0.8 rounds the two programs differently.
        np.testing.assert_allclose(together.prices[index], alone.prices, rtol=1e-3, atol=2e-3)
        assert together.certificate.iterations.dtype == jnp.int32


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "kind"), TWO)
def test_the_result_of_a_market_does_not_depend_on_its_neighbours(solver, kind):
    """Bit for bit, whether its neighbours take fewer or more iterations, or never converge."""
    one = market(0, kind, 2.0)
    poor, bad = market(3, kind, 0.05), jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), market(1, kind))
    together = jax.jit(jax.vmap(solver))
    here, there = (
        jax.tree.map(lambda leaf: leaf[1], together(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *markets)))
        for markets in ([poor, one, bad], [one, one, one])
    )
    jax.tree.map(np.testing.assert_array_equal, here, there)
    assert bool(here.certificate.converged)


def test_double_precision_throughout():
    with jax.enable_x64(True):
        for solver, kind in [(Tatonnement(), Quadratic), (ConvexProgram(), Linear), (ProportionalResponse(), Linear)]:
            shapes = jax.eval_shape(solver, *market(0, kind))
            assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"float64", "int32", "bool"}


# --- sealed bids


def sold(bids, wealth=None, holdings=None, mechanism=CREDIT_CONSERVING_VICKREY, **settings):
    bids = jnp.asarray(bids, jnp.float32)
    wealth = jnp.full(bids.shape[0], 100.0) if wealth is None else jnp.asarray(wealth, jnp.float32)
    holdings = jnp.zeros(bids.shape).at[0].set(1) if holdings is None else jnp.asarray(holdings, jnp.float32)
    key = settings.pop("key", None)
    return SealedBids(mechanism, **settings)(Additive(bids), wealth, holdings, key=key)


def test_one_auction_for_each_good():
    found = sold([[3, 1, -np.inf], [2, 5, -np.inf], [1, 4, -np.inf]])
    np.testing.assert_array_equal(found.prices, [2, 4, 0])
    np.testing.assert_array_equal(
        found.bundles, [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    )  # no agent bids for the last good: it stays
    assert float(found.certificate.duality_gap) == 0
    assert bool(found.certificate.converged)


def test_mechanisms_price_and_payout():
    bids = [[3.0], [2.0]]
    for mechanism, price, payout in ((BUCKET_BRIGADE, 3, 3), (VICKREY, 2, 3), (CREDIT_CONSERVING_VICKREY, 2, 2)):
        found = sold(bids, mechanism=mechanism)
        assert (float(found.prices[0]), float(found.payout[0])) == (price, payout)


def test_bids_are_scaled_down_to_the_budget():
    """Wealth 3 and bids 2, 4 for what is there: they become 1 and 2. The third good is not for sale and is quoted."""
    found = sold([[2, 4, 9], [0.5, 1.5, 1]], wealth=[3, 100], holdings=[[1, 1, 0], [0, 0, 0]], mechanism=BUCKET_BRIGADE)
    np.testing.assert_allclose(found.prices, [1, 2, 3], rtol=1e-6)
    np.testing.assert_array_equal(found.bundles, [[1, 1, 0], [0, 0, 0]])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), exploration=st.sampled_from([None, 0.5]))
def test_sealed_bids_never_overspend_and_clear(seed, exploration):
    rng = np.random.default_rng(seed)
    bids = rng.random((5, 3)) * 4
    bids[rng.random(bids.shape) < 0.2] = -np.inf
    wealth = jnp.asarray(rng.exponential(1.0, 5), jnp.float32)
    holdings = jnp.asarray(np.eye(5)[rng.integers(0, 5, 3)].T, jnp.float32)
    solver = compiled(SealedBids(CREDIT_CONSERVING_VICKREY, exploration))
    found = solver(Additive(jnp.asarray(bids, jnp.float32)), wealth, holdings, key=jax.random.key(seed % 1000))
    np.testing.assert_array_equal(found.bundles.sum(0), 1)
    assert set(np.unique(found.bundles)) <= {0, 1}
    bought = found.bundles * ~((found.bundles == holdings) & ~np.isfinite(bids))
    assert (np.asarray(bought @ found.prices) <= np.asarray(wealth) * (1 + 1e-6)).all()
    if exploration is None:
        # Walrasian by the bids made: no set of goods would have been better for anyone.
        shrunk = np.where(np.isfinite(bids), bids, 0)
        shrunk *= np.minimum(1, np.asarray(wealth) / np.maximum(shrunk.sum(1), 1e-9))[:, None]
        gain = np.where(np.isfinite(bids), shrunk - np.asarray(found.prices), 0)
        assert (np.where(np.asarray(found.bundles) > 0, gain, 0).sum(1) >= np.maximum(gain, 0).sum(1) - 1e-5).all()


def test_exploration_changes_winners_and_the_certificate():
    keys = jax.random.split(jax.random.key(0), 400)
    found = jax.jit(jax.vmap(lambda key: sold([[3.0], [1.0], [2.0]], key=key, exploration=0.3)))(keys)
    winners = np.asarray(found.bundles).argmax(1)[:, 0]
    np.testing.assert_allclose(np.bincount(winners, minlength=3) / 400, [0.8, 0.1, 0.1], atol=0.06)
    # The explorer pays the highest of the other bids, 3, for what it thinks is worth 1 or 2.
    assert (np.asarray(found.prices)[winners != 0, 0] == 3).all()
    assert (np.asarray(found.certificate.duality_gap)[winners != 0] > 0.3).all()
    assert (np.asarray(found.certificate.duality_gap)[winners == 0] == 0).all()


def test_exploration_charges_at_most_the_budget():
    keys = jax.random.split(jax.random.key(1), 200)
    found = jax.jit(jax.vmap(lambda key: sold([[3.0], [1.0]], wealth=[9, 1.5], key=key, exploration=1.0)))(keys)
    explored = np.asarray(found.bundles)[:, 1, 0] == 1
    assert 0 < explored.sum() < 200
    np.testing.assert_array_equal(np.asarray(found.prices)[explored, 0], 1.5)


def test_custom_mechanism():
    half = Mechanism("half", price=lambda o: o.winning_bid / 2, payout=lambda o: o.winning_bid / 2)
    assert float(sold([[3.0], [2.0]], mechanism=half).prices[0]) == 1.5
    assert float(sold([[3.0], [2.0]], mechanism=half).certificate.duality_gap) > 0, (
        "below the second bid others would buy"
    )


# --- refusals


def test_refusals():
    quadratic, wealth, holdings = market(0, Quadratic)
    linear, additive = market(0, Linear)[0], Additive(quadratic.slope)
    for solver, valuations, words in (
        (Tatonnement(), linear, "^valuations: .*strictly concave .*Linear"),
        (Tatonnement(), additive, "^valuations: .*Additive"),
        (ConvexProgram(), additive, "^valuations: .*Additive"),
        (ProportionalResponse(), quadratic, "^valuations: .*Linear.*Quadratic"),
        (SealedBids(), quadratic, "^valuations: .*Additive.*Quadratic"),
        (SealedBids(), linear, "^valuations: .*Linear"),
    ):
        with pytest.raises(ValueError, match=words):
            solver(valuations, wealth, holdings)
    with pytest.raises(ValueError, match="holdings: expected"):
        Tatonnement()(quadratic, wealth[:-1], holdings)
    with pytest.raises(ValueError, match=r"^key: .*0\.5"):
        SealedBids(exploration=0.5)(additive, wealth, holdings)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Quadratic, Logarithmic, Linear])
def test_many_agents_in_many_markets(kind):
    """40 markets of 1,024 agents with shared valuations, for which XLA on CPUs computes some expressions wrongly."""
    rng = np.random.default_rng(0)
    valuations, _, _ = market(0, kind, agents=1024, goods=3)
    wealth = jnp.asarray(rng.exponential(0.5, (40, 1024)), jnp.float32)
    prices = jnp.asarray(rng.uniform(0.3, 0.5, (40, 3)), jnp.float32)
    bundles = jnp.asarray(rng.random((40, 1024, 3)), jnp.float32)
    some = jnp.arange(28, 40)

    def everything(valuations, wealth, prices, bundles):
        gains = best_response_gain(valuations, wealth, prices, bundles)
        strict = valuations
        if kind is Linear:  # what the sequence of markets is made of
            strict = Proximal(valuations.values, valuations.values / 2, valuations.values + 1)
        demands = jax.vmap(capped_demand, (0, 0, None))(strict, wealth, prices)
        return gains, demands, capped_values(valuations, wealth, bundles)

    batched = jax.jit(jax.vmap(everything, (None, 0, 0, 0)))
    for whole, part in zip(
        batched(valuations, wealth, prices, bundles),
        batched(valuations, wealth[some], prices[some], bundles[some]),
        strict=True,
    ):
        np.testing.assert_allclose(whole[some], part, rtol=1e-4, atol=1e-5)

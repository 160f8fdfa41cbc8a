"""Equilibria of a wide market: the solver protocol, certificates, rationing, and numerics that the solvers share.

A wide market (Sudhir and Tran-Thanh 2025, Definition 2.2) asks a solver for prices p [G] and bundles X [N, G] of the
goods that its agents hold. Every solver takes valuations (leaves [N, ...]), wealth f [N] and holdings f [N, G], and
returns an `Equilibrium` with an `EquilibriumCertificate`. There is one module for each solver:

- `jaxmarket.wide_market.tatonnement`: strictly concave valuations, by price adjustment.
- `jaxmarket.wide_market.convex_program`: strictly concave and linear valuations, by minimising the dual of welfare.
- `jaxmarket.wide_market.proportional_response`: linear valuations of agents with budgets (Fisher markets).
- `jaxmarket.wide_market.sealed_bids`: additive valuations of indivisible goods, by one auction for each good.

The first two compute Walrasian equilibria with valuations capped by wealth: every agent gets a bundle that maximises
min(v_i(x), w_i) - p · x. Such a bundle never costs more than w_i, because buying nothing has value 0. If a solver stops
before it reaches an equilibrium, its demands are rationed: buyers share excess demand in proportion, and unsold
goods stay with their owners. Goods and money are therefore conserved and no agent overspends for any solver
result; only optimality suffers, and the certificate quantifies by how much.

Results do not depend on the unit of money or of any good. Iterative solvers stop early when they make no more
progress. Inputs must be finite. NaN raises a ``ValueError``, unless the array is traced: then, and if wealth, holdings
or a valuation contain infinity, the certificate has ``converged`` False, and prices or bundles may be NaN. There are
two exceptions: infinite wealth means no cap with strictly concave valuations, and `SealedBids` excludes bids that are
not finite and bidders whose wealth is NaN.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Bool, Float, Int32, Num

from jaxmarket.switches import one_at_a_time
from jaxmarket.types import Array, PyTree
from jaxmarket.validation import check_no_nan, short_repr
from jaxmarket.wide_market.valuations import Linear, Separable, StrictlyConcave

__all__ = [
    "Equilibrium",
    "EquilibriumCertificate",
    "EquilibriumSolver",
    "best_response_gain",
    "capped_demand",
    "capped_values",
    "ration",
]

MIN_TOLERANCE = 1e-30
"""Replaces a tolerance of 0 in divisions."""


class EquilibriumCertificate(struct.PyTreeNode):
    """The distance from an equilibrium: 0 everywhere in an exact equilibrium.

    Two scales keep it meaningful in markets with little trade. Excess demand is relative to the supply of a good, or to
    the effect of rounding errors of prices on demand if that is larger. The duality gap is relative to welfare, or to
    the rounding error of the money at stake if that is larger. A market without demand or without money has an
    equilibrium at prices of 0, with a duality gap of 0.
    """

    excess_demand: Float[Array, ""]  # largest excess demand of a good over its supply, at the quoted prices
    complementary_slackness: Float[Array, ""]  # value of the goods in excess supply over the value of the supply
    duality_gap: Float[Array, ""]  # sum of `best_response_gain` over welfare
    iterations: Int32[Array, ""]
    converged: Bool[Array, ""]  # excess demand and duality gap within the tolerances; False if one of them is NaN


class Equilibrium(struct.PyTreeNode):
    """Prices and bundles that a solver found."""

    prices: Float[Array, " G"]  # what buyers pay for a unit
    payout: Float[Array, " G"]  # what owners receive for a unit; equal to prices, except for auctions that mint money
    bundles: Float[Array, "N G"]  # what agents own afterwards
    certificate: EquilibriumCertificate


class EquilibriumSolver(Protocol):
    """A function that finds prices and bundles."""

    def __call__(
        self,
        valuations: PyTree,
        wealth: Float[Array, " N"],
        holdings: Float[Array, "N G"],
        *,
        key: Array | None = None,
        prices: Float[Array, " G"] | None = None,
    ) -> Equilibrium:
        """Solve one market.

        Args:
            valuations: of all agents, leaves [N, ...].
            wealth: finite; negative wealth counts as 0.
            holdings: finite and not negative.
            key: a PRNG key, for solvers that use randomness.
            prices: initial prices, for example of the last round; computed from the valuations by default, and for
                goods whose price is negative. The equilibrium does not depend on them, within the tolerances.

        Raises:
            ValueError: the solver does not support these valuations, shapes do not match, or an array has NaN.
        """
        ...


class PriceSearch(NamedTuple):
    """The market as an iterative solver sees it."""

    demands: Callable[[Float[Array, " G"]], Float[Array, "N G"]]  # of prices
    welfare: Callable[[Float[Array, "N G"]], Float[Array, ""]]  # of bundles
    supply: Float[Array, " G"]
    units: Float[Array, " G"]  # unit in which excess demand is measured
    typical_prices: Float[Array, " G"]  # prices that do not count as small
    linearised: Callable[[Float[Array, " G"]], tuple[Float[Array, "N G"], Float[Array, "G G"]]] | None = None


def capped_values(valuations: PyTree, wealth: Float[Array, " N"], bundles: Float[Array, "N G"]) -> Float[Array, " N"]:
    """min(v_i(X_i), w_i)."""
    values = jax.vmap(lambda valuation, bundle: valuation.value(bundle))(valuations, bundles)
    return jnp.minimum(values, jnp.maximum(wealth, 0))


_BISECTIONS = 27
_MIN_LOG_SCALE = -40.0
"""log λ of the poorest agents: the square of e⁻⁴⁰, which derivatives need, does not underflow in single precision."""


def capped_demand(
    valuation: StrictlyConcave, wealth: Float[Array, ""], prices: Float[Array, " G"]
) -> Float[Array, " G"]:
    """The bundle of one agent that maximises min(v(x), w) - p · x.

    If the cap does not bind, this is the demand itself. If it binds, this is the cheapest bundle with value w: the
    demand of an agent for whom money matters 1 / λ times as much, with the λ at which v(x) = w. A valuation that has
    a method ``cap_scale`` (`jaxmarket.wide_market.valuations.Separable`) computes λ; for others a bisection does.

    Args:
        valuation: strictly concave; leaves of one agent.
        wealth: w.
        prices: p, not negative.
    """
    return jnp.where(wealth > 0, valuation.demand(prices, _cap_scale(prices, valuation, wealth)), 0)


def _surplus(scale: Array, prices: Array, valuation: StrictlyConcave, wealth: Array) -> Array:
    return valuation.value(valuation.demand(prices, scale)) - wealth


@jax.custom_jvp
def _cap_scale(prices: Array, valuation: StrictlyConcave, wealth: Array) -> Array:
    """λ in [e⁻⁴⁰, 1]: 1 where the cap does not bind, otherwise the λ at which v(x) = w."""
    one = jnp.ones((), prices.dtype)
    least = jnp.exp(_MIN_LOG_SCALE * one)
    if isinstance(valuation, Separable):
        found = jnp.clip(valuation.cap_scale(prices, wealth), least, one)
        binds, low, high = found < 1, jnp.maximum(found * 0.999, least), jnp.minimum(found * 1.001, one)
    else:

        def bisect(_: int, interval: tuple[Array, Array]) -> tuple[Array, Array]:
            middle = (interval[0] + interval[1]) / 2
            over = _surplus(jnp.exp(middle), prices, valuation, wealth) > 0
            return jnp.where(over, interval[0], middle), jnp.where(over, middle, interval[1])

        # λ spans orders of magnitude if goods are nearly free, so the bisection is over its logarithm.
        low, high = jnp.exp(jnp.stack(jax.lax.fori_loop(0, _BISECTIONS, bisect, (_MIN_LOG_SCALE * one, 0 * one))))
        found, binds = low, _surplus(one, prices, valuation, wealth) > 0
    # A Newton step improves the last digits. It must stay inside the interval (at a kink of v it would not).
    excess, slope = jax.jvp(lambda s: _surplus(s, prices, valuation, wealth), (found,), (one,))
    step = jnp.where(slope > 0, excess / jnp.where(slope > 0, slope, 1), 0)
    return jnp.where(binds, jnp.clip(found - step, low, high), 1)


@_cap_scale.defjvp
def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    """The derivative of λ by the implicit function theorem: v(x) stays equal to w."""
    scale = _cap_scale(*primals)
    change = jax.jvp(lambda *arguments: _surplus(scale, *arguments), primals, tangents)[1]
    slope = jax.jvp(lambda s: _surplus(s, *primals), (scale,), (jnp.ones_like(scale),))[1]
    moves = (scale < 1) & (scale > jnp.exp(_MIN_LOG_SCALE * jnp.ones_like(scale))) & (slope > 0)
    return scale, jnp.where(moves, -change / jnp.where(moves, slope, 1), 0)


def all_demands(valuations: PyTree, wealth: Float[Array, " N"], prices: Float[Array, " G"]) -> Float[Array, "N G"]:
    """`capped_demand` of every agent."""
    return jax.vmap(capped_demand, (0, 0, None))(valuations, wealth, prices)


def linearised_demands(
    valuations: Separable, wealth: Float[Array, " N"], prices: Float[Array, " G"]
) -> tuple[Float[Array, "N G"], Float[Array, "G G"]]:
    """`all_demands` of separable valuations, and how they fall with prices.

    Entry j, k of the matrix is -p_j ∂D_j / ∂log p_k, with the total demand D. This is the Hessian of the dual of
    welfare, with both prices relative: symmetric and positive semidefinite.
    """

    def one(valuation: Separable, wealth: Array) -> tuple[Array, Array, Array]:
        scale = _cap_scale(prices, valuation, wealth)
        demand, change = jax.jvp(lambda p: valuation.demand(p, scale), (prices,), (prices,))
        return jnp.where(wealth > 0, demand, 0), jnp.where(wealth > 0, -prices * change, 0), scale < 1

    demands, falls, binds = jax.vmap(one)(valuations, wealth)
    # Demand depends on p / λ. Where the cap binds, the log of λ changes by the mean change of log prices, weighted by
    # ``falls``, so that the value of the bundle stays the same.
    totals = falls.sum(1)
    shared = jnp.where(binds & (totals > 0), 1 / jnp.where(totals > 0, totals, 1), 0)
    return demands, jnp.diag(falls.sum(0)) - (falls * shared[:, None]).T @ falls


def fill_rate(available: Float[Array, " *shape"], requested: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
    """The fraction of a request that can be met, min(1, available / requested). Arguments are not negative."""
    return jnp.where(requested > available, available / jnp.where(requested > 0, requested, 1), 1)


def ration(demands: Float[Array, "N G"], holdings: Float[Array, "N G"]) -> Float[Array, "N G"]:
    """Bundles that add up to the supply.

    Where demand exceeds supply, every agent gets the same fraction of its demand. Where supply exceeds demand, owners
    keep the unsold goods, in proportion to what they hold.

    Args:
        demands: not negative.
        holdings: not negative.
    """
    supply, demand = holdings.sum(0), demands.sum(0)
    bought = demands * fill_rate(supply, demand)
    unsold = jnp.maximum(supply - demand, 0)
    return bought + holdings * (unsold / jnp.where(supply > 0, supply, 1))


def best_response_gain(
    valuations: PyTree, wealth: Float[Array, " N"], prices: Float[Array, " G"], bundles: Float[Array, "N G"]
) -> Float[Array, " N"]:
    """How much each agent would gain by its best bundle at these prices, measured by min(v, w) - p · x.

    Not negative, except for rounding. If bundles add up to the supply, the sum is the duality gap of max Σ min(v, w).

    Args:
        valuations: strictly concave or linear, leaves [N, ...].
        wealth: of all agents.
        prices: of a unit of each good.
        bundles: what agents own.
    """
    if isinstance(valuations, Linear):
        # A capped linear agent spends on the goods with the most value for money, up to the value w, or buys nothing.
        tiny = jnp.finfo(prices.dtype).tiny
        value_for_money = jnp.maximum(valuations.values, tiny) / jnp.maximum(prices, tiny)
        best = jnp.maximum(0, 1 - 1 / value_for_money.max(1)) * jnp.maximum(wealth, 0)
    else:
        demands = all_demands(valuations, wealth, prices)
        best = capped_values(valuations, wealth, demands) - demands @ prices
    return best - (capped_values(valuations, wealth, bundles) - bundles @ prices)


def certify(
    demands: Float[Array, "N G"],
    holdings: Float[Array, "N G"],
    units: Float[Array, " G"],
    prices: Float[Array, " G"],
    duality_gap: Float[Array, ""],
    iterations: Num[Array, ""],
    tolerances: tuple[float, float],
) -> EquilibriumCertificate:
    """The certificate of these demands at these prices, with excess demand in ``units``."""
    supply, demand = holdings.sum(0), demands.sum(0)
    tiny = jnp.finfo(prices.dtype).tiny
    excess_demand = jnp.max(jnp.maximum(demand - supply, 0) / units)
    return EquilibriumCertificate(
        excess_demand=excess_demand,
        complementary_slackness=prices @ jnp.maximum(supply - demand, 0) / jnp.maximum(prices @ supply, tiny),
        duality_gap=duality_gap,
        iterations=jnp.asarray(iterations, jnp.int32),
        converged=(excess_demand <= tolerances[0]) & (duality_gap <= tolerances[1]),
    )


def ration_and_certify(
    valuations: PyTree,
    wealth: Float[Array, " N"],
    holdings: Float[Array, "N G"],
    prices: Float[Array, " G"],
    demands: Float[Array, "N G"],
    iterations: Num[Array, ""],
    tolerances: tuple[float, float],
    units: Float[Array, " G"],
    min_welfare: Float[Array, ""] | float = 0.0,
) -> Equilibrium:
    """The equilibrium with these demands at these prices.

    The relative duality gap divides by welfare, or by ``min_welfare``, the rounding error of the money at stake, if
    that is larger.
    """
    # A margin of 64 epsilons prevents debts from rounding in the settlement.
    budgets = jnp.maximum(wealth, 0) * (1 - 64 * jnp.finfo(prices.dtype).eps)
    demands = demands * fill_rate(budgets, demands @ prices)[:, None]
    bundles = ration(demands, holdings)
    welfare = capped_values(valuations, wealth, bundles).sum()
    gap = best_response_gain(valuations, wealth, prices, bundles).sum()
    gap = jnp.maximum(gap, 0) / jnp.maximum(jnp.maximum(welfare, min_welfare), jnp.finfo(prices.dtype).tiny)
    certificate = certify(demands, holdings, units, prices, gap, iterations, tolerances)
    return Equilibrium(prices, prices, bundles, jax.lax.stop_gradient(certificate))


def excess_units(
    supply: Float[Array, " G"], otherwise: Float[Array, " G"] | Float[Array, ""] | float = 1.0
) -> Float[Array, " G"]:
    """The unit in which excess demand is measured: a good's supply, or ``otherwise`` if the supply is 0. f [G]."""
    other = jnp.broadcast_to(jnp.asarray(otherwise, supply.dtype), supply.shape)
    return jnp.where(supply > 0, supply, jnp.where(other > 0, other, 1))


def clearing_residual(
    excess: Float[Array, " G"],
    prices: Float[Array, " G"],
    units: Float[Array, " G"],
    welfare: Float[Array, ""],
    tolerance: float,
    typical: Float[Array, " G"] | float = jnp.inf,
) -> Float[Array, ""]:
    """How far a market is from clearing, as a multiple of the tolerance; at most 1 at convergence.

    It is the largest of three ratios: excess demand over the tolerance; the value of goods in excess supply over the
    tolerance times welfare; and the excess supply of goods that are not nearly free over 100 tolerances. The last one
    limits the excess supply of scarce goods, whose value is small at any price.

    Args:
        excess: excess demand in ``units``.
        prices: of a unit of each good.
        units: of each good.
        welfare: Σ min(v_i, w_i) of the demanded bundles.
        tolerance: the tolerance of excess demand and of the value of excess supply.
        typical: prices that do not count as small.
    """
    tolerance = max(tolerance, MIN_TOLERANCE)
    unsold = jnp.maximum(-excess, 0)
    cost = prices @ (unsold * units) / jnp.maximum(tolerance * welfare, jnp.finfo(prices.dtype).tiny)
    not_free = jnp.where(prices > 1e-2 * typical, unsold, 0).max() / (100 * tolerance)
    return jnp.maximum(jnp.maximum(excess.max() / tolerance, cost), not_free)


def _price_sensitivity(
    valuations: PyTree, wealth: Float[Array, " N"], prices: Float[Array, " G"]
) -> Float[Array, " G"]:
    """The change of demand per relative change of prices, summed over agents in absolute value.

    Prices of different goods change in different directions, because agents whose cap binds react to relative prices
    only. For any two goods, their prices diverge in at least one of the log2 G + 1 directions.
    """
    goods = np.arange(prices.shape[0])
    bits = np.arange(max(int(goods[-1]).bit_length(), 1) + 1)[:, None]
    signs = jnp.asarray(1 - 2 * (goods >> bits & 1), prices.dtype)

    def change(direction: Array) -> Array:
        move = jax.jvp(lambda p: all_demands(valuations, wealth, p), (prices,), (prices * direction,))[1]
        return jnp.abs(move).sum(0)

    return jax.vmap(change)(signs).max(0)


def check_market(
    valuations: PyTree,
    wealth: Array,
    holdings: Array,
    prices: Array | None,
    kinds: tuple[Any, ...],
    hint: str,
    *,
    excludes_nan: bool = False,
) -> None:
    """Check a solver's arguments: valuations of one of ``kinds``, shapes and dtypes that match, no NaN.

    NaN in valuations and wealth is accepted if the solver ``excludes_nan``.
    """
    if not isinstance(valuations, kinds):
        raise ValueError(f"valuations: {hint}, got {type(valuations).__name__}")
    arrays = {"wealth": wealth, "holdings": holdings} | ({} if prices is None else {"prices": prices})
    for field, value in arrays.items():
        if not isinstance(value, jax.Array | np.ndarray) or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(f"{field}: expected an array of floats, got {short_repr(value)}; use jnp.asarray")
    if holdings.ndim != 2 or wealth.shape != holdings.shape[:1] or 0 in holdings.shape:
        raise ValueError(
            f"holdings: expected [N, G] and wealth [N], N and G at least 1, got {holdings.shape} and {wealth.shape}; "
            "use jax.vmap to solve several markets"
        )
    agents, dtype = holdings.shape[0], holdings.dtype
    for leaf in (wealth, *jax.tree.leaves(valuations)):
        fits = isinstance(leaf, jax.Array | np.ndarray) and leaf.shape[:1] == (agents,) and leaf.dtype == dtype
        if not fits or leaf.shape[1:] not in ((), holdings.shape[1:]):
            found = f"{leaf.dtype}{list(leaf.shape)}" if isinstance(leaf, jax.Array | np.ndarray) else short_repr(leaf)
            raise ValueError(
                f"valuations: expected {dtype} leaves [{agents}] or [{agents}, {holdings.shape[1]}], got {found}; "
                "give wealth, holdings and valuations the same dtype, agents and goods"
            )
    if prices is not None and (prices.shape != holdings.shape[1:] or prices.dtype != dtype):
        found = f"{prices.dtype}{list(prices.shape)}"
        raise ValueError(f"prices: expected {dtype}[{holdings.shape[1]}], one for each good, got {found}")
    for field, value in ({"valuations": valuations} | arrays).items():
        if not (excludes_nan and field in ("valuations", "wealth")):
            check_no_nan(field, value)


def starting_prices(default: Float[Array, " G"], prices: Float[Array, " G"] | None) -> Float[Array, " G"]:
    """Initial prices: ``default`` where ``prices`` is None or negative, otherwise ``prices``.

    They are raised above 0, because a price of 0 would never change.
    """
    return default if prices is None else jnp.where(prices < 0, default, jnp.maximum(prices, 1e-3 * default))


def price_search(
    valuations: PyTree, wealth: Float[Array, " N"], holdings: Float[Array, "N G"], prices: Float[Array, " G"] | None
) -> tuple[PriceSearch, Float[Array, " G"]]:
    """The search for equilibrium prices of strictly concave valuations, and its initial prices.

    Prices start at the mean marginal value of each good if all agents have the same bundle.
    """
    supply = holdings.sum(0)
    marginal = jax.vmap(lambda valuation: jax.grad(valuation.value)(supply / wealth.shape[0]))(valuations).mean(0)
    units = excess_units(supply, all_demands(valuations, wealth, marginal).mean(0))
    return _search(valuations, wealth, supply, units, marginal), starting_prices(marginal, prices)


def _search(valuations: PyTree, wealth: Array, supply: Array, units: Array, typical_prices: Array) -> PriceSearch:
    def demands(prices: Array) -> Array:
        return all_demands(valuations, wealth, prices)

    def welfare(bundles: Array) -> Array:
        return capped_values(valuations, wealth, bundles).sum()

    def linearised(prices: Array) -> tuple[Array, Array]:
        return linearised_demands(valuations, wealth, prices)

    separable = isinstance(valuations, Separable)
    return PriceSearch(demands, welfare, supply, units, typical_prices, linearised if separable else None)


def solve_strictly_concave(
    find: Callable[[PriceSearch, Array], tuple[Array, Array]],
    valuations: PyTree,
    wealth: Float[Array, " N"],
    holdings: Float[Array, "N G"],
    prices: Float[Array, " G"] | None,
    tolerances: tuple[float, float],
) -> Equilibrium:
    """The equilibrium of strictly concave valuations, by a search ``find(search, start) -> (prices, iterations)``.

    Derivatives are those of the equilibrium by the implicit function theorem, one linear system of G equations
    (`jax.lax.custom_root`), and not those of the iterations.
    """
    supply = holdings.sum(0)
    frozen = jax.lax.stop_gradient((valuations, wealth))
    search, start = price_search(*jax.lax.stop_gradient((valuations, wealth, holdings)), jax.lax.stop_gradient(prices))
    scale = jnp.where(search.typical_prices > 0, search.typical_prices, 1)  # of each price

    def residual(prices: Array) -> Array:
        """0 at an equilibrium: no excess demand for goods with a positive price, none beyond supply for free goods."""
        excess = all_demands(valuations, wealth, prices).sum(0) - supply
        rise = excess / excess_units(supply) * jax.lax.stop_gradient(jnp.maximum(prices, 1e-3 * scale))
        return jnp.where(prices + 1e3 * rise > 0, -rise, prices)

    # Under `jax.vmap` a loop runs until the last market has converged; in turn, each market pays for its own.
    @one_at_a_time
    def found_prices(valuations: PyTree, wealth: Array, market: tuple[Array, ...], start: Array) -> tuple[Array, Array]:
        prices, iterations = find(_search(valuations, wealth, *market), start)
        return prices, iterations.astype(prices.dtype)  # custom_root differentiates auxiliary outputs: floats only

    def solve(_: Any, start: Array) -> tuple[Array, Array]:
        return found_prices(*frozen, (search.supply, search.units, search.typical_prices), start)

    def tangent(linear: Callable[[Array], Array], target: Array) -> Array:
        # The pseudoinverse selects the smallest of several solutions, which exist if goods are free. Rows and columns
        # are scaled; otherwise it would treat small values in one unit as zeros beside values in another unit.
        matrix = jax.jacobian(linear)(jnp.zeros_like(target)) * scale
        size = jnp.abs(matrix).max(1)
        size = jnp.where(size > 0, size, 1)
        return scale * (jnp.linalg.pinv(matrix / size[:, None]) @ (target / size))

    found, iterations = jax.lax.custom_root(residual, start, solve, tangent, has_aux=True)
    at = jax.lax.stop_gradient(found)
    epsilon = jnp.finfo(found.dtype).eps
    sensitivity = _price_sensitivity(*frozen, at)
    # If the supply of a good is so small that rounding errors of its price decide the allocation, its price is rounded
    # down: slightly excessive demand is rationed, but insufficient demand would leave part of the supply unsold.
    coarse = 16 * epsilon / max(tolerances[0], MIN_TOLERANCE) * sensitivity
    found = jnp.where((supply > 0) & (coarse > supply), found * (1 - 4 * epsilon), found)
    demands = all_demands(valuations, wealth, found)
    units = jnp.where(supply > 0, jnp.maximum(supply, coarse), excess_units(supply, sensitivity))
    units, min_welfare = jax.lax.stop_gradient(units), epsilon * (at @ sensitivity)
    return ration_and_certify(valuations, wealth, holdings, found, demands, iterations, tolerances, units, min_welfare)

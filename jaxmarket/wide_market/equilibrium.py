"""Equilibria: prices at which what agents want is what there is.

A wide market (Sudhir and Tran-Thanh 2025, Definition 2.2) asks a solver for prices p [G] and bundles X [N, G] of the
goods that its agents hold. Every solver takes valuations (leaves [N, ...]), wealth f [N] and holdings f [N, G], and
returns an `Equilibrium` whose `Certificate` says how good it is:

- `Tatonnement`: strictly concave valuations. Prices rise where more is wanted than there is, and fall where less is.
- `ConvexProgram`: the same markets and linear valuations, by minimising the dual of welfare.
- `ProportionalResponse`: linear valuations of agents with budgets (Fisher markets).
- `SealedBids`: one auction for each indivisible good, additive valuations.

The first two are Walrasian with valuations capped by wealth: everybody gets a bundle that maximises
min(v_i(x), w_i) - p · x. Such a bundle never costs more than w_i, since buying nothing is worth nothing. Where a solver
stops short of an equilibrium, the short side of each good decides: too much demand is served in proportion, what
nobody wants stays with its owners. So goods and money are conserved, and nobody overspends, whatever a solver returns;
what suffers is optimality, and the certificate says by how much.

Nothing depends on the unit of money or on the unit of any good. Iterative solvers stop early when they no longer make
progress. Inputs must be finite. NaN raises a `ValueError`, unless the array is traced: then, and where wealth, holdings
or a valuation is infinite, the certificate says ``converged`` False, and prices or bundles may be NaN. Two exceptions:
with strictly concave valuations infinite wealth means no cap, and `SealedBids` excludes bids that are not finite and
bidders whose wealth is NaN.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import core

from jaxmarket import auctions
from jaxmarket.auctions import CREDIT_CONSERVING_VICKREY, Mechanism
from jaxmarket.switches import standard_promotion
from jaxmarket.types import Array, Outcome, PyTree, real
from jaxmarket.validation import shown
from jaxmarket.wide_market.valuations import Additive, Linear, StrictlyConcave

__all__ = [
    "Certificate",
    "ConvexProgram",
    "Equilibrium",
    "ProportionalResponse",
    "SealedBids",
    "Solver",
    "Tatonnement",
    "capped_demand",
    "capped_values",
    "ration",
    "regret",
]


class Certificate(struct.PyTreeNode):
    """The distance from an equilibrium: 0 everywhere in an exact equilibrium.

    Two scales keep it meaningful in markets with little trade. Excess demand is relative to the supply of a good, or to
    the effect of rounding errors of prices on demand if that is larger. The gap is relative to welfare, or to the
    rounding error of the money at stake if that is larger. A market without demand or without money has an equilibrium
    at prices of 0, with a gap of 0.
    """

    excess: Array  # f [] most excess demand of a good, over its supply, at the quoted prices
    unsold: Array  # f [] price of what nobody wants, over the price of all there is
    gap: Array  # f [] what all agents together would gain from the bundles they like best at these prices, over welfare
    iterations: Array  # i32 []
    converged: Array  # bool [] excess and gap within the solver's tolerances; False if one of them is NaN


class Equilibrium(struct.PyTreeNode):
    """What a solver found."""

    prices: Array  # f [G] what buyers pay for a unit
    payout: Array  # f [G] what owners receive for a unit; the prices, but for auctions that mint money
    bundles: Array  # f [N, G] what agents own afterwards
    certificate: Certificate


class Solver(Protocol):
    """Anything that finds prices and bundles."""

    def __call__(
        self,
        valuations: PyTree,
        wealth: Array,
        holdings: Array,
        *,
        key: Array | None = None,
        prices: Array | None = None,
    ) -> Equilibrium:
        """Solve one market.

        Args:
            valuations: of all agents, leaves [N, ...].
            wealth: f [N], finite; what is negative counts as 0.
            holdings: f [N, G], finite and not negative.
            key: for solvers that draw.
            prices: f [G], where to begin; found from the valuations by default.

        Raises:
            ValueError: the solver cannot serve such valuations, shapes do not fit, or an array has NaN.
        """
        ...


def capped_values(valuations: PyTree, wealth: Array, bundles: Array) -> Array:
    """min(v_i(X_i), w_i): f [N]."""
    worth = jax.vmap(lambda valuation, bundle: valuation.value(bundle))(valuations, bundles)
    return jnp.minimum(worth, jnp.maximum(wealth, 0))


_NEXT_TO_NOTHING = 1e-30
"""Replaces a tolerance of 0 in divisions."""

_HALVINGS = 27
_LEAST = -40.0
"""log λ of the poorest agents: the square of e⁻⁴⁰, which derivatives need, does not underflow in single precision."""


def capped_demand(valuation: StrictlyConcave, wealth: Array, prices: Array) -> Array:
    """The bundle of one agent that maximises min(v(x), w) - p · x: f [G].

    Where the cap does not bind, it is the demand itself. Where it does, it is the cheapest bundle worth w: the demand
    of an agent for whom money matters 1 / λ times as much, with the λ at which v(x) = w.

    Args:
        valuation: strictly concave; leaves of one agent.
        wealth: w, f [].
        prices: p, f [G], not negative.
    """

    def surplus(scale: Array, prices: Array, valuation: StrictlyConcave, wealth: Array) -> Array:
        return valuation.value(valuation.demand(prices, scale)) - wealth

    arguments = prices, valuation, wealth
    one = jnp.ones((), prices.dtype)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (ends[0] + ends[1]) / 2
        over = surplus(jnp.exp(middle), *jax.lax.stop_gradient(arguments)) > 0
        return jnp.where(over, ends[0], middle), jnp.where(over, middle, ends[1])

    # λ spans orders of magnitude where goods are nearly free, so its logarithm is halved.
    low, high = jnp.exp(jnp.stack(jax.lax.fori_loop(0, _HALVINGS, halve, (_LEAST * one, 0 * one))))
    binds = surplus(one, *jax.lax.stop_gradient(arguments)) > 0
    found = jnp.where(binds, low, 1)
    # One Newton step: its derivative is that of λ by the implicit function theorem. As a step it is good for the last
    # digits only, and must stay between the ends (at a corner of v it would not).
    slope = jax.lax.stop_gradient(jax.jvp(lambda s: surplus(s, *arguments), (found,), (one,))[1])
    step = surplus(found, *arguments) / jnp.where(slope > 0, slope, 1)
    step = jnp.where(binds & (slope > 0) & (jnp.abs(step) < found), step, 0)
    inside = jnp.where(binds, jnp.clip(found - step, low, high), found)
    scale = jax.lax.stop_gradient(inside) + (jax.lax.stop_gradient(step) - step)
    return jnp.where(wealth > 0, valuation.demand(prices, scale), 0)


def _covered(available: Array, wanted: Array) -> Array:
    """What share of ``wanted`` there is enough of: all, or less than 1. f [...], of numbers that are not negative."""
    return jnp.where(wanted > available, available / jnp.where(wanted > 0, wanted, 1), 1)


def _affordable(demands: Array, wealth: Array, prices: Array) -> Array:
    """Demands, less of everything where rounding or an unfinished search would make them cost more than wealth."""
    # A little is left, so that rounding in the settlement cannot make a debt of it.
    purse = jnp.maximum(wealth, 0) * (1 - 64 * jnp.finfo(prices.dtype).eps)
    return demands * _covered(purse, demands @ prices)[:, None]


def _demands(valuations: PyTree, wealth: Array, prices: Array) -> Array:
    return jax.vmap(capped_demand, (0, 0, None))(valuations, wealth, prices)


def ration(demands: Array, holdings: Array) -> Array:
    """The short side decides: bundles f [N, G] that add up to what there is.

    Where more is demanded than there is, everybody gets the same share of what it demands. Where less is, owners
    keep the rest, in proportion to what they hold.

    Args:
        demands, holdings: f [N, G], not negative.
    """
    supply, demand = holdings.sum(0), demands.sum(0)
    bought = demands * _covered(supply, demand)
    unsold = jnp.maximum(supply - demand, 0)
    return bought + holdings * (unsold / jnp.where(supply > 0, supply, 1))


def regret(valuations: PyTree, wealth: Array, prices: Array, bundles: Array) -> Array:
    """What each agent would gain from the bundle it likes best at these prices, by min(v, w): f [N].

    Never below zero but for rounding. Where bundles add up to the supply, the sum is the duality gap of
    max Σ min(v, w).

    Args:
        valuations: strictly concave or linear, leaves [N, ...].
        wealth: f [N].
        prices: f [G].
        bundles: f [N, G] what they have.
    """
    if isinstance(valuations, Linear):
        # A capped linear agent buys what is worth w at the best value for money, or nothing.
        best = jnp.maximum(0, 1 - 1 / _value_for_money(valuations, prices).max(1)) * jnp.maximum(wealth, 0)
    else:
        wanted = _demands(valuations, wealth, prices)
        best = capped_values(valuations, wealth, wanted) - wanted @ prices
    return best - (capped_values(valuations, wealth, bundles) - bundles @ prices)


def _value_for_money(valuations: Linear, prices: Array) -> Array:
    """What a unit of money buys of each good: f [N, G]; nothing of goods that are worth nothing."""
    tiny = jnp.finfo(prices.dtype).tiny
    return jnp.maximum(valuations.values, tiny) / jnp.maximum(prices, tiny)


def _certify(
    demands: Array,
    holdings: Array,
    units: Array,
    prices: Array,
    gap: Array,
    iterations: Array,
    tolerances: tuple[float, float],
) -> Certificate:
    supply, demand = holdings.sum(0), demands.sum(0)
    tiny = jnp.finfo(prices.dtype).tiny
    excess = jnp.max(jnp.maximum(demand - supply, 0) / units)
    unsold = prices @ jnp.maximum(supply - demand, 0) / jnp.maximum(prices @ supply, tiny)
    within = (excess <= tolerances[0]) & (gap <= tolerances[1])
    return Certificate(
        excess=excess, unsold=unsold, gap=gap, iterations=jnp.asarray(iterations, jnp.int32), converged=within
    )


def _units(supply: Array, otherwise: Array | float = 1.0) -> Array:
    """The quantity in which excess demand is measured: a good's supply, or ``otherwise`` if there is none. f [G]."""
    other = jnp.broadcast_to(jnp.asarray(otherwise, supply.dtype), supply.shape)
    return jnp.where(supply > 0, supply, jnp.where(other > 0, other, 1))


def _response(valuations: PyTree, wealth: Array, prices: Array) -> Array:
    """The change of demand per relative change of prices, summed over agents in absolute value: f [G].

    Prices of different goods change in different directions, because agents at their budgets react to relative prices
    only. For any two goods, their prices diverge in at least one of the log2 G + 1 directions.
    """
    goods = np.arange(prices.shape[0])
    bits = np.arange(max(int(goods[-1]).bit_length(), 1) + 1)[:, None]
    signs = jnp.asarray(1 - 2 * (goods >> bits & 1), prices.dtype)

    def change(direction: Array) -> Array:
        move = jax.jvp(lambda p: _demands(valuations, wealth, p), (prices,), (prices * direction,))[1]
        return jnp.abs(move).sum(0)

    return jax.vmap(change)(signs).max(0)


def _check(
    valuations: PyTree,
    wealth: Array,
    holdings: Array,
    prices: Array | None,
    kinds: tuple[Any, ...],
    hint: str,
    *,
    excludes_nan: bool = False,
) -> None:
    """Check a solver's arguments; NaN in valuations and wealth is accepted if it ``excludes_nan``."""
    if not isinstance(valuations, kinds):
        raise ValueError(f"valuations: {hint}, got {type(valuations).__name__}")
    arrays = {"wealth": wealth, "holdings": holdings} | ({} if prices is None else {"prices": prices})
    for field, value in arrays.items():
        if not isinstance(value, jax.Array | np.ndarray) or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(f"{field}: expected an array of floats, got {shown(value)}; use jnp.asarray")
    if holdings.ndim != 2 or wealth.shape != holdings.shape[:1] or 0 in holdings.shape:
        raise ValueError(
            f"holdings: expected [N, G] and wealth [N], N and G at least 1, got {holdings.shape} and {wealth.shape}; "
            "use jax.vmap for many markets"
        )
    agents, dtype = holdings.shape[0], holdings.dtype
    for leaf in (wealth, *jax.tree.leaves(valuations)):
        fits = isinstance(leaf, jax.Array | np.ndarray) and leaf.shape[:1] == (agents,) and leaf.dtype == dtype
        if not fits or leaf.shape[1:] not in ((), holdings.shape[1:]):
            found = f"{leaf.dtype}{list(leaf.shape)}" if isinstance(leaf, jax.Array | np.ndarray) else shown(leaf)
            raise ValueError(f"valuations: expected {dtype} for {agents} agents and as many goods as held, got {found}")
    if prices is not None and (prices.shape != holdings.shape[1:] or prices.dtype != dtype):
        found = f"{prices.dtype}{list(prices.shape)}"
        raise ValueError(f"prices: expected {dtype}[{holdings.shape[1]}], one for each good, got {found}")
    for field, value in ({"valuations": valuations} | arrays).items():
        if not (excludes_nan and field in ("valuations", "wealth")) and any(map(_has_nan, jax.tree.leaves(value))):
            raise ValueError(f"{field}: expected numbers, got NaN; remove or replace it first")


def _has_nan(array: Array) -> bool:
    """Whether an array has NaN; False if it is traced, because its values are unknown."""
    return not isinstance(array, core.Tracer) and bool(jnp.isnan(array).any())


def _marginal(valuations: StrictlyConcave, supply: Array, agents: int) -> Array:
    """What a little more of each good is worth on average where all have the same: f [G]."""

    def one(valuation: Any) -> Array:
        return jax.grad(valuation.value)(supply / agents)

    return jax.vmap(one)(valuations).mean(0)


def _start(usual: Array, prices: Array | None) -> Array:
    """Where to begin, ``usual`` by default: f [G], nothing for free, since a price of 0 would stay there."""
    return usual if prices is None else jnp.maximum(prices, 1e-3 * usual)


def _solve(
    find: Callable[[Callable[[Array], Array], Array], tuple[Array, Array]],
    valuations: PyTree,
    wealth: Array,
    holdings: Array,
    prices: Array | None,
    tolerances: tuple[float, float],
) -> Equilibrium:
    """An equilibrium of strictly concave valuations, by ``find(demands, start) -> (prices, iterations)``.

    Derivatives are those of the equilibrium, by the implicit function theorem, and not of the way to it: one linear
    system of G equations (`jax.lax.custom_root`).
    """
    supply = holdings.sum(0)
    frozen = jax.lax.stop_gradient((valuations, wealth))
    start = jax.lax.stop_gradient(_start(_marginal(valuations, supply, wealth.shape[0]), prices))
    scale = jnp.where(start > 0, start, 1)  # of each price

    def residual(prices: Array) -> Array:
        """0 at an equilibrium: no excess demand of goods that cost something, no demand beyond supply of free ones."""
        excess = _demands(valuations, wealth, prices).sum(0) - supply
        rise = excess / _units(supply) * jax.lax.stop_gradient(jnp.maximum(prices, 1e-3 * scale))
        return jnp.where(prices + 1e3 * rise > 0, -rise, prices)

    def solve(_: Any, start: Array) -> tuple[Array, Array]:
        prices, iterations = find(lambda prices: _demands(*frozen, prices), start)
        return prices, iterations.astype(prices.dtype)  # what has no derivative may not be an integer here

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
    response = _response(*frozen, at)
    # If the supply of a good is so small that rounding errors of its price decide the allocation, its price is rounded
    # down: slightly excessive demand is rationed, but insufficient demand would leave part of the supply unsold.
    coarse = 16 * epsilon / max(tolerances[0], _NEXT_TO_NOTHING) * response
    found = jnp.where((supply > 0) & (coarse > supply), found * (1 - 4 * epsilon), found)
    demands = _demands(valuations, wealth, found)
    units = jax.lax.stop_gradient(jnp.where(supply > 0, jnp.maximum(supply, coarse), _units(supply, response)))
    return _conclude(
        valuations, wealth, holdings, found, demands, iterations, tolerances, units, epsilon * (at @ response)
    )


def _conclude(
    valuations: PyTree,
    wealth: Array,
    holdings: Array,
    prices: Array,
    demands: Array,
    iterations: Array,
    tolerances: tuple[float, float],
    units: Array,
    least: Array | float = 0.0,
) -> Equilibrium:
    """Ration what is demanded at these prices, and certify it."""
    demands = _affordable(demands, wealth, prices)
    bundles = ration(demands, holdings)
    gap = _relative_gap(valuations, wealth, prices, bundles, least)
    certificate = _certify(demands, holdings, units, prices, gap, iterations, tolerances)
    return Equilibrium(prices, prices, bundles, jax.lax.stop_gradient(certificate))


def _relative_gap(
    valuations: PyTree, wealth: Array, prices: Array, bundles: Array, least: Array | float = 0.0
) -> Array:
    """Σ regret over welfare: the duality gap of max Σ min(v_i, w_i), since bundles add up to the supply. f [].

    ``least``, the rounding error of the money at stake, replaces a smaller welfare.
    """
    welfare = capped_values(valuations, wealth, bundles).sum()
    gap = regret(valuations, wealth, prices, bundles).sum()
    return jnp.maximum(gap, 0) / jnp.maximum(jnp.maximum(welfare, least), jnp.finfo(prices.dtype).tiny)


def _balance(
    excess: Array, prices: Array, units: Array, welfare: Array, tolerance: float, usual: Array | float = jnp.inf
) -> Array:
    """The largest ratio of a quantity of the certificate to its tolerance: f [].

    Args:
        excess: f [G], excess demand in ``units`` f [G], at most the tolerance at convergence.
        prices: f [G]. At convergence unsold goods cost at most the tolerance times welfare at these prices.
        welfare: f [], Σ min(v_i, w_i) of the demanded bundles.
        tolerance: the tolerance of both.
        usual: f [G], prices that are not small. The total price of unsold goods is insensitive to scarce goods, which
            cost little at any price; unsold amounts of goods that are not nearly free are therefore limited as well.
    """
    tolerance = max(tolerance, _NEXT_TO_NOTHING)
    left = jnp.maximum(-excess, 0)
    cost = prices @ (left * units) / jnp.maximum(tolerance * welfare, jnp.finfo(prices.dtype).tiny)
    dear = jnp.where(prices > 1e-2 * usual, left, 0).max() / (100 * tolerance)
    return jnp.maximum(jnp.maximum(excess.max() / tolerance, cost), dear)


@dataclasses.dataclass(frozen=True)
class Tatonnement:
    """p ← max(p + η z, 0), z = demand - supply (Walras 1874), for strictly concave valuations.

    Every good has a separate rate η, which is halved when its excess demand changes sign and grows slightly otherwise.
    After a change of sign a price moves back by at most half of its last move. Prices depend on excess demand only.
    Convergence is not guaranteed; see the certificate.

    It stops when excess demand and the price of unsold goods are small; when prices can no longer move in floating
    point; or without improvement for ``patience`` adjustments.

    Attributes:
        iterations: the most.
        tolerance: largest excess demand over supply, and largest price of unsold goods over welfare, at convergence.
        gap: relative optimality gap that still counts as converged.
        rate: η to begin with, over price and supply.
        patience: adjustments without improvement after which it stops, and returns the best prices it has seen.
    """

    iterations: int = 1000
    tolerance: float = 1e-5
    gap: float = 1e-3
    rate: float = 0.1
    patience: int = 200

    @standard_promotion
    def __call__(
        self,
        valuations: PyTree,
        wealth: Array,
        holdings: Array,
        *,
        key: Array | None = None,
        prices: Array | None = None,
    ) -> Equilibrium:
        """Solve one market; see `Solver`."""
        _check(valuations, wealth, holdings, prices, (StrictlyConcave,), "tâtonnement needs a strictly concave class")
        frozen, supply = jax.lax.stop_gradient((valuations, wealth)), jax.lax.stop_gradient(holdings.sum(0))

        def find(demands: Callable[[Array], Array], start: Array) -> tuple[Array, Array]:
            return self._find(_market(demands, *frozen, supply, start), start)

        return _solve(find, valuations, wealth, holdings, prices, (10 * self.tolerance, self.gap))

    def path(
        self, valuations: PyTree, wealth: Array, holdings: Array, *, prices: Array | None = None
    ) -> tuple[Array, Array]:
        """Where it goes, to draw: prices and excess demand over supply after 0, 1, … `iterations` adjustments.

        It does not stop where the solver does: row ``certificate.iterations`` has the prices that the solver returns.

        Args:
            valuations, wealth, holdings, prices: as for the solver.

        Returns:
            f [iterations + 1, G] each.
        """
        _check(valuations, wealth, holdings, prices, (StrictlyConcave,), "tâtonnement needs a strictly concave class")
        supply = holdings.sum(0)
        start = _start(_marginal(valuations, supply, wealth.shape[0]), prices)
        market = _market(lambda prices: _demands(valuations, wealth, prices), valuations, wealth, supply, start)
        adjust, begin = self._adjustment(market, start)
        _, path = jax.lax.scan(lambda c, _: (adjust(c), (c.prices, c.excess)), begin, length=self.iterations + 1)
        return path

    def _find(self, market: "_Market", start: Array, count: int | Array = 0) -> tuple[Array, Array]:
        """Prices at which demand equals supply, and the number of adjustments including ``count`` earlier ones."""
        adjust, begin = self._adjustment(market, start)

        def goes_on(carry: tuple[_Adjusted, ...]) -> Array:
            now, best = carry
            # NaN never counts as an improvement, and never becomes finite again.
            return (now.miss > 1) & (now.done - best.done < self.patience) & (now.done < self.iterations)

        def once(carry: tuple[_Adjusted, ...]) -> tuple[_Adjusted, ...]:
            now, best = carry
            new = adjust(now)
            return new, jax.tree.map(lambda a, b: jnp.where(new.miss < best.miss, a, b), new, best)

        begin = begin._replace(done=jnp.asarray(count, jnp.int32))
        last, best = jax.lax.while_loop(goes_on, once, (begin, begin))
        return best.prices, last.done

    def _adjustment(self, market: "_Market", start: Array) -> tuple[Callable[["_Adjusted"], "_Adjusted"], "_Adjusted"]:
        """The function of one adjustment, and its initial value."""
        epsilon = jnp.finfo(start.dtype).eps

        def look(prices: Array, stuck: Array) -> tuple[Array, Array]:
            wanted = market.demands(prices)
            excess = (wanted.sum(0) - market.supply) / market.units
            matters = jnp.where(stuck < _STUCK, excess, 0)
            miss = _balance(matters, prices, market.units, market.worth(wanted), self.tolerance, market.usual)
            return excess, miss

        def adjust(old: _Adjusted) -> _Adjusted:
            # Limit moves to tenfold, so that no good becomes free by a single overshoot.
            move = jnp.clip(old.rate * jnp.clip(old.excess, -0.9, 9), -old.limit, old.limit)
            prices = old.prices * (1 + move)
            stuck = jnp.where(jnp.abs(move) <= 2 * epsilon, old.stuck + 1, 0)
            excess, miss = look(prices, stuck)
            crossed = excess * old.excess < 0
            # Excess demand can be many times the supply, but excess supply at most the supply. Without a limit, prices
            # of scarce goods would jump up and decrease slowly, forever.
            limit = jnp.where(crossed, jnp.abs(move) / 2, old.limit * 1.2)
            rate = jnp.minimum(jnp.where(crossed, old.rate / 2, old.rate * 1.2), 1)
            return _Adjusted(prices, rate, limit, excess, miss, stuck, old.done + 1)

        nothing, unlimited = jnp.zeros(start.shape, jnp.int32), jnp.full_like(start, jnp.inf)
        excess, miss = look(start, nothing)
        rate = jnp.full_like(start, self.rate)
        return adjust, _Adjusted(start, rate, unlimited, excess, miss, nothing, jnp.zeros((), jnp.int32))


_STUCK = 20
"""Consecutive adjustments with moves of at most the last digit after which a price counts as found. They allow a rate
that is too small to recover, because rates grow 1.2-fold."""


class _Market(NamedTuple):
    """The inputs of a search for prices."""

    demands: Callable[[Array], Array]  # prices f [G] -> f [N, G]
    worth: Callable[[Array], Array]  # bundles f [N, G] -> welfare f []
    supply: Array  # f [G]
    units: Array  # f [G] of excess demand
    usual: Array  # f [G] prices that are not small


def _market(
    demands: Callable[[Array], Array], valuations: PyTree, wealth: Array, supply: Array, usual: Array
) -> _Market:
    """The market, with scales that follow from usual prices f [G]."""

    def worth(bundles: Array) -> Array:
        return capped_values(valuations, wealth, bundles).sum()

    return _Market(demands, worth, supply, _units(supply, demands(usual).mean(0)), usual)


class _Adjusted(NamedTuple):
    """The state of tâtonnement."""

    prices: Array  # f [G]
    rate: Array  # f [G] η
    limit: Array  # f [G] of the next relative move
    excess: Array  # f [G] excess demand over supply
    miss: Array  # f [] see `_balance`
    stuck: Array  # i32 [G] adjustments in a row that hardly moved a price
    done: Array  # i32 [] adjustments


@dataclasses.dataclass(frozen=True)
class ConvexProgram:
    """Welfare's dual, min over p >= 0 of p · S + Σ_i max_x (min(v_i(x), w_i) - p · x), by L-BFGS (Optax).

    The dual's slope is supply minus demand, so its minimum clears the market. It is searched over logarithms of
    prices. Where that does not come to an end, since goods are nearly free and the dual is nearly flat, tâtonnement
    begins anew, which is descent on the same dual.

    Linear valuations have many best bundles, and a dual with corners. They are solved as a sequence of strictly concave
    markets, in each of which it costs a little to move away from the bundle of the one before (the proximal point
    method; Rockafellar 1976).

    Attributes:
        iterations: of L-BFGS, the most (in each market of a sequence: ``inner``).
        tolerance: excess demand over supply at which it stops.
        gap: relative optimality gap that still counts as converged, and at which a sequence stops.
        memory: of L-BFGS.
        sequence: the most markets in a sequence.
        inner: the most iterations in each of them.
        stiffness: what moving costs, relative to prices.
        patience: markets of a sequence without improvement after which it stops.
    """

    iterations: int = 200
    tolerance: float = 1e-5
    gap: float = 1e-3
    memory: int = 10
    sequence: int = 200
    inner: int = 8
    stiffness: float = 0.01
    patience: int = 50

    @standard_promotion
    def __call__(
        self,
        valuations: PyTree,
        wealth: Array,
        holdings: Array,
        *,
        key: Array | None = None,
        prices: Array | None = None,
    ) -> Equilibrium:
        """Solve one market; see `Solver`."""
        hint = "a convex program needs a linear or strictly concave class"
        _check(valuations, wealth, holdings, prices, (StrictlyConcave, Linear), hint)
        if isinstance(valuations, Linear):
            return self._sequence(valuations, wealth, holdings, prices)
        frozen, supply = jax.lax.stop_gradient((valuations, wealth)), jax.lax.stop_gradient(holdings.sum(0))

        def find(demands: Callable[[Array], Array], start: Array) -> tuple[Array, Array]:
            market = _market(demands, *frozen, supply, start)
            found, count = self._minimise(market, start, self.iterations)
            again = Tatonnement(self.iterations + 1000, self.tolerance)
            usable = (count < self.iterations) & jnp.isfinite(found).all()
            return again._find(market, jnp.where(usable, found, start), count)

        return _solve(find, valuations, wealth, holdings, prices, (10 * self.tolerance, self.gap))

    def _minimise(self, market: _Market, start: Array, iterations: int) -> tuple[Array, Array]:
        """Prices [G] at which demand equals supply, and the number of iterations."""
        tiny, epsilon = jnp.finfo(start.dtype).tiny, jnp.finfo(start.dtype).eps
        supply, units = market.supply, market.units
        # The unit of money is the initial trade; for scarce goods, the trade that demand would imply.
        scale = jnp.maximum(start @ jnp.maximum(supply, market.demands(start).sum(0) / 100), tiny)

        def dual(logs: Array) -> Array:
            prices = jnp.exp(logs)
            # Demand is where the inner maximum is reached, so its own change does not matter (envelope theorem).
            wanted = jax.lax.stop_gradient(market.demands(jax.lax.stop_gradient(prices)))
            return (market.worth(wanted) + prices @ (supply - wanted.sum(0))) / scale

        search = optax.scale_by_zoom_linesearch(max_linesearch_steps=15, initial_guess_strategy="one")
        optimizer = optax.lbfgs(memory_size=self.memory, linesearch=search)
        value_and_slope = optax.value_and_grad_from_state(dual)

        def goes_on(carry: tuple[Array, Any, Array, Array]) -> Array:
            logs, state, count, moves = carry
            value, slope = (optax.tree.get(state, name) for name in ("value", "grad"))
            prices, welfare = jnp.exp(logs), (value - slope.sum()) * scale
            balanced = _balance(-slope * scale / prices / units, prices, units, welfare, self.tolerance) <= 1
            return (count == 0) | ((count < iterations) & ~balanced & moves)

        def descend(carry: tuple[Array, Any, Array, Array]) -> tuple[Array, Any, Array, Array]:
            logs, state, count, _ = carry
            value, slope = value_and_slope(logs, state=state)
            step, state = optimizer.update(slope, state, logs, value=value, grad=slope, value_fn=dual)
            moves = jnp.abs(jnp.asarray(step)).max() > 2 * epsilon  # False for NaN
            return optax.apply_updates(logs, step), state, count + 1, moves  # type: ignore[return-value]

        logs = jnp.log(jnp.maximum(start, tiny))
        begin = logs, optimizer.init(logs), jnp.zeros((), jnp.int32), jnp.ones((), bool)
        logs, _, count, _ = jax.lax.while_loop(goes_on, descend, begin)
        return jnp.exp(logs), count

    def _sequence(self, valuations: Linear, wealth: Array, holdings: Array, prices: Array | None) -> Equilibrium:
        """Linear valuations: strictly concave markets, one after the other."""
        supply = holdings.sum(0)
        usual = valuations.values.max(0)
        start = _start(usual, prices)
        # For a good with zero supply, the scale is the amount that the agents' money would buy.
        units = _units(supply, jnp.maximum(wealth, 0).sum() / jnp.where(usual > 0, usual, 1))
        # Half as much of a good as there is, given to a few, costs about as much as the stiffness says.
        typical = units * holdings.shape[1] / holdings.shape[0]
        stiffness = self.stiffness * jnp.maximum(usual, 1e-3 * (usual * typical).max() / typical) / typical
        tolerances = (10 * self.tolerance, self.gap)

        def solve(carry: tuple[Array, Array, Array, Array, Any]) -> tuple[Array, Array, Array, Array, Any]:
            bundles, prices, count, idle, best = carry
            anchored = jax.vmap(_Anchored, (0, 0, None))(valuations.values, bundles, stiffness)

            def worth(moved: Array) -> Array:
                return capped_values(anchored, wealth, moved).sum() - jax.vmap(_Anchored.cost)(anchored, moved).sum()

            def demands(prices: Array) -> Array:
                return _demands(anchored, wealth, prices)

            prices, iterations = self._minimise(_Market(demands, worth, supply, units, usual), prices, self.inner)
            bundles, count = demands(prices), count + iterations
            found = _conclude(valuations, wealth, holdings, prices, bundles, count, tolerances, units)
            # The best is kept: where all goods are nearly free a search can lose its way, even among the numbers.
            better = _miss(found.certificate, tolerances) < _miss(best.certificate, tolerances)
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), found, best)
            return bundles, prices, count, jnp.where(better, 0, idle + 1), best

        def goes_on(carry: tuple[Array, Array, Array, Array, Any]) -> Array:
            _, prices, count, idle, best = carry
            lost = ~jnp.isfinite(prices).all()
            going = (count < self.sequence * self.inner) & (idle < self.patience) & ~lost
            return ~best.certificate.converged & going

        zero = jnp.zeros((), jnp.int32)
        # At these prices buying nothing is optimal. That is an equilibrium if owners value their goods most, or if no
        # agent values or can pay for any good.
        nothing = _conclude(valuations, wealth, holdings, start, jnp.zeros_like(holdings), zero, tolerances, units)
        found = jax.lax.while_loop(goes_on, solve, (holdings, start, zero, zero, nothing))
        best = found[-1]
        return best.replace(certificate=best.certificate.replace(iterations=found[2]))


def _miss(certificate: Certificate, tolerances: tuple[float, float]) -> Array:
    """By how many times a tolerance is missed, at worst: f []."""
    excess, gap = (max(tolerance, _NEXT_TO_NOTHING) for tolerance in tolerances)
    return jnp.maximum(certificate.excess / excess, certificate.gap / gap)


class _Anchored(struct.PyTreeNode):
    """A linear valuation where moving away from a bundle costs something. One agent."""

    values: Array  # f [G]
    anchor: Array  # f [G] the bundle
    stiffness: Array  # f [G] ε

    def value(self, bundle: Array) -> Array:
        """What the bundle is worth, without the cost of moving: f []. This is what wealth caps."""
        return self.values @ bundle

    def cost(self, bundle: Array) -> Array:
        """Σ ε (x - anchor)² / 2: f []."""
        return self.stiffness @ (bundle - self.anchor) ** 2 / 2

    def demand(self, prices: Array, scale: Array) -> Array:
        """What maximises scale · v · x - cost(x) - prices · x: f [G]."""
        return jnp.maximum(self.anchor + (scale * self.values - prices) / self.stiffness, 0)


@dataclasses.dataclass(frozen=True)
class ProportionalResponse:
    """Everybody spends on each good in proportion to what it got out of it last time (Wu and Zhang 2007; Zhang 2011).

    For linear valuations of agents with budgets, which wealth limits as a budget and not as a cap: they maximise
    v · x - p · x over bundles they can pay for, p · x <= w (``quasilinear``; Gao and Kroer 2020 have the response), or
    v · x alone, money being good for nothing else (a Fisher market). These are the optima of Eisenberg and Gale's
    program and of its quasilinear form (Cole et al. 2017); the certificate's ``gap`` is the program's duality gap over
    all budgets, Σ_i w_i log(what w_i could buy at these prices / what it did buy) / Σ_i w_i. Every round clears.

    Attributes:
        quasilinear: whether money is worth something to its owner.
        iterations: the most.
        gap: at which it stops.
        patience: rounds without a smaller gap after which it stops.
    """

    quasilinear: bool = True
    iterations: int = 10_000
    gap: float = 1e-3
    patience: int = 1000

    @standard_promotion
    def __call__(
        self,
        valuations: PyTree,
        wealth: Array,
        holdings: Array,
        *,
        key: Array | None = None,
        prices: Array | None = None,
    ) -> Equilibrium:
        """Solve one market; see `Solver`."""
        _check(valuations, wealth, holdings, prices, (Linear,), "proportional response needs Linear")
        tiny = jnp.finfo(holdings.dtype).tiny
        supply, budgets = holdings.sum(0), jnp.maximum(wealth, 0)
        worth = jnp.maximum(valuations.values, 0) * supply  # of all there is of a good
        money = budgets / 2 if self.quasilinear else jnp.zeros_like(budgets)

        def spend(worth: Array, money: Array) -> tuple[Array, Array]:
            got = worth.sum(1) + money
            share = budgets / jnp.where(got > 0, got, 1)
            return worth * share[:, None], money * share

        def respond(bids: Array, money: Array) -> tuple[Array, Array]:
            return spend(worth * (bids / jnp.maximum(bids.sum(0), tiny)), money)

        def shortfall(bids: Array, money: Array) -> Array:
            totals = jnp.maximum(bids.sum(0), tiny)
            got = (worth * (bids / totals)).sum(1) + money
            best = jnp.where(worth > 0, worth / totals, 0).max(1)
            best = jnp.maximum(best, 1) if self.quasilinear else best
            lost = jnp.where(got > 0, budgets * jnp.log(jnp.maximum(budgets * best, tiny) / jnp.maximum(got, tiny)), 0)
            return jnp.maximum(lost.sum(), 0) / jnp.maximum(budgets.sum(), tiny)

        def goes_on(carry: tuple[Array, ...]) -> Array:
            gap, _, count, found = carry[2:]
            # This comparison also ends the loop at NaN.
            return (count < self.iterations) & (gap > self.gap) & (count - found < self.patience) | (count == 0)

        def rounds(carry: tuple[Array, ...]) -> tuple[Array, ...]:
            bids, money, _, best, count, found = carry
            bids, money = jax.lax.fori_loop(0, _ROUNDS, lambda _, pair: respond(*pair), (bids, money))
            gap, count = shortfall(bids, money), count + _ROUNDS
            return bids, money, gap, jnp.minimum(gap, best), count, jnp.where(gap < best, count, found)

        bids, money = spend(worth, money)
        infinite, zero = jnp.full((), jnp.inf, bids.dtype), jnp.zeros((), jnp.int32)
        carry = bids, money, infinite, infinite, zero, zero
        bids, money, gap, _, count, _ = jax.lax.while_loop(goes_on, rounds, carry)
        found = bids.sum(0) / jnp.where(supply > 0, supply, 1)
        demands = bids / jnp.where(found > 0, found, 1)
        certificate = _certify(demands, holdings, _units(supply), found, gap, count, (1e-4, self.gap))
        return Equilibrium(found, found, ration(demands, holdings), certificate)


_ROUNDS = 10
"""Of proportional response, between two looks at the gap."""


@dataclasses.dataclass(frozen=True)
class SealedBids:
    """One sealed-bid auction for each indivisible good, all at once; agents bid what a good is worth to them.

    Only for `Additive` valuations: with others, indivisible goods may have no equilibrium at all, and nothing is
    looked for. An agent's bids for what is for sale shrink in proportion where together they exceed its wealth, so
    that nobody can owe more than it has. A good with zero supply has a price, but is not sold. A good
    without bids stays with its owners. An agent does not bid on goods whose value is not finite, nor at all if its
    wealth is NaN.

    The certificate's ``gap`` is by the bids made: with prices between the highest and the second highest bid nobody
    would rather have other goods, and it is 0. Exploration, and prices outside of this range, make it positive.

    Attributes:
        mechanism: what a winner pays and owners receive.
        exploration: probability with which a random bidder wins instead; needs a key.
    """

    mechanism: Mechanism = CREDIT_CONSERVING_VICKREY
    exploration: float | None = None

    @standard_promotion
    def __call__(
        self,
        valuations: PyTree,
        wealth: Array,
        holdings: Array,
        *,
        key: Array | None = None,
        prices: Array | None = None,
    ) -> Equilibrium:
        """Solve one market; see `Solver`. With a key, ties are broken at random."""
        hint = "indivisible goods are auctioned to Additive valuations; with others there may be no equilibrium"
        _check(valuations, wealth, holdings, prices, (Additive,), hint, excludes_nan=True)
        if self.exploration is not None and key is None:
            raise ValueError(f"key: needed for exploration, which is {self.exploration!r}; give one")
        supply, purse = holdings.sum(0), jnp.maximum(wealth, 0)
        values = valuations.values
        unknown = jnp.isnan(wealth)
        willing, purse = jnp.isfinite(values) & ~unknown[:, None], jnp.where(unknown, 0, purse)
        bids = jnp.where(willing, values, 0)
        shrunk = bids * _covered(purse, jnp.maximum(bids, 0) @ supply)[:, None]
        bids = jnp.where(supply > 0, shrunk, jnp.minimum(bids, purse[:, None]))

        draws = None if key is None else jax.random.uniform(key, (holdings.shape[1], 3), real())
        outcome = jax.vmap(self._clear, (1, 1, None if draws is None else 0))(bids, willing, draws)
        pay = jnp.where(outcome.winner >= 0, jax.vmap(self.mechanism.price)(outcome), 0)
        receive = jnp.where(outcome.winner >= 0, jax.vmap(self.mechanism.payout)(outcome), 0)
        subsidy = receive - pay
        demands = jnp.where(jnp.arange(wealth.shape[0])[:, None] == outcome.winner, supply, 0)
        # Exploration can make someone win who cannot pay a rival's price: it pays what it has, the owner gets less.
        share = _covered(purse, demands @ jnp.maximum(pay, 0))
        pay = jnp.where(supply > 0, pay * share[jnp.maximum(outcome.winner, 0)], pay)

        gain = jnp.where(willing, bids - pay, 0) * supply
        gap = jnp.maximum(gain, 0).sum() - jnp.where(demands > 0, gain, 0).sum()
        welfare = jnp.where(demands > 0, bids * supply, 0).sum()
        gap = jnp.maximum(gap, 0) / jnp.maximum(jnp.abs(welfare), jnp.finfo(pay.dtype).tiny)
        certificate = _certify(demands, holdings, _units(supply), pay, gap, jnp.ones((), jnp.int32), (1e-4, 1e-3))
        return Equilibrium(pay, pay + subsidy, ration(demands, holdings), certificate)

    def _clear(self, bids: Array, willing: Array, draws: Array | None) -> Outcome:
        """One good's auction: bids f [N], willing bool [N], draws f [3]."""
        winner = auctions.choose(bids, None if draws is None else draws[0], willing)
        if self.exploration is not None and draws is not None:
            winner = jnp.where(draws[1] < self.exploration, auctions.pick(draws[2], willing), winner)
        return auctions.award(bids, winner, willing)

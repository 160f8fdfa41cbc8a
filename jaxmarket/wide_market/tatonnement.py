"""Tâtonnement: the price of a good rises while demand exceeds supply and falls while supply exceeds demand."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Int32

from jaxmarket.switches import standard_promotion
from jaxmarket.types import Array, PyTree, tree_select
from jaxmarket.wide_market.equilibrium import (
    Equilibrium,
    PriceSearch,
    check_market,
    clearing_residual,
    price_search,
    solve_strictly_concave,
)
from jaxmarket.wide_market.valuations import StrictlyConcave

__all__ = ["Tatonnement"]

_HINT = "tâtonnement needs a strictly concave class"

_STUCK = 20
"""Consecutive adjustments that move a price by at most its last digit before the price counts as found. Within this
number of adjustments, a rate that is too small recovers, because rates grow 1.2-fold."""


class _Adjusted(NamedTuple):
    """The state of the iteration."""

    prices: Float[Array, " G"]
    rate: Float[Array, " G"]  # η
    limit: Float[Array, " G"]  # of the next relative move
    excess: Float[Array, " G"]  # excess demand over supply
    residual: Float[Array, ""]  # see `clearing_residual`
    stuck: Int32[Array, " G"]  # consecutive adjustments that hardly moved a price
    adjustments: Int32[Array, ""]


@dataclasses.dataclass(frozen=True)
class Tatonnement:
    """p ← max(p + η z, 0), z = demand - supply (Walras 1874), for strictly concave valuations.

    Every good has its own rate η, which is halved when the excess demand of the good changes sign and otherwise grows
    slightly. After a change of sign a price moves back by at most half of its last move. Prices depend on excess
    demand only. Convergence is not guaranteed; see the certificate.

    The solver stops when excess demand and the value of excess supply are small, when prices can no longer move in
    floating point, or after ``patience`` adjustments without improvement.

    Attributes:
        max_iterations: maximum number of adjustments.
        tolerance: largest excess demand over supply, and largest value of excess supply over welfare, at convergence.
        gap_tolerance: largest relative duality gap that counts as converged.
        rate: initial η, relative to price and supply.
        patience: number of adjustments without improvement after which it stops and returns the best prices so far.
    """

    max_iterations: int = 1000
    tolerance: float = 1e-5
    gap_tolerance: float = 1e-3
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
        """Solve one market; see `jaxmarket.wide_market.equilibrium.EquilibriumSolver`."""
        check_market(valuations, wealth, holdings, prices, (StrictlyConcave,), _HINT)
        tolerances = 10 * self.tolerance, self.gap_tolerance
        return solve_strictly_concave(self.find, valuations, wealth, holdings, prices, tolerances)

    def trajectory(
        self, valuations: PyTree, wealth: Array, holdings: Array, *, prices: Array | None = None
    ) -> tuple[Float[Array, "rows G"], Float[Array, "rows G"]]:
        """Prices and excess demand over supply after 0, 1, … `max_iterations` adjustments: ``max_iterations`` + 1 rows.

        The trajectory continues where the solver stops: row ``certificate.iterations`` has the prices that the solver
        returns.

        Args:
            valuations: as for the solver.
            wealth: as for the solver.
            holdings: as for the solver.
            prices: as for the solver.
        """
        check_market(valuations, wealth, holdings, prices, (StrictlyConcave,), _HINT)
        adjust, begin = self._adjustment(*price_search(valuations, wealth, holdings, prices))
        _, rows = jax.lax.scan(lambda c, _: (adjust(c), (c.prices, c.excess)), begin, length=self.max_iterations + 1)
        return rows

    def find(
        self, search: PriceSearch, start: Float[Array, " G"], count: int | Int[Array, ""] = 0
    ) -> tuple[Float[Array, " G"], Int[Array, ""]]:
        """Market-clearing prices, and the number of adjustments including ``count`` earlier ones."""
        adjust, begin = self._adjustment(search, start)

        def goes_on(carry: tuple[_Adjusted, ...]) -> Array:
            now, best = carry
            # NaN never counts as an improvement, and never becomes finite again.
            return (
                (now.residual > 1)
                & (now.adjustments - best.adjustments < self.patience)
                & (now.adjustments < self.max_iterations)
            )

        def advance(carry: tuple[_Adjusted, ...]) -> tuple[_Adjusted, ...]:
            now, best = carry
            new = adjust(now)
            return new, tree_select(new.residual < best.residual, new, best)

        begin = begin._replace(adjustments=jnp.asarray(count, jnp.int32))
        last, best = jax.lax.while_loop(goes_on, advance, (begin, begin))
        return best.prices, last.adjustments

    def _adjustment(
        self, search: PriceSearch, start: Float[Array, " G"]
    ) -> tuple[Callable[[_Adjusted], _Adjusted], _Adjusted]:
        """The function of one adjustment, and its initial state."""
        epsilon = jnp.finfo(start.dtype).eps

        def evaluate(prices: Array, stuck: Array) -> tuple[Array, Array]:
            demands = search.demands(prices)
            excess = (demands.sum(0) - search.supply) / search.units
            movable, welfare = jnp.where(stuck < _STUCK, excess, 0), search.welfare(demands)
            return excess, clearing_residual(
                movable, prices, search.units, welfare, self.tolerance, search.typical_prices
            )

        def adjust(old: _Adjusted) -> _Adjusted:
            # Limit moves to tenfold, so that no good becomes free by a single overshoot.
            move = jnp.clip(old.rate * jnp.clip(old.excess, -0.9, 9), -old.limit, old.limit)
            prices = old.prices * (1 + move)
            stuck = jnp.where(jnp.abs(move) <= 2 * epsilon, old.stuck + 1, 0)
            excess, residual = evaluate(prices, stuck)
            crossed = excess * old.excess < 0
            # Excess demand can be many times the supply, but excess supply at most the supply. Without a limit, prices
            # of scarce goods would jump up and decrease slowly, forever.
            limit = jnp.where(crossed, jnp.abs(move) / 2, old.limit * 1.2)
            rate = jnp.minimum(jnp.where(crossed, old.rate / 2, old.rate * 1.2), 1)
            return _Adjusted(prices, rate, limit, excess, residual, stuck, old.adjustments + 1)

        stuck, unlimited = jnp.zeros(start.shape, jnp.int32), jnp.full_like(start, jnp.inf)
        excess, residual = evaluate(start, stuck)
        rate = jnp.full_like(start, self.rate)
        return adjust, _Adjusted(start, rate, unlimited, excess, residual, stuck, jnp.zeros((), jnp.int32))

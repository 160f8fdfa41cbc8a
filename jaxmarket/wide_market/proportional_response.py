"""Proportional response: agents divide their budgets among goods in proportion to the value each good gave them."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxmarket.switches import standard_promotion
from jaxmarket.types import Array, PyTree
from jaxmarket.wide_market.equilibrium import Equilibrium, certify, check_market, excess_units, ration
from jaxmarket.wide_market.valuations import Linear

__all__ = ["ProportionalResponse"]

_ROUNDS = 10
"""Rounds of proportional response between two evaluations of the duality gap."""


@dataclasses.dataclass(frozen=True)
class ProportionalResponse:
    """Agents spend on each good in proportion to the value they last got from it (Wu and Zhang 2007; Zhang 2011).

    For linear valuations of agents for whom wealth is a budget and not a cap: they maximise v · x - p · x over the
    bundles they can pay for, p · x <= w (``quasilinear``; Gao and Kroer 2020 have the response), or v · x alone, if
    money has no other use (a Fisher market). These are the optima of Eisenberg and Gale's program and of its
    quasilinear form (Cole et al. 2017). The certificate's ``duality_gap`` is that of the program over all budgets,
    Σ_i w_i log(the value w_i could buy at these prices / the value it bought) / Σ_i w_i. Every round clears.

    Attributes:
        quasilinear: whether agents value money that they keep.
        max_iterations: maximum number of rounds.
        gap_tolerance: duality gap at which it stops.
        patience: number of rounds without a smaller gap after which it stops.
    """

    quasilinear: bool = True
    max_iterations: int = 10_000
    gap_tolerance: float = 1e-3
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
        """Solve one market; see `jaxmarket.wide_market.equilibrium.EquilibriumSolver`."""
        check_market(valuations, wealth, holdings, prices, (Linear,), "proportional response needs Linear")
        tiny = jnp.finfo(holdings.dtype).tiny
        supply, budgets = holdings.sum(0), jnp.maximum(wealth, 0)
        values = jnp.maximum(valuations.values, 0) * supply  # of the whole supply of a good
        money = budgets / 2 if self.quasilinear else jnp.zeros_like(budgets)

        def spend(values: Array, money: Array) -> tuple[Array, Array]:
            total = values.sum(1) + money
            per_value = budgets / jnp.where(total > 0, total, 1)
            return values * per_value[:, None], money * per_value

        def respond(bids: Array, money: Array) -> tuple[Array, Array]:
            return spend(values * (bids / jnp.maximum(bids.sum(0), tiny)), money)

        def duality_gap(bids: Array, money: Array) -> Array:
            totals = jnp.maximum(bids.sum(0), tiny)
            bought = (values * (bids / totals)).sum(1) + money
            best = jnp.where(values > 0, values / totals, 0).max(1)
            best = jnp.maximum(best, 1) if self.quasilinear else best
            ratio = jnp.maximum(budgets * best, tiny) / jnp.maximum(bought, tiny)
            lost = jnp.where(bought > 0, budgets * jnp.log(ratio), 0)
            return jnp.maximum(lost.sum(), 0) / jnp.maximum(budgets.sum(), tiny)

        def goes_on(carry: tuple[Array, ...]) -> Array:
            gap, _, count, found = carry[2:]
            # This comparison also ends the loop at NaN.
            going = (count < self.max_iterations) & (gap > self.gap_tolerance) & (count - found < self.patience)
            return going | (count == 0)

        def rounds(carry: tuple[Array, ...]) -> tuple[Array, ...]:
            bids, money, _, best, count, found = carry
            bids, money = jax.lax.fori_loop(0, _ROUNDS, lambda _, pair: respond(*pair), (bids, money))
            gap, count = duality_gap(bids, money), count + _ROUNDS
            return bids, money, gap, jnp.minimum(gap, best), count, jnp.where(gap < best, count, found)

        bids, money = spend(values, money)
        infinite, zero = jnp.full((), jnp.inf, bids.dtype), jnp.zeros((), jnp.int32)
        carry = bids, money, infinite, infinite, zero, zero
        bids, money, gap, _, count, _ = jax.lax.while_loop(goes_on, rounds, carry)
        found = bids.sum(0) / jnp.where(supply > 0, supply, 1)
        demands = bids / jnp.where(found > 0, found, 1)
        tolerances = 1e-4, self.gap_tolerance
        certificate = certify(demands, holdings, excess_units(supply), found, gap, count, tolerances)
        return Equilibrium(found, found, ration(demands, holdings), certificate)

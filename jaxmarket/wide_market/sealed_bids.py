"""Sealed bids: one auction for each indivisible good."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxmarket import auctions
from jaxmarket.auctions import CREDIT_CONSERVING_VICKREY, Mechanism
from jaxmarket.switches import standard_promotion
from jaxmarket.types import Array, Outcome, PyTree, real
from jaxmarket.wide_market.equilibrium import Equilibrium, certify, check_market, excess_units, fill_rate, ration
from jaxmarket.wide_market.valuations import Additive

__all__ = ["SealedBids"]


@dataclasses.dataclass(frozen=True)
class SealedBids:
    """Simultaneous sealed-bid auctions, one for each indivisible good; agents bid their value of a good.

    Only `Additive` valuations are supported: with others, indivisible goods may have no equilibrium. If the values of
    an agent's bids for goods in supply add up to more than its wealth, its bids are scaled down in proportion, so that
    no agent can owe more than it has. A good with zero supply has a price, but is not sold. A good without bids stays
    with its owners. An agent does not bid on goods whose value is not finite, nor at all if its wealth is NaN.

    The certificate's ``duality_gap`` is measured by the bids: it is 0 if each price lies between the highest and the
    second-highest bid, because then no bidder prefers other goods. Exploration, and prices outside of this range, make
    it positive.

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
        """Solve one market; see `jaxmarket.wide_market.equilibrium.EquilibriumSolver`.

        With a key, ties are broken at random.
        """
        hint = "indivisible goods need Additive valuations; with others there may be no equilibrium"
        check_market(valuations, wealth, holdings, prices, (Additive,), hint, excludes_nan=True)
        if self.exploration is not None and key is None:
            raise ValueError(
                f"key: exploration={self.exploration!r} needs a PRNG key, got None; pass jax.random.key(0)"
            )
        supply, budget = holdings.sum(0), jnp.maximum(wealth, 0)
        values = valuations.values
        unknown = jnp.isnan(wealth)
        willing, budget = jnp.isfinite(values) & ~unknown[:, None], jnp.where(unknown, 0, budget)
        bids = jnp.where(willing, values, 0)
        scaled = bids * fill_rate(budget, jnp.maximum(bids, 0) @ supply)[:, None]
        bids = jnp.where(supply > 0, scaled, jnp.minimum(bids, budget[:, None]))

        draws = None if key is None else jax.random.uniform(key, (holdings.shape[1], 3), real())
        outcome = jax.vmap(self._clear, (1, 1, None if draws is None else 0))(bids, willing, draws)
        pay = jnp.where(outcome.winner >= 0, jax.vmap(self.mechanism.price)(outcome), 0)
        receive = jnp.where(outcome.winner >= 0, jax.vmap(self.mechanism.payout)(outcome), 0)
        subsidy = receive - pay
        demands = jnp.where(jnp.arange(wealth.shape[0])[:, None] == outcome.winner, supply, 0)
        # With exploration the winner may be unable to pay another agent's bid: it pays what it has, and the owner
        # receives less.
        affordable = fill_rate(budget, demands @ jnp.maximum(pay, 0))
        pay = jnp.where(supply > 0, pay * affordable[jnp.maximum(outcome.winner, 0)], pay)

        gain = jnp.where(willing, bids - pay, 0) * supply
        gap = jnp.maximum(gain, 0).sum() - jnp.where(demands > 0, gain, 0).sum()
        welfare = jnp.where(demands > 0, bids * supply, 0).sum()
        gap = jnp.maximum(gap, 0) / jnp.maximum(jnp.abs(welfare), jnp.finfo(pay.dtype).tiny)
        one = jnp.ones((), jnp.int32)
        certificate = certify(demands, holdings, excess_units(supply), pay, gap, one, (1e-4, 1e-3))
        return Equilibrium(pay, pay + subsidy, ration(demands, holdings), certificate)

    def _clear(self, bids: Float[Array, " N"], willing: Bool[Array, " N"], draws: Float[Array, "3"] | None) -> Outcome:
        """The auction of one good."""
        winner = auctions.choose(bids, None if draws is None else draws[0], willing)
        if self.exploration is not None and draws is not None:
            winner = jnp.where(draws[1] < self.exploration, auctions.pick(draws[2], willing), winner)
        return auctions.award(bids, winner, willing)

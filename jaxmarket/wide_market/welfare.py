"""Measures of a wide market: welfare, dispersion of prices, supply of money.

Pure functions of solver results (`jaxmarket.wide_market.equilibrium`) and of recorded rounds
(`jaxmarket.wide_market.market.WideMarketStep`) of one market; use `vmap` for several.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxmarket.accounts import CashFlows
from jaxmarket.types import Array, PyTree
from jaxmarket.wide_market.equilibrium import Equilibrium, EquilibriumSolver, best_response_gain, capped_values
from jaxmarket.wide_market.valuations import Additive, Linear

__all__ = [
    "efficiency",
    "money_supply",
    "price_dispersion",
    "price_stability",
    "total_welfare",
    "wealth_history",
    "welfare_bound",
]


# --- welfare


def total_welfare(
    valuations: PyTree, wealth: Float[Array, " N"] | None, bundles: Float[Array, "N G"]
) -> Float[Array, ""]:
    """Σ_i min(v_i(X_i), w_i).

    Args:
        valuations: leaves [N, ...].
        wealth: the caps; None for Σ_i v_i(X_i).
        bundles: what agents own.
    """
    return capped_values(valuations, _caps(wealth, bundles), bundles).sum()


def welfare_bound(
    valuations: PyTree,
    wealth: Float[Array, " N"] | None,
    supply: Float[Array, " G"],
    prices: Float[Array, " G"] | None = None,
) -> Float[Array, ""]:
    """An upper bound on the welfare of all allocations of a supply.

    - `Additive`, and `Linear` without caps: every unit goes to the agent with the highest value, Σ_j S_j max_i v_ij.
      This bound is tight. (Caps on `Additive` are ignored, since the capped problem is a knapsack problem; with caps
      the bound may not be tight.)
    - Other valuations: the dual of the welfare program, p · S + Σ_i max_x (min(v_i(x), w_i) - p · x). This is a bound
      at all prices, and tight at those of an equilibrium.

    It holds up to rounding, and to the sixth digit of `jaxmarket.wide_market.equilibrium.capped_demand`.

    Args:
        valuations: additive, linear or strictly concave; leaves [N, ...].
        wealth: or None, as for `total_welfare`.
        supply: S.
        prices: p, not negative; for the dual.

    Raises:
        ValueError: ``prices`` is None and the bound is that of the dual.
    """
    if isinstance(valuations, Additive) or (isinstance(valuations, Linear) and wealth is None):
        highest = jnp.max(jnp.where(jnp.isfinite(valuations.values), valuations.values, 0), 0)
        return jnp.maximum(highest, 0) @ supply
    if prices is None:
        raise ValueError(
            f"prices: expected prices f [G], since the bound for {type(valuations).__name__} is that of the dual, got "
            "None; pass those of an equilibrium"
        )
    agents = jax.tree.leaves(valuations)[0].shape[0]
    nothing = jnp.zeros((agents, supply.shape[0]), supply.dtype)
    return prices @ supply + best_response_gain(valuations, _caps(wealth, nothing), prices, nothing).sum()


def efficiency(
    valuations: PyTree,
    wealth: Float[Array, " N"] | None,
    bundles: Float[Array, "N G"],
    prices: Float[Array, " G"] | None = None,
) -> Float[Array, ""]:
    """Welfare over the bound for the same supply (`welfare_bound`), in [0, 1]; NaN if the bound is 0.

    If the bound is not tight, the true efficiency is higher.

    Args:
        valuations: as for `total_welfare`.
        wealth: as for `total_welfare`.
        bundles: what agents own.
        prices: for the bound of the dual.

    Raises:
        ValueError: as for `welfare_bound`.
    """
    bound = welfare_bound(valuations, wealth, bundles.sum(0), prices)
    return total_welfare(valuations, wealth, bundles) / jnp.where(bound > 0, bound, jnp.nan)


def _caps(wealth: Float[Array, " N"] | None, bundles: Float[Array, "N G"]) -> Float[Array, " N"]:
    # Without wealth, larger than any value, and finite: infinity has no derivatives.
    return jnp.full(bundles.shape[:1], jnp.finfo(bundles.dtype).max ** 0.5) if wealth is None else wealth


# --- prices


def price_dispersion(prices: Float[Array, "..."], axis: int = 0) -> Float[Array, "..."]:
    """Coefficient of variation, standard deviation over mean, along an axis (rounds, markets, agents).

    NaN entries (goods without a quote) are ignored. The result is NaN if no entries remain, or if the mean is 0.

    Args:
        prices: with an axis K.
        axis: position of the axis K.

    Returns:
        f [...], without the axis K.
    """
    mean = jnp.nanmean(prices, axis)
    return jnp.nanstd(prices, axis) / jnp.where(mean == 0, jnp.nan, jnp.abs(mean))


def price_stability(
    solver: EquilibriumSolver,
    valuations: PyTree,
    wealth: Float[Array, " N"],
    holdings: Float[Array, "N G"],
    present: Array,
    *,
    key: Array | None = None,
) -> Equilibrium:
    """Equilibria of K markets, each without some of the agents: leaves [K, ...].

    Absent agents take their money and goods with them. `price_dispersion` of the results measures how much prices
    depend on which agents are present. If their presence is random, it falls like 1 / √N in ever larger copies of a
    market (dynamic scale; Sudhir and Tran-Thanh 2025).

    Args:
        solver: any `jaxmarket.wide_market.equilibrium.EquilibriumSolver`.
        valuations: of all agents, leaves [N, ...].
        wealth: of all agents.
        holdings: of all agents.
        present: bool [K, N].
        key: for solvers that use randomness.

    Raises:
        ValueError: the shapes do not match.
    """
    if present.ndim != 2 or present.shape[1:] != wealth.shape:
        raise ValueError(
            f"present: expected bool [K, N] with N = {wealth.shape[0]}, got {present.shape}; "
            "give a row for each market and a column for each agent"
        )

    def solve(here: Array, key: Array | None) -> Equilibrium:
        remaining = valuations
        if isinstance(valuations, Additive):  # a bid of 0 could still win
            remaining = Additive(jnp.where(here[:, None], valuations.values, -jnp.inf))
        return solver(remaining, jnp.where(here, wealth, 0), jnp.where(here[:, None], holdings, 0), key=key)

    keys = None if key is None else jax.random.split(key, present.shape[0])
    return jax.vmap(solve, (0, None if key is None else 0))(present, keys)


# --- money


def money_supply(opening: Float[Array, " N"], flows: CashFlows) -> Float[Array, " T"]:
    """The amount of money after each round, according to the cash flows.

    Args:
        opening: wealth before the first round.
        flows: of rounds, f [T, N] each (`jaxmarket.wide_market.market.run`).
    """
    return opening.sum() + jnp.cumsum(flows.net.sum(1))


def wealth_history(opening: Float[Array, " N"], flows: CashFlows) -> Float[Array, "T N"]:
    """The wealth of each agent after each round, according to the cash flows. See `money_supply`."""
    return opening + jnp.cumsum(flows.net, 0)

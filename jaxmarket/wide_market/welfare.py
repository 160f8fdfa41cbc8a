"""How well a wide market does: welfare, the spread of prices, the supply of money, who comes and goes.

Pure functions of what a solver found (`equilibria`) and of what happened (`goods.Round`), for one market; `vmap` them.
"""

import jax
import jax.numpy as jnp

from jaxmarket.types import Array, PyTree
from jaxmarket.wide_market.equilibrium import Equilibrium, Solver, capped_values, regret
from jaxmarket.wide_market.market import Books
from jaxmarket.wide_market.valuations import Additive, Linear

__all__ = [
    "accounts",
    "bound",
    "dispersion",
    "efficiency",
    "money_residual",
    "money_supply",
    "price_stability",
    "total",
]


# --- welfare


def total(valuations: PyTree, wealth: Array | None, bundles: Array) -> Array:
    """Welfare: what all agents' bundles are worth to them, Σ min(v_i(X_i), w_i), f [].

    Args:
        valuations: leaves [N, ...].
        wealth: f [N], the caps; None: Σ v_i(X_i), whoever can pay for it.
        bundles: f [N, G].
    """
    return capped_values(valuations, _caps(wealth, bundles), bundles).sum()


def bound(valuations: PyTree, wealth: Array | None, supply: Array, prices: Array | None = None) -> Array:
    """More welfare than this cannot be had from a supply, f [].

    - `Additive`, and `Linear` without caps: every unit goes to whoever values it most, Σ_j S_j max_i v_ij. This is
      reached. (Caps on `Additive` are left out: with them it is a knapsack problem, and this only a bound.)
    - Else the dual of the welfare program, p · S + Σ_i max_x (min(v_i(x), w_i) - p · x): true at all prices, reached
      at those of an equilibrium.

    Up to rounding, and to the sixth digit of `equilibria.capped_demand`.

    Args:
        valuations: additive, linear or strictly concave; leaves [N, ...].
        wealth: f [N], or None, as for `total`.
        supply: S, f [G].
        prices: p, f [G], not negative; for the dual.

    Raises:
        ValueError: the dual needs prices, and there are none.
    """
    if isinstance(valuations, Additive) or (isinstance(valuations, Linear) and wealth is None):
        most = jnp.max(jnp.where(jnp.isfinite(valuations.values), valuations.values, 0), 0)
        return jnp.maximum(most, 0) @ supply
    if prices is None:
        raise ValueError(
            f"prices: the bound for {type(valuations).__name__} is that of the dual at some prices, got None; "
            "use those of an equilibrium"
        )
    agents = jax.tree.leaves(valuations)[0].shape[0]
    nothing = jnp.zeros((agents, supply.shape[0]), supply.dtype)
    return prices @ supply + regret(valuations, _caps(wealth, nothing), prices, nothing).sum()


def efficiency(valuations: PyTree, wealth: Array | None, bundles: Array, prices: Array | None = None) -> Array:
    """Welfare over the most there could be of these bundles' goods (`bound`), f [] in [0, 1]; NaN if that is 0.

    Where `bound` is not reached, the true efficiency is higher than this.

    Args:
        valuations, wealth: as for `total`.
        bundles: f [N, G].
        prices: f [G], for the dual's bound.

    Raises:
        ValueError: as for `bound`.
    """
    most = bound(valuations, wealth, bundles.sum(0), prices)
    return total(valuations, wealth, bundles) / jnp.where(most > 0, most, jnp.nan)


def _caps(wealth: Array | None, bundles: Array) -> Array:
    # More than anything is worth, and finite: infinity has no derivatives.
    return jnp.full(bundles.shape[:1], jnp.finfo(bundles.dtype).max ** 0.5) if wealth is None else wealth


# --- prices


def dispersion(prices: Array, axis: int = 0) -> Array:
    """Coefficient of variation along an axis (rounds, markets, agents): standard deviation over mean, without it.

    NaN is skipped: a good that was not quoted. Where nothing is left, or the mean is 0, it is NaN.

    Args:
        prices: f [..., K, ...].
        axis: which one is K.
    """
    mean = jnp.nanmean(prices, axis)
    return jnp.nanstd(prices, axis) / jnp.where(mean == 0, jnp.nan, jnp.abs(mean))


def price_stability(
    solver: Solver,
    valuations: PyTree,
    wealth: Array,
    holdings: Array,
    present: Array,
    *,
    key: Array | None = None,
) -> Equilibrium:
    """Equilibria of K markets, in each of which some agents are absent; one call, leaves [K, ...].

    Whoever is absent takes its money and its goods along. The `dispersion` of their prices says how much prices depend
    on who is there. If that is chance, it falls like 1 / √N in ever larger copies of a market (dynamic scale; Sudhir
    and Tran-Thanh 2025).

    Args:
        solver: from `equilibria`, or like them.
        valuations: of all agents, leaves [N, ...].
        wealth: f [N].
        holdings: f [N, G].
        present: bool [K, N].
        key: for solvers that draw.

    Raises:
        ValueError: the shapes do not fit.
    """
    if present.ndim != 2 or present.shape[1:] != wealth.shape:
        raise ValueError(
            f"present: expected bool [K, N] with N = {wealth.shape[0]}, got {present.shape}; "
            "a row for each set of agents, a column for each agent"
        )

    def solve(here: Array, key: Array | None) -> Equilibrium:
        those = valuations
        if isinstance(valuations, Additive):  # a bid of nothing could still win
            those = Additive(jnp.where(here[:, None], valuations.values, -jnp.inf))
        return solver(those, jnp.where(here, wealth, 0), jnp.where(here[:, None], holdings, 0), key=key)

    keys = None if key is None else jax.random.split(key, present.shape[0])
    return jax.vmap(solve, (0, None if key is None else 0))(present, keys)


# --- money


def money_supply(opening: Array, books: Books) -> Array:
    """All money there is after each round, as the named flows have it: f [T].

    Payments between agents cancel, so what is left are rewards, the auctioneer's mint, incomes and rent.

    Args:
        opening: f [N], wealth before the first round.
        books: of rounds, leaves [T, ...] (`goods.run`).
    """
    change = books.reward.sum(1) + books.income.sum(1) - books.rent.sum(1) + books.subsidy
    return opening.sum() + jnp.cumsum(change)


def accounts(opening: Array, books: Books) -> Array:
    """What each agent has after each round by the books: f [T, N]. See `money_supply`."""
    change = books.sale - books.purchase + books.reward + books.income - books.rent
    return opening + jnp.cumsum(change, 0)


def money_residual(opening: Array, books: Books, closing: Array) -> Array:
    """|money that no named flow accounts for|, over money moved or held: f []. Rounding, or a bug.

    Args:
        opening, books: as for `money_supply`.
        closing: f [N], wealth after the last round.
    """
    flows = (books.sale, books.reward, books.income, books.rent)
    moved = sum((jnp.abs(flow).sum() for flow in flows), jnp.abs(books.subsidy).sum())
    unnamed = jnp.abs(closing.sum() - money_supply(opening, books)[-1])
    return unnamed / jnp.maximum(1, jnp.maximum(moved, jnp.abs(closing).sum()))

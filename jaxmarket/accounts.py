"""Accounts: payments, named cash flows, and the law that money is conserved.

Every market of the library keeps its money in arrays of accounts, names every movement of money in `CashFlows`, and
checks that the accounts changed by these flows and by nothing else::

    >>> import jax.numpy as jnp
    >>> from jaxmarket.accounts import CashFlows, withdraw
    >>> before = jnp.array([5.0, 1.0, 0.0])
    >>> after = before + jnp.array([2.0, 0.0, 0.0]) - jnp.array([0.5, 0.1, 0.0])  # a reward, and rent
    >>> after = after.at[0].add(-3.0).at[1].add(3.0)  # account 0 pays account 1
    >>> flows = CashFlows.of(reward=jnp.array(2.0), rent=jnp.array(-0.6), transfers={"sales": jnp.array(3.0)})
    >>> float(flows["rent"]), round(float(flows.net), 6), round(float(flows.moved), 6)
    (-0.6..., 1.4, 5.6)
    >>> round(float(flows.residual(before, after)), 6)
    0.0
    >>> fees = CashFlows.of(fee=jnp.array(-0.25), rent=jnp.array(-0.1))
    >>> float((flows + fees)["fee"]), round(float((flows + fees)["rent"]), 6)
    (-0.25, -0.7)

A market sums flows over its accounts (as here) or keeps an entry for each account (as `jaxmarket.settlement.flows`).
`check_flows` checks the same law inside a step, in programs that `jaxmarket.checking.checked` compiled.
"""

import functools
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Float, Int

from jaxmarket.checking import check, check_conserved, checking
from jaxmarket.types import AUCTIONEER, Accounts, Array, PyTree

__all__ = ["CashFlows", "check_flows", "pay_sale", "withdraw"]


class CashFlows(struct.PyTreeNode):
    """Named movements of money: a pytree whose names are static.

    Flows are signed as the accounts see them: positive for money received, negative for money paid. Transfers are
    gross amounts that one account of the market paid to another; they count in `moved` and not in `net`.

    Attributes:
        amounts: f [...], one array for each name, all of the same shape.
        names: of the flows and the transfers, in the order in which they are added up.
        transfers: the names that are transfers.
    """

    amounts: tuple[Array, ...]
    names: tuple[str, ...] = struct.field(pytree_node=False)
    transfers: frozenset[str] = struct.field(pytree_node=False, default=frozenset())

    @classmethod
    def of(cls, transfers: Mapping[str, Array] | None = None, **flows: Array) -> "CashFlows":
        """Flows, and transfers, by name.

        Args:
            transfers: f [...], at least 0: gross amounts paid between accounts of the market.
            flows: f [...], the other flows, all of one shape; positive for money received.

        Raises:
            ValueError: two amounts differ in shape.
        """
        named = flows | dict(transfers or {})
        if len({jnp.shape(amount) for amount in named.values()}) > 1:
            shapes = ", ".join(f"{name} {jnp.shape(amount)}" for name, amount in named.items())
            raise ValueError(f"flows: expected amounts of one shape, got {shapes}; broadcast or sum them first")
        return cls(tuple(named.values()), tuple(named), frozenset(transfers or ()))

    def __getitem__(self, name: str) -> Array:
        if name not in self.names:
            raise KeyError(f"{name}: unknown flow; choose from {', '.join(self.names)}")
        return self.amounts[self.names.index(name)]

    def __add__(self, other: "CashFlows") -> "CashFlows":
        """The sum by name; a name that only one of the two has is kept as it is."""
        amounts = dict(zip(self.names, self.amounts, strict=True))
        for name, amount in zip(other.names, other.amounts, strict=True):
            amounts[name] = amounts[name] + amount if name in amounts else amount
        return type(self)(tuple(amounts.values()), tuple(amounts), self.transfers | other.transfers)

    @property
    def net(self) -> Array:
        """The change of the accounts: the sum of all flows but transfers, f [...]."""
        flows = [x for name, x in zip(self.names, self.amounts, strict=True) if name not in self.transfers]
        return functools.reduce(operator.add, flows)

    @property
    def moved(self) -> Array:
        """The gross amount that was received, paid or transferred: the scale of rounding errors, f [...]."""
        return functools.reduce(operator.add, [abs(amount) for amount in self.amounts])

    def residual(self, before: PyTree, after: PyTree, held: Array | float = 0.0) -> Array:
        """The change of the accounts that no flow explains, relative to the money that moved or is held: f [].

        Rounding leaves about 1e-7 in float32. NumPy arrays are computed by NumPy, in their own precision.

        Args:
            before, after: f [...] leaves, all accounts (or their sum) before and after the flows.
            held: f [], raises the scale where the accounts hold more than was moved.
        """

        def total(balances: PyTree) -> Any:
            return sum(x.sum() if hasattr(x, "sum") else x for x in jax.tree.leaves(balances))

        change = total(after) - total(before)
        scale = functools.reduce(operator.add, [abs(amount).sum() for amount in self.amounts])
        xp = scale.__array_namespace__()
        return abs(change - self.net.sum()) / xp.maximum(1, xp.maximum(scale, held))


def check_flows(before: PyTree, after: PyTree, flows: CashFlows, **context: Any) -> None:
    """Check that accounts changed by the named flows and by nothing else but rounding, in `checked` programs only.

    Args:
        before, after: f [...] leaves, all accounts of the market.
        flows: everything that happened in between.
        context: integers that identify the place, such as ``step=t``.
    """
    if checking():
        named = dict(zip(flows.names, flows.amounts, strict=True))
        moved = [named.pop(name) for name in flows.transfers]
        check_conserved(jax.tree.leaves(before), jax.tree.leaves(after), list(named.values()), moved, **context)


def pay_sale(
    accounts: Accounts,
    *,
    buyer: Int[Array, ""],
    seller: Int[Array, ""],
    price: Float[Array, ""],
    payout: Float[Array, ""],
    reward: Float[Array, ""],
    windfalls: Float[Array, " A"] | None = None,
) -> Accounts:
    """Move the money of one sale and one reward.

    The buyer pays ``price`` and earns ``reward``; the seller receives ``payout``. The auctioneer sells the first state
    of an episode, and earns the reward of a step that no bidder bought. The difference of payout and price is minted.

    Args:
        accounts: before the sale.
        buyer, seller: bidders, or `AUCTIONEER`.
        price: paid by the buyer.
        payout: received by the seller.
        reward: of the buyer's environment step.
        windfalls: what the environment pays each bidder for a step that another one bought; None if nothing.
    """
    wealth, auctioneer = accounts.wealth, accounts.auctioneer
    ids = jnp.arange(wealth.shape[0])
    for role, account in (("buyer", buyer), ("seller", seller)):
        check(
            lambda account=account: (account >= AUCTIONEER) & (account < wealth.shape[0]),
            f"{role}: expected an account from -1 (the auctioneer) to {wealth.shape[0] - 1}, got {{account}}",
            account=account,
        )
    after = Accounts(
        wealth=wealth + jnp.where(ids == buyer, reward - price, 0) + jnp.where(ids == seller, payout, 0),
        auctioneer=auctioneer + jnp.where(seller < 0, payout, 0) + jnp.where(buyer < 0, reward, 0),
    )
    earned = reward
    if windfalls is not None:
        after, earned = after.replace(wealth=after.wealth + windfalls), reward + windfalls.sum()
    if checking():
        # Without a buyer the price is not paid.
        check_flows(accounts, after, CashFlows.of(reward=earned, sale=payout, purchase=-jnp.where(buyer < 0, 0, price)))
    return after


def withdraw(
    balances: Float[Array, " N"], payer: Int[Array, " K"], amounts: Float[Array, " K"]
) -> tuple[Float[Array, " N"], Float[Array, ""]]:
    """Deduct payments from accounts, without rounding below 0.

    An account with several payments, of at most its balance in total, can end a few units in the last place below 0.
    Such an account is set to 0, and the difference is returned.

    Args:
        balances: of all accounts.
        payer: index of the paying account.
        amounts: at least 0.

    Returns:
        The balances, and the amount that this correction adds to their sum.
    """
    after = balances.at[payer].add(-amounts)
    short = jnp.where((balances >= 0) & (after < 0), -after, 0)
    return after + short, short.sum()

"""Firms that learn late: prices arrive after a delay, and a firm updates whenever they do.

In `DelayedMarket` goods are produced and consumed at once, but the prices of a trade reach a firm some steps later. The
firm then ascends its profit for what it bought at that time, at the prices of that time, with the parameters that it
has now. No firm waits for another one, as in asynchronous, decentralised training. A firm that updates in every k-th
step has the optimizer ``optax.MultiSteps(optimizer, k)``.

`delay_aware` shortens the steps of a firm whose prices are old.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Int32

from jaxmarket.networks.firms import Consumers, FirmMarket, FirmState, Trade
from jaxmarket.types import Array, PyTree
from jaxmarket.validation import check_int

__all__ = ["DelayedMarket", "DelayedState", "delay_aware"]


def delay_aware(optimizer: optax.GradientTransformation, delay: int) -> optax.GradientTransformation:
    """The optimizer with steps divided by ``1 + delay``, the number of updates that a price has missed, plus 1."""
    return optax.chain(optimizer, optax.scale(1 / (1 + check_int("delay", delay, 0))))


class DelayedState(struct.PyTreeNode):
    """Parameters and optimizer states, and the trades whose prices are under way."""

    firms: FirmState
    goods: dict[str, Array]  # leaves [longest delay + 1, ...]: the trade of step t is in row t modulo their number
    prices: dict[str, Array]
    step: Int32[Array, ""]


@dataclasses.dataclass(frozen=True)
class DelayedMarket:
    """A `FirmMarket` whose prices reach firms late; static.

    Attributes:
        market: the firms and goods.
        delays: by firm, in steps; a firm that is missing has the delay 0.
    """

    market: FirmMarket
    delays: Mapping[str, int]

    def __post_init__(self) -> None:
        if not isinstance(self.delays, Mapping):
            raise ValueError(
                f"delays: expected the delay of each firm by name, got {self.delays!r}; write {{firm: delay}}"
            )
        if unknown := sorted(set(self.delays) - set(self.market.firms)):
            raise ValueError(f"delays: unknown firm {unknown[0]!r}; choose from {', '.join(self.market.firms)}")
        for firm, delay in self.delays.items():
            check_int(f"delays[{firm!r}]", delay, 0)

    @property
    def late(self) -> dict[str, int]:
        """The delays of the firms whose prices are late."""
        return {firm: delay for firm, delay in self.delays.items() if delay}

    def init(self, params: PyTree, inputs: tuple[Array, ...], consumers: Consumers) -> DelayedState:
        """The state before the first step.

        Args:
            params: as in `FirmMarket.init`.
            inputs, consumers: as in `FirmMarket.step`, for the shapes.
        """
        firms = self.market.init(params)
        trade = jax.eval_shape(lambda params: self.market.trade(params, inputs, consumers), firms.params)
        goods, prices = self._kept(trade)
        goods, prices = jax.tree.map(lambda x: jnp.zeros((self._rows, *x.shape), x.dtype), (goods, prices))
        return DelayedState(firms, goods, prices, jnp.zeros((), jnp.int32))

    def params(self, state: DelayedState) -> PyTree:
        """As `FirmMarket.params`."""
        return self.market.params(state.firms)

    def step(self, state: DelayedState, inputs: tuple[Array, ...], consumers: Consumers) -> tuple[DelayedState, Trade]:
        """Produce and trade; then every firm updates by the prices that have arrived.

        Arguments are those of `FirmMarket.step`. A firm whose delay is d does not change in the first d steps.
        """
        trade = self.market.trade(state.firms.params, inputs, consumers)
        rows = self._rows
        goods, prices = jax.tree.map(
            lambda old, new: old.at[state.step % rows].set(new), (state.goods, state.prices), self._kept(trade)
        )
        firms = self.market.update(state.firms, {f: g for f, g in trade.marginal_profits.items() if f not in self.late})
        for firm, delay in self.late.items():
            old = jax.tree.map(lambda x, delay=delay: x[(state.step - delay) % rows], (goods, prices))
            gradient = self.market.marginal_profit(firm, state.firms.params[firm], *old)
            moved = self.market.update(state.firms, {firm: gradient})
            here = jax.tree.map(
                lambda new, before, delay=delay: jnp.where(state.step >= delay, new, before),
                (moved.params[firm], moved.optimizer[firm]),
                (state.firms.params[firm], state.firms.optimizer[firm]),
            )
            firms = FirmState(firms.params | {firm: here[0]}, firms.optimizer | {firm: here[1]})
        return DelayedState(firms, goods, prices, state.step + 1), trade

    @property
    def _rows(self) -> int:
        """The number of trades that are kept."""
        return max(self.late.values(), default=0) + 1

    def _kept(self, trade: Trade) -> tuple[dict[str, Array], dict[str, Array]]:
        """The goods that late firms buy, and the prices of those that they sell."""
        plants = [plant for plant in self.market.plants if plant.firm in self.late]
        goods = {good: trade.goods[good] for plant in plants for good in plant.buys}
        prices = {good: trade.prices[good] for plant in plants for good in plant.sells if good in trade.prices}
        return goods, prices

"""Networks trained by profit: firms that buy activations, sell activations, and ascend their own profit.

A firm owns parameters w and turns the goods x that it buys into the goods y = f_w(x) that it sells. Consumers value the
last goods, and pay their marginal value. A firm that receives the prices b for its outputs offers

    a = (∂f_w / ∂x)ᵀ b        money per unit of each input

to its suppliers, and its suppliers receive the sum of the offers of their buyers: an activation is not used up, every
buyer receives a copy. This is the recursion of `jaxmarket.networks.backpropagation` with all shares 1. At posted prices
a firm's profit is

    b · f_w(x) - a · x - rent(w),    with the gradient    (∂f_w / ∂w)ᵀ b - ∇ rent(w)

and b is the gradient of welfare with respect to y. So a firm that ascends its own profit at these prices takes a step
of gradient ascent on welfare, and all firms together train the network (Sudhir and Tran-Thanh 2025; the author's price
recursion). No step differentiates the whole network: a firm differentiates its own production only.

    >>> import optax
    >>> layer = lambda w, x: (x @ w,)
    >>> market = FirmMarket(
    ...     plants=(Plant("lower", layer, ("x",), ("h",)), Plant("upper", layer, ("h",), ("y",))),
    ...     buys=("x",),
    ...     sells=("y",),
    ...     optimizers=optax.sgd(0.5),
    ... )
    >>> state = market.init({"lower": jnp.array([[1.0]]), "upper": jnp.array([[2.0]])})
    >>> consumers = lambda y: 3 * y.sum()  # they pay 3 for a unit of y
    >>> state, trade = market.step(state, (jnp.array([[1.0]]),), consumers)
    >>> trade.prices["h"].tolist(), state.params["lower"].tolist()  # 3 · 2, and 1 + 0.5 · 6
    ([[6.0]], [[4.0]])
    >>> float(trade.accounts["upper"]["sales"]), float(trade.accounts["upper"]["purchases"])  # 3 · 2, and -6 · 1
    (6.0, -6.0)

All functions are pure and work under `jit` and `vmap`. Accounts that a compiled program does not use cost nothing.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Float

from jaxmarket.accounts import CashFlows
from jaxmarket.types import Array, PyTree, real
from jaxmarket.validation import short_repr

__all__ = ["FirmMarket", "FirmState", "Plant", "Trade"]

Consumers = Callable[..., Array]
"""``(*goods sold by the market) -> f []``, the value of the goods to consumers: they pay its gradient."""


@dataclasses.dataclass(frozen=True)
class Plant:
    """One step of a firm's production; static.

    A firm may have several plants, which share its parameters: a layer that is applied twice, for example.

    Attributes:
        firm: the firm that owns the parameters, and receives and pays the money.
        produce: ``(parameters of the firm, *goods bought) -> goods sold``, a tuple; pure. Goods are arrays, mostly
            [batch, ...].
        buys: names of the goods it buys.
        sells: names of the goods it sells.
        member_axis: None, or the plant consists of members, such as the neurons of a layer: each is a firm with its own
            account and optimizer. Then parameters have a leading axis [members, ...], ``produce`` is that of one
            member, and members' goods are stacked on this axis.
    """

    firm: str
    produce: Callable[..., tuple[Array, ...]]
    buys: tuple[str, ...]
    sells: tuple[str, ...]
    member_axis: int | None = None

    def __post_init__(self) -> None:
        for field, names in (("buys", self.buys), ("sells", self.sells)):
            if isinstance(names, str):
                raise ValueError(f"{field}: expected a tuple of names, got {names!r}; write ({names!r},)")

    def run(self, params: PyTree, *bought: Array) -> tuple[Array, ...]:
        """The goods that the plant makes of those it bought.

        Raises:
            ValueError: ``produce`` returns something else than a tuple of the goods that it sells.
        """
        produce = self.produce
        if self.member_axis is not None:
            produce = jax.vmap(produce, (0, *(None for _ in bought)), self.member_axis)
        made = produce(params, *bought)
        if not isinstance(made, tuple | list) or len(made) != len(self.sells):
            raise ValueError(
                f"produce: expected a tuple of {len(self.sells)} goods, {', '.join(self.sells)}, from {self.firm}, got "
                f"{short_repr(made)}; return a tuple"
            )
        return tuple(made)

    def value(self, prices: Array, good: Array) -> Array:
        """The value of a good that it sells at these prices: f [], or f [members]."""
        if self.member_axis is None:
            return jnp.vdot(prices, good)
        return jnp.moveaxis(prices * good, self.member_axis, 0).reshape(good.shape[self.member_axis], -1).sum(1)


class FirmState(struct.PyTreeNode):
    """Parameters and optimizer states of all firms, by name."""

    params: dict[str, PyTree]
    optimizer: dict[str, PyTree]


class Trade(struct.PyTreeNode):
    """What was produced, and at which prices it was sold, in one step."""

    welfare: Float[Array, ""]  # the value to consumers
    goods: dict[str, Array]  # by name: of the inputs, of all firms
    prices: dict[str, Array]  # money per unit of each good, in the shape of the good; of differentiable goods only
    marginal_profits: dict[str, PyTree]  # by firm: the gradient of its profit with respect to its parameters
    accounts: dict[
        str, CashFlows
    ]  # by firm, f [] or f [members]: sales, purchases, rent; `CashFlows.net` is the profit
    paid_by_consumers: Float[Array, ""]  # for the goods that the market sells
    paid_to_suppliers: Float[Array, ""]  # for the goods that it buys

    def residual(self) -> Float[Array, ""]:
        """The money that appears or vanishes between consumers, firms and suppliers, relative to what was moved."""
        traded = [flows["sales"] + flows["purchases"] for flows in self.accounts.values()]
        moved = [abs(flows["sales"]) + abs(flows["purchases"]) for flows in self.accounts.values()]
        lost = self.paid_by_consumers - self.paid_to_suppliers - sum(x.sum() for x in traded)
        return abs(lost) / jnp.maximum(1, sum(x.sum() for x in moved))


@dataclasses.dataclass(frozen=True)
class FirmMarket:
    """Firms and the goods that they trade; static.

    Attributes:
        plants: in an order in which every good is made before it is bought.
        buys: the goods that enter: inputs of the network.
        sells: the goods that consumers buy: outputs of the network. A good of integers has no price.
        optimizers: of each firm, by name; or one, of which every firm has a copy. An optimizer sees the parameters of
            its own firm only: clipping by the global norm is clipping by the norm of the firm.
        rents: by firm, ``(parameters, or those of a member) -> f []``: what the firm pays in every step for what it
            uses, such as its units. Other firms pay nothing.
        split: ``parameters of the network -> by firm``; None if the parameters are given by firm.
        join: its inverse.
        shapes: of the inputs, if the market works for no others; None if it takes any.
    """

    plants: tuple[Plant, ...]
    buys: tuple[str, ...]
    sells: tuple[str, ...]
    optimizers: optax.GradientTransformation | Mapping[str, optax.GradientTransformation]
    rents: Mapping[str, Callable[[PyTree], Array]] = dataclasses.field(default_factory=dict)
    split: Callable[[PyTree], dict[str, PyTree]] | None = None
    join: Callable[[dict[str, PyTree]], PyTree] | None = None
    shapes: tuple[jax.ShapeDtypeStruct, ...] | None = None

    def __post_init__(self) -> None:
        made = set(self.buys)
        for plant in self.plants:
            if missing := [good for good in plant.buys if good not in made]:
                raise ValueError(
                    f"plants: {plant.firm} buys {missing[0]!r}, which is not made before; list plants in the order of "
                    "production, and inputs in buys"
                )
            if double := [good for good in plant.sells if good in made]:
                raise ValueError(
                    f"plants: {plant.firm} sells {double[0]!r}, which is made already; give every good its own name"
                )
            made.update(plant.sells)
        if unknown := [good for good in self.sells if good not in made]:
            raise ValueError(f"sells: no plant makes {unknown[0]!r}; choose from {', '.join(sorted(made))}")
        owners = {plant.firm: plant.member_axis is None for plant in self.plants}
        if mixed := [p.firm for p in self.plants if owners[p.firm] != (p.member_axis is None)]:
            raise ValueError(f"member_axis: some plants of {mixed[0]} have members and some do not; use two firms")
        for field, named in (("optimizers", self.optimizers), ("rents", self.rents)):
            if isinstance(named, Mapping) and (unknown := sorted(set(named) - set(owners))):
                raise ValueError(f"{field}: unknown firm {unknown[0]!r}; choose from {', '.join(owners)}")
        if isinstance(self.optimizers, Mapping) and (lacking := [f for f in owners if f not in self.optimizers]):
            raise ValueError(f"optimizers: {lacking[0]} has no optimizer; give one to every firm")

    @property
    def firms(self) -> tuple[str, ...]:
        """The names of all firms, in the order of their first plants."""
        return tuple(dict.fromkeys(plant.firm for plant in self.plants))

    @property
    def groups(self) -> frozenset[str]:
        """The names of the firms that consist of members."""
        return frozenset(plant.firm for plant in self.plants if plant.member_axis is not None)

    def init(self, params: PyTree) -> FirmState:
        """The state before the first step.

        Args:
            params: of the network, if the market has `split`; otherwise parameters by firm. Firms without parameters
                may be missing.

        Raises:
            ValueError: a firm is unknown.
        """
        owned = dict(params) if self.split is None else self.split(params)
        if unknown := sorted(set(owned) - set(self.firms)):
            raise ValueError(f"params: unknown firm {unknown[0]!r}; choose from {', '.join(self.firms)}")
        owned = {firm: owned.get(firm, ()) for firm in self.firms}
        return FirmState(owned, {firm: self._each(firm, self._optimizer(firm).init)(owned[firm]) for firm in owned})

    def params(self, state: FirmState) -> PyTree:
        """The parameters of the network, or, without `join`, by firm."""
        return state.params if self.join is None else self.join(state.params)

    def produce(self, params: Mapping[str, PyTree], inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """The goods that consumers can buy: the forward pass of the network.

        Args:
            params: by firm.
            inputs: the goods that the market buys, in the order of `buys`.

        Raises:
            ValueError: the inputs do not match.
        """
        goods = self._inputs(inputs)
        for plant in self.plants:
            made = plant.run(params[plant.firm], *(goods[good] for good in plant.buys))
            goods |= zip(plant.sells, made, strict=True)
        return tuple(goods[good] for good in self.sells)

    def trade(self, params: Mapping[str, PyTree], inputs: tuple[Array, ...], consumers: Consumers) -> Trade:
        """Produce, let consumers bid, and let every firm quote prices to its suppliers, from the last to the first.

        Args:
            params: by firm.
            inputs: as in `produce`.
            consumers: the value of the goods sold, such as minus the mean loss of a batch.

        Raises:
            ValueError: the inputs do not match, or consumers return something else than a number.
        """
        goods, pulls = self._inputs(inputs), []
        for plant in self.plants:
            made, pull = jax.vjp(plant.run, params[plant.firm], *(goods[good] for good in plant.buys))
            goods |= zip(plant.sells, made, strict=True)
            pulls.append(pull)
        sold = [goods[good] for good in self.sells]
        welfare, marginal_values = jax.vjp(consumers, *sold)
        if jnp.shape(welfare):
            raise ValueError(f"consumers: expected a number, got shape {jnp.shape(welfare)}; return a sum or a mean")
        bids = marginal_values(jnp.ones_like(welfare))
        prices = {good: _no_price(amount) for good, amount in goods.items()}
        for good, bid in zip(self.sells, bids, strict=True):
            prices[good] = _plus(prices[good], bid)
        gradients: dict[str, PyTree] = {}
        quotes = []
        for plant, pull in zip(reversed(self.plants), reversed(pulls), strict=True):
            received = tuple(prices[good] for good in plant.sells)
            gradient, *offers = pull(received)
            for good, offer in zip(plant.buys, offers, strict=True):
                prices[good] = _plus(prices[good], offer)
            known = gradients.get(plant.firm)
            gradients[plant.firm] = gradient if known is None else jax.tree.map(jnp.add, known, gradient)
            quotes.append((plant, received, offers))
        rents = {firm: self._rent(firm, params[firm]) for firm in self.firms}
        return Trade(
            welfare=welfare,
            goods=goods,
            prices={good: price for good, price in prices.items() if _priced(goods[good])},
            marginal_profits={f: jax.tree.map(jnp.subtract, gradients[f], rents[f][1]) for f in self.firms},
            accounts=self._accounts(params, goods, quotes, {firm: rent for firm, (rent, _) in rents.items()}),
            paid_by_consumers=_total(bids, sold),
            paid_to_suppliers=_total([prices[good] for good in self.buys], [goods[good] for good in self.buys]),
        )

    def _accounts(
        self, params: Mapping[str, PyTree], goods: Mapping[str, Array], quotes: list, rents: Mapping[str, Array]
    ) -> dict[str, CashFlows]:
        """The cash flows of every firm, f [] or f [members], given what each plant receives and offers per unit."""
        nothing = jnp.zeros((), real())
        sales, purchases = dict.fromkeys(self.firms, nothing), dict.fromkeys(self.firms, nothing)
        for plant, received, offers in quotes:
            bought, sold = ([goods[good] for good in names] for names in (plant.buys, plant.sells))
            sales[plant.firm] += _sum(
                plant.value(price, good) for price, good in zip(received, sold, strict=True) if _priced(good)
            )
            purchases[plant.firm] -= self._cost(plant, params[plant.firm], bought, offers, received)
        paid = {firm: -jnp.broadcast_to(rents[firm], sales[firm].shape) for firm in self.firms}
        return {f: CashFlows.of(sales=sales[f], purchases=purchases[f], rent=paid[f]) for f in self.firms}

    def revenue(
        self, firm: str, params: PyTree, goods: Mapping[str, Array], prices: Mapping[str, Array]
    ) -> Float[Array, ""]:
        """What a firm would earn with these parameters: b · f_w(x), the prices b and the goods x that it bought given.

        Args:
            firm: its name.
            params: of the firm.
            goods: at least those that the firm buys.
            prices: of the goods that the firm sells.
        """
        revenue = jnp.zeros((), real())
        for plant in self.plants:
            if plant.firm == firm:
                made = plant.run(params, *(goods[good] for good in plant.buys))
                sold = [(prices[good], y) for good, y in zip(plant.sells, made, strict=True) if _priced(y)]
                revenue += _sum(jnp.vdot(price, y) for price, y in sold)
        return revenue

    def profit(self, firm: str, params: PyTree, trade: Trade) -> Float[Array, ""]:
        """A firm's profit with these parameters at the prices of a trade, for what it bought there.

        Its gradient at the parameters of the trade is the marginal profit.

        Args:
            firm: its name.
            params: of the firm.
            trade: fixes prices, the goods bought and what the firm paid for them.
        """
        revenue = self.revenue(firm, params, trade.goods, trade.prices)
        return revenue + trade.accounts[firm]["purchases"].sum() - self._rent(firm, params)[0].sum()

    def marginal_profit(
        self, firm: str, params: PyTree, goods: Mapping[str, Array], prices: Mapping[str, Array]
    ) -> PyTree:
        """The gradient of `revenue` less the rent: that of the profit at posted prices. Arguments as in `revenue`."""
        gradient = jax.grad(self.revenue, 1)(firm, params, goods, prices)
        return jax.tree.map(jnp.subtract, gradient, self._rent(firm, params)[1])

    def update(self, state: FirmState, marginal_profits: Mapping[str, PyTree]) -> FirmState:
        """Every firm's optimizer takes a step that ascends its own profit.

        Args:
            state: before the step.
            marginal_profits: by firm; a firm that is missing does not change.
        """
        params, optimizer = dict(state.params), dict(state.optimizer)
        for firm, gradient in marginal_profits.items():
            step = self._each(firm, self._optimizer(firm).update)
            descent = jax.tree.map(jnp.negative, gradient)
            updates, optimizer[firm] = step(descent, state.optimizer[firm], state.params[firm])
            params[firm] = optax.apply_updates(state.params[firm], updates)
        return FirmState(params, optimizer)

    def step(self, state: FirmState, inputs: tuple[Array, ...], consumers: Consumers) -> tuple[FirmState, Trade]:
        """`trade`, then `update` of every firm."""
        trade = self.trade(state.params, inputs, consumers)
        return self.update(state, trade.marginal_profits), trade

    def _inputs(self, inputs: tuple[Array, ...]) -> dict[str, Array]:
        if not isinstance(inputs, tuple | list) or len(inputs) != len(self.buys):
            raise ValueError(
                f"inputs: expected a tuple of {len(self.buys)} arrays, {', '.join(self.buys)}, got {short_repr(inputs)}"
            )
        goods = {name: jnp.asarray(good) for name, good in zip(self.buys, inputs, strict=True)}
        for (name, good), expected in zip(goods.items(), self.shapes or (), strict=bool(self.shapes)):
            if (good.shape, good.dtype) != (expected.shape, expected.dtype):
                raise ValueError(
                    f"inputs: expected {name} {expected.dtype}{list(expected.shape)}, got "
                    f"{good.dtype}{list(good.shape)}; "
                    "a market of a function has the shapes for which it was built: build "
                    "another one, or drop or fill up the last batch"
                )
        return goods

    def _optimizer(self, firm: str) -> optax.GradientTransformation:
        return self.optimizers[firm] if isinstance(self.optimizers, Mapping) else self.optimizers

    def _each(self, firm: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function for the firm, or for each of its members."""
        return jax.vmap(function) if firm in self.groups else function

    def _rent(self, firm: str, params: PyTree) -> tuple[Array, PyTree]:
        """What the firm (each member) pays for what it uses, and the gradient."""
        if firm not in self.rents:
            return jnp.zeros((), real()), jax.tree.map(jnp.zeros_like, params)
        return self._each(firm, jax.value_and_grad(self.rents[firm]))(params)

    @staticmethod
    def _cost(plant: Plant, params: PyTree, bought: list[Array], offers: list[Array], received: tuple) -> Array:
        """What the plant (each member) pays for the goods it bought, a · x."""
        if plant.member_axis is None:
            return _total(offers, bought)
        # The offers of one member are Jᵀ b, and (Jᵀ b) · x = b · (J x): one product for all members.
        made, moved = jax.jvp(
            lambda *goods: plant.run(params, *goods),
            tuple(bought),
            tuple(x if _priced(x) else _no_price(x) for x in bought),
        )
        return _sum(plant.value(b, dy) for b, y, dy in zip(received, made, moved, strict=True) if _priced(y))


def _priced(good: Array) -> bool:
    """Whether a good has a price: integers, booleans and keys have none."""
    return jnp.issubdtype(good.dtype, jnp.inexact)


def _no_price(good: Array) -> Any:
    """The price of a good without buyers."""
    return jnp.zeros_like(good) if _priced(good) else np.zeros(good.shape, jax.dtypes.float0)


def _plus(price: Any, other: Any) -> Any:
    return price if getattr(price, "dtype", None) == jax.dtypes.float0 else price + other


def _total(prices: Iterable[Array], goods: Iterable[Array]) -> Array:
    """The value of goods at these prices, f []."""
    return _sum(jnp.vdot(price, good) for price, good in zip(prices, goods, strict=True) if _priced(good))


def _sum(amounts: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, amounts, jnp.zeros((), jnp.float32))

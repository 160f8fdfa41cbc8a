"""Two processes that trade: each owns some of the firms, and they exchange nothing but goods and prices.

The upstream process makes goods of the inputs and ships them. The downstream process sells to the consumers, updates
its firms, and returns the prices of the goods it bought. Upstream updates its firms when prices arrive, and does not
wait for them: up to ``window`` shipments are under way, so prices can be ``window - 1`` steps old. With a window of 1
the two processes compute what one process computes.
"""

import dataclasses
import functools
import multiprocessing
import sys
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.networks.firms import FirmMarket, FirmState
from jaxmarket.types import Array, PyTree
from jaxmarket.validation import check_int

__all__ = ["Division", "TwoProcessRun", "divide", "train_in_two_processes"]


@dataclasses.dataclass(frozen=True)
class Division:
    """Firms of two processes, and the data of their training. Each process builds it by itself.

    Attributes:
        market: of all firms.
        upstream: the firms of the first process; they buy nothing from the others.
        params: as in `FirmMarket.init`.
        batch: ``step -> (inputs, data)``: what the market buys, and what consumers know, such as labels.
        utility: ``(data, *goods sold) -> f []``.
    """

    market: FirmMarket
    upstream: Collection[str]
    params: PyTree
    batch: Callable[[int], tuple[tuple[Array, ...], PyTree]]
    utility: Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class TwoProcessRun:
    """The result of `train_in_two_processes`: parameters of the network, and the welfare of every step, f [steps]."""

    params: PyTree
    welfare: np.ndarray


def divide(market: FirmMarket, upstream: Collection[str]) -> tuple[FirmMarket, FirmMarket]:
    """Two markets: the second buys what the first sells, and inputs that it needs.

    Args:
        market: of all firms.
        upstream: the firms of the first market.

    Raises:
        ValueError: a firm is unknown, one of the markets has no firm, or an upstream firm buys from a downstream firm.
    """
    if unknown := sorted(set(upstream) - set(market.firms)):
        raise ValueError(f"upstream: unknown firm {unknown[0]!r}; choose from {', '.join(market.firms)}")
    first = tuple(plant for plant in market.plants if plant.firm in upstream)
    second = tuple(plant for plant in market.plants if plant.firm not in upstream)
    if not first or not second:
        raise ValueError(f"upstream: expected some of the firms {', '.join(market.firms)}, got {sorted(upstream)}")
    made = {good for plant in first for good in plant.sells}
    later = {good for plant in second for good in plant.sells}
    if wrong := [(plant.firm, good) for plant in first for good in plant.buys if good in later]:
        raise ValueError(f"upstream: {wrong[0][0]} buys {wrong[0][1]} from downstream; move one of the two firms")
    needed = dict.fromkeys([good for plant in second for good in plant.buys if good not in later])
    shipped = dict.fromkeys(good for good in (*needed, *market.sells) if good in made)
    entered = tuple(dict.fromkeys(good for good in (*needed, *market.sells) if good in market.buys))
    parts = []
    for plants, buys, sells in ((first, market.buys, tuple(shipped)), (second, (*shipped, *entered), market.sells)):
        names = {plant.firm for plant in plants}
        optimizers = market.optimizers
        if isinstance(optimizers, Mapping):
            optimizers = {firm: optimizers[firm] for firm in names}
        rents = {firm: rent for firm, rent in market.rents.items() if firm in names}
        parts.append(FirmMarket(plants, buys, sells, optimizers, rents))
    return parts[0], parts[1]


def train_in_two_processes(build: Callable[[], Division], steps: int, window: int = 1) -> TwoProcessRun:
    """Train the upstream firms in this process, and the downstream firms in a new one.

    The new process imports the script that calls this: a script must call it below ``if __name__ == "__main__":``.

    Args:
        build: a function of a module (or a `functools.partial` of one), called in both processes.
        steps: number of steps.
        window: the most shipments under way, at least 1.

    Raises:
        ValueError: ``steps`` or ``window`` is less than 1; or as `divide`.
        RuntimeError: the downstream process failed; its error is shown on its standard error.
    """
    steps, window = check_int("steps", steps, 1), check_int("window", window, 1)
    division = build()
    market, _ = divide(division.market, division.upstream)
    state = _state_of(market, division)
    produce = jax.jit(market.produce)
    receive = jax.jit(lambda state, inputs, prices: market.step(state, inputs, functools.partial(_posted, prices))[0])
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_downstream, args=(build, there), daemon=True)
    process.start()
    there.close()
    # A thread ships, so that this one can always receive: two processes that both send large arrays would wait forever.
    shipping = ThreadPoolExecutor(max_workers=1)
    under_way: deque[tuple[Array, ...]] = deque()
    welfare: list[float] = []
    try:
        for step in range(steps):
            inputs, _ = division.batch(step)
            shipping.submit(here.send, (step, jax.tree.map(np.asarray, produce(state.params, inputs))))
            under_way.append(inputs)
            while under_way and (len(under_way) >= window or step == steps - 1 or here.poll()):
                prices, value = here.recv()
                state = receive(state, under_way.popleft(), prices)
                welfare.append(value)
        shipping.submit(here.send, None)
        downstream = here.recv()
    except (EOFError, ConnectionError) as error:
        raise RuntimeError(
            "the downstream process failed, and its error is shown above; a script must call train_in_two_processes "
            'below if __name__ == "__main__":'
        ) from error
    finally:
        process.join(timeout=0 if sys.exc_info()[0] else 10)
        process.kill()
        shipping.shutdown(cancel_futures=True)
        here.close()
    joined = division.market.join or (lambda owned: owned)
    return TwoProcessRun(joined({**state.params, **downstream}), np.asarray(welfare))


def _downstream(build: Callable[[], Division], connection: Connection) -> None:
    """The loop of the downstream process: goods in, prices out, until None comes."""
    division = build()
    upstream, market = divide(division.market, division.upstream)
    state = _state_of(market, division)
    entered = [division.market.buys.index(good) for good in market.buys if good in division.market.buys]

    def trade(state: FirmState, goods: tuple[Array, ...], data: PyTree) -> Any:
        state, done = market.step(state, goods, functools.partial(division.utility, data))
        prices = tuple(done.prices.get(good, jnp.zeros(())) for good in upstream.sells)
        return state, prices, done.welfare

    trade = jax.jit(trade)
    while (shipment := connection.recv()) is not None:
        step, goods = shipment
        inputs, data = division.batch(step)
        state, prices, welfare = trade(state, (*goods, *(inputs[k] for k in entered)), data)
        connection.send((jax.tree.map(np.asarray, prices), float(welfare)))
    connection.send(jax.tree.map(np.asarray, state.params))


def _state_of(market: FirmMarket, division: Division) -> FirmState:
    """The initial state of one part."""
    params = division.market.init(division.params).params
    return market.init({firm: params[firm] for firm in market.firms})


def _posted(prices: tuple[Array, ...], *goods: Array) -> Array:
    """Consumers who pay posted prices."""
    values = [jnp.vdot(price, good) for price, good in zip(prices, goods, strict=True) if price.shape == good.shape]
    return sum(values, jnp.zeros(()))

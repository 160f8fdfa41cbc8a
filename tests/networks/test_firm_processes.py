"""Two processes that exchange goods and prices, against one process."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmarket.networks import FirmMarket, Plant
from jaxmarket.networks.processes import Division, divide, train_in_two_processes

STEPS = 30
PLANTS = (
    Plant("first", lambda w, x: (jnp.tanh(x @ w),), ("x",), ("h",)),
    Plant("second", lambda w, h: (jnp.tanh(h @ w), h.sum()), ("h",), ("k", "total")),
    Plant("third", lambda w, h, k, x: (h @ w + k @ w + x.sum(),), ("h", "k", "x"), ("y",)),
)
MARKET = FirmMarket(PLANTS, ("x",), ("y", "total"), optax.sgd(0.1, momentum=0.5))


def batch(step):
    x = jax.random.normal(jax.random.key(step), (6, 3))
    return (x,), jnp.sin(x.sum(1, keepdims=True))


def utility(target, y, total):
    return -((y - target) ** 2).mean() + 0.01 * jnp.tanh(total)


def large(step):
    return (jnp.ones((250_000, 3)),), jnp.zeros((250_000, 1))


def build(upstream=("first", "second"), fails=False, data=batch):
    if fails and __import__("multiprocessing").parent_process() is not None:
        raise OSError("a fault in the other process")
    shapes = {"first": (3, 4), "second": (4, 4), "third": (4, 2)}
    params = {name: jax.random.normal(jax.random.key(k), shapes[name]) / 2 for k, name in enumerate(shapes)}
    return Division(MARKET, upstream, params, data, utility)


@functools.cache
def together():
    """The parameters and the welfare of one process."""
    division = build()
    state, welfare = MARKET.init(division.params), []
    step = jax.jit(lambda state, x, target: MARKET.step(state, x, functools.partial(utility, target)))
    for k in range(STEPS):
        state, trade = step(state, *batch(k))
        welfare.append(float(trade.welfare))
    return state.params, welfare


@pytest.mark.slow
def test_two_processes_compute_what_one_computes():
    run = train_in_two_processes(build, STEPS)
    params, welfare = together()
    assert welfare[-1] > welfare[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), run.params, params)
    np.testing.assert_allclose(run.welfare, welfare, atol=1e-5)


@pytest.mark.slow
def test_a_process_that_does_not_wait_learns_from_old_prices():
    run = train_in_two_processes(build, STEPS, window=4)
    assert len(run.welfare) == STEPS
    assert np.isfinite(run.welfare).all()
    assert run.welfare[-5:].mean() > run.welfare[:5].mean()


@pytest.mark.slow
def test_goods_that_do_not_fit_into_a_pipe_reach_the_other_process():
    run = train_in_two_processes(functools.partial(build, data=large), steps=5, window=5)
    assert np.isfinite(run.welfare).all()


@pytest.mark.slow
def test_the_failure_of_the_other_process_is_an_error_here():
    with pytest.raises(RuntimeError, match="downstream process failed"):
        train_in_two_processes(functools.partial(build, fails=True), STEPS)


@pytest.mark.parametrize("upstream", [("first",), ("first", "second")])
def test_two_markets_trade_as_one(upstream):
    lower, upper = divide(MARKET, upstream)
    params, (inputs, target) = build().params, batch(0)
    whole = MARKET.trade(params, inputs, functools.partial(utility, target))
    shipped = lower.produce(params, inputs)
    bought = (*shipped, *(inputs[MARKET.buys.index(good)] for good in upper.buys if good in MARKET.buys))
    second = upper.trade(params, bought, functools.partial(utility, target))
    first = lower.trade(
        params,
        inputs,
        lambda *goods: sum(jnp.vdot(second.prices[name], good) for name, good in zip(lower.sells, goods, strict=True)),
    )
    for firm, expected in whole.marginal_profits.items():
        found = (first if firm in upstream else second).marginal_profits[firm]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("upstream", [(), ("first", "second", "third"), ("unknown",), ("second",)])
def test_markets_that_cannot_be_divided_are_refused(upstream):
    with pytest.raises(ValueError, match=r"^upstream:"):
        divide(MARKET, upstream)

"""Firms that learn from old prices, against a list of past trades."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmarket.networks import FirmMarket, Plant
from jaxmarket.networks.delays import DelayedMarket, delay_aware

PLANTS = (
    Plant("lower", lambda w, x: (jnp.tanh(x @ w),), ("x",), ("h",)),
    Plant("upper", lambda w, h: (h @ w,), ("h",), ("y",)),
)
MARKET = FirmMarket(PLANTS, ("x",), ("y",), optax.adam(0.05))
STEPS = 9


def setting():
    params = {
        "lower": jax.random.normal(jax.random.key(0), (3, 4)),
        "upper": jax.random.normal(jax.random.key(1), (4, 2)),
    }
    x = jax.random.normal(jax.random.key(2), (STEPS, 5, 3))
    return params, x


def consumers(y):
    return -((y - 1) ** 2).mean()


def run(market):
    params, x = setting()
    step = jax.jit(lambda state, x: market.step(state, (x,), consumers)[0])
    state = market.init(params, (x[0],), consumers) if isinstance(market, DelayedMarket) else market.init(params)
    for row in x:
        state = step(state, row)
    return market.params(state)


def test_without_delay_nothing_changes():
    jax.tree.map(np.testing.assert_array_equal, run(DelayedMarket(MARKET, {"lower": 0})), run(MARKET))


@pytest.mark.parametrize("delays", ({"lower": 3}, {"lower": 2, "upper": 4}))
def test_a_late_firm_ascends_its_profit_at_old_prices_with_its_present_parameters(delays):
    params, x = setting()
    state, past = MARKET.init(params), []
    trade = jax.jit(lambda params, x: MARKET.trade(params, (x,), consumers))
    for t, row in enumerate(x):
        past.append(trade(state.params, row))
        gradients = {}
        for firm in params:
            if t >= delays.get(firm, 0):
                old = past[t - delays.get(firm, 0)]
                gradients[firm] = jax.grad(lambda w, firm=firm, old=old: MARKET.profit(firm, w, old))(
                    state.params[firm]
                )
        state = MARKET.update(state, gradients)
    ours = run(DelayedMarket(MARKET, delays))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, state.params)
    assert np.abs(ours["lower"] - run(MARKET)["lower"]).max() > 1e-3


def test_delay_aware_steps_are_shorter():
    gradient = jnp.asarray(2.0)
    tx = delay_aware(optax.sgd(0.1), 4)
    np.testing.assert_allclose(tx.update(gradient, tx.init(gradient))[0], -0.04, rtol=1e-6)


@pytest.mark.parametrize("delays", ({"unknown": 1}, {"lower": -1}, {"lower": 0.5}, 3))
def test_wrong_delays_are_refused(delays):
    with pytest.raises(ValueError, match=r"^delays"):
        DelayedMarket(MARKET, delays)

"""Firms that ascend their own profit, against gradients of whole networks and the library's price recursion."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmarket.networks import FirmMarket, Plant
from jaxmarket.networks.backpropagation import MarketGraph, goods_flows, goods_prices


def dense(params, x):
    return (jnp.tanh(x @ params["kernel"] + params["bias"]),)


def add(_, x, y):
    return (x + y,)


# A residual network whose two layers share their parameters, and a firm that makes two goods.
PLANTS = (
    Plant("layer", dense, ("x",), ("h",)),
    Plant("layer", dense, ("h",), ("k",)),
    Plant("merchant", add, ("h", "k"), ("sum",)),
    Plant("splitter", lambda w, x: (w * x, x**2), ("sum",), ("y", "z")),
)
MARKET = FirmMarket(PLANTS, ("x",), ("y", "z"), optax.sgd(0.1))


def params_of(rng, dtype=float):
    layer = {"kernel": rng.normal(size=(3, 3)), "bias": rng.normal(size=3)}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), {"layer": layer, "splitter": rng.normal(size=3)})


def consumers(y, z):
    return jnp.sin(y).sum() - (z**2).mean()


@jax.jit
def welfare(params, x):
    """The same network, written down without a market."""
    (h,) = dense(params["layer"], x)
    total = h + dense(params["layer"], h)[0]
    return consumers(params["splitter"] * total, total**2)


@jax.jit
def trade_of(params, x):
    return MARKET.trade(params | {"merchant": ()}, (x,), consumers)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("seed", range(3))
def test_marginal_profits_and_prices_are_the_gradients_of_welfare(x64, seed):
    rng = np.random.default_rng(seed)
    params, x = params_of(rng), jnp.asarray(rng.normal(size=(5, 3)))
    trade = trade_of(params, x)
    value, (gradient, by_inputs) = jax.value_and_grad(welfare, (0, 1))(params, x)
    np.testing.assert_allclose(trade.welfare, value, rtol=1e-12)
    np.testing.assert_allclose(trade.prices["x"], by_inputs, rtol=1e-10)
    for firm, expected in gradient.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), trade.marginal_profits[firm], expected)


def test_profit_at_posted_prices_has_the_marginal_profit_as_gradient(x64):
    rng = np.random.default_rng(0)
    params, x = params_of(rng), jnp.asarray(rng.normal(size=(5, 3)))
    trade = trade_of(params, x)
    for firm in params:
        gradient = jax.jit(jax.grad(lambda w, firm=firm: MARKET.profit(firm, w, trade)))(params[firm])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), gradient, trade.marginal_profits[firm])
        np.testing.assert_allclose(MARKET.profit(firm, params[firm], trade), trade.accounts[firm].net, rtol=1e-10)


def test_money_that_consumers_pay_reaches_firms_and_suppliers():
    rng = np.random.default_rng(1)
    params, x = params_of(rng, jnp.float32), jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    trade = trade_of(params, x)
    profits = sum(float(flows.net) for flows in trade.accounts.values())
    assert abs(float(trade.paid_by_consumers)) > 0.1
    np.testing.assert_allclose(trade.paid_by_consumers, profits + trade.paid_to_suppliers, rtol=1e-5)
    assert float(trade.residual()) < 1e-6
    lost = trade.replace(paid_by_consumers=trade.paid_by_consumers + 1)
    assert float(lost.residual()) > 1e-2


def test_prices_are_those_of_the_recursion_on_a_graph(x64):
    # A chain of three layers of the width of 2 goods, as agents that sell all they make to the next one.
    rng = np.random.default_rng(2)
    weights, b = jnp.asarray(rng.normal(size=(3, 2, 2))), jnp.asarray([0.7, -2.0])
    graph = MarketGraph(lambda w, x: jnp.tanh(x @ w), lambda w, x, y: jnp.zeros(()))
    shares = jnp.zeros((3, 3, 2)).at[0, 1].set(1).at[1, 2].set(1)
    endowments = jnp.zeros((3, 2)).at[0].set(jnp.asarray(rng.normal(size=2)))
    flows, _ = goods_flows(graph, weights, shares, endowments)
    bids = jax.tree.map(jnp.zeros_like, goods_prices(graph, weights, shares, flows.x)[0])
    quoted, _ = goods_prices(graph, weights, shares, flows.x, bids.replace(outputs=bids.outputs.at[2].set(b)))
    plants = tuple(Plant(str(k), lambda w, x: (jnp.tanh(x @ w),), (f"good{k}",), (f"good{k + 1}",)) for k in range(3))
    market = FirmMarket(plants, ("good0",), ("good3",), optax.sgd(1.0))
    trade = market.trade({str(k): weights[k] for k in range(3)}, (endowments[0],), lambda y: b @ y)
    for k in range(3):
        np.testing.assert_allclose(trade.prices[f"good{k}"], quoted.inputs[k], rtol=1e-10)
        np.testing.assert_allclose(trade.prices[f"good{k + 1}"], quoted.outputs[k], rtol=1e-10)


def test_rent_is_paid_and_counts_in_the_marginal_profit():
    market = FirmMarket(
        (Plant("a", lambda w, x: (w * x,), ("x",), ("y",)),), ("x",), ("y",), optax.sgd(1.0), {"a": lambda w: 3 * w}
    )
    state, trade = market.step(market.init({"a": jnp.float32(2.0)}), (jnp.ones(4),), jnp.sum)
    flows = trade.accounts["a"]
    assert (float(flows["sales"]), float(flows["purchases"]), float(flows["rent"])) == (8.0, -8.0, -6.0)
    assert float(state.params["a"]) == 2 + 4 - 3


def test_each_firm_has_the_optimizer_it_was_given():
    optimizers = {"layer": optax.sgd(0.0), "merchant": optax.sgd(0.1), "splitter": optax.adam(0.5)}
    market = FirmMarket(PLANTS, ("x",), ("y", "z"), optimizers)
    params = params_of(np.random.default_rng(3), jnp.float32)
    after, _ = market.step(market.init(params), (jnp.ones((2, 3)),), consumers)
    jax.tree.map(np.testing.assert_array_equal, after.params["layer"], params["layer"])
    np.testing.assert_allclose(abs(after.params["splitter"] - params["splitter"]), 0.5, rtol=1e-4)


def test_goods_of_integers_have_no_price():
    plants = (
        Plant("table", lambda w, index: (w[index], index + 1), ("index",), ("row", "next")),
        Plant("reader", lambda w, row, index: (w * row[index],), ("row", "next"), ("y",)),
    )
    market = FirmMarket(plants, ("index",), ("y", "next"), optax.sgd(0.1))
    params = {"table": jnp.arange(12.0).reshape(4, 3), "reader": jnp.float32(2.0)}
    trade = market.trade(params, (jnp.int32(1),), lambda y, index: y)
    assert set(trade.prices) == {"row", "y"}
    np.testing.assert_array_equal(trade.marginal_profits["table"][1], [0, 0, 2])
    assert float(trade.residual()) == 0


def test_consumers_may_buy_what_enters_the_market():
    market = FirmMarket((Plant("a", lambda w, x: (w * x,), ("x",), ("y",)),), ("x",), ("y", "x"), optax.sgd(1.0))
    trade = market.trade({"a": jnp.float32(2.0)}, (jnp.float32(3.0),), lambda y, x: y + 5 * x)
    assert float(trade.prices["x"]) == 2 + 5
    assert (float(trade.paid_by_consumers), float(trade.paid_to_suppliers)) == (6 + 15, 21)
    assert float(trade.residual()) == 0


def trade_with(plants, consumers):
    params = params_of(np.random.default_rng(0), jnp.float32)
    return FirmMarket(plants, ("x",), ("h",), optax.sgd(1.0)).trade(params, (jnp.ones((2, 3)),), consumers)


@pytest.mark.parametrize(
    ("field", "build"),
    [
        ("plants", lambda: FirmMarket(PLANTS[1:], ("x",), ("y",), optax.sgd(1.0))),
        ("plants", lambda: FirmMarket((*PLANTS, PLANTS[0]), ("x",), ("y",), optax.sgd(1.0))),
        ("sells", lambda: FirmMarket(PLANTS, ("x",), ("nothing",), optax.sgd(1.0))),
        ("optimizers", lambda: FirmMarket(PLANTS, ("x",), ("y",), {"unknown": optax.sgd(1.0)})),
        ("optimizers", lambda: FirmMarket(PLANTS, ("x",), ("y",), {"layer": optax.sgd(1.0)})),
        ("rents", lambda: FirmMarket(PLANTS, ("x",), ("y",), optax.sgd(1.0), {"unknown": jnp.sum})),
        ("params", lambda: MARKET.init({"unknown": jnp.zeros(2)})),
        ("buys", lambda: Plant("a", dense, "x", ("y",))),
        ("sells", lambda: Plant("a", dense, ("x",), "y")),
        ("consumers", lambda: trade_with(PLANTS[:1], lambda h: h)),
        ("produce", lambda: trade_with((Plant("layer", lambda w, x: x, ("x",), ("h",)),), jnp.sum)),
        ("inputs", lambda: MARKET.trade(MARKET.init(params_of(np.random.default_rng(0))).params, (), consumers)),
        (
            "member_axis",
            lambda: FirmMarket(
                (PLANTS[0], Plant("layer", dense, ("h",), ("k",), member_axis=0)), ("x",), ("k",), optax.sgd(1.0)
            ),
        ),
    ],
)
def test_wrong_markets_are_refused_by_field(field, build):
    with pytest.raises(ValueError, match=f"^{field}:"):
        build()

"""Payments by hand, cash flows by name, and the conservation law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket.accounts import CashFlows, check_flows, pay_sale, withdraw
from jaxmarket.checking import checked
from jaxmarket.types import AUCTIONEER, NOBODY, Accounts


@pytest.mark.parametrize(
    ("buyer", "seller", "wealth", "auctioneer"),
    [
        (1, 2, [0, 97, 5], 0),  # 1 pays 4 and earns 1, 2 receives 5
        (1, AUCTIONEER, [0, 97, 0], 5),
        (1, 1, [0, 102, 0], 0),  # buys from itself
        (NOBODY, AUCTIONEER, [0, 100, 0], 6),  # the auctioneer earns the reward of a step without a buyer
    ],
)
def test_pay_sale_by_hand(buyer, seller, wealth, auctioneer):
    got = pay_sale(
        Accounts(jnp.array([0.0, 100.0, 0.0]), jnp.zeros(())),
        buyer=jnp.int32(buyer),
        seller=jnp.int32(seller),
        price=jnp.float32(4),
        payout=jnp.float32(5),
        reward=jnp.float32(1),
    )
    assert (got.wealth.tolist(), float(got.auctioneer)) == (wealth, auctioneer)


def test_windfalls_are_paid_beside_the_sale():
    got = pay_sale(
        Accounts(jnp.array([0.0, 100.0, 0.0]), jnp.zeros(())),
        buyer=jnp.int32(0),
        seller=jnp.int32(1),
        price=jnp.float32(4),
        payout=jnp.float32(5),
        reward=jnp.float32(1),
        windfalls=jnp.array([0.0, 0.5, -2.0]),
    )
    assert (got.wealth.tolist(), float(got.auctioneer)) == ([-3.0, 105.5, -2.0], 0)


def test_withdraw_never_rounds_below_zero():
    """Twelve payments of a twelfth each, which add up to more than the balance in float32."""
    balances = jnp.array([0.7, 3.0, -2.0])
    after, rounding = withdraw(balances, jnp.zeros(12, jnp.int32), jnp.full(12, 0.7 / 12 * (1 + 1e-7)))
    assert after[0] >= 0 and after[1:].tolist() == [3.0, -2.0]
    assert abs(float(after.sum() - balances.sum() + 0.7 - rounding)) < 1e-6


def flows(scale=1.0):
    return CashFlows.of(
        reward=scale * jnp.array([2.0, 0.0]), rent=-scale * jnp.ones(2), transfers={"sales": scale * jnp.full(2, 5.0)}
    )


def test_flows_by_name():
    got = flows()
    assert got.names == ("reward", "rent", "sales")
    assert (got.net.tolist(), got.moved.tolist()) == ([1, -1], [8, 6])
    with pytest.raises(KeyError, match="tax: unknown flow; choose from reward, rent, sales"):
        got["tax"]
    with pytest.raises(ValueError, match=r"^flows: .*rent \(2,\)"):
        CashFlows.of(reward=jnp.zeros(()), rent=jnp.zeros(2))


def test_flows_add_by_name():
    got = flows() + CashFlows.of(rent=jnp.full(2, -10.0), tax=jnp.full(2, -100.0))
    assert (got.names, got.transfers) == (("reward", "rent", "sales", "tax"), {"sales"})
    assert (got["rent"].tolist(), got["tax"].tolist(), got.net.tolist()) == ([-11, -11], [-100, -100], [-109, -111])


def test_flows_are_a_pytree_with_static_names():
    def body(total, scale):
        return total + flows(scale), flows(scale)

    total, each = jax.lax.scan(body, flows(0.0), jnp.arange(4.0))
    assert total["rent"].tolist() == [-6, -6]
    assert each.net.shape == (4, 2)
    assert jax.tree.map(lambda x: x.sum(0), each)["sales"].tolist() == [30, 30]
    assert jax.jit(jax.vmap(flows))(jnp.ones(3)).moved.shape == (3, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_residual_keeps_numpys_precision(dtype):
    """The residual in float64 is not lost in float32."""
    each = CashFlows.of(reward=np.full(1000, 0.1, dtype))
    residual = each.residual(dtype(1e3), dtype(1e3) + each.net.sum())
    assert residual.dtype == dtype
    assert residual <= 100 * np.finfo(dtype).eps
    assert each.residual(0.0, each.net.sum() + 1) == pytest.approx(1 / 100, rel=1e-3)
    assert each.residual(0.0, each.net.sum() + 1, held=1e4) == pytest.approx(1e-4, rel=1e-3)


def test_check_flows_finds_what_no_flow_names():
    before = {"agents": jnp.array([1.0, 2.0]), "consumer": jnp.zeros(())}

    def change(stolen):
        after = {"agents": before["agents"] + flows()["reward"] + flows()["rent"], "consumer": -stolen}
        check_flows(before, after, flows(), step=jnp.int32(7))
        return after

    checked(change)(0.0)
    with pytest.raises(ValueError, match=r"^money: .*step 7"):
        checked(change)(0.01)
    assert float(change(0.01)["consumer"]) == pytest.approx(-0.01)

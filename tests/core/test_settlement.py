"""Settlement: cash flows, utilities and the boundary rule, compared with numbers computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import assert_exact

from jaxmarket.accounts import pay_sale
from jaxmarket.settlement import TIME_LIMITS, flows, lambda_returns, per_bidder, proceeds, settle
from jaxmarket.types import AUCTIONEER, NOBODY, Accounts, Outcome, Transition

A, STEPS = 3, 24
MONEY = ("reward", "price", "payout", "bootstrap_value")


def record(
    winner,
    *,
    reward=0.0,
    price=0.0,
    payout=0.0,
    bootstrap_value=0.0,
    duration=1,
    terminated=(),
    truncated=(),
    forced=(),
    dtype=np.float32,
):
    """Rows of a market. Scalars stand for every row; ``terminated``, ``truncated``, ``forced`` list rows."""
    steps = len(winner)
    rows, winner = np.arange(steps), np.asarray(winner, np.int32)

    def column(value):
        return jnp.asarray(np.broadcast_to(value, (steps,)).astype(dtype))

    done = np.isin(rows, [*terminated, *truncated])
    owner = np.where(np.roll(done, 1) | (rows == 0), AUCTIONEER, np.roll(winner, 1)).astype(np.int32)
    blank = jnp.zeros((steps, A), dtype)
    own = np.where(winner < 0, 0, np.where(np.isin(rows, forced), 1, 3))  # outbid where exploration forced the sale
    bids = np.where(np.arange(A) == winner[:, None], own[:, None], 2)
    return Transition(
        obs=blank,
        outcome=Outcome(
            winner=jnp.asarray(winner),
            winning_bid=column(own),
            highest_other_bid=column(np.where(winner < 0, 0, 2)),
            bids=jnp.asarray(bids, dtype),
            eligible=jnp.ones((steps, A), bool),
        ),
        owner=jnp.asarray(owner),
        price=column(price),
        payout=column(payout),
        reward=column(reward),
        duration=column(duration),
        terminated=jnp.asarray(np.isin(rows, terminated)),
        truncated=jnp.asarray(np.isin(rows, truncated)),
        next_obs=blank,
        next_eligible=jnp.ones((steps, A), bool),
        bootstrap_value=column(bootstrap_value),
        accounts=Accounts(blank, column(0)),
        episode_return=column(0),
        episode_length=jnp.zeros(steps, jnp.int32),
    )


def example(**changes):
    """Three episodes: rows 0-1 terminate, rows 2-3 at a limit, row 4 goes on after the rollout.

    Row 1 has a bootstrap value that settlement must not read.
    """
    columns = {
        "reward": [10, 20, 30, 40, 50],
        "price": [1, 2, 3, 4, 5],
        "payout": [1.5, 2.5, 3.5, 4.5, 5.5],
        "bootstrap_value": [0, 7, 0, 8, 9],
        "terminated": [1],
        "truncated": [3],
    }
    return record([0, 1, 0, 1, 2], **(columns | changes))


def trade(**changes):
    """A chain of sales without an end: 0 sells to 1, 1 to 2, and 2 has the bootstrap value 8."""
    columns = {"reward": [1, 2, 3], "payout": [99, 2, 4], "bootstrap_value": [0, 0, 8]}
    return record([0, 1, 2], **(columns | changes))


def scrambled(seed=0, *, lowest=NOBODY, **changes):
    """Random rows with random ends, both flags at times, for comparisons where the numbers do not matter."""
    rng = np.random.default_rng(seed)
    columns = {name: rng.normal(size=STEPS) for name in MONEY}
    columns |= {"duration": rng.integers(1, 4, STEPS)}
    columns |= {name: np.flatnonzero(rng.random(STEPS) < 0.2) for name in ("terminated", "truncated", "forced")}
    return record(rng.integers(lowest, A, STEPS), **(columns | changes))


@pytest.mark.parametrize(
    ("changes", "time_limits", "ahead", "utility"),
    [
        ({}, "bootstrap", [2.5, 0, 4.5, 8, 9], [10.25, 18, 29.25, 40, 49.5]),
        ({}, "terminal", [2.5, 0, 4.5, 0, 0], [10.25, 18, 29.25, 36, 45]),
        ({"truncated": [1, 3]}, "bootstrap", [2.5, 0, 4.5, 8, 9], [10.25, 18, 29.25, 40, 49.5]),  # terminated wins
        ({"terminated": [1, 4]}, "bootstrap", [2.5, 0, 4.5, 8, 0], [10.25, 18, 29.25, 40, 45]),  # ended on the last row
        ({"truncated": [3, 4]}, "bootstrap", [2.5, 0, 4.5, 8, 9], [10.25, 18, 29.25, 40, 49.5]),
        # γ^k: .5, .25, .125, .25, .5
        ({"duration": [1, 2, 3, 2, 1]}, "bootstrap", [2.5, 0, 4.5, 8, 9], [10.25, 18, 27.5625, 38, 49.5]),
    ],
)
def test_utilities_by_hand(changes, time_limits, ahead, utility):
    """reward + .5^k · next payout - price, and the three cases without a next row."""
    rows = example(**changes)
    payout, estimated = proceeds(rows, time_limits)
    settlement = settle(rows, 0.5, time_limits=time_limits)
    assert payout.tolist() == ahead
    assert_exact(settlement.utility, utility)
    assert_exact(settlement.revenue, settlement.utility + rows.price)
    wanted = time_limits == "bootstrap" and (rows.truncated | (jnp.arange(5) == 4)) & ~rows.terminated
    np.testing.assert_array_equal(estimated, np.broadcast_to(wanted, 5))
    np.testing.assert_array_equal(settlement.estimated, estimated)


@pytest.mark.parametrize(("discount", "utility"), [(0.0, [9, 18, 27, 36, 45]), (1.0, [11.5, 18, 31.5, 44, 54])])
def test_discounts_of_0_and_1(discount, utility):
    assert_exact(settle(example(), discount).utility, utility)


def test_unsold_state_has_no_proceeds():
    """Row 1 has no eligible bidder: the state of row 0 is not sold, and the auctioneer sells in row 2."""
    rows = record([0, NOBODY, 1], reward=[1, 2, 3], price=[1, 0, 1], payout=[1, 0, 4], terminated=[2])
    settlement = settle(rows, 0.5)
    assert settlement.utility[0] == 1 + 0.5 * 0 - 1
    assert per_bidder(settlement.utility, rows.outcome.winner, A).tolist() == [[0, 0, 0], [0, 0, 0], [0, 2, 0]]
    money = flows(rows)
    assert money.net[:, -1].tolist() == [1, 2, 4]  # sells row 0, earns row 1 for want of a buyer, sells row 2
    assert money["sale"][:, :-1].tolist() == [[0, 0, 0]] * 3


@pytest.mark.parametrize(
    ("trace_decay", "changes", "revenue"),
    [
        # Backwards at γ = .5: 3 + .5 · 8 = 7; then reward + .5 · ((1-λ) payout + λ · revenue of the next).
        (0.0, {}, [2, 4, 7]),
        (0.5, {}, [2.6875, 4.75, 7]),
        (1.0, {}, [3.75, 5.5, 7]),  # Monte Carlo: 1 + .5 · 2 + .25 · 3 + .125 · 8
        (1.0, {"forced": [1]}, [2, 5.5, 7]),  # 0 was bought out by exploration: paid, and the contract is void
        (1.0, {"forced": [2]}, [3, 4, 7]),
        (1.0, {"forced": [0]}, [3.75, 5.5, 7]),  # how the chain began does not matter
        (0.5, {"forced": [1]}, [2, 4.75, 7]),
        (1.0, {"terminated": [1]}, [2, 2, 7]),
        (1.0, {"truncated": [1], "bootstrap_value": [0, 6, 8]}, [3.5, 5, 7]),
        (1.0, {"duration": [2, 1, 3]}, [2.0, 4.0, 4.0]),  # 3 + 8/8; 2 + .5 · 4; 1 + .25 · 4
    ],
)
def test_traces_by_hand(trace_decay, changes, revenue):
    assert_exact(settle(trade(**changes), 0.5, trace_decay=trace_decay).revenue, revenue)


def test_trace_ends_at_an_unsold_state():
    """The revenue of 51 in the unsold row has no owner, and does not enter the utility of the previous owner."""
    rows = record([0, NOBODY, 2], reward=[1, 50, 2], payout=[9, 0, 4], terminated=[2])
    assert settle(rows, 0.5, trace_decay=1.0).revenue[0] == 1


def test_solitary_bid_below_the_reserve_keeps_the_trace():
    """A winning bid below the reserve is the highest bid, so the trace continues."""
    rows = record([0, 1], reward=[1, 10], terminated=[1])
    alone = rows.outcome.replace(
        bids=jnp.full((2, A), -5.0),
        eligible=jnp.arange(A) == rows.outcome.winner[:, None],
        winning_bid=jnp.full(2, -5.0),
        highest_other_bid=jnp.zeros(2),
    )
    revenue = settle(rows.replace(outcome=alone), 1.0, trace_decay=1.0).revenue
    np.testing.assert_allclose(revenue, [11, 10])


@pytest.mark.parametrize("time_limits", TIME_LIMITS)
def test_no_trace_is_a_trace_of_zero(time_limits):
    rows = scrambled()
    without = settle(rows, 0.9, time_limits=time_limits)
    np.testing.assert_allclose(
        settle(rows, 0.9, trace_decay=0.0, time_limits=time_limits).utility, without.utility, rtol=1e-6, atol=1e-6
    )
    assert not np.allclose(settle(rows, 0.9, trace_decay=0.5, time_limits=time_limits).utility, without.utility)


def test_a_full_trace_is_the_discounted_reward_to_the_end_of_the_episode():
    """λ = 1, every state sold by bid: Monte Carlo with the bootstrap value as the tail, in a plain loop."""
    rows = scrambled(forced=(), lowest=0)
    wanted = []
    for start in range(STEPS):
        total, patience = 0.0, 1.0
        for t in range(start, STEPS):
            total += patience * float(rows.reward[t])
            patience *= 0.9 ** float(rows.duration[t])
            if rows.done[t] or t == STEPS - 1:
                total += 0.0 if rows.terminated[t] else patience * float(rows.bootstrap_value[t])
                break
        wanted.append(total)
    np.testing.assert_allclose(settle(rows, 0.9, trace_decay=1.0).revenue, wanted, rtol=1e-5, atol=1e-6)


def _episodes(rows):
    """Which episode each row belongs to."""
    return np.cumsum(np.roll(np.where(np.arange(STEPS) == STEPS - 1, False, rows.done), 1))


@pytest.mark.parametrize("trace_decay", [None, 0.7])
@pytest.mark.parametrize("time_limits", TIME_LIMITS)
def test_no_derivative_crosses_a_reset(time_limits, trace_decay):
    """∂ utility[t] / ∂ any money of row s is exactly 0 unless s is t or a later row of its episode."""
    rows = scrambled()
    episode, steps = _episodes(rows), np.arange(STEPS)
    assert episode[-1] > 5

    def utility(money):
        return settle(rows.replace(**money), 0.9, trace_decay=trace_decay, time_limits=time_limits).utility

    jacobian = jax.jit(jax.jacrev(utility))({name: getattr(rows, name) for name in MONEY})
    reachable = (episode[:, None] == episode) & (steps[:, None] <= steps)
    for name in MONEY:
        assert not np.any(np.where(reachable, 0, jacobian[name])), name
    # Within an episode the derivatives are there, so that the zeros mean something.
    np.testing.assert_array_equal(np.diag(jacobian["reward"]), 1)
    np.testing.assert_array_equal(np.diag(jacobian["price"]), -1)
    ahead = np.diag(jacobian["payout"], 1)[episode[1:] == episode[:-1]]
    assert (ahead > 0).all() and ahead.size > 5
    cut = ~rows.terminated & (rows.truncated | (steps == STEPS - 1))
    estimated = np.asarray(cut) & (time_limits == "bootstrap")
    np.testing.assert_array_equal(np.diag(jacobian["bootstrap_value"]) > 0, estimated)


@pytest.mark.parametrize("trace_decay", [None, 0.7])
def test_what_happens_after_a_reset_changes_nothing_before_it(trace_decay):
    """Utilities of an episode are bit-identical if all rows after its end are replaced."""
    settling = jax.jit(lambda rows: settle(rows, 0.9, trace_decay=trace_decay).utility)
    rows, others = scrambled(), scrambled(seed=1)
    before = np.asarray(settling(rows))
    ends = np.flatnonzero(rows.done)[:-1]
    assert len(ends) > 3
    for end in ends:
        kept = np.arange(STEPS) <= end
        changed = jax.tree.map(
            lambda x, y, kept=kept: jnp.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x, y), rows, others
        )
        after = np.asarray(settling(changed))
        np.testing.assert_array_equal(after[: end + 1], before[: end + 1])
        assert (after[end + 1 :] != before[end + 1 :]).any()


@pytest.mark.parametrize("trace_decay", [None, 0.7])
def test_not_even_a_nan_crosses_a_reset(trace_decay):
    rows = record([0, 1], reward=[1, np.nan], terminated=[0])
    assert settle(rows, 0.9, trace_decay=trace_decay).revenue[0] == 1


def test_flows_by_hand():
    """An entry for each bidder, and the last one for the auctioneer."""
    got = flows(example())
    assert got["purchase"].tolist() == [[-1, 0, 0, 0], [0, -2, 0, 0], [-3, 0, 0, 0], [0, -4, 0, 0], [0, 0, -5, 0]]
    assert got["sale"].tolist() == [[0, 0, 0, 1.5], [2.5, 0, 0, 0], [0, 0, 0, 3.5], [4.5, 0, 0, 0], [0, 0, 0, 5.5]]
    assert got["reward"].tolist() == [[10, 0, 0, 0], [0, 20, 0, 0], [30, 0, 0, 0], [0, 40, 0, 0], [0, 0, 50, 0]]
    assert got.net.sum(1).tolist() == [10.5, 20.5, 30.5, 40.5, 50.5]  # rewards, and a subsidy of .5


def test_flows_name_all_the_money_that_sales_move():
    """Row by row, for every account."""
    rows = scrambled()
    closed = Accounts(jnp.zeros((STEPS, A)), jnp.zeros(STEPS))  # one market for each row
    accounts = jax.vmap(
        lambda before, row: pay_sale(
            before,
            buyer=row.outcome.winner,
            seller=row.owner,
            price=row.price,
            payout=row.payout,
            reward=row.reward,
        )
    )(closed, rows)
    net = flows(rows).net
    np.testing.assert_allclose(net[:, :-1], accounts.wealth, atol=1e-6)
    np.testing.assert_allclose(net[:, -1], accounts.auctioneer, atol=1e-6)


def test_per_bidder_fills_one_entry_only():
    values = per_bidder(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[0, 2], [NOBODY, 1]]), A)
    assert values.tolist() == [[[1, 0, 0], [0, 0, 2]], [[0, 0, 0], [0, 4, 0]]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes_are_stable_under_x64(dtype):
    with jax.enable_x64(True):
        rows = example(dtype=dtype)
        for settlement in (settle(rows, 0.9), settle(rows, 0.9, trace_decay=0.5)):
            assert settlement.revenue.dtype == settlement.utility.dtype == dtype
        money = flows(rows)
        assert {x.dtype for x in jax.tree.leaves(money)} == {np.dtype(dtype)}


def test_an_unknown_time_limit_rule_is_refused():
    with pytest.raises(ValueError, match="time_limits: unknown value 'ignore'; choose from bootstrap, terminal"):
        settle(example(), 0.9, time_limits="ignore")


def test_lambda_returns_are_generalised_advantages_plus_values():
    """Schulman et al. (2016), equation 16, by its sum of discounted temporal differences."""
    rng = np.random.default_rng(0)
    steps, gamma, decay = 12, 0.9, 0.7
    reward, value = rng.normal(size=steps), rng.normal(size=steps + 1)
    terminated = np.zeros(steps, bool)
    terminated[4] = True
    ahead = np.where(terminated, 0, value[1:])
    decays = np.where(terminated | (np.arange(steps) == steps - 1), 0, decay)
    discounts = np.full(steps, gamma)
    found = jax.jit(lambda_returns)(reward, discount=discounts, value=ahead, trace_decay=decays)
    delta = reward + gamma * ahead - value[:-1]
    for t in range(steps):
        end = 4 if t <= 4 else steps - 1
        advantage = sum((gamma * decay) ** (k - t) * delta[k] for k in range(t, end + 1))
        np.testing.assert_allclose(found[t], advantage + value[t], rtol=1e-5, atol=1e-5)


def test_nothing_leaks_into_a_return_without_a_trace():
    def returns(last):
        ones, discount = jnp.array([1.0, 1.0, last]), jnp.array([0.9, 0.9, last])
        return lambda_returns(ones, discount=discount, value=ones, trace_decay=jnp.array([0.5, 0.0, 0.5]))

    np.testing.assert_array_equal(returns(1.0)[:2], returns(np.nan)[:2])

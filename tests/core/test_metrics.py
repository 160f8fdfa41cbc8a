"""Metrics by hand, by property, and against a plain Python ledger."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxmarket import MECHANISMS, Rules, Society, TrainConfig, fit, make, metrics, reset, rollout, settle
from jaxmarket.policies import BidPolicy, KumaraswamyHead, linear


def play(mechanism, steps=60, rules=None):
    env, env_params = make("Chain-v0")
    society = Society(env, BidPolicy(linear(4), KumaraswamyHead()), MECHANISMS[mechanism])
    params = society.init(jax.random.key(0))
    state, _ = reset(society, jax.random.key(1), env_params, rules)
    _, rows = jax.jit(rollout, static_argnums=(0, 5))(
        society, jax.random.key(2), params, state, env_params, steps, rules
    )
    return society, rows


def test_gini_by_hand():
    assert metrics.gini(jnp.ones(5)) == pytest.approx(0)
    assert metrics.gini(jnp.array([0.0, 0.0, 0.0, 8.0])) == pytest.approx(3 / 4)
    assert metrics.gini(jnp.array([1.0, 2.0, 3.0])) == pytest.approx(2 / 9)
    some = jnp.array([True, False, True, False, True])
    assert metrics.gini(jnp.array([1.0, 9.0, 3.0, -7.0, 2.0]), some) == pytest.approx(2 / 9)
    assert metrics.gini(jnp.array([-1.0, 3.0])) == pytest.approx(0.5)  # |difference| 4 twice, over 4, over 2 · 2
    assert np.isnan(metrics.gini(jnp.zeros(3)))


@given(hnp.arrays(np.float64, st.integers(2, 8), elements=st.floats(-1e3, 1e3)))
@settings(deadline=None)
def test_gini_is_the_mean_absolute_difference_and_stays_within_its_bounds(wealth):
    if np.abs(wealth).mean() < 1e-3:
        return
    expected = np.abs(wealth[:, None] - wealth).mean() / (2 * np.abs(wealth).mean())
    got = float(metrics.gini(jnp.asarray(wealth, jnp.float32)))
    assert got == pytest.approx(expected, abs=1e-4)
    assert -1e-5 <= got <= 1 + 1e-5
    assert float(metrics.gini(jnp.asarray(-3 * wealth, jnp.float32))) == pytest.approx(got, abs=1e-4)


@pytest.mark.parametrize("fault", (np.nan, np.inf))
def test_what_is_not_finite_is_not_hidden(fault):
    q, visited = jnp.array([[1.0, 4.0], [0.0, 2.0]]), jnp.array([True, True])
    assert np.isnan(metrics.gini(jnp.array([1.0, fault, 3.0])))
    assert np.isnan(metrics.gini(jnp.array([1.0, fault, 3.0, 9.0]), jnp.array([True, True, True, False])))
    assert not np.isfinite(metrics.bid_error(jnp.array([[fault, 1.0], [0.0, 2.0]]), q, visited))
    _, rows = play("ccv", steps=3)
    assert not metrics.conservation_residual(rows.replace(reward=rows.reward.at[1].set(fault))) < 1


def test_bid_error_by_hand():
    q, bids = jnp.array([[1.0, 4.0], [0.0, 2.0]]), jnp.array([[4.5, 1.0], [0.0, 9.0]])
    assert metrics.bid_error(bids, q, jnp.array([True, False])) == pytest.approx(0.5 / 4)
    assert metrics.bid_error(bids, q, jnp.array([True, False]), every_bidder=True) == pytest.approx(3.5 / 4)
    assert metrics.bid_error(bids, q, jnp.array([True, True])) == pytest.approx(7 / 4)
    assert np.isnan(metrics.bid_error(bids, q, jnp.array([False, False])))
    assert metrics.bid_error(bids / 10, q / 10, jnp.array([True, False])) == pytest.approx(0.05)  # floor of 1
    small = metrics.bid_error(bids / 10, q / 10, jnp.array([True, False]), floor=0.0)
    assert small == pytest.approx(0.5 / 4)  # without a floor the unit does not matter
    assert metrics.bid_error(bids, 0 * q, jnp.array([True, False]), floor=0.0) == pytest.approx(bids[0].max())


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_conservation_residual_sees_lost_money(mechanism):
    _, rows = play(mechanism)
    rounding = tolerance(1e-6, elsewhere=1e-5)
    assert metrics.conservation_residual(rows) < rounding
    assert (
        metrics.conservation_residual(
            rows.replace(accounts=rows.accounts.replace(auctioneer=rows.accounts.auctioneer - 1))
        )
        > 1e-3
    )
    late = jax.tree.map(lambda x: x[30:], rows)
    opening = jax.tree.map(lambda x: x[29], rows.accounts)
    assert metrics.conservation_residual(late, opening) < rounding
    assert metrics.conservation_residual(late, opening.replace(auctioneer=opening.auctioneer + 1)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_ledger_is_that_of_a_plain_loop(mechanism):
    society, rows = play(mechanism, rules=Rules(exploration=0.4))
    names = [*range(society.bidders), *metrics.ACCOUNTS]
    paid = {(payer, payee): 0.0 for payer in names for payee in names}
    for t in range(len(rows.reward)):
        winner = int(rows.outcome.winner[t])
        owner = int(rows.owner[t]) if rows.owner[t] >= 0 else "auctioneer"
        paid[winner, owner] += float(rows.price[t])
        paid["mint", owner] += float(rows.payout[t]) - float(rows.price[t])
        paid["environment", winner] += float(rows.reward[t])
    table = np.asarray(metrics.ledger(rows))
    for (payer, payee), amount in paid.items():
        assert table[names.index(payer), names.index(payee)] == pytest.approx(amount, abs=1e-5), (payer, payee)
    earned = table.sum(0) - table.sum(1)
    np.testing.assert_allclose(earned[: society.bidders], rows.accounts.wealth[-1], atol=1e-5)
    assert earned[names.index("auctioneer")] == pytest.approx(float(rows.accounts.auctioneer[-1]), abs=1e-5)
    minted = np.abs(table[names.index("mint")]).sum()
    assert (minted > 0.1) if mechanism == "vickrey" else (minted == 0)


def test_summary_by_hand():
    """Three sales on a two-state process; all metrics are computed by hand."""
    _, rows = play("ccv", steps=3)
    one_hot = jnp.eye(2)
    rows = rows.replace(
        obs=one_hot[jnp.array([0, 1, 0])],
        outcome=rows.outcome.replace(
            winner=jnp.array([0, 3, -1]), winning_bid=jnp.array([0.9, 0.5, 0.0]), highest_other_bid=jnp.zeros(3)
        ),
        price=jnp.array([0.4, 0.2, 0.0]),
        payout=jnp.array([0.6, 0.2, 0.0]),
        reward=jnp.array([1.0, 0.0, 0.5]),
        terminated=jnp.array([False, True, False]),
        truncated=jnp.zeros(3, bool),
        episode_return=jnp.array([1.0, 1.0, 0.5]),
        episode_length=jnp.array([1, 2, 1]),
    )
    oracle = metrics.Oracle(q=jnp.array([[0.7, 1.1], [1.3, 0.8]]), optimal_return=jnp.asarray(3.0))
    means = metrics.summarize(rows, settle(rows, 0.5), oracle).means(oracle)
    assert means["return_mean"] == 1
    assert means["regret"] == 2
    assert means["welfare"] == pytest.approx(0.5)
    assert means["auction_revenue"] == pytest.approx(0.2)
    assert means["subsidy"] == pytest.approx(0.2 / 3)
    # The first winner is resold for .2 at half patience, the second not at all, the third row has no winner.
    assert means["winner_utility"] == pytest.approx((1 + 0.1 - 0.4 - 0.2) / 3)
    np.testing.assert_allclose(means["wins"], [1 / 3, 0, 0, 1 / 3])
    np.testing.assert_allclose(means["state_price"], [0.4, 0.2], rtol=1e-6)
    np.testing.assert_allclose(means["bid_gap"], [0.9 - 0.7, 0.5 - 0.8], rtol=1e-5)
    unsold = metrics.summarize(rows.replace(obs=one_hot[jnp.zeros(3, int)]), settle(rows, 0.5), oracle).means(oracle)
    assert np.isnan(unsold["state_price"][1])


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_welfare_is_what_the_accounts_gained(mechanism):
    """Payments cancel: the change of all accounts is the reward plus the minted money."""
    _, rows = play(mechanism)
    means = metrics.summarize(rows, settle(rows, 0.99)).means()
    gained = float(rows.accounts.wealth[-1].sum() + rows.accounts.auctioneer[-1]) / len(rows.reward)
    assert float(means["welfare"] + means["subsidy"]) == pytest.approx(gained, abs=1e-6)
    assert float(means["welfare"]) == pytest.approx(float(rows.reward.mean()), abs=1e-6)


@pytest.mark.slow
def test_training_reduces_the_same_metrics_inside_its_scan(small):
    """The one chunk of a one-update run is `summarize` of that update's rollout."""
    config = TrainConfig("Chain-v0", auction="vickrey", learner="reinforce", **(small | {"steps": 128}))
    program, oracle = config.settings.trainable, config.settings.oracle
    hyper = config.settings.hyperparameters.as_arrays()
    state = program.init(jax.random.key(0), config.adapter.default_params, hyper)
    key_roll, _ = jax.random.split(state.key)

    def play(key, market):
        rows = rollout(
            program.society, key, state.learner.params, market, config.adapter.default_params, config.settings.horizon
        )[1]
        return rows, settle(rows, config.settings.gamma)

    rows, settled = jax.jit(jax.vmap(play, out_axes=1))(
        jax.random.split(key_roll, config.settings.instances), state.market
    )
    expected = jax.jit(lambda *seen: metrics.summarize(*seen).means(oracle))(rows, settled, oracle)
    _, got = jax.jit(program.chunk)(state, config.adapter.default_params, hyper, oracle)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert got["gini"] == pytest.approx(float(metrics.gini(rows.accounts.wealth[-1].sum(0))), rel=1e-4)
    assert got["conservation_residual"] < 1e-5


@pytest.mark.slow  # the test above has the numbers of one chunk, and test_runs those of a whole run
def test_fit_returns_metrics_per_bidder_and_state(small):
    result = fit(TrainConfig("Chain-v0", learner="valuation", seeds=2, **small), jax.random.key(0))
    chunks = result.config.settings.chunks
    assert result.metrics["regret"].shape == (chunks, 2)
    assert result.metrics["wins"].shape == (chunks, 2, 4)
    assert result.metrics["state_price"].shape == result.metrics["bid_gap"].shape == (chunks, 2, 6)
    np.testing.assert_allclose(result.metrics["wins"].sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(0.8 - result.metrics["return_mean"], result.metrics["regret"], rtol=1e-4, atol=1e-5)
    assert np.isnan(result.metrics["state_price"][..., 5]).all()  # the last state is never for sale


# --- specialisation


def test_wins_by_region_are_those_of_a_plain_count():
    rng = np.random.default_rng(0)
    primitive, region = rng.integers(-1, 3, (4, 50)), rng.integers(0, 3, (4, 50))
    expected = np.zeros((2, 3))
    for p, r in zip(primitive.ravel(), region.ravel(), strict=True):
        if p >= 0 and r < 2:
            expected[r, p] += 1
    np.testing.assert_array_equal(metrics.wins_by_region(jnp.asarray(primitive), jnp.asarray(region), 2, 3), expected)


INFORMATION = jax.jit(metrics.mutual_information, static_argnames="corrected")


@given(hnp.arrays(np.int64, (4, 5), elements=st.integers(0, 50)), st.integers(1, 4), st.integers(1, 5))
@settings(deadline=None, max_examples=30)
def test_mutual_information_is_its_definition_and_stays_within_its_bounds(counts, regions, primitives):
    counts[regions:], counts[:, primitives:] = 0, 0
    if counts.sum() == 0:
        return
    got = float(INFORMATION(jnp.asarray(counts, jnp.float32)))
    joint, expected = counts / counts.sum(), 0.0
    for (r, p), share in np.ndenumerate(joint):
        expected += share * np.log2(share / (joint[r].sum() * joint[:, p].sum())) if share else 0
    assert got == pytest.approx(expected, abs=1e-5)
    assert -1e-5 <= got <= np.log2(min(regions, primitives)) + 1e-5


def test_mutual_information_of_specialists_and_of_no_auctions():
    assert INFORMATION(7 * jnp.eye(4)) == pytest.approx(2)
    assert INFORMATION(7 * jnp.eye(4), corrected=True) == pytest.approx(2 + 3 / (2 * 28 * np.log(2)))
    assert INFORMATION(jnp.ones((3, 4))) == pytest.approx(0, abs=1e-6)
    assert INFORMATION(jnp.array([[5.0, 0.0], [9.0, 0.0]]), corrected=True) == pytest.approx(0, abs=1e-6)
    assert np.isnan(INFORMATION(jnp.zeros((2, 2))))
    assert np.isnan(INFORMATION(jnp.array([[1.0, np.nan], [2.0, 3.0]])))


def test_the_correction_removes_the_bias_of_independent_counts():
    """Sixty auctions without any relation, many times: the plain estimate is (4 - 1)(4 - 1) / (2 n ln 2) too high."""
    rng, n = np.random.default_rng(1), 60
    tables = rng.multinomial(n, np.full(16, 1 / 16), 4000).reshape(-1, 4, 4).astype(np.float32)
    plain, corrected = (
        np.mean(jax.jit(jax.vmap(lambda c, k=k: metrics.mutual_information(c, corrected=k)))(tables))
        for k in (False, True)
    )
    assert plain == pytest.approx(9 / (2 * n * np.log(2)), rel=0.15)
    assert abs(corrected) < 0.15 * plain

"""Bids in the range of the module's own revenues: of any size and sign."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thinned import thinned

from jaxmarket import TrainConfig, fit, metrics
from jaxmarket.environments import FiniteMDP
from jaxmarket.learners.ranges import revenue_range
from jaxmarket.policies import UNITS, BidPolicy, Kumaraswamy, KumaraswamyHead, Rescaled, ValueHead, linear
from jaxmarket.types import Outcome


def process(scale=1.0):
    """Three states and two actions; rewards of both signs."""
    moves = np.array([[[0.1, 0.9, 0], [0.7, 0.2, 0.1]], [[0, 0.3, 0.7], [1, 0, 0]], [[0.5, 0, 0.5], [0, 0.8, 0.2]]])
    rewards = scale * np.array([[1.0, -2.0], [-0.5, 3.0], [0.25, -1.0]])
    return FiniteMDP(moves, rewards, 0.9, np.eye(3)[0], 20, name=f"process{scale}")


@pytest.mark.slow
@pytest.mark.bits
@pytest.mark.parametrize(
    ("agent", "learner"),
    [("society", "ppo"), ("society", "reinforce"), ("society", "valuation"), ("monolith", "valuation")],
)
def test_rewards_times_a_power_of_two_give_the_same_networks_and_bids_in_proportion(agent, learner):
    """At every step of training: the networks have equal bits, and only their units differ."""
    runs = {
        scale: fit(
            TrainConfig(process(scale), agent=agent, learner=learner, steps=20_480, seeds=2),
            jax.random.key(0),
            progress=False,
        )
        for scale in (1.0, 1024.0, 1 / 1024)
    }
    ours = runs.pop(1.0)
    networks = ours.networks["policy"]
    assert np.ptp(networks["params"]["Affine_0"]["kernel"]) > 0.02
    assert np.ptp(networks[UNITS]["scale"]) > 0
    for scale, run in runs.items():
        jax.tree.map(np.testing.assert_array_equal, networks["params"], run.networks["policy"]["params"])
        for name, size in networks[UNITS].items():
            np.testing.assert_array_equal(size * scale, run.networks["policy"][UNITS][name])
        np.testing.assert_allclose(ours.metrics["return_mean"] * scale, run.metrics["return_mean"], rtol=1e-5)
        if agent == "society":
            np.testing.assert_array_equal(ours.bids * scale, run.bids)


def short(learner, **given):
    return TrainConfig(process(), learner=learner, steps=4096, **given)


trained = functools.cache(lambda config: fit(config, jax.random.key(0), progress=False))  # for several tests


@pytest.mark.slow
@pytest.mark.parametrize("learner", thinned(["ppo", "reinforce"], lambda learner: learner == "ppo"))
def test_a_given_range_is_kept(learner):
    config = short(learner, bid_low=-3.0)
    assert (config.settings.values["bid_low"], config.settings.values["bid_high"]) == (-3, 1)
    assert UNITS not in trained(config).networks["policy"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("learner", "frozen", "adapts"),
    thinned(
        [
            ("valuation", "policy/torso/*", True),
            ("valuation", "policy/Affine_0", False),
            ("ppo", "value/*", True),
            ("ppo", "policy/units/*", False),
            ("reinforce", "policy/*", False),
        ],
        lambda learner, frozen, adapts: learner == "ppo" and not adapts,
    ),
)
def test_a_range_is_frozen_with_the_output_layer_and_with_nothing_else(learner, frozen, adapts):
    def scales(env, **options):
        config = TrainConfig(env, learner=learner, hidden=(4,), steps=8192)
        run = fit(config, jax.random.key(0), progress=False, **options)
        return run, run.networks["policy"][UNITS]["scale"]

    fresh, before = scales(process(), freeze=[frozen])
    _, after = scales(process(4.0), start=fresh, freeze=[frozen])
    if adapts or learner != "valuation":  # a frozen value head keeps its bids of 0
        assert np.min(before) > 0, "the first range of a distribution is always set"
    assert np.all(after > 2 * before) if adapts else np.all(after == before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("learner", "given"),
    thinned([("ppo", {"bid_low": -3.0}), ("reinforce", {"bid_high": 2.0})], lambda learner, given: learner == "ppo"),
)
def test_a_start_with_another_kind_of_range_is_refused(learner, given):
    fixed, adaptive = (short(learner, **some) for some in (given, {}))
    for first, second in ((fixed, adaptive), (adaptive, fixed)):
        with pytest.raises(ValueError, match=r"start: the range of bids .*bid_low and bid_high"):
            fit(second, jax.random.key(0), start=trained(first), progress=False)


def test_constant_revenues_leave_a_range():
    def body(_, ends):
        middle, half = revenue_range(*ends, jnp.ones((1, 1), bool), jnp.full((1, 1), 0.8))
        return middle - half, middle + half

    low, high = map(float, jax.lax.fori_loop(0, 3000, body, (jnp.float32(0), jnp.float32(0))))
    assert (high - low) / 2 == pytest.approx(0.8e-3, rel=0.01)
    assert low < 0.8 < high


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-100, 100, width=32), st.booleans()), min_size=1, max_size=6))
def test_a_range_contains_the_winners_revenues_and_shrinks_slowly(auctions):
    revenue, won = (jnp.array([x]) for x in zip(*auctions, strict=True))
    middle, half = revenue_range(jnp.float32(-3), jnp.float32(5), won, revenue)
    low, high = float(middle - half), float(middle + half)
    kept = np.array(revenue)[np.array(won)]
    if not kept.size:
        assert (low, high) == (-3, 5)
        return
    assert low <= kept.min() + 1e-4 and kept.max() <= high + 1e-4
    slowest = min(-3 + 0.01 * (kept.min() + 3), kept.min()), max(5 + 0.01 * (kept.max() - 5), kept.max())
    np.testing.assert_allclose((low, high), slowest, rtol=1e-5, atol=1e-4)


def test_a_rescaled_distribution_is_that_of_the_rescaled_variable():
    unit, low, width = Kumaraswamy(jnp.array([2.0, 3.0]), jnp.array([1.5, 4.0])), jnp.array([-7.0, 1.0]), 5.0
    ours, fixed = (
        Rescaled(unit, low, jnp.full(2, width)),
        [Kumaraswamy(unit.a, unit.b, float(x), float(x) + width) for x in low],
    )
    key, bids = jax.random.key(3), low + jnp.array([[0.5], [1.0], [4.5]])
    for k, other in enumerate(fixed):
        np.testing.assert_allclose(ours.mean()[k], other.mean()[k], rtol=1e-6)
        np.testing.assert_allclose(ours.entropy()[k], other.entropy()[k], rtol=1e-5)
        np.testing.assert_allclose(ours.log_prob(bids)[:, k], other.log_prob(bids)[:, k], rtol=1e-4)
        np.testing.assert_allclose(ours.sample(key, (4,))[:, k], other.sample(key, (4,))[:, k], rtol=1e-5)
    assert np.isfinite(Rescaled(unit, low, jnp.zeros(2)).log_prob(low)).all(), "an empty range"


def test_saturation_is_the_share_of_winning_bids_at_an_end_of_the_modules_range():
    winner = jnp.array([0, 1, 2, 3, -1, 2])
    bids = jnp.zeros((6, 4)).at[jnp.arange(6), winner].set(jnp.array([0.995, 0.5, 0.995, 4.97, 0, -4.99]))
    outcome = Outcome(
        bids=bids,
        eligible=jnp.ones((6, 4), bool),
        winner=winner,
        winning_bid=bids[jnp.arange(6), winner],
        highest_other_bid=jnp.zeros(6),
    )
    low, high = jnp.array([0.0, -5.0]), jnp.array([1.0, 5.0])
    assert float(metrics.saturation(outcome, low, high)) == 3 / 6
    assert float(metrics.saturation(outcome, low, low)) == 0, "an empty range"
    assert float(metrics.saturation(outcome, jnp.full(2, -jnp.inf), jnp.full(2, jnp.inf))) == 0


def test_limits_are_those_of_the_head_or_of_the_units():
    obs = jnp.zeros(2)
    adaptive, fixed, value = (
        BidPolicy(linear(), h) for h in (KumaraswamyHead(), KumaraswamyHead(high=2.0), ValueHead(0))
    )
    params = adaptive.init(jax.random.key(0), obs)
    assert adaptive.limits(params) == (0, 1)
    assert adaptive.limits({**params, UNITS: {"location": jnp.float32(-2), "scale": jnp.float32(3)}}) == (-2, 1)
    assert fixed.limits(fixed.init(jax.random.key(0), obs)) == (0, 2)
    assert value.limits(value.init(jax.random.key(0), obs)) == (0, np.inf)

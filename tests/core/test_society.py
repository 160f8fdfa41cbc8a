"""The society as a pure function: jit, vmap, equality by value, evaluation and metrics around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket import Rules, Society, TrainConfig, evaluation, fit, make, reset, rollout, step
from jaxmarket.environments import FiniteMDP
from jaxmarket.policies import BetaHead, BidPolicy, KumaraswamyHead, ValueHead, bid_table, linear

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def chain():
    env, env_params = make("Chain-v0")
    society = Society(env, BidPolicy(linear(4), KumaraswamyHead()))
    return society, society.init(jax.random.key(0)), env_params


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [None, 0.6])
def test_the_absent_never_bid_again(chain, dropout):
    """A bidder that is not present wins no auction of any episode, and dropout chooses among the others."""
    society, params, env_params = chain
    rules = Rules(present=jnp.array([False, True, True, False]), dropout=dropout, exploration=0.5)
    state, _ = reset(society, jax.random.key(1), env_params, rules)
    assert not (state.active & ~rules.present).any()
    _, rows = jax.jit(rollout, static_argnums=(0, 5))(society, jax.random.key(2), params, state, env_params, 200, rules)
    assert int(rows.done.sum()) > 5
    assert set(np.unique(rows.outcome.winner)) == {1, 2}
    assert not rows.outcome.eligible[:, [0, 3]].any()
    assert not rows.next_eligible[:, [0, 3]].any()
    alone = evaluation.evaluate(
        society, params, jax.random.key(3), env_params, 4, rules=Rules(present=jnp.array([True, False, False, False]))
    )
    np.testing.assert_array_equal(alone.lengths, 20)  # no bidder of "right" remains
    np.testing.assert_array_equal(alone.returns, 0)


def test_beta_bids_are_drawn_by_key_and_differ_between_clones():
    """Beta has no cheap inverse CDF: its bids come from keys, not from the bulk uniforms."""
    env, env_params = make("Chain-v0")
    society = Society(env, BidPolicy(linear(4), BetaHead()))
    params = society.init(jax.random.key(0))
    state, _ = reset(society, jax.random.key(1), env_params)
    _, rows = rollout(society, jax.random.key(2), params, state, env_params, 6)
    assert len(np.unique(np.asarray(rows.outcome.bids))) == 6 * society.bidders


def test_evaluation_counts_first_episodes_only_and_says_what_never_ended(chain):
    """Always-right bidders end Chain after 5 steps; always-left ones meet the limit of 20."""
    env, env_params = make("Chain-v0")
    society = Society(env, BidPolicy(linear(), ValueHead()), greedy=True)

    def biased(right):
        return bid_table(jnp.zeros((2, 6)).at[1].set(right))  # of module 1

    right = evaluation.evaluate(society, biased(1.0), jax.random.key(0), env_params, episodes=4)
    np.testing.assert_allclose(right.returns, 0.8)
    np.testing.assert_array_equal(right.lengths, 5)
    left = evaluation.evaluate(society, biased(-1.0), jax.random.key(0), env_params, episodes=4)
    np.testing.assert_array_equal(left.lengths, 20)
    np.testing.assert_array_equal(left.returns, 0)
    short = evaluation.evaluate(society, biased(1.0), jax.random.key(0), env_params, episodes=4, max_steps=3)
    assert not short.finished.any()
    rows = evaluation.trace_episode(society, biased(1.0), jax.random.key(0), env_params)
    assert rows.reward.shape == (5,)
    assert bool(rows.terminated[-1])


def test_rates_of_actions_are_the_probabilities_of_a_policy_that_samples():
    logits = jnp.log(jnp.array([[0.2, 0.8], [1.0, 0.0]]))
    found = evaluation.action_rates(lambda obs, key: jax.random.categorical(key, obs), logits, KEY, 2, draws=4000)
    np.testing.assert_allclose(found, [[0.2, 0.8], [1, 0]], atol=4 * np.sqrt(0.2 * 0.8 / 4000))
    assert found[1].tolist() == [1, 0]
    few = evaluation.action_rates(lambda obs, key: jnp.int32(1), logits, KEY, 3)
    assert few.tolist() == [[0, 1, 0]] * 2


@pytest.mark.full
def test_a_bid_range_lets_ppo_learn_values_above_one():
    """Rewards of 2 to 8 lie outside (0, 1): with ``bid_high`` the best arm's bidder finds its price."""
    mdp = FiniteMDP([[[1.0]] * 4], [[2.0, 4.0, 6.0, 8.0]], 0.9, [1.0], horizon=1, terminal=np.array([True]))
    config = TrainConfig(mdp, bid_high=10.0, learning_rate=1e-3, steps=200_000)
    result = fit(config, jax.random.key(0))
    assert result.summary["return_mean"] == pytest.approx(8)
    assert 6 < result.bids[0, 0].max() < 10


def test_the_length_of_an_episode_does_not_wrap(chain):
    society, params, env_params = chain
    state, _ = reset(society, jax.random.key(1), env_params)
    most = np.iinfo(np.int32).max
    for length, expected in ((most - 1, most), (most, most), (5, 6)):
        late = state.replace(episode_length=jnp.int32(length))
        _, row = step(society, jax.random.key(2), params, late, env_params)
        assert row.episode_length == expected


def test_more_updates_than_can_be_counted_are_refused():
    with pytest.raises(ValueError, match=r"steps: .* use more instances or a longer horizon"):
        TrainConfig("Chain-v0", learner="valuation", steps=2**41)
    assert TrainConfig("Chain-v0", learner="valuation", steps=2**40).settings.updates == 2**30

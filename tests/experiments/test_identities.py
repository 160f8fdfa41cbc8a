"""The identities of jaxmarket.experiments.identities, each with its negative control, and their verdicts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket.auctions import MECHANISMS
from jaxmarket.environments import backups, garnet
from jaxmarket.experiments import Scope, identities
from jaxmarket.experiments.experiment import table_of
from jaxmarket.experiments.identities import EXPERIMENT, IDENTITIES
from jaxmarket.experiments.results import Results
from jaxmarket.training.phases import phased_values

TOLERANCE = 1e-6


def name(identity):
    return identity.rule


def market_values(identity, mdp, exploration):
    return backups.market_values(identity.mechanism, identity.clones, mdp, exploration)


def sampled(identity, mdp, exploration, **effort):
    """The values that the sampled society learns, and the bound of their distance from the rule's fixed point."""
    arguments = identity.mechanism, identity.clones, mdp, exploration, jax.random.key(0)
    return phased_values(*arguments, radius=np.abs(identity.oracle(mdp, exploration)).max(), **effort)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("identity", IDENTITIES, ids=name)
def test_the_market_bids_the_rules_fixed_point(identity, seed):
    """Random sizes, discounts, branching and exploration; full backups in float64."""
    mdp, rng = identities._draw_process(100 + seed)
    exploration = rng.uniform(0.05, 1)
    market = market_values(identity, mdp, exploration)
    np.testing.assert_allclose(market, identity.oracle(mdp, exploration), atol=TOLERANCE)


@pytest.mark.parametrize("identity", IDENTITIES, ids=name)
def test_terminal_states_end_the_resale(identity):
    mdp = garnet(5, 4, 3, 0.9)
    mdp = type(mdp)(mdp.transitions, mdp.rewards, mdp.gamma, mdp.start, terminal=np.array([False, True, False, False]))
    market = market_values(identity, mdp, 0.3)
    np.testing.assert_allclose(market, identity.oracle(mdp, 0.3), atol=TOLERANCE)


@pytest.mark.parametrize("exploration", [0.0, 0.3, 1.0])
def test_vickrey_with_two_clones_is_q_learning_at_any_exploration(exploration):
    mdp = garnet(1, 5, 3, 0.9)
    market = market_values(IDENTITIES[0], mdp, exploration)
    np.testing.assert_allclose(market, mdp.optimal_q(), atol=TOLERANCE)


def test_neither_first_price_nor_a_lone_bidder_is_q_learning():
    """Each rule's own fixed point is far from Q* and from the others': the agreement above is no accident."""
    mdp = garnet(1, 5, 3, 0.9)
    values = [market_values(identity, mdp, 0.4) for identity in IDENTITIES]
    for i, one in enumerate(values):
        for other in values[:i]:
            assert np.abs(one - other).max() > 0.1
    assert (values[2] < mdp.optimal_q() - 0.1).all()  # what leaks to the second-highest bidder is lost to the seller
    # With two clones the second-highest bidder is the other clone: the winner pays what that one would have paid.
    cloned = dataclasses.replace(IDENTITIES[2], clones=2)
    np.testing.assert_allclose(market_values(cloned, mdp, 0.4), mdp.optimal_q(), atol=TOLERANCE)


def test_first_price_without_exploration_is_q_learning():
    mdp = garnet(2, 4, 2, 0.8)
    np.testing.assert_allclose(market_values(IDENTITIES[1], mdp, 0.0), mdp.optimal_q(), atol=TOLERANCE)


@pytest.mark.parametrize("seed", range(5))
def test_the_oracle_of_expected_sarsa_is_that_of_slow_iteration(seed):
    """Policy iteration with linear solves against the plain backup, many times."""
    mdp, rng = identities._draw_process(seed, most_gamma=0.9)
    exploration, q = rng.uniform(0, 1), np.zeros_like(mdp.rewards)
    for _ in range(600):
        value = (1 - exploration) * q.max(1) + exploration * q.mean(1)
        q = mdp.rewards + mdp.gamma * mdp.transitions @ value
    np.testing.assert_allclose(backups.expected_sarsa(mdp, exploration), q, atol=1e-9)


def test_the_leak_by_hand():
    """One state that leads to itself, bids 2 and 1 above a common value: the owner is paid the second, or the first."""
    mdp = type(garnet(0, 1, 2, 0.5))(np.ones((1, 2, 1)), [[2.0, 1.0]], 0.5, [1.0])
    epsilon = 0.4
    p = 1 - epsilon + epsilon / 2
    # v = r + γ (p v₂ + (1-p) v₁), and v₁ = v₂ + 1.
    second = (1 + 0.5 * (1 - p)) / (1 - 0.5)
    np.testing.assert_allclose(backups.leaky_values(mdp, epsilon), [[second + 1, second]], atol=1e-10)
    np.testing.assert_allclose(market_values(IDENTITIES[2], mdp, epsilon), [[second + 1, second]], atol=1e-10)


@pytest.mark.parametrize("mechanism", MECHANISMS.values(), ids=lambda m: m.name)
def test_expected_payout_is_the_mean_over_who_wins(mechanism):
    bids, epsilon = jnp.array([0.3, 0.9, 0.5]), 0.3
    own = {"bb": bids, "vickrey": [0.9] * 3, "ccv": [0.9, 0.5, 0.9], "env": [0.0] * 3}[mechanism.name]
    expected = 0.7 * own[1] + 0.3 * np.mean(own)
    assert backups.expected_payout(mechanism, bids, epsilon) == pytest.approx(float(expected))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_the_bucket_brigade_with_tax_is_td_zero(seed):
    """At every one of 2,000 random steps, self-transitions included, and in its fixed point."""
    settled, path = identities.holland_errors(seed)
    assert settled < TOLERANCE
    assert path < TOLERANCE


def test_a_sale_of_the_bucket_brigade_by_hand():
    """Each rule is paid the bid of the next one, in expectation, and pays its own bid and the tax."""
    onward = jnp.array([[0.25, 0.75], [0.0, 1.0]])
    sold = backups.expected_holland(jnp.array([2.0, 4.0]), onward, jnp.array([3.0, 1.0]), 0.1, 0.05)
    np.testing.assert_allclose(sold, [2 + 3 + 0.25 * 0.2 + 0.75 * 0.4 - 0.2 - 0.1, 4 + 1 + 0.4 - 0.4 - 0.2], rtol=1e-6)


def test_td_zero_by_hand():
    values = backups.td_zero(np.array([0.0, 1.0]), np.array([0, 1, 0]), np.array([2.0, 0.0]), 0.5, 0.9)
    np.testing.assert_allclose(values, [[0.5 * (2 + 0.9), 1.0], [1.45, 0.5 + 0.5 * 0.9 * 1.45]])


@pytest.mark.slow
@pytest.mark.parametrize("identity", IDENTITIES, ids=name)
def test_the_sampled_market_stays_within_its_stated_bound(identity):
    """The real society, in phases: within the Hoeffding radius of its own rule, which is far tighter than a guess."""
    mdp = garnet(11, 3, 2, 0.5)
    effort = {"phases": 10, "instances": 128, "steps": 128}
    values, radius = sampled(identity, mdp, 0.5, **effort)
    distance = np.abs(values - identity.oracle(mdp, 0.5)).max()
    assert distance <= radius < 0.2
    assert distance < 0.03


def test_a_state_nobody_buys_is_an_error():
    mdp = type(garnet(0, 2, 2, 0.5))([[[1, 0], [1, 0]], [[0, 1], [0, 1]]], np.ones((2, 2)), 0.5, [1, 0])
    with pytest.raises(ValueError, match=r"^steps: "):
        sampled(IDENTITIES[0], mdp, 0.5, phases=1, instances=2, steps=8)


# --- the report


def results(**changes):
    """Perfect identities on two processes; ``changes`` replace arrays, by condition and name."""
    processes = {"error": np.zeros(2), "rule from Q*": np.ones(2), **dict.fromkeys(_VALUES, np.ones(3))}
    samples = {"error": np.array([0.1, 0.3]), "from Q*": np.array([0.2, 0.5]), "bound": np.array([0.25, 0.4])}
    made = {f"{each.auction}, expectation": processes for each in IDENTITIES}
    made |= {f"{each.auction}, sampled": samples for each in IDENTITIES}
    made |= {"bb with tax": {"settled": np.array([1e-9, 2e-9]), "path": np.array([3e-9, 0.0])}}
    made = {name: arrays | changes.get(name, {}) for name, arrays in made.items()}
    assert set(made) == {condition.name for condition in EXPERIMENT.planned(Scope(seeds=2))}
    return Results(Scope(seeds=2), made, {}, EXPERIMENT.measures)


_VALUES = ("market", "rule", "optimal")


@pytest.mark.parametrize(
    ("condition", "arrays", "denied"),
    [
        (None, {}, None),
        (
            "bb, 1 bidder, expectation",
            {"error": np.array([0.0, 2e-6])},
            "bb, 1 bidder = expected SARSA, in expectation",
        ),
        # Both distances are at most one of the bounds, but the second one exceeds its own.
        ("vickrey, 2 clones, sampled", {"bound": np.array([0.4, 0.25])}, "vickrey, 2 clones = Q-learning, sampled"),
        ("bb with tax", {"path": np.array([0.0, 2e-6])}, "bucket brigade with tax = TD(0), the fixed point"),
        ("bb with tax", {"settled": np.array([2e-6, 0.0])}, "bucket brigade with tax = TD(0), the fixed point"),
    ],
)
def test_claims_hold_on_every_process(condition, arrays, denied):
    made = results(**({condition: arrays} if condition else {}))
    verdicts = [claim.verdict(made) for claim in EXPERIMENT.claimed(made.scope)]
    assert len(verdicts) == 7
    failed = [verdict.claim for verdict in verdicts if verdict.standing != "confirmed"]
    assert len(failed) == (denied is not None) and all(claim.startswith(denied) for claim in failed)


def test_the_table_by_hand():
    (table,) = [table_of(table, results()) for table in EXPERIMENT.tables]
    first, last = table.rows[0], table.rows[-1]
    assert (first["sampled error"], first["Q* excluded"]) == (0.3, "1 of 2")
    assert first["stated bound"] == 0.4  # 0.3 / 0.4 > 0.1 / 0.25
    assert (last["largest error"], last["sampled error"], last["stated bound"]) == (2e-9, 3e-9, 1e-6)

"""Auctions: winners and bids of outcomes, prices and payouts of mechanisms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Auction, assert_frequency, hold, price_of, proceeds_of
from scipy.stats import chisquare

from jaxmarket.auctions import MECHANISMS, Mechanism, award, choose, clear, mechanism, pick
from jaxmarket.types import NOBODY

A = 5  # one shape for all property tests: one compile
modest = settings(max_examples=60, deadline=None)

# A coarse grid makes ties common, and every number is exact in float32.
grid = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 0.75, 1.0])
wild = st.one_of(grid, st.sampled_from([float("nan"), float("inf"), float("-inf")]))
masks = st.lists(st.booleans(), min_size=A, max_size=A)
seeds = st.integers(0, 2**31 - 1)


def vectors(element, **kwargs):
    return st.lists(element, min_size=A, max_size=A, **kwargs)


@jax.jit
def cleared(bids, eligible, reserve):
    return clear(bids, None, eligible, reserve=reserve)


@jax.jit
def cleared_by_key(bids, eligible, reserve, seed):
    return clear(bids, jax.random.key(seed), eligible, reserve=reserve)


def assert_outcome(outcome, winner, own, other):
    assert (int(outcome.winner), float(outcome.winning_bid), float(outcome.highest_other_bid)) == (winner, own, other)


def assert_same(got, wanted):
    """Bit for bit, dtypes included."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("bids", "eligible", "reserve", "wanted"),
    [
        ([0.25, 0.75, 0.5], None, 0.0, (1, 0.75, 0.5)),
        ([0.75, 0.25, 0.75], None, 0.0, (0, 0.75, 0.75)),  # a tie: the lowest id, and the other bid is as high
        ([0.25, 0.75, 0.5], [True, False, True], 0.0, (2, 0.5, 0.25)),  # the highest bidder sits out
        ([0.25, 0.75, 0.5], [False, False, True], 0.125, (2, 0.5, 0.125)),  # alone: the reserve is the other bid
        ([0.25, 0.75, 0.5], [True, True, False], 0.625, (1, 0.75, 0.25)),  # two bidders: no reserve, even above a bid
        ([0.5], None, 0.0, (0, 0.5, 0.0)),
        ([0.5], None, 0.75, (0, 0.5, 0.75)),  # a reserve above the only bid does not keep it from winning
        ([-0.5, -0.25], None, 0.0, (1, -0.25, -0.5)),  # negative bids are bids
        ([-0.5, -0.25], [True, False], 0.0, (0, -0.5, 0.0)),
        ([0.25, 0.75], [False, False], 0.5, (NOBODY, 0.0, 0.0)),
        ([np.nan, 0.25, np.inf, -np.inf], None, 0.5, (1, 0.25, 0.5)),  # neither wins nor counts as another bid
        ([np.nan, np.inf], None, 0.5, (NOBODY, 0.0, 0.0)),
        ([3, 7, 5], None, 0, (1, 7.0, 5.0)),  # integers are money too
    ],
)
def test_clear_by_hand(bids, eligible, reserve, wanted):
    outcome = jax.jit(clear)(
        jnp.asarray(bids), None, None if eligible is None else jnp.asarray(eligible), reserve=reserve
    )
    assert_outcome(outcome, *wanted)
    assert outcome.winner.dtype == jnp.int32
    assert outcome.winning_bid.dtype == outcome.highest_other_bid.dtype == jnp.float32
    np.testing.assert_array_equal(outcome.bids, np.asarray(bids, np.float32))  # as they were made
    np.testing.assert_array_equal(outcome.eligible, np.isfinite(bids) & (True if eligible is None else eligible))


@given(vectors(wild), masks, grid)
@modest
def test_clear_matches_the_reference(bids, eligible, reserve):
    outcome = cleared(jnp.asarray(bids), jnp.asarray(eligible), reserve)
    sale = hold(Auction(bids, eligible), reserve)
    assert_outcome(outcome, *((NOBODY, 0.0, 0.0) if sale is None else (sale.winner, sale.own, sale.other)))
    if sale is not None:
        for name, rule in MECHANISMS.items():
            assert float(rule.price(outcome)) == price_of(name, sale)
            assert float(rule.payout(outcome)) == proceeds_of(name, sale)


@given(vectors(wild), masks, grid, seeds)
@modest
def test_a_key_only_chooses_among_the_highest_bids(bids, eligible, reserve, seed):
    """The winner holds the highest eligible bid whatever the key, and the bids of the outcome do not depend on it."""
    outcome = cleared_by_key(jnp.asarray(bids), jnp.asarray(eligible), reserve, seed)
    winner = int(outcome.winner)
    first = hold(Auction(bids, eligible), reserve)
    if first is None:
        assert_outcome(outcome, NOBODY, 0.0, 0.0)
    else:
        assert eligible[winner] and bids[winner] == first.own
        assert_outcome(outcome, winner, first.own, first.other)


@given(vectors(st.integers(-1000, 1000), unique=True), masks, st.permutations(range(A)), seeds)
@modest
def test_renaming_the_bidders_renames_the_winner(bids, eligible, order, seed):
    """Without ties nothing depends on ids, with or without a key."""
    bids, eligible, order = np.asarray(bids, np.float32), np.asarray(eligible), np.asarray(order)
    for clearing in (cleared, lambda *arguments: cleared_by_key(*arguments, seed)):
        before, after = clearing(bids, eligible, 0.5), clearing(bids[order], eligible[order], 0.5)
        renamed = NOBODY if before.winner < 0 else int(np.flatnonzero(order == int(before.winner))[0])
        assert_outcome(after, renamed, float(before.winning_bid), float(before.highest_other_bid))


def test_ties_are_broken_uniformly_by_key():
    """Three of five tie; a fourth would, but is not eligible."""
    bids, eligible = jnp.array([0.5, 0.25, 0.5, 0.5, 0.5]), jnp.array([True, True, True, False, True])
    keys = jax.random.split(jax.random.key(0), 6000)
    winners = jax.jit(jax.vmap(lambda key: clear(bids, key, eligible).winner))(keys)
    for bidder, probability in enumerate([1 / 3, 0, 1 / 3, 0, 1 / 3]):
        assert_frequency(int((winners == bidder).sum()), keys.size, probability)


@pytest.mark.parametrize("candidates", [[0, 1, 1, 0, 1, 1], [1, 1], [1] * 7, [0] * 90 + [1, 0, 1, 1]])
def test_pick_is_uniform(candidates):
    """Chi-square over 200,000 draws: a bias of one percent would be seen."""
    candidates = jnp.array(candidates, bool)
    draws = jax.random.uniform(jax.random.key(0), (200_000,))
    winners = np.asarray(jax.jit(jax.vmap(pick, (0, None)))(draws, candidates))
    counts = np.bincount(winners, minlength=candidates.size)
    assert not counts[~candidates].any()
    assert chisquare(counts[candidates]).pvalue > 1e-4


def test_picks_of_disjoint_pairs_are_independent():
    """One draw ranks all bidders: the orders of two pairs must be independent."""
    draws = jax.random.uniform(jax.random.key(1), (200_000,))
    pairs = jnp.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)
    one, other = (np.asarray(jax.jit(jax.vmap(pick, (0, None)))(draws, pair)) for pair in pairs)
    table = np.histogram2d(one, other, bins=2)[0]
    assert chisquare(table.ravel()).pvalue > 1e-4


def test_pick_without_a_draw_or_without_candidates():
    candidates = jnp.array([False, True, True, False, True, True])
    just_under_one = np.nextafter(np.float32(1), np.float32(0))
    assert int(pick(None, candidates)) == 1
    for draw in (jnp.float32(0), jnp.float32(just_under_one)):
        assert int(pick(draw, candidates)) in (1, 2, 4, 5)
    for draw in (None, jnp.float32(0), jnp.float32(just_under_one)):
        assert int(pick(draw, jnp.zeros(6, bool))) == NOBODY


def test_choose_takes_the_highest_eligible_bid():
    bids = jnp.array([0.75, 0.5, 1.0, 0.75])
    assert int(choose(bids, None, jnp.array([True, True, False, True]))) == 0
    tied = {int(choose(bids, jnp.float32(draw), jnp.array([True, True, False, True]))) for draw in np.linspace(0, 0.99)}
    assert tied == {0, 3}
    assert int(choose(bids, jnp.float32(0.5), jnp.zeros(4, bool))) == NOBODY


def test_exploration_replaces_the_winner_and_leaves_the_bids_alone():
    """The price of a forced winner follows from its own bid or the others', which may exceed it."""
    bids, eligible = jnp.array([0.25, 0.75, 0.5, 1.0]), jnp.array([True, True, True, False])
    outcome = award(bids, jnp.int32(0), eligible)
    assert_outcome(outcome, 0, 0.25, 0.75)
    np.testing.assert_array_equal(outcome.bids, bids)
    np.testing.assert_array_equal(outcome.eligible, eligible)
    prices = {name: (float(m.price(outcome)), float(m.payout(outcome))) for name, m in MECHANISMS.items()}
    assert prices == {"bb": (0.25, 0.25), "vickrey": (0.75, 0.75), "ccv": (0.75, 0.75), "env": (0.0, 0.0)}
    assert_outcome(award(bids, jnp.int32(NOBODY), eligible, 0.5), NOBODY, 0.0, 0.0)


def test_mechanisms_by_hand():
    """The table of the paper: (price, payout), with b1 = .75 and b2 = .5."""
    outcome = clear(jnp.array([0.5, 0.75, 0.25]))
    prices = {name: (float(m.price(outcome)), float(m.payout(outcome))) for name, m in MECHANISMS.items()}
    assert prices == {"bb": (0.75, 0.75), "vickrey": (0.5, 0.75), "ccv": (0.5, 0.5), "env": (0.0, 0.0)}
    assert all(MECHANISMS[name].name == name and mechanism(name) is MECHANISMS[name] for name in MECHANISMS)


def test_a_user_writes_a_third_price_auction_in_two_lines():
    def third(outcome):
        return jnp.sort(jnp.where(outcome.eligible, outcome.bids, -jnp.inf))[-3]

    rule = Mechanism("third-price", price=third, payout=third)
    assert mechanism(rule) is rule
    outcome = jax.jit(clear)(jnp.array([0.25, 1.0, 0.5, 0.75, 0.625]), None, jnp.array([True, True, True, False, True]))
    assert (int(outcome.winner), float(rule.price(outcome)), float(rule.payout(outcome))) == (1, 0.5, 0.5)


# One bidder's utility for every bid it could make, the others' bids held fixed. Half steps lie between the grid's
# bids, so that deviations undercut and outbid by a little, too.
DEVIATIONS = np.array([*np.arange(-1.25, 1.375, 0.125), np.nan], np.float32)  # NaN: stay away


def _utilities(rule):
    @jax.jit
    def utilities(bids, me, value, deviations):
        def utility(mine):
            outcome = clear(jnp.where(jnp.arange(bids.shape[0]) == me, mine, bids))
            return jnp.where(outcome.winner == me, value - rule.price(outcome), 0)

        return jax.vmap(utility)(deviations)

    return utilities


UTILITIES = {name: _utilities(rule) for name, rule in MECHANISMS.items()}


def gain(name, bids, me, value):
    """The gain of the best deviation over a truthful bid."""
    bids, value = np.asarray(bids, np.float32), np.float32(value)
    best = UTILITIES[name](bids, me, value, DEVIATIONS).max()
    return float(best - UTILITIES[name](bids, me, value, np.full_like(DEVIATIONS, value))[0])


@pytest.mark.parametrize("name", ["vickrey", "ccv"])
@given(bids=vectors(grid), me=st.integers(0, A - 1), value=grid)
@modest
def test_truth_is_dominant_under_second_price(name, bids, me, value):
    """Whatever the others bid, truthful or not, no deviation and no absence beats bidding one's value."""
    assert gain(name, bids, me, value) <= 0


def test_the_search_finds_a_gain_where_there_is_one():
    """First price rewards shading (.5 wins what is worth 1), no price at all rewards overbidding (1.125 for a .5)."""
    assert gain("bb", [1.0, 0.5, 0.25, 0.0, 0.0], 0, 1.0) == 0.5
    assert gain("env", [1.0, 0.5, 0.25, 0.0, 0.0], 1, 0.5) == 0.5


def test_the_reserve_is_traced():
    """A sweep over reserves is one vmap."""
    reserves = jnp.array([0.0, 0.25, 0.5])
    outcome = jax.jit(jax.vmap(lambda reserve: clear(jnp.array([0.75]), reserve=reserve)))(reserves)
    assert outcome.highest_other_bid.tolist() == reserves.tolist()


@pytest.mark.parametrize(
    ("given_dtype", "wanted"), [("float64", "float64"), ("float32", "float32"), ("int32", "float64")]
)
def test_dtypes_are_stable_under_x64(given_dtype, wanted):
    with jax.enable_x64(True):
        bids = jnp.asarray([1, 3, 2]).astype(given_dtype)
        clearing = jax.jit(clear)
        for key, eligible in ((None, None), (jax.random.key(0), jnp.array([False, True, False]))):
            outcome = clearing(bids, key, eligible, reserve=0.5)
            assert outcome.winner.dtype == jnp.int32
            money = [outcome.winning_bid, outcome.highest_other_bid, outcome.bids]
            money += [f(outcome) for m in MECHANISMS.values() for f in (m.price, m.payout)]
            assert {str(x.dtype) for x in money} == {wanted}

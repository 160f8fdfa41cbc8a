"""Gains of best replies to a society that draws its bids: against enumeration, other quadrature and simulation."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import struct

from jaxmarket import MECHANISMS, Mechanism, Society, reset, step
from jaxmarket.environments import Bandit, FiniteMDP, Memory, adapt, garnet
from jaxmarket.interop.bidder import BidderEnv, Exact, truthful
from jaxmarket.interop.deviations import best_replies, episode_gain, optimal_value
from jaxmarket.policies import UNITS, BetaHead, BidPolicy, KumaraswamyHead, linear
from jaxmarket.runs.best_replies import trained
from jaxmarket.settlement import TimeLimits

HIGH = 3.0
LEVELS = np.array([0.0, 0.4, 1.1, 1.9, 3.0])
HEADS = {"kumaraswamy": KumaraswamyHead(0, HIGH), "beta": BetaHead(0, HIGH)}


def drawing(seed, auction="bb", clones=1, head="kumaraswamy", states=3, share=True, horizon=100):
    """A random society of two primitives over a random process; bids have densities without sharp peaks."""
    mdp = garnet(seed, states, 2, 0.8)
    mdp = FiniteMDP(mdp.transitions, mdp.rewards, mdp.gamma, mdp.start, horizon, terminal=np.arange(states) == 2)
    society = Society(adapt(mdp), BidPolicy(linear(), HEADS[head]), MECHANISMS[auction], clones, share=share)
    rng, shapes = np.random.default_rng(seed), society.init(jax.random.key(0))
    # Of the two outputs, the spread is large enough for shapes above .8, whose densities can be integrated.
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal([0.0, 4.0], [0.4, 0.8], x.shape), jnp.float32), shapes)
    return society, params


# --- the oracle: nested quadrature of densities, and every strategy


POINTS, WEIGHTS = np.polynomial.legendre.leggauss(60)


def smooth(low, high):
    """Nodes and weights of Gauss-Legendre quadrature from low to high, dense at both ends."""
    t, width = (POINTS + 1) / 2, high - low
    nodes, weights = low + width * t**3 * (10 - 15 * t + 6 * t**2), width * 15 * t**2 * (1 - t) ** 2 * WEIGHTS
    return np.clip(nodes, 1e-12, HIGH - 1e-12), weights  # densities may be infinite at the ends


def distributions(society, params):
    """The distributions of all bidders in every state, [S][A], each with cdf and pdf."""
    found = jax.vmap(lambda obs: jax.vmap(society.policy.apply, (0, None))(params, obs))(
        jnp.eye(society.env.env.num_states)
    )
    a, b = (np.repeat(np.asarray(x, float), society.members, 1) for x in (found.a, found.b))
    family = {BetaHead: functools.partial(scipy.stats.beta, scale=HIGH), KumaraswamyHead: Kumaraswamy}
    return [
        [family[type(society.policy.head)](*pair) for pair in zip(*state, strict=True)]
        for state in zip(a, b, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Kumaraswamy:
    a: float
    b: float

    def cdf(self, bid):
        return 1 - (1 - (bid / HIGH) ** self.a) ** self.b

    def pdf(self, bid):
        x = bid / HIGH
        return self.a * self.b * x ** (self.a - 1) * (1 - x**self.a) ** (self.b - 1) / HIGH


def money(auction, own, other):
    """Price and payout by the winner's own bid and the highest other bid."""
    price = {"bb": own, "vickrey": other, "ccv": other, "env": 0.0 * own}[auction]
    payout = {"bb": own, "vickrey": np.maximum(own, other), "ccv": other, "env": 0.0 * own}[auction]
    return price, payout


def sold(auction, offers, me, bid):
    """One auction: P(win), P(each rival wins), E[price; win], E[payout], by quadrature over the two highest rivals."""
    ids = [j for j in range(len(offers)) if j != me]

    def product(bid, *without):
        return np.prod([offers[k].cdf(bid) for k in ids if k not in without], 0) * np.ones_like(bid)

    def of_second(bid, first):
        """The density of the highest bid of the rivals but the first one."""
        others = [k for k in ids if k != first]
        return sum((offers[k].pdf(bid) * product(bid, first, k) for k in others), np.zeros_like(bid))

    y, weights = smooth(0, bid)
    density = sum(offers[j].pdf(y) * product(y, j) for j in ids)
    price, payout = money(auction, np.full_like(y, bid), y)
    paid, received = (weights * density) @ price, (weights * density) @ payout

    y, weights = smooth(bid, HIGH)
    lost: dict[int, float] = {}
    for j in ids:
        tops = weights * offers[j].pdf(y)
        lost[j] = tops @ product(y, j)
        z, inner = smooth(bid, y[:, None])
        at_bid = money(auction, y, np.full_like(y, bid))[1] * product(np.full_like(y, bid), j)
        above = (inner * of_second(z, j) * money(auction, y[:, None] + 0 * z, z)[1]).sum(1)
        received += tops @ (at_bid + above)
    wins = product(np.float64(bid))
    assert wins + sum(lost.values()) == pytest.approx(1, abs=1e-7)  # the quadrature is good
    return wins, lost, paid, received


def enumerated(auction, society, params, me, horizon=None):
    """The value of the best of all strategies on the grid, from state and ownership (and time) to a bid."""
    mdp, own = society.env.env, me // society.clones
    states, n = mdp.num_states, 2 * mdp.num_states
    continuing = mdp.transitions * ~mdp.terminal
    cash, onward = np.zeros((states, 2, 5)), np.zeros((states, 2, 5, states, 2))
    for (s, offers), (k, bid) in itertools.product(enumerate(distributions(society, params)), enumerate(LEVELS)):
        wins, lost, paid, received = sold(auction, offers, me, bid)
        cash[s, :, k] = wins * mdp.rewards[s, own] - paid + np.array([0, 1]) * received
        onward[s, :, k, :, 1] = wins * continuing[s, own]
        onward[s, :, k, :, 0] = sum(p * continuing[s, j // society.clones] for j, p in lost.items())
    onward = mdp.gamma * onward.reshape(n, 5, n)
    cash, rows, start = cash.reshape(n, 5), np.arange(n), np.stack([mdp.start, 0 * mdp.start], 1).ravel()
    strategies = np.array(list(itertools.product(range(5), repeat=n)))
    if horizon is None:
        values = np.linalg.solve(np.eye(n) - onward[rows, strategies], cash[rows, strategies][..., None])[..., 0]
        return (values @ start).max()
    later = np.zeros((1, n))  # of every strategy for the remaining times
    for _ in range(horizon):
        later = cash[rows, strategies][:, None] + np.einsum("kij,mj->kmi", onward[rows, strategies], later)
        later = later.reshape(-1, n)
    return (later @ start).max()


def exact(society, params, me, levels=LEVELS, time_limits: TimeLimits = "bootstrap"):
    return Exact(BidderEnv(society, params, me, tuple(levels), time_limits=time_limits))


CASES = [
    (seed, list(MECHANISMS)[seed % 4], 1 + seed // 4 % 2, list(HEADS)[seed // 8 % 2], 2 + seed % 2)
    for seed in range(20)
]


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case[4] == 3 or case[0] > 8)) for case in CASES], ids=str
)
def test_the_best_reply_is_the_best_of_all_strategies(case):
    seed, auction, clones, head, states = case
    society, params = drawing(seed, auction, clones, head, states)
    for me in {0, society.bidders - 1}:
        solved = exact(society, params, me)
        best = solved.best_gain() + solved.present()
        assert best == pytest.approx(enumerated(auction, society, params, me), abs=1e-6, rel=0)


@pytest.mark.slow
def test_a_best_reply_may_depend_on_the_time():
    """The market closes after two auctions."""
    society, params = drawing(1, "ccv", 2, states=2, horizon=2)
    solved = exact(society, params, 1, time_limits="terminal")
    best = solved.best_gain() + solved.present()
    assert best == pytest.approx(enumerated("ccv", society, params, 1, horizon=2), abs=1e-6, rel=0)


# --- drawn bids against simulation


@pytest.mark.parametrize(
    ("auction", "clones", "head", "share"),
    [
        ("vickrey", 2, "kumaraswamy", True),
        pytest.param("bb", 2, "beta", False, marks=pytest.mark.slow),
        pytest.param("ccv", 1, "beta", True, marks=pytest.mark.slow),
        pytest.param("env", 3, "kumaraswamy", True, marks=pytest.mark.slow),
    ],
)
def test_present_values_are_what_bidders_earn_on_average(auction, clones, head, share):
    society, params = drawing(7, auction, clones, head, share=share, horizon=8)
    mdp, env_params = society.env.env, society.env.default_params

    @jax.jit
    @jax.vmap
    def play(key):
        def one(carry, key):
            state, running = carry
            after, row = step(society, key, params, state, env_params)
            return (after, running & ~row.done), jnp.where(running, after.accounts.wealth - state.accounts.wealth, 0)

        key_reset, key = jax.random.split(key)
        start = reset(society, key_reset, env_params)[0]
        return jax.lax.scan(one, (start, True), jax.random.split(key, 8))[1]

    money = np.asarray(play(jax.random.split(jax.random.key(0), 20_000)), float)
    earned = np.einsum("nta,t->na", money, mdp.gamma ** np.arange(8))
    found = best_replies(society, params, "terminal").present
    assert (np.abs(earned.mean(0) - found) < 4 * earned.std(0) / np.sqrt(len(earned))).all()
    assert found.std() > 0.01  # bidders differ


def test_a_strategy_among_drawn_bids_is_worth_what_it_earns():
    society, params = drawing(3, "ccv", 2, horizon=6)
    env = BidderEnv(society, params, 1, tuple(LEVELS), time_limits="terminal")
    bids = np.random.default_rng(0).choice(LEVELS, (6, 3, 2))

    @jax.jit
    @jax.vmap
    def play(key):
        def one(carry, key):
            state, running = carry
            bid = jnp.asarray(bids)[state.elapsed.astype(int), state.env_state.index, (state.owner == 1).astype(int)]
            _, state, money, ended, _ = env.offer(key, state, bid, env.default_params)
            return (state, running & ~ended), jnp.where(running, money, 0)

        key_reset, key = jax.random.split(key)
        return jax.lax.scan(one, (env.reset_env(key_reset, env.default_params)[1], True), jax.random.split(key, 6))[1]

    money = np.asarray(play(jax.random.split(jax.random.key(0), 20_000)), float)
    earned = money @ society.env.env.gamma ** np.arange(6)
    assert abs(earned.mean() - Exact(env).value(bids)) < 4 * earned.std() / np.sqrt(len(earned))


# --- properties


def test_an_equilibrium_has_no_gain_and_truthful_bids_are_as_in_the_truthfulness_experiment():
    """Bandit: among truthful clones none; without clones the best bidder shades its bid under first prices."""
    for auction, clones, gain in (("ccv", 2, 0), ("bb", 2, 0), ("ccv", 1, 0), ("bb", 1, 0.195)):
        found = best_replies(*truthful(Bandit(), MECHANISMS[auction], clones), "terminal")
        np.testing.assert_allclose(found.gains[-1], gain, atol=1e-6)
        assert found.gains.max() == found.gains[-1]
        assert episode_gain(Bandit(), MECHANISMS[auction], clones, horizon=1) == pytest.approx(gain, abs=1e-6)
        np.testing.assert_allclose(found.relative, found.gains / 0.8)


def test_clones_have_equal_gains_and_no_gain_is_negative():
    society, params = drawing(5, "bb", 2, "kumaraswamy")
    found = best_replies(society, params)
    apart = dataclasses.replace(society, share=False)
    same = best_replies(apart, jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, 0), params))
    np.testing.assert_allclose(found.gains, same.gains, atol=1e-9)
    np.testing.assert_array_equal(found.gains[::2], found.gains[1::2])
    assert (found.gains >= 0).all() and found.gains.max() > 0.01
    coarse = best_replies(society, params, levels=LEVELS)
    assert (coarse.best <= found.best + 1e-3).all() and (coarse.present == pytest.approx(found.present, abs=1e-6))


def test_sharp_bids_approach_greedy_ones():
    """A spread of 1e5 is a draw within about .005 of the mean."""
    society, params = drawing(2, "ccv", 2)
    params = jax.tree.map(lambda leaf: leaf.at[..., 1].set(0).at[..., -1, 1].set(1e5), params)
    drawn, greedy = best_replies(society, params), best_replies(dataclasses.replace(society, greedy=True), params)
    np.testing.assert_allclose(drawn.present, greedy.present, atol=0.05)
    np.testing.assert_allclose(drawn.best, greedy.best, atol=0.05)


def test_the_value_of_an_episode():
    mdp = garnet(0, 3, 2, 0.9)
    assert optimal_value(mdp) == pytest.approx(mdp.start @ mdp.optimal_q().max(1))
    assert optimal_value(mdp, 500) == pytest.approx(optimal_value(mdp))
    assert optimal_value(mdp, 1) == pytest.approx(mdp.rewards.max(1).mean())
    assert optimal_value(Bandit(), 1) == 0.8


def test_unknown_distributions_and_mechanisms_are_refused():
    society, params = drawing(0)
    for price, named in ((lambda o: jnp.sort(o.bids)[-3], "third"), (lambda o: o.winning_bid**2, "square")):
        odd = dataclasses.replace(society, mechanism=Mechanism(named, price, lambda o: o.winning_bid))
        with pytest.raises(ValueError, match=f"mechanism: expected a price linear .* {named}"):
            best_replies(odd, params)
    with pytest.raises(ValueError, match="env: expected a FiniteMDP"):
        best_replies(dataclasses.replace(society, env=adapt(Memory(Bandit()))), params)
    alone = dataclasses.replace(society, env=adapt(FiniteMDP([[[1]]], [[1]], 0.9, [1])))
    with pytest.raises(ValueError, match="society: expected two bidders"):
        best_replies(alone, alone.init(jax.random.key(0)))
    head: Any = Unbounded()
    with pytest.raises(ValueError, match="bids: expected bids drawn from a distribution with a cdf"):
        best_replies(dataclasses.replace(society, policy=BidPolicy(linear(), head)), params)


class Uniform(struct.PyTreeNode):
    """Without a cdf."""

    top: jax.Array

    def mean(self):
        return self.top / 2


@dataclasses.dataclass(frozen=True)
class Unbounded:
    outputs: int = 2

    def distribution(self, raw):
        return Uniform(raw[..., 0])


def test_adaptive_ranges_are_part_of_the_distribution():
    society, params = drawing(4, "ccv", 2)
    adaptive = dataclasses.replace(society, policy=BidPolicy(linear(), KumaraswamyHead()))
    units = {"location": jnp.zeros(2), "scale": jnp.full(2, HIGH)}
    levels = np.linspace(0, HIGH, 5)
    fixed, free = (
        best_replies(s, p, levels=levels) for s, p in ((society, params), (adaptive, params | {UNITS: units}))
    )
    np.testing.assert_allclose(free.best, fixed.best, rtol=1e-6)
    np.testing.assert_allclose(free.present, fixed.present, rtol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(5))
def test_trained_best_replies_reach_the_exact_gain(seed):
    """At least 95% of an exact gain of more than 5% of the episode's value, by the best of four trained bidders."""
    society, params = drawing(seed, "bb", 2, horizon=10)
    found = trained(
        society, params, 0, np.linspace(0, HIGH, 16).tolist(), jax.random.key(seed), time_limits="terminal", seeds=4
    )  # fmt: skip
    solved = Exact(found.env)
    strategies = solved.learned(found.config.settings.trainable.player(greedy=True), found.params)
    gains, best = np.array([solved.gain(bids) for bids in strategies]), solved.best_gain()
    assert best > 0.05 * optimal_value(solved.mdp, 10)
    assert gains.max() >= 0.95 * best
    assert (np.abs(found.gains - gains) < 4 * found.errors + 1e-5).all()

"""Markets of agents that are not JAX: the same money as in deep markets, and whatever can go wrong with an agent."""

import asyncio
import contextlib
import copy
import dataclasses
import io
import json
import math
import random
import subprocess
import sys
import threading
import time
import traceback
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from jaxmarket import deep_market, host
from jaxmarket.auctions import MECHANISMS, Mechanism
from jaxmarket.deep_market import BidTable, BidTables, DeepMarket, Terms, init, make_population
from jaxmarket.environments.tabular import FiniteMDP
from jaxmarket.host import (
    AUCTIONEER,
    MINT,
    WORLD,
    Auction,
    Bid,
    Call,
    CallableAgent,
    Entry,
    Ledger,
    Market,
    Thought,
    appends,
    example,
)
from jaxmarket.host.openai import ChatAgent, read_bid
from jaxmarket.host.thoughts import Item


def constant(name, bid, wealth=1.0, act=lambda state: state + 1):
    return CallableAgent(name, lambda state, budget: bid, act, wealth)


def counting(agents, **rules):
    """A market of a number that each action increments, with the reward .25."""
    return Market(agents, **{"reward": lambda state: 0.25, "bid_seconds": 5.0, **rules})


def reasons(step):
    return {bid.agent: bid.reason for bid in step.bids}


# --- the same market as in JAX

STATES, ACTIONS, AGENTS, STEPS = 6, 3, 5, 50


def world(seed):
    """A deterministic process that ends in its last state: successors and rewards, and the environment."""
    rng = np.random.default_rng(seed)
    successors = rng.integers(0, STATES, (STATES, ACTIONS))
    rewards = rng.random((STATES, ACTIONS)).astype(np.float32).astype(float) * 0.5
    rewards = rewards.astype(np.float32).astype(float)
    terminal = np.arange(STATES) == STATES - 1
    env = FiniteMDP(np.eye(STATES)[successors], rewards, 0.9, np.eye(STATES)[0], 10_000, terminal=terminal)
    return successors, rewards, env


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bb", "ccv", "vickrey"])
def test_the_same_winners_prices_wealth_and_flows_as_a_deep_market(name):
    episodes, capped, winners = 0, 0, set()
    with jax.enable_x64(True):
        step = jax.jit(deep_market.step, static_argnums=0)
        successors, rewards, env = world(1)
        deep = DeepMarket(env, BidTables(STATES, ACTIONS), AGENTS, mechanism=MECHANISMS[name])
        for seed, rent, original in ((0, 0.0, AUCTIONEER), (1, 0.07, AUCTIONEER), (2, 0.02, "agent 3")):
            rng = np.random.default_rng(seed)
            bids, actions = rng.random((AGENTS, STATES)), rng.integers(0, ACTIONS, AGENTS)
            bids[:-1][rng.random((AGENTS - 1, STATES)) < 0.3] = -np.inf  # one always bids
            wealth = rng.random(AGENTS) + 0.1
            owner = -1 if original == AUCTIONEER else int(original[-1])
            population = make_population(BidTable(jnp.asarray(bids), jnp.asarray(actions, jnp.int32)), wealth)
            economy = init(deep, jax.random.key(seed), env.default_params, population, original_owner=owner)

            def agent(a, bids=bids, actions=actions, wealth=wealth):
                def bid(state, budget):
                    offer = bids[a, state[0]]
                    return offer if np.isfinite(offer) else None

                def act(state):
                    return int(successors[state[0], actions[a]]), rewards[state[0], actions[a]]

                return CallableAgent(f"agent {a}", bid, act, wealth[a])

            market = Market(
                map(agent, range(AGENTS)),
                reward=lambda state: state[1],
                done=lambda state: state[0] == STATES - 1,
                mechanism=name,
                rent=rent,
                bankruptcy=None,
                owner=original,
            )
            terms = Terms(rent=jnp.asarray(rent))
            for t in range(STEPS):
                if market.state is None:
                    market.open((0, 0.0))
                    episodes += 1
                ours = market.step()
                economy, happened = step(deep, jax.random.key(t), economy, env.default_params, terms)
                assert ours.auction.winner == f"agent {int(happened.wins.argmax())}"
                flows = {kind: math.fsum(e.amount for e in ours.entries if e.kind == kind) for kind in KINDS}
                to_auctioneer = math.fsum(e.amount for e in ours.entries if e.kind == "sale" and e.payee == AUCTIONEER)
                to_auctioneer += math.fsum(e.amount for e in ours.entries if e.kind == "mint" and e.payee == AUCTIONEER)
                f = happened.flows
                theirs = [f["sales"], f["subsidy"], f["reward"], -f["rent"], -f["auctioneer"]]
                theirs += economy.population.wealth.tolist()
                np.testing.assert_allclose(
                    [*flows.values(), to_auctioneer, *market.wealth.values()], theirs, rtol=1e-12, atol=1e-12
                )
                winners.add(ours.auction.winner)
                capped += any(b.offer is not None and b.offer < b.bid for b in ours.bids)
    assert episodes > 10 and capped > 10 and len(winners) > 2, "ends, budgets and rivals all took part"


KINDS = ("sale", "mint", "reward", "rent")


# --- money


def lawless(name, wealth, seed):
    """An agent that bids and acts at random, and fails in every way except by delays."""
    rng = random.Random(seed)

    def bid(state, budget):
        if rng.random() < 0.3:
            return rng.choice([math.nan, math.inf, -1.0, "1", None, 1e308])
        if rng.random() < 0.1:
            raise RuntimeError("no bid")
        return rng.random() * rng.choice([1e-3, 1.0, budget])

    def act(state):
        if rng.random() < 0.2:
            raise RuntimeError("no act")
        return None if rng.random() < 0.1 else rng.random()

    return CallableAgent(name, bid, act, wealth)


@given(
    wealth=st.lists(st.floats(0, 1e6), min_size=1, max_size=4),
    mechanism=st.sampled_from(["bb", "ccv", "vickrey", "env"]),
    rent=st.floats(0, 1),
    scale=st.floats(0, 1e3),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None)
def test_every_change_of_wealth_is_in_the_ledger_to_the_last_bit(wealth, mechanism, rent, scale, seed):
    records = []
    market = Market(
        [lawless(f"a{i}", w, seed + i) for i, w in enumerate(wealth)],
        reward=lambda state: scale * state,
        done=lambda state: state < 0.1,
        mechanism=mechanism,
        rent=rent,
        log=records.append,
        seed=seed,
    )
    before = {name: Fraction(w) for name, w in zip(market.agents, wealth, strict=True)}
    steps = [step for _ in range(3) for step in market.play(0.5, steps=6).steps]
    for step in steps:
        for entry in step.entries:
            before[entry.payer] = before.get(entry.payer, Fraction()) - Fraction(entry.amount)
            before[entry.payee] = before.get(entry.payee, Fraction()) + Fraction(entry.amount)
        # With rewards >= 0 no agent is ever in debt, not even by rounding.
        assert all(before[name] >= 0 for name in market.agents)
        a = step.auction
        sale = [e for e in step.entries if e.kind == "sale"]
        assert [(e.payer, e.payee, e.amount) for e in sale] == (
            [] if a.winner is None else [(a.winner, a.seller, a.price)]
        )
        assert all(b.offer is None or 0 <= b.offer <= b.bid for b in step.bids)
    for name in market.agents:
        assert market.wealth[name] == math.fsum(market.ledger.of(name)) == float(before[name])
    everyone = [*market.agents, AUCTIONEER, MINT, WORLD]
    assert math.fsum(x for account in everyone for x in market.ledger.of(account)) == 0
    minted, earned = market.ledger.total("mint"), market.ledger.total("reward")
    assert minted == 0 or mechanism == "vickrey"
    owned = math.fsum([*market.wealth.values(), market.ledger.balance(AUCTIONEER)])
    assert owned == pytest.approx(math.fsum([*wealth, minted, earned]), rel=1e-12)
    assert [r for r in records if isinstance(r, Entry)] == list(market.ledger)
    assert [r for r in records if isinstance(r, Bid)] == [b for step in steps for b in step.bids]
    assert [r for r in records if isinstance(r, Auction)] == [step.auction for step in steps]


def test_prices_are_in_double_precision():
    market = counting([constant("ann", 0.1, wealth=0.3), constant("bob", 0.1 - 1e-12)], mechanism="vickrey")
    (step,) = market.play(0, 1).steps
    assert (step.auction.winner, step.auction.price, step.auction.payout) == ("ann", 0.1 - 1e-12, 0.1)
    assert 1e-13 < market.ledger.total("mint") < 1e-11


def test_a_budget_is_never_above_what_is_owned():
    ledger = Ledger()
    for amount in (1.0, 2.0**-53, 2.0**-55):  # a balance that rounds up
        ledger.book(Entry(0, 0, "reward", WORLD, "ann", amount))
    assert ledger.balance("ann") == 1 + 2.0**-52
    assert ledger.budget("ann") == 1.0
    ledger.book(Entry(0, 0, "rent", "ann", AUCTIONEER, 2.0))
    assert (ledger.budget("ann"), ledger.budget("unknown"), ledger.balance("unknown")) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="amount: expected a finite number, got nan"):
        ledger.book(Entry(0, 0, "rent", "ann", AUCTIONEER, math.nan))


def test_sums_beyond_the_largest_float_are_infinite_and_budgets_are_not():
    market = counting([constant("ann", 0.0)], reward=lambda state: 1e308)
    episode = market.play(0, 5)
    assert episode.reward == market.ledger.total("reward") == market.wealth["ann"] == math.inf
    assert market.ledger.balance(WORLD) == -math.inf
    assert market.ledger.budget("ann") == sys.float_info.max
    assert "inf" in printed(host.wealth_table(market))
    assert host.ledger.exact_sum([1e308, 1e308, -1e308]) == 1e308, "no partial sum counts"


def test_numbers_may_be_numpys_and_rewards_truth_values():
    for true in (True, np.bool_(True), jnp.float32(1), np.array(1)):
        market = counting([constant("ann", np.float32(0.5))], reward=lambda state, true=true: true, seed=np.int64(3))
        assert market.play(0, np.int64(2)).reward == 2.0
    ledger = Ledger()
    ledger.book(Entry(0, 0, "reward", WORLD, "ann", np.float32(0.5)))
    assert ledger.balance("ann") == 0.5


def test_an_agent_learns_its_budget_and_cannot_bid_above_it():
    budgets = []
    agent = CallableAgent("ann", lambda state, budget: budgets.append(budget) or 1e30, lambda state: state + 1, 0.75)
    market = counting([agent, constant("bob", 0.5)])
    first, second = market.play(0, 2).steps
    assert (first.auction.winner, first.auction.price, first.bids[0].bid, first.bids[0].offer) == (
        "ann",
        0.75,
        1e30,
        0.75,
    )
    assert (second.auction.winner, second.auction.price, second.auction.seller) == ("bob", 0.5, "ann")
    assert budgets == [0.75, 0.25]
    assert market.wealth == {"ann": 0.75, "bob": 0.75}
    assert market.ledger.balance(AUCTIONEER) == 0.75


def test_custom_mechanism_cannot_charge_more_than_the_budget():
    posted = Mechanism("posted", price=lambda o: jnp.asarray(5.0), payout=lambda o: jnp.asarray(5.0))
    market = counting([constant("ann", 0.5)], mechanism=posted)
    assert market.play(0, 1).steps[0].auction.price == 1.0
    broken = Mechanism("broken", price=lambda o: o.winning_bid / 0, payout=lambda o: o.winning_bid)
    market = counting([constant("ann", 0.5)], mechanism=broken)
    with pytest.raises(ValueError, match="price of 'broken' is inf"):
        market.play(0, 1)
    assert len(market.ledger) == 1


def test_ties_are_broken_by_the_seed():
    def winners(seed):
        market = counting([constant("ann", 0.5, 9.0), constant("bob", 0.5, 9.0)], seed=seed)
        return [step.auction.winner for step in market.play(0, 30).steps]

    assert winners(1) == winners(1) != winners(2)
    assert 5 < winners(1).count("ann") < 25


# --- agents that fail


class Hostile:
    def __float__(self):
        raise RuntimeError("no number")

    def __repr__(self):
        return "hostile"


def crash(error):
    raise error


async def exits():
    sys.exit(3)


class Text(str):
    """A subclass of str with overridden methods."""

    def _lie(self, *_):
        raise SystemExit("a method of text was called")

    __len__ = __getitem__ = __iter__ = __format__ = __str__ = __add__ = __contains__ = __eq__ = __lt__ = _lie
    split = join = isprintable = replace = encode = _lie
    __hash__ = str.__hash__


class Odd(type):
    @property
    def __name__(cls):
        raise SystemExit("no name")


class UnnamedError(Exception, metaclass=Odd):
    pass


class UnspeakableError(BaseException):
    def __init__(self, say):
        self.say = say

    def __str__(self):
        return self.say()


class Number(float):
    def __float__(self):
        return Number(0.9)

    def __lt__(self, other):
        raise SystemExit("compared")

    __gt__ = __le__ = __ge__ = __eq__ = __lt__
    __hash__ = float.__hash__


class Named:
    def __repr__(self):
        return Text("x\x1b[2J" * 1000)


NONSENSE = {
    "text of its own": (lambda: Text("0.9"), "not a number: '0.9'"),
    "bytes": (lambda: bytearray(b"0.9"), "not a number: bytearray(b'0.9')"),
    "control": (Named, "not a number: x\\x1b[2Jx\\x1b[2J"),
    "unnamed": (lambda: crash(UnnamedError()), "an exception that cannot be shown"),
    "unspeakable": (lambda: crash(UnspeakableError(lambda: crash(SystemExit()))), "an exception that cannot be shown"),
    "long": (lambda: crash(UnspeakableError(lambda: "x" * 10**7)), "UnspeakableError: xxxx"),
    "other text": (lambda: crash(UnspeakableError(lambda: Text("a\u202eb"))), "UnspeakableError: a\\u202eb"),
    "async exit": (lambda: asyncio.wait_for(exits(), 5), "SystemExit: 3"),
    "nan": (lambda: math.nan, "not finite"),
    "infinite": (lambda: math.inf, "not finite"),
    "minus infinite": (lambda: -math.inf, "not finite"),
    "negative": (lambda: -0.5, "negative"),
    "text": (lambda: "0.9", "not a number: '0.9'"),
    "true": (lambda: True, "not a number: True"),
    "list": (lambda: [0.9], "not a number: [0.9]"),
    "too big": (lambda: 10**400, "not a number: 1000"),
    "hostile": (Hostile, "RuntimeError: no number"),
    "nothing": (lambda: None, "silent"),
    "crash": (lambda: crash(ZeroDivisionError("oh\nno")), "ZeroDivisionError: oh no"),
    "exit": (lambda: sys.exit(3), "SystemExit: 3"),
    "interrupt": (lambda: crash(KeyboardInterrupt()), "KeyboardInterrupt"),
    "stall": (lambda: time.sleep(0.8), "late"),
    "slow async": (lambda: asyncio.sleep(60, 0.9), "late"),
    "async crash": (lambda: asyncio.wait_for(asyncio.sleep(60), 0.001), "TimeoutError"),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_a_bidder_that_fails_loses_the_auction_and_nothing_else(kind):
    make, reason = NONSENSE[kind]
    sound = [constant("ann", 0.4), constant("bob", 0.3)]
    bad = CallableAgent("bad", lambda state, budget: make(), lambda state: state + 1)
    alone = counting(sound, mechanism="ccv")
    beside = counting([bad, *sound], mechanism="ccv", bid_seconds=0.25 if reason == "late" else 10.0)
    expected = [step.auction for step in alone.play(0, 2).steps]
    steps = beside.play(0, 2).steps
    assert [step.auction for step in steps] == expected
    assert reasons(steps[0])["bad"].startswith(reason)
    assert steps[0].bids[0].offer is None
    assert beside.wealth == {"bad": 1.0, **alone.wealth}


@pytest.mark.parametrize("kind", [*NONSENSE][-6:])
def test_a_winner_that_cannot_act_has_bought_nothing(kind):
    """The second-highest bidder acts, at the price of an auction without the highest bidder."""
    make, reason = NONSENSE[kind]
    bad = CallableAgent("bad", lambda state, budget: 0.9, lambda state: make())
    market = counting(
        [constant("ann", 0.3), bad, constant("bob", 0.5)],
        mechanism="ccv",
        act_seconds=0.25 if reason == "late" else 10.0,
    )
    (step,) = market.play(0, 1).steps
    assert (step.auction.winner, step.auction.price, step.after) == ("bob", 0.3, 1)
    assert [(c.agent, c.what) for c in step.calls] == [("bad", "act"), ("bob", "act")]
    assert step.calls[0].reason.startswith(reason)
    assert step.calls[1].reason == ""
    assert market.wealth == {"ann": 1.0, "bad": 1.0, "bob": 1 - 0.3 + 0.25}


def test_exceptions_in_agent_attributes_count_as_its_failure():
    class Moody:
        wealth = 1.0
        name = Text("moody")
        calls = 0

        def __getattr__(self, what):
            if what not in ("bid", "act", "learn"):
                raise AttributeError(what)
            Moody.calls += 1
            return crash(SystemExit(what)) if Moody.calls > 3 else (lambda *args: 0.5)

    market = counting([Moody(), constant("ann", 0.1)])
    assert [type(name) for name in market.agents] == [str, str]
    assert reasons(market.play(0, 1).steps[0]) == {"moody": "SystemExit: bid", "ann": ""}


def test_an_agent_cannot_change_what_is_recorded():
    def learn(auction):
        object.__setattr__(auction, "reward", 1e9)

    market = counting([CallableAgent("ann", lambda state, budget: 0.5, lambda state: state + 1, 1.0, learn)])
    (step,) = market.play(0, 1).steps
    assert step.auction.reward == 0.25 and step.calls[-1].reason == ""


def test_a_bid_that_counts_is_a_plain_float():
    (step,) = counting([constant("ann", Number(0.5), 9.0)]).play(0, 1).steps
    assert type(step.bids[0].bid) is type(step.auction.price) is float


def test_state_is_unsold_if_no_agent_acts():
    def act(state):
        return None if state == 1 else state + 1

    market = counting([constant("ann", 0.3, act=act), constant("bob", 0.2, act=act)])
    episode = market.play(0, 10)
    assert (episode.end, episode.state, len(episode.steps)) == ("unsold", 1, 2)
    last = episode.steps[-1]
    assert last.auction == Auction(1, 2, None, "ann", 0.0, 0.0, 0.0, 0.0, False)
    assert [c.reason for c in last.calls] == ["returned nothing"] * 2
    assert last.entries == () and last.after == last.state
    assert market.wealth == {"ann": 1 - 0.3 + 0.25, "bob": 1.0}


def test_stalled_agent_is_not_called_until_it_answers():
    gate, calls = threading.Event(), []

    def bid(state, budget):
        calls.append(state)
        gate.wait(10)
        return 0.9

    market = counting([CallableAgent("slow", bid, lambda state: state + 1), constant("ann", 0.1)], bid_seconds=0.25)
    market.open(0)
    steps = [market.step(), market.step()]
    assert [reasons(step)["slow"] for step in steps] == ["late", "busy: its bid still runs"]
    assert 0.24 < steps[0].bids[0].seconds < 9 and steps[1].bids[0].seconds == 0
    thread = next(t for t in threading.enumerate() if t.name == "slow: bid")
    assert thread.daemon, "it must not hold the process"
    gate.set()
    thread.join(5)
    assert market.step().auction.winner == "slow"
    assert calls == [0, 2], "its late bid is forgotten"


def test_an_act_that_stalls_is_void_even_if_it_ends():
    gate = threading.Event()

    def act(state):
        gate.wait(10)
        state.append("spoilt")
        return state

    good = constant("ann", 0.1, act=lambda state: [*state, "good"])
    market = Market(
        [CallableAgent("slow", lambda state, budget: 0.9, act), good],
        reward=len,
        act_seconds=0.25,
        view=copy.deepcopy,
    )
    market.open(["start"])
    step = market.step()
    assert (step.auction.winner, step.calls[0].reason) == ("ann", "late")
    assert reasons(market.step())["slow"] == "busy: its act still runs"
    gate.set()
    next(t for t in threading.enumerate() if t.name == "slow: act").join(5)
    assert market.state == ["start", "good", "good"], "it had a copy"
    assert step.state == ["start"]


def test_bids_are_requested_concurrently():
    """A barrier opens only when all bids are being requested concurrently."""
    barrier = threading.Barrier(12)
    agents = [
        CallableAgent(f"a{i}", lambda state, budget, i=i: barrier.wait(5) * 0 + i / 100, lambda state: state + 1)
        for i in range(12)
    ]
    (step,) = counting(agents).play(0, 1).steps
    assert step.auction.winner == "a11"


def test_coroutines_are_agents_also_within_a_running_loop():
    class Talker:
        name, wealth = "talker", 1.0

        async def bid(self, state, budget):
            await asyncio.sleep(0)
            return 0.5

        async def act(self, state):
            await asyncio.sleep(0)
            return state + 10

    async def main():
        return counting([Talker(), constant("ann", 0.4)]).play(0, 1)

    episode = asyncio.run(main())
    assert (episode.state, episode.steps[0].auction.winner) == (10, "talker")


def test_a_coroutine_that_is_late_is_cancelled_and_free_again():
    ended = []

    async def bid(state, budget):
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(state)

    market = counting([CallableAgent("slow", bid, lambda state: state + 1), constant("ann", 0.1)], bid_seconds=0.25)
    market.open(0)
    for expected in (0, 1):
        assert reasons(market.step())["slow"] == "late"
        for thread in [t for t in threading.enumerate() if t.name == "slow: bid"]:
            thread.join(5)
        assert ended[-1] == expected


def test_learn_is_called_for_buyer_and_seller_and_may_fail():
    heard = {"ann": [], "bob": [], "cid": []}

    def agent(name, bids):
        def learn(auction):
            heard[name].append(auction)
            if name == "bob":
                raise RuntimeError("slow learner")

        return CallableAgent(name, lambda state, budget: bids[state], lambda state: state + 1, 1.0, learn)

    market = counting([agent("ann", [0.5, 0.1, None]), agent("bob", [0.1, 0.5, None]), agent("cid", [0.2, 0.2, None])])
    episode = market.play(0)
    auctions = [step.auction for step in episode.steps]
    assert episode.end == "unsold"
    assert heard == {"ann": auctions[:2], "bob": auctions[1:], "cid": []}
    learn_calls = [c for c in episode.steps[1].calls if c.what == "learn"]
    assert {c.agent: c.reason for c in learn_calls} == {"bob": "RuntimeError: slow learner", "ann": ""}
    assert not hasattr(auctions[0], "bids"), "other bids stay sealed"


# --- episodes


def test_episodes_begin_with_the_original_owner_and_end():
    market = counting([constant("ann", 0.5, 4.0), constant("bob", 0.25)], done=lambda state: state == 2, owner="bob")
    for episodes in (1, 2):
        episode = market.play(0)
        assert (episode.end, episode.state, episode.reward) == ("done", 2, 0.5)
        assert [s.auction.seller for s in episode.steps] == ["bob", "ann"]
        assert [s.auction.done for s in episode.steps] == [False, True]
        assert market.wealth == {"ann": 4.0, "bob": 1 + 0.5 * episodes}
        assert market.state is None
    assert market.play(0, 1).end == "cut"
    with pytest.raises(ValueError, match=r"state: .*open"):
        market.step()


def test_bankrupt_agents_are_removed():
    poor = constant("poor", 9.0, 0.5)
    market = Market([poor, constant("ann", 0.25)], reward=lambda state: 0.0, done=lambda state: True)
    assert market.play(0).steps[0].auction.winner == "poor"
    assert market.bankrupt == {"poor"}
    (step,) = market.play(0).steps
    assert (step.auction.winner, reasons(step)["poor"]) == ("ann", "bankrupt")
    assert market.wealth == {"poor": 0.0, "ann": 0.75}
    kept = Market([poor], reward=lambda state: -1.0, done=lambda state: True, bankruptcy=None)
    assert [kept.play(0).steps[0].auction.price for _ in range(2)] == [0.5, 0.0]
    assert kept.wealth == {"poor": -2.0}
    assert kept.bankrupt == set()


@pytest.mark.parametrize("field", ["reward", "done", "view", "legal"])
def test_errors_of_user_callbacks_propagate_before_payments(field):
    market = counting([constant("ann", 0.5)], **{field: lambda *args: {}["oh"]})
    with pytest.raises(KeyError, match="oh"):
        market.play(0)
    assert market.wealth == {"ann": 1.0}
    with pytest.raises(ValueError, match="reward: expected a finite number, got nan"):
        counting([constant("ann", 0.5)], reward=lambda state: math.nan).play(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"agents": []}, "at least one agent"),
        ({"agents": [constant("ann", 0), constant("ann", 0)]}, "agents: .*'ann'"),
        ({"agents": [constant("auctioneer", 0)]}, "agents: .*'auctioneer'"),
        ({"agents": [constant("", 0)]}, "non-empty string as name"),
        ({"agents": [object()]}, "non-empty string as name"),
        ({"agents": [constant("ann", 0, act=None)]}, "no callable 'act'"),
        ({"agents": [CallableAgent("ann", lambda s, p: 0, lambda s: s, 1.0, "learn")]}, "learn of 'ann'"),
        ({"agents": [constant("ann", 0, -1.0)]}, "wealth of 'ann': expected at least 0"),
        ({"agents": [constant("ann", 0, math.nan)]}, "wealth of 'ann': expected a finite number"),
        ({"reward": None}, "reward: expected a callable"),
        ({"log": 3}, "log: expected a callable"),
        ({"mechanism": "third"}, "unknown mechanism 'third'"),
        ({"rent": 1.5}, "rent: expected a fraction"),
        ({"bankruptcy": "0"}, "bankruptcy: expected a finite number"),
        ({"owner": "eve"}, "owner: expected 'auctioneer' or one of ann"),
        ({"bid_seconds": 0}, "bid_seconds: expected more than 0"),
        ({"act_seconds": math.inf}, "act_seconds: expected a finite"),
    ],
)
def test_bad_input_is_named(arguments, message):
    arguments = {"agents": [constant("ann", 0.5)], **arguments}
    with pytest.raises(ValueError, match=message):
        counting(**arguments)


def test_bad_states_and_steps_are_named():
    market = counting([constant("ann", 0.5)])
    with pytest.raises(ValueError, match=r"state: .* None"):
        market.open(None)
    for steps in (0, True, 1.5):
        with pytest.raises(ValueError, match="steps: expected an integer >= 1"):
            market.play(0, steps)


# --- states, logs, tables


def test_thoughts_are_append_only():
    task = Thought().append("user", "2+3")
    longer = task.append("ann", "5")
    assert (len(task), len(longer), longer.last, str(longer)) == (1, 2, "5", "user: 2+3\nann: 5")
    assert [item.author for item in longer] == ["user", "ann"]
    assert Thought().last is None
    with pytest.raises(AttributeError):
        task.items = ()
    assert appends("ann", task, longer)
    assert not appends("bob", task, longer), "another's name"
    assert not appends("ann", longer, task), "history taken back"
    assert not appends("ann", task, task), "nothing said"
    assert not appends("ann", task, Thought().append("ann", "0").append("ann", "5")), "history rewritten"
    assert not appends("ann", task, "5") and not appends("ann", task, Thought((*task.items, "5")))


def test_appends_calls_no_method_of_returned_objects():
    class Equal:
        __hash__ = None

        def __eq__(self, other):
            return True

    class Short(Thought):
        def __len__(self):
            return 0

    class Tuple(tuple):
        def __getitem__(self, at):
            return (Item("ann", "5"),)

    class Signed(Item):
        pass

    task = Thought().append("user", "2+3").append("user", ["any", "object"])
    new = Item("ann", "5")
    empty = object.__new__(Item)
    assert appends("ann", task, Thought((*task.items, new)))
    rebuilt = Thought((Item("user", "2+3"), Item("user", task.last), new))
    assert appends("ann", task, rebuilt) and appends("ann", task, copy.deepcopy(task).append("ann", "5")) is False
    for after in (
        Short((*task.items, new)),
        Thought(Tuple((*task.items, new))),
        Thought([*task.items, new]),
        Thought((Equal(), Equal(), new)),
        Thought((Item("user", Equal()), task.items[1], new)),
        Thought((Item(Equal(), "2+3"), task.items[1], new)),
        Thought((empty, task.items[1], new)),
        Thought((*task.items, Item(Equal(), "5"))),
        Thought((*task.items, Item(Text("ann"), "5"))),
        Thought((*task.items, Item("ann", Text("5")))),
        Thought((*task.items, Item("ann", Equal()))),
        Thought((*task.items, Signed("ann", "5"))),
        Thought((*task.items, empty)),
        Equal(),
    ):
        assert not appends("ann", task, after)
    assert not appends("ann", Short(task.items), Thought((*task.items, new)))


def test_agent_that_changes_earlier_items_fails_to_act():
    forger = constant("bad", 0.9, act=lambda state: Thought().append("user", "1+1").append("bad", "2"))
    adder = constant("ann", 0.1, act=lambda state: state.append("ann", "5"))
    market = Market([forger, adder], reward=lambda state: 0.0, legal=appends)
    (step,) = market.play(Thought().append("user", "2+3"), 1).steps
    assert (step.auction.winner, step.calls[0].reason, str(step.after)) == ("ann", "not legal", "user: 2+3\nann: 5")


def strict(line):
    return json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


def test_the_log_has_every_bid_call_payment_and_auction(tmp_path):
    path = tmp_path / "market.jsonl"
    bad = CallableAgent(
        "bäd \ud800", lambda state, budget: math.nan if state else 0.9, lambda state: crash(OSError("ñ"))
    )
    with host.json_lines(path) as log:
        market = counting([bad, constant("ann", 0.25)], mechanism="vickrey", rent=0.5, log=log)
        live = path.read_text("utf-8").count("\n")
        assert live == 2, "it is on the disk at once"
        market.play(0, 2)
    lines = [strict(line) for line in path.read_text("utf-8").splitlines()]
    kinds = [line["record"] for line in lines]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"Entry": 2 + 8, "Bid": 4, "Call": 3, "Auction": 2}
    bids = [line for line in lines if line["record"] == "Bid"]
    assert [(b["episode"], b["step"], b["bid"], b["offer"], b["reason"]) for b in bids] == [
        (1, 1, 0.9, 0.9, ""),
        (1, 1, 0.25, 0.25, ""),
        (1, 2, "nan", None, "not finite"),
        (1, 2, 0.25, 0.25, ""),
    ]
    money = math.fsum(
        (e["payee"] == "ann") * e["amount"] - (e["payer"] == "ann") * e["amount"]
        for e in lines
        if e["record"] == "Entry"
    )
    assert money == market.wealth["ann"]
    with host.json_lines(path) as log:
        log(Call(1, 1, "ann", "act", "", 0.0))
    assert len(path.read_text("utf-8").splitlines()) == len(lines) + 1, "it appends"


def test_incomplete_last_log_line_is_terminated(tmp_path):
    path = tmp_path / "market.jsonl"
    path.write_text('{"record": "Ca')
    with host.json_lines(path) as log:
        log(Call(1, 1, "ann", "act", "", 0.0))
    assert strict(path.read_text("utf-8").splitlines()[1])["agent"] == "ann"


EVIL = "a\x1b[2J\x07\x9b31m\u202eb\u2028\u2066\ud800[red]c[/]\\"


def test_names_and_texts_are_data_in_tables_and_logs(tmp_path):
    path = tmp_path / "market.jsonl"
    bad = CallableAgent(EVIL, lambda state, budget: 0.9, lambda state: crash(OSError(EVIL)), wealth=2.0)
    good = constant("ann", 0.5, act=lambda state: state.append("ann", EVIL))
    with host.json_lines(path) as log:
        market = Market([bad, good], reward=lambda state: 0.0, legal=appends, log=log, mechanism="ccv")
        episode = market.play(Thought().append("user", "x"), 1)
    assert episode.steps[0].auction.winner == "ann"
    lines = path.read_text("utf-8")
    assert lines.replace("\n", "").isprintable()
    assert any(strict(line).get("agent") == EVIL for line in lines.splitlines())
    shown = printed(host.episode_table(episode, title=EVIL)) + printed(host.wealth_table(market, title=EVIL))
    assert shown.replace("\n", "").isprintable()
    assert shown.count("[red]") >= 3 and "\\x1b[2J" in shown


def test_a_state_that_cannot_be_shown_does_not_end_a_table():
    class Mute:
        def __str__(self):
            return crash(SystemExit("not a word"))

    market = counting([constant("ann", 0.5, act=lambda state: Mute())])
    assert "(SystemExit: not a word)" in printed(host.episode_table(market.play("x", 1)))


def printed(table):
    out = io.StringIO()
    Console(file=out, width=140).print(table)
    return out.getvalue()


def test_tables_show_auctions_and_wealth():
    agents = [
        constant("[ann]", 0.5, act=lambda state: "[b]"),
        CallableAgent("bad", lambda state, budget: 0.9, lambda state: crash(OSError())),
        CallableAgent("nan", lambda state, budget: math.nan, lambda state: state),
        CallableAgent("shy", lambda state, budget: None, lambda state: state),
    ]
    market = Market(agents, reward=lambda state: 0.25, mechanism="vickrey", done=lambda state: False)
    text = printed(host.episode_table(market.play("x" * 50, 2), title="first"))
    row = next(line for line in text.splitlines() if "auctioneer" in line)
    cells = f"1 {'x' * 39}… 0.500 0.900! not finite · [ann] 0.000 auctioneer 0.500 0.250".split()
    assert row.split() == cells
    assert "[b]" in text and "cut" in text and "first" in text
    text = printed(host.wealth_table(market))
    rows = [line.split() for line in text.splitlines()]
    assert ["[ann]", "1.000", "0.500", "0.500", "0.000", "0.000", "2.000", "2"] in rows, "the mint pays it"
    assert all(name in text for name in ("bad", "nan", "shy", "auctioneer"))


# --- chat models, behind a stub of an endpoint


class Stub(ThreadingHTTPServer):
    """A server for /v1/chat/completions whose behaviour depends on the model's name; it records requests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), StubHandler)
        self.requests, self.gate = [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class StubHandler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append({"path": self.path, "key": self.headers["Authorization"], **request})
        kind, _, content = request["model"].partition(" ")
        turn = sum(r["model"] == request["model"] for r in self.server.requests)
        if kind == "slow":
            self.server.gate.wait(10)
        if kind == "drop":
            self.connection.close()
            return
        if kind == "flaky" and turn == 1:
            self.reply(429, {"error": {"message": "slow down"}}, {"retry-after-ms": "1"})
        elif kind in ("429", "500", "401"):
            self.reply(int(kind), {"error": {"message": "it is " + kind}})
        elif kind == "echo":
            told = {name: [self.headers[name], json.dumps(self.headers[name])] for name in self.headers}
            self.reply(int(content), {"error": {"message": f"{self.path} {self.headers}", "told": [told]}})
        elif kind == "broken":
            self.reply(200, '{"choices": [')
        elif kind == "page":
            self.reply(200, "<html>hello</html>", {"Content-Type": "text/html"})
        elif kind == "empty":
            self.reply(200, {"id": "1", "object": "chat.completion", "choices": []})
        elif kind == "other":
            self.reply(200, {"answer": 42})
        else:
            bidding = "auctions" in request["messages"][0]["content"]
            text = None if kind == "null" else content if bidding else "  ｆünf 5 🙂\n"
            text = str(self.headers) if kind == "parrot" else text
            message = {"role": "assistant", "content": text}
            self.reply(200, {"id": "1", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    def reply(self, status, body, headers=None):
        body = (body if isinstance(body, str) else json.dumps(body)).encode()
        with contextlib.suppress(ConnectionError):  # a client that waits no longer
            self.send(status, body, headers)

    def send(self, status, body, headers):
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def stub():
    pytest.importorskip("openai")
    with pytest.MonkeyPatch.context() as patch, Stub() as server:
        for proxy in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            patch.delenv(proxy, raising=False)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.gate.set()
        server.shutdown()


def chat(stub, name, model, **settings):
    return ChatAgent(name, model, **{"base_url": stub.url, "api_key": "secret", "retries": 0, **settings})


def test_a_chat_model_bids_and_appends_its_step(stub):
    stub.requests.clear()
    agent = chat(
        stub, "bot", 'good {"bid": 0.75}', options={"temperature": 0}, bid_prompt='auctions {budget} {"bid": 1}'
    )
    task = Thought().append("user", "¿2+3?")
    market = Market([agent, constant("ann", 0.5)], reward=lambda state: 1.0, done=lambda state: True, legal=appends)
    episode = market.play(task)
    assert episode.state == task.append("bot", "ｆünf 5 🙂")
    assert episode.steps[0].auction.price == 0.75
    bid, act = stub.requests
    assert (bid["path"], bid["key"], bid["temperature"]) == ("/v1/chat/completions", "Bearer secret", 0)
    assert [m["role"] for m in bid["messages"]] == ["system", "user"]
    assert bid["messages"][0]["content"] == 'auctions 1 {"bid": 1}'
    assert bid["messages"][1]["content"] == act["messages"][1]["content"] == "user: ¿2+3?"
    assert "secret" not in repr(agent)


SECRETS = ("sk-'key\\1", "pass:word", "in-a-header", "in-a-query")


@pytest.mark.parametrize("model", ["echo 401", "echo 404", "echo 200", "parrot", "broken"])
def test_secrets_are_removed_from_all_texts(stub, model, tmp_path, caplog):
    stub.requests.clear()
    key, _, header, query = SECRETS
    url = stub.url.replace("//", "//user%40me:pass%3Aword@")
    options = {"extra_headers": {"X-Key": header, "X-Too": key}, "extra_query": {"key": query}, "temperature": 0}
    agent = ChatAgent("bot", model, base_url=url, api_key=key, retries=0, options=options)
    path = tmp_path / "market.jsonl"
    with caplog.at_level("INFO"), host.json_lines(path) as log:
        market = Market([agent], reward=lambda state: 0.0, log=log, bid_seconds=20)
        (step,) = market.play(Thought().append("user", "x"), 1).steps
    assert step.bids[0].reason
    try:
        text = agent.act(Thought()).last
    except Exception as error:
        text = "".join(traceback.format_exception(error)) + repr(vars(error)) + repr(error)
    texts = [text, repr(agent), str(dataclasses.asdict(agent)), str(vars(agent)), repr(step), path.read_text("utf-8")]
    sent = stub.requests[0]
    assert sent["key"].startswith("Basic ") and query in sent["path"], "they are sent"
    for secret in (*SECRETS, "pass%3Aword", sent["key"].split()[1], "key\\"):
        assert [text for text in texts if secret in text] == []
        assert secret == query or secret not in caplog.text  # httpx logs URLs: documented


def test_a_key_that_cannot_be_sent_is_not_shown(stub):
    """An HTTP library's error contains the rejected header; the key must not be shown."""
    agent = chat(stub, "bot", "good 1", api_key="sk-secret\n")
    with pytest.raises(Exception, match=r"onnection|eader") as failed:
        agent.bid(Thought(), 1.0)
    assert "sk-secret" not in "".join(traceback.format_exception(failed.value))


@pytest.mark.parametrize(
    "url", ["http://me:pa/ss@host/v1", "http://host/v1?key=pass", "pass", "ftp://pass", "http://[::1", 3]
)
def test_what_is_no_url_is_refused_and_not_shown(stub, url):
    with pytest.raises(ValueError, match="base_url: expected the URL") as refused:
        ChatAgent("bot", "model", base_url=url, api_key="none")
    assert "pa" not in str(refused.value).replace("password", "")


def test_text_that_cannot_be_encoded_is_sent_as_escapes(stub):
    stub.requests.clear()
    assert chat(stub, "bot", "good 1").bid(Thought().append("user", "\ud800"), 1.0) == 1.0
    assert stub.requests[0]["messages"][1]["content"] == "user: \\ud800"


FAILURES = {
    "drop": "APIConnectionError",
    "429": "RateLimitError: Error code: 429",
    "500": "InternalServerError: Error code: 500",
    "broken": "JSONDecodeError",
    "page": "ValueError: reply: expected a message",
    "empty": "ValueError: reply: expected a message",
    "other": "ValueError: reply: expected a message",
    "null": "ValueError: reply: expected text, got None",
    "good NaN": "ValueError: reply: expected a finite bid",
    'good {"bid": 1e999}': "not finite",
    "good -1": "negative",
    'good {"bid": null}': "silent",
    "good I bid 0.9": "ValueError: reply: expected a number",
    "good " + "[" * 100_000: "ValueError: reply: expected a number",
}


@pytest.mark.slow
def test_endpoints_that_fail_lose_the_auction_and_nothing_else(stub):
    agents = [chat(stub, f"bot {i}", model) for i, model in enumerate(FAILURES)]
    market = counting([*agents, constant("ann", 0.125)], bid_seconds=20.0, done=lambda state: True)
    (step,) = market.play(0).steps
    assert (step.auction.winner, step.auction.price) == ("ann", 0.125)
    for bid, (model, reason) in zip(step.bids, FAILURES.items(), strict=False):
        assert bid.offer is None and bid.reason.startswith(reason), (model[:30], bid)
    assert set(market.wealth.values()) == {1.0, 1.125}


@pytest.mark.parametrize(
    "reply",
    [
        "", "NaN", '{"bid": NaN}', "-Infinity", '```json\n{"bid": 0.9}\n```', '{"bid": "0.9"}', '{"bid": true}', "null",
        '{"offer": 0.9}', "[0.9]", "９", ".5", "0x1", "0.5 0.5", '{"bid": {"bid": 1}}',
        pytest.param("[" * 100_000, id="[…"),
    ],
)  # fmt: skip
def test_replies_that_are_no_bids(reply):
    with pytest.raises(ValueError, match="reply:"):
        read_bid(reply)


@pytest.mark.slow
def test_slow_endpoint_is_late_and_retries_are_limited(stub):
    agents = [
        chat(stub, "slow", "slow 1"),
        chat(stub, "impatient", "slow 2", seconds=0.05),
        chat(stub, "flaky", "flaky 1e30", retries=1),
    ]
    (step,) = Market(agents, reward=lambda state: 0.0, bid_seconds=1.0).play(Thought(), 1).steps
    assert reasons(step) == {"slow": "late", "impatient": "APITimeoutError: Request timed out.", "flaky": ""}
    assert (step.bids[2].bid, step.bids[2].offer, step.auction.price) == (1e30, 1.0, 1.0)
    assert step.after == Thought().append("flaky", "ｆünf 5 🙂")


def test_chat_agent_works_on_other_states_with_write(stub):
    agent = chat(stub, "bot", "good 0.5", write=lambda state, text: f"{state} {text}")
    market = Market([agent], reward=len)
    assert market.play("x", 1).state == "x ｆünf 5 🙂"
    agent.write = None
    (step,) = market.play("x", 1).steps
    assert (
        step.calls[0].reason
        == "ValueError: write: expected a function for states of type str, got None; or use Thought"
    )


def test_a_bid_too_big_for_a_float_is_infinite():
    assert read_bid("9" * 5000) == read_bid("1e999") == math.inf  # which the market refuses


@given(value=st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**20), 10**20)))
@settings(max_examples=50, deadline=None)
def test_bids_are_read_as_written(value):
    assert read_bid(json.dumps(value)) == read_bid(json.dumps({"because": "[{", "bid": value})) == float(value)


@given(reply=st.text('0123456789.eE-+ {}[]":,bidNaInfty', max_size=20))
@settings(max_examples=60, deadline=None)
def test_any_reply_is_a_bid_or_refused(reply):
    try:
        bid = read_bid(reply)
    except ValueError:
        return
    assert bid is None or isinstance(bid, float)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxmarket\[openai\]'"):
        ChatAgent("bot", "model")


# --- the example


@pytest.mark.slow
def test_solvers_learn_the_order_and_gain_wealth(capsys):
    market, history = example.learn_arithmetic(40, seed=0)
    assert history[0].reward == 0, "at first they get it wrong"
    assert all(episode.reward == 1 for episode in history[-10:])
    last = history[-1]
    assert int(last.state.last) == example.arithmetic(last.state.items[0].content)
    order = [item.author for item in last.state][1:]
    assert order == sorted(order, key=["brackets", "times", "plus"].index), "the order of operations"
    assert set(order) == {"brackets", "times", "plus"}
    wealth = market.wealth
    assert min(wealth[name] for name in set(order)) > 4
    assert wealth["guesser"] < 2
    owned = math.fsum([*wealth.values(), market.ledger.balance(AUCTIONEER)])
    solved = sum(episode.reward for episode in history)
    assert owned == pytest.approx(8 + solved, abs=1e-9)
    assert math.fsum(x for a in (*wealth, AUCTIONEER, WORLD) for x in market.ledger.of(a)) == 0
    again, _ = example.learn_arithmetic(40, seed=0)
    assert again.wealth == wealth, "it is deterministic"
    example.main(2)
    assert "episode 1: wrong" in capsys.readouterr().out


@given(seed=st.integers(0, 2**16), terms=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_solvers_in_the_correct_order_are_correct(seed, terms):
    task = example.expression(random.Random(seed), terms)
    brackets, times, plus, guesser = example.solvers()

    def exhaust(solver, state):
        while solver.bid(state, 1.0) is not None:
            state = solver.act(state)
        return state

    start = Thought().append("task", task)
    state = start
    for solver in (brackets, times, plus):
        state = exhaust(solver, state)
    answer = eval(task)
    assert state.last == str(answer) == str(example.arithmetic(task))
    assert all(exhaust(solver, start).last != str(answer) for solver in (brackets, times, plus, guesser))


@pytest.mark.full
def test_the_solvers_learn_the_order_for_every_seed():
    for seed in range(12):
        market, history = example.learn_arithmetic(40, seed=seed)
        assert all(episode.reward == 1 for episode in history[-20:])
        assert min(market.wealth[name] for name in ("brackets", "times", "plus")) > 4
        assert market.wealth["guesser"] < 2


@pytest.mark.slow
def test_a_stalled_agent_holds_no_process_and_no_model_library_is_imported():
    code = """
import sys, time
from jaxmarket.host import CallableAgent, Market
assert not {"openai", "xllamacpp"} & set(sys.modules)
import jaxmarket.host.openai, jaxmarket.host.llama, jaxmarket.host.example
assert not {"openai", "xllamacpp"} & set(sys.modules)
stall = lambda *args: time.sleep(1000)
agents = [CallableAgent("a", stall, stall), CallableAgent("b", lambda state, budget: .5, stall)]
market = Market(agents, reward=len, bid_seconds=.1, act_seconds=.1)
print(market.play("x").end)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert ran.stdout == "unsold\n"


@pytest.mark.slow
def test_workers_of_stalled_agents_hold_no_process_and_those_of_the_user_do():
    code = """
import asyncio, threading, time
from concurrent.futures import ThreadPoolExecutor
from jaxmarket.host import CallableAgent, Market
stall = lambda *args: time.sleep(1000)
async def worker(state, budget):
    return await asyncio.to_thread(stall)
def pool(state, budget):
    with ThreadPoolExecutor() as pool:
        return pool.submit(stall).result()
def thread(state, budget):
    other = threading.Thread(target=stall)
    other.start()
    other.join()
async def deaf(state, budget):
    while True:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            pass
def spin(state, budget):
    while True:
        pass
agents = [CallableAgent(bid.__name__, bid, stall) for bid in (worker, pool, thread, deaf, spin)]
market = Market(agents, reward=len, bid_seconds=.5)
print({bid.reason for bid in market.play("x").steps[0].bids})
ThreadPoolExecutor().submit(lambda: (time.sleep(.2), print("done")))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "{'late'}\ndone\n"


@pytest.mark.slow
def test_the_example_runs_as_a_module():
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "jaxmarket.host.example"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert "episode 40: correct" in ran.stdout and "guesser" in ran.stdout
    assert ran.stderr == ""


def test_names_are_listed():
    assert all(hasattr(host, name) for name in host.__all__)

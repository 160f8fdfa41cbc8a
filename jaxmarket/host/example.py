"""A market in which agents with one rewriting rule each learn the order of operations of arithmetic.

The state is a text whose first item is a task such as ``2*(3+4)+5*(6+1)``. One agent expands the first brackets, one
multiplies the first product of two numbers, one adds the first sum of two numbers, and one returns the first number as
the result. Operations in the wrong order give a wrong result: adding first turns 2*3+2*4 into 2*5*4. The correct
result pays the reward 1.

Each agent bids a fraction of its estimated revenue for states of the same kind: the reward, or the payout of the next
sale. All estimates are equal initially, so that the first winners are random and most results are wrong. ``python -m
jaxmarket.host.example`` prints the first episode, the last one, and the final wealth.
"""

import dataclasses
import random
import re
from collections.abc import Callable

from jaxmarket.host.market import Market, MarketEpisode
from jaxmarket.host.records import Auction, Record
from jaxmarket.host.tables import episode_table, wealth_table
from jaxmarket.host.thoughts import Thought, appends
from jaxmarket.view.text import Screen

__all__ = ["RewritingAgent", "arithmetic", "expression", "learn_arithmetic", "main", "solvers"]


@dataclasses.dataclass
class RewritingAgent:
    """An agent that applies one rewriting rule to a text and learns the value of doing so.

    For each kind of state (the subset of the signs ``( * +`` that occurs in the text) it keeps an estimate, an
    exponential moving average of its revenue: the reward plus the payout for the next state. Holland's (1985)
    classifiers update their strength in the same way.

    Attributes:
        name: its account in the ledger.
        pattern: regular expression; the agent bids if it matches.
        rewrite: replacement of the first match.
        wealth: its endowment.
        share: fraction of the estimate that it bids.
        rate: step size of the moving average, in [0, 1].
        optimism: initial estimate.
    """

    name: str
    pattern: str
    rewrite: Callable[[re.Match[str]], str]
    wealth: float = 2.0
    share: float = 0.9
    rate: float = 0.5
    optimism: float = 0.2

    def __post_init__(self) -> None:
        self.estimates: dict[str, float] = {}
        self._acting = ""
        self._bought: str | None = None
        self._earned = 0.0

    def estimate(self, text: str) -> float:
        """The agent's expected revenue for this text."""
        return self.estimates.get(_kind(text), self.optimism)

    def bid(self, state: Thought, budget: float) -> float | None:
        """``share`` · the estimate, or None if the pattern does not match."""
        return self.share * self.estimate(state.last) if re.search(self.pattern, state.last) else None

    def act(self, state: Thought) -> Thought:
        """Append the text with its first match rewritten."""
        self._acting = _kind(state.last)
        return state.append(self.name, re.sub(self.pattern, self.rewrite, state.last, count=1))

    def learn(self, auction: Auction) -> None:
        """Update the estimate when the bought state is sold again or the episode ends; remember a new purchase."""
        if auction.seller == self.name and self._bought is not None:
            self._settle(self._earned + auction.payout)
        if auction.winner == self.name:
            self._bought, self._earned = self._acting, auction.reward
            if auction.done:
                self._settle(self._earned)

    def _settle(self, earned: float) -> None:
        assert self._bought is not None
        former = self.estimates.get(self._bought, self.optimism)
        self.estimates[self._bought] = former + self.rate * (earned - former)
        self._bought = None


def _kind(text: str) -> str:
    return "".join(sign for sign in "(*+" if sign in text)


def solvers(**settings: float) -> list[RewritingAgent]:
    """The four agents; ``settings`` are passed to each `RewritingAgent`."""
    return [
        RewritingAgent("brackets", r"(\d+)\*\((\d+)\+(\d+)\)", lambda m: f"{m[1]}*{m[2]}+{m[1]}*{m[3]}", **settings),
        RewritingAgent("times", r"(\d+)\*(\d+)", lambda m: str(int(m[1]) * int(m[2])), **settings),
        RewritingAgent("plus", r"(\d+)\+(\d+)", lambda m: str(int(m[1]) + int(m[2])), **settings),
        RewritingAgent("guesser", r"(\d+)\D.*", lambda m: m[1], **settings),
    ]


def expression(rng: random.Random, terms: int = 2) -> str:
    """A random task: the sum of ``terms`` terms such as ``2*(3+4)``, with digits 2 to 9."""
    return "+".join("{}*({}+{})".format(*(rng.randint(2, 9) for _ in range(3))) for _ in range(terms))


def arithmetic(task: str) -> int:
    """The correct result of an `expression`.

    >>> arithmetic("2*(3+4)+5*(6+1)")
    49
    """
    return sum(int(a) * (int(b) + int(c)) for a, b, c in re.findall(r"(\d+)\*\((\d+)\+(\d+)\)", task))


def _reward(thought: Thought) -> float:
    return float(thought.last == str(arithmetic(thought.items[0].content)))


def _done(thought: Thought) -> bool:
    return thought.last.isdecimal()


def learn_arithmetic(
    episodes: int = 40, *, seed: int = 0, log: Callable[[Record], object] | None = None
) -> tuple[Market, list[MarketEpisode]]:
    """Run the agents on ``episodes`` random tasks and return the market and its episodes."""
    rng = random.Random(seed)
    market = Market(solvers(), reward=_reward, done=_done, legal=appends, text=str, log=log, seed=seed)
    return market, [market.play(Thought().append("task", expression(rng)), steps=30) for _ in range(episodes)]


def main(episodes: int = 40, seed: int = 0) -> None:
    """Print the first episode, the last one, and the final wealth."""
    market, history = learn_arithmetic(episodes, seed=seed)
    screen = Screen()
    for number in (1, episodes):
        episode = history[number - 1]
        result = "correct" if episode.reward else "wrong"
        screen.print(episode_table(episode, title=f"episode {number}: {result} result"))
    tens = [history[i : i + 10] for i in range(0, episodes, 10)]
    solved = " ".join(f"{sum(e.reward > 0 for e in ten)}/{len(ten)}" for ten in tens)
    screen.message(f"correct results in blocks of ten episodes: {solved}")
    screen.print(wealth_table(market, title=f"wealth after {episodes} episodes"))


if __name__ == "__main__":
    main()

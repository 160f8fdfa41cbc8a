"""A market in which three agents, none of which can evaluate a sum with brackets, learn the order of their work.

The task ``2*(3+4)+5*(6+1)`` is the first item of a text. One agent expands the first brackets, one multiplies the first
two numbers it finds, one adds the first two numbers it finds. None of them plans: adding too early spoils the sum,
2*3+2*4 becomes 2*5*4. A fourth agent guesses that the first number is the result. A right result is paid 1, once.

The agents are not told the order. Each bids a share of what such a state last earned it: the reward, or the payout of
the next sale. All begin with the same small bids, so that chance decides at first and most results are wrong.
``python -m jaxmarket.host.example`` prints the first episode, the last one, and the final wealth.
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

    Its estimate for a kind of state (which of the signs ``( * +`` are in it) moves towards what it earned there: the
    reward and what it was paid for the state it left. This is what Holland's rules do with their strength.

    Attributes:
        name: its account.
        pattern: what it can work on.
        rewrite: replacement of the first match.
        wealth: what it begins with.
        share: of its estimate that it bids; the rest is its profit.
        rate: how far its estimate moves.
        optimism: its estimate for a kind of state that it never bought.
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
        """Its expected revenue for this text."""
        return self.estimates.get(_kind(text), self.optimism)

    def bid(self, state: Thought, budget: float) -> float | None:
        """A share of its estimate, or None if the pattern does not match."""
        return self.share * self.estimate(state.last) if re.search(self.pattern, state.last) else None

    def act(self, state: Thought) -> Thought:
        """Append the text with its first match rewritten."""
        self._acting = _kind(state.last)
        return state.append(self.name, re.sub(self.pattern, self.rewrite, state.last, count=1))

    def learn(self, auction: Auction) -> None:
        """Settle the last purchase when its state is sold or unsold, or when the episode ends; note a new purchase."""
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
    """The three agents and a guesser; ``settings`` go to each `RewritingAgent`."""
    return [
        RewritingAgent("brackets", r"(\d+)\*\((\d+)\+(\d+)\)", lambda m: f"{m[1]}*{m[2]}+{m[1]}*{m[3]}", **settings),
        RewritingAgent("times", r"(\d+)\*(\d+)", lambda m: str(int(m[1]) * int(m[2])), **settings),
        RewritingAgent("plus", r"(\d+)\+(\d+)", lambda m: str(int(m[1]) + int(m[2])), **settings),
        RewritingAgent("guesser", r"(\d+)\D.*", lambda m: m[1], **settings),
    ]


def expression(rng: random.Random, terms: int = 2) -> str:
    """A task: the sum of ``terms`` terms such as ``2*(3+4)``, with digits 2 to 9."""
    return "+".join("{}*({}+{})".format(*(rng.randint(2, 9) for _ in range(3))) for _ in range(terms))


def arithmetic(task: str) -> int:
    """The right result of an `expression`.

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
    """Run the agents on ``episodes`` random tasks: the market and its episodes."""
    rng = random.Random(seed)
    market = Market(solvers(), reward=_reward, done=_done, legal=appends, log=log, seed=seed)
    return market, [market.play(Thought().append("task", expression(rng)), steps=30) for _ in range(episodes)]


def main(episodes: int = 40, seed: int = 0) -> None:
    """Print the first episode, the last one, and the final wealth."""
    market, history = learn_arithmetic(episodes, seed=seed)
    screen = Screen()
    for number in (1, episodes):
        episode = history[number - 1]
        verdict = "right" if episode.reward else "wrong"
        screen.print(episode_table(episode, title=f"episode {number}: {verdict}"))
    tens = [history[i : i + 10] for i in range(0, episodes, 10)]
    solved = " ".join(f"{sum(e.reward > 0 for e in ten)}/{len(ten)}" for ten in tens)
    screen.message(f"solved, ten episodes at a time: {solved}")
    screen.print(wealth_table(market, title=f"wealth after {episodes} episodes"))


if __name__ == "__main__":
    main()

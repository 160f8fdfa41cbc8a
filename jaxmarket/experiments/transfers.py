"""Transfer experiments, in which agents learn one task and then, from their networks, another: what these share.

Success is `termination_rate`: the tasks terminate only when they are solved.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxmarket.experiments.claims import Claim, Values, at, separated, tally
from jaxmarket.experiments.results import Results
from jaxmarket.runs.estimates import Estimate, interquartile_mean
from jaxmarket.runs.measures import final, reached, steps_to
from jaxmarket.training.transfer import weight_changes
from jaxmarket.view import plotting

__all__ = ["LEVEL", "MEASURES", "RATE", "Transfer", "draw_weights", "exploring", "fewer_steps", "kind_of"]

LEVEL = 0.9
"""The success rate whose steps are measured."""

RATE = "termination_rate"
"""The metric of success."""

MEASURES = {
    "success": final(f"sampled_{RATE}_seeds"),
    "greedy success": final(f"{RATE}_seeds"),
    "steps to 90%": steps_to(LEVEL, RATE),
    "reached 90%": lambda run: ~np.isnan(reached(LEVEL, RATE)(run)),
    "steps to stay": steps_to(LEVEL, RATE, lasting=True),
    "stays": lambda run: ~np.isnan(reached(LEVEL, RATE, lasting=True)(run)),
}
"""Measures of one run. Steps of seeds that never get there are those of the whole run."""


def exploring(settings: Mapping[str, dict[str, Any]], agents: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The settings of these agents with an entropy weight of .1, as ``…-exploring``.

    Grids choose settings on the first task; they may be worse on the next one, because a policy that has become
    deterministic cannot relearn.
    """
    return {f"{agent}-exploring": settings[agent] | {"entropy": 0.1} for agent in agents}


def kind_of(name: str) -> str:
    """The agent of which a condition, such as ``flat-exploring``, is a variant."""
    return name.partition("-")[0]


@dataclasses.dataclass(frozen=True)
class Transfer:
    """An agent on a first task and on a transfer task.

    Attributes:
        agent: shown in tables.
        first: the condition on the first task.
        second: the condition on the transfer task.
    """

    agent: str
    first: str
    second: str

    def weights(self, results: Results) -> list[dict[str, Any]]:
        """`weight_changes` of the transfer."""
        before, after = results[self.first], results[self.second]
        return results.once(
            ("weights", self.first, self.second),
            lambda: weight_changes(before.networks, after.networks, modules=before.config.agent == "society"),
        )

    def over(self, part: str, what: str) -> Values:
        """``moved`` or ``change`` of one part, of all ``policies``, or of ``all`` weights: f [seeds]."""
        return lambda results: np.array([row[what] for row in self.weights(results) if row["part"] == part])

    def row(self, results: Results, *, lasting: bool = False) -> dict[str, Any]:
        """The row of a table; steps in thousands, with ``lasting`` also those after which success stays."""

        def mean(condition: str, measure: str, unit: float = 1) -> Estimate:
            return interquartile_mean(results.measure(condition, measure) / unit)

        row = {
            "arm": self.agent,
            "first": mean(self.first, "success"),
            "k steps": mean(self.first, "steps to 90%", 1000),
            "transfer": mean(self.second, "success"),
            "k steps after": mean(self.second, "steps to 90%", 1000),
            "reached": tally(results.measure(self.second, "reached 90%")),
            "moved": interquartile_mean(self.over("all", "moved")(results)),
            "policies moved": interquartile_mean(self.over("policies", "moved")(results)),
            "change": interquartile_mean(self.over("all", "change")(results)),
        }
        if lasting:
            row["k steps to stay"] = mean(self.second, "steps to stay", 1000)
            row["stay"] = tally(results.measure(self.second, "stays"))
        return row


def fewer_steps(text: str, first: str, second: str, *, lasting: bool = False) -> Claim:
    """Whether a condition needs fewer environment steps to 90% success than another, with `separated`.

    A seed that never gets there counts as the whole run, a lower bound. This favours the claim for seeds of the first
    condition, at least three quarters of which must therefore get there.

    Args:
        text: the claim.
        first, second: the conditions.
        lasting: whether they must also stay there.
    """
    steps, arrived = ("steps to stay", "stays") if lasting else ("steps to 90%", "reached 90%")

    def tallies(results: Results) -> str:
        return "reached by " + " and ".join(tally(results.measure(name, arrived)) for name in (first, second))

    mine, others = at(first, steps), at(second, steps)
    return separated(text, mine, others, lower=True, reached=at(first, arrived), evidence=tallies)


def draw_weights(transfers: list[Transfer], results: Results) -> Any:
    """A figure of the relative change of every part of every agent: mean over seeds, and range as bars."""
    fig, axes = plotting.figure(columns=len(transfers), width=5.0, height=5.0)
    colors = plotting.series_colors(transfer.agent for transfer in transfers).values()
    for ax, transfer, color in zip(axes, transfers, colors, strict=True):
        plotting.draw_weight_changes(ax, transfer.weights(results), color=color, title=transfer.agent)
    return fig

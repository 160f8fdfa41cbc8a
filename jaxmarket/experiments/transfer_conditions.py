"""Conditions of transfer experiments, which learn one task and then another, and their measures.

Success is `termination_rate`: the tasks terminate only when they are solved.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxmarket.experiments.report import Estimate, Verdict, difference, interquartile_mean, tally
from jaxmarket.metrics import env_steps
from jaxmarket.runs.run_folder import SavedRun
from jaxmarket.training.transfer import weight_changes
from jaxmarket.view import plotting

__all__ = [
    "LEVEL",
    "TransferCondition",
    "draw_curves",
    "draw_weights",
    "exploring",
    "fewer_steps",
    "first_task",
    "kind_of",
    "lower_bound",
    "steps_spread",
    "steps_to",
    "success_curve",
]

LEVEL = 0.9
"""The success rate that `steps_to` measures."""

_MORE_ENTROPY = {"entropy": 0.1}


def exploring(settings: Mapping[str, dict[str, Any]], agents: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The settings of these agents with an entropy weight of .1, as ``…-exploring``.

    Grids choose settings on the first task; they may be worse on the next one, because a policy that has become
    deterministic cannot relearn.
    """
    return {f"{agent}-exploring": settings[agent] | _MORE_ENTROPY for agent in agents}


def kind_of(name: str) -> str:
    """The agent of which a condition, such as ``flat-exploring``, is a variant."""
    return name.partition("-")[0]


def success_curve(run: SavedRun) -> tuple[np.ndarray, np.ndarray]:
    """Environment steps per seed until each chunk, and the success rate of its episodes: [chunks, seeds] each."""
    return env_steps(run.metrics["duration"], run.config.settings.auctions_per_chunk), run.metrics["termination_rate"]


def steps_to(run: SavedRun, level: float = LEVEL) -> np.ndarray:
    """Environment steps until the success rate of a chunk, with sampled actions, first reaches a level: f [seeds].

    Counted to the end of that chunk; NaN for a seed that never reaches it.
    """
    steps, success = success_curve(run)
    reached = success >= level  # False for NaN, the rate of a chunk in which no episode ended
    first = reached.argmax(0)
    return np.where(reached.any(0), steps[first, np.arange(steps.shape[1])], np.nan)


def lower_bound(run: SavedRun, steps: np.ndarray) -> np.ndarray:
    """Steps to a level, and the steps of the whole run for seeds that never reached it (NaN): f [seeds]."""
    return np.where(np.isnan(steps), success_curve(run)[0][-1], steps)


def fewer_steps(
    claim: str, ours: np.ndarray, theirs: np.ndarray, whole: tuple[np.ndarray | float, np.ndarray | float]
) -> Verdict:
    """Whether one condition needs fewer steps than another: the interval of the difference is below zero.

    Args:
        claim: what is claimed.
        ours: steps, f [seeds]; NaN (never) counts as the steps of the whole run, a lower bound that favours the
            claim. If more than a quarter of these seeds are NaN, the claim is not confirmed.
        theirs: as for ``ours``.
        whole: steps of the whole run, of both conditions; f [seeds] or one number.
    """
    reached = [~np.isnan(steps) for steps in (ours, theirs)]
    mine, others = (
        np.where(there, steps, most) for there, steps, most in zip(reached, (ours, theirs), whole, strict=True)
    )
    middle, other, gap = interquartile_mean(mine), interquartile_mean(others), difference(mine, others)
    return Verdict.of(
        claim,
        bool(reached[0].mean() >= 0.75 and gap.high < 0),
        middle.value / other.value,
        f"{middle} steps ({tally(reached[0])} seeds reach it) against {other} ({tally(reached[1])}); others count as "
        f"the whole run; difference of the means {gap}",
    )


@dataclasses.dataclass(frozen=True)
class TransferCondition:
    """The two runs of one kind of agent.

    Attributes:
        name: shown in tables.
        first: the run on the first task.
        second: the run on the transfer task, started from ``first``.
    """

    name: str
    first: SavedRun
    second: SavedRun

    @functools.cached_property
    def weights(self) -> list[dict[str, Any]]:
        """`weight_changes` of the transfer."""
        modules = self.first.config.agent == "society"
        return weight_changes(self.first.networks, self.second.networks, modules=modules)

    def over(self, part: str, what: str) -> np.ndarray:
        """``moved`` or ``change`` of one part, of all ``policies``, or of ``all`` weights: f [seeds]."""
        return np.array([row[what] for row in self.weights if row["part"] == part])

    @property
    def row(self) -> dict[str, Any]:
        """The row of the main table; steps in thousands."""
        return {
            "arm": self.name,
            "first": _rate(self.first),
            "k steps": interquartile_mean(lower_bound(self.first, steps_to(self.first)) / 1000),
            "transfer": _rate(self.second),
            "k steps after": interquartile_mean(lower_bound(self.second, steps_to(self.second)) / 1000),
            "reached": tally(~np.isnan(steps_to(self.second))),
            "moved": interquartile_mean(self.over("all", "moved")),
            "policies moved": interquartile_mean(self.over("policies", "moved")),
            "change": interquartile_mean(self.over("all", "change")),
        }

    @property
    def entry(self) -> dict[str, Any]:
        """The entry of a report's ``arms``."""
        return {
            **first_task(self.first),
            "success_transfer": _spread(np.array(self.second.summary["sampled_termination_rate_seeds"])),
            "success_transfer_greedy": _spread(np.array(self.second.summary["termination_rate_seeds"])),
            "steps_to_90_transfer": steps_spread(self.second, steps_to(self.second)),
            "share_of_weights_moved": _spread(self.over("all", "moved")),
            "share_of_policy_weights_moved": _spread(self.over("policies", "moved")),
            "relative_weight_change": _spread(self.over("all", "change")),
            "env_steps_transfer": float(success_curve(self.second)[0][-1].max()),
        }


def first_task(run: SavedRun) -> dict[str, Any]:
    """The measures of a run on the first task, for a report."""
    return {
        "success_first": _spread(np.array(run.summary["sampled_termination_rate_seeds"])),
        "success_first_greedy": _spread(np.array(run.summary["termination_rate_seeds"])),
        "steps_to_90_first": steps_spread(run, steps_to(run)),
        "env_steps_first": float(success_curve(run)[0][-1].max()),
    }


def _rate(run: SavedRun) -> Estimate:
    return interquartile_mean(run.summary["sampled_termination_rate_seeds"])


def steps_spread(run: SavedRun, steps: np.ndarray) -> dict[str, Any]:
    """Mean, standard deviation and range of steps to a level; seeds that never reach it count as the whole run."""
    return _spread(lower_bound(run, steps)) | {"never": int(np.isnan(steps).sum())}


def _spread(values: np.ndarray) -> dict[str, Any]:
    """Mean, standard deviation and range over the seeds with a value; null if there are none."""
    known = values[~np.isnan(values)]
    none = len(known) == 0
    return {
        "mean": None if none else float(known.mean()),
        "std": None if none else float(known.std()),
        "lowest": None if none else float(known.min()),
        "highest": None if none else float(known.max()),
        "seeds": [None if np.isnan(v) else float(v) for v in values],
        "never": int(np.isnan(values).sum()),
    }


def draw_curves(ax: Any, runs: dict[str, SavedRun], *, metric: str = "termination_rate", title: str = "") -> None:
    """A metric against environment steps: median over seeds, with the interquartile range as a band."""
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415

    for i, (name, run) in enumerate(runs.items()):
        steps, values = success_curve(run)[0], run.metrics[metric]
        ended = ~np.isnan(values).all(1)
        x = np.median(steps[ended], 1)
        low, middle, high = np.nanpercentile(values[ended], (25, 50, 75), axis=1)
        plotting.draw_band(ax, x, middle, low, high, color=f"C{i}", label=name)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(EngFormatter())
    ax.set(xlabel="environment steps per seed", title=title)


def draw_weights(agents: list[TransferCondition]) -> Any:
    """A figure of the relative change of every part of every condition: mean over seeds, and range as bars."""
    fig, axes = plotting.figure(columns=len(agents), width=5.0, height=5.0)
    for i, (ax, agent) in enumerate(zip(axes, agents, strict=True)):
        plotting.draw_weight_changes(ax, agent.weights, color=f"C{i}", title=agent.name)
    return fig

"""Measures of training runs: functions of a `SavedRun` with one value per seed."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxmarket.metrics import env_steps
from jaxmarket.runs.curves import first_reach, last_part, lower_bound, ratio
from jaxmarket.runs.run_folder import SavedRun

__all__ = [
    "TOLERANCE",
    "Measure",
    "bid_error",
    "final",
    "learning_curve",
    "nearly",
    "parameters",
    "reached",
    "solved",
    "steps_to",
    "while_learning",
]

Measure = Callable[[Any], np.ndarray]
"""The values of a `SavedRun`: ``run -> f [seeds]``."""

TOLERANCE = 0.01
"""The share of the optimum by which a return that counts as optimal may be lower."""


def final(name: str = "return_seeds") -> Measure:
    """An entry of ``summary.json`` with one number per seed; by default the greedy return after training."""
    return lambda run: np.array(run.summary[name], np.float64)


def parameters(run: SavedRun) -> np.ndarray:
    """Numbers in all networks of a seed: f [seeds]."""
    leaves = jax.tree.leaves(run.networks)
    return np.full(len(leaves[0]), sum(leaf[0].size for leaf in leaves), np.float64)


def while_learning(metric: str = "return_mean") -> Measure:
    """The mean of a metric over the last tenth of training, with exploration or sampled bids.

    ``return_mean`` is the mean over the episodes that ended in it, of any chunk; NaN if none did.
    """

    def measure(run: SavedRun) -> np.ndarray:
        values = last_part(run.metrics[metric])
        if metric != "return_mean" or "episodes" not in run.metrics:  # the training of a wide market has no episodes
            return values.mean(0)
        episodes = last_part(run.metrics["episodes"])
        return ratio(np.where(episodes > 0, values * episodes, 0).sum(0), episodes.sum(0))

    return measure


def learning_curve(run: SavedRun, metric: str = "return_mean") -> tuple[np.ndarray, np.ndarray]:
    """Environment steps per seed until each chunk, and a metric of that chunk: [chunks, seeds] each."""
    return env_steps(run.metrics["duration"], run.config.settings.auctions_per_chunk), run.metrics[metric]


def reached(level: float, metric: str = "return_mean", *, lasting: bool = False) -> Measure:
    """Environment steps to the end of the chunk in which a metric first reaches a level; NaN for seeds that never do.

    Args:
        level: of the metric.
        metric: while learning.
        lasting: whether it must also stay there to the end.
    """

    def measure(run: SavedRun) -> np.ndarray:
        steps, values = learning_curve(run, metric)
        return first_reach(values, level, steps, lasting=lasting)

    return measure


def steps_to(level: float, metric: str = "return_mean", *, lasting: bool = False) -> Measure:
    """As `reached`, with the steps of the whole run, a lower bound, for seeds that never reach the level."""
    measure = reached(level, metric, lasting=lasting)
    return lambda run: lower_bound(measure(run), learning_curve(run, metric)[0][-1])


def bid_error(error: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Measure:
    """The mean over visited states of an error of greedy bids, for environments with known Q*.

    Args:
        error: ``(bids, q) -> f [S]``, of each primitive's highest bid f [S, P] and Q* f [S, P].
    """
    return lambda run: np.array([error(b, run.q)[v].mean() for b, v in zip(run.bids, run.visited, strict=True)])


def nearly(optimum: float) -> float:
    """The lowest return within 1% of the optimum."""
    return optimum - TOLERANCE * abs(optimum)


def solved(returns: np.ndarray, optimum: float) -> np.ndarray:
    """Which returns are within 1% of the optimum: bool [...], of returns f [...]."""
    return returns >= nearly(optimum)

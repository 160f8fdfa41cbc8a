"""Curves over seeds: when they reach a level, and their last part."""

from typing import Any

import numpy as np

__all__ = ["LATE", "first_held", "first_reach", "last_part", "lower_bound", "ratio", "reached_by"]

LATE = 0.1
"""The share of a run that `last_part` returns."""


def first_reach(values: Any, level: float, at: Any, *, lasting: bool = False) -> np.ndarray:
    """When a curve first reaches a level: f [seeds], NaN for seeds that never do.

    Args:
        values: f [T, seeds]; NaN has not reached it.
        level: values of at least this have reached it.
        at: what to return for each point, f [T] or [T, seeds], such as the environment steps so far.
        lasting: whether it must also stay there to the end.
    """
    reached = np.asarray(values, np.float64) >= level  # False for NaN
    if lasting:
        reached = np.logical_and.accumulate(reached[::-1])[::-1]
    at = np.asarray(at, np.float64)
    at = np.broadcast_to(at if at.ndim == 2 else at[:, None], reached.shape)
    first = reached.argmax(0)
    return np.where(reached.any(0), at[first, np.arange(reached.shape[1])], np.nan)


def first_held(hits: Any, hold: int) -> np.ndarray:
    """The first point, from 1, of ``hold`` hits in a row: f [seeds], NaN for seeds without such a row.

    Args:
        hits: bool [T, seeds].
        hold: at least 1.
    """
    if hold > len(hits):
        return np.full(np.shape(hits)[1], np.nan)
    count = np.cumsum(np.pad(hits, ((1, 0), (0, 0))), axis=0)
    held = count[hold:] - count[:-hold] == hold
    return np.where(held.any(0), held.argmax(0) + 1.0, np.nan)


def reached_by(reached: Any, share: float = 0.5) -> int | None:
    """When a share of the seeds has reached a level, the median by default; None if fewer ever do.

    Args:
        reached: f [seeds], NaN for seeds that never do, as from `first_reach`.
        share: of the seeds, in [0, 1].
    """
    # Without interpolation, which is undefined between a finite value and infinity.
    found = float(np.quantile(lower_bound(np.asarray(reached), np.inf), share, method="inverted_cdf"))
    return round(found) if np.isfinite(found) else None


def lower_bound(reached: np.ndarray, whole: Any) -> np.ndarray:
    """The results of `first_reach`, with the length of the whole run for seeds that never reach it: f [seeds]."""
    return np.where(np.isnan(reached), whole, reached)


def last_part(values: Any, axis: int = 0) -> np.ndarray:
    """The last tenth of a run, at least one point: f [..., t, ...], of f [..., T, ...].

    Args:
        values: f [..., T, ...].
        axis: that of time, T.
    """
    values = np.moveaxis(np.asarray(values), axis, 0)
    return np.moveaxis(values[-max(1, round(LATE * len(values))) :], 0, axis)


def ratio(sums: Any, counts: Any) -> np.ndarray:
    """A mean from its sum f [...] and the number of its terms [...]: f [...], NaN where there are none."""
    counts = np.asarray(counts)
    return np.where(counts > 0, np.asarray(sums) / np.maximum(1, counts), np.nan)

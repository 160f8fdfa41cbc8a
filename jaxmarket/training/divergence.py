"""Divergence: seeds whose training or evaluation is not finite, and statistics over the other seeds.

A seed has diverged if, after some chunk of training, its parameters are not finite (or so large that their squares are
not finite) or a reward was not finite; or if a return or a greedy bid of its evaluation is not finite. The return of a
diverged seed is NaN in every result (``null`` in JSON), statistics cover the other seeds, and tables show the number of
excluded seeds.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.types import Array, PyTree, real

__all__ = ["Spread", "best", "described", "diverged", "find", "finite", "spread", "valid"]


def diverged(parameters: PyTree, reward: Array) -> Array:
    """Whether parameters or rewards of one seed are not finite: f [], 1 or 0.

    Args:
        parameters: leaves [...]. Parameters whose square overflows (1.8e19 in float32) count as infinite.
        reward: f [], a sum of rewards.
    """
    leaves = [leaf for leaf in jax.tree.leaves(parameters) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    squares = sum((jnp.sum(jnp.square(leaf.astype(real()))) for leaf in leaves), jnp.zeros((), real()))
    return (~jnp.isfinite(squares) | ~jnp.isfinite(reward)).astype(real())


def valid(returns: Array, parameters: PyTree) -> Array:
    """A return f [] of one seed, NaN if its parameters are not finite: such a policy can still earn a finite return."""
    return jnp.where(diverged(parameters, returns) > 0, jnp.nan, returns)


def find(metrics: Mapping[str, np.ndarray], *evaluated: Any) -> list[dict[str, Any]]:
    """The diverged seeds, in order.

    Args:
        metrics: metrics of a run, [chunks, seeds]: ``diverged`` and ``welfare``.
        evaluated: results of the evaluation, such as returns and bids, f [seeds, ...] each.

    Returns:
        For each diverged seed: ``seed``; ``chunk``, the first chunk whose metrics show it, counted from 1, or None if
        only the evaluation does; and ``cause``: ``"reward"``, ``"parameters"`` or ``"evaluation"``.
    """
    fine = [np.isfinite(np.asarray(each, np.float64)).reshape(len(each), -1).all(1) for each in evaluated]
    found = []
    for seed, valid in enumerate(np.all(fine, axis=0)):
        flagged = np.flatnonzero(metrics["diverged"][:, seed] > 0) if "diverged" in metrics else np.zeros(0, int)
        if len(flagged):
            first = int(flagged[0])
            cause = "parameters" if np.isfinite(metrics["welfare"][first, seed]) else "reward"
            found.append({"seed": seed, "chunk": first + 1, "cause": cause})
        elif not valid:
            found.append({"seed": seed, "chunk": None, "cause": "evaluation"})
    return found


_CAUSES = {
    "reward": "rewards not finite",
    "parameters": "parameters not finite",
    "evaluation": "returns or bids of the evaluation not finite",
}


def described(found: Iterable[Mapping[str, Any]], seeds: int) -> str:
    """A line of text that lists the diverged seeds, their causes and first chunks.

    Args:
        found: the result of `find`.
        seeds: number of seeds of the run.
    """
    parts = []
    for each in found:
        since = f" since chunk {each['chunk']}" if each["chunk"] else ""
        parts.append(f"seed {each['seed']} ({_CAUSES[each['cause']]}{since})")
    shown = ", ".join(parts[:_SHOWN]) + (f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else "")
    return f"diverged: {len(parts)} of {seeds} seeds: {shown}"


_SHOWN = 5


def finite(values: Any) -> np.ndarray:
    """The finite values, f64 [n]. None, which stands for NaN in JSON, is not finite."""
    array = np.asarray(values, np.float64).reshape(-1)
    return array[np.isfinite(array)]


class Spread(NamedTuple):
    """Statistics over finite values; all are NaN if there are none."""

    mean: float
    std: float
    lowest: float
    highest: float


def spread(values: Any) -> Spread:
    """Mean, population standard deviation, minimum and maximum of the finite values."""
    kept = finite(values)
    if not len(kept):
        return Spread(*[float("nan")] * 4)
    return Spread(float(kept.mean()), float(kept.std()), float(kept.min()), float(kept.max()))


def best(values: Any) -> int:
    """The index of the highest finite value.

    Raises:
        ValueError: no value is finite.
    """
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).any():
        raise ValueError(
            f"seed: expected at least one finite return, got {array.size} that are not finite: every seed diverged; "
            "give seed, or train again"
        )
    return int(np.argmax(np.where(np.isfinite(array), array, -np.inf)))

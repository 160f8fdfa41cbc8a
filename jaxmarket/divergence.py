"""Divergence: seeds whose training or evaluation left the finite numbers, and statistics without them.

A seed has diverged if, after some chunk of training, its parameters are not finite (or so large that their squares are
not) or a reward was not; or if a return or a greedy bid of its evaluation is not. The return of such a seed is NaN in
every result (``null`` in JSON), statistics are over the other seeds, and every table says how many were left out.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.types import Array, PyTree, real

__all__ = ["Spread", "best", "described", "diverged", "find", "finite", "spread", "valid"]


def diverged(parameters: PyTree, reward: Array) -> Array:
    """Whether parameters or rewards of one seed left the finite numbers: f [], 1 or 0.

    Args:
        parameters: leaves [...]. One whose square overflows (1.8e19 in float32) counts as infinite.
        reward: f [], a sum of rewards.
    """
    leaves = [leaf for leaf in jax.tree.leaves(parameters) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    squares = sum((jnp.sum(jnp.square(leaf.astype(real()))) for leaf in leaves), jnp.zeros((), real()))
    return (~jnp.isfinite(squares) | ~jnp.isfinite(reward)).astype(real())


def valid(returns: Array, parameters: PyTree) -> Array:
    """A return f [] of one seed, NaN if its parameters left the finite numbers: such a policy still acts somehow."""
    return jnp.where(diverged(parameters, returns) > 0, jnp.nan, returns)


def find(metrics: Mapping[str, np.ndarray], *evaluated: Any) -> list[dict[str, Any]]:
    """The seeds that diverged, in order.

    Args:
        metrics: of a run, [chunks, seeds]: ``diverged`` and ``welfare``.
        evaluated: f [seeds, ...] each: what an evaluation measured, such as returns and bids.

    Returns:
        For each of them ``seed``; ``chunk``, the first whose metrics show it, from 1, or None where only the evaluation
        does; and ``cause``: ``"reward"``, ``"parameters"`` or ``"evaluation"``.
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
    """Which seeds diverged, since when and why: a line for people.

    Args:
        found: see `find`.
        seeds: of the run.
    """
    parts = []
    for each in found:
        since = f" since chunk {each['chunk']}" if each["chunk"] else ""
        parts.append(f"seed {each['seed']} ({_CAUSES[each['cause']]}{since})")
    shown = ", ".join(parts[:_SHOWN]) + (f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else "")
    return f"diverged: {len(parts)} of {seeds} seeds: {shown}"


_SHOWN = 5


def finite(values: Any) -> np.ndarray:
    """Those of some numbers that are finite: f64 [n]; None, which JSON has in place of NaN, is not."""
    array = np.asarray(values, np.float64).reshape(-1)
    return array[np.isfinite(array)]


class Spread(NamedTuple):
    """Statistics over the finite ones of some numbers; all are NaN if there is none."""

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
        ValueError: none is finite.
    """
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).any():
        raise ValueError(
            f"seed: expected a finite return to choose by, got {array.size} that are not: every seed diverged; "
            "name one, or train again"
        )
    return int(np.argmax(np.where(np.isfinite(array), array, -np.inf)))

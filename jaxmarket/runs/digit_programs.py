"""Programs for `MentalRotation`: those that trained agents compose, and what can be read without learning.

N examples are pairs of a digit and a combination of transformations, such as ``env.examples(env.held_out)``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxmarket.environments.mental_rotation import MentalRotation, inverse, needed
from jaxmarket.runs.estimates import interquartile_mean
from jaxmarket.training import programs
from jaxmarket.types import PyTree

__all__ = [
    "accuracy_rows",
    "bid_rows",
    "bounds",
    "combination_rows",
    "functions_used",
    "play",
]

Arrays = Mapping[str, Any]
"""What `bounds` or `play` returns."""


def play(env: MentalRotation, policies: Sequence[PyTree], examples: PyTree) -> dict[str, np.ndarray]:
    """The programs that S policies, such as the seeds of a run, compose for N examples.

    Args:
        env: the environment.
        policies: a policy for each seed, as of `jaxmarket.as_policy`.
        examples: digits and combinations, i [N] each.

    Returns:
        ``read`` bool [S, N]; ``choices`` i [S, N, T], -1 after the end of a program; ``applied`` i [S, N], number of
        functions; ``bids`` f [S, N, T, P] of each primitive, unless the policies have no market.
    """
    played = [programs.compose_all(env, policy, examples) for policy in policies]
    made, bids = jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(played))
    found = {"read": made.reward > 0, "choices": made.choices, "applied": made.applied}
    return found if bids is None else found | {"bids": bids}


def bounds(env: MentalRotation, training: PyTree, examples: PyTree) -> dict[str, np.ndarray]:
    """What is read without learning in N examples, bool [N] each.

    Args:
        env: the environment.
        training: examples for the choice of the best fixed program.
        examples: those to read, digits and combinations, i [N] each.

    Returns:
        ``none``: without a function; ``fixed``: after the ``program`` that is best on training digits; ``inverse``:
        after the exact inverse of the transformations; ``oracle``: after at least one program. ``combination`` i [N].
    """
    found = programs.bounds(env, training, examples, depth=2)
    return {
        "none": found.rewards[()] > 0,
        "fixed": found.fixed > 0,
        "inverse": np.array([found.rewards[inverse(c)][i] > 0 for i, c in enumerate(examples[1])]),
        "oracle": found.oracle > 0,
        "program": np.array(found.program, int),
        "combination": examples[1],
    }


def functions_used(known: Arrays, played: Arrays) -> dict[int, np.ndarray]:
    """The mean number of functions that agents apply, by the number that undoes the transformations: f [S] each.

    Args:
        known: of `bounds`.
        played: of `play`.
    """
    need = _needed(known)
    return {int(n): played["applied"][:, need == n].mean(1) for n in np.unique(need)}


def accuracy_rows(known: Arrays, plays: Mapping[str, Arrays]) -> Iterator[dict[str, Any]]:
    """The shares of examples that agents, and programs without learning, read; and the functions that they use.

    Args:
        known: of `bounds`.
        plays: of `play`, by the name of the agent.

    Yields:
        ``who``; ``accuracy``, an `Estimate` over seeds; that of the ``lowest seed``; the mean over that ``of the
        oracle's``; and the mean number of functions ``used, n needed``, for each n.
    """
    need = _needed(known)
    found = {"none": (known["none"], 0 * need), "best fixed": (known["fixed"], 0 * need + len(known["program"]))}
    found |= {name: (played["read"], played["applied"]) for name, played in plays.items()}
    found |= {"inverse": (known["inverse"], need), "oracle": (known["oracle"], None)}
    for who, (read, applied) in found.items():
        row = {
            "who": who,
            "accuracy": interquartile_mean(np.atleast_1d(read.mean(-1))),
            "lowest seed": float(read.mean(-1).min()),
            "of the oracle's": float(read.mean(-1).mean() / known["oracle"].mean()),
        }
        for n in np.unique(need):
            row[f"used, {n} needed"] = None if applied is None else float(applied[..., need == n].mean())
        yield row


def combination_rows(
    env: MentalRotation, known: Arrays, plays: Mapping[str, Arrays], market: str
) -> Iterator[dict[str, Any]]:
    """As `accuracy_rows`, the accuracy by combination.

    Args:
        env: the environment.
        known: of `bounds`.
        plays: of `play`, by the name of the agent.
        market: the agent whose share of exact inverses is ``undone``.
    """
    for c in env.combinations:
        here, undone = known["combination"] == c, programs.choices_of(env, inverse(c))
        row = {"done": env.describe(c)} | {name: float(each["read"][:, here].mean()) for name, each in plays.items()}
        row["inverse"] = float(known["inverse"][here].mean())
        yield row | {"undone": float((plays[market]["choices"][:, here] == undone).all(-1).mean())}


def bid_rows(env: MentalRotation, known: Arrays, played: Arrays) -> Iterator[dict[str, Any]]:
    """Mean bids at every auction of the exact inverse, over the examples whose choices followed it so far.

    Args:
        env: the environment.
        known: of `bounds`.
        played: of `play`, with bids.

    Yields:
        ``what was done``; the number of the ``auction``; the primitive that is ``right``; and a mean bid for each
        primitive, by its name.
    """
    for c in env.combinations:
        here, path = known["combination"] == c, programs.choices_of(env, inverse(c))
        for t, bids in enumerate(programs.bids_along(played["choices"][:, here], played["bids"][:, here], path)):
            row = {"what was done": env.describe(c), "auction": t + 1, "right": env.names[path[t]]}
            yield row | {name: float(bid) for name, bid in zip(env.names, bids, strict=True)}


def _needed(known: Arrays) -> np.ndarray:
    """The number of functions that each example needs: i [N]."""
    return np.array([needed(c) for c in known["combination"]])

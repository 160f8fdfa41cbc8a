"""Programs over `environments.Functions`, for many examples: those that agents compose, and all that exist."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmarket.environments.functions import STOP, Composition, Functions, compose, search
from jaxmarket.society import MarketPolicy
from jaxmarket.switches import whole_program
from jaxmarket.training.monolith import ChoicePolicy
from jaxmarket.types import Array, PyTree

__all__ = ["Bounds", "bids_along", "bounds", "choices_of", "compose_all", "search_all"]


@functools.partial(whole_program, static_argnums=0, static_argnames="keep")
def compose_all(
    env: Functions, policy: MarketPolicy | ChoicePolicy, examples: PyTree, *, keep: bool = False
) -> tuple[Composition, Any]:
    """The programs that a policy composes for every example, as `compose`, and all bids.

    Args:
        env: the functions; static.
        policy: a trained policy; bids are those of its market.
        examples: leaves [N, ...], as in the dataset of the environment.
        keep: whether to return the intermediate values.

    Returns:
        The programs, leaves [N, ...], without observations; and the bids of each primitive before each choice, f [N,
        steps, P], or None if the policy is not that of a market.
    """

    def compose_and_bid(example: PyTree) -> tuple[Composition, Any]:
        made = compose(env, policy, example)
        bids = None
        if isinstance(policy, MarketPolicy):
            society = policy.society
            bids = jax.vmap(lambda obs: society.bids(policy.params, None, society.env.encode(obs)))(made.obs)
            bids = bids.reshape(env.steps, society.primitives, society.clones).max(-1)
        return made.replace(obs=None, values=made.values if keep else None), bids

    return jax.lax.map(compose_and_bid, examples, batch_size=256)


@functools.partial(whole_program, static_argnums=(0, 2))
def search_all(env: Functions, examples: PyTree, depth: int) -> dict[tuple[int, ...], Array]:
    """The reward of every program of at most ``depth`` functions for every example, f [N] by program, as `search`.

    Args:
        env: the functions; static.
        examples: leaves [N, ...], as in the dataset of the environment.
        depth: the largest number of functions.
    """
    return jax.lax.map(lambda example: search(env, example, depth), examples, batch_size=64)


class Bounds(NamedTuple):
    """What programs reach on N examples without learning."""

    program: tuple[int, ...]  # the program with the highest mean reward on the training examples
    fixed: np.ndarray  # f [N], its rewards
    oracle: np.ndarray  # f [N], rewards of the best program for each example
    rewards: dict[tuple[int, ...], np.ndarray]  # f [N] by program, also of those too short to end an episode


def bounds(env: Functions, training: PyTree, examples: PyTree, depth: int | None = None) -> Bounds:
    """The rewards of the best fixed program, and of an oracle that knows the best program for each example.

    Programs have at most ``depth`` functions; in an environment without `STOP` exactly ``steps``, because an episode
    does not end before. Rewards are without the price of functions.

    Args:
        env: the functions.
        training: examples for the choice of the fixed program, leaves [M, ...].
        examples: those to measure, leaves [N, ...].
        depth: the largest number of functions; by default that of the environment, ``steps``.
    """
    depth = env.steps if depth is None else depth
    trained, rewards = (
        {
            program: np.asarray(paid, np.float64)
            for program, paid in jax.device_get(search_all(env, some, depth)).items()
        }
        for some in (training, examples)
    )
    complete = [program for program in rewards if env.stop or len(program) == env.steps]
    best = max(complete, key=lambda program: trained[program].mean())
    return Bounds(best, rewards[best], np.max([rewards[program] for program in complete], 0), rewards)


def choices_of(env: Functions, program: Sequence[int]) -> np.ndarray:
    """The choices that compose a program, as in `Composition`: i [steps], with `STOP` if it is shorter, then -1.

    Raises:
        ValueError: the environment cannot compose it.
    """
    missing = env.steps - len(program)
    if missing < 0 or (missing and STOP not in env.names):
        count = f"at most {env.steps}" if STOP in env.names else str(env.steps)
        raise ValueError(f"program: expected {count} functions, got {len(program)}")
    end = [env.names.index(STOP), *[-1] * (missing - 1)] if missing else []
    return np.array([*program, *end], int)


def bids_along(choices: np.ndarray, bids: np.ndarray, path: np.ndarray) -> np.ndarray:
    """Mean bids before each choice of a program, over the examples whose choices were those of the program until then.

    Args:
        choices: i [..., steps], as in `Composition`.
        bids: f [..., steps, P], as `compose_all` returns them.
        path: i [steps], the choices of the program, as of `choices_of`.

    Returns:
        f [T, P], for T choices until the end of the program; NaN where no example had the choices before.
    """
    came = [(choices[..., :t] == path[:t]).all(-1) for t in range(int((path >= 0).sum()))]
    nowhere = np.full(bids.shape[-1], np.nan)
    return np.stack([bids[here][:, t].mean(0) if here.any() else nowhere for t, here in enumerate(came)])

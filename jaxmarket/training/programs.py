"""Programs over `environments.Functions`, for many examples: those that agents compose, and all that exist."""

import functools
from typing import Any

import jax

from jaxmarket.environments.functions import Composition, Functions, compose, search
from jaxmarket.society import MarketPolicy
from jaxmarket.training.monolith import ChoicePolicy
from jaxmarket.types import Array, PyTree

__all__ = ["compose_all", "search_all"]


@functools.partial(jax.jit, static_argnums=0, static_argnames="keep")
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


@functools.partial(jax.jit, static_argnums=(0, 2))
def search_all(env: Functions, examples: PyTree, depth: int) -> dict[tuple[int, ...], Array]:
    """The reward of every program of at most ``depth`` functions for every example, f [N] by program, as `search`.

    Args:
        env: the functions; static.
        examples: leaves [N, ...], as in the dataset of the environment.
        depth: the largest number of functions.
    """
    return jax.lax.map(lambda example: search(env, example, depth), examples, batch_size=64)

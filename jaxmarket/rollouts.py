"""Rollouts: the step scanned over time, and the shadow auctions at the cuts."""

import jax
import jax.numpy as jnp

from jaxmarket.society import Draws, Society, auction, draw, reset, step_with
from jaxmarket.types import Array, PyTree, Rules, State, Transition

__all__ = ["play", "rollout"]


def rollout(
    society: Society,
    key: Array,
    params: PyTree,
    state: State,
    env_params: PyTree,
    steps: int,
    rules: Rules | None = None,
    *,
    shadow: bool = True,
) -> tuple[State, Transition]:
    """Run one market instance for ``steps`` auctions; ``vmap`` for many.

    Where an episode is truncated, and at the last row unless the episode ended there, a shadow
    auction estimates what the state reached would have sold for. It is held like a real one (same
    bid distribution, same eligibility, a key of its own), and no money moves.

    Args:
        steps: T, static.
        shadow: whether to hold shadow auctions; without them ``Transition.shadow`` is 0.

    Returns:
        The state to go on from (the owner is carried across) and the rows [T].
    """
    rules = rules or Rules()
    key_steps, key_shadow = jax.random.split(key)

    def body(state: State, draws: Draws) -> tuple[State, Transition]:
        return step_with(society, draws, params, state, env_params, rules)

    state, trajectory = jax.lax.scan(body, state, draw(society, key_steps, (steps,)))
    if not shadow:
        return state, trajectory

    # Only cut rows need one. Where episodes are cut by a clock alone, T rows hold at most T // limit + 1
    # such cuts, and the end of the rollout: far fewer auctions than T.
    limit = society.env.longest_episode(env_params)
    most = steps if limit is None else min(steps, steps // limit + 2)
    last = jnp.arange(steps) == steps - 1
    cut = ~trajectory.terminated & (trajectory.truncated | last)
    (rows,) = jnp.nonzero(cut, size=most, fill_value=steps)

    def hold(draws: Draws, obs: Array, eligible: Array) -> Array:
        outcome = auction(society, draws, params, obs, eligible, rules)
        return jnp.where(outcome.winner >= 0, society.mechanism.resale(outcome), 0)

    estimates = jax.vmap(hold)(
        draw(society, key_shadow, (most,)), trajectory.next_obs[rows], trajectory.next_eligible[rows]
    )
    return state, trajectory.replace(shadow=trajectory.shadow.at[rows].set(estimates, mode="drop"))


def play(
    society: Society,
    key: Array,
    params: PyTree,
    env_params: PyTree,
    steps: int,
    rules: Rules | None = None,
    *,
    shadow: bool = True,
) -> Transition:
    """`rollout` of a market opened for it: the rows [T] of its first ``steps`` auctions."""
    key_reset, key_roll = jax.random.split(key)
    state, _ = reset(society, key_reset, env_params, rules)
    return rollout(society, key_roll, params, state, env_params, steps, rules, shadow=shadow)[1]

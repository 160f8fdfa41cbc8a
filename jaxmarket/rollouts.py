"""Rollouts: the step scanned over time, and the shadow auctions at the cuts."""

import jax
import jax.numpy as jnp

from jaxmarket.society import Draws, Society, auction, draw, reset, step_with
from jaxmarket.switches import standard_promotion
from jaxmarket.types import Array, PyTree, Rules, State, Transition
from jaxmarket.validation import whole

__all__ = ["cut_rows", "play", "rollout"]


@standard_promotion
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
    rules, steps = rules or Rules(), whole("steps", steps)
    key_steps, key_shadow = jax.random.split(key)

    def opened(draws: Draws) -> State:
        return reset(society, draws.key("reset"), env_params, rules)[0]

    def body(state: State, ahead: tuple[Draws, State | None]) -> tuple[State, Transition]:
        draws, fresh = ahead
        fresh = opened(draws) if fresh is None else fresh
        return step_with(society, draws, params, state, fresh, env_params, rules)

    # Values that do not depend on the running state are computed for all steps at once: random numbers and, unless
    # they are large, the initial states of the episodes that begin where one ends.
    draws = draw(society, key_steps, (steps,))
    fresh = jax.vmap(opened)(draws) if society.env.opens_ahead(env_params, steps) else None
    state, trajectory = jax.lax.scan(body, state, (draws, fresh))
    if not shadow:
        return state, trajectory

    rows = cut_rows(trajectory.terminated, trajectory.truncated, society.env.longest_episode(env_params))

    def hold(_: None, cut: tuple[Draws, Array, Array]) -> tuple[None, Array]:
        draws, obs, eligible = cut
        outcome = auction(society, draws, params, obs, eligible, rules)
        return None, jnp.where(outcome.winner >= 0, society.mechanism.payout(outcome), 0)

    # One after the other, like the steps: vmap's further axis would not vectorise on a CPU.
    cuts = (draw(society, key_shadow, rows.shape), trajectory.next_obs[rows], trajectory.next_eligible[rows])
    _, estimates = jax.lax.scan(hold, None, cuts)
    return state, trajectory.replace(shadow=trajectory.shadow.at[rows].set(estimates, mode="drop"))


def cut_rows(terminated: Array, truncated: Array, limit: int | None) -> Array:
    """Rows after which something goes on unseen: truncated ones, and the last unless it ended an episode.

    Where episodes are cut by a clock alone, T rows hold at most T // limit + 1 such cuts and the end of the
    rollout: far fewer than T.

    Args:
        terminated, truncated: bool [T].
        limit: steps after which an episode is cut, if that is known and nothing else cuts one.

    Returns:
        i32 [K]: row numbers, T where there are fewer than K.
    """
    steps = terminated.shape[0]
    cut = ~terminated & (truncated | (jnp.arange(steps) == steps - 1))
    return _first(cut, steps if limit is None else min(steps, steps // limit + 2)).astype(jnp.int32)


def _first(mask: Array, count: int) -> Array:
    """The first ``count`` set positions of a mask [T], T where there are no more: i32 [count].

    One pass for each, which beats `jnp.nonzero` while they are few.
    """
    positions = jnp.arange(mask.shape[0])

    def following(last: Array, _: None) -> tuple[Array, Array]:
        position = jnp.min(jnp.where(mask & (positions > last), positions, mask.shape[0]))
        return position, position

    if count == mask.shape[0]:
        return jnp.nonzero(mask, size=count, fill_value=count)[0]
    return jax.lax.scan(following, jnp.full((), -1, positions.dtype), None, length=count)[1]


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

"""Rollouts: the step scanned over time, and the bootstrap auctions where it is cut; and rollouts without a market.

`rollout_policy` runs one environment with any policy. The monolithic baseline is trained on it, and benchmarks compare
the step of a market with it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Float, Int, Int32

from jaxmarket.environments.adapter import Adapter, Step, longer
from jaxmarket.society import Draws, Society, auction, draw, reset, step_with
from jaxmarket.switches import standard_promotion
from jaxmarket.types import Array, PyTree, Rules, State, Transition, real, tree_select
from jaxmarket.validation import check_int

__all__ = [
    "EnvCarry",
    "EnvTransition",
    "advance",
    "cut_rows",
    "fresh_rollout",
    "persistent",
    "rollout",
    "rollout_policy",
    "start",
]


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
    bootstrap: bool = True,
) -> tuple[State, Transition]:
    """Run one market instance for ``steps`` auctions; ``vmap`` for many.

    Where an episode is truncated, and at the last row unless the episode ended there, a bootstrap auction estimates
    the payout for the state reached. It is like a real auction (same bid distribution, same eligibility, its own
    key), but no money moves.

    Args:
        society: the static description.
        key: a typed PRNG key, consumed.
        params: bid-network parameters, leaves [M, ...].
        state: the market instance.
        env_params: the environment's parameters.
        steps: T, static.
        rules: as in `step`; none by default.
        bootstrap: whether to hold bootstrap auctions; without them ``Transition.bootstrap_value`` is 0.

    Returns:
        The next state (its owner is carried over) and the rows [T].
    """
    rules, steps = rules or Rules(), check_int("steps", steps)
    key_steps, key_bootstrap = jax.random.split(key)

    def new_episode(draws: Draws) -> State:
        return reset(society, draws.key("reset"), env_params, rules)[0]

    def one_step(state: State, xs: tuple[Draws, State | None]) -> tuple[State, Transition]:
        draws, fresh = xs
        fresh = new_episode(draws) if fresh is None else fresh
        return step_with(society, draws, params, state, fresh, env_params, rules)

    # Values that do not depend on the running state are computed for all steps at once: random numbers and, unless
    # they are large, the initial states of the episodes that begin where one ends.
    if rules.persistence is None:
        draws = draw(society, key_steps, (steps,))
    else:
        key_steps, key_runs = jax.random.split(key_steps)
        draws = draw(society, key_steps, (steps,))
        explore, action = persistent((draws.explore, draws.action), key_runs, rules.persistence)
        draws = draws.replace(explore=explore, action=action)
    fresh = jax.vmap(new_episode)(draws) if society.env.opens_ahead(env_params, steps) else None
    state, trajectory = jax.lax.scan(one_step, state, (draws, fresh))
    if not bootstrap:
        return state, trajectory

    rows = cut_rows(trajectory.terminated, trajectory.truncated, society.env.longest_episode(env_params))

    def bootstrap_auction(_: None, cut: tuple[Draws, Array, Array]) -> tuple[None, Array]:
        draws, obs, eligible = cut
        outcome = auction(society, draws, params, obs, eligible, rules)
        return None, jnp.where(outcome.winner >= 0, society.mechanism.payout(outcome), 0)

    # Scanned like the steps: one more vmapped axis would not vectorise on a CPU.
    cuts = (draw(society, key_bootstrap, rows.shape), trajectory.next_obs[rows], trajectory.next_eligible[rows])
    _, estimates = jax.lax.scan(bootstrap_auction, None, cuts)
    return state, trajectory.replace(bootstrap_value=trajectory.bootstrap_value.at[rows].set(estimates, mode="drop"))


def persistent(draws: PyTree, key: Array, persistence: Array | float) -> PyTree:
    """Draws that may be those of the previous step, so that exploration goes on for several steps.

    Independent random actions cancel out and hardly ever reach a state many steps away (Dabney et al. 2021). Every
    single step has the distribution of ``draws``. Draws are repeated in half of all rollouts, chosen at random, because
    some tasks need long runs of one action and others frequent changes.

    Args:
        draws: independent over steps, leaves [T, ...]; all are repeated at the same steps.
        key: a typed PRNG key, consumed.
        persistence: probability of a repetition, in [0, 1].
    """
    first = jax.tree.leaves(draws)[0]
    key_rollout, key_repeat = jax.random.split(key)
    steps = jnp.arange(first.shape[0])
    repeat = jax.random.uniform(key_repeat, steps.shape, first.dtype) < persistence
    repeat &= jax.random.bernoulli(key_rollout)
    last = jax.lax.cummax(jnp.where(repeat, 0, steps))
    return jax.tree.map(lambda x: x[last], draws)


def cut_rows(terminated: Bool[Array, " T"], truncated: Bool[Array, " T"], limit: int | None) -> Int32[Array, " K"]:
    """Rows after which an episode is cut off: truncated ones, and the last one unless it ended an episode.

    Where a time limit is all that cuts episodes, T rows contain at most T // limit + 1 such cuts and the end of the
    rollout: far fewer than T.

    Args:
        terminated, truncated: flags of each row.
        limit: environment steps after which an episode is truncated, if that is known and nothing else truncates one.

    Returns:
        Row numbers, filled up with T.
    """
    steps = terminated.shape[0]
    cut = ~terminated & (truncated | (jnp.arange(steps) == steps - 1))
    return _first(cut, steps if limit is None else min(steps, steps // limit + 2)).astype(jnp.int32)


def _first(mask: Bool[Array, " T"], count: int) -> Int[Array, " K"]:
    """The first ``count`` set positions of a mask [T], filled up with T.

    One pass for each position, which is faster than `jnp.nonzero` while they are few.
    """
    positions = jnp.arange(mask.shape[0])

    def following(last: Array, _: None) -> tuple[Array, Array]:
        position = jnp.min(jnp.where(mask & (positions > last), positions, mask.shape[0]))
        return position, position

    if count == mask.shape[0]:
        return jnp.nonzero(mask, size=count, fill_value=count)[0]
    return jax.lax.scan(following, jnp.full((), -1, positions.dtype), None, length=count)[1]


def fresh_rollout(
    society: Society,
    key: Array,
    params: PyTree,
    env_params: PyTree,
    steps: int,
    rules: Rules | None = None,
    *,
    bootstrap: bool = True,
) -> Transition:
    """`rollout` from a reset: the rows [T] of the first ``steps`` auctions of a new market instance."""
    key_reset, key_roll = jax.random.split(key)
    state, _ = reset(society, key_reset, env_params, rules)
    return rollout(society, key_roll, params, state, env_params, steps, rules, bootstrap=bootstrap)[1]


class EnvCarry(struct.PyTreeNode):
    """One running environment without a market."""

    env_state: PyTree
    obs: Float[Array, "..."]  # encoded
    episode_return: Float[Array, ""]  # undiscounted reward of the running episode
    episode_length: Int32[Array, ""]  # environment steps of the running episode


class EnvTransition(struct.PyTreeNode):
    """What happened, one row a step."""

    obs: Float[Array, "..."]
    choice: PyTree  # what decided the action
    reward: Float[Array, ""]
    duration: Float[Array, ""]  # environment steps taken
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    next_obs: Float[Array, "..."]  # before any reset
    episode_return: Float[Array, ""]  # of the episode so far, this row included
    episode_length: Int32[Array, ""]

    @property
    def done(self) -> Array:
        """Whether the episode ended with this row: bool []."""
        return self.terminated | self.truncated


def start(env: Adapter, key: Array, env_params: PyTree) -> EnvCarry:
    """A first state."""
    obs, env_state = env.reset(key, env_params)
    return EnvCarry(
        env_state=env_state, obs=obs, episode_return=jnp.zeros((), real()), episode_length=jnp.zeros((), jnp.int32)
    )


def rollout_policy(
    env: Adapter,
    act: Callable[[PyTree, Array], tuple[Array, PyTree]],
    key: Array,
    running: EnvCarry,
    env_params: PyTree,
    draws: PyTree,
    steps: int | None = None,
) -> tuple[EnvCarry, EnvTransition]:
    """Run one environment, reset where an episode ends; ``vmap`` for many.

    Args:
        env: the environment.
        act: ``(draws of the step, obs) -> (action, choice)``; the choice is kept in the rows.
        key: of the environment's own randomness.
        running: where to begin.
        env_params: the environment's parameters.
        draws: randomness of ``act``, leaves [T, ...].
        steps: T; only needed if ``draws`` has no leaves.
    """
    if steps is None:
        steps = int(jax.tree.leaves(draws)[0].shape[0])
    implementation = jax.random.key_impl(key)
    # Words of keys, as in `society.Draws`.
    env_words, reset_words = (jax.random.key_data(jax.random.split(k, steps)) for k in jax.random.split(key))

    def typed(words: Array) -> Array:
        return jax.random.wrap_key_data(words, impl=implementation)

    def opened(words: Array) -> EnvCarry:
        return start(env, typed(words), env_params)

    # As in `rollout`.
    ahead = env.opens_ahead(env_params, steps)

    def body(running: EnvCarry, now: tuple[PyTree, Array, Array | EnvCarry]) -> tuple[EnvCarry, EnvTransition]:
        draws, words, fresh = now
        if not isinstance(fresh, EnvCarry):
            fresh = opened(fresh)
        action, choice = act(draws, running.obs)
        after = env.step(typed(words), running.env_state, action, env_params)
        return advance(running, choice, after, fresh)

    return jax.lax.scan(body, running, (draws, env_words, jax.vmap(opened)(reset_words) if ahead else reset_words))


def advance(running: EnvCarry, choice: PyTree, after: Step, fresh: EnvCarry) -> tuple[EnvCarry, EnvTransition]:
    """The environment after a step, in the next episode if one has ended, and the row of the step."""
    row = EnvTransition(
        obs=running.obs,
        choice=choice,
        reward=after.reward,
        duration=after.duration,
        terminated=after.terminated,
        truncated=after.truncated,
        next_obs=after.obs,
        episode_return=running.episode_return + after.undiscounted,
        episode_length=longer(running.episode_length, after.duration),
    )
    onward = EnvCarry(
        env_state=after.env_state, obs=after.obs, episode_return=row.episode_return, episode_length=row.episode_length
    )
    return tree_select(row.done, fresh, onward), row

"""Evaluation: new episodes without learning and exploration."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Float, Int32

from jaxmarket.environments.adapter import Adapter
from jaxmarket.keys import key_for
from jaxmarket.rollouts import EnvCarry, EnvTransition, advance, fresh_rollout, start
from jaxmarket.society import Society, reset, step
from jaxmarket.switches import standard_promotion
from jaxmarket.types import Array, PyTree, Rules, Transition

__all__ = [
    "Episodes",
    "action_rates",
    "bids_by_state",
    "evaluate",
    "first_episodes",
    "play_episodes",
    "step_durations",
    "trace_episode",
]

_MOST_STEPS = 100_000


class Episodes(struct.PyTreeNode):
    """New episodes, one per parallel instance."""

    returns: Float[Array, " episodes"]  # undiscounted
    lengths: Int32[Array, " episodes"]  # environment steps
    finished: Bool[Array, " episodes"]  # False where the evaluation reached its step limit first
    terminated: Bool[Array, " episodes"]  # whether it terminated rather than was truncated


@standard_promotion
def evaluate(
    society: Society,
    params: PyTree,
    key: Array,
    env_params: PyTree,
    episodes: int = 128,
    max_steps: int = _MOST_STEPS,
    rules: Rules | None = None,
) -> Episodes:
    """Run ``episodes`` new episodes in parallel and return their results.

    Bids are sampled; pass ``dataclasses.replace(society, greedy=True)`` for greedy bids, or ``Rules(greedy=…)`` for one
    program that serves both. By default there is no exploration, and all bidders are active.

    Args:
        society: the static description.
        params: bid-network parameters, leaves [M, ...].
        key: a typed PRNG key.
        env_params: the environment's parameters.
        episodes: number of episodes, static.
        max_steps: auctions after which the remaining episodes count as unfinished.
        rules: traced rules; none by default.
    """
    return first_episodes(
        lambda key: reset(society, key, env_params, rules)[0],
        lambda key, state: step(society, key, params, state, env_params, rules),
        key,
        episodes,
        max_steps,
    )


def first_episodes(
    reset: Callable[[Array], Any],
    step: Callable[[Array, Any], tuple[Any, Any]],
    key: Array,
    episodes: int,
    max_steps: int = _MOST_STEPS,
) -> Episodes:
    """The first episode of each of ``episodes`` parallel instances, until all have ended.

    Args:
        reset: ``key -> state``, with ``episode_return`` and ``episode_length``.
        step: ``(key, state) -> (state, row)``; the row has these fields, and ``done`` and ``terminated``.
        key: a typed PRNG key.
        episodes: number of episodes.
        max_steps: steps after which the remaining episodes count as unfinished.
    """
    key_reset, key_steps = jax.random.split(key_for(key, "episodes"))
    states = jax.vmap(reset)(jax.random.split(key_reset, episodes))
    none = jnp.zeros(episodes, bool)
    empty = Episodes(returns=states.episode_return, lengths=states.episode_length, finished=none, terminated=none)

    def unfinished(carry: tuple) -> Array:
        _, result, t = carry
        return ~result.finished.all() & (t < max_steps)

    def body(carry: tuple) -> tuple:
        states, result, t = carry
        keys = jax.random.split(jax.random.fold_in(key_steps, t), episodes)
        states, row = jax.vmap(step)(keys, states)
        running = ~result.finished
        result = Episodes(
            returns=jnp.where(running, row.episode_return, result.returns),
            lengths=jnp.where(running, row.episode_length, result.lengths),
            finished=result.finished | row.done,
            terminated=jnp.where(running, row.terminated, result.terminated),
        )
        return states, result, t + 1

    _, result, _ = jax.lax.while_loop(unfinished, body, (states, empty, jnp.zeros((), jnp.int32)))
    return result


def play_episodes(
    env: Adapter,
    act: Callable[[Array, EnvCarry], Array],
    key: Array,
    env_params: PyTree,
    episodes: int,
    max_steps: int = _MOST_STEPS,
) -> Episodes:
    """New episodes without a market, as `evaluate` plays them with a society.

    Args:
        env: the environment.
        act: ``(key, running) -> action``.
        key: a typed PRNG key.
        env_params: the environment's parameters.
        episodes: number of episodes, static.
        max_steps: steps after which the remaining episodes count as unfinished.
    """

    def step(key: Array, running: EnvCarry) -> tuple[EnvCarry, EnvTransition]:
        key_act, key_env, key_reset = jax.random.split(key, 3)
        after = env.step(key_env, running.env_state, act(key_act, running), env_params)
        return advance(running, (), after, start(env, key_reset, env_params))

    return first_episodes(lambda key: start(env, key, env_params), step, key, episodes, max_steps)


@standard_promotion
def bids_by_state(society: Society, params: PyTree, states: int) -> Float[Array, "{states} M"]:
    """Mean (greedy) bid of every module in every one-hot state."""

    def mean_bids(obs: Array) -> Array:
        seen, axis = society.observed(obs)
        return jax.vmap(society.policy.apply, (0, axis))(params, seen).mean()

    return jax.vmap(mean_bids)(jnp.eye(states))


@standard_promotion
def action_rates(
    policy: Callable[[PyTree, Array], Array], obs: PyTree, key: Array, actions: int, draws: int = 256
) -> Float[Array, "S {actions}"]:
    """How often a policy that samples takes each action.

    Args:
        policy: ``(obs, key) -> action``, such as of `jaxmarket.as_policy` with ``greedy=False``.
        obs: S observations, leaves [S, ...].
        key: a typed PRNG key.
        actions: number of actions, static.
        draws: number of actions to draw for each observation, static.
    """
    keys = jax.random.split(key, draws)
    drawn = jax.vmap(lambda key: jax.vmap(lambda each: policy(each, key))(obs))(keys)
    return jax.nn.one_hot(drawn, actions).mean(0)


@functools.partial(jax.jit, static_argnums=(0, 3))
@standard_promotion
def step_durations(society: Society, params: PyTree, keys: Array, steps: int) -> Float[Array, "{steps} B"]:
    """The environment steps of each auction of new market instances, such as of `environments.Options`.

    Args:
        society: in its environment with the default parameters.
        params: of S seeds, leaves [S, ...].
        keys: typed PRNG keys [S, instances].
        steps: number of auctions.

    Returns:
        Durations of the instances of all seeds, B = S · instances, as `environments.options.waste` takes them.
    """

    def durations(params: PyTree, key: Array) -> Array:
        return fresh_rollout(society, key, params, society.env.default_params, steps, bootstrap=False).duration

    found = jax.vmap(jax.vmap(durations, (None, 0)))(params, keys)  # [S, instances, steps]
    return found.transpose(2, 0, 1).reshape(steps, -1)


@standard_promotion
def trace_episode(society: Society, params: PyTree, key: Array, env_params: PyTree, max_steps: int = 200) -> Transition:
    """The rows of one new episode, at most ``max_steps``; not for use inside ``jit``."""
    rows = jax.jit(fresh_rollout, static_argnums=(0, 4))(society, key, params, env_params, max_steps)
    rows = jax.device_get(rows)  # NumPy compiles nothing for the slices
    length = int(rows.done.argmax()) + 1 if rows.done.any() else max_steps
    return jax.device_put(jax.tree.map(lambda x: x[:length], rows))

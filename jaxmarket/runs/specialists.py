"""Which part of an agent acts in which region of the state space: bidders of a society, experts, options."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int32

from jaxmarket.metrics import wins_by_region
from jaxmarket.rollouts import fresh_rollout, rollout_policy, start
from jaxmarket.switches import standard_promotion
from jaxmarket.training.experts import MixturePolicy, OptionPolicy
from jaxmarket.training.monolith import SingleAgent
from jaxmarket.training.society import SocietyPlayer
from jaxmarket.types import Array, PyTree

__all__ = ["acting_parts", "decisions"]


def acting_parts(
    player: SocietyPlayer | SingleAgent, params: PyTree, key: Array, steps: int
) -> tuple[Float[Array, "T F"], Int32[Array, " T"]]:
    """The observations of a new instance, and the part that acts on each.

    Parts are the primitives of a society, and the experts or options of `training.experts`. Of a mixture of experts it
    is a draw of its gate, because no expert acts alone.

    Args:
        player: a society or an agent made of experts.
        params: of one seed.
        key: a typed PRNG key.
        steps: T, static.
    """
    if isinstance(player, SocietyPlayer):
        society, env_params = player.society, player.env.default_params
        rows = fresh_rollout(society, key, params, env_params, steps, bootstrap=False)
        return rows.obs, jax.vmap(society.primitive_of)(rows.outcome.winner)
    env, policy = player.env, player.policy
    if not isinstance(policy, MixturePolicy):
        raise ValueError(f"player: a {type(policy).__name__} has no parts; give a society or an agent made of experts")

    def act(key: Array, obs: Array) -> tuple[Array, Array]:
        key_choice, key_part = jax.random.split(key)
        choice = player.choose(params, key_choice, obs)
        if isinstance(policy, OptionPolicy):
            return choice, choice // (env.num_actions // policy.experts)
        return choice, jax.random.categorical(key_part, jnp.log(policy.gates(params, obs))).astype(jnp.int32)

    key_start, key_steps, key_acts = jax.random.split(key, 3)
    running = start(env, key_start, env.default_params)
    _, rows = rollout_policy(env, act, key_steps, running, env.default_params, jax.random.split(key_acts, steps))
    return rows.obs, rows.choice


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
@standard_promotion
def decisions(
    player: Any,
    params: PyTree,
    keys: Array,
    region_of: Callable[[Array], Array],
    shape: tuple[int, int],
    steps: int,
) -> Float[Array, "seeds R P"]:
    """The decisions of every part in every region, over ``steps`` decisions of each of several instances.

    Args:
        player: as in `acting_parts`.
        params: leaves [seeds, ...].
        keys: typed PRNG keys [seeds, instances].
        region_of: observations [T, ...] -> regions i32 [T].
        shape: R and P.
        steps: T.
    """

    def of_seed(params: PyTree, keys: Array) -> Array:
        obs, part = jax.vmap(lambda key: acting_parts(player, params, key, steps))(keys)
        return wins_by_region(part, jax.vmap(region_of)(obs), *shape)

    return jax.vmap(of_seed)(params, keys)

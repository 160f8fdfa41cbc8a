"""Ways to choose the settings of training runs, for comparison with agents that learn to: on a `TrainingEnvironment`.

Settings are f [horizon, knobs], one row for each period; a fixed setting is the same row in all. All functions are
pure, and count the environment steps that they spend, those of evaluations included.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Float, Int

from jaxmarket.training.training_environment import TrainingEnvironment, TrainingRunState
from jaxmarket.types import Array, PyTree, real

__all__ = ["Runs", "Tuned", "best_of", "drive", "follow", "population_based", "random_settings"]


class Runs(struct.PyTreeNode):
    """Training runs of an environment, one for each key."""

    performance: Float[Array, "runs horizon"]  # after each period, in new episodes
    settings: Float[Array, "runs horizon knobs"]  # with which each period was trained
    actions: Int[Array, "runs horizon"]
    env_steps: Float[Array, " runs"]


class Tuned(struct.PyTreeNode):
    """What a method has chosen."""

    settings: Float[Array, "horizon knobs"]
    env_steps: Float[Array, ""]  # of all runs that it looked at


def _run(
    env: TrainingEnvironment, key: Array, choose: Callable[[Array, TrainingRunState], tuple[TrainingRunState, Array]]
) -> Runs:
    """One run; ``choose`` gives ``(state, action)`` for an observation and a state."""
    params = env.default_params
    key_reset, key_steps = jax.random.split(key)

    def period(carry: tuple[Array, TrainingRunState], key: Array) -> tuple[tuple[Array, TrainingRunState], Runs]:
        state, action = choose(*carry)
        obs, state, _, _, info = env.step_env(key, state, action, params)
        return (obs, state), Runs(
            performance=info["performance"], settings=env.values(state), actions=action, env_steps=state.env_steps
        )

    _, rows = jax.lax.scan(period, env.reset_env(key_reset, params), jax.random.split(key_steps, env.horizon))
    return rows.replace(env_steps=rows.env_steps[-1])


def drive(env: TrainingEnvironment, keys: Array, policy: Callable[[Array], Array]) -> Runs:
    """Runs in which a policy, ``obs -> action``, changes the settings.

    Args:
        env: the environment, without ``stop``.
        keys: typed PRNG keys [runs].
        policy: of the environment's observations f [F].
    """
    return jax.vmap(lambda key: _run(env, key, lambda obs, state: (state, policy(obs))))(keys)


def follow(env: TrainingEnvironment, keys: Array, settings: Float[Array, "runs horizon knobs"]) -> Runs:
    """Runs with given settings.

    Args:
        env: the environment.
        keys: typed PRNG keys [runs].
        settings: of each run.
    """

    def one(key: Array, settings: Array) -> Runs:
        def choose(obs: Array, state: TrainingRunState) -> tuple[TrainingRunState, Array]:
            del obs
            return env.with_values(state, settings[state.time]), jnp.zeros((), jnp.int32)

        return _run(env, key, choose)

    return jax.vmap(one)(keys, settings)


def best_of(
    env: TrainingEnvironment, key: Array, settings: Float[Array, "candidates horizon knobs"], runs: int
) -> Tuned:
    """The settings with the highest mean final performance.

    Args:
        env: the environment.
        key: a typed PRNG key, consumed.
        settings: the candidates: a grid, or draws of `random_settings`.
        runs: of each candidate.
    """
    candidates = len(settings)
    done = follow(env, jax.random.split(key, candidates * runs), jnp.repeat(settings, runs, axis=0))
    mean = done.performance[:, -1].reshape(candidates, runs).mean(1)
    return Tuned(settings=settings[jnp.argmax(mean)], env_steps=done.env_steps.sum())


def random_settings(env: TrainingEnvironment, key: Array, count: int) -> Float[Array, "candidates horizon knobs"]:
    """Fixed settings at random positions of every knob, with a uniform distribution."""
    positions = jax.random.uniform(key, (count, len(env.knobs)), real(), -1, 1)
    return jnp.repeat(env.values_at(positions)[:, None], env.horizon, axis=1)


def _moved(env: TrainingEnvironment, key: Array, values: Float[Array, "members knobs"], spread: float) -> Array:
    """Values after a move up or down by ``spread`` of the range of each knob."""
    up = jnp.where(jax.random.bernoulli(key, 0.5, values.shape), 2 * spread, -2 * spread)
    return env.values_at(jnp.clip(env.positions(values) + up, -1, 1))


def population_based(
    env: TrainingEnvironment, key: Array, size: int, generations: int, *, quantile: float = 0.25, spread: float = 0.15
) -> Tuned:
    """Population-based training (Jaderberg et al. 2017): the settings along the best member's line of descent.

    After each period the members in the lowest quantile continue from the state of a random member in the highest one,
    with its settings moved up or down.

    Args:
        env: the environment.
        key: a typed PRNG key, consumed.
        size: members of a population.
        generations: populations, one after the other; the best member of all counts.
        quantile: share of members that is replaced.
        spread: length of a move, as a share of a knob's range.
    """
    few, params = max(1, int(quantile * size)), env.default_params

    def period(carry: PyTree, key: Array) -> tuple[PyTree, None]:
        state, values, history = carry
        keys = jax.random.split(key, size + 2)
        state = jax.vmap(env.with_values)(state, values)
        _, state, *_ = jax.vmap(lambda k, s: env.step_env(k, s, jnp.zeros((), jnp.int32), params))(keys[2:], state)
        history = history.at[:, state.time[0] - 1].set(values)
        order = jnp.argsort(-state.performance)
        parents = order[jax.random.randint(keys[0], (few,), 0, few)]
        source = jnp.arange(size).at[order[-few:]].set(parents)
        replaced = source != jnp.arange(size)
        state, values, history = jax.tree.map(lambda leaf: leaf[source], (state, values, history))
        values = jnp.where(replaced[:, None], _moved(env, keys[1], values, spread), values)
        return (state, values, history), None

    def population(key: Array) -> tuple[Array, Array, Array]:
        key_values, key_reset, key_steps = jax.random.split(key, 3)
        values = random_settings(env, key_values, size)[:, 0]
        _, state = jax.vmap(env.reset_env, (0, None))(jax.random.split(key_reset, size), params)
        history = jnp.zeros((size, env.horizon, values.shape[1]), real())
        (state, _, history), _ = jax.lax.scan(
            period, (state, values, history), jax.random.split(key_steps, env.horizon)
        )
        best = jnp.argmax(state.performance)
        # All members have spent about the same number of steps; copies carry the count of their parents.
        return state.performance[best], history[best], state.env_steps.mean() * size

    performance, settings, env_steps = jax.lax.map(population, jax.random.split(key, generations))
    return Tuned(settings=settings[jnp.argmax(performance)], env_steps=env_steps.sum())

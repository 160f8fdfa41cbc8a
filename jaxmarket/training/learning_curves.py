"""Learning curves: training that is evaluated at given times, for many seeds and settings in one compiled program."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.learners import Hyperparameters
from jaxmarket.switches import whole_program
from jaxmarket.training import divergence
from jaxmarket.training.trainable import Trainable
from jaxmarket.types import Array

__all__ = ["evaluation_times", "learning_curves"]


def evaluation_times(chunks: int, count: int) -> np.ndarray:
    """Times of evaluation in whole chunks, geometrically spaced from the first to the last: i [P], increasing.

    Args:
        chunks: of the whole run.
        count: evaluations before rounding; P is less where some of them are equal.
    """
    return np.unique(np.round(np.geomspace(1, chunks, count)).astype(int))


def learning_curves(
    program: Trainable, times: Any, keys: Array, settings: Sequence[Hyperparameters]
) -> tuple[np.ndarray, Any]:
    """Train every seed with every setting, and play one greedy episode with frozen parameters at each time.

    Args:
        program: what is trained, in its environment with the default parameters.
        times: i [P], increasing numbers of `Trainable.chunk` calls.
        keys: [S], one for each seed.
        settings: H of them; what is traced, so that all share the compiled program.

    Returns:
        The return of each episode, f64 [H, S, P], NaN where a seed has diverged; and the final states, leaves
        [H, S, ...].
    """
    hyper = jax.tree.map(lambda *x: jnp.stack(x), *(each.as_arrays() for each in settings))
    returns, states = _trained(program, jnp.asarray(np.diff(times, prepend=0)), keys, hyper)
    return np.asarray(returns, np.float64), states


@functools.partial(whole_program, static_argnums=0)
def _trained(program: Trainable, chunks: Array, keys: Array, hyper: Hyperparameters) -> tuple[Array, Any]:
    player, env_params = program.player(greedy=True), program.env.default_params

    def chunk(state: Any, hyper: Hyperparameters) -> Any:
        return program.chunk(state, env_params, hyper)[0]

    def play(state: Any, key: Array) -> Array:
        returns = player.evaluate(state.learner.params, key, env_params, 1).returns[0]
        return divergence.valid(returns, state.learner.params)

    def train(key: Array, hyper: Hyperparameters) -> tuple[Array, Any]:
        key_init, key_play = jax.random.split(key)

        def evaluate(state: Any, ahead: tuple[Array, Array]) -> tuple[Any, Array]:
            count, words = ahead
            state = jax.lax.fori_loop(0, count, lambda _, state: chunk(state, hyper), state)
            return state, play(state, jax.random.wrap_key_data(words, impl=jax.random.key_impl(key)))

        words = jax.random.key_data(jax.random.split(key_play, chunks.shape[0]))
        state, returns = jax.lax.scan(evaluate, program.init(key_init, env_params, hyper), (chunks, words))
        return returns, state

    return jax.vmap(jax.vmap(train, (0, None)), (None, 0))(keys, hyper)

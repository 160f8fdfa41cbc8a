"""A whole training run of one seed as one pure function."""

import jax

from jaxmarket.learners import Hyperparameters
from jaxmarket.switches import entry_point
from jaxmarket.training.config import TrainConfig, check_config
from jaxmarket.types import Array, PyTree
from jaxmarket.validation import check_key, short_repr

__all__ = ["train"]


@entry_point
def train(
    config: TrainConfig, key: Array, hyper: Hyperparameters | None = None, env_params: PyTree = None
) -> tuple[PyTree, dict[str, Array]]:
    """The whole run of one seed as one pure function.

    ``jax.jit(train, static_argnums=0)`` it; ``jax.vmap(lambda key: train(config, key))(keys)`` runs many seeds. To
    sweep over a traced setting with one compilation, map over ``hyper``::

        hyper = config.settings.hyperparameters
        jax.vmap(lambda rate: train(config, key, hyper.replace(learning_rate=rate)))(rates)

    Metrics that need Q* take the configuration's discount. `jaxmarket.fit` calls the same chunks from Python.

    Args:
        config: the settings.
        key: a typed PRNG key.
        hyper: traced settings; those of ``config`` if None.
        env_params: the environment's parameters, traced, so that ``vmap`` can train on many at once; its defaults if
            None. Metrics that need exact values, which are those of the defaults, are omitted for other parameters.

    Returns:
        The final state, and metrics with one entry per chunk.

    Raises:
        ValueError: an argument has the wrong type, or ``hyper`` does not contain one number per setting.
    """
    key, settings = check_key("key", key), check_config(config).settings
    if hyper is not None and not isinstance(hyper, Hyperparameters):
        raise ValueError(
            f"hyper: expected Hyperparameters, got {short_repr(hyper)}; use "
            "config.settings.hyperparameters.replace(...)"
        )
    hyper = (settings.hyperparameters if hyper is None else hyper).as_arrays()
    oracle = settings.oracle if env_params is None else None
    env_params, trainable = settings.adapter.parameters(env_params), settings.trainable

    def body(state: PyTree, _: None) -> tuple[PyTree, dict[str, Array]]:
        return trainable.chunk(state, env_params, hyper, oracle)

    return jax.lax.scan(body, trainable.init(key, env_params, hyper), None, length=trainable.chunks)

"""What every learner shares: its world, its settings, and the walk over minibatches.

A learner is written for one module. It sees that module's observations, bids, prices and utilities and
nothing of anyone else's; the training loop maps it over modules.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxmarket.policies import BidPolicy
from jaxmarket.types import Array, PyTree

__all__ = [
    "Experience",
    "Hyperparameters",
    "Learner",
    "adam_step",
    "mean_where",
    "moments",
    "optimizer",
    "over_minibatches",
]

Carry = TypeVar("Carry")


class Experience(struct.PyTreeNode):
    """What one module lived through: N auctions of its R bidders."""

    obs: Array  # f [N, ...] the states that were for sale
    bid: Array  # f [N, R] own bids
    eligible: Array  # bool [N, R] whether the bid was admitted: nothing is to be learned from one that was not
    won: Array  # bool [N, R]
    price: Array  # f [N, R] paid; 0 for losers
    utility: Array  # f [N, R] earned; 0 for losers


class Hyperparameters(struct.PyTreeNode):
    """Traced settings: a sweep over them is one compilation and one ``vmap``.

    A setting that may be ``None`` is not part of the compiled program then.
    """

    discount: Array | float = 0.99  # γ
    updates: Array | float = 1  # of the whole run: what schedules over training are relative to
    trace_decay: Array | float | None = None  # λ of `settle`
    learning_rate: Array | float = 4e-5
    value_learning_rate: Array | float = 5e-3
    entropy: Array | float = 0.1
    clip: Array | float = 0.2
    exploration: Array | float | None = None  # at the start of training ...
    exploration_final: Array | float | None = None  # ... and from half of it on, linear between
    reserve: Array | float | None = None
    dropout: Array | float | None = None
    present: Array | None = None  # bool [A] bidders in the market, all by default


class Learner(Protocol):
    """A local update rule for one module."""

    @property
    def policy(self) -> BidPolicy:
        """The bidding policy that is trained."""
        ...

    def init(self, key: Array, obs: Array) -> Any:
        """State of the learner; its ``params`` are the policy's parameters."""
        ...

    def update(
        self, state: Any, experience: Experience, hyper: Hyperparameters, update: Array, progress: Array
    ) -> tuple[Any, dict[str, Array]]:
        """Learn from one rollout; ``update`` counts them (i32), ``progress`` is in [0, 1)."""
        ...


def optimizer(max_norm: float) -> optax.GradientTransformation:
    """Adam behind a clipped global norm; the learning rate is traced and applied by `adam_step`."""
    return optax.chain(optax.clip_by_global_norm(max_norm), optax.scale_by_adam(eps=1e-8, eps_root=1e-16))


def adam_step(
    transformation: optax.GradientTransformation,
    params: PyTree,
    opt_state: PyTree,
    gradient: PyTree,
    learning_rate: Array | float,
) -> tuple[PyTree, PyTree]:
    """One descent step: the new ``(params, opt_state)``."""
    updates, opt_state = transformation.update(gradient, opt_state, params)
    return jax.tree.map(lambda p, u: p - jnp.asarray(learning_rate, p.dtype) * u, params, updates), opt_state


def mean_where(values: Array, mask: Array) -> Array:
    """Mean of the values a mask selects, 0 if it selects none. f []."""
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(1, mask.sum())


def moments(values: Array, mask: Array) -> tuple[Array, Array]:
    """Mean and standard deviation (kept above 1e-8) of the values a mask selects from a whole batch."""
    mean = mean_where(values, mask)
    return mean, jnp.sqrt(mean_where((values - mean) ** 2, mask)) + 1e-8


def over_minibatches(
    step: Callable[[Carry, Any], tuple[Carry, Array]], carry: Carry, batch: PyTree, size: int, epochs: int
) -> tuple[Carry, Array]:
    """Fold ``step`` over consecutive minibatches of ``size`` rows, ``epochs`` times.

    Rows come time-major with the parallel instances interleaved, so consecutive slices already mix
    instances; shuffling would cost a third of a training step on a CPU and is left out.

    Returns:
        The carry and the mean of the steps' losses.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]
    cut = jax.tree.map(lambda x: x.reshape(rows // size, size, *x.shape[1:]), batch)

    def epoch(carry: Carry, _: None) -> tuple[Carry, Array]:
        return jax.lax.scan(step, carry, cut)

    if epochs == 1:
        carry, losses = epoch(carry, None)
    else:
        carry, losses = jax.lax.scan(epoch, carry, None, length=epochs)
    return carry, losses.mean()

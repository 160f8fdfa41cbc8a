"""What every learner shares: its world, its settings, and the walk over minibatches.

A learner is written for one module. It sees that module's observations, bids, prices and utilities and
nothing of anyone else's; the training loop maps it over modules.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Bool, Float

from jaxmarket.collectives import INSTANCES, psum
from jaxmarket.policies import BidPolicy
from jaxmarket.types import Array, PyTree

__all__ = [
    "Experience",
    "Hyperparameters",
    "Learner",
    "Optimizer",
    "adam",
    "clip",
    "descend",
    "mean_where",
    "moments",
    "over_minibatches",
    "shard",
]

Carry = TypeVar("Carry")


class Experience(struct.PyTreeNode):
    """The experience of one module: N auctions of its R bidders.

    The axis of auctions is the last one, so that arithmetic over them is contiguous in memory for any R.
    """

    obs: Float[Array, "N ..."]  # the states that were for sale
    bid: Float[Array, "R N"]  # own bids
    eligible: Bool[Array, "R N"]  # whether the bid was admitted: nothing is to be learned from one that was not
    won: Bool[Array, "R N"]
    price: Float[Array, "R N"]  # paid; 0 for losers
    utility: Float[Array, "R N"]  # earned; 0 for losers


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
    present: Bool[Array, " A"] | None = None  # bidders in the market, all by default


class Learner(Protocol):
    """A local update rule for one module.

    A frozen dataclass with a field ``axis``, None or the mesh axis over which a module's experience is spread. Where it
    is spread, a loss is this shard's part of the whole one, and gradients are added up (`jaxmarket.runs.devices`).
    """

    @property
    def policy(self) -> BidPolicy:
        """The bidding policy that is trained."""
        ...

    @property
    def axis(self) -> str | None:
        """The mesh axis over which experience is spread."""
        ...

    def init(self, key: Array, obs: Array) -> Any:
        """State of the learner; its ``params`` are the policy's parameters."""
        ...

    def update(
        self, state: Any, experience: Experience, hyper: Hyperparameters, update: Array, progress: Array
    ) -> tuple[Any, dict[str, Array]]:
        """Learn from one rollout; ``update`` counts them (i32), ``progress`` is in [0, 1)."""
        ...


_ADAM = optax.flatten(optax.scale_by_adam(eps=1e-8, eps_root=1e-16))


class Optimizer(struct.PyTreeNode):
    """State of the optimizer of one module."""

    adam: PyTree
    movable: PyTree | None = None  # bool, like the parameters or broadcast to them; everything moves if None


def adam(params: PyTree) -> Optimizer:
    """State of Adam for these parameters: its moments are two vectors, so a step is a few long operations."""
    return Optimizer(_ADAM.init(params))


def clip(gradient: PyTree, max_norm: float) -> PyTree:
    """The gradient, shrunk to that global norm where it is longer."""
    return optax.clip_by_global_norm(max_norm).update(gradient, optax.EmptyState())[0]


def descend(params: PyTree, opt: Optimizer, gradient: PyTree, learning_rate: PyTree) -> tuple[PyTree, Optimizer]:
    """One step of Adam down the gradient, of what may move: the new ``(params, opt)``.

    Args:
        params: of a network, or a tuple of several.
        opt: from `adam`.
        gradient: like ``params``.
        learning_rate: f [], or one per network.
    """
    updates, state = _ADAM.update(gradient, opt.adam, params)
    if opt.movable is not None:
        updates = jax.tree.map(lambda u, may: jnp.where(may, u, 0), updates, opt.movable)

    def move(rate: Array | float, params: PyTree, updates: PyTree) -> PyTree:
        return jax.tree.map(lambda p, u: p - jnp.asarray(rate, p.dtype) * u, params, updates)

    return jax.tree.map(move, learning_rate, params, updates), opt.replace(adam=state)


def shard(learner: Any, shards: int) -> Any:
    """The learner on one of ``shards`` devices: its part of every minibatch, and the axis of its collectives."""
    return dataclasses.replace(learner, minibatch=learner.minibatch // shards, axis=INSTANCES)


def mean_where(values: Float[Array, "*n"], mask: Bool[Array, "*n"], axis: str | None = None) -> Float[Array, ""]:
    """Mean of the values that a mask selects, 0 if it selects none; under an axis, this shard's part of it."""
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(1, psum(jnp.sum(mask, dtype=values.dtype), axis))


def moments(
    values: Float[Array, "*n"], mask: Bool[Array, "*n"], axis: str | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean and standard deviation (kept above 1e-8) of the values a mask selects from a whole batch."""
    mean = psum(mean_where(values, mask, axis), axis)
    return mean, jnp.sqrt(psum(mean_where((values - mean) ** 2, mask, axis), axis)) + 1e-8


def over_minibatches(
    step: Callable[[Carry, Array, Any], tuple[Carry, Array]],
    carry: Carry,
    obs: Array,
    batch: PyTree,
    size: int,
    epochs: int,
) -> tuple[Carry, Array]:
    """Fold ``step`` over consecutive minibatches of ``size`` auctions, ``epochs`` times.

    Auctions come time-major with the parallel instances interleaved, so consecutive slices already mix
    instances; shuffling would cost a third of a training step on a CPU and is left out.

    Args:
        step: ``(carry, obs, batch) -> (carry, loss)``.
        carry: what is learned.
        obs: f [N, ...].
        batch: whatever else ``step`` needs, leaves [..., N].
        size: auctions per minibatch; divides N.
        epochs: passes.

    Returns:
        The carry and the mean of the steps' losses.
    """
    count = obs.shape[0] // size
    cut = (
        obs.reshape(count, size, *obs.shape[1:]),
        jax.tree.map(lambda x: jnp.moveaxis(x.reshape(*x.shape[:-1], count, size), -2, 0), batch),
    )

    def epoch(carry: Carry, _: None) -> tuple[Carry, Array]:
        return jax.lax.scan(lambda carry, mini: step(carry, *mini), carry, cut)

    if epochs == 1:
        carry, losses = epoch(carry, None)
    else:
        carry, losses = jax.lax.scan(epoch, carry, None, length=epochs)
    return carry, losses.mean()

"""The learner protocol, its inputs, and what learners share: numeric settings, Adam, minibatches.

A learner is a local update rule, written for one module. It sees that module's observations, bids, prices and
utilities, and nothing of another module; training maps it over modules with `jax.vmap`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Bool, Float

from jaxmarket.collectives import INSTANCES, psum
from jaxmarket.policies import BidPolicy, ValueNetwork
from jaxmarket.types import Array, PyTree, Rules
from jaxmarket.validation import as_float_array

__all__ = [
    "EXPERIENCE_AXES",
    "UNBOUND",
    "Experience",
    "Hyperparameters",
    "Learner",
    "Optimizer",
    "adam",
    "clip",
    "descend",
    "mean_where",
    "moments",
    "numeric",
    "numeric_settings",
    "over_minibatches",
    "shard",
    "static_part",
]

Carry = TypeVar("Carry")


class Experience(struct.PyTreeNode):
    """The data of one module: N auctions of its R bidders.

    The axis of auctions comes last, so that arithmetic over it is contiguous in memory for every R.
    """

    obs: Float[Array, "N ..."]  # the states that were for sale
    bid: Float[Array, "R N"]  # own bids
    eligible: Bool[Array, "R N"]  # whether the bid was admitted; learners ignore the others
    won: Bool[Array, "R N"]
    price: Float[Array, "R N"]  # paid; 0 for losers
    utility: Float[Array, "R N"]  # earned; 0 for losers


EXPERIENCE_AXES = Experience(obs=None, bid=0, eligible=0, won=0, price=0, utility=0)  # type: ignore[arg-type]
"""Axes of modules in an `Experience` of several, for `jax.vmap`: all see the same observations."""


class Hyperparameters(struct.PyTreeNode):
    """Traced settings: a sweep over them is one compilation and one ``vmap``.

    A setting that is None is not part of the compiled program.
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
    own: dict[str, Array | float] = dataclasses.field(default_factory=dict)  # further numeric settings of the learner

    def as_arrays(self) -> "Hyperparameters":
        """Arrays of the working precision (masks stay masks), so that equal shapes give equal programs.

        Raises:
            ValueError: a setting is not one number, or a setting without an off state is None.
        """
        arrays: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if name == "own":
                arrays[name] = {key: as_float_array(f"hyper.own[{key!r}]", each, ()) for key, each in value.items()}
            elif value is not None:
                arrays[name] = jnp.asarray(value) if name == "present" else as_float_array(f"hyper.{name}", value, ())
            elif field.default is not None:
                raise ValueError(f"hyper.{name}: expected a number, got None; its default is {field.default}")
        return self.replace(**arrays)

    def with_learner(self, learner: "Learner") -> "Hyperparameters":
        """These settings with the numeric settings of a learner."""
        listed, found = {f.name for f in dataclasses.fields(self)}, numeric_settings(learner)
        own = {name: value for name, value in found.items() if name not in listed}
        return self.replace(**{name: value for name, value in found.items() if name in listed}, own=self.own | own)

    def rules(self, progress: Array) -> Rules:
        """The market's rules after a fraction of training: exploration falls linearly over the first half.

        Args:
            progress: f [], in [0, 1).
        """
        exploration = self.exploration
        if exploration is not None and self.exploration_final is not None:
            exploration = exploration + (self.exploration_final - exploration) * jnp.minimum(1, 2 * progress)
        return Rules(exploration=exploration, reserve=self.reserve, dropout=self.dropout, present=self.present)


UNBOUND: Any = None
"""In place of a network that a learner has not been given yet."""


class Learner(Protocol):
    """A local update rule for one module: a frozen dataclass, compared by value.

    What a user constructs is unbound: it has no networks yet. `jaxmarket.training.settings.Settings` gives it the
    policy and the value network with `bind`. Numeric settings are fields made with `numeric`; `update` finds their
    traced values in ``hyper``, those that `Hyperparameters` does not list in ``hyper.own``.

    A learner may have a class attribute ``defaults``: values for settings of `TrainConfig` that the user did not set;
    and ``estimates_values``: whether it trains a `ValueHead` (deterministic bids) and not a density over bids.

    Two fields serve runs on several devices: ``minibatch``, auctions per gradient step, and ``axis``, None or the mesh
    axis over which a module's experience is sharded. Where it is sharded, a loss is this shard's part of the whole
    one, and gradients are summed over the axis (`jaxmarket.runs.devices`).
    """

    @property
    def policy(self) -> BidPolicy:
        """The bidding policy that is trained."""
        ...

    @property
    def minibatch(self) -> int:
        """Auctions per gradient step."""
        ...

    @property
    def axis(self) -> str | None:
        """The mesh axis over which experience is sharded."""
        ...

    def bind(self, policy: BidPolicy, value: ValueNetwork) -> Self:
        """This learner with its networks."""
        ...

    def init(self, key: Array, obs: Array) -> Any:
        """State of the learner; its field ``params`` holds the policy's parameters."""
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
    """The learner on one of ``shards`` devices: its part of every minibatch, and the axis to sum over."""
    return dataclasses.replace(learner, minibatch=learner.minibatch // shards, axis=INSTANCES)


def numeric(default: float | None) -> Any:
    """A dataclass field for a numeric setting of a learner: traced by training, and not part of the learner's hash.

    A default of None is replaced in ``bind``.
    """
    return dataclasses.field(default=default, hash=False, metadata={_NUMERIC: True})


_NUMERIC = "jaxmarket.numeric"


def numeric_settings(learner: Any) -> dict[str, float]:
    """The numeric settings of a learner by name."""
    return {f.name: getattr(learner, f.name) for f in dataclasses.fields(learner) if _NUMERIC in f.metadata}


def static_part(learner: Any) -> Any:
    """The learner with the defaults of its numeric settings, so that learners that differ only in them are equal."""
    return dataclasses.replace(
        learner, **{f.name: f.default for f in dataclasses.fields(learner) if _NUMERIC in f.metadata}
    )


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

"""The learner protocol, its inputs, and functions for learners: numeric settings, Adam, minibatches.

A learner is a local update rule for one module. Its inputs are that module's observations, bids, prices and utilities,
and no data of other modules; training maps it over modules with `jax.vmap`.
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
    "in_blocks",
    "is_large",
    "mean_where",
    "modules_at_once",
    "numeric",
    "numeric_settings",
    "over_minibatches",
    "shard",
    "standardized",
    "static_part",
]

Carry = TypeVar("Carry")


class Experience(struct.PyTreeNode):
    """The data of one module: N auctions of its R bidders.

    The axis of auctions comes last, so that arithmetic over it is contiguous in memory for every R.
    """

    obs: Float[Array, "N ..."]  # the states that were for sale
    bid: Float[Array, "R N"]  # own bids
    eligible: Bool[Array, "R N"]  # learners ignore bids that were not eligible
    won: Bool[Array, "R N"]
    price: Float[Array, "R N"]  # price paid; 0 for losers
    utility: Float[Array, "R N"]  # 0 for losers
    choice: Float[Array, "N ..."] | None = None  # of the winners, if primitives learn; a module uses its purchases only
    legal: Bool[Array, "N P"] | None = None  # the actions that could be chosen, where some are illegal
    held: Bool[Array, " N"] | None = None  # rows without a sale, in which the owner kept the right to act

    def of_all(self) -> dict[str, Array | None]:
        """The fields that are the same for all modules, and have no axis of modules."""
        return {"obs": self.obs, "choice": self.choice, "legal": self.legal, "held": self.held}

    def sales(self) -> "Experience":
        """The data without the rows in which nothing was sold."""
        if self.held is None:
            return self
        return self.replace(won=self.won & ~self.held, eligible=self.eligible & ~self.held)


EXPERIENCE_AXES = Experience(obs=None, bid=0, eligible=0, won=0, price=0, utility=0)  # type: ignore[arg-type]
"""``in_axes`` of an `Experience` for `jax.vmap` over modules; observations and choices are the same for all modules."""


class Hyperparameters(struct.PyTreeNode):
    """Traced settings: a sweep over them needs one compilation, and can be a ``vmap``.

    A setting that is None is not part of the compiled program.
    """

    discount: Array | float = 0.99  # γ
    updates: Array | float = 1  # number of updates of the whole run, for schedules
    trace_decay: Array | float | None = None  # λ of `settle`
    learning_rate: Array | float = 4e-5  # of the bid network
    value_learning_rate: Array | float = 5e-3  # of the value network
    entropy: Array | float = 0.1  # weight of the entropy of bids in the loss
    clip: Array | float = 0.2  # largest distance of PPO's probability ratio from 1
    exploration: Array | float | None = None  # at the start of training
    exploration_final: Array | float | None = None  # in the second half of training; linear in between
    persistence: Array | float | None = None  # as in `Rules`
    reserve: Array | float | None = None  # as in `Rules`
    dropout: Array | float | None = None  # as in `Rules`
    present: Bool[Array, " A"] | None = None  # bidders in the market; all by default
    own: dict[str, Array | float] = dataclasses.field(default_factory=dict)  # other numeric settings of the learner

    def as_arrays(self) -> "Hyperparameters":
        """The settings as arrays in the working precision (masks as bool), so that all values share one program.

        Raises:
            ValueError: a setting is not a single number, or a required setting is None.
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
        return Rules(
            exploration=exploration,
            persistence=self.persistence,
            reserve=self.reserve,
            dropout=self.dropout,
            present=self.present,
        )


UNBOUND: Any = None
"""Placeholder for a network of a learner before `Learner.bind`."""


class Learner(Protocol):
    """A local update rule for one module: a frozen dataclass, compared by value.

    A learner that a user constructs has no networks; `jaxmarket.training.settings.Settings` sets the policy and the
    value network with `bind`. Numeric settings are fields made with `numeric`. `update` receives their traced values in
    ``hyper``, or in ``hyper.own`` if `Hyperparameters` has no field of that name.

    Two class attributes are optional: ``defaults``, values for settings of `TrainConfig` that the user did not set, and
    ``estimates_values``, whether the learner trains a `ValueHead` (deterministic bids) instead of a density over bids.

    Two fields serve runs on several devices: ``minibatch``, auctions per gradient step, and ``axis``, None or the mesh
    axis over which a module's experience is sharded. With an axis, a loss is the shard's part of the total loss, and
    gradients are summed over the axis (`jaxmarket.runs.devices`).
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
        """Return this learner with its networks."""
        ...

    def init(self, key: Array, obs: Array) -> Any:
        """Initial state of the learner; its field ``params`` contains the policy's parameters.

        Args:
            key: a typed PRNG key.
            obs: f [...], one encoded observation, for its shape.
        """
        ...

    def update(
        self, state: Any, experience: Experience, hyper: Hyperparameters, update: Array, progress: Array
    ) -> tuple[Any, dict[str, Array]]:
        """Update the state with the experience of one rollout.

        Args:
            state: from `init` or the previous update.
            experience: of this module.
            hyper: traced settings.
            update: i32 [], number of previous updates.
            progress: f [], fraction of training, in [0, 1); for schedules.

        Returns:
            The new state, and metrics by name, f [] each.
        """
        ...


# Numbers in the observations of a rollout above which networks are applied to one minibatch after the other.
_AT_ONCE = 1 << 18

# Parameters above which a network is large: a CPU trains one module after the other, Adam one array after the other.
_LARGE = 1 << 13

# Bids of a rollout above which a CPU trains modules in groups, and the bids of a group.
_MANY, _TOGETHER = 1 << 17, 1 << 15

_ADAM = optax.scale_by_adam(eps=1e-8, eps_root=1e-16)


class Optimizer(struct.PyTreeNode):
    """State of the optimizer of one module."""

    adam: PyTree
    movable: PyTree | None = None  # bool, broadcasts to the parameters: whether they are trained; None for all


def adam(params: PyTree) -> Optimizer:
    """State of Adam for these parameters."""
    return Optimizer(_adam_for(params).init(params))


def _adam_for(params: PyTree) -> optax.GradientTransformation:
    """Adam, with moments that are two flat vectors for a small network: one operation for all of its arrays.

    A large network's arrays take longer to concatenate than to update.
    """
    networks = len(params) if isinstance(params, tuple) else 1
    return _ADAM if _are_large(params, networks) else optax.flatten(_ADAM)


def _are_large(params: PyTree, networks: int) -> bool:
    """Whether networks have more than `_LARGE` parameters each, on average."""
    return sum(x.size for x in jax.tree.leaves(params)) > networks * _LARGE


def clip(gradient: PyTree, max_norm: float) -> PyTree:
    """The gradient, scaled so that its global norm is at most ``max_norm``."""
    return optax.clip_by_global_norm(max_norm).update(gradient, optax.EmptyState())[0]


def descend(params: PyTree, opt: Optimizer, gradient: PyTree, learning_rate: PyTree) -> tuple[PyTree, Optimizer]:
    """One step of Adam for the parameters that are trained: the new ``(params, opt)``.

    Args:
        params: parameters of a network, or a tuple of those of several.
        opt: from `adam`.
        gradient: like ``params``.
        learning_rate: f [], or a tuple with one per network.
    """
    updates, state = _adam_for(params).update(gradient, opt.adam, params)
    if opt.movable is not None:
        updates = jax.tree.map(lambda u, may: jnp.where(may, u, 0), updates, opt.movable)

    def move(rate: Array | float, params: PyTree, updates: PyTree) -> PyTree:
        return jax.tree.map(lambda p, u: p - jnp.asarray(rate, p.dtype) * u, params, updates)

    return jax.tree.map(move, learning_rate, params, updates), opt.replace(adam=state)


def shard(learner: Any, shards: int) -> Any:
    """The learner for one of ``shards`` devices, with its part of the minibatch and the axis to sum over."""
    return dataclasses.replace(learner, minibatch=learner.minibatch // shards, axis=INSTANCES)


def numeric(default: float | None) -> Any:
    """A dataclass field for a numeric setting of a learner, which training traces.

    Learners that differ only in such fields share compiled programs (`static_part`). A default of None is replaced in
    ``bind``.
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
    """Mean of the masked values, or 0 if the mask is empty; with ``axis``, this shard's part of the mean."""
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(1, psum(jnp.sum(mask, dtype=values.dtype), axis))


def standardized(values: Float[Array, "*n"], mask: Bool[Array, "*n"], axis: str | None = None) -> Float[Array, "*n"]:
    """The values, shifted and scaled so that the masked ones of all shards have mean 0 and standard deviation 1."""
    mean = psum(mean_where(values, mask, axis), axis)
    std = jnp.sqrt(psum(mean_where((values - mean) ** 2, mask, axis), axis)) + 1e-8
    return (values - mean) / std


def is_large(params: PyTree, modules: int = 1) -> bool:
    """Whether a CPU should train one module after the other: the parameters and moments of one stay in the cache.

    Small networks are trained faster by a `jax.vmap` over modules, whose operations are fewer and longer.

    Args:
        params: of the bid networks.
        modules: number of networks.
    """
    return jax.default_backend() == "cpu" and _are_large(params, modules)


def modules_at_once(modules: int, bids: int) -> int:
    """The number of modules that a CPU should train at once, a divisor of ``modules``.

    Learners compute several arrays of the size of their modules' bids, which stay in the cache for a group of modules.

    Args:
        modules: number of modules, M.
        bids: of one module in a rollout, R · N.
    """
    most = max(1, _TOGETHER // bids)
    if modules * bids <= _MANY:
        return modules
    return next((size for size in range(most, most // 4, -1) if modules % size == 0), modules)


def in_blocks(
    function: Callable[[Array, Any], PyTree], obs: Array, batch: PyTree, size: int, largest: int = _AT_ONCE
) -> PyTree:
    """``function(obs, batch)``, computed one minibatch after the other where observations are large.

    The activations of a convolutional network for a whole rollout take gigabytes.

    Args:
        function: ``(obs, batch) -> outputs``, leaves [..., n]; it treats every auction by itself.
        obs: f [N, ...].
        batch: leaves [..., N].
        size: auctions per block; divides N.
        largest: numbers in observations up to which all auctions are computed at once.
    """
    if obs.size <= largest:
        return function(obs, batch)
    blocks = jax.lax.map(lambda block: function(*block), _cut(obs, batch, size))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1), blocks)


def _cut(obs: Array, batch: PyTree, size: int) -> tuple[Array, PyTree]:
    """Consecutive slices of ``size`` auctions, along a new first axis."""
    count = obs.shape[0] // size
    return (
        obs.reshape(count, size, *obs.shape[1:]),
        jax.tree.map(lambda x: jnp.moveaxis(x.reshape(*x.shape[:-1], count, size), -2, 0), batch),
    )


def over_minibatches(
    step: Callable[[Carry, Array, Any], tuple[Carry, Array]],
    carry: Carry,
    obs: Array,
    batch: PyTree,
    size: int,
    epochs: int,
) -> tuple[Carry, Array]:
    """Fold ``step`` over consecutive minibatches of ``size`` auctions, ``epochs`` times.

    Auctions are ordered by time and then by instance, so consecutive slices contain all instances. They are not
    shuffled, because that would take a third of a training step on a CPU.

    Args:
        step: ``(carry, obs, batch) -> (carry, loss)``.
        carry: the state of the learner.
        obs: f [N, ...].
        batch: other inputs of ``step``, leaves [..., N].
        size: auctions per minibatch; divides N.
        epochs: number of passes.

    Returns:
        The final carry, and the mean loss over all steps.
    """

    def at(start: Array) -> tuple[Array, PyTree]:
        # Slices of the rollout and no copy with minibatches along the first axis, which takes a pass over memory.
        return (
            jax.lax.dynamic_slice_in_dim(obs, start, size),
            jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, -1), batch),
        )

    def epoch(carry: Carry, _: None) -> tuple[Carry, Array]:
        return jax.lax.scan(lambda carry, start: step(carry, *at(start)), carry, jnp.arange(0, obs.shape[0], size))

    if epochs == 1:
        carry, losses = epoch(carry, None)
    else:
        carry, losses = jax.lax.scan(epoch, carry, None, length=epochs)
    return carry, losses.mean()

"""Valuation: each bidder estimates the value of winning and bids the estimate."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Float

from jaxmarket.collectives import per_shard, pmax, psum
from jaxmarket.learners.protocol import (
    UNBOUND,
    Experience,
    Hyperparameters,
    Optimizer,
    adam,
    clip,
    descend,
    numeric,
    over_minibatches,
)
from jaxmarket.policies import BidPolicy, Torso, ValueNetwork
from jaxmarket.types import Array, PyTree, real

__all__ = ["Valuation", "ValuationState"]


class ValuationState(struct.PyTreeNode):
    """Parameters and optimizer state of one module."""

    params: PyTree
    opt: Optimizer
    scale: Float[Array, ""]  # largest absolute revenue in training


@dataclasses.dataclass(frozen=True)
class Valuation:
    """Each bidder regresses its bid on the revenue that it received when it won.

    Revenue is the bidder's utility + price. With Vickrey prices and two clones this is Q-learning, with first prices
    expected SARSA. The learning rate decreases to 0 over training as (1 - progress)².

    Attributes:
        policy: bidding policy with a value head; bound by training.
        minibatch: auctions per gradient step.
        epochs: passes over a rollout.
        max_norm: largest global norm of the gradient.
        relative: whether the learning rate is proportional to the largest absolute revenue once that exceeds 10. The
            size of Adam's steps does not depend on the error, so a table would otherwise need more steps for larger
            values. By default True for a policy without hidden layers.
        axis: the mesh axis over which experience is sharded, or None.
        learning_rate: initial learning rate; by default 3e-2 for tables over one-hot states, else 5e-3.
    """

    policy: BidPolicy = UNBOUND
    minibatch: int = 128
    epochs: int = 1
    max_norm: float = 10.0
    relative: bool | None = None
    axis: str | None = None
    learning_rate: float | None = numeric(None)

    estimates_values: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "steps": 2_048_000,
        "horizon": 32,
        "bids": "value",
        "trace_decay": 0.65,
        "exploration": 1.0,
        "exploration_final": 0.1,
    }

    def bind(self, policy: BidPolicy, value: ValueNetwork) -> Self:
        """Return this learner with its policy, and the defaults for that policy; it has no value network."""
        del value
        torso = policy.torso
        shallow = isinstance(torso, Torso) and not (torso.hidden or torso.convolutions)
        rate = 3e-2 if shallow and not torso.activation else 5e-3  # a table has no activation
        return dataclasses.replace(
            self,
            policy=policy,
            relative=shallow if self.relative is None else self.relative,
            learning_rate=rate if self.learning_rate is None else self.learning_rate,
        )

    def init(self, key: Array, obs: Array) -> ValuationState:
        """Initial network and optimizer state."""
        params = self.policy.init(key, obs)
        return ValuationState(params=params, opt=adam(params), scale=jnp.zeros((), real()))

    def update(
        self, state: ValuationState, experience: Experience, hyper: Hyperparameters, update: Array, progress: Array
    ) -> tuple[ValuationState, dict[str, Array]]:
        """``epochs`` passes of regression over a rollout."""
        del update
        revenue = experience.utility + experience.price
        seen = pmax(jnp.max(jnp.where(experience.won, jnp.abs(revenue), 0)), self.axis)
        scale = jnp.maximum(state.scale, seen)
        rate = hyper.learning_rate * (1 - progress) ** 2 * (jnp.maximum(1, scale / 10) if self.relative else 1)

        def loss(params: PyTree, obs: Array, batch: tuple[Array, Array]) -> Array:
            won, revenue = batch
            value = jax.vmap(self.policy.apply, (None, 0))(params, obs).mean()
            return per_shard(jnp.sum(jnp.where(won, (value - revenue) ** 2, 0)) / obs.shape[0], self.axis)

        def step(state: ValuationState, obs: Array, batch: tuple[Array, Array]) -> tuple[ValuationState, Array]:
            value, gradient = psum(jax.value_and_grad(loss)(state.params, obs, batch), self.axis)
            params, opt = descend(state.params, state.opt, clip(gradient, self.max_norm), rate)
            return ValuationState(params=params, opt=opt, scale=scale), value

        batch = (experience.won, revenue)
        state, value = over_minibatches(
            step, state.replace(scale=scale), experience.obs, batch, self.minibatch, self.epochs
        )
        return state, {"loss": value}

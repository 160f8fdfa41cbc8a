"""REINFORCE (Williams 1992) as a local learner."""

import dataclasses
from typing import ClassVar, Self

import jax
from flax import struct

from jaxmarket.collectives import per_shard, psum
from jaxmarket.learners.protocol import (
    UNBOUND,
    Experience,
    Hyperparameters,
    Optimizer,
    adam,
    clip,
    descend,
    mean_where,
    numeric,
    over_minibatches,
    standardized,
)
from jaxmarket.learners.ranges import adapted, in_units, without_range
from jaxmarket.policies import BidPolicy, ValueNetwork
from jaxmarket.types import Array, PyTree

__all__ = ["Reinforce", "ReinforceState"]


class ReinforceState(struct.PyTreeNode):
    """Parameters and optimizer state of one module."""

    params: PyTree
    opt: Optimizer


@dataclasses.dataclass(frozen=True)
class Reinforce:
    """The score-function gradient of the expected utility, standardised over the rollout, with an entropy bonus.

    Attributes:
        policy: bidding policy with a density; bound by training.
        minibatch: auctions per gradient step.
        max_norm: largest global norm of the gradient.
        axis: the mesh axis over which experience is sharded, or None.
        learning_rate: of the policy.
        entropy: weight of the entropy of bids.
    """

    policy: BidPolicy = UNBOUND
    minibatch: int = 128
    max_norm: float = 40.0
    axis: str | None = None
    learning_rate: float = numeric(1e-3)
    entropy: float = numeric(0.1)

    estimates_values: ClassVar[bool] = False

    def bind(self, policy: BidPolicy, value: ValueNetwork) -> Self:
        """Return this learner with its policy; it has no value network."""
        del value
        return dataclasses.replace(self, policy=policy)

    def init(self, key: Array, obs: Array) -> ReinforceState:
        """Initial network and optimizer state."""
        params = without_range(self.policy.init(key, obs))
        return ReinforceState(params=params, opt=adam(params))

    def update(
        self, state: ReinforceState, experience: Experience, hyper: Hyperparameters, update: Array, progress: Array
    ) -> tuple[ReinforceState, dict[str, Array]]:
        """One pass over a rollout."""
        del update, progress
        e = in_units(state.params, experience)

        def loss(params: PyTree, obs: Array, mini: tuple[Array, Array, Array]) -> Array:
            bid, eligible, advantage = mini
            distribution = jax.vmap(self.policy.unit_distribution, (None, 0))(params, obs)
            log_prob = jax.vmap(type(distribution).log_prob, (None, 0))(distribution, bid)
            gain = mean_where(log_prob * advantage, eligible, self.axis)
            return -gain - per_shard(hyper.entropy * distribution.entropy().mean(), self.axis)

        def step(state: ReinforceState, obs: Array, mini: tuple[Array, Array, Array]) -> tuple[ReinforceState, Array]:
            value, gradient = psum(jax.value_and_grad(loss)(state.params, obs, mini), self.axis)
            params, opt = descend(state.params, state.opt, clip(gradient, self.max_norm), hyper.learning_rate)
            return ReinforceState(params=params, opt=opt), value

        batch = (e.bid, e.eligible, standardized(e.utility, e.eligible, self.axis))
        after, value = over_minibatches(step, state, e.obs, batch, self.minibatch, epochs=1)
        return adapted(state, after, experience, self.axis), {"loss": value}

"""Valuation: each bidder estimates the value of winning and bids the estimate."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, cast

import jax
import jax.numpy as jnp
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
    is_large,
    numeric,
    over_minibatches,
)
from jaxmarket.learners.ranges import revenue_range, units_move, without_range
from jaxmarket.policies import UNITS, BidPolicy, Torso, ValueNetwork, divisor
from jaxmarket.switches import one_at_a_time
from jaxmarket.types import Array, PyTree, tree_select

__all__ = ["Valuation", "ValuationState"]

_Batch = tuple[Array, Array, Array]  # bid, won, target: [R, N] each


class ValuationState(struct.PyTreeNode):
    """Parameters and optimizer state of one module."""

    params: PyTree
    opt: Optimizer


@dataclasses.dataclass(frozen=True)
class Valuation:
    """Each bidder regresses its bid on the revenue that it received when it won.

    Revenue is the bidder's utility + price. With Vickrey prices and two clones this is Q-learning, with first prices
    expected SARSA. The learning rate decreases to 0 over training as (1 - progress)².

    Revenues are normalised: the network is trained in units of the middle and half the width of the range of recent
    revenues, which the module observes itself, and the output layer is rescaled when the units change, so that bids do
    not (`jaxmarket.policies.BidPolicy.rescaled`). Rewards that are twice as large, say, then give bids that are twice
    as large at every step of training.

    Attributes:
        policy: bidding policy with a value head; bound by training.
        minibatch: auctions per gradient step.
        epochs: passes over a rollout; by default 1 for tables over one-hot states, else 2.
        normalize: whether revenues are normalised.
        max_norm: largest global norm of the gradient; None for no limit. A limit that is often reached makes the
            estimates differ from the mean revenue.
        axis: the mesh axis over which experience is sharded, or None.
        learning_rate: initial learning rate; by default 3e-2 for tables over one-hot states, else 1e-3.
    """

    policy: BidPolicy = UNBOUND
    minibatch: int = 128
    epochs: int | None = None
    normalize: bool = True
    max_norm: float | None = None
    axis: str | None = None
    learning_rate: float | None = numeric(None)

    estimates_values: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "horizon": 32,
        "bids": "value",
        "trace_decay": 0.8,
        "exploration": 1.0,
        "exploration_final": 0.1,
        "persistence": 0.9,
    }

    def bind(self, policy: BidPolicy, value: ValueNetwork) -> Self:
        """Return this learner with its policy, and the defaults for that policy; it has no value network."""
        del value
        learner = dataclasses.replace(self, policy=policy)
        rate = 3e-2 if _is_table(policy) else 1e-3
        return dataclasses.replace(
            learner,
            epochs=learner.passes,
            learning_rate=rate if self.learning_rate is None else self.learning_rate,
        )

    @property
    def passes(self) -> int:
        """``epochs``, or their default for the policy."""
        if self.epochs is None:
            return 1 if _is_table(self.policy) else 2
        return self.epochs

    def init(self, key: Array, obs: Array) -> ValuationState:
        """Initial network and optimizer state."""
        params = self.policy.init(key, obs)
        if self.normalize:
            params = without_range(params)
        return ValuationState(params=params, opt=adam(params))

    def update(
        self, state: ValuationState, experience: Experience, hyper: Hyperparameters, update: Array, progress: Array
    ) -> tuple[ValuationState, dict[str, Array]]:
        """``epochs`` passes of regression over a rollout."""
        del update
        revenue = experience.utility + experience.price
        if self.normalize:
            state = self._normalized(state, experience.won, revenue)
        units, head = state.params[UNITS], cast(Any, self.policy.head)
        rate = hyper.learning_rate * (1 - progress) ** 2

        def loss(params: PyTree, obs: Array, batch: _Batch) -> Array:
            bid, won, target = batch
            output = jax.vmap(self.policy.output, (None, 0))(params, obs)
            estimate = jax.vmap(head.estimate, (0, -1), -1)(output, bid)
            return per_shard(jnp.sum(jnp.where(won, (estimate - target) ** 2, 0)) / self.minibatch, self.axis)

        gradient_of = jax.value_and_grad(loss)
        if is_large(state.params):
            # Not where modules are trained at once: under `jax.vmap` a conditional computes all of its branches.
            gradient_of = one_at_a_time(functools.partial(_of_purchases, gradient_of))

        def step(state: ValuationState, obs: Array, batch: _Batch) -> tuple[ValuationState, Array]:
            value, gradient = psum(gradient_of(state.params, obs, batch), self.axis)
            if self.max_norm is not None:
                gradient = clip(gradient, self.max_norm)
            params, opt = descend(state.params, state.opt, gradient, rate)
            return state.replace(params=params, opt=opt), value

        batch = (experience.bid, experience.won, (revenue - units["location"]) / divisor(units["scale"]))
        state, value = over_minibatches(step, state, experience.obs, batch, self.minibatch, self.passes)
        return state, {"loss": value}

    def _normalized(self, state: ValuationState, won: Array, revenue: Array) -> ValuationState:
        """The state with units for the range of these revenues and earlier ones, and the same bids."""
        units = state.params[UNITS]
        low, high = units["location"] - units["scale"], units["location"] + units["scale"]
        params = self.policy.rescaled(state.params, *revenue_range(low, high, won, revenue, self.axis))
        return state.replace(params=tree_select(units_move(state.opt), params, state.params))


def _is_table(policy: BidPolicy) -> bool:
    """Whether the policy is a table over one-hot observations: one layer without activation."""
    torso = policy.torso
    return isinstance(torso, Torso) and not (torso.hidden or torso.convolutions or torso.activation)


# Numbers of rows for which there is a program that computes gradients, in eighths of a minibatch. Each takes a fifth of
# a second to compile. Three eighths serve three modules with a third of the purchases each.
_EIGHTHS = (2, 3, 4, 6, 8)


def _of_purchases(
    function: Callable[[PyTree, Array, _Batch], PyTree], params: PyTree, obs: Array, batch: _Batch
) -> PyTree:
    """``function(params, obs, batch)`` of the module's purchases and as few other auctions as `_EIGHTHS` allow.

    Args:
        function: a sum over auctions, to which those that the module did not win contribute 0.
        params: of the module.
        obs: f [n, ...].
        batch: leaves [R, n].
    """
    auctions, purchase = obs.shape[0], batch[1].any(0)
    sizes = [auctions * eighths // 8 for eighths in _EIGHTHS]
    purchases_first = jnp.argsort(~purchase, stable=True)

    def of_first(size: int) -> PyTree:
        rows = purchases_first[:size]
        return function(params, obs[rows], jax.tree.map(lambda x: x[..., rows], batch))

    # One program for each size: a loop over blocks would pass over the whole gradient once for each block.
    smallest = jnp.sum(purchase.sum() > jnp.asarray(sizes[:-1]))
    return jax.lax.switch(smallest, [functools.partial(of_first, size) for size in sizes])

"""PPO on the one-step decision problem of each auction (Chang et al. 2020)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Float

from jaxmarket.collectives import per_shard, psum
from jaxmarket.learners.protocol import (
    UNBOUND,
    Experience,
    Hyperparameters,
    Optimizer,
    adam,
    clip,
    descend,
    in_blocks,
    mean_where,
    numeric,
    over_minibatches,
    standardized,
)
from jaxmarket.learners.ranges import adapted, in_units, without_range
from jaxmarket.policies import BidPolicy, ValueNetwork
from jaxmarket.types import Array, PyTree

__all__ = ["PPO", "PPOState", "clipped_gain"]


# Larger logarithms of probability ratios are cut: the density of a peaked distribution can change by more than float32
# can represent.
_LARGEST_LOG_RATIO = 20.0
# Bid, eligible, utility, advantage, log-probability before the update: [R, N] each.
_Rest = tuple[Array, Array, Array, Array, Array]


def clipped_gain(
    log_ratio: Float[Array, "*n"], advantage: Float[Array, "*n"], clip: Float[Array, ""] | float
) -> Float[Array, "*n"]:
    """``min(ratio · advantage, clip(ratio) · advantage)`` (Schulman et al. 2017), with a gradient without division.

    Args:
        log_ratio: logarithm of the ratio of the new to the old probability density of a bid or an action.
        advantage: of the bid or the action.
        clip: largest distance of the ratio from 1.
    """
    ratio = jnp.exp(jnp.minimum(log_ratio, _LARGEST_LOG_RATIO))
    free = jnp.where(advantage > 0, ratio <= 1 + clip, ratio >= 1 - clip)
    bounded = jax.lax.stop_gradient(jnp.clip(ratio, 1 - clip, 1 + clip))
    return jnp.where(free, ratio, bounded) * advantage


class PPOState(struct.PyTreeNode):
    """Parameters of one module and the state of their common optimizer."""

    params: PyTree
    value_params: PyTree
    opt: Optimizer


@dataclasses.dataclass(frozen=True)
class PPO:
    """The learner of Chang et al. (2020): every bidder, winner or loser, learns from its observation, bid and utility.

    The advantage is utility - V(s), and V is regressed on the utility: no target uses the value network. Values
    propagate between states only through the payouts of auctions.

    Attributes:
        policy: bidding policy with a density; bound by training.
        value: network for the expected utility of a bidder of the module; bound by training.
        minibatch: auctions per gradient step (with R bids each).
        epochs: passes over a rollout.
        value_l2: weight of the squared value parameters in the value loss.
        max_norm: largest global norm of the policy gradient.
        anneal: whether both learning rates decrease to 0 over training, linearly.
        decay_after, decay_every, decay: both learning rates are multiplied by ``decay`` every ``decay_every``
            updates after update ``decay_after``.
        axis: the mesh axis over which experience is sharded, or None.
        learning_rate, value_learning_rate: of the policy and of the value network.
        entropy: weight of the entropy of bids.
        clip: largest distance of the probability ratio from 1.
    """

    policy: BidPolicy = UNBOUND
    value: ValueNetwork = UNBOUND
    minibatch: int = 128
    epochs: int = 1
    value_l2: float = 1e-3
    max_norm: float = 40.0
    anneal: bool = True
    decay_after: int = 500
    decay_every: int = 100
    decay: float = 1.0
    axis: str | None = None
    learning_rate: float = numeric(1e-3)
    value_learning_rate: float = numeric(5e-3)
    entropy: float = numeric(0.05)
    clip: float = numeric(0.2)

    estimates_values: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {"trace_decay": 0.95}

    def bind(self, policy: BidPolicy, value: ValueNetwork) -> Self:
        """Return this learner with its networks."""
        return dataclasses.replace(self, policy=policy, value=value)

    def init(self, key: Array, obs: Array) -> PPOState:
        """Initial networks and optimizer state."""
        key_policy, key_value = jax.random.split(key)
        params, value_params = without_range(self.policy.init(key_policy, obs)), self.value.init(key_value, obs)
        return PPOState(params=params, value_params=value_params, opt=adam((params, value_params)))

    def update(
        self, state: PPOState, experience: Experience, hyper: Hyperparameters, update: Array, progress: Array
    ) -> tuple[PPOState, dict[str, Array]]:
        """``epochs`` passes of clipped policy gradients and value regression over a rollout."""
        steps = jnp.maximum(0, (update - self.decay_after) // self.decay_every)
        shrink = jnp.asarray(self.decay, experience.utility.dtype) ** steps
        if self.anneal:
            shrink *= 1 - progress

        def log_prob_and_entropy(params: PyTree, obs: Array, bid: Array) -> tuple[Array, Array]:
            distribution = jax.vmap(self.policy.unit_distribution, (None, 0))(params, obs)
            bid = jnp.moveaxis(bid, -1, 1)  # the entries of a continuous action of a monolithic agent come last
            log_prob = jax.vmap(type(distribution).log_prob, (None, 0))(distribution, bid)
            return log_prob, per_shard(distribution.entropy().mean(), self.axis)

        def value(params: PyTree, obs: Array) -> Array:
            return jax.vmap(self.value.apply, (None, 0))(params, obs)

        def policy_loss(params: PyTree, obs: Array, rest: _Rest) -> Array:
            bid, eligible, _, advantage, before = rest
            log_prob, entropy = log_prob_and_entropy(params, obs, bid)
            gain = mean_where(clipped_gain(log_prob - before, advantage, hyper.clip), eligible, self.axis)
            return -gain - hyper.entropy * entropy

        def value_loss(params: PyTree, obs: Array, rest: _Rest) -> Array:
            _, eligible, utility, _, _ = rest
            penalty = sum(jnp.sum(p**2) for p in jax.tree.leaves(params))
            error = mean_where((value(params, obs) - utility) ** 2, eligible, self.axis)
            return error + per_shard(self.value_l2 * penalty, self.axis)

        def at_first(obs: Array, bid: Array) -> tuple[Array, Array]:
            """Log-probabilities of the bids, [R, n], and values of the observations, [n], before the update."""
            return log_prob_and_entropy(state.params, obs, bid)[0], value(state.value_params, obs)

        e = in_units(state.params, experience)
        before, baseline = in_blocks(at_first, e.obs, e.bid, self.minibatch)
        advantage = standardized(e.utility - baseline, e.eligible, self.axis)

        def step(state: PPOState, obs: Array, rest: _Rest) -> tuple[PPOState, Array]:
            loss, gradient = jax.value_and_grad(policy_loss)(state.params, obs, rest)
            value_gradient = jax.grad(value_loss)(state.value_params, obs, rest)
            loss, gradient, value_gradient = psum((loss, gradient, value_gradient), self.axis)
            (params, value_params), opt = descend(
                (state.params, state.value_params),
                state.opt,
                (clip(gradient, self.max_norm), value_gradient),
                (hyper.learning_rate * shrink, hyper.value_learning_rate * shrink),
            )
            return PPOState(params=params, value_params=value_params, opt=opt), loss

        rest = (e.bid, e.eligible, e.utility, advantage, before)
        after, loss = over_minibatches(step, state, e.obs, rest, self.minibatch, self.epochs)
        return adapted(state, after, experience, self.axis), {"loss": loss}

"""A `Learner` that trains the policy over actions of a module whose primitive learns."""

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import struct

from jaxmarket.collectives import per_shard, psum
from jaxmarket.learners.ppo import clipped_gain
from jaxmarket.learners.protocol import (
    UNBOUND,
    Experience,
    Hyperparameters,
    Learner,
    Optimizer,
    adam,
    clip,
    descend,
    in_blocks,
    numeric,
    over_minibatches,
    standardized,
)
from jaxmarket.policies import TORSO, BidPolicy, ValueNetwork, with_torso_of
from jaxmarket.types import Array, PyTree, tree_select

__all__ = ["ActingState", "ActionPPO", "ActionState"]

# Choice [D, n] or [n] and legal actions [P, n] or None; won, advantage, log-probability before: [n] each.
_Choice = tuple[Array, Array | None]
_Rest = tuple[_Choice, Array, Array, Array]


class ActionState(struct.PyTreeNode):
    """Parameters of one module's policy over actions, and the state of its optimizer."""

    params: PyTree
    opt: Optimizer


class ActingState(struct.PyTreeNode):
    """The state of a module that learns to bid and to act."""

    bids: Any  # the state of the learner that trains the bids
    actions: ActionState

    @property
    def params(self) -> dict[str, PyTree]:
        """The parameters of both networks, as `jaxmarket.society.Society` takes them."""
        return {"bids": self.bids.params, "actions": self.actions.params}

    def learn(
        self,
        learners: "tuple[Learner, ActionPPO]",
        experience: Experience,
        hyper: Hyperparameters,
        update: Array,
        progress: Array,
    ) -> Self:
        """This state after an update of bids, from the sales, and of actions; arguments as in `Learner.update`."""
        bids, actions = learners
        return self.replace(
            bids=bids.update(self.bids, experience.sales(), hyper, update, progress)[0],
            actions=actions.update(self.actions, experience, hyper, update, progress)[0],
        )

    def with_torso_of_bids(self) -> Self:
        """This state with one torso: the policy over actions has that of bids."""
        params = with_torso_of(self.bids.params, self.actions.params)
        return self.replace(actions=self.actions.replace(params=params))

    def with_one_torso(self, before: Self) -> Self:
        """This state with one torso, to which the changes of both learners since ``before`` are added.

        To first order it is a step along the sum of both gradients.
        """

        def torso(state: Any) -> PyTree:
            return state.params["params"].get(TORSO, {})

        moved = jax.tree.map(
            lambda bids, actions, start: bids + (actions - start),
            *map(torso, (self.bids, self.actions, before.actions)),
        )
        params = self.bids.params
        params = {**params, "params": {**params["params"], **({TORSO: moved} if moved else {})}}
        return self.replace(bids=self.bids.replace(params=params)).with_torso_of_bids()


@dataclasses.dataclass(frozen=True)
class ActionPPO:
    """PPO for the actions of one module, on the module's own purchases only.

    The advantage of an action is the utility of the purchase: revenue minus price. Under first price with deterministic
    bids, and under Vickrey auctions between clones with equal bids, the price is the module's own bid, its estimate of
    the revenue. The utility is then the TD error with the bid as critic, and with λ > 0 the generalised advantage
    (Schulman et al. 2016), so that a society of one module is an actor–critic. A module that buys nothing does not
    change, so that it forgets nothing.

    Attributes:
        policy: the policy over actions; set by training.
        minibatch: auctions per gradient step; only the module's purchases among them contribute.
        epochs: passes over a rollout.
        max_norm: largest global norm of the gradient.
        anneal: whether the learning rate decreases to 0 over training, linearly.
        axis: the mesh axis over which experience is sharded, or None.
        action_learning_rate: learning rate of the policy.
        action_entropy: weight of the entropy of actions.
        action_clip: largest distance of the probability ratio from 1.
    """

    policy: BidPolicy = UNBOUND
    minibatch: int = 128
    epochs: int = 4
    max_norm: float = 0.5
    anneal: bool = True
    axis: str | None = None
    action_learning_rate: float = numeric(3e-4)
    action_entropy: float = numeric(0.01)
    action_clip: float = numeric(0.2)

    estimates_values: ClassVar[bool] = False

    def bind(self, policy: BidPolicy, value: ValueNetwork) -> Self:
        """Return this learner with its policy; it has no value network."""
        del value
        return dataclasses.replace(self, policy=policy)

    def init(self, key: Array, obs: Array) -> ActionState:
        """Initial network and optimizer state."""
        params = self.policy.init(key, obs)
        return ActionState(params=params, opt=adam(params))

    def update(
        self, state: ActionState, experience: Experience, hyper: Hyperparameters, update: Array, progress: Array
    ) -> tuple[ActionState, dict[str, Array]]:
        """``epochs`` passes of clipped policy gradients over the purchases of a rollout."""
        del update
        assert experience.choice is not None
        own = hyper.own
        rate = own["action_learning_rate"] * (1 - progress if self.anneal else 1)
        won, utility = experience.won.any(0), experience.utility.sum(0)  # of the member that won
        advantage = standardized(utility, won, self.axis)
        # Auctions last, as `over_minibatches` takes them.
        chosen = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), (experience.choice, experience.legal))

        def log_prob_and_entropy(params: PyTree, obs: Array, chosen: _Choice) -> tuple[Array, Array]:
            choice, legal = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), chosen)
            distribution: Any = jax.vmap(self.policy.apply, (None, 0))(params, obs)
            distribution = distribution if legal is None else distribution.among(legal)
            return distribution.log_prob(choice), distribution.entropy()

        def loss(params: PyTree, obs: Array, rest: _Rest) -> Array:
            chosen, won, advantage, before = rest
            log_prob, entropy = log_prob_and_entropy(params, obs, chosen)
            gain = clipped_gain(log_prob - before, advantage, own["action_clip"]) + own["action_entropy"] * entropy
            # A sum, so that a purchase has the same weight in every module, however few purchases a module makes.
            return -per_shard(jnp.sum(jnp.where(won, gain, 0)) / self.minibatch, self.axis)

        def step(state: ActionState, obs: Array, rest: _Rest) -> tuple[ActionState, Array]:
            value, gradient = psum(jax.value_and_grad(loss)(state.params, obs, rest), self.axis)
            params, opt = descend(state.params, state.opt, clip(gradient, self.max_norm), rate)
            # Without a purchase Adam would still move on, and then take a long step at the next one.
            bought = psum(jnp.sum(rest[1]), self.axis) > 0
            return tree_select(bought, ActionState(params=params, opt=opt), state), value

        before = in_blocks(
            lambda obs, chosen: log_prob_and_entropy(state.params, obs, chosen)[0],
            experience.obs,
            chosen,
            self.minibatch,
        )
        rest = (chosen, won, advantage, before)
        state, value = over_minibatches(step, state, experience.obs, rest, self.minibatch, self.epochs)
        return state, {"action_loss": value}

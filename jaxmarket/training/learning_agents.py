"""Agents of a population that learn while they live: networks that follow their own profit by gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int32

from jaxmarket.deep_market import Purchases, experience
from jaxmarket.deep_market.representations import with_noise
from jaxmarket.learners import ActionPPO, Experience, Hyperparameters, Valuation
from jaxmarket.learners.actions import ActingState
from jaxmarket.learners.protocol import EXPERIENCE_AXES, adam
from jaxmarket.policies import BidPolicy, ValueHead, mlp
from jaxmarket.training.actions import ChoiceHead
from jaxmarket.types import Array, PyTree, real
from jaxmarket.validation import check_float, check_int, check_widths

__all__ = ["LearningNetworks"]


@dataclasses.dataclass(frozen=True)
class LearningNetworks:
    """Agents with a network for bids and one for actions, a `jaxmarket.deep_market.Representation`.

    Wealth decides which agents live and act, and a living agent learns from its own purchases. The bid network
    estimates what a purchase brings, and bids it (`Valuation`); the action network ascends the profit (`ActionPPO`).
    In a second-price auction the bid that maximises profit is what the purchase brings, and the profit is how much
    more it brings to this agent than to the next one. Under first price, agents that bid so make no profit.

    A child inherits both networks with noise on every weight, and begins with a new state of the optimizers. Agents
    with a learning rate of 0 change by mutation only. An agent bids 0 for a state whose estimated value is negative.

    Attributes:
        actions: number of actions of the environment.
        hidden: widths of the hidden layers of both networks.
        learning_rate: of bids.
        action_learning_rate: of actions.
        action_entropy: weight of the entropy of actions.
        epochs: gradient steps on the purchases of one round.
        discount: γ of the agents' profits; money is not discounted.
        trace_decay: λ of these profits.
        mutation: standard deviation of the noise on a child's weights.

    Raises:
        ValueError: a field is out of range.
    """

    actions: int
    hidden: tuple[int, ...] = (16,)
    learning_rate: float = 1e-3
    action_learning_rate: float = 1e-3
    action_entropy: float = 0.01
    epochs: int = 4
    discount: float = 0.99
    trace_decay: float = 0.8
    mutation: float = 0.03

    def __post_init__(self) -> None:
        put = object.__setattr__
        for field in ("actions", "epochs"):
            put(self, field, check_int(field, getattr(self, field)))
        put(self, "hidden", check_widths("hidden", self.hidden))
        for field in ("learning_rate", "action_learning_rate", "action_entropy", "mutation"):
            put(self, field, check_float(field, getattr(self, field), 0))
        for field in ("discount", "trace_decay"):
            put(self, field, check_float(field, getattr(self, field), 0, 1))

    def _learners(self, minibatch: int) -> tuple[Valuation, ActionPPO]:
        bids, actions = (
            BidPolicy(mlp(*self.hidden), ValueHead()),
            BidPolicy(mlp(*self.hidden), ChoiceHead(self.actions)),
        )
        learner = Valuation(bids, minibatch, self.epochs, learning_rate=self.learning_rate)
        return learner, ActionPPO(
            actions,
            minibatch,
            self.epochs,
            action_learning_rate=self.action_learning_rate,
            action_entropy=self.action_entropy,
        )

    def init(self, key: Array, obs: Float[Array, "..."]) -> ActingState:
        """Networks with random hidden layers, whose bids are 0 and whose actions are equally likely."""
        key_bids, key_actions = jax.random.split(key)
        bids, actions = self._learners(1)
        return ActingState(bids=bids.init(key_bids, obs), actions=actions.init(key_actions, obs))

    def bid(self, agent: ActingState, obs: Float[Array, "..."], budget: Float[Array, ""] | float) -> Float[Array, ""]:
        """The estimated value of a purchase, or 0 if it is negative."""
        del budget  # the market limits bids
        return jnp.maximum(self._learners(1)[0].policy.apply(agent.bids.params, obs).mean(), 0)

    def act(self, agent: ActingState, obs: Float[Array, "..."]) -> Int32[Array, ""]:
        """The likeliest action."""
        return self._learners(1)[1].policy.apply(agent.actions.params, obs).mean().astype(jnp.int32)

    def sample(self, agent: ActingState, obs: Float[Array, "..."], noise: Float[Array, ""]) -> Int32[Array, ""]:
        """The action that a uniform random number selects."""
        distribution = self._learners(1)[1].policy.apply(agent.actions.params, obs)
        return distribution.from_noise(noise).astype(jnp.int32)  # type: ignore[attr-defined]

    def mutate(self, key: Array, agent: ActingState, mate: ActingState) -> ActingState:
        """Both networks with noise on every weight. The mate is not used."""
        del mate

        def noisy(key: Array, params: PyTree) -> PyTree:
            return {**params, "params": with_noise(key, params["params"], self.mutation)}

        key_bids, key_actions = jax.random.split(key)
        bids, actions = noisy(key_bids, agent.bids.params), noisy(key_actions, agent.actions.params)
        return ActingState(
            bids=agent.bids.replace(params=bids, opt=adam(bids)),
            actions=agent.actions.replace(params=actions, opt=adam(actions)),
        )

    def cost(self, agent: ActingState) -> Float[Array, ""]:
        """Multiplications of the bid network, in thousands."""
        kernels = (x for x in jax.tree.leaves(agent.bids.params["params"]) if x.ndim)
        return jnp.asarray(sum(x.size for x in kernels) / 1000, real())

    def learn(self, agents: ActingState, purchases: Purchases) -> ActingState:
        """The agents, leaves [N, ...], after one update with their own purchases of a round."""
        count = purchases.outcome.bids.shape[-1]
        rows = experience(purchases, self.discount, self.trace_decay, count)
        learners = self._learners(rows.obs.shape[0])
        hyper = functools.reduce(Hyperparameters.with_learner, learners, Hyperparameters()).as_arrays()
        update, progress = jnp.zeros((), jnp.int32), jnp.zeros((), real())

        def one(agent: ActingState, own: Experience) -> ActingState:
            return agent.learn(learners, own, hyper, update, progress)

        return jax.vmap(one, (0, EXPERIENCE_AXES))(agents, rows)

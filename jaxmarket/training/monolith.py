"""A monolithic baseline: one agent that acts by itself, made of the society's own networks, learner and returns.

Its choice takes the place of a bid, and its return that of a utility. With `PPO` the return is the generalised
advantage (Schulman et al. 2016) plus V(s). With `Valuation` the agent is Q(λ) of Watkins: it estimates a value for each
choice, V(s) is the highest one, and traces end before a random choice, as those of a society end before a random
winner. It runs without a market, by `rollouts.rollout_policy`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, Int32

from jaxmarket.collectives import INSTANCES, SEEDS, local_slice, psum
from jaxmarket.environments.adapter import Adapter
from jaxmarket.evaluation import Episodes, play_episodes
from jaxmarket.learners import PPO, Experience, Hyperparameters, Valuation
from jaxmarket.learners.protocol import static_part
from jaxmarket.metrics import Oracle, Totals, totals
from jaxmarket.policies import BidPolicy, ValueNetwork, distribution_shape
from jaxmarket.rollouts import EnvCarry, EnvTransition, cut_rows, persistent, rollout_policy, start
from jaxmarket.settlement import lambda_returns
from jaxmarket.switches import entry_point, standard_promotion
from jaxmarket.training.actions import ActionValueHead, ActionValues, ProductHead, action_head
from jaxmarket.training.divergence import diverged
from jaxmarket.training.settings import OF_PRIMITIVES, Settings
from jaxmarket.training.trainable import TrainableDefaults
from jaxmarket.training.transfer import networks
from jaxmarket.types import Array, PyTree, Rules, real

__all__ = [
    "ChoicePolicy",
    "Monolith",
    "MonolithState",
    "SingleAgent",
    "parameters",
    "utilities",
]


@dataclasses.dataclass(frozen=True)
class SingleAgent:
    """The static description of an agent that acts by itself, as `Society` is that of a market.

    Attributes:
        env: the environment's `Adapter`.
        policy: over choices, with a `ChoiceHead`, a `BoxHead`, a `ProductHead` or an `ActionValueHead`.
        greedy: take the likeliest choice instead of sampling.
    """

    env: Adapter
    policy: BidPolicy
    greedy: bool = False

    def choose(self, params: PyTree, key: Array | None, obs: Array, greedy: Array | None = None) -> Array:
        """The action for one encoded observation: i32 [], or f [D] if actions are continuous.

        A greedy agent needs no key. ``greedy`` (bool [], traced) takes the place of the agent's own.
        """
        distribution = self.policy.apply(params, obs)
        if greedy is not None and key is not None:
            choice = jax.lax.cond(greedy, distribution.mean, lambda: distribution.sample(key))
        else:
            choice = distribution.mean() if self.greedy or key is None else distribution.sample(key)
        return self.env.to_action(choice)

    @standard_promotion
    def evaluate(
        self,
        params: PyTree,
        key: Array,
        env_params: PyTree,
        episodes: int = 128,
        max_steps: int = 100_000,
        *,
        greedy: Array | None = None,
    ) -> Episodes:
        """Play fresh episodes, as `jaxmarket.evaluation.evaluate` does with a society."""

        def act(key: Array, running: EnvCarry) -> Array:
            return self.choose(params, key, running.obs, greedy)

        return play_episodes(self.env, act, key, env_params, episodes, max_steps)


class ChoicePolicy(struct.PyTreeNode):
    """A trained monolithic agent as a policy: ``obs -> action``, as `MarketPolicy` is a society.

    Attributes:
        params: of the policy network.
        agent: whose ``greedy`` says whether it samples.
    """

    params: PyTree
    agent: SingleAgent = struct.field(pytree_node=False)

    @standard_promotion
    def __call__(self, obs: PyTree, key: Array | None = None) -> Array:
        """The action for one raw observation of the environment: i32 [], or a float array if actions are continuous.

        Raises:
            ValueError: a sampling agent was given no key.
        """
        if key is None and not self.agent.greedy:
            raise ValueError("key: an agent that samples its choices needs a key; give one, or use a greedy policy")
        return self.agent.choose(self.params, key, self.agent.env.encode(obs))


class MonolithState(struct.PyTreeNode):
    """The state of a monolithic agent's training; one seed."""

    learner: PyTree
    running: EnvCarry  # leaves [B, ...]
    key: Array
    update: Int32[Array, ""]  # updates done


_PARTITION = MonolithState(
    learner=P(SEEDS), running=P(SEEDS, INSTANCES), key=P(SEEDS), update=P(SEEDS)  # type: ignore[arg-type]
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Monolith(TrainableDefaults):
    """The static part of a monolithic agent's training, a `jaxmarket.training.trainable.Trainable`.

    Attributes:
        env: the environment.
        learner: `PPO` or `Valuation` over choices, with the defaults of its numeric settings, which are traced.
        instances, horizon: parallel environments, and steps of each per update.
        updates_per_chunk: updates per `chunk`.
        chunks: chunks of a whole run; not part of the compiled program.
    """

    env: Adapter
    learner: PPO | Valuation
    instances: int
    horizon: int
    updates_per_chunk: int
    chunks: int = dataclasses.field(compare=False)

    unused: ClassVar[tuple[str, ...]] = (
        *OF_PRIMITIVES,
        *("auction", "clones", "share_clones", "bids", "ties"),
        *("dropout", "reserve", "bid_low", "bid_high"),
    )
    continuous: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {"learner": "ppo"}
    learners: ClassVar[Mapping[str, Any]] = {"ppo": PPO(epochs=4, entropy=0.01)}

    @classmethod
    def of(
        cls, settings: Settings, hidden: tuple[int, ...] | None = None, head: ProductHead | None = None
    ) -> "Monolith":
        """The agent that the settings describe.

        Args:
            settings: of ``TrainConfig(..., agent="monolith")``, or of `TrainConfig.as_monolith`.
            hidden: widths of both networks; by default those of one bidder, with which the agent has fewer
                parameters than the society (see `parameters`).
            head: of the policy; one logit per action by default.

        Raises:
            ValueError: the learner is neither `PPO` nor `Valuation`, a setting does not apply to the agent, the
                environment has illegal actions, or the head does not fit the learner or the number of actions.
        """
        rule, adapter = settings.learner, settings.adapter
        if not isinstance(rule, PPO | Valuation):
            raise ValueError(
                f"learner: a monolithic agent learns by PPO or Valuation, got {type(rule).__name__}; use learner='ppo'"
            )
        by_value = isinstance(rule, Valuation)
        for field in () if by_value else ("exploration", "exploration_final", "persistence"):
            if getattr(settings, field):
                raise ValueError(
                    f"{field}: a monolithic agent that learns by PPO samples its choices, got "
                    f"{getattr(settings, field):g}; leave it out"
                )
        if head is not None and by_value:
            raise ValueError(
                "head: a monolithic agent that learns by Valuation estimates the value of each choice; leave it out"
            )
        if settings.time_limits != "bootstrap":
            raise ValueError(
                "time_limits: a monolithic agent estimates the value of what a time limit cuts off, got "
                f"{settings.time_limits!r}; leave it out"
            )
        if adapter.restricts_actions:
            raise ValueError(
                f"env: {adapter.name} has illegal actions, which a monolithic agent would take; use another "
                "environment, or a society"
            )
        torsos = (rule.policy.torso, rule.policy.torso if by_value else rule.value.torso)
        if hidden is not None:
            torsos = tuple(dataclasses.replace(torso, hidden=hidden) for torso in torsos)  # type: ignore[type-var]
        if head is not None and head.choices != adapter.num_actions:
            raise ValueError(
                f"head: {head.base}^{head.factors} = {head.choices} choices, but {adapter.name} has "
                f"{adapter.num_actions} actions; choose factors and base that multiply to them"
            )
        if by_value and adapter.box is not None:
            raise ValueError(
                f"learner: Valuation estimates the value of each choice, but the actions of {adapter.name} are "
                "continuous; use learner='ppo'"
            )
        policy = BidPolicy(
            torsos[0], head or (ActionValueHead(adapter.num_actions) if by_value else action_head(adapter))
        )
        return cls(
            env=adapter,
            learner=static_part(rule.bind(policy, ValueNetwork(torsos[1]))),
            instances=settings.instances,
            horizon=settings.horizon,
            updates_per_chunk=settings.updates_per_chunk,
            chunks=settings.chunks,
        )

    @property
    def partition(self) -> MonolithState:
        """How a state with a leading axis of seeds is laid out over a mesh."""
        return _PARTITION

    def player(self, *, greedy: bool) -> SingleAgent:
        """The agent that is trained."""
        return SingleAgent(self.env, self.learner.policy, greedy)

    def policy(self, params: PyTree, *, greedy: bool) -> ChoicePolicy:
        """The trained agent as a policy."""
        return ChoicePolicy(params, self.player(greedy=greedy))

    @entry_point
    def init(self, key: Array, env_params: PyTree, hyper: Hyperparameters | None = None) -> MonolithState:
        """The state before the first update, which does not depend on ``hyper``."""
        del hyper
        key_learner, key_start, key = jax.random.split(key, 3)
        keys = jax.random.split(key_start, self.instances)
        running = jax.vmap(lambda key: start(self.env, key, env_params))(keys)
        return MonolithState(
            learner=self.learner.init(key_learner, running.obs[0]),
            running=running,
            key=key,
            update=jnp.zeros((), jnp.int32),
        )

    @standard_promotion
    def chunk(
        self, state: MonolithState, env_params: PyTree, hyper: Hyperparameters, oracle: Oracle | None = None
    ) -> tuple[MonolithState, dict[str, Array]]:
        """``updates_per_chunk`` updates, and those of the `jaxmarket.metrics` over them that need no market.

        ``hyper.trace_decay`` is the λ of the returns, 0 if it is None; ``oracle`` is not used.
        """
        del oracle

        def body(state: MonolithState, _: None) -> tuple[MonolithState, Totals]:
            return self._update(state, env_params, hyper)

        state, sums = jax.lax.scan(body, state, None, length=self.updates_per_chunk)
        sums = psum(jax.tree.map(lambda x: x.sum(0), sums), self.learner.axis)
        return state, sums.means() | {"diverged": diverged(networks(state.learner), sums.reward)}

    def _update(self, state: MonolithState, env_params: PyTree, hyper: Hyperparameters) -> tuple[MonolithState, Totals]:
        learner = self.learner
        key_act, key_env, key = jax.random.split(state.key, 3)
        progress = state.update / jnp.asarray(hyper.updates, real())
        rules = hyper.rules(progress)

        def act(draw: _Draws, obs: Array) -> tuple[Array, _Chosen]:
            choice = learner.policy.apply(state.learner.params, obs).from_noise(draw.choice)  # type: ignore[attr-defined]
            explored = jnp.zeros((), bool)
            if draw.explore is not None and rules.exploration is not None:
                explored = draw.explore[0] < rules.exploration
                number = jnp.floor(draw.explore[1] * self.env.num_actions).astype(choice.dtype)
                choice = jnp.where(explored, number, choice)
            return self.env.to_action(choice), _Chosen(choice, explored)

        def roll(keys: Array, running: EnvCarry) -> tuple[EnvCarry, EnvTransition]:
            draws = _draw(learner.policy, keys[0], running.obs, self.horizon, rules)
            return rollout_policy(self.env, act, keys[1], running, env_params, draws, self.horizon)

        def value(obs: Array) -> Array:
            if isinstance(learner, PPO):
                return jax.vmap(learner.value.apply, (None, 0))(state.learner.value_params, obs)
            estimates = jax.vmap(learner.policy.apply, (None, 0))(state.learner.params, obs)
            return cast(ActionValues, estimates).values.max(-1)

        keys = jnp.stack([jax.random.split(k, self.instances) for k in (key_act, key_env)], 1)
        keys = local_slice(keys, self.learner.axis)
        running, rows = jax.vmap(roll, out_axes=(0, 1))(keys, state.running)
        # The same expression as in the learner's update, so that it is computed once.
        obs = rows.obs.reshape(-1, *rows.obs.shape[2:])
        values = value(obs).reshape(rows.reward.shape)
        limit = self.env.longest_episode(env_params)
        earned = functools.partial(utilities, value=value, hyper=hyper, limit=limit)
        utility = jax.vmap(earned, 1, 1)(rows, values, rows.choice.explored).reshape(1, -1)
        everywhere = jnp.ones(utility.shape, bool)
        experience = Experience(
            obs=obs,
            bid=_rows_last(rows.choice.number),
            eligible=everywhere,
            won=everywhere,
            price=jnp.zeros_like(utility),
            utility=utility,
        )
        after, _ = learner.update(state.learner, experience, hyper, state.update, progress)
        return MonolithState(learner=after, running=running, key=key, update=state.update + 1), totals(rows)


def _rows_last(choices: Float[Array, "T B *D"]) -> Float[Array, "1 *D N"]:
    """Choices as the bids of one bidder in an `Experience`."""
    return jnp.moveaxis(choices.reshape(1, -1, *choices.shape[2:]), 1, -1)


class _Draws(struct.PyTreeNode):
    """The randomness of steps."""

    choice: PyTree  # noise of the distribution over choices, leaves [*T, ...]
    explore: Float[Array, "*T 2"] | None  # uniform: whether to explore, and the choice if so


class _Chosen(struct.PyTreeNode):
    """A choice."""

    number: Float[Array, "..."]  # of an action, [*T], or the entries of a continuous one, [*T, D]
    explored: Bool[Array, "*T"]  # whether it was random


def _draw(policy: BidPolicy, key: Array, obs: Array, steps: int, rules: Rules) -> _Draws:
    noise = distribution_shape(policy, obs).noise
    if rules.exploration is None:
        return _Draws(noise(key, (steps,)), None)
    key, key_explore, key_persist = jax.random.split(key, 3)
    explore = jax.random.uniform(key_explore, (steps, 2), real())
    if rules.persistence is not None:
        explore = persistent(explore, key_persist, rules.persistence)
    return _Draws(noise(key, (steps,)), explore)


def parameters(learner_state: PyTree) -> int:
    """Numbers in the networks of a learner's state, of all modules together."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(networks(learner_state)))


def utilities(
    rows: EnvTransition,
    values: Float[Array, " T"],
    explored: Bool[Array, " T"],
    *,
    value: Callable[[Array], Array],
    hyper: Hyperparameters,
    limit: int | None,
) -> Float[Array, " T"]:
    """The return of each choice.

    It is the λ-return, equal to the generalised advantage plus V(s); λ is 0 where the next choice is random.

    Args:
        rows: [T] of one environment.
        values: V of the rows' observations.
        explored: whether the choice was random.
        value: observations [K, ...] -> V, f [K]; asked where an episode was cut, and for the end of the rollout.
        hyper: the discount and λ (``trace_decay``; None is 0).
        limit: as in `rollouts.cut_rows`.
    """
    steps = rows.reward.shape[0]
    cuts = cut_rows(rows.terminated, rows.truncated, limit)
    ahead = jnp.roll(values, -1).at[cuts].set(value(rows.next_obs[cuts]), mode="drop")
    decay = 0.0 if hyper.trace_decay is None else hyper.trace_decay
    ends = rows.done | jnp.roll(explored, -1) | (jnp.arange(steps) == steps - 1)
    return lambda_returns(
        rows.reward,
        discount=jnp.asarray(hyper.discount, real()) ** rows.duration,
        value=jnp.where(rows.terminated, 0, ahead),
        trace_decay=jnp.where(ends, 0, jnp.asarray(decay, real())),
    )

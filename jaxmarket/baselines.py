"""Baselines: one agent that acts by itself, made of the society's own networks, learner and returns.

A monolithic agent is `PPO` with a policy over choices where a bidder has one over bids; its utility is what it
will earn: generalised advantages (Schulman et al. 2016) plus V(s), by `settlement.lambda_returns`. `roam` is a
rollout without a market; benchmarks measure against it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import struct

from jaxmarket.config import TrainConfig
from jaxmarket.environments.adapter import Adapter
from jaxmarket.learners import PPO, Experience, Hyperparameters
from jaxmarket.policies import BidPolicy, ValueNetwork
from jaxmarket.rollouts import cut_rows
from jaxmarket.settlement import lambda_returns
from jaxmarket.types import Array, PyTree, real

__all__ = [
    "Categorical",
    "ChoiceHead",
    "Monolith",
    "MonolithState",
    "Running",
    "Steps",
    "chunk",
    "greedy_return",
    "init",
    "parameters",
    "roam",
    "start",
    "utilities",
]


class Running(struct.PyTreeNode):
    """One running environment without a market."""

    env_state: PyTree
    obs: Array  # f [...] encoded
    episode_return: Array  # f [] undiscounted reward of the running episode
    episode_length: Array  # i32 [] environment steps of the running episode


class Steps(struct.PyTreeNode):
    """What happened, one row a step."""

    obs: Array  # f [...]
    choice: PyTree  # whatever decided the action
    reward: Array  # f []
    duration: Array  # f [] environment steps taken
    terminated: Array  # bool []
    truncated: Array  # bool []
    next_obs: Array  # f [...] before any reset
    episode_return: Array  # f [] of the episode so far, this row included
    episode_length: Array  # i32 []

    @property
    def done(self) -> Array:
        """Whether the episode ended with this row: bool []."""
        return self.terminated | self.truncated


def start(env: Adapter, key: Array, env_params: PyTree) -> Running:
    """A first state."""
    obs, env_state = env.reset(key, env_params)
    return Running(
        env_state=env_state, obs=obs, episode_return=jnp.zeros((), real()), episode_length=jnp.zeros((), jnp.int32)
    )


def roam(
    env: Adapter,
    act: Callable[[PyTree, Array], tuple[Array, PyTree]],
    key: Array,
    running: Running,
    env_params: PyTree,
    draws: PyTree,
) -> tuple[Running, Steps]:
    """Run one environment, reset where an episode ends; ``vmap`` for many.

    Args:
        env: the environment.
        act: ``(draws of the step, obs) -> (action, choice)``; the choice is kept in the rows.
        key: of the environment's own randomness.
        running: where to begin.
        env_params: the environment's parameters.
        draws: randomness of ``act``, leaves [T, ...], whose length is that of the rollout.
    """
    steps = jax.tree.leaves(draws)[0].shape[0]
    implementation = jax.random.key_impl(key)
    # Words of keys, as in `society.Draws`.
    env_words, reset_words = (jax.random.key_data(jax.random.split(k, steps)) for k in jax.random.split(key))

    def typed(words: Array) -> Array:
        return jax.random.wrap_key_data(words, impl=implementation)

    def body(running: Running, ahead: tuple[PyTree, Array, Running]) -> tuple[Running, Steps]:
        draws, words, fresh = ahead
        action, choice = act(draws, running.obs)
        after = env.step(typed(words), running.env_state, action, env_params)
        row = Steps(
            obs=running.obs,
            choice=choice,
            reward=after.reward,
            duration=after.duration,
            terminated=after.terminated,
            truncated=after.truncated,
            next_obs=after.obs,
            episode_return=running.episode_return + after.reward,
            episode_length=running.episode_length + after.duration.astype(jnp.int32),
        )
        onward = Running(
            env_state=after.env_state,
            obs=after.obs,
            episode_return=row.episode_return,
            episode_length=row.episode_length,
        )
        return jax.tree.map(lambda new, old: jnp.where(row.done, new, old), fresh, onward), row

    fresh = jax.vmap(lambda words: start(env, typed(words), env_params))(reset_words)
    return jax.lax.scan(body, running, (draws, env_words, fresh))


class Categorical(struct.PyTreeNode):
    """One of P choices: what an agent has that acts instead of bidding."""

    logits: Array  # f [..., P]

    def sample(self, key: Array, shape: Sequence[int] = ()) -> Array:
        """Independent choices, as numbers: f [*shape, ...]."""
        choices = jax.random.categorical(key, self.logits, shape=(*shape, *self.logits.shape[:-1]))
        return choices.astype(self.logits.dtype)

    def quantile(self, u: Array) -> Array:
        """The choice whose share of (0, 1) holds ``u``, as a number: f [..., of ``u``]."""
        below = jnp.cumsum(jax.nn.softmax(self.logits), -1)[..., :-1]
        return jnp.sum(u[..., None] >= below, -1).astype(self.logits.dtype)

    def mean(self) -> Array:
        """The likeliest choice, which is the greedy one: f [...]."""
        return jnp.argmax(self.logits, -1).astype(self.logits.dtype)

    def log_prob(self, bid: Array) -> Array:
        """Log-probability of the choice ``bid``: f [...]."""
        chosen = bid[..., None] == jnp.arange(self.logits.shape[-1], dtype=bid.dtype)
        return jnp.sum(jnp.where(chosen, jax.nn.log_softmax(self.logits), 0), -1)

    def entropy(self) -> Array:
        """Entropy: f [...]."""
        logs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(logs) * logs, -1)


@dataclasses.dataclass(frozen=True)
class ChoiceHead:
    """One logit per choice."""

    outputs: int

    @property
    def low(self) -> float:
        """The first choice."""
        return 0.0

    @property
    def high(self) -> float:
        """The last choice."""
        return self.outputs - 1.0

    def distribution(self, raw: Array) -> Categorical:
        """The distribution with logits ``raw`` [..., outputs]."""
        return Categorical(raw)


@dataclasses.dataclass(frozen=True)
class Monolith:
    """The static part of a monolithic agent's training.

    Attributes:
        env: the environment.
        learner: `PPO` over choices.
        instances, horizon: parallel environments, and steps of each per update.
        updates_per_chunk: updates per `chunk`.
    """

    env: Adapter
    learner: PPO
    instances: int
    horizon: int
    updates_per_chunk: int

    @classmethod
    def of(cls, config: TrainConfig, hidden: tuple[int, ...] | None = None) -> "Monolith":
        """The agent to compare a ``ppo`` society with: same environment, instances and minibatches.

        Args:
            config: of the society.
            hidden: widths of both networks; by default those of one bidder, with which the agent has fewer
                parameters than the society (see `parameters`).

        Raises:
            ValueError: the configuration's learner is not ppo, or its environment or rules are none the agent knows.
        """
        rule = config.learner_rule
        if not isinstance(rule, PPO):
            raise ValueError(f"learner: a monolithic agent is compared with ppo societies, got {config.learner!r}")
        if config.time_limits != "shadow":
            raise ValueError(
                f"time_limits: a monolithic agent estimates what a time-out cuts off, got {config.time_limits!r}"
            )
        if hasattr(config.adapter.env, "legal_actions"):
            raise ValueError(f"env: {config.adapter.name} has illegal actions, which a monolithic agent would take")
        torsos = rule.policy.torso, rule.value.torso
        if hidden is not None:
            torsos = tuple(dataclasses.replace(torso, hidden=hidden) for torso in torsos)  # type: ignore[type-var]
        policy = BidPolicy(torsos[0], ChoiceHead(config.primitives))
        return cls(
            env=config.adapter,
            learner=dataclasses.replace(rule, policy=policy, value=ValueNetwork(torsos[1])),
            instances=config.instances,  # type: ignore[arg-type]
            horizon=config.horizon,  # type: ignore[arg-type]
            updates_per_chunk=config.updates_per_chunk,
        )


class MonolithState(struct.PyTreeNode):
    """Everything a run needs to go on; one seed."""

    learner: PyTree
    running: Running  # leaves [B, ...]
    key: Array
    update: Array  # i32 [] updates done


def init(monolith: Monolith, key: Array, env_params: PyTree) -> MonolithState:
    """The state before the first update."""
    key_learner, key_start, key = jax.random.split(key, 3)
    keys = jax.random.split(key_start, monolith.instances)
    running = jax.vmap(lambda key: start(monolith.env, key, env_params))(keys)
    return MonolithState(
        learner=monolith.learner.init(key_learner, running.obs[0]),
        running=running,
        key=key,
        update=jnp.zeros((), jnp.int32),
    )


def parameters(learner_state: PyTree) -> int:
    """Numbers in the policy and value networks of a `PPO` state, of all modules together."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves((learner_state.params, learner_state.value_params)))


def chunk(
    monolith: Monolith, state: MonolithState, env_params: PyTree, hyper: Hyperparameters
) -> tuple[MonolithState, dict[str, Array]]:
    """``updates_per_chunk`` updates, and the mean return of the episodes that ended (NaN if none did).

    ``hyper.trace_decay`` is the λ of the generalised advantages, 0.95 by default.
    """

    def body(state: MonolithState, _: None) -> tuple[MonolithState, tuple[Array, Array]]:
        return _update(monolith, state, env_params, hyper)

    state, (returns, episodes) = jax.lax.scan(body, state, None, length=monolith.updates_per_chunk)
    ended = episodes.sum()
    return state, {"return_mean": returns.sum() / jnp.where(ended > 0, ended, jnp.nan), "episodes": ended}


def greedy_return(
    monolith: Monolith, learner_state: PyTree, key: Array, env_params: PyTree, steps: int, episodes: int = 64
) -> Array:
    """Mean return of fresh episodes with the likeliest action, each cut after ``steps``. f []."""

    def act(_: Array, obs: Array) -> tuple[Array, Array]:
        choice = monolith.learner.policy.apply(learner_state.params, obs).mean()
        return choice.astype(jnp.int32), choice

    def play(key: Array) -> Array:
        key_start, key_env = jax.random.split(key)
        running = start(monolith.env, key_start, env_params)
        _, rows = roam(monolith.env, act, key_env, running, env_params, jnp.zeros(steps))
        # The first row that ends an episode, else the last one.
        end = jnp.argmax(rows.done | (jnp.arange(steps) == steps - 1))
        return rows.episode_return[end]

    return jax.vmap(play)(jax.random.split(key, episodes)).mean()


def utilities(
    rows: Steps, values: Array, value: Callable[[Array], Array], hyper: Hyperparameters, limit: int | None
) -> Array:
    """What each choice will have earned: the generalised advantage plus V(s). f [T].

    Args:
        rows: [T] of one environment.
        values: f [T], V of the rows' observations.
        value: observations [K, ...] -> V, f [K]; asked where an episode was cut, and for the end of the rollout.
        hyper: the discount and λ (``trace_decay``, 0.95 by default).
        limit: as in `rollouts.cut_rows`.
    """
    steps = rows.reward.shape[0]
    cuts = cut_rows(rows.terminated, rows.truncated, limit)
    ahead = jnp.roll(values, -1).at[cuts].set(value(rows.next_obs[cuts]), mode="drop")
    decay = 0.95 if hyper.trace_decay is None else hyper.trace_decay
    return lambda_returns(
        rows.reward,
        jnp.asarray(hyper.discount, real()) ** rows.duration,
        jnp.where(rows.terminated, 0, ahead),
        jnp.where(rows.done | (jnp.arange(steps) == steps - 1), 0, jnp.asarray(decay, real())),
    )


def _update(
    monolith: Monolith, state: MonolithState, env_params: PyTree, hyper: Hyperparameters
) -> tuple[MonolithState, tuple[Array, Array]]:
    learner, steps = monolith.learner, monolith.horizon
    key_act, key_env, key = jax.random.split(state.key, 3)

    def act(draw: Array, obs: Array) -> tuple[Array, Array]:
        choice = learner.policy.apply(state.learner.params, obs).quantile(draw)  # type: ignore[attr-defined]
        return choice.astype(jnp.int32), choice

    def roll(keys: Array, running: Running) -> tuple[Running, Steps]:
        draws = jax.random.uniform(keys[0], (steps,), real())
        return roam(monolith.env, act, keys[1], running, env_params, draws)

    def value(obs: Array) -> Array:
        return jax.vmap(learner.value.apply, (None, 0))(state.learner.value_params, obs)

    keys = jnp.stack([jax.random.split(k, monolith.instances) for k in (key_act, key_env)], 1)
    running, rows = jax.vmap(roll, out_axes=(0, 1))(keys, state.running)
    # The same expression as in the learner's update, so that it is computed once.
    obs = rows.obs.reshape(-1, *rows.obs.shape[2:])
    values = value(obs).reshape(rows.reward.shape)
    limit = monolith.env.longest_episode(env_params)
    earned = jax.vmap(lambda rows, values: utilities(rows, values, value, hyper, limit), (1, 1), 1)
    utility = earned(rows, values).reshape(1, -1)
    everywhere = jnp.ones(utility.shape, bool)
    experience = Experience(
        obs=obs,
        bid=rows.choice.reshape(1, -1),
        eligible=everywhere,
        won=everywhere,
        price=jnp.zeros_like(utility),
        utility=utility,
    )
    progress = state.update / jnp.asarray(hyper.updates, real())
    after, _ = learner.update(state.learner, experience, hyper, state.update, progress)
    ended = (jnp.where(rows.done, rows.episode_return, 0).sum(), rows.done.sum())
    return MonolithState(learner=after, running=running, key=key, update=state.update + 1), ended

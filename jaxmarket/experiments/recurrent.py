"""A single agent with a recurrent network, the rival of markets with memory: PPO with gated recurrent units.

The network reads the observation alone and keeps what it needs in its hidden state, which gradients shape back to the
beginning of a rollout (Schulman et al. 2017; Cho et al. 2014). The rest is usual: several environments in parallel, an
Adam optimizer whose rate decreases to 0, clipped gains, generalised advantages, an entropy bonus.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmarket.deep_market.evaluation import episode_limit, first_states
from jaxmarket.environments.adapter import Adapter
from jaxmarket.experiments.conditions import Arrays
from jaxmarket.learners.ppo import clipped_gain
from jaxmarket.rollouts import EnvCarry, EnvTransition, advance, start
from jaxmarket.settlement import lambda_returns
from jaxmarket.switches import compiled_map
from jaxmarket.types import Array, PyTree, real

__all__ = ["RecurrentAgent", "train"]

_DISCOUNT, _TRACE_DECAY, _CLIP, _LARGEST_GRADIENT, _VALUE_WEIGHT = 0.99, 0.95, 0.2, 0.5, 0.5
_SMALL = 1e-6  # added to the standard deviation of advantages


class _Recurrent(nn.Module):
    """Gated recurrent units between two dense layers: ``(hidden, obs) -> (hidden, (logits, value))``."""

    units: int
    actions: int

    @nn.compact
    def __call__(self, hidden: Array, obs: Array) -> tuple[Array, tuple[Array, Array]]:
        read = nn.relu(nn.Dense(self.units)(obs.reshape(-1)))
        hidden, out = nn.GRUCell(self.units)(hidden, read)
        logits = nn.Dense(self.actions, kernel_init=nn.initializers.orthogonal(0.01))(out)
        return hidden, (logits, nn.Dense(1)(out)[0])


@dataclasses.dataclass(frozen=True)
class RecurrentAgent:
    """The agent and how it learns.

    Attributes:
        env: where it acts.
        units: of the hidden state.
        instances: B, parallel environments.
        horizon: T, steps of each between two updates.
        epochs: gradient steps per update, each on the whole rollout.
        learning_rate: at the beginning.
        entropy: weight of the entropy of its actions.
    """

    env: Adapter
    units: int = 64
    instances: int = 16
    horizon: int = 128
    epochs: int = 4
    learning_rate: float = 1e-3
    entropy: float = 0.01

    @property
    def network(self) -> _Recurrent:
        """The network."""
        return _Recurrent(self.units, self.env.num_actions)

    def act(self, params: PyTree, hidden: Array, obs: Array) -> tuple[Array, tuple[Array, Array]]:
        """The next hidden state, the logits of the actions, and the value."""
        out: Any = self.network.apply(params, hidden, obs)
        return out

    def returns(self, params: PyTree) -> Array:
        """Mean return over all `first_states` of the actions with the highest probabilities: f []."""
        states, obs, _ = first_states(self.env)
        env_params, key = self.env.default_params, jax.random.key(0)  # none of these environments is random

        def step(
            carry: tuple[PyTree, Array, Array, Array], _: None
        ) -> tuple[tuple[PyTree, Array, Array, Array], Array]:
            state, obs, hidden, over = carry
            hidden, (logits, value) = self.act(params, hidden, obs)
            del value
            after = self.env.step(key, state, logits.argmax().astype(jnp.int32), env_params)
            ended = over | after.terminated | after.truncated
            return (after.env_state, after.obs, hidden, ended), jnp.where(over, 0, after.reward)

        def episode(state: PyTree, obs: Array) -> Array:
            first = state, obs, jnp.zeros(self.units), jnp.zeros((), bool)
            return jax.lax.scan(step, first, None, episode_limit(self.env))[1].sum()

        return jax.vmap(episode)(states, obs).mean()


@dataclasses.dataclass(frozen=True)
class _Learning:
    """The pure functions of a run of ``updates`` updates."""

    agent: RecurrentAgent
    updates: int

    @property
    def optimizer(self) -> optax.GradientTransformation:
        rate = optax.linear_schedule(self.agent.learning_rate, 0.0, self.updates * self.agent.epochs)
        return optax.chain(optax.clip_by_global_norm(_LARGEST_GRADIENT), optax.adam(rate))

    def rollout(
        self, params: PyTree, key: Array, running: EnvCarry, hidden: Array
    ) -> tuple[EnvCarry, Array, tuple[EnvTransition, Array, Array, Array]]:
        """Steps of one environment.

        Returns:
            Where it is, the hidden state, and the rows, the log-probabilities of the actions, the values of the states
            and those of the states reached, [T] each.
        """
        env, act = self.agent.env, self.agent.act
        env_params = env.default_params

        def step(
            carry: tuple[EnvCarry, Array], key: Array
        ) -> tuple[tuple[EnvCarry, Array], tuple[EnvTransition, Array, Array]]:
            running, hidden = carry
            key_act, key_step, key_reset = jax.random.split(key, 3)
            hidden, (logits, value) = act(params, hidden, running.obs)
            action = jax.random.categorical(key_act, logits).astype(jnp.int32)
            after = env.step(key_step, running.env_state, action, env_params)
            running, row = advance(running, action, after, start(env, key_reset, env_params))
            hidden = jnp.where(row.done, 0, hidden)
            return (running, hidden), (row, jax.nn.log_softmax(logits)[action], value)

        keys = jax.random.split(key, self.agent.horizon)
        (running, hidden), (rows, log_probs, values) = jax.lax.scan(step, (running, hidden), keys)
        _, (_, last) = act(params, hidden, running.obs)
        # Where an episode ended, no target uses the next row's value.
        return running, hidden, (rows, log_probs, values, jnp.append(values[1:], last))

    def loss(
        self, params: PyTree, hidden: Array, rows: EnvTransition, before: Array, target: Array, advantage: Array
    ) -> Array:
        """Of one environment's rows, which began in the state ``hidden``: f []."""

        def step(hidden: Array, row: EnvTransition) -> tuple[Array, tuple[Array, Array]]:
            hidden, out = self.agent.act(params, hidden, row.obs)
            return jnp.where(row.done, 0, hidden), out

        _, (logits, value) = jax.lax.scan(step, hidden, rows)
        log_probs = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log_probs, rows.choice[:, None], 1)[:, 0]
        gain = clipped_gain(chosen - before, advantage, _CLIP).mean()
        entropy = -(jnp.exp(log_probs) * log_probs).sum(1).mean()
        return _VALUE_WEIGHT * ((value - target) ** 2).mean() - gain - self.agent.entropy * entropy

    def update(
        self, carry: tuple[PyTree, PyTree, EnvCarry, Array], key: Array
    ) -> tuple[tuple[PyTree, PyTree, EnvCarry, Array], None]:
        """A rollout of every environment and the gradient steps on it."""
        params, state, running, hidden = carry
        keys = jax.random.split(key, self.agent.instances)
        running, hidden_after, (rows, before, value, reached) = jax.vmap(self.rollout, (None, 0, 0, 0))(
            params, keys, running, hidden
        )

        def targets(rows: EnvTransition, reached: Array) -> Array:
            last = jnp.arange(self.agent.horizon) == self.agent.horizon - 1
            return lambda_returns(
                rows.reward,
                discount=_DISCOUNT * ~rows.done,  # a network with memory sees a time limit coming
                value=reached,
                trace_decay=jnp.where(rows.done | last, 0, _TRACE_DECAY),
            )

        target = jax.vmap(targets)(rows, reached)
        advantage = target - value
        advantage = (advantage - advantage.mean()) / (advantage.std() + _SMALL)
        experience = hidden, rows, before, target, advantage

        def descend(learned: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], None]:
            params, state = learned
            gradient = jax.grad(lambda params: jax.vmap(self.loss, (None, 0, 0, 0, 0, 0))(params, *experience).mean())(
                params
            )
            changes, state = self.optimizer.update(gradient, state)
            return (optax.apply_updates(params, changes), state), None

        (params, state), _ = jax.lax.scan(descend, (params, state), None, self.agent.epochs)
        return (params, state, running, hidden_after), None

    def run(self, key: Array, parts: int) -> Array:
        """The return after each of ``parts`` equal parts: f [parts]."""
        agent = self.agent
        key_reset, key_params, key_run = jax.random.split(key, 3)
        keys = jax.random.split(key_reset, agent.instances)
        running = jax.vmap(start, (None, 0, None))(agent.env, keys, agent.env.default_params)
        hidden = jnp.zeros((agent.instances, agent.units), real())
        params = agent.network.init(key_params, hidden[0], running.obs[0])

        def part(
            carry: tuple[PyTree, PyTree, EnvCarry, Array], keys: Array
        ) -> tuple[tuple[PyTree, PyTree, EnvCarry, Array], Array]:
            carry, _ = jax.lax.scan(self.update, carry, keys)
            return carry, agent.returns(carry[0])

        keys = jax.random.split(key_run, (parts, self.updates // parts))
        return jax.lax.scan(part, (params, self.optimizer.init(params), running, hidden), keys)[1]


def train(keys: Array, *, agent: RecurrentAgent, steps: int, parts: int) -> Arrays:
    """Train an agent, one seed for each key.

    Args:
        keys: [seeds]; consumed.
        agent: the agent.
        steps: environment steps of all its environments together; rounded down to whole parts.
        parts: a measurement follows each.

    Returns:
        ``return``, `RecurrentAgent.returns` after each part, f [parts, seeds]; ``steps`` i [parts].
    """
    each = agent.instances * agent.horizon
    updates = max(1, steps // (each * parts))
    learning = _Learning(agent, updates * parts)
    # Not vmapped: products of many small matrices are slow on CPUs.
    found = compiled_map(lambda key: learning.run(key, parts), keys)
    return {"return": np.asarray(found).T, "steps": each * updates * np.arange(1, parts + 1)}

"""The training runs of the experiment complete-feedback: what is trained, and with which learning rates."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Float, Int32

from jaxmarket.environments.base import environment, spaces
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.training_environment import Knob, TrainingEnvironment
from jaxmarket.types import Array, real

__all__ = [
    "RATES",
    "TASKS",
    "TRANSFER",
    "BanditParams",
    "BanditState",
    "ContextualBandit",
    "TrainingTask",
    "knobs",
    "noisy_later",
]

RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
_PERIODS = 8
_NOISE = 20.0


class BanditState(struct.PyTreeNode):
    """State of `ContextualBandit`."""

    context: Int32[Array, ""]
    time: Int32[Array, ""]


class BanditParams(struct.PyTreeNode):
    """Parameters of `ContextualBandit`."""

    noise: Float[Array, ""] | float = 0.0  # standard deviation of rewards
    max_steps_in_episode: int = struct.field(pytree_node=False, default=1)


@dataclasses.dataclass(frozen=True)
class ContextualBandit(environment.Environment[Any, Any]):
    """A bandit with a one-hot context and Gaussian noise in its rewards; returns are counted without the noise.

    In context c, arm a pays ``means[(a + c) mod P]`` on average.

    Attributes:
        means: what the arms pay in the first context, one for each of the P arms.
        contexts: number of contexts, drawn with equal probability.
    """

    means: tuple[float, ...] = (10.0, 9.0, 8.0, 0.0)
    contexts: int = 8

    @property
    def name(self) -> str:
        """The name of the class."""
        return "ContextualBandit"

    @property
    def gamma(self) -> float:
        """The discount, which has no effect because an episode is one step."""
        return 0.9

    @property
    def num_actions(self) -> int:
        """The number of arms."""
        return len(self.means)

    @property
    def default_params(self) -> BanditParams:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Rewards without noise."""
        return BanditParams()

    def reset_env(self, key: Array, params: BanditParams) -> tuple[Array, BanditState]:
        """Draw a context."""
        context = jax.random.randint(key, (), 0, self.contexts, jnp.int32)
        state = BanditState(context=context, time=jnp.zeros((), jnp.int32))
        return self.get_obs(state), state

    def step_env(
        self, key: Array, state: BanditState, action: Any, params: BanditParams
    ) -> tuple[Array, BanditState, Array, Array, dict[Any, Any]]:
        """Pull an arm; ``info["undiscounted"]`` is its mean."""
        paid = jnp.asarray(self.means, real())[(jnp.asarray(action) + state.context) % self.num_actions]
        state = state.replace(time=state.time + 1)
        reward = paid + params.noise * jax.random.normal(key, (), real())
        return self.get_obs(state), state, reward, jnp.ones((), bool), {"undiscounted": paid}

    def get_obs(self, state: BanditState, params: Any = None, key: Any = None) -> Array:
        """The context, one-hot: f [contexts]."""
        return jax.nn.one_hot(state.context, self.contexts, dtype=real())

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """The arms."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """One-hot contexts."""
        return spaces.Box(0, 1, (self.contexts,), real())


def noisy_later(params: BanditParams, period: Array) -> BanditParams:
    """Rewards without noise in the first half of a run, and with noise in the second."""
    return params.replace(noise=jnp.where(period < _PERIODS // 2, 0.0, _NOISE))


def knobs(*more: float) -> tuple[Knob, ...]:
    """The learning rate, which can be set to `RATES` and to some more values."""
    return (Knob("learning_rate", to=(*RATES, *more)),)


def _runs_of(config: TrainConfig, **fields: Any) -> TrainingEnvironment:
    return TrainingEnvironment(config, knobs(), horizon=_PERIODS, start="config", metrics=(), **fields)


def _changing() -> TrainingEnvironment:
    config = TrainConfig(
        ContextualBandit(),
        hidden=(16,),
        learning_rate=0.01,
        exploration=0.3,
        exploration_final=0.3,
        instances=16,
        horizon=16,
        minibatch=64,
    )
    return _runs_of(config, period=2, episodes=64, worst=6.75, best=10.0, task=noisy_later)


def _chain() -> TrainingEnvironment:
    config = TrainConfig("Chain-v0", learning_rate=0.01, instances=2, horizon=8, minibatch=8)
    return _runs_of(config, period=1, episodes=16, best=0.8)


def _cart_pole() -> TrainingEnvironment:
    config = TrainConfig("CartPole-v1", hidden=(32,), learning_rate=1e-3)
    return _runs_of(config, period=12, episodes=8, worst=20.0, best=500.0)


def _breakout() -> TrainingEnvironment:
    config = TrainConfig("Breakout-MinAtar", learning_rate=1e-3)
    return _runs_of(config, period=8, episodes=16, best=10.0)


@dataclasses.dataclass(frozen=True)
class TrainingTask:
    """A kind of training run.

    Attributes:
        make: its environment.
        runs: training runs that each method may look at.
        tested: new runs for the test of what it has chosen.
    """

    make: Callable[[], TrainingEnvironment]
    runs: int
    tested: int


TASKS = {
    "changing": TrainingTask(_changing, 960, 64),
    "Chain": TrainingTask(_chain, 960, 64),
    "CartPole": TrainingTask(_cart_pole, 160, 16),
}
"""A bandit whose rewards become noisy in the middle of a run, 128 steps of Chain and 98,304 steps of CartPole."""
TRANSFER = TrainingTask(_breakout, 0, 4)
"""Breakout of MinAtar, for traders that were trained on CartPole."""

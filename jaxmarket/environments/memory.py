"""Memory bits that agents read and write, for partially observable environments.

The method is from Kwee, Hutter and Schmidhuber (2001), "Market-Based Reinforcement Learning in Partially Observable
Worlds".
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Int32

from jaxmarket.environments.adapter import Adapter, adapt
from jaxmarket.environments.base import environment, spaces
from jaxmarket.types import Array, PyTree, real
from jaxmarket.validation import check_int

__all__ = ["Memory", "MemoryParams", "MemoryState"]


class MemoryState(struct.PyTreeNode):
    """State of `Memory`."""

    env_state: PyTree
    bits: Int32[Array, " bits"]  # 0 or 1
    truncated: Bool[Array, ""]  # whether the wrapped environment was truncated


class MemoryParams(struct.PyTreeNode):
    """Parameters of `Memory`."""

    env: PyTree  # parameters of the wrapped environment
    clocked: bool = struct.field(pytree_node=False)  # whether only its time limit truncates the wrapped environment

    @property
    def max_steps_in_episode(self) -> Any:
        """The time limit of the wrapped environment; None if another rule may truncate an episode."""
        return self.env.max_steps_in_episode if self.clocked else None


class Memory(environment.Environment[Any, Any]):
    """A wrapper that adds memory bits to an environment: observations contain them, and every action may set one.

    Observations are those of the wrapped environment, encoded and flattened, followed by the bits: f [n + bits]. An
    episode begins with all bits 0. Action a + P·w takes action a of the wrapped environment's P actions and writes w:
    0 writes nothing, and 1 + 2i + v sets bit i to the value v. The next observation shows the change. Rewards,
    termination, truncation, ``info["duration"]`` and ``info["undiscounted"]`` are those of the wrapped environment.

    Args:
        env: the environment to wrap, or its `Adapter`.
        bits: number of bits, at least 1.

    Instances compare and hash by value, if ``env`` does.

    Raises:
        ValueError: ``bits`` is not an integer >= 1, or `adapt` does not accept ``env``.
    """

    def __init__(self, env: Any, bits: int = 1) -> None:
        super().__init__()
        self.adapter: Adapter = adapt(env)
        self.bits = check_int("bits", bits)  # with zero bits the wrapper would be redundant

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Memory) and (self.adapter, self.bits) == (other.adapter, other.bits)

    def __hash__(self) -> int:
        return hash((self.adapter, self.bits))

    @property
    def name(self) -> str:
        """The name of the wrapped environment and the number of bits."""
        return f"{self.adapter.name} with {self.bits} bit{'s' * (self.bits > 1)}"

    @property
    def gamma(self) -> float | None:
        """The discount of the wrapped environment."""
        return self.adapter.gamma

    @property
    def num_actions(self) -> int:
        """P·(1 + 2·bits)."""
        return self.adapter.num_actions * (1 + 2 * self.bits)

    @property
    def default_params(self) -> Any:
        """The default parameters of the wrapped environment."""
        params = self.adapter.default_params
        return MemoryParams(env=params, clocked=self.adapter.longest_episode(params) is not None)

    def split(self, action: Any) -> tuple[Any, Any]:
        """Split an action into the action of the wrapped environment and the write operation w."""
        return action % self.adapter.num_actions, action // self.adapter.num_actions

    def reset_env(self, key: Array, params: MemoryParams) -> tuple[Array, MemoryState]:
        """Reset the wrapped environment and set all bits to 0."""
        return self.cleared(*self.adapter.reset(key, params.env))

    def cleared(self, obs: Array, env_state: PyTree) -> tuple[Array, MemoryState]:
        """The observation and the state with all bits 0, for those of the wrapped environment."""
        bits = jnp.zeros(self.bits, jnp.int32)
        return _joined(obs, bits), MemoryState(env_state=env_state, bits=bits, truncated=jnp.zeros((), bool))

    def step_env(
        self, key: Array, state: MemoryState, action: Any, params: MemoryParams
    ) -> tuple[Array, MemoryState, Array, Array, dict[Any, Any]]:
        """Step the wrapped environment and write to the memory."""
        inner, write = self.split(jnp.asarray(action, jnp.int32))
        after = self.adapter.step(key, state.env_state, inner, params.env)
        bit, value = (write - 1) // 2, (write - 1) % 2
        bits = jnp.where((write > 0) & (jnp.arange(self.bits) == bit), value, state.bits)
        info = {"duration": after.duration, "undiscounted": after.undiscounted}
        state = MemoryState(env_state=after.env_state, bits=bits, truncated=after.truncated)
        return _joined(after.obs, bits), state, after.reward, after.terminated, info

    def is_truncated(self, state: MemoryState, params: MemoryParams) -> Array:
        """Whether the wrapped environment was truncated."""
        return state.truncated

    @property
    def restricts_actions(self) -> bool:
        """Whether the wrapped environment does."""
        return self.adapter.restricts_actions

    def legal_actions(self, state: MemoryState, params: MemoryParams) -> Array:
        """The legal actions of the wrapped environment, each with every write operation: bool [P·(1 + 2·bits)]."""
        return jnp.tile(self.adapter.legal(state.env_state, params.env), 1 + 2 * self.bits)

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """Pairs of an action of the wrapped environment and a write operation."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """Encoded observations, without bounds."""
        obs, _ = jax.eval_shape(self.reset_env, jax.random.key(0), self.default_params)
        return spaces.Box(-jnp.inf, jnp.inf, obs.shape, real())

    def optimal_return(self, gamma: float | None = None) -> float:
        """The optimal return of the wrapped environment under full observation; NaN if it has none."""
        return self.adapter.optimal_return(gamma)


def _joined(obs: Array, bits: Array) -> Array:
    return jnp.concatenate([obs.reshape(-1), bits.astype(real())])

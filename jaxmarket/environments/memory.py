"""Memory that agents read and write, for partially observable environments.

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
from jaxmarket.validation import check_float, check_int

__all__ = ["Memory", "MemoryParams", "MemoryState"]


class MemoryState(struct.PyTreeNode):
    """State of `Memory`."""

    env_state: PyTree
    registers: Int32[Array, " registers"]  # symbols, from 0
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
    """A wrapper that adds registers to an environment: observations contain them, and every action may set one.

    A register contains one of K symbols; with K = 2 it is a bit. Observations are those of the wrapped environment,
    encoded and flattened, followed by K - 1 numbers for each register, of which the one of its symbol is 1, and none
    for symbol 0: f [n + registers · (K - 1)]. An episode begins with symbol 0 in all registers. Action a + P·w takes
    action a of the wrapped environment's P actions and writes w: 0 writes nothing, and 1 + K·i + v sets register i to
    the symbol v. The next observation shows the change. Rewards, termination, truncation, ``info["duration"]`` and
    ``info["undiscounted"]`` are those of the wrapped environment, less the price of writing.

    Args:
        env: the environment to wrap, or its `Adapter`.
        registers: number of registers, at least 1.
        symbols: K, at least 2.
        write_price: what every write costs, in units of reward, at least 0.

    Instances compare and hash by value, if ``env`` does.

    Raises:
        ValueError: an argument is out of range, or `adapt` does not accept ``env``.
    """

    def __init__(self, env: Any, registers: int = 1, *, symbols: int = 2, write_price: float = 0.0) -> None:
        super().__init__()
        self.adapter: Adapter = adapt(env)
        self.registers = check_int("registers", registers)  # without registers the wrapper would be redundant
        self.symbols = check_int("symbols", symbols, 2)
        self.write_price = check_float("write_price", write_price, 0.0)

    @property
    def _fields(self) -> tuple[Any, ...]:
        return self.adapter, self.registers, self.symbols, self.write_price

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Memory) and self._fields == other._fields

    def __hash__(self) -> int:
        return hash(self._fields)

    @property
    def name(self) -> str:
        """The name of the wrapped environment, and the memory."""
        plural = "s" * (self.registers > 1)
        memory = f"bit{plural}" if self.symbols == 2 else f"register{plural} of {self.symbols} symbols"
        price = f", {self.write_price:g} for a write" if self.write_price else ""
        return f"{self.adapter.name} with {self.registers} {memory}{price}"

    @property
    def gamma(self) -> float | None:
        """The discount of the wrapped environment."""
        return self.adapter.gamma

    @property
    def _writes(self) -> int:
        """The number of write operations, that which writes nothing included."""
        return 1 + self.symbols * self.registers

    @property
    def num_actions(self) -> int:
        """P·(1 + K·registers)."""
        return self.adapter.num_actions * self._writes

    @property
    def default_params(self) -> Any:
        """The default parameters of the wrapped environment."""
        params = self.adapter.default_params
        return MemoryParams(env=params, clocked=self.adapter.longest_episode(params) is not None)

    def split(self, action: Any) -> tuple[Any, Any]:
        """Split an action into the action of the wrapped environment and the write operation w."""
        return action % self.adapter.num_actions, action // self.adapter.num_actions

    def reset_env(self, key: Array, params: MemoryParams) -> tuple[Array, MemoryState]:
        """Reset the wrapped environment and set all registers to 0."""
        return self.cleared(*self.adapter.reset(key, params.env))

    def cleared(self, obs: Array, env_state: PyTree) -> tuple[Array, MemoryState]:
        """The observation and the state with 0 in all registers, for those of the wrapped environment."""
        registers = jnp.zeros(self.registers, jnp.int32)
        state = MemoryState(env_state=env_state, registers=registers, truncated=jnp.zeros((), bool))
        return self._joined(obs, registers), state

    def step_env(
        self, key: Array, state: MemoryState, action: Any, params: MemoryParams
    ) -> tuple[Array, MemoryState, Array, Array, dict[Any, Any]]:
        """Step the wrapped environment and write to the memory."""
        inner, write = self.split(jnp.asarray(action, jnp.int32))
        after = self.adapter.step(key, state.env_state, inner, params.env)
        register, symbol = (write - 1) // self.symbols, (write - 1) % self.symbols
        written = (write > 0) & (jnp.arange(self.registers) == register)
        registers = jnp.where(written, symbol, state.registers)
        price = jnp.where(write > 0, self.write_price, 0.0).astype(after.reward.dtype)
        info = {"duration": after.duration, "undiscounted": after.undiscounted - price}
        state = MemoryState(env_state=after.env_state, registers=registers, truncated=after.truncated)
        return self._joined(after.obs, registers), state, after.reward - price, after.terminated, info

    def is_truncated(self, state: MemoryState, params: MemoryParams) -> Array:
        """Whether the wrapped environment was truncated."""
        return state.truncated

    @property
    def restricts_actions(self) -> bool:
        """Whether the wrapped environment does."""
        return self.adapter.restricts_actions

    def legal_actions(self, state: MemoryState, params: MemoryParams) -> Array:
        """The legal actions of the wrapped environment, each with every write operation: bool [num_actions]."""
        return jnp.tile(self.adapter.legal(state.env_state, params.env), self._writes)

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """Pairs of an action of the wrapped environment and a write operation."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """Encoded observations, without bounds."""
        obs, _ = jax.eval_shape(self.reset_env, jax.random.key(0), self.default_params)
        return spaces.Box(-jnp.inf, jnp.inf, obs.shape, real())

    def optimal_return(self, gamma: float | None = None) -> float:
        """The optimal return of the wrapped environment under full observation, without writes; NaN if it has none."""
        return self.adapter.optimal_return(gamma)

    def _joined(self, obs: Array, registers: Array) -> Array:
        shown = registers[:, None] == jnp.arange(1, self.symbols)
        return jnp.concatenate([obs.reshape(-1), shown.reshape(-1).astype(real())])

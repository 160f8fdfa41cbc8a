"""Memory that agents read and write: what is seen only once can be acted upon later.

The idea is that of Kwee, Hutter and Schmidhuber (2001), "Market-Based Reinforcement Learning in Partially Observable
Worlds".
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces
from jaxtyping import Bool, Int32

from jaxmarket.environments.adapter import Adapter, adapt
from jaxmarket.types import Array, PyTree, real
from jaxmarket.validation import check_int

__all__ = ["Memory", "MemoryParams", "MemoryState"]


class MemoryState(struct.PyTreeNode):
    """State of `Memory`."""

    env_state: PyTree
    bits: Int32[Array, " bits"]  # 0 or 1
    truncated: Bool[Array, ""]  # whether the environment beneath was cut


class MemoryParams(struct.PyTreeNode):
    """Parameters of `Memory`."""

    env: PyTree  # of the environment beneath
    clocked: bool = struct.field(pytree_node=False)  # whether that is known to be cut by its clock alone

    @property
    def max_steps_in_episode(self) -> Any:
        """That of the environment beneath; None if something else may cut an episode."""
        return self.env.max_steps_in_episode if self.clocked else None


class Memory(environment.Environment[Any, Any]):
    """An environment with a few bits that every agent observes and may set when it acts.

    Observations are those of the environment beneath, encoded and flattened, followed by the bits: f [n + bits]. An
    episode begins with all bits 0. Action a + P·w is action a of the P beneath, and w what is written with it: 0
    nothing, 1 + 2i + v the value v to bit i. It is seen from the next step on. Rewards and ends are those beneath, as
    are ``info["duration"]`` and ``info["undiscounted"]``.

    Args:
        env: the environment beneath, or its `Adapter`.
        bits: how many.

    Instances compare and hash by value, if ``env`` does.

    Raises:
        ValueError: ``bits`` is no number >= 1, or ``env`` is not for an `Adapter`.
    """

    def __init__(self, env: Any, bits: int = 1) -> None:
        super().__init__()
        self.adapter: Adapter = adapt(env)
        self.bits = check_int("bits", bits)  # for zero bits use the environment itself

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Memory) and (self.adapter, self.bits) == (other.adapter, other.bits)

    def __hash__(self) -> int:
        return hash((self.adapter, self.bits))

    @property
    def name(self) -> str:
        """The name of the environment beneath, and that there is memory."""
        return f"{self.adapter.name} with {self.bits} bit{'s' * (self.bits > 1)}"

    @property
    def gamma(self) -> float | None:
        """The discount of the environment beneath."""
        return self.adapter.gamma

    @property
    def num_actions(self) -> int:
        """P·(1 + 2·bits)."""
        return self.adapter.num_actions * (1 + 2 * self.bits)

    @property
    def default_params(self) -> Any:
        """Those of the environment beneath."""
        params = self.adapter.default_params
        return MemoryParams(env=params, clocked=self.adapter.longest_episode(params) is not None)

    def split(self, action: Any) -> tuple[Any, Any]:
        """An action's two parts: the action beneath, and what is written."""
        return action % self.adapter.num_actions, action // self.adapter.num_actions

    def reset_env(self, key: Array, params: MemoryParams) -> tuple[Array, MemoryState]:
        """A first state of the environment beneath, and empty memory."""
        obs, env_state = self.adapter.reset(key, params.env)
        bits = jnp.zeros(self.bits, jnp.int32)
        return _joined(obs, bits), MemoryState(env_state=env_state, bits=bits, truncated=jnp.zeros((), bool))

    def step_env(
        self, key: Array, state: MemoryState, action: Any, params: MemoryParams
    ) -> tuple[Array, MemoryState, Array, Array, dict[Any, Any]]:
        """Act, and write."""
        inner, write = self.split(jnp.asarray(action, jnp.int32))
        after = self.adapter.step(key, state.env_state, inner, params.env)
        bit, value = (write - 1) // 2, (write - 1) % 2
        bits = jnp.where((write > 0) & (jnp.arange(self.bits) == bit), value, state.bits)
        info = {"duration": after.duration, "undiscounted": after.undiscounted}
        state = MemoryState(env_state=after.env_state, bits=bits, truncated=after.truncated)
        return _joined(after.obs, bits), state, after.reward, after.terminated, info

    def is_truncated(self, state: MemoryState, params: MemoryParams) -> Array:
        """Whether the environment beneath was cut."""
        return state.truncated

    def legal_actions(self, state: MemoryState, params: MemoryParams) -> Array:
        """What is legal beneath, whatever is written: bool [P·(1 + 2·bits)]."""
        return jnp.tile(self.adapter.legal(state.env_state, params.env), 1 + 2 * self.bits)

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """Actions beneath, and what is written with them."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """Encoded observations; what is beneath is not known to have limits."""
        obs, _ = jax.eval_shape(self.reset_env, jax.random.key(0), self.default_params)
        return spaces.Box(-jnp.inf, jnp.inf, obs.shape, real())

    def optimal_return(self, gamma: float | None = None) -> float:
        """That of the environment beneath, whose states hold all there is to know; NaN where it is not known."""
        return self.adapter.optimal_return(gamma)


def _joined(obs: Array, bits: Array) -> Array:
    return jnp.concatenate([obs.reshape(-1), bits.astype(real())])

"""The multiplexer, a Boolean function that an agent learns from single examples.

It is a standard benchmark of classifier systems. The reward is that of Wilson (1995), "Classifier Fitness Based on
Accuracy", with 1 instead of 1000.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Int32

from jaxmarket.environments.base import environment, spaces
from jaxmarket.types import Array, real
from jaxmarket.validation import check_int

__all__ = ["Multiplexer", "MultiplexerParams", "MultiplexerState"]

_MAX_ADDRESS = 5


class MultiplexerState(struct.PyTreeNode):
    """State of `Multiplexer`."""

    bits: Int32[Array, " n"]  # 0 or 1: the address, highest bit first, then the data
    time: Int32[Array, ""]  # steps since the reset


class MultiplexerParams(struct.PyTreeNode):
    """Parameters of `Multiplexer`."""

    max_steps_in_episode: int = 1


class Multiplexer(environment.Environment[Any, Any]):
    """A one-step task: the correct action is the value of the data bit that the address bits select.

    Observations are n = k + 2^k uniformly random bits, f [n]: k address bits, then the data bits. The action that
    equals the selected data bit pays 1, the other one 0, and the episode terminates.

    Args:
        address: k, from 1 to 5, for multiplexers of 3, 6, 11, 20 and 37 bits.

    Instances compare and hash by value.

    Raises:
        ValueError: ``address`` is out of range.
    """

    def __init__(self, address: int = 2) -> None:
        super().__init__()
        self.address = check_int("address", address, 1, _MAX_ADDRESS)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Multiplexer) and self.address == other.address

    def __hash__(self) -> int:
        return hash((Multiplexer, self.address))

    @property
    def bits(self) -> int:
        """n, the number of observed bits."""
        return self.address + 2**self.address

    @property
    def name(self) -> str:
        """The environment's id."""
        return f"Multiplexer{self.bits}-v0"

    @property
    def num_actions(self) -> int:
        """Two: the values of a data bit."""
        return 2

    @property
    def default_params(self) -> Any:
        """The time limit of one step."""
        return MultiplexerParams()

    def reset_env(self, key: Array, params: MultiplexerParams) -> tuple[Array, MultiplexerState]:
        """Draw n uniformly random bits."""
        bits = jax.random.bernoulli(key, shape=(self.bits,)).astype(jnp.int32)
        state = MultiplexerState(bits=bits, time=jnp.zeros((), jnp.int32))
        return self.get_obs(state), state

    def step_env(
        self, key: Array, state: MultiplexerState, action: Any, params: MultiplexerParams
    ) -> tuple[Array, MultiplexerState, Array, Array, dict[Any, Any]]:
        """Compare the action with the selected data bit; the episode terminates."""
        del key
        reward = (jnp.asarray(action) == self.answer(state.bits)).astype(real())
        state = state.replace(time=state.time + 1)
        return self.get_obs(state), state, reward, jnp.ones((), bool), {}

    def answer(self, bits: Array) -> Array:
        """The selected data bit, i32 [...], for bits i32 [..., n]."""
        address, data = bits[..., : self.address], bits[..., self.address :]
        weights = 2 ** jnp.arange(self.address - 1, -1, -1, dtype=jnp.int32)
        where = jnp.sum(address * weights, -1, keepdims=True, dtype=jnp.int32)
        return jnp.take_along_axis(data, where, -1)[..., 0]

    def get_obs(self, state: MultiplexerState, params: Any = None, key: Any = None) -> Array:
        """The bits: f [n]."""
        return state.bits.astype(real())

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """0 and 1."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """Vectors of n bits."""
        return spaces.Box(0, 1, (self.bits,), real())

    def optimal_return(self, gamma: float | None = None) -> float:
        """The optimal return, 1."""
        del gamma
        return 1.0

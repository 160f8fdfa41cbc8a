"""The T-maze, in which an agent must remember what it saw in the first step.

From Bakker (2002), "Reinforcement Learning with Long Short-Term Memory", with its observations and rewards.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Int32

from jaxmarket.environments.base import environment, spaces
from jaxmarket.types import Array, real
from jaxmarket.validation import check_int

__all__ = ["TMaze", "TMazeParams", "TMazeState"]

_NORTH, _EAST, _SOUTH, _WEST = range(4)
_FOUND, _LOST = 4.0, -0.1  # rewards: the goal; a step that does not move, or the wrong end of the T


class TMazeState(struct.PyTreeNode):
    """State of `TMaze`."""

    position: Int32[Array, ""]  # 0 is the first cell, ``length`` the junction
    north: Bool[Array, ""]  # whether the goal is north of the junction
    time: Int32[Array, ""]  # steps since the reset


class TMazeParams(struct.PyTreeNode):
    """Parameters of `TMaze`."""

    max_steps_in_episode: int


class TMaze(environment.Environment[Any, Any]):
    """A corridor to a junction, where the goal is north or south, as only the first cell shows.

    Observations are f [3]: (0, 1, 1) in the first cell if the goal is north, (1, 1, 0) if it is south, (1, 0, 1) in the
    corridor, (0, 1, 0) at the junction. Actions are north, east, south and west. At the junction, north and south
    terminate the episode, with the reward 4 at the goal and -.1 elsewhere. A step into a wall costs .1; all others pay
    nothing.

    Args:
        length: steps from the first cell to the junction, at least 1.
        limit: environment steps after which an episode is truncated; by default four times the shortest way.

    Instances compare and hash by value.

    Raises:
        ValueError: ``length`` is less than 1, or ``limit`` too small to reach the goal.
    """

    starts = ("the goal is south", "the goal is north")
    """Names of the first states."""

    def __init__(self, length: int = 10, limit: int | None = None) -> None:
        super().__init__()
        self.length = check_int("length", length)
        self.limit = 4 * (self.length + 1) if limit is None else check_int("limit", limit, self.length + 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TMaze) and (self.length, self.limit) == (other.length, other.limit)

    def __hash__(self) -> int:
        return hash((TMaze, self.length, self.limit))

    @property
    def name(self) -> str:
        """The environment's id."""
        return f"TMaze{self.length}-v0"

    @property
    def num_actions(self) -> int:
        """Four: north, east, south and west."""
        return 4

    @property
    def default_params(self) -> Any:
        """The time limit."""
        return TMazeParams(max_steps_in_episode=self.limit)

    def first_states(self) -> TMazeState:
        """Both states in which episodes begin: leaves [2]."""
        zeros = jnp.zeros(2, jnp.int32)
        return TMazeState(position=zeros, north=jnp.asarray([False, True]), time=zeros)

    def reset_env(self, key: Array, params: TMazeParams) -> tuple[Array, TMazeState]:
        """Put the agent into the first cell and the goal to either side."""
        zero = jnp.zeros((), jnp.int32)
        state = TMazeState(position=zero, north=jax.random.bernoulli(key), time=zero)
        return self.get_obs(state), state

    def step_env(
        self, key: Array, state: TMazeState, action: Any, params: TMazeParams
    ) -> tuple[Array, TMazeState, Array, Array, dict[Any, Any]]:
        """Move, or turn at the junction; `is_truncated` applies the time limit."""
        del key
        action = jnp.asarray(action)
        junction = state.position == self.length
        turned = junction & ((action == _NORTH) | (action == _SOUTH))
        moved = jnp.where(action == _EAST, 1, 0) - jnp.where(action == _WEST, 1, 0)
        position = jnp.clip(state.position + moved, 0, self.length).astype(jnp.int32)
        found = turned & ((action == _NORTH) == state.north)
        stayed = position == state.position
        reward = jnp.where(found, _FOUND, jnp.where(stayed, _LOST, 0.0)).astype(real())
        state = TMazeState(position=position, north=state.north, time=state.time + 1)
        return self.get_obs(state), state, reward, turned, {}

    def get_obs(self, state: TMazeState, params: Any = None, key: Any = None) -> Array:
        """What the cell shows: f [3]."""
        cue = jnp.where(state.north, jnp.array([0, 1, 1]), jnp.array([1, 1, 0]))
        seen = jnp.where(state.position == self.length, jnp.array([0, 1, 0]), jnp.array([1, 0, 1]))
        return jnp.where(state.position == 0, cue, seen).astype(real())

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """North, east, south and west."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """Vectors of three bits."""
        return spaces.Box(0, 1, (3,), real())

    def optimal_return(self, gamma: float | None = None) -> float:
        """The optimal return with memory, 4."""
        del gamma
        return _FOUND

    def memoryless_return(self) -> float:
        """The highest expected return of a policy without memory, which must guess at the junction."""
        return (_FOUND + _LOST) / 2

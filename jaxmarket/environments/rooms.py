"""Two Rooms (Chang et al. 2020, §6.2): a grid world with egocentric observations, and its five tasks.

The rules are those of MiniGrid (Chevalier-Boisvert et al. 2023). There are only 148 states, so the rules are plain
Python functions, tabulated for all states and actions at construction; a step is two table look-ups.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Bool, Int32, UInt8

from jaxmarket.environments.base import environment, spaces
from jaxmarket.types import Array, real

__all__ = ["ACTIONS", "PLACES", "TASKS", "Place", "RoomsParams", "RoomsState", "Task", "TwoRooms", "step_rule", "view"]

WIDTH, HEIGHT, SIGHT = 9, 5, 7
DOOR, BLUE, GREEN = (4, 2), (7, 1), (7, 3)
ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
_DONE = ACTIONS.index("done")
_AHEAD = ((1, 0), (0, 1), (-1, 0), (0, -1))  # east, south, west, north

# MiniGrid's (object, colour, state).
_UNSEEN, _EMPTY, _WALL = (0, 0, 0), (1, 0, 0), (2, 5, 0)
_GREEN, _BLUE = (8, 1, 0), (8, 2, 0)
_OPEN, _CLOSED = (4, 0, 0), (4, 0, 1)


class Place(NamedTuple):
    """One of the 148 states: position and direction of the agent, and whether the door is open."""

    x: int
    y: int
    direction: int  # 0 east, 1 south, 2 west, 3 north
    door_open: bool = False

    @property
    def ahead(self) -> tuple[int, int]:
        """The cell in front of the agent."""
        dx, dy = _AHEAD[self.direction]
        return self.x + dx, self.y + dy


def cell(position: tuple[int, int], door_open: bool) -> tuple[int, int, int]:
    """The content of the cell (x, y), in MiniGrid's encoding."""
    x, y = position
    if position == DOOR:
        return _OPEN if door_open else _CLOSED
    if not (0 < x < WIDTH - 1 and 0 < y < HEIGHT - 1) or x == DOOR[0]:
        return _WALL
    return {GREEN: _GREEN, BLUE: _BLUE}.get(position, _EMPTY)


def _passable(content: tuple[int, ...]) -> bool:
    return content not in (_WALL, _CLOSED)


def step_rule(place: Place, action: int) -> Place:
    """The state after an action. ``pickup``, ``drop`` (no object can be carried) and ``done`` leave it unchanged."""
    name = ACTIONS[action]
    if name in ("left", "right"):
        turn = 1 if name == "right" else -1
        return place._replace(direction=(place.direction + turn) % 4)
    if name == "forward" and _passable(cell(place.ahead, place.door_open)):
        return place._replace(x=place.ahead[0], y=place.ahead[1])
    if name == "toggle" and place.ahead == DOOR:
        return place._replace(door_open=not place.door_open)
    return place


def position_of(place: Place, i: int, j: int) -> tuple[int, int]:
    """The cell (x, y) that the agent's `view` shows at [i, j]; it may lie outside the grid."""
    forward, rightward = _AHEAD[place.direction], _AHEAD[(place.direction + 1) % 4]
    side, depth = i - SIGHT // 2, SIGHT - 1 - j
    return (
        place.x + side * rightward[0] + depth * forward[0],
        place.y + side * rightward[1] + depth * forward[1],
    )


def view(place: Place) -> np.ndarray:
    """The agent's observation: u8 [7, 7, 3], MiniGrid's encoding of the cells ahead of the agent and beside it.

    The first axis runs from left to right, the second from far to near. The agent is at (3, 6), and its own cell is
    shown as empty. Walls and a closed door hide the cells behind them.
    """
    seen = np.zeros((SIGHT, SIGHT, 3), np.uint8)
    for i in range(SIGHT):
        for j in range(SIGHT):
            seen[i, j] = cell(position_of(place, i, j), place.door_open)
    seen[~_visible(seen)] = _UNSEEN
    seen[SIGHT // 2, SIGHT - 1] = _EMPTY
    return seen


def _visible(seen: np.ndarray) -> np.ndarray:
    """MiniGrid's visibility rule: it spreads sideways and ahead from every visible cell that is not an obstacle."""
    clear = np.array([[_passable(tuple(int(v) for v in content)) for content in column] for column in seen])
    lit = np.zeros((SIGHT, SIGHT), bool)
    lit[SIGHT // 2, SIGHT - 1] = True
    for j in reversed(range(SIGHT)):
        for step in (1, -1):
            rows = range(SIGHT - 1) if step == 1 else reversed(range(1, SIGHT))
            for i in rows:
                if lit[i, j] and clear[i, j]:
                    lit[i + step, j] = True
                    if j > 0:
                        lit[i + step, j - 1] = lit[i, j - 1] = True
    return lit


_ROOMS = {"left": range(1, DOOR[0]), "right": range(DOOR[0] + 1, WIDTH - 1)}
_CELLS = [(x, y) for y in range(1, HEIGHT - 1) for x in range(1, WIDTH - 1) if x != DOOR[0] or (x, y) == DOOR]
# The agent cannot close the door while it is in the doorway, so that state is excluded.
PLACES = tuple(
    Place(x, y, direction, door_open)
    for (x, y) in _CELLS
    for direction in range(4)
    for door_open in (False, True)
    if door_open or (x, y) != DOOR
)
_INDEX = {place: i for i, place in enumerate(PLACES)}


@dataclasses.dataclass(frozen=True)
class Task:
    """A goal and a start room. Episodes start at a random cell and direction of that room, with the door closed."""

    goal: str  # "green" or "blue": stand on that tile; "red": stand in the right room with the door open
    room: str  # "left" or "right"

    def __post_init__(self) -> None:
        for field, known in (("goal", ("red", "green", "blue")), ("room", tuple(_ROOMS))):
            if getattr(self, field) not in known:
                raise ValueError(f"{field}: expected one of {', '.join(known)}, got {getattr(self, field)!r}")

    def achieved(self, place: Place) -> bool:
        """Whether ``done`` succeeds in this state."""
        if self.goal == "red":
            return place.door_open and place.x in _ROOMS["right"]
        return (place.x, place.y) == {"green": GREEN, "blue": BLUE}[self.goal]

    def starts(self, place: Place) -> bool:
        """Whether an episode may start in this state."""
        return place.x in _ROOMS[self.room] and not place.door_open


TASKS = {
    "TwoRooms-Red-v0": Task("red", "left"),
    "TwoRooms-Green-v0": Task("green", "right"),
    "TwoRooms-Blue-v0": Task("blue", "right"),
    "TwoRooms-GreenTask-v0": Task("green", "left"),
    "TwoRooms-BlueTask-v0": Task("blue", "left"),
}
"""Tasks by id: the three tasks on which options are trained, the pre-training task and the transfer task."""


class RoomsState(struct.PyTreeNode):
    """State of `TwoRooms`."""

    index: Int32[Array, ""]  # of the place in `PLACES`
    time: Int32[Array, ""]  # steps since the reset


class RoomsParams(struct.PyTreeNode):
    """The rules of `TwoRooms`, tabulated for its 148 states."""

    successors: Int32[Array, "148 7"]
    views: UInt8[Array, "148 7 7 3"]
    achieved: Bool[Array, "148"]  # where ``done`` succeeds
    starts: Int32[Array, " n"]  # equally likely initial states
    max_steps_in_episode: int = 50


class TwoRooms(environment.Environment[Any, Any]):
    """Two 3 × 3 rooms joined by a closed, unlocked door; the agent succeeds by the action ``done`` in a goal state.

    Success at step t pays 1 - .9 t / 50 and terminates the episode. All other rewards are 0, and ``done`` in any other
    state has no effect.

    Args:
        task: the id of one of the `TASKS`, or a `Task`.

    Instances compare and hash by value.

    Raises:
        ValueError: the id is unknown.
    """

    def __init__(self, task: Task | str = "TwoRooms-GreenTask-v0") -> None:
        super().__init__()
        if not isinstance(task, Task) and task not in TASKS:
            raise ValueError(f"task: unknown task {task!r}; choose from {', '.join(TASKS)}, or pass a Task")
        self.task = TASKS[task] if isinstance(task, str) else task
        self._name = task if isinstance(task, str) else f"TwoRooms-{task.goal}-from-{task.room}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TwoRooms) and (self.task, self.name) == (other.task, other.name)

    def __hash__(self) -> int:
        return hash((self.task, self.name))

    @property
    def name(self) -> str:
        """The environment's id, or a name made from the task."""
        return self._name

    @property
    def num_actions(self) -> int:
        """Seven, the number of `ACTIONS`."""
        return len(ACTIONS)

    @property
    def default_params(self) -> Any:
        """The tabulated rules and the limit of 50 steps."""
        return RoomsParams(
            successors=jnp.asarray(_successors()),
            views=jnp.asarray(_views()),
            achieved=jnp.asarray([self.task.achieved(place) for place in PLACES]),
            starts=jnp.asarray(np.flatnonzero([self.task.starts(place) for place in PLACES]), jnp.int32),
        )

    def reset_env(self, key: Array, params: RoomsParams) -> tuple[Array, RoomsState]:
        """Start at a random cell and direction of the task's room."""
        index = params.starts[jax.random.randint(key, (), 0, params.starts.shape[0])]
        state = RoomsState(index=index, time=jnp.zeros((), jnp.int32))
        return self.get_obs(state, params), state

    def step_env(
        self, key: Array, state: RoomsState, action: Any, params: RoomsParams
    ) -> tuple[Array, RoomsState, Array, Array, dict[Any, Any]]:
        """Take one action; `is_truncated` applies the time limit."""
        del key
        time = state.time + 1
        success = params.achieved[state.index] & (action == _DONE)
        reward = jnp.where(success, 1 - 0.9 * time.astype(real()) / params.max_steps_in_episode, 0)
        state = RoomsState(index=params.successors[state.index, action], time=time)
        return self.get_obs(state, params), state, reward, success, {}

    def get_obs(self, state: RoomsState, params: Any = None, key: Any = None) -> Array:
        """The agent's view: u8 [7, 7, 3]."""
        params = self.default_params if params is None else params
        return params.views[state.index]

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """The seven `ACTIONS`."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """MiniGrid's codes of objects, colours and states, from 0 to 10; they are categories, not intensities."""
        return spaces.Box(0, 10, (SIGHT, SIGHT, 3), jnp.uint8)

    def state_at(self, place: Place, time: int = 0) -> RoomsState:
        """The environment state of a `Place`.

        Raises:
            ValueError: the place is not one of the 148 `PLACES`.
        """
        if place not in _INDEX:
            raise ValueError(
                f"place: {place} is not a state; the cells are x 1-3 and 5-7 with y 1-3, and (4, 2) if the door is open"
            )
        return RoomsState(index=jnp.asarray(_INDEX[place], jnp.int32), time=jnp.asarray(time, jnp.int32))

    def place_of(self, state: RoomsState) -> Place:
        """The `Place` of a state; not for use inside ``jit``."""
        return PLACES[int(state.index)]

    def optimal_return(self, gamma: float | None = None) -> float:
        """Exact mean return of the shortest paths from all starts, including the action ``done``."""
        del gamma
        params = jax.device_get(self.default_params)
        steps = np.where(params.achieved, 1, np.inf)
        while True:
            shorter = np.minimum(steps, 1 + steps[params.successors].min(1))
            if (shorter == steps).all():
                break
            steps = shorter
        return float(np.mean(1 - 0.9 * steps[params.starts] / params.max_steps_in_episode))


@functools.cache
def _successors() -> np.ndarray:
    rows = [[_INDEX[step_rule(place, action)] for action in range(len(ACTIONS))] for place in PLACES]
    return np.array(rows, np.int32)


@functools.cache
def _views() -> np.ndarray:
    return np.stack([view(place) for place in PLACES])

"""Mazes with local observations: Woods1 (Wilson 1994), Maze4 to Maze6, and Woods101, which is partially observable.

Woods1 is from "ZCS: A Zeroth Level Classifier System", Maze4 to Maze6 from work on XCS and anticipatory classifier
systems (Lanzi 1999; Butz 2001). Woods101 is McCallum's maze as described by Cliff and Ross (1994, "Adding Temporary
Memory to ZCS"). Mazes have few cells, so their rules are plain Python functions, tabulated for
all cells and moves at construction; a step is two table look-ups.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Bool, Float, Int32

from jaxmarket.environments.base import environment, spaces
from jaxmarket.types import Array, cached_property, real
from jaxmarket.validation import check_bool, check_int, short_repr

__all__ = [
    "COMPASS",
    "DIRECTIONS",
    "Maze",
    "Maze4",
    "Maze5",
    "Maze6",
    "MazeParams",
    "MazeState",
    "Woods1",
    "Woods101",
]

COMPASS = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
"""(Row, column) of the eight neighbours and of the eight moves: clockwise from north."""

DIRECTIONS = ("N", "NE", "E", "SE", "S", "SW", "W", "NW")
"""Names of `COMPASS`."""

_FREE, _ROCK, _FOOD = ".OF"
_CODE = {_FREE: (0, 0), _ROCK: (1, 0), _FOOD: (1, 1)}  # not free, food

Cell = tuple[int, int]


class MazeState(struct.PyTreeNode):
    """State of a `Maze`."""

    index: Int32[Array, ""]  # of the cell in `Maze.places`
    time: Int32[Array, ""]  # steps since the reset


class MazeParams(struct.PyTreeNode):
    """The rules of a `Maze`, tabulated for its S cells."""

    successors: Int32[Array, "S moves"]
    views: Float[Array, "S 16"]
    food: Bool[Array, " S"]
    starts: Int32[Array, " n"]  # equally likely initial cells
    max_steps_in_episode: int


class Maze(environment.Environment[Any, Any]):
    """A maze in which an agent observes only the neighbouring cells; food pays 1 and terminates the episode.

    Observations are f [16] with entries 0 or 1, for 4 and 8 moves alike: two bits for each of the eight neighbours
    (`COMPASS`), "not free" and "food". As in Wilson's paper, a free cell is 00, a rock 10 and food 11. A move into a
    rock leaves the agent where it is. Outside a maze that does not wrap around there is rock.

    Args:
        layout: rows of ``.`` (free), ``O`` (rock) and ``F`` (food), from north to south.
        moves: 8 (`COMPASS`), or 4: north, east, south, west.
        wrap: whether opposite edges are connected.
        limit: steps after which an episode is truncated.
        starts: equally likely initial cells, (row, column); by default all free cells.
        name: shown in tables.

    Instances compare and hash by value.

    Raises:
        ValueError: the layout has unknown characters, rows of different lengths, or a free cell without a path to
            food; a start is not a free cell; or a number is out of range.
    """

    def __init__(
        self,
        layout: Sequence[str],
        *,
        moves: int = 8,
        wrap: bool = False,
        limit: int = 50,
        starts: Sequence[Cell] | None = None,
        name: str = "Maze",
    ) -> None:
        super().__init__()
        if not isinstance(layout, Sequence) or not all(isinstance(row, str) for row in layout):
            raise ValueError(f"layout: expected a sequence of strings, one per row, got {short_repr(layout)}")
        self.layout = tuple(layout)
        _check_layout(self.layout)
        if check_int("moves", moves) not in (4, 8):
            raise ValueError(f"moves: expected 4 or 8, got {short_repr(moves)}")
        self.moves = COMPASS if moves == 8 else COMPASS[::2]
        self.wrap, self.limit, self._name = check_bool("wrap", wrap), check_int("limit", limit), name
        grid = np.array([list(row) for row in self.layout])
        self.places: tuple[Cell, ...] = tuple((int(r), int(c)) for r, c in np.argwhere(grid != _ROCK))
        """The S cells that are not rock, row by row."""
        self.free: tuple[Cell, ...] = tuple(cell for cell in self.places if self._at(cell) == _FREE)
        """The cells without rock or food, row by row."""
        try:
            self.starts: tuple[Cell, ...] = self.free if starts is None else tuple((int(r), int(c)) for r, c in starts)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"starts: expected cells (row, column), got {short_repr(starts)}") from error
        if not self.starts:
            raise ValueError("starts: expected at least one free cell, got none")
        for cell in self.starts:
            if cell not in self.free:
                raise ValueError(f"starts: expected free cells (row, column), got {cell}")
        self._index = {place: i for i, place in enumerate(self.places)}
        for place, steps in zip(self.places, self.distances, strict=True):
            if not np.isfinite(steps):
                raise ValueError(f"layout: no path leads from {place} to food; make the cell rock, or add a path")
        self._value = (self.layout, self.moves, self.wrap, limit, self.starts, name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Maze) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def _at(self, cell: Cell) -> str:
        (row, column), (rows, columns) = cell, (len(self.layout), len(self.layout[0]))
        if self.wrap:
            return self.layout[row % rows][column % columns]
        inside = 0 <= row < rows and 0 <= column < columns
        return self.layout[row][column] if inside else _ROCK

    def move(self, cell: Cell, action: int) -> Cell:
        """The cell after a move from ``cell``."""
        down, right = self.moves[action]
        ahead = cell[0] + down, cell[1] + right
        if self._at(ahead) == _ROCK:
            return cell
        return ahead[0] % len(self.layout), ahead[1] % len(self.layout[0])

    def view(self, cell: Cell) -> np.ndarray:
        """The observation at a cell: i64 [16]."""
        row, column = cell
        return np.array([_CODE[self._at((row + down, column + right))] for down, right in COMPASS]).reshape(-1)

    @staticmethod
    def describe(view: Any) -> str:
        """An observation [16] as text: the free neighbours, clockwise from north, and which of them are food."""
        cells = zip(DIRECTIONS, np.asarray(view).reshape(-1, 2), strict=True)
        return " ".join(name + ":food" * bool(food) for name, (blocked, food) in cells if food or not blocked)

    def first_states(self) -> MazeState:
        """The states in which episodes begin, leaves [starts], in the order of ``starts``."""
        index = self.default_params.starts
        return MazeState(index=index, time=jnp.zeros(index.shape, jnp.int32))

    @cached_property
    def successors(self) -> np.ndarray:
        """The cell after each move from each cell, as an index of `places`: i64 [S, moves]."""
        return np.array([[self._index[self.move(cell, a)] for a in range(self.num_actions)] for cell in self.places])

    @cached_property
    def distances(self) -> np.ndarray:
        """Length of the shortest path from each cell to food: f64 [S]."""
        steps = np.array([0.0 if self._at(place) == _FOOD else np.inf for place in self.places])
        while True:
            shorter = np.minimum(steps, 1 + steps[self.successors].min(1))
            if (shorter == steps).all():
                return steps
            steps = shorter

    def mean_shortest(self) -> float:
        """Length of the shortest path to food, averaged over the starts."""
        return float(np.mean([self.distances[self._index[cell]] for cell in self.starts]))

    def optimal_return(self, gamma: float | None = None) -> float:
        """Fraction of the starts from which food can be reached within the limit, if the agent observes its cell."""
        del gamma
        return float(np.mean([self.distances[self._index[cell]] <= self.limit for cell in self.starts]))

    def memoryless_return(self) -> float:
        """The highest mean return of a policy that depends only on the current observation and the time step.

        It is found by exhaustive search, and bounds the return of policies without memory; where the time step does not
        help, as in `Woods101`, a stationary policy attains it. The search covers deterministic policies only: an
        episode visits each pair (observation, time step) at most once, so the probability of success is linear in the
        action probabilities of each pair, and a deterministic policy attains the maximum. It ignores cells from which
        the remaining time is too short.

        The cost is exponential in the limit, unless all cells with equal observations share an optimal move; then the
        result is `optimal_return`.
        """
        alike: dict[bytes, list[int]] = {}
        for i, place in enumerate(self.places):
            if self.distances[i] > 0:
                alike.setdefault(self.view(place).tobytes(), []).append(i)
        best = self.distances[self.successors] < self.distances[:, None]
        if all(best[group].all(0).any() for group in alike.values()):
            return self.optimal_return()

        @functools.cache
        def max_successes(agents: tuple[int, ...], remaining: int) -> int:
            """The most of these agents (cells at the same time step) that one policy can lead to food in time."""
            arrived = sum(self.distances[i] == 0 for i in agents)
            others = tuple(i for i in agents if 0 < self.distances[i] <= remaining)
            if not others:
                return arrived
            groups = [[i for i in others if i in group] for group in alike.values()]
            # Agents with equal observations take the same move; moves with the same effect on them are tried once.
            options = [{tuple(row) for row in self.successors[group].T.tolist()} for group in groups if group]
            branches = itertools.product(*options)
            return arrived + max(max_successes(tuple(sorted(sum(after, ()))), remaining - 1) for after in branches)

        return max_successes(tuple(sorted(self._index[cell] for cell in self.starts)), self.limit) / len(self.starts)

    @property
    def name(self) -> str:
        """The ``name`` given at construction."""
        return self._name

    @property
    def num_actions(self) -> int:
        """The number of moves, 4 or 8."""
        return len(self.moves)

    @property
    def default_params(self) -> Any:
        """The tabulated rules and the limit."""
        return MazeParams(
            successors=jnp.asarray(self.successors, jnp.int32),
            views=jnp.asarray(np.stack([self.view(place) for place in self.places]), real()),
            food=jnp.asarray(self.distances == 0),
            starts=jnp.asarray([self._index[cell] for cell in self.starts], jnp.int32),
            max_steps_in_episode=self.limit,
        )

    def reset_env(self, key: Array, params: MazeParams) -> tuple[Array, MazeState]:
        """Start at one of ``starts``, drawn uniformly."""
        index = params.starts[jax.random.randint(key, (), 0, params.starts.shape[0])]
        state = MazeState(index=index, time=jnp.zeros((), jnp.int32))
        return self.get_obs(state, params), state

    def step_env(
        self, key: Array, state: MazeState, action: Any, params: MazeParams
    ) -> tuple[Array, MazeState, Array, Array, dict[Any, Any]]:
        """Take one move; `is_truncated` applies the time limit."""
        del key
        state = MazeState(index=params.successors[state.index, action], time=state.time + 1)
        eaten = params.food[state.index]
        return self.get_obs(state, params), state, eaten.astype(real()), eaten, {}

    def get_obs(self, state: MazeState, params: Any = None, key: Any = None) -> Array:
        """The observation: f [16]."""
        params = self.default_params if params is None else params
        return params.views[state.index]

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """The moves, numbered as in ``moves``."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """Vectors of 16 bits."""
        return spaces.Box(0, 1, (2 * len(COMPASS),), real())

    def state_at(self, cell: Cell, time: int = 0) -> MazeState:
        """The state in which the agent is at a cell, (row, column).

        Raises:
            ValueError: the cell is rock, or outside the maze.
        """
        if cell not in self._index:
            raise ValueError(f"cell: {cell} is rock or outside; choose from {', '.join(map(str, self.places))}")
        return MazeState(index=jnp.asarray(self._index[cell], jnp.int32), time=jnp.asarray(time, jnp.int32))

    def cell_of(self, state: MazeState) -> Cell:
        """The (row, column) of the agent; not for use inside ``jit``."""
        return self.places[int(state.index)]


@functools.cache
def Woods1() -> Maze:  # noqa: N802
    """Woods1 (Wilson 1994): a 3 × 3 block of rock with food at one corner, on a 5 × 5 torus.

    Its 16 free cells have distinct observations. The mean shortest path to food has 27/16 ≈ 1.7 steps.
    """
    return Maze((".....", ".OOF.", ".OOO.", ".OOO.", "....."), wrap=True, name="Woods1-v0")


@functools.cache
def Maze4() -> Maze:  # noqa: N802
    """Maze4 (Butz, Goldberg and Stolzmann 2000): 26 starts, no two of whose cells look alike.

    The mean shortest path to food has 3.5 steps.
    """
    rows = (
        "OOOOOOOO",
        "O..O..FO",
        "OO..O..O",
        "OO.O..OO",
        "O......O",
        "OO.O...O",
        "O....O.O",
        "OOOOOOOO",
    )
    return Maze(rows, name="Maze4-v0")


@functools.cache
def Maze5() -> Maze:  # noqa: N802
    """Maze5 (Lanzi 1999): 36 starts, no two of whose cells look alike.

    The mean shortest path to food has 166/36 ≈ 4.61 steps.
    """
    rows = (
        "OOOOOOOOO",
        "O......FO",
        "O..O.OO.O",
        "O.O.....O",
        "O...OO..O",
        "O.O.O..OO",
        "O.O..O..O",
        "O.....O.O",
        "OOOOOOOOO",
    )
    return Maze(rows, name="Maze5-v0")


@functools.cache
def Maze6() -> Maze:  # noqa: N802
    """Maze6 (Lanzi 1999): Maze5 with a rock west of the food, so that food is reached from the south only.

    The mean shortest path to food has 188/36 ≈ 5.22 steps. Two pairs of cells look alike, with the same best move.
    """
    rows = (
        "OOOOOOOOO",
        "O.....OFO",
        "O..O.OO.O",
        "O.O.....O",
        "O...OO..O",
        "O.O.O..OO",
        "O.O..O..O",
        "O.......O",
        "OOOOOOOOO",
    )
    return Maze(rows, name="Maze6-v0")


@functools.cache
def Woods101() -> Maze:  # noqa: N802
    """Woods101, McCallum's maze: two cells with equal observations, left and right of the middle, need opposite moves.

    Episodes start in one of the six cells with a unique observation and last at most three steps, the distance of the
    four outer cells from food. The only path of that length from an outer cell passes one of the two ambiguous
    cells, where the optimal move is south-east on the left side and south-west on the right side. A policy without
    memory therefore fails from at least two of the six starts: `memoryless_return` is 2/3. One bit of `Memory`,
    written in the first step, suffices to succeed from all of them.
    """
    return Maze(
        ("OOOOOOO", "O.....O", "O.O.O.O", "O.OFO.O", "OOOOOOO"),
        limit=3,
        starts=((1, 1), (1, 3), (1, 5), (2, 1), (2, 3), (2, 5)),
        name="Woods101-v0",
    )


def _check_layout(layout: tuple[str, ...]) -> None:
    if not layout or not layout[0] or any(len(row) != len(layout[0]) for row in layout):
        raise ValueError(f"layout: expected rows of the same length >= 1, got {list(layout)}")
    for character in "".join(layout):
        if character not in (_FREE, _ROCK, _FOOD):
            raise ValueError(f"layout: expected '.' (free), 'O' (rock) and 'F' (food) only, got {character!r}")
    if not any(_FOOD in row for row in layout):
        raise ValueError("layout: expected at least one cell with food, 'F', got none")

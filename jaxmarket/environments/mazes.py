"""Mazes with short-sighted animals: Wilson's (1994) Woods1, and Woods101, in which one has to remember.

Woods1 is from "ZCS: A Zeroth Level Classifier System", Woods101 McCallum's maze as Cliff and Ross (1994, "Adding
Temporary Memory to ZCS") have it. A maze has a handful of places, so the rules are plain Python, played out once for
every place and move when a maze is built; a step is two look-ups.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces
from jaxtyping import Bool, Float, Int32

from jaxmarket.types import Array, real
from jaxmarket.validation import check_bool, check_int, short_repr

__all__ = ["COMPASS", "Maze", "MazeParams", "MazeState", "Woods1", "Woods101"]

COMPASS = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
"""(Row, column) of the eight neighbours and of the eight moves: clockwise from north."""

_FREE, _ROCK, _FOOD = ".OF"
_CODE = {_FREE: (0, 0), _ROCK: (1, 0), _FOOD: (1, 1)}  # not free, food

Cell = tuple[int, int]


class MazeState(struct.PyTreeNode):
    """State of a `Maze`."""

    index: Int32[Array, ""]  # of the cell in `Maze.places`
    time: Int32[Array, ""]  # steps since the reset


class MazeParams(struct.PyTreeNode):
    """The rules of a `Maze`, played out for its S places."""

    successors: Int32[Array, "S moves"]
    views: Float[Array, "S 16"]
    food: Bool[Array, " S"]
    starts: Int32[Array, " n"]  # equally likely first places
    max_steps_in_episode: int


class Maze(environment.Environment[Any, Any]):
    """A maze whose food is worth 1, and ends the episode; an animal in it sees only the cells around its own.

    Observations are f [16], 0 or 1, whatever the moves: for each of the eight neighbours (`COMPASS`) whether it is not
    free, then whether it is food; so a free cell is 00, a rock 10 and food 11, as Wilson has it. Rocks cannot be
    entered: the animal stays where it is. What is outside a maze that does not wrap around is rock.

    Args:
        layout: rows of ``.`` free, ``O`` rock, ``F`` food, from north to south.
        moves: 8 (`COMPASS`), or 4: north, east, south, west.
        wrap: whether who leaves at one side comes in at the opposite one.
        limit: steps after which an episode is truncated.
        starts: equally likely first cells, (row, column); all free ones by default.
        name: shown in tables.

    Instances compare and hash by value.

    Raises:
        ValueError: the layout has other characters, rows of different length, or a free cell without a way to food; a
            start is not free; or a number is out of range.
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
        """The cells that are no rock, in reading order: S."""
        self.free: tuple[Cell, ...] = tuple(cell for cell in self.places if self._at(cell) == _FREE)
        """Those without food."""
        try:
            self.starts: tuple[Cell, ...] = self.free if starts is None else tuple((int(r), int(c)) for r, c in starts)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"starts: expected cells (row, column), got {short_repr(starts)}") from error
        if not self.starts:
            raise ValueError("starts: expected at least one free cell to start from, got none")
        for cell in self.starts:
            if cell not in self.free:
                raise ValueError(f"starts: expected free cells (row, column), got {cell}")
        self._index = {place: i for i, place in enumerate(self.places)}
        for place, steps in zip(self.places, self.distances, strict=True):
            if not np.isfinite(steps):
                raise ValueError(f"layout: no way leads from {place} to food; make it a rock, or open a way")
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
        """Where a move leads: a plain rule."""
        down, right = self.moves[action]
        ahead = cell[0] + down, cell[1] + right
        if self._at(ahead) == _ROCK:
            return cell
        return ahead[0] % len(self.layout), ahead[1] % len(self.layout[0])

    def view(self, cell: Cell) -> np.ndarray:
        """What is seen from a cell: i64 [16]."""
        row, column = cell
        return np.array([_CODE[self._at((row + down, column + right))] for down, right in COMPASS]).reshape(-1)

    @functools.cached_property
    def successors(self) -> np.ndarray:
        """Where each move leads from each place: i64 [S, moves], numbers of `places`."""
        return np.array([[self._index[self.move(cell, a)] for a in range(self.num_actions)] for cell in self.places])

    @functools.cached_property
    def distances(self) -> np.ndarray:
        """Fewest steps from each place to food, 0 where there is food: f64 [S]."""
        steps = np.array([0.0 if self._at(place) == _FOOD else np.inf for place in self.places])
        while True:
            shorter = np.minimum(steps, 1 + steps[self.successors].min(1))
            if (shorter == steps).all():
                return steps
            steps = shorter

    def mean_shortest(self) -> float:
        """Fewest steps to food, averaged over the starts."""
        return float(np.mean([self.distances[self._index[cell]] for cell in self.starts]))

    def optimal_return(self, gamma: float | None = None) -> float:
        """Share of the starts that are near enough to food for the limit: what who knows its place can earn."""
        del gamma
        return float(np.mean([self.distances[self._index[cell]] <= self.limit for cell in self.starts]))

    def memoryless_return(self) -> float:
        """No policy that acts on what it sees now (and on the clock), by chance or not, earns more on average.

        It is what the best of those that also look at the clock earn, found by trying them all; where the clock is of
        no use, as in `Woods101`, one without does as well. Those that toss coins need not be tried: a choice, made in
        one step of the clock on one observation, is made at most once in an episode. The chance of success is therefore
        linear in the probabilities of each choice, and greatest at a corner, where all are certain. Nor need cells
        from which the time left is too short.

        The work grows exponentially with the limit, unless those that look alike have a best move in common: then
        nobody loses anything.
        """
        alike: dict[bytes, list[int]] = {}
        for i, place in enumerate(self.places):
            if self.distances[i] > 0:
                alike.setdefault(self.view(place).tobytes(), []).append(i)
        best = self.distances[self.successors] < self.distances[:, None]
        if all(best[group].all(0).any() for group in alike.values()):
            return self.optimal_return()

        @functools.cache
        def most(animals: tuple[int, ...], left: int) -> int:
            """Most of the animals, at these places at the same moment, that one policy can feed in the time left."""
            fed = sum(self.distances[i] == 0 for i in animals)
            hungry = tuple(i for i in animals if 0 < self.distances[i] <= left)
            if not hungry:
                return fed
            groups = [[i for i in hungry if i in group] for group in alike.values()]
            # Each group moves as one; moves with the same effect on it are tried once.
            options = [{tuple(row) for row in self.successors[group].T.tolist()} for group in groups if group]
            return fed + max(most(tuple(sorted(sum(after, ()))), left - 1) for after in itertools.product(*options))

        return most(tuple(sorted(self._index[cell] for cell in self.starts)), self.limit) / len(self.starts)

    @property
    def name(self) -> str:
        """The name it was given."""
        return self._name

    @property
    def num_actions(self) -> int:
        """The moves."""
        return len(self.moves)

    @property
    def default_params(self) -> Any:
        """The rules, and the limit."""
        return MazeParams(
            successors=jnp.asarray(self.successors, jnp.int32),
            views=jnp.asarray(np.stack([self.view(place) for place in self.places]), real()),
            food=jnp.asarray(self.distances == 0),
            starts=jnp.asarray([self._index[cell] for cell in self.starts], jnp.int32),
            max_steps_in_episode=self.limit,
        )

    def reset_env(self, key: Array, params: MazeParams) -> tuple[Array, MazeState]:
        """One of the starts."""
        index = params.starts[jax.random.randint(key, (), 0, params.starts.shape[0])]
        state = MazeState(index=index, time=jnp.zeros((), jnp.int32))
        return self.get_obs(state, params), state

    def step_env(
        self, key: Array, state: MazeState, action: Any, params: MazeParams
    ) -> tuple[Array, MazeState, Array, Array, dict[Any, Any]]:
        """One move; time limits are `is_truncated`'s business."""
        del key
        state = MazeState(index=params.successors[state.index, action], time=state.time + 1)
        eaten = params.food[state.index]
        return self.get_obs(state, params), state, eaten.astype(real()), eaten, {}

    def get_obs(self, state: MazeState, params: Any = None, key: Any = None) -> Array:
        """What is seen: f [16]."""
        params = self.default_params if params is None else params
        return params.views[state.index]

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """The moves."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """Bits."""
        return spaces.Box(0, 1, (2 * len(COMPASS),), real())

    def state_at(self, cell: Cell, time: int = 0) -> MazeState:
        """The state of being in a cell, (row, column).

        Raises:
            ValueError: it is a rock, or outside.
        """
        if cell not in self._index:
            raise ValueError(f"cell: nobody can be at {cell}; choose from {', '.join(map(str, self.places))}")
        return MazeState(index=jnp.asarray(self._index[cell], jnp.int32), time=jnp.asarray(time, jnp.int32))

    def cell_of(self, state: MazeState) -> Cell:
        """Where a state is; not for use inside ``jit``."""
        return self.places[int(state.index)]


@functools.cache
def Woods1() -> Maze:  # noqa: N802
    """Woods1 (Wilson 1994): one clump of rocks with food at a corner, repeated without end.

    No two of its 16 free cells look alike. Food is 27/16 ≈ 1.7 steps away on average.
    """
    return Maze((".....", ".OOF.", ".OOO.", ".OOO.", "....."), wrap=True, name="Woods1-v0")


@functools.cache
def Woods101() -> Maze:  # noqa: N802
    """Woods101, McCallum's maze: at two cells that look alike, left and right of the middle, opposite moves are right.

    Episodes start in the six cells that look like no other, and last three steps, which is how far the four outer
    ones are from food. There is one way that short from each of these, by one of the two cells, where an animal that
    came from the left must go south-east, and one from the right south-west. So without memory an agent fails
    from two of the six starts, at best: `memoryless_return` is 2/3. One bit, written in the first step, is enough to
    succeed always (`Memory`).
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
            raise ValueError(f"layout: expected . free, O rock, F food, got {character!r}")
    if not any(_FOOD in row for row in layout):
        raise ValueError("layout: expected food, F, somewhere, got none")

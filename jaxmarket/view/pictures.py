"""Pictures, texts and names for the states and actions of an environment, as a replay shows them.

An environment draws itself if it has a method ``picture(env_state)`` that returns u8 [H, W] or [H, W, 3]. Two Rooms,
mazes, blocks world and computations on images are drawn here, as are observations that are images. All others show the
numbers of their observation.
"""

import itertools
from typing import Any

import numpy as np

from jaxmarket.environments.adapter import Adapter
from jaxmarket.environments.blocks import MOVES, BlocksWorld
from jaxmarket.environments.functions import Functions
from jaxmarket.environments.mazes import COMPASS, Maze
from jaxmarket.environments.options import Options
from jaxmarket.environments.rooms import ACTIONS, TwoRooms
from jaxmarket.environments.supply_chain import SupplyChain
from jaxmarket.environments.tabular import Chain
from jaxmarket.types import PyTree
from jaxmarket.view import rendering

__all__ = ["action_names", "action_text", "image_of", "picture", "stages", "text"]

_LARGEST = 192  # pixels of a side
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#8c8c00", "#999999")
_PAPER, _ROCK, _FLOOR, _AGENT = "#f4f3ef", "#5b5f66", "#e9e9e7", "#1d1f23"
_WINDS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")


def action_names(env: Adapter) -> tuple[str, ...]:
    """The names of the actions of an environment, [P]."""
    inner: Any = env.env
    names = getattr(inner, "names", None)
    if names is None and isinstance(inner, TwoRooms):
        names = ACTIONS
    elif names is None and isinstance(inner, Maze):
        names = [_WINDS[COMPASS.index(move)] for move in inner.moves]
    elif names is None and isinstance(inner, BlocksWorld):
        names = [*(f"move {source} → {target}" for source, target in MOVES), "done"][: env.num_actions]
    elif names is None and isinstance(inner, Options):
        names = [f"option {i}" for i in range(env.num_actions)]
    elif names is None and isinstance(inner, SupplyChain) and not inner.joint:
        pairs = itertools.product(range(inner.lines), range(inner.operations))
        names = [f"line {line + 1}, operation {operation + 1}" for line, operation in pairs]
    elif names is None and inner == Chain():
        names = ("left", "right")
    if names is None or len(names) != env.num_actions:
        names = [f"action {i}" for i in range(env.num_actions)]
    return tuple(map(str, names))


def action_text(env: Adapter, action: np.ndarray) -> str:
    """An action in words: its name, or its entries."""
    if env.box is None:
        return action_names(env)[int(action)]
    return f"({', '.join(f'{x:.3g}' for x in np.ravel(action))})".replace("-", "−")


def text(env: Adapter, state: PyTree, obs: np.ndarray) -> str:
    """A state in words; empty if there are none for it."""
    inner, state = _innermost(env, state)
    if isinstance(inner, TwoRooms):
        place = inner.place_of(state)
        facing = ("east", "south", "west", "north")[place.direction]
        return f"at ({place.x}, {place.y}), facing {facing}, door {'open' if place.door_open else 'closed'}"
    if isinstance(inner, Functions):
        applied = int(state.applied)
        return f"{applied} function{'s' * (applied != 1)} applied"
    if isinstance(inner, BlocksWorld):
        return "template, and stacks 1 to 3"
    flat = np.asarray(obs).reshape(-1)
    if env.one_hot and flat.sum() == 1:
        return f"state {int(flat.argmax())}"
    return ""


def picture(env: Adapter, state: PyTree, obs: np.ndarray) -> np.ndarray | None:
    """A picture of a state, u8 [H, W] or [H, W, 3]; None if it cannot be drawn.

    Args:
        env: the environment.
        state: its state.
        obs: the encoded observation of the state.

    Raises:
        ValueError: the environment's own ``picture`` returned something else than such an array.
    """
    inner, state = _innermost(env, state)
    if hasattr(inner, "picture"):
        return _small(_checked(inner.picture(state)))
    if isinstance(inner, TwoRooms):
        return rendering.rooms_image(inner.place_of(state))
    if isinstance(inner, Maze):
        return _maze(inner, int(state.index))
    if isinstance(inner, BlocksWorld):
        return _blocks(inner, np.asarray(state.stacks))
    if isinstance(inner, Functions) and np.ndim(state.value) == 2 and min(np.shape(state.value)) >= 8:
        return _small(_grey(np.asarray(state.value)))
    return image_of(np.asarray(obs))


def image_of(obs: np.ndarray) -> np.ndarray | None:
    """An encoded observation with three axes as a picture; None for other observations."""
    if obs.ndim != 3 or min(obs.shape[:2]) < 2:
        return None
    channels = obs.shape[2]
    if channels == 1:
        return _small(_grey(obs[..., 0]))
    if channels == 3 and obs.min() >= 0 and obs.max() <= 1 and min(obs.shape[:2]) >= 32:
        return _small(np.round(255 * obs).astype(np.uint8))
    # Planes, such as those of MinAtar: the colour of the last one that is set.
    colours = np.array([_rgb(_PAPER), *(_rgb(_COLOURS[c % len(_COLOURS)]) for c in range(channels))], np.uint8)
    planes = (obs > 0) * (1 + np.arange(channels))
    return _cells(colours[planes.max(-1)], 16)


def _innermost(env: Adapter, state: PyTree) -> tuple[Any, PyTree]:
    """The environment inside wrappers such as `Options` and `Memory`, and its state."""
    inner: Any = env.env
    while isinstance(getattr(inner, "adapter", None), Adapter) and hasattr(state, "env_state"):
        inner, state = inner.adapter.env, state.env_state
    return inner, state


def _checked(drawn: Any) -> np.ndarray:
    drawn = np.asarray(drawn)
    if drawn.dtype != np.uint8 or drawn.ndim not in (2, 3) or (drawn.ndim == 3 and drawn.shape[2] != 3):
        raise ValueError(f"picture: expected u8 [H, W] or [H, W, 3], got {drawn.dtype}{list(drawn.shape)}; convert it")
    return drawn


def _grey(values: np.ndarray) -> np.ndarray:
    low, high = float(min(values.min(), 0)), float(max(values.max(), 1))
    return np.round(255 * (values - low) / (high - low)).astype(np.uint8)


def _small(picture: np.ndarray) -> np.ndarray:
    every = -(-max(picture.shape[:2]) // _LARGEST)
    return picture[::every, ::every]


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def _cells(colours: np.ndarray, size: int, gap: str = _PAPER) -> np.ndarray:
    """Cells u8 [H, W, 3] as squares of ``size`` pixels with a thin gap between them."""
    large = colours.repeat(size, 0).repeat(size, 1)
    large[::size], large[:, ::size] = _rgb(gap), _rgb(gap)
    return large


def _maze(maze: Maze, index: int) -> np.ndarray:
    codes = {".": _FLOOR, "O": _ROCK, "F": "#e69f00"}
    cells = np.array([[_rgb(codes[sign]) for sign in row] for row in maze.layout], np.uint8)
    cells[maze.places[index]] = _rgb("#0072b2")
    return _cells(cells, max(8, min(24, _LARGEST // max(cells.shape[:2]))))


def _blocks(blocks: BlocksWorld, stacks: np.ndarray) -> np.ndarray:
    """The template on the left, and the three stacks, on a floor."""
    colours = np.array([_rgb(_PAPER), *(_rgb(_COLOURS[c % len(_COLOURS)]) for c in range(blocks.colours))], np.uint8)
    rows = max(4, min(stacks.shape[1], 12))
    shown = np.zeros((4, rows), np.int64)
    shown[:, : stacks.shape[1]] = stacks[:, :rows]
    columns = [np.zeros(rows, np.int64), shown[0], np.zeros(rows, np.int64), *shown[1:], np.zeros(rows, np.int64)]
    drawn = _cells(colours[np.stack(columns, 1)[::-1]], 20)
    floor = np.zeros((4, drawn.shape[1], 3), np.uint8)
    floor[:] = _rgb(_PAPER)
    floor[:, 20:40] = floor[:, 60:120] = _rgb(_ROCK)
    return np.concatenate([drawn, floor, np.full((4, drawn.shape[1], 3), _rgb(_PAPER), np.uint8)])


def stages(pieces: np.ndarray) -> np.ndarray:
    """Production lines, one per row, with the stage of each one's piece: f [L, K], one-hot, as u8 [H, W, 3]."""
    cells = np.array([_rgb(_FLOOR), _rgb(_COLOURS[0])], np.uint8)[(pieces > 0).astype(int)]
    return _cells(cells, 24)

"""Pictures of Two Rooms: a state, an episode, an animation; and `episode`, which plays an episode to draw.

>>> from jaxmarket.environments import TwoRooms
>>> played = episode(TwoRooms(), lambda obs, key: jax.random.randint(key, (), 0, 7), jax.random.key(0))
>>> len(played.places) == len(played.labels) == len(played.actions) + 1
True

``save_gif("played.gif", played.places, played.labels)`` then writes an animation, and ``save_png("played.png",
played.places)`` a picture of the path. Matplotlib is imported when the first picture is drawn; no window is opened.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.environments.adapter import Adapter, Step, adapt
from jaxmarket.environments.options import Options
from jaxmarket.environments.rooms import (
    ACTIONS,
    BLUE,
    DOOR,
    GREEN,
    HEIGHT,
    PLACES,
    WIDTH,
    Place,
    TwoRooms,
    cell,
    position_of,
    step_rule,
    view,
)
from jaxmarket.types import Array, PyTree
from jaxmarket.validation import short_repr
from jaxmarket.view import animation, plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Episode", "draw_rooms", "draw_trajectory", "episode", "rooms_image", "save_gif", "save_png", "seen_cells"]

_WALL, _FLOOR, _LINES = "#5b5f66", "#e9e9e7", "#d2d2cf"
_SEEN = "#fff6b8"
_TILES = {BLUE: "#3b7dd8", GREEN: "#3fa34d"}
_DOOR_COLOUR, _AGENT = "#c8322b", "#1d1f23"
_MARGIN = 0.8  # cells below the grid, for the label


# --- playing


class Episode(NamedTuple):
    """One episode of Two Rooms of T environment steps, including the steps inside options."""

    places: list[Place]  # T + 1, from the initial place
    actions: list[int]  # T
    choices: list[int]  # T, the option that took the action; without options the action itself
    decided: list[bool]  # T, whether the policy chose at this step; False while an option continues
    labels: list[str]  # T + 1, the action at each place, and the reward of the episode at the last
    reward: float  # of the episode, undiscounted

    @property
    def decisions(self) -> list[int]:
        """The choices of the policy, one for each option that it ran."""
        return list(itertools.compress(self.choices, self.decided))

    def save_gif(self, path: str | Path) -> None:
        """Write an animation of the episode with its labels; see `jaxmarket.view.rendering.save_gif`."""
        save_gif(path, self.places, self.labels)


def episode(
    env: Any,
    policy: Callable[[Array, Array], Any],
    key: Array,
    params: PyTree = None,
    *,
    start: Place | None = None,
    names: Sequence[str] | None = None,
) -> Episode:
    """Play one episode, on the host.

    With `Options` the policy chooses options, which run as in `Options.step_env`. Choice n uses the first key of
    ``split(fold_in(split(key)[1], n))`` for the policy, and the second one for the option.

    Args:
        env: a `TwoRooms`, `Options` over one, or its `Adapter`.
        policy: ``(obs, key) -> choice`` with the view u8 [7, 7, 3]. It is not compiled; ``jax.jit`` it if it is slow.
        key: of all randomness.
        params: parameters of ``env``; default: its ``default_params``.
        start: the initial place, at time 0; default: drawn as the task draws it.
        names: names of the choices in the labels; default: the names of the actions, or "option 0", "option 1", ….

    Raises:
        ValueError: ``env`` is not Two Rooms, ``names`` has another length than the choices, no agent can be at
            ``start``, or the policy returned a number that is not a choice.
    """
    adapter = adapt(env)
    options = adapter.env if isinstance(adapter.env, Options) else None
    wrapped = adapter if options is None else options.adapter
    rooms = wrapped.env
    if not isinstance(rooms, TwoRooms):
        raise ValueError(
            f"env: expected a TwoRooms, or Options upon one, got {short_repr(env)}; only Two Rooms can be drawn"
        )
    if names is None:
        names = ACTIONS if options is None else [f"option {i}" for i in range(adapter.num_actions)]
    if len(names) != adapter.num_actions:
        raise ValueError(f"names: expected one per choice, {adapter.num_actions}, got {len(names)}: {list(names)}")
    params = adapter.parameters(params)
    rules = params if options is None else params.env

    key_reset, key_play = jax.random.split(key)
    obs, state = wrapped.raw_reset(key_reset, rules)
    if start is not None:
        state = rooms.state_at(start)
        obs = rooms.get_obs(state, rules)
    played = Episode([rooms.place_of(state)], [], [], [], [], 0.0)
    over, reward, decisions = False, 0.0, 0
    while not over:
        key_choice, key_run = jax.random.split(jax.random.fold_in(key_play, decisions))
        choice = int(policy(obs, key_choice))
        if not 0 <= choice < adapter.num_actions:
            raise ValueError(
                f"policy: chose {choice}; it must return one of the choices 0 to {adapter.num_actions - 1}"
            )
        if options is None:
            moves = iter([(choice, _step(wrapped, key_run, state, choice, rules))])
        else:
            moves = _run(options, choice, obs, state, key_run, params)
        decided = True
        for action, after in moves:
            played.places.append(rooms.place_of(after.env_state))
            played.actions.append(action)
            played.choices.append(choice)
            played.decided.append(decided)
            played.labels.append(names[choice] if options is None else f"{names[choice]} · {ACTIONS[action]}")
            obs, state, decided = after.obs, after.env_state, False
            reward += float(after.undiscounted)
            over = bool(after.terminated | after.truncated)
        decisions += 1
    played.labels.append(f"reward {reward:.2f}")
    return played._replace(reward=reward)


def _run(
    options: Options, choice: int, obs: Array, state: PyTree, key: Array, params: PyTree
) -> Iterator[tuple[int, Step]]:
    """The actions of one option and the resulting steps, as `Options.step_env` takes them, with the same keys."""
    option = options.options[choice]
    longest = min(n for n in (option.length, options.bound) if n is not None)
    for t in range(longest):
        key_act, key_env = jax.random.split(jax.random.fold_in(key, t))
        action = int(_act(params.options[choice].policy, obs, key_act))
        finished = action == option.done
        if finished and t > 0 and not options.executes_done:
            return
        after = _step(options.adapter, key_env, state, action, params.env)
        yield action, after
        reached = option.until is not None and bool(option.until(after.obs))
        if finished or reached or bool(after.terminated | after.truncated):
            return
        obs, state = after.obs, after.env_state


@jax.jit
def _act(policy: PyTree, obs: Array, key: Array) -> Array:
    return jnp.asarray(policy(obs, key), jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def _step(rooms: Adapter, key: Array, state: PyTree, action: Any, params: PyTree) -> Step:
    return rooms.raw_step(key, state, action, params)


# --- drawing


def seen_cells(place: Place) -> set[tuple[int, int]]:
    """The cells (x, y) that the agent sees from ``place``, and the cell it occupies."""
    cells = set()
    for i, j in np.argwhere(
        view(place).any(-1)
    ):  # a cell that is seen is encoded by nonzero numbers, even if it is empty
        x, y = position_of(place, int(i), int(j))
        if 0 <= x < WIDTH and 0 <= y < HEIGHT:
            cells.add((x, y))
    return cells


def draw_rooms(ax: "Axes", place: Place, *, label: str | None = None, count: str | None = None) -> None:
    """Draw the rooms and the agent, with the cells that it sees in yellow.

    Args:
        ax: the axes to draw on; sets their limits and hides their frame.
        place: state of the agent and the door.
        label: a line below the grid, about fifty characters.
        count: short text in the corner below the grid.

    Raises:
        ValueError: no agent can be at ``place``.
    """
    _check_place("place", place)
    _draw_grid(ax, place.door_open, seen_cells(place), label)
    if count is not None:
        ax.text(
            WIDTH - 0.05,
            HEIGHT + _MARGIN / 2,
            plotting.plain_text(count),
            ha="right",
            va="center",
            fontsize=8,
            color=_WALL,
        )
    _draw_agent(ax, place, _AGENT)


def rooms_image(place: Place, size: int = 24) -> np.ndarray:
    """What `draw_rooms` draws, without Matplotlib and a hundred times as fast: u8 [5 * size, 9 * size, 3].

    Args:
        place: state of the agent and the door.
        size: pixels of a cell.

    Raises:
        ValueError: no agent can be at ``place``.
    """
    from PIL import Image, ImageColor, ImageDraw  # noqa: PLC0415

    _check_place("place", place)
    image = Image.new("RGB", (WIDTH * size, HEIGHT * size), _FLOOR)
    draw = ImageDraw.Draw(image)

    def fill(x: float, y: float, width: float, height: float, colour: str) -> None:
        draw.rectangle((x * size, y * size, (x + width) * size - 1, (y + height) * size - 1), fill=colour)

    # The same colour as `_SEEN`, drawn over the floor with its transparency.
    lit, floor = (np.array(ImageColor.getrgb(colour)) for colour in (_SEEN, _FLOOR))
    seen_floor = "#{:02x}{:02x}{:02x}".format(*(0.45 * lit + 0.55 * floor).astype(int))
    wall, seen = cell((0, 0), place.door_open), seen_cells(place)
    for x, y in itertools.product(range(WIDTH), range(HEIGHT)):
        fill(x, y, 1, 1, _LINES)
        solid = cell((x, y), place.door_open) == wall
        fill(x, y, 1 - 1 / size, 1 - 1 / size, _WALL if solid else seen_floor if (x, y) in seen else _FLOOR)
    for (x, y), colour in _TILES.items():
        fill(x + 0.08, y + 0.08, 0.84, 0.84, colour)
    x, y = DOOR
    fill(x + 0.08, y + 0.08, 0.84, 0.12 if place.door_open else 0.84, _DOOR_COLOUR)
    draw.polygon([(size * a, size * b) for a, b in _agent_corners(place)], fill=_AGENT)
    return np.asarray(image)


def draw_trajectory(ax: "Axes", places: Sequence[Place], *, label: str | None = None) -> None:
    """Draw the path of an episode, from a hollow to a filled agent, with a red ring where it opened the door.

    The path gets darker with time, and keeps to the right of the cells' centres so that both directions are visible.
    The door is drawn in its final state.

    Args:
        ax: the axes to draw on; sets their limits and hides their frame.
        places: all places of the episode, in order.
        label: a line below the grid, about fifty characters.

    Raises:
        ValueError: ``places`` is empty, no agent can be at one of them, or no action leads from one to the next.
    """
    from matplotlib import colormaps  # noqa: PLC0415

    _check_places(places)
    for t, (old, new) in enumerate(itertools.pairwise(places)):
        if all(step_rule(old, action) != new for action in range(len(ACTIONS))):
            raise ValueError(
                f"places[{t + 1}]: no action leads from {old} to {new}; pass all places of one episode, in order"
            )
    _draw_grid(ax, places[-1].door_open, set(), label)
    for old, new in itertools.pairwise(places):
        if new.door_open and not old.door_open:
            x, y = (old.x + old.ahead[0] + 1) / 2, (old.y + old.ahead[1] + 1) / 2
            ax.plot(x, y, "o", markersize=11, markerfacecolor="white", markeredgecolor=_DOOR_COLOUR, markeredgewidth=3)
    path = _path(places)
    for i, ((x0, y0), (x1, y1)) in enumerate(itertools.pairwise(path)):
        colour = colormaps["Purples"](0.4 + 0.6 * (i + 1) / len(path))
        ax.plot([x0, x1], [y0, y1], color=colour, linewidth=2.5, solid_capstyle="round", zorder=4)
        if math.hypot(x1 - x0, y1 - y0) > 0.5:  # a turn within a cell leaves no space for an arrowhead
            middle, tip = ((x0 + x1) / 2, (y0 + y1) / 2), (0.4 * x0 + 0.6 * x1, 0.4 * y0 + 0.6 * y1)
            arrow = {"arrowstyle": "-|>", "color": colour, "mutation_scale": 15, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", tip, middle, arrowprops=arrow, zorder=4)
    _draw_agent(ax, places[0], "white")
    _draw_agent(ax, places[-1], _AGENT)


def save_png(path: str | Path, what: Place | Sequence[Place], *, label: str | None = None) -> None:
    """Write a PNG of one place (`draw_rooms`) or of the places of an episode (`draw_trajectory`).

    Raises:
        ValueError: as of these functions, or the file name does not end in ``.png``.
    """
    _check_path(path, ".png")
    fig, ax = _canvas()
    if isinstance(what, Place):
        draw_rooms(ax, what, label=label)
    else:
        draw_trajectory(ax, what, label=label)
    plotting.save(fig, path)


def save_gif(
    path: str | Path, places: Sequence[Place], labels: Sequence[str] | None = None, *, seconds_per_frame: float = 0.4
) -> None:
    """Write an animation that repeats, with one frame per place; the last frame lasts three times as long.

    Args:
        path: file name, ``.gif``.
        places: of one episode, or of several episodes in sequence.
        labels: one line per place, drawn below the grid.
        seconds_per_frame: at least 0.02; viewers slow down faster animations.

    Raises:
        ValueError: ``places`` is empty, no agent can be at one of them, there is not one label per place,
            ``seconds_per_frame`` is too small, or the file name does not end in ``.gif``.
    """
    _check_places(places)
    if labels is not None and len(labels) != len(places):
        raise ValueError(f"labels: expected one per place, {len(places)}, got {len(labels)}; use Episode.labels")
    fig, ax = _canvas()

    def draw(t: int) -> None:
        ax.clear()
        # The count makes every frame different: Pillow merges equal frames.
        draw_rooms(ax, places[t], label=None if labels is None else labels[t], count=f"{t}/{len(places) - 1}")

    animation.save_gif(path, fig, draw, len(places), seconds_per_frame=seconds_per_frame)


def _canvas() -> "tuple[Figure, Axes]":
    fig, (ax,) = plotting.figure(width=5.0, height=5.0 * (HEIGHT + _MARGIN) / WIDTH)
    return fig, ax


def _draw_grid(ax: "Axes", door_open: bool, seen: set[tuple[int, int]], label: str | None) -> None:
    """Draw everything but the agent; a cell is the square from (x, y) to (x + 1, y + 1), y downwards."""
    from matplotlib.patches import Rectangle  # noqa: PLC0415

    ax.set(xlim=(0, WIDTH), ylim=(HEIGHT + _MARGIN, 0), aspect="equal")
    ax.set_axis_off()

    def fill(x: float, y: float, width: float, height: float, colour: str, **kwargs: Any) -> None:
        ax.add_patch(Rectangle((x, y), width, height, facecolor=colour, **kwargs))

    wall = cell((0, 0), door_open)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            colour, edge = (_WALL, _WALL) if cell((x, y), door_open) == wall else (_FLOOR, _LINES)
            fill(x, y, 1, 1, colour, edgecolor=edge, linewidth=0.8)
    for x, y in seen:
        fill(x, y, 1, 1, _SEEN, alpha=0.45, linewidth=0)
    # Drawn later to keep their colours, and smaller to show whether they are seen.
    for (x, y), colour in _TILES.items():
        fill(x + 0.08, y + 0.08, 0.84, 0.84, colour)
    x, y = DOOR
    if door_open:
        fill(x, y, 1, 0.16, _DOOR_COLOUR)  # open: a thin line along the wall
    else:
        fill(x + 0.08, y + 0.08, 0.84, 0.84, _DOOR_COLOUR, edgecolor="#7d1a15", linewidth=2)
        ax.plot(x + 0.76, y + 0.5, "o", color="#ffe9a8", markersize=5)
    if label:
        ax.text(
            WIDTH / 2,
            HEIGHT + _MARGIN / 2,
            plotting.plain_text(label),
            ha="center",
            va="center",
            fontsize=10,
            color=_AGENT,
        )


def _path(places: Sequence[Place]) -> list[tuple[float, float]]:
    """The corners of a line through the visited cells, to the right of their centres."""
    cells = [places[0][:2]]
    cells += [new[:2] for old, new in itertools.pairwise(places) if new[:2] != old[:2]]
    # Right of a move (dx, dy), with y downwards, is (-dy, dx).
    sides = [(0.14 * (y0 - y1), 0.14 * (x1 - x0)) for (x0, y0), (x1, y1) in itertools.pairwise(cells)]
    path = []  # stays empty if the agent never moved
    for (x, y), came, goes in zip(cells, [*sides[:1], *sides], [*sides, *sides[-1:]], strict=False):
        if came == goes:
            shifts = [came]
        elif came == (-goes[0], -goes[1]):
            shifts = [came, goes]
        else:
            shifts = [(came[0] + goes[0], came[1] + goes[1])]
        path += [(x + 0.5 + right, y + 0.5 + down) for right, down in shifts]
    return path


def _agent_corners(place: Place) -> list[tuple[float, float]]:
    """The corners of a triangle that points in the agent's direction."""
    dx, dy = place.ahead[0] - place.x, place.ahead[1] - place.y
    corners = [(0.34, 0), (-0.28, 0.28), (-0.28, -0.28)]  # ahead, and to the right
    return [(place.x + 0.5 + a * dx - b * dy, place.y + 0.5 + a * dy + b * dx) for a, b in corners]


def _draw_agent(ax: "Axes", place: Place, colour: str) -> None:
    """Draw a triangle that points in the agent's direction."""
    from matplotlib.patches import Polygon  # noqa: PLC0415

    edge = "white" if colour == _AGENT else _AGENT
    ax.add_patch(
        Polygon(_agent_corners(place), facecolor=colour, edgecolor=edge, linewidth=1.5, joinstyle="round", zorder=5)
    )


def _check_path(path: str | Path, suffix: str) -> None:
    if Path(path).suffix.lower() != suffix:
        raise ValueError(f"path: expected a file name that ends in {suffix}, got {str(path)!r}")


def _check_places(places: Sequence[Place]) -> None:
    if len(places) == 0:
        raise ValueError("places: expected at least one Place, got none")
    for t, place in enumerate(places):
        _check_place(f"places[{t}]", place)


def _check_place(where: str, place: Any) -> None:
    if not isinstance(place, Place):
        raise ValueError(f"{where}: expected a Place, got {short_repr(place)}; use TwoRooms.place_of(state)")
    if place not in PLACES:
        raise ValueError(f"{where}: no agent can be at {place}; choose one of rooms.PLACES")

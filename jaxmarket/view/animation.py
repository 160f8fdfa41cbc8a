"""Animated pictures: the auctions of a replay, or any figure that is redrawn for every frame.

Matplotlib is imported when the first picture is drawn; no window is opened.
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxmarket.validation import check_path
from jaxmarket.view import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jaxmarket.runs.populations import GrownMarket
    from jaxmarket.view.replay import ReplayEpisode, ReplaySale, ReplayStep

__all__ = ["save_episodes", "save_gif", "save_life"]

_SHORT = 24  # characters of a name, or of a line beside the bids
_CELLS = 64  # the most numbers that are drawn as cells


def save_gif(
    path: str | Path,
    fig: "Figure",
    draw: Callable[[int], None],
    frames: int,
    *,
    seconds_per_frame: float,
    colours: int = 256,
) -> None:
    """Write an animation that repeats; the last frame lasts three times as long.

    Args:
        path: file name, ``.gif``.
        fig: the figure that all frames are drawn on.
        draw: draws frame number t. Consecutive equal frames are merged.
        frames: the number of frames.
        seconds_per_frame: at least 0.02; viewers slow down faster animations.
        colours: colours per frame, at most 256; fewer make a smaller file.

    Raises:
        ValueError: ``seconds_per_frame`` is too small, the file name does not end in ``.gif``, or the file cannot be
            written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    if check_path("path", path).suffix.lower() != ".gif":
        raise ValueError(f"path: expected a file name that ends in .gif, got {str(path)!r}")
    if not 0.02 <= seconds_per_frame < math.inf:
        raise ValueError(f"seconds_per_frame: expected a number >= 0.02, got {seconds_per_frame}")
    canvas = FigureCanvasAgg(fig)
    images = []
    for t in range(frames):
        draw(t)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        images.append(image.quantize(colours, dither=Image.Dither.NONE))
    milliseconds = round(1000 * seconds_per_frame)
    durations = [milliseconds] * (frames - 1) + [3 * milliseconds]
    try:
        images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0)
    except OSError as error:
        raise ValueError(f"path: cannot write {path} ({error.strerror}); give a file in an existing folder") from error


def save_episodes(
    path: str | Path, episodes: "Sequence[ReplayEpisode]", title: str = "", *, seconds_per_frame: float = 1.0
) -> None:
    """Write an animation of episodes of one market with one frame per sale: the state, the bids, the payment, wealth.

    The winner's bar has the colour of its action, a diamond marks Q* where it is known, and a dashed line the price.

    Args:
        path: file name, ``.gif``.
        episodes: shown one after the other; all agents are drawn, so there should be few of them.
        title: a line above the picture.
        seconds_per_frame: as in `save_gif`.

    Raises:
        ValueError: as in `save_gif`.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    frames = [(each, t, sale) for each in episodes for t, step in enumerate(each.steps) for sale in step.sales]
    height = max(2.2, 0.8 + 0.135 * max(each.agents for each in episodes))
    fig = Figure(figsize=(6.5, height + 1.4), layout="constrained", dpi=plotting.DPI)
    panels = fig.subplot_mosaic(
        [["state", "bids"], ["wealth", "wealth"]], width_ratios=[1, 2.2], height_ratios=[height, 1.2]
    )
    heading = fig.suptitle(" ", fontsize=10)
    bids, wealth = _range_of_bids(episodes), _range(*(_wealth(each) for each in episodes))

    def draw(frame: int) -> None:
        episode, t, sale = frames[frame]
        for ax in panels.values():
            ax.clear()
        place = f"{episode.unit} {t + 1} of {len(episode.steps)}"
        heading.set_text(" · ".join(plotting.plain_text(words) for words in (title, episode.label, place) if words))
        _draw_state(panels["state"], episode.steps[t], sale)
        _draw_bids(panels["bids"], episode, sale, bids)
        panels["bids"].set_title(_words(episode, episode.steps[t], sale), fontsize=9, loc="left")
        _draw_wealth(panels["wealth"], episode, t, wealth)
        if frame == 0:  # the same places in every frame
            fig.draw_without_rendering()
            fig.set_layout_engine("none")

    save_gif(path, fig, draw, len(frames), seconds_per_frame=seconds_per_frame, colours=64)


def save_life(path: str | Path, grown: "GrownMarket", seed: int, *, seconds_per_frame: float = 0.25) -> None:
    """Write an animation of an economy's life in a `Maze`, with one frame per measurement.

    The price of every place and the move of its buyer are shown, and beside them the steps to food and the wealth of
    the living agents so far.

    Args:
        path: file name, ``.gif``.
        grown: a market in a `Maze`, measured by `deep_market.evaluation.place_prices`.
        seed: index of the seed.
        seconds_per_frame: as in `save_gif`.

    Raises:
        ValueError: the market was measured by another function, or as in `save_gif`.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    if "moves" not in grown.measured:
        names = ", ".join(grown.measured)
        raise ValueError(
            f"grown: expected measurements by deep_market.evaluation.place_prices, got {names}; give it to `grow`"
        )
    sold, price, moves, steps = (
        np.asarray(grown.measured[name])[:, seed] for name in ("sold", "price", "moves", "steps")
    )
    maze, rounds, auctions = grown.plan.market.env.env, grown.seed(seed), grown.plan.steps
    free = [i for i, place in enumerate(maze.places) if place in maze.free]
    highest, most = float(price[:, free][sold[:, free]].max(initial=1e-3)), float(np.nanmax(rounds.wealth))
    each = len(rounds.money) // grown.plan.chunks
    ticks = [tick for tick in (2, 5, 10, 20, 50, 100, 200, 500) if maze.mean_shortest() <= tick <= maze.limit]
    fig = Figure(figsize=(7.4, 3.8), layout="constrained", dpi=plotting.DPI)

    def draw(frame: int) -> None:
        fig.clear()
        panels = fig.subplot_mosaic([["maze", "steps"], ["maze", "wealth"]], width_ratios=[1.35, 1])
        fig.suptitle(
            f"{auctions[frame]:,} auctions · {int(rounds.num_agents[(frame + 1) * each - 1])} agents", fontsize=10
        )
        plotting.draw_maze_policy(panels["maze"], maze, sold[frame], price[frame], moves[frame], highest=highest)
        panels["steps"].plot(auctions[: frame + 1], steps[: frame + 1], color=plotting.COLORS[0])
        panels["steps"].axhline(maze.mean_shortest(), color="0.15", linestyle="--", linewidth=1)
        plotting.log_y_axis(panels["steps"], ticks)
        panels["steps"].set_ylim(0.9 * maze.mean_shortest(), 1.1 * maze.limit)
        panels["steps"].set_title("steps to food, frozen · dashed: the optimum", fontsize=8)
        wealth = rounds.wealth[each - 1 : (frame + 1) * each : each]
        panels["wealth"].fill_between(
            auctions[: frame + 1], wealth[:, 1], wealth[:, 3], color=plotting.COLORS[0], alpha=0.3
        )
        panels["wealth"].plot(auctions[: frame + 1], wealth[:, 2], color=plotting.COLORS[0])
        panels["wealth"].plot(auctions[: frame + 1], wealth[:, 4], color=plotting.COLORS[1])
        panels["wealth"].set(ylim=(0, 1.05 * most))
        panels["wealth"].set_title("wealth: the richest, the middle half", fontsize=8)
        for ax in (panels["steps"], panels["wealth"]):
            ax.set_xlim(0, auctions[-1])
            plotting.step_axis(ax, "auctions")
            _small(ax, "auctions")

    save_gif(path, fig, draw, len(auctions), seconds_per_frame=seconds_per_frame, colours=96)


def _short(name: str) -> str:
    text = plotting.plain_text(name)
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"


def _colour(episode: "ReplayEpisode", agent: int) -> str:
    groups = np.arange(episode.agents) if episode.groups is None else episode.groups
    return plotting.COLORS[int(groups[agent]) % len(plotting.COLORS)]


def _line(episode: "ReplayEpisode", agent: int) -> str:
    """The line style of an agent; agents of one colour have different ones."""
    groups = np.arange(episode.agents) if episode.groups is None else episode.groups
    return ("-", "--", ":", "-.")[int((groups[:agent] == groups[agent]).sum()) % 4]


def _words(episode: "ReplayEpisode", step: "ReplayStep", sale: "ReplaySale") -> str:
    """What happened in a sale, in two lines."""
    if sale.quantities:
        first = f"{_short(sale.good)}: price {_number(sale.price)}"
    elif sale.winner is None:
        first = "no agent buys the state"
    else:
        buyer, seller = (_short(episode.accounts[account]) for account in (sale.winner, sale.seller))
        first = f"{buyer} pays {_number(sale.price)} to {seller}: {_short(sale.action)}"
    utility = "" if math.isnan(step.utility) else f" · utility {_number(step.utility)}"
    return f"{first}\nreward {_number(step.reward)}{utility}{f' · {_short(step.end)}' if step.end else ''}"


def _number(value: float) -> str:
    return f"{round(value, 6) + 0.0:.3g}"  # rounding errors of float32, and -0, are not shown


def _draw_state(ax: "Axes", step: "ReplayStep", sale: "ReplaySale") -> None:
    """The picture of a state, or its numbers as a row of cells, and its text above."""
    ax.set_axis_off()
    if step.picture is not None:
        ax.imshow(step.picture, cmap="gray", vmin=0, vmax=255)
    elif step.numbers is not None and 0 < step.numbers.size <= _CELLS:
        cells = np.asarray(step.numbers, float).reshape(1, -1)
        ax.pcolormesh(cells, cmap="Blues", edgecolors="0.6", linewidth=1)
        ax.set(aspect="equal", xlim=(-0.1, cells.size + 0.1), ylim=(-0.1, 1.1))
    words = plotting.plain_text(step.state or sale.good)
    ax.set_title("\n".join(["for sale:", *textwrap.wrap(words, _SHORT)]), fontsize=9)


def _draw_bids(ax: "Axes", episode: "ReplayEpisode", sale: "ReplaySale", limits: tuple[float, float]) -> None:
    """A bar for each agent's bid."""
    agents = range(episode.agents)
    bars = ax.barh(agents, np.nan_to_num(sale.bids), 0.7, color=[_colour(episode, agent) for agent in agents])
    for agent, bar in zip(agents, bars, strict=True):
        bar.set_alpha(1.0 if sale.quantities or agent == sale.winner else 0.35)
    label = "quantity" if sale.quantities else "bid"
    if sale.winner is not None and not sale.quantities:
        ax.axvline(sale.price, color="0.15", linestyle="--", linewidth=1)
        label += " · dashed line: price"
    if sale.q is not None:
        ax.plot(sale.q, agents, "D", color="0.15", markersize=4)
        label += " · diamond: Q*"
    ax.set(xlim=limits, ylim=(episode.agents - 0.4, -0.6))
    ax.set_yticks(agents, [_short(name) for name in episode.accounts[: episode.agents]], fontsize=8)
    _small(ax, label)


def _draw_wealth(ax: "Axes", episode: "ReplayEpisode", t: int, limits: tuple[float, float]) -> None:
    """The wealth of every agent up to the end of step t."""
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    wealth = _wealth(episode)[: t + 2]
    for agent in range(episode.agents):
        ax.plot(range(t + 2), wealth[:, agent], _line(episode, agent), color=_colour(episode, agent), linewidth=1.5)
    ax.set(xlim=(0, len(episode.steps)), ylim=limits)
    ax.set_ylabel("wealth", fontsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _small(ax, f"{episode.unit}s")


def _small(ax: "Axes", label: str) -> None:
    ax.set_xlabel(label, fontsize=8)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)


def _wealth(episode: "ReplayEpisode") -> np.ndarray:
    """The wealth of every agent before the first step and after each step, f [steps + 1, agents]."""
    return np.stack([episode.opening, *(step.wealth for step in episode.steps)])[:, : episode.agents]


def _range_of_bids(episodes: "Sequence[ReplayEpisode]") -> tuple[float, float]:
    sales = [sale for episode in episodes for step in episode.steps for sale in step.sales]
    return _range(*(sale.bids for sale in sales), *(sale.q for sale in sales if sale.q is not None))


def _range(*values: np.ndarray) -> tuple[float, float]:
    """The range of some finite values and 0, with a margin."""
    every = np.concatenate([np.zeros(1), *(np.ravel(each) for each in values)])
    every = every[np.isfinite(every)]
    margin = 0.06 * float(np.ptp(every)) or 1.0
    return float(every.min()) - margin * bool(every.min() < 0), float(every.max()) + margin

"""Figures. Matplotlib is imported when the first figure is drawn; no window is opened.

`STYLE` and `COLORS` are the style of all figures, and `series_colors` gives an auction the same colour in each of them.
"""

import base64
import functools
import html
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxmarket.deep_market.market import FLOWS
from jaxmarket.metrics import env_steps
from jaxmarket.training.result import RunResult, agent_parts
from jaxmarket.validation import escaped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jaxmarket.deep_market import Lineage, RoundSummary
    from jaxmarket.environments.mazes import Maze
    from jaxmarket.environments.mental_rotation import MentalRotation
    from jaxmarket.runs.estimates import Estimate
    from jaxmarket.runs.populations import GrownMarket
    from jaxmarket.society import MarketPolicy

__all__ = [
    "COLORS",
    "DPI",
    "NAMED_COLORS",
    "STYLE",
    "composed_images",
    "draw_accuracy",
    "draw_band",
    "draw_best_reply_gain",
    "draw_bids",
    "draw_cash_flows",
    "draw_convergence",
    "draw_curves",
    "draw_estimates",
    "draw_final_returns",
    "draw_gains",
    "draw_heat_map",
    "draw_inequality",
    "draw_intervals",
    "draw_learning_curve",
    "draw_ledger",
    "draw_lineage",
    "draw_maze_policy",
    "draw_metric_curves",
    "draw_money_supply",
    "draw_population",
    "draw_price_stability",
    "draw_prices",
    "draw_quartiles",
    "draw_return_curves",
    "draw_returns_by_setting",
    "draw_scaling",
    "draw_seeds",
    "draw_stage_prices",
    "draw_strategy",
    "draw_wealth",
    "draw_weight_changes",
    "draw_winners",
    "figure",
    "image_element",
    "legend_below",
    "log_y_axis",
    "market_history",
    "plain_text",
    "png",
    "program_bids",
    "save",
    "series_colors",
    "step_axis",
]

DPI = 130
"""Resolution of figures, in dots per inch."""

COLORS = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
"""Colours of curves, in order, distinct under colour blindness: Matplotlib's ``petroff10`` (Petroff 2021)."""

NAMED_COLORS = {
    "ccv": COLORS[0],
    "bb": COLORS[1],
    "vickrey": COLORS[2],
    "env": COLORS[3],
    "monolith": COLORS[4],
}
"""The colour of each auction, by its name, and of the agent without a market."""

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.formatter.limits": (-5, 7),
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.prop_cycle": f"cycler('color', {list(COLORS)})",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.25,
}
"""Matplotlib's settings for all figures; for your own: ``with matplotlib.rc_context(plotting.STYLE)``."""

_NAMED = len(COLORS)  # up to this number of curves each has a colour and a name
_BAND = 0.18  # opacity of a band
_LEVELS = (":", "--", "-.")  # line styles of marked values


def figure(columns: int = 1, rows: int = 1, width: float = 6.0, height: float = 4.0) -> "tuple[Figure, list[Axes]]":
    """An empty figure in the style of this library (`STYLE`), with panels in rows and columns.

    Args:
        columns: panels side by side.
        rows: of panels.
        width: of a panel, in inches.
        height: of a panel, in inches.

    Returns:
        The figure, which a notebook shows, and its axes, row by row.
    """
    import matplotlib as mpl  # noqa: PLC0415

    with mpl.rc_context(STYLE):
        fig = _figure_class()(figsize=(width * columns, height * rows), layout="constrained", dpi=DPI)
        return fig, [fig.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]


def series_colors(names: Iterable[str]) -> dict[str, Any]:
    """A colour for each of several series, the same in every figure for the same auction or agent.

    A name that contains a word of `NAMED_COLORS`, such as ``"vickrey, 2 clones"``, has that colour, if no other name
    contains it, too. All other names have the other colours, in order.

    Args:
        names: of the series, distinct.
    """
    import matplotlib as mpl  # noqa: PLC0415

    names = list(names)
    if len(names) > _NAMED:
        return dict(zip(names, mpl.colormaps["viridis"](np.linspace(0, 0.95, len(names))), strict=True))
    # `env=Chain-v0` names an environment, not the auction `env`.
    words = {name: {*re.findall(r"[a-z]+(?![a-z=])", name)} & {*NAMED_COLORS} for name in names}
    owners = Counter(word for found in words.values() for word in found)
    known = {
        name: NAMED_COLORS[next(iter(found))]
        for name, found in words.items()
        if len(found) == 1 and owners[next(iter(found))] == 1
    }
    others = (color for color in COLORS if color not in known.values())
    return {name: known[name] if name in known else next(others) for name in names}


@functools.cache
def _figure_class() -> "type[Figure]":
    from matplotlib.figure import Figure  # noqa: PLC0415

    class ShownFigure(Figure):
        """A figure that a notebook shows even if pyplot, which Jupyter prepares for figures, was never imported."""

        def _repr_png_(self) -> bytes:
            return png(self)

    return ShownFigure


def save(fig: "Figure", path: str | Path) -> None:
    """Write a figure, as PNG unless the file name has the suffix of another format that Matplotlib supports."""
    kind = Path(path).suffix.lower().removeprefix(".")
    # Without a format, Matplotlib would append a suffix to the name.
    _write(fig, path, kind if kind in fig.canvas.get_supported_filetypes() else "png")


def png(fig: "Figure") -> bytes:
    """A figure as PNG."""
    _write(fig, file := io.BytesIO(), "png")
    return file.getvalue()


def image_element(fig: "Figure", description: str) -> str:
    """A figure as an HTML element with its picture, as wide as its inches say.

    Args:
        fig: the figure.
        description: for readers who do not see the picture.
    """
    data = base64.b64encode(png(fig)).decode("ascii")
    style = f"width: {fig.get_figwidth():g}in; max-width: 100%"
    return f'<img alt="{html.escape(description)}" style="{style}" src="data:image/png;base64,{data}">'


def _write(fig: "Figure", file: Any, kind: str) -> None:
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.text import Text  # noqa: PLC0415

    # If the user's settings enable TeX, a name with an underscore would raise an error.
    with mpl.rc_context({"text.usetex": False}):
        for text in fig.findobj(Text):
            text.set_usetex(False)  # type: ignore[attr-defined]
        fig.savefig(file, format=kind)


def draw_band(
    ax: "Axes", x: Any, middle: Any, low: Any, high: Any, *, color: Any, label: str | None = None, **line: Any
) -> None:
    """A curve with a band around it, such as a mean with its interval or a median with its quartiles.

    Args:
        ax: the axes to draw on.
        x: [T].
        middle: f [T], the curve.
        low: f [T], lower end of the band.
        high: f [T], upper end.
        color: of both.
        label: of the curve.
        line: further options of the curve, as of `matplotlib.axes.Axes.plot`.
    """
    ax.fill_between(x, low, high, color=color, alpha=_BAND, linewidth=0)
    ax.plot(x, middle, color=color, label=label, **line)


def draw_quartiles(
    ax: "Axes",
    x: Any,
    values: Any,
    *,
    color: Any,
    label: str | None = None,
    middle: Callable[..., np.ndarray] = np.nanmedian,
    **line: Any,
) -> None:
    """The median of values f [T, seeds] with their quartiles as a band; points at which all are NaN are left out.

    Args:
        ax: the axes to draw on.
        x: [T].
        values: f [T, seeds].
        color, label, line: as in `draw_band`.
        middle: of the values; with ``np.nanmean`` the curve is their mean.
    """
    known = ~np.isnan(np.asarray(values, np.float64)).all(1)
    values = np.asarray(values, np.float64)[known]
    low, high = np.nanpercentile(values, (25, 75), axis=1)
    draw_band(ax, np.asarray(x)[known], middle(values, axis=1), low, high, color=color, label=label, **line)


def draw_intervals(
    ax: "Axes", x: Any, estimates: "Sequence[Estimate]", *, color: Any, label: str | None = None
) -> None:
    """Estimates with their intervals as bars, connected by lines.

    Args:
        ax: the axes to draw on.
        x: [n].
        estimates: n of them.
        color, label: as in `draw_band`.
    """
    middle = np.array([each.value for each in estimates])
    sides = np.array([[each.value - each.low for each in estimates], [each.high - each.value for each in estimates]])
    ax.errorbar(x, middle, sides, color=color, marker="o", capsize=3, label=label)


def draw_estimates(
    ax: "Axes",
    labels: Sequence[str],
    series: "Mapping[str, Sequence[Estimate]]",
    colors: Mapping[str, Any] | None = None,
) -> None:
    """Horizontal bars with intervals, a group for each label and in it a bar for each series.

    Args:
        ax: the axes to draw on.
        labels: of the groups, from top to bottom.
        series: by name, one estimate for each label.
        colors: by name; by default a different one for each series.
    """
    colors = colors or series_colors(series)
    height = 0.85 / len(series)
    for i, (name, estimates) in enumerate(series.items()):
        value, low, high = np.array([[e.value, e.low, e.high] for e in estimates]).T
        y = np.arange(len(labels)) + (i - (len(series) - 1) / 2) * height
        ax.barh(y, value, 0.88 * height, xerr=[value - low, high - value], color=colors[name], alpha=0.8, label=name)
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.invert_yaxis()


def draw_seeds(ax: "Axes", x: Any, values: Any, *, color: Any, label: str | None = None) -> None:
    """Values f [T, seeds] at x [T]: a thin line for each seed and a thick one for their mean."""
    ax.plot(x, values, color=color, alpha=0.2, linewidth=0.8)
    ax.plot(x, np.mean(values, 1), color=color, linewidth=2, label=label)


def step_axis(ax: "Axes", label: str = "environment steps") -> None:
    """Label an x-axis of steps, rounds or other whole numbers, with ticks such as 20, 200k and 1M."""
    from matplotlib.ticker import EngFormatter, MaxNLocator  # noqa: PLC0415

    ax.set_xlabel(label)
    if ax.get_xscale() == "linear":
        ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def log_y_axis(ax: "Axes", ticks: Sequence[float]) -> None:
    """A logarithmic y-axis with these ticks only, as plain numbers."""
    ax.set_yscale("log")
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()


def legend_below(where: "Figure | Axes", columns: int = 4) -> None:
    """A legend below all panels of a figure, or below one panel, with every label once.

    Args:
        where: the figure, or the axes.
        columns: most columns; fewer where long labels would not fit.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    entries = {}
    for ax in where.axes if isinstance(where, Figure) else [where]:
        entries |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if not entries:
        return
    place: dict[str, Any] = {"loc": "outside lower center"}
    if isinstance(where, Figure):
        width = where.bbox.width
    else:  # below the labels of ticks and axis, whose height is that of four lines
        grid = where.get_subplotspec()
        width = 0.85 * where.figure.bbox.width / (grid.get_gridspec().ncols if grid else 1)
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 5.0}
    letters = width / DPI * 72 / _LEGEND_SIZE
    fitting = int(letters / (0.5 * max(map(len, entries)) + 4))
    where.legend(
        list(entries.values()),
        list(entries),
        ncols=max(1, min(columns, fitting, len(entries))),
        frameon=False,
        fontsize=_LEGEND_SIZE,
        **place,
    )


_LEGEND_SIZE = 8  # points


def plain_text(text: str) -> str:
    """Text for a figure: escaped, on one line, shortened in its middle, and without formulas.

    Matplotlib interprets text between dollar signs as formulas, and omits labels that begin with an underscore from
    legends.
    """
    line = escaped(text)
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]}…{line[-_LONGEST // 2 :]}"
    return (" " + line if line.startswith("_") else line).replace("$", r"\$")


_LONGEST = 80


def _name(result: RunResult) -> str:
    return " · ".join(map(plain_text, [result.summary["env"], *agent_parts(result.summary)]))


def draw_learning_curve(ax: "Axes", result: RunResult) -> None:
    """Return against environment steps: seeds as thin lines, their mean, and the final greedy return (dashed)."""
    returns = result.metrics["return_mean"]
    steps = env_steps(result.metrics["duration"], result.config.settings.auctions_per_chunk).mean(1)
    ax.plot(steps, returns[:, 0], color=COLORS[0], alpha=0.3, linewidth=1, label="each seed, during training")
    ax.plot(steps, returns[:, 1:], color=COLORS[0], alpha=0.3, linewidth=1)
    kept = returns[:, np.isfinite(result.summary["return_seeds"])]  # seeds that did not diverge
    finished = ~np.isnan(kept).all(axis=1)
    if finished.any():
        mean = np.nanmean(kept[finished], axis=1)
        ax.plot(steps[finished], mean, color=COLORS[0], linewidth=2, label="mean of seeds")
    if kept.shape[1]:
        ax.axhline(
            result.summary["return_mean"],
            color=COLORS[2],
            linestyle="--",
            linewidth=1.2,
            label="greedy, after training",
        )
    ax.set(ylabel="undiscounted return", title=_name(result))
    step_axis(ax, "environment steps per seed")
    legend_below(ax)


def draw_best_reply_gain(ax: "Axes", result: RunResult) -> None:
    """The metric ``best_reply_gain`` against environment steps: seeds as thin lines, and their mean."""
    gains = result.metrics["best_reply_gain"]
    known = np.isfinite(gains).any(1)
    steps = env_steps(result.metrics["duration"], result.config.settings.auctions_per_chunk).mean(1)[known]
    ax.plot(steps, gains[known], color=COLORS[1], alpha=0.3, linewidth=1)
    ax.plot(steps, gains[known].mean(1), color=COLORS[1], linewidth=2, label="largest gain of a best reply")
    ax.set(ylabel="gain, units of reward", title="distance from equilibrium", ylim=(0, None))
    step_axis(ax, "environment steps per seed")
    legend_below(ax)


def draw_bids(ax: "Axes", result: RunResult, title: str | None = None) -> None:
    """Greedy bids for every primitive in every visited state, with their range over seeds, and Q* as black lines."""
    if result.q is None or result.bids is None or result.visited is None:
        raise ValueError(
            f"result: Q* of {result.summary['env']} is unknown; give a run on an environment with exact values"
        )
    q = result.q
    shown = np.flatnonzero(result.visited.any(0))
    kept = result.bids[np.isfinite(result.bids).all((1, 2))]  # seeds that did not diverge
    primitives = q.shape[1]
    width = 0.8 / primitives
    for p in range(primitives):
        x = np.arange(len(shown)) + (p - (primitives - 1) / 2) * width
        bids = kept[:, shown, p]
        error = np.abs(np.stack([bids.min(0), bids.max(0)]) - bids.mean(0))
        ax.bar(x, bids.mean(0), width * 0.9, yerr=error, color=COLORS[p % _NAMED], label=f"bid for action {p}")
        ax.hlines(q[shown, p], x - width / 2, x + width / 2, color="black", linestyle="-", linewidth=2)
    ax.plot([], [], color="black", linewidth=2, label="Q*")
    ax.set_xticks(np.arange(len(shown)), [f"s{s}" for s in shown])
    ax.set(
        xlabel="state",
        ylabel="greedy bid",
        title=plain_text(title) if title else f"{_name(result)}\ngreedy bids and Q*, visited states",
    )
    legend_below(ax)


def draw_weight_changes(ax: "Axes", rows: list[dict[str, Any]], *, color: str = COLORS[0], title: str = "") -> None:
    """Relative change of every part of the networks (`transfer.weight_changes`): mean and range over seeds."""
    names = list(dict.fromkeys(row["part"] for row in rows))
    values = np.array([[row["change"] for row in rows if row["part"] == name] for name in names])
    mean = values.mean(1)
    error = np.abs(np.stack([values.min(1), values.max(1)]) - mean)
    ax.barh([plain_text(name) for name in names], mean, xerr=error, color=color, alpha=0.8)
    ax.invert_yaxis()
    ax.tick_params(axis="y", labelsize=7)
    # Small parts can change by many times their size: clip these bars. Parts that were zero before have no bar.
    ax.set_xlim(0, max(1e-3, min(2.0, 1.05 * float(np.nanmax(values, initial=0)))))
    ax.set(xlabel="|after - before| / |before|", title=plain_text(title))


def draw_accuracy(ax: "Axes", curves: "Mapping[str, tuple[Any, Any]]", *, chance: float) -> None:
    """Held-out accuracy of classifiers against training examples: a thin line for each seed and a thick mean.

    Args:
        ax: the axes to draw on.
        curves: by name: examples so far i [T], accuracy f [T, seeds].
        chance: the accuracy of guessing, marked by a dotted line.
    """
    colors = series_colors(curves)
    for name, (examples, accuracy) in curves.items():
        draw_seeds(ax, examples, accuracy, color=colors[name], label=name)
    ax.axhline(chance, color="gray", linestyle=":", linewidth=1)
    ax.set(xscale="log", ylabel="held-out accuracy", ylim=(0, 1.02))
    step_axis(ax, "examples")
    legend_below(ax)


def draw_gains(ax: "Axes", names: Sequence[str], best: Any, trained: "Sequence[Any]") -> None:
    """Gains over truthful bids: a bar for each best reply, and a dot for each seed of the trained bidder.

    Args:
        ax: the axes to draw on.
        names: of the bidders, n.
        best: gain of the best reply, f [n].
        trained: gains of the trained ones, n times f [seeds].
    """
    ax.bar(range(len(names)), best, 0.6, color=COLORS[0], alpha=0.35, label="best reply, exact")
    for i, gains in enumerate(trained):
        label = "trained, each seed" if i == 0 else None
        ax.plot(_beside(i, 0.2, gains), gains, ".", color=COLORS[1], label=label, clip_on=False, zorder=3)
    ax.axhline(0, color="black", linewidth=1.2, label="truthful bids")
    ax.set_xticks(range(len(names)), names, fontsize=8)
    ax.set_ylabel("gain over truthful bidding")


def draw_strategy(ax: "Axes", compared: Mapping[str, np.ndarray], times: Any, states: Any) -> None:
    """Bids for states of others and for one's own: of each seed of a trained bidder, the best ones, and truthful ones.

    Args:
        ax: the axes to draw on.
        compared: what `jaxmarket.interop.bidder.Exact.compare` returns.
        times: of the bids, i [n].
        states: for sale at those times, i [n].
    """
    for owns, color, label in ((0, COLORS[0], "another's state"), (1, COLORS[1], "its own state")):
        for time, state in zip(times, states, strict=True):
            middle, bids = state + (owns - 0.5) * 0.4, compared["learned"][:, time, state, owns]
            ax.plot(_beside(middle, 0.12, bids), bids, ".", color=color, alpha=0.6)
            ax.plot(middle, compared["best"][time, state, owns], "D", color=color, fillstyle="none", markersize=8)
        ax.plot([], [], ".", color=color, label=f"trained, {label}")
    ax.plot([], [], "D", color="grey", fillstyle="none", label="best reply closest to truthful bids")
    truth, states = compared["truth"][times, states, 0], np.asarray(states)
    ax.hlines(truth, states - 0.4, states + 0.4, color="black", linewidth=2, label="Q*")
    ax.set(xlabel="state", ylabel="bid")


def _beside(x: float, width: float, values: Any) -> np.ndarray:
    """Places of values side by side around x."""
    return x + np.linspace(-width, width, len(values))


# --- several runs, several settings


def draw_metric_curves(
    ax: "Axes",
    runs: Mapping[str, RunResult],
    metric: str,
    *,
    title: str = "",
    levels: "Mapping[str, float] | None" = None,
) -> None:
    """A metric against environment steps: for each run the median over seeds, with its quartiles as a band.

    Args:
        ax: the axes to draw on; the axis of steps is logarithmic.
        runs: by name.
        metric: one of `RunResult.metrics`, [chunks, seeds].
        title: of the axes.
        levels: at most three values of the metric, by label, to mark by black lines.
    """
    curves = {}
    for name, run in runs.items():
        steps = env_steps(run.metrics["duration"], run.config.settings.auctions_per_chunk)
        curves[name] = np.median(steps, 1), run.metrics[metric]
    draw_curves(ax, curves, title=title)
    for (label, level), style in zip((levels or {}).items(), _LEVELS, strict=False):
        ax.axhline(level, color="black", linewidth=0.8, linestyle=style, label=label)


def draw_curves(
    ax: "Axes", curves: Mapping[str, tuple[Any, Any]], colors: Mapping[str, Any] | None = None, *, title: str = ""
) -> None:
    """Values against environment steps: for each name the median over seeds, with its quartiles as a band.

    Args:
        ax: the axes to draw on; the axis of steps is logarithmic.
        curves: by name: steps [T], and values f [T, seeds].
        colors: by name; by default those of `series_colors`.
        title: of the axes.
    """
    colors = colors or series_colors(curves)
    for name, (steps, values) in curves.items():
        draw_quartiles(ax, steps, values, color=colors[name], label=name)
    ax.set(xscale="log", title=title)
    step_axis(ax, "environment steps per seed")


def draw_return_curves(
    ax: "Axes",
    curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
    *,
    target: float | None = None,
) -> None:
    """Return against environment steps: a curve with its band for each run.

    Args:
        ax: the axes to draw on.
        curves: by name: steps, mean, lower and upper end of the band, f [T] each; NaN leaves a gap.
        target: a return to mark by a dotted line.
    """
    for (name, (steps, mean, low, high)), color in zip(curves.items(), series_colors(curves).values(), strict=True):
        draw_band(ax, steps, mean, low, high, color=color, linewidth=1.8, label=plain_text(name))
    if target is not None and np.isfinite(target):
        ax.axhline(target, color="black", linestyle=":", linewidth=1, label=f"target {target:.3g}")
    ax.set(ylabel="undiscounted return")
    step_axis(ax, "environment steps per seed")
    if len(curves) <= _NAMED:  # a longer legend would hide the curves; `draw_final_returns` names the colours
        legend_below(ax)


def draw_final_returns(
    ax: "Axes", values: Mapping[str, np.ndarray], estimates: Mapping[str, tuple[float, float, float]]
) -> None:
    """A row for each run: a dot per seed, and their mean with its interval.

    Args:
        ax: the axes to draw on.
        values: by name: f [seeds].
        estimates: by name: mean, lower and upper end.
    """
    for row, (name, color) in enumerate(series_colors(values).items()):
        seeds = np.sort(values[name])
        ax.plot(seeds, _beside(row, 0.22, seeds), "o", color=color, alpha=0.35, markersize=4)
        mean, low, high = estimates[name]
        ax.plot([low, high], [row, row], color=color, linewidth=2.5, solid_capstyle="butt")
        ax.plot([mean], [row], "|", color=color, markersize=16, markeredgewidth=2.5)
    ax.set_yticks(range(len(values)), [plain_text(name) for name in values], fontsize=8)
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.set(xlabel="undiscounted return")


def draw_returns_by_setting(
    ax: "Axes",
    lines: Mapping[str, tuple[Sequence[float], np.ndarray]],
    name: str,
    *,
    log: bool = False,
    joined: bool = True,
) -> None:
    """Return against one numeric setting: a line with intervals for each label.

    Args:
        ax: the axes to draw on.
        lines: by label (an empty one is not shown): values of the setting [n]; mean, lower and upper end [n, 3].
        name: of the setting.
        log: whether the axis of the setting is logarithmic.
        joined: whether the points of a line are joined.
    """
    for (label, (x, estimates)), color in zip(lines.items(), series_colors(lines).values(), strict=True):
        order = np.argsort(x)
        mean, low, high = np.asarray(estimates)[order].T
        # A single seed has no interval.
        error = np.nan_to_num(np.stack([mean - low, high - mean]))
        ax.errorbar(
            np.asarray(x)[order],
            mean,
            yerr=error,
            fmt="o-" if joined else "o",
            color=color,
            capsize=3,
            label=plain_text(label) or None,
        )
    if log:
        ax.set_xscale("log")
    ax.set(xlabel=plain_text(name), ylabel="greedy return, mean of seeds and 95% interval")
    if any(lines):
        legend_below(ax)


def draw_scaling(ax: "Axes", costs: "Mapping[str, Mapping[float, Estimate]]") -> None:
    """Costs against sizes on logarithmic axes: a line with intervals for each name.

    Args:
        ax: the axes to draw on.
        costs: by name and size; a name without a size is left out.
    """
    colors = series_colors(costs)
    for name, found in costs.items():
        if found:
            draw_intervals(ax, list(found), list(found.values()), color=colors[name], label=name)
    ax.set(xscale="log", yscale="log")
    sizes = sorted({size for found in costs.values() for size in found})
    ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
    ax.minorticks_off()


def draw_heat_map(ax: "Axes", values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """A heat map of a number for each pair of settings, with the number printed in each cell.

    Args:
        ax: the axes to draw on.
        values: f [rows, columns]; NaN stays white.
        rows: labels of the rows.
        columns: labels of the columns.
    """
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    ax.imshow(values, aspect="auto", cmap="viridis", vmin=low, vmax=high if high > low else low + 1)
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            dark = value < low + 0.6 * (high - low)
            ax.text(j, i, f"{value:.3g}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
    ax.set_xticks(range(len(columns)), [plain_text(name) for name in columns], fontsize=8)
    ax.set_yticks(range(len(rows)), [plain_text(name) for name in rows], fontsize=8)
    ax.grid(visible=False)


def draw_winners(ax: "Axes", counts: np.ndarray, regions: Sequence[str], parts: Sequence[str], title: str = "") -> None:
    """Who acts where: a bar for each region of the state space, divided by the share of each part in its decisions.

    Args:
        ax: the axes to draw on.
        counts: f [R, P], as of `jaxmarket.metrics.wins_by_region`.
        regions: their names, from top to bottom.
        parts: names of the primitives, experts or options.
        title: of the axes.
    """
    colors, left = series_colors(parts), np.zeros(len(regions))
    for name, share in zip(parts, (counts / counts.sum(1, keepdims=True)).T, strict=True):
        ax.barh(range(len(regions)), share, 0.8, left, color=colors[name], label=name)
        left = left + share
    ax.set_yticks(range(len(regions)), [plain_text(name) for name in regions], fontsize=8)
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.set(xlim=(0, 1), xlabel="share of decisions", title=title)


def draw_ledger(ax: "Axes", money: np.ndarray, accounts: Sequence[str], title: str = "") -> None:
    """Payments from each account, one per row, to each account, one per column.

    Args:
        ax: the axes to draw on.
        money: f [accounts, accounts], from payer to payee.
        accounts: names.
        title: of the axes.
    """
    ax.grid(visible=False)
    ax.imshow(money, cmap="Greens", vmin=0, vmax=max(money.max(), 1e-9))
    for (payer, payee), amount in np.ndenumerate(money):
        if abs(amount) >= 0.005:  # otherwise it would be shown as 0.00
            dark = amount > 0.6 * money.max()
            ax.text(payee, payer, f"{amount:.2f}", ha="center", va="center", fontsize=7, color="w" if dark else "k")
    names = [plain_text(name) for name in accounts]
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    ax.set_yticks(range(len(names)), names, fontsize=7)
    ax.set(xlabel="is paid", ylabel="pays", title=title)


# --- deep markets: the rounds of one market, NumPy leaves [rounds, ...]

_WINDOWS = 60  # points of a curve, each a mean over rounds


def _windows(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Means over windows of equal length: the last round of each window, [W], and its mean, [W, ...]."""
    width = max(1, len(values) // _WINDOWS)
    count = len(values) // width
    ends = width * np.arange(1, count + 1)
    return ends, np.asarray(values[: count * width], float).reshape(count, width, *values.shape[1:]).mean(1)


def draw_population(ax: "Axes", rounds: "RoundSummary") -> None:
    """Number of living agents, and births and deaths per round."""
    ends, living = _windows(rounds.num_agents)
    ax.plot(ends, living, color="black", label="living")
    ax.set(ylabel="agents", ylim=(0, None), title="population")
    changes = ax.twinx()
    changes.spines["top"].set_visible(False)
    births, deaths = (rounds.births.ident >= 0).sum(-1), rounds.births.deaths
    for label, values, color in (("births", births, COLORS[0]), ("deaths", deaths, COLORS[1])):
        changes.plot(ends, _windows(values)[1], color=color, linewidth=1, label=label)
        ax.plot([], [], color=color, linewidth=1, label=f"{label}, right axis")
    changes.set(ylabel="per round", ylim=(0, None))
    step_axis(ax, "round")
    legend_below(ax)


def draw_wealth(ax: "Axes", rounds: "RoundSummary") -> None:
    """Quartiles of the living agents' wealth, and the richest."""
    from matplotlib.ticker import LogLocator  # noqa: PLC0415

    ends, wealth = _windows(rounds.wealth)
    ax.fill_between(ends, wealth[:, 1], wealth[:, 3], color=COLORS[0], alpha=0.25, label="middle half")
    ax.plot(ends, wealth[:, 2], color=COLORS[0], label="median")
    ax.plot(ends, wealth[:, 4], color=COLORS[1], label="richest")
    lowest = max(1e-3, float(wealth[:, 1].min()))
    ax.set_yscale("log")
    ax.set_ylim(lowest / 1.5, 1.5 * max(lowest, float(wealth[:, 4].max())))
    if wealth[:, 4].max() < 30 * lowest:  # less than a decade or two: more ticks than the powers of ten
        ax.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        ax.yaxis.set_minor_formatter("{x:g}")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set(ylabel="wealth", title="wealth of the living")
    step_axis(ax, "round")
    legend_below(ax)


def draw_inequality(ax: "Axes", rounds: "RoundSummary") -> None:
    """Gini coefficient of wealth, and the market share of the agent that wins most."""
    ends, gini = _windows(rounds.gini)
    ax.plot(ends, gini, color=COLORS[4], label="Gini coefficient of wealth")
    ax.plot(ends, _windows(rounds.top_share)[1], color="gray", label="auctions won by one agent (share)")
    ax.set(ylabel="share", ylim=(0, 1), title="inequality")
    step_axis(ax, "round")
    legend_below(ax)


def draw_money_supply(ax: "Axes", rounds: "RoundSummary", opened: float) -> None:
    """All money in the market, and the opening balance plus all named cash flows, which must be equal."""
    named = opened + np.cumsum(np.asarray(rounds.flows.net))
    every = max(1, len(named) // 400)
    ax.plot(np.arange(1, len(named) + 1)[::every], rounds.money[::every], color=COLORS[0], label="money")
    marks = max(1, len(named) // 12)
    ax.plot(
        np.arange(1, len(named) + 1)[::marks],
        named[::marks],
        "x",
        color="black",
        markersize=5,
        label="opening + named flows",
    )
    ax.set(ylabel="money", title="money supply")
    step_axis(ax, "round")
    legend_below(ax)


def draw_cash_flows(ax: "Axes", rounds: "RoundSummary") -> None:
    """Money created (positive) and removed (negative) by each flow, per round. Flows that are always 0 are left out."""
    for color, (name, label) in zip(series_colors(FLOWS).values(), FLOWS.items(), strict=True):
        if name in rounds.flows.names and np.any(rounds.flows[name]):
            ends, mean = _windows(rounds.flows[name])
            ax.plot(ends, mean, color=color, label=label)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set(ylabel="money per round", title="cash flows")
    step_axis(ax, "round")
    legend_below(ax, columns=3)


def draw_lineage(ax: "Axes", lineage: "Lineage", ident: int, *, name: str = "the richest", most: int = 60) -> None:
    """The family tree of an agent: all descendants of its first ancestor, with its own line marked.

    Each agent is a row that begins at its birth; a vertical line leads from its parent's row to its own.

    Args:
        ax: the axes to draw on.
        lineage: of the population.
        ident: of the agent.
        name: of the agent, in the title and in the legend.
        most: largest number of other members of the family to draw, the youngest ones.
    """
    line, family = lineage.ancestors(ident), lineage.family(ident)
    generation: dict[int, int] = {}
    for who in family:
        generation[who] = 1 + generation.get(int(lineage.parent[who]), 0)
    shown = {*line, *family[-most:]}
    height = {who: i for i, who in enumerate(_depth_first(lineage, shown))}
    for who in shown:
        row, mother = height[who], int(lineage.parent[who])
        own = who in line
        style = {"color": COLORS[1] if own else "gray", "linewidth": 2 if own else 0.8, "zorder": 3 if own else 2}
        if mother in height:
            ax.plot([lineage.born[who]] * 2, [height[mother], row], **style)
            ax.plot([lineage.born[mother], lineage.born[who]], [height[mother]] * 2, **style)
        ax.plot(lineage.born[who], row, "o", markersize=5 if own else 3, **style)
    ax.plot([], [], "o-", color=COLORS[1], linewidth=2, markersize=5, label=f"{name} and its ancestors")
    ax.plot([], [], "o-", color="gray", linewidth=0.8, markersize=3, label="others")
    agents = f"{len(family)} agents in {max(generation.values())} generations"
    left_out = len(family) - len(shown)
    ax.set(title=f"family of {name}:\n{agents}" + (f", {left_out} not shown" if left_out else ""))
    ax.set_yticks([])
    ax.grid(visible=False, axis="y")
    step_axis(ax, "round of birth")
    legend_below(ax)


def market_history(grown: "GrownMarket", seed: int, title: str) -> "Figure":
    """A figure of one seed of a deep market: agents, wealth, inequality, money, cash flows, family of the richest."""
    fig, axes = figure(3, 2, width=5.2, height=3.4)
    rounds, population = grown.seed(seed), grown.population(seed)
    draw_population(axes[0], rounds)
    draw_wealth(axes[1], rounds)
    draw_inequality(axes[2], rounds)
    draw_money_supply(axes[3], rounds, float(grown.opened[seed]))
    draw_cash_flows(axes[4], rounds)
    draw_lineage(axes[5], grown.lineage(seed), int(population.ident[grown.richest(seed, 1)[0]]))
    fig.suptitle(f"{title}, seed {seed}", fontsize=10)
    return fig


def draw_maze_policy(ax: "Axes", maze: "Maze", sold: Any, price: Any, moves: Any, highest: float | None = None) -> None:
    """A maze with the price of every free place and the move of its buyer, as `deep_market.evaluation.policy` returns.

    Args:
        ax: the axes to draw on.
        maze: the maze.
        sold: whether any agent bids for a place, bool [S].
        price: f [S].
        moves: i [S].
        highest: the price with the darkest colour; that of the most expensive place by default.
    """
    rows, columns = len(maze.layout), len(maze.layout[0])
    prices = np.full((rows, columns), np.nan)
    for i, place in enumerate(maze.places):
        if place in maze.free and sold[i]:
            prices[place] = price[i]
    if highest is None:
        highest = float(prices[np.isfinite(prices)].max(initial=1e-3))
    image = ax.imshow(prices, cmap="YlGn", vmin=0, vmax=highest)
    ax.figure.colorbar(image, label="price", shrink=0.85)
    for row, column in np.ndindex(rows, columns):
        what = maze.layout[row][column]
        if what != ".":
            color = "gray" if what == "O" else COLORS[2]
            ax.text(column, row, what, ha="center", va="center", fontsize=16, color=color)
    for i, (row, column) in enumerate(maze.places):
        if (row, column) not in maze.free:
            continue
        ink = "white" if prices[row, column] > 0.6 * highest else "black"
        if sold[i]:
            ax.text(column, row + 0.38, f"{prices[row, column]:.2f}", ha="center", va="center", fontsize=8, color=ink)
            down, right = 0.2 * np.array(maze.moves[int(moves[i])])
            start, end = (column - right, row - 0.08 - down), (column + right, row - 0.08 + down)
            ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": ink})
    ax.grid(visible=False)
    ax.set_xticks([])
    ax.set_yticks([])


def composed_images(env: "MentalRotation", policy: "MarketPolicy") -> "Figure":
    """A figure of the images that a policy makes of one held-out digit for each combination, with the winning bids."""
    from jaxmarket.training.programs import compose_all  # noqa: PLC0415  it imports gymnax

    digits, combinations = env.held_out[: len(env.combinations)], np.array(env.combinations, np.int32)
    made, bids = jax.device_get(compose_all(env, policy, (digits, combinations), keep=True))
    columns = int(made.applied.max()) + 1
    fig, axes = figure(columns=columns, rows=len(combinations), width=1.9, height=1.75)
    for ax in axes:
        ax.set_axis_off()
    for i, (digit, combination, last) in enumerate(zip(digits, combinations, made.applied, strict=True)):
        chosen = [f"{env.names[p]} ({bid[p]:.2f})" for p, bid in zip(made.choices[i], bids[i], strict=True)]
        titles = [env.describe(combination), *chosen[:last]]
        read, label = int(env.reader(made.values[i, last]).argmax()), env.digits.labels[digit]
        # After the last function the policy may choose to stop.
        titles[last] += "".join(f"\n{choice}" for choice in chosen[last : last + 1])
        titles[last] += f"\nread: {read}" + ("" if read == label else f", is {label}")
        for t, title in enumerate(titles):
            ax = axes[i * columns + t]
            ax.imshow(made.values[i, t], cmap="gray", vmin=0, vmax=1)
            ax.set_title(title, fontsize=7)
    return fig


def program_bids(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> "Figure":
    """A figure of the bids along exact inverses, with a red mark on the right primitive of each auction.

    Args:
        rows: of `jaxmarket.runs.digit_programs.bid_rows`.
        names: of the primitives.
    """
    fig, (ax,) = figure(width=8.0, height=1.5 + 0.25 * len(rows))
    bids = np.array([[row[name] for name in names] for row in rows])
    draw_heat_map(ax, bids, [f"{row['what was done']} · auction {row['auction']}" for row in rows], names)
    beside = [names.index(row["right"]) - 0.35 for row in rows]  # of the number
    ax.plot(beside, range(len(rows)), "o", color=COLORS[2], markersize=5, label="exact inverse")
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    ax.set_title("mean greedy bids along the exact inverse", loc="left")
    return fig


def _depth_first(lineage: "Lineage", members: set[int]) -> list[int]:
    """The members of a family, each branch in one piece and the youngest first, so that no lines cross."""
    children: dict[int, list[int]] = {}
    roots = []
    for who in sorted(members):
        mother = int(lineage.parent[who])
        (children.setdefault(mother, []) if mother in members else roots).append(who)
    order, stack = [], roots[::-1]
    while stack:
        order.append(stack.pop())
        stack.extend(children.get(order[-1], []))
    return order


# --- wide markets: prices by good


def _per_good(ax: "Axes", x: np.ndarray, values: np.ndarray, goods: Sequence[str] | None) -> None:
    """A line for each good: x [K], values [K, G]."""
    names = [f"good {j}" for j in range(values.shape[1])] if goods is None else goods
    for j, name in enumerate(names):
        ax.plot(x, values[:, j], color=COLORS[j % _NAMED], label=plain_text(name))


def draw_prices(ax: "Axes", prices: Any, goods: Sequence[str] | None = None, title: str = "prices") -> None:
    """Prices of every good over rounds, f [T, G]; NaN leaves a gap."""
    prices = np.asarray(prices, float)
    _per_good(ax, np.arange(1, len(prices) + 1), prices, goods)
    ax.set(ylabel="price per unit", ylim=(0, None), title=plain_text(title))
    step_axis(ax, "round")
    legend_below(ax)


def draw_stage_prices(ax: "Axes", prices: Mapping[str, Any], worth: Any) -> None:
    """Prices of pieces by their stage on a production line, and their discounted values as a dashed line.

    Args:
        ax: the axes to draw on.
        prices: by name: f [..., K], drawn as points, those of one line joined; several names are shaded in order.
        worth: f [K], as from `jaxmarket.environments.SupplyChain.worth`.
    """
    import matplotlib as mpl  # noqa: PLC0415

    stages, shades = np.arange(len(worth)), mpl.colormaps["viridis"](np.linspace(0.9, 0, len(prices)))
    for (name, values), color in zip(prices.items(), shades if len(prices) > 1 else COLORS[1:2], strict=True):
        lines = np.reshape(values, (-1, len(worth)))
        mark, alpha = ("o-", 1.0) if len(lines) == 1 else ("o", 0.3)
        ax.plot(stages, lines.T, mark, color=color, alpha=alpha, markersize=8)
        ax.plot([], [], mark, color=color, markersize=8, label=plain_text(name))
    ax.plot(stages, worth, color="black", linewidth=1, linestyle="--", label="discounted value")
    ax.set(xlabel="stage of the piece", ylabel="price", xticks=stages, ylim=(-0.1, max(worth) * 1.08))


def draw_convergence(
    ax: "Axes", excess: Any, goods: Sequence[str] | None = None, tolerance: float | None = None
) -> None:
    """The absolute excess demand over the supply of every good after each adjustment, f [K, G].

    The excess of a good whose equilibrium price is 0 does not converge to 0: supply exceeds demand.
    """
    size = np.abs(np.asarray(excess, float))
    _per_good(ax, np.arange(len(size)), np.where(size > 0, size, np.nan), goods)
    if tolerance is not None:
        ax.axhline(tolerance, color="black", linestyle=":", linewidth=1.2, label="tolerance")
    ax.set_yscale("log")
    ax.set(ylabel="|demand - supply| / supply", title="convergence to an equilibrium")
    step_axis(ax, "price adjustments")
    legend_below(ax)


def draw_price_stability(ax: "Axes", agents: Any, spread: Any, goods: Sequence[str] | None = None) -> None:
    """Spread of prices against the number of agents, with 1 / √N for comparison.

    Args:
        ax: the axes to draw on.
        agents: [K], number of agents N in each market.
        spread: f [K, G] (`welfare.dispersion`).
        goods: names of the goods; default: numbers.
    """
    agents, spread = np.asarray(agents, float), np.asarray(spread, float)
    _per_good(ax, agents, spread, goods)
    for line in ax.get_lines():
        line.set_marker("o")
    middle = np.exp(np.mean(np.log(spread) + np.log(agents)[:, None] / 2))
    ax.plot(agents, middle / np.sqrt(agents), color="black", linestyle=":", label="1 / √N")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(agents, [f"{n:g}" for n in agents])
    ax.set_xticks([], minor=True)
    ax.set(xlabel="agents", ylabel="spread of the price (std / mean)", title="price stability")
    legend_below(ax)

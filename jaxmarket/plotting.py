"""Figures. Matplotlib is imported when the first one is drawn, and no window is ever opened."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmarket.metrics import env_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jaxmarket.runs import SavedRun
    from jaxmarket.training import FitResult

    Result = FitResult | SavedRun

__all__ = ["draw_bids", "draw_learning_curve", "draw_weight_changes", "figure", "save"]


def figure(columns: int = 1, rows: int = 1, width: float = 6.0, height: float = 4.0) -> "tuple[Figure, list[Axes]]":
    """An empty figure with panels side by side, row after row."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    fig = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=130)
    axes = [fig.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    return fig, axes


def save(fig: "Figure", path: str | Path) -> None:
    """Write a figure as PNG."""
    fig.savefig(path)


def _name(result: "Result") -> str:
    return " · ".join(result.summary[part] or "one agent" for part in ("env", "auction", "learner"))


def draw_learning_curve(ax: "Axes", result: "Result") -> None:
    """Return against environment steps: every seed thin, their mean thick, the final greedy return dashed."""
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415

    returns = result.metrics["return_mean"]
    steps = env_steps(result.metrics["duration"], result.config.auctions_per_chunk).mean(1)
    ax.plot(steps, returns[:, 0], color="tab:blue", alpha=0.3, linewidth=1, label="each seed, while learning")
    ax.plot(steps, returns[:, 1:], color="tab:blue", alpha=0.3, linewidth=1)
    finished = ~np.isnan(returns).all(axis=1)
    if finished.any():
        mean = np.nanmean(returns[finished], axis=1)
        ax.plot(steps[finished], mean, color="tab:blue", linewidth=2, label="mean of seeds")
    ax.axhline(
        result.summary["return_mean"],
        color="tab:green",
        linestyle="--",
        linewidth=1.2,
        label="greedy, in the end (mean of seeds)",
    )
    ax.set(
        xlabel="environment steps per seed",
        ylabel="undiscounted return",
        title=_name(result),
    )
    ax.xaxis.set_major_formatter(EngFormatter())
    ax.legend(frameon=False, fontsize=8)


def draw_bids(ax: "Axes", result: "Result", title: str | None = None) -> None:
    """Greedy bid of every primitive in every visited state (bars: spread over seeds) beside Q* (dashes)."""
    if result.q is None or result.bids is None or result.visited is None:
        raise ValueError(f"bids against Q* need an environment with a known Q*, {result.summary['env']} has none")
    q = result.q
    shown = np.flatnonzero(result.visited.any(0))
    primitives = q.shape[1]
    width = 0.8 / primitives
    for p in range(primitives):
        x = np.arange(len(shown)) + (p - (primitives - 1) / 2) * width
        bids = result.bids[:, shown, p]
        error = np.abs(np.stack([bids.min(0), bids.max(0)]) - bids.mean(0))
        ax.bar(x, bids.mean(0), width * 0.9, yerr=error, color=f"C{p}", alpha=0.75, label=f"bid for action {p}")
        ax.hlines(q[shown, p], x - width / 2, x + width / 2, color="black", linestyle="-", linewidth=2)
    ax.plot([], [], color="black", linewidth=2, label="Q*")
    ax.margins(y=0.25)  # room for the legend above the bars
    ax.set_xticks(np.arange(len(shown)), [f"s{s}" for s in shown])
    ax.set(
        xlabel="state", ylabel="greedy bid", title=title or f"{_name(result)}: greedy bids beside Q*, visited states"
    )
    ax.legend(frameon=False, fontsize=8, ncol=3, loc="upper center")


def draw_weight_changes(ax: "Axes", rows: list[dict[str, Any]], *, color: str = "tab:blue", title: str = "") -> None:
    """Relative change of every part (`transfer.weight_changes`): mean over seeds, and their range as bars."""
    names = list(dict.fromkeys(row["part"] for row in rows))
    values = np.array([[row["change"] for row in rows if row["part"] == name] for name in names])
    mean = values.mean(1)
    ax.barh(names, mean, xerr=np.abs(np.stack([values.min(1), values.max(1)]) - mean), color=color, alpha=0.8)
    ax.invert_yaxis()
    ax.tick_params(axis="y", labelsize=7)
    # What was nearly nothing before moves by many times itself: let it leave the picture.
    ax.set_xlim(0, max(1e-3, min(2.0, 1.05 * float(np.max(values)))))
    ax.set(xlabel="|after - before| / |before|", title=title)

"""The display of a run during training: the curve of its return, and the output of a notebook's cell."""

import threading
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from jaxmarket.view import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CellOutput", "LiveCurve"]

_BLOCKS = "▁▂▃▄▅▆▇█"


class LiveCurve:
    """The return of every seed against environment steps, from the start of a run until now."""

    def __init__(self) -> None:
        self._steps: list[float] = []
        self._returns: list[np.ndarray] = []
        self._diverged: np.ndarray | bool = False
        self._element = ""
        self._next = 0.0

    def add(self, steps: float, returns: np.ndarray, diverged: np.ndarray) -> None:
        """Add a point.

        Args:
            steps: environment steps per seed so far.
            returns: f [seeds], NaN where no episode ended.
            diverged: bool [seeds]; such a seed is left out, with its earlier points.
        """
        self._steps.append(steps)
        self._returns.append(np.asarray(returns, np.float64))
        self._diverged = self._diverged | np.asarray(diverged)

    @property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps [T] and returns f [T, seeds] of the seeds that did not diverge, where at least one is finite."""
        if not self._steps:
            return np.zeros(0), np.zeros((0, 0))
        returns = np.stack(self._returns)[:, ~np.asarray(self._diverged)]
        returns = np.where(np.isfinite(returns), returns, np.nan)
        known = ~np.isnan(returns).all(1)
        return np.array(self._steps)[known], returns[known]

    def blocks(self, width: int) -> str:
        """The mean over seeds as a line of blocks, from the lowest to the highest; empty for fewer than two points.

        Args:
            width: the largest number of characters; each shows the mean of an equal number of points.
        """
        _, returns = self.points
        if len(returns) < 2 or width < 1:
            return ""
        means = np.nanmean(returns, 1)
        means = np.array([part.mean() for part in np.array_split(means, min(width, len(means)))])
        low, high = means.min(), means.max()
        levels = (means - low) / (high - low) if high > low else np.zeros(len(means))
        return "".join(_BLOCKS[round(level * (len(_BLOCKS) - 1))] for level in levels)

    def figure(self) -> "Figure | None":
        """The mean over seeds with the quartiles as a band; None for fewer than two points."""
        steps, returns = self.points
        if len(returns) < 2:
            return None
        fig, (ax,) = plotting.figure(height=2.4)
        label = "mean of seeds, and quartiles" if returns.shape[1] > 1 else None
        plotting.draw_quartiles(ax, steps, returns, color="C0", middle=np.nanmean, label=label)
        ax.set(ylabel="undiscounted return")
        plotting.step_axis(ax, "environment steps per seed")
        if label:
            ax.legend(frameon=False, fontsize=8)
        return fig

    def element(self, *, now: bool = False) -> str:
        """The figure as HTML, redrawn so rarely that it takes at most a fiftieth of the time; empty without a figure.

        Args:
            now: redraw it in any case.
        """
        if now or time.monotonic() >= self._next:
            fig = self.figure()  # the first call imports Matplotlib, which is not counted
            began = time.thread_time()
            self._element = "" if fig is None else plotting.image_element(fig, "return against environment steps")
            self._next = time.monotonic() + _PAUSE * (time.thread_time() - began)
        return self._element


_PAUSE = 50


class CellOutput:
    """One output of a notebook's cell that is replaced while the cell runs, at most once a second.

    If making or sending it fails, a warning is issued once and nothing more is shown; the run continues.
    """

    _EVERY = 1.0

    def __init__(self) -> None:
        self._handle = None
        self._next = 0.0
        self._failed = False
        self._lock = threading.Lock()

    def show(self, make: Callable[[], dict[str, str]], *, now: bool = False) -> None:
        """Show what ``make`` returns, texts by media type, unless the last output is less than a second old.

        Args:
            make: called only if its result is shown.
            now: show it in any case.
        """
        with self._lock:
            if self._failed or (time.monotonic() < self._next and not now):
                return
            try:
                from IPython.display import display  # noqa: PLC0415  installed, since this is a notebook

                media = make()
                if self._handle is None:
                    self._handle = display(media, raw=True, display_id=True)
                else:
                    self._handle.update(media, raw=True)
            except Exception as error:
                self._failed = True
                warnings.warn(f"progress: it is no longer shown ({error!r}); the run continues", stacklevel=2)
            self._next = time.monotonic() + self._EVERY

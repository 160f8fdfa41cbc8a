"""The result of `fit`."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmarket.runs.sinks import records
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.result import RunResult, summary_line
from jaxmarket.training.transfer import NetworkParams, networks
from jaxmarket.view import plotting, tables
from jaxmarket.view.text import notebook_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from jaxmarket.view.replay import Replay

__all__ = ["FitResult", "ShownRun"]


class ShownRun:
    """A base class of finished runs (`RunResult`): figures, metrics as a data frame, and replays."""

    def to_dataframe(self: RunResult) -> "DataFrame":
        """The metrics as a pandas data frame, as in ``metrics.csv``. It needs the extra ``notebook``.

        Returns:
            A row per chunk and seed, with the columns ``chunk``, ``env_steps`` and ``seed``, and one for each metric
            or, such as ``wins[0]``, for each bidder or state of a metric.

        Raises:
            ValueError: the extra is not installed.
        """
        try:
            import pandas as pd  # type: ignore[import-not-found]  # noqa: PLC0415  an extra
        except ImportError as error:
            raise ValueError("to_dataframe: pandas is not installed; pip install 'jaxmarket[notebook]'") from error
        found = list(records(self))
        names = found[0].names if found else ["chunk", "env_steps", "seed"]
        return pd.DataFrame([row for record in found for row in record.rows()], columns=names)

    def plot(self: RunResult) -> "Figure":
        """A figure of the learning curve; of the distance from equilibrium, where it was measured; and of the bids.

        Greedy bids are shown where Q* is known.

        Raises:
            ValueError: the run was interrupted before its first row of metrics.
        """
        if not self.metrics:
            raise ValueError("metrics: expected one row or more, got none: the run was interrupted; resume it")
        bids = self.bids is not None and self.visited is not None and bool(self.visited.any())
        gains = "best_reply_gain" in self.metrics
        fig, axes = plotting.figure(columns=1 + gains + bids)
        plotting.draw_learning_curve(axes[0], self)
        if gains:
            plotting.draw_best_reply_gain(axes[1], self)
        if bids:
            plotting.draw_bids(axes[-1], self)
        return fig

    def watch(self: RunResult, **options: Any) -> "Replay":
        """Auctions of new episodes, optionally also the training, as a page for a notebook or, by ``save``, a file.

        Args:
            options: arguments of `jaxmarket.runs.watching.watch`, such as ``episodes``, ``steps`` and ``training``.
        """
        from jaxmarket.runs.watching import watch  # noqa: PLC0415  environments and their pictures

        return watch(self, **options)

    def _repr_html_(self: RunResult) -> str:
        shown = notebook_text(tables.returns_table(self))["text/html"]
        if not self.metrics:
            return shown
        fig, (ax,) = plotting.figure()
        plotting.draw_learning_curve(ax, self)
        return shown + plotting.image_element(fig, "return against environment steps")


@dataclasses.dataclass(frozen=True)
class FitResult(ShownRun):
    """What `fit` returns.

    Attributes:
        summary: the fields of the command line's ``--json``.
        state: the final state of training, leaves [seeds, ...]; of a society a `TrainState`.
        metrics: arrays [chunks, seeds], per bidder [chunks, seeds, A] or per state [chunks, seeds, S], by name;
            `jaxmarket.metrics` defines them.
        config: the settings.
        q: f [S, P], Q*, where the environment knows it.
        bids: f [seeds, S, P], each primitive's highest greedy bid per state, if Q* is known; NaN for diverged
            seeds.
        visited: bool [seeds, S], states visited in the last tenth of training, if Q* is known; False for diverged
            seeds.
    """

    summary: dict[str, Any]
    state: Any
    metrics: dict[str, np.ndarray]
    config: TrainConfig
    q: np.ndarray | None = None
    bids: np.ndarray | None = None
    visited: np.ndarray | None = None

    def __repr__(self) -> str:
        return f"FitResult({summary_line(self.summary)})"

    @property
    def networks(self) -> NetworkParams:
        """The trained networks, leaves [seeds, ...]."""
        return networks(self.state.learner)

"""The result of `fit`."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmarket.training.config import TrainConfig
from jaxmarket.training.result import summary_line
from jaxmarket.training.transfer import NetworkParams, networks

if TYPE_CHECKING:
    from jaxmarket.view.replay import Replay

__all__ = ["FitResult"]


@dataclasses.dataclass(frozen=True)
class FitResult:
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

    def watch(self, **options: Any) -> "Replay":
        """Auctions of new episodes, or the training, as a page that a notebook shows and ``save`` writes to a file.

        Args:
            options: as of `jaxmarket.runs.watching.watch`: ``episodes``, ``steps``, ``run_seed``, ``training``, ….
        """
        from jaxmarket.runs.watching import watch  # noqa: PLC0415  environments and their pictures

        return watch(self, **options)

"""What every result of a training run has, and texts about it."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from jaxmarket.training.config import TrainConfig
from jaxmarket.training.transfer import NetworkParams
from jaxmarket.validation import escaped

__all__ = ["RunResult", "agent_parts", "summary_line"]


class RunResult(Protocol):
    """What tables, figures and policies are made from: a `FitResult`, or a finished run that was read back."""

    @property
    def config(self) -> TrainConfig:
        """The settings."""
        ...

    @property
    def summary(self) -> dict[str, Any]:
        """The fields of the command line's ``--json``."""
        ...

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """Arrays [chunks, seeds], per bidder [chunks, seeds, A] or per state [chunks, seeds, S], by name."""
        ...

    @property
    def networks(self) -> NetworkParams:
        """The trained networks, leaves [seeds, ...]."""
        ...

    @property
    def q(self) -> np.ndarray | None:
        """F [S, P], Q*, where the environment knows it."""
        ...

    @property
    def bids(self) -> np.ndarray | None:
        """F [seeds, S, P], each primitive's highest greedy bid per state, where Q* is known."""
        ...

    @property
    def visited(self) -> np.ndarray | None:
        """Bool [seeds, S], states visited in the last tenth of training, where Q* is known."""
        ...


def summary_line(summary: Mapping[str, Any]) -> str:
    """A run's summary on one line."""
    stopped = ", interrupted" if summary.get("interrupted") else ""
    reached = summary["return_mean"]
    number = "none" if reached is None else f"{reached:.3f}"  # JSON has no NaN
    return f"{escaped(str(summary['env']))}: {summary['seeds']} seeds, return {number}{stopped}"


def agent_parts(summary: Mapping[str, Any]) -> list[str]:
    """What a run trained, for titles: the kind of agent if it is not a society, auction, learner and clones."""
    agent, auction, clones = (summary.get(name) for name in ("agent", "auction", "clones"))
    parts = [
        None if agent == "society" else agent,
        None if auction is None else f"{auction} auction",
        summary.get("learner"),
        None if clones is None else f"{clones} clones",
    ]
    return [part for part in parts if part is not None]

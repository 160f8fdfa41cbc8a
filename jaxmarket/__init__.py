"""Market-based reinforcement learning in JAX: societies of agents that buy and sell the right to act.

Start with `fit` and `TrainConfig`; build your own loop from `Society`, `reset`, `step`, `rollout` and
`settle`. Importing this package starts no JAX backend.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxmarket.auctions import MECHANISMS, Mechanism, clear
from jaxmarket.config import TrainConfig
from jaxmarket.environments import make
from jaxmarket.policies import BidPolicy
from jaxmarket.rollouts import rollout
from jaxmarket.settlement import flows, settle
from jaxmarket.society import MarketPolicy, Society, reset, step
from jaxmarket.training import FitResult, fit, train
from jaxmarket.types import Outcome, Rules, State, Transition

if TYPE_CHECKING:
    from jaxmarket.runs import load

__version__ = "0.1.0"

__all__ = [
    "MECHANISMS",
    "BidPolicy",
    "FitResult",
    "MarketPolicy",
    "Mechanism",
    "Outcome",
    "Rules",
    "Society",
    "State",
    "TrainConfig",
    "Transition",
    "clear",
    "fit",
    "flows",
    "load",
    "make",
    "reset",
    "rollout",
    "settle",
    "step",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "load":
        return importlib.import_module("jaxmarket.runs").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

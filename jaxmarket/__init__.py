"""Market-based reinforcement learning in JAX: societies of agents that buy and sell the right to act.

Start with `fit` and `TrainConfig`; build your own loop from `Society`, `reset`, `step`, `rollout` and
`settle`. Deep markets, in which agents are selected by wealth, are in `jaxmarket.deep_market`; wide markets, in which
goods are traded at equilibrium prices, in `jaxmarket.wide_market`. Importing this package starts no JAX backend.
"""

import os
import sys
from pathlib import Path

if Path(*sys.argv[:1]).name in ("jaxmarket", "jaxmarket.exe", "-m") and sys.stderr is not None and sys.stderr.isatty():
    # XLA's log would interrupt the progress bar of the command line, and its level is read while JAX is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from jaxmarket.auctions import MECHANISMS, Mechanism, clear
from jaxmarket.environments import make
from jaxmarket.policies import BidPolicy
from jaxmarket.rollouts import rollout
from jaxmarket.runs import FitResult, as_policy, fit, load
from jaxmarket.settlement import flows, settle
from jaxmarket.society import MarketPolicy, Society, reset, step
from jaxmarket.training import TrainConfig, train
from jaxmarket.types import Outcome, Rules, State, Transition

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
    "as_policy",
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

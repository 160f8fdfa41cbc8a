"""Market-based reinforcement learning in JAX: societies of agents that buy and sell the right to act.

Start with `fit` and `TrainConfig`; build your own loop from `Society`, `reset`, `step`, `rollout` and
`settle`. Importing this package starts no JAX backend.
"""

from jaxmarket.auctions import MECHANISMS, Mechanism, clear
from jaxmarket.config import TrainConfig
from jaxmarket.environments import make
from jaxmarket.fitting import fit
from jaxmarket.policies import BidPolicy
from jaxmarket.rollouts import rollout
from jaxmarket.runs import as_policy, load
from jaxmarket.settlement import flows, settle
from jaxmarket.society import MarketPolicy, Society, reset, step
from jaxmarket.training import FitResult, train
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

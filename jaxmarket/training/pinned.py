"""The complete settings with which the published numbers of experiments and benchmarks were measured.

They do not depend on the defaults of `jaxmarket.TrainConfig`, of learners or of bid heads, so that these may change.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxmarket.environments import make
from jaxmarket.learners import Valuation
from jaxmarket.policies import KumaraswamyHead, ValueHead
from jaxmarket.training.config import PRESETS, TrainConfig
from jaxmarket.training.wide import WideMarketTraining

__all__ = ["MONOLITH", "PPO_SOCIETY", "VALUATION_SOCIETY", "WIDE_MARKET", "train_config"]

_PAPER = PRESETS["paper"]
_STEPS = 3_072_000

PPO_SOCIETY: Mapping[str, Any] = MappingProxyType(
    _PAPER
    | {
        "agent": "society",
        "bids": KumaraswamyHead(low=0.0, high=1.0),
        "steps": _STEPS,
        "time_limits": "bootstrap",
    }
)
"""The paper's settings with Kumaraswamy bids, which are faster than Beta bids, and bootstrapped time-outs."""

VALUATION_SOCIETY: Mapping[str, Any] = MappingProxyType(
    PPO_SOCIETY
    | {
        "learner": Valuation(minibatch=128, epochs=1, normalize=False, max_norm=10.0, learning_rate=5e-3),
        "bids": ValueHead(low=-math.inf, high=math.inf),
        "steps": 2_048_000,
        "horizon": 32,
        "trace_decay": 0.65,
        "exploration": 1.0,
        "exploration_final": 0.1,
        "persistence": 0.0,
    }
)
"""Societies whose bidders estimate values by networks; tables have a higher learning rate."""

MONOLITH: Mapping[str, Any] = MappingProxyType(
    {
        "agent": "monolith",
        "learner": _PAPER["learner"],
        "steps": _STEPS,
        "instances": 32,
        "horizon": 128,
        "time_limits": "bootstrap",
        "trace_decay": 0.95,
        "exploration": 0.0,
        "exploration_final": 0.0,
        "persistence": 0.0,
    }
)
"""Monolithic PPO agents."""

WIDE_MARKET: Mapping[str, Any] = MappingProxyType(
    {name: value for name, value in VALUATION_SOCIETY.items() if name not in WideMarketTraining.unused}
    | {"agent": "wide"}
)
"""Wide markets, with the settings of societies that apply to them."""


def train_config(env: Any, **settings: Any) -> TrainConfig:
    """A `jaxmarket.TrainConfig` in which no setting is left to a default, except layers of networks.

    Args:
        env: as in `jaxmarket.TrainConfig`.
        settings: as in `jaxmarket.TrainConfig`; ``learner`` is ppo (the default) or valuation. What they leave out is
            taken from `MONOLITH`, `WIDE_MARKET`, `VALUATION_SOCIETY` or `PPO_SOCIETY`.
    """
    chosen = {name: value for name, value in settings.items() if value is not None}
    learner = chosen.pop("learner", "ppo")
    society = {"ppo": PPO_SOCIETY, "valuation": VALUATION_SOCIETY}[learner]
    base = {"monolith": MONOLITH, "wide": WIDE_MARKET}.get(chosen.get("agent", "society"), society)
    if chosen.get("bids") == "beta":
        chosen["bids"] = _PAPER["bids"]
    if learner == "valuation" and chosen.get("hidden") == ():
        chosen = {"learning_rate": 3e-2} | chosen  # of tables
    chosen = {**base, **chosen}
    updates = -(-chosen["steps"] // (chosen["instances"] * chosen["horizon"]))
    chosen.setdefault("log_every", -(-updates // 50))  # for 50 rows of metrics
    if getattr(make(env)[0] if isinstance(env, str) else env, "gamma", None) is None:
        chosen.setdefault("gamma", 0.99)
    own = {field.name for field in dataclasses.fields(base["learner"])} & chosen.keys()
    changed = {name: chosen.pop(name) for name in own}
    return TrainConfig(env, **(chosen | {"learner": dataclasses.replace(base["learner"], **changed)}))

"""The complete settings with which the published numbers of experiments and benchmarks were measured.

They do not depend on the defaults of `jaxmarket.TrainConfig`, of learners or of bid heads, so that these may change.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxmarket.environments import make
from jaxmarket.learners import PPO, Valuation
from jaxmarket.policies import KumaraswamyHead, ValueHead
from jaxmarket.training.config import PRESETS, TrainConfig
from jaxmarket.training.wide import WideMarketTraining

__all__ = [
    "ANNEALED_MONOLITH",
    "LEARNED_BY_PPO",
    "LEARNED_SOCIETY",
    "MONOLITH",
    "PPO_SOCIETY",
    "VALUATION_SOCIETY",
    "WIDE_MARKET",
    "train_config",
]

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

_ANNEALED = PPO(
    minibatch=512,
    epochs=4,
    value_l2=1e-3,
    max_norm=40.0,
    anneal=True,
    decay_after=500,
    decay_every=100,
    decay=1.0,
    learning_rate=1e-3,
    value_learning_rate=5e-3,
    entropy=0.01,
    clip=0.2,
)
ANNEALED_MONOLITH: Mapping[str, Any] = MappingProxyType(MONOLITH | {"learner": _ANNEALED})
"""Monolithic PPO agents, and agents made of experts, whose learning rates decrease to 0."""

LEARNED_SOCIETY: Mapping[str, Any] = MappingProxyType(
    PPO_SOCIETY
    | {
        "learner": Valuation(minibatch=512, epochs=1, normalize=True, max_norm=None, learning_rate=1e-3),
        "bids": VALUATION_SOCIETY["bids"],
        "primitives": "learned",
        "hold": 1,
        "share_torso": False,
        "action_learning_rate": 3e-4,
        "action_entropy": 0.01,
        "action_clip": 0.2,
        "action_epochs": 4,
        "trace_decay": 0.95,
        "persistence": 0.9,
    }
)
"""Societies whose primitives learn; the number of modules is left to the experiment or the environment."""

LEARNED_BY_PPO: Mapping[str, Any] = MappingProxyType(
    LEARNED_SOCIETY | {"learner": _ANNEALED, "bids": KumaraswamyHead(low=None, high=None)}
)
"""The same with bids that PPO trains."""


def train_config(env: Any, base: Mapping[str, Any] | None = None, **settings: Any) -> TrainConfig:
    """A `jaxmarket.TrainConfig` in which no setting is left to a default, except layers of networks.

    Args:
        env: as in `jaxmarket.TrainConfig`.
        base: what the settings leave out, with an object as ``learner``; by default one of `MONOLITH`, `WIDE_MARKET`,
            `VALUATION_SOCIETY` and `PPO_SOCIETY`.
        settings: as in `jaxmarket.TrainConfig`; without ``base``, ``learner`` is ppo (the default) or valuation.
    """
    chosen = {name: value for name, value in settings.items() if value is not None}
    if base is None:
        learner = chosen.pop("learner", "ppo")
        society = {"ppo": PPO_SOCIETY, "valuation": VALUATION_SOCIETY}[learner]
        base = {"monolith": MONOLITH, "wide": WIDE_MARKET}.get(chosen.get("agent", "society"), society)
        if learner == "valuation" and chosen.get("hidden") == ():
            chosen = {"learning_rate": 3e-2} | chosen  # of tables
    if chosen.get("bids") == "beta":
        chosen["bids"] = _PAPER["bids"]
    chosen = {**base, **chosen}
    updates = -(-chosen["steps"] // (chosen["instances"] * chosen["horizon"]))
    chosen.setdefault("log_every", -(-updates // 50))  # for 50 rows of metrics
    if getattr(make(env)[0] if isinstance(env, str) else env, "gamma", None) is None:
        chosen.setdefault("gamma", 0.99)
    own = {field.name for field in dataclasses.fields(base["learner"])} & chosen.keys()
    changed = {name: chosen.pop(name) for name in own}
    return TrainConfig(env, **(chosen | {"learner": dataclasses.replace(base["learner"], **changed)}))

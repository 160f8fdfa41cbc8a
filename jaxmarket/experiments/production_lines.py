"""The conditions of the experiment ``wide-vs-deep``: agents that work on the production lines of `SupplyChain`.

In the deep market an agent (a line and an operation) buys the state, works on one piece and sells the next state. In
the wide market every piece is a good with a price and an owner, and all lines work in parallel. In both markets agents
learn by the same rule: they bid the revenue of past purchases. PPO agents without a market have one job per step; one
job per line and step, with one logit for every combination of jobs; or the same with one logit for every job.
"""

import itertools
from typing import Any

import jax
import numpy as np

from jaxmarket.environments.supply_chain import SupplyChain
from jaxmarket.experiments.conditions import Arrays
from jaxmarket.experiments.settings import train_config
from jaxmarket.training.choices import ProductHead
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.learning_curves import evaluation_times, learning_curves
from jaxmarket.training.monolith import Monolith
from jaxmarket.training.quoting import play_quotes
from jaxmarket.types import Array

__all__ = ["ARMS", "BASELINES", "GAMMA", "GRIDS", "QUOTING", "TUNING", "learn", "prepare", "quote", "tune"]

GAMMA = 0.9
_EVALUATIONS = 96

_MARKET: dict[str, Any] = {
    "learner": "valuation", "hidden": (), "instances": 1, "horizon": 32, "minibatch": 32,
    "learning_rate": 1e-2, "exploration": 0.4, "exploration_final": 0.4, "trace_decay": 0.65,
}  # fmt: skip
_PPO: dict[str, Any] = {
    "agent": "monolith", "hidden": (64,), "instances": 8, "horizon": 32, "minibatch": 64, "epochs": 4,
    "value_learning_rate": 3e-3, "learning_rate": 6e-3, "trace_decay": 0.8,
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    "deep": _MARKET,
    "wide": _MARKET | {"agent": "wide"},
    "PPO, serial": _PPO | {"entropy": 0.2},
    "PPO, joint": _PPO | {"entropy": 0.03},
    "PPO, factored": _PPO | {"entropy": 0.1},
}
"""Settings of each condition that learns, the best ones of `GRIDS`; see the table ``tuning`` of a ``--full`` run."""
QUOTING = "wide, quoting"
"""The condition whose agents know the effects of their operations and do not learn."""
BASELINES = ("PPO, serial", "PPO, joint", "PPO, factored")

_TRIED = itertools.product((1e-3, 3e-3, 1e-2), (0.1, 0.2, 0.4), (0.65, 0.9))
_TRIED_BY_PPO = itertools.product((1e-3, 3e-3, 6e-3), (0.03, 0.1, 0.2), (0.8, 0.95))
_PPO_GRID = [{"learning_rate": rate, "entropy": e, "trace_decay": decay} for rate, e, decay in _TRIED_BY_PPO]
GRIDS: dict[str, list[dict[str, float]]] = {
    "deep": [
        {"learning_rate": rate, "exploration": e, "exploration_final": e, "trace_decay": decay}
        for rate, e, decay in _TRIED
    ],
    **dict.fromkeys(BASELINES, _PPO_GRID),
}
"""Eighteen settings per condition, all traced; the wide market uses the best setting of the deep one."""
TUNING = {"lines": 4, "seed": 77, "seeds": 8, "steps": 51_200}


def _environment(arm: str, lines: int) -> SupplyChain:
    return SupplyChain(lines, joint=arm in ("PPO, joint", "PPO, factored"))


def prepare(arm: str, lines: int, steps: int, **settings: Any) -> tuple[TrainConfig, Any]:
    """Configuration and program of a condition that learns; ``settings`` override those of the condition."""
    env = _environment(arm, lines)
    config = train_config(env, gamma=GAMMA, steps=steps, log_every=1, **(ARMS[arm] | settings))
    if arm == "PPO, factored":
        return config, Monolith.of(config.settings, head=ProductHead(env.lines, env.operations))
    return config, config.settings.trainable


def _optima(arm: str, lines: int) -> dict[str, Any]:
    """The highest return of an episode with the condition's actions, and with one job per step; jobs per step."""
    env, serial, wide = _environment(arm, lines), SupplyChain(lines).optimal_return(), arm in ("wide", QUOTING)
    own = lines * serial if wide else env.optimal_return()
    return {"lines": lines, "own": own, "serial": serial, "jobs": lines if wide or env.joint else 1}


def learn(arm: str, lines: int, steps: int, keys: Array) -> Arrays:
    """Train all seeds. ``steps`` i [P] of evaluations, ``returns`` f [S, P], `_optima`; final ``prices`` f [S, G]."""
    config, program = prepare(arm, lines, steps)
    times = evaluation_times(program.chunks, _EVALUATIONS)
    returns, states = learning_curves(program, times, keys, [config.settings.hyperparameters])
    update = config.settings.instances * config.settings.horizon
    found = {"steps": times * update, "returns": returns[0], **_optima(arm, lines)}
    if arm == "wide":
        states = jax.tree.map(lambda x: x[0], states)
        found["prices"] = np.asarray(states.market.prices[:, 0], np.float64)  # of one instance
        # The largest unexplained change of money over money moved, over seeds.
        found["residual"] = jax.vmap(program.residual)(states).max()
    return found


def quote(lines: int, steps: int, keys: Array) -> Arrays:
    """As `learn` for agents that do not learn; ``steps`` are rounds, and ``prices`` f [P, G] those of one seed."""
    society = prepare("wide", lines, steps)[1].player(greedy=True)
    rounds = 4 * society.lines.stages
    returns, prices = jax.vmap(lambda key: play_quotes(society, key, rounds, gamma=GAMMA))(keys)
    found = {"steps": np.arange(1, rounds + 1), "returns": np.asarray(returns, np.float64)}
    return found | {"prices": np.asarray(prices[0], np.float64)} | _optima(QUOTING, lines)


def tune(arm: str, keys: Array) -> Arrays:
    """The mean share of the optimum over all evaluations, which rewards high returns early: ``score`` f [H]."""
    config, program = prepare(arm, TUNING["lines"], TUNING["steps"])
    keys = jax.random.split(jax.random.key(TUNING["seed"]), TUNING["seeds"])
    settings = [config.settings.hyperparameters.replace(**setting) for setting in GRIDS[arm]]
    returns, _ = learning_curves(program, evaluation_times(program.chunks, _EVALUATIONS), keys, settings)
    return {"score": returns.mean((1, 2)) / config.adapter.optimal_return()}

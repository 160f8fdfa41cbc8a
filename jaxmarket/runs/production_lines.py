"""Agents on the parallel production lines of `SupplyChain`: deep and wide markets, and PPO without a market.

In the **deep** market an agent (a line and an operation) buys the state, works on one piece and sells the next state.
In the **wide** market every piece is a good with a price and an owner, and all lines work in parallel. In both markets
agents learn by the same rule: they bid the revenue of past purchases. The agents of **wide, quoting** know the effects
of their operations and do not learn. **PPO** agents have one job per step (serial); one job per line and step, with one
logit for every combination of jobs (joint); or the same with one logit for every job (factored). The reproduction
``wide-vs-deep`` compares them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxmarket.environments.supply_chain import SupplyChain
from jaxmarket.runs.curves import first_reach, lower_bound
from jaxmarket.runs.estimates import interquartile_mean
from jaxmarket.training.actions import ProductHead
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.learning_curves import evaluation_times, learning_curves
from jaxmarket.training.monolith import Monolith
from jaxmarket.training.quoting import play_quotes
from jaxmarket.training.trainable import Trainable
from jaxmarket.types import Array

__all__ = [
    "EVALUATIONS",
    "QUOTING",
    "environment",
    "learn",
    "measures",
    "optima",
    "price_rows",
    "prices_of",
    "program_of",
    "quote",
]

EVALUATIONS = 96
"""Greedy episodes during training, at geometrically spaced times."""
QUOTING = "wide, quoting"
"""The wide market whose agents do not learn."""

_SERIAL = ("deep", "PPO, serial")
_JOINT = ("PPO, joint", "PPO, factored")
_METHODS = (*_SERIAL, "wide", *_JOINT, QUOTING)


def environment(method: str, lines: int) -> SupplyChain:
    """The production lines with the action space of a method.

    Raises:
        ValueError: the method is unknown, or the joint form has too many actions.
    """
    if method not in _METHODS:
        raise ValueError(f"method: unknown method {method!r}; choose from {', '.join(map(repr, _METHODS))}")
    return SupplyChain(lines, joint=method in _JOINT)


def program_of(method: str, config: TrainConfig) -> Trainable:
    """What a method trains.

    Args:
        method: one that learns.
        config: its settings, with its `environment`.
    """
    if method == "PPO, factored":
        return Monolith.of(config.settings, head=ProductHead(config.env.lines, config.env.operations))
    return config.settings.trainable


def optima(method: str, lines: int) -> dict[str, Any]:
    """The highest return of an episode with a method's actions (``own``) and with one job per step (``serial``).

    Also the number of ``lines``, and that of ``jobs`` per step.
    """
    serial, jobs = SupplyChain(lines).optimal_return(), 1 if method in _SERIAL else lines
    return {"lines": lines, "own": jobs * serial, "serial": serial, "jobs": jobs}


def learn(method: str, config: TrainConfig, keys: Array) -> dict[str, Any]:
    """Train all seeds, and play one greedy episode from raw pieces, with frozen parameters, at each evaluation.

    Args:
        method: one that learns.
        config: its settings, with its `environment`.
        keys: typed PRNG keys [S], one for each seed; consumed.

    Returns:
        ``steps`` i [P] of the evaluations in environment steps, ``returns`` f64 [S, P], and the `optima`; of a wide
        market also its final ``prices`` f64 [S, G], and ``residual``, the largest unexplained change of money over
        money moved, over seeds.
    """
    program: Any = program_of(method, config)
    times = evaluation_times(program.chunks, EVALUATIONS)
    returns, states = learning_curves(program, times, keys, [config.settings.hyperparameters])
    found = {"steps": times * config.settings.auctions_per_chunk, "returns": returns[0]}
    found |= optima(method, config.env.lines)
    if method == "wide":
        states = jax.tree.map(lambda x: x[0], states)
        found["prices"] = np.asarray(states.market.prices[:, 0], np.float64)  # of one instance
        found["residual"] = jax.vmap(program.residual)(states).max()
    return found


def quote(config: TrainConfig, keys: Array, *, gamma: float) -> dict[str, Any]:
    """As `learn` for agents that do not learn, for 4 K rounds of quotes on lines with K stages.

    Args:
        config: settings of a wide market, with its `environment`.
        keys: typed PRNG keys [S], one for each seed; consumed.
        gamma: the discount of a round.

    Returns:
        As `learn`, with rounds as ``steps``, and the ``prices`` f64 [P, G] of the first seed.
    """
    society: Any = program_of("wide", config).player(greedy=True)
    rounds = 4 * society.lines.stages
    returns, prices = jax.vmap(lambda key: play_quotes(society, key, rounds, gamma=gamma))(keys)
    found = {"steps": np.arange(1, rounds + 1), "returns": np.asarray(returns, np.float64)}
    return found | {"prices": np.asarray(prices[0], np.float64)} | optima(QUOTING, config.env.lines)


def prices_of(found: Mapping[str, Any]) -> np.ndarray:
    """The prices of a wide market's goods by line and stage: f [S or P, L, K], of the result of `learn` or `quote`."""
    return found["prices"].reshape(len(found["prices"]), int(found["lines"]), -1)


def price_rows(
    learned: Mapping[str, Any], quoted: Mapping[str, Any], gamma: float, rounds: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Prices of pieces, with a row for each stage.

    Args:
        learned: of `learn`, of a wide market.
        quoted: of `quote`, on the same lines.
        gamma: the discount of a round.
        rounds: numbers of the rounds of quotes to show, from 1.

    Yields:
        ``stage``; its discounted ``worth``; the price that was ``learned``, mean over lines, an `Estimate` over seeds;
        its ``lowest`` and ``highest`` value over lines and seeds; and for each round the price quoted for line 0.
    """
    final, by_round = prices_of(learned), prices_of(quoted)
    for stage, worth in enumerate(SupplyChain(1, stages=final.shape[-1]).worth(gamma)):
        prices = final[:, :, stage]
        row = {"stage": stage, "worth": worth, "learned": interquartile_mean(prices.mean(1))}
        row |= {"lowest": prices.min(), "highest": prices.max()}
        yield row | {f"quoted, round {r}": by_round[r - 1, 0, stage] for r in rounds}


def measures(level: float, gamma: float) -> dict[str, Callable[[Mapping[str, Any]], np.ndarray]]:
    """Measures of a result of `learn` or `quote`: functions that return a number for each seed, f or bool [S].

    ``steps`` are those to a share of the own optimum, ``steps to serial`` those to the same share of the highest return
    with one job per step: the whole run for seeds that are not in ``reached`` or ``reached serial``. ``perfect from``
    is the first of the steps from which on all returns are the own optimum, NaN for seeds without one. ``error of
    prices`` is the largest relative difference of a final price from the discounted value of the piece.

    Args:
        level: the share of an optimum.
        gamma: the discount of a round.
    """

    def reach(found: Mapping[str, Any], optimum: str) -> np.ndarray:
        return first_reach(found["returns"].T, level * found[optimum], found["steps"])

    def steps(found: Mapping[str, Any], optimum: str = "own") -> np.ndarray:
        return lower_bound(reach(found, optimum), found["steps"][-1])

    def price_error(found: Mapping[str, Any]) -> np.ndarray:
        prices = prices_of(found)
        return np.abs(prices / SupplyChain(1, stages=prices.shape[-1]).worth(gamma) - 1).max((1, 2))

    return {
        "return": lambda found: found["returns"][:, -1],
        "of own optimum": lambda found: found["returns"][:, -1] / found["own"],
        "of parallel optimum": lambda found: found["returns"][:, -1] / (found["serial"] * found["lines"]),
        "steps": steps,
        "reached": lambda found: ~np.isnan(reach(found, "own")),
        "operations per line": lambda found: steps(found) * found["jobs"] / found["lines"],
        "steps to serial": lambda found: steps(found, "serial"),
        "reached serial": lambda found: ~np.isnan(reach(found, "serial")),
        "perfect from": lambda found: first_reach(found["returns"].T, found["own"], found["steps"], lasting=True),
        "error of prices": price_error,
    }

"""Robustness by redundancy: the removal of bidders from a trained society (Chang et al. 2020, §5 and §6.1).

Societies have solitary bidders, clones that share parameters, or clones with parameters of their own; on Bandit also
agent dropout in training, where as in the paper a random subset of the bidders is absent in each episode.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxmarket.environments import make
from jaxmarket.experiments.claims import Claim, at, every_seed, separated
from jaxmarket.experiments.conditions import Compute, Condition, Scope
from jaxmarket.experiments.experiment import Experiment, Table
from jaxmarket.experiments.numerical import QUICK, SETTINGS
from jaxmarket.experiments.results import Results
from jaxmarket.runs.estimates import interquartile_mean
from jaxmarket.runs.measures import nearly
from jaxmarket.runs.removal import CASES, WHEN, returns_after_removal
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.pinned import train_config
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT", "societies"]

_DROPOUT = 0.5
_ENVS = ("Chain-v0", "Bandit-v0")


def societies(scope: Scope) -> dict[str, TrainConfig]:
    """The settings of each society, by environment and name."""
    budget: dict[str, Any] = {"auction": "ccv", "seeds": scope.seeds} | SETTINGS["tuned"]
    kinds: dict[str, dict[str, Any]] = {"solitary": {"clones": 1}, "cloned": {"clones": 2}}
    if scope.quick:
        budget |= QUICK
    else:
        kinds["own parameters"] = {"clones": 2, "share_clones": False}
    chosen = {f"Chain-v0 {name}": train_config("Chain-v0", **budget, **kind) for name, kind in kinds.items()}
    for name, kind in kinds.items():
        # No dropout is expressed as a dropout of 0, so that both share one program.
        chosen[f"Bandit-v0 {name}"] = train_config("Bandit-v0", **budget, **kind, dropout=0.0)
        if kind.get("share_clones", True):
            chosen[f"Bandit-v0 {name}, dropout"] = train_config("Bandit-v0", **budget, **kind, dropout=_DROPOUT)
    return chosen


def _conditions(scope: Scope) -> list[Condition]:
    retrain = 2 if scope.quick else 5  # chunks
    return [
        Compute(name, functools.partial(returns_after_removal, config, retrain, scope.seed), reports=True)
        for name, config in societies(scope).items()
    ]


# --- claims, table and figure


def _claims() -> list[Claim]:
    claims = []
    for env in _ENVS:
        cloned, alone = f"{env} cloned", f"{env} solitary"

        def later(results: Results, names: tuple[str, str] = (cloned, alone)) -> str:
            means = [interquartile_mean(results.measure(name, "best bidder, trained on")) for name in names]
            return "after further training {} against {}".format(*means)

        claims += [
            separated(
                f"[{env}] a cloned society keeps its return when its best bidder is removed, a solitary one does not",
                at(cloned, "best bidder, at once"),
                at(alone, "best bidder, at once"),
                evidence=later,
            ),
            every_seed(
                f"[{env}] a cloned society keeps its return, within 1% of the optimum, when any other bidder is "
                "removed, at once and after further training",
                at(cloned, "any other"),
                at_least=nearly(make(env)[0].optimal_return()),
            ),
        ]
    text = "dropout in training makes a society robust to the removal of the best primitive (return at most .6)"
    pair = [at(f"Bandit-v0 {society}", "best primitive, at once") for society in ("cloned, dropout", "cloned")]
    return [*claims, separated(f"[Bandit-v0] {text}", *pair)]


def _rows(results: Results) -> Iterator[dict[str, Any]]:
    for name, case in itertools.product(results, CASES):
        env, _, society = name.partition(" ")
        returns = {when: interquartile_mean(results.measure(name, f"{case}, {when}")) for when in WHEN}
        yield {"env": env, "society": society, "removed": case, **returns}


def _draw(results: Results) -> Any:
    every = dict.fromkeys(name.partition(" ")[2] for name in results)
    colors = plotting.series_colors(every)
    fig, axes = plotting.figure(columns=2, rows=2, width=6.5)
    for ax, (env, when) in zip(axes, itertools.product(_ENVS, WHEN), strict=True):
        returns = {
            name.partition(" ")[2]: [interquartile_mean(results.measure(name, f"{case}, {when}")) for case in CASES]
            for name in results
            if name.startswith(env)
        }
        plotting.draw_estimates(ax, CASES, returns, colors)
        ax.set(xlabel="greedy return", ylabel="removed", title=f"{env}, {when}")
    plotting.legend_below(fig, columns=5)
    return fig


EXPERIMENT = Experiment(
    name="redundancy",
    shows="removal of the best or of any other bidder from a trained society",
    source="Chang et al. (2020), §5 (redundancy) and §6.1 (dropout)",
    conditions=_conditions,
    measures={"any other": lambda found: np.min([found[f"any other, {when}"] for when in WHEN], 0)},
    claims=_claims(),
    tables=[
        Table(
            "redundancy",
            "removal of bidders from a trained society (ccv, tuned settings)",
            _rows,
            "greedy return of new episodes, interquartile mean over seeds ± the larger side of its 95% bootstrap "
            "interval\nany other: the worst removal of each seed · best bidder: highest greedy bid for the first state "
            "· best primitive: all clones of the best bidder",
        )
    ],
    figures={"redundancy": _draw},
    facts=lambda results: {"dropout": _DROPOUT, "tuned": SETTINGS["tuned"]},
)

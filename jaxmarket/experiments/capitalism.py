"""Training by capitalism (Sudhir and Tran-Thanh 2025, §3): layers of a network that are selected by their profit.

In the market of `jaxmarket.deep_market.layer_market` the agents are layers of a network that classifies handwritten
digits, and consumers pay for the probability of the correct label. `jaxmarket.deep_market.layer_methods` describes the
methods that are compared.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxmarket.deep_market import RoundSummary
from jaxmarket.deep_market.layer_market import ACTIVATIONS, LayerStructure, rounds_like
from jaxmarket.deep_market.layer_methods import BATCH, MARKETS, MAX_BIRTHS, METHODS, TERMS, WEALTH, train
from jaxmarket.experiments.claims import Claim, at, every_seed, separated, share_of_seeds, tally, within
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Scope
from jaxmarket.experiments.experiment import Experiment, Table, by_condition, column
from jaxmarket.experiments.results import Results
from jaxmarket.keys import key_of
from jaxmarket.runs.curves import first_reach, reached_by
from jaxmarket.runs.estimates import mean
from jaxmarket.training.arrays import flatten, unflatten
from jaxmarket.types import Array
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT"]

# --- conditions


def _conditions(scope: Scope) -> list[Condition]:
    lots = 2048 if scope.quick else 49152
    return [
        Compute(name, functools.partial(_measure, name, scope.seed, lots), ("hybrid",) * ("found" in name))
        for name in METHODS
    ]


def _measure(method: str, seed: int, lots: int, keys: Array, hybrid: Arrays | None = None) -> Arrays:
    """What tables and figures use of `train`, and the rounds of seed 0."""
    found = None
    if hybrid is not None:
        structure = LayerStructure(hybrid["activation"], hybrid["width"], hybrid["rate"])
        found = structure, hybrid["readout rate"]
    trained = train(method, key_of(seed), seeds=len(keys), lots=lots, found=found)
    rounds = {} if trained.rounds is None else flatten(jax.tree.map(lambda leaf: leaf[0], trained.rounds))
    return {
        "lots": trained.lots,
        "accuracy": trained.accuracy,
        "residual": trained.residual,
        "readout rate": trained.readout_rate,
        **vars(trained.structure),
        **{f"rounds/{name}": values for name, values in rounds.items()},
    }


def _rounds(method: str, result: Arrays) -> RoundSummary:
    """The rounds of seed 0: leaves [rounds, ...]."""
    arrays = {name.removeprefix("rounds/"): values for name, values in result.items() if name.startswith("rounds/")}
    market = MARKETS[method]["market"]
    return unflatten(rounds_like(market, TERMS, rounds=len(arrays["money"]), max_births=MAX_BIRTHS), arrays)


# --- claims


def _compared(first: at, second: at, results: Results) -> str:
    mine, others = first(results), second(results)
    better, worse = tally(mine > others), tally(mine < others)
    means = f"{mine.mean():.3f} against {others.mean():.3f} ({second.condition})"
    return f"{means}, better on {better} and worse on {worse} seeds"


def _claims(scope: Scope) -> list[Claim]:
    del scope
    pure, control, hybrid, plain, found, random = (at(name, "accuracy") for name in METHODS)
    structures = "SGD on the structures that the hybrid found is better than SGD on"
    return [
        share_of_seeds(
            "capitalism alone learns: on every seed it is better than if consumers pay the same for every prediction",
            pure,
            above=control,
            share=1.0,
            evidence=functools.partial(_compared, pure, control),
        ),
        within(
            "capitalism alone reaches 0.9 of SGD's accuracy",
            lambda results: pure(results) / plain(results).mean(),
            at_least=0.9,
            estimate=mean,
            evidence=functools.partial(_compared, pure, plain),
        ),
        within(
            "the hybrid is at least as good as SGD on the default structure, on average",
            lambda results: hybrid(results) - plain(results),
            at_least=0.0,
            estimate=mean,
            evidence=functools.partial(_compared, hybrid, plain),
        ),
        *(
            separated(f"{structures} {text}", found, other, evidence=functools.partial(_compared, found, other))
            for text, other in (("random structures", random), ("the default structure", plain))
        ),
        every_seed(
            "named cash flows explain every change of the money supply",
            lambda results: np.concatenate([results[name]["residual"] for name in MARKETS]),
            at_most=1e-5,
        ),
    ]


# --- tables and figures


def _title(results: Results) -> str:
    examples = int(results["SGD"]["lots"][-1]) * BATCH
    return f"held-out accuracy after {examples:,} examples, {results.scope.seeds} seeds"


def _structure_rows(results: Results) -> Iterator[dict[str, Any]]:
    for arm, found in results.items():
        for seed, activation in enumerate(found["activation"]):
            row = {"arm": arm, "seed": seed, "activation": ACTIVATIONS[activation][0]}
            row |= {name: found[name][seed] for name in ("width", "rate", "readout rate")}
            yield row | {"accuracy": found["accuracy"][-1, seed]}


def _draw(results: Results) -> Any:
    fig, (ax,) = plotting.figure(width=7.5, height=4.5)
    curves = {name: (found["lots"] * BATCH, found["accuracy"]) for name, found in results.items()}
    plotting.draw_accuracy(ax, curves, chance=0.1)
    return fig


def _draw_markets(results: Results) -> Any:
    fig, axes = plotting.figure(3, 2, width=5.2, height=3.4)
    for name, row in (("capitalism", axes[:3]), ("hybrid", axes[3:])):
        rounds = _rounds(name, results[name])
        plotting.draw_wealth(row[0], rounds)
        plotting.draw_money_supply(row[1], rounds, MARKETS[name]["market"].capacity * WEALTH)
        plotting.draw_cash_flows(row[2], rounds)
        row[0].set_title(f"{name}, seed 0")
    return fig


EXPERIMENT = Experiment(
    name="capitalism",
    shows="layers of a network that trade activations, with and without backpropagation, against SGD",
    source="Sudhir and Tran-Thanh (2025), Theorem 3.1 and §3",
    conditions=_conditions,
    measures={
        "accuracy": lambda found: found["accuracy"][-1],
        "examples to .9": lambda found: first_reach(found["accuracy"], 0.9, found["lots"] * BATCH),
    },
    claims=_claims,
    tables=[
        Table(
            "capitalism",
            _title,
            by_condition(
                {
                    "accuracy": "accuracy",
                    "spread": column("accuracy", lambda values: values.std(ddof=1)),
                    "least": column("accuracy", np.min),
                    "most": column("accuracy", np.max),
                    "examples to .9": column("examples to .9", reached_by),
                },
                first="arm",
            ),
            "accuracy: interquartile mean over seeds · spread: standard deviation over seeds\n"
            "examples to .9: median over seeds\n"
            "paid for anything: consumers pay 1/10 for every prediction · structure found: by that seed's hybrid",
        ),
        Table("structures", "final structures; in markets, those of the winners", _structure_rows, shown=False),
    ],
    figures={"capitalism": _draw, "life": _draw_markets},
    seeds=8,
    facts=lambda results: {"conservation_residual": float(max(results[name]["residual"].max() for name in MARKETS))},
)

"""Training by capitalism (Sudhir and Tran-Thanh 2025, §3): layers of a network that are selected by their profit.

In the market of `jaxmarket.deep_market.layer_market` the agents are layers of a network that classifies handwritten
digits, and consumers pay for the probability of the correct label.

**Capitalism**: only mutation changes parameters. **Hybrid**: the winners of a lot also learn from it by
backpropagation, and the market selects the structure: activation, width and learning rate. The baselines use the same
data and the same number of examples: SGD on one fixed network, on the structures that the hybrid found and on random
structures, and capitalism in which consumers pay the same for every prediction.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.deep_market import RoundSummary, Terms, layer_market
from jaxmarket.deep_market.layer_market import (
    ACTIVATIONS,
    Examples,
    LayerAgents,
    LayerMarket,
    LayerStructure,
    LayerTraining,
    train_market,
    train_network,
)
from jaxmarket.environments.digits import load
from jaxmarket.experiments.claims import Claim, Evidence, at, every_seed, separated, share_of_seeds, tally, within
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Scope
from jaxmarket.experiments.experiment import Experiment, Table
from jaxmarket.experiments.results import Results
from jaxmarket.keys import key_of
from jaxmarket.runs.curves import first_reach, reached_by
from jaxmarket.runs.estimates import interquartile_mean, mean
from jaxmarket.training.arrays import flatten, unflatten
from jaxmarket.types import Array
from jaxmarket.view import plotting

__all__ = ["BATCH", "EXPERIMENT", "MARKETS", "METHODS", "WEALTH", "MarketMethod", "digits", "draw_accuracy", "train"]

BATCH = 64
WEALTH = 1.0
_NETWORK = LayerAgents(64, 32, 10)
_FREE = dataclasses.replace(_NETWORK, structured=True, noise=(0.005, 0.05))
_TERMS = Terms(
    wealth_tax=1e-3,
    endowment=WEALTH,
    child_endowment=WEALTH,
    inheritance=0.1,
    p_offspring=0.98,
    replace_poorest=True,
    bankruptcy=0.02,
)


@dataclasses.dataclass(frozen=True)
class MarketMethod:
    """A market as a training method.

    Attributes:
        market: the layer market.
        period: lots between turnovers.
        informed: whether consumers pay only for the probability of the correct label.
    """

    market: LayerMarket
    period: int = 8
    informed: bool = True


MARKETS = {
    "capitalism": MarketMethod(LayerMarket(_NETWORK, batch=BATCH)),
    "capitalism, paid for anything": MarketMethod(LayerMarket(_NETWORK, batch=BATCH), informed=False),
    "hybrid": MarketMethod(LayerMarket(_FREE, batch=BATCH, learning=True), period=32),
}
"""The methods with a market."""
METHODS = (*MARKETS, "SGD", "SGD, structure found", "SGD, random structure")
"""All methods. SGD trains the default structure, those that the hybrid found, or random ones."""


@functools.cache
def digits() -> Examples:
    """scikit-learn's 8 × 8 digits: images f [n, 64] and labels i [n] for training, and the same held out."""
    data = load("small")
    x = data.images.reshape(len(data.images), -1)
    return Examples(x[: data.train], data.labels[: data.train], x[data.train :], data.labels[data.train :])


_MEASURED = 192
"""Approximate number of measurements, each of which follows whole rounds of every method."""


def _parts(lots: int, unit: int = 32) -> list[int]:
    """Numbers of lots between measurements; all are equal, so that one compiled program serves all."""
    part = unit * max(1, round(lots / (_MEASURED * unit)))
    return [part] * max(1, round(lots / part))


def train(
    method: str, seeds: int, seed: int, lots: int, found: tuple[LayerStructure, np.ndarray] | None = None
) -> LayerTraining:
    """Train with one of the `METHODS`, and measure the accuracy on held-out digits.

    Args:
        method: its name.
        seeds: number of seeds.
        seed: of all randomness; methods of one kind start from the same weights.
        lots: approximate number of lots, of `BATCH` examples each.
        found: the structures that the hybrid found, leaves [seeds], and learning rates of the readouts f [seeds];
            required by ``SGD, structure found``.

    Raises:
        ValueError: ``found`` is missing.
    """
    key, parts = key_of(seed), _parts(lots)
    if method in MARKETS:
        chosen = MARKETS[method]
        return train_market(
            chosen.market, _TERMS, key, digits(), seeds=seeds, parts=parts, period=chosen.period, max_births=2,
            wealth=WEALTH, informed=chosen.informed,
        )  # fmt: skip
    if method != "SGD, structure found":
        found = None
    elif found is None:
        raise ValueError(f"found: {method} needs the structures that the hybrid found, got None; train it first")
    drawn = dataclasses.replace(_NETWORK, structured=method == "SGD, random structure")
    structure, rate = found or (None, None)
    return train_network(
        drawn, key, digits(), seeds=seeds, parts=parts, batch=BATCH, structure=structure, readout_rate=rate
    )


# --- conditions


def _measure(method: str, seed: int, lots: int, keys: Array, *hybrid: Arrays) -> Arrays:
    """What tables and figures use of `train`, and the rounds of seed 0."""
    found = [(LayerStructure(*(h[name] for name in _STRUCTURE)), h["readout rate"]) for h in hybrid]
    trained = train(method, len(keys), seed, lots, *found)
    rounds = {} if trained.rounds is None else flatten(jax.tree.map(lambda leaf: leaf[0], trained.rounds))
    return {
        "lots": trained.lots,
        "accuracy": trained.accuracy,
        "residual": trained.residual,
        "readout rate": trained.readout_rate,
        **{name: getattr(trained.structure, name) for name in _STRUCTURE},
        **{f"{_ROUNDS}{name}": values for name, values in rounds.items()},
    }


_STRUCTURE = tuple(field.name for field in dataclasses.fields(LayerStructure))
_ROUNDS = "rounds/"


def _rounds(method: str, result: Arrays) -> RoundSummary:
    """The rounds of seed 0: leaves [rounds, ...]."""
    chosen, examples = MARKETS[method], digits()
    arrays = {name.removeprefix(_ROUNDS): v for name, v in result.items() if name.startswith(_ROUNDS)}
    shapes = jax.eval_shape(
        lambda key: layer_market.run(
            chosen.market, key, layer_market.init(chosen.market, key, WEALTH), jnp.int32(0), examples.x,
            jnp.asarray(examples.labels), _TERMS, rounds=len(arrays["money"]), period=chosen.period, max_births=2,
        )[2],
        jax.random.key(0),
    )  # fmt: skip
    return unflatten(shapes, arrays)


def _conditions(scope: Scope) -> list[Condition]:
    lots = 2048 if scope.quick else 49152
    return [
        Compute(name, functools.partial(_measure, name, scope.seed, lots), ("hybrid",) * ("found" in name))
        for name in METHODS
    ]


# --- claims

_NEAR = 0.9  # of SGD's accuracy


def _claims(scope: Scope) -> list[Claim]:
    pure, control, hybrid, plain, found, random = (at(name, "accuracy") for name in METHODS)

    def better(first: str, second: str) -> Evidence:
        def evidence(results: Results) -> str:
            mine, others = (results.measure(name, "accuracy") for name in (first, second))
            return (
                f"{mine.mean():.3f} against {others.mean():.3f} ({second}), better on {tally(mine > others)} "
                f"and worse on {tally(mine < others)} seeds"
            )

        return evidence

    structures = "SGD on the structures that the hybrid found is better than SGD on"
    return [
        share_of_seeds(
            "capitalism alone learns: on every seed it is better than if consumers pay the same for every prediction",
            pure,
            above=control,
            share=1.0,
            evidence=better("capitalism", "capitalism, paid for anything"),
        ),
        within(
            f"capitalism alone reaches {_NEAR:g} of SGD's accuracy",
            lambda results: pure(results) / plain(results).mean(),
            at_least=_NEAR,
            estimate=mean,
            evidence=better("capitalism", "SGD"),
        ),
        within(
            "the hybrid is at least as good as SGD on the default structure, on average",
            lambda results: hybrid(results) - plain(results),
            at_least=0.0,
            estimate=mean,
            evidence=better("hybrid", "SGD"),
        ),
        separated(
            f"{structures} random structures",
            found,
            random,
            evidence=better("SGD, structure found", "SGD, random structure"),
        ),
        separated(f"{structures} the default structure", found, plain, evidence=better("SGD, structure found", "SGD")),
        every_seed(
            "named cash flows explain every change of the money supply",
            lambda results: np.concatenate([results[name]["residual"] for name in MARKETS]),
            at_most=1e-5,
        ),
    ]


# --- tables and figures


def _row(results: Results, name: str) -> dict[str, Any]:
    result, last = results[name], results.measure(name, "accuracy")
    return {
        "arm": name,
        "accuracy": interquartile_mean(last),
        "mean": float(last.mean()),
        "spread": float(last.std(ddof=1)) if len(last) > 1 else 0.0,
        "least": float(last.min()),
        "most": float(last.max()),
        "early": float(result["accuracy"][0].mean()),
        "examples to .9": reached_by(results.measure(name, "examples to .9")),
        "residual": float(result["residual"].max()) if name in MARKETS else None,
    }


def _structure_rows(results: Results) -> list[dict[str, Any]]:
    return [
        {
            "arm": name,
            "seed": i,
            "activation": ACTIVATIONS[int(result["activation"][i])][0],
            "width": int(result["width"][i]),
            "rate": float(result["rate"][i]),
            "readout rate": float(result["readout rate"][i]),
            "accuracy": float(result["accuracy"][-1, i]),
        }
        for name, result in results.items()
        for i in range(len(result["width"]))
    ]


def _curve_rows(results: Results) -> list[dict[str, Any]]:
    return [
        {"arm": name, "examples": int(count) * BATCH, "accuracy": float(now.mean()), "spread": float(now.std())}
        for name, result in results.items()
        for count, now in zip(result["lots"], result["accuracy"], strict=True)
    ]


def draw_accuracy(ax: Any, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Held-out accuracy f [M, seeds] against lots i [M]: thin lines are seeds, thick lines are means."""
    for i, (name, (lots, accuracy)) in enumerate(curves.items()):
        plotting.draw_seeds(ax, lots * BATCH, accuracy, color=f"C{i}", label=name)
    ax.axhline(0.1, color="gray", linestyle=":", linewidth=1)
    ax.set(xscale="log", xlabel="examples", ylabel="held-out accuracy", ylim=(0, 1.02))
    ax.legend(frameon=False, fontsize=8)


def _draw(results: Results) -> Any:
    fig, (ax,) = plotting.figure(width=7.5, height=4.5)
    draw_accuracy(ax, {name: (result["lots"], result["accuracy"]) for name, result in results.items()})
    return fig


def _draw_markets(results: Results) -> Any:
    fig, axes = plotting.figure(3, 2, width=5.2, height=3.4)
    for row, name in enumerate(("capitalism", "hybrid")):
        rounds = _rounds(name, results[name])
        plotting.draw_wealth(axes[3 * row], rounds)
        plotting.draw_money_supply(axes[3 * row + 1], rounds, MARKETS[name].market.capacity * WEALTH)
        plotting.draw_cash_flows(axes[3 * row + 2], rounds)
        axes[3 * row].set_title(f"{name}, seed 0")
    return fig


def _examples(results: Results, measurement: int) -> int:
    """Examples until a measurement."""
    return int(results["SGD"]["lots"][measurement]) * BATCH


EXPERIMENT = Experiment(
    name="capitalism",
    shows="layers of a network that trade activations, with and without backpropagation, against SGD",
    source="Sudhir and Tran-Thanh (2025), Theorem 3.1 and §3",
    conditions=_conditions,
    measures={
        "accuracy": lambda r: r["accuracy"][-1],
        "examples to .9": lambda r: first_reach(r["accuracy"], 0.9, r["lots"] * BATCH),
    },
    claims=_claims,
    tables=[
        Table(
            "capitalism",
            lambda results: f"held-out accuracy after {_examples(results, -1):,} examples, {results.scope.seeds} seeds",
            lambda results: [_row(results, name) for name in results],
            lambda results: (
                "accuracy: interquartile mean over seeds · spread: standard deviation over seeds\n"
                "examples to .9: median over seeds · only in the files: mean, and early, "
                f"the mean after {_examples(results, 0):,} examples\n"
                "paid for anything: consumers pay 1/10 for every prediction · structure found: by that seed's hybrid"
            ),
            aside=("residual", "mean", "early"),
        ),
        Table(
            "structures",
            "final structures and their accuracy",
            _structure_rows,
            "of markets: of the layers that win a lot",
            shown=False,
        ),
        Table("curves", "accuracy at every measurement", _curve_rows, shown=False),
    ],
    figures={"capitalism": _draw, "life": _draw_markets},
    seeds=8,
    facts=lambda results: {
        "examples": _examples(results, -1),
        "batch": BATCH,
        "published": "the proposal only, no numbers (Sudhir and Tran-Thanh 2025)",
        "conservation_residual": float(max(results[name]["residual"].max() for name in MARKETS)),
    },
)

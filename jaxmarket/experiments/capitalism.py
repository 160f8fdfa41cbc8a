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
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.deep_market import Population, RoundSummary, Terms, layer_market
from jaxmarket.deep_market.layer_market import (
    ACTIVATIONS,
    LayerAgents,
    LayerMarket,
    LayerStructure,
    activations,
    cross_entropy,
    draw_lots,
    logits,
)
from jaxmarket.environments.digits import load
from jaxmarket.experiments.report import ExperimentOptions, Report, ResultTable, Verdict, by_chance, interquartile_mean
from jaxmarket.keys import key_for, key_of
from jaxmarket.types import Array
from jaxmarket.view import plotting, tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CapitalismCondition", "CapitalismResult", "conditions", "digits", "draw_accuracy", "measure", "run", "sgd"]


@functools.partial(jax.jit, static_argnames=("lots", "batch"))
def sgd(
    key: Array, weights: tuple[Array, Array], structure: LayerStructure, second: Array, x: Array, labels: Array,
    lots: int, batch: int,
) -> tuple[Array, Array]:  # fmt: skip
    """Train one network by SGD without momentum or weight decay on random lots.

    Args:
        key: draws the lots.
        weights: of the hidden layer f [d + 1, H] and of the readout f [H + 1, C].
        structure: of the hidden layer, with its learning rate.
        second: learning rate of the readout, f [].
        x: inputs f [n, d].
        labels: i32 [n].
        lots: number of lots; static.
        batch: examples per lot; static.

    Returns:
        The trained weights.
    """

    def step(weights: tuple[Array, Array], lot: Array) -> tuple[tuple[Array, Array], None]:
        hidden, readout = jax.grad(cross_entropy)(weights, structure, x[lot], labels[lot])
        return (weights[0] - structure.rate * hidden, weights[1] - second * readout), None

    return jax.lax.scan(step, weights, draw_lots(key, lots, batch, len(labels)))[0]


# --- conditions


@dataclasses.dataclass(frozen=True)
class CapitalismCondition:
    """A training method.

    Attributes:
        name: shown in tables.
        market: the layer market; None for SGD.
        terms: of the market; None for SGD.
        period: lots between turnovers.
        max_births: maximum number of births per turnover.
        structure: of the network that SGD trains: ``default``, ``random`` or ``found`` (by the hybrid).
        informed: whether consumers pay only for the probability of the correct label.
    """

    name: str
    market: LayerMarket | None = None
    terms: Terms | None = None
    period: int = 8
    max_births: int = 2
    structure: str = "default"
    informed: bool = True


BATCH = 64
_WIDTH = 32
WEALTH = 1.0


def conditions(inputs: int, classes: int = 10) -> list[CapitalismCondition]:
    """All conditions in the order of training: SGD on the structures that the hybrid found comes after the hybrid."""
    fixed = LayerAgents(inputs, _WIDTH, classes)
    free = dataclasses.replace(fixed, structured=True, noise=(0.005, 0.05))
    terms = Terms(
        wealth_tax=1e-3,
        endowment=WEALTH,
        child_endowment=WEALTH,
        inheritance=0.1,
        p_offspring=0.98,
        replace_poorest=True,
        bankruptcy=0.02,
    )
    capitalism = LayerMarket(fixed, batch=BATCH)
    return [
        CapitalismCondition("capitalism", capitalism, terms),
        CapitalismCondition("capitalism, paid for anything", capitalism, terms, informed=False),
        CapitalismCondition("hybrid", LayerMarket(free, batch=BATCH, learning=True), terms, period=32),
        CapitalismCondition("SGD", structure="default"),
        CapitalismCondition("SGD, structure found", structure="found"),
        CapitalismCondition("SGD, random structure", structure="random"),
    ]


@dataclasses.dataclass(frozen=True)
class CapitalismResult:
    """The measurements of a condition, as NumPy arrays.

    Attributes:
        condition: the condition.
        lots: cumulative number of lots at each measurement, i [M].
        accuracy: on held-out digits, f64 [M, seeds].
        residual: unexplained change of the money over money moved, f64 [seeds]; NaN for SGD.
        rounds: of a market, leaves [seeds, rounds, ...]; None for SGD.
        structure: the final hidden layer that wins a lot, or that of SGD, leaves [seeds]; and the learning rate of the
            readout.
        population: the final population of a market, leaves [seeds, ...]; None for SGD.
    """

    condition: CapitalismCondition
    lots: np.ndarray
    accuracy: np.ndarray
    residual: np.ndarray
    rounds: RoundSummary | None
    structure: tuple[LayerStructure, np.ndarray]
    population: Population | None = None


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """scikit-learn's 8 × 8 digits: images f [n, 64] and labels i [n] for training, and the same held out."""
    data = load("small")
    x = data.images.reshape(len(data.images), -1)
    return x[: data.train], data.labels[: data.train], x[data.train :], data.labels[data.train :]


_MEASURED = 192
"""Approximate number of measurements, each of which follows whole rounds of every condition."""


def _parts(lots: int, unit: int = 32) -> list[int]:
    """Numbers of lots between measurements; all are equal, so that one compiled program serves all."""
    part = unit * max(1, round(lots / (_MEASURED * unit)))
    return [part] * max(1, round(lots / part))


def _residuals(opened: np.ndarray, rounds: RoundSummary) -> np.ndarray:
    """`RoundSummary.residual` in float64: f [seeds]."""
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), rounds)
    return np.array([jax.tree.map(lambda leaf, s=s: leaf[s], wide).residual(opened[s]) for s in range(len(opened))])


@functools.partial(jax.jit, static_argnames=("market", "rounds", "period", "max_births"))
def _live_all(
    market: LayerMarket, keys: Array, populations: Population, times: Array, x: Array, labels: Array, terms: Terms,
    informed: Array | bool, *, rounds: int, period: int, max_births: int,
) -> tuple[Population, Array, RoundSummary]:  # fmt: skip
    """`layer_market.run` for all seeds: leaves [seeds, ...]."""

    def live(key: Array, population: Population, time: Array) -> tuple[Population, Array, RoundSummary]:
        return layer_market.run(
            market, key, population, time, x, labels, terms,
            rounds=rounds, period=period, max_births=max_births, informed=informed,
        )  # fmt: skip

    return jax.vmap(live)(keys, populations, times)


@functools.partial(jax.jit, static_argnames=("lots", "batch"))
def _sgd_all(
    keys: Array, weights: tuple[Array, Array], structures: LayerStructure, seconds: Array, x: Array, labels: Array,
    *, lots: int, batch: int,
) -> tuple[Array, Array]:  # fmt: skip
    """`sgd` for all seeds: leaves [seeds, ...]."""
    train = functools.partial(sgd, x=x, labels=labels, lots=lots, batch=batch)
    return jax.vmap(train)(keys, weights, structures, seconds)


def measure(
    condition: CapitalismCondition,
    seeds: int,
    seed: int,
    lots: int,
    found: tuple[LayerStructure, np.ndarray] | None = None,
) -> CapitalismResult:
    """Train a condition, and measure its accuracy on held-out digits.

    Args:
        condition: the condition.
        seeds: number of seeds.
        seed: of all randomness; conditions of one kind start from the same weights.
        lots: approximate number of lots, of `BATCH` examples each.
        found: the structures that the hybrid found, leaves [seeds]; required by the structure ``found``.

    Raises:
        ValueError: ``found`` is missing.
    """
    x, labels, held, answers = map(jnp.asarray, digits())
    start, go = jax.random.split(key_of(seed))
    parts = _parts(lots)
    if condition.market is None or condition.terms is None:
        return _measure_sgd(condition, jax.random.split(start, seeds), go, parts, found, (x, labels, held, answers))
    market, terms = condition.market, jax.tree.map(jnp.asarray, condition.terms)
    population = jax.vmap(lambda key: layer_market.init(market, key, WEALTH))(jax.random.split(start, seeds))
    opened, time = np.asarray(population.wealth, np.float64).sum(1), jnp.zeros(seeds, jnp.int32)

    @jax.jit
    @jax.vmap
    def ask(p: Population) -> tuple[Array, layer_market.SoldLot]:
        accuracy = layer_market.evaluate(market, p, held, answers)["accuracy"]
        return accuracy, layer_market.sell_lot(market, p, x[:256])

    rows, accuracy, sold = [], [], None
    for part, key in zip(parts, jax.random.split(go, len(parts)), strict=True):
        population, time, lived = _live_all(
            market, jax.random.split(key, seeds), population, time, x, labels, terms, condition.informed,
            rounds=part // condition.period, period=condition.period, max_births=condition.max_births,
        )  # fmt: skip
        now, sold = ask(population)
        rows.append(jax.device_get(lived))
        accuracy.append(np.asarray(now, np.float64))
    assert sold is not None
    rounds = jax.tree.map(lambda *leaves: np.concatenate(leaves, 1), *rows)
    return CapitalismResult(
        condition, np.cumsum(parts), np.stack(accuracy), _residuals(opened, rounds), rounds,
        jax.device_get((sold.hidden.agent.structure, sold.readout.agent.structure.rate)), jax.device_get(population),
    )  # fmt: skip


def _measure_sgd(
    condition: CapitalismCondition, keys: Array, go: Array, parts: list[int], found: Any, data: tuple[Array, ...]
) -> CapitalismResult:
    x, labels, held, answers = data
    representation = LayerAgents(x.shape[1], _WIDTH, 10, structured=condition.structure == "random")
    weights = jax.vmap(representation.parameters)(keys)
    if condition.structure == "found":
        if found is None:
            raise ValueError(
                f"found: {condition.name} needs the structures that the hybrid found, got None; measure it first"
            )
        structure, second = jax.tree.map(jnp.asarray, found)
    else:
        structure = jax.vmap(representation.draw)(jax.vmap(lambda key: key_for(key, "structure"))(keys))
        second = structure.rate

    def right(weights: tuple[Array, Array], structure: LayerStructure) -> Array:
        return (logits(weights[1], activations(weights[0], structure, held)).argmax(-1) == answers).mean()

    ask, accuracy = jax.jit(jax.vmap(right)), []
    for part, key in zip(parts, jax.random.split(go, len(parts)), strict=True):
        split = jax.random.split(key, len(keys))
        weights = _sgd_all(split, weights, structure, second, x, labels, lots=part, batch=BATCH)
        accuracy.append(np.asarray(ask(weights, structure), np.float64))
    nothing = np.full(len(keys), np.nan)
    return CapitalismResult(
        condition, np.cumsum(parts), np.stack(accuracy), nothing, None, jax.device_get((structure, second))
    )


# --- the report


def _until(result: CapitalismResult, level: float) -> np.ndarray:
    """Examples until a measurement first reaches the level: f [seeds], inf if none does."""
    reached = result.accuracy >= level
    return np.where(reached.any(0), result.lots[reached.argmax(0)] * BATCH, np.inf)


def _row(result: CapitalismResult) -> dict[str, Any]:
    last, until = result.accuracy[-1], _until(result, 0.9)
    middle = float(np.quantile(until, 0.5, method="inverted_cdf"))
    return {
        "arm": result.condition.name,
        "accuracy": interquartile_mean(last),
        "mean": float(last.mean()),
        "spread": float(last.std(ddof=1)) if len(last) > 1 else 0.0,
        "least": float(last.min()),
        "most": float(last.max()),
        "early": float(result.accuracy[0].mean()),
        "examples to .9": round(middle) if np.isfinite(middle) else None,
        "residual": None if result.rounds is None else float(result.residual.max()),
    }


def _structures(results: dict[str, CapitalismResult]) -> list[dict[str, Any]]:
    rows = []
    for name, result in results.items():
        structure, second = result.structure
        for i in range(len(second)):
            rows.append(
                {
                    "arm": name,
                    "seed": i,
                    "activation": ACTIVATIONS[int(structure.activation[i])][0],
                    "width": int(structure.width[i]),
                    "rate": float(structure.rate[i]),
                    "readout rate": float(second[i]),
                    "accuracy": float(result.accuracy[-1, i]),
                }
            )
    return rows


_NEAR = 0.9  # of SGD's accuracy


def _verdicts(results: dict[str, CapitalismResult]) -> list[Verdict]:
    last = {name: result.accuracy[-1] for name, result in results.items()}
    pure, control, hybrid = last["capitalism"], last["capitalism, paid for anything"], last["hybrid"]
    plain, found, random = last["SGD"], last["SGD, structure found"], last["SGD, random structure"]

    def comparison(ours: np.ndarray, name: str, other: np.ndarray) -> str:
        return (
            f"{ours.mean():.3f} against {other.mean():.3f} ({name}), better on {int((ours > other).sum())} "
            f"and worse on {int((ours < other).sum())} of {len(ours)} seeds; {by_chance(ours > other, ours < other)}"
        )

    unexplained = np.max([f.residual.max() for f in results.values() if f.rounds is not None])
    return [
        Verdict.of(
            "capitalism alone learns: on every seed it is better than if consumers pay the same for every prediction",
            bool((pure > control).all()), (pure - control).mean(), comparison(pure, "paid for anything", control),
        ),
        Verdict.of(
            f"capitalism alone reaches {_NEAR:g} of SGD's accuracy",
            pure.mean() >= _NEAR * plain.mean(), pure.mean() / plain.mean(), comparison(pure, "SGD", plain),
        ),
        Verdict.of(
            "the hybrid is at least as good as SGD on the default structure",
            hybrid.mean() >= plain.mean(), (hybrid - plain).mean(), comparison(hybrid, "SGD", plain),
        ),
        Verdict.of(
            "SGD on the structures that the hybrid found is better than SGD on random structures",
            found.mean() > random.mean(), (found - random).mean(), comparison(found, "random", random),
        ),
        Verdict.of(
            "SGD on the structures that the hybrid found is better than SGD on the default structure",
            found.mean() > plain.mean(), (found - plain).mean(), comparison(found, "SGD", plain),
        ),
        Verdict.of(
            "named cash flows explain every change of the money supply", unexplained < 1e-5, unexplained,
            f"at most {unexplained:.1e} of the money that moved is unexplained",
        ),
    ]  # fmt: skip


def draw_accuracy(ax: Any, results: dict[str, CapitalismResult]) -> None:
    """Held-out accuracy against examples: thin lines are seeds, thick lines are means."""
    for i, (name, result) in enumerate(results.items()):
        examples = result.lots * BATCH
        ax.plot(examples, result.accuracy, color=f"C{i}", alpha=0.2, linewidth=0.7)
        ax.plot(examples, result.accuracy.mean(1), color=f"C{i}", linewidth=2, label=name)
    ax.axhline(0.1, color="gray", linestyle=":", linewidth=1)
    ax.set(xscale="log", xlabel="examples", ylabel="held-out accuracy", ylim=(0, 1.02))
    ax.legend(frameon=False, fontsize=8)


def _figures(results: dict[str, CapitalismResult]) -> "dict[str, Figure]":
    curves, (ax,) = plotting.figure(width=7.5, height=4.5)
    draw_accuracy(ax, results)
    lives, axes = plotting.figure(3, 2, width=5.2, height=3.4)
    for row, name in enumerate(("capitalism", "hybrid")):
        rounds, market = results[name].rounds, results[name].condition.market
        assert rounds is not None and market is not None
        first = jax.tree.map(lambda leaf: leaf[0], rounds)
        plotting.draw_wealth(axes[3 * row], first)
        plotting.draw_money_supply(axes[3 * row + 1], first, market.capacity * WEALTH)
        plotting.draw_cash_flows(axes[3 * row + 2], first)
        axes[3 * row].set_title(f"{name}, seed 0")
    return {"capitalism": curves, "life": lives}


def run(options: ExperimentOptions) -> Report:
    """Train every condition and test the claims."""
    lots = 2048 if options.quick else 49152
    results: dict[str, CapitalismResult] = {}
    chosen = conditions(digits()[0].shape[1])
    with tables.progress("capitalism", unit="conditions", shown=options.progress) as bar:
        for condition in chosen:
            found = results["hybrid"].structure if "hybrid" in results else None
            results[condition.name] = measure(condition, options.seeds, options.seed, lots, found)
            bar(len(results), len(chosen), f"{condition.name}: {results[condition.name].accuracy[-1].mean():.3f}")
    examples = int(results["SGD"].lots[-1]) * BATCH
    table = ResultTable(
        "capitalism",
        f"held-out accuracy after {examples:,} examples, {options.seeds} seeds",
        [_row(result) for result in results.values()],
        "accuracy: interquartile mean over seeds · spread: standard deviation over seeds\n"
        "examples to .9: median over seeds · only in the files: mean, and early, "
        f"the mean after {int(results['SGD'].lots[0]) * BATCH:,} examples\n"
        "paid for anything: consumers pay 1/10 for every prediction · structure found: by the hybrid of the same seed",
        aside=("residual", "mean", "early"),
    )
    structures = ResultTable(
        "structures", "final structures and their accuracy", _structures(results),
        "of markets: of the layers that win a lot", shown=False,
    )  # fmt: skip
    curves = ResultTable(
        "curves", "accuracy at every measurement",
        [
            {"arm": name, "examples": int(count) * BATCH, "accuracy": float(now.mean()), "spread": float(now.std())}
            for name, result in results.items()
            for count, now in zip(result.lots, result.accuracy, strict=True)
        ],
        shown=False,
    )  # fmt: skip
    settings = {
        "seeds": options.seeds,
        "quick": options.quick,
        "examples": examples,
        "batch": BATCH,
        "published": "the proposal only, no numbers (Sudhir and Tran-Thanh 2025)",
        "conservation_residual": float(np.max([f.residual.max() for f in results.values() if f.rounds is not None])),
    }
    return Report(settings, [table, structures, curves], _verdicts(results), _figures(results))

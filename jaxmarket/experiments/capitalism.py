"""Training by capitalism (Sudhir and Tran-Thanh 2025, section 3): layers of a network that live on what they sell.

The market is `jaxmarket.deep_market.layer_market`: layers of a network that reads handwritten digits are agents, and
consumers pay for the probability of the right label.

**Capitalism**: parameters change by mutation only. **Hybrid**: the winners of a lot also learn from it by
backpropagation, and the market selects the structure: activation, width, learning rate. Baselines on the same data and
as many examples: SGD of one fixed network, of the structure that the hybrid found, of random structures, and capitalism
in which consumers pay the same for every prediction.
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
from jaxmarket.experiments.report import ExperimentOptions, Report, ResultTable, Verdict, interquartile_mean
from jaxmarket.keys import key_for, key_of
from jaxmarket.types import Array
from jaxmarket.view import plotting, tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Arm", "Finding", "arms", "digits", "draw_accuracy", "measure", "run", "sgd"]


@functools.partial(jax.jit, static_argnames=("lots", "batch"))
def sgd(
    key: Array, weights: tuple[Array, Array], structure: LayerStructure, second: Array, x: Array, labels: Array,
    lots: int, batch: int,
) -> tuple[Array, Array]:  # fmt: skip
    """Train one network by plain SGD, without momentum or weight decay, on ``lots`` random lots.

    Args:
        key: draws the lots.
        weights: f [d + 1, H], f [H + 1, C].
        structure: of the hidden layer, with its learning rate. second: f [], the readout's.
        x: f [n, d]. labels: i32 [n].
        lots, batch: static.

    Returns:
        The weights.
    """

    def one(weights: tuple[Array, Array], lot: Array) -> tuple[tuple[Array, Array], None]:
        hidden, readout = jax.grad(cross_entropy)(weights, structure, x[lot], labels[lot])
        return (weights[0] - structure.rate * hidden, weights[1] - second * readout), None

    return jax.lax.scan(one, weights, draw_lots(key, lots, batch, len(labels)))[0]


# --- what is run


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: for people.
        market: the economy; none for SGD.
        terms: of the economy, none for SGD.
        period, max_births: lots between turnovers, and the most births in one.
        structure: of SGD: ``default``, ``random`` or ``make_population``.
        informed: whether consumers pay for right answers only.
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


def arms(inputs: int, classes: int = 10) -> list[Arm]:
    """All that is compared, in order: what the hybrid found comes after the hybrid."""
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
        Arm("capitalism", capitalism, terms),
        Arm("capitalism, paid for anything", capitalism, terms, informed=False),
        Arm("hybrid", LayerMarket(free, batch=BATCH, learning=True), terms, period=32),
        Arm("SGD", structure="default"),
        Arm("SGD, structure found", structure="found"),
        Arm("SGD, random structure", structure="random"),
    ]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What came of an arm. NumPy.

    Attributes:
        arm: what was run.
        lots: lots sold or learned from at each measurement, i [M].
        accuracy: on held-out digits, f64 [M, seeds].
        residual: of the money, unexplained over moved; NaN for SGD. f64 [seeds]
        rounds: of a market, leaves [seeds, rounds, ...], or none.
        structure: in the end, of what a market trades, or of SGD; leaves [seeds]; and the readout's learning rate.
        population: of a market in the end, leaves [seeds, ...], or none.
    """

    arm: Arm
    lots: np.ndarray
    accuracy: np.ndarray
    residual: np.ndarray
    rounds: RoundSummary | None
    structure: tuple[LayerStructure, np.ndarray]
    population: Population | None = None


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """scikit-learn's digits, 8 × 8: images f [n, 64] and labels for training, the same held out."""
    data = load("small")
    x = data.images.reshape(len(data.images), -1)
    return x[: data.train], data.labels[: data.train], x[data.train :], data.labels[data.train :]


_MEASURED = 192
"""How often, at most; always after whole rounds of every arm."""


def _parts(lots: int, unit: int = 32) -> list[int]:
    """How many lots before each measurement: equal parts, so that nothing is compiled twice."""
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

    def one(key: Array, population: Population, time: Array) -> tuple[Population, Array, RoundSummary]:
        return layer_market.run(
            market, key, population, time, x, labels, terms,
            rounds=rounds, period=period, max_births=max_births, informed=informed,
        )  # fmt: skip

    return jax.vmap(one)(keys, populations, times)


@functools.partial(jax.jit, static_argnames=("lots", "batch"))
def _sgd_all(
    keys: Array, weights: tuple[Array, Array], structures: LayerStructure, seconds: Array, x: Array, labels: Array,
    *, lots: int, batch: int,
) -> tuple[Array, Array]:  # fmt: skip
    """`sgd` for all seeds: leaves [seeds, ...]."""
    train = functools.partial(sgd, x=x, labels=labels, lots=lots, batch=batch)
    return jax.vmap(train)(keys, weights, structures, seconds)


def measure(
    arm: Arm, seeds: int, seed: int, lots: int, found: tuple[LayerStructure, np.ndarray] | None = None
) -> Finding:
    """Train an arm on digits, measure it on others.

    Args:
        arm: what to run.
        seeds: how many.
        seed: of all randomness; arms of a kind start from the same weights.
        lots: about how many, of `BATCH` examples each.
        found: for SGD of the structure ``make_population``, leaves [seeds].

    Raises:
        ValueError: ``make_population`` is missing.
    """
    x, labels, held, answers = map(jnp.asarray, digits())
    start, go = jax.random.split(key_of(seed))
    parts = _parts(lots)
    if arm.market is None or arm.terms is None:
        return _measure_sgd(arm, jax.random.split(start, seeds), go, parts, found, (x, labels, held, answers))
    market, terms = arm.market, jax.tree.map(jnp.asarray, arm.terms)
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
            market, jax.random.split(key, seeds), population, time, x, labels, terms, arm.informed,
            rounds=part // arm.period, period=arm.period, max_births=arm.max_births,
        )  # fmt: skip
        now, sold = ask(population)
        rows.append(jax.device_get(lived))
        accuracy.append(np.asarray(now, np.float64))
    assert sold is not None
    rounds = jax.tree.map(lambda *leaves: np.concatenate(leaves, 1), *rows)
    return Finding(
        arm, np.cumsum(parts), np.stack(accuracy), _residuals(opened, rounds), rounds,
        jax.device_get((sold.hidden.agent.structure, sold.readout.agent.structure.rate)), jax.device_get(population),
    )  # fmt: skip


def _measure_sgd(arm: Arm, keys: Array, go: Array, parts: list[int], found: Any, data: tuple[Array, ...]) -> Finding:
    x, labels, held, answers = data
    representation = LayerAgents(x.shape[1], _WIDTH, 10, structured=arm.structure == "random")
    weights = jax.vmap(representation.parameters)(keys)
    if arm.structure == "found":
        if found is None:
            raise ValueError(f"found: {arm.name} needs the structures that were found; run the hybrid first")
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
    return Finding(arm, np.cumsum(parts), np.stack(accuracy), nothing, None, jax.device_get((structure, second)))


# --- what is reported


def _until(finding: Finding, level: float) -> np.ndarray:
    """Examples until a measurement first reaches the level: f [seeds], inf if none does."""
    reached = finding.accuracy >= level
    return np.where(reached.any(0), finding.lots[reached.argmax(0)] * BATCH, np.inf)


def _row(finding: Finding) -> dict[str, Any]:
    last, until = finding.accuracy[-1], _until(finding, 0.9)
    middle = float(np.quantile(until, 0.5, method="inverted_cdf"))
    return {
        "arm": finding.arm.name,
        "accuracy": interquartile_mean(last),
        "mean": float(last.mean()),
        "spread": float(last.std(ddof=1)) if len(last) > 1 else 0.0,
        "least": float(last.min()),
        "most": float(last.max()),
        "early": float(finding.accuracy[0].mean()),
        "examples to .9": round(middle) if np.isfinite(middle) else None,
        "residual": None if finding.rounds is None else float(finding.residual.max()),
    }


def _structures(findings: dict[str, Finding]) -> list[dict[str, Any]]:
    rows = []
    for name, finding in findings.items():
        structure, second = finding.structure
        for i in range(len(second)):
            rows.append(
                {
                    "arm": name,
                    "seed": i,
                    "activation": ACTIVATIONS[int(structure.activation[i])][0],
                    "width": int(structure.width[i]),
                    "rate": float(structure.rate[i]),
                    "readout rate": float(second[i]),
                    "accuracy": float(finding.accuracy[-1, i]),
                }
            )
    return rows


_NEAR = 0.9  # of SGD's accuracy


def _verdicts(findings: dict[str, Finding]) -> list[Verdict]:
    last = {name: finding.accuracy[-1] for name, finding in findings.items()}
    pure, control, hybrid = last["capitalism"], last["capitalism, paid for anything"], last["hybrid"]
    plain, found, random = last["SGD"], last["SGD, structure found"], last["SGD, random structure"]

    def against(one: np.ndarray, name: str, other: np.ndarray) -> str:
        return (
            f"{one.mean():.3f} against {other.mean():.3f} ({name}), better on {int((one > other).sum())} "
            f"and worse on {int((one < other).sum())} of {len(one)} seeds"
        )

    unexplained = np.max([f.residual.max() for f in findings.values() if f.rounds is not None])
    return [
        Verdict.of(
            "capitalism alone learns: better than where consumers pay for anything, on every seed",
            bool((pure > control).all()), (pure - control).mean(), against(pure, "paid for anything", control),
        ),
        Verdict.of(
            f"capitalism alone reaches {_NEAR:g} of SGD's accuracy",
            pure.mean() >= _NEAR * plain.mean(), pure.mean() / plain.mean(), against(pure, "SGD", plain),
        ),
        Verdict.of(
            "the hybrid is at least as good as SGD of the structure one would begin with",
            hybrid.mean() >= plain.mean(), (hybrid - plain).mean(), against(hybrid, "SGD", plain),
        ),
        Verdict.of(
            "SGD of the structure found beats SGD of random structures",
            found.mean() > random.mean(), (found - random).mean(), against(found, "random", random),
        ),
        Verdict.of(
            "SGD of the structure found beats SGD of the structure one would begin with",
            found.mean() > plain.mean(), (found - plain).mean(), against(found, "SGD", plain),
        ),
        Verdict.of(
            "every change of the money supply has a name", unexplained < 1e-5, unexplained,
            f"{unexplained:.1e} of the money that moved is unexplained, at most",
        ),
    ]  # fmt: skip


def draw_accuracy(ax: Any, findings: dict[str, Finding]) -> None:
    """Held-out accuracy against examples: every seed thin, means thick."""
    for i, (name, finding) in enumerate(findings.items()):
        examples = finding.lots * BATCH
        ax.plot(examples, finding.accuracy, color=f"C{i}", alpha=0.2, linewidth=0.7)
        ax.plot(examples, finding.accuracy.mean(1), color=f"C{i}", linewidth=2, label=name)
    ax.axhline(0.1, color="gray", linestyle=":", linewidth=1)
    ax.set(xscale="log", xlabel="examples", ylabel="right on held-out digits", ylim=(0, 1.02))
    ax.legend(frameon=False, fontsize=8)


def _figures(findings: dict[str, Finding]) -> "dict[str, Figure]":
    curves, (ax,) = plotting.figure(width=7.5, height=4.5)
    draw_accuracy(ax, findings)
    lives, axes = plotting.figure(3, 2, width=5.2, height=3.4)
    for row, name in enumerate(("capitalism", "hybrid")):
        rounds, market = findings[name].rounds, findings[name].arm.market
        assert rounds is not None and market is not None
        one = jax.tree.map(lambda leaf: leaf[0], rounds)
        plotting.draw_wealth(axes[3 * row], one)
        plotting.draw_money_supply(axes[3 * row + 1], one, market.capacity * WEALTH)
        plotting.draw_cash_flows(axes[3 * row + 2], one)
        axes[3 * row].set_title(f"{name}, seed 0")
    return {"capitalism": curves, "life": lives}


def run(options: ExperimentOptions) -> Report:
    """Train every arm and judge."""
    lots = 2048 if options.quick else 49152
    findings: dict[str, Finding] = {}
    chosen = arms(digits()[0].shape[1])
    with tables.progress("capitalism", unit="arms", shown=options.progress) as bar:
        for arm in chosen:
            found = findings["hybrid"].structure if "hybrid" in findings else None
            findings[arm.name] = measure(arm, options.seeds, options.seed, lots, found)
            bar(len(findings), len(chosen), f"{arm.name}: {findings[arm.name].accuracy[-1].mean():.3f}")
    examples = int(findings["SGD"].lots[-1]) * BATCH
    table = ResultTable(
        "capitalism",
        f"held-out accuracy after {examples:,} examples, {options.seeds} seeds",
        [_row(finding) for finding in findings.values()],
        "accuracy: mean of the middle half of the seeds · spread: standard deviation over seeds\n"
        "examples to .9: median over seeds · also written: mean, and early, "
        f"the mean after {int(findings['SGD'].lots[0]) * BATCH:,} examples\n"
        "paid for anything: consumers pay 1/10 whatever is delivered · structure found: by the hybrid of that seed",
        aside=("residual", "mean", "early"),
    )
    structures = ResultTable(
        "structures", "structures in the end, and how well they do", _structures(findings),
        "of markets: of who would win a lot", shown=False,
    )  # fmt: skip
    curves = ResultTable(
        "curves", "accuracy at every measurement",
        [
            {"arm": name, "examples": int(count) * BATCH, "accuracy": float(now.mean()), "spread": float(now.std())}
            for name, finding in findings.items()
            for count, now in zip(finding.lots, finding.accuracy, strict=True)
        ],
        shown=False,
    )  # fmt: skip
    settings = {
        "seeds": options.seeds,
        "quick": options.quick,
        "examples": examples,
        "batch": BATCH,
        "published": "the proposal only, no numbers (Sudhir and Tran-Thanh 2025)",
        "conservation_residual": float(np.max([f.residual.max() for f in findings.values() if f.rounds is not None])),
    }
    return Report(settings, [table, structures, curves], _verdicts(findings), _figures(findings))

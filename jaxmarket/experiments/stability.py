"""Do economies last? The markets of other experiments over ten times their training time, with births to the end.

An economy has *collapsed* in a twentieth of the run if its mean return or its steps to food are worse there than a
fixed level (`TASKS`). The running economy is judged, with its newcomers and explorers, and not a frozen population.
Rules of entry (rare births, high first bids), exit (no taxes, no replacement of the poorest agents) and ownership
(buying from oneself at no cost) are changed one at a time, on the same seeds.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxmarket.deep_market.evaluation import accuracy, mean_steps
from jaxmarket.experiments import bucket_brigade, generality, hayek_expressions, memory_market
from jaxmarket.experiments.claims import Claim, at, share_of_seeds, tally
from jaxmarket.experiments.conditions import Condition, Grow, Scope
from jaxmarket.experiments.experiment import Experiment, Table, by_condition, column
from jaxmarket.experiments.populations import market_facts
from jaxmarket.experiments.results import Results
from jaxmarket.runs.populations import Evaluate, GrownMarket, MarketPlan
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT", "TASKS", "StabilityTask", "plans"]

TIMES = 10
_PARTS = 20
_TRAINED = _PARTS // TIMES  # parts that training takes
# They take from six minutes to an hour each, and belong to ``--full`` runs.
_LONG = [
    *(("MemoryChain 10", change) for change in ("rare births", "no taxes", "no replacement")),
    ("Woods101", "market"),
    ("blocks world", "market"),
]


@dataclasses.dataclass(frozen=True)
class StabilityTask:
    """A task and the measure by which its economies are judged.

    Attributes:
        measures: what `grow` measures in frozen populations.
        frozen: the name of the measure.
        field: ``returns`` or ``lengths`` of episodes in the running economy.
        level: its mean at which an economy has collapsed.
    """

    measures: Evaluate
    frozen: str
    field: str
    level: float

    @property
    def sign(self) -> int:
        """1 if more is better, -1 if less is."""
        return 1 if self.field == "returns" else -1

    @property
    def unit(self) -> str:
        """What `field` counts."""
        return "mean return" if self.field == "returns" else "steps to food"


# 1 is the optimum; without memory 0 on MemoryChain, and 2/3 in Woods101.
_WITH_MEMORY = StabilityTask(memory_market.returns, "return", "returns", 0.5)

TASKS: Mapping[str, StabilityTask] = MappingProxyType(
    {
        "MemoryChain 10": _WITH_MEMORY,
        # .5 by chance, .89 in a trained economy, whose explorers win half of the auctions.
        "6 bits": StabilityTask(accuracy, "right", "returns", 0.7),
        # 1.69 is the optimum, 27 by chance.
        "Woods1": StabilityTask(mean_steps, "steps", "lengths", 5.0),
        "Woods101": _WITH_MEMORY,
        # The share of instances with at most five blocks that are solved.
        "blocks world": StabilityTask(hayek_expressions.progress, "5 blocks", "returns", 0.5),
    }
)


def plans(task: str, quick: bool) -> dict[str, MarketPlan]:
    """The market of a task, and what is changed in it by name, without the extension of the run."""
    if task == "6 bits":
        return {"market": generality.plans("6 bits", quick)["market"]}
    if task == "Woods101":
        return {"market": memory_market.plans(task, quick)["memory"]}
    if task == "blocks world":
        return {"market": hayek_expressions.plans(quick)["market"]}
    if task == "MemoryChain 10":
        plan = memory_market.plans(task, quick)["memory"]
        rules: Any = plan.market.representation
        bold = dataclasses.replace(rules, coefficient=2 * rules.coefficient)
        changed = {"bids twice as high": plan.with_market(representation=bold)}
    else:
        plan = generality.plans("woods1", quick)["market"]
        changed = {"Holland's rules": bucket_brigade.plans("woods1", quick)["market"]}
    return {
        "market": plan,
        "rare births": plan.with_terms(birth_rate=plan.terms.birth_rate / 10),
        "no taxes": plan.with_terms(wealth_tax=None, compute_tax=None),
        "no replacement": plan.with_terms(replace_poorest=None),
        **changed,
    }


def _longer(plan: MarketPlan) -> MarketPlan:
    """The plan over `TIMES` times as many rounds, with the same stages and with births to the end."""
    chunks = TIMES * plan.chunks if plan.stages else _PARTS
    return dataclasses.replace(plan, rounds=TIMES * plan.rounds, chunks=chunks, settling=0)


def _included(scope: Scope, task: str, change: str) -> bool:
    """Whether a run has this condition."""
    return scope.full or (task, change) not in _LONG


def _conditions(scope: Scope) -> list[Condition]:
    return [
        Grow(f"{name}: {change}", _longer(plan), task.measures)
        for name, task in TASKS.items()
        for change, plan in plans(name, scope.quick).items()
        if _included(scope, name, change)
    ]


# --- measures and claims


def _task(grown: GrownMarket) -> StabilityTask:
    return next(task for task in TASKS.values() if task.frozen in grown.measured)


def _history(grown: GrownMarket) -> np.ndarray:
    """Means of the running economy, f [parts, seeds]; infinitely bad where no episode ended."""
    task = _task(grown)
    return np.nan_to_num(grown.per_episode(task.field, _PARTS), nan=-np.inf * task.sign)


def _worst(grown: GrownMarket) -> np.ndarray:
    """The worst part after the training time: f [seeds]."""
    sign = _task(grown).sign
    return sign * (sign * _history(grown)[_TRAINED:]).min(0)


MEASURES = {
    "trained": lambda grown: _history(grown)[_TRAINED - 1],
    "worst": _worst,
    "end": lambda grown: _history(grown)[-1],
    "frozen": lambda grown: grown.measured[_task(grown).frozen][-1].astype(np.float64),
}


def _fine(name: str, values: np.ndarray) -> np.ndarray:
    """Which values are better than the level of collapse."""
    task = TASKS[name.partition(":")[0]]
    return task.sign * values > task.sign * task.level


def _claims(scope: Scope) -> list[Claim]:
    return [
        share_of_seeds(
            f"[{name}] no collapse over {TIMES} times the training time: {task.unit} never "
            f"{'below' if task.sign > 0 else 'above'} {task.level:g} in a {_PARTS}th of the run",
            at(f"{name}: market", "worst"),
            share=15 / 16,
            **{"at_least" if task.sign > 0 else "at_most": task.level},  # type: ignore[arg-type]
        )
        for name, task in TASKS.items()
        if _included(scope, name, "market")
    ]


# --- tables and figures

_COLUMNS = {
    "after training": column("trained", np.mean),
    "worst part, mean": column("worst", np.mean),
    "collapsed once": lambda results, name: tally(~_fine(name, results.measure(name, "worst"))),
    "at the end": column("end", np.mean),
    "collapsed then": lambda results, name: tally(~_fine(name, results.measure(name, "end"))),
    "frozen then": column("frozen", np.mean),
}


def _draw(results: Results) -> Any:
    """Every condition's mean over seeds, and the worst seed, dashed."""
    shown = [task_name for task_name in TASKS if f"{task_name}: market" in results]
    fig, axes = plotting.figure(columns=len(shown), width=4.4, height=3.8)
    kinds = list(dict.fromkeys(name.partition(": ")[2] for name in results))
    for ax, task_name in zip(axes, shown, strict=True):
        task = TASKS[task_name]
        for name in (name for name in results if name.partition(": ")[0] == task_name):
            kind, values = name.partition(": ")[2], _history(results[name])
            color, times = plotting.COLORS[kinds.index(kind)], np.arange(1, len(values) + 1) / _TRAINED
            ax.plot(times, values.mean(1), color=color, linewidth=2, label=kind)
            worst = values[:, np.argmin(task.sign * results.measure(name, "worst"))]
            ax.plot(times, worst, color=color, linewidth=1, linestyle="--")
        ax.axhline(task.level, color="black", linewidth=0.8, linestyle=":", label="collapse")
        ax.axvline(1, color="black", linewidth=0.8)
        ax.set(title=task_name, ylabel=f"{task.unit}, while learning", xlabel="training times")
        if task.sign < 0:
            plotting.log_y_axis(ax, [2, 3, 5, 10, 20])
    plotting.legend_below(fig)
    return fig


EXPERIMENT = Experiment(
    name="stability",
    shows="whether economies last for ten times their training time, and which rules make them last",
    source="Baum (1999); Holland (1985)",
    conditions=_conditions,
    measures=MEASURES,
    claims=_claims,
    tables=[
        Table(
            "stability",
            lambda results: f"{TIMES} times the training time, {results.scope.seeds} seeds",
            by_condition(_COLUMNS),
            "running economies, with newcomers and explorers: mean return, in Woods1 steps to food\n"
            f"worst part: of the {_PARTS - _TRAINED} twentieths of the run after the training time\n"
            + " · ".join(
                f"{name}: collapsed {'below' if task.sign > 0 else 'above'} {task.level:g}"
                for name, task in TASKS.items()
            ),
        )
    ],
    figures={"stability": _draw},
    facts=market_facts,
)

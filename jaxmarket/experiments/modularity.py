"""Modularity (Chang et al. 2021, §7): how much an agent has to relearn if one decision changes.

There are three topologies of decisions (`environments.topologies`), each with a first task and transfer tasks in which
the right action of a single state differs. Societies, in which every primitive has its own networks and learns from its
own utility, are compared with one PPO agent whose decisions share one network.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmarket.environments.topologies import ACTIONS, CHANGES, FIRST, TOPOLOGIES, Change, right_actions
from jaxmarket.experiments import transfers
from jaxmarket.experiments.claims import Claim, every_seed, tally, within
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Scope, Train
from jaxmarket.experiments.experiment import Experiment, Table, column
from jaxmarket.experiments.results import Results
from jaxmarket.experiments.transfers import LEVEL, RATE, Transfer, exploring, fewer_steps, kind_of
from jaxmarket.experiments.tuning import grid_conditions, tuning_table
from jaxmarket.keys import key_for, key_of
from jaxmarket.runs.estimates import difference, interquartile_mean
from jaxmarket.runs.run_folder import SavedRun, sampled_action_rates
from jaxmarket.runs.sweeps import combinations
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.pinned import train_config
from jaxmarket.types import Array
from jaxmarket.view import plotting

__all__ = ["AGENTS", "CONDITIONS", "EXPERIMENT"]

_UPDATE = 512  # environment steps
_STEPS = 200 * _UPDATE
_EARLY = 10 * _UPDATE  # when a transfer is stopped to measure the decisions that did not change
_BUDGET: dict[str, Any] = {"instances": 32, "horizon": 16, "minibatch": 128, "log_every": 1, "steps": _STEPS}
_KINDS: dict[str, dict[str, Any]] = {
    "society": {"learner": "ppo", "hidden": (16,)},
    "society valuation": {"learner": "valuation", "hidden": ()},
    "flat": {"agent": "monolith", "hidden": (16,)},
}
AGENTS: dict[str, dict[str, Any]] = {
    "society": {"learning_rate": 3e-2, "entropy": 0.03},
    "society valuation": {"learning_rate": 3e-3, "exploration": 0.1, "exploration_final": 0.1},
    "flat": {"learning_rate": 1e-2, "entropy": 0.01},
}
"""The best settings of the table ``tuning``: they first stay above 90% after 9,200, 1,200 and 7,500 steps."""
CONDITIONS = AGENTS | exploring(AGENTS, ("society", "flat"))
"""What is compared: all agents with these settings, and both PPO agents with more entropy as well."""
PAIRS = (
    ("society", "flat"),
    ("society valuation", "flat"),
    ("society-exploring", "flat-exploring"),
    ("society valuation", "flat-exploring"),
)
"""The societies and the flat agents that claims compare; the valuation society has no entropy."""
_SHORT = {"society": "ppo society", "society valuation": "valuation society", "society-exploring": "exploring society"}
_STEADY = ("society", "flat")  # agents whose settings do not depend on the number of steps

_PPO_GRID = combinations({"learning_rate": [1e-3, 3e-3, 1e-2, 3e-2], "entropy": [0.01, 0.03, 0.1]})
_VALUATION_GRID = combinations({"learning_rate": [3e-4, 1e-3, 3e-3, 1e-2], "exploration": [0.03, 0.1, 0.2]})
GRIDS: dict[str, list[dict[str, Any]]] = {
    "society": _PPO_GRID,
    "society valuation": [each | {"exploration_final": each["exploration"]} for each in _VALUATION_GRID],
    "flat": _PPO_GRID,
}
"""Twelve settings per agent; all are traced, so that each agent compiles once."""
_TUNING_SEED, _TUNING_SEEDS = 5, 8
_SOLVED = 0.99  # final success rate that a chosen setting must reach


# --- conditions


def config(agent: str, topology: str, task: str, **settings: Any) -> TrainConfig:
    """An agent on a task; ``settings`` override those of the agent."""
    return train_config(TOPOLOGIES[topology](task), **(_BUDGET | _KINDS[kind_of(agent)] | CONDITIONS[agent] | settings))


def _changes(scope: Scope) -> tuple[Change, ...]:
    return CHANGES[:1] if scope.quick else CHANGES  # compiling the programs of a task takes most of its time


def _transfer(agent: str, change: Change) -> Transfer:
    return Transfer(agent, f"first-{agent}-{change.topology}", f"transfer-{agent}-{change}")


def _conditions(scope: Scope) -> list[Condition]:
    """Every agent on the first tasks, then from its networks on the transfer tasks, also stopped early."""
    wanted: list[Condition] = []
    for agent in CONDITIONS:
        for topology in dict.fromkeys(change.topology for change in _changes(scope)):
            wanted.append(Train(f"first-{agent}-{topology}", config(agent, topology, FIRST)))
        for change in _changes(scope):
            transfer, early = _transfer(agent, change), f"early-{agent}-{change}"
            on_task = functools.partial(config, agent, change.topology, change.task)
            wanted.append(Train(transfer.second, on_task(), start=transfer.first))
            if agent in _STEADY and not scope.quick:
                rates = functools.partial(right_decisions, change.task)
                wanted.append(Train(early, on_task(steps=_EARLY), start=transfer.first))
                wanted.append(Compute(f"decisions-{agent}-{change}", rates, inputs=(early,)))
    return wanted + (grid_conditions(GRIDS, _tuning) if scope.full else [])


def _tuning(name: str, agent: str, setting: Mapping[str, Any]) -> list[Condition]:
    """A setting on the linear chain; transfer results are reported, but not used."""
    topology, _, task = CHANGES[0]
    first, second = (config(agent, topology, each, **setting) for each in (FIRST, task))
    train = functools.partial(Train, seeds=_TUNING_SEEDS, seed=_TUNING_SEED)
    return [train(name, first), train(f"{name}-transfer", second, start=name)]


def right_decisions(task: str, keys: Array, run: SavedRun) -> Arrays:
    """How often each decision is ``right``, with sampled bids or choices: f [seeds, 3]."""
    del keys
    right, key = right_actions(task), key_for(key_of(0), "measurement")
    rates = sampled_action_rates(run, jnp.eye(len(right), len(right) + 1), key, len(ACTIONS))
    return {"right": rates[:, range(len(right)), right]}


# --- claims


def _moved(results: Results, agent: str, change: Change) -> np.ndarray:
    """The share of an agent's weights that a transfer moves: f [seeds]."""
    return _transfer(agent, change).over("all", "moved")(results)


def _unchanged(results: Results, agent: str, change: Change) -> np.ndarray:
    """The lower rate of right actions in the two decisions that do not change, early in the transfer: f [seeds]."""
    return results.measure(f"decisions-{agent}-{change}", "right")[:, change.unchanged].min(1)


def _gaps(changes: Sequence[Change], agent: str, other: str, results: Results) -> np.ndarray:
    """The upper end of the interval of the difference of the shares of weights that moved: f [transfers]."""
    return np.array([difference(_moved(results, agent, c), _moved(results, other, c)).high for c in changes])


def _claims(scope: Scope) -> list[Claim]:
    changes, claims = _changes(scope), []
    for agent, other in PAIRS:
        society, than = f"the {_SHORT[agent]}", "" if other == "flat" else f" than {other}"
        for change in changes:
            claim = f"[{change}] {society} reaches 90% again in fewer steps{than}"
            names = _transfer(agent, change).second, _transfer(other, change).second
            claims.append(fewer_steps(claim, *names))
            claims.append(fewer_steps(f"{claim}, and stays there", *names, lasting=True))
        claims.append(
            every_seed(
                f"{society} moves a smaller share of its weights{than}: upper ends of the differences in all transfers",
                functools.partial(_gaps, changes, agent, other),
                at_most=-1e-3,
            )
        )
    for change in () if scope.quick else changes:
        claims.append(
            within(
                f"[{change}] the ppo society's unchanged decisions stay right early in the transfer",
                functools.partial(_unchanged, agent="society", change=change),
                at_least=LEVEL,
                interval=True,
                evidence=lambda results, change=change: (
                    f"flat {interquartile_mean(_unchanged(results, 'flat', change))}"
                ),
            )
        )
    return claims


# --- tables


def _rows(results: Results) -> list[dict[str, Any]]:
    return [
        {"topology": change.topology, "changes": change.decision} | _transfer(agent, change).row(results, lasting=True)
        for change in _changes(results.scope)
        for agent in CONDITIONS
    ]


def _first_rows(results: Results) -> list[dict[str, Any]]:
    first = {(row["topology"], row["arm"]): row for row in _rows(results)}.values()
    return [{"topology": r["topology"], "arm": r["arm"], "success": r["first"], "k steps": r["k steps"]} for r in first]


def _early_rows(results: Results) -> Iterator[dict[str, Any]]:
    for change in () if results.scope.quick else _changes(results.scope):
        for agent in _STEADY:
            changed = results.measure(f"decisions-{agent}-{change}", "right")[:, ~change.unchanged]
            others = _unchanged(results, agent, change)
            yield {
                "topology": change.topology,
                "changes": change.decision,
                "arm": agent,
                "changed decision": interquartile_mean(changed[:, 0]),
                "others": interquartile_mean(others),
                "others, lowest seed": float(others.min()),
            }


def _mean_steps(results: Results, name: str) -> int | None:
    """The mean number of steps until success stays; None unless it does on every seed."""
    stays = results.measure(name, "stays").all()
    return round(results.measure(name, "steps to stay").mean()) if stays else None


# --- figures


def _draw_transfers(results: Results) -> Any:
    """Success after the transfer, one panel for each transfer task."""
    changes = _changes(results.scope)
    fig, axes = plotting.figure(columns=min(4, len(changes)), rows=-(-len(changes) // 4), width=3.6, height=2.9)
    for ax, change in zip(axes, changes, strict=False):
        runs = {agent: results[_transfer(agent, change).second] for agent in CONDITIONS}
        title = f"{change}\n{FIRST} → {change.task}"
        plotting.draw_metric_curves(ax, runs, RATE, title=title, levels={f"{LEVEL:.0%}": LEVEL})
        ax.set(ylabel="success rate", ylim=(-0.03, 1.03))
    for ax in axes[len(changes) :]:
        ax.set_axis_off()
    plotting.legend_below(fig, columns=min(2 * len(changes), 4))
    return fig


def _draw_moved(results: Results) -> Any:
    """Share of the weights that moved: interquartile mean over seeds and its interval."""
    changes = _changes(results.scope)
    fig, (ax,) = plotting.figure(width=7.5, height=1.4 + 0.9 * len(changes))
    moved = {agent: [interquartile_mean(_moved(results, agent, each)) for each in changes] for agent in CONDITIONS}
    plotting.draw_estimates(ax, [f"{each}\n{FIRST} → {each.task}" for each in changes], moved)
    ax.set(xlabel="share of all weights that moved", xlim=(0, 1))
    plotting.legend_below(fig)
    return fig


EXPERIMENT = Experiment(
    name="modularity",
    shows="transfer to a task with one changed decision: societies against monolithic agents, three topologies",
    source="Chang et al. (2021), §7",
    conditions=_conditions,
    measures=transfers.MEASURES,
    claims=_claims,
    tables=[
        Table(
            "transfers",
            f"one decision of {FIRST} changes: {_STEPS / 1000:.0f} k steps on each task",
            _rows,
            "interquartile mean over seeds ± the larger side of its 95% bootstrap interval\n"
            "exploring: the same settings with an entropy weight of .1\n"
            "k steps after: until 90% of a chunk's episodes first succeed during training; a valuation society then\n"
            "explores at a constant rate of .1, with which perfect bids succeed in more than 99%\n"
            "k steps to stay: until success no longer falls below that; reached, stay: numbers of such seeds;\n"
            "other seeds count as the whole run\n"
            "moved: share of the weights that moved by more than a tenth of their layer's root mean square",
            aside=("first", "k steps", "transfer", "change"),
        ),
        Table(
            "first",
            f"the first tasks, {FIRST}",
            _first_rows,
            "success: in new episodes with sampled bids or choices",
        ),
        Table(
            "early",
            f"{_EARLY / 1000:.0f} k steps into the transfer: rate of right decisions with sampled bids or choices",
            _early_rows,
            "others: the lower rate of the two unchanged decisions\n"
            "without the valuation society, because its learning rate depends on the length of the run",
        ),
        tuning_table(
            f"grids on the linear chain, {_TUNING_SEEDS} separate seeds",
            GRIDS,
            {
                "success": column("success", np.mean),
                "steps to stay": _mean_steps,
                "k steps after": lambda results, name: interquartile_mean(
                    results.measure(f"{name}-transfer", "steps to 90%") / 1000
                ),
                "reached": lambda results, name: tally(results.measure(f"{name}-transfer", "reached 90%")),
            },
            lambda row: row["steps to stay"] if row["success"] >= _SOLVED else None,
            "best: stays above 90% after the fewest steps, final success at least 99%",
        ),
    ],
    figures={
        "transfers": _draw_transfers,
        "moved": _draw_moved,
        "weights": lambda results: transfers.draw_weights([_transfer(a, CHANGES[0]) for a in CONDITIONS], results),
    },
)

"""Modularity (Chang et al. 2021, §7): how much an agent has to relearn if one decision changes.

There are three topologies of decisions (`environments.topologies`), each with a first task and transfer tasks in which
the right action of a single state differs. Societies, in which every primitive has its own networks and learns from its
own utility, are compared with one PPO agent whose decisions share one network.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.environments.topologies import TOPOLOGIES, right_actions
from jaxmarket.experiments import transfers
from jaxmarket.experiments.claims import Claim, Values, every_seed, tally, within
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Scope, Train
from jaxmarket.experiments.experiment import Experiment, Table
from jaxmarket.experiments.results import Results
from jaxmarket.experiments.settings import train_config
from jaxmarket.experiments.transfers import LEVEL, RATE, Transfer, exploring, fewer_steps, kind_of
from jaxmarket.experiments.tuning import grid_conditions, tuning_table
from jaxmarket.keys import key_for, key_of
from jaxmarket.runs.estimates import difference, interquartile_mean
from jaxmarket.runs.run_folder import SavedRun, as_policy
from jaxmarket.runs.sweeps import combinations
from jaxmarket.society import MarketPolicy
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.monolith import ChoicePolicy
from jaxmarket.types import Array
from jaxmarket.view import plotting

__all__ = ["AGENTS", "CONDITIONS", "EXPERIMENT"]

FIRST = "ABC"
"""The first task of every topology: the right actions of its three states."""

TRANSFERS: dict[str, dict[str, str]] = {
    "linear chain": {"last": "ABD", "middle": "AEC", "first": "FBC"},
    "common ancestor": {"ancestor": "DBC", "descendant": "ABE"},
    "common descendant": {"descendant": "ABD", "ancestor": "EBC"},
}
"""The transfer tasks, by topology and by the decision that changes."""

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


@dataclasses.dataclass(frozen=True)
class TransferTask:
    """A transfer task.

    Attributes:
        topology: name of the topology.
        change: name of the decision that changes.
        right: the right actions.
    """

    topology: str
    change: str
    right: str

    def __str__(self) -> str:
        return f"{self.topology}, {self.change}"

    def condition(self, agent: str, stage: str = "transfer") -> str:
        """The name of an agent's run on this task, or on the first one."""
        return f"first-{agent}-{self.topology}" if stage == "first" else f"{stage}-{agent}-{self}"

    def transfer(self, agent: str) -> Transfer:
        """The runs of an agent."""
        return Transfer(agent, self.condition(agent, "first"), self.condition(agent))

    def decisions(self, results: Results, agent: str) -> tuple[np.ndarray, np.ndarray]:
        """Early in the transfer, how often an agent's decisions are right: f [seeds] each.

        The lower rate of the two unchanged decisions, and the rate of the changed one.
        """
        right = results.measure(self.condition(agent, "decisions"), "right")
        same = np.array(list(FIRST)) == np.array(list(self.right))
        return right[:, same].min(1), right[:, ~same][:, 0]


def _tasks(scope: Scope) -> list[TransferTask]:
    every = [TransferTask(topology, *change) for topology, changes in TRANSFERS.items() for change in changes.items()]
    return every[:1] if scope.quick else every  # compiling the programs of a task takes most of its time


def config(agent: str, topology: str, task: str, **settings: Any) -> TrainConfig:
    """An agent on a task; ``settings`` override those of the agent."""
    return train_config(TOPOLOGIES[topology](task), **(_BUDGET | _KINDS[kind_of(agent)] | CONDITIONS[agent] | settings))


def _conditions(scope: Scope) -> list[Condition]:
    """Every agent on the first tasks, then from its networks on the transfer tasks, also stopped early."""
    wanted: list[Condition] = []
    for agent in CONDITIONS:
        first = {task.topology: task.condition(agent, "first") for task in _tasks(scope)}
        wanted += [Train(name, config(agent, topology, FIRST)) for topology, name in first.items()]
        for task in _tasks(scope):
            start, early = first[task.topology], task.condition(agent, "early")
            wanted.append(Train(task.condition(agent), config(agent, task.topology, task.right), start=start))
            if agent in _STEADY and not scope.quick:
                wanted.append(Train(early, config(agent, task.topology, task.right, steps=_EARLY), start=start))
                rates = functools.partial(right_decisions, task.right)
                wanted.append(Compute(task.condition(agent, "decisions"), rates, inputs=(early,)))
    return wanted + (grid_conditions(GRIDS, _tuning) if scope.full else [])


def _tuning(name: str, agent: str, setting: Mapping[str, Any]) -> list[Condition]:
    """A setting on the linear chain; transfer results are reported, but not used."""
    topology, own = "linear chain", {"seeds": _TUNING_SEEDS, "seed": _TUNING_SEED}
    second = config(agent, topology, TRANSFERS[topology]["last"], **setting)
    return [
        Train(name, config(agent, topology, FIRST, **setting), **own),
        Train(f"{name}-transfer", second, start=name, **own),
    ]


@jax.jit
def _actions(policy: MarketPolicy | ChoicePolicy, keys: Array, obs: Array) -> Array:
    """The actions of a policy for each key and observation: i32 [keys, states]."""
    return jax.vmap(lambda key: jax.vmap(lambda o: policy(o, key))(obs))(keys)


def right_decisions(task: str, keys: Array, run: SavedRun) -> Arrays:
    """The rate of each state's ``right`` action in 256 sampled bids or choices: f [seeds, 3]."""
    actions, obs = right_actions(task), jnp.eye(3, 4)
    draws = jax.random.split(key_for(key_of(0), "measurement"), 256)
    policies = (as_policy(run, seed=seed, greedy=False) for seed in range(len(keys)))
    return {"right": np.stack([(np.asarray(_actions(policy, draws, obs)) == actions).mean(0) for policy in policies])}


# --- claims


def _claims(scope: Scope) -> list[Claim]:
    tasks, claims = _tasks(scope), []
    for agent, other in PAIRS:
        society, than = f"the {_SHORT[agent]}", "" if other == "flat" else f" than {other}"
        for task in tasks:
            claim = f"[{task}] {society} reaches 90% again in fewer steps{than}"
            names = task.condition(agent), task.condition(other)
            claims.append(fewer_steps(claim, *names))
            claims.append(fewer_steps(f"{claim}, and stays there", *names, lasting=True))
        claims.append(
            every_seed(
                f"{society} moves a smaller share of its weights{than}: upper ends of the differences in all transfers",
                functools.partial(_gaps, tasks, agent, other),
                at_most=-1e-3,
            )
        )
    for task in () if scope.quick else tasks:
        claims.append(
            within(
                f"[{task}] the ppo society's unchanged decisions stay right early in the transfer",
                lambda results, task=task: task.decisions(results, "society")[0],
                at_least=LEVEL,
                interval=True,
                evidence=lambda results, task=task: f"flat {interquartile_mean(task.decisions(results, 'flat')[0])}",
            )
        )
    return claims


def _moved(task: TransferTask, agent: str) -> Values:
    """The share of an agent's weights that a transfer moves: f [seeds]."""
    return task.transfer(agent).over("all", "moved")


def _gaps(tasks: list[TransferTask], agent: str, other: str, results: Results) -> np.ndarray:
    """The upper end of the interval of the difference of the shares of weights that moved: f [transfers]."""
    return np.array([difference(_moved(task, agent)(results), _moved(task, other)(results)).high for task in tasks])


# --- tables


def _rows(results: Results) -> list[dict[str, Any]]:
    return [
        {"topology": task.topology, "changes": task.change} | task.transfer(agent).row(results, lasting=True)
        for task in _tasks(results.scope)
        for agent in CONDITIONS
    ]


def _first_rows(results: Results) -> list[dict[str, Any]]:
    first = {(row["topology"], row["arm"]): row for row in _rows(results)}.values()
    return [{"topology": r["topology"], "arm": r["arm"], "success": r["first"], "k steps": r["k steps"]} for r in first]


def _early_rows(results: Results) -> Iterator[dict[str, Any]]:
    for task in () if results.scope.quick else _tasks(results.scope):
        for agent in _STEADY:
            others, changed = task.decisions(results, agent)
            yield {
                "topology": task.topology,
                "changes": task.change,
                "arm": agent,
                "changed decision": interquartile_mean(changed),
                "others": interquartile_mean(others),
                "others, lowest seed": float(others.min()),
            }


def _tuning_steps(results: Results, name: str) -> int | None:
    """The mean number of steps until success stays; None unless it does on every seed."""
    stays = results.measure(name, "stays").all()
    return round(results.measure(name, "steps to stay").mean()) if stays else None


# --- figures


def _draw_transfers(results: Results) -> Any:
    """Success after the transfer, one panel for each transfer task."""
    tasks = _tasks(results.scope)
    fig, axes = plotting.figure(columns=min(4, len(tasks)), rows=-(-len(tasks) // 4), width=3.6, height=2.9)
    for ax, task in zip(axes, tasks, strict=False):
        runs = {agent: results[task.condition(agent)] for agent in CONDITIONS}
        plotting.draw_metric_curves(ax, runs, RATE, title=f"{task}: {FIRST} → {task.right}")
        ax.title.set_fontsize(9)
        ax.axhline(LEVEL, color="black", linewidth=0.8)
        ax.set(ylabel="success rate", ylim=(-0.03, 1.03))
    for ax in axes[len(tasks) :]:
        ax.set_axis_off()
    plotting.legend_below(fig)
    return fig


def _draw_moved(results: Results) -> Any:
    """Share of the weights that moved: interquartile mean over seeds and its interval."""
    tasks = _tasks(results.scope)
    fig, (ax,) = plotting.figure(width=7.5, height=1.4 + 0.9 * len(tasks))
    moved = {agent: [interquartile_mean(_moved(task, agent)(results)) for task in tasks] for agent in CONDITIONS}
    plotting.draw_estimates(ax, [f"{task}\n{FIRST} → {task.right}" for task in tasks], moved)
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
                "success": lambda results, name: float(results.measure(name, "success").mean()),
                "steps to stay": _tuning_steps,
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
        "weights": lambda results: transfers.draw_weights(
            [_tasks(results.scope)[0].transfer(agent) for agent in CONDITIONS], results
        ),
    },
    facts=lambda results: {"budget": _BUDGET, "settings": CONDITIONS},
)

"""Modularity (Chang et al. 2021, §7): how much an agent has to relearn if one decision changes.

There are three topologies of decisions (`environments.topologies`), each with a first task and transfer tasks in which
the right action of a single state differs. Societies, in which every primitive has its own networks and learns from its
own utility, are compared with one PPO agent whose decisions share one network.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.environments.topologies import TOPOLOGIES, right_actions
from jaxmarket.experiments import transfers
from jaxmarket.experiments.claims import Claim, every_seed, within
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Scope, Train
from jaxmarket.experiments.experiment import Experiment, Table
from jaxmarket.experiments.results import Results
from jaxmarket.experiments.settings import train_config
from jaxmarket.experiments.transfers import LEVEL, exploring, fewer_steps, kind_of
from jaxmarket.experiments.tuning import grid_conditions, tuning_table
from jaxmarket.keys import key_for, key_of
from jaxmarket.runs.estimates import difference, interquartile_mean
from jaxmarket.runs.run_folder import SavedRun, as_policy
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

_QUICK = ("linear chain",)  # the topologies of a quick run, with the first transfer task of each
_UPDATE = 512  # environment steps
_STEPS = 200 * _UPDATE
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
_PAIRS = (("society", "flat"), ("society valuation", "flat"))
PAIRS = (*_PAIRS, ("society-exploring", "flat-exploring"), ("society valuation", "flat-exploring"))
"""The societies and the flat agents that claims compare; the valuation society has no entropy."""
_SHORT = {"society": "ppo society", "society valuation": "valuation society", "society-exploring": "exploring society"}

_PPO_GRID = [
    {"learning_rate": lr, "entropy": e} for lr, e in itertools.product((1e-3, 3e-3, 1e-2, 3e-2), (0.01, 0.03, 0.1))
]
GRIDS: dict[str, list[dict[str, Any]]] = {
    "society": _PPO_GRID,
    "society valuation": [
        {"learning_rate": lr, "exploration": e, "exploration_final": e}
        for lr, e in itertools.product((3e-4, 1e-3, 3e-3, 1e-2), (0.03, 0.1, 0.2))
    ],
    "flat": _PPO_GRID,
}
"""Twelve settings per agent; all are traced, so that each agent compiles once."""

_TUNING_SEED, _TUNING_SEEDS = 5, 8
_SOLVED = 0.99  # final success rate that a chosen setting must reach
_EARLY = 10 * _UPDATE  # when a transfer is stopped to measure the decisions that did not change
_STEADY = ("society", "flat")  # agents whose settings do not depend on the number of steps
_DRAWS = 256  # choices per state and seed


def config(agent: str, topology: str, task: str, **settings: Any) -> TrainConfig:
    """An agent on a task; ``settings`` override those of the agent."""
    return train_config(TOPOLOGIES[topology](task), **(_BUDGET | _KINDS[kind_of(agent)] | CONDITIONS[agent] | settings))


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

    @property
    def name(self) -> str:
        """The name in figures and claims."""
        return f"{self.topology}, {self.change}"

    def condition(self, agent: str, stage: str = "transfer") -> str:
        """The name of an agent's run on this task, or on the first one."""
        return f"first-{agent}-{self.topology}" if stage == "first" else f"{stage}-{agent}-{self.name}"

    def transfer(self, agent: str) -> transfers.Transfer:
        """The runs of an agent."""
        return transfers.Transfer(agent, self.condition(agent, "first"), self.condition(agent))

    def split(self, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lower rate of the unchanged decisions, and the rate of the changed one: f [seeds] each, of [seeds, 3]."""
        same = np.array(list(FIRST)) == np.array(list(self.right))
        return right[:, same].min(1), right[:, ~same][:, 0]


_TUNED_ON = TransferTask("linear chain", "last", TRANSFERS["linear chain"]["last"])


def _tasks(scope: Scope) -> list[TransferTask]:
    if scope.quick:  # each task compiles one program for every agent, which takes most of the time
        return [TransferTask(topology, *next(iter(TRANSFERS[topology].items()))) for topology in _QUICK]
    return [TransferTask(topology, *change) for topology, changes in TRANSFERS.items() for change in changes.items()]


def _conditions(scope: Scope) -> list[Condition]:
    """Every agent on the first tasks, then from its networks on the transfer tasks, also stopped early."""
    wanted: list[Condition] = []
    for agent in CONDITIONS:
        first = {task.topology: task.condition(agent, "first") for task in _tasks(scope)}
        wanted += [Train(name, config(agent, topology, FIRST)) for topology, name in first.items()]
        for task in _tasks(scope):
            start = first[task.topology]
            wanted.append(Train(task.condition(agent), config(agent, task.topology, task.right), start=start))
            if agent in _STEADY and not scope.quick:
                early, measured = task.condition(agent, "early"), task.condition(agent, "decisions")
                wanted.append(Train(early, config(agent, task.topology, task.right, steps=_EARLY), start=start))
                wanted.append(Compute(measured, functools.partial(_decisions, task.right), inputs=(early,)))
    return wanted + (grid_conditions(GRIDS, _tuning) if scope.full else [])


def _tuning(name: str, agent: str, setting: Mapping[str, Any]) -> Sequence[Condition]:
    """A setting on the linear chain; transfer results are reported, but not used."""
    task = _TUNED_ON
    own: dict[str, Any] = {"seeds": _TUNING_SEEDS, "seed": _TUNING_SEED}
    return [
        Train(name, config(agent, task.topology, FIRST, **setting), **own),
        Train(f"{name}-transfer", config(agent, task.topology, task.right, **setting), start=name, **own),
    ]


@jax.jit
def _actions(policy: MarketPolicy | ChoicePolicy, keys: Array, obs: Array) -> Array:
    """The actions of a policy for each key and observation: i32 [keys, states]."""
    return jax.vmap(lambda key: jax.vmap(lambda o: policy(o, key))(obs))(keys)


def _decisions(task: str, keys: Array, run: SavedRun) -> Arrays:
    del keys
    return {"right": correct(run, task)}


def correct(run: SavedRun, task: str) -> np.ndarray:
    """The rate of each state's right action, with sampled bids or choices: f [seeds, 3]."""
    right = right_actions(task)
    obs, keys = jnp.eye(len(right), len(right) + 1), jax.random.split(key_for(key_of(0), "measurement"), _DRAWS)
    policies = (as_policy(run, seed=seed, greedy=False) for seed in range(run.config.seeds))
    return np.stack([np.mean(np.asarray(_actions(policy, keys, obs)) == right, axis=0) for policy in policies])


# --- tables


def _each(scope: Scope) -> list[tuple[dict[str, Any], TransferTask, str]]:
    """The first columns of a row, task and agent."""
    heads = [({"topology": task.topology, "changes": task.change}, task) for task in _tasks(scope)]
    return [(head, task, agent) for head, task in heads for agent in CONDITIONS]


def _rows(results: Results) -> list[dict[str, Any]]:
    return [head | task.transfer(agent).row(results, lasting=True) for head, task, agent in _each(results.scope)]


def _first_rows(results: Results) -> list[dict[str, Any]]:
    first = {(row["topology"], row["arm"]): row for row in _rows(results)}.values()
    return [{"topology": r["topology"], "arm": r["arm"], "success": r["first"], "k steps": r["k steps"]} for r in first]


def _early_rows(results: Results) -> list[dict[str, Any]]:
    rows = []
    for head, task, agent in () if results.scope.quick else _each(results.scope):
        if agent in _STEADY:
            others, changed = task.split(results[task.condition(agent, "decisions")]["right"])
            rates = {"changed decision": interquartile_mean(changed), "others": interquartile_mean(others)}
            rows.append({**head, "arm": agent, **rates, "others, lowest seed": float(others.min())})
    return rows


def _tuning_columns(results: Results, name: str) -> dict[str, Any]:
    row = transfers.Transfer(name, name, f"{name}-transfer").row(results)
    stays = results.measure(name, "stays")
    return {
        "success": float(results.measure(name, "success").mean()),
        "steps to stay": round(results.measure(name, "steps to stay").mean()) if stays.all() else None,
        "k steps after": row["k steps after"],
        "reached": row["reached"],
    }


# --- claims


def _claims(scope: Scope) -> list[Claim]:
    tasks, claims = _tasks(scope), []
    for agent, other in PAIRS:
        society, than = f"the {_SHORT[agent]}", "" if other == "flat" else f" than {other}"
        for task in tasks:
            claim = f"[{task.name}] {society} reaches 90% again in fewer steps{than}"
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
        others = functools.partial(_others, task)
        claims.append(
            within(
                f"[{task.name}] the ppo society's unchanged decisions stay right early in the transfer",
                functools.partial(others, "society"),
                at_least=LEVEL,
                interval=True,
                evidence=lambda results, others=others: f"flat {interquartile_mean(others('flat', results))}",
            )
        )
    return claims


def _gaps(tasks: list[TransferTask], agent: str, other: str, results: Results) -> np.ndarray:
    """The upper end of the interval of the difference of the shares of weights that moved: f [transfers]."""
    moved = [[task.transfer(name).over("all", "moved")(results) for name in (agent, other)] for task in tasks]
    return np.array([difference(ours, theirs).high for ours, theirs in moved])


def _others(task: TransferTask, agent: str, results: Results) -> np.ndarray:
    return task.split(results[task.condition(agent, "decisions")]["right"])[0]


# --- figures


def _draw_transfers(results: Results) -> Any:
    """Success after the transfer, one panel for each transfer task."""
    tasks = _tasks(results.scope)
    fig, axes = plotting.figure(columns=min(4, len(tasks)), rows=-(-len(tasks) // 4), width=3.6, height=2.9)
    for ax, task in zip(axes, tasks, strict=False):
        runs = {agent: results[task.condition(agent)] for agent in CONDITIONS}
        transfers.draw_curves(ax, runs, title=f"{task.name}: {FIRST} → {task.right}")
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
    moved = {
        agent: [interquartile_mean(task.transfer(agent).over("all", "moved")(results)) for task in tasks]
        for agent in CONDITIONS
    }
    plotting.draw_estimates(ax, [f"{task.name}\n{FIRST} → {task.right}" for task in tasks], moved)
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
            _tuning_columns,
            lambda row: row["steps to stay"] if row["success"] >= _SOLVED else None,
            "best: stays above 90% after the fewest steps, final success at least 99%",
        ),
        transfers.seeds_table(lambda results: [(head, task.transfer(a)) for head, task, a in _each(results.scope)]),
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

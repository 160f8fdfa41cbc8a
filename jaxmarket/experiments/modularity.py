"""Modularity (Chang et al. 2021, §7): how much an agent has to relearn if one decision changes.

There are three topologies of decisions (`environments.topologies`), each with a first task and transfer tasks in which
the right action of a single state differs. Societies, in which every primitive has its own networks and learns from its
own utility, are compared with one PPO agent whose decisions share one network.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.environments.topologies import TOPOLOGIES, right_actions
from jaxmarket.experiments.report import (
    ExperimentOptions,
    Report,
    ResultTable,
    Verdict,
    difference,
    interquartile_mean,
    tally,
)
from jaxmarket.experiments.settings import train_config
from jaxmarket.experiments.transfer_conditions import (
    LEVEL,
    TransferCondition,
    draw_curves,
    draw_weights,
    exploring,
    fewer_steps,
    kind_of,
    lower_bound,
    steps_spread,
    steps_to,
    success_curve,
)
from jaxmarket.keys import key_for, key_of
from jaxmarket.runs import fitting
from jaxmarket.runs.run_folder import SavedRun, as_policy
from jaxmarket.runs.sweeps import Condition
from jaxmarket.society import MarketPolicy
from jaxmarket.training.monolith import ChoicePolicy
from jaxmarket.types import Array
from jaxmarket.view import plotting

__all__ = [
    "AGENTS",
    "CONDITIONS",
    "FIRST",
    "GRIDS",
    "TRANSFERS",
    "Transfer",
    "condition",
    "correct",
    "fewer_weights",
    "run",
    "settled",
    "tune",
]

FIRST = "ABC"
"""The first task of every topology: the right actions of its three states."""

TRANSFERS: dict[str, dict[str, str]] = {
    "linear chain": {"last": "ABD", "middle": "AEC", "first": "FBC"},
    "common ancestor": {"ancestor": "DBC", "descendant": "ABE"},
    "common descendant": {"descendant": "ABD", "ancestor": "EBC"},
}
"""The transfer tasks, by topology and by the decision that changes."""

QUICK = ("linear chain",)
"""The topologies of a quick run, with the first transfer task of each."""

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
"""Settings chosen by `tune`: the first to stay above 90% on the linear chain, after 9,200, 1,200 and 7,500 steps."""
CONDITIONS = AGENTS | exploring(AGENTS, ("society", "flat"))
"""What is compared: all agents with these settings, and both PPO agents with more entropy as well."""
PAIRS = (
    ("society", "flat"),
    ("society valuation", "flat"),
    ("society-exploring", "flat-exploring"),
    ("society valuation", "flat-exploring"),
)
"""The societies and the flat agents that verdicts compare; the valuation society has no entropy."""
_SHORT = {"society": "ppo society", "society valuation": "valuation society", "society-exploring": "exploring society"}

_PPO_GRID = [
    {"learning_rate": lr, "entropy": e} for lr, e in itertools.product((1e-3, 3e-3, 1e-2, 3e-2), (0.01, 0.03, 0.1))
]
GRIDS: dict[str, list[dict[str, float]]] = {
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


def _name(agent: str, topology: str, task: str, stage: str = "") -> str:
    """The name of a condition; ``stage`` distinguishes conditions of one agent on one task."""
    return "-".join(filter(None, (agent, topology, task, stage))).replace(" ", "_")


def condition(agent: str, topology: str, task: str, seeds: int, stage: str = "", **settings: Any) -> Condition:
    """An agent on a task; ``settings`` override those of the agent."""
    chosen = _BUDGET | _KINDS[kind_of(agent)] | CONDITIONS[agent] | settings
    config = train_config(TOPOLOGIES[topology](task), seeds=seeds, **chosen)
    return Condition(_name(agent, topology, task, stage), config)


def tasks(options: ExperimentOptions) -> list[tuple[str, str, str]]:
    """The transfer tasks: topology, the decision that changes, the right actions."""
    if options.quick:  # each task compiles one program for every agent, which takes most of the time
        return [(topology, *next(iter(TRANSFERS[topology].items()))) for topology in QUICK]
    return [(topology, change, task) for topology, changes in TRANSFERS.items() for change, task in changes.items()]


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A transfer task and the runs of every agent.

    Attributes:
        topology: name of the topology.
        change: name of the decision that changed.
        task: the right actions of the transfer task.
        agents: the runs, by name of the agent.
        early: the same transfer stopped early, by name; only of some agents, and empty in a quick run.
    """

    topology: str
    change: str
    task: str
    agents: dict[str, TransferCondition]
    early: dict[str, SavedRun]

    @property
    def name(self) -> str:
        """The name in figures and verdicts."""
        return f"{self.topology}, {self.change}"

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the main table."""
        for agent in self.agents.values():
            stays = settled(agent.second)
            yield {
                "topology": self.topology,
                "changes": self.change,
                **agent.row,
                "k steps to stay": interquartile_mean(lower_bound(agent.second, stays) / 1000),
                "stay": tally(~np.isnan(stays)),
            }

    def early_rows(self) -> Iterator[dict[str, Any]]:
        """The rates of right decisions when the transfer was stopped early, one row for each agent."""
        for name, run in self.early.items():
            others, changed = self.split(correct(run, self.task))
            yield {
                "topology": self.topology,
                "changes": self.change,
                "arm": name,
                "changed decision": interquartile_mean(changed),
                "others": interquartile_mean(others),
                "others, lowest seed": float(others.min()),
            }

    def split(self, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lower rate of the unchanged decisions, and the rate of the changed one: f [seeds] each, of [seeds, 3]."""
        same = np.array(list(FIRST)) == np.array(list(self.task))
        return right[:, same].min(1), right[:, ~same][:, 0]


@jax.jit
def _actions(policy: MarketPolicy | ChoicePolicy, keys: Array, obs: Array) -> Array:
    """The actions of a policy for each key and observation: i32 [keys, states]."""
    return jax.vmap(lambda key: jax.vmap(lambda o: policy(o, key))(obs))(keys)


def correct(run: SavedRun, task: str) -> np.ndarray:
    """The rate of each state's right action, with sampled bids or choices: f [seeds, 3]."""
    right = right_actions(task)
    obs, keys = jnp.eye(len(right), len(right) + 1), jax.random.split(key_for(key_of(0), "measurement"), _DRAWS)
    policies = (as_policy(run, seed=seed, greedy=False) for seed in range(run.config.seeds))
    return np.stack([np.mean(np.asarray(_actions(policy, keys, obs)) == right, axis=0) for policy in policies])


# --- settings


def settled(run: SavedRun) -> np.ndarray:
    """Environment steps after which success stays at 90% or above: f [seeds], NaN for a seed that ends below."""
    steps, success = success_curve(run)
    below = ~(success >= LEVEL)
    since = np.where(below.any(0), len(below) - below[::-1].argmax(0), 0)  # chunks up to the last one below the level
    return np.where(since < len(steps), steps[np.minimum(since, len(steps) - 1), 0], np.nan)


def tune(options: ExperimentOptions) -> list[dict[str, Any]]:
    """Train every agent with every setting of its grid on the linear chain, with separate seeds; one row per setting.

    Among the settings whose final success on the first task is at least 99%, the one that first stays above 90% is
    chosen. Transfer results are reported but not used.
    """
    own = dataclasses.replace(options, seed=_TUNING_SEED)
    cells = [(agent, f"grid{i}", setting) for agent, grid in GRIDS.items() for i, setting in enumerate(grid)]
    topology, last = "linear chain", TRANSFERS["linear chain"]["last"]

    def learn(task: str, start: dict[str, SavedRun]) -> dict[str, SavedRun]:
        wanted = [condition(agent, topology, task, _TUNING_SEEDS, stage, **setting) for agent, stage, setting in cells]
        return own.train(wanted, f"grids {task}", start)

    first = learn(FIRST, {})
    starts = {_name(a, topology, last, s): first[_name(a, topology, FIRST, s)] for a, s, _ in cells}
    second = learn(last, starts)
    rows = []
    for agent, stage, setting in cells:
        run = TransferCondition(
            agent, first[_name(agent, topology, FIRST, stage)], second[_name(agent, topology, last, stage)]
        )
        success, steps = np.mean(run.first.summary["sampled_termination_rate_seeds"]), settled(run.first).mean()
        rows.append(
            {
                "arm": agent,
                "learning rate": setting["learning_rate"],
                "entropy": setting.get("entropy"),
                "exploration": setting.get("exploration"),
                "success": float(success),
                "steps to stay": None if np.isnan(steps) else round(steps),  # NaN unless all seeds reach it
                "k steps after": run.row["k steps after"],
                "reached": run.row["reached"],
                "best": False,
                "used": setting == AGENTS[agent],
            }
        )
    for agent in AGENTS:
        able = [row for row in rows if row["arm"] == agent and row["success"] >= _SOLVED]
        able = [row for row in able if row["steps to stay"] is not None]
        if able:
            min(able, key=lambda row: row["steps to stay"])["best"] = True
    return rows


def _first_rows(transfers: list[Transfer]) -> Iterator[dict[str, Any]]:
    for topology, transfer in {transfer.topology: transfer for transfer in transfers}.items():
        for name, agent in transfer.agents.items():
            row = agent.row
            yield {"topology": topology, "arm": name, "success": row["first"], "k steps": row["k steps"]}


# --- verdicts


def fewer_weights(claim: str, society: list[np.ndarray], flat: list[np.ndarray]) -> Verdict:
    """Whether a smaller share of a society's weights moved in every transfer: intervals of differences are below zero.

    Args:
        claim: what is claimed.
        society: shares, f [seeds] per transfer.
        flat: shares, f [seeds] per transfer.
    """
    gaps = [difference(ours, theirs) for ours, theirs in zip(society, flat, strict=True)]
    less = np.array([gap.high < 0 for gap in gaps])
    most = max(map(interquartile_mean, society), key=lambda estimate: estimate.value)
    least = min(map(interquartile_mean, flat), key=lambda estimate: estimate.value)
    closest = max(gaps, key=lambda gap: gap.high)
    evidence = (
        f"in {tally(less)} transfers; largest share {most} against smallest share {least}; smallest difference of the "
        f"means {closest}"
    )
    return Verdict.of(claim, bool(less.all()), most.value, evidence)


def _verdicts(transfers: list[Transfer]) -> Iterator[Verdict]:
    for agent, other in PAIRS:
        society, than = f"the {_SHORT[agent]}", "" if other == "flat" else f" than {other}"
        for transfer in transfers:
            ours, flat = transfer.agents[agent].second, transfer.agents[other].second
            whole = success_curve(ours)[0][-1], success_curve(flat)[0][-1]
            claim = f"[{transfer.name}] {society} reaches 90% again in fewer steps{than}"
            yield fewer_steps(claim, steps_to(ours), steps_to(flat), whole)
            yield fewer_steps(f"{claim}, and stays there", settled(ours), settled(flat), whole)
        moved = ([transfer.agents[a].over("all", "moved") for transfer in transfers] for a in (agent, other))
        yield fewer_weights(f"{society} moves fewer of its weights{than}", *moved)
    for transfer in transfers:
        if transfer.early:
            ours, flat = (
                interquartile_mean(transfer.split(correct(transfer.early[name], transfer.task))[0]) for name in _STEADY
            )
            yield Verdict.of(
                f"[{transfer.name}] the ppo society's unchanged decisions stay right early in the transfer",
                ours.low >= LEVEL,
                ours.value,
                f"rate of right actions {ours}, required {LEVEL}; flat {flat}",
            )


# --- the report


def _summary(transfers: list[Transfer], agent: str) -> dict[str, Any]:
    """The measures of an agent, over all transfer tasks and seeds together and for each task."""
    tasks = {}
    for transfer in transfers:
        condition = transfer.agents[agent]
        stays = steps_spread(condition.second, settled(condition.second))
        tasks[transfer.name] = condition.entry | {"steps_to_stay_above_90_transfer": stays}

    def pooled(key: str) -> dict[str, Any]:
        entries = [entry[key] for entry in tasks.values()]
        known = [value for entry in entries for value in entry["seeds"] if value is not None]
        return {
            "mean": float(np.mean(known)) if known else None,
            "std": float(np.std(known)) if known else None,
            "never": sum(entry["never"] for entry in entries),
        }

    return {key: pooled(key) for key in _POOLED} | {"tasks": tasks}


_POOLED = (
    "success_first",
    "steps_to_90_first",
    "success_transfer",
    "steps_to_90_transfer",
    "steps_to_stay_above_90_transfer",
    "share_of_weights_moved",
    "relative_weight_change",
)


def _draw_transfers(transfers: list[Transfer]) -> Any:
    """Success after the transfer, one panel for each transfer task."""
    fig, axes = plotting.figure(columns=4, rows=-(-(len(transfers) + 1) // 4), width=3.6, height=2.9)
    for ax, transfer in zip(axes, transfers, strict=False):
        title = f"{transfer.name}: {FIRST} → {transfer.task}"
        draw_curves(ax, {name: agent.second for name, agent in transfer.agents.items()}, title=title)
        ax.title.set_fontsize(9)
        ax.axhline(LEVEL, color="black", linewidth=0.8)
        ax.set_ylim(-0.03, 1.03)
    for ax in axes[::4]:
        ax.set_ylabel("success rate")
    handles, labels = axes[0].get_legend_handles_labels()
    for ax in axes[len(transfers) :]:
        ax.set_axis_off()
    axes[len(transfers)].legend(handles, labels, loc="center", frameon=False)
    return fig


def _draw_moved(transfers: list[Transfer]) -> Any:
    """Share of the weights that moved: interquartile mean over seeds and its interval."""
    fig, (ax,) = plotting.figure(width=7.5, height=1.4 + 0.9 * len(transfers))
    for i, agent in enumerate(CONDITIONS):
        moved = [interquartile_mean(transfer.agents[agent].over("all", "moved")) for transfer in transfers]
        value = np.array([m.value for m in moved])
        error = np.array([[m.value - m.low for m in moved], [m.high - m.value for m in moved]])
        y = np.arange(len(transfers)) + (i - (len(CONDITIONS) - 1) / 2) * 0.17
        ax.barh(y, value, 0.15, xerr=error, color=f"C{i}", alpha=0.8, label=agent)
    ax.set_yticks(range(len(transfers)), [f"{t.name}\n{FIRST} → {t.task}" for t in transfers], fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="share of all weights that moved", xlim=(0, 1))
    fig.legend(loc="outside upper center", ncol=3, frameon=False)
    return fig


def run(options: ExperimentOptions) -> Report:
    """Train every agent on the first tasks, then from its parameters on the transfer tasks, and test the claims."""
    cells, before = tasks(options), fitting.compiles()
    topologies = dict.fromkeys(topology for topology, _, _ in cells)
    first = [condition(agent, topology, FIRST, options.seeds) for agent in CONDITIONS for topology in topologies]
    trained = options.train(first, "first tasks")

    second = [condition(agent, topology, task, options.seeds) for agent in CONDITIONS for topology, _, task in cells]
    early = [
        condition(agent, topology, task, options.seeds, "early", steps=_EARLY)
        for agent in (() if options.quick else _STEADY)
        for topology, _, task in cells
    ]
    starts = {
        _name(agent, topology, task, stage): trained[_name(agent, topology, FIRST)]
        for agent in CONDITIONS
        for topology, _, task in cells
        for stage in ("", "early")
    }
    moved = options.train([*second, *early], "transfer", starts)
    transfers = [
        Transfer(
            topology,
            change,
            task,
            {
                name: TransferCondition(name, trained[_name(name, topology, FIRST)], moved[_name(name, topology, task)])
                for name in CONDITIONS
            },
            {agent: moved[_name(agent, topology, task, "early")] for agent in _STEADY if early},
        )
        for topology, change, task in cells
    ]
    tables = [
        ResultTable(
            "transfers",
            f"one decision of {FIRST} changes: {options.seeds} seeds, {_STEPS / 1000:.0f} k steps on each task",
            [row for transfer in transfers for row in transfer.rows()],
            "interquartile mean over seeds ± the larger side of its 95% bootstrap interval\n"
            "exploring: the same settings with an entropy weight of .1\n"
            "k steps after: until 90% of a chunk's episodes first succeed during training; a valuation society then\n"
            "explores at a constant rate of .1, with which perfect bids succeed in more than 99%\n"
            "k steps to stay: until success no longer falls below that; reached, stay: numbers of such seeds;\n"
            "other seeds count as the whole run\n"
            "moved: share of the weights that moved by more than a tenth of their layer's root mean square",
            aside=("first", "k steps", "transfer", "change"),
        ),
        ResultTable(
            "first",
            f"the first tasks, {FIRST}",
            list(_first_rows(transfers)),
            "success: in new episodes with sampled bids or choices",
        ),
    ]
    if early:
        tables.append(
            ResultTable(
                "early",
                f"{_EARLY / 1000:.0f} k steps into the transfer: rate of right decisions with sampled bids or choices",
                [row for transfer in transfers for row in transfer.early_rows()],
                "others: the lower rate of the two unchanged decisions\n"
                "without the valuation society, because its learning rate depends on the length of the run",
            )
        )
    if options.full:
        note = "on the linear chain; best: stays above 90% after the fewest steps, final success at least 99%"
        tables.append(ResultTable("tuning", f"grids, on {_TUNING_SEEDS} separate seeds", tune(options), note))
    return Report(
        settings={
            "seeds": options.seeds,
            "quick": options.quick,
            "full": options.full,
            "conditions": len(trained) + len(moved),
            "programs": len({c.config.settings.trainable for c in (*first, *second)}),
            "compiled_now": fitting.compiles() - before,
            "budget": _BUDGET,
            "settings": CONDITIONS,
            "arms": {agent: _summary(transfers, agent) for agent in CONDITIONS}
            | {"hierarchical": dict.fromkeys(_POOLED) | {"tasks": {}, "note": "there are no options in these tasks"}},
        },
        tables=tables,
        verdicts=list(_verdicts(transfers)),
        figures={
            "transfers": _draw_transfers(transfers),
            "moved": _draw_moved(transfers),
            "weights": draw_weights(list(transfers[0].agents.values())),
        },
    )

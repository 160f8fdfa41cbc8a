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
from jaxmarket.experiments.report import ExperimentOptions, Report, ResultTable, Verdict, interquartile_mean, tally
from jaxmarket.experiments.settings import train_config
from jaxmarket.experiments.transfer_conditions import (
    LEVEL,
    TransferCondition,
    draw_curves,
    draw_weights,
    over_reached,
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
    "ARMS",
    "FIRST",
    "GRIDS",
    "TRANSFERS",
    "Transfer",
    "condition",
    "correct",
    "fewer_steps",
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
ARMS: dict[str, dict[str, Any]] = {
    "society": {"learning_rate": 3e-2, "entropy": 0.03},
    "society valuation": {"learning_rate": 3e-3, "exploration": 0.1, "exploration_final": 0.1},
    "flat": {"learning_rate": 1e-2, "entropy": 0.01},
}
"""The settings chosen by `tune`: the first to stay above 90% on the linear chain, after 9.2, 1.2 and 7.5 k steps."""

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
"""Twelve settings per arm, all traced, so that each arm compiles once."""

_TUNING_SEED, _TUNING_SEEDS = 5, 8
_SOLVED = 0.99  # final success rate that a chosen setting must reach
_EARLY = 10 * _UPDATE  # when a transfer is stopped to measure the decisions that did not change
_STEADY = ("society", "flat")  # arms whose settings do not depend on the number of steps
_DRAWS = 256  # choices per state and seed


def _name(arm: str, topology: str, task: str, stage: str = "") -> str:
    """The name of a condition; ``stage`` distinguishes conditions of one arm on one task."""
    return "-".join(filter(None, (arm, topology, task, stage))).replace(" ", "_")


def condition(arm: str, topology: str, task: str, seeds: int, stage: str = "", **settings: Any) -> Condition:
    """An arm on a task; ``settings`` override those of the arm."""
    chosen = _BUDGET | _KINDS[arm] | ARMS[arm] | settings
    config = train_config(TOPOLOGIES[topology](task), seeds=seeds, **chosen)
    return Condition(_name(arm, topology, task, stage), config)


def tasks(options: ExperimentOptions) -> list[tuple[str, str, str]]:
    """The transfer tasks: topology, the decision that changes, the right actions."""
    if options.quick:  # each task compiles one program for every arm, which takes most of the time
        return [(topology, *next(iter(TRANSFERS[topology].items()))) for topology in QUICK]
    return [(topology, change, task) for topology, changes in TRANSFERS.items() for change, task in changes.items()]


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A transfer task and the runs of every arm.

    Attributes:
        topology: name of the topology.
        change: name of the decision that changed.
        task: the right actions of the transfer task.
        arms: the runs, by name of the arm.
        early: the same transfer stopped early, by name; only of some arms, and empty in a quick run.
    """

    topology: str
    change: str
    task: str
    arms: dict[str, TransferCondition]
    early: dict[str, SavedRun]

    @property
    def name(self) -> str:
        """The name in figures and verdicts."""
        return f"{self.topology}, {self.change}"

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the main table."""
        for arm in self.arms.values():
            stays = settled(arm.second)
            yield {
                "topology": self.topology,
                "changes": self.change,
                **arm.row,
                "k steps to stay": over_reached(stays / 1000),
                "stay": tally(~np.isnan(stays)),
            }

    def early_rows(self) -> Iterator[dict[str, Any]]:
        """The rates of right decisions when the transfer was stopped early, one row for each arm."""
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
    """Every setting of every arm's grid on the linear chain, with separate seeds: one row each, the chosen one marked.

    Among the settings whose final success on the first task is at least 99%, the one that first stays above 90% is
    chosen. Transfer results are reported but not used.
    """
    own = dataclasses.replace(options, seed=_TUNING_SEED)
    cells = [(arm, f"grid{i}", setting) for arm, grid in GRIDS.items() for i, setting in enumerate(grid)]
    topology, last = "linear chain", TRANSFERS["linear chain"]["last"]

    def learn(task: str, start: dict[str, SavedRun]) -> dict[str, SavedRun]:
        wanted = [condition(arm, topology, task, _TUNING_SEEDS, stage, **setting) for arm, stage, setting in cells]
        return own.train(wanted, f"grids {task}", start)

    first = learn(FIRST, {})
    starts = {_name(a, topology, last, s): first[_name(a, topology, FIRST, s)] for a, s, _ in cells}
    second = learn(last, starts)
    rows = []
    for arm, stage, setting in cells:
        run = TransferCondition(
            arm, first[_name(arm, topology, FIRST, stage)], second[_name(arm, topology, last, stage)]
        )
        success, steps = np.mean(run.first.summary["sampled_termination_rate_seeds"]), settled(run.first).mean()
        rows.append(
            {
                "arm": arm,
                "learning rate": setting["learning_rate"],
                "entropy": setting.get("entropy"),
                "exploration": setting.get("exploration"),
                "success": float(success),
                "steps to stay": None if np.isnan(steps) else round(steps),  # NaN unless all seeds reach it
                "k steps after": run.row["k steps after"],
                "reached": run.row["reached"],
                "best": False,
                "used": setting == ARMS[arm],
            }
        )
    for arm in ARMS:
        able = [row for row in rows if row["arm"] == arm and row["success"] >= _SOLVED]
        able = [row for row in able if row["steps to stay"] is not None]
        if able:
            min(able, key=lambda row: row["steps to stay"])["best"] = True
    return rows


def _first_rows(transfers: list[Transfer]) -> Iterator[dict[str, Any]]:
    for topology, transfer in {transfer.topology: transfer for transfer in transfers}.items():
        for name, arm in transfer.arms.items():
            row = arm.row
            yield {"topology": topology, "arm": name, "success": row["first"], "k steps": row["k steps"]}


# --- verdicts


def fewer_steps(claim: str, society: np.ndarray, flat: np.ndarray, most: float) -> Verdict:
    """Whether a society needs fewer steps than the flat agent: intervals of the interquartile means do not overlap.

    Args:
        claim: what is claimed.
        society: steps, f [seeds]; NaN (never) counts as the steps of the whole run, a lower bound. If more than a
            quarter of the society's seeds are NaN (interquartile means ignore the slowest quarter), the claim is not
            confirmed.
        flat: as for ``society``.
        most: steps of a whole run.
    """
    there = [~np.isnan(steps) for steps in (society, flat)]
    ours, theirs = (interquartile_mean(np.where(np.isnan(steps), most, steps)) for steps in (society, flat))
    evidence = f"{ours} steps ({tally(there[0])} seeds get there); flat {theirs} ({tally(there[1])})"
    confirmed = there[0].mean() >= 0.75 and ours.high < theirs.low
    return Verdict.of(claim, bool(confirmed), ours.value / theirs.value, evidence)


def fewer_weights(claim: str, society: list[np.ndarray], flat: list[np.ndarray]) -> Verdict:
    """Whether a smaller share of a society's weights moved in every transfer: intervals do not overlap.

    Args:
        claim: what is claimed.
        society: shares, f [seeds] per transfer.
        flat: shares, f [seeds] per transfer.
    """
    pairs = [(interquartile_mean(ours), interquartile_mean(theirs)) for ours, theirs in zip(society, flat, strict=True)]
    less = np.array([ours.high < theirs.low for ours, theirs in pairs])
    most = max((ours for ours, _ in pairs), key=lambda estimate: estimate.value)
    least = min((theirs for _, theirs in pairs), key=lambda estimate: estimate.value)
    evidence = f"in {tally(less)} transfers; the most {most}, flat's least {least}"
    return Verdict.of(claim, bool(less.all()), most.value, evidence)


def _verdicts(transfers: list[Transfer]) -> Iterator[Verdict]:
    for arm, name in {"society": "ppo", "society valuation": "valuation"}.items():
        for transfer in transfers:
            ours, flat = transfer.arms[arm].second, transfer.arms["flat"].second
            most = float(success_curve(flat)[0][-1].max())
            claim = f"[{transfer.name}] the {name} society is back at 90% in fewer steps"
            yield fewer_steps(claim, steps_to(ours), steps_to(flat), most)
            yield fewer_steps(f"{claim}, for good", settled(ours), settled(flat), most)
        moved = ([transfer.arms[a].over("all", "moved") for transfer in transfers] for a in (arm, "flat"))
        yield fewer_weights(f"the {name} society moves fewer of its weights", *moved)
    for transfer in transfers:
        if transfer.early:
            ours, flat = (
                interquartile_mean(transfer.split(correct(transfer.early[arm], transfer.task))[0]) for arm in _STEADY
            )
            yield Verdict.of(
                f"[{transfer.name}] meanwhile the ppo society's other decisions stay right",
                ours.low >= LEVEL,
                ours.value,
                f"early in the transfer {ours}, wanted {LEVEL}; flat {flat}",
            )


# --- the report


def _spread(values: list[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "std": float(np.std(known)) if known else None,
        "never": len(values) - len(known),
    }


def _summary(transfers: list[Transfer], arm: str) -> dict[str, Any]:
    """The measures of an arm, over all transfer tasks and seeds together and for each task."""
    tasks = {}
    for transfer in transfers:
        finding = transfer.arms[arm]
        stays = [None if np.isnan(steps) else float(steps) for steps in settled(finding.second)]
        tasks[transfer.name] = finding.entry | {"steps_to_stay_above_90_transfer": _spread(stays) | {"seeds": stays}}

    def pooled(key: str) -> dict[str, Any]:
        return _spread([value for entry in tasks.values() for value in entry[key]["seeds"]])

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
        draw_curves(ax, {name: arm.second for name, arm in transfer.arms.items()}, title=title)
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
    fig, (ax,) = plotting.figure(width=7.5, height=1.2 + 0.6 * len(transfers))
    for i, arm in enumerate(ARMS):
        moved = [interquartile_mean(transfer.arms[arm].over("all", "moved")) for transfer in transfers]
        value = np.array([m.value for m in moved])
        error = np.array([[m.value - m.low for m in moved], [m.high - m.value for m in moved]])
        y = np.arange(len(transfers)) + (i - 1) * 0.27
        ax.barh(y, value, 0.25, xerr=error, color=f"C{i}", alpha=0.8, label=arm)
    ax.set_yticks(range(len(transfers)), [f"{t.name}\n{FIRST} → {t.task}" for t in transfers], fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="share of all weights that moved", xlim=(0, 1))
    fig.legend(loc="outside upper center", ncol=len(ARMS), frameon=False)
    return fig


def run(options: ExperimentOptions) -> Report:
    """Train every arm on the first tasks, then from its parameters on the transfer tasks, and test the claims."""
    cells, before = tasks(options), fitting.compiles()
    topologies = dict.fromkeys(topology for topology, _, _ in cells)
    first = [condition(arm, topology, FIRST, options.seeds) for arm in ARMS for topology in topologies]
    trained = options.train(first, "first tasks")

    second = [condition(arm, topology, task, options.seeds) for arm in ARMS for topology, _, task in cells]
    early = [
        condition(arm, topology, task, options.seeds, "early", steps=_EARLY)
        for arm in (() if options.quick else _STEADY)
        for topology, _, task in cells
    ]
    starts = {
        _name(arm, topology, task, stage): trained[_name(arm, topology, FIRST)]
        for arm in ARMS
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
                arm: TransferCondition(arm, trained[_name(arm, topology, FIRST)], moved[_name(arm, topology, task)])
                for arm in ARMS
            },
            {arm: moved[_name(arm, topology, task, "early")] for arm in _STEADY if early},
        )
        for topology, change, task in cells
    ]
    tables = [
        ResultTable(
            "transfers",
            f"one decision of {FIRST} changes: {options.seeds} seeds, {_STEPS / 1000:.0f} k steps on each task",
            [row for transfer in transfers for row in transfer.rows()],
            "interquartile mean over seeds ± the larger side of its 95% bootstrap interval\n"
            "k steps after: until 90% of a chunk's episodes first succeed while learning; a valuation society then\n"
            "explores at a constant rate of .1, with which perfect bids succeed in more than 99%\n"
            "k steps to stay: until success no longer falls below that; reached, stay: how many seeds do\n"
            "moved: share of the weights that moved by more than a tenth of their layer's root mean square",
            aside=("first", "k steps", "transfer", "change"),
        ),
        ResultTable(
            "first", f"the first tasks, {FIRST}", list(_first_rows(transfers)), "success: in fresh episodes, sampled"
        ),
    ]
    if early:
        tables.append(
            ResultTable(
                "early",
                f"{_EARLY / 1000:.0f} k steps into the transfer: how often a decision is right, sampled",
                [row for transfer in transfers for row in transfer.early_rows()],
                "others: the less right of the two decisions that did not change\n"
                "without the valuation society, whose learning rate depends on the length of the run",
            )
        )
    if options.full:
        note = "settings of the linear chain; best: soonest above 90% for good, success at least 99%"
        tables.append(ResultTable("tuning", f"grids: {_TUNING_SEEDS} seeds of their own", tune(options), note))
    return Report(
        settings={
            "seeds": options.seeds,
            "quick": options.quick,
            "full": options.full,
            "conditions": len(trained) + len(moved),
            "programs": len({c.config.settings.trainable for c in (*first, *second)}),
            "compiled_now": fitting.compiles() - before,
            "budget": _BUDGET,
            "settings": ARMS,
            "arms": {arm: _summary(transfers, arm) for arm in ARMS}
            | {"hierarchical": dict.fromkeys(_POOLED) | {"tasks": {}, "note": "there are no options in these tasks"}},
        },
        tables=tables,
        verdicts=list(_verdicts(transfers)),
        figures={
            "transfers": _draw_transfers(transfers),
            "moved": _draw_moved(transfers),
            "weights": draw_weights(list(transfers[0].arms.values())),
        },
    )

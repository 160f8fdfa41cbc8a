"""Two Rooms (Chang et al. 2020, §6.2): sample efficiency of transfer to a task that differs in one decision.

Three options (open the door and enter, reach green, reach blue) are trained by flat PPO and frozen. Then three agents
learn to reach green from the left room, and then, from these parameters, to reach blue: a society over the options
(credit-conserving Vickrey, two clones), a hierarchical monolithic agent over the same options, and a flat one over the
seven actions. A fourth, ``nested``, is a society over options that are themselves societies over actions.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxmarket.environments import Option, Options, make
from jaxmarket.environments.options import waste
from jaxmarket.environments.rooms import ACTIONS, Place
from jaxmarket.experiments import report
from jaxmarket.experiments.report import Report, ResultTable, Verdict, difference, interquartile_mean, tally
from jaxmarket.experiments.settings import train_config
from jaxmarket.experiments.transfer_conditions import (
    LEVEL,
    TransferCondition,
    draw_curves,
    draw_weights,
    exploring,
    fewer_steps,
    first_task,
    kind_of,
    lower_bound,
    steps_to,
    success_curve,
)
from jaxmarket.keys import key_for, key_of
from jaxmarket.rollouts import fresh_rollout
from jaxmarket.runs.run_folder import SavedRun
from jaxmarket.runs.sweeps import Condition
from jaxmarket.society import Society
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.divergence import spread
from jaxmarket.types import Array, PyTree
from jaxmarket.view import plotting, rendering

__all__ = [
    "AGENTS",
    "CONDITIONS",
    "FIRST",
    "OPTIONS",
    "TRANSFER",
    "TUNED",
    "over_options",
    "run",
    "train_options",
    "watch",
]

OPTIONS = {"open the door": "TwoRooms-Red-v0", "reach green": "TwoRooms-Green-v0", "reach blue": "TwoRooms-Blue-v0"}
"""The task of each option, by a description of what it is trained to do."""
FIRST, TRANSFER = "TwoRooms-GreenTask-v0", "TwoRooms-BlueTask-v0"
AGENTS = ("society", "hierarchical", "flat")
GREEDY = True  # the frozen options take the most probable action
_SOLVED = 0.95
_DONE = ACTIONS.index("done")
_BOUND = 50  # maximum length of an option; the episode ends first

# All agents have the same networks, two layers of 64 over the 7 × 7 × 3 view; MiniGrid's codes need no convolutions.
_LAYERS: dict[str, Any] = {"convolutions": (), "stride": 1, "hidden": (64, 64)}
_NETWORKS: dict[str, Any] = _LAYERS | {"value_learning_rate": 1e-3, "epochs": 4}
_LITERAL = _NETWORKS | {"agent": "monolith", "instances": 32, "horizon": 128, "minibatch": 128}
_CHOOSING = _NETWORKS | {"instances": 32, "horizon": 16, "minibatch": 64, "log_every": 2}
_OPTION = _LITERAL | {"learning_rate": 3e-4, "entropy": 0.1, "steps": 409_600, "log_every": 4}
# Options learned by societies: every action has its bidders, which learn the value of the action.
_SOCIETY_OPTION: dict[str, Any] = _LAYERS | {
    "learner": "valuation",
    "trace_decay": 0.9,
    "steps": 1_228_800,
    "log_every": 24,
}
_BASE: dict[str, Any] = {
    "society": _CHOOSING | {"agent": "society", "steps": 24_576},
    "hierarchical": _CHOOSING | {"agent": "monolith", "steps": 24_576},
    "flat": _LITERAL | {"steps": 1_024_000, "log_every": 2},
}
TUNED: dict[str, dict[str, Any]] = {
    "society": {"learning_rate": 1e-3, "entropy": 0.01},
    "hierarchical": {"learning_rate": 1e-3, "entropy": 0.01},
    "flat": {"learning_rate": 1e-3, "entropy": 0.1},
}
"""The best settings of each agent's grid; see the table ``tuning`` of a ``--full`` run."""
CONDITIONS = (
    TUNED | exploring(TUNED, ("society", "hierarchical")) | {"society-3e-3": TUNED["society"] | {"learning_rate": 3e-3}}
)
"""What is compared: all agents with these settings, and variants of them, which a quick run leaves out."""
PAIRS = (
    ("society", "hierarchical"),
    ("society", "flat"),
    ("society-exploring", "hierarchical-exploring"),
    ("society-3e-3", "hierarchical"),
    ("society-3e-3", "society"),
)
"""The conditions that verdicts on the transfer compare."""
GRID = tuple((rate, weight) for rate in (1e-4, 3e-4, 1e-3) for weight in (0.01, 0.03, 0.1))
"""The grid of policy learning rates and entropy weights, for every agent; it uses separate seeds. (A rate of 3e-3 is
slightly faster, but in full runs over 16 seeds some hierarchical and flat agents collapse permanently. The society with
this rate is the condition ``society-3e-3``.)"""
_TUNING_KEY, _TUNING_SEEDS = 5, 4
_TUNING = {"society": 16_384, "hierarchical": 16_384, "flat": 614_400}  # auctions, decisions

QUICK = {
    "options": 163_840,
    "society": 12_288,
    "hierarchical": 12_288,
    "flat": 262_144,
}
"""Steps (auctions, decisions) of a quick run."""


def train_options(options: report.ExperimentOptions) -> dict[str, SavedRun]:
    """Train the options on the three tasks by flat PPO, 8 seeds each; the runs by task."""
    budget: dict[str, Any] = _OPTION | ({"steps": QUICK["options"]} if options.quick else {})
    return _trained("option", options, "two-rooms, 1 of 4: options", seeds=min(8, options.seeds), **budget)


def _trained(kind: str, options: report.ExperimentOptions, label: str, **settings: Any) -> dict[str, SavedRun]:
    wanted = [Condition(f"{kind}-{task}", train_config(task, **settings)) for task in OPTIONS.values()]
    found = options.train(wanted, label)
    return {condition.config.env: found[condition.name] for condition in wanted}


def over_options(task: str, trained: dict[str, SavedRun]) -> Options:
    """The task with the trained options as choices: the policy of each one's best seed, until its action ``done``.

    ``done`` is executed, as in the paper: it ends the episode if the task is solved, and otherwise has no effect.
    """
    options = [Option(trained[name].policy(greedy=GREEDY), done=_DONE) for name in OPTIONS.values()]
    return Options(make(task)[0], options, bound=_BOUND)


def _config(agent: str, task: str, trained: dict[str, SavedRun], **settings: Any) -> TrainConfig:
    env: Any = task if agent == "flat" else over_options(task, trained)
    return train_config(env, **(_settings(agent) | settings))


def _settings(agent: str) -> dict[str, Any]:
    """All settings of a condition but its environment and seeds."""
    return _BASE[kind_of(agent)] | CONDITIONS[agent]


def _train_agents(trained: dict[str, SavedRun], options: report.ExperimentOptions) -> dict[str, TransferCondition]:
    """Train every agent on the first task, then from its parameters on the transfer task."""
    names = AGENTS if options.quick else tuple(CONDITIONS)

    def conditions(task: str, stage: str) -> list[Condition]:
        steps = (lambda agent: {"steps": QUICK[agent]}) if options.quick else (lambda agent: {})
        return [
            Condition(f"{stage}-{agent}", _config(agent, task, trained, seeds=options.seeds, **steps(agent)))
            for agent in sorted(names, key=lambda agent: agent != "flat")  # the longest first
        ]

    first = options.train(conditions(FIRST, "first"), "two-rooms, 2 of 4: green")
    start = {f"transfer-{agent}": first[f"first-{agent}"] for agent in names}
    second = options.train(conditions(TRANSFER, "transfer"), "two-rooms, 3 of 4: blue", start)
    return {agent: TransferCondition(agent, first[f"first-{agent}"], second[f"transfer-{agent}"]) for agent in names}


def _nested(options: report.ExperimentOptions) -> tuple[dict[str, SavedRun], SavedRun]:
    """Train societies over actions as options, and a society over these options on the first task."""
    label = "two-rooms, 4 of 4: a society of societies"
    societies = _trained("society", options, label, seeds=4, **_SOCIETY_OPTION)
    # Every action of an option is an auction with fourteen bidders, so there are fewer seeds and half the steps.
    size = {"seeds": min(8, options.seeds), "steps": _BASE["society"]["steps"] // 2}
    top = Condition("first-nested", _config("society", FIRST, societies, **size))
    return societies, options.train([top], label)[top.name]


def _tuning(trained: dict[str, SavedRun], options: report.ExperimentOptions) -> list[dict[str, Any]]:
    """Train every agent with every setting of the grid on the first task; the transfer task is held out."""
    apart = dataclasses.replace(options, folder=options.folder / "tuning", seed=_TUNING_KEY)
    rows = []
    for agent in AGENTS:
        shorter = {"seeds": _TUNING_SEEDS, "steps": _TUNING[agent]}
        wanted = [
            Condition(
                f"{agent}-{rate:g}-{weight:g}",
                _config(agent, FIRST, trained, **shorter, learning_rate=rate, entropy=weight),
            )
            for rate, weight in GRID
        ]
        found = apart.train(wanted, f"two-rooms, tuning: {agent}")
        tried = []
        for condition, (rate, weight) in zip(wanted, GRID, strict=True):
            run = found[condition.name]
            steps, success = steps_to(run), np.array(run.summary["sampled_termination_rate_seeds"])
            tried.append(
                {
                    "arm": agent,
                    "learning rate": rate,
                    "entropy": weight,
                    "reached 90%": tally(~np.isnan(steps)),
                    "mean steps": None if np.isnan(steps).any() else float(steps.mean()),
                    "success": float(success.mean()),
                    "lowest": float(success.min()),
                }
            )
        fit = [row for row in tried if row["mean steps"] is not None and row["lowest"] >= _SOLVED]
        best = min(fit, key=lambda row: row["mean steps"], default=None)
        rows += [{**row, "best": row is best} for row in tried]
    return rows


@functools.partial(jax.jit, static_argnums=(0, 3))
def _durations(society: Society, params: PyTree, keys: Array, steps: int) -> Array:
    """Duration of each choice, for all seeds and instances as in training: f [T, S · B]."""
    env_params = society.env.default_params

    def durations(params: PyTree, key: Array) -> Array:
        return fresh_rollout(society, key, params, env_params, steps, bootstrap=False).duration

    return jax.vmap(jax.vmap(durations, (None, 0)))(params, keys).transpose(2, 0, 1).reshape(steps, -1)


def _waste(run: SavedRun, key: Array) -> dict[str, float]:
    """`waste` of vmapped options, for an untrained and for the trained society."""
    society, config = run.config.settings.society, run.config
    key_play, key_init = jax.random.split(key)
    keys = jax.random.split(key_play, (config.seeds, config.settings.instances))
    untrained = jax.vmap(society.init)(jax.random.split(key_init, config.seeds))
    return {
        when: waste(_durations(society, params, keys, 64))
        for when, params in (("untrained", untrained), ("trained", run.params))
    }


# --- the claims


def _verdicts(
    trained: dict[str, SavedRun], agents: dict[str, TransferCondition], nested: SavedRun | None
) -> Iterator[Verdict]:
    for what, task in OPTIONS.items():
        rate = trained[task].summary["termination_rate_seeds"]
        best = spread(rate).highest
        evidence = (
            f"its best seed succeeds in {best:.1%} of episodes; all {len(rate)} seeds {np.min(rate):.1%} to {best:.1%}"
        )
        yield Verdict.of(f"the option to {what} solves its task", best >= _SOLVED, best, evidence)
    learners = {name: agents[name].first for name in ("society", "hierarchical", "society-3e-3") if name in agents}
    if nested is not None:
        learners["society of societies"] = nested
    for name, run in learners.items():
        rates = np.array(run.summary["sampled_termination_rate_seeds"])
        evidence = f"success {interquartile_mean(rates)}, lowest seed {rates.min():.3f}"
        claim = f"{name}: {_SOLVED:.0%} success on the first task, every seed"
        yield Verdict.of(claim, bool((rates >= _SOLVED).all()), float(rates.min()), evidence)
    for society, other in PAIRS:
        if society in agents:
            runs = agents[society].second, agents[other].second
            ours, theirs = (steps_to(run) for run in runs)
            whole = success_curve(runs[0])[0][-1], success_curve(runs[1])[0][-1]
            claim = f"{society}: {LEVEL:.0%} on the transfer task in fewer environment steps than {other}"
            yield fewer_steps(claim, ours, theirs, whole)
    moved, policies_moved = (
        [agents[agent].over(part, "moved") for agent in ("society", "hierarchical")] for part in ("all", "policies")
    )
    mine, theirs, policies, its_policy = map(interquartile_mean, (*moved, *policies_moved))
    gap = difference(moved[0], moved[1])
    yield Verdict.of(
        "transfer moves a smaller share of the society's weights than of the hierarchical agent's",
        gap.high < 0,
        gap.value,
        f"by more than a tenth of their layer's root mean square: {mine} against {theirs}, difference of the means "
        f"{gap}; policies alone {policies} against {its_policy}",
    )


# --- tables and figures


def _option_row(what: str, learned_by: str, run: SavedRun) -> dict[str, Any]:
    rates = np.array(run.summary["termination_rate_seeds"])
    steps = steps_to(run)
    return {
        "option": what,
        "learned by": learned_by,
        "success": float(rates[run.best_seed]),
        "lowest seed": float(rates.min()),
        "return": run.summary["return_seeds"][run.best_seed],
        "optimum": run.config.adapter.optimal_return(),
        "k steps": interquartile_mean(lower_bound(run, steps) / 1000),
        "reached": tally(~np.isnan(steps)),
    }


def _draw(agents: dict[str, TransferCondition]) -> Any:
    fig, axes = plotting.figure(columns=2, rows=2, width=5.6, height=3.6)
    stages = (("first", FIRST, "green task"), ("second", TRANSFER, "blue task, after the transfer"))
    for column, (stage, task, title) in enumerate(stages):
        runs = {name: getattr(agent, stage) for name, agent in agents.items()}
        for row, (metric, label) in enumerate((("termination_rate", "success rate"), ("return_mean", "return"))):
            ax = axes[2 * row + column]
            draw_curves(ax, runs, metric=metric, title=title)
            line = LEVEL if row == 0 else make(task)[0].optimal_return()
            ax.axhline(line, color="black", linewidth=0.8, linestyle=":", label="90%" if row == 0 else "shortest paths")
            ax.set_ylabel(f"{label} during training")
            ax.set_ylim(-0.02, 1.05 if row == 0 else 0.85)
            ax.legend(frameon=False, fontsize=8)
    return fig


def watch(run: SavedRun) -> rendering.Episode:
    """One greedy episode of the best society, from the far corner of the left room."""
    start, key = Place(x=1, y=3, direction=3), key_for(key_of(0), "watch")
    return rendering.episode(run.config.env, run.policy(), key, start=start, names=list(OPTIONS))


def _draw_paths(agent: TransferCondition) -> Any:
    fig, axes = plotting.figure(columns=2, width=5.0, height=3.2)
    for ax, run, goal in zip(axes, (agent.first, agent.second), ("green", "blue, after the transfer"), strict=True):
        played = watch(run)
        chosen = [name for name, first in zip(played.labels, played.decided, strict=False) if first]
        options = ", ".join(label.partition(" · ")[0] for label in chosen)
        rendering.draw_trajectory(ax, played.places, label=f"{goal}: {options} ({played.labels[-1]})")
    return fig


def run(options: report.ExperimentOptions) -> Report:
    """Train options and agents, except those in ``options.folder``, and test the claims."""
    trained = train_options(options)
    agents = _train_agents(trained, options)
    societies, nested = ({}, None) if options.quick else _nested(options)  # too long for a quick run
    played = watch(agents["society"].second)
    rendering.save_gif(options.folder / "society.gif", played.places, played.labels)
    wasted = _waste(agents["society"].first, key_for(key_of(options.seed), "measurement"))
    tables = [
        ResultTable(
            "arms",
            f"Two Rooms: green, then transfer to blue; {options.seeds} seeds",
            [agent.row for agent in agents.values()],
            "interquartile mean over seeds ± the larger side of its 95% bootstrap interval\n"
            "first, transfer: final success in new episodes with sampled bids or choices\n"
            "exploring: with an entropy weight of .1 · 3e-3: with that learning rate, which is not in the grid\n"
            "k steps: thousands of environment steps to 90% success during training; seeds that never reach it count\n"
            "as the whole run\n"
            "moved: share of weights that the transfer moved by more than a tenth of their layer's root mean square\n"
            "change: |after - before| / |before| of all weights\n"
            f"work of vmapped options that is discarded: {wasted['untrained']:.0%} before training, "
            f"{wasted['trained']:.0%} after it",
            aside=("change",),
        ),
        ResultTable(
            "options",
            "the options",
            [_option_row(what, "PPO", trained[task]) for what, task in OPTIONS.items()]
            + [_option_row(what, "society", societies[task]) for what, task in OPTIONS.items() if societies],
            "success, return: greedy, of the best seed, whose policy is used\n"
            "optimum: mean return of the shortest paths · k steps: thousands of steps to 90% success during training",
        ),
        ResultTable(
            "weights",
            "change of every part of the networks in the transfer",
            [{"arm": name, **row} for name, agent in agents.items() for row in agent.weights],
            shown=False,
        ),
    ]
    if options.full:
        tables.append(
            ResultTable(
                "tuning",
                f"the same grid for every agent: green task, {_TUNING_SEEDS} separate seeds",
                _tuning(trained, options),
                f"best: of the settings with which every seed reaches 90% and a final success of {_SOLVED:.0%},\n"
                "the one that needs the fewest steps on average; the transfer task is not used",
            )
        )
    return Report(
        settings={
            "seeds": options.seeds,
            "quick": options.quick,
            "full": options.full,
            "arms": {name: agent.entry for name, agent in agents.items()},
            "nested": None if nested is None else first_task(nested),
            "waste": wasted,
            "options_sample": not GREEDY,
            "done_executes": True,
            **{f"{name}_settings": _settings(name) for name in agents},
            "option_settings": _OPTION,
            "society_option_settings": _SOCIETY_OPTION,
        },
        tables=tables,
        verdicts=list(_verdicts(trained, agents, nested)),
        figures={
            "learning_curves": _draw(agents),
            "weights": draw_weights(list(agents.values())),
            "ways": _draw_paths(agents["society"]),
        },
    )

"""Two Rooms (Chang et al. 2020, §6.2): sample efficiency of transfer to a task that differs in one decision.

Three options (open the door and enter, reach green, reach blue) are trained by flat PPO and frozen. Then three agents
learn to reach green from the left room, and then, from these parameters, to reach blue: a society over the options
(credit-conserving Vickrey, two clones), a hierarchical monolithic agent over the same options, and a flat one over the
seven actions. A fourth, ``nested``, is a society over options that are themselves societies over actions.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxmarket.environments import Option, Options, make
from jaxmarket.environments.options import waste
from jaxmarket.environments.rooms import ACTIONS, Place
from jaxmarket.experiments import transfers
from jaxmarket.experiments.claims import Claim, at, every_seed, separated, tally
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Scope, Train
from jaxmarket.experiments.experiment import Experiment, Table
from jaxmarket.experiments.measures import final
from jaxmarket.experiments.results import Results
from jaxmarket.experiments.settings import train_config
from jaxmarket.experiments.transfers import LEVEL, RATE, Transfer, exploring, fewer_steps, kind_of
from jaxmarket.experiments.tuning import grid_conditions, tuning_table
from jaxmarket.keys import key_for, key_of
from jaxmarket.rollouts import fresh_rollout
from jaxmarket.runs.estimates import interquartile_mean
from jaxmarket.runs.run_folder import SavedRun
from jaxmarket.training.config import TrainConfig
from jaxmarket.types import Array, PyTree
from jaxmarket.view import plotting, rendering

__all__ = ["AGENTS", "CONDITIONS", "EXPERIMENT"]

OPTIONS = {"open the door": "TwoRooms-Red-v0", "reach green": "TwoRooms-Green-v0", "reach blue": "TwoRooms-Blue-v0"}
"""The task of each option, by a description of what it is trained to do."""
FIRST, TRANSFER = "TwoRooms-GreenTask-v0", "TwoRooms-BlueTask-v0"
AGENTS = ("society", "hierarchical", "flat")
_SOLVED = 0.95  # success rate

# All agents have the same networks, two layers of 64 over the 7 × 7 × 3 view; MiniGrid's codes need no convolutions.
_LAYERS: dict[str, Any] = {"convolutions": (), "stride": 1, "hidden": (64, 64)}
_NETWORKS: dict[str, Any] = _LAYERS | {"value_learning_rate": 1e-3, "epochs": 4}
_LITERAL = _NETWORKS | {"agent": "monolith", "instances": 32, "horizon": 128, "minibatch": 128}
_CHOOSING = _NETWORKS | {"instances": 32, "horizon": 16, "minibatch": 64, "log_every": 2}
_OPTION = _LITERAL | {"learning_rate": 3e-4, "entropy": 0.1, "steps": 409_600, "log_every": 4}
# Options learned by societies: every action has its bidders, which learn the value of the action.
_SOCIETY_OPTION = _LAYERS | {"learner": "valuation", "trace_decay": 0.9, "steps": 1_228_800, "log_every": 24}
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
"""The conditions that claims about the transfer compare."""
_GRID = [{"learning_rate": rate, "entropy": weight} for rate in (1e-4, 3e-4, 1e-3) for weight in (0.01, 0.03, 0.1)]
GRIDS: dict[str, Any] = dict.fromkeys(AGENTS, _GRID)
"""The settings that are tried, on separate seeds. (A rate of 3e-3 is slightly faster, but some hierarchical and flat
agents collapse permanently in full runs. The society with this rate is the condition ``society-3e-3``.)"""
_TUNING_SEED, _TUNING_SEEDS = 5, 4
_TUNING = {"society": 16_384, "hierarchical": 16_384, "flat": 614_400}  # auctions, decisions
_QUICK = {"options": 163_840, "society": 12_288, "hierarchical": 12_288, "flat": 262_144}  # auctions, decisions


# --- conditions


def _options(prefix: str, seeds: int, settings: dict[str, Any]) -> list[Condition]:
    return [Train(f"{prefix}-{task}", train_config(task, **settings), seeds=seeds) for task in OPTIONS.values()]


def _over_options(task: str, settings: dict[str, Any], *trained: SavedRun) -> TrainConfig:
    """The task with the trained options as choices: the greedy policy of each one's best seed, until it chooses ``done``.

    ``done`` is executed, as in the paper: it ends the episode if the task is solved, and otherwise has no effect.
    """
    options = [Option(run.policy(), done=ACTIONS.index("done")) for run in trained]
    return train_config(Options(make(task)[0], options, bound=50), **settings)  # the episode ends before the bound


def _train(
    name: str, agent: str, task: str, options: str = "option", start: str | None = None, **changes: Any
) -> Train:
    """The run of an agent on a task, over options unless it is flat."""
    of_run = {key: changes.pop(key) for key in ("seeds", "seed") if key in changes}
    settings = _settings(agent) | changes
    if agent == "flat":
        return Train(name, train_config(task, **settings), start=start, **of_run)
    inputs = tuple(f"{options}-{each}" for each in OPTIONS.values())
    return Train(name, functools.partial(_over_options, task, settings), inputs, start, **of_run)


def _settings(agent: str) -> dict[str, Any]:
    """All settings of a condition but its environment and seeds."""
    return _BASE[kind_of(agent)] | CONDITIONS[agent]


def _agents(scope: Scope) -> tuple[str, ...]:
    return AGENTS if scope.quick else tuple(CONDITIONS)


def _conditions(scope: Scope) -> list[Condition]:
    """The options; every agent on the first task, and from its networks on the transfer task; and what is beside."""

    def shorter(kind: str) -> dict[str, Any]:
        return {"steps": _QUICK[kind]} if scope.quick else {}

    wanted = _options("option", min(8, scope.seeds), _OPTION | shorter("options"))
    for agent in sorted(_agents(scope), key=lambda agent: agent != "flat"):  # the longest first
        first, second = _transfer(agent).first, _transfer(agent).second
        wanted.append(_train(first, agent, FIRST, **shorter(agent)))
        wanted.append(_train(second, agent, TRANSFER, start=first, **shorter(agent)))
    wanted.append(Compute("waste", functools.partial(_waste, scope.seed), inputs=("first-society",)))
    if not scope.quick:  # a society of societies takes too long for a quick run
        wanted += _options("society-option", 4, _SOCIETY_OPTION)
        # Every action of an option is an auction with fourteen bidders, so there are fewer seeds and half the steps.
        size: dict[str, Any] = {"seeds": min(8, scope.seeds), "steps": _BASE["society"]["steps"] // 2}
        wanted.append(_train("first-nested", "society", FIRST, options="society-option", **size))
    return wanted + (grid_conditions(GRIDS, _tuning) if scope.full else [])


def _tuning(name: str, agent: str, setting: Mapping[str, Any]) -> list[Condition]:
    """A setting on the first task; the transfer task is not used."""
    return [_train(name, agent, FIRST, seed=_TUNING_SEED, seeds=_TUNING_SEEDS, steps=_TUNING[agent], **setting)]


def _waste(seed: int, keys: Array, run: SavedRun) -> Arrays:
    """`waste` of vmapped options in 64 choices of all seeds and instances, by an untrained and by the trained society."""
    del keys
    society, config, choices = run.config.settings.society, run.config, 64
    key_play, key_init = jax.random.split(key_for(key_of(seed), "measurement"))
    keys = jax.random.split(key_play, (config.seeds, config.settings.instances))
    untrained = jax.vmap(society.init)(jax.random.split(key_init, config.seeds))

    def durations(params: PyTree, key: Array) -> Array:
        return fresh_rollout(society, key, params, society.env.default_params, choices, bootstrap=False).duration

    play = jax.jit(jax.vmap(jax.vmap(durations, (None, 0)), out_axes=-1))  # [instances, choices, seeds]
    return {
        when: waste(play(params, keys).swapaxes(0, 1).reshape(choices, -1))
        for when, params in (("untrained", untrained), ("trained", run.params))
    }


# --- claims


def _claims(scope: Scope) -> list[Claim]:
    agents = _agents(scope)
    learners = [name for name in ("society", "hierarchical", "society-3e-3") if name in agents]
    if not scope.quick:
        learners.append("nested")
    options = [
        every_seed(
            f"the best of the policies trained to {what} succeeds in {_SOLVED:.0%} of episodes",
            lambda results, task=task: results.measure(f"option-{task}", "greedy success").max(),
            at_least=_SOLVED,
        )
        for what, task in OPTIONS.items()
    ]
    first = [
        every_seed(f"{name}: {_SOLVED:.0%} success on the first task", at(f"first-{name}", "success"), at_least=_SOLVED)
        for name in learners
    ]
    faster = [
        fewer_steps(
            f"{mine}: {LEVEL:.0%} on the transfer task in fewer environment steps than {other}",
            _transfer(mine).second,
            _transfer(other).second,
        )
        for mine, other in PAIRS
        if mine in agents
    ]
    smaller = separated(
        "transfer moves a smaller share of the society's weights than of the hierarchical agent's",
        _transfer("society").over("all", "moved"),
        _transfer("hierarchical").over("all", "moved"),
        lower=True,
    )
    return [*options, *first, *faster, smaller]


# --- tables


def _transfer(agent: str) -> Transfer:
    return Transfer(agent, f"first-{agent}", f"transfer-{agent}")


def _transfers(results: Results) -> list[Transfer]:
    return [_transfer(agent) for agent in _agents(results.scope)]


def _option_rows(results: Results) -> Iterator[dict[str, Any]]:
    for learner, prefix in (("PPO", "option"), ("society", "society-option")):
        for what, task in OPTIONS.items():
            name = f"{prefix}-{task}"
            if name in results:
                run, rates = results[name], results.measure(name, "greedy success")
                yield {
                    "option": what,
                    "learned by": learner,
                    "success": float(rates[run.best_seed]),
                    "lowest seed": float(rates.min()),
                    "return": results.measure(name, "return")[run.best_seed],
                    "optimum": run.config.adapter.optimal_return(),
                    "k steps": interquartile_mean(results.measure(name, "steps to 90%") / 1000),
                    "reached": tally(results.measure(name, "reached 90%")),
                }


def _mean_steps(results: Results, name: str) -> float | None:
    """The mean number of steps to 90%; None unless all seeds get there."""
    arrived = results.measure(name, "reached 90%").all()
    return float(results.measure(name, "steps to 90%").mean()) if arrived else None


def _wasted(results: Results) -> dict[str, float]:
    return {when: float(share) for when, share in results["waste"].items()}


def _agents_note(results: Results) -> str:
    return (
        "interquartile mean over seeds ± the larger side of its 95% bootstrap interval\n"
        "first, transfer: final success in new episodes with sampled bids or choices\n"
        "exploring: with an entropy weight of .1 · 3e-3: with that learning rate, which is not in the grid\n"
        "k steps: thousands of environment steps to 90% success during training; others count as the whole run\n"
        "moved: share of weights that the transfer moved by more than a tenth of their layer's root mean square\n"
        "change: |after - before| / |before| of all weights\n"
        "work of vmapped options that is discarded: {untrained:.0%} before training, {trained:.0%} after it"
    ).format(**_wasted(results))


# --- figures


def _draw_curves(results: Results) -> Any:
    fig, axes = plotting.figure(columns=2, rows=2, width=5.6, height=3.6)
    for column, (stage, task, title) in enumerate(
        (("first", FIRST, "green task"), ("transfer", TRANSFER, "blue task, after the transfer"))
    ):
        runs = {agent: results[f"{stage}-{agent}"] for agent in _agents(results.scope)}
        for ax, metric, label, line, of_line, top in (
            (axes[column], RATE, "success rate", LEVEL, "90%", 1.05),
            (axes[column + 2], "return_mean", "return", make(task)[0].optimal_return(), "shortest paths", 0.85),
        ):
            plotting.draw_metric_curves(ax, runs, metric, title=title)
            ax.axhline(line, color="black", linewidth=0.8, linestyle=":", label=of_line)
            ax.set(ylabel=f"{label} during training", ylim=(-0.02, top))
            ax.legend(frameon=False, fontsize=8)
    return fig


def _watch(run: SavedRun) -> rendering.Episode:
    """One greedy episode of the best society, from the far corner of the left room."""
    start, key = Place(x=1, y=3, direction=3), key_for(key_of(0), "watch")
    return rendering.episode(run.config.env, run.policy(), key, start=start, names=list(OPTIONS))


def _draw_paths(results: Results) -> Any:
    fig, axes = plotting.figure(columns=2, width=5.0, height=3.2)
    stages = {"green": "first-society", "blue, after the transfer": "transfer-society"}
    for ax, (goal, name) in zip(axes, stages.items(), strict=True):
        played = _watch(results[name])
        chosen = [label for label, decided in zip(played.labels, played.decided, strict=False) if decided]
        options = ", ".join(label.partition(" · ")[0] for label in chosen)
        rendering.draw_trajectory(ax, played.places, label=f"{goal}: {options} ({played.labels[-1]})")
    return fig


def _save_episode(results: Results, path: Path) -> None:
    played = _watch(results["transfer-society"])
    rendering.save_gif(path, played.places, played.labels)


EXPERIMENT = Experiment(
    name="two-rooms",
    shows="transfer: a society over options against hierarchical and flat PPO",
    source="Chang et al. (2020), §6.2",
    conditions=_conditions,
    measures=transfers.MEASURES | {"return": final()},
    claims=_claims,
    tables=[
        Table(
            "arms",
            lambda results: f"Two Rooms: green, then transfer to blue; {results.scope.seeds} seeds",
            lambda results: [transfer.row(results) for transfer in _transfers(results)],
            _agents_note,
            aside=("change",),
        ),
        Table(
            "options",
            "the options",
            _option_rows,
            "success, return: greedy, of the best seed, whose policy is used\n"
            "optimum: mean return of the shortest paths · k steps: thousands of steps to 90% success during training",
        ),
        Table(
            "weights",
            "change of every part of the networks in the transfer",
            lambda results: [
                {"arm": each.agent, **row} for each in _transfers(results) for row in each.weights(results)
            ],
            shown=False,
        ),
        tuning_table(
            f"the same grid for every agent: green task, {_TUNING_SEEDS} separate seeds",
            GRIDS,
            {
                "reached 90%": lambda results, name: tally(results.measure(name, "reached 90%")),
                "mean steps": _mean_steps,
                "success": lambda results, name: float(results.measure(name, "success").mean()),
                "lowest": lambda results, name: float(results.measure(name, "success").min()),
            },
            lambda row: row["mean steps"] if row["lowest"] >= _SOLVED else None,
            f"best: of the settings with which every seed reaches 90% and a final success of {_SOLVED:.0%},\n"
            "the one that needs the fewest steps on average; the transfer task is not used",
        ),
    ],
    figures={
        "learning_curves": _draw_curves,
        "weights": lambda results: transfers.draw_weights(_transfers(results), results),
        "ways": _draw_paths,
    },
    facts=lambda results: {
        "waste": _wasted(results),
        "settings": {name: _settings(name) for name in _agents(results.scope)} | {"options": _OPTION},
    },
    extras={"society.gif": _save_episode},
)

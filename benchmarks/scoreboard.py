"""Societies and single agents on tasks of others: every arm with the same number of environment steps.

    python -m benchmarks scoreboard
    python -m benchmarks scoreboard --tune
    python -m benchmarks scoreboard --quick
    python -m benchmarks scoreboard --rows CartPole-v1 Acrobot-v1 --arms society "single Q(λ)"
    python -m benchmarks scoreboard --minatar

Rows are tasks, arms are agents. Without ``--tune`` every arm has its defaults. With it, the settings of an arm are
chosen on each row among at most six, by the mean return of four seeds that are not reported, and then trained on the
reported ones. MinAtar's games are left out unless named (`--minatar`): they take 1 M steps and equal numbers of
parameters, and every arm has the best of its four settings on Breakout. Every finished run is kept below ``--out``, and
a repeated or interrupted call trains only what is missing.

For every row and arm the table shows the interquartile mean of the greedy return with a 95% bootstrap interval (Agarwal
et al. 2021), the seeds that reached the row's threshold while learning and the median of their steps, and the training
speed. For every society it shows the probability that one of its seeds is better than one of the better single agent,
and the difference of the means with Welch's interval.

To add a row, add a line to `ROWS`: the environment, its threshold and the return of gymnax's published PPO agent, if
there is one.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxmarket import TrainConfig
from jaxmarket.environments import FiniteMDP, Memory, make
from jaxmarket.runs import comparison, files, sweeps
from jaxmarket.runs.comparison import RunOutcome
from jaxmarket.runs.estimates import ResultTable, difference, interquartile_mean, probability_of_improvement
from jaxmarket.view.text import Screen

STEPS = 2_048_000
SEEDS = 8
REPORTED, TUNED = 0, 1  # seeds of all randomness
TUNING_SEEDS = 4
MINATAR_TUNING_SEEDS = 2


def costly_chain(states: int = 6) -> FiniteMDP:
    """A chain whose every step costs 1: action 1 moves right, to the end, action 0 left."""
    transitions, rewards = np.zeros((states, 2, states)), np.full((states, 2), -1.0)
    for s in range(states - 1):
        transitions[s, 1, s + 1] = transitions[s, 0, max(0, s - 1)] = 1
    transitions[-1, :, -1], rewards[-1] = 1, 0
    ends = np.arange(states) == states - 1
    return FiniteMDP(transitions, rewards, 0.99, np.eye(states)[0], 20, terminal=ends, name="CostlyChain")


COSTLY_CHAIN = costly_chain()
MEMORY_CHAIN = Memory(make("MemoryChain-bsuite")[0])


@dataclasses.dataclass(frozen=True)
class Row:
    """A task.

    Attributes:
        env: an environment, or its id.
        threshold: the return that counts as solved.
        published: the return of gymnax's own PPO agent, None if there is none.
        modules: of the society, where all arms have as many parameters as it has; else None, and all arms have the
            default layers.
    """

    env: Any
    threshold: float
    published: float | None = None
    modules: int | None = None


ROWS: Mapping[str, Row] = MappingProxyType(
    {
        "CartPole-v1": Row("CartPole-v1", 475, 500),
        "Acrobot-v1": Row("Acrobot-v1", -90, -80),
        "MountainCar-v0": Row("MountainCar-v0", -130, -118),
        "Catch-bsuite": Row("Catch-bsuite", 0.95, 1),
        "DeepSea-bsuite": Row("DeepSea-bsuite", 0.9, 0),
        "MemoryChain with 1 bit": Row(MEMORY_CHAIN, 0.8),  # 0.1 by the published agent without memory
        "UmbrellaChain-bsuite": Row("UmbrellaChain-bsuite", 0.9, 1),
        "DiscountingChain-bsuite": Row("DiscountingChain-bsuite", 1.05, 1.1),
        "FourRooms-misc": Row("FourRooms-misc", 0.95, 1),
        "BernoulliBandit-misc": Row("BernoulliBandit-misc", 80),
        "MetaMaze-misc": Row("MetaMaze-misc", 20),
        "CostlyChain": Row(COSTLY_CHAIN, -5),
        "Bandit-v0": Row("Bandit-v0", 0.799),
        "Chain-v0": Row("Chain-v0", 0.799),
        "Duality-v0": Row("Duality-v0", 4.99),
        # The published agents had ten times as many steps; their returns are the thresholds.
        "Breakout-MinAtar": Row("Breakout-MinAtar", 28, 28, modules=3),
        "Asterix-MinAtar": Row("Asterix-MinAtar", 15, 15, modules=5),
        "Freeway-MinAtar": Row("Freeway-MinAtar", 58, 58, modules=3),
        "SpaceInvaders-MinAtar": Row("SpaceInvaders-MinAtar", 131, 131, modules=4),
    }
)
MINATAR = tuple(name for name, row in ROWS.items() if row.modules)
MINATAR_STEPS = 1_024_000
TUNED_ON = "Breakout-MinAtar"  # the settings of all four games
SMALL_ROWS = tuple(name for name in ROWS if name not in MINATAR)
QUICK_ROWS = ("CostlyChain", "Chain-v0")

_BY_VALUE: tuple[dict[str, Any], ...] = (
    {},
    {"epochs": 4},
    {"learning_rate": 3e-3},
    {"trace_decay": 0.9},
    {"persistence": 0.0},
    {"persistence": 0.0, "trace_decay": 0.65},
)
_BY_GRADIENT: tuple[dict[str, Any], ...] = (
    {},
    {"epochs": 1},
    {"learning_rate": 3e-4},
    {"entropy": 0.03},
    {"learning_rate": 3e-4, "entropy": 0.03},
)
_BIDS_BY_GRADIENT: tuple[dict[str, Any], ...] = (
    {},
    {"epochs": 4},
    {"epochs": 4, "learning_rate": 3e-4},
    {"entropy": 0.01},
    {"epochs": 4, "entropy": 0.01},
)
_IMAGES_BY_VALUE: tuple[dict[str, Any], ...] = (
    {},
    {"persistence": 0.0},
    {"epochs": 1},
    {"epochs": 1, "persistence": 0.0},
)
_IMAGES_BY_GRADIENT: tuple[dict[str, Any], ...] = (
    {},
    {"epochs": 1},
    {"learning_rate": 3e-4},
    {"learning_rate": 3e-4, "entropy": 0.03},
)
_WIDTH = 128  # of a module's dense layer over images
_AUCTIONS = ("Bandit-v0", "Chain-v0", "Duality-v0", "CostlyChain", "CartPole-v1", "Catch-bsuite")


@dataclasses.dataclass(frozen=True)
class Arm:
    """An agent.

    Attributes:
        settings: what distinguishes it.
        grid: the settings among which ``--tune`` chooses, the defaults first.
        rows: the rows on which it is trained; all but MinAtar's by default.
        images: the settings among which the one for MinAtar is chosen; none if it is not trained there.
        share: the width of its dense layer on MinAtar's games, in layers of all modules of the society.
    """

    settings: Mapping[str, Any]
    grid: tuple[dict[str, Any], ...] = ({},)
    rows: tuple[str, ...] = SMALL_ROWS
    images: tuple[dict[str, Any], ...] = ()
    share: float | None = None

    def trains_on(self, row: str) -> bool:
        """Whether the arm is trained on a row."""
        return bool(self.images) if ROWS[row].modules else row in self.rows

    def choices(self, row: str) -> tuple[dict[str, Any], ...]:
        """The settings among which the one for a row is chosen."""
        modules = ROWS[row].modules
        if modules is None:
            return self.grid
        layers = {} if self.share is None else {"hidden": (round(modules * self.share * _WIDTH),)}
        return tuple(layers | each for each in self.images)


ARMS: Mapping[str, Arm] = MappingProxyType(
    {
        "society": Arm({}, _BY_VALUE, images=_IMAGES_BY_VALUE),
        "society PPO": Arm({"learner": "ppo"}, _BIDS_BY_GRADIENT),
        "society, first price": Arm({"auction": "bb"}, rows=_AUCTIONS),
        "society, Vickrey": Arm({"auction": "vickrey"}, rows=_AUCTIONS),
        "society, no payments": Arm({"auction": "env"}, rows=_AUCTIONS),
        "single Q(λ)": Arm({"agent": "monolith", "learner": "valuation"}, _BY_VALUE, images=_IMAGES_BY_VALUE, share=1),
        # It has two networks, of which each has half of the parameters.
        "single PPO": Arm(
            {"agent": "monolith", "learner": "ppo"}, _BY_GRADIENT, images=_IMAGES_BY_GRADIENT, share=1 / 2
        ),
    }
)
SINGLE = ("single Q(λ)", "single PPO")


def condition(row: str, arm: str, choice: int, seeds: int, steps: int) -> sweeps.NamedConfig:
    """The run of an arm with its settings of that number."""
    settings = {**ARMS[arm].settings, **ARMS[arm].choices(row)[choice]}
    config = TrainConfig(ROWS[row].env, seeds=seeds, steps=steps, **settings)
    return sweeps.NamedConfig(f"{arm} {choice}", config)


def chosen(row: str, arms: Sequence[str], folder: Path, steps: int, *, tune: bool) -> tuple[dict[str, int], float]:
    """The number of each arm's settings, chosen on seeds that are not reported, and the seconds that this took."""
    if not tune:
        return dict.fromkeys(arms, 0), 0.0
    seeds = MINATAR_TUNING_SEEDS if row in MINATAR else TUNING_SEEDS
    wanted = {arm: [condition(row, arm, k, seeds, steps) for k in range(len(ARMS[arm].choices(row)))] for arm in arms}
    runs = sweeps.train([c for each in wanted.values() for c in each], folder, seed=TUNED, label=f"{row}, settings")

    def score(condition: sweeps.NamedConfig) -> float:
        return float(np.mean([-math.inf if x is None else x for x in runs[condition.name].summary["return_seeds"]]))

    best = {arm: int(np.argmax([score(c) for c in each])) for arm, each in wanted.items()}
    return best, sum(seconds(run.summary) for run in runs.values())


def seconds(summary: Mapping[str, Any]) -> float:
    """The time that a run took to compile and to train; two run side by side on a CPU."""
    return summary["compile_seconds"] + summary["run_seconds"]


def entries(row: str, outcomes: Mapping[str, RunOutcome], numbers: Mapping[str, int]) -> list[dict[str, Any]]:
    """The table's lines for one row."""
    threshold = ROWS[row].threshold
    singles = [outcomes[arm] for arm in SINGLE if arm in outcomes]
    best = max(singles, key=lambda run: run.kept.mean(), default=None)
    lines = []
    for arm, run in outcomes.items():
        steps = run.steps_to(threshold)
        reached = np.isfinite(steps)
        against = None if arm in SINGLE else best
        lines.append(
            {
                "task": row,
                "agent": arm,
                "settings": ", ".join(
                    f"{k} {v:g}" for k, v in ARMS[arm].choices(row)[numbers[arm]].items() if k != "hidden"
                )
                or "default",
                "return": interquartile_mean(run.kept),
                "published": ROWS[row].published,
                "solved": f"{int((run.kept >= threshold - 1e-6).sum())}/{len(run.returns)}",
                "k steps to threshold": float(np.median(steps[reached])) / 1000 if reached.any() else None,
                "better": None if against is None else probability_of_improvement(run.kept, against.kept),
                "difference": None if against is None else difference(run.kept, against.kept),
                "k steps/s": run.steps_per_second / 1000,
            }
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, and show the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), help="tasks; by default all but MinAtar's games")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS), help="agents")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="reported seeds")
    parser.add_argument("--steps", type=int, help=f"environment steps of every arm and seed, by default {STEPS:,}")
    parser.add_argument("--minatar", action="store_true", help=f"MinAtar's games, {MINATAR_STEPS:,} steps each")
    parser.add_argument("--tune", action="store_true", help="choose each arm's settings on each row")
    parser.add_argument("--quick", action="store_true", help="two small rows, two seeds, a tenth of the steps")
    parser.add_argument("--out", type=Path, default=Path("scoreboard"), help="folder of runs")
    parser.add_argument("--json", type=Path, help="a file for the table")
    given = parser.parse_args(arguments)
    given.rows = given.rows or (MINATAR if given.minatar else SMALL_ROWS)
    given.steps = given.steps or (MINATAR_STEPS if given.minatar else STEPS)
    if given.quick:
        given.rows, given.seeds, given.steps = QUICK_ROWS, 2, STEPS // 10
        given.out = given.out / "quick"
    spent, lines = 0.0, []
    for row in given.rows:
        folder = given.out / row
        arms = [arm for arm in given.arms if ARMS[arm].trains_on(row)]
        tuned_on = TUNED_ON if row in MINATAR else row
        tune = given.tune or row in MINATAR
        numbers, tuning = chosen(tuned_on, arms, given.out / tuned_on / "settings", given.steps, tune=tune)
        spent += tuning if tuned_on == row else 0
        wanted = {arm: condition(row, arm, k, given.seeds, given.steps) for arm, k in numbers.items()}
        runs = sweeps.train(list(wanted.values()), folder / "reported", seed=REPORTED, label=row)
        spent += sum(seconds(run.summary) for run in runs.values())
        outcomes = {arm: comparison.read(folder / "reported" / c.name) for arm, c in wanted.items()}
        lines += entries(row, outcomes, numbers)
    table = ResultTable(
        "scoreboard",
        f"{given.steps:,} environment steps, {given.seeds} seeds",
        lines,
        "return: greedy, interquartile mean over seeds [95%] · published: gymnax's PPO agent · solved: seeds whose "
        "greedy return reaches the threshold · better: probability that a seed is better than one of the better single "
        f"agent · difference: of means [95%] · the runs took {spent / 3600:.2f} hours, two side by side on a CPU",
    )
    Screen().print(table.as_rich())
    if given.json:
        files.write_text(given.json, json.dumps(table.as_rows(), indent=1) + "\n")
    return 0

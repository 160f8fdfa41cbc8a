"""Mental Rotation (Chang et al. 2020, §6.3): a society composes a program for every input.

Primitives are functions of an image; the right two of them, in the right order, make a digit readable again. A
society (credit-conserving Vickrey, two clones) and one PPO agent over the same functions learn on training digits and
are evaluated on held-out ones, between the best fixed program and an oracle that tries every program and knows the
digit. With ``depth=dynamic`` inputs need zero, one or two functions, and every function has a cost.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxmarket.environments import digits
from jaxmarket.environments.mental_rotation import MentalRotation, check_task, program_name
from jaxmarket.experiments.claims import Claim, at, every_seed, separated, within
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Scope, Train
from jaxmarket.experiments.experiment import Experiment, Table, column
from jaxmarket.experiments.results import Results
from jaxmarket.experiments.tuning import grid_conditions, tuning_table
from jaxmarket.runs import digit_programs
from jaxmarket.runs.estimates import interquartile_mean, mean
from jaxmarket.runs.measures import final
from jaxmarket.runs.run_folder import SavedRun, as_policy
from jaxmarket.runs.sweeps import combinations
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.pinned import train_config
from jaxmarket.types import Array
from jaxmarket.view import plotting

__all__ = ["AGENTS", "COMPONENTS", "EXPERIMENT", "GRIDS", "TUNED", "bounds", "config", "environment", "play"]

AGENTS = ("society", "monolithic")
COMPONENTS = 128
_TRAINING_DIGITS = 500  # for the choice of the best fixed program
_QUICK_STEPS, _QUICK_DIGITS = 40_960, 100

# All agents have the same frozen encoder, and one small layer on top of it.
_BASE: dict[str, Any] = {
    "hidden": (64,),
    "instances": 64,
    "horizon": 16,
    "minibatch": 128,
    "epochs": 4,
    "value_learning_rate": 1e-3,
    "steps": 153_600,
}
TUNED: dict[str, dict[str, Any]] = {
    "society": {"agent": "society", "learning_rate": 5e-4, "entropy": 0.03},
    "monolithic": {"agent": "monolith", "learning_rate": 1e-3, "entropy": 0.03},
}
"""The best settings of each agent's grid; see the table ``tuning`` of a ``--full`` run."""
_GRID = combinations({"learning_rate": [3e-4, 5e-4, 1e-3], "entropy": [0.01, 0.03, 0.1]})
GRIDS: dict[str, Any] = dict.fromkeys(AGENTS, _GRID)
"""The same settings for both agents; they are tried with separate seeds."""
_TUNING_SEED, _TUNING_SEEDS, _TUNING_STEPS = 5, 4, 102_400

# Additional societies of a ``--full`` run. The first has the paper's bidders, each with its own convolutions over the
# pixels: ten times the compute of the others.
_CNN = {"hidden": (32,), "convolutions": (8, 16), "epochs": 2, "learning_rate": 1e-3, "entropy": 0.03, "steps": 81_920}
_VALUATION = {"learner": "valuation", "epochs": 1, "value_learning_rate": None}


# --- conditions

environment = functools.cache(MentalRotation)
"""The environment is made once: it loads the digits and trains their classifier, or reads it."""
Env = Callable[[], MentalRotation]


def config(env: Env, settings: dict[str, Any], *_: Arrays) -> TrainConfig:
    """The configuration of an agent; what the classifier's condition returns is not used."""
    return train_config(env(), **(_BASE | settings))


def _conditions(scope: Scope) -> list[Condition]:
    resolution, depth = scope.settings["resolution"], scope.settings["depth"]
    check_task(resolution, depth)  # before the environment is made, by the first condition
    # The results depend on the digits, so their name is an argument, although it is the default.
    pixels = functools.partial(environment, resolution, depth, source=digits.installed())
    features = functools.partial(pixels, components=COMPONENTS)

    def train(name: str, settings: dict[str, Any], env: Env = features, **of_run: Any) -> Train:
        return Train(name, functools.partial(config, env, settings), inputs=("classifier",), **of_run)

    def tried(name: str, agent: str, setting: Mapping[str, float]) -> list[Condition]:
        settings = {**TUNED[agent], **setting, "steps": _TUNING_STEPS}
        return [train(name, settings, seed=_TUNING_SEED, seeds=_TUNING_SEEDS)]

    shorter = {"steps": _QUICK_STEPS} if scope.quick else {}
    agents = [train(name, TUNED[name] | shorter) for name in AGENTS]
    if scope.full:
        agents.append(train("society-cnn", _CNN | {"stride": 2 if resolution > 16 else 1}, pixels))
        agents.append(train("society-valuation", _VALUATION))
    count = _QUICK_DIGITS if scope.quick else None
    known = functools.partial(bounds, features, count or _TRAINING_DIGITS, count)
    return [
        Compute("classifier", functools.partial(_classifier, features), seeds=1),
        *agents,
        *(Compute(f"{each.name}, held out", functools.partial(play, count), inputs=(each.name,)) for each in agents),
        Compute("bounds", known, inputs=("classifier",), seeds=1),
        *(grid_conditions(GRIDS, tried) if scope.full else []),
    ]


def _classifier(env: Env, keys: Array) -> Arrays:
    """Train the classifier, which the other conditions read; its accuracy on ``upright`` held-out digits."""
    del keys
    return {"upright": env().reader.accuracy, "digits": env().digits.source}


def play(count: int | None, keys: Array, run: SavedRun) -> Arrays:
    """The greedy programs of a run for held-out digits, `digit_programs.play`."""
    env: Any = run.config.env
    policies = [as_policy(run, seed=seed) for seed in range(len(keys))]
    return digit_programs.play(env, policies, env.examples(env.held_out[:count]))


def bounds(env: Env, training: int, count: int | None, keys: Array, classifier: Arrays) -> Arrays:
    """What is read without learning in held-out digits, `digit_programs.bounds`."""
    del keys, classifier
    return digit_programs.bounds(env(), env().examples(np.arange(training)), env().examples(env().held_out[:count]))


# --- tables


def _plays(results: Results) -> dict[str, Arrays]:
    """What every agent composed for the held-out examples."""
    return {name.removesuffix(", held out"): results[name] for name in results if name.endswith(", held out")}


def _bid_rows(results: Results) -> Iterator[dict[str, Any]]:
    return digit_programs.bid_rows(results["society"].config.env, results["bounds"], results["society, held out"])


def _title(results: Results) -> str:
    env, seeds = results["society"].config.env, results.scope.seeds
    count = len(results["bounds"]["combination"])
    return f"{env.name} at {env.resolution} × {env.resolution}: {count:,} held-out inputs, {seeds} seeds"


def _note(results: Results) -> str:
    dynamic, classifier = results.scope.settings["depth"] == "dynamic", results["classifier"]
    return (
        "accuracy: share of held-out digits read, greedy; interquartile mean over seeds\n"
        "± the larger side of its 95% bootstrap interval\n"
        f"best fixed: {program_name(results['bounds']['program'])}, chosen on training digits · inverse: of the "
        f"transformations\noracle: the best program of {'up to ' if dynamic else ''}two functions for each digit\n"
        f"used: mean number of functions · {classifier['digits']} digits: upright, the classifier reads "
        f"{float(classifier['upright']):.1%} of the held-out ones"
    )


# --- figures


def _draw_curves(results: Results) -> Any:
    fig, (ax,) = plotting.figure(width=7.0)
    runs = {name: results[name] for name in _plays(results)}
    labels = {"oracle": "oracle", "inverse": "inverse", "fixed": "best fixed program"}
    levels = {label: results["bounds"][name].mean() for name, label in labels.items()}
    plotting.draw_metric_curves(ax, runs, "return_mean", title="Mental Rotation", levels=levels)
    dynamic = results.scope.settings["depth"] == "dynamic"
    ax.set_ylabel("digits read" + (" minus the price of functions" if dynamic else "") + ", during training")
    plotting.legend_below(ax)
    return fig


# --- claims


def _used(results: Results) -> dict[int, np.ndarray]:
    return digit_programs.functions_used(results["bounds"], results["society, held out"])


def _claims(scope: Scope) -> list[Claim]:
    society, rival = (at(f"{agent}, held out", "accuracy") for agent in AGENTS)
    claims = [
        within(
            "the society reads at least 90% of the held-out digits the oracle reads, mean over seeds",
            lambda results: society(results) / results["bounds"]["oracle"].mean(),
            at_least=0.9,
            estimate=mean,
            evidence=lambda results: f"the exact inverse reads {results['bounds']['inverse'].mean():.3f} of all",
        ),
        every_seed(
            "the society reads more than the best fixed program",
            society,
            at_least=lambda results: np.nextafter(results["bounds"]["fixed"].mean(), 1),  # more, and not as many
            evidence=lambda results: program_name(results["bounds"]["program"]),
        ),
        separated("the society reads more than one PPO agent over the same functions", society, rival),
    ]
    if scope.settings["depth"] == "dynamic":
        claims.append(
            every_seed(
                "the number of functions is the number needed: the mean of every seed is within .25 of it",
                lambda results: np.max([np.abs(used - n) for n, used in _used(results).items()], 0),
                at_most=0.25,  # then it also grows with it
                evidence=lambda results: (
                    "mean number of functions if 0, 1, 2 are needed: "
                    + ", ".join(str(interquartile_mean(used)) for used in _used(results).values())
                ),
            )
        )
    return claims


EXPERIMENT = Experiment(
    name="mental-rotation",
    shows="functions as primitives: a society composes a program for every input",
    source="Chang et al. (2020), §6.3",
    conditions=_conditions,
    measures={"return": final(), "accuracy": lambda played: played["read"].mean(1)},
    claims=_claims,
    tables=[
        Table(
            "accuracy",
            _title,
            lambda results: digit_programs.accuracy_rows(results["bounds"], _plays(results)),
            _note,
        ),
        Table(
            "combinations",
            "accuracy by the transformations of the digit",
            lambda results: digit_programs.combination_rows(
                results["society"].config.env, results["bounds"], _plays(results), market="society"
            ),
            "undone: share of examples for which the society composes the exact inverse",
        ),
        Table("bids", "mean greedy bids along the exact inverse", _bid_rows, shown=False),
        tuning_table(
            f"the same grid for both agents: {_TUNING_SEEDS} separate seeds, training digits",
            GRIDS,
            {"return": column("return", np.mean), "lowest seed": column("return", np.min)},
            lambda row: -row["return"],
            "return: greedy, mean over seeds",
        ),
    ],
    figures={
        "learning_curves": _draw_curves,
        "bids": lambda results: plotting.program_bids([*_bid_rows(results)], results["society"].config.env.names),
        "chains": lambda results: plotting.composed_images(results["society"].config.env, results["society"].policy()),
    },
    settings={"resolution": 32, "depth": "fixed"},
)

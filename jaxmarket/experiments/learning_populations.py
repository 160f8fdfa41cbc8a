"""Populations whose agents learn by gradient while they live, against populations that change by mutation only.

Wealth decides in all of them which agents live and act. Agents are neural networks. Environment steps are equal.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxmarket.deep_market import NeuralNetworks, Representation, Terms
from jaxmarket.environments import adapt, make
from jaxmarket.experiments.claims import Claim, at, separated
from jaxmarket.experiments.conditions import Condition, Scope, Train
from jaxmarket.experiments.experiment import Experiment, Quick, Table, column
from jaxmarket.experiments.results import Results
from jaxmarket.experiments.tuning import grid_conditions, tuning_table
from jaxmarket.runs.estimates import interquartile_mean
from jaxmarket.runs.measures import final
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.learning_agents import LearningNetworks
from jaxmarket.training.population import PopulationAgents
from jaxmarket.view import plotting

__all__ = ["ARMS", "EXPERIMENT", "GRIDS"]

ENVS: dict[str, int] = {"CartPole-v1": 400_000, "BlocksWorld3-v0": 200_000}
"""The tasks, with the environment steps of a run."""
_HIDDEN = (16,)
_CAPACITY = 32
_TERMS = Terms(
    bankruptcy=0.0,
    endowment=1.0,
    child_endowment=0.0,
    inheritance=0.1,
    birth_rate=0.3,
    min_parent_wealth=0.0,
    p_offspring=0.5,
    p_repair=0.0,
    replace_poorest=True,
    wealth_tax=1e-3,
)
_NETWORKS: dict[str, Any] = {"action_entropy": 0.01, "epochs": 4, "discount": 0.99, "trace_decay": 0.8}
_BUDGET: dict[str, Any] = {"instances": 16, "horizon": 64, "log_every": 8}
_TUNING_SEED, _TUNING_SEEDS = 5, 4

_LEARNING, _MUTATION, _REFLEX = "gradient", "mutation", "mutation, first price"
_GRID: dict[str, list[dict[str, float]]] = {
    _LEARNING: [{"rate": rate, "noise": 0.03} for rate in (3e-4, 1e-3, 3e-3)],
    _MUTATION: [{"rate": 0.0, "noise": noise} for noise in (0.03, 0.1, 0.3)],
    _REFLEX: [{"rate": 0.0, "noise": noise} for noise in (0.03, 0.1, 0.3)],
}
GRIDS = {f"{env}, {arm}": grid for env in ENVS for arm, grid in _GRID.items()}
"""Learning rates of both networks, and the noise on the weights of a child, for each task and kind of population."""
ARMS: dict[str, dict[str, float]] = {
    "CartPole-v1, gradient": {"rate": 1e-3, "noise": 0.03},
    "CartPole-v1, mutation": {"rate": 0.0, "noise": 0.03},
    "CartPole-v1, mutation, first price": {"rate": 0.0, "noise": 0.1},
    "BlocksWorld3-v0, gradient": {"rate": 3e-3, "noise": 0.03},
    "BlocksWorld3-v0, mutation": {"rate": 0.0, "noise": 0.3},
    "BlocksWorld3-v0, mutation, first price": {"rate": 0.0, "noise": 0.1},
}
"""The best settings of the table ``tuning``."""


def config(name: str, rate: float, noise: float) -> TrainConfig:
    """A population on a task.

    Args:
        name: of the task and the kind of population.
        rate: learning rate of both networks of an agent.
        noise: standard deviation of the noise on a child's weights.
    """
    env, _, arm = name.partition(", ")
    adapter = adapt(make(env)[0])
    actions, features = adapter.num_actions, int(np.prod(adapter.observation.shape))
    representation: Representation = NeuralNetworks(features, actions, _HIDDEN, scale=1.0, mutation=noise)
    if arm != _REFLEX:
        representation = LearningNetworks(
            actions, _HIDDEN, learning_rate=rate, action_learning_rate=rate, mutation=noise, **_NETWORKS
        )
    # A first price would leave no profit to agents that bid what a state is worth to them, and they need exploration:
    # a newcomer bids 0. Networks that only mutate bid at random from the beginning.
    auction, terms = ("bb", _TERMS) if arm == _REFLEX else ("vickrey", _TERMS.replace(exploration=0.1))
    agent = PopulationAgents(representation, _CAPACITY, terms, max_births=1, wealth=1.0)
    return TrainConfig(env, agent=agent, auction=auction, steps=ENVS[env], **_BUDGET)


def _conditions(scope: Scope) -> list[Condition]:
    wanted: list[Condition] = [Train(name, config(name, **setting)) for name, setting in ARMS.items()]
    return wanted + (grid_conditions(GRIDS, _tuning) if scope.full else [])


def _tuning(name: str, agent: str, setting: Mapping[str, float]) -> list[Condition]:
    return [Train(name, config(agent, **setting), seeds=_TUNING_SEEDS, seed=_TUNING_SEED)]


def _claims() -> list[Claim]:
    return [
        separated(
            f"[{env}] a population whose agents learn reaches a higher return than one that only mutates ({other})",
            at(f"{env}, {_LEARNING}", "return"),
            at(f"{env}, {other}", "return"),
        )
        for env in ENVS
        for other in (_MUTATION, _REFLEX)
    ]


def _rows(results: Results) -> Iterator[dict[str, Any]]:
    for name, setting in ARMS.items():
        env, _, arm = name.partition(", ")
        measures = {measure: interquartile_mean(results.measure(name, measure)) for measure in ("return", "born")}
        yield {
            "task": env,
            "agents": arm,
            "learning rate": setting["rate"] or None,
            "noise": setting["noise"],
            "k steps": round(results[name].config.settings.steps / 1000),
            **measures,
        }


def _draw(results: Results) -> Any:
    fig, axes = plotting.figure(columns=len(ENVS), width=4.4)
    for ax, env in zip(axes, ENVS, strict=True):
        runs = {arm: results[f"{env}, {arm}"] for arm in _GRID}
        plotting.draw_metric_curves(ax, runs, "return_mean", title=env)
        ax.set(ylabel="return while learning")
    plotting.legend_below(fig, columns=len(_GRID))
    return fig


EXPERIMENT = Experiment(
    name="learning-populations",
    shows="populations whose agents learn by gradient while they live, against mutation only",
    source="Chang et al. (2020), §7; Sudhir and Tran-Thanh (2025), §5",
    conditions=_conditions,
    measures={"return": final(), "born": lambda run: run.metrics["births"].sum(0)},
    claims=_claims(),
    tables=[
        Table(
            "populations",
            f"{_CAPACITY} neural agents selected by wealth, at equal environment steps",
            _rows,
            "return: greedy, of new episodes; interquartile mean over seeds ± the larger side of its 95% interval\n"
            "gradient: agents learn from their own profit (Vickrey auction) · mutation: the same without learning\n"
            "mutation, first price: networks without learning that act deterministically, as in other populations",
        ),
        tuning_table(
            f"grids, {_TUNING_SEEDS} separate seeds",
            GRIDS,
            {"return": column("return", np.mean)},
            lambda row: -row["return"],
            "best: highest mean return",
        ),
    ],
    figures={"populations": _draw},
    seeds=8,
    quick=Quick(seeds=2, steps=0.05),
)

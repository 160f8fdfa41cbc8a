"""Speed of training on images: societies, and single agents with as many parameters.

With the same convolutions, one agent has as many parameters as M bidders if its dense layer is about M times as wide.
It then convolves an image once where the society does so M times, and takes fewer floating-point operations. An agent
whose layers are all wider by the same factor, about √M, takes as many operations as the society. Both are measured, in
turns with the society, with the operations that one forward pass of the bid or policy networks takes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import train
from benchmarks.timing import Report, counts, measure
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.monolith import parameters
from jaxmarket.training.pinned import train_config
from jaxmarket.view.tables import progress

__all__ = ["LEARNERS", "TASKS", "config", "run"]

_ONE: Mapping[str, Any] = MappingProxyType({"convolutions": (16,), "stride": 1, "hidden": (128,)})
TASKS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "Breakout-MinAtar": _ONE,
        "TwoRooms-Red-v0": _ONE,
        "MentalRotation-v0": MappingProxyType({"convolutions": (16, 32), "stride": 2, "hidden": (128,)}),
    }
)
"""Layers by environment: of three, seven and six modules, with images of 10 × 10 × 4, 7 × 7 × 3 and 32 × 32 × 1."""
LEARNERS = ("valuation", "ppo")

_AUCTIONS = 1024  # per call


def config(env: str, learner: str) -> TrainConfig:
    """The society that is measured."""
    shape: dict[str, Any] = {"instances": 32, "horizon": 32, "steps": _AUCTIONS, "log_every": 1, "minibatch": 128}
    return train_config(env, learner=learner, epochs=1, **shape, **TASKS[env])


def _wider(society: TrainConfig) -> TrainConfig:
    """The settings with all layers wider by the factor for which one agent has as many parameters as the society."""
    torso: Any = society.settings.society.policy.torso

    def scaled(thousandths: int) -> TrainConfig:
        def wider(layers: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(round(thousandths * width / 1000) for width in layers)

        return dataclasses.replace(society, convolutions=wider(torso.convolutions), hidden=wider(torso.hidden))

    wanted = train.parameters_of_society(society)
    return scaled(train.largest(lambda n: train.parameters_of_agent(scaled(n)) < wanted, 1000, 64_000))


def _megaflops(policy: Any, obs: jax.ShapeDtypeStruct, times: int = 1) -> float:
    """Floating-point operations of ``times`` forward passes of one image, in millions."""
    image = jnp.zeros(obs.shape, obs.dtype)
    return times * counts(policy.output, policy.init(jax.random.key(0), image), image)["flops"] / 1e6


def _compare(report: Report, env: str, learner: str, repeats: int) -> None:
    """Measure a society and two agents in turns."""
    given = config(env, learner)
    society, wider = given.settings.society, _wider(given)
    programs: dict[str, tuple[Callable, Callable]] = {"society": train.training(given)}
    policies = {"society": (society.policy, society.modules)}
    agents = {"wider dense layer": (given, train.equal_width(given)), "wider layers": (wider, None)}
    for name, (settings, hidden) in agents.items():
        programs[name] = train.monolithic(settings, hidden)
        policies[name] = (train.agent(settings, hidden).learner.policy, 1)
    states = {name: jax.jit(start)(jax.random.key(0)) for name, (_, start) in programs.items()}
    calls = {name: (step, (states[name],)) for name, (step, _) in programs.items()}
    timings = measure(calls, repeats, large=calls)
    report.keep(f"{env}, {learner}", timings)
    rates = {name: _AUCTIONS / timing.median for name, timing in timings.items()}
    rows = report.tables.setdefault(f"{env}, {learner}: {society.modules} modules", [])
    for name, rate in rates.items():
        rows.append(
            {
                "trained": name,
                "parameters": parameters(states[name].learner),
                "Mflop, forward": _megaflops(policies[name][0], society.observation, policies[name][1]),
                "steps/s": rate,
                "society's speed / its": rates["society"] / rate,
            }
        )
    report.headline |= {
        f"{env} {learner} steps_per_second": rates["society"],
        f"{env} {learner} over_wider_dense": rates["society"] / rates["wider dense layer"],
        f"{env} {learner} over_wider": rates["society"] / rates["wider layers"],
    }


def run(quick: bool = False) -> Report:
    """Measure training on images; a quick run measures Breakout alone."""
    report = Report("images")
    tasks = [(env, learner) for env in list(TASKS)[: 1 if quick else None] for learner in LEARNERS]
    with progress("images", unit="tasks") as show:
        for done, (env, learner) in enumerate(tasks):
            show(done, len(tasks), f"{env}, {learner}")
            _compare(report, env, learner, 3 if quick else 10)
        show(len(tasks), len(tasks))
    report.notes.append("one pass over a rollout of 32 instances × 32 steps, minibatches of 128 auctions")
    return report

"""Exams on blocks world: how many new instances of every size are solved by populations, teams and random agents.

An `Exam` has the instances, and three functions take it. `Examined` has what experiments report of the results.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.deep_market import DeepMarket, Population, Representation, Terms, random_population
from jaxmarket.deep_market.evaluation import actor, reliable_size, success_by_size
from jaxmarket.deep_market.teams import TeamSelection
from jaxmarket.environments.adapter import Adapter, adapt
from jaxmarket.environments.blocks import BlocksWorld
from jaxmarket.experiments.conditions import Arrays, Compute, Scope
from jaxmarket.experiments.experiment import Table
from jaxmarket.experiments.populations import market_facts
from jaxmarket.experiments.results import Results
from jaxmarket.keys import key_for, key_of
from jaxmarket.runs.estimates import interquartile_mean, mean
from jaxmarket.runs.populations import SUMS, GrownMarket
from jaxmarket.switches import whole_program
from jaxmarket.types import Array, PyTree, real

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RELIABLE", "Exam", "Examined", "of_population", "of_random_agents", "of_selection", "shares_solved"]

RELIABLE = 0.9
"""The share of instances from which a size counts as solved."""


@dataclasses.dataclass(frozen=True)
class Exam:
    """New instances of blocks world, the same ones for all agents at equal seeds.

    Attributes:
        sensors: that agents observe.
        sizes: numbers of blocks, increasing.
        instances: of each size.
    """

    sensors: tuple[str, ...]
    sizes: tuple[int, ...]
    instances: int

    def world(self, sizes: Sequence[int] = (1,)) -> Adapter:
        """Blocks world with instances of some sizes, and space for the largest one of the exam."""
        return adapt(BlocksWorld(sizes, sensors=self.sensors, capacity=max(*sizes, *self.sizes)))

    def condition(self, seed: int, name: str, function: Callable[..., Arrays], *inputs: str) -> Compute:
        """A condition that passes the exam to one of the functions below, with keys of measurements."""
        function = functools.partial(function, exam=self)
        return Compute(name, functools.partial(_with_measurement_keys, function, seed), inputs)

    def success(self, act: Callable[[Array, Array], Array], key: Array) -> Array:
        """The share of instances that are solved, f [sizes], by ``act(key, obs)``."""
        return success_by_size(act, key, self.world(), self.sizes, self.instances)

    @property
    def obs(self) -> Array:
        """Zeros in the shape of an observation, from which random agents are drawn."""
        return jnp.zeros(len(self.sensors), real())


def _with_measurement_keys(function: Callable[..., Arrays], seed: int, keys: Array, *results: GrownMarket) -> Arrays:
    return function(jax.random.split(key_for(key_of(seed), "measurement"), len(keys)), *results)


def shares_solved(
    act: Callable[[Array, Array], Array], key: Array, env: Adapter, sizes: Sequence[int]
) -> dict[str, Array]:
    """The share of 32 instances of each size that are solved, f [], as ``3 blocks``: a measurement during training."""
    found = success_by_size(act, key, env, sizes, 32)
    return {f"{n} blocks": found[i] for i, n in enumerate(sizes)}


def of_population(keys: Array, grown: GrownMarket, *, exam: Exam) -> Arrays:
    """``success`` of the frozen populations, f [seeds, sizes]."""

    def success(market: DeepMarket, key: Array, population: Population, terms: Terms) -> dict[str, Array]:
        return {"success": exam.success(actor(market, population, terms), key)}

    return grown.measure(success, keys)


@functools.partial(whole_program, static_argnames=("exam", "agents", "trained", "budget", "shortest"))
def of_selection(
    keys: Array, *, exam: Exam, agents: Representation, trained: tuple[int, ...], budget: int, shortest: int
) -> Arrays:
    """Selection of teams (`TeamSelection`) within a budget of environment steps.

    Args:
        keys: [seeds].
        exam: of the best team at the end.
        agents: the members of teams.
        trained: sizes of the instances on which teams are selected.
        budget: environment steps.
        shortest: a lower bound on the mean length of episodes.

    Returns:
        ``success`` f [seeds, sizes], and ``env_steps`` used, i32 [seeds].
    """
    selection = TeamSelection(exam.world(trained), agents)

    def evolve(key: Array) -> tuple[Array, Array]:
        key_init, key_run, key_exam = jax.random.split(key, 3)
        team, spent = selection.evolve(key_init, key_run, exam.obs, budget, shortest)
        return exam.success(functools.partial(selection.act, team), key_exam), spent

    success, spent = jax.vmap(evolve)(keys)
    return {"success": success, "env_steps": spent}


@functools.partial(whole_program, static_argnames=("exam", "agents", "count"))
def of_random_agents(keys: Array, *, exam: Exam, agents: Representation, count: int) -> Arrays:
    """``success`` of random agents, of which the highest bidder acts, f [seeds, sizes]."""
    market = DeepMarket(exam.world(), agents, count)

    def success(key: Array) -> Array:
        key_agents, key_exam = jax.random.split(key)
        population = random_population(agents, key_agents, exam.obs[None], count, count, 1.0)
        return exam.success(actor(market, population, Terms()), key_exam)

    return {"success": jax.vmap(success)(keys)}


@dataclasses.dataclass(frozen=True)
class Examined:
    """Tables, a panel of a figure, and facts of an experiment whose populations are examined.

    Attributes:
        market: the condition that the experiment is about.
        markets: the names of all conditions with populations.
        baselines: conditions that are exams themselves.
        sizes: of the exam.
        trained: the largest number of blocks in training.
        shown: the sizes in the table; files have all of them.
    """

    market: str
    markets: Callable[[Scope], Sequence[str]]
    baselines: tuple[str, ...]
    sizes: tuple[int, ...]
    trained: int
    shown: tuple[int, ...]

    def exam_of(self, name: str) -> str:
        """The condition with the exam of a population or a baseline."""
        return name if name in self.baselines else f"{name}: exam"

    def reliable(self, exam: Arrays) -> np.ndarray:
        """A measure: the largest size up to which all sizes are solved in 90% of the instances, i [seeds]."""
        return reliable_size(exam["success"], self.sizes, RELIABLE)

    def success(self, results: Results) -> dict[str, np.ndarray]:
        """The share of instances that each population and baseline solves: f [seeds, sizes] by name."""
        names = (*self.markets(results.scope), *self.baselines)
        return {name: results[self.exam_of(name)]["success"] for name in names}

    def best(self, results: Results) -> int:
        """The seed of the market that solves most instances."""
        return int(np.argmax(results[self.exam_of(self.market)]["success"].sum(1)))

    def _rows(self, results: Results) -> Iterator[dict[str, Any]]:
        for name, success in self.success(results).items():
            by_size = {str(n): interquartile_mean(success[:, i]) for i, n in enumerate(self.sizes)}
            largest = results.measure(self.exam_of(name), "reliable")
            yield {"who": name, **by_size, "reliable": mean(largest), "best": largest.max()}

    def tables(self, name: str) -> list[Table]:
        """The table ``name`` of the success by size, and ``economies``."""
        return [
            Table(
                name,
                "blocks world: share of instances solved, by size",
                self._rows,
                "success on new instances of each number of blocks, interquartile mean over seeds ± the larger side of "
                f"its 95% bootstrap interval; trained with at most {self.trained}\nreliable: the size up to which all "
                f"sizes are solved in {RELIABLE:.0%} of instances, mean and maximum over seeds; {max(self.sizes)} is "
                "the largest size tested",
                aside=tuple(str(n) for n in self.sizes if n not in self.shown),
            ),
            Table(
                "economies",
                "markets",
                lambda results: [{"economy": each, **results[each].summary()} for each in self.markets(results.scope)],
                "means over seeds in the last tenth of training; solved: training instances, price: per sale, "
                "living: agents\nsums of cash flows over all of training are in economies.csv",
                aside=SUMS,
            ),
        ]

    def richest_agents(self, name: str, show: Callable[[PyTree], str], note: str) -> Table:
        """The table ``name`` of the richest agents of the market that solves most instances, each as text."""
        return Table(
            name,
            lambda results: f"the richest agents of the market with the highest success (seed {self.best(results)})",
            lambda results: results[self.market].richest_agents(self.best(results), 12, show),
            note,
        )

    def draw(self, ax: "Axes", success: dict[str, np.ndarray], colors: dict[str, Any]) -> None:
        """Success by size, mean over seeds, of the market with its range."""
        for name, solved in success.items():
            wide = name == self.market
            line = {"color": colors[name], "linewidth": 2.5 if wide else 1.2, "label": name}
            ax.plot(self.sizes, solved.mean(0), marker="o", markersize=4, **line)
            if wide:
                ax.fill_between(self.sizes, solved.min(0), solved.max(0), color=colors[name], alpha=0.12)
        ax.axvline(self.trained + 0.5, color="gray", linestyle=":")
        ax.text(self.trained + 0.6, 1.03, "larger than in training", fontsize=7, color="gray")
        ax.set(xlabel="blocks", ylabel="instances solved", title="frozen, mean over seeds (band: range)")

    def facts(self, results: Results) -> dict[str, Any]:
        """Steps, and the largest size that is solved reliably: mean and maximum over seeds."""
        largest = results.measure(self.exam_of(self.market), "reliable")
        return market_facts(results) | {
            "env_steps": int(results[self.market].plan.steps[-1]),
            "reliable_mean": float(largest.mean()),
            "reliable_best": int(largest.max()),
        }

"""Exams on blocks world: how many new instances of every size are solved by populations, teams and random agents."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxmarket.deep_market import DeepMarket, Population, Representation, Terms, random_population
from jaxmarket.deep_market.evaluation import actor, success_by_size
from jaxmarket.deep_market.teams import TeamSelection
from jaxmarket.environments.adapter import Adapter, adapt
from jaxmarket.environments.blocks import BlocksWorld
from jaxmarket.experiments.conditions import Arrays, Compute
from jaxmarket.keys import key_for, key_of
from jaxmarket.runs.populations import GrownMarket
from jaxmarket.switches import whole_program
from jaxmarket.types import Array, real

__all__ = ["RELIABLE", "Exam", "of_population", "of_random_agents", "of_selection"]

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

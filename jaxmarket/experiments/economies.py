"""Shared by the reproductions of deep markets: running a market on many seeds, and figures of its history."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import deep_market
from jaxmarket.auctions import BUCKET_BRIGADE, ENVIRONMENT_REWARD, Mechanism
from jaxmarket.deep_market import DeepMarket, DeepMarketState, Lineage, Population, RoundSummary, Terms
from jaxmarket.keys import key_of
from jaxmarket.runs.checkpoint import Checkpoints
from jaxmarket.runs.interrupts import Deferred
from jaxmarket.runs.run_folder import versions
from jaxmarket.training.arrays import flatten, unflatten
from jaxmarket.types import Array, PyTree
from jaxmarket.view import plotting, tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["UNPAID", "Grown", "Plan", "grow", "life", "residual", "terms_of"]

UNPAID = Mechanism("unpaid", price=ENVIRONMENT_REWARD.price, payout=BUCKET_BRIGADE.payout)
"""No conservation: the mint pays the winning bid to the seller, and the buyer pays nothing."""

Evaluate = Callable[[DeepMarket, Array, Population, Terms], dict[str, Array]]
"""Measures a population between chunks: ``(market, key, population, terms)`` to numbers by name."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """One condition of an experiment: a market, its terms, and the length of the run.

    Attributes:
        name: of the condition.
        market: the static description.
        terms: numeric terms of the market.
        rounds, period, max_births: as in `deep_market.run`.
        num_agents: initial number of agents.
        wealth: initial wealth of each agent.
        chunks: number of parts in which the rounds are run; measurements follow each part.
        settling: number of final chunks without births, in which selection continues.
        stages: environment parameters of each chunk, the last ones also for later chunks; the default ones if empty.
    """

    name: str
    market: DeepMarket
    terms: Terms
    rounds: int
    period: int
    max_births: int
    num_agents: int
    wealth: float
    chunks: int = 10
    settling: int = 0
    stages: tuple[PyTree, ...] = ()

    def env_params(self, chunk: int) -> PyTree:
        """The environment's parameters in a chunk."""
        if not self.stages:
            return self.market.env.default_params
        return self.stages[min(chunk, len(self.stages) - 1)]


@dataclasses.dataclass(frozen=True)
class Grown:
    """The results of a plan for all seeds, as NumPy arrays.

    Attributes:
        plan: the condition.
        opened: initial money, f64 [seeds].
        rounds: summaries of all rounds, leaves f64 or i64 [seeds, rounds, ...].
        measured: measurements by name, f [chunks, seeds].
        economy: the final state, leaves [seeds, ...].
    """

    plan: Plan
    opened: np.ndarray
    rounds: RoundSummary
    measured: dict[str, np.ndarray]
    economy: DeepMarketState

    @property
    def steps(self) -> np.ndarray:
        """Environment steps of all instances at the end of each chunk: i [chunks]."""
        plan = self.plan
        return np.arange(1, plan.chunks + 1) * (plan.rounds // plan.chunks) * plan.period * plan.market.instances

    def seed(self, seed: int) -> RoundSummary:
        """The rounds of one seed: leaves [rounds, ...]."""
        return jax.tree.map(lambda leaf: leaf[seed], self.rounds)

    def population(self, seed: int) -> Population:
        """The final population of one seed."""
        return jax.tree.map(lambda leaf: leaf[seed], self.economy.population)

    def richest(self, seed: int, most: int) -> np.ndarray:
        """Slots of the richest agents of the final population of one seed, the richest first."""
        p = self.population(seed)
        return np.argsort(-np.where(p.alive, p.wealth, -np.inf), kind="stable")[:most]

    def lineage(self, seed: int) -> Lineage:
        """The lineage of one seed."""
        return Lineage(self.seed(seed).births, self.plan.num_agents)


@functools.partial(jax.jit, static_argnames=("market", "num_agents"))
def _open(
    market: DeepMarket, keys: Array, env_params: PyTree, num_agents: int, wealth: float
) -> tuple[DeepMarketState, Array]:
    def open_market(key: Array) -> tuple[DeepMarketState, Array]:
        economy = deep_market.init(market, key, env_params, num_agents=num_agents, wealth=wealth)
        return economy, deep_market.money(economy)

    return jax.vmap(open_market)(keys)


@functools.partial(jax.jit, static_argnames=("market", "rounds", "period", "max_births"), donate_argnames="economies")
def _chunk(
    market: DeepMarket,
    keys: Array,
    economies: DeepMarketState,
    env_params: PyTree,
    terms: Terms,
    rounds: int,
    period: int,
    max_births: int,
) -> tuple[DeepMarketState, RoundSummary]:
    def run(key: Array, economy: DeepMarketState) -> tuple[DeepMarketState, RoundSummary]:
        return deep_market.run(
            market, key, economy, env_params, terms, rounds=rounds, period=period, max_births=max_births
        )

    return jax.vmap(run)(keys, economies)


@functools.partial(jax.jit, static_argnames=("evaluate", "market"))
def _measure(
    evaluate: Evaluate, market: DeepMarket, keys: Array, populations: Population, terms: Terms
) -> dict[str, Array]:
    return jax.vmap(lambda key, population: evaluate(market, key, population, terms))(keys, populations)


def grow(
    plans: Sequence[Plan],
    evaluate: Evaluate,
    *,
    seeds: int,
    seed: int,
    label: str,
    shown: bool = True,
    folder: Path | None = None,
) -> dict[str, Grown]:
    """Run every plan on the same seeds, one after another; plans that differ only in their terms compile once.

    With a folder, a checkpoint of every market is saved after each chunk; a repeated call continues an interrupted one,
    with the same bits.

    Args:
        plans: the conditions.
        evaluate: measures the frozen populations after every chunk.
        seeds: independent markets per plan, in one vmapped call.
        seed: of all randomness; all plans use the same keys.
        label: of the progress bar.
        shown: whether to show the progress bar.
        folder: of checkpoints, with one folder per plan.

    Raises:
        ValueError: the folder contains checkpoints of other plans with these names, or a damaged one, or is read-only.
    """
    folders = [_folder_name(plan) for plan in plans]
    if len(set(folders)) < len(folders):
        raise ValueError(f"plans: some names give the same folder: {', '.join(folders)}; rename them")
    total = sum(plan.chunks * _steps(plan) for plan in plans)
    done, grown = 0, {}
    with tables.progress(label, shown=shown) as show:
        for plan in plans:
            key_open, key = jax.random.split(key_of(seed))
            keys = jax.random.split(key_open, seeds)
            economies, opened = _open(plan.market, keys, plan.env_params(0), plan.num_agents, plan.wealth)
            life = _Life(economies, np.asarray(opened, np.float64), key, [], [])
            with contextlib.ExitStack() as stack:
                kept = None if folder is None else stack.enter_context(Checkpoints(folder / _folder_name(plan)))
                if kept is not None:
                    life = _resume(kept, plan, life, seeds=seeds, seed=seed)
                done += len(life.rounds) * _steps(plan)
                while len(life.rounds) < plan.chunks:
                    with Deferred():
                        life = _live(plan, evaluate, life, seeds)
                        if kept is not None:
                            kept.save(len(life.rounds), life.arrays(), _note(plan, seeds, seed))
                    done += _steps(plan)
                    measured = list(life.measured[-1].items())[:3]
                    show(done, total, f"{plan.name}: " + ", ".join(f"{name} {x.mean():.3f}" for name, x in measured))
            grown[plan.name] = Grown(
                plan=plan,
                opened=life.opened,
                rounds=jax.tree.map(_join, *life.rounds),
                measured={name: np.stack([m[name] for m in life.measured]) for name in life.measured[0]},
                economy=jax.device_get(life.economies),
            )
    return grown


def _folder_name(plan: Plan) -> str:
    return re.sub(r"[^\w.-]+", "-", plan.name)


class _Life(NamedTuple):
    """The state of a market for all seeds, and its results so far."""

    economies: DeepMarketState
    opened: np.ndarray
    key: Array
    rounds: list[RoundSummary]
    measured: list[dict[str, np.ndarray]]

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays, for a checkpoint."""
        rounds, measured = (jax.tree.map(lambda *parts: np.stack(parts), *x) for x in (self.rounds, self.measured))
        return flatten(self._replace(rounds=rounds, measured=measured)._asdict())


def _live(plan: Plan, evaluate: Evaluate, life: _Life, seeds: int) -> _Life:
    """Run and measure the next chunk."""
    chunk = len(life.rounds)
    terms = jax.tree.map(jnp.asarray, plan.terms)
    if chunk >= plan.chunks - plan.settling:
        terms = terms.replace(birth_rate=jnp.zeros_like(terms.birth_rate))
    key_run, key_measure, key = jax.random.split(life.key, 3)
    economies, lived = _chunk(
        plan.market,
        jax.random.split(key_run, seeds),
        life.economies,
        plan.env_params(chunk),
        terms,
        plan.rounds // plan.chunks,
        plan.period,
        plan.max_births,
    )
    keys = jax.random.split(key_measure, seeds)
    measured = jax.device_get(_measure(evaluate, plan.market, keys, economies.population, terms))
    return _Life(economies, life.opened, key, [*life.rounds, jax.device_get(lived)], [*life.measured, measured])


def _resume(kept: Checkpoints, plan: Plan, life: _Life, *, seeds: int, seed: int) -> _Life:
    """The market at its last checkpoint; ``life`` itself if there is none."""
    last = kept.last()
    if last is None:
        return life
    step, saved = last
    if saved.note != _note(plan, seeds, seed):
        raise ValueError(f"{kept.folder}: holds a market with other settings or versions; choose another folder")
    whose = f"{kept.path(step)}: the arrays"
    # The structure of the results of a chunk, by shapes only.
    _, one = jax.eval_shape(
        lambda keys, *args: _chunk(
            plan.market, jax.random.split(keys, seeds), *args, plan.rounds // plan.chunks, plan.period, plan.max_births
        ),
        life.key, life.economies, plan.env_params(0), jax.tree.map(jnp.asarray, plan.terms),
    )  # fmt: skip
    all_rounds = jax.tree.map(lambda x: jax.ShapeDtypeStruct((step, *x.shape), x.dtype), one)
    stacked = jax.device_get(unflatten(all_rounds, saved.part("rounds"), whose))
    return _Life(
        economies=unflatten(life.economies, saved.part("economies"), whose),
        opened=saved.arrays["opened"],
        key=unflatten(life.key, saved.part("key"), whose),
        rounds=[jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(step)],
        measured=[{name: values[i] for name, values in saved.part("measured").items()} for i in range(step)],
    )


def _note(plan: Plan, seeds: int, seed: int) -> dict[str, Any]:
    """What identifies the plan of a checkpoint, beside its name."""
    numbers = {
        name: getattr(plan, name) for name in ("rounds", "period", "max_births", "num_agents", "wealth", "chunks")
    }
    market = plan.market
    return {
        **numbers,
        "market": [market.env.name, market.mechanism.name, market.capacity, market.instances],
        "settling": plan.settling,
        "terms": terms_of(plan.terms),
        "seeds": seeds,
        "seed": seed,
        "versions": versions(),
    }


def _steps(plan: Plan) -> int:
    """Environment steps of a chunk, over all instances."""
    return plan.rounds // plan.chunks * plan.period * plan.market.instances


def _join(*parts: np.ndarray) -> np.ndarray:
    """Concatenate chunks of [seeds, rounds, ...], in 64 bits for sums."""
    joined = np.concatenate(parts, axis=1)
    return joined.astype(np.float64 if joined.dtype.kind == "f" else np.int64)


def residual(grown: Grown) -> float:
    """The largest `RoundSummary.residual` of all seeds, in float64."""
    return float(max(grown.seed(seed).residual(opened) for seed, opened in enumerate(grown.opened)))


def life(grown: Grown, seed: int, title: str) -> "Figure":
    """A figure of one market: population, wealth, inequality, money, cash flows, lineage of the richest agent."""
    fig, axes = plotting.figure(3, 2, width=5.2, height=3.4)
    rounds, population = grown.seed(seed), grown.population(seed)
    plotting.draw_population(axes[0], rounds)
    plotting.draw_wealth(axes[1], rounds)
    plotting.draw_inequality(axes[2], rounds)
    plotting.draw_money_supply(axes[3], rounds, float(grown.opened[seed]))
    plotting.draw_cash_flows(axes[4], rounds)
    richest = int(population.ident[grown.richest(seed, 1)[0]])
    plotting.draw_lineage(axes[5], grown.lineage(seed), richest)
    fig.suptitle(title, fontsize=10)
    return fig


def terms_of(terms: Terms) -> dict[str, Any]:
    """Terms that are not None, by name, for a report."""
    return {name: value for name, value in dataclasses.asdict(terms).items() if value is not None}

"""Fit deep markets on many seeds, with measurements between chunks, and checkpoints.

`grow` does for populations what `jaxmarket.fit` does for learners:

    plan = MarketPlan(market, Terms(), rounds=1000, period=4, max_births=2, num_agents=64, wealth=1.0)
    grown = grow(plan, evaluate, seeds=16, seed=0, folder=Path("runs/market"))
    grown.measured["return"], grown.population(seed=0)
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import deep_market
from jaxmarket.deep_market import DeepMarket, DeepMarketState, Lineage, Population, RoundSummary, Terms
from jaxmarket.deep_market.market import FLOWS
from jaxmarket.keys import key_of
from jaxmarket.runs.checkpoint import Checkpoints
from jaxmarket.runs.curves import last_part, ratio
from jaxmarket.runs.interrupts import Deferred
from jaxmarket.runs.run_folder import environment_digest, versions
from jaxmarket.switches import whole_program
from jaxmarket.training import objects
from jaxmarket.training.arrays import digest, flatten, unflatten
from jaxmarket.types import Array, PyTree
from jaxmarket.validation import check_int

__all__ = ["SUMS", "Evaluate", "GrownMarket", "MarketPlan", "finished", "grow", "terms_of"]

Evaluate = Callable[[DeepMarket, Array, Population, Terms], dict[str, Array]]
"""Measures a population: ``(market, key, population, terms)`` to numbers f [] by name."""


_MOST = 1e30  # money; the largest float32 is 3e38

SUMS = ("births", *FLOWS.values(), "residual")
"""The entries of `GrownMarket.summary` that are of all rounds."""


@dataclasses.dataclass(frozen=True)
class MarketPlan:
    """A market, its terms, and the length of the run.

    Attributes:
        market: the static description.
        terms: numeric terms of the market.
        rounds, period, max_births: as in `deep_market.run`.
        num_agents: initial number of agents.
        wealth: initial wealth of each agent.
        chunks: number of parts in which the rounds are run; measurements follow each part.
        settling: number of final chunks without births, in which selection continues.
        stages: environment parameters of each chunk, the last ones also for later chunks; the default ones if empty.

    Raises:
        ValueError: ``chunks`` is not an integer >= 1, or does not divide ``rounds``.
    """

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

    def __post_init__(self) -> None:
        chunks = check_int("chunks", self.chunks)
        if self.rounds % chunks:
            whole = chunks * (self.rounds // chunks + 1)
            raise ValueError(f"rounds: expected a multiple of {chunks} chunks, got {self.rounds}; give {whole}")

    def with_market(self, **changes: Any) -> "MarketPlan":
        """The plan with other fields of `DeepMarket`, such as ``property_rights=False``."""
        return dataclasses.replace(self, market=dataclasses.replace(self.market, **changes))

    def with_terms(self, **changes: Any) -> "MarketPlan":
        """The plan with other `Terms`."""
        return dataclasses.replace(self, terms=self.terms.replace(**changes))

    def env_params(self, chunk: int) -> PyTree:
        """The environment's parameters in a chunk."""
        if not self.stages:
            return self.market.env.default_params
        return self.stages[min(chunk, len(self.stages) - 1)]

    @property
    def steps(self) -> np.ndarray:
        """Environment steps of all instances at the end of each chunk: i [chunks]."""
        return np.arange(1, self.chunks + 1) * (self.rounds // self.chunks) * self.period * self.market.instances

    @property
    def program(self) -> tuple[DeepMarket, int, int, int]:
        """What the compiled program depends on: plans that differ only in other fields compile once."""
        return self.market, self.rounds // self.chunks, self.period, self.max_births


@dataclasses.dataclass(frozen=True)
class GrownMarket:
    """The result of a plan for all seeds, as NumPy arrays.

    Attributes:
        plan: the plan.
        opened: initial money, f64 [seeds].
        rounds: summaries of all rounds, leaves f64 or i64 [seeds, rounds, ...].
        measured: measurements by name, f [chunks, seeds].
        economy: the final state, leaves [seeds, ...].
    """

    plan: MarketPlan
    opened: np.ndarray
    rounds: RoundSummary
    measured: dict[str, np.ndarray]
    economy: DeepMarketState

    @property
    def residual(self) -> float:
        """The largest `RoundSummary.residual` of all seeds in float64, before the money of any seed exceeds 1e30."""
        large = np.atleast_1d(~(np.abs(self.rounds.money) < _MOST).all(0))  # [rounds]; True for NaN
        count = int(np.argmax(large)) if large.any() else len(large)
        rounds = jax.tree.map(lambda leaf: leaf[:, :count], self.rounds)
        seeds = [jax.tree.map(lambda leaf, i=i: leaf[i], rounds) for i in range(len(self.opened))]
        return float(max(seed.residual(opened) for seed, opened in zip(seeds, self.opened, strict=True)))

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

    def richest_agents(self, seed: int, most: int, show: Callable[[PyTree], str]) -> list[dict[str, Any]]:
        """The richest agents of the final population of one seed as rows of a table, the richest first.

        Args:
            seed: index of the seed.
            most: largest number of agents.
            show: an agent of the market's representation as text.

        Returns:
            For each of them ``agent``, the text; ``wealth``; ``bid``, NaN before the first one, if bids are fixed at
            entry (`Terms.markup`); ``born``, the step of its birth; ``line``, generations of ancestors with the agent.
        """
        p, lineage = self.population(seed), self.lineage(seed)
        fixed = self.plan.terms.markup is not None
        return [
            {
                "agent": show(jax.tree.map(lambda leaf, slot=slot: leaf[slot], p.agents)),
                "wealth": float(p.wealth[slot]),
                **({"bid": float(p.offer[slot])} if fixed else {}),
                "born": int(p.born[slot]),
                "line": len(lineage.ancestors(int(p.ident[slot]))),
            }
            for slot in self.richest(seed, most)
        ]

    def measure(self, evaluate: Evaluate, keys: Array) -> dict[str, np.ndarray]:
        """A measurement of the final populations: [seeds, ...] by name, with keys [seeds]."""
        terms = jax.tree.map(jnp.asarray, self.plan.terms)
        return jax.device_get(_measure(evaluate, self.plan.market, keys, self.economy.population, terms))

    def lineage(self, seed: int) -> Lineage:
        """The lineage of one seed."""
        return Lineage(self.seed(seed).births, self.plan.num_agents)

    def per_episode(self, field: str, parts: int | None = None) -> np.ndarray:
        """Mean of ``returns`` or ``lengths`` of the episodes that ended in a part of the run: f [parts, seeds].

        Args:
            field: the name.
            parts: equal parts of the rounds; the chunks of the plan by default. Without episodes a part has NaN.
        """
        statistics = self.rounds.statistics

        def sums(values: Any) -> np.ndarray:
            return values.reshape(len(values), parts or self.plan.chunks, -1).sum(-1).T

        return ratio(sums(getattr(statistics, field)), sums(statistics.episodes))

    def late_returns(self) -> np.ndarray:
        """Mean return of the episodes that ended in the last tenth of the rounds: f [seeds], NaN if none."""
        late = self._late()
        return ratio(late.statistics.returns.sum(1), late.statistics.episodes.sum(1))

    def _late(self) -> RoundSummary:
        """The last tenth of the rounds, leaves [seeds, t, ...]."""
        return jax.tree.map(lambda leaf: last_part(leaf, 1), self.rounds)

    def summary(self) -> dict[str, float]:
        """Measures of the market in the last tenth of the rounds, and its cash flows in all of them; means over seeds.

        ``solved``: share of episodes that terminate; ``price``: per sale; ``living``: agents at the end; ``gini``: of
        their wealth; ``births``; the cash flows that create money (positive) or remove it (negative), by their labels
        in `deep_market.market.FLOWS`; ``residual``: the `residual`.
        """
        late, rounds = self._late(), self.rounds
        sold = late.statistics.auctions - late.statistics.unsold
        return {
            "solved": float(ratio(late.statistics.terminated.sum(1), late.statistics.episodes.sum(1)).mean()),
            "price": float(late.flows["sales"].sum() / sold.sum()),
            "living": float(rounds.num_agents[:, -1].mean()),
            "gini": float(late.gini.mean()),
            "births": float((rounds.births.ident >= 0).sum((1, 2)).mean()),
            **{label: float(rounds.flows[name].sum(1).mean()) for name, label in FLOWS.items()},
            "residual": self.residual,
        }


def grow(
    plan: MarketPlan,
    evaluate: Evaluate,
    *,
    seeds: int,
    seed: int,
    folder: str | Path | None = None,
    on_chunk: Callable[[int, dict[str, np.ndarray]], None] | None = None,
) -> GrownMarket:
    """Run a plan on all seeds in one vmapped program.

    With a folder, a checkpoint is saved after each chunk. A repeated call continues an interrupted one, with the same
    bits, and returns the result of a finished one.

    Args:
        plan: the market and the length of the run.
        evaluate: measures the frozen populations after every chunk.
        seeds: number of independent markets.
        seed: of all randomness; plans with equal seeds use the same keys.
        folder: of the checkpoints. After the run it contains the last one only.
        on_chunk: is called after each chunk, with the number of chunks so far and the measurements f [seeds].

    Raises:
        ValueError: the folder contains checkpoints of another plan, or a damaged one, or is read-only.
    """
    with contextlib.ExitStack() as stack:
        kept = None if folder is None else stack.enter_context(Checkpoints(folder))
        history = _history(kept, plan, evaluate, seeds, seed)
        while len(history.rounds) < plan.chunks:
            with Deferred():
                history = _run_chunk(plan, evaluate, history, seeds)
                if kept is not None:
                    kept.save(len(history.rounds), history.arrays(), _note(plan, evaluate, seeds, seed))
            if on_chunk is not None:
                on_chunk(len(history.rounds), history.measured[-1])
        if kept is not None:
            for step in kept.steps()[:-1]:
                kept.path(step).unlink(missing_ok=True)
    return _result(plan, history)


def finished(plan: MarketPlan, evaluate: Evaluate, folder: str | Path, *, seeds: int, seed: int) -> GrownMarket | None:
    """The result of a run that `grow` finished in a folder; None if there is none or it was interrupted.

    Raises:
        ValueError: the folder contains checkpoints of another plan, or a damaged one.
    """
    kept = Checkpoints(folder)
    if kept.steps()[-1:] != [plan.chunks]:
        return None
    return _result(plan, _history(kept, plan, evaluate, seeds, seed))


@functools.partial(whole_program, static_argnames=("market", "num_agents"))
def _open(
    market: DeepMarket, keys: Array, env_params: PyTree, num_agents: int, wealth: float
) -> tuple[DeepMarketState, Array]:
    def open_market(key: Array) -> tuple[DeepMarketState, Array]:
        economy = deep_market.init(market, key, env_params, num_agents=num_agents, wealth=wealth)
        return economy, deep_market.money(economy)

    return jax.vmap(open_market)(keys)


@functools.partial(
    whole_program, static_argnames=("market", "rounds", "period", "max_births"), donate_argnames="economies"
)
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


@functools.partial(whole_program, static_argnames=("evaluate", "market"))
def _measure(
    evaluate: Evaluate, market: DeepMarket, keys: Array, populations: Population, terms: Terms
) -> dict[str, Array]:
    return jax.vmap(lambda key, population: evaluate(market, key, population, terms))(keys, populations)


class _History(NamedTuple):
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


def _run_chunk(plan: MarketPlan, evaluate: Evaluate, history: _History, seeds: int) -> _History:
    """Run and measure the next chunk."""
    chunk = len(history.rounds)
    terms = jax.tree.map(jnp.asarray, plan.terms)
    if chunk >= plan.chunks - plan.settling:
        terms = terms.replace(birth_rate=jnp.zeros_like(terms.birth_rate))
    key_run, key_measure, key = jax.random.split(history.key, 3)
    market, *lengths = plan.program
    economies, lived = _chunk(
        market, jax.random.split(key_run, seeds), history.economies, plan.env_params(chunk), terms, *lengths
    )
    keys = jax.random.split(key_measure, seeds)
    measured = jax.device_get(_measure(evaluate, market, keys, economies.population, terms))
    rounds = [*history.rounds, jax.device_get(lived)]
    return _History(economies, history.opened, key, rounds, [*history.measured, measured])


def _history(kept: Checkpoints | None, plan: MarketPlan, evaluate: Evaluate, seeds: int, seed: int) -> _History:
    """The market at its last checkpoint, or a new one."""
    key_open, key = jax.random.split(key_of(seed))
    keys = jax.random.split(key_open, seeds)
    economies, opened = _open(plan.market, keys, plan.env_params(0), plan.num_agents, plan.wealth)
    last = None if kept is None else kept.last()
    if kept is None or last is None:
        return _History(economies, np.asarray(opened, np.float64), key, [], [])
    step, saved = last
    if saved.note != _note(plan, evaluate, seeds, seed):
        raise ValueError(f"{kept.folder}: holds a market with other settings or versions; choose another folder")
    whose = f"{kept.path(step)}: the arrays"
    # The structure of the results of a chunk, by shapes only.
    market, *lengths = plan.program
    _, one = jax.eval_shape(
        lambda key, *args: _chunk(market, jax.random.split(key, seeds), *args, *lengths),
        key, economies, plan.env_params(0), jax.tree.map(jnp.asarray, plan.terms),
    )  # fmt: skip
    all_rounds = jax.tree.map(lambda x: jax.ShapeDtypeStruct((step, *x.shape), x.dtype), one)
    stacked = jax.device_get(unflatten(all_rounds, saved.part("rounds"), whose))
    return _History(
        economies=unflatten(economies, saved.part("economies"), whose),
        opened=saved.arrays["opened"],
        key=unflatten(key, saved.part("key"), whose),
        rounds=[jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(step)],
        measured=[{name: values[i] for name, values in saved.part("measured").items()} for i in range(step)],
    )


def _note(plan: MarketPlan, evaluate: Evaluate, seeds: int, seed: int) -> dict[str, Any]:
    """What identifies the plan of a checkpoint."""
    numbers = {
        name: getattr(plan, name)
        for name in ("rounds", "period", "max_births", "num_agents", "wealth", "chunks", "settling")
    }
    market = plan.market
    return {
        **numbers,
        "market": [market.env.name, market.mechanism.name, market.capacity, market.instances],
        "env": environment_digest(market.env),
        "stages": digest(flatten(plan.stages)),
        "evaluate": objects.name_of(evaluate),
        "terms": terms_of(plan.terms),
        "seeds": seeds,
        "seed": seed,
        "versions": versions(),
    }


def _result(plan: MarketPlan, history: _History) -> GrownMarket:
    return GrownMarket(
        plan=plan,
        opened=history.opened,
        rounds=jax.tree.map(_join, *history.rounds),
        measured={name: np.stack([m[name] for m in history.measured]) for name in history.measured[0]},
        economy=jax.device_get(history.economies),
    )


def _join(*parts: np.ndarray) -> np.ndarray:
    """Concatenate chunks of [seeds, rounds, ...], in 64 bits for sums."""
    joined = np.concatenate(parts, axis=1)
    return joined.astype(np.float64 if joined.dtype.kind == "f" else np.int64)


def terms_of(terms: Terms) -> dict[str, Any]:
    """Terms that are not None, by name, as JSON can represent them."""
    return {name: value for name, value in dataclasses.asdict(terms).items() if value is not None}

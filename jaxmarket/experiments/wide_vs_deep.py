"""Wide against deep markets: an environment with independent parts, sold as a whole or in parts.

The definitions are those of Sudhir and Tran-Thanh (2025). `SupplyChain` has L production lines. In the deep market an
agent (a line and an operation) buys the state, works on one piece and sells the next state. In the wide market every
piece is a good with a price and an owner, and all lines work in parallel. In both markets agents learn by the same
rule: they bid the revenue of past purchases. They are compared with PPO agents without a market: one job per step; one
job per line and step, with one logit for every combination of jobs; and the same with one logit for every job.

All conditions are evaluated by the return of one greedy episode from raw pieces, with frozen parameters and without
exploration.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import wide_market
from jaxmarket.environments.supply_chain import SupplyChain
from jaxmarket.experiments.report import (
    Estimate,
    ExperimentOptions,
    Report,
    ResultTable,
    Verdict,
    difference,
    interquartile_mean,
    tally,
)
from jaxmarket.experiments.settings import train_config
from jaxmarket.experiments.transfer_conditions import LEVEL
from jaxmarket.keys import key_of
from jaxmarket.learners import Hyperparameters
from jaxmarket.runs import files
from jaxmarket.training import divergence
from jaxmarket.training.choices import ProductHead
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.monolith import Monolith
from jaxmarket.training.trainable import Trainable
from jaxmarket.training.wide import StageBids, WideMarketTraining, WideSociety, Worker, effects, workers
from jaxmarket.types import Array, real
from jaxmarket.view import plotting, tables
from jaxmarket.wide_market import Additive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ARMS", "Curve", "learn", "points", "prepare", "quoting", "run", "tune"]

GAMMA = 0.9
_STEPS, _QUICK_STEPS = 102_400, 10_240  # environment steps of every condition
_LINES, _QUICK_LINES = (1, 2, 4, 8), (1, 2, 4)
_MOST_CHOICES = 1000  # combinations of jobs, PPO with one logit for each

_MARKET: dict[str, Any] = {"learner": "valuation", "hidden": (), "instances": 1, "horizon": 32, "minibatch": 32}
_PPO: dict[str, Any] = {
    "agent": "monolith",
    "hidden": (64,),
    "instances": 8,
    "horizon": 32,
    "minibatch": 64,
    "epochs": 4,
    "value_learning_rate": 3e-3,
}
ARMS: dict[str, dict[str, Any]] = {
    "deep": _MARKET | {"learning_rate": 1e-2, "exploration": 0.4, "exploration_final": 0.4, "trace_decay": 0.65},
    "wide": _MARKET
    | {"agent": "wide", "learning_rate": 1e-2, "exploration": 0.4, "exploration_final": 0.4, "trace_decay": 0.65},
    "PPO, serial": _PPO | {"learning_rate": 6e-3, "entropy": 0.2, "trace_decay": 0.8},
    "PPO, joint": _PPO | {"learning_rate": 6e-3, "entropy": 0.03, "trace_decay": 0.8},
    "PPO, factored": _PPO | {"learning_rate": 6e-3, "entropy": 0.1, "trace_decay": 0.8},
}
"""Settings of each condition, chosen by `tune`."""

_BASELINES = ("PPO, factored", "PPO, joint", "PPO, serial")

QUOTING = "wide, quoting"
"""The condition whose agents know the effects of their operations and do not learn."""


# --- agents that know their production functions and do not learn


@dataclasses.dataclass(frozen=True)
class _Expectations:
    """Bids of workers that expect to sell at the prices of the last round (the ``world``): R + γ (D f)ᵀ p.

    Their production functions are linear in the bundle, and the derivative is the map of stages to next stages
    (prices by backpropagation, Sudhir and Tran-Thanh 2025).
    """

    env: SupplyChain

    def __call__(self, worker: Worker, world: Array) -> Additive:
        after, earned = effects(self.env, jax.tree.map(lambda x: x[None], worker), self.env.default_params)
        prices = world.reshape(self.env.lines, self.env.stages)[worker.line]
        values = earned[0] + GAMMA * after[0] @ prices
        return StageBids(self.env)(worker.replace(values=values), None)


def quoting(wide: WideSociety, key: Array, rounds: int) -> Array:
    """Simulate a market whose agents know their production functions and do not learn.

    Args:
        wide: provides the production lines and the number of clones.
        key: a PRNG key; consumed.
        rounds: R.

    Returns:
        Prices f [R, G] of all goods, including those with zero supply. Initial prices are 0.
    """
    env = wide.env.env
    market = dataclasses.replace(wide.market(env.default_params), valuation=_Expectations(env))
    no_bids = jnp.zeros((env.lines * env.operations, env.stages), real())
    economy = wide.open(no_bids).replace(world=jnp.zeros(env.lines * env.stages, real()))

    def quote(economy: wide_market.WideMarketState, key: Array) -> tuple[wide_market.WideMarketState, Array]:
        economy, round_ = wide_market.step(market, key, economy)
        return economy.replace(world=round_.prices), round_.prices

    return jax.lax.scan(quote, economy, jax.random.split(key, rounds))[1]


def _expected(env: SupplyChain, prices: Array) -> Array:
    """The bids of the jobs at these prices f [G]: f [L * M, K]."""
    jobs = workers(env, jnp.zeros((env.lines * env.operations, env.stages), real()), clones=1)
    bids = jax.vmap(_Expectations(env), (0, None))(jobs, prices).values
    return bids.reshape(-1, env.lines, env.stages)[jnp.arange(jobs.line.size), jobs.line]


# --- training and evaluation


def _environment(arm: str, lines: int) -> SupplyChain:
    return SupplyChain(lines, joint=arm in ("PPO, joint", "PPO, factored"))


def prepare(arm: str, lines: int, steps: int, **settings: Any) -> tuple[TrainConfig, Trainable]:
    """Configuration and program of a condition that learns; ``settings`` override those of the condition."""
    env = _environment(arm, lines)
    config = train_config(env, gamma=GAMMA, steps=steps, log_every=1, **(ARMS[arm] | settings))
    if arm == "PPO, factored":
        return config, Monolith.of(config.settings, head=ProductHead(env.lines, env.operations))
    return config, config.settings.trainable


def points(steps: int, update: int) -> np.ndarray:
    """Times of evaluation in environment steps, geometrically spaced and rounded to whole updates: i [P]."""
    return np.unique(np.round(np.geomspace(1, steps // update, _EVALUATIONS)).astype(int)) * update


_EVALUATIONS = 96


@functools.partial(jax.jit, static_argnums=0)
def learn(program: Trainable, updates: Array, keys: Array, hyper: Hyperparameters) -> tuple[Array, Any]:
    """Train every seed with every setting, and evaluate at intervals.

    Args:
        program: the static part of training; a chunk has one update.
        updates: i32 [P], updates before each evaluation.
        keys: [S].
        hyper: settings, leaves [H].

    Returns:
        Return of a greedy episode, f [H, S, P], and the final states, leaves [H, S, ...].
    """
    player, env_params = program.player(greedy=True), program.env.default_params

    def update(state: Any, hyper: Hyperparameters) -> Any:
        return program.chunk(state, env_params, hyper)[0]

    def play(state: Any, key: Array) -> Array:
        returns = player.evaluate(state.learner.params, key, env_params, 1).returns[0]
        return divergence.valid(returns, state.learner.params)

    def train(key: Array, hyper: Hyperparameters) -> tuple[Array, Any]:
        key_init, key_play = jax.random.split(key)

        def evaluate(state: Any, ahead: tuple[Array, Array]) -> tuple[Any, Array]:
            count, words = ahead
            state = jax.lax.fori_loop(0, count, lambda _, state: update(state, hyper), state)
            return state, play(state, jax.random.wrap_key_data(words, impl=jax.random.key_impl(key)))

        words = jax.random.key_data(jax.random.split(key_play, updates.shape[0]))
        state, returns = jax.lax.scan(evaluate, program.init(key_init, env_params, hyper), (updates, words))
        return returns, state

    return jax.vmap(jax.vmap(train, (0, None)), (None, 0))(keys, hyper)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _quote(wide: WideSociety, rounds: int, keys: Array) -> tuple[Array, Array]:
    """The return of an episode at the prices of each round of quotes, f [S, R], and these prices f [S, R, G]."""

    def quote_and_play(key: Array) -> tuple[Array, Array]:
        key_quote, key_play = jax.random.split(key)
        prices = quoting(wide, key_quote, rounds)
        bids = jax.vmap(functools.partial(_expected, wide.env.env))(prices)
        play = functools.partial(wide.play, env_params=wide.env.default_params)
        return jax.vmap(play)(bids, jax.random.split(key_play, rounds)).returns[:, 0], prices

    return jax.vmap(quote_and_play)(keys)


@dataclasses.dataclass(frozen=True)
class Curve:
    """The measurements of a condition on a number of lines.

    Attributes:
        arm: name of the condition.
        lines: number of lines.
        steps: times of evaluation in environment steps; i [P].
        returns: of a greedy episode, f [S, P].
        own: the highest possible return of an episode with the condition's actions.
        serial: the highest possible return with one job per step.
        jobs: operations per environment step.
        prices: of wide markets, final ones f [S, G]; f [P, G] of one seed if agents do not learn.
        residual: of wide markets, the largest unexplained change of money over money moved, over seeds.
    """

    arm: str
    lines: int
    steps: np.ndarray
    returns: np.ndarray
    own: float
    serial: float
    jobs: int
    prices: np.ndarray | None = None
    residual: float | None = None

    def steps_to(self, most: float, level: float = LEVEL) -> np.ndarray:
        """Environment steps until an episode first reaches that share of ``most``: f [S], NaN if never."""
        reached = self.returns >= level * most
        return np.where(reached.any(1), self.steps[reached.argmax(1)], np.nan)

    @property
    def final(self) -> np.ndarray:
        """Final return: f [S]."""
        return self.returns[:, -1]

    def save(self) -> str:
        """Write as JSON."""
        values = dataclasses.asdict(self)
        return json.dumps({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()})

    @classmethod
    def read(cls, text: str) -> "Curve":
        """Read from JSON."""
        values = json.loads(text)
        arrays = {k: np.asarray(values[k]) for k in ("steps", "returns", "prices") if values[k] is not None}
        return cls(**(values | arrays))


def measure(arm: str, lines: int, seeds: int, seed: int, steps: int) -> Curve:
    """Train and evaluate a condition, with all seeds in one vmapped call."""
    env = _environment(arm, lines)
    serial = SupplyChain(lines).optimal_return()
    keys = jax.random.split(key_of(seed), seeds)
    if arm == QUOTING:
        wide: Any = prepare("wide", lines, steps)[1].player(greedy=True)
        rounds = 4 * env.stages
        returns, prices = jax.device_get(_quote(wide, rounds, keys))
        when, quotes = np.arange(1, rounds + 1), np.asarray(prices[0], np.float64)
        returns = np.asarray(returns, np.float64)
        return Curve(arm, lines, when, returns, lines * serial, serial, lines, quotes)
    config, learner = prepare(arm, lines, steps)
    update = config.settings.instances * config.settings.horizon
    times = points(steps, update)
    hyper = jax.tree.map(lambda x: x[None], config.settings.hyperparameters.as_arrays())
    returns, states = learn(learner, jnp.asarray(np.diff(times, prepend=0) // update), keys, hyper)
    returns = np.asarray(returns[0], np.float64)
    if arm != "wide":
        return Curve(arm, lines, times, returns, env.optimal_return(), serial, lines if env.joint else 1)
    states, training = jax.tree.map(lambda x: x[0], states), WideMarketTraining.of(config.settings)
    prices = np.asarray(states.market.prices[:, 0], np.float64)  # of one instance
    residual = float(jax.vmap(training.residual)(states).max())
    return Curve(arm, lines, times, returns, lines * serial, serial, lines, prices, residual)


def _cells(options: ExperimentOptions) -> list[tuple[str, int]]:
    """Conditions and numbers of lines, the slowest first."""
    cells = []
    for lines in sorted(_QUICK_LINES if options.quick else _LINES, reverse=True):
        for arm in (*ARMS, QUOTING):
            if options.quick and arm == QUOTING and lines < max(_QUICK_LINES):
                continue
            if arm == "PPO, joint" and SupplyChain(lines, joint=True).num_actions > _MOST_CHOICES:
                continue
            # On one line all action spaces are the same, and so are the agents.
            if lines == 1 and arm in ("PPO, joint", "PPO, factored"):
                continue
            if options.quick and lines == 2 and arm in _BASELINES:  # compiling takes most of the time
                continue
            cells.append((arm, lines))
    return cells


def _curves(options: ExperimentOptions) -> dict[tuple[str, int], Curve]:
    """All measurements, by condition and number of lines; those in ``options.folder`` are read."""
    cells, steps = _cells(options), _QUICK_STEPS if options.quick else _STEPS
    threads = min(2, os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
    found: dict[tuple[str, int], Curve] = {}

    def measured(cell: tuple[str, int]) -> Curve:
        path = options.folder / f"{cell[0].replace(', ', '-')}-{cell[1]}.json"
        if not path.exists():
            files.write_text(path, measure(*cell, options.seeds, options.seed, steps).save() + "\n")
        return Curve.read(path.read_text())

    with (
        tables.progress("wide against deep", unit="conditions", shown=options.progress) as show,
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
    ):
        waiting = {pool.submit(measured, cell): cell for cell in cells}
        for future in concurrent.futures.as_completed(waiting):
            arm, lines = waiting[future]
            found[arm, lines] = future.result()
            show(len(found), len(cells), f"{arm}, {lines} lines: return {found[arm, lines].final.mean():.1f}")
    for arm in _BASELINES:
        found[arm, 1] = dataclasses.replace(found["PPO, serial", 1], arm=arm)
    return found


# --- settings

_PPO_GRID = [
    {"learning_rate": lr, "entropy": e, "trace_decay": decay}
    for lr, e, decay in itertools.product((1e-3, 3e-3, 6e-3), (0.03, 0.1, 0.2), (0.8, 0.95))
]
GRIDS: dict[str, list[dict[str, float]]] = {
    "deep": [
        {"learning_rate": lr, "exploration": e, "exploration_final": e, "trace_decay": decay}
        for lr, e, decay in itertools.product((1e-3, 3e-3, 1e-2), (0.1, 0.2, 0.4), (0.65, 0.9))
    ],
    "PPO, serial": _PPO_GRID,
    "PPO, joint": _PPO_GRID,
    "PPO, factored": _PPO_GRID,
}
"""Eighteen settings per condition, all traced; the wide market uses the best setting of the deep one."""

_TUNING_LINES, _TUNING_SEED, _TUNING_SEEDS, _TUNING_STEPS = 4, 77, 8, 51_200


def tune() -> list[dict[str, Any]]:
    """Train with every setting of every grid on four lines, with separate seeds; one row per setting.

    The setting with the highest mean return over all evaluations is chosen; since these are more frequent early on, it
    rewards high returns that are reached early.
    """
    keys = jax.random.split(jax.random.key(_TUNING_SEED), _TUNING_SEEDS)
    rows = []
    for arm, grid in GRIDS.items():
        config, learner = prepare(arm, _TUNING_LINES, _TUNING_STEPS)
        update = config.settings.instances * config.settings.horizon
        times = points(_TUNING_STEPS, update)
        settings = [config.settings.hyperparameters.replace(**setting).as_arrays() for setting in grid]
        hyper = jax.tree.map(lambda *x: jnp.stack(x), *settings)
        returns, _ = learn(learner, jnp.asarray(np.diff(times, prepend=0) // update), keys, hyper)
        score = np.asarray(returns, np.float64).mean((1, 2)) / config.adapter.optimal_return()
        top = divergence.best(score)
        for i, setting in enumerate(grid):
            used = all(ARMS[arm][name] == value for name, value in setting.items())
            names = ("learning_rate", "entropy", "exploration", "trace_decay")
            row = {name.replace("_", " "): setting.get(name) for name in names}
            rows.append({"arm": arm, **row, "score": float(score[i]), "best": bool(i == top), "used": used})
    return rows


# --- verdicts

Cost = Callable[[Curve], np.ndarray]


def steps_to_own(curve: Curve) -> np.ndarray:
    """Environment steps to 90% of the own optimum: f [S]."""
    return curve.steps_to(curve.own)


def steps_to_serial(curve: Curve) -> np.ndarray:
    """Environment steps to 90% of the serial optimum: f [S]."""
    return curve.steps_to(curve.serial)


def operations_per_line(curve: Curve) -> np.ndarray:
    """Mean operations per line to 90% of the own optimum: f [S]."""
    return curve.steps_to(curve.own) * curve.jobs / curve.lines


def _least(curve: Curve, cost: Cost) -> tuple[np.ndarray, np.ndarray]:
    """A cost and which seeds reached the level, [S] each; others count as the whole run, a lower bound."""
    values = cost(curve)
    there = ~np.isnan(values)
    whole = cost(dataclasses.replace(curve, returns=np.repeat([[0.0], [np.inf]], [len(curve.steps) - 1, 1], 0).T))
    return np.where(there, values, whole), there


def sooner(claim: str, ours: list[Curve], theirs: list[Curve], cost: Cost) -> Verdict:
    """Whether one condition costs less than another on every number of lines: intervals of differences are below zero.

    Args:
        claim: what is claimed.
        ours: curves of the first condition, by increasing number of lines.
        theirs: curves of the second condition, by increasing number of lines.
        cost: lower is better; NaN for a seed that never reached the level. The claim is not confirmed if more than a
            quarter of the first condition's seeds are NaN.
    """
    said, held = [], []
    ratio = float("nan")
    for first, second in zip(ours, theirs, strict=True):
        (costs, reached), (other_costs, others_reached) = _least(first, cost), _least(second, cost)
        gap = difference(costs, other_costs)
        held.append(reached.mean() >= 0.75 and gap.high < 0)
        lower, higher = interquartile_mean(costs), interquartile_mean(other_costs)
        ratio = lower.value / higher.value
        evidence = f"{_count(lower)} ({tally(reached)}) against {_count(higher)} ({tally(others_reached)})"
        said.append(f"{first.lines} lines {evidence}, difference of the means {_count(gap)}")
    return Verdict.of(claim, bool(np.all(held)), ratio, "; ".join(said))


def _count(estimate: Estimate) -> str:
    return f"{estimate.value:,.0f} [{estimate.low:,.0f}, {estimate.high:,.0f}]"


def _verdicts(curves: dict[tuple[str, int], Curve]) -> Iterator[Verdict]:
    def of(arm: str) -> list[Curve]:
        return [
            curve for (name, lines), curve in sorted(curves.items(), key=lambda c: c[0][1]) if name == arm if lines > 1
        ]

    single, most = 1, max(lines for _, lines in curves)
    deep, wide = of("deep"), of("wide")
    alone, together = (_least(curves[arm, single], steps_to_own)[0] for arm in ("deep", "wide"))
    deep_one, wide_one, gap = interquartile_mean(alone), interquartile_mean(together), difference(together, alone)
    yield Verdict.of(
        "on one line, where both markets are the same, both need as many steps (control)",
        gap.low <= 0 <= gap.high, wide_one.value / deep_one.value,
        f"wide {_count(wide_one)} steps, deep {_count(deep_one)}; difference of the means {_count(gap)}",
    )  # fmt: skip
    finals = [(interquartile_mean(w.final), interquartile_mean(d.final)) for w, d in zip(wide, deep, strict=True)]
    leads = [difference(w.final, d.final) for w, d in zip(wide, deep, strict=True)]
    yield Verdict.of(
        "[per step] on two or more lines the wide market earns more (by construction up to once per line)",
        all(lead.low > 0 for lead in leads), finals[-1][0].value / finals[-1][1].value,
        "; ".join(
            f"{c.lines} lines {w.value:.1f}, deep {d.value:.1f}, difference of the means {lead}"
            for c, (w, d), lead in zip(wide, finals, leads, strict=True)
        ),
    )  # fmt: skip
    yield sooner(
        "the wide market reaches 90% of its own optimum in fewer steps than the deep one", wide, deep, steps_to_own
    )
    claim = "the wide market earns 90% of the deep one's optimum in fewer steps than the deep one"
    yield sooner(claim, wide, deep, steps_to_serial)
    claim = "the wide market reaches 90% of its own optimum with fewer operations per line than the deep one"
    yield sooner(claim, wide, deep, operations_per_line)
    for arm, grows in (("wide", False), ("deep", True)):
        costs = [_least(curves[arm, lines], steps_to_own)[0] for lines in (single, most)]
        first, last = map(interquartile_mean, costs)
        gap = difference(costs[1], costs[0])
        grown = gap.low > 0
        yield Verdict.of(
            f"the {arm} market's steps to its optimum {'grow' if grows else 'do not grow'} with the number of lines",
            grown == grows, last.value / first.value,
            f"{most} lines {_count(last)}, one line {_count(first)}; difference of the means {_count(gap)}",
        )  # fmt: skip
    for baseline in _BASELINES:
        theirs = of(baseline)
        ours = [curve for curve in wide if (baseline, curve.lines) in curves]
        claim = f"the wide market reaches 90% of its own optimum in fewer steps than {baseline.replace(', ', ' (')})"
        yield sooner(claim, ours, theirs, steps_to_own)
    error = np.abs(_prices(curves["wide", most]) / SupplyChain(most).worth(GAMMA) - 1)
    yield Verdict.of(
        "final prices of pieces are their discounted values, within 5%",
        bool(error.max() <= _NEAR), error.max(),
        f"largest error {error.max():.4f}, of {error[0].size} goods of all seeds; mean {error.mean():.4f}",
    )  # fmt: skip
    known, stages = [curves[arm, lines] for arm, lines in sorted(curves) if arm == QUOTING], SupplyChain(1).stages
    perfect = [bool((curve.returns[:, curve.steps >= stages] >= curve.own).all()) for curve in known]
    slowest = np.max([curve.steps_to(curve.own, 1.0).max() for curve in known])  # NaN: a seed never reached it
    yield Verdict.of(
        f"quoting agents reach their optimum after {stages} rounds, one per stage",
        all(perfect), slowest, f"{tally(np.array(perfect))} numbers of lines; slowest seed after {slowest:.0f}",
    )  # fmt: skip


_NEAR = 0.05


def _prices(curve: Curve) -> np.ndarray:
    """Prices of a wide market's goods: f [S or P, L, K]."""
    assert curve.prices is not None
    return curve.prices.reshape(len(curve.prices), curve.lines, -1)


# --- the report


def _over_reached(steps: np.ndarray) -> Estimate | None:
    """Interquartile mean over the seeds that reached the level; None if none did."""
    reached = steps[~np.isnan(steps)]
    return interquartile_mean(reached) if len(reached) else None


def _row(curve: Curve) -> dict[str, Any]:
    own, serial = steps_to_own(curve), steps_to_serial(curve)
    return {
        "lines": curve.lines,
        "arm": curve.arm,
        "of own optimum": interquartile_mean(curve.final / curve.own),
        "of parallel optimum": interquartile_mean(curve.final / (curve.serial * curve.lines)),
        "k steps": _over_reached(own / 1000),
        "reached": tally(~np.isnan(own)),
        "k operations per line": _over_reached(operations_per_line(curve) / 1000),
        "k steps to serial": _over_reached(serial / 1000),
    }


def _price_rows(wide: Curve, quotes: Curve) -> list[dict[str, Any]]:
    learned, quoted = _prices(wide), _prices(quotes)
    return [
        {
            "stage": stage,
            "worth": float(worth),
            "learned": interquartile_mean(learned[:, :, stage].mean(1)),
            "lowest": float(learned[:, :, stage].min()),
            "highest": float(learned[:, :, stage].max()),
            **{f"quoted, round {r}": float(quoted[r - 1, 0, stage]) for r in (1, 2, 3, 4, 8, 16)},
        }
        for stage, worth in enumerate(SupplyChain(wide.lines).worth(GAMMA))
    ]


_COLOURS = {"deep": "C0", "wide": "C1", QUOTING: "C8", "PPO, serial": "C2", "PPO, joint": "C3", "PPO, factored": "C4"}


def _draw_steps(curves: dict[tuple[str, int], Curve]) -> "Figure":
    """The cost of reaching 90% of the own optimum, against the number of lines."""
    fig, axes = plotting.figure(columns=2, width=5.4, height=4.2)
    lines = sorted({lines for _, lines in curves})
    for ax, cost, label in zip(
        axes, (steps_to_own, operations_per_line), ("environment steps", "operations per line"), strict=True
    ):
        for arm, colour in _COLOURS.items():
            shown = [curve for (name, _), curve in sorted(curves.items()) if name == arm]
            shown = [curve for curve in shown if (~np.isnan(cost(curve))).mean() >= 0.5]
            found = [interquartile_mean(_least(curve, cost)[0]) for curve in shown]
            if not found:
                continue
            value = np.array([f.value for f in found])
            error = np.array([[f.value - f.low for f in found], [f.high - f.value for f in found]])
            ax.errorbar([c.lines for c in shown], value, error, color=colour, marker="o", capsize=3, label=arm)
        ax.set(xscale="log", yscale="log", xlabel="lines", ylabel=f"{label} to {LEVEL:.0%} of the own optimum")
        ax.set_xticks(lines, [str(n) for n in lines])
        ax.minorticks_off()
    plotting.legend_below(fig)
    return fig


def _draw_learning(curves: dict[tuple[str, int], Curve], lines: int) -> "Figure":
    """Return against environment steps: median, with the interquartile range as a band."""
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415

    fig, axes = plotting.figure(columns=2, width=5.4, height=4.2)
    for ax, share in zip(axes, ("own", "parallel"), strict=True):
        for arm, colour in _COLOURS.items():
            curve = curves.get((arm, lines))
            if curve is None:
                continue
            most = curve.own if share == "own" else curve.serial * lines
            low, middle, high = np.percentile(curve.returns / most, (25, 50, 75), axis=0)
            plotting.draw_band(ax, curve.steps, middle, low, high, color=colour, label=arm)
        ax.set(xscale="log", xlabel="environment steps per seed", ylabel=f"return over the {share} optimum")
        ax.xaxis.set_major_formatter(EngFormatter())
        ax.set_ylim(-0.03, 1.05)
        ax.set_title(f"{lines} lines, greedy")
    plotting.legend_below(fig)
    return fig


def _draw_prices(wide: Curve, quotes: Curve) -> "Figure":
    """Prices along a line: learned, of all lines and seeds; and quoted, round by round."""
    from matplotlib import colormaps  # noqa: PLC0415

    fig, axes = plotting.figure(columns=2, width=5.4, height=4.0)
    worth, learned, quoted = SupplyChain(wide.lines).worth(GAMMA), _prices(wide), _prices(quotes)
    stages, every = np.arange(len(worth)), learned.reshape(-1, len(worth))
    for i, prices in enumerate(every):
        label = "learned, a line of a seed" if i == 0 else None
        axes[0].plot(stages, prices, "o", color="C1", alpha=0.3, markersize=8, label=label)
    axes[0].set_title(f"{wide.lines} lines, final prices")
    rounds = [1, 2, 3, 4, 5, 6, 8, 12, 16]
    for i, r in enumerate(rounds):
        shade = colormaps["viridis"](0.9 * (1 - i / (len(rounds) - 1)))
        axes[1].plot(stages, quoted[r - 1, 0], "o-", color=shade, label=f"quoted, round {r}")
    axes[1].set_title("quoted by agents that do not learn")
    for ax in axes:
        ax.plot(stages, worth, color="black", linewidth=1, linestyle="--", label="discounted value")
        ax.set(xlabel="stage of the piece", ylabel="price", xticks=stages)
        ax.set_ylim(-0.1, worth.max() * 1.08)
    plotting.legend_below(fig)
    return fig


def run(options: ExperimentOptions) -> Report:
    """Train every condition on every number of lines, except those in ``options.folder``, and test the claims."""
    curves = _curves(options)
    lines = sorted({lines for _, lines in curves})
    most, order = lines[-1], [*ARMS, QUOTING]
    wide, quotes = curves["wide", most], curves[QUOTING, most]
    steps = _QUICK_STEPS if options.quick else _STEPS
    tables = [
        ResultTable(
            "wide-vs-deep", f"{options.seeds} seeds, {steps / 1000:.0f} k environment steps per condition",
            [_row(curves[arm, n]) for n in lines for arm in order if (arm, n) in curves],
            "final return of a greedy episode over the own or the parallel optimum; interquartile means over seeds\n"
            "± the larger side of the 95% bootstrap interval · k steps: thousands of environment steps (rounds, for\n"
            "quoting agents) to 90% of the own optimum, over the seeds that reach it; operations per line until then\n"
            "to serial: to 90% of the highest return with one job per step\n"
            "on one line all PPO agents are the same",
        ),
        ResultTable(
            "prices", f"prices of pieces by stage, {most} lines, discount {GAMMA}", _price_rows(wide, quotes),
            "learned: mean over lines; lowest, highest: of all lines and seeds\n"
            "quoted: by agents that know the effects of their operations",
        ),
        ResultTable(
            "seeds", "every seed",
            [
                {
                    "lines": n, "arm": arm, "seed": seed, "return": float(curves[arm, n].final[seed]),
                    "steps": None if np.isnan(value) else float(value),
                }
                for n in lines for arm in order if (arm, n) in curves
                for seed, value in enumerate(steps_to_own(curves[arm, n]))
            ],
            shown=False,
        ),
    ]  # fmt: skip
    if options.full:
        note = "mean share of the optimum over all evaluations; the wide market uses the deep one's settings"
        tables.append(
            ResultTable("tuning", f"grids, {_TUNING_LINES} lines, {_TUNING_SEEDS} separate seeds", tune(), note)
        )
    env = SupplyChain(most)
    return Report(
        settings={
            "seeds": options.seeds,
            "quick": options.quick,
            "full": options.full,
            "discount": GAMMA,
            "stages": env.stages,
            "operations": env.operations,
            "episode": env.horizon,
            "steps": steps,
            "settings": ARMS,
            "conservation_residual": float(np.max([c.residual for c in curves.values() if c.residual is not None])),
        },
        tables=tables,
        verdicts=list(_verdicts(curves)),
        figures={
            "steps": _draw_steps(curves),
            "learning": _draw_learning(curves, most),
            "prices": _draw_prices(wide, quotes),
        },
    )

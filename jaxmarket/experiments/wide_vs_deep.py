"""Wide against deep markets: an environment with independent parts, sold as a whole or in parts.

The definitions are those of Sudhir and Tran-Thanh (2025); the environment is `SupplyChain`, on several numbers of
lines. The agents are those of `jaxmarket.runs.production_lines`.
"""

import functools
from typing import Any

import jax
import numpy as np

from jaxmarket.environments.supply_chain import SupplyChain
from jaxmarket.experiments.claims import Claim, at, every_seed, not_separated, separated, tally
from jaxmarket.experiments.conditions import Arrays, Compute, Scope
from jaxmarket.experiments.experiment import Experiment, Table, by_condition, column
from jaxmarket.experiments.results import Results
from jaxmarket.experiments.tuning import tuning_table
from jaxmarket.runs import production_lines
from jaxmarket.runs.estimates import interquartile_mean
from jaxmarket.runs.production_lines import EVALUATIONS, QUOTING, environment, prices_of, program_of
from jaxmarket.runs.sweeps import combinations
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.learning_curves import evaluation_times, learning_curves
from jaxmarket.training.pinned import train_config
from jaxmarket.types import Array
from jaxmarket.view import plotting

__all__ = ["ARMS", "BASELINES", "EXPERIMENT", "GAMMA", "GRIDS", "TUNING", "config", "learn", "steps_of"]

GAMMA = 0.9
LEVEL = 0.9  # the share of an optimum whose steps are measured
_NEAR = 0.05
_ROUNDS = (1, 2, 3, 4, 8, 16)  # of quotes that are shown
_MOST_CHOICES = 1000  # combinations of jobs, PPO with one logit for each

_MARKET: dict[str, Any] = {
    "learner": "valuation", "hidden": (), "instances": 1, "horizon": 32, "minibatch": 32,
    "learning_rate": 1e-2, "exploration": 0.4, "exploration_final": 0.4, "trace_decay": 0.65,
}  # fmt: skip
_PPO: dict[str, Any] = {
    "agent": "monolith", "hidden": (64,), "instances": 8, "horizon": 32, "minibatch": 64, "epochs": 4,
    "value_learning_rate": 3e-3, "learning_rate": 6e-3, "trace_decay": 0.8,
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    "deep": _MARKET,
    "wide": _MARKET | {"agent": "wide"},
    "PPO, serial": _PPO | {"entropy": 0.2},
    "PPO, joint": _PPO | {"entropy": 0.03},
    "PPO, factored": _PPO | {"entropy": 0.1},
}
"""Settings of each condition that learns, the best ones of `GRIDS`; see the table ``tuning`` of a ``--full`` run."""
BASELINES = ("PPO, serial", "PPO, joint", "PPO, factored")

_TRIED = {"learning_rate": (1e-3, 3e-3, 1e-2), "exploration": (0.1, 0.2, 0.4), "trace_decay": (0.65, 0.9)}
_TRIED_BY_PPO = {"learning_rate": (1e-3, 3e-3, 6e-3), "entropy": (0.03, 0.1, 0.2), "trace_decay": (0.8, 0.95)}
GRIDS: dict[str, list[dict[str, float]]] = {
    "deep": [setting | {"exploration_final": setting["exploration"]} for setting in combinations(_TRIED)],
    **dict.fromkeys(BASELINES, combinations(_TRIED_BY_PPO)),
}
"""Eighteen settings per condition, all traced; the wide market uses the best setting of the deep one."""
TUNING = {"lines": 4, "seed": 77, "seeds": 8, "steps": 51_200}


# --- conditions


def config(arm: str, lines: int, steps: int, **settings: Any) -> TrainConfig:
    """The configuration of a condition that learns; ``settings`` override those of the condition."""
    env = environment(arm, lines)
    return train_config(env, gamma=GAMMA, steps=steps, log_every=1, **(ARMS[arm] | settings))


def learn(arm: str, lines: int, steps: int, keys: Array) -> Arrays:
    """What `production_lines.learn` returns, or `production_lines.quote` for agents that do not learn."""
    if arm == QUOTING:
        return production_lines.quote(config("wide", lines, 1), keys, gamma=GAMMA)
    return production_lines.learn(arm, config(arm, lines, steps), keys)


def _tune(arm: str, keys: Array) -> Arrays:
    """The mean share of the optimum over all evaluations, which rewards high returns early: ``score`` f [H]."""
    base = config(arm, TUNING["lines"], TUNING["steps"])
    keys = jax.random.split(jax.random.key(TUNING["seed"]), TUNING["seeds"])
    settings = [base.settings.hyperparameters.replace(**setting) for setting in GRIDS[arm]]
    program = program_of(arm, base)
    returns, _ = learning_curves(program, evaluation_times(program.chunks, EVALUATIONS), keys, settings)
    return {"score": returns.mean((1, 2)) / base.adapter.optimal_return()}


def _lines(scope: Scope) -> tuple[int, ...]:
    return (1, 2, 4) if scope.quick else (1, 2, 4, 8)


def steps_of(scope: Scope) -> int:
    """Environment steps of every condition that learns."""
    return 10_240 if scope.quick else 102_400


def _measured(arm: str, lines: int, scope: Scope) -> bool:
    if arm in BASELINES[1:] and lines == 1:  # the same actions, and so the same agents, as serial PPO
        return False
    if scope.quick and (arm == QUOTING or (arm in BASELINES and lines > 1)):
        return lines == max(_lines(scope))  # compiling takes most of the time
    return arm != "PPO, joint" or SupplyChain(lines, joint=True).num_actions <= _MOST_CHOICES


def _cells(scope: Scope) -> dict[str, tuple[str, int]]:
    """Every arm on every number of lines by the name of the condition, the slowest first."""
    cells = [(arm, n) for n in reversed(_lines(scope)) for arm in (*ARMS, QUOTING)]
    return {f"{arm}, {n}": (arm, n) for arm, n in cells if _measured(arm, n, scope)}


def _conditions(scope: Scope) -> list[Compute]:
    learned = {name: functools.partial(learn, *cell, steps_of(scope)) for name, cell in _cells(scope).items()}
    tuned = {f"tuning, {arm}": functools.partial(_tune, arm) for arm in GRIDS if scope.full}
    return [Compute(name, function) for name, function in (learned | tuned).items()]


# --- claims


def _sooner(text: str, other: str, lines: int, cost: str = "steps", reached: str = "reached") -> Claim:
    """Whether a cost of the wide market is lower than that of another arm."""
    names = [f"{arm}, {lines}" for arm in ("wide", other)]
    rival = "the deep one" if other == "deep" else f"{other.replace(', ', ' (')})"
    return separated(
        f"{lines} lines: the wide market {text} than {rival}",
        *(at(name, cost) for name in names),
        lower=True,
        reached=at(names[0], reached),
        evidence=lambda results: "reached by " + " and ".join(tally(results.measure(n, reached)) for n in names),
    )


def _claims(scope: Scope) -> list[Claim]:
    _, *several = _lines(scope)
    most, stages, cells = max(_lines(scope)), SupplyChain(1).stages, _cells(scope)
    wide, wide_alone, deep, deep_alone = (at(f"{arm}, {n}", "steps") for arm in ("wide", "deep") for n in (most, 1))
    ninety, quoted = f"reaches {LEVEL:.0%} of its own optimum", [name for name in cells if name.startswith(QUOTING)]
    serial = f"earns {LEVEL:.0%} of the deep one's optimum in fewer steps", "deep"
    return [
        not_separated(
            "on one line, where both markets are the same, both need as many steps (control)", wide_alone, deep_alone
        ),
        *(
            separated(
                f"[per step] {n} lines: the wide market earns more than the deep one (by construction up to {n} times)",
                at(f"wide, {n}", "return"),
                at(f"deep, {n}", "return"),
            )
            for n in several
        ),
        *(_sooner(f"{ninety} in fewer steps", "deep", n) for n in several),
        *(_sooner(*serial, n, "steps to serial", "reached serial") for n in several),
        *(_sooner(f"{ninety} with fewer operations per line", "deep", n, "operations per line") for n in several),
        not_separated(f"from one line to {most} the wide market's steps do not grow", wide, wide_alone, higher=True),
        separated(f"from one line to {most} the deep market's steps grow", deep, deep_alone),
        *(_sooner(f"{ninety} in fewer steps", arm, n) for arm in BASELINES for n in several if f"{arm}, {n}" in cells),
        every_seed(
            f"{most} lines: final prices of pieces are their discounted values, within {_NEAR:.0%}",
            at(f"wide, {most}", "error of prices"),
            at_most=_NEAR,
        ),
        every_seed(
            f"quoting agents are at their optimum from round {stages} on, one round per stage, on all lines",
            lambda results: np.concatenate([results.measure(name, "perfect from") for name in quoted]),
            at_most=stages,
        ),
    ]


# --- tables and figures

_SHOWN = ("of own optimum", "of parallel optimum", "steps", "operations per line", "steps to serial")
_COLUMNS = {measure: measure for measure in _SHOWN} | {"reached": column("reached", tally)}


def _score(results: Results, name: str) -> float:
    _, arm, i = name.split("-")
    return float(results[f"tuning, {arm}"]["score"][int(i)])


def _with_prices(results: Results) -> tuple[Arrays, Arrays]:
    """The wide markets on most lines: with agents that learn, and with agents that quote."""
    learned, quoted = (results[f"{arm}, {max(_lines(results.scope))}"] for arm in ("wide", QUOTING))
    return learned, quoted


def _draw_steps(results: Results) -> Any:
    """The cost of reaching 90% of the own optimum, against the number of lines; where half of the seeds reach it."""
    fig, axes = plotting.figure(columns=2, width=5.4, height=4.6)
    reached = [name for name in _cells(results.scope) if results.measure(name, "reached").mean() >= 0.5]
    for ax, cost in zip(axes, ("steps", "operations per line"), strict=True):
        found = {name: interquartile_mean(results.measure(name, cost)) for name in reached}
        arms = {arm: [n for n in _lines(results.scope) if f"{arm}, {n}" in reached] for arm in (*ARMS, QUOTING)}
        plotting.draw_scaling(ax, {arm: {n: found[f"{arm}, {n}"] for n in shown} for arm, shown in arms.items()})
        ax.set(xlabel="lines", ylabel=f"{cost} to {LEVEL:.0%} of the own optimum")
    plotting.legend_below(fig)
    return fig


def _draw_learning(results: Results) -> Any:
    """Return against environment steps: median, with the interquartile range as a band."""
    fig, axes = plotting.figure(columns=2, width=5.4, height=4.2)
    most, colors = max(_lines(results.scope)), plotting.series_colors((*ARMS, QUOTING))
    found = {arm: results[f"{arm}, {most}"] for arm in (*ARMS, QUOTING) if f"{arm}, {most}" in results}
    for ax, share in zip(axes, ("own", "parallel"), strict=True):
        optima = {arm: each["own"] if share == "own" else each["serial"] * most for arm, each in found.items()}
        curves = {arm: (each["steps"], each["returns"].T / optima[arm]) for arm, each in found.items()}
        plotting.draw_curves(ax, curves, colors, title=f"{most} lines, greedy")
        ax.set(ylabel=f"return over the {share} optimum", ylim=(-0.03, 1.05))
    plotting.legend_below(fig)
    return fig


def _draw_prices(results: Results) -> Any:
    """Prices along a line: learned, of all lines and seeds; and quoted, round by round."""
    fig, (left, right) = plotting.figure(columns=2, width=5.4, height=4.0)
    learned, quoted = map(prices_of, _with_prices(results))
    worth = SupplyChain(1).worth(GAMMA)
    plotting.draw_stage_prices(left, {"learned, a line of a seed": learned}, worth)
    left.set_title(f"{max(_lines(results.scope))} lines, final prices")
    plotting.draw_stage_prices(right, {f"quoted, round {r}": quoted[r - 1, 0] for r in _ROUNDS}, worth)
    right.set_title("quoted by agents that do not learn")
    plotting.legend_below(fig)
    return fig


EXPERIMENT = Experiment(
    name="wide-vs-deep",
    shows="parallel production lines: every piece is a good with a price, or the whole state is sold",
    source="Sudhir and Tran-Thanh (2025), Definitions 2.1 and 2.2",
    conditions=_conditions,
    measures=production_lines.measures(LEVEL, GAMMA),
    claims=_claims,
    tables=[
        Table(
            "wide-vs-deep",
            lambda results: f"{results.scope.seeds} seeds, {steps_of(results.scope):,} environment steps per condition",
            lambda results: by_condition(_COLUMNS, names=[*_cells(results.scope)])(results),
            "return of a greedy episode over the own or the parallel optimum; steps (rounds, for quoting agents) and\n"
            "operations per line to 90% of the own optimum; steps to 90% of the highest return with one job per step:\n"
            "the whole run for seeds that never get there; on one line all PPO agents are the same",
        ),
        Table(
            "prices",
            lambda results: f"prices of pieces by stage, {max(_lines(results.scope))} lines, discount {GAMMA}",
            lambda results: production_lines.price_rows(*_with_prices(results), GAMMA, _ROUNDS),
            "learned: mean over lines; lowest, highest: of all lines and seeds\n"
            "quoted: by agents that know the effects of their operations",
        ),
        tuning_table(
            f"grids, {TUNING['lines']} lines, {TUNING['seeds']} separate seeds",
            GRIDS,
            {"score": _score},
            lambda row: -row["score"] if np.isfinite(row["score"]) else None,
            "mean share of the optimum over all evaluations; the wide market uses the deep one's settings",
        ),
    ],
    figures={"steps": _draw_steps, "learning": _draw_learning, "prices": _draw_prices},
    facts=lambda results: {
        "conservation_residual": max(float(each["residual"]) for each in results.values() if "residual" in each)
    },
)

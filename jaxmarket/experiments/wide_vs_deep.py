"""Wide against deep markets: an environment with independent parts, sold as a whole or in parts.

The definitions are those of Sudhir and Tran-Thanh (2025). The conditions are those of
`jaxmarket.experiments.production_lines`, each on several numbers of lines. All are evaluated by the return of one
greedy episode from raw pieces, with frozen parameters and without exploration.
"""

import functools
from typing import Any

import numpy as np

from jaxmarket.environments.supply_chain import SupplyChain
from jaxmarket.experiments.claims import Claim, at, every_seed, not_separated, separated, tally
from jaxmarket.experiments.conditions import Arrays, Compute, Scope
from jaxmarket.experiments.experiment import Experiment, Table
from jaxmarket.experiments.production_lines import ARMS, BASELINES, GAMMA, GRIDS, QUOTING, TUNING, learn, quote, tune
from jaxmarket.experiments.results import Measure, Results
from jaxmarket.runs.curves import first_reach, lower_bound
from jaxmarket.runs.estimates import interquartile_mean
from jaxmarket.training import divergence
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT", "steps_of"]

LEVEL = 0.9  # the share of an optimum whose steps are measured
_STEPS, _QUICK_STEPS = 102_400, 10_240  # environment steps of every condition
_LINES, _QUICK_LINES = (1, 2, 4, 8), (1, 2, 4)
_MOST_CHOICES = 1000  # combinations of jobs, PPO with one logit for each
_NEAR = 0.05

_COLOURS = {"deep": "C0", "wide": "C1", QUOTING: "C8", "PPO, serial": "C2", "PPO, joint": "C3", "PPO, factored": "C4"}


# --- conditions


def _lines(scope: Scope) -> tuple[int, ...]:
    return _QUICK_LINES if scope.quick else _LINES


def steps_of(scope: Scope) -> int:
    """Environment steps of every condition that learns."""
    return _QUICK_STEPS if scope.quick else _STEPS


def _name(arm: str, lines: int) -> str:
    """The condition that measures an arm. On one line all action spaces of PPO, and so its agents, are the same."""
    return f"{'PPO, serial' if lines == 1 and arm in BASELINES else arm}, {lines}"


def _measured(arm: str, lines: int, scope: Scope) -> bool:
    if scope.quick and (arm == QUOTING or (arm in BASELINES and lines > 1)):
        return lines == max(_QUICK_LINES)  # compiling takes most of the time
    return arm != "PPO, joint" or SupplyChain(lines, joint=True).num_actions <= _MOST_CHOICES


def _cells(scope: Scope) -> list[tuple[str, int]]:
    """Arms and numbers of lines, the rows of the main table."""
    return [(arm, n) for n in _lines(scope) for arm in (*ARMS, QUOTING) if _measured(arm, n, scope)]


def _conditions(scope: Scope) -> list[Compute]:
    """Every arm on every number of lines, the slowest first."""
    wanted = {}
    for arm, lines in sorted(_cells(scope), key=lambda cell: -cell[1]):
        function = quote if arm == QUOTING else functools.partial(learn, arm)
        wanted.setdefault(_name(arm, lines), functools.partial(function, lines, steps_of(scope)))
    if scope.full:
        wanted |= {f"tuning, {arm}": functools.partial(tune, arm) for arm in GRIDS}
    return [Compute(name, function) for name, function in wanted.items()]


# --- measures and claims


def _reach(most: str) -> Measure:
    """Environment steps to 90% of an optimum; NaN for seeds that never get there."""
    return lambda found: first_reach(found["returns"].T, LEVEL * found[most], found["steps"])


def _least(most: str) -> Measure:
    """As `_reach`, with the whole run for seeds that never get there."""
    return lambda found: lower_bound(_reach(most)(found), found["steps"][-1])


def _prices(found: Arrays) -> np.ndarray:
    """Prices of a wide market's goods: f [S or P, L, K]."""
    return found["prices"].reshape(len(found["prices"]), int(found["lines"]), -1)


def _error(found: Arrays) -> np.ndarray:
    return np.abs(_prices(found) / SupplyChain(int(found["lines"])).worth(GAMMA) - 1).max((1, 2))


MEASURES: dict[str, Measure] = {
    "return": lambda found: found["returns"][:, -1],
    "of own optimum": lambda found: found["returns"][:, -1] / found["own"],
    "of parallel optimum": lambda found: found["returns"][:, -1] / (found["serial"] * found["lines"]),
    "steps": _least("own"),
    "reached": lambda found: ~np.isnan(_reach("own")(found)),
    "operations per line": lambda found: _least("own")(found) * found["jobs"] / found["lines"],
    "steps to serial": _least("serial"),
    "reached serial": lambda found: ~np.isnan(_reach("serial")(found)),
    "perfect from": lambda found: first_reach(found["returns"].T, found["own"], found["steps"], lasting=True),
    "error of prices": _error,
}
"""Measures of one condition; ``steps`` are those to 90% of the own optimum."""


def _sooner(text: str, other: str, lines: int, cost: str = "steps", reached: str = "reached") -> Claim:
    """Whether a cost of the wide market is lower than that of another arm."""
    names = [_name(arm, lines) for arm in ("wide", other)]
    rival = "the deep one" if other == "deep" else f"{other.replace(', ', ' (')})"
    return separated(
        f"{lines} lines: the wide market {text} than {rival}",
        *(at(name, cost) for name in names),
        lower=True,
        reached=at(names[0], reached),
        evidence=lambda results: "reached by " + " and ".join(tally(results.measure(n, reached)) for n in names),
    )


def _claims(scope: Scope) -> list[Claim]:
    (most, several), stages = (_lines(scope)[-1], _lines(scope)[1:]), SupplyChain(1).stages
    wide, deep, ninety = _name("wide", most), _name("deep", most), f"reaches {LEVEL:.0%} of its own optimum"
    quoted = [_name(arm, n) for arm, n in _cells(scope) if arm == QUOTING]
    return [
        not_separated(
            "on one line, where both markets are the same, both need as many steps (control)",
            at("wide, 1", "steps"),
            at("deep, 1", "steps"),
        ),
        *(
            separated(
                f"[per step] {n} lines: the wide market earns more than the deep one (by construction up to {n} times)",
                at(_name("wide", n), "return"),
                at(_name("deep", n), "return"),
            )
            for n in several
        ),
        *(_sooner(f"{ninety} in fewer steps", "deep", n) for n in several),
        *(_sooner(f"earns {LEVEL:.0%} of the deep one's optimum in fewer steps", "deep", n, *_SERIAL) for n in several),
        *(_sooner(f"{ninety} with fewer operations per line", "deep", n, "operations per line") for n in several),
        not_separated(
            f"from one line to {most} the wide market's steps do not grow",
            at(wide, "steps"),
            at("wide, 1", "steps"),
            higher=True,
        ),
        separated(f"from one line to {most} the deep market's steps grow", at(deep, "steps"), at("deep, 1", "steps")),
        *(
            _sooner(f"{ninety} in fewer steps", arm, n)
            for arm in BASELINES
            for n in several
            if _measured(arm, n, scope)
        ),
        every_seed(
            f"{most} lines: final prices of pieces are their discounted values, within {_NEAR:.0%}",
            at(wide, "error of prices"),
            at_most=_NEAR,
        ),
        every_seed(
            f"quoting agents are at their optimum from round {stages} on, one round per stage, on all lines",
            lambda results: np.concatenate([results.measure(name, "perfect from") for name in quoted]),
            at_most=stages,
        ),
    ]


_SERIAL = ("steps to serial", "reached serial")


# --- tables and figures


def _row(results: Results, arm: str, lines: int) -> dict[str, Any]:
    def middle(measure: str, unit: float = 1) -> Any:
        return interquartile_mean(results.measure(_name(arm, lines), measure) / unit)

    return {
        "lines": lines,
        "arm": arm,
        "of own optimum": middle("of own optimum"),
        "of parallel optimum": middle("of parallel optimum"),
        "k steps": middle("steps", 1000),
        "reached": tally(results.measure(_name(arm, lines), "reached")),
        "k operations per line": middle("operations per line", 1000),
        "k steps to serial": middle("steps to serial", 1000),
    }


def _seed_rows(results: Results) -> list[dict[str, Any]]:
    return [
        {"lines": n, "arm": arm, "seed": seed, "return": float(final), "steps": float(steps) if reached else None}
        for arm, n in _cells(results.scope)
        for seed, (final, steps, reached) in enumerate(
            zip(*(results.measure(_name(arm, n), each) for each in ("return", "steps", "reached")), strict=True)
        )
    ]


def _tuning_rows(results: Results) -> list[dict[str, Any]]:
    rows, names = [], ("learning_rate", "entropy", "exploration", "trace_decay")
    for arm, grid in GRIDS.items() if results.scope.full else ():
        score = results[f"tuning, {arm}"]["score"]
        top = divergence.best(score)
        for i, setting in enumerate(grid):
            used = all(ARMS[arm][name] == value for name, value in setting.items())
            row = {name.replace("_", " "): setting.get(name) for name in names}
            rows.append({"arm": arm, **row, "score": float(score[i]), "best": i == top, "used": used})
    return rows


def _most(results: Results) -> tuple[int, Arrays, Arrays]:
    """The largest number of lines, and the wide market and quoting agents on it."""
    most = _lines(results.scope)[-1]
    return most, results[_name("wide", most)], results[_name(QUOTING, most)]


def _price_rows(results: Results) -> list[dict[str, Any]]:
    most, wide, quotes = _most(results)
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
        for stage, worth in enumerate(SupplyChain(most).worth(GAMMA))
    ]


def _draw_steps(results: Results) -> Any:
    """The cost of reaching 90% of the own optimum, against the number of lines; where half of the seeds reach it."""
    fig, axes = plotting.figure(columns=2, width=5.4, height=4.2)
    cells, lines = _cells(results.scope), _lines(results.scope)
    for ax, cost in zip(axes, ("steps", "operations per line"), strict=True):
        for arm, colour in _COLOURS.items():
            shown = [n for name, n in cells if name == arm if results.measure(_name(arm, n), "reached").mean() >= 0.5]
            if not shown:
                continue
            found = [interquartile_mean(results.measure(_name(arm, n), cost)) for n in shown]
            plotting.draw_intervals(ax, shown, found, color=colour, label=arm)
        label = "environment steps" if cost == "steps" else cost
        ax.set(xscale="log", yscale="log", xlabel="lines", ylabel=f"{label} to {LEVEL:.0%} of the own optimum")
        ax.set_xticks(lines, [str(n) for n in lines])
        ax.minorticks_off()
    plotting.legend_below(fig)
    return fig


def _draw_learning(results: Results) -> Any:
    """Return against environment steps: median, with the interquartile range as a band."""
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415

    fig, axes = plotting.figure(columns=2, width=5.4, height=4.2)
    lines = _lines(results.scope)[-1]
    for ax, share in zip(axes, ("own", "parallel"), strict=True):
        for arm, colour in _COLOURS.items():
            if _measured(arm, lines, results.scope):
                found = results[_name(arm, lines)]
                most = found["own"] if share == "own" else found["serial"] * lines
                plotting.draw_quartiles(ax, found["steps"], found["returns"].T / most, color=colour, label=arm)
        ax.set(xscale="log", xlabel="environment steps per seed", ylabel=f"return over the {share} optimum")
        ax.xaxis.set_major_formatter(EngFormatter())
        ax.set_ylim(-0.03, 1.05)
        ax.set_title(f"{lines} lines, greedy")
    plotting.legend_below(fig)
    return fig


def _draw_prices(results: Results) -> Any:
    """Prices along a line: learned, of all lines and seeds; and quoted, round by round."""
    from matplotlib import colormaps  # noqa: PLC0415

    fig, axes = plotting.figure(columns=2, width=5.4, height=4.0)
    most, wide, quotes = _most(results)
    worth, quoted = SupplyChain(most).worth(GAMMA), _prices(quotes)
    stages, every = np.arange(len(worth)), _prices(wide).reshape(-1, len(worth))
    for i, prices in enumerate(every):
        label = "learned, a line of a seed" if i == 0 else None
        axes[0].plot(stages, prices, "o", color="C1", alpha=0.3, markersize=8, label=label)
    axes[0].set_title(f"{most} lines, final prices")
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


EXPERIMENT = Experiment(
    name="wide-vs-deep",
    shows="parallel production lines: every piece is a good with a price, or the whole state is sold",
    source="Sudhir and Tran-Thanh (2025), Definitions 2.1 and 2.2",
    conditions=_conditions,
    measures=MEASURES,
    claims=_claims,
    tables=[
        Table(
            "wide-vs-deep",
            lambda results: (
                f"{results.scope.seeds} seeds, {steps_of(results.scope) / 1000:.0f} k environment steps per condition"
            ),
            lambda results: [_row(results, arm, n) for arm, n in _cells(results.scope)],
            "final return of a greedy episode over the own or the parallel optimum; interquartile means over seeds\n"
            "± the larger side of the 95% bootstrap interval · k steps: thousands of environment steps (rounds, for\n"
            "quoting agents) to 90% of the own optimum; operations per line until then; to serial: to 90% of the\n"
            "highest return with one job per step; seeds that never get there count as the whole run\n"
            "on one line all PPO agents are the same",
        ),
        Table(
            "prices",
            lambda results: f"prices of pieces by stage, {_lines(results.scope)[-1]} lines, discount {GAMMA}",
            _price_rows,
            "learned: mean over lines; lowest, highest: of all lines and seeds\n"
            "quoted: by agents that know the effects of their operations",
        ),
        Table("seeds", "every seed", _seed_rows, shown=False),
        Table(
            "tuning",
            f"grids, {TUNING['lines']} lines, {TUNING['seeds']} separate seeds",
            _tuning_rows,
            "mean share of the optimum over all evaluations; the wide market uses the deep one's settings",
        ),
    ],
    figures={"steps": _draw_steps, "learning": _draw_learning, "prices": _draw_prices},
    facts=lambda results: {
        "discount": GAMMA,
        "steps": steps_of(results.scope),
        "settings": ARMS,
        "conservation_residual": max(float(each["residual"]) for each in results.values() if "residual" in each),
    },
)

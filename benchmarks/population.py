"""Speed of deep markets (bids, auctions, payments, births and deaths) as a function of their capacity."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import jax

from benchmarks.timing import Report, exponent, measure
from jaxmarket import deep_market
from jaxmarket.deep_market import (
    BidTables,
    ClassifierRules,
    DeepMarket,
    DeepMarketState,
    GuardedPrograms,
    Representation,
    RoundSummary,
    Terms,
)
from jaxmarket.environments import make
from jaxmarket.types import Array
from jaxmarket.view.plotting import COLORS, figure, legend_below
from jaxmarket.view.tables import progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["churn", "draw", "representations", "run", "summarize", "sweep"]

_INSTANCES, _PERIOD, _MAX_BIRTHS = 256, 10, 16
_TERMS = Terms(
    endowment=256.0, p_offspring=0.5, wealth_tax=1e-3, compute_tax=1e-3, max_idle_steps=40, replace_poorest=True
)


def representations() -> dict[str, tuple[str, Representation]]:
    """The measured environments and representations by name."""
    return {
        "rules": ("Multiplexer6-v0", ClassifierRules(6, 2)),
        "programs": ("BlocksWorld3-v0", GuardedPrograms(13, 6)),
        "tables": ("Chain-v0", BidTables(6, 2)),
    }


def churn(
    market: DeepMarket, rounds: int, key: Array, economy: DeepMarketState
) -> tuple[DeepMarketState, RoundSummary]:
    """Run ``rounds`` rounds of ten steps, each followed by up to sixteen births."""
    return deep_market.run(
        market, key, economy, market.env.default_params, _TERMS, rounds=rounds, period=_PERIOD, max_births=_MAX_BIRTHS
    )


def _economy(market: DeepMarket) -> DeepMarketState:
    env_params = market.env.default_params
    return jax.jit(lambda key: deep_market.init(market, key, env_params, wealth=256.0))(jax.random.key(0))


def sweep(report: Report, name: str, capacities: Iterable[int], work: int = 10_000_000) -> Iterator[int]:
    """Measure several capacities of a representation, and add a row for each; yields a capacity before it is measured.

    Args:
        report: the report to extend.
        name: one of `representations`.
        capacities: in ascending order.
        work: agents × instances × steps per call; a call runs at least one round.
    """
    env_id, representation = representations()[name]
    rows = report.tables.setdefault(f"{name} on {env_id}", [])
    for capacity in capacities:
        yield capacity
        market = DeepMarket(make(env_id)[0], representation, capacity, _INSTANCES)
        economy = _economy(market)
        rounds = max(1, work // (capacity * _INSTANCES * _PERIOD))
        steps = rounds * _PERIOD

        def run_rounds(
            key: Array, economy: DeepMarketState, market: DeepMarket = market, rounds: int = rounds
        ) -> tuple:
            return churn(market, rounds, key, economy)

        results: dict[str, tuple] = {}
        timing = measure({"": (run_rounds, (jax.random.key(1), economy))}, results=results)[""]
        _, history = results[""]
        report.timings[f"{capacity} {name}"] = timing.raw()
        seconds = timing.median / steps
        rows.append(
            {
                "capacity": capacity,
                "µs per step": 1e6 * seconds,
                "M agents × instances × steps/s": capacity * _INSTANCES / seconds / 1e6,
                "M env steps/s": _INSTANCES / seconds / 1e6,
                "births per round": float((history.births.ident >= 0).sum() / rounds),
                "deaths per round": float(history.births.deaths.sum() / rounds),
                "compile s": timing.compile_seconds,
            }
        )


def summarize(report: Report, names: Iterable[str]) -> None:
    """Add the headline numbers of the measured representations, and the figure."""
    for name in names:
        rows = report.tables[f"{name} on {representations()[name][0]}"]
        large = [row for row in rows if row["capacity"] >= 512]
        sizes, times = [row["capacity"] for row in large], [row["µs per step"] for row in large]
        report.headline[f"exponent_{name}"] = exponent(sizes, times) if len(large) > 1 else None
        for row in rows:
            if row["capacity"] == 4096:
                report.headline[f"{name}_4096_agents_steps_per_second"] = 1e6 * row["M agents × instances × steps/s"]
    report.figure = draw(report)


def run(quick: bool = False) -> Report:
    """Measure several capacities for each representation, with 256 instances."""
    report = Report("population")
    capacities = (64, 512, 4096) if quick else tuple(2**k for k in range(4, 14))
    wanted = ("rules",) if quick else tuple(representations())
    todo, done = len(capacities) * len(wanted), 0
    with progress("population", unit="sizes") as show:
        for name in wanted:
            for capacity in sweep(report, name, capacities, 2_000_000 if quick else 10_000_000):
                show(done, todo, f"{capacity} agents, {name}")
                done += 1
        show(todo, todo)
    summarize(report, wanted)
    report.notes.append(
        f"{_INSTANCES} instances with one table of wealth; a step is an auction, its payments and an environment step "
        f"in each; up to {_MAX_BIRTHS} births after every {_PERIOD} steps; one program per capacity, never traced again"
    )
    report.notes.append("exponents: of time per step with capacity, from 512 agents on")
    return report


def draw(report: Report) -> "Figure":
    """Draw the time per step over the capacity, and lines of proportional growth."""
    fig, (left, right) = figure(2, width=4.6, height=3.4)
    for color, (title, rows) in zip(COLORS, report.tables.items(), strict=False):
        sizes = [row["capacity"] for row in rows]
        times = [row["µs per step"] for row in rows]
        left.loglog(sizes, times, "o-", color=color, label=title)
        left.loglog(sizes, [times[-1] / sizes[-1] * size for size in sizes], color=color, linestyle=":", linewidth=1)
        right.semilogx(sizes, [row["M agents × instances × steps/s"] for row in rows], "o-", color=color, label=title)
    left.set(xlabel="capacity", ylabel="µs per step of 256 instances", title="dotted: proportional growth")
    right.set(xlabel="capacity", ylabel="M agents × instances × steps/s", ylim=(0, None))
    legend_below(fig)
    return fig

"""A market with memory: agents read and write one bit (after Kwee, Hutter and Schmidhuber 2001).

The baseline is the same market without the bit, on the same seeds; its best possible return is known exactly.

- MemoryChain (bsuite): a context of -1 or 1 is observed in the first two of six steps, and the last action must name
  it. A correct answer earns 1, a wrong one -1.
- Woods101: food is three steps away from each of six cells, two of which look alike.

All evaluations are exact, from every first state of frozen populations (`deep_market.evaluation.every_episode`), so the
bounds hold for every seed and not only on average.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments.bsuite.memory_chain import MemoryChain

from jaxmarket.deep_market import ClassifierRules, DeepMarket, Population, Terms
from jaxmarket.deep_market.evaluation import every_episode, first_states
from jaxmarket.environments.adapter import Adapter, adapt
from jaxmarket.environments.mazes import COMPASS, DIRECTIONS, Maze, Woods101
from jaxmarket.environments.memory import Memory
from jaxmarket.experiments.claims import Claim, at, every_seed, majority, share_of_seeds, tally, within
from jaxmarket.experiments.conditions import Condition, Grow, Scope
from jaxmarket.experiments.experiment import Experiment, Table, by_condition, column
from jaxmarket.experiments.populations import life, market_facts, measured
from jaxmarket.experiments.results import Results
from jaxmarket.keys import key_for, key_of
from jaxmarket.runs.curves import first_reach
from jaxmarket.runs.estimates import mean
from jaxmarket.runs.populations import GrownMarket, MarketPlan
from jaxmarket.types import Array
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT", "WORLDS", "plans", "returns", "solved"]

WORLDS = ("MemoryChain", "Woods101")
_CONDITIONS = tuple(f"{world}: {name}" for world in WORLDS for name in ("memory", "no memory"))
_CHAIN = MemoryChain()  # one object, so that markets with it are equal
_ROUNDING = 1e-6  # of a mean return


def returns(market: DeepMarket, key: Array, population: Population, terms: Terms) -> dict[str, Array]:
    """Mean return over all first states: f []."""
    return {"return": every_episode(market, key, population, terms).reward.sum(0).mean()}


def solved(values: np.ndarray) -> np.ndarray:
    """Which seeds are correct from every first state: bool [...], of mean returns f [...]."""
    return values > 1 - _ROUNDING


def _bound(condition: str) -> float:
    """The highest mean return of a policy without memory in the environment of a condition."""
    return 0.0 if condition.startswith("MemoryChain") else Woods101().memoryless_return()


def plans(world: str, quick: bool) -> dict[str, MarketPlan]:
    """The market with one bit of memory, and the same market with ``no memory``."""
    rates: dict[str, Any]
    if world == "MemoryChain":
        bare, width, capacity, living, wealth, wildcards = adapt(_CHAIN), 3, 64, 8, 5.0, 0.3
        rates = {"birth_rate": 0.3, "p_offspring": 0.5}
    else:
        bare, width, capacity, living, wealth, wildcards = adapt(Woods101()), 2 * len(COMPASS), 128, 64, 8.0, 0.1
        rates = {"birth_rate": 0.5, "p_offspring": 0.3, "exploration": 0.02}
    terms = Terms(wealth_tax=1e-3, endowment=wealth, inheritance=0.1, replace_poorest=True, **rates)
    rounds = 3000 if quick else 16000

    def plan(env: Adapter, bits: int) -> MarketPlan:
        rules = ClassifierRules(bits, env.num_actions, coefficient=0.4, wildcards=wildcards)
        market = DeepMarket(env, rules, capacity, 8)
        return MarketPlan(
            market, terms, rounds, period=4, max_births=2, num_agents=living, wealth=wealth, chunks=20, settling=2
        )

    return {"memory": plan(adapt(Memory(bare, 1)), width + 1), "no memory": plan(bare, width)}


def _conditions(scope: Scope) -> list[Condition]:
    return [
        Grow(f"{world}: {name}", plan, returns) for world in WORLDS for name, plan in plans(world, scope.quick).items()
    ]


MEASURES = {
    "return": measured("return"),
    "highest": lambda grown: grown.measured["return"].max(0),
    "first solved": lambda grown: first_reach(grown.measured["return"], 1 - _ROUNDING, grown.plan.steps),
    "while learning": GrownMarket.late_returns,
}


def _claims(scope: Scope) -> list[Claim]:
    def rounded(name: str) -> Any:
        return lambda results: results.measure(name, "return").round(5)  # equal returns are ties

    def solved_seeds(results: Results, name: str) -> str:
        end, ever = solved(results.measure(name, "return")), np.isfinite(results.measure(name, "first solved"))
        return f"all first states are solved on {tally(end)} seeds at the end, at any measurement on {tally(ever)}"

    claims, most = [], majority(scope.seeds)
    for world in WORLDS:
        memory, without, bound = f"{world}: memory", f"{world}: no memory", _bound(world)
        evidence = functools.partial(solved_seeds, name=memory)
        if world == "MemoryChain":
            text = "[MemoryChain] with one bit the mean return is at least .9"
            claims.append(within(text, at(memory, "return"), at_least=0.9, estimate=mean, evidence=evidence))
        else:
            text, least = f"[Woods101] with one bit the return is above {bound:.4f}, on most seeds", bound + _ROUNDING
            claims.append(share_of_seeds(text, at(memory, "return"), at_least=least, share=most, evidence=evidence))
        text = f"[{world}] without memory the return never exceeds {bound:.4f}"
        claims.append(every_seed(text, at(without, "highest"), at_most=bound + _ROUNDING))
        text = f"[{world}] the market with a bit has a higher return than without, on most seeds"
        claims.append(share_of_seeds(text, rounded(memory), above=rounded(without), share=most))
    return claims


# --- tables and figures


def _median(first: np.ndarray) -> int | None:
    found = first[np.isfinite(first)]
    return int(np.median(found)) if found.size else None


_COLUMNS = {
    "return": column("return", np.mean),
    "least": column("return", np.min),
    "most": column("return", np.max),
    "bound": lambda _, name: _bound(name) if name.endswith("no memory") else 1.0,
    "solved": column("return", lambda final: tally(solved(final))),
    "above bound": lambda results, name: tally(results.measure(name, "return") > _bound(name) + _ROUNDING),
    "ever solved": column("first solved", lambda first: tally(np.isfinite(first))),
    "auctions till then": column("first solved", _median),
    "while learning": column("while learning", np.mean),
}


def _shown(world: str, obs: np.ndarray, action: int) -> dict[str, Any]:
    """What an agent with memory observes, and what it does with the environment and the bit."""
    if world == "MemoryChain":
        sees, names = f"time left {obs[0]:.1f}, context {obs[2]:+.0f}", ("0", "1")
    else:
        sees, names = Maze.describe(obs[:16]), DIRECTIONS
    write, inner = divmod(action, len(names))
    return {"sees": sees, "bit": int(obs[-1]), "does": names[inner], "writes": "–" if write == 0 else str(write - 1)}


def _best(world: str, results: Results) -> int:
    """The best seed with memory; ties are broken by the mean over all measurements."""
    measured = results[f"{world}: memory"].measured["return"]
    return int(np.lexsort((measured.mean(0), measured[-1]))[-1])


def _trace_rows(world: str, grown: GrownMarket, seed: int, key: Array) -> list[dict[str, Any]]:
    """The steps of one episode from every first state, of one seed with memory."""
    population, market = grown.population(seed), grown.plan.market
    trace = every_episode(market, key, jax.tree.map(jnp.asarray, population), grown.plan.terms)

    return [
        {
            "episode": episode,
            **_shown(world, step.obs, int(step.action)),
            "price": float(step.price),
            "agent": int(population.ident[step.winner]) if step.winner >= 0 else None,
            "reward": float(step.reward),
        }
        for episode, step in jax.device_get(trace).rows(first_states(market.env)[2])
    ]


def _trace(world: str) -> Table:
    def title(results: Results) -> str:
        seed, values = _best(world, results), results.measure(f"{world}: memory", "return")
        return f"{world}, seed {seed}: frozen episodes (mean return {values[seed]:.3f})"

    def rows(results: Results) -> list[dict[str, Any]]:
        key = key_for(key_of(results.scope.seed), "watch")
        return _trace_rows(world, results[f"{world}: memory"], _best(world, results), key)

    note = "price: of the state · agent: ident of the buyer · writes: new value of the bit"
    return Table(f"trace-{world.lower()}", title, rows, note)


def _figure(results: Results) -> Any:
    """Return of the frozen population against auctions: thin lines are seeds with memory, thick lines are means."""
    fig, axes = plotting.figure(columns=2, width=5.6, height=4.0)
    for ax, world in zip(axes, WORLDS, strict=True):
        memory, without = results[f"{world}: memory"], results[f"{world}: no memory"].measured["return"].mean(1)
        plotting.draw_seeds(
            ax, memory.plan.steps, memory.measured["return"], color=plotting.COLORS[0], label="one bit, mean"
        )
        ax.plot(memory.plan.steps, without, color=plotting.COLORS[1], linewidth=2, label="no memory, mean")
        ax.axhline(_bound(world), color="black", linestyle="--", linewidth=1, label="bound without memory")
        ax.set(ylabel="mean return, frozen", title=world, ylim=(None, 1.05))
        plotting.step_axis(ax, "auctions")
    plotting.legend_below(fig)
    return fig


EXPERIMENT = Experiment(
    name="memory-market",
    shows="agents with a memory bit in partially observable tasks",
    source="Kwee, Hutter and Schmidhuber (2001); Cliff and Ross (1994)",
    conditions=_conditions,
    measures=MEASURES,
    claims=_claims,
    tables=[
        Table(
            "memory-market",
            lambda results: f"one bit of memory, {results.scope.seeds} seeds",
            by_condition(_COLUMNS, names=_CONDITIONS),
            "return: frozen population, mean over all first states and seeds; bound: the highest possible return\n"
            "solved: correct from every first state at the end · ever: at any of 20 measurements",
        ),
        *(_trace(world) for world in WORLDS),
    ],
    figures={"learning": _figure}
    | {f"life-{world.lower()}": life(f"{world}: memory", functools.partial(_best, world)) for world in WORLDS},
    facts=market_facts,
)

"""A market with memory: agents read and write one bit (after Kwee, Hutter and Schmidhuber 2001).

The baselines are the same market without the bit, on the same seeds, whose best possible return is known exactly, and a
single agent with a recurrent network (`experiments.recurrent`), which needs no bit, with as many steps.

- MemoryChain n (bsuite): a context of -1 or 1 is observed in the first two of n + 1 steps, and the last action must
  name it. A correct answer earns 1, a wrong one -1.
- TMaze 10 (Bakker 2002): the first cell shows on which side of the end of a corridor the goal is.
- Woods101: food is three steps away from each of six cells, two of which look alike.

All evaluations are exact, from every first state of frozen populations (`deep_market.evaluation.every_episode`), so the
bounds hold for every seed and not only on average.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments.bsuite.memory_chain import EnvParams, MemoryChain

from jaxmarket.deep_market import ClassifierRules, DeepMarket, Population, RiskAverseRules, Terms
from jaxmarket.deep_market.evaluation import every_episode, first_states
from jaxmarket.environments.adapter import Adapter, adapt
from jaxmarket.environments.mazes import COMPASS, DIRECTIONS, Maze, Woods101
from jaxmarket.environments.memory import Memory
from jaxmarket.environments.tmaze import TMaze
from jaxmarket.experiments.claims import Claim, at, every_seed, majority, separated, share_of_seeds, tally
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Grow, Scope
from jaxmarket.experiments.experiment import Experiment, Table, by_condition, column
from jaxmarket.experiments.populations import estimating_terms, life, market_facts
from jaxmarket.experiments.recurrent import RecurrentAgent, train
from jaxmarket.experiments.results import Results
from jaxmarket.keys import key_for, key_of
from jaxmarket.runs.curves import first_reach
from jaxmarket.runs.jobs import slug
from jaxmarket.runs.populations import GrownMarket, MarketPlan
from jaxmarket.types import Array
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT", "LENGTHS", "WORLDS", "LongMemoryChain", "bare", "plans", "returns", "solved"]

LENGTHS = {"MemoryChain 5": 5, "MemoryChain 10": 10, "MemoryChain 20": 20, "MemoryChain 50": 50}
WORLDS = (*LENGTHS, "TMaze 10", "Woods101")
_WITHOUT = ("MemoryChain 10", "TMaze 10", "Woods101")  # where the market without the bit is run
_TRACED = ("MemoryChain 10", "Woods101")
_RECURRENT_SEEDS = 4
_ROUNDING = 1e-6  # of a mean return, relative to the highest


class LongMemoryChain(MemoryChain):
    """gymnax's MemoryChain with another length; compared by value."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LongMemoryChain) and other.length == self.length

    def __hash__(self) -> int:
        return hash((LongMemoryChain, self.length))

    @property
    def default_params(self) -> EnvParams:
        """gymnax's, with this length."""
        return EnvParams(memory_length=self.length)


def bare(world: str) -> Adapter:
    """The environment of one of `WORLDS`, without memory."""
    if world in LENGTHS:
        return adapt(LongMemoryChain(LENGTHS[world]))
    return adapt(TMaze(10) if world == "TMaze 10" else Woods101())


def returns(market: DeepMarket, key: Array, population: Population, terms: Terms) -> dict[str, Array]:
    """Mean return over all first states: f []."""
    return {"return": every_episode(market, key, population, terms).reward.sum(0).mean()}


def _highest(world: str) -> float:
    """The optimal return with memory."""
    return TMaze(10).optimal_return() if world == "TMaze 10" else 1.0


def solved(world: str, values: np.ndarray) -> np.ndarray:
    """Which seeds are correct from every first state: bool [...], of mean returns f [...]."""
    return values > _highest(world) * (1 - _ROUNDING)


def _bound(world: str) -> float:
    """The highest mean return of a policy without memory."""
    return 0.0 if world in LENGTHS else bare(world).env.memoryless_return()


def _world(condition: str) -> str:
    return condition.partition(":")[0]


def plans(world: str, quick: bool) -> dict[str, MarketPlan]:
    """The market with one bit of memory, and the same market with ``no memory``.

    In Woods101 rules are `RiskAverseRules`, which begin without agents, as in the experiment ``generality``; elsewhere
    they are Holland's, because a wrong answer to MemoryChain costs as much as a right one earns, and agents that expect
    nothing would not bid.
    """
    env, rules = bare(world), ClassifierRules
    settings: dict[str, Any] = {"coefficient": 0.2, "wildcards": 0.3}
    capacity, living, wealth, joint, rounds, period = 64, 8, 5.0, None, 32_000, 4
    terms = Terms(
        wealth_tax=1e-3, endowment=wealth, inheritance=0.1, birth_rate=1.0, p_offspring=0.5, replace_poorest=True
    )
    if world == "Woods101":
        rules, settings = RiskAverseRules, {"wildcards": 0.33, "margin": 0.2, "public": False}
        capacity, living, wealth, joint, rounds, period = 400, 0, 1.0, 0.9, 12_800, 8
        terms = estimating_terms(fee=0.002, tax=1e-3, exploration=0.1)

    def plan(env: Adapter, bits: int) -> MarketPlan:
        market = DeepMarket(env, rules(bits, env.num_actions, **settings), capacity, instances=8, joint_purchases=joint)
        return MarketPlan(
            market,
            terms,
            rounds // 10 if quick else rounds,
            period,
            max_births=2,
            num_agents=living,
            wealth=wealth,
            chunks=20,
            settling=2,
        )

    bits = 2 * len(COMPASS) if world == "Woods101" else 3
    return {"memory": plan(adapt(Memory(env, 1)), bits + 1), "no memory": plan(env, bits)}


def _recurrent(world: str, steps: int, keys: Array) -> Arrays:
    """The returns of a recurrent agent."""
    agent = RecurrentAgent(bare(world), entropy=0.1 if world == "Woods101" else 0.01)
    return train(keys, agent=agent, steps=steps, parts=20)


def _conditions(scope: Scope) -> list[Condition]:
    conditions: list[Condition] = []
    for world in WORLDS:
        chosen = plans(world, scope.quick)
        kept = ("memory", "no memory") if world in _WITHOUT else ("memory",)
        conditions += [Grow(f"{world}: {name}", chosen[name], returns) for name in kept]
        rival = functools.partial(_recurrent, world, int(chosen["memory"].steps[-1]))
        conditions.append(Compute(f"{world}: recurrent", rival, seeds=min(scope.seeds, _RECURRENT_SEEDS)))
    return conditions


# --- measures and claims


def _history(result: GrownMarket | Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Mean returns f [parts, seeds] and the environment steps so far i [parts], of a market or a recurrent agent."""
    if isinstance(result, GrownMarket):
        return result.measured["return"], result.plan.steps
    return result["return"], result["steps"]


MEASURES = {
    "return": lambda result: _history(result)[0][-1].astype(np.float64),
    "highest": lambda result: _history(result)[0].max(0),
    "while learning": GrownMarket.late_returns,
}


def _first_solved(results: Results, name: str) -> np.ndarray:
    """Environment steps until all first states are solved, infinite where that never happens: f [seeds]."""
    measured, steps = _history(results[name])
    return first_reach(measured, _highest(_world(name)) * (1 - _ROUNDING), steps)


def _claims(scope: Scope) -> list[Claim]:
    def rounded(name: str) -> Any:
        return lambda results: results.measure(name, "return").round(5)  # equal returns are ties

    def solved_seeds(results: Results, name: str) -> str:
        end = solved(_world(name), results.measure(name, "return"))
        ever = np.isfinite(_first_solved(results, name))
        return f"all first states are solved on {tally(end)} seeds at the end, at any measurement on {tally(ever)}"

    claims = []
    for world in WORLDS:
        memory, without, bound = f"{world}: memory", f"{world}: no memory", _bound(world)
        evidence = functools.partial(solved_seeds, name=memory)
        if world in LENGTHS:
            text, least, share = f"[{world}] with one bit the mean return is at least .95", 0.95, 15 / 16
        else:
            text, least, share = f"[{world}] with one bit the return is above {bound:.4f}", bound + _ROUNDING, 14 / 16
        claims.append(share_of_seeds(text, at(memory, "return"), at_least=least, share=share, evidence=evidence))
        if world in _WITHOUT:
            text = f"[{world}] without memory the return never exceeds {bound:.4f}"
            claims.append(every_seed(text, at(without, "highest"), at_most=bound + _ROUNDING))
            text, most = f"[{world}] the market with a bit has a higher return than without", majority(scope.seeds)
            claims.append(share_of_seeds(text, rounded(memory), above=rounded(without), share=most))
        if world not in ("MemoryChain 5", "MemoryChain 10", "Woods101"):  # which both solve
            text = f"[{world}] the market has a higher return than a recurrent agent"
            claims.append(separated(text, at(memory, "return"), at(f"{world}: recurrent", "return")))
    return claims


# --- tables and figures


def _median(first: np.ndarray) -> int | None:
    found = first[np.isfinite(first)]
    return int(np.median(found)) if found.size else None


_COLUMNS = {
    "return": column("return", np.mean),
    "least": column("return", np.min),
    "most": column("return", np.max),
    "bound": lambda _, name: _bound(_world(name)) if name.endswith("no memory") else _highest(_world(name)),
    "solved": lambda results, name: tally(solved(_world(name), results.measure(name, "return"))),
    "above": lambda results, name: tally(results.measure(name, "return") > _bound(_world(name)) + _ROUNDING),
    "ever solved": lambda results, name: tally(np.isfinite(_first_solved(results, name))),
    "steps till then": lambda results, name: _median(_first_solved(results, name)),
}


def _shown(world: str, obs: np.ndarray, action: int) -> dict[str, Any]:
    """What an agent with memory observes, and what it does with the environment and the bit."""
    if world in LENGTHS:
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
    return Table(f"trace-{slug(world).lower()}", title, rows, note)


_BASELINES = (
    ("recurrent", "recurrent agent", plotting.COLORS[2]),
    ("no memory", "market without memory", plotting.COLORS[1]),
)


def _figure(results: Results) -> Any:
    """Return of the frozen population against auctions: thin lines are seeds with memory, thick lines are means."""
    fig, axes = plotting.figure(columns=3, rows=2, width=4.2, height=3.2)
    for ax, world in zip(axes, WORLDS, strict=True):
        memory, steps = _history(results[f"{world}: memory"])
        plotting.draw_seeds(ax, steps, memory, color=plotting.COLORS[0], label="market with one bit, mean")
        for name, label, color in _BASELINES:
            if f"{world}: {name}" in results:
                other, steps = _history(results[f"{world}: {name}"])
                ax.plot(steps, other.mean(1), color=color, linewidth=2, label=f"{label}, mean")
        ax.axhline(_bound(world), color="black", linestyle="--", linewidth=1, label="bound without memory")
        ax.set(ylabel="mean return, frozen", title=world, ylim=(None, 1.05 * _highest(world)))
        plotting.step_axis(ax, "environment steps")
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
            by_condition(_COLUMNS),
            "return: frozen, mean over all first states and seeds · bound: the highest possible return\n"
            "solved: correct from every first state at the end · ever: at any of 20 measurements\n"
            "above: seeds above the highest return without memory",
        ),
        *(_trace(world) for world in _TRACED),
    ],
    figures={"learning": _figure}
    | {f"life-{slug(world).lower()}": life(f"{world}: memory", functools.partial(_best, world)) for world in _TRACED},
    facts=market_facts,
)

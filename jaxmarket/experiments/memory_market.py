"""A market with memory: agents read and write one bit (after Kwee, Hutter and Schmidhuber 2001).

The agents of a deep market observe a bit in addition to the environment, and may set it when they act (`Memory`). An
agent that writes is paid by the price of the next state, which includes the bit. The baseline is the same market
without the bit, on the same seeds; its best possible return is known exactly.

- MemoryChain (bsuite): a context of -1 or 1 is observed in the first two of six steps, and the last action must name
  it. A correct answer earns 1, a wrong one -1; agents with debt are removed. Without memory every policy has a mean
  return of 0.
- Woods101: food is three steps away from each of six cells. Without memory at most 2/3 of them can be solved
  (`Maze.memoryless_return`), even by policies that observe the time.

All evaluations are exact and use frozen populations: one episode from every first state. All episodes use the same
random draws at the same step, so that ties, and states without bids, are decided in the same way. A population without
memory is therefore a function of observation and time, and the bounds hold for every seed and not only on average.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments.bsuite.memory_chain import MemoryChain

from jaxmarket.deep_market import ClassifierRules, DeepMarket, Population, Terms
from jaxmarket.deep_market.evaluation import Trace, episodes
from jaxmarket.environments.adapter import Adapter, adapt
from jaxmarket.environments.mazes import COMPASS, Maze, MazeState, Woods101
from jaxmarket.environments.memory import Memory, MemoryState
from jaxmarket.experiments.claims import Claim, at, every_seed, majority, share_of_seeds, tally, within
from jaxmarket.experiments.conditions import Condition, Scope
from jaxmarket.experiments.experiment import Experiment, Table
from jaxmarket.experiments.populations import Grow, measured
from jaxmarket.experiments.results import Results
from jaxmarket.keys import key_for, key_of
from jaxmarket.runs.curves import first_reach
from jaxmarket.runs.estimates import mean
from jaxmarket.runs.populations import GrownMarket, MarketPlan, terms_of
from jaxmarket.types import Array, PyTree, real
from jaxmarket.view import plotting

__all__ = ["CHAIN_STEPS", "EXPERIMENT", "chain", "first_states", "plans", "play", "returns", "solved"]

CHAIN_STEPS = 6
"""Length of an episode of MemoryChain."""

PUBLISHED = (
    "Kwee, Hutter and Schmidhuber (2001): their Hayek4 market with a memory register comes to use it in a toy world "
    "that shows too little (recalled); the abstract (confirmed) says such a market was tested there for the first "
    "time, and gives no numbers. Woods101: ZCS with one bit comes near the optimum (Cliff and Ross 1994, recalled)"
)


@functools.cache
def chain() -> MemoryChain:
    """MemoryChain with one bit of context; always the same object, so that markets with it are equal."""
    return MemoryChain()


# --- evaluation


def first_states(env: Adapter) -> tuple[PyTree, Array, tuple[str, ...]]:
    """All first states of an environment of this experiment.

    Args:
        env: MemoryChain or a `Maze`, in `Memory` or not.

    Returns:
        States, leaves [n, ...]; observations f [n, ...]; their names.
    """
    remembers = isinstance(env.env, Memory)
    world: Any = env.env.adapter.env if remembers else env.env
    if isinstance(world, Maze):
        starts = world.default_params.starts
        states = MazeState(index=starts, time=jnp.zeros(starts.shape, jnp.int32))
        names = tuple(f"from {cell}" for cell in world.starts)
    else:
        _, state = world.reset_env(jax.random.key(0), world.default_params)
        contexts = jnp.asarray([[0], [1]], jnp.int32)
        states = jax.vmap(lambda context: state.replace(context=context))(contexts)
        names = ("context -1", "context 1")
    obs = jax.vmap(lambda state: world.get_obs(state, world.default_params))(states).astype(real())
    if remembers:
        bits = jnp.zeros((len(names), env.env.bits), jnp.int32)
        states = MemoryState(env_state=states, bits=bits, truncated=jnp.zeros(len(names), bool))
        obs = jnp.concatenate([obs, bits.astype(obs.dtype)], axis=1)
    return states, obs, names


def play(market: DeepMarket, key: Array, population: Population, terms: Terms) -> Trace:
    """One episode of the frozen population from every first state."""
    world = market.env.env.adapter.env if isinstance(market.env.env, Memory) else market.env.env
    steps = world.limit if isinstance(world, Maze) else CHAIN_STEPS
    states, obs, _ = first_states(market.env)
    return episodes(market, key, population, terms, states, obs, steps)


def returns(market: DeepMarket, key: Array, population: Population, terms: Terms) -> dict[str, Array]:
    """Mean return over all first states: f []."""
    return {"return": play(market, key, population, terms).reward.sum(0).mean()}


def solved(values: np.ndarray) -> np.ndarray:
    """Which seeds are correct from every first state: bool [...], of mean returns f [...]."""
    return values > _SOLVED


_ROUNDING = 1e-6  # of a mean return
_SOLVED = 1 - _ROUNDING


# --- conditions

WORLDS = ("MemoryChain", "Woods101")
_MARKETS = ("memory", "no memory")


def _bound(world: str) -> float:
    """The highest mean return of a policy without memory."""
    return 0.0 if world == "MemoryChain" else Woods101().memoryless_return()


def plans(world: str, quick: bool) -> dict[str, MarketPlan]:
    """The market with one bit of memory, and the same market with ``no memory``."""
    if world == "MemoryChain":
        bare, width = adapt(chain()), 3
        terms = Terms(wealth_tax=1e-3, endowment=5.0, birth_rate=0.3, inheritance=0.1, p_offspring=0.5)
        capacity, wildcards, living = 64, 0.3, 8
    else:
        bare, width = adapt(Woods101()), 2 * len(COMPASS)
        terms = Terms(
            wealth_tax=1e-3, exploration=0.02, endowment=8.0, birth_rate=0.5, inheritance=0.1, p_offspring=0.3
        )
        capacity, wildcards, living = 128, 0.1, 64
    rounds = 3000 if quick else 16000
    chosen = {}
    for name, env in (("memory", adapt(Memory(bare, 1))), ("no memory", bare)):
        bits = width + (name == "memory")
        representation = ClassifierRules(bits, env.num_actions, coefficient=0.4, wildcards=wildcards)
        chosen[name] = MarketPlan(
            market=DeepMarket(env, representation, capacity, 8),
            terms=terms.replace(replace_poorest=True),
            rounds=rounds,
            period=4,
            max_births=2,
            num_agents=living,
            wealth=float(terms.endowment),
            chunks=20,
            settling=2,
        )
    return chosen


def _conditions(scope: Scope) -> list[Condition]:
    return [
        Grow(f"{world}: {name}", plan, returns) for world in WORLDS for name, plan in plans(world, scope.quick).items()
    ]


# --- measures and claims


MEASURES = {
    "return": measured("return"),
    "highest": lambda grown: grown.measured["return"].max(0),
    "first solved": lambda grown: first_reach(grown.measured["return"], _SOLVED, grown.plan.steps),
    "while learning": GrownMarket.late_returns,
}


def _claims(scope: Scope) -> list[Claim]:
    def solved_seeds(results: Results, name: str) -> str:
        end, ever = solved(results.measure(name, "return")), np.isfinite(results.measure(name, "first solved"))
        return f"all first states are solved on {tally(end)} seeds at the end, at any measurement on {tally(ever)}"

    def rounded(name: str) -> Any:
        return lambda results: results.measure(name, "return").round(5)  # equal returns are ties

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
        claims += [
            every_seed(
                f"[{world}] without memory the return never exceeds {bound:.4f}",
                at(without, "highest"),
                at_most=bound + _ROUNDING,
            ),
            share_of_seeds(
                f"[{world}] the market with a bit has a higher return than without, on most seeds",
                rounded(memory),
                above=rounded(without),
                share=most,
            ),
        ]
    return claims


# --- tables and figures


def _row(results: Results, world: str, name: str) -> dict[str, Any]:
    condition = f"{world}: {name}"
    final, first = results.measure(condition, "return"), results.measure(condition, "first solved")
    found = first[np.isfinite(first)]
    return {
        "world": world,
        "market": name,
        "return": final.mean(),
        "least": final.min(),
        "most": final.max(),
        "bound": _bound(world) if name == "no memory" else 1.0,
        "solved": tally(solved(final)),
        "above bound": tally(final > _bound(world) + _ROUNDING),
        "ever solved": tally(np.isfinite(first)),
        "auctions till then": int(np.median(found)) if found.size else None,
        "while learning": results.measure(condition, "while learning").mean(),
        "living": results[condition].rounds.num_agents[:, -1].mean(),
        "residual": results[condition].residual,
    }


_DIRECTIONS = ("N", "NE", "E", "SE", "S", "SW", "W", "NW")


def _see(world: str, obs: np.ndarray) -> str:
    """An observation with memory, as text: in a maze the free neighbours, clockwise from north."""
    if world == "MemoryChain":
        return f"time left {obs[0]:.1f}, context {obs[2]:+.0f}"
    views = zip(_DIRECTIONS, obs[:16].reshape(8, 2), strict=True)
    return " ".join(name + ":food" * bool(food) for name, (blocked, food) in views if food or not blocked)


def _do(world: str, action: int) -> tuple[str, str]:
    """An action with memory, as texts: the action of the environment, and the bit that it writes."""
    count = 2 if world == "MemoryChain" else len(COMPASS)
    inner, write = action % count, action // count
    return (str(inner) if count == 2 else _DIRECTIONS[inner]), ("–" if write == 0 else str(write - 1))


def _best(results: Results, world: str) -> int:
    """The best seed with memory; ties are broken by the mean over all measurements."""
    measured = results[f"{world}: memory"].measured["return"]
    return int(np.lexsort((measured.mean(0), measured[-1]))[-1])


def _trace_rows(world: str, grown: GrownMarket, seed: int, key: Array) -> list[dict[str, Any]]:
    """The steps of one episode from every first state, of one seed with memory."""
    population, market = grown.population(seed), grown.plan.market
    trace = jax.device_get(play(market, key, jax.tree.map(jnp.asarray, population), grown.plan.terms))
    rows = []
    for episode, name in enumerate(first_states(market.env)[2]):
        for step in range(int((~trace.over[:, episode]).sum())):
            winner = int(trace.winner[step, episode])
            done, written = _do(world, int(trace.action[step, episode]))
            rows.append(
                {
                    "episode": name,
                    "sees": _see(world, trace.obs[step, episode]),
                    "bit": int(trace.obs[step, episode, -1]),
                    "price": float(trace.price[step, episode]),
                    "agent": int(population.ident[winner]) if winner >= 0 else None,
                    "does": done,
                    "writes": written,
                    "reward": float(trace.reward[step, episode]),
                }
            )
    return rows


def _trace(world: str) -> Table:
    def title(results: Results) -> str:
        seed, values = _best(results, world), results.measure(f"{world}: memory", "return")
        return f"{world}, seed {seed}: frozen episodes (mean return {values[seed]:.3f})"

    def rows(results: Results) -> list[dict[str, Any]]:
        key, grown = key_for(key_of(results.scope.seed), "watch"), results[f"{world}: memory"]
        return _trace_rows(world, grown, _best(results, world), key)

    note = "price: of the state · agent: ident of the buyer · writes: new value of the bit"
    return Table(f"trace-{world.lower()}", title, rows, note)


def _life(world: str, results: Results) -> Any:
    return plotting.market_history(results[f"{world}: memory"], _best(results, world), f"{world} with one bit")


def _figure(results: Results) -> Any:
    """Return of the frozen population against auctions: thin lines are seeds with memory, thick lines are means."""
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415

    fig, axes = plotting.figure(columns=2, width=5.6, height=4.0)
    for ax, world in zip(axes, WORLDS, strict=True):
        memory, without = (results[f"{world}: {name}"].measured["return"] for name in _MARKETS)
        steps = results[f"{world}: memory"].plan.steps
        plotting.draw_seeds(ax, steps, memory, color="tab:blue", label="one bit, mean")
        ax.plot(steps, without.mean(1), color="tab:orange", linewidth=2, label="no memory, mean")
        ax.axhline(_bound(world), color="black", linestyle="--", linewidth=1, label="bound without memory")
        ax.set(xlabel="auctions", ylabel="mean return, frozen", title=world)
        ax.set_ylim(min(-0.1, float(without.mean(1).min()) - 0.05), 1.05)
        ax.xaxis.set_major_formatter(EngFormatter())
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
            lambda results: [_row(results, world, name) for world in WORLDS for name in _MARKETS],
            "return: frozen population, mean over all first states and seeds; bound: the highest possible return\n"
            "solved: correct from every first state at the end · ever: at any of 20 measurements",
            aside=("living", "residual"),
        ),
        *(_trace(world) for world in WORLDS),
        Table(
            "seeds",
            "every seed",
            lambda results: [
                {"world": world, "market": name, "seed": seed, "return": float(value)}
                for world in WORLDS
                for name in _MARKETS
                for seed, value in enumerate(results.measure(f"{world}: {name}", "return"))
            ],
            shown=False,
        ),
    ],
    figures={"learning": _figure} | {f"life-{world.lower()}": functools.partial(_life, world) for world in WORLDS},
    facts=lambda results: {
        "published": PUBLISHED,
        "terms": {world: terms_of(results[f"{world}: memory"].plan.terms) for world in WORLDS},
        "conservation_residual": float(np.max([grown.residual for grown in results.values()])),
    },
)

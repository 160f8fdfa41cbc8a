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
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments.bsuite.memory_chain import MemoryChain

from jaxmarket import deep_market
from jaxmarket.deep_market import ClassifierRules, DeepMarket, Population, Terms
from jaxmarket.environments.adapter import Adapter, adapt
from jaxmarket.environments.mazes import COMPASS, Maze, MazeState, Woods101
from jaxmarket.environments.memory import Memory, MemoryState
from jaxmarket.experiments.economies import Grown, Plan, grow, life, residual, terms_of
from jaxmarket.experiments.report import ExperimentOptions, Report, ResultTable, Verdict, by_chance, tally
from jaxmarket.keys import key_for, key_of
from jaxmarket.types import Array, PyTree, real
from jaxmarket.view import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CHAIN_STEPS", "Trace", "chain", "episodes", "first_states", "plans", "returns", "run", "solved"]

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


class Trace(struct.PyTreeNode):
    """Episodes of a frozen population, leaves [steps, n, ...]."""

    obs: Array  # f observation of the state for sale
    winner: Array  # i32 slot of the buyer, or NOBODY
    price: Array  # f of the state
    action: Array  # i32
    reward: Array  # f 0 after the end of the episode
    over: Array  # bool whether the episode had ended before


def episodes(market: DeepMarket, key: Array, population: Population, terms: Terms, steps: int) -> Trace:
    """One episode of the frozen population from every first state, with the same random draws at the same step."""
    env, params = market.env, market.env.default_params
    states, obs, names = first_states(env)

    def step(carry: tuple[PyTree, Array, Array], key: Array) -> tuple[tuple[PyTree, Array, Array], Trace]:
        states, obs, over = carry

        def sell(obs: Array, state: PyTree) -> PyTree:
            alone = jax.tree.map(lambda leaf: leaf[None], state)
            sold = deep_market.forward(market, key, population, obs[None], alone, params, terms)
            return jax.tree.map(lambda leaf: leaf[0], sold)

        outcome, price, action = jax.vmap(sell)(obs, states)
        after = jax.vmap(env.step, (None, 0, 0, None))(key, states, action, params)
        trace = Trace(obs, outcome.winner, price, action, jnp.where(over, 0, after.reward), over)
        return (after.env_state, after.obs, over | after.terminated | after.truncated), trace

    _, trace = jax.lax.scan(step, (states, obs, jnp.zeros(len(names), bool)), jax.random.split(key, steps))
    return trace


def _steps(market: DeepMarket) -> int:
    world = market.env.env.adapter.env if isinstance(market.env.env, Memory) else market.env.env
    return world.limit if isinstance(world, Maze) else CHAIN_STEPS


def returns(market: DeepMarket, key: Array, population: Population, terms: Terms) -> dict[str, Array]:
    """Mean return over all first states: f []."""
    return {"return": episodes(market, key, population, terms, _steps(market)).reward.sum(0).mean()}


def solved(values: np.ndarray) -> np.ndarray:
    """Which seeds are correct from every first state: bool [...], of mean returns f [...]."""
    return values > 1 - 1e-6


# --- conditions

WORLDS = ("MemoryChain", "Woods101")


def _bound(world: str) -> float:
    """The highest mean return of a policy without memory."""
    return 0.0 if world == "MemoryChain" else Woods101().memoryless_return()


def plans(world: str, quick: bool) -> list[Plan]:
    """The market with one bit of memory, and the same market without it."""
    inner: Any = chain() if world == "MemoryChain" else Woods101()
    bare = adapt(inner)
    width = 3 if world == "MemoryChain" else 2 * len(COMPASS)
    if world == "MemoryChain":
        terms = Terms(wealth_tax=1e-3, endowment=5.0, birth_rate=0.3, inheritance=0.1, p_offspring=0.5)
        capacity, wildcards, living = 64, 0.3, 8
    else:
        terms = Terms(
            wealth_tax=1e-3, exploration=0.02, endowment=8.0, birth_rate=0.5, inheritance=0.1, p_offspring=0.3
        )
        capacity, wildcards, living = 128, 0.1, 64
    rounds = 3000 if quick else 16000
    chosen = []
    for name, env in (("memory", adapt(Memory(bare, 1))), ("no memory", bare)):
        bits = width + (name == "memory")
        representation = ClassifierRules(bits, env.num_actions, coefficient=0.4, wildcards=wildcards)
        chosen.append(
            Plan(
                name=f"{world}: {name}",
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
        )
    return chosen


# --- the report


def _while_learning(grown: Grown) -> Any:
    """Mean return of the episodes that ended in the last tenth of the rounds: f [seeds]."""
    statistics, tenth = grown.rounds.statistics, max(1, grown.rounds.money.shape[1] // 10)
    return statistics.returns[:, -tenth:].sum(1) / statistics.episodes[:, -tenth:].sum(1)


def _first_solved(grown: Grown) -> np.ndarray:
    """Auctions until the first measurement with all episodes correct: f [seeds], inf if there is none."""
    right = solved(grown.measured["return"])
    return np.where(right.any(0), grown.steps[right.argmax(0)], np.inf)


def _row(world: str, name: str, grown: Grown) -> dict[str, Any]:
    final, first = grown.measured["return"][-1].astype(np.float64), _first_solved(grown)
    return {
        "world": world,
        "market": name,
        "return": final.mean(),
        "least": final.min(),
        "most": final.max(),
        "bound": _bound(world) if name == "no memory" else 1.0,
        "solved": tally(solved(final)),
        "above bound": tally(final > _bound(world) + 1e-6),
        "ever solved": tally(np.isfinite(first)),
        "auctions till then": int(np.median(first[np.isfinite(first)])) if np.isfinite(first).any() else None,
        "while learning": _while_learning(grown).mean(),
        "living": grown.rounds.num_agents[:, -1].mean(),
        "residual": residual(grown),
    }


def _see(world: str, obs: np.ndarray) -> str:
    """An observation with memory, as text."""
    if world == "MemoryChain":
        return f"time left {obs[0]:.1f}, context {obs[2]:+.0f}"
    # Free neighbours, clockwise from north.
    names = ("N", "NE", "E", "SE", "S", "SW", "W", "NW")
    views = obs[:16].reshape(8, 2)
    kinds = ["food" if food else "rock" if blocked else "" for blocked, food in views]
    return " ".join(
        f"{name}:food" if kind == "food" else name for name, kind in zip(names, kinds, strict=True) if kind != "rock"
    )


def _do(world: str, action: int) -> tuple[str, str]:
    """An action with memory, as texts: the action of the environment, and the bit that it writes."""
    count = 2 if world == "MemoryChain" else len(COMPASS)
    inner, write = action % count, action // count
    names = ("N", "NE", "E", "SE", "S", "SW", "W", "NW")
    return (str(inner) if count == 2 else names[inner]), ("–" if write == 0 else str(write - 1))


def _trace(world: str, grown: Grown, seed: int, key: Array) -> list[dict[str, Any]]:
    """The steps of one episode from every first state, of one seed with memory."""
    population = grown.population(seed)
    market = grown.plan.market
    trace = jax.device_get(
        episodes(market, key, jax.tree.map(jnp.asarray, population), grown.plan.terms, _steps(market))
    )
    _, _, names = first_states(market.env)
    rows = []
    for episode, name in enumerate(names):
        for step in range(len(trace.obs)):
            if trace.over[step, episode]:
                break
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


def _figure(grown: dict[str, Grown]) -> "Figure":
    """Return of the frozen population against auctions: thin lines are seeds with memory, thick lines are means."""
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415

    fig, axes = plotting.figure(columns=2, width=5.6, height=4.0)
    for ax, world in zip(axes, WORLDS, strict=True):
        memory, without = grown[f"{world}: memory"], grown[f"{world}: no memory"]
        ax.plot(memory.steps, memory.measured["return"], color="tab:blue", alpha=0.2, linewidth=0.8)
        ax.plot(memory.steps, memory.measured["return"].mean(1), color="tab:blue", linewidth=2, label="one bit, mean")
        ax.plot(
            without.steps, without.measured["return"].mean(1), color="tab:orange", linewidth=2, label="no memory, mean"
        )
        ax.axhline(_bound(world), color="black", linestyle="--", linewidth=1, label="bound without memory")
        ax.set(xlabel="auctions", ylabel="mean return, frozen", title=world)
        ax.set_ylim(min(-0.1, float(without.measured["return"].mean(1).min()) - 0.05), 1.05)
        ax.xaxis.set_major_formatter(EngFormatter())
    plotting.legend_below(fig)
    return fig


def _verdicts(grown: dict[str, Grown]) -> list[Verdict]:
    def final(name: str) -> np.ndarray:
        return grown[name].measured["return"][-1].astype(np.float64)

    verdicts = []
    for world in WORLDS:
        memory, without, bound = final(f"{world}: memory"), final(f"{world}: no memory"), _bound(world)
        above = memory > bound + 1e-6
        ever = np.isfinite(_first_solved(grown[f"{world}: memory"]))
        if world == "MemoryChain":
            verdicts.append(
                Verdict.of(
                    "[MemoryChain] with one bit the mean return is at least .9",
                    memory.mean() >= 0.9, memory.mean(),
                    f"{memory.mean():.3f}; both contexts are correct on {tally(solved(memory))} seeds at the end, "
                    f"at any measurement on {tally(ever)}",
                )
            )  # fmt: skip
        else:
            verdicts.append(
                Verdict.of(
                    f"[Woods101] with one bit the return is above {bound:.4f}, on most seeds",
                    bool(above.mean() > 0.5), memory.mean(),
                    f"{memory.mean():.3f}; above the bound on {tally(above)} seeds at the end, food from all six "
                    f"starts on {tally(solved(memory))}, at any measurement on {tally(ever)}",
                )
            )  # fmt: skip
        most = float(grown[f"{world}: no memory"].measured["return"].max())
        verdicts.append(
            Verdict.of(
                f"[{world}] without memory the return never exceeds {bound:.4f}",
                most <= bound + 1e-6, most,
                f"highest of all seeds and measurements {most:.4f}; final mean {without.mean():.3f}",
            )
        )  # fmt: skip
        better, worse = memory > without + 1e-6, memory < without - 1e-6
        verdicts.append(
            Verdict.of(
                f"[{world}] the market with a bit has a higher return than without, on most seeds",
                bool(better.mean() > 0.5), (memory - without).mean(),
                f"{(memory - without).mean():+.3f} on average; better on {tally(better)} seeds, worse on "
                f"{tally(worse)}; {by_chance(better, worse)}",
            )
        )  # fmt: skip
    return verdicts


def run(options: ExperimentOptions) -> Report:
    """Run both markets in both worlds, and test the claims."""
    grown: dict[str, Grown] = {}
    for world in WORLDS:
        grown |= grow(
            plans(world, options.quick),
            returns,
            seeds=options.seeds,
            seed=options.seed,
            label=f"memory market, {world}",
            shown=options.progress,
            folder=options.folder / "markets",
        )
    rows = [_row(world, name, grown[f"{world}: {name}"]) for world in WORLDS for name in ("memory", "no memory")]
    tables = [
        ResultTable(
            "memory-market", f"one bit of memory, {options.seeds} seeds", rows,
            "return: frozen population, mean over all first states and seeds; bound: the highest possible return\n"
            "solved: correct from every first state at the end · ever: at any of 20 measurements",
            aside=("living", "residual"),
        )
    ]  # fmt: skip
    figures = {"learning": _figure(grown)}
    for world in WORLDS:
        memory = grown[f"{world}: memory"]
        final = memory.measured["return"][-1]
        # Ties are broken by the mean over all measurements.
        best = int(np.lexsort((memory.measured["return"].mean(0), final))[-1])
        tables.append(
            ResultTable(
                f"trace-{world.lower()}", f"{world}, seed {best}: frozen episodes (mean return {final[best]:.3f})",
                _trace(world, memory, best, key_for(key_of(options.seed), "watch")),
                "price: of the state · agent: ident of the buyer · writes: new value of the bit",
            )
        )  # fmt: skip
        figures[f"life-{world.lower()}"] = life(memory, best, f"{world} with one bit, seed {best}")
    tables.append(
        ResultTable(
            "seeds", "every seed",
            [
                {"world": world, "market": name, "seed": seed, "return": float(values[seed])}
                for world in WORLDS
                for name in ("memory", "no memory")
                for values in [grown[f"{world}: {name}"].measured["return"][-1]]
                for seed in range(options.seeds)
            ],
            shown=False,
        )
    )  # fmt: skip
    settings = {
        "seeds": options.seeds,
        "quick": options.quick,
        "published": PUBLISHED,
        "terms": {world: terms_of(grown[f"{world}: memory"].plan.terms) for world in WORLDS},
        "conservation_residual": float(np.max([residual(each) for each in grown.values()])),
    }
    return Report(settings=settings, tables=tables, verdicts=_verdicts(grown), figures=figures)

"""Hayek on blocks world (Baum 1999; Baum and Durdanovic 2000): a market of programs with a reward for the last move.

Agents are short programs over sensors (`GuardedPrograms`). The highest bidder buys the state, moves one block and
sells the next state; only the last move is rewarded. The first bid of a new agent is the highest other bid plus a
markup, and never changes. Prices therefore rise to the values of states, and an agent survives only if it sells states
for more than it pays.

The markets are trained on instances of at most three blocks, frozen, and tested on larger instances. Baselines: random
programs, and evolution of teams of programs selected by success. Ablations: conservation of money and property rights,
which Baum considers necessary, rent, and mutation.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import deep_market
from jaxmarket.deep_market import DeepMarket, GuardedPrograms, Population, Terms, make_population
from jaxmarket.environments.adapter import Adapter, adapt
from jaxmarket.environments.blocks import MOVES, BlocksParams, BlocksWorld
from jaxmarket.experiments.economies import UNPAID, Grown, Plan, grow, life, residual, terms_of
from jaxmarket.experiments.report import (
    ExperimentOptions,
    Report,
    ResultTable,
    Verdict,
    by_chance,
    interquartile_mean,
    tally,
)
from jaxmarket.keys import key_for, key_of
from jaxmarket.types import Array, PyTree
from jaxmarket.view import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PROGRAMS", "SENSORS", "SIZES", "TRAINED", "plans", "reliable", "run", "success", "teams"]

TRAINED = 3
"""Maximum number of blocks of an instance in training."""
SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12)
"""Numbers of blocks of test instances."""
SENSORS = ("correct", "surplus", "needed", "top1", "top2", "top3", "depth2", "depth3")
"""The sensors that programs read; see `blocks.SENSORS`."""
PROGRAMS = GuardedPrograms(len(SENSORS), len(MOVES), length=3, names=SENSORS)
RELIABLE = 0.9
"""Success rate from which a size counts as solved."""

_CAPACITY, _AGENTS = max(SIZES), 128
_TERMS = Terms(
    markup=0.05,
    rent=0.01,
    compute_tax=1e-5,
    endowment=1.0,
    birth_rate=0.1,
    p_offspring=0.5,
    min_parent_wealth=2.0,
    inheritance=0.3,
    bankruptcy=0.05,
    replace_poorest=True,
)


def _world(sizes: tuple[int, ...], capacity: int | None = None) -> BlocksWorld:
    return BlocksWorld(sizes, sensors=SENSORS, capacity=capacity)


def _market() -> DeepMarket:
    """The market on training instances."""
    return DeepMarket(adapt(_world(tuple(range(1, TRAINED + 1)))), PROGRAMS, _AGENTS)


def plans(options: ExperimentOptions) -> list[Plan]:
    """The market and its ablations; a quick run has only the first."""
    market = _market()
    rounds = 15_000 if options.quick else 100_000
    whole = Plan("hayek", market, _TERMS, rounds, 20, max_births=1, num_agents=40, wealth=1.0, chunks=10, settling=2)

    def without(name: str, **changes: Any) -> Plan:
        return dataclasses.replace(whole, name=name, **changes)

    if options.quick:
        return [whole]
    return [
        whole,
        without("no conservation", market=dataclasses.replace(market, mechanism=UNPAID)),
        without("no property rights", market=dataclasses.replace(market, property_rights=False)),
        without("no rent", terms=_TERMS.replace(rent=0.0, compute_tax=0.0)),
        without("no mutation", terms=_TERMS.replace(p_offspring=0.0)),
    ]


# --- tests


def _attempt(
    act: Callable[[Array, Array], Array], key: Array, env: Adapter, params: BlocksParams, instances: int
) -> tuple[Array, Array]:
    """Share of random instances that are solved in time f [], and environment steps of all of them i32 [].

    Args:
        act: ``(key, obs) -> i32 [instances]``.
        key: a PRNG key; consumed.
        env: the environment.
        params: distribution of the instances.
        instances: number of instances.
    """
    key_reset, key = jax.random.split(key)
    obs, states = jax.vmap(env.reset, (0, None))(jax.random.split(key_reset, instances), params)

    def unfinished(carry: PyTree) -> Array:
        return ~carry[-2].all()

    def move(carry: PyTree) -> PyTree:
        key, obs, states, solved, over, steps = carry
        key_act, key_step, key = jax.random.split(key, 3)
        keys = jax.random.split(key_step, instances)
        after = jax.vmap(env.step, (0, 0, 0, None))(keys, states, act(key_act, obs), params)
        solved, steps = solved | (after.terminated & ~over), steps + (~over).sum(dtype=jnp.int32)
        return key, after.obs, after.env_state, solved, over | after.terminated | after.truncated, steps

    none = jnp.zeros(instances, bool)
    start = key, obs, states, none, none, jnp.zeros((), jnp.int32)
    _, _, _, solved, _, steps = jax.lax.while_loop(unfinished, move, start)
    return solved.mean(), steps


def _examine(act: Callable[[Array, Array], Array], key: Array, sizes: tuple[int, ...], instances: int) -> Array:
    """Success on new instances of each size: f [sizes]."""
    env = adapt(_world((1,), _CAPACITY))

    def success_on(each: tuple[Array, Array]) -> Array:
        key, size = each
        return _attempt(act, key, env, env.default_params.replace(sizes=size[None]), instances)[0]

    return jax.lax.map(success_on, (jax.random.split(key, len(sizes)), jnp.asarray(sizes)))


def success(
    market: DeepMarket, key: Array, population: Population, terms: Terms, sizes: tuple[int, ...], instances: int
) -> Array:
    """Share of new instances that a frozen population solves, per size: f [sizes].

    An instance of n blocks must be solved within the limit of `BlocksWorld`, 10 n moves.
    """

    def act(key: Array, obs: Array) -> Array:
        return deep_market.forward(market, key, population, obs, None, None, terms)[2]

    return _examine(act, key, sizes, instances)


def _progress(market: DeepMarket, key: Array, population: Population, terms: Terms) -> dict[str, Array]:
    sizes = (TRAINED, TRAINED + 1, 6)
    found = success(market, key, population, terms, sizes, 32)
    return {f"{n} blocks": found[i] for i, n in enumerate(sizes)}


@functools.partial(jax.jit, static_argnames=("market", "instances"))
def _exam(market: DeepMarket, keys: Array, populations: Population, terms: Terms, instances: int) -> Array:
    return jax.vmap(lambda key, p: success(market, key, p, terms, SIZES, instances))(keys, populations)


def reliable(success: np.ndarray) -> np.ndarray:
    """The largest size up to which all tested sizes are solved with `RELIABLE` success: i [...], 0 if there is none.

    Args:
        success: f [..., sizes].
    """
    count = np.cumprod(success >= RELIABLE, axis=-1).sum(-1)
    return np.array([0, *SIZES])[count]


# --- baselines


_TEAM, _TEAMS, _TRIALS, _ELITE = 8, 32, 16, 8


def _lead(team: PyTree, obs: Array) -> tuple[Array, Array]:
    """The action of the first program of a team whose guards match, and whether there is one."""
    bids = jax.vmap(PROGRAMS.bid, (0, None, None))(team, obs, jnp.ones(()))
    matches = jnp.isfinite(bids)
    return team.action[jnp.argmax(matches)], matches.any()


def _lead_all(team: PyTree, key: Array, obs: Array) -> Array:
    """Actions i32 [instances]; random if no program of the team matches."""
    action, matched = jax.vmap(_lead, (None, 0))(team, obs)
    return jnp.where(matched, action, jax.random.randint(key, action.shape, 0, len(MOVES)))


def _generation(teams: PyTree, key: Array) -> tuple[PyTree, tuple[PyTree, Array]]:
    """The next generation; and the best team of this one, with the environment steps of all."""
    key_trial, key_parent, key_member, key_mutate = jax.random.split(key, 4)
    env = _market().env

    def trial(team: PyTree) -> tuple[Array, Array]:
        return _attempt(functools.partial(_lead_all, team), key_trial, env, env.default_params, _TRIALS)

    fitness, steps = jax.vmap(trial)(teams)  # all teams on the same instances
    best = jnp.argsort(-fitness)[:_ELITE]
    children, rows = _TEAMS - _ELITE, jnp.arange(_TEAMS - _ELITE)
    parents = best[jax.random.randint(key_parent, (children,), 0, _ELITE)]
    member = jax.random.randint(key_member, (children,), 0, _TEAM)
    members = jax.tree.map(lambda leaf: leaf[parents, member], teams)
    changed = jax.vmap(PROGRAMS.mutate)(jax.random.split(key_mutate, children), members, members)
    following = jax.tree.map(
        lambda leaf, new: jnp.concatenate([leaf[best], leaf[parents].at[rows, member].set(new)]), teams, changed
    )
    return following, (jax.tree.map(lambda leaf: leaf[best[0]], teams), steps.sum())


@functools.partial(jax.jit, static_argnames=("budget", "instances"))
def teams(keys: Array, budget: int, instances: int) -> tuple[Array, Array]:
    """Evolution without a market, on the same instances and with the same number of environment steps.

    An individual is a team, an ordered list of eight programs. The first program whose guards match acts; if there is
    none, the action is random. Of 32 teams, the eight that solve most of 16 new instances survive; the others are
    replaced by children of these, in each of which one program is mutated. Teams are selected by success only, and
    their members are not paid.

    Args:
        keys: one per seed.
        budget: environment steps per seed.
        instances: number of test instances per size, for the best team at the end of the budget.

    Returns:
        Success f [seeds, sizes], and environment steps used i32 [seeds].
    """
    generations = max(1, budget // (_TEAMS * _TRIALS * _SHORTEST))

    def evolve(key: Array) -> tuple[Array, Array]:
        key_init, key_run, key_exam = jax.random.split(key, 3)
        init = jax.vmap(jax.vmap(PROGRAMS.init, (0, None)), (0, None))
        first = init(jax.random.split(key_init, (_TEAMS, _TEAM)), jnp.zeros(len(SENSORS)))
        _, (best, steps) = jax.lax.scan(_generation, first, jax.random.split(key_run, generations))
        spent = jnp.cumsum(steps)
        last = jnp.maximum(jnp.sum(spent <= budget) - 1, 0)
        team = jax.tree.map(lambda leaf: leaf[last], best)
        found = _examine(functools.partial(_lead_all, team), key_exam, SIZES, instances)
        return found, spent[last]

    return jax.vmap(evolve)(keys)


_SHORTEST = 3
"""Lower bound on the mean length of episodes, which bounds the number of generations in a budget."""


@functools.partial(jax.jit, static_argnames=("instances",))
def random_programs(keys: Array, instances: int) -> Array:
    """Success of random programs, of which the highest bidder acts: f [seeds, sizes]."""
    market = _market()

    def success_of_random(key: Array) -> Array:
        key_agents, key_exam = jax.random.split(key)
        agents = jax.vmap(PROGRAMS.init, (0, None))(jax.random.split(key_agents, _AGENTS), jnp.zeros(len(SENSORS)))
        return success(market, key_exam, make_population(agents, jnp.ones(_AGENTS)), Terms(), SIZES, instances)

    return jax.vmap(success_of_random)(keys)


# --- the report

_PUBLISHED = (
    "Baum and Durdanovic (2000), from our notes: Hayek 3 solved goal stacks of 200 blocks, other methods such as "
    "genetic programming at most 8 (other sensors, other programs, instances that grow throughout training)"
)


def _table(found: dict[str, np.ndarray]) -> ResultTable:
    """Success per size, for all conditions."""
    rows = []
    for name, values in found.items():
        row: dict[str, Any] = {"who": name}
        row |= {str(n): interquartile_mean(values[:, i]) for i, n in enumerate(SIZES)}
        sizes = reliable(values)
        row |= {"reliable": float(sizes.mean()), "best": int(sizes.max())}
        rows.append(row)
    note = (
        "success on new instances of each number of blocks, interquartile mean over seeds ± the larger side of its 95% "
        f"bootstrap interval; trained with at most {TRAINED}\nreliable: the size up to which all sizes are solved in "
        f"{RELIABLE:.0%} of instances, mean and maximum over seeds; {max(SIZES)} is the largest size tested"
    )
    aside = tuple(str(n) for n in SIZES if n not in (TRAINED, TRAINED + 1, 6, 8))
    return ResultTable("hayek", "blocks world: share of instances solved, by size", rows, note, aside=aside)


def _seeds(found: dict[str, np.ndarray]) -> ResultTable:
    """Every seed of every condition."""
    rows = [
        {"who": name, "seed": seed} | {str(n): float(values[seed, i]) for i, n in enumerate(SIZES)}
        for name, values in found.items()
        for seed in range(len(values))
    ]
    return ResultTable("seeds", "every seed", rows, shown=False)


def _programs(grown: Grown, seed: int, most: int = 12) -> ResultTable:
    """The richest programs of one market."""
    p = grown.population(seed)
    rows = []
    for slot in grown.richest(seed, most):
        agent = jax.tree.map(lambda leaf, slot=slot: leaf[slot], p.agents)
        text, action = PROGRAMS.show(agent).rsplit(": ", 1)
        source, target = MOVES[int(action)]
        rows.append(
            {
                "program": f"{text}: {source} → {target}",
                "bid": float(p.offer[slot]),
                "wealth": float(p.wealth[slot]),
                "born": int(p.born[slot]),
                "line": len(grown.lineage(seed).ancestors(int(p.ident[slot]))),
            }
        )
    title = f"the richest agents of the market with the highest success (seed {seed})"
    note = "bid: fixed at entry, nan before the first bid · line: generations of ancestors, including the agent"
    return ResultTable("programs", title, rows, note, aside=("born",))


def _economies(grown: dict[str, Grown]) -> ResultTable:
    """Measures of the markets in the last tenth of training, and sums of their cash flows."""
    rows = []
    for name, each in grown.items():
        flows, statistics = each.rounds.flows, each.rounds.statistics
        last = slice(-max(1, statistics.auctions.shape[1] // 10), None)
        total = {name: float(flows[name].sum(1).mean()) for name in flows.names}

        rows.append(
            {
                "economy": name,
                "solved": float((statistics.terminated[:, last].sum(1) / statistics.episodes[:, last].sum(1)).mean()),
                "price": float(
                    flows["sales"][:, last].sum() / (statistics.auctions - statistics.unsold)[:, last].sum()
                ),
                "living": float(each.rounds.num_agents[:, -1].mean()),
                "gini": float(each.rounds.gini[:, last].mean()),
                "births": float((each.rounds.births.ident >= 0).sum((1, 2)).mean()),
                "rewards": total["reward"],
                "allowances": total["endowment"],
                "mint": total["subsidy"],
                "to the house": -total["auctioneer"],
                "rent and tax": -total["rent"] - total["compute_tax"],
                "the dead": -total["wealth_of_the_dead"],
                "unexplained": residual(each),
            }
        )
    note = (
        "means over seeds in the last tenth of training; solved: training instances, price: per sale, living: agents\n"
        "sums of cash flows over all of training are in economies.csv and in the figure"
    )
    aside = ("births", "rewards", "allowances", "mint", "to the house", "rent and tax", "the dead", "unexplained")
    return ResultTable("economies", "markets", rows, note, aside=aside)


def _draw(found: dict[str, np.ndarray], grown: dict[str, Grown]) -> "Figure":
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415

    fig, (left, right) = plotting.figure(2)
    for i, (name, values) in enumerate(found.items()):
        mean = values.mean(0)
        style = {"color": f"C{i}", "marker": "o", "markersize": 4}
        left.plot(SIZES, mean, linewidth=2.5 if name == "hayek" else 1.2, label=name, **style)
        if name == "hayek":
            left.fill_between(SIZES, values.min(0), values.max(0), color=f"C{i}", alpha=0.12)
    left.axvline(TRAINED + 0.5, color="gray", linestyle=":")
    left.text(TRAINED + 0.6, 1.03, "larger than in training", fontsize=7, color="gray")
    left.set(
        xlabel="blocks", ylabel="instances solved", ylim=(-0.02, 1.08), title="frozen, mean over seeds (band: range)"
    )
    left.legend(frameon=False, fontsize=7, loc="lower left")
    for i, (name, each) in enumerate(grown.items()):
        right.plot(each.steps, each.measured["4 blocks"].mean(1), color=f"C{i}", label=name)
    right.set(
        xlabel="environment steps", ylabel="instances of 4 blocks solved", ylim=(-0.02, 1.08), title="during training"
    )
    right.xaxis.set_major_formatter(EngFormatter())
    right.legend(frameon=False, fontsize=8)
    return fig


def run(options: ExperimentOptions) -> Report:
    """Train markets on small instances, test them on larger ones, and test the claims."""
    chosen, instances = plans(options), 64 if options.quick else 200
    grown = grow(
        chosen,
        _progress,
        seeds=options.seeds,
        seed=options.seed,
        label="hayek",
        shown=options.progress,
        folder=options.folder / "markets",
    )
    keys = jax.random.split(key_for(key_of(options.seed), "measurement"), options.seeds)
    found = {}
    for name, each in grown.items():
        found[name] = np.asarray(_exam(each.plan.market, keys, each.economy.population, each.plan.terms, instances))
    hayek = grown["hayek"]
    budget = int(hayek.steps[-1])
    selected, spent = teams(keys, budget, instances)
    found |= {"selection only": np.asarray(selected), "random programs": np.asarray(random_programs(keys, instances))}

    values, next_size = found["hayek"], SIZES.index(TRAINED + 1)
    sizes, team_sizes = reliable(values), reliable(found["selection only"])
    best = int(np.argmax(values.sum(1)))
    solved = values[:, next_size] >= RELIABLE
    verdicts = [
        Verdict.of(
            f"a market solves {TRAINED + 1} blocks reliably (≥ {RELIABLE:.0%}), trained with at most {TRAINED}",
            bool(solved.any()),
            float(values[:, next_size].max()),
            f"{tally(solved)} markets; largest size solved reliably: {int(sizes.max())} (mean {sizes.mean():.1f})",
        ),
        Verdict.of(
            f"on average, markets solve {TRAINED + 1} blocks reliably",
            bool(values[:, next_size].mean() >= RELIABLE),
            float(values[:, next_size].mean()),
            f"mean success {values[:, next_size].mean():.3f}, lowest {values[:, next_size].min():.3f}",
        ),
        Verdict.of(
            "markets solve larger instances than random programs",
            bool(sizes.mean() > reliable(found["random programs"]).mean()),
            float(found["random programs"][:, next_size].mean()),
            f"random programs solve {found['random programs'][:, next_size].mean():.3f} of {TRAINED + 1} blocks",
        ),
        Verdict.of(
            "markets solve larger instances than selection only, with as many steps",
            bool(sizes.mean() > team_sizes.mean()),
            float(sizes.mean() - team_sizes.mean()),
            f"reliable size {sizes.mean():.2f} against {team_sizes.mean():.2f} (best {int(team_sizes.max())}), "
            f"{TRAINED + 1} blocks {values[:, next_size].mean():.3f} against "
            f"{found['selection only'][:, next_size].mean():.3f}",
        ),
    ]
    for name in list(grown)[1:]:
        ablated = found[name][:, next_size]
        worse = ablated < values[:, next_size]
        verdicts.append(
            Verdict.of(
                f"{name}: fewer instances of {TRAINED + 1} blocks are solved",
                bool(worse.mean() >= 0.75),
                float(ablated.mean()),
                f"{ablated.mean():.3f} against {values[:, next_size].mean():.3f}, worse on {tally(worse)} seeds; "
                + by_chance(worse, ablated > values[:, next_size]),
            )
        )
    settings = {
        "quick": options.quick,
        "seeds": options.seeds,
        "env_steps": budget,
        "selection_env_steps": [int(s) for s in spent],
        "terms": terms_of(hayek.plan.terms),
        "sensors": list(SENSORS),
        "published": _PUBLISHED,
        "conservation_residual": float(np.max([residual(each) for each in grown.values()])),
    }
    return Report(
        settings,
        [_table(found), _economies(grown), _programs(hayek, best), _seeds(found)],
        verdicts,
        {"hayek": _draw(found, grown), "life": life(hayek, best, f"hayek, seed {best}")},
    )

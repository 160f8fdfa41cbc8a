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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import deep_market
from jaxmarket.deep_market import DeepMarket, GuardedPrograms, Population, Terms, make_population
from jaxmarket.deep_market.teams import TeamSelection, success_rate
from jaxmarket.environments.adapter import adapt
from jaxmarket.environments.blocks import MOVES, BlocksWorld
from jaxmarket.experiments.claims import Claim, Evidence, at, separated, share_of_seeds, within
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Scope
from jaxmarket.experiments.experiment import Experiment, Table
from jaxmarket.experiments.populations import UNPAID, Grow
from jaxmarket.experiments.results import Results
from jaxmarket.keys import key_for, key_of
from jaxmarket.runs.estimates import interquartile_mean, mean
from jaxmarket.runs.populations import SUMS, GrownMarket, MarketPlan, terms_of
from jaxmarket.types import Array
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT", "PROGRAMS", "SENSORS", "SIZES", "TRAINED", "plans", "reliable", "success", "teams"]

TRAINED = 3
"""Maximum number of blocks of an instance in training."""
SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12)
"""Numbers of blocks of test instances."""
SENSORS = ("correct", "surplus", "needed", "top1", "top2", "top3", "depth2", "depth3")
"""The sensors that programs read; see `blocks.SENSORS`."""
PROGRAMS = GuardedPrograms(len(SENSORS), len(MOVES), length=3, names=SENSORS)
RELIABLE = 0.9
"""Success rate from which a size counts as solved."""

_AGENTS = 128
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


def _market() -> DeepMarket:
    return DeepMarket(adapt(BlocksWorld(tuple(range(1, TRAINED + 1)), sensors=SENSORS)), PROGRAMS, _AGENTS)


def plans(quick: bool) -> dict[str, MarketPlan]:
    """The market and its ablations by name; a quick run has only the first."""
    market, rounds = _market(), 15_000 if quick else 100_000
    whole = MarketPlan(market, _TERMS, rounds, 20, max_births=1, num_agents=40, wealth=1.0, chunks=10, settling=2)
    changes: dict[str, dict[str, Any]] = {
        "hayek": {},
        "no conservation": {"market": dataclasses.replace(market, mechanism=UNPAID)},
        "no property rights": {"market": dataclasses.replace(market, property_rights=False)},
        "no rent": {"terms": _TERMS.replace(rent=0.0, compute_tax=0.0)},
        "no mutation": {"terms": _TERMS.replace(p_offspring=0.0)},
    }
    return {name: dataclasses.replace(whole, **changes[name]) for name in list(changes)[: 1 if quick else None]}


# --- tests


def _examine(act: Callable[[Array, Array], Array], key: Array, sizes: tuple[int, ...], instances: int) -> Array:
    """Success on new instances of each size: f [sizes]."""
    env = adapt(BlocksWorld((1,), sensors=SENSORS, capacity=max(SIZES)))

    def success_on(each: tuple[Array, Array]) -> Array:
        key, size = each
        return success_rate(act, key, env, env.default_params.replace(sizes=size[None]), instances)[0]

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


def _exam(keys: Array, grown: GrownMarket, *, instances: int) -> Arrays:
    """Success of the frozen populations per size: f [seeds, sizes]."""
    market = grown.plan.market
    exam = jax.vmap(lambda key, p, terms: success(market, key, p, terms, SIZES, instances), (0, 0, None))
    return {"success": jax.jit(exam)(keys, grown.economy.population, grown.plan.terms)}


def reliable(success: np.ndarray) -> np.ndarray:
    """The largest size up to which all sizes are solved with `RELIABLE` success f [..., sizes]: i [...], or 0."""
    return np.array([0, *SIZES])[np.cumprod(success >= RELIABLE, axis=-1).sum(-1)]


@functools.partial(jax.jit, static_argnames=("budget", "instances"))
def teams(keys: Array, *, budget: int, instances: int) -> Arrays:
    """Selection of teams of programs (`TeamSelection`) on training instances, within a budget of environment steps.

    ``success`` of the best team at the end, f [seeds, sizes], and ``env_steps`` used, i32 [seeds].
    """
    selection = TeamSelection(_market().env, PROGRAMS)

    def evolve(key: Array) -> tuple[Array, Array]:
        key_init, key_run, key_exam = jax.random.split(key, 3)
        team, spent = selection.evolve(key_init, key_run, jnp.zeros(len(SENSORS)), budget, shortest=3)
        return _examine(functools.partial(selection.act, team), key_exam, SIZES, instances), spent

    success, spent = jax.vmap(evolve)(keys)
    return {"success": success, "env_steps": spent}


@functools.partial(jax.jit, static_argnames=("instances",))
def random_programs(keys: Array, *, instances: int) -> Arrays:
    """Success of random programs, of which the highest bidder acts: f [seeds, sizes]."""
    market = _market()

    def success_of_random(key: Array) -> Array:
        key_agents, key_exam = jax.random.split(key)
        agents = jax.vmap(PROGRAMS.init, (0, None))(jax.random.split(key_agents, _AGENTS), jnp.zeros(len(SENSORS)))
        return success(market, key_exam, make_population(agents, jnp.ones(_AGENTS)), Terms(), SIZES, instances)

    return {"success": jax.vmap(success_of_random)(keys)}


# --- conditions

_BASELINES = ("selection only", "random programs")


def _on_test_keys(function: Callable[..., Arrays], seed: int, keys: Array, *results: GrownMarket) -> Arrays:
    return function(jax.random.split(key_for(key_of(seed), "measurement"), len(keys)), *results)


def _conditions(scope: Scope) -> list[Condition]:
    chosen, instances = plans(scope.quick), 64 if scope.quick else 200

    def test(name: str, function: Callable[..., Arrays], *inputs: str, **bound: int) -> Compute:
        function = functools.partial(function, instances=instances, **bound)
        return Compute(name, functools.partial(_on_test_keys, function, scope.seed), inputs)

    return [
        *(Grow(name, plan, _progress) for name, plan in chosen.items()),
        *(test(_exam_of(name), _exam, name) for name in chosen),
        test("selection only", teams, budget=int(chosen["hayek"].steps[-1])),
        test("random programs", random_programs),
    ]


def _exam_of(name: str) -> str:
    return name if name in _BASELINES else f"{name}: exam"


def _tested(results: Results) -> dict[str, np.ndarray]:
    return {name: results[_exam_of(name)]["success"] for name in (*plans(results.scope.quick), *_BASELINES)}


# --- claims

_NEXT = f"{TRAINED + 1} blocks"


def _means(*names: str) -> Evidence:
    return lambda results: f"{_NEXT}: " + " against ".join(f"{at(n, _NEXT)(results).mean():.3f}" for n in names)


def _claims(scope: Scope) -> list[Claim]:
    exam = _exam_of("hayek")
    hayek, sizes = at(exam, _NEXT), at(exam, "reliable")
    return [
        share_of_seeds(
            f"a market solves {_NEXT} reliably (≥ {RELIABLE:.0%}), trained with at most {TRAINED}",
            hayek,
            at_least=RELIABLE,
            share=1 / scope.seeds,
        ),
        within(f"on average, markets solve {_NEXT} reliably", hayek, at_least=RELIABLE, estimate=mean),
        *(
            separated(f"markets solve larger instances than {name}{more}", sizes, at(name, "reliable"), evidence=means)
            for name, more in (("random programs", ""), ("selection only", ", with as many steps"))
            for means in [_means(exam, name)]
        ),
        *(
            share_of_seeds(
                f"{name}: fewer instances of {_NEXT} are solved",
                at(_exam_of(name), _NEXT),
                below=hayek,
                share=0.75,
                evidence=_means(_exam_of(name), exam),
            )
            for name in list(plans(scope.quick))[1:]
        ),
    ]


# --- tables and figures

_PUBLISHED = """Baum and Durdanovic (2000), from our notes: Hayek 3 solved goal stacks of 200 blocks, other methods \
such as genetic programming at most 8 (other sensors, other programs, instances that grow throughout training)"""


def _success_rows(results: Results) -> list[dict[str, Any]]:
    return [
        {"who": name}
        | {str(n): interquartile_mean(values[:, i]) for i, n in enumerate(SIZES)}
        | {"reliable": float(reliable(values).mean()), "best": int(reliable(values).max())}
        for name, values in _tested(results).items()
    ]


def _seed_rows(results: Results) -> list[dict[str, Any]]:
    return [
        {"who": name, "seed": seed} | {str(n): float(values[seed, i]) for i, n in enumerate(SIZES)}
        for name, values in _tested(results).items()
        for seed in range(len(values))
    ]


def _best(results: Results) -> int:
    return int(np.argmax(results[_exam_of("hayek")]["success"].sum(1)))


def _program_rows(results: Results, most: int = 12) -> list[dict[str, Any]]:
    grown, seed = results["hayek"], _best(results)
    p, lineage = grown.population(seed), grown.lineage(seed)

    def row(slot: int) -> dict[str, Any]:
        text, action = PROGRAMS.show(jax.tree.map(lambda leaf: leaf[slot], p.agents)).rsplit(": ", 1)
        source, target = MOVES[int(action)]
        return {
            "program": f"{text}: {source} → {target}",
            "bid": float(p.offer[slot]),
            "wealth": float(p.wealth[slot]),
            "born": int(p.born[slot]),
            "line": len(lineage.ancestors(int(p.ident[slot]))),
        }

    return [row(slot) for slot in grown.richest(seed, most)]


def _draw(results: Results) -> Any:
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415

    fig, (left, right) = plotting.figure(2)
    for i, (name, values) in enumerate(_tested(results).items()):
        middle = values.mean(0)
        style = {"color": f"C{i}", "marker": "o", "markersize": 4}
        left.plot(SIZES, middle, linewidth=2.5 if name == "hayek" else 1.2, label=name, **style)
        if name == "hayek":
            left.fill_between(SIZES, values.min(0), values.max(0), color=f"C{i}", alpha=0.12)
    left.axvline(TRAINED + 0.5, color="gray", linestyle=":")
    left.text(TRAINED + 0.6, 1.03, "larger than in training", fontsize=7, color="gray")
    left.set(xlabel="blocks", ylabel="instances solved", title="frozen, mean over seeds (band: range)")
    left.legend(frameon=False, fontsize=7, loc="lower left")
    for i, name in enumerate(plans(results.scope.quick)):
        grown = results[name]
        right.plot(grown.plan.steps, grown.measured["4 blocks"].mean(1), color=f"C{i}", label=name)
    right.set(xlabel="environment steps", ylabel="instances of 4 blocks solved", title="during training")
    right.xaxis.set_major_formatter(EngFormatter())
    right.legend(frameon=False, fontsize=8)
    for ax in (left, right):
        ax.set_ylim(-0.02, 1.08)
    return fig


EXPERIMENT = Experiment(
    name="hayek",
    shows="programs with wealth, trained with three blocks, tested with twelve; ablations of money, ownership, rent",
    source="Baum (1999); Baum and Durdanovic (2000)",
    conditions=_conditions,
    measures={
        _NEXT: lambda exam: exam["success"][:, SIZES.index(TRAINED + 1)],
        "reliable": lambda exam: reliable(exam["success"]),
    },
    claims=_claims,
    tables=[
        Table(
            "hayek",
            "blocks world: share of instances solved, by size",
            _success_rows,
            "success on new instances of each number of blocks, interquartile mean over seeds ± the larger side of its "
            f"95% bootstrap interval; trained with at most {TRAINED}\nreliable: the size up to which all sizes are "
            f"solved in {RELIABLE:.0%} of instances, mean and maximum over seeds; {max(SIZES)} is the largest size "
            "tested",
            aside=tuple(str(n) for n in SIZES if n not in (TRAINED, TRAINED + 1, 6, 8)),
        ),
        Table(
            "economies",
            "markets",
            lambda results: [{"economy": name, **results[name].summary()} for name in plans(results.scope.quick)],
            "means over seeds in the last tenth of training; solved: training instances, price: per sale, "
            "living: agents\nsums of cash flows over all of training are in economies.csv and in the figure",
            aside=SUMS,
        ),
        Table(
            "programs",
            lambda results: f"the richest agents of the market with the highest success (seed {_best(results)})",
            _program_rows,
            "bid: fixed at entry, nan before the first bid · line: generations of ancestors, including the agent",
            aside=("born",),
        ),
        Table("seeds", "every seed", _seed_rows, shown=False),
    ],
    figures={
        "hayek": _draw,
        "life": lambda results: plotting.market_history(results["hayek"], _best(results), "hayek"),
    },
    seeds=8,
    facts=lambda results: {
        "env_steps": int(results["hayek"].plan.steps[-1]),
        "terms": terms_of(_TERMS),
        "published": _PUBLISHED,
        "conservation_residual": float(np.max([results[name].residual for name in plans(results.scope.quick)])),
    },
)

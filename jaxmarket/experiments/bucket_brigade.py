"""Holland's classifier system as a deep market: the 6-multiplexer, and Wilson's Woods1.

The bucket brigade: rules that match bid c · specificity · wealth (Holland 1985; Goldberg 1989, ch. 6), and the highest
bid wins. The winner pays it to the seller of the state, acts and receives the reward. A wealth tax is Holland's life
tax. The genetic algorithm: rich rules have children by recombination and mutation, which replace the poorest rules.

Episodes of the multiplexer have one step, so rules never pay each other: it tests the auction and the genetic
algorithm. In Woods1 only the rule that reaches the food is rewarded; all others are paid by the next buyer. Payments
are not discounted; rent, a share of its wealth that every winner pays, makes short paths more valuable: a rule that
bids a share x of its wealth and pays a share ρ of it as rent can pay at most x / (x + ρ) of what it earns.

All measurements are exact: every input, or every cell, is sold to the frozen population. A state without bids counts
as wrong.

Ablations, on the same seeds: the mint pays sellers, and buyers pay nothing; a random agent is paid instead of the
owner; neither tax nor rent; no offspring, so that all new agents are random; bids that do not depend on specificity.
"""

import dataclasses
import functools
import itertools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import deep_market
from jaxmarket.deep_market import DeepMarket, Population, Terms
from jaxmarket.deep_market.representations import WILDCARD, ClassifierRules
from jaxmarket.environments.adapter import adapt
from jaxmarket.environments.mazes import Maze, MazeState, Woods1
from jaxmarket.environments.multiplexer import Multiplexer, MultiplexerState
from jaxmarket.experiments.economies import UNPAID, Grown, Plan, grow, life, residual, terms_of
from jaxmarket.experiments.report import ExperimentOptions, Report, ResultTable, Verdict, by_chance, tally
from jaxmarket.keys import key_for, key_of
from jaxmarket.types import Array, real
from jaxmarket.view import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "CONDITIONS",
    "accuracy",
    "is_optimal",
    "mean_steps",
    "optimal_rules",
    "plans",
    "policy",
    "rule_string",
    "run",
    "walk",
]

SOLVED = 0.95
"""Share of the 64 inputs that must be answered correctly."""

_MOST = 1e30  # money; the largest float32 is 3e38

NEAR = 2.0
"""Bound on mean steps to food in Woods1 that count as near the optimum of 27/16 = 1.6875: five more for 16 starts."""


# --- measurements


def accuracy(market: DeepMarket, key: Array, population: Population, terms: Terms) -> dict[str, Array]:
    """Share of all 2^n inputs that the frozen population answers correctly, and share that it answers: f [] each."""
    env: Multiplexer = market.env.env
    bits = jnp.asarray(list(itertools.product((0, 1), repeat=env.bits)), jnp.int32)
    states = MultiplexerState(bits=bits, time=jnp.zeros(len(bits), jnp.int32))
    params = market.env.default_params
    outcome, _, action = deep_market.forward(market, key, population, bits.astype(real()), states, params, terms)
    sold = outcome.winner >= 0
    return {"right": (sold & (action == env.answer(bits))).mean(), "answered": sold.mean()}


def policy(market: DeepMarket, key: Array, population: Population, terms: Terms) -> tuple[Array, Array, Array]:
    """The auction of every place of a `Maze` in the frozen population, in the order of `Maze.places`.

    Returns:
        Whether any agent bids, bool [S], the price f [S], and the winner's move i32 [S].
    """
    maze: Maze = market.env.env
    params, places = maze.default_params, len(maze.places)
    states = MazeState(index=jnp.arange(places, dtype=jnp.int32), time=jnp.zeros(places, jnp.int32))
    outcome, price, action = deep_market.forward(market, key, population, params.views, states, params, terms)
    return outcome.winner >= 0, price, action


def walk(successors: Array, food: Array, starts: Array, moves: Array, limit: int) -> Array:
    """Steps to food from every start, ``limit`` if it is not reached within them: f [n].

    Args:
        successors: i32 [S, moves], the place that each move leads to.
        food: bool [S].
        starts: i32 [n].
        moves: i32 [S], the move made in each place.
        limit: maximum number of steps.
    """
    after = jnp.take_along_axis(successors, moves[:, None], 1)[:, 0]

    def step(at: Array, _: None) -> tuple[Array, Array]:
        at = jnp.where(food[at], at, after[at])
        return at, ~food[at]

    _, walking = jax.lax.scan(step, starts, None, limit)
    return jnp.minimum(1 + walking.sum(0), limit).astype(real())


def mean_steps(market: DeepMarket, key: Array, population: Population, terms: Terms) -> dict[str, Array]:
    """Mean steps to food over all starts of a `Maze`, and the share of starts that reach it within the time limit.

    A start that does not reach food counts as the limit. A place without bids leads to itself.
    """
    maze: Maze = market.env.env
    params = maze.default_params
    sold, _, moves = policy(market, key, population, terms)
    stay = jnp.arange(len(maze.places), dtype=jnp.int32)[:, None]
    successors = jnp.where(sold[:, None], params.successors, stay)
    steps = walk(successors, params.food, params.starts, moves, maze.limit)
    return {"steps": steps.mean(), "fed": (steps < maze.limit).mean()}


def rule_string(condition: Any, action: Any, groups: tuple[int, ...]) -> str:
    """A rule in the usual notation, ``01 #1## : 1``; ``groups`` are lengths of the parts of the condition."""
    symbols = "".join("#" if c == WILDCARD else str(int(c)) for c in condition)
    ends = list(itertools.accumulate(groups))
    return " ".join(symbols[end - size : end] for size, end in zip(groups, ends, strict=True)) + f" : {int(action)}"


def is_optimal(condition: Any, action: Any, address: int) -> bool:
    """Whether a rule of the multiplexer is one of the 2 · 2^address correct rules that are maximally general.

    Such a rule specifies the address and the data bit at this address, ignores all other bits, and answers that bit.
    """
    head, data = [int(c) for c in condition[:address]], [int(c) for c in condition[address:]]
    if WILDCARD in head:
        return False
    where = functools.reduce(lambda number, bit: 2 * number + bit, head, 0)
    others = data[:where] + data[where + 1 :]
    return data[where] == int(action) and all(c == WILDCARD for c in others)


# --- conditions

CONDITIONS = ("market", "no conservation", "no property rights", "no tax", "no mutation", "no specificity")
"""The market, and the ablations."""

PUBLISHED = (
    ("6-multiplexer", "SCS (Goldberg 1989), perfect rules given, bucket brigade", "nearly all correct"),
    ("6-multiplexer", "BOOLE (Wilson 1987)", "about 95% after some thousand trials"),
    ("6-multiplexer", "XCS (Wilson 1995)", "about 100% after some 5,000 problems, half of them exploration"),
    ("Woods1", "ZCS (Wilson 1994)", "levels off somewhat above 2 steps; 1.7 is best, random about 27"),
)
"""Results of other systems: XCS from its author's pages, the others from memory and not confirmed."""


def _ablate(name: str, plan: Plan) -> Plan:
    """The plan with one ablation."""
    market, terms, representation = plan.market, plan.terms, plan.market.representation
    assert isinstance(representation, ClassifierRules)
    match name:
        case "no conservation":
            market = dataclasses.replace(market, mechanism=UNPAID)
        case "no property rights":
            market = dataclasses.replace(market, property_rights=False)
        case "no tax":
            # Zeros and not None, so that the compiled program is the same.
            terms = terms.replace(wealth_tax=0.0, rent=None if terms.rent is None else 0.0)
        case "no mutation":
            terms = terms.replace(p_offspring=0.0)
        case "no specificity":
            # The mean bid of new agents is unchanged: half of their symbols are not #.
            representation = dataclasses.replace(representation, base=1.0, coefficient=0.5 * representation.coefficient)
            market = dataclasses.replace(market, representation=representation)
    return dataclasses.replace(plan, name=f"{plan.name}: {name}", market=market, terms=terms)


def plans(task: str, quick: bool) -> list[Plan]:
    """The market and its ablations, for ``multiplexer`` or ``woods1``.

    A new agent must be able to win at once, or it never acts: it bids c · specificity · endowment / instances, and no
    state is worth more than 1. With c = .2, 16 instances and an endowment of 80, a fully specific rule bids 1.
    In the multiplexer, the mint gives the same endowment to children; in Woods1, children have only what they inherit.
    """
    if task == "multiplexer":
        market = DeepMarket(adapt(Multiplexer(2)), ClassifierRules(6, 2, coefficient=0.2, wildcards=0.4), 400, 16)
        terms = Terms(
            wealth_tax=2e-4, endowment=80.0, child_endowment=80.0, birth_rate=0.5, inheritance=0.1, p_offspring=1.0
        )
        rounds = 400 if quick else 1600
    else:
        market = DeepMarket(adapt(Woods1()), ClassifierRules(16, 8, coefficient=0.2, wildcards=0.4), 400, 16)
        terms = Terms(wealth_tax=2e-4, rent=0.06, endowment=80.0, birth_rate=0.5, inheritance=0.1, p_offspring=1.0)
        rounds = 400 if quick else 1200
    plan = Plan(
        name=task,
        market=market,
        terms=terms.replace(replace_poorest=True),
        rounds=rounds,
        period=4,
        max_births=2,
        num_agents=200,
        wealth=float(terms.endowment),
        chunks=20,
    )
    return [_ablate(name, plan) for name in CONDITIONS]


# --- the report


def _per_episode(grown: Grown, field: str) -> np.ndarray:
    """Mean return or length of the episodes that ended in each chunk of training: f [chunks, seeds]."""
    statistics, chunks = grown.rounds.statistics, grown.plan.chunks

    def sums(values: np.ndarray) -> np.ndarray:
        return values.reshape(len(values), chunks, -1).sum(-1).T

    return sums(getattr(statistics, field)) / np.maximum(1, sums(np.asarray(statistics.episodes)))


def _reached(grown: Grown) -> np.ndarray:
    """Auctions until the measurement after which accuracy stays at `SOLVED`: f [seeds], inf if there is none."""
    below = grown.measured["right"] < SOLVED  # [chunks, seeds]
    last = np.where(below.any(0), below.shape[0] - np.argmax(below[::-1], 0), 0)  # measurements up to the last failure
    return np.append(grown.steps, np.inf)[last]


def _finite(grown: Grown) -> Grown:
    """The rounds before money exceeded `_MOST` on any seed."""
    large = ~(np.abs(grown.rounds.money) < _MOST).all(0)  # [rounds]; True for NaN
    count = int(np.argmax(large)) if large.any() else grown.rounds.money.shape[1]
    return dataclasses.replace(grown, rounds=jax.tree.map(lambda leaf: leaf[:, :count], grown.rounds))


def _range(values: np.ndarray) -> str:
    return f"{values.min():.3f} to {values.max():.3f}"


def _multiplexer_row(name: str, grown: Grown) -> dict[str, Any]:
    right, reached = grown.measured["right"][-1].astype(np.float64), _reached(grown)
    middle = float(np.quantile(reached, 0.5, method="inverted_cdf"))
    return {
        "condition": name,
        "right": right.mean(),
        "seeds": _range(right),
        "95%": tally(right >= SOLVED),
        "all 64": tally(right == 1),
        "auctions to 95%": int(middle) if np.isfinite(middle) else None,
        "right while learning": _per_episode(grown, "returns")[-1].mean(),
        "money": f"{grown.rounds.money[:, -1].mean():.3g}",
        "mint": f"{grown.rounds.flows['subsidy'].sum(1).mean():.3g}",
        "residual": residual(_finite(grown)),
    }


def _woods_row(name: str, grown: Grown) -> dict[str, Any]:
    steps = grown.measured["steps"][-1].astype(np.float64)
    return {
        "condition": name,
        "steps while learning": _per_episode(grown, "lengths")[-1].mean(),
        "steps, frozen": steps.mean(),
        "median": np.median(steps),
        "seeds": _range(steps),
        "near": tally(steps <= NEAR),
        "cells fed": grown.measured["fed"][-1].mean(),
        "money": f"{grown.rounds.money[:, -1].mean():.3g}",
        "mint": f"{grown.rounds.flows['subsidy'].sum(1).mean():.3g}",
        "residual": residual(_finite(grown)),
    }


def _rules(grown: Grown, seed: int, most: int = 20) -> list[dict[str, Any]]:
    """The richest rules of one seed of the multiplexer."""
    population, address = grown.population(seed), 2
    return [
        {
            "rule": rule_string(population.agents.condition[i], population.agents.action[i], (address, 2**address)),
            "wealth": float(population.wealth[i]),
            "optimal": is_optimal(population.agents.condition[i], population.agents.action[i], address),
            "ident": int(population.ident[i]),
            "parent": int(population.parent[i]),
            "born": int(population.born[i]),
        }
        for i in grown.richest(seed, most)
    ]


def optimal_rules(population: Population, address: int) -> set[str]:
    """The optimal rules of the multiplexer that living agents have."""
    agents = population.agents
    return {
        rule_string(condition, action, (address, 2**address))
        for condition, action, alive in zip(agents.condition, agents.action, population.alive, strict=True)
        if alive and is_optimal(condition, action, address)
    }


def _curve(ax: "Axes", x: np.ndarray, values: np.ndarray, label: str, color: str) -> None:
    """Draw the mean over seeds with the interquartile range; values f [chunks, seeds]."""
    low, high = np.quantile(values, (0.25, 0.75), axis=1)
    width = 2 if label == "market" else 1.2
    plotting.draw_band(ax, x, values.mean(1), low, high, color=color, label=label, linewidth=width)


def _curves(grown: dict[str, Grown]) -> "Figure":
    """Learning curves of all conditions on both tasks."""
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415

    fig, (mux, woods) = plotting.figure(columns=2, width=6.0, height=4.2)
    for i, name in enumerate(CONDITIONS):
        one, other = grown[f"multiplexer: {name}"], grown[f"woods1: {name}"]
        _curve(mux, one.steps, one.measured["right"], name, f"C{i}")
        _curve(woods, other.steps, _per_episode(other, "lengths"), name, f"C{i}")
    mux.axhline(SOLVED, color="black", linewidth=0.8, linestyle="--")
    mux.set(
        xlabel="auctions", ylabel="share of inputs answered correctly, frozen", ylim=(0, 1.02), title="6-multiplexer"
    )
    woods.axhline(Woods1().mean_shortest(), color="black", linewidth=0.8, linestyle="--")
    woods.set(xlabel="auctions", ylabel="steps to food during training", title="Woods1 (dashed: 27/16, the optimum)")
    woods.set_yscale("log")
    woods.set_yticks([2, 3, 5, 10, 20, 50], ["2", "3", "5", "10", "20", "50"])
    woods.minorticks_off()
    for ax in (mux, woods):
        ax.xaxis.set_major_formatter(EngFormatter())
    mux.legend(frameon=False, fontsize=8, ncol=2, loc="lower right")
    return fig


def _map(grown: Grown, seed: int, key: Array) -> "Figure":
    """The maze of one seed: the price of every cell and the move of its buyer."""
    maze: Maze = grown.plan.market.env.env
    population = jax.tree.map(jnp.asarray, grown.population(seed))
    sold, price, moves = jax.device_get(policy(grown.plan.market, key, population, grown.plan.terms))
    fig, (ax,) = plotting.figure(width=5.6, height=4.8)
    rows, columns = len(maze.layout), len(maze.layout[0])
    prices = np.full((rows, columns), np.nan)
    for i, place in enumerate(maze.places):
        if place in maze.free and sold[i]:
            prices[place] = price[i]
    image = ax.imshow(prices, cmap="YlGn", vmin=0, vmax=max(1e-3, float(np.nanmax(prices))))
    fig.colorbar(image, label="price", shrink=0.85)
    for row, column in itertools.product(range(rows), range(columns)):
        what = maze.layout[row][column]
        if what != ".":
            ax.text(
                column, row, what, ha="center", va="center", fontsize=16, color="tab:gray" if what == "O" else "tab:red"
            )
    for i, (row, column) in enumerate(maze.places):
        if (row, column) not in maze.free:
            continue
        ax.text(column, row + 0.38, f"{prices[row, column]:.2f}", ha="center", va="center", fontsize=8)
        if sold[i]:
            down, right = maze.moves[int(moves[i])]
            start, end = (
                (column - 0.2 * right, row - 0.08 - 0.2 * down),
                (column + 0.2 * right, row - 0.08 + 0.2 * down),
            )
            ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "black"})
    ax.grid(visible=False)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(f"Woods1, seed {seed}: price of each cell and move of its buyer", fontsize=9)
    return fig


def _counts(worse: np.ndarray) -> str:
    """The numbers of seeds on which a condition is worse by a positive and better by a negative amount, as text."""
    return f"worse on {tally(worse > 0)} seeds, better on {tally(worse < 0)}; {by_chance(worse > 0, worse < 0)}"


def _verdicts(grown: dict[str, Grown]) -> list[Verdict]:
    mux, woods = grown["multiplexer: market"], grown["woods1: market"]
    right, learning = mux.measured["right"][-1].astype(np.float64), _per_episode(woods, "lengths")[-1]
    frozen, optimum = woods.measured["steps"][-1].astype(np.float64), Woods1().mean_shortest()
    verdicts = [
        Verdict.of(
            "[multiplexer] the final population answers at least 95% of the 64 inputs correctly, mean over seeds",
            right.mean() >= SOLVED, right.mean(),
            f"{right.mean():.4f}, seeds {_range(right)}; {tally(right >= SOLVED)} seeds at 95%, "
            f"{tally(right == 1)} at 100%",
        ),
        Verdict.of(
            f"[Woods1] at the end of training, food is reached in at most {NEAR:g} steps, mean over seeds",
            learning.mean() <= NEAR, learning.mean(),
            f"{learning.mean():.3f}, seeds {_range(learning)}; the optimum is {optimum:.4f}",
        ),
        Verdict.of(
            f"[Woods1] the same for the frozen population, mean over the {len(Woods1().free)} cells and seeds",
            frozen.mean() <= NEAR, frozen.mean(),
            f"{frozen.mean():.3f}, median {np.median(frozen):.3f}, seeds {_range(frozen)}; "
            f"{tally(frozen <= NEAR)} seeds; food is reached from {woods.measured['fed'][-1].mean():.1%} of all cells",
        ),
    ]  # fmt: skip
    for name in CONDITIONS[1:]:
        less = right - grown[f"multiplexer: {name}"].measured["right"][-1]
        more = _per_episode(grown[f"woods1: {name}"], "lengths")[-1] - learning
        claim = f"[multiplexer] {name}: fewer correct answers, on most seeds"
        evidence = f"{less.mean():+.3f} on average, {_counts(less)}"
        if name == "no property rights":
            evidence = "episodes have one step, so the auctioneer sells every state and no agent is ever paid"
            verdicts.append(Verdict(claim, "not testable", None, evidence))
        else:
            verdicts.append(Verdict.of(claim, bool((less > 0).mean() > 0.5), less.mean(), evidence))
        verdicts += [
            Verdict.of(
                f"[Woods1] {name}: more steps during training, on most seeds",
                bool((more > 0).mean() > 0.5), more.mean(),
                f"{more.mean():+.2f} on average, {_counts(more)}",
            ),
        ]  # fmt: skip
    return verdicts


def run(options: ExperimentOptions) -> Report:
    """Run the market and its ablations on both tasks, and test the claims."""
    grown: dict[str, Grown] = {}
    for task, evaluate in (("multiplexer", accuracy), ("woods1", mean_steps)):
        grown |= grow(
            plans(task, options.quick),
            evaluate,
            seeds=options.seeds,
            seed=options.seed,
            label=f"bucket brigade, {task}",
            shown=options.progress,
            folder=options.folder / "markets",
        )
    mux, woods = grown["multiplexer: market"], grown["woods1: market"]
    best, good = int(np.argmax(mux.measured["right"][-1])), int(np.argmin(woods.measured["steps"][-1]))
    present = [len(optimal_rules(mux.population(seed), 2)) for seed in range(options.seeds)]
    tables = [
        ResultTable(
            "multiplexer", f"6-multiplexer, {options.seeds} seeds, {mux.steps[-1]:,} auctions each",
            [_multiplexer_row(name, grown[f"multiplexer: {name}"]) for name in CONDITIONS],
            "right: share of the 64 inputs, frozen population, mean over seeds\n"
            "auctions to 95%: until accuracy stays there, median over seeds · mint: paid to sellers, per seed",
            aside=("money", "mint", "residual"),
        ),
        ResultTable(
            "woods1", f"Woods1, {options.seeds} seeds, {woods.steps[-1]:,} auctions each",
            [_woods_row(name, grown[f"woods1: {name}"]) for name in CONDITIONS],
            f"steps to food: the optimum is {Woods1().mean_shortest():.4f}, random moves take about 27\n"
            f"frozen: from each of the 16 cells, 50 if food is not reached · near: seeds with {NEAR:g} or less",
            aside=("money", "residual"),
        ),
        ResultTable(
            "rules", f"the richest rules of seed {best} (multiplexer)", _rules(mux, best),
            f"optimal: one of the 8 correct, maximally general rules; {present[best]} of them "
            f"are present, {np.mean(present):.1f} on average over seeds",
        ),
        ResultTable(
            "seeds", "every seed of the market",
            [
                {
                    "seed": seed,
                    "multiplexer right": float(mux.measured["right"][-1, seed]),
                    "auctions to 95%": None if np.isinf(_reached(mux)[seed]) else int(_reached(mux)[seed]),
                    "optimal rules": present[seed],
                    "woods1 steps, frozen": float(woods.measured["steps"][-1, seed]),
                    "woods1 steps while learning": float(_per_episode(woods, "lengths")[-1, seed]),
                }
                for seed in range(options.seeds)
            ],
            shown=False,
        ),
        ResultTable(
            "published", "results reported for other algorithms with other budgets, from memory and not confirmed",
            [dict(zip(("task", "system", "reported"), row, strict=True)) for row in PUBLISHED],
        ),
    ]  # fmt: skip
    settings = {
        "seeds": options.seeds,
        "quick": options.quick,
        "terms": {task: terms_of(grown[f"{task}: market"].plan.terms) for task in ("multiplexer", "woods1")},
        "optimal_rules": present,
        "conservation_residual": float(np.max([residual(_finite(each)) for each in grown.values()])),
    }
    figures = {
        "learning": _curves(grown),
        "map": _map(woods, good, key_for(key_of(options.seed), "measurement")),
        "life-multiplexer": life(mux, best, f"6-multiplexer, seed {best}"),
        "life-woods1": life(woods, good, f"Woods1, seed {good}"),
    }
    return Report(settings=settings, tables=tables, verdicts=_verdicts(grown), figures=figures)

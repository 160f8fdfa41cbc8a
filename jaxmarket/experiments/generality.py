"""What pays for general rules in a market: multiplexers of 6, 11 and 20 bits beside XCS, and Woods1.

Rules bid what they expect to earn, less a margin and less its risk; those that agree buy a state together; each pays a
fee per auction; and a random bidder wins a share of the auctions (`plans`). A general rule takes part in more purchases
than a special one and pays the same fee. A rule that is wrong somewhere has an uncertain revenue and bids little. Each
of these parts is removed in turn, on the same seeds. With *private revenues* rules learn from their own purchases only,
which *alone* are not joint ones either; *local parents* adds a part, the genetic algorithm of XCS.

One problem is one auction of one instance. All measurements are of frozen populations, and exact but for 20 bits, which
belong to ``--full`` runs: there, random inputs are asked. A state without bids counts as wrong. XCS is scikit-XCS
(extra ``rivals``), which has the same kind of problems: inputs drawn uniformly, one at a time, by random numbers of its
own.
"""

import dataclasses
import functools
import importlib.util
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.deep_market import DeepMarket, Population, RiskAverseRules
from jaxmarket.deep_market.evaluation import accuracy, is_optimal, mean_steps, richest_rules, rule_string
from jaxmarket.environments.adapter import adapt
from jaxmarket.environments.mazes import Woods1
from jaxmarket.environments.multiplexer import Multiplexer
from jaxmarket.experiments.claims import Claim, at, majority, share_of_seeds, tally
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Grow, Scope
from jaxmarket.experiments.experiment import Experiment, Table, by_condition, column
from jaxmarket.experiments.populations import estimating_terms, life, market_facts, measured
from jaxmarket.experiments.results import Results
from jaxmarket.runs.curves import first_reach, reached_by
from jaxmarket.runs.estimates import mean
from jaxmarket.runs.populations import GrownMarket, MarketPlan
from jaxmarket.types import Array
from jaxmarket.view import plotting

__all__ = ["ADDRESSES", "CONDITIONS", "EXPERIMENT", "plans", "xcs"]

CONDITIONS = (
    "market",
    "no fee",
    "no joint purchases",
    "no risk aversion",
    "no exploration",
    "private revenues",
    "private revenues alone",
    "local parents",
)
"""The market, and what is changed in it."""

ADDRESSES = {"6 bits": 2, "11 bits": 3, "20 bits": 4}
"""Address bits of the multiplexers."""

TASKS = (*ADDRESSES, "woods1")
_ABLATED = ("6 bits", "woods1")
_WITH_XCS = ("6 bits", "11 bits")
_NEAR = 1.9  # mean steps to food in Woods1 that count as near the optimum, 27/16
_MOST = 7 / 8  # share of the seeds
_RICHEST = 20
_XCS_RULES = {"6 bits": 400, "11 bits": 800}  # N


def plans(task: str, quick: bool) -> dict[str, MarketPlan]:
    """The market and what is changed in it by name, for one of `TASKS`.

    The fee is the compute tax of rules that all cost 1 unit; rules cannot pay it longer than ``1 / fee`` auctions from
    their endowment. There are no agents at the beginning: the first ones are born into states that no agent bids for.
    """
    rules: dict[str, Any]
    if task == "woods1":
        env, capacity, rounds, period, births = Woods1(), 400, 5000, 8, 2
        rules, fee, tax, exploration, settling = {"wildcards": 0.33}, 0.002, 1e-3, 0.3, 2
    elif task == "6 bits":
        env, capacity, rounds, period, births = Multiplexer(ADDRESSES[task]), 400, 2500, 4, 2
        rules, fee, tax, exploration, settling = {"margin": 0.3, "wildcards": 0.33}, 0.002, 3e-3, 0.5, 0
    else:
        env, period, births, tax, exploration, settling = Multiplexer(ADDRESSES[task]), 4, 8, 1e-3, 0.7, 2
        capacity, rounds, fee, wildcards = {
            "11 bits": (1500, 10_000, 0.0005, 0.5),
            "20 bits": (3000, 30_000, 0.00025, 0.75),
        }[task]
        rules = {"margin": 0.5, "wildcards": wildcards, "mutation": 0.02}
    width = env.observation_space(env.default_params).shape[0]
    representation = RiskAverseRules(width, env.num_actions, **rules)
    market = DeepMarket(adapt(env), representation, capacity, joint_purchases=0.9)
    plan = MarketPlan(
        market,
        estimating_terms(fee, tax, exploration),
        rounds // 10 if quick else rounds,
        period,
        births,
        num_agents=0,
        wealth=1.0,
        chunks=10 if quick else 20,
        settling=1 if quick and settling else settling,
    )
    private = dataclasses.replace(representation, public=False)
    changed = {
        "market": plan,
        "no fee": plan.with_terms(compute_tax=0.0),
        "no joint purchases": plan.with_market(joint_purchases=None),
        "no risk aversion": plan.with_market(representation=dataclasses.replace(representation, risk_aversion=0.0)),
        "no exploration": plan.with_terms(exploration=0.0),
        "private revenues": plan.with_market(representation=private),
        "private revenues alone": plan.with_market(representation=private, joint_purchases=None),
        "local parents": plan.with_terms(p_local=1.0),
    }
    return changed if task in _ABLATED else {"market": plan}


# --- XCS


def xcs(keys: Array, *, address: int, rules: int, problems: int, parts: int) -> Arrays:
    """scikit-XCS on multiplexers, with its default settings, one seed for each key.

    Args:
        keys: [seeds].
        address: address bits.
        rules: its N, the number of rules with their copies.
        problems: their number.
        parts: in which they are given, at equal intervals; a measurement follows each.

    Returns:
        ``right``, the share of all inputs that are answered correctly, and ``rules``, the number of distinct rules,
        f [parts, seeds]; ``optimal``, the optimal rules among the `_RICHEST` with the most copies of those that expect
        a reward, f [seeds]; ``problems`` i [parts].
    """
    from skXCS import XCS  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    env = Multiplexer(address)
    every = np.array(list(itertools.product((0, 1), repeat=env.bits)))
    answers, part = np.asarray(env.answer(jnp.asarray(every))), problems // parts
    right, count, optimal = np.zeros((parts, len(keys))), np.zeros((parts, len(keys))), np.zeros(len(keys))
    for i, seed in enumerate(np.asarray(jax.vmap(lambda key: jax.random.randint(key, (), 0, 2**31 - 1))(keys))):
        draw = np.random.default_rng(seed)
        model = XCS(N=rules)
        for j in range(parts):
            given = draw.integers(0, 2, (part, env.bits))
            # Its rules stay from call to call; the random numbers are seeded in each.
            model.learning_iterations, model.random_state = part * (j + 1), int(draw.integers(2**31))
            model.fit(given, np.asarray(env.answer(jnp.asarray(given))))
            right[j, i] = (model.predict(every) == answers).mean()
            count[j, i] = len(model.population.popSet)
        optimal[i] = sum(is_optimal(*_rule_of(each, env.bits), address) for each in _largest(model.population.popSet))
    return {"right": right, "rules": count, "optimal": optimal, "problems": part * np.arange(1, parts + 1)}


def _largest(rules: list[Any]) -> list[Any]:
    """The rules of XCS with the most copies, of those that expect more than half of the reward, 1000."""
    return sorted((rule for rule in rules if rule.prediction > 500), key=lambda rule: -rule.numerosity)[:_RICHEST]


def _rule_of(rule: Any, bits: int) -> tuple[list[int], int]:
    """Condition and action of a rule of XCS in our notation."""
    given = dict(zip(rule.specifiedAttList, rule.condition, strict=True))
    return [int(given.get(i, 2)) for i in range(bits)], int(rule.action)


def _xcs_conditions(scope: Scope) -> list[Condition]:
    """XCS on as many problems as the market, where it is installed; on fewer seeds with 11 bits, which take minutes."""
    if importlib.util.find_spec("skXCS") is None:
        return []
    conditions: list[Condition] = []
    for task in _WITH_XCS:
        plan = plans(task, scope.quick)["market"]
        function = functools.partial(
            xcs, address=ADDRESSES[task], rules=_XCS_RULES[task], problems=int(plan.steps[-1]), parts=plan.chunks
        )
        conditions.append(Compute(f"{task}: scikit-XCS", function, seeds=None if task == "6 bits" else 4))
    return conditions


def _conditions(scope: Scope) -> list[Condition]:
    grown = [
        Grow(f"{task}: {name}", plan, mean_steps if task == "woods1" else accuracy)
        for task in TASKS
        if task != "20 bits" or scope.full
        for name, plan in plans(task, scope.quick).items()
    ]
    return [*grown, *_xcs_conditions(scope)]


# --- measures and claims


def _address(grown: GrownMarket) -> int:
    """The address bits of the multiplexer of a market."""
    return grown.plan.market.env.env.address


def _optimal(grown: GrownMarket) -> list[int]:
    """The optimal rules among the `_RICHEST` distinct rules."""

    def count(population: Population) -> int:
        return sum(is_optimal(*rule[:2], _address(grown)) for rule in richest_rules(population, _RICHEST))

    return [count(grown.population(i)) for i in range(len(grown.opened))]


def _halfway(grown: GrownMarket) -> np.ndarray:
    """The share of right inputs after half of the problems."""
    return grown.measured["right"][len(grown.measured["right"]) // 2 - 1].astype(np.float64)


MEASURES = {
    "right": lambda result: result["right"][-1] if isinstance(result, Mapping) else measured("right")(result),
    "right halfway": _halfway,
    "problems": lambda grown: first_reach(grown.measured["right"], 1, grown.plan.steps, lasting=True),
    "optimal": lambda result: result["optimal"] if isinstance(result, Mapping) else _optimal(result),
    "rules": lambda grown: [len(richest_rules(grown.population(i))) for i in range(len(grown.opened))],
    "steps": measured("steps"),
    "fed": measured("fed"),
    "while learning": lambda grown: grown.per_episode("returns" if "right" in grown.measured else "lengths")[-1],
}


def _all_halfway(name: str, results: Results) -> str:
    return f"{tally(results.measure(name, 'right halfway') == 1)} seeds after half of them"


def _claims(scope: Scope) -> list[Claim]:
    claims, most = [], majority(scope.seeds)
    for task in ADDRESSES if scope.full else _WITH_XCS:
        name, half = f"{task}: market", 2 ** ADDRESSES[task]
        right, problems = at(name, "right"), f"{plans(task, scope.quick)['market'].steps[-1]:,} problems"
        claims += [
            share_of_seeds(
                f"[{task}] all inputs are answered correctly after {problems}",
                right,
                share=_MOST,
                at_least=1,
                evidence=functools.partial(_all_halfway, name),
            ),
            share_of_seeds(
                f"[{task}] half of the {2 * half} optimal rules are among the {_RICHEST} richest rules",
                at(name, "optimal"),
                share=_MOST,
                at_least=half,
            ),
        ]
    claims.append(
        share_of_seeds(
            f"[Woods1] food is reached in at most {_NEAR} steps by the frozen population",
            at("woods1: market", "steps"),
            share=_MOST,
            at_most=_NEAR,
            evidence=lambda r: f"mean {mean(r.measure('woods1: market', 'steps'))}, optimum {Woods1().mean_shortest()}",
        )
    )
    for name in CONDITIONS[1:]:
        measure, shown = "right halfway", "fewer correct answers after half of the problems"
        if name == "no exploration":
            measure, shown = "optimal", "fewer optimal rules among the richest"
        if name == "no fee":
            measure, shown = "rules", "more rules"
        market = at("6 bits: market", measure)
        claims.append(
            share_of_seeds(
                f"[6 bits] {name}: {shown}, on most seeds",
                at(f"6 bits: {name}", measure),
                share=most,
                above=market if name == "no fee" else None,
                below=None if name == "no fee" else market,
            )
        )
    for name in CONDITIONS[1:4]:
        steps = at("woods1: market", "steps")
        text = f"[Woods1] {name}: more steps of the frozen population, on most seeds"
        claims.append(share_of_seeds(text, at(f"woods1: {name}", "steps"), share=most, above=steps))
    return claims


# --- tables and figures


def _of_markets(show: Callable[[Results, str], Any]) -> Callable[[Results, str], Any]:
    """A column that XCS does not have."""
    return lambda results, name: None if isinstance(results[name], Mapping) else show(results, name)


def _parts(results: Results, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The problems after which a condition was measured i [parts], and the share of right inputs f [parts, seeds]."""
    result = results[name]
    if isinstance(result, Mapping):
        return result["problems"], result["right"]
    return result.plan.steps, result.measured["right"].astype(np.float64)


def _first_all(results: Results, name: str) -> int | None:
    problems, right = _parts(results, name)
    return reached_by(first_reach(right, 1, problems, lasting=True))


def _at_half(results: Results, name: str) -> str:
    _, right = _parts(results, name)
    half = right[len(right) // 2 - 1]
    return f"{half.mean():.3f} ({tally(half == 1)})"


def _count(results: Results, name: str) -> float:
    result = results[name]
    return float(result["rules"][-1].mean() if isinstance(result, Mapping) else results.measure(name, "rules").mean())


_COLUMNS = {
    "right": column("right", np.mean),
    "all": column("right", lambda right: tally(right == 1)),
    "after half (all)": _at_half,
    "problems to all": _first_all,
    "optimal": column("optimal", np.mean),
    "rules": _count,
    "right while learning": _of_markets(column("while learning", np.mean)),  # type: ignore[arg-type]
}

_WOODS_COLUMNS = {
    "steps, frozen": column("steps", np.mean),
    "median": column("steps", np.median),
    "highest": column("steps", np.max),
    "near": column("steps", lambda steps: tally(steps <= _NEAR)),
    "cells fed": column("fed", np.mean),
    "steps while learning": column("while learning", np.mean),
}


def _table(task: str) -> Table:
    def title(results: Results) -> str:
        problems = plans(task, results.scope.quick)["market"].steps[-1]
        return f"{task}, {results.scope.seeds} seeds, {problems:,} {'auctions' if task == 'woods1' else 'problems'}"

    def rows(results: Results) -> Any:
        names = [name for name in results if name.startswith(task)]
        return by_condition(_WOODS_COLUMNS if task == "woods1" else _COLUMNS, names=names)(results)

    if task == "woods1":
        note = (
            f"frozen: from each of the 16 cells, 50 if food is not reached; the optimum is {Woods1().mean_shortest()}\n"
            f"near: seeds with {_NEAR} or less"
        )
    else:
        asked = "2,048 random inputs" if task == "20 bits" else f"the {2 ** Multiplexer(ADDRESSES[task]).bits:,} inputs"
        note = (
            f"right: share of {asked}, frozen population, mean over seeds; all: seeds with all of them right\n"
            "problems to all: until all are right for good, median over seeds\n"
            f"optimal: of the {2 ** (ADDRESSES[task] + 1)} correct, maximally general rules, how many are among the "
            f"{_RICHEST} richest rules; of XCS: among those with the most copies\n"
            "rules: distinct ones"
        )
    return Table(task.replace(" ", "-"), title, rows, note)


def _rules(results: Results) -> list[dict[str, Any]]:
    """The richest rules of the first seed, 6 bits."""
    return [
        {
            "rule": rule_string(condition, action, (2, 4)) + " (optimal)" * is_optimal(condition, action, 2),
            "wealth": wealth,
            "copies": copies,
        }
        for condition, action, wealth, copies in richest_rules(results["6 bits: market"].population(0), _RICHEST)
    ]


def _curves(results: Results) -> Any:
    """Learning curves, mean over seeds with the interquartile range: all conditions of 6 bits, and XCS."""
    shown = [task for task in TASKS if f"{task}: market" in results]
    fig, axes = plotting.figure(columns=len(shown), width=4.4, height=3.8)
    colors = plotting.series_colors((*CONDITIONS, "scikit-XCS"))
    for ax, task in zip(axes, shown, strict=True):
        for name in (name for name in results if name.startswith(task)):
            kind, result = name.removeprefix(f"{task}: "), results[name]
            line = {"color": colors[kind], "label": kind, "linewidth": 2 if kind == "market" else 1.2}
            if task == "woods1":
                problems, values = result.plan.steps, result.measured["steps"].astype(np.float64)
            else:
                problems, values = _parts(results, name)
            plotting.draw_quartiles(ax, problems, values, middle=np.nanmean, **line)
        ax.set_title(task if task != "woods1" else "Woods1")
        if task == "woods1":
            ax.axhline(Woods1().mean_shortest(), color="black", linewidth=0.8, linestyle="--")
            ax.set_ylabel("steps to food, frozen")
            plotting.log_y_axis(ax, [2, 3, 5, 10, 20, 50])
        else:
            ax.set(ylabel="right inputs, frozen", ylim=(0.4, 1.02))
        plotting.step_axis(ax, "auctions" if task == "woods1" else "problems")
    plotting.legend_below(fig)
    return fig


EXPERIMENT = Experiment(
    name="generality",
    shows="what pays for general rules in a market: multiplexers of 6, 11 and 20 bits beside XCS, and Woods1",
    source="Wilson (1994, 1995); Holland (1985)",
    conditions=_conditions,
    measures=MEASURES,
    claims=_claims,
    tables=[
        *(_table(task) for task in TASKS),
        Table("rules", "the richest rules of seed 0 (6 bits)", _rules, "wealth: of all copies"),
    ],
    figures={"learning": _curves}
    | {f"life-{task.replace(' ', '-')}": life(f"{task}: market", lambda results: 0) for task in _ABLATED},
    facts=market_facts,
)

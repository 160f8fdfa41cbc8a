"""Hayek on blocks world (Baum 1999; Baum and Durdanovic 2000): a market of programs with a reward for the last move.

The first bid of a new agent is the highest other bid plus a markup, and never changes. Prices therefore rise to the
values of states, and an agent survives only if it sells states for more than it pays. The markets are trained on
instances of at most three blocks, frozen, and tested on larger instances, as are two baselines without a market.
"""

import functools
from typing import Any

from jaxmarket.deep_market import UNPAID, DeepMarket, GuardedPrograms, Population, Terms
from jaxmarket.deep_market.evaluation import actor
from jaxmarket.environments.adapter import adapt
from jaxmarket.environments.blocks import MOVES, BlocksWorld
from jaxmarket.experiments.block_exams import (
    RELIABLE,
    Exam,
    Examined,
    of_population,
    of_random_agents,
    of_selection,
    shares_solved,
)
from jaxmarket.experiments.claims import Claim, Evidence, at, separated, share_of_seeds, within
from jaxmarket.experiments.conditions import Condition, Grow, Scope
from jaxmarket.experiments.experiment import Experiment
from jaxmarket.experiments.populations import life
from jaxmarket.experiments.results import Results
from jaxmarket.runs.estimates import mean
from jaxmarket.runs.populations import MarketPlan
from jaxmarket.types import Array, PyTree
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT", "PROGRAMS", "SENSORS", "SIZES", "TESTS", "TRAINED", "plans"]

TRAINED = 3
"""Maximum number of blocks of an instance in training."""
SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12)
"""Numbers of blocks of test instances."""
SENSORS = ("correct", "surplus", "needed", "top1", "top2", "top3", "depth2", "depth3")
"""The sensors that programs read; see `blocks.SENSORS`."""
PROGRAMS = GuardedPrograms(len(SENSORS), len(MOVES), length=3, names=SENSORS)

TESTS = adapt(BlocksWorld((1,), sensors=SENSORS, capacity=max(SIZES)))
"""Test instances, of a size that is a parameter."""

_AGENTS = 128


def _market() -> DeepMarket:
    return DeepMarket(adapt(BlocksWorld(tuple(range(1, TRAINED + 1)), sensors=SENSORS)), PROGRAMS, _AGENTS)


def plans(quick: bool) -> dict[str, MarketPlan]:
    """The market and its ablations by name; a quick run has only the first."""
    terms = Terms(markup=0.05, rent=0.01, compute_tax=1e-5, birth_rate=0.1, p_offspring=0.5, min_parent_wealth=2.0)
    terms = terms.replace(inheritance=0.3, bankruptcy=0.05, replace_poorest=True)
    rounds = 15_000 if quick else 100_000
    whole = MarketPlan(_market(), terms, rounds, 20, max_births=1, num_agents=40, wealth=1.0, chunks=10, settling=2)
    ablations = {
        "no conservation": whole.with_market(mechanism=UNPAID),
        "no property rights": whole.with_market(property_rights=False),
        "no rent": whole.with_terms(rent=0.0, compute_tax=0.0),
        "no mutation": whole.with_terms(p_offspring=0.0),
    }
    return {"hayek": whole} | ({} if quick else ablations)


# --- tests: success of frozen populations and of the baselines on new instances of each size


def _progress(market: DeepMarket, key: Array, population: Population, terms: Terms) -> dict[str, Array]:
    return shares_solved(actor(market, population, terms), key, TESTS, (TRAINED, TRAINED + 1, 6))


# --- conditions

_EXAMINED = Examined(
    "hayek",
    lambda scope: tuple(plans(scope.quick)),
    baselines=("selection only", "random programs"),
    sizes=SIZES,
    trained=TRAINED,
    shown=(TRAINED, TRAINED + 1, 6, 8),
)


def _conditions(scope: Scope) -> list[Condition]:
    chosen, exam = plans(scope.quick), Exam(SENSORS, SIZES, 64 if scope.quick else 200)
    sizes, budget = tuple(range(1, TRAINED + 1)), int(chosen["hayek"].steps[-1])
    selection = functools.partial(of_selection, agents=PROGRAMS, trained=sizes, budget=budget, shortest=3)
    random_agents = functools.partial(of_random_agents, agents=PROGRAMS, count=_AGENTS)
    return [
        *(Grow(name, plan, _progress) for name, plan in chosen.items()),
        *(exam.condition(scope.seed, _EXAMINED.exam_of(name), of_population, name) for name in chosen),
        exam.condition(scope.seed, "selection only", selection),
        exam.condition(scope.seed, "random programs", random_agents),
    ]


_NEXT = f"{TRAINED + 1} blocks"


def _means(*names: str) -> Evidence:
    return lambda results: f"{_NEXT}: " + " against ".join(f"{at(n, _NEXT)(results).mean():.3f}" for n in names)


def _claims(scope: Scope) -> list[Claim]:
    exam = _EXAMINED.exam_of("hayek")
    hayek, sizes = at(exam, _NEXT), at(exam, "reliable")
    text = f"a market solves {_NEXT} reliably (≥ {RELIABLE:.0%}), trained with at most {TRAINED}"
    claims = [
        share_of_seeds(text, hayek, at_least=RELIABLE, share=1 / scope.seeds),
        within(f"on average, markets solve {_NEXT} reliably", hayek, at_least=RELIABLE, estimate=mean),
    ]
    for name, more in (("random programs", ""), ("selection only", ", with as many steps")):
        text = f"markets solve larger instances than {name}{more}"
        claims.append(separated(text, sizes, at(name, "reliable"), evidence=_means(exam, name)))
    for name in list(plans(scope.quick))[1:]:
        text, other = f"{name}: fewer instances of {_NEXT} are solved", _EXAMINED.exam_of(name)
        evidence = _means(other, exam)
        claims.append(share_of_seeds(text, at(other, _NEXT), below=hayek, share=0.75, evidence=evidence))
    return claims


# --- tables and figures


def _program(agent: PyTree) -> str:
    text, action = PROGRAMS.show(agent).rsplit(": ", 1)
    source, target = MOVES[int(action)]
    return f"{text}: {source} → {target}"


def _draw(results: Results) -> Any:
    fig, (left, right) = plotting.figure(2)
    success = _EXAMINED.success(results)
    colors = plotting.series_colors(success)
    _EXAMINED.draw(left, success, colors)
    for name in plans(results.scope.quick):
        right.plot(results[name].plan.steps, results[name].measured[_NEXT].mean(1), color=colors[name], label=name)
    right.set(ylabel=f"instances of {_NEXT} solved", title="during training")
    plotting.step_axis(right)
    for ax in (left, right):
        ax.set_ylim(-0.02, 1.08)
    plotting.legend_below(fig)
    return fig


EXPERIMENT = Experiment(
    name="hayek",
    shows="programs with wealth, trained with three blocks, tested with twelve; ablations of money, ownership, rent",
    source="Baum (1999); Baum and Durdanovic (2000)",
    conditions=_conditions,
    measures={
        _NEXT: lambda exam: exam["success"][:, SIZES.index(TRAINED + 1)],
        "reliable": _EXAMINED.reliable,
    },
    claims=_claims,
    tables=[
        *_EXAMINED.tables("hayek"),
        _EXAMINED.richest_agents(
            "programs",
            _program,
            "bid: fixed at entry, nan before the first bid · line: generations of ancestors, including the agent",
        ),
    ],
    figures={"hayek": _draw, "life": life("hayek", _EXAMINED.best)},
    seeds=8,
    facts=_EXAMINED.facts,
)

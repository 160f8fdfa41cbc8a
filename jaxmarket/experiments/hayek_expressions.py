"""Hayek 3 with bids that are learned: expressions on blocks world, trained with at most five blocks, tested with 25.

The agents are typed expressions with loops over the stacks, as in Hayek 3 (Baum and Durdanovic 2000). Their bids are
not fixed at entry: every agent learns what a purchase brings, as a function of two sensors, and bids a tenth less. A
new agent therefore outbids others only after it has learned that it earns more than they do. The instances grow in the
first third of the training. Parts of the market are removed one at a time, and evolution of whole teams of the same
expressions has as many steps.
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmarket.deep_market import UNPAID, DeepMarket, EstimatingExpressions, Expressions, Population, Terms
from jaxmarket.deep_market.evaluation import actor
from jaxmarket.environments.adapter import adapt
from jaxmarket.environments.blocks import BlocksWorld
from jaxmarket.experiments.block_exams import (
    Exam,
    Examined,
    of_population,
    of_random_agents,
    of_selection,
    shares_solved,
)
from jaxmarket.experiments.claims import Claim, at, majority, separated, share_of_seeds, within
from jaxmarket.experiments.conditions import Condition, Grow, Scope
from jaxmarket.experiments.experiment import Experiment
from jaxmarket.experiments.populations import estimating_terms, life
from jaxmarket.experiments.results import Results
from jaxmarket.runs.estimates import mean
from jaxmarket.runs.populations import MarketPlan
from jaxmarket.types import Array
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT", "EXPRESSIONS", "SENSORS", "SIZES", "TESTS", "TRAINED", "plans", "progress"]

TRAINED = 5
"""Maximum number of blocks of an instance in training."""
SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25)
"""Numbers of blocks of test instances."""
SENSORS = ("correct", "surplus", "distance1", "distance2", "distance3")
"""The sensors that expressions read; see `blocks.SENSORS`."""
TESTS = adapt(BlocksWorld((1,), sensors=SENSORS, capacity=max(SIZES)))
"""Test instances, of a size that is a parameter."""

_BLOCKS = BlocksWorld(tuple(range(1, TRAINED + 1)), sensors=SENSORS)
EXPRESSIONS = EstimatingExpressions(_BLOCKS.vocabulary, bid_sensors=("surplus", "distance"))
_AIM, _MOST = 10, 20  # blocks
_SHOWN = (TRAINED, 12)  # sizes measured during training
_EARLY = ((1, 2, 3, 1, 2), (1, 2, 3, 3, 4))  # sizes of the first chunks


def plans(quick: bool) -> dict[str, MarketPlan]:
    """The market and what is changed in it by name; a quick run has only the first."""
    chunks, rounds = (5, 1_500) if quick else (20, 10_000)
    growing = [_BLOCKS.default_params.replace(sizes=jnp.asarray(sizes, jnp.int32)) for sizes in _EARLY]
    market = MarketPlan(
        DeepMarket(adapt(_BLOCKS), EXPRESSIONS, capacity=64, joint_purchases=0.9),
        estimating_terms(fee=1e-6, tax=0.0, exploration=0.02).replace(p_offspring=0.5),
        rounds,
        period=32,
        max_births=1,
        num_agents=0,
        wealth=1.0,
        chunks=chunks,
        settling=max(1, chunks // 10),
        stages=(*[growing[0]] * (chunks // 5), *[growing[1]] * (chunks // 10), _BLOCKS.default_params),
    )
    if quick:
        return {"market": market}

    def agents(**changes: Any) -> MarketPlan:
        return market.with_market(representation=dataclasses.replace(EXPRESSIONS, **changes))

    changed = {
        "no conservation": market.with_market(mechanism=UNPAID),
        "no property rights": market.with_market(property_rights=False),
        "no mutation": market.with_terms(p_offspring=0.0),
        "all sizes from the start": dataclasses.replace(market, stages=()),
        "bids without sensors": agents(bid_sensors=()),
        "revenues of others": agents(public=True),
        "bids fixed at entry": _fixed_bids(market),
    }
    return {"market": market} | changed


def _fixed_bids(market: MarketPlan) -> MarketPlan:
    """Bids as in Hayek 3: proportional to progress, fixed at entry above the highest; the reward is the size."""
    env = BlocksWorld(_BLOCKS.sizes, sensors=SENSORS, reward="size")
    agents = Expressions(env.vocabulary, progress="correct")
    terms = Terms(markup=0.05, rent=0.01, compute_tax=1e-5, birth_rate=0.3, p_offspring=0.5, min_parent_wealth=10.0)
    terms = terms.replace(inheritance=0.3, bankruptcy=0.05, replace_poorest=True, endowment=5.0)
    fixed = market.with_market(env=adapt(env), representation=agents, joint_purchases=None)
    return dataclasses.replace(fixed, terms=terms, max_births=1, num_agents=40, wealth=5.0)


# --- conditions

_EXAMINED = Examined(
    "market",
    lambda scope: tuple(plans(scope.quick)),
    baselines=("selection only", "random expressions"),
    sizes=SIZES,
    trained=TRAINED,
    shown=(3, TRAINED, 8, 12, 25),
)


def progress(market: DeepMarket, key: Array, population: Population, terms: Terms) -> dict[str, Array]:
    """The share of instances of 5 and 12 blocks that a frozen population solves, as ``5 blocks`` and ``12 blocks``."""
    return shares_solved(actor(market, population, terms), key, TESTS, _SHOWN)


def _conditions(scope: Scope) -> list[Condition]:
    chosen, exam = plans(scope.quick), Exam(SENSORS, SIZES, 32 if scope.quick else 100)
    market = chosen["market"]
    teams = functools.partial(of_selection, agents=Expressions(_BLOCKS.vocabulary), trained=_BLOCKS.sizes)
    selection = functools.partial(teams, budget=int(market.steps[-1]), shortest=TRAINED)
    random_agents = functools.partial(of_random_agents, agents=EXPRESSIONS, count=market.market.capacity)
    return [
        *(Grow(name, plan, progress) for name, plan in chosen.items()),
        *(exam.condition(scope.seed, _EXAMINED.exam_of(name), of_population, name) for name in chosen),
        exam.condition(scope.seed, "selection only", selection),
        exam.condition(scope.seed, "random expressions", random_agents),
    ]


def _claims(scope: Scope) -> list[Claim]:
    largest = at(_EXAMINED.exam_of("market"), "reliable")
    claims = [
        within(f"on average, markets solve {_AIM} blocks reliably", largest, at_least=_AIM, estimate=mean),
        share_of_seeds(f"a market solves {_MOST} blocks reliably", largest, at_least=_MOST, share=1 / scope.seeds),
    ]
    for name, more in (("random expressions", ""), ("selection only", ", with as many steps")):
        text = f"markets solve larger instances than {name}{more}"
        claims.append(separated(text, largest, at(name, "reliable")))
    for name in list(plans(scope.quick))[1:]:
        text = f"{name}: the largest size that is solved reliably is smaller, on most seeds"
        changed = at(_EXAMINED.exam_of(name), "reliable")
        claims.append(share_of_seeds(text, changed, below=largest, share=majority(scope.seeds)))
    return claims


# --- tables and figures


def _draw(results: Results) -> Any:
    """Success by size, and during training the success of the market."""
    fig, (left, right) = plotting.figure(2)
    success = _EXAMINED.success(results)
    colors = plotting.series_colors(success)
    _EXAMINED.draw(left, success, colors)
    grown = results["market"]
    for size, style in zip(_SHOWN, ("--", "-"), strict=True):
        line = {"color": colors["market"], "linestyle": style, "label": f"{size} blocks"}
        solved = grown.measured[f"{size} blocks"]
        plotting.draw_quartiles(right, grown.plan.steps, solved, middle=np.mean, **line)
    right.set(ylabel="instances solved", title="the market during training, mean and quartiles")
    plotting.step_axis(right, "auctions")
    for ax in (left, right):
        ax.set_ylim(-0.02, 1.08)
    plotting.legend_below(fig)
    return fig


EXPERIMENT = Experiment(
    name="hayek-expressions",
    shows="expressions that learn their bids, trained with five blocks, tested with 25; ablations; selection",
    source="Baum and Durdanovic (2000)",
    conditions=_conditions,
    measures={"reliable": _EXAMINED.reliable},
    claims=_claims,
    tables=[
        *_EXAMINED.tables("hayek-expressions"),
        _EXAMINED.richest_agents(
            "agents",
            EXPRESSIONS.show,
            "line: generations of ancestors, including the agent",
        ),
    ],
    figures={"hayek-expressions": _draw, "life": life("market", _EXAMINED.best)},
    facts=_EXAMINED.facts,
)

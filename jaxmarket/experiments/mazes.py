"""Maze4, Maze5 and Maze6 in a market of rules, and what its settings contribute.

An agent observes the eight cells around it and moves to one of them; food, which pays 1, is 3.5 to 5.2 steps away on
average. The market is that of the experiment ``generality`` in Woods1, but with other numbers. There food is 1.7 steps
away. Here a reward passes through many sales, and each of the rules that wait for it pays a fee at every auction. Few
cells look alike, so that most general rules are wrong somewhere. In Maze5, and on the same seeds, some numbers are set
back one at a time to those of Woods1, and each part of the market is removed.

Frozen populations are measured exactly, from every free cell.
"""

import dataclasses
from typing import Any

import numpy as np

from jaxmarket.deep_market import DeepMarket, RiskAverseRules
from jaxmarket.deep_market.evaluation import mean_steps
from jaxmarket.environments.adapter import adapt
from jaxmarket.environments.mazes import Maze, Maze4, Maze5, Maze6
from jaxmarket.experiments.claims import Claim, at, majority, share_of_seeds, tally
from jaxmarket.experiments.conditions import Condition, Grow, Scope
from jaxmarket.experiments.experiment import Experiment, Table, by_condition, column
from jaxmarket.experiments.populations import draw_frozen_policy, estimating_terms, life, market_facts, measured
from jaxmarket.experiments.results import Results
from jaxmarket.runs.curves import first_reach, reached_by
from jaxmarket.runs.estimates import mean
from jaxmarket.runs.populations import GrownMarket, MarketPlan
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT", "MAZES", "plans"]

MAZES: dict[str, Maze] = {"Maze4": Maze4(), "Maze5": Maze5(), "Maze6": Maze6()}

_CHANGED_IN = "Maze5"
_NEAR = 1.1  # steps to food, relative to the shortest paths
_MOST = 7 / 8  # share of the seeds


def plans(maze: str, quick: bool) -> dict[str, MarketPlan]:
    """The market and what is changed in it by name, for one of `MAZES`."""
    env = MAZES[maze]
    width = env.observation_space(env.default_params).shape[0]
    rules = RiskAverseRules(width, env.num_actions, margin=0.15, risk_aversion=1.5, wildcards=0.03, public=False)
    rounds = 32_000 if maze == "Maze6" else 16_000
    plan = MarketPlan(
        DeepMarket(adapt(env), rules, capacity=1600, joint_purchases=0.9),
        estimating_terms(fee=3e-5, tax=0.0, exploration=0.3),
        rounds // 10 if quick else rounds,
        period=8,
        max_births=2,
        num_agents=0,
        wealth=1.0,
        chunks=20,
        settling=2,
    )
    if maze != _CHANGED_IN:
        return {"market": plan}

    def rule(**changes: Any) -> MarketPlan:
        return plan.with_market(representation=dataclasses.replace(rules, **changes))

    return {
        "market": plan,
        "fee .002": plan.with_terms(compute_tax=0.002),
        "tax on wealth .001": plan.with_terms(wealth_tax=0.001),
        "wildcards .33": rule(wildcards=0.33),
        "public revenues": rule(public=True),
        "no joint purchases": plan.with_market(joint_purchases=None),
        "no risk aversion": rule(risk_aversion=0.0),
        "no exploration": plan.with_terms(exploration=0.0),
    }


def _conditions(scope: Scope) -> list[Condition]:
    return [
        Grow(f"{maze}: {name}", plan, mean_steps) for maze in MAZES for name, plan in plans(maze, scope.quick).items()
    ]


# --- measures and claims


def _maze(condition: str) -> Maze:
    return MAZES[condition.partition(":")[0]]


def _near(maze: Maze) -> float:
    """The steps to food that count as near the optimum."""
    return _NEAR * maze.mean_shortest()


MEASURES = {
    "steps": measured("steps"),
    "fed": measured("fed"),
    "while learning": lambda grown: grown.per_episode("lengths")[-grown.plan.settling - 1],
}


def _claims(scope: Scope) -> list[Claim]:
    claims = []
    for name, maze in MAZES.items():
        steps = at(f"{name}: market", "steps")
        claims.append(
            share_of_seeds(
                f"[{name}] food is reached in at most {_near(maze):.2f} steps by the frozen population, "
                f"{_NEAR:g} times the shortest paths",
                steps,
                share=_MOST,
                at_most=_near(maze),
                evidence=lambda results, steps=steps: f"mean {mean(steps(results))}",
            )
        )
    market = at(f"{_CHANGED_IN}: market", "steps")
    for name in list(plans(_CHANGED_IN, quick=True))[1:]:
        text = f"[{_CHANGED_IN}] {name}: more steps of the frozen population, on most seeds"
        changed = at(f"{_CHANGED_IN}: {name}", "steps")
        claims.append(share_of_seeds(text, changed, share=majority(scope.seeds), above=market))
    return claims


# --- tables and figures


def _first_near(results: Results, name: str) -> int | None:
    """Auctions until the frozen population is near for good, median over seeds."""
    grown: GrownMarket = results[name]
    return reached_by(first_reach(-grown.measured["steps"], -_near(_maze(name)), grown.plan.steps, lasting=True))


_COLUMNS = {
    "shortest": lambda _, name: _maze(name).mean_shortest(),
    "steps, frozen": column("steps", np.mean),
    "median": column("steps", np.median),
    "highest": column("steps", np.max),
    "near": lambda results, name: tally(results.measure(name, "steps") <= _near(_maze(name))),
    "auctions till near": _first_near,
    "cells fed": column("fed", np.mean),
    "steps while learning": column("while learning", np.mean),
}


def _middle(results: Results, name: str) -> int:
    """The seed with the median number of steps."""
    steps = results.measure(name, "steps")
    return int(np.argsort(steps, kind="stable")[len(steps) // 2])


def _prices(results: Results) -> Any:
    """The prices and moves of the median seed in every maze."""
    fig, axes = plotting.figure(columns=len(MAZES), width=4.2, height=4.2)
    for ax, (name, maze) in zip(axes, MAZES.items(), strict=True):
        market = f"{name}: market"
        seed = _middle(results, market)
        draw_frozen_policy(ax, results, market, seed)
        steps = results.measure(market, "steps")[seed]
        ax.set_title(f"{name}: {steps:.2f} steps, shortest {maze.mean_shortest():.2f}")
    return fig


def _curves(results: Results) -> Any:
    """Steps to food of the frozen populations, mean over seeds; of the market with the interquartile range."""
    fig, axes = plotting.figure(columns=len(MAZES), width=4.4, height=3.8)
    colors = plotting.series_colors(plans(_CHANGED_IN, results.scope.quick))
    for ax, (maze_name, maze) in zip(axes, MAZES.items(), strict=True):
        for name in (name for name in results if name.startswith(maze_name)):
            kind, grown = name.partition(": ")[2], results[name]
            auctions, steps = grown.plan.steps, grown.measured["steps"].astype(np.float64)
            line = {"color": colors[kind], "label": kind}
            if kind == "market":
                plotting.draw_quartiles(ax, auctions, steps, middle=np.nanmean, linewidth=2, **line)
            else:
                ax.plot(auctions, steps.mean(1), linewidth=1.2, **line)
        ax.axhline(maze.mean_shortest(), color="black", linewidth=0.8, linestyle="--")
        ax.set(title=maze_name, ylabel="steps to food, frozen")
        plotting.log_y_axis(ax, [4, 5, 10, 20, 50])
        plotting.step_axis(ax, "auctions")
    plotting.legend_below(fig)
    return fig


EXPERIMENT = Experiment(
    name="mazes",
    shows="a market of rules in Maze4, Maze5 and Maze6, and which of its settings they need",
    source="Lanzi (1999)",
    conditions=_conditions,
    measures=MEASURES,
    claims=_claims,
    tables=[
        Table(
            "mazes",
            lambda results: f"mazes, {results.scope.seeds} seeds",
            by_condition(_COLUMNS),
            "frozen: from every free cell, 50 if food is not reached · shortest: paths, the mean over these cells\n"
            f"near: seeds with at most {_NEAR:g} times the shortest paths; till near: for good, median over seeds\n"
            "while learning: in the last part with births",
        )
    ],
    figures={"learning": _curves, "prices": _prices}
    | {"life-maze6": life("Maze6: market", lambda results: _middle(results, "Maze6: market"))},
    facts=market_facts,
)

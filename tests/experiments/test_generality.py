"""General rules: what is changed in each market, how XCS is read, the verdicts, and what is learned."""

import importlib.util
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket.deep_market import make_population
from jaxmarket.deep_market.evaluation import accuracy, mean_steps, richest_rules
from jaxmarket.deep_market.representations import WILDCARD, ClassifierRule, RiskAverseRules
from jaxmarket.experiments import EXPERIMENTS, Scope, generality
from jaxmarket.experiments.generality import CONDITIONS, EXPERIMENT, plans, xcs
from jaxmarket.experiments.results import Results
from jaxmarket.runs.populations import grow

INSTALLED = importlib.util.find_spec("skXCS") is not None


def test_every_condition_changes_one_thing():
    for task in ("6 bits", "woods1"):
        others = plans(task, quick=True)
        assert tuple(others) == CONDITIONS
        market = others.pop("market")
        for name, plan in others.items():
            assert (plan.terms == market.terms) != (plan.market == market.market), name
            assert (plan.rounds, plan.period, plan.max_births) == (market.rounds, market.period, market.max_births)
    for task in ("11 bits", "20 bits"):
        assert tuple(plans(task, quick=False)) == ("market",)


def test_a_problem_is_one_auction():
    steps = {task: plans(task, quick=False)["market"].steps for task in generality.TASKS}
    assert {task: int(at[-1]) for task, at in steps.items()} == {
        "6 bits": 10_000,
        "11 bits": 40_000,
        "20 bits": 120_000,
        "woods1": 40_000,
    }
    assert all(len(at) == 20 for at in steps.values())
    assert 5_000 in steps["6 bits"]


def test_richest_rules_are_distinct_and_have_the_wealth_of_all_copies():
    conditions = jnp.array([[0, 1], [0, WILDCARD], [0, 1], [0, 1], [1, 1]], jnp.int32)
    agents = ClassifierRule(conditions, jnp.array([1, 1, 1, 0, 0], jnp.int32))
    alive = jnp.array([True, True, True, True, False])
    population = make_population(agents, jnp.array([2.0, 2.5, 1.0, 0.5, 9.0]), alive)
    rules = richest_rules(population, 2)
    assert [rule[:2] for rule in rules] == [((0, 1), 1), ((0, WILDCARD), 1)]
    assert [rule[2:] for rule in rules] == [(3.0, 2), (2.5, 1)]
    assert len(richest_rules(population, 9)) == 3


@pytest.mark.slow
def test_more_than_eleven_bits_are_measured_on_random_inputs():
    """One rule answers the inputs that begin with 0, half of them correctly."""
    plan = plans("20 bits", quick=True)["market"]
    market = generality.DeepMarket(plan.market.env, RiskAverseRules(20, 2), 2)
    condition = jnp.full((2, 20), WILDCARD, jnp.int32).at[:, 0].set(jnp.array([0, 1]))
    agents = jax.vmap(market.representation.init, (0, None))(jax.random.split(jax.random.key(0)), jnp.zeros(20))
    agents = agents.replace(condition=condition, action=jnp.array([1, 0], jnp.int32))
    population = make_population(agents, jnp.ones(2), jnp.array([True, False]))
    values = jax.jit(accuracy, static_argnums=0)(market, jax.random.key(0), population, plan.terms)
    assert float(values["answered"]) == pytest.approx(0.5, abs=0.04)
    assert float(values["right"]) == pytest.approx(0.25, abs=0.04)


# --- XCS


def test_rules_of_xcs_are_read_in_our_notation():
    rule = types.SimpleNamespace(specifiedAttList=[3, 0, 1], condition=[1, 0, 1], action=np.int64(1))
    assert generality._rule_of(rule, 6) == ([0, 1, WILDCARD, 1, WILDCARD, WILDCARD], 1)


def test_the_largest_rules_of_xcs_expect_a_reward():
    rules = [types.SimpleNamespace(prediction=p, numerosity=n) for p, n in ((1000.0, 2), (0.0, 9), (900.0, 5))]
    assert [rule.numerosity for rule in generality._largest(rules)] == [5, 2]


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs scikit-XCS")
def test_xcs_learns_and_is_measured_after_every_part():
    found = xcs(jax.random.split(jax.random.key(0), 2), address=1, rules=100, problems=600, parts=3)
    assert found["problems"].tolist() == [200, 400, 600]
    assert found["right"].shape == found["rules"].shape == (3, 2)
    assert found["right"][-1].mean() > 0.9
    assert (found["optimal"] >= 2).all()
    again = xcs(jax.random.split(jax.random.key(0), 2), address=1, rules=100, problems=600, parts=3)
    np.testing.assert_array_equal(found["right"], again["right"])


def test_without_scikit_xcs_its_conditions_are_left_out(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    names = [condition.name for condition in EXPERIMENT.planned(Scope(4, full=True))]
    assert not any("XCS" in name for name in names)
    assert [name for name in names if name.endswith("market")] == [f"{task}: market" for task in generality.TASKS]


# --- verdicts and tables


def made_up(right=1.0, optimal=8, steps=1.75, seeds=8):
    """Results of eight seeds, and ablations that are worse on every seed."""

    def market(right, optimal, steps, task):
        plan = plans(task, quick=False)["market"]
        measured = {"right": np.full((20, seeds), right)}
        if task == "woods1":
            measured = {"steps": np.full((20, seeds), steps), "fed": np.ones((20, seeds))}
        return types.SimpleNamespace(plan=plan, measured=measured, per_episode=lambda field: np.ones((20, seeds)))

    found = {}
    for task in generality.TASKS:
        for name in plans(task, quick=False):
            worse = 0 if name == "market" else 1
            found[f"{task}: {name}"] = market(right - 0.1 * worse, optimal - worse, steps + worse, task)
    found["6 bits: scikit-XCS"] = {
        "right": np.full((20, seeds), 1.0),
        "rules": np.full((20, seeds), 90.0),
        "optimal": np.full(seeds, 8.0),
        "problems": 500 * np.arange(1, 21),
    }
    counts = {
        id(each): np.full(seeds, optimal - (name.split(": ")[1] in CONDITIONS[1:])) for name, each in found.items()
    }
    own = {"optimal": lambda grown: counts[id(grown)], "rules": lambda grown: 100 - counts[id(grown)]}
    return Results(Scope(seeds), found, {}, EXPERIMENT.measures | own)


def denied(results):
    return [claim.text for claim in EXPERIMENT.claimed(results.scope) if claim.verdict(results).standing != "confirmed"]


def test_claims_are_confirmed_at_the_targets_and_denied_below():
    assert denied(made_up()) == []
    assert [text[:8] for text in denied(made_up(right=0.99))] == ["[6 bits]", "[11 bits"]
    assert [text[:16] for text in denied(made_up(optimal=5))] == ["[11 bits] half o"]
    assert [text[:14] for text in denied(made_up(steps=1.95))] == ["[Woods1] food "]


def test_tables_have_rows_of_xcs_beside_the_markets():
    results = made_up()
    rows = {table.name: list(table.rows(results)) for table in EXPERIMENT.tables if table.name != "rules"}
    assert [row["condition"] for row in rows["6-bits"]] == [f"6 bits: {name}" for name in (*CONDITIONS, "scikit-XCS")]
    assert [row["problems to all"] for row in rows["6-bits"]][::8] == [500, 500]
    assert rows["6-bits"][-1] | {"condition": ""} == {
        "condition": "",
        "right": 1.0,
        "all": "8/8",
        "after half (all)": "1.000 (8/8)",
        "problems to all": 500,
        "optimal": 8.0,
        "rules": 90.0,
        "right while learning": None,
    }
    assert rows["woods1"][0]["near"] == "8/8"
    assert generality._curves(results) is not None


def test_it_is_registered():
    assert EXPERIMENTS["generality"] is EXPERIMENT


# --- what it learns


@pytest.mark.full
def test_the_market_has_all_inputs_right_and_most_optimal_rules():
    grown = grow(plans("6 bits", quick=False)["market"], accuracy, seeds=4, seed=5)
    assert (grown.measured["right"][-1] == 1).sum() >= 3
    assert np.mean(generality._optimal(grown)) >= 4
    assert grown.residual < 1e-5
    grown = grow(plans("woods1", quick=False)["market"], mean_steps, seeds=4, seed=5)
    assert np.median(grown.measured["steps"][-1]) <= 1.9
    assert grown.residual < 1e-5

"""The bucket brigade's measurements against plain Python, its ablations, and what it learns."""

import dataclasses
import itertools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket.deep_market import Terms, make_population
from jaxmarket.deep_market.evaluation import (
    accuracy,
    is_optimal,
    mean_steps,
    optimal_rules,
    policy,
    rule_string,
    walk,
)
from jaxmarket.deep_market.representations import WILDCARD, ClassifierRule
from jaxmarket.environments.mazes import Woods1
from jaxmarket.experiments import EXPERIMENTS, Scope, reproduce
from jaxmarket.experiments import bucket_brigade as experiment
from jaxmarket.experiments.bucket_brigade import CONDITIONS, EXPERIMENT, plans
from jaxmarket.experiments.results import Results
from jaxmarket.runs.populations import grow


def rules(texts):
    """Agents from strings like ``01#1## : 1``."""
    parts = [text.split(" : ") for text in texts]
    conditions = [[WILDCARD if c == "#" else int(c) for c in left.replace(" ", "")] for left, _ in parts]
    return ClassifierRule(
        jnp.asarray(conditions, jnp.int32), jnp.asarray([int(right) for _, right in parts], jnp.int32)
    )


def multiplexer(bits):
    """The data bit that the address points to."""
    return bits[2 + 2 * bits[0] + bits[1]]


OPTIMAL = [
    f"{address >> 1}{address & 1} {'#' * address}{bit}{'#' * (3 - address)} : {bit}"
    for address in range(4)
    for bit in (0, 1)
]


# --- rules


def test_rules_are_written_in_groups():
    agents = rules(["01#1## : 1"])
    assert rule_string(agents.condition[0], agents.action[0], (2, 4)) == "01 #1## : 1"


def test_a_rule_is_optimal_if_it_is_right_wherever_it_matches_and_no_more_general_one_is():
    """By definition: all 2 · 3^6 rules, tried on all inputs; of those always right, the general ones."""
    inputs = list(itertools.product((0, 1), repeat=6))

    def always_right(condition, action):
        matched = [x for x in inputs if all(c in (WILDCARD, bit) for c, bit in zip(condition, x, strict=True))]
        return all(multiplexer(x) == action for x in matched)

    every = itertools.product(itertools.product((0, 1, WILDCARD), repeat=6), (0, 1))
    right = {rule for rule in every if always_right(*rule)}
    # Those with three #: 8 with the whole address, 8 that know two data bits and one of the address.
    general = {rule for rule in right if rule[0].count(WILDCARD) == 3 and WILDCARD not in rule[0][:2]}
    assert {rule for rule in right if is_optimal(*rule, 2)} == general
    assert len(general) == 8
    assert not any(is_optimal(*rule, 2) for rule in itertools.product([(0, 0, 1, 2, 2, 2), (0, 2, 1, 1, 2, 2)], (0,)))


def test_optimal_rules_are_counted_among_the_living():
    agents = rules([*OPTIMAL[:3], OPTIMAL[0], "00 00## : 0"])
    population = make_population(agents, jnp.ones(5), jnp.array([True, True, False, True, True]))
    assert optimal_rules(population, 2) == set(OPTIMAL[:2])


def test_rules_of_a_report_say_whether_they_are_optimal():
    agents = rules([*OPTIMAL[:1], "00 00## : 0"])
    shown = [experiment._rule(jax.tree.map(lambda leaf, i=i: leaf[i], agents)) for i in range(2)]
    assert shown == [f"{OPTIMAL[0]} (optimal)", "00 00## : 0"]


# --- measurements


def measured(task, agents, wealth, terms=None):
    plan = plans(task, quick=True)["market"]
    market = dataclasses.replace(plan.market, capacity=len(wealth))
    evaluate = accuracy if task == "multiplexer" else mean_steps
    population = make_population(agents, jnp.asarray(wealth))
    values = jax.jit(evaluate, static_argnums=0)(market, jax.random.key(0), population, terms or Terms())
    return {name: float(value) for name, value in values.items()}


def test_the_eight_rules_answer_everything():
    assert measured("multiplexer", rules(OPTIMAL), [10.0] * 8) == {"right": 1.0, "answered": 1.0}


def test_what_nobody_bids_for_is_wrong():
    # 00 0### and 00 1###: the 16 inputs with address 00.
    assert measured("multiplexer", rules(OPTIMAL[:2]), [10.0] * 2) == {"right": 0.25, "answered": 0.25}


def test_accuracy_is_that_of_the_highest_bidder():
    """Rules at random, wealth at random: the argmax of c · specificity · wealth in plain Python."""
    draw = np.random.default_rng(0)
    conditions, actions = draw.integers(0, 3, (12, 6)), draw.integers(0, 2, 12)
    wealth = draw.uniform(1, 5, 12)
    right = answered = 0
    for x in itertools.product((0, 1), repeat=6):
        bids = {
            i: (conditions[i] != WILDCARD).mean() * wealth[i]
            for i in range(12)
            if all(c in (WILDCARD, bit) for c, bit in zip(conditions[i], x, strict=True))
        }
        if bids:
            answered += 1
            right += actions[max(bids, key=bids.get)] == multiplexer(x)
    agents = ClassifierRule(jnp.asarray(conditions, jnp.int32), jnp.asarray(actions, jnp.int32))
    assert measured("multiplexer", agents, wealth) == {"right": right / 64, "answered": answered / 64}


def woods_rules(moves):
    """One rule per free cell of Woods1, that sees all of it and makes the given move."""
    maze = Woods1()
    conditions = np.stack([maze.view(cell) for cell in maze.free])
    return ClassifierRule(jnp.asarray(conditions, jnp.int32), jnp.asarray(moves, jnp.int32))


def shortest(maze):
    """A best move for every free cell."""
    steps = dict(zip(maze.places, maze.distances, strict=True))
    return [min(range(8), key=lambda a: steps[maze.move(cell, a)]) for cell in maze.free]


def test_the_best_moves_take_27_sixteenths_steps():
    values = measured("woods1", woods_rules(shortest(Woods1())), [10.0] * 16)
    assert values == {"steps": 27 / 16, "fed": 1.0}


def test_a_place_nobody_buys_and_a_loop_are_failures():
    maze, moves = Woods1(), shortest(Woods1())
    agents = woods_rules(moves)
    far = int(np.argmax([maze.distances[maze.places.index(cell)] for cell in maze.free]))
    kept = [i for i in range(16) if i != far]
    fewer = measured("woods1", jax.tree.map(lambda x: x[np.array(kept)], agents), [10.0] * 15)
    assert fewer["fed"] == 15 / 16
    np.testing.assert_allclose(fewer["steps"], (27 - 2 + 50) / 16)
    # North for ever: round and round, or against a rock.
    assert measured("woods1", woods_rules([0] * 16), [10.0] * 16)["fed"] < 0.5


def test_walk_against_steps_in_plain_python():
    maze, draw = Woods1(), np.random.default_rng(1)
    params = maze.default_params
    for _ in range(5):
        moves = draw.integers(0, 8, len(maze.places))
        expected = []
        for cell in maze.starts:
            steps = 0
            while cell in maze.free and steps < 50:
                cell, steps = maze.move(cell, moves[maze.places.index(cell)]), steps + 1  # noqa: PLW2901
            expected.append(steps)
        steps = walk(params.successors, params.food, params.starts, jnp.asarray(moves), 50)
        np.testing.assert_array_equal(steps, expected)


@pytest.mark.slow
def test_policy_names_the_price():
    plan = plans("woods1", quick=True)["market"]
    market = dataclasses.replace(plan.market, capacity=16)
    population = make_population(woods_rules(shortest(Woods1())), jnp.full(16, 10.0))
    sold, price, _ = policy(market, jax.random.key(0), population, Terms())
    free = np.array([place in Woods1().free for place in Woods1().places])
    np.testing.assert_array_equal(sold, free)
    np.testing.assert_allclose(price[free], 0.2 * 10 / 16, rtol=1e-6)


# --- what is run


def test_every_ablation_takes_away_one_thing():
    for task in ("multiplexer", "woods1"):
        others = plans(task, quick=True)
        assert tuple(others) == CONDITIONS
        market = others.pop("market")
        for name, plan in others.items():
            terms, same = plan.terms == market.terms, plan.market == market.market
            assert terms != same, name
            assert (plan.rounds, plan.period, plan.wealth) == (market.rounds, market.period, market.wealth)


@pytest.mark.full
def test_where_sellers_are_paid_by_the_mint_the_subsidy_is_recorded():
    plan = plans("multiplexer", quick=True)["no conservation"]
    small = dataclasses.replace(plan.market, capacity=24, instances=4)
    plan = dataclasses.replace(plan, market=small, rounds=8, num_agents=12, chunks=2)
    grown = grow(plan, accuracy, seeds=2, seed=0)
    assert grown.rounds.flows["subsidy"].sum() > 0
    assert grown.residual < 1e-5
    results = Results(Scope(2), {"multiplexer: no conservation": grown}, {}, EXPERIMENT.measures)
    assert experiment._COLUMNS["multiplexer"]["right"](results, "multiplexer: no conservation") <= 1


def made_up(right=0.97, lengths=1.9, steps=1.8, **ablated):
    """Results of four seeds: the market with these means, and its ablations, worse on three of the seeds by default."""

    def result(right, lengths, steps):
        return types.SimpleNamespace(
            measured={
                "right": np.broadcast_to(right, (1, 4)),
                "steps": np.broadcast_to(steps, (1, 4)),
                "fed": np.ones((1, 4)),
            },
            per_episode=lambda field: np.broadcast_to(lengths, (1, 4)),
        )

    found = {}
    worse = np.array([1, 1, 1, -1])
    for name in CONDITIONS:
        change = 0 * worse if name == "market" else ablated.get(name.replace(" ", "_"), worse)
        found[f"multiplexer: {name}"] = result(right - 0.1 * change, lengths, steps)
        found[f"woods1: {name}"] = result(right, lengths + change, steps)
    results = Results(Scope(4), found, {}, EXPERIMENT.measures)
    return {claim.text: claim.verdict(results) for claim in EXPERIMENT.claimed(results.scope)}


def test_claims_are_decided_by_means_and_by_most_seeds():
    verdicts = made_up()
    assert len(verdicts) == 12
    assert {verdict.standing for verdict in verdicts.values()} == {"confirmed"}
    mux = verdicts["[multiplexer] no tax: fewer correct answers, on most seeds"]
    assert (mux.kind, mux.number) == ("share_of_seeds", 0.75)
    assert "3/4 seeds" in mux.evidence
    assert "by chance: 31.2%" in mux.evidence  # 5 of 16: three or four heads of four
    assert "-0.050 on average" in mux.evidence
    assert "+0.500 on average" in verdicts["[Woods1] no tax: more steps during training, on most seeds"].evidence
    assert not any("[multiplexer] no property rights" in text for text in verdicts)


def test_half_of_the_seeds_are_not_most_and_ties_do_not_count():
    denied = [text for text, v in made_up(no_tax=np.array([1, 1, 0, 0])).items() if v.standing != "confirmed"]
    assert denied == [
        "[multiplexer] no tax: fewer correct answers, on most seeds",
        "[Woods1] no tax: more steps during training, on most seeds",
    ]


@pytest.mark.parametrize(
    ("changed", "denied"),
    [({"right": 0.94}, "[multiplexer] the final"), ({"lengths": 2.1}, "[Woods1] at the end"),
     ({"steps": 2.1}, "[Woods1] the same")],
)  # fmt: skip
def test_a_mean_beyond_its_bound_denies_one_claim(changed, denied):
    found = [text for text, verdict in made_up(**changed).items() if verdict.standing != "confirmed"]
    assert [text.startswith(denied) for text in found] == [True]


def test_it_is_registered():
    assert EXPERIMENTS["bucket-brigade"] is EXPERIMENT


# --- what it learns


@pytest.mark.full
def test_the_market_learns_the_multiplexer_and_woods1():
    plan = plans("multiplexer", quick=True)["market"]
    grown = grow(dataclasses.replace(plan, rounds=1000), accuracy, seeds=4, seed=5)
    assert grown.measured["right"][-1].mean() > 0.9
    grown = grow(plans("woods1", quick=True)["market"], mean_steps, seeds=4, seed=5)
    assert grown.per_episode("lengths")[-1].mean() < 6  # random moves: 27


@pytest.mark.full
def test_the_quick_report(tmp_path):
    report = reproduce("bucket-brigade", tmp_path, quick=True, seeds=2, progress=False)
    document = json.loads(report.to_json())
    assert document["conservation_residual"] < 1e-5
    assert len(report.tables[0].rows) == len(CONDITIONS)
    assert (tmp_path / "map.png").exists()

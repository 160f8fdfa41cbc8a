"""The mazes of classifier systems: what is changed in the market, the level that counts as near, and the figures."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket.deep_market import init
from jaxmarket.experiments import EXPERIMENTS, Scope, mazes
from jaxmarket.experiments.mazes import EXPERIMENT, MAZES, plans
from jaxmarket.experiments.results import Results
from jaxmarket.runs.populations import GrownMarket


def test_one_thing_is_changed_at_a_time():
    market, *others = plans("Maze5", quick=False).values()
    assert others
    for plan in others:
        assert (plan.terms == market.terms) != (plan.market == market.market)
        assert (plan.rounds, plan.period, plan.max_births) == (market.rounds, market.period, market.max_births)
        given, changed = vars(market.terms), vars(plan.terms)
        assert sum(given[name] != changed[name] for name in given) <= 1
    assert tuple(plans("Maze4", quick=False)) == tuple(plans("Maze6", quick=False)) == ("market",)


def test_the_settings_are_the_same_in_all_mazes():
    four, five, six = (plans(name, quick=False)["market"] for name in MAZES)
    assert four.terms == five.terms == six.terms
    assert four.market.representation == five.market.representation == six.market.representation
    assert [int(plan.steps[-1]) for plan in (four, five, six)] == [128_000, 128_000, 256_000]


def made_up(excess):
    """Results of four seeds whose steps are multiples of the shortest paths: f [4], at the end."""

    def market(name, plan):
        shortest = MAZES[name.partition(":")[0]].mean_shortest()
        steps = np.full((plan.chunks, 4), 50.0)
        steps[-1] = shortest * np.asarray(excess) + name.endswith("fee .002")
        state = init(plan.market, jax.random.key(0), plan.market.env.default_params, num_agents=0)
        economy = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), state)
        statistics = types.SimpleNamespace(episodes=np.ones((4, plan.chunks)), lengths=np.full((4, plan.chunks), 6.0))
        counts = np.ones((4, plan.rounds))
        rounds = types.SimpleNamespace(statistics=statistics, num_agents=counts)
        return GrownMarket(plan, None, rounds, {"steps": steps, "fed": steps < 50}, economy)

    found = {
        f"{name}: {change}": market(f"{name}: {change}", plan)
        for name in MAZES
        for change, plan in plans(name, quick=True).items()
    }
    return Results(Scope(4), found, {}, EXPERIMENT.measures)


@pytest.mark.parametrize(
    ("excess", "standing"), [([1, 1, 1, 1.09], True), ([1, 1, 1, 1.2], False), ([1, 1.09, 1.09, 1.11], False)]
)
def test_near_is_a_tenth_more_than_the_shortest_paths(excess, standing):
    results = made_up(excess)
    near = EXPERIMENT.claimed(results.scope)[: len(MAZES)]
    assert [claim.verdict(results).standing == "confirmed" for claim in near] == [standing] * 3


def test_a_change_must_cost_steps_on_most_seeds():
    results = made_up([1, 1, 1, 1])
    verdicts = {claim.text: claim.verdict(results).standing for claim in EXPERIMENT.claimed(results.scope)[3:]}
    costly = {text for text, standing in verdicts.items() if standing == "confirmed"}
    assert costly == {"[Maze5] fee .002: more steps of the frozen population, on most seeds"}


def test_the_table_and_the_figures_show_the_median_seed():
    results = made_up([1, 1.05, 1.3, 1.02])
    rows = {row["condition"]: row for row in EXPERIMENT.tables[0].rows(results)}
    assert rows["Maze4: market"]["near"] == "3/4"
    assert rows["Maze4: market"]["auctions till near"] == plans("Maze4", quick=True)["market"].steps[-1]
    assert rows["Maze5: fee .002"]["near"] == "0/4"
    assert rows["Maze5: fee .002"]["auctions till near"] is None
    assert mazes._middle(results, "Maze6: market") == 1
    assert len(mazes._curves(results).axes) == 3
    titles = [ax.get_title() for ax in mazes._prices(results).axes if ax.get_title()]
    assert [title.partition(":")[0] for title in titles] == list(MAZES)


def test_it_is_registered():
    assert EXPERIMENTS["mazes"] is EXPERIMENT

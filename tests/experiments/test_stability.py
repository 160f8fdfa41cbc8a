"""Whether economies last: what is run, what counts as a collapse, and the tables."""

import types

import jax
import numpy as np
import pytest

from jaxmarket.experiments import EXPERIMENTS, Scope, stability
from jaxmarket.experiments.results import Results
from jaxmarket.experiments.stability import EXPERIMENT, TASKS, plans
from jaxmarket.runs.populations import GrownMarket


def test_runs_are_ten_times_as_long_with_births_to_the_end():
    for name in TASKS:
        for plan in plans(name, quick=False).values():
            longer = stability._longer(plan)
            assert longer.steps[-1] == 10 * plan.steps[-1]
            trained = longer.chunks // 10
            assert longer.steps[trained - 1] == plan.steps[-1]
            for i in range(trained):
                stages = longer.env_params(i), plan.env_params(i * plan.chunks // trained)
                jax.tree.map(np.testing.assert_array_equal, *stages)
            assert (longer.settling, longer.market, longer.terms) == (0, plan.market, plan.terms)


def test_one_thing_is_changed_at_a_time():
    for name in ("MemoryChain 10", "Woods1"):
        market, *others = plans(name, quick=False).items()
        for _, plan in others[:3]:
            given, changed = vars(market[1].terms), vars(plan.terms)
            different = {field for field in given if given[field] != changed[field]}
            assert different <= {"birth_rate", "wealth_tax", "compute_tax", "replace_poorest"}
            assert different
            assert plan.market == market[1].market


def test_slow_changes_are_run_in_full_only():
    normal, full = ({c.name for c in EXPERIMENT.planned(Scope(4, full=full))} for full in (False, True))
    assert normal < full
    assert {"MemoryChain 10: rare births", "Woods101: market", "blocks world: market"} <= full - normal


def made_up(returns=0.9, right=0.9, steps=2.0, solved=0.9, full=True):
    """Results of four seeds; a value, or f [parts, seeds] while learning, for every task."""
    parts = stability._PARTS

    def market(name, values):
        task, values = TASKS[name], np.broadcast_to(values, (parts, 4)).T.astype(float)
        statistics = types.SimpleNamespace(episodes=np.ones((4, parts)), **{task.field: values})
        plan = types.SimpleNamespace(chunks=parts, steps=np.arange(1, parts + 1))
        return GrownMarket(plan, None, types.SimpleNamespace(statistics=statistics), {task.frozen: values.T}, None)

    given = dict(zip(TASKS, (returns, right, steps, 0.9, solved), strict=True))
    names = [condition.name for condition in EXPERIMENT.planned(Scope(4, full=full))]
    found = {name: market(name.partition(": ")[0], given[name.partition(": ")[0]]) for name in names}
    return Results(Scope(4, full=full), found, {}, EXPERIMENT.measures)


def late(value, usual, part=12):
    """One seed has a value in one part, else all have the usual one."""
    values = np.full((stability._PARTS, 4), float(usual))
    values[part, 2] = value
    return values


@pytest.mark.parametrize(
    ("given", "standing"),
    [
        ({}, [True, True, True, True, True]),
        ({"returns": late(0.2, 0.9)}, [False, True, True, True, True]),
        ({"right": late(0.6, 0.9)}, [True, False, True, True, True]),
        ({"steps": late(9, 2)}, [True, True, False, True, True]),
        ({"solved": late(0.4, 0.9)}, [True, True, True, True, False]),
        ({"returns": late(0.2, 0.9, part=1)}, [True, True, True, True, True]),  # before it is trained
        ({"steps": late(np.nan, 2)}, [True, True, False, True, True]),  # no episode ended
        ({"solved": 0.1, "full": False}, [True, True, True]),
    ],
)
def test_a_collapse_is_one_bad_part_after_training(given, standing):
    results = made_up(**given)
    verdicts = [claim.verdict(results).standing for claim in EXPERIMENT.claimed(results.scope)]
    assert [verdict == "confirmed" for verdict in verdicts] == standing


def test_the_table_counts_collapses_and_the_figure_is_drawn():
    results = made_up(steps=late(9, 2), returns=late(0.1, 0.9, part=stability._PARTS - 1))
    rows = {row["condition"]: row for row in EXPERIMENT.tables[0].rows(results)}
    woods, chain = rows["Woods1: market"], rows["MemoryChain 10: market"]
    assert (woods["collapsed once"], woods["collapsed then"], woods["after training"]) == ("1/4", "0/4", 2)
    assert (chain["collapsed once"], chain["collapsed then"]) == ("1/4", "1/4")
    assert woods["worst part, mean"] == pytest.approx((3 * 2 + 9) / 4)
    assert len(stability._draw(results).axes) == len(TASKS)
    assert len(stability._draw(made_up(full=False)).axes) == 3


def test_it_is_registered():
    assert EXPERIMENTS["stability"] is EXPERIMENT

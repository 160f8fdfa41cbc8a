"""The Two Rooms reproduction: its numbers from made-up runs by hand, and the real thing (slow)."""

import json
import types

import numpy as np
import pytest

from jaxmarket import experiments
from jaxmarket.environments.rooms import TASKS
from jaxmarket.experiments import Scope, transfers, two_rooms
from jaxmarket.experiments.results import Results
from jaxmarket.experiments.transfers import MEASURES, Transfer, exploring, kind_of


def made_up(success, duration=2.0, rates=None, weights=1.0, agent="monolith"):
    """A finished run with these success rates [chunks, seeds], 100 decisions per chunk."""
    success = np.asarray(success, float)
    seeds = success.shape[1]
    kernel = np.full((seeds, 1, 2, 2) if agent == "society" else (seeds, 2, 2), weights)
    return types.SimpleNamespace(
        config=types.SimpleNamespace(settings=types.SimpleNamespace(auctions_per_chunk=100), agent=agent),
        metrics={"termination_rate": success, "duration": np.full(success.shape, duration)},
        summary={
            "termination_rate_seeds": [1.0] * seeds if rates is None else rates,
            "sampled_termination_rate_seeds": [1.0] * seeds if rates is None else rates,
            "return_seeds": [0.7] * seeds,
        },
        networks={"policy": {"params": {"layer": {"kernel": kernel}}}},
    )


def measured(run):
    """All measures of a run."""
    return {name: measure(run).tolist() for name, measure in MEASURES.items()}


def test_steps_are_the_environments_and_counted_to_the_chunk_that_got_there():
    found = measured(made_up([[0.0, 0.95, np.nan, 0.89], [0.9, 0.2, np.nan, 0.5], [0.1, 1, 0.91, 0.8]]))
    assert found["steps to 90%"] == [400, 200, 600, 600]
    assert found["reached 90%"] == [True, True, True, False]
    assert found["steps to stay"] == [600, 600, 600, 600]
    assert found["stays"] == [False, True, True, False]


def results(finished, scope=None):
    return Results(scope or Scope(4, quick=True), finished, {}, two_rooms.EXPERIMENT.measures)


def test_the_row_of_an_agent():
    first, second = made_up([[0.1, 0.9], [0.95, 0.9]]), made_up([[0.1, 0.2], [0.1, 0.3]], weights=1.5)
    found, transfer = results({"f": first, "t": second}), Transfer("flat", "f", "t")
    row = transfer.row(found)
    assert (row["k steps"].value, row["k steps after"].value) == (pytest.approx(0.3), 0.4)
    assert (row["reached"], row["moved"].value, row["change"].value) == ("0/2", 1, pytest.approx(0.5))
    assert found.measure("f", "steps to 90%").tolist() == [400, 200]
    assert found.measure("t", "steps to 90%").tolist() == [400, 400]
    assert found.measure("t", "reached 90%").tolist() == [False, False]
    assert transfer.over("all", "moved")(found).tolist() == [1, 1]
    np.testing.assert_allclose(transfer.over("policies", "change")(found), 0.5)


def test_a_seed_that_never_gets_there_counts_as_its_whole_run():
    found = measured(made_up([[0.0, 0.0], [0.0, 0.9]], duration=np.array([[2.0, 3.0]] * 2)))
    assert found["steps to 90%"] == [400, 600]
    assert found["reached 90%"] == [False, True]


def reaching(chunks, count=100):
    """A run of ``count`` chunks of 1,000 steps whose seeds reach 90% at these chunks; NaN: never."""
    rate = np.arange(1, count + 1)[:, None] >= np.asarray(chunks, float)
    return made_up(rate, duration=10.0)


@pytest.mark.parametrize(
    ("ours", "theirs", "standing", "says"),
    [
        ([10, 11, 12, 13], [20, 21, 22, 23], "confirmed", "reached by 4/4 and 4/4"),
        ([20, 21, 22, 23], [10, 11, 12, 13], "not confirmed", "4/4"),
        ([10, 15, 20, 25], [12, 17, 22, 27], "not confirmed", "means -2,000 ["),
        ([10, 12, 14, 16], [14, 16, 18, 20], "not confirmed", "means -4,000 [-8,467, 467"),
        ([10, 12, 14, 16], [15, 17, 19, 21], "confirmed", "means -5,000 [-9,467, -532"),  # intervals overlap
        ([10, 11, np.nan, np.nan], [150, 150, 150, 150], "not confirmed", "by 2/4"),  # whatever the others need
        ([10, 11, 12, 13], [np.nan] * 4, "confirmed", "against 100,000 [100,000, 100,000]"),
        ([10, 11, 12, 13], [5, 5, 5, np.nan], "not confirmed", "and 3/4"),
        ([np.nan] * 4, [np.nan] * 4, "not confirmed", "by 0/4"),
    ],
)
def test_fewer_steps_needs_most_seeds_and_a_difference_below_zero(ours, theirs, standing, says):
    claim = transfers.fewer_steps("it is faster", "ours", "theirs")
    verdict = claim.verdict(results({"ours": reaching(ours), "theirs": reaching(theirs)}, Scope(4)))
    assert verdict.standing == standing
    assert says in verdict.evidence
    assert verdict.kind == "separated"
    assert verdict.number is not None


def test_variants_have_the_settings_of_their_agent():
    settings = {"society": {"learning_rate": 0.5, "entropy": 0.01}, "flat": {"entropy": 0.2}}
    found = exploring(settings, ("society",))
    assert found == {"society-exploring": {"learning_rate": 0.5, "entropy": 0.1}}
    assert [kind_of(name) for name in (*found, "society-3e-3", "flat")] == ["society", "society", "flat"]
    own = two_rooms.CONDITIONS["society-3e-3"]
    assert own == two_rooms.TUNED["society"] | {"learning_rate": 3e-3}


_AGENT = {"society": "society", "hierarchical": "monolith", "flat": "monolith"}
SOON, LATE, NEVER = [[1.0] * 4] * 2, [[0.0] * 4, [1.0] * 4], [[0.0] * 4] * 2


def finished(curves, moved=None, options=(0.96,), rates=None):
    """Results with these curves after the transfer; on the first task all agents succeed at once."""
    runs = {
        f"option-{task}": made_up([[1.0] * len(options)], rates=list(options)) for task in two_rooms.OPTIONS.values()
    }
    runs["first-nested"] = made_up([[1.0]], rates=[0.95])
    for name, curve in curves.items():
        agent = _AGENT[kind_of(name)]
        runs[f"first-{name}"] = made_up([[1.0] * 4] * 2, agent=agent, rates=(rates or {}).get(name))
        runs[f"transfer-{name}"] = made_up(curve, weights=(moved or {}).get(name, 1.0), agent=agent)
    return runs


def confirmed(runs, scope=None):
    scope = scope or Scope(4, quick=True)
    found = [claim.verdict(results(runs, scope)) for claim in two_rooms._claims(scope)]
    return {verdict.claim: verdict.standing == "confirmed" for verdict in found}


@pytest.mark.parametrize(
    ("society", "hierarchical", "moved", "expected"),
    [
        (SOON, LATE, {"hierarchical": 2.0}, [True, True, True]),
        (LATE, SOON, {"society": 2.0}, [False, False, False]),
        (SOON, SOON, {}, [False, True, False]),
        (NEVER, NEVER, {"society": 2.0, "hierarchical": 2.0}, [False, False, False]),
        (SOON, NEVER, {"hierarchical": 2.0}, [True, True, True]),
    ],
)
def test_claims_about_transfer(society, hierarchical, moved, expected):
    """Fewer steps than hierarchical, than flat (mostly never there), fewer weights moved; ties confirm nothing."""
    flat = LATE if society is LATE else NEVER
    found = list(confirmed(finished({"society": society, "hierarchical": hierarchical, "flat": flat}, moved)).values())
    assert found[-3:] == expected
    assert all(found[:5])


def test_claims_about_the_first_task_hold_for_every_seed():
    curves = {"society": SOON, "hierarchical": LATE, "flat": NEVER}
    found = confirmed(finished(curves, options=(0.5, 0.94), rates={"society": [1, 1, 1, 0.94]}))
    assert list(found.values())[:5] == [False, False, False, False, True]
    assert all(confirmed(finished(curves, options=(0.5, 0.96))).values()) is False  # weights did not move less
    assert list(confirmed(finished(curves, options=(0.5, 0.96))).values())[:5] == [True] * 5


def test_settings_are_those_of_the_grid():
    for agent in two_rooms.AGENTS:
        assert two_rooms.TUNED[agent] in two_rooms.GRIDS[agent]
    assert {*two_rooms.OPTIONS.values(), two_rooms.FIRST, two_rooms.TRANSFER} == set(TASKS)


def test_a_full_run_compares_the_society_at_its_own_rate():
    curves = {name: LATE if name == "society-3e-3" else SOON for name in two_rooms.CONDITIONS}
    found = confirmed(finished(curves), Scope(4))
    assert found["society-3e-3: 95% success on the first task"]
    assert not found["society-3e-3: 90% on the transfer task in fewer environment steps than society"]
    assert "nested: 95% success on the first task" in found
    assert len(found) == len(confirmed(finished(curves))) + 2 + 3  # first tasks; pairs of variants


def test_a_full_run_adds_societies_as_options_and_the_grid():
    quick, normal, full = (
        {c.name: c for c in two_rooms.EXPERIMENT.planned(Scope(16, quick, full))}
        for quick, full in ((True, False), (False, False), (False, True))
    )
    assert quick.keys() < normal.keys() < full.keys()
    assert normal["transfer-society"].start == "first-society"
    assert normal["first-nested"].inputs == tuple(f"society-option-{task}" for task in two_rooms.OPTIONS.values())
    assert (normal["first-nested"].seeds, normal["option-TwoRooms-Red-v0"].seeds) == (8, 8)
    grid = [c for name, c in full.items() if name not in normal]
    assert len(grid) == 27
    assert {(c.seeds, c.seed) for c in grid} == {(4, 5)}


@pytest.mark.full
def test_options_and_arms_solve_their_tasks(tmp_path):
    """Options in 95% of episodes, society and hierarchical agent on green likewise on each of 8 seeds; then again."""
    report = experiments.reproduce("two-rooms", tmp_path, quick=True, seeds=8, progress=False)
    confirmed = {verdict.claim: verdict.standing == "confirmed" for verdict in report.verdicts}
    assert all(confirmed[claim] for claim in list(confirmed)[:5]), confirmed
    found = json.loads(report.to_json())
    assert {row["arm"] for row in found["table"]} == set(two_rooms.AGENTS)
    assert 0 < found["waste"]["untrained"] < 1
    assert {f.name for f in tmp_path.glob("*.png")} == {"learning_curves.png", "weights.png", "ways.png"}
    assert (tmp_path / "society.gif").read_bytes().startswith(b"GIF89a")
    again = experiments.reproduce("two-rooms", tmp_path, quick=True, seeds=8, progress=False)
    assert again.to_json() == report.to_json()

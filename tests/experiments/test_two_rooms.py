"""The Two Rooms reproduction: its numbers from made-up runs by hand, and the real thing (slow)."""

import dataclasses
import json
import types

import numpy as np
import pytest

from jaxmarket import experiments
from jaxmarket.environments.rooms import TASKS
from jaxmarket.experiments import two_rooms
from jaxmarket.experiments.transfer_conditions import (
    TransferCondition,
    exploring,
    fewer_steps,
    kind_of,
    lower_bound,
    steps_to,
)


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


def test_steps_are_the_environments_and_counted_to_the_chunk_that_got_there():
    run = made_up([[0.0, 0.95, np.nan, 0.89], [0.9, 0.2, np.nan, 0.5], [0.1, 1, 0.91, 0.8]])
    np.testing.assert_array_equal(steps_to(run), [400, 200, 600, np.nan])


def test_an_arm_as_json():
    first = made_up([[0.1, 0.9], [0.95, 0.9]])
    arm = TransferCondition("flat", first, made_up([[0.1, 0.2], [0.1, 0.3]], weights=1.5))
    entry = json.loads(json.dumps(arm.entry, allow_nan=False))
    assert entry["steps_to_90_first"] == {
        "mean": 300, "std": 100, "lowest": 200, "highest": 400, "seeds": [400, 200], "never": 0,
    }  # fmt: skip
    assert entry["steps_to_90_transfer"] == {
        "mean": 400, "std": 0, "lowest": 400, "highest": 400, "seeds": [400, 400], "never": 2,
    }  # fmt: skip
    assert entry["success_first"]["mean"] == 1
    assert entry["share_of_weights_moved"]["mean"] == 1
    np.testing.assert_allclose(entry["relative_weight_change"]["mean"], 0.5)
    assert entry["env_steps_transfer"] == 400
    assert (arm.row["k steps"].value, arm.row["k steps after"].value) == (pytest.approx(0.3), 0.4)
    assert arm.row["reached"] == "0/2"


def test_a_seed_that_never_gets_there_counts_as_its_whole_run():
    run = made_up([[0.0, 0.0], [0.0, 0.9]], duration=np.array([[2.0, 3.0]] * 2))
    np.testing.assert_array_equal(steps_to(run), [np.nan, 600])
    np.testing.assert_array_equal(lower_bound(run, steps_to(run)), [400, 600])
    np.testing.assert_array_equal(lower_bound(run, np.full(2, np.nan)), [400, 600])


@pytest.mark.parametrize(
    ("ours", "theirs", "standing", "says"),
    [
        ([10, 11, 12, 13], [20, 21, 22, 23], "confirmed", "(4/4 seeds reach it)"),
        ([20, 21, 22, 23], [10, 11, 12, 13], "not confirmed", "(4/4)"),
        ([10, 15, 20, 25], [12, 17, 22, 27], "not confirmed", "means -2,000 ["),
        ([10, 12, 14, 16], [14, 16, 18, 20], "not confirmed", "means -4,000 [-8,467, 467"),
        ([10, 12, 14, 16], [15, 17, 19, 21], "confirmed", "means -5,000 [-9,467, -532"),  # intervals overlap
        ([10, 11, np.nan, np.nan], [150, 150, 150, 150], "not confirmed", "(2/4 seeds"),  # whatever the others need
        ([10, 11, 12, 13], [np.nan] * 4, "confirmed", "against 100,000 [100,000, 100,000] (0/4)"),
        ([10, 11, 12, 13], [5, 5, 5, np.nan], "not confirmed", "(3/4)"),
        ([np.nan] * 4, [np.nan] * 4, "not confirmed", "(0/4 seeds"),
    ],
)
def test_fewer_steps_needs_most_seeds_and_a_difference_below_zero(ours, theirs, standing, says):
    ours, theirs = (np.array(steps) * 1000.0 for steps in (ours, theirs))
    verdict = fewer_steps("it is faster", ours, theirs, (np.full(4, 100_000.0), 100_000))
    assert verdict.standing == standing
    assert says in verdict.evidence
    assert verdict.number is not None


def test_variants_have_the_settings_of_their_agent():
    settings = {"society": {"learning_rate": 0.5, "entropy": 0.01}, "flat": {"entropy": 0.2}}
    found = exploring(settings, ("society",))
    assert found == {"society-exploring": {"learning_rate": 0.5, "entropy": 0.1}}
    assert [kind_of(name) for name in (*found, "society-3e-3", "flat")] == ["society", "society", "flat"]
    own = two_rooms.CONDITIONS["society-3e-3"]
    assert own == two_rooms.TUNED["society"] | {"learning_rate": 3e-3}


def verdicts(arms, options=None):
    trained = {task: made_up([[1.0]], rates=options or [0.96]) for task in two_rooms.OPTIONS.values()}
    found = two_rooms._verdicts(trained, {arm.name: arm for arm in arms}, made_up([[1.0]], rates=[0.95]))
    return [(v.standing == "confirmed", v.number) for v in found]


def arms_with(society, hierarchical, flat, moved):
    """Arms whose transfers have these curves."""
    solved = {
        name: made_up([[1.0] * 4] * 2, agent=agent) for name, agent in zip(two_rooms.AGENTS, _AGENTS, strict=True)
    }
    curves = {"society": society, "hierarchical": hierarchical, "flat": flat}
    return [
        TransferCondition(name, solved[name], made_up(curves[name], weights=moved.get(name, 1.0), agent=agent))
        for name, agent in zip(two_rooms.AGENTS, _AGENTS, strict=True)
    ]


_AGENTS = ("society", "monolith", "monolith")
SOON, LATE, NEVER = [[1.0] * 4] * 2, [[0.0] * 4, [1.0] * 4], [[0.0] * 4] * 2


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
    found = verdicts(arms_with(society, hierarchical, LATE if society is LATE else NEVER, moved))
    assert [confirmed for confirmed, _ in found[-3:]] == expected
    assert all(confirmed for confirmed, _ in found[:6])


def test_claims_about_the_first_task_hold_for_every_seed():
    arms = arms_with(SOON, LATE, NEVER, {})
    low = dataclasses.replace(arms[0], first=made_up([[1.0] * 4], rates=[1, 1, 1, 0.94], agent="society"))
    found = verdicts([low, *arms[1:]], options=[0.5, 0.94])
    assert [confirmed for confirmed, _ in found[:6]] == [False, False, False, False, True, True]
    assert found[3][1] == 0.94


def test_settings_are_those_of_the_grid():
    for arm in two_rooms.AGENTS:
        assert (two_rooms.TUNED[arm]["learning_rate"], two_rooms.TUNED[arm]["entropy"]) in two_rooms.GRID
    assert {*two_rooms.OPTIONS.values(), two_rooms.FIRST, two_rooms.TRANSFER} == set(TASKS)


def test_the_society_at_its_own_rate_is_compared_with_the_others():
    arms = arms_with(SOON, SOON, NEVER, {})
    own = dataclasses.replace(arms[0], name="society-3e-3")
    found = verdicts([*arms, own])
    assert len(found) == len(verdicts(arms)) + 3  # the first task, hierarchical, society
    late = dataclasses.replace(own, second=made_up(NEVER, agent="society"))
    trained = {task: made_up([[1.0]]) for task in two_rooms.OPTIONS.values()}
    claims = {v.claim: v.standing for v in two_rooms._verdicts(trained, {a.name: a for a in [*arms, late]}, None)}
    assert claims["society-3e-3: 95% success on the first task, every seed"] == "confirmed"
    assert claims["society-3e-3: 90% on the transfer task in fewer environment steps than society"] == "not confirmed"


@pytest.mark.full
def test_options_and_arms_solve_their_tasks(tmp_path):
    """Options in 95% of episodes, society and hierarchical agent on green likewise on each of 8 seeds; then again."""
    report = experiments.reproduce("two-rooms", tmp_path, quick=True, seeds=8, progress=False)
    confirmed = {verdict.claim: verdict.standing == "confirmed" for verdict in report.verdicts}
    assert all(confirmed[claim] for claim in list(confirmed)[:5]), confirmed
    found = json.loads(report.to_json())
    assert set(found["arms"]) == set(two_rooms.AGENTS)
    assert found["arms"]["society"]["success_first"]["mean"] >= 0.95
    assert 0 < found["waste"]["untrained"] < 1
    assert {f.name for f in tmp_path.glob("*.png")} == {"learning_curves.png", "weights.png", "ways.png"}
    assert (tmp_path / "society.gif").read_bytes().startswith(b"GIF89a")
    again = experiments.reproduce("two-rooms", tmp_path, quick=True, seeds=8, progress=False)
    assert again.to_json() == report.to_json()

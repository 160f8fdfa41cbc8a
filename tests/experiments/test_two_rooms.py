"""The Two Rooms reproduction: its numbers from made-up runs by hand, and the real thing (slow)."""

import dataclasses
import json
import types

import numpy as np
import pytest

from jaxmarket import experiments
from jaxmarket.environments.rooms import TASKS
from jaxmarket.experiments import two_rooms
from jaxmarket.experiments.transfer_conditions import TransferCondition, steps_to


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
    never = entry["steps_to_90_transfer"]
    assert (never["mean"], never["std"], never["seeds"], never["never"]) == (None, None, [None, None], 2)
    assert entry["success_first"]["mean"] == 1
    assert entry["share_of_weights_moved"]["mean"] == 1
    np.testing.assert_allclose(entry["relative_weight_change"]["mean"], 0.5)
    assert entry["env_steps_transfer"] == 400
    assert arm.row["k steps after"] is None


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


@pytest.mark.full
def test_options_and_arms_solve_their_tasks(tmp_path):
    """Options in 95% of episodes, society and hierarchical agent on green likewise on each of 8 seeds; then again."""
    report = experiments.reproduce("two-rooms", tmp_path, quick=True, seeds=8, progress=False)
    confirmed = {verdict.claim: verdict.standing == "confirmed" for verdict in report.verdicts}
    assert all(confirmed[claim] for claim in list(confirmed)[:5]), confirmed
    found = json.loads(report.to_json())
    assert set(found["arms"]) == {"society", "hierarchical", "flat"}
    assert found["arms"]["society"]["success_first"]["mean"] >= 0.95
    assert 0 < found["waste"]["untrained"] < 1
    assert {f.name for f in tmp_path.glob("*.png")} == {"learning_curves.png", "weights.png", "ways.png"}
    assert (tmp_path / "society.gif").read_bytes().startswith(b"GIF89a")
    again = experiments.reproduce("two-rooms", tmp_path, quick=True, seeds=8, progress=False)
    assert again.to_json() == report.to_json()

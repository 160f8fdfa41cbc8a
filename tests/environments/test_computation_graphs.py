"""The Mental Rotation reproduction: numbers from made-up programs by hand, all of it once, its claim (slow)."""

import json
import types

import jax
import numpy as np
import pytest

from jaxmarket import experiments, fit
from jaxmarket.environments import digits
from jaxmarket.environments.mental_rotation import NAMES
from jaxmarket.experiments import mental_rotation, report
from jaxmarket.experiments.mental_rotation import Bounds, Play

LEFT, RIGHT, UP, DOWN, STOP = 0, 1, 2, 3, 6


def made_up_env(depth="fixed"):
    """Two combinations: rotated left and moved up, which needs two functions; nothing at all, which needs none."""
    dynamic = depth == "dynamic"
    return types.SimpleNamespace(
        depth=depth,
        steps=3 if dynamic else 2,
        combinations=(0, 14) if dynamic else (0,),
        names=(*NAMES, "stop") if dynamic else NAMES,
        num_actions=7 if dynamic else 6,
        describe=lambda c: {0: "rotated left, moved up", 14: "nothing"}[c],
    )


def play(read, applied=None, choices=None, bids=None):
    read = np.asarray(read, bool)
    applied = np.full(read.shape, 2) if applied is None else np.asarray(applied)
    return Play(read=read, choices=np.asarray(choices), applied=applied, bids=bids)


def bounds(none, fixed, inverse, oracle, program=(DOWN, RIGHT)):
    return Bounds(*(np.asarray(read, bool) for read in (none, fixed, inverse, oracle)), program=program)


def verdicts(society, monolithic, known, env=None, need=(0, 0, 0, 0)):
    plays = {"society": society, "monolithic": monolithic}
    examples = (np.arange(len(need)), np.asarray(need))
    found = mental_rotation._verdicts(env or made_up_env(), known, plays, examples)
    return [(v.standing == "confirmed", round(v.number, 6)) for v in found]


KNOWN = bounds([0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1])
ALL, THREE, ONE, NONE = [1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("society", "monolithic", "expected"),
    [
        ([ALL, ALL], [THREE, THREE], [(True, 1.0), (True, 0.75), (True, 0.25)]),
        ([ALL, THREE], [ALL, THREE], [(False, 0.875), (True, 0.5), (False, 0.0)]),
        ([ALL, ONE], [ALL, ALL], [(False, 0.625), (False, 0.0), (False, -0.375)]),
        ([NONE, NONE], [NONE, NONE], [(False, 0.0), (False, -0.25), (False, 0.0)]),
    ],
)
def test_claims_about_accuracy(society, monolithic, expected):
    """Nine tenths of the oracle's in the mean, more than the fixed program on each seed, more than the rival."""
    assert verdicts(play(society), play(monolithic), KNOWN) == expected


@pytest.mark.parametrize(
    ("applied", "expected"),
    [
        ([[0, 1, 2, 2], [0, 1, 2, 2]], (True, 0.0)),
        ([[0, 1, 2, 2], [0, 1, 2, 1]], (False, 0.5)),
        ([[2, 2, 2, 2], [2, 2, 2, 2]], (False, 2.0)),
    ],
)
def test_depth_follows_need_on_every_seed(applied, expected):
    society = play([ALL, ALL], applied)
    found = verdicts(society, society, KNOWN, made_up_env("dynamic"), need=(14, 8, 0, 0))
    assert found[-1] == expected


def test_accuracy_table_by_hand():
    society = play([ALL, ONE], [[0, 2, 2, 2], [1, 2, 2, 1]])
    examples = (np.arange(4), np.array([14, 0, 0, 0]))
    rows = {row["who"]: row for row in mental_rotation._accuracy_rows(KNOWN, {"society": society}, examples)}
    assert list(rows) == ["none", "best fixed", "society", "inverse", "oracle"]
    assert rows["society"]["accuracy"].value == 0.625
    assert rows["society"]["lowest seed"] == 0.25
    assert rows["society"]["of the oracle's"] == 0.625
    assert [rows["society"][f"used, {n} needed"] for n in (0, 2)] == [0.5, 11 / 6]
    assert [rows["best fixed"][f"used, {n} needed"] for n in (0, 2)] == [2, 2]
    assert [rows["inverse"][f"used, {n} needed"] for n in (0, 2)] == [0, 2]
    assert rows["oracle"]["used, 0 needed"] is None
    assert rows["none"]["accuracy"].value == 0
    assert rows["inverse"]["of the oracle's"] == 0.75


def test_what_was_composed_for_each_combination():
    env = made_up_env("dynamic")
    undone, other, at_once = [DOWN, RIGHT, STOP], [DOWN, LEFT, STOP], [STOP, -1, -1]
    choices = [[undone, undone, at_once], [undone, other, at_once]]
    society = play([[1, 1, 1], [1, 0, 0]], choices=choices)
    known = bounds([0, 0, 1], [1, 0, 0], [1, 1, 1], [1, 1, 1])
    rows = mental_rotation._combination_rows(env, known, {"society": society}, (np.arange(3), np.array([0, 0, 14])))
    assert [row["undone"] for row in rows] == [0.75, 1]
    assert [row["society"] for row in rows] == [0.75, 0.5]
    assert [row["none"] for row in rows] == [0, 1]
    assert [row["usual program"] for row in rows] == ["move down, then rotate right", "nothing"]


def test_bids_are_those_on_the_way_back():
    """Means over the examples that came so far along the inverse; the second auction of another program is left out."""
    env = made_up_env()
    choices = [[[DOWN, RIGHT], [DOWN, LEFT], [UP, LEFT]]]
    bids = np.zeros((1, 3, 2, 6))
    bids[0, :, 0, DOWN] = [0.3, 0.6, 0.0]
    bids[0, :, 1, RIGHT] = [0.8, 0.4, 0.9]
    society = play([[1, 1, 0]], choices=choices, bids=bids)
    first, second = mental_rotation._bid_rows(env, society, (np.arange(3), np.zeros(3, int)))
    assert (first["right"], second["right"]) == ("move down", "rotate right")
    np.testing.assert_allclose([first["move down"], second["rotate right"]], [0.3, 0.6])


def test_the_fixed_program_is_chosen_on_training_digits(monkeypatch):
    trained = {(): [0, 0], (DOWN, RIGHT): [1, 1], (UP, UP): [1, 0]}
    held = {(): [1, 0], (DOWN, RIGHT): [0, 1], (UP, UP): [1, 1]}
    found = iter([trained, held])
    monkeypatch.setattr(
        mental_rotation, "_search_all", lambda env, examples: {k: np.array(v) for k, v in next(found).items()}
    )
    env = made_up_env()
    env.examples = lambda which: None
    options = types.SimpleNamespace(quick=True)
    known = mental_rotation._bounds(env, (np.arange(2), np.zeros(2, int)), options)
    assert known.program == (DOWN, RIGHT)
    np.testing.assert_array_equal(known.fixed, [False, True])
    np.testing.assert_array_equal(known.none, [True, False])
    np.testing.assert_array_equal(known.inverse, [False, True])  # of rotated left, moved up
    np.testing.assert_array_equal(known.oracle, [True, True])  # programs of two functions alone, without ()


def test_settings_are_those_of_the_grid():
    for arm in mental_rotation.AGENTS:
        tuned = mental_rotation.TUNED[arm]
        assert (tuned["learning_rate"], tuned["entropy"]) in mental_rotation.GRID


@pytest.fixture
def light(tmp_path, monkeypatch):
    """Small images, a hasty classifier, hardly any training."""
    monkeypatch.setenv("JAXMARKET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(digits._RECIPE, "epochs", 1)
    monkeypatch.setattr(mental_rotation, "_QUICK_STEPS", 2048)
    monkeypatch.setattr(mental_rotation, "_QUICK_DIGITS", 2)
    monkeypatch.setattr(mental_rotation, "_COMPONENTS", 8)
    return tmp_path / "run"


@pytest.mark.full
def test_the_whole_reproduction(light):
    settings = {"quick": True, "seeds": 2, "resolution": 16, "depth": "dynamic", "progress": False}
    found = json.loads(experiments.reproduce("mental-rotation", light, **settings).to_json())
    assert {"none", "best_fixed", "monolithic", "society", "oracle"} <= set(found["accuracy"])
    assert all(0 <= accuracy <= 1 for accuracy in found["accuracy"].values())
    assert found["accuracy"]["oracle"] >= max(found["accuracy"]["best_fixed"], found["accuracy"]["inverse"])
    assert (found["resolution"], found["depth"]) == (16, "dynamic")
    assert len(found["tables"]["combinations"]) == 15
    assert {path.name for path in light.glob("*.png")} == {"learning_curves.png", "bids.png", "chains.png"}
    again = json.loads(experiments.reproduce("mental-rotation", light, **settings).to_json())
    assert again == found
    with pytest.raises(ValueError, match="holds another run"):
        experiments.reproduce("mental-rotation", light, **(settings | {"depth": "fixed"}))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("chain", {"resolution": 32}, r"^resolution: .*32"),
        ("mental-rotation", {"resolution": 8}, "resolution: expected an integer >= 16, got 8"),
        ("mental-rotation", {"depth": "deep"}, "depth: unknown depth 'deep'; choose from fixed, dynamic"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, name, settings, message):
    with pytest.raises(ValueError, match=message):
        experiments.reproduce(name, tmp_path / "run", quick=True, progress=False, **settings)


@pytest.mark.full
def test_a_society_learns_to_turn_digits_it_has_not_seen(tmp_path, monkeypatch):
    """Nine tenths of the oracle's held-out digits in the mean of 8 seeds, more than the best fixed program on each."""
    monkeypatch.setenv("JAXMARKET_CACHE", str(tmp_path))
    options = report.ExperimentOptions(None, 8, quick=False, settings={"resolution": 32, "depth": "fixed"})
    env = mental_rotation.environment(options)
    settings = mental_rotation.TUNED["society"] | {"seeds": 8, "steps": 102_400}
    trained = fit(mental_rotation._config("society", env, **settings), jax.random.key(1), progress=False)
    examples = env.examples(env.held_out[:500])
    accuracy = mental_rotation._play(trained, examples).accuracy
    known = mental_rotation._bounds(env, examples, options)
    assert accuracy.mean() >= 0.9 * known.oracle.mean(), accuracy
    assert accuracy.min() > known.fixed.mean(), accuracy

"""The Mental Rotation reproduction: numbers from made-up programs by hand, all of it once, its claim (slow)."""

import functools
import json
import types

import jax
import numpy as np
import pytest
from jaxmarket.experiments.addresses import encode

from jaxmarket import experiments, fit
from jaxmarket.environments import digits
from jaxmarket.environments.mental_rotation import NAMES
from jaxmarket.experiments import Scope, mental_rotation
from jaxmarket.experiments.conditions import Compute
from jaxmarket.experiments.mental_rotation import EXPERIMENT
from jaxmarket.experiments.results import Results
from jaxmarket.training import programs

LEFT, RIGHT, UP, DOWN, STOP = 0, 1, 2, 3, 6


def made_up_env(depth="fixed"):
    """Two combinations: rotated left and moved up, which needs two functions; nothing at all, which needs none."""
    dynamic = depth == "dynamic"
    return types.SimpleNamespace(
        stop=dynamic,
        depth=depth,
        steps=3 if dynamic else 2,
        combinations=(0, 14) if dynamic else (0,),
        names=(*NAMES, "stop") if dynamic else NAMES,
        num_actions=7 if dynamic else 6,
        describe=lambda c: {0: "rotated left, moved up", 14: "nothing"}[c],
    )


def play(read, applied=None, choices=None, bids=None):
    """What an agent composed: the condition ``…, held out``."""
    read = np.asarray(read, bool)
    applied = np.full(read.shape, 2) if applied is None else np.asarray(applied)
    return {"read": read, "choices": np.asarray(choices), "applied": applied, "bids": bids}


def bounds(none, fixed, inverse, oracle, program=(DOWN, RIGHT)):
    reads = {"none": none, "fixed": fixed, "inverse": inverse, "oracle": oracle}
    return {name: np.asarray(read, bool) for name, read in reads.items()} | {"program": np.array(program)}


KNOWN = bounds([0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1])
ALL, THREE, ONE, NONE = [1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]


def results(society, monolithic=None, known=KNOWN, env=None, combination=(0, 0, 0, 0)):
    """Results with these plays."""
    env = env or made_up_env()
    made = {
        "society": types.SimpleNamespace(config=types.SimpleNamespace(env=env)),
        "society, held out": society,
        **({} if monolithic is None else {"monolithic, held out": monolithic}),
        "bounds": known | {"combination": np.asarray(combination)},
    }
    scope = Scope(settings={"resolution": 32, "depth": env.depth})
    return Results(scope, made, {}, EXPERIMENT.measures)


def verdicts(*args, **kwargs):
    made = results(*args, **kwargs)
    return [claim.verdict(made) for claim in EXPERIMENT.claimed(made.scope)]


@pytest.mark.parametrize(
    ("society", "monolithic", "expected"),
    [
        ([ALL, ALL], [THREE, THREE], [(True, 1.0), (True, 1.0), (True, 0.25)]),
        ([ALL, THREE], [ALL, THREE], [(False, 0.875), (True, 0.75), (False, 0.0)]),
        ([ALL, ONE], [ALL, ALL], [(False, 0.625), (False, 0.25), (False, -0.375)]),  # as many as the fixed program
        ([NONE, NONE], [NONE, NONE], [(False, 0.0), (False, 0.0), (False, 0.0)]),
    ],
)
def test_claims_about_accuracy(society, monolithic, expected):
    """Nine tenths of the oracle's in the mean, more than the fixed program on each seed, more than the rival."""
    found = verdicts(play(society), play(monolithic))
    assert [(v.standing == "confirmed", round(v.number, 6)) for v in found] == expected


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
    found = verdicts(society, society, env=made_up_env("dynamic"), combination=(14, 8, 0, 0))
    assert (found[-1].standing == "confirmed", found[-1].number) == expected


def test_accuracy_table_by_hand():
    society = play([ALL, ONE], [[0, 2, 2, 2], [1, 2, 2, 1]])
    made = results(society, combination=[14, 0, 0, 0])
    rows = {row["who"]: row for row in mental_rotation._accuracy_rows(made)}
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
    rows = mental_rotation._combination_rows(results(society, known=known, env=env, combination=[0, 0, 14]))
    assert [row["undone"] for row in rows] == [0.75, 1]
    assert [row["society"] for row in rows] == [0.75, 0.5]
    assert [row["inverse"] for row in rows] == [1, 1]
    assert [row["done"] for row in rows] == ["rotated left, moved up", "nothing"]


def test_bids_are_those_on_the_way_back():
    """Means over the examples that came so far along the inverse; the second auction of another program is left out."""
    choices = [[[DOWN, RIGHT], [DOWN, LEFT], [UP, LEFT]]]
    bids = np.zeros((1, 3, 2, 6))
    bids[0, :, 0, DOWN] = [0.3, 0.6, 0.0]
    bids[0, :, 1, RIGHT] = [0.8, 0.4, 0.9]
    society = play([[1, 1, 0]], choices=choices, bids=bids)
    first, second = mental_rotation._bid_rows(results(society, combination=[0, 0, 0]))
    assert (first["right"], second["right"]) == ("move down", "rotate right")
    np.testing.assert_allclose([first["move down"], second["rotate right"]], [0.3, 0.6])


def test_the_fixed_program_is_chosen_on_training_digits(monkeypatch):
    trained = {(): [0, 0], (DOWN, RIGHT): [1, 1], (UP, UP): [1, 0]}
    held = {(): [1, 0], (DOWN, RIGHT): [0, 1], (UP, UP): [1, 1]}
    found = iter([trained, held])
    reads = lambda env, examples, depth: {k: np.array(v) for k, v in next(found).items()}  # noqa: E731
    monkeypatch.setattr(programs, "search_all", reads)
    env = made_up_env()
    env.held_out, env.examples = np.arange(2), lambda which: (which, np.zeros(len(which), int))
    known = mental_rotation.bounds(lambda: env, 2, None, None, {})
    assert tuple(known["program"]) == (DOWN, RIGHT)
    np.testing.assert_array_equal(known["fixed"], [False, True])
    np.testing.assert_array_equal(known["none"], [True, False])
    np.testing.assert_array_equal(known["inverse"], [False, True])  # of rotated left, moved up
    np.testing.assert_array_equal(known["oracle"], [True, True])  # programs of two functions alone, without ()


def test_digits_are_loaded_when_a_condition_needs_them(monkeypatch):
    """`EXPERIMENT.planned` makes no environment; the classifier comes first, and everything else after it."""
    monkeypatch.setattr(mental_rotation, "environment", lambda *_, **__: pytest.fail("loaded"))
    scope = Scope(full=True, settings={"resolution": 16, "depth": "dynamic"})
    first, *others = EXPERIMENT.planned(scope)
    assert first.name == "classifier" and not first.needs
    agents = {"society", "monolithic", "society-cnn", "society-valuation"}
    assert {c.name for c in others if c.needs != ("classifier",)} == {f"{name}, held out" for name in agents}


def test_other_digits_are_other_conditions(monkeypatch):
    """The data set is part of the address of the classifier, and the classifier is an input of the others."""
    found = {}
    for source in digits.SOURCES:
        monkeypatch.setattr(digits, "installed", lambda source=source: source)
        conditions = EXPERIMENT.planned(Scope(settings={"resolution": 16, "depth": "fixed"}))
        made = {c.name: c for c in conditions if isinstance(c, Compute)}
        assert made["bounds"].needs == ("classifier",)
        found[source] = {name: encode(made[name].function) for name in ("classifier", "bounds")}
    mnist, small = found.values()
    assert mnist["classifier"] != small["classifier"] and mnist["bounds"] != small["bounds"]
    assert str(mnist).replace("'mnist'", "'small'") == str(small)


def test_settings_are_those_of_the_grid():
    for arm in mental_rotation.AGENTS:
        tuned = mental_rotation.TUNED[arm]
        assert {name: tuned[name] for name in ("learning_rate", "entropy")} in mental_rotation.GRIDS[arm]


@pytest.fixture
def light(tmp_path, monkeypatch):
    """Small images, a hasty classifier, hardly any training."""
    monkeypatch.setenv("JAXMARKET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(digits._RECIPE, "epochs", 1)
    monkeypatch.setattr(mental_rotation, "_QUICK_STEPS", 2048)
    monkeypatch.setattr(mental_rotation, "_QUICK_DIGITS", 2)
    monkeypatch.setattr(mental_rotation, "COMPONENTS", 8)
    return tmp_path / "run"


@pytest.mark.full
def test_the_whole_reproduction(light):
    settings = {"quick": True, "seeds": 2, "resolution": 16, "depth": "dynamic", "progress": False}
    found = json.loads(experiments.reproduce("mental-rotation", light, **settings).to_json())
    accuracy = {row["who"]: row["accuracy"] for row in found["table"]}
    assert list(accuracy) == ["none", "best fixed", "society", "monolithic", "inverse", "oracle"]
    assert all(0 <= share <= 1 for share in accuracy.values())
    assert accuracy["oracle"] >= max(accuracy["best fixed"], accuracy["inverse"])
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
    env = functools.partial(mental_rotation.environment, components=mental_rotation.COMPONENTS)
    config = mental_rotation.config(env, mental_rotation.TUNED["society"] | {"seeds": 8, "steps": 102_400})
    trained = fit(config, jax.random.key(1), progress=False)
    accuracy = mental_rotation.play(500, range(8), trained)["read"].mean(1)
    known = mental_rotation.bounds(env, 500, 500, None, {})
    assert accuracy.mean() >= 0.9 * known["oracle"].mean(), accuracy
    assert accuracy.min() > known["fixed"].mean(), accuracy

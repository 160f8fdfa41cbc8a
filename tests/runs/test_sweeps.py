"""Sweeps: which combinations, how often they compile, what is kept, what the figures show."""

import concurrent.futures
import csv
import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmarket import Mechanism, TrainConfig, fit
from jaxmarket.cli import main
from jaxmarket.runs import comparison, fitting, run_folder, sweeps
from jaxmarket.runs.sweeps import Range, combinations, parse

HALF = Mechanism("half", price=lambda o: o.winning_bid / 2, payout=lambda o: o.winning_bid / 2)
# Equal settings in all tests of this file share one compiled program.
TINY = {"learner": "valuation", "seeds": 2, "steps": 1024, "instances": 4, "horizon": 8, "minibatch": 32}


# --- what to try


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("learning_rate=1e-3,1e-4", ("learning_rate", [1e-3, 1e-4])),
        ("learning-rate=1e-3", ("learning_rate", [1e-3])),
        ("clones=1,2,2", ("clones", [1, 2])),
        ("auction=bb,ccv", ("auction", ["bb", "ccv"])),
        ("share_clones=true,false", ("share_clones", [True, False])),
        ("hidden=none,64,64x32", ("hidden", [(), (64,), (64, 32)])),
        ("learning_rate=1e-5:1e-2:log:8", ("learning_rate", Range(1e-5, 1e-2, log=True, points=8))),
        ("entropy=0:1:lin", ("entropy", Range(0, 1))),
        ("clones=1:4:lin:4", ("clones", Range(1, 4, points=4, whole=True))),
        ("steps=1e6,2e6", ("steps", [1_000_000, 2_000_000])),
    ],
)
def test_variations_are_read(text, means):
    assert parse(text) == means


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("learning_rat=1", "did you mean 'learning_rate'"),
        ("colour=red", "choose from agent"),
        ("env=Chain-v0,Bandit-v0", "unknown setting 'env'"),
        ("learning_rate", "expected values"),
        ("learning_rate=", "expected values"),
        ("learning_rate=fast", "expected a number, got 'fast'"),
        ("clones=1.5", "expected an integer"),
        ("share_clones=maybe", "true or false"),
        ("hidden=64xmany", "integer"),
        ("learning_rate=1:2", "expected a range"),
        ("learning_rate=1:2:cubic:3", "expected a range"),
        ("learning_rate=2:1:log:3", "low < high"),
        ("learning_rate=0:1:log:3", "above 0"),
        ("learning_rate=1:2:lin:1", "points: expected an integer >= 2"),
        ("learning_rate=1:nan:lin:3", "expected a finite number"),
    ],
)
def test_variations_that_are_none(text, says):
    with pytest.raises(ValueError, match=says):
        parse(text)


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-6, 1), st.floats(1.5, 1e4), st.integers(2, 12), st.booleans())
def test_a_range_s_points_are_equally_far_apart(low, factor, points, log):
    found = np.array(Range(low, low * factor, log=log, points=points).grid())
    assert len(found) == points
    assert (found[0], found[-1]) == (pytest.approx(low, rel=1e-3), pytest.approx(low * factor, rel=1e-3))
    apart = np.diff(np.log(found) if log else found)
    np.testing.assert_allclose(apart, apart.mean(), rtol=0.05, atol=1e-3 * (1 if log else low * factor))


def test_a_grid_is_every_combination_and_whole_numbers_come_once():
    vary = {"learning_rate": [0.1, 0.2], "clones": Range(1, 3, points=5, whole=True)}
    assert combinations(vary) == [{"learning_rate": r, "clones": c} for r in (0.1, 0.2) for c in (1, 2, 3)]
    with pytest.raises(ValueError, match="expected a number of points"):
        combinations({"entropy": Range(0, 1)})


def test_random_combinations_lie_in_their_ranges_differ_and_grow():
    vary = {"learning_rate": Range(1e-5, 1e-2, log=True), "clones": [1, 2, 3]}
    found = sweeps.draw(vary, 200, seed=3)
    assert sweeps.draw(vary, 50, seed=3) == found[:50] != sweeps.draw(vary, 50, seed=4)
    rates = np.array([each["learning_rate"] for each in found])
    assert len({json.dumps(each) for each in found}) == 200
    assert (rates >= 1e-5).all()
    assert (rates <= 1e-2).all()
    # Uniform in the logarithm: a third of them in each decade, within four standard deviations.
    counts = np.histogram(np.log10(rates), [-5, -4, -3, -2])[0]
    assert abs(counts - 200 / 3).max() < 4 * math.sqrt(200 * (1 / 3) * (2 / 3))
    with pytest.raises(ValueError, match="not 7 different"):
        sweeps.draw({"clones": [1, 2]}, 7)


# --- running them


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two learning rates × two explorations."""
    out = tmp_path_factory.mktemp("swept")
    vary = {"learning_rate": Range(1e-3, 1e-1, log=True, points=2), "exploration": [1.0, 0.5]}
    return sweeps.sweep("Bandit-v0", vary, out, progress=False, **TINY), vary, out


def test_traced_settings_share_one_compile(swept):
    found, _, out = swept
    assert len(found.settings) == 4
    assert found.compiled == 1
    assert {p.name for p in out.iterdir()} == {*found.settings, "sweep.csv", "sweep.json", "sweep.png"}


def test_a_cell_is_the_run_that_train_would_have_given(swept):
    found, _, out = swept
    name = "learning_rate=0.001,exploration=0.5"
    assert found.settings[name] == {"learning_rate": 0.001, "exploration": 0.5}
    run = run_folder.read(out / name)
    alone = fit(
        TrainConfig("Bandit-v0", **TINY, learning_rate=0.001, exploration=0.5), jax.random.key(0), progress=False
    )
    assert run.config.settings == alone.config.settings
    jax.tree.map(np.testing.assert_array_equal, run.networks, alone.networks)
    assert run.summary["return_seeds"] == alone.summary["return_seeds"]


def test_finished_cells_are_kept_and_new_values_added(swept, monkeypatch):
    found, vary, out = swept
    trained = []

    def fit_and_note(config, *rest, **more):
        trained.append(config.learning_rate)
        return fit(config, *rest, **more)

    monkeypatch.setattr(fitting, "fit", fit_and_note)
    again = sweeps.sweep("Bandit-v0", vary, out, progress=False, **TINY)
    assert (trained, again.compiled) == ([], 0)
    assert run_folder.to_json(again.document() | {"compiled_now": 1}) == run_folder.to_json(found.document())
    sweeps.sweep("Bandit-v0", {"learning_rate": [1e-3, 0.5], "exploration": [0.5]}, out, progress=False, **TINY)
    assert trained == [0.5]
    with pytest.raises(ValueError, match="choose another folder"):
        sweeps.sweep("Bandit-v0", vary, out, progress=False, **TINY | {"steps": 2048})


def test_the_table_is_sorted_and_the_files_say_the_same(swept):
    found, vary, out = swept
    found = sweeps.sweep("Bandit-v0", vary, out, progress=False, **TINY)
    returns = [row["return"].value for row in found.comparison.rows()]
    assert returns == sorted(returns, reverse=True)
    with (out / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    document = json.loads((out / "sweep.json").read_text())
    assert [float(row["return"]) for row in rows] == [row["return"] for row in document["runs"]] == returns
    assert document["vary"]["exploration"] == [1, 0.5]
    compared = comparison.compare([out / name for name in found.settings])  # a sweep's folder is one of runs
    assert {run.name for run in compared.runs} == set(found.settings)
    assert all("run" in table.aside for table in compared.tables())


def test_the_heat_map_is_those_means(swept):
    found, vary, _ = swept
    (ax,) = found.figure().axes
    image = np.asarray(ax.get_images()[0].get_array())
    returns = {run.name: run.returns.mean() for run in found.comparison.runs}
    names = [comparison.label(cell, list(vary)) for cell in combinations(vary)]
    np.testing.assert_array_equal(image.reshape(-1), [returns[name] for name in names])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("exploration", "learning_rate")


def figure_of(found, vary, drawn=False):
    """The figure of a sweep over these settings, with values from the runs."""
    cells = combinations(vary) if not drawn else sweeps.draw(vary, 8)
    base = found.comparison.runs[0]
    chosen = [dataclasses.replace(base, name=str(i), returns=base.returns + i) for i in range(len(cells))]
    settings = {run.name: cell for run, cell in zip(chosen, cells, strict=True)}
    comparison = dataclasses.replace(found.comparison, runs=chosen)
    return dataclasses.replace(found, vary=vary, drawn=drawn, settings=settings, comparison=comparison).figure()


def test_each_kind_of_sweep_has_its_figure(swept):
    found = swept[0]
    (line,) = figure_of(found, {"learning_rate": [0.1, 0.001, 0.01]}).axes
    assert line.get_xscale() == "log"
    np.testing.assert_array_equal(line.get_lines()[0].get_xdata(), [0.001, 0.01, 0.1])
    means = found.comparison.runs[0].returns.mean() + np.arange(3)
    np.testing.assert_allclose(line.get_lines()[0].get_ydata(), [means[1], means[2], means[0]])
    assert figure_of(found, {"clones": [1, 2, 3]}).axes[0].get_xscale() == "linear"
    (lines,) = figure_of(found, {"auction": ["bb", "ccv"], "entropy": [0.0, 0.1]}).axes
    assert [text.get_text() for text in lines.get_legend().get_texts()] == ["auction=bb", "auction=ccv"]
    (rows,) = figure_of(found, {"auction": ["bb", "ccv", "env"]}).axes
    assert len(rows.get_yticklabels()) == 3
    (rows,) = figure_of(found, {"auction": ["bb", "ccv"], "clones": [1, 2], "entropy": [0.1, 0.2]}).axes
    assert len(rows.get_yticklabels()) == 8
    panels = figure_of(found, {"learning_rate": Range(1e-3, 1, log=True), "entropy": Range(0, 1)}, drawn=True).axes
    assert [(ax.get_xlabel(), ax.get_xscale()) for ax in panels] == [("learning_rate", "log"), ("entropy", "linear")]


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_where_it_stopped(swept, tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)

    def interrupted(config, *rest, **more):
        if config.learning_rate == 0.1:
            raise KeyboardInterrupt
        return fit(config, *rest, **more)

    vary = {"learning_rate": [0.01, 0.1, 0.2]}
    with monkeypatch.context() as patched:
        patched.setattr(fitting, "fit", interrupted)
        with pytest.raises((KeyboardInterrupt, concurrent.futures.CancelledError)):
            sweeps.sweep("Bandit-v0", vary, tmp_path, progress=False, **TINY)
    kept = {p.name for p in tmp_path.iterdir()}  # what was finished, also beside the one that was interrupted
    assert {"learning_rate=0.01"} <= kept <= {"learning_rate=0.01", "learning_rate=0.2"}
    found = sweeps.sweep("Bandit-v0", vary, tmp_path, progress=False, **TINY)
    assert set(found.settings) == {"learning_rate=0.01", "learning_rate=0.1", "learning_rate=0.2"}


@pytest.mark.parametrize(
    ("vary", "more", "says"),
    [
        ({}, {}, "expected at least one setting"),
        ({"env": ["Chain-v0"]}, {}, "one sweep per env"),
        ({"clones": [1, 2]}, {"clones": 3}, "clones is both varied and given as 3"),
        ({"clones": []}, {}, "clones: expected at least one value"),
        ({"clones": [2]}, {}, "at least two combinations"),
        ({"clones": [1, 0]}, {}, "vary: clones: expected an integer >= 1, got 0"),
        ({"clones": [1, 2]}, {"samples": 1}, "samples: expected"),
        ({"learning_rate": Range(0.1, 1)}, {}, "expected a number of points"),
        ({"learning_rate": [1e-3, 1e-3, 1e-2]}, {}, "vary: learning_rate: .* 0.001 twice"),
        ({"clones": [1, np.int64(1)]}, {}, "vary: clones: .* 1 twice"),
        ({"hidden": [[8], (8,)]}, {}, "vary: hidden: .* 8 twice"),
        ({"bids": [None, "value"]}, {}, "vary: .* for bids=none and bids=value"),
        ({"hidden": [object(), ()]}, {}, "vary: hidden: expected a sequence of widths"),
        ({"learning_rate": [np.nan, 1]}, {}, "vary: learning_rate: expected a finite number"),
        ({"share_clones": ["no", True]}, {}, "vary: share_clones: expected True or False, got 'no'"),
        ({"learner": "ppo"}, {}, "vary: learner: expected a list of values or a Range, got 'ppo'"),
        ({"clones": 3}, {}, "vary: clones: expected a list of values or a Range, got 3"),
        ({"clone": [1, 2]}, {}, "vary: unknown setting 'clone'; did you mean 'clones'"),
        ({0: [1, 2]}, {}, "vary: unknown setting 0; choose from agent"),
        ([("clones", [1, 2])], {}, "vary: expected at least one setting"),
        ({"clones": [1, 2]}, {"clone": 3}, "clone: unknown setting 'clone'; did you mean 'clones'"),
        ({"clones": [1, 2]}, {"seed": -1}, "seed: expected an integer"),
        ({"clones": [1, 2]}, {"share": 0}, r"share: expected a number in \(0, 1\]"),
        (
            {"auction": [HALF, dataclasses.replace(HALF, payout=abs)]},
            {},
            "got auction=half twice",
        ),
        (
            {"auction": ["ccv", dataclasses.replace(HALF, name="CCV")]},
            {},
            "got auction=CCV twice",
        ),
        ({"auction": ["ccv", dataclasses.replace(HALF, name="a/b")]}, {}, "valid folder name"),
        ({"auction": ["ccv", dataclasses.replace(HALF, name="h" * 300)]}, {}, "folder name of at most"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(vary, more, says, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match=says):
        sweeps.sweep("Bandit-v0", vary, tmp_path, **TINY | more)
    assert not list(tmp_path.iterdir())


def planned(vary, monkeypatch, tmp_path, **settings):
    """The cells that a sweep would train."""
    cells = []
    with monkeypatch.context() as patched:
        patched.setattr(sweeps, "train", lambda wanted, *_, **__: cells.extend(wanted) or pytest.fail("enough"))
        with pytest.raises(pytest.fail.Exception):
            sweeps.sweep("Bandit-v0", vary, tmp_path, **TINY | settings)
    return cells


def test_values_equal_in_six_digits_are_written_in_full(monkeypatch, tmp_path):
    cells = planned({"learning_rate": [0.0012345678, 0.0012345679], "gamma": [0.5]}, monkeypatch, tmp_path)
    names = ["learning_rate=0.0012345678,gamma=0.5", "learning_rate=0.0012345679,gamma=0.5"]
    assert [cell.name for cell in cells] == names
    cells = planned({"learning_rate": [0.1234567, 0.3]}, monkeypatch, tmp_path)
    assert [cell.name for cell in cells] == ["learning_rate=0.123457", "learning_rate=0.3"]
    cells = planned({"hidden": [None, (), (8,)]}, monkeypatch, tmp_path, learner="ppo")
    assert [cell.name for cell in cells] == ["hidden=default", "hidden=none", "hidden=8"]
    drawn = sweeps.draw({"learning_rate": [0.0012345678, 0.0012345679]}, 2)
    assert {each["learning_rate"] for each in drawn} == {0.0012345678, 0.0012345679}


@pytest.mark.parametrize("make", [np.array, jax.numpy.array, iter, tuple], ids=["numpy", "jax", "iterator", "tuple"])
def test_arrays_and_iterators_are_lists_of_values(make, monkeypatch, tmp_path):
    cells = planned({"clones": make([1, 3])}, monkeypatch, tmp_path)
    assert [(cell.name, cell.config.clones) for cell in cells] == [("clones=1", 1), ("clones=3", 3)]
    cells = planned({"gamma": make([0.25, 0.5]), "hidden": np.array([[4], [8]])}, monkeypatch, tmp_path)
    assert [cell.name for cell in cells][:2] == ["gamma=0.25,hidden=4", "gamma=0.25,hidden=8"]
    assert {type(cell.config.settings.gamma) for cell in cells} == {float}


def test_ranges_of_counts_are_whole_numbers(monkeypatch, tmp_path):
    cells = planned({"clones": Range(np.int64(1), np.float32(4), points=np.int8(4))}, monkeypatch, tmp_path)
    assert [cell.config.clones for cell in cells] == [1, 2, 3, 4]


def test_a_folder_that_cannot_be_made_is_found_before_anything_is_trained(monkeypatch, tmp_path):
    monkeypatch.setattr(fitting, "fit", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^out: cannot write to"):
        sweeps.sweep("Bandit-v0", {"clones": [1, 2]}, tmp_path / "file" / "sweep", **TINY)


@pytest.mark.slow
def test_mechanisms_are_varied_by_name(tmp_path):
    third = dataclasses.replace(HALF, name="third", price=lambda o: o.winning_bid / 3)
    found = sweeps.sweep("Bandit-v0", {"auction": ["bb", HALF, third]}, tmp_path, progress=False, **TINY)
    assert set(found.settings) == {"auction=bb", "auction=half", "auction=third"}
    document = json.loads((tmp_path / "sweep.json").read_text())
    assert document["vary"]["auction"] == ["bb", {"object": "half"}, {"object": "third"}]
    again = sweeps.sweep("Bandit-v0", {"auction": ["bb", HALF, third]}, tmp_path, progress=False, **TINY)
    assert again.compiled == 0
    assert len(found.figure().axes[0].get_yticklabels()) == 3


def test_the_command_gives_each_combination_the_defaults_that_follow_from_it(monkeypatch, tmp_path, capsys):
    """A varied learner uses its own default learning rate."""
    seen = []
    monkeypatch.setattr(sweeps, "train", lambda cells, *_, **__: seen.extend(cells) or pytest.fail("enough"))
    arguments = ["sweep", "Bandit-v0", "--seeds", "2", "--no-share-clones", "--vary", "learner=reinforce,valuation"]
    with pytest.raises(pytest.fail.Exception):
        main([*arguments, "--vary", "hidden=none,8x8", "--out", str(tmp_path)])
    assert [cell.config for cell in seen] == [
        TrainConfig("Bandit-v0", seeds=2, share_clones=False, learner=learner, hidden=hidden)
        for learner in ("reinforce", "valuation")
        for hidden in ((), (8, 8))
    ]
    assert [cell.name for cell in seen][:2] == ["learner=reinforce,hidden=none", "learner=reinforce,hidden=8x8"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sweep", "Bandit-v0"], "--vary"),
        (["sweep", "Bandit-v1", "--vary", "clones=1,2"], "did you mean 'Bandit-v0'"),
        (["sweep", "Bandit-v0", "--vary", "clone=1,2"], "did you mean 'clones'"),
        (["sweep", "Bandit-v0", "--vary", "clones=1,2", "--vary", "clones=3"], "clones is given twice"),
        (["sweep", "Bandit-v0", "--clones", "3", "--vary", "clones=1,2"], "clones is both varied and given as 3"),
        (["sweep", "Bandit-v0", "--vary", "learning_rate=1:2:log"], "expected a number of points"),
    ],
)
def test_wrong_commands_are_one_line(arguments, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    printed, error = capsys.readouterr()
    assert (stopped.value.code, printed, error.count("\n")) == (2, "", 1)
    assert says in error


def told(folder, vary, capsys, **given):
    """The output of ``jaxmarket sweep``, and the JSON of its last line."""
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    varied = [f"--vary={text}" for text in vary]
    main(["sweep", "Bandit-v0", *settings, *varied, "--out", str(folder), "--json"])
    printed = capsys.readouterr().out
    return printed, json.loads(printed.splitlines()[-1])


@pytest.mark.slow
def test_four_rates_and_two_entropies_compile_once(tmp_path, capsys):
    given = TINY | {"learner": "ppo", "horizon": 16}  # a program that no other test has compiled
    _, document = told(tmp_path, ["learning_rate=1e-3:1:log:4", "entropy=0.1,0.01"], capsys, **given)
    assert (len(document["runs"]), document["compiled_now"]) == (8, 1)


@pytest.mark.slow
def test_static_settings_compile_for_each_value_and_the_command_says_so(tmp_path, capsys):
    printed, document = told(tmp_path, ["clones=1,2,3", "gamma=0.5,0.9"], capsys, **TINY | {"horizon": 16})
    assert document["compiled_now"] == 3
    assert "6 combinations, 3 training programs compiled" in printed

"""Numbers over seeds, and finished runs side by side: folders written by hand, no training."""

import csv
import dataclasses
import json
import re

import numpy as np
import pytest
from folders import reseal
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxmarket import TrainConfig
from jaxmarket.cli import main
from jaxmarket.runs import comparison, estimates

FEW = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=2, max_size=8)


# --- estimates


@settings(max_examples=40, deadline=None)
@given(FEW)
def test_the_mean_and_its_interval_are_student_s(values):
    found = estimates.mean(values)
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)
    if np.std(values) > 1e-6:
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert (found.low, found.high) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))


@settings(max_examples=40, deadline=None)
@given(FEW, FEW)
def test_the_difference_is_welch_s(mine, others):
    found = estimates.difference(mine, others)
    assert found.value == pytest.approx(np.mean(mine) - np.mean(others), abs=1e-9)
    if min(np.std(mine), np.std(others)) > 1e-3:
        interval = stats.ttest_ind(mine, others, equal_var=False).confidence_interval()
        assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_seeds_that_agree_leave_no_doubt_and_a_single_one_says_nothing_of_it():
    assert estimates.difference([0.8, 0.8], [0.5, 0.5, 0.5]) == estimates.Estimate(*[pytest.approx(0.3)] * 3)
    for found in (
        estimates.mean([0.8]),
        estimates.difference([0.8], [0.5, 0.5]),
        estimates.probability_of_improvement([1.0], [0.5]),
    ):
        assert np.isnan([found.low, found.high]).all()
        assert "nan" not in str(found) + found.plus_minus


@settings(max_examples=30, deadline=None)
@given(FEW, FEW)
def test_improvement_counts_pairs(mine, others):
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in mine for b in others)
    found = estimates.probability_of_improvement(mine, others)
    assert found.value == pytest.approx(wins / len(mine) / len(others))
    assert 0 <= found.low <= found.high <= 1
    assert estimates.probability_of_improvement(others, mine).value == pytest.approx(1 - found.value)


def test_improvement_s_interval_covers():
    """Normal seeds, one spread apart: the truth is in the interval about as often as it says."""
    rng, truth = np.random.default_rng(1), stats.norm.cdf(1 / np.sqrt(2))
    found = [estimates.probability_of_improvement(rng.normal(1, 1, 16), rng.normal(0, 1, 16)) for _ in range(60)]
    assert 0.85 <= np.mean([e.low <= truth <= e.high for e in found]) <= 1


def test_bands_leave_out_seeds_that_have_no_number():
    values = np.array([[1.0, 3.0, np.nan], [2.0, np.nan, np.nan], [np.nan] * 3])
    middle, low, high = estimates.mean_ci(values)
    np.testing.assert_array_equal(middle, [2, 2, np.nan])
    np.testing.assert_array_equal(np.isnan(low), [False, True, True])
    assert high[0] - 2 == pytest.approx(2 - low[0]) == pytest.approx(stats.t.ppf(0.975, 1))


# --- runs, by hand: they learn from 0 to their return in ten steps of a hundred


def run_at(folder, returns, *, late=0.9, steps=10, env="Chain-v0", summary=None, **settings):
    """A finished run whose seeds learn linearly up to ``late`` times their greedy return."""
    folder.mkdir(parents=True)
    base = {
        "run": {"start_folder": folder.name},
        "env": env,
        "auction": "ccv",
        "learning_rate": 0.01,
        "hidden": [64, 64],
        "share_clones": True,
    }
    (folder / "config.json").write_text(json.dumps(base | settings))
    said = {
        "env": env,
        "key": {"impl": "threefry2x32", "words": [0, 0]},
        "return_seeds": list(returns),
        "steps_per_second": 5000.0,
        "interrupted": False,
    }
    (folder / "summary.json").write_text(json.dumps(said | (summary or {})))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["chunk", "env_steps", "seed", "return_mean"])
        for chunk in range(1, steps + 1):
            for seed, final in enumerate(returns):
                writer.writerow([chunk, 100 * chunk, seed, late * final * chunk / steps if chunk > 1 else "nan"])
    reseal(folder)
    return folder


@pytest.fixture
def folders(tmp_path):
    good = run_at(tmp_path / "good", [1.0, 1.0, 0.8, 0.8])
    bad = run_at(tmp_path / "bad", [0.4, 0.5, 0.4, 1.0], auction="bb", learning_rate=0.1, summary={"start": "abc"})
    return good, bad


def test_a_run_is_read_as_it_was(folders):
    run = comparison.read(folders[0])
    assert (run.name, run.env, run.steps_per_second, run.interrupted) == ("good", "Chain-v0", 5000, False)
    assert run.steps.shape == run.learning.shape == (10, 4)
    np.testing.assert_array_equal(run.steps[:, 2], np.arange(100, 1001, 100))
    np.testing.assert_allclose(run.learning[-1], 0.9 * run.returns)
    assert np.isnan(run.learning[0]).all()
    assert run.late == pytest.approx(0.9 * 0.9)
    np.testing.assert_array_equal(run.steps_to(0.5), [600, 600, 700, 700])
    np.testing.assert_array_equal(run.steps_to(0.8), [900, 900, np.nan, np.nan])


def test_only_settings_that_differ_are_shown(folders):
    found = comparison.compare(folders)
    assert found.differing == ["auction", "learning_rate", "start"]
    rows = found.tables()[0].as_rows()
    assert [(row["run"], row["auction"], row["learning_rate"]) for row in rows] == [
        ("good", "ccv", "0.01"),
        ("bad", "bb", "0.1"),
    ]


def test_the_numbers_of_the_tables(folders):
    found = comparison.compare(folders)
    assert found.target == pytest.approx(0.9 * 0.81)  # a share of the best late return
    first, second = found.rows()
    assert first["return"] == estimates.mean([1.0, 1.0, 0.8, 0.8])
    assert (first["minus first"], first["P(above first)"]) == (None, None)
    assert second["minus first"] == estimates.difference([0.4, 0.5, 0.4, 1.0], [1.0, 1.0, 0.8, 0.8])
    assert second["P(above first)"].value == (2 + 1) / 16  # one seed beats two and ties with two
    goal = found.goal
    assert (first[goal], first["reached by"]) == (None, "2/4")  # the lesser half never gets there
    assert (second[goal], second["reached by"]) == (None, "1/4")
    wider = comparison.compare(folders, target=0.45).rows()
    assert (wider[0]["steps to 0.45"], wider[0]["reached by"]) == (600, "4/4")  # 500 for two seeds, 700 for two
    assert wider[1]["reached by"] == "2/4"


def test_a_negative_return_is_reached_when_it_is_nearly_as_good(tmp_path):
    runs = [run_at(tmp_path / name, [r, r], late=1.0) for name, r in (("a", -100.0), ("b", -80.0))]
    assert comparison.compare(runs, share=0.9).target == pytest.approx(-88)


def test_the_best_first(folders):
    assert [run.name for run in comparison.compare(folders[::-1], best_first=True).runs] == ["good", "bad"]


def test_folders_of_runs_and_what_a_shell_adds(tmp_path, folders):
    (tmp_path / "sweep.json").write_text("{}")
    assert comparison.find([tmp_path]) == sorted(folders)
    assert comparison.find(sorted(tmp_path.iterdir())) == sorted(folders)
    with pytest.raises(ValueError, match="named twice"):
        comparison.find([folders[0], tmp_path])


def test_equal_names_are_distinguished(tmp_path):
    runs = [run_at(tmp_path / part / "run", [1.0, 0.5]) for part in ("a", "b")]
    assert [run.name for run in comparison.compare(runs).runs] == ["a/run", "b/run"]


def test_shortest_distinguishing_names_of_runs(tmp_path, monkeypatch):
    paths = [run_at(tmp_path / name, [1.0]) for name in ("x/a/seed0", "x/b/seed0", "y/a/seed0")]
    assert [run.name for run in comparison.compare(paths).runs] == ["x/a/seed0", "x/b/seed0", "y/a/seed0"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="named twice"):
        comparison.find(["x/a/seed0", tmp_path / "x/a/seed0"])


def test_runs_that_differ_in_much_fit_eighty_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    much = {"entropy": 0.01, "gamma": 0.5, "hidden": [64, 64, 64], "horizon": 128, "instances": 64, "batch": "[/b]"}
    folders = [run_at(tmp_path / "good", [1.0, 0.8]), run_at(tmp_path / "bad[b]\x1b[2J", [0.4, 0.5], **much)]
    main(["compare", *map(str, folders), "--json"])
    printed = capsys.readouterr().out
    *screen, document = printed.splitlines()
    assert max(map(len, screen)) <= 80
    assert any(re.match(r" good +2 +0\.900 ±1\.271 ", line) for line in screen)
    listed = printed[printed.index("run: bad[b]\\x1b[2J\n") :]
    assert "entropy: 0.01 | gamma: 0.5 | " in listed.split("against")[0]
    assert json.loads(document)["differing"] == ["hidden", *(name for name in much if name != "hidden")]


def test_reprs_are_short(folders):
    found = comparison.compare(folders)
    assert repr(found) == "Comparison(Chain-v0: 2 runs, bad against good)"
    assert repr(found.runs[0]) == "RunOutcome(good: Chain-v0, 4 seeds, return 0.900 ±.184)"


def damaged(folder, name, text, *, sealed=True):
    (folder / name).write_text(text)
    if sealed:
        reseal(folder)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda a, _: (a / "summary.json").unlink(), "not finished.*--resume"),
        (lambda a, _: (a / "config.json").unlink(), "expected a run folder"),
        (lambda a, _: (a / "metrics.csv").unlink(), "metrics.csv: cannot be read"),
        (lambda a, _: damaged(a, "metrics.csv", (a / "metrics.csv").read_text() * 2, sealed=False), "changed since"),
        (lambda a, _: damaged(a, "metrics.csv", "", sealed=False), "metrics.csv: changed since"),
        (lambda a, _: damaged(a, "summary.json", "{}", sealed=False), "summary.json: changed since"),
        (lambda a, _: damaged(a, "config.json", "{}", sealed=False), "config.json: changed since"),
        (lambda a, _: damaged(a, "summary.json", "{"), "not valid JSON"),
        (lambda a, _: damaged(a, "summary.json", "[]"), "JSON object"),
        (lambda a, _: damaged(a, "summary.json", "{}"), "not those of a finished run"),
        (lambda a, _: damaged(a, "metrics.csv", "chunk,env_steps\n1,2\n"), "not those of a finished run"),
        (lambda a, _: damaged(a, "metrics.csv", "env_steps,return_mean\n1,x\n1,2\n"), "not those of a finished run"),
    ],
)
def test_what_cannot_be_read_names_the_folder(folders, spoil, says):
    spoil(*folders)
    with pytest.raises(ValueError, match=f"(?s){folders[0]}.*{says}|{says}.*"):
        comparison.compare(folders)


def test_what_cannot_be_compared_is_refused(tmp_path, folders):
    other = run_at(tmp_path / "elsewhere", [1.0], env="Bandit-v0")
    with pytest.raises(ValueError, match=r"different environments.*Chain-v0.*Bandit-v0.*--weights"):
        comparison.compare([*folders, other])
    with pytest.raises(ValueError, match="two finished runs or more, got 1"):
        comparison.compare(folders[:1])
    for runs in (3, "runs", None, [folders[0], 3], {"a": folders[0], "b": TrainConfig("Chain-v0")}):
        with pytest.raises(ValueError, match=r"^runs: expected .*finished runs"):
            comparison.compare(runs)
    with pytest.raises(ValueError, match="one run for each name, got 4 for 2 names"):
        comparison.compare({"a": tmp_path, "b": run_at(tmp_path / "c" / "d", [1.0])})
    for wrong in ({"share": 0.0}, {"share": 1.5}, {"target": np.inf}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            comparison.compare(folders, **wrong)


def test_the_figure_shows_those_numbers(folders):
    found = comparison.compare(folders)
    left, right = found.figure().axes
    curves = {line.get_label(): np.asarray(line.get_xydata()) for line in left.get_lines()}
    np.testing.assert_allclose(curves["good"][-1], [1000, 0.81])
    np.testing.assert_allclose(curves["bad"][-1], [1000, 0.9 * 0.575])
    assert [text.get_text() for text in right.get_yticklabels()] == ["good", "bad"]
    drawn = sorted(x for line in right.get_lines() if line.get_marker() == "o" for x in line.get_xdata())
    assert drawn == sorted([1.0, 1.0, 0.8, 0.8, 0.4, 0.5, 0.4, 1.0])


def test_from_the_command_line(folders, tmp_path, capsys):
    figure = tmp_path / "compared.png"
    main(["compare", *map(str, folders), "--out", str(figure), "--json"])
    printed = capsys.readouterr().out
    document = json.loads(printed.splitlines()[-1])
    assert document["differing"] == ["auction", "learning_rate", "start"]
    assert [(r["run"], r["learning_rate"], r["return"]) for r in document["runs"]] == [
        ("good", 0.01, pytest.approx(0.9)),
        ("bad", 0.1, pytest.approx(0.575)),
    ]
    assert document["runs"][0]["steps_seeds"][2] is None  # strict JSON: it never got there
    assert "0.900 ±.184" in printed
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments", [["compare"], ["compare", "/nowhere", "/elsewhere"], ["compare", "--weights"]])
def test_wrong_calls_are_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_settings_in_words():
    assert [comparison.shown(v) for v in (1e-3, 4e-5, [64, 64], (), None, True, {"object": "mine"}, 2)] == [
        "0.001",
        "4e-05",
        "64x64",
        "none",
        "none",
        "true",
        "mine",
        "2",
    ]


def test_a_name_that_says_the_settings_is_not_said_twice(tmp_path):
    rates = [run_at(tmp_path / f"learning_rate={rate:g}", [1.0, 0.9], learning_rate=rate) for rate in (0.1, 0.01)]
    assert all("run" in table.aside for table in comparison.compare(rates).tables())
    renamed = dataclasses.replace(comparison.compare(rates).runs[0], name="mine")
    found = dataclasses.replace(comparison.compare(rates), runs=[renamed, comparison.read(rates[1])])
    assert not any("run" in table.aside for table in found.tables())


def test_single_seeds_and_runs_without_an_episode_are_shown_as_far_as_they_go(tmp_path):
    runs = [run_at(tmp_path / name, [r], steps=1, auction=name) for name, r in (("a", 1.0), ("b", 0.5))]
    found = comparison.compare(runs)
    assert np.isnan(found.target)
    assert "steps to nan" in found.tables()[0].aside
    assert [row["return"].plus_minus for row in found.rows()] == ["1.000", "0.500"]
    assert len(found.figure().axes) == 2

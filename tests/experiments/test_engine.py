"""Experiments as data: what is computed, kept and shown, and the four kinds of claim by hand."""

import concurrent.futures
import dataclasses
import functools
import importlib
import json
import sys
import threading

import jax
import numpy as np
import pytest

from jaxmarket import TrainConfig, experiments
from jaxmarket.cli import main
from jaxmarket.experiments import (
    Compute,
    Experiment,
    Quick,
    Scope,
    Table,
    Train,
    at,
    by_condition,
    engine,
    wide_vs_deep,
)
from jaxmarket.experiments.claims import every_seed, separated, share_of_seeds, within
from jaxmarket.experiments.experiment import column
from jaxmarket.experiments.results import FailedConditionError, Results
from jaxmarket.runs import addresses, sweeps
from jaxmarket.runs.estimates import Estimate, ResultTable, mean
from jaxmarket.runs.schedule import Running

# --- claims


def made(scope=None, failed=None, **values):
    """Results whose conditions have these values of the measure ``x``."""
    finished = {name: np.array(value, float) for name, value in values.items()}
    failed = {name: ValueError(reason) for name, reason in (failed or {}).items()}
    return Results(scope or Scope(), finished, failed, {"x": np.asarray})


def a(results):
    return results.measure("a", "x")


def b(results):
    return results.measure("b", "x")


@pytest.mark.parametrize(
    ("claim", "mine", "others", "standing", "number"),
    [
        # Welch's interval of the difference: -4 ± 4.47 and -5 ± 4.47.
        (separated("", a, b, lower=True), [10, 12, 14, 16], [14, 16, 18, 20], "not confirmed", -4),
        (separated("", a, b, lower=True), [10, 12, 14, 16], [15, 17, 19, 21], "confirmed", -5),
        (separated("", a, b), [10, 12, 14, 16], [15, 17, 19, 21], "not confirmed", -5),
        (separated("", a, b), [15, 17, 19, 21], [10, 12, 14, 16], "confirmed", 5),
        (separated("", a, b), [1, 1], [1, 1], "not confirmed", 0),
        (separated("", a, b, reached=lambda r: a(r) > 15), [15, 17, 19, 21], [1, 1, 1, 1], "confirmed", 17),
        (separated("", a, b, reached=lambda r: a(r) > 17), [15, 17, 19, 21], [1, 1, 1, 1], "not confirmed", 17),
        (every_seed("", a, at_least=0.9), [1, 0.9], [], "confirmed", 0.9),
        (every_seed("", a, at_least=0.9), [1, 0.89], [], "not confirmed", 0.89),
        (every_seed("", a, at_most=2), [1, 2.5], [], "not confirmed", 2.5),
        (every_seed("", a, at_least=b), [1, 2], [0.5, 2], "confirmed", 2),
        (every_seed("", a, at_least=b), [1, 2], [0.5, 2.1], "not confirmed", 2),
        (every_seed("", a, at_least=0), [1, np.nan], [], "not confirmed", None),
        (every_seed("", a, at_least=0, at_most=1), [0.1, 2], [], "not confirmed", 2),
        (within("", a, at_least=0, estimate=mean), [1, np.nan], [], "not confirmed", None),
        (share_of_seeds("", a, share=0.75, at_least=1), [1, 1, 1, 0], [], "confirmed", 0.75),
        (share_of_seeds("", a, share=0.8, at_least=1), [1, 1, 1, 0], [], "not confirmed", 0.75),
        (share_of_seeds("", a, share=0.5, above=b), [1, 2, 3, 4], [1, 1, 1, 5], "confirmed", 0.5),
        (share_of_seeds("", a, share=0.5, below=b), [1, 2, 3, 4], [1, 1, 1, 5], "not confirmed", 0.25),
        (within("", a, at_most=0.05), [0, 0.04, 0.05, 1], [], "confirmed", 0.045),
        (within("", a, at_most=0.05, interval=True), [0, 0.04, 0.05, 1], [], "not confirmed", 0.045),
        (within("", a, at_least=0, at_most=0.04), [0, 0.04, 0.05, 1], [], "not confirmed", 0.045),
    ],
)
def test_the_four_kinds_of_claim_by_hand(claim, mine, others, standing, number):
    verdict = claim.verdict(made(a=mine, b=others))
    assert verdict.standing == standing, verdict
    assert verdict.number == (None if number is None else pytest.approx(number))
    json.dumps(dataclasses.asdict(verdict), allow_nan=False)
    quick = claim.verdict(made(Scope(quick=True), a=mine, b=others)).standing
    assert quick == ("confirmed" if standing == "confirmed" else "too short to tell")


def test_a_verdict_has_its_kind_number_and_interval():
    verdict = separated("a is more", a, b).verdict(made(a=[15, 17, 19, 21], b=[10, 12, 14, 16]))
    assert (verdict.claim, verdict.kind, verdict.number) == ("a is more", "separated", 5)
    assert (verdict.low, verdict.high) == (pytest.approx(0.532, abs=1e-3), pytest.approx(9.467, abs=1e-3))
    verdict = share_of_seeds("", a, share=0.5, above=b).verdict(made(a=[1, 2, 3, 4], b=[1, 1, 1, 5]))
    assert "2/4 seeds" in verdict.evidence
    assert "by chance: 50.0%" in verdict.evidence  # at least two of three, the tie left out
    assert "0.9 to 1, required ≥ 0.5" in every_seed("", a, at_least=0.5).verdict(made(a=[1, 0.9])).evidence


def test_a_claim_about_a_failed_condition_cannot_be_tested():
    results = made(failed={"b": "no"}, a=[1, 2])
    verdict = separated("", a, b).verdict(results)
    assert (verdict.standing, verdict.number) == ("not testable", None)
    assert "b failed: ValueError: no" in verdict.evidence
    assert "a" in results and "b" not in results
    with pytest.raises(FailedConditionError):
        results["b"]
    verdict = separated("", a, lambda results: results["c"]).verdict(results)  # a mistake in the claim
    assert (verdict.standing, verdict.evidence) == ("not testable", "KeyError: 'c'")


# --- addresses


@dataclasses.dataclass(frozen=True)
class Setting:
    rate: float
    by: object = None


def drawn(scale, keys):
    return {"x": scale * jax.vmap(jax.random.normal)(keys)}


def multiple(n):
    return lambda keys: {"x": n * np.ones(len(keys))}


def identity(condition, **scope):
    return addresses.address(condition.job(Scope(**scope), {}).identity)


def test_an_address_changes_with_whatever_determines_the_result():
    condition = Compute("noise", functools.partial(drawn, 2.0))
    same = [identity(condition), identity(Compute("other name", functools.partial(drawn, 2.0)))]
    assert same[0] == same[1]
    other = [
        identity(Compute("noise", functools.partial(drawn, 2.5))),
        identity(Compute("noise", functools.partial(drawn, scale=2.0))),
        identity(condition, seed=1),
        identity(condition, seeds=3),
        identity(dataclasses.replace(condition, seeds=2)),
    ]
    assert len({same[0], *other}) == 6
    by_default = [lambda keys, n=n: {"x": n * np.ones(len(keys))} for n in (1, 2)]
    for one, two in (by_default, (multiple(1), multiple(2))):
        assert identity(Compute("", one)) != identity(Compute("", two))


def test_values_are_encoded_by_what_they_hold():
    values = [1, 1.5, "1", None, True, (1, 2), {"a": 1}, {"a": 2}, np.arange(3), np.arange(3.0), Setting(1.0)]
    values += [Setting(2.0), Setting(1.0, by=np.ones(2)), Setting(1.0, by=np.zeros(2)), drawn, Setting]
    values += [functools.partial(drawn, 1), functools.partial(drawn, 2)]
    assert len({json.dumps(addresses.encode(value)) for value in values}) == len(values)
    for value in (object(), (x for x in ())):
        with pytest.raises(ValueError, match="conditions: cannot identify"):
            addresses.encode(value)


def test_a_change_of_code_changes_the_address_of_what_imports_it(monkeypatch):
    config = TrainConfig("Bandit-v0", steps=4096)
    first = addresses.source_digest(config.settings.trainable)
    source = addresses._source.__wrapped__

    def changed(module, name):
        code, imported = source(name)
        return (code + b"#" if name == module else code), imported

    for module, matters in (
        ("jaxmarket.settlement", True),
        ("jaxmarket.learners.valuation", True),
        ("jaxmarket.wide_market.market", False),
        ("jaxmarket.view.plotting", False),
        ("jaxmarket.runs.jobs", False),
    ):
        monkeypatch.setattr(addresses, "_source", functools.partial(changed, module))
        assert (addresses.source_digest(config.settings.trainable) != first) == matters, module


def test_the_stored_settings_belong_to_the_address_of_what_computes_with_them(monkeypatch):
    first, source = addresses.source_digest(wide_vs_deep.learn), addresses._source.__wrapped__

    def emptied(module, name):
        code, imported = source(name)
        return (b"" if name == module else code), imported

    for module, matters in (("jaxmarket.training.pinned", True), ("jaxmarket.experiments.conditions", False)):
        monkeypatch.setattr(addresses, "_source", functools.partial(emptied, module))
        assert (addresses.source_digest(wide_vs_deep.learn) != first) == matters, module


# --- running

CALLS = []


def counted(name, keys, *inputs):
    CALLS.append(name)
    if name == "stop":
        raise KeyboardInterrupt
    if name == "bad":
        raise ZeroDivisionError("by zero")
    return {"x": np.arange(len(keys)) + sum(each["x"].sum() for each in inputs)}


def condition(name, *inputs):
    return Compute(name, functools.partial(counted, name), inputs=inputs)


EXPERIMENT = Experiment(
    name="counting",
    shows="numbers",
    source="here",
    conditions=[condition("b", "a"), condition("a"), condition("bad"), condition("c", "bad")],
    measures={"x": lambda result: result["x"]},
    claims=[
        within("b is more than its inputs", at("b", "x"), at_least=1.5),
        within("c is computed", at("c", "x"), at_least=0),
    ],
    seeds=3,
    quick=Quick(2),
)


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def test_conditions_run_after_their_inputs_and_failures_do_not_stop_the_others(tmp_path):
    report = experiments.reproduce(EXPERIMENT, tmp_path, progress=False)
    assert set(CALLS) == {"a", "b", "bad"}
    assert report.failed == {
        "bad": "ZeroDivisionError: by zero",
        "c": "RuntimeError: needs bad, which failed",
    }
    assert [row["condition"] for row in report.tables[0].rows] == ["b", "a"]
    assert [row["x"].value for row in report.tables[0].rows] == [4, 1]
    assert [verdict.standing for verdict in report.verdicts] == ["confirmed", "not testable"]
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["verdicts"][0]["kind"] == "within"
    assert (tmp_path / "seeds.csv").read_text().splitlines() == [
        "condition,measure,seed,value",
        *("b,x,0,3", "b,x,1,4", "b,x,2,5"),
        *("a,x,0,0", "a,x,1,1", "a,x,2,2"),
    ]
    assert "bad failed: ZeroDivisionError" in (tmp_path / "report.txt").read_text()


def test_finished_conditions_are_not_computed_again_and_the_files_are_the_same(tmp_path):
    experiments.reproduce(EXPERIMENT, tmp_path, progress=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    CALLS.clear()
    experiments.reproduce(EXPERIMENT, tmp_path, progress=False)
    assert CALLS == ["bad"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    (next(tmp_path.glob("conditions/a-*")) / "arrays.npz").write_bytes(b"damaged")
    CALLS.clear()
    experiments.reproduce(EXPERIMENT, tmp_path, progress=False)
    assert set(CALLS) == {"a", "bad"}  # and not b, whose input has the same address


def test_the_folder_is_named_by_what_differs_from_the_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = dataclasses.replace(
        EXPERIMENT, claims=(), conditions=[condition("a")], settings={"width": 1, "depth": 2, "mode": "a"}
    )
    experiments.reproduce(small, width=1, progress=False)
    experiments.reproduce(small, quick=True, seeds=4, seed=1, width=2, mode="b/c", progress=False)
    experiments.reproduce(small, depth=1, progress=False)  # not the folder of width=1
    names = {"counting", "counting-quick-4-seeds-seed-1-width-2-mode-b-c", "counting-depth-1"}
    assert {path.name for path in (tmp_path / "reproductions").iterdir()} == names


def test_an_interrupted_experiment_keeps_what_is_finished(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    stopping = dataclasses.replace(
        EXPERIMENT, claims=(), conditions=[condition("a"), condition("stop"), condition("b", "a")]
    )
    with pytest.raises(KeyboardInterrupt):
        engine.run(stopping, Scope(3), tmp_path, progress=False)
    kept = {path.name.split("-")[0] for path in tmp_path.iterdir()}
    assert kept in ({"a"}, {"a", "b"})  # b may have finished before the interruption was noticed
    CALLS.clear()
    results = engine.run(EXPERIMENT, Scope(3), tmp_path, progress=False)
    assert "a" not in CALLS
    assert list(results) == ["b", "a"]


@pytest.mark.parametrize(
    ("conditions", "says"),
    [
        ([condition("a", "b"), condition("b", "a")], "a, b, a need each other|b, a, b need each other"),
        ([condition("a", "nowhere")], "'a' needs nowhere; choose from a"),
        ([condition("a"), condition("a")], "unique names"),
    ],
)
def test_names_must_be_known_and_unique(tmp_path, conditions, says):
    with pytest.raises(ValueError, match=says):
        experiment = dataclasses.replace(EXPERIMENT, conditions=conditions, claims=())
        engine.run(experiment, Scope(2), tmp_path, progress=False)


def test_what_is_not_an_array_fails_with_its_name(tmp_path):
    def nothing(keys):
        return {"x": [object()]}

    bad = dataclasses.replace(EXPERIMENT, claims=(), conditions=[Compute("a", nothing), Compute("b", lambda keys: 3)])
    failed = engine.run(bad, Scope(2), tmp_path, progress=False).failed
    assert "x is not an array of numbers or text" in failed["a"]
    assert "expected arrays by name" in failed["b"]


def test_tables_are_left_out_if_a_condition_failed_and_without_rows():
    results = made(failed={"b": "no"}, a=[1, 2])
    tables = [
        Table("one", "t", lambda r: [{"a": r["a"].sum()}]),
        Table("two", "t", lambda r: [{"b": r["b"].sum()}]),
        Table("three", "t", lambda r: []),
    ]
    kept = [engine.table_of(table, results) for table in tables]
    assert [table.name if table else None for table in kept] == ["one", None, None]


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        (within("", at("d", "x"), at_least=0), "names the condition 'd'; choose from b, a"),
        (separated("", at("a", "x"), at("run", "z")), "names the measure 'z' of a run; choose from x"),
    ],
)
def test_names_in_claims_are_checked_before_anything_is_computed(tmp_path, claim, says):
    run = Train("run", TrainConfig("Bandit-v0", learner="valuation", steps=4096))
    experiment = dataclasses.replace(EXPERIMENT, conditions=[*EXPERIMENT.conditions, run], claims=[claim])
    with pytest.raises(ValueError, match=says):
        engine.run(experiment, Scope(2), tmp_path, progress=False)
    assert not CALLS


def test_a_mistake_in_a_table_a_claim_or_a_figure_loses_nothing_else(tmp_path):
    mistaken = dataclasses.replace(
        EXPERIMENT,
        conditions=[condition("a")],
        claims=[within("right", at("a", "x"), at_least=0), within("wrong", lambda r: r["a"]["y"], at_least=0)],
        tables=[Table("one", "t", lambda r: [{"x": 1}]), Table("two", "t", lambda r: [{"x": r["a"]["y"]}])],
        figures={"three": lambda r: 1 / 0},
    )
    report = experiments.reproduce(mistaken, tmp_path, progress=False)
    assert report.failed.keys() == {"table two", "claim 'wrong'", "figure three"}
    assert [verdict.standing for verdict in report.verdicts] == ["confirmed", "not testable"]
    assert (tmp_path / "one.csv").exists()
    assert "test_engine.py" in (tmp_path / "errors.txt").read_text()
    right = dataclasses.replace(mistaken, claims=mistaken.claims[:1], tables=mistaken.tables[1:], figures={})
    right = dataclasses.replace(right, tables=[Table("other", "t", lambda r: [{"x": r["a"]["x"].sum()}])])
    report = experiments.reproduce(right, tmp_path, progress=False)
    assert not report.failed
    left = {path.name for path in tmp_path.iterdir() if path.is_file()}
    # Nothing of the earlier report.
    assert left == {"options.json", "other.csv", "report.json", "report.txt", "seeds.csv"}


def test_a_column_shows_the_values_of_a_measure():
    results = Results(Scope(2), {"a": {"x": np.array([1.0, 3.0])}}, {}, {"twice": lambda result: 2 * result["x"]})
    assert (column("x", np.mean)(results, "a"), column("twice", np.max)(results, "a")) == (2, 6)


def test_arrays_of_a_computed_condition_are_measures_and_others_do_not_apply():
    results = Results(Scope(), {"a": {"y": np.arange(2.0)}, "b": np.ones(2)}, {}, {"x": lambda run: run + 0})
    assert results.measure("a", "y").tolist() == [0, 1]
    assert results.measure("b", "x").tolist() == [1, 1]
    rows = list(by_condition({"x": "x", "sum": lambda r, name: name})(results))
    assert [(row["condition"], row["x"] and row["x"].value) for row in rows] == [("a", None), ("b", 1)]
    named = Results(Scope(), {"b": np.ones(2)}, {"a": ValueError("no")}, {"x": np.asarray})
    assert [row["condition"] for row in by_condition({"x": "x"}, names=["a", "b"])(named)] == ["b"]


def test_claims_need_a_bound():
    for claim in (every_seed, within, functools.partial(share_of_seeds, share=0.5)):
        with pytest.raises(ValueError, match="claims: 'nothing' has no bound"):
            claim("nothing", a)


def test_what_cannot_be_kept_fails_and_what_needs_it(tmp_path):
    def badly_named(keys):
        return {"file": np.ones(2)}  # an argument of `numpy.savez`

    conditions = [condition("c", "b"), condition("b", "bad"), Compute("bad", badly_named), condition("a")]
    experiment = dataclasses.replace(EXPERIMENT, claims=(), conditions=conditions)
    results = engine.run(experiment, Scope(2), tmp_path, progress=False)
    assert (list(results), set(results.failed)) == (["a"], {"b", "c", "bad"})


def test_code_without_a_file_is_refused(tmp_path, monkeypatch):
    def cell(keys):
        return {"x": np.ones(2)}

    cell.__module__ = "__main__"
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    experiment = dataclasses.replace(EXPERIMENT, claims=(), conditions=[Compute("cell", cell)])
    failed = engine.run(experiment, Scope(2), tmp_path, progress=False).failed
    assert "defined in a notebook or at a prompt" in failed["cell"]


LEARNERS = """
from jaxmarket.learners import Valuation
MINE = Valuation(max_norm={})
"""


def test_a_learner_that_is_a_global_of_a_module_counts_with_its_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for norm in (1.0, 2.0):
        (tmp_path / "my_learners.py").write_text(LEARNERS.format(norm))
        sys.modules.pop("my_learners", None)
        importlib.invalidate_caches()
        addresses.refresh()
        mine = importlib.import_module("my_learners").MINE
        found.append(identity(Train("run", TrainConfig("Bandit-v0", learner=mine, steps=4096))))
    assert found[0] != found[1]


MODULE = """
from jaxmarket import TrainConfig
from jaxmarket.experiments import Experiment, Quick, Train, at, every_seed, separated
from jaxmarket.runs.measures import final, steps_to

SMALL = {"learner": "valuation", "steps": 8192, "instances": 8, "horizon": 16, "minibatch": 32, "log_every": 4}
MINE = Experiment(
    name="mine",
    shows="two auctions",
    source="here",
    conditions=[Train(auction, TrainConfig("Bandit-v0", auction=auction, **SMALL)) for auction in ("ccv", "bb")],
    measures={"return": final(), "steps": steps_to(0.7)},
    claims=[
        every_seed("ccv solves it", at("ccv", "return"), at_least=0.79),
        separated("ccv is sooner", at("ccv", "steps"), at("bb", "steps"), lower=True),
    ],
    seeds=3,
    quick=Quick(2, steps=0.25),
)
OTHER = 3
"""


@pytest.mark.slow
def test_a_users_experiment_from_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_auctions.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    main(["reproduce", "my_auctions:MINE", "--quick", "--json"])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (found["experiment"], found["seeds"], found["quick"]) == ("mine", 2, True)
    assert [row["condition"] for row in found["table"]] == ["ccv", "bb"]
    assert found["verdicts"][1]["standing"] in ("confirmed", "too short to tell")
    run = next((tmp_path / "reproductions" / "mine-quick" / "conditions").glob("ccv-*"))
    assert json.loads((run / "summary.json").read_text())["env_steps"] == 2 * 2048  # of both seeds
    monkeypatch.setattr(sweeps, "fit_as_task", lambda *_, **__: pytest.fail("trained again"))
    before = {p.name: p.read_bytes() for p in run.parents[1].iterdir() if p.is_file()}
    main(["reproduce", "my_auctions:MINE", "--quick"])
    assert {p.name: p.read_bytes() for p in run.parents[1].iterdir() if p.is_file()} == before
    for name, says in (
        ("my_auctions:OTHER", "Experiment"),
        ("nowhere:X", "cannot import module 'nowhere'"),
        ("nothing", "unknown"),
    ):
        with pytest.raises(SystemExit):
            main(["reproduce", name])
        assert says in capsys.readouterr().err


def test_a_run_starts_from_the_networks_of_another():
    config = TrainConfig("Bandit-v0", learner="valuation", steps=4096)
    made_from = Train("second", lambda first: config, inputs=("first",), start="first", seeds=5)
    assert made_from.needs == ("first", "first")
    assert Train("a", config).job(Scope(7, steps=0.5), {}).config.seeds == 7
    assert Train("a", config).job(Scope(7, steps=0.5), {}).config.settings.steps == 2048


def in_four_parts(keys, *, show):
    for part in range(1, 5):
        show(part / 4, f"part {part}")
    return {"x": np.zeros(len(keys))}


def test_a_function_reports_its_progress_and_is_stopped_there():
    job, shares, stop = Compute("slow", in_four_parts, reports=True).job(Scope(3), {}), [], threading.Event()

    def report(share, note):
        shares.append((share, note))
        if share == 0.75:
            stop.set()

    with pytest.raises(concurrent.futures.CancelledError):
        job.run(Running(report, stop, {}))
    assert shares == [(0, ""), (0.25, "part 1"), (0.5, "part 2"), (0.75, "part 3")]
    stop.clear()
    assert job.run(Running(lambda *_: None, stop, {}))["x"].shape == (3,)


def test_rows_without_an_estimate_have_the_same_columns_in_files():
    table = ResultTable("t", "t", [{"a": None, "b": 1}, {"a": Estimate(1.0, 0.5, 2.0), "b": 2}])
    none, some = table.as_rows()
    assert list(none) == list(some) == ["a", "a low", "a high", "b"]
    assert list(none.values()) == [None, None, None, 1]
    assert list(some.values()) == [1.0, 0.5, 2.0, 2]

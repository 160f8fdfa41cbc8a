"""The timer, the fits and the comparisons that benchmarks rest on; the benchmarks themselves run as slow tests."""

import dataclasses
import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import benchmarks
from benchmarks import equilibrium, firms, roofline, step, timing, train
from benchmarks.__main__ import main
from jaxmarket import TrainConfig, cli
from jaxmarket.training import monolith
from jaxmarket.wide_market import ProportionalResponse, Tatonnement

ROOT = Path(__file__).parents[2]


def test_the_timer_counts_calls_and_keeps_every_repeat():
    calls = []

    def noted(x):
        jax.debug.callback(lambda: calls.append(1))
        return x + 1

    results = {}
    candidates = {"one": (noted, (jnp.ones(3),)), "other": (jnp.sum, (jnp.ones(3),))}
    found = timing.measure(candidates, repeats=11, results=results)
    jax.effects_barrier()
    assert results["one"].tolist() == [2, 2, 2] and results["other"] == 3
    assert len(calls) == 12  # a warm-up, then the repeats
    assert set(found) == {"one", "other"}
    for result in found.values():
        assert len(result.seconds) == 11
        assert result.compile_seconds > 0
        assert result.memory_bytes is not None
    odd = timing.Timing((3.0, 1.0, 2.0, 10.0, 4.0), 0.0)
    assert (odd.median, odd.iqr) == (3.0, 2.0)


def test_rollouts_in_a_row_write_every_row_and_go_on():
    """Two rollouts of a counter: the second goes on from the first, and its rows are the ones returned."""

    def rollout(key, state):
        return state + 3, state + jnp.arange(3)

    state, rows = jax.jit(timing.in_a_row(rollout, 2))(jax.random.key(0), jnp.int32(10))
    assert int(state) == 16
    assert rows.tolist() == [13, 14, 15]


def test_exponents_of_known_growth():
    sizes = [2, 8, 64, 1024]
    assert timing.exponent(sizes, [5 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert timing.exponent(sizes, [7.0] * 4) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.slow
def test_the_reference_without_a_market_makes_the_bids_a_society_makes():
    """Bids equal those of the same networks in every state; a random primitive acts, independent of the bids."""
    case = step.Case("Chain-v0", instances=64, hidden=(3,), horizon=16)
    programs = step.programs(case)
    rollout, running = programs["networks"]
    rows = jax.jit(rollout)(jax.random.key(0), running)[1]
    action, bids = rows.choice
    society = dataclasses.replace(case.society, greedy=True)
    params = step.scrambled(society.init(jax.random.key(0)), jax.random.key(1))
    means = np.asarray(jax.vmap(lambda obs: society.bids(params, None, obs))(jnp.eye(6)))
    assert len(np.unique(means.round(5), axis=1).T) == 2  # the two primitives bid differently, unlike untrained ones
    states = np.asarray(rows.obs.argmax(-1))
    for state in range(2):
        np.testing.assert_allclose(np.asarray(bids)[states == state].mean(0), means[state], atol=0.1)
    highest = np.asarray(bids).argmax(-1) // case.clones
    assert 0.4 < (np.asarray(action) == highest).mean() < 0.6
    assert np.asarray(programs["environment"][0](jax.random.key(0), running)[1].choice).shape == (16, 64)
    _, market = jax.jit(programs["society"][0])(jax.random.key(0), programs["society"][1])
    assert market.outcome.bids.shape == bids.shape


@pytest.mark.slow
def test_the_tax_case_is_the_one_promised():
    assert step.TAX.society.bidders == 4
    assert (step.TAX.env, step.TAX.instances, step.TAX.hidden) == ("CartPole-v1", 1024, (64, 64))
    timings, steps = step.time_case(step.Case("Bandit-v0", instances=2, hidden=(3,), horizon=4), 2, steps_per_call=16)
    assert set(timings) == {"society", "networks", "environment"}
    assert steps == 16


@pytest.mark.slow
def test_monolithic_agent_of_equal_size():
    config = TrainConfig("CartPole-v1")
    (width, again) = train.equal_width(config)
    assert width == again
    society = config.settings.society
    wanted = society.modules * monolith.parameters(
        jax.eval_shape(config.settings.learner.init, jax.random.key(0), jnp.zeros(4))
    )
    sizes = {
        w: monolith.parameters(
            jax.eval_shape(
                monolith.Monolith.of(config.as_monolith().settings, (w, w)).learner.init,
                jax.random.key(0),
                jnp.zeros(4),
            )
        )
        for w in (width - 1, width, width + 1)
    }
    assert min(sizes, key=lambda w: abs(sizes[w] - wanted)) == width
    assert abs(sizes[width] / wanted - 1) < 0.02


@pytest.mark.slow
def test_roofline_work_grows_with_instances_and_horizon():
    """Twice the instances, in minibatches of the same size: twice the gradient steps, twice the work."""
    shape = {"horizon": 4, "minibatch": 8}
    small, large = (roofline.update_costs(TrainConfig("Bandit-v0", instances=n, steps=n * 4, **shape)) for n in (8, 16))
    assert set(small) == {"steps", "settlement", "gradients"}
    assert large["gradients"].flops == pytest.approx(2 * small["gradients"].flops)
    assert large["steps"].flops == pytest.approx(2 * small["steps"].flops, rel=0.1)
    longer = roofline.update_costs(TrainConfig("Bandit-v0", instances=8, horizon=8, minibatch=8, steps=64))
    assert longer["steps"].flops == pytest.approx(2 * small["steps"].flops)
    # Two matrix products of a 2-wide step: nothing is counted for free.
    assert min(cost.flops for cost in small.values()) > 0
    # A Kumaraswamy bid takes four logarithms and exponentials, a table of values none; 32 auctions with eight bids.
    assert small["steps"].transcendentals == 0
    ppo = roofline.update_costs(TrainConfig("Bandit-v0", learner="ppo", instances=8, steps=32, **shape))
    assert 4 * 8 * 32 <= ppo["steps"].transcendentals <= 16 * 8 * 32


def test_operations_count_loops_as_often_as_they_run():
    """Five rounds of one matrix product and a sum that cannot be fused with it."""

    def rounds(x, matrix):
        return jax.lax.scan(lambda x, _: (x @ matrix, None), x, None, length=5)[0]

    def counted(function):
        return roofline.operations(jax.jit(function).lower(jnp.eye(8), jnp.eye(8)).compile().as_text())

    assert counted(lambda x, matrix: x @ matrix) == {"products": 1}
    loop = counted(rounds)
    assert loop["products"] == 5
    assert 5 <= loop["kernels"] <= 25  # of the loop's counter and its comparison
    twice = counted(lambda x, matrix: jax.lax.scan(lambda x, _: (rounds(x, matrix), None), x, None, length=3)[0])
    assert twice["products"] == 15


def test_bandwidth_is_measured_inside_each_level():
    levels = roofline.levels()
    assert levels[-1].name == "memory" and levels[-1].size == math.inf
    below = 0
    for level in levels:
        assert below < level.measured_at < level.size
        below = level.size


# 2x - x²/2 is worth .5 at 2 - √3; the other agent gets the rest of one unit.
_REST = np.sqrt(3) - 1
HAND_WORKED = [
    ("Quadratic", [[[2], [2]], [[1], [1]]], [0.5, 9], 0.5 + 2 * _REST - _REST**2 / 2),
    ("Quadratic", [[[2], [2]], [[1], [1]]], [9, 9], 1.75),
    ("Logarithmic", [[[2], [2]], [[1], [1]]], [9, 9], 4 * np.log(1.5)),
    ("Logarithmic", [[[3], [2]], [[1], [1]]], [3 * np.log(1.2), 9], 3 * np.log(1.2) + 2 * np.log(1.8)),
    ("Linear", [[[2], [1]]], [0.5, 9], 1.25),
    ("Fisher", [[[2], [1]]], [1, 3], (np.log(0.5) + 3 * np.log(0.75)) / 4),
    ("Quasilinear", [[[2], [0.1]]], [1, 1e-9], np.log(2)),  # spends all it has
    ("Quasilinear", [[[2], [0.1]]], [5, 1e-9], (5 * np.log(5) - 3) / 5),  # and here keeps 3
    ("Additive", [[[3, 1], [2, 2]]], [9, 9], 5),
    ("Additive", [[[3, 1], [2, -np.inf]]], [2, 9], 2.5),  # bids 1.5 and .5
]


@pytest.mark.parametrize(("name", "leaves", "wealth", "welfare"), HAND_WORKED)
def test_reference_solvers_reach_maximal_welfare(name, leaves, wealth, welfare):
    """Markets of one unit of each good, worked out by hand; one part in 10,000."""
    holdings = np.zeros(np.shape(leaves[0]))
    holdings[1] = 1
    for reference in equilibrium.CASES[name].references.values():
        found = reference([np.array(leaf, float) for leaf in leaves], np.array(wealth, float), holdings)
        assert found == pytest.approx(welfare, rel=1e-4)


def test_report_of_a_bad_solver_and_a_missing_reference_solver(monkeypatch):
    """A solver that stops after one change of prices does not meet the tolerances, and has less welfare."""

    def fails(*_):
        raise ArithmeticError("no luck")

    full = equilibrium.CASES["Quadratic"]
    references = {**full.references, "other": fails}
    case = dataclasses.replace(
        full, wealth=0.2, solvers={"hasty": Tatonnement(max_iterations=1)}, references=references
    )
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    report = timing.Report("equilibrium")
    equilibrium.compare(report, "Quadratic", case, agents=16, goods=4, time_limit=0.1)
    (row,), rows = report.tables.values()
    assert (row["meets"], row["steps"]) == ("NO", 1)
    found = {row["reference"]: row for row in rows}
    assert found["SciPy"]["welfare difference"] > 1e-3
    assert found["SciPy"]["runs"] >= 1
    assert (found["CVXPY"]["reference ms"], found["CVXPY"]["welfare difference"]) == ("not installed", None)
    assert found["other"]["reference ms"] == "failed"
    assert report.notes == ["other on Quadratic: ArithmeticError: no luck"]
    assert len(report.timings["one, hasty: Quadratic"]["seconds"]) == timing.REPEATS


def test_many_markets_are_judged_by_the_worst():
    """The same markets by ``vmap`` and ``map``; one of three solutions meets the tolerance."""
    full = equilibrium.CASES["Fisher"]
    drawn = [equilibrium.market(full, 16, 4, seed) for seed in range(3)]
    solver = ProportionalResponse(quasilinear=False, gap_tolerance=0.1, max_iterations=30)
    gaps = [float(jax.jit(solver)(*map(jax.device_put, one)).certificate.duality_gap) for one in drawn]
    report = timing.Report("equilibrium")
    case = dataclasses.replace(full, solvers={"lax": solver})
    equilibrium.many(report, "Fisher", case, 16, 4, [("vmap", 3), ("map", 2)], time_limit=0.01)
    side, turn = report.tables["many such markets in one call"]
    assert (side["way"], turn["way"]) == ("vmap 3", "map 2")
    np.testing.assert_allclose(report.timings["vmap 3, lax: Fisher"]["gap"], gaps, rtol=1e-3)
    assert side["worst gap"] == pytest.approx(max(gaps), rel=0.05)
    assert turn["worst gap"] == pytest.approx(max(gaps[:2]), rel=0.05)
    assert side["meet"] == sum(gap <= equilibrium.GAP for gap in gaps) < 3


def test_markets_are_the_ones_promised():
    """Some agents value some goods only, every agent at least one; of indivisible goods there is one unit."""
    case = equilibrium.CASES["Linear"]
    valuations, wealth, holdings = equilibrium.market(case, 1000, 32, 0)
    cares = (valuations.values > 0).mean(1)
    assert cares.min() > 0
    assert 0.4 < (cares < 0.9).mean() < 0.6
    assert 0.2 < cares[cares < 0.9].mean() < 0.35
    assert wealth.mean() == pytest.approx(32 * case.wealth, rel=0.15)
    assert {leaf.dtype for leaf in (valuations.values, wealth, holdings)} == {np.dtype(np.float32)}
    assert not np.array_equal(equilibrium.market(case, 1000, 32, 1)[2], holdings)
    bids, _, lots = equilibrium.market(equilibrium.CASES["Additive"], 50, 8, 0)
    np.testing.assert_array_equal(lots.sum(0), 1)
    assert set(np.unique(lots)) == {0, 1}
    assert np.isneginf(bids.values).any()


def test_reports_are_tables_and_json(tmp_path, capsys):
    report = timing.Report("step", headline={"market_tax": 1.25})
    report.tables["rows"] = [{"name": "a", "M/s": 1234.5, "none": None}]
    report.keep("case", {"one": timing.Timing((1.0, 2.0, 3.0), 0.5)})
    (path,) = report.write(tmp_path)
    kept = json.loads(path.read_text())
    assert kept["market_tax"] == 1.25
    assert kept["timings"]["case: one"]["seconds"] == [1, 2, 3]
    assert kept["timings"]["case: one"]["median"] == 2
    assert {"device", "commit", "jax", "cores_used"} <= set(kept["machine"])
    Console(width=80).print(report.view())
    shown = capsys.readouterr().out
    assert "1,234" in shown
    assert "market_tax" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["steps"], "name: unknown benchmark 'steps'; choose from step, train, "),
        (["step", "--cores", "0"], "cores: expected an integer >= 1, got 0"),
        (["step", "--out", "/dev/null/x"], "out: cannot write to /dev/null/x"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pytest"])
    with pytest.raises(SystemExit) as exit_info:
        sys.exit(main(arguments))
    assert exit_info.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"benchmarks: {message}") and said.count("\n") == 1


def test_a_benchmark_runs_writes_and_leaves_the_process_as_it_was(tmp_path, monkeypatch, capsys):
    def run(quick):
        assert quick
        assert not jax.config.jax_enable_compilation_cache
        return timing.Report("step", headline={"market_tax": 1.0})

    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setattr(step, "run", run)
    cores, cached = timing.allowed_cores(), jax.config.jax_enable_compilation_cache
    assert main(["step", "--quick", "--json", "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["market_tax"] == 1
    assert json.loads((tmp_path / "step.json").read_text())["market_tax"] == 1
    assert jax.config.jax_enable_compilation_cache == cached
    assert not hasattr(os, "sched_getaffinity") or sorted(os.sched_getaffinity(0)) == cores


@pytest.mark.slow
def test_firms_and_backpropagation_are_timed_on_the_same_training():
    timed = firms.programs("perceptron", steps=3, batch=8)
    params = {name: jax.jit(function)(*arguments)[0] for name, (function, arguments) in timed.items()}
    for name in ("firms", "firms with accounts"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params[name], params["backpropagation"])


def test_without_a_name_all_benchmarks_of_speed_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pytest"])
    for name in benchmarks.SPEED:
        module = importlib.import_module(f"benchmarks.{name}")
        monkeypatch.setattr(module, "run", lambda quick, name=name: timing.Report(name, headline={"number": 2.0}))
    assert main(["--json", "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["benchmarks"]
    assert [(each["benchmark"], each["number"]) for each in found] == [(name, 2) for name in benchmarks.SPEED]
    assert {path.stem for path in tmp_path.iterdir()} == set(benchmarks.SPEED)


def test_an_interrupted_benchmark_ends_with_its_exit_code(tmp_path, monkeypatch, capsys):
    def run(quick):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setattr(step, "run", run)
    assert main(["step", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "benchmarks: interrupted\n"


def test_every_module_has_a_name_on_the_command_line():
    modules = {path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py")}
    assert modules - {"command", "timing"} == set(benchmarks.SPEED | benchmarks.PROGRAMS)


def test_jaxmarket_bench_forwards_to_the_folder(monkeypatch, tmp_path, capsys):
    """The folder is beside the package or in the current folder; of another project's it makes no use."""
    calls = []

    def execve(program, words, environment):
        calls.append((words, environment["PYTHONPATH"].split(os.pathsep)[0]))
        raise SystemExit(0)

    def call(*words):
        with pytest.raises(SystemExit) as exit_info:
            cli.main(["bench", *words])
        return exit_info.value.code

    monkeypatch.setattr(cli.os, "execve", execve)
    monkeypatch.chdir(tmp_path)
    assert call("step", "--quick", "--help") == 0
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages" / "jaxmarket" / "cli.py"))
    (tmp_path / "benchmarks").mkdir()
    assert call("step") == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("jaxmarket: bench: the installed package has no benchmarks; ")
    monkeypatch.chdir(ROOT)
    assert call() == 0
    start = [sys.executable, "-P", "-m", "benchmarks"]
    assert calls == [([*start, "step", "--quick", "--help"], str(ROOT)), (start, str(ROOT))]


FIELDS = {
    "step": {"market_tax"},
    "train": {"train_over_rollout", "society_over_monolithic", "chain_steps_per_second", "seeds64_over_single"},
    "images": {"Breakout-MinAtar valuation over_wider", "Breakout-MinAtar ppo over_wider_dense"},
    "scale": {"exponent_time", "exponent_memory", "exponent_training_valuation", "exponent_training_ppo"},
    "population": {"exponent_rules", "rules_4096_agents_steps_per_second"},
    "equilibrium": {
        "single_markets_that_meet",
        "many_markets_that_meet",
        "worst_gap",
        "worst_welfare_difference",
        "reference_over_ours_linear",
    },
    "firms": {"ratio_firms", "ratio_accounts"},
    "compile": {"import_seconds", "main_job_compile_seconds"},
    "roofline": {"achieved", "gflops_limit", "gbytes_per_second_limit", "kernel_microseconds"},
}


@pytest.mark.full
@pytest.mark.parametrize("name", FIELDS)
def test_quick_benchmarks_run_from_the_command_line(name, tmp_path):
    """All numbers are finite and positive."""
    command = [sys.executable, "-m", "benchmarks", name, "--quick", "--json", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["benchmark"] == name
    for field in FIELDS[name]:
        assert 0 < found[field] < math.inf, field
    numbers = json.loads((tmp_path / f"{name}.json").read_text())["timings"]
    assert numbers
    if name == "equilibrium":
        assert found["single_markets_that_meet"] == 1
        assert found["many_markets_that_meet"] == found["many_markets"] == 16 * 8
        assert found["worst_gap"] <= equilibrium.GAP
        assert found["worst_welfare_difference"] <= equilibrium.GAP
        assert found["worst_excess"] <= equilibrium.EXCESS
        shares = [kept["limited"] for label, kept in numbers.items() if "gap" in kept and "Fisher" not in label]
        assert all(0.3 <= np.mean(share) <= 0.55 for share in shares), "wealth limits a third to a half"
    if name == "compile":
        assert found["backends_started_by_import"] == 0

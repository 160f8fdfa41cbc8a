"""The timer, the fits and the comparisons that benchmarks rest on; the benchmarks themselves run as slow tests."""

import dataclasses
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

from jaxmarket import TrainConfig, baselines, bench
from jaxmarket.bench import roofline, step, timing, train
from jaxmarket.cli import main

ROOT = Path(__file__).parents[1]


def test_the_timer_counts_calls_and_keeps_every_repeat():
    calls = []

    def noted(x):
        jax.debug.callback(lambda: calls.append(1))
        return x + 1

    found = timing.measure({"one": (noted, (jnp.ones(3),)), "other": (jnp.sum, (jnp.ones(3),))}, repeats=11)
    jax.effects_barrier()
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


def test_the_reference_without_a_market_makes_the_bids_a_society_makes():
    """The very bids of the same networks, state by state; a random primitive acts, whoever bids most."""
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


def test_the_tax_case_is_the_one_promised():
    assert step.TAX.society.bidders == 4
    assert (step.TAX.env, step.TAX.instances, step.TAX.hidden) == ("CartPole-v1", 1024, (64, 64))
    timings, steps = step.time_case(step.Case("Bandit-v0", instances=2, hidden=(3,), horizon=4), 2, steps_per_call=16)
    assert set(timings) == {"society", "networks", "environment"}
    assert steps == 16


def test_a_rival_of_equal_size():
    config = TrainConfig("CartPole-v1")
    (width, again) = train.equal_width(config)
    assert width == again
    society = config.society
    wanted = society.modules * baselines.parameters(
        jax.eval_shape(config.learner_rule.init, jax.random.key(0), jnp.zeros(4))
    )
    sizes = {
        w: baselines.parameters(
            jax.eval_shape(baselines.Monolith.of(config, (w, w)).learner.init, jax.random.key(0), jnp.zeros(4))
        )
        for w in (width - 1, width, width + 1)
    }
    assert min(sizes, key=lambda w: abs(sizes[w] - wanted)) == width
    assert abs(sizes[width] / wanted - 1) < 0.02


def test_roofline_work_grows_with_instances_and_horizon():
    """Twice the instances, in minibatches of the same size: twice the gradient steps, twice the work."""
    shape = {"horizon": 4, "minibatch": 8}
    small, large = (roofline.update_costs(TrainConfig("Bandit-v0", instances=n, steps=n * 4, **shape)) for n in (8, 16))
    assert set(small) == {"steps", "settlement", "gradients"}
    assert large["gradients"][0] == pytest.approx(2 * small["gradients"][0])
    assert large["steps"][0] == pytest.approx(2 * small["steps"][0], rel=0.1)
    longer = roofline.update_costs(TrainConfig("Bandit-v0", instances=8, horizon=8, minibatch=8, steps=64))
    assert longer["steps"][0] == pytest.approx(2 * small["steps"][0])
    # Two matrix products of a 2-wide step: nothing is counted for free.
    assert min(flops for flops, _ in small.values()) > 0


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
        (["steps"], "name: unknown benchmark 'steps'; choose from step, train, scale, population, compile, roofline"),
        (["step", "--cores", "0"], "cores: expected a whole number >= 1, got 0"),
        (["step", "--out", "/dev/null/x"], "out: cannot write to /dev/null/x"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["bench", *arguments])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_bench_runs_writes_and_leaves_the_process_as_it_was(tmp_path, monkeypatch):
    def run(quick):
        assert quick
        assert not jax.config.jax_enable_compilation_cache
        return timing.Report("step", headline={"market_tax": 1.0})

    monkeypatch.setattr(step, "run", run)
    cores, cached = timing.allowed_cores(), jax.config.jax_enable_compilation_cache
    assert bench.bench("step", tmp_path, quick=True).headline == {"market_tax": 1.0}
    assert json.loads((tmp_path / "step.json").read_text())["market_tax"] == 1
    assert jax.config.jax_enable_compilation_cache == cached
    assert not hasattr(os, "sched_getaffinity") or sorted(os.sched_getaffinity(0)) == cores


def test_every_benchmark_has_a_script():
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} == set(bench.BENCHMARKS)


FIELDS = {
    "step": {"market_tax"},
    "train": {"train_over_rollout", "society_over_monolithic", "chain_steps_per_second", "seeds64_over_single"},
    "scale": {"exponent_time", "exponent_memory"},
    "population": {"exponent_rules", "rules_4096_agents_steps_per_second"},
    "compile": {"import_seconds", "main_job_compile_seconds"},
    "roofline": {"achieved", "gflops_limit", "gbytes_per_second_limit"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
def test_quick_benchmarks_run_as_scripts(name, tmp_path):
    """Their numbers are finite and positive; how large they are is not a matter for tests."""
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--quick", "--json", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["benchmark"] == name
    for field in FIELDS[name]:
        assert 0 < found[field] < math.inf, field
    assert json.loads((tmp_path / f"{name}.json").read_text())["timings"]
    if name == "compile":
        assert found["backends_started_by_import"] == 0

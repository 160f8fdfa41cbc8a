"""The benchmark for accelerators: parts that fail do not stop the others, and results are written after each."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import accelerator
from benchmarks.accelerator import Part

ROOT = Path(__file__).parents[2]


def kept(folder):
    return {row["part"]: row for row in json.loads((folder / "accelerator.json").read_text())["tables"]["parts"]}


def measured(folder, parts, began=None, tests=None):
    began = time.monotonic() if began is None else began
    return accelerator.run(True, parts=parts, folder=folder, began=began, tests=tests)


def test_budgets_and_tests_are_the_ones_promised():
    assert (
        accelerator.TEST_SECONDS + sum(part.seconds for part in accelerator.PARTS.values()) == accelerator.TOTAL == 480
    )
    for test in (*accelerator.TESTS, *accelerator.QUICK_TESTS):
        path, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / path).read_text(), test


@pytest.mark.slow
def test_a_part_that_fails_is_reported_and_the_others_go_on(monkeypatch, tmp_path):
    def out_of_memory(report, quick):
        report.headline["before"] = 1.0
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory while trying to allocate 1 byte\nmore")

    def endless(report, quick):
        while True:
            time.sleep(0.01)

    def good(report, quick):
        assert quick
        assert set(kept(tmp_path)) == {"tests", "memory", "endless"}  # written after each part
        report.headline["speed"] = 2.0

    parts = {"memory": Part(60, out_of_memory), "endless": Part(0.2, endless), "good": Part(60, good)}
    monkeypatch.setattr(accelerator, "PARTS", parts)
    report = measured(tmp_path, list(parts), tests=(False, "1 failed; FAILED a::b"))
    rows = kept(tmp_path)
    assert report.tables["parts"] == list(rows.values())
    assert {name: row["result"] for name, row in rows.items()} == {
        "tests": "failed", "memory": "failed", "endless": "failed", "good": "passed",
    }  # fmt: skip
    assert rows["tests"]["reason"] == "1 failed; FAILED a::b"
    assert rows["memory"]["reason"] == (
        "RuntimeError: RESOURCE_EXHAUSTED: out of memory while trying to allocate 1 byte"
    )
    assert rows["endless"]["reason"] == "TimeoutError: not finished after 0.2 s"
    assert 0.2 <= rows["endless"]["seconds"] < 30
    assert report.headline["memory: before"] == 1  # what it measured before it failed
    assert report.headline["good: speed"] == 2
    assert report.headline["failed"] == 3
    assert json.loads((tmp_path / "memory.json").read_text())["notes"] == ["failed: " + rows["memory"]["reason"]]


def test_no_part_begins_after_the_total_budget(monkeypatch, tmp_path):
    monkeypatch.setattr(accelerator, "PARTS", {"late": Part(60, lambda report, quick: pytest.fail("it began"))})
    report = measured(tmp_path, ["late"], began=time.monotonic() - accelerator.TOTAL)
    (row,) = report.tables["parts"]
    assert (row["result"], row["reason"]) == ("failed", "no time is left of 480 s")


@pytest.mark.slow
def test_failed_tests_are_named(monkeypatch, tmp_path):
    path = tmp_path / "test_two.py"
    path.write_text("def test_right():\n    pass\n\n\ndef test_wrong():\n    assert False\n")
    monkeypatch.setattr(accelerator, "QUICK_TESTS", (str(path),))
    passed, said = accelerator.run_tests(True, 60)
    assert not passed
    assert said.startswith("1 failed, 1 passed") and said.endswith("test_two.py::test_wrong")
    path.write_text("import time\n\n\ndef test_long():\n    time.sleep(60)\n")
    assert accelerator.run_tests(True, 3) == (False, "not finished after 3 s")


@pytest.mark.slow
@pytest.mark.parametrize(("part", "field"), [("tests", "failed"), ("equilibrium", "equilibrium: markets_that_meet")])
def test_parts_run_from_the_command_line(part, field, tmp_path):
    """`.ci/run` runs all of them."""
    command = [sys.executable, "-m", "benchmarks", "accelerator", "--quick", "--json"]
    command += ["--parts", part, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr + done.stdout
    assert field in json.loads(done.stdout.splitlines()[-1])
    assert kept(tmp_path)[part]["result"] == "passed"


@pytest.mark.slow
def test_figure_shows_what_was_measured(tmp_path):
    report = accelerator.Report("scale")
    assert accelerator.draw({"scale": report}, report.machine) is None
    rows = [{"bidders": n, "µs per step": 2.0 * n, "bytes per step": 1.0} for n in (2, 4)]
    report.tables["growth with bidders"] = rows
    fig = accelerator.draw({"scale": report}, report.machine)
    (ax,) = fig.axes
    assert ax.lines[0].get_xydata().tolist() == [[2, 5e5], [4, 5e5]]

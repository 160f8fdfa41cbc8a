"""Kill and interrupt runs at random moments, resume them, and compare their results with an uninterrupted run.

    python -m benchmarks sigkill --count 100 --log sigkill.log

Trials alternate between all learners, a monolithic agent, a sweep, a reproduction and a run of two processes, and
between the signals KILL, INT and TERM. Each trial runs a command in a separate process, sends it a signal at a random
moment, and runs it again. In half of the trials the moment lies between the first file of results and the end, in the
others between start and end. In a quarter of the trials a second process is started on the same folder. The exit code
must be that of the signal, or 0. Finally every result file must equal that of an uninterrupted run bit for bit:
parameters, metrics (without missing or repeated rows), returns, bids, reports. No process may remain. The log has one
line per trial.

``--self-check`` breaks a copy of the package in three ways, and fails unless each fault is detected. It runs trials
until one of them detects the fault.
"""

import argparse
import concurrent.futures
import csv
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SMALL = [
    "--steps",
    "8192",
    "--instances",
    "8",
    "--horizon",
    "16",
    "--minibatch",
    "32",
    "--log-every",
    "1",
    "--seeds",
    "2",
]
RUNS = {
    "ppo": ["Chain-v0", "--learner", "ppo"],
    "valuation": ["Chain-v0", "--learner", "valuation"],
    "reinforce": ["Bandit-v0", "--learner", "reinforce"],
    "monolith": ["Chain-v0", "--agent", "monolith"],
}
KINDS = [*RUNS, "sweep", "reproduce", "launch"]
SIGNALS = {"KILL": signal.SIGKILL, "INT": signal.SIGINT, "TERM": signal.SIGTERM}
_ENDS = {  # exit codes of a command that is sent the signal; 0 if it ended first
    name: (0, -number, 128 + number) for name, number in SIGNALS.items()
}
_TIMES = {"compile_seconds", "run_seconds", "steps_per_second", "steps/s", "compiled_now", "folder"}
_REFUSED = ("is being written by", "holds a finished run", "holds an unfinished run", "holds an interrupted run")


def reproduce(folder: str) -> None:
    """Run ``jaxmarket reproduce`` with a small experiment: two trained conditions and a market of rules."""
    from jaxmarket import TrainConfig, experiments  # noqa: PLC0415  only the child process needs them
    from jaxmarket.cli import main  # noqa: PLC0415
    from jaxmarket.deep_market.evaluation import accuracy  # noqa: PLC0415
    from jaxmarket.experiments import Experiment, Grow, Quick, Table, Train  # noqa: PLC0415
    from jaxmarket.experiments.bucket_brigade import plans  # noqa: PLC0415

    small: dict[str, Any] = {"steps": 4096, "instances": 8, "horizon": 16, "minibatch": 32, "log_every": 1}
    runs = [
        Train(f"rate-{rate}", TrainConfig("Bandit-v0", learner="valuation", learning_rate=rate, **small))
        for rate in (0.01, 0.02)
    ]
    plan = plans("multiplexer", quick=True)["market"]
    market = dataclasses.replace(plan.market, capacity=64, instances=4)
    plan = dataclasses.replace(plan, market=market, num_agents=32, rounds=400, chunks=40)

    def rows(results: Any) -> list[dict[str, Any]]:
        found = [{"condition": run.name, "return": results[run.name].summary["return_mean"]} for run in runs]
        measured = results["market"].measured
        return found + [{"condition": name, "return": float(each[-1].mean())} for name, each in measured.items()]

    experiments.EXPERIMENTS["small"] = Experiment(
        "small", "a small one", "none", [*runs, Grow("market", plan, accuracy)], tables=[Table("table", "", rows)],
        seeds=2, quick=Quick(seeds=2),
    )  # fmt: skip
    main(["reproduce", "small", "--out", folder])


def command(kind: str, folder: Path, *, resume: bool, every: float = 0) -> list[str]:
    """The arguments that start or resume a command, with a checkpoint every ``every`` seconds."""
    program = [sys.executable, "-P", "-m", "jaxmarket"]
    keep = ["--checkpoint-every", str(every)]
    if kind == "reproduce":
        return [sys.executable, "-P", __file__, str(folder)]
    if kind == "sweep":
        vary = ["--learner", "valuation", "--vary", "learning_rate=0.01,0.02,0.04"]
        return [*program, "sweep", "Bandit-v0", *SMALL, *vary, "--out", str(folder)]
    if kind == "launch":
        program += ["launch", "--processes", "2"]
    if resume:
        return [*program, "train", "--resume", str(folder), *keep]
    given = RUNS["valuation" if kind == "launch" else kind]
    return [*program, "train", *given, *SMALL, "--out", str(folder), *keep]


def ending(folder: Path) -> dict[str, str]:
    """Digests of all result files in a folder; those of JSON omit the fields that depend on time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == "sweep.csv":
            rows = csv.DictReader(path.read_text().splitlines())
            found[name] = json.dumps(_timeless(list(rows))).encode()
        elif path.suffix in (".csv", ".safetensors") and "checkpoints" not in name:
            found[name] = path.read_bytes()
        elif path.suffix == ".json":
            found[name] = json.dumps(_timeless(json.loads(path.read_bytes()))).encode()
        elif path.name.endswith(".tmp") or path.name == ".lock":
            found[name] = b"left behind"
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(item) for name, item in value.items() if name not in _TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def processes_on(folder: Path) -> list[int]:
    """Ids of processes whose command line contains the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def run(kind: str, folder: Path, env: dict[str, str], *, resume: bool) -> subprocess.CompletedProcess:
    """Run a command until it ends."""
    again = command(kind, folder, resume=resume)
    return subprocess.run(again, capture_output=True, text=True, check=False, env=env, timeout=600)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One command to interrupt: how, when, and whether a second process is started on its folder."""

    kind: str
    signal: str
    aimed: bool  # whether the moment is after the first file of results
    moment: float  # as a fraction of the command's seconds, or of those after the first file
    # Start of a second process: a fraction of the command's seconds, or of those up to the first file of results.
    second: float | None
    every: float  # seconds between checkpoints


@dataclasses.dataclass(frozen=True)
class Whole:
    """The result of an uninterrupted command."""

    seconds: float
    begun: float  # seconds until the first file of results
    ending: dict[str, str]


def attempt(trial: Trial, folder: Path, whole: Whole, env: dict[str, str]) -> tuple[str, str]:
    """Interrupt a command, resume it, and compare. Returns its state at the signal, and the errors ("" if none)."""
    wrong = []
    begun = command(trial.kind, folder, resume=False, every=trial.every)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "env": env}
    began = time.monotonic()
    first = subprocess.Popen(begun, **quiet)
    second = None
    if trial.second is not None:
        _until(began + trial.second * (whole.begun if trial.aimed else whole.seconds))
        second = subprocess.Popen(begun, **quiet)
    if trial.aimed:
        while first.poll() is None and not _has_results(folder):
            time.sleep(0.01)
        time.sleep(trial.moment * (whole.seconds - whole.begun))
    else:
        _until(began + trial.moment * whole.seconds)
    where = _where(folder) if first.poll() is None else "after its end"
    first.send_signal(SIGNALS[trial.signal])
    error = first.communicate(timeout=600)[1]
    wrong += _misbehaved(trial, where, first.returncode, error)
    where += f", exit code {first.returncode}"
    if second is not None:
        error = second.communicate(timeout=600)[1]
        if second.returncode != 0 and not any(reason in error for reason in _REFUSED):
            wrong.append(f"the second process ended with {second.returncode}: {(error.splitlines() or [''])[-1]}")
        where += f"; second process: {'refused' if second.returncode else 'finished'}"
    deadline = time.monotonic() + 15
    while (left := processes_on(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if left:
        wrong.append(f"{len(left)} processes left")
        for process in left:
            os.kill(process, signal.SIGKILL)
    again = trial.kind in (*RUNS, "launch") and (folder / "config.json").exists()
    done = run(trial.kind, folder, env, resume=again)
    if done.returncode:
        wrong.append(f"called again, exit code {done.returncode}: {(done.stderr.splitlines() or [''])[-1]}")
    found, wanted = ending(folder), whole.ending
    differ = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if differ:
        wrong.append(f"other bits: {', '.join(differ)}")
    shutil.rmtree(folder, ignore_errors=True)
    return where, "; ".join(wrong)


def _misbehaved(trial: Trial, where: str, code: int, error: str) -> list[str]:
    """The errors in how a command ended after a signal."""
    # Ctrl-C during imports ends with Python's own traceback: there is no folder yet, so no result can be lost.
    if trial.signal == "INT" and code != 0 and where.startswith("before its folder") and "KeyboardInterrupt" in error:
        return []
    wrong = []
    if "Traceback" in error:
        before, _, after = error.partition("Traceback")
        wrong.append(f"traceback: {' | '.join([*before.splitlines()[-1:], *after.splitlines()])}")
    refused = trial.second is not None and any(reason in error for reason in _REFUSED)
    if code == 0 and where.startswith("before"):
        wrong.append("the signal had no effect")
    elif code not in _ENDS[trial.signal] and not refused:
        wrong.append(f"ended with {code}: {(error.splitlines() or [''])[-1]}")
    return wrong


def _until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def _has_results(folder: Path) -> bool:
    return any(path.suffix in (".csv", ".safetensors") for path in folder.rglob("*"))


def _where(folder: Path) -> str:
    if not folder.exists():
        return "before its folder"
    if any(folder.rglob("*.tmp")):
        return "within a write"
    steps = [int(path.stem) for path in folder.rglob("checkpoints/*.safetensors")]
    if any(folder.rglob("networks.safetensors")) or any(folder.rglob("report.json")):
        return "while it wrote results"
    return f"after {max(steps)}" if steps else "before a checkpoint"


def trials(kinds: list[str], count: int, seed: int, signals: list[str], share: float) -> list[Trial]:
    """Trials of alternating kinds and signals, with random moments and second processes."""
    rng = random.Random(seed)
    found = []
    for i in range(count):
        aimed = rng.random() < 0.5
        moment = rng.uniform(0, 1) ** (3 if aimed else 1)  # training is in the first part of this time
        second = rng.uniform(0, 1 if aimed else moment) if rng.random() < share else None
        kind, sign = kinds[i % len(kinds)], signals[(i // len(kinds)) % len(signals)]
        found.append(Trial(kind, sign, aimed, moment, second, every=rng.choice([0, 0.2])))
    return found


def undisturbed(kinds: list[str], work: Path, env: dict[str, str]) -> dict[str, Whole]:
    """Run every kind twice without interruption; the second run finds its programs in the compilation cache.

    Raises:
        SystemExit: a command failed.
    """
    found = {}
    for kind in kinds:
        for name in ("cold", "whole"):
            folder, began, begun = work / f"{kind}-{name}", time.monotonic(), None
            with (work / "errors").open("w+") as errors:
                quiet = {"stdout": subprocess.DEVNULL, "stderr": errors, "env": env}
                process = subprocess.Popen(command(kind, folder, resume=False), **quiet)
                while process.poll() is None:
                    if begun is None and _has_results(folder):
                        begun = time.monotonic() - began
                    time.sleep(0.01)
                if process.returncode or begun is None:
                    errors.seek(0)
                    raise SystemExit(f"{kind}: exit code {process.returncode}\n{errors.read()[-3000:]}")
            found[kind] = Whole(time.monotonic() - began, begun, ending(folder))
    return found


def stress(
    wanted: list[Trial], work: Path, env: dict[str, str], jobs: int = 2, say: Any = print, *, until_wrong: bool = False
) -> list[str]:
    """Run all trials, or until one fails, and return a line for each and a last line with the count."""
    # Compile first; otherwise most signals would arrive during compilation.
    env = {"JAX_COMPILATION_CACHE_DIR": f"{work}/cache", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"} | env
    whole = undisturbed(list(dict.fromkeys(trial.kind for trial in wanted)), work, env)

    def run_trial(number: int) -> str:
        trial = wanted[number]
        where, wrong = attempt(trial, work / f"trial-{number}", whole[trial.kind], env)
        moment = f"{trial.moment:4.0%} of {'the writing' if trial.aimed else 'the run'}"
        text = f"{number + 1:4} {trial.kind:10} {trial.signal:4} at {moment}, {where}: {wrong or _FINE}"
        say(text, flush=True)
        return text

    lines: list[str] = []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        while len(lines) < len(wanted) and not (until_wrong and _noticed(lines)):
            begun = len(lines)
            lines += pool.map(run_trial, range(begun, min(begun + jobs, len(wanted)) if until_wrong else len(wanted)))
    same = len(lines) - len(_noticed(lines))
    lines.append(f"{same} of {len(lines)} ended with the same bits, no row lost or doubled, no process left")
    say(lines[-1], flush=True)
    return lines


_FINE = "same bits"


def _noticed(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.endswith(f": {_FINE}")]


FAULTS = {
    "a resumed run forgets its last row of metrics": (
        "runs/fitting.py",
        "chunks = len(next(iter(metrics.values()), ()))",
        "chunks = max(0, len(next(iter(metrics.values()), ())) - 1)",
        {"kind": "valuation", "signal": "KILL"},
    ),
    "signals are not held back": (
        "runs/interrupts.py",
        "if threading.current_thread() is threading.main_thread():",
        "if False:",
        {"kind": "valuation", "signal": "INT"},
    ),
    "a folder may have two writers": (
        "runs/files.py",
        "            _lock(handle, path)\n",
        "",
        {"kind": "ppo", "signal": "KILL", "second": True},
    ),
}


def self_check(work: Path, seed: int) -> int:
    """Inject each fault into a copy of the package, and return the number of undetected faults."""
    missed = 0
    source = Path(__file__).parent.parent / "jaxmarket"
    for name, (file, old, new, how) in FAULTS.items():
        copy = work / name.replace(" ", "-")
        shutil.copytree(source, copy / "jaxmarket", ignore=shutil.ignore_patterns("__pycache__"))
        path = copy / "jaxmarket" / file
        text = path.read_text()
        if old not in text:
            raise SystemExit(f"{name}: {file} no longer has the line to break")
        path.write_text(text.replace(old, new))
        env = os.environ | {"PYTHONPATH": str(copy), "JAX_COMPILATION_CACHE_DIR": f"{work}/cache"}
        chosen = trials([how["kind"]], 12, seed, [how["signal"]], share=how.get("second", 0))
        # A second process must start while the first one writes, so before the signal; other faults show early.
        low, high = (0.7, 1) if how.get("second") else (0, 0.1)
        chosen = [
            dataclasses.replace(trial, aimed=True, moment=low + (high - low) * trial.moment, every=0.2)
            for trial in chosen
        ]
        lines = stress(chosen, copy, env, say=lambda *_, **__: None, until_wrong=True)[:-1]
        noticed = _noticed(lines)
        missed += not noticed
        told = "MISSED"
        if noticed:
            told = f"noticed in {len(noticed)} of {len(lines)} trials, e.g. {' '.join(noticed[0].split())[:300]}"
        print(f"{name}: {told}", flush=True)
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="number of trials")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the trials")
    parser.add_argument("--jobs", type=int, default=2, help="trials that run in parallel")
    parser.add_argument("--log", type=Path, help="a file for the lines of all trials")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="kinds of command; all by default")
    parser.add_argument(
        "--self-check",
        action="store_true",
        help="inject faults into a copy of the package; fail unless each is detected",
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # commands inherit SIG_IGN, which a shell sets after "&"
    with tempfile.TemporaryDirectory() as work:
        if options.self_check:
            return int(self_check(Path(work), options.seed) > 0)
        chosen = trials(options.kinds, options.count, options.seed, list(SIGNALS), 0.25)
        lines = stress(chosen, Path(work), dict(os.environ), options.jobs)
    if options.log:
        options.log.write_text("\n".join(lines) + "\n")
    return int(bool(_noticed(lines[:-1])))


if __name__ == "__main__":  # the process of `command` that reproduces
    reproduce(sys.argv[1])

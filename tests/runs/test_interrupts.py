"""Signals take effect between updates; folders have one writer; what was interrupted says so."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from folders import contents, reseal

import jaxmarket
from jaxmarket import TrainConfig, experiments, fit
from jaxmarket.cli import main
from jaxmarket.environments import FiniteMDP
from jaxmarket.keys import from_words
from jaxmarket.runs import comparison, files, fitting, run_folder, sweeps
from jaxmarket.runs.interrupts import Deferred, retained

SMALL = {"steps": 1024, "instances": 8, "horizon": 16, "minibatch": 32, "seeds": 2, "log_every": 1}
CONFIG = TrainConfig("Bandit-v0", learner="valuation", **SMALL)
KEY = jax.random.key(0)


# --- Deferred


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_waits_and_is_handled_once_by_the_handler_that_was_there(number):
    seen, before = [], signal.signal(number, lambda n, _: seen.append(n))
    mine = signal.getsignal(number)
    try:
        with Deferred() as signals:
            assert not signals.pending
            for _ in range(3):
                signal.raise_signal(number)
            assert signals.pending
            assert seen == []
        assert seen == [number]
        assert signal.getsignal(number) is mine
    finally:
        signal.signal(number, before)


def test_ctrl_c_is_raised_where_the_context_ends_also_out_of_an_inner_one_and_after_an_error():
    done = []
    with pytest.raises(KeyboardInterrupt), Deferred():
        with Deferred() as inner:
            signal.raise_signal(signal.SIGINT)
            done.append(inner.pending)
        done.append("after the inner one")
    with pytest.raises(KeyboardInterrupt) as stop, Deferred():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("of the body")
    assert done == [True, "after the inner one"]
    assert isinstance(stop.value.__context__, ValueError)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ignored_signals_stay_ignored_and_other_threads_hold_nothing_back():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Deferred() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert not signals.pending
    finally:
        signal.signal(signal.SIGHUP, before)
    handlers = []

    def other():
        with Deferred():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


def test_an_interrupt_at_any_bytecode_leaves_the_pair_whole_and_the_handlers_in_place():
    """Two counters go up together; the signal comes at the first bytecode, then at the second, and so on."""
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def both(pair):
        with Deferred():
            pair[0] += 1
            pair[1] += 1

    codes = {function.__code__ for function in (both, Deferred.__enter__, Deferred.__exit__, Deferred._hold)}

    def run(at):
        """Whether the function was still running then."""
        pair, count = [0, 0], 0

        def trace(frame, event, _):
            nonlocal count
            if frame.f_code not in codes:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                count += 1
                if count == at:
                    signal.raise_signal(signal.SIGINT)
            return trace

        before = sys.gettrace()
        try:
            sys._getframe().f_trace_opcodes = True  # Python 3.12 looks here when tracing begins
            sys.settrace(trace)
            both(pair)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        assert pair[0] == pair[1], at
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers, at
        return count >= at

    at = 1
    while run(at):
        at += 1
    assert at > 100


# --- retained


class Interrupting:
    """Python drops what ``__del__`` raises, as it does in callbacks of the garbage collector."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_that_python_drops_is_raised_by_the_next_deferred_context_or_at_the_end(capsys):
    done = []
    with pytest.raises(KeyboardInterrupt), retained():
        Interrupting()
        done.append("dropped")
        with Deferred():
            done.append("not reached")
    with pytest.raises(KeyboardInterrupt), retained(), retained():
        Interrupting()
        done.append("dropped")
    with pytest.raises(ValueError, match="another"), retained():
        Interrupting()
        raise ValueError("another")
    with Deferred():
        done.append("nothing is left over")
    assert done == ["dropped", "dropped", "nothing is left over"]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("where", ["_compile", "result"])
def test_fit_stops_at_a_ctrl_c_that_python_drops(monkeypatch, tmp_path, where):
    """It arrives while the program compiles, or while the result is evaluated; the run resumes with the same bits."""
    before = getattr(fitting._Run, where)

    def interrupted(self, *given):
        Interrupting()
        return before(self, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fitting._Run, where, interrupted)
        fit(CONFIG, KEY, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert bool(list((tmp_path / "run").glob("checkpoints/*"))) == (where == "result")
    again = fit(CONFIG, KEY, tmp_path / "run", resume=True, progress=False)
    assert again.summary["params_sha256"] == fit(CONFIG, KEY, progress=False).summary["params_sha256"]


# --- fit


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupts") / "whole"
    return fit(CONFIG, KEY, folder, progress=False), folder


def later(seconds, number, times=1):
    """Send this process a signal after so long, from a thread."""

    def send():
        time.sleep(seconds)
        for _ in range(times):
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.slow
def test_fit_interrupted_at_random_moments_ends_with_the_same_files(tmp_path, whole):
    """Real signals, in this process, several times in one run: at a random moment of a random chunk, once or thrice."""
    rng, threads, stops = random.Random(0), [], 0

    def soon(record):
        if not record.earlier and record.chunk in (1, 3, 6):
            threads.append(later(rng.uniform(0, 0.003), signal.SIGINT, times=rng.choice([1, 3])))
            time.sleep(rng.choice([0, 0.01]))

    for _ in range(8):
        try:
            result = fit(
                CONFIG, KEY, tmp_path / "run", resume=True, progress=False, loggers=[soon], checkpoint_every=1e9
            )
        except KeyboardInterrupt:  # one that came late, in the evaluation
            stops += 1
            continue
        finally:
            for thread in threads:
                try:
                    thread.join()
                except KeyboardInterrupt:
                    thread.join()
        stops += result.summary["interrupted"]
        if not result.summary["interrupted"]:
            break
    assert stops >= 2
    assert not result.summary["interrupted"]
    for found, wanted in zip(contents(tmp_path / "run"), contents(whole[1]), strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.slow
def test_a_run_without_a_folder_keeps_state_and_metrics_together(whole):
    def interrupt(record):
        if record.chunk == 3:
            signal.raise_signal(signal.SIGINT)

    result = fit(CONFIG, KEY, progress=False, loggers=[interrupt])
    assert result.summary["interrupted"]
    assert len(result.metrics["return_mean"]) == 3
    assert int(result.state.update[0]) == 3


CHILD = """
    import os, signal, sys, time
    import jax, jaxmarket
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config = jaxmarket.TrainConfig("Bandit-v0", learner="valuation", steps=1024, instances=8, horizon=16, minibatch=32,
                                   seeds=2, log_every=1)
    def log(record):
        if record.chunk == 3 and not record.earlier:
            os.kill(os.getpid(), signal.{number})
            time.sleep(.05)
            print("recorded", flush=True)
    jaxmarket.fit(config, jax.random.key(0), sys.argv[1], progress=False, loggers=[log], checkpoint_every=1e9)
"""


@pytest.mark.slow
@pytest.mark.bits
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_a_terminated_run_is_checkpointed_first_and_goes_on_to_the_same_bits(tmp_path, whole, number):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD.replace("{number}", number)), str(tmp_path / "run")],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == -getattr(signal, number), done.stderr
    assert done.stdout == "recorded\n"
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["3.safetensors"]
    with pytest.raises(ValueError, match=r"this run is not finished; .*jaxmarket train --resume"):
        run_folder.read(tmp_path / "run")
    fit(CONFIG, KEY, tmp_path / "run", resume=True, progress=False)
    for found, wanted in zip(contents(tmp_path / "run"), contents(whole[1]), strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


# --- one writer


def test_a_folder_has_one_writer_and_the_lock_ends_with_it(tmp_path):
    with files.owned(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / ".lock").read_text())["process"] == os.getpid()
        with pytest.raises(ValueError, match=rf"being written by process {os.getpid()} on .*; wait"):
            fit(CONFIG, KEY, tmp_path / "run")
        with pytest.raises(ValueError, match="being written by process"):
            sweeps.sweep("Bandit-v0", {"learning_rate": [0.1, 0.2]}, tmp_path / "run", learner="valuation", **SMALL)
        with pytest.raises(ValueError, match="being written by process"):
            experiments.reproduce("redundancy", tmp_path / "run", quick=True)
    assert list((tmp_path / "run").iterdir()) == []
    with files.owned(tmp_path / "run"):
        pass


@pytest.mark.slow
def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import sys, time; from jaxmarket.runs.files import owned\n"
        "with owned(sys.argv[1]): print(1, flush=True); time.sleep(99)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    child.stdout.read(1)
    with pytest.raises(ValueError, match=rf"being written by process {child.pid} on"), files.owned(tmp_path):
        pass
    child.kill()
    child.wait()
    assert (tmp_path / ".lock").exists()
    with files.owned(tmp_path):
        pass


@pytest.mark.parametrize(
    ("process", "host", "free"), [(None, None, False), (2**22 + 1, None, True), (1, "elsewhere", False)]
)
def test_where_the_file_system_has_no_locks_the_named_process_decides(tmp_path, monkeypatch, process, host, free):
    monkeypatch.setattr(files, "fcntl", None)
    named = {"process": process or os.getpid(), "host": host or files.socket.gethostname()}
    (tmp_path / ".lock").write_text(json.dumps(named))
    if free:
        with files.owned(tmp_path):
            pass
    else:
        with pytest.raises(ValueError, match=r"no longer exists, remove .*\.lock"), files.owned(tmp_path):
            pass


# --- what a run belongs to


def test_an_interrupted_run_says_so_and_is_not_taken_for_a_finished_one(tmp_path, capsys):
    def interrupt(record):
        if record.chunk == 2 and not record.earlier:
            raise KeyboardInterrupt

    fit(CONFIG, KEY, tmp_path / "run", progress=False, loggers=[interrupt])
    assert run_folder.read(tmp_path / "run").interrupted
    with pytest.raises(ValueError, match="holds an interrupted run; resume it"):
        fit(CONFIG, KEY, tmp_path / "run", progress=False)
    with pytest.warns(UserWarning, match="interrupted, .*--resume"):
        jaxmarket.load(tmp_path / "run")
    for command in ("evaluate", "watch"):
        main([command, str(tmp_path / "run")])
        assert "interrupted" in capsys.readouterr().out


@pytest.mark.slow
def test_a_transfer_needs_nothing_but_its_own_folder(tmp_path, monkeypatch, whole):
    """It may be resumed from another directory, and when what it started from is gone."""
    first = fit(CONFIG, jax.random.key(5), tmp_path / "first", progress=False)
    wanted = fit(CONFIG, KEY, progress=False, start=first, freeze=["policy/*"]).summary["params_sha256"]
    monkeypatch.chdir(tmp_path)

    def kill(record):
        raise RuntimeError("killed in its first chunk")

    with pytest.raises(RuntimeError):
        fit(CONFIG, KEY, "second", start="first", freeze=["policy/*"], progress=False, loggers=[kill])
    (tmp_path / "first").rename(tmp_path / "gone")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    main(["train", "--resume", "../second"])
    assert run_folder.read("../second").summary["params_sha256"] == wanted
    assert (
        fit(CONFIG, KEY, "../second", freeze=["policy/*"], resume=True, progress=False).summary["params_sha256"]
        == wanted
    )
    assert wanted != whole[0].summary["params_sha256"]


@pytest.fixture
def stopped(tmp_path):
    def interrupt(record):
        if record.chunk == 3 and not record.earlier:
            raise KeyboardInterrupt

    fit(CONFIG, KEY, tmp_path / "run", progress=False, loggers=[interrupt])
    return tmp_path / "run"


def edited(folder, change):
    settings = json.loads((folder / "config.json").read_text())
    change(settings)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def test_parts_of_another_run_and_edited_settings_are_refused(stopped, whole, tmp_path):
    other = tmp_path / "other"
    fit(CONFIG, jax.random.key(9), other, progress=False)
    with pytest.raises(ValueError, match=r"networks\.safetensors: changed since it was written"):
        (stopped / "networks.safetensors").write_bytes((other / "networks.safetensors").read_bytes())
        run_folder.read(stopped)
    (stopped / "checkpoints" / "8.safetensors").write_bytes((other / "checkpoints" / "8.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"8\.safetensors: a checkpoint of another run: key is .*\[0, 9\].* there"):
        fit(CONFIG, KEY, stopped, resume=True, progress=False)
    (stopped / "checkpoints" / "8.safetensors").unlink()
    edited(stopped, lambda settings: settings["run"]["key"].update(words=[0, 9]))
    with pytest.raises(ValueError, match=r"config\.json: changed since it was written"):
        main_refuses(stopped)
    reseal(stopped)  # as if it had been written so
    with pytest.raises(ValueError, match="a checkpoint of another run: key is"):
        fit(CONFIG, jax.random.key(9), stopped, resume=True, progress=False)


def main_refuses(folder):
    config, origin = run_folder.read_config(folder)
    fit(config, from_words(origin.key), folder, resume=True, progress=False)


def test_other_versions_are_refused_unless_they_are_accepted(stopped, whole, monkeypatch):
    true = run_folder.versions()
    monkeypatch.setattr(run_folder, "versions", lambda: true | {"jax": "99.0"})
    with pytest.raises(ValueError, match=rf"written with jax {true['jax']} \(here 99.0\).*--other-versions"):
        fit(CONFIG, KEY, stopped, resume=True, progress=False)
    found = fit(CONFIG, KEY, stopped, resume=True, other_versions=True, progress=False)
    assert found.summary["params_sha256"] == whole[0].summary["params_sha256"]
    monkeypatch.setattr(run_folder, "versions", lambda: true | {"jax": "100.0"})
    assert fit(CONFIG, KEY, stopped, resume=True, progress=False).summary == found.summary  # finished: only shown


def test_versions_are_those_that_did_the_work(stopped, monkeypatch):
    """After a resume with other versions the last checkpoint and the summary name the versions that computed them."""
    true = run_folder.versions()
    edited(stopped, lambda settings: settings["run"]["versions"].update(jax="0.0.1"))
    reseal(stopped)
    (stopped / "checkpoints" / "3.safetensors").unlink()
    result = fit(CONFIG, KEY, stopped, resume=True, other_versions=True, progress=False)
    assert result.summary["versions"] == true
    monkeypatch.setattr(run_folder, "versions", lambda: true | {"jax": "0.0.1"})
    (stopped / "SHA256SUMS").write_text("")
    (stopped / "summary.json").unlink()
    reseal(stopped)
    with pytest.raises(ValueError, match=r"8\.safetensors was written with jax"):
        fit(CONFIG, KEY, stopped, resume=True, progress=False)


def test_switches_that_change_bits_are_part_of_a_run(stopped):
    with jax.enable_x64(True), pytest.raises(ValueError, match=r"jax_enable_x64 False \(here True\)"):
        run_folder.RunFolder(stopped, CONFIG, run_folder.Origin.of(KEY), resume=True).__enter__()


def test_a_folder_without_checksums_is_kept(tmp_path, whole):
    """A run of an earlier version, or an incomplete copy, is neither read nor overwritten."""
    copy = tmp_path / "copy"
    shutil.copytree(whole[1], copy)
    (copy / "SHA256SUMS").unlink()
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    for read in (run_folder.read, run_folder.read_config, lambda folder: fit(CONFIG, KEY, folder, progress=False)):
        with pytest.raises(ValueError, match="SHA256SUMS is missing or empty"):
            read(copy)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_finished_run_is_shown_whole_or_not_at_all(tmp_path, whole):
    copy = tmp_path / "copy"
    shutil.copytree(whole[1], copy)
    shutil.rmtree(copy / "checkpoints")

    def interrupt(record):
        raise KeyboardInterrupt

    with pytest.raises(ValueError, match="whose last state cannot be shown"):
        fit(CONFIG, KEY, copy, resume=True, progress=False, loggers=[interrupt])
    assert not (copy / "checkpoints").exists()  # nothing is written to a finished run
    again = fit(CONFIG, KEY, copy, resume=True, progress=False)
    assert again.summary["params_sha256"] == whole[0].summary["params_sha256"]


def test_environment_objects_of_one_name_are_distinguished(tmp_path):
    one, other = (FiniteMDP([[[1.0]] * 2], [[0.0, reward]], 0.5, [1.0], horizon=3) for reward in (1.0, -5.0))
    made = {"learner": "valuation", **SMALL}
    with run_folder.RunFolder(tmp_path / "run", TrainConfig(one, **made), run_folder.Origin.of(KEY)):
        pass
    with pytest.raises(ValueError, match="holds another run: env is"):
        fit(TrainConfig(other, **made), KEY, tmp_path / "run", resume=True, progress=False)
    same = FiniteMDP([[[1.0]] * 2], [[0.0, 1.0]], 0.5, [1.0], horizon=3)
    assert run_folder.config_to_dict(TrainConfig(same, **made)) == run_folder.config_to_dict(TrainConfig(one, **made))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["interrupted", "frozen", "unfinished"])
def test_a_sweep_takes_only_its_own_finished_runs(tmp_path, how):
    config = TrainConfig("Bandit-v0", learner="valuation", learning_rate=0.1, **SMALL)

    def stop(record):
        if how != "frozen" and record.chunk == 2:
            raise KeyboardInterrupt if how == "interrupted" else RuntimeError

    freeze = ["policy/*"] if how == "frozen" else []
    cell = tmp_path / "learning_rate=0.1"
    try:
        fit(config, KEY, cell, progress=False, loggers=[stop], freeze=freeze, checkpoint_every=0)
    except RuntimeError:
        assert how == "unfinished"
    with pytest.raises(ValueError, match=r"interrupted|frozen is|unfinished run"):
        sweeps.train([sweeps.NamedConfig(cell.name, config)], tmp_path, progress=False)


def test_a_folder_that_was_replaced_is_not_written_to(tmp_path):
    def replace(record):
        if record.chunk == 2:
            shutil.rmtree(tmp_path / "run")
            (tmp_path / "run").mkdir()

    with pytest.raises(ValueError, match="was removed or replaced while it was written"):
        fit(CONFIG, KEY, tmp_path / "run", progress=False, loggers=[replace], checkpoint_every=1e9)
    assert list((tmp_path / "run").iterdir()) == []
    with files.owned(tmp_path / "a"):
        shutil.rmtree(tmp_path / "a")
        with files.owned(tmp_path / "a"):
            pass
        assert not (tmp_path / "a" / ".lock").exists()


@pytest.mark.parametrize("name", ["SHA256SUMS.tmp", "metrics.csv"])
def test_nothing_is_written_through_a_link(stopped, tmp_path, name):
    target = tmp_path / "target"
    target.write_text("mine")
    (stopped / name).unlink(missing_ok=True)
    (stopped / name).symlink_to(target)
    fit(CONFIG, KEY, stopped, resume=True, progress=False)
    assert target.read_text() == "mine"


def test_metrics_are_written_whole_at_the_end(stopped, whole):
    """Rows that were lost or doubled on the way do not get a checksum."""

    def spoil(record):
        if record.chunk == 6:
            rows = (stopped / "metrics.csv").read_text()
            (stopped / "metrics.csv").write_text(rows[:200] + rows)

    fit(CONFIG, KEY, stopped, resume=True, progress=False, loggers=[spoil])
    assert (stopped / "metrics.csv").read_text() == (whole[1] / "metrics.csv").read_text()


@pytest.mark.parametrize("read", [run_folder.read, run_folder.read_config, comparison.read])
def test_a_name_that_is_too_long_is_no_run(read):
    with pytest.raises(ValueError, match="expected a run folder"):
        read("x" * 300)


@pytest.mark.slow  # test_config has the words of such keys
@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_a_run_goes_on_with_the_generator_it_began_with(tmp_path, impl, capsys):
    fit(CONFIG, jax.random.key(0, impl=impl), tmp_path / "run", progress=False)
    main(["train", "--resume", str(tmp_path / "run"), "--json"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["key"]["impl"] == impl


def test_a_folder_from_elsewhere_is_refused_before_it_costs_anything(tmp_path, whole):
    copy = tmp_path / "copy"
    shutil.copytree(whole[1], copy)
    edited(copy, lambda settings: settings.update(clones=10**9))
    reseal(copy)
    with pytest.raises(ValueError, match="bidders"):
        jaxmarket.load(copy)
    (copy / "config.json").unlink()
    os.mkfifo(copy / "config.json")
    with pytest.raises(ValueError, match=r"config\.json: cannot be read \(not a regular file\)"):
        jaxmarket.load(copy)


# --- the command line, in processes of its own


def command(*arguments):
    return [sys.executable, "-P", "-m", "jaxmarket", *map(str, arguments)]


def interrupted(arguments, ready, number, rng, cwd):
    """Start a command, signal it at a random moment after it is ready, and return its exit code."""
    child = subprocess.Popen(arguments, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while child.poll() is None and not ready():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.1))
    for _ in range(rng.choice([1, 2])):
        child.send_signal(number)
    return child.wait(timeout=120)


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_command_line_interrupted_at_a_random_moment_ends_with_the_same_files(tmp_path, number):
    flags = ["Bandit-v0", "--learner", "valuation", "--steps", "300000", "--seeds", "2"]
    subprocess.run(command("train", *flags, "--out", tmp_path / "whole"), check=True, capture_output=True, timeout=300)
    run, rng = tmp_path / "run", random.Random(int(number))
    rows = run / "metrics.csv"
    code = interrupted(
        command("train", *flags, "--out", run),
        lambda: rows.exists() and rows.stat().st_size > 2000,
        number,
        rng,
        tmp_path,
    )
    assert code in ((130, 0) if number == signal.SIGINT else (-number, 0))
    subprocess.run(command("train", "--resume", run), check=True, capture_output=True, timeout=300)
    for found, wanted in zip(contents(run), contents(tmp_path / "whole"), strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.slow
def test_two_processes_that_start_on_one_folder_leave_one_run(tmp_path):
    flags = ["Bandit-v0", "--learner", "valuation", "--steps", "100000", "--seeds", "2", "--out", "run"]
    children = [
        subprocess.Popen(command("train", *flags, "--seed", i), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    errors = [child.communicate(timeout=300)[1] for child in children]
    codes = [child.returncode for child in children]
    assert sorted(codes) == [0, 2]
    assert "is being written by process" in errors[codes.index(2)] or "holds a" in errors[codes.index(2)]
    found = run_folder.read(tmp_path / "run")
    assert found.summary["key"]["words"] == [0, codes.index(0)]
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1 + 2 * found.config.settings.chunks


@pytest.mark.slow
def test_an_interrupted_sweep_keeps_what_was_finished(tmp_path):
    flags = ["Bandit-v0", "--learner=valuation", "--steps=100000", "--vary=learning_rate=1e-3,3e-3,1e-2", "--out=sweep"]
    done = tmp_path / "sweep" / "learning_rate=0.001" / "SHA256SUMS"
    code = interrupted(command("sweep", *flags), done.exists, signal.SIGINT, random.Random(0), tmp_path)
    assert code in (130, 0)
    before = done.stat().st_mtime_ns
    subprocess.run(command("sweep", *flags), cwd=tmp_path, check=True, capture_output=True, timeout=300)
    assert done.stat().st_mtime_ns == before
    assert len(list(Path(tmp_path / "sweep").glob("*/SHA256SUMS"))) == 3

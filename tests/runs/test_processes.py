"""Real processes of a launch: what they listen on, and that they never outlive the one that launched them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from thinned import thinned

from jaxmarket.cli import main
from jaxmarket.runs import processes

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")

TRAIN = ["train", "Bandit-v0", "--learner=valuation", "--steps=100000000", "--instances=8", "--horizon=16"]


def until(holds, seconds=60):
    """Wait for something, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def marked(mark):
    """Ids of running processes with this in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if state not in "ZX" and mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.fixture
def start(tmp_path):
    """Start a program in the test's folder; whatever is left of it is killed. Returns it and its processes' ids."""
    mark = f"JAXMARKET_TEST={tmp_path}"
    begun = []

    def run(*words, **more):
        env = {**os.environ, "JAXMARKET_TEST": str(tmp_path)}
        settings = {"cwd": tmp_path, "env": env, "stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
        begun.append(subprocess.Popen([sys.executable, *words], **{**settings, **more}))
        return begun[-1], lambda: marked(mark)

    yield run
    for process in marked(mark):
        os.kill(process, signal.SIGKILL)
    for process in begun:
        process.communicate()


# --- the end of the launching process


@pytest.mark.slow
@pytest.mark.parametrize("seconds", thinned([0.0, 2.0], lambda seconds: seconds == 0))
def test_workers_end_when_the_launcher_is_killed(start, seconds):
    """Also processes that are still importing or waiting for each other."""
    launcher, running = start("-P", "-m", "jaxmarket", "launch", "--processes=2", *TRAIN)
    until(lambda: len(running()) == 3)
    time.sleep(seconds)
    assert len(running()) == 3
    launcher.kill()
    until(lambda: not running(), 10)


@pytest.mark.full  # .ci/run has each half of it in a smaller test
def test_workers_end_in_training_and_listen_on_loopback(start, tmp_path):
    launcher, running = start(
        "-P", "-m", "jaxmarket", "launch", "--processes=2", *TRAIN, "--checkpoint-every=0", "--out=[a] run"
    )
    until(lambda: list(tmp_path.glob("[[]a[]] run/checkpoints/*")), 300)
    assert listening(running()) and all(map(is_loopback, listening(running())))
    workers = [process for process in running() if process != launcher.pid]
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)  # one that does not run cannot look at a pipe
    launcher.kill()
    until(lambda: not running(), 10)


WATCHED = """
import sys, time
from jaxmarket.runs.processes import end_with_parent
end_with_parent()
import os
assert "JAXMARKET_PARENT_PIPE" not in os.environ
print("watching", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("early", thinned([True, False], lambda early: not early))
def test_a_worker_notices_the_end_of_the_pipe(early):
    """The parent survives in this test, so the kernel does not end the process."""
    read, write = os.pipe()
    env = {**os.environ, "JAXMARKET_PARENT_PIPE": str(read)}
    worker = subprocess.Popen([sys.executable, "-c", WATCHED], env=env, pass_fds=[read], stdout=subprocess.PIPE)
    os.close(read)
    if not early:
        assert worker.stdout.readline() == b"watching\n"
        assert worker.poll() is None
    os.close(write)
    worker.communicate(timeout=60)
    assert worker.returncode == 1


STUBBED = """
import sys
from pathlib import Path
from jaxmarket import cli
stub = Path("stub")
stub.write_text("#!/bin/sh\\n" + sys.argv[1] + "\\necho >> up\\nexec sleep 60\\n")
stub.chmod(0o700)
sys.executable = str(stub.absolute())
cli.main(["launch", "--processes=3", "train", "Chain-v0", "--out=run"])
"""


def stubbed(start, tmp_path, trap=":"):
    """A launch whose workers only sleep."""
    launcher, running = start("-c", STUBBED, trap)
    until(lambda: (tmp_path / "up").exists() and len((tmp_path / "up").read_text()) == 3)
    return launcher, running


def test_a_killed_process_is_named_even_if_the_first_one_then_reports_invalid_input(tmp_path, monkeypatch):
    stub = tmp_path / "stub"
    stub.write_text('#!/bin/sh\ncase "$*" in *"--process 0 "*) exit 2;; esac\nkill -KILL $$\n')
    stub.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(stub))
    with pytest.raises(ChildProcessError, match=r"process 1 of 2 was killed \(SIGKILL\)"):
        processes.launch(["train", "Bandit-v0"], 2)


def test_invalid_input_is_reported_even_if_jax_then_aborts_the_others(tmp_path, monkeypatch):
    stub = tmp_path / "stub"
    stub.write_text('#!/bin/sh\ncase "$*" in *"--process 0 "*) exit 2;; esac\nkill -ABRT $$\n')
    stub.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(stub))
    assert processes.launch(["train", "Bandit-v0"], 2) == 2


@pytest.mark.slow  # the default run has SIGINT after an ignored SIGHUP, below
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_stop_the_workers_and_are_the_exit_code(start, tmp_path, name):
    launcher, running = stubbed(start, tmp_path)
    launcher.send_signal(signal.Signals[name])
    _, error = launcher.communicate(timeout=30)
    assert launcher.returncode == 128 + signal.Signals[name]
    assert error == f"jaxmarket: stopped by {name}\n"
    assert not running()


@pytest.mark.slow
def test_one_more_signal_kills_workers_that_do_not_stop(start, tmp_path):
    launcher, running = stubbed(start, tmp_path, "trap '' TERM")
    launcher.terminate()
    time.sleep(0.3)
    assert launcher.poll() is None
    began = time.monotonic()
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=30)
    assert launcher.returncode == 128 + signal.SIGTERM, "the first one counts"
    assert time.monotonic() - began < processes._GRACE - 1
    assert not running()


@pytest.mark.slow
def test_workers_that_do_not_stop_are_killed(start, tmp_path):
    launcher, running = stubbed(start, tmp_path, "trap '' TERM")
    launcher.terminate()
    launcher.communicate(timeout=processes._GRACE + 30)
    assert launcher.returncode == 128 + signal.SIGTERM
    assert not running()


@pytest.mark.slow
def test_an_ignored_hangup_then_ctrl_z_then_ctrl_c(start, tmp_path):
    """In one process, since each takes a second to start: ignored signals stay ignored, workers pause and stop too."""

    def states():
        return {Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] for process in running()}

    launcher, running = start(
        "-c", "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + STUBBED, ":"
    )  # as nohup does
    until(lambda: (tmp_path / "up").exists() and len((tmp_path / "up").read_text()) == 3)
    launcher.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert launcher.poll() is None and len(running()) == 4
    launcher.send_signal(signal.SIGTSTP)
    until(lambda: states() == {"T"}, 10)
    launcher.send_signal(signal.SIGCONT)
    until(lambda: states() == {"S"}, 10)
    launcher.send_signal(signal.SIGINT)
    _, error = launcher.communicate(timeout=30)
    assert launcher.returncode == 128 + signal.SIGINT
    assert error == "jaxmarket: stopped by SIGINT\n"
    assert not running()


@pytest.mark.parametrize("given", [["--out", "a b"], ["--out=a b"], ["--resume=a b"]])
def test_what_to_do_next_is_said_of_a_folder_with_a_run_in_it(given, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "launch", lambda *_: 143)
    for there in (False, True):
        if there:
            Path("a b").mkdir()
            Path("a b", "config.json").write_text("{}")
        with pytest.raises(SystemExit) as stopped:
            main(["launch", "--processes=2", "train", "Chain-v0", *given])
        assert stopped.value.code == 143
        again = "; resume with: jaxmarket launch --processes 2 train --resume 'a b'" * there
        assert capsys.readouterr().err == f"jaxmarket: stopped by SIGTERM{again}\n"


# --- the network


def listening(ids):
    """Addresses, in hexadecimal, on which these processes accept connections."""
    sockets = set()
    for process in ids:
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            try:
                sockets.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return [words[1].partition(":")[0] for words in lines if words[3] == "0A" and words[9] in sockets]


def is_loopback(address):
    return address in ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


JOINED = """
import ctypes, os, socket, sys
name, coordinator, number = sys.argv[1:]
try:  # a namespace in which the name of this machine stands for an address that others reach
    if ctypes.CDLL(None).unshare(0x04000000 | (0x10000000 if os.getuid() else 0)) == 0:
        socket.sethostname(name)
except OSError:
    pass
import jax
from jaxmarket.runs import processes
processes.join(coordinator, 2, int(number))
print("joined", jax.process_count(), flush=True)
sys.stdin.read()
os._exit(0)
"""


@pytest.mark.slow
def test_processes_of_one_machine_listen_on_loopback_only(start):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route, socket.socket() as free:
        try:
            route.connect(("192.0.2.1", 9))  # sends nothing
            outside = route.getsockname()[0]
        except OSError:
            outside = "127.0.0.1"
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    joined = [start("-c", JOINED, outside, coordinator, str(number), **pipes)[0] for number in (0, 1)]
    assert all("joined 2\n" in iter(process.stdout.readline, "") for process in joined)
    found = listening(process.pid for process in joined)
    assert len(found) >= 3, "the coordinator, and gloo in each process"
    assert all(map(is_loopback, found))
    joined[1].terminate()  # JAX would take this signal and go on
    assert joined[1].wait(10) == -signal.SIGTERM

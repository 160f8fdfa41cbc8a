"""Several processes as one run: each holds its part of the mesh, all run the same program, by ``jax.distributed``.

On one machine `launch` starts them all; on a cluster one process per machine (or per accelerator) is started with
the address of the first one and a number of its own, which is what `join` does with them.
"""

import contextlib
import ctypes
import functools
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

from jaxmarket.checking import whole
from jaxmarket.text import plain

__all__ = ["end_with_parent", "join", "launch", "leave"]

_POLL = 0.05  # seconds
_PATIENCE = 1.0
_GRACE = 5.0
_SAID = (2, 3)  # exit codes of the command line where it says itself what is wrong: refused, diverged
_LOOPBACK = "127.0.0.1"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PARENT = "JAXMARKET_PARENT_PIPE"  # a descriptor that is at its end once the launching process is gone


def join(coordinator: str, processes: int, process: int) -> None:
    """Make this process one of a run; before anything else starts JAX.

    Where the coordinator is a loopback address, this process listens on loopback only. Elsewhere process 0 listens on
    all interfaces of its machine, and every process on the address of its host's name; see ``docs/limits.md``.

    Args:
        coordinator: HOST:PORT of process 0, the same for all.
        processes: how many there are.
        process: the number of this one, from 0.

    Raises:
        ValueError: the numbers make no sense, or the others were not there in time.
    """
    processes = whole("processes", processes)
    if process not in range(processes):
        raise ValueError(f"process: of {processes} processes there are 0 to {processes - 1}, got {process}")
    host, _, port = coordinator.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()):
        raise ValueError(f"coordinator: expected HOST:PORT, got {coordinator!r}")
    # JAX's preemption service would take SIGTERM and do nothing about it: the process could not be terminated.
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)
    local = _is_loopback(host)
    try:
        jax.distributed.initialize(
            coordinator, processes, process, coordinator_bind_address=coordinator if local else None
        )
        if local:
            _collectives_on_loopback()
        # They connect now, while they are in step: on CPUs one that comes 30 seconds late finds nobody.
        multihost_utils.sync_global_devices("jaxmarket")
    except RuntimeError as error:
        reason = plain(str(error).splitlines()[0])
        raise ValueError(f"coordinator: the processes did not meet at {coordinator} ({reason})") from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name
        return False


def _collectives_on_loopback() -> None:
    """Let gloo listen on loopback; by default it listens on the address that the name of this machine stands for.

    JAX has no setting for it: the CPU backend is registered again, with gloo's address given.
    """
    from jax._src import distributed, xla_bridge  # noqa: PLC0415  private: nothing else of the library depends on it
    from jaxlib import _jax  # type: ignore[attr-defined]  # noqa: PLC0415

    gloo = _jax.make_gloo_tcp_collectives(
        distributed_client=distributed.global_state.client,  # type: ignore[arg-type]
        hostname=_LOOPBACK,
    )
    factory = functools.partial(xla_bridge.make_cpu_client, collectives=gloo)
    xla_bridge.register_backend_factory("cpu", factory, priority=0, fail_quietly=False)


def end_with_parent() -> None:
    """End this process when the one that launched it is gone, killed for instance; no-op in one that was not launched.

    A pipe tells, whose other end only the parent holds: it is at its end as soon as the parent is gone, also where that
    happened before this call. On Linux the kernel ends this process besides, even a stopped one.
    """
    pipe = os.environ.pop(_PARENT, None)  # not for processes that this one starts
    if pipe is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        os.read(int(pipe), 1)
        os._exit(1)

    threading.Thread(target=watch, name="watch of the parent", daemon=True).start()


def leave(code: int) -> NoReturn:
    """End this process of a run at once. An ordinary exit would wait for the others, and they for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def launch(command: Sequence[str], processes: int) -> int:
    """Start a run of several processes on this machine, over loopback, and see them through.

    The first one shows its output. When one dies the others, which would wait for it for ever, are stopped. They are
    stopped, too, by SIGINT, SIGTERM and SIGHUP to this process (a second signal kills them at once), and end when
    this process is killed. They are not in this process's group: Ctrl-C reaches them through this process only.

    Args:
        command: of the program, without what makes it one of several.
        processes: how many.

    Returns:
        0; 2 where the command was refused, 3 where every seed diverged, and the first process has said so; 128 + n
        after signal n.

    Raises:
        ValueError: the number makes no sense.
        ChildProcessError: one died; says which and how.
    """
    processes = whole("processes", processes)
    with socket.socket() as free:
        free.bind((_LOOPBACK, 0))
        coordinator = f"{_LOOPBACK}:{free.getsockname()[1]}"
    program = [sys.executable, "-P", "-m", "jaxmarket", "launch"]
    shared = [*program, "--coordinator", coordinator, "--processes", str(processes)]
    children: list[subprocess.Popen] = []
    codes: list[int | None] = []
    with _signals(children) as received, _pipe() as pipe, tempfile.TemporaryFile("w+", errors="replace") as said:
        # NCCL, which carries collectives between GPUs, listens on no loopback unless it is told to.
        env = {"NCCL_SOCKET_IFNAME": "lo", **os.environ, _PARENT: str(pipe)}
        try:
            for i in range(processes):
                quiet = {} if i == 0 else {"stdout": subprocess.DEVNULL, "stderr": said}
                settings = {"stdin": subprocess.DEVNULL, "env": env, "pass_fds": [pipe], "start_new_session": True}
                children.append(subprocess.Popen([*shared, "--process", str(i), *command], **settings, **quiet))
            while not received and any(c.poll() is None for c in children) and not any(c.poll() for c in children):
                time.sleep(_POLL)
            # A process that was killed takes others with it: it is the one to name. What is refused is so by all of
            # them, and the first one says it.
            killed = any((child.poll() or 0) < 0 for child in children)
            if not received and any(child.poll() is None for child in children):
                time.sleep(_POLL if killed else _PATIENCE)
            codes = [child.poll() for child in children]
        finally:
            _stop(children, received)
        if received:
            return 128 + received[0]
        failed = [i for i, code in enumerate(codes) if code]
        if not failed or codes[0] in _SAID:
            return codes[0] or 0
        first = min(failed, key=lambda i: codes[i] or 0)  # signals are negative, and not what others die of
        said.seek(0)
        tail = "" if failed == [0] else plain("".join(said.readlines()[-5:]).strip(), lines=True)
    raise ChildProcessError(
        f"process {first} of {processes} {_how(codes[first])}; the others were stopped" + (f". {tail}" if tail else "")
    )


@contextlib.contextmanager
def _signals(children: Sequence[subprocess.Popen]) -> Iterator[list[int]]:
    """The numbers of signals that ask this process to stop, as they come; Ctrl-Z pauses the children with it.

    Signals that this process was started to ignore, as by nohup, stay ignored.
    """
    received: list[int] = []
    before = {}

    def pause(*_: object) -> None:  # the terminal's signal does not reach the children
        for child in children:
            child.send_signal(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        for child in children:
            child.send_signal(signal.SIGCONT)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                stop = pause if number == signal.SIGTSTP else lambda number, _: received.append(number)
                before[number] = signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _pipe() -> Iterator[int]:
    """The end of a pipe to read from. The other one stays in this process, and is closed by its death."""
    ends = os.pipe()
    try:
        yield ends[0]
    finally:
        for end in ends:
            os.close(end)


def _stop(children: Sequence[subprocess.Popen], received: Sequence[int]) -> None:
    """Terminate those that run, and kill those that go on; at once where one more signal comes."""
    running = [child for child in children if child.poll() is None]
    for child in running:
        child.terminate()
    deadline, signals = time.monotonic() + _GRACE, len(received)
    while any(child.poll() is None for child in running):
        if time.monotonic() > deadline or len(received) > signals:
            for child in running:
                child.kill()
        time.sleep(_POLL)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed ({signal.Signals(-code).name})"
    return f"ended with exit code {code}"

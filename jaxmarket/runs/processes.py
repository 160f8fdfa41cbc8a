"""One run in several processes, with ``jax.distributed``: each holds a part of the mesh, all run the same program.

On one machine `launch` starts all processes. On a cluster, start one process per machine (or per accelerator), each of
which calls `join` with the address of the first one and its own number.
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

from jaxmarket.validation import check_int, escaped

__all__ = ["end_with_parent", "join", "launch", "leave"]

_POLL = 0.05  # seconds
_SETTLE = 1.0
_GRACE = 5.0
_EXPLAINED = (2, 3)  # exit codes with which the command line prints its own message: invalid input, diverged
_LOOPBACK = "127.0.0.1"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PARENT = "JAXMARKET_PARENT_PIPE"  # descriptor of a pipe that reaches its end when the launching process exits


def join(coordinator: str, processes: int, process: int) -> None:
    """Make this process part of a run. Call it before anything starts a JAX backend.

    If the coordinator is a loopback address, this process listens on loopback only. Otherwise process 0 listens on all
    interfaces of its machine, and every process on the address of its host name; see ``docs/limits.md``.

    Args:
        coordinator: HOST:PORT of process 0, the same for all.
        processes: number of processes.
        process: number of this process, from 0.

    Raises:
        ValueError: a number is out of range, or the processes did not connect in time.
    """
    processes = check_int("processes", processes)
    if process not in range(processes):
        raise ValueError(f"process: expected 0 to {processes - 1}, got {process}")
    host, _, port = coordinator.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()):
        raise ValueError(f"coordinator: expected HOST:PORT, got {coordinator!r}")
    # JAX's preemption service would intercept SIGTERM, and the process could not be terminated.
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)
    local = _is_loopback(host)
    try:
        jax.distributed.initialize(
            coordinator, processes, process, coordinator_bind_address=coordinator if local else None
        )
        if local:
            _collectives_on_loopback()
        # Connect now, while all processes are at the same point: on CPUs the connection times out after 30 seconds.
        multihost_utils.sync_global_devices("jaxmarket")
    except RuntimeError as error:
        reason = escaped(str(error).splitlines()[0])
        raise ValueError(
            f"coordinator: could not connect all processes at {coordinator} ({reason}); start them within 30 seconds"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a host name
        return False


def _collectives_on_loopback() -> None:
    """Let gloo listen on loopback; by default it listens on the address of this machine's host name.

    JAX has no option for this, so the CPU backend is registered again with an explicit address for gloo.
    """
    from jax._src import distributed, xla_bridge  # noqa: PLC0415  private; used nowhere else in the library
    from jaxlib import _jax  # type: ignore[attr-defined]  # noqa: PLC0415

    gloo = _jax.make_gloo_tcp_collectives(
        distributed_client=distributed.global_state.client,  # type: ignore[arg-type]
        hostname=_LOOPBACK,
    )
    factory = functools.partial(xla_bridge.make_cpu_client, collectives=gloo)
    xla_bridge.register_backend_factory("cpu", factory, priority=0, fail_quietly=False)


def end_with_parent() -> None:
    """End this process when the process that launched it exits or is killed; no-op if `launch` did not start it.

    Only the parent holds the write end of a pipe, so the pipe reaches its end when the parent exits, even before this
    call. On Linux the kernel also kills this process, even if it is stopped.
    """
    pipe = os.environ.pop(_PARENT, None)  # removed, so that child processes do not inherit it
    if pipe is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        os.read(int(pipe), 1)
        os._exit(1)

    threading.Thread(target=watch, name="watch of the parent", daemon=True).start()


def leave(code: int) -> NoReturn:
    """Exit at once. A regular exit would wait for the other processes, and these for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def launch(command: Sequence[str], processes: int) -> int:
    """Run a command in several processes on this machine, over loopback, and wait for them.

    The first process shows its output. If one dies, the others, which would wait for it forever, are stopped. SIGINT,
    SIGTERM and SIGHUP to this process also stop them (a second signal kills them at once), and they end if this process
    is killed. They are not in this process's group: Ctrl-C reaches them only through this process.

    Args:
        command: arguments of ``jaxmarket``, such as ``train Chain-v0``.
        processes: number of processes.

    Returns:
        0 on success; 2 for invalid input and 3 if every seed diverged, with the message of the first process; 128 + n
        after signal n.

    Raises:
        ValueError: ``processes`` is less than 1.
        ChildProcessError: a process failed; the message names it and its exit code or signal.
    """
    processes = check_int("processes", processes)
    with socket.socket() as free:
        free.bind((_LOOPBACK, 0))
        coordinator = f"{_LOOPBACK}:{free.getsockname()[1]}"
    program = [sys.executable, "-P", "-m", "jaxmarket", "launch"]
    shared = [*program, "--coordinator", coordinator, "--processes", str(processes)]
    children: list[subprocess.Popen] = []
    codes: list[int | None] = []
    with _signals(children) as received, _pipe() as pipe, tempfile.TemporaryFile("w+", errors="replace") as errors:
        # NCCL, which carries collectives between GPUs, does not use loopback by default.
        env = {"NCCL_SOCKET_IFNAME": "lo", **os.environ, _PARENT: str(pipe)}
        try:
            for i in range(processes):
                quiet = {} if i == 0 else {"stdout": subprocess.DEVNULL, "stderr": errors}
                settings = {"stdin": subprocess.DEVNULL, "env": env, "pass_fds": [pipe], "start_new_session": True}
                children.append(subprocess.Popen([*shared, "--process", str(i), *command], **settings, **quiet))
            while not received and any(c.poll() is None for c in children) and not any(c.poll() for c in children):
                time.sleep(_POLL)
            # A process that was killed makes others fail, whatever their exit codes, so name that one. Invalid input
            # is rejected by all processes, and the first one prints the message.
            killed = any(_killed(child.poll()) for child in children)
            if not received and any(child.poll() is None for child in children):
                time.sleep(_POLL if killed else _SETTLE)
            codes = [child.poll() for child in children]
            killed = any(_killed(code) for code in codes)
        finally:
            _stop(children, received)
        if received:
            return 128 + received[0]
        failed = [i for i, code in enumerate(codes) if code]
        if not failed or (codes[0] in _EXPLAINED and not killed):
            return codes[0] or 0
        first = min(failed, key=lambda i: codes[i] or 0)  # signals are negative: a killed process comes first
        errors.seek(0)
        tail = "" if failed == [0] else escaped("".join(errors.readlines()[-5:]).strip(), lines=True)
    raise ChildProcessError(
        f"process {first} of {processes} {_how(codes[first])}; the others were stopped" + (f". {tail}" if tail else "")
    )


@contextlib.contextmanager
def _signals(children: Sequence[subprocess.Popen]) -> Iterator[list[int]]:
    """A growing list of the received signals that ask this process to stop; Ctrl-Z also pauses the children.

    Signals that are ignored from the start, as under nohup, stay ignored.
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
    """The read end of a pipe. The write end stays in this process, and closes when this process dies."""
    ends = os.pipe()
    try:
        yield ends[0]
    finally:
        for end in ends:
            os.close(end)


def _stop(children: Sequence[subprocess.Popen], received: Sequence[int]) -> None:
    """Terminate the running children; kill those still running after a grace period, or at the next signal."""
    running = [child for child in children if child.poll() is None]
    for child in running:
        child.terminate()
    deadline, signals = time.monotonic() + _GRACE, len(received)
    while any(child.poll() is None for child in running):
        if time.monotonic() > deadline or len(received) > signals:
            for child in running:
                child.kill()
        time.sleep(_POLL)


def _killed(code: int | None) -> bool:
    """Whether a process was killed from outside; JAX aborts a process whose coordinator has exited."""
    return code is not None and code < 0 and code != -signal.SIGABRT


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed ({signal.Signals(-code).name})"
    return f"failed with exit code {code}"

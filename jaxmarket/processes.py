"""Several processes as one run: each holds its part of the mesh, all run the same program, by ``jax.distributed``.

On one machine `launch` starts them all; on a cluster one process per machine (or per accelerator) is started with
the address of the first one and a number of its own, which is what `join` does with them.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

__all__ = ["join", "launch", "leave"]

_POLL = 0.05  # seconds
_PATIENCE = 1.0
_GRACE = 5.0
_SAID = (2, 3)  # exit codes of the command line where it says itself what is wrong: refused, diverged


def join(coordinator: str, processes: int, process: int) -> None:
    """Make this process one of a run; before anything else starts JAX.

    Args:
        coordinator: HOST:PORT of process 0, the same for all.
        processes: how many there are.
        process: the number of this one, from 0.

    Raises:
        ValueError: the numbers make no sense, or the others were not there in time.
    """
    if processes < 1 or not 0 <= process < processes:
        raise ValueError(f"process: of {processes} processes there are 0 to {processes - 1}, got {process}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator: expected HOST:PORT, got {coordinator!r}")
    try:
        jax.distributed.initialize(coordinator, processes, process)
        # They connect now, while they are in step: on CPUs one that comes 30 seconds late finds nobody.
        multihost_utils.sync_global_devices("jaxmarket")
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"coordinator: the processes did not meet at {coordinator} ({reason})") from error


def leave(code: int) -> NoReturn:
    """End this process of a run at once. An ordinary exit would wait for the others, and they for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def launch(command: Sequence[str], processes: int) -> int:
    """Start a run of several processes on this machine, over loopback, and see them through.

    The first one shows its output. When one dies the others, which would wait for it for ever, are stopped; so they are
    when this process is terminated.

    Args:
        command: of the program, without what makes it one of several.
        processes: how many.

    Returns:
        0; or 2 where the command was refused, 3 where every seed diverged: the first process has said so.

    Raises:
        ValueError: the number makes no sense.
        ChildProcessError: one died; says which and how.
    """
    if processes < 1:
        raise ValueError(f"processes: expected a whole number >= 1, got {processes}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    program = [sys.executable, "-P", "-m", "jaxmarket", "launch"]
    shared = [*program, "--coordinator", coordinator, "--processes", str(processes)]
    children: list[subprocess.Popen] = []
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        for i in range(processes):
            quiet = {} if i == 0 else {"stdout": subprocess.DEVNULL, "stderr": said}
            children.append(subprocess.Popen([*shared, "--process", str(i), *command], **quiet))
        try:
            while any(child.poll() is None for child in children) and not any(child.poll() for child in children):
                time.sleep(_POLL)
            # A process that was killed takes others with it: it is the one to name. What is refused is so by all of
            # them, and the first one says it.
            killed = any((child.poll() or 0) < 0 for child in children)
            if any(child.poll() is None for child in children):
                time.sleep(_POLL if killed else _PATIENCE)
            codes = [child.poll() for child in children]
        finally:
            _stop(children)
        failed = [i for i, code in enumerate(codes) if code]
        if not failed or codes[0] in _SAID:
            return codes[0] or 0
        first = min(failed, key=lambda i: codes[i] or 0)  # signals are negative, and not what others die of
        said.seek(0)
        tail = "" if failed == [0] else "".join(said.readlines()[-5:]).strip()
    raise ChildProcessError(
        f"process {first} of {processes} {_how(codes[first])}; the others were stopped" + (f". {tail}" if tail else "")
    )


def _stop(children: Sequence[subprocess.Popen]) -> None:
    running = [child for child in children if child.poll() is None]
    for child in running:
        child.terminate()
    deadline = time.monotonic() + _GRACE
    for child in running:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed ({signal.Signals(-code).name})"
    return f"ended with exit code {code}"

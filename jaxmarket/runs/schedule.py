"""Run tasks that depend on each other in a few threads, with one progress bar."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import graphlib
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxmarket.runs.interrupts import Deferred
from jaxmarket.view import tables

__all__ = ["Running", "ScheduledTask", "run_tasks"]


class Running:
    """What a task uses while it runs: it reports progress, and compiles alone.

    Attributes:
        folder: where a task may save parts of its result, to continue if it is repeated; None if there is none.

    Args:
        report: ``(share, note)``, the share of the task that is done.
        stop: set when tasks must end.
        compiling: a lock per program, shared by all tasks.
    """

    def __init__(
        self, report: Callable[[float, str], None], stop: threading.Event, compiling: dict[Hashable, threading.Lock]
    ) -> None:
        self._report, self._stop, self._compiling = report, stop, compiling
        self._held = contextlib.ExitStack()
        self.folder: Path | None = None

    def compile(self, program: Hashable) -> None:
        """Wait until no other task compiles an equal program; `show` ends the compilation."""
        self._held.enter_context(self._compiling.setdefault(program, threading.Lock()))
        self.check()

    def show(self, share: float, note: str) -> None:
        """Report the share of the task that is done.

        Raises:
            CancelledError: tasks must end.
        """
        self._held.close()
        self.check()
        self._report(share, note)

    def check(self) -> None:
        """Raise `concurrent.futures.CancelledError` if tasks must end."""
        if self._stop.is_set():
            raise concurrent.futures.CancelledError

    def close(self) -> None:
        """Release the program."""
        self._held.close()


@dataclasses.dataclass(frozen=True)
class ScheduledTask:
    """A part of a larger computation.

    Attributes:
        name: unique.
        run: computes the result, in a thread.
        keep: saves the result, and returns what `run_tasks` returns for the task and a line to show; in the main
            thread, where signals wait until it is done.
        after: names of the tasks that must be kept before this one runs.
        work: amount of work, in the unit of the progress bar.
    """

    name: str
    run: Callable[[Running], Any]
    keep: Callable[[Any], tuple[Any, str]]
    after: tuple[str, ...] = ()
    work: float = 1


def run_tasks(
    tasks: Sequence[ScheduledTask],
    show: tables.Show,
    on_failure: Callable[[ScheduledTask, Exception], None] | None = None,
) -> dict[str, Any]:
    """Run every task whose ``after`` have been kept, in the given order; on a CPU two at a time.

    After an interruption, tasks under way are lost and finished ones are kept.

    Args:
        tasks: the tasks.
        show: of `jaxmarket.view.tables.progress`.
        on_failure: is called with a task that raises, and with every task that needs it; the others continue. Without
            it, the first exception ends all tasks.

    Returns:
        What was kept, by name.

    Raises:
        ValueError: tasks need each other, or tasks that do not exist, or have the same name; nothing has run then.
    """
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"name: expected unique names, got {', '.join(twice)} more than once; rename them")
    needs = {task.name: task.after for task in tasks}
    for name, after in needs.items():
        if unknown := set(after) - needs.keys():
            raise ValueError(f"inputs: {name!r} needs {', '.join(sorted(unknown))}; choose from {', '.join(needs)}")
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        raise ValueError(f"inputs: {', '.join(error.args[1])} need each other; remove an input") from error
    work = _Work(list(tasks), show, on_failure)
    workers = min(2, os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            while work.submit(pool):
                for future in concurrent.futures.wait(work.futures, return_when="FIRST_COMPLETED").done:
                    work.finish(future)
        except BaseException:
            show.say("stopping: running conditions stop at their next progress report, finished ones are kept")
            work.stop.set()
            pool.shutdown(cancel_futures=True)
            for future in list(work.futures):  # finished in the meantime
                if not future.cancelled() and future.exception() is None:
                    work.keep(future)
            raise
    return work.kept


class _Work:
    """The state of `run_tasks`."""

    def __init__(
        self,
        tasks: list[ScheduledTask],
        show: tables.Show,
        on_failure: Callable[[ScheduledTask, Exception], None] | None,
    ) -> None:
        self.tasks, self.waiting, self.show, self.on_failure = tasks, list(tasks), show, on_failure
        self.futures: dict[concurrent.futures.Future, ScheduledTask] = {}
        self.kept: dict[str, Any] = {}
        self.failed: set[str] = set()
        self.shares = dict.fromkeys((task.name for task in tasks), 0.0)
        self.compiling: dict[Hashable, threading.Lock] = {}
        self.stop = threading.Event()

    def submit(self, pool: concurrent.futures.Executor) -> bool:
        """Submit the tasks that can run; whether any is under way."""
        while lost := [task for task in self.waiting if self.failed.intersection(task.after)]:
            for task in lost:
                self.waiting.remove(task)
                names = ", ".join(sorted(self.failed.intersection(task.after)))
                self._fail(task, RuntimeError(f"needs {names}, which failed"))
        for task in list(self.waiting):
            if self.kept.keys() >= set(task.after):
                self.waiting.remove(task)
                self.futures[pool.submit(self._run, task)] = task
        return bool(self.futures)

    def _report(self, task: ScheduledTask, share: float, note: str) -> None:
        self.shares[task.name] = share
        done = sum(self.shares[each.name] * each.work for each in self.tasks)
        self.show(done, sum(each.work for each in self.tasks), f"{task.name} {note}".strip())

    def _run(self, task: ScheduledTask) -> Any:
        running = Running(functools.partial(self._report, task), self.stop, self.compiling)
        try:
            running.check()
            return task.run(running)
        finally:
            running.close()

    def finish(self, future: concurrent.futures.Future) -> None:
        """Keep the result of a task, or report that it failed."""
        task, error = self.futures[future], future.exception()
        if error is None:
            try:
                self.keep(future)
                return
            except Exception as raised:
                error = raised
        elif not isinstance(error, Exception):
            raise error
        self.futures.pop(future, None)
        self._fail(task, error)

    def keep(self, future: concurrent.futures.Future) -> None:
        """Keep the result of a task."""
        with Deferred():  # before the future is forgotten: an interruption that was held back is raised here
            task = self.futures.pop(future)
            self.kept[task.name], line = task.keep(future.result())
        self._report(task, 1, "")
        if line:
            self.show.say(line)

    def _fail(self, task: ScheduledTask, error: Exception) -> None:
        if self.on_failure is None:
            raise error
        self.failed.add(task.name)
        self._report(task, 1, "")
        self.on_failure(task, error)

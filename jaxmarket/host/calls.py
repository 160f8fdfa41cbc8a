"""Concurrent calls of agents that may raise, stall or return invalid values, in daemon threads with a time-out."""

import asyncio
import concurrent.futures.thread
import dataclasses
import functools
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any

from jaxmarket.validation import escaped

__all__ = ["Calls", "Reply", "Usage", "describe"]


_MAX_REASON = 300  # characters of a reason


@dataclasses.dataclass(frozen=True)
class Usage:
    """What an agent, or a call of it, has used: tokens of a language model, and seconds."""

    tokens: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Reply:
    """The result of a call: its value, the reason if the call failed (empty otherwise), and its duration in seconds.

    ``used`` is what a call that did not fail has used.
    """

    value: Any
    reason: str
    seconds: float
    used: Usage = Usage()


class Calls:
    """Calls agents concurrently, with at most one running call per agent.

    Python cannot stop a thread, so a call that exceeds its time-out continues in the background. It delays neither
    other calls nor the exit of the process; the same holds for workers of thread pools that it started. Its agent is
    not called again until the call has ended, and the late answer is ignored.
    """

    def __init__(self) -> None:
        self._running: dict[str, tuple[str, Future[Reply]]] = {}

    def ask(
        self,
        what: str,
        calls: Mapping[str, Callable[[], Any]],
        seconds: float,
        read: Callable[[Any], tuple[Any, str]] = lambda value: (value, ""),
        usage: Callable[[str], Usage | None] = lambda agent: None,
    ) -> dict[str, Reply]:
        """Start all calls at once and return their replies.

        Args:
            what: the name of the call, used in reasons.
            calls: the calls by agent. If a call returns an awaitable, it is awaited in an event loop of its thread.
            seconds: time-out of all calls together.
            read: converts an answer to ``(value, reason)``. It runs in the thread of the call, because methods of the
                answer may stall, too.
            usage: what an agent has used so far, by its name; None if it does not count, and its calls then use the
                seconds that they take. It runs in the thread of the call.

        Returns:
            A `Reply` by agent, in the order of ``calls``.
        """
        start = time.perf_counter()
        seconds = min(seconds, threading.TIMEOUT_MAX)
        replies: dict[str, Reply] = {}
        asked: dict[str, Future[Reply]] = {}
        for agent, call in calls.items():
            former, future = self._running.get(agent, ("", None))
            if future is not None and not future.done():
                replies[agent] = Reply(None, f"busy: its {former} still runs", 0.0)
                continue
            asked[agent] = future = Future()
            self._running[agent] = (what, future)
            thread = threading.Thread(
                target=_answer,
                args=(future, call, read, seconds, functools.partial(usage, agent)),
                name=f"{agent}: {what}",
                daemon=True,
            )
            try:
                thread.start()
            except RuntimeError as error:  # the system cannot start another thread
                future.set_result(Reply(None, describe(error), 0.0))
        done, _ = wait(asked.values(), max(0.0, start + seconds - time.perf_counter()))
        for agent, future in asked.items():
            late = Reply(None, "late", time.perf_counter() - start)
            replies[agent] = future.result() if future in done else late
        return {agent: replies[agent] for agent in calls}


def _answer(
    future: "Future[Reply]",
    call: Callable[[], Any],
    read: Callable[[Any], tuple[Any, str]],
    seconds: float,
    usage: Callable[[], Usage | None],
) -> None:
    start = time.perf_counter()
    value, reason, used = None, "", None
    try:
        before = usage()
        answer = call()
        if inspect.isawaitable(answer):
            answer = asyncio.run(_within(answer, seconds))
        value, reason = read(answer)
        after = None if reason else usage()
        if before is not None and after is not None:
            # A count that falls would be a payment to the agent.
            used = Usage(max(0, after.tokens - before.tokens), max(0.0, after.seconds - before.seconds))
    except _LateError:
        reason = "late"
    except BaseException as error:  # including SystemExit, which must not end the process
        reason = describe(error)
    took = time.perf_counter() - start
    future.set_result(Reply(value, reason, took, used or Usage(0, 0.0 if reason else took)))


class _LateError(Exception):
    """An awaitable was cancelled, unlike one that raised a TimeoutError of its own."""


async def _within(answer: Awaitable[Any], seconds: float) -> Any:
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            return await answer
    except TimeoutError as error:
        if scope.expired():
            raise _LateError from error
        raise


def describe(error: BaseException) -> str:
    """Describe an agent's exception for a log: its type and message on one line of at most 300 characters."""
    try:
        kind = str.__str__(type(error).__name__)
        # Unbound methods of str, because __str__ may return a subclass. Long texts are cut first, to bound the work.
        text = " ".join(str.__getitem__(str(error), slice(10 * _MAX_REASON)).split())
    except BaseException:  # raised by a hostile __str__, or by the metaclass
        return "an exception that cannot be shown"
    return escaped(f"{kind}: {text}" if text else kind)[:_MAX_REASON]


def _abandon_pool_threads() -> None:
    """Keep concurrent.futures from joining, at exit, the pool threads that agents started, which may never end.

    Threads started by a daemon thread are daemons, so these are the daemon threads. Threads of users' pools are not.
    """
    workers: Any = concurrent.futures.thread._threads_queues  # private, because no public API abandons a thread
    for thread in list(workers):
        if thread.daemon:
            workers.pop(thread, None)


# Registered after the function of concurrent.futures, and therefore called before it.
threading._register_atexit(_abandon_pool_threads)  # type: ignore[attr-defined]

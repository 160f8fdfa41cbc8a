"""Calls of agents that may crash, stall or answer nonsense: each in a daemon thread, under a time-out."""

import asyncio
import dataclasses
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any

__all__ = ["Calls", "Reply"]


@dataclasses.dataclass(frozen=True)
class Reply:
    """What became of a call: its value, why there is none (empty if there is), and the seconds it took."""

    value: Any
    reason: str
    seconds: float


class Calls:
    """Asks agents, one call at a time for each.

    A thread cannot be killed. One that stalls is left to itself: it keeps neither the others nor the exit of the
    process waiting, and its agent is not called again until it is over. Its answer is not wanted any more then.
    """

    def __init__(self) -> None:
        self._running: dict[str, tuple[str, Future[Reply]]] = {}

    def ask(
        self,
        what: str,
        calls: Mapping[str, Callable[[], Any]],
        seconds: float,
        read: Callable[[Any], tuple[Any, str]] = lambda value: (value, ""),
    ) -> dict[str, Reply]:
        """Make all these calls at once.

        Args:
            what: the name of the call, for reasons.
            calls: by agent. One that returns an awaitable has it run in an event loop of its own.
            seconds: from now on until answers are late, for all of them.
            read: makes ``(value, reason)`` of an answer; part of the call, as an answer's methods may stall too.

        Returns:
            A reply for each call, in their order.
        """
        start = time.perf_counter()
        replies: dict[str, Reply] = {}
        asked: dict[str, Future[Reply]] = {}
        for agent, call in calls.items():
            former, future = self._running.get(agent, ("", None))
            if future is not None and not future.done():
                replies[agent] = Reply(None, f"busy: its {former} still runs", 0.0)
                continue
            asked[agent] = future = Future()
            self._running[agent] = (what, future)
            # The pools of concurrent.futures join their threads at exit: a stalled agent would hold the process.
            thread = threading.Thread(
                target=_answer, args=(future, call, read, seconds), name=f"{agent}: {what}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # the system has no thread left
                future.set_result(Reply(None, _describe(error), 0.0))
        done, _ = wait(asked.values(), max(0.0, start + seconds - time.perf_counter()))
        for agent, future in asked.items():
            late = Reply(None, "late", time.perf_counter() - start)
            replies[agent] = future.result() if future in done else late
        return {agent: replies[agent] for agent in calls}


def _answer(
    future: "Future[Reply]", call: Callable[[], Any], read: Callable[[Any], tuple[Any, str]], seconds: float
) -> None:
    start = time.perf_counter()
    try:
        answer = call()
        if inspect.isawaitable(answer):
            answer = asyncio.run(_within(answer, seconds))
        value, reason = read(answer)
    except _LateError:
        value, reason = None, "late"
    except BaseException as error:  # SystemExit too: whatever an agent raises is its own failure
        value, reason = None, _describe(error)
    future.set_result(Reply(value, reason, time.perf_counter() - start))


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


def _describe(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())
    except BaseException:  # a hostile __str__
        text = ""
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__

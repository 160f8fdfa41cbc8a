"""Signals that wait until state and records agree.

Python runs signal handlers between any two bytecodes of the main thread. One that raises, as Ctrl-C does, between the
update of a state and the record of it leaves the two apart, and a checkpoint made of them is of no run at all.
"""

import inspect
import signal
import threading

__all__ = ["Deferred"]

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name)]


class Deferred:
    """A context in which INT, TERM and HUP are held back, however often they come; they take effect where it ends.

    Each signal that came is then handled once, by the handler that was there before: Ctrl-C raises
    ``KeyboardInterrupt`` from the ``with`` statement, TERM ends the process. Ignored signals stay ignored. Contexts
    nest. In other threads than the main one, where Python never runs signal handlers, nothing is held back::

        while not done:
            with Deferred() as signals:
                while not (done or signals.pending):
                    state = advance(state)
                    records.append(state.record)
                save(state, records)
    """

    def __init__(self) -> None:
        self._before: dict[int, object] = {}
        self._received: set[int] = set()
        self._holding = False

    @property
    def pending(self) -> bool:
        """Whether a signal came."""
        return bool(self._received)

    def __enter__(self) -> "Deferred":
        """Hold signals back."""
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in _SIGNALS}
            # None: a handler that was not installed from Python could not be put back.
            self._before = {n: old for n, old in handlers.items() if old not in (None, signal.SIG_IGN)}
            self._holding = True
            try:
                for number in reversed(self._before):  # INT first: it may raise until its handler is replaced
                    signal.signal(number, self._hold)
            except BaseException:  # from a handler of the user's
                self._release()
                raise
        return self

    def __exit__(self, *exception: object) -> None:
        """Put the handlers back, and handle what came."""
        self._release()
        for number in self._before:
            if number in self._received:
                self._handle(number)

    def _release(self) -> None:
        try:
            for number, handler in self._before.items():  # INT last: it may raise as soon as its handler is back
                signal.signal(number, handler)  # type: ignore[arg-type]
        finally:
            self._holding = False

    def _hold(self, number: int, _: object) -> None:
        if self._holding:
            self._received.add(number)
        else:  # this handler is still there because an exception cut `__exit__` or `__enter__` short
            self._handle(number)

    def _handle(self, number: int) -> None:
        handler = self._before[number]
        if callable(handler):
            handler(number, inspect.currentframe())
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

"""Deferred signals: handlers run when state and records are consistent.

Python runs signal handlers between any two bytecodes of the main thread. If a handler raises (as Ctrl-C does) after the
update of a state and before its record is stored, a checkpoint of the two would be inconsistent.
"""

import inspect
import signal
import threading

__all__ = ["Deferred"]

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name)]


class Deferred:
    """A context that defers INT, TERM and HUP, however often they arrive, until it ends.

    At the end, each signal that arrived is handled once by its previous handler: Ctrl-C raises ``KeyboardInterrupt``
    from the ``with`` statement, TERM ends the process. Ignored signals stay ignored. Contexts can be nested. Outside
    the main thread, where Python never runs signal handlers, the context has no effect::

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
        """Whether a signal arrived."""
        return bool(self._received)

    def __enter__(self) -> "Deferred":
        """Replace the handlers."""
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in _SIGNALS}
            # None stands for a handler that was not installed from Python, which could not be restored.
            self._before = {n: old for n, old in handlers.items() if old not in (None, signal.SIG_IGN)}
            self._holding = True
            try:
                for number in reversed(self._before):  # INT first, because it may raise until its handler is replaced
                    signal.signal(number, self._hold)
            except BaseException:  # raised by a handler of the user's
                self._release()
                raise
        return self

    def __exit__(self, *exception: object) -> None:
        """Restore the handlers, and handle the signals that arrived."""
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
        else:  # an exception interrupted `__enter__` or `__exit__`, so this handler is still installed
            self._handle(number)

    def _handle(self, number: int) -> None:
        handler = self._before[number]
        if callable(handler):
            handler(number, inspect.currentframe())
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

"""Deferred signals: handlers run when state and records are consistent.

Python runs signal handlers between any two bytecodes of the main thread. If a handler raises (as Ctrl-C does) after the
update of a state and before its record is stored, a checkpoint of the two would be inconsistent.

If a handler raises in a callback of the garbage collector or of a weak reference, or in ``__del__``, Python prints the
exception and drops it. JAX has such callbacks, and Ctrl-C while it traces or compiles can arrive in one of them.
`retained` raises such a ``KeyboardInterrupt`` later.
"""

import contextlib
import inspect
import signal
import sys
import threading
from collections.abc import Iterator

__all__ = ["Deferred", "raise_dropped", "retained"]

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name)]

_dropped = threading.Event()  # set from the loss of a KeyboardInterrupt until `raise_dropped`


@contextlib.contextmanager
def retained() -> Iterator[None]:
    """A context in which no Ctrl-C is lost: the next `Deferred` or the end raises a dropped ``KeyboardInterrupt``.

    Contexts can be nested. Outside the main thread, where Ctrl-C raises nothing, the context has no effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = sys.unraisablehook

    def hook(dropped: "sys.UnraisableHookArgs", /) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            _dropped.set()
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
        raise_dropped()
    finally:
        sys.unraisablehook = before
        _dropped.clear()


def raise_dropped() -> None:
    """Raise the ``KeyboardInterrupt`` that was dropped, if there is one."""
    if _dropped.is_set():
        _dropped.clear()
        raise KeyboardInterrupt


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
            raise_dropped()
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

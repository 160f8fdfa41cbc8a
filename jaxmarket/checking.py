"""Checks inside compiled programs: a program that is checked says what went wrong first, and where.

A plain program cannot stop in the middle: a NaN reward at step 7 runs on, and everything after it is NaN. `checked`
compiles the same program with the library's invariants in it, through ``jit``, ``vmap`` and ``scan``::

    >>> import jax, jax.numpy as jnp
    >>> from jaxmarket.checking import check, checked
    >>> @jax.jit
    ... def pay(price):
    ...     check(lambda: price >= 0, "a price of {price}; pay nothing less than nothing", price=price)
    ...     return 10 - price
    >>> float(pay(-1.0))
    11.0
    >>> checked(pay)(-1.0)
    Traceback (most recent call last):
    ValueError: a price of -1.0; pay nothing less than nothing

What is checked: bids, prices, payouts, rewards, observations and wealth are numbers; accounts exist; money is
conserved up to rounding; nobody spends more than it has. Outside of `checked` a check leaves no trace in the program:
it is never traced. (`jax.experimental.checkify.debug_check` alone is not free: its effect stays in the program, which
costs some 50 µs per call, and its predicates stay in scans.)
"""

import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from jaxmarket.types import Array, real

__all__ = ["check", "check_conserved", "check_finite", "checked", "checking"]

# Part of the key of jit's caches: a function is traced once with checks, and once without.
_CHECKING = jax.make_user_context(False)

Function = TypeVar("Function", bound=Callable[..., Any])


def checking() -> bool:
    """Whether what is being traced now is to contain checks."""
    return bool(_CHECKING.value)


def check(holds: Callable[[], Array], message: str, **values: Any) -> None:
    """Check something, in programs made by `checked` only.

    Args:
        holds: tells whether all is well, bool []; called only where checks are wanted.
        message: what is wrong and what to do about it, with ``{name}`` where a value goes.
        values: numbers or short vectors for the message, at most 16 numbers in all (or functions that return them,
            called only where checks are wanted). Shown in single precision.
    """
    if not checking():
        return
    # Of several failed checks checkify reports the earliest only if their payloads have the same shape and dtype, else
    # the one that was traced first. So all payloads have the same length, and their layout is kept separately.
    words, meaning = [], []
    for name, value in values.items():
        array = jnp.asarray(value() if callable(value) else value)
        kind = "f" if jnp.issubdtype(array.dtype, jnp.floating) else "i"
        array = array.astype(jnp.float32 if kind == "f" else jnp.int32)
        words.append(jax.lax.bitcast_convert_type(array, jnp.uint32).reshape(-1))
        meaning.append([name, kind, array.shape])
    told = jnp.concatenate([jnp.zeros(0, jnp.uint32), *words])
    if told.size > _WORDS:
        raise ValueError(f"values: a check can tell {_WORDS} numbers, got {told.size}; tell the worst one")
    text = _SEPARATOR.join((message, json.dumps(meaning))).replace("{", "{{").replace("}", "}}")
    checkify.check(
        jnp.asarray(holds(), bool), f"{text}{_SEPARATOR}{{told}}", told=jnp.pad(told, (0, _WORDS - told.size))
    )


_WORDS = 16
_SEPARATOR = "\x1f"


def check_finite(what: str, values: Array, remedy: str, where: Array | None = None, **context: Any) -> None:
    """Check that numbers are neither NaN nor infinite.

    Args:
        what: they are, as the message begins.
        values: f [...].
        remedy: how the message ends.
        where: bool [...], those that matter; all by default.
        context: integers that tell the place, such as ``step=t``. An array's first wrong entry is named besides.
    """
    if not checking():
        return
    values = jnp.asarray(values)
    wrong = ~jnp.isfinite(values)
    if where is not None:
        wrong = wrong & where
    first = jnp.argmax(wrong.reshape(-1))
    index = jnp.stack(jnp.unravel_index(first, values.shape)) if values.ndim else jnp.zeros(0, jnp.int32)
    entry = f"{what}{{index}}" if values.ndim else what
    check(
        lambda: ~wrong.any(),
        f"{entry} is {{value}}{_place(context)}; {remedy}",
        index=index,
        value=values.reshape(-1)[first],
        **context,
    )


def check_conserved(
    before: Sequence[Array], after: Sequence[Array], flows: Sequence[Array], moved: Sequence[Array] = (), **context: Any
) -> None:
    """Check that money changed by the flows that are named, and by nothing else but rounding.

    Args:
        before, after: f [...], all accounts.
        flows: f [...], what came, and with a minus what went.
        moved: f [...], amounts that only changed hands: they are rounded, too.
        context: integers that tell the place.
    """
    if not checking():
        return

    def total(amounts: Sequence[Array]) -> Array:
        return sum((jnp.sum(x) for x in amounts), jnp.zeros((), real()))

    missing = total(after) - total(before) - total(flows)
    scale = total([jnp.abs(x) for x in (*before, *after, *flows, *moved)])
    allowed = 16 * jnp.finfo(missing.dtype).eps * scale  # sums of many amounts, each rounded to half an epsilon
    check(
        # NaN is not conserved either.
        lambda: jnp.abs(missing) <= allowed,
        f"money: {{missing}} appeared from nowhere, where rounding explains {{allowed}} at most{_place(context)}; "
        "a flow was recorded that moved no money",
        missing=missing,
        allowed=allowed,
        **context,
    )


def checked(
    fun: Function,
    errors: frozenset[Any] = checkify.user_checks,
    *,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
) -> Function:
    """``fun``, compiled with checks: it raises where ``fun`` goes on with nonsense.

    The first failed check of the first batch entry is reported; what comes after it is not. One compilation for each
    shape, as with `jax.jit`; the result is waited for. ``fun`` may be compiled itself, and its own compilation remains
    as it was: ``checked(jax.jit(rollout))``.

    Args:
        fun: a pure function of arrays; anything of the library that ``jit`` takes.
        errors: what is checked: the library's invariants (`checkify.user_checks`), and if wanted, every operation
            for NaN (`checkify.nan_checks`), for indices out of range (`checkify.index_checks`) or division by 0
            (`checkify.div_checks`). The last three may find things that are harmless: see ``docs/limits.md``.
        static_argnums, static_argnames: arguments that are no arrays, as of `jax.jit`; where ``fun`` was compiled with
            such, name them here again.

    Raises:
        ValueError: (when called) a check failed; the message says which, where, and what to do.
    """

    @functools.partial(jax.jit, static_argnums=static_argnums, static_argnames=static_argnames)
    @functools.wraps(fun)
    def compiled(*args: Any, **kwargs: Any) -> Any:
        return checkify.checkify(functools.partial(fun, *args, **kwargs), errors)()

    @functools.wraps(fun)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _CHECKING(True):
            error, result = compiled(*args, **kwargs)
        message = error.get()
        if message is not None:
            raise ValueError(_plain(message))
        return result

    return call  # type: ignore[return-value]


def _place(context: dict[str, Any]) -> str:
    return "".join(f", {name.replace('_', ' ')} {{{name}}}" for name in context)


def _plain(text: str) -> str:
    """A message as `check` was given it, with its values."""
    if _SEPARATOR not in text:  # another kind of error, that checkify itself words
        return text
    message, meaning, told = text.split(_SEPARATOR)[:3]
    words = np.array(re.findall(r"\d+", told.partition("]")[0]), np.uint32)
    values = {}
    for name, kind, shape in json.loads(meaning):
        size = math.prod(shape)
        values[name] = words[:size].view(np.float32 if kind == "f" else np.int32).reshape(shape)
        words = words[size:]
    return message.format(**values)

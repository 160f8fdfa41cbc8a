"""Invariants compiled into programs on request: a checked program reports the first violation and its place.

A compiled program does not stop at an error: after a NaN reward at step 7 all later values are NaN. `checked` compiles
the same program with the library's invariants, through ``jit``, ``vmap`` and ``scan``::

    >>> import jax, jax.numpy as jnp
    >>> from jaxmarket.checking import check, checked
    >>> @jax.jit
    ... def pay(price):
    ...     check(lambda: price >= 0, "price: expected at least 0, got {price}", price=price)
    ...     return 10 - price
    >>> float(pay(-1.0))
    11.0
    >>> checked(pay)(-1.0)
    Traceback (most recent call last):
    ValueError: price: expected at least 0, got -1.0

The invariants: bids, prices, payouts, rewards, observations and wealth are finite; accounts exist; money is conserved
up to rounding; payments do not exceed budgets. Outside of `checked` a check is not traced and costs nothing.
(`jax.experimental.checkify.debug_check` alone has a cost: its effect stays in the program, about 50 µs per call, and
its predicates stay in scans.)
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
    """Whether the program that is being traced contains checks."""
    return bool(_CHECKING.value)


def check(holds: Callable[[], Array], message: str, **values: Any) -> None:
    """Check an invariant, in programs compiled by `checked` only.

    Args:
        holds: returns whether the invariant holds, bool []; called in checked programs only.
        message: the violation and its remedy, with ``{name}`` as a placeholder of a value.
        values: numbers or short vectors for the message, at most 16 numbers in total, or functions that return them and
            are called in checked programs only. They are reported in single precision.

    Raises:
        ValueError: more than 16 numbers are given.
    """
    if not checking():
        return
    # Of several failed checks checkify reports the earliest if all payloads have one shape and dtype, else the one
    # traced first. So every payload has the same number of 32-bit words; their layout is part of the text.
    bits, layout = [jnp.zeros(0, jnp.uint32)], []
    for name, value in values.items():
        array = jnp.asarray(value() if callable(value) else value)
        kind = "f" if jnp.issubdtype(array.dtype, jnp.floating) else "i"
        array = array.astype(jnp.float32 if kind == "f" else jnp.int32)
        bits.append(jax.lax.bitcast_convert_type(array, jnp.uint32).reshape(-1))
        layout.append([name, kind, array.shape])
    payload = jnp.concatenate(bits)
    if payload.size > _WORDS:
        raise ValueError(f"values: expected at most {_WORDS} numbers, got {payload.size}; report the worst one")
    text = _SEPARATOR.join((message, json.dumps(layout))).replace("{", "{{").replace("}", "}}")
    payload = jnp.pad(payload, (0, _WORDS - payload.size))
    checkify.check(jnp.asarray(holds(), bool), f"{text}{_SEPARATOR}{{payload}}", payload=payload)


_WORDS = 16
_SEPARATOR = "\x1f"


def check_finite(field: str, values: Array, hint: str, where: Array | None = None, **context: Any) -> None:
    """Check that values are neither NaN nor infinite.

    Args:
        field: the name of the values, with which the message begins.
        values: f [...].
        hint: the remedy, with which the message ends.
        where: bool [...], the entries to check; all by default.
        context: integers that identify the place, such as ``step=t``. Of an array the message names the first entry.
    """
    if not checking():
        return
    values = jnp.asarray(values)
    wrong = ~jnp.isfinite(values)
    if where is not None:
        wrong = wrong & where
    first = jnp.argmax(wrong.reshape(-1))
    index = jnp.stack(jnp.unravel_index(first, values.shape)) if values.ndim else jnp.zeros(0, jnp.int32)
    entry = f"{field}{{index}}" if values.ndim else field
    check(
        lambda: ~wrong.any(),
        f"{entry} is {{value}}{_place(context)}; {hint}",
        index=index,
        value=values.reshape(-1)[first],
        **context,
    )


def check_conserved(
    before: Sequence[Array], after: Sequence[Array], flows: Sequence[Array], moved: Sequence[Array] = (), **context: Any
) -> None:
    """Check that accounts changed by the given flows and by nothing else but rounding; see `accounts.check_flows`.

    Args:
        before, after: f [...], all accounts.
        flows: f [...], positive for money received, negative for money paid.
        moved: f [...], transfers between the accounts, which are rounded, too.
        context: integers that identify the place.
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
        f"money: {{missing}} more than the flows explain, where rounding explains {{allowed}} at most"
        f"{_place(context)}; record every payment as a flow",
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
    """Compile ``fun`` with checks, so that it raises an error where an invariant is violated.

    The error reports the first failed check of the first batch entry. There is one compilation for each shape, as with
    `jax.jit`, and a call waits for the result. ``fun`` may be compiled itself and stays unchanged:
    ``checked(jax.jit(rollout))``.

    Args:
        fun: a pure function of arrays, as for `jax.jit`.
        errors: the checks: the library's invariants (`checkify.user_checks`), and optionally NaN in any operation
            (`checkify.nan_checks`), indices out of range (`checkify.index_checks`) or division by 0
            (`checkify.div_checks`). The last three can report harmless operations: see ``docs/limits.md``.
        static_argnums, static_argnames: static arguments, as for `jax.jit`; repeat those of a compiled ``fun``.

    Raises:
        ValueError: (when called) a check failed; the message names the values, the place and the remedy.
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
            raise ValueError(_decode(message))
        return result

    return call  # type: ignore[return-value]


def _place(context: dict[str, Any]) -> str:
    return "".join(f", {name.replace('_', ' ')} {{{name}}}" for name in context)


def _decode(text: str) -> str:
    """The message that was given to `check`, with its values."""
    if _SEPARATOR not in text:  # an error that checkify words itself
        return text
    message, layout, payload = text.split(_SEPARATOR)[:3]
    bits = np.array(re.findall(r"\d+", payload.partition("]")[0]), np.uint32)
    values = {}
    for name, kind, shape in json.loads(layout):
        size = math.prod(shape)
        values[name] = bits[:size].view(np.float32 if kind == "f" else np.int32).reshape(shape)
        bits = bits[size:]
    return message.format(**values)

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

What is checked: bids, prices, resales, rewards, observations and wealth are numbers; accounts exist; money is
conserved up to rounding; nobody spends more than it has. Outside of `checked` a check leaves no trace in the program:
it is never traced. (`jax.experimental.checkify.debug_check` alone is not free: its effect stays in the program, which
costs some 50 µs per call, and its predicates stay in scans.)
"""

import functools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify

from jaxmarket.types import Array, real

__all__ = [
    "check",
    "check_conserved",
    "check_finite",
    "checked",
    "checking",
    "choice",
    "flag",
    "given",
    "mask",
    "number",
    "numbers",
    "path",
    "plain",
    "prng_key",
    "read_whole",
    "shown",
    "whole",
    "widths",
]

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
    # Of several failed checks checkify reports the earliest only if what they tell has the same shape and dtype, else
    # the one that was traced first. So all of them tell so many words, and what the words mean is told beside them.
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
        "something booked what it did not move",
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


def numbers(field: str, value: Any, shape: tuple[int, ...] | None = None) -> Array:
    """Real numbers that somebody gave, as an array of the working precision: f [...].

    Args:
        field: what they are called.
        value: an array, traced or not, or what makes one.
        shape: the only one that will do.

    Raises:
        ValueError: they are no real numbers, or have another shape.
    """
    try:
        if isinstance(value, str | bytes):
            raise TypeError("text")
        array = jnp.asarray(value)
        if not jnp.issubdtype(array.dtype, jnp.number) and array.dtype != bool:
            raise TypeError(f"{array.dtype} is no type of number")
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise TypeError("complex numbers are no amounts")
    except (TypeError, ValueError, OverflowError, AttributeError, RuntimeError) as error:
        # With its reason's first words: JAX's are long.
        raise ValueError(f"{field}: expected numbers, got {shown(value)} ({shown(str(error), 100)})") from error
    if shape is not None and array.shape != shape:
        raise ValueError(f"{field}: expected shape {shape}, got {array.shape}")
    return array.astype(real())


def mask(field: str, value: Any, shape: tuple[int, ...]) -> Array:
    """A boolean mask that somebody gave: bool ``shape``.

    Raises:
        ValueError: it is none, or has another shape.
    """
    try:
        array = jnp.asarray(None if isinstance(value, str | bytes) else value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{field}: expected a boolean mask of shape {shape}, got {shown(value)}") from error
    if array.shape != shape or array.dtype != bool:
        raise ValueError(f"{field}: expected a boolean mask of shape {shape}, got {array.dtype} {array.shape}")
    return array


def plain(field: str, value: Any) -> Any:
    """Convert NumPy and JAX scalars and zero-dimensional arrays to Python numbers; return other values unchanged.

    Raises:
        ValueError: the value is a JAX tracer, or its buffer was deleted.
    """
    if isinstance(value, Tracer):
        raise ValueError(
            f"{field}: expected a number that is known before compilation, got a value traced by jit, vmap or grad; "
            f"give a Python number ({_TRACED})"
        )
    if isinstance(value, np.generic | np.ndarray | jax.Array) and np.ndim(value) == 0:
        if jnp.issubdtype(value.dtype, jnp.floating):  # float() also converts bfloat16
            return float(_read(field, value))
        if jnp.issubdtype(value.dtype, jnp.integer) or value.dtype == bool:
            return _read(field, value).item()
    return value


_TRACED = "train accepts traced settings: train(config, key, hyper=config.hyperparameters.replace(learning_rate=...))"


def _read(field: str, value: Any) -> Any:
    try:
        return np.asarray(value)
    except RuntimeError as error:  # deleted, or on the devices of another process
        raise ValueError(f"{field}: expected a number, got an array that cannot be read ({error})") from error


def whole(field: str, value: Any, least: int = 1, most: int = 2**31 - 1) -> int:
    """Check an integer: a Python, NumPy or JAX integer, or a float without a fraction such as ``1e6``.

    Raises:
        ValueError: the value is not a whole number (a bool does not count), is traced, or is out of range.
    """
    number = plain(field, value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, Integral) or not least <= int(number) <= most:
        limits = f">= {least}" if most >= 2**31 - 1 else f"from {least} to {most}"
        too_large = isinstance(number, Integral) and int(number) > most >= 2**31 - 1
        limits += f" and <= {most}" if too_large else ""
        raise ValueError(f"{field}: expected a whole number {limits}, got {given(value)}")
    return int(number)


def read_whole(text: str) -> int:
    """Parse a whole number, as on a command line: ``12``, ``1_000`` or ``1e6``.

    Raises:
        ValueError: the text is not a whole number; 1.5 is not rounded.
    """
    try:
        return int(text)
    except ValueError:
        found = float(text)
        if not found.is_integer():
            raise ValueError(f"expected a whole number, got {text!r}") from None
        return int(found)


def number(field: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """Check a finite Python, NumPy or JAX number, and return it as a Python float.

    Raises:
        ValueError: the value is not a finite number (a bool does not count), is traced, or is out of range.
    """
    found = plain(field, value)
    try:
        fits = isinstance(found, Real) and not isinstance(found, bool) and math.isfinite(found)
    except OverflowError:  # an integer beyond the largest float
        fits = False
    if not fits or not least <= float(found) <= most:
        limits = (
            f" in [{least:g}, {most:g}]" if math.isfinite(most) else f" >= {least:g}" if math.isfinite(least) else ""
        )
        kind = "" if math.isfinite(most) else "finite "
        raise ValueError(f"{field}: expected a {kind}number{limits}, got {given(value)}")
    return float(found)


def flag(field: str, value: Any) -> bool:
    """Check a Python, NumPy or JAX boolean, and return it as a Python bool.

    Raises:
        ValueError: the value is not a boolean, such as ``"no"`` or ``1``.
    """
    found = plain(field, value)
    if not isinstance(found, bool):
        raise ValueError(f"{field}: expected True or False, got {given(value)}")
    return found


def widths(field: str, value: Any) -> tuple[int, ...]:
    """Check the widths of layers, a sequence or a vector of whole numbers >= 1, and return a tuple.

    Raises:
        ValueError: the value is not such a sequence.
    """
    if isinstance(value, np.ndarray | jax.Array) and not isinstance(value, Tracer) and value.ndim == 1:
        value = list(_read(field, value))
    if not isinstance(value, tuple | list | range):
        raise ValueError(f"{field}: expected a sequence of widths, one per layer, got {given(value)}")
    return tuple(whole(field, width) for width in value)


def choice(field: str, value: Any, known: Iterable[str]) -> str:
    """Check that a value is one of the known names.

    Raises:
        ValueError: the value is not a known name.
    """
    if not isinstance(value, str) or value not in known:  # other types may not be hashable
        raise ValueError(f"{field}: unknown value {given(value)}; choose from {', '.join(known)}")
    return str.__str__(value)  # a plain str also for np.str_ and members of a StrEnum


def path(field: str, value: Any) -> Path:
    """Check a path in the file system.

    Raises:
        ValueError: the value is not a path.
    """
    if not isinstance(value, str | os.PathLike) or "\0" in str(value):
        raise ValueError(f"{field}: expected the path of a folder or file, got {given(value)}")
    return Path(value)


def prng_key(field: str, value: Any, *, traced: bool = True) -> Array:
    """Check a scalar typed PRNG key; raw key data (`jax.random.PRNGKey`) is wrapped.

    Args:
        field: the name of the argument.
        value: a key, or uint32 key data of the default implementation.
        traced: whether a traced key is allowed.

    Raises:
        ValueError: the value is not a scalar key, or is traced and ``traced`` is False.
    """
    if isinstance(value, Tracer) and not traced:
        raise ValueError(
            f"{field}: expected a key outside of jit and vmap, got a traced key; use jaxmarket.train under jit and vmap"
        )
    if isinstance(value, np.ndarray | jax.Array):
        if value.dtype == np.uint32 and value.ndim == 1:
            try:
                value = jax.random.wrap_key_data(jnp.asarray(value))
            except (TypeError, ValueError) as error:  # key data of another implementation
                raise ValueError(
                    f"{field}: expected a typed key, got {value.shape[0]} uint32 words, which do not fit the default "
                    "implementation; use jax.random.wrap_key_data(words, impl=...)"
                ) from error
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            if value.ndim:
                raise ValueError(f"{field}: expected a scalar key, got keys of shape {value.shape}; index the array")
            return jnp.asarray(value)
    use = f"jax.random.key({given(value)})" if isinstance(value, Integral) else "jax.random.key(0)"
    raise ValueError(f"{field}: expected a PRNG key, got {given(value)}; use {use}")


def given(value: Any) -> str:
    """A value for an error message: like `shown`, with quotes around strings."""
    return shown(repr(value) if isinstance(value, str) else value)


def shown(value: Any, most: int = 60) -> str:
    """A value for a message: one line, and not too long a one."""
    try:
        text = " ".join((value if isinstance(value, str) else repr(value)).split())
    except Exception:  # a broken __repr__ must not hide the message it is part of
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}…"


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

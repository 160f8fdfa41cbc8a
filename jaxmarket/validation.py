"""Validation of arguments: each function returns the value in its working type, or raises a `ValueError`.

Every message names the field, the expected value and the given value.
"""

import math
import os
import unicodedata
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxmarket.types import Array, PyTree, real

__all__ = [
    "as_bool_array",
    "as_float_array",
    "as_scalar",
    "check_bool",
    "check_choice",
    "check_float",
    "check_int",
    "check_key",
    "check_no_nan",
    "check_path",
    "check_rows",
    "check_widths",
    "escaped",
    "parse_int",
    "short_repr",
    "shorten",
]


def as_float_array(field: str, value: Any, shape: tuple[int, ...] | None = None) -> Array:
    """Convert real numbers to an array of the working precision: f [...].

    Args:
        field: the name of the argument.
        value: an array, traced or not, or anything that `jax.numpy.asarray` accepts.
        shape: the required shape; any by default.

    Raises:
        ValueError: the value is not real numbers, or has another shape.
    """
    try:
        if isinstance(value, str | bytes):
            raise TypeError("text")
        if isinstance(value, float | int) or (isinstance(value, np.ndarray) and value.dtype.kind == "f"):
            with np.errstate(over="ignore"):  # beyond the largest float32 is infinity, as in JAX
                value = jax.device_put(np.asarray(value, real()))  # `asarray` would compile a program for each shape
        array = jnp.asarray(value)
        if not jnp.issubdtype(array.dtype, jnp.number) and array.dtype != bool:
            raise TypeError(f"{array.dtype} is not a numeric dtype")
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise TypeError("complex numbers are not accepted")
    except (TypeError, ValueError, OverflowError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{field}: expected numbers, got {short_repr(value)} ({shorten(str(error), 100)})") from error
    if shape is not None and array.shape != shape:
        raise ValueError(f"{field}: expected shape {shape}, got {array.shape}")
    return array if array.dtype == real() and not array.weak_type else array.astype(real())


def check_no_nan(field: str, value: PyTree) -> None:
    """Check that no floating-point array has NaN. Traced arrays pass, because their values are unknown.

    Args:
        field: the name of the argument.
        value: a tree of arrays.

    Raises:
        ValueError: an array has NaN.
    """
    for leaf in jax.tree.leaves(value):
        known = isinstance(leaf, np.ndarray | jax.Array) and not isinstance(leaf, Tracer)
        # By NumPy: inside `jit`, `jnp` would trace arrays that are known, such as those of a closure.
        if known and jnp.issubdtype(leaf.dtype, jnp.floating) and np.isnan(np.asarray(leaf)).any():
            raise ValueError(f"{field}: expected numbers, got NaN; remove or replace it first")


def check_rows(field: str, value: PyTree, rows: int) -> None:
    """Check that the leaves of a tree are arrays [rows, ...] of numbers, without NaN as in `check_no_nan`.

    Raises:
        ValueError: a leaf is not an array of numbers, has another leading axis, or has NaN.
    """
    for leaf in jax.tree.leaves(value):
        is_array = isinstance(leaf, jax.Array) or (isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "OSUMm")
        if not is_array or leaf.shape[:1] != (rows,):
            found = f"{leaf.dtype}{list(leaf.shape)}" if isinstance(leaf, np.ndarray | jax.Array) else short_repr(leaf)
            raise ValueError(f"{field}: expected leaves [{rows}, ...], arrays with {rows} rows of numbers, got {found}")
    check_no_nan(field, value)


def as_bool_array(field: str, value: Any, shape: tuple[int, ...]) -> Array:
    """Check a boolean mask: bool ``shape``.

    Raises:
        ValueError: the value is not boolean, or has another shape.
    """
    try:
        if isinstance(value, np.ndarray) and value.dtype == bool:
            value = jax.device_put(value)  # `asarray` would compile a program for each shape
        array = jnp.asarray(None if isinstance(value, str | bytes) else value)
    except (TypeError, ValueError, OverflowError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{field}: expected a boolean mask of shape {shape}, got {short_repr(value)}") from error
    if array.shape != shape or array.dtype != bool:
        raise ValueError(f"{field}: expected a boolean mask of shape {shape}, got {array.dtype} {array.shape}")
    return array


def as_scalar(field: str, value: Any) -> Any:
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


_TRACED = (
    "train accepts traced settings: "
    "train(config, key, hyper=config.settings.hyperparameters.replace(learning_rate=...))"
)


def _read(field: str, value: Any) -> Any:
    try:
        return np.asarray(value)
    except RuntimeError as error:  # deleted, or on the devices of another process
        raise ValueError(f"{field}: expected a number, got an array that cannot be read ({error})") from error


def check_int(field: str, value: Any, least: int = 1, most: int = 2**31 - 1) -> int:
    """Check an integer: a Python, NumPy or JAX integer, or a float without a fraction such as ``1e6``.

    Raises:
        ValueError: the value is not an integer (a bool does not count), is traced, or is out of range.
    """
    number = as_scalar(field, value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, Integral) or not least <= int(number) <= most:
        limits = f">= {least}" if most >= 2**31 - 1 else f"from {least} to {most}"
        too_large = isinstance(number, Integral) and int(number) > most >= 2**31 - 1
        limits += f" and <= {most}" if too_large else ""
        raise ValueError(f"{field}: expected an integer {limits}, got {short_repr(value)}")
    return int(number)


def parse_int(text: str) -> int:
    """Parse an integer, as on a command line: ``12``, ``1_000`` or ``1e6``.

    Raises:
        ValueError: the text is not an integer; 1.5 is not rounded.
    """
    try:
        return int(text)
    except ValueError:
        found = float(text)
        if not found.is_integer():
            raise ValueError(f"expected an integer, got {text!r}") from None
        return int(found)


def check_float(field: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """Check a finite Python, NumPy or JAX number, and return it as a Python float.

    Raises:
        ValueError: the value is not a finite number (a bool does not count), is traced, or is out of range.
    """
    found = as_scalar(field, value)
    try:
        fits = isinstance(found, Real) and not isinstance(found, bool) and math.isfinite(found)
    except OverflowError:  # an integer beyond the largest float
        fits = False
    if not fits or not least <= float(found) <= most:
        limits = (
            f" in [{least:g}, {most:g}]" if math.isfinite(most) else f" >= {least:g}" if math.isfinite(least) else ""
        )
        kind = "" if math.isfinite(most) else "finite "
        raise ValueError(f"{field}: expected a {kind}number{limits}, got {short_repr(value)}")
    return float(found)


def check_bool(field: str, value: Any) -> bool:
    """Check a Python, NumPy or JAX boolean, and return it as a Python bool.

    Raises:
        ValueError: the value is not a boolean, such as ``"no"`` or ``1``.
    """
    found = as_scalar(field, value)
    if not isinstance(found, bool):
        raise ValueError(f"{field}: expected True or False, got {short_repr(value)}")
    return found


def check_widths(field: str, value: Any) -> tuple[int, ...]:
    """Check the widths of layers, a sequence or a vector of integers >= 1, and return a tuple.

    Raises:
        ValueError: the value is not such a sequence.
    """
    if isinstance(value, np.ndarray | jax.Array) and not isinstance(value, Tracer) and value.ndim == 1:
        value = list(_read(field, value))
    if not isinstance(value, tuple | list | range):
        raise ValueError(f"{field}: expected a sequence of widths, one per layer, got {short_repr(value)}")
    return tuple(check_int(field, width) for width in value)


def check_choice(field: str, value: Any, known: Iterable[str]) -> str:
    """Check that a value is one of the known names.

    Raises:
        ValueError: the value is not a known name.
    """
    if not isinstance(value, str) or value not in known:  # other types may not be hashable
        raise ValueError(f"{field}: unknown value {short_repr(value)}; choose from {', '.join(known)}")
    return str.__str__(value)  # a plain str also for np.str_ and members of a StrEnum


def check_path(field: str, value: Any) -> Path:
    """Check a path in the file system.

    Raises:
        ValueError: the value is not a path.
    """
    if not isinstance(value, str | os.PathLike) or "\0" in str(value):
        raise ValueError(f"{field}: expected the path of a folder or file, got {short_repr(value)}")
    return Path(value)


def check_key(field: str, value: Any, *, traced: bool = True) -> Array:
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
    use = f"jax.random.key({short_repr(value)})" if isinstance(value, Integral) else "jax.random.key(0)"
    raise ValueError(f"{field}: expected a PRNG key, got {short_repr(value)}; use {use}")


def short_repr(value: Any) -> str:
    """The representation of a value for an error message: one line of at most 60 characters."""
    try:
        text = repr(value)
    except Exception:  # a broken __repr__ must not hide the message it is part of
        text = f"an object of type {type(value).__name__}"
    return shorten(text)


def shorten(text: str, most: int = 60) -> str:
    """The text on one line, cut after ``most`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]}…"


def escaped(text: str, *, lines: bool = False) -> str:
    r"""The text on one line, with every character escaped that a terminal would interpret or hide.

    These are control characters (C0, DEL, C1), bidirectional marks and overrides, zero-width and other format
    characters, line and paragraph separators, lone surrogates, and unassigned or private-use code points. Spaces,
    letters, combining marks and symbols of any script are unchanged. Escapes use Python's notation.

    >>> print(escaped("a\x1b[2Jb\u202ec\n"))
    a\x1b[2Jb\u202ec\n

    Args:
        text: any string.
        lines: whether to keep newlines.
    """
    text = str.__str__(text)  # an agent may return a subclass of str with overridden methods
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" or (lines and char == "\n") else _escape(char)
        for char in text
    )


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")

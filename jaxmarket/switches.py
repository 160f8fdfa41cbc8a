"""JAX's own switches: the library's programs work whatever they are set to, or say which one to change.

``jax_numpy_dtype_promotion`` and ``jax_numpy_rank_promotion`` check the code of whoever sets them. Environments and the
libraries of the networks promote freely, so the library traces its programs under JAX's defaults. ``jax_debug_nans``
and ``jax_debug_infs`` stop every program that holds a NaN or an infinity; here NaN stands for what does not exist, such
as the return of an episode that has not ended, so programs refuse to start under them.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

__all__ = ["check_backend", "entry_point", "standard_promotion"]

Function = TypeVar("Function", bound=Callable[..., Any])


def standard_promotion(function: Function) -> Function:
    """A decorator: the function runs, or is traced, under JAX's default promotion of dtypes and ranks."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def entry_point(function: Function) -> Function:
    """A decorator: `standard_promotion` for a function in whose results NaN is no error.

    Raises:
        ValueError: (when called) ``jax_debug_nans`` or ``jax_debug_infs`` is on, or JAX has no device.
    """
    inner = standard_promotion(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        check_backend()
        for switch in ("jax_debug_nans", "jax_debug_infs"):
            if getattr(jax.config, switch):
                raise ValueError(
                    f"{switch}: {function.__name__} cannot run under this switch, because NaN and infinity stand for "
                    "what does not exist (an episode that has not ended, a seat without an agent); switch it off, and "
                    "find wrong numbers with fit(check=True) or jaxmarket.checking.checked"
                )
        return inner(*args, **kwargs)

    return call  # type: ignore[return-value]


def check_backend() -> None:
    """Start JAX's backend.

    Raises:
        ValueError: it cannot be started, as where ``JAX_PLATFORMS`` names a platform that is not there.
    """
    try:
        jax.default_backend()
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"JAX_PLATFORMS: JAX cannot start ({reason}); unset JAX_PLATFORMS, or name a platform of this machine, "
            "such as cpu"
        ) from error

"""JAX's configuration options and backends.

The library's programs work under all of them, or raise an error that names the option.

``jax_numpy_dtype_promotion`` and ``jax_numpy_rank_promotion`` are for users' own code. Environments and network
libraries rely on implicit promotion, so the library traces its programs under JAX's defaults. ``jax_debug_nans`` and
``jax_debug_infs`` stop every program that produces a NaN or an infinity. The library uses NaN for undefined values,
such as the return of an episode that has not ended, so its programs raise an error under these options.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.core import Tracer

from jaxmarket.types import PyTree

__all__ = [
    "check_backend",
    "compiled_map",
    "compiler_options",
    "entry_point",
    "in_groups",
    "one_at_a_time",
    "standard_promotion",
    "whole_program",
]

Function = TypeVar("Function", bound=Callable[..., Any])

# A CPU compiles the library's programs with these in half the time, and most of them run as fast or faster
# (docs/speed.md, "Compilation").
_EMITTERS = "xla_cpu_use_fusion_emitters"
_CPU_OPTIONS = {_EMITTERS: False, "xla_backend_optimization_level": 2}


def standard_promotion(function: Function) -> Function:
    """Decorate a function to run, or be traced, under JAX's default promotion of dtypes and ranks."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def entry_point(function: Function) -> Function:
    """Decorate a function whose results may contain NaN; includes `standard_promotion`.

    Raises:
        ValueError: (when called) ``jax_debug_nans`` or ``jax_debug_infs`` is set, or JAX has no device.
    """
    inner = standard_promotion(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        check_backend()
        for switch in ("jax_debug_nans", "jax_debug_infs"):
            if getattr(jax.config, switch):
                raise ValueError(
                    f"{switch}: expected False, got True; {function.__name__} uses NaN and infinity for undefined "
                    "values, such as the return of an episode that has not ended: set it to False, and find wrong "
                    "numbers with fit(check=True) or jaxmarket.checking.checked"
                )
        return inner(*args, **kwargs)

    return call  # type: ignore[return-value]


def check_backend() -> None:
    """Start JAX's backend.

    Raises:
        ValueError: the backend cannot start, for example because ``JAX_PLATFORMS`` names a platform that is absent.
    """
    try:
        jax.default_backend()
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"JAX_PLATFORMS: JAX cannot start ({reason}); unset JAX_PLATFORMS, or name a platform of this machine, "
            "such as cpu"
        ) from error


def compiler_options(*, large: bool = False) -> dict[str, Any]:
    """The options with which the library compiles whole programs, as ``compiler_options`` of `jax.jit`.

    Empty on an accelerator. Options that ``XLA_FLAGS`` sets keep the user's values and are left out, and so are options
    that this version of XLA does not know.

    Args:
        large: whether the program trains large networks. Kernels that XLA's emitters of fused kernels write take twice
            as long to compile, and update a large array in place up to six times as fast.
    """
    if jax.default_backend() != "cpu":
        return {}
    flags = os.environ.get("XLA_FLAGS", "")
    options = {name: value for name, value in _CPU_OPTIONS.items() if f"--{name}" not in flags}
    if large:
        options.pop(_EMITTERS, None)
    return options if _knows(frozenset(options.items())) else {}


@functools.cache
def _knows(options: frozenset[tuple[str, Any]]) -> bool:
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=dict(options))
    except RuntimeError:
        return False
    return True


def whole_program(function: Callable[..., Any], **jit: Any) -> Callable[..., Any]:
    """`jax.jit` with `compiler_options`, for functions that take long to compile.

    Called with tracers, as inside another program, the function is part of that program: options of its own would be an
    error.

    Args:
        function: a pure function of arrays.
        **jit: other arguments of `jax.jit`.
    """

    @functools.cache
    def compiled(options: frozenset[tuple[str, Any]]) -> Callable[..., Any]:
        return jax.jit(function, compiler_options=dict(options) or None, **jit)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        inside = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((args, kwargs)))
        return compiled(frozenset() if inside else frozenset(compiler_options().items()))(*args, **kwargs)

    return call


def compiled_map(function: Callable[[PyTree], PyTree], rows: PyTree) -> PyTree:
    """`jax.lax.map` as a `whole_program`, for example over the keys of seeds; results are NumPy arrays.

    Args:
        function: a pure function of one row.
        rows: leaves [n, ...].
    """
    return jax.device_get(whole_program(functools.partial(jax.lax.map, function))(rows))


def in_groups(function: Callable[[PyTree], PyTree], tree: PyTree, size: int) -> PyTree:
    """``jax.vmap(function)(tree)``; a CPU computes one group after the other, whose data stay in the cache.

    Args:
        function: a pure function of one element.
        tree: leaves [n, ...].
        size: elements of a group; divides n.
    """
    count = jax.tree.leaves(tree)[0].shape[0]
    if size == count or jax.default_backend() != "cpu":
        return jax.vmap(function)(tree)
    if size == 1:
        return jax.lax.map(function, tree)
    groups = jax.tree.map(lambda x: x.reshape(count // size, size, *x.shape[1:]), tree)
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), jax.lax.map(jax.vmap(function), groups))


def one_at_a_time(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Decorate a function so that `jax.vmap` on a CPU computes one element of the batch after the other.

    A loop then runs as long as its own element needs, only the branch that is taken of a conditional is computed, and
    the data of one element can stay in the processor's cache. An accelerator is faster with all elements at once.

    Args:
        function: a pure function without closed-over tracers. It has derivatives in reverse mode only, and the backward
            pass computes it again.
    """
    if jax.default_backend() != "cpu":
        return function
    in_turn = jax.custom_batching.sequential_vmap(function)
    call = jax.custom_vjp(in_turn)  # `sequential_vmap` alone has no derivatives in reverse mode

    def backward(args: tuple[PyTree, ...], cotangent: PyTree) -> tuple[PyTree, ...]:
        return jax.vjp(function, *args)[1](cotangent)

    call.defvjp(lambda *args: (in_turn(*args), args), backward)
    return call

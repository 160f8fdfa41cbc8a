"""The arrays of a pytree by their paths in it: to save, restore and compare them."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.types import Array, PyTree

__all__ = ["ALONE", "Arrays", "digest", "flatten", "unflatten"]

Arrays = dict[str, np.ndarray]
ALONE = "value"
"""The name of an array that is the whole pytree."""


def flatten(tree: PyTree) -> Arrays:
    """The arrays of a pytree by their paths in it, on the host; keys as their words, numbers as arrays."""
    return {_name(path): _on_host(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(like: PyTree, arrays: Mapping[str, np.ndarray], whose: str = "arrays") -> PyTree:
    """The pytree whose arrays these are.

    Args:
        like: its structure, with arrays or their shapes for leaves.
        arrays: from `flatten`.
        whose: what to call them in the error.

    Raises:
        ValueError: there are others than in ``like``, or with other shapes or dtypes.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path(like)
    wanted = {_name(path): jax.eval_shape(_words, leaf) for path, leaf in paths}
    if set(wanted) != set(arrays):
        name = min(set(wanted) ^ set(arrays))
        raise ValueError(f"{whose} are of another society: {name} is only {'here' if name in wanted else 'there'}")
    for name, shape in wanted.items():
        found = arrays[name]
        if (found.shape, found.dtype) != (shape.shape, shape.dtype):
            raise ValueError(
                f"{whose} are of another society: {name} is {found.dtype}{list(found.shape)} there, "
                f"{shape.dtype}{list(shape.shape)} here"
            )

    def leaf(path: Any, like: Any) -> Array:
        value = jax.device_put(arrays[_name(path)])
        return jax.random.wrap_key_data(value, impl=jax.random.key_impl(like)) if _is_key(like) else value

    return jax.tree.unflatten(tree, [leaf(path, like) for path, like in paths])


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or ALONE


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _words(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)


def _on_host(leaf: Any) -> np.ndarray:
    return np.asarray(_words(leaf)) if isinstance(leaf, jax.Array) else np.asarray(leaf, jnp.result_type(leaf))


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, dtypes, shapes and bits of arrays: equal for equal bits, else not."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {value.dtype.str} {value.shape} ".encode())
        found.update(value.tobytes())
    return found.hexdigest()

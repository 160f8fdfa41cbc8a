"""Collectives over the shards of one run. Without an axis, on one device, each function returns its argument.

A run may be sharded over a mesh of devices with two axes, seeds and instances. Seeds are independent. Devices that
share a seed simulate different instances of it and add up gradients, moments and sums, so that their networks agree.
"""

from typing import Any

import jax

from jaxmarket.types import Array, PyTree

__all__ = ["INSTANCES", "SEEDS", "local_slice", "per_shard", "pmax", "psum"]

SEEDS, INSTANCES = "seeds", "instances"
"""The axes of the mesh."""


def psum(tree: PyTree, axis: str | None) -> PyTree:
    """The sum over shards."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def pmax(value: Array, axis: str | None) -> Array:
    """The maximum over shards."""
    return value if axis is None else jax.lax.pmax(value, axis)


def per_shard(value: Any, axis: str | None) -> Any:
    """One shard's part of a value that all shards have: the sum over shards is the value."""
    return value if axis is None else value / jax.lax.axis_size(axis)


def local_slice(values: Array, axis: str | None) -> Array:
    """The rows of this shard, of an array [n, ...] that all shards have."""
    if axis is None:
        return values
    rows = values.shape[0] // jax.lax.axis_size(axis)
    return jax.lax.dynamic_slice_in_dim(values, jax.lax.axis_index(axis) * rows, rows)

"""Collectives over the shards of one run. Without an axis, on one device, each function returns its argument.

A run may be spread over a mesh of devices with two axes, seeds and instances. Seeds are independent. Devices that share
a seed each simulate some of its instances, and add up gradients, moments and sums, so that all hold the same networks.
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
    """One shard's part of what every shard has in full, so that the sum over shards is that again."""
    return value if axis is None else value / jax.lax.axis_size(axis)


def local_slice(values: Array, axis: str | None) -> Array:
    """This shard's rows of an array [n, ...] that every shard has in full."""
    if axis is None:
        return values
    rows = values.shape[0] // jax.lax.axis_size(axis)
    return jax.lax.dynamic_slice_in_dim(values, jax.lax.axis_index(axis) * rows, rows)

"""Many devices: seeds and instances spread over a mesh by JAX's own ``shard_map``.

Seeds are spread first: they have nothing to say to each other. What devices are left share the instances of each
seed: every device runs its own, and gradients, moments and sums are added up across them, so that all hold the same
networks. Code that runs on a shard calls the functions here with the axis it is spread over; without an axis, on one
device, they change nothing.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmarket.collectives import INSTANCES, SEEDS
from jaxmarket.types import PyTree
from jaxmarket.validation import check_int

__all__ = ["Devices", "gather", "mesh", "put"]

Devices = int | Literal["all"] | Sequence[jax.Device]


def mesh(devices: Devices, seeds: int, instances: int, minibatch: int) -> Mesh | None:
    """A mesh [seeds, instances] for a run; None for one device.

    Args:
        devices: how many of those JAX sees, ``"all"`` of them, or which.
        seeds: of the run; as many devices as divide them take whole seeds.
        instances: of each seed, shared by the devices that are left over.
        minibatch: auctions per gradient step; each device has its part of every one.

    Raises:
        ValueError: there are not so many devices, or they cannot share seeds and instances evenly.
    """
    several = isinstance(devices, Sequence) and not isinstance(devices, str)
    chosen = list(devices) if several else _chosen(devices)  # type: ignore[arg-type]
    count = len(chosen)
    if jax.process_count() > 1 and count < jax.device_count():
        raise ValueError(f"devices: a run of several processes uses all {jax.device_count()} devices, got {count}")
    if count == 1:
        return None
    rows = math.gcd(count, seeds)
    columns = count // rows
    if instances % columns:
        raise ValueError(
            f"devices: {count} devices for {seeds} seeds leave {columns} for the instances of each, which do not "
            f"divide {instances}; choose another number of seeds, instances or devices"
        )
    if columns > 1 and minibatch % instances:
        raise ValueError(
            f"minibatch: {columns} devices share the instances of a seed, and each minibatch then holds whole steps of "
            f"all {instances} instances; {minibatch} is no multiple of them"
        )
    return Mesh(np.array(chosen, object).reshape(rows, columns), (SEEDS, INSTANCES))


def _chosen(devices: int | str) -> list[Any]:
    there = jax.devices()
    if isinstance(devices, str):
        if devices == "all":
            return there
        raise ValueError(f"devices: expected a number >= 1 or 'all', got {devices!r}")
    devices = check_int("devices", devices)
    if devices > len(there):
        more = "; set JAX_NUM_CPU_DEVICES to have more" if jax.default_backend() == "cpu" else ""
        raise ValueError(f"devices: JAX sees {len(there)} here, not {devices}{more}")
    return there[:devices]


def put(tree: PyTree, mesh: Mesh | None, specs: Any) -> PyTree:
    """A pytree laid over the mesh.

    Args:
        tree: arrays, the same in every process.
        mesh: as it is where there is none.
        specs: a pytree prefix of ``PartitionSpec``s.
    """
    if mesh is None:
        return tree

    layout = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))
    return jax.jit(lambda tree: tree, out_shardings=layout)(tree)


def gather(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """A pytree with all of every array in every process; as it is where there is no mesh."""
    if mesh is None:
        return tree
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))(tree)

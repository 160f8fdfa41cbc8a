"""Several devices: seeds and instances sharded over a mesh with ``shard_map``.

Seeds are independent, so they are sharded first. If there are more devices than seeds, several devices share the
instances of a seed: each device runs its own instances, and gradients, moments and sums are reduced over the devices
(`jaxmarket.collectives`), so that all devices hold the same networks.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmarket.collectives import INSTANCES, SEEDS
from jaxmarket.switches import in_groups
from jaxmarket.types import PyTree
from jaxmarket.validation import check_int, short_repr

__all__ = ["Devices", "gather", "mesh", "over_seeds", "put"]

_GROUP = range(8, 3, -1)  # seeds

Devices = int | Literal["all"] | Sequence[jax.Device]


def over_seeds(function: Callable[[PyTree], PyTree], state: PyTree, *, large: bool = False) -> PyTree:
    """``jax.vmap(function)(state)``, for a function that takes a state of one seed.

    CPUs run many seeds in groups of 4 to 8, one group after the other, if the number of seeds can be divided into such
    groups: the states of a group stay in the processor's cache. Results are equal to rounding.

    Args:
        function: a pure function.
        state: leaves [seeds, ...].
        large: whether a state contains large networks. CPUs then run one seed after the other.
    """
    seeds = jax.tree.leaves(state)[0].shape[0]
    return in_groups(function, state, 1 if large else next((size for size in _GROUP if seeds % size == 0), seeds))


def mesh(devices: Devices, seeds: int, instances: int, minibatch: int | None) -> Mesh | None:
    """A mesh [seeds, instances] for a run; None for one device.

    Args:
        devices: number of devices, ``"all"`` of them, or a sequence of devices.
        seeds: of the run. The first axis of the mesh is the largest common divisor of ``seeds`` and the devices.
        instances: of each seed, sharded over the second axis.
        minibatch: auctions per gradient step, None without a learner; every device has an equal part of each minibatch.

    Raises:
        ValueError: JAX has fewer devices, or seeds and instances cannot be divided evenly among them.
    """
    several = isinstance(devices, Sequence) and not isinstance(devices, str)
    chosen = list(devices) if several else _chosen(devices)  # type: ignore[arg-type]
    if not chosen or not all(isinstance(device, jax.Device) for device in chosen):
        raise ValueError(f"devices: expected a number, 'all' or a sequence of devices, got {short_repr(devices)}")
    count = len(chosen)
    if jax.process_count() > 1 and count < jax.device_count():
        raise ValueError(
            f"devices: expected all {jax.device_count()} devices in a run of several processes, got {count}; use 'all'"
        )
    if count == 1:
        return None
    rows = math.gcd(count, seeds)
    columns = count // rows
    if instances % columns:
        raise ValueError(
            f"devices: {count} devices and {seeds} seeds leave {columns} devices for the instances of each seed, and "
            f"{instances} instances are not divisible by {columns}; change the number of seeds, instances or devices"
        )
    if columns > 1 and minibatch is not None and minibatch % instances:
        raise ValueError(
            f"minibatch: expected a multiple of the {instances} instances, because {columns} devices share the "
            f"instances of a seed, got {minibatch}"
        )
    return Mesh(np.array(chosen, object).reshape(rows, columns), (SEEDS, INSTANCES))


def _chosen(devices: int | str) -> list[Any]:
    there = jax.devices()
    if isinstance(devices, str):
        if devices == "all":
            return there
        raise ValueError(f"devices: expected a number >= 1 or 'all', got {short_repr(devices)}")
    devices = check_int("devices", devices)
    if devices > len(there):
        remedy = "set JAX_NUM_CPU_DEVICES" if jax.default_backend() == "cpu" else "use fewer"
        raise ValueError(f"devices: expected at most the {len(there)} that JAX has here, got {devices}; {remedy}")
    return there[:devices]


def put(tree: PyTree, mesh: Mesh | None, specs: Any) -> PyTree:
    """Shard a pytree over the mesh.

    Args:
        tree: arrays, equal in every process.
        mesh: None leaves the tree unchanged.
        specs: a ``PartitionSpec`` for each leaf, or a pytree prefix of them.
    """
    if mesh is None:
        return tree

    layout = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))
    tree = jax.jit(lambda tree: tree, out_shardings=layout)(tree)
    # A compiled program returns arrays without entries replicated, and accepts them again only as it returned them.
    return jax.tree.map(lambda leaf: leaf if leaf.size else gather(leaf, mesh), tree)


def gather(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Replicate a sharded pytree, so that every process has whole arrays; None for the mesh leaves it unchanged."""
    if mesh is None:
        return tree
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))(tree)

"""Transfer: start from trained networks, freeze parts of them, and see which parts moved.

A *part* is a layer of one network: ``policy/torso/Affine_0``, ``value/Affine_0`` (the output layer). In a society every
module has its own, named ``module2/policy/Affine_0``; modules are primitives, or bidders where clones do not share.
"""

import fnmatch
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.learners.actions import ActingState
from jaxmarket.policies import UNITS
from jaxmarket.training.arrays import digest, flatten
from jaxmarket.types import PyTree

__all__ = [
    "NetworkParams",
    "acting_params",
    "fingerprint",
    "freeze",
    "join",
    "networks",
    "parts",
    "start_from",
    "weight_changes",
]

NetworkParams = dict[str, PyTree]
"""``policy``, and where the learner has them, ``value`` and ``actions`` (of primitives that learn): parameters, with
whatever leading axes the learner has."""


def networks(learner_state: PyTree) -> NetworkParams:
    """The networks in a learner's state."""
    if isinstance(learner_state, ActingState):
        return networks(learner_state.bids) | {"actions": learner_state.actions.params}
    found = {"policy": learner_state.params}
    if hasattr(learner_state, "value_params"):
        found["value"] = learner_state.value_params
    return found


def acting_params(nets: NetworkParams) -> PyTree:
    """The parameters with which agents act, as `Trainable.player` and `Trainable.policy` take them."""
    return {"bids": nets["policy"], "actions": nets["actions"]} if "actions" in nets else nets["policy"]


def fingerprint(nets: NetworkParams) -> str:
    """A short digest of all weights: equal networks have equal ones."""
    return digest(flatten(nets))[:16]


def join(params: PyTree, module: int | jax.Array, like: int | jax.Array) -> PyTree:
    """Parameters in which one module has those of another: how a module joins a society at run time.

    A society has a fixed number of modules, of which `jaxmarket.types.Rules.present` says whose bidders take part in an
    episode. A module that was absent joins with a copy of the parameters of a module with the same kind of objective.
    Those of all other modules are unchanged.

    Args:
        params: leaves [M, ...].
        module: the number of the module that joins.
        like: the number of the module whose parameters it copies.
    """
    return jax.tree.map(lambda leaf: leaf.at[module].set(leaf[like]), params)


def start_from(learner_state: PyTree, trained: NetworkParams) -> PyTree:
    """A new learner's state with the trained networks in it and new optimizer states.

    Raises:
        ValueError: the networks are not of this shape.
    """
    fresh = networks(learner_state)
    wanted, given = (jax.tree.map(jnp.shape, tree) for tree in (fresh, {k: trained.get(k) for k in fresh}))
    if wanted != given:
        here, there = (len(jax.tree.leaves(nets)[0]) if jax.tree.leaves(nets) else 0 for nets in (fresh, trained))
        if here != there:
            raise ValueError(f"start: the trained networks are of {there} seeds, this run has {here}; choose {there}")
        if _without_units(wanted) == _without_units(given):
            ours, theirs = (
                "adapts to revenues" if UNITS in tree["policy"] else "is fixed" for tree in (fresh, trained)
            )
            raise ValueError(
                f"start: the range of bids {theirs} in the trained networks and {ours} in this run; give both runs "
                "bid_low and bid_high, or neither"
            )
        raise ValueError(
            f"start: the trained networks do not fit this run: they have {_sizes(given)}, it needs {_sizes(wanted)}; "
            "use the same kind of agent, primitives, clones, hidden layers and number of seeds"
        )
    # Copies: training donates its state, and the trained networks are still wanted afterwards.
    new = jax.tree.map(lambda old, new: jnp.array(new, old.dtype), fresh, {k: trained[k] for k in fresh})
    return _with_networks(learner_state, new)


def _with_networks(learner_state: PyTree, nets: NetworkParams) -> PyTree:
    if isinstance(learner_state, ActingState):
        actions = learner_state.actions.replace(params=nets["actions"])
        return ActingState(bids=_with_networks(learner_state.bids, nets), actions=actions)
    learner_state = learner_state.replace(params=nets["policy"])
    return learner_state.replace(value_params=nets["value"]) if "value" in nets else learner_state


def _without_units(shapes: PyTree) -> PyTree:
    policy = shapes["policy"] or {}
    return {**shapes, "policy": {name: part for name, part in policy.items() if name != UNITS}}


def _sizes(shapes: PyTree) -> str:
    leaves = jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, tuple))
    return ", ".join("×".join(map(str, shape)) for shape in leaves) or "none"


def freeze(learner_state: PyTree, patterns: Sequence[str], *, modules: bool) -> PyTree:
    """The learner's state, in which the parts that match a pattern are no longer trained.

    Args:
        learner_state: of several seeds, leaves [seeds, ...], or [seeds, M, ...] with a module axis.
        patterns: shell patterns of names, such as ``policy/torso/*`` (in every module), ``module2/*``, ``value/*``.
        modules: whether there is a module axis.

    Raises:
        ValueError: a pattern names no part, or nothing is trained by gradients.
    """
    if not hasattr(learner_state, "opt") and not isinstance(learner_state, ActingState):
        raise ValueError(
            "freeze: expected networks that are trained by gradients, this kind of agent has none; leave it out"
        )
    nets = networks(learner_state)
    used: set[str] = set()

    def matches(name: str) -> bool:
        hits = {pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern)}
        used.update(hits)
        return bool(hits)

    def movable(path: Any, leaf: Any) -> jax.Array:
        name, shape = _name(path), np.shape(leaf)
        if not modules:
            return jnp.full((shape[0],) + (1,) * (len(shape) - 1), not matches(name))
        held = [matches(name) | matches(f"module{m}/{name}") for m in range(shape[1])]
        mask = ~np.array(held).reshape(1, -1, *(1,) * (len(shape) - 2))
        return jnp.asarray(np.broadcast_to(mask, (shape[0], *mask.shape[1:])))

    masks = jax.tree_util.tree_map_with_path(movable, nets)
    missed = [pattern for pattern in patterns if pattern not in used]
    if missed:
        names = sorted({_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(nets)})
        prefix = ", or of one module as module0/…" if modules else ""
        raise ValueError(f"freeze: {missed[0]!r} names no part; there are {', '.join(names)}{prefix}")
    return _with_masks(learner_state, masks)


def _with_masks(learner_state: PyTree, masks: dict[str, PyTree]) -> PyTree:
    if isinstance(learner_state, ActingState):
        own = learner_state.actions
        actions = own.replace(opt=own.opt.replace(movable=masks["actions"]))
        return ActingState(bids=_with_masks(learner_state.bids, masks), actions=actions)
    mask = (masks["policy"], masks["value"]) if "value" in masks else masks["policy"]
    return learner_state.replace(opt=learner_state.opt.replace(movable=mask))


def _name(path: Any) -> str:
    """``policy/torso/Affine_0`` for that layer's kernel; a layer with several arrays keeps their names."""
    words = [str(getattr(key, "key", key)) for key in path]
    words = [word for word in words if word != "params"]
    return "/".join(words[:-1] if words[-1] == "kernel" else words)


def parts(nets: NetworkParams, *, modules: bool) -> dict[str, np.ndarray]:
    """Every part by name: f [seeds, ...].

    Args:
        nets: leaves [seeds, ...], or [seeds, M, ...] with a module axis.
        modules: whether there is a module axis.
    """
    leaves = [(_name(path), np.asarray(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(nets)]
    if not modules:
        return dict(leaves)
    return {f"module{m}/{name}": array[:, m] for m in range(leaves[0][1].shape[1]) for name, array in leaves}


def weight_changes(
    before: NetworkParams, after: NetworkParams, *, modules: bool, moved_by: float = 0.1
) -> list[dict[str, Any]]:
    """How far every part moved: a row per part and seed, and per seed one for all ``policies`` and one for ``all``.

    ``distance`` is ``|after - before|`` (Euclidean), ``change`` is ``|after - before| / |before|``, ``moved`` the share
    of the part's weights that moved by more than ``moved_by`` times the root mean square of the part's weights before,
    ``weights`` how many it has. The output layers of bid networks start at zero: ``change`` is NaN for a part
    that moved and was zero or negligible before (less than a millionth of the distance). Units are not weights: they
    have no row, and the output layer is compared as it is, in the units of either network.

    Args:
        before, after: networks of the same shapes, see `parts`.
        modules: whether there is a module axis.
        moved_by: relative to a part's root mean square.
    """
    old, new = (parts(nets, modules=modules) for nets in (before, after))
    rows = []
    for seed in range(len(next(iter(old.values())))):
        sums = {}  # squared change, squared size before, weights moved, weights
        for name in (name for name in old if f"/{UNITS}/" not in name):
            was, now = (np.asarray(p[name][seed], np.float64).ravel() for p in (old, new))
            moved = np.abs(now - was) > moved_by * np.sqrt(np.mean(was**2))
            sums[name] = np.array([np.sum((now - was) ** 2), np.sum(was**2), moved.sum(), was.size])
        sums["policies"] = sum(s for name, s in sums.items() if "policy/" in name)
        sums["all"] = sum(s for name, s in sums.items() if name != "policies")
        rows += [_row(seed, name, s) for name, s in sums.items()]
    return rows


def _row(seed: int, part: str, sums: np.ndarray) -> dict[str, Any]:
    change, size, moved, weights = sums
    distance, before = np.sqrt([change, size])
    relative = 0.0 if distance == 0 else distance / before if before > _NEGLIGIBLE * distance else np.nan
    return {
        "seed": seed,
        "part": part,
        "distance": float(distance),
        "change": float(relative),
        "moved": moved / weights,
        "weights": int(weights),
    }


_NEGLIGIBLE = 1e-6

"""The range of a module's own revenues, to which learners adapt the units of its bids."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxmarket.collectives import pmax
from jaxmarket.learners.protocol import Experience, Optimizer
from jaxmarket.policies import OUTPUT, UNITS, divisor
from jaxmarket.types import Array, PyTree, tree_select

__all__ = ["adapted", "in_units", "revenue_range", "units_move", "without_range"]

_SHRINK = 0.01  # of the range, per update
_LEAST = 1e-3  # half the width of a narrow range, relative to its values


def without_range(params: PyTree) -> PyTree:
    """A policy's parameters with an empty range at 0, as before the first revenue; bids are 0.

    Parameters without units are returned as they are.
    """
    return params if UNITS not in params else {**params, UNITS: jax.tree.map(jnp.zeros_like, params[UNITS])}


def revenue_range(
    low: Float[Array, ""],
    high: Float[Array, ""],
    won: Bool[Array, "R N"],
    revenue: Float[Array, "R N"],
    axis: str | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The range of the winners' revenues in this and earlier rollouts: its middle, and half its width.

    It grows at once, and shrinks by a small fraction of its distance to the latest revenues. Its width is at least a
    small fraction of its values, so that revenues that are constant leave room for bids.

    Args:
        low, high: the range so far.
        won: whose revenues count.
        revenue: utility + price.
        axis: the mesh axis over which experience is sharded, or None.
    """
    least = -pmax(jnp.max(jnp.where(won, -revenue, -jnp.inf)), axis)
    most = pmax(jnp.max(jnp.where(won, revenue, -jnp.inf)), axis)
    low = jnp.where(jnp.isfinite(least), jnp.minimum(least, low + _SHRINK * (least - low)), low)
    high = jnp.where(jnp.isfinite(most), jnp.maximum(most, high + _SHRINK * (most - high)), high)
    return (low + high) / 2, jnp.maximum((high - low) / 2, _LEAST * jnp.maximum(jnp.abs(low), jnp.abs(high)))


def units_move(opt: Optimizer) -> Bool[Array, ""]:
    """Whether a policy's units may change: neither they nor its output layer are frozen.

    Other units change the output layer of a value head, and the bids of a distribution.
    """
    if opt.movable is None:
        return jnp.ones((), bool)
    policy = opt.movable[0] if isinstance(opt.movable, tuple) else opt.movable
    parts = jax.tree.leaves((policy[UNITS], policy["params"][OUTPUT]))
    return jnp.all(jnp.array([jnp.all(leaf) for leaf in parts]))


def in_units(params: PyTree, experience: Experience) -> Experience:
    """The experience with bids and utilities in the policy's units, as `jaxmarket.policies.BidPolicy.output` has them.

    It is returned as it is for a policy without units.
    """
    if UNITS not in params:
        return experience
    low, width = params[UNITS]["location"], divisor(params[UNITS]["scale"])
    return experience.replace(bid=(experience.bid - low) / width, utility=experience.utility / width)


def adapted(before: PyTree, after: PyTree, experience: Experience, axis: str | None = None) -> PyTree:
    """The state of a learner after an update, with the range of the revenues for its distribution of bids.

    While all revenues are 0, so are bids, and they teach nothing: then the state from before is kept. A value network
    is not rescaled: it learns utilities in the new units within a few updates.

    Args:
        before, after: states with ``params`` and ``opt``.
        experience: of the rollout, in units of reward. Revenue is utility + price, so a learner that changes utilities
            changes the range, too.
        axis: the mesh axis over which experience is sharded, or None.
    """
    if UNITS not in before.params:
        return after
    units = before.params[UNITS]
    empty = units["scale"] == 0
    after = tree_select(empty, before, after)
    middle, half = revenue_range(
        units["location"],
        units["location"] + units["scale"],
        experience.won,
        experience.utility + experience.price,
        axis,
    )
    # The first range is always set, because all bids would stay 0 without it.
    units = tree_select(empty | units_move(after.opt), {"location": middle - half, "scale": 2 * half}, units)
    return after.replace(params={**after.params, UNITS: units})

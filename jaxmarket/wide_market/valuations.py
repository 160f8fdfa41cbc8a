"""Valuations: what a bundle of goods is worth to one agent.

Written for one agent and one bundle x, f [G]; put an agent axis on the leaves for a society of them. Every valuation
is worth nothing for nothing, v(0) = 0, and never falls as a bundle grows (free disposal). What money can do is decided
elsewhere: `equilibria` caps valuations by wealth, min(v, w).

Sums of products are written as products of vectors: XLA's CPU compiler (jaxlib 0.10.2; jax issue 39103) gets
`jnp.sum(a * x) - b` wrong where two `vmap`s make more than 32,768 of them.

A class of your own needs ``value``; a strictly concave one also `StrictlyConcave.demand`, and is then welcome
wherever `Quadratic` is.
"""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from flax import struct

from jaxmarket.types import Array

__all__ = ["Additive", "Linear", "Logarithmic", "Quadratic", "StrictlyConcave", "Valuation"]


@runtime_checkable
class Valuation(Protocol):
    """Anything that says what a bundle is worth."""

    def value(self, bundle: Array) -> Array:
        """v(x) in money: f [], of a bundle f [G]."""
        ...


@runtime_checkable
class StrictlyConcave(Valuation, Protocol):
    """A valuation with one best bundle at every price."""

    def demand(self, prices: Array, scale: Array) -> Array:
        """The bundle that maximises scale · v(x) - prices · x over x >= 0: f [G], finite also where prices are 0.

        Args:
            prices: f [G], not negative.
            scale: f [], in (0, 1].
        """
        ...


class Quadratic(struct.PyTreeNode):
    """v(x) = Σ_j a_j x_j - b_j x_j² / 2, up to its peak a_j / b_j; more is worth no more."""

    slope: Array  # f [G] a >= 0, what the first unit is worth
    curvature: Array  # f [G] b > 0

    def value(self, bundle: Array) -> Array:
        """v(x): f []."""
        x = jnp.minimum(bundle, self.slope / self.curvature)
        return (self.slope - self.curvature * x / 2) @ x

    def demand(self, prices: Array, scale: Array) -> Array:
        """(a_j - p_j / scale) / b_j, nothing below zero: f [G]."""
        return jnp.maximum(self.slope - prices / scale, 0) / self.curvature


class Logarithmic(struct.PyTreeNode):
    """v(x) = Σ_j a_j log(1 + x_j / s_j): no bundle is ever enough."""

    weight: Array  # f [G] a >= 0
    size: Array  # f [G] s > 0, the quantity from which on more matters less

    def value(self, bundle: Array) -> Array:
        """v(x): f []."""
        return self.weight @ jnp.log1p(bundle / self.size)

    def demand(self, prices: Array, scale: Array) -> Array:
        """λ a_j / p_j - s_j with λ for the scale, nothing below zero: f [G]. Free goods are taken to cost a trifle."""
        trifle = jnp.finfo(prices.dtype).tiny ** 0.5
        return jnp.maximum(scale * self.weight / jnp.maximum(prices, trifle) - self.size, 0)


class Linear(struct.PyTreeNode):
    """v(x) = Σ_j v_j x_j of divisible goods."""

    values: Array  # f [G] v >= 0, of a unit

    def value(self, bundle: Array) -> Array:
        """v(x): f []."""
        return self.values @ bundle


class Additive(struct.PyTreeNode):
    """Sealed bids, one for each indivisible good: v(x) = Σ_j v_j x_j, each good bought as a whole or not at all."""

    values: Array  # f [G] of a unit; no bid if not finite

    def value(self, bundle: Array) -> Array:
        """v(x): f []; goods it does not bid on are worth nothing to it."""
        return jnp.where(jnp.isfinite(self.values), self.values, 0) @ bundle

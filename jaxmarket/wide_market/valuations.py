"""Valuations: the value of a bundle of goods to one agent.

A valuation is written for one agent and one bundle x, f [G]; for N agents its leaves have a leading axis [N]. Every
valuation is normalised, v(0) = 0, and monotone: it never falls as a bundle grows (free disposal). Valuations ignore
wealth; `jaxmarket.wide_market.equilibrium` caps them, min(v, w).

Sums of products are written as products of vectors: XLA's CPU compiler (jaxlib 0.10.2; jax issue 39103) computes
`jnp.sum(a * x) - b` wrongly if two nested `vmap`s produce more than 32,768 of them.

A user-defined class needs the method ``value``. A strictly concave class also needs `StrictlyConcave.demand`, and can
then be used wherever `Quadratic` can.
"""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from flax import struct
from jaxtyping import Float

from jaxmarket.types import Array

__all__ = ["Additive", "BundleValuation", "Linear", "Logarithmic", "Quadratic", "StrictlyConcave"]


@runtime_checkable
class BundleValuation(Protocol):
    """The value of bundles to one agent."""

    def value(self, bundle: Float[Array, " G"]) -> Float[Array, ""]:
        """v(x) in money, of a bundle."""
        ...


@runtime_checkable
class StrictlyConcave(BundleValuation, Protocol):
    """A valuation with a unique best bundle at all prices."""

    def demand(self, prices: Float[Array, " G"], scale: Float[Array, ""]) -> Float[Array, " G"]:
        """The bundle that maximises scale · v(x) - prices · x over x >= 0, finite also where prices are 0.

        Args:
            prices: not negative.
            scale: in (0, 1].
        """
        ...


class Quadratic(struct.PyTreeNode):
    """v(x) = Σ_j a_j x_j - b_j x_j² / 2, and constant in x_j beyond the peak a_j / b_j."""

    slope: Float[Array, " G"]  # a >= 0, value of the first unit
    curvature: Float[Array, " G"]  # b > 0

    def value(self, bundle: Float[Array, " G"]) -> Float[Array, ""]:
        """v(x)."""
        x = jnp.minimum(bundle, self.slope / self.curvature)
        return (self.slope - self.curvature * x / 2) @ x

    def demand(self, prices: Float[Array, " G"], scale: Float[Array, ""]) -> Float[Array, " G"]:
        """max(a_j - p_j / scale, 0) / b_j."""
        return jnp.maximum(self.slope - prices / scale, 0) / self.curvature


class Logarithmic(struct.PyTreeNode):
    """v(x) = Σ_j a_j log(1 + x_j / s_j), which has no satiation point."""

    weight: Float[Array, " G"]  # a >= 0
    size: Float[Array, " G"]  # s > 0, the quantity that halves the marginal value

    def value(self, bundle: Float[Array, " G"]) -> Float[Array, ""]:
        """v(x)."""
        return self.weight @ jnp.log1p(bundle / self.size)

    def demand(self, prices: Float[Array, " G"], scale: Float[Array, ""]) -> Float[Array, " G"]:
        """max(λ a_j / p_j - s_j, 0) with λ = scale. Prices below eps count as eps, so that it is finite."""
        eps = jnp.finfo(prices.dtype).tiny ** 0.5
        return jnp.maximum(scale * self.weight / jnp.maximum(prices, eps) - self.size, 0)


class Linear(struct.PyTreeNode):
    """v(x) = Σ_j v_j x_j of divisible goods."""

    values: Float[Array, " G"]  # v >= 0, of a unit

    def value(self, bundle: Float[Array, " G"]) -> Float[Array, ""]:
        """v(x)."""
        return self.values @ bundle


class Additive(struct.PyTreeNode):
    """v(x) = Σ_j v_j x_j of indivisible goods, the supply of each of which goes to one agent."""

    values: Float[Array, " G"]  # of a unit; not finite: the agent does not bid on the good

    def value(self, bundle: Float[Array, " G"]) -> Float[Array, ""]:
        """v(x); goods that the agent does not bid on count 0."""
        return jnp.where(jnp.isfinite(self.values), self.values, 0) @ bundle

"""Valuations: the value of a bundle of goods to one agent.

A valuation is written for one agent and one bundle x, f [G]; for N agents its leaves have a leading axis [N]. Every
valuation is normalised, v(0) = 0, and monotone: it never falls as a bundle grows (free disposal). Valuations ignore
wealth; `jaxmarket.wide_market.equilibrium` caps them, min(v, w).

Sums of products are written as products of vectors: XLA's CPU compiler (jaxlib 0.10.2; jax issue 39103) computes
`jnp.sum(a * x) - b` wrongly if two nested calls of `vmap` produce more than 32,768 of them.

A user-defined class needs the method ``value``. A strictly concave class also needs `StrictlyConcave.demand`, and can
then be used wherever `Quadratic` can.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Float

from jaxmarket.types import Array

__all__ = ["Additive", "BundleValuation", "Linear", "Logarithmic", "Quadratic", "Separable", "StrictlyConcave"]


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


@runtime_checkable
class Separable(StrictlyConcave, Protocol):
    """A sum of strictly concave functions of one good each, which computes the scale at which a cap binds.

    The demand for a good then depends on no other price, except through that scale. Solvers are faster with such
    valuations: others need a search for the scale, and have no Jacobian of demand that is as cheap as demand itself.
    """

    def cap_scale(self, prices: Float[Array, " G"], wealth: Float[Array, ""]) -> Float[Array, ""]:
        """The λ at which ``demand(prices, λ)`` has the value ``wealth``; at least 1 if the cap does not bind.

        Args:
            prices: not negative.
            wealth: the cap.
        """
        ...


def rising_to(
    target: Float[Array, ""], levels: Float[Array, " G"], slopes: Float[Array, " G"], start: Float[Array, ""]
) -> Float[Array, ""]:
    """The u <= ``start`` at which Σ_j max(levels_j + slopes_j u, 0) = target; ``start`` if the sum is smaller there.

    The sum is convex and piecewise linear, so Newton's method from the right converges monotonically, and it ends with
    the exact piece after at most G + 1 steps.

    Args:
        target: positive.
        levels: of the pieces.
        slopes: of the pieces, not negative.
        start: the largest u.
    """

    def newton(u: Array) -> Array:
        active = levels + slopes * u > 0
        slope = jnp.where(active, slopes, 0).sum()
        left = (target - jnp.where(active, levels, 0).sum()) / jnp.where(slope > 0, slope, 1)
        return jnp.where(slope > 0, left, -jnp.inf)

    def goes_on(pair: tuple[Array, Array]) -> Array:
        return pair[1] < pair[0]

    return jax.lax.while_loop(goes_on, lambda pair: (pair[1], newton(pair[1])), (start, newton(start)))[0]


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

    def cap_scale(self, prices: Float[Array, " G"], wealth: Float[Array, ""]) -> Float[Array, ""]:
        """Σ_j max(a_j² - p_j² / λ², 0) / 2 b_j = w is piecewise linear in 1 / λ²."""
        peaks = self.slope**2 / self.curvature / 2
        ratios = jnp.where(self.slope > 0, prices / jnp.where(self.slope > 0, self.slope, 1), 0)
        most = ratios.max()  # the unit of 1 / λ, so that no square underflows
        falls = peaks * (ratios / jnp.where(most > 0, most, 1)) ** 2
        return most * jax.lax.rsqrt(-rising_to(wealth, peaks, falls, -(most**2)))


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

    def cap_scale(self, prices: Float[Array, " G"], wealth: Float[Array, ""]) -> Float[Array, ""]:
        """Σ_j a_j max(log λ + log(a_j / p_j s_j), 0) = w is piecewise linear in log λ."""
        eps = jnp.finfo(prices.dtype).tiny ** 0.5
        first = self.weight / jnp.maximum(prices, eps) / self.size
        levels = self.weight * jnp.log(jnp.where(first > 0, first, 1))
        return jnp.exp(rising_to(wealth, levels, self.weight, jnp.zeros_like(wealth)))


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

"""Equilibrium prices as the minimum of a convex program, the dual of welfare."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Float, Int

from jaxmarket.switches import standard_promotion
from jaxmarket.types import Array, PyTree, tree_select
from jaxmarket.wide_market.equilibrium import (
    MIN_TOLERANCE,
    Equilibrium,
    EquilibriumCertificate,
    PriceSearch,
    all_demands,
    capped_values,
    check_market,
    clearing_residual,
    excess_units,
    ration_and_certify,
    solve_strictly_concave,
    starting_prices,
)
from jaxmarket.wide_market.tatonnement import Tatonnement
from jaxmarket.wide_market.valuations import Linear, StrictlyConcave, rising_to

__all__ = ["ConvexProgram"]


_IDLE = 10
"""Newton iterations without improvement after which tâtonnement takes over."""

_TRIES = 8
"""Maximum number of times that a Newton step is shortened."""

_DAMPING = (1e-6, 1e-3, 1e-2, 1e-1, 1.0)
"""Added to the diagonal of the Hessian, relative to its entries or to the value of the supply."""


class _Point(NamedTuple):
    """The market at some prices."""

    prices: Float[Array, " G"]
    excess: Float[Array, " G"]  # excess demand over supply
    curvature: Float[Array, "G G"]  # see `linearised_demands`
    residual: Float[Array, ""]  # see `clearing_residual`


@dataclasses.dataclass(frozen=True)
class ConvexProgram:
    """Welfare's dual, min over p >= 0 of p · S + Σ_i max_x (min(v_i(x), w_i) - p · x), by Newton's method or L-BFGS.

    The gradient of the dual is supply minus demand, so its minimum clears the market. Newton's method minimises the
    dual of `jaxmarket.wide_market.valuations.Separable` valuations, in relative prices, with a damped Hessian and a
    line search. L-BFGS (Optax), on the logarithms of prices, minimises that of others. If the method does not
    converge, because goods are nearly free and the dual is nearly flat, tâtonnement takes over, which is descent on the
    same dual.

    Linear valuations have many best bundles, and a dual with kinks. They are solved as a sequence of strictly concave
    markets, in each of which moving away from the previous bundle has a small cost (the proximal point method;
    Rockafellar 1976).

    Attributes:
        max_iterations: maximum number of iterations of either method (in each market of a sequence:
            ``inner_iterations``).
        tolerance: excess demand over supply at which it stops.
        gap_tolerance: largest relative duality gap that counts as converged, and at which a sequence stops.
        memory: number of updates that L-BFGS keeps.
        proximal_steps: maximum number of markets in a sequence.
        inner_iterations: maximum number of L-BFGS iterations in each of them.
        proximal_weight: cost of moving, relative to prices.
        patience: number of markets of a sequence without improvement after which it stops.
    """

    max_iterations: int = 200
    tolerance: float = 1e-5
    gap_tolerance: float = 1e-3
    memory: int = 10
    proximal_steps: int = 200
    inner_iterations: int = 8
    proximal_weight: float = 0.01
    patience: int = 50

    @standard_promotion
    def __call__(
        self,
        valuations: PyTree,
        wealth: Array,
        holdings: Array,
        *,
        key: Array | None = None,
        prices: Array | None = None,
    ) -> Equilibrium:
        """Solve one market; see `jaxmarket.wide_market.equilibrium.EquilibriumSolver`."""
        hint = "a convex program needs a linear or strictly concave class"
        check_market(valuations, wealth, holdings, prices, (StrictlyConcave, Linear), hint)
        tolerances = 10 * self.tolerance, self.gap_tolerance
        if isinstance(valuations, Linear):
            return self._proximal_point(valuations, wealth, holdings, prices, tolerances)
        return solve_strictly_concave(self._find, valuations, wealth, holdings, prices, tolerances)

    def _find(self, search: PriceSearch, start: Float[Array, " G"]) -> tuple[Float[Array, " G"], Int[Array, ""]]:
        """Market-clearing prices, and the number of iterations."""
        if search.linearised is None:
            found, count = self._minimise(search, start, self.max_iterations)
        else:
            found, count = self._newton(search, search.linearised, start)
        fallback = Tatonnement(self.max_iterations + 1000, self.tolerance)
        usable = (count < self.max_iterations) & jnp.isfinite(found).all()
        return fallback.find(search, jnp.where(usable, found, start), count)

    def _newton(
        self, search: PriceSearch, linearised: Callable[..., tuple[Array, Array]], start: Float[Array, " G"]
    ) -> tuple[Float[Array, " G"], Int[Array, ""]]:
        """Prices that minimise the dual, and the number of Newton iterations."""
        supply, units = search.supply, search.units

        def evaluate(prices: Array) -> _Point:
            demands, curvature = linearised(prices)
            excess = (demands.sum(0) - supply) / units
            welfare = search.welfare(demands)
            residual = clearing_residual(excess, prices, units, welfare, self.tolerance, search.typical_prices)
            return _Point(prices, excess, curvature, residual)

        def goes_on(carry: tuple[_Point, _Point, Array, Array]) -> Array:
            now, _, count, idle = carry
            return (now.residual > 1) & (count < self.max_iterations) & (idle < _IDLE)

        def advance(carry: tuple[_Point, _Point, Array, Array]) -> tuple[_Point, _Point, Array, Array]:
            now, best, count, idle = carry
            value = now.prices * units
            slope = -value * now.excess  # of the dual, by relative prices
            stiffness = jnp.maximum(jnp.diagonal(now.curvature), _DAMPING[0] * value)
            # A good that nearly satiates its buyers would get a negative price: on its own it falls to 0 at most.
            bounded = now.curvature + jnp.diag(jnp.maximum(slope - stiffness, 0))
            # The smallest damping with which no price moves more than tenfold. Where all caps bind, demand does not
            # depend on the level of prices, and its undamped step would hide those of relative prices.
            damping = jnp.asarray(_DAMPING, value.dtype)[:, None, None] * jnp.diag(jnp.maximum(stiffness, value))
            steps = jax.vmap(jnp.linalg.solve, (0, None))(bounded + damping, -slope)
            small = ((steps >= -1.01) & (steps <= 9)).all(1)
            step = jnp.clip(steps[jnp.where(small.any(), small.argmax(), len(_DAMPING) - 1)], -0.9, 9)
            # A clipped step may not descend. One of each price on its own does.
            step = jnp.where(slope @ step < 0, step, jnp.clip(-slope / stiffness, -0.9, 9))
            begin = slope @ step

            def end(there: _Point) -> Array:
                """The slope of the dual along the step, at its end. Along a step the dual is convex."""
                return -there.excess @ (value * step)

            def overshoots(trial: tuple[Array, _Point, Array]) -> Array:
                _, there, tries = trial
                return (end(there) > -begin / 2) & (there.residual > 1) & (tries < _TRIES)

            def shorten(trial: tuple[Array, _Point, Array]) -> tuple[Array, _Point, Array]:
                length, there, tries = trial
                length = length * jnp.clip(begin / (begin - end(there)), 0.1, 0.5)
                return length, evaluate(now.prices * (1 + length * step)), tries + 1

            zero = jnp.zeros((), jnp.int32)
            first = jnp.ones_like(begin), evaluate(now.prices * (1 + step)), zero
            _, new, _ = jax.lax.while_loop(overshoots, shorten, first)
            better = new.residual < best.residual
            return new, tree_select(better, new, best), count + 1, jnp.where(better, 0, idle + 1)

        first, zero = evaluate(start), jnp.zeros((), jnp.int32)
        _, best, count, _ = jax.lax.while_loop(goes_on, advance, (first, first, zero, zero))
        # The demand for an absent good is within the tolerance. At a slightly higher price it is 0.
        return jnp.where(supply > 0, best.prices, best.prices * (1 + 100 * self.tolerance)), count

    def _minimise(
        self, search: PriceSearch, start: Float[Array, " G"], max_iterations: int
    ) -> tuple[Float[Array, " G"], Int[Array, ""]]:
        """Prices that minimise the dual, and the number of L-BFGS iterations."""
        tiny, epsilon = jnp.finfo(start.dtype).tiny, jnp.finfo(start.dtype).eps
        supply, units = search.supply, search.units
        # The unit of money is the initial trade; for scarce goods, the trade that demand would imply.
        scale = jnp.maximum(start @ jnp.maximum(supply, search.demands(start).sum(0) / 100), tiny)

        def dual(logs: Array) -> Array:
            prices = jnp.exp(logs)
            # By the envelope theorem the derivative of the inner maximum does not include that of demand.
            demands = jax.lax.stop_gradient(search.demands(jax.lax.stop_gradient(prices)))
            return (search.welfare(demands) + prices @ (supply - demands.sum(0))) / scale

        line_search = optax.scale_by_zoom_linesearch(max_linesearch_steps=15, initial_guess_strategy="one")
        optimizer = optax.lbfgs(memory_size=self.memory, linesearch=line_search)
        value_and_slope = optax.value_and_grad_from_state(dual)

        def goes_on(carry: tuple[Array, Any, Array, Array]) -> Array:
            logs, state, count, moves = carry
            value, slope = (optax.tree.get(state, name) for name in ("value", "grad"))
            prices, welfare = jnp.exp(logs), (value - slope.sum()) * scale
            excess = -slope * scale / prices / units
            cleared = clearing_residual(excess, prices, units, welfare, self.tolerance) <= 1
            return (count == 0) | ((count < max_iterations) & ~cleared & moves)

        def descend(carry: tuple[Array, Any, Array, Array]) -> tuple[Array, Any, Array, Array]:
            logs, state, count, _ = carry
            value, slope = value_and_slope(logs, state=state)
            step, state = optimizer.update(slope, state, logs, value=value, grad=slope, value_fn=dual)
            moves = jnp.abs(jnp.asarray(step)).max() > 2 * epsilon  # False for NaN
            return optax.apply_updates(logs, step), state, count + 1, moves  # type: ignore[return-value]

        logs = jnp.log(jnp.maximum(start, tiny))
        begin = logs, optimizer.init(logs), jnp.zeros((), jnp.int32), jnp.ones((), bool)
        logs, _, count, _ = jax.lax.while_loop(goes_on, descend, begin)
        return jnp.exp(logs), count

    def _proximal_point(
        self,
        valuations: Linear,
        wealth: Float[Array, " N"],
        holdings: Float[Array, "N G"],
        prices: Float[Array, " G"] | None,
        tolerances: tuple[float, float],
    ) -> Equilibrium:
        """Solve linear valuations as a sequence of strictly concave markets."""
        supply = holdings.sum(0)
        typical_prices = valuations.values.max(0)
        start = starting_prices(typical_prices, prices)
        # For a good with zero supply, the scale is the amount that the agents' money would buy.
        units = excess_units(supply, jnp.maximum(wealth, 0).sum() / jnp.where(typical_prices > 0, typical_prices, 1))
        # Moving half of a good's supply to a few agents costs about ``proximal_weight`` times its price.
        typical_bundle = units * holdings.shape[1] / holdings.shape[0]
        floor = 1e-3 * (typical_prices * typical_bundle).max() / typical_bundle
        weight = self.proximal_weight * jnp.maximum(typical_prices, floor) / typical_bundle

        def solve(carry: tuple[Array, Array, Array, Array, Any]) -> tuple[Array, Array, Array, Array, Any]:
            bundles, prices, count, idle, best = carry
            proximal = jax.vmap(Proximal, (0, 0, None))(valuations.values, bundles, weight)

            def welfare(moved: Array) -> Array:
                return capped_values(proximal, wealth, moved).sum() - jax.vmap(Proximal.cost)(proximal, moved).sum()

            def demands(prices: Array) -> Array:
                return all_demands(proximal, wealth, prices)

            search = PriceSearch(demands, welfare, supply, units, typical_prices)
            prices, iterations = self._minimise(search, prices, self.inner_iterations)
            bundles, count = demands(prices), count + iterations
            found = ration_and_certify(valuations, wealth, holdings, prices, bundles, count, tolerances, units)
            # Keep the best: if all goods are nearly free, the search can diverge, even to NaN.
            better = _residual_ratio(found.certificate, tolerances) < _residual_ratio(best.certificate, tolerances)
            best = tree_select(better, found, best)
            return bundles, prices, count, jnp.where(better, 0, idle + 1), best

        def goes_on(carry: tuple[Array, Array, Array, Array, Any]) -> Array:
            _, prices, count, idle, best = carry
            budget = self.proximal_steps * self.inner_iterations
            going = (count < budget) & (idle < self.patience) & jnp.isfinite(prices).all()
            return ~best.certificate.converged & going

        zero = jnp.zeros((), jnp.int32)
        # At these prices buying nothing is optimal. That is an equilibrium if owners value their goods most, or if no
        # agent values or can pay for any good.
        no_demand = jnp.zeros_like(holdings)
        autarky = ration_and_certify(valuations, wealth, holdings, start, no_demand, zero, tolerances, units)
        found = jax.lax.while_loop(goes_on, solve, (holdings, start, zero, zero, autarky))
        best = found[-1]
        return best.replace(certificate=best.certificate.replace(iterations=found[2]))


def _residual_ratio(certificate: EquilibriumCertificate, tolerances: tuple[float, float]) -> Float[Array, ""]:
    """The larger of excess demand and duality gap, each over its tolerance; at most 1 at convergence."""
    excess, gap = (max(tolerance, MIN_TOLERANCE) for tolerance in tolerances)
    return jnp.maximum(certificate.excess_demand / excess, certificate.duality_gap / gap)


class Proximal(struct.PyTreeNode):
    """A linear valuation of one agent with a quadratic cost of moving away from a bundle."""

    values: Float[Array, " G"]
    center: Float[Array, " G"]  # the bundle
    weight: Float[Array, " G"]  # ε

    def value(self, bundle: Float[Array, " G"]) -> Float[Array, ""]:
        """The value of the bundle without the cost of moving, which is what wealth caps."""
        return self.values @ bundle

    def cost(self, bundle: Float[Array, " G"]) -> Float[Array, ""]:
        """Σ ε (x - center)² / 2."""
        return self.weight @ (bundle - self.center) ** 2 / 2

    def demand(self, prices: Float[Array, " G"], scale: Float[Array, ""]) -> Float[Array, " G"]:
        """The bundle that maximises scale · v · x - cost(x) - prices · x."""
        return jnp.maximum(self.center + (scale * self.values - prices) / self.weight, 0)

    def cap_scale(self, prices: Float[Array, " G"], wealth: Float[Array, ""]) -> Float[Array, ""]:
        """The value of the bundle is piecewise linear in λ."""
        levels, slopes = self.center - prices / self.weight, self.values / self.weight
        return rising_to(wealth, self.values * levels, self.values * slopes, jnp.ones_like(wealth))

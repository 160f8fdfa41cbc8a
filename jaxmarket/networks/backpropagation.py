"""Prices by backpropagation on a graph of agents that trade goods.

There are n agents and G goods. Agent i transforms its input x_i into the output y_i = f_i(x_i), and sends the share
s_ij of each good it produced to agent j. Consumers value what agents hold and produce, and welfare is the sum of
these values:

    x_i = r_i + Σ_h s_hi y_h          r endowments, q_hi = s_hi y_h flows; 1 - Σ_j s_ij of the output leaves
    W   = Σ_i U_i(x_i, y_i)

On a fixed graph, consumers' bids are backpropagated (Sudhir and Tran-Thanh, 2025): an agent that expects the prices b_i
for its outputs offers the prices J_iᵀ b_i for its inputs, with its own Jacobian J_i at x_i:

    a_i = ∇_x U_i + J_iᵀ b_i          value of one more unit of each good as an input of i: dW/dr_i
    b_i = ∇_y U_i + Σ_j s_ij a_j      value of one more unit of each good as an output of i

`agent_quote` is one agent's part of this computation: it uses the bids of the agent's own consumers, its own
production, and the last quotes of its buyers. On an acyclic graph all quotes are exact after as many rounds as the
longest path has agents. On a graph with cycles, quotes sum the consumers' bids g over ever longer paths, a = Σ_k Mᵏ g
with M = Jᵀ S, and converge for all bids if and only if the spectral radius of M is below 1. M is the transpose of the
Jacobian of a round of flows, so quotes converge at x exactly if flows are stable at x. With linear production, flows
converge for all endowments under the same condition (that of Hawkins and Simon, if no entry is negative). If the radius
is at least 1, the equations may have a solution, but quotes do not converge to it, and it is not reported as a price.

`jaxmarket.networks.routing` changes the shares.

All functions are pure, work under `jit` and `vmap`, and can be differentiated to any order. Derivatives of a fixed
point follow the implicit function theorem, not the rounds. Source: arXiv 2503.05828, section 2, and its author's price
recursion.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Bool, Float, Int32

from jaxmarket.switches import standard_promotion
from jaxmarket.types import Array, PyTree
from jaxmarket.validation import as_float_array, check_no_nan, check_rows

__all__ = [
    "Convergence",
    "GoodsFlows",
    "MarketGraph",
    "Prices",
    "agent_quote",
    "consumer_bids",
    "flow_round",
    "goods_flows",
    "goods_prices",
    "graph_welfare",
    "quote_round",
    "solve_prices",
    "spectral_radius",
]

MAX_ROUNDS = 10_000


@dataclasses.dataclass(frozen=True)
class MarketGraph:
    """The functions of one agent; static.

    Agents differ in their parameters: a pytree whose leaves have a leading axis n, and which may contain the index of a
    `jax.lax.switch`.

    Attributes:
        produce: ``(agent, x f [G]) -> y f [G]``, differentiable at the flows.
        utility: ``(agent, x f [G], y f [G]) -> f []``, the value to this agent's consumers; None if `goods_prices`
            receives the consumers' bids as an argument.
    """

    produce: Callable[[PyTree, Array], Array]
    utility: Callable[[PyTree, Array, Array], Array] | None = None


class GoodsFlows(struct.PyTreeNode):
    """Goods held, produced and sent, in units of each good."""

    x: Float[Array, "n G"]  # inputs of each agent: its endowment and what it receives
    y: Float[Array, "n G"]  # outputs that it produces from them
    q: Float[Array, "n n G"]  # what it sends, from row to column


class Prices(struct.PyTreeNode):
    """Money per unit of each good, at each agent; may be negative."""

    inputs: Float[Array, "n G"]  # a, for one more unit of an input
    outputs: Float[Array, "n G"]  # b, for one more unit of an output


class Convergence(struct.PyTreeNode):
    """The outcome of a fixed-point iteration. If it did not converge, all results and their derivatives are NaN."""

    converged: Bool[Array, ""]  # the last round changed values by at most the tolerance
    rounds: Int32[Array, ""]  # including the last one, which confirmed convergence
    residual: Float[Array, ""]  # largest change in the last round / largest value; the error is about it / (1 - radius)
    spectral_radius: Float[Array, ""]  # of the quote map at x; costs (n G)³, under jit only if it is used


# --- GoodsFlows


def flow_round(
    graph: MarketGraph,
    agents: PyTree,
    shares: Float[Array, "n n G"],
    endowments: Float[Array, "n G"],
    x: Float[Array, "n G"],
) -> Float[Array, "n G"]:
    """The inputs of all agents after each produced from its inputs x and sent its outputs."""
    return endowments + jnp.einsum("hig,hg->ig", shares, jax.vmap(graph.produce)(agents, x))


@standard_promotion
def goods_flows(
    graph: MarketGraph,
    agents: PyTree,
    shares: Array,
    endowments: Array,
    *,
    tolerance: Array | float | None = None,
    max_rounds: Array | int = MAX_ROUNDS,
) -> tuple[GoodsFlows, Convergence]:
    """The fixed point of rounds of production, and whether they converged.

    On an acyclic graph this is exact, and takes at most as many rounds as the longest path has agents. On a graph with
    cycles it is the fixed point to which the rounds converge from the endowments, if they converge.

    Args:
        graph: the functions of one agent.
        agents: parameters, leading axis n.
        shares: f [n, n, G] s_ij, not negative, at most 1 in sum over j.
        endowments: f [n, G] r, units of each good that enter at each agent.
        tolerance: the residual at which rounds end; 10 machine epsilons if None.
        max_rounds: maximum number of rounds.

    Raises:
        ValueError: the shapes do not match, or an array that is not traced has NaN.
    """
    shares, endowments = _arrays(agents, shares, endowments)

    def step(x: Array) -> Array:
        return flow_round(graph, agents, shares, endowments, x)

    def tangent(linear: Callable[[Array], Array], value: Array) -> Array:
        return _sum_of_powers(lambda v: v - linear(v), value, tolerance, max_rounds)[0]

    x, iteration = jax.lax.custom_root(
        lambda x: x - step(x), endowments, lambda _, x: _iterate(step, x, tolerance, max_rounds), tangent, has_aux=True
    )
    y = jax.vmap(graph.produce)(agents, x)
    return GoodsFlows(x, y, shares * y[:, None]), _convergence(x, iteration, graph, agents, shares, iteration[0])


def graph_welfare(graph: MarketGraph, agents: PyTree, at: GoodsFlows) -> Float[Array, ""]:
    """W = Σ_i U_i(x_i, y_i). Raises ValueError if the graph has no utility."""
    return jax.vmap(_utility(graph))(agents, at.x, at.y).sum()


# --- Prices


def consumer_bids(graph: MarketGraph, agents: PyTree, x: Float[Array, "n G"]) -> Prices:
    """The consumers' offers for one more unit at each agent, ∇_x U_i and ∇_y U_i, at the inputs x.

    Raises:
        ValueError: the graph has no utility.
    """
    y = jax.vmap(graph.produce)(agents, x)
    return Prices(*jax.vmap(jax.grad(_utility(graph), (1, 2)))(agents, x, y))


def agent_quote(
    graph: MarketGraph,
    agent: PyTree,
    shares: Float[Array, "n G"],
    x: Float[Array, " G"],
    bids: Prices,
    quotes: Float[Array, "n G"],
) -> tuple[Float[Array, " G"], Float[Array, " G"]]:
    """One agent's prices, for its inputs and for its outputs, from information local to the agent.

    Args:
        graph: the functions of one agent.
        agent: parameters of this agent.
        shares: of its output, by buyer.
        x: its inputs.
        bids: f [G] each, of its own consumers.
        quotes: the last input prices of all agents; only those of its buyers count.
    """
    outputs = bids.outputs + (shares * quotes).sum(0)
    _, pull = jax.vjp(lambda x: graph.produce(agent, x), x)
    return bids.inputs + pull(outputs)[0], outputs


def quote_round(
    graph: MarketGraph,
    agents: PyTree,
    shares: Float[Array, "n n G"],
    x: Float[Array, "n G"],
    bids: Prices,
    quotes: Float[Array, "n G"],
) -> Prices:
    """`agent_quote` of all agents, given the quotes of the previous round (0 before the first)."""
    all_agents = jax.vmap(lambda agent, shares, x, bids: agent_quote(graph, agent, shares, x, bids, quotes))
    return Prices(*all_agents(agents, shares, x, bids))


@standard_promotion
def goods_prices(
    graph: MarketGraph,
    agents: PyTree,
    shares: Array,
    x: Array,
    bids: Prices | None = None,
    *,
    tolerance: Array | float | None = None,
    max_rounds: Array | int = MAX_ROUNDS,
) -> tuple[Prices, Convergence]:
    """The fixed point of rounds of quotes, and whether they converged.

    At the flows of the market, the input prices are the gradient of welfare with respect to the endowments.

    Args:
        graph: the functions of one agent.
        agents: parameters, leading axis n.
        shares: f [n, n, G] as in `goods_flows`.
        x: f [n, G], the inputs of the agents.
        bids: f [n, G] each, what consumers offer for a unit of an input or output; if None, `consumer_bids`.
        tolerance: the residual at which rounds end; 10 machine epsilons if None.
        max_rounds: maximum number of rounds.

    Raises:
        ValueError: the shapes do not match, an array that is not traced has NaN, or ``bids`` and ``graph.utility`` are
            both None.
    """
    shares, x = _arrays(agents, shares, x, "x")
    offers = consumer_bids(graph, agents, x) if bids is None else bids
    first = quote_round(graph, agents, shares, x, offers, jnp.zeros_like(x)).inputs
    a, iteration = _sum_of_powers(_quote_map(graph, agents, shares, x), first, tolerance, max_rounds)
    return quote_round(graph, agents, shares, x, offers, a), _convergence(a, iteration, graph, agents, shares, x)


@standard_promotion
def solve_prices(
    graph: MarketGraph,
    agents: PyTree,
    shares: Array,
    endowments: Array,
    bids: Prices | None = None,
    *,
    tolerance: Array | float | None = None,
    max_rounds: Array | int = MAX_ROUNDS,
) -> tuple[GoodsFlows, Prices, Convergence]:
    """`goods_flows`, then `goods_prices` and their convergence, for use outside of `jit`.

    Raises:
        ValueError: shares are negative, not finite or add up to more than 1; endowments are not finite; or the flows or
            the prices do not converge.
    """
    shares, endowments = _arrays(agents, shares, endowments)
    if not np.isfinite(endowments).all():
        raise ValueError(f"endowments: expected finite numbers, got {np.asarray(endowments)}; remove NaN and infinity")
    total = np.sum(shares, 1)
    if not (np.min(shares) >= 0 and np.max(total) <= 1 + 1e-5):
        raise ValueError(
            f"shares: expected numbers >= 0 whose sum over buyers is at most 1, got a smallest share of "
            f"{np.min(shares):.4g} and a largest sum of {np.max(total):.4g}; divide each row by its sum"
        )
    at, flow_convergence = _goods_flows(graph, agents, shares, endowments, tolerance=tolerance, max_rounds=max_rounds)
    _raise_unless_converged("flows", flow_convergence, max_rounds)
    found, convergence = _goods_prices(graph, agents, shares, at.x, bids, tolerance=tolerance, max_rounds=max_rounds)
    _raise_unless_converged("prices", convergence, max_rounds)
    return at, found, convergence


_goods_flows = jax.jit(goods_flows, static_argnames="graph")
_goods_prices = jax.jit(goods_prices, static_argnames="graph")


# --- Fixed points


def spectral_radius(matrix: Float[Array, "N N"]) -> Float[Array, ""]:
    """The largest absolute eigenvalue of a matrix: lim ``|Mᵏ|^(1/k)``, by squaring M thirty times.

    Unlike `jnp.linalg.eigvals` this runs on every device, and an acyclic graph gives exactly 0.
    """

    def square(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        power, log = carry
        size = jnp.abs(power).max()
        power = power / jnp.where(size > 0, size, 1)
        return jnp.matmul(power, power, precision="highest"), log + jnp.log(size) / 2.0**k

    return jnp.exp(jax.lax.fori_loop(0, 31, square, (matrix, jnp.zeros((), matrix.dtype)))[1])


_Iteration = tuple[Array, Array, Array]  # the last value, the rounds (as a float), the residual


def _iterate(
    step: Callable[[Array], Array], start: Array, tolerance: Array | float | None, max_rounds: Array | int
) -> tuple[Array, _Iteration]:
    """Repeat ``step`` until values change by at most the tolerance: the value, NaN without convergence, and details.

    Changes are relative to the largest value. The first n rounds are always run if anything changes: after them
    information has reached every agent, and small prices far from the consumers are not cut off.
    """
    tolerance = 10 * float(jnp.finfo(start.dtype).eps) if tolerance is None else tolerance

    def goes_on(carry: tuple[Array, Array, Array]) -> Array:
        _, residual, rounds = carry
        return (rounds < max_rounds) & (residual > jnp.where(rounds < start.shape[0], 0, tolerance))  # ends at NaN

    def advance(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        old, _, rounds = carry
        new = step(old)
        change, size = jnp.abs(new - old).max(), jnp.abs(new).max()
        return new, jnp.where(change == 0, 0, change / size), rounds + 1

    infinite = jnp.full((), jnp.inf, start.dtype)
    last, residual, rounds = jax.lax.while_loop(goes_on, advance, (start, infinite, jnp.zeros((), jnp.int32)))
    # All floats: JAX's custom_root differentiates auxiliary outputs, too.
    return jnp.where(residual <= tolerance, last, jnp.nan), (last, rounds.astype(last.dtype), residual)


def _sum_of_powers(
    linear: Callable[[Array], Array], first: Array, tolerance: Array | float | None, max_rounds: Array | int
) -> tuple[Array, _Iteration]:
    """Σ_k Mᵏ g, the solution v of v = g + M v, where ``linear`` is M and ``first`` g; differentiable in both."""
    # Linearise once: the map is not recomputed in every round, and a switch under vmap has no transpose without this.
    _, linear = jax.linearize(linear, jnp.zeros_like(first))
    transpose = jax.linear_transpose(linear, first)
    return jax.lax.custom_linear_solve(
        lambda v: v - linear(v),
        first,
        lambda _, g: _iterate(lambda v: g + linear(v), g, tolerance, max_rounds),
        lambda _, g: _iterate(lambda v: g + transpose(v)[0], g, tolerance, max_rounds),
        has_aux=True,
    )


def _quote_map(
    graph: MarketGraph, agents: PyTree, shares: Float[Array, "n n G"], x: Float[Array, "n G"]
) -> Callable[[Float[Array, "n G"]], Float[Array, "n G"]]:
    """M: the map from the last quotes to the next if consumers bid 0."""
    nothing = Prices(jnp.zeros_like(x), jnp.zeros_like(x))
    return lambda quotes: quote_round(graph, agents, shares, x, nothing, quotes).inputs


def _convergence(
    value: Float[Array, "n G"],
    iteration: _Iteration,
    graph: MarketGraph,
    agents: PyTree,
    shares: Float[Array, "n n G"],
    x: Float[Array, "n G"],
) -> Convergence:
    agents, shares, x = jax.lax.stop_gradient((agents, shares, x))
    matrix = jax.jacfwd(_quote_map(graph, agents, shares, x))(x).reshape(x.size, x.size)
    _, rounds, residual = jax.lax.stop_gradient(iteration)
    return Convergence(jnp.isfinite(value).all(), rounds.astype(jnp.int32), residual, spectral_radius(matrix))


def _raise_unless_converged(what: str, found: Convergence, max_rounds: Array | int) -> None:
    if found.converged:
        return
    radius, residual = float(found.spectral_radius), float(found.residual)
    if radius < 1 and not np.isfinite(residual):
        remedy = "a number is not finite: check bids, utility and production at the flows"
    elif radius < 1:
        remedy = f"convergence is slow near 1: allow more than max_rounds={max_rounds}, or a larger tolerance"
    else:
        remedy = "it must be below 1: reduce the shares or the yields along cycles"
    raise ValueError(
        f"shares: expected {what} that converge, got residual {residual:.3g} after {int(found.rounds)} rounds; the "
        f"quote map has spectral radius {radius:.6g}, and {remedy}"
    )


def _utility(graph: MarketGraph) -> Callable[[PyTree, Array, Array], Array]:
    if graph.utility is None:
        raise ValueError("utility: expected a function, got None; give MarketGraph a utility, or pass bids")
    return graph.utility


def _arrays(agents: PyTree, shares: Array, goods: Array, name: str = "endowments") -> tuple[Array, Array]:
    shares, goods = as_float_array("shares", shares), as_float_array(name, goods)
    if goods.ndim != 2 or shares.shape != (goods.shape[0], *goods.shape):
        raise ValueError(
            f"shares: expected [n, n, G] and {name} [n, G], got {shares.shape} and {goods.shape}; "
            "if all goods have the same shares, use jnp.broadcast_to(shares[..., None], (n, n, G))"
        )
    check_rows("agents", agents, goods.shape[0])
    check_no_nan("shares", shares)
    check_no_nan(name, goods)
    return shares, goods

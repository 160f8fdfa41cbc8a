"""Prices by backpropagation: consumers' bids travel up a market graph, as gradients do.

n agents, G goods. Agent i turns what it holds, x_i, into y_i = f_i(x_i), and sends the share s_ij of each good it
made to agent j. Consumers value what agents hold and make, and welfare is what they value it at:

    x_i = r_i + Σ_h s_hi y_h          r endowments, q_hi = s_hi y_h flows; 1 - Σ_j s_ij of the output leaves
    W   = Σ_i U_i(x_i, y_i)

Once the graph is fixed, consumers' bids are backpropagated through it (Sudhir and Tran-Thanh, 2025): an agent that
expects the prices b_i for its outputs offers the prices J_iᵀ b_i for its inputs, J_i its own Jacobian at x_i. So

    a_i = ∇_x U_i + J_iᵀ b_i          what one more unit of each good in i's hands is worth: dW/dr_i
    b_i = ∇_y U_i + Σ_j s_ij a_j      what one more unit of each good that i makes is worth

`quote` is one agent's part of this: its own consumers, its own production, the last quotes of those it sells to.
Where goods run in no circles, all quotes are exact after as many rounds as the longest chain has agents. Where they
do, quotes sum the consumers' bids g over ever longer paths, a = Σ_k Mᵏ g with M = Jᵀ S, and settle for whatever
consumers bid if and only if the spectral radius of M is below 1: what goes round a circle must come back smaller.
M is the transpose of the Jacobian of a round of flows, so prices exist at x exactly where flows are stable at x. With
linear production flows settle for whatever endowments under the same condition (Hawkins and Simon's, if nothing is
negative). Beyond it the equations may have a solution, but no sequence of quotes leads there: it is no price.

Routing: the shares s_ij = softmax_j θ_ij have the gradient dW/dθ_ij = q_ij (a_j - ā_i), ā_i = Σ_j s_ij a_j: the
advantage of selling to j. Replicator routing, ds_ij/dt = s_ij y_i (a_j - ā_i), raises welfare at the rate
Σ_i y_i² Var_s(a); with fitness a_j alone at the rate Σ_i y_i Var_s(a). Gradient ascent on θ does neither.

All functions are pure, `jit`, `vmap` and differentiate to any order: through a fixed point by the implicit function
theorem, never through the rounds. Source: arXiv 2503.05828, section 2, and its author's price recursion.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxmarket.switches import standard_promotion
from jaxmarket.types import Array, PyTree
from jaxmarket.validation import as_float_array

__all__ = [
    "Certificate",
    "Flows",
    "MarketGraph",
    "Prices",
    "consumer_bids",
    "flow_round",
    "flows",
    "prices",
    "quote",
    "quote_round",
    "replicator",
    "reroute",
    "routing_gradient",
    "solve_prices",
    "spectral_radius",
    "welfare",
]

MAX_ROUNDS = 10_000


@dataclasses.dataclass(frozen=True)
class MarketGraph:
    """What agents do, written for one agent; static.

    Agents differ by their parameters: a pytree with a leading axis n everywhere, which may hold the index of a
    `jax.lax.switch`.

    Attributes:
        produce: ``(agent, x f [G]) -> y f [G]``, differentiable at the flows.
        utility: ``(agent, x f [G], y f [G]) -> f []``, what this agent's consumers value. None: there is no reward,
            and `prices` is given the consumers' bids.
    """

    produce: Callable[[PyTree, Array], Array]
    utility: Callable[[PyTree, Array, Array], Array] | None = None


class Flows(struct.PyTreeNode):
    """Where the goods are, in units of each good."""

    x: Array  # f [n, G] what each agent holds: its endowment and what it is sent
    y: Array  # f [n, G] what it makes of that
    q: Array  # f [n, n, G] what it sends, from row to column


class Prices(struct.PyTreeNode):
    """Money per unit of each good, at each agent; may be negative."""

    inputs: Array  # f [n, G] a, for one more unit in its hands
    outputs: Array  # f [n, G] b, for one more unit of what it makes


class Certificate(struct.PyTreeNode):
    """How an iteration ended. What did not settle is NaN, everywhere, and so are its derivatives."""

    converged: Array  # bool [] the last round changed nothing that matters
    rounds: Array  # i32 [] run, the one that confirmed included
    residual: Array  # f [] largest change in the last round / largest value; the error is some 1/(1 - radius) times it
    spectral_radius: Array  # f [] of the quote map at x; costs (n G)³, under jit only if it is used


# --- Flows


def flow_round(graph: MarketGraph, agents: PyTree, shares: Array, endowments: Array, x: Array) -> Array:
    """Everybody produces from what it holds, x f [n, G], and sends it on: what everybody then holds, f [n, G]."""
    return endowments + jnp.einsum("hig,hg->ig", shares, jax.vmap(graph.produce)(agents, x))


@standard_promotion
def flows(
    graph: MarketGraph,
    agents: PyTree,
    shares: Array,
    endowments: Array,
    *,
    tolerance: Array | float | None = None,
    max_rounds: Array | int = MAX_ROUNDS,
) -> tuple[Flows, Certificate]:
    """The goods where rounds of production settle, and how they did.

    Without circles this is exact, and takes at most as many rounds as the longest chain has agents. With circles it
    is the fixed point to which the rounds lead from the endowments, if they lead to one (see `Certificate`).

    Args:
        graph: what agents do.
        agents: their parameters, leading axis n.
        shares: f [n, n, G] s_ij, not negative, at most 1 in sum over j.
        endowments: f [n, G] r, units of each good that enter at each agent.
        tolerance: the residual at which rounds end; 10 machine epsilons if None.
        max_rounds: that may be needed.

    Raises:
        ValueError: the shapes do not fit.
    """
    shares, endowments = _arrays(agents, shares, endowments)

    def step(x: Array) -> Array:
        return flow_round(graph, agents, shares, endowments, x)

    def tangent(linear: Callable[[Array], Array], value: Array) -> Array:
        return _sum_of_powers(lambda v: v - linear(v), value, tolerance, max_rounds)[0]

    x, settled = jax.lax.custom_root(
        lambda x: x - step(x), endowments, lambda _, x: _settle(step, x, tolerance, max_rounds), tangent, has_aux=True
    )
    y = jax.vmap(graph.produce)(agents, x)
    return Flows(x, y, shares * y[:, None]), _certificate(x, settled, graph, agents, shares, settled[0])


def welfare(graph: MarketGraph, agents: PyTree, at: Flows) -> Array:
    """W = Σ_i U_i(x_i, y_i), f []. Raises ValueError if the graph has no utility."""
    return jax.vmap(_utility(graph))(agents, at.x, at.y).sum()


# --- Prices


def consumer_bids(graph: MarketGraph, agents: PyTree, x: Array) -> Prices:
    """What consumers offer for one more unit at each agent, ∇_x U_i and ∇_y U_i, at the holdings x f [n, G].

    Raises:
        ValueError: the graph has no utility.
    """
    y = jax.vmap(graph.produce)(agents, x)
    return Prices(*jax.vmap(jax.grad(_utility(graph), (1, 2)))(agents, x, y))


def quote(
    graph: MarketGraph, agent: PyTree, shares: Array, x: Array, bids: Prices, quotes: Array
) -> tuple[Array, Array]:
    """One agent's prices: f [G] for its inputs, f [G] for its outputs. All it needs to know is in the arguments.

    Args:
        graph: what agents do.
        agent: its own parameters.
        shares: f [n, G] of its output, by buyer.
        x: f [G] what it holds.
        bids: f [G] each, of its own consumers.
        quotes: f [n, G] the input prices its buyers last quoted; those it sells nothing to do not count.
    """
    outputs = bids.outputs + (shares * quotes).sum(0)
    _, pull = jax.vjp(lambda x: graph.produce(agent, x), x)
    return bids.inputs + pull(outputs)[0], outputs


def quote_round(graph: MarketGraph, agents: PyTree, shares: Array, x: Array, bids: Prices, quotes: Array) -> Prices:
    """All agents quote at once, from the quotes f [n, G] of the round before (0 before the first)."""
    everyone = jax.vmap(lambda agent, shares, x, bids: quote(graph, agent, shares, x, bids, quotes))
    return Prices(*everyone(agents, shares, x, bids))


@standard_promotion
def prices(
    graph: MarketGraph,
    agents: PyTree,
    shares: Array,
    x: Array,
    bids: Prices | None = None,
    *,
    tolerance: Array | float | None = None,
    max_rounds: Array | int = MAX_ROUNDS,
) -> tuple[Prices, Certificate]:
    """The prices where rounds of quoting settle, and how they did.

    At the market's flows, the input prices are the gradient of welfare with respect to the endowments.

    Args:
        graph: what agents do.
        agents: their parameters, leading axis n.
        shares: f [n, n, G] as in `flows`.
        x: f [n, G] what agents hold.
        bids: f [n, G] each, what consumers offer for a unit of what agents hold and make; if None, `consumer_bids`.
        tolerance: the residual at which rounds end; 10 machine epsilons if None.
        max_rounds: that may be needed.

    Raises:
        ValueError: the shapes do not fit, or there are neither bids nor a utility.
    """
    shares, x = _arrays(agents, shares, x, "x")
    offers = consumer_bids(graph, agents, x) if bids is None else bids
    first = quote_round(graph, agents, shares, x, offers, jnp.zeros_like(x)).inputs
    a, settled = _sum_of_powers(_quote_map(graph, agents, shares, x), first, tolerance, max_rounds)
    return quote_round(graph, agents, shares, x, offers, a), _certificate(a, settled, graph, agents, shares, x)


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
) -> tuple[Flows, Prices, Certificate]:
    """`flows`, then `prices` (and their certificate), for use outside `jit`: raises where there are none.

    Raises:
        ValueError: shares are negative, not finite or more than 1 in sum; endowments are not finite; the flows or
            the prices do not settle, with the spectral radius.
    """
    shares, endowments = _arrays(agents, shares, endowments)
    if not np.isfinite(endowments).all():
        raise ValueError(f"endowments: finite amounts of goods, got {np.asarray(endowments)}; remove NaN and infinity")
    total = np.sum(shares, 1)
    if not (np.min(shares) >= 0 and np.max(total) <= 1 + 1e-5):
        raise ValueError(
            f"shares: at least 0 and at most 1 in sum over buyers, got a smallest share of {np.min(shares):.4g} and a "
            f"largest sum of {np.max(total):.4g}; divide each row by its sum"
        )
    at, goods = _flows(graph, agents, shares, endowments, tolerance=tolerance, max_rounds=max_rounds)
    _raise_unless_settled("flows", goods, max_rounds)
    found, money = _prices(graph, agents, shares, at.x, bids, tolerance=tolerance, max_rounds=max_rounds)
    _raise_unless_settled("prices", money, max_rounds)
    return at, found, money


_flows = jax.jit(flows, static_argnames="graph")
_prices = jax.jit(prices, static_argnames="graph")


# --- Routing


def routing_gradient(shares: Array, outputs: Array, a: Array) -> Array:
    """How welfare changes with the logits of softmax routing, dW/dθ_ij = q_ij (a_j - ā_i): f [n, n, G].

    Logits that all goods share have the sum of this over goods. ā_i is the mean price over i's buyers,
    Σ_j s_ij a_j / Σ_j s_ij, so that this also holds for ``shares = kept * softmax(logits, axis=1)``.

    Args:
        shares: f [n, n, G].
        outputs: f [n, G] y.
        a: f [n, G] input prices.
    """
    total = shares.sum(1)
    mean = jnp.einsum("ijg,jg->ig", shares, a) / jnp.where(total > 0, total, 1)
    return shares * outputs[:, None] * (a - mean[:, None])


def replicator(shares: Array, a: Array, outputs: Array | None = None) -> Array:
    """The velocity of shares under replicator routing, f [n, n, G]; sums to 0 over buyers.

    With ``outputs`` y f [n, G], fitness is the money a good earns, y_i a_j, and dW/dt = Σ y² Var_s(a). Without, it is
    the price a_j alone, and dW/dt = Σ y Var_s(a). (The first is, entry by entry, `routing_gradient`: as a velocity of
    shares, not of logits.)
    """
    return routing_gradient(shares, jnp.ones_like(a) if outputs is None else outputs, a)


def reroute(shares: Array, a: Array, outputs: Array | None = None, rate: Array | float = 0.1) -> Array:
    """One step of replicator routing that cannot leave the simplex: s_ij exp(rate · fitness), rescaled; f [n, n, G].

    Shares stay at or above 0, every row keeps its sum, no new buyer appears. Per unit of ``rate`` this is `replicator`.

    Args:
        shares: f [n, n, G].
        a: f [n, G] input prices.
        outputs: f [n, G] y; fitness is y_i a_j, or a_j if None.
        rate: f [], not negative.
    """
    fitness = rate * (a if outputs is None else outputs[:, None] * a)
    sold = shares > 0
    best = jnp.max(jnp.broadcast_to(fitness, shares.shape), 1, keepdims=True, where=sold, initial=-jnp.inf)
    grown = shares * jnp.exp(jnp.where(sold, fitness - best, 0))
    total = grown.sum(1, keepdims=True)
    return grown / jnp.where(total > 0, total, 1) * shares.sum(1, keepdims=True)


# --- Fixed points


def spectral_radius(matrix: Array) -> Array:
    """The largest absolute eigenvalue of a matrix f [N, N], f []: lim |Mᵏ|^(1/k), by squaring M thirty times.

    Unlike eigenvalues this runs on every device, and a graph without circles gives exactly 0.
    """

    def square(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        power, log = carry
        size = jnp.abs(power).max()
        power = power / jnp.where(size > 0, size, 1)
        return jnp.matmul(power, power, precision="highest"), log + jnp.log(size) / 2.0**k

    return jnp.exp(jax.lax.fori_loop(0, 31, square, (matrix, jnp.zeros((), matrix.dtype)))[1])


Settled = tuple[Array, Array, Array]  # the last value, the rounds (as a float), the residual


def _settle(
    step: Callable[[Array], Array], start: Array, tolerance: Array | float | None, max_rounds: Array | int
) -> tuple[Array, Settled]:
    """Repeat ``step`` until it changes nothing: the value, NaN if that failed, and how it went.

    A change counts against the largest value, but only after n rounds: by then every agent has heard of every other,
    and small prices far from the consumers are not cut off.
    """
    tolerance = 10 * float(jnp.finfo(start.dtype).eps) if tolerance is None else tolerance

    def going(carry: tuple[Array, Array, Array]) -> Array:
        _, residual, rounds = carry
        return (rounds < max_rounds) & (residual > jnp.where(rounds < start.shape[0], 0, tolerance))  # ends at NaN

    def once(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        old, _, rounds = carry
        new = step(old)
        change, size = jnp.abs(new - old).max(), jnp.abs(new).max()
        return new, jnp.where(change == 0, 0, change / size), rounds + 1

    infinite = jnp.full((), jnp.inf, start.dtype)
    last, residual, rounds = jax.lax.while_loop(going, once, (start, infinite, jnp.zeros((), jnp.int32)))
    # All floats: JAX's custom_root differentiates what comes with a root, if only to find that it is constant.
    return jnp.where(residual <= tolerance, last, jnp.nan), (last, rounds.astype(last.dtype), residual)


def _sum_of_powers(
    linear: Callable[[Array], Array], first: Array, tolerance: Array | float | None, max_rounds: Array | int
) -> tuple[Array, Settled]:
    """Σ_k Mᵏ g, the solution v of v = g + M v, where ``linear`` is M and ``first`` g; differentiable in both."""
    # Only what is linear: worked out once, not every round, and what vmap makes of a switch has no transpose as it is.
    _, linear = jax.linearize(linear, jnp.zeros_like(first))
    transpose = jax.linear_transpose(linear, first)
    return jax.lax.custom_linear_solve(
        lambda v: v - linear(v),
        first,
        lambda _, g: _settle(lambda v: g + linear(v), g, tolerance, max_rounds),
        lambda _, g: _settle(lambda v: g + transpose(v)[0], g, tolerance, max_rounds),
        has_aux=True,
    )


def _quote_map(graph: MarketGraph, agents: PyTree, shares: Array, x: Array) -> Callable[[Array], Array]:
    """M: how the next quotes follow from the last where consumers bid nothing, f [n, G] -> f [n, G]."""
    nothing = Prices(jnp.zeros_like(x), jnp.zeros_like(x))
    return lambda quotes: quote_round(graph, agents, shares, x, nothing, quotes).inputs


def _certificate(
    value: Array, settled: Settled, graph: MarketGraph, agents: PyTree, shares: Array, x: Array
) -> Certificate:
    agents, shares, x = jax.lax.stop_gradient((agents, shares, x))
    matrix = jax.jacfwd(_quote_map(graph, agents, shares, x))(x).reshape(x.size, x.size)
    _, rounds, residual = jax.lax.stop_gradient(settled)
    return Certificate(jnp.isfinite(value).all(), rounds.astype(jnp.int32), residual, spectral_radius(matrix))


def _raise_unless_settled(what: str, certificate: Certificate, max_rounds: Array | int) -> None:
    if certificate.converged:
        return
    radius, rounds, residual = float(certificate.spectral_radius), int(certificate.rounds), float(certificate.residual)
    remedy = f"it is slow near 1: allow more than max_rounds={max_rounds}, or a larger tolerance"
    if radius < 1 and not np.isfinite(residual):
        remedy = (
            "so they would, but for a number that is not finite: look at bids, utility and production where they are"
        )
    elif not radius < 1:
        remedy = "it must be below 1: let less of what runs in circles come back, by smaller shares or lower yields"
    raise ValueError(
        f"shares: {what} do not settle (residual {residual:.3g} after {rounds} rounds); where they are, the quote map "
        f"has spectral radius {radius:.6g}, and {remedy}"
    )


def _utility(graph: MarketGraph) -> Callable[[PyTree, Array, Array], Array]:
    if graph.utility is None:
        raise ValueError("utility: None, so nobody values anything; give the graph a utility, or prices the bids")
    return graph.utility


def _arrays(agents: PyTree, shares: Array, goods: Array, name: str = "endowments") -> tuple[Array, Array]:
    shares, goods = as_float_array("shares", shares), as_float_array(name, goods)
    if goods.ndim != 2 or shares.shape != (goods.shape[0], *goods.shape):
        raise ValueError(
            f"shares: f [n, n, G] for {name} f [n, G], got {shares.shape} and {goods.shape}; "
            "shares that are the same for all goods need jnp.broadcast_to(shares[..., None], (n, n, G))"
        )
    for leaf in jax.tree.leaves(agents):
        if not isinstance(leaf, jax.Array | np.ndarray) or leaf.shape[:1] != goods.shape[:1]:
            raise ValueError(
                f"agents: expected leaves [{goods.shape[0]}, ...], one entry for each agent, got "
                f"{getattr(leaf, 'shape', leaf)}"
            )
    return shares, goods

"""Routing: which share of its output an agent sells to whom, and its transpose, attention.

**Routing.** A sender's goods are scarce: its shares s_ij of each good add up to at most 1 over the receivers j. With
s_ij = softmax_j θ_ij, welfare has the gradient

    dW/dθ_ij = q_ij (a_j - ā_i),    q_ij = s_ij y_i,  ā_i = Σ_j s_ij a_j

the advantage of selling to j (`routing_gradient`). On the simplex, replicator routing ds_ij/dt = s_ij y_i (a_j - ā_i)
raises welfare at the rate Σ_i y_i² Var_s(a) (`replicator`, `welfare_rate`); with the price a_j alone as fitness, at the
rate Σ_i y_i Var_s(a). Gradient ascent on θ does neither. `reroute`, entropic mirror ascent, is its discrete step
s'_ij ∝ s_ij exp(η y_i a_j), and `train_routing` follows any of the three on a graph.

**Attention.** A receiver's budget is scarce: its weights w_ij add up to 1 over the senders i, and it holds
x_j = Σ_i w_ij y_i. With w_ij = softmax_i θ_ij,

    dW/dθ_ij = w_ij (v_ij - v̄_j),    v_ij = a_j · y_i,  v̄_j = Σ_i w_ij v_ij

the advantage of buying from i (`attention_gradient`). Attention is routing with the roles of prices and quantities
exchanged: the shares are wᵀ, the outputs are the prices a, and the prices are the outputs y.

**Bayes' rule.** Mirror ascent is Bayes' rule: s is the prior, and η y a the log-likelihood. The wealth of bettors is
its exact case (`settle_bets`): those who stake everything on their forecasts hold the posterior probabilities.

Source: arXiv 2503.05828, and its author's price recursion.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Float, Int

from jaxmarket.networks.backpropagation import MarketGraph, goods_flows, goods_prices, graph_welfare
from jaxmarket.types import Array, PyTree
from jaxmarket.validation import check_int

__all__ = [
    "RoutingRun",
    "Rule",
    "attention_gradient",
    "replicator",
    "reroute",
    "routing_gradient",
    "settle_bets",
    "train_routing",
    "welfare_rate",
]

Rule = Literal["logits", "mirror", "replicator"]
"""How shares change: gradient ascent on their logits, `reroute`, or a step of `replicator`."""


def routing_gradient(
    shares: Float[Array, "n m G"], outputs: Float[Array, "n G"], a: Float[Array, "m G"]
) -> Float[Array, "n m G"]:
    """The gradient of welfare with respect to the logits of softmax routing, dW/dθ_ij = q_ij (a_j - ā_i).

    For logits common to all goods, sum the result over goods. ā_i is the mean price over the buyers of i,
    Σ_j s_ij a_j / Σ_j s_ij, so that the formula also holds for ``shares = kept * softmax(logits, axis=1)``.

    Args:
        shares: as in `goods_flows`, of senders by receivers (mostly the same agents).
        outputs: y of the senders.
        a: input prices of the receivers.
    """
    mean = _mean_price(shares, a)
    return shares * outputs[:, None] * (a - mean[:, None])


def replicator(
    shares: Float[Array, "n n G"], a: Float[Array, "n G"], outputs: Float[Array, "n G"] | None = None
) -> Float[Array, "n n G"]:
    """The velocity of shares under replicator routing; sums to 0 over buyers.

    With ``outputs`` y, fitness is the money a good earns, y_i a_j, and dW/dt = Σ y² Var_s(a). Without, it is
    the price a_j alone, and dW/dt = Σ y Var_s(a). (With outputs, the entries equal those of `routing_gradient`, but as
    a velocity of shares and not of logits.)
    """
    return routing_gradient(shares, jnp.ones_like(a) if outputs is None else outputs, a)


def reroute(
    shares: Float[Array, "n n G"],
    a: Float[Array, "n G"],
    outputs: Float[Array, "n G"] | None = None,
    rate: Float[Array, ""] | float = 0.1,
) -> Float[Array, "n n G"]:
    """One step of replicator routing that stays in the simplex: s_ij exp(rate · fitness), rescaled.

    Shares stay at or above 0, every row keeps its sum, and shares of 0 stay 0. The derivative by ``rate`` at 0 is
    `replicator`.

    Args:
        shares: as in `goods_flows`.
        a: input prices.
        outputs: y; fitness is y_i a_j, or a_j if None.
        rate: not negative.
    """
    return _rescaled(shares, rate * (a[None] if outputs is None else outputs[:, None] * a))


def welfare_rate(
    shares: Float[Array, "n n G"], outputs: Float[Array, "n G"], a: Float[Array, "n G"]
) -> Float[Array, ""]:
    """dW/dt under `replicator` routing with outputs: Σ y² Var_s(a), over agents and goods.

    The variance over buyers is Σ_j s_ij (a_j - ā_i)², also if the shares of a good add up to less than 1.

    Args:
        shares: as in `goods_flows`.
        outputs: y.
        a: input prices.
    """
    mean = _mean_price(shares, a)
    return (outputs**2 * (shares * (a - mean[:, None]) ** 2).sum(1)).sum()


def attention_gradient(
    weights: Float[Array, "n m"], outputs: Float[Array, "n G"], a: Float[Array, "m G"]
) -> Float[Array, "n m"]:
    """The gradient of welfare with respect to the logits of attention, dW/dθ_ij = w_ij (v_ij - v̄_j), v_ij = a_j · y_i.

    Args:
        weights: w_ij = softmax_i θ_ij, of receiver j's budget for sender i; columns add up to 1.
        outputs: y_i of the senders, their values.
        a: prices of receivers for what they hold, x_j = Σ_i w_ij y_i.
    """
    value = outputs @ a.T
    return weights * (value - (weights * value).sum(0))


def settle_bets(
    wealth: Float[Array, " N"], forecasts: Float[Array, "N outcomes"], outcome: Int[Array, ""] | int
) -> Float[Array, " N"]:
    """The wealth of bettors after an outcome: w_i p_i / Σ_h (w_h / w) p_h, of which each staked all on its forecast.

    Assets pay 1 if their outcome occurs, and cost their wealth-weighted mean forecast, the price at which what is
    demanded equals what the stakes pay for. Wealth divided by its sum is the posterior probability of the bettors'
    forecasts, and total wealth does not change (Kelly betting).

    Args:
        wealth: not negative.
        forecasts: probabilities p_i of the outcomes, rows add up to 1.
        outcome: which one occurred.
    """
    staked = wealth * forecasts[:, outcome]
    total = staked.sum()
    return jnp.where(total > 0, staked / jnp.where(total > 0, total, 1) * wealth.sum(), wealth)


class RoutingRun(struct.PyTreeNode):
    """A run of `train_routing`."""

    shares: Float[Array, "n n G"]  # after the last step
    welfare: Float[Array, " T"]  # before each step
    rate: Float[Array, " T"]  # `welfare_rate` before each step
    change: Float[Array, " T"]  # of welfare by the step, divided by the step size


def train_routing(
    graph: MarketGraph,
    agents: PyTree,
    shares: Float[Array, "n n G"],
    endowments: Float[Array, "n G"],
    *,
    rule: Rule = "mirror",
    step_size: Float[Array, ""] | float = 0.1,
    steps: int = 100,
) -> RoutingRun:
    """Change shares at the prices of the graph, step by step; every step solves for flows and prices.

    Shares of 0 stay 0, and the shares of a good keep their sum. The result is NaN from the first step whose flows or
    prices do not converge.

    Args:
        graph: with a utility.
        agents: parameters, leading axis n.
        shares: at first.
        endowments: units of each good that enter at each agent.
        rule: "mirror", "replicator" (both with outputs), or "logits", gradient ascent on logits.
        step_size: η > 0.
        steps: number of steps.

    Raises:
        ValueError: the rule is unknown, ``steps`` is less than 1, or the graph has no utility.
    """
    steps = check_int("steps", steps, 1)
    if rule not in get_args(Rule):
        raise ValueError(f"rule: expected {', '.join(get_args(Rule))}, got {rule!r}; choose one of them")
    moves: dict[str, Callable[[Array, Array, Array], Array]] = {
        "mirror": lambda s, y, a: reroute(s, a, y, step_size),
        "replicator": lambda s, y, a: s + step_size * replicator(s, a, y),
        # softmax(θ + η dW/dθ) is the old softmax times exp(η dW/dθ), rescaled
        "logits": lambda s, y, a: _rescaled(s, step_size * routing_gradient(s, y, a)),
    }

    def solved(shares: Array) -> tuple[Array, Array, Array]:
        at, _ = goods_flows(graph, agents, shares, endowments)
        prices, _ = goods_prices(graph, agents, shares, at.x)
        return at.y, prices.inputs, graph_welfare(graph, agents, at)

    def advance(shares: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        y, a, welfare = solved(shares)
        return moves[rule](shares, y, a), (welfare, welfare_rate(shares, y, a))

    last, (welfare, rate) = jax.lax.scan(advance, shares, length=steps)
    change = jnp.diff(welfare, append=solved(last)[2])
    return RoutingRun(last, welfare, rate, change / step_size)


def _mean_price(shares: Float[Array, "n m G"], a: Float[Array, "m G"]) -> Float[Array, "n G"]:
    """ā: the mean price over the buyers of each sender, 0 without buyers."""
    total = shares.sum(1)
    return jnp.einsum("ijg,jg->ig", shares, a) / jnp.where(total > 0, total, 1)


def _rescaled(shares: Float[Array, "n n G"], fitness: Float[Array, "_ n G"]) -> Float[Array, "n n G"]:
    """s_ij exp(fitness), rescaled to the sum of its row; shares of 0 stay 0."""
    sold = shares > 0
    best = jnp.max(jnp.broadcast_to(fitness, shares.shape), 1, keepdims=True, where=sold, initial=-jnp.inf)
    weights = shares * jnp.exp(jnp.where(sold, fitness - best, 0))
    total = weights.sum(1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1) * shares.sum(1, keepdims=True)

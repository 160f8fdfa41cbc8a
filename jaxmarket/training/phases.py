"""Phased learning of tabular values, a reference for other learners: its error has a bound (Kearns and Singh 1999)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.auctions import Mechanism
from jaxmarket.environments.adapter import adapt
from jaxmarket.environments.tabular import FiniteMDP
from jaxmarket.policies import BidPolicy, ValueHead, bid_table, linear
from jaxmarket.rollouts import fresh_rollout
from jaxmarket.settlement import settle
from jaxmarket.society import Society
from jaxmarket.types import Array, Rules

__all__ = ["mean_revenue", "phased_values"]


@functools.partial(jax.jit, static_argnames=("society", "instances", "steps"))
def mean_revenue(
    society: Society, values: Array, key: Array, exploration: Array, gamma: Array, instances: int, steps: int
) -> tuple[Array, Array]:
    """Mean revenue of each winner in each state if all agents bid ``values``, and counts: f [S, P] each.

    Args:
        society: tabular, with bids that are estimates of values.
        values: f [S, P].
        key: a typed PRNG key.
        exploration: ε, probability that a uniformly random bidder wins.
        gamma: discount of a sale.
        instances: parallel environments, static.
        steps: auctions of each, static.
    """
    env_params, rules = society.env.default_params, Rules(exploration=exploration)
    params = bid_table(values.T)

    def earned(key: Array) -> tuple[Array, Array]:
        rows = fresh_rollout(society, key, params, env_params, steps, rules)
        revenue = settle(rows, gamma).revenue
        primitive = jax.nn.one_hot(rows.outcome.winner // society.clones, society.primitives)
        return jnp.einsum("ts,tp,t->sp", rows.obs, primitive, revenue), jnp.einsum("ts,tp->sp", rows.obs, primitive)

    total, count = jax.tree.map(lambda x: x.sum(0), jax.vmap(earned)(jax.random.split(key, instances)))
    return total / count, count


def phased_values(
    mechanism: Mechanism,
    clones: int,
    mdp: FiniteMDP,
    exploration: float,
    key: Array,
    *,
    radius: float,
    phases: int,
    instances: int,
    steps: int,
    failure: float = 1e-3,
) -> tuple[np.ndarray, float]:
    """Learn the fixed point of a society's expected backups (`environments.backups.market_values`) from samples.

    Bids are held fixed within a phase, and then replaced by the mean revenue of each winner in each state. Every
    expected backup is a contraction by γ, so with probability 1 - δ the result v_K of K phases is within::

        γ^K |v₀ - v*| + Σₖ γ^(K-k) εₖ,   εₖ = γ · spread(vₖ) · sqrt(ln(2 · S · P · K · N / δ) / (2 nₖ))

    of the fixed point v* (Hoeffding; union over states, actions, phases and the N possible values of the smallest count
    nₖ).

    Args:
        mechanism: the auction.
        clones: bidders per action.
        mdp: the process.
        exploration: ε, probability that a uniformly random bidder wins.
        key: a typed PRNG key.
        radius: a bound on the largest value of v*; v₀ is 0.
        phases: K.
        instances: parallel environments in each phase.
        steps: auctions of each.
        failure: δ.

    Returns:
        The values f64 [S, P], and the bound.

    Raises:
        ValueError: an agent never won in some state, so that its value is unknown.
    """
    society = Society(env=adapt(mdp), policy=BidPolicy(linear(), ValueHead()), mechanism=mechanism, clones=clones)
    values = np.zeros(mdp.rewards.shape)
    union = 2 * values.size * phases * instances * steps / failure
    for k in range(phases):
        spread = mdp.gamma * float(np.ptp(values))
        bids, traced = jnp.asarray(values, jnp.float32), (jnp.float32(exploration), jnp.float32(mdp.gamma))
        mean, count = mean_revenue(society, bids, jax.random.fold_in(key, k), *traced, instances, steps)
        values, least = np.asarray(mean, np.float64), float(np.asarray(count).min())
        if least == 0:
            raise ValueError(f"steps: {instances} × {steps} auctions of {mdp.name} do not sample every state; use more")
        radius = mdp.gamma * radius + spread * np.sqrt(np.log(union) / (2 * least))
    return values, float(radius)

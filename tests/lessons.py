"""Random purchases of a round, and in plain Python what agents learn from them."""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.auctions import clear
from jaxmarket.deep_market import Purchases


def random_purchases(draw: np.random.Generator, bids: jax.Array, obs: jax.Array, shared: bool) -> Purchases:
    """Purchases for bids [T, B, N], with two actions; with ``shared``, agents have random stakes."""
    (steps, instances, agents), outcome = bids.shape, jax.vmap(jax.vmap(clear))(bids)
    ends, stakes = draw.random((steps, instances)), draw.random((steps, instances, agents)).round().astype(np.float32)
    return Purchases(
        obs=obs,
        outcome=outcome,
        action=jnp.asarray(draw.integers(0, 2, (steps, instances)), jnp.int32),
        price=outcome.winning_bid,
        payout=outcome.winning_bid + 0.1,
        income=jnp.asarray(draw.random((steps, instances)), jnp.float32),
        kept=jnp.asarray(draw.random((steps, instances)) < 0.8),
        terminated=jnp.asarray(ends < 0.2),
        truncated=jnp.asarray(ends > 0.8),
        stakes=jnp.asarray(stakes * (np.asarray(outcome.winner)[..., None] >= 0)) if shared else None,
    )


def lessons(purchases: Purchases, intended: np.ndarray, whose: str) -> Iterator[tuple[int, int, int, float]]:
    """Step, instance, agent and revenue of all that is learned, in order.

    ``whose`` purchases an agent learns from: "public", of all purchases those of states that it bids for and in which
    the buyer does what it would do (``intended``, [T, B, N]); its "own"; or "shared", those in which it has a stake.
    """
    p = jax.tree.map(np.asarray, purchases)
    steps, instances, agents = p.outcome.bids.shape
    for t, i in itertools.product(range(steps), range(instances)):
        if p.outcome.winner[t, i] < 0 or not (p.terminated[t, i] or (t < steps - 1 and not p.truncated[t, i])):
            continue
        sold_on = p.kept[t, i] and not p.terminated[t, i]
        revenue = p.income[t, i] + (p.payout[t + 1, i] if sold_on else 0)
        for a in range(agents):
            learns = {
                "public": np.isfinite(p.outcome.bids[t, i, a]) and intended[t, i, a] == p.action[t, i],
                "own": p.outcome.winner[t, i] == a,
                "shared": whose == "shared" and p.stakes[t, i, a] > 0,
            }
            if learns[whose]:
                yield t, i, a, revenue

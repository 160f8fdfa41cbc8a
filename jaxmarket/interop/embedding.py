"""A market as one function of bids made elsewhere: by your own network, algorithm or environment loop."""

import dataclasses

import jax.numpy as jnp

from jaxmarket.policies import Point
from jaxmarket.society import Society
from jaxmarket.types import Array, PyTree, real

__all__ = ["GivenBids", "given_bids"]


@dataclasses.dataclass(frozen=True)
class GivenBids:
    """A bid policy whose parameters are its bid: it bids what it is given, whatever it sees."""

    def init(self, key: Array, obs: Array) -> Array:
        """A bid of 0: f []."""
        del key, obs
        return jnp.zeros((), real())

    def apply(self, params: PyTree, obs: Array) -> Point:
        """The bid ``params`` [], for certain."""
        del obs
        return Point(jnp.asarray(params, real()))


def given_bids(society: Society) -> Society:
    """The same society, its bids made elsewhere: they are what `jaxmarket.step` takes as ``params``, f [A].

    The rest is untouched, and so are the step's draws: with the bids a society would have made, its step is
    the society's own, bit for bit. Prices, wealth and utilities are differentiable in the bids (who wins is not,
    and counts as fixed). A bid that is NaN or infinite is not eligible.

    >>> import jax, jaxmarket
    >>> society = given_bids(jaxmarket.TrainConfig("Chain-v0", clones=1).settings.society)
    >>> env_params = society.env.default_params
    >>> state, obs = jaxmarket.reset(society, jax.random.key(0), env_params)
    >>> bids = jnp.array([0.25, 0.75])
    >>> step = jax.jit(jaxmarket.step, static_argnums=0)
    >>> state, row = step(society, jax.random.key(1), bids, state, env_params)
    >>> int(row.outcome.winner), float(row.price), state.accounts.wealth.tolist()
    (1, 0.25, [0.0, -0.25])
    """
    return dataclasses.replace(society, policy=GivenBids(), share=False)

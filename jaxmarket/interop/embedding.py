"""The market step as a function of given bids, which your own network, algorithm or training loop computes.

If primitives learn, actions are given as well.
"""

import dataclasses

import jax.numpy as jnp

from jaxmarket.policies import Point
from jaxmarket.society import Society
from jaxmarket.types import Array, PyTree, real

__all__ = ["Given", "given_bids"]


@dataclasses.dataclass(frozen=True)
class Given:
    """A policy whose parameter is what it bids, or how it acts, whatever the observation.

    Attributes:
        shape: of the parameter; () for a bid.
    """

    shape: tuple[int, ...] = ()

    def init(self, key: Array, obs: Array) -> Array:
        """Zeros: ``f [*shape]``."""
        del key, obs
        return jnp.zeros(self.shape, real())

    def apply(self, params: PyTree, obs: Array) -> Point:
        """The parameter as a point distribution."""
        del obs
        return Point(jnp.asarray(params, real()))


def given_bids(society: Society) -> Society:
    """The same society with bids as its parameters: `jaxmarket.step` takes them as ``params``, f [A].

    If primitives learn, ``params`` is a dict of ``bids`` f [A] and ``actions``, what each bidder does if it wins, f [A]
    (the numbers of actions) or f [A, D].

    All other fields and the random draws are unchanged, so that a step with the society's own bids is bit-identical.
    Prices, wealth and utilities are differentiable in the bids, for a fixed winner. A bid that is NaN or infinite is
    not eligible.

    Raises:
        ValueError: primitives learn, and the environment has illegal actions.

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
    learned = society.learned
    if learned is not None:
        if society.env.restricts_actions:
            raise ValueError(
                f"env: {society.env.name} has illegal actions, and given actions may be among them; use another "
                "environment, or primitives='actions'"
            )
        box = society.env.box
        learned = dataclasses.replace(learned, policy=Given(() if box is None else (len(box.low),)))
    return dataclasses.replace(society, policy=Given(), share=False, learned=learned)

"""Who paid whom: the money that moves between the accounts of a trained society."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.metrics import ACCOUNTS, ledger
from jaxmarket.rollouts import fresh_rollout
from jaxmarket.society import Society
from jaxmarket.training.result import RunResult
from jaxmarket.training.transfer import acting_params
from jaxmarket.types import Array, PyTree

__all__ = ["account_names", "minted_money", "who_paid_whom"]

_INSTANCES = 32


def who_paid_whom(run: RunResult, key: Array) -> np.ndarray:
    """Money per episode from payer to payee, in new episodes with sampled bids: f [A + 3, A + 3].

    The mean over the seeds of the run. Rows and columns are the accounts of `account_names`.

    Args:
        run: a trained society.
        key: a typed PRNG key.
    """
    horizon = 4 * (run.config.adapter.longest_episode(run.config.adapter.default_params) or 100)
    money, episodes = _money(run.config.settings.society, acting_params(run.networks), key, horizon)
    return np.asarray(money) / max(1.0, float(episodes))


@functools.partial(jax.jit, static_argnames=("society", "steps"))
def _money(society: Society, params: PyTree, key: Array, steps: int) -> tuple[Array, Array]:
    """Ledgers of new episodes with sampled bids, summed over seeds and instances; and the number of episodes."""

    def money(params: PyTree, key: Array) -> tuple[Array, Array]:
        rows = fresh_rollout(society, key, params, society.env.default_params, steps, bootstrap=False)
        return ledger(rows), rows.done.sum()

    seeds = jax.tree.leaves(params)[0].shape[0]
    keys = jax.random.split(key, (seeds, _INSTANCES))
    tables, ended = jax.vmap(lambda p, ks: jax.vmap(lambda k: money(p, k))(ks))(params, keys)
    return tables.sum((0, 1)), ended.sum()


def minted_money(
    run: RunResult, key: Array, *, greedy: bool = False, steps: int = 100, instances: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Money that sellers receive and buyers do not pay, per auction of new episodes: f [seeds] twice.

    The first number is that of auctions in which a bidder of the owner's primitive wins, so that the owner or its clone
    sells to itself; the second is that of all others. Their sum is the money minted per auction.

    Args:
        run: a trained society.
        key: a typed PRNG key.
        greedy: whether bids are those without noise.
        steps: auctions of each instance.
        instances: of the environment, for each seed.
    """
    society = dataclasses.replace(run.config.settings.society, greedy=greedy)
    params = acting_params(run.networks)
    keys = jax.random.split(key, jax.tree.leaves(params)[0].shape[0])
    return jax.device_get(jax.vmap(lambda p, k: _minted(society, p, k, steps, instances))(params, keys))


@functools.partial(jax.jit, static_argnames=("society", "steps", "instances"))
def _minted(society: Society, params: PyTree, key: Array, steps: int, instances: int) -> tuple[Array, Array]:
    def money(key: Array) -> tuple[Array, Array]:
        rows = fresh_rollout(society, key, params, society.env.default_params, steps, bootstrap=False)
        subsidy = rows.payout - rows.price
        own = (rows.owner >= 0) & (rows.owner // society.clones == rows.outcome.winner // society.clones)
        return jnp.where(own, subsidy, 0).mean(), jnp.where(own, 0, subsidy).mean()

    own, others = jax.vmap(money)(jax.random.split(key, instances))
    return own.mean(), others.mean()


def account_names(society: Society) -> list[str]:
    """Names of the rows and columns of a ledger: bidders by primitive and clone, such as ``0a``, then `ACCOUNTS`."""
    clone = "abcdefghijklmnopqrstuvwxyz"
    bidders = [f"{a // society.clones}{clone[a % society.clones % 26]}" for a in range(society.bidders)]
    return [*bidders, *ACCOUNTS]

"""Who paid whom: the money that moves between the accounts of a trained society."""

import functools

import jax
import numpy as np

from jaxmarket.metrics import ACCOUNTS, ledger
from jaxmarket.rollouts import fresh_rollout
from jaxmarket.society import Society
from jaxmarket.training.result import RunResult
from jaxmarket.types import Array, PyTree

__all__ = ["account_names", "who_paid_whom"]

_INSTANCES = 32


def who_paid_whom(run: RunResult, key: Array) -> np.ndarray:
    """Money per episode from payer to payee, in new episodes with sampled bids: f [A + 3, A + 3].

    The mean over the seeds of the run. Rows and columns are the accounts of `account_names`.

    Args:
        run: a trained society.
        key: a typed PRNG key.
    """
    horizon = 4 * (run.config.adapter.longest_episode(run.config.adapter.default_params) or 100)
    money, episodes = _money(run.config.settings.society, run.networks["policy"], key, horizon)
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


def account_names(society: Society) -> list[str]:
    """Names of the rows and columns of a ledger: bidders by primitive and clone, such as ``0a``, then `ACCOUNTS`."""
    clone = "abcdefghijklmnopqrstuvwxyz"
    bidders = [f"{a // society.clones}{clone[a % society.clones % 26]}" for a in range(society.bidders)]
    return [*bidders, *ACCOUNTS]

"""The distance of trained societies from equilibrium: gains of best replies, exact or trained."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.keys import key_for
from jaxmarket.settlement import TimeLimits
from jaxmarket.society import Society, draw
from jaxmarket.switches import standard_promotion
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.society import SocietyTraining
from jaxmarket.training.trainable import Trainable
from jaxmarket.types import Array, PyTree
from jaxmarket.validation import check_int, short_repr

if TYPE_CHECKING:
    from jaxmarket.interop.bidder import BidderEnv
    from jaxmarket.interop.deviations import BestReplies

__all__ = ["TrainedReply", "of_seeds", "solvable", "trained"]

_LEARNER = {"hidden": (64, 64), "horizon": 64, "epochs": 2, "learning_rate": 1e-3, "entropy": 0.01, "steps": 120_000}


def solvable(trainable: Trainable) -> TypeGuard[SocietyTraining]:
    """Whether the best replies of its bidders can be solved: a society over a finite process, whose actions it buys."""
    if not isinstance(trainable, SocietyTraining) or trainable.society.learned is not None:
        return False
    from jaxmarket.environments.tabular import FiniteMDP  # noqa: PLC0415  imports gymnax

    return isinstance(trainable.env.env, FiniteMDP)


def of_seeds(trainable: Trainable, params: PyTree, *, greedy: bool = False) -> "list[BestReplies]":
    """`best_replies` of every seed, under the time limits of its training.

    Args:
        trainable: what was trained; `solvable`.
        params: bid-network parameters, leaves [seeds, M, ...].
        greedy: whether bids are greedy; otherwise they are drawn.

    Raises:
        ValueError: it is not `solvable`.
    """
    if not solvable(trainable):
        raise ValueError(
            f"trainable: expected a society over a finite process, got {short_repr(trainable)}; use trained"
        )
    from jaxmarket.interop.deviations import best_replies  # noqa: PLC0415  imports gymnax

    society = dataclasses.replace(trainable.society, greedy=greedy)
    params = jax.device_get(params)
    seeds = len(jax.tree.leaves(params)[0])
    each = (jax.tree.map(lambda leaf, seed=seed: leaf[seed], params) for seed in range(seeds))
    return [best_replies(society, own, trainable.time_limits) for own in each]


@dataclasses.dataclass(frozen=True)
class TrainedReply:
    """What bidders earned that were trained against a fixed society, in new episodes: a lower bound of the best.

    Attributes:
        gains: of each trained bidder over the society's own bids in its place, mean of episodes, f [seeds]. Each is an
            estimate of a lower bound of the gain of the best reply.
        errors: their standard errors, f [seeds].
        params: of the trained bidders, leaves [seeds, ...].
        env: the environment in which they were trained.
        config: the settings they were trained with.
    """

    gains: np.ndarray
    errors: np.ndarray
    params: PyTree
    env: "BidderEnv"
    config: TrainConfig


def trained(
    society: Society,
    params: PyTree,
    bidder: int,
    levels: Sequence[float],
    key: Array,
    *,
    time_limits: TimeLimits = "bootstrap",
    episodes: int = 1024,
    max_steps: int | None = None,
    **settings: Any,
) -> TrainedReply:
    """Train a best reply to a society on any environment, by PPO in a `BidderEnv`.

    Its gain is a lower bound of the gain of the best reply, up to the error of the estimate: the learner may miss a
    better one.

    Args:
        society: the society, whose parameters are fixed. It draws its bids unless it is greedy.
        params: bid-network parameters, leaves [M, ...].
        bidder: the bidder that is replaced, as in `BidderEnv`.
        levels: the possible bids.
        key: a typed PRNG key.
        time_limits: as in `BidderEnv`.
        episodes: new episodes, of each trained bidder and of the society's own bids.
        max_steps: auctions after which an episode is cut; by default the environment's time limit.
        settings: of the learner, as in `jaxmarket.TrainConfig`, such as ``steps`` and ``seeds``.

    Raises:
        ValueError: an argument is invalid, or ``max_steps`` is needed.
    """
    from jaxmarket.interop.bidder import BidderEnv  # noqa: PLC0415  imports gymnax
    from jaxmarket.runs.fitting import fit  # noqa: PLC0415  which imports this module

    env = BidderEnv(society, params, bidder, levels, time_limits=time_limits)
    limit = env.limit if max_steps is None else max_steps
    if limit is None:
        raise ValueError(f"max_steps: {society.env.name} has no known time limit, got None; give the auctions to play")
    steps, episodes = check_int("max_steps", limit), check_int("episodes", episodes)
    config = TrainConfig(env, agent="monolith", **(_LEARNER | settings))
    learned = fit(config, key, progress=False).state.learner.params
    player: Any = config.settings.trainable.player(greedy=True)
    gamma = config.settings.gamma
    keys = jax.random.split(key_for(key, "measurement"), episodes)

    def play(params: PyTree, key: Array) -> Array:
        """The discounted return of an episode; without parameters that of the society's own bids."""

        def step(carry: tuple[Any, Array, Array, Array], key: Array) -> tuple[Any, None]:
            state, running, discount, total = carry
            key_own, key = jax.random.split(key)
            if params is None:
                draws = None if society.greedy else draw(society, key_own)
                bid = society.bids(env.default_params.others, draws, state.obs)[bidder]
            else:
                bid = jnp.asarray(env.levels)[player.choose(params, None, env.get_obs(state))]
            _, after, money, ended, _ = env.offer(key, state, bid, env.default_params)
            total = total + jnp.where(running, discount * money, 0)
            return (after, running & ~ended & ~after.truncated, discount * gamma, total), None

        key_reset, key = jax.random.split(key)
        start = env.reset_env(key_reset, env.default_params)[1], jnp.asarray(True), jnp.ones(()), jnp.zeros(())
        return jax.lax.scan(step, start, jax.random.split(key, steps))[0][-1]

    @jax.jit
    @standard_promotion
    def returns(learned: PyTree) -> tuple[Array, Array]:
        mine = jax.vmap(lambda params: jax.vmap(lambda key: play(params, key))(keys))(learned)
        return mine, jax.vmap(lambda key: play(None, key))(keys)

    mine, own = (np.asarray(x, np.float64) for x in returns(learned))
    gaps = mine - own  # episode by episode, with the same keys
    return TrainedReply(gaps.mean(-1), gaps.std(-1) / np.sqrt(episodes), learned, env, config)

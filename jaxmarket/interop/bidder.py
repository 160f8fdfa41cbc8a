"""One bidder of a frozen society as an environment, to test whether truthful bids are optimal.

Chang et al. (2020) prove that bidding Q* is optimal in one second-price auction, and that it is a Nash equilibrium of
cloned societies whose bidders optimise each auction separately. In a `BidderEnv` one strategic bidder optimises whole
episodes against the fixed bids of the others, with any algorithm for gymnax environments. `Exact` computes its optimal
strategy if the process and the other bids are known.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Bool, Float, Int32

from jaxmarket.auctions import CREDIT_CONSERVING_VICKREY, Mechanism
from jaxmarket.environments.adapter import adapt
from jaxmarket.environments.base import environment, spaces
from jaxmarket.environments.tabular import FiniteMDP
from jaxmarket.interop.deviations import solve
from jaxmarket.interop.embedding import given_bids
from jaxmarket.interop.rivals import Rivals, check_finite_process, rivals_of
from jaxmarket.policies import BidPolicy, ValueHead, bid_table, linear
from jaxmarket.settlement import TIME_LIMITS, TimeLimits
from jaxmarket.society import Society, advance, draw
from jaxmarket.types import AUCTIONEER, Accounts, Array, PyTree, Rules, State, cached_property, real
from jaxmarket.validation import check_int

__all__ = ["BidderEnv", "BidderParams", "BidderState", "Exact", "truthful"]


class BidderState(struct.PyTreeNode):
    """State of `BidderEnv`."""

    env_state: PyTree
    obs: Float[Array, "..."]  # encoded observation of the state for sale
    owner: Int32[Array, ""]  # its owner, AUCTIONEER for the first state
    elapsed: Float[Array, ""]  # environment steps since the reset
    truncated: Bool[Array, ""]  # whether the society's environment was truncated


class BidderParams(struct.PyTreeNode):
    """Parameters of `BidderEnv`. They are traced, so societies that differ only in them share one compiled program."""

    env: PyTree  # parameters of the society's environment
    others: PyTree  # bid-network parameters of the frozen society, leaves [M, ...]


class BidderEnv(environment.Environment[Any, Any]):
    """A society in which the actions are the bids of one bidder, while the parameters of all others are fixed.

    Action i bids ``levels[i]``. The other bidders bid as ``society`` does with ``params``: sampled, or greedily if the
    society is greedy. The reward is the bidder's net cash flow of the step,

        payout (if it owns the state that is sold) + reward - price (if it wins).

    The undiscounted return of an episode is therefore the change of the bidder's wealth in `jaxmarket.step`, and the
    discounted return is the sum of its utilities, γᵗ (r + γ · payout - price), because a payout arrives with the next
    auction. Nothing is paid across a reset: the owner of the last state of an episode receives no payout for it.

    The observation is the society's, flattened, and a flag whether the bidder owns the state for sale: f [n + 1]. The
    bidders of a society do not observe that flag; with it, a strategy may bid differently for its own state (shill
    bids).

    Args:
        society: bidders, auction and environment.
        params: fixed bid-network parameters, leaves [M, ...].
        bidder: index of the strategic bidder, 0 to A - 1: clone ``bidder % clones`` of primitive
            ``bidder // clones``. The bid that the society computes for it is used by `truth` only.
        levels: the possible bids, in units of reward.
        time_limits: "bootstrap" reports a time limit as truncated, so that the learner bootstraps the proceeds of the
            last state. "terminal" reports it as terminated: the last state has no proceeds. The observation then has
            one more entry, the fraction of the time limit that has passed, so that the state is Markov.

    Instances compare and hash by value, if the environment does.

    Raises:
        ValueError: ``bidder`` is out of range; ``levels`` is empty, or contains an infinite or repeated bid;
            ``params`` belong to another society; or ``time_limits`` is "terminal" and the environment has no known
            time limit.
    """

    def __init__(
        self,
        society: Society,
        params: PyTree,
        bidder: int,
        levels: Sequence[float],
        *,
        time_limits: TimeLimits = "bootstrap",
    ) -> None:
        super().__init__()
        if society.learned is not None:
            raise ValueError(
                f"society: expected primitives that do not learn, got {society.primitives} that do; use a MarketEnv, "
                "in which agents bid and act"
            )
        bidder = check_int("bidder", bidder, 0, society.bidders - 1)
        self.levels = tuple(float(level) for level in levels)
        if not self.levels or not np.isfinite(self.levels).all() or len(set(self.levels)) < len(self.levels):
            raise ValueError(f"levels: expected one or more distinct finite bids, got {self.levels}")
        if time_limits not in TIME_LIMITS:
            raise ValueError(f"time_limits: unknown rule {time_limits!r}; choose from {', '.join(TIME_LIMITS)}")
        wanted = jax.eval_shape(society.init, jax.random.key(0))
        if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, wanted):
            raise ValueError(
                f"params: expected parameters of this society with shapes {jax.tree.map(jnp.shape, wanted)}, got "
                f"{jax.tree.map(jnp.shape, params)}"
            )
        self.limit: Any = getattr(society.env.default_params, "max_steps_in_episode", None)
        if time_limits == "terminal" and self.limit is None:
            raise ValueError(
                f"time_limits: terminal needs an environment with a known time limit, {society.env.name} has no "
                "params.max_steps_in_episode; use bootstrap"
            )
        self.society, self.bidder, self.time_limits = society, bidder, time_limits
        self._params = params
        leaves, structure = jax.tree.flatten(params)
        self._identity = (society, bidder, self.levels, time_limits, structure, *(_bytes(leaf) for leaf in leaves))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BidderEnv) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def name(self) -> str:
        """The bidder, the environment and the mechanism."""
        return f"bidder {self.bidder} of {self.society.env.name} ({self.society.mechanism.name})"

    @property
    def gamma(self) -> float | None:
        """The discount of the society's environment."""
        return self.society.env.gamma

    @property
    def num_actions(self) -> int:
        """The number of ``levels``."""
        return len(self.levels)

    @property
    def primitive(self) -> int:
        """The bidder's primitive."""
        return self.bidder // self.society.clones

    @property
    def default_params(self) -> Any:
        """The environment's default parameters and the fixed bid-network parameters."""
        return BidderParams(env=self.society.env.default_params, others=self._params)

    def reset_env(self, key: Array, params: BidderParams) -> tuple[Array, BidderState]:
        """Reset the environment; the auctioneer owns the first state."""
        obs, env_state = self.society.env.reset(key, params.env)
        state = BidderState(
            env_state=env_state,
            obs=obs,
            owner=jnp.asarray(AUCTIONEER, jnp.int32),
            elapsed=jnp.zeros((), real()),
            truncated=jnp.zeros((), bool),
        )
        return self.get_obs(state), state

    def step_env(
        self, key: Array, state: BidderState, action: Any, params: BidderParams
    ) -> tuple[Array, BidderState, Array, Array, dict[Any, Any]]:
        """`offer` with the bid ``levels[action]``."""
        return self.offer(key, state, jnp.asarray(self.levels, real())[action], params)

    def offer(
        self, key: Array, state: BidderState, bid: Array, params: BidderParams
    ) -> tuple[Array, BidderState, Array, Array, dict[Any, Any]]:
        """`step_env` with any bid, f []. With the same key, the auction equals that of `jaxmarket.step`.

        Returns:
            ``(obs, state, cash flow, terminated, info)``. ``info`` has the ``outcome`` of the auction, its ``price``
            and ``payout`` (whichever bidder wins), and the ``duration`` of the winner's primitive.
        """
        society, draws = self.society, draw(self.society, key)
        bids = society.bids(params.others, draws, state.obs)
        bids = jnp.where(jnp.arange(society.bidders) == self.bidder, bid.astype(bids.dtype), bids)
        nothing = jnp.zeros((), real())
        market = State(
            env_state=state.env_state,
            obs=state.obs,
            owner=state.owner,
            active=jnp.ones(society.bidders, bool),
            accounts=Accounts(
                jnp.zeros(society.bidders, real()), nothing
            ),  # balances of 0, so that the next one is the cash flow
            episode_return=nothing,
            episode_length=jnp.zeros((), jnp.int32),
        )
        after, row = advance(given_bids(society), draws, bids, market, params.env, Rules())
        closes = row.truncated if self.time_limits == "terminal" else jnp.zeros((), bool)
        onward = BidderState(
            env_state=after.env_state,
            obs=after.obs,
            owner=after.owner,
            elapsed=state.elapsed + row.duration,
            truncated=row.truncated & ~closes,
        )
        info = {"outcome": row.outcome, "price": row.price, "payout": row.payout, "duration": row.duration}
        return self.get_obs(onward), onward, after.accounts.wealth[self.bidder], row.terminated | closes, info

    def truth(self, obs: Array, params: BidderParams) -> Array:
        """The greedy bid of the society's own policy for this bidder: f [].

        Args:
            obs: f [...], encoded observation of the state for sale.
            params: the parameters of this environment.
        """
        return self.society.bids(params.others, None, obs)[self.bidder]

    def view(self, obs: Array, owns: Array, elapsed: Array) -> Array:
        """The bidder's observation: f [n + 1], or f [n + 2] with ``time_limits="terminal"``.

        Args:
            obs: f [...], encoded observation of the state for sale.
            owns: bool [], whether the bidder owns it.
            elapsed: f [], environment steps since the reset.
        """
        seen = [obs.reshape(-1).astype(real()), owns.astype(real())[None]]
        if self.time_limits == "terminal":
            seen.append((elapsed / self.limit).astype(real())[None])
        return jnp.concatenate(seen)

    def get_obs(self, state: BidderState, params: Any = None, key: Any = None) -> Array:
        """The `view` of a state."""
        return self.view(state.obs, state.owner == self.bidder, state.elapsed)

    def is_truncated(self, state: BidderState, params: BidderParams) -> Array:
        """Whether the environment was truncated; always False with ``time_limits="terminal"``."""
        return state.truncated

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """The indices of ``levels``."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """Encoded observations, without bounds."""
        obs, _ = jax.eval_shape(self.reset_env, jax.random.key(0), self.default_params)
        return spaces.Box(-jnp.inf, jnp.inf, obs.shape, real())


def truthful(
    env: FiniteMDP, mechanism: Mechanism = CREDIT_CONSERVING_VICKREY, clones: int = 2, *, bids: Any = None
) -> tuple[Society, PyTree]:
    """A greedy society that bids Q*, or another table of bids by state and primitive, and its parameters.

    Args:
        env: the environment.
        mechanism: the auction.
        clones: bidders per primitive.
        bids: f [S, P], by default `FiniteMDP.optimal_q` at the environment's discount.

    Returns:
        ``(society, params)``.

    Raises:
        ValueError: ``bids`` are not finite or have another shape.
    """
    table = np.asarray(env.optimal_q() if bids is None else bids, np.float64)
    if table.shape != (env.num_states, env.num_actions) or not np.isfinite(table).all():
        raise ValueError(
            f"bids: expected finite numbers of shape {(env.num_states, env.num_actions)}, one per state and primitive, "
            f"got shape {table.shape}"
        )
    society = Society(
        env=adapt(env), policy=BidPolicy(linear(), ValueHead()), mechanism=mechanism, clones=clones, greedy=True
    )
    return society, bid_table(jnp.asarray(table.T, real()))


@dataclasses.dataclass(frozen=True)
class Exact:
    """Exact solutions of a `BidderEnv`, whose states are pairs of an environment state and the ownership flag.

    With ``time_limits="terminal"`` strategies depend on time, H is the environment's horizon, and values are those of
    an episode. Otherwise strategies are stationary, H is 1, and values are those of the process without a time limit. A
    strategy is an array of bids f [H, S, 2]: [..., 0] where the bidder does not own the state, [..., 1] where it does.

    Attributes:
        env: a `BidderEnv` of a society over a `FiniteMDP`. If the society draws its bids, values are expectations over
            the draws of all others.

    Raises:
        ValueError: as `jaxmarket.interop.rivals.rivals_of`.
    """

    env: BidderEnv

    def __post_init__(self) -> None:
        check_finite_process(self.env.society)

    @property
    def mdp(self) -> FiniteMDP:
        """The society's environment."""
        return self.env.society.env.env

    @property
    def horizon(self) -> int:
        """H, the number of time steps of a strategy."""
        return self.mdp.horizon if self.env.time_limits == "terminal" else 1

    @cached_property
    def rivals(self) -> Rivals:
        """The bids of the society, from the position of the bidder."""
        found = rivals_of(self.env.society, self.env.default_params.others, np.array(self.env.levels))
        return dataclasses.replace(found, me=self.env.bidder)

    @cached_property
    def others(self) -> np.ndarray:
        """The greedy bids of all bidders of the society: f [S, A]."""
        society, params = self.env.society, self.env.default_params.others
        states = jnp.eye(self.mdp.num_states, dtype=real())
        return np.asarray(jax.vmap(lambda obs: society.bids(params, None, obs))(states))

    @cached_property
    def truth(self) -> np.ndarray:
        """The society's greedy bids for the strategic bidder, f [H, S, 2]: Q* if the society is `truthful`."""
        return np.broadcast_to(self.others[:, self.env.bidder, None], (self.horizon, self.mdp.num_states, 2))

    def value(self, bids: Any, gamma: float | None = None) -> float:
        """Expected discounted return of a strategy from the start of an episode, in units of reward.

        Args:
            bids: the strategy, f [H, S, 2].
            gamma: discount, the environment's own by default; 1 for the change of wealth in an episode.

        Raises:
            ValueError: ``bids`` has another shape, or ``gamma`` is not in [0, 1), or [0, 1] with
                ``time_limits="terminal"``.
        """
        bids = np.asarray(bids)
        if bids.shape != self.truth.shape:
            raise ValueError(f"bids: expected shape {self.truth.shape} (time, state, ownership), got {bids.shape}")
        return self._solve(bids[..., None], gamma)[0]

    def gain(self, bids: Any, gamma: float | None = None) -> float:
        """The `value` of a strategy minus `present`."""
        return self.value(bids, gamma) - self.present(gamma)

    def present(self, gamma: float | None = None) -> float:
        """The value of the bids that the society makes for the bidder."""
        return self._solve(None, gamma)[0]

    def best(self, gamma: float | None = None) -> np.ndarray:
        """The optimal strategy with bids from ``levels``, f [H, S, 2]; among equal bids the one closest to `truth`.

        Args:
            gamma: discount, by default the environment's.

        Raises:
            ValueError: ``gamma`` is not in [0, 1), or [0, 1] with ``time_limits="terminal"``.
        """
        levels = np.asarray(self.env.levels, np.float64)
        _, q = self._solve(self._grid, gamma)
        # Bids are float32 numbers: values that differ by less than their rounding error count as equal.
        good = q >= q.max(-1, keepdims=True) - 1e-5 * np.maximum(1, np.abs(q).max())
        distance = np.where(good, np.abs(levels - self.truth[..., None]), np.inf)
        return levels[distance.argmin(-1)]

    def best_gain(self, gamma: float | None = None) -> float:
        """The largest `gain` of a strategy with bids from ``levels``; below 0 if the society's own bids are better."""
        return self._solve(self._grid, gamma)[0] - self.present(gamma)

    @property
    def _grid(self) -> np.ndarray:
        """The possible bids, f [1, S, 1, K]."""
        levels = np.array(self.env.levels)
        return np.broadcast_to(levels, (1, self.mdp.num_states, 1, len(levels)))

    def learned(self, player: Any, params: PyTree) -> np.ndarray:
        """The bids that trained agents choose for every observation of the bidder: f [seeds, H, S, 2].

        Args:
            player: what chooses, such as ``config.settings.trainable.player(greedy=True)`` of a monolith.
            params: its parameters, leaves [seeds, ...].
        """
        states = self.mdp.num_states
        times, rows, owns = np.indices((self.horizon, states, 2)).reshape(3, -1)
        views = jax.vmap(self.env.view)(
            jnp.asarray(np.eye(states)[rows], real()), jnp.asarray(owns == 1), jnp.asarray(times, real())
        )
        chosen = np.asarray(_choices(player, params, views))
        return np.asarray(self.env.levels)[chosen].reshape(-1, self.horizon, states, 2)

    def sales(self, bids: np.ndarray) -> list[tuple[int, int]]:
        """The times and states of one episode at which the bidder sells, if it wins all ties.

        Every random transition goes to the most probable state.

        Args:
            bids: its strategy, f [H, S, 2].
        """
        mdp, me = self.mdp, self.env.bidder
        state, owns, seen = int(mdp.start.argmax()), 0, []
        for t in range(mdp.horizon):
            time = t % self.horizon
            if owns:
                seen.append((time, state))
            offers = self.others[state].copy()
            offers[me] = bids[time, state, owns]
            winner = me if offers[me] == offers.max() else int(offers.argmax())
            owns = int(winner == me)
            state = int(mdp.transitions[state, winner // self.env.society.clones].argmax())
            if mdp.terminal[state]:
                break
        return seen

    def compare(self, learned: np.ndarray) -> dict[str, np.ndarray]:
        """Strategies of several seeds and the best reply.

        Args:
            learned: bids of each seed, f [seeds, H, S, 2].

        Returns:
            ``learned``; ``best`` and ``truth`` f [H, S, 2]: bids; ``others`` f [S, A]; ``gains`` f [seeds] and ``best
            gain`` f []: discounted, over ``truth``; ``sales`` f [n, 2]: bids of all seeds for states that the bidder
            owns (`sales`), and what ``truth`` bids there. If the market closes, also undiscounted: the ``wealth`` f []
            that ``truth`` earns, ``wealth gains`` f [seeds] and ``best wealth gain`` f [].
        """
        best = self.best()
        sales = [(bids[t, s, 1], self.truth[t, s, 1]) for bids in learned for t, s in self.sales(bids)]
        found = {
            "learned": learned,
            "best": best,
            "truth": np.array(self.truth),
            "others": self.others,
            "gains": np.array([self.gain(bids) for bids in learned]),
            "best gain": np.array(self.gain(best)),
            "sales": np.array(sales, np.float64).reshape(-1, 2),
        }
        if self.env.time_limits == "terminal":
            found |= {
                "wealth": np.array(self.value(self.truth, 1.0)),
                "wealth gains": np.array([self.gain(bids, 1.0) for bids in learned]),
                "best wealth gain": np.array(self.gain(self.best(1.0), 1.0)),
            }
        return found

    def _solve(self, choices: np.ndarray | None, gamma: float | None) -> tuple[float, np.ndarray]:
        """`deviations.solve` with K possible bids, f [H or 1, S, 2, K]; with the society's own bids if None."""
        closes = self.env.time_limits == "terminal"
        gamma = self.mdp.gamma if gamma is None else float(gamma)
        if not 0 <= gamma <= 1 or (gamma == 1 and not closes):
            raise ValueError(
                f"gamma: expected a discount in [0, 1{']' if closes else ')'}, got {gamma}"
                + ("" if closes else "; an episode's undiscounted value needs time_limits='terminal'")
            )
        # In the working precision, so that ties are those of the market.
        sale = self.rivals.present() if choices is None else self.rivals.sale(choices.astype(real()).astype(float))
        return solve(self.mdp, self.env.primitive, sale, gamma, self.horizon if closes else None)


@functools.partial(jax.jit, static_argnums=0)
def _choices(player: Any, params: PyTree, views: Array) -> Array:
    """The choice of every seed for every observation: i32 [seeds, N]."""
    return jax.vmap(lambda params: jax.vmap(lambda obs: player.choose(params, None, obs))(views))(params)


def _bytes(leaf: Any) -> tuple[Any, ...]:
    array = np.asarray(leaf)
    return array.shape, str(array.dtype), array.tobytes()

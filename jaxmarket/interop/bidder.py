"""One bidder against a frozen society, as an environment: learning to bid here shows whether truthful bids are optimal.

Chang et al. (2020) prove that bidding Q* is best in one second-price auction, and that it is a Nash equilibrium of
cloned societies whose bidders optimise each auction alone. `BidderEnv` puts one strategic bidder among bidders that
learn nothing any more, over whole episodes: any agent for gymnax environments can look for a better strategy.
`Exact` finds the best one there is, where process and rivals are known.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces
from jaxtyping import Bool, Float, Int32

from jaxmarket.auctions import CREDIT_CONSERVING_VICKREY, Mechanism
from jaxmarket.environments.adapter import adapt
from jaxmarket.environments.tabular import FiniteMDP
from jaxmarket.interop.embedding import given_bids
from jaxmarket.policies import BidPolicy, ValueHead, linear
from jaxmarket.settlement import TIME_LIMITS, TimeLimits
from jaxmarket.society import Society, advance, draw
from jaxmarket.types import AUCTIONEER, Accounts, Array, Outcome, PyTree, Rules, State, real
from jaxmarket.validation import check_int

__all__ = ["BidderEnv", "BidderParams", "BidderState", "Exact", "truthful"]


class BidderState(struct.PyTreeNode):
    """State of `BidderEnv`."""

    env_state: PyTree
    obs: Float[Array, "..."]  # encoded observation of the state now for sale
    owner: Int32[Array, ""]  # who sells it, AUCTIONEER for the first state
    elapsed: Float[Array, ""]  # environment steps since the reset
    truncated: Bool[Array, ""]  # whether the environment beneath was cut


class BidderParams(struct.PyTreeNode):
    """Parameters of `BidderEnv`; traced, so one program serves many societies of the same kind."""

    env: PyTree  # of the environment beneath
    others: PyTree  # bid-network parameters of the frozen society, leaves [M, ...]


class BidderEnv(environment.Environment[Any, Any]):
    """A society in which one bidder's bids are the actions, and the others' are frozen.

    Action i bids ``levels[i]``. The others bid as ``society`` does with ``params``: sampled, or greedily where it is
    greedy. The reward is the money that moves on the bidder's account at this auction,

        payout (if it owns the state that is sold) + reward - price (if it wins),

    so an episode's undiscounted return is its change of wealth in the books of `jaxmarket.step`, and its discounted
    return is the sum of its utilities, γᵗ (r + γ · payout - price), since a payout arrives with the next auction.
    Nothing is paid across a reset: the owner of the state at the end of an episode is not paid for it.

    The observation is the society's, flattened, and whether the bidder owns the state that is for sale: f [n + 1]. A
    society's own bidders do not see that; a shill bid is for owners only.

    Args:
        society: bidders, auction and environment.
        params: bid-network parameters, leaves [M, ...], that stay as they are.
        bidder: the strategic one, 0 to A - 1: clone ``bidder % clones`` of primitive ``bidder // clones``. What the
            society would bid in its place is not used, but by `truth`.
        levels: the bids to choose from, in units of reward.
        time_limits: "bootstrap": a cut is reported as truncated, and what the state held would have sold for is left to
            the learner's estimate of what follows. "terminal": the market closes with the cut, the state is worth
            nothing then, and the cut is reported as terminated. The observation has one more entry, the share of the
            time that has passed, without which a learner could not know.

    Instances compare and hash by value, if the environment does.

    Raises:
        ValueError: there is no such bidder, no level, a level that is not finite or is there twice, ``params`` are of
            another society, or a market is to close when nobody knows.
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
        bidder = check_int("bidder", bidder, 0, society.bidders - 1)
        self.levels = tuple(float(level) for level in levels)
        if not self.levels or not np.isfinite(self.levels).all() or len(set(self.levels)) < len(self.levels):
            raise ValueError(f"levels: expected different finite bids, at least one, got {self.levels}")
        if time_limits not in TIME_LIMITS:
            raise ValueError(f"time_limits: unknown rule {time_limits!r}; choose from {', '.join(TIME_LIMITS)}")
        wanted = jax.eval_shape(society.init, jax.random.key(0))
        if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, wanted):
            raise ValueError(
                f"params: of another society, with shapes {jax.tree.map(jnp.shape, params)}; this one has "
                f"{jax.tree.map(jnp.shape, wanted)}"
            )
        self.limit: Any = getattr(society.env.default_params, "max_steps_in_episode", None)
        if time_limits == "terminal" and self.limit is None:
            raise ValueError(
                f"time_limits: terminal needs an environment with a known time limit, {society.env.name} names none in "
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
        """The environment, the auction, and which bidder it is."""
        return f"bidder {self.bidder} of {self.society.env.name} ({self.society.mechanism.name})"

    @property
    def gamma(self) -> float | None:
        """The discount of the environment beneath."""
        return self.society.env.gamma

    @property
    def num_actions(self) -> int:
        """The number of bids to choose from."""
        return len(self.levels)

    @property
    def primitive(self) -> int:
        """The primitive that acts where the bidder wins."""
        return self.bidder // self.society.clones

    @property
    def default_params(self) -> Any:
        """The environment's own parameters, and the frozen society."""
        return BidderParams(env=self.society.env.default_params, others=self._params)

    def reset_env(self, key: Array, params: BidderParams) -> tuple[Array, BidderState]:
        """A first state, which belongs to the house."""
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
        """`offer` of a level."""
        return self.offer(key, state, jnp.asarray(self.levels, real())[action], params)

    def offer(
        self, key: Array, state: BidderState, bid: Array, params: BidderParams
    ) -> tuple[Array, BidderState, Array, Array, dict[Any, Any]]:
        """`step_env` with any bid at all, f []: the same key gives the auction that `jaxmarket.step` holds.

        Returns:
            ``(obs, state, money, terminated, info)``; in ``info`` the ``outcome`` of the auction, the ``price`` and
            the ``payout`` of the sale, for any bidder, and the ``duration`` of the winner's primitive.
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
            accounts=Accounts(jnp.zeros(society.bidders, real()), nothing),  # the balance afterwards is what moved
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
        """What the frozen society itself would bid in the bidder's place, greedily: f [].

        Args:
            obs: f [...], encoded observation of the state that is for sale.
            params: with the frozen society.
        """
        return self.society.bids(params.others, None, obs)[self.bidder]

    def view(self, obs: Array, owns: Array, elapsed: Array) -> Array:
        """What the bidder sees: f [n + 1], or f [n + 2] where the market closes.

        Args:
            obs: f [...], encoded observation of the state that is for sale.
            owns: bool [], whether the bidder sells it.
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
        """Whether the environment beneath was cut, and the market did not close with it."""
        return state.truncated

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """The levels."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """Encoded observations; what is beneath is not known to have limits."""
        obs, _ = jax.eval_shape(self.reset_env, jax.random.key(0), self.default_params)
        return spaces.Box(-jnp.inf, jnp.inf, obs.shape, real())


def truthful(
    env: FiniteMDP, mechanism: Mechanism = CREDIT_CONSERVING_VICKREY, clones: int = 2, *, bids: Any = None
) -> tuple[Society, PyTree]:
    """A society that bids Q*, or other numbers, by state and primitive; it is greedy, and its params are a table.

    Args:
        env: the process.
        mechanism: the auction.
        clones: bidders per primitive.
        bids: f [S, P], `FiniteMDP.optimal_q` by default, at the environment's own discount.

    Returns:
        ``(society, params)``.

    Raises:
        ValueError: ``bids`` are not finite or not of that shape.
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
    kernels = np.concatenate([table.T, np.zeros((env.num_actions, 1))], 1)[..., None]  # [P, S + 1, 1], biases last
    table_of_all = jax.eval_shape(society.init, jax.random.key(0))  # one leaf
    return society, jax.tree.map(lambda _: jnp.asarray(kernels, real()), table_of_all)


@dataclasses.dataclass(frozen=True)
class Exact:
    """The decision process of a `BidderEnv`, solved: a state, and whether the bidder owns it.

    Where the market closes (``time_limits="terminal"``) strategies depend on time, H is the environment's horizon and
    values are those of an episode. Otherwise they are stationary, H is 1, and values those of the process without its
    cut. Strategies are bids f [H, S, 2]: where the state is another's or the house's, and where it is one's own.

    Attributes:
        env: over a `FiniteMDP`, with a greedy society.

    Raises:
        ValueError: the process is not a `FiniteMDP`, or the others' bids are drawn.
    """

    env: BidderEnv

    def __post_init__(self) -> None:
        society = self.env.society
        if not isinstance(society.env.env, FiniteMDP):
            raise ValueError(f"env: {society.env.name} is no FiniteMDP, whose transitions are known; play it instead")
        if not society.greedy:
            raise ValueError("env: the others draw their bids; give dataclasses.replace(society, greedy=True)")

    @property
    def mdp(self) -> FiniteMDP:
        """The process beneath."""
        return self.env.society.env.env

    @property
    def horizon(self) -> int:
        """H."""
        return self.mdp.horizon if self.env.time_limits == "terminal" else 1

    @functools.cached_property
    def others(self) -> np.ndarray:
        """The bids of all bidders as the society makes them: f [S, A]."""
        society, params = self.env.society, self.env.default_params.others
        states = jnp.eye(self.mdp.num_states, dtype=real())
        return np.asarray(jax.vmap(lambda obs: society.bids(params, None, obs))(states))

    @functools.cached_property
    def truth(self) -> np.ndarray:
        """The bidder's own bids as the society makes them, f [H, S, 2]: Q*, if it is `truthful`."""
        return np.broadcast_to(self.others[:, self.env.bidder, None], (self.horizon, self.mdp.num_states, 2))

    def value(self, bids: Any, gamma: float | None = None) -> float:
        """Expected discounted money of a strategy f [H, S, 2] from the start of an episode.

        Args:
            bids: the strategy.
            gamma: discount, the environment's own by default; 1 for the change of wealth in an episode.

        Raises:
            ValueError: ``bids`` has another shape, or ``gamma`` is none a process without a cut has a value for.
        """
        bids = np.asarray(bids)
        if bids.shape != self.truth.shape:
            raise ValueError(f"bids: expected shape {self.truth.shape}, time, state and ownership, got {bids.shape}")
        return self._solve(bids[..., None], gamma)[0]

    def gain(self, bids: Any, gamma: float | None = None) -> float:
        """`value` of a strategy above that of `truth`."""
        return self.value(bids, gamma) - self.value(self.truth, gamma)

    def best(self, gamma: float | None = None) -> np.ndarray:
        """The best strategy with the environment's levels, f [H, S, 2]; of equally good bids the one nearest to truth.

        Args:
            gamma: discount, the environment's own by default.

        Raises:
            ValueError: ``gamma`` is none a process without a cut has a value for.
        """
        levels = np.asarray(self.env.levels, np.float64)
        _, worth = self._solve(np.broadcast_to(levels, (1, self.mdp.num_states, 2, len(levels))), gamma)
        # Prices are float32 numbers: what differs by less than their rounding is the same.
        good = worth >= worth.max(-1, keepdims=True) - 1e-5 * np.maximum(1, np.abs(worth).max())
        distance = np.where(good, np.abs(levels - self.truth[..., None]), np.inf)
        return levels[distance.argmin(-1)]

    def _solve(self, choices: np.ndarray, gamma: float | None) -> tuple[float, np.ndarray]:
        """The value under the best of bids f [H or 1, S, 2, K] each time, and what each is worth: f [H, S, 2, K]."""
        mdp, closes = self.mdp, self.env.time_limits == "terminal"
        gamma = mdp.gamma if gamma is None else float(gamma)
        if not 0 <= gamma <= 1 or (gamma == 1 and not closes):
            raise ValueError(
                f"gamma: expected a discount in [0, 1{']' if closes else ')'}, got {gamma}"
                + ("" if closes else "; an episode's undiscounted value needs time_limits='terminal'")
            )
        earned, onward = self._auctions(choices)

        def before(t: int, value: np.ndarray) -> np.ndarray:
            return earned[t] + gamma * np.einsum("sokwt,tw->sok", onward[t], value)

        value, worth = np.zeros((mdp.num_states, 2)), []
        if closes:
            for t in reversed(range(self.horizon)):
                worth.insert(0, before(t % len(earned), value))
                value = worth[0].max(-1)
        else:
            settled = False
            while not settled:
                worth = [before(0, value)]
                new = worth[0].max(-1)
                settled = bool(np.abs(new - value).max() <= 1e-10 * max(1.0, np.abs(new).max()))
                value = new
        return float(mdp.start @ value[:, 0]), np.stack(worth)

    def _auctions(self, choices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Own money f [T, S, 2, K] and what follows f [T, S, 2, K, 2, S'], by who wins, averaged over ties."""
        mdp, society, me = self.mdp, self.env.society, self.env.bidder
        odds, price, payout = self._outcomes(choices)
        owns = np.array([0.0, 1.0])[:, None]
        won = odds[..., me] * (mdp.rewards[:, self.env.primitive, None, None] - price[..., me])
        earned = owns * (odds * payout).sum(-1) + won
        successors = np.repeat(mdp.transitions * ~mdp.terminal, society.clones, axis=1)  # [S, A, S']
        mine = np.arange(society.bidders) == me
        by_winner = [np.einsum("zsoka,sat->zsokt", odds * who, successors) for who in (~mine, mine)]
        return earned, np.stack(by_winner, -2)

    def _outcomes(self, choices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For own bids f [T, S, 2, K]: the odds of each winner, its price and its payout, f [T, S, 2, K, A]."""
        society, ids = self.env.society, np.arange(self.env.society.bidders)
        # In the working precision, in which the market finds ties.
        own = choices.astype(self.others.dtype)[..., None]
        bids = np.where(ids == self.env.bidder, own, self.others[:, None, None])
        tied = bids == bids.max(-1, keepdims=True)
        odds = tied / tied.sum(-1, keepdims=True)
        if society.ties == "lowest":
            odds = (ids == tied.argmax(-1)[..., None]).astype(np.float64)
        everyone = np.broadcast_to(bids[..., None, :], (*bids.shape, len(ids)))  # [..., winner, bidder]
        highest_other = np.where(np.eye(len(ids), dtype=bool), -np.inf, everyone).max(-1)
        outcomes = Outcome(
            winner=np.broadcast_to(ids, bids.shape),  # type: ignore[arg-type]
            winning_bid=bids,  # type: ignore[arg-type]
            highest_other_bid=np.where(np.isfinite(highest_other), highest_other, 0).astype(bids.dtype),  # type: ignore[arg-type]
            bids=everyone,  # type: ignore[arg-type]
            eligible=np.ones(everyone.shape, bool),  # type: ignore[arg-type]
        )
        rows = jax.tree.map(lambda x: jnp.asarray(x.reshape(-1, *x.shape[bids.ndim :])), outcomes)
        mechanism = society.mechanism
        price, payout = (np.asarray(jax.vmap(rule)(rows), float) for rule in (mechanism.price, mechanism.payout))
        return odds, price.reshape(bids.shape), payout.reshape(bids.shape)


def _bytes(leaf: Any) -> tuple[Any, ...]:
    array = np.asarray(leaf)
    return array.shape, str(array.dtype), array.tobytes()

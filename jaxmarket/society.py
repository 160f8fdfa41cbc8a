"""The society: bidders, an auction and primitives over an environment, as one pure step.

A step: observe → every bidder bids → the auction clears → the buyer pays, the owner is paid → the winner's primitive
transforms the environment → its reward is credited. `reset` and `step` act on one market instance; use `jax.vmap` for
many.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Float, Int32, UInt32

from jaxmarket import auctions
from jaxmarket.accounts import pay_sale
from jaxmarket.auctions import CREDIT_CONSERVING_VICKREY, Mechanism
from jaxmarket.checking import check_finite
from jaxmarket.environments.adapter import Adapter, Step, adapt, longer
from jaxmarket.policies import BidDistribution, BidPolicy, distribution_shape, with_torso_of
from jaxmarket.switches import standard_promotion
from jaxmarket.types import (
    AUCTIONEER,
    Accounts,
    Array,
    Outcome,
    PyTree,
    Rules,
    State,
    Transition,
    cached_property,
    real,
    tree_select,
)
from jaxmarket.validation import check_choice, check_int, short_repr

__all__ = [
    "Draws",
    "LearnedPrimitives",
    "MarketPolicy",
    "Society",
    "advance",
    "auction",
    "draw",
    "reset",
    "step",
    "step_with",
]


@dataclasses.dataclass(frozen=True)
class LearnedPrimitives:
    """Primitives that learn: every module has a policy over the environment's own actions.

    Attributes:
        policy: how one module acts, a distribution over actions with the methods ``noise`` and ``from_noise``.
        count: P, the number of primitives.
        hold: k, the steps for which a winner keeps the right to act, or until the episode ends. A module is then an
            option that learns, with the duration k (Sutton, Precup & Singh 1999).
        share_torso: whether the policies over bids and over actions of a module have one torso, that of bids.
    """

    policy: BidPolicy
    count: int
    hold: int = 1
    share_torso: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", check_int("modules", self.count))
        object.__setattr__(self, "hold", check_int("hold", self.hold))


@dataclasses.dataclass(frozen=True)
class Society:
    """The static description of a society: frozen, and compared by value, so that equal societies compile once.

    Its parameters, state and rules are arguments of `reset` and `step`. Bidder ``a`` is clone ``a % clones`` of
    primitive ``a // clones``. Parameters are those of the bid networks; with ``learned`` primitives, they are a dict of
    ``bids`` and ``actions``, the parameters of both kinds of network.

    Attributes:
        env: an environment, or its `Adapter`.
        policy: how one module bids.
        mechanism: the price that the winner pays and the payout that the owner receives.
        clones: bidders per primitive.
        share: whether the clones of a primitive share parameters (and so form one module).
        ties: how an auction breaks ties: at random, or for the lowest id.
        greedy: bid the mean of the bid distribution instead of a sample; modules that learn to act also act greedily.
        learned: how modules act, if their primitives learn; by default primitive p is action p.

    Raises:
        ValueError: a field is invalid, or ``env`` is not an environment.
    """

    env: Adapter
    policy: BidPolicy
    mechanism: Mechanism = CREDIT_CONSERVING_VICKREY
    clones: int = 2
    share: bool = True
    ties: Literal["random", "lowest"] = "random"
    greedy: bool = False
    learned: LearnedPrimitives | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "env", adapt(self.env))
        if not isinstance(self.mechanism, Mechanism):
            given = short_repr(self.mechanism)
            raise ValueError(f"mechanism: expected a Mechanism, got {given}; take one of jaxmarket.MECHANISMS")
        object.__setattr__(self, "clones", check_int("clones", self.clones))
        _ = self.primitives  # raises if there are none
        check_choice("ties", self.ties, ("random", "lowest"))
        if self.learned is not None and self.env.restricts_actions and self.env.box is not None:
            raise ValueError(
                f"env: {self.env.name} has legal_actions, but continuous actions; remove legal_actions, and give the "
                "action space bounds"
            )

    @property
    def primitives(self) -> int:
        """P, the number of primitives."""
        return self.env.num_actions if self.learned is None else self.learned.count

    @property
    def bidders(self) -> int:
        """A = P · clones, the number of bidders."""
        return self.primitives * self.clones

    @property
    def modules(self) -> int:
        """M: sets of parameters; P if clones share them, else A."""
        return self.primitives if self.share else self.bidders

    @property
    def members(self) -> int:
        """R: bidders per module."""
        return self.bidders // self.modules

    @property
    def observation(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of what one module observes."""
        return self.env.observation_of_module

    def observed(self, obs: Array) -> tuple[Array, int | None]:
        """What each module observes, f [M, ...], and its axis of modules; ``obs`` and None if all observe the same."""
        if not self.env.separates_observations:
            return obs, None
        self.check_modules()
        return jax.vmap(self.env.module_observation, (None, 0))(obs, self.primitive_of_module), 0

    @property
    def primitive_of_module(self) -> Int32[Array, " M"]:
        """The number of each module's primitive."""
        return jnp.arange(self.modules, dtype=jnp.int32) // (self.modules // self.primitives)

    def check_modules(self) -> None:
        """Check that the environment is made for this number of primitives.

        Raises:
            ValueError: it is made for another one.
        """
        made_for = self.env.modules
        if made_for not in (None, self.primitives):
            raise ValueError(
                f"modules: {self.env.name} is made for {made_for} modules, got {self.primitives} primitives; use "
                f"primitives='learned' with modules={made_for}"
            )

    @cached_property
    def _distribution(self) -> BidDistribution:
        """Shapes and dtypes of one bidder's distribution of bids."""
        return distribution_shape(self.policy, self.observation)

    def noise(self, key: Array, count: int) -> PyTree:
        """The random numbers for ``count`` bids, leaves [count, ...]; None if bids are sampled with a key."""
        noise = getattr(self._distribution, "noise", None)
        return None if noise is None else noise(key, (count,))

    def action_noise(self, key: Array, count: int) -> PyTree:
        """The random numbers for ``count`` actions, leaves [count, ...]; None unless primitives learn."""
        if self.learned is None:
            return None
        return distribution_shape(self.learned.policy, self.observation).noise(key, (count,))

    def bid_params(self, params: PyTree) -> PyTree:
        """The parameters of the bid networks."""
        return params if self.learned is None else params["bids"]

    def init(self, key: Array) -> PyTree:
        """Random parameters: leaves [M, ...]."""
        obs = jnp.zeros(self.observation.shape, self.observation.dtype)
        keys = jax.random.split(key, self.modules)
        bids = jax.vmap(self.policy.init, (0, None))(keys, obs)
        if self.learned is None:
            return bids
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
        actions = jax.vmap(self.learned.policy.init, (0, None))(keys, obs)
        return {"bids": bids, "actions": with_torso_of(bids, actions) if self.learned.share_torso else actions}

    def bids(self, params: PyTree, draws: "Draws | None", obs: Array) -> Float[Array, " A"]:
        """Sealed bids of all bidders for one state.

        Members of a module have the same observation (`observed`) and parameters, but draw their bids independently.

        Args:
            params: leaves [M, ...].
            draws: the randomness; not used by a greedy society, and None makes bids greedy.
            obs: f [...], encoded observation.
        """
        seen, axis = self.observed(obs)
        distribution = jax.vmap(self.policy.apply, (0, axis))(self.bid_params(params), seen)
        if self.greedy or draws is None:
            return jnp.repeat(distribution.mean(), self.members)
        if not hasattr(distribution, "noise"):
            return distribution.sample(draws.key("bid"), (self.members,)).T.reshape(-1)
        # One vector of bidders: two axes, modules and members, would vectorise badly on a CPU.
        return jax.tree.map(lambda x: jnp.repeat(x, self.members), distribution).from_noise(draws.bid)

    def primitive_of(self, winner: Int32[Array, ""]) -> Int32[Array, ""]:
        """The primitive of the winner of an auction; 0 without a winner."""
        return jnp.maximum(winner, 0) // self.clones

    def legal_choices(self, env_state: PyTree, env_params: PyTree) -> Bool[Array, " N"] | None:
        """The actions that are legal in a state, if primitives learn and the environment restricts them; else None."""
        if self.learned is None or not self.env.restricts_actions:
            return None
        return self.env.legal(env_state, env_params)

    def choose(
        self,
        params: PyTree,
        draws: "Draws | None",
        obs: Array,
        winner: Int32[Array, ""],
        rules: Rules,
        legal: Bool[Array, " N"] | None = None,
    ) -> Float[Array, "..."] | Int32[Array, ""]:
        """The choice of the winner of an auction: its primitive, or what its policy chooses.

        Without a winner it is the choice of module 0.

        Args:
            params: leaves [M, ...].
            draws: the randomness; without it the choice is greedy.
            obs: encoded observation.
            winner: a bidder, or `NOBODY`.
            rules: only ``greedy`` is used.
            legal: the actions that modules that learn may choose; None for all.

        Returns:
            The argument of `Adapter.to_action`.
        """
        if self.learned is None:
            return self.primitive_of(winner)
        # Parameters of one torso are the same arrays for bids and actions, so that XLA computes its features once.
        actions = with_torso_of(params["bids"], params["actions"]) if self.learned.share_torso else params["actions"]
        # Of all modules, and not of the winner's parameters: a gather of networks would copy them in every instance.
        seen, axis = self.observed(obs)
        distributions = jax.vmap(self.learned.policy.apply, (0, axis))(actions, seen)
        own: Any = jax.tree.map(lambda x: x[jnp.maximum(winner, 0) // self.members], distributions)
        own = own if legal is None else own.among(legal)
        if self.greedy or draws is None:
            return own.mean()
        drawn = own.from_noise(draws.action)
        return drawn if rules.greedy is None else jnp.where(rules.greedy, own.mean(), drawn)

    def earned(self, after: Step, winner: Int32[Array, ""]) -> tuple[Float[Array, ""], Float[Array, " A"] | None]:
        """The reward of a purchase, and the windfalls of the other bidders; None unless modules have own rewards.

        The buyer earns the reward of its own primitive. The clones of any other primitive share theirs equally.
        """
        if after.module_rewards is None:
            return after.reward, None
        self.check_modules()
        own = self.primitive_of(winner) == jnp.arange(self.primitives)
        reward = jnp.where(own, after.module_rewards, 0).sum()
        return reward, jnp.repeat(jnp.where(own, 0, after.module_rewards) / self.clones, self.clones)

    def taken(self, row: Transition) -> Array:
        """The action that the winner of a row took in the environment."""
        choice = self.primitive_of(row.outcome.winner) if self.learned is None else row.choice
        return self.env.to_action(jnp.asarray(choice))

    def eligible(self, active: Bool[Array, " A"], env_state: PyTree, env_params: PyTree) -> Bool[Array, " A"]:
        """Which bidders may win: those that take part in the episode and whose primitives are legal, bool [A]."""
        if self.env.restricts_modules:
            self.check_modules()
            active = active & jnp.repeat(self.env.eligible_modules(env_state, env_params), self.clones)
        if self.learned is not None:
            return active
        return active & jnp.repeat(self.env.legal(env_state, env_params), self.clones)

    @property
    def holds(self) -> bool:
        """Whether a winner keeps the right to act for more than one step."""
        return self.learned is not None and self.learned.hold > 1


class Draws(struct.PyTreeNode):
    """All the randomness of one step. XLA removes draws that a society does not use.

    Keys are stored as their data (`Draws.key` returns them): the key-reuse checker of JAX 0.10 reports a reuse of typed
    keys that are scanned over under ``vmap``.
    """

    bid: PyTree  # of bid distributions with a method `noise`, leaves [A, ...]
    tie: Float[Array, ""]  # uniform
    explore: Float[Array, "2"]  # uniform: whether to explore, and the winner if so
    action: PyTree  # of the winner's action, if primitives learn; leaves [...]
    words: dict[str, UInt32[Array, "..."]]  # of each of the `_KEYS`
    implementation: Any = struct.field(pytree_node=False)

    def key(self, use: str) -> Array:
        """The key of a use: ``bid`` (distributions without a method `noise`), ``env`` or ``reset``."""
        return jax.random.wrap_key_data(self.words[use], impl=self.implementation)


_KEYS = ("bid", "env", "reset")


def draw(society: Society, key: Array, shape: tuple[int, ...] = ()) -> Draws:
    """Draw the randomness of ``shape`` steps at once, which is much faster than step by step."""
    count = math.prod(shape)
    key_bid, key_tie, key_explore, *keys = jax.random.split(key, 3 + len(_KEYS))

    # Bits are drawn as one long vector: a short innermost axis of bidders would not vectorise on a CPU.
    def uniform(key: Array, *each: int) -> Array:
        return jax.random.uniform(key, (count * math.prod(each),), real()).reshape(*shape, *each)

    def words(key: Array) -> Array:
        split = jax.random.key_data(jax.random.split(key, count))
        return split.reshape(*shape, *split.shape[1:])

    return Draws(
        bid=jax.tree.map(
            lambda x: x.reshape(*shape, society.bidders, *x.shape[1:]), society.noise(key_bid, count * society.bidders)
        ),
        tie=uniform(key_tie),
        explore=uniform(key_explore, 2),
        action=jax.tree.map(
            lambda x: x.reshape(*shape, *x.shape[1:]), society.action_noise(jax.random.fold_in(key, 0), count)
        ),
        words={use: words(key) for use, key in zip(_KEYS, keys, strict=True)},
        implementation=jax.random.key_impl(key),
    )


def auction(
    society: Society, draws: Draws | None, params: PyTree, obs: Array, eligible: Bool[Array, " A"], rules: Rules
) -> Outcome:
    """Clear one auction for the state behind ``obs``: bids, winner, exploration. No money moves.

    Without draws bids are greedy, ties go to the lowest id, and there is no exploration.

    Args:
        society: the static description.
        draws: the randomness, or None.
        params: bid-network parameters, leaves [M, ...].
        obs: encoded observation of the state for sale.
        eligible: the bidders that may win.
        rules: traced rules.
    """
    if rules.greedy is None:
        bids = society.bids(params, draws, obs)
    else:  # a branch, and not a mask: XLA runs only one of them
        bids = jax.lax.cond(
            rules.greedy, lambda: society.bids(params, None, obs), lambda: society.bids(params, draws, obs)
        )
    eligible = eligible & jnp.isfinite(bids)
    winner = auctions.choose(bids, draws.tie if draws is not None and society.ties == "random" else None, eligible)
    if draws is not None and rules.exploration is not None:
        explore = draws.explore[0] < rules.exploration
        winner = jnp.where(explore, auctions.pick(draws.explore[1], eligible), winner)
    return auctions.award(bids, winner, eligible, 0.0 if rules.reserve is None else rules.reserve)


@standard_promotion
def reset(society: Society, key: Array, env_params: PyTree, rules: Rules | None = None) -> tuple[State, Array]:
    """Start a market instance: all balances are 0, and the auctioneer owns the first state.

    Args:
        society: the static description.
        key: a typed PRNG key, consumed.
        env_params: the environment's parameters, such as ``society.env.default_params``.
        rules: as in `step`; their ``present`` and ``dropout`` decide which bidders take part in the episode.

    Returns:
        The state, and its encoded observation.
    """
    rules = rules or Rules()
    active = jnp.ones(society.bidders, bool) if rules.present is None else rules.present
    if rules.dropout is not None:
        key, key_active = jax.random.split(key)
        active = _drop_out(key_active, active, rules.dropout)
    obs, env_state = society.env.reset(key, env_params)
    zero = jnp.zeros((), real())
    state = State(
        env_state=env_state,
        obs=obs,
        owner=jnp.asarray(AUCTIONEER, jnp.int32),
        active=active,
        accounts=Accounts(wealth=jnp.zeros(society.bidders, real()), auctioneer=zero),
        episode_return=zero,
        episode_length=jnp.zeros((), jnp.int32),
        reserved=jnp.zeros((), jnp.int32) if society.holds else None,
    )
    return state, obs


@standard_promotion
def step(
    society: Society,
    key: Array,
    params: PyTree,
    state: State,
    env_params: PyTree,
    rules: Rules | None = None,
) -> tuple[State, Transition]:
    """One auction, its payments, and the environment step of the winner.

    Without an eligible bidder no money moves between bidders: primitive 0 acts, and the auctioneer earns its reward.
    After the end of an episode the next state is the first of a new one, and the auctioneer owns it. Where winners
    keep the right to act for several steps, only the owner may win in the meantime, and pays its own bid to itself.

    Args:
        society: the static description.
        key: a typed PRNG key, consumed.
        params: bid-network parameters, leaves [M, ...].
        state: the market instance.
        env_params: the environment's parameters, such as ``society.env.default_params``.
        rules: exploration, reserve, dropout, absent bidders and greedy bids; none of them by default.

    Returns:
        The next state (after a reset, where the episode ended) and the row of the trajectory.
    """
    draws, rules = draw(society, key), rules or Rules()
    fresh, _ = reset(society, draws.key("reset"), env_params, rules)
    return step_with(society, draws, params, state, fresh, env_params, rules)


def step_with(
    society: Society, draws: Draws, params: PyTree, state: State, fresh: State, env_params: PyTree, rules: Rules
) -> tuple[State, Transition]:
    """`step` with its randomness and the next episode's first state given; a rollout draws both for all its steps."""
    following, transition = advance(society, draws, params, state, env_params, rules)
    fresh = fresh.replace(accounts=following.accounts)
    return tree_select(transition.done, fresh, following), transition


def advance(
    society: Society, draws: Draws, params: PyTree, state: State, env_params: PyTree, rules: Rules
) -> tuple[State, Transition]:
    """`step_with` without the reset: the state after an episode's last step is that episode's."""
    eligible = society.eligible(state.active, state.env_state, env_params)
    held = None if state.reserved is None else state.reserved > 0
    if held is not None:
        eligible &= ~held | (jnp.arange(society.bidders) == state.owner)
    outcome = auction(society, draws, params, state.obs, eligible, rules)
    sold = outcome.winner >= 0
    price = jnp.where(sold, society.mechanism.price(outcome), 0)
    payout = jnp.where(sold, society.mechanism.payout(outcome), 0)
    if held is not None:  # the owner pays its own bid to itself
        price, payout = (jnp.where(held, outcome.winning_bid, amount) for amount in (price, payout))
    now = state.episode_length
    hint = "such a bid is never eligible; check the bid network and its inputs"
    check_finite("bids", outcome.bids, hint, eligible, step=now)
    check_finite("price", price, f"the mechanism {society.mechanism.name} must return a finite number", step=now)
    check_finite("payout", payout, f"the mechanism {society.mechanism.name} must return a finite number", step=now)

    legal = society.legal_choices(state.env_state, env_params)
    choice = society.choose(params, draws, state.obs, outcome.winner, rules, legal)
    after = society.env.step(draws.key("env"), state.env_state, society.env.to_action(choice), env_params)
    check_finite("reward", after.reward, f"a step of {society.env.name} must return a finite number", step=now)
    check_finite("observation", after.obs, f"a step of {society.env.name} must return finite numbers", step=now)
    reward, windfalls = society.earned(after, outcome.winner)
    accounts = pay_sale(
        state.accounts,
        buyer=outcome.winner,
        seller=state.owner,
        price=price,
        payout=payout,
        reward=reward,
        windfalls=windfalls,
    )
    transition = Transition(
        obs=state.obs,
        outcome=outcome,
        owner=state.owner,
        price=price,
        payout=payout,
        reward=reward,
        duration=after.duration,
        terminated=after.terminated,
        truncated=after.truncated,
        next_obs=after.obs,
        next_eligible=society.eligible(state.active, after.env_state, env_params),
        bootstrap_value=jnp.zeros_like(price),
        accounts=accounts,
        episode_return=state.episode_return + after.undiscounted,
        episode_length=longer(state.episode_length, after.duration),
        choice=None if society.learned is None else choice,
        legal=legal,
        held=held,
        windfalls=windfalls,
    )
    following = State(
        env_state=after.env_state,
        obs=after.obs,
        owner=outcome.winner,
        active=state.active,
        accounts=accounts,
        episode_return=transition.episode_return,
        episode_length=transition.episode_length,
        reserved=_next_reserved(society, state),
    )
    return following, transition


def _next_reserved(society: Society, state: State) -> Int32[Array, ""] | None:
    """The steps for which the owner of the next state still keeps the right to act."""
    if state.reserved is None or society.learned is None:
        return None
    return jnp.where(state.reserved > 0, state.reserved, society.learned.hold) - 1


def _drop_out(key: Array, present: Bool[Array, " A"], dropout: Array | float) -> Bool[Array, " A"]:
    """A random subset of the bidders that are present, with at least two of them if possible."""
    draws = jax.random.uniform(key, present.shape)
    two_highest = auctions.clear(draws, eligible=present)
    return present & ((draws >= dropout) | (draws >= two_highest.highest_other_bid))


class MarketPolicy(struct.PyTreeNode):
    """A trained society as a policy: ``obs -> action``. A pytree, for use under ``scan`` and ``vmap``.

    It has no memory: also where winners keep the right to act, it holds an auction for every observation.

    Attributes:
        params: bid-network parameters, leaves [M, ...].
        society: the society that learned them; if it is ``greedy``, bids are not sampled.
    """

    params: PyTree
    society: Society = struct.field(pytree_node=False)

    @standard_promotion
    def __call__(
        self, obs: PyTree, key: Array | None = None, legal: Array | None = None, legal_actions: Array | None = None
    ) -> Array:
        """The action of the bidder that wins the auction for the state behind ``obs``.

        Args:
            obs: one raw observation of the environment, as its ``reset`` and ``step`` return it.
            key: draws bids and breaks ties; optional for a greedy society (ties then go to the lowest id).
            legal: bool [P], legal primitives; all by default.
            legal_actions: bool [N], the actions that primitives that learn may choose; all by default. Where every
                primitive is an action, they are the legal primitives.

        Returns:
            An action: i32 [], or a float array if the environment's actions are continuous.

        Raises:
            ValueError: the society samples its bids and ``key`` is None.
        """
        if key is None and not self.society.greedy:
            raise ValueError(
                "key: expected a PRNG key, since the society samples its bids, got None; give a key, or make the "
                "policy with greedy=True"
            )
        draws = None if key is None else draw(self.society, key)
        legal = jnp.ones(self.society.primitives, bool) if legal is None else legal
        eligible = jnp.repeat(legal, self.society.clones)
        obs = self.society.env.encode(obs)
        winner = auction(self.society, draws, self.params, obs, eligible, Rules()).winner
        choice = self.society.choose(self.params, draws, obs, winner, Rules(), legal_actions)
        return self.society.env.to_action(choice)

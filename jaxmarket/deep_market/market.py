"""Deep markets: agents with wealth own the state in turn (Sudhir and Tran-Thanh 2025, Definition 2.1, Algorithm 1).

The market itself learns: wealth decides which agent can pay most for a state and therefore acts in it, so the wealth of
all agents takes the place of trained parameters. A step of B parallel instances that share one table of wealth:

every agent bids for the state of every instance, at most 1/B of its wealth → the auctions clear → winners pay and
owners are paid → winners act and receive rewards → rent, wealth tax and compute tax (`Terms`).

After every ``period`` steps, agents whose representation can learn do so from their own `Purchases`.

With one instance this is the published algorithm. As no agent bids more than 1/B of its wealth in any instance, no
agent spends more than it has: while rewards are not negative, wealth falls below zero only by rounding (about 1e-7 of
the payments). There is no discount; rent takes its place. After every ``period`` steps agents die and are born
(`turnover`). An agent whose wealth is not finite, because a reward was NaN or its account overflowed, dies at once
(`MarketStatistics.nonfinite_deaths`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Float, Int, Int32, UInt32

from jaxmarket import auctions
from jaxmarket.accounts import CashFlows, check_flows, withdraw
from jaxmarket.auctions import BUCKET_BRIGADE, ENVIRONMENT_REWARD, Mechanism
from jaxmarket.checking import check, check_finite
from jaxmarket.deep_market.demographics import Births, Population, Terms, random_population, turnover
from jaxmarket.deep_market.representations import NO_BID, Representation
from jaxmarket.environments.adapter import Adapter, Step, adapt, longer
from jaxmarket.learners.protocol import Experience
from jaxmarket.metrics import gini
from jaxmarket.settlement import lambda_returns, per_bidder
from jaxmarket.switches import entry_point, in_groups, standard_promotion
from jaxmarket.types import AUCTIONEER, Array, Outcome, PyTree, real
from jaxmarket.validation import as_float_array, check_float, check_int, check_no_nan, short_repr

__all__ = [
    "FLOWS",
    "UNPAID",
    "DeepMarket",
    "DeepMarketState",
    "DeepMarketStep",
    "MarketStatistics",
    "Purchases",
    "RoundSummary",
    "experience",
    "forward",
    "init",
    "money",
    "run",
    "step",
    "summarize",
]

FLOWS = {
    "reward": "rewards",
    "subsidy": "subsidy",
    "consumer_income": "consumers' income",
    "endowment": "endowments",
    "auctioneer": "sales by the auctioneer",
    "rent": "rent",
    "wealth_tax": "wealth tax",
    "compute_tax": "compute tax",
    "wealth_of_the_dead": "wealth of the dead",
}
"""The flows that create or remove money (`DeepMarketStep`), with their labels in tables and figures."""

UNPAID = Mechanism("unpaid", price=ENVIRONMENT_REWARD.price, payout=BUCKET_BRIGADE.payout)
"""No conservation (ablation): the mint pays the winning bid to the seller, and the buyer pays nothing."""


@dataclasses.dataclass(frozen=True)
class DeepMarket:
    """The static description of a deep market: frozen, and compared by value, so that equal markets compile once.

    Attributes:
        env: an environment, or its `Adapter`.
        representation: how agents are encoded, mutated and recombined.
        capacity: N, slots for agents.
        instances: B, parallel copies of the environment that share one table of wealth.
        mechanism: what the winner pays and the owner receives; first price by default, as published.
        consumers: for each consumer, the value of a state to it, ``obs -> f []``. Consumers do not act. They bid for
            every state that an agent has just reached, up to their budget, where its value is positive. A consumer that
            buys a state pays the agent and owns it from then on. With consumers the environment's reward is not paid.
        property_rights: whether the owner of a state receives the money of its sale; otherwise a random living agent
            does (ablation).
        joint_purchases: agents that would do what the winner does, and bid at least this share of its bid, buy the
            state together with it: in proportion to their bids they pay the price, earn the income and own the state
            reached. From 0 (all that agree) to 1 (only equal bids); with None the winner buys alone.

    Raises:
        ValueError: ``env`` is not an environment, ``capacity`` or ``instances`` is less than 1, ``mechanism`` is not
            a `Mechanism`, or ``joint_purchases`` is not in [0, 1].
    """

    env: Adapter
    representation: Representation
    capacity: int
    instances: int = 1
    mechanism: Mechanism = BUCKET_BRIGADE
    consumers: tuple[Callable[[Array], Array], ...] = ()
    property_rights: bool = True
    joint_purchases: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "env", adapt(self.env))
        for field in ("capacity", "instances"):
            object.__setattr__(self, field, check_int(field, getattr(self, field)))
        if not isinstance(self.mechanism, Mechanism):
            raise ValueError(
                f"mechanism: expected a Mechanism, got {short_repr(self.mechanism)}; take one of jaxmarket.MECHANISMS"
            )
        if self.joint_purchases is not None:
            share = check_float("joint_purchases", self.joint_purchases, 0, 1)
            object.__setattr__(self, "joint_purchases", share)


class DeepMarketState(struct.PyTreeNode):
    """A running deep market."""

    population: Population
    env_state: PyTree  # leaves [B, ...]
    obs: Float[Array, "B ..."]  # encoded observations of the states for sale
    owner: Int32[Array, " B"]  # account that sells the state: an agent's slot, N + c for consumer c, or AUCTIONEER
    stakes: Float[Array, "B N"] | None  # share of each agent in the state, with joint purchases; `owner` bought it
    original_owner: Int32[Array, ""]  # account that owns the first state of every episode
    consumers: Float[Array, " C"]  # wealth of the consumers
    sold: Bool[Array, " B"]  # whether the last auction had a winner
    episode_return: Float[Array, " B"]  # of the running episode
    episode_length: Int32[Array, " B"]
    time: Int32[Array, ""]  # steps so far


class MarketStatistics(struct.PyTreeNode):
    """Counts and sums over all instances of a step, or over the steps of a round."""

    auctions: Float[Array, ""]
    unsold: Float[Array, ""]  # auctions without a winner
    episodes: Float[Array, ""]  # episodes that ended
    terminated: Float[Array, ""]  # of these, not truncated
    returns: Float[Array, ""]  # sum of their undiscounted returns
    lengths: Float[Array, ""]  # sum of their lengths
    steps: Float[Array, ""]  # environment steps
    nonfinite_deaths: Float[Array, ""]  # agents that died because their wealth was NaN or infinite


class DeepMarketStep(struct.PyTreeNode):
    """The record of one step.

    The flows, f [] each, summed over instances:

    - ``reward``: from the environment, to agents that survive it; ``subsidy``: payout - price, from the mechanism;
      ``consumer_income``; ``endowment``: of newborn agents;
    - ``auctioneer``: minus what buyers paid for states that the auctioneer owned; ``rent``, ``wealth_tax``,
      ``compute_tax``; ``wealth_of_the_dead``;
    - the transfers ``sales`` and ``consumption``: what agents and consumers paid for states.

    The auctioneer's revenue is a flow and not an account: a float32 account that only grows would soon stop growing.
    A reward that makes an account infinite or NaN kills the agent. It is not a flow, so that the sums stay finite.
    """

    flows: CashFlows
    statistics: MarketStatistics
    wins: Int32[Array, " N"]  # states bought by each agent, alone or with others


def money(state: DeepMarketState) -> Float[Array, ""]:
    """The wealth of all agents and consumers together."""
    return state.population.wealth.sum() + state.consumers.sum()


@entry_point
def init(
    market: DeepMarket,
    key: Array,
    env_params: PyTree,
    population: Population | None = None,
    *,
    num_agents: int | None = None,
    wealth: Array | float = 1.0,
    original_owner: Array | int = AUCTIONEER,
    consumers: Array | float = 0.0,
) -> DeepMarketState:
    """The initial state: first states of the environment, a population, and its money.

    Args:
        market: the static description.
        key: a typed PRNG key, consumed.
        env_params: the environment's parameters, such as ``market.env.default_params``.
        population: the agents; random agents by default.
        num_agents: the number of random agents; as many as there are slots by default.
        wealth: f [], of each random agent.
        original_owner: the account that owns first states, the auctioneer by default.
        consumers: f [C] or f [], wealth of the consumers.

    Raises:
        ValueError: the population has another capacity, there are more agents than slots, an amount of money is not a
            finite number of the right shape, or the original owner is not an account.
    """
    key_reset, key_agents = jax.random.split(key)
    obs, env_state = jax.vmap(market.env.reset, (0, None))(jax.random.split(key_reset, market.instances), env_params)
    if population is None:
        num_agents = check_int("num_agents", market.capacity if num_agents is None else num_agents, 0, market.capacity)
        wealth = as_float_array("wealth", wealth, ())
        population = random_population(market.representation, key_agents, obs, market.capacity, num_agents, wealth)
    elif population.capacity != market.capacity:
        raise ValueError(
            f"population: expected {market.capacity} slots, as in the market, got {population.capacity}; use one number"
        )
    count = len(market.consumers)
    if not isinstance(original_owner, jax.Array):
        original_owner = check_int("original_owner", original_owner, AUCTIONEER, market.capacity + count - 1)
    consumer_wealth = as_float_array("consumers", consumers)
    check_no_nan("consumers", consumer_wealth)
    if consumer_wealth.shape not in ((), (count,)):
        raise ValueError(
            f"consumers: expected the wealth of {count} consumers, got shape {consumer_wealth.shape}; give one number "
            f"for all, or shape ({count},)"
        )
    instances = market.instances
    return DeepMarketState(
        population=population,
        env_state=env_state,
        obs=obs,
        owner=jnp.full(instances, original_owner, jnp.int32),
        stakes=None if market.joint_purchases is None else _sole(market, jnp.full(instances, original_owner)),
        original_owner=jnp.asarray(original_owner, jnp.int32),
        consumers=jnp.broadcast_to(consumer_wealth, (count,)),
        sold=jnp.ones(instances, bool),
        episode_return=jnp.zeros(instances, real()),
        episode_length=jnp.zeros(instances, jnp.int32),
        time=jnp.zeros((), jnp.int32),
    )


class Purchases(struct.PyTreeNode):
    """What was sold in one step, or with a leading axis in each step of a round, and what it brought."""

    obs: Float[Array, "B ..."]
    outcome: Outcome  # [B]
    action: Int32[Array, " B"]  # of the winner
    price: Float[Array, " B"]  # paid by the winner
    payout: Float[Array, " B"]  # received by the owner
    income: Float[Array, " B"]  # of the winner: the reward, or what consumers paid
    kept: Bool[Array, " B"]  # whether the winner owns the state reached, and will receive the payout for it
    terminated: Bool[Array, " B"]
    truncated: Bool[Array, " B"]
    stakes: Float[Array, "B N"] | None = None  # of the buyers, with joint purchases

    @property
    def known(self) -> Bool[Array, "T B"]:
        """Of a round: whether the proceeds are known, so not in its last step and not before a truncation."""
        return self.terminated | ~(self.truncated | self._last)

    @property
    def proceeds(self) -> Float[Array, "T B"]:
        """Of a round: what the next buyer of the state paid for it, where that is known."""
        return jnp.where(self.terminated | ~self.kept, 0, jnp.roll(self.payout, -1, 0))

    @property
    def _last(self) -> Bool[Array, "T 1"]:
        steps = self.price.shape[0]
        return jnp.arange(steps)[:, None] == steps - 1


def experience(purchases: Purchases, discount: Array | float, trace_decay: Array | float, agents: int) -> Experience:
    """The experience of each agent, in which its utility is its own profit: income + γ · next payout - price.

    Purchases whose proceeds are not known yet, those of the last step and those before a truncation, teach nothing.

    Args:
        purchases: of a round, leaves [T, B, ...].
        discount: γ of the agents, f []. Money is not discounted.
        trace_decay: λ, f []: (1-λ) of the payout plus λ of what the buyer made of the state, as in
            `jaxmarket.settlement.settle`.
        agents: N.

    Returns:
        Observations and choices [T · B, ...], the rest [N, 1, T · B].
    """
    p, winner = purchases, purchases.outcome.winner
    known, proceeds = p.known, p.proceeds
    chained = jnp.roll((p.outcome.winning_bid >= p.outcome.highest_other_bid) & (winner >= 0) & known, -1, 0)
    decay = jnp.where(p.terminated | p.truncated | p._last | ~p.kept, 0, trace_decay * chained)
    discounts = jnp.full_like(p.income, discount)
    revenue = lambda_returns(p.income, discount=discounts, value=proceeds, trace_decay=decay)

    def by_agent(value: Array) -> Array:
        return value.reshape(-1, 1, agents).transpose(2, 1, 0)

    return Experience(
        obs=p.obs.reshape(-1, *p.obs.shape[2:]),
        bid=by_agent(p.outcome.bids),
        eligible=by_agent(p.outcome.eligible),
        won=by_agent((winner[..., None] == jnp.arange(agents)) & known[..., None]),
        price=by_agent(per_bidder(p.price, winner, agents)),
        utility=by_agent(per_bidder(jnp.where(known, revenue - p.price, 0), winner, agents)),
        choice=p.action.reshape(-1).astype(real()),
    )


class _Draws(struct.PyTreeNode):
    """Uniform random numbers of one auction of agents and one of consumers."""

    tie: Float[Array, "..."]  # breaks ties between agents
    explore: Float[Array, "..."]  # whether a random agent wins
    explorer: Float[Array, "..."]  # which one
    idle_action: Float[Array, "..."]  # the action where no agent bids
    consumer_tie: Float[Array, "..."]  # breaks ties between consumers
    payee: Float[Array, "..."]  # the agent that receives the money without property rights

    @classmethod
    def of(cls, key: Array, shape: tuple[int, ...]) -> Self:
        """Draw them all at once, which is far cheaper than step by step."""
        return cls(*jnp.moveaxis(jax.random.uniform(key, (*shape, len(dataclasses.fields(cls))), real()), -1, 0))


class _Randomness(struct.PyTreeNode):
    """All that is random in a step; `run` draws it for many steps at once."""

    draws: _Draws  # [B]
    env_keys: UInt32[Array, "B ..."]  # data of the environment's keys
    first: tuple[Array, PyTree]  # observations and states for instances whose episode ends: leaves [B, ...]
    action: Float[Array, " B"] | None  # uniform, for the actions of agents that sample them

    @classmethod
    def of(cls, market: DeepMarket, key: Array, env_params: PyTree, steps: int) -> Self:
        """The randomness of ``steps`` steps: leaves [steps, B, ...]."""
        key_draws, key_env, key_reset = jax.random.split(key, 3)
        shape = (steps, market.instances)
        reset = jax.vmap(jax.vmap(market.env.reset, (0, None)), (0, None))
        return cls(
            draws=_Draws.of(key_draws, shape),
            env_keys=jax.random.key_data(jax.random.split(key_env, shape)),
            first=reset(jax.random.split(key_reset, shape), env_params),
            action=jax.random.uniform(jax.random.fold_in(key, 0), shape, real())
            if hasattr(market.representation, "sample")
            else None,
        )


class _Sale(struct.PyTreeNode):
    """An auction's result, or that of B auctions."""

    outcome: Outcome
    price: Float[Array, ""]  # what the winner pays
    payout: Float[Array, ""]  # what the owner receives
    stakes: Float[Array, " N"] | None = None  # share of each agent in a joint purchase


def _sole(market: DeepMarket, owner: Int[Array, "*B"]) -> Float[Array, "*B N"]:
    """The stakes in states that agents own alone; none where the owner is not an agent."""
    return jax.nn.one_hot(owner, market.capacity, dtype=real())


def _join(market: DeepMarket, outcome: Outcome, agrees: Bool[Array, "B N"]) -> Float[Array, "B N"]:
    """The stakes of joint purchases: bids in proportion, of the agents that agree and bid enough."""
    assert market.joint_purchases is not None
    winner, bids = outcome.winner[:, None], jnp.maximum(outcome.bids, 0)
    enough = outcome.bids >= market.joint_purchases * outcome.winning_bid[:, None]
    weight = jnp.where(outcome.eligible & agrees & enough & (winner >= 0), bids, 0)
    total = weight.sum(1, keepdims=True)
    return jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), _sole(market, outcome.winner))


def _budget(market: DeepMarket, population: Population, terms: Terms) -> Float[Array, " N"]:
    """The most that each agent can bid: an equal share of its wealth for every instance in which it may bid."""
    instances: Any = market.instances
    if terms.proof is not None:
        instances = jnp.where(population.wealth >= terms.proof, market.instances, _probation(market, terms))
    return jnp.maximum(population.wealth, 0) / instances


def _probation(market: DeepMarket, terms: Terms) -> Array | int:
    """The number of instances in which agents on probation bid."""
    return 1 if terms.probation is None else jnp.clip(terms.probation, 1, market.instances)


def _bids(
    market: DeepMarket, population: Population, obs: Float[Array, "B ..."], terms: Terms, frozen: bool
) -> tuple[Float[Array, "B N"], Float[Array, " N"]]:
    """Bids, at most the budgets, `NO_BID` of dead agents; and the fixed bids (`Terms.markup`).

    Agents on probation (`Terms.proof`) bid in the first instances only, and not at all if ``frozen``.
    """
    p = population
    budget, admitted = _budget(market, p, terms), True
    if terms.proof is not None:
        admitted = p.wealth >= terms.proof
        if not frozen:
            admitted = admitted | (jnp.arange(market.instances) < _probation(market, terms))[:, None]
    each_agent = jax.vmap(market.representation.bid, (0, None, 0))
    group = 1 if getattr(market.representation, "in_turn", False) else len(obs)
    bids = in_groups(lambda obs: each_agent(p.agents, obs, budget), obs, group)
    check_finite("bids", bids, "a representation returns a finite bid or NO_BID", p.alive & (bids != NO_BID))
    bids = jnp.where(p.alive & jnp.isfinite(bids) & admitted, bids, NO_BID)
    offer = p.offer
    if terms.markup is not None:
        willing, fixed = bids > NO_BID, ~jnp.isnan(offer)
        worth = _worth(market, p, obs)  # [B, N]
        if not frozen:
            best = jnp.max(jnp.where(willing & fixed, jnp.minimum(offer * worth, budget), 0), axis=1)  # [B]
            first = jnp.argmax(willing, axis=0)  # the first instance that the agent bids in
            entry = best[first] / worth[first, jnp.arange(p.capacity)] + terms.markup
            offer = jnp.where(willing.any(0) & ~fixed, entry, offer)
        bids = jnp.where(willing & ~jnp.isnan(offer), offer * worth, NO_BID)
    return jnp.minimum(bids, budget), offer


def _worth(market: DeepMarket, population: Population, obs: Float[Array, "B ..."]) -> Float[Array, "B N"]:
    """What fixed bids are multiples of: the representation's ``worth``, or 1."""
    worth = getattr(market.representation, "worth", None)
    if worth is None:
        return jnp.ones((obs.shape[0], population.capacity), real())
    return jax.vmap(jax.vmap(worth, (0, None)), (None, 0))(population.agents, obs)


def _award(
    mechanism: Mechanism, bids: Float[Array, " N"], eligible: Bool[Array, " N"], winner: Int32[Array, ""]
) -> _Sale:
    """Sell one state to a winner, given the bids."""
    outcome = auctions.award(bids, winner, eligible)
    sold = winner >= 0
    price, payout = mechanism.price(outcome), mechanism.payout(outcome)
    return _Sale(outcome, jnp.where(sold, price, 0).astype(bids.dtype), jnp.where(sold, payout, 0).astype(bids.dtype))


def _sell(
    market: DeepMarket,
    draws: _Draws,
    population: Population,
    obs: Float[Array, "B ..."],
    env_state: PyTree,
    env_params: PyTree,
    terms: Terms,
    *,
    noise: Float[Array, " B"] | None = None,
    frozen: bool = False,
) -> tuple[_Sale, Int[Array, " B"], Float[Array, " N"]]:
    """Auctions of any number of states: sales [B], actions, and the fixed bids; actions are sampled with ``noise``."""
    p, representation = population, market.representation

    def act(agent: PyTree, obs: Array, noise: Array | None) -> Array:
        return representation.act(agent, obs) if noise is None else representation.sample(agent, obs, noise)  # type: ignore[attr-defined]

    def intended() -> Int[Array, "B N"]:
        return jax.vmap(jax.vmap(act, (0, None, None)), (None, 0, 0))(p.agents, obs, noise)

    bids, offer = _bids(market, p, obs, terms, frozen)
    eligible = bids > NO_BID
    if market.env.restricts_actions:
        legal = jax.vmap(market.env.legal, (0, None))(env_state, env_params)  # [B, P]
        eligible = eligible & jnp.take_along_axis(legal, intended(), axis=1)

    def clear(bids: Array, eligible: Array, draws: _Draws) -> _Sale:
        winner = auctions.choose(bids, draws.tie, eligible)
        if terms.exploration is not None:
            explorer = auctions.pick(draws.explorer, eligible)
            winner = jnp.where(draws.explore < terms.exploration, explorer, winner)
        return _award(market.mechanism, bids, eligible, winner)

    sale = jax.vmap(clear)(bids, eligible, draws)
    winner = sale.outcome.winner
    winners = jax.tree.map(lambda leaf: leaf[jnp.maximum(winner, 0)], p.agents)
    actions = jax.vmap(act)(winners, obs, noise)
    if market.joint_purchases is not None:
        sale = sale.replace(stakes=_join(market, sale.outcome, intended() == actions[:, None]))
    idle = jnp.floor(draws.idle_action * market.env.num_actions).astype(actions.dtype)
    return sale, jnp.where(winner >= 0, actions, idle), offer


@standard_promotion
def forward(
    market: DeepMarket,
    key: Array,
    population: Population,
    obs: Float[Array, "B ..."],
    env_state: PyTree,
    env_params: PyTree,
    terms: Terms | None = None,
) -> tuple[Outcome, Float[Array, " B"], Int[Array, " B"]]:
    """The forward pass of Algorithm 1: the winner of each state, the price and the action.

    No money moves, no instance changes, and there is no exploration. With ``Terms.markup``, agents that do not have a
    fixed bid yet do not bid; with ``Terms.proof``, agents on probation do not.

    Args:
        market, population, terms: as in `step`.
        key: breaks ties, and draws the action where no agent bids.
        obs, env_state: leaves [B, ...], any number of states.
        env_params: the environment's parameters.

    Returns:
        Outcomes [B], payouts that the owners of the states would receive, and actions.
    """
    terms = (terms or Terms()).replace(exploration=None)
    draws = _Draws.of(key, obs.shape[:1])
    sale, actions, _ = _sell(market, draws, population, obs, env_state, env_params, terms, frozen=True)
    return sale.outcome, sale.payout, actions


@entry_point
def step(
    market: DeepMarket, key: Array, state: DeepMarketState, env_params: PyTree, terms: Terms | None = None
) -> tuple[DeepMarketState, DeepMarketStep]:
    """One auction, its payments and one environment step in every instance.

    Where no agent bids, a random action is taken and its reward is not paid. When an episode ends, the next one begins
    and its first state belongs to the original owner. The last state of an episode is not sold to agents.

    Args:
        market: the static description.
        key: a typed PRNG key, consumed.
        state: the state before.
        env_params: the environment's parameters, such as ``market.env.default_params``.
        terms: traced economic settings; ``Terms()`` by default.

    Returns:
        The state after the step, and its record: money that moved, counts, and auctions won by each agent.
    """
    randomness = jax.tree.map(lambda leaf: leaf[0], _Randomness.of(market, key, env_params, 1))
    return _step(market, jax.random.key_impl(key), env_params, terms or Terms(), state, randomness)[:2]


class _Ledger(struct.PyTreeNode):
    """The accounts in the middle of a step, and what was paid so far."""

    accounts: Float[Array, " N+C+1"]  # agents, consumers, auctioneer (whose number -1 is the last one)
    owner: Int32[Array, " B"]  # who owns the state that was reached
    stakes: Float[Array, "B N"] | None  # and the shares of agents in it, with joint purchases
    subsidy: Float[Array, " B"]  # payout - price, of agents' and consumers' purchases
    rounding: Float[Array, ""]  # added to the accounts so that none rounds below 0
    price: Float[Array, " B"]  # paid for the states
    income: Float[Array, " B"]  # of the winners, from consumers
    consumption: Float[Array, ""]


def _step(
    market: DeepMarket,
    key_impl: Any,
    env_params: PyTree,
    terms: Terms,
    state: DeepMarketState,
    randomness: _Randomness,
) -> tuple[DeepMarketState, DeepMarketStep, Purchases]:
    """`step`, with its randomness drawn beforehand, and what was bought in it."""
    p, slots, draws = state.population, market.capacity, randomness.draws
    sale, action, offer = _sell(
        market, draws, p, state.obs, state.env_state, env_params, terms, noise=randomness.action
    )
    keys = jax.random.wrap_key_data(randomness.env_keys, impl=key_impl)
    after = jax.vmap(market.env.step, (0, 0, 0, None))(keys, state.env_state, action, env_params)
    _check_step(market, state, sale, after)

    ledger = _pay_sellers(market, draws, state, sale, terms)
    income = jnp.zeros((), real())
    if market.consumers:
        ledger = _sell_to_consumers(market, draws, after.obs, sale, ledger)
        if terms.consumer_income is not None:
            income = jnp.asarray(terms.consumer_income * len(market.consumers), ledger.accounts.dtype)
            ledger = ledger.replace(accounts=ledger.accounts.at[slots:-1].add(terms.consumer_income))

    winner, sold = sale.outcome.winner, sale.outcome.winner >= 0
    reward = jnp.where(sold & (not market.consumers), after.reward, 0)
    accounts, killed, wealth_of_the_dead, reward_paid = _credit(p, ledger.accounts, winner, sale.stakes, reward)
    lost = sold & killed[winner]
    owner = jnp.where(lost & (ledger.owner == winner), AUCTIONEER, ledger.owner)
    original = state.original_owner
    original = jnp.where(killed[original] & (original < slots), AUCTIONEER, original)

    if sale.stakes is None:
        wins = bought = jnp.zeros(slots, jnp.int32).at[jnp.where(sold, winner, slots)].add(1, mode="drop")
    else:
        wins, bought = (sale.stakes > 0).sum(0, dtype=jnp.int32), sale.stakes.sum(0)
    wealth, charges = _charge(market, p, accounts[:slots], bought, terms)
    flows = CashFlows.of(
        reward=reward_paid,
        subsidy=ledger.subsidy.sum(),
        consumer_income=income,
        endowment=jnp.zeros((), real()),
        auctioneer=ledger.rounding - accounts[-1],
        **charges,
        wealth_of_the_dead=-wealth_of_the_dead,
        transfers={"sales": ledger.price.sum(), "consumption": ledger.consumption},
    )
    done = after.terminated | after.truncated
    returns, lengths = state.episode_return + after.undiscounted, longer(state.episode_length, after.duration)
    statistics = MarketStatistics(
        auctions=jnp.asarray(market.instances, real()),
        unsold=(~sold).sum(dtype=real()),
        episodes=done.sum(dtype=real()),
        terminated=after.terminated.sum(dtype=real()),
        returns=jnp.where(done, returns, 0).sum(),
        lengths=jnp.where(done, lengths, 0).sum(dtype=real()),
        steps=after.duration.sum(),
        nonfinite_deaths=killed.sum(dtype=real()),
    )

    def reset(new: Array, old: Array) -> Array:
        return jnp.where(done.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    following = state.replace(
        population=p.replace(
            alive=p.alive & ~killed, wealth=wealth, offer=offer, won=jnp.where(wins > 0, state.time + 1, p.won)
        ),
        env_state=jax.tree.map(reset, randomness.first[1], after.env_state),
        obs=reset(randomness.first[0], after.obs),
        owner=jnp.where(done, original, owner),
        stakes=None
        if ledger.stakes is None
        else jnp.where(done[:, None], _sole(market, original), jnp.where(killed, 0, ledger.stakes)),
        original_owner=original,
        consumers=accounts[slots:-1],
        sold=sold,
        episode_return=jnp.where(done, 0, returns),
        episode_length=jnp.where(done, 0, lengths),
        time=state.time + 1,
    )
    check_flows((p.wealth, state.consumers), (wealth, following.consumers), flows, step=state.time)
    purchases = Purchases(
        obs=state.obs,
        outcome=sale.outcome,
        action=action,
        price=ledger.price,
        payout=ledger.price + sale.payout - sale.price,
        income=reward + ledger.income,
        kept=(owner == winner) & market.property_rights,
        terminated=after.terminated,
        truncated=after.truncated,
        stakes=sale.stakes,
    )
    return following, DeepMarketStep(flows, statistics, wins), purchases


def _check_step(market: DeepMarket, state: DeepMarketState, sale: _Sale, after: Step) -> None:
    """Checks of `checked` programs: numbers of the mechanism and the environment, and the owners."""
    time, name = state.time, market.env.name
    prices = jnp.stack([sale.price, sale.payout], axis=1)
    check_finite("prices", prices, f"the mechanism {market.mechanism.name} must return numbers", step=time)
    check_finite("reward", after.reward, f"a step of {name} must return a number", step=time)
    check_finite("observation", after.obs, f"a step of {name} must return numbers", step=time)
    last = market.capacity + len(market.consumers) - 1
    check(
        lambda: jnp.all((state.owner >= AUCTIONEER) & (state.owner <= last)),
        f"owner: expected an account from -1 (the auctioneer) to {last}, got {{owner}}",
        owner=lambda: state.owner[jnp.argmax((state.owner < AUCTIONEER) | (state.owner > last))],
    )


def _pay_sellers(market: DeepMarket, draws: _Draws, state: DeepMarketState, sale: _Sale, terms: Terms) -> _Ledger:
    """Winners pay for the states, and their owners are paid."""
    p, winner = state.population, sale.outcome.winner
    # A winner by exploration may be unable to pay the price: it pays its budget, and the seller receives less.
    budget = _budget(market, p, terms)
    subsidy = sale.payout - sale.price
    seller, sellers = state.owner, state.stakes
    if not market.property_rights:
        payee = jax.vmap(auctions.pick, (0, None))(draws.payee, p.alive)
        seller, sellers = jnp.where(seller == AUCTIONEER, AUCTIONEER, payee), None
    accounts = jnp.concatenate([p.wealth, state.consumers, jnp.zeros(1, real())])
    if sale.stakes is None:
        price = jnp.minimum(sale.price, budget[jnp.maximum(winner, 0)])
        accounts, rounding = _withdraw(market, accounts, winner, price)
    else:
        parts = jnp.minimum(sale.stakes * sale.price[:, None], budget)
        price = parts.sum(1)
        accounts, rounding = withdraw(accounts, jnp.arange(market.capacity), parts.sum(0))
    return _Ledger(
        accounts=_pay(accounts, seller, sellers, price + subsidy),
        owner=winner,
        stakes=sale.stakes,
        subsidy=subsidy,
        rounding=rounding,
        price=price,
        income=jnp.zeros_like(price),
        consumption=jnp.zeros((), real()),
    )


def _pay(
    accounts: Float[Array, " accounts"],
    payee: Int32[Array, " B"],
    stakes: Float[Array, "B N"] | None,
    amounts: Float[Array, " B"],
) -> Float[Array, " accounts"]:
    """Pay one account per instance or, where agents have stakes, these agents; the auctioneer receives the rest."""
    if stakes is None:
        return accounts.at[payee].add(amounts)
    slots, parts = stakes.shape[1], stakes * amounts[:, None]
    other = jnp.where((payee >= 0) & (payee < slots), AUCTIONEER, payee)
    return accounts.at[:slots].add(parts.sum(0)).at[other].add(amounts - parts.sum(1))


def _sell_to_consumers(
    market: DeepMarket, draws: _Draws, obs: Float[Array, "B ..."], sale: _Sale, ledger: _Ledger
) -> _Ledger:
    """Consumers bid for the states just reached, terminal ones included."""
    slots, accounts = market.capacity, ledger.accounts
    values = jnp.stack([jax.vmap(value)(obs) for value in market.consumers], axis=1)  # [B, C]
    values = jnp.minimum(values, jnp.maximum(accounts[slots:-1], 0) / market.instances)

    def clear(bids: Array, tie: Array) -> _Sale:
        eligible = bids > 0
        return _award(market.mechanism, bids, eligible, auctions.choose(bids, tie, eligible))

    bought = jax.vmap(clear)(values, draws.consumer_tie)
    winner, consumer = sale.outcome.winner, bought.outcome.winner
    owner = jnp.where(consumer >= 0, slots + consumer, winner)
    accounts, rounding = _withdraw(market, accounts, owner, bought.price)
    return ledger.replace(
        accounts=_pay(accounts, winner, sale.stakes, bought.payout),
        owner=owner,
        stakes=None if sale.stakes is None else jnp.where(consumer[:, None] >= 0, 0, sale.stakes),
        subsidy=ledger.subsidy + bought.payout - bought.price,
        rounding=ledger.rounding + rounding,
        income=bought.payout,
        consumption=bought.price.sum(),
    )


def _withdraw(
    market: DeepMarket, accounts: Float[Array, " accounts"], payer: Int32[Array, " B"], amounts: Float[Array, " B"]
) -> tuple[Float[Array, " accounts"], Float[Array, ""]]:
    """One payment per instance: the accounts, and the rounding error below 0 that the auctioneer bears."""
    if market.instances == 1:  # a single payment of at most the balance never rounds below 0
        return accounts.at[payer].add(-amounts), jnp.zeros((), accounts.dtype)
    return withdraw(accounts, payer, amounts)


def _credit(
    population: Population,
    accounts: Float[Array, " accounts"],
    winner: Int32[Array, " B"],
    stakes: Float[Array, "B N"] | None,
    reward: Float[Array, " B"],
) -> tuple[Float[Array, " accounts"], Bool[Array, " N"], Float[Array, ""], Float[Array, ""]]:
    """Pay rewards. Agents whose accounts are not finite afterwards die.

    Returns:
        The accounts, 0 for dead agents; whether each agent died; the finite wealth of dead agents before the reward;
        and the rewards of the others.
    """
    slots = population.capacity
    before = accounts[:slots]
    # 0 · NaN would be NaN.
    parts = None if stakes is None else jnp.where(stakes > 0, stakes * reward[:, None], 0).sum(0)
    after = accounts.at[winner].add(reward) if parts is None else accounts.at[:slots].add(parts)
    died = population.alive & ~jnp.isfinite(after[:slots])
    wealth_of_the_dead = jnp.where(died & jnp.isfinite(before), before, 0).sum()
    paid = jnp.where((winner >= 0) & died[winner], 0, reward) if parts is None else jnp.where(died, 0, parts)
    return after.at[:slots].set(jnp.where(died, 0, after[:slots])), died, wealth_of_the_dead, paid.sum()


def _charge(
    market: DeepMarket, population: Population, wealth: Float[Array, " N"], bought: Array, terms: Terms
) -> tuple[Float[Array, " N"], dict[str, Float[Array, ""]]]:
    """Rent and taxes, none of which puts an agent into debt: the wealth that remains, and the flows.

    ``bought`` [N] is the number of states that each agent bought, in joint purchases its share of them.
    """
    due: dict[str, Callable[[Array], Array]] = {}
    if (rent := terms.rent) is not None:
        due["rent"] = lambda own: rent * bought / market.instances * own
    if (share := terms.wealth_tax) is not None:
        due["wealth_tax"] = lambda own: share * own
    if (price := terms.compute_tax) is not None:
        cost = jax.vmap(market.representation.cost)(population.agents)
        due["compute_tax"] = lambda own: jnp.minimum(price * cost, own)
    flows: dict[str, Array] = {name: jnp.zeros((), wealth.dtype) for name in ("rent", "wealth_tax", "compute_tax")}
    for name, charge in due.items():
        before, wealth = wealth, wealth - charge(jnp.maximum(wealth, 0))
        flows[name] = (wealth - before).sum()  # not the charge, which may be rounded when it is subtracted
    return wealth, flows


class RoundSummary(struct.PyTreeNode):
    """One round: its steps, followed by deaths and births."""

    flows: CashFlows  # f [] sums over the round, see `DeepMarketStep`
    statistics: MarketStatistics  # sums over the round
    money: Float[Array, ""]  # at its end
    num_agents: Int32[Array, ""]  # living agents at its end
    births: Births
    gini: Float[Array, ""]  # of the living agents' wealth
    wealth: Float[Array, "5"]  # minimum, quartiles and maximum of the living agents' wealth
    top_share: Float[Array, ""]  # share of the round's auctions that the most successful agent won, alone or not

    def residual(self, opened: Any) -> Any:
        """The change of money in all rounds that no flow explains, relative to the money that moved: f [].

        Leaves are f [rounds, ...] NumPy arrays; in float64 only the rounding of the float32 sums remains.

        Args:
            opened: f [], the money before the first round.
        """
        return self.flows.residual(opened, self.money[-1])


@entry_point
def run(
    market: DeepMarket,
    key: Array,
    state: DeepMarketState,
    env_params: PyTree,
    terms: Terms | None = None,
    *,
    rounds: int,
    period: int,
    max_births: int = 1,
) -> tuple[DeepMarketState, RoundSummary]:
    """Run rounds of ``period`` steps, each followed by deaths and births. Pure: jit it, vmap it over seeds and terms.

    Args:
        market, state, env_params, terms: as in `step`.
        key: a typed PRNG key, consumed.
        rounds: number of rounds. Static.
        period: steps per round. Static.
        max_births: K, the largest number of births in a turnover; with 0 there is no turnover, so no agent dies of
            bankruptcy or idleness. Static.

    Returns:
        The state, and the rounds with a leading axis [rounds].

    Raises:
        ValueError: ``rounds`` or ``period`` is less than 1, or ``max_births`` is not between 0 and the capacity.
    """
    terms = terms or Terms()
    rounds, period = check_int("rounds", rounds), check_int("period", period)
    max_births = check_int("max_births", max_births, 0, market.capacity)
    key_impl = jax.random.key_impl(key)
    learns = hasattr(market.representation, "learn")

    def one_step(
        carry: tuple[DeepMarketState, Array], randomness: _Randomness
    ) -> tuple[tuple[DeepMarketState, Array], tuple[CashFlows, MarketStatistics, Purchases | None]]:
        state, wins = carry
        state, happened, purchases = _step(market, key_impl, env_params, terms, state, randomness)
        history = happened.flows, happened.statistics, purchases if learns else None
        return (state, wins + happened.wins), history

    def one_round(state: DeepMarketState, key: Array) -> tuple[DeepMarketState, RoundSummary]:
        key_steps, key_turnover, key_states = jax.random.split(key, 3)
        carry = state, jnp.zeros(market.capacity, jnp.int32)
        randomness = _Randomness.of(market, key_steps, env_params, period)
        (state, wins), (*sums, purchases) = jax.lax.scan(one_step, carry, randomness)
        flows, statistics = jax.tree.map(lambda x: x.sum(0), tuple(sums))
        if learns:
            agents = market.representation.learn(state.population.agents, purchases)  # type: ignore[attr-defined]
            state = state.replace(population=state.population.replace(agents=agents))
        births = Births.none()
        if max_births:
            # Random agents are born into unsold states first.
            order = jnp.argsort(state.sold + 0.5 * jax.random.uniform(key_states, state.sold.shape))
            states = jnp.resize(state.obs[order], (max_births, *state.obs.shape[1:]))
            changes = turnover(
                market.representation, key_turnover, state.population, states, state.time, terms, max_births
            )
            flows, births = flows + changes.flows, changes.births
            statistics = statistics.replace(nonfinite_deaths=statistics.nonfinite_deaths + changes.nonfinite_deaths)
            # States owned by dead agents revert to the auctioneer.
            died = jnp.concatenate([changes.died, jnp.zeros(len(market.consumers) + 1, bool)])
            owner, original_owner = (
                jnp.where(died[account], AUCTIONEER, account) for account in (state.owner, state.original_owner)
            )
            stakes = None if state.stakes is None else jnp.where(changes.died, 0, state.stakes)
            state = state.replace(
                population=changes.population, owner=owner, stakes=stakes, original_owner=original_owner
            )
        return state, summarize(state.population, money(state), flows, statistics, births, wins)

    return jax.lax.scan(one_round, state, jax.random.split(key, rounds))


def summarize(
    population: Population,
    money: Float[Array, ""],
    flows: CashFlows,
    statistics: MarketStatistics,
    births: Births,
    wins: Int32[Array, " N"],
) -> RoundSummary:
    """Summarize a round by the population at its end, sums over its steps, and the auctions each agent won."""
    p = population
    return RoundSummary(
        flows=flows,
        statistics=statistics,
        money=money,
        num_agents=p.alive.sum(dtype=jnp.int32),
        births=births,
        gini=gini(p.wealth, p.alive),
        wealth=jnp.nanquantile(jnp.where(p.alive, p.wealth, jnp.nan), jnp.linspace(0, 1, 5)),
        top_share=wins.max() / (statistics.auctions - statistics.unsold),
    )

"""Deep markets: agents with wealth own the world in turn (Sudhir and Tran-Thanh 2025, Definition 2.1, Algorithm 1).

The market itself learns: its parameters are the wealths, and who can pay most for a state acts there. A step of B
parallel instances that share one table of wealth:

every agent bids for every instance's state, at most a B-th of its wealth → the auctions clear → winners pay, owners
are paid → winners act, rewards are credited → rent, levy and tax.

With one instance this is the printed algorithm. Because no agent bids more than a B-th of its wealth in any instance,
no agent can spend more than it has: while rewards are not negative, wealth does not fall below zero except by rounding
(about 1e-7 of the payments). There is no γ: rent takes its slot. Every ``period`` steps agents die and are born
(`population.turnover`). An agent whose wealth is no longer finite, because a reward was NaN or an account overflowed,
dies at once (`DeepMarketFlows.nonfinite`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxmarket import auctions
from jaxmarket.auctions import BUCKET_BRIGADE, Mechanism
from jaxmarket.checking import check, check_conserved, check_finite, checking
from jaxmarket.deep_market.demographics import Births, Population, Terms, pay, random_population, turnover
from jaxmarket.deep_market.representations import NO_BID, Representation
from jaxmarket.environments.adapter import Adapter, adapt, longer
from jaxmarket.metrics import gini
from jaxmarket.switches import entry_point, standard_promotion
from jaxmarket.types import AUCTIONEER, Array, Outcome, PyTree, real, tree_select
from jaxmarket.validation import as_float_array, check_int

__all__ = [
    "DeepMarket",
    "DeepMarketFlows",
    "DeepMarketState",
    "RoundSummary",
    "forward",
    "init",
    "money",
    "run",
    "step",
]


@dataclasses.dataclass(frozen=True)
class DeepMarket:
    """The static description of a deep market; frozen, compares by value, never compiled twice.

    Attributes:
        env: an environment, or its `Adapter`.
        representation: how agents are written down.
        capacity: N, slots for agents.
        instances: B, parallel copies of the world, one table of wealth.
        mechanism: what the winner pays and the owner receives; first price by default, as printed.
        consumers: for each consumer what a state is worth to it, ``obs -> f []``. Consumers do not act. They bid on
            every state an agent has just reached, where it is worth something, up to their budget; the buyer
            pays the agent and owns it from then on. Where there are consumers, the environment's reward is not paid.
        property_rights: whether a sale's money goes to the owner; else it goes to a random living agent (ablation).
    """

    env: Adapter
    representation: Representation
    capacity: int
    instances: int = 1
    mechanism: Mechanism = BUCKET_BRIGADE
    consumers: tuple[Callable[[Array], Array], ...] = ()
    property_rights: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "env", adapt(self.env))
        for field in ("capacity", "instances"):
            object.__setattr__(self, field, check_int(field, getattr(self, field)))
        if not isinstance(self.mechanism, Mechanism):
            raise ValueError(f"mechanism: expected a Mechanism, got {self.mechanism!r}; see jaxmarket.MECHANISMS")


class DeepMarketState(struct.PyTreeNode):
    """A running deep market."""

    population: Population
    env_state: PyTree  # leaves [B, ...]
    obs: Array  # f [B, ...] encoded observations of the states for sale
    owner: Array  # i32 [B] account that sells: an agent's slot, N + c for consumer c, or AUCTIONEER
    original_owner: Array  # i32 [] who owns the first state of every episode
    consumers: Array  # f [C] their money
    sold: Array  # bool [B] whether anybody bid in the last auction
    episode_return: Array  # f [B] of the running episode
    episode_length: Array  # i32 [B]
    time: Array  # i32 [] steps so far


class DeepMarketFlows(struct.PyTreeNode):
    """Movements of money and counts, summed over instances (and over the steps of a round). f [] each.

    Money changes by ``reward + subsidy + income + allowance - house - rent - levy - tax - estate`` and by nothing else.
    The house's takings are a flow and no account: in float32 an account that only grows would soon stop growing.

    An agent whose account is no longer finite after a reward dies at once. ``estate`` contains its previous wealth, and
    no sum contains its rewards of that step, so that the flows stay finite and consistent.
    """

    reward: Array  # from the environment, to agents that survive it
    subsidy: Array  # minted by the auctioneer: payout - price
    income: Array  # to consumers
    allowance: Array  # to newcomers without parents
    house: Array  # to the house: sales of what it owned
    rent: Array  # likewise, like the next two
    levy: Array
    tax: Array
    estate: Array  # what the dead took
    nonfinite: Array  # agents that died because their wealth was NaN or infinite
    sales: Array  # paid by winners: moves money, does not change it
    consumption: Array  # paid by consumers, likewise
    auctions: Array  # held
    unsold: Array  # of these, nobody bid
    episodes: Array  # that ended
    terminated: Array  # of these, not cut
    returns: Array  # sum of their undiscounted returns
    lengths: Array  # sum of their lengths

    @property
    def net(self) -> Array:
        """What money changed by, according to the named flows."""
        gains = self.reward + self.subsidy + self.income + self.allowance
        return gains - self.house - self.rent - self.levy - self.tax - self.estate

    @property
    def moved(self) -> Array:
        """Money that changed hands, entered or left."""
        gains = (self.reward, self.subsidy, self.income, self.allowance)
        losses = (self.rent, self.levy, self.tax, self.estate)  # what the house takes is part of the sales
        return sum((abs(x) for x in (*gains, *losses, self.sales)), abs(self.consumption))


def money(state: DeepMarketState) -> Array:
    """All money there is: agents' and consumers'. f []."""
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
    """Open a market: first states, and agents that own nothing but their money.

    Args:
        market: the static description.
        key: used up.
        env_params: the environment's parameters.
        population: who lives; random agents by default.
        num_agents: how many of these; as many as there are slots by default.
        wealth: f [], of each of them.
        original_owner: who owns first states, the house by default.
        consumers: f [C] or f [], what consumers own.

    Raises:
        ValueError: the population has another number of slots, more agents are wanted than slots, or what is given
            is no amount of money or no account.
    """
    key_reset, key_agents = jax.random.split(key)
    obs, env_state = jax.vmap(market.env.reset, (0, None))(jax.random.split(key_reset, market.instances), env_params)
    if population is None:
        num_agents = check_int("num_agents", market.capacity if num_agents is None else num_agents, 0, market.capacity)
        wealth = as_float_array("wealth", wealth, ())
        population = random_population(market.representation, key_agents, obs, market.capacity, num_agents, wealth)
    elif population.capacity != market.capacity:
        raise ValueError(f"population: expected {market.capacity} slots, as in the market, got {population.capacity}")
    if not isinstance(original_owner, jax.Array):
        original_owner = check_int(
            "original_owner", original_owner, AUCTIONEER, market.capacity + len(market.consumers) - 1
        )
    budgets = as_float_array("consumers", consumers)
    if budgets.shape not in ((), (len(market.consumers),)):
        raise ValueError(f"consumers: expected money for {len(market.consumers)} of them, got shape {budgets.shape}")
    instances = market.instances
    return DeepMarketState(
        population=population,
        env_state=env_state,
        obs=obs,
        owner=jnp.full(instances, original_owner, jnp.int32),
        original_owner=jnp.asarray(original_owner, jnp.int32),
        consumers=jnp.broadcast_to(budgets, (len(market.consumers),)),
        sold=jnp.ones(instances, bool),
        episode_return=jnp.zeros(instances, real()),
        episode_length=jnp.zeros(instances, jnp.int32),
        time=jnp.zeros((), jnp.int32),
    )


def _bids(market: DeepMarket, population: Population, obs: Array, terms: Terms, frozen: bool) -> tuple[Array, Array]:
    """Bids f [B, N], capped by budgets, `NO_BID` of the dead; and the offers f [N], newcomers' fixed unless frozen."""
    p = population
    budget = jnp.maximum(p.wealth, 0) / market.instances
    each_agent = jax.vmap(market.representation.bid, (0, None, 0))
    bids = jax.vmap(each_agent, (None, 0, None))(p.agents, obs, budget)
    check_finite("bids", bids, "an agent bids a number, or is silent", p.alive & (bids != NO_BID))
    bids = jnp.where(p.alive & jnp.isfinite(bids), bids, NO_BID)
    offer = p.offer
    if terms.markup is not None:
        willing, settled = bids > NO_BID, ~jnp.isnan(offer)
        if not frozen:
            best = jnp.max(jnp.where(willing & settled, jnp.minimum(offer, budget), 0), axis=1)  # [B]
            entry = best[jnp.argmax(willing, axis=0)] + terms.markup  # of the first instance that it bids in
            offer = jnp.where(willing.any(0) & ~settled, entry, offer)
        bids = jnp.where(willing & ~jnp.isnan(offer), offer, NO_BID)
    return jnp.minimum(bids, budget), offer


def _clear(mechanism: Mechanism, draws: Array, bids: Array, eligible: Array, exploration: Any) -> tuple[Outcome, Array]:
    """One instance's auction, bids f [N]: the outcome, and f [2] what the winner pays and what the owner receives.

    Draws are f [3], uniform: for ties, whether to explore, and who wins then.
    """
    winner = auctions.choose(bids, draws[0], eligible)
    if exploration is not None:
        winner = jnp.where(draws[1] < exploration, auctions.pick(draws[2], eligible), winner)
    outcome = auctions.award(bids, winner, eligible)
    return outcome, jnp.where(winner >= 0, jnp.stack([mechanism.price(outcome), mechanism.payout(outcome)]), 0)


def _sell(
    market: DeepMarket,
    draws: Array,
    population: Population,
    obs: Array,
    env_state: PyTree,
    env_params: PyTree,
    terms: Terms,
    *,
    frozen: bool = False,
) -> tuple[Outcome, Array, Array, Array]:
    """Auctions of any number of states: outcomes [B], prices f [B, 2], actions i32 [B], and the offers f [N]."""
    p = population
    bids, offer = _bids(market, p, obs, terms, frozen)
    eligible = bids > NO_BID
    if hasattr(market.env.env, "legal_actions"):
        legal = jax.vmap(market.env.legal, (0, None))(env_state, env_params)  # [B, P]
        would = jax.vmap(jax.vmap(market.representation.act, (0, None)), (None, 0))(p.agents, obs)  # [B, N]
        eligible = eligible & jnp.take_along_axis(legal, would, axis=1)
    clear = functools.partial(_clear, market.mechanism, exploration=terms.exploration)
    outcome, prices = jax.vmap(clear)(draws, bids, eligible)
    winners = jax.tree.map(lambda leaf: leaf[jnp.maximum(outcome.winner, 0)], p.agents)
    actions = jax.vmap(market.representation.act)(winners, obs)
    # Where nobody bids, the house does anything at all.
    anything = jnp.floor(draws[:, 3] * market.env.num_actions).astype(actions.dtype)
    return outcome, prices, jnp.where(outcome.winner >= 0, actions, anything), offer


@standard_promotion
def forward(
    market: DeepMarket,
    key: Array,
    population: Population,
    obs: Array,
    env_state: PyTree,
    env_params: PyTree,
    terms: Terms | None = None,
) -> tuple[Outcome, Array, Array]:
    """Algorithm 1's forward pass: who would win each state, and what they would do.

    The market is frozen: no money moves, nobody explores, and newcomers whose bid is to be fixed at entry
    (`Terms.markup`) stay out.

    Args:
        market, population, terms: as in `step`.
        key: breaks ties, and acts where nobody bids.
        obs, env_state: leaves [B', ...], any number of states.
        env_params: the environment's parameters.

    Returns:
        Outcomes [B'], what the states would be sold for f [B'], and actions i32 [B'].
    """
    terms = (terms or Terms()).replace(exploration=None)
    draws = jax.random.uniform(key, (obs.shape[0], _DRAWS), real())
    outcome, prices, actions, _ = _sell(market, draws, population, obs, env_state, env_params, terms, frozen=True)
    return outcome, prices[:, 1], actions


class _Chance(struct.PyTreeNode):
    """All that is random in a step, drawn for many steps at once, which is far cheaper."""

    draws: Array  # f [B, 6] uniform: see `_clear`, `_sell`; the last two for consumers and strangers
    words: Array  # u32 [B, ...] of the environment's keys
    fresh: tuple[Array, PyTree]  # first states, for instances whose episode ends: leaves [B, ...]


_DRAWS = 6


def _draw(market: DeepMarket, key: Array, env_params: PyTree, steps: int) -> _Chance:
    """The randomness of ``steps`` steps: leaves [steps, ...]."""
    key_draws, key_env, key_reset = jax.random.split(key, 3)
    shape = (steps, market.instances)
    reset = jax.vmap(jax.vmap(market.env.reset, (0, None)), (0, None))
    return _Chance(
        draws=jax.random.uniform(key_draws, (*shape, _DRAWS), real()),
        words=jax.random.key_data(jax.random.split(key_env, shape)),
        fresh=reset(jax.random.split(key_reset, shape), env_params),
    )


@entry_point
def step(
    market: DeepMarket, key: Array, state: DeepMarketState, env_params: PyTree, terms: Terms | None = None
) -> tuple[DeepMarketState, DeepMarketFlows, Array]:
    """One auction, its payments and one environment step in every instance.

    Where nobody bids, the house acts at random, and what that earns is paid to nobody. An episode that ends is
    followed by a new one, whose first state belongs to the original owner; what the last owner paid is lost to it.

    Args:
        market: the static description.
        key: a typed PRNG key, used up.
        state: as it is.
        env_params: the environment's parameters.
        terms: traced terms; none of them by default.

    Returns:
        The state after the step, the books of it, and how many auctions each agent won: i32 [N].
    """
    chance = jax.tree.map(lambda leaf: leaf[0], _draw(market, key, env_params, 1))
    return _step(market, jax.random.key_impl(key), env_params, terms or Terms(), state, chance)


def _step(
    market: DeepMarket, implementation: Any, env_params: PyTree, terms: Terms, state: DeepMarketState, chance: _Chance
) -> tuple[DeepMarketState, DeepMarketFlows, Array]:
    """`step`, with its randomness drawn beforehand."""
    e, p, instances, slots = state, state.population, market.instances, market.capacity
    outcome, prices, action, offer = _sell(market, chance.draws, p, e.obs, e.env_state, env_params, terms)
    winner, sold = outcome.winner, outcome.winner >= 0
    keys = jax.random.wrap_key_data(chance.words, impl=implementation)
    after = jax.vmap(market.env.step, (0, 0, 0, None))(keys, e.env_state, action, env_params)
    done = after.terminated | after.truncated
    check_finite("prices", prices, f"the mechanism {market.mechanism.name} must return numbers", step=e.time)
    check_finite("reward", after.reward, f"a step of {market.env.name} must return a number", step=e.time)
    check_finite("observation", after.obs, f"a step of {market.env.name} must return numbers", step=e.time)
    last = slots + len(market.consumers) - 1
    check(
        lambda: jnp.all((e.owner >= AUCTIONEER) & (e.owner <= last)),
        f"owner: there is no account {{owner}}, only -1 (the house) to {last}",
        owner=lambda: e.owner[jnp.argmax((e.owner < AUCTIONEER) | (e.owner > last))],
    )

    # Exploration can make someone win who cannot pay a rival's price: it pays what it has, the seller gets less.
    budget = jnp.maximum(p.wealth, 0)[jnp.maximum(winner, 0)] / instances
    price = jnp.minimum(prices[:, 0], budget)
    subsidy = prices[:, 1] - prices[:, 0]
    payout = price + subsidy
    seller = e.owner
    if not market.property_rights:
        stranger = jax.vmap(auctions.pick, (0, None))(chance.draws[:, 5], p.alive)
        seller = jnp.where(seller == AUCTIONEER, AUCTIONEER, stranger)
    # Agents, then consumers, then the house, whose number -1 is the last one.
    accounts = jnp.concatenate([p.wealth, e.consumers, jnp.zeros(1, real())])
    accounts, rounding = _pay(market, accounts, winner, price)
    accounts = accounts.at[seller].add(payout)

    owner, reward = winner, jnp.where(sold & (not market.consumers), after.reward, 0)
    consumption = income = jnp.zeros((), real())
    if market.consumers:
        # They bid for the states just reached, terminal ones included.
        values = jnp.stack([jax.vmap(value)(after.obs) for value in market.consumers], axis=1)  # [B, C]
        values = jnp.minimum(values, jnp.maximum(accounts[slots:-1], 0) / instances)
        clear = functools.partial(_clear, market.mechanism, exploration=None)
        bought, paid = jax.vmap(clear)(chance.draws[:, 4:], values, values > 0)
        owner = jnp.where(bought.winner >= 0, slots + bought.winner, winner)
        accounts, more = _pay(market, accounts, owner, paid[:, 0])
        accounts, rounding = accounts.at[winner].add(paid[:, 1]), rounding + more
        consumption, subsidy = paid[:, 0].sum(), subsidy + paid[:, 1] - paid[:, 0]
        if terms.consumer_income is not None:
            income = jnp.asarray(terms.consumer_income * len(market.consumers), accounts.dtype)
            accounts = accounts.at[slots:-1].add(terms.consumer_income)
    accounts, gone, estate = _credit(p, accounts, winner, reward)
    lost = sold & gone[winner]
    owner = jnp.where(lost & (owner == winner), AUCTIONEER, owner)
    original_owner = jnp.where(gone[e.original_owner] & (e.original_owner < slots), AUCTIONEER, e.original_owner)

    wins = jnp.zeros(slots, jnp.int32).at[jnp.where(sold, winner, slots)].add(1, mode="drop")
    wealth, rent, levy, tax = _charges(market, p, accounts[:slots], wins, terms)
    returns, lengths = e.episode_return + after.undiscounted, longer(e.episode_length, after.duration)
    books = DeepMarketFlows(
        reward=jnp.where(lost, 0, reward).sum(),
        subsidy=subsidy.sum(),
        income=income,
        allowance=jnp.zeros((), real()),
        house=accounts[-1] - rounding,
        rent=rent.sum(),
        levy=levy.sum(),
        tax=tax.sum(),
        estate=estate,
        nonfinite=gone.sum(dtype=real()),
        sales=price.sum(),
        consumption=consumption,
        auctions=jnp.asarray(instances, real()),
        unsold=(~sold).sum(dtype=real()),
        episodes=done.sum(dtype=real()),
        terminated=after.terminated.sum(dtype=real()),
        returns=jnp.where(done, returns, 0).sum(),
        lengths=jnp.where(done, lengths, 0).sum(dtype=real()),
    )

    state = e.replace(
        population=p.replace(
            alive=p.alive & ~gone, wealth=wealth, offer=offer, won=jnp.where(wins > 0, e.time + 1, p.won)
        ),
        env_state=tree_select(done, chance.fresh[1], after.env_state),
        obs=tree_select(done, chance.fresh[0], after.obs),
        owner=jnp.where(done, original_owner, owner),
        original_owner=original_owner,
        consumers=accounts[slots:-1],
        sold=sold,
        episode_return=jnp.where(done, 0, returns),
        episode_length=jnp.where(done, 0, lengths),
        time=e.time + 1,
    )
    if checking():
        opening, closing = ((p.wealth, e.consumers), (wealth, state.consumers))
        check_conserved(opening, closing, (books.net,), (books.moved,), step=e.time)
    return state, books, wins


def _pay(market: DeepMarket, accounts: Array, payer: Array, amounts: Array) -> tuple[Array, Array]:
    """Make one payment per instance: the accounts, and the rounding error below 0, which the house bears."""
    if market.instances == 1:  # a single payment of at most the balance never rounds below 0
        return accounts.at[payer].add(-amounts), jnp.zeros((), accounts.dtype)
    return pay(accounts, payer, amounts)


def _credit(population: Population, accounts: Array, winner: Array, reward: Array) -> tuple[Array, Array, Array]:
    """Pay rewards f [B]; agents whose accounts are not finite then die.

    Returns:
        The accounts, 0 for dead agents; whether each agent died, bool [N]; and the finite wealth of dead agents before
        the reward, f [].
    """
    slots = population.capacity
    before, after = accounts[:slots], accounts.at[winner].add(reward)
    died = population.alive & ~jnp.isfinite(after[:slots])
    estate = jnp.where(died & jnp.isfinite(before), before, 0).sum()
    return after.at[:slots].set(jnp.where(died, 0, after[:slots])), died, estate


def _charges(
    market: DeepMarket, population: Population, wealth: Array, wins: Array, terms: Terms
) -> tuple[Array, Array, Array, Array]:
    """What is left of every agent's wealth, its rent, its levy and its tax: f [N] each. Nobody is charged into debt."""
    rent = levy = tax = jnp.zeros_like(wealth)
    left = wealth

    # Recorded is the actual change of the account: a charge that is tiny in comparison is rounded when it is taken.
    def take(left: Array, charge: Array) -> tuple[Array, Array]:
        after = left - charge
        return after, left - after

    if terms.rent is not None:
        left, rent = take(left, terms.rent * wins / market.instances * jnp.maximum(left, 0))
    if terms.wealth_tax is not None:
        left, levy = take(left, terms.wealth_tax * jnp.maximum(left, 0))
    if terms.compute_tax is not None:
        owed = terms.compute_tax * jax.vmap(market.representation.cost)(population.agents)
        left, tax = take(left, jnp.minimum(owed, jnp.maximum(left, 0)))
    return left, rent, levy, tax


class RoundSummary(struct.PyTreeNode):
    """Summary of one round: a number of steps, then deaths and births."""

    books: DeepMarketFlows  # sums over the round
    money: Array  # f [] at its end
    num_agents: Array  # i32 [] agents, at its end
    births: Births
    gini: Array  # f [] of the living agents' wealth
    wealth: Array  # f [5] of the living: least, quartiles, most
    share: Array  # f [] share of the round's auctions that the most successful agent won


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
    """Rounds of ``period`` steps, each followed by deaths and births. Jit it, vmap it over seeds and terms.

    Args:
        market, state, env_params, terms: as in `step`.
        key: used up.
        rounds, period: static.
        max_births: K, most births in a turnover; without any, nobody dies either. Static.

    Returns:
        The state, and the rounds with a leading axis [rounds].

    Raises:
        ValueError: no rounds or steps, or more max_births than slots.
    """
    terms = terms or Terms()
    rounds, period = check_int("rounds", rounds), check_int("period", period)
    max_births = check_int("max_births", max_births, 0, market.capacity)
    implementation = jax.random.key_impl(key)

    def one(state: DeepMarketState, key: Array) -> tuple[DeepMarketState, RoundSummary]:
        key_steps, key_turnover, key_states = jax.random.split(key, 3)

        def body(
            carry: tuple[DeepMarketState, Array], chance: _Chance
        ) -> tuple[tuple[DeepMarketState, Array], DeepMarketFlows]:
            state, wins = carry
            state, books, won = _step(market, implementation, env_params, terms, state, chance)
            return (state, wins + won), books

        carry = state, jnp.zeros(market.capacity, jnp.int32)
        (state, wins), books = jax.lax.scan(body, carry, _draw(market, key_steps, env_params, period))
        books = jax.tree.map(lambda x: x.sum(0), books)
        if max_births:
            # Newcomers are born first of all into states that nobody wanted.
            order = jnp.argsort(state.sold + 0.5 * jax.random.uniform(key_states, state.sold.shape))
            states = jnp.resize(state.obs[order], (max_births, *state.obs.shape[1:]))
            population, flows, births, died = turnover(
                market.representation, key_turnover, state.population, states, state.time, terms, max_births
            )
            books = books.replace(
                allowance=flows.allowance,
                estate=books.estate + flows.estate,
                nonfinite=books.nonfinite + flows.nonfinite,
            )
            # Nobody is paid in slot of the dead: what they owned falls to the house.
            heirless = jnp.concatenate([died, jnp.zeros(len(market.consumers) + 1, bool)])
            owner, original_owner = (
                jnp.where(heirless[account], AUCTIONEER, account) for account in (state.owner, state.original_owner)
            )
            state = state.replace(population=population, owner=owner, original_owner=original_owner)
        else:
            nobody = jnp.zeros(0, jnp.int32)
            births = Births(nobody, nobody, nobody, jnp.zeros((), jnp.int32))
        p = state.population
        alive_wealth = jnp.where(p.alive, p.wealth, jnp.nan)
        return state, RoundSummary(
            books=books,
            money=money(state),
            num_agents=p.alive.sum(dtype=jnp.int32),
            births=births,
            gini=gini(p.wealth, p.alive),
            wealth=jnp.nanquantile(alive_wealth, jnp.linspace(0, 1, 5)),
            share=wins.max() / (books.auctions - books.unsold),
        )

    return jax.lax.scan(one, state, jax.random.split(key, rounds))

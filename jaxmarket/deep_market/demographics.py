"""Populations: agents that are born, live on what they own, and die, in arrays of fixed size.

A population has a place for each of N agents; whoever is not ``alive`` neither bids nor pays nor is paid. Births fill
empty places, deaths empty them, and no shape ever changes, so nothing is compiled again as agents come and go.

Money enters and leaves here by name (`Flows`): allowances of newcomers come from nowhere, the wealth of the dead, rent
and tax go nowhere. What a parent gives its child stays in the population.

An agent whose wealth is not finite (a reward was NaN, or an account overflowed) dies like a bankrupt agent. `Flows`
counts it, and no sum contains its wealth, so that totals stay finite.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.core import Tracer

from jaxmarket.deep_market.representations import Language
from jaxmarket.switches import standard_promotion
from jaxmarket.types import NOBODY, Array, PyTree, real
from jaxmarket.validation import mask, numbers

__all__ = [
    "MUTANT",
    "NOVICE",
    "REPAIRED",
    "Births",
    "Flows",
    "Lineage",
    "Population",
    "Terms",
    "found",
    "newcomers",
    "pay",
    "turnover",
]

NOVICE, MUTANT, REPAIRED = 0, 1, 2
"""How an agent came to be: at random, as a rich agent's child, as the mutated remains of a bankrupt one."""


class Terms(struct.PyTreeNode):
    """The traced terms on which agents live; sweeping over them needs no new compilation.

    A term left at ``None`` is not part of the compiled program at all.
    """

    rent: Array | float | None = None  # f [] share of its wealth the winner of an auction pays (Sudhir et al. 2025)
    levy: Array | float | None = None  # f [] share of its wealth every agent pays per step (Holland's life tax)
    tax: Array | float | None = None  # f [] money per step and unit of computation (Baum and Durdanovic 2000)
    exploration: Array | float | None = None  # f [] probability that a random bidder wins instead, and pays its bid
    markup: Array | float | None = None  # f [] a newcomer's bid is fixed for life: the best rival's and this (Baum)
    income: Array | float | None = None  # f [] money that every consumer receives per step
    allowance: Array | float = 1.0  # f [] money of a newcomer without parents, from nowhere
    dowry: Array | float = 0.0  # f [] money of a child beside its parent's gift, from nowhere
    birth_rate: Array | float = 1.0  # f [] probability that each cradle is used in a turnover
    mutants: Array | float = 0.5  # f [] probability that a newborn is a child of a rich agent
    rich: Array | float = 0.0  # f [] who owns more than this may have children, in proportion to what they own
    inheritance: Array | float = 0.5  # f [] share of its wealth that a parent gives away, to all its new children
    repair: Array | float = 0.0  # f [] probability that a bankrupt agent is mutated and endowed, where a cradle is free
    bankruptcy: Array | float = 0.0  # f [] who owns this or less dies
    patience: Array | float | None = None  # f [] steps after which an agent that sold nothing dies
    displace: Array | bool | None = (
        None  # bool [] whether newcomers take the places of the poorest in a full population
    )


class Population(struct.PyTreeNode):
    """N places for agents."""

    agents: PyTree  # leaves [N, ...] of the market's language
    alive: Array  # bool [N]
    wealth: Array  # f [N] 0 where nobody lives
    offer: Array  # f [N] the bid that was fixed at entry (`Terms.markup`), NaN before
    ident: Array  # i32 [N] unique for ever, NOBODY where nobody has lived yet
    parent: Array  # i32 [N] ident of the agent it is a child of, NOBODY for newcomers
    born: Array  # i32 [N] step
    won: Array  # i32 [N] step of its last auction won, or of its birth
    count: Array  # i32 [] agents ever born

    @property
    def capacity(self) -> int:
        """N."""
        return self.alive.shape[0]


class Flows(struct.PyTreeNode):
    """Sums of money that entered or left by birth and death. f [] each."""

    allowance: Array  # created for newcomers, and by the rounding of `pay`
    estate: Array  # finite wealth of dead agents; negative for debts
    nonfinite: Array  # number of agents, not money, that died because their wealth was NaN or infinite

    @property
    def net(self) -> Array:
        """The change of the population's money, if `nonfinite` is 0."""
        return self.allowance - self.estate


class Births(struct.PyTreeNode):
    """The newborn of one turnover, a row per cradle [K]."""

    ident: Array  # i32 [K] NOBODY where the cradle stayed empty
    parent: Array  # i32 [K]
    kind: Array  # i32 [K] NOVICE, MUTANT or REPAIRED
    deaths: Array  # i32 [] agents that died before them, those replaced included


@standard_promotion
def found(agents: PyTree, wealth: Array, alive: Array | None = None) -> Population:
    """A population of given agents, in which nobody has children yet.

    Args:
        agents: leaves [N, ...].
        wealth: f [N].
        alive: bool [N], all by default; the other places are empty.

    Raises:
        ValueError: lengths differ, or somebody starts with debts.
    """
    wealth = numbers("wealth", wealth)
    if wealth.ndim != 1:
        raise ValueError(f"wealth: expected f [N], a number for each agent, got shape {wealth.shape}")
    capacity = wealth.shape[0]
    alive = jnp.ones(capacity, bool) if alive is None else mask("alive", alive, (capacity,))
    lengths = {
        jnp.shape(leaf)[:1] if isinstance(leaf, jax.Array | np.ndarray) else ()
        for leaf in (*jax.tree.leaves(agents), alive)
    }
    if lengths != {(capacity,)}:
        raise ValueError(
            f"agents: expected {capacity} of them, one for each wealth, got leading axes {sorted(lengths)}"
        )
    if not isinstance(wealth, Tracer) and not bool((wealth >= 0).all()):
        raise ValueError(f"wealth: agents cannot start with debts, the least is {float(wealth.min())}")
    ident = jnp.where(alive, jnp.cumsum(alive, dtype=jnp.int32) - 1, NOBODY)
    step = jnp.zeros(capacity, jnp.int32)
    return Population(
        agents=agents,
        alive=alive,
        wealth=jnp.where(alive, wealth, 0),
        offer=jnp.full(capacity, jnp.nan, real()),
        ident=ident,
        parent=jnp.full(capacity, NOBODY, jnp.int32),
        born=step,
        won=step,
        count=alive.sum(dtype=jnp.int32),
    )


def newcomers(
    language: Language, key: Array, observations: Array, capacity: int, living: int, wealth: Any
) -> Population:
    """A population of ``living`` random agents with the same ``wealth``, born into the given states [B, ...]."""
    keys = jax.random.split(key, capacity)
    states = jnp.resize(observations, (capacity, *observations.shape[1:]))
    alive = jnp.arange(capacity) < living
    return found(jax.vmap(language.init)(keys, states), jnp.full(capacity, wealth, real()), alive)


def turnover(
    language: Language,
    key: Array,
    population: Population,
    observations: Array,
    step: Array,
    terms: Terms,
    cradles: int,
) -> tuple[Population, Flows, Births, Array]:
    """Deaths, and then births.

    Agents die if they are bankrupt, if their wealth is not finite, or if they are idle too long. Then each of K cradles
    takes an empty place, or with ``terms.displace`` the poorest agent's; with some probability it stays empty. A
    newborn is, in this order: a *repaired* agent that just died there; the *mutant* child of an agent with more wealth
    than ``terms.rich``, drawn in proportion to wealth and endowed by it; or a *novice*, without a parent's endowment.

    Args:
        language: of the agents.
        key: used up.
        population: as it is.
        observations: f [K, ...], states for newborns to be born into.
        step: i32 [], the time.
        terms: rates and sums.
        cradles: K, static, at most N.

    Returns:
        The population, what money came and went, the births, and who died: bool [N] (places, some of them taken
        again).
    """
    p, capacity = population, population.capacity
    key_use, key_kind, key_repair, key_parent, key_mate, key_mutate, key_init = jax.random.split(key, 7)
    finite = jnp.isfinite(p.wealth)
    dying = p.alive & (~finite | (p.wealth <= terms.bankruptcy))
    if terms.patience is not None:
        dying = dying | (p.alive & (step - p.won > terms.patience))
    alive = p.alive & ~dying

    # The dead first, then the poorest.
    places = jnp.argsort(jnp.where(alive, p.wealth, -jnp.inf))[:cradles]
    used = jax.random.uniform(key_use, (cradles,)) < terms.birth_rate
    used = used & (~alive[places] if terms.displace is None else ~alive[places] | terms.displace)
    replaced = jnp.zeros(capacity, bool).at[places].set(used & alive[places])
    alive, died = alive & ~replaced, dying | replaced
    estate = jnp.where(died & finite, p.wealth, 0).sum()
    wealth = jnp.where(alive, p.wealth, 0)

    repaired = used & dying[places] & (jax.random.uniform(key_repair, (cradles,)) < terms.repair)
    weight = jnp.where(wealth > terms.rich, jnp.maximum(wealth, 0), 0)
    log_weight = jnp.log(weight)  # -inf: never drawn, unless all are
    parents = jax.random.categorical(key_parent, log_weight, shape=(cradles,))
    mates = jax.random.categorical(key_mate, log_weight, shape=(cradles,))
    some = weight.sum() > 0
    mutant = used & ~repaired & some & (jax.random.uniform(key_kind, (cradles,)) < terms.mutants)
    novice = used & ~repaired & ~mutant
    parents = jnp.where(repaired, places, parents)

    children = jnp.zeros(capacity, wealth.dtype).at[parents].add(mutant.astype(wealth.dtype))
    gift = jnp.where(mutant, terms.inheritance * wealth[parents] / jnp.maximum(children[parents], 1), 0)
    endowment = jnp.where(used, jnp.where(mutant, terms.dowry, terms.allowance), 0).astype(wealth.dtype)
    wealth, rounding = pay(wealth, parents, gift)

    def gather(who: Array) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[who], p.agents)

    bred = jax.vmap(language.mutate)(jax.random.split(key_mutate, cradles), gather(parents), gather(mates))
    random = jax.vmap(language.init)(jax.random.split(key_init, cradles), observations)
    # One write per place: unused cradles write beyond the end, which is dropped.
    where = jnp.where(used, places, capacity)

    def put(leaf: Array, new: Array) -> Array:
        return leaf.at[where].set(new.astype(leaf.dtype), mode="drop")

    def choose(old: Array, novel: Array) -> Array:
        return jnp.where(novice.reshape(-1, *[1] * (old.ndim - 1)), novel, old)

    ident = p.count + jnp.cumsum(used, dtype=jnp.int32) - 1
    parent = jnp.where(novice, NOBODY, p.ident[parents])
    now = jnp.full(cradles, step, jnp.int32)
    population = Population(
        agents=jax.tree.map(put, p.agents, jax.tree.map(choose, bred, random)),
        alive=put(alive, jnp.ones(cradles, bool)),
        wealth=put(wealth, gift + endowment),
        offer=put(p.offer, jnp.full(cradles, jnp.nan, p.offer.dtype)),
        ident=put(p.ident, ident),
        parent=put(p.parent, parent),
        born=put(p.born, now),
        won=put(p.won, now),
        count=p.count + used.sum(dtype=jnp.int32),
    )
    births = Births(
        ident=jnp.where(used, ident, NOBODY),
        parent=jnp.where(used, parent, NOBODY),
        kind=jnp.where(repaired, REPAIRED, jnp.where(mutant, MUTANT, NOVICE)).astype(jnp.int32),  # also under x64
        deaths=died.sum(dtype=jnp.int32),
    )
    flows = Flows(
        allowance=endowment.sum() + rounding,
        estate=estate,
        nonfinite=(p.alive & ~finite).sum(dtype=estate.dtype),
    )
    return population, flows, births, died


def pay(accounts: Array, payer: Array, amounts: Array) -> tuple[Array, Array]:
    """Deduct payments from accounts, without rounding below 0.

    An account with several payments, of at most its balance in total, can end a few units in the last place below 0.
    Such an account is set to 0, and the difference is returned.

    Args:
        accounts: f [N].
        payer: i32 [K], index of the paying account.
        amounts: f [K], at least 0.

    Returns:
        The accounts f [N], and f [], the amount that this correction adds to their sum.
    """
    after = accounts.at[payer].add(-amounts)
    short = jnp.where((accounts >= 0) & (after < 0), -after, 0)
    return after + short, short.sum()


class Lineage:
    """Who descends from whom, from the births of a whole history. On the host.

    Attributes:
        parent: i32 [agents ever born], ident of each one's parent, NOBODY for novices and founders.
        kind: i32 [agents ever born].
        born: i32 [agents ever born], the turnover, -1 for founders.
    """

    def __init__(self, births: Births, founders: int) -> None:
        ident = np.asarray(births.ident)
        used = ident != NOBODY
        count = founders + int(used.sum())
        self.parent, self.kind = np.full(count, NOBODY, np.int32), np.full(count, NOVICE, np.int32)
        self.born = np.full(count, -1, np.int32)
        self.parent[ident[used]] = np.asarray(births.parent)[used]
        self.kind[ident[used]] = np.asarray(births.kind)[used]
        self.born[ident[used]] = np.broadcast_to(np.arange(len(ident))[:, None], ident.shape)[used]

    def ancestors(self, ident: int) -> list[int]:
        """The agent, its parent, and so on to the first of its line."""
        line = [int(ident)]
        while self.parent[line[-1]] != NOBODY:
            line.append(int(self.parent[line[-1]]))
        return line

    def family(self, ident: int) -> list[int]:
        """Everybody who descends from the first of its line, in order of birth."""
        first = self.ancestors(ident)[-1]
        family = {first}
        for child in range(first + 1, len(self.parent)):  # children are younger than their parents
            if int(self.parent[child]) in family:
                family.add(child)
        return sorted(family)

"""Populations of fixed capacity: births, deaths, and the money they create and remove.

A population has N slots for agents. An agent that is not ``alive`` neither bids, pays nor is paid. Births fill free
slots and deaths free them; shapes never change, so nothing is recompiled.

Births and deaths change the amount of money (`PopulationFlows`): endowments of newborn agents are created, and the
wealth of dead agents is removed. What a parent gives its children stays in the population.

An agent whose wealth is not finite (a reward was NaN, or an account overflowed) dies like a bankrupt agent. It is
counted in `PopulationFlows.nonfinite` and no sum contains its wealth, so that totals stay finite.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.core import Tracer

from jaxmarket.deep_market.representations import Representation
from jaxmarket.switches import standard_promotion
from jaxmarket.types import NOBODY, Array, PyTree, real
from jaxmarket.validation import as_bool_array, as_float_array

__all__ = [
    "OFFSPRING",
    "RANDOM",
    "REPAIRED",
    "Births",
    "Lineage",
    "Population",
    "PopulationFlows",
    "Terms",
    "make_population",
    "pay",
    "random_population",
    "turnover",
]

RANDOM, OFFSPRING, REPAIRED = 0, 1, 2
"""The origin of an agent: drawn at random, the child of a rich agent, or a mutated bankrupt agent."""


class Terms(struct.PyTreeNode):
    """The traced economic settings of a market. A sweep over them compiles once.

    A setting left at ``None`` is not part of the compiled program.
    """

    rent: Array | float | None = (
        None  # f [] share of its wealth that the winner of an auction pays (Sudhir et al. 2025)
    )
    wealth_tax: Array | float | None = None  # f [] share of its wealth that every agent pays per step (Holland 1985)
    compute_tax: Array | float | None = None  # f [] money per step and unit of computation (Baum and Durdanovic 2000)
    exploration: Array | float | None = None  # f [] probability that a random bidder wins instead and pays its bid
    markup: Array | float | None = None  # f [] a new agent bids this more than the best rival, for life (Baum 1999)
    consumer_income: Array | float | None = None  # f [] money that every consumer receives per step
    endowment: Array | float = 1.0  # f [] money created for a newborn without a parent
    child_endowment: Array | float = 0.0  # f [] money created for a child, in addition to its parent's gift
    birth_rate: Array | float = 1.0  # f [] probability that each of the possible births of a turnover happens
    p_offspring: Array | float = 0.5  # f [] probability that a newborn is a child of a rich agent
    min_parent_wealth: Array | float = 0.0  # f [] richer agents may have children, in proportion to their wealth
    inheritance: Array | float = 0.5  # f [] share of its wealth that a parent gives to all its new children together
    p_repair: Array | float = 0.0  # f [] probability that a bankrupt agent is mutated and endowed in place, at a birth
    bankruptcy: Array | float = 0.0  # f [] an agent with at most this much money dies
    max_idle_steps: Array | float | None = None  # f [] an agent that has won no auction for more steps than this dies
    replace_poorest: Array | bool | None = (
        None  # bool [] whether newborns replace the poorest agents when no slot is free
    )


class Population(struct.PyTreeNode):
    """N slots for agents."""

    agents: PyTree  # leaves [N, ...] of the market's representation
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


class PopulationFlows(struct.PyTreeNode):
    """Sums of money that entered or left by birth and death. f [] each."""

    allowance: Array  # created for newcomers, and by the rounding of `pay`
    estate: Array  # finite wealth of dead agents; negative for debts
    nonfinite: Array  # number of agents, not money, that died because their wealth was NaN or infinite

    @property
    def net(self) -> Array:
        """The change of the population's money, if `nonfinite` is 0."""
        return self.allowance - self.estate


class Births(struct.PyTreeNode):
    """The newborn of one turnover, a row per possible birth [K]."""

    ident: Array  # i32 [K] NOBODY where no agent was born
    parent: Array  # i32 [K]
    kind: Array  # i32 [K] RANDOM, OFFSPRING or REPAIRED
    deaths: Array  # i32 [] agents that died before them, those replaced included


@standard_promotion
def make_population(agents: PyTree, wealth: Array, alive: Array | None = None) -> Population:
    """A population of given agents, in which nobody has children yet.

    Args:
        agents: leaves [N, ...].
        wealth: f [N].
        alive: bool [N], all by default; the other slots are empty.

    Raises:
        ValueError: lengths differ, or an agent starts with debts.
    """
    wealth = as_float_array("wealth", wealth)
    if wealth.ndim != 1:
        raise ValueError(f"wealth: expected f [N], a number for each agent, got shape {wealth.shape}")
    capacity = wealth.shape[0]
    alive = jnp.ones(capacity, bool) if alive is None else as_bool_array("alive", alive, (capacity,))
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


def random_population(
    representation: Representation, key: Array, observations: Array, capacity: int, num_agents: int, wealth: Any
) -> Population:
    """A population of ``num_agents`` random agents with the same ``wealth``, born into the given states [B, ...]."""
    keys = jax.random.split(key, capacity)
    states = jnp.resize(observations, (capacity, *observations.shape[1:]))
    alive = jnp.arange(capacity) < num_agents
    return make_population(jax.vmap(representation.init)(keys, states), jnp.full(capacity, wealth, real()), alive)


def turnover(
    representation: Representation,
    key: Array,
    population: Population,
    observations: Array,
    step: Array,
    terms: Terms,
    max_births: int,
) -> tuple[Population, PopulationFlows, Births, Array]:
    """Deaths, followed by births.

    Agents die if they are bankrupt, if their wealth is not finite, or if they have been idle too long. Then up to K
    agents are born, each into a free slot or, with ``terms.replace_poorest``, into that of the poorest agent. A newborn
    is one of the following, in this order:

    - `REPAIRED`: a mutation of the agent that just died in the slot, with ``terms.endowment``;
    - `OFFSPRING`: the child of an agent with more wealth than ``terms.min_parent_wealth``, drawn in proportion to
      wealth, with its parent's gift and ``terms.child_endowment``;
    - `RANDOM`: a random agent with ``terms.endowment``.

    Args:
        representation: of the agents.
        key: consumed.
        population: the population before.
        observations: f [K, ...], states that random agents are born into.
        step: i32 [], the time.
        terms: rates and amounts of money.
        max_births: K, static, at most N.

    Returns:
        The population, the money that was created and removed, the births, and a mask bool [N] of the agents that died
        (their slots may be in use again).
    """
    p, capacity = population, population.capacity
    key_use, key_kind, key_repair, key_parent, key_mate, key_mutate, key_init = jax.random.split(key, 7)
    finite = jnp.isfinite(p.wealth)
    dying = p.alive & (~finite | (p.wealth <= terms.bankruptcy))
    if terms.max_idle_steps is not None:
        dying = dying | (p.alive & (step - p.won > terms.max_idle_steps))
    alive = p.alive & ~dying

    # The dead first, then the poorest.
    slots = jnp.argsort(jnp.where(alive, p.wealth, -jnp.inf))[:max_births]
    used = jax.random.uniform(key_use, (max_births,)) < terms.birth_rate
    used = used & (~alive[slots] if terms.replace_poorest is None else ~alive[slots] | terms.replace_poorest)
    replaced = jnp.zeros(capacity, bool).at[slots].set(used & alive[slots])
    alive, died = alive & ~replaced, dying | replaced
    estate = jnp.where(died & finite, p.wealth, 0).sum()
    wealth = jnp.where(alive, p.wealth, 0)

    repaired = used & dying[slots] & (jax.random.uniform(key_repair, (max_births,)) < terms.p_repair)
    weight = jnp.where(wealth > terms.min_parent_wealth, jnp.maximum(wealth, 0), 0)
    log_weight = jnp.log(weight)  # -inf: never drawn, unless all are
    parents = jax.random.categorical(key_parent, log_weight, shape=(max_births,))
    mates = jax.random.categorical(key_mate, log_weight, shape=(max_births,))
    some = weight.sum() > 0
    mutant = used & ~repaired & some & (jax.random.uniform(key_kind, (max_births,)) < terms.p_offspring)
    newcomer = used & ~repaired & ~mutant
    parents = jnp.where(repaired, slots, parents)

    children = jnp.zeros(capacity, wealth.dtype).at[parents].add(mutant.astype(wealth.dtype))
    gift = jnp.where(mutant, terms.inheritance * wealth[parents] / jnp.maximum(children[parents], 1), 0)
    endowment = jnp.where(used, jnp.where(mutant, terms.child_endowment, terms.endowment), 0).astype(wealth.dtype)
    wealth, rounding = pay(wealth, parents, gift)

    def gather(who: Array) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[who], p.agents)

    bred = jax.vmap(representation.mutate)(jax.random.split(key_mutate, max_births), gather(parents), gather(mates))
    random = jax.vmap(representation.init)(jax.random.split(key_init, max_births), observations)
    # One write per slot: unused max_births write beyond the end, which is dropped.
    where = jnp.where(used, slots, capacity)

    def put(leaf: Array, new: Array) -> Array:
        return leaf.at[where].set(new.astype(leaf.dtype), mode="drop")

    def choose(old: Array, novel: Array) -> Array:
        return jnp.where(newcomer.reshape(-1, *[1] * (old.ndim - 1)), novel, old)

    ident = p.count + jnp.cumsum(used, dtype=jnp.int32) - 1
    parent = jnp.where(newcomer, NOBODY, p.ident[parents])
    now = jnp.full(max_births, step, jnp.int32)
    population = Population(
        agents=jax.tree.map(put, p.agents, jax.tree.map(choose, bred, random)),
        alive=put(alive, jnp.ones(max_births, bool)),
        wealth=put(wealth, gift + endowment),
        offer=put(p.offer, jnp.full(max_births, jnp.nan, p.offer.dtype)),
        ident=put(p.ident, ident),
        parent=put(p.parent, parent),
        born=put(p.born, now),
        won=put(p.won, now),
        count=p.count + used.sum(dtype=jnp.int32),
    )
    births = Births(
        ident=jnp.where(used, ident, NOBODY),
        parent=jnp.where(used, parent, NOBODY),
        kind=jnp.where(repaired, REPAIRED, jnp.where(mutant, OFFSPRING, RANDOM)).astype(jnp.int32),  # also under x64
        deaths=died.sum(dtype=jnp.int32),
    )
    flows = PopulationFlows(
        allowance=endowment.sum() + rounding,
        estate=estate,
        nonfinite=(p.alive & ~finite).sum(dtype=estate.dtype),
    )
    return population, flows, births, died


def pay(accounts: Array, payer: Array, amounts: Array) -> tuple[Array, Array]:
    """Deduct payments from accounts, without rounding below 0.

    An account with several payments, of at most its balance in total, can end a few units in the last slot below 0.
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
        parent: i32 [agents ever born], ident of each one's parent, NOBODY for newcomers and founders.
        kind: i32 [agents ever born].
        born: i32 [agents ever born], the turnover, -1 for founders.
    """

    def __init__(self, births: Births, founders: int) -> None:
        ident = np.asarray(births.ident)
        used = ident != NOBODY
        count = founders + int(used.sum())
        self.parent, self.kind = np.full(count, NOBODY, np.int32), np.full(count, RANDOM, np.int32)
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
        """All descendants of the first ancestor, in order of birth."""
        first = self.ancestors(ident)[-1]
        family = {first}
        for child in range(first + 1, len(self.parent)):  # children are younger than their parents
            if int(self.parent[child]) in family:
                family.add(child)
        return sorted(family)

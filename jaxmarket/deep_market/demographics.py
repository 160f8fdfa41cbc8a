"""Populations of fixed capacity: births, deaths, and the money they create and remove.

A population has N slots for agents. An agent that is not ``alive`` neither bids, pays nor is paid. Births fill free
slots and deaths free them; shapes never change, so nothing is recompiled.

Births and deaths change the amount of money (`Turnover.flows`): endowments of newborn agents are created, and the
wealth of dead agents is removed. What a parent gives its children stays in the population.

An agent whose wealth is not finite (a reward was NaN, or an account overflowed) dies like a bankrupt agent. It is
counted in `Turnover.nonfinite_deaths` and no sum contains its wealth, so that totals stay finite.
"""

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.core import Tracer
from jaxtyping import Bool, Float, Int32

from jaxmarket.accounts import CashFlows, withdraw
from jaxmarket.deep_market.representations import Representation
from jaxmarket.switches import standard_promotion
from jaxmarket.types import NOBODY, Array, PyTree, real
from jaxmarket.validation import as_bool_array, as_float_array, check_rows

__all__ = [
    "OFFSPRING",
    "RANDOM",
    "REPAIRED",
    "Births",
    "Lineage",
    "Population",
    "Terms",
    "Turnover",
    "make_population",
    "random_population",
    "turnover",
]

RANDOM, OFFSPRING, REPAIRED = 0, 1, 2
"""The origin of an agent: drawn at random, the child of a rich agent, or a mutated bankrupt agent."""


class Terms(struct.PyTreeNode):
    """The traced economic settings of a deep market: rent and taxes, exploration, deaths and births.

    A sweep over them compiles once. A setting left at ``None`` is not part of the compiled program. The market applies
    ``rent`` to ``consumer_income`` in every step, `turnover` the others after every round.
    """

    rent: Float[Array, ""] | float | None = None  # share of wealth that an auction's winner pays (Sudhir et al. 2025)
    wealth_tax: Float[Array, ""] | float | None = None  # share of wealth that every agent pays per step (Holland 1985)
    compute_tax: Float[Array, ""] | float | None = (
        None  # money per step and unit of computation (Baum, Durdanovic 2000)
    )
    exploration: Float[Array, ""] | float | None = None  # probability that a random bidder wins and pays its bid
    markup: Float[Array, ""] | float | None = None  # bids hold for life, a new one this much above the best (Baum 1999)
    consumer_income: Float[Array, ""] | float | None = None  # money that every consumer receives per step
    endowment: Float[Array, ""] | float = 1.0  # money created for a newborn without a parent
    child_endowment: Float[Array, ""] | float = 0.0  # money created for a child, in addition to its parent's gift
    birth_rate: Float[Array, ""] | float = 1.0  # probability that each of the possible births of a turnover happens
    p_offspring: Float[Array, ""] | float = 0.5  # probability that a newborn is a child of a rich agent
    p_local: Float[Array, ""] | float | None = None  # probability that parents are agents that bid for a child's state
    min_parent_wealth: Float[Array, ""] | float = 0.0  # richer agents may have children, in proportion to their wealth
    inheritance: Float[Array, ""] | float = 0.5  # share of wealth that a parent gives to all its new children together
    p_repair: Float[Array, ""] | float = 0.0  # probability that a birth mutates and endows a bankrupt agent in place
    bankruptcy: Float[Array, ""] | float = 0.0  # an agent with at most this much money dies
    max_idle_steps: Float[Array, ""] | float | None = None  # an agent that won no auction for more steps than this dies
    proof: Float[Array, ""] | float | None = None  # agents with less wealth are on probation
    probation: Int32[Array, ""] | int | None = None  # instances, the first ones, in which they bid; 1 if None
    replace_poorest: Bool[Array, ""] | bool | None = None  # whether newborns replace the poorest if no slot is free


class Population(struct.PyTreeNode):
    """N slots for agents."""

    agents: PyTree  # leaves [N, ...] of the market's representation
    alive: Bool[Array, " N"]
    wealth: Float[Array, " N"]  # 0 in free slots
    offer: Float[Array, " N"]  # the bid that was fixed at entry (`Terms.markup`), NaN before
    ident: Int32[Array, " N"]  # unique among all agents ever born, NOBODY in slots that were never used
    parent: Int32[Array, " N"]  # ident of the agent it is a child of, NOBODY for newcomers
    born: Int32[Array, " N"]  # step
    won: Int32[Array, " N"]  # step of its last auction won, or of its birth
    count: Int32[Array, ""]  # agents ever born

    @property
    def capacity(self) -> int:
        """N, the number of slots."""
        return self.alive.shape[0]


class Births(struct.PyTreeNode):
    """The births of one turnover, a row for each possible birth [K], and the number of deaths."""

    ident: Int32[Array, " K"]  # NOBODY where no agent was born
    parent: Int32[Array, " K"]  # ident, NOBODY for random agents
    kind: Int32[Array, " K"]  # RANDOM, OFFSPRING or REPAIRED
    deaths: Int32[Array, ""]  # agents that died before, those replaced included

    @classmethod
    def none(cls) -> Self:
        """No births and no deaths: K = 0."""
        rows = jnp.zeros(0, jnp.int32)
        return cls(rows, rows, rows, jnp.zeros((), jnp.int32))


class Turnover(struct.PyTreeNode):
    """The result of `turnover`."""

    population: Population
    flows: CashFlows  # f [] ``endowment`` (including the rounding of `withdraw`) and ``wealth_of_the_dead``
    births: Births
    died: Bool[Array, " N"]  # slots of agents that died; they may be in use again
    nonfinite_deaths: Float[Array, ""]  # agents that died because their wealth was NaN or infinite


@standard_promotion
def make_population(agents: PyTree, wealth: Array, alive: Array | None = None) -> Population:
    """A population of the given agents, born at step 0 and without parents.

    Args:
        agents: leaves [N, ...].
        wealth: f [N], not negative.
        alive: bool [N], all by default; the other slots are free.

    Raises:
        ValueError: shapes do not match, agents have NaN, or an agent has negative wealth.
    """
    wealth = as_float_array("wealth", wealth)
    if wealth.ndim != 1:
        raise ValueError(f"wealth: expected f [N], a number for each agent, got shape {wealth.shape}")
    capacity = wealth.shape[0]
    alive = jnp.ones(capacity, bool) if alive is None else as_bool_array("alive", alive, (capacity,))
    check_rows("agents", agents, capacity)
    if not isinstance(wealth, Tracer) and not bool((wealth >= 0).all()):
        raise ValueError(f"wealth: expected at least 0 for each agent, got {float(wealth.min())}")
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
    representation: Representation,
    key: Array,
    observations: Float[Array, "B ..."],
    capacity: int,
    num_agents: int,
    wealth: Any,
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
    observations: Float[Array, "K ..."],
    step: Int32[Array, ""],
    terms: Terms,
    max_births: int,
) -> Turnover:
    """Deaths, followed by births.

    Agents die if they are bankrupt, if their wealth is not finite, or if they have been idle too long. Then up to K
    agents are born, each into a free slot or, with ``terms.replace_poorest``, into that of the poorest agent. A newborn
    is one of the following, in this order:

    - `REPAIRED`: a mutation of the agent that just died in the slot, with ``terms.endowment``;
    - `OFFSPRING`: the child of an agent with more wealth than ``terms.min_parent_wealth``, drawn in proportion to
      wealth, with its parent's gift and ``terms.child_endowment``; with probability ``terms.p_local`` from the agents
      that bid for its state, if there are any, as in the genetic algorithm of Wilson's XCS;
    - `RANDOM`: a random agent with ``terms.endowment``.

    Args:
        representation: of the agents.
        key: consumed.
        population: the population before.
        observations: states that agents are born into.
        step: the time.
        terms: rates and amounts of money.
        max_births: K, static, at most N.
    """
    p = population
    key_use, key_kind, key_repair, key_parent, key_mate, key_mutate, key_init = jax.random.split(key, 7)
    finite = jnp.isfinite(p.wealth)
    dying = _dying(p, step, terms)
    newborns = _plan_births((key_use, key_repair), p, dying, terms, max_births)
    died = dying | jnp.zeros(p.capacity, bool).at[newborns.slot].set(newborns.used & (p.alive & ~dying)[newborns.slot])
    alive = p.alive & ~died
    wealth = jnp.where(alive, p.wealth, 0)
    local = None
    if terms.p_local is not None:
        each_agent = jax.vmap(representation.bid, (0, None, 0))
        bids = jax.vmap(each_agent, (None, 0, None))(p.agents, observations, jnp.maximum(wealth, 0))
        here = jax.random.uniform(jax.random.fold_in(key, 0), (max_births, 1)) < terms.p_local
        local = here & jnp.isfinite(bids)
    newborns = _choose_parents((key_kind, key_parent, key_mate), wealth, local, newborns, terms)
    wealth, gift, endowment, rounding = _endow(wealth, newborns, terms)

    def gather(slot: Array) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[slot], p.agents)

    mutate, draw = jax.vmap(representation.mutate), jax.vmap(representation.init)
    children = mutate(jax.random.split(key_mutate, max_births), gather(newborns.parent), gather(newborns.mate))
    agents = jax.tree.map(
        lambda child, random: jnp.where(newborns.random.reshape(-1, *[1] * (child.ndim - 1)), random, child),
        children,
        draw(jax.random.split(key_init, max_births), observations),
    )
    # One write for each slot: unused rows write beyond the end, which is dropped.
    where = jnp.where(newborns.used, newborns.slot, p.capacity)

    def put(leaf: Array, new: Array | float) -> Array:
        return leaf.at[where].set(jnp.asarray(new, leaf.dtype), mode="drop")

    ident = p.count + jnp.cumsum(newborns.used, dtype=jnp.int32) - 1
    parent = jnp.where(newborns.random, NOBODY, p.ident[newborns.parent])
    kind = jnp.where(newborns.repaired, REPAIRED, jnp.where(newborns.offspring, OFFSPRING, RANDOM)).astype(jnp.int32)
    return Turnover(
        population=Population(
            agents=jax.tree.map(put, p.agents, agents),
            alive=put(alive, True),
            wealth=put(wealth, gift + endowment),
            offer=put(p.offer, jnp.nan),
            ident=put(p.ident, ident),
            parent=put(p.parent, parent),
            born=put(p.born, step),
            won=put(p.won, step),
            count=p.count + newborns.used.sum(dtype=jnp.int32),
        ),
        flows=CashFlows.of(
            endowment=endowment.sum() + rounding,
            wealth_of_the_dead=-jnp.where(died & finite, p.wealth, 0).sum(),
        ),
        births=Births(
            ident=jnp.where(newborns.used, ident, NOBODY),
            parent=jnp.where(newborns.used, parent, NOBODY),
            kind=kind,
            deaths=died.sum(dtype=jnp.int32),
        ),
        died=died,
        nonfinite_deaths=(p.alive & ~finite).sum(dtype=wealth.dtype),
    )


class _Newborns(struct.PyTreeNode):
    """The agents that a turnover may create."""

    slot: Int32[Array, " K"]  # all different
    used: Bool[Array, " K"]  # whether an agent is born
    repaired: Bool[Array, " K"]  # it is one of these three
    offspring: Bool[Array, " K"]
    random: Bool[Array, " K"]
    parent: Int32[Array, " K"]  # slot of the parent or of the repaired agent
    mate: Int32[Array, " K"]  # slot


def _dying(population: Population, step: Int32[Array, ""], terms: Terms) -> Bool[Array, " N"]:
    """The agents that are bankrupt, have infinite or NaN wealth, or were idle too long."""
    p = population
    dying = p.alive & (~jnp.isfinite(p.wealth) | (p.wealth <= terms.bankruptcy))
    if terms.max_idle_steps is not None:
        dying = dying | (p.alive & (step - p.won > terms.max_idle_steps))
    return dying


def _plan_births(
    keys: tuple[Array, Array], population: Population, dying: Bool[Array, " N"], terms: Terms, max_births: int
) -> _Newborns:
    """Slots of newborns: free ones first, then those of the poorest agents; and which agents are repaired."""
    p, (key_use, key_repair) = population, keys
    alive = p.alive & ~dying
    slot = jnp.argsort(jnp.where(alive, p.wealth, -jnp.inf))[:max_births]
    used = jax.random.uniform(key_use, (max_births,)) < terms.birth_rate
    used = used & (~alive[slot] if terms.replace_poorest is None else ~alive[slot] | terms.replace_poorest)
    repaired = used & dying[slot] & (jax.random.uniform(key_repair, (max_births,)) < terms.p_repair)
    return _Newborns(slot, used, repaired, offspring=repaired, random=used & ~repaired, parent=slot, mate=slot)


def _choose_parents(
    keys: tuple[Array, Array, Array],
    wealth: Float[Array, " N"],
    local: Bool[Array, "K N"] | None,
    newborns: _Newborns,
    terms: Terms,
) -> _Newborns:
    """Which newborns are children, and parents and mates, drawn in proportion to wealth; ``local`` ones if possible."""
    n, count, (key_kind, key_parent, key_mate) = newborns, newborns.slot.shape, keys
    weight = jnp.where(wealth > terms.min_parent_wealth, jnp.maximum(wealth, 0), 0)
    log_weight = jnp.log(weight)  # -inf is never drawn, unless all are
    if local is not None:
        among = jnp.where(local & (weight > 0), log_weight, -jnp.inf)
        log_weight = jnp.where(jnp.isfinite(among).any(1, keepdims=True), among, log_weight)
    parent = jax.random.categorical(key_parent, log_weight, shape=count)
    mate = jax.random.categorical(key_mate, log_weight, shape=count)
    child = (weight.sum() > 0) & (jax.random.uniform(key_kind, count) < terms.p_offspring)
    return n.replace(
        offspring=n.random & child,
        random=n.random & ~child,
        parent=jnp.where(n.repaired, n.slot, parent),
        mate=mate,
    )


def _endow(
    wealth: Float[Array, " N"], newborns: _Newborns, terms: Terms
) -> tuple[Float[Array, " N"], Float[Array, " K"], Float[Array, " K"], Float[Array, ""]]:
    """Parents' gifts and endowments.

    Returns:
        The wealth after the gifts; the gifts and the endowments; and the rounding of `withdraw`.
    """
    n = newborns
    children = jnp.zeros(wealth.shape, wealth.dtype).at[n.parent].add(n.offspring.astype(wealth.dtype))
    gift = jnp.where(n.offspring, terms.inheritance * wealth[n.parent] / jnp.maximum(children[n.parent], 1), 0)
    created = jnp.where(n.used, jnp.where(n.offspring, terms.child_endowment, terms.endowment), 0).astype(wealth.dtype)
    wealth, rounding = withdraw(wealth, n.parent, gift)
    return wealth, gift, created, rounding


class Lineage:
    """The descent of all agents ever born, from the births of all rounds. NumPy.

    Attributes:
        parent: i32 [agents ever born], ident of each one's parent, NOBODY for random agents and founders.
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
        """The agent, its parent, and so on up to the first ancestor."""
        line = [int(ident)]
        while self.parent[line[-1]] != NOBODY:
            line.append(int(self.parent[line[-1]]))
        return line

    def family(self, ident: int) -> list[int]:
        """All descendants of its first ancestor, in order of birth."""
        first = self.ancestors(ident)[-1]
        family = {first}
        for child in range(first + 1, len(self.parent)):  # children are younger than their parents
            if int(self.parent[child]) in family:
                family.add(child)
        return sorted(family)

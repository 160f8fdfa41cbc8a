"""Representations: how the agents of a population are encoded, mutated and recombined.

An agent is a pytree of arrays. A `Representation` draws new agents, computes bids and actions, and mutates. Its methods
concern one agent and are pure; a market maps them over all agents and instances. To add a representation, write a
frozen dataclass with these five methods; nothing has to be registered.

| representation | an agent is | its bid |
|---|---|---|
| `ClassifierRules` | a condition of 0, 1 and # and an action (Holland 1985) | a share of its budget, by specificity |
| `RiskAverseRules` | such a rule that learns what it earns | its expected revenue, less a margin and its risk |
| `GuardedPrograms` | guards over what it observes, and an action (after Baum and Durdanovic 2000) | a number |
| `Expressions` | a typed S-expression over named sensors (after Hayek 3), in `expressions` | a number, times progress |
| `EstimatingExpressions` | such an expression that learns what it earns | its expected revenue, less a margin |
| `NeuralNetworks` | the weights of a linear map or a small network | an output of the network |
| `BidTables` | a bid for every state, and an action | looked up |
"""

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Float, Int32

from jaxmarket.types import Array, PyTree, real
from jaxmarket.validation import check_bool, check_float, check_int, short_repr

if TYPE_CHECKING:
    from jaxmarket.deep_market.market import Purchases

__all__ = [
    "NO_BID",
    "WILDCARD",
    "BidTable",
    "BidTables",
    "ClassifierRule",
    "ClassifierRules",
    "GuardedProgram",
    "GuardedPrograms",
    "NeuralNetworks",
    "Representation",
    "RiskAverseRule",
    "RiskAverseRules",
    "taught",
    "with_noise",
]

NO_BID = -jnp.inf
"""The value of a missing bid: only finite bids are eligible."""


class Representation(Protocol):
    """The encoding of a market's agents. Compares and hashes by value, like a frozen dataclass.

    Agents may learn while they live, as `jaxmarket.training.learning_agents.LearningNetworks` do. Such a representation
    has two further methods: ``sample(agent, obs, noise)``, the action of an agent that explores, where ``noise`` is
    uniform on [0, 1); and ``learn(agents, purchases)``, the agents [N] after they have learned from the purchases of a
    round (`jaxmarket.deep_market.Purchases`, leaves [T, B, ...]), their own or those that `taught` selects.

    With a method ``worth(agent, obs)``, f [], a positive number, a bid that is fixed at entry (`Terms.markup`) is a
    multiple of it, so that bids may grow with the progress that an agent observes, as in `Expressions`. Otherwise such
    a bid is constant.

    With a true attribute ``in_turn``, a CPU computes the bids for one state after the other. This is faster for bids
    that are costly to compute, which XLA would otherwise compute again for each of their uses.
    """

    def init(self, key: Array, obs: Float[Array, "..."]) -> PyTree:
        """A random agent, born into the state with observation ``obs``, which it may ignore."""
        ...

    def bid(self, agent: PyTree, obs: Float[Array, "..."], budget: Float[Array, ""] | float) -> Float[Array, ""]:
        """The bid for a state, or `NO_BID`. ``budget`` is the most that the agent can pay."""
        ...

    def act(self, agent: PyTree, obs: Float[Array, "..."]) -> Int32[Array, ""]:
        """The primitive that it applies if it wins."""
        ...

    def mutate(self, key: Array, agent: PyTree, mate: PyTree) -> PyTree:
        """A child of ``agent``. ``mate`` is another rich agent or the same one, for representations with crossover."""
        ...

    def cost(self, agent: PyTree) -> Float[Array, ""]:
        """Units of computation per bid, for the compute tax."""
        ...


WILDCARD = 2
"""``#`` in a condition: matches 0 and 1."""


class ClassifierRule(struct.PyTreeNode):
    """A classifier: if the condition matches, do the action."""

    condition: Int32[Array, " n"]  # 0, 1 or WILDCARD
    action: Int32[Array, ""]


@dataclasses.dataclass(frozen=True)
class ClassifierRules:
    """Condition-action rules over n bits (Holland 1985; Goldberg 1989, ch. 6).

    A rule that matches bids ``coefficient · (base + (1 - base) · specificity) · budget``; its specificity is the
    share of its condition that is not ``#``. With ``base=0`` this is Holland's c · specificity · strength. A new rule
    matches the state it is born into (Wilson's covering); a child is recombined with its mate at two points, and
    every one of its symbols then changes with probability ``mutation``.

    Attributes:
        bits: n, length of an observation; entries above one half are 1.
        actions: P.
        coefficient: c, the share of its budget that a rule without # bids.
        base: the part of the bid that does not depend on specificity, in [0, 1].
        wildcards: probability of # in a new rule.
        crossover, mutation: probabilities.
    """

    bits: int
    actions: int
    coefficient: float = 0.125
    base: float = 0.0
    wildcards: float = 1 / 3
    crossover: float = 0.5
    mutation: float = 0.04

    def __post_init__(self) -> None:
        _check_counts(self, "bits", "actions")
        _check_shares(self, "coefficient", "base", "wildcards", "crossover", "mutation")

    def init(self, key: Array, obs: Float[Array, " n"]) -> ClassifierRule:
        """A rule that matches ``obs``, with a random action."""
        key_hash, key_action = jax.random.split(key)
        general = jax.random.bernoulli(key_hash, self.wildcards, (self.bits,))
        condition = jnp.where(general, WILDCARD, (obs > 0.5).astype(jnp.int32))
        return ClassifierRule(condition, jax.random.randint(key_action, (), 0, self.actions, jnp.int32))

    def matches(self, agent: ClassifierRule, obs: Float[Array, " n"]) -> Bool[Array, ""]:
        """Whether the condition holds."""
        return jnp.all((agent.condition == WILDCARD) | (agent.condition == (obs > 0.5)))

    def specificity(self, agent: ClassifierRule) -> Float[Array, ""]:
        """Share of the condition that is not #."""
        return (agent.condition != WILDCARD).mean(dtype=real())

    def bid(self, agent: ClassifierRule, obs: Float[Array, " n"], budget: Float[Array, ""] | float) -> Float[Array, ""]:
        """A share of the budget if the condition matches."""
        share = self.coefficient * (self.base + (1 - self.base) * self.specificity(agent))
        return jnp.where(self.matches(agent, obs), share * budget, NO_BID)

    def act(self, agent: ClassifierRule, obs: Float[Array, " n"]) -> Int32[Array, ""]:
        """The agent's action, for every observation."""
        return agent.action

    def mutate(self, key: Array, agent: ClassifierRule, mate: ClassifierRule) -> ClassifierRule:
        """Two-point crossover with the mate, and then point mutations."""
        keys = jax.random.split(key, 6)
        first, last = jnp.sort(jax.random.randint(keys[0], (2,), 0, self.bits + 1))
        places = jnp.arange(self.bits)
        swapped = jax.random.bernoulli(keys[1], self.crossover) & (first <= places) & (places < last)
        condition = jnp.where(swapped, mate.condition, agent.condition)
        # One of the two other symbols.
        other = (condition + jax.random.randint(keys[2], (self.bits,), 1, 3, jnp.int32)) % 3
        condition = jnp.where(jax.random.bernoulli(keys[3], self.mutation, (self.bits,)), other, condition)
        new_action = jax.random.randint(keys[4], (), 0, self.actions, jnp.int32)
        return ClassifierRule(
            condition, jnp.where(jax.random.bernoulli(keys[5], self.mutation), new_action, agent.action)
        )

    def cost(self, agent: ClassifierRule) -> Float[Array, ""]:
        """1 for every agent."""
        return jnp.ones((), real())


class RiskAverseRule(ClassifierRule):
    """A classifier that estimates what its action brings where its condition matches."""

    value: Float[Array, ""]  # expected revenue of a purchase
    error: Float[Array, ""]  # expected absolute difference between the revenue and `value`
    count: Int32[Array, ""]  # revenues that it has learned from


@dataclasses.dataclass(frozen=True)
class RiskAverseRules(ClassifierRules):
    """Classifier rules that bid what they expect to earn, less a margin, and less the more uncertain it is.

    A rule that matches bids ``(1 - margin) · value · exp(-risk_aversion · error / value)``, at most its budget; its
    specificity does not matter. As in Wilson's XCS (1995, "Classifier Fitness Based on Accuracy"), ``value`` is the
    expected revenue, ``error`` the expected absolute deviation from it, and both are means until ``1 / rate`` revenues
    are known and recent averages from then on. If revenues are ``public``, a rule learns from every purchase of a state
    that it bids for if the buyer does what the rule would do, otherwise from its own purchases only. All rules begin
    with the same prior, children too, so a mutation must prove itself before it outbids another rule.

    Such rules take part in purchases before their bids are high if the market has `DeepMarket.joint_purchases` and
    explores (`Terms.exploration`). The margin is their profit, and acts as a discount of 1 - margin per sale.

    Attributes:
        margin: the share of the value that it does not bid.
        risk_aversion: with 0, only the value matters.
        rate: the least weight of a new revenue in the averages, in (0, 1].
        prior_value, prior_error: of a new rule; they count as one revenue.
        public: whether rules learn from the revenues of others.
    """

    margin: float = 0.5
    risk_aversion: float = 8.0
    rate: float = 0.1
    prior_value: float = 0.3
    prior_error: float = 0.4
    public: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_shares(self, "margin", "rate")
        check_bool("public", self.public)
        for field in ("risk_aversion", "prior_value", "prior_error"):
            object.__setattr__(self, field, check_float(field, getattr(self, field), 0))

    def _new(self, rule: ClassifierRule) -> RiskAverseRule:
        value, error = jnp.asarray(self.prior_value, real()), jnp.asarray(self.prior_error, real())
        return RiskAverseRule(rule.condition, rule.action, value, error, jnp.zeros((), jnp.int32))

    def init(self, key: Array, obs: Float[Array, " n"]) -> RiskAverseRule:
        """A rule that matches ``obs``, with a random action and the prior."""
        return self._new(super().init(key, obs))

    def bid(self, agent: PyTree, obs: Float[Array, " n"], budget: Float[Array, ""] | float) -> Float[Array, ""]:
        """The expected revenue less margin and risk, 0 if it is not positive, where the condition matches."""
        value = jnp.maximum(agent.value, 0)
        risk = agent.error / jnp.where(value > 0, value, 1)
        bid = (1 - self.margin) * value * jnp.exp(-self.risk_aversion * risk)
        return jnp.where(self.matches(agent, obs), jnp.minimum(bid, budget), NO_BID)

    def mutate(self, key: Array, agent: ClassifierRule, mate: ClassifierRule) -> RiskAverseRule:
        """As other classifier rules; the child has the prior."""
        return self._new(super().mutate(key, agent, mate))

    def learn(self, agents: RiskAverseRule, purchases: "Purchases") -> RiskAverseRule:
        """The rules [N] after the revenues of a round, one after the other in the order of the steps."""
        revenue = (purchases.income + purchases.proceeds).reshape(-1)
        learns = taught(purchases, agents.action if self.public else None)

        def one(agents: RiskAverseRule, row: tuple[Array, Array]) -> tuple[RiskAverseRule, None]:
            revenue, learns = row
            weight = learns * jnp.maximum(self.rate, 1 / (agents.count + 2))
            difference = revenue - agents.value
            return agents.replace(
                value=agents.value + weight * difference,
                error=agents.error + weight * (abs(difference) - agents.error),
                count=agents.count + learns,
            ), None

        return jax.lax.scan(one, agents, (revenue, learns))[0]


def taught(purchases: "Purchases", intended: Int32[Array, "*TB N"] | None) -> Bool[Array, "TB N"]:
    """Which agents learn from each purchase of a round whose revenue is known.

    If revenues are public, every agent that bid for the state and would have done what the buyer did; otherwise the
    buyers.

    Args:
        purchases: leaves [T, B, ...].
        intended: the action of each agent in each of these states, or in all of them; None if agents do not see the
            revenues of others.
    """
    winner = purchases.outcome.winner[..., None]
    if intended is not None:
        learns = purchases.outcome.eligible & (intended == purchases.action[..., None]) & (winner >= 0)
    elif purchases.stakes is None:
        learns = winner == jnp.arange(purchases.outcome.bids.shape[-1])
    else:
        learns = purchases.stakes > 0
    return (learns & purchases.known[..., None]).reshape(purchases.price.size, -1)


class GuardedProgram(struct.PyTreeNode):
    """A sequence of guards, each a test of two values, and the action if all of them hold."""

    tests: Int32[Array, " L"]  # index into TESTS
    operands: Int32[Array, "L 2"]  # index into sensors and constants
    action: Int32[Array, ""]
    price: Float[Array, ""]  # its bid, if no rule fixes the bid at entry


TESTS = (
    ("skip", lambda a, b: jnp.ones(jnp.broadcast_shapes(a.shape, b.shape), bool)),
    ("=", lambda a, b: a == b),
    ("≠", lambda a, b: a != b),
    (">", lambda a, b: a > b),
    ("<", lambda a, b: a < b),
)
"""Primitives of programs: name, and a predicate of two values."""


@dataclasses.dataclass(frozen=True)
class GuardedPrograms:
    """Fixed-length programs: the guards under which an agent bids, and its action.

    After the agents of Hayek (Baum 1999; Baum and Durdanovic 2000), expressions that compute from what is on the
    stacks whether and how to act. Ours have no loops and no arithmetic: each of ``length`` lines applies one of
    `TESTS` to two sensors (entries of the observation) or constants, and the agent bids where all of them hold.

    Attributes:
        sensors: n, length of an observation.
        actions: P.
        length: L, lines.
        constants: numbers a program can use.
        names: of the sensors, to print programs with.
        skip: probability that a new line tests nothing.
        constant: probability that a new line compares with a constant.
        mutation: probability with which each line, and the action, is drawn again; at least one is.
        highest: new agents' prices are uniform on (0, highest).
    """

    sensors: int
    actions: int
    length: int = 4
    constants: tuple[float, ...] = (0.0,)
    names: tuple[str, ...] = ()
    skip: float = 0.5
    constant: float = 0.5
    mutation: float = 0.1
    highest: float = 1.0

    def __post_init__(self) -> None:
        _check_counts(self, "sensors", "actions", "length")
        _check_shares(self, "skip", "constant", "mutation")
        for field, kind in (("constants", float | int), ("names", str)):
            given = getattr(self, field)
            if not isinstance(given, tuple) or not all(isinstance(entry, kind) for entry in given):
                raise ValueError(f"{field}: expected a tuple of them, got {short_repr(given)}")
        for constant in self.constants:
            check_float("constants", constant)
        if self.names and len(self.names) != self.sensors:
            raise ValueError(f"names: expected one for each of {self.sensors} sensors, got {len(self.names)}")

    @property
    def inputs(self) -> int:
        """V, sensors and constants."""
        return self.sensors + len(self.constants)

    def init(self, key: Array, obs: Float[Array, " n"]) -> GuardedProgram:
        """Random lines, action and price."""
        keys = jax.random.split(key, 7)
        shape = (self.length,)
        tests = jax.random.randint(keys[0], shape, 1, len(TESTS), jnp.int32)
        first, second = jax.random.randint(keys[1], (2, *shape), 0, self.sensors, jnp.int32)
        constant = jax.random.randint(keys[2], shape, self.sensors, self.inputs, jnp.int32)
        second = jnp.where(jax.random.bernoulli(keys[3], self.constant, shape), constant, second)
        return GuardedProgram(
            tests=jnp.where(jax.random.bernoulli(keys[4], self.skip, shape), 0, tests),
            operands=jnp.stack([first, second], axis=1),
            action=jax.random.randint(keys[5], (), 0, self.actions, jnp.int32),
            price=self.highest * jax.random.uniform(keys[6], (), real()),
        )

    def bid(self, agent: GuardedProgram, obs: Float[Array, " n"], budget: Float[Array, ""] | float) -> Float[Array, ""]:
        """The agent's price if all guards hold."""
        values = jnp.concatenate([obs.astype(real()), jnp.asarray(self.constants, real())])
        # Every test of every two values once per state, V · V of them; each agent only looks its own up.
        results = jnp.stack([test(values[:, None], values[None, :]) for _, test in TESTS])
        holds = results[agent.tests, agent.operands[:, 0], agent.operands[:, 1]].all()
        return jnp.where(holds, agent.price, NO_BID)

    def act(self, agent: GuardedProgram, obs: Float[Array, " n"]) -> Int32[Array, ""]:
        """The agent's action, for every observation."""
        return agent.action

    def mutate(self, key: Array, agent: GuardedProgram, mate: GuardedProgram) -> GuardedProgram:
        """Redraw some lines or the action, and change the price by about a tenth. The mate is not used."""
        key_new, key_where, key_one, key_price = jax.random.split(key, 4)
        new = self.init(key_new, jnp.zeros(self.sensors))
        changes = jax.random.bernoulli(key_where, self.mutation, (self.length + 1,))
        changes = changes.at[jax.random.randint(key_one, (), 0, self.length + 1)].set(True)
        lines = changes[:-1]
        return GuardedProgram(
            tests=jnp.where(lines, new.tests, agent.tests),
            operands=jnp.where(lines[:, None], new.operands, agent.operands),
            action=jnp.where(changes[-1], new.action, agent.action),
            price=agent.price * jnp.exp(0.1 * jax.random.normal(key_price, (), real())),
        )

    def cost(self, agent: GuardedProgram) -> Float[Array, ""]:
        """One, and one more for every line that tests something."""
        return 1 + (agent.tests != 0).sum(dtype=real())

    def show(self, agent: GuardedProgram) -> str:
        """The guards and the action as text; ``agent`` is one agent with NumPy leaves."""
        names = [*(self.names or (f"x{i}" for i in range(self.sensors))), *(f"{c:g}" for c in self.constants)]
        lines = zip(agent.tests.tolist(), agent.operands.tolist(), strict=True)
        guards = [f"{names[a]} {TESTS[test][0]} {names[b]}" for test, (a, b) in lines if test]
        return f"if {' and '.join(guards) or 'anything'}: {int(agent.action)}"


def with_noise(key: Array, weights: PyTree, scale: float) -> PyTree:
    """Weights, leaves f [...], with independent Gaussian noise of standard deviation ``scale`` on each of them."""
    leaves, structure = jax.tree.flatten(weights)
    keys = jax.random.split(key, len(leaves))
    noise = [scale * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, [x + e for x, e in zip(leaves, noise, strict=True)])


@dataclasses.dataclass(frozen=True)
class NeuralNetworks:
    """Linear agents (no hidden layer) and small networks: one output is the bid, the others choose the action.

    Attributes:
        features: n, length of an observation.
        actions: P.
        hidden: widths of hidden layers, tanh.
        scale: standard deviation of a new agent's weights, over the root of their number per unit.
        mutation: standard deviation of what a mutation adds to each.
    """

    features: int
    actions: int
    hidden: tuple[int, ...] = ()
    scale: float = 1.0
    mutation: float = 0.1

    def __post_init__(self) -> None:
        _check_counts(self, "features", "actions")
        if not isinstance(self.hidden, tuple):
            raise ValueError(f"hidden: expected a tuple of widths, got {short_repr(self.hidden)}")
        for width in self.hidden:
            check_int("hidden", width)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of all layers."""
        return (self.features, *self.hidden, 1 + self.actions)

    def init(self, key: Array, obs: Float[Array, " n"]) -> list[tuple[Array, Array]]:
        """Gaussian weights f [in, out] and biases 0 f [out], layer by layer."""
        keys = jax.random.split(key, len(self.widths) - 1)
        return [
            (jax.random.normal(k, pair, real()) * self.scale / math.sqrt(pair[0]), jnp.zeros(pair[1], real()))
            for k, pair in zip(keys, itertools.pairwise(self.widths), strict=True)
        ]

    def outputs(self, agent: list[tuple[Array, Array]], obs: Float[Array, " n"]) -> Float[Array, " outputs"]:
        """The last layer."""
        for weights, bias in agent[:-1]:
            obs = jnp.tanh(obs @ weights + bias)
        weights, bias = agent[-1]
        return obs @ weights + bias

    def bid(
        self, agent: list[tuple[Array, Array]], obs: Float[Array, " n"], budget: Float[Array, ""] | float
    ) -> Float[Array, ""]:
        """Softplus of the first output: positive."""
        return jax.nn.softplus(self.outputs(agent, obs)[0])

    def act(self, agent: list[tuple[Array, Array]], obs: Float[Array, " n"]) -> Int32[Array, ""]:
        """The action with the highest output."""
        return jnp.argmax(self.outputs(agent, obs)[1:]).astype(jnp.int32)

    def mutate(self, key: Array, agent: list[tuple[Array, Array]], mate: PyTree) -> list[tuple[Array, Array]]:
        """Noise on every weight. The mate is not used."""
        return with_noise(key, agent, self.mutation)

    def cost(self, agent: list[tuple[Array, Array]]) -> Float[Array, ""]:
        """Multiplications, in thousands."""
        return jnp.asarray(sum(a * b for a, b in itertools.pairwise(self.widths)) / 1000, real())


class BidTable(struct.PyTreeNode):
    """A bid for every state."""

    bids: Float[Array, " S"]  # NO_BID where it does not bid
    action: Int32[Array, ""]


@dataclasses.dataclass(frozen=True)
class BidTables:
    """Tabular agents: each has one action and looks up its bid for the state.

    Attributes:
        states: S; observations are one-hot.
        actions: P.
        highest: new agents' bids are uniform on (0, highest).
        mutation: probability with which the bid for a state is drawn again.
    """

    states: int
    actions: int
    highest: float = 1.0
    mutation: float = 0.1

    def __post_init__(self) -> None:
        _check_counts(self, "states", "actions")
        _check_shares(self, "mutation")

    def init(self, key: Array, obs: Float[Array, " S"]) -> BidTable:
        """Uniform bids and a random action."""
        key_bids, key_action = jax.random.split(key)
        bids = self.highest * jax.random.uniform(key_bids, (self.states,), real())
        return BidTable(bids, jax.random.randint(key_action, (), 0, self.actions, jnp.int32))

    def bid(self, agent: BidTable, obs: Float[Array, " S"], budget: Float[Array, ""] | float) -> Float[Array, ""]:
        """The bid in the table."""
        return agent.bids[jnp.argmax(obs)]

    def act(self, agent: BidTable, obs: Float[Array, " S"]) -> Int32[Array, ""]:
        """The agent's action, for every observation."""
        return agent.action

    def mutate(self, key: Array, agent: BidTable, mate: BidTable) -> BidTable:
        """Redraw some bids and, with the same probability, the action."""
        key_new, key_bids, key_action = jax.random.split(key, 3)
        new = self.init(key_new, jnp.zeros(self.states))
        changes = jax.random.bernoulli(key_bids, self.mutation, (self.states,))
        new_action = jax.random.bernoulli(key_action, self.mutation)
        return BidTable(jnp.where(changes, new.bids, agent.bids), jnp.where(new_action, new.action, agent.action))

    def cost(self, agent: BidTable) -> Float[Array, ""]:
        """1 for every agent."""
        return jnp.ones((), real())


def _check_counts(representation: object, *fields: str) -> None:
    for field in fields:
        object.__setattr__(representation, field, check_int(field, getattr(representation, field)))


def _check_shares(representation: object, *fields: str) -> None:
    for field in fields:
        object.__setattr__(representation, field, check_float(field, getattr(representation, field), 0, 1))

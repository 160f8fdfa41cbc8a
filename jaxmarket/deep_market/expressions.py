"""Agents that are typed S-expressions over named sensors, after Hayek 3 (Baum and Durdanovic 2000).

An agent is one expression such as

    (if (= surplus 0) (do (argmin distance(it)) s1))

It bids where the condition holds, and takes the action if it wins. The `Vocabulary` of an environment names the
sensors. Expressions have types: number, condition, item, and action. Loops over the items, such as the stacks of blocks
world, are operators of a number or a condition about ``it``, the item of the loop: ``(argmin distance(it))`` is the
item with the smallest distance.

An expression is a binary tree of fixed depth: node i has the operands 2i + 1 and 2i + 2. Every node is evaluated for
all items at once, and loops reduce over them; so no evaluation depends on control flow, and agents are an axis.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Bool, Float, Int32

from jaxmarket.deep_market.representations import NO_BID, taught
from jaxmarket.environments.vocabulary import Vocabulary
from jaxmarket.types import Array, PyTree, cached_property, real
from jaxmarket.validation import check_bool, check_float, check_int, short_repr

if TYPE_CHECKING:
    from jaxmarket.deep_market.market import Purchases

__all__ = ["EstimatingExpression", "EstimatingExpressions", "Expression", "Expressions"]

NUMBER, CONDITION, ITEM, NUMBER_OF_IT, CONDITION_OF_IT, ACTION, PROGRAM, UNUSED = range(8)
"""Types of nodes. Only a loop has an operand about ``it``."""

_ROOT, _CONDITION, _ACTION, _OPERANDS = 0, 1, 2, (5, 6)
"""Nodes that have the same meaning in every expression."""


def _place(values: Sequence[Array], extreme: Array) -> Array:
    """The first place at which the values are equal to one of them."""
    return _choose([value == extreme for value in values], range(len(values)))


def _choose(conditions: Sequence[Array], values: Sequence[Array] | range) -> Array:
    """The value where the first condition holds, the last value if none does."""
    chosen = jnp.asarray(values[-1], real())
    for condition, value in reversed(list(zip(conditions[:-1], values[:-1], strict=True))):
        chosen = jnp.where(condition, value, chosen)
    return chosen


def _smallest(values: Sequence[Array]) -> Array:
    return functools.reduce(jnp.minimum, values)


def _largest(values: Sequence[Array]) -> Array:
    return functools.reduce(jnp.maximum, values)


_LOOPS: dict[str, tuple[int, int, Callable[[Sequence[Array]], Array]]] = {
    "min": (NUMBER, NUMBER_OF_IT, _smallest),
    "max": (NUMBER, NUMBER_OF_IT, _largest),
    "count": (NUMBER, CONDITION_OF_IT, lambda values: functools.reduce(jnp.add, values)),
    "any": (CONDITION, CONDITION_OF_IT, _largest),
    "argmin": (ITEM, NUMBER_OF_IT, lambda values: _place(values, _smallest(values))),
    "argmax": (ITEM, NUMBER_OF_IT, lambda values: _place(values, _largest(values))),
    "first": (ITEM, CONDITION_OF_IT, lambda values: _place(values, _largest(values))),
}
"""Loops over items: the types of the result and of the operand, and the result for values of all items. Conditions are
0 or 1. Where no item meets the condition of ``first``, it is the first item."""

_PAIRS: dict[str, Callable[[Array, Array], Array]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "=": lambda a, b: (a == b).astype(real()),
    "<": lambda a, b: (a < b).astype(real()),
    ">": lambda a, b: (a > b).astype(real()),
    "and": jnp.minimum,
    "or": jnp.maximum,
}
"""Operators of two numbers or two conditions."""


_LEAST = 1e-3
"""Expectations fall no further than about this share of the prior."""


class Expression(struct.PyTreeNode):
    """An expression as a tree, and its price."""

    nodes: Int32[Array, " nodes"]  # index into `Expressions.operators`, 0 where the tree has no node
    price: Float[Array, ""]  # its bid, if no rule fixes the bid at entry


@dataclasses.dataclass(frozen=True)
class Expressions:
    """Typed S-expressions of bounded depth.

    | type | leaves | operators |
    |---|---|---|
    | number | sensors, constants | a feature of an item, ``+``, ``-``, ``min``, ``max`` and ``count`` over items |
    | condition | ``true`` | ``=``, ``<``, ``>``, ``and``, ``or``, ``not``, ``any`` over items |
    | item | items | ``argmin``, ``argmax`` and ``first`` over items, ``other``: the first item that is neither of two |
    | about ``it`` | features | ``+``, ``-``, ``=``, ``<``, ``>`` with a number, ``and``, ``or`` |

    A new agent is the first of ``draws`` random expressions that bids for the state it is born into. A child differs in
    one subtree, which is drawn again or, with probability ``crossover``, taken from the same place of its mate; both
    keep types.

    Attributes:
        vocabulary: what observations contain.
        depth: levels of the tree; the program has two of them.
        constants: numbers an expression can use.
        leaf: probability of a leaf where a leaf and an operator are possible.
        crossover: probability that a child takes a subtree of its mate.
        highest: new agents' prices are uniform on (0, highest).
        progress: a sensor, if bids are proportional to 1 + this number (``worth``); bids are constant by default.
        draws: number of expressions from which a new agent is taken.
    """

    vocabulary: Vocabulary
    depth: int = 5
    constants: tuple[float, ...] = (0.0, 1.0)
    leaf: float = 0.6
    crossover: float = 0.3
    highest: float = 1.0
    progress: str | None = None
    draws: int = 8

    in_turn: ClassVar[bool] = True
    """A CPU evaluates one state after the other. Otherwise XLA computes expressions again for each use of a bid."""

    def __post_init__(self) -> None:
        if not isinstance(self.vocabulary, Vocabulary):
            raise ValueError(
                f"vocabulary: expected a Vocabulary, got {short_repr(self.vocabulary)}; give that of an environment"
            )
        object.__setattr__(self, "depth", check_int("depth", self.depth, 3, 8))
        object.__setattr__(self, "draws", check_int("draws", self.draws))
        for field in ("leaf", "crossover"):
            object.__setattr__(self, field, check_float(field, getattr(self, field), 0, 1))
        object.__setattr__(self, "highest", check_float("highest", self.highest, 0))
        if not isinstance(self.constants, tuple) or not self.constants:
            raise ValueError(f"constants: expected a tuple of numbers, got {short_repr(self.constants)}; write (0, 1)")
        object.__setattr__(self, "constants", tuple(check_float("constants", c) for c in self.constants))
        v = self.vocabulary
        if self.progress is not None and self.progress not in v.numbers:
            known = ", ".join(v.numbers)
            raise ValueError(f"progress: expected one of {known}, got {short_repr(self.progress)}; name a sensor")
        taken = set(_LOOPS) | set(_PAIRS) | {"true", "not", "other", "do", "if", *(f"{c:g}" for c in self.constants)}
        if clash := taken & {*v.numbers, *v.items, *v.features}:
            raise ValueError(f"vocabulary: {min(clash)!r} is an operator; rename it")

    @property
    def size(self) -> int:
        """Nodes of the tree."""
        return 2**self.depth - 1

    @cached_property
    def _grammar(self) -> dict[str, dict[int, tuple[int, ...]]]:
        """For each operator, the types of its operands by the type of its result. Leaves come first."""
        v = self.vocabulary
        grammar: dict[str, dict[int, tuple[int, ...]]] = {}
        for name in (*v.numbers, *(f"{constant:g}" for constant in self.constants)):
            grammar[name] = {NUMBER: ()}
        grammar |= {f"{name}(it)": {NUMBER_OF_IT: ()} for name in v.features}
        grammar["true"] = {CONDITION: ()}
        grammar |= {name: {ITEM: ()} for name in v.items}
        if not v.operands:
            grammar |= {f"action{i}": {ACTION: ()} for i in range(v.actions)}
        if v.items:
            grammar |= {name: {NUMBER: (ITEM,)} for name in v.features}
            grammar |= {name: {result: (operand,)} for name, (result, operand, _) in _LOOPS.items()}
            grammar["other"] = {ITEM: (ITEM, ITEM)}
        grammar["not"] = {CONDITION: (CONDITION,)}
        for name in _PAIRS:
            logic = name in ("and", "or")
            results = (NUMBER, NUMBER_OF_IT) if name in ("+", "-") else (CONDITION, CONDITION_OF_IT)
            plain, of_it = (CONDITION, CONDITION_OF_IT) if logic else (NUMBER, NUMBER_OF_IT)
            grammar[name] = {results[0]: (plain, plain)}
            if v.items:
                grammar[name][results[1]] = (of_it, of_it if logic else plain)
        if v.operands:
            grammar["do"] = {ACTION: (ITEM,) * v.operands}
        grammar["if"] = {PROGRAM: (CONDITION, ACTION)}
        return grammar

    @cached_property
    def operators(self) -> tuple[str, ...]:
        """The names of operators, in the order of their codes."""
        return tuple(self._grammar)

    @cached_property
    def _operands(self) -> np.ndarray:
        """Types of operands: i32 [types, operators, 2]."""
        table = np.full((UNUSED + 1, len(self._grammar), 2), UNUSED, np.int32)
        for code, types in enumerate(self._grammar.values()):
            for result, operands in types.items():
                table[result, code, : len(operands)] = operands
        return table

    @cached_property
    def _log_probability(self) -> np.ndarray:
        """Log-probability of each operator at each level, given the type of the node: f [levels, types, operators]."""
        needs = dict.fromkeys(range(UNUSED), self.depth + 1)  # levels that an expression of each type needs at least
        for _ in range(self.depth):
            for types in self._grammar.values():
                for result, operands in types.items():
                    needs[result] = min(needs[result], 1 + max((needs[o] for o in operands), default=0))
        probability = np.zeros((self.depth, UNUSED + 1, len(self._grammar)))
        probability[:, UNUSED, 0] = 1
        for level in range(self.depth):
            for result in range(UNUSED):
                rules = [(code, t[result]) for code, t in enumerate(self._grammar.values()) if result in t]
                leaves = [code for code, operands in rules if not operands]
                inner = [code for code, o in rules if o and max(needs[each] for each in o) < self.depth - level]
                share = 0.0 if not leaves else self._share(level, result) if inner else 1.0
                # Sensors and constants have equal shares, so that comparisons with a constant are frequent.
                sensors = len(self.vocabulary.numbers) if result == NUMBER else 0
                kinds = [part for part in (leaves[:sensors], leaves[sensors:]) if part]
                for part in kinds:
                    probability[level, result, part] = share / len(kinds) / len(part)
                probability[level, result, inner] = (1 - share) / max(len(inner), 1)
        with np.errstate(divide="ignore"):
            return np.log(probability)

    def _share(self, level: int, result: int) -> float:
        """Probability of a leaf. ``true`` makes an agent bid everywhere, and is useless below the condition's root."""
        if result == CONDITION:
            return 0.2 if level == 1 else 0.02
        return self.leaf

    def _level(self, level: int) -> slice:
        return slice(2**level - 1, 2 ** (level + 1) - 1)

    def _grow(self, key: Array, nodes: Int32[Array, " nodes"], fresh: Bool[Array, " nodes"]) -> Int32[Array, " nodes"]:
        """Draw the ``fresh`` nodes again, from the root downwards, so that types are kept."""
        log_probability, operands = jnp.asarray(self._log_probability, real()), jnp.asarray(self._operands)
        noise = jax.random.gumbel(key, (self.size, len(self._grammar)), real())
        types, levels = jnp.array([PROGRAM]), []
        for level in range(self.depth):
            at = self._level(level)
            drawn = jnp.argmax(log_probability[level, types] + noise[at], -1).astype(jnp.int32)
            levels.append(jnp.where(types == UNUSED, 0, jnp.where(fresh[at], drawn, nodes[at])))
            types = operands[types, levels[-1]].reshape(-1)
        return jnp.concatenate(levels)

    def types(self, nodes: Int32[Array, " nodes"]) -> Int32[Array, " nodes"]:
        """The type of every node, ``UNUSED`` where the tree has none."""
        operands, types = jnp.asarray(self._operands), [jnp.array([PROGRAM])]
        for level in range(self.depth - 1):
            types.append(operands[types[-1], nodes[self._level(level)]].reshape(-1))
        return jnp.concatenate(types)

    def init(self, key: Array, obs: Float[Array, " n"]) -> PyTree:
        """The first of ``draws`` random expressions that bids for ``obs``, the first one if none does."""
        key_nodes, key_price = jax.random.split(key)
        return Expression(self._draw(key_nodes, obs), self.highest * jax.random.uniform(key_price, (), real()))

    def _draw(self, key: Array, obs: Float[Array, " n"]) -> Int32[Array, " nodes"]:
        empty, fresh = jnp.zeros(self.size, jnp.int32), jnp.ones(self.size, bool)
        drawn = jax.vmap(self._grow, (0, None, None))(jax.random.split(key, self.draws), empty, fresh)
        bids, _ = jax.vmap(self.evaluate, (0, None))(drawn, obs)
        return drawn[jnp.argmax(bids)]

    @cached_property
    def _below(self) -> np.ndarray:
        """Whether each node is in the subtree of each node: bool [nodes, nodes]."""
        below = np.eye(self.size, dtype=bool)
        for node in range(1, self.size):
            below[:, node] |= below[:, (node - 1) // 2]
        return below

    def mutate(self, key: Array, agent: PyTree, mate: PyTree) -> PyTree:
        """Draw one subtree again, or take it from the mate; and change the price by about a tenth."""
        keys = jax.random.split(key, 4)
        nodes = self._vary(keys[:3], agent.nodes, mate.nodes)
        return Expression(nodes, agent.price * jnp.exp(0.1 * jax.random.normal(keys[3], (), real())))

    def _vary(self, keys: Array, nodes: Int32[Array, " n"], mates: Int32[Array, " n"]) -> Int32[Array, " n"]:
        """Draw one subtree again, or take it from the mate."""
        key_cross, key_where, key_grow = keys
        types = self.types(nodes)
        cross = jax.random.bernoulli(key_cross, self.crossover)
        possible = (types != UNUSED) & (~cross | (types == self.types(mates)))
        possible = possible.at[_ROOT].set(False)
        inside = jnp.asarray(self._below)[jax.random.categorical(key_where, jnp.where(possible, 0.0, -jnp.inf))]
        return jnp.where(cross, jnp.where(inside, mates, nodes), self._grow(key_grow, nodes, inside))

    @cached_property
    def _possible(self) -> tuple[frozenset[int], ...]:
        """The types that each node can have; `evaluate` leaves out what is impossible."""
        possible: list[set[int]] = [set() for _ in range(2 * self.size + 1)]
        possible[_ROOT] = {PROGRAM}
        for node in range(self.size // 2):
            for types in self._grammar.values():
                for result in possible[node] & types.keys():
                    for k, operand in enumerate(types[result]):
                        possible[2 * node + 1 + k].add(operand)
        return tuple(map(frozenset, possible))

    def evaluate(self, nodes: Int32[Array, " nodes"], obs: Float[Array, " n"]) -> tuple[Array, Array]:
        """Whether an expression bids, bool [], and its action i32 []; it does not bid for an action -1."""
        v = self.vocabulary
        items = max(len(v.items), 1)
        obs = obs.astype(real())
        features = obs[len(v.numbers) :].reshape(len(v.features), len(v.items))
        places = jnp.arange(len(v.items), dtype=real())
        actions = jnp.arange(0 if v.operands else v.actions, dtype=real())
        alone = jnp.concatenate([obs[: len(v.numbers)], jnp.asarray(self.constants, real())])
        after = jnp.concatenate([jnp.ones(1, real()), places, actions])
        # The value of each leaf for each item.
        leaves = [
            jnp.concatenate([alone, features[:, i] if v.items else jnp.zeros(0, real()), after]) for i in range(items)
        ]
        values: dict[int, list[Array]] = {}
        for node in reversed(range(1, self.size)):
            if not self._possible[node]:
                continue
            code = nodes[node]
            values[node] = [jnp.take(row, code, mode="clip") for row in leaves]
            a, b = values.get(2 * node + 1), values.get(2 * node + 2)
            for name in self._inner(node):
                chosen = code == self.operators.index(name)
                results = self._apply(name, a or [], b or [], features)
                values[node] = [jnp.where(chosen, new, old) for new, old in zip(results, values[node], strict=True)]
        if v.operands:
            where = tuple(values[node][0].astype(jnp.int32) for node in _OPERANDS[: v.operands])
            action = jnp.asarray(v.actions, jnp.int32)[where]
        else:
            action = values[_ACTION][0].astype(jnp.int32)
        return (values[_CONDITION][0] > 0) & (action >= 0), action

    def _inner(self, node: int) -> list[str]:
        """The operators with operands that a node can have."""
        if 2 * node + 1 >= self.size:
            return []
        return [
            name
            for name, types in self._grammar.items()
            if name != "do" and any(types[result] for result in self._possible[node] & types.keys())
        ]

    def _apply(self, name: str, a: list[Array], b: list[Array], features: Float[Array, "F S"]) -> list[Array]:
        """The result of an operator for every item of the loop around it."""
        items = len(a)
        if name in _LOOPS:
            return [_LOOPS[name][2](a)] * items
        if name in self.vocabulary.features:
            row = features[self.vocabulary.features.index(name)]
            return [_choose([item == i for i in range(items)], list(row)) for item in a]
        if name == "other":
            return [
                _choose([(x != i) & (y != i) for i in range(items)], range(items)) for x, y in zip(a, b, strict=True)
            ]
        if name == "not":
            return [1 - x for x in a]
        return [_PAIRS[name](x, y) for x, y in zip(a, b, strict=True)]

    def worth(self, agent: PyTree, obs: Float[Array, " n"]) -> Float[Array, ""]:
        """What the bid is a multiple of: 1 + ``progress``, at least 1; 1 by default."""
        if self.progress is None:
            return jnp.ones((), real())
        return 1 + jnp.maximum(obs[self.vocabulary.numbers.index(self.progress)], 0).astype(real())

    def bid(self, agent: PyTree, obs: Float[Array, " n"], budget: Float[Array, ""] | float) -> Float[Array, ""]:
        """The agent's price times the state's `worth`, if the condition holds."""
        return jnp.where(self.evaluate(agent.nodes, obs)[0], agent.price * self.worth(agent, obs), NO_BID)

    def act(self, agent: PyTree, obs: Float[Array, " n"]) -> Int32[Array, ""]:
        """The action; 0 where it does not exist, and the agent does not bid."""
        return jnp.maximum(self.evaluate(agent.nodes, obs)[1], 0)

    def cost(self, agent: PyTree) -> Float[Array, ""]:
        """Nodes of the expression."""
        return (self.types(agent.nodes) != UNUSED).sum(dtype=real())

    def show(self, agent: PyTree) -> str:
        """The expression as text; ``agent`` is one agent with NumPy leaves."""

        def text(node: int, result: int) -> str:
            name = self.operators[agent.nodes[node]]
            operands = self._grammar[name][result]
            parts = [text(2 * node + 1 + k, operand) for k, operand in enumerate(operands)]
            return f"({' '.join([name, *parts])})" if parts else name

        return text(_ROOT, PROGRAM)

    def parse(self, text: str, price: float = 1.0) -> Expression:
        """The agent whose `show` is ``text``.

        Raises:
            ValueError: the text is not an expression of this grammar, or too deep.
        """
        words = text.replace("(it)", "\0").replace("(", " ( ").replace(")", " ) ").replace("\0", "(it)").split()
        nodes = np.zeros(self.size, np.int32)

        def read(node: int, result: int) -> None:
            opens = words[:1] == ["("]
            word = "".join(words[opens : opens + 1])
            del words[: opens + 1]
            if result not in self._grammar.get(word, {}):
                raise ValueError(f"text: {word!r} is not possible there, got {short_repr(text)}; see Expressions")
            operands = self._grammar[word][result]
            if node >= self.size:
                raise ValueError(f"text: expected at most {self.depth} levels, got {short_repr(text)}; increase depth")
            nodes[node] = self.operators.index(word)
            for k, operand in enumerate(operands):
                read(2 * node + 1 + k, operand)
            if opens != bool(operands) or (opens and words[:1] != [")"]):
                raise ValueError(
                    f"text: expected {len(operands)} operands of {word!r} in brackets, got {short_repr(text)}"
                )
            del words[:opens]

        read(_ROOT, PROGRAM)
        if words:
            raise ValueError(f"text: expected one expression, got {short_repr(text)}")
        return Expression(jnp.asarray(nodes), jnp.asarray(price, real()))


class EstimatingExpression(struct.PyTreeNode):
    """An expression, and what it expects to earn."""

    nodes: Int32[Array, " nodes"]  # as in `Expression`
    weights: Float[Array, " F"]  # of the logarithm of the expected revenue
    count: Int32[Array, ""]  # revenues that it has learned from


@dataclasses.dataclass(frozen=True)
class EstimatingExpressions(Expressions):
    """Expressions that bid what they expect to earn, less a margin; how much depends on some of the sensors.

    An agent bids ``(1 - margin) · exp(w · f)`` where its condition holds, at most its budget. For every one of
    ``bid_sensors``, ``f`` has the number itself, from 0 to ``cap`` and divided by ``cap``, and whether it is 0; of the
    feature of an item, the smallest over the items. Sales at a margin make the value of a state fall geometrically with
    the number of sales until the reward, so that its logarithm is about linear in what is left to do. As numbers beyond
    ``cap`` do not matter, agents bid for larger instances as for the largest ones that they know.

    Agents learn from the revenue r of their purchases: ``w`` changes by *(n + 2)^-decay · (r - v) / v · f / |f|²*,
    where v = exp(w · f), the relative error is limited to [-1, 2], and n is the number of revenues before. A new agent
    expects ``prior`` everywhere, children too, so that it outbids others only after it has learned. It makes its first
    purchases where the market explores (`Terms.exploration`), and where it joins those of agents that do the same
    (`DeepMarket.joint_purchases`).

    ``highest`` and ``progress`` of `Expressions` do not matter, and `Terms.markup` should be None.

    Attributes:
        bid_sensors: numbers and features of the vocabulary.
        cap: the largest number that bids distinguish.
        margin: the share of the expected revenue that agents do not bid. It acts as a discount of 1 - margin per sale.
        prior: the revenue that a new agent expects, in the environment's reward units.
        decay: how fast the weight of new revenues falls, in [0, 1]; with 0 only recent ones matter, with 1 all of them.
        public: whether agents also learn from the revenues of others: of purchases of the states that they bid for, if
            the buyer did what they would have done.
    """

    bid_sensors: tuple[str, ...] = ()
    cap: float = 2.0
    margin: float = 0.1
    prior: float = 0.1
    decay: float = 0.5
    public: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        v = self.vocabulary
        if not isinstance(self.bid_sensors, tuple) or not {*v.numbers, *v.features}.issuperset(self.bid_sensors):
            known = ", ".join((*v.numbers, *v.features))
            raise ValueError(f"bid_sensors: expected a tuple of some of {known}, got {short_repr(self.bid_sensors)}")
        for field in ("margin", "decay"):
            object.__setattr__(self, field, check_float(field, getattr(self, field), 0, 1))
        for field in ("cap", "prior"):
            object.__setattr__(self, field, check_float(field, getattr(self, field), 1e-6))
        check_bool("public", self.public)

    def inputs(self, obs: Float[Array, "*rows n"]) -> Float[Array, "*rows F"]:
        """What bids depend on, f."""
        v, obs = self.vocabulary, obs.astype(real())
        values = dict(zip(v.numbers, jnp.moveaxis(obs, -1, 0), strict=False))
        for k, name in enumerate(v.features):
            first = len(v.numbers) + k * len(v.items)
            values[name] = obs[..., first : first + len(v.items)].min(-1)
        seen = [values[name] for name in self.bid_sensors]
        of_each = [jnp.clip(x, 0, self.cap) / self.cap for x in seen] + [(x == 0).astype(real()) for x in seen]
        return jnp.stack([jnp.ones(obs.shape[:-1], real()), *of_each], -1)

    def _new(self, nodes: Int32[Array, " nodes"]) -> EstimatingExpression:
        weights = jnp.zeros(1 + 2 * len(self.bid_sensors), real()).at[0].set(jnp.log(self.prior))
        return EstimatingExpression(nodes, weights, jnp.zeros((), jnp.int32))

    def init(self, key: Array, obs: Float[Array, " n"]) -> EstimatingExpression:
        """The first of ``draws`` random expressions that bids for ``obs``, with the prior."""
        return self._new(self._draw(key, obs))

    def mutate(self, key: Array, agent: PyTree, mate: PyTree) -> EstimatingExpression:
        """Draw one subtree again, or take it from the mate; the child has the prior."""
        return self._new(self._vary(jax.random.split(key, 3), agent.nodes, mate.nodes))

    def bid(self, agent: PyTree, obs: Float[Array, " n"], budget: Float[Array, ""] | float) -> Float[Array, ""]:
        """The expected revenue less the margin, if the condition holds."""
        bid = (1 - self.margin) * jnp.exp(self.inputs(obs) @ agent.weights)
        return jnp.where(self.evaluate(agent.nodes, obs)[0], jnp.minimum(bid, budget), NO_BID)

    def learn(self, agents: EstimatingExpression, purchases: "Purchases") -> EstimatingExpression:
        """The agents [N] after the revenues of a round, one after the other in the order of the steps."""
        revenue = (purchases.income + purchases.proceeds).reshape(-1)
        obs = purchases.obs.reshape(len(revenue), -1)
        intended = None
        if self.public:
            intended = jax.lax.map(lambda obs: jax.vmap(self.act, (0, None))(agents, obs), obs)
            intended = intended.reshape(*purchases.price.shape, -1)
        learns = taught(purchases, intended)

        def one(agents: EstimatingExpression, row: tuple[Array, Array, Array]) -> tuple[EstimatingExpression, None]:
            f, revenue, learns = row
            expected = jnp.exp(agents.weights @ f)
            error = jnp.clip((revenue - expected) / (expected + _LEAST * self.prior), -1, 2)
            rate = learns * (agents.count + 2.0) ** -self.decay
            change = (rate * error)[:, None] * f / (f @ f)
            return agents.replace(weights=agents.weights + change, count=agents.count + learns), None

        return jax.lax.scan(one, agents, (self.inputs(obs), revenue, learns))[0]

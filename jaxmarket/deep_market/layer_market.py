"""Markets of layers: the layers of a network as agents that live on what they sell (Sudhir and Tran-Thanh 2025, §3).

A network with one hidden layer classifies examples. Each layer has agents with their own parameters, and all share one
table of wealth. A *lot* is a batch of examples, which is sold twice:

inputs, owned by the auctioneer → hidden agents bid, the winner pays the auctioneer and computes activations → readout
agents see the activations and bid, the winner pays the hidden agent and predicts class probabilities → consumers pay it
the mean probability of the right class over the lot. Then the wealth tax, and after every few lots deaths and births.

**Bids.** With bids that do not depend on the state, such as Baum's fixed offers, a hidden agent would be paid the same
for good and bad features. A readout agent therefore bids its expected reward if its probabilities are correct, Σ p²,
times a rate; a hidden agent, which cannot distinguish inputs, bids its rate. The rate is one number per agent: a moving
average of the revenue relative to that expectation, less a margin. An overconfident agent learns to bid less or goes
bankrupt. A child starts with a slightly higher rate than its parent, so that it is tested immediately.

**Learning.** Parameters change by mutation only, or (``learning=True``) the winners of a lot also take a step of SGD,
each at its own learning rate, while the market selects the structure: activation, width and learning rate.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Bool, Float, Int, Int32

from jaxmarket import auctions
from jaxmarket.accounts import CashFlows
from jaxmarket.auctions import BUCKET_BRIGADE, Mechanism
from jaxmarket.deep_market.demographics import Population, Terms, random_population, turnover
from jaxmarket.deep_market.market import DeepMarketStep, MarketStatistics, RoundSummary, summarize
from jaxmarket.deep_market.representations import NO_BID
from jaxmarket.keys import key_for
from jaxmarket.switches import whole_program
from jaxmarket.types import NOBODY, Array, real

__all__ = [
    "ACTIVATIONS",
    "BACKPROPAGATION",
    "DEFAULT",
    "HIDDEN",
    "READOUT",
    "Examples",
    "Gradient",
    "LayerAgent",
    "LayerAgents",
    "LayerMarket",
    "LayerStructure",
    "LayerTraining",
    "LotSale",
    "SoldLot",
    "activations",
    "cross_entropy",
    "draw_lots",
    "equal_parts",
    "evaluate",
    "init",
    "logits",
    "rounds_like",
    "run",
    "sell_lot",
    "sgd",
    "step",
    "train_market",
    "train_network",
]

HIDDEN, READOUT = 0, 1
"""The layers, which also identify the state that each buys: inputs, activations."""

ACTIVATIONS = (("relu", jax.nn.relu), ("tanh", jnp.tanh), ("sine", jnp.sin), ("identity", lambda z: z))
"""Activation functions of hidden units, by name."""


class LayerStructure(struct.PyTreeNode):
    """The part of an agent that backpropagation does not change."""

    activation: Int32[Array, ""]  # index into ACTIVATIONS
    width: Int32[Array, ""]  # hidden units in use, the first ones
    rate: Float[Array, ""]  # learning rate


DEFAULT = (0, 16, 0.1)
"""A common first choice of structure: ReLU, 16 units, a learning rate of .1."""


class LayerAgent(struct.PyTreeNode):
    """The parameters of one layer and its rate. The fields of the other layer are not used."""

    layer: Int32[Array, ""]  # HIDDEN or READOUT
    hidden: Float[Array, "d+1 H"]  # the last row is the bias
    readout: Float[Array, "H+1 C"]
    structure: LayerStructure
    earns: Float[Array, ""]  # its rate: what it has earned per unit of what it expected


def _affine(x: Float[Array, "... i"], weights: Float[Array, "_ o"]) -> Float[Array, "... o"]:
    return x @ weights[:-1] + weights[-1]


def activations(
    hidden: Float[Array, "_ H"], structure: LayerStructure, x: Float[Array, "... d"]
) -> Float[Array, "... H"]:
    """The hidden layer, 0 beyond its width."""
    z = _affine(x, hidden)
    values = jnp.stack([activation(z) for _, activation in ACTIVATIONS])[structure.activation]
    return jnp.where(jnp.arange(z.shape[-1]) < structure.width, values, 0)


def logits(readout: Float[Array, "_ C"], h: Float[Array, "... H"]) -> Float[Array, "... C"]:
    """The readout layer."""
    return _affine(h, readout)


def cross_entropy(
    weights: tuple[Float[Array, "_ H"], Float[Array, "_ C"]],
    structure: LayerStructure,
    x: Float[Array, "n d"],
    labels: Int[Array, " n"],
) -> Float[Array, ""]:
    """The mean loss of a network with these weights on labelled examples."""
    logp = jax.nn.log_softmax(logits(weights[1], activations(weights[0], structure, x)))
    return -jnp.take_along_axis(logp, labels[:, None], 1).mean()


Gradient = Callable[..., tuple[Array, Array]]
"""``(weights, structure, x, labels) -> gradient by the weights``, of the loss of a network with one hidden layer."""
BACKPROPAGATION: Gradient = jax.grad(cross_entropy)
"""The gradient of `cross_entropy`."""


@dataclasses.dataclass(frozen=True)
class LayerAgents:
    """The representation of layer agents: initial parameters, expectations and mutations.

    Attributes:
        inputs, width, classes: d, H (the largest number of hidden units), C.
        structured: whether structures differ between agents; otherwise all have `DEFAULT`.
        noise: range of the standard deviation of a child's mutation, as a share of that of new weights; drawn
            log-uniformly for each child.
        optimism: the largest relative increase of a child's rate over its parent's.
    """

    inputs: int
    width: int
    classes: int
    structured: bool = False
    noise: tuple[float, float] = (0.1, 1.0)
    optimism: float = 0.05

    def draw(self, key: Array) -> LayerStructure:
        """A random structure: any activation, 4 to H units, a learning rate of .003 to 1."""
        if not self.structured:
            activation, width, rate = DEFAULT
            return LayerStructure(
                jnp.asarray(activation, jnp.int32), jnp.asarray(width, jnp.int32), jnp.asarray(rate, real())
            )
        keys = jax.random.split(key, 3)
        return LayerStructure(
            activation=jax.random.randint(keys[0], (), 0, len(ACTIVATIONS), jnp.int32),
            width=jax.random.randint(keys[1], (), 4, self.width + 1, jnp.int32),
            rate=jnp.exp(jax.random.uniform(keys[2], (), real(), np.log(0.003), 0.0)),
        )

    def _scales(self) -> tuple[float, float]:
        return float(np.sqrt(2 / self.inputs)), float(np.sqrt(1 / self.width))

    def parameters(self, key: Array) -> tuple[Float[Array, "_ H"], Float[Array, "_ C"]]:
        """New Gaussian weights and zero biases."""
        key_hidden, key_readout = jax.random.split(key)
        (first, second), d, h, c = self._scales(), self.inputs, self.width, self.classes
        hidden = jax.random.normal(key_hidden, (d + 1, h), real()).at[-1].set(0) * first
        return hidden, jax.random.normal(key_readout, (h + 1, c), real()).at[-1].set(0) * second

    def init(self, key: Array, obs: Array) -> LayerAgent:
        """A random agent of a random layer. A hidden agent expects the payment for guessing."""
        key_layer, key_structure, key_weights = jax.random.split(key, 3)
        hidden, readout = self.parameters(key_weights)
        guess = jnp.asarray(1 / self.classes, real())
        layer = jax.random.randint(key_layer, (), 0, 2, jnp.int32)
        # A readout agent with calibrated probabilities earns 1 per unit of what it expects.
        return LayerAgent(layer, hidden, readout, self.draw(key_structure), jnp.where(layer == READOUT, 1.0, guess))

    def expects(self, agent: LayerAgent, layer: int, state: Float[Array, "batch _"]) -> Float[Array, ""]:
        """The revenue that an agent of the layer initially expects for a lot.

        A readout agent expects its payment if its probabilities were right; a hidden agent expects 1 for any lot.
        """
        if layer == HIDDEN:
            return jnp.ones((), real())
        p = jax.nn.softmax(logits(agent.readout, state))
        return (p**2).sum(-1).mean()

    def mutate(self, key: Array, agent: LayerAgent, mate: LayerAgent) -> LayerAgent:
        """Noise on all weights, and sometimes another structure. The mate is not used."""
        keys = jax.random.split(key, 9)
        low, high = np.log(self.noise[0]), np.log(self.noise[1])
        size = jnp.exp(jax.random.uniform(keys[0], (), real(), low, high))
        first, second = self._scales()
        s = agent.structure
        if self.structured:
            other = jax.random.randint(keys[3], (), 0, len(ACTIVATIONS), jnp.int32)
            factor = jnp.exp(0.5 * jax.random.normal(keys[4], (), real()))
            wider = jnp.clip(jnp.round(s.width * factor), 4, self.width).astype(jnp.int32)
            s = LayerStructure(
                activation=jnp.where(jax.random.bernoulli(keys[5], 0.2), other, s.activation),
                width=jnp.where(jax.random.bernoulli(keys[6], 0.5), wider, s.width),
                rate=jnp.clip(s.rate * jnp.exp(0.5 * jax.random.normal(keys[7], (), real())), 1e-3, 3.0),
            )
        return LayerAgent(
            layer=agent.layer,
            hidden=agent.hidden + size * first * jax.random.normal(keys[1], agent.hidden.shape, real()),
            readout=agent.readout + size * second * jax.random.normal(keys[2], agent.readout.shape, real()),
            structure=s,
            earns=agent.earns * (1 + self.optimism * jax.random.uniform(keys[8], (), real())),
        )

    def cost(self, agent: LayerAgent) -> Float[Array, ""]:
        """1 for every agent."""
        return jnp.ones((), real())

    def bid(self, agent: LayerAgent, obs: Array, budget: Float[Array, ""] | float) -> Float[Array, ""]:
        """The bid of an agent for activations, as in `LayerMarket.bids`."""
        return jnp.minimum(agent.earns * self.expects(agent, READOUT, obs), budget)

    def act(self, agent: LayerAgent, obs: Float[Array, " H"]) -> Int32[Array, ""]:
        """The class that it predicts from activations."""
        return jnp.argmax(logits(agent.readout, obs), -1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class LayerMarket:
    """The static description of a market of layers.

    Attributes:
        representation: of its agents.
        capacity: N, slots for agents.
        batch: examples in a lot.
        learning: whether the winners of a lot take a step of SGD.
        margin: the share of its expectation that an agent does not bid.
        memory: the weight of the last lot in an agent's rate.
        mechanism: what winners pay and owners receive.
    """

    representation: LayerAgents
    capacity: int = 32
    batch: int = 64
    learning: bool = False
    margin: float = 0.1
    memory: float = 0.3
    mechanism: Mechanism = BUCKET_BRIGADE

    def bids(
        self, population: Population, layer: int, state: Float[Array, "batch _"]
    ) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        """Bids for a lot, `NO_BID` of dead agents and of the other layer, and expectations."""
        p = population
        expects = jax.vmap(lambda agent: self.representation.expects(agent, layer, state))(p.agents)
        bids = jnp.minimum((1 - self.margin) * p.agents.earns * expects, p.wealth)
        able = p.alive & (p.agents.layer == layer) & (bids > 0)
        return jnp.where(able, bids, NO_BID), expects


class LotSale(struct.PyTreeNode):
    """The sale of a lot to an agent of one layer."""

    winner: Int32[Array, ""]  # NOBODY without a bid, or where no activations are for sale
    agent: LayerAgent  # the winner
    price: Float[Array, ""]  # what it paid, 0 without a winner
    payout: Float[Array, ""]  # what the owner received, 0 without a winner
    expected: Float[Array, ""]  # what the winner expected, before its rate

    @property
    def sold(self) -> Bool[Array, ""]:
        """Whether there is a winner."""
        return self.winner >= 0


class SoldLot(struct.PyTreeNode):
    """Both sales of a lot, and the predictions."""

    hidden: LotSale
    readout: LotSale
    logp: Float[Array, "batch C"]  # log-probabilities; uniform where a layer has no buyer


def _auction(market: LayerMarket, population: Population, layer: int, state: Float[Array, "batch _"]) -> LotSale:
    bids, expects = market.bids(population, layer, state)
    outcome = auctions.clear(bids)
    winner, sold = jnp.maximum(outcome.winner, 0), outcome.winner >= 0
    return LotSale(
        winner=outcome.winner,
        agent=jax.tree.map(lambda leaf: leaf[winner], population.agents),
        price=jnp.where(sold, market.mechanism.price(outcome), 0),
        payout=jnp.where(sold, market.mechanism.payout(outcome), 0),
        expected=expects[winner],
    )


def sell_lot(market: LayerMarket, population: Population, x: Float[Array, "batch d"]) -> SoldLot:
    """Sell a lot to a hidden agent, and its activations to a readout agent."""
    first = _auction(market, population, HIDDEN, x)
    h = activations(first.agent.hidden, first.agent.structure, x)
    second = _auction(market, population, READOUT, h)
    second = second.replace(
        winner=jnp.where(first.sold, second.winner, NOBODY),
        price=jnp.where(first.sold, second.price, 0),
        payout=jnp.where(first.sold, second.payout, 0),
    )
    logp = jax.nn.log_softmax(logits(second.agent.readout, h))
    return SoldLot(first, second, jnp.where(second.sold, logp, -np.log(market.representation.classes)))


def evaluate(
    market: LayerMarket, population: Population, x: Float[Array, "n d"], labels: Int[Array, " n"]
) -> dict[str, Float[Array, ""]]:
    """Sell held-out examples as one lot in a frozen market: accuracy and payment."""
    logp = sell_lot(market, population, x).logp
    right = jnp.take_along_axis(logp, labels[:, None], 1)[:, 0]
    return {"accuracy": (logp.argmax(-1) == labels).mean(dtype=real()), "payment": jnp.exp(right).mean()}


def _learn(agents: LayerAgent, lot: SoldLot, x: Float[Array, "batch d"], labels: Int[Array, " batch"]) -> LayerAgent:
    """One step of SGD for the two winners, each at its own learning rate."""
    one, two = jnp.maximum(lot.hidden.winner, 0), jnp.maximum(lot.readout.winner, 0)
    rates, structure = agents.structure.rate, lot.hidden.agent.structure
    hidden, readout = jax.grad(cross_entropy)((agents.hidden[one], agents.readout[two]), structure, x, labels)
    return agents.replace(
        hidden=agents.hidden.at[one].add(jnp.where(lot.readout.sold, -rates[one] * hidden, 0)),
        readout=agents.readout.at[two].add(jnp.where(lot.readout.sold, -rates[two] * readout, 0)),
    )


def _update_rate(market: LayerMarket, agents: LayerAgent, sale: LotSale, revenue: Float[Array, ""]) -> LayerAgent:
    """Move the winner's rate towards its revenue per unit of expectation."""
    winner = jnp.maximum(sale.winner, 0)
    change = market.memory * (revenue / sale.expected - agents.earns[winner])
    return agents.replace(earns=agents.earns.at[winner].add(jnp.where(sale.sold, change, 0)))


def step(
    market: LayerMarket,
    terms: Terms,
    population: Population,
    time: Int32[Array, ""],
    x: Float[Array, "batch d"],
    labels: Int[Array, " batch"],
    informed: Any,
) -> tuple[Population, DeepMarketStep]:
    """Sell one lot with labels: the population afterwards, and what happened."""
    p = population
    lot = sell_lot(market, p, x)
    first, second = lot.hidden, lot.readout
    right = jnp.exp(jnp.take_along_axis(lot.logp, labels[:, None], 1)).mean()
    reward = jnp.where(second.sold, jnp.where(informed, right, 1 / market.representation.classes), 0)

    agents = _update_rate(market, p.agents, first, second.payout)
    agents = _update_rate(market, agents, second, reward)
    if market.learning:
        agents = _learn(agents, lot, x, labels)

    wealth = p.wealth.at[first.winner].add(jnp.where(first.sold, second.payout - first.price, 0))
    wealth = wealth.at[second.winner].add(jnp.where(second.sold, reward - second.price, 0))
    taxed = wealth if terms.wealth_tax is None else wealth - terms.wealth_tax * jnp.maximum(wealth, 0)
    flows = CashFlows.of(
        reward=reward,
        subsidy=first.payout - first.price + second.payout - second.price,
        auctioneer=-first.payout,
        wealth_tax=(taxed - wealth).sum(),
        transfers={"sales": first.price + second.price},
    )
    one = jnp.ones((), real())
    statistics = MarketStatistics(
        auctions=2 * one,
        unsold=2 * one - first.sold - second.sold,
        episodes=one,
        terminated=one,
        returns=reward,
        lengths=one,
        steps=one,
        nonfinite_deaths=0 * one,
    )
    slots = jnp.arange(market.capacity)
    wins = ((slots == first.winner) | (slots == second.winner)).astype(jnp.int32)
    population = p.replace(agents=agents, wealth=taxed, won=jnp.where(wins > 0, time + 1, p.won))
    return population, DeepMarketStep(flows, statistics, wins)


@functools.partial(whole_program, static_argnames=("market", "rounds", "period", "max_births"))
def run(
    market: LayerMarket,
    key: Array,
    population: Population,
    time: Int32[Array, ""],
    x: Float[Array, "n d"],
    labels: Int[Array, " n"],
    terms: Terms,
    *,
    rounds: int,
    period: int,
    max_births: int,
    informed: Bool[Array, ""] | bool = True,
) -> tuple[Population, Array, RoundSummary]:
    """Run rounds of ``period`` lots, each followed by deaths and births. Map it over seeds.

    Args:
        market: static.
        key: consumed.
        population: the population before.
        time: lots so far.
        x: examples from which lots are drawn with replacement.
        labels: the class of each.
        terms: the wealth tax, and the settings of `turnover`.
        rounds, period, max_births: static.
        informed: whether consumers pay the probability of the right label; otherwise 1/C (control).

    Returns:
        The population, the time, and the rounds with a leading axis [rounds].
    """

    def one_lot(
        carry: tuple[Population, Array, Array], rows: Array
    ) -> tuple[tuple[Population, Array, Array], tuple[CashFlows, MarketStatistics]]:
        population, time, wins = carry
        population, happened = step(market, terms, population, time, x[rows], labels[rows], informed)
        return (population, time + 1, wins + happened.wins), (happened.flows, happened.statistics)

    def one_round(carry: tuple[Population, Array], key: Array) -> tuple[tuple[Population, Array], RoundSummary]:
        key_lots, key_turnover = jax.random.split(key)
        lots = draw_lots(key_lots, period, market.batch, len(labels))
        start = (*carry, jnp.zeros(market.capacity, jnp.int32))
        (population, time, wins), history = jax.lax.scan(one_lot, start, lots)
        flows, statistics = jax.tree.map(lambda x: x.sum(0), history)
        observations = jnp.zeros((max_births, 1), real())  # not used by layer agents
        changes = turnover(market.representation, key_turnover, population, observations, time, terms, max_births)
        p, flows = changes.population, flows + changes.flows
        statistics = statistics.replace(nonfinite_deaths=changes.nonfinite_deaths)
        return (p, time), summarize(p, p.wealth.sum(), flows, statistics, changes.births, wins)

    (population, time), history = jax.lax.scan(one_round, (population, time), jax.random.split(key, rounds))
    return population, time, history


def rounds_like(market: LayerMarket, terms: Terms, *, rounds: int, max_births: int) -> RoundSummary:
    """The shapes and dtypes of the rounds that `run` returns, to restore saved ones by `training.arrays.unflatten`.

    Args:
        market: the static description.
        terms, rounds, max_births: as in `run`.
    """
    x, labels = jnp.zeros((1, market.representation.inputs), real()), jnp.zeros(1, jnp.int32)

    def lived(key: Array) -> RoundSummary:
        population, time = init(market, key, 1.0), jnp.int32(0)
        return run(market, key, population, time, x, labels, terms, rounds=rounds, period=1, max_births=max_births)[2]

    return jax.eval_shape(lived, jax.random.key(0))


def draw_lots(key: Array, count: int, batch: int, examples: int) -> Int32[Array, "count batch"]:
    """Rows of ``count`` random lots, drawn with replacement."""
    return jax.random.randint(key, (count, batch), 0, examples)


def init(market: LayerMarket, key: Array, wealth: float) -> Population:
    """Random agents in all slots with equal wealth. The first two are of different layers, so that both exist."""
    n = market.capacity
    p = random_population(market.representation, key, jnp.zeros((1, 1), real()), n, n, wealth)
    return p.replace(agents=p.agents.replace(layer=p.agents.layer.at[:2].set(jnp.arange(2))))


# --- training on all seeds, with measurements


def equal_parts(lots: int, count: int = 192, unit: int = 32) -> list[int]:
    """Equal numbers of lots between measurements, so that one compiled program serves them all.

    Args:
        lots: of the whole run, which the sum of the parts approximates.
        count: approximate number of measurements.
        unit: each part is a multiple of it, so that it has whole rounds of every period that divides it.
    """
    part = unit * max(1, round(lots / (count * unit)))
    return [part] * max(1, round(lots / part))


@functools.partial(whole_program, static_argnames=("lots", "batch", "gradient"))
def sgd(
    key: Array, weights: tuple[Array, Array], structure: LayerStructure, second: Array, x: Array, labels: Array,
    lots: int, batch: int, gradient: Gradient = BACKPROPAGATION,
) -> tuple[Array, Array]:  # fmt: skip
    """Train one network by SGD without momentum or weight decay on random lots.

    Args:
        key: draws the lots.
        weights: of the hidden layer f [d + 1, H] and of the readout f [H + 1, C].
        structure: of the hidden layer, with its learning rate.
        second: learning rate of the readout, f [].
        x: inputs f [n, d].
        labels: i32 [n].
        lots: number of lots; static.
        batch: examples per lot; static.
        gradient: of `cross_entropy`, with its arguments; static.

    Returns:
        The trained weights.
    """

    def step(weights: tuple[Array, Array], lot: Array) -> tuple[tuple[Array, Array], None]:
        hidden, readout = gradient(weights, structure, x[lot], labels[lot])
        return (weights[0] - structure.rate * hidden, weights[1] - second * readout), None

    return jax.lax.scan(step, weights, draw_lots(key, lots, batch, len(labels)))[0]


class Examples(NamedTuple):
    """Labelled examples for training, and others to measure accuracy."""

    x: Any  # f [n, d]
    labels: Any  # i [n]
    held_out: Any  # f [m, d]
    answers: Any  # i [m]


class LayerTraining(NamedTuple):
    """The course of `train_market` or `train_network` on all seeds, as NumPy arrays.

    Attributes:
        lots: cumulative number of lots at each measurement, i [M].
        accuracy: on held-out examples, f64 [M, seeds].
        structure: of the hidden layer that wins a lot in the end, or of the network, leaves [seeds].
        readout_rate: learning rate of the readout, f [seeds].
        residual: unexplained change of the money over money moved, f64 [seeds]; NaN without a market.
        rounds: of the market, leaves [seeds, rounds, ...]; None without one.
        population: its final population, leaves [seeds, ...]; None without a market.
    """

    lots: np.ndarray
    accuracy: np.ndarray
    structure: LayerStructure
    readout_rate: np.ndarray
    residual: np.ndarray
    rounds: RoundSummary | None = None
    population: Population | None = None


@functools.partial(whole_program, static_argnames=("market", "rounds", "period", "max_births"))
def _run_all(
    market: LayerMarket, keys: Array, populations: Population, times: Array, x: Array, labels: Array, terms: Terms,
    informed: Array | bool, *, rounds: int, period: int, max_births: int,
) -> tuple[Population, Array, RoundSummary]:  # fmt: skip
    """`run` for all seeds: leaves [seeds, ...]."""

    def one(key: Array, population: Population, time: Array) -> tuple[Population, Array, RoundSummary]:
        return run(
            market, key, population, time, x, labels, terms,
            rounds=rounds, period=period, max_births=max_births, informed=informed,
        )  # fmt: skip

    return jax.vmap(one)(keys, populations, times)


@functools.partial(whole_program, static_argnames=("lots", "batch", "gradient"))
def _sgd_all(
    keys: Array, weights: tuple[Array, Array], structures: LayerStructure, seconds: Array, x: Array, labels: Array,
    *, lots: int, batch: int, gradient: Gradient,
) -> tuple[Array, Array]:  # fmt: skip
    """`sgd` for all seeds: leaves [seeds, ...]."""
    train = functools.partial(sgd, x=x, labels=labels, lots=lots, batch=batch, gradient=gradient)
    return jax.vmap(train)(keys, weights, structures, seconds)


def train_market(
    market: LayerMarket,
    terms: Terms,
    key: Array,
    examples: Examples,
    *,
    seeds: int,
    parts: Sequence[int],
    period: int,
    max_births: int,
    wealth: float = 1.0,
    informed: bool = True,
) -> LayerTraining:
    """Run markets of layers on all seeds, and measure the frozen populations after each part.

    Args:
        market: the static description.
        terms: as in `run`.
        key: consumed.
        examples: the data.
        seeds: number of independent markets.
        parts: lots between measurements, multiples of ``period``; each number compiles once.
        period: lots between turnovers.
        max_births: as in `run`.
        wealth: initial wealth of each agent.
        informed: as in `run`.
    """
    x, labels, held_out, answers = map(jnp.asarray, examples)
    terms = jax.tree.map(jnp.asarray, terms)
    start, go = jax.random.split(key)
    population = jax.vmap(lambda key: init(market, key, wealth))(jax.random.split(start, seeds))
    opened, time = np.asarray(population.wealth, np.float64).sum(1), jnp.zeros(seeds, jnp.int32)

    @jax.jit
    @jax.vmap
    def ask(p: Population) -> tuple[Array, SoldLot]:
        return evaluate(market, p, held_out, answers)["accuracy"], sell_lot(market, p, x[:256])

    rows, accuracy, sold = [], [], None
    for part, key_part in zip(parts, jax.random.split(go, len(parts)), strict=True):
        population, time, lived = _run_all(
            market, jax.random.split(key_part, seeds), population, time, x, labels, terms, informed,
            rounds=part // period, period=period, max_births=max_births,
        )  # fmt: skip
        now, sold = ask(population)
        rows.append(jax.device_get(lived))
        accuracy.append(np.asarray(now, np.float64))
    assert sold is not None
    rounds = jax.tree.map(lambda *leaves: np.concatenate(leaves, 1), *rows)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), rounds)
    residual = [jax.tree.map(lambda leaf, s=s: leaf[s], wide).residual(opened[s]) for s in range(seeds)]
    structure, rate = jax.device_get((sold.hidden.agent.structure, sold.readout.agent.structure.rate))
    return LayerTraining(
        np.cumsum(parts), np.stack(accuracy), structure, rate, np.array(residual), rounds, jax.device_get(population)
    )


def train_network(
    representation: LayerAgents,
    key: Array,
    examples: Examples,
    *,
    seeds: int,
    parts: Sequence[int],
    batch: int,
    structure: LayerStructure | None = None,
    readout_rate: Any = None,
    gradient: Gradient = BACKPROPAGATION,
) -> LayerTraining:
    """Train one network per seed with `sgd`, and measure it after each part: a baseline without a market.

    Args:
        representation: draws the weights, and the structures that are not given.
        key: consumed; as in `train_market`, which then draws the same lots.
        examples: the data.
        seeds: number of networks.
        parts: lots between measurements; each number compiles once.
        batch: examples per lot.
        structure: of the hidden layers, leaves [seeds].
        readout_rate: learning rates of the readouts, f [seeds]; those of the hidden layers by default.
        gradient: as in `sgd`.
    """
    x, labels, held_out, answers = map(jnp.asarray, examples)
    start, go = jax.random.split(key)
    keys = jax.random.split(start, seeds)
    weights = jax.vmap(representation.parameters)(keys)
    if structure is None:
        hidden = jax.vmap(representation.draw)(jax.vmap(lambda key: key_for(key, "structure"))(keys))
    else:
        hidden = jax.tree.map(jnp.asarray, structure)
    rate = hidden.rate if readout_rate is None else jnp.asarray(readout_rate)

    def right(weights: tuple[Array, Array], structure: LayerStructure) -> Array:
        return (logits(weights[1], activations(weights[0], structure, held_out)).argmax(-1) == answers).mean()

    ask, accuracy = jax.jit(jax.vmap(right)), []
    for part, key_part in zip(parts, jax.random.split(go, len(parts)), strict=True):
        keys = jax.random.split(key_part, seeds)
        weights = _sgd_all(keys, weights, hidden, rate, x, labels, lots=part, batch=batch, gradient=gradient)
        accuracy.append(np.asarray(ask(weights, hidden), np.float64))
    hidden, rate = jax.device_get((hidden, rate))
    return LayerTraining(np.cumsum(parts), np.stack(accuracy), hidden, rate, np.full(seeds, np.nan))

"""Training by capitalism (Sudhir and Tran-Thanh 2025, section 3): layers of a network that live on what they sell.

A network of one hidden layer reads handwritten digits. For each layer there is a population of agents, every one with
parameters of its own, all in one table of wealth. A *lot* is a batch of examples; it is sold twice:

images, owned by the house → hidden agents bid, the winner pays the house and computes activations → readout agents see
these and bid, the winner pays the hidden agent and names probabilities → consumers pay it the probability of the right
label, on average over the lot: 1 - loss. Then charges, and every few lots deaths and births (`population.turnover`).

**What agents bid.** A bid that does not depend on what is for sale, as Baum's fixed offers, would pay a hidden agent
the same for good features and bad ones. A readout agent therefore bids what it would earn were its own probabilities
right, Σ p², times a rate; a hidden agent, to which all images are alike, bids its rate. The rate is one number per
agent, a running mean of what it in fact earned per unit of that expectation, less a margin: who is too sure of itself
learns to bid less, or goes bankrupt. A child starts with its parent's rate and a little more, so it is tried at once.

**Capitalism** is this and nothing else: parameters change by mutation only. **Hybrid**: who wins a lot also learns from
it by backpropagation, at its own learning rate, and the market decides over structure, which is inherited with
mutations: activation, width, learning rate. Rivals on the same data and as many examples: SGD of one fixed network, of
the structure the hybrid settled on, of random structures, and capitalism in which consumers pay whatever is delivered.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxmarket import auctions
from jaxmarket.auctions import BUCKET_BRIGADE, Mechanism
from jaxmarket.deep_market import DeepMarketFlows, Population, RoundSummary, Terms, random_population, turnover
from jaxmarket.deep_market.representations import NO_BID
from jaxmarket.environments.digits import load
from jaxmarket.experiments.report import ExperimentOptions, Report, ResultTable, Verdict, interquartile_mean
from jaxmarket.keys import key_for, key_of
from jaxmarket.metrics import gini
from jaxmarket.types import Array, real
from jaxmarket.view import plotting, tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "ACTIVATIONS",
    "DEFAULT",
    "HIDDEN",
    "READOUT",
    "Arm",
    "Finding",
    "LayerAgent",
    "LayerMarket",
    "Layers",
    "Structure",
    "arms",
    "digits",
    "evaluate",
    "init",
    "live",
    "measure",
    "run",
    "sell_lot",
    "sgd",
]

HIDDEN, READOUT = 0, 1
"""The layers, and the tags of the states that they buy: images, activations."""

ACTIVATIONS = (
    ("relu", jax.nn.relu),
    ("tanh", jnp.tanh),
    ("sine", jnp.sin),
    ("identity", lambda z: z),
)
"""By name: what a hidden unit may do."""


class Structure(struct.PyTreeNode):
    """What backpropagation does not decide."""

    activation: Array  # i32 [] index into ACTIVATIONS
    width: Array  # i32 [] hidden units in use, the first ones
    rate: Array  # f [] learning rate


DEFAULT = (0, 16, 0.1)
"""ReLU, 16 units, a learning rate of .1: a structure one would begin with."""


class LayerAgent(struct.PyTreeNode):
    """One layer's parameters, and what its owner needs to trade. Fields of the other layer are not used."""

    layer: Array  # i32 [] HIDDEN or READOUT
    hidden: Array  # f [d + 1, H], the last row is the bias
    readout: Array  # f [H + 1, C]
    structure: Structure
    earns: Array  # f [] what it has earned per unit of what it expected: its rate


def _affine(x: Array, weights: Array) -> Array:
    return x @ weights[:-1] + weights[-1]


def activations(hidden: Array, structure: Structure, x: Array) -> Array:
    """The hidden layer: f [..., d] -> f [..., H], 0 beyond its width."""
    z = _affine(x, hidden)
    values = jnp.stack([activation(z) for _, activation in ACTIVATIONS])[structure.activation]
    return jnp.where(jnp.arange(z.shape[-1]) < structure.width, values, 0)


def logits(readout: Array, h: Array) -> Array:
    """The readout: f [..., H] -> f [..., C]."""
    return _affine(h, readout)


@dataclasses.dataclass(frozen=True)
class Layers:
    """The representation of layer agents: how one is born, what it expects of a lot, and how its children differ.

    Attributes:
        inputs, width, classes: d, H (most hidden units), C.
        structured: whether structures differ between agents; else all have `DEFAULT`.
        noise: range of the standard deviation of a child's mutation, as a share of what new weights have; drawn
            log-uniformly for each child.
        optimism: by how much a child bids more than its parent, as a share.
    """

    inputs: int
    width: int
    classes: int
    structured: bool = False
    noise: tuple[float, float] = (0.1, 1.0)
    optimism: float = 0.05

    def draw(self, key: Array) -> Structure:
        """A structure at random: any activation, 4 units to H, a learning rate from .003 to 1."""
        if not self.structured:
            activation, width, rate = DEFAULT
            return Structure(
                jnp.asarray(activation, jnp.int32), jnp.asarray(width, jnp.int32), jnp.asarray(rate, real())
            )
        keys = jax.random.split(key, 3)
        return Structure(
            activation=jax.random.randint(keys[0], (), 0, len(ACTIVATIONS), jnp.int32),
            width=jax.random.randint(keys[1], (), 4, self.width + 1, jnp.int32),
            rate=jnp.exp(jax.random.uniform(keys[2], (), real(), np.log(0.003), 0.0)),
        )

    def _scales(self) -> tuple[float, float]:
        return float(np.sqrt(2 / self.inputs)), float(np.sqrt(1 / self.width))

    def parameters(self, key: Array) -> tuple[Array, Array]:
        """New weights, Gaussian, and biases 0: f [d + 1, H], f [H + 1, C]."""
        key_hidden, key_readout = jax.random.split(key)
        (first, second), d, h, c = self._scales(), self.inputs, self.width, self.classes
        hidden = jax.random.normal(key_hidden, (d + 1, h), real()).at[-1].set(0) * first
        return hidden, jax.random.normal(key_readout, (h + 1, c), real()).at[-1].set(0) * second

    def init(self, key: Array, obs: Array) -> LayerAgent:
        """A random agent for a random layer, which expects to do as well as guessing."""
        key_layer, key_structure, key_weights = jax.random.split(key, 3)
        hidden, readout = self.parameters(key_weights)
        guess = jnp.asarray(1 / self.classes, real())
        layer = jax.random.randint(key_layer, (), 0, 2, jnp.int32)
        # A readout earns 1 per unit of what it expects, as long as it knows what it knows.
        return LayerAgent(layer, hidden, readout, self.draw(key_structure), jnp.where(layer == READOUT, 1.0, guess))

    def expects(self, agent: LayerAgent, tag: int, state: Array) -> Array:
        """What the agent expects of a lot by itself, before experience: f [].

        A readout what it would be paid were its probabilities right; a hidden agent 1, whatever it sees.
        """
        if tag == HIDDEN:
            return jnp.ones((), real())
        p = jax.nn.softmax(logits(agent.readout, state))
        return (p**2).sum(-1).mean()

    def mutate(self, key: Array, agent: LayerAgent, mate: LayerAgent) -> LayerAgent:
        """Noise on all weights; at times another structure. The mate is not used."""
        keys = jax.random.split(key, 9)
        low, high = np.log(self.noise[0]), np.log(self.noise[1])
        size = jnp.exp(jax.random.uniform(keys[0], (), real(), low, high))
        first, second = self._scales()
        s = agent.structure
        if self.structured:
            other = jax.random.randint(keys[3], (), 0, len(ACTIVATIONS), jnp.int32)
            factor = jnp.exp(0.5 * jax.random.normal(keys[4], (), real()))
            wider = jnp.clip(jnp.round(s.width * factor), 4, self.width).astype(jnp.int32)
            s = Structure(
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

    def cost(self, agent: LayerAgent) -> Array:
        """1."""
        return jnp.ones((), real())

    def bid(self, agent: LayerAgent, obs: Array, budget: Array) -> Array:
        """As in `LayerMarket.bids`, for activations."""
        return jnp.minimum(agent.earns * self.expects(agent, READOUT, obs), budget)

    def act(self, agent: LayerAgent, obs: Array) -> Array:
        """The class it would name, given activations: i32 []."""
        return jnp.argmax(logits(agent.readout, obs), -1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class LayerMarket:
    """The static description of the economy.

    Attributes:
        representation: of its agents.
        capacity: N, places.
        batch: examples in a lot.
        learning: whether winners learn by backpropagation.
        margin: share of what it expects that an agent does not bid.
        memory: weight of the last lot in an agent's rate.
        mechanism: what winners pay and owners receive.
    """

    representation: Layers
    capacity: int = 32
    batch: int = 64
    learning: bool = False
    margin: float = 0.1
    memory: float = 0.3
    mechanism: Mechanism = BUCKET_BRIGADE

    def bids(self, population: Population, tag: int, state: Array) -> tuple[Array, Array]:
        """All bids for a lot f [N], `NO_BID` for dead agents and other layers, and what each agent expects."""
        p = population
        expects = jax.vmap(lambda agent: self.representation.expects(agent, tag, state))(p.agents)
        bids = jnp.minimum((1 - self.margin) * p.agents.earns * expects, p.wealth)
        able = p.alive & (p.agents.layer == tag) & (bids > 0)
        return jnp.where(able, bids, NO_BID), expects


class Sale(struct.PyTreeNode):
    """A lot sold to a layer."""

    winner: Array  # i32 [] NOBODY if nobody bid
    price: Array  # f [] what it paid
    payout: Array  # f [] what the owner received
    expected: Array  # f [] what the winner expected, before its rate


def _auction(market: LayerMarket, population: Population, tag: int, state: Array) -> tuple[Sale, LayerAgent]:
    bids, expects = market.bids(population, tag, state)
    outcome = auctions.clear(bids)
    who = jnp.maximum(outcome.winner, 0)
    sold = outcome.winner >= 0
    price, payout = market.mechanism.price(outcome), market.mechanism.payout(outcome)
    sale = Sale(outcome.winner, jnp.where(sold, price, 0), jnp.where(sold, payout, 0), expects[who])
    return sale, jax.tree.map(lambda leaf: leaf[who], population.agents)


def sell_lot(market: LayerMarket, population: Population, x: Array) -> tuple[Sale, Sale, LayerAgent, LayerAgent, Array]:
    """The two auctions of a lot f [batch, d], and what comes of them.

    Returns:
        Both sales, both winners, and log-probabilities f [batch, C]: those of guessing where a layer has no buyer.
    """
    first, maker = _auction(market, population, HIDDEN, x)
    h = activations(maker.hidden, maker.structure, x)
    second, reader = _auction(market, population, READOUT, h)
    logp = jax.nn.log_softmax(logits(reader.readout, h))
    delivered = (first.winner >= 0) & (second.winner >= 0)
    return first, second, maker, reader, jnp.where(delivered, logp, -np.log(market.representation.classes))


def evaluate(market: LayerMarket, population: Population, x: Array, labels: Array) -> dict[str, Array]:
    """A frozen market on held-out examples, sold as one lot: accuracy, mean probability of the label. f [] each."""
    logp = sell_lot(market, population, x)[-1]
    right = jnp.take_along_axis(logp, labels[:, None], 1)[:, 0]
    return {"accuracy": (logp.argmax(-1) == labels).mean(dtype=real()), "payment": jnp.exp(right).mean()}


def _learn(agents: LayerAgent, first: Sale, second: Sale, x: Array, labels: Array) -> LayerAgent:
    """One step of SGD for the two winners, each at its own learning rate."""
    one, two = jnp.maximum(first.winner, 0), jnp.maximum(second.winner, 0)
    structures = agents.structure
    maker = jax.tree.map(lambda leaf: leaf[one], structures)

    def loss(weights: tuple[Array, Array]) -> Array:
        return _cross_entropy(weights, maker, x, labels)

    hidden, readout = jax.grad(loss)((agents.hidden[one], agents.readout[two]))
    traded = (first.winner >= 0) & (second.winner >= 0)
    return agents.replace(
        hidden=agents.hidden.at[one].add(jnp.where(traded, -structures.rate[one] * hidden, 0)),
        readout=agents.readout.at[two].add(jnp.where(traded, -structures.rate[two] * readout, 0)),
    )


def _cross_entropy(weights: tuple[Array, Array], structure: Structure, x: Array, labels: Array) -> Array:
    logp = jax.nn.log_softmax(logits(weights[1], activations(weights[0], structure, x)))
    return -jnp.take_along_axis(logp, labels[:, None], 1).mean()


def _remember(market: LayerMarket, agents: LayerAgent, sale: Sale, revenue: Array) -> LayerAgent:
    """The winner's rate moves towards what the lot earned it."""
    who = jnp.maximum(sale.winner, 0)
    change = market.memory * (revenue / sale.expected - agents.earns[who])
    return agents.replace(earns=agents.earns.at[who].add(jnp.where(sale.winner >= 0, change, 0)))


def _step(
    market: LayerMarket, terms: Terms, population: Population, time: Array, x: Array, labels: Array, informed: Any
) -> Any:
    """One lot: the population after it, the books, wins i32 [N]."""
    p, places = population, market.capacity
    first, second, _, _, logp = sell_lot(market, p, x)
    sold, delivered = first.winner >= 0, (first.winner >= 0) & (second.winner >= 0)
    paid = jnp.exp(jnp.take_along_axis(logp, labels[:, None], 1)).mean()
    paid = jnp.where(informed, paid, 1 / market.representation.classes)
    # Activations nobody made are not for sale.
    reward = jnp.where(delivered, paid, 0)
    price, payout = jnp.where(sold, second.price, 0), jnp.where(sold, second.payout, 0)
    agents = _remember(market, p.agents, first, payout)
    agents = _remember(market, agents, second.replace(winner=jnp.where(sold, second.winner, -1)), reward)
    if market.learning:
        agents = _learn(agents, first, second, x, labels)
    accounts = p.wealth.at[first.winner].add(jnp.where(sold, payout - first.price, 0))
    accounts = accounts.at[second.winner].add(jnp.where(delivered, reward - price, 0))
    charge = terms.wealth_tax * jnp.maximum(accounts, 0) if terms.wealth_tax is not None else jnp.zeros_like(accounts)
    wealth = accounts - charge
    ids = jnp.arange(places)
    wins = ((ids == first.winner) | ((ids == second.winner) & delivered)).astype(jnp.int32)
    zero = jnp.zeros((), real())
    subsidy = jnp.where(sold, first.payout - first.price, 0) + payout - price
    books = DeepMarketFlows(
        reward=reward, subsidy=subsidy, income=zero, allowance=zero, house=first.payout, rent=zero,
        levy=(accounts - wealth).sum(), tax=zero, estate=zero, nonfinite=zero, sales=first.price + price,
        consumption=zero, auctions=zero + 2, unsold=2 - sold.astype(real()) - delivered, episodes=zero + 1,
        terminated=zero + 1, returns=reward, lengths=zero + 1,
    )  # fmt: skip
    population = p.replace(agents=agents, wealth=wealth, won=jnp.where(wins > 0, time + 1, p.won))
    return population, books, wins


@functools.partial(jax.jit, static_argnames=("market", "rounds", "period", "max_births"))
def live(
    market: LayerMarket,
    key: Array,
    population: Population,
    time: Array,
    x: Array,
    labels: Array,
    terms: Terms,
    rounds: int,
    period: int,
    max_births: int,
    informed: Array | bool = True,
) -> tuple[Population, Array, RoundSummary]:
    """Rounds of ``period`` lots, each followed by deaths and births. Map it over seeds.

    Args:
        market: static.
        key: used up.
        population: as it is.
        time: i32 [], lots so far.
        x: f [n, d], examples to draw lots from, with replacement. labels: i32 [n].
        terms: `levy` and those of `turnover`.
        rounds, period, max_births: static.
        informed: bool [], whether consumers pay for right answers; else 1/C for anything (control).

    Returns:
        The population, the time, and the rounds [rounds].
    """

    def one(carry: tuple[Population, Array], key: Array) -> tuple[tuple[Population, Array], RoundSummary]:
        key_lots, key_turnover = jax.random.split(key)
        chosen = _lots(key_lots, period, market.batch, len(labels))

        def body(
            carry: tuple[Population, Array, Array], lot: Array
        ) -> tuple[tuple[Population, Array, Array], DeepMarketFlows]:
            population, time, wins = carry
            population, books, won = _step(market, terms, population, time, x[lot], labels[lot], informed)
            return (population, time + 1, wins + won), books

        start = (*carry, jnp.zeros(market.capacity, jnp.int32))
        (population, time, wins), books = jax.lax.scan(body, start, chosen)
        books = jax.tree.map(lambda flow: flow.sum(0), books)
        nothing = jnp.zeros((max_births, 1), real())
        population, flows, births, _ = turnover(
            market.representation, key_turnover, population, nothing, time, terms, max_births
        )
        p = population
        owned = jnp.where(p.alive, p.wealth, jnp.nan)
        return (p, time), RoundSummary(
            books=books.replace(allowance=flows.allowance, estate=flows.estate, nonfinite=flows.nonfinite),
            money=p.wealth.sum(),
            num_agents=p.alive.sum(dtype=jnp.int32),
            births=births,
            gini=gini(p.wealth, p.alive),
            wealth=jnp.nanquantile(owned, jnp.linspace(0, 1, 5)),
            share=wins.max() / (books.auctions - books.unsold),
        )

    (population, time), rows = jax.lax.scan(one, (population, time), jax.random.split(key, rounds))
    return population, time, rows


def _lots(key: Array, count: int, batch: int, examples: int) -> Array:
    return jax.random.randint(key, (count, batch), 0, examples)


def init(market: LayerMarket, key: Array, wealth: float) -> Population:
    """Random agents for every place, equally rich; the first two are of different layers, so that both have one."""
    p = random_population(
        market.representation, key, jnp.zeros((1, 1), real()), market.capacity, market.capacity, wealth
    )
    return p.replace(agents=p.agents.replace(layer=p.agents.layer.at[:2].set(jnp.arange(2))))


@functools.partial(jax.jit, static_argnames=("lots", "batch"))
def sgd(
    key: Array, weights: tuple[Array, Array], structure: Structure, second: Array, x: Array, labels: Array,
    lots: int, batch: int,
) -> tuple[Array, Array]:  # fmt: skip
    """Plain SGD of one network, for a number of lots; no momentum, no decay.

    Args:
        key: draws the lots.
        weights: f [d + 1, H], f [H + 1, C].
        structure: of the hidden layer, with its learning rate. second: f [], the readout's.
        x: f [n, d]. labels: i32 [n].
        lots, batch: static.

    Returns:
        The weights.
    """

    def one(weights: tuple[Array, Array], lot: Array) -> tuple[tuple[Array, Array], None]:
        hidden, readout = jax.grad(_cross_entropy)(weights, structure, x[lot], labels[lot])
        return (weights[0] - structure.rate * hidden, weights[1] - second * readout), None

    return jax.lax.scan(one, weights, _lots(key, lots, batch, len(labels)))[0]


# --- what is run


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: for people.
        market: the economy; none for SGD.
        terms: of the economy, none for SGD.
        period, max_births: lots between turnovers, births in one.
        structure: of SGD: ``default``, ``random`` or ``make_population``.
        informed: whether consumers pay for right answers only.
    """

    name: str
    market: LayerMarket | None = None
    terms: Terms | None = None
    period: int = 8
    max_births: int = 2
    structure: str = "default"
    informed: bool = True


BATCH = 64
_WIDTH = 32
WEALTH = 1.0


def arms(inputs: int, classes: int = 10) -> list[Arm]:
    """All that is compared, in order: what the hybrid found comes after the hybrid."""
    fixed = Layers(inputs, _WIDTH, classes)
    free = dataclasses.replace(fixed, structured=True, noise=(0.005, 0.05))
    terms = Terms(
        wealth_tax=1e-3,
        endowment=WEALTH,
        child_endowment=WEALTH,
        inheritance=0.1,
        p_offspring=0.98,
        replace_poorest=True,
        bankruptcy=0.02,
    )
    capitalism = LayerMarket(fixed, batch=BATCH)
    return [
        Arm("capitalism", capitalism, terms),
        Arm("capitalism, paid for anything", capitalism, terms, informed=False),
        Arm("hybrid", LayerMarket(free, batch=BATCH, learning=True), terms, period=32),
        Arm("SGD", structure="default"),
        Arm("SGD, structure found", structure="found"),
        Arm("SGD, random structure", structure="random"),
    ]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What came of an arm. NumPy.

    Attributes:
        arm: what was run.
        lots: lots sold or learned from at each measurement, i [M].
        accuracy: on held-out digits, f64 [M, seeds].
        residual: of the money, unexplained over moved; NaN for SGD. f64 [seeds]
        rounds: of a market, leaves [seeds, rounds, ...], or none.
        structure: in the end, of what a market trades, or of SGD; leaves [seeds]; and the readout's learning rate.
        population: of a market in the end, leaves [seeds, ...], or none.
    """

    arm: Arm
    lots: np.ndarray
    accuracy: np.ndarray
    residual: np.ndarray
    rounds: RoundSummary | None
    structure: tuple[Structure, np.ndarray]
    population: Population | None = None


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """scikit-learn's digits, 8 × 8: images f [n, 64] and labels for training, the same held out."""
    data = load("small")
    x = data.images.reshape(len(data.images), -1)
    return x[: data.train], data.labels[: data.train], x[data.train :], data.labels[data.train :]


_MEASURED = 192
"""How often, at most; always after whole rounds of every arm."""


def _parts(lots: int, unit: int = 32) -> list[int]:
    """How many lots before each measurement: equal parts, so that nothing is compiled twice."""
    part = unit * max(1, round(lots / (_MEASURED * unit)))
    return [part] * max(1, round(lots / part))


def _residual(opened: np.ndarray, rounds: RoundSummary) -> np.ndarray:
    """Change of money that no flow names, over what moved, summed in float64: f [seeds]."""
    books = jax.tree.map(lambda flow: np.asarray(flow, np.float64).sum(1), rounds.books)
    held = np.asarray(rounds.money, np.float64)[:, -1]
    return np.abs(held - opened - books.net) / np.maximum(1, books.moved)


@functools.partial(jax.jit, static_argnames=("market", "rounds", "period", "max_births"))
def _live_all(
    market: LayerMarket, keys: Array, populations: Population, times: Array, x: Array, labels: Array, terms: Terms,
    informed: Array | bool, *, rounds: int, period: int, max_births: int,
) -> tuple[Population, Array, RoundSummary]:  # fmt: skip
    """`live` for all seeds: leaves [seeds, ...]."""

    def one(key: Array, population: Population, time: Array) -> tuple[Population, Array, RoundSummary]:
        return live(market, key, population, time, x, labels, terms, rounds, period, max_births, informed)

    return jax.vmap(one)(keys, populations, times)


@functools.partial(jax.jit, static_argnames=("lots", "batch"))
def _sgd_all(
    keys: Array, weights: tuple[Array, Array], structures: Structure, seconds: Array, x: Array, labels: Array,
    *, lots: int, batch: int,
) -> tuple[Array, Array]:  # fmt: skip
    """`sgd` for all seeds: leaves [seeds, ...]."""
    train = functools.partial(sgd, x=x, labels=labels, lots=lots, batch=batch)
    return jax.vmap(train)(keys, weights, structures, seconds)


def measure(arm: Arm, seeds: int, seed: int, lots: int, found: tuple[Structure, np.ndarray] | None = None) -> Finding:
    """Train an arm on digits, measure it on others.

    Args:
        arm: what to run.
        seeds: how many.
        seed: of all randomness; arms of a kind start from the same weights.
        lots: about how many, of `BATCH` examples each.
        found: for SGD of the structure ``make_population``, leaves [seeds].

    Raises:
        ValueError: ``make_population`` is missing.
    """
    x, labels, held, answers = map(jnp.asarray, digits())
    start, go = jax.random.split(key_of(seed))
    parts = _parts(lots)
    if arm.market is None or arm.terms is None:
        return _measure_sgd(arm, jax.random.split(start, seeds), go, parts, found, (x, labels, held, answers))
    market, terms = arm.market, jax.tree.map(jnp.asarray, arm.terms)
    population = jax.vmap(lambda key: init(market, key, WEALTH))(jax.random.split(start, seeds))
    opened, time = np.asarray(population.wealth, np.float64).sum(1), jnp.zeros(seeds, jnp.int32)
    ask = jax.jit(jax.vmap(lambda p: (evaluate(market, p, held, answers)["accuracy"], sell_lot(market, p, x[:256]))))
    rows, accuracy, sold = [], [], None
    for part, key in zip(parts, jax.random.split(go, len(parts)), strict=True):
        population, time, lived = _live_all(
            market, jax.random.split(key, seeds), population, time, x, labels, terms, arm.informed,
            rounds=part // arm.period, period=arm.period, max_births=arm.max_births,
        )  # fmt: skip
        now, sold = ask(population)
        rows.append(jax.device_get(lived))
        accuracy.append(np.asarray(now, np.float64))
    assert sold is not None
    rounds = jax.tree.map(lambda *leaves: np.concatenate(leaves, 1), *rows)
    maker, reader = sold[2], sold[3]
    return Finding(
        arm, np.cumsum(parts), np.stack(accuracy), _residual(opened, rounds), rounds,
        jax.device_get((maker.structure, reader.structure.rate)), jax.device_get(population),
    )  # fmt: skip


def _measure_sgd(arm: Arm, keys: Array, go: Array, parts: list[int], found: Any, data: tuple[Array, ...]) -> Finding:
    x, labels, held, answers = data
    representation = Layers(x.shape[1], _WIDTH, 10, structured=arm.structure == "random")
    weights = jax.vmap(representation.parameters)(keys)
    if arm.structure == "found":
        if found is None:
            raise ValueError(f"found: {arm.name} needs the structures that were found; run the hybrid first")
        structure, second = jax.tree.map(jnp.asarray, found)
    else:
        structure = jax.vmap(representation.draw)(jax.vmap(lambda key: key_for(key, "structure"))(keys))
        second = structure.rate

    def right(weights: tuple[Array, Array], structure: Structure) -> Array:
        return (logits(weights[1], activations(weights[0], structure, held)).argmax(-1) == answers).mean()

    ask, accuracy = jax.jit(jax.vmap(right)), []
    for part, key in zip(parts, jax.random.split(go, len(parts)), strict=True):
        split = jax.random.split(key, len(keys))
        weights = _sgd_all(split, weights, structure, second, x, labels, lots=part, batch=BATCH)
        accuracy.append(np.asarray(ask(weights, structure), np.float64))
    nothing = np.full(len(keys), np.nan)
    return Finding(arm, np.cumsum(parts), np.stack(accuracy), nothing, None, jax.device_get((structure, second)))


# --- what is reported


def _until(finding: Finding, level: float) -> np.ndarray:
    """Examples until a measurement first reaches the level: f [seeds], inf if none does."""
    reached = finding.accuracy >= level
    return np.where(reached.any(0), finding.lots[reached.argmax(0)] * BATCH, np.inf)


def _row(finding: Finding) -> dict[str, Any]:
    last, until = finding.accuracy[-1], _until(finding, 0.9)
    middle = float(np.quantile(until, 0.5, method="inverted_cdf"))
    return {
        "arm": finding.arm.name,
        "accuracy": interquartile_mean(last),
        "mean": float(last.mean()),
        "spread": float(last.std(ddof=1)) if len(last) > 1 else 0.0,
        "least": float(last.min()),
        "most": float(last.max()),
        "early": float(finding.accuracy[0].mean()),
        "examples to .9": round(middle) if np.isfinite(middle) else None,
        "residual": None if finding.rounds is None else float(finding.residual.max()),
    }


def _structures(findings: dict[str, Finding]) -> list[dict[str, Any]]:
    rows = []
    for name, finding in findings.items():
        structure, second = finding.structure
        for i in range(len(second)):
            rows.append(
                {
                    "arm": name,
                    "seed": i,
                    "activation": ACTIVATIONS[int(structure.activation[i])][0],
                    "width": int(structure.width[i]),
                    "rate": float(structure.rate[i]),
                    "readout rate": float(second[i]),
                    "accuracy": float(finding.accuracy[-1, i]),
                }
            )
    return rows


_NEAR = 0.9  # of SGD's accuracy


def _verdicts(findings: dict[str, Finding]) -> list[Verdict]:
    last = {name: finding.accuracy[-1] for name, finding in findings.items()}
    pure, control, hybrid = last["capitalism"], last["capitalism, paid for anything"], last["hybrid"]
    plain, found, random = last["SGD"], last["SGD, structure found"], last["SGD, random structure"]

    def against(one: np.ndarray, name: str, other: np.ndarray) -> str:
        return (
            f"{one.mean():.3f} against {other.mean():.3f} ({name}), better on {int((one > other).sum())} "
            f"and worse on {int((one < other).sum())} of {len(one)} seeds"
        )

    unexplained = np.max([f.residual.max() for f in findings.values() if f.rounds is not None])
    return [
        Verdict.of(
            "capitalism alone learns: better than where consumers pay for anything, on every seed",
            bool((pure > control).all()), (pure - control).mean(), against(pure, "paid for anything", control),
        ),
        Verdict.of(
            f"capitalism alone reaches {_NEAR:g} of SGD's accuracy",
            pure.mean() >= _NEAR * plain.mean(), pure.mean() / plain.mean(), against(pure, "SGD", plain),
        ),
        Verdict.of(
            "the hybrid is at least as good as SGD of the structure one would begin with",
            hybrid.mean() >= plain.mean(), (hybrid - plain).mean(), against(hybrid, "SGD", plain),
        ),
        Verdict.of(
            "SGD of the structure found beats SGD of random structures",
            found.mean() > random.mean(), (found - random).mean(), against(found, "random", random),
        ),
        Verdict.of(
            "SGD of the structure found beats SGD of the structure one would begin with",
            found.mean() > plain.mean(), (found - plain).mean(), against(found, "SGD", plain),
        ),
        Verdict.of(
            "every change of the money supply has a name", unexplained < 1e-5, unexplained,
            f"{unexplained:.1e} of the money that moved is unexplained, at most",
        ),
    ]  # fmt: skip


def draw_accuracy(ax: Any, findings: dict[str, Finding]) -> None:
    """Held-out accuracy against examples: every seed thin, means thick."""
    for i, (name, finding) in enumerate(findings.items()):
        examples = finding.lots * BATCH
        ax.plot(examples, finding.accuracy, color=f"C{i}", alpha=0.2, linewidth=0.7)
        ax.plot(examples, finding.accuracy.mean(1), color=f"C{i}", linewidth=2, label=name)
    ax.axhline(0.1, color="gray", linestyle=":", linewidth=1)
    ax.set(xscale="log", xlabel="examples", ylabel="right on held-out digits", ylim=(0, 1.02))
    ax.legend(frameon=False, fontsize=8)


def _figures(findings: dict[str, Finding]) -> "dict[str, Figure]":
    curves, (ax,) = plotting.figure(width=7.5, height=4.5)
    draw_accuracy(ax, findings)
    lives, axes = plotting.figure(3, 2, width=5.2, height=3.4)
    for row, name in enumerate(("capitalism", "hybrid")):
        rounds, market = findings[name].rounds, findings[name].arm.market
        assert rounds is not None and market is not None
        one = jax.tree.map(lambda leaf: leaf[0], rounds)
        plotting.draw_wealth(axes[3 * row], one)
        plotting.draw_money_supply(axes[3 * row + 1], one, market.capacity * WEALTH)
        plotting.draw_cash_flows(axes[3 * row + 2], one)
        axes[3 * row].set_title(f"{name}, seed 0")
    return {"capitalism": curves, "life": lives}


def run(options: ExperimentOptions) -> Report:
    """Train every arm and judge."""
    lots = 2048 if options.quick else 49152
    findings: dict[str, Finding] = {}
    chosen = arms(digits()[0].shape[1])
    with tables.progress("capitalism", unit="arms", shown=options.progress) as bar:
        for arm in chosen:
            found = findings["hybrid"].structure if "hybrid" in findings else None
            findings[arm.name] = measure(arm, options.seeds, options.seed, lots, found)
            bar(len(findings), len(chosen), f"{arm.name}: {findings[arm.name].accuracy[-1].mean():.3f}")
    examples = int(findings["SGD"].lots[-1]) * BATCH
    table = ResultTable(
        "capitalism",
        f"held-out accuracy after {examples:,} examples, {options.seeds} seeds",
        [_row(finding) for finding in findings.values()],
        "accuracy: mean of the middle half of the seeds · spread: standard deviation over seeds\n"
        "examples to .9: median over seeds · also written: mean, and early, "
        f"the mean after {int(findings['SGD'].lots[0]) * BATCH:,} examples\n"
        "paid for anything: consumers pay 1/10 whatever is delivered · structure found: by the hybrid of that seed",
        aside=("residual", "mean", "early"),
    )
    structures = ResultTable(
        "structures", "structures in the end, and how well they do", _structures(findings),
        "of markets: of who would win a lot", shown=False,
    )  # fmt: skip
    curves = ResultTable(
        "curves", "accuracy at every measurement",
        [
            {"arm": name, "examples": int(count) * BATCH, "accuracy": float(now.mean()), "spread": float(now.std())}
            for name, finding in findings.items()
            for count, now in zip(finding.lots, finding.accuracy, strict=True)
        ],
        shown=False,
    )  # fmt: skip
    settings = {
        "seeds": options.seeds,
        "quick": options.quick,
        "examples": examples,
        "batch": BATCH,
        "published": "the proposal only, no numbers (Sudhir and Tran-Thanh 2025)",
        "conservation_residual": float(np.max([f.residual.max() for f in findings.values() if f.rounds is not None])),
    }
    return Report(settings, [table, structures, curves], _verdicts(findings), _figures(findings))

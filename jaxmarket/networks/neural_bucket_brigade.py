"""Schmidhuber's neural bucket brigade (1989): learning in a network whose connection weights act as currency.

Units compete in winner-take-all subsets. Connection i → j carries c_ij(t) = x_i(t-1) w_ij(t-1), the weight of an active
unit's connection. In every subset the unit with the largest positive sum of these fires, a_j(t) = x_j(t) = 1; the
others are silent. Then, at every tick and for all connections simultaneously,

    Δw_ij(t) = - λ c_ij(t) a_j(t)                                      j fires: the connection pays its sender i
               + c_ij(t-1) / Σ_h c_hj(t-1) · Σ_k λ c_jk(t) a_k(t)      payments to j go to those that made it fire
               + η c_ij(t) [j is the right output, and fires]          reward

as in Holland's bucket brigade: what the connections out of a unit pay at a tick is received in the same tick by the
connections into it, in proportion to what they carried one tick earlier. The rule is local in space (each payment
passes one unit) and in time (it uses the previous tick only).

**Conservation.** For each unit, the second line pays out what the first line takes, provided that some connection
carried something into the unit: the fractions add up to one. A unit that fired did so because of a positive sum, so it
has such connections. Input units are set from outside and have none; the rule names no receiver for payments to them,
so these payments leave the network. This *dissipation* is the only loss:

    Δ Σ w = injected - dissipated
    injected   = η Σ c_ij over the connections into the right output, when it fires
    dissipated = λ Σ c_ij a_j over the connections out of units that nothing carried into: the inputs
    circulated = λ Σ c_ij a_j over all other connections: paid and received in the same tick

Resetting the activations between two presentations loses nothing, because no payment is pending between ticks. A
connection into an output can grow only by reward, unless outputs have outgoing connections.

Functions: `Network` (the connectivity), `init`, `tick`, `present` (a pattern, from rest), `respond` (without learning).
All are pure and unbatched; `train` presents the patterns of a task, such as `xor` or `light`, at random to the networks
of many seeds. Source: Schmidhuber, A local learning algorithm for dynamic feedforward and recurrent networks,
Connection Science 1(4):403-412 (1989), in its HTML edition (idsia.ch/~juergen/bucketbrigade, "The Neural Bucket
Brigade" and "Simple Experiments").
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Bool, Float, Int, Int32

from jaxmarket.switches import whole_program
from jaxmarket.types import Array, real

__all__ = [
    "NO_TARGET",
    "SILENT",
    "Network",
    "NetworkState",
    "Rates",
    "WeightFlows",
    "init",
    "light",
    "present",
    "respond",
    "rest",
    "tick",
    "train",
    "xor",
]

SILENT = -1
"""The output of a tick in which no output unit fires."""

NO_TARGET = -1
"""The target of a tick in which no output is rewarded."""


@dataclasses.dataclass(frozen=True)
class Network:
    """The units and connections of a network; static.

    Units are numbered group by group: the inputs first, the outputs last.

    Attributes:
        groups: number of units of each group. Group 0 are the inputs, set from outside; every other group is one
            winner-take-all subset; the last group are the outputs.
        links: pairs (from, to) of groups that are fully connected; a group may be connected to itself.

    Raises:
        ValueError: there are fewer than two groups, a group is empty, or a link refers to a group that does not exist
            or to the inputs as its target.
    """

    groups: tuple[int, ...]
    links: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if len(self.groups) < 2 or min(self.groups) < 1:
            raise ValueError(f"groups: expected at least two sizes >= 1 (inputs, subsets), got {self.groups}")
        for link in self.links:
            if not (0 <= link[0] < len(self.groups) and 1 <= link[1] < len(self.groups)):
                last = len(self.groups) - 1
                raise ValueError(f"links: expected pairs of a group 0 to {last} and a group 1 to {last}, got {link}")

    @property
    def units(self) -> int:
        """Number of units N."""
        return sum(self.groups)

    @property
    def inputs(self) -> int:
        """Number of inputs I."""
        return self.groups[0]

    @property
    def outputs(self) -> int:
        """Number of outputs O."""
        return self.groups[-1]

    @property
    def group(self) -> Int[np.ndarray, " N"]:
        """The group of each unit."""
        return np.repeat(np.arange(len(self.groups)), self.groups)

    @property
    def connected(self) -> Bool[np.ndarray, "N N"]:
        """Whether there is a connection from the row's unit to the column's."""
        linked = np.zeros((len(self.groups), len(self.groups)), bool)
        for source, target in self.links:
            linked[source, target] = True
        return linked[self.group][:, self.group]


class Rates(struct.PyTreeNode):
    """The rates of payment and reward; traced."""

    payment: Float[Array, ""] | float = 0.005  # λ, fraction of its weight that a connection pays when its target fires
    reward: Float[Array, ""] | float = 0.005  # η, fraction of its weight received if the target is the right output


class NetworkState(struct.PyTreeNode):
    """The state of a network between two ticks."""

    weights: Float[Array, "N N"]  # w, from row to column; 0 where there is no connection
    active: Float[Array, " N"]  # x: the inputs as set, 1 for the winner of each subset, else 0
    carried: Float[Array, "N N"]  # c of the last tick


class WeightFlows(struct.PyTreeNode):
    """Amounts paid, in units of weight: the sum of all weights grows by injected - dissipated."""

    injected: Float[Array, ""]  # reward
    dissipated: Float[Array, ""]  # paid to units that nothing carried into: the inputs
    circulated: Float[Array, ""]  # paid to units that pass it on to their incoming connections


def init(
    network: Network, key: Array, low: Float[Array, ""] | float = 0.999, high: Float[Array, ""] | float = 1.001
) -> Float[Array, "N N"]:
    """Positive random weights, uniform between ``low`` and ``high`` on connections and 0 elsewhere.

    The defaults are the published range as reported by secondary sources.
    """
    weights = jax.random.uniform(key, (network.units, network.units), real(), low, high)
    return jnp.where(network.connected, weights, 0)


def rest(network: Network, weights: Float[Array, "N N"]) -> NetworkState:
    """The state with these weights in which no unit is active."""
    return NetworkState(weights, jnp.zeros(network.units, weights.dtype), jnp.zeros_like(weights))


def _fire(network: Network, net: Float[Array, " N"], inputs: Float[Array, " I"]) -> Float[Array, " N"]:
    """Activations: inputs as set; of each subset the largest positive net input, ties to the lowest index."""
    active, start = [inputs.astype(net.dtype)], network.inputs
    for size in network.groups[1:]:
        competing = net[start : start + size]
        winner = jnp.arange(size) == competing.argmax()
        active.append((winner & (competing > 0)).astype(net.dtype))
        start += size
    return jnp.concatenate(active)


def tick(
    network: Network, state: NetworkState, inputs: Float[Array, " I"], target: Int[Array, ""] | int, rates: Rates
) -> tuple[NetworkState, WeightFlows, Int32[Array, ""]]:
    """One tick: units fire, and connections pay, are paid and are rewarded.

    Args:
        network: static.
        state: before the tick.
        inputs: values of the input units; they affect other units one tick later.
        target: the right output at this tick, from 0; `NO_TARGET` for none.
        rates: rates of 0 leave the weights unchanged.

    Returns:
        The state after the tick, the amounts paid, and the output that fired, from 0, or `SILENT`.
    """
    carried = state.active[:, None] * state.weights
    active = _fire(network, carried.sum(0), inputs)
    paid = rates.payment * carried * active  # [i, j]: by connection i → j to unit i
    income = paid.sum(1)
    backing = state.carried.sum(0)
    backed = backing > 0
    share = jnp.where(backed, state.carried / jnp.where(backed, backing, 1), 0)
    outputs = active[-network.outputs :]
    right = jnp.zeros_like(active).at[-network.outputs :].set(outputs * (jnp.arange(network.outputs) == target))
    reward = rates.reward * carried * right
    flows = WeightFlows(
        injected=reward.sum(),
        dissipated=jnp.where(backed, 0, income).sum(),
        circulated=jnp.where(backed, income, 0).sum(),
    )
    weights = state.weights - paid + share * income + reward
    fired = jnp.where(outputs.any(), outputs.argmax(), SILENT).astype(jnp.int32)
    return NetworkState(weights, active, carried), flows, fired


def present(
    network: Network, weights: Float[Array, "N N"], inputs: Float[Array, "T I"], targets: Int[Array, " T"], rates: Rates
) -> tuple[Float[Array, "N N"], WeightFlows, Int32[Array, " T"]]:
    """One presentation, from rest: one tick for each row of inputs, with learning at each.

    Args:
        network: static.
        weights: before the presentation.
        inputs: values of the input units at each tick.
        targets: the right output at each tick; `NO_TARGET` if none is rewarded.
        rates: rates of payment and reward.

    Returns:
        The weights afterwards, the flows summed over ticks, and the output that fired at each tick.
    """

    def body(state: NetworkState, xs: tuple[Array, Array]) -> tuple[NetworkState, tuple[WeightFlows, Array]]:
        state, flows, fired = tick(network, state, *xs, rates)
        return state, (flows, fired)

    last, (flows, fired) = jax.lax.scan(body, rest(network, weights), (inputs, jnp.asarray(targets)))
    return last.weights, jax.tree.map(lambda flow: flow.sum(0), flows), fired


def respond(network: Network, weights: Float[Array, "N N"], inputs: Float[Array, "T I"]) -> Int32[Array, " T"]:
    """The output that fires at each tick without learning, or `SILENT`."""
    targets = jnp.full(inputs.shape[0], NO_TARGET)
    return present(network, weights, inputs, targets, Rates(0.0, 0.0))[2]


def xor(ticks: int) -> tuple[np.ndarray, np.ndarray]:
    """The four patterns f [4, T, 3] with a bias input last, and the correct output at every tick i [4, T]."""
    patterns = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]], np.float32)
    return np.repeat(patterns[:, None], ticks, 1), np.repeat([[0], [1], [1], [0]], ticks, 1)


def light(ticks: int, cells: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """A light that moves to the right and one that moves to the left f [2, T, cells + 1], with a bias input last.

    After ``cells`` ticks all cells are off. The correct output i [2, T] is the same at every tick.
    """
    patterns = np.zeros((2, ticks, cells + 1), np.float32)
    patterns[:, :, cells] = 1
    for t in range(cells):
        patterns[0, t, t] = patterns[1, t, cells - 1 - t] = 1
    return patterns, np.repeat([[0], [1]], ticks, 1)


@functools.partial(whole_program, static_argnames=("network", "chunks", "chunk", "last"))
def train(
    network: Network, chunks: int, chunk: int, last: int, patterns: Array, targets: Array, keys: Array, rates: Rates
) -> tuple[Array, Array, WeightFlows]:
    """Train networks on random patterns: whether all answers are correct after each presentation, weights and flows.

    Args:
        network: static.
        chunks: static; number of chunks.
        chunk: static; presentations of a chunk.
        last: static; number of final ticks during which the correct output must fire.
        patterns: f [P, T, I].
        targets: i [P, T].
        keys: of the seeds.
        rates: λ and η.

    Returns:
        bool [seeds, chunks · chunk]; weights f [seeds, chunks + 1, N, N] before and after every chunk; flows
        f [seeds, chunks], summed over each chunk.
    """

    def seed(key: Array) -> tuple[Array, Array, WeightFlows]:
        start, order = jax.random.split(key)
        weights = init(network, start)

        def learn(weights: Array, key: Array) -> tuple[Array, tuple[Array, WeightFlows]]:
            shown = jax.random.randint(key, (), 0, patterns.shape[0])
            weights, flows, _ = present(network, weights, patterns[shown], targets[shown], rates)
            answers = jax.vmap(functools.partial(respond, network, weights))(patterns)
            return weights, ((answers == targets)[:, -last:].all(), flows)

        def one_chunk(weights: Array, keys: Array) -> tuple[Array, tuple[Array, Array, WeightFlows]]:
            weights, (solved, flows) = jax.lax.scan(learn, weights, keys)
            return weights, (solved, weights, jax.tree.map(lambda flow: flow.sum(), flows))

        _, (solved, after, flows) = jax.lax.scan(one_chunk, weights, jax.random.split(order, (chunks, chunk)))
        return solved.reshape(-1), jnp.concatenate([weights[None], after]), flows

    return jax.vmap(seed)(keys)

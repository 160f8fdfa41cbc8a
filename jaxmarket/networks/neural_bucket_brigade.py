"""Schmidhuber's neural bucket brigade (1989): a market inside a network, in which weight is the money.

Units compete in winner-take-all subsets. Connection i → j carries c_ij(t) = x_i(t-1) w_ij(t-1), an active unit's
weight; in every subset the unit with the largest positive sum of these fires, a_j(t) = x_j(t) = 1, the others are
silent. Then, at every tick and for all connections at once,

    Δw_ij(t) = - λ c_ij(t) a_j(t)                                      j fires: the connection pays its sender i
               + c_ij(t-1) / Σ_h c_hj(t-1) · Σ_k λ c_jk(t) a_k(t)      what j is paid goes to who made it fire before
               + η c_ij(t) [j is the right output, and fires]          the reward

as Holland's rules pay those that set the stage for them: what the connections out of a unit pay at a tick is what
the connections into it, in proportion to what they carried a tick earlier, receive at that tick. Nothing travels
further than one unit, and nothing is remembered longer than one tick.

**What is conserved.** The second line pays out what the first takes, unit by unit, as long as some connection
carried something into the unit paid: the shares add up to one. A unit that fired was made to by a positive sum, so
it has such connections; input units are set from outside and have none. The rule prints no receiver for what they
are paid: it leaves the network. So it *dissipates*, and it is the only thing it loses:

    Δ Σ w = injected - dissipated
    injected   = η Σ c_ij over the connections into the right output, when it fires
    dissipated = λ Σ c_ij a_j over the connections out of units that nothing carried into: the inputs
    circulated = λ Σ c_ij a_j over all other connections: paid and received in the same tick

What a unit has coming when the activations are wiped, between two presentations, is nobody's: it is not yet paid,
so nothing is lost there either. A connection into an output can grow only by reward, unless outputs feed something:
outputs at the end of a network are paid by nobody.

The system: `Network` (what is connected), `init`, `tick`, `present` (a pattern from rest), `respond` (one without
learning). All are pure and unbatched. Sources: Schmidhuber, A local learning algorithm for dynamic feedforward and
recurrent networks, Connection Science 1(4):403-412 (1989), read as its HTML edition (idsia.ch/~juergen/bucketbrigade,
"The Neural Bucket Brigade" and "Simple Experiments").
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxmarket.types import Array, real

__all__ = ["NO_TARGET", "SILENT", "Flows", "Network", "Rates", "State", "init", "present", "respond", "rest", "tick"]

SILENT = -1
"""The output of a tick at which no output unit fired."""

NO_TARGET = -1
"""The target of a tick at which no output is right."""


@dataclasses.dataclass(frozen=True)
class Network:
    """Which units there are and what is connected; static.

    Units are numbered group by group: the inputs first, the outputs last.

    Attributes:
        groups: how many units each group has. Group 0 are the inputs, set from outside; every other group is one
            winner-take-all subset; the last are the outputs.
        links: pairs (from, to) of groups that are fully connected; a group may feed itself.

    Raises:
        ValueError: groups or links name no network.
    """

    groups: tuple[int, ...]
    links: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if len(self.groups) < 2 or min(self.groups) < 1:
            raise ValueError(f"groups: inputs and at least one subset, none of them empty; got {self.groups}")
        for link in self.links:
            if not (0 <= link[0] < len(self.groups) and 1 <= link[1] < len(self.groups)):
                raise ValueError(f"links: from any of {len(self.groups)} groups to any but the inputs, got {link}")

    @property
    def units(self) -> int:
        """N."""
        return sum(self.groups)

    @property
    def inputs(self) -> int:
        """I."""
        return self.groups[0]

    @property
    def outputs(self) -> int:
        """O."""
        return self.groups[-1]

    @property
    def group(self) -> np.ndarray:
        """Which group each unit is in: i [N]."""
        return np.repeat(np.arange(len(self.groups)), self.groups)

    @property
    def connected(self) -> np.ndarray:
        """Whether there is a connection from the row's unit to the column's: bool [N, N]."""
        linked = np.zeros((len(self.groups), len(self.groups)), bool)
        for source, target in self.links:
            linked[source, target] = True
        return linked[self.group][:, self.group]


class Rates(struct.PyTreeNode):
    """How much changes hands; traced."""

    payment: Array | float = 0.005  # f [] λ, the share of its weight a connection pays when it made a unit fire
    reward: Array | float = 0.005  # f [] η, the share of its weight it is given when that unit was the right output


class State(struct.PyTreeNode):
    """A network between two ticks."""

    weights: Array  # f [N, N] w, from row to column; 0 where there is no connection
    active: Array  # f [N] x: the inputs as they were set, 1 for the winner of each subset, else 0
    carried: Array  # f [N, N] c of the last tick


class Flows(struct.PyTreeNode):
    """The money that moved, in units of weight: the sum of all weights grows by injected - dissipated."""

    injected: Array  # f [] reward
    dissipated: Array  # f [] paid to units that nothing carried into: the inputs
    circulated: Array  # f [] paid to units that passed it on to their own incoming connections


def init(network: Network, key: Array, low: Array | float = 0.999, high: Array | float = 1.001) -> Array:
    """Positive random weights f [N, N], uniform between ``low`` and ``high`` where there is a connection.

    The defaults are the published range, as other readers of the paper report it.
    """
    weights = jax.random.uniform(key, (network.units, network.units), real(), low, high)
    return jnp.where(network.connected, weights, 0)


def rest(network: Network, weights: Array) -> State:
    """A network with these weights f [N, N] in which nothing is active."""
    return State(weights, jnp.zeros(network.units, weights.dtype), jnp.zeros_like(weights))


def _fire(network: Network, net: Array, inputs: Array) -> Array:
    """Activations f [N]: inputs as set; of each subset the largest positive net input wins, the first if equal."""
    active, start = [inputs.astype(net.dtype)], network.inputs
    for size in network.groups[1:]:
        rivals = net[start : start + size]
        winner = jnp.arange(size) == rivals.argmax()
        active.append((winner & (rivals > 0)).astype(net.dtype))
        start += size
    return jnp.concatenate(active)


def tick(
    network: Network, state: State, inputs: Array, target: Array | int, rates: Rates
) -> tuple[State, Flows, Array]:
    """Everybody fires by what is carried to it, then pays, is paid, and is rewarded.

    Args:
        network: static.
        state: before the tick.
        inputs: f [I], what the input units are set to; felt by others a tick later.
        target: i32 [], which output would be right now, from 0; `NO_TARGET` for none.
        rates: zero for both leaves the weights as they are.

    Returns:
        The state after it, what was paid, and which output fired: i32 [], from 0, or `SILENT`.
    """
    carried = state.active[:, None] * state.weights
    active = _fire(network, carried.sum(0), inputs)
    paid = rates.payment * carried * active  # [i, j]: by the connection i → j, to the unit i
    income = paid.sum(1)
    backing = state.carried.sum(0)
    backed = backing > 0
    share = jnp.where(backed, state.carried / jnp.where(backed, backing, 1), 0)
    outputs = active[-network.outputs :]
    right = jnp.zeros_like(active).at[-network.outputs :].set(outputs * (jnp.arange(network.outputs) == target))
    reward = rates.reward * carried * right
    flows = Flows(
        injected=reward.sum(),
        dissipated=jnp.where(backed, 0, income).sum(),
        circulated=jnp.where(backed, income, 0).sum(),
    )
    weights = state.weights - paid + share * income + reward
    fired = jnp.where(outputs.any(), outputs.argmax(), SILENT).astype(jnp.int32)
    return State(weights, active, carried), flows, fired


def present(
    network: Network, weights: Array, inputs: Array, targets: Array, rates: Rates
) -> tuple[Array, Flows, Array]:
    """One presentation, from rest: as many ticks as there are inputs, with learning at each.

    Args:
        network: static.
        weights: f [N, N].
        inputs: f [T, I], what the input units are set to at each tick.
        targets: i32 [T], which output would be right at each tick; `NO_TARGET` where none is rewarded.
        rates: how much is paid.

    Returns:
        The weights after it, the flows summed over its ticks, and which output fired at each: i32 [T].
    """

    def one(state: State, now: tuple[Array, Array]) -> tuple[State, tuple[Flows, Array]]:
        state, flows, fired = tick(network, state, *now, rates)
        return state, (flows, fired)

    last, (flows, fired) = jax.lax.scan(one, rest(network, weights), (inputs, jnp.asarray(targets)))
    return last.weights, jax.tree.map(lambda flow: flow.sum(0), flows), fired


def respond(network: Network, weights: Array, inputs: Array) -> Array:
    """What a network answers while nothing is paid: i32 [T], the output that fires at each tick, or `SILENT`."""
    silence = jnp.full(inputs.shape[0], NO_TARGET)
    return present(network, weights, inputs, silence, Rates(0.0, 0.0))[2]

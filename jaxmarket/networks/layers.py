"""Neural networks as markets (Sudhir and Tran-Thanh 2025, Theorem 3.1).

**Deep**: for f = f_n ∘ … ∘ f_1 with f_k(h) = ReLU(h W_k + b_k) there is a market whose forward pass is f. One agent per
layer owns that layer's parameters. The state is (k, h), tagged with how many layers are done; the agent of layer k
bids 1 exactly when the tag is k - 1, and bids are capped by wealth. Only these agents own anything, so they win
against any number of rivals without money, and buying the state from one another is all that they do.

**Wide**: the same pass as a market of edges. Every edge j → k carries a good, the activation of j; whoever wants
y values it at ``output_prices``. Each neuron quotes, from what it alone knows and from what its own buyers quote,

    price(j → k) = ReLU'(z_k) · W_jk · Σ_l price(k → l)

and what an input sells for is the gradient: backpropagation is the price system. Biases are endowments, goods that
somebody owns and sells to one neuron. Prices may be negative. Nobody makes a profit: every neuron pays for its inputs
and its bias what its own good sells for, so consumers pay exactly what the owners of inputs and biases receive.

    >>> weights = jnp.array([[1.0, -1.0], [2.0, 0.5]])
    >>> market = from_mlp({"params": {"Dense_0": {"kernel": weights}}}, decoys=5, key=jax.random.key(0))
    >>> market.forward(jnp.array([1.0, 1.0])).tolist()
    [3.0, 0.0]
    >>> market.prices(jnp.array([1.0, 1.0]), jnp.array([10.0, 10.0])).tolist()
    [10.0, 20.0]
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxmarket import auctions
from jaxmarket.types import Array, Outcome, PyTree, real
from jaxmarket.validation import check_int

__all__ = ["NetworkMarket", "Quotes", "from_mlp", "quote"]


class Quotes(struct.PyTreeNode):
    """What the neurons of a layer quote for a unit of each good they buy."""

    edges: Array  # f [..., in, out] of the good on the edge from the row's to the column's unit
    bias: Array  # f [..., out] of the bias


def quote(z: Array, weights: Array, offers: Array, rectified: Array | bool = True) -> tuple[Array, Array]:
    """What one neuron offers for its inputs and its bias: all that it needs to know are its own numbers.

    Args:
        z: f [], its input sum.
        weights: f [in], of its in-edges.
        offers: f [buyers], what each of its buyers quotes for what it makes.
        rectified: bool [], whether it makes ReLU(z), or z itself.

    Returns:
        Prices of the goods on its in-edges f [in], and of its bias f [].
    """
    worth = jnp.where((z > 0) | ~jnp.asarray(rectified), offers.sum(), 0)
    return weights * worth, worth


_layer_quotes = jax.vmap(quote, (0, 1, 0, None), (1, 0))
"""All neurons of a layer: z f [out], weights f [in, out], offers f [out, buyers] -> f [in, out], f [out]."""


class NetworkMarket(struct.PyTreeNode):
    """A network as a market: A agents, each with one layer's parameters. Built by `from_mlp`.

    Agents are numbered in any order. Their parameters are kept by layer, those of all agents of a layer in one array.
    Wealth is fixed: nothing here learns.
    """

    weights: tuple[Array, ...]  # of each layer f [its agents, in, out]
    biases: tuple[Array, ...]  # of each layer f [its agents, out]
    layer: Array  # i32 [A] which layer an agent can do, from 1
    place: Array  # i32 [A] where its parameters are among those of its layer
    wealth: Array  # f [A]
    linear_last: bool = struct.field(pytree_node=False, default=False)  # whether no ReLU follows the last layer

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the inputs, and of every layer."""
        return (self.weights[0].shape[1], *(w.shape[2] for w in self.weights))

    def sell(self, tag: Array | int) -> Outcome:
        """The auction of a state tagged ``tag`` i32 []: every agent of the next layer bids 1, or all that it has.

        Others are not eligible. Of equal bids the lowest id wins. A bid of 0 buys nothing: where nobody who may bid
        owns anything, the winner is ``NOBODY``, not somebody who has no money.
        """
        wanted = self.layer - 1 == tag
        bids = jnp.minimum(jnp.where(wanted, 1, 0).astype(self.wealth.dtype), self.wealth)
        return auctions.clear(bids, eligible=wanted & (bids > 0))

    def _bought(self) -> tuple[list[tuple[Array, Array, bool]], Array]:
        """Who buys the state at each tag and acts on it: weights f [in, out], bias f [out], whether a ReLU follows.

        And whether every one of the sales comes off: bool []. Bids depend on the tag alone, so the auctions of a pass
        are held side by side, once for all inputs.
        """
        winners = jax.vmap(self.sell)(jnp.arange(len(self.weights))).winner
        places = self.place[jnp.maximum(winners, 0)]
        last = len(self.weights) - 1
        acts = [
            (weights[places[k]], biases[places[k]], k < last or not self.linear_last)
            for k, (weights, biases) in enumerate(zip(self.weights, self.biases, strict=True))
        ]
        return acts, (winners >= 0).all()

    def forward(self, x: Array) -> Array:
        """The network's output, by as many auctions as it has layers: f [..., d] -> f [..., out].

        NaN where nobody can pay for one of them.

        Raises:
            ValueError: the inputs have another width.
        """
        h = self._checked("x", x, 0)
        acts, sold = self._bought()
        for weights, bias, rectified in acts:
            h = h @ weights + bias
            h = jax.nn.relu(h) if rectified else h
        return jnp.where(sold, h, jnp.nan)

    def edge_prices(self, x: Array, output_prices: Array) -> tuple[Quotes, ...]:
        """What every good of the network sells for, layer by layer, given what outputs sell for.

        The price of the good on an edge is the gradient of ``output_prices · y`` with respect to the activation as
        that edge carries it, that of a bias the gradient with respect to it. (The gradient with respect to W_jk, and
        hence learning, is x_j times the price of k's bias.)

        Args:
            x: f [..., d].
            output_prices: f [..., out], money per unit of output; broadcast against ``x``.

        Returns:
            For each layer ``Quotes`` of f [..., in, out] and f [..., out]; NaN where nobody can pay for a layer.

        Raises:
            ValueError: inputs or prices have another width, or do not broadcast.
        """
        x, output_prices = self._checked("x", x, 0), self._checked("output_prices", output_prices, -1)
        batch = jnp.broadcast_shapes(x.shape[:-1], output_prices.shape[:-1])
        ask = jnp.vectorize(_layer_quotes, signature="(o),(i,o),(o,b),()->(i,o),(o)")
        h, neurons = jnp.broadcast_to(x, (*batch, x.shape[-1])), []
        acts, sold = self._bought()
        for weights, bias, rectified in acts:
            z = h @ weights + bias
            neurons.append((z, weights, jnp.asarray(rectified)))
            h = jax.nn.relu(z)
        # From the last layer to the first. Of every output there is one buyer, a consumer.
        offers, quotes = output_prices[..., None], []
        for z, weights, rectified in reversed(neurons):
            quotes.append(Quotes(*ask(z, weights, offers, rectified)))
            offers = quotes[-1].edges
        return jax.tree.map(lambda price: jnp.where(sold, price, jnp.nan), tuple(reversed(quotes)))

    def prices(self, x: Array, output_prices: Array) -> Array:
        """What a unit of each input sells for, to all its buyers together: f [..., d], the gradient of the network.

        Args, errors: as in `edge_prices`.
        """
        return self.edge_prices(x, output_prices)[0].edges.sum(-1)

    def _checked(self, field: str, value: Array, end: int) -> Array:
        value = jnp.asarray(value, real())
        if value.ndim == 0 or value.shape[-1] != self.widths[end]:
            what = "input" if end == 0 else "output"
            raise ValueError(
                f"{field}: expected shape [..., {self.widths[end]}], one number per {what} unit, got {value.shape}"
            )
        return value


def from_mlp(
    variables: Mapping[str, Any], decoys: int = 0, key: Array | None = None, linear_last: bool = False
) -> NetworkMarket:
    """The market that is a given network of Flax's ``Dense`` layers, each followed by a ReLU.

    Layers are taken in the order of the numbers in their names (``Dense_10`` after ``Dense_2``), or, where no name has
    one, as they are listed. Mind that `jax.tree.map`, an optimizer's step and `jax.jit` sort names: list such layers
    anew, ``{"params": {name: params[name] for name in ("first", "second")}}``.

    Built on the host, outside of `jax.jit`.

    Args:
        variables: ``{"params": {name: {"kernel": f [in, out], "bias": f [out]}}}``; biases may be missing.
        decoys: rivals without money and with random parameters, dealt out to the layers in turn.
        key: draws their parameters and everybody's number; used up. Needed with decoys.
        linear_last: whether no ReLU follows the last layer.

    Returns:
        A `NetworkMarket` whose owners of the layers have a wealth of 1.

    Raises:
        ValueError: no layers, something other than dense layers, an order that cannot be told, widths that do not
            fit, a negative number of decoys, or decoys without a key.
    """
    decoys = check_int("decoys", decoys, 0)
    if decoys and key is None:
        raise ValueError(f"key: {decoys} decoys are drawn at random; pass key=jax.random.key(...)")
    layers = _layers(variables)
    rng = np.random.default_rng(0 if key is None else np.asarray(jax.random.key_data(key)).ravel())
    # The owners of the layers first, then rivals of each in turn: shapes do not depend on the key.
    layer = np.arange(len(layers) + decoys) % len(layers)
    weights, biases = [], []
    for k, (kernel, bias) in enumerate(layers):
        rivals = int((layer == k).sum()) - 1
        noise = rng.normal(size=(rivals, *kernel.shape)) / np.sqrt(kernel.shape[0])
        weights.append(jnp.asarray(np.concatenate([kernel[None], noise]).astype(real())))
        biases.append(jnp.asarray(np.concatenate([bias[None], rng.normal(size=(rivals, *bias.shape))]).astype(real())))
    place = np.arange(len(layer)) // len(layers)
    # In any order: a low number, which wins ties, must be nobody's privilege.
    order = rng.permutation(len(layer)) if decoys else np.arange(len(layer))
    return NetworkMarket(
        weights=tuple(weights),
        biases=tuple(biases),
        layer=jnp.asarray((layer[order] + 1).astype(np.int32)),
        place=jnp.asarray(place[order].astype(np.int32)),
        wealth=jnp.asarray((order < len(layers)).astype(real())),
        linear_last=bool(linear_last),
    )


def _layers(variables: Mapping[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernel f [in, out] and bias f [out] of each layer, in order."""
    params = variables.get("params") if isinstance(variables, Mapping) else None
    if not isinstance(params, Mapping) or not params:
        raise ValueError('variables: expected {"params": {layer: {"kernel": ..., "bias": ...}}}, as Flax\'s init gives')
    layers: list[tuple[np.ndarray, np.ndarray]] = []
    for name in _ordered(list(params)):
        kernel, bias = _dense(name, params[name])
        if layers and len(layers[-1][1]) != len(kernel):
            raise ValueError(
                f"variables: {name} takes {len(kernel)} inputs, but the layer before it has "
                f"{len(layers[-1][1])} units; the layers must be a chain, listed or numbered in its order"
            )
        layers.append((kernel, bias))
    return layers


def _dense(name: str, layer: PyTree) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(layer, Mapping) or "kernel" not in layer or set(layer) - {"kernel", "bias"}:
        held = sorted(layer) if isinstance(layer, Mapping) else type(layer).__name__
        raise ValueError(f"variables: {name} holds {held}; only Dense layers (kernel, and bias or not) can be traded")
    kernel = np.asarray(layer["kernel"])
    if kernel.ndim != 2 or 0 in kernel.shape:
        raise ValueError(f"variables: the kernel of {name} must be [in, out], got shape {kernel.shape}")
    bias = np.asarray(layer.get("bias", np.zeros(kernel.shape[1])))
    if bias.shape != kernel.shape[1:]:
        raise ValueError(f"variables: the bias of {name} must be {kernel.shape[1:]}, got shape {bias.shape}")
    return kernel, bias


def _ordered(names: list[str]) -> list[str]:
    """By number; as listed where there are none."""
    matches = [re.fullmatch(r"(\D*)(\d+)", name) for name in names]
    numbers = [int(match[2]) for match in matches if match]
    if not any(re.search(r"\d", name) for name in names):
        return names
    if len(numbers) < len(names) or len(set(numbers)) < len(names) or len({match[1] for match in matches if match}) > 1:
        raise ValueError(
            f"variables: the order of the layers {names} is not clear; name them alike and number them from first to "
            "last (Dense_0, Dense_1, ...), or give them names without digits in their order"
        )
    return [names[i] for i in sorted(range(len(names)), key=numbers.__getitem__)]

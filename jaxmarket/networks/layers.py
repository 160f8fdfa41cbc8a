"""Neural networks as markets (Sudhir and Tran-Thanh 2025, Theorem 3.1).

**Deep**: for f = f_n ∘ … ∘ f_1 with f_k(h) = ReLU(h W_k + b_k) there is a market whose forward pass is f. Each layer
has one agent, which holds the layer's parameters. The state is (k, h), where the tag k counts the layers applied so
far. The agent of layer k bids 1 if the tag is k - 1 and 0 otherwise, and bids are capped by wealth. Only these agents
have wealth, so they win against any number of agents without wealth (decoys).

**Wide**: the same pass as a market of edges. Every edge j → k carries a good, the activation of j; consumers of the
output y value it at ``output_prices``. Each neuron quotes, from its own numbers and the quotes of its buyers,

    price(j → k) = ReLU'(z_k) · W_jk · Σ_l price(k → l)

and the price of an input is the gradient: prices are computed by backpropagation. Biases are endowments, goods that
their owners sell to one neuron. Prices may be negative. Profits are zero: every neuron pays for its inputs and its bias
exactly the price of its own good, so consumers pay exactly what the owners of inputs and biases receive.

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
from jaxtyping import Bool, Float, Int, Int32

from jaxmarket import auctions
from jaxmarket.types import Array, Outcome, PyTree, real
from jaxmarket.validation import check_int, short_repr

__all__ = ["NetworkMarket", "Quotes", "from_mlp", "neuron_quote"]


class Quotes(struct.PyTreeNode):
    """Prices that the neurons of a layer quote for a unit of each good they buy."""

    edges: Float[Array, "... inputs outputs"]  # of the good on the edge from the row's to the column's unit
    bias: Float[Array, "... outputs"]  # of the bias


def neuron_quote(
    z: Float[Array, ""],
    weights: Float[Array, " inputs"],
    offers: Float[Array, " buyers"],
    rectified: Bool[Array, ""] | bool = True,
) -> tuple[Float[Array, " inputs"], Float[Array, ""]]:
    """The prices that one neuron offers for its inputs and its bias, from information local to the neuron.

    Args:
        z: its pre-activation.
        weights: of its incoming edges.
        offers: the quotes of its buyers for its output.
        rectified: whether its output is ReLU(z), or z itself.

    Returns:
        Prices of the goods on its incoming edges, and of its bias.
    """
    bias = jnp.where((z > 0) | ~jnp.asarray(rectified), offers.sum(), 0)
    return weights * bias, bias


_layer_quotes = jax.vmap(neuron_quote, (0, 1, 0, None), (1, 0))
"""All neurons of a layer: z f [out], weights f [in, out], offers f [out, buyers] -> f [in, out], f [out]."""


class NetworkMarket(struct.PyTreeNode):
    """A network as a market of A agents, each with one layer's parameters. Built by `from_mlp`.

    The order of agents is arbitrary. Parameters are stored by layer, those of all agents of a layer in one array.
    Wealth is fixed and there is no learning.
    """

    weights: tuple[Float[Array, "agents inputs outputs"], ...]  # of each layer
    biases: tuple[Float[Array, "agents outputs"], ...]  # of each layer
    layer: Int32[Array, " A"]  # the layer of each agent, from 1
    index: Int32[Array, " A"]  # index of its parameters among those of its layer
    wealth: Float[Array, " A"]
    linear_last: bool = struct.field(pytree_node=False, default=False)  # whether the last layer has no ReLU

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the input and of every layer."""
        return (self.weights[0].shape[1], *(w.shape[2] for w in self.weights))

    def sell(self, tag: Int[Array, ""] | int) -> Outcome:
        """The auction of a state with the tag: every agent of the next layer bids 1, or its wealth if less.

        Other agents, and bids of 0, are not eligible. Ties go to the lowest index. If no agent is eligible, the winner
        is `jaxmarket.types.NOBODY`.
        """
        next_layer = self.layer - 1 == tag
        bids = jnp.minimum(jnp.where(next_layer, 1, 0).astype(self.wealth.dtype), self.wealth)
        return auctions.clear(bids, eligible=next_layer & (bids > 0))

    def _winning_layers(self) -> tuple[list[tuple[Array, Array, bool]], Array]:
        """The layers of the winners: weights f [in, out], bias f [out] and whether a ReLU follows, for each tag.

        Also returns whether every auction had a winner: bool []. Bids depend on the tag alone, so the auctions of a
        pass are computed together, once for all inputs.
        """
        winners = jax.vmap(self.sell)(jnp.arange(len(self.weights))).winner
        rows = self.index[jnp.maximum(winners, 0)]
        last = len(self.weights) - 1
        layers = [
            (weights[rows[k]], biases[rows[k]], k < last or not self.linear_last)
            for k, (weights, biases) in enumerate(zip(self.weights, self.biases, strict=True))
        ]
        return layers, (winners >= 0).all()

    def forward(self, x: Array) -> Float[Array, "... outputs"]:
        """The network's output, computed by one auction per layer; ``x`` is f [..., d].

        NaN if an auction has no winner.

        Raises:
            ValueError: the width of the inputs does not match.
        """
        h = self._checked("x", x, 0)
        layers, sold = self._winning_layers()
        for weights, bias, rectified in layers:
            h = h @ weights + bias
            h = jax.nn.relu(h) if rectified else h
        return jnp.where(sold, h, jnp.nan)

    def edge_prices(self, x: Array, output_prices: Array) -> tuple[Quotes, ...]:
        """The price of every good of the network, layer by layer, given the prices of the outputs.

        The price of the good on an edge is the gradient of ``output_prices · y`` with respect to the activation on that
        edge, and the price of a bias is the gradient with respect to the bias. (The gradient with respect to W_jk is
        x_j times the price of the bias of k.)

        Args:
            x: f [..., d].
            output_prices: f [..., out], money per unit of output; broadcast against ``x``.

        Returns:
            For each layer ``Quotes`` of f [..., in, out] and f [..., out]; NaN if an auction has no winner.

        Raises:
            ValueError: the width of inputs or prices does not match, or they do not broadcast.
        """
        x, output_prices = self._checked("x", x, 0), self._checked("output_prices", output_prices, -1)
        batch = jnp.broadcast_shapes(x.shape[:-1], output_prices.shape[:-1])
        ask = jnp.vectorize(_layer_quotes, signature="(o),(i,o),(o,b),()->(i,o),(o)")
        h, neurons = jnp.broadcast_to(x, (*batch, x.shape[-1])), []
        layers, sold = self._winning_layers()
        for weights, bias, rectified in layers:
            z = h @ weights + bias
            neurons.append((z, weights, jnp.asarray(rectified)))
            h = jax.nn.relu(z)
        # From the last layer to the first. Every output has one buyer, a consumer.
        offers, quotes = output_prices[..., None], []
        for z, weights, rectified in reversed(neurons):
            quotes.append(Quotes(*ask(z, weights, offers, rectified)))
            offers = quotes[-1].edges
        return jax.tree.map(lambda price: jnp.where(sold, price, jnp.nan), tuple(reversed(quotes)))

    def prices(self, x: Array, output_prices: Array) -> Float[Array, "... d"]:
        """The price of a unit of each input, summed over its buyers: the gradient of the network.

        Arguments and errors are those of `edge_prices`.
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
    """The market of a network of Flax's ``Dense`` layers, each followed by a ReLU.

    Layers are ordered by the numbers in their names (``Dense_10`` after ``Dense_2``), or, if no name has a number, as
    listed. Note that `jax.tree.map`, an optimizer's step and `jax.jit` sort names: restore the order of such layers by
    ``{"params": {name: params[name] for name in ("first", "second")}}``.

    Runs on the host, outside of `jax.jit`.

    Args:
        variables: ``{"params": {name: {"kernel": f [in, out], "bias": f [out]}}}``; biases may be missing.
        decoys: number of agents without wealth and with random parameters, assigned to the layers in turn.
        key: for the decoys' parameters and the order of agents; consumed. Required with decoys.
        linear_last: whether the last layer has no ReLU.

    Returns:
        A `NetworkMarket` in which the agents of the network's layers have a wealth of 1.

    Raises:
        ValueError: there are no layers, a layer is not dense, the order of layers is ambiguous, widths do not match,
            ``decoys`` is negative, or ``key`` is missing.
    """
    decoys = check_int("decoys", decoys, 0)
    if decoys and key is None:
        raise ValueError(f"key: {decoys} decoys need a PRNG key, got None; pass key=jax.random.key(0)")
    layers = _layers(variables)
    rng = np.random.default_rng(0 if key is None else np.asarray(jax.random.key_data(key)).ravel())
    # The network's layers first, then decoys of each layer in turn: shapes do not depend on the key.
    layer = np.arange(len(layers) + decoys) % len(layers)
    weights, biases = [], []
    for k, (kernel, bias) in enumerate(layers):
        count = int((layer == k).sum()) - 1
        noise = rng.normal(size=(count, *kernel.shape)) / np.sqrt(kernel.shape[0])
        weights.append(jnp.asarray(np.concatenate([kernel[None], noise]).astype(real())))
        biases.append(jnp.asarray(np.concatenate([bias[None], rng.normal(size=(count, *bias.shape))]).astype(real())))
    index = np.arange(len(layer)) // len(layers)
    # In random order, because a low index wins ties.
    order = rng.permutation(len(layer)) if decoys else np.arange(len(layer))
    return NetworkMarket(
        weights=tuple(weights),
        biases=tuple(biases),
        layer=jnp.asarray((layer[order] + 1).astype(np.int32)),
        index=jnp.asarray(index[order].astype(np.int32)),
        wealth=jnp.asarray((order < len(layers)).astype(real())),
        linear_last=bool(linear_last),
    )


def _layers(variables: Mapping[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernel f [in, out] and bias f [out] of each layer, in order."""
    params = variables.get("params") if isinstance(variables, Mapping) else None
    if not isinstance(params, Mapping) or not params:
        raise ValueError(
            'variables: expected {"params": {layer: {"kernel": ..., "bias": ...}}}, '
            f"got {short_repr(variables)}; pass what Flax's init returns"
        )
    layers: list[tuple[np.ndarray, np.ndarray]] = []
    for name in _ordered(list(params)):
        kernel, bias = _dense(name, params[name])
        if layers and len(layers[-1][1]) != len(kernel):
            raise ValueError(
                f"variables: expected {len(layers[-1][1])} inputs of {name}, the width of the layer before it, got "
                f"{len(kernel)}; list or number the layers in their order"
            )
        layers.append((kernel, bias))
    return layers


def _dense(name: str, layer: PyTree) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(layer, Mapping) or "kernel" not in layer or set(layer) - {"kernel", "bias"}:
        held = sorted(layer) if isinstance(layer, Mapping) else type(layer).__name__
        raise ValueError(
            f"variables: expected a kernel and optionally a bias in {name}, got {held}; use Dense layers only"
        )
    kernel = np.asarray(layer["kernel"])
    if kernel.ndim != 2 or 0 in kernel.shape:
        raise ValueError(
            f"variables: expected a kernel [in, out] in {name}, got shape {kernel.shape}; use Dense layers only"
        )
    bias = np.asarray(layer.get("bias", np.zeros(kernel.shape[1])))
    if bias.shape != kernel.shape[1:]:
        raise ValueError(f"variables: expected a bias {kernel.shape[1:]} in {name}, got shape {bias.shape}")
    return kernel, bias


def _ordered(names: list[str]) -> list[str]:
    """Names in the order of their numbers, or as listed if no name has a number."""
    matches = [re.fullmatch(r"(\D*)(\d+)", name) for name in names]
    numbers = [int(match[2]) for match in matches if match]
    if not any(re.search(r"\d", name) for name in names):
        return names
    if len(numbers) < len(names) or len(set(numbers)) < len(names) or len({match[1] for match in matches if match}) > 1:
        raise ValueError(
            f"variables: the order of the layers {names} is ambiguous; use one name with numbers (Dense_0, Dense_1, "
            "...), or names without digits listed in their order"
        )
    return [names[i] for i in sorted(range(len(names)), key=numbers.__getitem__)]

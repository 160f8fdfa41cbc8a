"""Networks of firms that classify handwritten digits, and what they are compared with.

All train on scikit-learn's 8 × 8 digits, with batches of `BATCH` examples drawn with replacement, and measure the
accuracy on held-out ones. The reproduction ``profit`` compares them.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmarket.environments.digits import load
from jaxmarket.networks.backpropagation import MarketGraph
from jaxmarket.networks.delays import DelayedMarket, delay_aware
from jaxmarket.networks.firms import FirmMarket, FirmState, Plant
from jaxmarket.networks.members import enter, neurons, nonnegative_capacity, rent_per_capacity
from jaxmarket.networks.partition import from_linen
from jaxmarket.networks.processes import Division, train_in_two_processes
from jaxmarket.networks.routing import train_routing
from jaxmarket.switches import compiled_map
from jaxmarket.types import Array, PyTree

__all__ = [
    "BATCH",
    "CELLS",
    "NETWORKS",
    "OPTIMIZERS",
    "compare_with_backpropagation",
    "route",
    "train_apart",
    "train_late",
    "train_narrow",
    "train_priced",
    "train_pruned",
    "value",
]

BATCH = 64
"""Examples in a batch."""
CELLS = 64
"""Neurons in the layer of `train_priced`, and the most there can be."""

Arrays = dict[str, np.ndarray]


@functools.cache
def _digits() -> tuple[np.ndarray, ...]:
    """Images f [n, 64] and labels, for training and held out."""
    x, labels, held_out, answers = map(np.asarray, load("small").split())
    return x, labels, held_out, answers


def value(logits: Array, labels: Array) -> Array:
    """What consumers pay for: minus the mean cross-entropy."""
    return -optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _accuracy(market: FirmMarket, params: PyTree) -> Array:
    _, _, x, answers = _digits()
    return (market.produce(params, (jnp.asarray(x),))[0].argmax(-1) == answers).mean()


def _batches(key: Array, count: int) -> tuple[Array, Array]:
    """Images f [count, BATCH, 64] and labels."""
    x, labels, _, _ = _digits()
    rows = jax.random.randint(key, (count, BATCH), 0, len(labels))
    return jnp.asarray(x)[rows], jnp.asarray(labels)[rows]


# --- the same as backpropagation


class Perceptron(nn.Module):
    """Two hidden layers."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for width in (64, 32):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


class Convolutions(nn.Module):
    """Two convolutions on the image."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(-1, 8, 8, 1)
        for width in (8, 16):
            x = nn.relu(nn.Conv(width, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


class Transformer(nn.Module):
    """One block; the rows of the image are its tokens. A bias of keys would have the gradient 0, and is left out."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Dense(16)(x.reshape(-1, 8, 8)) + self.param("position", nn.initializers.normal(0.1), (8, 16))
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, use_bias=False)(nn.LayerNorm()(x))
        x = x + nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x))))
        return nn.Dense(10)(x.mean(1))


NETWORKS: dict[str, nn.Module] = {
    "perceptron": Perceptron(),
    "convolutions": Convolutions(),
    "transformer": Transformer(),
}
OPTIMIZERS = {"SGD": optax.sgd(0.1), "momentum": optax.sgd(0.02, momentum=0.9), "Adam": optax.adam(1e-3)}


def compare_with_backpropagation(network: str, optimizer: str, keys: Array, steps: int = 100) -> Arrays:
    """Train a network of `NETWORKS` twice, by profit and by Flax and Optax.

    Args:
        network, optimizer: names.
        keys: [seeds].
        steps: number of steps.

    Returns:
        By name, f [seeds]: ``difference``, the largest of any parameter after the last step; ``moved``, how far the
        parameter that moved least has moved; ``residual``, the largest of `Trade.residual` in any step.
    """
    module, tx = NETWORKS[network], OPTIMIZERS[optimizer]

    def train(key: Array) -> dict[str, Array]:
        key_init, key_batches = jax.random.split(key)
        x, labels = _batches(key_batches, steps)
        start = module.init(key_init, x[0])["params"]
        market = from_linen(module, {"params": start}, x[0], optimizers=tx)

        def trade(state: FirmState, batch: Any) -> tuple[FirmState, Array]:
            state, done = market.step(state, (batch[0],), lambda logits: value(logits, batch[1]))
            return state, done.residual()

        def loss(params: PyTree, x: Array, labels: Array) -> Array:
            return -value(jnp.asarray(module.apply({"params": params}, x)), labels)

        def descend(carry: Any, batch: Any) -> tuple[Any, None]:
            params, state = carry
            gradient = jax.grad(loss)(params, *batch)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        ours, residual = jax.lax.scan(trade, market.init(start), (x, labels))
        (theirs, _), _ = jax.lax.scan(descend, (start, tx.init(start)), (x, labels))
        differences = jax.tree.map(lambda a, b: abs(a - b).max(), market.params(ours), theirs)
        moved = jax.tree.map(lambda a, b: abs(a - b).max(), theirs, start)
        return {
            "difference": jnp.stack(jax.tree.leaves(differences)).max(),
            "moved": jnp.stack(jax.tree.leaves(moved)).min(),
            "residual": residual.max(),
        }

    return compiled_map(train, keys)


_PLAIN = optax.sgd(1.0)


def _layer(firm: str, buys: str, sells: str, last: bool = False) -> Plant:
    """A dense layer as one firm."""

    def produce(params: PyTree, x: Array) -> tuple[Array]:
        z = x @ params["kernel"] + params["bias"]
        return (z if last else jax.nn.relu(z),)

    return Plant(firm, produce, (buys,), (sells,))


# --- old prices

_WIDTHS = (64, 32, 32, 32, 10)
_NAMES = tuple(f"layer{k}" for k in range(len(_WIDTHS) - 1))


def _deep(optimizer: optax.GradientTransformation) -> FirmMarket:
    """A network with three hidden layers, each a firm."""
    plants = tuple(_layer(n, f"h{k}", f"h{k + 1}", last=k == len(_NAMES) - 1) for k, n in enumerate(_NAMES))
    return FirmMarket(plants, ("h0",), (f"h{len(_NAMES)}",), optimizer)


def _dense(key: Array, fan_in: int, width: int) -> dict[str, Array]:
    return {"kernel": jax.random.normal(key, (fan_in, width)) * np.sqrt(2 / fan_in), "bias": jnp.zeros(width)}


def _deep_params(key: Array) -> dict[str, PyTree]:
    keys = jax.random.split(key, len(_NAMES))
    return {n: _dense(k, a, b) for n, k, a, b in zip(_NAMES, keys, _WIDTHS[:-1], _WIDTHS[1:], strict=True)}


def train_late(delay: int, aware: bool, rate: float, keys: Array, steps: int = 4000, parts: int = 40) -> Arrays:
    """Train four firms by SGD at prices that are old.

    Args:
        delay: of all firms, in steps.
        aware: whether steps are divided by ``1 + delay``.
        rate: learning rate.
        keys: [seeds].
        steps: number of steps; a multiple of ``parts``.
        parts: number of measurements.

    Returns:
        ``steps`` i [parts], after which the held-out ``accuracy`` f [parts, seeds] was measured.
    """
    tx = optax.sgd(rate)
    late = DelayedMarket(_deep(delay_aware(tx, delay) if aware else tx), dict.fromkeys(_NAMES, delay))

    def train(key: Array) -> Array:
        key_init, key_batches = jax.random.split(key)
        x, labels = _batches(key_batches, steps)

        def step(state: Any, batch: Any) -> tuple[Any, None]:
            return late.step(state, (batch[0],), lambda y: value(y, batch[1]))[0], None

        def part(state: Any, batches: Any) -> tuple[Any, Array]:
            state, _ = jax.lax.scan(step, state, batches)
            return state, _accuracy(late.market, state.firms.params)

        start = late.init(_deep_params(key_init), (x[0],), lambda y: value(y, labels[0]))
        batches = jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), (x, labels))
        return jax.lax.scan(part, start, batches)[1]

    accuracy = compiled_map(train, keys)
    return {"steps": steps // parts * np.arange(1, parts + 1), "accuracy": accuracy.T}


def _division(data: tuple[int, ...], rate: float, steps: int) -> Division:
    """Two firms in each of two processes; the batches are those of `train_late` with the key of this data."""
    key_init, key_batches = jax.random.split(jax.random.wrap_key_data(jnp.asarray(data, jnp.uint32)))
    x, labels = jax.device_get(_batches(key_batches, steps))
    return Division(
        _deep(optax.sgd(rate)),
        upstream=_NAMES[:2],
        params=_deep_params(key_init),
        batch=lambda step: ((x[step],), labels[step]),
        utility=lambda labels, logits: value(logits, labels),
    )


def train_apart(window: int, rate: float, keys: Array, steps: int = 4000) -> Arrays:
    """Train the network of `train_late` in two processes.

    Args:
        window: the most shipments under way.
        rate: learning rate of SGD.
        keys: [seeds].
        steps: number of steps.

    Returns:
        The held-out ``accuracy`` f [1, seeds].
    """
    accuracy = []
    for key in keys:
        data = tuple(int(word) for word in np.asarray(jax.random.key_data(key)).ravel())
        run = train_in_two_processes(functools.partial(_division, data, rate, steps), steps, window)
        accuracy.append(float(_accuracy(_deep(_PLAIN), run.params)))
    return {"steps": np.asarray([steps]), "accuracy": np.asarray([accuracy])}


# --- priced compute


def _wide(rent: float, trained: bool = True) -> FirmMarket:
    """A layer of neurons with capacities, and a readout."""
    weights = optax.adamw(1e-3, weight_decay=0.01)
    capacity = optax.sgd(0.01) if trained else optax.set_to_zero()
    kinds = optax.partition(
        {"weights": weights, "capacity": capacity},
        lambda params: {name: "capacity" if name == "capacity" else "weights" for name in params},
    )
    return FirmMarket(
        (neurons("hidden", "x", "h", capacity=True), _layer("readout", "h", "y", last=True)),
        ("x",),
        ("y",),
        {"hidden": nonnegative_capacity(kinds), "readout": weights},
        {"hidden": rent_per_capacity(rent)},
    )


def _wide_params(key: Array) -> dict[str, PyTree]:
    keys = jax.random.split(key)
    hidden, readout = _dense(keys[0], 64, CELLS), _dense(keys[1], CELLS, 10)
    return {"hidden": {**hidden, "kernel": hidden["kernel"].T, "capacity": jnp.ones(CELLS)}, "readout": readout}


def _run(market: FirmMarket, state: FirmState, key: Array, steps: int) -> FirmState:
    """The state after this number of steps."""

    def step(state: FirmState, batch: Any) -> tuple[FirmState, None]:
        return market.step(state, (batch[0],), lambda y: value(y, batch[1]))[0], None

    return jax.lax.scan(step, state, _batches(key, steps))[0]


def _train_wide(market: FirmMarket, params: PyTree, key: Array, steps: int) -> PyTree:
    """Parameters after this number of steps with new optimizers."""
    return _run(market, market.init(params), key, steps).params


def _measured(market: FirmMarket, params: PyTree) -> dict[str, Array]:
    return {"accuracy": _accuracy(market, params), "units": (params["hidden"]["capacity"] > 0).sum()}


def _with_capacity(params: PyTree, kept: Array) -> PyTree:
    """The parameters, with capacity 0 where a neuron is not kept."""
    capacity = jnp.where(kept, params["hidden"]["capacity"], 0)
    return {**params, "hidden": {**params["hidden"], "capacity": capacity}}


def train_priced(rent: float, keys: Array, steps: int = 16_000, entry: bool = False) -> Arrays:
    """Train a layer of `CELLS` neurons that pay for their capacity.

    Args:
        rent: per unit of capacity and step.
        keys: [seeds].
        steps: number of steps.
        entry: whether the layer starts with an eighth of the neurons, and after every 400 steps of the first half a
            random neuron of capacity .1 enters in every free place.

    Returns:
        The held-out ``accuracy`` f [seeds], and ``units``, the neurons with capacity, i [seeds].
    """
    market, period = _wide(rent), 400

    def train(key: Array) -> dict[str, Array]:
        key_init, key_batches, key_enter = jax.random.split(key, 3)
        params = _wide_params(key_init)
        if not entry:
            return _measured(market, _train_wide(market, params, key_batches, steps))

        def part(state: FirmState, keys: Array) -> tuple[FirmState, None]:
            state = _run(market, state, keys[0], period)
            fresh = _wide_params(keys[1])["hidden"]
            new = market.init({"hidden": {**fresh, "capacity": jnp.full(CELLS, 0.1)}, "readout": params["readout"]})
            free = state.params["hidden"]["capacity"] == 0
            hidden, optimizer = enter(
                state.params["hidden"], state.optimizer["hidden"], new.params["hidden"], new.optimizer["hidden"], free
            )
            return state.replace(
                params={**state.params, "hidden": hidden}, optimizer={**state.optimizer, "hidden": optimizer}
            ), None

        start = market.init(_with_capacity(params, jnp.arange(CELLS) < CELLS // 8))
        keys_part = jax.vmap(jax.random.split)(jax.random.split(key_enter, steps // 2 // period))
        state, _ = jax.lax.scan(part, start, keys_part)
        return _measured(market, _train_wide(market, state.params, key_batches, steps // 2))

    return compiled_map(train, keys)


def train_pruned(keys: Array, priced: Arrays, steps: int = 16_000) -> Arrays:
    """Train all neurons for half of the steps, keep as many as ``priced`` has of each seed, and train these further.

    Those with the largest product of the norms of their incoming and outgoing weights are kept (magnitude pruning).
    """
    market = _wide(0.0, trained=False)

    def train(arguments: tuple[Array, Array]) -> dict[str, Array]:
        key, units = arguments
        key_init, *halves = jax.random.split(key, 3)
        params = _train_wide(market, _wide_params(key_init), halves[0], steps // 2)
        size = jnp.linalg.norm(params["hidden"]["kernel"], axis=1) * jnp.linalg.norm(
            params["readout"]["kernel"], axis=1
        )
        params = _with_capacity(params, jnp.argsort(jnp.argsort(-size)) < units)
        return _measured(market, _train_wide(market, params, halves[1], steps // 2))

    return compiled_map(train, (keys, jnp.asarray(priced["units"])))


def train_narrow(keys: Array, priced: Arrays, steps: int = 16_000) -> Arrays:
    """Train as many neurons as ``priced`` has of each seed, from the start."""
    market = _wide(0.0, trained=False)

    def train(arguments: tuple[Array, Array]) -> dict[str, Array]:
        key, units = arguments
        key_init, key_batches = jax.random.split(key)
        params = _with_capacity(_wide_params(key_init), jnp.arange(CELLS) < units)
        return _measured(market, _train_wide(market, params, key_batches, steps))

    return compiled_map(train, (keys, jnp.asarray(priced["units"])))


# --- routing


def route(step_size: float, keys: Array, steps: int = 50) -> Arrays:
    """Mirror ascent of routing on random acyclic graphs of six agents with two goods, in double precision.

    Returns:
        ``error`` f [seeds], the largest relative difference in any step between the change of welfare per step size and
        `jaxmarket.networks.routing.welfare_rate`; ``welfare`` f [seeds, steps].
    """
    n, goods = 6, 2
    graph = MarketGraph(lambda w, x: jnp.tanh(w["kernel"] @ x), lambda w, x, y: w["value"] @ jnp.log1p(y**2))

    def train(key: Array) -> dict[str, Array]:
        keys = jax.random.split(key, 4)
        agents = {
            "kernel": jax.random.normal(keys[0], (n, goods, goods), jnp.float64),
            "value": jax.random.normal(keys[1], (n, goods), jnp.float64),
        }
        edges = jnp.triu(jnp.ones((n, n), jnp.float64), 1)[..., None]
        shares = edges * jax.random.uniform(keys[2], (n, n, goods), jnp.float64, 0.1, 1)
        total = shares.sum(1, keepdims=True)
        shares = shares / jnp.where(total > 0, total, 1)
        endowments = jax.random.uniform(keys[3], (n, goods), jnp.float64, 0.5, 1.5)
        run = train_routing(graph, agents, shares, endowments, step_size=step_size, steps=steps)
        return {"error": abs(run.change / run.rate - 1).max(), "welfare": run.welfare}

    with jax.enable_x64(True):
        return compiled_map(train, keys)

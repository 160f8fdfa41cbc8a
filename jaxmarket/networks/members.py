"""Firms smaller than a layer: single neurons and attention heads, as members of a plant.

Every member has an account and an optimizer state of its own. A neuron buys all activations of the layer before it, and
sells one; an attention head buys the tokens, and sells its contribution to the output.

**Priced compute.** A neuron of `neurons` with ``capacity=True`` has a capacity c ≥ 0, and sells c times its activation.
With the rent `rent_per_capacity`, its marginal profit of capacity is the revenue per unit of capacity less the rent: a
neuron whose activation is not worth the rent shrinks, and at capacity 0 it has left. So the width of a layer follows
profit. `enter` replaces neurons that have left by new ones.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float

from jaxmarket.networks.firms import Plant
from jaxmarket.types import Array, PyTree
from jaxmarket.validation import check_rows

__all__ = [
    "attention_heads",
    "enter",
    "head_params",
    "neuron_params",
    "neurons",
    "nonnegative_capacity",
    "rent_per_capacity",
]


def neurons(
    firm: str,
    buys: str,
    sells: str,
    *,
    activation: Callable[[Array], Array] = jax.nn.relu,
    capacity: bool = False,
) -> Plant:
    """A dense layer whose neurons are firms.

    Args:
        firm: name of the layer.
        buys: the good f [..., inputs].
        sells: the good f [..., members].
        activation: of each neuron.
        capacity: whether parameters have a capacity, by which the activation is multiplied.

    Returns:
        A plant; for its parameters see `neuron_params`.
    """

    def produce(params: PyTree, x: Array) -> tuple[Array]:
        y = activation(x @ params["kernel"] + params["bias"])
        return (params["capacity"] * y if capacity else y,)

    return Plant(firm, produce, (buys,), (sells,), member_axis=-1)


def neuron_params(dense: PyTree, capacity: float | None = None) -> dict[str, Array]:
    """The parameters of `neurons`, of those of a Flax ``Dense`` layer; biases of 0 if it has none.

    Args:
        dense: ``{"kernel": f [in, out], "bias": f [out]}``.
        capacity: initial capacity of every neuron; None without capacities.

    Returns:
        ``{"kernel": f [out, in], "bias": f [out]}``, and ``"capacity"`` f [out].

    Raises:
        ValueError: ``capacity`` is negative.
    """
    kernel = jnp.asarray(dense["kernel"]).T
    params = {"kernel": kernel, "bias": jnp.asarray(dense.get("bias", jnp.zeros_like(kernel[:, 0])))}
    if capacity is not None:
        if not capacity >= 0:
            raise ValueError(f"capacity: expected a number >= 0, got {capacity}")
        params["capacity"] = jnp.full_like(params["bias"], capacity)
    return params


def attention_heads(firm: str, buys: str, sells: str) -> Plant:
    """Self-attention whose heads are firms. The buyer has to add up what they sell.

    Head h sells softmax(q kᵀ / √d) v W_h, with its own projections. The output bias of a Flax layer belongs to the firm
    that adds up the heads.

    Args:
        firm: name of the layer.
        buys: the good f [..., tokens, features].
        sells: the good f [heads, ..., tokens, features].
    """

    def produce(params: PyTree, x: Array) -> tuple[Array]:
        query, key, value = (
            x @ params[name]["kernel"] + params[name].get("bias", 0) for name in ("query", "key", "value")
        )
        scores = query @ jnp.swapaxes(key, -1, -2) / jnp.sqrt(query.shape[-1]).astype(query.dtype)
        return (jax.nn.softmax(scores) @ value @ params["out"]["kernel"],)

    return Plant(firm, produce, (buys,), (sells,), member_axis=0)


def head_params(attention: PyTree) -> PyTree:
    """The parameters of `attention_heads`, of those of Flax's ``MultiHeadDotProductAttention``.

    Args:
        attention: kernels of query, key and value f [features, heads, d], their biases f [heads, d] if there are any,
            and the kernel of out f [heads, d, features].

    Returns:
        The same, with the axis of heads first; without the bias of out.
    """
    heads: dict[str, dict[str, Array]] = {"out": {"kernel": jnp.asarray(attention["out"]["kernel"])}}
    for name in ("query", "key", "value"):
        heads[name] = {"kernel": jnp.moveaxis(jnp.asarray(attention[name]["kernel"]), 1, 0)}
        if "bias" in attention[name]:
            heads[name]["bias"] = jnp.asarray(attention[name]["bias"])
    return heads


def rent_per_capacity(price: float | Array) -> Callable[[PyTree], Float[Array, ""]]:
    """A rent for `FirmMarket.rents`: ``price`` per unit of capacity and step."""
    return lambda params: price * params["capacity"]


def nonnegative_capacity(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer of a neuron, whose updates of its capacity end at 0 instead of below."""

    def is_capacity(params: dict[str, PyTree]) -> dict[str, bool]:
        return {name: name == "capacity" for name in params}

    return optax.chain(optimizer, optax.masked(optax.keep_params_nonnegative(), is_capacity))


def enter(
    params: PyTree, optimizer_state: PyTree, entrants: PyTree, entrant_state: PyTree, places: Bool[Array, " members"]
) -> tuple[PyTree, PyTree]:
    """Replace members of a plant by new ones, with new optimizer states.

    Args:
        params: of all members, leaves [members, ...].
        optimizer_state: of all members, leaves [members, ...].
        entrants: parameters of as many possible entrants.
        entrant_state: their optimizer states.
        places: where an entrant replaces the member; mostly those of capacity 0.

    Raises:
        ValueError: entrants have another number of members.
    """
    check_rows("entrants", entrants, places.shape[0])

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(places.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    return jax.tree.map(choose, entrants, params), jax.tree.map(choose, entrant_state, optimizer_state)

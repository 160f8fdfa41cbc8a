"""Distributions over discrete choices, and policy heads for them: for agents that act instead of bidding.

They have the methods of `policies.BidDistribution` and `policies.Head`, so that `PPO` trains them as it trains bids; a
choice is a float, like a bid.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Float

from jaxmarket.types import Array
from jaxmarket.validation import check_int

__all__ = ["ActionValueHead", "ActionValues", "Categorical", "ChoiceHead", "Product", "ProductHead"]


class Categorical(struct.PyTreeNode):
    """One of P choices: what an agent has that acts instead of bidding."""

    logits: Float[Array, "... P"]

    def sample(self, key: Array, shape: Sequence[int] = ()) -> Array:
        """Independent choices, as numbers: ``f [*shape, ...]``."""
        choices = jax.random.categorical(key, self.logits, shape=(*shape, *self.logits.shape[:-1]))
        return choices.astype(self.logits.dtype)

    def quantile(self, u: Array) -> Array:
        """The choice whose share of (0, 1) holds ``u``, as a number: f [..., of ``u``]."""
        below = jnp.cumsum(jax.nn.softmax(self.logits), -1)[..., :-1]
        return jnp.sum(u[..., None] >= below, -1).astype(self.logits.dtype)

    def mean(self) -> Array:
        """The likeliest choice, which is the greedy one: f [...]."""
        return jnp.argmax(self.logits, -1).astype(self.logits.dtype)

    def log_prob(self, bid: Array) -> Array:
        """Log-probability of the choice ``bid``: f [...]."""
        chosen = bid[..., None] == jnp.arange(self.logits.shape[-1], dtype=bid.dtype)
        return jnp.sum(jnp.where(chosen, jax.nn.log_softmax(self.logits), 0), -1)

    def entropy(self) -> Array:
        """Entropy: f [...]."""
        logs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(logs) * logs, -1)


@dataclasses.dataclass(frozen=True)
class _OutputPerChoice:
    outputs: int


class ChoiceHead(_OutputPerChoice):
    """One logit per choice."""

    def distribution(self, raw: Array) -> Categorical:
        """The distribution with logits ``raw`` [..., outputs]."""
        return Categorical(raw)


class ActionValues(struct.PyTreeNode):
    """The estimated value of each of P choices; the distribution is the choice with the highest one."""

    values: Float[Array, "... P"]

    def sample(self, key: Array, shape: Sequence[int] = ()) -> Array:
        """The best choice, broadcast: ``f [*shape, ...]``."""
        del key
        return jnp.broadcast_to(self.mean(), (*shape, *self.values.shape[:-1]))

    def quantile(self, u: Array) -> Array:
        """The best choice, broadcast to the shape of ``u``: f [...]."""
        return jnp.broadcast_to(self.mean(), u.shape)

    def mean(self) -> Array:
        """The best choice: f [...]."""
        return jnp.argmax(self.values, -1).astype(self.values.dtype)

    def log_prob(self, bid: Array) -> Array:
        """Raises a ValueError: estimates have no density."""
        raise ValueError("head: action values have no density over choices; use a choice head")

    def entropy(self) -> Array:
        """Raises a ValueError: estimates have no entropy."""
        raise ValueError("head: action values have no entropy; use a choice head")


class ActionValueHead(_OutputPerChoice):
    """One estimate per choice, which `jaxmarket.learners.Valuation` trains as it trains the bids of a `ValueHead`."""

    def estimate(self, raw: Float[Array, " P"], bid: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """The estimate for the choices ``bid``."""
        chosen = bid[..., None] == jnp.arange(self.outputs, dtype=bid.dtype)
        return jnp.sum(jnp.where(chosen, raw, 0), -1)

    def distribution(self, raw: Array) -> ActionValues:
        """The distribution with values ``raw`` [..., outputs]."""
        return ActionValues(raw)


class Product(struct.PyTreeNode):
    """L independent choices, one of M each, as one choice of M^L: a number in base M, the first choice in front.

    It is the `Categorical` of all M^L in which probabilities are products, for the price of L · M logits.
    """

    logits: Float[Array, "... L M"]

    def _number(self, digits: Array) -> Array:
        """Of the choices i32 [..., L]: f [...]."""
        factors, base = self.logits.shape[-2:]
        weights = base ** jnp.arange(factors - 1, -1, -1, dtype=jnp.int32)
        return jnp.sum(digits * weights, -1).astype(self.logits.dtype)

    def _digits(self, bid: Array) -> Array:
        """The choices that make up a number: i32 [..., L]."""
        factors, base = self.logits.shape[-2:]
        weights = base ** jnp.arange(factors - 1, -1, -1, dtype=jnp.int32)
        return bid[..., None].astype(jnp.int32) // weights % base

    def sample(self, key: Array, shape: Sequence[int] = ()) -> Array:
        """Independent choices, as numbers: ``f [*shape, ...]``."""
        return self._number(jax.random.categorical(key, self.logits, shape=(*shape, *self.logits.shape[:-1])))

    def quantile(self, u: Array) -> Array:
        """The choice whose share of (0, 1) holds ``u``, as a number: f [..., of ``u``].

        The first choice takes its share of ``u``, and what is left of that, stretched to (0, 1), decides the next one.
        """
        shares = jax.nn.softmax(self.logits)
        least, most = jnp.finfo(shares.dtype).tiny, 1 - jnp.finfo(shares.dtype).epsneg
        digits = []
        for i in range(self.logits.shape[-2]):
            share = shares[..., i, :]
            ends = jnp.cumsum(share, -1)
            digit = jnp.sum(u[..., None] >= ends[..., :-1], -1)
            chosen = digit[..., None] == jnp.arange(share.shape[-1])
            start, width = (jnp.sum(jnp.where(chosen, x, 0), -1) for x in (ends - share, share))
            u = jnp.clip((u - start) / jnp.maximum(width, least), 0, most)
            digits.append(digit)
        return self._number(jnp.stack(digits, -1))

    def mean(self) -> Array:
        """The likeliest choice, which is the greedy one: f [...]."""
        return self._number(jnp.argmax(self.logits, -1))

    def log_prob(self, bid: Array) -> Array:
        """Log-probability of the choice ``bid``: f [...]."""
        chosen = self._digits(bid)[..., None] == jnp.arange(self.logits.shape[-1])
        return jnp.sum(jnp.where(chosen, jax.nn.log_softmax(self.logits), 0), (-2, -1))

    def entropy(self) -> Array:
        """Entropy, the sum of the choices': f [...]."""
        return Categorical(self.logits).entropy().sum(-1)


_MOST_CHOICES = 2**24
"""What float32, in which choices are kept, can count."""


@dataclasses.dataclass(frozen=True)
class ProductHead:
    """One logit per choice of each factor, for actions that are numbers in a base (`Product`).

    Attributes:
        factors: L.
        base: M.

    Raises:
        ValueError: one of them is below 1, or there are more than 2^24 choices, which float32 cannot tell apart.
    """

    factors: int
    base: int

    def __post_init__(self) -> None:
        for field in ("factors", "base"):
            object.__setattr__(self, field, check_int(field, getattr(self, field)))
        if self.choices > _MOST_CHOICES:
            raise ValueError(f"factors: {self.base}^{self.factors} choices are more than 2^24; use fewer factors")

    @property
    def choices(self) -> int:
        """M^L."""
        return self.base**self.factors

    @property
    def outputs(self) -> int:
        """L · M."""
        return self.factors * self.base

    def distribution(self, raw: Array) -> Product:
        """The distribution with logits ``raw`` [..., outputs], factor by factor."""
        return Product(raw.reshape(*raw.shape[:-1], self.factors, self.base))

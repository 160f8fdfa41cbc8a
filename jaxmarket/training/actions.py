"""Distributions over actions and their heads, for agents that act and for modules whose primitives learn.

They have the methods of `policies.BidDistribution`, ``noise`` and ``from_noise`` included, and of `policies.Head`. A
discrete choice is a float, like a bid, so that `PPO` trains it as it trains bids.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Float

from jaxmarket.environments.adapter import Adapter
from jaxmarket.policies import HALF_LOG_2_PI, BetaHead, Head, Rescaled
from jaxmarket.types import Array, PyTree
from jaxmarket.validation import check_int

__all__ = [
    "ActionValueHead",
    "ActionValues",
    "BoxHead",
    "Categorical",
    "ChoiceHead",
    "Independent",
    "Normal",
    "Product",
    "ProductHead",
    "action_head",
]


class Categorical(struct.PyTreeNode):
    """The distribution over P choices of an agent that acts instead of bidding."""

    logits: Float[Array, "... P"]

    def among(self, legal: Bool[Array, "... P"]) -> Self:
        """The distribution of the legal choices, of which there is at least one."""
        return self.replace(logits=jnp.where(legal, self.logits, jnp.finfo(self.logits.dtype).min))

    def sample(self, key: Array, shape: Sequence[int] = ()) -> Array:
        """Independent choices, as numbers: ``f [*shape, ...]``."""
        choices = jax.random.categorical(key, self.logits, shape=(*shape, *self.logits.shape[:-1]))
        return choices.astype(self.logits.dtype)

    def noise(self, key: Array, shape: Sequence[int]) -> Array:
        """Uniform random numbers, ``f [*shape]``."""
        return jax.random.uniform(key, shape, self.logits.dtype)

    def from_noise(self, noise: Array) -> Array:
        """The choices whose shares of (0, 1) hold the random numbers: f, with the shape of ``noise``."""
        below = jnp.cumsum(jax.nn.softmax(self.logits), -1)[..., :-1]
        return jnp.sum(noise[..., None] >= below, -1).astype(self.logits.dtype)

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

    def noise(self, key: Array, shape: Sequence[int]) -> tuple[()]:
        """No random numbers: an empty tuple."""
        del key, shape
        return ()

    def from_noise(self, noise: tuple[()]) -> Array:
        """The best choice: f [...]."""
        del noise
        return self.mean()

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
    """L independent choices, one of M each, as one choice of M^L: a number in base M, the first choice leading.

    It is the `Categorical` of all M^L choices whose probabilities are products, and has only L · M logits.
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

    def noise(self, key: Array, shape: Sequence[int]) -> Array:
        """Uniform random numbers, ``f [*shape]``."""
        return jax.random.uniform(key, shape, self.logits.dtype)

    def from_noise(self, noise: Array) -> Array:
        """The choices whose shares of (0, 1) hold the random numbers: f, with the shape of ``noise``.

        The first choice is the one whose share of (0, 1) holds u; the position of u in that share, rescaled to (0, 1),
        determines the next choice.
        """
        u = noise
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
        """Entropy, the sum of the entropies of the choices: f [...]."""
        return Categorical(self.logits).entropy().sum(-1)


_MOST_CHOICES = 2**24
"""The largest number up to which float32, the dtype of choices, represents every integer."""


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


class Normal(struct.PyTreeNode):
    """A normal distribution."""

    location: Float[Array, "..."]
    log_scale: Float[Array, "..."]

    def sample(self, key: Array, shape: Sequence[int] = ()) -> Array:
        """Independent numbers: ``f [*shape, ...]``."""
        return self.from_noise(self.noise(key, (*shape, *self.location.shape)))

    def noise(self, key: Array, shape: Sequence[int]) -> Array:
        """Standard normal random numbers, ``f [*shape]``."""
        return jax.random.normal(key, shape, self.location.dtype)

    def from_noise(self, noise: Array) -> Array:
        """Numbers, f with the shape of ``noise``."""
        return self.location + jnp.exp(self.log_scale) * noise

    def mean(self) -> Array:
        """The mean: f [...]."""
        return self.location

    def log_prob(self, bid: Array) -> Array:
        """Log-density: f [...]."""
        distance = (bid - self.location) * jnp.exp(-self.log_scale)
        return -0.5 * distance**2 - self.log_scale - HALF_LOG_2_PI

    def entropy(self) -> Array:
        """Differential entropy: f [...]."""
        return self.log_scale + HALF_LOG_2_PI + 0.5


class Independent(struct.PyTreeNode):
    """The joint distribution of D independent numbers: an action with D entries."""

    entries: Any  # a distribution with the batch shape [..., D] and the methods `noise` and `from_noise`
    size: int = struct.field(pytree_node=False)  # D

    def sample(self, key: Array, shape: Sequence[int] = ()) -> Array:
        """Independent actions: ``f [*shape, ..., D]``."""
        return self.entries.sample(key, shape)

    def noise(self, key: Array, shape: Sequence[int]) -> PyTree:
        """The noise of all entries: leaves ``[*shape, D, ...]``."""
        return self.entries.noise(key, (*shape, self.size))

    def from_noise(self, noise: PyTree) -> Array:
        """Actions: f [..., D]."""
        return self.entries.from_noise(noise)

    def mean(self) -> Array:
        """The mean of each entry: f [..., D]."""
        return self.entries.mean()

    def log_prob(self, bid: Array) -> Array:
        """Log-density of the action ``bid``, f [..., D]: f [...]."""
        return self.entries.log_prob(bid).sum(-1)

    def entropy(self) -> Array:
        """Differential entropy: f [...]."""
        return self.entries.entropy().sum(-1)


@dataclasses.dataclass(frozen=True)
class BoxHead:
    """Continuous actions with D entries: Beta between the bounds, normal without bounds (Chou et al. 2017).

    Outputs of zero give the uniform distribution between the bounds, or the standard normal distribution.

    Attributes:
        low, high: bounds of each entry, all finite or all infinite.

    Raises:
        ValueError: only some bounds are infinite, or an upper bound is not above the lower one.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        bounds = (*self.low, *self.high)
        if not self.low or len(self.low) != len(self.high) or any(map(math.isnan, bounds)):
            raise ValueError(f"env: expected a lower and an upper bound for each entry of an action, got {bounds}")
        if any(map(math.isinf, bounds)) and not all(map(math.isinf, bounds)):
            raise ValueError(
                f"env: expected bounds of actions that are all finite or all infinite, got low {self.low} and high "
                f"{self.high}; give every entry finite bounds"
            )
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"env: expected low < high for every entry of an action, got {self.low} and {self.high}")

    @property
    def outputs(self) -> int:
        """2 D."""
        return 2 * len(self.low)

    def distribution(self, raw: Array) -> Independent:
        """The distribution with parameters ``raw`` [..., outputs]."""
        raw = raw.reshape(*raw.shape[:-1], len(self.low), 2)
        if math.isinf(self.low[0]):
            return Independent(Normal(raw[..., 0], raw[..., 1]), len(self.low))
        low, high = (jnp.broadcast_to(jnp.asarray(each, raw.dtype), raw.shape[:-1]) for each in (self.low, self.high))
        return Independent(Rescaled(_UNIT.distribution(raw), low, high - low), len(self.low))


_UNIT = BetaHead(low=0.0, high=1.0)


def action_head(env: Adapter) -> Head:
    """The head of a policy over an environment's own actions: a `ChoiceHead` or a `BoxHead`."""
    box = env.box
    return ChoiceHead(env.num_actions) if box is None else BoxHead(box.low, box.high)

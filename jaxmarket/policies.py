"""Bidding policies: Flax networks that turn an observation into a distribution over bids.

All classes are written for one module (bidders that share parameters); the society maps them over modules with
`jax.vmap`. A `BidPolicy` consists of a torso (any Flax module ``obs -> features``) and a head (a family of bid
distributions). Policies are frozen and compare by value.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.scipy import special
from jaxtyping import Float

from jaxmarket.types import Array, PyTree, real
from jaxmarket.validation import as_scalar, check_bool, check_float, check_int, check_widths

__all__ = [
    "HALF_LOG_2_PI",
    "OUTPUT",
    "UNITS",
    "Affine",
    "Beta",
    "BetaHead",
    "BidDistribution",
    "BidPolicy",
    "Convolution",
    "Head",
    "Kumaraswamy",
    "KumaraswamyHead",
    "Point",
    "Rescaled",
    "Torso",
    "ValueHead",
    "ValueNetwork",
    "bid_table",
    "cnn",
    "distribution_shape",
    "divisor",
    "linear",
    "mlp",
    "relu_convolution",
]

UNITS = "units"
"""Key of a policy's units among its parameters."""
OUTPUT = "Affine_0"
TORSO = "torso"
"""Key of a policy's output layer among the parameters of its network: Flax's name for the layer."""

HALF_LOG_2_PI = 0.9189385332046727
"""½ log 2π."""
# Smallest distance of a bid from 0 and 1. In float32, 1 - 1e-8 equals 1, where log-densities are infinite.
_EDGE = 1e-6
# Lower bound of a distribution's parameters. Far below it, Beta's density has no gradient in float32.
_FLOOR = 1e-4


def divisor(scale: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The scale of units to divide by: 1 for a scale of 0, as it is before the first revenue."""
    return jnp.where(scale > 0, scale, 1)


# Special functions. XLA's own are the most expensive operations of a training step on a CPU. In single precision these
# are Stirling's series after a shift of the argument by six, good to rounding; in double precision they are JAX's.


@jax.custom_jvp
def _digamma(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """ψ, the logarithmic derivative of the gamma function, for x > 0."""
    if x.dtype == jnp.float64:
        return special.digamma(x)
    # ψ(x) = ψ(x + 6) - Σ 1/(x + k) over k = 0 to 5. The terms of k and 5 - k share one division.
    q = x * (x + 5)
    shift = (2 * x + 5) * (1 / q + 1 / (q + 4) + 1 / (q + 6))
    w = 1 / (x + 6)
    w2 = w * w
    return jnp.log(x + 6) - w / 2 - w2 * (1 / 12 - w2 * (1 / 120 - w2 / 252)) - shift


@_digamma.defjvp
def _digamma_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _digamma(*primals), _trigamma(*primals) * tangents[0]


def _trigamma(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """ψ', for x > 0."""
    if x.dtype == jnp.float64:
        return special.polygamma(1, x)
    # As in `_digamma`; XLA computes the divisions of both once.
    q = x * (x + 5)
    pairs = 1 / q, 1 / (q + 4), 1 / (q + 6)
    shift = sum((2 * q + c) * each**2 for c, each in zip((25, 17, 13), pairs, strict=True))
    w = 1 / (x + 6)
    w2 = w * w
    return w + w2 / 2 + w * w2 * (1 / 6 - w2 * (1 / 30 - w2 / 42)) + shift


def _harmonic(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The harmonic number H_x = ψ(x + 1) + γ, for x > -1."""
    return _digamma(x + 1) + jnp.asarray(jnp.euler_gamma, x.dtype)


@jax.custom_jvp
def _betaln(a: Float[Array, "*n"], b: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The logarithm of the beta function, for a, b > 0."""
    if a.dtype == jnp.float64:
        return special.gammaln(a) + special.gammaln(b) - special.gammaln(a + b)
    # B(a, b) = B(a + 6, b + 6) · (a+b)_12 / ((a)_6 (b)_6) with rising factorials (x)_6 = q (q + 4) (q + 6).
    # The factors are paired so that products do not overflow.
    p, q, r = a * (a + 5), b * (b + 5), (a + b) * (a + b + 11)
    shift = jnp.log(r * (r + 10) / (p * q)) + jnp.log(
        (r + 18) * (r + 24) / ((p + 4) * (q + 4)) * ((r + 28) * (r + 30) / ((p + 6) * (q + 6)))
    )
    # Stirling's series of the three gamma functions, without the cancellation between their logarithms.
    a, b = a + 6, b + 6
    return (
        shift
        + (HALF_LOG_2_PI - jnp.log(b) / 2)
        - (a - 0.5) * jnp.log1p(b / a)
        - b * jnp.log1p(a / b)
        + (_stirling(a) + _stirling(b) - _stirling(a + b))
    )


@_betaln.defjvp
def _betaln_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (a, b), (da, db) = primals, tangents
    both = _digamma(a + b)
    return _betaln(a, b), (_digamma(a) - both) * da + (_digamma(b) - both) * db


def _stirling(z: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """``log Γ(z) - (z - ½) log z + z - ½ log 2π`` for z >= 6."""
    w = 1 / z
    w2 = w * w
    return w * (1 / 12 - w2 * (1 / 360 - w2 / 1260))


class BidDistribution(Protocol):
    """A distribution over bids; every array leaf has the same batch shape ``[...]``.

    A distribution whose samples are a function of its parameters and of random numbers that do not depend on them
    defines two more methods: ``noise(key, shape)``, these random numbers for independent bids ``f [*shape]``, a pytree
    with leaves ``[*shape, ...]``; and ``from_noise(noise)``, the bids, where shape ends with the batch shape. ``noise``
    does not read the distribution's arrays. A society then draws the noise of a whole rollout in one call, which is
    much faster than one call per step.

    A continuous distribution may define ``cdf(bid)``, the probability of a lower bid, f [...] with the shape of
    ``bid``. `jaxmarket.interop.deviations` needs it.
    """

    def sample(self, key: Array, shape: Sequence[int] = ()) -> Array:
        """Independent bids: ``f [*shape, ...]``."""
        ...

    def mean(self) -> Array:
        """The greedy bid: f [...]."""
        ...

    def log_prob(self, bid: Array) -> Array:
        """Log-density of ``bid``, f [...]: f [...]."""
        ...

    def entropy(self) -> Array:
        """Differential entropy: f [...]."""
        ...


class _Bounded(struct.PyTreeNode):
    """A two-parameter distribution on (0, 1), scaled to (low, high)."""

    a: Float[Array, "..."]  # > 0
    b: Float[Array, "..."]  # > 0
    low: float = struct.field(pytree_node=False, default=0.0)
    high: float = struct.field(pytree_node=False, default=1.0)

    def _stretch(self, unit: Array) -> Array:
        return self.low + (self.high - self.low) * unit

    def _position(self, bid: Array) -> Array:
        return jnp.clip((bid - self.low) / (self.high - self.low), 0, 1)

    def _unit(self, bid: Array) -> Array:
        return jnp.clip(self._position(bid), _EDGE, 1 - _EDGE)

    @property
    def _log_width(self) -> float:
        return math.log(self.high - self.low)


class Kumaraswamy(_Bounded):
    """Density ``a b x^(a-1) (1 - x^a)^(b-1)``: close to Beta(a, b), with a closed-form inverse CDF.

    Source: Kumaraswamy (1980); moments and entropy after Jones (2009).
    """

    def sample(self, key: Array, shape: Sequence[int] = ()) -> Array:
        """Independent bids: ``f [*shape, ...]``."""
        return self.quantile(self.noise(key, (*shape, *self.a.shape)))

    def noise(self, key: Array, shape: Sequence[int]) -> Array:
        """Uniform random numbers, ``f [*shape]``."""
        return jax.random.uniform(key, shape, self.a.dtype)

    def from_noise(self, noise: Array) -> Array:
        """Bids, f with the shape of ``noise``."""
        return self.quantile(noise)

    def quantile(self, u: Array) -> Array:
        """Inverse of the survival function (1 - CDF), f with the shape of ``u``: 1 - u is uniform if u is."""
        u = jnp.clip(u, _EDGE, 1 - _EDGE)
        # x = (1 - (1-u)^(1/b))^(1/a), with u in place of 1 - u.
        tail = -jnp.expm1(jnp.log(u) / self.b)
        unit = jnp.exp(jnp.log(tail) / self.a)
        return self._stretch(jnp.clip(unit, _EDGE, 1 - _EDGE))

    def cdf(self, bid: Array) -> Array:
        """``1 - (1 - x^a)^b``: f with the shape of ``bid``."""
        return -jnp.expm1(self.b * jnp.log1p(-(self._position(bid) ** self.a)))

    def mean(self) -> Array:
        """``b B(1 + 1/a, b)``, not a/(a+b): f [...]."""
        return self._stretch(jnp.minimum(self.b * jnp.exp(_betaln(1 + 1 / self.a, self.b)), 1))

    def log_prob(self, bid: Array) -> Array:
        """Log-density: f [...]."""
        log_x = jnp.log(self._unit(bid))
        log_rest = jnp.log(-jnp.expm1(self.a * log_x))
        return jnp.log(self.a) + jnp.log(self.b) + (self.a - 1) * log_x + (self.b - 1) * log_rest - self._log_width

    def entropy(self) -> Array:
        """``(1 - 1/b) + (1 - 1/a) H_b - log(ab)`` with the harmonic number H_b: f [...]."""
        return (
            (1 - 1 / self.b)
            + (1 - 1 / self.a) * _harmonic(self.b)
            - jnp.log(self.a)
            - jnp.log(self.b)
            + self._log_width
        )


# Tries for which `Beta.noise` contains random numbers: of 2,000 bids at most one needs another.
_TRIES = 4


class BetaNoise(struct.PyTreeNode):
    """Random numbers for bids that have a Beta distribution."""

    normal: tuple[Float[Array, "..."], ...]  # of each try: standard normal
    log_uniform: tuple[Float[Array, "..."], ...]  # of each try
    log_boost: tuple[Float[Array, "..."], Float[Array, "..."]]  # of each of two gamma variates: log of a uniform number


class Beta(_Bounded):
    """Beta(a, b), the distribution of Chang et al. (2020).

    A sample is X / (X + Y) with gamma variates X and Y. Samples have no derivatives with respect to a and b.
    """

    def sample(self, key: Array, shape: Sequence[int] = ()) -> Array:
        """Independent bids: ``f [*shape, ...]``."""
        return self.from_noise(self.noise(key, (*shape, *self.a.shape)))

    def noise(self, key: Array, shape: Sequence[int]) -> BetaNoise:
        """Random numbers for bids, leaves ``f [*shape]``."""
        normals, uniforms, boosts = (
            jax.random.split(each, n) for each, n in zip(jax.random.split(key, 3), (_TRIES, _TRIES, 2), strict=True)
        )

        def log_uniform(key: Array) -> Array:
            return -jax.random.exponential(key, shape, self.a.dtype)

        return BetaNoise(
            normal=tuple(jax.random.normal(each, shape, self.a.dtype) for each in normals),
            log_uniform=tuple(map(log_uniform, uniforms)),
            log_boost=(log_uniform(boosts[0]), log_uniform(boosts[1])),
        )

    def from_noise(self, noise: BetaNoise) -> Array:
        """Bids, ``f [*shape]``."""
        x, y = _log_gamma_variates(jax.lax.stop_gradient((self.a, self.b)), noise)
        return self._stretch(jnp.clip(jax.nn.sigmoid(x - y), _EDGE, 1 - _EDGE))

    def cdf(self, bid: Array) -> Array:
        """The regularised incomplete beta function: f with the shape of ``bid``."""
        return special.betainc(self.a, self.b, self._position(bid))

    def mean(self) -> Array:
        """``a / (a + b)``: f [...]."""
        return self._stretch(self.a / (self.a + self.b))

    def log_prob(self, bid: Array) -> Array:
        """Log-density: f [...]."""
        x = self._unit(bid)
        return (self.a - 1) * jnp.log(x) + (self.b - 1) * jnp.log1p(-x) - _betaln(self.a, self.b) - self._log_width

    def entropy(self) -> Array:
        """Differential entropy: f [...]."""
        a, b = self.a, self.b
        return (
            _betaln(a, b)
            - (a - 1) * _digamma(a)
            - (b - 1) * _digamma(b)
            + (a + b - 2) * _digamma(a + b)
            + self._log_width
        )


def _log_gamma_variates(shapes: tuple[Array, Array], noise: BetaNoise) -> tuple[Array, Array]:
    """Logarithms of two gamma variates for each bid, by rejection (Marsaglia and Tsang 2000): f [*shape] each."""
    # The method needs shapes >= 1. A variate of a smaller shape is one of shape + 1 times uniform^(1 / shape).
    d_x, d_y = (jnp.where(shape < 1, shape + 1, shape) - 1 / 3 for shape in shapes)

    def attempt(found: tuple[Array, ...], normal: Array, log_uniform: Array) -> tuple[Array, ...]:
        """Try to find X, or Y where X is found. The first two fields: whether each is found; the others: log(·/d)."""
        has_x, has_y, x, y = found
        d = jnp.where(has_x, d_y, d_x)
        root = 1 + normal * jax.lax.rsqrt(9 * d)
        log_cube = 3 * jnp.log(jnp.where(root > 0, root, 1))
        accepted = (root > 0) & (log_uniform < normal**2 / 2 + d * (1 - root**3 + log_cube))
        # A shape that is NaN, infinite or negative would never accept a try. Its variate is not finite.
        accepted |= ~((d > 0) & (d < jnp.inf))
        y = jnp.where(has_x & ~has_y, log_cube, y)
        return has_x | accepted, has_y | (has_x & accepted), jnp.where(has_x, x, log_cube), y

    no, zero = jnp.zeros(noise.normal[0].shape, bool), jnp.zeros_like(noise.normal[0])
    found: tuple[Array, ...] = (no, no, zero, zero)
    for normal, log_uniform in zip(noise.normal, noise.log_uniform, strict=True):
        found = attempt(found, normal, log_uniform)

    # Further tries are seeded with the bits of the boosts, which no earlier try has used.
    words = jnp.stack([jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32) for x in noise.log_boost], -1)

    def numbers(words: Array, count: Array) -> tuple[Array, Array]:
        key = jax.random.fold_in(jax.random.wrap_key_data(words, impl="threefry2x32"), count)
        key_normal, key_uniform = jax.random.split(key)
        return jax.random.normal(key_normal, (), zero.dtype), -jax.random.exponential(key_uniform, (), zero.dtype)

    def another(carry: tuple[Array, tuple[Array, ...]]) -> tuple[Array, tuple[Array, ...]]:
        count, found = carry
        drawn = jax.vmap(numbers, (0, None))(words.reshape(-1, 2), count)
        return count + 1, attempt(found, *(x.reshape(zero.shape) for x in drawn))

    start = (jnp.zeros((), jnp.int32), found)
    _, (_, _, x, y) = jax.lax.while_loop(lambda carry: ~jnp.all(carry[1][1]), another, start)
    x, y = (
        jnp.log(d) + log_cube + jnp.where(shape < 1, boost / shape, 0)
        for d, log_cube, shape, boost in zip((d_x, d_y), (x, y), shapes, noise.log_boost, strict=True)
    )
    return x, y


class Rescaled(struct.PyTreeNode):
    """The distribution of ``low + width · x``, where x has another distribution."""

    unit: Any  # the distribution of x, a `BidDistribution`
    low: Float[Array, "..."]
    width: Float[Array, "..."]  # >= 0

    def sample(self, key: Array, shape: Sequence[int] = ()) -> Array:
        """Independent bids: ``f [*shape, ...]``."""
        return self.low + self.width * self.unit.sample(key, shape)

    @property
    def noise(self) -> Callable[[Array, Sequence[int]], PyTree]:
        """The noise of x, if it has that method."""
        return self.unit.noise

    def from_noise(self, noise: PyTree) -> Array:
        """Bids, ``f [*shape]``."""
        return self.low + self.width * self.unit.from_noise(noise)

    @property
    def cdf(self) -> Callable[[Array], Array]:
        """The probability of a lower bid, if x has that method."""
        of_unit = self.unit.cdf
        return lambda bid: jnp.where(self.width > 0, of_unit((bid - self.low) / divisor(self.width)), bid > self.low)

    def mean(self) -> Array:
        """The greedy bid: f [...]."""
        return self.low + self.width * self.unit.mean()

    def log_prob(self, bid: Array) -> Array:
        """Log-density, f [...]; without meaning where the width is 0."""
        width = divisor(self.width)
        return self.unit.log_prob((bid - self.low) / width) - jnp.log(width)

    def entropy(self) -> Array:
        """Differential entropy, f [...]; without meaning where the width is 0."""
        return self.unit.entropy() + jnp.log(divisor(self.width))


class Point(struct.PyTreeNode):
    """A point distribution, for bidders that bid their estimate of the value of winning."""

    value: Float[Array, "..."]

    def sample(self, key: Array, shape: Sequence[int] = ()) -> Array:
        """The value, broadcast: ``f [*shape, ...]``."""
        del key
        return jnp.broadcast_to(self.value, (*shape, *self.value.shape))

    def noise(self, key: Array, shape: Sequence[int]) -> tuple[()]:
        """No random numbers: an empty tuple."""
        del key, shape
        return ()

    def from_noise(self, noise: tuple[()]) -> Array:
        """The value: f [...]."""
        del noise
        return self.value

    def mean(self) -> Array:
        """The value: f [...]."""
        return self.value

    def log_prob(self, bid: Array) -> Array:
        """Raises a ValueError: a point distribution has no density."""
        raise ValueError("head: a value head has no density over bids; use a kumaraswamy or beta head")

    def entropy(self) -> Array:
        """Raises a ValueError: a point distribution has no entropy."""
        raise ValueError("head: a value head has no entropy; use a kumaraswamy or beta head")


class Head(Protocol):
    """A bid head: maps the outputs of a bid network to a distribution over bids.

    Attributes that are optional: ``adaptive``, whether the policy has units, which learners adapt to the rewards (see
    `BidPolicy`; the distribution should then be on (0, 1)); ``estimate``, which makes it a head that estimates values,
    as `ValueHead` does; and ``limits``, the lowest and the highest bid in units of reward.
    """

    @property
    def outputs(self) -> int:
        """The number of network outputs per observation."""
        ...

    def distribution(self, raw: Array) -> BidDistribution:
        """The distribution with parameters ``raw`` [..., outputs]."""
        ...


@dataclasses.dataclass(frozen=True)
class _BoundedHead:
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.adaptive:
            return
        low, high = (check_float("bid_low, bid_high", limit) for limit in self._range)
        if not low < high:
            raise ValueError(
                f"bid_low, bid_high: expected low < high, got {low} and {high} (they are 0 and 1 where not given); "
                "give both, or neither"
            )
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    @property
    def adaptive(self) -> bool:
        """Whether the ends of the range are those of recent revenues."""
        return self.low is None and self.high is None

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest bid; infinite for an adaptive head, whose range is among the policy's parameters."""
        return (-math.inf, math.inf) if self.adaptive else self._range

    @property
    def _range(self) -> tuple[float, float]:
        """The range of the distribution before units are applied."""
        return 0.0 if self.low is None else self.low, 1.0 if self.high is None else self.high

    @property
    def outputs(self) -> int:
        return 2

    def _parameters(self, raw: Array) -> tuple[Array, Array]:
        """(m ν, (1-m) ν) with m a sigmoid and ν a softplus; zeros give (1, 1), the uniform distribution."""
        mean = jax.nn.sigmoid(raw[..., 0])
        spread = jax.nn.softplus(raw[..., 1] + math.log(math.e**2 - 1))
        return jnp.maximum(mean * spread, _FLOOR), jnp.maximum((1 - mean) * spread, _FLOOR)


class KumaraswamyHead(_BoundedHead):
    """Kumaraswamy bids in (low, high); if neither is given, in the range of recent revenues."""

    def distribution(self, raw: Array) -> Kumaraswamy:
        """The distribution with parameters ``raw`` [..., 2]."""
        return Kumaraswamy(*self._parameters(raw), *self._range)


class BetaHead(_BoundedHead):
    """Beta bids in (low, high), as in Chang et al. (2020); if neither is given, in the range of recent revenues."""

    def distribution(self, raw: Array) -> Beta:
        """The distribution with parameters ``raw`` [..., 2]."""
        return Beta(*self._parameters(raw), *self._range)


@dataclasses.dataclass(frozen=True)
class ValueHead:
    """A deterministic bid, clipped to ``low`` and ``high`` (by default unbounded).

    Its bid networks have units (`BidPolicy.rescaled`), so that values of any size can be learned.
    """

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        for field in ("low", "high"):
            value = as_scalar("bid_low, bid_high", getattr(self, field))
            if not (isinstance(value, float) and math.isinf(value)):
                value = check_float("bid_low, bid_high", value)
            object.__setattr__(self, field, value)
        if not self.low < self.high:
            raise ValueError(f"bid_low, bid_high: expected low < high, got {self.low} and {self.high}")

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest bid."""
        return self.low, self.high

    @property
    def outputs(self) -> int:
        """The number of network outputs, 1."""
        return 1

    def estimate(self, raw: Array, bid: Array) -> Array:
        """The estimated value of winning, in the policy's units: f, broadcasts to ``bid``."""
        del bid
        return raw[..., 0]

    def distribution(self, raw: Array) -> Point:
        """The bid ``raw`` [..., 1] as a point distribution."""
        value = raw[..., 0]
        if math.isfinite(self.low) or math.isfinite(self.high):
            # Straight-through gradient, so that a clipped bid can still change.
            value = value + jax.lax.stop_gradient(jnp.clip(value, self.low, self.high) - value)
        return Point(value)


# Numbers in the matrix of a dense layer from which it is the right factor of a product.
_LARGE_KERNEL = 1 << 14


class Affine(nn.Module):
    """A dense layer as one matrix [inputs + 1, width]; its last row, the bias, multiplies a constant input of 1.

    The matrix is the left factor where it is small. Under ``vmap`` over inputs, activations then have the layout
    [features, batch], and every gradient of the layer is one matrix product. With a separate bias ``vmap`` would insert
    transpositions. A large matrix is the right factor: the products then take half of the time on a CPU
    (``benchmarks/NOTES.md``).
    """

    width: int
    kernel_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[inputs] -> [width]."""

        def init(key: Array, shape: tuple[int, int]) -> Array:
            return jnp.concatenate([self.kernel_init(key, shape, real()), jnp.zeros((1, shape[1]), real())])

        kernel = self.param("kernel", init, (x.shape[0], self.width))
        x = jax.lax.pad(x, jnp.ones((), x.dtype), [(0, 1, 0)])
        factors = (kernel, x) if kernel.size < _LARGE_KERNEL else (x, kernel)
        return jax.lax.dot_general(*factors, (((0,), (0,)), ((), ())))


# A convolution is the matrix product of a kernel and the patches of an image. `jax.vmap` puts images along the first
# axis. In that layout patches are copied in pieces of c numbers, and both factors of the product for the gradient of
# the kernel are transposed, which makes it slow. With images along the last axis, patches are copied in long pieces,
# and every product has a layout that a CPU multiplies fast (``benchmarks/NOTES.md``). So the convolution is a JAX
# primitive with a rule of its own for batches of images. Its derivatives, and all other rules, are those of ordinary
# functions.

# Axes to map over for kernel, bias and image, as in `jax.vmap`.
_Axes = tuple[int | None, int | None, int | None]


def relu_convolution(
    kernel: Float[Array, "K C"],
    bias: Float[Array, " C"],
    image: Float[Array, "height width c"],
    *,
    stride: int = 1,
    flat: bool = False,
) -> Float[Array, "..."]:
    """``max(0, convolution + bias)`` of an image with a margin of zeros: f [down, right, C].

    Args:
        kernel: for 3 × 3 places and c channels, in this order: K = 9 c.
        bias: of the channels of the result.
        image: channels last.
        stride: distance of the places at which the kernel is applied. Down is ⌈height / stride⌉, and right
            ⌈width / stride⌉.
        flat: whether the result has one axis, of down · right · C numbers. `jax.numpy.reshape` would put a batch of
            images along the first axis.
    """
    return _convolution.bind(kernel, bias, image, stride=stride, flat=flat, networks=None)


def _convolve_images(kernel: Array, bias: Array, images: Array, *, stride: int, flat: bool) -> Array:
    """[height, width, c, n] -> [down, right, C, n], computed as [c, height, width, n] -> [C, down, right, n]."""
    height, width = images.shape[:2]
    padded = jnp.pad(images.transpose(2, 0, 1, 3), ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = jnp.concatenate(
        [padded[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)], 0
    )
    k, *places, n = patches.shape
    # One axis of places and images: a contraction of several axes would be preceded by a transposition. Sum and ReLU
    # have an axis for each, since XLA would divide to find the place of every number.
    product = (kernel.T @ patches.reshape(k, math.prod(places) * n)).reshape(bias.size, *places, n)
    result = jax.nn.relu(product + bias[:, None, None, None]).transpose(1, 2, 0, 3)
    return result.reshape(math.prod(places) * bias.size, n) if flat else result


def _by_networks(function: Callable[..., Array], networks: _Axes | None) -> Callable[..., Array]:
    """The function, mapped over networks if there are several."""
    return function if networks is None else jax.vmap(function, networks)


def _convolve(kernel: Array, bias: Array, image: Array, *, networks: _Axes | None, **parameters: Any) -> Array:
    """The convolution of one image, by one network or by several."""

    def of_image(kernel: Array, bias: Array, image: Array) -> Array:
        return _convolve_images(kernel, bias, image[..., None], **parameters)[..., 0]

    return _by_networks(of_image, networks)(kernel, bias, image)


def _batch_of_convolutions(
    operands: Sequence[Array], axes: Sequence[int | None], *, networks: _Axes | None, **parameters: Any
) -> tuple[Array, int]:
    """The rule for `jax.vmap`: over images, over networks, or over both or anything else."""
    (kernel, bias, image), image_axis = operands, axes[2]
    if axes[0] is axes[1] is None and image_axis is not None:
        of_images = _by_networks(functools.partial(_convolve_images, **parameters), networks)
        result = of_images(kernel, bias, jnp.moveaxis(image, image_axis, -1))
        return result, result.ndim - 1
    operands = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(operands, axes, strict=True)]
    mapped: Any = tuple(None if axis is None else 0 for axis in axes)
    if networks is None:
        return _convolution.bind(*operands, networks=mapped, **parameters), 0
    return jax.vmap(functools.partial(_convolve, networks=networks, **parameters), mapped)(*operands), 0


def _differentiated_convolution(
    primals: Sequence[Array], tangents: Sequence[Any], **parameters: Any
) -> tuple[Array, Array]:
    evaluate = functools.partial(_convolve, **parameters)
    return jax.jvp(evaluate, tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))


def _shape_of_convolution(*operands: Array, **parameters: Any) -> ShapedArray:
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]
    result = jax.eval_shape(functools.partial(_convolve, **parameters), *shapes)
    return ShapedArray(result.shape, result.dtype)


_convolution = Primitive("relu_convolution")
_convolution.def_impl(jax.jit(_convolve, static_argnames=("stride", "flat", "networks")))
_convolution.def_abstract_eval(_shape_of_convolution)
ad.primitive_jvps[_convolution] = _differentiated_convolution
batching.primitive_batchers[_convolution] = _batch_of_convolutions
mlir.register_lowering(_convolution, mlir.lower_fun(_convolve, multiple_results=False))


class Convolution(nn.Module):
    """A 3 × 3 convolution with zero padding, then ReLU: `relu_convolution`.

    With a kernel for each bidder it is many times as fast on a CPU as `flax.linen.Conv` (``benchmarks/NOTES.md``).
    """

    channels: int
    stride: int = 1
    flat: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[height, width, c] -> [⌈height / stride⌉, ⌈width / stride⌉, channels], or one axis if ``flat``."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (9 * x.shape[-1], self.channels), real())
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), real())
        return relu_convolution(kernel, bias, x, stride=self.stride, flat=self.flat)


class Torso(nn.Module):
    """Convolutions, then dense layers: maps one observation [...] to features [hidden[-1]].

    Without layers the features are the flattened observation; the network of a head over one-hot observations is then
    a table. A layer of one or two units has no layer norm, which would leave no more than a sign of its inputs.
    """

    convolutions: tuple[int, ...] = ()
    stride: int = 1
    hidden: tuple[int, ...] = ()
    activation: bool = True
    layer_norm: bool = False

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """Features of one observation."""
        x = obs.astype(real())
        for number, channels in enumerate(self.convolutions, 1):
            x = Convolution(channels, self.stride, flat=number == len(self.convolutions))(x)
        if not self.convolutions:
            x = x.reshape(-1)
        for width in self.hidden:
            x = Affine(width)(x)
            if self.layer_norm and width > 2:
                x = nn.LayerNorm(param_dtype=real())(x)
            if self.activation:
                x = nn.relu(x)
        return x


def linear(*hidden: int) -> Torso:
    """Dense layers without activation: ``linear(16)`` is the paper's tabular network, ``linear()`` a table."""
    return Torso(hidden=check_widths("hidden", hidden), activation=False)


def mlp(*hidden: int, layer_norm: bool = False) -> Torso:
    """Dense layers with ReLU."""
    return Torso(hidden=check_widths("hidden", hidden), layer_norm=check_bool("layer_norm", layer_norm))


def cnn(*hidden: int, convolutions: tuple[int, ...] = (16,), stride: int = 1, layer_norm: bool = False) -> Torso:
    """3 × 3 convolutions over an image [height, width, channels], then dense layers, with ReLU."""
    channels, stride = check_widths("convolutions", convolutions), check_int("stride", stride)
    return Torso(
        convolutions=channels,
        stride=stride,
        hidden=check_widths("hidden", hidden),
        layer_norm=check_bool("layer_norm", layer_norm),
    )


class _Readout(nn.Module):
    torso: nn.Module
    outputs: int
    zero: bool

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        init = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
        return Affine(self.outputs, init)(self.torso(obs))


@dataclasses.dataclass(frozen=True)
class BidPolicy:
    """The bidding policy of one module: ``obs -> distribution over bids``.

    The output layer is initialised with zeros, so that all bidders initially have the same distribution of bids for all
    observations: uniform on (low, high) for a distribution, 0 for a `ValueHead`.

    The parameters for an adaptive head, and for one that estimates values, contain two numbers that are not trained by
    gradients, ``units``, at first 0 and 1: a bid is ``location + scale · x``. For a head that estimates values (one
    with a method ``estimate``), x is the network's output, and a learner that changes the units with `rescaled` keeps
    the bids. For a distribution on (0, 1), x is drawn from it (`Rescaled`), and other units mean other bids.
    """

    torso: nn.Module
    head: Head

    @property
    def _network(self) -> _Readout:
        return _Readout(self.torso, self.head.outputs, zero=True)

    def init(self, key: Array, obs: Array) -> PyTree:
        """Parameters for observations with the shape of ``obs``."""
        params = self._network.init(key, obs)
        if getattr(self.head, "adaptive", False) or hasattr(self.head, "estimate"):
            params = {**params, UNITS: {"location": jnp.zeros((), real()), "scale": jnp.ones((), real())}}
        return params

    def output(self, params: PyTree, obs: Array) -> Float[Array, " O"]:
        """The outputs of the network for one observation, in the policy's units."""
        return jnp.asarray(self._network.apply(params, obs))

    def unit_distribution(self, params: PyTree, obs: Array) -> BidDistribution:
        """The distribution of bids for one observation in the policy's units, without which it is that of bids."""
        return self.head.distribution(self.output(params, obs))

    def apply(self, params: PyTree, obs: Array) -> BidDistribution:
        """The distribution of bids for one observation; batch shape []."""
        raw = self.output(params, obs)
        if UNITS not in params:
            return self.head.distribution(raw)
        units = jax.lax.stop_gradient(params[UNITS])
        location, scale = units["location"], units["scale"]
        if hasattr(self.head, "estimate"):
            return self.head.distribution(location + scale * raw)
        return Rescaled(self.head.distribution(raw), location, scale)

    def limits(self, params: PyTree) -> tuple[Array, Array]:
        """The lowest and the highest bid that the policy can make, f [] each: those of its head or of its units."""
        if UNITS in params and not hasattr(self.head, "estimate"):
            low = params[UNITS]["location"]
            return low, low + params[UNITS]["scale"]
        low, high = getattr(self.head, "limits", (-math.inf, math.inf))
        return jnp.asarray(low, real()), jnp.asarray(high, real())

    def rescaled(self, params: PyTree, location: Float[Array, ""], scale: Float[Array, ""]) -> PyTree:
        """Parameters with other units and the same bids, as in PopArt (van Hasselt et al. 2016).

        Args:
            params: of a policy whose head estimates values.
            location: the bid at output 0.
            scale: the change of the bid per unit of output; 0 only if it was 0, as it is before the first revenue.
        """
        layers, units = params["params"], params[UNITS]
        by = divisor(scale)
        kernel = layers[OUTPUT]["kernel"] * (units["scale"] / by)
        kernel = kernel.at[-1].add((units["location"] - location) / by)  # the bias
        return {
            **params,
            "params": {**layers, OUTPUT: {"kernel": kernel}},
            UNITS: {"location": location, "scale": scale},
        }


def bid_table(bids: Float[Array, "*m S"]) -> PyTree:
    """Parameters with which ``BidPolicy(linear(), ValueHead())`` makes these bids in S one-hot states.

    Args:
        bids: of one module, or of several along leading axes, as a society's parameters have them.
    """
    kernel = jnp.concatenate([bids, jnp.zeros_like(bids[..., :1])], -1)[..., None]  # the bias last
    nothing = jnp.zeros(bids.shape[:-1], bids.dtype)
    return {"params": {OUTPUT: {"kernel": kernel}}, UNITS: {"location": nothing, "scale": nothing + 1}}


def with_torso_of(source: PyTree, params: PyTree) -> PyTree:
    """Parameters of a policy with the torso of another one; leaves may have any leading axes."""
    torso = {name: part for name, part in source["params"].items() if name == TORSO}
    return {**params, "params": {**params["params"], **torso}}


def distribution_shape(policy: Any, obs: jax.ShapeDtypeStruct | Array) -> Any:
    """A policy's distribution for one observation, with shapes and dtypes in place of arrays.

    Args:
        policy: with the methods ``init`` and ``apply`` of a `BidPolicy`.
        obs: an observation, for its shape.
    """

    def untrained(obs: Array) -> BidDistribution:
        return policy.apply(policy.init(jax.random.key(0), obs), obs)

    return jax.eval_shape(untrained, obs)


@dataclasses.dataclass(frozen=True)
class ValueNetwork:
    """The value network of one module, which estimates a bidder's expected utility: ``obs -> f []``."""

    torso: nn.Module

    @property
    def _network(self) -> _Readout:
        return _Readout(self.torso, 1, zero=False)

    def init(self, key: Array, obs: Array) -> PyTree:
        """Parameters for observations with the shape of ``obs``."""
        return self._network.init(key, obs)

    def apply(self, params: PyTree, obs: Array) -> Array:
        """Expected utility for one observation: f []."""
        return jnp.asarray(self._network.apply(params, obs))[..., 0]

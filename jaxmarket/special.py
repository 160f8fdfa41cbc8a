"""Special functions of bid distributions, with derivatives that cost a few divisions.

XLA's own functions are the most expensive operations of a training step on a CPU. In single precision these are
Stirling's series after a shift of the argument by six, good to rounding; in double precision they are those of
`jax.scipy.special`.
"""

import jax
import jax.numpy as jnp
from jax.scipy import special
from jaxtyping import Float

from jaxmarket.types import Array

__all__ = ["betaln", "digamma", "harmonic", "trigamma"]

_HALF_LOG_2_PI = 0.9189385332046727


@jax.custom_jvp
def digamma(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """ψ, the logarithmic derivative of the gamma function, for x > 0."""
    if x.dtype == jnp.float64:
        return special.digamma(x)
    # ψ(x) = ψ(x + 6) - Σ 1/(x + k) over k = 0 to 5. The terms of k and 5 - k share one division.
    q = x * (x + 5)
    shift = (2 * x + 5) * (1 / q + 1 / (q + 4) + 1 / (q + 6))
    w = 1 / (x + 6)
    w2 = w * w
    return jnp.log(x + 6) - w / 2 - w2 * (1 / 12 - w2 * (1 / 120 - w2 / 252)) - shift


@digamma.defjvp
def _digamma_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return digamma(*primals), trigamma(*primals) * tangents[0]


def trigamma(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """ψ', for x > 0."""
    if x.dtype == jnp.float64:
        return special.polygamma(1, x)
    # As in `digamma`; XLA computes the divisions of both once.
    q = x * (x + 5)
    pairs = 1 / q, 1 / (q + 4), 1 / (q + 6)
    shift = sum((2 * q + c) * each**2 for c, each in zip((25, 17, 13), pairs, strict=True))
    w = 1 / (x + 6)
    w2 = w * w
    return w + w2 / 2 + w * w2 * (1 / 6 - w2 * (1 / 30 - w2 / 42)) + shift


def harmonic(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The harmonic number H_x = ψ(x + 1) + γ, for x > -1."""
    return digamma(x + 1) + jnp.asarray(jnp.euler_gamma, x.dtype)


@jax.custom_jvp
def betaln(a: Float[Array, "*n"], b: Float[Array, "*n"]) -> Float[Array, "*n"]:
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
        + (_HALF_LOG_2_PI - jnp.log(b) / 2)
        - (a - 0.5) * jnp.log1p(b / a)
        - b * jnp.log1p(a / b)
        + (_stirling(a) + _stirling(b) - _stirling(a + b))
    )


@betaln.defjvp
def _betaln_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (a, b), (da, db) = primals, tangents
    both = digamma(a + b)
    return betaln(a, b), (digamma(a) - both) * da + (digamma(b) - both) * db


def _stirling(z: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """``log Γ(z) - (z - ½) log z + z - ½ log 2π`` for z >= 6."""
    w = 1 / z
    w2 = w * w
    return w * (1 / 12 - w2 * (1 / 360 - w2 / 1260))

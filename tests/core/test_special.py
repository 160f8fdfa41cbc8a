"""The special functions and their derivatives against SciPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxmarket.policies import _betaln, _digamma, _harmonic, _trigamma

GRID = np.unique(np.float32(np.r_[1e-4, 1e-3, 1e-2, np.linspace(0.05, 20, 100), np.geomspace(20, 1e5, 20)]))
A, B = (pairs.ravel() for pairs in np.meshgrid(GRID, GRID))
THEIRS = {_digamma: scipy.special.digamma, _trigamma: lambda x: scipy.special.polygamma(1, x)}


def difference(ours, theirs):
    """The largest error, relative where values are larger than 1."""
    return (np.abs(np.asarray(ours, np.float64) - theirs) / np.maximum(1, np.abs(theirs))).max()


@pytest.mark.parametrize("function", THEIRS)
def test_single_precision_is_scipys_to_rounding(function):
    assert difference(jax.jit(function)(GRID), THEIRS[function](GRID.astype(float))) < 1e-6


def test_harmonic_numbers_are_sums():
    np.testing.assert_allclose(_harmonic(jnp.arange(8.0)), np.cumsum(np.r_[0, 1 / np.arange(1, 8)]), atol=1e-6)


def test_betaln_is_scipys_to_rounding():
    # The largest error is that of parameters of very different sizes.
    assert difference(jax.jit(_betaln)(A, B), scipy.special.betaln(A.astype(float), B.astype(float))) < 2e-5
    near = np.maximum(A, B) < 100
    ours = jax.jit(_betaln)(A[near], B[near])
    assert difference(ours, scipy.special.betaln(A[near].astype(float), B[near].astype(float))) < 5e-6


def test_derivatives_are_scipys():
    a, b = A.astype(float), B.astype(float)
    slope = jax.jit(jax.vmap(jax.grad(_betaln)))(A, B)
    assert difference(slope, scipy.special.digamma(a) - scipy.special.digamma(a + b)) < 2e-5
    curve = jax.jit(jax.vmap(jax.grad(_digamma)))(GRID)
    assert difference(curve, scipy.special.polygamma(1, GRID.astype(float))) < 1e-6
    third = jax.jit(jax.vmap(jax.grad(_trigamma)))(GRID)
    assert difference(third, scipy.special.polygamma(2, GRID.astype(float))) < 3e-6


def test_double_precision_is_scipys():
    with jax.enable_x64(True):
        a, b = A.astype(float), B.astype(float)
        near = np.maximum(a, b) < 1000
        assert difference(jax.jit(_betaln)(a, b)[near], scipy.special.betaln(a, b)[near]) < 1e-11
        for function, theirs in THEIRS.items():
            assert difference(function(jnp.asarray(GRID, float)), theirs(GRID.astype(float))) < 1e-11

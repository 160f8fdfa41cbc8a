"""Distributions over choices: against samples, softmax and the flat distribution of all products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket.training.actions import Categorical, Product, ProductHead


def test_categorical_agrees_with_its_own_samples():
    logits = jnp.array([0.3, -1.0, 2.0, 0.0])
    distribution = Categorical(logits)
    probability = np.asarray(jax.nn.softmax(logits))
    choices = jnp.arange(4.0)
    np.testing.assert_allclose(jnp.exp(distribution.log_prob(choices)), probability, rtol=1e-6)
    np.testing.assert_allclose(distribution.entropy(), -(probability * np.log(probability)).sum(), rtol=1e-6)
    assert float(distribution.mean()) == 2
    grid = (jnp.arange(100_000) + 0.5) / 100_000
    shares = np.bincount(np.asarray(distribution.from_noise(grid), int), minlength=4) / grid.size
    np.testing.assert_allclose(shares, probability, atol=2e-5)
    assert float(distribution.from_noise(jnp.float32(np.nextafter(np.float32(1), np.float32(0))))) == 3
    drawn = np.asarray(distribution.sample(jax.random.key(0), (20_000,)), int)
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / drawn.size, probability, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("factors", "base"), [(1, 3), (3, 4)])
def test_a_product_is_the_categorical_of_all_its_choices(factors, base):
    """Against the flat distribution, whose logits are sums: the same numbers, entropies, shares and gradients."""
    logits = jnp.asarray(np.random.default_rng(factors).normal(size=(5, factors, base)), jnp.float32)
    count = base**factors
    digits = np.stack(np.unravel_index(np.arange(count), (base,) * factors))  # [factors, count]
    everything = jnp.arange(float(count))

    def flat(logits):
        return Categorical(sum(logits[..., i, digits[i]] for i in range(factors)))

    product, whole = ProductHead(factors, base).distribution(logits.reshape(5, -1)), flat(logits)
    np.testing.assert_array_equal(product.logits, logits)
    logs = jax.jit(jax.vmap(lambda one: jax.vmap(one.log_prob)(everything)))
    np.testing.assert_allclose(logs(product), logs(whole), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(product.entropy(), whole.entropy(), rtol=1e-5)
    np.testing.assert_array_equal(product.mean(), whole.mean())
    grid = (jnp.arange(10_000) + 0.5) / 10_000
    quantiles = jax.jit(jax.vmap(lambda d: jax.vmap(d.from_noise)(grid)))
    one, other = (np.asarray(quantiles(d), int) for d in (product, whole))
    assert (one != other).mean() <= 1e-3  # rounding, at the edges of shares
    shares = np.stack([np.bincount(row, minlength=count) for row in one]) / grid.size
    np.testing.assert_allclose(shares, np.exp(logs(whole)), atol=3e-4)
    drawn = np.asarray(product.sample(jax.random.key(0), (4000,)), int)
    assert drawn.shape == (4000, 5)
    for i in range(5):
        found = np.bincount(drawn[:, i], minlength=count) / 4000
        np.testing.assert_allclose(found, np.exp(logs(whole)[i]), atol=0.04)
    choices = jnp.asarray(np.random.default_rng(0).integers(count, size=5), jnp.float32)

    def loss(make, logits):
        return (make(logits).log_prob(choices) * jnp.arange(1.0, 6.0)).sum() + make(logits).entropy().sum()

    slopes = (jax.jit(jax.grad(lambda x, make=make: loss(make, x)))(logits) for make in (Product, flat))
    np.testing.assert_allclose(*slopes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("u", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_a_product_stays_within_its_choices(u):
    """However lopsided: no share is ever divided by."""
    logits = jnp.array([[0.0, -200.0, 0.0], [-200.0, 50.0, -200.0]])
    assert float(Product(logits).from_noise(jnp.float32(u))) == (1 if u == 0 else 7)


def test_bad_factors_are_named():
    with pytest.raises(ValueError, match="base: expected an integer >= 1, got 0"):
        ProductHead(2, 0)
    with pytest.raises(ValueError, match=r"factors: 4\^13 choices are more than 2\^24"):
        ProductHead(13, 4)

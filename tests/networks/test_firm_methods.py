"""The training methods that the reproduction `profit` compares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket.deep_market.layer_market import ACTIVATIONS, BACKPROPAGATION, LayerStructure
from jaxmarket.networks import firm_methods as methods

KEYS = jax.random.split(jax.random.key(0), 2)


def test_the_profit_gradient_is_that_of_the_layer_market():
    rng = np.random.default_rng(0)
    weights = tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((65, 32), (33, 10)))
    structure = LayerStructure(jnp.int32(0), jnp.int32(32), jnp.float32(0.1))
    assert ACTIVATIONS[0][0] == "relu"
    x, labels = jnp.asarray(rng.random((16, 64)), jnp.float32), jnp.asarray(rng.integers(0, 10, 16), jnp.int32)
    ours = methods.profit_gradient(weights, structure, x, labels)
    for a, b in zip(ours, BACKPROPAGATION(weights, structure, x, labels), strict=True):
        assert abs(b).max() > 1e-3
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_two_processes_train_on_the_batches_of_one():
    late = methods.train_late(0, False, 0.1, KEYS[:1], steps=3, parts=1)
    division = methods._division(tuple(int(x) for x in jax.random.key_data(KEYS[0])), 0.1, 3)
    market = division.market
    state = market.init(division.params)
    for step in range(3):
        inputs, labels = division.batch(step)
        state, _ = market.step(state, inputs, lambda logits, labels=labels: division.utility(labels, logits))
    np.testing.assert_allclose(methods._accuracy(market, state.params), late["accuracy"][0, 0], atol=1e-6)


@pytest.mark.slow
def test_width_follows_the_rent():
    cheap, dear = (methods.train_priced(rent, KEYS, steps=1200) for rent in (0.02, 0.3))
    assert (cheap["units"] > dear["units"]).all()
    pruned = methods.train_pruned(KEYS, dear, steps=400)
    narrow = methods.train_narrow(KEYS, dear, steps=400)
    np.testing.assert_array_equal(pruned["units"], dear["units"])
    np.testing.assert_array_equal(narrow["units"], dear["units"])


@pytest.mark.slow
def test_neurons_enter_free_places():
    entered = methods.train_priced(0.0, KEYS, steps=1600, entry=True)
    assert (entered["units"] > methods.CELLS // 8).all()
    assert (entered["accuracy"] > 0.8).all()

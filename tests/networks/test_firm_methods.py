"""The training methods that the reproduction `profit` compares."""

import jax
import numpy as np
import pytest

from jaxmarket.networks import firm_methods as methods

KEYS = jax.random.split(jax.random.key(0), 2)


@pytest.mark.slow
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

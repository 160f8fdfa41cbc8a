"""Adam as `jaxmarket.learners.protocol` runs it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmarket.learners import protocol


@pytest.mark.parametrize("largest", [0, 1 << 13], ids=["one array after the other", "as one vector"])
def test_a_step_is_that_of_adam(monkeypatch, largest):
    monkeypatch.setattr(protocol, "_LARGE", largest)
    rng = np.random.default_rng(0)

    def draw():
        return {"kernel": jnp.asarray(rng.normal(size=(7, 3))), "units": {"scale": jnp.asarray(rng.normal())}}

    params, rate = draw(), 0.03
    reference = optax.adam(rate, eps=1e-8, eps_root=1e-16)
    ours, theirs = params, params
    state, their_state = protocol.adam(params), reference.init(params)
    assert len(jax.tree.leaves(state.adam)) == (5 if largest == 0 else 3)  # a count and two moments
    for _ in range(3):
        gradient = draw()
        ours, state = protocol.descend(ours, state, gradient, rate)
        updates, their_state = reference.update(gradient, their_state)
        theirs = optax.apply_updates(theirs, updates)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize(("size", "arrays"), [(8192, 3), (8193, 5)])
def test_each_of_two_networks_may_be_as_large_as_one(size, arrays):
    """A policy and a value network have one optimizer."""
    network = jnp.zeros(size)
    assert len(jax.tree.leaves(protocol.adam({"one": network[1:], "rest": network[:1]}).adam)) == arrays
    assert len(jax.tree.leaves(protocol.adam((network, network)).adam)) == arrays

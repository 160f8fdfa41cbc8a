"""The firms of the reproduction `profit` on the network of the market of layers."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket.deep_market.layer_market import ACTIVATIONS, BACKPROPAGATION, LayerStructure
from jaxmarket.experiments.profit import profit_gradient


@pytest.mark.parametrize(("activation", "width"), [("relu", 16), ("sine", 32)])
def test_two_firms_find_the_gradient_of_the_network(activation, width):
    rng = np.random.default_rng(0)
    weights = tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((65, 32), (33, 10)))
    kind = [name for name, _ in ACTIVATIONS].index(activation)
    structure = LayerStructure(jnp.int32(kind), jnp.int32(width), jnp.float32(0.1))
    x, labels = jnp.asarray(rng.random((16, 64)), jnp.float32), jnp.asarray(rng.integers(0, 10, 16), jnp.int32)
    ours = profit_gradient(weights, structure, x, labels)
    for found, expected in zip(ours, BACKPROPAGATION(weights, structure, x, labels), strict=True):
        assert abs(expected).max() > 1e-3
        np.testing.assert_allclose(found, expected, atol=1e-6)

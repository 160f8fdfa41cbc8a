"""Single neurons and attention heads as firms, against the layers that they make up."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmarket.networks import FirmMarket, Plant
from jaxmarket.networks.members import (
    attention_heads,
    enter,
    head_params,
    neuron_params,
    neurons,
    nonnegative_capacity,
    rent_per_capacity,
)

X = jax.random.normal(jax.random.key(0), (7, 5))
TOKENS = jax.random.normal(jax.random.key(1), (3, 4, 6))


def value(y):
    return jnp.sin(y).sum()


def test_neurons_train_as_their_layers_do():
    module = nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(3)])
    params = module.init(jax.random.key(2), X)["params"]
    tx = optax.adam(1e-2)
    plants = (neurons("lower", "x", "h"), neurons("upper", "h", "y", activation=lambda z: z))
    market = FirmMarket(plants, ("x",), ("y",), tx)
    state = market.init({"lower": neuron_params(params["layers_0"]), "upper": neuron_params(params["layers_2"])})
    assert state.optimizer["lower"][0].count.shape == (6,)  # every neuron has an optimizer
    step = jax.jit(lambda state: market.step(state, (X,), value))

    @jax.jit
    def ascend(params, adam):
        gradient = jax.grad(lambda params: -value(module.apply({"params": params}, X)))(params)
        updates, adam = tx.update(gradient, adam)
        return optax.apply_updates(params, updates), adam

    adam = tx.init(params)
    for _ in range(20):
        state, trade = step(state)
        params, adam = ascend(params, adam)
    for firm, layer in (("lower", "layers_0"), ("upper", "layers_2")):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params[firm], neuron_params(params[layer])
        )
    assert float(trade.residual()) < 1e-5


def test_the_accounts_of_neurons_add_up_to_the_account_of_their_layer():
    layer = {"kernel": jax.random.normal(jax.random.key(3), (5, 6)), "bias": jnp.linspace(-1, 1, 6)}
    whole = Plant("layer", lambda p, x: (jax.nn.relu(x @ p["kernel"] + p["bias"]),), ("x",), ("y",))
    flows = [
        FirmMarket((plant,), ("x",), ("y",), optax.sgd(1.0)).trade({"layer": params}, (X,), value).accounts["layer"]
        for plant, params in ((whole, layer), (neurons("layer", "x", "y"), neuron_params(layer)))
    ]
    for name in ("sales", "purchases"):
        assert flows[1][name].shape == (6,)
        np.testing.assert_allclose(flows[1][name].sum(), flows[0][name], rtol=1e-5)
    # A neuron's offers are W b for its own column and price: its sales less its purchases are the value of its bias.
    z = X @ layer["kernel"] + layer["bias"]
    b = jnp.where(z > 0, jnp.cos(jax.nn.relu(z)), 0)
    np.testing.assert_allclose(flows[1].net, (b * layer["bias"]).sum(0), rtol=1e-4, atol=1e-5)


def test_heads_train_as_their_layer_does():
    module = nn.MultiHeadDotProductAttention(num_heads=2)
    params = module.init(jax.random.key(4), TOKENS)["params"]
    plants = (
        attention_heads("heads", "x", "parts"),
        Plant("sum", lambda bias, parts: (parts.sum(0) + bias,), ("parts",), ("y",)),
    )
    market = FirmMarket(plants, ("x",), ("y",), optax.sgd(0.1))
    state = market.init({"heads": head_params(params), "sum": params["out"]["bias"]})
    np.testing.assert_allclose(
        market.produce(state.params, (TOKENS,))[0], module.apply({"params": params}, TOKENS), atol=1e-5
    )
    state, trade = jax.jit(lambda state: market.step(state, (TOKENS,), value))(state)
    gradient = jax.grad(lambda params: value(module.apply({"params": params}, TOKENS)))(params)
    expected = jax.tree.map(lambda w, g: w + 0.1 * g, params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params["heads"], head_params(expected))
    assert trade.accounts["heads"]["sales"].shape == (2,)
    assert float(trade.residual()) < 1e-6


@pytest.mark.slow
def test_a_neuron_whose_activation_is_not_worth_the_rent_leaves():
    # The consumer pays 1 for a unit of the first neuron's good, 0.1 for one of the second.
    plant = neurons("layer", "x", "y", activation=lambda z: z, capacity=True)
    market = FirmMarket(
        (plant,), ("x",), ("y",), nonnegative_capacity(optax.sgd(0.1)), {"layer": rent_per_capacity(0.5)}
    )
    params = {"kernel": jnp.zeros((2, 1)), "bias": jnp.ones(2), "capacity": jnp.ones(2)}
    state = market.init({"layer": params})
    state, trade = market.step(state, (jnp.zeros((1, 1)),), lambda y: y[0, 0] + 0.1 * y[0, 1])
    np.testing.assert_allclose(trade.accounts["layer"]["rent"], [-0.5, -0.5])
    np.testing.assert_allclose(state.params["layer"]["capacity"], [1.05, 0.96], rtol=1e-6)
    for _ in range(40):
        state, trade = market.step(state, (jnp.zeros((1, 1)),), lambda y: y[0, 0] + 0.1 * y[0, 1])
    assert float(state.params["layer"]["capacity"][1]) == 0
    assert float(trade.accounts["layer"]["rent"][1]) == 0
    assert float(state.params["layer"]["capacity"][0]) > 2


def test_neurons_of_a_layer_without_biases_and_wrong_capacities():
    params = neuron_params({"kernel": jnp.ones((5, 3))}, capacity=2.0)
    np.testing.assert_array_equal(params["bias"], np.zeros(3))
    np.testing.assert_array_equal(params["capacity"], np.full(3, 2.0))
    with pytest.raises(ValueError, match=r"^capacity:"):
        neuron_params({"kernel": jnp.ones((5, 3))}, capacity=-1.0)


def test_entrants_replace_neurons_and_begin_with_a_new_optimizer():
    market = FirmMarket((neurons("layer", "x", "y", capacity=True),), ("x",), ("y",), optax.adam(0.1))
    dense = {"kernel": jnp.ones((5, 3)), "bias": jnp.ones(3)}
    state, _ = market.step(market.init({"layer": neuron_params(dense, 1.0)}), (X,), value)
    new = market.init({"layer": neuron_params({"kernel": jnp.zeros((5, 3)), "bias": jnp.zeros(3)}, 0.1)})
    places = jnp.asarray([False, True, False])
    params, optimizer = enter(
        state.params["layer"], state.optimizer["layer"], new.params["layer"], new.optimizer["layer"], places
    )
    np.testing.assert_array_equal(params["kernel"][1], 0)
    np.testing.assert_array_equal(params["kernel"][0], state.params["layer"]["kernel"][0])
    np.testing.assert_array_equal(optimizer[0].count, [1, 0, 1])
    with pytest.raises(ValueError, match=r"^entrants:"):
        enter(params, optimizer, params, optimizer, jnp.ones(2, bool))

"""Networks as markets against the networks themselves: Flax forwards, JAX backwards, and the books in between."""

import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxmarket.networks import NetworkMarket, from_mlp, neuron_quote
from jaxmarket.networks import layers as networks
from jaxmarket.types import NOBODY


class MLP(nn.Module):
    """The Flax network that the market reproduces."""

    widths: tuple
    linear_last: bool = False
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        for k, width in enumerate(self.widths, 1):
            x = nn.Dense(width, use_bias=self.use_bias)(x)
            x = x if self.linear_last and k == len(self.widths) else nn.relu(x)
        return x


def random_network(rng, widths, linear_last=False, use_bias=True):
    """A module, and random variables of it: all biases random, listed in disorder, as jit lists them."""
    layers = {
        f"Dense_{k}": {"kernel": rng.normal(size=pair) * np.sqrt(2 / pair[0]), "bias": rng.normal(size=pair[1])}
        for k, pair in enumerate(itertools.pairwise(widths))
    }
    if not use_bias:
        for layer in layers.values():
            del layer["bias"]
    return MLP(widths[1:], linear_last, use_bias), {"params": {name: layers[name] for name in sorted(layers)}}


forward_jit = jax.jit(NetworkMarket.forward)
prices_jit = jax.jit(NetworkMarket.prices)
edge_prices_jit = jax.jit(NetworkMarket.edge_prices)
both_jit = jax.jit(
    lambda module, variables, market, x: (market.forward(x), module.apply(variables, x)), static_argnums=0
)
apply_jit = jax.jit(lambda module, variables, x: module.apply(variables, x), static_argnums=0)


def architectures(count):
    """Depths 1 to 12, more of the small ones (each compiles separately), widths 1 to 17, decoys 0 to 20."""
    rng = np.random.default_rng(7)
    for i in range(count):
        depth = int(rng.integers(*{0: (11, 13), 5: (5, 11)}.get(i % 10, (1, 5))))
        widths = tuple(int(w) for w in rng.integers(1, 18, depth + 1))
        yield rng, widths, bool(i % 3 == 0), bool(i % 7 != 3), int(rng.integers(0, 21))


def close(got, want, tolerance):
    want = np.asarray(want)
    assert got.shape == want.shape
    np.testing.assert_array_less(np.abs(got - want) / np.maximum(1, np.abs(want)), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("count", [4, 50])
def test_networks_pass_forward_by_auction(count):
    """The forward pass is bit-identical for all depths and numbers of decoys."""
    for i, (rng, widths, linear_last, use_bias, decoys) in enumerate(architectures(count)):
        module, variables = random_network(rng, widths, linear_last, use_bias)
        market = from_mlp(variables, decoys, jax.random.key(i), linear_last)
        x = jnp.asarray(rng.normal(size=(4, widths[0])), jnp.float32)
        np.testing.assert_array_equal(*both_jit(module, variables, market, x))


PLAN = (3, 5, 1, 4, 2)


@functools.cache
def instance(seed, decoys=6, linear_last=False):
    rng = np.random.default_rng(seed)
    module, variables = random_network(rng, PLAN, linear_last)
    return module, variables, from_mlp(variables, decoys, jax.random.key(seed), linear_last), rng


def test_network_layers_win_every_auction():
    """Eligibility, bids and winners of each auction equal those of plain Python."""
    for seed in range(5):
        market = instance(seed)[2]
        layer, wealth = np.asarray(market.layer).tolist(), np.asarray(market.wealth).tolist()
        assert sorted(wealth) == [0.0] * 6 + [1.0] * 4
        for tag in range(4):
            outcome = jax.jit(NetworkMarket.sell)(market, tag)
            owner = next(a for a in range(10) if layer[a] == tag + 1 and wealth[a] > 0)
            assert int(outcome.winner) == owner
            assert float(outcome.winning_bid) == 1
            bids = [min(float(layer[a] == tag + 1), wealth[a]) for a in range(10)]
            np.testing.assert_array_equal(outcome.bids, bids)
        assert int(market.sell(4).winner) == NOBODY  # no layer follows the last one


def test_decoys_do_harm_where_they_have_money():
    """The forward pass is exact because of wealth: a decoy with more wealth than a layer's agent changes the result."""
    module, variables, market, rng = instance(0, decoys=12)
    x = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    y = apply_jit(module, variables, x)
    poor = market.wealth == 0
    close(np.asarray(forward_jit(market.replace(wealth=jnp.where(poor, 0.0, 0.25)), x)), y, 1e-6)  # any wealth does
    close(np.asarray(forward_jit(market.replace(wealth=jnp.where(poor, 0.2, 0.25)), x)), y, 1e-6)
    usurped = forward_jit(market.replace(wealth=jnp.where(poor, 0.3, 0.25)), x)
    assert np.isfinite(usurped).all()
    assert np.abs(usurped - y).max() > 0.1


def test_layer_without_positive_bids_is_not_sold():
    _, _, market, _ = instance(1)
    broke = market.replace(wealth=jnp.where(market.layer == 2, 0.0, market.wealth))
    outcome = broke.sell(1)
    assert int(outcome.winner) == NOBODY
    assert float(outcome.winning_bid) == 0
    assert int(broke.sell(0).winner) == int(market.sell(0).winner)
    assert np.isnan(forward_jit(broke, jnp.ones(3))).all()
    quotes = edge_prices_jit(broke, jnp.ones(3), jnp.ones(2))
    assert np.isnan(quotes[1].edges).all()
    assert np.isnan(prices_jit(broke, jnp.ones(3), jnp.ones(2))).all()


def test_order_of_ids_and_kind_of_decoys_do_not_matter():
    _, variables, market, rng = instance(2)
    x = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    other = from_mlp(variables, 6, jax.random.key(99))
    assert np.asarray(market.layer).tolist() != np.asarray(other.layer).tolist()
    np.testing.assert_array_equal(forward_jit(market, x), forward_jit(other, x))
    np.testing.assert_array_equal(prices_jit(market, x, jnp.ones(2)), prices_jit(other, x, jnp.ones(2)))


def test_ids_are_drawn():
    """The order of ids, which breaks ties, is random and does not favour the network's layers."""
    first = [float(instance(seed)[2].wealth[0]) for seed in range(12)]
    assert 0 < sum(first) < 12


# --- prices


def gradients(module, variables, x, output_prices):
    """(with respect to inputs, and by layer to kernels and biases)."""

    def revenue(x, params):
        return (output_prices * module.apply({"params": params}, x)).sum()

    return jax.grad(revenue, (0, 1))(x, variables["params"])


gradients_jit = jax.jit(gradients, static_argnums=0)


@pytest.mark.parametrize("count", [4, pytest.param(6, marks=pytest.mark.slow)])
def test_prices_are_gradients_float32(count):
    for i, (rng, widths, linear_last, use_bias, decoys) in enumerate(architectures(count)):
        module, variables = random_network(rng, widths, linear_last, use_bias)
        market = from_mlp(variables, decoys, jax.random.key(i), linear_last)
        x, p = (jnp.asarray(rng.normal(size=(3, w)), jnp.float32) for w in (widths[0], widths[-1]))
        close(np.asarray(prices_jit(market, x, p)), gradients_jit(module, variables, x, p)[0], 1e-5)


@pytest.mark.parametrize("linear_last", [False, True])
def test_prices_of_everything_are_gradients_x64(linear_last):
    with jax.enable_x64(True):
        for seed in range(4):
            rng = np.random.default_rng(seed)
            module, variables = random_network(rng, (4, 7, 7, 3), linear_last)
            market = from_mlp(variables, 5, jax.random.key(seed), linear_last)
            assert market.weights[0].dtype == jnp.float64
            x, p = rng.normal(size=4), rng.normal(size=3)
            close(np.asarray(forward_jit(market, x)), apply_jit(module, variables, x), 1e-12)
            by_input, by_layer = gradients_jit(module, variables, x, p)
            close(np.asarray(prices_jit(market, x, p)), by_input, 1e-10)
            activations = hidden(variables, x, linear_last)
            for k, quotes in enumerate(edge_prices_jit(market, x, p)):
                layer = by_layer[f"Dense_{k}"]
                close(np.asarray(quotes.bias), layer["bias"], 1e-10)
                close(np.outer(activations[k], quotes.bias), layer["kernel"], 1e-10)


def hidden(variables, x, linear_last=False):
    """Inputs and outputs of all layers in NumPy: a list of n + 1 vectors."""
    values, depth = [np.asarray(x, float)], len(variables["params"])
    for k in range(depth):
        layer = variables["params"][f"Dense_{k}"]
        z = values[-1] @ np.asarray(layer["kernel"]) + np.asarray(layer.get("bias", 0))
        values.append(z if linear_last and k == depth - 1 else np.maximum(z, 0))
    return values


def test_the_price_of_an_edge_is_the_gradient_with_respect_to_what_it_carries():
    """One good per edge: every neuron gets its own copy of each activation, and JAX differentiates the copies."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        _, variables = random_network(rng, PLAN)
        market = from_mlp(variables, 4, jax.random.key(3))
        layers = [variables["params"][f"Dense_{k}"] for k in range(4)]
        x, p = rng.normal(size=3), rng.normal(size=2)

        def revenue(extra):
            h = jnp.asarray(x)
            for layer, more in zip(layers, extra, strict=True):
                z = (layer["kernel"] * (h[:, None] + more)).sum(0) + layer["bias"]
                h = jax.nn.relu(z)
            return p @ h

        nothing = [jnp.zeros(layer["kernel"].shape) for layer in layers]
        for quotes, want in zip(edge_prices_jit(market, x, p), jax.grad(revenue)(nothing), strict=True):
            close(np.asarray(quotes.edges), want, 1e-10)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(st.integers(0, 2**32 - 1), st.booleans())
def test_money_paid_is_money_received(seed, linear_last):
    """Euler: consumers pay what the owners of inputs and biases receive; no neuron makes a profit or a loss."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        _, variables = random_network(rng, PLAN, linear_last)
        market = from_mlp(variables, 6, jax.random.key(seed), linear_last)
        x, p = rng.normal(size=3), rng.normal(size=2)
        quotes = jax.device_get(edge_prices_jit(market, x, p))
        values = hidden(variables, x, linear_last)
        biases = [variables["params"][f"Dense_{k}"]["bias"] for k in range(4)]
        spent = p @ values[-1]
        received = x @ np.asarray(prices_jit(market, x, p))
        endowments = sum(b @ q.bias for b, q in zip(biases, quotes, strict=True))
        assert received + endowments == pytest.approx(spent, abs=1e-9 * max(1, abs(spent)))
        sold = [*(q.edges.sum(1) for q in quotes[1:]), p]
        for k in range(4):
            paid = values[k] @ quotes[k].edges + biases[k] * quotes[k].bias
            np.testing.assert_allclose(paid, values[k + 1] * sold[k], atol=1e-9 * max(1, abs(spent)))


def test_a_quote_by_hand():
    prices, bias = neuron_quote(jnp.float32(0.5), jnp.array([2.0, -1.0]), jnp.array([3.0, -1.0]))
    np.testing.assert_array_equal(prices, [4, -2])
    assert float(bias) == 2
    for z in (0.0, -0.5):  # without output there is no demand
        prices, bias = neuron_quote(jnp.float32(z), jnp.array([2.0, -1.0]), jnp.array([3.0, -1.0]))
        np.testing.assert_array_equal([*prices, bias], [0, 0, 0])
    prices, _ = neuron_quote(jnp.float32(-0.5), jnp.array([2.0, -1.0]), jnp.array([3.0, -1.0]), rectified=False)
    np.testing.assert_array_equal(prices, [4, -2])


def test_a_quote_is_local():
    """Quotes of a neuron depend only on z, its weights and the quotes of its buyers."""
    rng = np.random.default_rng(5)
    z, weights, offers = (jnp.asarray(rng.normal(size=shape)) for shape in ((4,), (3, 4), (4, 2)))
    z = jnp.abs(z)
    edges, bias = networks._layer_quotes(z, weights, offers, True)
    for k in range(4):
        own, own_bias = neuron_quote(z[k], weights[:, k], offers[k])
        np.testing.assert_array_equal(edges[:, k], own)
        assert float(bias[k]) == float(own_bias)
        elsewhere = jnp.arange(4) != k
        shaken = networks._layer_quotes(
            jnp.where(elsewhere, -z, z),
            weights + 5 * elsewhere,
            offers + 3 * elsewhere[:, None],
            True,
        )
        np.testing.assert_array_equal(shaken[0][:, k], edges[:, k])
        assert (np.asarray(shaken[0]) != np.asarray(edges))[:, elsewhere].any()
    # To other neurons' quotes, by derivative: exactly nothing.
    jacobian = jax.jacobian(lambda weights: networks._layer_quotes(z, weights, offers, True)[0])(weights)
    for k, m in itertools.permutations(range(4), 2):
        assert not jacobian[:, k, :, m].any()


def test_in_the_network_only_what_lies_between_a_neuron_and_the_consumers_sets_its_prices():
    """Earlier weights affect a neuron's quotes only through z; weights of other neurons of its layer have no effect."""
    rng = np.random.default_rng(6)
    _, variables = random_network(rng, PLAN)
    for layer in variables["params"].values():
        layer.update({name: np.abs(values) for name, values in layer.items()})  # so that every unit is active
    x, p = jnp.asarray(rng.normal(size=3), jnp.float32), jnp.asarray(rng.normal(size=2), jnp.float32)
    x = jnp.abs(x)
    before = edge_prices_jit(from_mlp(variables), x, p)
    # Another first layer that makes the same numbers out of this x.
    first = np.asarray(variables["params"]["Dense_0"]["kernel"], np.float32)
    across = np.array([x[1], -x[0], 0], np.float32)[:, None]  # at right angles to x
    other = {**variables["params"]["Dense_0"], "kernel": first + across * rng.normal(size=(1, 5))}
    after = edge_prices_jit(from_mlp({"params": {**variables["params"], "Dense_0": other}}), x, p)
    np.testing.assert_allclose(before[0].bias, after[0].bias, rtol=1e-5)
    assert np.abs(np.asarray(before[0].edges - after[0].edges)).max() > 0.1 * np.abs(before[0].edges).max()
    for was, now in zip(before[1:], after[1:], strict=True):
        np.testing.assert_allclose(was.edges, now.edges, rtol=1e-5)


# --- shapes, and what cannot be traded


def test_batches_are_many_of_one():
    _, _, market, rng = instance(0)
    x, p = jnp.asarray(rng.normal(size=(2, 3, 3)), jnp.float32), jnp.asarray(rng.normal(size=2), jnp.float32)
    y, prices = forward_jit(market, x), prices_jit(market, x, p)
    assert y.shape == (2, 3, 2)
    assert prices.shape == (2, 3, 3)
    for i, j in np.ndindex(2, 3):
        np.testing.assert_allclose(y[i, j], forward_jit(market, x[i, j]), rtol=1e-5)
        np.testing.assert_allclose(prices[i, j], prices_jit(market, x[i, j], p), rtol=1e-5)
    spread = edge_prices_jit(market, x[0, 0], jnp.stack([p, 2 * p]))
    assert [(q.edges.shape, q.bias.shape) for q in spread] == [((2, a, b), (2, b)) for a, b in itertools.pairwise(PLAN)]
    np.testing.assert_allclose(spread[0].edges[1], 2 * spread[0].edges[0], rtol=1e-5)


def test_auctions_are_held_once_for_all_inputs():
    """Winners do not depend on the inputs, so mapped over them nothing is gathered input by input."""
    market = instance(0)[2]
    text = str(jax.make_jaxpr(NetworkMarket.forward)(market, jnp.zeros((77, 3))))
    assert "77,5" in text
    assert "77,5,1" not in text
    assert "77,10" not in text  # nor are bids of the ten agents


def test_a_dense_network_with_names_of_its_own():
    rng = np.random.default_rng(0)
    kernels = [rng.normal(size=(3, 3)) for _ in range(3)]
    named = {"params": {name: {"kernel": w} for name, w in zip(("inner", "deeper", "again"), kernels, strict=True)}}
    y = np.ones(3)
    for w in kernels:
        y = np.maximum(y @ w, 0)
    np.testing.assert_allclose(from_mlp(named).forward(jnp.ones(3)), y, rtol=1e-5, atol=1e-6)


def test_numbers_are_read_as_numbers():
    names = [f"Dense_{k}" for k in range(12)]
    assert networks._ordered(sorted(names)) == names
    assert networks._ordered(["layers_2", "layers_0"]) == ["layers_0", "layers_2"]
    assert networks._ordered(["b", "a"]) == ["b", "a"]


ONE = {"kernel": np.ones((2, 3)), "bias": np.ones(3)}


@pytest.mark.parametrize(
    ("variables", "options", "match"),
    [
        ({"Dense_0": ONE}, {}, "variables: expected"),
        ({"params": {}}, {}, "variables: expected"),
        ([ONE], {}, "variables: expected"),
        ({"params": {"Dense_0": ONE, "Dense_1": ONE}}, {}, r"^variables: expected 3 inputs of Dense_1, .*got 2"),
        ({"params": {"a": ONE, "Dense_1": ONE}}, {}, "order of the layers"),
        ({"params": {"a_1": ONE, "b_2": ONE}}, {}, "order of the layers"),
        ({"params": {"a_1": ONE, "a_01": ONE}}, {}, "order of the layers"),
        ({"params": {"a1b": ONE}}, {}, "order of the layers"),
        ({"params": {"norm": {"scale": np.ones(3)}}}, {}, r"^variables: .*norm.*use Dense"),
        ({"params": {"norm": {**ONE, "scale": np.ones(3)}}}, {}, r"^variables: .*norm.*use Dense"),
        ({"params": {"a": np.ones(3)}}, {}, r"^variables: .* a, got ndarray"),
        ({"params": {"a": {"kernel": np.ones((3, 3, 2, 2))}}}, {}, r"^variables: expected a kernel \[in, out\] in a"),
        ({"params": {"a": {"kernel": np.ones((3, 0))}}}, {}, r"^variables: expected a kernel \[in, out\] in a"),
        ({"params": {"a": {**ONE, "bias": np.ones(2)}}}, {}, r"^variables: expected a bias \(3,\) in a"),
        ({"params": {"a": ONE}}, {"decoys": -1}, "decoys: .* got -1"),
        ({"params": {"a": ONE}}, {"decoys": 2.5}, "decoys: .* got 2.5"),
        ({"params": {"a": ONE}}, {"decoys": 2}, "key: 2 decoys"),
    ],
)
def test_what_cannot_be_traded_is_named(variables, options, match):
    with pytest.raises(ValueError, match=match):
        from_mlp(variables, **options)


def test_other_widths_are_refused():
    market = instance(0)[2]
    with pytest.raises(ValueError, match=r"x: expected shape \[..., 3\], .* got \(2,\)"):
        market.forward(jnp.ones(2))
    with pytest.raises(ValueError, match=r"x: expected shape \[..., 3\], .* got \(\)"):
        market.forward(jnp.ones(()))
    with pytest.raises(ValueError, match=r"output_prices: expected shape \[..., 2\], .* got \(3,\)"):
        market.prices(jnp.ones(3), jnp.ones(3))


def test_names_are_public():
    assert all(hasattr(networks, name) for name in networks.__all__)

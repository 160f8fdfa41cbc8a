"""Flax networks as markets of firms: training by profit equals Flax + Optax on the whole network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxmarket.networks import MERCHANT, from_function, from_linen, from_nnx

STEPS = 100


class Perceptron(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (32, 16):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(4)(x)


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.avg_pool(nn.relu(nn.Conv(8, (3, 3))(x[..., None])), (2, 2), (2, 2))
        return nn.Dense(4)(nn.relu(nn.Conv(8, (3, 3))(x)).reshape(len(x), -1))


class Transformer(nn.Module):
    """One pre-norm block on rows as tokens, with causal attention.

    Without biases in the projections: a key bias has no effect on attention, so its gradient is rounding noise, which
    Adam divides by its size.
    """

    @nn.compact
    def __call__(self, x):
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, use_bias=False)(nn.LayerNorm()(x), mask=mask)
        x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
        return nn.Dense(4)(x.mean(1))


NETWORKS = {
    "perceptron": (Perceptron(), (12, 8)),
    "convolutions": (Convolutions(), (12, 6, 8)),
    "transformer": (Transformer(), (12, 6, 8)),
}
OPTIMIZERS = {"sgd": optax.sgd(0.05), "momentum": optax.sgd(0.02, momentum=0.9), "adam": optax.adam(1e-3)}


def loss(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


DEFAULT = (("perceptron", "adam", False), ("convolutions", "momentum", True), ("transformer", "adam", True))


def combinations():
    """All in `.ci/full`; in the slow run those in double precision."""
    for network in NETWORKS:
        for optimizer in OPTIMIZERS:
            for x64 in (True, False):
                mark = pytest.mark.slow if x64 else pytest.mark.full
                case = network, optimizer, x64
                yield pytest.param(*case, marks=[] if case in DEFAULT else [mark])


@pytest.mark.parametrize(("network", "optimizer", "x64"), list(combinations()))
def test_training_by_profit_equals_backpropagation_and_money_is_conserved(network, optimizer, x64):
    with jax.enable_x64(x64):
        dtype, exact = (jnp.float64, 1e-12) if x64 else (jnp.float32, 1e-6)
        (module, shape), tx = NETWORKS[network], OPTIMIZERS[optimizer]
        labels = jax.random.randint(jax.random.key(1), (STEPS, shape[0]), 0, 4)
        marks = jax.nn.one_hot(labels, 8).reshape(STEPS, shape[0], *(1,) * (len(shape) - 2), 8)
        x = jax.random.normal(jax.random.key(0), (STEPS, *shape), dtype) + 2 * marks.astype(dtype)
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), module.init(jax.random.key(2), x[0])["params"])
        market = from_linen(module, {"params": params}, x[0], optimizers=tx)

        def trade(state, batch):
            state, done = market.step(state, (batch[0],), lambda logits: -loss(logits, batch[1]))
            return state, (done.welfare, done.residual())

        def descend(carry, batch):
            params, state = carry
            value, gradient = jax.value_and_grad(
                lambda params: loss(module.apply({"params": params}, batch[0]), batch[1])
            )(params)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        ours, (welfare, residual) = jax.jit(lambda: jax.lax.scan(trade, market.init(params), (x, labels)))()
        (theirs, _), losses = jax.jit(lambda: jax.lax.scan(descend, (params, tx.init(params)), (x, labels)))()
        assert losses[-10:].mean() < losses[:10].mean() - 0.01
        moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), theirs, params)
        assert min(jax.tree.leaves(moved)) > 1e-4
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=exact), market.params(ours), theirs)
        np.testing.assert_allclose(welfare, -losses, atol=10 * exact)
        assert residual.max() < 10 * exact


def test_a_submodule_is_a_firm_and_its_activation_belongs_to_it():
    module, shape = NETWORKS["transformer"]
    x = jnp.zeros(shape)
    params = module.init(jax.random.key(0), x)["params"]
    market = from_linen(module, {"params": params}, x, optimizers=optax.sgd(1.0))
    assert set(market.firms) == {*params, MERCHANT}
    attention = [plant for plant in market.plants if plant.firm == "MultiHeadDotProductAttention_0"]
    assert len(attention) == 1  # projections, softmax and output: it buys the normed tokens (and the free mask) only
    assert attention[0].buys[0].startswith("LayerNorm_0")
    joined = market.params(market.init(params))
    jax.tree.map(np.testing.assert_array_equal, joined, params)


def test_users_choose_the_owners_of_parameters():
    module, shape = NETWORKS["perceptron"]
    x = jnp.ones(shape)
    variables = module.init(jax.random.key(0), x)
    ranks = {"Dense_0": "body", "Dense_1": "body", "Dense_2": "head"}
    market = from_linen(module, variables, x, optimizers=optax.sgd(1.0), owner=lambda path: ranks[path[0]])
    assert market.firms == ("body", "head")
    assert [len(plant.sells) for plant in market.plants] == [1, 1]
    apart = from_linen(module, variables, x, optimizers=optax.sgd(1.0), owner="/".join)
    assert len(apart.firms) == 6  # one firm owns the kernel of a layer, another one the bias
    for other in (market, apart):
        state = other.init(variables["params"])
        np.testing.assert_array_equal(other.produce(state.params, (x,))[0], module.apply(variables, x))


def test_a_table_used_at_both_ends_is_one_firm_and_tokens_have_no_price():
    def apply(params, tokens):
        h = jnp.tanh(params["table"][tokens] @ params["mix"])
        return h @ params["table"].T

    params = {"table": jnp.arange(12.0).reshape(4, 3) / 12, "mix": jnp.eye(3)}
    tokens = jnp.asarray([0, 3, 1])
    market = from_function(apply, params, tokens, optimizers=optax.sgd(1.0))
    trade = market.trade(market.init(params).params, (tokens,), lambda y: jnp.sin(y).sum())
    gradient = jax.grad(lambda params: jnp.sin(apply(params, tokens)).sum())(params)
    np.testing.assert_allclose(trade.marginal_profits["table"]["table"], gradient["table"], rtol=1e-5)
    assert [plant.firm for plant in market.plants if plant.firm != MERCHANT] == ["table", "mix", "table"]
    assert "input" not in trade.prices


def test_parameters_without_use_are_kept():
    params = {"a": jnp.float32(2.0), "unused": {"b": jnp.float32(3.0)}}
    market = from_function(
        lambda p, x: p["a"] * x, params, 1.0, optimizers={"a": optax.sgd(1.0), "unused": optax.sgd(1.0)}
    )
    state, trade = market.step(market.init(params), (1.0,), lambda y: y)
    assert market.params(state) == {"a": 3.0, "unused": {"b": 3.0}}
    assert float(trade.accounts["unused"].net) == 0


def test_the_merchant_needs_no_optimizer():
    market = from_function(lambda p, x: x + p["a"] * x**2, {"a": 2.0}, 1.0, optimizers={"a": optax.sgd(1.0)})
    assert set(market.firms) == {"a", MERCHANT}


def test_an_nnx_module_is_split_by_its_attributes():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.lower, self.upper = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.upper(nnx.relu(self.lower(x)))

    network, x = Network(nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (5, 4))
    market = from_nnx(network, x, optimizers=optax.sgd(0.1))
    assert set(market.firms) == {"lower", "upper"}
    params = nnx.to_pure_dict(nnx.state(network, nnx.Param))
    state, _ = market.step(market.init(params), (x,), lambda y: -(y**2).sum())
    gradient = nnx.grad(lambda network: (network(x) ** 2).sum())(network)
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, params, nnx.to_pure_dict(gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), market.params(state), expected)


def stepped(x):
    """A step of a market that was built for f32 [3]."""
    params = {"a": jnp.float32(1.0)}
    market = from_function(lambda p, x: p["a"] * x, params, jnp.ones(3), optimizers=optax.sgd(1.0))
    return market.step(market.init(params), (x,), jnp.sum)


@pytest.mark.parametrize(
    ("field", "build"),
    [
        ("params", lambda: from_function(lambda p, x: x, {}, 1.0, optimizers=optax.sgd(1.0))),
        ("apply", lambda: from_function(lambda p, x: p["a"], {"a": 1.0}, 1.0, optimizers=optax.sgd(1.0))),
        ("apply", lambda: from_function(lambda p, x: 2.0, {"a": 1.0}, 1.0, optimizers=optax.sgd(1.0))),
        (
            "owner",
            lambda: from_function(
                lambda p, x: p["a"] * p["b"] * x, {"a": 1.0, "b": 1.0}, 1.0, optimizers=optax.sgd(1.0)
            ),
        ),
        (
            "owner",
            lambda: from_function(
                lambda p, x: p["a"] * x, {"a": 1.0}, 1.0, optimizers=optax.sgd(1.0), owner=lambda path: MERCHANT
            ),
        ),
        (
            "variables",
            lambda: from_linen(
                nn.BatchNorm(True),
                nn.BatchNorm(True).init(jax.random.key(0), jnp.ones(3)),
                jnp.ones(3),
                optimizers=optax.sgd(1.0),
            ),
        ),
        ("variables", lambda: from_linen(nn.Dense(2), {"kernel": 1.0}, jnp.ones(3), optimizers=optax.sgd(1.0))),
        ("inputs", lambda: stepped(jnp.ones((2, 3)))),
        ("inputs", lambda: stepped(jnp.ones(3, jnp.int32))),
        (
            "params",
            lambda: from_function(lambda p, x: p["a"] * x, {"a": 1.0}, 1.0, optimizers=optax.sgd(1.0)).init({"b": 1.0}),
        ),
    ],
)
def test_what_cannot_be_divided_is_refused_by_field(field, build):
    with pytest.raises(ValueError, match=f"^{field}:"):
        build()

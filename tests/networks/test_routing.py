"""Routing and its transpose: against gradients, Bayes' rule, and the rate of welfare that the theory states."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmarket.networks.backpropagation import MarketGraph
from jaxmarket.networks.routing import (
    attention_gradient,
    reroute,
    routing_gradient,
    settle_bets,
    train_routing,
    welfare_rate,
)

N, G = 5, 2
GRAPH = MarketGraph(lambda w, x: jnp.tanh(w["kernel"] @ x), lambda w, x, y: w["value"] @ jnp.log1p(y**2))


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def economy(seed):
    """An acyclic graph: agents, positive shares to all later agents, endowments."""
    rng = np.random.default_rng(seed)
    agents = {"kernel": jnp.asarray(rng.normal(size=(N, G, G))), "value": jnp.asarray(rng.normal(size=(N, G)))}
    shares = np.triu(rng.random((N, N)) + 0.1, 1)[..., None] * (rng.random((N, N, G)) + 0.1)
    shares /= np.maximum(shares.sum(1, keepdims=True), 1e-9)
    return agents, jnp.asarray(shares), jnp.asarray(rng.random((N, G)) + 0.5)


def of_attention(rng):
    logits, y, a = rng.normal(size=(4, 3)), rng.normal(size=(4, G)), rng.normal(size=(3, G))
    return jnp.asarray(logits), jnp.asarray(y), jnp.asarray(a)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_attention_is_the_advantage_of_buying(x64, seed):
    logits, y, a = of_attention(np.random.default_rng(seed))

    def held(logits):
        return jnp.einsum("ij,ig->jg", jax.nn.softmax(logits, 0), y)

    (expected,) = jax.vjp(held, logits)[1](a)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(attention_gradient(jax.nn.softmax(logits, 0), y, a), expected, rtol=1e-10)


def test_attention_is_routing_with_prices_and_quantities_exchanged(x64):
    logits, y, a = of_attention(np.random.default_rng(4))
    weights = jax.nn.softmax(logits, 0)
    # Receivers route: their "outputs" are prices, and what they are "paid" is the senders' output.
    shares = jnp.broadcast_to(weights.T[..., None], (3, 4, G))
    transposed = routing_gradient(shares, a, y).sum(-1).T
    np.testing.assert_allclose(attention_gradient(weights, y, a), transposed, rtol=1e-10)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_the_wealth_of_bettors_is_the_posterior(seed):
    rng = np.random.default_rng(seed)
    wealth, forecasts = rng.random(4) * 10, rng.dirichlet(np.ones(3), 4)
    outcomes = rng.integers(0, 3, 6)
    held, posterior = jnp.asarray(wealth), wealth / wealth.sum()
    for outcome in outcomes:
        held = settle_bets(held, jnp.asarray(forecasts), int(outcome))
        posterior = posterior * forecasts[:, outcome] / (posterior * forecasts[:, outcome]).sum()
    np.testing.assert_allclose(held / held.sum(), posterior, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(held.sum(), wealth.sum(), rtol=1e-5)
    # and mirror ascent is the same update, with the revenue of a share as log-likelihood
    shares = jnp.asarray(wealth / wealth.sum())[None, :, None] * jnp.ones((4, 4, 1))
    revenue = jnp.asarray(np.log(forecasts[:, outcomes].prod(1)))[:, None]
    np.testing.assert_allclose(
        reroute(shares, revenue, jnp.ones((4, 1)), 1.0)[0, :, 0], posterior, rtol=1e-3, atol=1e-6
    )


def test_an_outcome_that_nobody_bet_on_moves_no_money():
    wealth = jnp.asarray([1.0, 2.0])
    np.testing.assert_array_equal(settle_bets(wealth, jnp.asarray([[1.0, 0], [1, 0]]), 1), wealth)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ("mirror", "replicator"))
def test_welfare_rises_at_the_variance_of_prices_as_steps_become_small(x64, rule):
    agents, shares, endowments = economy(0)
    errors = []
    for step_size in (0.1, 0.01, 0.001):
        run = jax.jit(
            lambda step_size: train_routing(GRAPH, agents, shares, endowments, rule=rule, step_size=step_size, steps=20)
        )(step_size)
        errors.append(np.abs(run.change / run.rate - 1).max())
    assert run.rate.min() > 1e-3
    assert errors[0] > 1e-4  # a step of this size is not small
    np.testing.assert_allclose(errors[1:], np.asarray(errors[:2]) / 10, rtol=0.3)  # the error is of first order
    np.testing.assert_allclose(run.shares.sum(1), shares.sum(1), atol=1e-9)


def test_ascent_on_logits_is_gradient_ascent(x64):
    agents, shares, endowments = economy(1)
    run = train_routing(GRAPH, agents, shares, endowments, rule="logits", step_size=0.3, steps=5)
    edges = shares > 0
    logits = jnp.log(jnp.where(edges, shares, 1))
    last = shares

    def welfare(logits):
        weights = jnp.where(edges, jnp.exp(logits), 0)
        routed = weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-9)
        x = endowments
        for _ in range(N):
            y = jax.vmap(GRAPH.produce)(agents, x)
            x = endowments + jnp.einsum("hig,hg->ig", routed, y)
        y = jax.vmap(GRAPH.produce)(agents, x)
        return jax.vmap(GRAPH.utility)(agents, x, y).sum(), routed

    tx = optax.sgd(0.3)
    for k in range(5):
        (value, last), gradient = jax.jit(jax.value_and_grad(welfare, has_aux=True))(logits)
        np.testing.assert_allclose(run.welfare[k], value, rtol=1e-9)
        logits -= tx.update(gradient, tx.init(logits))[0]
    last = welfare(logits)[1]
    np.testing.assert_allclose(run.shares, last, atol=1e-9)


def test_the_rate_is_a_variance(x64):
    rng = np.random.default_rng(2)
    shares = rng.dirichlet(np.ones(3), (3, G)).transpose(0, 2, 1)
    y, a = rng.normal(size=(3, G)), rng.normal(size=(3, G))
    expected = sum(y[i, g] ** 2 * np.cov(a[:, g], aweights=shares[i, :, g], ddof=0) for i in range(3) for g in range(G))
    np.testing.assert_allclose(welfare_rate(jnp.asarray(shares), jnp.asarray(y), jnp.asarray(a)), expected, rtol=1e-9)


@pytest.mark.parametrize(("field", "options"), [("rule", {"rule": "greedy"}), ("steps", {"steps": 0})])
def test_wrong_options_are_refused_by_field(field, options):
    with pytest.raises(ValueError, match=f"^{field}:"):
        train_routing(GRAPH, *economy(0), **options)

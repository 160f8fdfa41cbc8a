"""Prices by backpropagation: against JAX's own gradient, dense linear algebra, finite differences and the text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmarket.networks import backpropagation as market
from jaxmarket.networks.backpropagation import (
    MarketGraph,
    Prices,
    consumer_bids,
    flow_round,
    goods_flows,
    goods_prices,
    graph_welfare,
    quote_round,
    solve_prices,
    spectral_radius,
)
from jaxmarket.networks.routing import replicator, reroute, routing_gradient

N, G = 6, 2


def produce(agent, x):
    """Three kinds of agents, all nonlinear."""
    kinds = (jnp.tanh, lambda z: jnp.log1p(z**2), lambda z: z / (1 + 0.1 * z**2))
    return jax.lax.switch(agent["kind"], kinds, agent["weights"] @ x + agent["bias"])


def utility(agent, x, y):
    return agent["held"] @ jnp.sin(x) + agent["made"] @ jnp.log1p(y**2)


def linear(agent, x):
    return agent["weights"] @ x


GRAPH, UNVALUED, LINEAR = MarketGraph(produce, utility), MarketGraph(produce), MarketGraph(linear)
flow_step = jax.jit(flow_round, static_argnums=0)
quote_step = jax.jit(quote_round, static_argnums=0)


@pytest.fixture(params=(False, True), ids=("float32", "float64"))
def exact(request):
    """Both precisions, and how exact each is."""
    with jax.enable_x64(request.param):
        yield 1e-10 if request.param else 1e-5


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def economy(seed, *, circles=False, gain=0.7, kept=1.0):
    """Random agents, shares and endowments; agents sell to those after them in a random order, or to everyone."""
    rng = np.random.default_rng(seed)
    agents = {
        "kind": jnp.asarray(rng.integers(0, 3, N), jnp.int32),
        "weights": jnp.asarray(rng.normal(size=(N, G, G)) * gain),
        "bias": jnp.asarray(rng.normal(size=(N, G)) * 0.3),
        "held": jnp.asarray(rng.normal(size=(N, G))),
        "made": jnp.asarray(rng.normal(size=(N, G))),
    }
    order = rng.permutation(N)
    rank = np.argsort(order)
    edges = np.ones((N, N), bool) if circles else (rank[:, None] < rank[None]) & (rng.random((N, N)) < 0.6)
    shares = rng.random((N, N, G)) * edges[..., None]
    shares *= kept / np.maximum(shares.sum(1, keepdims=True), 1e-9)
    return agents, jnp.asarray(shares), jnp.asarray(rng.random((N, G)) + 0.2), order


def depth(shares):
    """The number of agents on the longest path."""
    edges = np.asarray(shares).sum(-1) > 0
    longest = np.ones(len(edges), int)
    for _ in edges:
        longest = np.array([1 + max([0, *longest[row]]) for row in edges])
    return longest.max()


def planned(agents, shares, endowments, order):
    """Welfare, computed agent by agent in topological order."""
    x, total = endowments, 0
    for i in order:
        agent = jax.tree.map(lambda leaf, i=i: leaf[i], agents)
        y = produce(agent, x[i])
        total += utility(agent, x[i], y)
        x += shares[i] * y
    return total, x


planner = jax.jit(jax.value_and_grad(planned, 2, has_aux=True))


def close(ours, theirs, exact):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=exact, atol=exact * max(1e-3, np.abs(theirs).max()))


# --- Chains


@pytest.mark.parametrize("seed", range(6))
def test_quotes_are_the_gradient_of_welfare_after_as_many_rounds_as_the_longest_chain_has_agents(exact, seed):
    agents, shares, endowments, order = economy(seed)
    (total, held), gradient = planner(agents, shares, endowments, jnp.asarray(order))
    rounds = depth(shares)
    assert rounds >= 3

    x, history = endowments, [endowments]
    for _ in range(rounds - 1):
        x = flow_step(GRAPH, agents, shares, endowments, x)
        history.append(x)
    close(x, held, exact)
    assert np.abs(history[-2] - held).max() > 3e-5  # and not a round before

    bids = consumer_bids(GRAPH, agents, x)
    quotes, history = jnp.zeros_like(x), []
    for _ in range(rounds):
        quotes = quote_step(GRAPH, agents, shares, x, bids, quotes).inputs
        history.append(quotes)
    close(quotes, gradient, exact)
    assert np.abs(history[-2] - gradient).max() > 3e-5

    at, found, money = solve_prices(GRAPH, agents, shares, endowments)
    close(at.x, held, exact)
    close(found.inputs, gradient, exact)
    close(at.q, shares * at.y[:, None], exact)
    close(graph_welfare(GRAPH, agents, at), total, exact)
    assert money.converged
    assert money.rounds <= rounds
    assert money.residual == 0
    assert money.spectral_radius == 0  # exactly: nothing comes back


def test_output_prices_are_what_a_unit_made_is_worth(x64):
    agents, shares, endowments, _ = economy(1)
    _, found, _ = solve_prices(GRAPH, agents, shares, endowments)

    def made(extra):  # a gift of goods that the agent has just made
        gifted = {**agents, "extra": extra}
        graph = MarketGraph(lambda agent, x: produce(agent, x) + agent["extra"], utility)
        return graph_welfare(graph, gifted, goods_flows(graph, gifted, shares, endowments)[0])

    close(found.outputs, jax.jit(jax.grad(made))(jnp.zeros((N, G))), 1e-10)


def test_a_quote_depends_on_nothing_but_the_agents_own_and_its_buyers_quotes():
    agents, shares, x, _ = economy(3)
    floats = {name: leaf for name, leaf in agents.items() if name != "kind"}

    def quotes(floats, shares, x, bids, last):
        return quote_round(GRAPH, {**floats, "kind": agents["kind"]}, shares, x, bids, last).inputs

    bids = consumer_bids(GRAPH, agents, x)
    last = jnp.asarray(np.random.default_rng(0).normal(size=(N, G)), jnp.float32)
    jacobian = jax.jit(jax.jacobian(quotes, (0, 1, 2, 3, 4)))(floats, shares, x, bids, last)
    of_agents, of_shares, of_x, of_bids, of_last = (
        jax.tree.map(lambda leaf: np.abs(leaf).max(1).reshape(N, N, -1).max(-1), part) for part in jacobian
    )
    others = ~np.eye(N, dtype=bool)
    for part in (of_agents["weights"], of_agents["bias"], of_shares, of_x, of_bids.inputs, of_bids.outputs):
        assert (part[others] == 0).all()
        assert part.any()
    assert (of_agents["held"] == 0).all()  # the consumers speak through their bids
    buys = np.asarray(shares).max(-1) > 0
    assert (of_last[~buys] == 0).all()
    assert (of_last[buys] > 0).all()


# --- Consumers' bids


def test_reward_and_bids_are_two_ways_to_say_what_consumers_want(exact):
    agents, shares, endowments, _ = economy(4)
    at, rewarded, _ = solve_prices(GRAPH, agents, shares, endowments)
    bids = consumer_bids(GRAPH, agents, at.x)
    held, made = (np.asarray(agents[name]) for name in ("held", "made"))
    close(bids.inputs, held * np.cos(at.x), exact)
    close(bids.outputs, made * 2 * np.asarray(at.y) / (1 + np.asarray(at.y) ** 2), exact)
    _, told, _ = solve_prices(UNVALUED, agents, shares, endowments, bids)
    close(told.inputs, rewarded.inputs, exact)
    close(told.outputs, rewarded.outputs, exact)


def test_a_chain_of_layers_offers_the_transposed_jacobian_of_the_chain():
    """f = f_n ∘ … ∘ f_1 sells to one consumer at prices p: the first agent offers (Df)ᵀ p for its inputs."""
    agents, _, endowments, _ = economy(0, gain=1)
    agents["kind"] = jnp.zeros(N, jnp.int32)
    p, x = jnp.asarray([1.0, -2.0]), endowments[0]
    at, found, _ = solve_prices(
        UNVALUED,
        agents,
        jnp.broadcast_to(jnp.eye(N, k=1)[..., None], (N, N, G)),
        jnp.zeros((N, G)).at[0].set(x),
        Prices(jnp.zeros((N, G)), jnp.zeros((N, G)).at[-1].set(p)),
    )

    @jax.jit
    def chain(x):
        for weights, bias in zip(agents["weights"], agents["bias"], strict=True):
            x = jnp.tanh(weights @ x + bias)
        return x

    y, pull = jax.vjp(chain, x)
    close(at.y[-1], y, 1e-5)
    close(found.inputs[0], pull(p)[0], 1e-5)
    assert np.abs(found.inputs[0]).max() > 1e-3


# --- Circles


def leontief(seed, radius):
    """Linear agents whose quote map has this spectral radius, and that map, dense: M = Jᵀ S."""
    agents, shares, endowments, _ = economy(seed, circles=True, kept=0.9)
    weights, routed = np.asarray(agents["weights"], float), np.asarray(shares, float)
    matrix = np.einsum("ihg,ijh->igjh", weights, routed).reshape(N * G, N * G)
    scale = radius / np.abs(np.linalg.eigvals(matrix)).max()
    return {"weights": jnp.asarray(weights * scale)}, shares, endowments, matrix * scale


@pytest.mark.parametrize("radius", (0.3, 0.95))
def test_circles_are_the_dense_inverse(exact, radius):
    agents, shares, endowments, matrix = leontief(0, radius)
    bids = Prices(*jnp.asarray(np.random.default_rng(1).normal(size=(2, N, G))))
    at, found, certificate = solve_prices(LINEAR, agents, shares, endowments, bids)
    inverse = np.linalg.inv(np.eye(N * G) - matrix)
    pulled = np.einsum("iab,ia->ib", agents["weights"], bids.outputs)
    tolerance = exact / (1 - radius)  # the condition of the problem
    close(at.x.reshape(-1), inverse.T @ np.reshape(endowments, -1), tolerance)
    close(found.inputs.reshape(-1), inverse @ (np.asarray(bids.inputs) + pulled).reshape(-1), tolerance)
    close(found.outputs, bids.outputs + np.einsum("ijg,jg->ig", shares, found.inputs), tolerance)
    assert certificate.converged
    assert 1 < certificate.rounds < 10_000
    np.testing.assert_allclose(certificate.spectral_radius, radius, rtol=1e-4)


def total(agents, shares, endowments):
    return graph_welfare(GRAPH, agents, goods_flows(GRAPH, agents, shares, endowments)[0])


gradients = jax.jit(jax.grad(total, (1, 2)))  # with respect to shares and endowments


@jax.jit
def rise(agents, shares, endowments, velocity):
    """The derivative of welfare along a change of shares."""
    return jax.jvp(lambda shares: total(agents, shares, endowments), (shares,), (velocity,))[1]


@pytest.mark.parametrize("seed", range(3))
def test_prices_are_the_gradient_of_welfare_round_circles(exact, seed):
    agents, shares, endowments, _ = economy(seed, circles=True, kept=0.9)
    at, found, certificate = solve_prices(GRAPH, agents, shares, endowments)
    assert 0.05 < certificate.spectral_radius < 1
    close(at.x, flow_step(GRAPH, agents, shares, endowments, at.x), exact)
    close(gradients(agents, shares, endowments)[1], found.inputs, exact)


@pytest.mark.slow
def test_derivatives_through_the_fixed_points_are_finite_differences(x64):
    agents, shares, endowments, _ = economy(2, circles=True, kept=0.9)
    kind = agents.pop("kind")
    at = (agents, shares, endowments)

    @jax.jit
    def both(agents, shares, endowments):
        agents = {**agents, "kind": kind}
        settled, _ = goods_flows(GRAPH, agents, shares, endowments)
        return settled, goods_prices(GRAPH, agents, shares, settled.x)[0]

    rng = np.random.default_rng(0)
    like = functools.partial(jax.tree.map, lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)))

    def inner(one, other):
        return sum(jnp.vdot(*pair) for pair in zip(*map(jax.tree.leaves, (one, other)), strict=True))

    def difference(direction, step=1e-5):
        up, down = (both(*jax.tree.map(lambda v, d, s=s: v + s * d, at, direction)) for s in (step, -step))
        return jax.tree.map(lambda up, down: (up - down) / (2 * step), up, down)

    results, pull = jax.vjp(both, *at)
    cotangent = like(results)
    gradient = pull(cotangent)
    for part in range(3):  # in the agents, the shares, the endowments
        only = [like(leaf) if k == part else jax.tree.map(jnp.zeros_like, leaf) for k, leaf in enumerate(at)]
        expected = inner(cotangent, difference(tuple(only)))
        assert abs(expected) > 0.1
        np.testing.assert_allclose(inner(gradient, only), expected, rtol=1e-6)

    # and twice: the curvature of welfare is the slope of prices
    curvature = jax.jit(jax.hessian(lambda r: total({**agents, "kind": kind}, shares, r)))(endowments)
    direction = like(endowments)
    slope = difference((*jax.tree.map(jnp.zeros_like, at[:2]), direction))[1].inputs
    np.testing.assert_allclose(jnp.einsum("igjh,jh->ig", curvature, direction), slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("radius", (1.05, 1.5))
def test_where_circles_explode_there_are_no_prices(radius):
    agents, shares, endowments, _ = leontief(0, radius)
    bids = Prices(jnp.ones((N, G)), jnp.zeros((N, G)))
    with pytest.raises(ValueError, match=rf"shares: .*flows.*spectral radius {radius:.3g}"):
        solve_prices(LINEAR, agents, shares, endowments, bids)
    with pytest.raises(ValueError, match=rf"shares: .*prices.*spectral radius {radius:.3g}.*below 1"):
        solve_prices(LINEAR, agents, shares, 0 * endowments, bids)  # nothing to sell, so the flows do settle: at 0


def test_slow_circles_need_rounds():
    agents, shares, endowments, _ = leontief(0, 0.99)
    bids = Prices(jnp.ones((N, G)), jnp.zeros((N, G)))
    solve_prices(LINEAR, agents, shares, endowments, bids)
    with pytest.raises(ValueError, match=r"after 50 rounds.*spectral radius 0\.99.*max_rounds=50"):
        solve_prices(LINEAR, agents, shares, endowments, bids, max_rounds=50)
    *_, rough = solve_prices(LINEAR, agents, shares, endowments, bids, max_rounds=1000, tolerance=1e-3)
    *_, fine = solve_prices(LINEAR, agents, shares, endowments, bids, max_rounds=10_000)
    assert rough.rounds < fine.rounds
    assert fine.residual < rough.residual < 1e-3


def test_divergent_prices_under_jit_are_nan_for_their_instance_only():
    radii = (0.5, 1.5, 0.9)
    agents = [leontief(0, radius)[0] for radius in radii]
    _, shares, endowments, _ = leontief(0, 1)
    bids = Prices(jnp.ones((N, G)), jnp.zeros((N, G)))

    @jax.jit
    @jax.vmap
    def batch(agents):
        return goods_flows(LINEAR, agents, shares, endowments), goods_prices(LINEAR, agents, shares, endowments, bids)

    (at, goods), (found, money) = batch(jax.tree.map(lambda *leaves: jnp.stack(leaves), *agents))
    for certificate in (goods, money):
        assert certificate.converged.tolist() == [True, False, True]
        np.testing.assert_allclose(certificate.spectral_radius, radii, rtol=1e-4)
    for leaf in jax.tree.leaves((at, found)):
        assert np.isnan(leaf[1]).all()
    for k in (0, 2):
        alone, prices_alone, certificate = solve_prices(LINEAR, agents[k], shares, endowments, bids)
        close(at.x[k], alone.x, 1e-5)
        close(found.inputs[k], prices_alone.inputs, 1e-5)
        assert abs(money.rounds[k] - certificate.rounds) <= 2


def test_small_prices_far_from_the_consumers_are_not_cut_off():
    """Each agent turns a thousand into one: after five, a price is 1e-15 of the largest, and still a price."""
    agents = {"weights": jnp.broadcast_to(jnp.eye(G) * 1e-3, (N, G, G))}
    shares = jnp.broadcast_to(jnp.eye(N, k=1)[..., None], (N, N, G))
    bids = Prices(jnp.zeros((N, G)).at[-1].set(1), jnp.zeros((N, G)))
    _, found, _ = solve_prices(LINEAR, agents, shares, jnp.ones((N, G)), bids)
    np.testing.assert_allclose(found.inputs[:, 0], [1e-15, 1e-12, 1e-9, 1e-6, 1e-3, 1], rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 10))
def test_spectral_radius_is_the_largest_eigenvalue(seed, scale):
    matrix = np.random.default_rng(seed).normal(size=(5, 5)) * scale
    np.testing.assert_allclose(
        jit_radius(jnp.asarray(matrix, jnp.float32)), np.abs(np.linalg.eigvals(matrix)).max(), rtol=1e-4
    )


jit_radius = jax.jit(spectral_radius)


def test_spectral_radius_of_special_matrices():
    rotation, shift = np.array([[0, -2.0], [2, 0]]), np.triu(np.full((5, 5), 1e3), 1)
    np.testing.assert_allclose(spectral_radius(jnp.asarray(rotation, jnp.float32)), 2, rtol=1e-6)
    assert spectral_radius(jnp.asarray(shift, jnp.float32)) == 0
    assert spectral_radius(jnp.zeros((2, 2))) == 0
    np.testing.assert_allclose(spectral_radius(jnp.asarray([[0.5, 1e3], [0, 0.5]])), 0.5, rtol=1e-5)


# --- Routing

jit_routing_gradient, jit_replicator, jit_reroute = jax.jit(routing_gradient), jax.jit(replicator), jax.jit(reroute)


@jax.jit
def route(logits, edges, kept):
    """Softmax over the buyers, by its definition."""
    weights = jnp.where(edges, jnp.exp(logits), 0)
    return kept * weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-9)


@pytest.mark.parametrize(("circles", "common"), [(False, False), (True, False), (True, True)])
def test_the_gradient_of_routing_is_the_advantage(exact, circles, common):
    agents, shares, endowments, _ = economy(5, circles=circles)
    edges = np.asarray(shares) > 0
    kept = np.random.default_rng(0).uniform(0.5, 0.9, (N, 1, G)) * edges.any(1, keepdims=True)  # the rest leaves
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(N, N, 1 if common else G)))
    routed, pull = jax.vjp(lambda logits: route(logits, edges, kept), logits)
    at, found, _ = solve_prices(GRAPH, agents, routed, endowments)
    ours = np.asarray(jit_routing_gradient(routed, at.y, found.inputs))
    if common:
        ours = ours.sum(-1, keepdims=True)
    (theirs,) = pull(gradients(agents, routed, endowments)[0])
    assert np.abs(theirs).max() > 1e-3
    close(ours, theirs, exact)


@pytest.mark.parametrize("circles", (False, True))
def test_replicator_routing_raises_welfare_by_the_variance_of_prices(exact, circles):
    agents, shares, endowments, _ = economy(6, circles=circles, gain=0.5)
    at, found, _ = solve_prices(GRAPH, agents, shares, endowments)
    s, y, a = (np.asarray(leaf, float) for leaf in (shares, at.y, found.inputs))
    variance = np.zeros((N, G))
    for i in range(N):
        for g in range(G):
            if s[i, :, g].sum() > 0:
                mean = np.average(a[:, g], weights=s[i, :, g])
                variance[i, g] = np.average((a[:, g] - mean) ** 2, weights=s[i, :, g])

    for outputs, worth in ((at.y, y**2), (None, y)):
        velocity = jit_replicator(shares, found.inputs, outputs)
        np.testing.assert_allclose(np.sum(velocity, 1), 0, atol=exact)
        risen = rise(agents, shares, endowments, velocity)
        assert (np.abs(worth) * variance).sum() > 1e-2
        close(risen, (worth * variance).sum(), exact)
    # and by definition: with fitness φ, s moves at s (φ - mean φ)
    money = y[:, None] * a
    close(jit_replicator(shares, found.inputs, at.y), s * (money - (s * money).sum(1, keepdims=True)), exact)
    close(jit_replicator(shares, found.inputs), s * (a - (s * a).sum(1, keepdims=True)), exact)


def test_gradient_ascent_on_logits_does_neither(x64):
    agents, shares, endowments, _ = economy(6, circles=True, gain=0.5)
    at, found, _ = solve_prices(GRAPH, agents, shares, endowments)
    gradient = jit_routing_gradient(shares, at.y, found.inputs)
    velocity = jax.jvp(jax.jit(lambda logits: jax.nn.softmax(logits, 1)), (jnp.log(shares),), (gradient,))[1]
    risen = rise(agents, shares, endowments, velocity)
    np.testing.assert_allclose(risen, np.square(gradient).sum(), rtol=1e-9)  # what gradient ascent does
    for outputs in (None, at.y):
        promised = rise(agents, shares, endowments, jit_replicator(shares, found.inputs, outputs))
        assert abs(risen / promised - 1) > 0.1


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1e4), st.booleans())
def test_shares_cannot_leave_the_simplex(seed, rate, worth):
    rng = np.random.default_rng(seed)
    shares = rng.random((N, N, G)) * (rng.random((N, N, 1)) < 0.6)
    shares *= rng.random((N, 1, G)) / np.maximum(shares.sum(1, keepdims=True), 1e-9)
    shares = jnp.asarray(shares, jnp.float32)
    a = jnp.asarray(rng.normal(size=(N, G)) * 100, jnp.float32)
    outputs = jnp.asarray(rng.random((N, G)), jnp.float32) if worth else None
    moved = np.asarray(jit_reroute(shares, a, outputs, rate))
    assert (moved >= 0).all()
    assert (moved[np.asarray(shares) == 0] == 0).all()
    np.testing.assert_allclose(moved.sum(1), shares.sum(1), rtol=1e-6)


def test_a_small_step_is_the_replicator(x64):
    _, shares, endowments, _ = economy(7, circles=True, kept=0.8)
    a = jnp.asarray(np.random.default_rng(0).normal(size=(N, G)))
    for outputs in (None, endowments):
        slope = jax.jacfwd(lambda rate, outputs=outputs: jit_reroute(shares, a, outputs, rate))(0.0)
        close(slope, jit_replicator(shares, a, outputs), 1e-10)
        step = jit_reroute(shares, a, outputs, 0.7)
        fitness = np.asarray(a if outputs is None else outputs[:, None] * a)
        grown = shares * np.exp(0.7 * fitness)
        close(step, 0.8 * grown / grown.sum(1, keepdims=True), 1e-10)


def test_ten_thousand_steps_do_not_wear_the_shares_down():
    _, shares, outputs, _ = economy(8, circles=True)

    @jax.jit
    def wander(shares, key):
        def step(shares, key):
            return reroute(shares, jax.random.normal(key, (N, G)), outputs, 0.05), None

        return jax.lax.scan(step, shares, jax.random.split(key, 10_000))[0]

    np.testing.assert_allclose(wander(shares, jax.random.key(0)).sum(1), 1, atol=2e-5)


@pytest.mark.parametrize("fitness", ("money", "price"))
def test_routing_finds_the_optimum_of_a_concave_market(fitness):
    """A farm splits its grain among three mills, whose bakers value w log(flour): the best shares are w / Σ w.

    The mills yield differently, which changes every price and not the optimum; a fourth pays nothing.
    """
    weights, yields = np.array([0.5, 0.3, 0.2]), np.array([1.0, 0.1, 4.0])
    agents = {"weight": jnp.asarray([0, *weights, 0]), "yield": jnp.asarray([1, *yields, 1])}
    graph = MarketGraph(
        lambda agent, x: agent["yield"] * x,
        lambda agent, x, y: agent["weight"] * jnp.log(jnp.where(agent["weight"] > 0, y[0], 1)),
    )
    endowments = jnp.zeros((5, 1)).at[0].set(2)
    shares = jnp.zeros((5, 5, 1)).at[0, 1:].set(0.25)

    @jax.jit
    def learn(shares):
        def step(shares, _):
            at, _ = goods_flows(graph, agents, shares, endowments)
            found, _ = goods_prices(graph, agents, shares, at.x)
            moved = reroute(shares, found.inputs, at.y if fitness == "money" else None, 0.5)
            return moved, graph_welfare(graph, agents, at)

        return jax.lax.scan(step, shares, None, length=100)

    learned, history = learn(shares)
    np.testing.assert_allclose(learned[0, 1:, 0], [*weights, 0], atol=1e-5)
    np.testing.assert_allclose(history[-1], weights @ np.log(2 * weights * yields), rtol=1e-5)
    assert (np.diff(history) > -1e-5).all()
    assert history[-1] - history[0] > 0.2


# --- Errors, types


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"shares": np.ones((N, N))}, r"^shares: .*\(6, 6\).*broadcast_to"),
        ({"shares": np.ones((N, N, G))}, r"^shares: .*largest sum of 6;"),
        ({"shares": -np.ones((N, N, G))}, r"^shares: .*smallest share of -1 "),
        ({"shares": np.full((N, N, G), np.nan)}, r"^shares: .*NaN"),
        ({"endowments": np.full((N, G), np.inf)}, "^endowments: "),
        ({"graph": UNVALUED}, r"^utility: .*None"),
        ({"bids": Prices(*jnp.full((2, N, G), jnp.nan))}, r"^shares: .*prices.*not finite: check bids"),
    ],
)
def test_errors_name_the_field_the_value_and_the_remedy(changes, match):
    agents, shares, endowments, _ = economy(0)
    given_ = {"graph": GRAPH, "agents": agents, "shares": shares, "endowments": endowments, **changes}
    with pytest.raises(ValueError, match=match):
        solve_prices(**given_)


def test_types_survive_x64(exact):
    dtype = jnp.float64 if exact < 1e-6 else jnp.float32
    agents, shares, endowments, _ = economy(0)
    at, found, certificate = solve_prices(GRAPH, agents, shares.astype(jnp.float32), endowments)
    for leaf in jax.tree.leaves((at, found, certificate.residual, certificate.spectral_radius)):
        assert leaf.dtype == dtype
    assert certificate.rounds.dtype == jnp.int32
    assert jit_reroute(shares, found.inputs, at.y).dtype == dtype


def test_everything_public_is_there():
    assert all(hasattr(market, name) for name in market.__all__)

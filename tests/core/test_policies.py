"""Bid distributions compared with quadrature and SciPy; properties of networks and bid heads."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from flax import linen as nn
from thinned import thinned

from jaxmarket import BidPolicy, Rules, Society, TrainConfig, make, policies, reset, step
from jaxmarket.policies import (
    Affine,
    Beta,
    BetaHead,
    Convolution,
    Kumaraswamy,
    KumaraswamyHead,
    Point,
    Rescaled,
    ValueHead,
    ValueNetwork,
    bid_table,
    cnn,
    linear,
    mlp,
)

LOW, HIGH = -2.0, 3.0
WIDTH = HIGH - LOW
FAMILIES, HEADS = [Kumaraswamy, Beta], [KumaraswamyHead, BetaHead]
# Not below .8: the bids kept off the edges by 1e-6 must hold next to no probability.
SHAPES = np.array([(1.0, 1.0), (2.0, 3.0), (0.8, 0.9), (5.0, 1.2), (1.5, 8.0)])


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def stretched(family, a=SHAPES[:, 0], b=SHAPES[:, 1]):
    return family(jnp.asarray(a), jnp.asarray(b), low=LOW, high=HIGH)


def cdf(family, a, b, bid):
    x = (bid - LOW) / WIDTH
    return 1 - (1 - x**a) ** b if family is Kumaraswamy else scipy.stats.beta.cdf(x, a, b)


# --- distributions


@pytest.mark.parametrize("family", FAMILIES)
def test_density_mean_and_entropy_by_quadrature(x64, family):
    distribution = stretched(family)
    # Trapezoids in the logit of x: the integrand fades at both ends, so the rule converges geometrically.
    logit = np.linspace(-13.5, 13.5, 2001)
    x = scipy.special.expit(logit)
    weights = (logit[1] - logit[0]) * (x * (1 - x) * WIDTH)[:, None]
    bids = LOW + WIDTH * x[:, None]
    log_density = np.asarray(distribution.log_prob(jnp.asarray(bids)))
    assert log_density.dtype == np.float64
    density = np.exp(log_density)

    np.testing.assert_allclose((weights * density).sum(0), 1, atol=5e-5)
    np.testing.assert_allclose((weights * density * bids).sum(0), distribution.mean(), atol=1e-4)
    np.testing.assert_allclose(-(weights * density * log_density).sum(0), distribution.entropy(), atol=3e-4)


def test_beta_is_scipys(x64):
    distribution, theirs = stretched(Beta), scipy.stats.beta(*SHAPES.T, loc=LOW, scale=WIDTH)
    bids = np.linspace(LOW + 0.01, HIGH - 0.01, 50)[:, None]
    np.testing.assert_allclose(distribution.log_prob(jnp.asarray(bids)), theirs.logpdf(bids), atol=1e-9)
    np.testing.assert_allclose(distribution.mean(), theirs.mean(), atol=1e-12)
    np.testing.assert_allclose(distribution.entropy(), theirs.entropy(), atol=1e-9)


def test_kumaraswamy_is_its_formula(x64):
    distribution, (a, b) = stretched(Kumaraswamy), SHAPES.T
    x = np.linspace(0.002, 0.998, 50)[:, None]
    density = a * b * x ** (a - 1) * (1 - x**a) ** (b - 1) / WIDTH
    np.testing.assert_allclose(distribution.log_prob(jnp.asarray(LOW + WIDTH * x)), np.log(density), atol=1e-8)
    mean = LOW + WIDTH * b * scipy.special.beta(1 + 1 / a, b)  # and not of a / (a + b)
    np.testing.assert_allclose(distribution.mean(), mean, atol=1e-9)
    harmonic = scipy.special.digamma(b + 1) + np.euler_gamma
    entropy = 1 - 1 / b + (1 - 1 / a) * harmonic - np.log(a * b) + np.log(WIDTH)
    np.testing.assert_allclose(distribution.entropy(), entropy, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_cdf(x64, family):
    bids = np.linspace(LOW, HIGH, 50)[:, None]
    mine, wanted = stretched(family).cdf(jnp.asarray(bids)), cdf(family, SHAPES[:, 0], SHAPES[:, 1], bids)
    np.testing.assert_allclose(mine, wanted, atol=1e-12)
    np.testing.assert_array_equal(stretched(family).cdf(jnp.array([[LOW - 1], [HIGH + 1]])), [[0] * 5, [1] * 5])
    unit, five = family(*jnp.asarray(SHAPES.T)), jnp.ones(5)
    np.testing.assert_allclose(Rescaled(unit, LOW * five, WIDTH * five).cdf(jnp.asarray(bids)), wanted, atol=1e-12)
    np.testing.assert_array_equal(Rescaled(unit, five, 0 * five).cdf(jnp.array([[0.5], [1.5]])), [[0] * 5, [1] * 5])


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_follow_the_distribution(family):
    n = 20_000
    bids = np.asarray(stretched(family).sample(jax.random.key(0), (n,)), np.float64)
    assert bids.shape == (n, len(SHAPES))
    assert bids.min() > LOW and bids.max() < HIGH
    # Dvoretzky-Kiefer-Wolfowitz: P(distance > eps) <= 2 exp(-2 n eps^2), here 1e-6 per shape.
    bound = math.sqrt(math.log(2e6) / (2 * n))
    for (a, b), column in zip(SHAPES, bids.T, strict=True):
        assert scipy.stats.kstest(column, lambda bid, a=a, b=b: cdf(family, a, b, bid)).statistic < bound
    # Independent across the batch: five standard deviations of a sample correlation.
    off_diagonal = np.corrcoef(bids.T)[~np.eye(len(SHAPES), dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / math.sqrt(n)


@pytest.mark.slow
@pytest.mark.parametrize("tries", thinned([1, 4], lambda tries: tries == 4))
def test_beta_samples_are_distributed_like_jaxs(monkeypatch, tries):
    monkeypatch.setattr(policies, "_TRIES", tries)  # with one try, no bid has both variates before the loop
    n, shapes = 20_000, np.float32([(0.3, 0.2), (1, 1), (2.5, 7), (60, 40), (1e-3, 3), (1e5, 1e5)])
    ours = Beta(*jnp.asarray(shapes.T)).sample(jax.random.key(0), (n,))
    theirs = jax.random.beta(jax.random.key(1), *shapes.T, (n, len(shapes)))
    theirs = np.clip(theirs, ours.min(), ours.max())
    for one, other in zip(np.asarray(ours).T, theirs.T, strict=True):
        assert scipy.stats.ks_2samp(one, other).pvalue > 1e-4


def test_a_beta_sample_with_shapes_that_are_not_positive_numbers_ends():
    shapes = jnp.array([jnp.nan, -1.0, -2.0])
    assert jnp.isnan(Beta(shapes, jnp.ones(3)).sample(jax.random.key(0))).all()
    assert jnp.isfinite(Beta(jnp.array([0, jnp.inf]), jnp.ones(2)).sample(jax.random.key(0))).all()


@pytest.mark.parametrize(
    ("head", "spreads"),
    [
        (KumaraswamyHead, (-80.0, -12.0, 0.0, 80.0, 1e4)),
        (BetaHead, (-80.0, -12.0, -8.0, 0.0, 80.0, 1e4)),
    ],
)
def test_extreme_parameters_stay_finite(head, spreads):
    raw = jnp.array([(mean, spread) for mean in (-80.0, -12.0, 0.0, 12.0, 80.0) for spread in spreads])
    bids = jax.jit(jax.vmap(lambda raw, key: head(LOW, HIGH).distribution(raw).sample(key)))(
        raw, jax.random.split(jax.random.key(0), len(raw))
    )
    assert ((bids > LOW) & (bids < HIGH)).all()

    def numbers(raw, bid):
        distribution = head(LOW, HIGH).distribution(raw)
        log_probs = [distribution.log_prob(at) for at in (bid, jnp.asarray(LOW), jnp.asarray(HIGH))]
        values = jnp.stack([distribution.mean(), distribution.entropy(), *log_probs])
        return values.sum(), values

    slopes, values = jax.jit(jax.vmap(jax.grad(numbers, has_aux=True)))(raw, bids)
    assert jnp.isfinite(values).all()
    assert ((values[:, 0] >= LOW) & (values[:, 0] <= HIGH)).all()
    assert jnp.isfinite(slopes).all()


# --- heads


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("torso", [linear(), mlp(8)], ids=["table", "mlp"])
def test_fresh_networks_bid_uniformly(head, torso):
    policy, obs = BidPolicy(torso, head(LOW, HIGH)), jax.random.normal(jax.random.key(1), (5,))
    distribution = policy.apply(policy.init(jax.random.key(0), obs), obs)
    np.testing.assert_allclose((distribution.a, distribution.b), (1, 1), atol=1e-6)
    np.testing.assert_allclose(distribution.mean(), (LOW + HIGH) / 2, atol=1e-5)
    np.testing.assert_allclose(distribution.entropy(), math.log(WIDTH), atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_raw_numbers_are_mean_and_spread_of_the_paper(head):
    raw = jnp.array([0.7, -0.4])
    m, v = scipy.special.expit(0.7), np.log1p(np.exp(-0.4 + np.log(np.e**2 - 1)))
    distribution = head().distribution(raw)
    np.testing.assert_allclose((distribution.a, distribution.b), (m * v, (1 - m) * v), rtol=1e-6)
    assert (distribution.low, distribution.high) == (0.0, 1.0)


def test_a_value_head_bids_its_number():
    raw = jnp.array([[-7.0], [0.25], [40.0]])
    bids = ValueHead().distribution(raw)
    np.testing.assert_array_equal(bids.mean(), [-7, 0.25, 40])
    np.testing.assert_array_equal(bids.sample(jax.random.key(0), (2,)), [[-7, 0.25, 40]] * 2)
    with pytest.raises(ValueError, match="no density"):
        bids.log_prob(jnp.zeros(3))
    with pytest.raises(ValueError, match="no entropy"):
        bids.entropy()
    assert isinstance(bids, Point)


@pytest.mark.parametrize(
    ("limits", "clipped"),
    [((0.0, 1.0), [0, 0.25, 1]), ((0.0, math.inf), [0, 0.25, 40]), ((-math.inf, 1.0), [-7, 0.25, 1])],
)
def test_a_clipped_value_still_learns(limits, clipped):
    raw = jnp.array([[-7.0], [0.25], [40.0]])
    np.testing.assert_allclose(ValueHead(*limits).distribution(raw).mean(), clipped)
    slope = jax.grad(lambda raw: ValueHead(*limits).distribution(raw).mean().sum())(raw)
    np.testing.assert_array_equal(slope, jnp.ones((3, 1)))  # a bid at its limit can come back


@pytest.mark.parametrize("limits", [(1.0, 0.0), (1.0, 1.0), (math.nan, 1.0), (0.0, math.nan)])
@pytest.mark.parametrize("head", [*HEADS, ValueHead])
def test_bad_limits_are_refused(head, limits):
    with pytest.raises(ValueError, match="bid_low, bid_high"):
        head(*limits)


@pytest.mark.parametrize("limits", [(0.0, math.inf), (-math.inf, 1.0)])
@pytest.mark.parametrize("head", HEADS)
def test_a_density_needs_finite_limits(head, limits):
    with pytest.raises(ValueError, match="bid_low, bid_high: expected a finite number"):
        head(*limits)


# --- policies


def test_policies_compare_by_value():
    policy = BidPolicy(mlp(8, 4), KumaraswamyHead(0.0, 2.0))
    twin = BidPolicy(mlp(8, 4), KumaraswamyHead(0.0, 2.0))
    assert policy == twin and hash(policy) == hash(twin)
    others = [
        BidPolicy(mlp(8, 5), KumaraswamyHead(0.0, 2.0)),
        BidPolicy(linear(8, 4), KumaraswamyHead(0.0, 2.0)),
        BidPolicy(mlp(8, 4, layer_norm=True), KumaraswamyHead(0.0, 2.0)),
        BidPolicy(mlp(8, 4), KumaraswamyHead(0.0, 3.0)),
        BidPolicy(mlp(8, 4), BetaHead(0.0, 2.0)),
    ]
    assert len({policy, twin, *others}) == 1 + len(others)
    assert ValueNetwork(mlp(8)) == ValueNetwork(mlp(8)) != ValueNetwork(linear(8))


def test_no_hidden_layer_makes_a_table():
    states, values = 5, jnp.array([3.0, -1.0, 0.5, 7.0, 2.0])
    policy = BidPolicy(linear(), ValueHead())
    params = policy.init(jax.random.key(0), jnp.zeros(states))
    (kernel,) = jax.tree.leaves(params["params"])
    assert kernel.shape == (states + 1, 1)  # a row per state, and the bias
    table = bid_table(values)
    chex.assert_trees_all_equal_shapes(params, table)
    bids = jax.vmap(lambda obs: policy.apply(table, obs).mean())(jnp.eye(states))
    np.testing.assert_array_equal(bids, values)


def test_a_layer_of_two_units_has_no_layer_norm():
    """Of two units layer norm leaves the sign of their difference, so that two observations would look the same."""
    obs = jnp.array([[1.0, 0.5], [2.0, 1.0]])
    for width in (2, 3):
        torso = mlp(width, layer_norm=True)
        params = torso.init(jax.random.key(0), obs[0])
        features = jax.vmap(torso.apply, (None, 0))(params, obs)
        assert np.allclose(features[0], features[1], atol=1e-3) == (width == 3), width


@pytest.mark.parametrize(("inputs", "width"), [(4, 3), (180, 100)], ids=str)
def test_an_affine_layer_is_a_dense_layer(inputs, width):
    """Same map and gradients as flax's, and weights of the same spread, under vmap over inputs and over modules.

    A small matrix is the left factor of the product, a large one the right factor.
    """
    layer, reference = Affine(width), nn.Dense(width, precision="highest")
    assert ((inputs + 1) * width >= policies._LARGE_KERNEL) == (width == 100)
    x, biases = jax.random.normal(jax.random.key(0), (5, inputs)), jax.random.normal(jax.random.key(2), (2, width))
    params = jax.vmap(layer.init, (0, None))(jax.random.split(jax.random.key(1), 2), x[0])
    kernel = params["params"]["kernel"]
    assert kernel.shape == (2, inputs + 1, width)
    assert not kernel[:, -1].any()
    expected = jax.vmap(reference.init, (0, None))(jax.random.split(jax.random.key(1), 2), x[0])["params"]["kernel"]
    np.testing.assert_allclose(kernel[:, :-1].std(), expected.std(), rtol=0.5)
    kernel = kernel.at[:, -1].set(biases)

    def ours(kernel, x):
        return jax.vmap(jax.vmap(layer.apply, (None, 0)), (0, None))({"params": {"kernel": kernel}}, x)

    def theirs(kernel, x):
        dense = {"params": {"kernel": kernel[:, :-1], "bias": kernel[:, -1]}}
        return jax.vmap(reference.apply, (0, None))(dense, x)

    np.testing.assert_allclose(ours(kernel, x), theirs(kernel, x), rtol=1e-5, atol=1e-5)
    gradients = [jax.grad(lambda k, x, f=f: jnp.sum(jnp.sin(f(k, x))), (0, 1))(kernel, x) for f in (ours, theirs)]
    chex.assert_trees_all_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("torso", "is_linear"), [(linear(4), True), (mlp(4), False)])
def test_only_linear_torsos_are_linear(torso, is_linear):
    x, y = jax.random.normal(jax.random.key(0), (2, 6))
    params = torso.init(jax.random.key(1), x)
    both, alone = torso.apply(params, x + y), torso.apply(params, x) + torso.apply(params, y)
    assert both.shape == (4,)
    assert bool(jnp.allclose(both, alone, atol=1e-5)) == is_linear


def test_images_are_convolved():
    policy, image = BidPolicy(cnn(8, convolutions=(4,)), KumaraswamyHead()), jnp.ones((5, 6, 3))
    params = policy.init(jax.random.key(0), image)
    assert params["params"]["torso"]["Convolution_0"]["kernel"].shape == (9 * 3, 4)
    assert policy.apply(params, image).mean().shape == ()
    # The same weights at every place: a bright pixel in the interior adds the same wherever it is.
    torso = cnn(convolutions=(4,))
    weights = torso.init(jax.random.key(0), image)
    spots = [jnp.zeros((5, 6, 3)).at[y, x].set(1) for y, x in ((1, 1), (3, 4))]
    one, other = (torso.apply(weights, spot).sum() for spot in spots)
    np.testing.assert_allclose(one, other, rtol=1e-5)
    society = TrainConfig("Breakout-MinAtar").settings.society
    kernel = jax.eval_shape(society.init, jax.random.key(0))["params"]["torso"]["Convolution_0"]["kernel"]
    assert kernel.shape == (society.modules, 9 * 4, 16)


def test_fresh_convolutions_are_scaled_like_flaxs():
    fresh = Convolution(4, 2).init(jax.random.key(0), jnp.zeros((5, 5, 30)))["params"]
    assert jax.tree.map(jnp.shape, fresh) == {"kernel": (9 * 30, 4), "bias": (4,)}
    assert not fresh["bias"].any()
    np.testing.assert_allclose(fresh["kernel"].std(), (9 * 30) ** -0.5, rtol=0.1)


@pytest.mark.parametrize(
    ("env_id", "given", "convolutions", "stride"),
    [
        ("Breakout-MinAtar", {}, (16,), 1),  # 10 × 10
        ("Breakout-MinAtar", {"stride": 3}, (16,), 3),
        ("Pong-misc", {}, (16, 32), 2),  # 30 × 40
        ("Pong-misc", {"stride": 1}, (16, 32), 1),
        ("Pong-misc", {"convolutions": (4,)}, (4,), 2),
        ("Pong-misc", {"convolutions": ()}, (), 2),
    ],
)
def test_large_images_are_halved_twice(env_id, given, convolutions, stride):
    society = TrainConfig(env_id, **given).settings.society
    torso = society.policy.torso
    assert (torso.convolutions, torso.stride) == (convolutions, stride)
    *sides, channels = society.observation.shape
    for _ in convolutions:
        sides = [-(-side // stride) for side in sides]
    inputs = math.prod(sides) * (channels, *convolutions)[-1]
    kernel = jax.eval_shape(society.init, jax.random.key(0))["params"]["torso"]["Affine_0"]["kernel"]
    assert kernel.shape == (society.modules, inputs + 1, 128)


class Picture:
    """An environment with a constant image as observation."""

    num_actions = 2

    def __init__(self, *shape):
        self.image = jnp.zeros(shape)

    def reset(self, key, params):
        return self.image, jnp.zeros(())

    def step(self, key, state, action, params):
        return self.image, state, jnp.zeros(()), jnp.zeros((), bool), jnp.zeros((), bool), {}


@pytest.mark.parametrize(("shape", "stride"), [((16, 16, 1), 1), ((17, 16, 1), 2), ((3, 17, 1), 2), ((5, 5, 99), 1)])
def test_an_image_is_large_from_17_pixels_on(shape, stride):
    assert TrainConfig(Picture(*shape)).settings.society.policy.torso.stride == stride


@pytest.mark.parametrize(
    ("env_id", "stride", "message"),
    [
        ("Bandit-v0", 2, "stride: expected an environment with images"),
        ("Bandit-v0", 1, "stride: expected an environment with images"),
        ("Breakout-MinAtar", 0, "stride: expected an integer >= 1, got 0"),
        ("Breakout-MinAtar", 2.5, "stride: expected an integer >= 1, got 2.5"),
        ("Breakout-MinAtar", True, "stride: expected an integer >= 1, got True"),
    ],
)
def test_bad_strides_are_refused(env_id, stride, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(env_id, stride=stride)


def test_a_value_network_starts_informative_and_scalar():
    network, obs = ValueNetwork(mlp(8)), jnp.ones(3)
    params = network.init(jax.random.key(0), obs)
    assert network.apply(params, obs).shape == ()
    assert network.apply(params, obs) != 0  # only bids start equal everywhere


@pytest.mark.parametrize("head", [*HEADS, ValueHead])
def test_everything_is_float64_under_x64(x64, head):
    policy = BidPolicy(mlp(4), head(0.0, 1.0))

    def numbers(key, obs):
        params = policy.init(key, obs)
        bids = policy.apply(params, obs)
        densities = [] if head is ValueHead else [bids.log_prob(bids.mean()), bids.entropy()]
        return [*jax.tree.leaves(params), bids.sample(key), bids.mean(), *densities]

    assert {x.dtype for x in jax.eval_shape(numbers, jax.random.key(0), jnp.ones(3))} == {jnp.dtype("float64")}


# --- policies of a society


def society(head=KumaraswamyHead(), torso=linear(), **settings):  # noqa: B008  frozen
    return Society(make("Bandit-v0")[0], BidPolicy(torso, head), **settings)


def bids_of(society, params, keys=1):
    """Sealed bids [keys, A] for the first state."""
    env_params = society.env.default_params
    state, _ = reset(society, jax.random.key(0), env_params)

    def bids(key):
        return step(society, key, params, state, env_params, Rules())[1].outcome.bids

    return np.asarray(jax.jit(jax.vmap(bids))(jax.random.split(jax.random.key(1), keys)))


def scrambled(params):
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return structure.unflatten([jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])


@pytest.mark.parametrize("head", HEADS)
def test_clones_share_parameters_and_bid_independently(head):
    keys, market = 2_500, society(head(LOW, HIGH), clones=2)
    params = market.init(jax.random.key(0))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(params)} == {market.primitives} == {4}
    bids = bids_of(market, params, keys)
    assert bids.shape == (keys, 8)
    correlation = np.corrcoef(bids.T)[~np.eye(8, dtype=bool)]
    assert np.abs(correlation).max() < 5 / math.sqrt(keys)
    bound = math.sqrt(math.log(2e6) / (2 * keys))  # as above
    assert all(scipy.stats.kstest(column, scipy.stats.uniform(LOW, WIDTH).cdf).statistic < bound for column in bids.T)


@pytest.mark.parametrize("share", [True, False])
def test_greedy_bids_are_the_means_of_each_module(share):
    market = society(clones=3, share=share, greedy=True)
    params = scrambled(market.init(jax.random.key(0)))
    modules = 4 if share else 12
    assert {leaf.shape[0] for leaf in jax.tree.leaves(params)} == {modules}
    means = [market.policy.apply(jax.tree.map(lambda x, m=m: x[m], params), jnp.ones(1)).mean() for m in range(modules)]
    (bids,) = bids_of(market, params)
    # Bidder a is clone a % 3 of primitive a // 3.
    np.testing.assert_allclose(bids, np.repeat(means, 3) if share else means, rtol=1e-5)
    assert len(np.unique(bids)) == modules


@pytest.mark.parametrize(("head", "share"), [(KumaraswamyHead, True), (KumaraswamyHead, False), (BetaHead, True)])
def test_sampled_bids_come_from_the_own_module(head, share):
    market = society(head(LOW, HIGH), clones=2, share=share)
    params = scrambled(market.init(jax.random.key(0)))
    greedy = society(head(LOW, HIGH), clones=2, share=share, greedy=True)
    keys = 2_500
    # Hoeffding: the mean of n bids within a width w strays by more than w * 0.06 with a probability below 4e-8.
    np.testing.assert_allclose(bids_of(market, params, keys).mean(0), bids_of(greedy, params)[0], atol=0.06 * WIDTH)


def test_unshared_clones_start_with_networks_of_their_own():
    params = society(torso=linear(3), clones=2, share=False).init(jax.random.key(0))
    kernels = params["params"]["torso"]["Affine_0"]["kernel"].reshape(8, -1)
    assert len(np.unique(kernels, axis=0)) == 8

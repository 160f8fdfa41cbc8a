"""Valuation: estimates in any units, without bias; monolithic agents that learn by it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmarket import TrainConfig, fit
from jaxmarket.environments import FiniteMDP
from jaxmarket.learners import Experience, Hyperparameters, Valuation, valuation
from jaxmarket.learners.protocol import EXPERIENCE_AXES
from jaxmarket.policies import UNITS, BidPolicy, ValueHead, linear, mlp

SIZES = st.floats(1e-3, 1e3)


def process(scale=1.0, states=5, gamma=0.9, seed=0):
    """A random process with rewards of both signs."""
    rng = np.random.default_rng(seed)
    transitions = rng.dirichlet(np.ones(states), (states, 2))
    rewards = rng.normal(size=(states, 2)) * scale
    return FiniteMDP(transitions, rewards, gamma, np.full(states, 1 / states), 20)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.floats(-1e3, 1e3), SIZES, st.floats(-1e3, 1e3), SIZES, st.booleans())
def test_other_units_leave_bids_as_they_are(location, scale, new_location, new_scale, table):
    policy = BidPolicy(linear() if table else mlp(4), ValueHead())
    key_init, key_params, key_obs = jax.random.split(jax.random.key(0), 3)
    obs = jax.random.normal(key_obs, (8, 3))
    params = jax.tree.map(lambda x: jax.random.normal(key_params, x.shape), policy.init(key_init, obs[0]))
    params = {**params, UNITS: {"location": jnp.float32(location), "scale": jnp.float32(scale)}}
    moved = policy.rescaled(params, jnp.float32(new_location), jnp.float32(new_scale))
    assert moved[UNITS] == {"location": np.float32(new_location), "scale": np.float32(new_scale)}
    bids, same = (jax.vmap(policy.apply, (None, 0))(p, obs).value for p in (params, moved))
    # Bids near zero are differences of numbers that are as large as the locations.
    size = np.abs(bids) + abs(location) + abs(new_location) + 10 * scale
    np.testing.assert_array_less(np.abs(bids - same), 1e-5 * size)


@pytest.mark.slow
def test_a_network_is_trained_alike_at_rewards_of_any_power_of_two(make_scaled_pole):
    ours, other = (
        fit(TrainConfig(make_scaled_pole(scale), steps=10_240), jax.random.key(0), progress=False)
        for scale in (1.0, 2.0**20)
    )
    jax.tree.map(np.testing.assert_array_equal, ours.networks["policy"]["params"], other.networks["policy"]["params"])


@pytest.fixture
def make_scaled_pole():
    """CartPole with its rewards multiplied."""
    from gymnax.environments.classic_control import cartpole  # noqa: PLC0415

    class Scaled(cartpole.CartPole):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def step_env(self, key, state, action, params):
            obs, state, reward, done, info = super().step_env(key, state, action, params)
            return obs, state, reward * self.scale, done, info

    return Scaled


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e3, 1e-3])
def test_rewards_of_any_size_give_bids_in_proportion(scale):
    ours, other = (
        fit(TrainConfig(process(size), steps=1_024_000), jax.random.key(0), progress=False).bids
        for size in (1.0, scale)
    )
    np.testing.assert_allclose(np.asarray(ours) * scale, other, rtol=0.01, atol=0.01 * scale * np.abs(ours).max())


def experience(revenue, won):
    """Auctions of a module of one bidder in one state."""
    count = len(revenue)
    rows = {name: jnp.zeros((1, count)) for name in ("bid", "price")}
    return Experience(
        obs=jnp.ones((count, 1)),
        eligible=jnp.ones((1, count), bool),
        won=jnp.asarray(won).reshape(1, -1),
        utility=jnp.asarray(revenue, jnp.float32).reshape(1, -1),
        **rows,
    )


def updated(learner, state, revenue, won=None, progress=0.0):
    won = np.ones(len(revenue), bool) if won is None else won
    hyper = Hyperparameters(learning_rate=0.03)
    return learner.update(state, experience(revenue, won), hyper, jnp.int32(0), jnp.float32(progress))[0]


LEARNER = Valuation(BidPolicy(linear(), ValueHead()), minibatch=4, learning_rate=0.03)


def limits(state):
    units = state.params[UNITS]
    return float(units["location"] - units["scale"]), float(units["location"] + units["scale"])


@pytest.fixture(scope="module")
def update():
    return jax.jit(updated, static_argnums=0)


def test_units_are_the_range_of_revenues_that_the_module_received(update):
    state = LEARNER.init(jax.random.key(0), jnp.ones(1))
    state = update(LEARNER, state, np.float32([-3.0, 1.0, 900.0, 5.0]), np.array([True, True, False, True]))
    assert state.params[UNITS] == {"location": 1.0, "scale": 4.0}
    # The range includes 0 at first, grows at once, and shrinks slowly.
    state = update(LEARNER, LEARNER.init(jax.random.key(0), jnp.ones(1)), np.float32([8.0, 10.0] * 2))
    low, high = limits(state)
    assert (high, round(low, 5)) == (10.0, 0.08)
    for _ in range(500):
        state = update(LEARNER, state, np.float32([8.0, 9.0] * 2))
    low, high = limits(state)
    assert 7.9 < low < 8 and 9 < high < 9.1


def test_without_receipts_nothing_changes(update):
    state = update(LEARNER, LEARNER.init(jax.random.key(0), jnp.ones(1)), np.float32([-3.0, 1.0, 2.0, 5.0]))
    after = update(LEARNER, state, np.full(4, 100.0, np.float32), np.zeros(4, bool))
    for name, size in state.params[UNITS].items():
        np.testing.assert_allclose(after.params[UNITS][name], size, rtol=1e-6)


def test_before_the_first_reward_bids_are_zero(update):
    state = LEARNER.init(jax.random.key(0), jnp.ones(1))
    for won in (np.zeros(4, bool), np.ones(4, bool)):
        state = update(LEARNER, state, np.zeros(4, np.float32), won)
        assert float(LEARNER.policy.apply(state.params, jnp.ones(1)).value) == 0


def test_trained_networks_keep_their_bids_under_a_new_learner(update):
    """As `fit(start=)` begins: the range is that of the networks, and not the one of a new learner."""
    state = LEARNER.init(jax.random.key(0), jnp.ones(1))
    for _ in range(20):
        state = update(LEARNER, state, np.float32([80.0, 100.0, 90.0, 90.0]))
    again = LEARNER.init(jax.random.key(1), jnp.ones(1)).replace(params=state.params)
    still = dataclasses.replace(Hyperparameters(), learning_rate=0.0)
    rows = experience(np.float32([85.0, 90.0] * 2), np.ones(4, bool))
    after, _ = jax.jit(LEARNER.update)(again, rows, still.as_arrays(), jnp.int32(0), jnp.float32(0))
    bids = [float(LEARNER.policy.apply(s.params, jnp.ones(1)).value) for s in (state, after)]
    assert bids[0] > 10 and bids[1] == pytest.approx(bids[0], rel=1e-5)


def test_frozen_networks_keep_their_units(update):
    state = LEARNER.init(jax.random.key(0), jnp.ones(1))
    movable = jax.tree.map(lambda _: jnp.zeros((), bool), state.params)
    frozen = state.replace(opt=state.opt.replace(movable=movable))
    after = update(LEARNER, frozen, np.float32([-3.0, 1.0, 2.0, 5.0]))
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e4, 0.0), (1e-4, 0.0), (1.0, 100.0)])
def test_the_bid_converges_to_the_mean_revenue(update, scale, shift):
    """Also of skewed revenues of any size, for which a limit on the gradient would shift the fixed point."""
    rng, state = np.random.default_rng(0), LEARNER.init(jax.random.key(0), jnp.ones(1))
    rounds = 600
    for k in range(rounds):
        revenue = (shift + scale * rng.exponential(size=64)).astype(np.float32)
        state = update(LEARNER, state, revenue, None, np.float32(k / rounds))
    bid = LEARNER.policy.apply(state.params, jnp.ones(1)).value
    np.testing.assert_allclose(bid, shift + scale, atol=0.05 * scale)


MODULES, CLONES, AUCTIONS = 3, 2, 16
LARGE = Valuation(BidPolicy(mlp(1300), ValueHead()), minibatch=AUCTIONS, epochs=1, learning_rate=0.03)


@functools.cache
def first_moments(at_once):
    """Adam's first moments [M, ...] after one gradient step, a tenth of the gradients, and the losses [M]."""

    def moments(obs, winner, target):
        won = (winner == jnp.arange(MODULES * CLONES)[:, None]).reshape(MODULES, CLONES, -1)
        zero = jnp.zeros(won.shape)
        rows = Experience(obs, zero, won | True, won, price=zero, utility=jnp.where(won, target, 0))
        states = jax.vmap(LARGE.init, (0, None))(jax.random.split(jax.random.key(0), MODULES), obs[0])
        numbers = Hyperparameters(learning_rate=0.03), jnp.int32(0), jnp.float32(0)
        learn = jax.vmap(lambda state, rows: LARGE.update(state, rows, *numbers), (0, EXPERIENCE_AXES))
        state, metrics = learn(states, rows)
        return state.opt.adam.mu, metrics["loss"]

    with pytest.MonkeyPatch.context() as patch:
        if at_once:
            patch.setattr(valuation, "is_large", lambda params: False)
        return jax.jit(moments).lower(*auctions(0, [0] * AUCTIONS)).compile()


def auctions(seed, winners):
    key_obs, key_target = jax.random.split(jax.random.key(seed))
    obs = jax.random.normal(key_obs, (AUCTIONS, 5))
    return obs, jnp.asarray(winners, jnp.int32), jax.random.normal(key_target, (AUCTIONS,))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 99),
    st.lists(st.integers(-1, MODULES * CLONES - 1), min_size=AUCTIONS, max_size=AUCTIONS)
    | st.integers(-1, MODULES * CLONES - 1).map(lambda winner: [winner] * AUCTIONS)
    | st.integers(0, AUCTIONS).map(lambda wins: [0] * wins + [3] * (AUCTIONS - wins)),
)
def test_large_networks_learn_from_purchases_what_a_sum_over_all_auctions_gives(seed, winners):
    given = auctions(seed, winners)
    for found, wanted in zip(
        jax.tree.leaves(first_moments(False)(*given)), jax.tree.leaves(first_moments(True)(*given)), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_monolith_learns_the_optimal_values():
    env = process(100.0, states=4)
    config = TrainConfig(env, agent="monolith", learner="valuation", steps=1_024_000, seeds=2)
    result = fit(config, jax.random.key(0), progress=False)
    agent = config.settings.trainable.player(greedy=True)
    states = jnp.eye(4)
    values = jax.vmap(jax.vmap(agent.policy.apply, (None, 0)), (0, None))(result.networks["policy"], states).values
    best = env.optimal_q(env.gamma)
    np.testing.assert_allclose(values, np.broadcast_to(best, values.shape), atol=0.03 * np.abs(best).max())

"""The whole run: train, fit, their parity, their metrics; and what societies learn."""

import dataclasses
import gc
import itertools
import math
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from thinned import thinned

import jaxmarket
from jaxmarket import TrainConfig, fit, train
from jaxmarket.environments import FiniteMDP, garnet
from jaxmarket.learners import LEARNERS, Experience, protocol
from jaxmarket.learners.ppo import clipped_gain
from jaxmarket.learners.protocol import EXPERIENCE_AXES, modules_at_once
from jaxmarket.runs import fitting
from jaxmarket.training import society as training


def leaves_equal(a, b):
    return all(bool(jnp.array_equal(x, y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize(
    "learner",
    [pytest.param(name, marks=pytest.mark.slow if name == "valuation" else pytest.mark.full) for name in LEARNERS],
)
def test_vmap_of_train_equals_fit(learner, small):
    """Same chunk, same keys: the parameters agree to the bit on CPU (1e-6 relative is what is promised)."""
    config = TrainConfig("Chain-v0", learner=learner, seeds=2, **small)
    key = jax.random.key(3)
    state, metrics = jax.jit(jax.vmap(lambda k: train(config, k)))(jax.random.split(key, 2))
    result = fit(config, key)
    chex.assert_trees_all_close(state.learner.params, result.state.learner.params, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(metrics["return_mean"].T, result.metrics["return_mean"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.bits
def test_same_seed_same_bits_and_other_seed_other_bits(small):
    config = TrainConfig("Bandit-v0", **small)
    first, again, other = (fit(config, jax.random.key(k)) for k in (0, 0, 1))
    assert leaves_equal(first.state.learner, again.state.learner)
    assert not leaves_equal(first.state.learner.params, other.state.learner.params)
    assert first.summary["return_seeds"] == again.summary["return_seeds"]


@pytest.mark.slow
def test_equal_settings_compile_once(small):
    """Floats are traced: another discount or learning rate is the same program."""
    fit(TrainConfig("Bandit-v0", **small), jax.random.key(0))
    before = fitting.compiles()
    fit(TrainConfig("Bandit-v0", **small), jax.random.key(1))
    fit(TrainConfig("Bandit-v0", learning_rate=1e-3, trace_decay=0.1, gamma=0.5, **small), jax.random.key(1))
    assert fitting.compiles() == before

    def stop(record):
        raise RuntimeError("compiled")

    with pytest.raises(RuntimeError, match="compiled"):
        fit(TrainConfig("Bandit-v0", clones=3, **small), jax.random.key(1), loggers=[stop])
    assert fitting.compiles() == before + 1


@pytest.mark.slow
def test_a_sweep_over_traced_settings_is_one_vmap(small):
    config = TrainConfig("Bandit-v0", learner="valuation", **small)

    def final(rate):
        hyper = config.settings.hyperparameters.replace(learning_rate=rate)
        return train(config, jax.random.key(0), hyper)[0].learner.params

    swept = jax.jit(jax.vmap(final))(jnp.array([0.0, config.settings.values["learning_rate"]]))
    alone = jax.jit(lambda: train(config, jax.random.key(0))[0].learner.params)()
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], swept), alone, rtol=1e-5, atol=1e-6)
    # A learning rate of zero leaves the bids where they were, at zero.
    society = config.settings.society
    still = society.bids(jax.tree.map(lambda x: x[0], swept), None, jnp.ones(1))
    np.testing.assert_allclose(still, 0, atol=1e-6)


@pytest.mark.slow
def test_key_reuse_checker_is_silent(small):
    config = TrainConfig("Chain-v0", learner="valuation", dropout=0.3, **small)
    with jax.debug_key_reuse(True):
        fit(config, jax.random.key(0))


@pytest.mark.slow
def test_x64_runs_in_double_precision(small):
    with jax.enable_x64(True):
        result = fit(TrainConfig("Chain-v0", learner="valuation", seeds=1, **small), jax.random.key(0))
        floats = [x for x in jax.tree.leaves(result.state) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert floats
        assert {x.dtype for x in floats} == {jnp.dtype("float64")}


@pytest.mark.slow
def test_metrics_keep_the_seed_axis_and_are_nan_before_the_first_episode_ends():
    """Chain episodes last at least 5 steps, so a first chunk of 2 x 2 auctions ends none."""
    config = TrainConfig("Chain-v0", seeds=3, steps=4 * 50, instances=2, horizon=2, minibatch=4)
    result = fit(config, jax.random.key(0))
    assert result.metrics["return_mean"].shape == (50, 3)
    ended = result.metrics["episodes"] > 0
    assert not ended[0].any()
    assert ended.any()
    np.testing.assert_array_equal(np.isnan(result.metrics["return_mean"]), ~ended)


def test_summary_has_every_promised_field(bandit_run):
    summary = bandit_run[0].summary
    promised = (
        "env auction learner clones seeds env_steps compile_seconds run_seconds steps_per_second "
        "return_mean return_std bid_error bid_error_all sampled_return_mean"
    )
    assert set(promised.split()) <= set(summary)
    config = bandit_run[0].config
    assert summary["env_steps"] >= config.seeds * config.settings.steps
    assert summary["env_steps"] % (config.seeds * config.settings.instances * config.settings.horizon) == 0
    assert summary["steps_per_second"] == pytest.approx(summary["env_steps"] / summary["run_seconds"])


@pytest.mark.slow  # test_env_params has a cheaper case
def test_bid_error_is_null_where_q_is_unknown(small):
    summary = fit(TrainConfig("CartPole-v1", learner="valuation", **small), jax.random.key(0)).summary
    assert summary["bid_error"] is None
    assert math.isfinite(summary["return_mean"])


def test_ctrl_c_keeps_what_was_learned(tmp_path, small):
    def stop(record):
        if record.chunk >= record.chunks // 2:
            raise KeyboardInterrupt

    config = TrainConfig("Bandit-v0", learner="valuation", **small)
    result = fit(config, jax.random.key(0), tmp_path / "run", loggers=[stop])
    assert result.summary["interrupted"]
    assert result.summary["bid_error"] is None  # visits are counted at the end of training: nothing was measured
    assert not (tmp_path / "run" / "bids.png").exists()
    assert 0 < result.summary["env_steps"] < config.settings.steps
    assert jaxmarket.load(tmp_path / "run").society == dataclasses.replace(config.settings.society, greedy=True)


def test_exploration_falls_linearly_over_the_first_half():
    hyper = TrainConfig(
        "Bandit-v0", learner="valuation", exploration=0.9, exploration_final=0.1
    ).settings.hyperparameters
    at = [float(hyper.rules(jnp.asarray(p)).exploration) for p in (0.0, 0.25, 0.5, 0.9)]
    np.testing.assert_allclose(at, [0.9, 0.5, 0.1, 0.1], rtol=1e-6)


def test_experience_is_each_modules_own_view(small):
    """Bids, wins and money of module m are those of its members, in the rows' order."""
    config = TrainConfig("Bandit-v0", **small)
    society, params = config.settings.society, config.adapter.default_params
    states, _ = jax.vmap(lambda k: jaxmarket.reset(society, k, params))(jax.random.split(jax.random.key(0), 3))
    bid_params = society.init(jax.random.key(1))
    keys = jax.random.split(jax.random.key(2), 3)
    _, rows = jax.jit(jax.vmap(lambda k, s: jaxmarket.rollout(society, k, bid_params, s, params, 5), out_axes=(0, 1)))(
        keys, states
    )
    utility = jnp.arange(15.0).reshape(5, 3)
    seen = jax.device_get(jax.jit(training.module_experience, static_argnums=0)(society, rows, utility))
    rows, utility = jax.device_get((rows, utility))
    for t, b in ((0, 0), (2, 1), (4, 2)):
        n, winner = t * 3 + b, int(rows.outcome.winner[t, b])
        for m in range(society.modules):
            for r in range(society.members):
                bidder, won = m * society.members + r, m * society.members + r == winner
                assert seen.bid[m, r, n] == rows.outcome.bids[t, b, bidder]
                assert bool(seen.won[m, r, n]) == won
                assert seen.utility[m, r, n] == (utility[t, b] if won else 0)
                assert seen.price[m, r, n] == (rows.price[t, b] if won else 0)
        np.testing.assert_array_equal(seen.obs[n], rows.obs[t, b])


@pytest.mark.parametrize(
    ("learner", "share"),
    thinned(
        itertools.product(LEARNERS, [True, False]),
        lambda learner, share: learner == "valuation" or (learner == "reinforce" and share),
    ),
)
def test_locality_through_the_whole_update(learner, share, small):
    """A module's new parameters do not depend on the utility of any bidder outside it: exactly zero."""
    config = TrainConfig("Bandit-v0", learner=learner, share_clones=share, **small)
    program, env_params = config.settings.trainable, config.adapter.default_params
    hyper = config.settings.hyperparameters
    state = program.init(jax.random.key(0), env_params, hyper)
    society = program.society
    n = config.settings.instances * config.settings.horizon
    key_bid, key_won = jax.random.split(jax.random.key(1))
    shape = (society.modules, society.members, n)
    bids = jax.random.uniform(key_bid, shape)
    won = jax.random.bernoulli(key_won, 0.5, shape)
    obs = jnp.ones((n, 1))

    def norm_of_module(utility, module):
        experience = Experience(
            obs=obs, bid=bids, eligible=jnp.ones(shape, bool), won=won, price=0.1 * won, utility=utility
        )
        update = lambda s, e: program.learner.update(s, e, hyper, jnp.zeros((), int), jnp.zeros(()))[0]  # noqa: E731
        learned = jax.vmap(update, in_axes=(0, EXPERIENCE_AXES))(state.learner, experience)
        return sum(jnp.sum(leaf[module] ** 2) for leaf in jax.tree.leaves(learned.params))

    utility = jnp.where(won, 0.3 + bids, 0.0)
    gradient = jax.jit(jax.grad(norm_of_module), static_argnums=1)(utility, 1)
    others = jnp.delete(gradient, 1, axis=0)
    assert float(jnp.abs(others).max()) == 0
    assert float(jnp.abs(gradient[1]).max()) > 0


@pytest.mark.slow
def test_dropout_trains_and_never_empties_the_market():
    config = TrainConfig(
        "Bandit-v0", learner="valuation", dropout=0.9, share_clones=False, steps=40_000, minibatch=64, horizon=16
    )
    result = fit(config, jax.random.key(0))
    assert result.summary["bid_error"] < 0.02


@pytest.mark.slow  # as in the README, whose example the default tests run
def test_custom_mechanism_and_environment_object():
    """An environment is an object, an auction two functions: nothing has to be registered."""
    half = jaxmarket.Mechanism("half", price=lambda o: 0.5 * o.winning_bid, payout=lambda o: 0.5 * o.winning_bid)
    mdp = FiniteMDP(P=[[[0.5, 0.5]], [[0.0, 1.0]]], R=[[1.0], [0.0]], gamma=0.9, start=[1.0, 0.0], horizon=8)
    config = TrainConfig(mdp, auction=half, learner="valuation", steps=4096, instances=8, horizon=16, minibatch=32)
    assert fit(config, jax.random.key(0)).summary["auction"] == "half"


def test_valuation_learns_the_bandit_exactly(bandit_run):
    """Rewards are certain, so each bid must come to its own reward; 40,000 steps."""
    np.testing.assert_allclose(bandit_run[0].bids[:, 0], [[0.2, 0.4, 0.6, 0.8]] * 2, atol=0.005)
    assert bandit_run[0].summary["return_mean"] == pytest.approx(0.8)


@pytest.mark.full
@pytest.mark.parametrize("scale", [1, 100])
def test_valuation_learns_a_stochastic_process(scale):
    """Bids come to Q* of a random process the library has no names for (bid_error <= .05), in any currency."""
    rng = np.random.default_rng(0)
    mdp = FiniteMDP(rng.dirichlet(np.ones(4), (4, 3)), scale * rng.normal(size=(4, 3)), 0.8, np.ones(4) / 4)
    result = fit(TrainConfig(mdp, learner="valuation", steps=400_000), jax.random.key(0))
    assert result.summary["bid_error"] <= 0.05
    assert result.summary["bid_error_all"] <= 0.05


@pytest.mark.full
def test_reinforce_and_ppo_find_the_best_arm():
    for learner in ("reinforce", "ppo"):
        config = TrainConfig("Bandit-v0", learner=learner, learning_rate=1e-3, steps=200_000, seeds=2)
        assert fit(config, jax.random.key(0)).summary["return_mean"] == pytest.approx(0.8), learner


@pytest.mark.full
def test_claim_ppo_solves_chain_on_all_seeds():
    """``jaxmarket train Chain-v0 --auction ccv --learner ppo --seeds 8``."""
    result = fit(TrainConfig("Chain-v0", auction="ccv", learner="ppo", seeds=8), jax.random.key(0))
    assert result.summary["return_seeds"] == pytest.approx([0.8] * 8)


@pytest.mark.full
@pytest.mark.parametrize("env", ["Bandit-v0", "Chain-v0", "Duality-v0"])
def test_claim_valuation_bids_the_optimal_values(env):
    """``jaxmarket train ENV --learner valuation``: bid_error at most .02, on 8 seeds."""
    result = fit(TrainConfig(env, learner="valuation", seeds=8), jax.random.key(0))
    assert result.summary["bid_error"] <= 0.02
    assert result.summary["bid_error_all"] <= 0.02


@pytest.mark.full
def test_claim_a_society_of_two_primitives_balances_the_pole():
    """``jaxmarket train CartPole-v1 --learner valuation --seeds 8``: median and 7 of 8 at 475 or more."""
    result = fit(TrainConfig("CartPole-v1", learner="valuation", seeds=8), jax.random.key(0))
    returns = np.sort(result.summary["return_seeds"])
    assert np.median(returns) >= 475
    assert returns[1] >= 475


@pytest.mark.parametrize("learner", LEARNERS)
def test_nothing_is_learned_from_a_bid_that_was_not_admitted(learner, small):
    """Whatever a bidder that sat out would have bid (or is said to have earned), the update is the same to the bit."""
    config = TrainConfig("Bandit-v0", learner=learner, **small)
    program, hyper = config.settings.trainable, config.settings.hyperparameters
    state = program.init(jax.random.key(0), config.adapter.default_params, hyper)
    shape = (4, 2, config.settings.instances * config.settings.horizon)
    key_bid, key_other, key_out, key_money = jax.random.split(jax.random.key(1), 4)
    bids, others = (jax.random.uniform(k, shape, minval=0.05, maxval=0.95) for k in (key_bid, key_other))
    eligible = jax.random.bernoulli(key_out, 0.7, shape)
    utility = jax.random.normal(key_money, shape)
    out = lambda x, y: jnp.where(eligible, x, y)  # noqa: E731

    @jax.jit
    def learned(bids, utility):
        experience = Experience(
            obs=jnp.ones((shape[2], 1)), bid=bids, eligible=eligible, won=eligible, price=0 * bids, utility=utility
        )
        update = lambda s, e: program.learner.update(s, e, hyper, jnp.zeros((), int), jnp.zeros(()))[0]  # noqa: E731
        return jax.vmap(update, in_axes=(0, EXPERIENCE_AXES))(state.learner, experience)

    assert leaves_equal(learned(bids, utility), learned(out(bids, others), out(utility, 7 + others)))
    assert not leaves_equal(learned(bids, utility), learned(others, 7 + others))


def test_the_clipped_gain_and_its_gradient_are_those_of_min_and_clip():
    ratio, advantage = jnp.meshgrid(jnp.linspace(0.5, 1.5, 23), jnp.linspace(-1, 1, 8))

    def plain(ratio):
        return jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)

    def ours(ratio):
        return clipped_gain(jnp.log(ratio), advantage, 0.2)

    np.testing.assert_allclose(ours(ratio), plain(ratio), rtol=1e-6, atol=1e-7)
    slopes = [jax.grad(lambda r, f=f: f(r).sum())(ratio) for f in (ours, plain)]
    np.testing.assert_allclose(*slopes, rtol=1e-6, atol=1e-7)
    assert float(jnp.abs(slopes[0] - advantage).max()) > 0.5  # somewhere it is clipped


@pytest.mark.slow
@pytest.mark.parametrize("trained", thinned([False, True], lambda trained: not trained))
def test_programs_that_are_dropped_release_their_environment(trained):
    env = garnet(99, 3, 2, 0.9)
    alive = weakref.ref(env)
    config = TrainConfig(env, learner="valuation", steps=64, instances=4, horizon=16, minibatch=64)
    if trained:
        jaxmarket.fit(config, jax.random.key(0), progress=False)
    else:
        settings = config.settings
        hyper = settings.hyperparameters.as_arrays()
        fitting.init_seeds(settings.trainable, jax.random.split(jax.random.key(0), 1), hyper, None)
        del settings
    del env, config
    fitting._compiled.cache_clear()
    fitting._jitted.cache_clear()
    gc.collect()
    assert alive() is None


def test_many_modules_are_trained_in_groups_of_equal_size():
    # (modules, bids of one in a rollout): all at once up to 2^17 bids, or where no group has nearly 2^15.
    cases = {
        (2, 8_192): 2,
        (128, 1_024): 128,
        (256, 2_048): 16,
        (1_025, 2_048): 5,
        (1_031, 2_048): 1_031,
        (6, 2**16): 1,
    }
    assert {case: modules_at_once(*case) for case in cases} == cases


@pytest.mark.slow
def test_groups_of_modules_learn_what_all_learn_at_once(monkeypatch, small):
    config, groups = TrainConfig("Chain-v0", learner="valuation", **small), []

    def alone(modules, bids):
        groups.append(modules)
        return 1

    def trained():
        return jax.jit(lambda key: train(config, key)[0].learner)(jax.random.key(0))

    wanted = trained()
    monkeypatch.setattr(training, "modules_at_once", alone)
    found = trained()
    assert groups and groups[0] > 1
    chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("agent", "hidden", "large"),
    [("society", (64, 64), False), ("society", (96, 96), True), ("monolith", (96, 96), True)],
)
def test_programs_of_large_networks_are_compiled_for_them(monkeypatch, agent, hidden, large):
    def options(*, large):
        raise RuntimeError(f"{large=}")

    monkeypatch.setattr(fitting, "compiler_options", options)
    config = TrainConfig("CartPole-v1", agent=agent, hidden=hidden, seeds=3, steps=128, horizon=16, minibatch=32)
    with pytest.raises(RuntimeError, match=f"^{large=}$"):
        fit(config, jax.random.key(0))


@pytest.mark.full
def test_training_of_large_networks_can_be_differentiated(monkeypatch):
    """On a CPU they are trained one module after the other; with respect to the learning rate, say."""
    small = {"steps": 128, "instances": 4, "horizon": 16, "minibatch": 32}
    config = TrainConfig("CartPole-v1", learner="valuation", hidden=(96, 96), **small)
    hyper = config.settings.hyperparameters.as_arrays()

    def norm(rate):
        state, _ = train(config, jax.random.key(0), hyper.replace(learning_rate=rate))
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(state.learner.params))

    def derivative():
        return jax.jit(jax.grad(norm))(jnp.float32(1e-3))

    found = derivative()
    monkeypatch.setattr(protocol, "_LARGE", 1 << 30)
    jax.clear_caches()
    assert found == pytest.approx(float(derivative()), rel=1e-2)
    assert abs(found) > 0.1

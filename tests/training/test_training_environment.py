"""A training run as an environment: compared with `train`, with a loop in Python, and with the evaluation by itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket import TrainConfig, fit, train
from jaxmarket.environments import Knob, TrainingEnvironment, adapt, make
from jaxmarket.runs.run_folder import read
from jaxmarket.testing import check_environment
from jaxmarket.training import tuners

KEY = jax.random.key(7)
RATE = Knob("learning_rate", multiply=(0.5, 2.0), to=(0.01,), low=1e-3, high=0.1)
SMALL = {"instances": 2, "horizon": 8}
KINDS = {
    "society": (TrainConfig("Bandit-v0", minibatch=16, **SMALL), "learning_rate"),
    "ppo": (TrainConfig("Bandit-v0", learner="ppo", minibatch=16, **SMALL), "entropy"),
    "monolith": (TrainConfig("Bandit-v0", agent="monolith", minibatch=16, **SMALL), "entropy"),
    "wide": (TrainConfig("SupplyChain2-v0", agent="wide", minibatch=16, **SMALL), "exploration"),
    "population": (TrainConfig("Bandit-v0", agent="population", **SMALL), "wealth_tax"),
}


def bandit(**fields):
    fields = {"knobs": (RATE,), "period": 2, "horizon": 3, "episodes": 4, "start": "config", **fields}
    return TrainingEnvironment(KINDS["society"][0], **fields)


@functools.partial(jax.jit, static_argnums=0)
def begin(env, key, params):
    return env.reset_env(key, params)[1]


@functools.partial(jax.jit, static_argnums=0)
def step(env, key, state, action, params):
    return env.step_env(key, state, action, params)


def play(env, key, actions, params=None):
    """The states before and after every action, and the rewards."""
    params = env.default_params if params is None else params
    states, rewards = [begin(env, key, params)], []
    for i, action in enumerate(actions):
        _, state, reward, ended, _ = step(env, jax.random.fold_in(key, i), states[-1], action, params)
        states.append(state)
        rewards.append(float(reward))
        assert bool(ended) == (i == env.horizon - 1)
    return states, rewards


def words(tree):
    """The leaves of a state, keys as words."""
    leaves = jax.tree.leaves(tree)
    return [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x) for x in leaves]


@pytest.mark.slow
@pytest.mark.bits
@pytest.mark.parametrize("kind", ["society", *(pytest.param(kind, marks=pytest.mark.full) for kind in list(KINDS)[1:])])
def test_a_run_without_a_change_is_that_of_train(kind):
    config, setting = KINDS[kind]
    env = TrainingEnvironment(config, (Knob(setting, to=(0.1, 0.2)),), 2, 3, episodes=2, start="config")
    states, _ = play(env, KEY, [0, 0, 0])
    hyper = env.training.settings.hyperparameters  # traced, as in `fit`
    alone, _ = jax.jit(train, static_argnums=0)(env.training, KEY, hyper)
    for one, other in zip(words(states[-1].run), words(alone), strict=True):
        np.testing.assert_array_equal(one, other)
    # And a change is a change.
    changed, _ = play(env, KEY, [1, 0, 0])
    assert any((x != y).any() for x, y in zip(words(changed[-1].run), words(alone), strict=True))


@pytest.mark.slow
def test_runs_side_by_side_are_those_of_train():
    env, keys = bandit(), jax.random.split(KEY, 3)
    runs = jax.jit(lambda keys: tuners.drive(env, keys, lambda obs: jnp.zeros((), jnp.int32)))(keys)
    for key, performance in zip(keys, runs.performance, strict=True):
        key_reset, key_steps = jax.random.split(key)
        state = begin(env, key_reset, env.default_params)
        for i, each in enumerate(jax.random.split(key_steps, env.horizon)):
            state = step(env, each, state, 0, env.default_params)[1]
            np.testing.assert_allclose(state.performance, performance[i], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["society", pytest.param("population", marks=pytest.mark.full)])
def test_a_schedule_is_that_of_a_loop_over_chunks(kind):
    config, setting = KINDS[kind]
    env = TrainingEnvironment(config, (Knob(setting, to=(0.05, 0.2)),), 2, 3, episodes=2, start="config")
    states, _ = play(env, KEY, [1, 0, 2])
    trainable, hyper = env.training.settings.trainable, env.training.settings.hyperparameters.as_arrays()
    env_params = trainable.env.default_params
    chunk = jax.jit(lambda run, hyper: trainable.chunk(run, env_params, hyper)[0])
    run = trainable.init(KEY, env_params, hyper)
    for value in map(jnp.float32, (0.05, 0.05, 0.2)):
        hyper = hyper.replace(**({"own": hyper.own | {setting: value}} if setting in hyper.own else {setting: value}))
        run = chunk(run, hyper)
    for one, other in zip(words(states[-1].run), words(run), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.slow
def test_rewards_are_changes_of_what_the_learner_earns_in_new_episodes():
    env = bandit(worst=0.25, best=0.75)
    states, rewards = play(env, KEY, [2, 0, 1])
    player = env.training.settings.trainable.player(greedy=True)
    before = 0.0
    for i, (state, reward) in enumerate(zip(states[1:], rewards, strict=True)):
        key = jax.random.fold_in(KEY, i)
        played = player.evaluate(state.run.learner.params, key, player.env.default_params, env.episodes)
        performance = (float(played.returns.mean()) - 0.25) / 0.5
        assert reward == pytest.approx(performance - before, abs=1e-6)
        before = performance
    steps = env.horizon * (2 * 16 + env.episodes)  # an episode of the bandit is one step
    assert float(states[-1].env_steps) == steps
    _, priced = play(env, KEY, [2, 0, 1], env.default_params.replace(price=1e4))
    assert sum(rewards) - sum(priced) == pytest.approx(steps / 100, rel=1e-5)


@pytest.mark.full
def test_what_is_paid_for():
    _, training = play(bandit(pay="training"), KEY, [0, 0, 0])
    alone = jax.jit(train, static_argnums=0)(bandit().training, KEY)[1]["return_mean"]
    np.testing.assert_allclose(np.cumsum(training), alone, rtol=1e-6)
    assert play(bandit(pay="nothing"), KEY, [0, 1, 2])[1] == [0, 0, 0]
    keys, settings = jax.random.split(KEY, 2), jnp.full((2, 3, 1), 0.03)
    paid, tested = (tuners.follow(bandit(pay=pay), keys, settings) for pay in ("training", "held_out"))
    np.testing.assert_array_equal(paid.performance, tested.performance)


def test_actions_change_one_setting_within_its_bounds():
    env = bandit(knobs=(RATE, Knob("exploration", to=(0.25,), low=0.0, high=1.0), Knob("reserve", to=(0.0, 0.5))))
    assert env.names[:4] == ("keep", "learning_rate × 0.5", "learning_rate × 2", "learning_rate = 0.01")
    assert adapt(env).num_actions == env.num_actions == 7
    hyper = env.default_params.hyper
    assert hyper.reserve == 0  # off in the configuration: a knob can switch it on
    for action, setting, value in ((1, "learning_rate", 0.015), (2, "learning_rate", 0.06), (3, "learning_rate", 0.01)):
        assert getattr(env.change(hyper, action), setting) == pytest.approx(value, rel=1e-6)
    for _ in range(9):
        hyper = env.change(hyper, 2)
    assert hyper.learning_rate == np.float32(0.1)
    explored = env.change(hyper, 4)
    assert explored.exploration == explored.exploration_final == 0.25
    assert env.change(hyper, 6).reserve == 0.5
    kept = env.change(hyper, 0)
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(hyper), strict=True))


def test_positions_of_knobs():
    linear = Knob("exploration", to=(0.0, 1.0))
    for knob, values in ((RATE, (1e-3, 1e-2, 1e-1)), (linear, (0.0, 0.5, 1.0))):
        np.testing.assert_allclose(knob.position(jnp.asarray(values)), [-1, 0, 1], atol=1e-6)
        np.testing.assert_allclose(knob.value(jnp.asarray([-1.0, 0.0, 1.0])), values, rtol=1e-6)
    env = bandit(start="random")
    starts = jax.jit(jax.vmap(lambda key: env.reset_env(key, env.default_params)[1].hyper))(jax.random.split(KEY, 400))
    positions = np.sort(RATE.position(starts.learning_rate))
    assert np.abs(positions - np.linspace(-1, 1, 400)).max() < 2 * 1.63 / 20  # Kolmogorov-Smirnov at 1%


@pytest.mark.slow
def test_observations():
    env = bandit(metrics=("episodes", "winning_bid"))
    states, _ = play(env, KEY, [0, 2])
    first, last = (np.asarray(env.get_obs(state)) for state in (states[0], states[-1]))
    np.testing.assert_allclose(first[:4], [1, 0, 0, 1])
    performance = float(states[-1].performance)
    np.testing.assert_allclose(last[:4], [1 / 3, performance, performance - states[1].performance, 0], rtol=1e-6)
    np.testing.assert_allclose(last[4], RATE.position(jnp.float32(0.06)), rtol=1e-6)
    assert last[5] == pytest.approx(32 / 33)  # the episodes of two updates: 32, and x / (1 + |x|)
    assert len(bandit().observed_metrics) > 5 and "state_price" not in bandit().observed_metrics


@pytest.mark.slow
def test_a_diverged_run_has_performance_0_and_finite_observations():
    env = bandit()
    states, _ = play(env, KEY, [0])
    lost = states[-1].replace(hyper=states[-1].hyper.replace(learning_rate=jnp.float32(jnp.nan)))
    obs, after, reward, *_ = step(env, KEY, lost, 0, env.default_params)
    assert float(after.performance) == 0 and float(reward) == -float(lost.performance)
    assert np.isfinite(after.metrics).all() and np.isfinite(np.delete(obs, 4)).all()


@pytest.mark.slow
def test_a_run_can_be_stopped():
    env = bandit(stop=True)
    states, _ = play(env, KEY, [0])
    _, after, reward, ended, info = step(env, KEY, states[-1], env.num_actions - 1, env.default_params)
    assert ended and reward == 0 and info["env_steps"] == 0
    for one, other in zip(words(after.run), words(states[-1].run), strict=True):
        np.testing.assert_array_equal(one, other)


def halved(env_params, period):
    return env_params.replace(rewards=env_params.rewards / 2**period)


@pytest.mark.slow
def test_a_task_may_change_during_a_run():
    states, _ = play(bandit(task=halved, worst=0.0, best=1.0), KEY, [0, 0, 0])
    same, _ = play(bandit(), KEY, [0, 0, 0])
    assert float(states[1].performance) == pytest.approx(float(same[1].performance))
    arms = np.asarray(adapt(make("Bandit-v0")[0]).default_params.rewards)
    assert min(abs(float(states[3].performance) - arms[0] / 4)) < 1e-6  # the third period pays a quarter


@pytest.mark.slow
def test_the_contract_is_kept():
    check_environment(bandit(), steps=4, instances=2)
    assert bandit() == bandit() and hash(bandit()) == hash(bandit()) and bandit() != bandit(period=1)
    assert make("TrainingChain-v0")[0] == TrainingEnvironment() and TrainingEnvironment().name == "TrainingChain-v0"


@pytest.mark.full
def test_a_society_is_trained_on_it_saved_and_read_back(tmp_path):
    env = bandit(episodes=2, metrics=("return_mean",))
    config = TrainConfig(env, seeds=2, steps=96, instances=2, horizon=8, minibatch=16)
    result = fit(config, KEY, tmp_path / "run", progress=False)
    found = read(tmp_path / "run")
    assert (
        found.config.settings.adapter.env == env and found.summary["params_sha256"] == result.summary["params_sha256"]
    )
    assert "learning_rate" in str(result.watch(episodes=1)._repr_html_())


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Knob("learning_rate"), "multiply"),
        (lambda: Knob(3, to=(1.0,)), "setting"),
        (lambda: Knob("learning_rate", multiply=(0.5,)), "low"),
        (lambda: Knob("learning_rate", multiply=(-1.0,), low=0.1, high=1.0), "multiply"),
        (lambda: Knob("learning_rate", multiply=[0.5], low=0.1, high=1.0), "multiply"),
        (lambda: Knob("learning_rate", to=(0.5,)), "high"),
        (lambda: Knob("learning_rate", to=(5.0,), low=0.1, high=1.0), "to"),
        (lambda: bandit(knobs=()), "knobs"),
        (lambda: bandit(knobs=(Knob("entropy", to=(0.0, 1.0)),)), "knobs"),  # `valuation` has none
        (lambda: bandit(knobs=(RATE, RATE)), "knobs"),
        (lambda: bandit(metrics=("fun",)), "metrics"),
        (lambda: bandit(period=0), "period"),
        (lambda: bandit(horizon=0), "horizon"),
        (lambda: bandit(episodes=0), "episodes"),
        (lambda: bandit(best=0.0), "best"),
        (lambda: bandit(start="anywhere"), "start"),
        (lambda: bandit(pay="me"), "pay"),
        (lambda: bandit(stop=1), "stop"),
        (lambda: bandit(task=3), "task"),
        (lambda: TrainingEnvironment("Chain-v0"), "config"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make, field):
    with pytest.raises(ValueError, match=rf"^{field}: "):
        make()


# --- other ways to choose settings


def constant(*rates):
    return jnp.broadcast_to(jnp.asarray(rates, jnp.float32)[:, None, None], (len(rates), 3, 1))


@pytest.mark.slow
def test_settings_are_followed():
    env = bandit(task=None)
    schedule = jnp.asarray([0.1, 0.01, 0.05], jnp.float32)[:, None]
    runs = jax.jit(functools.partial(tuners.follow, env))(jax.random.split(KEY, 2), jnp.stack([schedule, schedule]))
    np.testing.assert_array_equal(runs.settings, jnp.stack([schedule, schedule]))
    assert (runs.actions == 0).all() and (runs.env_steps == 3 * (32 + 4)).all()


@pytest.mark.slow
def test_the_best_candidate_is_chosen():
    """With a rate of almost nothing all bids stay where they are, so that nothing is learned."""
    env = dataclasses.replace(bandit(), knobs=(Knob("learning_rate", to=(1e-9, 0.1)),), horizon=3, period=6)
    chosen = jax.jit(lambda key: tuners.best_of(env, key, constant(1e-9, 0.1, 1e-9), 8))(KEY)
    np.testing.assert_allclose(chosen.settings, constant(0.1)[0])
    assert chosen.env_steps == 24 * 3 * (6 * 16 + 4)


@pytest.mark.slow
def test_a_line_of_descent_has_settings_within_bounds_and_every_step_is_counted():
    env = bandit()
    settings = jax.jit(lambda key: tuners.random_settings(env, key, 50))(KEY)
    assert settings.shape == (50, 3, 1) and (settings == settings[:, :1]).all()
    assert (settings >= 1e-3 * (1 - 1e-6)).all() and (settings <= 0.1 * (1 + 1e-6)).all()
    chosen = jax.jit(lambda key: tuners.population_based(env, key, 4, 2, spread=0.4))(KEY)
    assert chosen.settings.shape == (3, 1) and chosen.env_steps == 8 * 3 * (32 + 4)
    assert (chosen.settings >= 1e-3 * (1 - 1e-6)).all() and (chosen.settings <= 0.1 * (1 + 1e-6)).all()

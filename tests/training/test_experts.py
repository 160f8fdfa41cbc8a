"""Agents made of experts: their probabilities against plain loops, and what they share with the monolithic agent."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket import TrainConfig, fit
from jaxmarket.environments import Chain, Regimes, adapt
from jaxmarket.policies import mlp
from jaxmarket.runs import run_folder
from jaxmarket.testing import check_environment
from jaxmarket.training.actions import ChoiceHead
from jaxmarket.training.experts import MixtureOfExperts, MixturePolicy, OptionCritic, OptionPolicy, RunningOption
from jaxmarket.training.monolith import Monolith, parameters

KEY = jax.random.key(0)
SMALL = {"hidden": (3,), "seeds": 2, "instances": 4, "horizon": 8, "minibatch": 32, "steps": 256, "log_every": 4}
OBS = jnp.array([0.5, -1.0, 0.0, 1.0, 0.0, 0.0])


def scattered(policy, obs):
    """Random parameters, also of output layers."""
    params = policy.init(KEY, obs)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        structure, [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )


def softmax(x):
    return np.exp(x - np.max(x)) / np.exp(x - np.max(x)).sum()


def network(params, obs):
    """A network with one hidden layer, by hand."""
    layers = params["params"]
    first, last = np.asarray(layers["torso"]["Affine_0"]["kernel"]), np.asarray(layers["Affine_0"]["kernel"])
    return np.append(np.maximum(np.append(obs, 1) @ first, 0), 1) @ last


def expert(params, k):
    return jax.tree.map(lambda leaf: leaf[k], params["experts"])


def test_a_mixture_is_the_sum_of_its_experts():
    policy = MixturePolicy(mlp(3), ChoiceHead(4), experts=2)
    params = scattered(policy, OBS)
    gate = softmax(network(params["gate"], OBS))
    expected = sum(gate[k] * softmax(network(expert(params, k), OBS)) for k in range(2))
    np.testing.assert_allclose(policy.gates(params, OBS), gate, rtol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(policy.apply(params, OBS).logits), expected, rtol=1e-5)
    assert gate.min() > 0.01 and np.ptp(expected) > 0.1


@pytest.mark.parametrize("running", [None, 0, 2])
def test_options_end_and_follow_each_other_as_in_bacon_et_al(running):
    """p(next = k, a) = ((1 - β_now) 1[k = now] + β_now g_k) π_k(a), with β = 1 where no option is running."""
    policy = OptionPolicy(mlp(3), ChoiceHead(4), experts=3)
    last = np.eye(3)[running] if running is not None else np.zeros(3)
    obs = jnp.concatenate([OBS, jnp.asarray(last)])
    params = scattered(policy, obs)
    gate = softmax(network(params["gate"], OBS))
    ends = 1 / (1 + np.exp(-network(params["endings"], OBS)))
    expected = np.zeros((3, 4))
    for k in range(3):
        stays = (1 - ends[running]) * (k == running) if running is not None else 0
        leaves = (ends[running] if running is not None else 1) * gate[k]
        expected[k] = (stays + leaves) * softmax(network(expert(params, k), OBS))
    found = jax.nn.softmax(policy.apply(params, obs).logits)
    np.testing.assert_allclose(found, expected.ravel(), rtol=1e-4, atol=1e-6)
    assert expected.sum() == pytest.approx(1)


def test_gradients_are_finite_where_an_expert_is_never_drawn():
    policy = MixturePolicy(mlp(3), ChoiceHead(4), experts=2)
    params = jax.tree.map(lambda leaf: 1e4 * leaf, scattered(policy, OBS))
    gradient = jax.grad(lambda params: policy.apply(params, OBS).log_prob(jnp.float32(2)))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_one_expert_is_the_monolithic_agent():
    config = TrainConfig("Regimes-v0", agent=MixtureOfExperts(1), **SMALL)
    alone = dataclasses.replace(config, agent="monolith").settings.trainable.learner.policy
    mixture = config.settings.trainable.learner.policy
    params = scattered(mixture, OBS)
    logits = jax.nn.log_softmax(alone.apply(expert(params, 0), OBS).logits)
    np.testing.assert_allclose(mixture.apply(params, OBS).logits, logits, rtol=1e-4, atol=1e-5)


def test_parameters_are_those_of_gate_experts_and_value_network():
    def count(agent):
        learner = TrainConfig("Regimes-v0", agent=agent, **SMALL).settings.trainable.learner
        obs = OBS if isinstance(agent, MixtureOfExperts) else jnp.zeros(6 + agent.experts)
        return parameters(jax.eval_shape(learner.init, KEY, obs))

    one, gate, value = 7 * 3 + 4 * 4, 7 * 3 + 4 * 2, 7 * 6 + 7
    assert count(MixtureOfExperts(2)) == 2 * one + gate + value
    assert count(MixtureOfExperts(2, value_hidden=(5,))) == 2 * one + gate + 7 * 5 + 6
    # the value network of an option-critic also reads the running option
    assert count(OptionCritic(2)) == 2 * one + 2 * gate + 9 * 6 + 7
    assert count(MixtureOfExperts(3)) == 3 * one + (7 * 3 + 4 * 3) + 7 * 9 + 10


def test_a_running_option_is_shown_and_changes_nothing_else():
    inner, env = adapt(Chain()), adapt(RunningOption(adapt(Chain()), 3))
    params = inner.default_params
    obs, state = env.reset(KEY, params)
    first, same = inner.reset(KEY, params)
    np.testing.assert_array_equal(obs, [*first, 0, 0, 0])
    assert env.num_actions == 6 and env.gamma == 0.99
    for option, action in ((2, 1), (0, 0), (1, 1)):
        step = env.step(KEY, state, jnp.int32(option * 2 + action), params)
        plain = inner.step(KEY, same, jnp.int32(action), params)
        np.testing.assert_array_equal(step.obs, [*plain.obs, *np.eye(3)[option]])
        jax.tree.map(np.testing.assert_array_equal, step._replace(obs=0), plain._replace(obs=0))
        state, same = step.env_state, plain.env_state
    check_environment(RunningOption(adapt(Chain()), 2))


@pytest.mark.slow  # trains
@pytest.mark.parametrize("agent", [MixtureOfExperts(2), OptionCritic(2)], ids=["mixture", "option-critic"])
def test_a_run_is_saved_and_read_back(agent, tmp_path):
    config = TrainConfig("Regimes-v0", agent=agent, **SMALL)
    result = fit(config, KEY, tmp_path / "run", progress=False)
    run = run_folder.read(tmp_path / "run")
    assert run.config.settings.trainable == config.settings.trainable
    jax.tree.map(np.testing.assert_array_equal, run.networks, result.networks)
    if isinstance(agent, OptionCritic):
        with pytest.raises(ValueError, match="agent: the actions of an option-critic depend on its running option"):
            run.policy()
    else:
        assert 0 <= int(run.policy()(OBS)) < 4


@pytest.mark.full
@pytest.mark.parametrize("agent", [MixtureOfExperts(2), OptionCritic(2)], ids=["mixture", "option-critic"])
def test_both_learn_two_regimes(agent):
    env = Regimes(2, 1)
    settings = {"instances": 16, "horizon": 64, "minibatch": 256, "epochs": 4, "learning_rate": 2e-2, "log_every": 4}
    config = TrainConfig(env, agent=agent, hidden=(4,), seeds=2, steps=80_000, **settings)
    returns = fit(config, KEY, progress=False).summary["return_seeds"]
    assert min(returns) > 0.9 * env.optimal_return()


@pytest.mark.parametrize("kind", [MixtureOfExperts, OptionCritic])
def test_what_experts_cannot_do_is_refused(kind):
    with pytest.raises(ValueError, match=r"^experts: "):
        kind(0)
    with pytest.raises(ValueError, match=r"^learner: experts are mixed by probabilities"):
        TrainConfig("Regimes-v0", agent=kind(), learner="valuation")
    with pytest.raises(ValueError, match=r"^clones: agent .* has no such setting"):
        TrainConfig("Regimes-v0", agent=kind(), clones=2)
    assert kind.unused == Monolith.unused

"""Parameters of an environment that are given to training, evaluation and sweeps, and stay with the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxmarket import TrainConfig, cli, fit, train
from jaxmarket.environments import Bandit
from jaxmarket.runs import fitting
from jaxmarket.runs.run_folder import read, read_config
from jaxmarket.runs.sweeps import sweep

KEY = jax.random.key(0)
SETTINGS = {"learner": "valuation", "steps": 128, "instances": 4, "horizon": 16, "minibatch": 64, "seeds": 2}
CONFIG = TrainConfig("Bandit-v0", **SETTINGS)
OTHER = Bandit().default_params.replace(rewards=jnp.array([[9.0, 9.0, 9.0, 9.0]]))


@pytest.mark.slow
def test_training_and_evaluation_take_them():
    result = fit(CONFIG, KEY, env_params=OTHER, progress=False)
    assert result.summary["return_seeds"] == [9.0, 9.0]
    np.testing.assert_allclose(result.metrics["return_mean"], 9.0)
    assert result.q is None and result.summary["bid_error"] is None  # what is known is known of other rewards


@pytest.mark.slow
def test_its_own_given_are_the_same_run():
    own = Bandit().default_params
    given, plain = (fit(CONFIG, KEY, env_params=params, progress=False) for params in (own, None))
    assert given.summary["params_sha256"] == plain.summary["params_sha256"]


def test_one_program_serves_all_values():
    fit(CONFIG, KEY, env_params=OTHER, progress=False)
    before = fitting.compiles()
    fit(CONFIG, KEY, env_params=OTHER.replace(rewards=OTHER.rewards + 1), progress=False)
    assert fitting.compiles() == before


@pytest.mark.slow
def test_train_is_mapped_over_them():
    rewards = jnp.array([1.0, 2.0])[:, None, None] * jnp.ones((1, 1, 4))
    many = jax.vmap(lambda r: train(CONFIG, KEY, env_params=OTHER.replace(rewards=r))[1]["return_mean"])(rewards)
    np.testing.assert_allclose(many, np.repeat([[1.0], [2.0]], many.shape[1], 1))


@pytest.mark.slow
def test_a_monolith_takes_them():
    config = TrainConfig("Bandit-v0", agent="monolith", steps=128, instances=4, horizon=16, minibatch=64)
    assert fit(config, KEY, env_params=OTHER, progress=False).summary["return_seeds"] == [9.0]


def test_a_run_keeps_them(tmp_path, capsys):
    out = tmp_path / "run"
    fit(CONFIG, KEY, out, env_params=OTHER, progress=False)
    np.testing.assert_array_equal(read(out).env_params.rewards, OTHER.rewards)
    cli.evaluate(out, json=True)
    assert '"greedy_return_mean": 9.0' in capsys.readouterr().out
    cli.train(resume=out, json=True)
    assert '"return_mean": 9.0' in capsys.readouterr().out
    for params in (None, OTHER.replace(rewards=OTHER.rewards + 1)):
        with pytest.raises(ValueError, match="holds another run: env_params"):
            fit(CONFIG, KEY, out, env_params=params, resume=True, progress=False)
    assert read_config(out)[1].env_params["values"]["rewards"] == [[9.0] * 4]


class Wide:
    """Parameters that are too many for a text file."""

    num_actions = 2

    def __init__(self):
        self.default_params = jnp.zeros(5000)

    def reset(self, key, params):
        return params[:2], jnp.int32(0)

    def step(self, key, state, action, params):
        return params[:2], state + 1, params[action], state > 1, False, {}


@pytest.mark.slow
def test_parameters_that_the_folder_cannot_hold_are_asked_for(tmp_path):
    out, env = tmp_path / "run", Wide()
    config = TrainConfig(env, **SETTINGS)
    fit(config, KEY, out, env_params=jnp.ones(5000), progress=False)
    with pytest.raises(ValueError, match=r"config\.json does not contain the env_params"):
        _ = read(out, {"env": env}).env_params


def test_a_sweep_takes_them(tmp_path):
    vary = {"learning_rate": [0.1, 0.2]}
    found = sweep("Bandit-v0", vary, tmp_path / "s", env_params=OTHER, progress=False, **SETTINGS)
    assert {float(np.mean(run.returns)) for run in found.comparison.runs} == {9.0}
    with pytest.raises(ValueError, match="holds another run: env_params is"):
        sweep("Bandit-v0", vary, tmp_path / "s", progress=False, **SETTINGS)


class Broken(struct.PyTreeNode):
    rewards: jax.Array


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (Broken(jnp.ones(2)), "reset of Bandit-v0 failed under jit with AttributeError"),
        (OTHER.replace(rewards=jnp.ones((3, 1, 4))), "reward of Bandit-v0 to be a number, got float32"),
        (object(), "env_params: expected a tree of arrays"),
        ("hello", "env_params: expected a tree of arrays"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        fit(CONFIG, KEY, env_params=params, progress=False)
    with pytest.raises(ValueError, match=message):
        train(CONFIG, KEY, env_params=params)

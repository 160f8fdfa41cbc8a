"""Settings and arguments: numbers of NumPy and JAX are taken, what is of another kind is refused in one line."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmarket
from jaxmarket import TrainConfig, auctions, fit, train
from jaxmarket.environments import Chain
from jaxmarket.learners import PPO
from jaxmarket.policies import BetaHead, ValueHead, cnn, linear, mlp
from jaxmarket.runs import run_folder
from jaxmarket.training.config import PRESETS

SMALL = {"learner": "valuation", "steps": 64, "instances": 4, "horizon": 8, "minibatch": 16}
config = functools.partial(TrainConfig, "Bandit-v0", **SMALL)

SAME = {
    "NumPy integers": ({"clones": np.int64(3), "seeds": np.int8(2)}, {"clones": 3, "seeds": 2}),
    "NumPy floats": (
        {"learning_rate": np.float64(1e-3), "gamma": np.float32(0.5)},
        {"learning_rate": 1e-3, "gamma": 0.5},
    ),
    "JAX scalars": ({"clones": jnp.int32(3), "entropy": None, "gamma": jnp.float32(0.5)}, {"clones": 3, "gamma": 0.5}),
    "arrays without axes": ({"clones": np.array(3), "gamma": jnp.asarray(0.25)}, {"clones": 3, "gamma": 0.25}),
    "bfloat16": ({"gamma": jnp.bfloat16(0.5)}, {"gamma": 0.5}),
    "whole floats": ({"steps": 1e6, "clones": np.float32(2)}, {"steps": 1_000_000, "clones": 2}),
    "widths": ({"hidden": np.array([8, 4])}, {"hidden": (8, 4)}),
    "widths of JAX": ({"hidden": jnp.array([8, 4])}, {"hidden": (8, 4)}),
    "widths, a list": ({"hidden": [np.int64(8), 4.0]}, {"hidden": (8, 4)}),
    "no widths": ({"hidden": np.array([], int)}, {"hidden": ()}),
    "flags": ({"share_clones": np.bool_(False)}, {"share_clones": False}),
    "names": ({"auction": np.str_("bb"), "ties": np.str_("lowest")}, {"auction": "bb", "ties": "lowest"}),
    "integers for numbers": ({"gamma": 0, "reserve": 1}, {"gamma": 0.0, "reserve": 1.0}),
}


@pytest.mark.parametrize("name", SAME)
def test_numbers_of_numpy_and_jax_are_plain_numbers_in_a_configuration(name):
    given, plain = (config(**settings) for settings in SAME[name])
    assert given == plain
    assert hash(given) == hash(plain)
    written = json.dumps(run_folder.config_to_dict(given))
    assert written == json.dumps(run_folder.config_to_dict(plain))
    again = run_folder.config_from_dict(Path("folder"), json.loads(written))
    assert again.settings == given.settings
    types = {type(value) for value in given.settings.values.values()}
    assert types <= {int, float, str, bool, tuple, type(None)}
    assert {type(width) for width in given.hidden or ()} <= {int}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"clones": True}, "clones: expected an integer >= 1, got True"),
        ({"clones": np.True_}, "clones: expected an integer >= 1, got "),
        ({"clones": 1.5}, "clones: expected an integer >= 1, got 1.5"),
        ({"clones": "2"}, "clones: expected an integer >= 1, got '2'"),
        ({"clones": np.array([2])}, "clones: expected an integer"),
        ({"clones": 2**31}, "clones: expected an integer >= 1 and <= 2147483647"),
        ({"steps": float("inf")}, "steps: expected an integer"),
        ({"steps": 2**70}, "steps: expected an integer"),
        ({"gamma": True}, r"gamma: expected a number in \[0, 1\], got True"),
        ({"gamma": jnp.nan}, r"gamma: expected a number in \[0, 1\], got nan"),
        ({"learning_rate": np.float32("nan")}, "learning_rate: expected a finite number >= 0, got "),
        ({"reserve": 10**400}, "reserve: expected a finite number, got 1000"),
        ({"reserve": 1j}, "reserve: expected a finite number, got 1j"),
        ({"share_clones": "no"}, "share_clones: expected True or False, got 'no'"),
        ({"share_clones": 1}, "share_clones: expected True or False, got 1"),
        ({"hidden": "88"}, "hidden: expected a sequence of widths"),
        ({"hidden": np.ones((2, 2))}, "hidden: expected a sequence of widths"),
        ({"hidden": [True]}, "hidden: expected an integer"),
        ({"ties": "none"}, "ties: unknown value 'none'; choose from random, lowest"),
        ({"time_limits": "shadows"}, "time_limits: unknown value"),
        ({"bids": ["value"]}, "bids: expected kumaraswamy, beta, value, or an object with distribution, outputs, got"),
        (
            {"learner": 3},
            "learner: expected ppo, valuation, reinforce, or an object with init, update, bind, got 3",
        ),
        ({"agent": object}, "agent: expected society, monolith, wide, population, or an object with of, got"),
        ({"auction": None, "agent": "anarchist"}, "agent: unknown value"),
    ],
)
def test_settings_of_another_kind_are_refused_in_one_line(given, says):
    with pytest.raises(ValueError, match=f"^{says}") as refused:
        config(**given)
    assert "\n" not in str(refused.value)


def test_a_traced_setting_is_refused_with_the_way_that_works():
    with pytest.raises(
        ValueError, match=r"^learning_rate: .*hyper=config.settings.hyperparameters.replace\(learning_rate=\.\.\.\)"
    ):
        jax.vmap(lambda rate: config(learning_rate=rate).learning_rate)(jnp.ones(2))
    with pytest.raises(ValueError, match=r"^gamma: .*replace\(discount=\.\.\.\)"):
        jax.jit(lambda gamma: config(gamma=gamma).gamma)(0.5)
    with pytest.raises(ValueError, match=r"^clones: .*traced"):
        jax.jit(lambda clones: config(clones=clones).clones)(2)
    assert (
        config().settings.hyperparameters.replace(learning_rate=0.5).learning_rate == 0.5
    )  # what the message says exists


def test_settings_that_a_monolithic_agent_has_no_use_for_are_refused_when_given():
    alone = functools.partial(TrainConfig, "Bandit-v0", agent="monolith")
    for field, value in {
        "auction": "ccv", "bids": "beta", "clones": 2, "share_clones": True, "ties": "random", "dropout": 0.1,
        "reserve": 1.0, "bid_low": 0.0, "bid_high": 1.0,
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"^{field}: agent monolith has no such setting"):
            alone(**{field: value})
    for field in ("exploration", "exploration_final", "persistence"):
        with pytest.raises(ValueError, match=f"^{field}: a monolithic agent that learns by PPO"):
            alone(**{field: 0.5} if field == "exploration" else {"exploration": 0.0, field: 0.5})
    assert not {"auction", "clones", "bids", "dropout"} & set(alone().settings.values)
    again = run_folder.config_from_dict(Path("folder"), run_folder.config_to_dict(alone()))
    assert again.settings == alone().settings == TrainConfig("Bandit-v0", auction="bb").as_monolith().settings
    values = TrainConfig("Bandit-v0").settings.values
    assert [values[name] for name in ("auction", "clones", "share_clones", "ties")] == ["ccv", 2, True, "random"]


class Gym:
    """What only looks like a Gymnasium environment."""

    __module__ = "gymnasium.envs"
    action_space = None

    def reset(self, *, seed=None):
        return 0, {}

    def step(self, action):
        return 0, 0.0, False, False, {}


@pytest.mark.parametrize(
    ("env", "says"),
    [
        (Gym(), "env: .* Gymnasium environment"),
        (Chain, "env: expected an environment, got the class or function Chain"),
        ((Chain(), None), "env: expected an environment, got a tuple"),
        (3, "env: 3 is not a gymnax-style environment"),
        (None, "env: None is not"),
        (np.str_("Chain-v1"), "env: unknown environment 'Chain-v1'; did you mean 'Chain-v0'"),
    ],
)
def test_what_is_no_environment_is_refused_with_what_to_do(env, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        TrainConfig(env)


KEY, HYPER = jax.random.key(0), config().settings.hyperparameters


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fit("Chain-v0", KEY), r"config: expected a TrainConfig, got 'Chain-v0'"),
        (lambda: fit("Chain-v0", KEY), r"config: .*; write TrainConfig\('Chain-v0'\)"),
        (lambda: fit(TrainConfig, KEY), "config: expected a TrainConfig, got <class"),
        (lambda: fit({"env": "Chain-v0"}, KEY), r"config: .*write TrainConfig\(\*\*settings\)"),
        (lambda: fit(config(), 0), r"key: expected a PRNG key, got 0; use jax.random.key\(0\)"),
        (lambda: fit(config(), None), "key: expected a PRNG key, got None"),
        (lambda: fit(config(), jax.random.split(KEY)), r"key: expected a scalar key, got keys of shape \(2,\)"),
        (lambda: fit(config(), np.zeros(3, np.uint32)), "key: expected a typed key, got 3 uint32 words"),
        (lambda: jax.jit(lambda key: fit(config(), key).bids)(KEY), "key: expected a key outside of jit and vmap"),
        (lambda: fit(config(), KEY, 3), "out: expected the path of a folder or file, got 3"),
        (lambda: fit(config(), KEY, "a\0b"), "out: expected the path of a folder or file"),
        (lambda: fit(config(), KEY, start=3), "start: expected a finished run or its folder, got 3"),
        (lambda: fit(config(), KEY, freeze="policy/*"), r"freeze: .*write \['policy/\*'\]"),
        (lambda: fit(config(), KEY, checkpoint_every="often"), "checkpoint_every: expected a finite number"),
        (lambda: train("Chain-v0", KEY), "config: expected a TrainConfig"),
        (lambda: train(config(), 0), "key: expected a PRNG key"),
        (lambda: train(config(), KEY, {"learning_rate": 1}), "hyper: expected Hyperparameters, got"),
        (lambda: train(config(), KEY, HYPER.replace(entropy=jnp.ones(2))), "hyper.entropy: expected shape"),
        (lambda: train(config(), KEY, HYPER.replace(learning_rate=None)), "hyper.learning_rate: expected a number"),
        (lambda: HYPER.replace(clip="wide").as_arrays(), "hyper.clip: expected numbers, got 'wide'"),
        (lambda: jaxmarket.as_policy(3), "source: expected a finished run or its folder, got 3"),
        (lambda: jaxmarket.load(None), "folder: expected the path of a folder or file, got None"),
    ],
)  # fmt: skip
def test_arguments_of_another_kind_are_refused_in_one_line(call, says):
    with pytest.raises(ValueError, match=f"^{says}") as refused:
        call()
    assert "\n" not in str(refused.value)


def test_widths_and_limits_of_numpy_and_jax():
    assert mlp(np.int64(8)) == mlp(8)
    assert linear(jnp.int32(8)) == linear(8.0) == linear(8)
    assert cnn(8, convolutions=np.array([4, 8]), stride=np.int8(2)) == cnn(8, convolutions=(4, 8), stride=2)
    assert BetaHead(np.float32(0), jnp.float32(2)) == BetaHead(0, 2)
    assert hash(BetaHead(np.float32(0), jnp.float32(2))) == hash(BetaHead(0, 2))
    assert ValueHead(np.float64("-inf"), np.int64(1)) == ValueHead(high=1)


@pytest.mark.parametrize(
    "given",
    [
        {"name": 3, "price": len, "payout": len},
        {"name": "a", "price": 0, "payout": len},
        {"name": "a", "price": len, "payout": None},
    ],
)
def test_a_mechanism_is_a_name_and_two_functions(given):
    with pytest.raises(ValueError, match=r"^(name|price|payout): expected"):
        auctions.Mechanism(**given)


@pytest.mark.slow
def test_keys_as_words_and_seeds_of_numpy():
    """`jax.random.PRNGKey` gives words, `jax.random.key` a typed key: the same run."""
    words = fit(config(), jax.random.PRNGKey(0), progress=False)
    typed = fit(config(), jax.random.key(0), progress=False)
    assert words.summary["params_sha256"] == typed.summary["params_sha256"]
    best = np.argmax(typed.summary["return_seeds"])
    assert jaxmarket.as_policy(typed, seed=best) is not None
    with pytest.raises(ValueError, match=r"^seed: expected an integer from 0 to 0, got 1"):
        jaxmarket.as_policy(typed, seed=1)
    with pytest.raises(ValueError, match=r"^seed: expected an integer"):
        jaxmarket.as_policy(typed, seed=True)


def test_settings_take_precedence_over_those_of_a_preset():
    paper = TrainConfig("Chain-v0", preset="paper").settings
    assert paper.labels["learner"] == "ppo" and paper.values["bids"] == "beta"
    assert paper.values["learner"] == PRESETS["paper"]["learner"]
    some = TrainConfig("Chain-v0", preset="paper", learning_rate=1e-3, bid_high=2.0, exploration=0.2).settings
    assert some.learner == dataclasses.replace(paper.learner, learning_rate=1e-3, policy=some.society.policy)
    assert (some.society.policy.head.low, some.society.policy.head.high) == (0, 2)
    assert (some.exploration, some.exploration_final) == (0.2, 0.2)
    other = TrainConfig("Chain-v0", preset="paper", learner=PPO(entropy=0.3), bids="kumaraswamy").settings
    assert (other.learner.entropy, other.values["bids"], other.time_limits) == (0.3, "kumaraswamy", "terminal")
    assert TrainConfig("Chain-v0", preset="paper", learner="reinforce").settings.values["learner"] == "reinforce"
    with pytest.raises(ValueError, match="agent monolith has no such setting; leave preset paper out"):
        TrainConfig("Chain-v0", preset="paper", agent="monolith")
    with pytest.raises(ValueError, match="bids: learner valuation cannot train beta bids"):
        TrainConfig("Chain-v0", preset="paper", learner="valuation")

"""JAX's configuration options: programs work under them, or raise an error that names the option to change."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from thinned import thinned

from jaxmarket import TrainConfig, clear, deep_market, environments, fit, switches, train, wide_market
from jaxmarket.deep_market import BidTables
from jaxmarket.wide_market import Additive, Quadratic

SMALL = {"steps": 16, "instances": 2, "horizon": 4, "minibatch": 8}


def society(env, **settings):
    config = TrainConfig(env, **SMALL, **settings)
    return lambda key: train(config, key)


def monolith(env):
    return society(env, agent="monolith")


def deep(key):
    env = environments.make("Chain-v0")[0]
    market = deep_market.DeepMarket(env, BidTables(6, 2), capacity=4, instances=2)
    economy = deep_market.init(market, key, env.default_params)
    return deep_market.run(market, key, economy, env.default_params, rounds=1, period=3)


def wide(solver, value):
    def run(key):
        made = wide_market.per_agent(lambda agent, bundle: bundle * 0.5, lambda agent, bundle, left: bundle.sum())
        market = wide_market.WideMarket(lambda agent, world: value(agent), made, solver)
        economy = wide_market.init(jnp.array([[1.0, 2.0], [3.0, 1.0]]), jnp.ones((2, 2)), 5.0)
        return wide_market.run(market, key, economy, rounds=2, income=0.1, rent=0.1)

    return run


PROGRAMS = {
    "ppo": lambda: society("Chain-v0", learner="ppo", bids="beta"),
    "reinforce": lambda: society("Bandit-v0", learner="reinforce"),
    "valuation": lambda: society("Chain-v0", learner="valuation", epochs=2, dropout=0.1, reserve=0.1, bid_high=9.0),
    "valuation, CartPole": lambda: society("CartPole-v1", learner="valuation", clones=3, share_clones=False),
    "monolith": lambda: monolith("CartPole-v1"),
    "deep market": lambda: deep,
    "wide market": lambda: wide(wide_market.Tatonnement(), lambda agent: Quadratic(agent, jnp.ones_like(agent))),
    "sealed bids": lambda: wide(wide_market.SealedBids(), Additive),
}
QUICK = ("valuation", "sealed bids")
SWITCHES = {
    "dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "x64": lambda: jax.enable_x64(True),
    "rbg": lambda: jax.default_prng_impl("rbg"),
    "unsafe_rbg": lambda: jax.default_prng_impl("unsafe_rbg"),
}


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in PROGRAMS]
)
def test_programs_are_traced_under_every_switch(name, switch):
    with SWITCHES[switch]():
        jax.eval_shape(PROGRAMS[name](), jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("given", [{"learner": "valuation"}, {"agent": "monolith"}], ids=["society", "monolith"])
def test_fit_runs_under_every_switch(switch, given):
    with SWITCHES[switch]():
        result = fit(TrainConfig("Bandit-v0", **SMALL, **given), jax.random.key(0), progress=False)
    assert result.summary["return_mean"] >= 0


@pytest.mark.parametrize("switch", ["jax_debug_nans", "jax_debug_infs"])
def test_switches_that_stop_sound_programs_are_named(switch):
    config = TrainConfig("Bandit-v0", **SMALL)
    debugging = {"jax_debug_nans": jax.debug_nans, "jax_debug_infs": jax.debug_infs}[switch]
    with debugging(True):
        for run in (lambda: fit(config, jax.random.key(0)), lambda: train(config, jax.random.key(0))):
            with pytest.raises(ValueError, match=f"^{switch}: .*set it to False"):
                run()
        for name in ("deep market", "sealed bids"):
            with pytest.raises(ValueError, match=f"^{switch}: "):
                PROGRAMS[name]()(jax.random.key(0))


def test_an_auction_without_jit():
    with jax.disable_jit():
        assert clear(jnp.array([0.1, 0.5, 0.3])).winner == 1


@pytest.mark.slow
def test_a_run_without_jit():
    config = TrainConfig("Bandit-v0", learner="valuation", steps=4, instances=1, horizon=2, minibatch=2)
    with jax.disable_jit():
        PROGRAMS["sealed bids"]()(jax.random.key(0))
        assert len(train(config, jax.random.key(0))[1]["return_mean"]) == 2


@pytest.mark.parametrize("words", thinned([["train", "Chain-v0"], ["evaluate", "nowhere"]], lambda w: w[0] == "train"))
def test_a_platform_that_is_not_there(words):
    """Run in a separate process, because a backend starts only once."""
    run = subprocess.run(
        [sys.executable, "-m", "jaxmarket", *words],
        env=os.environ | {"JAX_PLATFORMS": "tpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("jaxmarket: JAX_PLATFORMS: ")


def test_compiler_options_leave_what_xla_flags_set(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    assert switches.compiler_options() == {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 2}
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    assert switches.compiler_options() == {"xla_cpu_use_fusion_emitters": False}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert switches.compiler_options() == {}


def test_programs_that_train_large_networks_keep_the_fused_kernels(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    assert switches.compiler_options(large=True) == {"xla_backend_optimization_level": 2}


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(switches, "_CPU_OPTIONS", {"xla_removed_option": True})
    assert switches.compiler_options() == {}
    assert switches.whole_program(lambda x: x + 1)(1) == 2


def test_a_whole_program_has_the_options_unless_it_is_part_of_another(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    switches.compiler_options()  # compiles a program the first time, to see whether XLA knows the options
    given, jit = [], jax.jit
    monkeypatch.setattr(jax, "jit", lambda f, **kw: given.append(kw.get("compiler_options")) or jit(f, **kw))
    square = switches.whole_program(lambda n, x: n * x**2, static_argnums=0)
    assert square(3, 2.0) == square(3, 2.0) == 12
    assert given == [switches.compiler_options()]
    assert jit(lambda x: square(3, x) + 1)(2.0) == 13
    assert jax.grad(lambda x: square(3, x))(2.0) == 12
    assert jax.vmap(lambda x: square(3, x))(jnp.arange(3.0)).tolist() == [0, 3, 12]
    assert given == [switches.compiler_options(), None]

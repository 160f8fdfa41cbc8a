"""Populations as runs: what their settings are, and that their training is that of `deep_market`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket import TrainConfig, deep_market, fit
from jaxmarket.deep_market import BidTables, NeuralNetworks, Terms, make_population
from jaxmarket.training.population import PopulationAgents

KEY = jax.random.key(0)
TERMS = Terms(rent=0.01, exploration=0.1, birth_rate=0.5, replace_poorest=True)
AGENTS = PopulationAgents(BidTables(6, 2), capacity=8, terms=TERMS, max_births=2, num_agents=6, wealth=2.0)
CONFIG = TrainConfig("Chain-v0", agent=AGENTS, instances=4, horizon=8, steps=4 * 8 * 3, log_every=3)


@pytest.mark.slow
def test_a_chunk_is_a_run_of_the_deep_market():
    """With the same keys: the same population, and metrics that are sums over its rounds."""
    training, hyper = CONFIG.settings.trainable, CONFIG.settings.hyperparameters.as_arrays()
    params = CONFIG.adapter.default_params
    state = training.init(KEY, params, hyper)
    after, metrics = jax.jit(lambda state: training.chunk(state, params, hyper))(state)

    key_market, key = jax.random.split(KEY)
    market = deep_market.DeepMarket(CONFIG.adapter, AGENTS.representation, 8, 4)
    economy = deep_market.init(market, key_market, params, num_agents=6, wealth=2.0)
    opened = float(deep_market.money(economy))
    terms = jax.tree.map(jnp.asarray, TERMS)
    run = jax.jit(lambda key: deep_market.run(market, key, economy, params, terms, rounds=3, period=8, max_births=2))
    economy, rounds = run(jax.random.split(key)[0])
    jax.tree.map(np.testing.assert_array_equal, after.learner.params, economy.population)
    assert opened == 12 and int(after.update) == 3 and int(after.market.time) == 24
    np.testing.assert_allclose(metrics["money"], rounds.money[-1])
    np.testing.assert_allclose(metrics["deaths"], rounds.births.deaths.sum())
    np.testing.assert_allclose(metrics["births"], (rounds.births.ident >= 0).sum())
    np.testing.assert_allclose(metrics["welfare"], rounds.flows["reward"].sum() / 96, rtol=1e-6)
    np.testing.assert_allclose(metrics["auction_revenue"], rounds.flows["sales"].sum() / 96, rtol=1e-6)
    np.testing.assert_allclose(metrics["episodes"], rounds.statistics.episodes.sum())
    assert float(metrics["duration"]) == 1 and float(metrics["num_agents"]) == float(rounds.num_agents[-1])
    assert float(metrics["conservation_residual"]) < 1e-6


def test_in_an_evaluation_who_can_pay_more_acts():
    """Two agents bid more than they own. Right leads to the goal of Chain, left to the limit."""
    training = dataclasses.replace(
        CONFIG, agent=dataclasses.replace(AGENTS, capacity=2, num_agents=2)
    ).settings.trainable
    tables = deep_market.BidTable(bids=jnp.ones((2, 6)), action=jnp.array([0, 1], jnp.int32))
    player, params = training.player(greedy=True), CONFIG.adapter.default_params
    play = jax.jit(lambda population: player.evaluate(population, KEY, params, 2))
    for wealth, best in (([0.1, 0.2], True), ([0.2, 0.1], False)):
        population = make_population(tables, jnp.array(wealth))
        episodes = play(population)
        assert episodes.terminated.tolist() == [best] * 2
        np.testing.assert_allclose(episodes.returns, 0.8 if best else 0.0, rtol=1e-6)
        obs = jax.nn.one_hot(0, 6)
        assert int(training.policy(population, greedy=True)(obs)) == int(best)


def test_the_default_agents_fit_the_environment():
    assert TrainConfig("Chain-v0", agent="population").settings.trainable.market.representation == BidTables(6, 2)
    cart = TrainConfig("CartPole-v1", agent="population").settings.trainable.market.representation
    assert cart == NeuralNetworks(4, 2)
    with pytest.raises(ValueError, match=r"^env: the default agents of a population need observations"):
        TrainConfig("Breakout-MinAtar", agent="population")


def test_labels_and_settings_are_those_that_apply():
    settings = CONFIG.settings
    assert settings.labels == {"agent": "PopulationAgents", "auction": "bb", "learner": None, "clones": None}
    assert set(settings.values) == {"env", "agent", "auction", "seeds", "steps", "instances", "horizon", "log_every"}
    odd = TrainConfig("Chain-v0", agent="population", instances=3, horizon=5).settings
    assert odd.minibatch is None  # so 3 × 5 auctions need no divisor


@pytest.mark.parametrize(
    "setting", [{"learner": "ppo"}, {"clones": 2}, {"gamma": 0.9}, {"hidden": (4,)}, {"minibatch": 8}]
)
def test_settings_without_meaning_are_refused(setting):
    with pytest.raises(ValueError, match=f"^{next(iter(setting))}: agent population has no such setting; leave it out"):
        TrainConfig("Chain-v0", agent="population", **setting)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"representation": BidTables}, "^representation: expected an object with init, bid, act, mutate, cost, got"),
        ({"terms": {"rent": 0.1}}, "^terms: expected Terms, got"),
        ({"terms": Terms(rent="high")}, r"^terms\.rent: expected"),
        ({"terms": Terms(replace_poorest=2)}, r"^terms\.replace_poorest: expected"),
        ({"capacity": 0}, "^capacity: expected an integer >= 1"),
        ({"capacity": 4, "max_births": 5}, "^max_births: expected"),
        ({"capacity": 4, "num_agents": 5}, "^num_agents: expected"),
        ({"wealth": -1.0}, "^wealth: expected"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        PopulationAgents(**fields)


def test_what_a_population_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"^devices: the instances of a population share one table of wealth"):
        CONFIG.settings.trainable.shard(2)
    with pytest.raises(ValueError, match=r"^freeze: expected networks that are trained by gradients"):
        fit(CONFIG, KEY, freeze=["policy/*"], progress=False)


@pytest.mark.full
def test_a_population_learns_chain():
    config = TrainConfig("Chain-v0", agent="population", steps=102_400, seeds=8)
    result = fit(config, KEY, progress=False)
    np.testing.assert_allclose(result.summary["return_seeds"], 0.8, rtol=1e-5)
    assert result.metrics["births"].sum() > 0

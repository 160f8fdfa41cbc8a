"""Bad input is a `ValueError` that begins with the name of the field."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from laws.registry import deep, small_society

from jaxmarket import TrainConfig, clear, deep_market, make
from jaxmarket.auctions import mechanism
from jaxmarket.environments import FiniteMDP, Memory, Multiplexer, TMaze
from jaxmarket.environments.blocks import BlocksWorld
from jaxmarket.keys import key_of
from jaxmarket.policies import KumaraswamyHead, cnn, linear

KEY = jax.random.key(0)
MDP = {"P": [[[1.0]]], "R": [[1.0]], "gamma": 0.9, "start": [1.0]}


def society(**changes):
    return lambda: dataclasses.replace(small_society(), **changes)


def opened(**arguments):
    return lambda: deep_market.init(deep(), KEY, deep().env.default_params, **arguments)


def ran(**arguments):
    market = deep()
    params = market.env.default_params
    settings = {"rounds": 1, "period": 1} | arguments
    return lambda: deep_market.run(market, KEY, deep_market.init(market, KEY, params), params, **settings)


BAD = [
    # (field, what is called)
    ("bids", lambda: clear(jnp.zeros(0))),
    ("bids", lambda: clear(jnp.zeros((2, 3)))),
    ("bids", lambda: clear(jnp.zeros(()))),
    ("eligible", lambda: clear(jnp.zeros(3), None, jnp.ones(2, bool))),
    ("eligible", lambda: clear(jnp.zeros(3), None, jnp.ones(3))),
    ("auction", lambda: mechanism("dutch")),
    ("clones", society(clones=0)),
    ("clones", society(clones=1.5)),
    ("ties", society(ties="coin")),
    ("mechanism", society(mechanism="ccv")),
    ("env", society(env=3)),
    ("hidden", lambda: linear(0)),
    ("stride", lambda: cnn(4, stride=0)),
    ("bid_low", lambda: KumaraswamyHead(low=1.0, high=0.0)),
    ("env", lambda: make("Chain-v1")),
    ("gamma", lambda: FiniteMDP(**MDP | {"gamma": 1.5})),
    ("address", lambda: Multiplexer(0)),
    ("length", lambda: TMaze(0)),
    ("limit", lambda: TMaze(10, limit=10)),
    ("sizes", lambda: BlocksWorld(())),
    ("registers", lambda: Memory(make("Chain-v0")[0], 0)),
    ("learner", lambda: TrainConfig("Chain-v0", learner="sarsa")),
    ("steps", lambda: TrainConfig("Chain-v0", steps=0)),
    ("seed", lambda: key_of(-1)),
    ("capacity", lambda: dataclasses.replace(deep(), capacity=0)),
    ("instances", lambda: dataclasses.replace(deep(), instances=1.5)),
    ("mechanism", lambda: dataclasses.replace(deep(), mechanism="bb")),
    ("num_agents", opened(num_agents=5)),
    ("population", opened(population=deep_market.make_population(jnp.zeros((3, 6)), jnp.ones(3)))),
    ("max_births", ran(max_births=5)),
    ("period", ran(period=0)),
    ("agents", lambda: deep_market.make_population(jnp.zeros((2, 4)), jnp.ones(3))),
    ("wealth", lambda: deep_market.make_population(jnp.zeros((2, 4)), jnp.array([1.0, -1.0]))),
    ("bits", lambda: deep_market.ClassifierRules(0, 2)),
    ("mutation", lambda: deep_market.ClassifierRules(3, 2, mutation=2)),
    ("margin", lambda: deep_market.RiskAverseRules(3, 2, margin=2)),
    ("risk_aversion", lambda: deep_market.RiskAverseRules(3, 2, risk_aversion=-1)),
    ("joint_purchases", lambda: dataclasses.replace(deep(), joint_purchases=1.5)),
    ("names", lambda: deep_market.GuardedPrograms(3, 2, names=("x",))),
    ("hidden", lambda: deep_market.NeuralNetworks(3, 2, (0,))),
    ("states", lambda: deep_market.BidTables(0, 2)),
]


@pytest.mark.parametrize(("field", "call"), BAD, ids=[f"{i}-{field}" for i, (field, _) in enumerate(BAD)])
def test_bad_input_is_an_error_that_begins_with_the_field(field, call):
    with pytest.raises(ValueError, match=rf"^{field}\b"):
        call()

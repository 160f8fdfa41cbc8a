"""Broken and random inputs: taken and right, or refused as documented. More of them: `python -m benchmarks fuzz`."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import fuzz as fuzzing
from benchmarks import soak
from jaxmarket import TrainConfig, auctions, deep_market, environments, wide_market
from jaxmarket.deep_market import BidTables, GuardedPrograms, NeuralNetworks, demographics
from jaxmarket.environments import BlocksWorld, Functions, Maze, Option, Options, SupplyChain, garnet
from jaxmarket.networks import backpropagation
from jaxmarket.policies import BetaHead, ValueHead, cnn, mlp
from jaxmarket.society import Society
from jaxmarket.wide_market import Additive, Linear, Quadratic


def wide(**given):
    good = {"agents": jnp.ones((3, 2)), "holdings": jnp.ones((3, 2)), "wealth": jnp.ones(3)}
    return wide_market.init(**good | given)


def deep(**given):
    env = environments.make("Chain-v0")[0]
    market = deep_market.DeepMarket(env, BidTables(6, 2), capacity=4)
    return deep_market.init(market, jax.random.key(0), env.default_params, **given)


def functions(*given, **others):
    pair = (np.ones((4, 3), np.float32), np.ones((4, 3), np.float32))
    return Functions(*given or ([jnp.sin],), pair, lambda value, target: value.sum(), **{"steps": 2} | others)


def options(*given, **others):
    chain = environments.make("Chain-v0")[0]
    return Options(chain, *given or ([Option(lambda obs, key: jnp.zeros((), jnp.int32), **others)],))


FOUND = {
    "config choice, no string": (lambda: TrainConfig("Chain-v0", preset=[1]), "preset: "),
    "config auction": (lambda: TrainConfig("Chain-v0", auction=[]), "auction: "),
    "config ties": (lambda: TrainConfig("Chain-v0", ties=np.ones((2, 2))), "ties: "),
    "config hidden": (lambda: TrainConfig("Chain-v0", hidden=0.5), "hidden: "),
    "mechanism": (lambda: auctions.mechanism({}), "auction: "),
    "clear objects": (lambda: auctions.clear(np.array([1.0, "a"], object)), "bids: "),
    "clear reserve": (lambda: auctions.clear(jnp.ones(2), reserve=np.ones(2)), r"reserve: expected shape \(\)"),
    "clear mask": (lambda: auctions.clear(jnp.ones(2), eligible="ab"), "eligible: "),
    "society ties": (lambda: Society(environments.make("Chain-v0")[0], None, ties=[1]), "ties: "),
    "head": (lambda: BetaHead({}, 1.0), "bid_low, bid_high: "),
    "value head": (lambda: ValueHead(0.0, "a"), "bid_low, bid_high: "),
    "mlp": (lambda: mlp(1.5), "hidden: "),
    "cnn": (lambda: cnn(4, convolutions=3), "convolutions: "),
    "cnn stride": (lambda: cnn(4, stride=0), "stride: "),
    "garnet seed": (lambda: garnet(-1, 2, 2, 0.9), "seed: "),
    "garnet states": (lambda: garnet(0, "2", 2, 0.9), "states: "),
    "functions": (lambda: functions("ab"), "functions: "),
    "functions price": (lambda: functions(price=None), "price: "),
    "functions names": (lambda: functions(names=3), "names: "),
    "maze": (lambda: Maze(3), "layout: "),
    "maze starts": (lambda: Maze([".F"], starts=[3]), "starts: "),
    "option": (lambda: options(done="a", length=3), r"options\[0\].done: "),
    "options": (lambda: options(3), "options: "),
    "supply chain": (lambda: SupplyChain(1, 1, 2, recipe=[[[0]]]), "recipe: "),
    "blocks": (lambda: BlocksWorld(sizes=1.0), "sizes: "),
    "blocks array": (lambda: BlocksWorld(sizes=np.ones(2)), "sizes: "),
    "programs": (lambda: GuardedPrograms(3, 2, names=np.zeros(3, bool)), "names: "),
    "networks": (lambda: NeuralNetworks(3, 2, hidden=4), "hidden: "),
    "tables": (lambda: BidTables(3, 2, mutation="a"), "mutation: "),
    "deep num_agents": (lambda: deep(num_agents=""), "num_agents: "),
    "deep wealth": (lambda: deep(wealth=1j), "wealth: "),
    "deep owner": (lambda: deep(original_owner=float("nan")), "original_owner: "),
    "deep owner, no agent": (lambda: deep(original_owner=4), "original_owner: "),
    "deep consumers": (lambda: deep(consumers=[1.0, 2.0]), "consumers: "),
    "found": (lambda: demographics.make_population("a", jnp.ones(2)), "agents: "),
    "found wealth": (lambda: demographics.make_population(jnp.ones(2), 0), "wealth: "),
    "found alive": (lambda: demographics.make_population(jnp.ones(2), jnp.ones(2), float("nan")), "alive: "),
    "wide agents": (lambda: wide(agents="abc"), "agents: "),
    "wide wealth": (lambda: wide(wealth=jnp.ones(2)), "wealth: "),
    "wide prices": (lambda: wide(prices={}), "prices: "),
    "solver, no array": (
        lambda: wide_market.SealedBids()(Additive(jnp.ones((3, 2))), [1.0] * 3, jnp.ones((3, 2))),
        "wealth: ",
    ),
    "solver, other agents": (
        lambda: wide_market.Tatonnement()(Quadratic(*[jnp.ones((3, 2))] * 2), jnp.ones(2), jnp.ones((2, 2))),
        "valuations: ",
    ),
    "solver, other dtype": (
        lambda: wide_market.ProportionalResponse()(
            Linear(jnp.ones((3, 2))), jnp.ones(3), jnp.ones((3, 2), jnp.float16)
        ),
        "valuations: ",
    ),
    "prices": (
        lambda: backpropagation.goods_flows(
            backpropagation.MarketGraph(jnp.multiply), 0.5, np.ones((2, 2, 1)) / 4, np.ones((2, 1))
        ),
        "agents: ",
    ),
    "prices, text": (
        lambda: backpropagation.goods_flows(backpropagation.MarketGraph(jnp.multiply), 0.5, np.ones((2, 2, 1)), {}),
        "endowments: ",
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_former_tracebacks_are_errors_by_field(name):
    build, says = FOUND[name]
    with pytest.raises(ValueError, match=f"^{says}"):
        build()


class Bare(fuzzing.Workshop):
    """Without runs: for inputs that read none."""

    def __init__(self, path):
        self.path, self.folders, self.networks = path, {"ppo": path / "nowhere"}, {}


@pytest.mark.parametrize("kind", ["settings", "command"])
def test_a_few_random_inputs(kind, tmp_path):
    workshop = Bare(tmp_path)
    for index in range(60):
        some = fuzzing.draw_input(0, index, workshop, (kind,))
        verdict = fuzzing.attempt(some)
        assert verdict.fine, f"{index} {some.what}\n{verdict}"


@pytest.mark.full
def test_random_inputs_of_every_kind(tmp_path):
    report = fuzzing.fuzz(300, 4, tmp_path)  # a seed that draws every kind
    assert report["failures"] == []
    assert sum(sum(found.values()) for found in report["outcomes"].values()) == 300
    assert {kind.partition(":")[0] for kind in report["outcomes"]} == set(fuzzing.KINDS)
    json.dumps(report, default=str)


@pytest.mark.slow
def test_planted_faults_are_noticed(tmp_path):
    """A table that drops a row, a reader that returns other numbers, a validator that lets NaN through."""
    assert fuzzing.self_check(tmp_path) == []


def test_judge_distinguishes_valid_from_invalid_results():
    def raises(error):
        def run():
            raise error

        return fuzzing.attempt(fuzzing.Input("arrays", "", run))

    assert raises(ValueError("bids: expected numbers, got 'a'")).outcome == "refused"
    assert raises(ValueError("options[0].done: expected")).outcome == "refused"
    assert raises(ValueError("The truth value of an array is ambiguous")).outcome == "undocumented ValueError"
    assert raises(KeyError("a")).outcome == "KeyError"
    assert raises(RecursionError("deep")).outcome == "RecursionError"
    assert fuzzing.attempt(fuzzing.Input("networks", "", lambda: False)).outcome == "wrong numbers"
    assert fuzzing.attempt(fuzzing.Input("networks", "", lambda: True)).outcome == "taken"

    def endless():
        while True:
            pass

    assert fuzzing.attempt(fuzzing.Input("arrays", "", endless), limit=0.05).outcome == "hang"
    same = [fuzzing.draw_input(3, 5, Bare(Path()), ("settings",)).what for _ in range(2)]
    assert same[0] == same[1]


@pytest.mark.full
def test_a_short_soak():
    for name in ("society ccv", "deep market", "wide market"):
        rows = list(soak.soak(soak.SOAKS[name](), seconds=1.0, points=4))
        assert rows[-1]["arrays"] == rows[0]["arrays"]
        assert rows[-1]["resident_mb"] < rows[0]["resident_mb"] + 20
        assert all(row["relative_drift"] < 1e-5 for row in rows)
        assert rows[-1]["steps"] > rows[0]["steps"]
    assert rows[-1]["goods"] < 1e-3


def test_where_float32_accounts_stop_growing():
    assert soak.last_growth(0.8) == 2**24
    assert soak.last_growth(0.01) == 2**18

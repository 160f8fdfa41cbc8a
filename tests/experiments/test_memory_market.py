"""The memory market's evaluations against hand-made policies and plain Python, and what it learns."""

import dataclasses
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket.deep_market import Terms, make_population
from jaxmarket.deep_market.evaluation import every_episode, first_states
from jaxmarket.deep_market.representations import WILDCARD, ClassifierRule
from jaxmarket.environments.mazes import COMPASS, Woods101
from jaxmarket.experiments import EXPERIMENTS, Scope
from jaxmarket.experiments import memory_market as experiment
from jaxmarket.experiments.memory_market import EXPERIMENT, plans, returns, solved
from jaxmarket.experiments.results import Results
from jaxmarket.runs.populations import grow


def rules(*texts):
    """Agents from strings like ``1#11:3``."""
    parts = [text.split(":") for text in texts]
    conditions = [[WILDCARD if c == "#" else int(c) for c in left] for left, _ in parts]
    return ClassifierRule(
        jnp.asarray(conditions, jnp.int32), jnp.asarray([int(right) for _, right in parts], jnp.int32)
    )


def play(plan, agents, wealth=None):
    """The market of a plan with the given agents, all equally rich by default."""
    size = len(agents.action)
    market = dataclasses.replace(plan.market, capacity=size)
    population = make_population(agents, jnp.ones(size) if wealth is None else jnp.asarray(wealth))
    return market, population


def chain(name="memory"):
    return plans("MemoryChain", quick=True)[name]


# Observations: time left > .5, query, context > 0.5, the bit. Action a + 2 w: a is the answer, w writes nothing, 0, 1.
CLEVER = ("1#1#:4", "###0:0", "###1:1")  # a context of 1 is written down; the bit is the answer


@pytest.mark.full
def test_a_bit_solves_the_chain():
    market, population = play(chain(), rules(*CLEVER), [9.0, 1.0, 1.0])
    value = returns(market, jax.random.key(0), population, Terms())["return"]
    assert float(value) == 1
    trace = every_episode(market, jax.random.key(0), population, Terms())
    assert trace.reward.shape == (6, 2)
    np.testing.assert_array_equal(trace.obs[:, :, 3], [[0, 0], [0, 1], [0, 1], [0, 1], [0, 1], [0, 1]])
    np.testing.assert_array_equal(trace.winner[:, 1], [0, 0, 2, 2, 2, 2])
    np.testing.assert_array_equal(trace.reward, [[0, 0]] * 5 + [[1, 1]])


def test_who_forgets_earns_nothing():
    market, population = play(chain(), rules("###0:0", "###1:1"))
    assert float(returns(market, jax.random.key(0), population, Terms())["return"]) == 0


def test_without_memory_the_bounds_hold_for_any_population():
    """All episodes have the same draws, also in auctions without bids or with ties."""
    for world, most in (("MemoryChain", 0.0), ("Woods101", 2 / 3)):
        plan = plans(world, quick=True)["no memory"]
        _, obs, _ = first_states(plan.market.env)
        evaluate = jax.jit(returns, static_argnums=0)
        for seed in range(6):
            keys = jax.random.split(jax.random.key(seed), 6)
            agents = jax.vmap(plan.market.representation.init)(keys, jnp.resize(obs, (6, obs.shape[1])))
            market, population = play(plan, agents)
            population = population.replace(alive=jnp.arange(6) < 1 + seed)
            value = float(evaluate(market, jax.random.key(seed), population, Terms())["return"])
            assert value <= most + 1e-6
            assert world != "MemoryChain" or value == 0


def test_first_states_are_all_there_are():
    for plan in plans("MemoryChain", quick=True).values():
        states, obs, names = first_states(plan.market.env)
        assert names == ("context -1", "context 1")
        np.testing.assert_array_equal(obs[:, 2], [-1, 1])
        reset = {
            tuple(np.asarray(plan.market.env.reset(jax.random.key(i), plan.market.env.default_params)[0]))
            for i in range(20)
        }
        assert reset == {tuple(row) for row in np.asarray(obs)}
        del states
    maze = Woods101()
    _, obs, names = first_states(plans("Woods101", quick=True)["memory"].market.env)
    np.testing.assert_array_equal(obs[:, :16], [maze.view(cell) for cell in maze.starts])
    assert not obs[:, 16].any()
    assert len(names) == 6


def woods101_solution():
    """One rule per view and bit: shortest ways; on the right the bit is set, where cells look alike it decides."""
    maze, moves = Woods101(), []
    steps = dict(zip(maze.places, maze.distances, strict=True))
    views = {}
    for cell in maze.free:
        views.setdefault(maze.view(cell).tobytes(), []).append(cell)
    for cells in views.values():
        for cell in cells:
            move = min(range(len(COMPASS)), key=lambda a: steps[maze.move(cell, a)])
            view = "".join(map(str, maze.view(cell)))
            right = cell[1] > 3
            if len(cells) == 1:  # looks like no other: write 1 on the right
                moves.append(f"{view}#:{move + 8 * (2 if right else 0)}")
            else:
                moves.append(f"{view}{int(right)}:{move}")
    return rules(*moves)


def test_a_bit_feeds_all_six():
    plan = plans("Woods101", quick=True)["memory"]
    market, population = play(plan, woods101_solution())
    assert float(returns(market, jax.random.key(0), population, Terms())["return"]) == 1


def test_the_same_rules_without_writing_stay_below_the_bound():
    plan = plans("Woods101", quick=True)["memory"]
    agents = woods101_solution()
    market, population = play(plan, agents.replace(action=agents.action % 8))
    value = float(returns(market, jax.random.key(0), population, Terms())["return"])
    assert 0 < value <= Woods101().memoryless_return() + 1e-6


def test_plans_differ_in_the_bit_alone():
    for world in experiment.WORLDS:
        memory, none = plans(world, quick=True).values()
        assert memory.terms == none.terms
        assert memory.market.representation.bits == none.market.representation.bits + 1
        assert memory.market.representation.actions == 3 * none.market.representation.actions
        assert (memory.rounds, memory.market.capacity) == (none.rounds, none.market.capacity)


def test_solved_is_right_everywhere():
    np.testing.assert_array_equal(solved(np.array([1.0, 1 - 1e-7, 5 / 6, 0])), [True, True, False, False])


@pytest.mark.slow
def test_a_short_life_and_its_tables():
    plan = dataclasses.replace(chain(), rounds=20, chunks=2)
    grown = grow(plan, returns, seeds=2, seed=0)
    assert grown.residual < 1e-5
    rows = experiment._trace_rows("MemoryChain", grown, 0, jax.random.key(0))
    assert len(rows) == 2 * 6
    assert {row["bit"] for row in rows} <= {0, 1}
    assert sum(row["reward"] for row in rows) in (-2, 0, 2)
    # The bit seen next is what was written, or what it was.
    for before, after in itertools.pairwise(rows):
        if before["episode"] == after["episode"]:
            assert after["bit"] == (before["bit"] if before["writes"] == "–" else int(before["writes"]))


def test_people_read_views_and_actions():
    maze = Woods101()
    obs = np.append(maze.view((2, 3)), 1)
    shown = experiment._shown("Woods101", obs, 8 * 2 + 3)
    assert "S:food" in shown["sees"]
    assert (shown["bit"], shown["does"], shown["writes"]) == (1, "SE", "1")
    shown = experiment._shown("Woods101", obs, 4)
    assert (shown["does"], shown["writes"]) == ("S", "–")
    shown = experiment._shown("MemoryChain", np.array([0.8, 0, -1, 0]), 2)
    assert shown == {"sees": "time left 0.8, context -1", "bit": 0, "does": "0", "writes": "0"}


def made_up(chain, woods, without=(0.0, 2 / 3)):
    """The standings of all claims, of final returns of four seeds with memory in both worlds."""

    def result(values):
        return types.SimpleNamespace(
            measured={"return": np.broadcast_to(values, (2, 4))},
            plan=types.SimpleNamespace(steps=np.array([10, 20])),
        )

    found = {
        f"{world}: {name}": result(values)
        for world, own, bare in zip(experiment.WORLDS, (chain, woods), without, strict=True)
        for name, values in (("memory", own), ("no memory", bare))
    }
    results = Results(Scope(4), found, {}, EXPERIMENT.measures)
    return [claim.verdict(results) for claim in EXPERIMENT.claimed(results.scope)]


@pytest.mark.parametrize(
    ("results", "denied"),
    [
        (([1, 1, 1, 0.8], [1, 1, 1, 2 / 3]), []),
        (([1, 1, 1, 0.4], [1, 1, 1, 2 / 3]), ["with one bit the mean return"]),
        (([1, 1, 1, 1], [1, 1, 2 / 3, 2 / 3]), ["with one bit the return is above", "the market with a bit"]),
        (([1, 1, 1, 1], [1, 1, 1, 1], (0.5, 2 / 3)), ["without memory the return never"]),
        (([0, 0, 1, 1], [1, 1, 1, 1]), ["with one bit the mean return", "the market with a bit"]),
    ],
)
def test_claims_are_decided_by_means_bounds_and_most_seeds(results, denied):
    verdicts = made_up(*results)
    assert len(verdicts) == 6
    found = [v.claim.partition("] ")[2] for v in verdicts if v.standing != "confirmed"]
    assert len(found) == len(denied)
    assert all(text.startswith(start) for text, start in zip(found, denied, strict=True))


def test_equal_returns_are_ties():
    """Also after float32 sums in another order, which differ in the last digit."""
    verdict = made_up([1, 1, 1, 1], np.float32([1, 1, 2 / 3, 2 / 3]) + np.float32([0, 0, 0, 6e-8]))[-1]
    assert verdict.number == 0.5
    assert "by chance: 25.0%" in verdict.evidence  # two of two


def test_it_is_registered():
    assert EXPERIMENTS["memory-market"] is EXPERIMENT


@pytest.mark.full
def test_the_market_learns_to_remember_and_cannot_without():
    memory, none = (dataclasses.replace(plan, rounds=8000) for plan in plans("MemoryChain", quick=False).values())
    assert grow(memory, returns, seeds=6, seed=5).measured["return"][-1].mean() >= 0.5
    assert np.all(grow(none, returns, seeds=6, seed=5).measured["return"] == 0)

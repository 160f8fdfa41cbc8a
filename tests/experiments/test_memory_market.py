"""The memory market's evaluations against hand-made policies and plain Python, and what it learns."""

import dataclasses
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket.deep_market import Terms, make_population
from jaxmarket.deep_market.evaluation import episode_limit, every_episode, first_states
from jaxmarket.deep_market.representations import WILDCARD, ClassifierRule, RiskAverseRule, RiskAverseRules
from jaxmarket.environments.adapter import adapt
from jaxmarket.environments.mazes import COMPASS, Woods101
from jaxmarket.environments.tmaze import TMaze
from jaxmarket.experiments import EXPERIMENTS, Scope
from jaxmarket.experiments import memory_market as experiment
from jaxmarket.experiments.memory_market import EXPERIMENT, LENGTHS, bare, plans, returns, solved
from jaxmarket.experiments.recurrent import RecurrentAgent, train
from jaxmarket.experiments.results import Results
from jaxmarket.runs.populations import GrownMarket, grow


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
    if isinstance(plan.market.representation, RiskAverseRules) and not isinstance(agents, RiskAverseRule):
        certain = jnp.ones(size), jnp.zeros(size), jnp.zeros(size, jnp.int32)
        agents = RiskAverseRule(agents.condition, agents.action, *certain)
    market = dataclasses.replace(plan.market, capacity=size)
    population = make_population(agents, jnp.ones(size) if wealth is None else jnp.asarray(wealth))
    return market, population


def chain(name="memory"):
    return plans("MemoryChain 5", quick=True)[name]


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
    for world, most in (("MemoryChain 5", 0.0), ("TMaze 10", 1.95), ("Woods101", 2 / 3)):
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
            assert world != "MemoryChain 5" or value == 0


def test_first_states_are_all_there_are():
    for plan in plans("MemoryChain 5", quick=True).values():
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
    np.testing.assert_array_equal(solved("Woods101", np.array([1.0, 1 - 1e-7, 5 / 6, 0])), [True, True, False, False])
    np.testing.assert_array_equal(solved("TMaze 10", np.array([4.0, 1.95])), [True, False])


def test_lengths_are_those_of_their_names():
    for world, length in LENGTHS.items():
        env = bare(world)
        assert episode_limit(env) == length + 1
        assert env == bare(world)
    assert len({bare(world) for world in LENGTHS}) == len(LENGTHS)


@pytest.mark.slow
def test_a_short_life_and_its_tables():
    plan = dataclasses.replace(chain(), rounds=20, chunks=2)
    grown = grow(plan, returns, seeds=2, seed=0)
    assert grown.residual < 1e-5
    rows = experiment._trace_rows("MemoryChain 5", grown, 0, jax.random.key(0))
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
    shown = experiment._shown("MemoryChain 10", np.array([0.8, 0, -1, 0]), 2)
    assert shown == {"sees": "time left 0.8, context -1", "bit": 0, "does": "0", "writes": "0"}


def made_up(returns, without=None, recurrent=0.0):
    """The verdicts by claim, of final returns of four seeds with memory in all worlds, and those of the baselines."""
    bounds = {"MemoryChain 10": 0.0, "TMaze 10": 1.95, "Woods101": 2 / 3}

    def market(values):
        measured = {"return": np.broadcast_to(values, (2, 4)).astype(float)}
        return GrownMarket(types.SimpleNamespace(steps=np.array([10, 20])), None, None, measured, None)

    found = {}
    for world in experiment.WORLDS:
        found[f"{world}: memory"] = market(returns.get(world, 4.0 if world == "TMaze 10" else 1.0))
        found[f"{world}: recurrent"] = {"return": np.full((2, 4), recurrent), "steps": np.array([10, 20])}
        if world in bounds:
            found[f"{world}: no memory"] = market((without or {}).get(world, bounds[world]))
    results = Results(Scope(4), found, {}, EXPERIMENT.measures)
    return {claim.text: claim.verdict(results) for claim in EXPERIMENT.claimed(results.scope)}


@pytest.mark.parametrize(
    ("given", "denied"),
    [
        ({"returns": {}}, []),
        ({"returns": {"MemoryChain 10": [1, 1, 1, 0.8]}}, ["[MemoryChain 10] with one bit the mean return"]),
        (
            {"returns": {"Woods101": [1, 1, 2 / 3, 2 / 3]}},
            ["[Woods101] with one bit the return is above", "[Woods101] the market with a bit"],
        ),
        ({"returns": {}, "without": {"MemoryChain 10": 0.5}}, ["[MemoryChain 10] without memory the return never"]),
        (
            {"returns": {}, "recurrent": 1.0},
            [f"[{world}] the market has a higher" for world in ("MemoryChain 20", "MemoryChain 50")],
        ),
    ],
)
def test_claims_are_decided_by_shares_bounds_and_the_recurrent_agent(given, denied):
    verdicts = made_up(**given)
    assert len(verdicts) == 6 + 2 * 3 + 3
    found = [text for text, verdict in verdicts.items() if verdict.standing != "confirmed"]
    assert len(found) == len(denied)
    assert all(text.startswith(start) for text, start in zip(found, denied, strict=True))


def test_equal_returns_are_ties():
    """Also after float32 sums in another order, which differ in the last digit."""
    woods = np.float32([1, 1, 2 / 3, 2 / 3]) + np.float32([0, 0, 0, 6e-8])
    verdict = made_up({"Woods101": woods})["[Woods101] the market with a bit has a higher return than without"]
    assert verdict.number == 0.5
    assert "by chance: 25.0%" in verdict.evidence  # two of two


def test_it_is_registered():
    assert EXPERIMENTS["memory-market"] is EXPERIMENT


@pytest.mark.full
def test_the_market_learns_to_remember_and_cannot_without():
    memory, none = (dataclasses.replace(plan, rounds=8000) for plan in plans("MemoryChain 5", quick=False).values())
    assert grow(memory, returns, seeds=6, seed=5).measured["return"][-1].mean() >= 0.5
    assert np.all(grow(none, returns, seeds=6, seed=5).measured["return"] == 0)


# --- the recurrent agent


def test_a_recurrent_agent_is_measured_as_plain_python_acts():
    agent = RecurrentAgent(adapt(TMaze(1, limit=4)), units=4)
    first = agent.network.init(jax.random.key(3), jnp.zeros(4), jnp.zeros(3))
    measured, ended_early = jax.jit(agent.returns), 0
    for seed in (0, 72, 98):  # with 72 and 98 it happens to find a goal
        keys = iter(jax.random.split(jax.random.key(seed), 32))
        params = jax.tree.map(lambda leaf, keys=keys: 2 * jax.random.normal(next(keys), leaf.shape), first)
        total = 0.0
        states, observations, _ = first_states(agent.env)
        for i in range(2):
            state, obs, hidden = jax.tree.map(lambda leaf, i=i: leaf[i], states), observations[i], jnp.zeros(4)
            for t in range(4):
                hidden, (logits, _) = agent.act(params, hidden, obs)
                after = agent.env.step(jax.random.key(9), state, jnp.argmax(logits), agent.env.default_params)
                total, state, obs = total + float(after.reward), after.env_state, after.obs
                if after.terminated:
                    ended_early += t < 3
                    break
        np.testing.assert_allclose(measured(params), total / 2, rtol=1e-5)
    assert ended_early


@pytest.mark.slow
def test_a_recurrent_agent_learns_to_remember():
    agent = RecurrentAgent(bare("MemoryChain 5"), units=16, instances=16, horizon=32)
    found = train(jax.random.split(jax.random.key(0), 3), agent=agent, steps=60_000, parts=4)
    assert found["return"].shape == (4, 3)
    np.testing.assert_array_equal(found["steps"], 512 * 29 * np.arange(1, 5))
    assert np.median(found["return"][-1]) == 1

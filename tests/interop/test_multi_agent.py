"""Bids from outside, and the market in JaxMARL's interface, run by JaxMARL's own step and wrappers."""

import dataclasses
import functools
import importlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxmarl.environments.multi_agent_env import MultiAgentEnv
from jaxmarl.environments.spaces import Box, Discrete
from jaxmarl.wrappers.baselines import CTRolloutManager, LogWrapper

import jaxmarket
from jaxmarket import Rules, TrainConfig, settle
from jaxmarket.auctions import BUCKET_BRIGADE, MECHANISMS, VICKREY
from jaxmarket.environments.tabular import FiniteMDP, garnet
from jaxmarket.interop.embedding import given_bids
from jaxmarket.interop.multi_agent import MarketEnv
from jaxmarket.policies import BidPolicy, KumaraswamyHead, ValueHead, linear
from jaxmarket.rollouts import rollout
from jaxmarket.society import Society, draw

STATES, ACTIONS = 4, 2
rng = np.random.default_rng(0)
# Stochastic, ends in state 3 or after seven steps; all money in it is a multiple of 1/8, so float32 adds it exactly.
WORLD = FiniteMDP(
    garnet(1, STATES, ACTIONS, 0.9, branching=3).transitions,
    rng.integers(-8, 9, (STATES, ACTIONS)) / 8,
    0.9,
    [0.5, 0.5, 0, 0],
    horizon=7,
    terminal=np.arange(STATES) == 3,
)
POLICY = BidPolicy(linear(), KumaraswamyHead(0.0, 1.0))
GRID = tuple(np.arange(9) / 8)


def world(mechanism=VICKREY, **settings):
    return Society(WORLD, POLICY, mechanism, clones=2, **settings)


def same(one, other):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), one, other))


def named(env, values):
    return {agent: values[i] for i, agent in enumerate(env.agents)}


def stacked(env, values):
    return jnp.stack([values[agent] for agent in env.agents], -1)


# --- the same market


@pytest.mark.bits
@pytest.mark.slow
@pytest.mark.parametrize("mechanism", [VICKREY, BUCKET_BRIGADE], ids=lambda m: m.name)
def test_a_societys_own_bids_give_its_own_trajectory_bit_for_bit(mechanism):
    society, rules = world(mechanism), Rules(exploration=0.2, dropout=0.3)
    env, env_params = MarketEnv(society, rules=rules), WORLD.default_params
    params = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(3), x.shape), society.init(jax.random.key(2))
    )  # a new society bids the same everywhere

    def theirs(state, key):
        bids = society.bids(params, draw(society, jax.random.split(key)[0]), state.obs)
        _, state, rewards, dones, infos = env.step(key, state, named(env, bids))
        return state, (state, stacked(env, rewards), dones["__all__"], infos)

    def ours(state, key):  # JaxMARL's protocol: a key for the step, one for the reset, new accounts
        key_step, key_reset = jax.random.split(key)
        onward, row = jaxmarket.step(society, key_step, params, state, env_params, rules)
        fresh, _ = jaxmarket.reset(society, key_reset, env_params, rules)
        return jax.tree.map(functools.partial(jnp.where, row.done), fresh, onward), row

    def run(step, start):
        return jax.jit(lambda start: jax.lax.scan(step, start, jax.random.split(jax.random.key(1), 200)))(start)

    _, (states, rewards, done, infos) = run(theirs, env.reset(jax.random.key(0))[1])
    start, _ = jaxmarket.reset(society, jax.random.key(0), env_params, rules)
    last, rows = run(ours, start)
    at_end = jax.tree.map(lambda x: x[-1], states)
    assert 20 < done.sum() < 200
    assert 0 < (rows.truncated & ~rows.terminated).sum() < done.sum()
    assert same(at_end, last)
    assert same(infos["wealth"], rows.accounts.wealth)
    assert same(
        (done, infos["terminated"][:, 0], infos["truncated"][:, 0]), (rows.done, rows.terminated, rows.truncated)
    )
    flows = jaxmarket.flows(rows)
    for name in ("purchase", "sale", "reward"):
        assert same(infos[name], flows[name][..., :-1])
    assert same(rewards, flows.net[..., :-1])


@pytest.mark.slow
def test_given_bids_are_the_societys_step_with_the_bids_taken_out():
    society, env_params = world(), WORLD.default_params
    outside = given_bids(society)
    params = society.init(jax.random.key(2))

    @jax.jit
    def both(state, key):
        bids = society.bids(params, draw(society, key), state.obs)
        return (
            jaxmarket.step(society, key, params, state, env_params),
            jaxmarket.step(outside, key, bids, state, env_params),
        )

    state, _ = jaxmarket.reset(society, jax.random.key(0), env_params)
    for key in jax.random.split(jax.random.key(1), 30):  # through several resets
        (state, row), other = both(state, key)
        assert same((state, row), other)
    assert same(outside.init(jax.random.key(0)), jnp.zeros(society.bidders))


# --- JaxMARL's wrappers


def played(env, episodes=8, steps=40):
    """Random bids through a wrapper, vmapped and scanned: rewards [T, B, A], dones [T, B], infos [T, B, A]."""

    def step(carry, _):
        state, key = carry
        key, key_bids, key_step = jax.random.split(key, 3)
        samples = {
            a: jax.vmap(env.action_space(a).sample)(jax.random.split(k, episodes))
            for a, k in zip(env.agents, jax.random.split(key_bids, env.num_agents), strict=True)
        }
        _, state, rewards, dones, infos = jax.vmap(env.step)(jax.random.split(key_step, episodes), state, samples)
        return (state, key), (stacked(env, rewards), dones["__all__"], infos)

    @jax.jit
    def run(key):
        key, key_reset = jax.random.split(key)
        _, state = jax.vmap(env.reset)(jax.random.split(key_reset, episodes))
        return jax.lax.scan(step, (state, key), length=steps)[1]

    return run(jax.random.key(0))


def test_log_wrappers_return_is_exactly_the_wealth_gained():
    rewards, done, infos = jax.tree.map(np.asarray, played(LogWrapper(MarketEnv(world(VICKREY), grid=GRID))))
    ended = infos["returned_episode"]
    assert ended.sum() > 50
    assert (infos["returned_episode_returns"][ended] == infos["wealth"][ended]).all()
    assert np.abs(infos["wealth"][ended]).max() > 0.5
    account = np.zeros((8, 4))  # and within an episode, step by step
    for t in range(len(rewards)):
        account += rewards[t]
        assert (account == infos["wealth"][t]).all()
        account[done[t]] = 0


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", MECHANISMS.values(), ids=MECHANISMS)
def test_cash_flow_is_utility_paid_when_the_state_is_sold(mechanism):
    """The discounted sum also equals that of `settle` over the whole episode."""
    env, gamma = MarketEnv(world(mechanism)), 0.7
    assert env.agents == [f"bidder_{i}" for i in range(4)]

    @jax.jit
    def episode(key):
        society, env_params = given_bids(world(mechanism)), WORLD.default_params
        keys = jax.random.split(key, 8)

        def theirs(state, key):
            bids = jax.random.uniform(key, (4,))
            _, state, rewards, dones, _ = env.step_env(key, state, named(env, bids))
            return state, (stacked(env, rewards), dones["__all__"])

        def ours(state, key):
            return jaxmarket.step(society, key, jax.random.uniform(key, (4,)), state, env_params)

        _, (rewards, done) = jax.lax.scan(theirs, env.reset(key)[1], keys[:7])
        _, rows = jax.lax.scan(ours, jaxmarket.reset(society, key, env_params)[0], keys[:7])
        return rewards, done, rows, settle(rows, gamma, time_limits="terminal").utility

    rewards, done, rows, utility = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(4), 64))
    for b in range(64):
        last = int(jnp.argmax(done[b])) + 1  # at most seven
        by_hand = np.zeros(4)
        for t in range(last):
            by_hand[int(rows.outcome.winner[b, t])] += gamma**t * float(utility[b, t])
        patience = gamma ** np.arange(last)
        np.testing.assert_allclose(patience @ np.asarray(rewards[b, :last]), by_hand, atol=1e-5)


@pytest.mark.slow
def test_central_training_and_its_global_reward():
    env = CTRolloutManager(MarketEnv(world(), grid=GRID), batch_size=3)
    obs, state = env.batch_reset(jax.random.key(0))
    assert obs["bidder_0"].shape == (3, STATES + 1 + 4)  # and who one is
    assert obs["__all__"].shape == (3, 4 * (STATES + 1))
    actions = {
        agent: env.batch_sample(key, agent)
        for agent, key in zip(env.agents, jax.random.split(jax.random.key(1), 4), strict=True)
    }
    _, _, rewards, _, infos = env.batch_step(jax.random.key(2), state, actions)
    total = infos["purchase"] + infos["sale"] + infos["reward"]
    np.testing.assert_allclose(rewards["__all__"], total.sum(-1), atol=1e-6)
    assert set(env.get_valid_actions(state)) == set(env.agents)


# --- the interface


@functools.cache
def interface():
    """A market that several tests share, so that it is compiled once."""
    env = MarketEnv(world())
    return env, jax.jit(env.step_env)


def test_spaces_agents_and_observations():
    env, step_env = interface()
    assert isinstance(env, MultiAgentEnv)
    assert (env.name, env.num_agents) == ("Market(FiniteMDP)", 4)
    assert env.agent_classes == {"primitive_0": ["bidder_0", "bidder_1"], "primitive_1": ["bidder_2", "bidder_3"]}
    box = env.action_space("bidder_2")
    assert isinstance(box, Box)
    assert (box.low, box.high, box.shape) == (0.0, 1.0, (1,))
    choices = MarketEnv(world(), grid=GRID).action_space("bidder_2")
    assert isinstance(choices, Discrete)
    assert choices.n == 9
    obs, state = env.reset(jax.random.key(0))
    assert all(obs[a].shape == env.observation_space(a).shape and obs[a][-1] == 0 for a in env.agents)
    obs, state, *_ = step_env(jax.random.key(1), state, named(env, jnp.array([0.1, 0.2, 0.9, 0.3])))
    assert [float(obs[a][-1]) for a in env.agents] == [0, 0, 1, 0]  # the winner owns the state now for sale
    assert same(obs["bidder_2"][:-1], state.obs)


def test_bids_are_clipped_looked_up_and_never_nan():
    narrow, grid = MarketEnv(world(), low=0.25, high=0.5), MarketEnv(world(), grid=(-1, 0, 2))
    assert narrow.bids(named(narrow, jnp.array([0.0, 0.3, 7.0, -jnp.inf]))).tolist() == [
        0.25,
        np.float32(0.3),
        0.5,
        0.25,
    ]
    assert grid.bids(named(grid, jnp.array([2, 1, 0, 2]))).tolist() == [2, 0, -1, 2]
    env, step_env = interface()
    _, state = env.reset(jax.random.key(0))
    bids = jnp.array([[jnp.nan], [0.25], [0.5], [jnp.nan]])  # actions as their Box has them
    _, state, rewards, _, infos = step_env(jax.random.key(1), state, named(env, bids))
    assert int(state.owner) == 2
    assert infos["purchase"].tolist() == [0, 0, -0.25, 0]
    assert np.isfinite(stacked(env, rewards)).all()


@pytest.mark.slow
def test_step_resets_and_step_env_does_not():
    env, step_env = interface()
    actions = named(env, jnp.array([0.25, 0.5, 0.125, 0.0]))
    _, before = env.reset(jax.random.key(0))
    for key in jax.random.split(jax.random.key(1), 7):
        # JaxMARL's step gives the first half of its key to step_env.
        _, after, _, dones, infos = step_env(jax.random.split(key)[0], before, actions)
        if dones["__all__"]:
            break
        before = after
    assert all(bool(done) for done in dones.values())
    assert (infos["terminated"] | infos["truncated"]).all()
    assert (int(after.owner), after.accounts.wealth.tolist()) == (1, infos["wealth"].tolist())
    chosen = dataclasses.replace(env.reset(jax.random.key(2))[1], obs=before.obs + 5)
    obs, reset, *_, again = env.step(key, before, actions, chosen)
    assert same(again, infos)
    assert same(reset, chosen)
    assert same(obs["bidder_0"][:-1], chosen.obs)
    assert (int(reset.owner), reset.accounts.wealth.tolist()) == (-1, [0] * 4)


class Restricted(FiniteMDP):
    def legal_actions(self, state, params):
        return jnp.arange(ACTIONS) == 1


@pytest.mark.slow
def test_eligibility_is_an_available_action():
    restricted = Restricted(WORLD.transitions, WORLD.rewards, 0.9, WORLD.start)
    society = Society(restricted, POLICY, clones=1)
    env, grid = MarketEnv(society), MarketEnv(society, grid=(0, 0.5, 1))
    _, state = env.reset(jax.random.key(0))
    assert [env.get_avail_actions(state)[a].tolist() for a in env.agents] == [[False], [True]]
    assert [grid.get_avail_actions(state)[a].tolist() for a in env.agents] == [[True, False, False], [True, True, True]]
    eligible = jax.jit(env.step_env)(jax.random.key(1), state, named(env, jnp.array([1.0, 0.1])))
    assert int(eligible[1].owner) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"low": 1.0, "high": 1.0}, "low < high, got 1.0 and 1.0"),
        ({"high": float("inf")}, "got 0.0 and inf"),
        ({"grid": (0.0,)}, r"grid: expected two or more finite bids in ascending order, got \(0.0,\)"),
        ({"grid": (0.0, 0.0)}, "ascending"),
        ({"grid": (0.0, float("nan"))}, "finite"),
    ],
)
def test_bad_limits_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        MarketEnv(world(), **arguments)


def test_what_is_no_society_or_has_no_limits_is_refused():
    with pytest.raises(ValueError, match="expected a Society, got 'Chain-v0'"):
        MarketEnv("Chain-v0")
    unbounded = Society(WORLD, BidPolicy(linear(), ValueHead()))
    with pytest.raises(ValueError, match=r"low, high: .* got -inf and inf"):
        MarketEnv(unbounded)
    assert MarketEnv(unbounded, grid=(0, 1)).high == 1


def test_without_jaxmarl_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxmarl.environments.multi_agent_env", None)
    monkeypatch.delitem(sys.modules, "jaxmarket.interop.multi_agent")
    with pytest.raises(ImportError, match=r"pip install 'jaxmarket\[marl\]'"):
        importlib.import_module("jaxmarket.interop.multi_agent")


# --- gradients from outside


@pytest.mark.slow
def test_gradients_through_a_scanned_market_are_finite_differences():
    """All prices paid in twelve steps, differentiated in the parameters of the bid distributions at fixed draws."""
    society = TrainConfig(
        "Chain-v0", auction="bb", learner="ppo", hidden=(), clones=1, bid_low=0.0, bid_high=1.0
    ).settings.society
    env_params = society.env.default_params

    @jax.jit
    def paid(direction, size):
        params = jax.tree.map(lambda p, d: p + size * d, society.init(jax.random.key(0)), direction)
        state, _ = jaxmarket.reset(society, jax.random.key(1), env_params)
        _, rows = rollout(society, jax.random.key(2), params, state, env_params, 12)
        return rows.price.sum(), rows.outcome.winner

    direction = jax.tree.map(lambda x: jax.random.normal(jax.random.key(5), x.shape), society.init(jax.random.key(0)))
    slope, _ = jax.jit(jax.grad(paid, 1, has_aux=True))(direction, 0.0)
    eps = 1e-2
    (more, winners), (less, others) = paid(direction, eps), paid(direction, -eps)
    assert same(winners, others)  # who wins is a step function; within a step, prices are smooth
    assert abs(float(slope)) > 0.1
    np.testing.assert_allclose(slope, (more - less) / (2 * eps), rtol=1e-3)


@pytest.mark.slow
def test_importing_the_interface_leaves_the_streams_as_they_are():
    """JaxMARL replaces both when it is imported."""
    program = (
        "import io, sys\n"
        "streams = sys.stdout, sys.stderr = io.StringIO(), io.StringIO()\n"
        "import jaxmarket.interop.multi_agent\n"
        "assert (sys.stdout, sys.stderr) == streams"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

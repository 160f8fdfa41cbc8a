"""Options: hand-computed utilities, a plain-Python loop as reference, and societies of societies."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmarket import (
    MECHANISMS,
    BidPolicy,
    MarketPolicy,
    Society,
    TrainConfig,
    as_policy,
    fit,
    make,
    reset,
    rollout,
    settle,
)
from jaxmarket.environments import FiniteMDP, Option, Options, adapt
from jaxmarket.environments.options import waste
from jaxmarket.evaluation import step_durations
from jaxmarket.learners import Hyperparameters
from jaxmarket.policies import KumaraswamyHead, ValueHead, bid_table, linear
from jaxmarket.rollouts import fresh_rollout, rollout_policy, start
from jaxmarket.testing import check_environment
from jaxmarket.training import monolith as baselines

GAMMA = 0.5


def advance(obs, key):
    """A policy with a constant action."""
    return 1


def line(horizon=20):
    """States 0 to 4 in a row: action 1 goes on and earns 1, 2, 4, 8; action 0 waits and earns -1. 4 ends it."""
    onward = np.minimum(np.arange(5) + 1, 4)
    return FiniteMDP(
        P=np.eye(5)[np.stack([np.arange(5), onward], 1)],
        R=[[-1, 1], [-1, 2], [-1, 4], [-1, 8], [0, 0]],
        gamma=GAMMA,
        start=[1, 0, 0, 0, 0],
        horizon=horizon,
        terminal=np.arange(5) == 4,
        name="line",
    )


def on_the_line(*options, horizon=20, **settings):
    return Options(line(horizon), options, discount=GAMMA, **settings)


def society_that_bids(env, bids, mechanism):
    """A society of solitary bidders with the fixed bids [S, P]."""
    society = Society(env, BidPolicy(linear(), ValueHead()), MECHANISMS[mechanism], clones=1, ties="lowest")
    return society, bid_table(jnp.asarray(np.transpose(bids), jnp.float32))


BIDS = [[0.9, 0.4], [0, 0], [0.3, 0.1], [0.2, 0.7], [0, 0]]
"""Option 0 buys states 0 and 2, option 1 state 3."""


@pytest.mark.parametrize(
    ("mechanism", "price", "payout"),
    [("bb", 0.9, 0.7), ("vickrey", 0.4, 0.7), ("ccv", 0.4, 0.2), ("env", 0.0, 0.0)],
)
def test_the_utility_of_an_option_of_three_steps(mechanism, price, payout):
    """Three steps earn 1 + 2/2 + 4/4 = 3, and what the state reached is sold for counts an eighth."""
    env = on_the_line(Option(advance, length=3), Option(advance, length=1))
    society, params = society_that_bids(env, BIDS, mechanism)
    rows = fresh_rollout(society, jax.random.key(0), params, society.env.default_params, 2)
    assert rows.outcome.winner.tolist() == [0, 1]
    assert rows.duration.tolist() == [3, 1]
    np.testing.assert_allclose(rows.reward, [3, 8])
    assert rows.terminated.tolist() == [False, True]
    assert rows.episode_return.tolist() == [7, 15]  # undiscounted
    assert rows.episode_length.tolist() == [3, 4]
    sale = {"bb": 0.7, "vickrey": 0.2, "ccv": 0.2, "env": 0}[mechanism]  # what option 1 pays for state 3
    np.testing.assert_allclose(rows.price, [price, sale], rtol=1e-6)
    np.testing.assert_allclose(settle(rows, GAMMA).utility, [3 + payout / 8 - price, 8 - sale], rtol=1e-6)


@pytest.mark.parametrize(("time_limits", "expected"), [("bootstrap", 2 + 0.1 / 4 - 0.4), ("terminal", 2 - 0.4)])
def test_a_time_limit_inside_an_option(time_limits, expected):
    """The clock stops option 0 after two of its three steps; state 2 would have been sold for .1 (ccv)."""
    env = on_the_line(Option(advance, length=3), Option(advance, length=1), horizon=2)
    society, params = society_that_bids(env, BIDS, "ccv")
    rows = fresh_rollout(society, jax.random.key(0), params, society.env.default_params, 1)
    assert rows.duration.tolist() == [2]
    assert (rows.truncated.tolist(), rows.terminated.tolist()) == ([True], [False])
    np.testing.assert_allclose(rows.reward, [2])
    np.testing.assert_array_equal(rows.next_obs, np.eye(5)[[2]])  # where it was cut, not where the next one begins
    np.testing.assert_allclose(settle(rows, GAMMA, time_limits=time_limits).utility, [expected], rtol=1e-6)


def test_an_option_that_ends_the_episode():
    """From state 3 an option of three steps takes one; nothing is sold after the end."""
    env = on_the_line(Option(advance, length=3), Option(advance, length=3))
    society, params = society_that_bids(env, [[0.9, 0.4], [0, 0], [0, 0], [0.7, 0.2], [9, 9]], "vickrey")
    rows = fresh_rollout(society, jax.random.key(0), params, society.env.default_params, 3)
    assert rows.duration.tolist() == [3, 1, 3]
    assert rows.terminated.tolist() == [False, True, False]
    np.testing.assert_allclose(settle(rows, GAMMA).utility[:2], [3 + 0.7 / 8 - 0.4, 8 - 0.2], rtol=1e-6)
    assert rows.owner.tolist() == [-1, 0, -1]


def test_at_the_last_step_terminated_wins_over_the_clock():
    env = on_the_line(Option(advance, length=9), horizon=4)
    _, state = env.reset_env(jax.random.key(0), env.default_params)
    _, _, reward, terminated, info = env.step_env(jax.random.key(0), state, 0, env.default_params)
    assert bool(terminated)
    assert float(info["duration"]) == 4
    np.testing.assert_allclose(reward, 1 + 2 / 2 + 4 / 4 + 8 / 8)
    np.testing.assert_allclose(info["undiscounted"], 15)


# --- stop rules


def two_then_wait(obs, key):
    """A policy that moves on to state 2 and takes its ``done`` action 0 there."""
    return jnp.where(obs[2] > 0, 0, 1)


@pytest.mark.parametrize(
    ("option", "settings", "duration", "reward", "place"),
    [
        (Option(two_then_wait, done=0), {"bound": 9}, 3, 1 + 2 / 2 - 1 / 4, 2),  # done is executed: it earns -1
        (Option(two_then_wait, done=0), {"bound": 9, "executes_done": False}, 2, 2, 2),
        (Option(advance, until=lambda obs: obs[3] > 0), {"bound": 9}, 3, 3, 3),
        (Option(advance, length=2), {}, 2, 2, 2),
        (Option(advance, length=9), {"bound": 2}, 2, 2, 2),
        (Option(advance, length=1, until=lambda obs: obs[3] > 0), {"bound": 9}, 1, 1, 1),
        (Option(advance, done=1), {"bound": 9}, 1, 1, 1),  # done at once is executed in any case, or time would stop
        (Option(advance, done=1), {"bound": 9, "executes_done": False}, 1, 1, 1),
    ],
)
def test_stop_rules(option, settings, duration, reward, place):
    env = on_the_line(option, Option(advance, length=1), **settings)
    _, state = env.reset_env(jax.random.key(0), env.default_params)
    obs, state, found, terminated, info = env.step_env(jax.random.key(0), state, 0, env.default_params)
    assert float(info["duration"]) == duration
    np.testing.assert_allclose(found, reward)
    assert int(obs.argmax()) == int(state.obs.argmax()) == place
    assert not terminated
    assert not env.is_truncated(state, env.default_params)
    # Without its done action the clock of the environment stands still, too.
    assert int(state.env_state.time) == duration


def reference(mdp, actions, state, time, rule, discount):
    """One option, step by step: ``(reward, duration, undiscounted, state, time, terminated, truncated)``."""
    done, length, until, executes = rule
    reward = total = 0.0
    steps = 0
    while True:
        action = actions[state]
        finished = action == done
        if finished and not executes and steps > 0:
            return reward, steps, total, state, time, False, False
        earned = mdp.rewards[state, action]
        state, time, steps = int(mdp.transitions[state, action].argmax()), time + 1, steps + 1
        reward, total = reward + discount ** (steps - 1) * earned, total + earned
        terminated = bool(mdp.terminal[state])
        truncated = not terminated and time >= mdp.horizon
        if finished or terminated or truncated or steps >= length or state == until:
            return reward, steps, total, state, time, terminated, truncated


@functools.cache
def wanderings(executes):
    """A deterministic process, options that follow a table, and the compiled step; one option of each kind."""
    rng = np.random.default_rng(3)
    mdp = FiniteMDP(
        P=np.eye(7)[rng.integers(0, 7, (7, 3))],
        R=rng.normal(size=(7, 3)),
        gamma=0.8,
        start=np.full(7, 1 / 7),
        horizon=11,
        terminal=np.arange(7) == 6,
    )
    tables = rng.integers(0, 3, (4, 7))
    rules = [(0, 6, None), (2, 50, None), (-1, 4, 3), (1, 5, 2)]
    options = [
        Option(
            functools.partial(lambda table, obs, key: table[obs.argmax()], jnp.asarray(table)),
            done=None if done < 0 else done,
            length=length,
            until=None if until is None else lambda obs, until=until: obs[until] > 0,
        )
        for table, (done, length, until) in zip(tables, rules, strict=True)
    ]
    env = Options(mdp, options, discount=0.8, executes_done=executes)
    step = jax.jit(jax.vmap(env.step_env, (None, 0, 0, None)))
    return mdp, tables, [(*rule, executes) for rule in rules], env, step


@settings(max_examples=30, deadline=None)
@given(
    st.booleans(), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10), st.integers(0, 3)), min_size=8, max_size=8)
)
def test_options_are_their_steps_one_by_one(executes, cases):
    """Eight instances side by side, from any state, at any time, against a plain loop."""
    mdp, tables, rules, env, step = wanderings(executes)
    params = env.default_params
    _, one = env.reset_env(jax.random.key(0), params)
    index, time, choice = (jnp.array([case[i] for case in cases], jnp.int32) for i in range(3))
    state = jax.tree.map(lambda x: jnp.broadcast_to(x, (8, *x.shape)), one)
    state = state.replace(env_state=state.env_state.replace(index=index, time=time), obs=jnp.eye(7)[index])
    obs, after, reward, terminated, info = step(jax.random.key(0), state, choice, params)
    for i, (place, clock, option) in enumerate(cases):
        expected = reference(mdp, tables[option], place, clock, rules[option], 0.8)
        found = (reward[i], info["duration"][i], info["undiscounted"][i], obs[i].argmax(), after.env_state.time[i])
        np.testing.assert_allclose(found, expected[:5], rtol=1e-5, atol=1e-6)
        assert bool(terminated[i]) == expected[5]
        assert bool(after.truncated[i] & ~terminated[i]) == expected[6]


def test_gymnaxs_own_step_resets_where_the_episode_was_cut():
    env = on_the_line(Option(advance, length=2), horizon=3)
    _, state = env.reset(jax.random.key(0), env.default_params)
    _, state, reward, terminated, truncated, _ = env.step(jax.random.key(1), state, 0, env.default_params)
    assert (bool(terminated), bool(truncated), float(reward)) == (False, False, 1 + 2 / 2)
    obs, state, reward, terminated, truncated, info = env.step(jax.random.key(2), state, 0, env.default_params)
    assert (bool(terminated), bool(truncated), float(reward)) == (False, True, 4)
    assert int(obs.argmax()) == 0
    assert int(info["final_observation"].argmax()) == 3
    assert not state.truncated


@pytest.mark.slow
def test_options_of_one_step_are_literal_actions():
    """A society over options of length 1 has the same rollout as a society over the wrapped environment."""
    env = line(horizon=5)
    wrapped = Options(env, [Option(lambda obs, key, a=a: a, length=1) for a in range(2)], discount=GAMMA)
    policy = BidPolicy(linear(4), KumaraswamyHead())
    rows = {}
    for name, beneath in (("literal", env), ("options", wrapped)):
        society = Society(beneath, policy)
        rows[name] = fresh_rollout(
            society, jax.random.key(1), society.init(jax.random.key(0)), society.env.default_params, 40
        )
    jax.tree.map(np.testing.assert_array_equal, rows["options"], rows["literal"])


def test_policies_that_sample_draw_afresh_at_every_step():
    """A fair coin per step: durations until the first tails are geometric, and differ between instances."""

    def coin(obs, key):
        return jax.random.bernoulli(key).astype(jnp.int32)

    env = on_the_line(Option(coin, done=1), bound=50, horizon=100)
    _, state = env.reset_env(jax.random.key(0), env.default_params)
    keys = jax.random.split(jax.random.key(2), 4000)
    info = jax.jit(jax.vmap(lambda key: env.step_env(key, state, 0, env.default_params)[-1]))(keys)
    shares = np.bincount(np.asarray(info["duration"], int), minlength=8)[1:6] / 4000
    np.testing.assert_allclose(shares, 0.5 ** np.arange(1, 6), atol=0.03)


# --- options as an environment


def test_options_compare_by_value_and_keep_the_environments_contract():
    table = jnp.array([1, 0])
    follow = functools.partial(on_the_line, bound=4)
    one, same = (follow(Option(Table(table + 0), done=0)) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != follow(Option(Table(table.at[0].set(0)), done=0))
    assert one != follow(Option(Table(table), done=1))
    assert one != follow(Option(Table(table), done=0), executes_done=False)
    assert one != Options(line(), [Option(Table(table), done=0)], bound=4, discount=0.4)
    assert adapt(one).name == "line with 1 options"
    check_environment(follow(Option(Table(table), done=0), Option(advance, length=2)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Table:
    """A policy with parameters: an action per half of the line."""

    actions: jax.Array

    def __call__(self, obs, key):
        return self.actions[(obs.argmax() > 2).astype(jnp.int32)]


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ([], {}, "options: expected .*at least one"),
        ([advance], {}, "options.0.: expected an Option"),
        ([Option(3, length=1)], {}, "options.0..policy: expected a callable"),
        ([Option(advance)], {}, "options.0.: .* may never stop"),
        ([Option(advance, done=0)], {}, "options.0.: .* may never stop"),
        ([Option(advance, done=2, length=1)], {}, "options.0..done: expected an integer from 0 to 1, got 2"),
        ([Option(advance, length=0)], {}, "options.0..length: expected an integer"),
        ([Option(advance, length=1, until=4)], {}, "options.0..until: expected a function"),
        ([Option(advance, length=1)], {"bound": 0}, "bound: expected an integer"),
        ([Option(advance, length=1)], {"discount": 1.5}, "discount: expected a number"),
    ],
)
def test_bad_options_are_named(options, settings, message):
    with pytest.raises(ValueError, match=message):
        Options(line(), options, **settings)


def test_agents_must_discount_as_the_options_do():
    env = on_the_line(Option(advance, length=2))
    assert TrainConfig(env).settings.gamma == GAMMA
    with pytest.raises(ValueError, match=r"^gamma: the options of line with 1 options discount by 0\.5 .*, got 0\.9"):
        TrainConfig(env, gamma=0.9)


def test_waste_is_the_share_of_waiting():
    assert waste([[4, 4], [2, 2]]) == 0
    assert waste([[1, 4], [2, 1]]) == pytest.approx(1 - 8 / 12)


def test_durations_are_those_of_all_seeds_and_instances():
    """The bidders of the second seed always choose the option of one step."""
    env = on_the_line(Option(advance, length=3), Option(advance, length=1))
    society, alternating = society_that_bids(env, BIDS, "ccv")
    _, single = society_that_bids(env, [[0, 1]] * 5, "ccv")
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), alternating, single)
    keys = jax.random.split(jax.random.key(0), (2, 3))
    found = step_durations(society, params, keys, 4)
    assert found.tolist() == [[3] * 3 + [1] * 3, [1] * 6] * 2
    assert waste(found) == 1 - (12 + 6) / (18 + 6)


def test_a_monolith_over_options_discounts_by_duration():
    """Generalised advantages with γ^k: two decisions of three and one steps, values by hand."""
    env = adapt(on_the_line(Option(advance, length=3), Option(advance, length=1)))
    params = env.default_params
    running = start(env, jax.random.key(0), params)
    act = lambda action, obs: (action, action)  # noqa: E731
    _, rows = rollout_policy(env, act, jax.random.key(1), running, params, jnp.array([0, 1, 1]))
    value = lambda obs: obs @ jnp.array([10.0, 20, 30, 40, 50])  # noqa: E731
    hyper = Hyperparameters(discount=GAMMA, trace_decay=0.5)
    found = baselines.utilities(rows, value(rows.obs), rows.done & False, value=value, hyper=hyper, limit=None)
    # The last row is cut by the end of the rollout after one step into the next episode: 1 + .5 * V(1).
    np.testing.assert_allclose(found, [3 + (0.5 * 40 + 0.5 * 8) / 8, 8, 1 + 0.5 * 20], rtol=1e-6)
    assert rows.episode_return.tolist() == [7, 15, 1]


# --- societies of societies


@pytest.mark.full
def test_three_levels_train():
    """Actions, options learned by a society, a society over them, and options of that one."""
    small = {"learner": "valuation", "steps": 2048, "instances": 8, "horizon": 16, "minibatch": 32}
    low = fit(TrainConfig(line(), **small), jax.random.key(0), progress=False)
    policies = [as_policy(low), as_policy(low, greedy=False)]
    assert all(isinstance(policy, MarketPolicy) for policy in policies)
    env = on_the_line(*(Option(policy, length=2) for policy in policies))
    top = fit(TrainConfig(env, **small), jax.random.key(1), progress=False)
    assert top.summary["env_steps"] > 2048  # options take longer than a step
    np.testing.assert_allclose(top.summary["return_mean"], 15)  # the greedy society beneath already solves it
    third = Options(env, [Option(as_policy(top), length=2), Option(advance, length=2)], discount=GAMMA)
    society = TrainConfig(third, **small).settings.society
    rows = fresh_rollout(society, jax.random.key(0), society.init(jax.random.key(0)), society.env.default_params, 8)
    # A level-two option chooses twice among options of two steps: the whole line, discounted step by step.
    assert (rows.duration == 4).all()
    np.testing.assert_allclose(rows.reward, 1 + 2 / 2 + 4 / 4 + 8 / 8)


@pytest.mark.slow
def test_policies_come_from_runs_of_either_kind(tmp_path):
    small = {"steps": 256, "instances": 8, "horizon": 16, "minibatch": 32, "seeds": 2}
    env, params = make("Bandit-v0")
    obs, _ = env.reset(jax.random.key(0), params)
    for agent, kind in (("society", {"learner": "valuation"}), ("monolith", {"agent": "monolith"})):
        run = fit(TrainConfig("Bandit-v0", **kind, **small), jax.random.key(0), tmp_path / agent, progress=False)
        for source in (run, tmp_path / agent):
            policy = as_policy(source, seed=1)
            assert int(policy(obs)) in range(4)
            with pytest.raises(ValueError, match="key: "):
                as_policy(source, greedy=False)(obs)
            with pytest.raises(ValueError, match="seed: expected an integer from 0 to 1"):
                as_policy(source, seed=2)
        jax.tree.map(np.testing.assert_array_equal, policy.params, as_policy(run, seed=1).params)


def test_bootstrap_auction_observes_the_state_after_the_option():
    """The bootstrap auction at the end of a rollout sees the state after the whole option."""
    env = on_the_line(Option(advance, length=2), Option(advance, length=1))
    society, params = society_that_bids(env, BIDS, "ccv")
    state, _ = reset(society, jax.random.key(0), society.env.default_params)
    _, rows = rollout(society, jax.random.key(0), params, state, society.env.default_params, 1)
    np.testing.assert_allclose(rows.bootstrap_value, [0.1])

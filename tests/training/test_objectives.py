"""Modules with observations and rewards of their own, which join and leave a society."""

import dataclasses
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import jaxmarket
from jaxmarket import Rules, TrainConfig, fit
from jaxmarket.checking import checked
from jaxmarket.environments import Targets, adapt
from jaxmarket.interop.embedding import given_bids
from jaxmarket.metrics import conservation_residual, ledger, totals
from jaxmarket.rollouts import fresh_rollout
from jaxmarket.settlement import flows, settle
from jaxmarket.testing import check_environment
from jaxmarket.training.transfer import join
from jaxmarket.view.episodes import society_episode

SMALL: dict[str, Any] = {"steps": 2048, "instances": 4, "horizon": 32, "minibatch": 64}
PLAY = jax.jit(fresh_rollout, static_argnums=(0, 4))


class Scale(struct.PyTreeNode):
    """By which the second module's observation is multiplied."""

    second: jax.Array


@dataclasses.dataclass(frozen=True)
class Two:
    """Two modules, each of which observes a number of its own, and is paid for an action of its own."""

    num_actions = 2
    num_modules = 2
    default_params = Scale(np.float32(1))

    def reset(self, key, params):
        hidden = jax.random.uniform(key, (2,))
        return hidden * jnp.array([1.0, params.second]), jnp.zeros((), jnp.int32)

    def step_env(self, key, state, action, params):
        rewards = jnp.array([0.25, 0.5]) * (action == jnp.arange(2)) + 0.125 * state
        obs, _ = self.reset(key, params)
        return obs, state + 1, rewards.sum(), False, state == 3, {"module_rewards": rewards}

    step = step_env

    def module_observation(self, obs, module):
        return obs[module][None]


def settings(env, **options):
    return TrainConfig(env, **(SMALL | options)).settings


def moved(one, other, module):
    """Whether any parameter of a module differs."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(bool((a[module] != b[module]).any()) for a, b in pairs)


# --- observations


@pytest.mark.slow
@pytest.mark.parametrize("primitives", ["learned", "actions"])
@pytest.mark.parametrize("share", [True, False])
def test_bids_and_actions_are_functions_of_the_modules_own_observation(primitives, share):
    """They equal those of the module's networks for its own part, computed one by one."""
    society = settings(Two(), primitives=primitives, share_clones=share).society
    params = jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(1), x.shape), society.init(jax.random.key(0)))
    obs = jnp.array([0.3, 0.7])
    modules = [jax.tree.map(lambda x, m=m: x[m], params) for m in range(society.modules)]
    own = [obs[m * 2 // society.modules][None] for m in range(society.modules)]
    nets = [m["bids"] if primitives == "learned" else m for m in modules]
    bids = [float(society.policy.apply(net, x).mean()) for net, x in zip(nets, own, strict=True)]
    np.testing.assert_allclose(society.bids(params, None, obs), np.repeat(bids, society.members), rtol=1e-6)
    if primitives == "learned":
        for bidder in range(society.bidders):
            m = bidder // society.members
            acts = society.learned.policy.apply(modules[m]["actions"], own[m]).mean()
            assert society.choose(params, None, obs, jnp.int32(bidder), Rules()) == acts


@pytest.mark.slow
@pytest.mark.parametrize(
    "learner",
    ["valuation", "ppo", pytest.param("reinforce", marks=pytest.mark.full)],
)
def test_a_module_learns_from_its_own_observation_only(learner):
    """Whatever another module observes, the update is the same to the bit: steps, settlement and learning.

    Winners are random, and no bidder pays, so that the other module's bids have no effect either.
    """
    chosen = settings(
        Two(), learner=learner, auction="env", exploration=1.0, trace_decay=0.0, persistence=0.0, log_every=1
    )
    program, hyper = chosen.trainable, chosen.hyperparameters.as_arrays()

    @jax.jit
    def trained(second):
        state = program.init(jax.random.key(0), Scale(second), hyper)
        return program.chunk(state, Scale(second), hyper)[0].learner

    before, after = trained(jnp.float32(1)), trained(jnp.float32(3))
    assert not moved(before, after, 0)
    assert moved(before, after, 1)
    assert moved(before.params, program.init(jax.random.key(0), Scale(1.0), hyper).learner.params, 0)


def test_agents_of_a_market_observe_what_their_modules_do():
    pytest.importorskip("jaxmarl")
    market = importlib.import_module("jaxmarket.interop.multi_agent").MarketEnv(
        settings(Two()).society, low=0.0, high=1.0
    )
    obs, state = market.reset(jax.random.key(0))
    for bidder, name in enumerate(market.agents):
        np.testing.assert_allclose(obs[name], [state.obs[bidder // 2], 0])
        assert market.observation_spaces[name].shape == obs[name].shape


# --- rewards


@pytest.mark.slow
@pytest.mark.parametrize(("clones", "auction"), [(1, "bb"), (2, "ccv"), (3, "vickrey")])
def test_rewards_of_modules_are_those_of_a_loop_in_python(clones, auction):
    """Accounts, utilities, flows, ledger and returns against plain Python; some auctions have no bidder."""
    env = Two()
    society = settings(env, clones=clones, auction=auction).society
    params = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), society.init(jax.random.key(0))
    )
    for present in (np.ones(2 * clones, bool), np.zeros(2 * clones, bool), np.arange(2 * clones) >= clones):
        rows = jax.device_get(
            PLAY(society, jax.random.key(2), params, env.default_params, 24, Rules(present=jnp.asarray(present)))
        )
        wealth, auctioneer, episode = np.zeros(2 * clones), 0.0, 0.0
        for t in range(24):
            winner, seller, action = (int(x[t]) for x in (rows.outcome.winner, rows.owner, rows.choice))
            assert present[winner] if winner >= 0 else not present.any()
            module, earned = max(winner, 0) // clones, [0.125 * (t % 4)] * 2
            earned[action] += (0.25, 0.5)[action]
            for other in range(2):
                if other != module:
                    wealth[other * clones : (other + 1) * clones] += earned[other] / clones
            episode += sum(earned)
            if winner < 0:
                auctioneer += earned[module]
            else:
                wealth[winner] += earned[module] - rows.price[t]
                if seller < 0:
                    auctioneer += rows.payout[t]
                else:
                    wealth[seller] += rows.payout[t]
            np.testing.assert_allclose(rows.accounts.wealth[t], wealth, atol=1e-5)
            np.testing.assert_allclose(rows.accounts.auctioneer[t], auctioneer, atol=1e-5)
            np.testing.assert_allclose(rows.reward[t], earned[module], rtol=1e-6)
            np.testing.assert_allclose(rows.episode_return[t], episode, rtol=1e-5)
            episode = 0.0 if rows.done[t] else episode
        assert float(conservation_residual(rows)) < 1e-6
        np.testing.assert_allclose(flows(rows).net[:, :-1].sum(0), wealth, atol=1e-5)
        table = np.asarray(ledger(rows))
        np.testing.assert_allclose((table.sum(0) - table.sum(1))[: 2 * clones], wealth, atol=1e-5)
        np.testing.assert_allclose(totals(rows).reward, rows.reward.sum() + rows.windfalls.sum(), rtol=1e-6)
        following = np.where(np.arange(24) % 4 == 3, rows.bootstrap_value, np.append(rows.payout[1:], 0))
        utility = rows.reward + 0.9 * following - rows.price
        np.testing.assert_allclose(settle(rows, 0.9).utility, utility, atol=1e-5)


def test_conservation_is_checked_inside_a_step():
    """A checked program counts the windfalls among the sources of money."""
    society = settings(Two()).society
    rows = checked(fresh_rollout, static_argnums=(0, 4))(
        society, jax.random.key(0), society.init(jax.random.key(0)), Scale(1.0), 8
    )
    assert float(rows.windfalls.sum()) > 0.5


def test_without_modules_of_its_own_an_environment_has_no_windfalls():
    society = settings("CartPole-v1", primitives="learned").society
    rows = jax.eval_shape(
        lambda key: fresh_rollout(society, key, society.init(key), society.env.default_params, 4), jax.random.key(0)
    )
    assert rows.windfalls is None and "windfall" not in jax.eval_shape(flows, rows).names


# --- eligible modules, joining and leaving


class First(Targets):
    """The module of the first kind that is there acts."""

    def eligible_modules(self, state, params):
        order = jnp.cumsum(state.present)
        return (state.present & (order == 1)) | ~state.present.any()


@pytest.fixture(scope="module")
def run():
    """A short run; its options are those of other tests in this file."""
    return fit(TrainConfig("Targets-v0", **SMALL), jax.random.key(0), progress=False)


def test_the_environment_may_say_which_modules_take_part():
    society = settings(First()).society
    params = society.init(jax.random.key(0))
    env_params = society.env.default_params.replace(vanishes=0.3)
    rows = PLAY(society, jax.random.key(1), params, env_params, 64)
    there = np.asarray(rows.obs).reshape(64, 4, 3)[..., 2] > 0
    winner = np.asarray(rows.outcome.winner) // society.clones
    assert there.any(1).sum() > 32 and len(set(winner)) > 1
    np.testing.assert_array_equal(winner[there.any(1)], there.argmax(1)[there.any(1)])


@pytest.mark.slow
def test_a_module_that_is_absent_never_wins_and_joins_with_copied_weights(run):
    """Module 3 sits out, joins with the weights of module 1, and leaves again; the others keep their weights."""
    society = run.config.settings.society
    params = {"bids": run.networks["policy"], "actions": run.networks["actions"]}
    params = jax.tree.map(lambda x: jnp.asarray(x[0]), params)
    joined = join(params, module=3, like=1)
    assert moved(params, joined, 3) and not any(moved(params, joined, m) for m in range(3))
    assert not moved(
        jax.tree.map(lambda x: x[jnp.array([1])], joined), jax.tree.map(lambda x: x[jnp.array([3])], joined), 0
    )
    env_params = society.env.default_params
    wins = {}
    for name, here in {"before": 3, "after": 4}.items():
        rules = Rules(present=jnp.repeat(jnp.arange(4) < here, society.clones), exploration=0.5)
        rows = PLAY(society, jax.random.key(1), joined, env_params, 128, rules)
        wins[name] = set(np.asarray(rows.outcome.winner) // society.clones)
    assert wins == {"before": {0, 1, 2}, "after": {0, 1, 2, 3}}
    # Equal objectives, equal networks: the same bid and the same action.
    obs = jnp.tile(jnp.array([0.5, -1.0, 1.0]), 4)
    bids = society.bids(joined, None, obs)
    assert bids[2] == bids[6] != society.bids(params, None, obs)[6]
    legal = jnp.arange(4) == 3
    policy = jaxmarket.MarketPolicy(joined, dataclasses.replace(society, greedy=True))
    assert policy(obs, legal=legal) == policy(obs, legal=jnp.arange(4) == 1)


def test_a_replay_shows_the_windfalls():
    """The payments of every step are the changes of wealth, and the reward is that of all modules."""
    society = settings(Two()).society
    episode = society_episode(
        society, society.init(jax.random.key(0)), jax.random.key(1), Scale(1.0), gamma=0.9, steps=8
    )
    wealth, kinds = episode.opening, set()
    for t, step in enumerate(episode.steps):
        change = np.zeros(society.bidders)
        for payment in step.payments:
            kinds.add(payment.kind)
            for account, sign in ((payment.payer, -1), (payment.payee, 1)):
                if account < society.bidders:
                    change[account] += sign * payment.amount
        np.testing.assert_allclose((step.wealth - wealth)[: society.bidders], change, atol=1e-5)
        assert step.reward - 0.25 * t in (0.25, 0.5)
        wealth = step.wealth
    assert len(episode.steps) == 4 and kinds == {"price", "reward", "windfall"}


@pytest.mark.slow
def test_a_run_with_modules_of_its_own_is_watched_and_embedded(run):
    assert "Targets-v0" in str(run.watch(episodes=1, steps=8)._repr_html_())
    society = given_bids(run.config.settings.society)
    params = {"bids": jnp.arange(8.0), "actions": jnp.arange(8.0) % 4}
    rows = PLAY(society, jax.random.key(0), params, society.env.default_params, 4)
    np.testing.assert_array_equal(rows.outcome.winner, 7)
    np.testing.assert_array_equal(rows.choice, 3)


# --- what does not fit


class NoNumber(Two):
    num_modules = None


class Wrong(Two):
    def step_env(self, key, state, action, params):
        *rest, info = super().step_env(key, state, action, params)
        return (*rest, {"module_rewards": info["module_rewards"][:1]})

    step = step_env


class Unequal(Two):
    def step_env(self, key, state, action, params):
        obs, state, reward, *rest = super().step_env(key, state, action, params)
        return obs, state, 2 * reward, *rest

    step = step_env


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        (NoNumber(), {}, "env: .*num_modules"),
        (Wrong(), {}, r"env: .*module_rewards.*\[1\]"),
        (Two(), {"modules": 3}, "modules: .*2 modules, got 3"),
        ("Targets-v0", {"primitives": "learned", "modules": 5}, "modules: .*4 modules, got 5"),
        (Targets(kinds=3), {"primitives": "actions"}, "modules: .*3 modules, got 4"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(env, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        TrainConfig(env, **options)


def test_rewards_that_do_not_add_up_are_found():
    check_environment(Two(), steps=8)
    with pytest.raises(AssertionError, match="module_rewards"):
        check_environment(Unequal(), steps=8)


def test_agents_without_modules_see_everything():
    """A single agent's networks take the whole observation, and its reward is the sum."""
    agent = TrainConfig("Targets-v0", agent="monolith", **SMALL).settings.trainable
    start = jax.eval_shape(agent.init, jax.random.key(0), adapt(Targets()).default_params)
    widths = {leaf.shape[0] for leaf in jax.tree.leaves(start.learner.params) if leaf.ndim == 2}
    assert 13 in widths  # 12 entries and the bias

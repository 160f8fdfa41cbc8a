"""Primitives that learn: who acts, what a module learns from, one module as an actor-critic, and whole runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces
from thinned import thinned

import jaxmarket
from jaxmarket import TrainConfig, fit
from jaxmarket.interop.bidder import BidderEnv
from jaxmarket.interop.embedding import given_bids
from jaxmarket.interop.gymnasium_env import GymnasiumEnv, actor
from jaxmarket.interop.multi_agent import MarketEnv
from jaxmarket.learners import PPO, ActionPPO, Experience, Hyperparameters
from jaxmarket.learners.actions import ActingState, ActionState
from jaxmarket.metrics import conservation_residual
from jaxmarket.policies import BidPolicy, ValueNetwork, mlp
from jaxmarket.rollouts import fresh_rollout
from jaxmarket.settlement import lambda_returns, settle
from jaxmarket.society import MarketPolicy, reset, step
from jaxmarket.training.actions import BoxHead, Categorical, ChoiceHead
from jaxmarket.types import Rules
from jaxmarket.validation import short_repr

SMALL = {"steps": 4096, "instances": 8, "horizon": 16, "minibatch": 32}


@dataclasses.dataclass(frozen=True)
class Aim:
    """An action should equal the observed target; episodes of four steps. Rewards tell which action was taken."""

    low: float = -2.0
    high: float = 2.0
    entries: int = 2

    def reset(self, key, params):
        target = jax.random.uniform(key, (self.entries,), minval=-1, maxval=1)
        return target, (target, jnp.zeros((), jnp.int32))

    def step_env(self, key, state, action, params):
        target, t = state
        following = jax.random.uniform(key, target.shape, minval=-1, maxval=1)
        reward = 1 - jnp.square(action - target).mean()
        return following, (following, t + 1), reward, t == 3, False, {}

    step = step_env

    def action_space(self, params=None):
        return spaces.Box(self.low, self.high, (self.entries,))


class Picky:
    """Of three actions the one with the number of the step is illegal; an observation shows the step, one-hot."""

    num_actions, default_params = 3, None

    def reset_env(self, key, params):
        return jnp.eye(3)[0], jnp.int32(0)

    def step_env(self, key, state, action, params):
        return jnp.eye(3)[(state + 1) % 3], state + 1, 1.0 * (action == (state + 1) % 3), state == 5, False, {}

    reset, step = reset_env, step_env

    def legal_actions(self, state, params):
        return jnp.arange(3) != state % 3


class PickyBox(Aim):
    """Illegal actions among continuous ones."""

    def legal_actions(self, state, params):
        return jnp.array([True])


def settings(env, **options):
    return TrainConfig(env, **(SMALL | options)).settings


# --- the step


def test_the_winners_own_action_is_taken():
    """With given bids and actions: bidder 3 of 3 modules × 2 clones wins, so that its action is rewarded."""
    env = Aim()
    society = given_bids(settings(env, modules=3).society)
    actions = jnp.arange(12.0).reshape(6, 2) / 10
    params = {"bids": jnp.array([0.1, 0.2, 0.3, 0.9, 0.0, 0.5]), "actions": actions}
    state, target = reset(society, jax.random.key(0), None)
    _, row = jax.jit(step, static_argnums=0)(society, jax.random.key(1), params, state, None, None)
    assert int(row.outcome.winner) == 3
    np.testing.assert_array_equal(row.choice, actions[3])
    np.testing.assert_allclose(row.reward, 1 - jnp.square(actions[3] - target).mean(), rtol=1e-6)
    assert float(row.price) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("env", thinned(["CartPole-v1", "Pendulum-v1"], lambda env: env == "Pendulum-v1"))
def test_choices_are_those_of_the_winners_module(env):
    """Modules whose policies are far apart: each choice in a rollout is near that of the winner's module."""
    chosen = settings(env, primitives="learned", modules=3, exploration=1.0, clones=2)
    society = chosen.society
    params = society.init(jax.random.key(0))
    # The output layer is zero at first, so that its last row, the bias, decides.
    kernel = params["actions"]["params"]["Affine_0"]["kernel"]
    sides = jnp.array([[9.0, -9.0], [-9.0, 9.0], [9.0, -9.0]]) if env == "CartPole-v1" else None
    sides = jnp.array([[-6.0, 9.0], [0.0, 9.0], [6.0, 9.0]]) if sides is None else sides
    params["actions"]["params"]["Affine_0"]["kernel"] = kernel.at[:, -1].set(sides)
    rows = jax.jit(fresh_rollout, static_argnums=(0, 4))(
        society, jax.random.key(1), params, society.env.default_params, 64, Rules(exploration=1.0)
    )
    module = np.asarray(rows.outcome.winner) // 2
    assert set(module) == {0, 1, 2}
    choice = np.asarray(rows.choice).reshape(64)
    wanted = np.array([0, 1, 0])[module] if env == "CartPole-v1" else np.array([-1.99, 0, 1.99])[module]
    np.testing.assert_allclose(choice, wanted, atol=0.01 if env == "CartPole-v1" else 1.9)
    if env == "Pendulum-v1":  # the ends are distinct, and a middle lies between them
        assert choice[module == 0].max() < choice[module == 2].min()


@pytest.mark.parametrize("greedy", [False, True])
def test_illegal_actions_are_never_chosen(greedy):
    """Policies that want one action everywhere take it where it is legal; the rows say which actions are."""
    society = dataclasses.replace(settings(Picky(), primitives="learned", modules=2).society, greedy=greedy)
    params = society.init(jax.random.key(0))
    kernel = params["actions"]["params"]["Affine_0"]["kernel"]
    params["actions"]["params"]["Affine_0"]["kernel"] = kernel.at[:, -1, 1].set(20)
    rows = jax.jit(fresh_rollout, static_argnums=(0, 4))(society, jax.random.key(1), params, None, 60)
    step = np.asarray(rows.obs).reshape(60, -1).argmax(1)
    choice = np.asarray(rows.choice)
    np.testing.assert_array_equal(rows.legal, np.arange(3) != step[:, None])
    assert (choice[step != 1] == 1).all() and set(choice[step == 1]) == ({0} if greedy else {0, 2})
    obs, policy = jnp.eye(3)[1], MarketPolicy(params, dataclasses.replace(society, greedy=True))
    assert (int(policy(obs)), int(policy(obs, legal_actions=jnp.arange(3) != 1))) == (1, 0)
    with pytest.raises(ValueError, match=r"^env: .* illegal actions"):
        given_bids(society)


def test_a_distribution_of_legal_choices_is_the_renormalised_one():
    logits, legal = jnp.array([0.3, -1.0, 2.0, 9.0]), np.array([True, False, True, False])
    shares = np.where(legal, np.exp(logits), 0) / np.exp(logits)[legal].sum()
    restricted = Categorical(logits).among(jnp.asarray(legal))
    np.testing.assert_allclose(restricted.log_prob(jnp.array([0.0, 2.0])), np.log(shares[[0, 2]]), rtol=1e-5)
    np.testing.assert_allclose(restricted.entropy(), -(shares[legal] * np.log(shares[legal])).sum(), rtol=1e-5)
    assert int(restricted.mean()) == 2 and set(np.asarray(restricted.from_noise(jnp.linspace(0, 0.999, 50)))) == {0, 2}

    def gain(logits):
        among = Categorical(logits).among(jnp.asarray(legal))
        return among.log_prob(jnp.float32(0)) + among.entropy()

    slopes = np.asarray(jax.grad(gain)(logits))
    assert np.isfinite(slopes).all() and not slopes[~legal].any() and slopes[legal].all()


@pytest.mark.slow
def test_money_is_conserved_and_greedy_players_draw_nothing():
    society = settings(Aim(), auction="ccv").society
    params = society.init(jax.random.key(0))
    play = jax.jit(fresh_rollout, static_argnums=(0, 4))
    rows = play(society, jax.random.key(1), params, None, 64)
    opening = jax.tree.map(lambda x: jnp.zeros_like(x[0]), rows.accounts)
    assert float(conservation_residual(rows, opening)) < 1e-5
    greedy = dataclasses.replace(society, greedy=True)
    np.testing.assert_array_equal(play(greedy, jax.random.key(1), params, None, 64).choice, 0)  # the middle
    assert float(jnp.abs(rows.choice).max()) > 1
    assert float(jnp.abs(rows.choice).max()) <= 2


def test_literal_primitives_have_no_choices_and_the_same_draws():
    """The field of choices, and their randomness, exist only if primitives learn."""
    society = settings("Chain-v0").society
    env_params = society.env.default_params
    rows = fresh_rollout(society, jax.random.key(0), society.init(jax.random.key(1)), env_params, 4)
    assert rows.choice is None
    assert jaxmarket.society.draw(society, jax.random.key(0)).action is None


def test_agents_of_a_market_bid_and_act():
    """JaxMARL: an agent's action is its bid, then what it does if it wins."""
    market = MarketEnv(settings(Aim(), modules=2, clones=1).society, low=0.0, high=1.0)
    space = market.action_spaces["bidder_0"]
    np.testing.assert_array_equal(space.low, [0, -2, -2])
    np.testing.assert_array_equal(space.high, [1, 2, 2])
    _, state = market.reset(jax.random.key(0))
    actions = {"bidder_0": jnp.array([0.2, 1.0, 1.0]), "bidder_1": jnp.array([0.7, 0.3, -0.3])}
    _, _, rewards, _, infos = market.step_env(jax.random.key(1), state, actions)
    np.testing.assert_allclose(
        infos["reward"], [0, 1 - jnp.square(actions["bidder_1"][1:] - state.obs).mean()], rtol=1e-6
    )
    np.testing.assert_allclose(rewards["bidder_1"], infos["reward"][1] - 0.2, rtol=1e-6)


def test_one_bidder_as_an_environment_is_refused():
    society = settings(Aim()).society
    with pytest.raises(ValueError, match=r"^society: "):
        BidderEnv(society, society.init(jax.random.key(0)), 0, [0.0, 1.0])


def test_continuous_actions_in_gymnasium():
    env = GymnasiumEnv("Pendulum-v1")
    obs, _ = env.reset(seed=0)
    society = settings("Pendulum-v1").society
    act = actor(jaxmarket.MarketPolicy(society.init(jax.random.key(0)), dataclasses.replace(society, greedy=True)))
    assert env.action_space.contains(act(obs))
    assert env.step(act(obs))[1] < 0
    for wrong in (np.zeros(2), np.array([np.nan]), 0.0):
        with pytest.raises(ValueError, match=r"^action: "):
            env.step(wrong)


# --- learning


def rows_of(rng, *, modules=3, members=2, count=64, entries=2):
    """Random auctions of all modules: the experience of each, leaves [M, ...]."""
    winner = rng.integers(modules * members, size=count)
    won = winner[None] == np.arange(modules * members)[:, None]
    return Experience(
        obs=jnp.asarray(rng.normal(size=(count, 5)), jnp.float32),
        bid=jnp.zeros((modules, members, count)),
        eligible=jnp.ones((modules, members, count), bool),
        won=jnp.asarray(won.reshape(modules, members, count)),
        price=jnp.zeros((modules, members, count)),
        utility=jnp.asarray((won * rng.normal(size=count)).reshape(modules, members, count), jnp.float32),
        choice=jnp.asarray(rng.uniform(-1, 1, (count, entries)), jnp.float32),
    ), won.reshape(modules, members, count).any(1)


LEARNER = ActionPPO(BidPolicy(mlp(8), BoxHead((-1.0, -1.0), (1.0, 1.0))), minibatch=16)
HYPER = Hyperparameters().with_learner(LEARNER).as_arrays()


@jax.jit
def act_update(state, experience):
    return LEARNER.update(state, experience, HYPER, jnp.int32(0), jnp.float32(0.25))[0]


def test_a_module_learns_to_act_from_its_purchases_only():
    """Whatever others did and earned, the update is the same to the bit; its own purchases matter."""
    rng = np.random.default_rng(0)
    experience, bought = rows_of(rng)
    own = jax.tree.map(lambda x: x[1], experience.replace(obs=None, choice=None))
    own = own.replace(obs=experience.obs, choice=experience.choice)
    state = LEARNER.init(jax.random.key(0), experience.obs[0])
    after = act_update(state, own)
    mine = bought[1][:, None]
    other = own.replace(choice=jnp.where(mine, own.choice, 0.123), obs=jnp.where(mine, own.obs, 7.0))
    chex_equal(act_update(state, other), after)
    different = act_update(state, own.replace(choice=jnp.where(mine, -own.choice, own.choice)))
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (after, different)), strict=True))
    nothing = own.replace(won=own.won & False, utility=own.utility * 0)
    chex_equal(act_update(after, nothing), after)  # neither the policy nor its optimizer moves on


def test_illegal_actions_have_no_part_in_the_update():
    """The outputs for actions that were never legal keep their weights; those for the others move."""
    rng = np.random.default_rng(0)
    experience, _ = rows_of(rng)
    own = jax.tree.map(lambda x: x[1], experience.replace(obs=None, choice=None)).replace(obs=experience.obs)
    count = len(experience.obs)
    own = own.replace(
        choice=jnp.asarray(rng.integers(2, size=count), jnp.float32),
        legal=jnp.tile(jnp.array([True, True, False]), (count, 1)),
    )
    learner = ActionPPO(BidPolicy(mlp(8), ChoiceHead(3)), minibatch=16)
    state = learner.init(jax.random.key(0), own.obs[0])
    after, _ = jax.jit(learner.update)(state, own, HYPER, jnp.int32(0), jnp.float32(0.25))
    moved = np.abs(after.params["params"]["Affine_0"]["kernel"] - state.params["params"]["Affine_0"]["kernel"]).max(0)
    assert moved[2] == 0 and moved[:2].min() > 1e-4


def chex_equal(one, other):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("trace_decay", thinned([0.0, 0.9], lambda trace_decay: trace_decay > 0))
def test_utilities_of_one_module_are_generalised_advantages(trace_decay):
    """With one bidder, first price and deterministic bids: r + γ b' - b, and with λ the generalised advantage."""
    chosen = settings("CartPole-v1", primitives="learned", modules=1, clones=1, auction="bb", exploration=0.0)
    society, gamma = chosen.society, 0.97
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(3), x.shape), society.init(jax.random.key(0))
    )
    rows = jax.jit(fresh_rollout, static_argnums=(0, 4))(
        society, jax.random.key(1), params, society.env.default_params, 64
    )
    assert rows.terminated.sum() >= 2
    critic = jax.vmap(lambda obs: society.bids(params, None, obs)[0])
    value, following = critic(rows.obs), critic(rows.next_obs)
    ended = rows.terminated | (jnp.arange(64) == 63)
    returns = lambda_returns(
        rows.reward,
        discount=jnp.full(64, gamma),
        value=jnp.where(rows.terminated, 0, following),
        trace_decay=jnp.where(ended, 0, trace_decay),
    )
    utility = settle(rows, gamma, trace_decay=trace_decay or None).utility
    np.testing.assert_allclose(utility, returns - value, atol=2e-5)
    if not trace_decay:
        delta = rows.reward + gamma * jnp.where(rows.terminated, 0, following) - value
        np.testing.assert_allclose(utility, delta, atol=2e-5)


def _both_updates(policy, experience, of_a_monolith, epochs):
    """The policies after one update of `ActionPPO` and of `PPO` with a value network of zeros; they must have moved."""
    actor = ActionPPO(policy, minibatch=16, epochs=epochs)
    # A value network of zeros: the advantage of PPO is then the utility, too.
    ppo = PPO(policy, ValueNetwork(mlp(4)), minibatch=16, epochs=epochs, max_norm=actor.max_norm, entropy=0.01)
    acting = actor.init(jax.random.key(0), experience.obs[0])
    single = ppo.init(jax.random.key(0), experience.obs[0])
    single = single.replace(params=acting.params, value_params=jax.tree.map(jnp.zeros_like, single.value_params))
    zero, at = jnp.int32(0), jnp.float32(0.25)
    hyper = Hyperparameters(learning_rate=3e-4, value_learning_rate=0.0, entropy=0.01, clip=0.2)
    ours, _ = jax.jit(actor.update)(acting, experience, hyper.with_learner(actor).as_arrays(), zero, at)
    theirs, _ = jax.jit(ppo.update)(single, of_a_monolith, hyper.as_arrays(), zero, at)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), ours.params, acting.params)
    assert max(jax.tree.leaves(moved)) > 1e-4
    return ours.params, theirs.params


def chex_close(one, other):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_update_of_one_module_is_that_of_ppo(epochs):
    """With equal advantages and normalisation, the policy's update equals that of the monolith's learner."""
    rng = np.random.default_rng(1)
    count, policy = 64, BidPolicy(mlp(8), ChoiceHead(3))
    advantage = jnp.asarray(rng.normal(size=(1, count)), jnp.float32)
    choice = jnp.asarray(rng.integers(3, size=count), jnp.float32)
    everywhere = jnp.ones((1, count), bool)
    experience = Experience(
        obs=jnp.asarray(rng.normal(size=(count, 5)), jnp.float32),
        bid=choice[None],
        eligible=everywhere,
        won=everywhere,
        price=jnp.zeros((1, count)),
        utility=advantage,
        choice=choice,
    )
    chex_close(*_both_updates(policy, experience, experience, epochs))


@pytest.mark.full
def test_modules_learn_to_act():
    """Aim at a target: the best return is 4, that of the middle of the box 4 · (1 - 1/3) = 2.67."""
    config = TrainConfig(Aim(), steps=40_000, instances=32, horizon=16, action_learning_rate=3e-3, learning_rate=3e-3)
    result = fit(config, jax.random.key(0), progress=False)
    assert result.summary["return_mean"] > 3.7


# --- winners that keep the right to act


@pytest.mark.slow
@pytest.mark.parametrize("trace_decay", [None, 0.9])
def test_a_winner_keeps_the_right_to_act(trace_decay):
    """Sales at every third step of an episode; utilities of purchases are semi-MDP returns, written out in Python."""
    society = settings(Aim(), modules=3, hold=3, exploration=0.0).society
    params = society.init(jax.random.key(0))
    kernel = params["bids"]["params"]["Affine_0"]["kernel"]
    params["bids"]["params"]["Affine_0"]["kernel"] = kernel + jax.random.normal(jax.random.key(2), kernel.shape)
    rows = jax.jit(fresh_rollout, static_argnums=(0, 4))(society, jax.random.key(1), params, None, 32)
    time = np.arange(32) % 4  # of an episode of four steps: a sale at steps 0 and 3
    np.testing.assert_array_equal(rows.held, (time == 1) | (time == 2))
    winner, owner, bids = (np.asarray(x) for x in (rows.outcome.winner, rows.owner, rows.outcome.bids))
    np.testing.assert_array_equal(winner[rows.held], owner[rows.held])
    assert len(set(winner)) >= 4
    own = np.take_along_axis(bids, winner[:, None], 1)[:, 0]
    for amount in (rows.price, rows.payout):
        np.testing.assert_array_equal(amount[rows.held], own[rows.held])
    np.testing.assert_array_equal((winner // 2)[~rows.held], (bids.argmax(1) // 2)[~rows.held])
    opening = jax.tree.map(lambda x: jnp.zeros_like(x[0]), rows.accounts)
    assert float(conservation_residual(rows, opening)) < 1e-5

    reward, payout, price = (np.asarray(x, np.float64) for x in (rows.reward, rows.payout, rows.price))
    decay, gamma = trace_decay or 0, 0.9
    utility = np.asarray(settle(rows, gamma, trace_decay=trace_decay).utility)
    for t in range(0, 32, 4):
        last = reward[t + 3]
        sold = (1 - decay) * payout[t + 3] + decay * last
        purchase = reward[t] + gamma * reward[t + 1] + gamma**2 * reward[t + 2] + gamma**3 * sold
        np.testing.assert_allclose(utility[[t, t + 3]], [purchase - price[t], last - price[t + 3]], atol=1e-5)
        remaining = reward[t + 2] + gamma * sold - price[t + 2]
        np.testing.assert_allclose(utility[t + 2], remaining, atol=1e-5)


@pytest.mark.slow
def test_bids_learn_from_sales_and_actions_from_every_step():
    """A module's bids do not depend on the steps between sales, and its actions do."""
    training = settings(Aim(), modules=2, hold=2).trainable
    hyper = settings(Aim(), modules=2, hold=2).hyperparameters.as_arrays()
    rng = np.random.default_rng(0)
    experience, _ = rows_of(rng, modules=2, count=128)
    held = jnp.asarray(rng.random(128) < 0.5)
    own = jax.tree.map(lambda x: x[1], experience.replace(obs=None, choice=None))
    own = own.replace(obs=experience.obs[:, :2], choice=experience.choice, held=held)
    learner = jax.tree.map(lambda x: x[1], training.init(jax.random.key(0), None, hyper).learner)

    @jax.jit
    def learn(experience):
        return training._learn(learner, experience, hyper, jnp.int32(0), jnp.float32(0))

    after, other = learn(own), learn(own.replace(utility=jnp.where(held, 3 * own.utility, own.utility)))
    chex_equal(after.bids, other.bids)
    moved = [(a != b).any() for a, b in zip(*map(jax.tree.leaves, (after.actions, other.actions)), strict=True)]
    assert any(moved)
    chex_equal(after.bids.opt, learn(own.replace(won=own.won & ~held)).bids.opt)


# --- one torso


@pytest.mark.slow
def test_bids_and_actions_share_a_torso():
    """Both have the same torso after training, to which both learners contribute; output layers differ."""
    config = TrainConfig("CartPole-v1", primitives="learned", share_torso=True, hidden=(8,), **SMALL)
    society, training = config.settings.society, config.settings.trainable
    hyper = config.settings.hyperparameters.as_arrays()
    start = training.init(jax.random.key(0), society.env.default_params, hyper)
    params = start.learner.params
    chex_equal(params["bids"]["params"]["torso"], params["actions"]["params"]["torso"])
    chex_equal(*(society.init(jax.random.key(0))[part]["params"]["torso"] for part in ("bids", "actions")))
    after, _ = jax.jit(training.chunk)(start, society.env.default_params, hyper)
    bids, actions = (after.learner.params[part]["params"] for part in ("bids", "actions"))
    chex_equal(bids["torso"], actions["torso"])
    assert bids["Affine_0"]["kernel"].shape != actions["Affine_0"]["kernel"].shape
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), bids["torso"], params["bids"]["params"]["torso"])
    assert min(jax.tree.leaves(moved)) > 0
    frozen = start.learner.actions.opt.replace(
        movable=jax.tree.map(lambda x: x.astype(bool) & False, start.learner.actions.params)
    )
    alone = start.replace(learner=start.learner.replace(actions=start.learner.actions.replace(opt=frozen)))
    alone, _ = jax.jit(training.chunk)(alone, society.env.default_params, hyper)
    alone = alone.learner.params["bids"]["params"]["torso"]
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (alone, bids["torso"])), strict=True))


def test_torsos_add_up_the_changes_of_both_learners():
    def state(bids, actions):
        own = [
            {"params": {"torso": {"w": jnp.asarray(w)}, "Affine_0": {"w": jnp.asarray(0.0)}}} for w in (bids, actions)
        ]
        return ActingState(bids=ActionState(own[0], None), actions=ActionState(own[1], None))

    after = state(1.5, 0.75).with_one_torso(state(1.0, 1.0)).params
    assert float(after["bids"]["params"]["torso"]["w"]) == 1.25
    assert float(after["actions"]["params"]["torso"]["w"]) == 1.25


# --- a single agent with continuous actions


@pytest.mark.full
def test_a_monolith_learns_continuous_actions(tmp_path):
    """As `test_modules_learn_to_act`; its policy is loaded and takes actions with two entries."""
    config = TrainConfig(Aim(), agent="monolith", steps=40_000, instances=32, horizon=16, epochs=4)
    result = fit(config, jax.random.key(0), tmp_path / "run", progress=False)
    assert result.summary["return_mean"] > 3.7
    policy = jaxmarket.load(tmp_path / "run", objects={"env": config.env})
    obs = jnp.array([0.3, -0.4])
    np.testing.assert_allclose(policy(obs), obs, atol=0.3)
    assert policy(obs).dtype == jnp.float32


@pytest.mark.slow
def test_densities_of_actions_with_several_entries_are_those_of_ppo():
    """The update of a monolith with two-entry actions equals the one written out with one module's action learner."""
    rng = np.random.default_rng(1)
    count, policy = 64, BidPolicy(mlp(8), BoxHead((-1.0, -1.0), (1.0, 1.0)))
    experience, _ = rows_of(rng, modules=1, members=1, count=count)
    everywhere = jnp.ones((1, count), bool)
    utility = jnp.asarray(rng.normal(size=(1, count)), jnp.float32)
    common = {"eligible": everywhere, "won": everywhere, "price": jnp.zeros((1, count)), "utility": utility}
    one = experience.replace(bid=experience.bid[0], **common)
    other = one.replace(bid=experience.choice.T[None], choice=None)
    chex_close(*_both_updates(policy, one, other, epochs=2))


# --- runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned") / "run"
    config = TrainConfig(Aim(), seeds=2, log_every=8, **SMALL)
    return fit(config, jax.random.key(0), folder, progress=False), folder, config


@pytest.mark.slow
def test_a_run_is_saved_loaded_continued_and_compared(run, tmp_path):
    result, folder, config = run
    policy = jaxmarket.load(folder, objects={"env": config.env})
    obs = jnp.array([0.3, -0.4])
    assert policy(obs).shape == (2,)
    np.testing.assert_array_equal(policy(obs), jaxmarket.as_policy(result)(obs))
    further = fit(config, jax.random.key(1), tmp_path / "further", start=folder, freeze=["actions/*"], progress=False)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), further.networks, result.networks)
    assert max(jax.tree.leaves(moved["actions"])) == 0
    assert max(jax.tree.leaves(moved["policy"])) > 0
    assert "3" in str(result.config.settings.values["modules"])


@pytest.mark.full
def test_a_run_that_was_cut_short_ends_with_the_same_bits(run, tmp_path):
    result, _, config = run
    stopped = tmp_path / "stopped"

    def stop(record):
        if record.chunk == 2 and not record.earlier:
            raise KeyboardInterrupt

    fit(config, jax.random.key(0), stopped, loggers=[stop], checkpoint_every=1, progress=False)
    again = fit(config, jax.random.key(0), stopped, resume=True, progress=False)
    assert again.summary["params_sha256"] == result.summary["params_sha256"]


@pytest.mark.slow
def test_a_run_can_be_watched(run):
    result, _, _ = run
    page = result.watch(episodes=1, steps=8)
    assert "module 0 #1" in str(page._repr_html_())


@pytest.mark.parametrize(
    ("env", "options", "field"),
    [
        (Aim(low=-np.inf), {}, "env"),
        (Aim(low=3.0), {}, "env"),
        (Aim(low=np.nan), {}, "env"),
        (Aim(), {"primitives": "actions"}, "env"),
        (Aim(), {"agent": "monolith", "learner": "valuation"}, "learner"),
        (Aim(), {"agent": "monolith", "modules": 1}, "modules"),
        (Aim(), {"agent": "population"}, "env"),
        (Aim(), {"agent": "wide"}, "env"),
        ("Chain-v0", {"modules": 3}, "modules"),
        ("Chain-v0", {"hold": 3}, "hold"),
        ("Chain-v0", {"share_torso": True}, "share_torso"),
        (Aim(), {"hold": 0}, "hold"),
        (Aim(), {"share_torso": 2}, "share_torso"),
        ("Chain-v0", {"action_entropy": 0.1}, "action_entropy"),
        ("Chain-v0", {"primitives": "learnt"}, "primitives"),
        ("Chain-v0", {"primitives": "learned", "modules": 0}, "modules"),
        ("Chain-v0", {"primitives": "learned", "action_epochs": 0}, "action_epochs"),
        ("Chain-v0", {"primitives": "learned", "action_learning_rate": -1.0}, "action_learning_rate"),
        ("Chain-v0", {"primitives": "learned", "agent": "monolith"}, "primitives"),
        (PickyBox(), {}, "env"),
    ],
    ids=short_repr,
)
def test_what_does_not_fit_is_refused_by_name(env, options, field):
    with pytest.raises(ValueError, match=f"^{field}: "):
        TrainConfig(env, **options)

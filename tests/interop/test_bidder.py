"""One strategic bidder: its money against the books, its exact best reply against other code, and what PPO finds."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmarket
from jaxmarket import MECHANISMS, Society
from jaxmarket.environments import Bandit, Chain, FiniteMDP, Memory, adapt, garnet
from jaxmarket.experiments import Scope, best_reply
from jaxmarket.experiments.best_reply import EXPERIMENT, Case
from jaxmarket.experiments.experiment import report
from jaxmarket.experiments.results import Results
from jaxmarket.interop.bidder import BidderEnv, Exact, truthful
from jaxmarket.interop.deviations import Seat
from jaxmarket.policies import UNITS, BidPolicy, KumaraswamyHead, ValueHead, linear
from jaxmarket.runs import estimates
from jaxmarket.testing import check_environment

LEVELS = (0.0, 0.5, 1.0, 5.0)
GARNET = garnet(3, 3, 2, 0.9, 2)
SHORT = FiniteMDP(GARNET.transitions, GARNET.rewards, GARNET.gamma, GARNET.start, horizon=8)


def seat(mdp, auction, clones, primitive, levels=LEVELS, time_limits: Any = "terminal"):
    return BidderEnv(*truthful(mdp, MECHANISMS[auction], clones), primitive * clones, levels, time_limits=time_limits)


# --- the books


def sampling():
    """A society over Chain with random networks and sampled bids."""
    policy = BidPolicy(linear(4), KumaraswamyHead(0, 2))
    society = Society(adapt(Chain()), policy, MECHANISMS["vickrey"], clones=2, share=False)
    params = society.init(jax.random.key(5))
    noise = iter(jax.random.split(jax.random.key(6), 99))
    return society, jax.tree.map(lambda x: x + jax.random.normal(next(noise), x.shape), params)


@pytest.mark.parametrize("auction", ["ccv", pytest.param("sampling", marks=pytest.mark.slow)])
def test_cash_flows_equal_a_society_with_the_same_bids(auction):
    """Winners, prices, payouts, states: as in `jaxmarket.step`; the return is the change of wealth, whatever is bid."""
    society, params = sampling() if auction == "sampling" else truthful(SHORT, MECHANISMS[auction], 2)
    me, levels = 2, (0.0, 0.7, 1.2, 3.0, 9.0)
    env = BidderEnv(society, params, me, levels)
    replay = dataclasses.replace(society, policy=BidPolicy(linear(), ValueHead()), share=False, greedy=True)
    nothing = blank(replay)
    step_env = jax.jit(env.step_env)

    @jax.jit
    def step(key, bids, state):
        # Every bidder's bid in every state is the location of its table.
        quoted = {**nothing, UNITS: {**nothing[UNITS], "location": bids}}
        return jaxmarket.step(replay, key, quoted, state, society.env.default_params)

    rng, won = np.random.default_rng(0), []
    for episode in range(3):
        key = jax.random.key(episode)
        obs, mine = env.reset_env(key, env.default_params)
        theirs, first = jaxmarket.reset(replay, key, society.env.default_params)
        np.testing.assert_array_equal(obs, [*first, 0])
        total, owns = 0.0, False
        for t in range(25):
            action = rng.integers(len(levels))
            key = jax.random.fold_in(jax.random.key(100 + episode), t)
            obs, mine, money, terminated, info = step_env(key, mine, action, env.default_params)
            total += float(money)
            outcome = info["outcome"]
            assert float(outcome.bids[me]) == pytest.approx(levels[action])
            before, (theirs, row) = theirs, step(key, outcome.bids, theirs)
            assert int(outcome.winner) == int(row.outcome.winner)
            assert float(info["price"]) == float(row.price) and float(info["payout"]) == float(row.payout)
            assert float(money) == pytest.approx(float(row.accounts.wealth[me] - before.accounts.wealth[me]), abs=1e-5)
            won_now = bool(row.outcome.winner == me)
            by_hand = owns * float(row.payout) + won_now * (float(row.reward) - float(row.price))
            assert float(money) == pytest.approx(by_hand, abs=1e-5)
            owns = won_now
            np.testing.assert_array_equal(obs, [*row.next_obs, owns])
            assert bool(terminated) == bool(row.terminated)
            assert bool(env.is_truncated(mine, env.default_params)) == bool(row.truncated)
            won.append(owns)
            if bool(row.done):
                break
        assert total == pytest.approx(float(theirs.accounts.wealth[me]), abs=1e-4)
    assert 0 < sum(won) < len(won)


@pytest.mark.slow
def test_any_bid_may_be_offered_and_truth_is_the_societys():
    env = seat(Chain(), "ccv", 2, 1)
    params, offer = env.default_params, jax.jit(env.offer)
    _, state = env.reset_env(jax.random.key(0), params)
    assert float(env.truth(state.obs, params)) == pytest.approx(0.8 * 0.99**4)
    _, state, money, _, info = offer(jax.random.key(1), state, jnp.asarray(0.77), params)
    assert int(info["outcome"].winner) == 2 and float(money) == pytest.approx(-0.8 * 0.99**4)
    # Its twin is cheaper: it sells at the second price, and the twin goes on to state 2.
    _, state, money, _, info = offer(jax.random.key(2), state, jnp.asarray(-3.0), params)
    assert int(info["outcome"].winner) == 3 and int(state.owner) == 3 and int(state.env_state.index) == 2
    assert float(money) == pytest.approx(float(env.society.bids(params.others, None, jnp.eye(6)[1])[0]), abs=1e-6)


# --- the contract of an environment


@pytest.mark.slow
@pytest.mark.parametrize("time_limits", ["bootstrap", "terminal"])
def test_it_is_an_environment(time_limits):
    env = seat(Chain(), "vickrey", 2, 0, time_limits=time_limits)
    check_environment(env)
    space = env.observation_space()
    obs, _ = env.reset(jax.random.key(0))
    assert obs.shape == space.shape == (6 + 1 + (time_limits == "terminal"),)
    assert env.action_space().n == env.num_actions == 4 and env.gamma == 0.99
    assert env.name == "bidder 0 of Chain-v0 (vickrey)"


@pytest.mark.parametrize("time_limits", [pytest.param("bootstrap", marks=pytest.mark.slow), "terminal"])
def test_terminal_time_limits(time_limits):
    """A bidder that always moves left owns the state at the time limit, and receives no payout for it."""
    env = seat(Chain(), "vickrey", 2, 0, time_limits=time_limits)

    @jax.jit
    def play(key):
        def step(carry, key):
            obs, state = carry
            obs, state, money, terminated, truncated, info = env.step(key, state, 3)
            return (obs, state), (money, terminated, truncated, info["final_observation"], obs)

        return jax.lax.scan(step, env.reset(key), jax.random.split(key, 21))[1]

    money, terminated, truncated, final, obs = play(jax.random.key(1))
    closes = time_limits == "terminal"
    np.testing.assert_array_equal(terminated, (np.arange(21) == 19) & closes)
    np.testing.assert_array_equal(truncated, (np.arange(21) == 19) & (not closes))
    price = 0.8 * 0.99**4
    np.testing.assert_allclose(money, [-price, *[5 - price] * 19, -price], rtol=1e-5)
    assert final[19, 6] == 1 and obs[19, 6] == 0  # it owns the last state, and not the first one of the next episode
    if closes:
        np.testing.assert_allclose(final[:20, 7], np.arange(1, 21) / 20, rtol=1e-6)
        assert obs[19, 7] == 0


def test_equal_environments_compare_equal():
    assert seat(Chain(), "ccv", 2, 1) == seat(Chain(), "ccv", 2, 1)
    assert hash(seat(Chain(), "ccv", 2, 1)) == hash(seat(Chain(), "ccv", 2, 1))
    society, params = truthful(Chain())
    others = jax.tree.map(lambda x: x + 0.01, params)
    variants = [
        BidderEnv(society, params, 0, LEVELS),
        BidderEnv(society, others, 0, LEVELS),  # frozen bids are constants of a compiled program
        BidderEnv(society, params, 1, LEVELS),
        BidderEnv(society, params, 0, LEVELS[1:]),
        BidderEnv(society, params, 0, LEVELS, time_limits="terminal"),
    ]
    assert len(set(variants)) == len(variants)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bidder": 4}, "bidder: expected an integer from 0 to 3, got 4"),
        ({"bidder": True}, "bidder"),
        ({"levels": ()}, "levels: .* distinct finite bids"),
        ({"levels": (0, 0)}, "levels"),
        ({"levels": (0, float("nan"))}, "levels"),
        ({"time_limits": "none"}, "time_limits: unknown rule"),
        ({"params": {"params": jnp.zeros(3)}}, "params: expected"),
    ],
)
def test_bad_input_is_named(change, says):
    society, params = truthful(Chain())
    good = {"society": society, "params": params, "bidder": 0, "levels": LEVELS, "time_limits": "bootstrap"}
    with pytest.raises(ValueError, match=says):
        BidderEnv(**(good | change))


def blank(society):
    """Parameters with the society's shapes, without an initialisation."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape), jax.eval_shape(society.init, jax.random.key(0)))


def test_unsolvable_or_unlimited_environments_are_refused():
    bits = Society(adapt(Memory(Chain())), BidPolicy(linear(), ValueHead()), greedy=True)
    with pytest.raises(ValueError, match="env: expected a FiniteMDP"):
        Exact(BidderEnv(bits, blank(bits), 0, LEVELS))
    open_end = Exact(seat(Chain(), "ccv", 2, 0, time_limits="bootstrap"))
    with pytest.raises(ValueError, match=r"gamma: .* got 1"):
        open_end.value(open_end.truth, 1.0)
    with pytest.raises(ValueError, match="bids: expected shape"):
        open_end.value(np.zeros((2, 6, 2)))
    with pytest.raises(ValueError, match="bids: expected finite numbers of shape"):
        truthful(Chain(), bids=np.zeros((2, 2)))
    untimed = Society(adapt(Untimed(**_untimed())), BidPolicy(linear(), ValueHead()), greedy=True)
    with pytest.raises(ValueError, match="time_limits: terminal needs"):
        BidderEnv(untimed, blank(untimed), 0, LEVELS, time_limits="terminal")


class Untimed(SimpleNamespace):
    __hash__ = object.__hash__


def _untimed():
    def step(key, state, action, params):
        return jnp.zeros(1), state, jnp.zeros(()), jnp.zeros((), bool), {}

    return {"num_actions": 2, "reset": lambda key, params: (jnp.zeros(1), jnp.zeros(())), "step": step}


# --- the exact best reply


def test_truthful_societies_bid_q():
    exact = Exact(seat(GARNET, "ccv", 2, 1))
    np.testing.assert_allclose(exact.others, np.repeat(GARNET.optimal_q(), 2, axis=1), rtol=1e-6)
    quoted = Exact(BidderEnv(*truthful(GARNET, bids=np.arange(6).reshape(3, 2)), 0, LEVELS))
    np.testing.assert_array_equal(quoted.others, [[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]])


@pytest.mark.parametrize(
    ("auction", "clones", "closes"), [("bb", 1, True), ("vickrey", 2, True), ("ccv", 1, False), ("env", 2, False)]
)
def test_against_the_solver_of_the_truthfulness_experiment(auction, clones, closes):
    mdp = SHORT
    levels = tuple(np.linspace(0, 9, 7))
    env = seat(mdp, auction, clones, 1, levels, "terminal" if closes else "bootstrap")
    exact, other = Exact(env), Seat(mdp, MECHANISMS[auction], clones, 1, mdp.horizon if closes else None)
    strategy = np.random.default_rng(0).uniform(0, 9, (3, 2))
    bids = np.broadcast_to(strategy, exact.truth.shape)
    assert exact.gain(bids) == pytest.approx(other.gain(strategy), rel=1e-4, abs=1e-4)
    assert exact.value(exact.truth) == pytest.approx(other.value(other.truth[..., None]), rel=1e-4, abs=1e-4)
    every = np.broadcast_to(np.array(levels), (3, 2, 7))
    assert exact.value(exact.best()) == pytest.approx(other.value(every), rel=1e-4, abs=1e-4)


SOLVED = Exact(seat(SHORT, "vickrey", 2, 1))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.9, 1.0, 0.3]))
def test_no_strategy_on_the_grid_beats_the_best(seed, gamma):
    rng = np.random.default_rng(seed)
    best = SOLVED.best(gamma)
    mutant = np.where(rng.random(best.shape) < 0.05, rng.choice(LEVELS, best.shape), best)
    assert SOLVED.value(mutant, gamma) <= SOLVED.value(best, gamma) + 1e-3


def test_the_exact_value_is_what_is_earned_on_average():
    """Simulated returns of time-dependent strategies with ties, with and without discounting."""
    env = seat(SHORT, "vickrey", 2, 1)
    exact = Exact(env)
    rng = np.random.default_rng(1)
    bids = np.where(rng.random(exact.truth.shape) < 0.4, exact.truth, rng.uniform(0, 9, exact.truth.shape))
    table = jnp.asarray(bids, jnp.float32)

    @jax.jit
    @jax.vmap
    def play(key):
        def step(state, key):
            bid = table[state.elapsed.astype(int), state.env_state.index, (state.owner == 2).astype(int)]
            _, state, money, *_ = env.offer(key, state, bid, env.default_params)
            return state, money

        key_reset, key = jax.random.split(key)
        return jax.lax.scan(step, env.reset_env(key_reset, env.default_params)[1], jax.random.split(key, 8))[1]

    money = np.asarray(play(jax.random.split(jax.random.key(0), 4000)), float)
    for gamma in (0.9, 1.0):
        earned = money @ gamma ** np.arange(8)
        assert abs(earned.mean() - exact.value(bids, gamma)) < 4 * earned.std() / np.sqrt(len(earned))


def test_one_auction_by_hand():
    """Values .8, .6: under first price .62 is the best bid and gains .18; with second prices or clones none gains."""
    levels = tuple(round(0.02 * i, 2) for i in range(51))
    for auction in ("ccv", "bb"):
        for clones in (1, 2):
            exact = Exact(seat(Bandit(), auction, clones, 3, levels))
            best = exact.best()
            shades = (auction, clones) == ("bb", 1)
            assert best[0, 0, 0] == (0.62 if shades else 0.8)
            assert exact.gain(best) == pytest.approx(0.18 if shades else 0, abs=1e-6)
            assert exact.value(exact.truth) == pytest.approx(0.2 if clones == 1 and auction != "bb" else 0, abs=1e-6)
    # At the rival's own bid the tie is won half the time.
    assert Exact(seat(Bandit(), "bb", 1, 3)).value(np.full((1, 1, 2), 0.6)) == pytest.approx(0.1)


def test_whole_episodes_on_chain():
    """papers.md: nothing under ccv and bb; under vickrey always 1 gains .83, a shill bid of 5 for one's own 16.43."""
    for auction in ("ccv", "bb"):
        for primitive in (0, 1):
            exact = Exact(seat(Chain(), auction, 2, primitive))
            assert exact.gain(exact.best()) < 1e-5
    exact = Exact(seat(Chain(), "vickrey", 2, 1))
    assert exact.gain(np.ones_like(exact.truth)) == pytest.approx(
        sum(0.99**t * (0.99 - 0.8 * 0.99 ** (4 - t)) for t in range(4)), abs=1e-4
    )
    assert exact.gain(exact.best()) == pytest.approx(16.43, abs=0.01)
    assert (exact.best()[np.arange(1, 5), np.arange(1, 5), 1] == 5).all()
    # For ever to the left: the first state is sold to itself at 5, 19 times, and bought at the right's Q*.
    left, price = Exact(seat(Chain(), "vickrey", 2, 0)), 0.8 * 0.99**4
    by_hand = sum(0.99**t * (5 * (t > 0) - price) for t in range(20))
    assert left.gain(left.best()) >= by_hand - 1e-3
    assert left.gain(np.full_like(left.truth, 5.0)) == pytest.approx(by_hand, abs=1e-3)


def test_best_prefers_the_bid_closest_to_truth():
    assert Exact(seat(Bandit(), "ccv", 1, 3, (0.3, 0.7, 0.85, 2.0))).best()[0, 0, 0] == 0.85
    assert Exact(seat(Bandit(), "ccv", 1, 3, (0.3, 0.75, 0.9, 2.0))).best()[0, 0, 0] == 0.75


# --- learning


def untrained(case, seeds=2, **settings):
    """A run without training: random networks."""
    config = best_reply.config(case, **settings)
    keys, observation = jax.random.split(jax.random.key(0), seeds), best_reply.environment(case).observation_space()
    params = jax.vmap(lambda key: config.settings.trainable.learner.init(key, jnp.zeros(observation.shape)))(keys)
    return SimpleNamespace(config=config, params=params.params, summary={"return_seeds": [0.0] * seeds})


@pytest.mark.slow
def test_a_comparison_holds_what_greedy_networks_bid():
    case = Case("Chain", "vickrey", "cloned", 1)
    run: Any = untrained(case, steps=4096, hidden=(8,))
    noise = iter(jax.random.split(jax.random.key(1), 99))
    run.params = jax.tree.map(lambda x: x + jax.random.normal(next(noise), x.shape), run.params)
    found = best_reply.compare(case, None, run)
    agent = run.config.settings.trainable.player(greedy=True)
    for hour, state, owns in ((0, 0, 0), (7, 2, 1), (19, 4, 0)):
        view = jnp.array([*np.eye(6)[state], owns, hour / 20], jnp.float32)
        for seed in range(2):
            one = jax.tree.map(lambda x, seed=seed: x[seed], run.params)
            wanted = best_reply.environment(case).levels[int(agent.choose(one, None, view))]
            assert found["learned"][seed, hour, state, owns] == wanted
    assert len(np.unique(found["learned"])) > 3
    assert (found["gains"] <= found["best gain"] + 1e-4).all() and found["best gain"] > 16


def test_sales_are_the_states_that_a_strategy_owns():
    """The clone of "right" on Chain buys each state with a bid above its rivals', and sells it in the next auction."""
    exact = Exact(seat(Chain(), "vickrey", 2, 1))
    assert exact.sales(exact.best()) == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert exact.sales(np.zeros_like(exact.truth)) == []
    other = exact.truth.copy()
    other[:, 2:] = 0  # it loses the third auction
    assert exact.sales(other) == [(1, 1), (2, 2)]


def test_means_and_their_interval():
    estimate = estimates.mean([1.0, 2.0, 3.0, 4.0])
    assert estimate.value == 2.5
    assert estimate.high - 2.5 == pytest.approx(3.182446 * np.std([1, 2, 3, 4], ddof=1) / 2)
    assert estimates.mean([2.0, 2.0]).low == 2


def made_up(gains=0.0, best=0.0, bids=0.7):
    """The comparison of two learners with these gains and first bids."""
    learned = np.broadcast_to(np.asarray(bids, float).reshape(-1, 1, 1, 1), (2, 20, 6, 2))
    numbers = {"best gain": best, "wealth": 0.0, "best wealth gain": 0.0}
    return {name: np.array(value) for name, value in numbers.items()} | {
        "gains": np.broadcast_to(gains, 2),
        "wealth gains": np.zeros(2),
        "learned": learned,
        "best": learned[0],
        "truth": learned[0],
        "others": np.full((6, 10), 0.6),
        "sales": np.array([[5.0, 0.8]]),
    }


def verdicts(**changed):
    """The standing of each claim, for learners that find every best reply, but for other ones by name of the case."""
    found = {}
    for case in best_reply.cases(Scope(2)):
        pays = case.auction == "vickrey" or case.name in ("Bandit-bb-solitary-3", "Duality-ccv-solitary-0")
        found[case.compared] = made_up(16.0, 16.0) if pays else made_up()
        if case.name in changed:
            found[case.compared] = made_up(**changed[case.name])
        found[case.name] = SimpleNamespace(summary={"return_seeds": [0.0] * 2})
    results = Results(Scope(2), found, {}, EXPERIMENT.measures)
    return results, {claim.text: claim.verdict(results).standing for claim in EXPERIMENT.claimed(Scope(2))}


def test_the_claims_about_best_replies():
    _, found = verdicts()
    assert list(found.values()) == ["confirmed"] * 9

    def denied(words, **changed):
        (standing,) = [standing for claim, standing in verdicts(**changed)[1].items() if words in claim]
        return standing == "not confirmed"

    assert denied("second-price", **{"Bandit-ccv-solitary-2": {"best": 0.01}})
    assert denied("with a clone", **{"Bandit-bb-cloned-3": {"best": 0.01}})
    assert denied("no gain under ccv", **{"Chain-ccv-cloned-0": {"best": 0.01}})
    assert denied("no gain under bb", **{"Chain-bb-cloned-1": {"best": 0.01}})
    for bids in (0.6, 0.8, (0.6, 0.8)):  # the next bid, the truth, both
        assert denied("shades towards", **{"Bandit-bb-solitary-3": {"bids": bids}})
    assert not denied("shades towards", **{"Bandit-bb-solitary-3": {"bids": 0.62}})
    assert denied("gains by shading", **{"Bandit-bb-solitary-3": {"gains": (0.18, 0.0)}})
    for process in ("Chain", "Duality"):
        name = f"{process}-vickrey-cloned-1"
        assert denied(f"on {process} the learner", **{name: {"gains": (16.0, 15.0), "best": 16.0}})
        assert not denied(f"on {process} the learner", **{name: {"gains": (16.0, 15.3), "best": 16.0}})
        assert denied(f"on {process} the learner", **{name: {"gains": 0.0, "best": 0.0}})
    assert denied("without clones", **{"Duality-ccv-solitary-0": {"gains": 0.0, "best": 7.0}})


@pytest.mark.slow
def test_the_report_of_best_replies(tmp_path):
    results, _ = verdicts()
    found = report(EXPERIMENT, results, tmp_path)
    assert {row["process"] for row in found.tables[0].rows} == {"Bandit", "Chain", "Duality"}
    assert {"gains.csv", "one_auction.csv", "wealth.csv", "gains.png", "bids.png"} <= set(found.written)


@pytest.mark.full
def test_ppo_finds_the_shill_bid_and_finds_nothing_under_ccv():
    """Two seeds each, the experiment's own settings, shorter."""
    for auction, gain in (("vickrey", 16.43), ("ccv", 0.0)):
        case = Case("Chain", auction, "cloned", 1)
        run: Any = jaxmarket.fit(best_reply.config(case, steps=40_000, seeds=2), jax.random.key(0), progress=False)
        found = best_reply.compare(case, None, run)
        np.testing.assert_allclose(found["gains"], gain, atol=0.5 if gain else 1e-3)
        # The books agree: undiscounted, what the fitted agents earned in fresh episodes is what is expected of them.
        expected = found["wealth"] + found["wealth gains"]
        np.testing.assert_allclose(run.summary["return_seeds"], expected, atol=0.05)

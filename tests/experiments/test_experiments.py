"""The reproductions: their numbers by hand, their files, what they skip and what they refuse."""

import concurrent.futures
import dataclasses
import itertools
import json
import types
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from jaxmarket import MECHANISMS, TrainConfig, experiments, train
from jaxmarket.cli import main
from jaxmarket.environments import Bandit, Chain, Duality, garnet
from jaxmarket.experiments import (
    Report,
    ResultTable,
    Scope,
    Verdict,
    interquartile_mean,
    numerical,
    redundancy,
    truthfulness,
)
from jaxmarket.experiments.experiment import table_of
from jaxmarket.experiments.results import Results
from jaxmarket.interop import deviations
from jaxmarket.interop.bidder import truthful
from jaxmarket.interop.deviations import Seat
from jaxmarket.runs import fitting, ledgers, removal, run_folder, sweeps
from jaxmarket.runs.estimates import by_chance
from jaxmarket.runs.sweeps import NamedConfig


def made_up(experiment, found, scope=None, failed=()):
    """Results with these runs or arrays by condition."""
    return Results(scope or Scope(4), found, dict.fromkeys(failed, ValueError("a reason")), experiment.measures)


def standing(experiment, results):
    """The outcome of each claim by its text."""
    verdicts = [claim.verdict(results) for claim in experiment.claimed(results.scope)]
    assert len({verdict.claim for verdict in verdicts}) == len(verdicts)
    return {verdict.claim: verdict for verdict in verdicts}


def the(verdicts, *words):
    """The one verdict whose claim has all of these words."""
    (found,) = [verdict for claim, verdict in verdicts.items() if all(word in claim for word in words)]
    return found


# --- truthfulness


def test_one_auction_by_hand():
    """Second prices: nothing to gain. First price: shade to 3/4 against three uniform bids, and gain 27/256."""
    assert deviations.one_shot_gain(MECHANISMS["vickrey"]) == (0, 0)
    assert deviations.one_shot_gain(MECHANISMS["ccv"]) == (0, 0)
    largest, expected = deviations.one_shot_gain(MECHANISMS["bb"], 201)
    assert largest > 0.98
    assert expected == pytest.approx(27 / 256, abs=2e-3)


def test_the_largest_gain_of_any_bidder():
    """One auction: the bidder worth .8 shades to just above .6 under first prices; the grid has steps of .005."""
    gains = {name: deviations.episode_gain(Bandit(), MECHANISMS[name], 1, horizon=1) for name in ("bb", "ccv")}
    assert gains == {"bb": pytest.approx(0.195), "ccv": 0}
    assert deviations.episode_gain(Bandit(), MECHANISMS["bb"], 2, horizon=1) == 0


def test_bids_range_over_whole_numbers_around_values():
    assert deviations.bid_range(Chain()) == deviations.bid_range(Bandit()) == (0, 1)
    assert deviations.bid_range(Duality()) == (-100, 50)


def strategy(seat, own=None, other=None):
    """Bid ``own`` for states one owns and ``other`` for the rest; truth where None."""
    bids = seat.truth.copy()
    for column, bid in enumerate((other, own)):
        if bid is not None:
            bids[:, column] = bid
    return bids


@pytest.mark.parametrize("mechanism", ["ccv", "bb"])
def test_on_chain_nothing_is_gained_over_an_episode(mechanism):
    for primitive in (0, 1):
        seat = Seat(Chain(), MECHANISMS[mechanism], 2, primitive, horizon=20)
        assert seat.best_gain(0, 1) < 1e-9
        assert seat.gain(strategy(seat, own=1, other=1)) < 1e-9
        assert seat.gain(strategy(seat, own=5)) < 1e-9


def test_on_chain_vickrey_pays_for_overbidding():
    """papers.md: always bidding 1 gains .83; an owner that bids 5 for its own state, and buys the first one, 16.4."""
    seat = Seat(Chain(), MECHANISMS["vickrey"], 2, 1, horizon=20)
    by_hand = sum(0.99**t * (0.99 - 0.8 * 0.99 ** (4 - t)) for t in range(4))
    assert seat.gain(strategy(seat, own=1, other=1)) == pytest.approx(by_hand) == pytest.approx(0.83, abs=0.005)
    assert seat.gain(strategy(seat, own=5, other=1)) == pytest.approx(16.43, abs=0.01)
    assert seat.gain(seat.truth) == 0
    left = Seat(Chain(), MECHANISMS["vickrey"], 2, 0, horizon=20)
    # The agent that goes left never ends the episode: 19 payouts of 1 for the first state, the 20th is never paid.
    loop = [0.99 * (t < 19) - 0.8 * 0.99**4 for t in range(20)]
    assert left.best_gain(0, 1) == pytest.approx(sum(0.99**t * u for t, u in enumerate(loop)), rel=0.2)
    assert left.best_gain(0, 1) > 3


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("clones", [1, 2])
def test_a_seat_is_worth_what_a_plain_simulation_earns(mechanism, clones):
    """The exact value of a random strategy against the mean of simulated episodes, in plain Python."""
    mdp, me, horizon = garnet(3, 3, 2, 0.9, 2), 1, 8
    rng = np.random.default_rng(0)
    bids = rng.uniform(0, 6, (3, 2))
    seat = Seat(mdp, MECHANISMS[mechanism], clones, me, horizon)
    q = mdp.optimal_q()

    def episode():
        state, owner, total = rng.choice(3, p=mdp.start), None, 0.0
        for t in range(horizon):
            offers = {(p, c): q[state, p] for p in range(2) for c in range(clones)}
            offers[me, 0] = bids[state, int(owner == (me, 0))]
            top = max(offers.values())
            winner = [b for b, offer in offers.items() if offer == top]
            winner = winner[rng.integers(len(winner))]
            second = max(offer for b, offer in offers.items() if b != winner)
            price = {"bb": top, "vickrey": second, "ccv": second, "env": 0.0}[mechanism]
            payout = {"bb": top, "vickrey": top, "ccv": second, "env": 0.0}[mechanism]
            total += mdp.gamma**t * (payout * (owner == (me, 0)))
            if winner == (me, 0):
                total += mdp.gamma**t * (mdp.rewards[state, me] - price)
            state, owner = rng.choice(3, p=mdp.transitions[state, winner[0]]), winner
        return total

    earned = np.array([episode() for _ in range(1500)])
    exact = seat.value(bids[..., None])
    assert abs(earned.mean() - exact) < 5 * earned.std() / np.sqrt(len(earned)) + 1e-9


# --- redundancy


def test_who_is_removed():
    society = TrainConfig("Chain-v0").settings.society
    cases = removal.absences(society, np.array([[0.2, 0.9], [0.8, 0.1]]))
    assert cases["none"].all()
    np.testing.assert_array_equal(cases["best bidder"][:, 0], [[1, 1, 0, 1], [0, 1, 1, 1]])
    np.testing.assert_array_equal(cases["best primitive"][:, 0], [[1, 1, 0, 0], [0, 0, 1, 1]])
    assert cases["any other"].shape == (2, 3, 4)
    assert (cases["any other"].sum(-1) == 3).all()
    np.testing.assert_array_equal(cases["any other"].sum(1), [[2, 2, 3, 2], [3, 2, 2, 2]])


@pytest.mark.slow
def test_without_clones_the_best_bidder_is_all_of_the_best_primitive():
    config = TrainConfig(
        "Bandit-v0", learner="valuation", clones=1, seeds=3, steps=4096, instances=8, horizon=16, minibatch=32
    )
    shares = []
    keys = jax.random.split(jax.random.key(0), 3)
    found = removal.returns_after_removal(config, 1, 0, keys, show=lambda share, note: shares.append(share))
    assert found.keys() == {f"{case}, {when}" for case in removal.CASES for when in removal.WHEN}
    assert shares[-1] == 1
    for when in removal.WHEN:
        np.testing.assert_array_equal(found[f"best bidder, {when}"], found[f"best primitive, {when}"])
        assert (found[f"best bidder, {when}"] < found[f"none, {when}"]).all()  # which are .8 on every seed


# --- the numerical experiments


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two small conditions on the bandit, trained once."""
    folder = tmp_path_factory.mktemp("numerical")
    config = TrainConfig(
        "Bandit-v0", learner="valuation", seeds=2, steps=4096, instances=8, horizon=16, minibatch=32, log_every=4
    )
    wanted = [
        NamedConfig("small", config),
        NamedConfig("longer", dataclasses.replace(config, steps=8192)),
    ]
    return folder, wanted, sweeps.train(wanted, folder, progress=False)


@pytest.mark.slow
def test_finished_conditions_are_read_back_and_not_trained_again(finished, monkeypatch):
    folder, wanted, first = finished
    monkeypatch.setattr(fitting, "fit", lambda *_, **__: pytest.fail("trained again"))
    again = sweeps.train(wanted, folder, progress=False)
    for name, run in first.items():
        assert again[name].summary == run.summary
        np.testing.assert_array_equal(again[name].bids, run.bids)


@pytest.mark.slow
def test_equal_programs_of_different_length_compile_once_and_keep_their_own_schedules(finished):
    """The learning rate falls over the run: the compiled chunk must not remember the length of the first one."""
    _, wanted, found = finished
    assert len({c.config.settings.trainable for c in wanted}) == 1
    keys = jax.random.split(jax.random.key(0), 2)
    for condition in wanted:
        state, _ = jax.jit(jax.vmap(lambda key, c=condition: train(c.config, key)))(keys)
        chex.assert_trees_all_close(state.learner.params, found[condition.name].params, rtol=1e-5, atol=1e-6)


def test_another_seed_or_other_settings_are_refused(finished):
    folder, wanted, _ = finished
    with pytest.raises(ValueError, match="holds another run: key is"):
        sweeps.train(wanted, folder, seed=1, progress=False)
    other = [NamedConfig("small", dataclasses.replace(wanted[0].config, learning_rate=0.5))]
    with pytest.raises(ValueError, match="choose another folder"):
        sweeps.train(other, folder, progress=False)


def test_an_interrupted_sweep_goes_on_where_it_stopped(finished, tmp_path, monkeypatch):
    _, wanted, complete = finished
    fit = fitting.fit
    monkeypatch.setattr("os.cpu_count", lambda: 1)

    def interrupted(config, key, **rest):
        if config.settings.steps == 8192:
            raise KeyboardInterrupt
        return fit(config, key, **rest)

    monkeypatch.setattr(fitting, "fit", interrupted)
    with pytest.raises((KeyboardInterrupt, concurrent.futures.CancelledError)):
        sweeps.train(wanted, tmp_path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == [wanted[0].name]
    monkeypatch.setattr(fitting, "fit", fit)
    resumed = sweeps.train(wanted, tmp_path, progress=False)
    for name, run in complete.items():
        assert resumed[name].summary["return_seeds"] == run.summary["return_seeds"]
        np.testing.assert_array_equal(resumed[name].bids, run.bids)


def test_a_saved_run_reads_back_as_the_result_it_was(bandit_run):
    result, folder = bandit_run
    run = run_folder.read(folder)
    assert set(run.metrics) == set(result.metrics)
    for name, values in result.metrics.items():
        np.testing.assert_allclose(run.metrics[name], values, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(run.bids, result.bids, rtol=1e-6)
    np.testing.assert_array_equal(run.visited, result.visited)
    np.testing.assert_array_equal(run.q, result.q)


def test_bids_are_measured_over_visited_states_only(finished):
    _, wanted, found = finished
    run = found[wanted[1].name]
    bids, q = run.bids, run.q
    cell = "tuned-ccv-cloned"
    results = made_up(numerical.BANDIT, {cell: run}, Scope(2, quick=True))
    np.testing.assert_allclose(results.measure(cell, "winner error"), np.abs(bids[:, 0].max(-1) - 0.8))
    np.testing.assert_allclose(results.measure(cell, "every error"), np.abs(bids[:, 0] - q[0]).mean(-1))
    (row,) = table_of(numerical.BANDIT.tables[0], results).rows
    assert (row["settings"], row["auction"], row["society"]) == ("tuned", "ccv", "cloned")
    assert row["solved"] in ("0/2", "1/2", "2/2")
    assert row["greedy"].value == pytest.approx(np.mean(run.summary["return_seeds"]))
    assert row["|bid-Q*|"].value == pytest.approx(results.measure(cell, "winner error").mean())


def test_money_per_episode_from_payer_to_payee(finished):
    _, wanted, found = finished
    money = ledgers.who_paid_whom(found[wanted[1].name], jax.random.key(0))
    names = ledgers.account_names(wanted[1].config.settings.society)
    assert names[:3] == ["0a", "0b", "1a"]
    assert money.shape == (len(names),) * 2
    # One step an episode: what the environment pays is the return, what the auctioneer is paid is the price.
    assert money[names.index("environment")].sum() == pytest.approx(0.8, abs=0.2)
    assert money[:, names.index("auctioneer")].sum() == pytest.approx(
        money.sum() - money[names.index("environment")].sum()
    )


def test_minted_money_is_that_of_owners_and_of_others():
    """Truthful bidders on Chain: each sale mints the gap of the two bids; the first state is the auctioneer's."""
    society, params = truthful(Chain(), MECHANISMS["vickrey"], 1)
    run = types.SimpleNamespace(
        config=types.SimpleNamespace(
            settings=types.SimpleNamespace(society=dataclasses.replace(society, greedy=False))
        ),
        networks={"policy": jax.tree.map(lambda leaf: np.stack([leaf, leaf]), params)},
    )
    own, others = ledgers.minted_money(run, jax.random.key(0), greedy=True, steps=10, instances=2)
    gaps = np.abs(np.diff(Chain().optimal_q()[:5], axis=1))[:, 0]
    np.testing.assert_allclose(others, [gaps[0] / 5] * 2, rtol=1e-4)
    np.testing.assert_allclose(own, [gaps[1:].sum() / 5] * 2, rtol=1e-4)


def society_run(greedy=0.8, sampled=0.8, minted=0.0, bid=0.8, residual=1e-6):
    """A finished run on Chain or Duality of four seeds that always bid the same, in a single state."""

    def full(value):
        return np.broadcast_to(np.asarray(value, float), (10, 4))

    return types.SimpleNamespace(
        summary={"return_seeds": np.broadcast_to(greedy, 4).tolist()},
        metrics={
            "return_mean": full(sampled),
            "subsidy": full(minted),
            "conservation_residual": full(residual),
            "gini": full(0.5),
            "winning_bid": full(bid),
        },
        q=np.array([[0.8, 0.1]]),
        bids=np.stack([np.broadcast_to(bid, 4), np.full(4, 0.05)], -1)[:, None],
        visited=np.ones((4, 1), bool),
        config=types.SimpleNamespace(),
    )


def numerical_results(experiment=numerical.CHAIN, scope=None, failed=(), **changed):
    """Runs on Chain for which all claims hold, but for those with other numbers by name of the condition."""
    scope, chosen = scope or Scope(4), {name.replace("_", "-"): run for name, run in changed.items()}
    found = {}
    for settings, auction, society in numerical.cells(scope):
        usual = {"minted": 0.2, "greedy": 0.0, "sampled": 0.2} if auction == "vickrey" else {}
        # solitary bidders are further from Q*
        usual |= {"bid": [0.79, 0.8, 0.81, 0.8] if society == "cloned" else [0.5, 0.51, 0.5, 0.52]}
        if society == "solitary":
            usual |= {"sampled": [0.3, 0.31, 0.3, 0.31]}
        name = f"{settings}-{auction}-{society}"
        found[name] = society_run(**(usual | chosen.get(name, {})))
    return made_up(experiment, {k: v for k, v in found.items() if k not in failed}, scope, failed)


def test_the_claims_of_the_numerical_experiments():
    sound = standing(numerical.CHAIN, numerical_results())
    assert {verdict.standing for verdict in sound.values()} == {"confirmed"}
    assert len(sound) == 2 * 7 + 2  # beta has cloned ccv only
    assert the(sound, "tuned", "truthful").number == pytest.approx(0.005)
    assert the(sound, "tuned", "clones matter").kind == "separated"

    def denied(*words, **changed):
        return the(standing(numerical.CHAIN, numerical_results(**changed)), "[tuned]", *words).standing == (
            "not confirmed"
        )

    assert denied("truthful", tuned_ccv_cloned={"bid": 0.74})
    assert not denied("truthful", tuned_ccv_cloned={"bid": 0.76})
    assert denied("optimal policy", tuned_ccv_cloned={"greedy": [0.8, 0.8, 0.8, 0.7]})  # one seed
    assert not denied("optimal policy", tuned_ccv_cloned={"greedy": [0.8, 0.8, 0.8, 0.793]})
    assert denied("bb and ccv mint no", tuned_bb_solitary={"minted": [0, 0, 0, -1e-6]})
    assert denied("vickrey mints", tuned_vickrey_cloned={"minted": 0}, tuned_vickrey_solitary={"minted": 0})
    assert denied("accounted for", tuned_env_solitary={"residual": 1e-3})
    assert denied("clones matter", tuned_ccv_solitary={"bid": [0.79, 0.8, 0.81, 0.8]})
    assert denied("beats ccv", tuned_bb_cloned={"sampled": 0.82})
    assert not denied("beats ccv", tuned_bb_cloned={"sampled": 0.805})
    assert not denied("beats ccv", tuned_env_cloned={"sampled": 0.9})  # it has no auction


def test_bids_out_of_range_cannot_be_judged():
    """On Duality bids cannot reach Q*: no claim about them, and clones matter by their returns."""
    claims = standing(numerical.DUALITY, numerical_results(numerical.DUALITY))
    assert not [claim for claim in claims if "truthful" in claim or "closer to Q*" in claim]
    assert the(claims, "tuned", "clones matter", "return").standing == "confirmed"
    same = numerical_results(numerical.DUALITY, tuned_ccv_solitary={"sampled": 0.8})
    assert the(standing(numerical.DUALITY, same), "tuned", "clones matter").standing == "not confirmed"


def test_a_failed_condition_leaves_what_does_not_need_it():
    found = standing(numerical.CHAIN, numerical_results(failed=["tuned-bb-cloned"]))
    untestable = {claim for claim, verdict in found.items() if verdict.standing == "not testable"}
    assert all("[tuned]" in claim for claim in untestable)
    assert len(untestable) == 3  # what is minted by bb, what is unexplained, what beats ccv


def test_the_sweep_is_every_mechanism_cloned_and_solitary():
    scope = Scope()
    assert set(numerical.cells(scope)) == {
        (s, a, k) for s in ("published", "tuned") for a in MECHANISMS for k in ("cloned", "solitary")
    } | {("beta", "ccv", "cloned")}
    jobs = {c.name: c.job(scope, {}) for c in numerical.CHAIN.planned(scope) if not c.needs}
    wanted = {name: job.config for name, job in jobs.items()}
    assert len(wanted) == 17
    assert {config.seeds for config in wanted.values()} == {16}
    assert len({config.settings.trainable for config in wanted.values()}) == 9
    published = wanted["published-ccv-cloned"]
    assert (*(published.settings.values[name] for name in ("learning_rate", "entropy", "gamma")),) == (4e-5, 0.1, 0.99)
    assert published.settings.instances * published.settings.horizon == 4096
    full = [c for c in numerical.CHAIN.planned(Scope(full=True)) if not c.needs]
    assert {c.config.settings.updates for c in full if c.name.startswith("beta")} == {2000}
    assert len(full) == 24


def truthfulness_results(scope=None, **changed):
    """Results for which all claims hold, but for other numbers by name of the condition."""
    scope = scope or Scope(4)
    found = {
        "one auction": {name: np.array([0.0, 0.0] if name in ("vickrey", "ccv") else [0.9, 0.1]) for name in MECHANISMS}
    }
    gains = {f"{a}, {s}": np.array(3.0 * (a == "vickrey")) for a in MECHANISMS for s in ("cloned", "solitary")}
    for condition in truthfulness.EXPERIMENT.planned(scope):
        if condition.name.startswith("episode"):
            found[condition.name] = gains | {"bids up to": np.array(1.0)} | changed.get("episodes", {})
        elif condition.name.startswith("money"):
            found[condition.name] = {"own": np.array([0.3, 0.31, 0.3, 0.31]), "others": np.array([0.1, 0.1, 0.09, 0.1])}
            found[condition.name] |= changed.get("money", {})
        elif condition.name != "one auction":
            failing = "noise" in condition.name and condition.name.startswith("vickrey, noise-")
            found[condition.name] = society_run(greedy=0.0 if failing else 0.8)
            if condition.name in changed:
                found[condition.name] = society_run(greedy=changed[condition.name])
            found[condition.name].config = condition.config
    return made_up(truthfulness.EXPERIMENT, found | {"one auction": changed.get("one", found["one auction"])}, scope)


def test_the_claims_about_truthfulness():
    experiment = truthfulness.EXPERIMENT
    sound = standing(experiment, truthfulness_results())
    assert [verdict.standing for verdict in sound.values()] == ["confirmed"] * 6

    def denied(*words, **changed):
        return the(standing(experiment, truthfulness_results(**changed)), *words).standing == "not confirmed"

    assert denied("dominant", one={name: np.array([0.01, 0]) for name in MECHANISMS})
    assert denied("no deviation gains", episodes={"bb, cloned": np.array(0.01)})
    assert not denied("no deviation gains", episodes={"bb, solitary": np.array(0.01)})
    assert denied("overbidding pays", episodes={"vickrey, cloned": np.array(0.0)})
    assert denied("fails on Chain", **{"vickrey, noise-0.1": [0.8, 0.8, 0.8, 0.0]})
    assert not denied("fails on Chain", **{"vickrey, noise-0.1": [0.8, 0.0, 0.0, 0.0]})
    assert denied("because utilities", **{"vickrey, contract": [0.8, 0.8, 0.8, 0.7]})
    assert denied("because utilities", **{"vickrey, noiseless": [0.8, 0.8, 0.8, 0.7]})
    assert denied("owners", money={"others": np.array([0.15, 0.16, 0.15, 0.16])})
    rows = table_of(experiment.tables[2], truthfulness_results()).rows
    assert [row["society"] for row in rows][-3:] == ["vickrey, contract", "ccv, noise-0.1", "vickrey, noiseless"]
    assert [row["solved"] for row in rows][-3:] == ["4/4"] * 3


# --- reports


def test_interquartile_mean_by_hand_and_its_interval():
    estimate = interquartile_mean([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 100.0])
    assert estimate.value == pytest.approx(3.5)  # the middle four
    assert estimate.low < 3.5 < estimate.high < 100
    assert interquartile_mean([0.8] * 5) == experiments.Estimate(
        pytest.approx(0.8), pytest.approx(0.8), pytest.approx(0.8)
    )


def test_a_bootstrap_interval_covers():
    """Of 200 samples of a normal, about 95% have the true centre in their interval."""
    rng = np.random.default_rng(0)
    inside = sum(e.low <= 0 <= e.high for e in (interquartile_mean(rng.normal(size=24)) for _ in range(200)))
    assert 170 <= inside <= 200


def test_by_chance_is_the_upper_tail_of_a_fair_coin_without_ties():
    def after(better, worse, ties=0):
        hits = np.repeat([True, False, False], (better, worse, ties))
        return by_chance(hits, np.repeat([False, True, False], (better, worse, ties)))

    assert after(8, 0) == after(8, 0, ties=8) == "by chance: 0.4%"  # 1 / 256
    assert after(7, 1) == "by chance: 3.5%"  # (8 + 1) / 256
    assert after(1, 7) == "by chance: 99.6%"
    assert after(10, 0) == "by chance: under 0.1%"  # 1 / 1024
    assert after(0, 0, ties=4) == "by chance: 100.0%"
    for better, worse in itertools.product(range(5), range(5)):  # all outcomes of as many coins
        heads = [sum(tossed) >= better for tossed in itertools.product((0, 1), repeat=better + worse)]
        assert after(better, worse) == f"by chance: {np.mean(heads):.1%}"


def redundancy_results(returns, quick=False):
    """Eight seeds whose returns are these, by society, in every case."""
    scope, noise = Scope(8, quick=quick), 0.04 * np.linspace(-1, 1, 8)
    found = {}
    for condition in redundancy.EXPERIMENT.planned(scope):
        env, _, society = condition.name.partition(" ")
        values = returns.get(condition.name, returns.get(society, 0.8)) + noise * (1.2 if env == "Chain-v0" else 1)
        found[condition.name] = {f"{case}, {when}": values for case in removal.CASES for when in removal.WHEN}
    return made_up(redundancy.EXPERIMENT, found, scope)


def test_redundancy_is_decided_by_the_difference():
    """Intervals of both conditions overlap, and the one of the difference excludes zero."""
    returns = {"cloned": 0.70, "solitary": 0.66, "cloned, dropout": 0.70, "solitary, dropout": 0.70}
    verdicts = list(standing(redundancy.EXPERIMENT, redundancy_results(returns)).values())
    better, equal = verdicts[0], verdicts[-1]
    assert (better.standing, better.number) == ("confirmed", pytest.approx(0.04))
    assert "difference of the means 0.040 [" in better.evidence
    assert (equal.standing, equal.number) == ("not confirmed", pytest.approx(0))
    quick = list(standing(redundancy.EXPERIMENT, redundancy_results(returns, quick=True)).values())
    assert [verdict.standing for verdict in (quick[0], quick[-1])] == ["confirmed", "too short to tell"]


def test_a_cloned_society_keeps_its_return_on_every_seed_now_and_later():
    sound = redundancy_results({"cloned": 0.85})  # the lowest seed has .802, and .792 is 1% below the optimum
    found = standing(redundancy.EXPERIMENT, sound)
    assert the(found, "[Chain-v0]", "any other").standing == "confirmed"
    for when in ("at once", "trained on"):
        arrays = dict(sound["Chain-v0 cloned"])
        arrays[f"any other, {when}"] = np.array([0.8] * 7 + [0.78])
        worse = made_up(redundancy.EXPERIMENT, {**sound, "Chain-v0 cloned": arrays}, sound.scope)
        assert the(standing(redundancy.EXPERIMENT, worse), "[Chain-v0]", "any other").standing == "not confirmed"


def test_a_report_as_files_and_as_one_line(tmp_path):
    rows = [{"name": "a", "return": interquartile_mean([1.0, 2.0]), "error": None, "odd": float("nan")}]
    verdict = Verdict("it holds", "within", "not confirmed", 0.5, None, None, "half")
    report = Report({"quick": True}, [ResultTable("main", "Main", rows)], [verdict], {}, name="x")
    report = report.write(tmp_path)
    line = json.loads(report.to_json())
    assert line["table"] == [
        {"name": "a", "return": 1.5, "return low": 1.0, "return high": 2.0, "error": None, "odd": None}
    ]
    assert line["verdicts"][0]["standing"] == "not confirmed"
    assert set(report.written) == {p.name for p in tmp_path.iterdir()} == {"main.csv", "report.json", "report.txt"}
    text = (tmp_path / "report.txt").read_text()
    assert "quick" in text
    assert "not confirmed" in text


# --- the command


def test_list_names_every_experiment_with_its_source(capsys):
    main(["reproduce", "--list"])
    printed = capsys.readouterr().out
    for name in ("identities", "bandit", "chain", "duality", "redundancy", "truthfulness", "Chang", "Market Bandit"):
        assert name in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "choose from identities"),
        (["chains"], "unknown experiment"),
        (["chain", "--quick", "--full"], "choose one"),
        (["chain", "--seeds", "1"], "seeds: expected an integer >= 2"),
    ],
)
def test_bad_input_is_one_line(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", *arguments])
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err
    assert not list(Path().iterdir())


def test_a_folder_of_another_experiment_is_refused(tmp_path):
    (tmp_path / "options.json").write_text('{"experiment": "duality"}')
    with pytest.raises(ValueError, match="choose another"):
        experiments.reproduce("chain", tmp_path, progress=False)


# --- what the README claims


@pytest.mark.full
@pytest.mark.parametrize("env", ["Bandit-v0", "Chain-v0", "Duality-v0"])
def test_tuned_cloned_ccv_is_optimal_on_every_seed(env):
    """Sixteen seeds, greedy return within 1% of the optimum on each."""
    config = TrainConfig(env, auction="ccv", clones=2, seeds=16, **numerical.SETTINGS["tuned"])
    returns = fitting.fit(config, jax.random.key(0), progress=False).summary["return_seeds"]
    optimum = config.adapter.optimal_return(config.settings.gamma)
    assert min(returns) >= 0.99 * optimum


@pytest.mark.full
def test_reproduce_from_the_command_line(capsys, tmp_path):
    out = tmp_path / "out"
    main(["reproduce", "identities", "--quick", "--seeds", "2", "--out", str(out), "--json"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [v["standing"] for v in line["verdicts"]] == ["confirmed"] * 4
    assert line["quick"] is True
    assert {"identities.csv", "identities.png", "report.json", "report.txt"} <= {p.name for p in out.iterdir()}

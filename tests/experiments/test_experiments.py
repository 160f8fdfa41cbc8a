"""The reproductions: their numbers by hand, their files, what they skip and what they refuse."""

import concurrent.futures
import dataclasses
import itertools
import json
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from jaxmarket import MECHANISMS, TrainConfig, experiments, train
from jaxmarket.cli import main
from jaxmarket.environments import Chain, garnet
from jaxmarket.experiments import (
    ExperimentOptions,
    Report,
    ResultTable,
    Verdict,
    interquartile_mean,
    numerical,
    redundancy,
    truthfulness,
)
from jaxmarket.experiments.numerical import NumericalCondition, NumericalResult
from jaxmarket.experiments.report import by_chance
from jaxmarket.experiments.truthfulness import Seat
from jaxmarket.runs import fitting, run_folder

# --- truthfulness


def test_one_auction_by_hand():
    """Second prices: nothing to gain. First price: shade to 3/4 against three uniform bids, and gain 27/256."""
    assert truthfulness.one_shot_gain(MECHANISMS["vickrey"]) == (0, 0)
    assert truthfulness.one_shot_gain(MECHANISMS["ccv"]) == (0, 0)
    largest, expected = truthfulness.one_shot_gain(MECHANISMS["bb"], 201)
    assert largest > 0.98
    assert expected == pytest.approx(27 / 256, abs=2e-3)


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
    exact = seat._value(bids[..., None])
    assert abs(earned.mean() - exact) < 5 * earned.std() / np.sqrt(len(earned)) + 1e-9


# --- redundancy


def test_who_is_removed():
    society = TrainConfig("Chain-v0").settings.society
    cases = redundancy.absences(society, np.array([[0.2, 0.9], [0.8, 0.1]]))
    assert cases["none"].all()
    np.testing.assert_array_equal(cases["best bidder"][:, 0], [[1, 1, 0, 1], [0, 1, 1, 1]])
    np.testing.assert_array_equal(cases["best primitive"][:, 0], [[1, 1, 0, 0], [0, 0, 1, 1]])
    assert cases["any other"].shape == (2, 3, 4)
    assert (cases["any other"].sum(-1) == 3).all()
    np.testing.assert_array_equal(cases["any other"].sum(1), [[2, 2, 3, 2], [3, 2, 2, 2]])


# --- the numerical experiments


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two small conditions on the bandit, trained once."""
    options = ExperimentOptions(tmp_path_factory.mktemp("numerical"), seeds=2, progress=False)
    config = TrainConfig(
        "Bandit-v0", learner="valuation", seeds=2, steps=4096, instances=8, horizon=16, minibatch=32, log_every=4
    )
    wanted = [
        NumericalCondition("small", config),
        NumericalCondition("longer", dataclasses.replace(config, steps=8192)),
    ]
    return options, wanted, options.train(wanted, "bandit")


def test_finished_conditions_are_read_back_and_not_trained_again(finished, monkeypatch):
    options, wanted, first = finished
    monkeypatch.setattr(fitting, "fit", lambda *_, **__: pytest.fail("trained again"))
    again = options.train(wanted, "bandit")
    for name, run in first.items():
        assert again[name].summary == run.summary
        np.testing.assert_array_equal(again[name].bids, run.bids)


@pytest.mark.slow
def test_equal_programs_of_different_length_compile_once_and_keep_their_own_schedules(finished):
    """The learning rate falls over the run: the compiled chunk must not remember the length of the first one."""
    options, wanted, found = finished
    assert len({c.config.settings.trainable for c in wanted}) == 1
    keys = jax.random.split(jax.random.key(options.seed), 2)
    for condition in wanted:
        state, _ = jax.jit(jax.vmap(lambda key, c=condition: train(c.config, key)))(keys)
        chex.assert_trees_all_close(state.learner.params, found[condition.name].params, rtol=1e-5, atol=1e-6)


def test_another_seed_or_other_settings_are_refused(finished):
    options, wanted, _ = finished
    with pytest.raises(ValueError, match="holds another run: key is"):
        dataclasses.replace(options, seed=1).train(wanted, "bandit")
    other = [NumericalCondition("small", dataclasses.replace(wanted[0].config, learning_rate=0.5))]
    with pytest.raises(ValueError, match="choose another folder"):
        options.train(other, "bandit")


def test_an_interrupted_sweep_goes_on_where_it_stopped(finished, tmp_path, monkeypatch):
    _, wanted, complete = finished
    options, fit = ExperimentOptions(tmp_path, seeds=2, progress=False), fitting.fit
    monkeypatch.setattr("os.cpu_count", lambda: 1)

    def interrupted(config, key, **rest):
        if config.settings.steps == 8192:
            raise KeyboardInterrupt
        return fit(config, key, **rest)

    monkeypatch.setattr(fitting, "fit", interrupted)
    with pytest.raises((KeyboardInterrupt, concurrent.futures.CancelledError)):
        options.train(wanted, "bandit")
    assert [p.name for p in tmp_path.iterdir()] == [wanted[0].name]
    monkeypatch.setattr(fitting, "fit", fit)
    resumed = options.train(wanted, "bandit")
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


def test_a_finding_measures_bids_over_visited_states_only(finished):
    _, wanted, found = finished
    finding = NumericalResult(wanted[1], found[wanted[1].name], 0.8)
    bids, q = finding.run.bids, finding.run.q
    np.testing.assert_allclose(finding.winner_error, np.abs(bids[:, 0].max(-1) - 0.8))
    np.testing.assert_allclose(finding.every_error, np.abs(bids[:, 0] - q[0]).mean(-1))
    assert finding.truth_in_range
    row = finding.row()
    assert row["solved"] in ("0/2", "1/2", "2/2")
    assert row["greedy"].value == pytest.approx(np.mean(finding.run.summary["return_seeds"]))
    money = numerical.who_paid_whom(finding.run, jax.random.key(0))
    names = numerical.account_names(wanted[1].config.settings.society)
    assert names[:3] == ["0a", "0b", "1a"]
    assert money.shape == (len(names),) * 2
    # One step an episode: what the environment pays is the return, what the auctioneer is paid is the price.
    assert money[names.index("environment")].sum() == pytest.approx(0.8, abs=0.2)
    assert money[:, names.index("auctioneer")].sum() == pytest.approx(
        money.sum() - money[names.index("environment")].sum()
    )


def test_bids_out_of_range_cannot_be_judged():
    published = TrainConfig(
        "Duality-v0", learner="ppo", bid_low=0.0, bid_high=1.0, steps=4096, seeds=2, time_limits="terminal"
    )
    run = type("Run", (), {"q": np.array([[-99.0, 50], [50, 49]]), "visited": np.ones((2, 2), bool)})
    cells = {("ccv", "cloned"): NumericalResult(NumericalCondition("published", published), run, 5.0)}
    assert numerical._truthful(cells).standing == "not testable"


def test_the_sweep_is_every_mechanism_cloned_and_solitary(tmp_path):
    options = ExperimentOptions(tmp_path)
    wanted = numerical.conditions("Chain-v0", options)
    cells = {(c.settings, c.config.auction, c.society) for c in wanted}
    assert cells == {(s, a, k) for s in ("published", "tuned") for a in MECHANISMS for k in ("cloned", "solitary")} | {
        ("beta", "ccv", "cloned")
    }
    assert {c.config.seeds for c in wanted} == {16}
    assert len({c.config.settings.trainable for c in wanted}) == 9
    published = next(c.config for c in wanted if c.settings == "published")
    assert (*(published.settings.values[name] for name in ("learning_rate", "entropy", "gamma")),) == (4e-5, 0.1, 0.99)
    assert published.settings.instances * published.settings.horizon == 4096
    full = numerical.conditions("Chain-v0", dataclasses.replace(options, full=True))
    assert {c.config.settings.updates for c in full if c.settings == "beta"} == {2000}
    assert len(full) == 24


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


def test_redundancy_is_decided_by_the_difference(tmp_path):
    """Intervals of both conditions overlap, and the one of the difference excludes zero."""
    options = ExperimentOptions(tmp_path, seeds=8, quick=True, progress=False)
    returns = {"cloned": 0.70, "solitary": 0.66, "cloned, dropout": 0.70, "solitary, dropout": 0.70}
    noise = 0.04 * np.linspace(-1, 1, 8)
    for condition in redundancy.conditions(options):
        name = condition.config.adapter.name
        values = (returns[condition.name] + noise + (0.2 if name == "Chain-v0" else 0) * noise).tolist()
        cases = ("none", "best bidder", "any other", "best primitive")
        measured = {case: {"at once": values, "trained on": values} for case in cases}
        label = condition.label.replace(", ", "-").replace(" ", "-")
        (tmp_path / f"{label}.json").write_text(json.dumps(measured))
    verdicts = redundancy.run(options).verdicts
    better, equal = verdicts[0], verdicts[-1]
    assert (better.standing, better.number) == ("confirmed", pytest.approx(0.04))
    assert "difference of the means 0.040 [" in better.evidence
    assert (equal.standing, equal.number) == ("not confirmed", pytest.approx(0))


def test_a_report_as_files_and_as_one_line(tmp_path):
    rows = [{"name": "a", "return": interquartile_mean([1.0, 2.0]), "error": None, "odd": float("nan")}]
    report = Report(
        {"quick": True}, [ResultTable("main", "Main", rows)], [Verdict.of("it holds", False, 0.5, "half")], {}, "x"
    )
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

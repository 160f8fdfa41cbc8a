"""The experiment on the distance from equilibrium: its measures by hand, and what denies its claims."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxmarket.experiments import EXPERIMENTS, Scope
from jaxmarket.experiments.equilibrium import EXPERIMENT, Trained, cases
from jaxmarket.experiments.experiment import report
from jaxmarket.experiments.results import Results

SCOPE = Scope(2)
CONFIGS = {each.name: each.config for each in EXPERIMENT.planned(SCOPE)}


def run(name, gain, returns):
    """A run of four chunks with these shares of an episode's value and of the optimal return, f [4] each."""
    config = CONFIGS[name]
    value = {"Bandit-v0": 0.8, "Chain-v0": 0.8 * 0.99**4, "Duality-v0": 0.5 * (1 - 0.99**10) / 0.01}[config.env]
    optimum = config.adapter.optimal_return(config.settings.gamma)
    each = np.ones((4, 2))
    return SimpleNamespace(
        config=config,
        metrics={
            "best_reply_gain": value * each * np.reshape(gain, (4, 1)),
            "return_mean": optimum * each * np.reshape(returns, (4, 1)),
            "duration": each,
        },
        summary={"return_seeds": [optimum] * 2},
    )


FAR, NEAR, SLOW = (0.5, 0.5, 0.4, 0.3), (0.5, 0.3, 0.1, 0.01), (0.5, 0.4, 0.4, 0.01)
LEARNED = (0.2, 0.96, 1.0, 1.0)


def results(**changed):
    found = {}
    for case in cases(SCOPE):
        gain, returns = (NEAR, LEARNED) if case.auction == "ccv" and case.society == "cloned" else (FAR, LEARNED)
        found[case.name] = run(case.name, *changed.get(case.name.replace("-v0", "").replace("-", "_"), (gain, returns)))
    return Results(SCOPE, found, {}, EXPERIMENT.measures)


def test_every_auction_with_and_without_clones_is_compared():
    assert EXPERIMENTS["equilibrium"] is EXPERIMENT
    assert len(cases(SCOPE)) == 2 * 3 * 4 * 2
    assert {each.best_reply_every for each in EXPERIMENT.planned(SCOPE)} == {5, 20}


def test_measures_by_hand():
    found, name = results(), Trained("ppo", "Duality-v0", "ccv", "cloned").name
    chunk = CONFIGS[name].settings.auctions_per_chunk
    wanted = {"gain at first": 0.5, "gain": 0.01, "gain at": 4 * chunk, "return at": 2 * chunk}
    for measure, value in wanted.items():
        np.testing.assert_allclose(found.measure(name, measure), [value] * 2)
    far = Trained("ppo", "Duality-v0", "bb", "cloned").name
    np.testing.assert_allclose(found.measure(far, "gain at"), 4 * chunk)  # never: a lower bound


def test_the_claims():
    def standings(found):
        return {claim.text: claim.verdict(found).standing for claim in EXPERIMENT.claimed(SCOPE)}

    assert set(standings(results()).values()) == {"confirmed"}

    def denied(words, **changed):
        found = standings(results(**changed))
        (standing,) = [each for text, each in found.items() if "[ppo, Chain-v0]" in text and words in text]
        return standing == "not confirmed"

    assert denied("ends near an equilibrium", ppo_Chain_ccv_cloned=(FAR, LEARNED))
    assert denied("larger under vickrey", ppo_Chain_vickrey_cloned=(NEAR, LEARNED))
    assert denied("closer to an equilibrium", ppo_Chain_ccv_solitary=(NEAR, LEARNED))
    assert denied("converges before", ppo_Chain_ccv_cloned=(SLOW, (0.1, 0.1, 0.2, 1.0)))
    assert not denied("converges before", ppo_Chain_ccv_cloned=(SLOW, LEARNED))


@pytest.mark.slow
def test_the_report(tmp_path):
    found = report(EXPERIMENT, results(), tmp_path)
    assert {"equilibrium.csv", "equilibrium.png"} <= set(found.written)

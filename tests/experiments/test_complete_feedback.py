"""The experiment complete-feedback: its task that changes, what its arms are paid for, and what denies its claims."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket.experiments import EXPERIMENTS, Scope
from jaxmarket.experiments import complete_feedback as experiment
from jaxmarket.experiments.complete_feedback import ARMS, EXPERIMENT
from jaxmarket.experiments.feedback_tasks import RATES, TASKS, ContextualBandit, noisy_later
from jaxmarket.experiments.results import Results

SCOPE = Scope(4)
SPREAD = np.array([-0.01, 0.0, 0.0, 0.01])


def test_every_context_has_its_own_best_arm_and_returns_leave_out_the_noise():
    env = ContextualBandit(contexts=3)
    noisy = env.default_params.replace(noise=5.0)
    _, state = env.reset_env(jax.random.key(0), noisy)
    for context in range(3):
        state = state.replace(context=jnp.int32(context))
        paid = []
        for arm in range(4):
            obs, _, reward, ended, info = env.step_env(jax.random.key(arm), state, arm, noisy)
            np.testing.assert_array_equal(obs, np.eye(3)[context])
            assert bool(ended) and reward != info["undiscounted"]
            quiet = env.step_env(jax.random.key(arm), state, arm, env.default_params)[2]
            assert quiet == info["undiscounted"]
            paid.append(float(quiet))
        np.testing.assert_array_equal(paid, np.roll((10, 9, 8, 0), -context))


def test_rewards_are_noisy_in_the_second_half_only():
    params = ContextualBandit().default_params
    noise = [float(noisy_later(params, jnp.int32(period)).noise) for period in range(8)]
    assert noise == [0.0] * 4 + [20.0] * 4


def test_the_saboteur_has_one_more_action_and_controls_are_paid_for_something_else():
    assert EXPERIMENTS["complete-feedback"] is EXPERIMENT
    changed = {name: dict(arm.fields()) for name, arm in ARMS.items() if arm.control}
    assert changed["unpaid"] == {"pay": "nothing"} and changed["training_return"] == {"pay": "training"}
    ((knob,),) = changed["saboteur"].values()
    assert set(knob.to) - set(RATES) == {experiment._HARMFUL}
    assert {condition.name.split(", ")[1] for condition in EXPERIMENT.planned(Scope(2, quick=True))} == set(ARMS)


def test_a_share_of_wealth_counts_the_living_only():
    population = SimpleNamespace(
        agents=SimpleNamespace(action=jnp.asarray([2, 0, 2])),
        alive=jnp.asarray([True, True, False]),
        wealth=jnp.asarray([1.0, 3.0, 0.0]),
    )
    assert float(experiment._share_of_wealth(population, 2)) == 0.25


def results(**changed):
    best = {"valuation_traders": 0.95, "deep_market": 0.92, "grid": 0.87, "random_search": 0.88}
    best |= {"population_based": 0.9, "unpaid": 0.5, "untrained": 0.5, "saboteur": 0.92, "training_return": 0.8}
    found = {}
    for condition in EXPERIMENT.planned(SCOPE):
        task, _, arm = condition.name.partition(", ")
        values = changed.get(f"{task}_{arm}", best.get(arm, 0.3)) + SPREAD
        arrays = {"performance": values, "curve": np.tile(values[:, None], 8), "env_steps": np.full(4, 1e6)}
        arrays |= {"rates": np.full((4, 8), 0.01), "share": np.full(4, changed.get("share", 0.005))}
        found[condition.name] = arrays | {f"rate {rate:g}": 0.1 + SPREAD for rate in RATES}
    return Results(SCOPE, found, {}, EXPERIMENT.measures)


def test_the_claims():
    def standings(found):
        return {claim.text: claim.verdict(found).standing for claim in EXPERIMENT.claimed(SCOPE)}

    assert set(standings(results()).values()) == {"confirmed"}

    def denied(words, **changed):
        ((_, standing),) = [each for each in standings(results(**changed)).items() if words in each[0]]
        return standing == "not confirmed"

    assert denied("traders beat the best fixed", changing_valuation_traders=0.87)
    assert denied("a deep market of rules", changing_deep_market=0.87)
    assert denied("nothing that lasts", changing_unpaid=0.6)
    assert denied("destroy the network", share=0.02)
    assert denied("[Chain] traders are within", Chain_valuation_traders=0.8)
    assert denied("on Breakout", **{"transfer to Breakout_": 0.1})


def test_the_report_has_an_entry_for_every_arm():
    arms = EXPERIMENT.facts(results())["arms"]
    assert set(arms) == set(ARMS)
    assert arms["grid"]["seeds"] == 4 and arms["grid"]["mean"] == pytest.approx(0.87)
    low, high = arms["grid"]["interval"]
    assert low < 0.87 < high and arms["grid"]["env_steps"] == 1e6


_MARKS = {"grid": pytest.mark.slow}


@pytest.mark.parametrize("arm", [pytest.param(arm, marks=_MARKS.get(arm, pytest.mark.full)) for arm in ARMS])
def test_every_arm_chooses_and_is_tested(arm):
    found = experiment._compute("changing", arm, 16, 2, jax.random.split(jax.random.key(0), 2))
    env = TASKS["changing"].make()
    assert found["curve"].shape == found["rates"].shape == (2, env.horizon)
    np.testing.assert_allclose(found["curve"][:, -1], found["performance"], rtol=1e-6)
    low, high = RATES[0], experiment._HARMFUL if arm == "saboteur" else RATES[-1]
    assert (found["rates"] >= low * 0.999).all() and (found["rates"] <= high * 1.001).all()
    steps = env.training.settings.steps + env.horizon * env.episodes
    looked = {"grid": 15, "untrained": 0}.get(arm, 16)
    np.testing.assert_allclose(found["env_steps"], looked * steps)
    if arm == "grid":
        assert (found["rates"] == found["rates"][:, :1]).all()

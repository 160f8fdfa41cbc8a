"""The comparison of learned primitives with experts: what is compared is of equal size, and what its claims say."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket import experiments
from jaxmarket.experiments import Scope
from jaxmarket.experiments.learned_primitives import (
    ARMS,
    EXPERIMENT,
    GRIDS,
    TUNED,
    TUNED_LASTING,
    TUNED_SMALL,
    config,
    parts_of,
)
from jaxmarket.experiments.results import Results
from jaxmarket.training.monolith import parameters

OTHERS = ("one network", "the mixture of experts", "the option-critic")
NORMAL, QUICK = Scope(4), Scope(4, quick=True)


def results(scope, information=1.0, **returns):
    """Runs of all arms with these returns, 10 of the others, and information of the trained society."""
    found = {}
    for number, condition in enumerate(EXPERIMENT.planned(scope)):
        name = condition.name
        noise = 0.01 * np.random.default_rng(number).normal(size=4)
        if name.startswith("parts-"):
            bits = {"parts-specialists": information, "parts-mixture": 0.5}.get(name, 0.0)
            found[name] = {"information": bits + noise}
        else:
            found[name] = types.SimpleNamespace(summary={"return_seeds": returns.get(name, 10.0) + noise})
    return Results(scope, found, {}, EXPERIMENT.measures)


def confirmed(found):
    return {claim.text: claim.verdict(found).standing == "confirmed" for claim in EXPERIMENT.claimed(found.scope)}


@pytest.mark.parametrize(("size", "count"), [("", 364), (", small", 178), (", lasting", 364)])
def test_agents_that_are_compared_have_as_many_parameters(size, count):
    for arm in TUNED:
        trainable = config(arm + size).settings.trainable
        obs = jnp.zeros(trainable.env.observation.shape)
        if trainable.module_axis:
            hyper = config(arm + size).settings.hyperparameters.as_arrays()
            state = jax.eval_shape(trainable.init, jax.random.key(0), trainable.env.default_params, hyper)
            found = parameters(state.learner)
        else:
            found = parameters(jax.eval_shape(trainable.learner.init, jax.random.key(0), obs))
        assert abs(found - count) <= 0.02 * count, (arm, found)


def test_settings_are_those_of_equal_grids():
    wanted = TUNED | {"specialists, small": TUNED_SMALL}
    wanted |= {f"{arm}, lasting": tuned for arm, tuned in TUNED_LASTING.items()}
    assert wanted.keys() == GRIDS.keys()
    for arm, tuned in wanted.items():
        assert tuned in GRIDS[arm] and len(GRIDS[arm]) == (
            18 if arm.startswith("specialists") and "lasting" not in arm else 9
        )
    for arm, settings in ARMS.items():
        alone, _, task = arm.partition(", ")
        society = "specialists, lasting" if task == "lasting" else "specialists"
        own = wanted.get(arm, wanted.get(alone, wanted[society]))
        if alone not in TUNED:
            own = wanted[society]
        if alone == "bids by PPO":
            own = {"action_learning_rate": 3e-2, "entropy": 0.003}
        assert own.items() <= settings.items(), arm


@pytest.mark.slow
def test_a_claim_is_confirmed_by_what_it_says_and_nothing_else():
    better = confirmed(results(NORMAL, specialists=12.0, **{"specialists, small": 5.0}))
    assert better["[364 parameters] specialists have a higher return than one network"]
    assert better["[364 parameters] specialists have a higher return than the mixture of experts"]
    assert better["[364 parameters] specialists have a higher return than the option-critic"]
    assert not better["[178 parameters] specialists have a higher return than one network"]
    assert better["specialists have a higher return than without payments"]
    assert better["four modules have a higher return than one of their total size"]
    specialised = "modules specialise: the regime tells more about the winner than in an untrained society"
    assert better[specialised] and not confirmed(results(NORMAL, information=0.0))[specialised]
    gate = "the regime tells more about the winner than about the expert that the mixture's gate draws"
    assert better[gate] and not confirmed(results(NORMAL, information=0.3))[gate]
    lasting = confirmed(results(NORMAL, **{"specialists, lasting": 12.0}))
    assert {text for text, yes in lasting.items() if yes and text.startswith("[")} == {
        *(f"[lasting regimes] specialists have a higher return than {other}" for other in OTHERS),
        "[lasting regimes] specialists have a higher return than without payments",
        "[lasting regimes] four modules have a higher return than one of their total size",
    }
    mixed = confirmed(results(NORMAL, mixture=12.0))
    assert mixed["[364 parameters] the mixture of experts has a higher return than one network"]
    assert not mixed["[364 parameters] specialists have a higher return than the mixture of experts"]


@pytest.mark.slow
def test_a_quick_run_has_few_conditions_and_a_full_one_the_grids():
    normal, quick, full = ({c.name for c in EXPERIMENT.planned(size)} for size in (NORMAL, QUICK, Scope(4, full=True)))
    assert len(quick) == 6 and quick < normal < full
    alone = {"one network", "one network, small", "1 module", "one network, lasting", "1 module, lasting"}
    assert {arm for arm in ARMS if parts_of(arm) == 1} == alone
    assert len(confirmed(results(QUICK))) == 5


@pytest.mark.full  # a minute
def test_the_quick_form_writes_its_tables_and_figures(tmp_path):
    report = experiments.reproduce("learned-primitives", tmp_path, quick=True, progress=False)
    assert not report.errors
    assert {table.name for table in report.tables} == {"arms"} and set(report.figures) == {"learning_curves", "winners"}
    rows = {row["arm"]: row for row in report.tables[0].rows}
    assert rows["one network"]["bits"] is None and 0 <= rows["specialists"]["bits"].value <= 2

"""Objectives that come and go: what is compared, and how its claims are decided."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket.experiments import EXPERIMENTS, Scope, Train
from jaxmarket.experiments import changing_objectives as experiment
from jaxmarket.experiments.changing_objectives import ARMS, EXPERIMENT, RUNS, SITUATIONS, FirstKind, config, returns
from jaxmarket.experiments.experiment import table_of
from jaxmarket.experiments.results import Results
from jaxmarket.training.monolith import parameters

BEFORE, ADDED, REMOVED = SITUATIONS


def made_up(quick=False, **changed):
    """Results in which the society is best, by name of the arm or run; ``changed`` moves some of them."""
    scope = Scope(8, quick=quick)
    spread, found = np.linspace(-0.1, 0.1, 8), {}
    for name in experiment._names(scope)[0]:
        level = changed.get(name, 16.0 if "PPO" in name else 18.0)
        networks = {"policy": np.zeros((8, 3))}
        found[name] = types.SimpleNamespace(summary={"return_seeds": (level + spread).tolist()}, networks=networks)
    for name in experiment._names(scope)[1]:
        level = {"society": 18.0, "society, nothing joins": 17.0}.get(name, 14.0)
        found[name] = {situation: changed.get(name, level) + spread for situation in SITUATIONS}
    return Results(scope, found, {}, EXPERIMENT.measures)


def standings(results):
    return {claim.text: claim.verdict(results).standing for claim in EXPERIMENT.claimed(results.scope)}


def test_every_claim_can_be_confirmed_and_denied():
    sound = standings(made_up())
    assert set(sound.values()) == {"confirmed"} and len(sound) == 14
    denied = {
        "random arbitration": ["three kinds: the society's return is higher than that of random arbitration"],
        "society, nothing joins": ["a fourth kind: the society's return is higher if a module joins"],
    }
    for arm, texts in denied.items():
        changed = standings(made_up(**{arm: 18.5}))
        assert [text for text, standing in changed.items() if standing != "confirmed"] == texts
    for run, text in (("with four", "a fourth kind: the society keeps"), ("with two", "one kind leaves: the society")):
        changed = standings(made_up(**{f"society {run}": 20.0}))
        assert [each for each, standing in changed.items() if standing != "confirmed"][-1].startswith(text)
    assert set(standings(made_up(quick=True, society=12.0)).values()) == {"too short to tell"}


def test_tables_and_figure_show_every_arm():
    results = made_up()
    rows = table_of(EXPERIMENT.tables[0], results).rows
    assert [row["agent"] for row in rows] == list(ARMS)
    assert rows[0]["share with four"].value == pytest.approx(1, abs=0.01)
    assert rows[-1]["share with four"] is None  # of an agent with other steps
    assert [row["run"] for row in table_of(EXPERIMENT.tables[1], results).rows] == list(RUNS)
    assert len(experiment._draw(results).axes[0].patches) == len(ARMS) * len(SITUATIONS)


def test_both_agents_have_the_same_grid_and_ppo_at_least_as_many_parameters():
    assert EXPERIMENTS["changing-objectives"] is EXPERIMENT
    assert experiment.GRIDS["society"] == experiment.GRIDS["PPO"]
    sizes = {}
    for agent in ("society", "PPO"):
        settings = config(agent).settings
        arguments = (jax.random.key(0), settings.adapter.default_params, settings.hyperparameters.as_arrays())
        sizes[agent] = parameters(jax.eval_shape(settings.trainable.init, *arguments).learner)
    assert sizes["society"] < sizes["PPO"] < 1.2 * sizes["society"]


def test_conditions_name_what_they_train_with():
    scope = Scope(8, full=True)
    trained = {each.name: each.job(scope, {}).config for each in EXPERIMENT.planned(scope) if isinstance(each, Train)}
    assert trained["trained society"].env.absent == (3,) and trained["society with two"].env.absent == (0, 3)
    assert trained["trained at random"].settings.hyperparameters.exploration_final == 1
    assert isinstance(trained["trained by priorities"].env, FirstKind)
    rates = [trained[f"tuning-PPO-{i}"].settings.values["learning_rate"] for i in range(len(experiment.GRIDS["PPO"]))]
    assert rates == [setting["rate"] for setting in experiment.GRIDS["PPO"]]
    assert trained["trained PPO, longer"].steps == 4 * trained["trained PPO"].steps


def test_the_first_kind_that_is_there_has_priority():
    env = FirstKind(4, absent=(3,))
    state = env.reset_env(jax.random.key(0), env.default_params)[1]
    for present, wanted in (([0, 1, 1, 0], [0, 1, 0, 0]), ([1, 1, 1, 0], [1, 0, 0, 0]), ([0, 0, 0, 0], [1, 1, 1, 0])):
        found = env.eligible_modules(state.replace(present=jnp.array(present, bool)), env.default_params)
        assert found.tolist() == [bool(each) for each in wanted]


@pytest.mark.full
def test_a_module_that_joins_changes_returns_only_where_its_kind_is(monkeypatch):
    """Untrained modules with different networks; the keys are the same, so that all else is equal."""
    monkeypatch.setattr(experiment, "_EPISODES", 64)
    run = types.SimpleNamespace(config=config("society", seeds=2))
    keys = jax.random.split(jax.random.key(0), 2)
    params = jax.vmap(run.config.settings.society.init)(keys)
    run.params = jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(1), x.shape), params)
    joined, alone = returns("random", keys, run), returns("random", keys, run, joins=False)
    for situation in (BEFORE, REMOVED):
        np.testing.assert_array_equal(joined[situation], alone[situation])
    assert (joined[ADDED] != alone[ADDED]).all() and joined[ADDED].shape == (2,)

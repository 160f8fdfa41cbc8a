"""One decision changes: the tasks by hand, and the report on made-up runs and on tiny ones."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket.environments import topologies
from jaxmarket.environments.topologies import TOPOLOGIES, common_ancestor, common_descendant, linear_chain
from jaxmarket.experiments import EXPERIMENTS, ExperimentOptions, modularity
from jaxmarket.experiments.transfer_conditions import TransferCondition, kind_of, steps_to
from jaxmarket.runs import fitting, run_folder
from jaxmarket.runs.run_folder import SavedRun

# --- the tasks

NEXT = {
    "linear chain": [{1: 1}, {2: 1}, {3: 1}],
    "common ancestor": [{1: 0.5, 2: 0.5}, {3: 1}, {3: 1}],
    "common descendant": [{2: 1}, {2: 1}, {3: 1}],
}
START = {"linear chain": {0: 1}, "common ancestor": {0: 1}, "common descendant": {0: 0.5, 1: 0.5}}
TASKS = [(topology, task) for topology, changes in modularity.TRANSFERS.items() for task in ("ABC", *changes.values())]


@pytest.mark.parametrize(("topology", "task"), TASKS)
def test_the_right_action_leads_on_and_every_other_stays(topology, task):
    mdp = TOPOLOGIES[topology](task)
    assert (mdp.num_states, mdp.num_actions, mdp.name) == (4, 6, f"{topology} {task}")
    assert mdp.terminal.tolist() == [False, False, False, True]
    assert {s: p for s, p in enumerate(mdp.start) if p} == START[topology]
    for s in range(3):
        for action, letter in enumerate("ABCDEF"):
            onward = {t: p for t, p in enumerate(mdp.transitions[s, action]) if p}
            right = letter == task[s]
            assert onward == (NEXT[topology][s] if right else {s: 1})
            assert mdp.rewards[s, action] == (0.8 if right and 3 in NEXT[topology][s] else 0)
    assert not mdp.rewards[3].any()


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_values_by_hand(topology):
    """A decision k before the last is worth .8 γ^k where right, and once more γ where not."""
    before_last = {"linear chain": [2, 1, 0], "common ancestor": [1, 0, 0], "common descendant": [1, 1, 0]}[topology]
    mdp = TOPOLOGIES[topology]("FBD")
    q = mdp.optimal_q()
    for s, k in enumerate(before_last):
        wanted = [0.8 * 0.99 ** (k + (letter != "FBD"[s])) for letter in "ABCDEF"]
        np.testing.assert_allclose(q[s], wanted, rtol=1e-12)
    assert mdp.optimal_return() == pytest.approx(0.8)
    assert mdp.gamma == 0.99


def test_there_is_time_for_two_mistakes_and_not_for_chance():
    """Random actions: three of five right on the chain, two of three or more elsewhere, at 1/6 each."""
    uniform, p = np.full((4, 6), 1 / 6), 1 / 6
    three_of_five = 10 * p**3 * (1 - p) ** 2 + 5 * p**4 * (1 - p) + p**5
    assert linear_chain().episode_return(uniform) == pytest.approx(0.8 * three_of_five)
    assert 1 / three_of_five == pytest.approx(28, abs=0.5)
    two_of_four = 1 - (1 - p) ** 4 - 4 * p * (1 - p) ** 3
    for env in (common_ancestor(), common_descendant()):
        assert env.episode_return(uniform) == pytest.approx(0.8 * two_of_four)
    assert (linear_chain().horizon, common_ancestor().horizon, common_descendant().horizon) == (5, 4, 4)


def test_a_transfer_changes_one_decision_to_an_action_that_was_right_nowhere():
    for topology, changes in modularity.TRANSFERS.items():
        first = TOPOLOGIES[topology](modularity.FIRST)
        for task in changes.values():
            (state,) = (s for s in range(3) if task[s] != modularity.FIRST[s])
            assert task[state] not in modularity.FIRST
            second = TOPOLOGIES[topology](task)
            others = np.arange(4) != state
            np.testing.assert_array_equal(first.transitions[others], second.transitions[others])
            np.testing.assert_array_equal(first.rewards[others], second.rewards[others])
            assert (first.transitions[state] != second.transitions[state]).any()
    changed = {topology: list(changes) for topology, changes in modularity.TRANSFERS.items()}
    assert changed["linear chain"] == ["last", "middle", "first"]


@pytest.mark.parametrize("task", ["AB", "ABCD", "ABG", "abc"])
def test_a_task_is_three_of_six_actions(task):
    with pytest.raises(ValueError, match="task: expected"):
        topologies.right_actions(task)


# --- made-up runs

SEEDS = 4


def made(arm, task, reached, *, scale=1.0, topology="linear chain"):
    """A run whose seeds reach 90% at the given chunk of ten (None: never), with networks of ``scale``."""
    config = modularity.condition(arm, topology, task, SEEDS).config
    networks = jax.tree.map(
        lambda x: jnp.full(x.shape, scale), jax.eval_shape(lambda: run_folder._fresh_networks(config.settings))
    )
    rate = np.array([[float(at is not None and chunk >= at) for at in reached] for chunk in range(1, 11)])
    final = rate[-1].tolist()
    summary = {"sampled_termination_rate_seeds": final, "termination_rate_seeds": final}
    run = SavedRun(config, networks, summary, Path())
    run.__dict__["_metrics"] = {"termination_rate": rate, "duration": np.ones((10, SEEDS))}
    return run


def transfer(society, valuation, flat, early=None):
    """A transfer of these curves; conditions with more entropy have those of their agent."""
    curves = {"society": (society, 1.05), "society valuation": (valuation, 1.5), "flat": (flat, 1.2)}

    def arm(name):
        reached, scale = curves[kind_of(name)]
        return TransferCondition(name, made(name, "ABC", [1] * SEEDS), made(name, "ABD", reached, scale=scale))

    arms = {name: arm(name) for name in modularity.CONDITIONS}
    return modularity.Transfer("linear chain", "last", "ABD", arms, early or {})


def test_the_main_table_by_hand():
    rows = {row["arm"]: row for row in transfer([2] * 4, [None] * 4, [8, 8, 8, None]).rows()}
    assert rows["society"]["k steps"].value == 0.512
    assert rows["society"]["k steps after"].value == rows["society"]["k steps to stay"].value == 1.024
    assert (rows["society"]["moved"].value, rows["flat"]["moved"].value) == (0, 1)  # by 5%, which is none; by 20%
    assert rows["flat"]["change"].value == pytest.approx(0.2, rel=1e-5)
    assert rows["flat"]["k steps after"].value == pytest.approx(4.096)  # the middle half of 8, 8, 8, 10 chunks
    assert (rows["flat"]["reached"], rows["society valuation"]["reached"]) == ("3/4", "0/4")
    valuation = rows["society valuation"]
    assert valuation["k steps after"].value == valuation["k steps to stay"].value == 5.12  # the whole run
    assert (rows["flat"]["stay"], rows["society valuation"]["stay"]) == ("3/4", "0/4")
    assert rows["society valuation"]["transfer"].value == 0


def test_the_arms_of_the_report_pool_tasks_and_seeds():
    made_up = [transfer([2] * 4, [None] * 4, [8, 8, 8, None]), transfer([4] * 4, [None] * 4, [8] * 4)]
    made_up[1] = dataclasses.replace(made_up[1], change="middle")
    arms = {arm: modularity._summary(made_up, arm) for arm in modularity.CONDITIONS}
    for steps in ("steps_to_90_transfer", "steps_to_stay_above_90_transfer"):
        assert arms["society"][steps] == {"mean": 1536, "std": 512, "never": 0}
    assert arms["society valuation"]["steps_to_90_transfer"] == {"mean": 5120, "std": 0, "never": 8}
    steps = [4096] * 7 + [5120]
    assert arms["flat"]["steps_to_90_transfer"] == {"mean": np.mean(steps), "std": np.std(steps), "never": 1}
    assert arms["flat"]["share_of_weights_moved"] == {"mean": 1, "std": 0, "never": 0}
    assert arms["flat"]["success_first"]["mean"] == 1
    assert set(arms["flat"]["tasks"]) == {"linear chain, last", "linear chain, middle"}
    assert arms["flat"]["tasks"]["linear chain, last"]["steps_to_90_transfer"]["never"] == 1


def test_fewer_weights_means_in_every_transfer():
    low, high = np.array([0.1, 0.1, 0.2, 0.2]), np.array([0.5, 0.6, 0.6, 0.7])
    verdict = modularity.fewer_weights("", [low, low], [high, high])
    assert (verdict.standing, verdict.number) == ("confirmed", pytest.approx(0.15))
    assert "2/2" in verdict.evidence
    assert "difference of the means -0.450 [" in verdict.evidence
    verdict = modularity.fewer_weights("", [low, high], [high, high])
    assert (verdict.standing, verdict.number) == ("not confirmed", pytest.approx(0.6))
    assert "1/2" in verdict.evidence


def test_settled_is_the_last_time_it_rose_above_90_percent():
    run = made("flat", "ABC", [1, 3, None, 5])
    np.testing.assert_array_equal(modularity.settled(run), [512, 3 * 512, np.nan, 5 * 512])
    run.metrics["termination_rate"][5, 0] = 0.5  # it fell once
    np.testing.assert_array_equal(modularity.settled(run)[0], 7 * 512)
    assert steps_to(run)[0] == 512


def knows(arm, task):
    """A run of an agent that takes the right actions of ``task``."""
    run = made(arm, task, [1] * SEEDS)
    table = 60 * np.eye(6)[topologies.right_actions(task)]  # [3, 6] logits, or bids
    if arm == "flat":
        layers = run.networks["policy"]["params"]  # the last row of a kernel is the bias
        layers["torso"]["Affine_0"]["kernel"] = jnp.broadcast_to(jnp.eye(5, 16).at[4].set(0), (SEEDS, 5, 16))
        layers["Affine_0"]["kernel"] = jnp.zeros((SEEDS, 17, 6)).at[:, :3].set(table)
    else:
        kernel = jnp.zeros((SEEDS, 6, 5, 1)).at[:, :, :3, 0].set(table.T)
        run.networks["policy"]["params"]["Affine_0"]["kernel"] = kernel
    return run


@pytest.mark.parametrize("arm", ["flat", "society valuation"])
def test_correct_is_how_often_each_decision_is_right(arm):
    run = knows(arm, "AEC")
    np.testing.assert_array_equal(modularity.correct(run, "AEC"), np.ones((SEEDS, 3)))
    np.testing.assert_array_equal(modularity.correct(run, "ABD"), [[1, 0, 0]] * SEEDS)
    relearning = transfer([2] * 4, [2] * 4, [2] * 4, {"flat": run})  # the last decision of ABC changes to D
    others, changed = relearning.split(modularity.correct(run, "ABD"))
    assert (others.max(), changed.max()) == (0, 0)
    assert next(relearning.early_rows())["others"].value == 0


def test_whether_the_other_decisions_stayed_right_is_judged_where_it_was_measured():
    stayed, lost = knows("society valuation", "ABC"), knows("flat", "AEC")
    with_early = transfer([2] * 4, [2] * 4, [2] * 4, {"society": stayed, "flat": lost})
    *others, last = modularity._verdicts([with_early])
    assert (last.standing, last.number) == ("confirmed", 1)
    assert "flat 0.000" in last.evidence
    assert len(others) == 3 * len(modularity.PAIRS) == 12
    assert len(list(modularity._verdicts([transfer([2] * 4, [2] * 4, [2] * 4)]))) == 12


def test_societies_are_compared_with_the_agent_that_has_more_entropy():
    runs = transfer([4] * 4, [4] * 4, [8] * 4)
    runs.agents["flat-exploring"] = transfer([4] * 4, [4] * 4, [2] * 4).agents["flat-exploring"]
    found = {v.claim: v.standing for v in modularity._verdicts([runs])}
    claim = "[linear chain, last] the {} society reaches 90% again in fewer steps{}"
    assert found[claim.format("ppo", "")] == found[claim.format("valuation", "")] == "confirmed"
    for society in ("exploring", "valuation"):
        assert found[claim.format(society, " than flat-exploring")] == "not confirmed"


# --- the experiment


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The quick experiment on one topology, every arm the same small monolithic agent: two programs to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modularity, "QUICK", ("linear chain",))
        patch.setattr(modularity, "_KINDS", {arm: {"agent": "monolith"} for arm in modularity.AGENTS})
        patch.setattr(modularity, "CONDITIONS", dict.fromkeys(modularity.CONDITIONS, modularity.AGENTS["flat"]))
        patch.setattr(modularity, "_BUDGET", modularity._BUDGET | {"steps": 3 * 512})
        options = ExperimentOptions(tmp_path_factory.mktemp("modularity"), seeds=2, quick=True, progress=False)
        first = modularity.run(options)
        patch.setattr(fitting, "fit", lambda *_, **__: pytest.fail("trained again"))
        return options, first, modularity.run(options)


@pytest.mark.full
def test_the_report_has_the_promised_fields(tiny):
    _, report, _ = tiny
    line = json.loads(dataclasses.replace(report, name="modularity").to_json())
    assert set(line["arms"]) == {*modularity.CONDITIONS, "hierarchical"}
    for name, arm in line["arms"].items():
        assert {"success_first", "steps_to_90_transfer", "share_of_weights_moved", "tasks"} <= set(arm)
        if name != "hierarchical":
            assert set(arm["tasks"]) == {"linear chain, last"}
            assert {"mean", "std"} <= set(arm["steps_to_90_transfer"])
    assert line["arms"]["hierarchical"]["steps_to_90_transfer"] is None
    assert "no options" in line["arms"]["hierarchical"]["note"]
    assert [row["arm"] for row in line["table"]] == list(modularity.CONDITIONS)
    assert len(line["verdicts"]) == 12
    assert set(report.figures) == {"transfers", "moved", "weights"}


@pytest.mark.slow
def test_the_transfer_starts_where_the_first_task_ended(tiny):
    """After three more updates of Adam at 1e-2, no weight is further away than those can have moved it."""
    options, report, _ = tiny
    mdp = {task: linear_chain(task) for task in ("ABC", "ABD")}
    before, after = (
        run_folder.read(options.folder / f"flat-linear_chain-{task}", {"env": env}) for task, env in mdp.items()
    )
    gap = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before.params, after.params)
    assert 0 < max(jax.tree.leaves(gap)) < 0.2
    assert 0 < report.settings["arms"]["flat"]["relative_weight_change"]["mean"] < 1


@pytest.mark.slow
def test_finished_stages_are_not_trained_again(tiny):
    _, first, again = tiny
    assert first.settings["arms"] == again.settings["arms"]
    assert first.tables[0].as_rows() == again.tables[0].as_rows()


def test_grids_are_of_one_size_and_hold_what_is_used():
    assert {len(grid) for grid in modularity.GRIDS.values()} == {12}
    for arm, settings in modularity.CONDITIONS.items():
        assert settings in modularity.GRIDS[kind_of(arm)]
    assert EXPERIMENTS["modularity"].run is modularity.run

"""One decision changes: the tasks by hand, and the report on made-up runs and on tiny ones."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket import experiments
from jaxmarket.environments import topologies
from jaxmarket.environments.topologies import (
    CHANGES,
    FIRST,
    TOPOLOGIES,
    common_ancestor,
    common_descendant,
    linear_chain,
)
from jaxmarket.experiments import Scope, modularity
from jaxmarket.experiments.results import Results
from jaxmarket.experiments.transfers import kind_of
from jaxmarket.runs import run_folder
from jaxmarket.runs.run_folder import SavedRun

# --- the tasks

NEXT = {
    "linear chain": [{1: 1}, {2: 1}, {3: 1}],
    "common ancestor": [{1: 0.5, 2: 0.5}, {3: 1}, {3: 1}],
    "common descendant": [{2: 1}, {2: 1}, {3: 1}],
}
START = {"linear chain": {0: 1}, "common ancestor": {0: 1}, "common descendant": {0: 0.5, 1: 0.5}}
TASKS = [*((topology, "ABC") for topology in TOPOLOGIES), *((topology, task) for topology, _, task in CHANGES)]


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


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_transfer_changes_one_decision_to_an_action_that_was_right_nowhere(change):
    (state,) = (s for s in range(3) if change.task[s] != FIRST[s])
    assert change.task[state] not in FIRST
    assert change.unchanged.tolist() == [s != state for s in range(3)]
    first, second = (TOPOLOGIES[change.topology](task) for task in (FIRST, change.task))
    others = np.arange(4) != state
    np.testing.assert_array_equal(first.transitions[others], second.transitions[others])
    np.testing.assert_array_equal(first.rewards[others], second.rewards[others])
    assert (first.transitions[state] != second.transitions[state]).any()


def test_every_decision_of_the_chain_changes_once():
    assert [str(change) for change in CHANGES[:3]] == [f"linear chain, {each}" for each in ("last", "middle", "first")]
    assert {change.topology for change in CHANGES} == set(TOPOLOGIES)


@pytest.mark.parametrize("task", ["AB", "ABCD", "ABG", "abc"])
def test_a_task_is_three_of_six_actions(task):
    with pytest.raises(ValueError, match="task: expected"):
        topologies.right_actions(task)


# --- made-up runs

SEEDS = 4
LAST = CHANGES[0]


def made(agent, task, reached, *, scale=1.0):
    """A run whose seeds reach 90% at the given chunk of ten (None: never), with networks of ``scale``."""
    config = modularity.config(agent, "linear chain", task, seeds=SEEDS)
    networks = jax.tree.map(
        lambda x: jnp.full(x.shape, scale), jax.eval_shape(lambda: run_folder._fresh_networks(config.settings))
    )
    rate = np.array([[float(at is not None and chunk >= at) for at in reached] for chunk in range(1, 11)])
    final = rate[-1].tolist()
    summary = {"sampled_termination_rate_seeds": final, "termination_rate_seeds": final}
    run = SavedRun(config, networks, summary, Path())
    run.__dict__["_metrics"] = {"termination_rate": rate, "duration": np.ones((10, SEEDS))}
    return run


def results(society, valuation, flat, *, decisions=None, scope=None, **others):
    """A transfer to the last task of the chain; conditions with more entropy have the curve of their agent."""
    curves = {"society": (society, 1.05), "society valuation": (valuation, 1.5), "flat": (flat, 1.2)}
    finished = {}
    for agent in modularity.CONDITIONS:
        reached, scale = curves[kind_of(agent)]
        finished[f"first-{agent}-linear chain"] = made(agent, "ABC", [1] * SEEDS)
        finished[f"transfer-{agent}-{LAST}"] = made(agent, "ABD", others.get(agent, reached), scale=scale)
    for agent, right in (decisions or {}).items():
        finished[f"decisions-{agent}-{LAST}"] = {"right": right}
    return Results(scope or Scope(SEEDS, quick=True), finished, {}, modularity.EXPERIMENT.measures)


def tables(found):
    return {table.name: list(table.rows(found)) for table in modularity.EXPERIMENT.tables}


def confirmed(found):
    verdicts = [claim.verdict(found) for claim in modularity._claims(found.scope)]
    return {verdict.claim: verdict.standing == "confirmed" for verdict in verdicts}


def test_the_tables_by_hand():
    made_up = results([2] * 4, [None] * 4, [8, 8, 8, None])
    found = tables(made_up)
    rows = {row["arm"]: row for row in found["transfers"]}
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
    assert [row["arm"] for row in found["first"]] == list(modularity.CONDITIONS)
    assert [row["success"].value for row in found["first"]] == [1] * 5
    flat = f"transfer-flat-{LAST}"
    assert made_up.measure(flat, "steps to 90%").tolist() == [4096] * 3 + [5120]
    assert made_up.measure(flat, "reached 90%").tolist() == [True] * 3 + [False]
    assert (found["early"], found["tuning"]) == ([], [])


def test_fewer_weights_means_in_every_transfer():
    """The society's weights move by 5%, which is none; those of the flat agent and of the valuation society do."""
    found = confirmed(results([2] * 4, [2] * 4, [2] * 4))
    moved = {claim: holds for claim, holds in found.items() if "share of its weights" in claim}
    assert list(moved.values()) == [True, False, True, False]


def test_steps_to_stay_are_those_of_the_last_time_it_rose_above_90_percent():
    run = made("flat", "ABC", [1, 3, None, 5])
    run.metrics["termination_rate"][5, 0] = 0.5  # it fell once
    stay, first = (modularity.EXPERIMENT.measures[name](run) for name in ("steps to stay", "steps to 90%"))
    np.testing.assert_array_equal(stay, [7 * 512, 3 * 512, 5120, 5 * 512])
    assert first[0] == 512


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


@pytest.mark.parametrize("agent", ["flat", "society valuation"])
def test_how_often_each_decision_is_right(agent):
    run = knows(agent, "AEC")
    assert modularity.right_decisions("AEC", range(SEEDS), run)["right"].tolist() == np.ones((SEEDS, 3)).tolist()
    right = modularity.right_decisions("ABD", range(SEEDS), run)["right"]
    assert right.tolist() == [[1, 0, 0]] * SEEDS
    found = Results(Scope(SEEDS), {f"decisions-{agent}-{LAST}": {"right": right}}, {}, {})
    assert modularity._unchanged(found, agent, LAST).max() == 0  # the last decision of ABC changes to D


def test_whether_the_other_decisions_stayed_right_is_tested_where_it_was_measured(monkeypatch):
    monkeypatch.setattr(modularity, "CHANGES", (LAST,))
    rights = {"society": np.array([[1, 1, 0.2]] * 4), "flat": np.array([[1, 0, 0.5]] * 4)}
    found = results([2] * 4, [2] * 4, [2] * 4, decisions=rights, scope=Scope(SEEDS))
    *others, last = [claim.verdict(found) for claim in modularity._claims(found.scope)]
    assert (last.standing, last.kind, last.number) == ("confirmed", "within", 1)
    assert "flat 0.000" in last.evidence
    assert len(others) == 3 * len(modularity.PAIRS) == 12
    early = tables(found)["early"]
    assert [(row["arm"], row["others"].value, row["changed decision"].value) for row in early] == [
        ("society", 1, 0.2),
        ("flat", 0, 0.5),
    ]
    lower = {"society": np.array([[1, 0.95, 0], [1, 0.8, 0]] * 2), "flat": rights["flat"]}
    found = results([2] * 4, [2] * 4, [2] * 4, decisions=lower, scope=Scope(SEEDS))
    assert modularity._claims(found.scope)[-1].verdict(found).standing == "not confirmed"  # its lower end


def test_societies_are_compared_with_the_agent_that_has_more_entropy():
    found = confirmed(results([4] * 4, [4] * 4, [8] * 4, **{"flat-exploring": [2] * 4}))
    claim = "[linear chain, last] the {} society reaches 90% again in fewer steps{}"
    assert found[claim.format("ppo", "")] and found[claim.format("valuation", "")]
    for society in ("exploring", "valuation"):
        assert not found[claim.format(society, " than flat-exploring")]


# --- the experiment


@pytest.mark.slow
def test_the_transfer_starts_where_the_first_task_ended(tmp_path, monkeypatch):
    """Every agent the same small monolithic one. After three more updates of Adam at 1e-2, no weight is further away
    than those can have moved it."""
    monkeypatch.setattr(modularity, "_KINDS", {agent: {"agent": "monolith"} for agent in modularity.AGENTS})
    monkeypatch.setattr(modularity, "CONDITIONS", dict.fromkeys(modularity.CONDITIONS, modularity.AGENTS["flat"]))
    monkeypatch.setattr(modularity, "_BUDGET", modularity._BUDGET | {"steps": 3 * 512})
    report = experiments.reproduce("modularity", tmp_path, quick=True, seeds=2, progress=False)
    line = json.loads(report.to_json())
    assert [row["arm"] for row in line["table"]] == list(modularity.CONDITIONS)
    assert len(line["verdicts"]) == 12
    assert set(report.figures) == {"transfers", "moved", "weights"}
    before, after = (
        run_folder.read(next(tmp_path.glob(f"conditions/{name}-*")), {"env": linear_chain(task)})
        for name, task in (("first-flat-linear-chain", "ABC"), ("transfer-flat-linear-chain-last", "ABD"))
    )
    gap = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before.params, after.params)
    assert 0 < max(jax.tree.leaves(gap)) < 0.2
    assert all(0 < row["change"] < 1 for row in line["table"])


def test_grids_are_of_one_size_and_hold_what_is_used():
    assert {len(grid) for grid in modularity.GRIDS.values()} == {12}
    for agent, settings in modularity.CONDITIONS.items():
        assert settings in modularity.GRIDS[kind_of(agent)]


@pytest.mark.slow
def test_a_full_run_adds_the_grid_and_a_normal_one_the_early_decisions():
    quick, normal, full = (
        {c.name: c for c in modularity.EXPERIMENT.planned(Scope(16, quick, full))}
        for quick, full in ((True, False), (False, False), (False, True))
    )
    assert quick.keys() < normal.keys() < full.keys()
    assert (len(quick), len(normal), len(full) - len(normal)) == (10, 5 * 3 + 5 * 7 + 2 * 2 * 7, 72)
    early = normal["early-society-linear chain, last"]
    assert (early.start, early.config.settings.steps) == ("first-society-linear chain", 5120)

"""The neural bucket brigade against the rule in plain Python, its books, and what it learns."""

import dataclasses
import json

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket.experiments import EXPERIMENTS, Scope
from jaxmarket.experiments import experiment as engine
from jaxmarket.experiments.neural_bucket_brigade import CONDITIONS, EXPERIMENT, measure
from jaxmarket.experiments.results import Results
from jaxmarket.networks.neural_bucket_brigade import (
    NO_TARGET,
    SILENT,
    Network,
    NetworkState,
    Rates,
    init,
    light,
    present,
    respond,
    rest,
    tick,
    xor,
)
from jaxmarket.runs.curves import first_held, reached_by

NETWORKS = (
    Network((3, 3, 2), ((0, 1), (0, 2), (1, 2))),
    Network((3, 2), ((0, 1), (1, 1))),
    Network((2, 2, 3, 2), ((0, 1), (0, 2), (1, 2), (2, 1), (1, 3), (2, 3), (3, 3))),
    Network((2, 1, 2), ((0, 1), (1, 2))),
)


# --- the rule again, slowly


def by_loops(network, state, inputs, target, rates):
    """One tick, written from the paper: lists, loops, one connection at a time."""
    n, outputs = network.units, range(network.units - network.outputs, network.units)
    weights, before, earlier = state.weights.tolist(), state.active.tolist(), state.carried.tolist()
    carried = [[before[i] * weights[i][j] for j in range(n)] for i in range(n)]
    active = [float(x) for x in inputs] + [0.0] * (n - network.inputs)
    unit = network.inputs
    for size in network.groups[1:]:
        nets = [sum(carried[i][j] for i in range(n)) for j in range(unit, unit + size)]
        if max(nets) > 0:
            active[unit + nets.index(max(nets))] = 1.0
        unit += size
    new = [row[:] for row in weights]
    injected = dissipated = circulated = 0.0
    for i in range(n):
        for j in range(network.inputs, n):
            payment = rates.payment * carried[i][j] * active[j]
            new[i][j] -= payment
            behind = sum(earlier[h][i] for h in range(n))
            if behind > 0:
                circulated += payment
                for h in range(n):
                    new[h][i] += payment * earlier[h][i] / behind
            else:
                dissipated += payment
            if j in outputs and j - outputs[0] == target and active[j]:
                new[i][j] += rates.reward * carried[i][j]
                injected += rates.reward * carried[i][j]
    fired = next((k for k, j in enumerate(outputs) if active[j]), SILENT)
    return NetworkState(np.array(new), np.array(active), np.array(carried)), (injected, dissipated, circulated), fired


@st.composite
def cases(draw):
    """A network with random weights, binary inputs, and targets of which some cannot be reached."""
    network = draw(st.sampled_from(NETWORKS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ticks = 6  # of one shape, which compiles once
    weights = np.where(network.connected, rng.uniform(0.01, 3, (network.units,) * 2), 0)
    inputs = rng.integers(0, 2, (ticks, network.inputs)).astype(float)
    targets = rng.integers(NO_TARGET, network.outputs, ticks)
    return network, weights, inputs, targets, Rates(*rng.uniform(0, 0.5, 2))


tick_jit = jax.jit(tick, static_argnums=0)
present_jit = jax.jit(present, static_argnums=0)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(cases())
def test_a_tick_is_the_papers_rule(case):
    network, weights, inputs, targets, rates = case
    with jax.enable_x64(True):
        state = rest(network, jnp.asarray(weights))
        slow = jax.device_get(state)
        for now, target in zip(inputs, targets, strict=True):
            state, flows, fired = tick_jit(network, state, now, target, rates)
            slow, named, expected = by_loops(network, slow, now, target, rates)
            assert int(fired) == expected
            for got, want in zip(jax.tree.leaves((state, flows)), jax.tree.leaves((slow, named)), strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-11)


def test_two_ticks_by_hand():
    """Two inputs feed two hidden units, those two outputs; λ = .1, η = .2."""
    network = Network((2, 2, 2), ((0, 1), (1, 2)))
    weights = np.zeros((6, 6), np.float32)
    weights[0, 2:4], weights[1, 2:4] = (2, 1), (1, 0.5)  # hidden unit 2 wins by 3 to 1.5
    weights[2, 4:6], weights[3, 4:6] = (3, 4), (9, 9)  # and makes output 1 win
    state, rates = rest(network, jnp.asarray(weights)), Rates(0.1, 0.2)
    both = jnp.ones(2)
    state, flows, fired = tick(network, state, both, 1, rates)
    assert (int(fired), *map(float, jax.tree.leaves(flows))) == (SILENT, 0, 0, 0)  # inputs are felt a tick later
    np.testing.assert_array_equal(state.weights, weights)
    state, flows, fired = tick(network, state, both, 1, rates)
    assert (int(fired), float(flows.injected), float(flows.circulated)) == (SILENT, 0, 0)
    assert float(flows.dissipated) == pytest.approx(0.3)  # both connections into unit 2 pay their inputs
    np.testing.assert_allclose(state.weights[:2, 2], [1.8, 0.9], rtol=1e-6)
    state, flows, fired = tick(network, state, both, 1, rates)
    assert int(fired) == 1
    # The connection to output 1 pays .4 and is rewarded .8; of the .4 two thirds reach the input that carried 2 of 3.
    assert float(state.weights[2, 5]) == pytest.approx(4 - 0.4 + 0.8)
    np.testing.assert_allclose(state.weights[:2, 2], [1.8 * 0.9 + 0.4 * 2 / 3, 0.9 * 0.9 + 0.4 / 3], rtol=1e-6)
    np.testing.assert_allclose(jax.tree.leaves(flows), [0.8, 0.27, 0.4], rtol=1e-6)
    untouched = np.ones((6, 6), bool)
    untouched[:2, 2] = untouched[2, 5] = False
    np.testing.assert_array_equal(np.asarray(state.weights)[untouched], weights[untouched])


# --- the books


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(cases())
def test_all_weights_change_by_what_is_injected_and_dissipated(case):
    network, weights, inputs, targets, rates = case
    with jax.enable_x64(True):
        after, flows, _ = present_jit(network, jnp.asarray(weights), jnp.asarray(inputs), targets, rates)
        change = float(after.sum()) - weights.sum()
        assert change == pytest.approx(float(flows.injected - flows.dissipated), abs=1e-12 * weights.sum())
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (weights, inputs))
    after, flows, _ = present_jit(network, *single, targets, rates)
    change = np.asarray(after, np.float64).sum() - np.asarray(single[0], np.float64).sum()
    assert change == pytest.approx(float(flows.injected - flows.dissipated), abs=2e-6 * weights.sum())


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(cases())
def test_what_is_dissipated_is_what_inputs_are_paid(case):
    """Starting at rest, all other units have incoming connections with contributions."""
    network, weights, inputs, targets, rates = case
    with jax.enable_x64(True):
        state = rest(network, jnp.asarray(weights))
        for now, target in zip(inputs, targets, strict=True):
            state, flows, _ = tick_jit(network, state, now, target, rates)
            paid = rates.payment * np.asarray(state.carried * state.active)
            assert float(flows.dissipated) == pytest.approx(paid[: network.inputs].sum(), abs=1e-12)
            assert float(flows.circulated) == pytest.approx(paid[network.inputs :].sum(), abs=1e-12)


def test_no_reward_means_the_money_runs_out():
    network = NETWORKS[0]
    patterns, targets = map(jnp.asarray, xor(6))
    weights = init(network, jax.random.key(0))
    held = [float(weights.sum())]
    for _ in range(20):
        weights, flows, _ = present_jit(network, weights, patterns[1], jnp.full_like(targets[1], NO_TARGET), Rates())
        assert float(flows.injected) == 0
        held.append(float(weights.sum()))
    assert (np.diff(held) < 0).all()
    assert (np.asarray(weights) >= 0).all()


# --- what may depend on what


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(cases(), st.data())
def test_a_unit_is_paid_by_its_own_connections_only(case, data):
    """Changes of a unit's incoming connections do not depend on connections elsewhere."""
    network, weights, inputs, targets, rates = case
    unit = data.draw(st.integers(network.inputs, network.units - 1))
    state = rest(network, jnp.asarray(weights, jnp.float32))
    for now, target in zip(inputs[:-1], targets[:-1], strict=True):
        state = tick_jit(network, state, now, target, rates)[0]
    elsewhere = np.ones_like(weights)
    elsewhere[unit], elsewhere[:, unit] = 0, 0
    other = state.replace(weights=state.weights * (1 + 0.02 * elsewhere), carried=state.carried * (1 + 0.5 * elsewhere))
    after, other_after = (tick_jit(network, s, inputs[-1], targets[-1], rates)[0] for s in (state, other))
    hypothesis.assume((after.active == other_after.active).all())  # else it is not the payments that differ
    np.testing.assert_array_equal(after.weights[:, unit], other_after.weights[:, unit])
    hypothesis.assume(not state.active[unit] and not after.active[unit])
    np.testing.assert_array_equal(after.weights[:, unit], state.weights[:, unit])


def test_connections_that_are_not_there_stay_away():
    network = NETWORKS[2]
    weights = init(network, jax.random.key(1), 0.5, 1.5)
    assert ((np.asarray(weights) > 0) == network.connected).all()
    assert (np.asarray(weights)[network.connected] >= 0.5).all()
    for _ in range(3):
        weights, *_ = present_jit(network, weights, jnp.ones((6, 2)), jnp.ones(6, int), Rates(0.2, 0.3))
    assert (np.asarray(weights)[~network.connected] == 0).all()
    np.testing.assert_array_equal(network.group, [0, 0, 1, 1, 2, 2, 2, 3, 3])


@pytest.mark.parametrize(
    ("groups", "links", "match"),
    [
        ((3,), (), "groups"),
        ((3, 0, 2), ((0, 2),), "groups"),
        ((3, 2), ((1, 0),), "links"),
        ((3, 2), ((0, 2),), "links"),
    ],
)
def test_no_network(groups, links, match):
    with pytest.raises(ValueError, match=match):
        Network(groups, links)


def test_compiled_as_written_and_seeds_apart():
    network = NETWORKS[1]
    patterns, targets = map(jnp.asarray, light(5, 2))
    weights = jax.vmap(lambda key: init(network, key))(jax.random.split(jax.random.key(0), 3))
    together = jax.vmap(lambda w: present(network, w, patterns[0], targets[0], Rates()))(weights)
    with jax.disable_jit():
        alone = [present(network, w, patterns[0], targets[0], Rates()) for w in weights]
    for i, one in enumerate(alone):
        for a, b in zip(
            jax.tree.leaves(jax.tree.map(lambda x, i=i: x[i], together)), jax.tree.leaves(one), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_asking_costs_nothing():
    network, (patterns, targets) = NETWORKS[0], xor(6)
    weights = init(network, jax.random.key(3))
    after, flows, fired = present_jit(network, weights, patterns[2], targets[2], Rates(0.0, 0.0))
    np.testing.assert_array_equal(after, weights)
    assert jax.tree.leaves(flows) == [0, 0, 0]
    np.testing.assert_array_equal(respond(network, weights, jnp.asarray(patterns[2])), fired)
    assert fired[0] == SILENT  # nothing is carried yet
    assert (fired[1:] != SILENT).all()


# --- the experiment


def test_what_is_shown():
    patterns, targets = xor(2)
    assert [(*pattern[0], target[0]) for pattern, target in zip(patterns, targets, strict=True)] == [
        (a, b, 1, int(a != b)) for a in (0, 1) for b in (0, 1)
    ]
    np.testing.assert_array_equal(patterns[:, 0], patterns[:, 1])
    moving, targets = light(4, 3)
    np.testing.assert_array_equal(moving[0, :, :3], np.eye(4, 3))
    np.testing.assert_array_equal(moving[1, :3, :3], np.eye(3)[::-1])
    assert (moving[:, :, 3] == 1).all()
    assert (targets == [[0], [1]]).all()


def test_first_held_by_hand():
    solved = np.array([[0, 1, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1]], bool)
    np.testing.assert_array_equal(first_held(solved.T, 1), [2, np.nan, 1])
    np.testing.assert_array_equal(first_held(solved.T, 2), [4, np.nan, 1])
    np.testing.assert_array_equal(first_held(solved.T, 3), [4, np.nan, np.nan])


def test_a_share_of_runs_without_interpolation():
    reached = [30.0, np.nan, 10.0, 20.0]
    assert [reached_by(reached, share) for share in (0.25, 0.5, 0.75, 1.0)] == [10, 20, 30, None]
    assert reached_by([np.nan, np.nan, 5.0]) is None


@pytest.fixture(scope="module")
def moving():
    """The light, with the published settings: it takes a hundred presentations."""
    condition = next(c for c in CONDITIONS if c.name == "light: published")
    return measure(condition, 600, jax.random.split(jax.random.key(0), 4))


found, held, residual = (EXPERIMENT.measures[name] for name in ("found", "held", "residual"))


def test_the_direction_of_a_light_is_learned(moving):
    assert moving["solved"].shape == (4, 600)
    assert (found(moving) < 200).all()
    assert (found(moving) > 10).all()  # it is not born with it
    assert (held(moving) < 400).all()
    # Four runs could be of one mind by accident, and are not.
    assert len(set(found(moving))) > 1


def test_without_reward_it_is_not():
    condition = next(c for c in CONDITIONS if c.name == "light: published")
    unpaid = measure(dataclasses.replace(condition, reward=0.0), 600, jax.random.split(jax.random.key(0), 4))
    assert unpaid["solved"][:, -100:].mean() < 0.2
    assert np.isnan(held(unpaid)).all()
    assert (unpaid["injected"] == 0).all()


def test_named_flows_explain_all_changes_of_money(moving):
    assert residual(moving).max() < 1e-6
    assert residual(moving | {"injected": 1.01 * moving["injected"]}).min() > 1e-4
    assert moving["money"].shape == (4, 7)


def report_of(result, folder, quick):
    """The report if all conditions have this result."""
    scope = Scope(4, quick)
    results = Results(scope, {condition.name: result for condition in CONDITIONS}, {}, EXPERIMENT.measures)
    return engine.report(EXPERIMENT, results, folder)


def test_the_report(moving, tmp_path):
    report = report_of(moving, tmp_path, quick=True)
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["conservation_residual"] == pytest.approx(residual(moving).max())
    assert document["seeds"] == 4
    assert document["quick"]
    assert {"neural-bucket-brigade.png", "money.png", "neural-bucket-brigade.csv"} <= set(report.written)
    row = document["table"][0]
    assert row["found"] == row["held"] == "4/4"
    assert row["found mean"] == round(found(moving).mean())
    assert row["held quartile 1"] == sorted(held(moving))[0]
    assert row["held median"] == sorted(held(moving))[1]
    assert row["held quartile 3"] == sorted(held(moving))[2]
    assert [verdict["standing"] for verdict in document["verdicts"]] == ["confirmed"] * 5
    assert [verdict["kind"] for verdict in document["verdicts"]] == ["share_of_seeds"] * 4 + ["every_seed"]
    assert document["verdicts"][0]["number"] == 1
    assert f"found after {found(moving).mean():.0f} [" in report.tables[0].note
    assert EXPERIMENTS["neural-bucket-brigade"] is EXPERIMENT
    assert EXPERIMENT.seeds == 20


def test_a_report_of_failure(moving, tmp_path):
    nothing = moving | {"solved": np.zeros_like(moving["solved"])}
    report = report_of(nothing, tmp_path, quick=False)
    document = json.loads(report.to_json())
    assert document["table"][0]["held"] == "0/4"
    assert document["table"][0]["held median"] is document["table"][0]["held mean"] is None
    assert [verdict["standing"] for verdict in document["verdicts"]] == ["not confirmed"] * 4 + ["confirmed"]
    assert "619 presentations" not in report.tables[0].note


@pytest.mark.parametrize(("solving", "standing"), [(10, "confirmed"), (9, "confirmed"), (8, "not confirmed")])
def test_nine_of_ten_runs_are_required(moving, solving, standing):
    result = {name: np.repeat(values[:1], 10, axis=0) for name, values in moving.items()}
    result["solved"][solving:] = False
    results = Results(Scope(10), {condition.name: result for condition in CONDITIONS}, {}, EXPERIMENT.measures)
    verdict = EXPERIMENT.claimed(results.scope)[0].verdict(results)
    assert (verdict.standing, verdict.number) == (standing, solving / 10)
    assert f"{solving}/10 without reward" in verdict.evidence


@pytest.mark.full
def test_xor_is_solved():
    """18 of 20 hold a solution within 6,000 presentations, on seeds that are not those of the report.

    No run does without reward, though nearly every run is right once; few do whose outputs do not feel the inputs.
    """
    by_setting = {c.setting: c for c in CONDITIONS if c.task == "XOR"}
    keys = jax.random.split(jax.random.key(1), 20)
    published, unpaid, alone = (
        measure(by_setting[setting], 6000, keys) for setting in ("published", "no reward", "no direct links")
    )
    assert np.isfinite(held(published)).sum() >= 18
    assert 2000 < np.nanmean(held(published)) < 3300
    assert np.isfinite(found(published)).all()
    assert 450 < found(published).mean() < 800
    assert residual(published).max() < 1e-6
    assert np.isnan(held(unpaid)).all()
    assert np.isfinite(found(unpaid)).sum() >= 15
    assert np.isfinite(held(alone)).sum() <= 4

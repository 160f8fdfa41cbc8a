"""Starting from trained networks, freezing parts of them, and measuring what moved."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket import TrainConfig, as_policy, fit
from jaxmarket.cli import main
from jaxmarket.runs.sweeps import NamedConfig, train
from jaxmarket.training import transfer

SMALL = {"steps": 512, "instances": 8, "horizon": 16, "minibatch": 32, "seeds": 2, "log_every": 4}
FIXED = {"bid_low": 0.0, "bid_high": 1.0}  # a range that adapts moves without a learning rate: test_ranges.py
AGENTS = {
    "ppo": TrainConfig("Chain-v0", **SMALL, **FIXED, learner="ppo", learning_rate=1e-2),
    "unshared": TrainConfig("Bandit-v0", **SMALL, **FIXED, learner="reinforce", share_clones=False),
    "monolith": TrainConfig("Chain-v0", **SMALL, agent="monolith", learning_rate=1e-2),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run of every kind, with its folder."""
    folder = tmp_path_factory.mktemp("transfer")
    return {
        name: (fit(config, jax.random.key(0), folder / name, progress=False), folder / name)
        for name, config in AGENTS.items()
    }


def leaves(networks):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(networks)]


@pytest.mark.slow
@pytest.mark.parametrize("name", AGENTS)
def test_each_seed_begins_where_it_ended(trained, name):
    """Without a learning rate the networks stay, bit for bit, from the run in memory and from its folder."""
    run, folder = trained[name]
    still = {"learning_rate": 0.0} | ({} if name == "unshared" else {"value_learning_rate": 0.0})
    before = leaves(run.networks)
    for start in (run, folder):
        again = fit(dataclasses.replace(AGENTS[name], **still), jax.random.key(9), start=start, progress=False)
        for old, new in zip(before, leaves(again.networks), strict=True):
            np.testing.assert_array_equal(new, old)
        assert (
            again.summary["start"]
            == transfer.fingerprint(run.networks)
            != transfer.fingerprint({"policy": before[0] + 1})
        )
    assert not np.array_equal(before[0][0], before[0][1])  # seeds do differ
    as_policy(run)(
        jnp.eye(run.config.settings.society.observation.shape[0])[0]
    )  # and what was started from is still there


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "patterns", "held"),
    [
        ("ppo", ["policy/torso/*"], lambda part: "policy/torso" in part),
        ("ppo", ["module1/*"], lambda part: part.startswith("module1/")),
        (
            "ppo",
            ["module0/value/*", "policy/Affine_0"],
            lambda p: "module0/value" in p or p.endswith("policy/Affine_0"),
        ),
        ("unshared", ["module[02]/*"], lambda part: part[:8] in ("module0/", "module2/")),
        ("monolith", ["policy/*"], lambda part: part.startswith("policy/")),
    ],
)
def test_frozen_parts_stay_and_all_others_move(trained, name, patterns, held):
    run, _ = trained[name]
    after = fit(AGENTS[name], jax.random.key(1), start=run, freeze=patterns, progress=False)
    modules = name != "monolith"
    old, new = (transfer.parts(r.networks, modules=modules) for r in (run, after))
    assert any(held(part) for part in old)
    for part in old:
        same = [np.array_equal(a, b) for a, b in zip(old[part], new[part], strict=True)]
        assert all(same) if held(part) else not any(same), part


@pytest.mark.slow
def test_a_module_that_others_are_trained_beside_is_not_disturbed(trained):
    """Freezing one module leaves what another learns from the same rollouts as it was: learning is local."""
    run, _ = trained["unshared"]
    one_update = dataclasses.replace(AGENTS["unshared"], steps=128, log_every=1)
    free, frozen = (
        transfer.parts(fit(one_update, jax.random.key(1), start=run, freeze=f, progress=False).networks, modules=True)
        for f in ((), ("module0/*",))
    )
    for part in free:
        if not part.startswith("module0/"):
            np.testing.assert_array_equal(frozen[part], free[part])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"start": "ppo", "freeze": ("policy/torsos/*",)},
            r"freeze: 'policy/torsos/\*' names no part; there are policy/",
        ),
        ({"start": "ppo", "freeze": ("module2/*",)}, "freeze: 'module2/"),
        ({"start": "monolith"}, "start: the trained networks do not fit this run: they have .*; use the same kind"),
        ({"start": "unshared"}, "start: the trained networks do not fit"),
        ({"start": "ppo", "config": 3}, "start: the trained networks are of 2 seeds, this run has 3; choose 2"),
        ({"start": "nowhere"}, "nowhere: expected a run folder"),
    ],
)
def test_what_does_not_fit_is_named(trained, settings, message):
    start = settings["start"] if settings["start"] == "nowhere" else trained[settings["start"]][0]
    settings = dict(settings)
    config = dataclasses.replace(AGENTS["ppo"], seeds=settings.pop("config", 2))
    with pytest.raises(ValueError, match=message):
        fit(config, jax.random.key(0), progress=False, **settings | {"start": start})


@pytest.mark.slow
def test_a_sweep_knows_where_its_conditions_started(trained, tmp_path):
    """Finished transfers are kept, unless what they started from has changed."""
    run, _ = trained["unshared"]

    wanted = [NamedConfig("again", AGENTS["unshared"])]

    def trained_from(start):
        return train(wanted, tmp_path, start=start, progress=False)

    first = trained_from({"again": run})["again"]
    kept = trained_from({"again": run})["again"]
    jax.tree.map(np.testing.assert_array_equal, kept.networks, first.networks)
    for other in ({}, {"again": first}):
        with pytest.raises(ValueError, match="holds another run: start is"):
            trained_from(other)


def test_weight_changes_by_hand():
    """Two seeds of two modules, one layer each: the numbers of the docstring."""
    before = {"policy": {"params": {"Affine_0": {"kernel": np.ones((2, 2, 2, 2))}}}}
    after = jax.tree.map(np.copy, before)
    layer = after["policy"]["params"]["Affine_0"]["kernel"]
    layer[0, 1] = [[1, 1], [1, 3]]  # seed 0, module 1: |after - before| = 2, |before| = 2
    layer[1, 0] = 1.09  # seed 1, module 0: by less than a tenth
    rows = {(r["seed"], r["part"]): r for r in transfer.weight_changes(before, after, modules=True)}
    assert set(rows) == {
        (s, p) for s in (0, 1) for p in ("module0/policy/Affine_0", "module1/policy/Affine_0", "policies", "all")
    }
    found = {key: (r["change"], r["moved"], r["weights"]) for key, r in rows.items()}
    assert found[0, "module0/policy/Affine_0"] == (0, 0, 4)
    assert found[0, "module1/policy/Affine_0"] == (1, 0.25, 4)
    assert found[0, "all"] == (pytest.approx(2 / np.sqrt(8)), 0.125, 8)
    assert found[1, "module0/policy/Affine_0"] == (pytest.approx(0.09), 0, 4)
    assert found[0, "policies"] == found[0, "all"]
    assert found[1, "all"] == (pytest.approx(np.sqrt(4 * 0.09**2 / 8)), 0, 8)


def test_a_part_that_was_zero():
    """Output layers start at zero: there is nothing to relate a movement to, nor where they were nearly zero."""
    before = {"policy": {"params": {"head": {"kernel": np.zeros((1, 2))}}}}
    moved = {"policy": {"params": {"head": {"kernel": np.array([[0, 1.0]])}}}}
    for negligible in (0, 1e-30):
        was = jax.tree.map(lambda x, tiny=negligible: x + tiny, before)
        row, *_ = transfer.weight_changes(was, moved, modules=False)
        assert np.isnan(row["change"])
        assert (row["distance"], row["moved"]) == (1, 1 if negligible else 0.5)
    row, *_ = transfer.weight_changes(before, before, modules=False)
    assert (row["change"], row["moved"]) == (0, 0)


@pytest.mark.slow
def test_from_the_command_line(tmp_path, capsys):
    small = [f"--{k.replace('_', '-')}={v}" for k, v in SMALL.items()]
    first, second = tmp_path / "first", tmp_path / "second"
    small += ["--learner", "ppo"]
    main(["train", "Chain-v0", *small, "--out", str(first)])
    freeze = ["--freeze", "value/*", "--freeze", "policy/torso/*"]
    main(["train", "Chain-v0", *small, "--start", str(first), *freeze, "--out", str(second), "--seed", "1"])
    capsys.readouterr()
    main(["compare", str(first), str(second), "--weights", "--out", str(tmp_path / "moved.png"), "--json"])
    text = capsys.readouterr().out
    assert "module0/policy/torso/Affine_0" in text
    moved = {row["part"] for row in json.loads(text.splitlines()[-1])["parts"] if row["change"] > 0}
    assert moved == {"module0/policy/Affine_0", "module1/policy/Affine_0", "policies", "all"}
    assert (tmp_path / "moved.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        main(["train", "Chain-v0", *small, "--start", str(tmp_path)])
    assert "expected a run folder" in capsys.readouterr().err


def test_policies_are_summed_apart():
    """A value network that moved counts in all, not in policies."""
    before = {name: {"params": {"layer": {"kernel": np.ones((1, 4))}}} for name in ("policy", "value")}
    after = {**before, "value": {"params": {"layer": {"kernel": np.full((1, 4), 3.0)}}}}
    rows = {r["part"]: r for r in transfer.weight_changes(before, after, modules=False)}
    assert (rows["policies"]["moved"], rows["policies"]["change"], rows["policies"]["weights"]) == (0, 0, 4)
    assert (rows["all"]["moved"], rows["all"]["weights"]) == (0.5, 8)
    assert rows["all"]["change"] == pytest.approx(np.sqrt(4 * 4 / 8))

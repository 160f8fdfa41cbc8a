"""The scoreboard: what it trains, keeps, chooses and shows."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from thinned import thinned

from benchmarks import scoreboard
from jaxmarket.runs import run_folder, sweeps
from jaxmarket.training import monolith


def test_arms_have_equal_steps_and_at_most_six_settings():
    for arm, described in scoreboard.ARMS.items():
        assert len(described.grid) <= 6 and described.grid[0] == {}, arm
        assert set(described.rows) <= set(scoreboard.ROWS)
        for k in range(len(described.grid)):
            settings = scoreboard.condition("Bandit-v0", arm, k, 2, 4096).config.settings
            assert (settings.steps, settings.seeds) == (4096, 2)
    assert {scoreboard.ARMS[arm].settings["agent"] for arm in scoreboard.SINGLE} == {"monolith"}


@pytest.mark.slow
@pytest.mark.parametrize("row", thinned(scoreboard.MINATAR, lambda row: row == "Freeway-MinAtar"))
def test_all_agents_on_minatar_have_as_many_parameters_as_the_society(row):
    counts = {}
    for arm, described in scoreboard.ARMS.items():
        if described.trains_on(row):
            assert len(described.images) <= 4
            settings = scoreboard.condition(row, arm, 0, 2, 4096).config.settings
            training = settings.trainable
            obs = jnp.zeros(settings.adapter.observation.shape)
            networks = jax.eval_shape(training.learner.init, jax.random.key(0), obs)
            modules = training.society.modules if arm == "society" else 1
            counts[arm] = modules * monolith.parameters(networks)
    assert set(counts) == {"society", *scoreboard.SINGLE}
    np.testing.assert_allclose(list(counts.values()), counts["society"], rtol=0.005)


def test_the_costly_chain_is_that_of_the_tests():
    env = scoreboard.COSTLY_CHAIN
    assert (env.num_states, env.num_actions) == (6, 2)
    np.testing.assert_allclose(env.optimal_q()[0], [-(1 - 0.99**6) / 0.01, -(1 - 0.99**5) / 0.01], rtol=1e-9)


@pytest.mark.slow
def test_finished_runs_are_kept_and_settings_are_chosen_on_other_seeds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        scoreboard,
        "ARMS",
        {
            "society": scoreboard.Arm({}, ({"learning_rate": 0.0}, {"learning_rate": 0.1})),
            "single PPO": scoreboard.Arm({"agent": "monolith"}),
        },
    )
    words = ["--rows", "Bandit-v0", "--arms", "society", "single PPO", "--seeds", "2", "--steps", "8192", "--tune"]
    words += ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "table.json")]
    assert scoreboard.main(words) == 0
    first, second = json.loads((tmp_path / "table.json").read_text())
    assert (first["task"], first["agent"], first["settings"]) == ("Bandit-v0", "society", "learning_rate 0.1")
    assert first["solved"] == "2/2" and first["return"] == pytest.approx(0.8)
    assert second["better"] is None and 0 <= first["better"] <= 1
    assert "Bandit-v0" in capsys.readouterr().out

    reported, chosen = (tmp_path / "out" / "Bandit-v0" / name for name in ("reported", "settings"))
    keys = [run_folder.read_config(path / "society 1")[1].key for path in (reported, chosen)]
    assert keys[0] != keys[1]

    def none(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(sweeps.fitting, "fit", none)
    assert scoreboard.main(words) == 0

"""`watch`: the replay of a run shows what the run learned, and its training with the same bits."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from jaxmarket import TrainConfig, fit
from jaxmarket.cli import main
from jaxmarket.runs.run_folder import read
from jaxmarket.runs.watching import watch


def test_a_result_and_its_folder_have_the_same_replay(bandit_run):
    result, out = bandit_run
    made = result.watch(episodes=2)
    assert made.html == read(out).watch(episodes=2).html == watch(out, episodes=2).html
    assert len(made.episodes) == 4 and len({episode.seed for episode in made.episodes}) == 2
    for episode in made.episodes:
        (step,) = episode.steps
        assert step.reward == pytest.approx(0.8) and step.sales[0].action == "action 3"
        np.testing.assert_allclose(step.sales[0].q, np.repeat([0.2, 0.4, 0.6, 0.8], 2), atol=1e-6)
        assert step.end == "terminated"


def test_the_training_is_repeated_with_the_same_bits(bandit_run):
    result, _ = bandit_run
    made = result.watch(episodes=1, run_seed=1, training=True)
    (training,) = made.training
    assert "with the same bits as the run" in training.note
    assert 2 <= len(training.steps) <= 50 and training.steps[0] == 0 and (np.diff(training.steps) > 0).all()
    assert not training.bids[0].any()  # bids of untrained values
    np.testing.assert_array_equal(training.bids[-1], result.bids[1])
    assert training.primitives == tuple(f"action {i}" for i in range(4))


def test_the_command_writes_a_page(bandit_run, tmp_path, capsys):
    main(["watch", str(bandit_run[1]), "--html", str(tmp_path / "a.html"), "--episodes", "1", "--run-seed", "0"])
    assert "written to" in capsys.readouterr().out
    text = (tmp_path / "a.html").read_text()
    assert text == watch(bandit_run[1], episodes=1, run_seed=0).html
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert data["title"] == "Bandit-v0" and len(data["episodes"]) == 1


def test_the_command_writes_an_animated_picture(bandit_run, tmp_path, capsys):
    out, page, gif = str(bandit_run[1]), tmp_path / "a.html", tmp_path / "a.gif"
    main(["watch", out, "--gif", str(gif), "--html", str(page), "--episodes", "2"])
    assert capsys.readouterr().out.count("written to") == 2
    assert page.read_text() == watch(out, episodes=2).html
    with Image.open(gif) as picture:
        assert picture.n_frames == 2  # two episodes with one auction each
    for wrong, field in ((["--gif", "a.png"], "gif:"), (["--gif", "a.gif", "--training"], "training:")):
        with pytest.raises(SystemExit):
            main(["watch", out, *wrong])
        assert field in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "field"),
    [({"run_seed": 2}, "run_seed"), ({"episodes": 0}, "episodes"), ({"steps": 0}, "steps"), ({"seed": -1}, "seed")],
)
def test_wrong_arguments_are_named(bandit_run, options, field):
    with pytest.raises(ValueError, match=f"^{field}: "):
        bandit_run[0].watch(**options)
    with pytest.raises(ValueError, match="source: "):
        watch(3)


def test_the_training_is_no_text(bandit_run, capsys):
    with pytest.raises(SystemExit):
        main(["watch", str(bandit_run[1]), "--training"])
    assert "--html" in capsys.readouterr().err


@pytest.mark.full
def test_every_kind_of_market_can_be_watched(small):
    config = {"steps": 2048, "instances": 4, "horizon": 8}
    population = fit(TrainConfig("Chain-v0", agent="population", **config), jax.random.key(0), progress=False)
    made = population.watch(episodes=1, steps=4)
    assert made.episodes[0].steps and made.episodes[0].accounts[0].startswith("agent ")
    with pytest.raises(ValueError, match="sampled: "):
        population.watch(sampled=True)
    with pytest.raises(ValueError, match="training: "):
        population.watch(training=True)
    wide = fit(TrainConfig("SupplyChain2-v0", agent="wide", minibatch=32, **config), jax.random.key(0), progress=False)
    assert len(wide.watch(episodes=1, steps=5).episodes[0].steps) == 5
    alone = fit(TrainConfig("Bandit-v0", agent="monolith", **small), jax.random.key(0), progress=False)
    with pytest.raises(ValueError, match="source: a run of agent monolith"):
        alone.watch()

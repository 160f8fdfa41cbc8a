"""Animated pictures of replays: a frame for every sale, drawn from the recorded numbers."""

import dataclasses
import types
from collections import Counter

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from replays import HOSTILE, episode, replay

from jaxmarket.environments.mazes import Woods1
from jaxmarket.view import animation, plotting
from jaxmarket.view.replay import Replay, ReplaySale


@pytest.fixture
def drawn(monkeypatch):
    """What each frame of an animation shows, without drawing it."""
    found = []

    def record(path, fig, draw, frames, **options):
        for t in range(frames):
            draw(t)
            state, bids, wealth = fig.axes
            found.append(
                {
                    "texts": [fig.get_suptitle(), state.get_title(), bids.get_title(loc="left")],
                    "bars": [bar.get_width() for bar in bids.patches],
                    "full": [bar.get_alpha() == 1 for bar in bids.patches],
                    "lines": [line.get_xydata() for line in bids.get_lines()],
                    "names": [label.get_text() for label in bids.get_yticklabels()],
                    "wealth": [line.get_ydata() for line in wealth.get_lines()],
                }
            )

    monkeypatch.setattr(animation, "save_gif", record)
    return found


def test_a_frame_shows_the_bids_the_winner_the_price_and_the_wealth_so_far(drawn):
    played = episode()
    animation.save_episodes("a.gif", [played], "Chain-v0")
    assert len(drawn) == len(played.steps)
    wealth = np.stack([played.opening, *(step.wealth for step in played.steps)])
    for t, (frame, step) in enumerate(zip(drawn, played.steps, strict=True)):
        (sale,) = step.sales
        np.testing.assert_allclose(frame["bars"], sale.bids)
        assert frame["full"] == [agent == sale.winner for agent in range(2)]
        price, values = frame["lines"]
        np.testing.assert_allclose(price[:, 0], sale.price)
        np.testing.assert_allclose(values[:, 0], sale.q)
        np.testing.assert_allclose(np.transpose(frame["wealth"]), wealth[: t + 2, :2])
        assert frame["texts"][0] == f"Chain-v0 · episode 1 · auction {t + 1} of 6"
        payer, payee = (played.accounts[account] for account in (sale.winner, sale.seller))
        assert frame["texts"][2].startswith(f"{payer} pays 0.25 to {payee}: {sale.action}")
        assert frame["names"] == ["left", "right"]


@pytest.mark.slow
def test_the_file_has_a_frame_for_every_sale_of_the_first_seed(tmp_path):
    made = replay()  # episodes of 6 and 3 steps of one seed, and one of another seed
    assert made.save_gif(tmp_path / "a.gif") == tmp_path / "a.gif"
    with Image.open(tmp_path / "a.gif") as picture:
        width, height = picture.size
        assert (picture.n_frames, picture.info["loop"]) == (9, 0)
        assert width > height
    assert (tmp_path / "a.gif").stat().st_size < 9 * 20_000


@pytest.mark.parametrize("picture", [None, lambda t: np.full((8, 8), t, np.uint8)])
def test_any_name_and_text_can_be_drawn(tmp_path, picture):
    played = [episode(names=[*HOSTILE, "$x_{", "_hidden"], steps=2, text=HOSTILE[0] + "$" * 200, picture=picture)]
    animation.save_episodes(tmp_path / "a.gif", played, HOSTILE[2])
    assert (tmp_path / "a.gif").read_bytes().startswith(b"GIF89a")


def test_a_round_with_two_goods_has_two_frames(drawn):
    def round_of(step):
        traded = ReplaySale("grain", np.array([0.5, np.nan]), None, 2, 0.75, quantities=True)
        unsold = ReplaySale("bread", np.full(2, np.nan), None, 2, 0.0)
        return dataclasses.replace(step, sales=(traded, unsold))

    whole = episode(steps=2)
    animation.save_episodes("a.gif", [dataclasses.replace(whole, steps=tuple(map(round_of, whole.steps)))])
    assert [frame["bars"] for frame in drawn] == [[0.5, 0], [0, 0]] * 2
    assert drawn[0]["texts"][2].startswith("grain: price 0.75") and drawn[1]["texts"][2].startswith("no agent buys")
    assert not any(line.size for frame in drawn for line in frame["lines"])


def test_the_agents_without_room_have_one_bar(drawn):
    Replay("many", "", (episode([f"agent {i}" for i in range(100)], 3),)).save_gif("a.gif")
    assert len(drawn[0]["bars"]) == 16 and drawn[0]["names"][-1] == "85 other agents"


@pytest.mark.parametrize(
    ("path", "seconds", "says"),
    [
        ("a.png", 1.0, "^path: .* ends in .gif"),
        ("no/a.gif", 1.0, "^path: cannot write"),
        ("a.gif", 0.0, "^seconds_"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path, path, seconds, says):
    with pytest.raises(ValueError, match=says):
        animation.save_gif(tmp_path / path, Figure(figsize=(1, 1)), lambda t: None, 1, seconds_per_frame=seconds)


def lived(parts=3, measured=("sold", "price", "moves", "steps")):
    """A made-up market in Woods1, two seeds: prices rise from part to part."""
    maze = Woods1()
    places, rounds = len(maze.places), 2 * parts
    found = {
        "sold": np.ones((parts, 2, places), bool),
        "price": np.arange(1, parts + 1)[:, None, None] * np.full((parts, 2, places), 0.1),
        "moves": np.zeros((parts, 2, places), np.int32),
        "steps": np.full((parts, 2), 2.0),
    }
    summary = types.SimpleNamespace(
        num_agents=np.arange(rounds), money=np.ones(rounds), wealth=np.tile(np.arange(5.0), (rounds, 1))
    )
    plan = types.SimpleNamespace(
        chunks=parts,
        steps=100 * np.arange(1, parts + 1),
        market=types.SimpleNamespace(env=types.SimpleNamespace(env=maze)),
    )
    return types.SimpleNamespace(
        plan=plan, measured={name: found[name] for name in measured}, seed=lambda seed: summary
    )


def test_a_life_has_a_frame_for_each_measurement(tmp_path, monkeypatch):
    texts, draw_policy = [], plotting.draw_maze_policy

    def drawn(ax, *given, **options):
        draw_policy(ax, *given, **options)
        texts.append(([text.get_text() for text in ax.texts], ax.figure.get_suptitle(), options["highest"]))

    monkeypatch.setattr(plotting, "draw_maze_policy", drawn)
    animation.save_life(tmp_path / "life.gif", lived(), 1)
    assert [Counter(found)[price] for (found, _, _), price in zip(texts, ("0.10", "0.20", "0.30"), strict=True)] == [
        16
    ] * 3
    assert [title for _, title, _ in texts] == [
        "100 auctions · 1 agents", "200 auctions · 3 agents", "300 auctions · 5 agents"
    ]  # fmt: skip
    np.testing.assert_allclose([highest for *_, highest in texts], 0.3)  # one scale in all frames
    with Image.open(tmp_path / "life.gif") as picture:
        assert picture.n_frames == 3


def test_a_life_needs_its_measurements(tmp_path):
    with pytest.raises(ValueError, match=r"grown: expected measurements by .*place_prices, got steps; give it to"):
        animation.save_life(tmp_path / "life.gif", lived(measured=["steps"]), 0)

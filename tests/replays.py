"""Replays without a market, for tests of the page: any names, any number of steps."""

import numpy as np

from jaxmarket.view.replay import Payment, Replay, ReplayEpisode, ReplaySale, ReplayStep, ReplayTraining

HOSTILE = (
    "</script><img src=x onerror=window.broken=1>",
    '<b>bold</b> & "quotes" \'',
    "{{data}}{{script}}\\u003c\u2028\u2029\u202e\ud800\x00",
    "javascript:window.broken=1",
)


def episode(names=("left", "right"), steps=6, *, seed="0", label="episode 1", picture=None, text="state {}"):
    """Every step the next agent buys the state and pays 1/4; the last one is rewarded."""
    agents, accounts = len(names), (*names, "auctioneer", "mint", "environment")
    wealth = np.array([0.0] * (agents + 1) + [np.nan] * 2)
    opening, rows, owner = wealth, [], agents
    for t in range(steps):
        winner, reward = t % agents, float(t + 1 == steps)
        payments = (Payment("price", winner, owner, 0.25), Payment("reward", agents + 2, winner, reward))
        change = np.zeros(len(accounts))
        np.add.at(change, [winner, owner, winner], [-0.25, 0.25, reward])
        wealth = wealth + np.where(np.isnan(wealth), 0, change)
        bids = np.where(np.arange(agents) == winner, 0.25, 0.125)
        sale = ReplaySale("the state", bids, winner, owner, 0.25, names[winner], q=bids + 0.0625)
        numbers, drawn = np.linspace(-1, 1, 20) * (t + 1), None if picture is None else picture(t)
        rows.append(
            ReplayStep((sale,), payments, wealth, reward, reward, state=text.format(t), picture=drawn, numbers=numbers)
        )
        owner = winner
    return ReplayEpisode(accounts, agents, opening, tuple(rows), seed, label)


def training(moments=50):
    """A wave of bids that travels backwards from the last of five states."""
    q = np.linspace(0.5, 1, 5)[:, None] * [0.9, 1.0]
    share = np.clip(np.linspace(0, 2, moments)[:, None] - np.linspace(1, 0, 5), 0, 1)
    return ReplayTraining(
        np.arange(moments) * 1000, share[..., None] * q, q, np.array([True] * 4 + [False]), ("left", "right"), "0", "."
    )


def replay(**options):
    """Two seeds, two episodes of the first, and its training."""
    return Replay(
        "Chain <v0>",
        "a test",
        (
            episode(**options),
            episode(**options | {"steps": 3}, label="episode 2"),
            episode(seed="1", names=HOSTILE, label=HOSTILE[0]),
        ),
        (training(),),
    )

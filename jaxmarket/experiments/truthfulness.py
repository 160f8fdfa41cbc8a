"""The scope of truthfulness: one auction against a whole episode.

*One auction*: under second prices no bid is better than the bidder's value (Vickrey 1961). *A whole episode*: the owner
of a state is paid at the next auction, in which it may bid itself. If all other bidders bid Q*, the best strategy of
one bidder solves a decision process over (state, whether it owns the state). It is computed exactly here; its gain over
truthful bidding is the difference of the discounted sums of utilities, γᵗ (r + γ · payout - price). Under `vickrey` the
seller receives the highest bid, its own included, and the auctioneer mints the difference: overbidding for one's own
state is profitable.

The second question is whether this explains why `vickrey` fails on Chain. The paper's learner cannot plan over an
episode: the utility of a bid contains its purchase but no sale that it influences, and bidders do not observe the owner
of the state. Noise in the bids also mints money, because the seller receives the *highest* of several sampled bids.
Therefore societies are trained with smaller entropy weights, without noise, and with contracts (`settle`, λ = .8),
which keep most of the minted money out of the utilities (and propagate values faster).
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxmarket.auctions import MECHANISMS
from jaxmarket.environments.tabular import Bandit, Chain, Duality, FiniteMDP, garnet
from jaxmarket.experiments.claims import Claim, at, every_seed, separated, share_of_seeds, tally, within
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Scope, Train
from jaxmarket.experiments.experiment import Experiment, Table, by_condition, column
from jaxmarket.experiments.numerical import CLONES, MEASURES, QUICK, SETTINGS
from jaxmarket.experiments.results import Results
from jaxmarket.interop.deviations import LEVELS, bid_range, episode_gain, one_shot_gain
from jaxmarket.keys import key_for, key_of
from jaxmarket.learners import Valuation
from jaxmarket.runs.estimates import mean
from jaxmarket.runs.ledgers import minted_money
from jaxmarket.runs.measures import nearly
from jaxmarket.runs.run_folder import SavedRun
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.pinned import train_config
from jaxmarket.types import Array
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT", "societies"]

_NOTHING = 1e-9  # a gain that is only due to rounding

# --- conditions


def _one_auction(keys: Array) -> Arrays:
    """The `one_shot_gain` of each auction: f [2]."""
    del keys
    return {name: np.array(one_shot_gain(mechanism)) for name, mechanism in MECHANISMS.items()}


def _episode(process: str, keys: Array) -> Arrays:
    """The `episode_gain` by auction and society, f []; and the highest bid."""
    del keys
    mdp, horizon = _process(process)
    gains = {
        f"{auction}, {society}": np.array(episode_gain(mdp, mechanism, clones, horizon=horizon))
        for society, clones in CLONES.items()
        for auction, mechanism in MECHANISMS.items()
    }
    return {"bids up to": np.array(bid_range(mdp)[1])} | gains


def _process(name: str) -> tuple[FiniteMDP, int | None]:
    """The process, and the number of auctions after which its market closes."""
    if name.startswith("random"):
        return garnet(int(name.split()[1]), 4, 3, 0.9, 2), None
    mdp = {"Bandit": Bandit, "Chain": Chain, "Duality": Duality}[name]()
    return mdp, None if name == "Duality" else mdp.horizon


def _processes(scope: Scope) -> list[str]:
    named = ["Bandit", "Chain"] if scope.quick else ["Bandit", "Chain", "Duality"]
    return named + [f"random {seed}" for seed in range(scope.seed, scope.seed + (1 if scope.quick else 5))]


_FAILS, _CONTRACT, _NOISELESS = "vickrey, noise-0.1", "vickrey, contract", "vickrey, noiseless"
_CHANGES: dict[str, dict[str, Any]] = {
    **{f"vickrey, noise-{entropy}": {"entropy": entropy} for entropy in (0.1, 0.03, 0.01, 0.003)},
    _CONTRACT: {"trace_decay": 0.8},
    "ccv, noise-0.1": {"auction": "ccv"},
}


def societies(scope: Scope) -> dict[str, TrainConfig]:
    """`vickrey` with decreasing noise in the bids, with contracts, and without noise; `ccv` for comparison."""
    budget: dict[str, Any] = {"auction": "vickrey"} | SETTINGS["published"] | (QUICK if scope.quick else {})
    learned = {name: train_config("Chain-v0", **(budget | change)) for name, change in _CHANGES.items()}
    exact = train_config("Chain-v0", auction="vickrey", learner="valuation", hidden=(), steps=1_024_000)
    return learned | {_NOISELESS: exact}


def _minted(seed: int, keys: Array, run: SavedRun) -> Arrays:
    """`minted_money` with the bids of training, which are greedy if they have no noise: f [seeds] each."""
    del keys
    greedy = isinstance(run.config.settings.learner, Valuation)
    own, others = minted_money(run, key_for(key_of(seed), "measurement"), greedy=greedy)
    return {"own": own, "others": others}


def _conditions(scope: Scope) -> list[Condition]:
    trained = [Train(name, config) for name, config in societies(scope).items()]
    minted = [Compute(_money(run.name), functools.partial(_minted, scope.seed), inputs=(run.name,)) for run in trained]
    episodes = [Compute(f"episode of {name}", functools.partial(_episode, name)) for name in _processes(scope)]
    return [*trained, *minted, Compute("one auction", _one_auction), *episodes]


def _money(society: str) -> str:
    """The name of the condition that measures the money that a society mints."""
    return f"money minted by {society}"


# --- claims


def _largest(results: Results, *auctions: str) -> float:
    """The largest gain over an episode against truthful clones under these auctions, on any process."""
    found = [results[f"episode of {name}"] for name in _processes(results.scope)]
    return max(float(each[f"{auction}, cloned"]) for each in found for auction in auctions)


def _claims(scope: Scope) -> list[Claim]:
    del scope
    lowest, contract, noiseless = nearly(Chain().optimal_return()), at(_CONTRACT, "greedy"), at(_NOISELESS, "greedy")
    own, others = at(_money(_FAILS), "own"), at(_money(_FAILS), "others")

    def incentives(results: Results) -> str:
        price = results.measure(_FAILS, "winning bid").mean()
        earned, sold = Chain().rewards.max(), Chain().gamma * price
        return f"ending the episode earns {earned:.2f}, selling the state earns {sold:.2f}"

    return [
        within(
            "truthful bidding is dominant in one second-price auction",
            lambda results: max(results["one auction"][auction][0] for auction in ("vickrey", "ccv")),
            at_most=_NOTHING,
            estimate=mean,
        ),
        within(
            "over an episode no deviation gains against truthful clones under ccv and bb",
            lambda results: _largest(results, "ccv", "bb"),
            at_most=_NOTHING,
            estimate=mean,
        ),
        within(
            "over an episode overbidding pays under vickrey: gain of the best deviation on Chain, bids up to 1",
            at("episode of Chain", "vickrey, cloned"),
            at_least=_NOTHING,
            estimate=mean,
        ),
        share_of_seeds(
            "vickrey with the paper's settings fails on Chain: greedy return below 99% of the optimum",
            at(_FAILS, "greedy"),
            share=0.5,
            at_most=lowest,
            evidence=incentives,
        ),
        every_seed(
            "it fails because utilities contain minted money: societies solve Chain with contracts, which keep this "
            "money out of the utilities, and without noise, and so without minted money",
            lambda results: np.minimum(contract(results), noiseless(results)),
            at_least=lowest,
        ),
        separated(
            "owners that overbid for their own state mint this money: more than twice as much is minted per auction if "
            "the owner's primitive wins as otherwise",
            own,
            lambda results: 2 * others(results),
        ),
    ]


# --- tables and figures


def _episode_rows(results: Results) -> Iterator[dict[str, Any]]:
    for name in _processes(results.scope):
        found = results[f"episode of {name}"]
        for society in CLONES:
            gains = {auction: float(found[f"{auction}, {society}"]) for auction in MECHANISMS}
            yield {"process": name, "society": society, "bids up to": float(found["bids up to"])} | gains


def _one_auction_rows(results: Results) -> Iterator[dict[str, Any]]:
    for auction in MECHANISMS:
        gain, expected = results["one auction"][auction].tolist()
        yield {"auction": auction, "largest gain": gain, "expected gain": expected, "dominant": gain <= _NOTHING}


def _draw(results: Results) -> Any:
    fig, (ax,) = plotting.figure(width=8)
    cloned = [row for row in _episode_rows(results) if row["society"] == "cloned"]
    for i, auction in enumerate(MECHANISMS):
        heights = [row[auction] / row["bids up to"] for row in cloned]
        ax.bar(
            np.arange(len(cloned)) + 0.2 * (i - 1.5), heights, 0.18, color=plotting.NAMED_COLORS[auction], label=auction
        )
    ax.set_xticks(range(len(cloned)), [row["process"] for row in cloned])
    ax.set_yscale("symlog", linthresh=0.01)
    ax.set_ylabel("gain of the best deviation / highest bid, log scale")
    ax.set_title("a whole episode against truthful clones; no bar: no gain")
    plotting.legend_below(fig)
    return fig


EXPERIMENT = Experiment(
    name="truthfulness",
    shows="gains over truthful bids in one auction and in whole episodes; why Vickrey auctions fail on Chain",
    source="Vickrey (1961); Chang et al. (2020), §4-5",
    conditions=_conditions,
    measures=MEASURES,
    claims=_claims,
    tables=[
        Table(
            "episode",
            "gain of the best deviation over a whole episode; all other bidders bid Q*",
            _episode_rows,
            "discounted utility minus that of truthful bidding: the maximum over bidders and over strategies of "
            f"(state, ownership) with {LEVELS} bid levels; only Chain and Bandit end at the time limit",
        ),
        Table(
            "one_shot",
            "gain of the best deviation in one auction",
            _one_auction_rows,
            "maximum over values and other bids; expected: the other bid is the highest of three uniform bids",
        ),
        Table(
            "chain",
            "why vickrey fails on Chain (truthful bids are .77 to .80)",
            by_condition(
                {
                    "solved": column("solved", tally),
                    "sampled": "sampled",
                    "winning bid": column("winning bid", np.mean),
                    "minted, own": lambda results, name: results.measure(_money(name), "own").mean(),
                    "minted, other": lambda results, name: results.measure(_money(name), "others").mean(),
                },
                first="society",
                names=(*_CHANGES, _NOISELESS),
            ),
            "noise-x is ppo with entropy weight x, contract is ppo with λ = .8, noiseless is valuation\n"
            "minted: per auction of new episodes, if a bidder of the owner's primitive wins, and if another one wins",
        ),
    ],
    figures={"deviations": _draw},
)

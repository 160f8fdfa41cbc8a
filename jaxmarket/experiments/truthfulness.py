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

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.auctions import MECHANISMS
from jaxmarket.environments.tabular import Bandit, Chain, Duality, FiniteMDP, garnet
from jaxmarket.experiments.claims import Claim, Values, at, every_seed, separated, share_of_seeds, tally, within
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Scope, Train
from jaxmarket.experiments.experiment import Experiment, Table
from jaxmarket.experiments.measures import nearly
from jaxmarket.experiments.numerical import MEASURES, QUICK, SETTINGS
from jaxmarket.experiments.results import Results
from jaxmarket.experiments.settings import train_config
from jaxmarket.interop.deviations import LEVELS, Seat, one_shot_gain
from jaxmarket.keys import key_for, key_of
from jaxmarket.learners import Valuation
from jaxmarket.rollouts import fresh_rollout
from jaxmarket.runs.estimates import interquartile_mean, mean
from jaxmarket.runs.run_folder import SavedRun
from jaxmarket.society import Society
from jaxmarket.training.config import TrainConfig
from jaxmarket.types import Array, PyTree
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT", "societies"]

_NOTHING = 1e-9
_SOCIETIES = {"cloned": 2, "solitary": 1}

# --- one auction, and a whole episode


def _one_auction(keys: Array) -> Arrays:
    """The `one_shot_gain` of each auction: f [2]."""
    del keys
    return {name: np.array(one_shot_gain(mechanism)) for name, mechanism in MECHANISMS.items()}


def _episode(process: str, keys: Array) -> Arrays:
    """The gain of the best deviation of any bidder, f [], by auction and society; and the highest bid."""
    del keys
    mdp, horizon, low, high = _process(process)
    found = {"bids up to": np.array(high)}
    for society, clones in _SOCIETIES.items():
        for auction, mechanism in MECHANISMS.items():
            seats = [Seat(mdp, mechanism, clones, p, horizon) for p in range(mdp.num_actions)]
            found[f"{auction}, {society}"] = np.max([0.0, *(seat.best_gain(low, high) for seat in seats)])
    return found


def _process(name: str) -> tuple[FiniteMDP, int | None, float, float]:
    """The process, its horizon, and the lowest and highest bid."""
    if name.startswith("random"):
        mdp = garnet(int(name.split()[1]), 4, 3, 0.9, 2)
        return mdp, None, 0.0, float(np.ceil(mdp.optimal_q().max()))
    return {
        "Bandit": (Bandit(), 1, 0.0, 1.0),
        "Chain": (Chain(), 20, 0.0, 1.0),
        "Duality": (Duality(), None, -100.0, 50.0),
    }[name]


def _processes(scope: Scope) -> list[str]:
    named = ["Bandit", "Chain"] if scope.quick else ["Bandit", "Chain", "Duality"]
    return named + [f"random {seed}" for seed in range(scope.seed, scope.seed + (1 if scope.quick else 5))]


# --- why vickrey fails on Chain

_ENTROPIES = (0.1, 0.03, 0.01, 0.003)
_FAILS, _CONTRACT, _NOISELESS = "vickrey, noise-0.1", "vickrey, contract", "vickrey, noiseless"


def societies(scope: Scope) -> dict[str, TrainConfig]:
    """`vickrey` with decreasing noise in the bids, with contracts, and without noise; `ccv` for comparison."""
    budget = SETTINGS["published"] | (QUICK if scope.quick else {})
    changes: dict[str, dict[str, Any]] = {
        **{f"vickrey, noise-{entropy}": {"entropy": entropy} for entropy in _ENTROPIES},
        _CONTRACT: {"trace_decay": 0.8},
        "ccv, noise-0.1": {"auction": "ccv"},
    }
    chosen = {
        name: train_config("Chain-v0", **({"auction": "vickrey"} | budget | change)) for name, change in changes.items()
    }
    exact = train_config("Chain-v0", auction="vickrey", learner="valuation", hidden=(), steps=1_024_000)
    return chosen | {_NOISELESS: exact}


@functools.partial(jax.jit, static_argnames=("society", "steps", "instances"))
def _minted(society: Society, params: PyTree, key: Array, steps: int, instances: int = 64) -> tuple[Array, Array]:
    """Money minted per auction if clones of the owner bid highest, and if others did: f [] each."""

    def money(key: Array) -> tuple[Array, Array]:
        rows = fresh_rollout(society, key, params, society.env.default_params, steps, bootstrap=False)
        subsidy = rows.payout - rows.price
        own = (rows.owner >= 0) & (rows.owner // society.clones == rows.outcome.winner // society.clones)
        return jnp.where(own, subsidy, 0).mean(), jnp.where(own, 0, subsidy).mean()

    own, others = jax.vmap(money)(jax.random.split(key, instances))
    return own.mean(), others.mean()


def _minted_by(seed: int, keys: Array, run: SavedRun) -> Arrays:
    """`_minted` with the bids of training, which are greedy without noise: f [seeds] each."""
    del keys
    config, society = run.config, run.config.settings.society
    society = dataclasses.replace(society, greedy=isinstance(config.settings.learner, Valuation))
    keys = jax.random.split(key_for(key_of(seed), "measurement"), config.seeds)
    own, others = jax.vmap(lambda p, k: _minted(society, p, k, 100))(run.params, keys)
    return {"own": own, "others": others}


# --- the experiment


def _conditions(scope: Scope) -> list[Condition]:
    trained = [Train(name, config) for name, config in societies(scope).items()]
    minted = [
        Compute(f"money minted by {run.name}", functools.partial(_minted_by, scope.seed), inputs=(run.name,))
        for run in trained
    ]
    episodes = [Compute(f"episode of {name}", functools.partial(_episode, name)) for name in _processes(scope)]
    return [*trained, *minted, Compute("one auction", _one_auction), *episodes]


def _largest(*auctions: str) -> Values:
    """The largest gain over an episode against truthful clones under these auctions: f [processes]."""

    def values(results: Results) -> np.ndarray:
        found = [results[f"episode of {name}"] for name in _processes(results.scope)]
        return np.array([max(each[f"{auction}, cloned"] for auction in auctions) for each in found])

    return values


def _money(results: Results, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Money minted per auction if bidders of the owner's primitive win, and if others do: f [seeds] each."""
    found = results[f"money minted by {name}"]
    return found["own"], found["others"]


def _claims(scope: Scope) -> list[Claim]:
    del scope
    lowest = nearly(Chain().optimal_return())

    def one_auction(results: Results) -> str:
        gains = [f"{auction} {results['one auction'][auction][0]:.3f}" for auction in MECHANISMS]
        return f"the largest gains are {', '.join(gains)}"

    def per_auction(results: Results) -> str:
        gains = [f"{auction} {_largest(auction)(results).max():.2g}" for auction in ("ccv", "bb")]
        return f"the best deviations gain at most {', '.join(gains)}"

    def incentives(results: Results) -> str:
        price = results.measure(_FAILS, "winning bid").mean()
        return (
            f"return while learning {interquartile_mean(results.measure(_FAILS, 'sampled'))}; ending the episode earns "
            f"{Chain().rewards.max():.2f}, selling the state earns {Chain().gamma * price:.2f}"
        )

    def controls(results: Results) -> str:
        solved = [tally(results.measure(name, "solved")) for name in (_CONTRACT, _NOISELESS)]
        minted = sum(money.mean() for money in _money(results, _FAILS))
        return f"solved by {solved[0]} and {solved[1]} seeds; {minted:.3f} minted per auction with the paper's settings"

    return [
        within(
            "truthful bidding is dominant in one second-price auction",
            lambda results: max(results["one auction"][auction][0] for auction in ("vickrey", "ccv")),
            at_most=_NOTHING,
            estimate=mean,
            evidence=one_auction,
        ),
        within(
            "over an episode no deviation gains against truthful clones under ccv and bb",
            lambda results: _largest("ccv", "bb")(results).max(),
            at_most=_NOTHING,
            estimate=mean,
            evidence=per_auction,
        ),
        within(
            "over an episode overbidding pays under vickrey: gain of the best deviation on Chain, bids up to 1",
            lambda results: results["episode of Chain"]["vickrey, cloned"],
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
            lambda results: np.minimum(results.measure(_CONTRACT, "greedy"), results.measure(_NOISELESS, "greedy")),
            at_least=lowest,
            evidence=controls,
        ),
        separated(
            "owners that overbid for their own state mint this money: more than twice as much is minted per auction if "
            "the owner's primitive wins as otherwise",
            lambda results: _money(results, _FAILS)[0],
            lambda results: 2 * _money(results, _FAILS)[1],
            evidence=lambda results: "noise mints money for all bidders, and the learner does not observe the owner",
        ),
    ]


def _episode_rows(results: Results) -> list[dict[str, Any]]:
    return [
        {
            "process": name,
            "society": society,
            "bids up to": float(found["bids up to"]),
            **{auction: float(found[f"{auction}, {society}"]) for auction in MECHANISMS},
        }
        for name in _processes(results.scope)
        for found in [results[f"episode of {name}"]]
        for society in _SOCIETIES
    ]


def _one_auction_rows(results: Results) -> list[dict[str, Any]]:
    gains = {auction: results["one auction"][auction].tolist() for auction in MECHANISMS}
    return [
        {"auction": auction, "largest gain": largest, "expected gain": expected, "dominant": largest <= _NOTHING}
        for auction, (largest, expected) in gains.items()
    ]


def _chain_rows(results: Results) -> list[dict[str, Any]]:
    rows = []
    for name in societies(results.scope):
        if name not in results:
            continue
        settings, (auction, bids) = results[name].config.settings, name.split(", ")
        own, others = (jnp.asarray(money) for money in _money(results, name))
        rows.append(
            {
                "auction": auction,
                "bids": bids,
                "learner": "valuation" if isinstance(settings.learner, Valuation) else "ppo",
                "updates": settings.updates,
                "greedy": interquartile_mean(results.measure(name, "greedy")),
                "solved": tally(results.measure(name, "solved")),
                "sampled": interquartile_mean(results.measure(name, "sampled")),
                "winning bid": float(results.measure(name, "winning bid").mean()),
                "minted, own": float(own.mean()),
                "minted, other": float(others.mean()),
            }
        )
    return rows


def _draw(results: Results) -> Any:
    fig, (ax,) = plotting.figure(width=8)
    cloned = [row for row in _episode_rows(results) if row["society"] == "cloned"]
    for i, auction in enumerate(MECHANISMS):
        heights = [row[auction] / row["bids up to"] for row in cloned]
        ax.bar(np.arange(len(cloned)) + 0.2 * (i - 1.5), heights, 0.18, label=auction)
    ax.set_xticks(range(len(cloned)), [row["process"] for row in cloned])
    ax.set(
        ylabel="gain of the best deviation / highest bid, log scale",
        title="a whole episode against truthful clones; no bar: no gain",
    )
    ax.set_yscale("symlog", linthresh=0.01)
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
            _chain_rows,
            "bids: noise-x is ppo with entropy weight x, contract is ppo with λ = .8, noiseless is valuation\n"
            "minted: per auction of new episodes, if a bidder of the owner's primitive wins, and if another one wins",
            aside=("learner", "updates", "greedy"),
        ),
    ],
    figures={"deviations": _draw},
)

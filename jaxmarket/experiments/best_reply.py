"""Best replies to truthful bidders: one bidder learns its bids by PPO; all others bid Q* and do not learn.

The learned bids are compared with the best reply on the same bids, computed by dynamic programming
(`jaxmarket.interop.bidder.Exact`), and with truthful bids, both in exact expectation: the gain of a
strategy is the discounted sum of its utilities, γᵗ (r + γ · payout - price), minus that of truthful bidding.

- *One auction* (the market bandit): under second prices truthful bids are best (Vickrey 1961). Under first prices the
  bidder with the highest value shades its bid to just above the next one, unless it has a clone.
- *A whole episode* (Chain, where the market closes after 20 auctions, and Duality, without its time limit) in a society
  with two clones of each bidder, from the position of one clone of each primitive in turn. Chang et al. (2020) prove
  truthful bids best for bidders that optimise each auction separately. A bidder that plans ahead can also outbid the
  others for a state of its own, and so sell it to itself.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from jaxmarket.auctions import MECHANISMS
from jaxmarket.environments.tabular import Bandit, Chain, Duality, FiniteMDP
from jaxmarket.experiments.claims import Claim, every_seed, tally, within
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Scope, Train
from jaxmarket.experiments.experiment import Experiment, Quick, Table
from jaxmarket.experiments.measures import final
from jaxmarket.experiments.results import Results
from jaxmarket.experiments.settings import train_config
from jaxmarket.interop.bidder import BidderEnv, Exact, truthful
from jaxmarket.runs.estimates import mean
from jaxmarket.runs.run_folder import SavedRun
from jaxmarket.settlement import TimeLimits
from jaxmarket.training.config import TrainConfig
from jaxmarket.types import Array
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT", "Case", "cases", "compare", "config"]

_NOTHING = 1e-3  # bound on the rounding error of an episode's prices in float32, in units of reward
_FOUND = 0.95  # the share of the best reply's gain that a learner must reach to have found it
_BANDIT_STEP = 0.02
_LEVELS: dict[str, tuple[float, ...]] = {
    "Bandit": tuple(round(_BANDIT_STEP * i, 2) for i in range(51)),
    "Chain": (*(round(0.1 * i, 1) for i in range(11)), *(1.5 + 0.5 * i for i in range(8))),
    "Duality": (0.0, 10.0, 20.0, 30.0, 40.0, 45.0, 47.5, 49.0, 50.0, 51.0, 52.5, 55.0, 60.0),
}
_PROCESSES = {"Bandit": Bandit, "Chain": Chain, "Duality": Duality}
# Q* of Duality is that of the process without its time limit, so the market must not close at the limit.
_TIME_LIMITS: dict[str, TimeLimits] = {"Bandit": "terminal", "Chain": "terminal", "Duality": "bootstrap"}
_SETTINGS: dict[str, Any] = {
    "hidden": (64, 64),
    "instances": 32,
    "horizon": 64,
    "minibatch": 128,
    "epochs": 2,
    "learning_rate": 1e-3,
    "value_learning_rate": 5e-3,
    "entropy": 0.01,
    "steps": 120_000,
}
_QUICK = {"steps": 60_000}


@dataclasses.dataclass(frozen=True)
class Case:
    """The position in a market from which one bidder learns.

    Attributes:
        process: Bandit, Chain or Duality.
        auction: alias of the mechanism.
        clones: bidders per primitive.
        primitive: primitive of the bidder, which is the first clone.
    """

    process: str
    auction: str
    clones: int
    primitive: int

    @property
    def society(self) -> str:
        """``cloned`` or ``solitary``."""
        return "cloned" if self.clones > 1 else "solitary"

    @property
    def name(self) -> str:
        """The name of the training run."""
        return f"{self.process}-{self.auction}-{self.society}-{self.primitive}"

    @property
    def compared(self) -> str:
        """The name of the comparison with the best reply."""
        return f"{self.name} and the best reply"

    @property
    def mdp(self) -> FiniteMDP:
        """The process."""
        return _PROCESSES[self.process]()

    @property
    def env(self) -> BidderEnv:
        """The environment of the bidder."""
        return _bidder_env(self)


@functools.cache
def _bidder_env(case: Case) -> BidderEnv:
    society, params = truthful(case.mdp, MECHANISMS[case.auction], case.clones)
    limits = _TIME_LIMITS[case.process]
    return BidderEnv(society, params, case.primitive * case.clones, _LEVELS[case.process], time_limits=limits)


def cases(scope: Scope) -> list[Case]:
    """The positions compared."""
    if scope.quick:
        bandits, chains = [("Bandit", auction, 1, 3) for auction in ("ccv", "bb")], ("ccv", "vickrey")
        return [Case(*position) for position in (*bandits, *(("Chain", auction, 2, 1) for auction in chains))]
    positions = [("Bandit", auction, 1, primitive) for auction in ("ccv", "bb") for primitive in (3, 2)]
    positions.append(("Bandit", "bb", 2, 3))
    positions += [("Chain", auction, 2, primitive) for auction in ("ccv", "bb", "vickrey") for primitive in (0, 1)]
    positions += [("Duality", auction, 2, primitive) for auction in ("ccv", "vickrey") for primitive in (0, 1)]
    positions.append(("Duality", "ccv", 1, 0))
    return [Case(*position) for position in positions]


def config(case: Case, **changes: Any) -> TrainConfig:
    """The learner's settings."""
    return train_config(case.env, agent="monolith", **(_SETTINGS | changes))


def _conditions(scope: Scope) -> list[Condition]:
    trained = [Train(case.name, config(case, **(_QUICK if scope.quick else {}))) for case in cases(scope)]
    compared = [Compute(case.compared, functools.partial(compare, case), inputs=(case.name,)) for case in cases(scope)]
    return [*trained, *compared]


def compare(case: Case, keys: Array | None, run: SavedRun) -> Arrays:
    """`Exact.compare` of the greedy bids of each seed."""
    del keys
    exact = Exact(case.env)
    return exact.compare(exact.learned(run.config.settings.trainable.player(greedy=True), run.params))


def _found(arrays: Arrays) -> np.ndarray:
    """Which seeds got (nearly) the whole gain of the best reply: bool [seeds]."""
    return arrays["gains"] >= min(_FOUND * arrays["best gain"], arrays["best gain"] - _NOTHING)


# --- claims


def _claims(scope: Scope) -> list[Claim]:
    def of(processes: str, auction: str, *clones: int) -> list[Case]:
        chosen = [case for case in cases(scope) if case.process in processes.split("/")]
        return [case for case in chosen if case.auction == auction and case.clones in clones]

    shading, *unshaded = of("Bandit", "bb", 1)
    claims = [
        _no_gain("one second-price auction: no bid gains over truthful bidding", of("Bandit", "ccv", 1, 2)),
        *_shading(shading),
    ]
    if unshaded:
        text = "one first-price auction: shading gains nothing for a bidder with a clone or with a higher other bid"
        claims.append(_no_gain(text, [*unshaded, *of("Bandit", "bb", 2)]))
    for auction in ("ccv", "bb"):
        if among := of("Chain/Duality", auction, 2):
            claims.append(_no_gain(f"whole episodes among clones: no gain under {auction}", among))
    for process in ("Chain", "Duality"):
        if among := of(process, "vickrey", 2):
            text = f"whole episodes among clones: on {process} the learner finds that overbidding pays under vickrey"
            claims.append(_best_found(text, among))
    if alone := of("Duality", "ccv", 1):
        text = "without clones truthful bidding is not the best reply, even under ccv (Duality)"
        claims.append(_best_found(text, alone))
    return claims


def _no_gain(text: str, chosen: list[Case]) -> Claim:
    """The best replies gain nothing, and so no learner does."""

    def largest(results: Results) -> float:
        return max(float(results[case.compared]["best gain"]) for case in chosen)

    def evidence(results: Results) -> str:
        trained = [mean(results[case.compared]["gains"]) for case in chosen]
        return f"trained bidders gain at most {max(trained, key=lambda gain: gain.value).plus_minus} on average"

    return within(f"{text}: gain of the best reply", largest, at_most=_NOTHING, estimate=mean, evidence=evidence)


def _shading(case: Case) -> list[Claim]:
    """The mean bid lies between the next bid and the bidder's value, and gains."""
    text, q, half = "one first-price auction: the solitary best bidder", case.mdp.optimal_q()[0], _BANDIT_STEP / 2
    own, next_bid = float(q[case.primitive]), float(np.delete(q, case.primitive).max())

    def bids(results: Results) -> np.ndarray:
        return results[case.compared]["learned"][:, 0, 0, 0]

    return [
        within(
            f"{text} shades towards the next bid", bids, at_least=next_bid + half, at_most=own - half,
            estimate=mean, interval=True,
            evidence=lambda results: f"its value is {own:.2f}, the next bid {next_bid:.2f}, the best bid "
            f"{results[case.compared]['best'][0, 0, 0]:.2f}",
        ),
        within(
            f"{text} gains by shading", lambda results: results[case.compared]["gains"], at_least=_NOTHING,
            estimate=mean, interval=True,
            evidence=lambda results: f"the best reply gains {results[case.compared]['best gain']:.3f}",
        ),
    ]  # fmt: skip


def _best_found(text: str, chosen: list[Case]) -> Claim:
    """Every seed finds a strategy with (nearly) the gain of the best reply, which is above 0."""

    def shares(results: Results) -> np.ndarray:
        found = [(results[case.compared]["gains"], float(results[case.compared]["best gain"])) for case in chosen]
        return np.concatenate([gains / best if best > _NOTHING else 0 * gains for gains, best in found])

    def evidence(results: Results) -> str:
        return "; ".join(
            f"primitive {case.primitive} {mean(found['gains']).plus_minus} of {found['best gain']:,.2f}"
            + (", mean bid {:.2f} for states of its own, truthful {:.2f}".format(*sales.mean(0)) if len(sales) else "")
            for case, found in ((case, results[case.compared]) for case in chosen)
            for sales in [found["sales"]]
        )

    return every_seed(f"{text}: share of the best reply's gain", shares, at_least=_FOUND, evidence=evidence)


# --- tables and figures


def _finished(results: Results) -> list[tuple[Case, Arrays]]:
    return [(case, results[case.compared]) for case in cases(results.scope) if case.compared in results]


def _position(case: Case) -> dict[str, Any]:
    return {name: getattr(case, name) for name in ("process", "auction", "society", "primitive")}


def _gain_rows(results: Results) -> list[dict[str, Any]]:
    return [
        _position(case)
        | {"best": float(found["best gain"]), "trained": mean(found["gains"]), "found": tally(_found(found))}
        for case, found in _finished(results)
    ]


def _one_auction_rows(results: Results) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for case, found in _finished(results):
        if case.process == "Bandit":
            others, me, bids = found["others"][0], case.env.bidder, found["learned"][:, 0, 0, 0]
            row = {"auction": case.auction, "society": case.society, "worth": float(others[me])}
            row |= {"rival's": float(np.delete(others, me).max()), "best bid": float(found["best"][0, 0, 0])}
            row |= {"trained bid": mean(bids), "shaded by": mean(others[me] - bids)}
            rows.append(row | {"best gain": float(found["best gain"]), "trained gain": mean(found["gains"])})
    return rows


def _wealth_rows(results: Results) -> list[dict[str, Any]]:
    return [
        _position(case)
        | {
            "truth": float(found["wealth"]),
            "best gain": float(found["best wealth gain"]),
            "trained gain": mean(found["wealth gains"]),
            "played": mean(results.measure(case.name, "played") - float(found["wealth"])),
        }
        for case, found in _finished(results)
        if "wealth" in found
    ]


def _gain_figure(results: Results) -> Any:
    processes = list(dict.fromkeys(case.process for case, _ in _finished(results)))
    fig, axes = plotting.figure(len(processes), width=5.5, height=4.4)
    for ax, process in zip(axes, processes, strict=True):
        shown = [(case, found) for case, found in _finished(results) if case.process == process]
        best = [found["best gain"] for _, found in shown]
        ax.bar(range(len(shown)), best, 0.6, color="tab:blue", alpha=0.35, label="best reply, exact")
        for i, (_, found) in enumerate(shown):
            spread = np.linspace(-0.2, 0.2, len(found["gains"]))
            label = "trained, each seed" if i == 0 else None
            ax.plot(i + spread, found["gains"], ".", color="tab:orange", label=label, clip_on=False, zorder=3)
        ax.axhline(0, color="black", linewidth=1.2, label="truthful bids")
        labels = [f"{c.auction}\n{'alone' if c.clones == 1 else 'cloned'}\n#{c.primitive}" for c, _ in shown]
        ax.set_xticks(range(len(shown)), labels, fontsize=8)
        linear = {"Bandit": None, "Chain": 0.1, "Duality": 1.0}[process]
        if linear is not None:
            ax.set_yscale("symlog", linthresh=linear)
        ax.set(title=process, ylabel="gain over truthful bidding" + (", log scale" if linear else ""))
    plotting.legend_below(fig)
    return fig


def _bid_figure(results: Results) -> Any:
    shown = [(case, found) for case, found in _finished(results) if case.process == "Chain"]
    rows = len({case.primitive for case, _ in shown})
    fig, axes = plotting.figure(len(shown) // rows, rows, width=4.6, height=3.2)
    states = np.flatnonzero(~Chain().terminal)
    for ax, (case, found) in zip(axes, sorted(shown, key=lambda each: each[0].primitive), strict=True):
        for owns, color, label in ((0, "tab:blue", "another's state"), (1, "tab:orange", "its own state")):
            at = states + (owns - 0.5) * 0.4
            # State s can be reached from the s-th auction on, so it is plotted from there.
            bids = found["learned"][:, states, states, owns]
            spread = np.linspace(-0.12, 0.12, len(bids))
            ax.plot(at[None] + spread[:, None], bids, ".", color=color, alpha=0.6)
            ax.plot([], [], ".", color=color, label=f"trained, {label}")
            ax.plot(at, found["best"][states, states, owns], "D", color=color, fillstyle="none", markersize=8)
        ax.plot([], [], "D", color="grey", fillstyle="none", label="best reply closest to truthful bids")
        ax.hlines(found["truth"][0, states, 0], states - 0.4, states + 0.4, color="black", linewidth=2, label="Q*")
        side = ("left", "right")[case.primitive]
        ax.set(title=f"{case.auction}, a clone that goes {side}", xlabel="state", ylabel="bid", ylim=(-0.2, 5.3))
    plotting.legend_below(fig)
    return fig


EXPERIMENT = Experiment(
    name="best-reply",
    shows="one bidder learns its bids among truthful others: in one auction, and in whole episodes",
    source="Vickrey (1961); Chang et al. (2020), §4-5",
    conditions=_conditions,
    measures={"played": final()},
    claims=_claims,
    tables=[
        Table(
            "gains", "gain over truthful bidding; all other bidders bid Q*", _gain_rows,
            "discounted utility in expectation; trained: mean over seeds, 95% interval\n"
            "Chain: an episode, after which no proceeds are paid; Duality: without its time limit\n"
            "found: seeds with 95% of the best reply's gain, or at most .001 less than it",
        ),
        Table(
            "one_auction", "one auction: bids, and their gain over truthful bidding", _one_auction_rows,
            "worth: the bidder's value; rival's: the highest other bid; best bid: the closest to worth of the best "
            "ones\nbids are multiples of .02, and ties are random",
        ),
        Table(
            "wealth", "change of wealth in an episode, undiscounted", _wealth_rows,
            "truth: the wealth that truthful bids earn; best gain: of the best reply without discount\n"
            "trained: of learners with discount; played: the same in 128 new episodes per seed",
        ),
    ],
    figures={"gains": _gain_figure, "bids": _bid_figure},
    quick=Quick(seeds=8),
    facts=lambda results: _SETTINGS | (_QUICK if results.scope.quick else {}),
)  # fmt: skip

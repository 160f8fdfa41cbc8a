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

import functools
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from typing import Any, NamedTuple

import numpy as np

from jaxmarket.auctions import MECHANISMS
from jaxmarket.environments.tabular import Bandit, Chain, Duality, FiniteMDP
from jaxmarket.experiments.claims import Claim, at, every_seed, tally, within
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Scope, Train
from jaxmarket.experiments.experiment import Experiment, Quick, Table
from jaxmarket.experiments.numerical import CLONES
from jaxmarket.experiments.results import Results
from jaxmarket.interop.bidder import BidderEnv, Exact, truthful
from jaxmarket.runs.estimates import mean
from jaxmarket.runs.measures import final
from jaxmarket.runs.run_folder import SavedRun
from jaxmarket.settlement import TimeLimits
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.pinned import train_config
from jaxmarket.types import Array
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT", "Case", "cases", "compare", "config", "environment"]

_NOTHING = 1e-3  # bound on the rounding error of an episode's prices in float32, in units of reward
_FOUND = 0.95  # the share of the best reply's gain that a learner must reach to have found it
_BANDIT_STEP = 0.02
_PROCESSES: dict[str, tuple[Callable[[], FiniteMDP], TimeLimits, tuple[float, ...]]] = {
    "Bandit": (Bandit, "terminal", tuple(round(_BANDIT_STEP * i, 2) for i in range(51))),
    "Chain": (Chain, "terminal", (*(round(0.1 * i, 1) for i in range(11)), *(1.5 + 0.5 * i for i in range(8)))),
    # Q* of Duality is that of the process without its time limit, so the market must not close at the limit.
    "Duality": (Duality, "bootstrap", (0.0, 10.0, 20.0, 30.0, 40.0, 45.0, 47.5, 49.0, 50.0, 51.0, 52.5, 55.0, 60.0)),
}
"""The process, the rule for its time limit, and the possible bids."""
_SETTINGS = {"hidden": (64, 64), "horizon": 64, "epochs": 2, "learning_rate": 1e-3, "entropy": 0.01, "steps": 120_000}
_QUICK = {"steps": 60_000}


class Case(NamedTuple):
    """The position in a market from which one bidder learns: that of the first clone of a primitive."""

    process: str  # Bandit, Chain or Duality
    auction: str  # alias of the mechanism
    society: str  # cloned or solitary
    primitive: int

    @property
    def name(self) -> str:
        """The name of the training run."""
        return "-".join(map(str, self))

    @property
    def compared(self) -> str:
        """The name of the comparison with the best reply."""
        return f"{self.name} and the best reply"


def cases(scope: Scope, pattern: str = "*") -> list[Case]:
    """The positions compared whose names match a pattern."""
    found = [Case("Bandit", auction, "solitary", p) for auction in ("ccv", "bb") for p in (3, 2)]
    found += [Case("Bandit", "bb", "cloned", 3)]
    found += [Case("Chain", auction, "cloned", p) for auction in ("ccv", "bb", "vickrey") for p in (0, 1)]
    found += [Case("Duality", auction, "cloned", p) for auction in ("ccv", "vickrey") for p in (0, 1)]
    found += [Case("Duality", "ccv", "solitary", 0)]
    quick = ("Bandit-ccv-solitary-3", "Bandit-bb-solitary-3", "Chain-ccv-cloned-1", "Chain-vickrey-cloned-1")
    return [case for case in found if fnmatch(case.name, pattern) and (case.name in quick or not scope.quick)]


@functools.cache
def environment(case: Case) -> BidderEnv:
    """The environment of the bidder."""
    process, limits, levels = _PROCESSES[case.process]
    society, params = truthful(process(), MECHANISMS[case.auction], CLONES[case.society])
    return BidderEnv(society, params, case.primitive * society.clones, levels, time_limits=limits)


def config(case: Case, **changes: Any) -> TrainConfig:
    """The learner's settings."""
    return train_config(environment(case), agent="monolith", **(_SETTINGS | changes))


def compare(case: Case, keys: Array | None, run: SavedRun) -> Arrays:
    """`Exact.compare` of the greedy bids of each seed."""
    del keys
    exact = Exact(environment(case))
    return exact.compare(exact.learned(run.config.settings.trainable.player(greedy=True), run.params))


def _conditions(scope: Scope) -> list[Condition]:
    trained = [Train(case.name, config(case, **(_QUICK if scope.quick else {}))) for case in cases(scope)]
    compared = [Compute(case.compared, functools.partial(compare, case), inputs=(case.name,)) for case in cases(scope)]
    return [*trained, *compared]


# --- claims


def _claims(scope: Scope) -> list[Claim]:
    of = functools.partial(cases, scope)
    shading, *unshaded = of("Bandit-bb-solitary-*")
    q, half = Bandit().optimal_q()[0], _BANDIT_STEP / 2
    own, other = float(q[shading.primitive]), float(np.delete(q, shading.primitive).max())
    first, episodes = "one first-price auction:", "whole episodes among clones:"
    pays = "the learner finds that overbidding pays under vickrey"
    return [
        *_no_gain("one second-price auction: no bid gains over truthful bidding", of("Bandit-ccv-*")),
        within(
            f"{first} the solitary best bidder shades towards the next bid",
            at(shading.compared, "bid"),
            at_least=other + half,
            at_most=own - half,
            estimate=mean,
            interval=True,
        ),
        within(
            f"{first} the solitary best bidder gains by shading",
            at(shading.compared, "gains"),
            at_least=_NOTHING,
            estimate=mean,
            interval=True,
        ),
        *_no_gain(
            f"{first} shading gains nothing for a bidder with a clone or with a higher other bid",
            [*unshaded, *of("Bandit-bb-cloned-*")],
        ),
        *_no_gain(f"{episodes} no gain under ccv", of("*-ccv-cloned-*")),
        *_no_gain(f"{episodes} no gain under bb", of("Chain-bb-*")),
        *_best_found(f"{episodes} on Chain {pays}", of("Chain-vickrey-*")),
        *_best_found(f"{episodes} on Duality {pays}", of("Duality-vickrey-*")),
        *_best_found(
            "without clones truthful bidding is not the best reply, even under ccv (Duality)",
            of("Duality-*-solitary-*"),
        ),
    ]


def _no_gain(text: str, chosen: list[Case]) -> list[Claim]:
    """The best replies gain nothing, and so no learner does; no claim without a case."""

    def largest(results: Results) -> float:
        return max(float(results[case.compared]["best gain"]) for case in chosen)

    text = f"{text}: gain of the best reply"
    return [within(text, largest, at_most=_NOTHING, estimate=mean)] if chosen else []


def _best_found(text: str, chosen: list[Case]) -> list[Claim]:
    """Every seed finds a strategy with (nearly) the gain of the best reply, which is above 0."""

    def shares(results: Results) -> np.ndarray:
        return np.concatenate([results.measure(case.compared, "share") for case in chosen])

    def bids(case: Case, sales: np.ndarray) -> str:
        if not len(sales):
            return f"primitive {case.primitive} sells no state"
        own, truth = sales.mean(0)
        return f"primitive {case.primitive} bids {own:.2f} for states of its own, truthful {truth:.2f}"

    def evidence(results: Results) -> str:
        return "; ".join(bids(case, results[case.compared]["sales"]) for case in chosen)

    text = f"{text}: share of the best reply's gain"
    return [every_seed(text, shares, at_least=_FOUND, evidence=evidence)] if chosen else []


# --- tables and figures


def _finished(results: Results, pattern: str = "*") -> Iterator[tuple[Case, Arrays]]:
    """The cases whose names match, with the comparisons that have not failed."""
    for case in cases(results.scope, pattern):
        if case.compared in results:
            yield case, results[case.compared]


def _gain_rows(results: Results) -> Iterator[dict[str, Any]]:
    for case, found in _finished(results):
        seeds = tally(results.measure(case.compared, "found"))
        yield case._asdict() | {"best": float(found["best gain"]), "trained": mean(found["gains"]), "found": seeds}


def _one_auction_rows(results: Results) -> Iterator[dict[str, Any]]:
    for case, found in _finished(results, "Bandit-*"):
        others, me = found["others"][0], environment(case).bidder
        yield {
            "auction": case.auction,
            "society": case.society,
            "worth": float(others[me]),
            "rival's": float(np.delete(others, me).max()),
            "best bid": float(found["best"][0, 0, 0]),
            "trained bid": mean(results.measure(case.compared, "bid")),
        }


def _wealth_rows(results: Results) -> Iterator[dict[str, Any]]:
    for case, found in _finished(results, "[BC]*"):
        yield case._asdict() | {
            "truth": float(found["wealth"]),
            "best gain": float(found["best wealth gain"]),
            "trained gain": mean(found["wealth gains"]),
            "played": mean(results.measure(case.name, "played") - found["wealth"]),
        }


def _gain_figure(results: Results) -> Any:
    by_process = {process: dict(_finished(results, f"{process}-*")) for process in _PROCESSES}
    shown = {process: found for process, found in by_process.items() if found}
    fig, axes = plotting.figure(len(shown), width=5.5, height=4.4)
    for ax, (process, found) in zip(axes, shown.items(), strict=True):
        names = [f"{case.auction}\n{case.society}\n#{case.primitive}" for case in found]
        plotting.draw_gains(ax, names, *([each[gain] for each in found.values()] for gain in ("best gain", "gains")))
        ax.set_title(process)
        if process != "Bandit":
            ax.set_yscale("symlog", linthresh={"Chain": 0.1, "Duality": 1.0}[process])
            ax.set_ylabel("gain over truthful bidding, log scale")
    plotting.legend_below(fig)
    return fig


def _bid_figure(results: Results) -> Any:
    shown = sorted(_finished(results, "Chain-*"), key=lambda each: each[0].primitive)
    rows = len({case.primitive for case, _ in shown})
    fig, axes = plotting.figure(len(shown) // rows, rows, width=4.6, height=3.2)
    states = np.flatnonzero(~Chain().terminal)
    for ax, (case, found) in zip(axes, shown, strict=True):
        # State s can be reached from the s-th auction on, so it is shown at that time.
        plotting.draw_strategy(ax, found, times=states, states=states)
        side = ("left", "right")[case.primitive]
        ax.set(title=f"{case.auction}, a clone that goes {side}", ylim=(-0.2, 5.3))
    plotting.legend_below(fig)
    return fig


EXPERIMENT = Experiment(
    name="best-reply",
    shows="one bidder learns its bids among truthful others: in one auction, and in whole episodes",
    source="Vickrey (1961); Chang et al. (2020), §4-5",
    conditions=_conditions,
    measures={
        "played": final(),
        "bid": lambda found: found["learned"][:, 0, 0, 0],  # the first one, in a process with one state
        "share": lambda found: found["gains"] * (found["best gain"] > _NOTHING) / max(found["best gain"], _NOTHING),
        "found": lambda found: found["gains"] >= min(_FOUND * found["best gain"], found["best gain"] - _NOTHING),
    },
    claims=_claims,
    tables=[
        Table(
            "gains",
            "gain over truthful bidding; all other bidders bid Q*",
            _gain_rows,
            "discounted utility in expectation; trained: mean over seeds, 95% interval\n"
            "Chain: an episode, after which no proceeds are paid; Duality: without its time limit\n"
            "found: seeds with 95% of the best reply's gain, or at most .001 less than it",
        ),
        Table(
            "one_auction",
            "one auction: bids",
            _one_auction_rows,
            "worth: the bidder's value; rival's: the highest other bid; best bid: the best one closest to worth\n"
            "bids are multiples of .02, and ties are random",
        ),
        Table(
            "wealth",
            "change of wealth in an episode, undiscounted",
            _wealth_rows,
            "truth: the wealth that truthful bids earn; best gain: of the best reply without discount\n"
            "trained: of learners with discount; played: the same in 128 new episodes per seed",
        ),
    ],
    figures={"gains": _gain_figure, "bids": _bid_figure},
    quick=Quick(seeds=8),
)

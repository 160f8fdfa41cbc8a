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
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.auctions import MECHANISMS
from jaxmarket.environments.tabular import Bandit, Chain, Duality, FiniteMDP
from jaxmarket.experiments.report import ExperimentOptions, Report, ResultTable, Verdict, tally
from jaxmarket.experiments.settings import train_config
from jaxmarket.interop.bidder import BidderEnv, Exact, truthful
from jaxmarket.runs.estimates import mean
from jaxmarket.runs.run_folder import SavedRun
from jaxmarket.settlement import TimeLimits
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.monolith import SingleAgent
from jaxmarket.types import Array, PyTree, real
from jaxmarket.view import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BestReplyResult", "Case", "run"]

_NOTHING = 1e-3
"""Bound on the rounding error of an episode's prices in float32, in units of reward."""

_FOUND = 0.95
"""Share of the best reply's gain that a learner must reach to have found it."""

_LEVELS: dict[str, tuple[float, ...]] = {
    "Bandit": tuple(round(0.02 * i, 2) for i in range(51)),
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
        seeds: independent learners.
        settings: of the learner.
    """

    process: str
    auction: str
    clones: int
    primitive: int
    seeds: int
    settings: dict[str, Any] = dataclasses.field(hash=False)

    @property
    def name(self) -> str:
        """The name of the condition and of its folder."""
        return f"{self.process}-{self.auction}-{self.society}-{self.primitive}"

    @property
    def society(self) -> str:
        """``cloned`` or ``solitary``."""
        return "cloned" if self.clones > 1 else "solitary"

    @property
    def mdp(self) -> FiniteMDP:
        """The process."""
        return _PROCESSES[self.process]()

    @functools.cached_property
    def env(self) -> BidderEnv:
        """The environment of the bidder."""
        society, params = truthful(self.mdp, MECHANISMS[self.auction], self.clones)
        limits = _TIME_LIMITS[self.process]
        return BidderEnv(society, params, self.primitive * self.clones, _LEVELS[self.process], time_limits=limits)

    @property
    def config(self) -> TrainConfig:
        """The learner's settings."""
        return train_config(self.env, agent="monolith", seeds=self.seeds, **self.settings)


class BestReplyResult:
    """The bids that the learners of a case found, and the best reply.

    Attributes:
        case: the position.
        exact: the solution of its decision process.
        best: the best reply f [H, S, 2].
        learned: greedy bids of each seed f [seeds, H, S, 2].
    """

    def __init__(self, case: Case, run: SavedRun) -> None:
        self.case, self.exact = case, Exact(case.env)
        self.best = self.exact.best()
        chosen = _choices(case.config.settings.trainable.player(greedy=True), run.params, self._views)
        self.learned = np.asarray(case.env.levels)[np.asarray(chosen)].reshape(-1, *self.best.shape)
        self._played = np.asarray(run.summary["return_seeds"])

    @property
    def _views(self) -> Array:
        """All observations of the bidder: f [H · S · 2, n]."""
        states, env = self.case.mdp.num_states, self.case.env
        times, rows, owns = np.indices((self.exact.horizon, states, 2)).reshape(3, -1)
        return jax.vmap(env.view)(
            jnp.asarray(np.eye(states)[rows], real()), jnp.asarray(owns == 1), jnp.asarray(times, real())
        )

    @functools.cached_property
    def gains(self) -> np.ndarray:
        """Each seed's discounted gain over truthful bidding: f [seeds]."""
        return np.array([self.exact.gain(bids) for bids in self.learned])

    @functools.cached_property
    def best_gain(self) -> float:
        """The gain of the best reply: f []."""
        return self.exact.gain(self.best)

    @property
    def found(self) -> np.ndarray:
        """Which seeds got (nearly) the whole gain of the best reply: bool [seeds]."""
        return self.gains >= min(_FOUND * self.best_gain, self.best_gain - _NOTHING)

    @property
    def nothing_gained(self) -> bool:
        """Whether the gain of the best reply is 0, and that of the learners within noise of 0."""
        return self.best_gain < _NOTHING and mean(self.gains).low < _NOTHING

    def row(self) -> dict[str, Any]:
        """The row of the main table."""
        return self._position | {
            "best": self.best_gain,
            "trained": mean(self.gains),
            "found": tally(self.found),
        }

    def wealth_row(self) -> dict[str, Any]:
        """The row of the table of undiscounted wealth, for markets that close."""
        truth = self.exact.value(self.exact.truth, 1.0)
        return self._position | {
            "truth": truth,
            "best gain": self.exact.gain(self.exact.best(1.0), 1.0),
            "trained gain": mean([self.exact.gain(bids, 1.0) for bids in self.learned]),
            "played": mean(self._played - truth),
        }

    @property
    def _position(self) -> dict[str, Any]:
        case = self.case
        return {name: getattr(case, name) for name in ("process", "auction", "society", "primitive")}


@functools.partial(jax.jit, static_argnums=0)
def _choices(agent: SingleAgent, params: PyTree, views: Array) -> Array:
    """The greedy choice of every seed for every observation: i32 [seeds, N]."""
    return jax.vmap(lambda params: jax.vmap(lambda obs: agent.choose(params, None, obs))(views))(params)


def _cases(options: ExperimentOptions) -> list[Case]:
    settings = _SETTINGS | (_QUICK if options.quick else {})
    if options.quick:
        positions = [
            ("Bandit", "ccv", 1, 3),
            ("Bandit", "bb", 1, 3),
            ("Chain", "ccv", 2, 1),
            ("Chain", "vickrey", 2, 1),
        ]
        return [Case(*position, options.seeds, settings) for position in positions]
    positions = [("Bandit", auction, 1, primitive) for auction in ("ccv", "bb") for primitive in (3, 2)]
    positions.append(("Bandit", "bb", 2, 3))
    positions += [("Chain", auction, 2, primitive) for auction in ("ccv", "bb", "vickrey") for primitive in (0, 1)]
    positions += [("Duality", auction, 2, primitive) for auction in ("ccv", "vickrey") for primitive in (0, 1)]
    positions.append(("Duality", "ccv", 1, 0))
    return [Case(*position, options.seeds, settings) for position in positions]


def _one_auction(results: list[BestReplyResult]) -> ResultTable:
    rows = []
    for result in results:
        case, others = result.case, result.exact.others[0]
        rows.append(
            {
                "auction": case.auction,
                "society": case.society,
                "worth": float(others[case.env.bidder]),
                "rival's": float(np.delete(others, case.env.bidder).max()),
                "best bid": float(result.best[0, 0, 0]),
                "trained bid": mean(result.learned[:, 0, 0, 0]),
                "shaded by": mean(others[case.env.bidder] - result.learned[:, 0, 0, 0]),
                "best gain": result.best_gain,
                "trained gain": mean(result.gains),
            }
        )
    return ResultTable(
        "one_auction",
        "one auction: bids, and their gain over truthful bidding",
        rows,
        "worth: the bidder's value; rival's: the highest other bid; best bid: the closest to worth of the best ones\n"
        "bids are multiples of .02, and ties are random",
    )


def _worst(results: list[BestReplyResult]) -> tuple[float, str]:
    """The largest gain of best reply and learners, and a description of both."""
    best = float(np.max([result.best_gain for result in results]))
    trained = [mean(result.gains) for result in results]
    top = trained[int(np.argmax([estimate.value for estimate in trained]))]
    most = float(np.maximum(best, top.value))
    return most, f"the best reply gains at most {best:.2g}, trained bidders at most {top.plus_minus}"


def _verdicts(results: list[BestReplyResult]) -> list[Verdict]:
    def of(process: str, auction: str, clones: int) -> list[BestReplyResult]:
        found = [f for f in results if f.case.process in process.split("/")]
        return [f for f in found if (f.case.auction, f.case.clones) == (auction, clones)]

    second, first = of("Bandit", "ccv", 1) + of("Bandit", "ccv", 2), of("Bandit", "bb", 1)
    shading, unshaded = first[0], first[1:] + of("Bandit", "bb", 2)
    own, next_bid = (float(shading.exact.others[0][i]) for i in (3, 2))
    bids = mean(shading.learned[:, 0, 0, 0])
    verdicts = [
        Verdict.of(
            "one second-price auction: no bid gains over truthful bidding",
            all(f.nothing_gained for f in second), *_worst(second),
        ),
        Verdict.of(
            "one first-price auction: the solitary best bidder shades towards the next bid",
            next_bid < bids.low and bids.high < own and mean(shading.gains).low > _NOTHING,
            own - bids.value,
            f"value {own:.2f}, next bid {next_bid:.2f}: trained bid {bids.plus_minus}, best "
            f"{shading.best[0, 0, 0]:.2f}; gain {mean(shading.gains).plus_minus}, best {shading.best_gain:.3f}",
        ),
    ]  # fmt: skip
    if unshaded:
        verdicts.append(
            Verdict.of(
                "one first-price auction: shading gains nothing for a bidder with a clone or with a higher other bid",
                all(f.nothing_gained for f in unshaded), *_worst(unshaded),
            )
        )  # fmt: skip
    for auction in ("ccv", "bb"):
        cases = of("Chain/Duality", auction, 2)
        if cases:
            verdicts.append(
                Verdict.of(
                    f"whole episodes among clones: no gain under {auction}",
                    all(f.nothing_gained for f in cases), *_worst(cases),
                )
            )  # fmt: skip
    for process in ("Chain", "Duality"):
        cases = of(process, "vickrey", 2)
        if cases:
            reached = np.array([f.found for f in cases])
            verdicts.append(
                Verdict.of(
                    f"whole episodes among clones: on {process} the learner finds that overbidding pays under vickrey",
                    bool(reached.all()) and min(f.best_gain for f in cases) > _NOTHING,
                    float(np.mean([f.gains.mean() / f.best_gain for f in cases])),
                    "; ".join(
                        f"primitive {f.case.primitive} {mean(f.gains).plus_minus} of {f.best_gain:,.2f}, "
                        f"{tally(f.found)} seeds, {_overbidding(f)}"
                        for f in cases
                    ),
                )
            )
    alone = of("Duality", "ccv", 1)
    if alone:
        reached = np.array([f.found for f in alone])
        verdicts.append(
            Verdict.of(
                "without clones truthful bidding is not the best reply, even under ccv",
                max(f.best_gain for f in alone) > _NOTHING and bool(reached.all()),
                max(f.best_gain for f in alone),
                "Duality: "
                + "; ".join(
                    f"primitive {f.case.primitive} {mean(f.gains).plus_minus} of {f.best_gain:,.2f}, "
                    f"{tally(f.found)} seeds"
                    for f in alone
                ),
            )
        )
    return verdicts


def _overbidding(result: BestReplyResult) -> str:
    """The learners' mean bid for states that they own and its truthful value, as text."""
    pairs = [
        (bids[time, state, 1], result.exact.truth[time, state, 1])
        for bids in result.learned
        for time, state in _owned(result, bids)
    ]
    if not pairs:
        return "owning no state"
    own, truth = np.mean(pairs, 0)
    return f"mean bid {own:.2f} for states of its own, truthful {truth:.2f}"


def _owned(result: BestReplyResult, bids: np.ndarray) -> list[tuple[int, int]]:
    """The times and states of an episode at which the bidder sells if it wins all ties; deterministic."""
    mdp, exact, me = result.case.mdp, result.exact, result.case.env.bidder
    state, owns, seen = int(mdp.start.argmax()), 0, []
    for t in range(mdp.horizon):
        time = t % exact.horizon
        if owns:
            seen.append((time, state))
        offers = exact.others[state].copy()
        offers[me] = bids[time, state, owns]
        winner = me if offers[me] == offers.max() else int(offers.argmax())
        owns = int(winner == me)
        state = int(mdp.transitions[state, winner // result.case.clones].argmax())
        if mdp.terminal[state]:
            break
    return seen


def _gain_figure(results: list[BestReplyResult]) -> "Figure":
    processes = list(dict.fromkeys(f.case.process for f in results))
    fig, axes = plotting.figure(len(processes), width=5.5, height=4.4)
    for ax, process in zip(axes, processes, strict=True):
        shown = [f for f in results if f.case.process == process]
        x = np.arange(len(shown))
        ax.bar(x, [f.best_gain for f in shown], 0.6, color="tab:blue", alpha=0.35, label="best reply, exact")
        for i, result in enumerate(shown):
            spread = np.linspace(-0.2, 0.2, len(result.gains))
            label = "trained, each seed" if i == 0 else None
            ax.plot(i + spread, result.gains, ".", color="tab:orange", label=label, clip_on=False, zorder=3)
        ax.axhline(0, color="black", linewidth=1.2, label="truthful bids")
        labels = [
            f"{f.case.auction}\n{'alone' if f.case.clones == 1 else 'cloned'}\n#{f.case.primitive}" for f in shown
        ]
        ax.set_xticks(x, labels, fontsize=8)
        linear = {"Bandit": None, "Chain": 0.1, "Duality": 1.0}[process]
        if linear is not None:
            ax.set_yscale("symlog", linthresh=linear)
        ax.set(title=process, ylabel="gain over truthful bidding" + (", log scale" if linear else ""))
    axes[0].legend(frameon=False, fontsize=8)
    return fig


def _bid_figure(results: list[BestReplyResult]) -> "Figure":
    shown = [f for f in results if f.case.process == "Chain"]
    rows = len({f.case.primitive for f in shown})
    fig, axes = plotting.figure(len(shown) // rows, rows, width=4.6, height=3.2)
    order = sorted(shown, key=lambda f: f.case.primitive)
    states = np.flatnonzero(~Chain().terminal)
    for ax, result in zip(axes, order, strict=True):
        for owns, color, label in ((0, "tab:blue", "another's state"), (1, "tab:orange", "its own state")):
            at = states + (owns - 0.5) * 0.4
            spread = np.linspace(-0.12, 0.12, len(result.learned))
            # State s can be reached from the s-th auction on, so it is plotted from there.
            bids = result.learned[:, states, states, owns]
            ax.plot(at[None] + spread[:, None], bids, ".", color=color, alpha=0.6)
            ax.plot([], [], ".", color=color, label=f"trained, {label}")
            ax.plot(at, result.best[states, states, owns], "D", color=color, fillstyle="none", markersize=8)
        ax.plot([], [], "D", color="grey", fillstyle="none", label="best reply closest to truthful bids")
        q = result.exact.truth[0, states, 0]
        ax.hlines(q, states - 0.4, states + 0.4, color="black", linewidth=2, label="Q*")
        side = ("left", "right")[result.case.primitive]
        ax.set(title=f"{result.case.auction}, a clone that goes {side}", xlabel="state", ylabel="bid", ylim=(-0.2, 5.3))
    axes[0].legend(frameon=False, fontsize=8)
    return fig


def run(options: ExperimentOptions) -> Report:
    """Train a bidder in every position, and compare it with the best reply and with truthful bids."""
    cases = _cases(options)
    finished = options.train(cases, "best reply")
    results = [BestReplyResult(case, finished[case.name]) for case in cases]
    return Report(
        settings={"quick": options.quick, "seeds": options.seeds, **cases[0].settings},
        tables=[
            ResultTable(
                "gains",
                "gain over truthful bidding; all other bidders bid Q*",
                [result.row() for result in results],
                "discounted utility in expectation; trained: mean over seeds, 95% interval\n"
                "Chain: an episode, after which no proceeds are paid; Duality: without its time limit\n"
                "found: seeds with 95% of the best reply's gain, or at most .001 less than it",
            ),
            _one_auction([f for f in results if f.case.process == "Bandit"]),
            ResultTable(
                "wealth",
                "change of wealth in an episode, undiscounted",
                [result.wealth_row() for result in results if result.case.env.time_limits == "terminal"],
                "truth: the wealth that truthful bids earn; best gain: of the best reply without discount\n"
                "trained: of learners with discount; played: the same in 128 new episodes per seed",
            ),
        ],
        verdicts=_verdicts(results),
        figures={"gains": _gain_figure(results), "bids": _bid_figure(results)},
    )

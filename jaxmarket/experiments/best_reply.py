"""Is truthful bidding a bidder's best reply? One bidder learns its bids by PPO; all others bid Q* and do not learn.

The learned bids are compared with the best reply on the same bids, computed by dynamic programming
(`jaxmarket.interop.bidder.Exact`), and with truthful bids, both in exact expectation: the gain of a
strategy is the discounted sum of its utilities, γᵗ (r + γ · payout - price), minus that of truthful bidding.

- *One auction* (the market bandit): under second prices truthful bids are best (Vickrey 1961). Under first prices the
  bidder with the highest value shades its bid to just above the next one, unless it has a clone.
- *A whole episode* (Chain, where the market closes after 20 auctions, and Duality, without its time limit) in a society
  with two clones of each bidder, from the position of one clone of each primitive in turn. Chang et al. (2020) prove
  truthful bids best for bidders that optimise each auction separately. A bidder that plans ahead can sell to itself.
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
"""Share of the best reply's gain from which on the learner counts as having found it."""

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
        auction: short name of the mechanism.
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
        hours, rows, owns = np.indices((self.exact.horizon, states, 2)).reshape(3, -1)
        return jax.vmap(env.view)(
            jnp.asarray(np.eye(states)[rows], real()), jnp.asarray(owns == 1), jnp.asarray(hours, real())
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
        return self._seat | {
            "best": self.best_gain,
            "trained": mean(self.gains),
            "found": tally(self.found),
        }

    def wealth_row(self) -> dict[str, Any]:
        """The row of the table of undiscounted wealth, for markets that close."""
        truth = self.exact.value(self.exact.truth, 1.0)
        return self._seat | {
            "truth": truth,
            "best gain": self.exact.gain(self.exact.best(1.0), 1.0),
            "trained gain": mean([self.exact.gain(bids, 1.0) for bids in self.learned]),
            "played": mean(self._played - truth),
        }

    @property
    def _seat(self) -> dict[str, Any]:
        case = self.case
        return {name: getattr(case, name) for name in ("process", "auction", "society", "primitive")}


@functools.partial(jax.jit, static_argnums=0)
def _choices(agent: SingleAgent, params: PyTree, views: Array) -> Array:
    """The greedy choice of every seed for every observation: i32 [seeds, N]."""
    return jax.vmap(lambda params: jax.vmap(lambda obs: agent.choose(params, None, obs))(views))(params)


def _cases(options: ExperimentOptions) -> list[Case]:
    settings = _SETTINGS | (_QUICK if options.quick else {})
    if options.quick:
        seats = [("Bandit", "ccv", 1, 3), ("Bandit", "bb", 1, 3), ("Chain", "ccv", 2, 1), ("Chain", "vickrey", 2, 1)]
        return [Case(*seat, options.seeds, settings) for seat in seats]
    seats = [("Bandit", auction, 1, primitive) for auction in ("ccv", "bb") for primitive in (3, 2)]
    seats.append(("Bandit", "bb", 2, 3))
    seats += [("Chain", auction, 2, primitive) for auction in ("ccv", "bb", "vickrey") for primitive in (0, 1)]
    seats += [("Duality", auction, 2, primitive) for auction in ("ccv", "vickrey") for primitive in (0, 1)]
    seats.append(("Duality", "ccv", 1, 0))
    return [Case(*seat, options.seeds, settings) for seat in seats]


def _one_auction(findings: list[BestReplyResult]) -> ResultTable:
    rows = []
    for finding in findings:
        case, others = finding.case, finding.exact.others[0]
        rows.append(
            {
                "auction": case.auction,
                "society": case.society,
                "worth": float(others[case.env.bidder]),
                "rival's": float(np.delete(others, case.env.bidder).max()),
                "best bid": float(finding.best[0, 0, 0]),
                "trained bid": mean(finding.learned[:, 0, 0, 0]),
                "shaded by": mean(others[case.env.bidder] - finding.learned[:, 0, 0, 0]),
                "best gain": finding.best_gain,
                "trained gain": mean(finding.gains),
            }
        )
    return ResultTable(
        "one_auction",
        "one auction: what is bid, and what it gains over truth",
        rows,
        "best bid: of equally good ones the nearest to the bidder's worth; bids are multiples of .02, ties are random",
    )


def _worst(findings: list[BestReplyResult]) -> tuple[float, str]:
    """The largest gain of best reply and learners, and a description of both."""
    best = float(np.max([finding.best_gain for finding in findings]))
    trained = [mean(finding.gains) for finding in findings]
    top = trained[int(np.argmax([estimate.value for estimate in trained]))]
    most = float(np.maximum(best, top.value))
    return most, f"best reply gains at most {best:.2g}, trained bidders at most {top.plus_minus}"


def _verdicts(findings: list[BestReplyResult]) -> list[Verdict]:
    def those(process: str, auction: str, clones: int) -> list[BestReplyResult]:
        found = [f for f in findings if f.case.process in process.split("/")]
        return [f for f in found if (f.case.auction, f.case.clones) == (auction, clones)]

    second, first = those("Bandit", "ccv", 1) + those("Bandit", "ccv", 2), those("Bandit", "bb", 1)
    shader, hopeless = first[0], first[1:] + those("Bandit", "bb", 2)
    own, rival = (float(shader.exact.others[0][i]) for i in (3, 2))
    bids = mean(shader.learned[:, 0, 0, 0])
    verdicts = [
        Verdict.of(
            "one second-price auction: nothing beats truth",
            all(f.nothing_gained for f in second), *_worst(second),
        ),
        Verdict.of(
            "one first-price auction: a solitary best bidder shades towards its rival's bid",
            rival < bids.low and bids.high < own and mean(shader.gains).low > _NOTHING,
            own - bids.value,
            f"worth {own:.2f}, rival {rival:.2f}: trained bid {bids.plus_minus}, best {shader.best[0, 0, 0]:.2f}; gain "
            f"{mean(shader.gains).plus_minus}, best {shader.best_gain:.3f}",
        ),
    ]  # fmt: skip
    if hopeless:
        verdicts.append(
            Verdict.of(
                "one first-price auction: with a clone, or a better rival, there is nothing to shade for",
                all(f.nothing_gained for f in hopeless), *_worst(hopeless),
            )
        )  # fmt: skip
    for auction in ("ccv", "bb"):
        held = those("Chain/Duality", auction, 2)
        if held:
            verdicts.append(
                Verdict.of(
                    f"whole episodes among clones: no gain under {auction}",
                    all(f.nothing_gained for f in held), *_worst(held),
                )
            )  # fmt: skip
    for process in ("Chain", "Duality"):
        held = those(process, "vickrey", 2)
        if held:
            reached = np.array([f.found for f in held])
            verdicts.append(
                Verdict.of(
                    f"whole episodes among clones: on {process} the learner finds vickrey's shill gain by itself",
                    bool(reached.all()) and min(f.best_gain for f in held) > _NOTHING,
                    float(np.mean([f.gains.mean() / f.best_gain for f in held])),
                    "; ".join(
                        f"primitive {f.case.primitive} {mean(f.gains).plus_minus} of {f.best_gain:,.2f}, "
                        f"{tally(f.found)} seeds, {_shilling(f)}"
                        for f in held
                    ),
                )
            )
    alone = those("Duality", "ccv", 1)
    if alone:
        reached = np.array([f.found for f in alone])
        verdicts.append(
            Verdict.of(
                "without clones truth is no best reply, even under ccv",
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


def _shilling(finding: BestReplyResult) -> str:
    """How far above their value the learners bid for states they own, if they come to own any."""
    pairs = [
        (bids[hour, state, 1], finding.exact.truth[hour, state, 1])
        for bids in finding.learned
        for hour, state in _owned(finding, bids)
    ]
    if not pairs:
        return "never owning any"
    own, truth = np.mean(pairs, 0)
    return f"bidding {own:.2f} for states of its own, truth is {truth:.2f}"


def _owned(finding: BestReplyResult, bids: np.ndarray) -> list[tuple[int, int]]:
    """The times and states of an episode at which the bidder sells if it wins all ties; deterministic."""
    mdp, exact, me = finding.case.mdp, finding.exact, finding.case.env.bidder
    state, owns, seen = int(mdp.start.argmax()), 0, []
    for t in range(mdp.horizon):
        hour = t % exact.horizon
        if owns:
            seen.append((hour, state))
        offers = exact.others[state].copy()
        offers[me] = bids[hour, state, owns]
        winner = me if offers[me] == offers.max() else int(offers.argmax())
        owns = int(winner == me)
        state = int(mdp.transitions[state, winner // finding.case.clones].argmax())
        if mdp.terminal[state]:
            break
    return seen


def _gain_figure(findings: list[BestReplyResult]) -> "Figure":
    processes = list(dict.fromkeys(f.case.process for f in findings))
    fig, axes = plotting.figure(len(processes), width=5.5, height=4.4)
    for ax, process in zip(axes, processes, strict=True):
        shown = [f for f in findings if f.case.process == process]
        x = np.arange(len(shown))
        ax.bar(x, [f.best_gain for f in shown], 0.6, color="tab:blue", alpha=0.35, label="best reply, exact")
        for i, finding in enumerate(shown):
            spread = np.linspace(-0.2, 0.2, len(finding.gains))
            label = "trained, each seed" if i == 0 else None
            ax.plot(i + spread, finding.gains, ".", color="tab:orange", label=label, clip_on=False, zorder=3)
        ax.axhline(0, color="black", linewidth=1.2, label="truth")
        labels = [
            f"{f.case.auction}\n{'alone' if f.case.clones == 1 else 'cloned'}\n#{f.case.primitive}" for f in shown
        ]
        ax.set_xticks(x, labels, fontsize=8)
        linear = {"Bandit": None, "Chain": 0.1, "Duality": 1.0}[process]
        if linear is not None:
            ax.set_yscale("symlog", linthresh=linear)
        ax.set(title=process, ylabel="gain over truth" + (", log scale" if linear else ""))
    axes[0].legend(frameon=False, fontsize=8)
    return fig


def _bid_figure(findings: list[BestReplyResult]) -> "Figure":
    shown = [f for f in findings if f.case.process == "Chain"]
    rows = len({f.case.primitive for f in shown})
    fig, axes = plotting.figure(len(shown) // rows, rows, width=4.6, height=3.2)
    order = sorted(shown, key=lambda f: f.case.primitive)
    states = np.flatnonzero(~Chain().terminal)
    for ax, finding in zip(axes, order, strict=True):
        for owns, color, label in ((0, "tab:blue", "another's state"), (1, "tab:orange", "its own state")):
            at = states + (owns - 0.5) * 0.4
            spread = np.linspace(-0.12, 0.12, len(finding.learned))
            # State s can be reached from the s-th auction on, so it is plotted from there.
            bids = finding.learned[:, states, states, owns]
            ax.plot(at[None] + spread[:, None], bids, ".", color=color, alpha=0.6)
            ax.plot([], [], ".", color=color, label=f"trained, {label}")
            ax.plot(at, finding.best[states, states, owns], "D", color=color, fillstyle="none", markersize=8)
        ax.plot([], [], "D", color="grey", fillstyle="none", label="best reply nearest to truth")
        q = finding.exact.truth[0, states, 0]
        ax.hlines(q, states - 0.4, states + 0.4, color="black", linewidth=2, label="Q*")
        side = ("left", "right")[finding.case.primitive]
        ax.set(
            title=f"{finding.case.auction}, a clone that goes {side}", xlabel="state", ylabel="bid", ylim=(-0.2, 5.3)
        )
    axes[0].legend(frameon=False, fontsize=8)
    return fig


def run(options: ExperimentOptions) -> Report:
    """Train a bidder in every position, and compare it with the best reply and with truthful bids."""
    cases = _cases(options)
    finished = options.train(cases, "best reply")
    findings = [BestReplyResult(case, finished[case.name]) for case in cases]
    return Report(
        settings={"quick": options.quick, "seeds": options.seeds, **cases[0].settings},
        tables=[
            ResultTable(
                "gains",
                "gain over truth, rivals bid Q*",
                [finding.row() for finding in findings],
                "discounted utility in expectation; trained: mean over seeds, 95% interval\n"
                "Chain: an episode, after which nothing is owed; Duality: without its cut\n"
                "found: seeds with 95% of the best reply's gain, or .001 less",
            ),
            _one_auction([f for f in findings if f.case.process == "Bandit"]),
            ResultTable(
                "wealth",
                "change of wealth in an episode, undiscounted",
                [finding.wealth_row() for finding in findings if finding.case.env.time_limits == "terminal"],
                "truth: what it earns; best gain: of the best reply without discount; trained: with it, as above\n"
                "played: the trained gain as seen in 128 fresh episodes per seed",
            ),
        ],
        verdicts=_verdicts(findings),
        figures={"gains": _gain_figure(findings), "bids": _bid_figure(findings)},
    )

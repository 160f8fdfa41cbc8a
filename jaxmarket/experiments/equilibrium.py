"""The distance from equilibrium along training: does the gain of the best reply go to 0, where, and when?

Societies of the numerical experiments are trained under four auctions, with and without clones. During training the
best reply of every bidder to the present bids of all others is computed exactly
(`jaxmarket.interop.deviations.best_replies`); the distance is the largest gain of any bidder, relative to the value of
an episode. Chang et al. (2020) prove that truthful bids are an equilibrium for bidders that optimise each auction
separately; here a bidder may also deviate over a whole episode.

- ``ppo``: the paper's learner with the tuned settings, whose bidders draw their bids from 0 to 1.
- ``valuation``: tables of values; bids are point estimates, and deviations are from the range of Q*.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxmarket.auctions import MECHANISMS
from jaxmarket.environments import make
from jaxmarket.experiments.claims import Claim, at, separated, share_of_seeds, within
from jaxmarket.experiments.conditions import Scope, Train
from jaxmarket.experiments.experiment import Experiment, Quick, Table
from jaxmarket.experiments.numerical import CLONES, SETTINGS
from jaxmarket.experiments.results import Results
from jaxmarket.interop.deviations import optimal_value
from jaxmarket.runs.curves import first_reach, last_part, lower_bound
from jaxmarket.runs.estimates import interquartile_mean
from jaxmarket.runs.measures import learning_curve, steps_to
from jaxmarket.runs.run_folder import SavedRun
from jaxmarket.training.pinned import train_config
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT", "Trained", "cases"]

_ENVS = ("Bandit-v0", "Chain-v0", "Duality-v0")
_LEARNERS: dict[str, dict[str, Any]] = {
    "ppo": SETTINGS["tuned"] | {"learner": "ppo", "log_every": 5},
    "valuation": {
        "learner": "valuation",
        "hidden": (),
        "time_limits": "terminal",
        "steps": 614_400,
        "log_every": 20,
        "trace_decay": 0.0,
    },
}
_NEAR = 0.05
"""The share of an episode's value by which a gain may exceed 0, and a return miss the optimum, once they converged."""


class Trained(NamedTuple):
    """One society."""

    learner: str
    env: str
    auction: str
    society: str  # cloned or solitary

    @property
    def name(self) -> str:
        """The name of the training run."""
        return "-".join(self)


def cases(scope: Scope) -> list[Trained]:
    """The societies that are compared."""
    auctions = ("ccv", "vickrey") if scope.quick else tuple(MECHANISMS)
    envs, learners = (_ENVS[:1], ("ppo",)) if scope.quick else (_ENVS, tuple(_LEARNERS))
    return [Trained(*each) for each in itertools.product(learners, envs, auctions, CLONES)]


def _conditions(scope: Scope) -> list[Train]:
    def train(case: Trained) -> Train:
        settings = _LEARNERS[case.learner]
        config = train_config(case.env, auction=case.auction, clones=CLONES[case.society], **settings)
        return Train(case.name, config, best_reply_every=settings["log_every"])

    return [train(case) for case in cases(scope)]


# --- measures


def _shares(run: SavedRun) -> np.ndarray:
    """The largest gain of any bidder as a share of an episode's value, f [chunks, seeds]."""
    mdp = run.config.adapter.env
    return run.metrics["best_reply_gain"] / optimal_value(mdp, mdp.horizon)


def _steps_to_equilibrium(run: SavedRun) -> np.ndarray:
    """Steps after which the gain stays small; those of the whole run, a lower bound, for seeds where it never does."""
    steps = learning_curve(run)[0]
    return lower_bound(first_reach(-_shares(run), -_NEAR, steps, lasting=True), steps[-1])


def _steps_to_return(run: SavedRun) -> np.ndarray:
    """Steps after which the return stays near the optimum; likewise a lower bound."""
    optimum = run.config.adapter.optimal_return(run.config.settings.gamma)
    return steps_to(optimum - _NEAR * abs(optimum), lasting=True)(run)


# --- claims


def _claims(scope: Scope) -> list[Claim]:
    claims = []
    for learner, env in dict.fromkeys((case.learner, case.env) for case in cases(scope)):
        name = functools.partial("-".join, (learner, env, "{}", "{}"))

        def of(auction: str, society: str, measure: str, prefix: str = name()) -> at:
            return at(prefix.format(auction, society), measure)

        def times(results: Results, of: Any = of) -> str:
            both = [interquartile_mean(of("ccv", "cloned", kind)(results)) for kind in ("return at", "gain at")]
            return "return after {} steps, gain after {}".format(*both)

        first = f"[{learner}, {env}] "
        claims.append(
            within(
                f"{first}a cloned ccv society ends near an equilibrium: gain of the best reply, share of an episode's "
                "value",
                of("ccv", "cloned", "gain"),
                at_most=_NEAR,
            )
        )
        if make(env)[0].horizon > 1:  # otherwise no bidder ever sells
            claims.append(
                separated(
                    f"{first}cloned, the gain is larger under vickrey, which mints money for sellers, than under ccv",
                    of("vickrey", "cloned", "gain"),
                    of("ccv", "cloned", "gain"),
                )
            )
        claims += [
            separated(
                f"{first}under ccv clones bring a society closer to an equilibrium",
                of("ccv", "cloned", "gain"),
                of("ccv", "solitary", "gain"),
                lower=True,
            ),
            share_of_seeds(
                f"{first}the return of a cloned ccv society converges before its distance from equilibrium",
                of("ccv", "cloned", "gain at"),
                share=0.75,
                above=of("ccv", "cloned", "return at"),
                evidence=times,
            ),
        ]
    return claims


# --- tables and figures


def _rows(results: Results) -> Iterator[dict[str, Any]]:
    for case in cases(results.scope):
        if case.name in results:
            columns = ("gain at first", "gain", "return", "gain at", "return at")
            found = {name: interquartile_mean(results.measure(case.name, name)) for name in columns}
            yield case._asdict() | found


def _draw(results: Results) -> Any:
    """Gains (first row) and returns (second row) of each learner."""
    shown = [case for case in cases(results.scope) if case.name in results]
    learners, envs = (list(dict.fromkeys(each)) for each in zip(*((c.learner, c.env) for c in shown), strict=True))
    fig, axes = plotting.figure(columns=len(envs), rows=2 * len(learners), width=5.0, height=3.4)
    panels = np.array(axes, object).reshape(len(learners), 2, len(envs))
    for case in shown:
        run, (gain, earned) = results[case.name], panels[learners.index(case.learner), :, envs.index(case.env)]
        steps, returns = learning_curve(run)
        style: dict[str, Any] = {
            "color": plotting.NAMED_COLORS[case.auction],
            "label": f"{case.auction}, {case.society}",
            "linestyle": "-" if case.society == "cloned" else ":",
        }
        plotting.draw_quartiles(gain, np.median(steps, 1), _shares(run), **style)
        plotting.draw_quartiles(earned, np.median(steps, 1), returns, **style)
    for (row, learner), (column, env) in itertools.product(enumerate(learners), enumerate(envs)):
        gain, earned = panels[row, :, column]
        gain.set(title=f"{env}, {learner}", ylabel="gain of the best reply / value")
        gain.set_yscale("symlog", linthresh=_NEAR)
        gain.set_ylim(bottom=0)
        gain.axhline(_NEAR, color="black", linewidth=0.8)
        earned.set(ylabel="return while learning")
        earned.axhline(make(env)[0].optimal_return(), color="black", linewidth=0.8)
        for ax in (gain, earned):
            plotting.step_axis(ax, "environment steps per seed")
    plotting.legend_below(fig)
    return fig


EXPERIMENT = Experiment(
    name="equilibrium",
    shows="the distance from equilibrium along training: gains of best replies, by auction and clones",
    source="Chang et al. (2020), §4 and §6.1; our own question",
    conditions=_conditions,
    measures={
        "gain at first": lambda run: _shares(run)[0],
        "gain": lambda run: last_part(_shares(run)).mean(0),
        "return": lambda run: np.array(run.summary["return_seeds"]),
        "gain at": _steps_to_equilibrium,
        "return at": _steps_to_return,
    },
    claims=_claims,
    tables=[
        Table(
            "equilibrium",
            "distance from equilibrium: largest gain of any bidder's best reply, share of an episode's value",
            _rows,
            "interquartile mean over seeds ± the larger side of its 95% bootstrap interval\n"
            "gain at first: after the first row of metrics · gain: in the last tenth of training\n"
            f"gain at: steps after which it stays below {_NEAR:.0%} · return at: steps after which the return while "
            f"learning stays above {1 - _NEAR:.0%} of the optimum; all steps, a lower bound, where it never does\n"
            "return: greedy, after training",
            below=("gain at", "return at"),
        )
    ],
    figures={"equilibrium": _draw},
    seeds=8,
    quick=Quick(seeds=2, steps=0.1),
)

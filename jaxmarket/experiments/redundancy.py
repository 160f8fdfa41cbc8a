"""Robustness by redundancy: the removal of bidders from a trained society (Chang et al. 2020, §5 and §6.1).

Societies are trained, then one bidder is removed permanently: the one with the highest bid, any other one, or a
primitive with all its clones. The return is measured immediately, and after further training without it. Societies have
solitary bidders, clones that share parameters, or clones with parameters of their own; on Bandit also societies trained
with agent dropout, where as in the paper a random subset of the bidders is absent in each episode.
"""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import evaluation
from jaxmarket.experiments.numerical import QUICK, SETTINGS, solved
from jaxmarket.experiments.report import (
    Estimate,
    ExperimentOptions,
    Report,
    ResultTable,
    Verdict,
    difference,
    interquartile_mean,
    tally,
)
from jaxmarket.experiments.settings import train_config
from jaxmarket.keys import key_for, key_of
from jaxmarket.learners import Hyperparameters
from jaxmarket.runs import files, fitting
from jaxmarket.society import Society
from jaxmarket.training import divergence
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.society import SocietyTraining, TrainState
from jaxmarket.types import Array, PyTree, Rules
from jaxmarket.view import plotting, tables

__all__ = ["RedundancyCondition", "conditions", "run"]

_DROPOUT = 0.5


@dataclasses.dataclass(frozen=True)
class RedundancyCondition:
    """A society, and how long it trains before and after it loses an agent."""

    name: str
    config: TrainConfig
    retrain: int  # chunks

    @property
    def label(self) -> str:
        """Names of environment and society."""
        return f"{self.config.adapter.name} {self.name}"

    @property
    def chunks(self) -> int:
        """Total number of chunks: training, and further training after every removal."""
        removals = 3 + self.config.settings.society.bidders - 1
        return self.config.settings.chunks + self.retrain * removals


def conditions(options: ExperimentOptions) -> list[RedundancyCondition]:
    """The societies compared."""
    budget: dict[str, Any] = {"learner": "ppo", "auction": "ccv", "seeds": options.seeds, **SETTINGS["tuned"]}
    kinds: dict[str, dict[str, Any]] = {"solitary": {"clones": 1}, "cloned": {"clones": 2}}
    retrain = 5
    if options.quick:
        budget, retrain = budget | QUICK, 2
    else:
        kinds["own parameters"] = {"clones": 2, "share_clones": False}
    chosen = [
        RedundancyCondition(name, train_config("Chain-v0", **{**budget, **kind}), retrain)
        for name, kind in kinds.items()
    ]
    for name, kind in kinds.items():
        # No dropout is expressed as a dropout of 0, so that both share one program.
        bandit: dict[str, Any] = {**budget, **kind, "dropout": 0.0}
        chosen.append(RedundancyCondition(name, train_config("Bandit-v0", **bandit), retrain))
        if kind.get("share_clones", True):
            with_dropout = train_config("Bandit-v0", **{**bandit, "dropout": _DROPOUT})
            chosen.append(RedundancyCondition(f"{name}, dropout", with_dropout, retrain))
    return chosen


@functools.partial(jax.jit, static_argnums=0)
def _chunk(
    program: SocietyTraining, states: TrainState, hyper: Hyperparameters, present: Array
) -> tuple[TrainState, Array]:
    """One chunk of every seed, each with its own present bidders: states [seeds, ...], present bool [seeds, A]."""

    def update(state: TrainState, present: Array) -> tuple[TrainState, Array]:
        here, env_params = hyper.replace(present=present), program.society.env.default_params
        state, metrics = program.chunk(state, env_params, here)
        return state, metrics["return_mean"]

    return jax.vmap(update)(states, present)


@functools.partial(jax.jit, static_argnums=0)
def _returns(society: Society, params: PyTree, keys: Array, present: Array) -> Array:
    """Mean return of new episodes with greedy bids of the present bidders: f [seeds]."""
    society = dataclasses.replace(society, greedy=True)

    def mean_return(params: PyTree, key: Array, present: Array) -> Array:
        rules = Rules(present=present)
        episodes = evaluation.evaluate(society, params, key, society.env.default_params, 32, rules=rules)
        return divergence.valid(episodes.returns.mean(), params)

    return jax.vmap(mean_return)(params, keys, present)


def absences(society: Society, greedy: np.ndarray) -> dict[str, np.ndarray]:
    """The present bidders of each case: masks bool [seeds, cases, A].

    Args:
        society: the bidders.
        greedy: f [seeds, M], greedy bids for the first state of an episode.
    """
    seeds, bidders = len(greedy), society.bidders
    bids = np.repeat(greedy, society.members, axis=1)
    best = bids.argmax(1)
    all_present = np.ones((seeds, 1, bidders), bool)
    without = np.repeat(~np.eye(bidders, dtype=bool)[None], seeds, axis=0)  # case a: all bidders except a
    primitive = np.arange(bidders) // society.clones
    return {
        "none": all_present,
        "best bidder": without[np.arange(seeds), best][:, None],
        "any other": np.stack([np.delete(w, b, axis=0) for w, b in zip(without, best, strict=True)]),
        "best primitive": (primitive != primitive[best][:, None])[:, None],
    }


Returns = dict[str, dict[str, list[float]]]
"""The return of each seed by case and by ``at once`` or ``trained on``, for the worst of several removals."""


def _measure(condition: RedundancyCondition, options: ExperimentOptions, show: Any) -> Returns:
    """Train, remove bidders, and measure the return before and after further training."""
    config = condition.config
    program, society = config.settings.trainable, config.settings.society
    hyper = config.settings.hyperparameters.as_arrays()
    key = key_of(options.seed)
    all_present = jnp.ones((config.seeds, society.bidders), bool)
    state = fitting.init_seeds(program, jax.random.split(key, config.seeds), hyper)
    for _ in range(program.chunks):
        state, returns = _chunk(program, state, hyper, all_present)
        show(f"{condition.label}: return {float(jnp.nanmean(returns)):.3f}")

    first = jax.vmap(lambda p: evaluation.bids_by_state(society, p, program.states or 0)[0])(state.learner.params)
    keys = jax.random.split(key_for(key, "measurement"), config.seeds)
    measured: Returns = {}
    for case, masks in absences(society, np.asarray(first)).items():
        at_once, trained_on = [], []
        for present in jnp.moveaxis(jnp.asarray(masks), 1, 0):  # [seeds, A] for each removal
            at_once.append(_returns(society, state.learner.params, keys, present))
            # Current episodes end with all bidders; the next ones start without the removed one.
            after = state
            for _ in range(condition.retrain):
                after, returns = _chunk(program, after, hyper, present)
                show(f"{condition.label}, without {case}: return {float(jnp.nanmean(returns)):.3f}")
            trained_on.append(_returns(society, after.learner.params, keys, present))
        measured[case] = {"at once": np.min(at_once, 0).tolist(), "trained on": np.min(trained_on, 0).tolist()}
    return measured


def _row(condition: RedundancyCondition, case: str, returns: dict[str, list[float]]) -> dict[str, Any]:
    now, later = np.array(returns["at once"]), np.array(returns["trained on"])
    optimum = condition.config.adapter.optimal_return(condition.config.settings.gamma)
    return {
        "env": condition.config.adapter.name,
        "society": condition.name,
        "removed": case,
        "at once": interquartile_mean(now),
        "lowest": float(now.min()),
        "trained on": interquartile_mean(later),
        "lowest after": float(later.min()),
        "optimal at once": tally(solved(now, optimum)),
        "optimal after": tally(solved(later, optimum)),
    }


def run(options: ExperimentOptions) -> Report:
    """Measure every condition that is not in ``options.folder``, and test the claims."""
    chosen = conditions(options)
    total = sum(condition.chunks for condition in chosen)
    rows: list[dict[str, Any]] = []
    at_once: dict[tuple[str, str, str], list[float]] = {}  # by environment, society and case
    done = 0
    with tables.progress("redundancy", unit="chunks", shown=options.progress) as bar:

        def show(note: str) -> None:
            nonlocal done
            done += 1
            bar(done, total, note)

        for condition in chosen:
            path = options.folder / f"{condition.label.replace(', ', '-').replace(' ', '-')}.json"
            if path.exists():
                done += condition.chunks
            else:
                measured = json.dumps(_measure(condition, options, show))
                files.write_text(path, measured + "\n")
            for case, returns in json.loads(path.read_text()).items():
                rows.append(_row(condition, case, returns))
                at_once[condition.config.adapter.name, condition.name, case] = returns["at once"]

    def find(env: str, society: str, removed: str) -> dict[str, Any]:
        return next(r for r in rows if (r["env"], r["society"], r["removed"]) == (env, society, removed))

    def gained(one: tuple[str, str, str], other: tuple[str, str, str]) -> Estimate:
        return difference(at_once[one], at_once[other])

    verdicts = []
    for env in ("Chain-v0", "Bandit-v0"):
        cloned, alone = find(env, "cloned", "best bidder"), find(env, "solitary", "best bidder")
        any_other = find(env, "cloned", "any other")
        gap = gained((env, "cloned", "best bidder"), (env, "solitary", "best bidder"))
        verdicts += [
            Verdict.of(
                f"[{env}] a cloned society keeps its return when its best bidder is removed, a solitary one does not",
                gap.low > 0, gap.value,
                f"return at once {cloned['at once']} against {alone['at once']}, difference of the means {gap}; "
                f"after further training {cloned['trained on']} against {alone['trained on']}",
            ),
            Verdict.of(
                f"[{env}] a cloned society keeps its return when any other bidder is removed",
                any_other["optimal at once"] == any_other["optimal after"] == f"{options.seeds}/{options.seeds}",
                any_other["lowest"],
                f"worst removal of each seed: at once {any_other['at once']}, later {any_other['trained on']}",
            ),
        ]  # fmt: skip
    robust, usual = (("Bandit-v0", name, "best primitive") for name in ("cloned, dropout", "cloned"))
    dropped, plain, gap = find(*robust), find(*usual), gained(robust, usual)
    verdicts.append(
        Verdict.of(
            "[Bandit-v0] dropout in training makes a society robust to the removal of the best primitive",
            gap.low > 0,
            gap.value,
            f"return at once without the best primitive (at most .6): {dropped['at once']}, "
            f"without dropout {plain['at once']}; difference of the means {gap}",
        )
    )
    every = list(dict.fromkeys(r["society"] for r in rows))
    fig, axes = plotting.figure(columns=2, width=6.5)
    for ax, env in zip(axes, ("Chain-v0", "Bandit-v0"), strict=True):
        societies = list(dict.fromkeys(r["society"] for r in rows if r["env"] == env))
        cases = list(dict.fromkeys(r["removed"] for r in rows))
        for i, society in enumerate(societies):
            width = 0.8 / len(societies)
            x = np.arange(len(cases)) + (i - (len(societies) - 1) / 2) * width
            now, later = (
                [find(env, society, case)[column].value for case in cases] for column in ("at once", "trained on")
            )
            ax.bar(x, now, width * 0.9, color=f"C{every.index(society)}", label=society)
            ax.bar(x, later, width * 0.9, facecolor="none", edgecolor="black")
        ax.bar(0, 0, facecolor="none", edgecolor="black", label="after further training")
        ax.set_xticks(range(len(cases)), cases)
        ax.set(xlabel="removed", ylabel="greedy return", title=f"{env}: at once, and after further training")
    plotting.legend_below(fig)
    table = ResultTable(
        "redundancy", "removal of bidders from a trained society (ccv, tuned settings)", rows,
        "greedy return of new episodes, interquartile mean over seeds ± the larger side of its 95% bootstrap interval\n"
        "any other: the worst removal of each seed · best bidder: highest greedy bid for the first state · "
        "best primitive: all clones of the best bidder",
        aside=("lowest", "lowest after", "optimal at once", "optimal after"),
    )  # fmt: skip
    settings = {"seeds": options.seeds, "quick": options.quick, "dropout": _DROPOUT, "tuned": SETTINGS["tuned"]}
    return Report(settings=settings, tables=[table], verdicts=verdicts, figures={"redundancy": fig})

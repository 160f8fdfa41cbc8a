"""Robustness by redundancy: the removal of bidders from a trained society (Chang et al. 2020, §5 and §6.1).

Societies are trained, then one bidder is removed permanently: the one with the highest bid, any other one, or a
primitive with all its clones. The return is measured immediately, and after further training without it. Societies have
solitary bidders, clones that share parameters, or clones with parameters of their own; on Bandit also societies trained
with agent dropout, where as in the paper a random subset of the bidders is absent in each episode.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import evaluation
from jaxmarket.environments import make
from jaxmarket.experiments.claims import Claim, at, every_seed, separated
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Scope
from jaxmarket.experiments.experiment import Experiment, Table
from jaxmarket.experiments.measures import nearly
from jaxmarket.experiments.numerical import QUICK, SETTINGS
from jaxmarket.experiments.results import Results
from jaxmarket.experiments.settings import train_config
from jaxmarket.keys import key_for, key_of
from jaxmarket.learners import Hyperparameters
from jaxmarket.runs import fitting
from jaxmarket.runs.estimates import interquartile_mean
from jaxmarket.society import Society
from jaxmarket.training import divergence
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.society import SocietyTraining, TrainState
from jaxmarket.types import Array, PyTree, Rules
from jaxmarket.view import plotting

__all__ = ["CASES", "EXPERIMENT", "WHEN", "societies"]

_DROPOUT = 0.5
_ENVS = ("Chain-v0", "Bandit-v0")
CASES = ("none", "best bidder", "any other", "best primitive")
"""Who is removed (`evaluation.absences`)."""
WHEN = ("at once", "trained on")
"""When the return is measured. A condition has an array ``case, when`` for each pair."""


def societies(scope: Scope) -> dict[str, TrainConfig]:
    """The settings of each society, by environment and name."""
    budget: dict[str, Any] = {"auction": "ccv", "seeds": scope.seeds} | SETTINGS["tuned"]
    kinds: dict[str, dict[str, Any]] = {"solitary": {"clones": 1}, "cloned": {"clones": 2}}
    if scope.quick:
        budget |= QUICK
    else:
        kinds["own parameters"] = {"clones": 2, "share_clones": False}
    chosen = {f"Chain-v0 {name}": train_config("Chain-v0", **budget, **kind) for name, kind in kinds.items()}
    for name, kind in kinds.items():
        # No dropout is expressed as a dropout of 0, so that both share one program.
        chosen[f"Bandit-v0 {name}"] = train_config("Bandit-v0", **budget, **kind, dropout=0.0)
        if kind.get("share_clones", True):
            chosen[f"Bandit-v0 {name}, dropout"] = train_config("Bandit-v0", **budget, **kind, dropout=_DROPOUT)
    return chosen


def _conditions(scope: Scope) -> list[Condition]:
    retrain = 2 if scope.quick else 5  # chunks
    return [
        Compute(name, functools.partial(_measure, config, retrain, scope.seed), reports=True)
        for name, config in societies(scope).items()
    ]


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


def _measure(
    config: TrainConfig, retrain: int, seed: int, keys: Array, *, show: Callable[[float, str], None]
) -> Arrays:
    """Train, remove bidders, and measure the return before and after further training.

    Returns:
        The return of each seed by case and time, f [seeds], for the worst of several removals.
    """
    program, society = config.settings.trainable, config.settings.society
    hyper = config.settings.hyperparameters.as_arrays()
    all_present = jnp.ones((config.seeds, society.bidders), bool)
    total = program.chunks + retrain * (len(CASES) + society.bidders - 2)  # any other bidder is one of several
    done = iter(range(1, total + 1))

    def chunk(state: TrainState, present: Array, note: str) -> TrainState:
        state, returns = _chunk(program, state, hyper, present)
        show(next(done) / total, f"{note}return {float(jnp.nanmean(returns)):.3f}")
        return state

    state = fitting.init_seeds(program, keys, hyper)
    for _ in range(program.chunks):
        state = chunk(state, all_present, "")

    first = jax.vmap(lambda p: evaluation.bids_by_state(society, p, program.states or 0)[0])(state.learner.params)
    keys = jax.random.split(key_for(key_of(seed), "measurement"), config.seeds)
    measured = {}
    for case, masks in evaluation.absences(society, np.asarray(first)).items():
        returns: dict[str, list[Array]] = {when: [] for when in WHEN}
        for present in jnp.moveaxis(jnp.asarray(masks), 1, 0):  # [seeds, A] for each removal
            returns["at once"].append(_returns(society, state.learner.params, keys, present))
            # Current episodes end with all bidders; the next ones start without the removed one.
            after = state
            for _ in range(retrain):
                after = chunk(after, present, f"without {case}: ")
            returns["trained on"].append(_returns(society, after.learner.params, keys, present))
        measured |= {f"{case}, {when}": np.min(each, 0).astype(np.float64) for when, each in returns.items()}
    return measured


# --- claims, table and figure


def _claims() -> list[Claim]:
    claims = []
    for env in _ENVS:
        cloned, alone = f"{env} cloned", f"{env} solitary"

        def later(results: Results, names: tuple[str, str] = (cloned, alone)) -> str:
            means = [interquartile_mean(results.measure(name, "best bidder, trained on")) for name in names]
            return "after further training {} against {}".format(*means)

        claims += [
            separated(
                f"[{env}] a cloned society keeps its return when its best bidder is removed, a solitary one does not",
                at(cloned, "best bidder, at once"),
                at(alone, "best bidder, at once"),
                evidence=later,
            ),
            every_seed(
                f"[{env}] a cloned society keeps its return, within 1% of the optimum, when any other bidder is "
                "removed, at once and after further training",
                at(cloned, "any other"),
                at_least=nearly(make(env)[0].optimal_return()),
            ),
        ]
    text = "dropout in training makes a society robust to the removal of the best primitive (return at most .6)"
    pair = [at(f"Bandit-v0 {society}", "best primitive, at once") for society in ("cloned, dropout", "cloned")]
    return [*claims, separated(f"[Bandit-v0] {text}", *pair)]


def _rows(results: Results) -> Iterator[dict[str, Any]]:
    for name, case in itertools.product(results, CASES):
        env, _, society = name.partition(" ")
        returns = {when: interquartile_mean(results.measure(name, f"{case}, {when}")) for when in WHEN}
        yield {"env": env, "society": society, "removed": case, **returns}


def _draw(results: Results) -> Any:
    every = dict.fromkeys(name.partition(" ")[2] for name in results)
    colors = {society: f"C{i}" for i, society in enumerate(every)}
    fig, axes = plotting.figure(columns=2, rows=2, width=6.5)
    for ax, (env, when) in zip(axes, itertools.product(_ENVS, WHEN), strict=True):
        returns = {
            name.partition(" ")[2]: [interquartile_mean(results.measure(name, f"{case}, {when}")) for case in CASES]
            for name in results
            if name.startswith(env)
        }
        plotting.draw_estimates(ax, CASES, returns, colors)
        ax.set(xlabel="greedy return", ylabel="removed", title=f"{env}, {when}")
    plotting.legend_below(fig, columns=5)
    return fig


EXPERIMENT = Experiment(
    name="redundancy",
    shows="removal of the best or of any other bidder from a trained society",
    source="Chang et al. (2020), §5 (redundancy) and §6.1 (dropout)",
    conditions=_conditions,
    measures={"any other": lambda found: np.min([found[f"any other, {when}"] for when in WHEN], 0)},
    claims=_claims(),
    tables=[
        Table(
            "redundancy",
            "removal of bidders from a trained society (ccv, tuned settings)",
            _rows,
            "greedy return of new episodes, interquartile mean over seeds ± the larger side of its 95% bootstrap "
            "interval\nany other: the worst removal of each seed · best bidder: highest greedy bid for the first state "
            "· best primitive: all clones of the best bidder",
        )
    ],
    figures={"redundancy": _draw},
    facts=lambda results: {"dropout": _DROPOUT, "tuned": SETTINGS["tuned"]},
)

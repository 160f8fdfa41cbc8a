"""Robustness by redundancy: the removal of bidders from a trained society (Chang et al. 2020, §5 and §6.1).

Societies are trained, then one bidder is removed permanently: the one with the highest bid, any other one, or a
primitive with all its clones. The return is measured immediately, and after further training without it. Societies have
solitary bidders, clones that share parameters, or clones with parameters of their own; on Bandit also societies trained
with agent dropout, where as in the paper a random subset of the bidders is absent in each episode.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import evaluation
from jaxmarket.environments import make
from jaxmarket.experiments.claims import Claim, at, every_seed, separated, tally
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Scope
from jaxmarket.experiments.experiment import Experiment, Table
from jaxmarket.experiments.measures import nearly, solved
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

__all__ = ["EXPERIMENT", "absences", "societies"]

_DROPOUT = 0.5
_ENVS = ("Chain-v0", "Bandit-v0")
_CASES = ("none", "best bidder", "any other", "best primitive")
_WHEN = ("at once", "trained on")


def societies(scope: Scope) -> dict[str, TrainConfig]:
    """The settings of each society, by environment and name."""
    budget: dict[str, Any] = {"learner": "ppo", "auction": "ccv", "seeds": scope.seeds, **SETTINGS["tuned"]}
    kinds: dict[str, dict[str, Any]] = {"solitary": {"clones": 1}, "cloned": {"clones": 2}}
    if scope.quick:
        budget |= QUICK
    else:
        kinds["own parameters"] = {"clones": 2, "share_clones": False}
    chosen = {f"Chain-v0 {name}": train_config("Chain-v0", **{**budget, **kind}) for name, kind in kinds.items()}
    for name, kind in kinds.items():
        # No dropout is expressed as a dropout of 0, so that both share one program.
        bandit: dict[str, Any] = {**budget, **kind, "dropout": 0.0}
        chosen[f"Bandit-v0 {name}"] = train_config("Bandit-v0", **bandit)
        if kind.get("share_clones", True):
            chosen[f"Bandit-v0 {name}, dropout"] = train_config("Bandit-v0", **(bandit | {"dropout": _DROPOUT}))
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
    total = program.chunks + retrain * (len(_CASES) + society.bidders - 2)  # any other bidder is one of several
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
    for case, masks in absences(society, np.asarray(first)).items():
        returns: dict[str, list[Array]] = {when: [] for when in _WHEN}
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


def _claims(scope: Scope) -> list[Claim]:
    del scope
    claims = []
    for env in _ENVS:
        cloned, alone = f"{env} cloned", f"{env} solitary"

        def later(results: Results, names: tuple[str, str] = (cloned, alone)) -> str:
            means = [interquartile_mean(results.measure(name, "best bidder, trained on")) for name in names]
            return "after further training {} against {}".format(*means)

        def worst(results: Results, name: str = cloned) -> np.ndarray:
            return np.min([results.measure(name, f"any other, {when}") for when in _WHEN], 0)

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
                worst,
                at_least=nearly(make(env)[0].optimal_return()),
            ),
        ]
    claims.append(
        separated(
            "[Bandit-v0] dropout in training makes a society robust to the removal of the best primitive (return at "
            "most .6)",
            at("Bandit-v0 cloned, dropout", "best primitive, at once"),
            at("Bandit-v0 cloned", "best primitive, at once"),
        )
    )
    return claims


def _finished(results: Results) -> Iterator[tuple[str, str, str]]:
    """Condition, environment and society."""
    for name in results:
        env, _, society = name.partition(" ")
        yield name, env, society


def _rows(results: Results) -> Iterator[dict[str, Any]]:
    for name, env, society in _finished(results):
        best = make(env)[0].optimal_return()
        for case in _CASES:
            now, later = (results.measure(name, f"{case}, {when}") for when in _WHEN)
            yield {
                "env": env,
                "society": society,
                "removed": case,
                "at once": interquartile_mean(now),
                "lowest": float(now.min()),
                "trained on": interquartile_mean(later),
                "lowest after": float(later.min()),
                "optimal at once": tally(solved(now, best)),
                "optimal after": tally(solved(later, best)),
            }


def _draw(results: Results) -> Any:
    every = list(dict.fromkeys(society for _, _, society in _finished(results)))
    fig, axes = plotting.figure(columns=2, width=6.5)
    for ax, env in zip(axes, _ENVS, strict=True):
        shown = [(name, society) for name, of, society in _finished(results) if of == env]
        for i, (name, society) in enumerate(shown):
            width = 0.8 / len(shown)
            x = np.arange(len(_CASES)) + (i - (len(shown) - 1) / 2) * width
            now, later = (
                [interquartile_mean(results.measure(name, f"{case}, {when}")).value for case in _CASES]
                for when in _WHEN
            )
            ax.bar(x, now, width * 0.9, color=f"C{every.index(society)}", label=society)
            ax.bar(x, later, width * 0.9, facecolor="none", edgecolor="black")
        ax.bar(0, 0, facecolor="none", edgecolor="black", label="after further training")
        ax.set_xticks(range(len(_CASES)), _CASES)
        ax.set(xlabel="removed", ylabel="greedy return", title=f"{env}: at once, and after further training")
    plotting.legend_below(fig)
    return fig


EXPERIMENT = Experiment(
    name="redundancy",
    shows="removal of the best or of any other bidder from a trained society",
    source="Chang et al. (2020), §5 (redundancy) and §6.1 (dropout)",
    conditions=_conditions,
    measures={
        f"{case}, {when}": lambda found, name=f"{case}, {when}": found[name] for case in _CASES for when in _WHEN
    },
    claims=_claims,
    tables=[
        Table(
            "redundancy",
            "removal of bidders from a trained society (ccv, tuned settings)",
            _rows,
            "greedy return of new episodes, interquartile mean over seeds ± the larger side of its 95% bootstrap "
            "interval\nany other: the worst removal of each seed · best bidder: highest greedy bid for the first state "
            "· best primitive: all clones of the best bidder",
            aside=("lowest", "lowest after", "optimal at once", "optimal after"),
        )
    ],
    figures={"redundancy": _draw},
    facts=lambda results: {"dropout": _DROPOUT, "tuned": SETTINGS["tuned"]},
)

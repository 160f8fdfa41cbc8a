"""Replays of training runs: episodes of the trained agents, and the training itself."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmarket.deep_market import Terms
from jaxmarket.keys import key_for, key_of
from jaxmarket.runs.fitting import repeat
from jaxmarket.runs.run_folder import best_seed, open_run, params_in, params_of_seed
from jaxmarket.training import divergence
from jaxmarket.training.population import PopulationTraining
from jaxmarket.training.result import RunResult, agent_parts
from jaxmarket.training.society import SocietyTraining
from jaxmarket.training.wide import WideMarketTraining
from jaxmarket.types import Array, PyTree
from jaxmarket.validation import check_bool, check_int
from jaxmarket.view import episodes as record
from jaxmarket.view.pictures import action_names
from jaxmarket.view.replay import Replay, ReplayEpisode, ReplayTraining

__all__ = ["watch"]

_SEEDS = 3  # seeds of a run that a page shows by default
_MOMENTS = 50


def watch(
    source: RunResult | str | Path,
    *,
    seed: int = 0,
    run_seed: int | Sequence[int] | None = None,
    episodes: int = 3,
    steps: int = 60,
    sampled: bool = False,
    training: bool = False,
) -> Replay:
    """The replay page of a run: new episodes of what it trained, in a society, a population or a wide market.

    Args:
        source: a run, or the folder of one.
        seed: random seed of the episodes; the first one is that of ``jaxmarket watch`` without ``--html``.
        run_seed: the seeds of the run to show; the three with the highest greedy returns by default.
        episodes: episodes of each of them.
        steps: largest number of auctions of an episode.
        sampled: sample the bids instead of bidding their means; of a society only.
        training: also repeat the training from its settings and record the bids in every state at fifty moments. It
            takes as long as the run did, and is possible for societies in finite processes with one-hot observations.

    Returns:
        A page that a notebook shows, with a method ``save``.

    Raises:
        ValueError: an argument is invalid, the run has no market, or its training cannot be repeated.
    """
    run = open_run(source)
    episodes, steps = check_int("episodes", episodes), check_int("steps", steps)
    sampled, training = check_bool("sampled", sampled), check_bool("training", training)
    seeds = _seeds(run, run_seed)
    key = key_for(key_of(seed), "watch")
    keys = [key, *(jax.random.fold_in(key, number) for number in range(1, episodes))]
    play = _player(run, steps, sampled=sampled)
    best = best_seed(run) if np.isfinite(run.summary["return_seeds"]).any() else None
    names = {number: f"{number} (best)" if number == best and run.config.seeds > 1 else str(number) for number in seeds}
    recorded = [
        play(params_of_seed(run, number), each, seed=names[number], number=index)
        for number in seeds
        for index, each in enumerate(keys, 1)
    ]
    shown = _training(run, seeds, names) if training else ()
    parts = agent_parts(run.summary)
    if isinstance(run.config.settings.trainable, SocietyTraining):
        parts.append("sampled bids" if sampled else "greedy bids")
    subtitle = " · ".join([*parts, f"{run.summary['env_steps']:,} environment steps of training"])
    return Replay(run.config.adapter.name, subtitle, tuple(recorded), shown)


def _seeds(run: Any, given: int | Sequence[int] | None) -> list[int]:
    if given is not None:
        chosen = [given] if isinstance(given, int) else list(given)
        return [check_int("run_seed", number, 0, run.config.seeds - 1) for number in chosen]
    returns = np.array(run.summary["return_seeds"], float)
    order = np.argsort(-np.where(np.isfinite(returns), returns, -np.inf), kind="stable")
    kept = [int(number) for number in order if np.isfinite(returns[number])][:_SEEDS]
    if not kept:
        divergence.best(returns)  # raises the error
    return kept


def _env_params(run: Any) -> PyTree:
    given = params_in(run.config, run.summary.get("env_params"), getattr(run, "folder", Path()))
    return run.config.adapter.parameters(given)


def _player(run: Any, steps: int, *, sampled: bool) -> Any:
    """``(params, key, seed, number) -> ReplayEpisode`` for the kind of agent that was trained."""
    settings = run.config.settings
    trainable, env_params = settings.trainable, _env_params(run)

    def labelled(function: Any, **fixed: Any) -> Any:
        def play(params: PyTree, key: Array, *, seed: str, number: int) -> ReplayEpisode:
            found = function(params=params, key=key, env_params=env_params, steps=steps, seed=seed, **fixed)
            return dataclasses.replace(found, label=f"episode {number}: {found.label}")

        return play

    if isinstance(trainable, SocietyTraining):
        society = trainable.policy(params_of_seed(run, 0), greedy=not sampled).society
        return labelled(
            functools.partial(record.society_episode, society),
            gamma=settings.gamma,
            time_limits=settings.time_limits,
            q=run.q,
        )
    if sampled:
        raise ValueError("sampled: the bids of this kind of agent are deterministic; leave it out")
    if isinstance(trainable, PopulationTraining):
        numbers = settings.hyperparameters.own
        terms = Terms(**{name: numbers[name] for name in trainable.terms})
        market = trainable.market

        def population(params: PyTree, **options: Any) -> ReplayEpisode:
            return record.population_episode(market, params, terms=terms, **options)

        return labelled(population)
    if isinstance(trainable, WideMarketTraining):
        return labelled(functools.partial(record.wide_society_episode, trainable.society))
    kind = settings.labels["agent"]
    raise ValueError(f"source: a run of agent {kind} has no market to watch; give one of a society, wide or population")


def _training(run: Any, seeds: Sequence[int], names: dict[int, str]) -> tuple[ReplayTraining, ...]:
    """The training of some seeds, repeated."""
    settings = run.config.settings
    if run.q is None or not isinstance(settings.trainable, SocietyTraining):
        raise ValueError(
            f"training: the bids of every state are known for societies in finite processes with one-hot observations, "
            f"not for {run.config.adapter.name}; leave it out"
        )
    began = time.perf_counter()
    found = repeat(run, _MOMENTS)
    seconds = time.perf_counter() - began
    same = "with the same bits as the run" if found.same else "with other bits than the run (other versions or device)"
    note = f"The training was repeated from its settings in {seconds:.1f} s, {same}."
    visited = np.asarray(run.visited)
    return tuple(
        ReplayTraining(
            steps=found.steps[:, number],
            bids=found.bids[:, number],
            q=run.q,
            visited=visited[number],
            primitives=action_names(run.config.adapter),
            seed=names[number],
            note=note,
        )
        for number in seeds
    )

"""Robustness by redundancy: the returns of a society after the removal of bidders (Chang et al. 2020, §5)."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import evaluation
from jaxmarket.keys import key_for, key_of
from jaxmarket.learners import Hyperparameters
from jaxmarket.runs import fitting
from jaxmarket.society import Society
from jaxmarket.switches import whole_program
from jaxmarket.training import divergence
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.society import SocietyTraining, TrainState
from jaxmarket.types import Array, PyTree, Rules

__all__ = ["CASES", "WHEN", "absences", "returns_after_removal"]

CASES = ("none", "best bidder", "any other", "best primitive")
"""Who is removed: the bidder with the highest bid, each other bidder in turn, or the best bidder with its clones."""
WHEN = ("at once", "trained on")
"""When the return is measured: at once, or after further training."""


def absences(society: Society, greedy: np.ndarray) -> dict[str, np.ndarray]:
    """Which bidders are present (`Rules.present`) after each removal of a case of `CASES`: bool [seeds, removals, A].

    Args:
        society: the bidders.
        greedy: f [seeds, M], greedy bids for one state, such as the first of an episode.
    """
    seeds, bidders = len(greedy), society.bidders
    best = np.repeat(greedy, society.members, axis=1).argmax(1)
    without = np.repeat(~np.eye(bidders, dtype=bool)[None], seeds, axis=0)  # case a: all bidders except a
    primitive = np.arange(bidders) // society.clones
    return {
        "none": np.ones((seeds, 1, bidders), bool),
        "best bidder": without[np.arange(seeds), best][:, None],
        "any other": np.stack([np.delete(w, b, axis=0) for w, b in zip(without, best, strict=True)]),
        "best primitive": (primitive != primitive[best][:, None])[:, None],
    }


def returns_after_removal(
    config: TrainConfig, retrain: int, seed: int, keys: Array, *, show: Callable[[float, str], None]
) -> dict[str, np.ndarray]:
    """Train a society, remove bidders permanently, and measure the return at once and after further training.

    Args:
        config: a society on an environment with a table of states, whose index 0 is the first of an episode.
        retrain: chunks of further training.
        seed: of the measurements.
        keys: typed PRNG keys of training, [seeds] as in ``config``.
        show: receives the share that is done, and a note.

    Returns:
        The greedy return of each seed by ``case, when`` (`CASES`, `WHEN`), f64 [seeds]; the lowest of several removals.
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
    for case, masks in absences(society, np.asarray(first)).items():
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


@functools.partial(whole_program, static_argnums=0)
def _chunk(
    program: SocietyTraining, states: TrainState, hyper: Hyperparameters, present: Array
) -> tuple[TrainState, Array]:
    """One chunk of every seed, each with its own present bidders: states [seeds, ...], present bool [seeds, A]."""

    def update(state: TrainState, present: Array) -> tuple[TrainState, Array]:
        here, env_params = hyper.replace(present=present), program.society.env.default_params
        state, metrics = program.chunk(state, env_params, here)
        return state, metrics["return_mean"]

    return jax.vmap(update)(states, present)


@functools.partial(whole_program, static_argnums=0)
def _returns(society: Society, params: PyTree, keys: Array, present: Array) -> Array:
    """Mean return of new episodes with greedy bids of the present bidders: f [seeds]."""
    society = dataclasses.replace(society, greedy=True)

    def mean_return(params: PyTree, key: Array, present: Array) -> Array:
        rules = Rules(present=present)
        episodes = evaluation.evaluate(society, params, key, society.env.default_params, 32, rules=rules)
        return divergence.valid(episodes.returns.mean(), params)

    return jax.vmap(mean_return)(params, keys, present)

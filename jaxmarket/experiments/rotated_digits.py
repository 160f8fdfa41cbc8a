"""The conditions of the experiment ``mental-rotation``: agents, and bounds of what they can reach."""

import functools
from typing import Any

import jax
import numpy as np

from jaxmarket.environments.mental_rotation import Depth, MentalRotation, inverse
from jaxmarket.experiments.conditions import Arrays
from jaxmarket.experiments.settings import train_config
from jaxmarket.runs.run_folder import SavedRun, as_policy
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.programs import compose_all, search_all
from jaxmarket.types import Array

__all__ = [
    "AGENTS",
    "BASE",
    "COMPONENTS",
    "FULL",
    "GRIDS",
    "TUNED",
    "TUNING",
    "Task",
    "bounds",
    "classifier",
    "config",
    "environment",
    "play",
]

AGENTS = ("society", "monolithic")
COMPONENTS = 128
_DEEPEST = 2  # functions that an input needs at most

# All agents have the same frozen encoder, and one small layer on top of it.
BASE: dict[str, Any] = {
    "hidden": (64,),
    "instances": 64,
    "horizon": 16,
    "minibatch": 128,
    "epochs": 4,
    "value_learning_rate": 1e-3,
    "steps": 153_600,
}
TUNED: dict[str, dict[str, Any]] = {
    "society": {"agent": "society", "learning_rate": 5e-4, "entropy": 0.03},
    "monolithic": {"agent": "monolith", "learning_rate": 1e-3, "entropy": 0.03},
}
"""The best settings of each agent's grid; see the table ``tuning`` of a ``--full`` run."""
GRIDS = {
    agent: [{"learning_rate": rate, "entropy": e} for rate in (3e-4, 5e-4, 1e-3) for e in (0.01, 0.03, 0.1)]
    for agent in AGENTS
}
"""The same settings for both agents; they are tried with separate seeds."""
TUNING = {"seed": 5, "seeds": 4, "steps": 102_400}
FULL: dict[str, dict[str, Any]] = {
    # The paper's bidders, each with its own convolutions over the pixels: ten times the compute of the others.
    "society-cnn": {
        "learning_rate": 1e-3,
        "entropy": 0.03,
        "hidden": (32,),
        "convolutions": (8, 16),
        "epochs": 2,
        "steps": 81_920,
    },
    "society-valuation": {"learner": "valuation", "epochs": 1, "value_learning_rate": None},
}
"""Additional societies of a ``--full`` run."""


Task = tuple[int, Depth, int | None]
"""Resolution, depth and number of components of the environment."""


@functools.cache
def environment(resolution: int, depth: Depth, components: int | None) -> MentalRotation:
    """The environment of a `Task`; it loads the digits and trains their classifier, or reads it."""
    return MentalRotation(resolution, depth, components=components)


def classifier(task: Task, keys: Array) -> Arrays:
    """Train the classifier, which the other conditions read; its accuracy on ``upright`` held-out digits."""
    del keys
    env = environment(*task)
    return {"upright": env.reader.accuracy, "digits": env.digits.source}


def config(task: Task, settings: dict[str, Any], *_: Arrays) -> TrainConfig:
    """The configuration of an agent; what the classifier's condition returns is not used."""
    return train_config(environment(*task), **(BASE | settings))


def _examples(env: MentalRotation, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The held-out examples, as ``(digit, combination)``."""
    return env.examples(env.held_out[:count])


def play(count: int | None, keys: Array, run: SavedRun) -> Arrays:
    """The greedy programs of a run for N held-out examples.

    ``read`` bool [seeds, N]; ``choices`` i [seeds, N, T], -1 after the end of a program; ``applied`` i [seeds, N],
    number of functions; ``bids`` f [seeds, N, T, P] of each primitive, unless it is a monolithic agent.
    """
    env: Any = run.config.env
    examples = _examples(env, count)
    played = [jax.device_get(compose_all(env, as_policy(run, seed=seed), examples)) for seed in range(len(keys))]
    made, bids = jax.tree.map(lambda *leaves: np.stack(leaves), *played)
    found = {"read": made.reward > 0, "choices": made.choices, "applied": made.applied}
    return found if bids is None else found | {"bids": bids}


def bounds(task: Task, training: int, count: int | None, keys: Array, classifier: Arrays) -> Arrays:
    """Accuracy without learning on the held-out examples, bool [N] each, and the best fixed ``program``.

    ``none``: read without a function; ``fixed``: after the program that is best on training digits; ``inverse``: after
    the exact inverse of its transformations; ``oracle``: after at least one program. ``combination`` i [N].
    """
    del keys, classifier
    env = environment(*task)
    examples = _examples(env, count)
    lengths = (_DEEPEST,) if env.depth == "fixed" else range(_DEEPEST + 1)
    on_training, on_held_out = (
        {program: np.asarray(read) > 0 for program, read in jax.device_get(search_all(env, some, _DEEPEST)).items()}
        for some in (env.examples(np.arange(training)), examples)
    )
    allowed = [program for program in on_held_out if len(program) in lengths]
    best = max(allowed, key=lambda program: on_training[program].mean())
    inverses = [inverse(c) for c in env.combinations]
    return {
        "none": on_held_out[()],
        "fixed": on_held_out[best],
        "inverse": np.array([on_held_out[inverses[c]][i] for i, c in enumerate(examples[1])]),
        "oracle": np.any([on_held_out[program] for program in allowed], 0),
        "program": np.array(best, int),
        "combination": examples[1],
    }

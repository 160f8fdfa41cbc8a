"""Named reproductions of published claims, with a verdict for each claim."""

import importlib
from pathlib import Path
from typing import Any

from jaxmarket.experiments import (
    best_reply,
    bucket_brigade,
    capitalism,
    changing_objectives,
    complete_feedback,
    equilibrium,
    generality,
    hayek,
    hayek_expressions,
    identities,
    language_market,
    learned_primitives,
    learning_populations,
    mazes,
    memory_market,
    mental_rotation,
    modularity,
    neural_bucket_brigade,
    numerical,
    profit,
    redundancy,
    stability,
    truthfulness,
    two_rooms,
    wide_vs_deep,
)
from jaxmarket.experiments import experiment as engine
from jaxmarket.experiments.claims import Verdict, at, every_seed, separated, share_of_seeds, within
from jaxmarket.experiments.conditions import Compute, Grow, Scope, Train
from jaxmarket.experiments.experiment import Experiment, Quick, Table, by_condition
from jaxmarket.experiments.report import Report
from jaxmarket.keys import key_of
from jaxmarket.runs import files
from jaxmarket.runs.estimates import Estimate, ResultTable, interquartile_mean
from jaxmarket.runs.jobs import slug
from jaxmarket.validation import check_int, check_path, short_repr
from jaxmarket.view import tables

__all__ = [
    "EXPERIMENTS",
    "Compute",
    "Estimate",
    "Experiment",
    "Grow",
    "Quick",
    "Report",
    "ResultTable",
    "Scope",
    "Table",
    "Train",
    "Verdict",
    "at",
    "by_condition",
    "every_seed",
    "find",
    "interquartile_mean",
    "reproduce",
    "separated",
    "share_of_seeds",
    "within",
]

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        identities.EXPERIMENT,
        numerical.BANDIT,
        numerical.CHAIN,
        numerical.DUALITY,
        redundancy.EXPERIMENT,
        truthfulness.EXPERIMENT,
        best_reply.EXPERIMENT,
        equilibrium.EXPERIMENT,
        two_rooms.EXPERIMENT,
        modularity.EXPERIMENT,
        mental_rotation.EXPERIMENT,
        neural_bucket_brigade.EXPERIMENT,
        bucket_brigade.EXPERIMENT,
        generality.EXPERIMENT,
        mazes.EXPERIMENT,
        hayek.EXPERIMENT,
        hayek_expressions.EXPERIMENT,
        memory_market.EXPERIMENT,
        stability.EXPERIMENT,
        wide_vs_deep.EXPERIMENT,
        capitalism.EXPERIMENT,
        profit.EXPERIMENT,
        learned_primitives.EXPERIMENT,
        changing_objectives.EXPERIMENT,
        learning_populations.EXPERIMENT,
        complete_feedback.EXPERIMENT,
        language_market.EXPERIMENT,
    )
}
"""The reproductions by name."""


def find(name: str) -> Experiment:
    """The experiment of that name, or the one that ``module:NAME`` names, whose module is imported.

    Raises:
        ValueError: there is no such experiment, or its module cannot be imported.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in EXPERIMENTS:
            raise ValueError(f"name: unknown experiment {name!r}; choose from {', '.join(EXPERIMENTS)}, or module:NAME")
        return EXPERIMENTS[name]
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise ValueError(f"name: cannot import the module of {name!r} ({error}); run this in its folder") from error
    if not isinstance(found, Experiment):
        raise ValueError(f"name: expected {name!r} to be a jaxmarket.experiments.Experiment, got {short_repr(found)}")
    return found


def reproduce(
    name: str | Experiment,
    out: str | Path | None = None,
    *,
    quick: bool = False,
    full: bool = False,
    seeds: int | None = None,
    seed: int = 0,
    progress: bool = True,
    **settings: Any,
) -> Report:
    """Run an experiment and write its tables and figures.

    Args:
        name: one of `EXPERIMENTS`, ``module:NAME``, or an experiment.
        out: folder for tables, figures and finished conditions, which are not run again; by default
            ``reproductions/NAME``, followed by what differs from the defaults, as in
            ``NAME-quick-4-seeds-seed-1-resolution-64``.
        quick: a smaller budget, as a functional check and not as evidence.
        full: additionally the published settings with Beta bids and 2,000 updates; hours on a CPU.
        seeds: independent seeds per condition; by default those of the experiment (mostly 16, fewer if quick).
        seed: of all randomness.
        progress: whether to show a progress bar.
        settings: settings of this experiment (`Experiment.settings`); None means the default.

    Raises:
        ValueError: the experiment is unknown, or settings are invalid or contradict each other.
    """
    experiment = name if isinstance(name, Experiment) else find(name)
    name, defaults = experiment.name, experiment.settings
    if quick and full:
        raise ValueError("full: expected full or quick, got both; choose one")
    sizes = (("quick", quick), ("full", full), (f"{seeds}-seeds", seeds is not None))
    suffixes = [suffix for suffix, chosen in sizes if chosen]
    if seeds is None:
        seeds = experiment.quick.seeds if quick else experiment.seeds
    seeds = check_int("seeds", seeds, 2)  # a standard deviation needs at least two
    key_of(seed)  # raises before training if the seed is out of range
    given = {field: value for field, value in settings.items() if value is not None}
    for field, value in given.items():
        if field not in defaults:
            raise ValueError(f"{field}: {name} does not have this setting, got {value!r}; remove it")
    changed = {field: value for field, value in {"seed": seed, **given}.items() if value != defaults.get(field, 0)}
    suffixes += [slug(f"{field}-{value}") for field, value in changed.items()]
    folder = Path("reproductions", "-".join([name, *suffixes])) if out is None else check_path("out", out)
    scope = Scope(seeds, quick, full, seed, experiment.quick.steps if quick else 1.0, {**defaults, **given})
    options = {"experiment": name, "quick": quick, "full": full, "seeds": seeds, "seed": seed, **scope.settings}
    with files.owned(folder):
        with files.writing(folder):
            files.hold(folder / "options.json", options)
        results = engine.run(experiment, scope, folder / "conditions", progress=progress)
        with files.writing(folder), tables.progress(name, shown=progress) as show:
            show.phase("drawing and saving")
            return engine.report(experiment, results, folder)

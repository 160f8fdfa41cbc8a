"""Named reproductions of published claims, with a verdict for each claim."""

import importlib
import json
from pathlib import Path
from typing import Any

from jaxmarket.experiments import (
    best_reply,
    bucket_brigade,
    capitalism,
    hayek,
    identities,
    memory_market,
    mental_rotation,
    modularity,
    neural_bucket_brigade,
    numerical,
    redundancy,
    truthfulness,
    two_rooms,
    wide_vs_deep,
)
from jaxmarket.experiments import experiment as engine
from jaxmarket.experiments.claims import Verdict, at, every_seed, separated, share_of_seeds, within
from jaxmarket.experiments.conditions import Compute, Scope, Train
from jaxmarket.experiments.experiment import Experiment, Quick, Table, by_condition
from jaxmarket.experiments.populations import Grow
from jaxmarket.experiments.report import Report
from jaxmarket.keys import key_of
from jaxmarket.runs import files
from jaxmarket.runs.estimates import Estimate, ResultTable, interquartile_mean
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
        two_rooms.EXPERIMENT,
        modularity.EXPERIMENT,
        mental_rotation.EXPERIMENT,
        neural_bucket_brigade.EXPERIMENT,
        bucket_brigade.EXPERIMENT,
        hayek.EXPERIMENT,
        memory_market.EXPERIMENT,
        wide_vs_deep.EXPERIMENT,
        capitalism.EXPERIMENT,
    )
}
"""The reproductions by name."""


def find(name: str) -> Experiment:
    """The experiment of that name, or the one that ``module:NAME`` names, whose module is imported.

    Raises:
        ValueError: there is no such experiment.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in EXPERIMENTS:
            raise ValueError(f"name: unknown experiment {name!r}; choose from {', '.join(EXPERIMENTS)}, or module:NAME")
        return EXPERIMENTS[name]
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0] and error.name != module:
            raise
        raise ValueError(
            f"name: cannot find the module {module!r} of {name!r}; run this in the folder that contains it"
        ) from error
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
        out: folder for tables, figures and finished conditions, which are not run again;
            by default ``reproductions/NAME``, with ``-quick``, ``-full`` and the number of seeds if given.
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
    name = experiment.name
    if quick and full:
        raise ValueError("full: expected full or quick, got both; choose one")
    suffix = "-quick" if quick else "-full" if full else ""
    if seeds is None:
        seeds = experiment.quick.seeds if quick else experiment.seeds
    else:
        suffix += f"-{seeds}-seeds"
    key_of(seed)  # raises before training if the seed is out of range
    seeds = check_int("seeds", seeds, 2)  # a standard deviation needs at least two
    chosen = {field: value for field, value in settings.items() if value is not None}
    for field, value in chosen.items():
        if field not in experiment.settings:
            raise ValueError(f"{field}: {name} does not have this setting, got {value!r}; remove it")
        if value != experiment.settings[field]:
            suffix += f"-{value}"
    chosen = {**experiment.settings, **chosen}
    folder = Path("reproductions", name + suffix) if out is None else check_path("out", out)
    stamp = folder / "options.json"
    wanted = {"experiment": name, "quick": quick, "full": full, "seeds": seeds, "seed": seed, **chosen}
    try:
        wanted = json.loads(json.dumps(wanted))
    except TypeError as error:
        raise ValueError(f"settings: expected values that JSON can represent, got {short_repr(chosen)}") from error
    with files.owned(folder):
        try:
            held = json.loads(files.read_bytes(stamp)) if stamp.exists() else wanted
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{stamp}: cannot be read ({error}); choose another folder") from error
        if held != wanted:
            there = held if isinstance(held, dict) else {}
            differ = ", ".join(f"{k} {there.get(k)} instead of {v}" for k, v in wanted.items() if there.get(k) != v)
            raise ValueError(f"out: {folder} holds another run ({differ}); choose another folder")
        with files.writing(folder):
            files.write_text(stamp, json.dumps(wanted) + "\n")
        scope = Scope(seeds, quick, full, seed, experiment.quick.steps if quick else 1.0, chosen)
        results = engine.run(experiment, scope, folder / "conditions", progress=progress)
        with files.writing(folder), tables.progress(name, shown=progress) as show:
            show.phase("drawing and saving")
            return engine.report(experiment, results, folder)

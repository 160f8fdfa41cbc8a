"""Named reproductions of published claims, with a verdict for each claim."""

import dataclasses
import functools
import importlib
import json
from collections.abc import Callable, Mapping
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
from jaxmarket.experiments.claims import at, every_seed, separated, share_of_seeds, within
from jaxmarket.experiments.conditions import Compute, Scope, Train
from jaxmarket.experiments.experiment import Experiment, Quick, Table, by_condition
from jaxmarket.experiments.report import Estimate, ExperimentOptions, Report, ResultTable, Verdict, interquartile_mean
from jaxmarket.keys import key_of
from jaxmarket.runs import files
from jaxmarket.validation import check_int, check_path, short_repr
from jaxmarket.view import tables

__all__ = [
    "EXPERIMENTS",
    "Compute",
    "Estimate",
    "Experiment",
    "ExperimentOptions",
    "Quick",
    "Report",
    "ResultTable",
    "Scope",
    "Script",
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


@dataclasses.dataclass(frozen=True)
class Script:
    """A reproduction that is a function of its options.

    Attributes:
        shows: a one-line summary.
        source: paper, section, figure.
        run: runs it.
        quick_seeds: number of seeds of a quick run.
        seeds: number of seeds otherwise.
        settings: additional settings and their defaults.
        resumable: whether a run that is interrupted keeps its finished conditions, which are not run again.
    """

    shows: str
    source: str
    run: Callable[[ExperimentOptions], Report]
    quick_seeds: int
    seeds: int = 16
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    resumable: bool = True


EXPERIMENTS: dict[str, Script | Experiment] = {
    "identities": identities.EXPERIMENT,
    "bandit": numerical.BANDIT,
    "chain": numerical.CHAIN,
    "duality": numerical.DUALITY,
    "redundancy": redundancy.EXPERIMENT,
    "truthfulness": truthfulness.EXPERIMENT,
    "best-reply": best_reply.EXPERIMENT,
    "two-rooms": two_rooms.EXPERIMENT,
    "modularity": modularity.EXPERIMENT,
    "mental-rotation": mental_rotation.EXPERIMENT,
    "neural-bucket-brigade": neural_bucket_brigade.EXPERIMENT,
    "bucket-brigade": bucket_brigade.EXPERIMENT,
    "hayek": hayek.EXPERIMENT,
    "memory-market": memory_market.EXPERIMENT,
    "wide-vs-deep": wide_vs_deep.EXPERIMENT,
    "capitalism": capitalism.EXPERIMENT,
}
"""The reproductions by name."""


def find(name: str) -> Script | Experiment:
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
        raise ValueError(f"name: there is no module {module!r} here, for {name!r}; start in its folder") from error
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
    name = experiment.name if isinstance(experiment, Experiment) else str(name)
    if quick and full:
        raise ValueError("full: expected full or quick, got both; choose one")
    suffix = "-quick" if quick else "-full" if full else ""
    if seeds is None:
        fewer = experiment.quick.seeds if isinstance(experiment, Experiment) else experiment.quick_seeds
        seeds = fewer if quick else experiment.seeds
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
        if isinstance(experiment, Experiment):
            steps = experiment.quick.steps if quick else 1.0
            scope = Scope(seeds, quick, full, seed, steps, chosen)
            results = engine.run(experiment, scope, folder / "conditions", progress=progress)
            made = functools.partial(engine.report, experiment, results)
        else:
            options = ExperimentOptions(folder, seeds, quick, full, seed, progress, chosen)
            report = dataclasses.replace(experiment.run(options), name=name, source=experiment.source)
            made = report.write
        with files.writing(folder), tables.progress(name, shown=progress) as show:
            show.phase("drawing and saving")
            return made(folder)

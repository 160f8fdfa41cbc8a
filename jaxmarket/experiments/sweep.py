"""Training the conditions of a reproduction: `jaxmarket.runs.sweeps.train` with its options."""

from collections.abc import Mapping, Sequence

from jaxmarket.experiments.report import Options
from jaxmarket.runs import sweeps
from jaxmarket.runs.run_folder import SavedRun
from jaxmarket.runs.sweeps import Cell, Condition

__all__ = ["Cell", "Condition", "train"]


def train(
    wanted: Sequence[Cell], options: Options, label: str, start: Mapping[str, SavedRun] | None = None
) -> dict[str, SavedRun]:
    """Train what is not in ``options.folder`` yet; every finished condition by name.

    Args:
        wanted: the conditions.
        options: seed, folder, and whether to show a progress bar.
        label: of the progress bar.
        start: by a condition's name, the run whose networks it starts from.

    Raises:
        ValueError: the folder holds a condition of that name with other settings or another seed.
    """
    return sweeps.train(wanted, options.folder, seed=options.seed, label=label, progress=options.progress, start=start)

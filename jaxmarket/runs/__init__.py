"""Runs: training from Python with progress, metrics, checkpoints and folders; sweeps and comparisons of runs."""

from jaxmarket.runs.fitting import fit
from jaxmarket.runs.result import FitResult
from jaxmarket.runs.run_folder import SavedRun, as_policy, load

__all__ = ["FitResult", "SavedRun", "as_policy", "fit", "load"]

"""Helpers for the folders of runs."""

import json

from jaxmarket.runs import files, run_folder
from jaxmarket.training.arrays import flatten


def contents(folder):
    """The contents of all files of a run, without times."""
    summary = json.loads((folder / "summary.json").read_text())
    for timing in ("compile_seconds", "run_seconds", "steps_per_second"):
        summary.pop(timing)
    texts = {name: (folder / name).read_text() for name in ("config.json", "metrics.csv", "bids.csv")}
    return summary, texts, flatten(run_folder.read(folder).networks)


def reseal(folder):
    """Write the checksums of the current files of a folder, as a run does."""
    names = ["config.json", "metrics.csv", "bids.csv", "networks.safetensors", "summary.json"]
    there = [name for name in names if (folder / name).is_file()]
    files.write_sums(folder, {name: files.sha256((folder / name).read_bytes()) for name in there})

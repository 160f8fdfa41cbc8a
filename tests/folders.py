"""What tests do to the folders of runs."""

from jaxmarket import files


def reseal(folder):
    """Record the checksums of what is in a folder now, as if a run had written it."""
    names = ["config.json", "metrics.csv", "bids.csv", "networks.safetensors", "summary.json"]
    there = [name for name in names if (folder / name).is_file()]
    files.write_sums(folder, {name: files.sha256((folder / name).read_bytes()) for name in there})

"""Arrays on disk: one safetensors file per pytree, written atomically, restored exactly, verified before use.

A file contains the arrays by their paths in the tree, a JSON note, and a digest of both. An interrupted write leaves
the previous file in place; a file that was changed later raises an error. Loading a file never executes code from it.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmarket.runs import files
from jaxmarket.training.arrays import ALONE, Arrays, digest, flatten, unflatten
from jaxmarket.types import PyTree

__all__ = ["Checkpoints", "Saved", "load", "restore", "save"]

_SUFFIX = ".safetensors"
_ABOUT = "jaxmarket"  # the entry of a file's metadata with the note and the digest
_LARGEST_NOTE = 2**24  # largest size of a file in bytes, not counting its arrays


class Saved(NamedTuple):
    """The contents of a checkpoint: arrays by name, and a note that JSON can represent."""

    arrays: Arrays
    note: dict[str, Any]

    def part(self, name: str) -> Arrays:
        """The arrays of the entry of that name, as `flatten` would name them if it were alone."""
        if name in self.arrays:
            return {ALONE: self.arrays[name]}
        inside = f"{name}/"
        return {path.removeprefix(inside): array for path, array in self.arrays.items() if path.startswith(inside)}


def _seal(arrays: Mapping[str, np.ndarray], note: str) -> str:
    return hashlib.sha256(f"{digest(arrays)} {note}".encode()).hexdigest()


def save(path: Path, tree: PyTree, note: Mapping[str, Any] | None = None) -> None:
    """Write the arrays of a pytree and a note to a file, replacing an existing file once the new one is complete.

    Raises:
        ValueError: the disk is full, or the file cannot be written.
    """
    import safetensors.numpy  # noqa: PLC0415  imported only to write files

    text = json.dumps(dict(note or {}), sort_keys=True)
    arrays = {name: np.asarray(value, order="C") for name, value in flatten(tree).items()}
    # A single entry, because safetensors writes several in random order, and equal checkpoints should give equal files.
    about = json.dumps({"note": text, "sha256": _seal(arrays, text)}, sort_keys=True)
    data = safetensors.numpy.save(arrays, {_ABOUT: about})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, data)
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be written ({files.reason(error)}); make room, or choose another folder"
        ) from error


def load(path: Path, most: int = 2**62) -> Saved:
    """Read a file that `save` wrote.

    Args:
        path: the file.
        most: largest total size of its arrays in bytes.

    Raises:
        OSError: the file cannot be read, or is larger.
        ValueError: the file is damaged.
    """
    import safetensors.numpy  # noqa: PLC0415

    data = files.read_bytes(path, most + _LARGEST_NOTE)
    try:
        arrays = dict(sorted(safetensors.numpy.load(data).items()))
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header["__metadata__"][_ABOUT])
        text, seal = about["note"], about["sha256"]
        note = json.loads(text)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("not a file of arrays that this library wrote") from error
    if seal != _seal(arrays, text) or not isinstance(note, dict):
        raise ValueError("its content does not match its digest")
    return Saved(arrays, note)


def restore(path: Path, like: PyTree) -> PyTree:
    """Read back a pytree with the structure, shapes and dtypes of ``like`` (arrays or their shapes).

    Raises:
        ValueError: there is nothing to read, it is damaged, or it was saved by a society of another shape.
    """
    size = sum(int(np.prod(leaf.shape, dtype=object)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))
    try:
        saved = load(path, size)
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({files.reason(error)}); give the folder of a finished run"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: damaged, {error}; train the run again") from error
    return unflatten(like, saved.arrays, f"{path}: these parameters")


class Checkpoints:
    """A context manager for the last checkpoints of a run, in a separate folder.

    In a run of several processes all of them call the same methods with the same values, and the first one writes.

    Args:
        folder: the folder; the first checkpoint creates it.
        keep: how many to keep. The last but one is there for when the last one is damaged.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder, self.keep = Path(folder), keep

    def __enter__(self) -> "Checkpoints":
        """Remove the incomplete files of interrupted writes."""
        if jax.process_index() == 0:
            for unfinished in self.folder.glob(f"*{_SUFFIX}{files.UNFINISHED}"):
                unfinished.unlink(missing_ok=True)
        return self

    def __exit__(self, *exception: object) -> None:
        """Do nothing: no file is open between writes."""

    def path(self, step: int) -> Path:
        """The file of a checkpoint."""
        return self.folder / f"{step}{_SUFFIX}"

    def steps(self) -> list[int]:
        """The steps of the checkpoints, the oldest first."""
        try:
            names = os.listdir(self.folder)
        except OSError:
            return []
        stems = [name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)]
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def save(self, step: int, arrays: Mapping[str, np.ndarray], note: Mapping[str, Any]) -> None:
        """Write a checkpoint, then remove the oldest ones; the previous one stays in place until this one is complete.

        Raises:
            ValueError: the disk is full, or the folder cannot be written.
        """
        if jax.process_index() > 0:
            return
        try:
            save(self.path(step), arrays, note)
            for old in self.steps()[: -self.keep]:
                self.path(old).unlink()
        except (ValueError, OSError) as error:
            last = max((s for s in self.steps() if s != step), default=None)
            kept = "there was none before" if last is None else f"that of step {last} is intact: resume from there"
            raise ValueError(f"{error}; {kept}") from error

    def last(self, most: int = 2**62) -> tuple[int, Saved] | None:
        """The last checkpoint and its step, None before the first one.

        Args:
            most: bytes its arrays may have.

        Raises:
            ValueError: it is damaged.
        """
        steps = self.steps()
        if not steps:
            return None
        path = self.path(steps[-1])
        try:
            return steps[-1], load(path, most)
        except (ValueError, OSError) as error:
            remedy = f"to resume from step {steps[-2]}" if len(steps) > 1 else "to start over"
            raise ValueError(f"{path}: the checkpoint is damaged, {files.reason(error)}; remove it {remedy}") from error

"""Arrays on disk, by Orbax: written atomically, restored exactly, and never taken for what they are not.

A write that was cut off leaves no checkpoint, and what was there before as it was. A complete one is sealed by a digest
of its files, so one that was damaged afterwards is not taken for good.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.types import Array, PyTree

__all__ = ["Checkpoints", "Saved", "digest", "flatten", "restore", "save", "unflatten", "write_text"]

Arrays = dict[str, np.ndarray]
_ALONE = "value"  # the name of an array that is the whole tree


class Saved(NamedTuple):
    """What was saved: arrays by name, and a note that JSON can hold."""

    arrays: Arrays
    note: dict[str, Any]

    def part(self, name: str) -> Arrays:
        """The arrays of the entry of that name, as `flatten` would name them if it were alone."""
        if name in self.arrays:
            return {_ALONE: self.arrays[name]}
        inside = f"{name}/"
        return {path.removeprefix(inside): array for path, array in self.arrays.items() if path.startswith(inside)}


def flatten(tree: PyTree) -> Arrays:
    """The arrays of a pytree by their paths in it, on the host; keys as their words, numbers as arrays."""
    return {_name(path): np.asarray(_words(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(like: PyTree, arrays: Mapping[str, np.ndarray], whose: str = "arrays") -> PyTree:
    """The pytree whose arrays these are.

    Args:
        like: its structure, with arrays or their shapes for leaves.
        arrays: from `flatten`.
        whose: what to call them in the error.

    Raises:
        ValueError: there are others than in ``like``, or with other shapes or dtypes.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path(like)
    wanted = {_name(path): jax.eval_shape(_words, leaf) for path, leaf in paths}
    if set(wanted) != set(arrays):
        name = min(set(wanted) ^ set(arrays))
        raise ValueError(f"{whose} are of another society: {name} is only {'here' if name in wanted else 'there'}")
    for name, shape in wanted.items():
        found = arrays[name]
        if (found.shape, found.dtype) != (shape.shape, shape.dtype):
            raise ValueError(
                f"{whose} are of another society: {name} is {found.dtype}{list(found.shape)} there, "
                f"{shape.dtype}{list(shape.shape)} here"
            )

    def leaf(path: Any, like: Any) -> Array:
        value = jnp.asarray(arrays[_name(path)])
        return jax.random.wrap_key_data(value, impl=jax.random.key_impl(like)) if _is_key(like) else value

    return jax.tree.unflatten(tree, [leaf(path, like) for path, like in paths])


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or _ALONE


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _words(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, dtypes, shapes and bits of arrays: equal for equal bits, else not."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {value.dtype.str} {value.shape} ".encode())
        found.update(value.tobytes())
    return found.hexdigest()


# What Orbax and TensorStore raise where files are missing, cut off or changed: no base class is common to them.
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError, IndexError, AssertionError)
_SEAL = "sha256"


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole, or not at all."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text)
    unfinished.replace(path)


def _of_files(folder: Path) -> str:
    """SHA-256 over the names and bytes of the files in a folder, but for its seal."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / _SEAL):
        content = path.read_bytes()
        found.update(f"{path.relative_to(folder).as_posix()} {len(content)} ".encode())
        found.update(content)
    return found.hexdigest()


def _seal(folder: Path) -> None:
    """Say that the folder is complete, and what is in it."""
    write_text(folder / _SEAL, _of_files(folder) + "\n")


def _check_seal(folder: Path) -> None:
    # Before Orbax reads anything: it finds much of what can be wrong with files, not all, and says so at length.
    try:
        seal = (folder / _SEAL).read_bytes().strip()
    except OSError as error:
        raise ValueError("it was never completed") from error
    if seal != _of_files(folder).encode():
        raise ValueError("its files are not those that were written")


def save(folder: Path, tree: PyTree) -> None:
    """Write a pytree of arrays to ``folder``, replacing what is there once the new one is complete.

    Orbax's ``StandardCheckpointer`` reads it.

    Raises:
        ValueError: the disk is full, or the folder cannot be written.
    """
    import orbax.checkpoint as ocp  # noqa: PLC0415  a third of a second, only where files are written

    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder.absolute(), tree, force=True)
    except _DAMAGE as error:
        raise ValueError(
            f"{folder}: cannot be written ({_reason(error)}); make room, or choose another folder"
        ) from error
    if jax.process_index() == 0:
        _seal(folder)


def restore(folder: Path, like: PyTree) -> PyTree:
    """Read back a pytree with the structure, shapes and dtypes of ``like`` (arrays or their shapes).

    Raises:
        ValueError: there is nothing to read, it is damaged, or it was saved by a society of another shape.
    """
    import orbax.checkpoint as ocp  # noqa: PLC0415

    if not folder.is_dir():
        raise ValueError(f"{folder}: no saved parameters here; give the folder of a finished run")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
    try:
        _check_seal(folder)
    except ValueError as error:
        raise ValueError(f"{folder}: damaged, {error}; train the run again") from error
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            tree = checkpointer.restore(folder.absolute(), shapes)
        except _DAMAGE as error:
            raise ValueError(f"{folder}: these are not the parameters of this society ({_reason(error)})") from error
    if jax.tree.map(lambda x: (x.shape, x.dtype), tree) != jax.tree.map(lambda x: (x.shape, x.dtype), shapes):
        raise ValueError(f"{folder}: these are not the parameters of this society; their shapes differ")
    return tree


class Checkpoints:
    """The last checkpoints of something that goes on, in a folder of their own; a context manager.

    In a run of several processes all of them call the same methods with the same values, and the first one writes.

    Args:
        folder: where; made if it is not there.
        keep: how many to keep. The last but one is there for when the last one is damaged.

    Raises:
        ValueError: the folder cannot be made or written.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        import orbax.checkpoint as ocp  # noqa: PLC0415

        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=False
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
            for step in set(self._manager.all_steps()) - set(self.steps()):
                self._manager.delete(step)  # killed before it was sealed
        except _DAMAGE as error:
            raise ValueError(f"{self.folder}: cannot be written ({_reason(error)}); choose another folder") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """Of the complete checkpoints, the oldest first."""
        return sorted(step for step in self._manager.all_steps() if (self.folder / str(step) / _SEAL).exists())

    def save(self, step: int, arrays: Arrays, note: Mapping[str, Any]) -> None:
        """Write a checkpoint; those before stay as they are until it is complete.

        Raises:
            ValueError: the disk is full, or the folder cannot be written.
        """
        import orbax.checkpoint as ocp  # noqa: PLC0415

        # Orbax refuses arrays without elements: their shapes go into the note.
        empty = {name: [value.dtype.str, *value.shape] for name, value in arrays.items() if not value.size}
        full = {name: value for name, value in arrays.items() if value.size}
        args = ocp.args.Composite(
            arrays=ocp.args.StandardSave(full), about=ocp.args.JsonSave({"note": dict(note), "empty": empty})
        )
        try:
            if step in self._manager.all_steps():  # Ctrl-C came before it was sealed
                self._manager.delete(step)
            self._manager.save(step, args=args, force=True)
            if jax.process_index() == 0:
                _seal(self.folder / str(step))
        except _DAMAGE as error:
            last = max((s for s in self.steps() if s != step), default=None)
            kept = "there was none before" if last is None else f"that of step {last} is intact"
            raise ValueError(
                f"{self.folder}: cannot write the checkpoint of step {step} ({_reason(error)}); {kept}: make room or "
                "choose another folder, and resume"
            ) from error

    def last(self) -> tuple[int, Saved] | None:
        """The last checkpoint and its step, None before the first one.

        Raises:
            ValueError: it is damaged.
        """
        import orbax.checkpoint as ocp  # noqa: PLC0415

        steps = self.steps()
        if not steps:
            return None
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(), about=ocp.args.JsonRestore())
        try:
            _check_seal(self.folder / str(steps[-1]))
            found = self._manager.restore(steps[-1], args=args)
        except _DAMAGE as error:
            remedy = f"to go on from step {steps[-2]}" if len(steps) > 1 else "to begin again"
            raise ValueError(
                f"{self.folder / str(steps[-1])}: the checkpoint is damaged, {_reason(error)}; remove it {remedy}"
            ) from error
        empty = {name: np.zeros(shape, dtype) for name, (dtype, *shape) in found["about"]["empty"].items()}
        arrays = {name: np.asarray(value) for name, value in found["arrays"].items()}
        return steps[-1], Saved(arrays | empty, found["about"]["note"])

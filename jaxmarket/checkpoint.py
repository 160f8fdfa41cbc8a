"""Arrays on disk, by Orbax: written atomically, restored exactly."""

from pathlib import Path

import jax

from jaxmarket.types import PyTree

__all__ = ["restore", "save"]


def save(folder: Path, tree: PyTree) -> None:
    """Write a pytree of arrays to ``folder``, replacing what is there once the new one is complete."""
    import orbax.checkpoint as ocp  # noqa: PLC0415  a third of a second, only where files are written

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), tree, force=True)


def restore(folder: Path, like: PyTree) -> PyTree:
    """Read back a pytree with the structure, shapes and dtypes of ``like`` (arrays or their shapes).

    Raises:
        ValueError: there is nothing to read, or it was saved by a society of another shape.
    """
    import orbax.checkpoint as ocp  # noqa: PLC0415

    if not folder.is_dir():
        raise ValueError(f"{folder}: no saved parameters here; give the folder of a finished run")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            tree = checkpointer.restore(folder.absolute(), shapes)
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{folder}: these are not the parameters of this society ({reason})") from error
    if jax.tree.map(lambda x: (x.shape, x.dtype), tree) != jax.tree.map(lambda x: (x.shape, x.dtype), shapes):
        raise ValueError(f"{folder}: these are not the parameters of this society; their shapes differ")
    return tree

"""JAX's persistent compilation cache: compiled programs are kept on disk, so that the next process need not compile.

The command line switches it on, and so does `jaxmarket.fit` in an IPython session such as a notebook. Importing
jaxmarket or calling it from a script never does, because the cache is a setting of the whole process. What a user
decided comes first, in this order:

1. ``JAXMARKET_COMPILATION_CACHE=off`` (on the command line also ``--no-compilation-cache``) leaves JAX's settings as
   they are; ``on`` makes `fit` use the cache in scripts, too.
2. Where ``JAX_COMPILATION_CACHE_DIR`` (or ``jax_compilation_cache_dir``) is set, JAX uses that folder, without a limit
   on its size. ``JAX_ENABLE_COMPILATION_CACHE=false`` switches the cache off.
3. Otherwise programs are kept in `user_folder`, in a folder for each combination of versions and machine.

A program loaded from the cache is the one that was compiled, so results have the same bits. Entries contain machine
code: a folder that another user owns or may write to is not used, nor one on a full disk.
"""

import atexit
import contextlib
import functools
import os
import platform
import shutil
import sys
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import jax

from jaxmarket.validation import check_choice

__all__ = ["LIMIT", "SETTING", "in_session", "switch_on", "trim", "user_folder"]

SETTING = "JAXMARKET_COMPILATION_CACHE"
"""The environment variable: ``on`` or ``off``."""
LIMIT = 2**29
"""Bytes that all folders may hold together; least recently used programs are deleted when a process starts or ends."""

_LEAST_FREE = 2**28
_OTHERS_WRITE = 0o022


def user_folder() -> Path:
    """The folder of compiled programs in the user's cache folder, by the custom of the platform."""
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "jaxmarket" / "programs"


def switch_on() -> Path | None:
    """Use the compilation cache, unless the user decided otherwise.

    Returns:
        The folder, or None if the settings of JAX were left as they are.

    Raises:
        ValueError: ``JAXMARKET_COMPILATION_CACHE`` has another value than ``on`` or ``off``.
    """
    if _setting() == "off" or not jax.config.jax_enable_compilation_cache:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    try:
        root = user_folder()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _private(root) or shutil.disk_usage(root).free < _LEAST_FREE:
            return None
        folder = root / _versions()
        folder.mkdir(mode=0o700, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            return None
    except (OSError, RuntimeError):  # not writable, or no home
        return None
    trim(root)
    atexit.register(trim, root)
    # Most programs compile in milliseconds, but loading one is faster still.
    for name, value in (("min_compile_time_secs", 0.0), ("min_entry_size_bytes", -1)):
        if f"JAX_PERSISTENT_CACHE_{name.upper()}" not in os.environ:
            jax.config.update(f"jax_persistent_cache_{name}", value)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def in_session() -> None:
    """`switch_on` in an IPython session, or where ``JAXMARKET_COMPILATION_CACHE=on``."""
    ipython = sys.modules.get("IPython")
    if _setting() == "on" or (ipython is not None and ipython.get_ipython() is not None):
        switch_on()


def trim(root: Path, limit: int | None = None) -> None:
    """Delete the least recently used programs below a folder until the others take at most ``limit`` bytes.

    Other processes may use the folder: they compile what they no longer find.

    Args:
        root: the folder.
        limit: bytes; `LIMIT` by default.
    """
    limit = LIMIT if limit is None else limit
    kept = 0
    for _, size, path in sorted(_entries(root), reverse=True):
        kept += size
        if kept > limit:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _entries(root: Path) -> Iterator[tuple[float, int, str]]:
    """Time of the last use, size and path of each file."""
    for folder, _, names in os.walk(root):
        for path in (os.path.join(folder, name) for name in names):
            with contextlib.suppress(FileNotFoundError):  # deleted by another process
                found = os.stat(path)
                yield max(found.st_atime, found.st_mtime), found.st_size, path


def _setting() -> str | None:
    setting = os.environ.get(SETTING) or None
    return None if setting is None else check_choice(SETTING, setting, ("on", "off"))


def _private(folder: Path) -> bool:
    """Whether other users cannot put programs into the folder."""
    if not hasattr(os, "geteuid"):
        return True
    found = folder.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & _OTHERS_WRITE


@functools.cache
def _versions() -> str:
    """Name of the folder of these versions on this machine.

    JAX's own key covers the program and jaxlib. It ignores the number of cores, for which programs are compiled, and on
    a CPU the instruction set: a home folder may be shared by different machines.
    """
    from jaxmarket import __version__  # noqa: PLC0415  defined after this module is imported

    cores = os.environ.get("NPROC") or (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    machine = f"{platform.machine()} {platform.processor()} {cores}"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        machine += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    names = {"jaxmarket": __version__, "jax": jax.__version__, "jaxlib": version("jaxlib")}
    return "-".join(f"{name}-{number}" for name, number in names.items()) + f"-{zlib.crc32(machine.encode()):08x}"

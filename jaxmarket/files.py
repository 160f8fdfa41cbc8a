"""Files on disk: atomic, synced writes; reads of regular files only; folders with one writer at a time.

A write returns once the bytes are on disk under the final name and have been read back. `owned` locks a folder for one
process; the lock ends with the process, even if it is killed.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = [
    "SUMS",
    "UNFINISHED",
    "checksums",
    "owned",
    "read_bytes",
    "sealed",
    "sha256",
    "write_bytes",
    "write_rows",
    "write_sums",
    "write_text",
]

SUMS = "SHA256SUMS"
"""The file of checksums, in the format of ``sha256sum``; ``sha256sum -c SHA256SUMS`` verifies them."""

UNFINISHED = ".tmp"
"""Suffix of the name of an incomplete file."""

_LOCK = ".lock"
_LARGEST = 2**31  # bytes of a table or a document; arrays have a separate limit


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: after a crash at any moment it has either its old or its new content.

    Raises:
        OSError: the file cannot be written, or reading it back gives other bytes.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    with unfinished.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    _sync_folder(path.parent)
    if read_bytes(path, len(data)) != data:
        raise OSError(f"{path} does not read back as it was written")


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8.

    Raises:
        OSError: as `write_bytes`.
    """
    write_bytes(path, text.encode())


def write_rows(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """`write_bytes` of a table as CSV.

    Raises:
        OSError: as `write_bytes`.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(names)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _sync_folder(folder: Path) -> None:
    """Sync the folder, so that a rename survives a power failure, on platforms that support it."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_bytes(path: Path, most: int = _LARGEST) -> bytes:
    """Read a regular file. Links, pipes and devices are rejected, because a folder may come from an untrusted source.

    Args:
        path: the file.
        most: largest size in bytes.

    Raises:
        OSError: the file does not exist, is not a regular file, or is larger than ``most``.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(0, "not a regular file", str(path))
        if about.st_size > most:
            raise OSError(0, f"{about.st_size:,} bytes, where at most {most:,} are expected", str(path))
        return file.read()


# --- checksums


def sha256(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Write the SHA-256 checksums of files in the folder to its `SUMS` file.

    Raises:
        OSError: the folder cannot be written.
    """
    write_text(folder / SUMS, "".join(f"{value}  {name}\n" for name, value in sums.items()))


def checksums(folder: Path) -> dict[str, str]:
    """The checksums in the `SUMS` file, by file name; empty if there is no such file.

    Raises:
        ValueError: the `SUMS` file is damaged.
    """
    path = folder / SUMS
    try:
        lines = read_bytes(path).decode().splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({_reason(error)}); restore it from a copy of the run") from error
    pairs = [line.split("  ", 1) for line in lines]
    if not all(len(pair) == 2 and len(pair[0]) == 64 for pair in pairs):
        raise ValueError(f"{path}: damaged; restore it from a copy of the run")
    return {name: value for value, name in pairs}


def sealed(path: Path) -> bytes:
    """Read a file and verify its checksum.

    Raises:
        ValueError: the file cannot be read, is not listed in `SUMS`, or was changed since it was written.
    """
    recorded = checksums(path.parent).get(path.name)
    try:
        data = read_bytes(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({_reason(error)}); restore it, or train the run again") from error
    if recorded is None:
        raise ValueError(f"{path}: not listed in {SUMS}, so it does not belong to this run; remove it")
    if recorded != sha256(data):
        raise ValueError(f"{path}: changed since it was written ({SUMS}); restore it, or train the run again")
    return data


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


# --- ownership


@contextlib.contextmanager
def owned(folder: str | Path) -> Iterator[None]:
    """A context in which this process is the only writer of a folder, which is created if it does not exist.

    The lock is an operating system lock (``flock``) on a file that names process and host. It ends with its process,
    so the file that a killed process leaves behind does not lock the folder. On file systems without locks, the folder
    is locked while the named process is alive on this host, or if it is on another host. On network file systems with
    separate locks per host (NFS mounted with ``nolock`` or ``local_lock``), hosts do not see each other's locks.

    Raises:
        ValueError: another process, or another call in this process, holds the lock, or the folder cannot be written.
    """
    folder = Path(folder)
    path = folder / _LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _acquire(path)
    except OSError as error:
        raise ValueError(f"out: cannot write to {folder} ({_reason(error)}); choose another folder") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder may have been deleted
            path.unlink()
        os.close(handle)


def _acquire(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            _lock(handle, path)
            if _is_file(handle, path):
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_file(handle: int, path: Path) -> bool:
    """Whether the path still names the open file: its previous owner may have removed it in the meantime."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(handle: int, path: Path) -> None:
    """Acquire the lock of an open lock file.

    Raises:
        ValueError: another process holds it.
    """
    try:
        holder = json.loads(os.pread(handle, 1000, 0))
        process, host = int(holder["process"]), str(holder["host"])
    except (OSError, ValueError, KeyError, TypeError):
        process, host = 0, "this host"
    taken = ValueError(
        f"out: {path.parent} is being written by {f'process {process} on {host}' if process else 'another process'}; "
        f"wait until it has ended, or choose another folder"
    )
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken from None
        except OSError:  # the file system does not support locks
            pass
        else:
            return
    if process and (host != socket.gethostname() or _alive(process)):
        raise ValueError(f"{taken}; if that process no longer exists, remove {path}")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # the process belongs to another user
        return True
    return True

"""Files on disk: written whole and synced, read only where they are regular files, in folders with one writer.

A file counts as written once its bytes are on the disk under its final name and have been read back. A folder that is
being written belongs to one process at a time (`owned`); the lock ends with the process, however that ends.
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
"""A file of checksums in the format of ``sha256sum``, which can check it: ``sha256sum -c SHA256SUMS``."""

UNFINISHED = ".tmp"
"""How the name of a file ends until it is complete."""

_LOCK = ".lock"
_LARGEST = 2**31  # bytes of a table or a document; arrays have a limit of their own


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: after a crash at any moment it has its old content or the new one.

    Raises:
        OSError: it cannot be written, or does not read back as it was written.
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
    """Make a rename in the folder outlast a power failure, where the platform can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_bytes(path: Path, most: int = _LARGEST) -> bytes:
    """The content of a regular file. Links, pipes and devices are refused: a folder may come from elsewhere.

    Args:
        path: of the file.
        most: bytes it may have.

    Raises:
        OSError: there is no such file, it is not a regular one, or it is larger.
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
    """Record the SHA-256 of files in the folder, in its `SUMS` file.

    Raises:
        OSError: the folder cannot be written.
    """
    write_text(folder / SUMS, "".join(f"{value}  {name}\n" for name, value in sums.items()))


def checksums(folder: Path) -> dict[str, str]:
    """The recorded checksums by file name; empty where none were recorded.

    Raises:
        ValueError: the record is damaged.
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
    """The content of a file whose checksum was recorded when it was written.

    Raises:
        ValueError: the file cannot be read, it has no checksum, or it was changed since.
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
    """Be the only writer of a folder, which is made where it does not exist.

    The lock is the operating system's (``flock``) on a file that names process and host. It ends with its process, so
    that a lock which a killed process left behind is free. Where the file system has no locks, the named process
    decides: one that is alive on this host, or one on another host, holds the folder. On network file systems that
    grant every host its own locks (NFS mounted with ``nolock`` or ``local_lock``) hosts do not see each other's.

    Raises:
        ValueError: another process, or another call in this one, is writing there, or the folder cannot be written.
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
        with contextlib.suppress(OSError):  # the folder may be gone
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
    """Whether the open file is still the one of that name: its last owner may have removed it in the meantime."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(handle: int, path: Path) -> None:
    """Take the lock of an open lock file.

    Raises:
        ValueError: it is taken.
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
        except OSError:  # no locks on this file system
            pass
        else:
            return
    if process and (host != socket.gethostname() or _alive(process)):
        raise ValueError(f"{taken}; if that process is gone, remove {path}")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True

"""Files on disk: written whole and synced, read only where they are regular files, in folders with one writer.

A file counts as written once its bytes are on the disk under its final name and have been read back. A folder that is
being written belongs to one process at a time (`owned`); the lock ends with the process, however that ends.
"""

import contextlib
import csv
import errno
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
    "Lock",
    "check_sum",
    "checksums",
    "owned",
    "read_bytes",
    "sealed",
    "sha256",
    "sum_of",
    "write_bytes",
    "write_rows",
    "write_sums",
    "write_text",
    "writing",
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
    unfinished.unlink(missing_ok=True)  # never through a link, and never into a pipe, that lies there
    with unfinished.open("xb") as file:
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
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
                raise
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
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(0, f"{size:,} bytes, where at most {most:,} are expected", str(path))
        return file.read()


def _opened(path: Path) -> io.BufferedReader:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(0, "not a regular file", str(path))
    return file


# --- checksums


def sha256(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sum_of(path: Path) -> str:
    """The SHA-256 of a regular file of any size.

    Raises:
        OSError: as `read_bytes`.
    """
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    try:
        data = read_bytes(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({_reason(error)}); restore it, or train the run again") from error
    _compare(path, sha256(data))
    return data


def check_sum(path: Path) -> None:
    """See that a file, of any size, is the one whose checksum was recorded.

    Raises:
        ValueError: as `sealed`.
    """
    try:
        found = sum_of(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({_reason(error)}); restore it, or train the run again") from error
    _compare(path, found)


def _compare(path: Path, found: str) -> None:
    recorded = checksums(path.parent).get(path.name)
    if recorded is None:
        raise ValueError(
            f"{path}: not listed in {SUMS}: the folder is incomplete, or was written by an earlier version; copy the "
            "whole folder again, or train the run again"
        )
    if recorded != found:
        raise ValueError(f"{path}: changed since it was written ({SUMS}); restore it, or train the run again")


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


@contextlib.contextmanager
def writing(folder: Path, remedy: str = "make room, or choose another folder") -> Iterator[None]:
    """Say of whatever cannot be written where that was, and what to do.

    Raises:
        ValueError: something inside raised an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(f"out: cannot write to {folder} ({_reason(error)}); {remedy}") from error


# --- ownership


class Lock:
    """The lock on a folder, held by this process."""

    def __init__(self, path: Path, handle: int) -> None:
        self._path, self._handle = path, handle

    @property
    def holds(self) -> bool:
        """Whether it still protects the folder of that name: the folder may have been removed, and made anew."""
        try:
            return os.path.samestat(os.fstat(self._handle), os.stat(self._path))
        except OSError:
            return False

    def check(self) -> None:
        """See that what is written next goes into the folder that was locked.

        Raises:
            ValueError: the folder was removed or replaced.
        """
        if not self.holds:
            raise ValueError(f"out: {self._path.parent} was removed or replaced while it was written; start again")

    def release(self) -> None:
        """Remove the lock file, and with it the lock."""
        held = self.holds
        if fcntl is None:  # where a file cannot be removed while it is open
            os.close(self._handle)
        if held:
            with contextlib.suppress(OSError):
                self._path.unlink()
        if fcntl is not None:
            os.close(self._handle)


@contextlib.contextmanager
def owned(folder: str | Path) -> Iterator[Lock]:
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
        lock = _acquire(path)
    except OSError as error:
        raise ValueError(f"out: cannot write to {folder} ({_reason(error)}); choose another folder") from error
    try:
        yield lock
    finally:
        lock.release()


def _acquire(path: Path) -> Lock:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            _lock(handle, path)
            lock = Lock(path, handle)
            if lock.holds:  # else its last owner has removed the file in the meantime
                os.ftruncate(handle, 0)
                os.lseek(handle, 0, os.SEEK_SET)
                os.write(handle, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
                return lock
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, path: Path) -> None:
    """Take the lock of an open lock file.

    Raises:
        ValueError: it is taken.
    """
    try:
        holder = json.loads(os.read(handle, 1000))
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
    if os.name == "nt":  # there is no signal that only asks
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True

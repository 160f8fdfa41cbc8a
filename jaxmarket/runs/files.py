"""Files on disk: atomic, synced writes; reads of regular files only; folders with one writer at a time.

A write returns once the bytes are on disk under the final name and have been read back. `owned` locks a folder for one
process; the lock ends with the process, even if it is killed.
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
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

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
    "hold",
    "owned",
    "read_arrays",
    "read_bytes",
    "reason",
    "sealed",
    "sha256",
    "sum_of",
    "write_arrays",
    "write_bytes",
    "write_rows",
    "write_sums",
    "write_text",
    "writing",
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
    unfinished.unlink(missing_ok=True)  # do not write through a link or into a pipe of that name
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


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """`write_bytes` of arrays of numbers or text by name, as ``.npz``.

    Raises:
        OSError: as `write_bytes`.
        TypeError: a name is that of an argument of `numpy.savez_compressed`.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **cast("dict[str, Any]", arrays))
    write_bytes(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays that `write_arrays` wrote; None if the file is not there or damaged."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile):
        return None


def hold(path: Path, contents: Mapping[str, Any]) -> None:
    """Write what determines the other files of a folder as JSON, unless the folder holds files of something else.

    Args:
        path: a file in the folder.
        contents: names and values.

    Raises:
        OSError: as `write_bytes`.
        ValueError: the file is there with other contents, or damaged; or a value has no form in JSON.
    """
    try:
        wanted = json.loads(json.dumps(contents))
    except TypeError as error:
        raise ValueError(f"settings: expected values that JSON can represent, got {contents} ({error})") from error
    try:
        held = dict(json.loads(read_bytes(path))) if path.exists() else wanted
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); choose another folder") from error
    differ = ", ".join(f"{k} {held.get(k)} instead of {v}" for k, v in wanted.items() if held.get(k) != v)
    if differ:
        raise ValueError(f"out: {path.parent} holds another run ({differ}); choose another folder")
    write_text(path, json.dumps(wanted) + "\n")


def _sync_folder(folder: Path) -> None:
    """Sync the folder, so that a rename survives a power failure, on platforms that support it."""
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
    """Read a regular file. Links, pipes and devices are rejected, because a folder may come from an untrusted source.

    Args:
        path: the file.
        most: largest size in bytes.

    Raises:
        OSError: the file does not exist, is not a regular file, or is larger than ``most``.
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
        raise ValueError(f"{path}: cannot be read ({reason(error)}); restore it from a copy of the run") from error
    pairs = [line.split("  ", 1) for line in lines]
    if not all(len(pair) == 2 and len(pair[0]) == 64 for pair in pairs):
        raise ValueError(f"{path}: damaged; restore it from a copy of the run")
    return {name: value for value, name in pairs}


def sealed(path: Path) -> bytes:
    """Read a file and verify its checksum.

    Raises:
        ValueError: the file cannot be read, is not listed in `SUMS`, or was changed since it was written.
    """
    with _reading(path):
        data = read_bytes(path)
    _compare(path, sha256(data))
    return data


def check_sum(path: Path) -> None:
    """Verify the checksum of a file of any size.

    Raises:
        ValueError: as `sealed`.
    """
    with _reading(path):
        found = sum_of(path)
    _compare(path, found)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({reason(error)}); restore it, or train the run again") from error


def _compare(path: Path, found: str) -> None:
    recorded = checksums(path.parent).get(path.name)
    if recorded is None:
        raise ValueError(
            f"{path}: not listed in {SUMS}: the folder is incomplete, or was written by an earlier version; copy the "
            "whole folder again, or train the run again"
        )
    if recorded != found:
        raise ValueError(f"{path}: changed since it was written ({SUMS}); restore it, or train the run again")


def reason(error: BaseException) -> str:
    """Why a file could not be read or written, without its name."""
    return getattr(error, "strerror", None) or str(error)


@contextlib.contextmanager
def writing(folder: Path, remedy: str = "make room, or choose another folder") -> Iterator[None]:
    """A context that turns an `OSError` into a `ValueError` with a remedy.

    Raises:
        ValueError: the body raised an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(f"out: cannot write to {folder} ({reason(error)}); {remedy}") from error


# --- ownership


class Lock:
    """The lock on a folder, held by this process."""

    def __init__(self, path: Path, handle: int) -> None:
        self._path, self._handle = path, handle

    @property
    def holds(self) -> bool:
        """Whether the lock still belongs to the folder at this path, which may have been deleted and created again."""
        try:
            return os.path.samestat(os.fstat(self._handle), os.stat(self._path))
        except OSError:
            return False

    def check(self) -> None:
        """Check that the folder at this path is still the one that was locked.

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
    with writing(folder, "choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path)
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
    """Acquire the lock of an open lock file.

    Raises:
        ValueError: another process holds it.
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
        except OSError:  # the file system does not support locks
            pass
        else:
            return
    if process and (host != socket.gethostname() or _alive(process)):
        raise ValueError(f"{taken}; if that process no longer exists, remove {path}")


def _alive(process: int) -> bool:
    if os.name == "nt":  # there is no signal that only asks
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # the process belongs to another user
        return True
    return True

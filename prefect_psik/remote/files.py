"""Atomic work on files, and locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import json
import os
import shutil
import stat
import time
from typing import IO, Any, Iterator

from prefect_psik.remote.ownership import _check_owned

STATUS_LIMIT = 64 * 1024
LOCK_SECONDS = 10.0
#: Below the prefix: who submitted and canceled what.
AUDIT = "audit.jsonl"


def _write(path: str, data: bytes, mode: int = 0o600) -> None:
    """Create a file that must not exist, or must be a plain file; never through a link."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)


def _make_directory(path: str) -> None:
    """Make a directory for this user alone, whatever the umask; what is above it must exist."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)


def _write_whole(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write a file so that it is either whole or absent."""
    temporary = f"{path}.{os.getpid()}.{time.monotonic_ns()}.tmp"
    try:
        _write(temporary, data, mode)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _remove_tree(path: str, limit: int = 20) -> list[str]:
    """Delete a directory as far as possible; returns some of the paths that remain, with the reason."""
    left: list[str] = []

    def note(_function: Any, name: str, failure: Any) -> None:
        err = failure[1]
        if not isinstance(err, FileNotFoundError) and len(left) < limit:
            shown = name.encode("utf-8", "backslashreplace").decode()
            left.append(f"{shown}: {getattr(err, 'strerror', None) or err}")

    try:
        shutil.rmtree(path, onerror=note)
    except RecursionError:
        left.append(f"{path}: its directories are nested too deeply")
    if os.path.lexists(path) and not left:
        left.append(f"{path}: something is still writing there")
    return left if os.path.lexists(path) else []


def _append(path: str, line: str) -> None:
    with _open_ours(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as handle:
        os.write(handle, line.encode() + b"\n")


@contextlib.contextmanager
def _open_ours(path: str, flags: int) -> Iterator[int]:
    """Open a plain file of this user or of root; a link or FIFO in its place is refused, and never blocks.

    Raises:
        NotOurs: It belongs to somebody else, is a link, or not a plain file.
    """
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as err:
        if err.errno in (errno.ELOOP, errno.ENXIO, errno.EMLINK):  # a link; a FIFO without a reader; a link in BSD
            _check_owned(path, os.lstat(path), stat.S_IFREG)
        raise
    try:
        _check_owned(path, os.fstat(handle), stat.S_IFREG)
        yield handle
    finally:
        os.close(handle)


def _open(path: str) -> IO[bytes]:
    """Open a plain file for reading; a FIFO that a job put there must not block the call."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(handle, "rb", closefd=True)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "this is not a plain file", path)
    return file


def _read(path: str, limit: int = STATUS_LIMIT) -> bytes | None:
    """Read the end of a record, or None if there is none.

    Raises:
        NotOurs: It is not ours.
    """
    try:
        with _open_ours(path, os.O_RDONLY) as handle, open(handle, "rb", closefd=False) as file:
            return _end_of(file, limit)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read_log(path: str, limit: int) -> bytes | None:
    """Read the end of a log, which the script may have replaced by anything; None if there is none."""
    try:
        with _open(path) as file:
            return _end_of(file, limit)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _end_of(file: IO[bytes], limit: int) -> bytes:
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - limit))
    return file.read(limit)


def _read_json(path: str) -> dict[str, Any] | None:
    data = _read(path, 4 * 1024 * 1024)
    if data is None:
        return None
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _audit(prefix: str, operation: str, job: dict[str, Any], **details: Any) -> None:
    entry = {"time": round(time.time(), 3), "operation": operation, "stamp": job["stamp"], "user": _user()}
    _append(os.path.join(prefix, AUDIT), json.dumps({**entry, "owner": job.get("owner"), **details}))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


@contextlib.asynccontextmanager
async def _locked(prefix: str, stamp: str) -> Any:
    """Hold the job's own lock; yields False if somebody else holds it for too long.

    It is released explicitly: a job that psik forks on its local backend inherits the descriptor.
    """
    import asyncio

    path = os.path.join(prefix, ".locks", stamp)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        with _lock_file(path) as handle:
            while not (held := _try_lock(handle)) and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            if held and not _is_at(path, handle):
                continue  # it was removed together with its job, so the lock is another file now
            yield held
            return


@contextlib.contextmanager
def _lock_file(path: str) -> Iterator[int]:
    """Open a file for locking; its lock is released at the end."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield handle
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _is_at(path: str, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0

"""One file on this machine: opened without blocking, copied in a single state, and verified."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from prefect_psik.plain_text import printable

#: Suffix of the name under which a file is written, in its directory, until it is complete and verified.
PART = ".prefect-psik-part"
_PART_NAME = re.compile(rf"\.[0-9a-f]{{32}}{re.escape(PART)}")
#: An unlocked part file was left by a killed copy, unless it is too new to have been locked.
PART_SECONDS = 60.0
#: Only these mode bits are copied: a copy of a setuid program must not run as the user who copied it.
PERMISSIONS = 0o777
#: Two writes within one tick of the kernel's clock leave the same timestamps.
TICK_SECONDS = 0.02
_CHUNK_BYTES = 8 * 1024**2
_KINDS = {
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
}

#: Called with the number of bytes done since the last call; raises an exception to end the work.
Step = Callable[[int], None]


class IrregularFile(Exception):
    """A path is not a regular file; `kind` says what it is."""

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__(path, kind)
        self.path = path
        self.kind = kind

    def __str__(self) -> str:
        return f"{printable(self.path)} is a {self.kind}, not a file"


class Changed(Exception):
    """A file changed while it was read."""


class ChecksumMismatch(Exception):
    """The copy does not match what was read from the source."""


def kind_of(mode: int) -> str | None:
    """The kind of file that a mode describes; None: a regular file."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "special file")


def open_file(path: Path, access: int = os.O_RDONLY) -> BinaryIO:
    """Open a regular file for reading. It never blocks, as on a FIFO without a writer, and follows no link.

    Args:
        path: Of the file.
        access: `os.O_RDWR` to lock the file, which network file systems require.

    Raises:
        IrregularFile: It is something else.
        OSError: It cannot be opened.
    """
    # Opening a device can already have an effect, so check the path first, then what was really opened.
    _refuse_irregular(path, path.lstat().st_mode)
    descriptor = os.open(path, access | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _refuse_irregular(path, os.fstat(descriptor).st_mode)
    except IrregularFile:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb", buffering=0)


def _refuse_irregular(path: Path, mode: int) -> None:
    if kind := kind_of(mode):
        raise IrregularFile(path, kind)


def digest(path: Path, step: Step | None = None) -> str:
    """The SHA-256 of a regular file."""
    with open_file(path) as file:
        return _digest(file, step)


def state_digest(path: Path, step: Step) -> str | None:
    """The SHA-256 of a single state of a file; None: it changed while it was being read."""
    with open_file(path) as file:
        state = _settled(file, step)
        found = _digest(file, step)
        return found if _is_state(file, state) else None


def copy_file(source: Path, target: Path, step: Step) -> int:
    """Copy a single state of a file: its bytes, modification time, and permissions.

    The target is replaced in one step when the copy is complete and verified; until then it is unchanged.

    Args:
        source: A regular file.
        target: In a directory that exists.
        step: Called with each chunk's size.

    Returns:
        The size of the copy.

    Raises:
        Changed: The source changed while it was being read.
        ChecksumMismatch: The copy, read back, does not match the source.
        IrregularFile: The source is not a regular file.
        OSError: Either cannot be opened, read or written.
    """
    with _part_of(target) as (path, part), open_file(source) as reader:
        state = _settled(reader, step)
        hashed, size = hashlib.sha256(), 0
        while chunk := reader.read(_CHUNK_BYTES):
            hashed.update(chunk)
            part.write(chunk)
            size += len(chunk)
            step(len(chunk))
        if size != state.st_size or not _is_state(reader, state):
            raise Changed
        part.flush()
        os.fsync(part.fileno())
        if digest(path, step_of_reading(step)) != hashed.hexdigest():
            raise ChecksumMismatch
        os.fchmod(part.fileno(), state.st_mode & PERMISSIONS)
        os.utime(part.fileno(), ns=(state.st_atime_ns, state.st_mtime_ns))
        path.replace(target)
    return size


def step_of_reading(step: Step) -> Step:
    """A step that reports no bytes: they were counted when they were copied."""
    return lambda _: step(0)


@contextmanager
def _part_of(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A locked file beside the target that no other process reads; it is removed unless it is renamed."""
    # A unique name: another process may be copying the same file.
    path = target.with_name(f".{uuid.uuid4().hex}{PART}")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as part:
            with contextlib.suppress(OSError):  # where files cannot be locked, abandoned parts are not removed
                fcntl.flock(part, fcntl.LOCK_EX)
            yield path, part
    finally:
        path.unlink(missing_ok=True)


def _digest(file: BinaryIO, step: Step | None) -> str:
    hashed = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        hashed.update(chunk)
        if step is not None:
            step(0)
    return hashed.hexdigest()


def _settled(file: BinaryIO, step: Step) -> os.stat_result:
    """The state of a file; if it changed within the last tick, check again later, when a new change would show."""
    state = os.fstat(file.fileno())
    if 0 <= time.time() - state.st_ctime < TICK_SECONDS:
        step(0)
        time.sleep(TICK_SECONDS)
        state = os.fstat(file.fileno())
    return state


def _is_state(file: BinaryIO, state: os.stat_result) -> bool:
    now = os.fstat(file.fileno())
    return (now.st_size, now.st_mtime_ns, now.st_ctime_ns) == (state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def is_part(name: str) -> bool:
    """Whether a file of this name is an unfinished copy."""
    return _PART_NAME.fullmatch(name) is not None


def remove_left_parts(directory: Path) -> None:
    """Delete what killed copies left in a directory: parts that no process has locked."""
    for part in directory.glob(f".*{PART}"):
        if not is_part(part.name):
            continue
        with contextlib.suppress(OSError, IrregularFile), open_file(part, os.O_RDWR) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_mtime < time.time() - PART_SECONDS:
                part.unlink()

"""Proof and deletion between directories on this machine: a file is deleted only in the state compared."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from prefect_psik.blocks import GlobusCollection
from prefect_psik.models.prunes import CHANGED, CHANGED_AT_CHECK, DIFFERENT, GONE, PruneFile
from prefect_psik.transport.daemon_thread import in_daemon_thread

T = TypeVar("T")

_CHUNK_BYTES = 1024**2


class State(NamedTuple):
    """What distinguishes one state of a file from another: a write changes the times, a replacement the inode."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


class LocalPrune:
    """Proves and deletes files of one prune; see `PruneWork`.

    Args:
        source: Where files are deleted.
        check: Where the copies are.
        mark: The name of this prune's mark in each directory of the source.
        until: Unix time after which nothing is deleted.
    """

    def __init__(self, source: GlobusCollection, check: GlobusCollection, mark: str, until: float) -> None:
        # The plan's paths come from a listing, so they can simply be appended: it is fast for thousands of files.
        self._source, self._check, self._mark, self._until = source.path(""), check.path(""), mark, until
        self._proven: dict[str, tuple[State, State]] = {}
        self._deletion: asyncio.Future[dict[str, str]] | None = None

    async def prove(self, files: list[PruneFile]) -> dict[str, str]:
        """See `PruneWork`."""
        return await _until_stopped(_start(partial(self._compare_all, [file.path for file in files])))

    async def delete(self, files: list[PruneFile]) -> dict[str, str]:
        """See `PruneWork`."""
        started = _start(partial(self._delete_all, [file.path for file in files]))
        self._deletion = started[0]
        return await _until_stopped(started)

    async def ended(self) -> None:
        """See `PruneWork`."""
        if self._deletion is not None:
            await asyncio.wait([self._deletion])

    def _compare_all(self, paths: list[str], stop: threading.Event) -> dict[str, str]:
        reasons = {}
        for path in paths:
            if stop.is_set():
                break
            try:
                reason = self._compare(path, stop)
            except FileNotFoundError as err:
                reason = CHANGED_AT_CHECK if err.filename == self._check + path else self._missing(path)
            except OSError as err:
                reason = f"cannot be compared: {err.filename}: {err.strerror}"
            if reason:
                reasons[path] = reason
        return reasons

    def _compare(self, path: str, stop: threading.Event) -> str:
        with _opened(self._source + path) as source, _opened(self._check + path) as check:
            before, there = os.fstat(source), os.fstat(check)
            if not stat.S_ISREG(before.st_mode):
                return CHANGED
            if not stat.S_ISREG(there.st_mode):
                return CHANGED_AT_CHECK
            if os.path.samestat(before, there):
                return "is the same file as at the check, not a copy"
            is_same = before.st_size == there.st_size and _is_same(source, check, before.st_size, stop)
            proven = _state_of(before), _state_of(there)
            if _state_of(os.fstat(source)) != proven[0]:
                return CHANGED
            if _state_of(os.fstat(check)) != proven[1]:
                return CHANGED_AT_CHECK
        if not is_same:
            return DIFFERENT
        self._proven[path] = proven
        return ""

    def _delete_all(self, paths: list[str], stop: threading.Event) -> dict[str, str]:
        reasons = {}
        for path in paths:
            if stop.is_set():
                break
            if time.time() > self._until:
                reasons[path] = "was not deleted before the prune's time limit; prune again"
            elif reason := self._delete(path):
                reasons[path] = reason
        return reasons

    def _delete(self, path: str) -> str:
        source, check = self._proven[path]
        name = self._source + path
        if _state(self._check + path) != check:
            return CHANGED_AT_CHECK
        # A change in the microseconds between this check and the unlink goes unseen; POSIX cannot prevent that.
        if (state := _state(name)) != source:
            return CHANGED if state else self._missing(path)
        try:
            os.unlink(name)  # noqa: PTH108 - ten thousand of them
        except FileNotFoundError:
            return self._missing(path)
        except OSError as err:
            return f"could not be deleted: {err.strerror}"
        return ""

    def _missing(self, path: str) -> str:
        """Tell a deleted file from an unmounted file system: beside a deleted file, our mark still exists."""
        return GONE if (Path(self._source + path).parent / self._mark).is_dir() else CHANGED


@contextmanager
def _opened(name: str) -> Iterator[int]:
    """A descriptor for reading; opening it follows no link and does not block, as it would on a FIFO."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_same(one: int, other: int, size: int, stop: threading.Event) -> bool:
    """Compare the first `size` bytes of two files; False if stopped."""
    while size:
        chunk = _read(one, min(size, _CHUNK_BYTES))
        if not chunk or stop.is_set() or chunk != _read(other, len(chunk)):
            return False
        size -= len(chunk)
    return True


def _read(descriptor: int, size: int) -> bytes:
    """Read `size` bytes, fewer only at the end of the file; some file systems return less per call."""
    chunk = os.read(descriptor, size)
    while len(chunk) < size and (more := os.read(descriptor, size - len(chunk))):
        chunk += more
    return chunk


def _state(name: str) -> State | None:
    try:
        return _state_of(os.lstat(name))
    except OSError:
        return None


def _state_of(found: os.stat_result) -> State:
    return State(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _start(work: Callable[[threading.Event], T]) -> tuple[asyncio.Future[T], threading.Event]:
    stop = threading.Event()
    return asyncio.ensure_future(in_daemon_thread(partial(work, stop))), stop


async def _until_stopped(started: tuple[asyncio.Future[T], threading.Event]) -> T:
    """Wait for work in a thread; if cancelled, stop the work and wait until it has stopped."""
    doing, stop = started
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([doing])
        raise

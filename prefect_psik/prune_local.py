"""Proof and deletion between directories of this machine: a file goes only in the very state that was compared."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

from prefect_psik.blocks import GlobusCollection
from prefect_psik.prune_models import CHANGED, CHANGED_AT_CHECK, PruneFile
from prefect_psik.transport.threads import in_daemon_thread

T = TypeVar("T")

_CHUNK_BYTES = 1024**2


class State(NamedTuple):
    """What tells one state of a file from another: a write changes the last two, a replacement the inode."""

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
        until: Unix time after which nothing is deleted.
    """

    def __init__(self, source: GlobusCollection, check: GlobusCollection, until: float) -> None:
        self._source, self._check, self._until = source, check, until
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
                reason = CHANGED_AT_CHECK if err.filename == self._check.path(path) else CHANGED
            except OSError as err:
                reason = f"cannot be compared: {err.filename}: {err.strerror}"
            if reason:
                reasons[path] = reason
        return reasons

    def _compare(self, path: str, stop: threading.Event) -> str:
        source, check = (_digest(collection.path(path), stop) for collection in (self._source, self._check))
        if source is None:
            return CHANGED
        if check is None:
            return CHANGED_AT_CHECK
        if source[1][:2] == check[1][:2]:
            return "is the same file as at the check, not a copy"
        if source[0] != check[0]:
            return "has another checksum at the check"
        self._proven[path] = (source[1], check[1])
        return ""

    def _delete_all(self, paths: list[str], stop: threading.Event) -> dict[str, str]:
        reasons = {}
        for path in paths:
            if stop.is_set():
                break
            if time.time() > self._until:
                reasons[path] = "was not deleted in time; prune again"
            elif reason := self._delete(path):
                reasons[path] = reason
        return reasons

    def _delete(self, path: str) -> str:
        source, check = self._proven[path]
        name = self._source.path(path)
        if _state(self._check.path(path)) != check:
            return CHANGED_AT_CHECK
        # Between this look and the next line lie microseconds, which no call of POSIX closes.
        if _state(name) != source:
            return CHANGED
        try:
            os.unlink(name)  # noqa: PTH108 - ten thousand of them
        except OSError as err:
            return f"could not be deleted: {err.strerror}"
        return ""


def _digest(name: str, stop: threading.Event) -> tuple[bytes, State] | None:
    """The SHA-256 of a file and the state that has it; None where the file changed meanwhile, or at a stop."""
    handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb", buffering=0) as file:
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode):
            return None
        hashed = hashlib.sha256()
        while chunk := file.read(_CHUNK_BYTES):
            if stop.is_set():
                return None
            hashed.update(chunk)
        state = _state_of(os.fstat(handle))
    same = state == _state_of(before) == _state(name)
    return (hashed.digest(), state) if same else None


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
    """Wait for work in a thread; a cancel stops it, and returns when it has stopped."""
    doing, stop = started
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([doing])
        raise

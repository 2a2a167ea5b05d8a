"""The carrier of this machine: a thread copies directories, comparing by checksum; a retry skips what is done."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import hashlib
import os
import threading
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path

from prefect_psik.data.carriers.delete import delete_tree
from prefect_psik.data.carriers.file import (
    Changed,
    ChecksumMismatch,
    IrregularFile,
    copy_file,
    digest,
    remove_left_parts,
    state_digest,
)
from prefect_psik.data.carriers.tree import Entry, entries_in, entry_of, listed_name, refuse, resolved, walk
from prefect_psik.exceptions import TransferError
from prefect_psik.models.causes import TransferCause
from prefect_psik.models.transfers import Arrival, FileEntry, LeftOut, Order, TransferState, TransferStatus
from prefect_psik.plain_text import printable
from prefect_psik.transport.daemon_thread import in_daemon_thread

LOCAL = "local"
#: The most left-out paths that are named, for each reason.
MOST_PATHS = 5
#: The most files whose names are remembered, so that a retry can find the copy complete.
MOST_NAMES = 10_000
#: The most entries that an error names.
MOST_TOLD = 20
_NAME_BYTES = 6
_CAUSES = {
    errno.ENOENT: TransferCause.not_found,
    errno.EACCES: TransferCause.permission_denied,
    errno.EPERM: TransferCause.permission_denied,
    errno.EROFS: TransferCause.permission_denied,
    errno.ENOSPC: TransferCause.quota,
    errno.EDQUOT: TransferCause.quota,
    # A network file system that cannot be reached.
    errno.ESTALE: TransferCause.away,
    errno.ETIMEDOUT: TransferCause.away,
    errno.EHOSTDOWN: TransferCause.away,
    errno.ENOTCONN: TransferCause.away,
}

#: Tasks that this process began, or recalled from a record.
_tasks: dict[str, _Task] = {}


class _Stopped(Exception):
    """The copy ends here, for this cause."""

    def __init__(self, cause: TransferCause, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


class _Task:
    """A task: its status, and at its end hashes of the files that it copied; None: there are too many."""

    def __init__(self, status: TransferStatus, names: bytes | None = None) -> None:
        self.status = status
        self.names = names
        self.stop = threading.Event()


class _Copy(_Task):
    """A task done by a thread that does not keep the interpreter alive."""

    def __init__(self, order: Order) -> None:
        super().__init__(TransferStatus(state=TransferState.active, nice_status="OK"))
        self.order = order
        self._seen: set[bytes] = set()
        self._left: list[OSError] = []
        self._began = time.monotonic()
        threading.Thread(target=self._run, name="prefect-psik-copy", daemon=True).start()

    def _run(self) -> None:
        try:
            for source, destination in self.order.items:
                if self.order.destination is None:
                    self._delete(Path(source))
                else:
                    self._transfer(source, Path(destination))
            if self._left:
                raise _not_deleted(self._left)
        except _Stopped as stopped:
            self._fail(stopped.cause, str(stopped))
        except IrregularFile as err:
            self._fail(TransferCause.other, str(err))
        except OSError as err:
            where = f"{printable(err.filename)}: " if err.filename else ""
            self._fail(_CAUSES.get(err.errno or 0, TransferCause.other), f"{where}{err.strerror or err}")
        else:
            self.names = b"".join(sorted(self._seen)) if len(self._seen) <= MOST_NAMES else None
            self._note(state=TransferState.succeeded)
        finally:
            self._seen.clear()
            if not self.status.state.is_final:  # a defect ended the thread: the waiter must learn of it
                self._fail(TransferCause.other, "a defect in prefect-psik")

    def _fail(self, cause: TransferCause, detail: str) -> None:
        self._note(state=TransferState.failed, nice_status=None, is_ok=False, cause=cause, detail=detail)

    def _note(self, **changes: object) -> None:
        spent = max(time.monotonic() - self._began, 1e-3)
        status = self.status.model_copy(update=changes)
        self.status = status.model_copy(update={"bytes_per_second": int(status.bytes_transferred / spent)})

    def _check(self) -> None:
        if self.stop.is_set():
            raise _Stopped(TransferCause.canceled, "canceled")
        if self.order.deadline is not None and time.time() > self.order.deadline:
            raise _Stopped(TransferCause.deadline, "the deadline has passed")

    def _step(self, size: int) -> None:
        self._check()
        if size:
            self._note(bytes_transferred=self.status.bytes_transferred + size)

    def _transfer(self, source: str, target: Path) -> None:
        origin = resolved(source, self.order.source_base)
        if origin is None:
            raise _Stopped(TransferCause.other, f"{printable(source)} leads out of the base path through a link")
        if not origin.is_dir():
            self._make_directory(target.parent)
            self._file(origin, target)
            return
        for entry in walk(origin, target, self.order.source_base):
            self._check()
            self._take(entry)

    def _take(self, entry: Entry) -> None:
        if entry.is_directory:
            self._make_directory(entry.target)
        elif entry.left_out is not None:
            self._leave_out(entry.source, entry.left_out)
        else:
            try:
                self._file(entry.source, entry.target)
            except IrregularFile as err:  # something else has taken its place
                self._leave_out(entry.source, err.kind)

    def _make_directory(self, target: Path) -> None:
        # The levels above were checked before: the item's own path at the beginning, then each level in turn.
        if target.is_symlink() and resolved(target, self.order.destination_base) is None:
            raise _Stopped(TransferCause.other, f"{printable(target)} leads out of the base path through a link")
        target.mkdir(parents=True, exist_ok=True)
        remove_left_parts(target)

    def _leave_out(self, path: Path, reason: str) -> None:
        known = {one.reason: one for one in self.status.left_out}
        before = known.get(reason, LeftOut(reason=reason, count=0))
        paths = before.paths if len(before.paths) >= MOST_PATHS else [*before.paths, printable(path)]
        known[reason] = LeftOut(reason=reason, count=before.count + 1, paths=paths)
        self._note(left_out=list(known.values()))

    def _file(self, source: Path, target: Path) -> None:
        if self._is_same(source, target):
            self._note(files=self.status.files + 1, files_skipped=self.status.files_skipped + 1)
            size = target.stat().st_size
        else:
            size = self._copy(source, target)
            self._note(files=self.status.files + 1, files_transferred=self.status.files_transferred + 1)
        if len(self._seen) <= MOST_NAMES:
            self._seen.add(_name(listed_name(target), size))

    def _is_same(self, source: Path, target: Path) -> bool:
        if not target.is_file():
            return False
        one, other, level = source.lstat(), target.stat(), self.order.sync
        if os.path.samestat(one, other):
            raise _Stopped(TransferCause.other, f"{printable(source)} and {printable(target)} are the same file")
        if level == "exists":
            return True
        if target.is_symlink() or one.st_size != other.st_size:  # a link is not a copy
            return False
        if level == "mtime":
            return one.st_mtime_ns <= other.st_mtime_ns
        if level == "size":
            return True
        there = digest(target, self._check_only)
        return there == state_digest(source, self._check_only)

    def _check_only(self, _size: int) -> None:
        self._check()

    def _copy(self, source: Path, target: Path) -> int:
        """Copy a file, and copy it once more if it changed meanwhile."""
        before = self.status
        try:
            with contextlib.suppress(Changed):
                return copy_file(source, target, self._step)
            self._note(bytes_transferred=before.bytes_transferred, faults=before.faults + 1)
            return copy_file(source, target, self._step)
        except Changed:
            raise _Stopped(
                TransferCause.changed, f"{printable(source)} changed twice while it was being read"
            ) from None
        except ChecksumMismatch:
            raise _Stopped(
                TransferCause.checksum,
                f"the copy {printable(target)} does not match what was read from its source",
            ) from None

    def _delete(self, path: Path) -> None:
        self._check()
        if path.is_dir() and not path.is_symlink() and not self.order.recursive:
            raise _Stopped(TransferCause.other, f"{printable(path)} is a directory, and recursive is not set")
        left = delete_tree(str(path))
        self._left += left
        self._note(files=self.status.files + (not left))


def _not_deleted(left: list[OSError]) -> _Stopped:
    named = "; ".join(f"{printable(err.filename)}: {err.strerror}" for err in left[:MOST_TOLD])
    more = f"; and {len(left) - MOST_TOLD} more" if len(left) > MOST_TOLD else ""
    cause = _CAUSES.get(left[0].errno or 0, TransferCause.other)
    return _Stopped(cause, f"{len(left)} entries could not be deleted, all others were: {named}{more}")


class LocalCarrier:
    """This machine; see `Carrier` for what it guarantees. A copy ends with its process."""

    async def reserve(self) -> str:
        """See `Carrier`."""
        return f"local-{uuid.uuid4()}"

    async def submit(self, order: Order, submission_id: str) -> tuple[str, bool]:
        """See `Carrier`."""
        if submission_id not in _tasks:
            await in_daemon_thread(partial(refuse, order))
        created = submission_id not in _tasks
        if created:
            _tasks[submission_id] = _Copy(order)
        return submission_id, created

    async def look(self, task_id: str) -> TransferStatus:
        """See `Carrier`."""
        return _task(task_id).status

    async def cancel(self, task_id: str) -> None:
        """See `Carrier`."""
        _task(task_id).stop.set()

    async def holds(self, task_id: str, files: Mapping[str, int]) -> bool:
        """See `Carrier`."""
        names = _task(task_id).names
        if names is None:
            return False
        there = {_name(path, size) for path, size in files.items()}
        return all(names[begin : begin + _NAME_BYTES] in there for begin in range(0, len(names), _NAME_BYTES))

    async def arrival(self, task_id: str) -> Arrival | None:
        """See `Carrier`."""
        task = _task(task_id)
        if task.names is None:
            return None
        return Arrival(status=task.status, names=base64.b64encode(task.names).decode())

    async def recall(self, task_id: str, arrival: Arrival) -> None:
        """See `Carrier`."""
        _tasks.setdefault(task_id, _Task(arrival.status, base64.b64decode(arrival.names)))

    async def list(self, collection: str, path: str, *, recursive: bool) -> AsyncIterator[FileEntry]:
        """See `Carrier`."""
        top = Path(path)
        waiting = [str(top)]
        try:
            if not await asyncio.to_thread(top.is_dir):
                yield entry_of(waiting.pop())
            while waiting:
                here = waiting.pop()
                for found, entry in await asyncio.to_thread(entries_in, here, missing_ok=here != str(top)):
                    yield entry
                    if recursive and entry.kind == "directory":
                        waiting.append(found)
        except OSError as err:
            raise _refused(err, path, "listed") from err

    async def make_directory(self, collection: str, path: str) -> None:
        """See `Carrier`."""
        try:
            await asyncio.to_thread(Path(path).mkdir, exist_ok=True)
        except OSError as err:
            raise _refused(err, path, "created") from err


def _refused(err: OSError, path: str, what: str) -> TransferError:
    return TransferError(
        f"{err.filename or path} cannot be {what} on this machine: {err.strerror}. Check the path.",
        cause=_CAUSES.get(err.errno or 0, TransferCause.other),
    )


def _task(task_id: str) -> _Task:
    if task_id not in _tasks:
        raise TransferError(
            f"The process that was making the copy {task_id} has ended, so the copy ended too. Run it again: "
            "complete files are not copied twice."
        )
    return _tasks[task_id]


def _name(path: str, size: int) -> bytes:
    return hashlib.blake2b(f"{path}\0{size}".encode(), digest_size=_NAME_BYTES).digest()

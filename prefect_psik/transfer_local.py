"""The carrier of this machine: directories are copied by a thread, compared by checksum, and taken up again."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Literal

from prefect_psik.exceptions import TransferCause, TransferError
from prefect_psik.transfer_delete import delete_tree
from prefect_psik.transfer_models import FileEntry, Order, TransferState, TransferStatus

LOCAL = "local"
#: A file is written under a name of this end, in its directory, until it is whole and verified.
PART = ".prefect-psik-part"
#: A part that nobody holds is one of a copy that was killed, unless it is so new that it is not held yet.
PART_SECONDS = 60.0
#: Entries that an error names.
MOST_NAMES = 20
_CHUNK_BYTES = 8 * 1024**2
_CAUSES = {
    errno.ENOENT: TransferCause.not_found,
    errno.EACCES: TransferCause.permission_denied,
    errno.EPERM: TransferCause.permission_denied,
    errno.EROFS: TransferCause.permission_denied,
    errno.ENOSPC: TransferCause.quota,
    errno.EDQUOT: TransferCause.quota,
    # A network file system that is away.
    errno.ESTALE: TransferCause.away,
    errno.ETIMEDOUT: TransferCause.away,
    errno.EHOSTDOWN: TransferCause.away,
    errno.ENOTCONN: TransferCause.away,
}

#: Tasks that this process has begun.
_tasks: dict[str, _Copy] = {}


class _Stopped(Exception):
    """The copy ends here, for this cause."""

    def __init__(self, cause: TransferCause, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


class _Copy:
    """One task, done in a thread that does not keep the interpreter from ending."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.stop = threading.Event()
        self.status = TransferStatus(state=TransferState.active, nice_status="OK")
        self._cleaned: Path | None = None
        self._left: list[OSError] = []
        self._began = time.monotonic()
        threading.Thread(target=self._run, name="prefect-psik-copy", daemon=True).start()

    def _run(self) -> None:
        try:
            for source, destination in self.order.items:
                if self.order.destination is None:
                    self._delete(Path(source))
                else:
                    self._transfer(Path(source), Path(destination))
            if self._left:
                raise _not_deleted(self._left)
        except _Stopped as stopped:
            self._note(state=TransferState.failed, is_ok=False, cause=stopped.cause, detail=str(stopped))
        except OSError as err:
            cause = _CAUSES.get(err.errno or 0, TransferCause.other)
            self._note(state=TransferState.failed, is_ok=False, cause=cause, detail=str(err))
        else:
            self._note(state=TransferState.succeeded)
        finally:
            if not self.status.state.is_final:  # a defect ended the thread: whoever waits must learn of it
                self._note(state=TransferState.failed, is_ok=False, cause=TransferCause.other, detail="a defect")

    def _note(self, **changes: object) -> None:
        spent = max(time.monotonic() - self._began, 1e-3)
        status = self.status.model_copy(update=changes)
        self.status = status.model_copy(update={"bytes_per_second": int(status.bytes_transferred / spent)})

    def _check(self) -> None:
        if self.stop.is_set():
            raise _Stopped(TransferCause.canceled, "canceled")
        if self.order.deadline is not None and time.time() > self.order.deadline:
            raise _Stopped(TransferCause.deadline, "the deadline is reached")

    def _transfer(self, source: Path, destination: Path) -> None:
        pairs = tree(source, destination) if source.is_dir() else iter([(source, destination)])
        for origin, target in pairs:
            self._check()
            self._note(files=self.status.files + 1)
            if self._is_same(origin, target):
                self._note(files_skipped=self.status.files_skipped + 1)
                continue
            self._copy(origin, target)
            self._note(files_transferred=self.status.files_transferred + 1)

    def _is_same(self, source: Path, target: Path) -> bool:
        if not target.is_file():
            return False
        one, other, level = source.stat(), target.stat(), self.order.sync
        if os.path.samestat(one, other):
            raise _Stopped(TransferCause.other, f"{source} and {target} are the same file")
        if level == "exists":
            return True
        if one.st_size != other.st_size:
            return False
        if level == "mtime":
            return one.st_mtime <= other.st_mtime
        return level == "size" or digest(source) == digest(target)

    def _copy(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.parent != self._cleaned:
            self._cleaned = target.parent
            remove_left_parts(target.parent)
        # A name of its own: another process may copy the same file at the same time.
        part = target.with_name(f".{uuid.uuid4().hex}{PART}")
        hashed = hashlib.sha256()
        try:
            with source.open("rb") as reader, part.open("xb") as writer:
                with contextlib.suppress(OSError):  # where files cannot be held, left parts stay
                    fcntl.flock(writer, fcntl.LOCK_EX)
                while chunk := reader.read(_CHUNK_BYTES):
                    self._check()
                    hashed.update(chunk)
                    writer.write(chunk)
                    self._note(bytes_transferred=self.status.bytes_transferred + len(chunk))
                writer.flush()
                os.fsync(writer.fileno())
                if digest(part) != hashed.hexdigest():
                    raise _Stopped(TransferCause.checksum, f"{part} does not have the checksum of {source}")
                shutil.copystat(source, part)
                part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def _delete(self, path: Path) -> None:
        self._check()
        if path.is_dir() and not path.is_symlink() and not self.order.recursive:
            raise _Stopped(TransferCause.other, f"{path} is a directory, and recursive is off")
        left = delete_tree(str(path))
        self._left += left
        self._note(files=self.status.files + (not left))


def _not_deleted(left: list[OSError]) -> _Stopped:
    named = "; ".join(f"{err.filename}: {err.strerror}" for err in left[:MOST_NAMES])
    more = f"; and {len(left) - MOST_NAMES} more" if len(left) > MOST_NAMES else ""
    cause = _CAUSES.get(left[0].errno or 0, TransferCause.other)
    return _Stopped(cause, f"{len(left)} entries could not be deleted, all others are gone: {named}{more}")


class LocalCarrier:
    """This machine; see `Carrier` for what it guarantees. A copy ends with its process."""

    async def reserve(self) -> str:
        """See `Carrier`."""
        return f"local-{uuid.uuid4()}"

    async def submit(self, order: Order, submission_id: str) -> tuple[str, bool]:
        """See `Carrier`."""
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

    async def list(self, collection: str, path: str, *, recursive: bool) -> AsyncIterator[FileEntry]:
        """See `Carrier`."""
        waiting = [top := Path(path)]
        try:
            if not waiting[0].is_dir():
                yield _entry(waiting.pop())
            while waiting:
                here = waiting.pop()
                for found, entry in await asyncio.to_thread(_entries, here, missing_ok=here is not top):
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
            raise _refused(err, path, "made") from err


def _refused(err: OSError, path: str, what: str) -> TransferError:
    return TransferError(
        f"{err.filename or path} cannot be {what} on this machine: {err.strerror}. Check the path.",
        cause=_CAUSES.get(err.errno or 0, TransferCause.other),
    )


def _task(task_id: str) -> _Copy:
    if task_id not in _tasks:
        raise TransferError(
            f"The process that made the copy {task_id} has ended, and the copy with it. Run it again: files that "
            "are whole are not copied twice."
        )
    return _tasks[task_id]


def _entries(directory: Path, *, missing_ok: bool) -> list[tuple[Path, FileEntry]]:
    """Look at what a directory holds; what disappears meanwhile is left out."""
    found = []
    try:
        paths = sorted(directory.iterdir())
    except FileNotFoundError:
        if not missing_ok:
            raise
        return []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found.append((path, _entry(path)))
    return found


_KINDS: dict[int, Literal["file", "directory", "link"]] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
}


def _entry(path: Path) -> FileEntry:
    found = path.lstat()
    name = str(path)
    shown = os.fsencode(name).decode("utf-8", "backslashreplace")
    return FileEntry(
        path=shown,
        kind=_KINDS.get(stat.S_IFMT(found.st_mode), "other"),
        size=found.st_size,
        modified=found.st_mtime,
        is_exact=shown == name,
    )


def tree(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the files of a directory tree beside where they go, one directory in memory; links are left out."""
    with os.scandir(source) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from tree(source / entry.name, target / entry.name)
            elif entry.is_file(follow_symlinks=False) and not entry.name.endswith(PART):
                yield source / entry.name, target / entry.name


def remove_left_parts(directory: Path) -> None:
    """Delete what killed copies left in a directory: parts that no process holds."""
    for part in directory.glob(f".*{PART}"):
        with contextlib.suppress(OSError), part.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_mtime < time.time() - PART_SECONDS:
                part.unlink()


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""The work of the Transfer service: real directories are copied, compared and deleted, one thread a task."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from tests.testbed.emulator.config import Collection
from tests.testbed.emulator.faults import Faults
from tests.testbed.emulator.messages import Json

_CHUNK = 1 << 20
_PAUSE_SECONDS = 0.1
"""Between two tries of what faulted."""
_DETAILS = {
    "PERMISSION_DENIED": "permission denied",
    "FILE_NOT_FOUND": "file not found",
    "GC_NOT_CONNECTED": "globus connect offline",
}


class Ended(Exception):
    """The task ends here, with this code as its fatal error."""

    def __init__(self, code: str, description: str) -> None:
        super().__init__(description)
        self.code = code


def stamp(moment: float | None) -> str | None:
    """Write a time as Transfer does."""
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat()


def digest(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


@dataclass
class Job:
    """One Transfer task, as its document tells of it."""

    task_id: str
    owner: str
    body: Json
    source: Collection
    destination: Collection | None
    begun: float = field(default_factory=time.time)
    ended: float | None = None
    status: str = "ACTIVE"
    nice_status: str | None = "Queued"
    fatal: Json | None = None
    faults: int = 0
    files: int = 0
    skipped: int = 0
    transferred: int = 0
    moved_bytes: int = 0
    events: list[Json] = field(default_factory=list)
    copies: list[tuple[str, str]] = field(default_factory=list)
    cancel: threading.Event = field(default_factory=threading.Event)

    @property
    def is_delete(self) -> bool:
        """Whether it deletes."""
        return self.destination is None

    @property
    def deadline(self) -> float | None:
        """When it ends at the latest."""
        text = self.body.get("deadline")
        if not text:
            return None
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

    def tell(self, code: str, description: str, *, error: bool = False) -> None:
        """Add an event."""
        self.events.append(
            {
                "DATA_TYPE": "event",
                "code": code,
                "description": description,
                "details": description,
                "is_error": error,
                "time": stamp(time.time()),
            }
        )

    def document(self) -> Json:
        """The task document."""
        spent = max((self.ended or time.time()) - self.begun, 1e-3)
        active = self.status == "ACTIVE"
        return {
            "DATA_TYPE": "task",
            "task_id": self.task_id,
            "owner_id": self.owner,
            "type": "DELETE" if self.is_delete else "TRANSFER",
            "status": self.status,
            "label": self.body.get("label"),
            "is_ok": self.nice_status in (None, "OK", "Queued") if active else None,
            "is_paused": False,
            "nice_status": self.nice_status if active else None,
            "nice_status_short_description": _DETAILS.get(self.nice_status or "", self.nice_status)
            if active
            else None,
            "nice_status_details": None,
            "fatal_error": self.fatal,
            "request_time": stamp(self.begun),
            "completion_time": stamp(self.ended),
            "deadline": stamp(self.deadline),
            "source_endpoint_id": self.source.id,
            "destination_endpoint_id": self.destination.id if self.destination else None,
            "sync_level": self.body.get("sync_level"),
            "verify_checksum": bool(self.body.get("verify_checksum")),
            "files": self.files,
            "directories": 0,
            "files_skipped": self.skipped,
            "files_transferred": self.transferred,
            "bytes_transferred": self.moved_bytes,
            "bytes_checksummed": self.moved_bytes if self.body.get("verify_checksum") else 0,
            "effective_bytes_per_second": int(self.moved_bytes / spent),
            "faults": self.faults,
        }


class Worker:
    """Does the work of one task. What faults is tried again, as the service does, until it works or time is up."""

    def __init__(self, job: Job, faults: Faults) -> None:
        self._job = job
        self._faults = faults

    def run(self) -> None:
        """Work until the task has ended."""
        job = self._job
        job.tell("STARTED", "started")
        job.nice_status = "OK"
        try:
            for item in job.body["DATA"]:
                self._delete(item) if job.is_delete else self._transfer(item)
            self._check()
        except Ended as end:
            job.fatal = {"code": end.code, "description": str(end)}
            job.tell(end.code, str(end), error=True)
            job.ended, job.status = time.time(), "FAILED"
        else:
            job.tell("SUCCEEDED", "succeeded")
            job.ended, job.status = time.time(), "SUCCEEDED"

    def _check(self) -> None:
        job = self._job
        if job.cancel.is_set():
            raise Ended("CANCELED", "canceled by the user")
        if job.deadline is not None and time.time() > job.deadline:
            raise Ended("EXPIRED", "the deadline was reached")

    def _persist(self, name: str, act: Callable[[], None]) -> None:
        """Do something until it works; each failure is a fault of the task."""
        while True:
            self._check()
            if fatal := self._faults.take("fatal_path", name):
                raise Ended(fatal.code, f"{_DETAILS.get(fatal.code, fatal.code)}: {name}")
            ordered = self._faults.standing("path", name)
            try:
                if ordered:
                    raise _Fault(ordered.code)
                if slow := self._faults.take("slow_path", name):
                    self._job.cancel.wait(slow.seconds)
                    self._check()
                act()
            except FileNotFoundError:
                self._fault("FILE_NOT_FOUND", name)
            except PermissionError:
                self._fault("PERMISSION_DENIED", name)
            except _Fault as fault:
                self._fault(str(fault), name)
            else:
                self._job.nice_status = "OK"
                return

    def _fault(self, code: str, name: str) -> None:
        job = self._job
        job.faults += 1
        job.nice_status = code
        job.tell(code, f"{_DETAILS.get(code, code)}: {name}", error=True)
        job.cancel.wait(_PAUSE_SECONDS)

    def _transfer(self, item: Json) -> None:
        job = self._job
        assert job.destination is not None
        source, destination = job.source.real(item["source_path"]), job.destination.real(item["destination_path"])
        found: list[bool] = []

        def look() -> None:
            source.stat()
            found.append(source.is_dir())

        self._persist(f"{job.source.name}{item['source_path']}", look)
        recursive = item.get("recursive")
        if recursive is not None and recursive != found[0]:
            raise Ended("INVALID_PATH_TYPE", f"{item['source_path']} is {'a' if found[0] else 'no'} directory")
        rules = job.body.get("filter_rules") or []
        pairs = _below(source, destination, rules) if found[0] else iter([(source, destination)])
        for origin, target in pairs:
            if origin.is_dir():
                self._persist(
                    job.destination.name + job.destination.path(target), partial(self._directory, target)
                )
                continue
            job.files += 1
            # Both ends are looked at: what is away or forbidden at either holds the file up.
            self._persist(job.destination.name + job.destination.path(target), lambda: None)
            self._persist(job.source.name + job.source.path(origin), partial(self._one, origin, target))

    def _directory(self, target: Path) -> None:
        assert self._job.destination is not None
        if not target.is_dir():
            if not self._job.destination.writable:
                raise PermissionError(target)
            self._job.destination.make_directory(target)

    def _one(self, source: Path, target: Path) -> None:
        job = self._job
        assert job.destination is not None
        level = job.body.get("sync_level")
        if level is not None and not _differs(source, target, int(level)):
            job.skipped += 1
            return
        if not job.destination.writable:
            raise PermissionError(target)
        job.destination.make_directory(target.parent)
        size = 0
        with source.open("rb") as reader, target.open("wb") as writer:
            while chunk := reader.read(_CHUNK):
                self._check()
                size += writer.write(chunk)
                job.moved_bytes += len(chunk)
        job.destination.own(target)
        if job.body.get("preserve_timestamp"):
            os.utime(target, (source.stat().st_atime, source.stat().st_mtime))
        if job.body.get("verify_checksum") and digest(source) != digest(target):
            job.moved_bytes -= size
            raise _Fault("VERIFY_CHECKSUM")
        job.transferred += 1
        job.copies.append((job.source.path(source), job.destination.path(target)))

    def _delete(self, item: Json) -> None:
        job = self._job
        path = job.source.real(item["path"])

        def remove() -> None:
            job.files += 1
            if not job.source.writable:
                raise PermissionError(path)
            if not os.path.lexists(path):
                if job.body.get("ignore_missing"):
                    return
                raise FileNotFoundError(path)
            if path.is_dir() and not path.is_symlink():
                if not job.body.get("recursive"):
                    raise Ended("IS_A_DIRECTORY", f"{item['path']} is a directory")
                shutil.rmtree(path)
            else:
                path.unlink()

        self._persist(f"{job.source.name}{item['path']}", remove)


class _Fault(Exception):
    """A fault that was ordered, or found."""


def _below(source: Path, target: Path, rules: list[Json]) -> Iterator[tuple[Path, Path]]:
    """Yield a directory tree, each directory before what it holds, beside where it goes; links are left out."""
    yield source, target
    with os.scandir(source) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            is_directory = entry.is_dir(follow_symlinks=False)
            if not is_directory and not entry.is_file(follow_symlinks=False):
                continue
            if _is_excluded(entry.name, "dir" if is_directory else "file", rules):
                continue
            if is_directory:
                yield from _below(source / entry.name, target / entry.name, rules)
            else:
                yield source / entry.name, target / entry.name


def _is_excluded(name: str, kind: str, rules: list[Json]) -> bool:
    """Apply the first filter rule that matches; without one an entry is included."""
    for rule in rules:
        if rule.get("type") in (None, kind) and fnmatch.fnmatchcase(name, rule["name"]):
            return bool(rule["method"] == "exclude")
    return False


def _differs(source: Path, target: Path, level: int) -> bool:
    """Compare as the sync level says; each level has the ones below in it."""
    if not target.exists():
        return True
    one, other = source.stat(), target.stat()
    if level >= 1 and one.st_size != other.st_size:
        return True
    if level == 2:
        return one.st_mtime > other.st_mtime
    return level >= 3 and digest(source) != digest(target)

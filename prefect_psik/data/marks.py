"""Marks of prunes: empty directories beside the files in question, whose names say who prunes, and since when.

A prune writes two kinds. `check` says: a prune relies on the copies here, so do not delete them. `source` says:
files here are being deleted, so do not rely on them. A prune writes its marks at both ends before it looks for
those of others. So of two conflicting prunes at least one sees the other, and a prune that sees a conflicting mark
deletes nothing. Two prunes of the same source with the same check do not conflict, so a retry is never blocked by
the marks of its own earlier attempt.

A mark is a lease: its prune deletes nothing more once `LEASE_SECONDS` have passed since it was written.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

#: Every name that a prune creates begins with this.
PREFIX = ".prefect-psik-prune-"
#: A prune deletes nothing more once its marks are this old.
LEASE_SECONDS = 2 * 24 * 3600.0
#: How far the clocks of two machines may differ.
SKEW_SECONDS = 3600.0
_NAME = re.compile(
    re.escape(PREFIX) + r"(?P<kind>check|source)-(?P<since>\d{9,11})-(?P<id>[0-9a-f]{12})-"
    r"(?P<flow_run>none|[0-9a-f-]{36})-(?P<machine>[a-z0-9]+)-(?P<pid>\d+)-(?P<start>\d+)-(?P<host>.+)"
)
#: The `machine` of a prune that Globus carries out, where a deletion outlives the process that requested it.
GLOBUS = "globus"

#: Stands for the start time of a process that has ended and has not been waited for yet.
_ENDED = "ended"

#: Ids of prunes in this process that have not removed their marks yet.
_active: set[str] = set()


class MarkKind(StrEnum):
    """What a mark says about the files beside it."""

    check = "check"
    """Copies that a prune relies on."""
    source = "source"
    """Files that a prune deletes."""


@dataclass(frozen=True)
class Mark:
    """A mark of one prune; `read` is the inverse of `name`.

    Args:
        kind: What it says about the files beside it.
        since: Unix time at which it was written, whole seconds.
        id: Of the prune, the same in all its marks.
        flow_run: The root flow run of the prune, or `none`.
        machine: Which process table `pid` is in, or `globus`.
        pid: Process of the prune.
        start: When that process started, in ticks of its machine.
        host: What the machine is called.
    """

    kind: MarkKind
    since: float
    id: str
    flow_run: str
    machine: str
    pid: int
    start: str
    host: str

    @classmethod
    def of(cls, flow_run: str | None, *, by_globus: bool) -> Mark:
        """The mark that a new prune writes at its check.

        Args:
            flow_run: The root flow run.
            by_globus: Whether Globus deletes, not this process.
        """
        return cls(
            kind=MarkKind.check,
            since=float(int(time.time())),
            id=uuid.uuid4().hex[:12],
            flow_run=flow_run or "none",
            machine=GLOBUS if by_globus else _machine(),
            pid=os.getpid(),
            start=_start_of(os.getpid()) or "0",
            host=re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())[:40] or "unknown",
        )

    @property
    def name(self) -> str:
        """The name of its directory."""
        who = f"{self.id}-{self.flow_run}-{self.machine}-{self.pid}-{self.start}-{self.host}"
        return f"{PREFIX}{self.kind}-{self.since:.0f}-{who}"

    @classmethod
    def read(cls, name: str, modified: float | None) -> Mark | None:
        """Read the name of an entry; None if it is not a mark.

        Args:
            name: Of the entry.
            modified: When it was last changed; used as the start time of a mark in another release's form, which
                counts as the mark of a check.
        """
        if not name.startswith(PREFIX):
            return None
        found = _NAME.fullmatch(name)
        if found is None:
            since = time.time() if modified is None else modified
            return cls(MarkKind.check, since, name.removeprefix(PREFIX), "none", GLOBUS, 0, "0", "unknown")
        return cls(
            kind=MarkKind(found["kind"]),
            since=float(found["since"]),
            id=found["id"],
            flow_run=found["flow_run"],
            machine=found["machine"],
            pid=int(found["pid"]),
            start=found["start"],
            host=found["host"],
        )

    def is_abandoned(self) -> bool:
        """Whether its prune can no longer delete anything: its lease has expired, or its process has ended."""
        if time.time() > self.since + LEASE_SECONDS + SKEW_SECONDS:
            return True
        if self.machine == GLOBUS or self.machine != _machine():
            return False
        if self.pid == os.getpid() and self.start == _start_of(self.pid):
            return self.id not in _active
        return _has_ended(self.pid, self.start)

    def __str__(self) -> str:
        since, until = (
            f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"
            for moment in (self.since, self.since + LEASE_SECONDS + SKEW_SECONDS)
        )
        flow = "" if self.flow_run == "none" else f" of flow run {self.flow_run}"
        who = f"process {self.pid}{flow} on {self.host}" if self.pid else "an unknown process"
        return f"{who}, since {since}, until {until} at the latest"


def is_marked(path: str) -> bool:
    """Whether a path is a mark or inside one: then it belongs to a prune, and is not data."""
    return f"/{PREFIX}" in f"/{path}"


def activate(prune_id: str) -> None:
    """Note that a prune of this process writes marks."""
    _active.add(prune_id)


def deactivate(prune_id: str) -> None:
    """Note that a prune of this process no longer deletes anything."""
    _active.discard(prune_id)


def _machine() -> str:
    """An id of this process's process table: from the kernel's boot id and the PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - the link leads to no path
    except OSError:
        return f"x{uuid.getnode():x}"  # without /proc, no process is known to have ended
    return hashlib.sha256(f"{boot}{space}".encode()).hexdigest()[:12]


def _start_of(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None if that cannot be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return _ENDED if fields[0] in "ZX" else fields[19]


def _has_ended(pid: int, start: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass  # it belongs to another user, so it exists
    return _start_of(pid) not in (None, start)  # with another start time, the pid has been reused

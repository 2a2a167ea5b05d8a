"""Marks of prunes: empty directories beside the files in question, whose names say who prunes, and since when.

A prune writes two kinds. `check` says: somebody relies on the copies here, so delete none of them. `source` says:
files here are being deleted, so rely on none of them. A prune writes its marks at both ends before it looks for
those of others. Of two prunes that would be in each other's way at least one therefore sees the other, and a prune
that sees one deletes nothing. Two prunes of the same source with the same check are not in each other's way, so a
retry is never held up by what its own earlier try left.

A mark is a lease: its prune deletes nothing later than `LEASE_SECONDS` after it was written.
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

#: Every name that a prune makes begins with this.
PREFIX = ".prefect-psik-prune-"
#: A prune deletes nothing later than this after its marks were written.
LEASE_SECONDS = 2 * 24 * 3600.0
#: Clocks of two machines may differ by this much.
SKEW_SECONDS = 3600.0
_NAME = re.compile(
    re.escape(PREFIX) + r"(?P<kind>check|source)-(?P<since>\d{9,11})-(?P<id>[0-9a-f]{12})-"
    r"(?P<flow_run>none|[0-9a-f-]{36})-(?P<machine>[a-z0-9]+)-(?P<pid>\d+)-(?P<start>\d+)-(?P<host>.+)"
)
#: A mark whose prune is carried out by Globus, where a deletion outlives the process that asked for it.
GLOBUS = "globus"

#: Stands for the start of a process that was killed and that nobody has waited for yet.
_ENDED = "ended"

#: Prunes of this process that have not removed their marks yet.
_active: set[str] = set()


class MarkKind(StrEnum):
    """What a mark says of the files beside it."""

    check = "check"
    """Copies that a prune relies on."""
    source = "source"
    """Files that a prune deletes."""


@dataclass(frozen=True)
class Mark:
    """A mark of one prune; `name` and `read` are each other's opposite.

    Args:
        kind: What it says of the files beside it.
        since: Unix time at which it was written, whole seconds.
        id: The prune's own, the same in all its marks.
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
        """The mark of a new prune, at its check.

        Args:
            flow_run: The root flow run.
            by_globus: Globus deletes, not this process.
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
        """Read the name of an entry; None where it is not a mark.

        Args:
            name: Of the entry.
            modified: When it was changed last: the age of a name in another release's form, which counts as the
                mark of a check.
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
        """Whether its prune cannot delete anything any more: its lease is over, or its process has ended."""
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
    """Whether a path is a mark, or leads into one: it belongs to a prune, and is no data."""
    return f"/{PREFIX}" in f"/{path}"


def activate(prune_id: str) -> None:
    """Note that a prune of this process writes marks."""
    _active.add(prune_id)


def deactivate(prune_id: str) -> None:
    """Note that a prune of this process deletes nothing any more."""
    _active.discard(prune_id)


def _machine() -> str:
    """A word for the process table of this process: the boot of the kernel, and the name space of pids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - the link leads to no path
    except OSError:
        return f"x{uuid.getnode():x}"  # without a process table nothing is known to have ended
    return hashlib.sha256(f"{boot}{space}".encode()).hexdigest()[:12]


def _start_of(pid: int) -> str | None:
    """When a process started, in ticks since the boot; None where that cannot be read."""
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
        pass  # another user's: it lives
    return _start_of(pid) not in (None, start)  # else another process has got its number

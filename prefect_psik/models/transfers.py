"""What transfers hand around: handle, status and result; and what every carrier of data promises."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from prefect_psik.models.causes import TransferCause
from prefect_psik.models.single import Single

#: How files that are at the destination already are compared with the source; the same are not moved.
SyncLevel = Literal["exists", "size", "mtime", "checksum"]


class TransferState(StrEnum):
    """Where a transfer is. `inactive`: suspended by Globus until somebody acts; it is not final."""

    active = "active"
    inactive = "inactive"
    succeeded = "succeeded"
    failed = "failed"

    @property
    def is_final(self) -> bool:
        """Whether no further change can come."""
        return self in (TransferState.succeeded, TransferState.failed)


class _Stored(Single, BaseModel):
    model_config = ConfigDict(extra="ignore")


class TransferHandle(_Stored):
    """Find a transfer again, from another process or day. A copy on this machine ends with its process."""

    task_id: str = Field(description="Of the Globus Transfer task; `local-…` for a copy on this machine.")
    source: str = Field(description="Where it comes from, as a person would say it.")
    destination: str = Field(description="Where it goes, or what is deleted.")
    collection: str | None = Field(default=None, description="Name of the block that holds the login.")
    deadline: float | None = Field(default=None, description="Unix time at which it is given up.")

    @property
    def is_local(self) -> bool:
        """Whether this machine does the work."""
        return self.task_id.startswith("local-")

    def __str__(self) -> str:
        return f"transfer {self.task_id} ({self.source} -> {self.destination})"


class LeftOut(_Stored):
    """What a copy on this machine left out for one reason."""

    reason: str = Field(description="Such as `link`, `FIFO`, `socket`, `device`.")
    count: int
    paths: list[str] = Field(default_factory=list, description="Some of them.")

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.paths) else ""
        return f"{self.count} × {self.reason} ({', '.join(self.paths)}{more})"


class TransferStatus(_Stored):
    """One look at a transfer."""

    state: TransferState
    nice_status: str | None = Field(default=None, description="Globus's word for what holds it up, or `OK`.")
    detail: str | None = Field(default=None, description="More words of Globus, or of this machine.")
    is_ok: bool = True
    cause: TransferCause | None = None
    files: int = Field(default=0, description="Found so far.")
    files_transferred: int = 0
    files_skipped: int = Field(default=0, description="Equal at the destination already.")
    bytes_transferred: int = 0
    bytes_per_second: int = 0
    faults: int = Field(default=0, description="Errors that were answered with another try.")
    left_out: list[LeftOut] = Field(default_factory=list, description="What is not copied, on this machine.")

    @property
    def progress(self) -> float:
        """The part of the files found so far that is done, in percent."""
        if self.state is TransferState.succeeded:
            return 100.0
        return 100.0 * (self.files_transferred + self.files_skipped) / self.files if self.files else 0.0


class TransferResult(_Stored):
    """A transfer that succeeded: all files are at the destination, and their checksums are verified.

    Links, and what is no file, are left out. Of a copy on this machine `left_out` says how many, and why.
    """

    handle: TransferHandle
    files: int
    files_transferred: int
    files_skipped: int
    bytes_transferred: int
    bytes_per_second: int
    faults: int
    left_out: list[LeftOut] = Field(default_factory=list, description="What was not copied, on this machine.")


class Arrival(_Stored):
    """How a copy on this machine ended, kept so that another process knows it again."""

    status: TransferStatus
    names: str = Field(description="Short hashes of each path at the destination with its size, as base64.")


class FileEntry(_Stored):
    """A file, directory or link of a collection."""

    path: str = Field(description="Below the collection's base path.")
    kind: Literal["file", "directory", "link", "other"]
    size: int = Field(default=0, description="Bytes.")
    modified: float | None = Field(
        default=None, description="Unix time of the last change, as the collection tells it; None: it does not."
    )
    is_exact: bool = Field(
        default=True, description="False: the name has bytes that are not UTF-8, which the path shows as escapes."
    )


@dataclass(frozen=True)
class Order:
    """What a carrier is to do; all paths are the collections' own.

    Args:
        source: The collection's UUID, or `local`.
        destination: Likewise; None: delete the items' sources.
        items: Source and destination of each file or directory; for deletions the second is empty.
        label: For people who look at Globus's own pages.
        deadline: Unix time at which the carrier itself gives up.
        sync: How files are compared that are there already.
        recursive: Whether directories may be deleted.
        source_base: The base path of the source; on this machine no link leads out of it.
        destination_base: Likewise.
    """

    source: str
    destination: str | None
    items: list[tuple[str, str]]
    label: str = "prefect-psik"
    deadline: float | None = None
    sync: SyncLevel = "checksum"
    recursive: bool = False
    source_base: str = "/"
    destination_base: str = "/"


class Carrier(Protocol):
    """What moves, lists and deletes data. Its coroutines run on the session's loop.

    Every method raises `TransferError`, with `transient` set where the same call may succeed later.
    """

    async def reserve(self) -> str:
        """Get an id for a submission: however often it is submitted, there is one task."""

    async def submit(self, order: Order, submission_id: str) -> tuple[str, bool]:
        """Begin a task, or find the one that this submission id began; returns its id, and whether it is new.

        Raises:
            SpecError: The order cannot be carried out as it is; nothing was changed.
        """

    async def look(self, task_id: str) -> TransferStatus:
        """Look at a task once."""

    async def cancel(self, task_id: str) -> None:
        """Ask a task to stop; one that has ended keeps its end."""

    async def holds(self, task_id: str, files: Mapping[str, int]) -> bool:
        """Whether files of these paths and sizes include all that a succeeded task is known to have moved."""

    async def arrival(self, task_id: str) -> Arrival | None:
        """What must be kept of a succeeded task to know it again in another process; None: nothing."""

    async def recall(self, task_id: str, arrival: Arrival) -> None:
        """Know a task again that succeeded in another process."""

    def list(self, collection: str, path: str, *, recursive: bool) -> AsyncIterator[FileEntry]:
        """The entries below a path, or the one file that it names; a directory at a time is held in memory.

        What disappears while it is listed is left out.
        """

    async def make_directory(self, collection: str, path: str) -> None:
        """Make a directory whose parent exists; one that exists already is left as it is."""


@dataclass
class TransferUpdate:
    """News of a transfer for whoever waits."""

    status: TransferStatus | None = None
    trouble: str | None = None

    @property
    def is_final(self) -> bool:
        """Whether it tells the end of the transfer."""
        return self.status is not None and self.status.state.is_final

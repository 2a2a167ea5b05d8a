"""Models of transfers (handle, status and result), and the interface of every carrier of data."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from prefect_psik.models.causes import TransferCause
from prefect_psik.models.single import Single

#: How files that already exist at the destination are compared with the source; equal files are not copied.
SyncLevel = Literal["exists", "size", "mtime", "checksum"]


class TransferState(StrEnum):
    """The state of a transfer. `inactive`: suspended by Globus until somebody acts; it is not final."""

    active = "active"
    inactive = "inactive"
    succeeded = "succeeded"
    failed = "failed"

    @property
    def is_final(self) -> bool:
        """Whether the state can no longer change."""
        return self in (TransferState.succeeded, TransferState.failed)


class _Stored(Single, BaseModel):
    model_config = ConfigDict(extra="ignore")


class TransferHandle(_Stored):
    """Finds a transfer again, from another process or later. A copy on this machine ends with its process."""

    task_id: str = Field(description="Id of the Globus Transfer task; `local-…` for a copy on this machine.")
    source: str = Field(description="Where the data comes from, in words.")
    destination: str = Field(description="Where the data goes, or what is deleted.")
    collection: str | None = Field(default=None, description="Name of the block that holds the login.")
    deadline: float | None = Field(default=None, description="Unix time after which the transfer is abandoned.")

    @property
    def is_local(self) -> bool:
        """Whether this machine does the copying."""
        return self.task_id.startswith("local-")

    def __str__(self) -> str:
        return f"transfer {self.task_id} ({self.source} -> {self.destination})"


class LeftOut(_Stored):
    """Entries that a copy on this machine skipped for the same reason."""

    reason: str = Field(description="Such as `link`, `FIFO`, `socket`, `device`.")
    count: int
    paths: list[str] = Field(default_factory=list, description="Paths of some of them.")

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.paths) else ""
        return f"{self.count} × {self.reason} ({', '.join(self.paths)}{more})"


class TransferStatus(_Stored):
    """The state of a transfer at the time of one poll."""

    state: TransferState
    nice_status: str | None = Field(default=None, description="Globus's term for what is delaying it, or `OK`.")
    detail: str | None = Field(default=None, description="Details from Globus, or from this machine.")
    is_ok: bool = True
    cause: TransferCause | None = None
    files: int = Field(default=0, description="Files found so far.")
    files_transferred: int = 0
    files_skipped: int = Field(default=0, description="Files already equal at the destination.")
    bytes_transferred: int = 0
    bytes_per_second: int = 0
    faults: int = Field(default=0, description="Errors after which the work was retried.")
    left_out: list[LeftOut] = Field(default_factory=list, description="Entries that a copy on this machine skips.")

    @property
    def progress(self) -> float:
        """The percentage of the files found so far that are done."""
        if self.state is TransferState.succeeded:
            return 100.0
        return 100.0 * (self.files_transferred + self.files_skipped) / self.files if self.files else 0.0


class TransferResult(_Stored):
    """A transfer that succeeded: all files are at the destination, and their checksums are verified.

    Links and special files are skipped. For a copy on this machine, `left_out` says how many, and why.
    """

    handle: TransferHandle
    files: int
    files_transferred: int
    files_skipped: int
    bytes_transferred: int
    bytes_per_second: int
    faults: int
    left_out: list[LeftOut] = Field(
        default_factory=list, description="Entries that a copy on this machine skipped."
    )


class Arrival(_Stored):
    """How a copy on this machine ended, stored so that another process can recognize it."""

    status: TransferStatus
    names: str = Field(description="Short hashes of each path at the destination with its size, as base64.")


class FileEntry(_Stored):
    """A file, directory or link of a collection."""

    path: str = Field(description="Path below the collection's base path.")
    kind: Literal["file", "directory", "link", "other"]
    size: int = Field(default=0, description="Bytes.")
    modified: float | None = Field(
        default=None,
        description="Unix time of the last change, as the collection reports it; None if it does not.",
    )
    is_exact: bool = Field(
        default=True, description="False if the name has bytes that are not UTF-8; the path shows them as escapes."
    )


@dataclass(frozen=True)
class Order:
    """A request to a carrier; all paths are the collections' own.

    Args:
        source: The collection's UUID, or `local`.
        destination: The same; None: delete the items' sources.
        items: Source and destination of each file or directory; for deletions the second is empty.
        label: Shown to people on Globus's own pages.
        deadline: Unix time at which the carrier gives up.
        sync: How files that already exist are compared.
        recursive: Whether directories may be deleted.
        source_base: The base path of the source; on this machine, no link may lead out of it.
        destination_base: The same for the destination.
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
    """Moves, lists and deletes data. Its coroutines run on the session's loop.

    Every method raises `TransferError`, with `transient` set where the same call may succeed later.
    """

    async def reserve(self) -> str:
        """Get an id for a submission; submitting it more than once still makes only one task."""

    async def submit(self, order: Order, submission_id: str) -> tuple[str, bool]:
        """Start a task, or find the one that this submission id started; returns its id, and whether it is new.

        Raises:
            SpecError: The order cannot be carried out as it is; nothing was changed.
        """

    async def look(self, task_id: str) -> TransferStatus:
        """Poll a task once."""

    async def cancel(self, task_id: str) -> None:
        """Ask a task to stop; a task that has ended keeps its state."""

    async def holds(self, task_id: str, files: Mapping[str, int]) -> bool:
        """Whether files of these paths and sizes include all that a succeeded task is known to have moved."""

    async def arrival(self, task_id: str) -> Arrival | None:
        """What must be stored of a succeeded task so that another process can recognize it; None: nothing."""

    async def recall(self, task_id: str, arrival: Arrival) -> None:
        """Recognize a task that succeeded in another process."""

    def list(self, collection: str, path: str, *, recursive: bool) -> AsyncIterator[FileEntry]:
        """The entries below a path, or the one file that it names; one directory at a time is held in memory.

        Entries that disappear during the listing are left out.
        """

    async def make_directory(self, collection: str, path: str) -> None:
        """Create a directory whose parent exists; an existing directory is left as it is."""


@dataclass
class TransferUpdate:
    """News of a transfer for its waiters."""

    status: TransferStatus | None = None
    trouble: str | None = None

    @property
    def is_final(self) -> bool:
        """Whether it reports the end of the transfer."""
        return self.status is not None and self.status.state.is_final

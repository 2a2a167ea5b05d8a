"""Reports of prunes: each file with its verdict, and scheduled prunes."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from prefect_psik.models.single import Single
from prefect_psik.plain_text import printable


class PruneVerdict(StrEnum):
    """What happens to a file at the source."""

    delete = "delete"
    """The check collection is proven to hold it: it will be deleted."""
    deleted = "deleted"
    young = "young"
    """Not old enough yet: it is kept."""
    unproven = "unproven"
    """The check collection is not proven to hold it: it is kept."""
    gone = "gone"
    """Another prune, or something else, deleted it in the meantime."""


#: Why a file is kept although its size is that of the check collection's copy.
DIFFERENT = "has different contents at the check"
#: Why a file is kept although it was proven.
CHANGED = "changed while it was compared"
CHANGED_AT_CHECK = "changed at the check while it was compared"
#: Why a file is missing from a directory that still exists.
GONE = "was deleted by something else in the meantime"


class _Stored(Single, BaseModel):
    model_config = ConfigDict(extra="ignore")


class PruneFile(_Stored):
    """One file at the source."""

    path: str = Field(description="Path below the base path, in both collections.")
    size: int = Field(description="Bytes.")
    modified: float | None = Field(description="Unix time of its last change, as the source reports it.")
    check_modified: float | None = Field(
        default=None, description="The same for the check collection's copy, as that collection reports it."
    )
    verdict: PruneVerdict
    reason: str = Field(default="", description="Why it is kept, or no longer exists.")

    @property
    def shown(self) -> str:
        """The path for logs and errors: characters that a terminal would obey are shown as escapes."""
        return printable(self.path)


class PruneReport(_Stored):
    """All files below a path of the source. Directories are kept."""

    source: str
    check: str
    path: str
    dry_run: bool = False
    files: list[PruneFile] = Field(default_factory=list)

    def having(self, *verdicts: PruneVerdict) -> list[PruneFile]:
        """The files with one of these verdicts."""
        return [file for file in self.files if file.verdict in verdicts]

    @property
    def unproven(self) -> list[PruneFile]:
        """The files that are kept because the check collection is not proven to hold them."""
        return self.having(PruneVerdict.unproven)

    def __str__(self) -> str:
        counts = {verdict: self.having(verdict) for verdict in PruneVerdict}
        told = ", ".join(f"{len(files)} {verdict.value}" for verdict, files in counts.items() if files)
        return f"prune of {self.source}:{self.path}, checked by {self.check}: {told or 'no files'}"


class ScheduledPrune(_Stored):
    """A prune that Prefect has scheduled."""

    flow_run_id: UUID
    at: datetime
    deployment: str

"""What a prune tells: each file with its verdict, and the run that is to prune later."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from prefect_psik.models.single import Single
from prefect_psik.plain_text import printable


class PruneVerdict(StrEnum):
    """What becomes of a file at the source."""

    delete = "delete"
    """The check is proven to hold it: it goes."""
    deleted = "deleted"
    young = "young"
    """Not old enough yet."""
    unproven = "unproven"
    """The check is not proven to hold it: it stays."""
    gone = "gone"
    """Another prune, or somebody, took it away meanwhile."""


#: Why a file stays whose size is the check's.
DIFFERENT = "has other contents at the check"
#: Why a file stays that was proven.
CHANGED = "changed while it was compared"
CHANGED_AT_CHECK = "changed at the check while it was compared"
#: What became of a file that is not there any more, in a directory that is.
GONE = "was taken away meanwhile"


class _Stored(Single, BaseModel):
    model_config = ConfigDict(extra="ignore")


class PruneFile(_Stored):
    """One file at the source."""

    path: str = Field(description="Below the base path, at both collections.")
    size: int = Field(description="Bytes.")
    modified: float | None = Field(description="Unix time of its last change, as the source tells it.")
    check_modified: float | None = Field(
        default=None, description="Likewise of the check's, as the check tells it."
    )
    verdict: PruneVerdict
    reason: str = Field(default="", description="Why it stays, or is gone.")

    @property
    def shown(self) -> str:
        """The path for logs and errors: what would act on a terminal is shown as an escape."""
        return printable(self.path)


class PruneReport(_Stored):
    """All files below a path of the source. Directories stay."""

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
        """The files that stay because the check is not proven to hold them."""
        return self.having(PruneVerdict.unproven)

    def __str__(self) -> str:
        counts = {verdict: self.having(verdict) for verdict in PruneVerdict}
        told = ", ".join(f"{len(files)} {verdict.value}" for verdict, files in counts.items() if files)
        return f"prune of {self.source}:{self.path}, checked by {self.check}: {told or 'no files'}"


class ScheduledPrune(_Stored):
    """A prune that Prefect knows of, and will start."""

    flow_run_id: UUID
    at: datetime
    deployment: str

"""Models of a job that are stored and passed around: handle, status and result.

They ignore unknown fields, so that a document of a newer version loads in an older one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from prefect_psik.models.causes import FailureCause
from prefect_psik.models.single import Single


class JobState(StrEnum):
    """The states of a psik job (psik's own six, under psik's names)."""

    new = "new"
    queued = "queued"
    active = "active"
    completed = "completed"
    failed = "failed"
    canceled = "canceled"

    @property
    def is_final(self) -> bool:
        """Whether the state can no longer change."""
        return self in (JobState.completed, JobState.failed, JobState.canceled)


class _Stored(Single, BaseModel):
    model_config = ConfigDict(extra="ignore")


class JobHandle(_Stored):
    """Finds a job again: from another process or flow, later, even if the block was changed or deleted.

    It is small, plain JSON: store it as a result, write it to a file, or pass it to another flow.
    """

    version: int = Field(default=1, description="Version of this document's layout.")
    endpoint_id: UUID | None = Field(
        default=None, description="UUID of the Globus Compute endpoint. None: the machine that submitted the job."
    )
    prefix: str = Field(description="Directory that holds psik's job directories, as expanded at the facility.")
    stamp: str = Field(description="psik's id of the job: the name of its directory.")
    jobndx: int = Field(default=1, ge=1, description="psik's run number within the job, from 1.")
    native_id: str | None = Field(default=None, description="The scheduler's id (the pid on a `local` backend).")
    key: str = Field(description="Idempotency key.")
    type: Literal["slurm", "local"] = Field(default="local", description="What runs the job at the facility.")
    name: str | None = Field(default=None, description="The job's name.")
    backend: str | None = Field(
        default=None, description="Name of the block that submitted it, if the block was saved."
    )
    duration: int | None = Field(default=None, description="Walltime that this run asked for, in minutes.")
    memory: str | None = Field(
        default=None, description="Memory per node that this run asked for, written as for --mem."
    )

    @property
    def path(self) -> str:
        """The job's directory at the facility."""
        return f"{self.prefix.rstrip('/')}/{self.stamp}"

    @property
    def place(self) -> str:
        """Where the job is, in words."""
        where = f"endpoint {self.endpoint_id}" if self.endpoint_id else "this machine"
        return f"backend {self.backend} ({where})" if self.backend else where

    def __str__(self) -> str:
        native = {"slurm": "Slurm", "local": "pid"}[self.type]
        name = f"{self.name!r} " if self.name else ""
        run = f", run {self.jobndx}" if self.jobndx > 1 else ""
        return f"job {name}{self.stamp} ({native} {self.native_id or 'unknown'}{run})"


class JobStatus(_Stored):
    """The state of a job at the time of one poll."""

    handle: JobHandle
    state: JobState
    cause: FailureCause | None = Field(default=None, description="Why it did not complete, once final.")
    reason: str | None = Field(
        default=None, description="Why it has not started, or is not final, in the scheduler's words."
    )
    stuck: bool = Field(
        default=False, description="Whether it is pending and can never start unless somebody acts."
    )
    exit_code: int | None = Field(default=None, description="Of the script; negative: killed by that signal.")
    to_be_continued: bool = Field(
        default=False, description="Its script was warned before the time limit: another run continues its work."
    )
    submitted: float | None = Field(default=None, description="Unix time at the facility.")
    started: float | None = Field(default=None, description="Unix time at the facility.")
    ended: float | None = Field(default=None, description="Unix time at the facility.")
    nodes: int | None = Field(default=None, description="How many nodes it has or had.")
    node_list: str | None = Field(default=None, description="Their names, as the scheduler writes them.")
    message: str = Field(default="", description="What happened, in one sentence.")
    missing: list[str] = Field(
        default_factory=list,
        description="Entries of `expect` or `outputs` that are missing, incomplete or too old.",
    )
    warnings: list[str] = Field(default_factory=list)


class JobResult(_Stored):
    """A job that has ended."""

    model_config = ConfigDict(extra="ignore", ser_json_bytes="base64", val_json_bytes="base64")

    handle: JobHandle
    state: JobState
    cause: FailureCause | None = None
    exit_code: int | None = Field(default=None, description="Of the script; negative: killed by that signal.")
    to_be_continued: bool = Field(
        default=False, description="Its script was warned before the time limit: another run continues its work."
    )
    native_id: str | None = None
    queue_seconds: float | None = Field(default=None, description="Time between submission and start.")
    run_seconds: float | None = Field(default=None, description="Time between start and end.")
    nodes: int | None = Field(default=None, description="How many nodes it had.")
    node_list: str | None = Field(default=None, description="Their names, as the scheduler writes them.")
    node_hours: float | None = Field(default=None, description="Nodes times hours, as facilities charge for them.")
    peak_memory: int | None = Field(
        default=None,
        description="Bytes used by the largest task of any step; from Slurm's accounting, if it records this.",
    )
    cpu_efficiency: float | None = Field(
        default=None, description="CPU time divided by elapsed time and CPUs, 0 to 1; from Slurm's accounting."
    )
    stdout: str = Field(default="", description="Last lines, at most 4 KiB.")
    stderr: str = Field(default="", description="Last lines, at most 4 KiB.")
    console: str = Field(default="", description="Last lines of the scheduler's and psik's own logs.")
    outputs: dict[str, bytes] = Field(
        default_factory=dict, description="Small result files, by path in the job's directory."
    )
    message: str = Field(default="", description="What happened, in one sentence.")
    warnings: list[str] = Field(default_factory=list)

    @property
    def stamp(self) -> str:
        """Psik's id of the job."""
        return self.handle.stamp

    @property
    def path(self) -> str:
        """The job's directory at the facility."""
        return self.handle.path


class JobRecord(_Stored):
    """A job as the facility's records describe it."""

    handle: JobHandle
    state: JobState = Field(
        description="psik's last recorded state; a job that was killed may stay `active` forever."
    )
    created: float | None = Field(default=None, description="Unix time at the facility.")
    flow_run: str | None = Field(default=None, description="The flow run that submitted it.")
    root_flow_run: str | None = Field(default=None, description="The outermost flow run that contains it.")
    flow_runs: list[str] = Field(
        default_factory=list,
        description="All flow runs whose cancellation ends it: those that submitted it or found it again, and "
        "those that contain them.",
    )


class RemovedJob(_Stored):
    """A job whose directory was removed, or would be."""

    handle: JobHandle
    state: JobState
    ended: float | None = Field(default=None, description="Unix time at the facility.")
    kept: str | None = Field(default=None, description="Why it was not removed.")


class Verdict(StrEnum):
    """The verdict of a check."""

    ok = "ok"
    warning = "warning"
    failed = "failed"


class Check(_Stored):
    """One check made before a submission."""

    name: str = Field(description="What was checked.")
    verdict: Verdict = Field(description="failed: a job cannot be submitted, or cannot run.")
    message: str = Field(description="The finding, and what to do about it.")


class PreflightReport(_Stored):
    """All checks of a backend, in the order they were made."""

    backend: str = Field(description="The block's name, or its endpoint.")
    checks: list[Check] = Field(description="If a check fails, others may not have been made.")

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.verdict is Verdict.failed]

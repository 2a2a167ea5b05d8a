"""What is stored and passed around; its documents load for ever.

All names of jobs are here, too: until the next release they may be imported from here, and stored results of older
ones name this module for ever.
"""

from prefect_psik.models.jobs import (
    Check,
    JobHandle,
    JobRecord,
    JobResult,
    JobState,
    JobStatus,
    PreflightReport,
    RemovedJob,
    Verdict,
)

__all__ = [
    "Check",
    "JobHandle",
    "JobRecord",
    "JobResult",
    "JobState",
    "JobStatus",
    "PreflightReport",
    "RemovedJob",
    "Verdict",
]

"""Models that are stored and passed around; documents stored by any release can be loaded.

The models of jobs can also be imported from here until the next release. The names must stay even then: stored
results of older releases name this module.
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

"""Submit, await and cancel psik batch jobs from Prefect flows, through Globus Compute."""

import typing as _typing

from prefect_psik.blocks import BackendAttributes, GlobusCollection, PsikBackend
from prefect_psik.credentials import GlobusCredentials
from prefect_psik.exceptions import (
    BackendClosed,
    BackendNotFound,
    FacilityError,
    FacilitySetupError,
    FacilityTimeout,
    FailureCause,
    FlowRunCancelling,
    JobCanceled,
    JobError,
    JobFailed,
    KeyConflict,
    MissingOutput,
    PayloadTooLarge,
    PrefectPsikError,
    RemoteCodeError,
    SpecError,
    SubmitRejected,
    SyncCallError,
)
from prefect_psik.jobspec import JobSpec, ResourceSpec
from prefect_psik.models import JobHandle, JobResult, JobState, JobStatus

if _typing.TYPE_CHECKING:
    from prefect_psik.jobs import (
        acancel_job,
        apoll_job,
        arun_job,
        asubmit_job,
        await_for_job,
        cancel_job,
        poll_job,
        run_job,
        submit_job,
        wait_for_job,
    )

__all__ = [
    "BackendAttributes",
    "BackendClosed",
    "BackendNotFound",
    "FacilityError",
    "FacilitySetupError",
    "FacilityTimeout",
    "FailureCause",
    "FlowRunCancelling",
    "GlobusCollection",
    "GlobusCredentials",
    "JobCanceled",
    "JobError",
    "JobFailed",
    "JobHandle",
    "JobResult",
    "JobSpec",
    "JobState",
    "JobStatus",
    "KeyConflict",
    "MissingOutput",
    "PayloadTooLarge",
    "PrefectPsikError",
    "PsikBackend",
    "RemoteCodeError",
    "ResourceSpec",
    "SpecError",
    "SubmitRejected",
    "SyncCallError",
    "acancel_job",
    "apoll_job",
    "arun_job",
    "asubmit_job",
    "await_for_job",
    "cancel_job",
    "poll_job",
    "run_job",
    "submit_job",
    "wait_for_job",
]

_TASKS = frozenset(name for name in __all__ if name.endswith("_job"))


def __getattr__(name: str) -> _typing.Any:
    # The tasks bring Prefect's whole engine along, 0.3 s: they are loaded when first asked for.
    if name in _TASKS:
        from prefect_psik import jobs as _jobs

        return getattr(_jobs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

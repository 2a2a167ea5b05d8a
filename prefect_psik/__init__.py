"""Submit, await and cancel psik batch jobs from Prefect flows, through Globus Compute."""

import importlib as _importlib
import typing as _typing

from prefect_psik.blocks import BackendAttributes, GlobusCollection, PsikBackend
from prefect_psik.credentials import GlobusCredentials
from prefect_psik.exceptions import (
    BackendClosed,
    BackendNotFound,
    ContactLost,
    FacilityError,
    FacilitySetupError,
    FacilityTimeout,
    FailureCause,
    FlowRunCancelling,
    JobCanceled,
    JobError,
    JobFailed,
    JobInterrupted,
    JobLost,
    KeyConflict,
    LaunchFailed,
    MissingOutput,
    OutOfMemory,
    PayloadTooLarge,
    PrefectPsikError,
    PreflightFailed,
    QueueLimitReached,
    RemoteCodeError,
    RunLimitReached,
    ScriptFailed,
    SpecError,
    SubmitRejected,
    SyncCallError,
    WaitLimitReached,
    WalltimeExceeded,
)
from prefect_psik.jobspec import JobSpec, ResourceSpec
from prefect_psik.models import JobHandle, JobRecord, JobResult, JobState, JobStatus, PreflightReport, RemovedJob
from prefect_psik.retry import Growth

if _typing.TYPE_CHECKING:
    from prefect_psik.hooks import cancel_psik_jobs
    from prefect_psik.housekeeping import aclean_jobs, alist_jobs, clean_jobs, list_jobs
    from prefect_psik.jobs import (
        acancel_job,
        apoll_job,
        arun_job,
        arun_preflight,
        asubmit_job,
        await_for_job,
        cancel_job,
        poll_job,
        run_job,
        run_preflight,
        submit_job,
        wait_for_job,
    )
    from prefect_psik.limits import WaitLimits

__all__ = [
    "BackendAttributes",
    "BackendClosed",
    "BackendNotFound",
    "ContactLost",
    "FacilityError",
    "FacilitySetupError",
    "FacilityTimeout",
    "FailureCause",
    "FlowRunCancelling",
    "GlobusCollection",
    "GlobusCredentials",
    "Growth",
    "JobCanceled",
    "JobError",
    "JobFailed",
    "JobHandle",
    "JobInterrupted",
    "JobLost",
    "JobRecord",
    "JobResult",
    "JobSpec",
    "JobState",
    "JobStatus",
    "KeyConflict",
    "LaunchFailed",
    "MissingOutput",
    "OutOfMemory",
    "PayloadTooLarge",
    "PrefectPsikError",
    "PreflightFailed",
    "PreflightReport",
    "PsikBackend",
    "QueueLimitReached",
    "RemoteCodeError",
    "RemovedJob",
    "ResourceSpec",
    "RunLimitReached",
    "ScriptFailed",
    "SpecError",
    "SubmitRejected",
    "SyncCallError",
    "WaitLimitReached",
    "WaitLimits",
    "WalltimeExceeded",
    "acancel_job",
    "aclean_jobs",
    "alist_jobs",
    "apoll_job",
    "arun_job",
    "arun_preflight",
    "asubmit_job",
    "await_for_job",
    "cancel_job",
    "cancel_psik_jobs",
    "clean_jobs",
    "list_jobs",
    "poll_job",
    "run_job",
    "run_preflight",
    "submit_job",
    "wait_for_job",
]

#: What brings Prefect's whole engine along, 0.3 s, is loaded when first asked for: name -> module.
_LAZY = {name: "jobs" for name in __all__ if name.endswith(("_job", "_preflight"))}
_LAZY |= dict.fromkeys(("aclean_jobs", "alist_jobs", "clean_jobs", "list_jobs"), "housekeeping")
_LAZY |= {"WaitLimits": "limits", "cancel_psik_jobs": "hooks"}


def __getattr__(name: str) -> _typing.Any:
    if name in _LAZY:
        return getattr(_importlib.import_module(f"prefect_psik.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

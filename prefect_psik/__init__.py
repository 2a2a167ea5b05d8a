"""Submit, await and cancel psik batch jobs from Prefect flows, through Globus Compute."""

import importlib as _importlib
import typing as _typing

from prefect_psik.blocks import BackendAttributes, GlobusCollection, PsikBackend
from prefect_psik.credentials import GlobusCredentials
from prefect_psik.exceptions import (
    BackendClosed,
    BackendNotFound,
    ConsentRequired,
    ContactLost,
    FacilityError,
    FacilitySetupError,
    FacilityTimeout,
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
    PruneIncomplete,
    QueueLimitReached,
    RemoteCodeError,
    RunLimitReached,
    ScheduleError,
    ScriptFailed,
    SpecError,
    SubmitRejected,
    SyncCallError,
    TransferError,
    WaitLimitReached,
    WalltimeExceeded,
)
from prefect_psik.models.causes import FailureCause, TransferCause
from prefect_psik.models.jobs import (
    JobHandle,
    JobRecord,
    JobResult,
    JobState,
    JobStatus,
    PreflightReport,
    RemovedJob,
)
from prefect_psik.models.prunes import PruneFile, PruneReport, PruneVerdict, ScheduledPrune
from prefect_psik.models.transfers import FileEntry, TransferHandle, TransferResult, TransferState, TransferStatus
from prefect_psik.spec.expected import Expected
from prefect_psik.spec.jobspec import JobSpec
from prefect_psik.spec.resources import ResourceSpec
from prefect_psik.spec.retry import Growth

if _typing.TYPE_CHECKING:
    __version__: str
    from prefect_psik.cancel_hook import cancel_psik_jobs
    from prefect_psik.data.prune import aprune, prune
    from prefect_psik.data.schedule import aschedule_prune, schedule_prune
    from prefect_psik.data.tasks import (
        acancel_transfer,
        adelete_files,
        alist_files,
        arun_transfer,
        asubmit_transfer,
        await_for_transfer,
        cancel_transfer,
        delete_files,
        list_files,
        run_transfer,
        submit_transfer,
        wait_for_transfer,
    )
    from prefect_psik.jobs.inventory import aclean_jobs, alist_jobs, clean_jobs, list_jobs
    from prefect_psik.jobs.limits import WaitLimits
    from prefect_psik.jobs.tasks import (
        acancel_job,
        apoll_job,
        arun_job,
        arun_preflight,
        asubmit_job,
        await_for_job,
        await_for_start,
        cancel_job,
        poll_job,
        run_job,
        run_preflight,
        submit_job,
        wait_for_job,
        wait_for_start,
    )

__all__ = [
    "BackendAttributes",
    "BackendClosed",
    "BackendNotFound",
    "ConsentRequired",
    "ContactLost",
    "Expected",
    "FacilityError",
    "FacilitySetupError",
    "FacilityTimeout",
    "FailureCause",
    "FileEntry",
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
    "PruneFile",
    "PruneIncomplete",
    "PruneReport",
    "PruneVerdict",
    "PsikBackend",
    "QueueLimitReached",
    "RemoteCodeError",
    "RemovedJob",
    "ResourceSpec",
    "RunLimitReached",
    "ScheduleError",
    "ScheduledPrune",
    "ScriptFailed",
    "SpecError",
    "SubmitRejected",
    "SyncCallError",
    "TransferCause",
    "TransferError",
    "TransferHandle",
    "TransferResult",
    "TransferState",
    "TransferStatus",
    "WaitLimitReached",
    "WaitLimits",
    "WalltimeExceeded",
    "acancel_job",
    "acancel_transfer",
    "aclean_jobs",
    "adelete_files",
    "alist_files",
    "alist_jobs",
    "apoll_job",
    "aprune",
    "arun_job",
    "arun_preflight",
    "arun_transfer",
    "aschedule_prune",
    "asubmit_job",
    "asubmit_transfer",
    "await_for_job",
    "await_for_start",
    "await_for_transfer",
    "cancel_job",
    "cancel_psik_jobs",
    "cancel_transfer",
    "clean_jobs",
    "delete_files",
    "list_files",
    "list_jobs",
    "poll_job",
    "prune",
    "run_job",
    "run_preflight",
    "run_transfer",
    "schedule_prune",
    "submit_job",
    "submit_transfer",
    "wait_for_job",
    "wait_for_start",
    "wait_for_transfer",
]

# Stored results name the place of their class: the public one, so that a class can move.
for _name in __all__:
    if isinstance(_public := globals().get(_name), type):
        _public.__module__ = __name__

#: What brings Prefect's whole engine along, 0.3 s, is loaded when first asked for: name -> module.
_LAZY = {name: "jobs.tasks" for name in __all__ if name.endswith(("_job", "_preflight", "_for_start"))}
_LAZY |= dict.fromkeys(("aclean_jobs", "alist_jobs", "clean_jobs", "list_jobs"), "jobs.inventory")
_LAZY |= {name: "data.tasks" for name in __all__ if name.endswith(("_transfer", "_files"))}
_LAZY |= dict.fromkeys(("aprune", "prune"), "data.prune")
_LAZY |= dict.fromkeys(("aschedule_prune", "schedule_prune"), "data.schedule")
_LAZY |= {"WaitLimits": "jobs.limits", "cancel_psik_jobs": "cancel_hook"}


def __getattr__(name: str) -> _typing.Any:
    if name == "__version__":  # the one place is pyproject.toml
        return _importlib.import_module("importlib.metadata").version("prefect-psik")
    if name in _LAZY:
        return getattr(_importlib.import_module(f"prefect_psik.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

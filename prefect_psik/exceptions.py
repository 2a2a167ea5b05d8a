"""The tree of errors, and the causes for which a job can end badly.

    PrefectPsikError
    ├── SpecError              what a person typed: fix the job spec, the block or the call
    ├── BackendNotFound        no block of that name: use one of those that exist
    ├── BackendClosed          the block does not accept jobs now: wait, or use another backend
    ├── KeyConflict            this key already belongs to another job: choose another key
    ├── SyncCallError          a sync task was called on a running event loop: await its async twin
    ├── FacilityError          trouble at the facility or on the way to it: fix it, or wait
    │   ├── FacilityTimeout    no answer in time; the call may or may not have been carried out
    │   ├── FacilitySetupError psik, the prefix or the endpoint is not set up as it must be
    │   ├── PreflightFailed    a check before the submission failed; holds the report of all checks
    │   ├── PayloadTooLarge    too much for the wire: use Globus Transfer
    │   └── RemoteCodeError    our code at the facility failed, or its answer for this job is malformed
    ├── SubmitRejected         the facility refused the job and said why; nothing was submitted
    ├── WaitLimitReached       a time limit of the wait has passed; the job was left or canceled, as asked
    │   ├── QueueLimitReached  it is still queued, or the queue is full: try another facility
    │   ├── RunLimitReached    it is still running
    │   └── ContactLost        the endpoint or the scheduler has not answered for too long
    ├── FlowRunCancelling      the flow run is being cancelled; says whether its work was asked to stop
    ├── TransferError          data was not moved, listed or deleted: see its ``cause``
    │   └── ConsentRequired    a consent is missing: the message says who can give it
    ├── PruneIncomplete        some files were kept: the check is not proven to hold them; holds the report
    ├── ScheduleError          the prune was not scheduled: nothing will be deleted
    └── JobError               the job ended, but did not succeed
        ├── JobFailed          see its ``cause``
        │   ├── ScriptFailed       its own exit code: fix the script or its input
        │   ├── MissingOutput      the script succeeded, but files that it should have written are missing
        │   ├── WalltimeExceeded   ask for a longer duration
        │   ├── OutOfMemory        ask for more memory
        │   ├── JobInterrupted     the facility took its nodes: the same job may succeed on another try
        │   ├── LaunchFailed       the script never began: fix the backend or its environment
        │   └── JobLost            how it ended is unknown: check what it did before you run it again
        └── JobCanceled        by us or by somebody else, see its ``cause``

Every message is one or more sentences that say what failed, where, and what to do next. ``transient`` means that
the same call may succeed later. All of these errors can be pickled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_psik.models.causes import FailureCause, TransferCause
from prefect_psik.plain_text import plain

if TYPE_CHECKING:
    from prefect_psik.models.jobs import JobHandle, JobResult, PreflightReport
    from prefect_psik.models.prunes import PruneReport


class PrefectPsikError(Exception):
    """Root of all errors of this package.

    Args:
        message: One or more whole sentences: what, where, what next.
        transient: The same call may succeed later without any change.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(plain(message))
        self.transient = transient

    @property
    def message(self) -> str:
        """The sentence that `str()` gives."""
        return str(self)


class SpecError(PrefectPsikError, ValueError):
    """Something that a person typed cannot be used; nothing was submitted."""


class BackendNotFound(PrefectPsikError):
    """There is no `psik-backend` block of that name."""


class BackendClosed(PrefectPsikError):
    """The backend's block has `accept_jobs` off; its note says why."""


class KeyConflict(PrefectPsikError):
    """The same idempotency key was used before for a job with another spec.

    Args:
        message: What, where, what next.
        transient: Never.
        stored: The other job's spec, as canonical JSON.
    """

    def __init__(self, message: str, *, transient: bool = False, stored: str = "") -> None:
        super().__init__(message, transient=transient)
        self.stored = stored


class SyncCallError(PrefectPsikError):
    """A sync task was called on a running event loop, which it would block."""


class FacilityError(PrefectPsikError):
    """Trouble at the facility, or on the way to it; says nothing about the job's outcome."""


class FacilityTimeout(FacilityError):
    """No answer within the time limit; the call may have been carried out, and can be repeated."""

    def __init__(self, message: str, *, transient: bool = True) -> None:
        super().__init__(message, transient=transient)


class FacilitySetupError(FacilityError):
    """psik, the prefix or the endpoint is not set up as it must be."""


class PreflightFailed(FacilityError):
    """A check before the submission failed; nothing was submitted.

    Args:
        message: Which checks, and what to do.
        transient: Never: checks that can pass on another try were repeated already.
        report: All checks.
    """

    def __init__(self, message: str, *, transient: bool = False, report: PreflightReport | None = None) -> None:
        super().__init__(message, transient=transient)
        self.report = report


class PayloadTooLarge(FacilityError):
    """The call or its answer is larger than the wire allows."""


class RemoteCodeError(FacilityError):
    """Our own code failed at the facility with an unexpected error.

    Args:
        message: What, where, what next.
        transient: The same call may succeed later.
        remote_traceback: The traceback from the facility, as text.
    """

    def __init__(self, message: str, *, transient: bool = False, remote_traceback: str = "") -> None:
        super().__init__(message, transient=transient)
        self.remote_traceback = remote_traceback


class SubmitRejected(PrefectPsikError):
    """The facility refused the job; nothing was submitted and nothing was left behind."""

    cause = FailureCause.rejected


class FlowRunCancelling(PrefectPsikError):
    """The waiting flow run is being cancelled; its jobs and transfers were asked to stop."""


class TransferError(PrefectPsikError):
    """Data was not moved, listed or deleted.

    Args:
        message: What, where, what next.
        transient: The same call, or a retry of the task, may succeed later: an endpoint did not answer in time.
        cause: Why.
    """

    def __init__(
        self, message: str, *, transient: bool = False, cause: TransferCause = TransferCause.other
    ) -> None:
        super().__init__(message, transient=transient)
        self.cause = cause


class ConsentRequired(TransferError):
    """A collection asks for a consent that the login does not have.

    Args:
        message: What, where, and who can give the consent; for a person also the command.
        transient: Never.
        cause: `consent`.
        scopes: The scopes that need consent.
    """

    def __init__(
        self,
        message: str,
        *,
        transient: bool = False,
        cause: TransferCause = TransferCause.consent,
        scopes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, transient=transient, cause=cause)
        self.scopes = scopes


class PruneIncomplete(PrefectPsikError):
    """Some files were kept: the check collection is not proven to hold them. The others are deleted.

    Args:
        message: Which files, why, what next.
        transient: Never.
        report: The report on all files.
    """

    def __init__(self, message: str, *, transient: bool = False, report: PruneReport | None = None) -> None:
        super().__init__(message, transient=transient)
        self.report = report


class ScheduleError(PrefectPsikError):
    """A flow run was not scheduled, or Prefect does not know it; nothing will happen at that time."""


class WaitLimitReached(PrefectPsikError):
    """A time limit of the wait has passed; says whether the job was left alone, canceled, or not submitted.

    Args:
        message: What, where, what next.
        transient: Never.
        handle: The job's handle, to wait for it again or to cancel it; None if the queue was full and it was not
            submitted.
    """

    def __init__(self, message: str, *, transient: bool = False, handle: JobHandle | None = None) -> None:
        super().__init__(message, transient=transient)
        self.handle = handle


class QueueLimitReached(WaitLimitReached):
    """The job is still queued; or the queue was full, so that it was not submitted and `handle` is None."""


class RunLimitReached(WaitLimitReached):
    """The job is still running."""


class ContactLost(WaitLimitReached):
    """The endpoint or the scheduler has not answered for too long; the job's present state is unknown."""


class JobError(PrefectPsikError):
    """A job ended, but did not succeed.

    Args:
        message: What, where, what next, with the last lines of the logs.
        transient: Submitting the same job again may succeed.
        result: Everything known about the job at its end.
    """

    def __init__(self, message: str, *, transient: bool = False, result: JobResult | None = None) -> None:
        super().__init__(message, transient=transient)
        self.result = result

    @property
    def cause(self) -> FailureCause | None:
        """Why the job ended this way."""
        return self.result.cause if self.result else None

    @property
    def stamp(self) -> str | None:
        """Psik's id of the job."""
        return self.result.handle.stamp if self.result else None

    @property
    def native_id(self) -> str | None:
        """The scheduler's id."""
        return self.result.native_id if self.result else None

    @property
    def backend(self) -> str | None:
        """Name of the block that submitted the job, if it was a saved one."""
        return self.result.handle.backend if self.result else None

    @property
    def path(self) -> str | None:
        """The job's directory at the facility."""
        return self.result.handle.path if self.result else None

    @property
    def next_step(self) -> str:
        """What to do next, as a sentence."""
        return next_step(self.result) if self.result else ""


class JobFailed(JobError):
    """The job failed; `cause` and `result.exit_code` say how."""


class ScriptFailed(JobFailed):
    """The script ended with an exit code of its own, or was killed by a signal of its own."""


class MissingOutput(JobFailed):
    """The script succeeded, but what `expect` or `outputs` name is missing, empty, or older than the run."""


class WalltimeExceeded(JobFailed):
    """The job was stopped at its time limit."""


class OutOfMemory(JobFailed):
    """The job went over its memory limit."""


class JobInterrupted(JobFailed):
    """A node failed, or a job of higher priority took its nodes; not the job's own fault."""


class LaunchFailed(JobFailed):
    """The script could not start: psik, its Python or a directory is not usable on the node."""


class JobLost(JobFailed):
    """How the job ended is unknown; it may or may not have done its work."""


class JobCanceled(JobError):
    """The job was canceled, by us or from outside; `cause` says which."""


#: Cause -> error; any other cause is a `JobFailed`.
ERRORS: dict[FailureCause | None, type[JobError]] = {
    FailureCause.script: ScriptFailed,
    FailureCause.missing_output: MissingOutput,
    FailureCause.walltime: WalltimeExceeded,
    FailureCause.out_of_memory: OutOfMemory,
    FailureCause.node_failure: JobInterrupted,
    FailureCause.preempted: JobInterrupted,
    FailureCause.launch: LaunchFailed,
    FailureCause.lost: JobLost,
    FailureCause.canceled_by_us: JobCanceled,
    FailureCause.canceled_outside: JobCanceled,
}

#: Cause -> what to do next.
NEXT_STEPS: dict[FailureCause, str] = {
    FailureCause.script: "Read the last lines of its logs, fix the script or its input, and retry.",
    FailureCause.missing_output: "Check the job's directory, then fix the script or what expect and outputs name.",
    FailureCause.walltime: "Ask for a longer duration.",
    FailureCause.out_of_memory: "Ask for more memory.",
    FailureCause.node_failure: "Retry.",
    FailureCause.preempted: "Retry.",
    FailureCause.deadline: "Set a later deadline, or ask for a shorter duration.",
    FailureCause.launch: "Read its console log, then fix the backend or its environment.",
    FailureCause.lost: "Check the job's directory to see what it did, then retry.",
    FailureCause.canceled_outside: "Ask who canceled it, then retry.",
}


def next_step(result: JobResult) -> str:
    """What to do after a job that did not complete, as a sentence; empty if there is nothing to say."""
    if result.to_be_continued:
        return "Run it again, with retry_on={'walltime'} or by hand: it continues from what it saved."
    return NEXT_STEPS.get(result.cause, "") if result.cause else ""

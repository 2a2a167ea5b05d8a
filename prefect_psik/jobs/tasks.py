"""TASKS: submit, await, poll and cancel psik jobs; each as a sync task and its async twin.

The work itself is done by coroutines on the session's loop, the same for both twins. A sync task waits for
them in slices, so that a signal gets through; an async task awaits them.
"""

from __future__ import annotations

from collections.abc import Collection

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run

from prefect_psik.exceptions import SpecError
from prefect_psik.flow_run.both import aresult, refuse_running_loop, result
from prefect_psik.flow_run.cancellation import OnCancel
from prefect_psik.flow_run.connect import ablock_of, block_of
from prefect_psik.flow_run.load import (
    BackendLike,
    HandleLike,
    SpecLike,
    aload_backend,
    backend_name,
    load_backend,
    resolve_handle,
    resolve_spec,
)
from prefect_psik.jobs import submit, wait
from prefect_psik.jobs.limits import WaitLimits
from prefect_psik.jobs.place_waits import PlaceWait
from prefect_psik.jobs.preflight import unusable
from prefect_psik.jobs.report import atell_preflight, tell_preflight
from prefect_psik.jobs.submit import Rerun, Submission
from prefect_psik.models.causes import FailureCause
from prefect_psik.models.jobs import JobHandle, JobResult, JobStatus, PreflightReport
from prefect_psik.spec.jobspec import JobSpec
from prefect_psik.spec.retry import Growth, RetryRule

_NO_LIMITS = WaitLimits()


# Every task here has an effect or reads a state that changes: a cached result would be wrong.


def _submit_name() -> str:
    parameters = task_run.parameters
    spec = parameters.get("spec")
    return f"{task_run.task_name} {spec.name if isinstance(spec, JobSpec) else spec}"


@task(name="submit psik job", task_run_name=_submit_name, cache_policy=NO_CACHE)
def submit_job(
    backend: BackendLike | None,
    spec: SpecLike,
    *,
    key: str | None = None,
    rerun: Rerun = "on_retry",
    on_cancel: OnCancel = "cancel",
    limits: WaitLimits | None = None,
) -> JobHandle:
    """Submit a job once, and return as soon as it is in the queue.

    A normal return means that the job is recorded at the facility and handed to its scheduler. A task
    retry, a flow retry or a second process with the same key gets the same job back. If the limit on the number
    of jobs in the queue is reached (Slurm's MaxSubmitJobs), the task waits for a place.

    Args:
        backend: A `psik-backend` block or its name; None: the one that the spec names.
        spec: A `JobSpec`, or the path of a `job.yaml`.
        key: Idempotency key, such as a scan number: it identifies one job under the backend's prefix,
            whoever submits it. Default: made from the flow run and the spec; random outside of a flow run.
        rerun: `on_retry`: a retry of the task or flow runs a failed or canceled job again, as the next
            run of the same job. `never`: the retry gets the failed or canceled job back.
        on_cancel: `leave`: cancelling the flow run, also through its hook `cancel_psik_jobs`, leaves the job
            alone.
        limits: How long to wait for a place in a full queue (`queue`), and how long without an answer while
            waiting for it (`trouble`); None: no limits.

    Returns:
        The handle, with which any process can find the job again.

    Raises:
        SpecError: The spec or the key is not usable.
        BackendNotFound: There is no block of that name.
        BackendClosed: The block does not accept jobs.
        KeyConflict: The key belongs to a job with a different spec.
        SubmitRejected: The facility refused the job; quotes its reason.
        WaitLimitReached: A limit was reached before there was a place in the queue; says whether the job may
            have been submitted anyway.
        FlowRunCancelling: The flow run is being cancelled.
        FacilityError: Something failed at the facility or on the way there.
    """
    refuse_running_loop("asubmit_job")
    spec = resolve_spec(spec)
    block = load_backend(backend_name(backend, spec))
    submission = Submission.of(block, spec, key=key, rerun=rerun, on_cancel=on_cancel)
    return submit.submit(submission, wait=PlaceWait(limits))


@task(name="submit psik job", task_run_name=_submit_name, cache_policy=NO_CACHE)
async def asubmit_job(
    backend: BackendLike | None,
    spec: SpecLike,
    *,
    key: str | None = None,
    rerun: Rerun = "on_retry",
    on_cancel: OnCancel = "cancel",
    limits: WaitLimits | None = None,
) -> JobHandle:
    """Async twin of `submit_job`."""
    spec = resolve_spec(spec)
    block = await aload_backend(backend_name(backend, spec))
    submission = Submission.of(block, spec, key=key, rerun=rerun, on_cancel=on_cancel)
    return await submit.asubmit(submission, wait=PlaceWait(limits))


@task(name="wait for psik job", cache_policy=NO_CACHE)
def wait_for_job(
    handle: HandleLike,
    *,
    backend: BackendLike | None = None,
    on_cancel: OnCancel = "cancel",
    limits: WaitLimits | None = None,
) -> JobResult:
    """Wait until a job is final.

    Args:
        handle: From `submit_job`, in any process and at any later time; its JSON is accepted, too.
        backend: A block with the login, if the handle's own block no longer exists or has another login.
        on_cancel: What cancelling the flow run does to the job. A crash, a redeploy or Ctrl-C always
            leaves it running, to be found again.
        limits: How long to wait in the queue, during the run, and without an answer; None: no limits.

    Returns:
        The result of a completed job: a normal return means that the job's script ended with 0 and that
        everything that `expect` and `outputs` name exists.

    Raises:
        JobFailed: The job failed; `cause` and `result` say how.
        MissingOutput: The script succeeded, but some of its expected output is missing.
        JobCanceled: The job was canceled, by us or from outside.
        WaitLimitReached: A limit was reached.
        FlowRunCancelling: The flow run is being cancelled.
        FacilityError: A fault that waiting will not fix; says nothing about the job.
    """
    refuse_running_loop("await_for_job")
    handle = resolve_handle(handle)
    return wait.wait(handle, block_of(handle, backend), on_cancel, limits or _NO_LIMITS)


@task(name="wait for psik job", cache_policy=NO_CACHE)
async def await_for_job(
    handle: HandleLike,
    *,
    backend: BackendLike | None = None,
    on_cancel: OnCancel = "cancel",
    limits: WaitLimits | None = None,
) -> JobResult:
    """Async twin of `wait_for_job`."""
    handle = resolve_handle(handle)
    return await wait.await_(handle, await ablock_of(handle, backend), on_cancel, limits or _NO_LIMITS)


@task(name="wait for start of psik job", cache_policy=NO_CACHE)
def wait_for_start(
    handle: HandleLike,
    *,
    backend: BackendLike | None = None,
    on_cancel: OnCancel = "cancel",
    limits: WaitLimits | None = None,
) -> JobStatus:
    """Wait until a job starts: for a service that is used while it runs, or to see which of several starts first.

    After this returns, nothing waits for the job: give the flow the hook `cancel_psik_jobs`, or wait for its end.

    Args:
        handle: See `wait_for_job`.
        backend: See `wait_for_job`.
        on_cancel: See `wait_for_job`.
        limits: See `wait_for_job`; `run` has no effect.

    Returns:
        The job's status: active, or final if it has already ended, in whatever way.

    Raises:
        WaitLimitReached: A limit was reached.
        FlowRunCancelling: The flow run is being cancelled.
        FacilityError: A fault that waiting will not fix; says nothing about the job.
    """
    refuse_running_loop("await_for_start")
    handle = resolve_handle(handle)
    return wait.wait_for_start(handle, block_of(handle, backend), on_cancel, limits or _NO_LIMITS)


@task(name="wait for start of psik job", cache_policy=NO_CACHE)
async def await_for_start(
    handle: HandleLike,
    *,
    backend: BackendLike | None = None,
    on_cancel: OnCancel = "cancel",
    limits: WaitLimits | None = None,
) -> JobStatus:
    """Async twin of `wait_for_start`."""
    handle = resolve_handle(handle)
    block = await ablock_of(handle, backend)
    return await wait.await_for_start(handle, block, on_cancel, limits or _NO_LIMITS)


@task(name="poll psik job", cache_policy=NO_CACHE)
def poll_job(handle: HandleLike, *, backend: BackendLike | None = None) -> JobStatus:
    """Poll a job once.

    Args:
        handle: From `submit_job`; its JSON is accepted, too.
        backend: A block with the login, if the handle's own block no longer exists or has another login.

    Raises:
        FacilityError: Something failed at the facility or on the way there.
    """
    refuse_running_loop("apoll_job")
    handle = resolve_handle(handle)
    return result(wait.look(handle, block_of(handle, backend)))


@task(name="poll psik job", cache_policy=NO_CACHE)
async def apoll_job(handle: HandleLike, *, backend: BackendLike | None = None) -> JobStatus:
    """Async twin of `poll_job`."""
    handle = resolve_handle(handle)
    return await aresult(wait.look(handle, await ablock_of(handle, backend)))


@task(name="cancel psik job", cache_policy=NO_CACHE)
def cancel_job(handle: HandleLike, *, backend: BackendLike | None = None) -> JobStatus:
    """Cancel a job, and return when it has ended; a job that had already ended keeps its final state.

    Args:
        handle: From `submit_job`; its JSON is accepted, too.
        backend: A block with the login, if the handle's own block no longer exists or has another login.

    Raises:
        FacilityError: It could not be canceled; it may still be running.
    """
    refuse_running_loop("acancel_job")
    handle = resolve_handle(handle)
    return result(wait.cancel(handle, block_of(handle, backend)))


@task(name="cancel psik job", cache_policy=NO_CACHE)
async def acancel_job(handle: HandleLike, *, backend: BackendLike | None = None) -> JobStatus:
    """Async twin of `cancel_job`."""
    handle = resolve_handle(handle)
    return await aresult(wait.cancel(handle, await ablock_of(handle, backend)))


@task(name="run psik job", task_run_name=_submit_name, cache_policy=NO_CACHE)
def run_job(
    backend: BackendLike | None,
    spec: SpecLike,
    *,
    key: str | None = None,
    rerun: Rerun = "on_retry",
    on_cancel: OnCancel = "cancel",
    limits: WaitLimits | None = None,
    retry_on: Collection[FailureCause | str] = (),
    growth: Growth | None = None,
    max_runs: int = 3,
    preflight: bool = False,
) -> JobResult:
    """Submit a job and wait until it is final: `submit_job` and `wait_for_job` in one task.

    Args:
        backend: A `psik-backend` block or its name; None: the one that the spec names.
        spec: A `JobSpec`, or the path of a `job.yaml`.
        key: See `submit_job`.
        rerun: See `submit_job`.
        on_cancel: See `wait_for_job`.
        limits: See `wait_for_job`.
        retry_on: Failure causes to retry, such as `{FailureCause.node_failure}`: the job is run again at once,
            within this task. The logs of earlier runs are kept.
        growth: How much more walltime or memory the next run gets after `walltime` or `out_of_memory`.
        max_runs: Maximum number of runs within one attempt of this task.
        preflight: Do the checks of `run_preflight` first, and submit nothing if one fails.

    Returns:
        The result of a completed job.

    Raises:
        PreflightFailed: A check failed.
        PrefectPsikError: Anything that `submit_job` and `wait_for_job` raise.
    """
    refuse_running_loop("arun_job")
    spec = resolve_spec(spec)
    retry = RetryRule.of(retry_on, growth, max_runs)
    block = load_backend(backend_name(backend, spec))
    if preflight:
        wait.passed(result(wait.check(block, spec)))
    submission = Submission.of(block, spec, key=key, rerun=rerun, on_cancel=on_cancel)
    return wait.run(submission, limits or _NO_LIMITS, retry)


@task(name="run psik job", task_run_name=_submit_name, cache_policy=NO_CACHE)
async def arun_job(
    backend: BackendLike | None,
    spec: SpecLike,
    *,
    key: str | None = None,
    rerun: Rerun = "on_retry",
    on_cancel: OnCancel = "cancel",
    limits: WaitLimits | None = None,
    retry_on: Collection[FailureCause | str] = (),
    growth: Growth | None = None,
    max_runs: int = 3,
    preflight: bool = False,
) -> JobResult:
    """Async twin of `run_job`."""
    spec = resolve_spec(spec)
    retry = RetryRule.of(retry_on, growth, max_runs)
    block = await aload_backend(backend_name(backend, spec))
    if preflight:
        wait.passed(await aresult(wait.check(block, spec)))
    submission = Submission.of(block, spec, key=key, rerun=rerun, on_cancel=on_cancel)
    return await wait.arun(submission, limits or _NO_LIMITS, retry)


@task(name="preflight of psik backend", cache_policy=NO_CACHE)
def run_preflight(backend: BackendLike, spec: SpecLike | None = None) -> PreflightReport:
    """Check before submitting whether a job could work: endpoint, versions, prefix, scheduler, resources.

    Submits nothing. The run gets a table artifact with all checks.

    Args:
        backend: A `psik-backend` block or its name.
        spec: The job whose resources the scheduler is asked about, or the path of its `job.yaml`; None: the
            backend's defaults.

    Returns:
        All checks; none of them failed.

    Raises:
        PreflightFailed: A check failed; its `report` has all checks.
        BackendNotFound: There is no block of that name.
    """
    refuse_running_loop("arun_preflight")
    resolved = None if spec is None else resolve_spec(spec)
    try:
        report = result(wait.check(load_backend(backend), resolved))
    except SpecError as err:  # of the block: a preflight itself raises none
        report = unusable(str(backend), err)
    tell_preflight(report)
    return wait.passed(report)


@task(name="preflight of psik backend", cache_policy=NO_CACHE)
async def arun_preflight(backend: BackendLike, spec: SpecLike | None = None) -> PreflightReport:
    """Async twin of `run_preflight`."""
    resolved = None if spec is None else resolve_spec(spec)
    try:
        report = await aresult(wait.check(await aload_backend(backend), resolved))
    except SpecError as err:  # of the block: a preflight itself raises none
        report = unusable(str(backend), err)
    await atell_preflight(report)
    return wait.passed(report)

"""TASKS: submit, await, poll and cancel psik jobs; each as a sync task and its async twin.

The work itself is done by coroutines on the session's loop, the same for both twins. A sync task waits for
them in slices, so that a signal gets through; an async task awaits them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Literal, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run

from prefect_psik import cancellation, lifecycle
from prefect_psik.blocks import PsikBackend
from prefect_psik.cancellation import INTERRUPTS, OnCancel, Wait, owner_of
from prefect_psik.exceptions import SyncCallError
from prefect_psik.identity import current_caller, enclosing_flow_runs, identify
from prefect_psik.jobspec import JobSpec
from prefect_psik.lifecycle import Submitted
from prefect_psik.models import JobHandle, JobResult, JobStatus
from prefect_psik.progress import Reporter, run_logger
from prefect_psik.resolve import (
    BackendLike,
    HandleLike,
    SpecLike,
    aload_backend,
    backend_name,
    load_backend,
    needs_block,
    resolve_handle,
    resolve_spec,
    transport_to,
)
from prefect_psik.session import Channel, Session, Update

T = TypeVar("T")

Rerun = Literal["on_retry", "never"]

#: A sync wait looks up this often, so that a signal is noticed.
SLICE_SECONDS = 0.5
#: After an interrupt, Prefect kills the process after 30 s.
INTERRUPT_SECONDS = 25.0


# Every task here has an effect or looks at the world: a cached result would be wrong.


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
) -> JobHandle:
    """Submit a job once, and return at once.

    A normal return means that the job is recorded at the facility and handed to its scheduler. A task
    retry, a flow retry or a second process with the same key gets the same job back.

    Args:
        backend: A `psik-backend` block or its name; None: the one that the spec names.
        spec: A `JobSpec`, or the path of a `job.yaml`.
        key: Idempotency key, such as a scan number: it stands for one job under the backend's prefix,
            whoever submits it. Default: made from the flow run and the spec; random outside of a flow run.
        rerun: `on_retry`: a retry of the task or flow runs a failed or canceled job again, as the next
            run of the same job. `never`: it gets that job back.

    Returns:
        The handle by which the job is found again, from any process.

    Raises:
        SpecError: The spec or the key is not usable.
        BackendNotFound: No block of that name.
        BackendClosed: The block does not accept jobs.
        KeyConflict: The key stands for a job with another spec.
        SubmitRejected: The facility refused the job, with its words.
        FacilityError: Trouble on the way or there.
    """
    _refuse_running_loop("asubmit_job")
    spec = resolve_spec(spec)
    return _submit(load_backend(backend_name(backend, spec)), spec, key, rerun, "cancel")


@task(name="submit psik job", task_run_name=_submit_name, cache_policy=NO_CACHE)
async def asubmit_job(
    backend: BackendLike | None,
    spec: SpecLike,
    *,
    key: str | None = None,
    rerun: Rerun = "on_retry",
) -> JobHandle:
    """Async twin of `submit_job`."""
    spec = resolve_spec(spec)
    block = await aload_backend(backend_name(backend, spec))
    return await _asubmit(block, spec, key, rerun, "cancel")


@task(name="wait for psik job", cache_policy=NO_CACHE)
def wait_for_job(
    handle: HandleLike, *, backend: BackendLike | None = None, on_cancel: OnCancel = "cancel"
) -> JobResult:
    """Wait until a job is final.

    Args:
        handle: From `submit_job`, from any process or day; also as its JSON.
        backend: A block with the login, if the handle's own block is gone or has another one.
        on_cancel: What a cancel of the flow run does to the job. A crash, a redeploy or Ctrl-C always
            leaves it running, to be found again.

    Returns:
        The result of a completed job: a normal return means that the job's script ended with 0 and that
        all of `expect` and `outputs` is there.

    Raises:
        JobFailed: It failed; `cause` and `result` say how.
        MissingOutput: It ended well, but what it promised is not there.
        JobCanceled: It was canceled, by us or from outside.
        FlowRunCancelling: The flow run is being cancelled.
        FacilityError: Trouble that will not pass by itself; says nothing about the job.
    """
    _refuse_running_loop("await_for_job")
    handle = resolve_handle(handle)
    return _wait(handle, _block_of(handle, backend), on_cancel)


@task(name="wait for psik job", cache_policy=NO_CACHE)
async def await_for_job(
    handle: HandleLike, *, backend: BackendLike | None = None, on_cancel: OnCancel = "cancel"
) -> JobResult:
    """Async twin of `wait_for_job`."""
    handle = resolve_handle(handle)
    return await _await(handle, await _ablock_of(handle, backend), on_cancel)


@task(name="poll psik job", cache_policy=NO_CACHE)
def poll_job(handle: HandleLike, *, backend: BackendLike | None = None) -> JobStatus:
    """Look at a job once.

    Args:
        handle: From `submit_job`; also as its JSON.
        backend: A block with the login, if the handle's own block is gone or has another one.

    Raises:
        FacilityError: Trouble on the way or there.
    """
    _refuse_running_loop("apoll_job")
    handle = resolve_handle(handle)
    return _result(_look(handle, _block_of(handle, backend)))


@task(name="poll psik job", cache_policy=NO_CACHE)
async def apoll_job(handle: HandleLike, *, backend: BackendLike | None = None) -> JobStatus:
    """Async twin of `poll_job`."""
    handle = resolve_handle(handle)
    return await _aresult(_look(handle, await _ablock_of(handle, backend)))


@task(name="cancel psik job", cache_policy=NO_CACHE)
def cancel_job(handle: HandleLike, *, backend: BackendLike | None = None) -> JobStatus:
    """Cancel a job, and return when it has ended; a job that had already ended keeps its end.

    Args:
        handle: From `submit_job`; also as its JSON.
        backend: A block with the login, if the handle's own block is gone or has another one.

    Raises:
        FacilityError: It could not be canceled; it may still be running.
    """
    _refuse_running_loop("acancel_job")
    handle = resolve_handle(handle)
    return _result(_cancel(handle, _block_of(handle, backend)))


@task(name="cancel psik job", cache_policy=NO_CACHE)
async def acancel_job(handle: HandleLike, *, backend: BackendLike | None = None) -> JobStatus:
    """Async twin of `cancel_job`."""
    handle = resolve_handle(handle)
    return await _aresult(_cancel(handle, await _ablock_of(handle, backend)))


@task(name="run psik job", task_run_name=_submit_name, cache_policy=NO_CACHE)
def run_job(
    backend: BackendLike | None,
    spec: SpecLike,
    *,
    key: str | None = None,
    rerun: Rerun = "on_retry",
    on_cancel: OnCancel = "cancel",
) -> JobResult:
    """Submit a job and wait until it is final: `submit_job` and `wait_for_job` in one task.

    Args:
        backend: A `psik-backend` block or its name; None: the one that the spec names.
        spec: A `JobSpec`, or the path of a `job.yaml`.
        key: See `submit_job`.
        rerun: See `submit_job`.
        on_cancel: See `wait_for_job`.

    Returns:
        The result of a completed job.

    Raises:
        PrefectPsikError: All that `submit_job` and `wait_for_job` raise.
    """
    _refuse_running_loop("arun_job")
    spec = resolve_spec(spec)
    block = load_backend(backend_name(backend, spec))
    return _wait(_submit(block, spec, key, rerun, on_cancel), block, on_cancel)


@task(name="run psik job", task_run_name=_submit_name, cache_policy=NO_CACHE)
async def arun_job(
    backend: BackendLike | None,
    spec: SpecLike,
    *,
    key: str | None = None,
    rerun: Rerun = "on_retry",
    on_cancel: OnCancel = "cancel",
) -> JobResult:
    """Async twin of `run_job`."""
    spec = resolve_spec(spec)
    block = await aload_backend(backend_name(backend, spec))
    return await _await(await _asubmit(block, spec, key, rerun, on_cancel), block, on_cancel)


# ------------------------------------------------------------------------------------- shared by the twins


def _begin_submit(block: PsikBackend, spec: JobSpec, key: str | None, rerun: Rerun) -> Future[Submitted]:
    block.check_open()
    identity = identify(spec, endpoint=block.endpoint, prefix=block.prefix, key=key, caller=current_caller())
    owner = owner_of(enclosing_flow_runs())

    async def work(channel: Channel) -> Submitted:
        return await lifecycle.submit(channel, block, spec, identity, rerun=rerun == "on_retry", owner=owner)

    return Session.current().on_channel(block.get_transport(), block.prefix, block.poll_interval_seconds, work)


def _submit(block: PsikBackend, spec: JobSpec, key: str | None, rerun: Rerun, on_cancel: OnCancel) -> JobHandle:
    submission = _begin_submit(block, spec, key, rerun)
    try:
        return _told(_result(submission))
    except INTERRUPTS:
        concurrent.futures.wait([_interrupted_submit(submission, block, on_cancel)], timeout=INTERRUPT_SECONDS)
        raise


async def _asubmit(
    block: PsikBackend, spec: JobSpec, key: str | None, rerun: Rerun, on_cancel: OnCancel
) -> JobHandle:
    submission = _begin_submit(block, spec, key, rerun)
    try:
        return _told(await _aresult(submission))
    except INTERRUPTS:
        asked = asyncio.ensure_future(_aresult(_interrupted_submit(submission, block, on_cancel)))
        await asyncio.wait([asked], timeout=INTERRUPT_SECONDS)
        raise


def _interrupted_submit(submission: Future[Submitted], block: PsikBackend, on_cancel: OnCancel) -> Future[None]:
    """The submission goes on; a job that comes of it while the flow run is cancelled is canceled, too."""
    flow_runs = enclosing_flow_runs()

    async def work(channel: Channel) -> None:
        submitted = await asyncio.wrap_future(submission)
        if on_cancel == "cancel" and submitted.created and await cancellation.is_cancelling(tuple(flow_runs)):
            await channel.cancel(submitted.handle, owner_of(flow_runs))

    return Session.current().on_channel(block.get_transport(), block.prefix, block.poll_interval_seconds, work)


def _told(submitted: Submitted) -> JobHandle:
    handle, logger = submitted.handle, run_logger()
    how = "submitted" if submitted.created else "found again"
    extra = {"psik_handle": handle.model_dump_json(exclude_defaults=True)}
    logger.info("%s %s on %s: %s", handle, how, handle.place, handle.path, extra=extra)
    for warning in submitted.warnings:
        logger.warning("%s: the scheduler remarks: %s", handle, warning)
    return handle


def _block_of(handle: JobHandle, backend: BackendLike | None) -> PsikBackend | None:
    if backend is None and needs_block(handle):
        backend = handle.backend
    return None if backend is None else load_backend(backend)


async def _ablock_of(handle: JobHandle, backend: BackendLike | None) -> PsikBackend | None:
    if backend is None and needs_block(handle):
        backend = handle.backend
    return None if backend is None else await aload_backend(backend)


def _on_channel(
    handle: JobHandle, block: PsikBackend | None, work: Callable[[Channel], Coroutine[None, None, T]]
) -> Future[T]:
    interval = (block or PsikBackend()).poll_interval_seconds
    return Session.current().on_channel(transport_to(handle, block), handle.prefix, interval, work)


def _look(handle: JobHandle, block: PsikBackend | None) -> Future[JobStatus]:
    return _on_channel(handle, block, lambda channel: channel.look(handle))


def _cancel(handle: JobHandle, block: PsikBackend | None) -> Future[JobStatus]:
    owner = owner_of(enclosing_flow_runs())
    return _on_channel(handle, block, lambda channel: channel.cancel(handle, owner))


def _begin_wait(handle: JobHandle, block: PsikBackend | None, on_cancel: OnCancel) -> Future[Wait]:
    flow_runs = enclosing_flow_runs()

    async def work(channel: Channel) -> Wait:
        return cancellation.begin_wait(channel, handle, on_cancel, flow_runs)

    return _on_channel(handle, block, work)


def _wait(handle: JobHandle, block: PsikBackend | None, on_cancel: OnCancel) -> JobResult:
    session, reporter = Session.current(), Reporter(handle)
    wait = _result(_begin_wait(handle, block, on_cancel))
    try:
        update = Update()
        while not update.is_final:
            update = _result(wait.subscription.next())
            reporter.tell(update)
        result = _result(session.run(lifecycle.finish(wait.channel, update)))
    except INTERRUPTS:
        concurrent.futures.wait([session.run(cancellation.after_interrupt(wait))], timeout=INTERRUPT_SECONDS)
        raise
    finally:
        session.run(cancellation.end_wait(wait))
    reporter.finish(result)
    return _completed(result)


async def _await(handle: JobHandle, block: PsikBackend | None, on_cancel: OnCancel) -> JobResult:
    session, reporter = Session.current(), Reporter(handle)
    wait = await _aresult(_begin_wait(handle, block, on_cancel))
    try:
        update = Update()
        while not update.is_final:
            update = await _aresult(wait.subscription.next())
            reporter.tell(update)
        result = await _aresult(session.run(lifecycle.finish(wait.channel, update)))
    except INTERRUPTS:
        asked = asyncio.ensure_future(_aresult(session.run(cancellation.after_interrupt(wait))))
        await asyncio.wait([asked], timeout=INTERRUPT_SECONDS)
        raise
    finally:
        session.run(cancellation.end_wait(wait))
    await reporter.afinish(result)
    return _completed(result)


def _completed(result: JobResult) -> JobResult:
    error = lifecycle.error_of(result)
    if error is not None:
        raise error
    return result


def _result(future: Future[T]) -> T:
    while not concurrent.futures.wait([future], timeout=SLICE_SECONDS).done:
        continue
    return future.result()


async def _aresult(future: Future[T]) -> T:
    # Shielded: cancelling who waits must not cut the work on the session's loop in two.
    return await asyncio.shield(asyncio.wrap_future(future))


def _refuse_running_loop(twin: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise SyncCallError(
        f"This task would block the event loop that it was called on. In async code, write: await {twin}(...)."
    )

"""What tasks do with a job: wait, run, cancel; each for a sync task and for its async twin."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from prefect_psik.blocks import PsikBackend
from prefect_psik.exceptions import JobFailed, PrefectPsikError, WaitLimitReached
from prefect_psik.flow_run import cancellation
from prefect_psik.flow_run.both import alinger, aresult, linger, result
from prefect_psik.flow_run.cancellation import INTERRUPTS, OnCancel, Wait, owner_of
from prefect_psik.flow_run.connect import on_block, on_handle
from prefect_psik.flow_run.identity import enclosing_flow_runs
from prefect_psik.flow_run.report import run_logger
from prefect_psik.jobs import lifecycle
from prefect_psik.jobs.lifecycle import Again
from prefect_psik.jobs.limits import LimitWatch, WaitLimits
from prefect_psik.jobs.place_waits import PlaceWait
from prefect_psik.jobs.preflight import failure_of, preflight
from prefect_psik.jobs.report import Reporter
from prefect_psik.jobs.submit import Submission, asubmit, submit
from prefect_psik.models.jobs import JobHandle, JobResult, JobState, JobStatus, PreflightReport
from prefect_psik.session.poller import Update
from prefect_psik.session.session import Channel, Session
from prefect_psik.spec.jobspec import JobSpec
from prefect_psik.spec.retry import RetryRule


def wait(
    handle: JobHandle,
    block: PsikBackend | None,
    on_cancel: OnCancel,
    limits: WaitLimits,
    before: PlaceWait | None = None,
) -> JobResult:
    """Wait until a job is final, within limits; `before`: its wait for a place in the queue."""
    before = before or PlaceWait()
    session, reporter = Session.current(), Reporter(handle, before.notes)
    beginning = _begin_wait(handle, block, on_cancel)
    try:
        waiting = result(beginning)
        update = _follow(waiting, reporter, limits, lambda update: update.is_final, before.seconds)
        found = result(session.run(_finish(waiting, update)))
    except INTERRUPTS:
        linger(session.run(cancellation.after_interrupt(beginning)))
        raise
    finally:
        session.run(cancellation.end_wait(beginning))
    reporter.finish(found)
    return _completed(found)


async def await_(
    handle: JobHandle,
    block: PsikBackend | None,
    on_cancel: OnCancel,
    limits: WaitLimits,
    before: PlaceWait | None = None,
) -> JobResult:
    """Async twin of `wait`."""
    before = before or PlaceWait()
    session, reporter = Session.current(), Reporter(handle, before.notes)
    beginning = _begin_wait(handle, block, on_cancel)
    try:
        waiting = await aresult(beginning)
        update = await _afollow(waiting, reporter, limits, lambda update: update.is_final, before.seconds)
        found = await aresult(session.run(_finish(waiting, update)))
    except INTERRUPTS:
        await alinger(session.run(cancellation.after_interrupt(beginning)))
        raise
    finally:
        session.run(cancellation.end_wait(beginning))
    await reporter.afinish(found)
    return _completed(found)


async def _finish(waiting: Wait, update: Update) -> JobResult:
    cancellation.forget_job(waiting.handle, waiting.flow_runs)
    return await lifecycle.finish(waiting.channel, update)


def wait_for_start(
    handle: JobHandle, block: PsikBackend | None, on_cancel: OnCancel, limits: WaitLimits
) -> JobStatus:
    """Wait until a job is active or final, within limits."""
    session = Session.current()
    beginning = _begin_wait(handle, block, on_cancel)
    try:
        waiting = result(beginning)
        return _started(_follow(waiting, Reporter(handle), limits, _has_started))
    except INTERRUPTS:
        linger(session.run(cancellation.after_interrupt(beginning)))
        raise
    finally:
        session.run(cancellation.end_wait(beginning))


async def await_for_start(
    handle: JobHandle, block: PsikBackend | None, on_cancel: OnCancel, limits: WaitLimits
) -> JobStatus:
    """Async twin of `wait_for_start`."""
    session = Session.current()
    beginning = _begin_wait(handle, block, on_cancel)
    try:
        waiting = await aresult(beginning)
        return _started(await _afollow(waiting, Reporter(handle), limits, _has_started))
    except INTERRUPTS:
        await alinger(session.run(cancellation.after_interrupt(beginning)))
        raise
    finally:
        session.run(cancellation.end_wait(beginning))


def _has_started(update: Update) -> bool:
    return update.status is not None and (update.status.state is JobState.active or update.is_final)


def _started(update: Update) -> JobStatus:
    assert update.status is not None  # noqa: S101 - `_has_started` has seen to that
    return update.status


def _follow(
    waiting: Wait, reporter: Reporter, limits: WaitLimits, enough: Callable[[Update], bool], ahead: float = 0.0
) -> Update:
    """Read and log the updates of a job until one is enough; `ahead`: seconds that count as queued."""
    watch, update = LimitWatch(limits, waiting.handle, ahead=ahead), Update()
    upcoming = waiting.subscription.next()
    while not enough(update):
        if reached := watch.reached():
            raise result(Session.current().run(_over_limit(waiting, reached, limits)))
        try:
            update = result(upcoming, watch.left())
        except TimeoutError:
            continue
        upcoming = waiting.subscription.next()
        reporter.tell(update)
        watch.note(update)
    return update


async def _afollow(
    waiting: Wait, reporter: Reporter, limits: WaitLimits, enough: Callable[[Update], bool], ahead: float = 0.0
) -> Update:
    """Async twin of `_follow`."""
    watch, update = LimitWatch(limits, waiting.handle, ahead=ahead), Update()
    upcoming = waiting.subscription.next()
    while not enough(update):
        if reached := watch.reached():
            raise await aresult(Session.current().run(_over_limit(waiting, reached, limits)))
        try:
            update = await aresult(upcoming, watch.left())
        except TimeoutError:
            continue
        upcoming = waiting.subscription.next()
        reporter.tell(update)
        watch.note(update)
    return update


def _begin_wait(handle: JobHandle, block: PsikBackend | None, on_cancel: OnCancel) -> Future[Wait]:
    flow_runs = enclosing_flow_runs()

    async def work(channel: Channel) -> Wait:
        return cancellation.begin_wait(channel, handle, on_cancel, flow_runs)

    return on_handle(handle, block, work)


async def _over_limit(waiting: Wait, reached: WaitLimitReached, limits: WaitLimits) -> WaitLimitReached:
    """Leave or cancel the job, as `limits.on_limit` says, and report that in the error."""
    next_step = "wait for it again with its handle, or cancel it."
    if limits.on_limit == "leave":
        return type(reached)(f"{reached} The job was not canceled: {next_step}", handle=reached.handle)
    try:
        status = await waiting.channel.cancel(waiting.handle, owner_of(list(waiting.flow_runs)))
    except PrefectPsikError as err:
        return type(reached)(
            f"{reached} It could not be canceled: {err} It may still be running: {next_step}",
            handle=reached.handle,
        )
    became = f"It was asked to stop and is now {status.state.value}."
    return type(reached)(f"{reached} {became}", handle=reached.handle)


def _completed(found: JobResult) -> JobResult:
    error = lifecycle.error_of(found)
    if error is not None:
        raise error
    return found


# ------------------------------------------------------------------------------------- submit and wait


def run(submission: Submission, limits: WaitLimits, retry: RetryRule) -> JobResult:
    """Submit a job and wait for it; run it again if the rule says so."""
    again: Again | None = None
    while True:
        place = PlaceWait(limits)
        handle = submit(submission, again, place)
        try:
            return wait(handle, submission.block, submission.on_cancel, limits, place)
        except JobFailed as err:
            again = _another_run(err, again, retry)
            if again is None:
                raise


async def arun(submission: Submission, limits: WaitLimits, retry: RetryRule) -> JobResult:
    """Async twin of `run`."""
    again: Again | None = None
    while True:
        place = PlaceWait(limits)
        handle = await asubmit(submission, again, place)
        try:
            return await await_(handle, submission.block, submission.on_cancel, limits, place)
        except JobFailed as err:
            again = _another_run(err, again, retry)
            if again is None:
                raise


def _another_run(error: JobFailed, again: Again | None, retry: RetryRule) -> Again | None:
    runs = again.number + 1 if again else 1
    asked = retry.next_run(error.result, runs) if error.result else None
    if error.result is None or asked is None:
        return None
    handle = error.result.handle
    run_logger().warning(
        "%s ended with %s; submitting another run, with %s and %s",
        handle,
        error.cause,
        f"{asked.duration} min of walltime" if asked.duration else "the same walltime",
        f"{asked.memory} of memory" if asked.memory else "the same memory",
    )
    return Again(after=handle.jobndx, number=runs, asked=asked)


# ------------------------------------------------------------------------------------------ single calls


def look(handle: JobHandle, block: PsikBackend | None) -> Future[JobStatus]:
    """Poll a job once."""
    return on_handle(handle, block, lambda channel: channel.look(handle))


def cancel(handle: JobHandle, block: PsikBackend | None) -> Future[JobStatus]:
    """Cancel a job."""
    owner = owner_of(enclosing_flow_runs())
    return on_handle(handle, block, lambda channel: channel.cancel(handle, owner))


def check(block: PsikBackend, spec: JobSpec | None) -> Future[PreflightReport]:
    """Run a preflight."""
    return on_block(block, lambda channel: preflight(channel, block, spec))


def passed(report: PreflightReport) -> PreflightReport:
    """Return the report if it has no failures.

    Raises:
        PreflightFailed: It has failures.
    """
    error = failure_of(report)
    if error is not None:
        raise error
    return report

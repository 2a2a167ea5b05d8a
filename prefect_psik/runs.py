"""A job's steps as tasks take them: submit, wait, cancel; each for a sync task and for its async twin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from prefect_psik import cancellation, lifecycle
from prefect_psik.blocks import PsikBackend
from prefect_psik.cancellation import INTERRUPTS, OnCancel, Wait, owner_of
from prefect_psik.exceptions import JobFailed, PrefectPsikError, WaitLimitReached
from prefect_psik.identity import Identity, current_caller, enclosing_flow_runs, identify
from prefect_psik.jobspec import JobSpec
from prefect_psik.lifecycle import Again, Submitted
from prefect_psik.limits import LimitWatch, WaitLimits
from prefect_psik.marks import mark, place_of
from prefect_psik.models import JobHandle, JobResult, JobState, JobStatus, PreflightReport
from prefect_psik.preflight import failure_of, preflight
from prefect_psik.progress import Reporter, run_logger
from prefect_psik.resolve import BackendLike, aload_backend, load_backend, needs_block, transport_to
from prefect_psik.retry import RetryRule
from prefect_psik.session import Channel, Session
from prefect_psik.waiting import alinger, aresult, linger, result
from prefect_psik.watches import Update

T = TypeVar("T")

Rerun = Literal["on_retry", "never"]


@dataclass(frozen=True)
class Submission:
    """One submission: where, what, and as which job.

    Made where the task runs, since the identity is read from Prefect's contexts; another run of the same job
    keeps it.
    """

    block: PsikBackend
    spec: JobSpec
    identity: Identity
    rerun: Rerun
    on_cancel: OnCancel
    flow_runs: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, block: PsikBackend, spec: JobSpec, *, key: str | None, rerun: Rerun, on_cancel: OnCancel
    ) -> Submission:
        """Check that the backend is open, and find out which job this is."""
        block.check_open()
        caller = current_caller()
        identity = identify(spec, endpoint=block.endpoint, prefix=block.prefix, key=key, caller=caller)
        return cls(block, spec, identity, rerun, on_cancel, enclosing_flow_runs())

    def begin(self, again: Again | None) -> Future[Submitted]:
        """Start it on the session's loop."""

        async def work(channel: Channel) -> Submitted:
            cancellation.refuse_cancelling(self.flow_runs)
            troubles: list[str] = []
            if self.on_cancel == "cancel":
                cancellation.note_place(channel, place_of(self.block), self.flow_runs)
                troubles = await mark(self.flow_runs, place_of(self.block))
            submitted = await lifecycle.submit(
                channel,
                self.block,
                self.spec,
                self.identity,
                rerun=self.rerun == "on_retry",
                owner=owner_of(self.flow_runs, self.on_cancel),
                again=again,
            )
            return replace(submitted, warnings=[*troubles, *submitted.warnings])

        return on_block(self.block, work)

    def interrupted(self, submission: Future[Submitted]) -> Future[None]:
        """The submission goes on; a job that comes of it while the flow run is cancelled is canceled, too."""

        async def work(channel: Channel) -> None:
            submitted = await asyncio.wrap_future(submission)
            cancelled = await cancellation.is_cancelling(tuple(self.flow_runs))
            ours = submitted.created or self.identity.is_own
            if self.on_cancel == "cancel" and ours and cancelled:
                await channel.cancel(submitted.handle, owner_of(self.flow_runs))

        return on_block(self.block, work)


def submit(submission: Submission, again: Again | None = None) -> JobHandle:
    """Submit a job once, and tell so."""
    future = submission.begin(again)
    try:
        return _told(result(future))
    except INTERRUPTS:
        linger(submission.interrupted(future))
        raise


async def asubmit(submission: Submission, again: Again | None = None) -> JobHandle:
    """Async twin of `submit`."""
    future = submission.begin(again)
    try:
        return _told(await aresult(future))
    except INTERRUPTS:
        await alinger(submission.interrupted(future))
        raise


def _told(submitted: Submitted) -> JobHandle:
    handle, logger = submitted.handle, run_logger()
    how = "submitted" if submitted.created else "found again"
    extra = {"psik_handle": handle.model_dump_json(exclude_defaults=True)}
    logger.info("%s %s on %s: %s", handle, how, handle.place, handle.path, extra=extra)
    for warning in submitted.warnings:
        logger.warning("%s: %s", handle, warning)
    return handle


# ------------------------------------------------------------------------------------------------ waiting


def wait(handle: JobHandle, block: PsikBackend | None, on_cancel: OnCancel, limits: WaitLimits) -> JobResult:
    """Wait until a job is final, within limits."""
    session, reporter = Session.current(), Reporter(handle)
    beginning = _begin_wait(handle, block, on_cancel)
    try:
        waiting = result(beginning)
        update = _follow(waiting, reporter, limits, lambda update: update.is_final)
        found = result(session.run(lifecycle.finish(waiting.channel, update)))
    except INTERRUPTS:
        linger(session.run(cancellation.after_interrupt(beginning)))
        raise
    finally:
        session.run(cancellation.end_wait(beginning))
    reporter.finish(found)
    return _completed(found)


async def await_(
    handle: JobHandle, block: PsikBackend | None, on_cancel: OnCancel, limits: WaitLimits
) -> JobResult:
    """Async twin of `wait`."""
    session, reporter = Session.current(), Reporter(handle)
    beginning = _begin_wait(handle, block, on_cancel)
    try:
        waiting = await aresult(beginning)
        update = await _afollow(waiting, reporter, limits, lambda update: update.is_final)
        found = await aresult(session.run(lifecycle.finish(waiting.channel, update)))
    except INTERRUPTS:
        await alinger(session.run(cancellation.after_interrupt(beginning)))
        raise
    finally:
        session.run(cancellation.end_wait(beginning))
    await reporter.afinish(found)
    return _completed(found)


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


def _follow(waiting: Wait, reporter: Reporter, limits: WaitLimits, enough: Callable[[Update], bool]) -> Update:
    """Take the updates of a job, and tell them, until one is enough."""
    watch, update, upcoming = LimitWatch(limits, waiting.handle), Update(), waiting.subscription.next()
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
    waiting: Wait, reporter: Reporter, limits: WaitLimits, enough: Callable[[Update], bool]
) -> Update:
    """Async twin of `_follow`."""
    watch, update, upcoming = LimitWatch(limits, waiting.handle), Update(), waiting.subscription.next()
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
    """Do with the job what was asked for, and say so in the error."""
    goes_on = "It goes on: wait for it again with its handle, or cancel it."
    if limits.on_limit == "leave":
        return type(reached)(f"{reached} {goes_on}", handle=reached.handle)
    try:
        status = await waiting.channel.cancel(waiting.handle, owner_of(list(waiting.flow_runs)))
    except PrefectPsikError as err:
        return type(reached)(
            f"{reached} It was asked to stop, which failed: {err} {goes_on}", handle=reached.handle
        )
    became = f"It was asked to stop and is {status.state.value} now."
    return type(reached)(f"{reached} {became}", handle=reached.handle)


def _completed(found: JobResult) -> JobResult:
    error = lifecycle.error_of(found)
    if error is not None:
        raise error
    return found


# ------------------------------------------------------------------------------------- submit and wait


def run(submission: Submission, limits: WaitLimits, retry: RetryRule) -> JobResult:
    """Submit a job and wait for it, again where the rule says so."""
    again: Again | None = None
    while True:
        handle = submit(submission, again)
        try:
            return wait(handle, submission.block, submission.on_cancel, limits)
        except JobFailed as err:
            again = _another_run(err, again, retry)
            if again is None:
                raise


async def arun(submission: Submission, limits: WaitLimits, retry: RetryRule) -> JobResult:
    """Async twin of `run`."""
    again: Again | None = None
    while True:
        handle = await asubmit(submission, again)
        try:
            return await await_(handle, submission.block, submission.on_cancel, limits)
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
        "%s ended with %s; another run is submitted, with %s min and %s of memory",
        handle,
        error.cause,
        asked.duration or "the same",
        asked.memory or "the same amount",
    )
    return Again(after=handle.jobndx, number=runs, asked=asked)


# ------------------------------------------------------------------------------------------ single calls


def look(handle: JobHandle, block: PsikBackend | None) -> Future[JobStatus]:
    """Look once."""
    return on_handle(handle, block, lambda channel: channel.look(handle))


def cancel(handle: JobHandle, block: PsikBackend | None) -> Future[JobStatus]:
    """Cancel a job."""
    owner = owner_of(enclosing_flow_runs())
    return on_handle(handle, block, lambda channel: channel.cancel(handle, owner))


def check(block: PsikBackend, spec: JobSpec | None) -> Future[PreflightReport]:
    """Make a preflight."""
    return on_block(block, lambda channel: preflight(channel, block, spec))


def passed(report: PreflightReport) -> PreflightReport:
    """Return a report without failures.

    Raises:
        PreflightFailed: It has some.
    """
    error = failure_of(report)
    if error is not None:
        raise error
    return report


# ------------------------------------------------------------------------------------------ ways to a place


def block_of(handle: JobHandle, backend: BackendLike | None) -> PsikBackend | None:
    """The block that holds the login for a handle, if one is needed."""
    if backend is None and needs_block(handle):
        backend = handle.backend
    return None if backend is None else load_backend(backend)


async def ablock_of(handle: JobHandle, backend: BackendLike | None) -> PsikBackend | None:
    """Async twin of `block_of`."""
    if backend is None and needs_block(handle):
        backend = handle.backend
    return None if backend is None else await aload_backend(backend)


def on_block(block: PsikBackend, work: Callable[[Channel], Coroutine[None, None, T]]) -> Future[T]:
    """Run work with the channel of a block."""
    return Session.current().on_channel(block.get_transport(), block.prefix, block.poll_interval_seconds, work)


def on_handle(
    handle: JobHandle, block: PsikBackend | None, work: Callable[[Channel], Coroutine[None, None, T]]
) -> Future[T]:
    """Run work with the channel to a handle's job."""
    interval = (block or PsikBackend()).poll_interval_seconds
    return Session.current().on_channel(transport_to(handle, block), handle.prefix, interval, work)

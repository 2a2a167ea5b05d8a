"""A submission made by a task: identified where the task runs, and logged where it waits."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prefect_psik.blocks import PsikBackend
from prefect_psik.exceptions import FlowRunCancelling, PrefectPsikError
from prefect_psik.flow_run import cancellation
from prefect_psik.flow_run.both import alinger, aresult, linger, result
from prefect_psik.flow_run.cancellation import INTERRUPTS, OnCancel, Watched, owner_of
from prefect_psik.flow_run.connect import on_block
from prefect_psik.flow_run.identity import current_caller, enclosing_flow_runs, identify
from prefect_psik.flow_run.labels import mark, place_of
from prefect_psik.flow_run.report import run_logger
from prefect_psik.jobs import lifecycle
from prefect_psik.jobs.lifecycle import Again, Submitted
from prefect_psik.jobs.place_waits import PlaceWait
from prefect_psik.jobs.records import read_records
from prefect_psik.models.jobs import JobHandle, JobRecord
from prefect_psik.session.admission import Leaving, Ticket
from prefect_psik.session.session import Channel, Session
from prefect_psik.spec.directives import Note
from prefect_psik.spec.identity import Identity
from prefect_psik.spec.jobspec import JobSpec

Rerun = Literal["on_retry", "never"]


@dataclass(frozen=True)
class Sending:
    """A submission in progress: its future result, and its ticket for a queue that may be full."""

    future: Future[Submitted]
    ticket: Ticket

    def over(self, wait: PlaceWait) -> None:
        """Give it up if a limit is reached while it has no place in the queue."""
        reached = wait.reached()
        if reached is not None:
            Session.current().loop.call_soon_threadsafe(self.ticket.withdraw, reached)


@dataclass(frozen=True)
class Submission:
    """One submission: the backend, the spec, and the job's identity.

    Created where the task runs, since the identity is read from Prefect's contexts; another run of the same job
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
        """Check that the backend is open, work out which job this is, and log what its script asks for.

        Raises:
            BackendClosed: The backend does not accept jobs.
            SpecError: The key is not usable, or a directive of the script cannot be followed.
        """
        block.check_open()
        notes = block.prepare(spec).notes
        caller = current_caller()
        identity = identify(spec, endpoint=block.endpoint, prefix=block.prefix, key=key, caller=caller)
        _tell_directives(spec, notes)
        return cls(block, spec, identity, rerun, on_cancel, enclosing_flow_runs())

    @property
    def job(self) -> str:
        """The job as a person would call it, before it has an id."""
        return f"job {self.spec.name!r}" if self.spec.name else f"job {self.identity.stamp}"

    @property
    def place(self) -> str:
        """The job's location, as a person would call it."""
        return self._handle().place

    def _handle(self, run: int = 1) -> JobHandle:
        """A handle for what may have been submitted, before the facility has answered."""
        block, identity = self.block, self.identity
        return JobHandle(
            endpoint_id=block.endpoint_id,
            backend=block.document_name,
            prefix=block.prefix,
            stamp=identity.stamp,
            key=identity.key,
            name=self.spec.name,
            type=block.attributes.type,
            jobndx=run,
        )

    def begin(self, again: Again | None) -> Sending:
        """Start the submission on the session's loop."""
        ticket = Ticket()

        async def work(channel: Channel) -> Submitted:
            cancellation.refuse_cancelling(self.flow_runs)
            troubles: list[str] = []
            if self.on_cancel == "cancel":
                troubles = await mark(self.flow_runs, place_of(self.block))
            sending = asyncio.create_task(self._send(channel, again, ticket))
            wait = self._wait_for_place(ticket, sending)
            ticket.begins = lambda: cancellation.watch(wait)
            try:
                submitted = await sending
            finally:
                cancellation.unwatch(wait)
            return replace(submitted, warnings=[*troubles, *submitted.warnings])

        future = on_block(self.block, work)
        future.add_done_callback(lambda _: ticket.news.put(None))
        return Sending(future, ticket)

    async def _send(self, channel: Channel, again: Again | None, ticket: Ticket) -> Submitted:
        owner = owner_of(self.flow_runs, self.on_cancel)
        try:
            submitted = await lifecycle.submit(
                channel,
                self.block,
                self.spec,
                self.identity,
                rerun=self.rerun == "on_retry",
                owner=owner,
                again=again,
                ticket=ticket,
            )
        except PrefectPsikError as err:
            if err is ticket.left and ticket.unconfirmed is not None:
                await self._call_off(channel, ticket.unconfirmed, err, owner)
            raise
        if self.on_cancel == "cancel":
            cancellation.note_job(channel, submitted.handle, self.flow_runs)
            ours = submitted.created or self.identity.is_own
            if ours and isinstance(ticket.left, FlowRunCancelling):  # the job got a place at the last moment
                await channel.cancel(submitted.handle, owner)
        return submitted

    async def _call_off(self, channel: Channel, run: int, left: PrefectPsikError, owner: dict[str, Any]) -> None:
        """Cancel a run that the last try may have started, if the flow run is being cancelled.

        A job with the user's own key may be somebody else's: it is canceled only if this flow run created it.

        Raises:
            PrefectPsikError: It could not be canceled; it may still be running.
        """
        if self.on_cancel != "cancel":
            return
        if not isinstance(left, FlowRunCancelling) and not await cancellation.is_cancelling(tuple(self.flow_runs)):
            return
        handle = self._handle(run)
        if not self.identity.is_own:
            stamps = [handle.stamp]
            records = await read_records(channel, handle.endpoint_id, handle.backend, stamps=stamps)
            record = records.get(handle.stamp)
            if not isinstance(record, JobRecord) or record.flow_run not in self.flow_runs:
                return
        await channel.cancel(handle, owner)

    def _wait_for_place(self, ticket: Ticket, sending: asyncio.Task[Submitted]) -> Watched:
        """The wait for a place in the queue, in the form that the flow run's watcher uses."""
        text = f"The flow run is being cancelled while {self.job} waits for a place in the queue; "
        asked = "was asked to stop" if self.on_cancel == "cancel" else "keeps running, as requested"
        leaving = Leaving(
            FlowRunCancelling(f"{text}it was not submitted."),
            FlowRunCancelling(
                f"{text}its last try got no answer. If that try submitted the job, the job {asked}."
            ),
        )

        async def stop() -> None:
            ticket.withdraw(leaving)
            await asyncio.wait([sending])
            if (trouble := sending.exception()) is not None and trouble not in leaving:
                raise trouble

        return Watched(
            what=self.job,
            on_cancel="cancel",
            flow_runs=tuple(self.flow_runs),
            stop=stop,
            tell=lambda error: None,
            leave=lambda: None,
        )

    def interrupted(self, sending: Sending) -> Future[None]:
        """End the wait for a place, if there is one; otherwise let the submission finish.

        If the flow run is being cancelled, a job that was submitted meanwhile is canceled, too.
        """
        text = f"The submission of {self.job} was interrupted; "
        leaving = Leaving(
            PrefectPsikError(f"{text}it was not submitted."),
            PrefectPsikError(f"{text}its last try got no answer, so it may have been submitted."),
        )

        async def work(channel: Channel) -> None:
            if sending.ticket.left is None:
                sending.ticket.withdraw(leaving)
            try:
                submitted = await asyncio.wrap_future(sending.future)
            except PrefectPsikError as err:
                if err is leaving.known:
                    return
                raise
            cancelled = await cancellation.is_cancelling(tuple(self.flow_runs))
            ours = submitted.created or self.identity.is_own
            if self.on_cancel == "cancel" and ours and cancelled:
                await channel.cancel(submitted.handle, owner_of(self.flow_runs))

        return on_block(self.block, work)


def _tell_directives(spec: JobSpec, notes: list[Note]) -> None:
    logger, name = run_logger(), f"job {spec.name!r}" if spec.name else "job"
    for note in notes:
        logger.log(logging.WARNING if note.warning else logging.INFO, "%s: script, %s", name, note.text)


def submit(submission: Submission, again: Again | None = None, wait: PlaceWait | None = None) -> JobHandle:
    """Submit a job once, when the queue has a place for it, and log that."""
    sending, wait = submission.begin(again), wait or PlaceWait()
    upcoming = sending.ticket.news.next()
    try:
        while True:
            try:
                news = result(upcoming, wait.left())
            except TimeoutError:
                sending.over(wait)
                continue
            if news is None:
                return _told(result(sending.future), wait)
            wait.tell(news, submission.job, submission.place, submission.identity.stamp)
            upcoming = sending.ticket.news.next()
    except INTERRUPTS:
        linger(submission.interrupted(sending))
        raise


async def asubmit(submission: Submission, again: Again | None = None, wait: PlaceWait | None = None) -> JobHandle:
    """Async twin of `submit`."""
    sending, wait = submission.begin(again), wait or PlaceWait()
    upcoming = sending.ticket.news.next()
    try:
        while True:
            try:
                news = await aresult(upcoming, wait.left())
            except TimeoutError:
                sending.over(wait)
                continue
            if news is None:
                return _told(await aresult(sending.future), wait)
            wait.tell(news, submission.job, submission.place, submission.identity.stamp)
            upcoming = sending.ticket.news.next()
    except INTERRUPTS:
        await alinger(submission.interrupted(sending))
        raise


def _told(submitted: Submitted, wait: PlaceWait) -> JobHandle:
    wait.end()
    handle, logger = submitted.handle, run_logger()
    how = "submitted" if submitted.created else "found again"
    extra = {"psik_handle": handle.model_dump_json(exclude_defaults=True)}
    logger.info("%s %s on %s: %s", handle, how, handle.place, handle.path, extra=extra)
    for warning in submitted.warnings:
        logger.warning("%s: %s", handle, warning)
    return handle

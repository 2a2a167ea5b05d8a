"""One submission as a task makes it: identified where the task runs, told where it waits."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Literal

from prefect_psik import cancellation, lifecycle
from prefect_psik.blocks import PsikBackend
from prefect_psik.cancellation import INTERRUPTS, OnCancel, owner_of
from prefect_psik.directives import Note
from prefect_psik.identity import Identity, current_caller, enclosing_flow_runs, identify
from prefect_psik.jobspec import JobSpec
from prefect_psik.lifecycle import Again, Submitted
from prefect_psik.marks import mark, place_of
from prefect_psik.models import JobHandle
from prefect_psik.progress import run_logger
from prefect_psik.session import Channel
from prefect_psik.waiting import alinger, aresult, linger, result
from prefect_psik.ways import on_block

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
        """Check that the backend is open, find out which job this is, and log what its script asks for.

        Raises:
            BackendClosed: The backend is drained.
            SpecError: The key is not usable, or a directive of the script cannot be honoured.
        """
        block.check_open()
        notes = block.prepare(spec).notes
        caller = current_caller()
        identity = identify(spec, endpoint=block.endpoint, prefix=block.prefix, key=key, caller=caller)
        _tell_directives(spec, notes)
        return cls(block, spec, identity, rerun, on_cancel, enclosing_flow_runs())

    def begin(self, again: Again | None) -> Future[Submitted]:
        """Start it on the session's loop."""

        async def work(channel: Channel) -> Submitted:
            cancellation.refuse_cancelling(self.flow_runs)
            troubles: list[str] = []
            if self.on_cancel == "cancel":
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
            if self.on_cancel == "cancel":
                cancellation.note_job(channel, submitted.handle, self.flow_runs)
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


def _tell_directives(spec: JobSpec, notes: list[Note]) -> None:
    logger, name = run_logger(), f"job {spec.name!r}" if spec.name else "job"
    for note in notes:
        logger.log(logging.WARNING if note.warning else logging.INFO, "%s: script, %s", name, note.text)


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

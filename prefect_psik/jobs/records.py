"""The facility's own records of jobs: list, judge and remove them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prefect_psik.exceptions import PrefectPsikError
from prefect_psik.models.jobs import JobHandle, JobRecord, JobState, JobStatus
from prefect_psik.outcome.answers import Entry, Facts, ListAnswer, RemoveAnswer, Stream
from prefect_psik.outcome.arrival import read_jobs
from prefect_psik.outcome.judge import judge
from prefect_psik.session.batcher import MAX_JOBS_PER_CALL
from prefect_psik.session.poller import MAX_LOOKS_PER_CALL
from prefect_psik.session.session import Channel

#: The most jobs that the facility lists in one answer.
PAGE = 500
#: The most of a log that the facility sends in one answer.
LOG_BYTES = 16 * 1024

Records = dict[str, JobRecord | PrefectPsikError]
"""Jobs by stamp; a job whose records are damaged has an error instead."""


async def read_records(
    channel: Channel,
    endpoint_id: UUID | None,
    backend: str | None,
    *,
    stamps: Sequence[str] = (),
    flow_run: str | None = None,
    limit: int | None = None,
) -> Records:
    """List jobs under a prefix by stamp, newest first; a job whose records are not usable has an error instead.

    Args:
        channel: The backend's channel.
        endpoint_id: The backend's endpoint, for the handles.
        backend: The block's name, for the handles.
        stamps: List only these jobs; empty: all.
        flow_run: List only the jobs that this flow run, or one within it, submitted.
        limit: Maximum number of jobs; None: all.
    """
    found: Records = {}
    skip, more = 0, True
    while more and (limit is None or len(found) < limit):
        page = PAGE if limit is None else min(PAGE, limit - len(found))
        payload = {
            "jobs": [{"stamp": stamp} for stamp in stamps],
            "flow_run": flow_run,
            "skip": skip,
            "limit": page,
        }
        answer = await channel.ask("list", ListAnswer, payload)
        for stamp, entry in read_jobs(Entry, answer.jobs, answer.jobs, place=channel.transport.place).items():
            found[stamp] = _record(stamp, entry, endpoint_id, backend) if isinstance(entry, Entry) else entry
        skip, more = skip + page, answer.more
    return found


def intact(records: Records) -> list[JobRecord]:
    """The jobs whose records can be read."""
    return [record for record in records.values() if isinstance(record, JobRecord)]


def damaged(records: Records) -> dict[str, PrefectPsikError]:
    """The errors of the other jobs, by stamp."""
    return {stamp: err for stamp, err in records.items() if isinstance(err, PrefectPsikError)}


def _record(stamp: str, entry: Entry, endpoint_id: UUID | None, backend: str | None) -> JobRecord:
    handle = JobHandle(
        endpoint_id=endpoint_id,
        prefix=entry.prefix,
        stamp=stamp,
        jobndx=entry.jobndx,
        native_id=entry.native_id,
        key=entry.key,
        type=entry.type,
        name=entry.name,
        backend=backend,
        duration=entry.asked.duration,
        memory=entry.asked.memory,
    )
    return JobRecord(
        handle=handle,
        state=entry.state,
        created=entry.created,
        flow_run=entry.owner.flow_run if entry.owner else None,
        root_flow_run=entry.owner.root_flow_run if entry.owner else None,
        flow_runs=entry.flow_runs,
    )


async def read_statuses(channel: Channel, handles: Sequence[JobHandle]) -> dict[str, JobStatus]:
    """Judge several jobs in as few calls as possible; by stamp. A job whose facts cannot be read is not final."""
    found: dict[str, JobStatus] = {}
    left = {handle.stamp: handle for handle in handles}
    while left:
        part = dict(list(left.items())[:MAX_LOOKS_PER_CALL])
        items = [{"stamp": handle.stamp, "jobndx": handle.jobndx} for handle in part.values()]
        for stamp, facts in (await channel.call("status", Facts, items)).items():
            if isinstance(facts, PrefectPsikError):
                found[stamp] = JobStatus(handle=left.pop(stamp), state=JobState.new, reason=str(facts))
            elif not facts.later:
                found[stamp] = judge(facts, left.pop(stamp))
    return found


async def cancel_jobs(
    channel: Channel, handles: Sequence[JobHandle], owner: dict[str, Any]
) -> dict[str, JobStatus | PrefectPsikError]:
    """Cancel several jobs together; one that cannot be canceled does not keep the others. By stamp."""

    async def one(handle: JobHandle) -> JobStatus | PrefectPsikError:
        try:
            return await channel.cancel(handle, owner)
        except PrefectPsikError as err:
            return err

    outcomes = await asyncio.gather(*(one(handle) for handle in handles))
    return {handle.stamp: outcome for handle, outcome in zip(handles, outcomes, strict=True)}


async def cancel_flow_run(
    channel: Channel, endpoint_id: UUID | None, backend: str | None, flow_run: str
) -> dict[str, JobStatus | PrefectPsikError]:
    """Cancel all jobs that a flow run submitted here and that have not ended; by stamp."""
    records = await read_records(channel, endpoint_id, backend, flow_run=flow_run)
    live = [record.handle for record in intact(records) if not record.state.is_final]
    outcomes = await cancel_jobs(channel, live, {"flow_run": flow_run, "root_flow_run": flow_run})
    return outcomes | damaged(records)


async def remove_jobs(channel: Channel, handles: Sequence[JobHandle]) -> dict[str, str | None]:
    """Remove the directories of jobs that have ended. By stamp: None, or why the directory was kept."""
    found: dict[str, str | None] = {}
    for begin in range(0, len(handles), MAX_JOBS_PER_CALL):
        part = handles[begin : begin + MAX_JOBS_PER_CALL]
        items = [{"stamp": handle.stamp, "jobndx": handle.jobndx} for handle in part]
        for stamp, answer in (await channel.call("remove", RemoveAnswer, items)).items():
            found[stamp] = str(answer) if isinstance(answer, PrefectPsikError) else answer.kept
    return found


async def read_logs(
    channel: Channel, handle: JobHandle, stream: Stream, offset: int | None
) -> tuple[str, int, bool]:
    """Read some of a job's log.

    Args:
        channel: The backend's channel.
        handle: The job.
        stream: stdout, stderr or console.
        offset: Byte to begin at; None: near the end.

    Returns:
        The text, the byte where the next one begins, and whether the job has ended.

    Raises:
        PrefectPsikError: The job's directory cannot be read, or may be somebody else's.
    """
    item: dict[str, Any] = {"stamp": handle.stamp, "jobndx": handle.jobndx}
    if offset is None:
        offset = max(0, (await _facts(channel, item)).sizes.get(stream, 0) - LOG_BYTES)
    facts = await _facts(channel, item | {"offsets": {stream: offset}})
    log = facts.logs.get(stream)
    return log.text if log else "", log.next if log else offset, judge(facts, handle).state.is_final


async def _facts(channel: Channel, item: dict[str, Any]) -> Facts:
    facts = (await channel.call("status", Facts, [item]))[item["stamp"]]
    if isinstance(facts, PrefectPsikError):
        raise facts
    return facts

"""The facility's own records of jobs: listed, judged, and removed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from prefect_psik.batches import MAX_JOBS_PER_CALL
from prefect_psik.exceptions import PrefectPsikError
from prefect_psik.models import JobHandle, JobRecord, JobState, JobStatus
from prefect_psik.outcome import judge
from prefect_psik.plain_text import plain_values
from prefect_psik.session import Channel
from prefect_psik.transport.base import error_from
from prefect_psik.watches import MAX_LOOKS_PER_CALL

#: As many as the facility lists in one answer.
PAGE = 500
#: As much of a log as the facility gives in one answer.
LOG_BYTES = 16 * 1024


class Listing(NamedTuple):
    """Jobs under a prefix; by stamp, why the directories of others were not used."""

    records: list[JobRecord]
    refused: dict[str, PrefectPsikError]


async def read_records(
    channel: Channel,
    endpoint_id: UUID | None,
    backend: str | None,
    *,
    stamps: Sequence[str] = (),
    flow_run: str | None = None,
    limit: int | None = None,
) -> Listing:
    """List jobs under a prefix, newest first.

    Args:
        channel: Of the backend.
        endpoint_id: Of the backend, for the handles.
        backend: The block's name, for the handles.
        stamps: Only these.
        flow_run: Only those that this flow run, or one within it, submitted.
        limit: At most so many; None: all.
    """
    found = Listing([], {})
    skip, more = 0, True
    while more and (limit is None or len(found.records) < limit):
        page = PAGE if limit is None else min(PAGE, limit - len(found.records))
        payload = {
            "jobs": [{"stamp": stamp} for stamp in stamps],
            "flow_run": flow_run,
            "skip": skip,
            "limit": page,
        }
        answer = await channel.ask("list", payload)
        found.records.extend(
            _record(stamp, entry, endpoint_id, backend) for stamp, entry in answer["jobs"].items()
        )
        for stamp, error in answer.get("refused", {}).items():
            found.refused[stamp] = error_from(error, channel.transport.place)
        skip, more = skip + page, bool(answer["more"])
    return found


def _record(stamp: str, entry: Mapping[str, Any], endpoint_id: UUID | None, backend: str | None) -> JobRecord:
    owner = entry.get("owner") or {}
    asked = entry.get("asked") or {}
    handle = JobHandle(
        endpoint_id=endpoint_id,
        prefix=entry["prefix"],
        stamp=stamp,
        jobndx=entry["jobndx"],
        native_id=plain_values(entry["native_id"]),
        key=entry["key"],
        type=entry["type"],
        name=plain_values(entry.get("name")),
        backend=backend,
        duration=asked.get("duration"),
        memory=asked.get("memory"),
    )
    return JobRecord(
        handle=handle,
        state=JobState(entry["state"]),
        created=entry.get("created"),
        flow_run=owner.get("flow_run"),
        root_flow_run=owner.get("root_flow_run"),
        flow_runs=entry.get("flow_runs") or [],
    )


async def read_statuses(channel: Channel, handles: Sequence[JobHandle]) -> dict[str, JobStatus]:
    """Judge several jobs in as few calls as possible; by stamp."""
    found: dict[str, JobStatus] = {}
    left = {handle.stamp: handle for handle in handles}
    while left:
        part = dict(list(left.items())[:MAX_LOOKS_PER_CALL])
        items = [{"stamp": handle.stamp, "jobndx": handle.jobndx} for handle in part.values()]
        for stamp, facts in (await channel.call("status", items)).items():
            if not facts.get("later"):
                found[stamp] = judge(facts, left.pop(stamp))
    return found


async def cancel_jobs(
    channel: Channel, handles: Sequence[JobHandle], owner: dict[str, Any]
) -> dict[str, JobStatus | PrefectPsikError]:
    """Cancel several jobs, together; one that cannot be canceled stops no other. By stamp."""

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
    records, refused = await read_records(channel, endpoint_id, backend, flow_run=flow_run)
    live = [record.handle for record in records if not record.state.is_final]
    return refused | await cancel_jobs(channel, live, {"flow_run": flow_run, "root_flow_run": flow_run})


async def remove_jobs(channel: Channel, handles: Sequence[JobHandle]) -> dict[str, str | None]:
    """Remove the directories of jobs that have ended; by stamp: None, or why it was kept."""
    found: dict[str, str | None] = {}
    for begin in range(0, len(handles), MAX_JOBS_PER_CALL):
        part = handles[begin : begin + MAX_JOBS_PER_CALL]
        items = [{"stamp": handle.stamp, "jobndx": handle.jobndx} for handle in part]
        answers = await channel.call("remove", items)
        found |= {stamp: plain_values(answer.get("kept")) for stamp, answer in answers.items()}
    return found


async def read_logs(channel: Channel, handle: JobHandle, stream: str, offset: int | None) -> tuple[str, int, bool]:
    """Read some of a job's log.

    Args:
        channel: Of the backend.
        handle: Which job.
        stream: stdout, stderr or console.
        offset: Byte to begin at; None: near the end.

    Returns:
        The text, the byte where the next one begins, and whether the job has ended.

    Raises:
        PrefectPsikError: The job's directory cannot be read, or may be somebody else's.
    """
    item: dict[str, Any] = {"stamp": handle.stamp, "jobndx": handle.jobndx}
    if offset is None:
        facts = (await channel.call("status", [item]))[handle.stamp]
        offset = max(0, int(facts.get("sizes", {}).get(stream, 0)) - LOG_BYTES)
    facts = (await channel.call("status", [item | {"offsets": {stream: offset}}]))[handle.stamp]
    if "error" in facts:
        raise error_from(facts["error"], channel.transport.place)
    status = judge(facts, handle)
    log = facts.get("logs", {}).get(stream, {"text": "", "next": offset})
    return log["text"], log["next"], status.state.is_final

"""Failover: run a job at the first facility that can, or at the one that starts it first.

`in order` tries one facility after the other: the next one only if the facility itself had trouble, never after a
failed script. `race` submits to all of them, keeps the job that is first seen to start, and cancels the others. A
table artifact shows the outcome at each facility.

What is guaranteed: the result of exactly one job is used, and the table proves what the other jobs did. `canceled
before it started` is confirmed by the scheduler. The facilities share no disk, so nothing can prevent two jobs of
a race from starting between two polls of their queues, or stop a job at a facility that does not answer: the table
names such a job, and its result is not used. So the script must not write to storage that the facilities share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Literal

from prefect import flow
from prefect.artifacts import acreate_table_artifact
from prefect.runtime import flow_run

from prefect_psik import (
    BackendClosed,
    ContactLost,
    FacilityError,
    JobHandle,
    JobInterrupted,
    JobLost,
    JobResult,
    JobSpec,
    JobState,
    LaunchFailed,
    PrefectPsikError,
    PsikBackend,
    QueueLimitReached,
    SubmitRejected,
    WaitLimits,
    acancel_job,
    alist_jobs,
    arun_preflight,
    asubmit_job,
    await_for_job,
    await_for_start,
    cancel_psik_jobs,
)

#: Errors of the facility rather than of the job, so that another facility may succeed.
TROUBLE = (
    BackendClosed,
    FacilityError,
    SubmitRejected,
    QueueLimitReached,
    ContactLost,
    JobInterrupted,
    LaunchFailed,
    JobLost,
)


@flow(name="failover", flow_run_name="{mode}: {facilities}", on_cancellation=[cancel_psik_jobs])
async def failover(
    job: JobSpec | Path,
    facilities: list[str],
    mode: Literal["in order", "race"] = "in order",
    patience: timedelta = timedelta(minutes=30),
    silence: timedelta = timedelta(minutes=15),
    key: str | None = None,
) -> JobResult:
    """Run a job at one of several facilities.

    Args:
        job: The job, or the path of its `job.yaml`.
        facilities: Names of `psik-backend` blocks; `in order` tries them in this order.
        mode: `in order`: the next one if a facility has trouble. `race`: submit to all, keep what starts first.
        patience: Longest time in the queue of one facility.
        silence: Longest time without an answer from a facility.
        key: Runs of this flow with the same key, such as a scan number, share jobs. Empty: nothing is shared.
    """
    key = key or str(flow_run.id)
    spec = job if isinstance(job, JobSpec) else JobSpec.from_file(job)
    places = [await PsikBackend.aload(name) for name in facilities]
    limits = WaitLimits(queue=patience, trouble=silence)
    found = dict.fromkeys(facilities, "not tried")
    try:
        earlier = await with_a_job_already(places, key)
        if mode == "race":
            return await race(earlier or places, spec, key, limits, found)
        others = [place for place in places if place not in earlier]
        return await in_order([*earlier, *others], spec, key, limits, found)
    finally:
        table = [{"facility": name, "outcome": outcome} for name, outcome in found.items()]
        await acreate_table_artifact(table, key="failover", description=f"{spec.name or 'The job'}, {mode}")


async def in_order(
    places: Sequence[PsikBackend], spec: JobSpec, key: str, limits: WaitLimits, found: dict[str, str]
) -> JobResult:
    """Try one facility after the other."""
    for place in places:
        name = str(place.document_name)
        handle: JobHandle | None = None
        try:
            await arun_preflight(place, spec)
            handle = await asubmit_job(place, spec, key=key_at(place, key), limits=limits)
            found[name] = f"{handle} was submitted"
            result = await await_for_job(handle, limits=limits)
        except (QueueLimitReached, ContactLost) as err:
            found[name] = f"{err} {await give_up(place, key, handle)}"
        except TROUBLE as err:
            found[name] = str(err)
        except PrefectPsikError as err:
            found[name] = f"no other facility was tried: {err}"
            raise
        else:
            found[name] = f"{result.handle} completed: this result is used"
            return result
    raise nowhere(found)


async def race(
    places: Sequence[PsikBackend], spec: JobSpec, key: str, limits: WaitLimits, found: dict[str, str]
) -> JobResult:
    """Submit everywhere, keep the job that starts first. An error cancels all jobs, a crash none."""
    handles: dict[str, JobHandle] = {}

    async def enter(place: PsikBackend) -> JobHandle | None:
        """Submit, if necessary wait for a place in the queue, and wait for the start; None: it will not start."""
        name = str(place.document_name)
        try:
            await arun_preflight(place, spec)
            handle = await asubmit_job(place, spec, key=key_at(place, key), limits=limits)
            handles[name] = handle
            status = await await_for_start(handle, limits=limits)
        except (QueueLimitReached, ContactLost) as err:
            found[name] = f"{err} {await give_up(place, key, handles.get(name))}"
            return None
        except TROUBLE as err:
            found[name] = f"{err} {await withdraw(handles[name])}" if name in handles else str(err)
            return None
        # A job that is canceled while it waits has lost the race; any other end is the end of the race.
        return None if status.state is JobState.canceled else handle

    entries = {str(place.document_name): asyncio.create_task(enter(place)) for place in places}

    async def lose(place: PsikBackend) -> None:
        name = str(place.document_name)
        if name not in handles and not entries[name].done():
            entries[name].cancel()  # it may wait a long time for a place in the queue
            await asyncio.wait([entries[name]])
            found[name] = await give_up(place, key, handles.get(name))
        elif name in handles:
            found[name] = await withdraw(handles[name])

    try:
        winner = await first_of(entries.values())
    except Exception:
        await together(*map(lose, places))
        await asyncio.gather(*entries.values(), return_exceptions=True)  # they end with their jobs
        raise
    if winner is None:
        raise nowhere(found)
    await together(*(lose(place) for place in places if place.document_name != winner.backend))
    await asyncio.gather(*entries.values(), return_exceptions=True)
    found[str(winner.backend)] = f"{winner} started first"
    result = await await_for_job(winner, limits=limits)
    found[str(winner.backend)] += " and completed: this result is used"
    return result


async def together(*work: Awaitable[None]) -> None:
    """Run several awaitables concurrently until all have ended; then raise the first error."""
    for done in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(done, BaseException):
            raise done


async def first_of(starts: Iterable[asyncio.Task[JobHandle | None]]) -> JobHandle | None:
    """The job that is first seen to start; None if none will."""
    for start in asyncio.as_completed(starts):
        if winner := await start:
            return winner
    return None


async def withdraw(handle: JobHandle) -> str:
    """Cancel a job that is not needed, and say what it had done by then."""
    try:
        status = await acancel_job(handle)
    except FacilityError as err:
        return f"{handle} may still be running, since it could not be canceled: {err}"
    if status.state is not JobState.canceled:
        return f"{handle} {status.state.value} in the meantime; its result is not used"
    if status.started is not None:
        return f"{handle} had also started, and was canceled; its result is not used"
    return f"{handle} was canceled before it started"


async def give_up(place: PsikBackend, key: str, handle: JobHandle | None) -> str:
    """Cancel the job at one facility, and say what it had done by then.

    Without a handle it was waiting for a place in the queue, but the last attempt may have submitted it.
    """
    try:
        handles = [handle] if handle else await jobs_at(place, key)
    except FacilityError as err:
        return f"It is unknown whether a job was submitted there: {err}"
    return " ".join([await withdraw(each) for each in handles]) or "No job was found there"


async def with_a_job_already(places: Sequence[PsikBackend], key: str) -> list[PsikBackend]:
    """After a crash, the facilities where an earlier attempt left a job that may still do the work."""
    if flow_run.run_count <= 1:
        return []

    async def has_one(place: PsikBackend) -> bool:
        try:
            return bool(await jobs_at(place, key))
        except FacilityError:
            return False

    having = await asyncio.gather(*map(has_one, places))
    return [place for place, has in zip(places, having, strict=True) if has]


async def jobs_at(place: PsikBackend, key: str) -> list[JobHandle]:
    """What this flow run submitted at one facility and may still do the work: one job, or none."""
    records = await alist_jobs(place, flow_run=flow_run.id)
    over = (JobState.failed, JobState.canceled)
    ours = (record for record in records if record.handle.key == key_at(place, key))
    return [record.handle for record in ours if record.state not in over]


def key_at(place: PsikBackend, key: str) -> str:
    """The key of the job at one facility; two blocks may be two queues of one."""
    return f"{key} at {place.document_name}"


def nowhere(found: dict[str, str]) -> FacilityError:
    """The error if all facilities had trouble."""
    tried = "\n".join(f"{name}: {outcome}" for name, outcome in found.items())
    return FacilityError(f"No facility could run the job. Fix one of the errors below, then retry.\n{tried}")

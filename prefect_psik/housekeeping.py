"""TASKS on many jobs of a backend: list them, remove those that ended long ago."""

from __future__ import annotations

from datetime import timedelta

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_psik.blocks import PsikBackend
from prefect_psik.exceptions import SpecError
from prefect_psik.models import JobRecord, JobState, JobStatus, RemovedJob
from prefect_psik.progress import run_logger
from prefect_psik.records import Listing, read_records, read_statuses, remove_jobs
from prefect_psik.resolve import BackendLike, aload_backend, load_backend
from prefect_psik.session import Channel
from prefect_psik.waiting import aresult, refuse_running_loop, result
from prefect_psik.ways import on_block


@task(name="list psik jobs", cache_policy=NO_CACHE)
def list_jobs(backend: BackendLike, *, flow_run: str | None = None, limit: int | None = 100) -> list[JobRecord]:
    """List the jobs under a backend's prefix, newest first, from the facility's own records.

    Args:
        backend: A `psik-backend` block or its name.
        flow_run: Only those that this flow run, or one within it, submitted; a UUID.
        limit: At most so many; None: all.
    """
    refuse_running_loop("alist_jobs")
    block = load_backend(backend)
    return _told(result(on_block(block, lambda channel: _list(channel, block, flow_run, limit))))


@task(name="list psik jobs", cache_policy=NO_CACHE)
async def alist_jobs(
    backend: BackendLike, *, flow_run: str | None = None, limit: int | None = 100
) -> list[JobRecord]:
    """Async twin of `list_jobs`."""
    block = await aload_backend(backend)
    return _told(await aresult(on_block(block, lambda channel: _list(channel, block, flow_run, limit))))


@task(name="clean psik jobs", cache_policy=NO_CACHE)
def clean_jobs(
    backend: BackendLike, *, older_than: timedelta, keep_failed: bool = True, dry_run: bool = False
) -> list[RemovedJob]:
    """Remove the directories of jobs that ended long ago; what may be alive always stays.

    The job's key is free again afterwards: the same submission makes a new job.

    Args:
        backend: A `psik-backend` block or its name.
        older_than: Time since the job's end, by the facility's clock.
        keep_failed: Keep jobs that failed or were canceled, to be looked into.
        dry_run: Remove nothing, only tell what would go.

    Returns:
        What was removed, or would be; `kept` says why one stayed all the same.

    Raises:
        SpecError: `older_than` is not longer than nothing.
    """
    refuse_running_loop("aclean_jobs")
    block = load_backend(backend)
    return result(on_block(block, lambda channel: _clean(channel, block, older_than, keep_failed, dry_run)))


@task(name="clean psik jobs", cache_policy=NO_CACHE)
async def aclean_jobs(
    backend: BackendLike, *, older_than: timedelta, keep_failed: bool = True, dry_run: bool = False
) -> list[RemovedJob]:
    """Async twin of `clean_jobs`."""
    block = await aload_backend(backend)
    return await aresult(on_block(block, lambda channel: _clean(channel, block, older_than, keep_failed, dry_run)))


async def _list(channel: Channel, block: PsikBackend, flow_run: str | None, limit: int | None) -> Listing:
    return await read_records(channel, block.endpoint_id, block.document_name, flow_run=flow_run, limit=limit)


def _told(listing: Listing) -> list[JobRecord]:
    """The jobs of a listing; a warning in the log for each that is left out."""
    for error in listing.refused.values():
        run_logger().warning("not listed: %s", error)
    return listing.records


async def _clean(
    channel: Channel, block: PsikBackend, older_than: timedelta, keep_failed: bool, dry_run: bool
) -> list[RemovedJob]:
    if older_than < timedelta(0):
        raise SpecError(
            f"older_than is {older_than}: give a time since the job's end, such as timedelta(days=30)."
        )
    now = await _facility_time(channel)
    records, _ = await read_records(channel, block.endpoint_id, block.document_name)
    statuses = await read_statuses(channel, [record.handle for record in records])
    wanted = [
        status
        for status in statuses.values()
        if _is_old(status, now - older_than.total_seconds())
        and (status.state is JobState.completed or not keep_failed)
    ]
    kept = {} if dry_run else await remove_jobs(channel, [status.handle for status in wanted])
    return [
        RemovedJob(
            handle=status.handle, state=status.state, ended=status.ended, kept=kept.get(status.handle.stamp)
        )
        for status in wanted
    ]


async def _facility_time(channel: Channel) -> float:
    """The facility's clock: ours may be another, and an answer may take a while."""
    answer = await channel.ask("hello", {})
    return float(answer["now"])


def _is_old(status: JobStatus, before: float) -> bool:
    last = status.ended or status.started or status.submitted
    return status.state.is_final and last is not None and last < before

"""TASKS on all jobs of a backend: list them, and remove those that ended long ago."""

from __future__ import annotations

from datetime import timedelta

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_psik.blocks import PsikBackend
from prefect_psik.exceptions import SpecError
from prefect_psik.flow_run.both import aresult, refuse_running_loop, result
from prefect_psik.flow_run.connect import on_block
from prefect_psik.flow_run.load import BackendLike, aload_backend, load_backend
from prefect_psik.flow_run.report import run_logger
from prefect_psik.jobs.records import Records, damaged, intact, read_records, read_statuses, remove_jobs
from prefect_psik.models.jobs import JobRecord, JobState, JobStatus, RemovedJob
from prefect_psik.outcome.answers import HelloAnswer
from prefect_psik.session.session import Channel


@task(name="list psik jobs", cache_policy=NO_CACHE)
def list_jobs(backend: BackendLike, *, flow_run: str | None = None, limit: int | None = 100) -> list[JobRecord]:
    """List the jobs under a backend's prefix, newest first, from the facility's own records.

    Args:
        backend: A `psik-backend` block or its name.
        flow_run: UUID of a flow run: list only the jobs that it, or a flow run within it, submitted.
        limit: Maximum number of jobs to list; None: all.
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
    """Remove the directories of jobs that ended long ago. Jobs that may still be alive are always kept.

    Afterwards the job's key is free again: the same submission creates a new job.

    Args:
        backend: A `psik-backend` block or its name.
        older_than: Time since the job's end, by the facility's clock.
        keep_failed: Keep jobs that failed or were canceled, so that they can be examined.
        dry_run: Remove nothing; only return what would be removed.

    Returns:
        What was removed, or would be; `kept` says why a job was not removed after all.

    Raises:
        SpecError: `older_than` is negative.
    """
    refuse_running_loop("aclean_jobs")
    block = load_backend(backend)
    records, removed = result(
        on_block(block, lambda channel: _clean(channel, block, older_than, keep_failed, dry_run))
    )
    _told(records)
    return removed


@task(name="clean psik jobs", cache_policy=NO_CACHE)
async def aclean_jobs(
    backend: BackendLike, *, older_than: timedelta, keep_failed: bool = True, dry_run: bool = False
) -> list[RemovedJob]:
    """Async twin of `clean_jobs`."""
    block = await aload_backend(backend)
    records, removed = await aresult(
        on_block(block, lambda channel: _clean(channel, block, older_than, keep_failed, dry_run))
    )
    _told(records)
    return removed


async def _list(channel: Channel, block: PsikBackend, flow_run: str | None, limit: int | None) -> Records:
    return await read_records(channel, block.endpoint_id, block.document_name, flow_run=flow_run, limit=limit)


async def _clean(
    channel: Channel, block: PsikBackend, older_than: timedelta, keep_failed: bool, dry_run: bool
) -> tuple[Records, list[RemovedJob]]:
    if older_than < timedelta(0):
        raise SpecError(
            f"older_than is negative ({older_than}). Give a time since the job ended, such as timedelta(days=30)."
        )
    now = await _facility_time(channel)
    records = await read_records(channel, block.endpoint_id, block.document_name)
    statuses = await read_statuses(channel, [record.handle for record in intact(records)])
    wanted = [
        status
        for status in statuses.values()
        if _is_old(status, now - older_than.total_seconds())
        and (status.state is JobState.completed or not keep_failed)
    ]
    kept = {} if dry_run else await remove_jobs(channel, [status.handle for status in wanted])
    removed = [
        RemovedJob(
            handle=status.handle, state=status.state, ended=status.ended, kept=kept.get(status.handle.stamp)
        )
        for status in wanted
    ]
    return records, removed


def _told(records: Records) -> list[JobRecord]:
    """The jobs whose records can be read; for the others, the error is logged."""
    for err in damaged(records).values():
        run_logger().warning("skipping a job whose records cannot be used: %s", err)
    return intact(records)


async def _facility_time(channel: Channel) -> float:
    """The facility's clock: ours may differ, and an answer may take a while."""
    return (await channel.ask("hello", HelloAnswer, {})).now


def _is_old(status: JobStatus, before: float) -> bool:
    last = status.ended or status.started or status.submitted
    return status.state.is_final and last is not None and last < before

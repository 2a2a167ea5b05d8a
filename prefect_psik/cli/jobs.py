"""Commands on the facility's own records: ls, status, logs, cancel, clean."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from prefect_psik.blocks import PsikBackend
from prefect_psik.cli.app import FAILURE, app, notes, passed_on, shown
from prefect_psik.exceptions import PrefectPsikError, SpecError
from prefect_psik.flow_run.both import result
from prefect_psik.flow_run.connect import block_of, on_block, on_handle
from prefect_psik.flow_run.load import load_backend, resolve_handle
from prefect_psik.jobs.inventory import clean_jobs
from prefect_psik.jobs.records import (
    Records,
    cancel_flow_run,
    cancel_jobs,
    damaged,
    intact,
    read_logs,
    read_records,
    read_statuses,
)
from prefect_psik.models.jobs import JobHandle, JobState, JobStatus
from prefect_psik.outcome.answers import Stream
from prefect_psik.session.session import Channel, Session

Backend = Annotated[str | None, Parameter(help="Name of a psik-backend block; default: this machine.")]
Job = Annotated[
    str, Parameter(help="The job: its stamp (with --backend), its handle as JSON, or a file with that.")
]

_FOLLOW_SECONDS = 3.0


@app.command(name="ls")
def ls(backend: Backend = None, *, flow_run: str | None = None, limit: int = 50, as_json: bool = False) -> int:
    """List the jobs under a backend's prefix, newest first, with their states.

    Args:
        backend: The backend.
        flow_run: UUID of a flow run: list only the jobs that it submitted.
        limit: Maximum number of jobs to list.
        as_json: Print one JSON object per line, for other programs.
    """
    block = _block(backend)

    async def work(channel: Channel) -> tuple[Records, dict[str, JobStatus]]:
        found = await read_records(channel, block.endpoint_id, block.document_name, flow_run=flow_run, limit=limit)
        return found, await read_statuses(channel, [record.handle for record in intact(found)])

    found, statuses = result(on_block(block, work))
    for err in damaged(found).values():
        notes.print(shown(err))
    records = intact(found)
    if as_json:
        for record in records:
            status = statuses[record.handle.stamp]
            print(json.dumps(record.model_dump(mode="json") | {"status": status.model_dump(mode="json")}))
        return 0
    table = Table("stamp", "run", "native id", "name", "state", "cause or reason", "created (UTC)", "flow run")
    for record in records:
        status = statuses[record.handle.stamp]
        handle = record.handle
        why = status.cause.value if status.cause else status.reason or ""
        row = (
            handle.stamp,
            handle.jobndx,
            status.handle.native_id or "",
            handle.name or "",
            status.state.value,
            why,
        )
        table.add_row(*map(shown, (*row, _time(record.created), record.flow_run or "")))
    Console().print(table)
    return 0


@app.command(name="status")
def status_(job: Job, *, backend: Backend = None) -> int:
    """Show the state of a job, and what happened to it.

    Args:
        job: The job.
        backend: The backend, if the job is given by its stamp.

    Returns:
        0 if the job completed or has not ended yet, else 1.
    """
    handle, block = _handle(job, backend)
    found = result(on_handle(handle, block, lambda channel: read_statuses(channel, [handle])))[handle.stamp]
    table = Table(show_header=False)
    for name, value in _described(found).items():
        if value not in (None, "", []):
            table.add_row(name, shown(value))
    Console().print(table)
    return FAILURE if found.state in (JobState.failed, JobState.canceled) else 0


@app.command
def logs(
    job: Job,
    *,
    backend: Backend = None,
    follow: Annotated[bool, Parameter(alias="-f")] = False,
    stream: Stream = "stdout",
) -> int:
    """Print the last part of a job's log, at most 16 KiB; with -f, keep printing new output until the job ends.

    Args:
        job: The job.
        backend: The backend, if the job is given by its stamp.
        follow: Keep printing until the job ends. Ctrl-C stops the output, not the job.
        stream: Which log to print.
    """
    handle, block = _handle(job, backend)
    offset: int | None = None
    while True:
        text, offset, ended = result(on_handle(handle, block, _reader(handle, stream, offset)))
        print(passed_on(text, sys.stdout), end="", flush=True)
        if not follow or (ended and not text):
            return 0
        if not ended:
            result(Session.current().run(asyncio.sleep(_FOLLOW_SECONDS)))


@app.command
def cancel(job: Job | None = None, *, backend: Backend = None, flow_run: str | None = None) -> int:
    """Cancel a job, or all jobs that a flow run submitted, and show how they ended.

    Args:
        job: The job.
        backend: The backend, if a job is given by its stamp, or with --flow-run.
        flow_run: UUID of a flow run: cancel all jobs that it submitted.

    Returns:
        For a job: 0 if it is canceled, else 1. For a flow run: 0 if each of its jobs was asked to stop or had
        already ended, else 1.
    """
    if job is not None and flow_run is None:
        return _cancel_job(job, backend)
    if flow_run is not None and job is None:
        return _cancel_flow_run(flow_run, backend)
    raise SpecError("Give either a job or --flow-run, to say what to cancel.")


def _cancel_job(job: str, backend: str | None) -> int:
    handle, block = _handle(job, backend)
    outcomes = result(on_handle(handle, block, lambda channel: cancel_jobs(channel, [handle], {})))
    for outcome in outcomes.values():
        _tell(outcome)
    return 0 if all(_is(outcome, JobState.canceled) for outcome in outcomes.values()) else FAILURE


def _cancel_flow_run(flow_run: str, backend: str | None) -> int:
    block = _block(backend)
    work = partial(cancel_flow_run, endpoint_id=block.endpoint_id, backend=block.document_name, flow_run=flow_run)
    outcomes = result(on_block(block, work)).values()
    for outcome in outcomes:
        _tell(outcome)
    stopped = sum(isinstance(outcome, JobStatus) for outcome in outcomes)
    left = len(outcomes) - stopped
    may_run = f"; {left} may still be running, see above" if left else ""
    asked = "1 job was" if stopped == 1 else f"{stopped} jobs were"
    notes.print(shown(f"Flow run {flow_run}: {asked} asked to stop{may_run}."))
    return FAILURE if left else 0


@app.command
def clean(backend: Backend = None, *, older_than: str, keep_failed: bool = True, dry_run: bool = False) -> int:
    """Remove the directories of jobs that ended long ago. Jobs that may still be alive are kept.

    Args:
        backend: The backend.
        older_than: Minimum time since the job ended, such as 30d, 12h or 90m.
        keep_failed: Keep jobs that failed or were canceled.
        dry_run: Remove nothing; only list what would be removed.
    """
    block = _block(backend)
    removed = clean_jobs.fn(block, older_than=_span(older_than), keep_failed=keep_failed, dry_run=dry_run)
    table = Table("stamp", "name", "state", "ended (UTC)", "would be removed" if dry_run else "removed")
    for found in removed:
        kept = f"no: {found.kept}" if found.kept else "yes"
        row = (found.handle.stamp, found.handle.name or "", found.state.value, _time(found.ended), kept)
        table.add_row(*map(shown, row))
    Console().print(table)
    return 0


def _block(backend: str | None) -> PsikBackend:
    return PsikBackend() if backend is None else load_backend(backend)


def _handle(job: str, backend: str | None) -> tuple[JobHandle, PsikBackend | None]:
    """Find the job that the user means, and the block with the login for it."""
    if job.replace(".", "", 1).isdecimal() and not Path(job).exists():
        block = _block(backend)

        async def work(channel: Channel) -> Records:
            return await read_records(channel, block.endpoint_id, block.document_name, stamps=[job])

        found = result(on_block(block, work))
        if job not in found:
            raise SpecError(
                f"There is no job {job} under {block.prefix} on this backend. To list its jobs: prefect-psik ls."
            )
        record = found[job]
        if isinstance(record, PrefectPsikError):
            raise record
        return record.handle, block
    if not job.lstrip().startswith("{"):
        try:
            job = Path(job).read_text(encoding="utf-8")
        except OSError as err:
            raise SpecError(f"Cannot read the handle from {job}: {err.strerror}.") from None
    handle = resolve_handle(job)
    return handle, block_of(handle, backend)


def _reader(handle: JobHandle, stream: Stream, offset: int | None) -> Any:
    return lambda channel: read_logs(channel, handle, stream, offset)


def _tell(outcome: JobStatus | PrefectPsikError) -> None:
    if isinstance(outcome, JobStatus):
        notes.print(shown(f"{outcome.handle} is {outcome.state.value}: {outcome.message}."))
    else:
        notes.print(shown(outcome))


def _is(outcome: JobStatus | PrefectPsikError, state: JobState) -> bool:
    return isinstance(outcome, JobStatus) and outcome.state is state


def _described(status: JobStatus) -> dict[str, object]:
    handle = status.handle
    return {
        "job": handle.name,
        "stamp": handle.stamp,
        "native id": handle.native_id,
        "run": handle.jobndx,
        "state": status.state.value,
        "cause": status.cause.value if status.cause else None,
        "exit code": status.exit_code,
        "what happened": status.message,
        "why it waits": status.reason,
        "submitted": _time(status.submitted),
        "started": _time(status.started),
        "ended": _time(status.ended),
        "where": handle.place,
        "directory": handle.path,
        "handle": handle.model_dump_json(exclude_defaults=True),
    }


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _span(text: str) -> timedelta:
    units = {"d": "days", "h": "hours", "m": "minutes"}
    if not text[:-1].isdecimal() or text[-1:] not in units:
        raise SpecError(f"--older-than takes a number followed by d, h or m, such as 30d, not {text!r}.")
    return timedelta(**{units[text[-1]]: int(text[:-1])})

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
Job = Annotated[str, Parameter(help="A stamp (with --backend), a handle as JSON, or a file that holds one.")]

_FOLLOW_SECONDS = 3.0


@app.command(name="ls")
def ls(backend: Backend = None, *, flow_run: str | None = None, limit: int = 50, as_json: bool = False) -> int:
    """List the jobs under a backend's prefix, newest first, with what became of them.

    Args:
        backend: Where.
        flow_run: Only those that this flow run submitted; its UUID.
        limit: At most so many.
        as_json: Print one JSON object a line, for other programs.
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
    """Say what became of a job.

    Args:
        job: Which.
        backend: Where, for a stamp.

    Returns:
        0 if it completed or has not ended, else 1.
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
    """Print the end of a job's log, at most 16 KiB; with -f also what comes, until the job ends.

    Args:
        job: Which.
        backend: Where, for a stamp.
        follow: Go on until the job ends. Ctrl-C ends this, not the job.
        stream: Which of its logs.
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
    """Cancel a job, or all jobs that a flow run submitted, and say how they ended.

    Args:
        job: Which.
        backend: Where, for a stamp or a flow run.
        flow_run: Cancel all its jobs; its UUID.

    Returns:
        0 if all of them are canceled, or had ended before, else 1.
    """
    if job is not None and flow_run is None:
        return _cancel_job(job, backend)
    if flow_run is not None and job is None:
        return _cancel_flow_run(flow_run, backend)
    raise SpecError("Give a job or --flow-run, one of the two: which jobs are to be canceled?")


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
    may_run = f"; {left} may still run, see above" if left else ""
    asked = "1 job was" if stopped == 1 else f"{stopped} jobs were"
    notes.print(shown(f"{asked} asked to stop, of flow run {flow_run}{may_run}."))
    return FAILURE if left else 0


@app.command
def clean(backend: Backend = None, *, older_than: str, keep_failed: bool = True, dry_run: bool = False) -> int:
    """Remove the directories of jobs that ended long ago; what may be alive stays.

    Args:
        backend: Where.
        older_than: Since the job's end: 30d, 12h or 90m.
        keep_failed: Keep jobs that failed or were canceled.
        dry_run: Remove nothing, only tell what would go.
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
    """Find the job that is meant, and the block that holds the login for it."""
    if job.replace(".", "", 1).isdecimal() and not Path(job).exists():
        block = _block(backend)

        async def work(channel: Channel) -> Records:
            return await read_records(channel, block.endpoint_id, block.document_name, stamps=[job])

        found = result(on_block(block, work))
        if job not in found:
            raise SpecError(f"There is no job {job} below {block.prefix} of this backend. See prefect-psik ls.")
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
        raise SpecError(f"--older-than takes a number with d, h or m, as in 30d, not {text!r}.")
    return timedelta(**{units[text[-1]]: int(text[:-1])})

"""Reconcile: report jobs without their flow run, and flow runs without their jobs; fix them only on request.

`python flows/reconcile.py perlmutter frontier` serves it every hour for these backends, to report only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from prefect import flow, unmapped
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import TaskRunSort
from prefect.states import Cancelled, Crashed
from pydantic import BaseModel

from prefect_psik import (
    JobRecord,
    JobStatus,
    PrefectPsikError,
    PsikBackend,
    arun_job,
    await_for_job,
    await_for_start,
    cancel_job,
    list_jobs,
    poll_job,
    run_job,
    wait_for_job,
    wait_for_start,
)
from prefect_psik.flow_run.labels import places_of

#: The most runs that Prefect's API returns in one answer.
PAGE = 200
#: Tasks that do nothing but wait for a job.
WAITS = {
    task.task_key for task in (run_job, arun_job, wait_for_job, await_for_job, wait_for_start, await_for_start)
}


class Finding(BaseModel):
    """A row of the table."""

    kind: Literal["backend", "job", "flow run"]
    id: str
    name: str
    why: str
    still_runs: str = ""
    done: str = "reported"


class Job(BaseModel):
    """A job on one of the backends, with its current status."""

    backend: str
    record: JobRecord
    status: JobStatus


@flow(name="reconcile psik jobs")
def reconcile(
    backends: list[str], cancel: bool = False, close: bool = False, idle: timedelta = timedelta(hours=1)
) -> list[Finding]:
    """Compare the facilities' records of jobs with Prefect's flow runs.

    Args:
        backends: Names of `psik-backend` blocks.
        cancel: Cancel jobs whose flow run was cancelled or no longer exists. Read a report first: if another
            Prefect server submits to the same prefix, its flow runs do not exist on this one.
        close: End flow runs whose jobs have ended or no longer exist: a running one becomes Crashed and can be
            retried, one that is being cancelled becomes Cancelled. One with another running task is left alone.
        idle: A flow run counts as waiting in vain once, for this long, none of its jobs was alive and none of its
            tasks began.

    Returns:
        The findings, which are also in the table artifact `psik-reconcile`.
    """
    with get_client(sync_client=True) as client:
        running = read_running(client)
        jobs, troubles = read_all(backends, {str(run.id) for run in running})
        orphans = find_orphans(client, jobs)
        away = {trouble.name for trouble in troubles}
        waiting = find_waiting(client, running, [name for name in backends if name not in away], jobs, idle)
        findings = [
            *troubles,
            *(cancel_orphans(orphans) if cancel else (finding for _, finding in orphans)),
            *(close_flow_runs(client, waiting) if close else (finding for _, finding in waiting)),
        ]
    create_table_artifact(
        [finding.model_dump() for finding in findings],
        key="psik-reconcile",
        description=f"{len(jobs)} jobs checked on {', '.join(backends)}; {len(findings)} findings",
    )
    return findings


def read_all(backends: list[str], running: set[str]) -> tuple[list[Job], list[Finding]]:
    """The jobs of all backends, and findings about backends that could not be read completely."""
    jobs: list[Job] = []
    troubles = []
    for backend in backends:
        try:
            found, unknown = read_jobs(backend, running)
            jobs += found
            why = f"{len(unknown)} of its jobs could not be checked: {unknown[0]}" if unknown else None
        except PrefectPsikError as err:
            why = str(err)
        if why:
            troubles.append(Finding(kind="backend", id=backend, name=backend, why=why))
    return jobs, troubles


def read_jobs(backend: str, running: set[str]) -> tuple[list[Job], list[Exception]]:
    """The jobs of a backend that may be alive or belong to a running flow run, with their status; the errors."""
    records = [
        record
        for record in list_jobs(backend, limit=None)
        if record.flow_runs and (not record.state.is_final or running.intersection(record.flow_runs))
    ]
    asked = poll_job.map([record.handle for record in records], backend=unmapped(backend))
    told = [future.result(raise_on_failure=False) for future in asked]
    jobs = [
        Job(backend=backend, record=record, status=status)
        for record, status in zip(records, told, strict=True)
        if isinstance(status, JobStatus)
    ]
    return jobs, [status for status in told if isinstance(status, Exception)]


# --------------------------------------------------------------------------------- jobs without a flow run


def find_orphans(client: SyncPrefectClient, jobs: list[Job]) -> list[tuple[Job, Finding]]:
    """The live jobs that no flow run needs any more."""
    live = [job for job in jobs if not job.status.state.is_final]
    known = read_flow_runs(client, {run for job in live for run in job.record.flow_runs})
    found = []
    for job in live:
        runs = [known.get(run) for run in job.record.flow_runs]
        # The outermost flow run decides what becomes of its subflows.
        deciding = [run for run in runs if run is None or run.parent_task_run_id is None] or runs
        if all(run is None or is_cancelled(run) for run in deciding):
            handle = job.record.handle
            why = "its flow run was cancelled" if any(deciding) else "its flow run no longer exists"
            found.append((job, Finding(kind="job", id=handle.stamp, name=str(handle), why=why)))
    return found


def is_cancelled(run: FlowRun) -> bool:
    """Whether a flow run is cancelled, or being cancelled: without a worker it stays in that state for ever."""
    return run.state is not None and (run.state.is_cancelled() or run.state.is_cancelling())


def read_flow_runs(client: SyncPrefectClient, ids: Iterable[str]) -> dict[str, FlowRun]:
    """Those of these flow runs that still exist in Prefect."""
    wanted = sorted(ids)
    known: dict[str, FlowRun] = {}
    for begin in range(0, len(wanted), PAGE):
        some = FlowRunFilter.model_validate({"id": {"any_": wanted[begin : begin + PAGE]}})
        known |= {str(run.id): run for run in client.read_flow_runs(flow_run_filter=some, limit=PAGE)}
    return known


def cancel_orphans(orphans: list[tuple[Job, Finding]]) -> Iterable[Finding]:
    """Cancel these jobs, together."""
    asked = [cancel_job.submit(job.record.handle, backend=job.backend) for job, _ in orphans]
    for (_, finding), future in zip(orphans, asked, strict=True):
        outcome = future.result(raise_on_failure=False)
        done = outcome.state.value if isinstance(outcome, JobStatus) else f"cancel failed: {outcome}"
        yield finding.model_copy(update={"done": done})


# ---------------------------------------------------------------------------------- flow runs without a job


def find_waiting(
    client: SyncPrefectClient, running: list[FlowRun], backends: list[str], jobs: list[Job], idle: timedelta
) -> list[tuple[FlowRun, Finding]]:
    """The running flow runs that have long had nothing left to wait for."""
    blocks = [PsikBackend.load(backend) for backend in backends]
    here = {(block.endpoint_id, block.prefix) for block in blocks if isinstance(block, PsikBackend)}
    found = []
    for run in running:
        places = {(place.endpoint_id, place.prefix) for place in places_of(run.labels)}
        if not places or not places <= here:
            continue  # it has no jobs, or some on other backends
        mine = [job.status for job in jobs if str(run.id) in job.record.flow_runs]
        if any(not status.state.is_final for status in mine):
            continue
        since = max([last_begin(client, run), *(ended(status) for status in mine)])
        if datetime.now(UTC) - since > idle:
            what = f"all of its {len(mine)} jobs have ended" if mine else "its jobs no longer exist"
            why = f"{what}, and nothing has happened since {since:%F %R} UTC"
            still = ", ".join(running_tasks(client, run))
            found.append((run, Finding(kind="flow run", id=str(run.id), name=run.name, why=why, still_runs=still)))
    return found


def running_tasks(client: SyncPrefectClient, run: FlowRun) -> list[str]:
    """Tasks in state Running, apart from waits for jobs; tasks of a killed process stay in that state, too."""
    mine = FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
    at_work = TaskRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING"]}}})
    found = client.read_task_runs(flow_run_filter=mine, task_run_filter=at_work, limit=PAGE)
    return sorted(task.name for task in found if task.task_key not in WAITS)


def read_running(client: SyncPrefectClient) -> list[FlowRun]:
    """All outermost flow runs that are in state Running or Cancelling."""
    running: dict[str, Any] = {
        "state": {"type": {"any_": ["RUNNING", "CANCELLING"]}},
        "parent_task_run_id": {"is_null_": True},
    }
    wanted = FlowRunFilter.model_validate(running)
    found: list[FlowRun] = []
    while some := client.read_flow_runs(flow_run_filter=wanted, limit=PAGE, offset=len(found)):
        found += some
    return found


def last_begin(client: SyncPrefectClient, run: FlowRun) -> datetime:
    """When the flow run, or its most recent task, began."""
    mine = FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
    tasks = client.read_task_runs(flow_run_filter=mine, sort=TaskRunSort.EXPECTED_START_TIME_DESC, limit=1)
    return max(time for time in (run.start_time, run.created, *(task.start_time for task in tasks)) if time)


def ended(status: JobStatus) -> datetime:
    """When a job ended, by the facility's clock."""
    return datetime.fromtimestamp(status.ended or status.submitted or 0, UTC)


def close_flow_runs(client: SyncPrefectClient, waiting: list[tuple[FlowRun, Finding]]) -> Iterable[Finding]:
    """End these flow runs, unless another task is running in them."""
    for run, finding in waiting:
        if finding.still_runs:
            yield finding.model_copy(
                update={
                    "done": "left alone: another task is running. If its process is gone, end the flow run by hand"
                }
            )
            continue
        why = f"Reconciled: {finding.why}."
        cancelling = run.state is not None and run.state.is_cancelling()
        state: State[Any] = Cancelled(message=why) if cancelling else Crashed(message=why)
        client.set_flow_run_state(run.id, state, force=True)
        yield finding.model_copy(update={"done": f"closed as {state.name}"})


if __name__ == "__main__":
    reconcile.serve(name="hourly", cron="0 * * * *", parameters={"backends": sys.argv[1:]})

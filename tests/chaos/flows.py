"""The flows that run while faults happen. Each tells what it learns of its jobs, one line of JSON a job."""

from __future__ import annotations

import asyncio
import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from prefect_psik import (
    FailureCause,
    GlobusCollection,
    JobError,
    JobResult,
    JobSpec,
    PsikBackend,
    ResourceSpec,
    WaitLimits,
    arun_job,
    cancel_psik_jobs,
    run_job,
    run_transfer,
    submit_job,
    wait_for_job,
)
from tests.chaos.plan import OUTPUT, Job

#: In the environment of flow processes: the directory of the lines.
PLACE_VARIABLE = "PREFECT_PSIK_CHAOS_PLACE"
#: In the environment of jobs: the name of the job.
JOB_VARIABLE = "PREFECT_PSIK_CHAOS_JOB"
BACKEND = "chaos"
SMALL = ResourceSpec(duration=10, exclusive_node_use=False)
#: A lost node is answered with another run of the job where a flow asks for it.
AGAIN = (FailureCause.node_failure,)

#: A clock that jumps is ahead by 2 h, or by 2 days.
HOURS = WaitLimits(queue=timedelta(hours=1), run=timedelta(hours=1), trouble=timedelta(hours=1))
FAR = timedelta(days=7)

Jobs = list[dict[str, Any]]


def place() -> Path:
    """The directory of the lines."""
    return Path(os.environ[PLACE_VARIABLE])


def _spec(job: Job) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": job.name,
            "script": job.script(place() / "lines"),
            "environment": {JOB_VARIABLE: job.name},
            "resources": SMALL,
            **job.promise(),
        }
    )


def _tell(name: str, outcome: object) -> None:
    """Append what was learned; only the end of a job is an outcome, all else fails the flow run."""
    if isinstance(outcome, JobError):
        outcome = outcome.result
    if not isinstance(outcome, JobResult):
        assert isinstance(outcome, BaseException), outcome
        raise outcome
    told = {
        "job": name,
        "flow_run": str(flow_run.root_flow_run_id),
        "native_id": outcome.native_id,
        "state": outcome.state.value,
        "cause": outcome.cause.value if outcome.cause else None,
        "exit_code": outcome.exit_code,
        "output": outcome.outputs.get(OUTPUT, b"").decode().strip(),
        "message": outcome.message,
        # time.time() may jump here.
        "time": time.clock_gettime(time.CLOCK_REALTIME),
    }
    line = json.dumps(told) + "\n"
    file = os.open(place() / "told", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def _run(job: Job, **options: Any) -> None:
    try:
        _tell(job.name, run_job(BACKEND, _spec(job), **options))
    except JobError as err:
        _tell(job.name, err)


async def _arun(backend: PsikBackend, job: Job) -> None:
    try:
        _tell(job.name, await arun_job(backend, _spec(job)))
    except JobError as err:
        _tell(job.name, err)


def _move(name: str) -> None:
    """Move a file of this machine by a day that no clock here is ahead of."""
    here = GlobusCollection(base_path=str(place()))
    (place() / f"raw-{name}").write_text(name)
    run_transfer(here, here, [(f"raw-{name}", f"moved-{name}")], deadline=FAR)
    assert (place() / f"moved-{name}").read_text() == name


@flow(on_cancellation=[cancel_psik_jobs])
def direct(jobs: Jobs) -> None:
    """One job after the other, each after a transfer; with limits that only a clock that jumps could reach."""
    for job in jobs:
        _move(job["name"])
        _run(Job(**job), retry_on=AGAIN, limits=HOURS)


@flow(on_cancellation=[cancel_psik_jobs])
async def gathered(jobs: Jobs) -> None:
    """All at once, on the event loop."""
    backend = await PsikBackend.aload(BACKEND)
    await asyncio.gather(*(_arun(backend, Job(**job)) for job in jobs))


@flow(on_cancellation=[cancel_psik_jobs])
def mapped(jobs: Jobs) -> None:
    """All at once, in threads; each is submitted and waited for by one task."""
    futures = run_job.map(BACKEND, [_spec(Job(**job)) for job in jobs])
    for job, future in zip(jobs, futures, strict=True):
        _tell(job["name"], future.result(raise_on_failure=False))


@flow(on_cancellation=[cancel_psik_jobs])
def split(jobs: Jobs) -> None:
    """All at once, in threads; one task submits and another waits."""
    handles = [submit_job.submit(BACKEND, _spec(Job(**job))) for job in jobs]
    futures = [wait_for_job.submit(handle.result()) for handle in handles]
    for job, future in zip(jobs, futures, strict=True):
        _tell(job["name"], future.result(raise_on_failure=False))


@flow
def part(jobs: Jobs) -> None:
    """Half of `nested`."""
    for job in jobs:
        _run(Job(**job))


@flow(on_cancellation=[cancel_psik_jobs])
def nested(jobs: Jobs) -> None:
    """Two flows within this one."""
    half = len(jobs) // 2
    part(jobs[:half])
    part(jobs[half:])


@flow(retries=1, on_cancellation=[cancel_psik_jobs])
def retried(jobs: Jobs) -> None:
    """What fails at first fails the flow, and is run again by its retry."""
    for number, job in enumerate(jobs):
        if number == 0 and flow_run.run_count == 1:
            _tell(job["name"], run_job(BACKEND, _spec(Job(**job))))
        else:
            _run(Job(**job))

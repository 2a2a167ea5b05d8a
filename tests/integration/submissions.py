"""Flows whose submissions are disturbed; served in a process of their own by `python submissions.py`."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any, NamedTuple

from prefect import flow, serve
from prefect.deployments import arun_deployment
from prefect.deployments.runner import RunnerDeployment
from prefect.runtime import flow_run

from prefect_psik import FailureCause, JobSpec, ResourceSpec, run_job, submit_job, wait_for_job
from prefect_psik.jobs import lifecycle
from prefect_psik.transport.globus.transport import GlobusTransport


def line(name: str) -> JobSpec:
    """A short job that leaves a line in the file of its name, and so tells how often it ran."""
    script = f'#!/bin/bash\necho "$SLURM_JOB_ID" >> "$base/../../data/{name}"\n'
    return JobSpec(name=name, script=script, resources=ResourceSpec(duration=5, exclusive_node_use=False))


def second_time(name: str) -> JobSpec:
    """The same job, that fails the first time."""
    return line(name).replace(script=line(name).script + f'[ $(wc -l < "$base/../../data/{name}") -gt 1 ]\n')


class Step(NamedTuple):
    """A coroutine of the library, and whether its process dies at its begin or at its end."""

    owner: Any
    coroutine: str
    operation: str | None
    at_end: bool


STEPS = {
    "nothing is sent": Step(GlobusTransport, "_send", "submit", at_end=False),
    "it is sent": Step(GlobusTransport, "_send", "submit", at_end=True),
    "it is answered": Step(GlobusTransport, "call", "submit", at_end=True),
    "it was looked at": Step(GlobusTransport, "call", "status", at_end=True),
    "its end is known": Step(lifecycle, "finish", None, at_end=False),
}


def die_at(step: Step, run: int) -> None:
    """Let this process be killed at a step of a run of the job, as by `kill -9`."""
    real, left = getattr(step.owner, step.coroutine), [run]

    async def dying(*arguments: Any, **options: Any) -> Any:
        meant = step.operation is None or step.operation in arguments
        left[0] -= meant
        meant = left[0] <= 0 and meant
        if meant and not step.at_end:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await real(*arguments, **options)
        if meant:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(step.owner, step.coroutine, dying)


@flow
def killed(backend: str, name: str, step: str, run: int = 1) -> None:
    """One job; the first process of the flow run is killed at a step of its first or second run."""
    if flow_run.run_count == 1:
        die_at(STEPS[step], run)
    run_job(backend, line(name) if run == 1 else second_time(name), retry_on=(FailureCause.script,))


@flow
def parted(backend: str, name: str) -> None:
    """One job; the first process of the flow run is killed between the tasks that submit and wait."""
    handle = submit_job(backend, line(name))
    if flow_run.run_count == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_job(handle)


@flow
def scan(backend: str, name: str) -> None:
    """One job under the scan's own key."""
    run_job(backend, line(name), key=name)


@flow
async def scans(backend: str, name: str) -> None:
    """Two deployments that mean the same scan, at the same time."""
    parameters = {"backend": backend, "name": name}
    runs = await asyncio.gather(*(arun_deployment("scan/served", parameters=parameters) for _ in range(2)))
    assert all(run.state is not None and run.state.is_completed() for run in runs)


if __name__ == "__main__":
    made = [found.to_deployment(name="served") for found in (killed, parted, scan, scans)]
    serve(*(deployment for deployment in made if isinstance(deployment, RunnerDeployment)), limit=20)

"""Every place where a task can wait, as a flow; run in processes of their own, which tests cancel and kill.

`python places.py serve` serves all, `deploy POOL` makes deployments of some for a worker of that pool, and
`PLACE BACKEND TAG` runs one, as a script does.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from prefect import Flow, flow, serve, unmapped
from prefect.deployments.runner import RunnerDeployment
from prefect.flow_runs import suspend_flow_run

from prefect_psik import JobSpec, ResourceSpec, arun_job, cancel_psik_jobs, run_job, submit_job, wait_for_job
from prefect_psik.flow_run.cancellation import OnCancel


def sleeper(name: str, *, whole_node: bool = False) -> JobSpec:
    """A job that leaves a line, and goes on until it is ended; Slurm lists it by its name."""
    script = f'#!/bin/bash\necho "$SLURM_JOB_ID" >> "$base/../../data/{name}"\nsleep 3600\n'
    resources = ResourceSpec(duration=60, exclusive_node_use=whole_node)
    return JobSpec(name=name, script=script, resources=resources)


# Each job has a key of its own, so that another process which waits at the same place finds it again.


@flow
def direct(backend: str, tag: str, on_cancel: OnCancel = "cancel") -> None:
    """A sync task called directly."""
    name = f"{tag}-direct"
    run_job(backend, sleeper(name), key=name, on_cancel=on_cancel)


@flow
async def awaited(backend: str, tag: str, on_cancel: OnCancel = "cancel") -> None:
    """An async task."""
    name = f"{tag}-awaited"
    await arun_job(backend, sleeper(name), key=name, on_cancel=on_cancel)


@flow
async def gathered(backend: str, tag: str, on_cancel: OnCancel = "cancel") -> None:
    """Async tasks side by side."""
    names = [f"{tag}-gathered-{number}" for number in range(2)]
    await asyncio.gather(*(arun_job(backend, sleeper(name), key=name, on_cancel=on_cancel) for name in names))


@flow
def submitted(backend: str, tag: str, on_cancel: OnCancel = "cancel") -> None:
    """A task in a thread of the task runner."""
    name = f"{tag}-submitted"
    run_job.submit(backend, sleeper(name), key=name, on_cancel=on_cancel).result()


@flow
def asubmitted(backend: str, tag: str, on_cancel: OnCancel = "cancel") -> None:
    """An async task in a thread of the task runner."""
    name = f"{tag}-asubmitted"
    _ = arun_job.submit(backend, sleeper(name), key=name, on_cancel=on_cancel).result()


@flow
def mapped(backend: str, tag: str, on_cancel: OnCancel = "cancel") -> None:
    """Tasks in threads of the task runner."""
    names = [f"{tag}-mapped-{number}" for number in range(2)]
    specs = [sleeper(name) for name in names]
    run_job.map(unmapped(backend), specs, key=names, on_cancel=unmapped(on_cancel)).result()


@flow
def inner(backend: str, name: str, on_cancel: OnCancel) -> None:
    """The subflow of `nested`."""
    run_job(backend, sleeper(name), key=name, on_cancel=on_cancel)


@flow
def nested(backend: str, tag: str, on_cancel: OnCancel = "cancel") -> None:
    """A sync task in a subflow."""
    inner(backend, f"{tag}-nested", on_cancel)


@flow
async def ainner(backend: str, name: str, on_cancel: OnCancel) -> None:
    """The subflow of `anested`."""
    await arun_job(backend, sleeper(name), key=name, on_cancel=on_cancel)


@flow
async def anested(backend: str, tag: str, on_cancel: OnCancel = "cancel") -> None:
    """An async task in an async subflow."""
    await ainner(backend, f"{tag}-anested", on_cancel)


@flow
def several(backend: str, tag: str) -> None:
    """Several jobs, of which only the first is waited for as yet."""
    handles = [submit_job(backend, sleeper(f"{tag}-several-{number}")) for number in range(3)]
    for handle in handles:
        wait_for_job(handle)


@flow
def suspended(backend: str, tag: str) -> None:
    """A flow that ends its process while the job goes on, and begins anew when it is resumed."""
    name = f"{tag}-suspended"
    handle = submit_job(backend, sleeper(name))
    suspend_flow_run(timeout=3600)
    wait_for_job(handle)


@flow(on_cancellation=[cancel_psik_jobs])
def forgetful(backend: str, tag: str, on_cancel: OnCancel = "cancel") -> None:
    """A job that nobody waits for: only the hook ends it."""
    submit_job(backend, sleeper(f"{tag}-forgetful"), on_cancel=on_cancel)
    time.sleep(3600)


@flow
def crowd(backend: str, count: int) -> None:
    """Many jobs, of which most have to wait for a node."""
    specs = [sleeper(f"crowd-{number}", whole_node=True) for number in range(count)]
    run_job.map(unmapped(backend), specs).result()


PLACES: dict[str, Flow[..., Any]] = {
    "direct": direct,
    "awaited": awaited,
    "gathered": gathered,
    "submitted": submitted,
    "asubmitted": asubmitted,
    "mapped": mapped,
    "nested": nested,
    "anested": anested,
}
#: Of each kind one: the main thread, an event loop, a subflow on one, a thread. As the process of a worker a flow
#: runs as one that is served does.
WORKED = ("direct", "awaited", "anested", "submitted")
#: How many jobs each has.
JOBS = {place: 2 if place in ("gathered", "mapped") else 1 for place in PLACES}


def main(what: str, *arguments: str) -> None:
    """Serve or deploy all, or run one place."""
    if what == "serve":
        flows = (*PLACES.values(), suspended, forgetful, crowd)
        made = [found.to_deployment(name="served") for found in flows]
        serve(*(deployment for deployment in made if isinstance(deployment, RunnerDeployment)), limit=20)
    elif what == "deploy":
        for place in (*WORKED, "forgetful"):
            stored = Flow.from_source(str(Path(__file__).parent), f"{Path(__file__).name}:{place}")
            assert isinstance(stored, Flow)
            stored.deploy("worked", work_pool_name=arguments[0], ignore_warnings=True)
    else:
        result = (PLACES | {"several": several})[what](*arguments)
        if asyncio.iscoroutine(result):
            asyncio.run(result)


if __name__ == "__main__":
    main(*sys.argv[1:])

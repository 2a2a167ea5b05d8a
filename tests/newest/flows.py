"""The flows of the checks: `python -m tests.newest.flows serve|jobs`."""

from __future__ import annotations

import asyncio
import sys

from prefect import flow

from flows.hello_job import hello_job
from prefect_psik import JobSpec, PsikBackend, ResourceSpec, arun_job

JOBS = 200
#: How long a step may take on a busy machine.
LONGEST_SECONDS = 1800.0
#: Between two runs of the served schedule.
SECONDS = 10


@flow(name="many jobs")
async def many_jobs() -> int:
    """Run trivial jobs on this machine, all at the same time; each must print its own number."""

    async def printed(number: int) -> str:
        resources = ResourceSpec(duration=5, exclusive_node_use=False)
        job = JobSpec(name=f"job {number}", script=f"#!/bin/bash\necho {number}\n", resources=resources)
        return (await arun_job(PsikBackend(), job)).stdout.strip()

    numbers = await asyncio.gather(*(printed(number) for number in range(JOBS)))
    if numbers != [str(number) for number in range(JOBS)]:
        raise ValueError(f"Not what the jobs were to print: {numbers}.")
    return len(numbers)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        hello_job.serve(name="served", interval=SECONDS)
    else:
        asyncio.run(many_jobs())

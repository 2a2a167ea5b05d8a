"""The smallest flow: run one batch job on a backend and show what it printed."""

from __future__ import annotations

from prefect import flow
from prefect.logging import get_run_logger

from prefect_psik import JobSpec, PsikBackend, ResourceSpec, run_job

HELLO = JobSpec(
    name="hello",
    script='#!/bin/bash\necho "Hello from $(uname -n), job $jobid"\n',
    resources=ResourceSpec(duration=1, exclusive_node_use=False),
)


@flow(name="hello job")
def hello_job(backend: str | None = None) -> str:
    """Run one tiny job and show what it printed.

    Args:
        backend: Name of a `psik-backend` block. Empty: this machine, without Globus or Slurm.
    """
    result = run_job(backend or PsikBackend(), HELLO)
    get_run_logger().info("The job printed: %s", result.stdout.strip())
    return result.stdout


if __name__ == "__main__":
    hello_job()

"""One flow process of a crowd: `python -m tests.outcomes.waiter HANDLE` waits for a job and prints its stdout."""

from __future__ import annotations

import sys
from pathlib import Path

from prefect import flow

from prefect_psik import JobHandle, wait_for_job


@flow
def wait(handle: JobHandle, ready: str) -> str:
    """Wait for a job."""
    Path(ready).touch()
    return wait_for_job(handle).stdout


if __name__ == "__main__":
    print("stdout:", wait(JobHandle.model_validate_json(sys.argv[1]), sys.argv[2]))

"""A flow that waits for a place in the queue: `python -m tests.integration.full_queue BACKEND NAME`."""

from __future__ import annotations

import sys

from prefect import flow

from prefect_psik import cancel_psik_jobs, run_job
from tests.integration.submissions import line


@flow(on_cancellation=[cancel_psik_jobs])
def waiting(backend: str, name: str) -> None:
    """One job under its own key."""
    run_job(backend, line(name), key=name)


if __name__ == "__main__":
    waiting(*sys.argv[1:])

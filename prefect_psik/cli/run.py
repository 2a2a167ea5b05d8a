"""The command to run a job: run."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from prefect_psik.blocks import PsikBackend
from prefect_psik.cli.app import FAILURE, INTERRUPTED, app, notes, passed_on, shown
from prefect_psik.exceptions import JobError
from prefect_psik.flow_run.load import resolve_spec
from prefect_psik.jobs.tasks import run_job
from prefect_psik.models.causes import FailureCause


class _Output(logging.Handler):
    """Sends the job's own output to stdout or stderr, and our messages about it to stderr."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.job_handle: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        stream, line = getattr(record, "psik_stream", None), getattr(record, "psik_line", "")
        self.job_handle = getattr(record, "psik_handle", self.job_handle)
        if stream == "stdout":
            print(passed_on(line, sys.stdout), flush=True)
        elif stream is not None:
            print(passed_on(line, sys.stderr), file=sys.stderr, flush=True)
        else:
            notes.print(shown(record.getMessage(), "dim"))


@app.command
def run(spec: Path, *, backend: str | None = None, key: str | None = None) -> int:
    """Run the job that a job.yaml describes, print its output, and wait until it ends.

    Ctrl-C stops the waiting, not the job.

    Args:
        spec: The job.yaml.
        backend: Name of a psik-backend block; default: the one named in the file, else this machine.
        key: Idempotency key, such as a scan number. A key never runs twice.

    Returns:
        0 if the job completed; the script's own exit code if it failed; else 1.
    """
    job = resolve_spec(spec)
    output = _Output()
    logger = logging.getLogger("prefect_psik")
    logger.setLevel(logging.INFO)
    logger.addHandler(output)
    logger.propagate = False
    try:
        run_job.fn(backend or job.backend or PsikBackend(), job, key=key)
    except KeyboardInterrupt:
        if output.job_handle:
            notes.print(shown(f"The job keeps running. To cancel it:\nprefect-psik cancel '{output.job_handle}'"))
        return INTERRUPTED
    except JobError as err:
        notes.print(shown(err, "red"))
        code = err.result.exit_code if err.result and err.cause is FailureCause.script else None
        return code if code is not None and 0 < code < 256 else FAILURE
    return 0

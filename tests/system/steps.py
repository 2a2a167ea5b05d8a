"""The steps of the smoke test, in order. Each returns what it saw; what is wrong is an exception."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import uuid4

from prefect_psik import (
    FacilityError,
    FailureCause,
    JobFailed,
    JobResult,
    JobSpec,
    JobState,
    PreflightFailed,
    PsikBackend,
    ResourceSpec,
    cancel_job,
    run_job,
    run_preflight,
    submit_job,
    wait_for_job,
)
from prefect_psik.cli.registration import register
from prefect_psik.jobs.limits import WaitLimits
from prefect_psik.models.jobs import JobHandle

#: Goes there and comes back; well below the limit of the wire.
ECHO_BYTES = 1_000_000
AT_ONCE = 5


class WrongError(Exception):
    """A step saw something else than it must."""


@dataclass
class Run:
    """What the steps share."""

    backend: PsikBackend
    minutes: int
    queue_minutes: float
    first: JobResult | None = None
    key: str = field(default_factory=lambda: f"smoke {uuid4()}")

    @property
    def limits(self) -> WaitLimits:
        """How long each job may queue and run, and how long nothing may be heard of it."""
        queue = timedelta(minutes=self.queue_minutes)
        return WaitLimits(
            queue=queue, run=timedelta(minutes=self.minutes + 5), trouble=timedelta(minutes=5), on_limit="cancel"
        )

    @property
    def step_seconds(self) -> float:
        """How long a step may take: longer than `limits` let its jobs wait, which are there at the same time."""
        return 60 * (self.queue_minutes + self.minutes + 20)

    def job(self, text: str, name: str = "smoke", **fields: object) -> JobSpec:
        """Return a small job of a few lines of bash."""
        resources = ResourceSpec(duration=self.minutes, node_count=1, exclusive_node_use=False)
        whole = {"name": name, "script": f"#!/bin/bash\n{text}\n", "resources": resources, **fields}
        return JobSpec.model_validate(whole)

    def finish(self, spec: JobSpec, key: str | None = None) -> JobResult:
        """Run a job to its end."""
        return run_job.fn(self.backend, spec, key=key, limits=self.limits)


def preflight(run: Run) -> str:
    """Look from here to the scheduler."""
    try:
        report = run_preflight.fn(run.backend)
    except PreflightFailed as err:
        if err.report is None:
            raise
        raise WrongError("; ".join(f"{check.name}: {check.message}" for check in err.report.failures)) from None
    return " ".join(check.message for check in report.checks if check.name in ("versions", "psik", "scheduler"))


def registration(run: Run) -> str:
    """Register the function, and use it from here on."""
    if run.backend.function_id is not None:
        return "not needed: --function-id is given"
    registered = register(backend=run.backend)
    run.backend = run.backend.model_copy(update={"function_id": registered.function_id})
    return f"{registered.function_id}, SHA-256 {registered.digest[:12]}…"


def job(run: Run) -> str:
    """Run a job and bring its result home."""
    run.first = run.finish(run.job("hostname | tee name.txt; id -un", outputs=["name.txt"]), key=run.key)
    if not run.first.outputs["name.txt"]:
        raise WrongError("The result file came back empty.")
    host, user = run.first.stdout.split()
    queued = run.first.queue_seconds
    return f"as {user} on {host}" + (f", {queued:.0f} s in the queue" if queued is not None else "")


def same_key(run: Run) -> str:
    """Submit the same job again: it must be the same one."""
    if run.first is None:
        raise WrongError("There is no first job to compare with.")
    again = submit_job.fn(
        run.backend, run.job("hostname | tee name.txt; id -un", outputs=["name.txt"]), key=run.key
    )
    first = run.first.handle
    if (again.stamp, again.native_id, again.jobndx) != (first.stamp, first.native_id, first.jobndx):
        raise WrongError(
            f"Another job: {again.stamp} {again.native_id} instead of {first.stamp} {first.native_id}."
        )
    return f"job {again.stamp}, submitted once"


def echo(run: Run) -> str:
    """Send a file of 1 MB and get it back."""
    text = secrets.token_hex(ECHO_BYTES // 2)
    result = run.finish(run.job("cp in.txt out.txt", name="echo", files={"in.txt": text}, outputs=["out.txt"]))
    if result.outputs.get("out.txt") != text.encode():
        raise WrongError("What came back is not what was sent.")
    return f"{ECHO_BYTES:,} bytes there and back"


def failure(run: Run) -> str:
    """Run a script that fails."""
    try:
        run.finish(run.job("echo broken >&2; exit 3", name="failing"))
    except JobFailed as err:
        if err.cause is FailureCause.script and err.result is not None and err.result.exit_code == 3:
            return "told as cause script, exit code 3"
        raise
    raise WrongError("The job counts as completed.")


def cancel(run: Run) -> str:
    """Cancel a job that would go on."""
    handle = submit_job.fn(run.backend, run.job("sleep 3600", name="canceled"))
    status = cancel_job.fn(handle, backend=run.backend)
    if status.state is not JobState.canceled:
        raise WrongError(f"The job is {status.state.value}: {status.message}.")
    return "confirmed by the scheduler" if run.backend.attributes.type == "slurm" else "its processes are gone"


def at_once(run: Run) -> str:
    """Run some jobs at the same time."""

    def one(number: int) -> JobHandle:
        return submit_job.fn(run.backend, run.job(f"echo {number}", name=f"many-{number}"))

    begin = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        handles = list(pool.map(one, range(AT_ONCE)))
        submitted = time.monotonic() - begin
        results = list(
            pool.map(
                lambda handle: wait_for_job.fn(handle, backend=run.backend, limits=run.limits),
                handles,
            )
        )
    said = [result.stdout.strip() for result in results]
    if said != [str(number) for number in range(AT_ONCE)]:
        raise WrongError(f"The jobs printed {said}.")
    return f"{AT_ONCE} jobs, submitted in {submitted:.1f} s"


def unknown_function(run: Run) -> str:
    """Ask for a function that does not exist, to see what the service says."""
    return _refused(run, function_id=uuid4())


def unknown_endpoint(run: Run) -> str:
    """Ask an endpoint that does not exist."""
    return _refused(run, endpoint_id=uuid4())


def _refused(run: Run, **changes: object) -> str:
    try:
        submit_job.fn(run.backend.model_copy(update=changes), run.job("true", name="refused"))
    except FacilityError as err:
        return f"{type(err).__name__}: {err}"
    raise WrongError("It was not refused.")


STEPS: dict[str, Callable[[Run], str]] = {
    "preflight": preflight,
    "register the function": registration,
    "a job and its result": job,
    "the same key again": same_key,
    "1 MB there and back": echo,
    "a failing script": failure,
    "cancel": cancel,
    "some jobs at once": at_once,
    "what is said to a wrong function": unknown_function,
    "what is said to a wrong endpoint": unknown_endpoint,
}
#: Without these the others say nothing.
NEEDED = ("preflight", "register the function")

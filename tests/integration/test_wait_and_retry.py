"""Preflight, limits of a wait and further runs, on the real chain."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from prefect_psik import (
    ContactLost,
    FailureCause,
    JobFailed,
    JobState,
    PreflightFailed,
    PsikBackend,
    QueueLimitReached,
    ResourceSpec,
    RunLimitReached,
    WaitLimits,
    arun_job,
    cancel_job,
    poll_job,
    run_job,
    run_preflight,
)
from prefect_psik.jobs import submit as submissions
from prefect_psik.jobs import wait as runs
from prefect_psik.jobs.lifecycle import Again
from prefect_psik.spec.retry import Asked
from prefect_psik.transport.base import CALL_SECONDS
from tests.integration.local import wait_until
from tests.integration.slurm_view import account_of
from tests.integration.test_slurm_jobs import LONG, backend, client, script, with_attributes
from tests.testbed.facility import Facility

__all__ = ["backend", "client"]

pytestmark = pytest.mark.usefixtures("prefect_server")


def slurm_jobs(facility: Facility) -> set[str]:
    """The jobs that Slurm's queue has, ended ones included until it forgets them."""
    return set(facility.squeue("-h", "-t", "all", "-o", "%i").split())


def failures(error: PreflightFailed) -> dict[str, str]:
    assert error.report is not None
    return {check.name: check.message for check in error.report.failures}


# ---------------------------------------------------------------------------------------------- preflight


def test_a_facility_that_works_passes(facility: Facility, backend: PsikBackend) -> None:
    @flow
    def look() -> None:
        run_preflight(backend, script("true"))

    before = slurm_jobs(facility)
    look()
    assert slurm_jobs(facility) <= before, "a preflight submits nothing"
    key = f"preflight-endpoint-{facility.endpoint_id}"
    with get_client(sync_client=True) as api:
        found = api.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    assert "sbatch would accept the job" in str(found[0].data)


@pytest.mark.parametrize(
    ("changes", "check", "words"),
    [
        ({"queue_name": "nope"}, "queue", "no such partition"),
        ({"queue_name": "off"}, "queue", "is DOWN"),
        ({"project_name": "proj2"}, "resources", "Invalid account"),
        ({"options": {"--reservation": "none"}}, "resources", "reservation is invalid"),
    ],
)
def test_what_slurm_would_refuse_is_known_before(
    facility: Facility, backend: PsikBackend, changes: dict[str, Any], check: str, words: str
) -> None:
    before = slurm_jobs(facility)
    with pytest.raises(PreflightFailed) as failed:
        run_job(with_attributes(backend, **changes), script("true"), preflight=True)
    assert words in failures(failed.value)[check]
    assert slurm_jobs(facility) <= before


def test_more_time_than_the_partition_allows(backend: PsikBackend) -> None:
    spec = script("true", resources=ResourceSpec(duration=61, exclusive_node_use=False))
    with pytest.raises(PreflightFailed) as failed:
        run_preflight.fn(backend, spec)
    assert "at most 60 min, but the job asks for 61," in failures(failed.value)["queue"]


def test_a_prefix_that_cannot_be_written(backend: PsikBackend) -> None:
    with pytest.raises(PreflightFailed) as failed:
        run_preflight.fn(backend.model_copy(update={"prefix": "/proc/psik"}))
    assert "/proc/psik" in failures(failed.value)["prefix"]


def test_an_endpoint_that_does_not_exist(backend: PsikBackend) -> None:
    with pytest.raises(PreflightFailed) as failed:
        run_preflight.fn(backend.model_copy(update={"endpoint_id": uuid4()}))
    assert "not known" in failures(failed.value)["endpoint"]


def test_an_endpoint_that_is_offline_is_not_waited_for(facility: Facility, backend: PsikBackend) -> None:
    facility.endpoint.stop()
    try:
        facility.globus.forget_online(facility.endpoint_id)
        wait_until(lambda: not facility.endpoint.is_online())
        begin = time.monotonic()
        with pytest.raises(PreflightFailed) as failed:
            run_preflight.fn(backend)
        assert "is offline. Start it" in failures(failed.value)["endpoint"]
        assert time.monotonic() - begin < CALL_SECONDS
    finally:
        facility.start()


# ------------------------------------------------------------------------------------------------- limits


def test_a_job_that_stays_in_the_queue_is_given_up(facility: Facility, backend: PsikBackend) -> None:
    limits = WaitLimits(queue=timedelta(seconds=3), on_limit="cancel")
    with pytest.raises(QueueLimitReached, match="is now canceled") as reached:
        run_job(with_attributes(backend, options={"--hold": "--hold"}), script("true"), limits=limits)
    assert reached.value.handle is not None
    assert account_of(facility, reached.value.handle.native_id, "State").startswith("CANCELLED")


async def test_a_job_that_runs_too_long_may_go_on(backend: PsikBackend) -> None:
    limits = WaitLimits(run=timedelta(seconds=2))
    with pytest.raises(RunLimitReached, match="was not canceled: wait for it again") as reached:
        await arun_job(backend, script("sleep 300"), limits=limits)
    assert reached.value.handle is not None
    status = poll_job.fn
    import asyncio

    found = await asyncio.to_thread(status, reached.value.handle, backend=backend)
    assert found.state is JobState.active
    await asyncio.to_thread(cancel_job.fn, reached.value.handle, backend=backend)


def test_an_endpoint_that_stays_away_is_lost_contact(facility: Facility, backend: PsikBackend) -> None:
    handle = submissions.submit(
        submissions.Submission.of(
            backend, script("sleep 3000", resources=LONG), key=None, rerun="never", on_cancel="leave"
        )
    )
    facility.endpoint.stop()
    try:
        facility.globus.forget_online(facility.endpoint_id)
        with pytest.raises(ContactLost, match="Nothing has been heard of job"):
            runs.wait(handle, backend, "leave", WaitLimits(trouble=timedelta(seconds=2)))
    finally:
        facility.start()
    assert cancel_job.fn(handle, backend=backend).state is JobState.canceled


# -------------------------------------------------------------------------------------------------- runs


def test_a_failure_that_is_worth_it_runs_again(facility: Facility, backend: PsikBackend) -> None:
    spec = script('echo "run $jobndx"; [ "$jobndx" = 3 ]')
    result = run_job(backend, spec, retry_on={FailureCause.script}, max_runs=3)
    assert result.stdout == "run 3\n"
    logs = Path(result.handle.path) / "log"
    assert [(logs / f"stdout.{n}").read_text() for n in (1, 2, 3)] == [f"run {n}\n" for n in (1, 2, 3)]
    assert all((logs / f"console.{n}").exists() for n in (1, 2)), "Slurm would begin it anew"
    record = (Path(result.handle.path) / "status.csv").read_text()
    assert record.count("queued") == 3


def test_there_are_no_more_runs_than_allowed(backend: PsikBackend) -> None:
    with pytest.raises(JobFailed) as failed:
        run_job(backend, script("exit 4"), retry_on={FailureCause.script}, max_runs=2)
    assert failed.value.result is not None
    assert (failed.value.result.handle.jobndx, failed.value.result.exit_code) == (2, 4)


def test_the_next_run_may_have_more(facility: Facility, backend: PsikBackend) -> None:
    submission = submissions.Submission.of(backend, script("exit 1"), key=None, rerun="never", on_cancel="leave")
    first = submissions.submit(submission)
    with pytest.raises(JobFailed):
        runs.wait(first, backend, "leave", WaitLimits())
    second = submissions.submit(submission, Again(after=1, number=1, asked=Asked(duration=8, memory="2G")))
    with pytest.raises(JobFailed):
        runs.wait(second, backend, "leave", WaitLimits())
    assert (first.jobndx, second.jobndx, second.duration, second.memory) == (1, 2, 8, "2G")
    assert account_of(facility, first.native_id, "Timelimit") == "00:05:00"
    assert account_of(facility, second.native_id, "Timelimit,ReqMem") == "00:08:00|2G"

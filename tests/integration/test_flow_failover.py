"""flows/failover.py on a real Slurm: who does the work, and what Slurm's accounting says of the others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

import flows.failover
from flows.failover import failover
from prefect_psik import (
    FacilityError,
    JobHandle,
    JobResult,
    JobStatus,
    PsikBackend,
    ScriptFailed,
    asubmit_job,
    await_for_job,
    await_for_start,
    submit_job,
)
from tests.integration.local import wait_until
from tests.integration.slurm_view import is_level, queued_ids
from tests.integration.test_slurm_jobs import backend, client, script, with_attributes
from tests.testbed.facility import Facility
from tests.testbed.slurm_conf import LIMITED_ACCOUNT, SUBMIT_LIMIT

__all__ = ["backend", "client"]

pytestmark = pytest.mark.usefixtures("prefect_server")

PATIENCE = timedelta(seconds=60)
#: In the names of the jobs: Slurm's accounting remembers those of an earlier session, too.
HERE = uuid4().hex[:8]


@pytest.fixture
def places(backend: PsikBackend) -> list[str]:
    """Three facilities: a closed queue, a queue where nothing starts, and one that works."""
    with_attributes(backend, queue_name="off").save("closed", overwrite=True)
    with_attributes(backend, options={"--begin": "now+1hour"}).save("crowded", overwrite=True)
    backend.save("works", overwrite=True)
    with_attributes(backend, queue_name="batch").save("works-too", overwrite=True)
    return ["closed", "crowded", "works"]


def verdicts() -> dict[str, str]:
    """The newest table artifact."""
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["failover"]))
    with get_client(sync_client=True) as api:
        newest = max(api.read_artifacts(artifact_filter=wanted), key=lambda one: str(one.created))
    return {row["facility"]: row["outcome"] for row in json.loads(str(newest.data))}


def states(facility: Facility, name: str) -> list[tuple[str, ...]]:
    """State and start of all Slurm jobs of a name, once all are over."""
    found: list[tuple[str, ...]] = []

    def over() -> bool:
        level = is_level(facility, *queued_ids(facility, name))
        # A job that was to begin later is only listed with its time.
        times = ("-S", "now-1days", "-E", "now+2hours")
        text = facility.sacct("-n", "-P", "-X", *times, f"--name={name}", "-o", "State,Start")
        found[:] = sorted(tuple(line.split("|")) for line in text.splitlines())
        return level and bool(found) and not any(state in ("RUNNING", "PENDING") for state, _ in found)

    wait_until(over)
    return found


async def test_the_next_facility_after_trouble(facility: Facility, places: list[str]) -> None:
    job = script("echo from $SLURM_JOB_PARTITION", f"in-order-{HERE}")
    result = await failover(job, places, patience=PATIENCE)
    assert isinstance(result, JobResult)
    assert result.stdout == "from debug\n"
    said = verdicts()
    assert "DOWN" in said["closed"]
    assert "in the queue for more than" in said["crowded"]
    assert "canceled before it started" in said["crowded"]
    assert "this result is used" in said["works"]
    (canceled, start), (completed, _) = states(facility, f"in-order-{HERE}")
    assert canceled.startswith("CANCELLED")
    assert start in ("None", "Unknown")
    assert completed == "COMPLETED"


async def test_a_failed_script_is_not_tried_elsewhere(facility: Facility, places: list[str]) -> None:
    with pytest.raises(ScriptFailed):
        await failover(script("exit 3", f"fails-once-{HERE}"), ["works", "works-too"])
    assert len(states(facility, f"fails-once-{HERE}")) == 1
    assert verdicts()["works-too"] == "not tried"


async def test_all_in_trouble_is_told(places: list[str]) -> None:
    with pytest.raises(FacilityError, match=r"No facility could(.|\n)*closed: (.|\n)*DOWN"):
        await failover(script("true", "nowhere"), ["closed"])


async def test_a_race_keeps_the_first_and_cancels_the_others(facility: Facility, places: list[str]) -> None:
    worked = facility.data / f"race-{HERE}"
    job = script(f"echo x >> {worked}; sleep 5; echo done", worked.name)
    result = await failover(job, ["crowded", "works"], mode="race")
    assert result.stdout == "done\n"
    assert "canceled before it started" in verdicts()["crowded"]
    canceled, completed = (state for state, _ in states(facility, worked.name))
    assert canceled.startswith("CANCELLED")
    assert completed == "COMPLETED"
    assert worked.read_text() == "x\n", "one did the work"


async def test_two_that_start_at_once_are_told_and_one_is_used(facility: Facility, places: list[str]) -> None:
    name = f"tie-{HERE}"
    go = facility.data / f"go-{name}"
    job = script(f"until [ -e {go} ]; do sleep 1; done", name)
    race = asyncio.create_task(failover(job, ["works", "works-too"], mode="race"))
    canceled = partial(facility.squeue, "-h", "-t", "CANCELLED", "-n", name, "-o", "%i")
    try:
        await asyncio.to_thread(wait_until, canceled)
    finally:
        go.touch()
    result = await race
    said = verdicts()
    winner = str(result.handle.backend)
    (loser,) = said.keys() - {winner}
    assert "this result is used" in said[winner]
    assert "its result is not used" in said[loser] or "canceled before it started" in said[loser]
    ended = [state for state, _ in states(facility, f"tie-{HERE}")]
    assert sorted(state.split()[0] for state in ended) == ["CANCELLED", "COMPLETED"]


async def test_an_error_leaves_no_job_of_a_race_behind(
    facility: Facility, places: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One place is broken in a way that nobody thought of, while the other's job is in the queue."""

    async def breaks(handle: JobHandle, **options: Any) -> JobStatus:
        if handle.backend == "works":
            raise RuntimeError("nobody thought of this")
        status: JobStatus = await await_for_start(handle, **options)
        return status

    monkeypatch.setattr(flows.failover, "await_for_start", breaks)
    with pytest.raises(RuntimeError, match="nobody thought of this"):
        await failover(script("sleep 300", f"error-{HERE}"), ["crowded", "works"], mode="race")
    assert [state.split()[0] for state, _ in states(facility, f"error-{HERE}")] == ["CANCELLED"] * 2
    assert "canceled before it started" in verdicts()["crowded"]


async def test_an_error_on_the_way_in_leaves_no_job_of_a_race_behind(
    facility: Facility, places: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(place: PsikBackend, *arguments: Any, **options: Any) -> JobHandle:
        if place.document_name == "works-too":
            await asyncio.to_thread(wait_until, partial(facility.squeue, "-h", "-n", f"entry-{HERE}", "-o", "%i"))
            raise RuntimeError("nobody thought of this")
        handle: JobHandle = await asubmit_job(place, *arguments, **options)
        return handle

    monkeypatch.setattr(flows.failover, "asubmit_job", breaks)
    with pytest.raises(RuntimeError, match="nobody thought of this"):
        await failover(script("sleep 300", f"entry-{HERE}"), ["works-too", "crowded"], mode="race")
    ((state, _),) = states(facility, f"entry-{HERE}")
    assert state.startswith("CANCELLED")


async def test_a_retry_goes_on_with_the_job_that_is_there(
    facility: Facility, places: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt dies while the job of the second facility runs; that job does the work, once."""
    calls = 0

    async def dies_once(*args: Any, **options: Any) -> JobResult:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("the flow run died here")
        result: JobResult = await await_for_job(*args, **options)
        return result

    monkeypatch.setattr(flows.failover, "await_for_job", dies_once)
    job = script("sleep 10; echo once", f"retried-{HERE}")
    result = await failover.with_options(retries=1)(job, ["closed", "works", "works-too"])
    assert result.stdout == "once\n"
    assert verdicts()["closed"] == "not tried"
    assert [state for state, _ in states(facility, f"retried-{HERE}")] == ["COMPLETED"]


@pytest.fixture
def full(facility: Facility, backend: PsikBackend) -> Iterator[str]:
    """A facility whose account may have no more jobs in the queue, and whose jobs there do not start."""
    block = with_attributes(backend, project_name=LIMITED_ACCOUNT)
    block.save("full", overwrite=True)
    held = with_attributes(block, options={"--hold": "--hold"})
    for _ in range(SUBMIT_LIMIT):
        submit_job.fn(held, script("true", "held"), key=f"held-{uuid4().hex}")
    yield "full"
    facility.as_user("scancel", f"--account={LIMITED_ACCOUNT}")


async def test_a_full_queue_is_left_for_the_next_facility(
    facility: Facility, places: list[str], full: str
) -> None:
    name = f"full-{HERE}"
    result = await failover(script("echo done", name), [full, "works"], patience=timedelta(seconds=8))
    assert result.stdout == "done\n"
    said = verdicts()
    assert "has been waiting for a place in the queue of account" in said[full]
    assert "Nothing was submitted" in said[full]
    assert [state for state, _ in states(facility, name)] == ["COMPLETED"]


async def test_a_full_queue_holds_back_no_race(facility: Facility, places: list[str], full: str) -> None:
    name = f"full-race-{HERE}"
    result = await failover(script("echo done", name), [full, "works"], mode="race")
    assert result.stdout == "done\n"
    assert verdicts()[full] == "No job was found there"
    facility.as_user("scancel", f"--account={LIMITED_ACCOUNT}")  # a place that nobody takes
    await asyncio.sleep(10)
    assert [state for state, _ in states(facility, name)] == ["COMPLETED"]


def test_a_job_may_be_a_file(tmp_path: Path) -> None:
    form = failover.parameters.model_dump()["properties"]
    assert form["mode"]["enum"] == ["in order", "race"]
    assert "job.yaml" in form["job"]["description"]

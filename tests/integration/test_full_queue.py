"""Limits on the number of jobs, and a maintenance, on the real chain: Slurm counts what was submitted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from prefect import flow

from prefect_psik import JobHandle, JobState, PsikBackend, ResourceSpec, arun_job, cancel_job, run_preflight
from prefect_psik import submit_job as submit
from tests.integration.local import wait_until
from tests.integration.prefect_services import Services
from tests.integration.slurm_view import LIVE, accounted, lines_of, live
from tests.integration.submissions import line
from tests.integration.test_slurm_jobs import backend, client, script, with_attributes
from tests.testbed.facility import Facility
from tests.testbed.slurm_conf import LIMITED_ACCOUNT, LIMITED_QOS, SUBMIT_LIMIT

__all__ = ["backend", "client"]

pytestmark = pytest.mark.usefixtures("prefect_server")

WAITS = f"is waiting for a place in the queue of account {LIMITED_ACCOUNT}"


@pytest.fixture
def name() -> str:
    """A name, and key, that no job of the facility ever had."""
    return f"full-{time.time_ns():x}"


@pytest.fixture
def limited(facility: Facility, backend: PsikBackend) -> Iterator[PsikBackend]:
    """The account with a limit, whose queue is empty."""
    yield with_attributes(backend, project_name=LIMITED_ACCOUNT)
    facility.as_user("scancel", f"--account={LIMITED_ACCOUNT}")


@pytest.fixture
def held(facility: Facility, limited: PsikBackend) -> list[JobHandle]:
    """Jobs that take all places and stay."""
    block = with_attributes(limited, options={"--hold": "--hold"})
    return [
        submit.fn(block, script("true", name="held"), key=f"held-{time.time_ns()}") for _ in range(SUBMIT_LIMIT)
    ]


async def test_more_jobs_than_the_limit_all_run_once(facility: Facility, limited: PsikBackend, name: str) -> None:
    @flow
    async def many() -> list[JobState]:
        jobs = (arun_job(limited, line(name), key=f"{name}-{number}") for number in range(3 * SUBMIT_LIMIT))
        return [result.state for result in await asyncio.gather(*jobs)]

    assert await many() == [JobState.completed] * 3 * SUBMIT_LIMIT
    assert len(lines_of(facility, name)) == 3 * SUBMIT_LIMIT
    assert len(await asyncio.to_thread(accounted, facility, name)) == 3 * SUBMIT_LIMIT


def test_who_waits_holds_back_no_other_account(
    facility: Facility, backend: PsikBackend, limited: PsikBackend, held: list[JobHandle], name: str
) -> None:
    @flow
    async def both() -> list[JobState]:
        waits = asyncio.create_task(arun_job(limited, line(f"{name}-waits"), key=f"{name}-waits"))
        other = await arun_job(backend, line(name), key=name)
        assert not waits.done()
        assert not live(facility, f"{name}-waits")
        facility.as_user("scancel", str(held[0].native_id))
        return [other.state, (await waits).state]

    assert asyncio.run(both()) == [JobState.completed] * 2
    assert len(lines_of(facility, f"{name}-waits")) == 1


def test_a_process_that_dies_while_it_waits_loses_no_job(
    facility: Facility, limited: PsikBackend, held: list[JobHandle], services: Services, name: str
) -> None:
    with services.api():
        limited.save("limited", overwrite=True)
    first = services.python("-m", "tests.integration.full_queue", "limited", name)
    wait_until(lambda: any(WAITS in text for text in first.lines()))
    first.kill()
    second = services.python("-m", "tests.integration.full_queue", "limited", name)
    wait_until(lambda: any(WAITS in text for text in second.lines()))
    facility.as_user("scancel", str(held[0].native_id))
    assert second.ends(180)
    assert second.process.returncode == 0, second.lines()
    assert list(accounted(facility, name).values()) == ["COMPLETED"]


def test_a_cancel_reaches_a_flow_that_waits(
    facility: Facility, limited: PsikBackend, held: list[JobHandle], services: Services, name: str
) -> None:
    with services.api():
        limited.save("limited", overwrite=True)
    child = services.python("-m", "tests.integration.full_queue", "limited", name)
    wait_until(lambda: any(WAITS in text for text in child.lines()))
    services.cancel(services.newest("waiting"))
    assert child.ends(60)
    assert any("was not submitted" in text for text in child.lines()), child.lines()
    facility.as_user("scancel", str(held[0].native_id))
    assert accounted(facility, name) == {}


def test_a_limit_of_the_quality_of_service_is_waited_for(
    facility: Facility, backend: PsikBackend, name: str
) -> None:
    few = with_attributes(backend, options={"--qos": LIMITED_QOS})

    @flow
    async def three() -> list[JobState]:
        jobs = (arun_job(few, line(name), key=f"{name}-{number}") for number in range(3))
        return [result.state for result in await asyncio.gather(*jobs)]

    assert asyncio.run(three()) == [JobState.completed] * 3
    assert len(lines_of(facility, name)) == 3


def test_a_maintenance_is_told_before_and_while_a_job_waits(
    facility: Facility, backend: PsikBackend, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    what = ("starttime=now+30minutes", "duration=60", "users=root", "flags=maint,ignore_jobs", "nodes=ALL")
    facility.scontrol("create", "reservation", "reservationname=service", *what)
    try:
        long = script("true", name=name, resources=ResourceSpec(duration=45, exclusive_node_use=False))
        (check,) = [check for check in run_preflight.fn(backend, long).checks if check.name == "maintenance"]
        assert "does not fit before the maintenance that starts " in check.message
        assert "at most 29 min it could start now" in check.message
        handle = submit.fn(backend, long, key=name)
        wait_until(lambda: "Reserved for maintenance" in facility.squeue("-h", "-n", name, "-t", LIVE, "-o", "%r"))
        shorter = script("true", name=name, resources=ResourceSpec(duration=20, exclusive_node_use=False))
        assert asyncio.run(arun_job.fn(backend, shorter, key=f"{name}-short")).state is JobState.completed
    finally:
        facility.scontrol("delete", "reservationname=service")
    assert cancel_job.fn(handle, backend=backend).state.is_final

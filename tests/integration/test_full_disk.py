"""A full disk at the prefix: what waits goes on, a cancel frees the nodes, a submission comes through later."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from prefect_psik import (
    BackendAttributes,
    GlobusCredentials,
    JobHandle,
    JobSpec,
    JobState,
    PsikBackend,
    ResourceSpec,
    cancel_job,
    poll_job,
    submit_job,
    wait_for_job,
)
from tests.integration.local import wait_until
from tests.testbed.facility import Facility
from tests.testbed.small_disk import filled, small_disk


@pytest.fixture(autouse=True)
def client(facility: Facility) -> Iterator[None]:
    with facility.client():
        yield


@pytest.fixture(scope="module")
def disk(facility: Facility) -> Iterator[Path]:
    with small_disk(facility.prefix / f"small-{uuid4().hex[:8]}", facility.user) as place:
        yield place


@pytest.fixture
def backend(facility: Facility, disk: Path) -> PsikBackend:
    return PsikBackend(
        endpoint_id=UUID(facility.endpoint_id),
        prefix=str(disk),
        attributes=BackendAttributes(type="slurm", queue_name="debug", project_name=facility.account),
        credentials=GlobusCredentials(client_id=UUID(facility.client_id), client_secret=facility.client_secret),
        poll_interval_seconds=3,
    )


def job(text: str) -> JobSpec:
    small = ResourceSpec(duration=10, exclusive_node_use=False)
    return JobSpec(name="disk", script=f"#!/bin/bash\n{text}\n", resources=small)


def is_active(handle: JobHandle, backend: PsikBackend) -> bool:
    return poll_job.fn(handle, backend=backend).state is JobState.active


def forget_queue(disk: Path) -> None:
    """Have the facility ask Slurm anew at the next look, and want to keep the answer."""
    (disk / ".locks" / "squeue.json").unlink(missing_ok=True)


def test_a_wait_and_a_cancel_do_not_need_room(facility: Facility, backend: PsikBackend, disk: Path) -> None:
    go = facility.data / f"go-{uuid4().hex}"
    waited = submit_job.fn(backend, job(f"until [ -e {go} ]; do sleep 0.5; done"))
    long = submit_job.fn(backend, job("sleep 600"))
    for handle in (waited, long):
        wait_until(partial(is_active, handle, backend))
    with ThreadPoolExecutor(1) as pool:
        try:
            with filled(disk):
                forget_queue(disk)
                waiting = pool.submit(wait_for_job.fn, waited, backend=backend)
                assert is_active(waited, backend)
                assert cancel_job.fn(long, backend=backend).state is JobState.canceled
                rows = facility.squeue("-h", "-t", "all", "-j", f"{long.native_id},999999", "-o", "%T").split()
                assert rows in ([], ["CANCELLED"])
                assert not waiting.done()
        finally:
            go.touch()
        assert waiting.result(120).state is JobState.completed


def test_a_submission_waits_for_room(facility: Facility, backend: PsikBackend, disk: Path) -> None:
    submit_job.fn(backend, job("true"))  # makes the prefix
    with ThreadPoolExecutor(1) as pool:
        with filled(disk):
            began = time.monotonic()
            submitting = pool.submit(submit_job.fn, backend, job("echo there"))
            while time.monotonic() - began < 8:
                assert not submitting.done(), submitting.result()
                time.sleep(0.5)
        result = wait_for_job.fn(submitting.result(120), backend=backend)
    assert result.stdout == "there\n"

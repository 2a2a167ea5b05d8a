"""flows/streaming.py: a service is used while it runs, and no node is left idle."""

from __future__ import annotations

import asyncio
import math
import shutil
from pathlib import Path

import pytest

import flows.streaming
from flows.streaming import Connections, streaming
from prefect_psik import JobHandle, JobStatus, PsikBackend, acancel_job
from tests.conftest import job_processes
from tests.integration.local import backend_at, job_directories, rows, wait_until
from tests.integration.prefect_services import Services
from tests.integration.slurm_view import live, wait_running
from tests.integration.test_slurm_jobs import backend, client
from tests.testbed.facility import Facility

__all__ = ["backend", "client"]

pytestmark = pytest.mark.usefixtures("prefect_server")


async def test_the_service_on_a_compute_node_works_on_the_scan_and_ends_with_it(
    facility: Facility, backend: PsikBackend
) -> None:
    await backend.asave("streams", overwrite=True)
    results = await streaming("first", "streams", frames=5)
    expected = [sum(math.sin(number + column) for column in range(256)) / 256 for number in range(5)]
    assert results == pytest.approx(expected)
    # psik tells of the end before Slurm does; the job could go on for half an hour.
    await asyncio.to_thread(wait_until, lambda: facility.squeue("-h", "-n", "frame_service", "-t", "R,PD") == "")


async def test_a_scan_that_fails_frees_the_node(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await backend_at(prefix).asave("streams-here", overwrite=True)

    async def breaks(frames: int, connections: Connections) -> list[float]:
        await connections.get()
        raise ValueError("The shutter is stuck.")

    monkeypatch.setattr(flows.streaming, "take_scan", breaks)
    with pytest.raises(RuntimeError, match="The shutter is stuck"):
        await streaming("broken", "streams-here")
    (directory,) = job_directories(prefix)
    assert rows(directory)[-1].state == "canceled"
    assert job_processes(prefix) == []


async def test_a_service_that_leaves_is_told_in_its_own_words(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await backend_at(prefix).asave("streams-here", overwrite=True)
    service = tmp_path / "frame_service.py"
    shutil.copy(flows.streaming.SERVICE, service)
    service.write_text(service.read_text().replace("done += 1", "sys.exit(7)"))
    monkeypatch.setattr(flows.streaming, "SERVICE", service)

    async def cancel_what_ended(handle: JobHandle) -> JobStatus:
        """The flow cancels as soon as its connection closes: it shall not be quicker than psik's record."""
        (directory,) = job_directories(prefix)
        await asyncio.to_thread(wait_until, lambda: rows(directory)[-1].state.is_final)
        status: JobStatus = await acancel_job(handle)
        return status

    monkeypatch.setattr(flows.streaming, "acancel_job", cancel_what_ended)
    with pytest.raises(RuntimeError, match=r"leaves was abandoned: .*exit code 7"):
        await streaming("leaves", "streams-here")


@pytest.mark.usefixtures("alone")
def test_a_cancel_in_prefect_frees_the_node(facility: Facility, services: Services, block: str) -> None:
    """Nobody waits for the job while the scan runs: the end of the stream ends it, or the flow's own hook."""
    services.prefect("deploy", "--name", "streaming")
    services.worker()
    run = services.run_deployment("streaming/streaming", scan="cancelled", backend=block, frames=10**8)
    wait_running(facility, "frame_service")
    services.cancel(run)
    wait_until(lambda: services.state(run).is_cancelled(), 120)
    wait_until(lambda: live(facility, "frame_service") == {})

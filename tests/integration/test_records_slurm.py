"""The command line on live Slurm jobs, as a process of its own: status, followed logs, cancel by flow run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from uuid import UUID

import prefect.settings
import pytest
from prefect import flow
from prefect.runtime import flow_run

from prefect_psik import JobHandle, PsikBackend, submit_job, wait_for_start
from tests.integration.local import wait_until
from tests.integration.slurm_view import accounted, live, wait_running
from tests.integration.test_slurm_jobs import LONG, backend, client, script
from tests.testbed.facility import Facility

__all__ = ["backend", "client"]

pytestmark = pytest.mark.usefixtures("prefect_server")


@flow
def leave_two(block: str) -> tuple[UUID, list[JobHandle]]:
    """Submit two jobs that count, and that nobody waits for."""
    spec = script("for n in $(seq 3000); do echo line $n; sleep 1; done", resources=LONG)
    handles = [submit_job(block, spec.replace(name=f"{block}-{number}")) for number in range(2)]
    return UUID(flow_run.id), handles


@pytest.fixture
def block(facility: Facility, backend: PsikBackend) -> Iterator[str]:
    """The facility as a saved block of this server."""
    name = f"cli-{time.time_ns():x}"
    backend.save(name)
    yield name
    for native_id in live(facility, name):
        facility.slurm.ask("scancel", native_id)


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start a command."""
    return subprocess.Popen(
        [sys.executable, "-m", "prefect_psik.cli", *arguments],
        env={
            **os.environ,
            "PREFECT_API_URL": str(prefect.settings.PREFECT_API_URL.value()),
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "200",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def said(*arguments: str) -> tuple[int, str]:
    """Run a command; its exit code and what it printed."""
    process = start(*arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out + err


def test_the_command_line_on_live_slurm_jobs(facility: Facility, block: str) -> None:
    run, [handle, other] = leave_two(block)
    running = wait_running(facility, block, 2)
    assert {handle.native_id, other.native_id} == set(running)
    for job in (handle, other):
        wait_for_start(job, backend=block)

    code, text = said("status", handle.stamp, "--backend", block)
    assert code == 0
    assert "active" in text
    assert str(handle.native_id) in text

    follow = start("logs", handle.stamp, "--backend", block, "-f")
    assert follow.stdout is not None
    seen = [follow.stdout.readline() for _ in range(5)]
    number = int(seen[-1].split()[1])
    assert seen == [f"line {n}\n" for n in range(number - 4, number + 1)]
    while number < int(seen[-1].split()[1]) + 10:  # more than there was when it began
        number = int(follow.stdout.readline().split()[1])
    follow.send_signal(signal.SIGINT)
    follow.communicate(timeout=60)
    assert follow.returncode != 0
    assert live(facility, block) == running, "Ctrl-C ends the following, not the job"

    code, text = said("cancel", "--flow-run", str(run), "--backend", block)
    assert code == 0
    assert "2 jobs were asked to stop" in text
    wait_until(lambda: live(facility, block) == {})
    for name in (handle.name, other.name):
        [state] = accounted(facility, str(name)).values()
        assert state.startswith("CANCELLED")
    code, text = said("status", handle.stamp, "--backend", block)
    assert code == 1
    assert "canceled_by_us" in text

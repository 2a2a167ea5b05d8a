"""Submitted once on a real Slurm, whatever breaks on the way: rows in sacct and lines of the jobs are counted."""

from __future__ import annotations

import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prefect import flow, task

from prefect_psik import PsikBackend, run_job
from prefect_psik.spec.identity import stamp_of
from tests.integration.local import wait_until
from tests.integration.prefect_services import Services
from tests.integration.slurm_view import accounted, lines_of, live
from tests.integration.submissions import STEPS, line
from tests.integration.test_slurm_jobs import backend, client, patient
from tests.testbed.facility import Facility
from tests.testbed.slurm import as_user

__all__ = ["backend", "client", "patient"]

pytestmark = pytest.mark.usefixtures("prefect_server")


#: Steps at which a process is killed also while it submits the next run of a job that failed: the one in doubt.
IN_A_SECOND_RUN = ("it is sent",)

#: sbatch of an endpoint whose process is killed before or after it has reached Slurm, as the file beside it says.
DEADLY_SBATCH = """\
#!/bin/bash
when=$(cat {when} 2>/dev/null)
rm -f {when}
[ "$when" = before ] && kill -9 $PPID && exit 1
[ "$when" = after ] && /usr/bin/sbatch "$@" > /dev/null && kill -9 $PPID && exit 1
exec /usr/bin/sbatch "$@"
"""


@pytest.fixture
def name() -> str:
    """A name, and key, that no job of the facility ever had."""
    return f"once-{time.time_ns():x}"


def assert_once(facility: Facility, name: str) -> None:
    """One Slurm job of this name, and it ran once."""
    wait_until(lambda: live(facility, name) == {})  # psik tells of the end before Slurm does
    assert list(accounted(facility, name).values()) == ["COMPLETED"]
    assert len(lines_of(facility, name)) == 1


# ---------------------------------------------------------------------------------------------- on the way


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "drop_reply", "match": "POST /v3/endpoints/*/submit"},
        {"kind": "duplicate_task", "times": 2},
        {"kind": "error", "match": "POST /v3/endpoints/*/submit", "times": 2},
        {"kind": "drop_reply", "match": "POST /v2/batch_status", "times": 2},
    ],
    ids=["reply lost", "task delivered twice", "service away", "result lost on the way"],
)
def test_on_the_way(facility: Facility, backend: PsikBackend, name: str, fault: dict[str, object]) -> None:
    facility.globus.order_fault(**fault)  # type: ignore[arg-type]
    try:
        run_job(backend, line(name))
    finally:
        facility.globus.clear_faults()
    assert_once(facility, name)


# ---------------------------------------------------------------------------------------- Prefect's retries


def test_retries_of_tasks_and_flows_with_subflows(facility: Facility, backend: PsikBackend, name: str) -> None:
    tried: list[str] = []

    @task(retries=1)
    def careful() -> None:
        run_job(backend, line(f"{name}-task"))
        tried.append("task")
        assert len(tried) > 1

    @flow
    def inner() -> None:
        run_job(backend, line(f"{name}-subflow"))

    @flow(retries=1)
    def outer() -> None:
        careful()
        inner()
        tried.append("flow")
        assert tried.count("flow") > 1

    assert outer(return_state=True).is_completed()
    assert tried == ["task", "task", "flow", "task", "flow"]
    assert_once(facility, f"{name}-task")
    assert_once(facility, f"{name}-subflow")


# -------------------------------------------------------------------------------------- processes of Prefect


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("alone")
def test_a_flow_process_killed_at_any_step(facility: Facility, services: Services, block: str, name: str) -> None:
    services.python("tests/integration/submissions.py")
    wait_until(lambda: services.deployed("scans/served"), 180)
    runs = {
        f"{name}-{number}": services.run_deployment(
            "killed/served", backend=block, name=f"{name}-{number}", step=step
        )
        for number, step in enumerate(STEPS)
    }
    again = {
        f"{name}-again-{number}": services.run_deployment(
            "killed/served", backend=block, name=f"{name}-again-{number}", step=step, run=2
        )
        for number, step in enumerate(IN_A_SECOND_RUN)
    }
    parted = services.run_deployment("parted/served", backend=block, name=f"{name}-parted")
    runs |= again | {f"{name}-parted": parted}
    for run in runs.values():
        wait_until(lambda run=run: services.state(run).is_crashed(), 300)  # type: ignore[misc]
    for run in runs.values():
        services.retry(run)
    for job, run in runs.items():
        wait_until(lambda run=run: services.state(run).is_completed(), 300)  # type: ignore[misc]
        if job not in again:
            assert_once(facility, job)
            continue
        wait_until(lambda job=job: live(facility, job) == {})  # type: ignore[misc]
        # To Slurm a script that fails is completed, too.
        assert list(accounted(facility, job).values()) == ["COMPLETED"] * 2
        assert len(lines_of(facility, job)) == 2


@pytest.mark.usefixtures("alone")
def test_children_of_run_deployment_with_the_same_key(
    facility: Facility, services: Services, block: str, name: str
) -> None:
    services.python("tests/integration/submissions.py")
    wait_until(lambda: services.deployed("scans/served"), 180)
    run = services.run_deployment("scans/served", backend=block, name=name)
    wait_until(lambda: services.state(run).is_final(), 180)
    assert services.state(run).is_completed()
    assert_once(facility, name)


@pytest.mark.usefixtures("alone")
def test_two_processes_with_the_same_key_at_the_same_moment(
    facility: Facility, services: Services, block: str, name: str
) -> None:
    """The endpoint is away while both submit: when it is back, it has both tasks at once."""
    facility.globus.reset_meter()
    facility.endpoint.stop()
    try:
        children = [services.python("tests/integration/places.py", "direct", block, name) for _ in range(2)]
        wait_until(lambda: facility.meter()["routes"].get("POST /v3/endpoints/*/submit", 0) >= 2, 180)
    finally:
        facility.start()

    def said(words: str) -> int:
        return sum(words in text for child in children for text in child.lines())

    wait_until(lambda: said(" submitted on ") + said(" found again on ") == 2, 180)
    assert said(" submitted on ") == 1
    wait_until(lambda: lines_of(facility, f"{name}-direct"), 180)
    assert len(accounted(facility, f"{name}-direct")) == 1
    assert len(lines_of(facility, f"{name}-direct")) == 1


# ------------------------------------------------------------------------------------------ at the facility


@pytest.mark.usefixtures("patient")
def test_an_endpoint_that_is_restarted_while_it_submits(
    facility: Facility, backend: PsikBackend, name: str
) -> None:
    run_job(backend, line(f"{name}-warm"))
    facility.daemons.signal("slurmctld", signal.SIGSTOP)  # sbatch hangs, and the call with it
    try:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run_job, backend, line(name))
            wait_until(lambda: "sbatch" in [process.comm for process in facility.daemons.members()], 60)
            facility.endpoint.stop()
            facility.daemons.signal("slurmctld", signal.SIGCONT)
            facility.start()
            running.result(1000)
    finally:
        facility.daemons.signal("slurmctld", signal.SIGCONT)
        facility.start()
    assert_once(facility, name)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_remote_process_is_killed_around_sbatch(
    facility: Facility, backend: PsikBackend, name: str, when: str
) -> None:
    """The intent is written, and Slurm has the job or not; nobody at the facility knows which."""
    place = facility.data / name
    place.mkdir()
    place.chmod(0o777)
    sbatch, order = place / "sbatch", place / "when"
    sbatch.write_text(DEADLY_SBATCH.format(when=order))
    sbatch.chmod(0o755)
    order.write_text(when)
    owner = {**facility.globus.env("owner"), **facility.slurm.env}
    facility.endpoint.stop()
    try:
        facility.endpoint.start({**owner, "PATH": f"{place}:{facility.endpoint.bin}:/usr/local/bin:/usr/bin:/bin"})
        run_job(backend, line(f"{name}-job"))
        assert not order.exists(), "sbatch was not reached"
    finally:
        facility.endpoint.stop()
        facility.start()
    assert_once(facility, f"{name}-job")


def test_a_lock_whose_holder_hangs_and_is_killed(facility: Facility, backend: PsikBackend, name: str) -> None:
    """A remote process hangs with the job's lock: nothing is submitted past it, and its death frees the lock."""
    run_job(backend, line(f"{name}-warm"))
    lock = facility.prefix / ".locks" / stamp_of(name)
    command = as_user(("flock", "--no-fork", str(lock), "sleep", "600"), facility.user)
    holder = subprocess.Popen(command, start_new_session=True)
    try:
        wait_until(lambda: not lockable(facility, lock))
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run_job, backend, line(name), key=name)
            time.sleep(15)  # longer than one call waits for the lock
            assert live(facility, name) == {}
            assert not running.done()
            holder.kill()
            holder.wait()
            running.result(180)
    finally:
        holder.kill()
    assert_once(facility, name)


def lockable(facility: Facility, lock: Path) -> bool:
    """Whether nobody holds a lock."""
    return facility.as_user("flock", "--nonblock", str(lock), "true").returncode == 0

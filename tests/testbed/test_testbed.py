"""Tests of the testbed itself, by effects: what Slurm ran, what was brought back, what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from globus_compute_sdk import Client
from globus_compute_sdk.errors import TaskExecutionFailed

from tests.testbed import endpoint, packages
from tests.testbed.facility import Facility
from tests.testbed.probes import SOURCE, await_state, call, is_done, sbatch, send
from tests.testbed.slurm import private_slurm
from tests.testbed.state import STATE_VARIABLE, TestbedError, wait_until

pytestmark = pytest.mark.filterwarnings(r"ignore:\s*Environment differences detected:UserWarning")

_REPOSITORY = Path(__file__).resolve().parents[2]


def empty_queue(facility: Facility) -> None:
    facility.slurm.ask("scancel", "-u", facility.user)
    wait_until(lambda: not facility.squeue("-h").strip(), seconds=180, what="empty queue")


@pytest.fixture(scope="module", autouse=True)
def idle(facility: Facility) -> None:
    """End what other tests left: some jobs here take all nodes, or wait for them."""
    empty_queue(facility)


def test_a_job_runs_as_the_facilitys_user(facility: Facility) -> None:
    proof = facility.data / "who"
    job = sbatch(facility, script=f"id -un > {proof}; srun -n1 hostname >> {proof}")
    await_state(facility, job, "COMPLETED")
    assert proof.read_text().splitlines()[0] == facility.user
    assert len(proof.read_text().splitlines()) == 2


def test_a_job_of_two_nodes(facility: Facility) -> None:
    proof = facility.data / "nodes"
    job = sbatch(facility, "-N2", "-n2", script=f"srun printenv SLURMD_NODENAME > {proof}")
    await_state(facility, job, "COMPLETED")
    assert len(set(proof.read_text().split())) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-A", "proj2"], "Invalid account"),
        (["-p", "nope"], "invalid partition"),
        (["--mem", "20G"], "Memory specification can not be satisfied"),
        (["--gres", "gpu:1"], "Invalid generic resource"),
    ],
)
def test_what_slurm_refuses(facility: Facility, options: list[str], words: str) -> None:
    done = facility.as_user("sbatch", *options, "--wrap", "true")
    assert done.returncode == 1
    assert words in done.stderr


@pytest.mark.parametrize(
    ("options", "reason"), [(["-p", "off"], "PartitionDown"), (["--time", "600"], "PartitionTimeLimit")]
)
def test_what_pends_for_ever(facility: Facility, options: list[str], reason: str) -> None:
    job = sbatch(facility, *options)
    wait_until(
        lambda: facility.squeue("-h", "-j", job, "-o", "%T %r").strip() == f"PENDING {reason}",
        seconds=180,
        what=reason,
    )
    facility.as_user("scancel", job)


@pytest.mark.parametrize(("partition", "end"), [("low", "PENDING"), ("lowc", "PREEMPTED")])
def test_a_high_job_preempts(facility: Facility, partition: str, end: str) -> None:
    try:
        low = sbatch(facility, "-p", partition, "-N4", "--exclusive", "--requeue")
        await_state(facility, low, "RUNNING")
        high = sbatch(facility, "-p", "high", "-N4", "--exclusive")
        await_state(facility, high, "RUNNING")
        await_state(facility, low, end)
    finally:
        empty_queue(facility)


@pytest.mark.parametrize(
    "name", ["emulator", "endpoint", "rabbitmq", "slurmctld", "slurmdbd", "mariadbd", "munged"]
)
def test_start_brings_back_what_was_killed_and_only_that(facility: Facility, client: Client, name: str) -> None:
    function_id = client.register_source_code(SOURCE, "call")
    others = {other: process for other, process in facility.daemons.alive().items() if other != name}
    facility.daemons.signal(name, signal.SIGKILL)
    wait_until(lambda: not facility.is_up(), seconds=180, what=f"{name} dead")
    facility.start()
    now = facility.daemons.alive()
    assert {other: now.get(other) for other in others} == others
    assert "n[1-4]" in call(facility, client, function_id, name, {})["sinfo"]
    await_state(facility, sbatch(facility, script="true"), "COMPLETED")


def test_a_stopped_endpoint_is_offline_and_its_tasks_wait(facility: Facility, client: Client) -> None:
    function_id = client.register_source_code(SOURCE, "call")
    job = sbatch(facility)
    await_state(facility, job, "RUNNING")
    facility.endpoint.stop()
    wait_until(lambda: not facility.endpoint.is_online(), seconds=180, what="endpoint offline")
    assert client.get_endpoint_status(facility.endpoint_id)["status"] == "offline"
    task_id = send(facility, client, function_id, "late", {})
    facility.start()
    wait_until(facility.endpoint.is_online, seconds=180, what="endpoint online")
    assert client.get_endpoint_status(facility.endpoint_id)["status"] == "online"
    wait_until(lambda: is_done(client, task_id), seconds=180, what="the late task")
    assert facility.squeue("-h", "-j", job, "-o", "%T").strip() == "RUNNING"
    facility.as_user("scancel", job)


def test_a_killed_user_endpoint_bars_the_way_and_says_so(facility: Facility, client: Client) -> None:
    function_id = client.register_source_code(SOURCE, "call")
    call(facility, client, function_id, "first", {})
    assert facility.endpoint.kill_user_endpoint()
    facility.endpoint.renew_pid_files(300)
    time.sleep(4)  # until the endpoint has noticed; it looks once a second
    task_id = send(facility, client, function_id, "second", {})
    wait_until(lambda: is_done(client, task_id), seconds=180, what="the refusal")
    with pytest.raises(TaskExecutionFailed, match="Another instance of this endpoint is running"):
        client.get_result(task_id)
    facility.endpoint.stop()
    facility.start()
    assert call(facility, client, function_id, "third", {})["said"][1] == "third"


def test_a_task_sent_into_a_killed_user_endpoint_is_not_forgotten(facility: Facility, client: Client) -> None:
    function_id = client.register_source_code(SOURCE, "call")
    call(facility, client, function_id, "first", {})
    assert facility.endpoint.kill_user_endpoint()
    task_id = send(facility, client, function_id, "second", {})
    wait_until(lambda: is_done(client, task_id), seconds=180, what="an end of the task")
    facility.endpoint.stop()
    facility.start()


def test_why_there_is_no_facility(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert packages.why_not() == "the testbed needs root (slurmd starts jobs as other users)"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(packages, "missing", lambda: ["munge", "slurmd"])
    assert (packages.why_not() or "").startswith("the testbed lacks munge, slurmd: run python -m")


def test_a_failed_start_leaves_nothing_running(facility: Facility, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        second = Facility.at(Path(directory) / "second")
        monkeypatch.setattr(endpoint, "_CONFIG", "no_such_option: 1\n")
        with pytest.raises(TestbedError, match=r"endpoint died while starting. Read .*endpoint\.log"):
            second.start()
        assert second.daemons.members() == []


def test_a_second_slurm_lives_beside_the_first_and_leaves_nothing(facility: Facility) -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        with private_slurm(Path(directory) / "slurm") as slurm:
            done = slurm.run("sbatch", "--wrap", "sleep 3000", "-o", "/dev/null", user=facility.user)
            assert "Submitted batch job 1" in done.stdout, done.stderr
            states = ("squeue", "-h", "-o", "%i %T")
            wait_until(lambda: slurm.ask(*states) == "1 RUNNING\n", seconds=180, what="job of the second Slurm")
            slurm.daemons.stop("slurmctld")
            assert "is DOWN" in slurm.run("scontrol", "ping").stdout
            assert "debug" in facility.slurm.ask("sinfo", "-h")
            slurm.start()
            assert slurm.ask(*states) == "1 RUNNING\n"
            pids = [process.pid for process in slurm.daemons.members()]
    assert len(pids) > 8
    assert [pid for pid in pids if _runs(pid)] == []


def test_run_ends_with_sigterm_and_leaves_no_process(facility: Facility) -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        second = Facility.at(Path(directory) / "second")
        env = {**os.environ, STATE_VARIABLE: str(second.state.root)}
        with subprocess.Popen(
            [sys.executable, "-m", "tests.testbed", "run"],
            env=env,
            cwd=_REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        ) as run:
            assert run.stdout is not None
            assert any("Ctrl-C" in line for line in run.stdout)
            assert second.is_up()
            assert second.globus.url != facility.globus.url
            sbatch(second, script="trap '' TERM; sleep 300")
            pids = [process.pid for process in second.daemons.members()]
            run.send_signal(signal.SIGTERM)
            assert run.wait(timeout=300) == 0
        assert second.daemons.members() == []
        assert [pid for pid in pids if _runs(pid)] == []


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False

"""Tests of the outcome on Slurm, with facts as they came from real runs: rows of Slurm, lines of psik."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_psik.models.causes import FailureCause
from prefect_psik.models.jobs import JobHandle, JobState, JobStatus
from prefect_psik.outcome.judge import parse_status, rows_of_run
from prefect_psik.outcome.slurm import (
    FORGOTTEN_SECONDS,
    SHARED_FILE_SYSTEM_SECONDS,
    WHO_SECONDS,
    odd_state,
    usage_of,
)
from tests.unit.reports import judge, report

HANDLE = JobHandle(prefix="/psik", stamp="123", key="k", native_id="77", duration=5, type="slurm")
#: Submitted at 1000, started at 1002.
NEW = '999.9,0,new,{"backend":{"type":"slurm","queue_name":"debug","project_name":"proj1"}}'
QUEUED, ACTIVE = "1000.0,1,queued,77", "1002.0,1,active,"
NOW = 2000.0


def slurm(
    state: str, *, start: str = "1002", end: str = "1060", code: str = "0:0", reason: str = "None"
) -> list[str]:
    """A row as squeue or sacct gives it."""
    return [state, start, end, code, "n3", reason]


def facts(*rows: str, console: str = "", **more: Any) -> dict[str, Any]:
    """What `remote.status` gathers of a job on Slurm."""
    found: dict[str, Any] = {"type": "slurm", "native_id": "77", "now": NOW, "cancel_asked": None}
    found["status"] = "".join(f"{row}\n" for row in (NEW, *rows))
    if console:
        found["tails"] = {"stdout": "", "stderr": "", "console": console}
    row = more.get("squeue") or more.get("sacct")
    if "alive" not in more and row:
        more["alive"] = row[0].split()[0] in ("PENDING", "RUNNING", "COMPLETING", "REQUEUE_HOLD", "CONFIGURING")
    return found | more


KILLED = "slurmstepd-n1: error: *** JOB 6 ON n1 CANCELLED AT 2026-11-22T10:00:00{} ***\n"
OOM = "slurmstepd-n4: error: Detected 1 oom-kill event(s) in StepId=161.batch. Some of your processes…\n"
GONE: dict[str, Any] = {"alive": None, "squeue": None, "sacct": None, "vanished": NOW - 5}
FAILED, CANCELED, COMPLETED = JobState.failed, JobState.canceled, JobState.completed

#: name -> (facts, state, cause, exit code, words of the message)
TABLE: dict[str, tuple[dict[str, Any], JobState, FailureCause | None, int | None, str]] = {
    "psik alone says completed, and nobody else is asked": (
        facts(QUEUED, ACTIVE, "1010.0,1,completed,"),
        *(COMPLETED, None, 0, "completed"),
    ),
    "exit 3, which Slurm calls COMPLETED": (
        facts(QUEUED, ACTIVE, "1010.0,1,failed,3"),
        *(FAILED, FailureCause.script, 3, "exit code 3"),
    ),
    "killed itself": (
        facts(QUEUED, ACTIVE, "1010.0,1,failed,-9", squeue=slurm("COMPLETED")),
        *(FAILED, FailureCause.script, -9, "SIGKILL"),
    ),
    "a command that is not there": (
        facts(QUEUED, ACTIVE, "1010.0,1,failed,127"),
        *(FAILED, FailureCause.script, 127, "was not found"),
    ),
    "Slurm's time limit": (
        facts(QUEUED, ACTIVE, squeue=slurm("TIMEOUT", reason="TimeLimit")),
        *(FAILED, FailureCause.walltime, None, "time limit of 5 min"),
    ),
    "Slurm's time limit, seen by psik as 9": (
        facts(QUEUED, ACTIVE, "1059.0,1,failed,9", squeue=slurm("TIMEOUT")),
        *(FAILED, FailureCause.walltime, None, "time limit of 5 min"),
    ),
    "script out of memory": (
        facts(QUEUED, ACTIVE, "1010.0,1,failed,-9", squeue=slurm("OUT_OF_MEMORY", code="0:125")),
        *(FAILED, FailureCause.out_of_memory, None, "memory limit on n3"),
    ),
    "psik out of memory": (
        facts(QUEUED, sacct=slurm("OUT_OF_MEMORY", code="0:125"), squeue=None),
        *(FAILED, FailureCause.out_of_memory, None, "memory limit on n3"),
    ),
    "node failed": (
        facts(QUEUED, ACTIVE, squeue=slurm("NODE_FAIL", reason="NodeDown")),
        *(FAILED, FailureCause.node_failure, None, "node n3 failed"),
    ),
    "node failed, and an orphan of it ended well later": (
        facts(QUEUED, ACTIVE, "1073.0,1,completed,", squeue=slurm("NODE_FAIL")),
        *(FAILED, FailureCause.node_failure, None, "node n3 failed"),
    ),
    "node failed after the script ended well": (
        facts(QUEUED, ACTIVE, "1050.0,1,completed,", squeue=slurm("NODE_FAIL")),
        *(COMPLETED, None, 0, "completed"),
    ),
    "failed to boot": (
        facts(QUEUED, sacct=slurm("BOOT_FAIL")),
        *(FAILED, FailureCause.node_failure, None, "failed to boot"),
    ),
    "preempted": (
        facts(QUEUED, ACTIVE, squeue=slurm("PREEMPTED")),
        *(FAILED, FailureCause.preempted, None, "higher priority took its nodes n3"),
    ),
    "deadline": (
        facts(QUEUED, squeue=["DEADLINE", "Unknown", "1060", "0:1", "", "DeadLine"]),
        *(FAILED, FailureCause.deadline, None, "deadline"),
    ),
    "moved to another cluster": (
        facts(QUEUED, sacct=slurm("REVOKED")),
        *(FAILED, FailureCause.lost, None, "another cluster"),
    ),
    "scancel from outside": (
        facts(QUEUED, ACTIVE, squeue=slurm("CANCELLED"), sacct=slurm("CANCELLED by 1001"), accounting="answers"),
        *(CANCELED, FailureCause.canceled_outside, None, "user id 1001, outside of Prefect"),
    ),
    "scancel from outside, by whom nobody says": (
        facts(QUEUED, ACTIVE, squeue=slurm("CANCELLED"), accounting="answers"),
        *(CANCELED, FailureCause.canceled_outside, None, "it was canceled, outside of Prefect"),
    ),
    "scancel from outside, no accounting": (
        facts(QUEUED, ACTIVE, squeue=slurm("CANCELLED", end=str(int(NOW))), accounting="none"),
        *(CANCELED, FailureCause.canceled_outside, None, "outside of Prefect"),
    ),
    "our cancel": (
        facts(QUEUED, ACTIVE, squeue=slurm("CANCELLED"), cancel_asked=1050.0),
        *(CANCELED, FailureCause.canceled_by_us, None, "on request"),
    ),
    "our cancel came after its time limit": (
        facts(QUEUED, ACTIVE, squeue=slurm("TIMEOUT"), cancel_asked=1070.0),
        *(FAILED, FailureCause.walltime, None, "time limit"),
    ),
    "psik's cancel, recorded by psik": (
        facts(QUEUED, ACTIVE, "1050.0,0,canceled,", squeue=slurm("CANCELLED")),
        *(CANCELED, FailureCause.canceled_outside, None, "through psik"),
    ),
    "Python missing at the node": (
        facts(
            QUEUED,
            squeue=slurm("FAILED", code="2:0", reason="NonZeroExitCode"),
            console="slurmstepd-n1: error: execve(): bad interpreter(/no/such/python): No such file\n",
        ),
        *(FAILED, FailureCause.launch, None, "/no/such/python"),
    ),
    "psik missing at the node": (
        facts(
            QUEUED,
            squeue=slurm("FAILED", code="1:0"),
            console="Traceback (most recent call last):\nModuleNotFoundError: No module named 'psik'\n",
        ),
        *(FAILED, FailureCause.launch, None, "before the script of the job began: ModuleNotFoundError"),
    ),
    "could not be launched, without a word": (
        facts(QUEUED, squeue=slurm("FAILED", code="0:53", reason="JobLaunchFailure")),
        *(FAILED, FailureCause.launch, None, "JobLaunchFailure"),
    ),
    "psik itself crashed while the script ran": (
        facts(QUEUED, ACTIVE, squeue=slurm("FAILED", code="1:0"), console="MemoryError\n"),
        *(FAILED, FailureCause.launch, None, "while the script of the job ran: MemoryError"),
    ),
    "work directory deleted": (
        facts(QUEUED, ACTIVE, "1003.0,1,failed,psik.hot_start error: [Errno 2] No such file: '/p/work'"),
        *(FAILED, FailureCause.launch, None, "[Errno 2] No such file: '/p/work'"),
    ),
    "Slurm calls it COMPLETED, psik never says a word": (
        facts(QUEUED, ACTIVE, squeue=slurm("COMPLETED")),
        *(FAILED, FailureCause.lost, None, "psik recorded no end"),
    ),
    "no accounting, forgotten: time limit": (
        facts(QUEUED, ACTIVE, console=KILLED.format(" DUE TO TIME LIMIT"), accounting="none", **GONE),
        *(FAILED, FailureCause.walltime, None, "time limit"),
    ),
    "no accounting, forgotten: node failure": (
        facts(
            QUEUED,
            ACTIVE,
            console=KILLED.format(" DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS"),
            accounting="none",
            **GONE,
        ),
        *(FAILED, FailureCause.node_failure, None, "its node failed"),
    ),
    "no accounting, forgotten: preemption": (
        facts(QUEUED, ACTIVE, console=KILLED.format(" DUE TO PREEMPTION"), accounting="none", **GONE),
        *(FAILED, FailureCause.preempted, None, "higher priority took its nodes"),
    ),
    "no accounting, forgotten: out of memory": (
        facts(QUEUED, ACTIVE, "1010.0,1,failed,-9", console=OOM, accounting="none", **GONE),
        *(FAILED, FailureCause.out_of_memory, None, "memory limit"),
    ),
    "no accounting, forgotten: scancel": (
        facts(QUEUED, ACTIVE, console=KILLED.format(""), accounting="none", **GONE),
        *(CANCELED, FailureCause.canceled_outside, None, "outside of Prefect"),
    ),
    "no accounting, forgotten, psik says -9": (
        facts(QUEUED, ACTIVE, "1010.0,1,failed,-9", accounting="none", **GONE),
        *(FAILED, FailureCause.script, -9, "SIGKILL"),
    ),
    "no accounting, forgotten, without a trace": (
        facts(QUEUED, accounting="none", **GONE | {"vanished": NOW - SHARED_FILE_SYSTEM_SECONDS}),
        *(FAILED, FailureCause.lost, None, "no longer knows it"),
    ),
    "the database does not answer, the console tells": (
        facts(QUEUED, ACTIVE, console=KILLED.format(" DUE TO TIME LIMIT"), accounting="silent", **GONE),
        *(FAILED, FailureCause.walltime, None, "time limit"),
    ),
    "accounting never heard of it": (
        facts(QUEUED, accounting="answers", **GONE | {"vanished": NOW - FORGOTTEN_SECONDS}),
        *(FAILED, FailureCause.lost, None, "no longer knows it"),
    ),
    "accounting calls it running for ever": (
        facts(
            QUEUED,
            ACTIVE,
            sacct=slurm("RUNNING", end="Unknown"),
            accounting="answers",
            vanished=NOW - FORGOTTEN_SECONDS,
        ),
        *(FAILED, FailureCause.lost, None, "Slurm reports RUNNING"),
    ),
    "requeued, and ended well the second time": (
        facts(
            QUEUED,
            ACTIVE,
            "1057.0,1,completed,",
            "1169.0,1,active,",
            "1224.0,1,completed,",
            sacct=slurm("COMPLETED", end="1224"),
        ),
        *(COMPLETED, None, 0, "completed"),
    ),
    "requeued, an orphan of the first start ends well during the second, which fails": (
        facts(
            *(QUEUED, ACTIVE, "1169.0,1,active,", "1180.0,1,completed,", "1200.0,1,failed,3"),
            sacct=slurm("COMPLETED", end="1200"),
        ),
        *(FAILED, FailureCause.script, 3, "exit code 3"),
    ),
    "requeued, and an orphan of the first start writes after the end of the second": (
        facts(
            *(QUEUED, ACTIVE, "1169.0,1,active,", "1200.0,1,failed,3", "1300.0,1,completed,"),
            sacct=slurm("COMPLETED", end="1200"),
        ),
        *(FAILED, FailureCause.script, 3, "exit code 3"),
    ),
    "directory gone": (
        facts(missing=True, squeue=slurm("FAILED", code="0:53")),
        *(FAILED, FailureCause.lost, None, "directory /psik/123 no longer exists"),
    ),
    "directory gone, and the queue and accounting no longer know it": (
        facts(missing=True, accounting="answers", **GONE),
        *(FAILED, FailureCause.lost, None, "how it ended is unknown"),
    ),
    "directory gone, and no accounting": (
        facts(missing=True, accounting="none", **GONE),
        *(FAILED, FailureCause.lost, None, "how it ended is unknown"),
    ),
    "directory gone, and Slurm calls it FAILED": (
        facts(missing=True, squeue=slurm("FAILED")),
        *(FAILED, FailureCause.lost, None, "how it ended is unknown (Slurm reports FAILED)"),
    ),
    "Slurm calls it COMPLETED, but not since when": (
        facts(QUEUED, ACTIVE, squeue=slurm("COMPLETED", end="Unknown")),
        *(FAILED, FailureCause.lost, None, "psik recorded no end"),
    ),
    "Slurm calls it COMPLETED, and psik's line did not come in a minute": (
        facts(QUEUED, ACTIVE, squeue=slurm("COMPLETED", end=str(int(NOW) - 60))),
        *(FAILED, FailureCause.lost, None, "psik recorded no end"),
    ),
    "requeued, and the node's clock is 2 s ahead of Slurm's": (
        facts(
            *(QUEUED, ACTIVE, "1169.0,1,active,", "1180.0,1,completed,", "1200.0,1,failed,3"),
            sacct=slurm("COMPLETED", end="1198"),
        ),
        *(FAILED, FailureCause.script, 3, "exit code 3"),
    ),
    "canceled through psik a moment ago": (
        facts(
            *(QUEUED, ACTIVE, "1999.0,0,canceled,"),
            squeue=slurm("CANCELLED", end="1999"),
            accounting="answers",
        ),
        *(CANCELED, FailureCause.canceled_outside, None, "through psik"),
    ),
    "Slurm's time limit a moment ago": (
        facts(QUEUED, ACTIVE, squeue=slurm("TIMEOUT", end="1999"), accounting="answers"),
        *(FAILED, FailureCause.walltime, None, "time limit of 5 min"),
    ),
    "a state that nobody knows, and psik's line came after Slurm's words": (
        facts(
            *(QUEUED, ACTIVE, "1100.0,1,completed,"),
            squeue=slurm("INVENTED"),
            console=KILLED.format(" DUE TO TIME LIMIT"),
        ),
        *(COMPLETED, None, 0, "completed"),
    ),
    "Slurm's time limit, but not since when": (
        facts(QUEUED, ACTIVE, "1059.0,1,failed,9", squeue=slurm("TIMEOUT", end="Unknown")),
        *(FAILED, FailureCause.walltime, None, "time limit of 5 min"),
    ),
    "could not be launched, with a blank console": (
        facts(QUEUED, squeue=slurm("FAILED", code="0:53", reason="JobLaunchFailure"), console=" \n"),
        *(FAILED, FailureCause.launch, None, "began (Slurm: JobLaunchFailure)"),
    ),
    "psik's line came at once": (
        facts(QUEUED, ACTIVE, "1998.0,1,completed,", squeue=slurm("COMPLETED", end="1998")),
        *(COMPLETED, None, 0, "completed"),
    ),
    "directory gone, and Slurm stopped it": (
        facts(missing=True, squeue=slurm("TIMEOUT")),
        *(FAILED, FailureCause.walltime, None, "time limit"),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_end_of_a_job_is_told_with_its_cause(name: str) -> None:
    given_facts, state, cause, code, words = TABLE[name]
    status = judge(given_facts, HANDLE)
    assert (status.state, status.cause, status.exit_code) == (state, cause, code), status
    assert words in status.message
    assert "  " not in status.message


def test_what_psik_writes_after_slurms_end_is_neither_the_outcome_nor_the_time_of_it() -> None:
    for line in ("1062.5,1,completed,", "1100.0,1,failed,3"):
        status = judge(facts(QUEUED, ACTIVE, line, squeue=slurm("TIMEOUT", end="1060")), HANDLE)
        assert (outcome(status), status.ended) == ((FAILED, FailureCause.walltime, None), 1060.0), line
    before = judge(facts(QUEUED, ACTIVE, "1062.0,1,completed,", squeue=slurm("TIMEOUT", end="1060")), HANDLE)
    assert (outcome(before), before.ended) == ((COMPLETED, None, 0), 1062.0), "clocks differ that much"


def test_end_that_psik_saw_of_a_job_that_slurm_stopped_is_the_time_of_it() -> None:
    status = judge(facts(QUEUED, ACTIVE, "1059.0,1,failed,9", squeue=slurm("TIMEOUT", end="1060")), HANDLE)
    assert (status.cause, status.ended, status.warnings) == (FailureCause.walltime, 1059.0, [])


def test_a_job_without_a_directory_ended_when_slurm_says_so() -> None:
    status = judge(facts(missing=True, squeue=slurm("TIMEOUT", end="1060")), HANDLE)
    assert status.ended == 1060.0
    assert status.warnings == ["In addition, its directory /psik/123 no longer exists."]


def test_what_a_script_prints_is_not_taken_for_slurms_words() -> None:
    """Slurm was not asked, since psik's record stands; the script printed the log of another job."""
    status = judge(facts(QUEUED, ACTIVE, "1010.0,1,failed,3", console=KILLED.format("")), HANDLE)
    assert outcome(status) == (FAILED, FailureCause.script, 3)
    for state in ("COMPLETED", "FAILED"):  # Slurm says itself that it did not stop the job
        told = facts(QUEUED, ACTIVE, "1010.0,1,failed,3", console=KILLED.format(""), squeue=slurm(state))
        assert outcome(judge(told, HANDLE)) == (FAILED, FailureCause.script, 3)


@pytest.mark.parametrize("seconds", [1, 50])
def test_psiks_line_may_take_a_minute(seconds: int) -> None:
    given_facts = facts(QUEUED, ACTIVE, squeue=slurm("COMPLETED", end=str(int(NOW) - seconds)))
    assert judge(given_facts, HANDLE).state is JobState.active


def test_accounting_is_asked_for_40_s_who_canceled_a_job() -> None:
    def canceled(seconds: int) -> JobStatus:
        return judge(
            facts(QUEUED, squeue=slurm("CANCELLED", end=str(int(NOW) - seconds)), accounting="answers"), HANDLE
        )

    assert canceled(35).state is JobState.queued
    assert outcome(canceled(40)) == (CANCELED, FailureCause.canceled_outside, None)


LIVE: dict[str, tuple[dict[str, Any], JobState, str]] = {
    "pending": (facts(QUEUED, squeue=slurm("PENDING", reason="Priority")), JobState.queued, "Priority"),
    "running": (facts(QUEUED, ACTIVE, squeue=slurm("RUNNING")), JobState.active, ""),
    "running, though psik calls it completed: it is to be requeued": (
        facts(QUEUED, ACTIVE, "1050.0,1,completed,", squeue=slurm("RUNNING")),
        JobState.active,
        "",
    ),
    "requeued, and pending again": (
        facts(
            QUEUED, ACTIVE, "1050.0,1,completed,", squeue=slurm("PENDING", reason="BeginTime"), squeue_time=1060.0
        ),
        JobState.queued,
        "start it again",
    ),
    "just started, the queue's list is older": (
        facts(QUEUED, ACTIVE, squeue=slurm("PENDING", reason="Priority"), squeue_time=1001.0),
        JobState.active,
        "",
    ),
    "squeue fails": (
        facts(QUEUED, ACTIVE, alive=None, squeue=None, squeue_error="slurm_load_jobs error: Socket timed out"),
        JobState.active,
        "Socket timed out",
    ),
    "squeue fails, and psik says -9": (
        facts(QUEUED, ACTIVE, "1010.0,1,failed,-9", alive=None, squeue=None, squeue_error="Socket timed out"),
        JobState.active,
        "Socket timed out",
    ),
    "the queue's list is older than the submission": (facts(QUEUED, alive=None, squeue=None), JobState.queued, ""),
    "gone from the queue, the database does not answer": (
        facts(
            QUEUED,
            accounting="silent",
            sacct_error="sacct: error: Problem talking to the database: Connection refused",
            **GONE | {"vanished": NOW - 2 * FORGOTTEN_SECONDS},
        ),
        JobState.queued,
        "Connection refused",
    ),
    "gone from the queue, accounting is behind": (
        facts(QUEUED, ACTIVE, accounting="answers", **GONE),
        JobState.active,
        "has not recorded its end yet",
    ),
    "gone from the queue, accounting calls it running": (
        facts(QUEUED, ACTIVE, sacct=slurm("RUNNING", end="Unknown"), accounting="answers", vanished=NOW - 60),
        JobState.active,
        "has not recorded its end yet",
    ),
    "gone from the queue, accounting was not asked": (
        facts(QUEUED, ACTIVE, accounting="unasked", **GONE),
        JobState.active,
        "not asked yet",
    ),
    "gone from the queue just now, no accounting": (facts(QUEUED, accounting="none", **GONE), JobState.queued, ""),
    "canceled a moment ago, accounting is asked by whom": (
        facts(QUEUED, squeue=slurm("CANCELLED", end=str(int(NOW - WHO_SECONDS / 2))), accounting="answers"),
        JobState.queued,
        "by whom",
    ),
    "Slurm calls it COMPLETED, psik's line is on its way": (
        facts(QUEUED, ACTIVE, squeue=slurm("COMPLETED", end=str(int(NOW - SHARED_FILE_SYSTEM_SECONDS / 2)))),
        JobState.active,
        "",
    ),
    "line cut off": (
        facts(QUEUED, squeue=slurm("RUNNING")) | {"status": f"{NEW}\n{QUEUED}\n{ACTIVE}\n1010.0,1,completed,"},
        JobState.active,
        "",
    ),
    "directory gone, and still in the queue": (
        facts(missing=True, squeue=slurm("PENDING", reason="JobHeldUser")),
        JobState.queued,
        "cancel it",
    ),
    "not in the queue that was listed, which proves nothing": (facts(QUEUED, alive=False), JobState.queued, ""),
    "in the queue by its name alone, though psik calls it completed": (
        facts(QUEUED, ACTIVE, "1050.0,1,completed,", alive=True) | {"native_id": None},
        JobState.active,
        "",
    ),
    "gone from the queue, accounting calls it running, though psik calls it completed": (
        facts(
            *(QUEUED, ACTIVE, "1050.0,1,completed,"),
            sacct=slurm("RUNNING", end="Unknown"),
            accounting="answers",
            vanished=NOW - 60,
        ),
        JobState.active,
        "has not recorded its end yet",
    ),
    "directory gone, and still running": (
        facts(missing=True, squeue=slurm("RUNNING")),
        JobState.active,
        "cancel it",
    ),
    "directory gone, and accounting does not answer": (
        facts(missing=True, accounting="silent", **GONE),
        JobState.queued,
        "does not say",
    ),
    "directory gone, and accounting was not asked": (
        facts(missing=True, accounting="unasked", **GONE),
        JobState.queued,
        "does not say",
    ),
    "started, and when the queue was listed is not known": (
        facts(QUEUED, ACTIVE, squeue=slurm("PENDING", reason="Priority")),
        JobState.active,
        "Priority",
    ),
    "started at the moment when the queue was listed": (
        facts(QUEUED, ACTIVE, squeue=slurm("PENDING", reason="Priority"), squeue_time=1002.0),
        JobState.active,
        "Priority",
    ),
    "running when the queue was listed": (
        facts(QUEUED, ACTIVE, squeue=slurm("RUNNING"), squeue_time=1060.0),
        JobState.active,
        "",
    ),
    "directory gone, and squeue fails": (
        facts(missing=True, alive=None, squeue=None, squeue_error="Socket timed out"),
        JobState.queued,
        "does not say",
    ),
    "not confirmed yet": (facts(alive=None) | {"native_id": None}, JobState.new, ""),
}


@pytest.mark.parametrize("name", LIVE)
def test_what_may_still_change_is_not_final(name: str) -> None:
    given_facts, state, words = LIVE[name]
    status = judge(given_facts, HANDLE)
    assert (status.state, status.cause, status.ended) == (state, None, None), status
    assert words in (status.reason or "")
    assert bool(status.reason) == bool(words) or status.reason is None or words in status.reason


LIMIT_OF_ACCOUNT = "starts once other jobs under that limit end"


@pytest.mark.parametrize(
    ("reason", "stuck", "hint"),
    [
        ("PartitionTimeLimit", True, "ask for a shorter duration"),
        ("PartitionNodeLimit", True, "ask for fewer"),
        ("PartitionConfig", True, "ask for fewer"),
        ("PartitionDown", True, "the queue is down"),
        ("PartitionInactive", True, "the queue is inactive"),
        ("JobHeldUser", True, "scontrol release"),
        ("JobHeldAdmin", True, "scontrol release"),
        ("DependencyNeverSatisfied", True, "a job it depends on failed"),
        ("InvalidQOS", True, "account or quality of service is not valid here"),
        ("InvalidAccount", True, "account or quality of service is not valid here"),
        ("BadConstraints", True, "no node has the features"),
        ("AccountNotAllowed", True, "its account may not use this queue"),
        ("QOSNotAllowed", True, "its quality of service may not use this queue"),
        ("QOSMaxWallDurationPerJobLimit", True, "it asks for more than one job may use"),
        ("AssocMaxWallDurationPerJobLimit", True, "it asks for more than one job may use"),
        ("QOSMaxCpuPerJobLimit", True, "it asks for more than one job may use"),
        ("AssocGrpCPUMinutesLimit", True, "hours are used up"),
        ("QOSGrpGRESMinutes", True, "hours are used up"),
        ("QOSMaxJobsPerUserLimit", False, f"a limit of its quality of service; it {LIMIT_OF_ACCOUNT}"),
        ("AssocMaxJobsLimit", False, f"a limit of its account; it {LIMIT_OF_ACCOUNT}"),
        ("BeginTime", False, "its earliest start time has not come yet"),
        ("ReqNodeNotAvail, UnavailableNodes:n1", False, "down, drained or reserved"),
        ("Priority", False, None),
        ("Resources", False, None),
    ],
)
def test_pending_job_says_why_with_a_hint_and_whether_it_never_starts(
    reason: str, stuck: bool, hint: str | None
) -> None:
    status = judge(facts(QUEUED, squeue=slurm("PENDING", reason=reason)), HANDLE)
    assert status.stuck is stuck
    said = status.reason or ""
    assert said == reason if hint is None else said.startswith(f"{reason}: ") and hint in said


def test_running_job_waits_for_nothing_whatever_slurm_says_of_it() -> None:
    status = judge(facts(QUEUED, ACTIVE, squeue=slurm("RUNNING", reason="Prolog")), HANDLE)
    assert (status.state, status.reason) == (JobState.active, None)


@pytest.mark.parametrize("reason", ["", "None"])
def test_pending_job_without_a_reason_has_none(reason: str) -> None:
    status = judge(facts(QUEUED, squeue=slurm("PENDING", reason=reason)), HANDLE)
    assert (status.state, status.reason, status.stuck) == (JobState.queued, None, False)


@pytest.mark.parametrize(
    "state",
    ["PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"],
)
def test_job_that_started_and_waits_in_the_queue_again_is_queued(state: str) -> None:
    waiting = facts(QUEUED, ACTIVE, squeue=slurm(state), alive=True, squeue_time=1060.0)
    assert judge(waiting, HANDLE).state is JobState.queued


def test_queue_counts_more_than_accounting_but_for_who_canceled_a_job() -> None:
    """Accounting runs behind the queue."""
    stopped = facts(QUEUED, ACTIVE, squeue=slurm("TIMEOUT"), sacct=slurm("CANCELLED by 0"))
    assert judge(stopped, HANDLE).cause is FailureCause.walltime
    asked = facts(QUEUED, squeue=slurm("CANCELLED"), sacct=slurm("RUNNING", end="Unknown"), cancel_asked=1050.0)
    assert judge(asked, HANDLE).cause is FailureCause.canceled_by_us


@pytest.mark.parametrize(
    "more",
    [
        {"cancel_asked": NOW - 3},
        {"squeue": slurm("CANCELLED", end="Unknown")},
        {"accounting": "silent"},
    ],
)
def test_accounting_is_not_asked_who_canceled_a_job_where_that_is_known_or_cannot_be(more: dict[str, Any]) -> None:
    canceled: dict[str, Any] = {"squeue": slurm("CANCELLED", end=str(int(NOW) - 2)), "accounting": "answers"}
    assert judge(facts(QUEUED, **canceled), HANDLE).state is JobState.queued
    assert judge(facts(QUEUED, **canceled | {"accounting": "unasked"}), HANDLE).state is JobState.queued
    assert judge(facts(QUEUED, **canceled | more), HANDLE).state is CANCELED


def test_what_an_orphan_of_a_canceled_job_writes_does_not_count() -> None:
    status = judge(facts(QUEUED, ACTIVE, "1100.0,1,completed,", squeue=slurm("CANCELLED", end="1060")), HANDLE)
    assert (outcome(status), status.ended) == ((CANCELED, FailureCause.canceled_outside, None), 1060.0)


def test_psiks_end_stands_where_nobody_knows_the_number_of_the_job() -> None:
    status = judge(facts(QUEUED, ACTIVE, "1010.0,1,failed,3", alive=None) | {"native_id": None}, HANDLE)
    assert outcome(status) == (FAILED, FailureCause.script, 3)


def test_memory_limit_on_nodes_that_are_not_known_names_none() -> None:
    status = judge(facts(QUEUED, ACTIVE, console=OOM, accounting="none", **GONE), HANDLE)
    assert status.message == "it went over its memory limit"


def test_time_limit_of_a_job_without_a_known_duration_is_not_made_up() -> None:
    unknown = HANDLE.model_copy(update={"duration": None})
    assert judge(facts(QUEUED, squeue=slurm("TIMEOUT")), unknown).message == "Slurm stopped it at its time limit"


def test_batch_script_that_failed_without_a_word_tells_slurms_exit_code() -> None:
    for reason in ("", "None"):
        status = judge(facts(QUEUED, squeue=slurm("FAILED", code="1:0", reason=reason)), HANDLE)
        assert status.message.endswith("(Slurm: exit code 1:0)")


def test_last_line_of_the_console_is_told_up_to_300_characters() -> None:
    long = f"first\n {'x' * 400}\n"
    for row in (slurm("FAILED"), slurm("COMPLETED")):
        said = judge(facts(QUEUED, squeue=row, console=long), HANDLE).message
        assert said.endswith(f": {'x' * 300}")
    forgotten = GONE | {"vanished": NOW - SHARED_FILE_SYSTEM_SECONDS}
    said = judge(facts(QUEUED, accounting="none", console=long, **forgotten), HANDLE).message
    assert said.endswith(f": {'x' * 300}")


def test_second_start_and_what_slurm_thought_are_remarked() -> None:
    again = facts(QUEUED, ACTIVE, "1169.0,1,active,", "1224.0,1,completed,", sacct=slurm("COMPLETED", end="1224"))
    assert any("2 times" in warning for warning in judge(again, HANDLE).warnings)
    once = facts(QUEUED, ACTIVE, "1010.0,1,completed,", sacct=slurm("OUT_OF_MEMORY", end="1011"))
    assert any("OUT_OF_MEMORY" in warning for warning in judge(once, HANDLE).warnings)
    assert judge(facts(QUEUED, ACTIVE, "1010.0,1,completed,"), HANDLE).warnings == []
    assert "one of its processes was killed" in (odd_state("OUT_OF_MEMORY") or "")
    assert odd_state("TIMEOUT") == "Slurm reports TIMEOUT, although its script ended on its own"
    assert odd_state("COMPLETED") is None
    assert odd_state("") is None


def test_nodes_are_those_that_the_launcher_saw() -> None:
    status = judge(facts(QUEUED, ACTIVE, squeue=slurm("RUNNING"), nodes="2 n[1-2]"), HANDLE)
    assert (status.nodes, status.node_list) == (2, "n[1-2]")
    assert judge(facts(QUEUED, nodes="garbage", squeue=slurm("PENDING")), HANDLE).nodes is None


# ----------------------------------------------------------------------------------------------------- usage

JOB = ["12", "COMPLETED", "100", "1600", "00:26:40", "", "1", "n1"]


def test_usage_is_read_from_the_job_and_its_steps() -> None:
    rows = [
        ["12", "COMPLETED", "3600", "57600", "08:00:00", "", "2", "n[1-2]"],
        ["12.batch", "COMPLETED", "3600", "28800", "00:01.500", "204800K", "1", "n1"],
        ["12.0", "COMPLETED", "3500", "28000", "07:59:58", "1.5G", "2", "n[1-2]"],
    ]
    usage = usage_of(rows)
    assert (usage.nodes, usage.node_list, usage.elapsed) == (2, "n[1-2]", 3600.0)
    assert usage.peak_memory == int(1.5 * 1024**3)
    assert usage.cpu_efficiency == 0.5
    assert usage.state == "COMPLETED"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:01.500", 1.5), ("01:40", 100.0), ("00:26:40", 1600.0), ("1-00:00:00", 86400.0), ("INVALID", None)],
)
def test_cpu_time_is_read_as_sacct_writes_it(text: str, seconds: float | None) -> None:
    efficiency = usage_of([["12", "COMPLETED", "10", "100000", text, "", "1", "n1"]]).cpu_efficiency
    assert efficiency == (None if seconds is None else pytest.approx(seconds / 100000))


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [["12.batch", *JOB[1:]]],
        [["12"]],
        [["12", "FAILED", "", "", "", "?", "", ""]],
        [["12", "FAILED", "²", "²", "0:01", f"{'9' * 400}T", "²", ""]],
    ],
)
def test_what_accounting_does_not_tell_is_unknown(rows: list[list[str]]) -> None:
    usage = usage_of(rows)
    assert (usage.peak_memory, usage.cpu_efficiency, usage.nodes, usage.elapsed) == (None, None, None, None)


def test_usage_of_a_job_that_ran_twice_is_that_of_its_last_run() -> None:
    rows = [["12", "NODE_FAIL", "50", "800", "00:01", "", "2", "n[1-2]"], JOB]
    assert (usage_of(rows).state, usage_of(rows).elapsed, usage_of(rows).node_list) == ("COMPLETED", 100.0, "n1")


def test_least_use_that_there_can_be() -> None:
    rows = [["12", "COMPLETED", "1", "1", "00:01", "", "1", "n1"], ["12.0"], ["12.1", "COMPLETED"]]
    usage = usage_of(rows)
    assert (usage.nodes, usage.elapsed, usage.cpu_efficiency, usage.peak_memory) == (1, 1.0, 1.0, None)


def test_job_that_had_nothing_used_nothing_that_is_known() -> None:
    usage = usage_of([["12", "CANCELLED by 0", "0", "0", "00:00:00", "0", "0", "None assigned"]])
    assert (usage.elapsed, usage.nodes, usage.node_list) == (0.0, None, None)
    assert (usage.peak_memory, usage.cpu_efficiency) == (None, None)


@pytest.mark.parametrize(
    ("text", "size"), [("100", 100), ("2K", 2048), ("3M", 3 * 1024**2), ("1T", 1024**4), ("1P", None)]
)
def test_memory_is_read_as_sacct_writes_it(text: str, size: int | None) -> None:
    assert usage_of([[*JOB[:5], text, *JOB[6:]]]).peak_memory == size


def test_no_job_uses_more_than_it_has() -> None:
    """Slurm takes samples: the used CPU time of a short job may be more than its share of time."""
    assert usage_of([["12", "COMPLETED", "10", "20", "00:21", "", "1", "n1"]]).cpu_efficiency == 1.0


@settings(max_examples=100)
@given(st.lists(st.lists(st.text(max_size=8), max_size=9), max_size=4))
def test_whatever_accounting_says_usage_is_read_without_an_error(rows: list[list[str]]) -> None:
    usage = usage_of(rows)
    assert usage.cpu_efficiency is None or 0 <= usage.cpu_efficiency <= 1


# ------------------------------------------------------------------------------------------------ properties

INFOS = st.sampled_from(["", "0", "3", "9", "-9", "137", "75", "77", "psik.hot_start error: x"])
LINE = st.builds(
    "{},{},{},{}".format,
    st.integers(1000, 1100),
    st.sampled_from([0, 1, 1, 1, 2]),
    st.sampled_from(["queued", "active", "active", "completed", "failed", "canceled", "done"]),
    INFOS,
)
WORDS = ["PENDING", "RUNNING", "COMPLETING", "COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"]
WORDS += [
    "CANCELLED",
    "CANCELLED by 0",
    "PREEMPTED",
    "DEADLINE",
    "REVOKED",
    "BOOT_FAIL",
    "REQUEUE_HOLD",
    "INVENTED",
]
ROW = st.builds(
    lambda state, end, reason: [state, "1002", end, "0:0", "n1", reason],
    st.sampled_from(WORDS),
    st.sampled_from(["Unknown", "1040", "1060"]),
    st.sampled_from(["None", "", "Priority", "JobHeldUser"]),
)
CONSOLES = st.sampled_from(["", OOM, KILLED.format(""), KILLED.format(" DUE TO TIME LIMIT"), "caught signal 15"])
FACTS = st.fixed_dictionaries(
    {
        "type": st.just("slurm"),
        "status": st.lists(LINE, max_size=8).map(lambda rows: "".join(f"{r}\n" for r in rows)),
    },
    optional={
        "native_id": st.sampled_from([None, "77"]),
        "alive": st.sampled_from([True, False, None]),
        "squeue": st.one_of(st.none(), ROW),
        "sacct": st.one_of(st.none(), ROW),
        "squeue_error": st.sampled_from([None, "Socket timed out"]),
        "sacct_error": st.sampled_from([None, "Connection refused"]),
        "accounting": st.sampled_from(["none", "answers", "silent", "unasked"]),
        "vanished": st.sampled_from([None, 1050.0, 1990.0]),
        "squeue_time": st.sampled_from([0.0, 1070.0]),
        "now": st.sampled_from([1070.0, 2000.0, 9999.0]),
        "missing": st.sampled_from([False, False, False, True]),
        "cancel_asked": st.sampled_from([None, 1030.0]),
        "refused": st.integers(0, 2),
        "nodes": st.sampled_from([None, "1 n1", "x"]),
        "tails": CONSOLES.map(lambda text: {"console": text}),
        "found": st.none() | st.lists(st.builds(report, st.sampled_from("ab"), st.integers(0, 1)), max_size=2),
    },
)


def outcome(status: JobStatus) -> tuple[JobState, FailureCause | None, int | None]:
    return status.state, status.cause, status.exit_code


@settings(max_examples=500)
@given(FACTS)
def test_whatever_the_facts_are_success_needs_proof_and_nothing_raises(given_facts: dict[str, Any]) -> None:
    status = judge(given_facts, HANDLE)
    assert isinstance(status.state, JobState)
    if status.state is JobState.completed:
        own = rows_of_run(parse_status(given_facts["status"]), 1)
        assert any(row.state is JobState.completed for row in own)
        assert all(entry["good"] > 0 for entry in given_facts.get("found") or [])
        assert not given_facts.get("missing")
        assert (status.cause, status.exit_code) == (None, 0)
    elif status.state.is_final:
        assert status.cause is not None
        assert status.message
    else:
        assert (status.cause, status.ended) == (None, None)
    assert JobStatus.model_validate(status.model_dump()).state is status.state


def story(kind: str, *, requeue: bool = False) -> list[dict[str, Any]]:
    """What one job looks like, look by look, as time passes and nothing that was known is lost."""
    begin = [
        facts(QUEUED, alive=None, squeue=None, now=1001.0),
        facts(QUEUED, squeue=slurm("PENDING", end="Unknown"), now=1001.5, squeue_time=1001.0),
        facts(QUEUED, ACTIVE, squeue=slurm("PENDING", end="Unknown"), now=1003.0, squeue_time=1001.0),
        facts(QUEUED, ACTIVE, squeue=slurm("RUNNING", end="Unknown"), now=1016.0, squeue_time=1016.0),
        facts(
            QUEUED,
            ACTIVE,
            squeue=slurm("RUNNING"),
            squeue_error="Socket timed out",
            now=1031.0,
            squeue_time=1016.0,
        ),
    ]
    row = slurm(kind)
    if kind == "COMPLETED":
        end = "1060.0,1,failed,3"
        return [
            *begin,
            facts(QUEUED, ACTIVE, squeue=row, now=1062.0),
            *[facts(QUEUED, ACTIVE, end, now=n) for n in (1063.0, 9999.0)],
        ]
    late = "1073.0,1,completed,"
    gone: dict[str, Any] = {"squeue": None, "vanished": 1200.0}
    return [
        *begin,
        facts(QUEUED, ACTIVE, squeue=row, accounting="unasked", now=1062.0),
        facts(QUEUED, ACTIVE, squeue=row, sacct=slurm("RUNNING"), accounting="answers", now=1070.0),
        facts(QUEUED, ACTIVE, late, squeue=row, sacct=slurm("RUNNING"), accounting="answers", now=1075.0),
        facts(QUEUED, ACTIVE, late, squeue=row, sacct=slurm(kind), accounting="answers", now=1120.0),
        facts(QUEUED, ACTIVE, late, sacct=slurm(kind), accounting="answers", now=1200.0, **gone),
        facts(QUEUED, ACTIVE, late, sacct=slurm(kind), accounting="answers", now=99999.0, **gone),
    ]


@pytest.mark.parametrize("kind", ["COMPLETED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "CANCELLED"])
def test_final_outcome_stays_while_facts_grow(kind: str) -> None:
    told = [judge(look, HANDLE) for look in story(kind)]
    first = next(n for n, status in enumerate(told) if status.state.is_final)
    assert first >= 5
    assert len({outcome(status) for status in told[first:]}) == 1, told[first:]


LATER_LINES = st.lists(
    st.one_of(
        st.builds("{},1,completed,".format, st.integers(1070, 1100)),
        st.builds("{},1,failed,{}".format, st.integers(1070, 1100), INFOS),
        st.builds("{},1,canceled,".format, st.integers(1070, 1100)),
        st.builds("{},0,canceled,".format, st.integers(1070, 1100)),
    ),
    max_size=3,
)


@settings(max_examples=300)
@given(
    st.sampled_from(["TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "DEADLINE", "BOOT_FAIL"]),
    st.sampled_from([(), ("1050.0,1,completed,",), ("1050.0,1,failed,3",), ("1050.0,1,failed,-9",)]),
    LATER_LINES,
    st.sampled_from([1070.0, 9999.0]),
)
def test_lines_after_slurms_end_change_no_outcome(
    kind: str, before: tuple[str, ...], later: list[str], now: float
) -> None:
    known: dict[str, Any] = {"squeue": slurm(kind), "now": now}
    first = judge(facts(QUEUED, ACTIVE, *before, **known), HANDLE)
    assert first.state.is_final
    after = judge(facts(QUEUED, ACTIVE, *before, *later, **known), HANDLE)
    assert outcome(after) == outcome(first)


@settings(max_examples=300)
@given(FACTS, st.sampled_from([10.0, 1000.0, 1e6]))
def test_final_outcome_stays_as_time_passes(given_facts: dict[str, Any], passed: float) -> None:
    first = judge(given_facts, HANDLE)
    if first.state.is_final:
        later = given_facts | {"now": given_facts.get("now", 0.0) + passed}
        assert outcome(judge(later, HANDLE)) == outcome(first)


@settings(max_examples=200)
@given(FACTS, st.sampled_from(["Socket timed out", "Unable to contact slurm controller"]))
def test_scheduler_that_stops_answering_ends_no_job(given_facts: dict[str, Any], error: str) -> None:
    live = given_facts | {"squeue": slurm("RUNNING"), "alive": True, "vanished": None, "missing": False}
    failing = live | {"squeue_error": error}
    assert not judge(failing, HANDLE).state.is_final


def test_every_state_of_slurm_is_told_apart_from_success() -> None:
    for word, psik in itertools.product(WORDS, ["", "1050.0,1,failed,3"]):
        rows = [QUEUED, ACTIVE, *([psik] if psik else [])]
        assert judge(facts(*rows, squeue=slurm(word), alive=False), HANDLE).state is not JobState.completed

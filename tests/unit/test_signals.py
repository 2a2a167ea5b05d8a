"""Tests of what a warning before the time limit makes of an end, and of ends by other signals."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_psik.exceptions import ERRORS, JobCanceled, next_step
from prefect_psik.jobs.lifecycle import error_of
from prefect_psik.models.causes import FailureCause
from prefect_psik.models.jobs import JobHandle, JobResult, JobState
from prefect_psik.outcome.judge import may_lack
from prefect_psik.spec.retry import Growth, RetryRule
from tests.unit.reports import judge, read_facts, report
from tests.unit.test_slurm_outcome import ACTIVE, HANDLE, QUEUED, facts, slurm

WARNED: dict[str, Any] = {"warning": {"name": "SIGUSR1", "seconds": 30}, "signals": ["SIGUSR1"]}
LACKING: dict[str, Any] = {"to_check": True, "found": [report("*.h5", 0)]}


def ended(*rows: str, **more: Any) -> Any:
    return judge(facts(QUEUED, ACTIVE, *rows, **more), HANDLE)


@pytest.mark.parametrize("code", [1, 85, 75, 138])
def test_a_script_that_stops_after_its_warning_is_to_be_continued(code: int) -> None:
    status = ended(f"1010.0,1,failed,{code}", **WARNED)
    assert (status.state, status.cause, status.exit_code) == (JobState.failed, FailureCause.walltime, code)
    assert status.to_be_continued
    assert "SIGUSR1, 30 s before its time limit" in status.message


@pytest.mark.parametrize("signals", [[], ["SIGHUP"], ["SIGUSR2", "SIGHUP"]])
def test_a_script_that_was_not_warned_failed_by_itself(signals: list[str]) -> None:
    status = ended("1010.0,1,failed,85", **{**WARNED, "signals": signals})
    assert (status.cause, status.to_be_continued) == (FailureCause.script, False)


def test_a_signal_that_nobody_asked_for_is_no_warning() -> None:
    status = ended("1010.0,1,failed,85", warning=None, signals=["SIGUSR1"])
    assert (status.cause, status.to_be_continued) == (FailureCause.script, False)


def test_a_warned_job_at_its_time_limit_can_continue() -> None:
    status = ended(squeue=slurm("TIMEOUT"), **WARNED)
    assert (status.cause, status.to_be_continued) == (FailureCause.walltime, True)
    assert "Slurm stopped it at its time limit of 5 min, although it was warned" in status.message


def test_a_script_without_a_handler_is_told_so() -> None:
    status = ended("1010.0,1,failed,-10", **WARNED)
    assert (status.cause, status.exit_code, status.to_be_continued) == (FailureCause.script, -10, False)
    assert "does not handle the warning (SIGUSR1" in status.message


def test_exit_code_0_after_the_warning_counts_as_done_with_a_remark() -> None:
    status = ended("1010.0,1,completed,", **WARNED, to_check=False)
    assert (status.state, status.to_be_continued) == (JobState.completed, False)
    assert "ended with exit code 0, which counts as done" in status.warnings[0]


def test_exit_code_0_after_the_warning_without_the_results_is_to_be_continued() -> None:
    given = facts(QUEUED, ACTIVE, "1010.0,1,completed,", **WARNED, **LACKING)
    status = judge(given, HANDLE)
    assert (status.state, status.cause, status.exit_code) == (JobState.failed, FailureCause.walltime, 0)
    assert (status.to_be_continued, status.missing) == (True, ["*.h5"])
    assert may_lack(status, read_facts(given)), "results may be seen late"


@pytest.mark.parametrize(
    ("row", "console", "name"),
    [
        (slurm("FAILED", code="130:0"), "process caught signal 2. Propagating", "SIGINT"),
        (slurm("FAILED", code="143:0"), "process caught signal 15. Propagating", "SIGTERM"),
        (slurm("FAILED", code="0:1"), "", "SIGHUP"),
        (slurm("FAILED", code="0:10"), "", "SIGUSR1"),
    ],
)
def test_a_job_that_a_signal_ended_is_not_blamed_on_the_backend(row: list[str], console: str, name: str) -> None:
    status = judge(facts(QUEUED, ACTIVE, squeue=row, console=console), HANDLE)
    assert (status.state, status.cause) == (JobState.canceled, FailureCause.canceled_outside)
    assert name in status.message
    early = judge(facts(QUEUED, squeue=row, console=console), HANDLE)
    assert (early.cause, "before its script began" in early.message) == (FailureCause.canceled_outside, True)


def test_only_accounting_knows_the_signal_and_is_waited_for() -> None:
    queue, accounts = slurm("FAILED", code="", reason="JobLaunchFailure"), slurm("FAILED", code="0:10")
    asked: dict[str, Any] = {"squeue": queue, "accounting": "answers", "now": 1062.0}
    early = judge(facts(QUEUED, **asked, sacct=slurm("RUNNING", end="Unknown")), HANDLE)
    assert (early.state.is_final, early.reason) == (False, "it failed; waiting for Slurm's accounting to say how")
    known = judge(facts(QUEUED, **asked, sacct=accounts), HANDLE)
    assert (known.cause, "SIGUSR1" in known.message) == (FailureCause.canceled_outside, True)
    silent = judge(facts(QUEUED, **{**asked, "now": 1200.0}), HANDLE)
    assert silent.cause is FailureCause.launch
    warned = judge(facts(QUEUED, **asked, sacct=accounts, **{**WARNED, "signals": []}), HANDLE)
    assert (warned.cause, warned.to_be_continued) == (FailureCause.walltime, True)


def test_a_killed_batch_shell_leaves_an_unknown_end() -> None:
    status = judge(facts(QUEUED, ACTIVE, squeue=slurm("FAILED", code="0:9")), HANDLE)
    assert (status.cause, "SIGKILL" in status.message) == (FailureCause.lost, True)


@pytest.mark.parametrize("code", ["1:0", "0:53", "0:11", "127:0"])
def test_other_ends_of_the_batch_shell_are_the_backends(code: str) -> None:
    assert judge(facts(QUEUED, squeue=slurm("FAILED", code=code)), HANDLE).cause is FailureCause.launch


def test_a_script_killed_by_a_signal_from_outside_says_where_it_came_from() -> None:
    status = ended("1010.0,1,failed,-1", signals=["SIGHUP"])
    assert status.message == (
        "its script was killed by SIGHUP, which was sent to the job from outside and which it does not handle"
    )
    assert ended("1010.0,1,failed,-9").message == "its script was killed by SIGKILL"


# ------------------------------------------------------------------------------------------ what comes of it


def result(*, to_be_continued: bool) -> JobResult:
    handle = JobHandle(prefix="/p", stamp="1", key="k", duration=60)
    return JobResult(
        handle=handle, state=JobState.failed, cause=FailureCause.walltime, to_be_continued=to_be_continued
    )


def test_another_run_that_continues_needs_no_growth_and_no_room_for_it() -> None:
    rule = RetryRule.of(["walltime"], Growth(factor=2, max_duration=60), 3)
    assert rule.next_run(result(to_be_continued=False), 1) is None
    asked = rule.next_run(result(to_be_continued=True), 1)
    assert asked is not None
    assert asked.duration == 60
    assert rule.next_run(result(to_be_continued=True), 3) is None


def test_the_error_says_that_the_work_can_continue() -> None:
    error = error_of(result(to_be_continued=True))
    assert type(error) is ERRORS[FailureCause.walltime]
    assert "it continues from what it saved" in str(error)
    assert error.next_step == next_step(result(to_be_continued=True))
    assert "Ask for a longer duration." in str(error_of(result(to_be_continued=False)))
    assert JobCanceled("x").next_step == ""

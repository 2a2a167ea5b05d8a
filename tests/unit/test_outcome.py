"""Tests of the outcome: facts of the facility in, state and cause out, and never success by default."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_psik.models.causes import FailureCause
from prefect_psik.models.jobs import JobHandle, JobState, JobStatus
from prefect_psik.outcome.judge import may_lack, parse_status, rows_of_run
from prefect_psik.spec.launcher import CANCELED, NOT_THE_OWNER
from tests.unit.reports import judge, read_facts, report

NEW = '0.5,0,new,{"backend":{"type":"local","queue_name":"a,b"}}'
HANDLE = JobHandle(prefix="/psik", stamp="123", key="k", native_id="77", duration=5)


def lines(*rows: str, start: float = 1.0) -> str:
    """A status.csv: each row gets the next second as its time."""
    return "".join(f"{row}\n" for row in [NEW, *(f"{start + n},{row}" for n, row in enumerate(rows))])


def facts(*rows: str, **more: Any) -> dict[str, Any]:
    return {"type": "local", "status": lines(*rows), "native_id": "77"} | more


def console(text: str) -> dict[str, str]:
    return {"stdout": "irrelevant", "stderr": "", "console": text}


QUEUED, ACTIVE, COMPLETED = "1,queued,77", "1,active,", "1,completed,"
RUNNING = (QUEUED, ACTIVE)
GONE: dict[str, Any] = {"alive": False}

#: name -> (facts, state, cause, exit code, words of the message)
TABLE: dict[str, tuple[dict[str, Any], JobState, FailureCause | None, int | None, str]] = {
    "completed": (facts(*RUNNING, COMPLETED), JobState.completed, None, 0, "completed"),
    "completed although its process is gone": (
        facts(*RUNNING, COMPLETED, alive=False, cancel_asked=None),
        JobState.completed,
        None,
        0,
        "completed",
    ),
    "completed with all that was promised": (
        facts(*RUNNING, COMPLETED, found=[report("*.h5", 1), report("a", 3)]),
        JobState.completed,
        None,
        0,
        "completed",
    ),
    "failed with 3": (facts(*RUNNING, "1,failed,3"), JobState.failed, FailureCause.script, 3, "exit code 3"),
    "killed by a signal": (facts(*RUNNING, "1,failed,-9"), JobState.failed, FailureCause.script, -9, "SIGKILL"),
    "killed by a signal without a name": (
        facts(*RUNNING, "1,failed,-99"),
        JobState.failed,
        FailureCause.script,
        -99,
        "signal 99",
    ),
    "stopped by psik's timer": (
        facts(*RUNNING, "1,failed,9", tails=console("Script execution timed out after 5 minutes. Killing.")),
        JobState.failed,
        FailureCause.walltime,
        None,
        "time limit of 5 min",
    ),
    "script that really ends with 9": (
        facts(*RUNNING, "1,failed,9", tails=console("")),
        JobState.failed,
        FailureCause.script,
        9,
        "exit code 9",
    ),
    "script that ends with 9, console not there": (
        facts(*RUNNING, "1,failed,9"),
        JobState.failed,
        FailureCause.script,
        9,
        "exit code 9",
    ),
    "script that ends with 75, nobody refused": (
        facts(*RUNNING, f"1,failed,{NOT_THE_OWNER}", refused=0),
        JobState.failed,
        FailureCause.script,
        75,
        "exit code 75",
    ),
    "script that ends with 75, and whether anything was refused is not known": (
        facts(*RUNNING, f"1,failed,{NOT_THE_OWNER}"),
        JobState.failed,
        FailureCause.script,
        75,
        "exit code 75",
    ),
    "fewer refused doubles have written their end than there were": (
        facts(*RUNNING, ACTIVE, f"1,failed,{NOT_THE_OWNER}", "1,failed,4", refused=2),
        JobState.failed,
        FailureCause.script,
        4,
        "exit code 4",
    ),
    "script that really ends with 9, a blank console": (
        facts(*RUNNING, "1,failed,9", tails=console(" \n")),
        JobState.failed,
        FailureCause.script,
        9,
        "exit code 9",
    ),
    "failed with 0": (facts(*RUNNING, "1,failed,0"), JobState.failed, FailureCause.script, 0, "exit code 0"),
    "canceled by us before its script began": (
        facts(*RUNNING, f"1,failed,{CANCELED}", cancel_asked=3.0),
        JobState.canceled,
        FailureCause.canceled_by_us,
        None,
        "on request",
    ),
    "script that ends as if it were canceled": (
        facts(*RUNNING, f"1,failed,{CANCELED}", cancel_asked=None),
        JobState.failed,
        FailureCause.script,
        CANCELED,
        "exit code",
    ),
    "end before the line of the submission": (
        facts("1,failed,3", QUEUED),
        JobState.failed,
        FailureCause.script,
        3,
        "exit code 3",
    ),
    "a command that cannot be executed": (
        facts(*RUNNING, "1,failed,126"),
        JobState.failed,
        FailureCause.script,
        126,
        "cannot be executed",
    ),
    "script that speaks of a timeout and ends with 3": (
        facts(*RUNNING, "1,failed,3", tails=console("timed out after")),
        JobState.failed,
        FailureCause.script,
        3,
        "exit code 3",
    ),
    "psik could not start it": (
        facts(*RUNNING, "1,failed,psik.hot_start error: [Errno 2] No such file, or directory: '/w'"),
        JobState.failed,
        FailureCause.launch,
        None,
        "[Errno 2] No such file, or directory: '/w'",
    ),
    "psik could not run its interpreter": (
        facts(*RUNNING, "1,failed,9", tails=console("noise\nError: output file paths is invalid: '/bin/bash'\n")),
        JobState.failed,
        FailureCause.launch,
        None,
        "output file paths is invalid",
    ),
    "failed without a word": (facts(*RUNNING, "1,failed,"), JobState.failed, FailureCause.launch, None, ""),
    "canceled by us": (
        facts(*RUNNING, "1,canceled,", cancel_asked=3.0),
        JobState.canceled,
        FailureCause.canceled_by_us,
        None,
        "on request",
    ),
    "canceled by us while queued": (
        facts(QUEUED, "1,canceled,", cancel_asked=3.0),
        JobState.canceled,
        FailureCause.canceled_by_us,
        None,
        "on request",
    ),
    "canceled by us, its record still missing": (
        facts(*RUNNING, cancel_asked=3.0, **GONE),
        JobState.canceled,
        FailureCause.canceled_by_us,
        None,
        "on request",
    ),
    "canceled through psik": (
        facts(*RUNNING, "0,canceled,"),
        JobState.canceled,
        FailureCause.canceled_outside,
        None,
        "through psik",
    ),
    "canceled through psik before it began": (
        facts(QUEUED, "0,canceled,", **GONE),
        JobState.canceled,
        FailureCause.canceled_outside,
        None,
        "through psik",
    ),
    "canceled through psik, the script's end recorded after it": (
        facts(*RUNNING, "0,canceled,", "1,failed,-15"),
        JobState.canceled,
        FailureCause.canceled_outside,
        None,
        "through psik",
    ),
    "vanished before its script began": (
        facts(QUEUED, **GONE),
        JobState.failed,
        FailureCause.lost,
        None,
        "before its script began",
    ),
    "vanished while it ran": (facts(*RUNNING, **GONE), JobState.failed, FailureCause.lost, None, "while it ran"),
    "never seen at all": (
        {"type": "local", "status": "", **GONE},
        JobState.failed,
        FailureCause.lost,
        None,
        "before its script began",
    ),
    "stopped by a signal from outside": (
        facts(*RUNNING, tails=console("Parent Python process caught signal 15. Propagating"), **GONE),
        JobState.canceled,
        FailureCause.canceled_outside,
        None,
        "signal from outside",
    ),
    "stopped by the signal of our own cancel": (
        facts(*RUNNING, tails=console("process caught signal 15."), cancel_asked=3.0, **GONE),
        JobState.canceled,
        FailureCause.canceled_by_us,
        None,
        "on request",
    ),
    "directory gone": ({"missing": True}, JobState.failed, FailureCause.lost, None, "/psik/123 no longer exists"),
    "expected files missing": (
        facts(*RUNNING, COMPLETED, found=[report("*.h5", 0), report("a", 1)]),
        JobState.failed,
        FailureCause.missing_output,
        0,
        "*.h5",
    ),
    "outputs missing": (
        facts(*RUNNING, COMPLETED, found=[report("a", 1), report("o.txt", 0)]),
        JobState.failed,
        FailureCause.missing_output,
        0,
        "o.txt",
    ),
    "failed, and what it promised is not looked at": (
        facts(*RUNNING, "1,failed,3", found=[report("*.h5", 0), report("o", 0)]),
        JobState.failed,
        FailureCause.script,
        3,
        "exit code 3",
    ),
    "canceled after it completed": (facts(*RUNNING, COMPLETED, "0,canceled,"), JobState.completed, None, 0, ""),
    "canceled by us after it completed": (
        facts(*RUNNING, COMPLETED, "1,canceled,", cancel_asked=9.0),
        JobState.completed,
        None,
        0,
        "",
    ),
    "canceled after it failed": (
        facts(*RUNNING, "1,failed,3", "0,canceled,"),
        JobState.failed,
        FailureCause.script,
        3,
        "",
    ),
    "lines of job and submission swapped": (facts(ACTIVE, QUEUED, COMPLETED), JobState.completed, None, 0, ""),
    "line of the submission last": (facts(ACTIVE, COMPLETED, QUEUED), JobState.completed, None, 0, ""),
    "line of the submission never written": (facts(ACTIVE, COMPLETED), JobState.completed, None, 0, ""),
    "requeued and completed again": (
        facts(*RUNNING, COMPLETED, ACTIVE, "1,failed,2"),
        JobState.failed,
        FailureCause.script,
        2,
        "exit code 2",
    ),
    "a refused double of a completed run": (
        facts(*RUNNING, ACTIVE, f"1,failed,{NOT_THE_OWNER}", COMPLETED, refused=1),
        JobState.completed,
        None,
        0,
        "",
    ),
    "a refused double after a completed run": (
        facts(*RUNNING, COMPLETED, ACTIVE, f"1,failed,{NOT_THE_OWNER}", refused=1),
        JobState.completed,
        None,
        0,
        "",
    ),
    "two refused doubles of a failed run": (
        facts(
            *RUNNING,
            *(ACTIVE, ACTIVE, f"1,failed,{NOT_THE_OWNER}", f"1,failed,{NOT_THE_OWNER}"),
            "1,failed,4",
            refused=2,
        ),
        JobState.failed,
        FailureCause.script,
        4,
        "",
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_end_of_a_job_is_told_with_its_cause(name: str) -> None:
    given_facts, state, cause, code, words = TABLE[name]
    status = judge(given_facts, HANDLE)
    assert (status.state, status.cause, status.exit_code) == (state, cause, code)
    assert words in status.message
    assert status.message


#: name -> (facts, state): nothing is final that may still change.
LIVE: dict[str, tuple[dict[str, Any], JobState]] = {
    "nothing yet": ({"type": "local", "status": "", "alive": True}, JobState.new),
    "created": ({"type": "local", "status": NEW + "\n", "alive": True}, JobState.new),
    "queued": (facts(QUEUED, alive=True), JobState.queued),
    "running": (facts(*RUNNING, alive=True), JobState.active),
    "running, whether it lives is unknown": (facts(*RUNNING), JobState.active),
    "active line before the queued one": (facts(ACTIVE, QUEUED, alive=True), JobState.active),
    "asked to stop, but still there": (facts(*RUNNING, cancel_asked=3.0, alive=True), JobState.active),
    "signal caught, but still there": (
        facts(*RUNNING, tails=console("caught signal"), alive=True),
        JobState.active,
    ),
    "an end that psik writes for no run": (facts(*RUNNING, "0,completed,"), JobState.active),
    "end written while its process was still seen": (facts(*RUNNING, COMPLETED, alive=True), JobState.active),
    "canceled through psik, but still there": (facts(*RUNNING, "0,canceled,", alive=True), JobState.active),
    "requeued after completed": (facts(*RUNNING, COMPLETED, ACTIVE, alive=True), JobState.active),
    "requeued after failed": (facts(*RUNNING, "1,failed,3", ACTIVE, alive=True), JobState.active),
    "cut off before its state": (
        {"type": "local", "status": lines(*RUNNING) + "9.0,1,", "alive": True},
        JobState.active,
    ),
    "cut off within completed": (
        {"type": "local", "status": lines(*RUNNING) + "9.0,1,comple", "alive": True},
        JobState.active,
    ),
    "cut off after completed": (
        {"type": "local", "status": lines(*RUNNING) + "9.0,1,completed", "alive": True},
        JobState.active,
    ),
    "only a refused double has ended": (
        facts(*RUNNING, ACTIVE, f"1,failed,{NOT_THE_OWNER}", refused=1, alive=True),
        JobState.active,
    ),
    "lines that are none": (
        {
            "type": "local",
            "status": "\0\n,,,,\nx,1,completed,\n1.0,y,completed,\n1.0,1,done,\n" + lines(QUEUED),
            "alive": True,
        },
        JobState.queued,
    ),
}


@pytest.mark.parametrize("name", LIVE)
def test_what_may_still_change_is_not_final(name: str) -> None:
    given_facts, state = LIVE[name]
    status = judge(given_facts, HANDLE)
    assert status.state is state
    assert not status.state.is_final
    assert status.cause is None
    assert status.ended is None


def test_requeued_job_that_vanished_is_lost_although_it_had_completed_once() -> None:
    status = judge(facts(*RUNNING, COMPLETED, ACTIVE, alive=False), HANDLE)
    assert (status.state, status.cause) == (JobState.failed, FailureCause.lost)


def test_times_are_those_of_the_last_start_and_the_end() -> None:
    status = judge(facts(QUEUED, ACTIVE, COMPLETED), HANDLE)
    assert (status.submitted, status.started, status.ended) == (1.0, 2.0, 3.0)
    requeued = judge(facts(QUEUED, ACTIVE, COMPLETED, ACTIVE, "1,failed,2", "0,canceled,"), HANDLE)
    assert (requeued.started, requeued.ended) == (4.0, 5.0)


def test_start_of_a_job_is_not_that_of_a_refused_double() -> None:
    refused = (ACTIVE, f"1,failed,{NOT_THE_OWNER}")
    status = judge(facts(QUEUED, ACTIVE, *refused, COMPLETED, refused=1), HANDLE)
    assert (status.submitted, status.started, status.ended) == (1.0, 2.0, 5.0)
    assert status.warnings == []


def test_blanks_around_what_psik_says_do_not_count() -> None:
    assert [row.info for row in parse_status("1.0,1,failed, 9 \r\n")] == ["9"]


def test_nodes_are_known_without_their_names_too() -> None:
    assert (judge(facts(*RUNNING, nodes="2"), HANDLE).nodes, judge(facts(*RUNNING), HANDLE).nodes) == (2, None)
    assert judge(facts(*RUNNING, nodes="2"), HANDLE).node_list is None


@pytest.mark.parametrize(
    ("rows", "found", "to_check", "may"),
    [
        ((*RUNNING, COMPLETED), None, True, True),
        ((*RUNNING, COMPLETED), [report("a", 0)], True, True),
        ((*RUNNING, COMPLETED), None, False, False),
        ((*RUNNING, "1,failed,3"), None, True, False),
        (RUNNING, None, True, False),
    ],
)
def test_results_are_looked_at_where_the_script_ended_well(
    rows: tuple[str, ...], found: Any, to_check: bool, may: bool
) -> None:
    given_facts = facts(*rows, found=found, to_check=to_check)
    assert may_lack(judge(given_facts, HANDLE), read_facts(given_facts)) is may


def test_job_without_results_to_check_lacks_nothing() -> None:
    assert not may_lack(judge(facts(*RUNNING, COMPLETED), HANDLE), read_facts(facts(*RUNNING, COMPLETED)))


def test_job_without_a_directory_is_not_lost_while_it_may_live() -> None:
    status = judge({"type": "local", "missing": True, "alive": True}, HANDLE)
    assert (status.state, status.cause) == (JobState.queued, None)


def test_job_without_an_end_of_its_own_has_no_time_of_end() -> None:
    assert judge(facts(*RUNNING, alive=False), HANDLE).ended is None


def test_native_id_of_the_facility_comes_into_the_handle() -> None:
    status = judge(facts(*RUNNING, native_id="4412"), HANDLE.model_copy(update={"native_id": None}))
    assert status.handle.native_id == "4412"
    assert judge({"type": "local", "status": "", "native_id": None}, HANDLE).handle.native_id == "77"


def test_job_that_ended_well_says_so_and_no_more() -> None:
    assert judge(facts(*RUNNING, COMPLETED), HANDLE).message == "completed"


def test_missing_files_are_listed() -> None:
    status = judge(facts(*RUNNING, COMPLETED, found=[report("b", 0), report("a", 2), report("o", 0)]), HANDLE)
    assert status.missing == ["b", "o"]


def test_time_limit_without_a_known_duration_is_told_too() -> None:
    unknown = HANDLE.model_copy(update={"duration": None})
    status = judge(facts(*RUNNING, "1,failed,9", tails=console("timed out after 15 minutes")), unknown)
    assert status.cause is FailureCause.walltime
    assert "None" not in status.message


SECOND = HANDLE.model_copy(update={"jobndx": 2, "native_id": "78"})
TWO_RUNS = (QUEUED, ACTIVE, "1,failed,3", "2,queued,78", "2,active,", "2,completed,")


def test_each_run_of_a_job_is_judged_by_its_own_lines() -> None:
    first = judge(facts(*TWO_RUNS), HANDLE)
    assert (first.state, first.exit_code, first.ended) == (JobState.failed, 3, 3.0)
    second = judge(facts(*TWO_RUNS, native_id="78"), SECOND)
    assert (second.state, second.exit_code, second.submitted) == (JobState.completed, 0, 4.0)


def test_second_run_does_not_inherit_the_end_of_the_first() -> None:
    assert judge(facts(*TWO_RUNS[:4], alive=True), SECOND).state is JobState.queued
    assert judge(facts(*TWO_RUNS[:3], alive=True), SECOND).state is JobState.new


def test_cancel_through_psik_counts_for_the_run_that_was_submitted_last() -> None:
    rows = (*TWO_RUNS[:5], "0,canceled,")
    assert judge(facts(*rows), HANDLE).state is JobState.failed
    assert judge(facts(*rows), SECOND).state is JobState.canceled


def test_first_runs_cancel_through_psik_does_not_end_the_second() -> None:
    rows = (QUEUED, ACTIVE, "0,canceled,", "2,queued,78", "2,active,")
    assert judge(facts(*rows, alive=False), HANDLE).state is JobState.canceled
    assert judge(facts(*rows, alive=True), SECOND).state is JobState.active


@pytest.mark.parametrize(
    "rows",
    [("0,canceled,", QUEUED), (QUEUED, "2,canceled,"), (QUEUED, "2,queued,78", "0,canceled,")],
    ids=["before any run", "of another run", "of a later run"],
)
def test_cancel_through_psik_of_something_else_is_not_that_of_a_run(rows: tuple[str, ...]) -> None:
    assert judge(facts(*rows, alive=False), HANDLE).cause is FailureCause.lost


def test_number_that_the_scheduler_gives_a_job_is_not_taken_for_an_exit_code() -> None:
    rows = (f"1,queued,{NOT_THE_OWNER}", ACTIVE, ACTIVE, f"1,failed,{NOT_THE_OWNER}", COMPLETED)
    status = judge(facts(*rows, refused=1), HANDLE)
    assert (status.state, status.submitted) == (JobState.completed, 1.0)


def test_rows_of_a_run_are_all_its_own_where_nothing_was_refused() -> None:
    rows = parse_status(lines(*RUNNING, f"1,failed,{NOT_THE_OWNER}"))
    assert rows_of_run(rows, 1) == rows[1:]


def test_second_start_is_remarked_only_where_a_scheduler_made_it() -> None:
    assert judge(facts(*RUNNING, ACTIVE, COMPLETED), HANDLE).warnings == []


def test_rows_keep_commas_in_their_last_field() -> None:
    [row] = parse_status(NEW + "\n")
    assert row.state is JobState.new
    assert json.loads(row.info)["backend"]["queue_name"] == "a,b"


def test_a_line_that_is_cut_off_is_not_read_as_another() -> None:
    text = lines(*RUNNING) + "9.0,1,failed,1"  # of 13
    assert [row.state for row in parse_status(text)] == [JobState.new, JobState.queued, JobState.active]
    status = judge({"type": "local", "status": text + "3\n"}, HANDLE)
    assert (status.state, status.exit_code) == (JobState.failed, 13)


def test_a_run_that_was_queued_twice_counts_from_the_second_time() -> None:
    status = judge(facts(QUEUED, QUEUED, ACTIVE, COMPLETED), HANDLE)
    assert (status.submitted, status.started, status.ended) == (2.0, 3.0, 4.0)


# ------------------------------------------------------------------------------------------------ properties

INFOS = st.one_of(
    st.sampled_from(["", "0", "3", "9", "-9", "75", "77", "psik.hot_start error: x"]),
    st.integers().map(str),
    st.text(max_size=8),
)
TIMES = st.one_of(st.floats(0, 1e10), st.floats()).map(str)


def rows_of(jobndx: st.SearchStrategy[int], state: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds("{},{},{},{}".format, TIMES, jobndx, state, INFOS)


STATES = st.sampled_from([*(state.value for state in JobState), *["active", "completed", "failed"], "done"])
ROWS = rows_of(st.sampled_from([0, 1, 1, 1, 2, -1]), STATES)
GARBAGE = st.one_of(st.text(max_size=20), st.text(",\n0129.-nacompletdf", max_size=20))
CUT = st.builds(lambda row, n: row[: n % (len(row) + 1)], ROWS, st.integers(0, 50))
TAILS = st.fixed_dictionaries(
    {},
    optional={
        "console": st.one_of(
            st.text(max_size=10), st.sampled_from(["Script timed out after 5 minutes.", "caught signal 15", " \n"])
        )
    },
)
STATUS = st.lists(st.one_of(ROWS, ROWS, ROWS, GARBAGE, CUT), max_size=10).map(
    lambda rows: "".join(f"{row}\n" for row in rows)
)
FACTS = st.fixed_dictionaries(
    {"type": st.just("local"), "status": STATUS},
    optional={
        "missing": st.sampled_from([False, False, True]),
        "alive": st.sampled_from([True, False]),
        "refused": st.integers(0, 3),
        "cancel_asked": st.one_of(st.none(), st.floats(0, 1e10)),
        "native_id": st.one_of(st.none(), st.text(max_size=5)),
        "tails": TAILS,
        "found": st.none() | st.lists(st.builds(report, st.text(max_size=3), st.integers(0, 3)), max_size=3),
    },
)
HANDLES = st.builds(
    JobHandle,
    prefix=st.just("/psik"),
    stamp=st.just("123"),
    key=st.just("k"),
    jobndx=st.integers(1, 2),
    duration=st.one_of(st.none(), st.integers(1, 99)),
    native_id=st.one_of(st.none(), st.just("77")),
)


def check(status: JobStatus, given_facts: dict[str, Any], handle: JobHandle) -> None:
    """What holds of every judgement."""
    assert isinstance(status.state, JobState)
    rows = parse_status(given_facts["status"])
    own = rows_of_run(rows, handle.jobndx, 0)
    if status.state is JobState.completed:
        assert any(row.state is JobState.completed and row.jobndx == handle.jobndx for row in rows)
        assert all(entry["good"] > 0 for entry in given_facts.get("found") or [])
        assert not given_facts.get("missing")
        assert given_facts.get("alive") is not True
        assert (status.cause, status.exit_code) == (None, 0)
    elif status.state.is_final:
        assert status.cause is not None
        assert status.message
        evidence = any(row.state.is_final for row in own) or given_facts.get("alive") is False
        assert evidence or given_facts.get("missing")
        assert given_facts.get("alive") is not True or given_facts.get("missing")
    else:
        assert status.cause is None
        assert given_facts.get("alive") is not False
    assert JobStatus.model_validate(status.model_dump()).state is status.state


@settings(max_examples=300)
@given(FACTS, HANDLES)
def test_whatever_the_facts_are_success_needs_proof_and_nothing_raises(
    given_facts: dict[str, Any], handle: JobHandle
) -> None:
    check(judge(given_facts, handle), given_facts, handle)


LATER = st.one_of(
    rows_of(st.integers(3, 5), STATES),
    rows_of(st.just(0), st.just("canceled")),
)


@settings(max_examples=300)
@given(FACTS, HANDLES, st.lists(LATER, max_size=5))
def test_final_outcome_does_not_become_another_when_a_later_run_follows(
    given_facts: dict[str, Any], handle: JobHandle, later: list[str]
) -> None:
    before = judge(given_facts, handle)
    text = given_facts["status"] + "".join(f"{row}\n" for row in ["9.0,3,queued,99", *later])
    after = judge(given_facts | {"status": text}, handle)
    assert (after.state, after.cause, after.exit_code) == (before.state, before.cause, before.exit_code)


@settings(max_examples=200)
@given(st.lists(ROWS, max_size=8), st.text("\n,0123456789.acdeflmopqtuv", max_size=30))
def test_lines_that_are_cut_off_never_make_a_job_completed(rows: list[str], rest: str) -> None:
    uncompleted = [row for row in rows if ",completed," not in row]
    text = "\n".join([*uncompleted, rest.replace("completed,", "completed")])
    assert judge({"type": "local", "status": text, "alive": True}, HANDLE).state is not JobState.completed

"""Which reservation keeps a job from its start, from lines that Slurm 22.05 wrote."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_psik.jobs.report import Reporter, job_card
from prefect_psik.models.jobs import JobHandle, JobResult, JobState, JobStatus
from prefect_psik.outcome.reservations import Held, expand, held_by, in_hours, read_reservations
from prefect_psik.session.poller import Update
from tests.unit.reports import judge

NOW = 1_795_803_000
HOUR = 3600
DEFAULT = {"partition": "debug", "partitions": {"debug": "n[1-4]", "gpu": "g[1-2]"}}
BY_MAINTENANCE = "ReqNodeNotAvail, Reserved for maintenance"


def line(name: str, start: float, end: float, nodes: str = "n[1-4]", flags: str = "MAINT,SPEC_NODES") -> str:
    """A line as `scontrol -o show reservation` writes it; hours from now."""
    return (
        f"ReservationName={name} StartTime={NOW + int(start * HOUR)} EndTime={NOW + int(end * HOUR)} "
        f"Duration=02:00:00 Nodes={nodes} NodeCnt=4 CoreCnt=64 Features=(null) PartitionName=(null) Flags={flags} "
        "TRES=cpu=64 Users=root Groups=(null) Accounts=(null) Licenses=(null) State=INACTIVE BurstBuffer=(null) "
        "Watts=n/a MaxStartDelay=(null)"
    )


def said(*lines: str, hours: float = 8, reason: str = "", **job: Any) -> str | None:
    clock = {str(NOW + hour * HOUR // 60): f"+{hour} min CET" for hour in range(-600, 6000)}
    facts = {**DEFAULT, "reservations": list(lines), "clock": clock, **job}
    return held_by(Held.model_validate(facts), hours * HOUR, NOW, reason)


WAITS = (
    "does not fit before the maintenance that starts +310 min CET; "
    "with a duration of at most 5 h 10 min it could start now"
)
AHEAD = 310 / 60


def test_a_maintenance_ahead_says_how_short_the_job_would_have_to_be() -> None:
    assert said(line("m", AHEAD, 12)) == WAITS
    assert said(line("m", AHEAD, 12), hours=math.inf) == WAITS
    assert said(line("m", AHEAD, 12), hours=5) is None, "it fits"


@pytest.mark.parametrize("flags", ["MAINT", "MAINT,IGNORE_JOBS,SPEC_NODES,ALL_NODES", "DAILY,MAINT,OVERLAP"])
def test_a_maintenance_may_have_other_flags(flags: str) -> None:
    assert said(line("m", AHEAD, 12, flags=flags)) == WAITS


def test_a_reservation_that_is_no_maintenance_is_called_by_its_name() -> None:
    text = said(line("course", AHEAD, 12, flags="SPEC_NODES"))
    assert text is not None
    assert text.startswith("does not fit before the reservation course that starts +310 min CET; with")


def test_of_several_the_first_in_the_way_counts() -> None:
    lines = [line("later", 7, 9), line("first", AHEAD, 6), line("over", -3, -1), line("too late", 20, 30)]
    assert said(*lines) == WAITS
    assert said(*lines, hours=5) is None


@pytest.mark.parametrize(
    ("nodes", "job"),
    [
        ("g[1-2]", {}),  # of another partition
        ("n[1-2]", {}),  # two others are left
        ("n[1-2]", {"nodes": "2"}),
        ("n[1-2]", {"required": "n3"}),
        ("n[3-4]", {"excluded": "n[3-4]", "nodes": "2"}),
        ("(null)", {}),  # of licenses
        ("", {}),
    ],
)
def test_a_maintenance_of_other_nodes_is_not_in_the_way(nodes: str, job: dict[str, Any]) -> None:
    assert said(line("m", AHEAD, 12, nodes), **job) is None


@pytest.mark.parametrize(
    "job",
    [
        {"nodes": "3"},
        {"nodes": "3-4"},
        {"required": "n2"},
        {"required": "n[1,3]"},
        {"excluded": "n[3-4]"},
        {"partition": "gpu,debug", "partitions": {"debug": "n[1-2]", "gpu": "n1"}},
    ],
)
def test_a_maintenance_of_some_nodes_is_in_the_way_of_who_needs_them(job: dict[str, Any]) -> None:
    assert said(line("m", AHEAD, 12, "n[1-2]"), **job) == WAITS


def test_two_that_leave_too_few_nodes_together() -> None:
    assert said(line("half", 1, 12, "n[1-2]"), line("other", AHEAD, 12, "n[3-4]")) == WAITS


def test_one_under_way_says_when_it_ends() -> None:
    active = line("now", -1, 2)
    assert said(active) == "the maintenance on nodes that it needs ends +120 min CET"
    assert said(active, line("m", 4, 5)) == "the maintenance on nodes that it needs ends +120 min CET"
    course = line("course", -1, 3, "n4", "SPEC_NODES")
    assert said(course, required="n4") == "the reservation course on nodes that it needs ends +180 min CET"
    assert said(line("m", -1, 2, "n4"), line("n", AHEAD, 6, "n[1-3]")) == WAITS


def test_one_that_begins_within_a_minute_suggests_nothing() -> None:
    assert said(line("m", 30 / 3600, 2)) == "does not fit before the maintenance that starts Unix time 1795803030"


def test_where_the_nodes_cannot_be_seen_slurms_own_word_counts() -> None:
    half = line("m", AHEAD, 12, "n[1-2]")  # a job with a constraint may need just these
    assert said(half) is None
    assert said(half, reason=BY_MAINTENANCE) == WAITS
    assert said(line("m", AHEAD, 12, "g1"), reason=BY_MAINTENANCE) is None


@given(st.lists(st.text(max_size=60), max_size=5))
def test_any_text_can_be_read(lines: list[str]) -> None:
    assert isinstance(read_reservations(lines), list)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", {"n1"}),
        ("n[1-3]", {"n1", "n2", "n3"}),
        ("n[08-10,12],gpu-1", {"n08", "n09", "n10", "n12", "gpu-1"}),
        ("r[1-2]n[1-2]", {"r1n1", "r1n2", "r2n1", "r2n2"}),
        ("r[1-2]-x", {"r1-x", "r2-x"}),
        ("(null)", set()),
        ("", set()),
        ("n[1-999999999]", set()),
        ("n[1-9999]m[1-9999]", set()),
        ("n[1-150000,1-150000]", set()),
        ("n[" + "9" * 5000 + "]", set()),
        ("n" * 5000 + "[1-9]", set()),
    ],
)
def test_lists_of_nodes(text: str, names: set[str]) -> None:
    assert expand(text) == names


def test_a_list_in_several_parts_is_as_long_as_its_parts_together() -> None:
    assert len(expand("a[1-500],b[1-500]")) == 1000


def test_a_time_that_is_no_time_is_not_read() -> None:
    assert read_reservations([f"StartTime={'9' * 5000} EndTime=1 Nodes=n1"]) == []


@given(st.text(alphabet="n[]-,0123456789(", max_size=40))
def test_any_list_of_nodes_can_be_read(text: str) -> None:
    assert len(expand(text)) <= 200_000


def test_durations() -> None:
    assert [in_hours(minutes) for minutes in (0, 45, 60, 310, 1500, 2880)] == [
        "0 min",
        "45 min",
        "1 h",
        "5 h 10 min",
        "1 day 1 h",
        "2 days",
    ]


# ------------------------------------------------------------------------------------------- the whole way


def reason_of(slurms: str, state: str = "PENDING", **held: Any) -> str | None:
    facts = {
        "type": "slurm",
        "native_id": "7",
        "alive": True,
        "squeue": [state, "Unknown", "Unknown", "", "", slurms],
        "status": f"{NOW},1,queued,7\n",
        "now": NOW,
        "held": {**DEFAULT, "limit": "8:00:00", "reservations": [line("m", AHEAD, 12)], **held},
    }
    handle = JobHandle(prefix="/p", stamp="1", key="k", native_id="7", type="slurm")
    return judge(facts, handle).reason


@pytest.mark.parametrize(
    "slurms",
    [BY_MAINTENANCE, "ReqNodeNotAvail, May be reserved for other job", "ReqNodeNotAvail, UnavailableNodes:n[1-4]"],
)
def test_the_wait_says_so_in_slurms_words_first(slurms: str) -> None:
    reason = reason_of(slurms)
    assert reason is not None
    assert reason.startswith(f"{slurms}: does not fit before the maintenance that starts ")
    assert reason.endswith("; with a duration of at most 5 h 10 min it could start now")


def test_the_wait_is_logged_once_and_stands_on_the_card(caplog: pytest.LogCaptureFixture) -> None:
    handle = JobHandle(prefix="/p", stamp="1", key="k", native_id="7", type="slurm", name="recon")
    reporter = Reporter(handle, ["a place in the queue of account proj (AssocMaxSubmitJobLimit), for 9.0 s"])
    caplog.set_level(logging.INFO, logger="prefect_psik")
    for minutes in ("5 h 10 min", "5 h 9 min", "5 h"):
        text = f"{BY_MAINTENANCE}: does not fit before the maintenance that starts 1 Dec 08:00 CET"
        reason = f"{text}; with a duration of at most {minutes} it could start now"
        reporter.tell(Update(status=JobStatus(handle=handle, state=JobState.queued, reason=reason)))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert said[0].endswith("with a duration of at most 5 h 10 min it could start now)")
    card = job_card(JobResult(handle=handle, state=JobState.completed), reporter.waits)
    assert "| waited for | a place in the queue of account proj (AssocMaxSubmitJobLimit), for 9.0 s; Req" in card
    assert "maintenance that starts 1 Dec 08:00 CET" in card


def test_other_waits_say_nothing_of_it() -> None:
    assert reason_of("Resources") == "Resources"
    assert reason_of("Priority") == "Priority"
    assert reason_of(BY_MAINTENANCE, state="RUNNING") is None
    assert "drained or reserved" in str(reason_of(BY_MAINTENANCE, limit="30:00"))
    assert "drained or reserved" in str(reason_of(BY_MAINTENANCE, reservations=[]))

"""What arrives from the facility: malformed answers end the wait that they are about, clearly, and no other."""

from __future__ import annotations

import asyncio
import base64
import copy
from collections.abc import Awaitable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_psik.blocks import PsikBackend
from prefect_psik.exceptions import PrefectPsikError, RemoteCodeError
from prefect_psik.jobs import lifecycle
from prefect_psik.jobs.preflight import preflight
from prefect_psik.jobs.records import cancel_jobs, read_logs, read_records, read_statuses, remove_jobs
from prefect_psik.models.jobs import JobHandle, JobRecord, JobResult, JobState, Verdict
from prefect_psik.outcome.answers import CheckAnswer, Facts, FetchAnswer, SubmitAnswer
from prefect_psik.outcome.arrival import read
from prefect_psik.session import session
from prefect_psik.session.session import Channel, Session
from prefect_psik.spec.identity import Identity
from prefect_psik.spec.jobspec import JobSpec
from tests.unit.reports import report
from tests.unit.test_preflight import GOOD

BAD, OTHER = (JobHandle(prefix="/p", stamp=stamp, key="k", native_id="7", type="slurm") for stamp in "12")
BLOCK, SPEC = PsikBackend(), JobSpec(script="true")
LOG = {"text": "a\n", "next": 2, "size": 2}
ROW = ["COMPLETED", "2", "3", "0:0", "n1", "None"]
STATUS: dict[str, Any] = {
    "jobndx": 1,
    "native_id": "7",
    "type": "slurm",
    "status": "1.0,1,queued,7\n2.0,1,active,\n3.0,1,completed,\n",
    "intent": 1.0,
    "cancel_asked": None,
    "refused": 0,
    "nodes": "2 n[1-2]",
    "alive": False,
    "squeue": ROW,
    "squeue_error": None,
    "held": {"partition": "debug", "limit": "1:00:00", "nodes": "2", "reservations": ["ReservationName=m"]},
    "squeue_time": 4.0,
    "sizes": {"stdout": 2, "stderr": 0, "console": 0},
    "tails": {"stdout": "a\n", "stderr": "", "console": ""},
    "logs": {"stdout": LOG},
    "outputs": ["o"],
    "to_check": True,
    "token": None,
    "now": 9999.0,
}
FOUND = report("o", 1) | {"wrong": [{"name": "p", "why": "small", "size": 1, "min_bytes": 2}], "at_least": 1}
#: What a facility answers to each operation for one job, when all is well.
WELL: dict[str, dict[str, Any]] = {
    "submit": {
        "created": False,
        "prefix": "/p",
        "jobndx": 1,
        "native_id": "7",
        "attempt": [1, 1],
        "asked": {"duration": 5, "memory": None},
        "warnings": ["hm"],
        "facts": STATUS,
    },
    "status": STATUS,
    "cancel": STATUS,
    "check": {"found": [FOUND]},
    "fetch": {
        "entries": {"o": "o"},
        "sizes": {"o": 2},
        "files": {"o": base64.b64encode(b"hi").decode()},
        "good": {"o": 1},
        "left": [{"name": "p", "why": "size", "size": 10**9}],
        "more": 0,
        "trouble": None,
    },
    "usage": {"usage": [["7", "COMPLETED", "3600", "57600", "08:00:00", "1G", "2", "n[1-2]"]], "wait": None},
    "remove": {"removed": True},
    "list": {
        "key": "k",
        "name": "recon",
        "type": "slurm",
        "owner": {"flow_run": "x", "root_flow_run": "y"},
        "flow_runs": ["x"],
        "created": 1.0,
        "jobndx": 1,
        "native_id": "7",
        "asked": {},
        "state": "completed",
        "prefix": "/p",
    },
}


class Facility:
    """Answers well for all jobs but the first, for which a test has an answer of its own."""

    key = place = "here"
    poll_floor_seconds = gather_seconds = 0.0

    def __init__(self, operation: str, answer: Any, *, whole: bool = False) -> None:
        self._operation, self._answer, self._whole = operation, answer, whole

    async def call(self, name: str, payload: dict[str, Any], *, timeout: float = 60) -> Any:
        if name == self._operation and self._whole:
            return self._answer
        stamps = [BAD.stamp, OTHER.stamp] if name == "list" else [job["stamp"] for job in payload["jobs"]]
        jobs = {stamp: copy.deepcopy(WELL[name]) for stamp in stamps}
        if name == self._operation and BAD.stamp in jobs:
            jobs[BAD.stamp] = self._answer
        return {"jobs": jobs, "more": False, "now": 9.0}

    async def endpoint_status(self) -> str:
        return "online"

    async def aclose(self) -> None:
        return None


async def _waited_for(channel: Channel, handle: JobHandle) -> object:
    """The result of a job; or what a wait is told before the next look, if nothing is final yet."""
    subscription = channel.poller.subscribe(handle)
    try:
        update = await asyncio.wrap_future(subscription.next())
        return await lifecycle.finish(channel, update) if update.is_final else update
    finally:
        channel.poller.unsubscribe(handle, subscription)


async def _submitted(channel: Channel, handle: JobHandle) -> object:
    identity = Identity(key="k", stamp=handle.stamp, attempt=[1, 2])
    return await lifecycle.submit(channel, BLOCK, SPEC, identity, rerun=True, owner={})


async def _records_of(channel: Channel, handle: JobHandle) -> object:
    found = (await read_records(channel, None, None)).get(handle.stamp)
    if isinstance(found, PrefectPsikError):
        raise found
    return found


async def _all_steps(channel: Channel, handle: JobHandle) -> list[object]:
    """Everything that is asked about a job, at once."""
    steps: list[Awaitable[object]] = [
        _waited_for(channel, handle),
        _submitted(channel, handle),
        _records_of(channel, handle),
        channel.cancel(handle, {}),
        read_logs(channel, handle, "stdout", None),
        read_statuses(channel, [handle]),
        cancel_jobs(channel, [handle], {}),
        remove_jobs(channel, [handle]),
    ]
    return list(await asyncio.gather(*steps, return_exceptions=True))


async def _both(facility: Facility) -> tuple[list[object], list[object]]:
    channel = Channel(Session.current(), facility, "/p", 0.01)
    async with asyncio.timeout(60):
        bad, other = await asyncio.gather(_all_steps(channel, BAD), _all_steps(channel, OTHER))
    return bad, other


def both(facility: Facility) -> tuple[list[object], list[object]]:
    """What became of everything that was asked about the job with the malformed answer, and about the other."""
    return Session.current().run(_both(facility)).result(90)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "USAGE_PAUSE_SECONDS", 0.0)


def is_clear(outcome: object) -> bool:
    """A result, or an error of ours that says what and where."""
    if isinstance(outcome, BaseException):
        where = any(place in str(outcome) for place in ("here", BAD.place))
        return isinstance(outcome, PrefectPsikError) and where and len(str(outcome)) < 1500
    return True


def test_all_is_well_without_a_malformed_answer() -> None:
    for found in both(Facility("none", None)):
        assert not [outcome for outcome in found if isinstance(outcome, BaseException)], found
        assert isinstance(found[0], JobResult)
        assert (found[0].state, found[0].outputs) == (JobState.completed, {"o": b"hi"})
        assert isinstance(found[2], JobRecord)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 2**31, 2**63, 10**30, 10**400, -(10**400)]),
    st.floats(),
    st.text(st.characters(), max_size=5),
    st.sampled_from(["9" * 5000, "\ud800", "\0", "1e999", "nan"]),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3)), max_size=7),
    st.dictionaries(st.text(max_size=3), st.one_of(st.none(), st.integers(), st.text(max_size=3)), max_size=2),
    st.just({"a": {"b": [[[{"c": None}]]]}}),
    st.just({"error": None}),
    st.just({"error": {"kind": 5}}),
    st.just({"error": {"kind": "unheard of", "message": "m"}}),
)
TIMES = st.sampled_from(["nan", "inf", "-1e308", "1e308", "-5", "9" * 400, "2.5"])
LINES = st.lists(
    st.builds(
        "{},{},{},{}\n".format,
        TIMES,
        st.sampled_from(["1", "0", "-1", "9" * 5000]),
        st.sampled_from(["active", "completed", "failed", "canceled", "done"]),
        st.sampled_from(["", "9", "3", "9" * 4000, "-" + "9" * 20, "\0"]),
    ),
    max_size=4,
).map(lambda lines: {**STATUS, "status": "1.0,1,queued,7\n" + "".join(lines)})


def ways(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be put into a document."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way, *(inner for key, part in pairs for inner in ways(part, (*way, key)))]


@st.composite
def malformed(draw: st.DrawFn, well: Any) -> Any:
    """An answer with something odd in one place, or without what belongs there."""
    answer, way = copy.deepcopy(well), draw(st.sampled_from(ways(well)))
    if not way:
        return draw(ODD)
    inner = answer
    for step in way[:-1]:
        inner = inner[step]
    if draw(st.booleans()):
        inner[way[-1]] = draw(ODD)
    else:
        del inner[way[-1]]
    return answer


def answers_to(operation: str) -> st.SearchStrategy[Any]:
    answer = malformed(WELL[operation])
    return st.one_of(answer, answer, LINES) if operation in ("status", "cancel") else answer


@pytest.mark.parametrize("operation", WELL)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_malformed_answer_about_one_job_ends_that_job_alone(operation: str, data: st.DataObject) -> None:
    bad, other = both(Facility(operation, data.draw(answers_to(operation))))
    assert all(map(is_clear, bad)), bad
    assert not [outcome for outcome in other if isinstance(outcome, BaseException)], other
    assert isinstance(other[0], JobResult)
    assert other[0].state is JobState.completed


WHOLE = st.one_of(
    ODD,
    st.builds(lambda odd: {"jobs": odd, "more": False}, ODD),
    st.builds(lambda jobs, more: {"jobs": jobs, "more": more}, st.dictionaries(st.sampled_from("123"), ODD), ODD),
)


@pytest.mark.parametrize("operation", [name for name in WELL if name != "usage"])
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_answer_that_is_malformed_as_a_whole_ends_each_wait_with_one_clear_error(
    operation: str, data: st.DataObject
) -> None:
    answer = data.draw(WHOLE)
    for found in both(Facility(operation, answer, whole=True)):
        assert all(map(is_clear, found)), found


@settings(max_examples=50, deadline=None)
@given(malformed(GOOD))
def test_a_malformed_answer_to_a_preflight_is_a_failed_check(answer: Any) -> None:
    channel = Channel(Session.current(), Facility("preflight", answer, whole=True), "/p", 1.0)
    checks = Session.current().run(preflight(channel, BLOCK)).result(60).checks
    assert all(check.message for check in checks)
    if not isinstance(answer, dict) or "user" not in answer:
        assert checks[-1].verdict is Verdict.failed


@pytest.mark.parametrize(
    ("model", "answer", "says"),
    [
        (Facts, {"type": "local"}, "lacks status"),
        (Facts, {**STATUS, "squeue": ROW[:5]}, "6 strings"),
        (Facts, {**STATUS, "jobndx": True}, "jobndx"),
        (Facts, {**STATUS, "now": float("nan")}, "now"),
        (Facts, {**STATUS, "logs": {"stdout": {**LOG, "next": -5}}}, "logs.stdout.next"),
        (CheckAnswer, {"same": True}, "lacks found"),
        (FetchAnswer, {**WELL["fetch"], "files": {"o": 5}}, "files.o"),
        (SubmitAnswer, {**WELL["submit"], "facts": None}, "lacks facts"),
        (SubmitAnswer, {**WELL["submit"], "jobndx": 0}, "jobndx"),
    ],
)
def test_an_error_names_what_does_not_fit(model: Any, answer: Any, says: str) -> None:
    with pytest.raises(RemoteCodeError, match=f"about job 1 cannot be used.*{says}"):
        read(model, answer, what="job 1", place="here")


def test_what_a_newer_release_adds_is_left_out() -> None:
    assert read(Facts, {**STATUS, "weather": "fine"}, what="job 1", place="here") == read(
        Facts, STATUS, what="job 1", place="here"
    )

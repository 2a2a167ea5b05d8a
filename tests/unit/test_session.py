"""The session with a transport whose answers a test holds back."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import json
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from prefect_psik.exceptions import FacilityError, FacilityTimeout, RemoteCodeError
from prefect_psik.flow_run import cancellation
from prefect_psik.models.jobs import JobHandle, JobState
from prefect_psik.session import poller as watches
from prefect_psik.session import session
from prefect_psik.session.batcher import MAX_JOBS_PER_CALL
from prefect_psik.session.poller import Update
from prefect_psik.session.session import Channel, Session
from prefect_psik.transport.base import MAX_CALL_BYTES
from prefect_psik.transport.daemon_thread import in_daemon_thread

T = TypeVar("T")

CREATED = {"created": True, "prefix": "/p", "jobndx": 1, "native_id": "7", "attempt": [], "asked": {}}
HANDLE = JobHandle(prefix="/p", stamp="1", key="k", native_id="7")


class HeldTransport:
    """Answers every look with a job that completed, once the test lets it."""

    key = place = "test"
    poll_floor_seconds = gather_seconds = 0.0

    def __init__(self) -> None:
        self.asked = asyncio.Semaphore(0)
        self.answer = asyncio.Semaphore(0)

    async def call(self, name: str, payload: dict[str, Any], *, timeout: float = 60) -> dict[str, Any]:
        assert name == "status"
        self.asked.release()
        await self.answer.acquire()
        now = time.time()
        facts = {
            "type": "local",
            "native_id": "7",
            "status": f"{now},1,queued,7\n{now},1,active,\n{now},1,completed,\n",
            "token": "t",
            "now": now,
        }
        return {"jobs": {job["stamp"]: facts for job in payload["jobs"]}}

    async def endpoint_status(self) -> str:
        return "online"

    async def aclose(self) -> None:
        return None


async def test_an_answer_to_a_watch_that_ended_does_not_end_the_next_one() -> None:
    transport = HeldTransport()
    channel = Channel(Session.current(), transport, "/p", 1.0)
    async with asyncio.timeout(20):
        first = channel.poller.subscribe(HANDLE)
        await transport.asked.acquire()  # the first look is under way
        channel.poller.unsubscribe(HANDLE, first)
        second = channel.poller.subscribe(HANDLE)
        transport.answer.release()
        await transport.asked.acquire()
        transport.answer.release()
        update = await asyncio.wrap_future(second.next())
    assert update.status is not None
    assert update.status.state is JobState.completed


class Answering(HeldTransport):
    """Answers at once, by a function of the jobs asked for."""

    def __init__(self, answer: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self._answer = answer

    async def call(self, name: str, payload: dict[str, Any], *, timeout: float = 60) -> dict[str, Any]:
        self.sizes.append(len(json.dumps(payload)))
        return {"jobs": self._answer(payload["jobs"])}


def on_session(work: Coroutine[Any, Any, T]) -> T:
    return Session.current().run(work).result(30)


async def _all_of(channel: Channel, jobs: list[dict[str, Any]]) -> list[Any]:
    return list(await asyncio.gather(*(channel.submit(job) for job in jobs), return_exceptions=True))


def test_a_defect_in_one_call_ends_its_own_jobs_and_no_others() -> None:
    def answer(jobs: list[dict[str, Any]]) -> dict[str, Any]:
        if jobs[0]["stamp"] == "0":
            raise ZeroDivisionError
        return {job["stamp"]: CREATED for job in jobs}

    jobs = [{"stamp": str(number)} for number in range(MAX_JOBS_PER_CALL + 1)]
    found = on_session(_all_of(Channel(Session.current(), Answering(answer), "/p", 1.0), jobs))
    assert all(isinstance(error, RemoteCodeError) for error in found[:-1])
    assert found[-1].jobndx == 1


def test_calls_are_sized_in_what_is_sent_not_in_characters() -> None:
    transport = Answering(lambda jobs: {job["stamp"]: CREATED for job in jobs})
    jobs = [{"stamp": str(number), "script": "é" * 12_000} for number in range(200)]
    found = on_session(_all_of(Channel(Session.current(), transport, "/p", 1.0), jobs))
    assert [answer.jobndx for answer in found] == [1] * 200
    assert len(transport.sizes) > 1
    assert max(transport.sizes) < MAX_CALL_BYTES


def test_trouble_with_one_job_ends_no_wait_for_another() -> None:
    now = time.time()
    facts = {"type": "local", "native_id": "7", "status": f"{now},1,queued,7\n{now},1,completed,\n", "now": now}

    def answer(jobs: list[dict[str, Any]]) -> dict[str, Any]:
        error = {"error": {"kind": "setup", "message": "Its directory cannot be read."}}
        return {job["stamp"]: error if job["stamp"] == "2" else facts for job in jobs}

    channel = Channel(Session.current(), Answering(answer), "/p", 1.0)
    damaged = HANDLE.model_copy(update={"stamp": "2"})

    async def both() -> tuple[Update, Update]:
        watched = [channel.poller.subscribe(handle) for handle in (damaged, HANDLE)]
        one, other = [await asyncio.wrap_future(subscription.next()) for subscription in watched]
        channel.poller.unsubscribe(damaged, watched[0])
        return one, other

    trouble, update = on_session(both())
    assert trouble.trouble == "Its directory cannot be read. (said by test)"
    assert update.is_final


def test_results_on_a_file_system_that_is_away_for_a_while_are_looked_at_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.time()
    ended = {"type": "local", "native_id": "7", "status": f"{now},1,queued,7\n{now},1,completed,\n", "now": now}
    checks: list[str] = []

    class Unmounted(Answering):
        async def call(self, name: str, payload: dict[str, Any], *, timeout: float = 60) -> dict[str, Any]:
            if name == "status":
                return {"jobs": {"1": ended | {"to_check": True}}}
            checks.append(name)
            if len(checks) == 1:
                return {"error": {"kind": "setup", "message": "The prefix /p does not exist."}}
            return {"jobs": {"1": {"found": []}}}

    monkeypatch.setattr(watches, "CHECK_PAUSE_SECONDS", 0.0)
    channel = Channel(Session.current(), Unmounted(lambda jobs: {}), "/p", 1.0)

    async def both() -> tuple[Update, Update]:
        watched = channel.poller.subscribe(HANDLE)
        return await asyncio.wrap_future(watched.next()), await asyncio.wrap_future(watched.next())

    trouble, end = on_session(both())
    assert trouble.trouble == "The prefix /p does not exist. (said by test)"
    assert end.status is not None
    assert end.status.state is JobState.completed


def test_a_look_at_a_facility_that_is_away_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(jobs: list[dict[str, Any]]) -> dict[str, Any]:
        raise FacilityError("Globus does not answer.", transient=True)

    monkeypatch.setattr(session, "REPEAT_SECONDS", 5.0)
    channel = Channel(Session.current(), Answering(away), "/p", 1.0)
    with pytest.raises(FacilityTimeout, match="Globus does not answer"):
        on_session(channel.look(HANDLE))


def test_a_coroutine_that_wants_to_exit_does_not_end_the_session() -> None:
    """rich raises SystemExit where somebody logs while nobody reads the output: the worker was killed."""

    async def exits() -> None:
        raise SystemExit(1)

    own = Session()
    concurrent.futures.wait([own.run(exits())], timeout=2)
    assert own.run(asyncio.sleep(0, "an answer")).result(60) == "an answer"


def test_a_call_that_wants_to_exit_leaves_nobody_waiting_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    """A submission whose worker was killed waited until somebody killed it, too."""

    def exits(jobs: list[dict[str, Any]]) -> dict[str, Any]:
        raise SystemExit(1)

    own = Session()
    channel = Channel(own, Answering(exits), "/p", 1.0)
    submissions = [own.run(channel.submit({"stamp": stamp})) for stamp in ("1", "2", "2")]
    for submission in submissions:  # the last is of a second call
        with pytest.raises(RemoteCodeError, match=r"failed on test: SystemExit\(1\)"):
            submission.result(60)
    own.run(asyncio.sleep(0)).result(60)
    del channel, submission, submissions
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_a_request_that_wants_to_exit_is_a_passing_error() -> None:
    with pytest.raises(FacilityError, match="cut off") as caught:
        await in_daemon_thread(lambda: sys.exit(1))
    assert caught.value.transient


class Noting(HeldTransport):
    """Knows one job that is active until it is canceled, and notes what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    async def call(self, name: str, payload: dict[str, Any], *, timeout: float = 60) -> dict[str, Any]:
        self.calls.append(name)
        end = f"{time.time()},1,canceled,\n" if "cancel" in self.calls else ""
        status = f"1.0,1,queued,7\n2.0,1,active,\n{end}"
        facts = {"type": "local", "native_id": "7", "alive": not end, "status": status, "now": time.time()}
        return {"jobs": {job["stamp"]: facts for job in payload["jobs"]}}


def test_a_job_that_a_cancelled_flow_run_waits_for_is_not_looked_at_any_more() -> None:
    transport = Noting()

    async def cancelled() -> dict[str, str]:
        channel = Channel(Session.current(), transport, "/p", 0.01)
        wait = cancellation.begin_wait(channel, HANDLE, "cancel", [])
        await asyncio.wrap_future(wait.subscription.next())
        left = await cancellation._stop([wait], "")
        await asyncio.sleep(0.2)
        return left

    assert on_session(cancelled()) == {}
    assert transport.calls[-1] == "cancel"

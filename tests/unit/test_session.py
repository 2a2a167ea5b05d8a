"""The session with a transport whose answers a test holds back."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from typing import Any

from prefect_psik.models import JobHandle, JobState
from prefect_psik.session import Channel, Session

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


def test_a_coroutine_that_wants_to_exit_does_not_end_the_session() -> None:
    """rich raises SystemExit where somebody logs while nobody reads the output: the worker was killed."""

    async def exits() -> None:
        raise SystemExit(1)

    session = Session()
    concurrent.futures.wait([session.run(exits())], timeout=2)
    assert session.run(asyncio.sleep(0, "an answer")).result(10) == "an answer"

"""Submissions at a full queue: who waits, who tries, and who is not held back."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import pytest

from prefect_psik import BackendAttributes, JobSpec, PsikBackend
from prefect_psik.exceptions import FacilityError, FlowRunCancelling, PrefectPsikError, SubmitRejected
from prefect_psik.outcome.answers import Asked, SubmitAnswer
from prefect_psik.outcome.arrival import QueueFull, Refusal, error_from
from prefect_psik.session import admission
from prefect_psik.session.admission import Admission, Leaving, Line, Ticket, Waiting, line_of
from prefect_psik.spec.identity import Identity

LINE = Line("proj", None, "debug")
LIMIT = "AssocMaxSubmitJobLimit"
CREATED = SubmitAnswer(created=True, prefix="/p", jobndx=1, native_id="7", attempt=[1], asked=Asked())
LEAVING = Leaving(FlowRunCancelling("It was not submitted."), FlowRunCancelling("It may have been submitted."))
FOUND = CREATED.model_copy(update={"created": False})


class Queue:
    """A queue with places; each takes one job, and counts how often it was asked for one."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.inside: set[str] = set()
        self.tries: list[str] = []
        self.trouble: list[PrefectPsikError] = []
        self.open = asyncio.Event()
        self.open.set()

    async def send(self, job: dict[str, Any]) -> SubmitAnswer:
        await self.open.wait()
        if job["stamp"] in self.inside:
            return FOUND
        if job.get("full"):
            raise QueueFull("others wait", limit=job["full"])
        self.tries.append(job["stamp"])
        await asyncio.sleep(0)
        if self.trouble:
            raise self.trouble.pop(0)
        if len(self.inside) >= self.places:
            raise QueueFull("no place", limit=LIMIT)
        self.inside.add(job["stamp"])
        return CREATED


def job(stamp: object, line: Line | None = LINE) -> dict[str, Any]:
    return {"stamp": str(stamp)} | ({"line": line} if line else {})


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of the lines, which take no time."""
    taken: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float, result: Any = None) -> Any:
        if seconds >= 1:  # not those of the tests
            taken.append(seconds)
        await real(min(seconds, 0.001))
        return result

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return taken


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def test_all_get_in_as_places_come_free_and_only_one_tries(pauses: list[float]) -> None:
    queue = Queue(3)
    work = Admission(queue.send)
    waiting = [asyncio.create_task(work.submit(job(n), Ticket())) for n in range(40)]
    await until(lambda: len(queue.tries) >= 43)
    assert len(queue.inside) == 3
    assert queue.tries[40:43] == ["3"] * 3, "the first in line tries, and no other"
    for _ in range(37):
        before = len(queue.tries)
        queue.places += 1
        await until(lambda: len(queue.inside) == queue.places)
        assert len(queue.tries) - before <= 4
    assert await asyncio.gather(*waiting) == [CREATED] * 40


async def test_as_many_as_get_through_follow_without_a_pause(pauses: list[float]) -> None:
    queue = Queue(0)
    work = Admission(queue.send)
    waiting = [asyncio.create_task(work.submit(job(n), Ticket())) for n in range(500)]
    await until(lambda: len(queue.tries) > 505)
    assert max(pauses) <= admission.LONGEST_PAUSE_SECONDS
    assert pauses == sorted(pauses), "each pause is longer than the last, up to a bound"
    queue.places = 1000
    await asyncio.gather(*waiting)
    after = queue.tries[-500:]
    assert sorted(after) == sorted(str(n) for n in range(500)), "each was submitted once"


async def test_pauses_have_an_upper_bound(pauses: list[float]) -> None:
    queue = Queue(0)
    task = asyncio.create_task(Admission(queue.send).submit(job(1), Ticket()))
    await until(lambda: len(queue.tries) > 15)
    assert max(pauses) == admission.LONGEST_PAUSE_SECONDS
    queue.places = 1
    await task


async def test_who_waits_holds_back_no_other_account_and_no_job_that_is_in_the_queue() -> None:
    queue = Queue(1)
    work = Admission(queue.send)
    await work.submit(job("in"), Ticket())
    waits = asyncio.create_task(work.submit(job("waits"), Ticket()))
    await until(lambda: queue.tries.count("waits") > 2)
    assert await work.submit(job("in"), Ticket()) == FOUND, "found again"
    late = asyncio.create_task(work.submit(job("late"), Ticket()))
    await until(lambda: queue.tries.count("waits") > 6)
    assert "late" not in queue.tries, "it stands behind the one that tries"
    queue.places = 2
    await waits
    other = Line("proj", "premium", "debug")
    queue.places = 3
    assert await work.submit(job("other", other), Ticket()) == CREATED
    queue.places = 4
    await late


async def test_a_job_without_a_line_is_refused_as_before() -> None:
    with pytest.raises(QueueFull):
        await Admission(Queue(0).send).submit(job(1, None), Ticket())


async def test_leaving_the_line_ends_its_wait_and_no_other() -> None:
    queue = Queue(0)
    work, tickets = Admission(queue.send), [Ticket(), Ticket()]
    first, second = (asyncio.create_task(work.submit(job(n), ticket)) for n, ticket in enumerate(tickets))
    await until(lambda: queue.tries.count("0") > 2)
    tickets[0].withdraw(LEAVING)
    with pytest.raises(FlowRunCancelling):
        await first
    await until(lambda: queue.tries.count("1") > 2)
    assert queue.tries[-1] == "1"
    queue.places = 1
    assert await second == CREATED


async def test_a_try_under_way_is_not_lost_when_its_waiter_leaves() -> None:
    queue = Queue(0)
    ticket = Ticket()
    task = asyncio.create_task(Admission(queue.send).submit(job(1), ticket))
    await until(lambda: len(queue.tries) > 2)
    queue.open.clear()
    await asyncio.sleep(0.05)
    for _ in range(20):
        await asyncio.sleep(0.01)
    ticket.withdraw(LEAVING)
    assert not task.done()
    queue.places = 1
    queue.open.set()
    assert await task == CREATED, "its waiter learns of the job, and can cancel it"


async def test_who_left_before_the_queue_was_full_does_not_wait() -> None:
    ticket = Ticket()
    ticket.withdraw(LEAVING)
    with pytest.raises(FlowRunCancelling):
        await Admission(Queue(0).send).submit(job(1), ticket)


async def test_trouble_that_passes_is_told_and_does_not_end_the_wait() -> None:
    queue = Queue(0)
    ticket = Ticket()
    task = asyncio.create_task(Admission(queue.send).submit(job(1), ticket))
    await until(lambda: len(queue.tries) > 2)
    queue.trouble = [FacilityError("Globus does not answer.", transient=True)] * 2
    await until(lambda: not queue.trouble)
    queue.places = 1
    assert await task == CREATED
    news: list[Waiting | None] = []
    while (future := ticket.news.next()).done():
        news.append(future.result())
    assert news[0] == Waiting(LINE, LIMIT)
    assert news[1] == Waiting(LINE, LIMIT, "Globus does not answer.")
    assert len(news) <= 3, "what does not change is told once"
    assert str(news[0]) == f"waiting for a place in the queue of account proj ({LIMIT})"


def told(ticket: Ticket) -> list[Waiting | None]:
    news = []
    while (future := ticket.news.next()).done():
        news.append(future.result())
    return news


async def test_trouble_of_the_one_that_tries_is_told_to_all_and_so_is_its_end() -> None:
    queue = Queue(0)
    work, tickets = Admission(queue.send), [Ticket(), Ticket(), Ticket()]
    waiting = [asyncio.create_task(work.submit(job(n), ticket)) for n, ticket in enumerate(tickets)]
    await until(lambda: len(queue.tries) > 4)
    queue.trouble = [FacilityError("Globus does not answer.", transient=True)]
    await until(lambda: not queue.trouble)
    tries = len(queue.tries)
    await until(lambda: len(queue.tries) > tries + 1)
    away, full = Waiting(LINE, LIMIT, "Globus does not answer."), Waiting(LINE, LIMIT)
    assert [told(ticket) for ticket in tickets] == [[full, away, full]] * 3
    queue.places = 3
    await asyncio.gather(*waiting)


async def test_a_lost_answer_is_no_proof_that_nothing_was_submitted() -> None:
    queue = Queue(0)
    work, tickets = Admission(queue.send), [Ticket(), Ticket()]
    first, second = (asyncio.create_task(work.submit(job(n), ticket)) for n, ticket in enumerate(tickets))
    await until(lambda: len(queue.tries) > 3)
    queue.trouble = [FacilityError("Globus does not answer.", transient=True)] * 100
    await until(lambda: len(queue.trouble) < 99)
    tickets[0].withdraw(LEAVING)
    tickets[1].withdraw(LEAVING)
    with pytest.raises(FlowRunCancelling, match="It may have been submitted"):
        await first
    with pytest.raises(FlowRunCancelling, match="It was not submitted"):
        await second
    assert [ticket.unconfirmed for ticket in tickets] == [1, None]


async def test_a_full_queue_after_a_lost_answer_is_proof_again() -> None:
    queue = Queue(0)
    ticket = Ticket()
    task = asyncio.create_task(Admission(queue.send).submit(job(1) | {"rerun_after": 2}, ticket))
    await until(lambda: len(queue.tries) > 2)
    queue.trouble = [FacilityError("Globus does not answer.", transient=True)]
    await until(lambda: ticket.unconfirmed == 3)
    await until(lambda: ticket.unconfirmed is None)
    ticket.withdraw(LEAVING)
    with pytest.raises(FlowRunCancelling, match="It was not submitted"):
        await task


async def test_who_cannot_be_told_stands_in_no_line() -> None:
    queue = Queue(0)
    work, ticket = Admission(queue.send), Ticket()

    def breaks() -> None:
        raise RuntimeError("nobody thought of this")

    ticket.begins = breaks
    with pytest.raises(RuntimeError, match="nobody thought of this"):
        await work.submit(job("broken"), ticket)
    other = asyncio.create_task(work.submit(job("other"), Ticket()))
    await until(lambda: "other" in queue.tries)
    queue.places = 2
    assert await other == CREATED
    assert queue.inside == {"other"}


async def test_a_refusal_ends_its_own_wait_only() -> None:
    queue = Queue(0)
    work = Admission(queue.send)
    first, second = (asyncio.create_task(work.submit(job(n), Ticket())) for n in range(2))
    await until(lambda: len(queue.tries) > 3)
    queue.trouble = [SubmitRejected("Invalid qos specification.")]
    with pytest.raises(SubmitRejected, match="Invalid qos"):
        await first
    queue.places = 1
    assert await second == CREATED


def test_the_line_is_what_sbatch_is_given() -> None:
    def of(script: str = "true", options: dict[str, str] | None = None, **backend: str | None) -> Any:
        given = {"type": "slurm", "project_name": "proj", "queue_name": "debug", **backend}
        block = PsikBackend(attributes=BackendAttributes.model_validate(given))
        spec = JobSpec(name="n", script=f"#!/bin/bash\n{script}\n", attributes=options or {})
        return line_of(block.submission(spec, Identity(key="k", stamp="1", attempt=[1]), {})).get("line")

    assert of() == LINE
    assert of(options={"--qos": "few"}) == Line("proj", "few", "debug")
    assert str(of(options={"-q": "few"})) == "account proj with quality of service few"
    assert of("#SBATCH -A other --qos=few\n#SBATCH -p gpu") == Line("other", "few", "gpu")
    assert str(of(project_name=None)) == "the default account"
    assert of(type="local") is None


def test_the_facilitys_answer_becomes_the_error_that_waits() -> None:
    error = error_from(Refusal(kind="full", message="The queue takes no more jobs.", limit=LIMIT), "here")
    assert isinstance(error, QueueFull)
    assert error.limit == LIMIT
    assert not error.transient


def test_the_waiter_reads_the_news_from_another_thread() -> None:
    ticket = Ticket()
    begun: list[int] = []
    ticket.begins = lambda: begun.append(1)
    upcoming: Future[Waiting | None] = ticket.news.next()
    for _ in range(3):
        ticket.tell(Waiting(LINE, LIMIT))
    assert upcoming.result(1) == Waiting(LINE, LIMIT)
    assert not ticket.news.next().done()
    assert begun == [1]

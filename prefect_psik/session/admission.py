"""Submissions that wait for a place in a full queue: one tries for its whole account, the others follow.

A limit on the number of jobs in the queue no longer applies once other jobs end. Each waiter gets its own news and
can leave at any time. The facility keeps nothing about the wait, so a later attempt under the same key starts from
scratch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from prefect_psik.exceptions import PrefectPsikError, RemoteCodeError
from prefect_psik.outcome.answers import SubmitAnswer
from prefect_psik.outcome.arrival import QueueFull
from prefect_psik.session.batcher import MAX_JOBS_PER_CALL, is_transient
from prefect_psik.session.poller import Subscription
from prefect_psik.spec.sbatch import read_arguments

#: The first and the longest pause between two tries of one line.
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 60.0
PAUSE_GROWTH = 1.5

Send = Callable[[dict[str, Any]], Awaitable[SubmitAnswer]]
"""Submits one job; returns the facility's answer or raises its error."""


class Line(NamedTuple):
    """What a limit on the number of jobs may depend on; None: the site's default."""

    account: str | None
    qos: str | None
    partition: str | None

    def __str__(self) -> str:
        account = f"account {self.account}" if self.account else "the default account"
        return f"{account} with quality of service {self.qos}" if self.qos else account


def line_of(job: dict[str, Any]) -> dict[str, Line]:
    """The line in which a job waits, from its sbatch arguments, as part of its submission; none without Slurm."""
    backend = job["backend"]
    if backend["type"] != "slurm":
        return {}
    given = read_arguments(job["spec"]["attributes"])
    account = given.get("--account") or backend["project_name"]
    return {"line": Line(account, given.get("--qos"), given.get("--partition") or backend["queue_name"])}


@dataclass(frozen=True)
class Waiting:
    """News of a submission that waits for a place.

    Args:
        line: The line in which it waits.
        limit: The limit that has been reached, as Slurm calls it.
        trouble: What went wrong at the last try of the line, if it got no answer.
    """

    line: Line
    limit: str
    trouble: str | None = None

    def __str__(self) -> str:
        return f"waiting for a place in the queue of {self.line} ({self.limit})"


class Leaving(NamedTuple):
    """The errors of a submission that leaves its line: it was not submitted, or this is not known."""

    known: PrefectPsikError
    unknown: PrefectPsikError


class Ticket:
    """One submission, as its waiter holds it. Use it on the session's loop only, except for `news`.

    Attributes:
        news: News of the wait; the creator of the ticket ends it with None.
        unconfirmed: The run that the last try may have started, since the try got no clear answer; else None.
        begins: Called once, when the submission has to wait.
    """

    def __init__(self) -> None:
        self.news: Subscription[Waiting | None] = Subscription()
        self.unconfirmed: int | None = None
        self.begins: Callable[[], None] = lambda: None
        self._last: Waiting | None = None
        self._leaving: Leaving | None = None
        self._leave: Callable[[], None] = lambda: None

    @property
    def left(self) -> PrefectPsikError | None:
        """The error with which it leaves its line; None: it stays."""
        if self._leaving is None:
            return None
        return self._leaving.known if self.unconfirmed is None else self._leaving.unknown

    def withdraw(self, leaving: Leaving) -> None:
        """Leave the line. A try that is under way finishes first, since it may submit the job."""
        self._leaving = leaving
        self._leave()

    def enters(self, leave: Callable[[], None]) -> None:
        """Join a line; `leave` is called to leave it."""
        self._leave = leave

    def tell(self, waiting: Waiting) -> None:
        """Hand news to the waiter, if it differs from the last."""
        if self._last is None:
            self.begins()
        if waiting != self._last:
            self._last = waiting
            self.news.put(waiting)


class _Place:
    """One submission in a line."""

    def __init__(self, job: dict[str, Any], ticket: Ticket) -> None:
        self.job = job
        self.ticket = ticket
        self.future: asyncio.Future[SubmitAnswer] = asyncio.get_running_loop().create_future()
        self.is_tried = False
        ticket.enters(self._leave)

    def _leave(self) -> None:
        if not self.is_tried and self.ticket.left is not None:
            self.end(self.ticket.left)

    def end(self, outcome: SubmitAnswer | BaseException) -> None:
        """Hand an answer or an error to the waiter."""
        if self.future.done():
            return
        if isinstance(outcome, BaseException):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class _Queue:
    """The submissions of one line that wait, first come first served."""

    def __init__(self, line: Line, send: Send) -> None:
        self.limit: str | None = None  # the limit that has been reached, while any submission waits
        self._line = line
        self._send = send
        self._places: list[_Place] = []
        self._task: asyncio.Task[None] | None = None

    async def wait(self, job: dict[str, Any], full: QueueFull, ticket: Ticket) -> SubmitAnswer:
        """Wait for a place and submit; returns the facility's answer or raises its error."""
        if ticket.left is not None:
            raise ticket.left
        place = _Place(job, ticket)
        self._places.append(place)
        try:
            self.limit = full.limit
            self._tell_all()
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._serve())
                # Waiters get the error themselves; retrieve it here, so that asyncio does not complain.
                self._task.add_done_callback(lambda task: task.cancelled() or task.exception())
            return await place.future
        finally:
            self._places.remove(place)

    def _tell_all(self, trouble: str | None = None) -> None:
        """Report the last answer, or why there was none, to every waiter, since one tries for all."""
        for place in self._places:
            if not place.future.done():
                place.ticket.tell(Waiting(self._line, self.limit or "", trouble))

    async def _serve(self) -> None:
        try:
            await self._tries()
        except BaseException as err:  # nothing serves these waits any more, so they must end
            for place in self._places:
                place.end(RemoteCodeError(f"Waiting for a place in the queue of {self._line} failed: {err!r}."))
            raise
        finally:
            self.limit = None

    async def _tries(self) -> None:
        """Try one submission at a time; while all tries succeed, double the number."""
        pause, group = FIRST_PAUSE_SECONDS, 1
        while self._places:
            await asyncio.sleep(pause)
            tried = [place for place in self._places if not place.future.done()][:group]
            through = await asyncio.gather(*(self._try(place) for place in tried))
            if all(through):
                pause, group = 0.0, min(2 * group, MAX_JOBS_PER_CALL)
            else:
                longer = min(max(pause, FIRST_PAUSE_SECONDS) * PAUSE_GROWTH, LONGEST_PAUSE_SECONDS)
                pause, group = FIRST_PAUSE_SECONDS if any(through) else longer, 1

    async def _try(self, place: _Place) -> bool:
        """Submit one; returns whether it left the line."""
        place.is_tried = True
        try:
            place.end(await self._send(place.job))
            place.ticket.unconfirmed = None
            self._tell_all()
        except QueueFull as full:
            place.ticket.unconfirmed = None  # the facility searches for the job before it answers this
            self.limit = full.limit
            self._tell_all()
        except PrefectPsikError as err:
            if is_transient(err):
                place.ticket.unconfirmed = place.job.get("rerun_after", 0) + 1
                self._tell_all(str(err))
            else:
                place.end(err)
        finally:
            place.is_tried = False
        if place.ticket.left is not None:
            place.end(place.ticket.left)
        return place.future.done()


class Admission:
    """The submissions of one backend: each is sent at once, and waits in its line if the queue is full."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._queues: dict[Line, _Queue] = {}

    async def submit(self, job: dict[str, Any], ticket: Ticket) -> SubmitAnswer:
        """Create or get one job, as soon as there is a place for it.

        If others are waiting, the facility only searches for the job. If it was not submitted, it joins the line.

        Args:
            job: See `remote.submit`; has a `Line` as its `line` if there can be a limit to wait for.
            ticket: The waiter's.
        """
        if "line" not in job:
            return await self._send(job)
        line = job["line"]
        queue = self._queues.setdefault(line, _Queue(line, self._send))
        try:
            return await self._send({**job, "full": queue.limit} if queue.limit else job)
        except QueueFull as full:
            return await queue.wait(job, full, ticket)

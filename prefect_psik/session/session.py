"""One session per process: an event-loop thread that batches submits, polls and cancels for each backend.

A thousand waiting jobs cost hardly more than one: submits that arrive together are sent in one call, and all waits
on a backend share one status call per poll cycle. The thread never logs and writes no artifacts; it hands out
futures and updates, and the waiters report them in their own Prefect contexts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_exponential, wait_random

from prefect_psik.exceptions import FacilityTimeout, PrefectPsikError
from prefect_psik.models.jobs import JobHandle, JobStatus
from prefect_psik.outcome.answers import (
    CheckAnswer,
    Facts,
    FetchAnswer,
    JobsAnswer,
    SubmitAnswer,
    UsageAnswer,
)
from prefect_psik.outcome.arrival import Answer, read, read_jobs
from prefect_psik.outcome.judge import judge, may_lack
from prefect_psik.session.admission import Admission, Ticket
from prefect_psik.session.batcher import REPEAT_SECONDS, Batcher, is_transient
from prefect_psik.session.poller import Poller
from prefect_psik.transport.base import Transport

T = TypeVar("T")
A = TypeVar("A", bound=Answer)
L = TypeVar("L", CheckAnswer, FetchAnswer)

#: How long a result waits for accounting data, which arrives late, and the pause before the first request.
USAGE_SECONDS = 8.0
USAGE_PAUSE_SECONDS = 1.0


class Channel:
    """All work on one backend, through its transport and under its prefix. Runs on the session's loop."""

    def __init__(self, session: Session, transport: Transport, prefix: str, poll_interval: float) -> None:
        self.session = session
        self.transport = transport
        self.prefix = prefix
        self.poller = Poller(
            transport, partial(self.call, "status", Facts, repeat=False), self.judged, poll_interval
        )
        self._submits = Batcher(transport, partial(self.call, "submit", SubmitAnswer))
        self._cancels = Batcher(transport, partial(self.call, "cancel", Facts))
        self._checks = Batcher(transport, partial(self.call, "check", CheckAnswer))
        self._fetches = Batcher(transport, partial(self.call, "fetch", FetchAnswer))
        self._usages = Batcher(transport, partial(self.call, "usage", UsageAnswer))
        self._admission = Admission(self._submits.add)

    async def submit(self, job: dict[str, Any], ticket: Ticket | None = None) -> SubmitAnswer:
        """Create or get one job, as soon as the queue has a place for it; see `remote.submit`."""
        return await self._admission.submit(job, ticket or Ticket())

    async def cancel(self, handle: JobHandle, owner: dict[str, Any]) -> JobStatus:
        """Cancel one job and return what became of it."""
        job = {"stamp": handle.stamp, "jobndx": handle.jobndx, "owner": owner}
        facts = await self._cancels.add(job)
        self.poller.wake()
        return await self.judged(facts, handle)

    async def judged(self, facts: Facts, handle: JobHandle) -> JobStatus:
        """Decide the state of a job; if its outcome depends on its results, these are checked."""
        status = judge(facts, handle)
        if not may_lack(status, facts):
            return status
        answer = await self._later(self._checks, handle)
        return judge(facts.model_copy(update={"missing": answer.missing, "found": answer.found}), handle)

    async def fetch(self, handle: JobHandle) -> FetchAnswer:
        """Fetch the job's small output files; see `remote.fetch`."""
        return await self._later(self._fetches, handle)

    async def _later(self, batcher: Batcher[L], handle: JobHandle) -> L:
        """Ask about one job until the facility has the time or space to answer."""
        while True:
            answer = await batcher.add({"stamp": handle.stamp, "jobndx": handle.jobndx})
            if not answer.later:
                return answer

    async def usage(self, handle: JobHandle) -> list[list[str]]:
        """What an ended job used, as lines of accounting; none if the site keeps none, or is late."""
        item = {"stamp": handle.stamp, "jobndx": handle.jobndx}
        pause: float | None = USAGE_PAUSE_SECONDS
        rows: list[list[str]] = []
        with contextlib.suppress(PrefectPsikError, TimeoutError):  # no reason to withhold a result
            async with asyncio.timeout(USAGE_SECONDS):
                while pause is not None:
                    await asyncio.sleep(pause)
                    answer = await self._usages.add(item)
                    rows, pause = answer.usage or rows, answer.wait
        return rows

    async def look(self, handle: JobHandle) -> JobStatus:
        """Poll a job once.

        Raises:
            FacilityTimeout: The facility does not answer, or not for this job.
        """
        subscription = self.poller.subscribe(handle)
        trouble = "there is no answer."
        try:
            async with asyncio.timeout(REPEAT_SECONDS):
                while True:
                    update = await asyncio.wrap_future(subscription.next())
                    if update.status is not None:
                        return update.status
                    trouble = update.trouble or trouble
        except TimeoutError:
            text = f"No status of {handle} on {handle.place} within {REPEAT_SECONDS:.0f} s: {trouble}"
            raise FacilityTimeout(text) from None
        finally:
            self.poller.unsubscribe(handle, subscription)

    async def call(
        self, operation: str, model: type[A], jobs: list[dict[str, Any]], *, repeat: bool = True
    ) -> dict[str, A | PrefectPsikError]:
        """Call an operation for several jobs, with retries while errors are transient.

        Returns:
            By stamp, the answer for each job, or an error in its place.

        Raises:
            PrefectPsikError: There is no answer for any of them.
        """
        answer = await self.ask(operation, JobsAnswer, {"jobs": jobs}, repeat=repeat)
        return read_jobs(model, answer.jobs, [job["stamp"] for job in jobs], place=self.transport.place)

    async def ask(self, operation: str, model: type[A], payload: dict[str, Any], *, repeat: bool = True) -> A:
        """Call an operation under this prefix, with retries while errors are transient.

        Raises:
            RemoteCodeError: The answer is not what the operation promises.
            PrefectPsikError: The facility refuses, or cannot be reached.
        """
        what, place = f"the call {operation!r}", self.transport.place
        retrying = AsyncRetrying(
            retry=retry_if_exception(is_transient),
            wait=wait_exponential(multiplier=0.5, max=20) + wait_random(0, 0.5),
            stop=stop_after_delay(REPEAT_SECONDS if repeat else 0),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                answer = await self.transport.call(operation, {"prefix": self.prefix, **payload})
                found = read(model, answer, what=what, place=place)
        return found


class Session:
    """The event-loop thread of this process and its channels."""

    _current: Session | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._channels: dict[tuple[str, str], Channel] = {}
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="prefect-psik", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        """Run the loop while the process lives: an exit in one coroutine must not end the waits of others."""
        while True:
            try:
                self.loop.run_forever()
                return
            except (KeyboardInterrupt, SystemExit):  # the coroutine's own future has it, too
                continue

    @classmethod
    def current(cls) -> Session:
        """The session of this process; a forked child gets its own."""
        with cls._lock:
            if cls._current is None or cls._current._pid != os.getpid():
                cls._current = cls()
            return cls._current

    def run(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the session's loop, in the caller's context (its Prefect settings)."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def on_channel(
        self,
        transport: Transport,
        prefix: str,
        poll_interval: float,
        work: Callable[[Channel], Awaitable[T]],
    ) -> Future[T]:
        """Run `work` with the channel of a backend."""

        async def with_channel() -> T:
            return await work(self.channel(transport, prefix, poll_interval))

        return self.run(with_channel())

    def channel(self, transport: Transport, prefix: str, poll_interval: float) -> Channel:
        """The channel of a transport and prefix; waits with different intervals share the shortest."""
        key = (transport.key, prefix)
        if key not in self._channels:
            self._channels[key] = Channel(self, transport, prefix, poll_interval)
        channel = self._channels[key]
        channel.poller.poll_interval = min(channel.poller.poll_interval, poll_interval)
        return channel

"""Keeps track of who waits for which job, and serves all waits on a backend with one call per poll cycle."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from prefect_psik.exceptions import FacilitySetupError, PrefectPsikError, RemoteCodeError
from prefect_psik.models.jobs import JobHandle, JobStatus
from prefect_psik.outcome.answers import Facts
from prefect_psik.outcome.arrival import NotOurs
from prefect_psik.outcome.judge import judge, may_lack
from prefect_psik.session.batcher import Call
from prefect_psik.transport.base import Transport

T = TypeVar("T")
U = TypeVar("U")

MAX_LOOKS_PER_CALL = 500
#: The pause between two polls is this fraction of the time since the last change, between floor and interval.
PAUSE_PART = 0.05
#: If a log is ahead of us by more than this, we skip to its end.
LOG_BACKLOG_BYTES = 64 * 1024
#: Pause between two checks of a job's results while the facility does not answer.
CHECK_PAUSE_SECONDS = 10.0


@dataclass
class Update:
    """What changed between two polls."""

    status: JobStatus | None = None
    logs: dict[str, str] = field(default_factory=dict)
    tails: dict[str, str] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    trouble: str | None = None
    now: float | None = None  # the facility's clock

    @property
    def is_final(self) -> bool:
        """Whether it reports the end of the job."""
        return self.status is not None and self.status.state.is_final


class Subscription(Generic[U]):
    """Updates of one job or transfer for one waiter, readable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Future[U] | None = None
        self._ready: list[U | BaseException] = []

    def next(self) -> Future[U]:
        """The next update, as a future; an error ends the wait."""
        with self._lock:
            future: Future[U] = Future()
            if self._ready:
                _settle(future, self._ready.pop(0))
            else:
                self._waiting = future
            return future

    def put(self, update: U | BaseException) -> None:
        """Hand an update or an error to the waiter."""
        with self._lock:
            waiting, self._waiting = self._waiting, None
            # A waiter that was interrupted leaves a canceled future behind; the update waits for the next.
            if waiting is not None and waiting.set_running_or_notify_cancel():
                _settle(waiting, update)
            else:
                self._ready.append(update)


def _settle(future: Future[T], outcome: T | BaseException) -> None:
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


@dataclass
class _Watch:
    handle: JobHandle
    subscriptions: list[Subscription[Update]] = field(default_factory=list)
    seen: str | None = None
    offsets: dict[str, int] = field(default_factory=dict)
    status: JobStatus | None = None
    trouble: str | None = None  # the scheduler's
    silent: bool = False  # the last poll got no answer at all
    checking: asyncio.Task[None] | None = None  # the job has ended, and its results are being checked


class Poller:
    """Polls all watched jobs of a backend with one call per poll cycle. On the session's loop only."""

    def __init__(
        self,
        transport: Transport,
        call: Call[Facts],
        judged: Callable[[Facts, JobHandle], Awaitable[JobStatus]],
        poll_interval: float,
    ) -> None:
        self.poll_interval = poll_interval
        self._transport = transport
        self._call = call
        self._judged = judged
        self._watches: dict[tuple[str, int], _Watch] = {}
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Poll again soon: something has changed, or is about to."""
        self._wake.set()

    def subscribe(self, handle: JobHandle) -> Subscription[Update]:
        """Watch a job; the first update comes with the next poll."""
        subscription: Subscription[Update] = Subscription()
        watch = self._watches.setdefault((handle.stamp, handle.jobndx), _Watch(handle))
        watch.subscriptions.append(subscription)
        watch.seen = None
        self.wake()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())
        return subscription

    def unsubscribe(self, handle: JobHandle, subscription: Subscription[Update]) -> None:
        """Stop watching a job."""
        watch = self._watches.get((handle.stamp, handle.jobndx))
        if watch and subscription in watch.subscriptions:
            watch.subscriptions.remove(subscription)
            if not watch.subscriptions:
                del self._watches[(handle.stamp, handle.jobndx)]

    async def _poll(self) -> None:
        try:
            await self._cycles()
        except BaseException as err:  # nothing serves these waits any more, so they must end
            defect = RemoteCodeError(f"Polling the jobs failed on {self._transport.place}: {err!r}.")
            self._tell(list(self._watches.values()), defect)
            raise

    async def _cycles(self) -> None:
        floor = self._transport.poll_floor_seconds
        changed = time.monotonic()
        failures = 0
        while self._watches:
            self._wake.clear()
            begin = time.monotonic()
            try:
                if await self._look_at(list(self._watches.values())):
                    changed = time.monotonic()
                failures = 0
            except PrefectPsikError as err:
                failures += 1
                self._tell_trouble(err)
            pause = min(max((time.monotonic() - changed) * PAUSE_PART, floor), max(self.poll_interval, floor))
            if failures:
                pause = min(max(pause, 2.0**failures), 60.0)
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
                await asyncio.sleep(max(0.0, floor - (time.monotonic() - begin)))
            except TimeoutError:
                continue

    def _tell_trouble(self, error: PrefectPsikError) -> None:
        self._tell(list(self._watches.values()), Update(trouble=str(error)) if error.transient else error)

    def _tell(self, watches: list[_Watch], trouble: Update | PrefectPsikError) -> None:
        """Report trouble to the waiters of these jobs; an error ends their waits."""
        for watch in watches:
            watch.silent = True
            for subscription in watch.subscriptions:
                subscription.put(trouble)
            if isinstance(trouble, PrefectPsikError):
                self._forget(watch)

    def _forget(self, watch: _Watch) -> None:
        key = (watch.handle.stamp, watch.handle.jobndx)
        # While an answer was under way, somebody else may have started to watch the same job again.
        if self._watches.get(key) is watch:
            del self._watches[key]

    async def _look_at(self, watches: list[_Watch]) -> bool:
        """One poll cycle; returns whether anything changed."""
        changed = False
        while watches:
            # Answers come by stamp, so two runs of one job take two calls.
            part = list({watch.handle.stamp: watch for watch in watches}.values())[:MAX_LOOKS_PER_CALL]
            taken = {id(watch) for watch in part}
            watches = [watch for watch in watches if id(watch) not in taken]
            answers = await self._call([_look_item(watch) for watch in part])
            for watch in part:
                changed |= self._apply(watch, answers[watch.handle.stamp])
        return changed

    def _apply(self, watch: _Watch, facts: Facts | PrefectPsikError) -> bool:
        if isinstance(facts, PrefectPsikError):
            self._tell(
                [watch], facts if isinstance(facts, RemoteCodeError | NotOurs) else Update(trouble=str(facts))
            )
            return False
        if facts.same or facts.later:
            if watch.silent:
                watch.silent = False
                for subscription in watch.subscriptions:
                    subscription.put(Update(trouble=watch.trouble))
            return False
        if watch.checking is not None:
            return False
        status = judge(facts, watch.handle)
        logs: dict[str, str] = {}
        behind = False
        for stream, log in facts.logs.items():
            if log.text:
                logs[stream] = log.text
            watch.offsets[stream] = log.next
            if log.size - log.next > LOG_BACKLOG_BYTES:
                watch.offsets[stream] = log.size - LOG_BACKLOG_BYTES // 4
                logs[stream] = logs.get(stream, "") + "\n[… skipped, the log grows faster than it is read …]\n"
            behind |= watch.offsets[stream] < log.size
        watch.seen = None if behind else facts.token
        changed = status != watch.status or bool(logs)
        watch.status = status
        # A scheduler that does not answer is transient trouble, like an endpoint that does not.
        silent = facts.sacct_error if facts.accounting == "silent" else None
        watch.trouble = None if status.state.is_final else facts.squeue_error or silent
        watch.silent = False
        update = Update(
            status=status,
            logs=logs,
            tails=facts.tails,
            outputs=facts.outputs,
            trouble=watch.trouble,
            now=facts.now or None,
        )
        if may_lack(status, facts):
            watch.checking = asyncio.create_task(self._check(watch, facts, update))
        else:
            self._put(watch, update)
        return changed

    def _put(self, watch: _Watch, update: Update) -> None:
        for subscription in list(watch.subscriptions):
            subscription.put(update)
        if update.is_final:
            self._forget(watch)

    async def _check(self, watch: _Watch, facts: Facts, update: Update) -> None:
        """Report the end of a job after checking its results. That may take long; other jobs are not delayed."""
        while watch.subscriptions:
            try:
                update.status = await self._judged(facts, watch.handle)
            except PrefectPsikError as err:
                # As for a status: trouble that the owner or the site can fix does not end the wait.
                if not err.transient and (not isinstance(err, FacilitySetupError) or isinstance(err, NotOurs)):
                    self._tell([watch], err)
                    return
                self._tell([watch], Update(trouble=str(err)))
                await asyncio.sleep(CHECK_PAUSE_SECONDS)
            except BaseException as err:  # nothing serves this wait any more, so it must end
                defect = RemoteCodeError(f"Checking the results of {watch.handle} failed: {err!r}.")
                self._tell([watch], defect)
                raise
            else:
                self._put(watch, update)
                return


def _look_item(watch: _Watch) -> dict[str, Any]:
    return {
        "stamp": watch.handle.stamp,
        "jobndx": watch.handle.jobndx,
        "native_id": watch.handle.native_id,
        "type": watch.handle.type,
        "seen": watch.seen,
        "offsets": watch.offsets,
    }

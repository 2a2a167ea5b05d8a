"""One session a process: an event-loop thread that batches submits, polls and cancels for each backend.

A thousand waiting jobs cost hardly more than one: submits that arrive together travel together, and all
waits on a backend share one status call a poll cycle. The thread never logs and writes no artifacts; it
hands out futures and updates, and whoever waits speaks in its own Prefect context.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_exponential, wait_random

from prefect_psik.exceptions import PrefectPsikError, RemoteCodeError
from prefect_psik.models import JobHandle, JobStatus
from prefect_psik.outcome import judge
from prefect_psik.transport.base import MAX_CALL_BYTES, Transport, error_from

T = TypeVar("T")

#: How long a call is repeated while its errors are transient.
REPEAT_SECONDS = 120.0
MAX_JOBS_PER_CALL = 200
MAX_LOOKS_PER_CALL = 500
#: The pause between two looks is this part of the time since anything changed, between floor and interval.
PAUSE_PART = 0.05
#: How long a result waits for accounting, which runs behind, and when that is asked first.
USAGE_SECONDS = 8.0
USAGE_PAUSE_SECONDS = 1.0
#: A log that runs ahead of us by more is skipped to its end.
LOG_BACKLOG_BYTES = 64 * 1024


def is_transient(error: BaseException) -> bool:
    """The retry rule: one attribute, set where the error is made."""
    return isinstance(error, PrefectPsikError) and error.transient


@dataclass
class Update:
    """What changed between two looks."""

    status: JobStatus | None = None
    logs: dict[str, str] = field(default_factory=dict)
    tails: dict[str, str] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    trouble: str | None = None
    now: float | None = None  # the facility's clock

    @property
    def is_final(self) -> bool:
        """Whether it tells the end of the job."""
        return self.status is not None and self.status.state.is_final


class Subscription:
    """Updates of one job for one waiter, readable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Future[Update] | None = None
        self._ready: list[Update | PrefectPsikError] = []

    def next(self) -> Future[Update]:
        """The next update, as a future; an error ends the wait."""
        with self._lock:
            future: Future[Update] = Future()
            if self._ready:
                _settle(future, self._ready.pop(0))
            else:
                self._waiting = future
            return future

    def put(self, update: Update | PrefectPsikError) -> None:
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
    subscriptions: list[Subscription] = field(default_factory=list)
    seen: str | None = None
    offsets: dict[str, int] = field(default_factory=dict)
    status: JobStatus | None = None
    trouble: str | None = None  # the scheduler's
    silent: bool = False  # the last look got no answer at all


_Entry = tuple[dict[str, Any], asyncio.Future[dict[str, Any]], float]


class _Batcher:
    """Collects items and sends them together; one call at a time, so that a busy one fills the next."""

    def __init__(self, channel: Channel, operation: str) -> None:
        self._channel = channel
        self._operation = operation
        self._items: list[_Entry] = []
        self._task: asyncio.Task[None] | None = None

    async def add(self, item: dict[str, Any]) -> dict[str, Any]:
        """Send one job's item with the others; returns its answer or raises its error."""
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._items.append((item, future, time.monotonic() + REPEAT_SECONDS))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        await asyncio.sleep(self._channel.transport.gather_seconds)
        while self._items:
            batch: list[_Entry] = []
            stamps: set[str] = set()
            size = 0
            for entry in list(self._items):
                weight = len(str(entry[0]))
                if entry[0]["stamp"] in stamps:
                    continue
                if batch and (size + weight > MAX_CALL_BYTES // 2 or len(batch) >= MAX_JOBS_PER_CALL):
                    break
                batch.append(entry)
                stamps.add(entry[0]["stamp"])
                size += weight
                self._items.remove(entry)
            try:
                await self._send(batch)
            except BaseException as err:  # whoever waits must learn of it, even of a defect
                for _, future, _ in batch:
                    if not future.done():
                        future.set_exception(err)
                raise

    async def _send(self, batch: list[_Entry]) -> None:
        busy = []
        try:
            answers = await self._channel.call(self._operation, [item for item, _, _ in batch])
        except PrefectPsikError as err:
            answers = {item["stamp"]: {"exception": err} for item, _, _ in batch}
        for item, future, deadline in batch:
            answer = answers[item["stamp"]]
            if future.done():
                continue
            if "exception" in answer:
                future.set_exception(answer["exception"])
            elif "error" not in answer:
                future.set_result(answer)
            else:
                error = error_from(answer["error"], self._channel.transport.place)
                if is_transient(error) and time.monotonic() < deadline:
                    busy.append((item, future, deadline))
                else:
                    future.set_exception(error)
        if busy:
            await asyncio.sleep(1.0)
            self._items += busy


class Channel:
    """All work on one backend: its transport and prefix. Coroutines run on the session's loop."""

    def __init__(self, session: Session, transport: Transport, prefix: str, poll_interval: float) -> None:
        self.session = session
        self.transport = transport
        self.prefix = prefix
        self.poll_interval = poll_interval
        self._submits = _Batcher(self, "submit")
        self._cancels = _Batcher(self, "cancel")
        self._fetches = _Batcher(self, "fetch")
        self._usages = _Batcher(self, "usage")
        self._watches: dict[tuple[str, int], _Watch] = {}
        self._poller: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    async def submit(self, job: dict[str, Any]) -> dict[str, Any]:
        """Create or get one job; see `remote.submit`."""
        return await self._submits.add(job)

    async def cancel(self, handle: JobHandle, owner: dict[str, Any]) -> JobStatus:
        """Cancel one job and return what became of it."""
        job = {"stamp": handle.stamp, "jobndx": handle.jobndx, "owner": owner}
        facts = await self._cancels.add(job)
        self._wake.set()
        return judge(facts, handle)

    async def fetch(self, handle: JobHandle) -> dict[str, Any]:
        """Bring the job's small output files."""
        return await self._fetches.add({"stamp": handle.stamp, "jobndx": handle.jobndx})

    async def usage(self, handle: JobHandle) -> list[list[str]]:
        """What an ended job used, as lines of accounting; none where the site keeps none, or is late."""
        item = {"stamp": handle.stamp, "jobndx": handle.jobndx}
        pause: float | None = USAGE_PAUSE_SECONDS
        rows: list[list[str]] = []
        with contextlib.suppress(PrefectPsikError, TimeoutError):  # no reason to withhold a result
            async with asyncio.timeout(USAGE_SECONDS):
                while pause is not None:
                    await asyncio.sleep(pause)
                    answer = await self._usages.add(item)
                    rows, pause = answer["usage"] or rows, answer["wait"]
        return rows

    async def look(self, handle: JobHandle) -> JobStatus:
        """Look once."""
        subscription = self.subscribe(handle)
        try:
            while True:
                update = await asyncio.wrap_future(subscription.next())
                if update.status is not None:
                    return update.status
        finally:
            self.unsubscribe(handle, subscription)

    def subscribe(self, handle: JobHandle) -> Subscription:
        """Watch a job; the first update comes with the next look. On the session's loop only."""
        subscription = Subscription()
        watch = self._watches.setdefault((handle.stamp, handle.jobndx), _Watch(handle))
        watch.subscriptions.append(subscription)
        watch.seen = None
        self._wake.set()
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        return subscription

    def unsubscribe(self, handle: JobHandle, subscription: Subscription) -> None:
        """Stop watching. On the session's loop only."""
        watch = self._watches.get((handle.stamp, handle.jobndx))
        if watch and subscription in watch.subscriptions:
            watch.subscriptions.remove(subscription)
            if not watch.subscriptions:
                del self._watches[(handle.stamp, handle.jobndx)]

    async def call(self, operation: str, jobs: list[dict[str, Any]], *, repeat: bool = True) -> dict[str, Any]:
        """Call an operation for several jobs, again while the trouble is transient; answers by stamp."""
        found: dict[str, Any] = (await self.ask(operation, {"jobs": jobs}, repeat=repeat))["jobs"]
        return found

    async def ask(self, operation: str, payload: dict[str, Any], *, repeat: bool = True) -> dict[str, Any]:
        """Call an operation under this prefix, again while the trouble is transient."""
        retrying = AsyncRetrying(
            retry=retry_if_exception(is_transient),
            wait=wait_exponential(multiplier=0.5, max=20) + wait_random(0, 0.5),
            stop=stop_after_delay(REPEAT_SECONDS if repeat else 0),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                answer = await self.transport.call(operation, {"prefix": self.prefix, **payload})
                if "error" in answer:
                    raise error_from(answer["error"], self.transport.place)
        return answer

    async def _poll(self) -> None:
        try:
            await self._poll_cycles()
        except BaseException as err:  # a wait that nobody serves any more must end
            self._end_watches(RemoteCodeError(f"Looking at jobs failed on {self.transport.place}: {err!r}."))
            raise

    async def _poll_cycles(self) -> None:
        floor = self.transport.poll_floor_seconds
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
        if not error.transient:
            self._end_watches(error)
        for watch in self._watches.values():
            watch.silent = True
            for subscription in watch.subscriptions:
                subscription.put(Update(trouble=str(error)))

    def _end_watches(self, error: PrefectPsikError) -> None:
        for watch in self._watches.values():
            for subscription in watch.subscriptions:
                subscription.put(error)
        self._watches.clear()

    async def _look_at(self, watches: list[_Watch]) -> bool:
        """One poll cycle; returns whether anything changed."""
        changed = False
        while watches:
            # Answers come by stamp, so two runs of one job take two calls.
            part = list({watch.handle.stamp: watch for watch in watches}.values())[:MAX_LOOKS_PER_CALL]
            watches = [watch for watch in watches if watch not in part]
            answers = await self.call("status", [_look_item(watch) for watch in part], repeat=False)
            for watch in part:
                changed |= self._apply(watch, answers[watch.handle.stamp])
        return changed

    def _apply(self, watch: _Watch, facts: dict[str, Any]) -> bool:
        if facts.get("same"):
            if watch.silent:
                watch.silent = False
                for subscription in watch.subscriptions:
                    subscription.put(Update(trouble=watch.trouble))
            return False
        status = judge(facts, watch.handle)
        logs: dict[str, str] = {}
        behind = False
        for stream, log in facts.get("logs", {}).items():
            if log["text"]:
                logs[stream] = log["text"]
            watch.offsets[stream] = log["next"]
            if log["size"] - log["next"] > LOG_BACKLOG_BYTES:
                watch.offsets[stream] = log["size"] - LOG_BACKLOG_BYTES // 4
                logs[stream] = logs.get(stream, "") + "\n[… skipped, the log grows faster than it is read …]\n"
            behind |= watch.offsets[stream] < log["size"]
        watch.seen = None if behind else facts.get("token")
        changed = status != watch.status or bool(logs)
        watch.status = status
        # A scheduler that does not answer is trouble on the way, as an endpoint that does not.
        silent = facts.get("sacct_error") if facts.get("accounting") == "silent" else None
        watch.trouble = None if status.state.is_final else facts.get("squeue_error") or silent
        watch.silent = False
        update = Update(
            status=status,
            logs=logs,
            tails=facts.get("tails", {}),
            outputs=list(facts.get("outputs", {})),
            trouble=watch.trouble,
            now=facts.get("now"),
        )
        for subscription in list(watch.subscriptions):
            subscription.put(update)
        if status.state.is_final:
            key = (watch.handle.stamp, watch.handle.jobndx)
            # While the answer was under way, somebody else may have begun to watch the same job anew.
            if self._watches.get(key) is watch:
                del self._watches[key]
        return changed


def _look_item(watch: _Watch) -> dict[str, Any]:
    return {
        "stamp": watch.handle.stamp,
        "jobndx": watch.handle.jobndx,
        "native_id": watch.handle.native_id,
        "type": watch.handle.type,
        "seen": watch.seen,
        "offsets": watch.offsets,
    }


class Session:
    """The event-loop thread of this process and its channels."""

    _current: Session | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._channels: dict[tuple[str, str], Channel] = {}
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="prefect-psik", daemon=True)
        self._thread.start()

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
        channel.poll_interval = min(channel.poll_interval, poll_interval)
        return channel

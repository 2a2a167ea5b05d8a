"""Sends items of several jobs that arrive together in one call."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from prefect_psik.exceptions import PrefectPsikError, RemoteCodeError
from prefect_psik.outcome.arrival import Answer
from prefect_psik.transport.base import MAX_CALL_BYTES, Transport

#: How long a call is retried while its errors are transient.
REPEAT_SECONDS = 120.0
MAX_JOBS_PER_CALL = 200


def is_transient(error: BaseException) -> bool:
    """The retry rule: one attribute, set where the error is made."""
    return isinstance(error, PrefectPsikError) and error.transient


A = TypeVar("A", bound=Answer)

Call = Callable[[list[dict[str, Any]]], Awaitable[dict[str, A | PrefectPsikError]]]
"""Sends the items of several jobs; returns their answers, or errors in place of answers, by stamp."""

_Entry = tuple[dict[str, Any], asyncio.Future[A], float]


class Batcher(Generic[A]):
    """Collects items and sends them together; one call at a time, so that items gather while a call is running."""

    def __init__(self, transport: Transport, call: Call[A]) -> None:
        self._transport = transport
        self._call = call
        self._items: list[_Entry[A]] = []
        self._task: asyncio.Task[None] | None = None

    async def add(self, item: dict[str, Any]) -> A:
        """Send one job's item with the others; returns its answer or raises its error."""
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._items.append((item, future, time.monotonic() + REPEAT_SECONDS))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
            # Waiters get the error themselves; retrieve it here, so that asyncio does not complain of the task.
            self._task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await future

    async def _drain(self) -> None:
        await asyncio.sleep(self._transport.gather_seconds)
        while self._items:
            batch: list[_Entry[A]] = []
            stamps: set[str] = set()
            size = 0
            for entry in list(self._items):
                weight = len(json.dumps(entry[0]))
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
            except Exception as err:  # noqa: BLE001 - waiters must get a defect as an error; the others continue
                self._fail(batch, err)
            except BaseException as err:  # nothing serves the others any more
                self._fail(batch + self._items, err)
                self._items.clear()
                raise

    def _fail(self, entries: list[_Entry[A]], err: BaseException) -> None:
        text = (
            f"A call for {len(entries)} jobs failed on {self._transport.place}: {err!r}. This is a defect of "
            "prefect-psik."
        )
        for _, future, _ in entries:
            if not future.done():
                future.set_exception(RemoteCodeError(text))

    async def _send(self, batch: list[_Entry[A]]) -> None:
        busy = []
        try:
            answers = await self._call([item for item, _, _ in batch])
        except PrefectPsikError as err:
            for _, future, _ in batch:
                if not future.done():
                    future.set_exception(err)
            return
        for item, future, deadline in batch:
            answer = answers[item["stamp"]]
            if future.done():
                continue
            if not isinstance(answer, PrefectPsikError):
                future.set_result(answer)
            elif answer.transient and time.monotonic() < deadline:
                busy.append((item, future, deadline))
            else:
                future.set_exception(answer)
        if busy:
            await asyncio.sleep(1.0)
            self._items += busy

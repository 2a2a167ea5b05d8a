"""How a task waits for work on the session's loop: a sync task in slices, an async task shielded."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from concurrent.futures import Future
from typing import TypeVar

from prefect_psik.exceptions import SyncCallError
from prefect_psik.flow_run.report import run_logger

T = TypeVar("T")

#: A sync wait wakes up this often, so that signals are noticed.
SLICE_SECONDS = 0.5
#: After an interrupt, Prefect kills the process after 30 s.
INTERRUPT_SECONDS = 25.0


def result(future: Future[T], within: float | None = None) -> T:
    """Wait for a result, but let signals interrupt the wait.

    Args:
        future: Work on the session's loop, which continues whatever happens here.
        within: Seconds; None: no limit.

    Raises:
        TimeoutError: There is no result within this time.
    """
    deadline = None if within is None else time.monotonic() + within
    while True:
        left = SLICE_SECONDS if deadline is None else min(SLICE_SECONDS, deadline - time.monotonic())
        if concurrent.futures.wait([future], timeout=max(left, 0.0)).done:
            return future.result()
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError


async def aresult(future: Future[T], within: float | None = None) -> T:
    """Async twin of `result`."""
    async with asyncio.timeout(within):
        # Shielded: cancelling the waiter must not interrupt the work on the session's loop.
        return await asyncio.shield(asyncio.wrap_future(future))


def linger(future: Future[T]) -> None:
    """Wait for the work that an interrupt started, for as long as Prefect allows; its errors are logged."""
    concurrent.futures.wait([future], timeout=INTERRUPT_SECONDS)
    _tell_error(future)


async def alinger(future: Future[T]) -> None:
    """Async twin of `linger`."""
    waiting = asyncio.wrap_future(future)
    await asyncio.wait([waiting], timeout=INTERRUPT_SECONDS)
    _tell_error(waiting)


def _tell_error(future: Future[T] | asyncio.Future[T]) -> None:
    if not future.done():
        text = "The work that the interrupt started has not finished within %.0f s; it may still be running"
        run_logger().error(text, INTERRUPT_SECONDS)
    elif not future.cancelled() and (error := future.exception()):
        run_logger().error("%s", error)


def refuse_running_loop(twin: str) -> None:
    """Refuse a sync call on a running event loop, which it would block.

    Args:
        twin: Name of the async twin.

    Raises:
        SyncCallError: There is a running loop.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise SyncCallError(
        "This task would block the event loop of the notebook or async code that called it. Use "
        f"`await {twin}(...)` instead. If the call is in a flow, make the flow `async def`, and call it with "
        "`await`, which also works in a notebook cell."
    )

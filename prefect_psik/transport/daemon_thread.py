"""Blocking work for a coroutine, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from prefect_psik.exceptions import FacilityError

T = TypeVar("T")


async def in_daemon_thread(
    work: Callable[[], T], afterwards: Callable[[BaseException | None], None] | None = None
) -> T:
    """Run blocking work without keeping the interpreter alive; `afterwards` gets the exception, or None."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # a waiter that goes away does not end the work

    def run() -> None:
        failure: BaseException | None = None
        try:
            result = work()
        except SystemExit as err:  # rich exits when a library logs to a closed pipe: the worker was killed
            failure = FacilityError(f"A request was cut off by {err!r}; its outcome is unknown.", transient=True)
        except BaseException as err:  # noqa: BLE001 - handed to the waiter
            failure = err
        if failure is None:
            future.set_result(result)
        else:
            future.set_exception(failure)
        if afterwards is not None:
            afterwards(failure)

    threading.Thread(target=run, name="prefect-psik", daemon=True).start()
    return await asyncio.wrap_future(future)

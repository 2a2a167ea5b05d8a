"""Waiting for a transfer: polls it until it is final, cancels hopeless ones, and reports how it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from prefect_psik.data.once import keep_arrival, repeated
from prefect_psik.data.report import TransferReporter
from prefect_psik.exceptions import TransferError
from prefect_psik.flow_run import cancellation
from prefect_psik.flow_run.both import alinger, aresult, linger, result
from prefect_psik.flow_run.cancellation import INTERRUPTS, OnCancel, Watched
from prefect_psik.flow_run.identity import enclosing_flow_runs
from prefect_psik.models.causes import TransferCause
from prefect_psik.models.transfers import (
    Carrier,
    Order,
    TransferHandle,
    TransferResult,
    TransferState,
    TransferStatus,
    TransferUpdate,
)
from prefect_psik.session.poller import Subscription
from prefect_psik.session.session import Session

#: Faults that waiting will not fix: after two polls in a row with one of these, the transfer is canceled.
HOPELESS = frozenset({TransferCause.permission_denied, TransferCause.not_found, TransferCause.quota})
#: Causes that may have passed by the time a task is retried.
PASSING = frozenset({TransferCause.away, TransferCause.changed})
#: The pause between two polls is this fraction of the time waited so far, within the bounds below in seconds.
PAUSE_PART = 0.05
PAUSES_SECONDS = (0.5, 10.0)
LOCAL_PAUSES_SECONDS = (0.1, 1.0)
#: How long to wait, after its deadline, for a transfer to end.
GRACE_SECONDS = 120.0

_NEXT_STEPS = {
    TransferCause.permission_denied: "Ask the collection's administrator for access, then retry.",
    TransferCause.not_found: "Check the path, then retry.",
    TransferCause.quota: "Free space at the destination, then retry.",
    TransferCause.away: "Retry when it can be reached again.",
    TransferCause.checksum: "Check the storage at both ends, then retry.",
    TransferCause.changed: "Retry when nothing is writing to the file.",
    TransferCause.deadline: "Set a longer deadline, or fix what held it up, then retry.",
    TransferCause.canceled: "If you did not cancel it, ask who did.",
}


@dataclass(frozen=True, eq=False)
class TransferWait(Watched):
    """One wait for a transfer."""

    subscription: Subscription[TransferUpdate]


def wait(carrier: Carrier, handle: TransferHandle, on_cancel: OnCancel) -> TransferResult:
    """Wait until a transfer is final."""
    session, reporter = Session.current(), TransferReporter(handle)
    beginning = session.run(_begin_wait(carrier, handle, on_cancel, enclosing_flow_runs()))
    try:
        waiting = result(beginning)
        update = TransferUpdate()
        while not update.is_final:
            update = result(waiting.subscription.next())
            reporter.tell(update)
    except INTERRUPTS:
        linger(session.run(cancellation.after_interrupt(beginning)))
        raise
    finally:
        session.run(cancellation.end_wait(beginning))
    return succeeded(handle, update.status)


async def await_(carrier: Carrier, handle: TransferHandle, on_cancel: OnCancel) -> TransferResult:
    """Async twin of `wait`."""
    session, reporter = Session.current(), TransferReporter(handle)
    beginning = session.run(_begin_wait(carrier, handle, on_cancel, enclosing_flow_runs()))
    try:
        waiting = await aresult(beginning)
        update = TransferUpdate()
        while not update.is_final:
            update = await aresult(waiting.subscription.next())
            await reporter.atell(update)
    except INTERRUPTS:
        await alinger(session.run(cancellation.after_interrupt(beginning)))
        raise
    finally:
        session.run(cancellation.end_wait(beginning))
    return succeeded(handle, update.status)


async def _begin_wait(
    carrier: Carrier, handle: TransferHandle, on_cancel: OnCancel, flow_runs: list[str]
) -> TransferWait:
    subscription: Subscription[TransferUpdate] = Subscription()
    looking = asyncio.create_task(follow(carrier, handle, subscription, flow_runs))

    def leave() -> None:
        looking.cancel()

    waiting = TransferWait(
        what=str(handle),
        on_cancel=on_cancel,
        flow_runs=tuple(flow_runs),
        stop=lambda: repeated(lambda: carrier.cancel(handle.task_id)),
        tell=subscription.put,
        leave=leave,
        subscription=subscription,
    )
    cancellation.watch(waiting)
    return waiting


async def follow(
    carrier: Carrier,
    handle: TransferHandle,
    subscription: Subscription[TransferUpdate],
    flow_runs: Sequence[str] = (),
) -> None:
    """Poll a transfer until it is final; cancel it after its deadline, or if waiting will not help.

    Args:
        carrier: What moves the data.
        handle: Of the transfer.
        subscription: Gets the news.
        flow_runs: Those that wait, root first: a transfer that succeeded is recorded there if it has to be.
    """
    try:
        await _follow(carrier, handle, subscription, flow_runs)
    except TransferError as err:
        subscription.put(err)
    except BaseException as err:  # nothing polls any more, so the wait must end
        subscription.put(TransferError(f"Polling the {handle} failed: {err!r}."))
        raise


async def _follow(
    carrier: Carrier, handle: TransferHandle, subscription: Subscription[TransferUpdate], flow_runs: Sequence[str]
) -> None:
    began, hopeless = time.monotonic(), 0
    given_up: TransferCause | None = None
    floor, ceiling = LOCAL_PAUSES_SECONDS if handle.is_local else PAUSES_SECONDS
    while True:
        over = time.time() - handle.deadline if handle.deadline is not None else 0.0
        try:
            status = await carrier.look(handle.task_id)
            if given_up is not None and status.state is TransferState.failed:
                status = status.model_copy(update={"cause": given_up})
            if status.state is TransferState.succeeded:
                await keep_arrival(carrier, handle.task_id, flow_runs)
            subscription.put(TransferUpdate(status=status))
            if status.state.is_final:
                return
            hopeless = hopeless + 1 if status.cause in HOPELESS else 0
            if given_up is None and (over > 0 or hopeless > 1):
                await carrier.cancel(handle.task_id)
                given_up = TransferCause.deadline if over > 0 else status.cause
        except TransferError as err:
            if not err.transient:
                raise
            subscription.put(TransferUpdate(trouble=str(err)))
        if over > GRACE_SECONDS:
            raise TransferError(
                f"The {handle} is past its deadline, and whether it has ended is unknown. Check it in "
                "Globus's web app.",
                cause=TransferCause.deadline,
            )
        await asyncio.sleep(min(max((time.monotonic() - began) * PAUSE_PART, floor), ceiling))


def succeeded(handle: TransferHandle, status: TransferStatus | None) -> TransferResult:
    """Make the result of a transfer that succeeded.

    Raises:
        TransferError: It did not succeed; says why.
    """
    if status is None or status.state is not TransferState.succeeded:
        raise error_of(handle, status)
    return TransferResult(
        handle=handle,
        files=status.files,
        files_transferred=status.files_transferred,
        files_skipped=status.files_skipped,
        bytes_transferred=status.bytes_transferred,
        bytes_per_second=status.bytes_per_second,
        faults=status.faults,
        left_out=status.left_out,
    )


def error_of(handle: TransferHandle, status: TransferStatus | None) -> TransferError:
    """Make the error for a transfer that did not succeed."""
    cause = (status.cause if status else None) or TransferCause.other
    words = f"{status.nice_status or ''} {status.detail or ''}".strip() if status else ""
    faults = f", after {status.faults} faults" if status and status.faults else ""
    done = f"{status.files_transferred} of {status.files} files were moved" if status else "its status is unknown"
    otherwise = "Correct that, then retry." if handle.is_local else "Read its events in Globus's web app."
    return TransferError(
        f"The {handle} failed ({cause.value}{faults}): {words or 'no reason given'}; {done}. "
        f"{_NEXT_STEPS.get(cause, otherwise)}",
        transient=cause in PASSING,
        cause=cause,
    )


async def begin(carrier: Carrier, order: Order) -> str:
    """Begin an order that is not recorded anywhere; returns the id of its task."""
    submission_id = await repeated(carrier.reserve)
    task_id, _ = await repeated(lambda: carrier.submit(order, submission_id))
    return task_id


async def carry_out(
    carrier: Carrier, order: Order, source: str, destination: str, *, begun: asyncio.Future[str] | None = None
) -> tuple[str, TransferResult]:
    """Carry out an order and wait for it, on the session's loop; for steps of a larger operation.

    Cancelling the coroutine cancels the carrier's task.

    Args:
        carrier: What carries it out.
        order: What to do.
        source: What messages call the source.
        destination: What messages call the destination.
        begun: The order's task, if the caller began it in order to know its id in any case.

    Returns:
        The task's id, and its result.

    Raises:
        TransferError: It did not succeed.
    """
    if begun is None:
        begun = asyncio.ensure_future(begin(carrier, order))
    try:
        task_id = await asyncio.shield(begun)
        handle = TransferHandle(task_id=task_id, source=source, destination=destination, deadline=order.deadline)
        return task_id, succeeded(handle, await _end_of(carrier, handle))
    except asyncio.CancelledError:
        task_id = await begun
        await repeated(lambda: carrier.cancel(task_id))
        raise


async def until_final(carrier: Carrier, task_id: str) -> None:
    """Wait until a task has ended, however it ends."""
    while not (await repeated(lambda: carrier.look(task_id))).state.is_final:
        await asyncio.sleep(PAUSES_SECONDS[0])


async def _end_of(carrier: Carrier, handle: TransferHandle) -> TransferStatus | None:
    subscription: Subscription[TransferUpdate] = Subscription()
    looking = asyncio.create_task(follow(carrier, handle, subscription))
    try:
        update = TransferUpdate()
        while not update.is_final:
            update = await asyncio.wrap_future(subscription.next())
    finally:
        looking.cancel()
    return update.status

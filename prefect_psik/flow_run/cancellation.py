"""Cancel and crash are different: a user's cancel frees the nodes, a crash or a redeploy leaves the jobs running.

The exception that a task gets does not show which of the two it is, and tasks in `.submit()` and `.map()` threads
get none at all. The flow run's state in Prefect's API does. So while anything waits, one watcher for each flow
run reads that state; on "cancelling" it asks all jobs of that flow run to stop, in one call for each backend.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException, TerminationSignal
from prefect.states import Cancelled, Failed

from prefect_psik.exceptions import FlowRunCancelling, PrefectPsikError
from prefect_psik.models.jobs import JobHandle
from prefect_psik.session.poller import Subscription, Update
from prefect_psik.session.session import Channel

OnCancel = Literal["cancel", "leave"]

#: Prefect leaves 30 s between the cancel and SIGKILL.
WATCH_SECONDS = 3.0
#: Keep retrying a stop request that could not be delivered for this long.
STOP_SECONDS = 20.0
#: The exceptions that a task gets when its process is asked to stop, by whomever.
INTERRUPTS = (asyncio.CancelledError, KeyboardInterrupt, TerminationSignal)


@dataclass(frozen=True, eq=False)
class Watched:
    """One wait, in the form that the watcher of its flow run uses.

    Args:
        what: The job or transfer, for the message.
        on_cancel: What cancelling the flow run does to it.
        flow_runs: The flow runs that enclose the wait, root first.
        stop: Asks the job or transfer to stop.
        tell: Ends the wait with an error.
        leave: Stops polling.
    """

    what: str
    on_cancel: OnCancel
    flow_runs: tuple[str, ...]
    stop: Callable[[], Awaitable[object]]
    tell: Callable[[PrefectPsikError], None]
    leave: Callable[[], None]


@dataclass(frozen=True, eq=False)
class Wait(Watched):
    """One wait for a job."""

    channel: Channel
    handle: JobHandle
    subscription: Subscription[Update]


W = TypeVar("W", bound=Watched)

_waits: dict[tuple[str, ...], list[Watched]] = {}
_watchers: dict[tuple[str, ...], asyncio.Task[None]] = {}
_asking: dict[tuple[str, ...], asyncio.Task[str | None]] = {}
#: Flow runs that a watcher saw being cancelled.
_cancelling: set[str] = set()
#: By flow run, the jobs that this process submitted or found again, and whose end it does not know yet.
_submitted: dict[str, dict[tuple[str, int], tuple[JobHandle, Channel]]] = {}


def owner_of(flow_runs: list[str], on_cancel: OnCancel = "cancel") -> dict[str, Any]:
    """Who submits or cancels, for the facility's records: the root flow run and the innermost one.

    A job that a cancel must leave alone is not recorded under its flow runs.
    """
    return {
        "flow_run": flow_runs[-1] if flow_runs else None,
        "root_flow_run": flow_runs[0] if flow_runs else None,
        "flow_runs": flow_runs if on_cancel == "cancel" else [],
    }


def begin_wait(channel: Channel, handle: JobHandle, on_cancel: OnCancel, flow_runs: list[str]) -> Wait:
    """Subscribe to a job, and start watching its flow run. On the session's loop only."""
    subscription = channel.poller.subscribe(handle)
    wait = Wait(
        what=str(handle),
        on_cancel=on_cancel,
        flow_runs=tuple(flow_runs),
        stop=lambda: channel.cancel(handle, owner_of(flow_runs)),
        tell=subscription.put,
        leave=lambda: channel.poller.unsubscribe(handle, subscription),
        channel=channel,
        handle=handle,
        subscription=subscription,
    )
    watch(wait)
    return wait


def watch(wait: Watched) -> None:
    """Start watching the flow run of a wait. On the session's loop only."""
    if wait.flow_runs:
        _waits.setdefault(wait.flow_runs, []).append(wait)
        if wait.flow_runs not in _watchers or _watchers[wait.flow_runs].done():
            _watchers[wait.flow_runs] = asyncio.create_task(_watch(wait.flow_runs))


def refuse_cancelling(flow_runs: list[str]) -> None:
    """Refuse a submission, by a task retry or a later task, for a flow run that a watcher saw being cancelled.

    Raises:
        FlowRunCancelling: The flow run is being cancelled.
    """
    if _cancelling.intersection(flow_runs):
        raise FlowRunCancelling("The flow run is being cancelled; nothing more is submitted.")


def note_job(channel: Channel, handle: JobHandle, flow_runs: list[str]) -> None:
    """Record a job under its flow runs, so that a cancel also reaches it while nothing waits for it."""
    for flow_run in flow_runs:
        _submitted.setdefault(flow_run, {})[_run_of(handle)] = (handle, channel)


def forget_job(handle: JobHandle, flow_runs: tuple[str, ...]) -> None:
    """Undo `note_job`, since the job's end is known."""
    for flow_run in flow_runs:
        _submitted.get(flow_run, {}).pop(_run_of(handle), None)


def _run_of(handle: JobHandle) -> tuple[str, int]:
    return handle.stamp, handle.jobndx


async def end_wait(beginning: Future[W]) -> None:
    """Undo `begin_wait` and `watch`, after the beginning has finished."""
    wait: W = await asyncio.wrap_future(beginning)
    unwatch(wait)


def unwatch(wait: Watched) -> None:
    """Undo `watch`; doing so twice is harmless. On the session's loop only."""
    wait.leave()
    waits = _waits.get(wait.flow_runs, [])
    if wait in waits:
        waits.remove(wait)
    if not waits:
        _waits.pop(wait.flow_runs, None)


async def after_interrupt(beginning: Future[W]) -> bool:
    """Handle an interrupted wait: cancel its work only if the user cancelled the flow run.

    Returns:
        Whether the work was asked to stop.

    Raises:
        FlowRunCancelling: The work could not be asked to stop.
    """
    wait: W = await asyncio.wrap_future(beginning)
    cancelling = await _cancelling_of(wait.flow_runs) if wait.on_cancel == "cancel" else None
    if cancelling is None:
        return False
    if left := await _stop([wait], cancelling):
        raise FlowRunCancelling(f"The flow run is being cancelled. {_all_that_goes_on(left)}")
    return True


async def is_cancelling(flow_runs: tuple[str, ...]) -> bool:
    """Ask Prefect's API whether one of these flow runs is being cancelled; without an answer, assume not."""
    return await _cancelling_of(flow_runs) is not None


async def _cancelling_of(flow_runs: tuple[str, ...]) -> str | None:
    """The outermost of these flow runs that is being cancelled; concurrent calls share one request."""
    if flow_runs not in _asking or _asking[flow_runs].done():
        _asking[flow_runs] = asyncio.create_task(_ask(flow_runs))
    return await asyncio.shield(_asking[flow_runs])


async def _ask(flow_runs: tuple[str, ...]) -> str | None:
    try:
        async with get_client() as client:
            for flow_run in flow_runs:
                state = (await client.read_flow_run(UUID(flow_run))).state
                if state is not None and (state.is_cancelling() or state.is_cancelled()):
                    return flow_run
    except (PrefectException, httpx.HTTPError, OSError, ValueError):
        return None
    return None


async def _watch(flow_runs: tuple[str, ...]) -> None:
    while flow_runs in _waits:
        cancelling = await _cancelling_of(flow_runs)
        if cancelling is not None:
            _cancelling.add(cancelling)
            waits = list(_waits.get(flow_runs, []))
            left = await _stop([wait for wait in waits if wait.on_cancel == "cancel"], cancelling)
            # Do this before the waits end: the process may end with them, and the flow run would stay Cancelling.
            await _end_unsupervised(flow_runs[0], left)
            for wait in waits:
                wait.tell(_told(wait, left))
                unwatch(wait)
        await asyncio.sleep(WATCH_SECONDS)


def _told(wait: Watched, left: dict[str, str]) -> FlowRunCancelling:
    asked = "it was asked to stop" if wait.on_cancel == "cancel" else "it keeps running, as requested"
    if wait.what in left:
        asked = f"{_may_go_on(left[wait.what])} Check it where it runs, and cancel it by hand"
    return FlowRunCancelling(f"The flow run is being cancelled while waiting for {wait.what}; {asked}.")


def _may_go_on(why: str) -> str:
    return f"it may still be running, since it could not be asked to stop: {why.rstrip('.')}."


def _all_that_goes_on(left: dict[str, str]) -> str:
    return " ".join(f"{what}: {_may_go_on(why)}" for what, why in left.items())


async def _end_unsupervised(flow_run: str, left: dict[str, str]) -> None:
    """End a flow run that no runner supervises: one of a plain `python flow.py` would stay Cancelling for ever.

    It becomes Cancelled only if all of its work was asked to stop, else Failed with a message that says so.
    """
    try:
        async with get_client() as client:
            run = await client.read_flow_run(UUID(flow_run))
            if run.deployment_id is not None or run.state is None:
                return
            # A subflow's watcher sees only its own part, and may have set the state to Cancelled before.
            if left and (run.state.is_cancelling() or run.state.is_cancelled()):
                failed: State[None] = Failed(
                    message=f"Not all work of the flow run could be cancelled. {_all_that_goes_on(left)}"
                )
                await client.set_flow_run_state(run.id, failed, force=True)
            elif run.state.is_cancelling():
                cancelled: State[None] = Cancelled(message="Its jobs and transfers were asked to stop.")
                await client.set_flow_run_state(run.id, cancelled, force=True)
    except (PrefectException, httpx.HTTPError, OSError, ValueError):
        return


async def _stop(waits: list[Watched], flow_run: str) -> dict[str, str]:
    """Ask the work of these waits to stop, and the flow run's jobs that nothing waits for.

    A failure to stop one does not keep the others. Jobs of one backend are sent in one call.

    Returns:
        What may still be running, and why.
    """
    until = asyncio.get_running_loop().time() + STOP_SECONDS
    for wait in waits:
        if isinstance(wait, Wait):
            wait.leave()  # polling it is no longer of use, and all processes of a login share its request budget
    waits = [*waits, *_not_waited_for(flow_run)]
    reasons = await asyncio.gather(*(_ask_to_stop(wait, until) for wait in waits), return_exceptions=True)
    return {
        wait.what: reason if isinstance(reason, str) else f"a defect, {reason!r}"
        for wait, reason in zip(waits, reasons, strict=True)
        if reason
    }


async def _ask_to_stop(wait: Watched, until: float) -> str:
    """Ask until it works or time is up; returns why it did not work, or an empty string."""
    why = "no answer came in time"
    try:
        async with asyncio.timeout_at(until):
            while True:
                try:
                    await wait.stop()
                    return ""
                except PrefectPsikError as err:
                    why = str(err)
                await asyncio.sleep(WATCH_SECONDS)
    except TimeoutError:
        return why


def _not_waited_for(flow_run: str) -> list[Watched]:
    """Take the jobs of a flow run that nothing waits for; the caller that takes them stops them."""
    waited = {_run_of(wait.handle) for waits in _waits.values() for wait in waits if isinstance(wait, Wait)}
    jobs = _submitted.get(flow_run, {})
    taken = [jobs.pop(run) for run in list(jobs) if run not in waited]
    return [_unwaited(handle, channel, flow_run) for handle, channel in taken]


def _unwaited(handle: JobHandle, channel: Channel, flow_run: str) -> Watched:
    return Watched(
        what=str(handle),
        on_cancel="cancel",
        flow_runs=(flow_run,),
        stop=lambda: channel.cancel(handle, owner_of([flow_run])),
        tell=lambda error: None,
        leave=lambda: None,
    )

"""TASKS: delete data of which a proven copy exists elsewhere; now, or scheduled."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Generic, TypeVar

from prefect import task
from prefect.artifacts import acreate_table_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Scheduled

from prefect_psik import cancellation
from prefect_psik.cancellation import INTERRUPTS, Watched
from prefect_psik.exceptions import PruneIncomplete, ScheduleError, SpecError
from prefect_psik.identity import current_caller, enclosing_flow_runs, key_of
from prefect_psik.plain_text import plain, plain_values
from prefect_psik.progress import artifact_key, in_run, run_logger
from prefect_psik.prune_models import PruneReport, ScheduledPrune
from prefect_psik.prune_plan import carry_out_plan, make_plan, refuse
from prefect_psik.resolve import CollectionLike, aload_collection, load_collection
from prefect_psik.session import Session
from prefect_psik.transfer_runs import name_of
from prefect_psik.waiting import alinger, aresult, linger, refuse_running_loop, result
from prefect_psik.watches import Subscription

T = TypeVar("T")

#: States of a scheduled prune that is still to come, or came.
_BEGUN = {StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.COMPLETED}
#: Rows of the table artifact, and files that an error names.
MOST_ROWS = 1000
MOST_NAMES = 20


@task(name="prune", cache_policy=NO_CACHE)
def prune(
    source: CollectionLike,
    path: str,
    *,
    check: CollectionLike | None,
    min_age: timedelta = timedelta(0),
    dry_run: bool = False,
) -> PruneReport:
    """Delete the files below a path that a check collection is proven to hold under the same path.

    Proven means: same name, same size, same checksum of the contents. For Globus collections the check's files
    are copied beside themselves for that, so the check needs room for them while it lasts. The plan is shown in
    a table artifact before anything is deleted. Directories stay. An interrupt, or a cancel of the flow run,
    ends it; it may be run again at any time, also after a crash.

    Args:
        source: A `globus-collection` block or its name: where files are deleted.
        path: A file or directory below its base path.
        check: The collection that holds a copy, under the same path below its own base path.
        min_age: Only files that were not changed for this long.
        dry_run: Delete nothing, only tell.

    Returns:
        The report; nothing unproven is in it, but for a dry run.

    Raises:
        SpecError: There is no check, or it is the source itself.
        PruneIncomplete: Some files stay since they are not proven; its `report` names each. The others are
            deleted.
        TransferError: The two could not be compared, or the deletion failed.
    """
    refuse_running_loop("aprune")
    one = load_collection(source)
    other = refuse(one, load_collection(check) if check is not None else None, path)
    what = f"prune of {name_of(one)}:{path}"
    report = _run(what, lambda: make_plan(one, other, path, min_age, dry_run=dry_run))
    _log_plan(report)
    if in_run():
        create_table_artifact(**_table(report))
    if not dry_run:
        report = _run(what, partial(carry_out_plan, one, other, report))
    return _finished(report)


@task(name="prune", cache_policy=NO_CACHE)
async def aprune(
    source: CollectionLike,
    path: str,
    *,
    check: CollectionLike | None,
    min_age: timedelta = timedelta(0),
    dry_run: bool = False,
) -> PruneReport:
    """Async twin of `prune`."""
    one = await aload_collection(source)
    other = refuse(one, await aload_collection(check) if check is not None else None, path)
    what = f"prune of {name_of(one)}:{path}"
    report = await _arun(what, lambda: make_plan(one, other, path, min_age, dry_run=dry_run))
    _log_plan(report)
    if in_run():
        await acreate_table_artifact(**_table(report))
    if not dry_run:
        report = await _arun(what, partial(carry_out_plan, one, other, report))
    return _finished(report)


@task(name="schedule prune", cache_policy=NO_CACHE)
def schedule_prune(
    source: CollectionLike,
    path: str,
    *,
    check: CollectionLike | None,
    after: timedelta,
    deployment: str = "prune/prune",
) -> ScheduledPrune:
    """Schedule a prune, and look whether Prefect knows of it.

    A retry of the task or flow schedules no second one.

    Args:
        source: A saved `globus-collection` block or its name; the run gets the name.
        path: See `prune`.
        check: A saved block or its name.
        after: When, from now.
        deployment: `FLOW/DEPLOYMENT` of a flow with the parameters `source`, `path` and `check`, as in
            `flows/prune.py`.

    Returns:
        The run that will prune, as Prefect told of it when asked again.

    Raises:
        SpecError: A block is not saved, there is no check, or it is the source itself.
        ScheduleError: There is no such deployment, Prefect does not know of the run, or the run that a retry finds
            was cancelled or failed.
    """
    refuse_running_loop("aschedule_prune")
    one, other = load_collection(source), load_collection(check) if check is not None else None
    wanted = _parameters(one, refuse(one, other, path), path)
    return result(Session.current().run(_schedule(wanted, after, deployment, _key(wanted, deployment))))


@task(name="schedule prune", cache_policy=NO_CACHE)
async def aschedule_prune(
    source: CollectionLike,
    path: str,
    *,
    check: CollectionLike | None,
    after: timedelta,
    deployment: str = "prune/prune",
) -> ScheduledPrune:
    """Async twin of `schedule_prune`."""
    one, other = await aload_collection(source), await aload_collection(check) if check is not None else None
    wanted = _parameters(one, refuse(one, other, path), path)
    return await aresult(Session.current().run(_schedule(wanted, after, deployment, _key(wanted, deployment))))


@dataclass(frozen=True, eq=False)
class _Step(Watched, Generic[T]):
    """A step of a prune, which ends with its wait: whatever interrupts that, nothing is deleted afterwards."""

    subscription: Subscription[T]


def _run(what: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Do a step on the session's loop, and wait for it."""
    session = Session.current()
    begun = session.run(_begin(what, work, enclosing_flow_runs()))
    try:
        return result(result(begun).subscription.next())
    except INTERRUPTS:
        linger(session.run(_stop(begun)))
        raise
    finally:
        session.run(cancellation.end_wait(begun))


async def _arun(what: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Async twin of `_run`."""
    session = Session.current()
    begun = session.run(_begin(what, work, enclosing_flow_runs()))
    try:
        return await aresult((await aresult(begun)).subscription.next())
    except INTERRUPTS:
        await alinger(session.run(_stop(begun)))
        raise
    finally:
        session.run(cancellation.end_wait(begun))


async def _begin(what: str, work: Callable[[], Coroutine[Any, Any, T]], flow_runs: list[str]) -> _Step[T]:
    subscription: Subscription[T] = Subscription()

    async def guarded() -> T:
        cancellation.refuse_cancelling(flow_runs)
        return await work()

    def ended(doing: asyncio.Task[T]) -> None:
        if not doing.cancelled():  # who cancels it tells so
            subscription.put(doing.exception() or doing.result())

    async def stop() -> None:
        doing.cancel()
        await asyncio.wait([doing])
        if not doing.cancelled() and (error := doing.exception()):
            raise error

    doing = asyncio.create_task(guarded())
    doing.add_done_callback(ended)
    step = _Step(what, "cancel", tuple(flow_runs), stop, subscription.put, lambda: None, subscription)
    cancellation.watch(step)
    return step


async def _stop(begun: Future[_Step[T]]) -> None:
    await (await asyncio.wrap_future(begun)).stop()


def _log_plan(report: PruneReport) -> None:
    logger = run_logger()
    logger.info("%s%s", report, " (dry run)" if report.dry_run else "")
    for file in report.unproven[:MOST_NAMES]:
        logger.warning("%s:%s stays: it %s", report.source, plain(file.path), plain(file.reason))


def _table(report: PruneReport) -> dict[str, Any]:
    # What stays comes first: a table of thousands of rows is cut.
    rows = sorted(report.files, key=lambda file: (not file.reason, file.path))
    return {
        "table": [
            plain_values(file.model_dump(mode="json", include={"path", "size", "verdict", "reason"}))
            for file in rows[:MOST_ROWS]
        ],
        "key": artifact_key(f"prune-{report.source}-{report.path}"),
        "description": str(report),
    }


def _finished(report: PruneReport) -> PruneReport:
    if report.dry_run:
        return report
    run_logger().info("%s", report)
    if not report.unproven:
        return report
    named = "".join(f"\n- {file.path}: it {file.reason}" for file in report.unproven[:MOST_NAMES])
    more = len(report.unproven) - MOST_NAMES
    raise PruneIncomplete(
        f"{len(report.unproven)} files of {report.source}:{report.path} stay, since {report.check} is not proven "
        f"to hold them. Bring them there, then prune again.{named}" + (f"\n- and {more} more" if more > 0 else ""),
        report=report,
    )


def _parameters(source: Any, check: Any, path: str) -> dict[str, str]:
    for block in (source, check):
        if block.document_name is None:
            raise SpecError(
                f"The collection {block.collection_id or block.base_path} is not saved: a later run finds it by "
                "its name only. Save the block, then schedule the prune."
            )
    return {"source": source.document_name, "path": path, "check": check.document_name}


def _key(parameters: dict[str, str], deployment: str) -> str | None:
    """What makes two schedulings the same one: the root run, the parameters, and which of its twins."""
    caller = current_caller()
    if caller.scope is None or caller.detached:
        return None
    what = hashlib.sha256(f"{deployment}|{json.dumps(parameters, sort_keys=True)}".encode()).hexdigest()
    return key_of(caller.scope, what, caller)


async def _schedule(
    parameters: dict[str, str], after: timedelta, deployment: str, key: str | None
) -> ScheduledPrune:
    at = datetime.now(UTC) + after
    async with get_client() as client:
        try:
            found = await client.read_deployment_by_name(deployment)
        except (ObjectNotFound, ValueError) as err:
            raise ScheduleError(
                f"There is no deployment {deployment!r}, so nothing was scheduled. Deploy flows/prune.py, or give "
                "deployment='FLOW/DEPLOYMENT'."
            ) from err
        made = await client.create_flow_run_from_deployment(
            found.id, parameters=parameters, state=Scheduled(scheduled_time=at), idempotency_key=key
        )
        try:
            run = await client.read_flow_run(made.id)
        except ObjectNotFound as err:
            raise ScheduleError(f"Prefect took the prune {made.id}, and does not know of it.") from err
    known = all(run.parameters.get(name) == value for name, value in parameters.items())
    if run.deployment_id != found.id or run.expected_start_time is None or not known:
        raise ScheduleError(
            f"Prefect has the flow run {run.id} ({run.state_name}, {run.parameters}), which is not the prune that "
            "was to be scheduled. Look at it in Prefect's UI."
        )
    # A retry finds the run of the first try, which may have begun.
    if run.state is None or run.state.type not in (_BEGUN if key is not None else {StateType.SCHEDULED}):
        raise ScheduleError(
            f"The prune was scheduled as the flow run {run.id}, which is {run.state_name} and prunes nothing "
            "more. Retry that run in Prefect's UI, or prune by hand."
        )
    return ScheduledPrune(flow_run_id=run.id, at=run.expected_start_time, deployment=deployment)

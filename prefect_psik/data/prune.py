"""TASKS: delete data that is proven to exist elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

from prefect import task
from prefect.artifacts import acreate_table_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from prefect_psik.blocks import GlobusCollection
from prefect_psik.data.marks import PREFIX
from prefect_psik.data.proof.globus import STEP_SECONDS
from prefect_psik.data.proof.plan import Prune, refuse
from prefect_psik.data.submit import name_of
from prefect_psik.exceptions import PruneIncomplete, TransferError
from prefect_psik.flow_run import cancellation
from prefect_psik.flow_run.both import INTERRUPT_SECONDS, alinger, aresult, linger, refuse_running_loop, result
from prefect_psik.flow_run.cancellation import INTERRUPTS, Watched
from prefect_psik.flow_run.identity import enclosing_flow_runs
from prefect_psik.flow_run.load import CollectionLike, aload_collection, load_collection
from prefect_psik.flow_run.report import artifact_key, in_run, run_logger
from prefect_psik.models.prunes import PruneReport
from prefect_psik.plain_text import plain, plain_values
from prefect_psik.session.poller import Subscription
from prefect_psik.session.session import Session

T = TypeVar("T")

#: The most rows in the table artifact, and the most files that an error names.
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

    Proven means: same name, same size, same contents. To compare Globus collections, the check's files are copied
    to a directory beside them, so the check temporarily needs free space for a second copy. The plan is shown in a
    table artifact before anything is deleted. Directories are not deleted. An interrupt, or a cancel of the flow
    run, stops the prune; it is safe to run it again at any time, also after a crash.

    While a prune runs, both ends carry marks: directories named `.prefect-psik-prune-…` beside the files. They
    reveal when source and check are the same directory, and they block a prune in the other direction.

    Args:
        source: A `globus-collection` block or its name: where files are deleted.
        path: A file or directory below its base path.
        check: The collection that holds a copy, under the same path below its own base path.
        min_age: Only delete files that have not changed for this long.
        dry_run: Only report; delete nothing.

    Returns:
        The report; except for a dry run, it has no unproven files.

    Raises:
        SpecError: There is no check, or it is the source itself, even if only a mark reveals that.
        PruneIncomplete: Some files were kept, because they are not proven, have changed since, or could not be
            deleted; its `report` names each. The others are deleted.
        TransferError: The two could not be compared, or the deletion failed. It is `transient` if another prune
            is in the way: one that deletes what this prune relies on, or relies on what this prune deletes.
    """
    refuse_running_loop("aprune")
    one = load_collection(source)
    other = refuse(one, load_collection(check) if check is not None else None, path)
    what, work = f"prune of {name_of(one)}:{path}", _prune_of(one, other, path, min_age, dry_run)
    within = INTERRUPT_SECONDS
    try:
        report = _run(what, work.make_plan)
        _log_plan(report)
        if in_run():
            create_table_artifact(**_table(report))
        if not dry_run:
            report = _run(what, work.carry_out)
        within = STEP_SECONDS
    finally:
        _let_go(what, work, within)
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
    what, work = f"prune of {name_of(one)}:{path}", _prune_of(one, other, path, min_age, dry_run)
    within = INTERRUPT_SECONDS
    try:
        report = await _arun(what, work.make_plan)
        _log_plan(report)
        if in_run():
            await acreate_table_artifact(**_table(report))
        if not dry_run:
            report = await _arun(what, work.carry_out)
        within = STEP_SECONDS
    finally:
        await _alet_go(what, work, within)
    return _finished(report)


def _prune_of(
    source: GlobusCollection, check: GlobusCollection, path: str, min_age: timedelta, dry_run: bool
) -> Prune:
    flow_run = next(iter(enclosing_flow_runs()), None)
    return Prune(source, check, path, min_age, dry_run=dry_run, flow_run=flow_run)


@dataclass(frozen=True, eq=False)
class _Step(Watched, Generic[T]):
    """A step of a prune, which ends with its wait: after an interrupt of any kind, nothing more is deleted."""

    subscription: Subscription[T]


def _run(what: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a step on the session's loop, and wait for it."""
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
        if not doing.cancelled():  # the canceler puts its own error
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


def _let_go(what: str, work: Prune, within: float) -> None:
    """Remove the marks of a prune, also after an interrupt; a failure does not change what was deleted."""
    try:
        result(Session.current().run(work.let_go()), within)
    except (TransferError, TimeoutError) as err:
        _tell_left(what, err)


async def _alet_go(what: str, work: Prune, within: float) -> None:
    """Async twin of `_let_go`."""
    try:
        await aresult(Session.current().run(work.let_go()), within)
    except (TransferError, TimeoutError) as err:
        _tell_left(what, err)


def _tell_left(what: str, err: TransferError | TimeoutError) -> None:
    run_logger().warning(
        "The %s left its marks behind (directories named %s…); they block prunes in the other direction for two "
        "days, or until you delete them: %s",
        what,
        PREFIX,
        err or "removing them takes long, and may still succeed",
    )


def _log_plan(report: PruneReport) -> None:
    logger = run_logger()
    logger.info("%s%s", report, " (dry run)" if report.dry_run else "")
    for file in report.unproven[:MOST_NAMES]:
        logger.warning("%s:%s is kept: it %s", report.source, file.shown, plain(file.reason))


def _table(report: PruneReport) -> dict[str, Any]:
    # Files that are kept come first, since a table of thousands of rows is cut.
    rows = sorted(report.files, key=lambda file: (not file.reason, file.path))
    return {
        "table": [
            plain_values(
                {"path": file.shown, "size": file.size, "verdict": file.verdict.value, "reason": file.reason}
            )
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
    named = "".join(f"\n- {file.shown}: it {file.reason}" for file in report.unproven[:MOST_NAMES])
    more = len(report.unproven) - MOST_NAMES
    raise PruneIncomplete(
        f"{len(report.unproven)} files of {report.source}:{report.path} were not deleted: {report.check} is not "
        "proven to hold them as they are now, or deleting them failed. Fix the reasons below, then prune again."
        + named
        + (f"\n- and {more} more" if more > 0 else ""),
        report=report,
    )

"""One transfer per submission: its id is stored at the flow run before it is used, so that a retry finds it."""

from __future__ import annotations

import contextlib
import logging
import posixpath
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from pydantic import BaseModel, ConfigDict, ValidationError
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_exponential, wait_random

from prefect_psik.data.marks import is_marked
from prefect_psik.exceptions import TransferError
from prefect_psik.flow_run.labels import set_label
from prefect_psik.models.causes import TransferCause
from prefect_psik.models.transfers import Arrival, Carrier, Order, TransferState
from prefect_psik.session.batcher import REPEAT_SECONDS, is_transient

T = TypeVar("T")

_logger = logging.getLogger(__name__)

#: A succeeded transfer of up to so many items is checked by listing its destinations; a larger one is repeated.
MOST_LOOKS = 20
#: Our labels begin with this; the key of the submission follows.
LABEL = "psik.transfer."


class Kept(BaseModel):
    """What a flow run's label says about a transfer."""

    model_config = ConfigDict(extra="ignore")

    submission_id: str
    attempt: list[int]
    task_id: str | None = None
    collection: str | None = None
    cancel: bool = True
    #: Of a copy on this machine that succeeded; it is recorded nowhere else.
    arrival: Arrival | None = None


@dataclass(frozen=True)
class Keeping:
    """Where the submission is recorded.

    Args:
        key: Of the submission; None: it is not recorded, as outside of a flow.
        flow_runs: Those that enclose it, root first: the root's label decides, the others are for cancels.
        attempt: The attempt at this submission.
        collection: Name of the block that holds the login.
        cancel: Whether a cancel of the flow run cancels the transfer.
    """

    key: str | None = None
    flow_runs: tuple[str, ...] = ()
    attempt: tuple[int, ...] = ()
    collection: str | None = None
    cancel: bool = True


async def submit_once(carrier: Carrier, order: Order, keeping: Keeping) -> tuple[str, bool]:
    """Begin a transfer, or find the one that an earlier attempt at this submission began.

    A newer attempt starts from scratch if the earlier transfer failed, or if its files are no longer all at the
    destination, by names and sizes. One that succeeded and still has its files is not repeated, since its source
    may have been pruned.

    Returns:
        The id of the task, and whether the task is new.
    """
    kept = await _read(keeping)
    if kept is not None:
        if kept.arrival is not None:
            await carrier.recall(kept.submission_id, kept.arrival)
        task_id, created = await _submit(carrier, order, keeping, kept)
        status = await repeated(lambda: carrier.look(task_id))
        if not status.state.is_final or list(keeping.attempt) <= kept.attempt:
            return task_id, created
        if status.state is TransferState.succeeded and await _is_still_there(
            carrier, order, task_id, status.files
        ):
            return task_id, created
    kept = Kept(
        submission_id=await repeated(carrier.reserve),
        attempt=list(keeping.attempt),
        collection=keeping.collection,
        cancel=keeping.cancel,
    )
    await _write(keeping, kept)
    return await _submit(carrier, order, keeping, kept)


async def _is_still_there(carrier: Carrier, order: Order, task_id: str, files: int) -> bool:
    """Whether the destination holds, by names and sizes, what was moved there and what is at the source now."""
    if order.destination is None or not 0 < len(order.items) <= MOST_LOOKS:
        return False
    there: dict[str, int] = {}
    for source, destination in order.items:
        try:
            there |= await _files_below(carrier, order.destination, destination, destination)
        except TransferError as err:
            if err.cause is not TransferCause.not_found:
                raise
        # A source that can no longer be listed says nothing about the destination.
        with contextlib.suppress(TransferError):
            here = await _files_below(carrier, order.source, source, destination)
            if any(there.get(path) != size for path, size in here.items()):
                return False
    return 0 < files <= len(there) and await carrier.holds(task_id, there)


async def _files_below(carrier: Carrier, collection: str, path: str, stands_for: str) -> dict[str, int]:
    """The sizes of the files below `path`, by their paths below `stands_for`; without copies that a prune made."""
    return {
        posixpath.normpath(posixpath.join(stands_for, posixpath.relpath(entry.path, path))): entry.size
        async for entry in carrier.list(collection, path, recursive=True)
        if entry.kind == "file" and not is_marked(entry.path)
    }


async def _submit(carrier: Carrier, order: Order, keeping: Keeping, kept: Kept) -> tuple[str, bool]:
    task_id, created = await repeated(lambda: carrier.submit(order, kept.submission_id))
    if kept.task_id is None and task_id != kept.submission_id:
        # Only cancels from outside need the task id; the submission id is enough to find the task again.
        with contextlib.suppress(TransferError):
            await _write(keeping, kept.model_copy(update={"task_id": task_id}))
    return task_id, created


async def repeated(call: Callable[[], Awaitable[T]]) -> T:
    """Make a call, and repeat it for a while if its errors are transient."""
    retrying = AsyncRetrying(
        retry=retry_if_exception(is_transient),
        wait=wait_exponential(multiplier=0.5, max=20) + wait_random(0, 0.5),
        stop=stop_after_delay(REPEAT_SECONDS),
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            found = await call()
    return found


async def keep_arrival(carrier: Carrier, task_id: str, flow_runs: Sequence[str]) -> None:
    """Store at the flow run how a copy on this machine ended, so that it is found again after a crash.

    If that fails, the transfer has still succeeded; a retry in another process copies again.
    """
    if not flow_runs or (arrival := await carrier.arrival(task_id)) is None:
        return
    try:
        for key, kept in transfers_of(await _labels(flow_runs[0])).items():
            if kept.submission_id == task_id and kept.arrival is None:
                text = kept.model_copy(update={"arrival": arrival}).model_dump_json()
                await set_label(flow_runs[0], LABEL + key, text)
    except (PrefectException, httpx.HTTPError, OSError) as err:
        _logger.warning(
            "The result of transfer %s could not be stored at flow run %s, so a retry in another process copies "
            "again: %s",
            task_id,
            flow_runs[0],
            err,
        )


async def _read(keeping: Keeping) -> Kept | None:
    if keeping.key is None or not keeping.flow_runs:
        return None
    try:
        labels = await _labels(keeping.flow_runs[0])
    except (PrefectException, httpx.HTTPError, OSError) as err:
        raise _not_kept(err) from err
    return transfers_of(labels).get(keeping.key)


async def _labels(flow_run: str) -> Mapping[str, Any]:
    async with get_client() as client:
        return (await client.read_flow_run(UUID(flow_run))).labels


async def _write(keeping: Keeping, kept: Kept) -> None:
    if keeping.key is None:
        return
    try:
        for flow_run in keeping.flow_runs:
            await set_label(flow_run, LABEL + keeping.key, kept.model_dump_json())
    except (PrefectException, httpx.HTTPError, OSError) as err:
        raise _not_kept(err) from err


def _not_kept(err: Exception) -> TransferError:
    return TransferError(
        f"The transfer was not submitted, since Prefect's API could not read or store its record: {err}. Retry.",
        transient=True,
    )


def transfers_of(labels: Mapping[str, Any]) -> dict[str, Kept]:
    """Read the transfers from a flow run's labels, by key; labels that are not ours are left out."""
    found = {}
    for name, value in labels.items():
        if name.startswith(LABEL):
            with contextlib.suppress(ValidationError):
                found[name.removeprefix(LABEL)] = Kept.model_validate_json(str(value))
    return found

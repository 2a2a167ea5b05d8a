"""TASKS: move, list and delete data; each as a sync task and its async twin."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_psik.data import submit, wait
from prefect_psik.data.submit import Items, Shipment
from prefect_psik.flow_run.both import aresult, refuse_running_loop, result
from prefect_psik.flow_run.cancellation import OnCancel
from prefect_psik.flow_run.load import CollectionLike, aload_collection, load_collection
from prefect_psik.models.transfers import FileEntry, SyncLevel, TransferHandle, TransferResult, TransferStatus

DAY = timedelta(days=1)

# Every task here changes or reads something outside of Prefect: a cached result would be wrong.


@task(name="submit transfer", cache_policy=NO_CACHE)
def submit_transfer(
    source: CollectionLike,
    destination: CollectionLike,
    items: Items,
    *,
    sync: SyncLevel = "checksum",
    deadline: timedelta | None = DAY,
    on_cancel: OnCancel = "cancel",
) -> TransferHandle:
    """Submit a transfer once, and return at once.

    A retry of the task or flow, also after a crash, gets the same transfer back if it is still running, or if it
    succeeded and the destination still has its files, by names and sizes. Otherwise it starts a new one, which
    does not move files again that are already there. Two directories on this machine are copied by this process.

    Args:
        source: A `globus-collection` block or its name.
        destination: Likewise.
        items: Pairs of paths below the base paths, each a file or a whole directory; or one path, the same at
            both ends. Whether a path is a file or a directory is determined at the source.
        sync: How to compare files that are already at the destination; equal files are not moved again.
        deadline: Time from now after which the transfer is canceled; None: we set no deadline.
        on_cancel: What a cancel of the flow run does to the transfer: `cancel` it, or `leave` it running.

    Raises:
        SpecError: A path leaves its collection, two items have the same destination, or the two collections cannot
            be combined. On this machine, also: a directory would be copied into itself, an item is not a file or
            directory, or a link leads out of the base path. Nothing was changed.
        ConsentRequired: A consent is missing; says who can give it.
        TransferError: Globus refused the transfer, or cannot be reached.
    """
    refuse_running_loop("asubmit_transfer")
    one, other = load_collection(source), load_collection(destination)
    return submit.submit(Shipment.transfer(one, other, items, sync=sync, deadline=deadline, on_cancel=on_cancel))


@task(name="submit transfer", cache_policy=NO_CACHE)
async def asubmit_transfer(
    source: CollectionLike,
    destination: CollectionLike,
    items: Items,
    *,
    sync: SyncLevel = "checksum",
    deadline: timedelta | None = DAY,
    on_cancel: OnCancel = "cancel",
) -> TransferHandle:
    """Async twin of `submit_transfer`."""
    one, other = await aload_collection(source), await aload_collection(destination)
    shipment = Shipment.transfer(one, other, items, sync=sync, deadline=deadline, on_cancel=on_cancel)
    return await submit.asubmit(shipment)


@task(name="wait for transfer", cache_policy=NO_CACHE)
def wait_for_transfer(
    handle: TransferHandle, *, collection: CollectionLike | None = None, on_cancel: OnCancel = "cancel"
) -> TransferResult:
    """Wait until a transfer is final. If a collection cannot be reached, keep waiting until the deadline.

    Args:
        handle: From `submit_transfer`.
        collection: A block with the login, if the handle's own block no longer exists.
        on_cancel: What a cancel of the flow run does to the transfer: `cancel` it, or `leave` it running.

    Returns:
        The result of a transfer that succeeded, with verified checksums.

    Raises:
        TransferError: The transfer failed, cannot succeed (no permission, no such file, no free space), or passed
            its deadline, or a file on this machine changed each time it was read.
        FlowRunCancelling: The flow run is being cancelled.
    """
    refuse_running_loop("await_for_transfer")
    login = collection or handle.collection
    carrier = submit.carrier_to(handle, load_collection(login) if login else None)
    return wait.wait(carrier, handle, on_cancel)


@task(name="wait for transfer", cache_policy=NO_CACHE)
async def await_for_transfer(
    handle: TransferHandle, *, collection: CollectionLike | None = None, on_cancel: OnCancel = "cancel"
) -> TransferResult:
    """Async twin of `wait_for_transfer`."""
    login = collection or handle.collection
    carrier = submit.carrier_to(handle, await aload_collection(login) if login else None)
    return await wait.await_(carrier, handle, on_cancel)


@task(name="cancel transfer", cache_policy=NO_CACHE)
def cancel_transfer(handle: TransferHandle, *, collection: CollectionLike | None = None) -> TransferStatus:
    """Cancel a transfer, and return when it has ended; one that had already ended keeps its state.

    Args:
        handle: From `submit_transfer`.
        collection: A block with the login, if the handle's own block no longer exists.

    Raises:
        TransferError: The transfer could not be canceled; it may still be running.
    """
    refuse_running_loop("acancel_transfer")
    login = collection or handle.collection
    return result(submit.cancel(submit.carrier_to(handle, load_collection(login) if login else None), handle))


@task(name="cancel transfer", cache_policy=NO_CACHE)
async def acancel_transfer(handle: TransferHandle, *, collection: CollectionLike | None = None) -> TransferStatus:
    """Async twin of `cancel_transfer`."""
    login = collection or handle.collection
    carrier = submit.carrier_to(handle, await aload_collection(login) if login else None)
    return await aresult(submit.cancel(carrier, handle))


@task(name="run transfer", cache_policy=NO_CACHE)
def run_transfer(
    source: CollectionLike,
    destination: CollectionLike,
    items: Items,
    *,
    sync: SyncLevel = "checksum",
    deadline: timedelta | None = DAY,
    on_cancel: OnCancel = "cancel",
) -> TransferResult:
    """Move data, and return when it has arrived: `submit_transfer` and `wait_for_transfer` in one task.

    During a transfer, Globus itself retries faults until the deadline. If a transfer fails, a retry of the task
    starts a new one, which can help if the error is `transient`: a collection could not be reached, or timed out.
    To have retries, call `run_transfer.with_options(retries=2, retry_delay_seconds=600)`.

    Args:
        source: See `submit_transfer`.
        destination: See `submit_transfer`.
        items: See `submit_transfer`.
        sync: See `submit_transfer`.
        deadline: See `submit_transfer`.
        on_cancel: See `wait_for_transfer`.

    Returns:
        The result of a transfer that succeeded, with verified checksums.

    Raises:
        PrefectPsikError: Everything that `submit_transfer` and `wait_for_transfer` raise.
    """
    refuse_running_loop("arun_transfer")
    one, other = load_collection(source), load_collection(destination)
    shipment = Shipment.transfer(one, other, items, sync=sync, deadline=deadline, on_cancel=on_cancel)
    return wait.wait(shipment.carrier, submit.submit(shipment), on_cancel)


@task(name="run transfer", cache_policy=NO_CACHE)
async def arun_transfer(
    source: CollectionLike,
    destination: CollectionLike,
    items: Items,
    *,
    sync: SyncLevel = "checksum",
    deadline: timedelta | None = DAY,
    on_cancel: OnCancel = "cancel",
) -> TransferResult:
    """Async twin of `run_transfer`."""
    one, other = await aload_collection(source), await aload_collection(destination)
    shipment = Shipment.transfer(one, other, items, sync=sync, deadline=deadline, on_cancel=on_cancel)
    return await wait.await_(shipment.carrier, await submit.asubmit(shipment), on_cancel)


@task(name="list files", cache_policy=NO_CACHE)
def list_files(collection: CollectionLike, path: str = "", *, recursive: bool = False) -> list[FileEntry]:
    """List a directory of a collection, or show one file of it.

    Args:
        collection: A `globus-collection` block or its name.
        path: Below its base path; empty: the base path itself.
        recursive: Include the contents of subdirectories. Links are listed but not followed.

    Raises:
        TransferError: The path does not exist or may not be read, or Globus cannot be reached.
    """
    refuse_running_loop("alist_files")
    return result(submit.entries(load_collection(collection), path, recursive=recursive))


@task(name="list files", cache_policy=NO_CACHE)
async def alist_files(collection: CollectionLike, path: str = "", *, recursive: bool = False) -> list[FileEntry]:
    """Async twin of `list_files`."""
    return await aresult(submit.entries(await aload_collection(collection), path, recursive=recursive))


@task(name="delete files", cache_policy=NO_CACHE)
def delete_files(
    collection: CollectionLike,
    paths: str | Iterable[str],
    *,
    recursive: bool = False,
    deadline: timedelta | None = DAY,
) -> TransferResult:
    """Delete files without checking for a copy, which `prune` does. Files that do not exist are no error.

    Args:
        collection: A `globus-collection` block or its name.
        paths: Below its base path.
        recursive: Also delete directories, with everything in them.
        deadline: See `submit_transfer`.

    Raises:
        SpecError: A path leaves the collection, or means all of it.
        TransferError: Not everything could be deleted.
    """
    refuse_running_loop("adelete_files")
    shipment = Shipment.deletion(load_collection(collection), paths, recursive=recursive, deadline=deadline)
    return wait.wait(shipment.carrier, submit.submit(shipment), "cancel")


@task(name="delete files", cache_policy=NO_CACHE)
async def adelete_files(
    collection: CollectionLike,
    paths: str | Iterable[str],
    *,
    recursive: bool = False,
    deadline: timedelta | None = DAY,
) -> TransferResult:
    """Async twin of `delete_files`."""
    block = await aload_collection(collection)
    shipment = Shipment.deletion(block, paths, recursive=recursive, deadline=deadline)
    return await wait.await_(shipment.carrier, await submit.asubmit(shipment), "cancel")

"""The steps behind the transfer tasks: check what to move, submit, cancel, list; and choose what moves it."""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from operator import attrgetter

from prefect_psik.blocks import GlobusCollection
from prefect_psik.credentials import transfer_login
from prefect_psik.data.carriers.globus import GlobusCarrier, globus_carrier
from prefect_psik.data.carriers.local import LOCAL, LocalCarrier
from prefect_psik.data.once import Keeping, repeated, submit_once
from prefect_psik.data.wait import LOCAL_PAUSES_SECONDS, PAUSES_SECONDS
from prefect_psik.exceptions import SpecError, TransferError
from prefect_psik.flow_run import cancellation
from prefect_psik.flow_run.both import alinger, aresult, linger, result
from prefect_psik.flow_run.cancellation import INTERRUPTS, OnCancel
from prefect_psik.flow_run.identity import current_caller, enclosing_flow_runs, key_of
from prefect_psik.flow_run.report import run_logger
from prefect_psik.models.transfers import (
    Carrier,
    FileEntry,
    Order,
    SyncLevel,
    TransferHandle,
    TransferStatus,
)
from prefect_psik.session.session import Session

#: How long a transfer may take to end after it was asked to stop.
CANCEL_SECONDS = 120.0

Items = str | Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Shipment:
    """One transfer or deletion to submit, made where the task runs, since its contexts give the identity."""

    carrier: Carrier
    order: Order
    keeping: Keeping
    source: str
    destination: str

    @classmethod
    def transfer(
        cls,
        source: GlobusCollection,
        destination: GlobusCollection,
        items: Items,
        *,
        sync: SyncLevel = "checksum",
        deadline: timedelta | None,
        on_cancel: OnCancel = "cancel",
    ) -> Shipment:
        """Check what to move.

        Raises:
            SpecError: A path leaves its collection, there are no items, two have the same destination, or the two
                collections cannot be combined.
        """
        if (source.collection_id is None) != (destination.collection_id is None):
            raise SpecError(
                f"{name_of(source)} and {name_of(destination)} cannot be combined: one is a Globus collection, "
                "the other a directory on this machine. Set the collection_id of this machine's own collection, "
                "or use two directories."
            )
        pairs = [(items, items)] if isinstance(items, str) else items
        paths = [(source.path(one), destination.path(other)) for one, other in pairs]
        _refuse_meeting(paths, destination)
        return cls._of(source, destination, paths, sync=sync, deadline=deadline, on_cancel=on_cancel)

    @classmethod
    def deletion(
        cls,
        collection: GlobusCollection,
        paths: str | Iterable[str],
        *,
        recursive: bool,
        deadline: timedelta | None,
    ) -> Shipment:
        """Check what to delete.

        Raises:
            SpecError: A path leaves its collection or means all of it, or there are no paths.
        """
        wanted = [paths] if isinstance(paths, str) else list(paths)
        for path in wanted:
            if posixpath.normpath(path or ".") == ".":
                raise SpecError(f"{path!r} means all of {name_of(collection)}: name what to delete in it.")
        items = [(collection.path(path), "") for path in wanted]
        return cls._of(collection, None, items, recursive=recursive, deadline=deadline)

    @classmethod
    def _of(
        cls,
        source: GlobusCollection,
        destination: GlobusCollection | None,
        items: list[tuple[str, str]],
        *,
        deadline: timedelta | None,
        sync: SyncLevel = "checksum",
        recursive: bool = False,
        on_cancel: OnCancel = "cancel",
    ) -> Shipment:
        if not items:
            raise SpecError("There is nothing to transfer or delete: name at least one path.")
        if deadline is not None and deadline <= timedelta(0):
            raise SpecError(
                f"The deadline is {deadline}, which is not in the future: use a time from now, such as "
                "timedelta(hours=2)."
            )
        login = destination if destination and not _has_login(source) and _has_login(destination) else source
        flow_runs = enclosing_flow_runs()
        order = Order(
            source=id_of(source),
            destination=id_of(destination) if destination else None,
            items=items,
            label=f"prefect-psik {flow_runs[0]}" if flow_runs else "prefect-psik",
            deadline=time.time() + deadline.total_seconds() if deadline else None,
            sync=sync,
            recursive=recursive,
            source_base=_base_of(source),
            destination_base=_base_of(destination) if destination else "/",
        )
        caller = current_caller()
        keyed = flow_runs and caller.scope and not caller.detached
        keeping = Keeping(
            key=key_of(caller.scope or "", _digest(order), caller) if keyed else None,
            flow_runs=tuple(flow_runs),
            attempt=tuple(caller.attempt),
            collection=login.document_name,
            cancel=on_cancel == "cancel",
        )
        what, more = items[0], f" and {len(items) - 1} more" if len(items) > 1 else ""
        return cls(
            carrier=carrier_of(login),
            order=order,
            keeping=keeping,
            source=f"{name_of(source)}:{what[0]}{more}",
            destination=f"{name_of(destination)}:{what[1]}" if destination else "deleted",
        )

    def begin(self) -> Future[tuple[str, bool]]:
        """Submit it on the session's loop."""
        return Session.current().run(submit_once(self.carrier, self.order, self.keeping))

    def told(self, submitted: tuple[str, bool]) -> TransferHandle:
        """Log the submission, and make its handle."""
        task_id, created = submitted
        handle = TransferHandle(
            task_id=task_id,
            source=self.source,
            destination=self.destination,
            collection=self.keeping.collection,
            deadline=self.order.deadline,
        )
        run_logger().info("%s %s", handle, "submitted" if created else "found again")
        return handle

    def interrupted(self, submission: Future[tuple[str, bool]]) -> Future[None]:
        """Let the submission finish; if the flow run is being cancelled, cancel the resulting transfer too."""

        async def work() -> None:
            task_id, _ = await asyncio.wrap_future(submission)
            if self.keeping.cancel and await cancellation.is_cancelling(self.keeping.flow_runs):
                await self.carrier.cancel(task_id)

        return Session.current().run(work())


def submit(shipment: Shipment) -> TransferHandle:
    """Submit once, and log it."""
    future = shipment.begin()
    try:
        return shipment.told(result(future))
    except INTERRUPTS:
        linger(shipment.interrupted(future))
        raise


async def asubmit(shipment: Shipment) -> TransferHandle:
    """Async twin of `submit`."""
    future = shipment.begin()
    try:
        return shipment.told(await aresult(future))
    except INTERRUPTS:
        await alinger(shipment.interrupted(future))
        raise


# ------------------------------------------------------------------------------------------ single calls


def cancel(carrier: Carrier, handle: TransferHandle) -> Future[TransferStatus]:
    """Cancel, and poll until it has ended."""

    async def ended() -> TransferStatus:
        while True:
            status = await repeated(lambda: carrier.look(handle.task_id))
            if status.state.is_final:
                return status
            await asyncio.sleep(LOCAL_PAUSES_SECONDS[0] if handle.is_local else PAUSES_SECONDS[0])

    async def work() -> TransferStatus:
        await repeated(lambda: carrier.cancel(handle.task_id))
        try:
            return await asyncio.wait_for(ended(), CANCEL_SECONDS)
        except TimeoutError:
            raise TransferError(
                f"The {handle} was asked to stop {CANCEL_SECONDS:.0f} s ago and has not ended; it may still be "
                "running. Check it in Globus's web app, then cancel it again."
            ) from None

    return Session.current().run(work())


def entries(collection: GlobusCollection, path: str, *, recursive: bool) -> Future[list[FileEntry]]:
    """List what is below a path."""
    carrier, full = carrier_of(collection), collection.path(path)
    return Session.current().run(repeated(lambda: list_below(carrier, collection, full, recursive=recursive)))


async def list_below(
    carrier: Carrier, collection: GlobusCollection, path: str, *, recursive: bool
) -> list[FileEntry]:
    """List what is below a full path of the collection; the entries' paths are below its base path."""
    found, top = [], posixpath.normpath(path)
    relative = posixpath.relpath(top, collection.path(""))
    above = "" if relative == "." else f"{relative}/"
    async for entry in carrier.list(id_of(collection), top, recursive=recursive):
        # There may be thousands, so compute the part above the names only once.
        entry.path = relative if entry.path == top else above + entry.path.removeprefix(top).lstrip("/")
        found.append(entry)
    return sorted(found, key=attrgetter("path"))


# ------------------------------------------------------------------------------------------ carriers


def carrier_of(collection: GlobusCollection) -> Carrier:
    """What moves the data of a collection."""
    if collection.collection_id is None:
        return LocalCarrier()
    return globus_carrier_of(collection)


def globus_carrier_of(collection: GlobusCollection) -> GlobusCarrier:
    """Globus Transfer under the login of a collection."""
    return globus_carrier(transfer_login(collection.credentials))


def carrier_to(handle: TransferHandle, collection: GlobusCollection | None) -> Carrier:
    """What moves the data of a handle, with the login of a block if one is given."""
    if handle.is_local:
        return LocalCarrier()
    return globus_carrier(transfer_login(collection.credentials if collection else None))


def id_of(collection: GlobusCollection) -> str:
    """The collection's UUID, or the word for this machine."""
    return str(collection.collection_id or LOCAL)


def name_of(collection: GlobusCollection) -> str:
    """What a person calls a collection: its block's name, its UUID, or its directory."""
    return collection.document_name or str(collection.collection_id or collection.base_path)


def _has_login(collection: GlobusCollection) -> bool:
    # Prefect's forms store a login with empty fields when none were filled in.
    return collection.credentials is not None and not collection.credentials.is_empty


def _base_of(collection: GlobusCollection) -> str:
    return collection.base_path if collection.collection_id is None else "/"


def _refuse_meeting(items: list[tuple[str, str]], destination: GlobusCollection) -> None:
    sources: dict[str, str] = {}
    for source, path in items:
        path = posixpath.normpath(path)
        if path in sources:
            raise SpecError(
                f"{sources[path]!r} and {source!r} would both go to {path!r} of {name_of(destination)}. Nothing "
                "was moved. Give each item a destination of its own."
            )
        sources[path] = source


def _digest(order: Order) -> str:
    hashed = hashlib.sha256(f"{order.source}|{order.destination}|{order.sync}|{order.recursive}".encode())
    for source, destination in order.items:
        hashed.update(f"\n{source}\0{destination}".encode())
    return hashed.hexdigest()

"""The carrier through Globus Transfer; the only user of its client."""

from __future__ import annotations

import posixpath
import re
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar
from uuid import UUID

from globus_sdk import DeleteData, GlobusAPIError, GlobusHTTPResponse, NetworkError, TransferClient, TransferData
from globus_sdk.exc import GlobusError
from globus_sdk.transport import RetryConfig

from prefect_psik.credentials import GlobusCredentials
from prefect_psik.data.marks import PREFIX as PRUNE_MARK
from prefect_psik.exceptions import ConsentRequired, FacilityError, TransferError
from prefect_psik.models.causes import TransferCause
from prefect_psik.models.transfers import Arrival, FileEntry, Order, TransferState, TransferStatus
from prefect_psik.transport.daemon_thread import in_daemon_thread

T = TypeVar("T")

#: Directory entries to request at once.
PAGE = 10_000
#: Globus's code for a fault or an end -> its cause. Any other code is `other`, which may pass, so keep waiting.
CAUSES = {
    "PERMISSION_DENIED": TransferCause.permission_denied,
    "FILE_NOT_FOUND": TransferCause.not_found,
    "QUOTA_EXCEEDED": TransferCause.quota,
    "NO_SPACE_LEFT": TransferCause.quota,
    "VERIFY_CHECKSUM": TransferCause.checksum,
    "CANCELED": TransferCause.canceled,
    "EXPIRED": TransferCause.deadline,
    "GC_NOT_CONNECTED": TransferCause.away,
    "GC_PAUSED": TransferCause.away,
    "CONNECT_FAILED": TransferCause.away,
    "ENDPOINT_ERROR": TransferCause.away,
    "ENDPOINT_TOO_BUSY": TransferCause.away,
    "TIMEOUT": TransferCause.away,
}
_KINDS: dict[str, Literal["file", "directory"]] = {"file": "file", "dir": "directory"}

_carriers: dict[str, GlobusCarrier] = {}


def globus_carrier(login: GlobusCredentials) -> GlobusCarrier:
    """The carrier of a login; one per process."""
    return _carriers.setdefault(login.fingerprint, GlobusCarrier(login))


class GlobusCarrier:
    """Globus Transfer under one login; see `Carrier` for what it guarantees."""

    def __init__(self, login: GlobusCredentials) -> None:
        self._login = login
        self._lock = threading.Lock()
        self._client: TransferClient | None = None
        self._consents: frozenset[str] = frozenset()

    async def reserve(self) -> str:
        """See `Carrier`."""
        return await self._call(lambda client: str(client.get_submission_id()["value"]))

    async def submit(self, order: Order, submission_id: str) -> tuple[str, bool]:
        """See `Carrier`."""
        deadline = datetime.fromtimestamp(order.deadline, UTC).isoformat() if order.deadline else None
        common: dict[str, Any] = {"label": order.label, "submission_id": submission_id}
        common |= {"notify_on_succeeded": False, "notify_on_failed": False, "notify_on_inactive": False}
        if deadline:
            common["deadline"] = deadline

        def transfer(client: TransferClient) -> GlobusHTTPResponse:
            data = TransferData(
                order.source, str(order.destination), sync_level=order.sync, verify_checksum=True, **common
            )
            # Marks of prunes must stay where they are; the rule applies below items that are directories.
            data.add_filter_rule(f"{PRUNE_MARK}*", method="exclude", type="dir")
            for source, destination in order.items:
                # The service finds out whether the source is a directory.
                data.add_item(source, destination)
            return client.submit_transfer(data)

        def delete(client: TransferClient) -> GlobusHTTPResponse:
            data = DeleteData(order.source, recursive=order.recursive, ignore_missing=True, **common)
            for path, _ in order.items:
                data.add_item(path)
            return client.submit_delete(data)

        answer = await self._call(delete if order.destination is None else transfer)
        return str(answer["task_id"]), answer["code"] != "Duplicate"

    async def look(self, task_id: str) -> TransferStatus:
        """See `Carrier`."""
        return status_of(await self._call(lambda client: dict(client.get_task(task_id).data)))

    async def cancel(self, task_id: str) -> None:
        """See `Carrier`."""
        await self._call(lambda client: client.cancel_task(task_id))

    async def moved(self, task_id: str) -> set[str]:
        """The source paths of the files that a succeeded transfer had to move: those that differed."""
        return await self._call(
            lambda client: {
                str(row["source_path"]) for row in client.paginated.task_successful_transfers(task_id).items()
            }
        )

    async def holds(self, task_id: str, files: Mapping[str, int]) -> bool:
        """See `Carrier`. Globus reports the names of the files that it moved, and the sum of their sizes."""
        status = await self.look(task_id)
        moved = await self._call(
            lambda client: {
                posixpath.normpath(str(row["destination_path"]))
                for row in client.paginated.task_successful_transfers(task_id).items()
            }
        )
        if not moved <= files.keys():
            return False
        size = sum(files[path] for path in moved)
        # Bytes that were sent again after a fault may be counted twice.
        return size <= status.bytes_transferred if status.faults else size == status.bytes_transferred

    async def arrival(self, task_id: str) -> Arrival | None:
        """See `Carrier`. Globus remembers its own tasks."""
        return None

    async def recall(self, task_id: str, arrival: Arrival) -> None:
        """See `Carrier`."""

    async def list(self, collection: str, path: str, *, recursive: bool) -> AsyncIterator[FileEntry]:
        """See `Carrier`."""
        found = await self._call(lambda client: dict(client.operation_stat(collection, path=path).data))
        if found["type"] != "dir":  # a link that the caller names is followed
            yield _entry(path, found)
            return
        waiting = [path]
        while waiting:
            here, offset = waiting.pop(), 0
            while True:
                try:
                    page = await self._page(collection, here, offset)
                except TransferError as err:
                    if here == path or err.cause is not TransferCause.not_found:
                        raise
                    break  # it disappeared
                for row in page["DATA"]:
                    entry = _entry(f"{here.rstrip('/')}/{row['name']}", row)
                    if recursive and entry.kind == "directory":
                        waiting.append(entry.path)
                    yield entry  # whose path is then the caller's to change
                offset += len(page["DATA"])
                if not page["DATA"] or offset >= page["total"]:
                    break

    async def make_directory(self, collection: str, path: str) -> None:
        """See `Carrier`."""

        def make(client: TransferClient) -> None:
            try:
                client.operation_mkdir(collection, path)
            except GlobusAPIError as err:
                if not (err.code or "").endswith(".Exists"):  # such as when the answer to an earlier try was lost
                    raise

        await self._call(make)

    async def _page(self, collection: str, path: str, offset: int) -> dict[str, Any]:
        page = await self._call(
            lambda client: client.operation_ls(collection, path=path, limit=PAGE, offset=offset).data
        )
        if not isinstance(page, dict):
            raise TransferError(
                f"Globus's listing of {path!r} cannot be read; a file name in it may not be UTF-8. Find that file "
                "and rename it."
            )
        return page

    async def _call(self, work: Callable[[TransferClient], T]) -> T:
        """Do blocking work with the client; if a consent is missing, have the client consent and try again."""
        used: frozenset[str] = frozenset()

        def attempt() -> T:
            nonlocal used
            client, used = self._connected()
            return work(client)

        try:
            return await _in_thread(attempt)
        except GlobusAPIError as err:
            # Other calls may have logged in again since: compare with the consents that this call had.
            wanted = collections_in(err.info.consent_required.required_scopes) - used
            if not wanted:
                raise self._error_of(err) from err
        except GlobusError as err:
            raise self._error_of(err) from err
        self._log_in_anew(lambda consents: consents | wanted)
        try:
            return await _in_thread(attempt)
        except GlobusError as err:
            # A consent that did not help would make every later login fail.
            self._log_in_anew(lambda consents: consents - wanted)
            raise self._error_of(err) from err

    def _log_in_anew(self, change: Callable[[frozenset[str]], frozenset[str]]) -> None:
        with self._lock:
            consents = change(self._consents)
            if consents != self._consents:
                self._client, self._consents = None, consents

    def _connected(self) -> tuple[TransferClient, frozenset[str]]:
        with self._lock:
            if self._client is None:
                app = self._login.get_client()
                # The callers decide how long to repeat a call.
                client = TransferClient(app=app, retry_config=RetryConfig(max_retries=2))
                if self._consents:
                    client.add_app_data_access_scope(self._consents)
                app.login()
                self._client = client
            return self._client, self._consents

    def _error_of(self, err: GlobusError) -> TransferError:
        return error_of(err, self._login.client_id)


async def _in_thread(work: Callable[[], T]) -> T:
    try:
        return await in_daemon_thread(work)
    except FacilityError as err:  # it was cut off
        raise TransferError(str(err), transient=True, cause=TransferCause.away) from None


def status_of(task: dict[str, Any]) -> TransferStatus:
    """Read a task document; pure."""
    fatal = task.get("fatal_error") or {}
    word = fatal.get("code") or task.get("nice_status")
    state = TransferState(str(task["status"]).lower())
    active_and_well = state is TransferState.active and task.get("is_ok") is not False
    is_ok = active_and_well or state is TransferState.succeeded
    return TransferStatus(
        state=state,
        nice_status=word,
        detail=fatal.get("description")
        or task.get("nice_status_details")
        or task.get("nice_status_short_description"),
        is_ok=is_ok,
        cause=None if is_ok else CAUSES.get(str(word), TransferCause.other),
        files=task.get("files") or 0,
        files_transferred=task.get("files_transferred") or 0,
        files_skipped=task.get("files_skipped") or 0,
        bytes_transferred=task.get("bytes_transferred") or 0,
        bytes_per_second=task.get("effective_bytes_per_second") or 0,
        faults=task.get("faults") or 0,
    )


def _entry(path: str, row: dict[str, Any]) -> FileEntry:
    modified = row.get("last_modified")
    shown = path.encode("utf-8", "backslashreplace").decode("utf-8")
    # For a link, Globus reports the type of its target.
    kind = "link" if row.get("link_target") else _KINDS.get(str(row["type"]), "other")
    return FileEntry(
        path=shown,
        kind=kind if shown == path else "other",  # Globus cannot be asked about a name that is not UTF-8
        size=row.get("size") or 0,
        modified=datetime.fromisoformat(modified).timestamp() if modified else None,
        is_exact=shown == path,
    )


def collections_in(scopes: list[str]) -> set[str]:
    """The collections for which these scopes request `data_access`."""
    return set(re.findall(r"scopes/([0-9a-f-]{36})/data_access", " ".join(scopes)))


def error_of(err: GlobusError, client_id: UUID | None) -> TransferError:
    """Turn an error of the SDK into one of ours.

    Args:
        err: As the SDK raised it.
        client_id: Of the client that made the request; None: a person did.
    """
    if isinstance(err, NetworkError):
        return TransferError(
            f"Globus Transfer cannot be reached: {err}. Calls are retried; check the network of this machine.",
            transient=True,
            cause=TransferCause.away,
        )
    if not isinstance(err, GlobusAPIError):
        return TransferError(f"The request to Globus Transfer could not be made: {err}.")
    consent = err.info.consent_required
    if consent:
        scopes = tuple(consent.required_scopes)
        if client_id is None:
            command = "globus session consent " + " ".join(f"'{scope}'" for scope in scopes)
            next_step = f"The person who owns this login can give it by running: {command}"
        else:
            next_step = (
                f"The client {client_id} asked for it and was refused; nobody can consent for a client. Ask the "
                f"collection's manager to give a role or permission to {client_id}@clients.auth.globus.org, or "
                "use another login."
            )
        return ConsentRequired(
            f"Globus Transfer requires a consent that this login does not have: {err.message} {next_step}",
            scopes=scopes,
        )
    said = f"Globus Transfer said {err.http_status} {err.code}: {err.message}"
    if err.http_status == 401:
        return TransferError(f"{said} Check client_id and client_secret.", cause=TransferCause.login)
    if "PermissionDenied" in (err.code or "") or err.http_status == 403:
        return TransferError(
            f"{said} Ask the collection's administrator for access.", cause=TransferCause.permission_denied
        )
    if err.http_status == 404:
        # EndpointNotFound must not count as not_found: to a prune, a missing path is an empty directory.
        missing_path = (err.code or "").endswith(".NotFound")
        cause = TransferCause.not_found if missing_path else TransferCause.other
        return TransferError(f"{said} Check the {'path' if missing_path else 'collection_id'}.", cause=cause)
    away = err.http_status in (408, 425, 429) or err.http_status >= 500
    return TransferError(said, transient=away, cause=TransferCause.away if away else TransferCause.other)

"""The Transfer service as its API shows it: submission ids, tasks, listings, consents. Kept in memory."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.testbed.emulator.config import Collection, KnownClient
from tests.testbed.emulator.faults import Faults
from tests.testbed.emulator.identity import Auth
from tests.testbed.emulator.messages import Json, Refusal, Request
from tests.testbed.emulator.transfer_work import Job, Worker, stamp

_TRANSFER = "urn:globus:auth:scope:transfer.api.globus.org:all"
_PAGE = 100
_MOST_ENTRIES = 100_000


class Transfer:
    """Collections of the configuration, and the tasks that were submitted since the start."""

    def __init__(self, auth: Auth, collections: Iterable[Collection], faults: Faults) -> None:
        self._auth = auth
        self._collections = {collection.id: collection for collection in collections}
        self._faults = faults
        self._mutex = threading.Lock()
        self._submissions: set[str] = set()
        self._jobs: dict[str, Job] = {}

    def routes(self) -> list[tuple[str, str, Callable[[KnownClient, Request, str], Any]]]:
        """Method, pattern, and what to do with caller, request and id."""
        key = "([^/]+)"
        api = r"/v0\.10"
        return [
            ("GET", f"{api}/submission_id", self.submission_id),
            ("POST", f"{api}/transfer", self.submit),
            ("POST", f"{api}/delete", self.submit),
            ("GET", f"{api}/task/{key}", lambda who, _, task: self._job(who, task).document()),
            ("POST", f"{api}/task/{key}/cancel", self.cancel),
            ("GET", f"{api}/task/{key}/event_list", self.events),
            ("GET", f"{api}/task/{key}/successful_transfers", self.successful),
            ("GET", f"{api}/task_list", self.tasks),
            ("GET", f"{api}/endpoint/{key}", self.describe),
            ("GET", f"{api}/operation/endpoint/{key}/ls", self.ls),
            ("GET", f"{api}/operation/endpoint/{key}/stat", self.stat),
            ("POST", f"{api}/operation/endpoint/{key}/mkdir", self.mkdir),
        ]

    def submission_id(self, _caller: KnownClient, _request: Request, _key: str) -> Json:
        """Hand out an id that one submission may use."""
        value = str(uuid.uuid4())
        with self._mutex:
            self._submissions.add(value)
        return {"DATA_TYPE": "submission_id", "value": value}

    def submit(self, caller: KnownClient, request: Request, _key: str) -> Json:
        """Begin a transfer or a delete; a submission id that was used before gives its task back."""
        body = request.json()
        submission = str(body.get("submission_id"))
        deletes = body.get("DATA_TYPE") == "delete"
        source = self._collection(request, str(body.get("endpoint" if deletes else "source_endpoint")))
        destination = None if deletes else self._collection(request, str(body.get("destination_endpoint")))
        if not body.get("DATA"):
            raise Refusal(400, "ClientError.BadRequest", "A task needs at least one item.")
        with self._mutex:
            if submission not in self._submissions:
                raise Refusal(
                    400, "ClientError.BadRequest.InvalidSubmissionId", "This submission id is not known."
                )
            job = self._jobs.get(submission)
            code = "Duplicate"
            if job is None:
                code = "Accepted"
                job = Job(str(uuid.uuid4()), caller.client_id, body, source, destination)
                self._jobs[submission] = job
                worker = Worker(job, self._faults)
                threading.Thread(target=worker.run, name=f"transfer {job.task_id}", daemon=True).start()
        return {
            "DATA_TYPE": "delete_result" if deletes else "transfer_result",
            "code": code,
            "message": "The task has been accepted." if code == "Accepted" else "It was submitted before.",
            "submission_id": submission,
            "task_id": job.task_id,
        }

    def cancel(self, caller: KnownClient, _request: Request, key: str) -> Json:
        """Cancel a task; one that has ended keeps its end."""
        job = self._job(caller, key)
        done = job.status != "ACTIVE"
        job.cancel.set()
        return {"DATA_TYPE": "result", "code": "TaskComplete" if done else "CancelAccepted", "message": "Noted."}

    def events(self, caller: KnownClient, request: Request, key: str) -> Json:
        """The events of a task, latest first, in pages."""
        return _page(self._job(caller, key).events[::-1], request, "event_list")

    def successful(self, caller: KnownClient, request: Request, key: str) -> Json:
        """The files that a task really transferred, in pages by marker."""
        copies = self._job(caller, key).copies
        begin = int(request.query.get("marker") or 0)
        end = begin + _PAGE
        rows = [
            {"DATA_TYPE": "successful_transfer", "source_path": source, "destination_path": destination}
            for source, destination in copies[begin:end]
        ]
        marker = str(end) if end < len(copies) else None
        return {"DATA_TYPE": "successful_transfers", "marker": begin, "next_marker": marker, "DATA": rows}

    def tasks(self, caller: KnownClient, request: Request, _key: str) -> Json:
        """The caller's tasks, latest first."""
        with self._mutex:
            mine = [job.document() for job in self._jobs.values() if job.owner == caller.client_id]
        return _page(mine[::-1], request, "task_list")

    def report(self) -> Json:
        """All tasks, oldest first, for tests to count; with the number of items that each was submitted with."""
        with self._mutex:
            jobs = list(self._jobs.values())
        return {"tasks": [job.document() | {"items": len(job.body["DATA"])} for job in jobs]}

    def describe(self, _caller: KnownClient, request: Request, key: str) -> Json:
        """A collection's document."""
        found = self._collection(request, key, consent=False)
        return {
            "DATA_TYPE": "endpoint",
            "id": found.id,
            "display_name": found.name,
            "entity_type": "GCSv5_mapped_collection",
        }

    def ls(self, _caller: KnownClient, request: Request, key: str) -> Json:
        """List a directory, in pages by limit and offset."""
        collection, path, real = self._path(request, key, "DirListingFailed")
        if not real.is_dir():
            raise Refusal(502, "ExternalError.DirListingFailed.NotDirectory", f"'{path}' is not a directory.")
        entries = sorted(real.iterdir())
        if request.query.get("show_hidden") in ("0", "false", "False"):
            entries = [entry for entry in entries if not entry.name.startswith(".")]
        if len(entries) > _MOST_ENTRIES:
            raise Refusal(502, "ExternalError.DirListingFailed.SizeLimit", "The directory has too many entries.")
        rows = [_entry(entry) for entry in entries]
        if self._faults.standing("no_time", collection.name + path):
            rows = [row | {"last_modified": None} for row in rows]
        page = _page(rows, request, "file_list", limit=_MOST_ENTRIES)
        return {**page, "endpoint": collection.id, "path": path, "absolute_path": path}

    def stat(self, _caller: KnownClient, request: Request, key: str) -> Json:
        """Tell of one file or directory."""
        _, _, real = self._path(request, key, "StatFailed")
        return _entry(real)

    def mkdir(self, _caller: KnownClient, request: Request, key: str) -> Json:
        """Make a directory."""
        collection = self._collection(request, key)
        real = collection.real(str(request.json()["path"]))
        if not collection.writable:
            raise Refusal(403, "EndpointPermissionDenied", "Permission denied.")
        if real.exists():
            raise Refusal(502, "ExternalError.MkdirFailed.Exists", f"'{real.name}' exists.")
        collection.make_directory(real)
        return {"DATA_TYPE": "mkdir_result", "code": "DirectoryCreated", "message": "Made."}

    def _path(self, request: Request, key: str, what: str) -> tuple[Collection, str, Path]:
        collection = self._collection(request, key)
        path = request.query.get("path", "/")
        if fault := self._faults.standing("path", collection.name + path):
            status, code = (403, f"ExternalError.{what}.PermissionDenied")
            if fault.code != "PERMISSION_DENIED":
                status, code = 502, f"ExternalError.{what}.GCDisconnected"
            raise Refusal(status, code, f"{fault.code}: {path}")
        real = collection.real(path)
        if not real.exists() and not real.is_symlink():
            raise Refusal(404, "ClientError.NotFound", f"'{path}' is not found on collection {collection.name}.")
        return collection, path, real

    def _job(self, caller: KnownClient, key: str) -> Job:
        with self._mutex:
            for job in self._jobs.values():
                if job.task_id == key and job.owner in caller.identity_set:
                    return job
        raise Refusal(404, "ClientError.NotFound", f"There is no task {key}.")

    def _collection(self, request: Request, key: str, *, consent: bool = True) -> Collection:
        found = self._collections.get(key)
        if found is None:
            raise Refusal(404, "EndpointNotFound", f"There is no collection {key}.")
        scope = f"https://auth.globus.org/scopes/{key}/data_access"
        given = any(scope in held for held in self._auth.scopes(request))
        if consent and (found.consent == "never" or (found.consent == "data_access" and not given)):
            raise Refusal(
                403,
                "ConsentRequired",
                f"Missing required data_access consent for collection {found.name}.",
                fields={"required_scopes": [f"{_TRANSFER}[*{scope}]"]},
            )
        return found


def _entry(path: Path) -> Json:
    """Tell of a file; a link has the type of what it leads to, and a `link_target`."""
    found = path.stat() if path.exists() else path.lstat()
    kind = "dir" if path.is_dir() else "file" if path.is_file() else "invalid_symlink"
    return {
        "DATA_TYPE": "file",
        "name": path.name,
        "type": kind,
        "size": found.st_size,
        "last_modified": stamp(int(found.st_mtime)),
        "permissions": f"{found.st_mode & 0o7777:04o}",
        "link_target": str(path.readlink()) if path.is_symlink() else None,
    }


def _page(rows: list[Json], request: Request, kind: str, *, limit: int = _PAGE) -> Json:
    offset = int(request.query.get("offset") or 0)
    limit = min(int(request.query.get("limit") or limit), limit)
    return {
        "DATA_TYPE": kind,
        "DATA": rows[offset : offset + limit],
        "length": len(rows[offset : offset + limit]),
        "total": len(rows),
        "offset": offset,
        "limit": limit,
        "has_next_page": offset + limit < len(rows),
    }

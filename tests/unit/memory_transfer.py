"""Globus Transfer as tests of prunes need it: collections of files in memory."""

from __future__ import annotations

import hashlib
import posixpath
import time
from collections.abc import AsyncIterator

from prefect_psik import GlobusCollection, TransferError
from prefect_psik.models.causes import TransferCause
from prefect_psik.models.transfers import FileEntry, Order, TransferState, TransferStatus


class Transfer:
    """A carrier as Globus Transfer is one: collections of files in memory, with times; it notes its orders."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], tuple[bytes, float | None]] = {}
        self.directories: dict[tuple[str, str], float] = {}
        self.orders: list[Order] = []
        self._moved: list[set[str]] = []
        #: Collections that are one directory under two ids.
        self.same: dict[str, str] = {}

    def write(self, collection: GlobusCollection, path: str, content: bytes, age: float | None = 60.0) -> None:
        """Make a file, changed so many seconds ago."""
        modified = None if age is None else time.time() - age
        self.files[self._at(str(collection.collection_id), collection.path(path))] = (content, modified)

    def names(self, collection: GlobusCollection) -> set[str]:
        """Paths of all files of a collection, and of all directories that were made for themselves."""
        everything = [*self.files, *self.directories]
        return {path for where, path in everything if where == str(collection.collection_id)}

    async def turn(self, call: str) -> None:
        """Called before anything is done; for tests that decide whose turn it is."""

    async def reserve(self) -> str:
        return "any"

    async def submit(self, order: Order, submission_id: str) -> tuple[str, bool]:
        await self.turn("move" if order.destination else "clear" if order.recursive else "delete")
        self.orders.append(order)
        moved = set()
        for source, destination in order.items:
            if order.destination is None:
                self._delete(order, source)
                continue
            here, there = self._at(order.source, source), self._at(order.destination, destination)
            if here not in self.files:
                self._moved.append(set())
                return str(len(self.orders) - 1), True
            if there not in self.files or self._digest(here) != self._digest(there):
                self.files[there] = self.files[here]
                moved.add(source)
        self._moved.append(moved)
        return str(len(self.orders) - 1), True

    def _delete(self, order: Order, top: str) -> None:
        for kept in (self.files, self.directories):
            for where, path in list(kept):
                below = order.recursive and path.startswith(f"{top}/")
                if where == self._at(order.source, "")[0] and (path == top or below):
                    del kept[where, path]

    async def look(self, task_id: str) -> TransferStatus:
        order, moved = self.orders[int(task_id)], len(self._moved[int(task_id)])
        count = len(order.items)
        lost = order.destination is not None and any(
            self._at(order.destination, path) not in self.files for _, path in order.items
        )
        return TransferStatus(
            state=TransferState.failed if lost else TransferState.succeeded,
            files=count,
            files_skipped=count - moved,
            files_transferred=moved,
        )

    async def cancel(self, task_id: str) -> None:
        raise AssertionError("nothing here is cancelled")

    async def moved(self, task_id: str) -> set[str]:
        return self._moved[int(task_id)]

    async def make_directory(self, collection: str, path: str) -> None:
        await self.turn("make_directory")
        self.directories[self._at(collection, path)] = time.time()

    async def list(self, collection: str, path: str, *, recursive: bool) -> AsyncIterator[FileEntry]:
        await self.turn("list")
        collection, path = self.same.get(collection, collection), path.rstrip("/")
        found = (collection, path) in self.directories
        implied: dict[str, float | None] = {}
        for (where, name), (content, modified) in sorted(self.files.items()):
            if where == collection and (name == path or name.startswith(f"{path}/")):
                found = True
                below = posixpath.relpath(name, path)
                if recursive or "/" not in below:
                    yield FileEntry(path=name, kind="file", size=len(content), modified=modified)
                else:
                    implied[posixpath.join(path, below.split("/")[0])] = modified
        for (where, name), moment in self.directories.items():
            if where == collection and name.startswith(f"{path}/"):
                found = True
                if recursive or "/" not in posixpath.relpath(name, path):
                    implied[name] = moment
        for directory, moment_or_none in implied.items():
            yield FileEntry(path=directory, kind="directory", modified=moment_or_none)
        if not found:
            raise TransferError("not there", cause=TransferCause.not_found)

    def _at(self, collection: str, path: str) -> tuple[str, str]:
        return self.same.get(collection, collection), path

    def _digest(self, at: tuple[str, str]) -> bytes:
        return hashlib.sha256(self.files[at][0]).digest()

"""Proof and deletion between Globus collections: checksums are compared in a room at the check.

Globus Transfer does not report checksums; it only compares files that it is about to make equal. A proof must not
overwrite the check's files, which may be the better copy, nor the source's. So the check's files are copied, with
verification, into a separate directory at the check, the room. Then the source is synchronized onto the room by
checksum: the files that Transfer had to move differ. The room is the directory of the prune's own mark, and is
deleted with it.
"""

from __future__ import annotations

import asyncio
import posixpath
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

from prefect_psik.blocks import GlobusCollection
from prefect_psik.data.once import repeated
from prefect_psik.data.proof.look import entries_of
from prefect_psik.data.submit import globus_carrier_of, id_of, name_of
from prefect_psik.data.wait import begin, carry_out, until_final
from prefect_psik.exceptions import TransferError
from prefect_psik.models.prunes import CHANGED, CHANGED_AT_CHECK, DIFFERENT, GONE, PruneFile
from prefect_psik.models.transfers import FileEntry, Order

T = TypeVar("T")

#: How many files one Globus Transfer task compares.
FILES_PER_TASK = 10_000
#: How many files one task deletes; each is checked once more just before its task.
FILES_PER_DELETION = 500
#: Time limit of one step of a prune.
STEP_SECONDS = 24 * 3600.0


class GlobusPrune:
    """Proves and deletes files of one prune; see `PruneWork`.

    Args:
        source: Where files are deleted.
        check: Where the copies are.
        mark: The name of this prune's mark in each directory of the source.
        until: Unix time after which nothing is deleted.
        path: What is pruned, for messages.
        room: Directory at the check for the copies to compare; the caller removes it.
    """

    def __init__(
        self, source: GlobusCollection, check: GlobusCollection, mark: str, until: float, path: str, room: str
    ) -> None:
        self._source, self._check, self._mark, self._until = source, check, mark, until
        self._path, self._room = path, room
        self._deletion: asyncio.Future[str] | None = None

    async def prove(self, files: list[PruneFile]) -> dict[str, str]:
        """See `PruneWork`."""
        check, source = self._check, self._source
        reasons: dict[str, str] = {}
        for part in _parts([file.path for file in files], FILES_PER_TASK):
            copies = [(check.path(file), check.path(f"{self._room}/{file}")) for file in part]
            await self._make_equal(check, copies, f"{name_of(check)}:{self._path}", "a temporary copy")
            onto = [(source.path(file), check.path(f"{self._room}/{file}")) for file in part]
            moved = await self._make_equal(source, onto, f"{name_of(source)}:{self._path}", "the temporary copy")
            reasons |= {file: DIFFERENT for file in part if source.path(file) in moved}
        return reasons

    async def delete(self, files: list[PruneFile]) -> dict[str, str]:
        """See `PruneWork`."""
        reasons: dict[str, str] = {}
        for part in _parts(files, FILES_PER_DELETION):
            changed = await self._changed(part)
            reasons |= changed
            items = [(self._source.path(file.path), "") for file in part if file.path not in changed]
            if items:
                order = self._limited(Order(id_of(self._source), None, items))
                carrier = globus_carrier_of(self._source)
                self._deletion = asyncio.ensure_future(begin(carrier, order))
                where = f"{name_of(self._source)}:{self._path}"
                await carry_out(carrier, order, where, "pruned", begun=self._deletion)
                self._deletion = None
        return reasons

    async def ended(self) -> None:
        """See `PruneWork`."""
        if self._deletion is None:
            return
        try:
            task_id = await self._deletion
        except TransferError as err:
            if not err.transient:
                return  # it was refused
            raise
        await until_final(globus_carrier_of(self._source), task_id)

    async def _changed(self, part: list[PruneFile]) -> dict[str, str]:
        """Check once more the files that are about to be deleted; returns why some are kept."""
        directories = sorted({posixpath.dirname(file.path) for file in part})
        there, held = [await _files_in(end, directories) for end in (self._source, self._check)]
        reasons = {}
        for file in part:
            mark = posixpath.join(posixpath.dirname(file.path), self._mark)
            if file.path not in there and mark in there:
                reasons[file.path] = GONE
            elif not _is_as_seen(there.get(file.path), file.size, file.modified):
                reasons[file.path] = CHANGED
            elif not _is_as_seen(held.get(file.path), file.size, file.check_modified):
                reasons[file.path] = CHANGED_AT_CHECK
        return reasons

    async def _make_equal(
        self, collection: GlobusCollection, items: list[tuple[str, str]], source: str, destination: str
    ) -> set[str]:
        """Have Transfer make files in the room equal; returns the source paths of those that differed.

        Raises:
            TransferError: The transfer did not succeed, or its numbers and names do not agree.
        """
        carrier = globus_carrier_of(collection)
        order = self._limited(Order(id_of(collection), id_of(self._check), items))
        task_id, found = await carry_out(carrier, order, source, destination)
        moved = await repeated(lambda: carrier.moved(task_id))
        if found.files != len(items) or len(moved) != found.files - found.files_skipped:
            raise TransferError(
                f"Transfer {task_id} compared {found.files} of {len(items)} files, skipped "
                f"{found.files_skipped} and lists {len(moved)} as moved. These numbers do not agree, so they "
                "prove nothing, and nothing was deleted. Check the transfer in Globus's web app."
            )
        if strange := moved - {path for path, _ in items}:
            raise TransferError(
                f"Transfer {task_id} lists {min(strange)!r} as moved, but no file was submitted under that name, "
                "so it is unknown which files differ. Nothing was deleted. Set the collection's base_path to the "
                "path that Transfer shows, without '~' or links."
            )
        return moved

    def _limited(self, order: Order) -> Order:
        return replace(order, deadline=min(time.time() + STEP_SECONDS, self._until), label="prefect-psik prune")


async def _files_in(collection: GlobusCollection, directories: list[str]) -> dict[str, FileEntry]:
    found = [await entries_of(collection, directory, recursive=False) for directory in directories]
    return {entry.path: entry for entries in found for entry in entries}


def _is_as_seen(entry: FileEntry | None, size: int, modified: float | None) -> bool:
    return entry is not None and (entry.kind, entry.size, entry.modified) == ("file", size, modified)


def _parts(files: list[T], size: int) -> Iterator[list[T]]:
    return (files[begin : begin + size] for begin in range(0, len(files), size))

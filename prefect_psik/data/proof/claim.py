"""The marks of one prune: written at both ends, then looked for at the opposite end, and removed when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import time
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from typing import Any

from prefect_psik.blocks import GlobusCollection
from prefect_psik.data import marks
from prefect_psik.data.marks import GLOBUS, LEASE_SECONDS, Mark, MarkKind
from prefect_psik.data.once import repeated
from prefect_psik.data.proof.look import Look, exists
from prefect_psik.data.submit import carrier_of, id_of, name_of
from prefect_psik.data.wait import carry_out
from prefect_psik.exceptions import SpecError, TransferError
from prefect_psik.models.transfers import Order

#: How many calls write or look for marks at the same time.
CALLS_AT_ONCE = 8
#: How many marks one task removes, and its time limit.
MARKS_PER_TASK = 10_000
REMOVAL_SECONDS = 3600.0


class Claim:
    """The marks of one prune, in every directory with files that it may delete or rely on.

    Args:
        source: Where files are deleted.
        check: Where the copies are.
        flow_run: The root flow run, for those who find the marks.
    """

    def __init__(self, source: GlobusCollection, check: GlobusCollection, flow_run: str | None) -> None:
        self._source, self._check = source, check
        self.mark = Mark.of(flow_run, by_globus=source.collection_id is not None)
        #: The mark written at the source; `mark` is written at the check.
        self.source_mark = replace(self.mark, kind=MarkKind.source)
        self._ends = ((check, self.mark), (source, self.source_mark))
        self._writing: asyncio.Future[None] | None = None
        self._directories: frozenset[str] = frozenset()
        self._unmarked: dict[str, str] = {}
        self._abandoned: list[tuple[GlobusCollection, str]] = []
        self._is_over = False

    @property
    def is_written(self) -> bool:
        """Whether marks were written."""
        return self._writing is not None

    @property
    def until(self) -> float:
        """Unix time after which nothing may be deleted under these marks."""
        return self.mark.since + LEASE_SECONDS

    async def write(self, directories: Iterable[str]) -> None:
        """Write the marks of these directories at both ends."""
        self._directories = frozenset(directories)
        marks.activate(self.mark.id)
        self._writing = asyncio.ensure_future(_all(self._write(at) for at in sorted(self._directories)))
        await asyncio.shield(self._writing)

    def why_unmarked(self, directory: str) -> str:
        """Why the files of a directory must be kept; empty if it carries both marks."""
        if directory not in self._directories:
            return "appeared after the prune began; prune again"
        return self._unmarked.get(directory, "")

    async def refuse_others(self, there: Look, held: Look) -> None:
        """Refuse to continue if the marks show that a last copy could be lost.

        Args:
            there: The source, listed after the marks were written.
            held: Likewise the check.

        Raises:
            SpecError: A mark of this prune appears at the other end.
            TransferError: Another prune is in the way, or a mark of this prune is not listed.
        """
        marked = self._directories - self._unmarked.keys()
        await _all(self._look_across(at) for at in sorted(marked))
        for (end, mark), look in zip(self._ends, (held, there), strict=True):
            for path, other in look.marks.items():
                if other.id == mark.id and other.kind is not mark.kind:
                    raise same_place(self._source, self._check, posixpath.dirname(path))
                if other.id != mark.id and other.is_abandoned():
                    self._abandoned.append((end, path))
                elif other.id != mark.id and other.kind is not mark.kind:
                    raise _in_the_way(end, path, other)
            if lacking := {at for at in marked if posixpath.join(at, mark.name) not in look.marks}:
                raise TransferError(
                    f"The mark {mark.name} was written in {name_of(end)}:{min(lacking)} but is not listed there, "
                    "so the mark of another prune could be missed too. Nothing was deleted. Prune again; if this "
                    "persists, the collection lists new directories too late for a safe prune."
                )

    async def remove(self) -> None:
        """Remove the marks, and those of abandoned prunes.

        Raises:
            TransferError: Marks of this prune are left.
        """
        self._is_over = True
        if self._writing is None:
            return
        await asyncio.wait([self._writing])
        marks.deactivate(self.mark.id)
        removals = (
            _remove(end, [posixpath.join(at, mark.name) for at in sorted(self._directories)])
            for end, mark in self._ends
        )
        await _all(removals)
        for end in (self._check, self._source):
            with contextlib.suppress(TransferError):  # they may belong to another user
                await _remove(end, [path for where, path in self._abandoned if where is end])

    async def _write(self, directory: str) -> None:
        for end, mark in self._ends:
            if self._is_over:
                return
            try:
                await _make(end, posixpath.join(directory, mark.name))
            except TransferError as err:
                if err.transient:
                    raise
                self._unmarked[directory] = f"is in a directory where no mark can be created: {err}"

    async def _look_across(self, directory: str) -> None:
        """Look for the mark of each end at the other one."""
        (check, at_check), (source, at_source) = self._ends
        for end, mark in ((source, at_check), (check, at_source)):
            if await exists(end, posixpath.join(directory, mark.name)):
                raise same_place(self._source, self._check, directory)


async def _make(end: GlobusCollection, path: str) -> None:
    carrier, full = carrier_of(end), end.path(path)
    await repeated(lambda: carrier.make_directory(id_of(end), full))


async def _remove(end: GlobusCollection, paths: list[str]) -> None:
    for begin in range(0, len(paths), MARKS_PER_TASK):
        part = [(end.path(path), "") for path in paths[begin : begin + MARKS_PER_TASK]]
        deadline = time.time() + REMOVAL_SECONDS
        order = Order(id_of(end), None, part, label="prefect-psik prune", deadline=deadline, recursive=True)
        await carry_out(carrier_of(end), order, f"the marks in {name_of(end)}", "deleted")


async def _all(calls: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run these calls, a few at once; raise the first error once all of them have ended."""
    free = asyncio.Semaphore(CALLS_AT_ONCE)

    async def one(call: Coroutine[Any, Any, None]) -> None:
        async with free:
            await call

    for found in await asyncio.gather(*(one(call) for call in calls), return_exceptions=True):
        if found is not None:
            raise found


def same_place(source: GlobusCollection, check: GlobusCollection, directory: str) -> SpecError:
    """The error for a check that is not a second copy."""
    return SpecError(
        f"{name_of(source)} and its check {name_of(check)} are the same directory: one copy proves nothing. "
        f"{f'A mark written in one shows in the other, at {directory}. ' if directory else ''}"
        "Nothing was deleted. Check against a collection that holds a second copy."
    )


def _in_the_way(end: GlobusCollection, path: str, other: Mark) -> TransferError:
    where = f"{name_of(end)}:{posixpath.dirname(path)}"
    doing = (
        f"Another prune relies on the copies in {where}"
        if other.kind is MarkKind.check
        else f"Another prune deletes files in {where}"
    )
    left = " and Globus no longer has a delete task of it" if other.machine == GLOBUS else ""
    return TransferError(
        f"{doing} ({other}), so nothing was deleted: the two could delete each other's copies. Prune again after "
        f"it has ended. If its process was killed{left}, delete {end.path(path)} and all other directories with "
        f"{other.id} in their names, at both ends of that prune.",
        transient=True,
    )

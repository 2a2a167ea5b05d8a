"""One prune: judge names, sizes and times, write marks at both ends, prove, delete, and remove the marks."""

from __future__ import annotations

import asyncio
import os
import posixpath
import re
import time
from datetime import timedelta
from typing import Protocol

from prefect_psik.blocks import GlobusCollection
from prefect_psik.data.proof.claim import Claim, same_place
from prefect_psik.data.proof.globus import GlobusPrune
from prefect_psik.data.proof.local import LocalPrune
from prefect_psik.data.proof.look import look
from prefect_psik.data.submit import id_of, name_of
from prefect_psik.exceptions import SpecError
from prefect_psik.models.prunes import GONE, PruneFile, PruneReport, PruneVerdict
from prefect_psik.models.transfers import FileEntry

#: A second change within this time may leave size and time the same: Transfer reports whole seconds.
SETTLED_SECONDS = 3.0
UNSETTLED = f"was changed less than {SETTLED_SECONDS:.0f} s ago, at the source or at the check"


class PruneWork(Protocol):
    """What proves and deletes the files of one prune, in directories that carry its marks."""

    async def prove(self, files: list[PruneFile]) -> dict[str, str]:
        """Compare the contents with those at the check; returns why files are not proven, by path."""

    async def delete(self, files: list[PruneFile]) -> dict[str, str]:
        """Delete the files that have not changed at either end since; returns why files are kept, by path."""

    async def ended(self) -> None:
        """Return when nothing is being deleted any more, however `delete` ended."""


def refuse(source: GlobusCollection, check: GlobusCollection | None, path: str) -> GlobusCollection:
    """Refuse a prune that cannot prove anything.

    Raises:
        SpecError: There is no check, it is the source itself, or the two cannot be compared.
    """
    source.path(path)
    if posixpath.normpath(path or ".") == ".":
        raise SpecError(f"{path!r} means all of {name_of(source)}: name the file or directory to prune.")
    if check is None:
        raise SpecError(
            f"A prune of {name_of(source)}:{path} needs a check collection that holds a copy: pass one as check=. "
            "Nothing was deleted."
        )
    if (source.collection_id is None) != (check.collection_id is None):
        raise SpecError(
            f"{name_of(source)} and {name_of(check)} cannot be compared: one is a Globus collection, the other a "
            "directory on this machine. Nothing was deleted. Use two Globus collections or two directories."
        )
    if id_of(source) == id_of(check) and _base(source) == _base(check):
        raise same_place(source, check, "")
    return check


class Prune:
    """One prune, step by step, on the session's loop.

    Always call `let_go` at the end, whatever happened: until then its marks block other prunes.

    Args:
        source: Where files are deleted.
        check: The collection that holds copies, as `refuse` returned it.
        path: Below both base paths.
        min_age: Younger files are kept.
        dry_run: Nothing will be deleted.
        flow_run: The root flow run, for those who find the marks.
    """

    def __init__(
        self,
        source: GlobusCollection,
        check: GlobusCollection,
        path: str,
        min_age: timedelta = timedelta(0),
        *,
        dry_run: bool = False,
        flow_run: str | None = None,
    ) -> None:
        self._source, self._check, self._path = source, check, posixpath.normpath(path)
        self._min_age = min_age
        self._report = PruneReport(source=name_of(source), check=name_of(check), path=path, dry_run=dry_run)
        self._claim = Claim(source, check, flow_run)
        self._work: PruneWork | None = None

    async def make_plan(self) -> PruneReport:
        """List both collections, and prove what can be proven; deletes nothing.

        Raises:
            SpecError: A directory of the source is also a directory of the check, reached another way.
            TransferError: Another prune is in the way, or the two could not be compared.
        """
        await self._judge_all()
        hopeful = [
            file for file in self._report.files if file.verdict is PruneVerdict.delete or file.reason == UNSETTLED
        ]
        if not hopeful:
            return self._report
        await self._write_marks({posixpath.dirname(file.path) for file in hopeful})
        if any(file.reason == UNSETTLED for file in hopeful):
            await asyncio.sleep(SETTLED_SECONDS)  # then a result that was just transferred is settled
        # Judge again: before the marks were written, another prune may have been at work.
        await self._judge_all()
        if self._work and (wanted := self._report.having(PruneVerdict.delete)):
            _keep(wanted, await self._work.prove(wanted))
        return self._report

    async def carry_out(self) -> PruneReport:
        """Delete the files that are proven and have not changed at either end since."""
        wanted = self._report.having(PruneVerdict.delete)
        if self._work and wanted:
            _keep(wanted, await self._work.delete(wanted))
            for file in self._report.having(PruneVerdict.delete):
                file.verdict = PruneVerdict.deleted
        return self._report

    async def let_go(self) -> None:
        """Remove the marks as soon as nothing is being deleted any more.

        Raises:
            TransferError: Marks are left: a deletion may still be running, or they cannot be removed.
        """
        if self._work:
            await self._work.ended()
        await self._claim.remove()

    async def _write_marks(self, directories: set[str]) -> None:
        mark, until = self._claim.source_mark.name, self._claim.until
        if self._source.collection_id is None:
            self._work = LocalPrune(self._source, self._check, mark, until)
        else:
            is_file = {file.path for file in self._report.files} == {self._path}
            top = posixpath.dirname(self._path) if is_file else self._path
            directories |= {top}
            room = posixpath.join(top, self._claim.mark.name)
            self._work = GlobusPrune(self._source, self._check, mark, until, self._path, room)
        await self._claim.write(directories)

    async def _judge_all(self) -> None:
        """List both ends, and note for each file what names, sizes, times and marks allow."""
        now = time.time()
        held, there = await look(self._check, self._path), await look(self._source, self._path)
        if self._claim.is_written:
            await self._claim.refuse_others(there, held)
        self._report.files = [
            self._judged(entry, held.files.get(entry.path), now) for entry in there.files.values()
        ]

    def _judged(self, entry: FileEntry, other: FileEntry | None, now: float) -> PruneFile:
        verdict, reason = _judge(entry, other, self._min_age, now)
        if verdict is PruneVerdict.delete and self._claim.is_written:
            reason = self._claim.why_unmarked(posixpath.dirname(entry.path))
            verdict = PruneVerdict.unproven if reason else verdict
        return PruneFile(
            path=entry.path,
            size=entry.size,
            modified=entry.modified,
            check_modified=other.modified if other else None,
            verdict=verdict,
            reason=reason,
        )


def _keep(files: list[PruneFile], reasons: dict[str, str]) -> None:
    for file in files:
        if reason := reasons.get(file.path):
            file.verdict = PruneVerdict.gone if reason == GONE else PruneVerdict.unproven
            file.reason = reason


def _judge(entry: FileEntry, other: FileEntry | None, min_age: timedelta, now: float) -> tuple[PruneVerdict, str]:
    """What names, sizes and times allow for a file, given what the check has; pure.

    Args:
        entry: At the source.
        other: At the check.
        min_age: Younger files are kept.
        now: Unix time before either was listed.
    """
    if min_age and entry.modified is not None and entry.modified > now - min_age.total_seconds():
        return PruneVerdict.young, f"changed less than {min_age} ago"
    if reason := _difference(entry, other):
        return PruneVerdict.unproven, reason
    times = [entry.modified, other.modified if other else None]
    if None in times:
        return PruneVerdict.unproven, "has no modification time, so a change would go unnoticed"
    if any(moment is not None and moment > now - SETTLED_SECONDS for moment in times):
        return PruneVerdict.unproven, UNSETTLED
    return PruneVerdict.delete, ""


def _difference(entry: FileEntry, other: FileEntry | None) -> str:
    """Why names and sizes alone rule out a copy at the check; empty if they do not."""
    if not entry.is_exact:
        return "has a name that is not UTF-8, shown with escapes; rename it to have it compared"
    if re.search(r"[\x00-\x1f]", entry.path):
        return "has a control character in its name; rename it to have it compared"
    if entry.kind != "file":
        return f"is a {entry.kind}, and only files are compared"
    if other is None:
        return "is missing at the check"
    if other.kind != "file":
        return f"is a {other.kind} at the check"
    if other.size != entry.size:
        return f"has {entry.size:,} bytes, but {other.size:,} at the check"
    return ""


def _base(collection: GlobusCollection) -> str:
    return os.path.realpath(collection.base_path) if collection.collection_id is None else collection.path("")

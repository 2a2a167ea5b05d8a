"""What may be deleted: names, sizes and checksums of the source against a check collection.

Globus Transfer tells no checksums, it only compares files that it is to make equal. A proof must not write on the
check, which may be the better copy, nor on the source. So the check's files are copied into a room of their own at
the check, verified, and the source is synchronized onto that room by checksum: what Transfer had to move there was
not the same. Afterwards the room is deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
import time
import uuid
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

from prefect_psik.blocks import GlobusCollection
from prefect_psik.exceptions import SpecError, TransferCause, TransferError
from prefect_psik.prune_models import PruneFile, PruneReport, PruneVerdict
from prefect_psik.transfer_local import digest
from prefect_psik.transfer_models import FileEntry, Order, TransferResult
from prefect_psik.transfer_once import repeated
from prefect_psik.transfer_runs import carrier_of, globus_carrier_of, id_of, list_below, name_of
from prefect_psik.transfer_waits import begin, carry_out
from prefect_psik.transport.threads import in_daemon_thread

T = TypeVar("T")

#: Begin of a room's name. It is in the check's own directory, so that it shows if that is the source's, too, by a
#: link or another collection.
ROOM = ".prefect-psik-prune-"
#: Files in one task of Globus Transfer.
FILES_PER_TASK = 10_000
#: Another change so soon after the last may leave size and time as they are: Transfer tells whole seconds.
SETTLED_SECONDS = 3.0
UNSETTLED = f"was changed less than {SETTLED_SECONDS:.0f} s ago, there or at the check"
#: A step of a prune is given up after this time.
STEP_SECONDS = 24 * 3600.0
#: A room that did not change for so long was left by a prune that was killed: two steps use it.
ROOM_SECONDS = 2 * STEP_SECONDS


def refuse(source: GlobusCollection, check: GlobusCollection | None, path: str) -> GlobusCollection:
    """Refuse a prune that can prove nothing.

    Raises:
        SpecError: There is no check, it is the source itself, or the two cannot be compared.
    """
    source.path(path)
    if posixpath.normpath(path or ".") == ".":
        raise SpecError(f"{path!r} is all of {name_of(source)}: name the file or directory to prune.")
    if check is None:
        raise SpecError(
            f"A prune of {name_of(source)}:{path} needs a check collection, which holds a copy: give check=. "
            "Nothing was deleted."
        )
    if (source.collection_id is None) != (check.collection_id is None):
        raise SpecError(
            f"{name_of(source)} and {name_of(check)} cannot be compared: one is a Globus collection and one a "
            "directory of this machine. Nothing was deleted."
        )
    if id_of(source) == id_of(check) and _base(source) == _base(check):
        raise _same_place(source, check)
    return check


async def make_plan(
    source: GlobusCollection, check: GlobusCollection, path: str, min_age: timedelta, *, dry_run: bool
) -> PruneReport:
    """Look at both collections, and prove what can be proven; deletes nothing that is not its own."""
    report = PruneReport(source=name_of(source), check=name_of(check), path=path, dry_run=dry_run)
    report.files = await _judged(source, check, path, min_age)
    if any(file.reason == UNSETTLED for file in report.files):
        await asyncio.sleep(SETTLED_SECONDS)  # a result that has just been brought home is settled then
        report.files = await _judged(source, check, path, min_age)
    if wanted := report.having(PruneVerdict.delete):
        prove = _prove_here if source.collection_id is None else _prove_by_transfer
        reasons = await prove(source, check, path, [file.path for file in wanted])
        for file in wanted:
            if reason := reasons.get(file.path):
                file.verdict, file.reason = PruneVerdict.unproven, reason
    return report


async def carry_out_plan(source: GlobusCollection, check: GlobusCollection, report: PruneReport) -> PruneReport:
    """Delete what is proven, after another look: what has changed since the proof, at either end, stays."""
    for part in _parts(report.having(PruneVerdict.delete)):
        there, held = await _files(source, report.path), await _files(check, report.path)
        going = []
        for file in part:
            if not _is_as_seen(there.get(file.path), file.size, file.modified):
                file.verdict, file.reason = PruneVerdict.unproven, "changed while it was compared"
            elif not _is_as_seen(held.get(file.path), file.size, file.check_modified):
                file.verdict, file.reason = PruneVerdict.unproven, "changed at the check while it was compared"
            else:
                going.append(file)
        if going:
            items = [(source.path(file.path), "") for file in going]
            await _step(source, Order(id_of(source), None, items), f"{name_of(source)}:{report.path}", "pruned")
        for file in going:
            file.verdict = PruneVerdict.deleted
    return report


async def _judged(
    source: GlobusCollection, check: GlobusCollection, path: str, min_age: timedelta
) -> list[PruneFile]:
    """Look at both collections, and tell what names, sizes and times allow."""
    now = time.time()
    held = await _files(check, path)
    files = []
    for entry in (await _files(source, path)).values():
        other = held.get(entry.path)
        verdict, reason = _judge(entry, other, min_age, now)
        files.append(
            PruneFile(
                path=entry.path,
                size=entry.size,
                modified=entry.modified,
                check_modified=other.modified if other else None,
                verdict=verdict,
                reason=reason,
            )
        )
    return files


def _judge(entry: FileEntry, other: FileEntry | None, min_age: timedelta, now: float) -> tuple[PruneVerdict, str]:
    """What names, sizes and times allow for a file, given what the check has; pure.

    Args:
        entry: At the source.
        other: At the check.
        min_age: Younger files are left out.
        now: Unix time before either was looked at.
    """
    if min_age and entry.modified is not None and entry.modified > now - min_age.total_seconds():
        return PruneVerdict.young, f"changed less than {min_age} ago"
    if reason := _difference(entry, other):
        return PruneVerdict.unproven, reason
    times = [entry.modified, other.modified if other else None]
    if None in times:
        return PruneVerdict.unproven, "has no time of its last change, so that a change would not be noticed"
    if any(moment is not None and moment > now - SETTLED_SECONDS for moment in times):
        return PruneVerdict.unproven, UNSETTLED
    return PruneVerdict.delete, ""


def _is_as_seen(entry: FileEntry | None, size: int, modified: float | None) -> bool:
    return entry is not None and (entry.kind, entry.size, entry.modified) == ("file", size, modified)


def _difference(entry: FileEntry, other: FileEntry | None) -> str:
    """Why names and sizes alone tell that a file is not held; empty if they do not."""
    if entry.kind != "file":
        return f"is a {entry.kind}, and only files are compared"
    if other is None:
        return "is not there at the check"
    if other.kind != "file":
        return f"is a {other.kind} at the check"
    if other.size != entry.size:
        return f"has {entry.size:,} bytes, and {other.size:,} at the check"
    return ""


async def _files(collection: GlobusCollection, path: str, *, rooms: bool = False) -> dict[str, FileEntry]:
    """What is below a path, but for directories and what a killed prune left; nothing where it is not there."""
    carrier = carrier_of(collection)
    full = collection.path(path)
    try:
        found = await repeated(lambda: list_below(carrier, collection, full, recursive=True))
    except TransferError as err:
        if err.cause is not TransferCause.not_found:
            raise
        return {}
    return {
        entry.path: entry
        for entry in found
        if entry.kind != "directory"
        and (rooms or not any(part.startswith(ROOM) for part in entry.path.split("/")))
    }


# -------------------------------------------------------------------------------------------- proofs


async def _prove_here(
    source: GlobusCollection, check: GlobusCollection, _path: str, files: list[str]
) -> dict[str, str]:
    """Compare the checksums of files on this machine; returns why some are not the same."""
    reasons = {}
    for path in files:
        if reason := await in_daemon_thread(partial(_compare, Path(source.path(path)), Path(check.path(path)))):
            reasons[path] = reason
    return reasons


def _compare(one: Path, other: Path) -> str:
    if one.samefile(other):
        return "is the same file as at the check, not a copy"
    return "" if digest(one) == digest(other) else "has another checksum at the check"


async def _prove_by_transfer(
    source: GlobusCollection, check: GlobusCollection, path: str, files: list[str]
) -> dict[str, str]:
    """Have Globus Transfer compare checksums in a room at the check; returns why some are not the same."""
    place = posixpath.dirname(path) if files == [posixpath.normpath(path)] else path
    # One of its own: two prunes in one room would take each other's files for the check's.
    room = posixpath.join(place, f"{ROOM}{uuid.uuid4().hex}")
    await _remove_left_rooms(check, place)
    reasons: dict[str, str] = {}
    try:
        for part in _parts(files):
            copies = [(check.path(file), check.path(f"{room}/{file}")) for file in part]
            await _copy(check, Order(id_of(check), id_of(check), copies), f"{name_of(check)}:{path}", "its room")
            if await _files(source, room, rooms=True):
                raise _same_place(source, check)
            onto = [(source.path(file), check.path(f"{room}/{file}")) for file in part]
            order = Order(id_of(source), id_of(check), onto)
            moved = await _copy(source, order, f"{name_of(source)}:{path}", "the room")
            reasons |= {file: "has another checksum at the check" for file in part if source.path(file) in moved}
    finally:
        await _remove(check, room)
    return reasons


async def _copy(collection: GlobusCollection, order: Order, source: str, destination: str) -> set[str]:
    """Have Transfer make files equal; returns the source paths of those that were not.

    Raises:
        TransferError: It did not succeed, or Transfer's numbers and names do not agree.
    """
    task_id, found = await _step(collection, order, source, destination)
    moved = await repeated(lambda: globus_carrier_of(collection).moved(task_id))
    if found.files != len(order.items) or len(moved) != found.files - found.files_skipped:
        raise TransferError(
            f"Transfer {task_id} looked at {found.files} of {len(order.items)} files, skipped "
            f"{found.files_skipped} and names {len(moved)} as moved, which proves nothing. Nothing was "
            "deleted; look at it in Globus's web app."
        )
    if strange := moved - {path for path, _ in order.items}:
        raise TransferError(
            f"Transfer {task_id} names {min(strange)!r} as moved, which was not submitted under that name, so it "
            "cannot be told which files differ. Nothing was deleted. Give the collection's base_path as Transfer "
            "writes it, without '~' and links."
        )
    return moved


async def _remove_left_rooms(check: GlobusCollection, place: str) -> None:
    """Delete what killed prunes left at the check, as far as this login may."""
    carrier, full = carrier_of(check), check.path(place)
    for entry in await repeated(lambda: list_below(carrier, check, full, recursive=False)):
        is_room = entry.kind == "directory" and posixpath.basename(entry.path).startswith(ROOM)
        if is_room and entry.modified is not None and entry.modified < time.time() - ROOM_SECONDS:
            with contextlib.suppress(TransferError):
                await _remove(check, entry.path)


async def _remove(check: GlobusCollection, room: str) -> None:
    """Delete a room. A prune that is being stopped does not wait for that; Transfer goes on by itself."""
    order = Order(id_of(check), None, [(check.path(room), "")], recursive=True)
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        await begin(carrier_of(check), order)
    else:
        await _step(check, order, f"{name_of(check)}:{room}", "deleted")


async def _step(
    collection: GlobusCollection, order: Order, source: str, destination: str
) -> tuple[str, TransferResult]:
    order = replace(order, deadline=time.time() + STEP_SECONDS, label="prefect-psik prune")
    return await carry_out(carrier_of(collection), order, source, destination)


def _parts(files: list[T]) -> list[list[T]]:
    return [files[begin : begin + FILES_PER_TASK] for begin in range(0, len(files), FILES_PER_TASK)]


def _base(collection: GlobusCollection) -> str:
    return os.path.realpath(collection.base_path) if collection.collection_id is None else collection.path("")


def _same_place(source: GlobusCollection, check: GlobusCollection) -> SpecError:
    return SpecError(
        f"{name_of(source)} and its check {name_of(check)} are the same directory: one copy proves nothing. "
        "Nothing was deleted. Check against a collection that holds a second copy."
    )

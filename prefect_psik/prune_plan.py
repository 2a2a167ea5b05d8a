"""What may be deleted: names, sizes and checksums of the source against a check collection.

Globus Transfer tells no checksums, it only compares files that it is to make equal. A proof must not write on the
check, which may be the better copy, nor on the source. So the check's files are copied into a room of their own at
the check, verified, and the source is synchronized onto that room by checksum: what Transfer had to move there was
not the same. Afterwards the room is deleted.
"""

from __future__ import annotations

import os
import posixpath
import time
import uuid
from datetime import timedelta
from pathlib import Path

from prefect_psik.blocks import GlobusCollection
from prefect_psik.exceptions import SpecError, TransferCause, TransferError
from prefect_psik.prune_models import PruneFile, PruneReport, PruneVerdict
from prefect_psik.transfer_local import digest
from prefect_psik.transfer_models import FileEntry, Order
from prefect_psik.transfer_once import repeated
from prefect_psik.transfer_runs import carrier_of, id_of, list_below, name_of
from prefect_psik.transfer_waits import carry_out
from prefect_psik.transport.threads import in_daemon_thread

#: In the check's own directory, so that it shows if that is the source's, too, by a link or another collection.
#: What a killed prune leaves there, the next prune of the same path deletes.
ROOM = ".prefect-psik-prune"
#: Files in one task of Globus Transfer.
FILES_PER_TASK = 10_000
#: A step of a prune is given up after this time.
STEP_SECONDS = 24 * 3600.0


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
    held = await _files(check, path)
    before = time.time() - min_age.total_seconds()
    for entry in (await _files(source, path)).values():
        reason = _difference(entry, held.get(entry.path))
        verdict = PruneVerdict.unproven if reason else PruneVerdict.delete
        if entry.modified > before:
            verdict, reason = PruneVerdict.young, f"changed less than {min_age} ago"
        report.files.append(
            PruneFile(path=entry.path, size=entry.size, modified=entry.modified, verdict=verdict, reason=reason)
        )
    wanted = [file.path for file in report.having(PruneVerdict.delete)]
    if wanted:
        prove = _prove_here if source.collection_id is None else _prove_by_transfer
        _keep(report, await prove(source, check, path, wanted))
    return report


async def carry_out_plan(source: GlobusCollection, check: GlobusCollection, report: PruneReport) -> PruneReport:
    """Delete what is proven, after another look: what has changed since the proof stays."""
    now, held = await _files(source, report.path), await _files(check, report.path)
    changed = {}
    for file in report.having(PruneVerdict.delete):
        entry = now.get(file.path)
        if entry is None or (entry.size, entry.modified) != (file.size, file.modified):
            changed[file.path] = "changed while it was compared"
        elif reason := _difference(entry, held.get(file.path)):
            changed[file.path] = reason
    _keep(report, changed)
    wanted = [file.path for file in report.having(PruneVerdict.delete)]
    for part in _parts(wanted):
        items = [(source.path(path), "") for path in part]
        await _step(source, Order(id_of(source), None, items), f"{name_of(source)}:{report.path}", "pruned")
    report.files = [
        file.model_copy(update={"verdict": PruneVerdict.deleted}) if file.verdict is PruneVerdict.delete else file
        for file in report.files
    ]
    return report


def _keep(report: PruneReport, reasons: dict[str, str]) -> None:
    report.files = [
        file.model_copy(update={"verdict": PruneVerdict.unproven, "reason": reasons[file.path]})
        if file.path in reasons
        else file
        for file in report.files
    ]


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
        if entry.kind != "directory" and (rooms or ROOM not in entry.path.split("/"))
    }


# -------------------------------------------------------------------------------------------- proofs


async def _prove_here(
    source: GlobusCollection, check: GlobusCollection, _path: str, files: list[str]
) -> dict[str, str]:
    """Compare the checksums of files on this machine; returns why some are not the same."""

    def compare() -> dict[str, str]:
        reasons = {}
        for path in files:
            one, other = Path(source.path(path)), Path(check.path(path))
            if one.samefile(other):
                reasons[path] = "is the same file as at the check, not a copy"
            elif digest(one) != digest(other):
                reasons[path] = "has another checksum at the check"
        return reasons

    return await in_daemon_thread(compare)


async def _prove_by_transfer(
    source: GlobusCollection, check: GlobusCollection, path: str, files: list[str]
) -> dict[str, str]:
    """Have Globus Transfer compare checksums in a room at the check; returns why some are not the same."""
    rooms = posixpath.join(posixpath.dirname(path) if files == [posixpath.normpath(path)] else path, ROOM)
    # Never one that was there before: two prunes in one room would take each other's files for the check's.
    room = f"{rooms}/{uuid.uuid4().hex}"
    await _clean(check, rooms)
    reasons: dict[str, str] = {}
    try:
        for part in _parts(files):
            copies = [(check.path(file), check.path(f"{room}/{file}")) for file in part]
            await _step(check, Order(id_of(check), id_of(check), copies), f"{name_of(check)}:{path}", "its room")
            if await _files(source, room, rooms=True):
                raise _same_place(source, check)
            onto = [(source.path(file), check.path(f"{room}/{file}")) for file in part]
            order = Order(id_of(source), id_of(check), onto)
            moved = await _step(source, order, f"{name_of(source)}:{path}", "the room")
            reasons |= {file: "has another checksum at the check" for file in part if source.path(file) in moved}
    finally:
        await _clean(check, rooms)
    return reasons


async def _step(collection: GlobusCollection, order: Order, source: str, destination: str) -> set[str]:
    """Carry out one step; returns the source paths of what had to be moved.

    Raises:
        TransferError: It did not succeed, or Transfer's numbers and names do not agree.
    """
    carrier = carrier_of(collection)
    order = Order(**{**vars(order), "deadline": time.time() + STEP_SECONDS, "label": "prefect-psik prune"})
    task_id, found = await carry_out(carrier, order, source, destination)
    if order.destination is None:
        return set()
    moved = await repeated(lambda: carrier.moved(task_id))
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


async def _clean(check: GlobusCollection, rooms: str) -> None:
    items = [(check.path(rooms), "")]
    await _step(check, Order(id_of(check), None, items, recursive=True), f"{name_of(check)}:{rooms}", "deleted")


def _parts(files: list[str]) -> list[list[str]]:
    return [files[begin : begin + FILES_PER_TASK] for begin in range(0, len(files), FILES_PER_TASK)]


def _base(collection: GlobusCollection) -> str:
    return os.path.realpath(collection.base_path) if collection.collection_id is None else collection.path("")


def _same_place(source: GlobusCollection, check: GlobusCollection) -> SpecError:
    return SpecError(
        f"{name_of(source)} and its check {name_of(check)} are the same directory: one copy proves nothing. "
        "Nothing was deleted. Check against a collection that holds a second copy."
    )

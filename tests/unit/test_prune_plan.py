"""What a prune may delete: on real directories of this machine, and on a Transfer that is a dictionary."""

from __future__ import annotations

import asyncio
import hashlib
import os
import posixpath
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from prefect_psik import GlobusCollection, PruneVerdict, SpecError, TransferError, prune_plan
from prefect_psik.exceptions import TransferCause
from prefect_psik.prune_models import PruneFile
from prefect_psik.prune_plan import ROOM, ROOM_SECONDS, UNSETTLED, carry_out_plan, make_plan, refuse
from prefect_psik.transfer_models import FileEntry, Order, TransferState, TransferStatus
from tests.integration.transfer_places import Place, local

NONE = timedelta(0)
SOURCE, CHECK = (GlobusCollection(collection_id=UUID(int=n), base_path=f"/{n}") for n in (1, 2))


class Transfer:
    """A carrier as Globus Transfer is one: collections of files in memory, with times; it notes its orders."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], tuple[bytes, float | None]] = {}
        self.orders: list[Order] = []
        self._moved: list[set[str]] = []
        #: Collections that are one directory under two ids.
        self.same: dict[str, str] = {}

    def write(self, collection: GlobusCollection, path: str, content: bytes, age: float | None = 60.0) -> None:
        modified = None if age is None else time.time() - age
        self.files[self._at(str(collection.collection_id), collection.path(path))] = (content, modified)

    def names(self, collection: GlobusCollection) -> set[str]:
        """Paths of all files of a collection."""
        return {path for where, path in self.files if where == str(collection.collection_id)}

    async def reserve(self) -> str:
        return str(len(self.orders))

    async def submit(self, order: Order, submission_id: str) -> tuple[str, bool]:
        self.orders.append(order)
        moved = set()
        for source, destination in order.items:
            if order.destination is None:
                for where, path in list(self.files):
                    if where == order.source and (path == source or path.startswith(f"{source}/")):
                        del self.files[where, path]
                continue
            here, there = self._at(order.source, source), self._at(order.destination, destination)
            assert here in self.files, f"{source} is not there"
            if there not in self.files or self._digest(here) != self._digest(there):
                self.files[there] = self.files[here]
                moved.add(source)
        self._moved.append(moved)
        return str(len(self.orders) - 1), True

    async def look(self, task_id: str) -> TransferStatus:
        count, moved = len(self.orders[int(task_id)].items), len(self._moved[int(task_id)])
        return TransferStatus(
            state=TransferState.succeeded, files=count, files_skipped=count - moved, files_transferred=moved
        )

    async def cancel(self, task_id: str) -> None:
        raise AssertionError("nothing here is cancelled")

    async def moved(self, task_id: str) -> set[str]:
        return self._moved[int(task_id)]

    async def list(self, collection: str, path: str, *, recursive: bool) -> AsyncIterator[FileEntry]:
        collection = self.same.get(collection, collection)
        found = False
        directories = set()
        for (where, name), (content, modified) in sorted(self.files.items()):
            if where == collection and (name == path or name.startswith(f"{path.rstrip('/')}/")):
                found = True
                below = posixpath.relpath(name, path)
                if recursive or "/" not in below:
                    yield FileEntry(path=name, kind="file", size=len(content), modified=modified)
                else:
                    directories.add((posixpath.join(path, below.split("/")[0]), modified))
        for directory, modified in directories:
            yield FileEntry(path=directory, kind="directory", modified=modified)
        if not found:
            raise TransferError("not there", cause=TransferCause.not_found)

    def _at(self, collection: str, path: str) -> tuple[str, str]:
        return self.same.get(collection, collection), path

    def _digest(self, at: tuple[str, str]) -> bytes:
        return hashlib.sha256(self.files[at][0]).digest()


@pytest.fixture
def transfer(monkeypatch: pytest.MonkeyPatch) -> Transfer:
    made = Transfer()
    for name in ("carrier_of", "globus_carrier_of"):
        monkeypatch.setattr(prune_plan, name, lambda _: made)
    return made


@pytest.fixture
def places(tmp_path: Path) -> tuple[Place, Place]:
    return local(tmp_path / "away"), local(tmp_path / "home")


def verdicts(files: list[PruneFile]) -> dict[str, tuple[PruneVerdict, str]]:
    return {file.path: (file.verdict, file.reason) for file in files}


# ----------------------------------------------------------------------------------------- what is refused


def test_a_prune_that_can_prove_nothing_is_refused(tmp_path: Path) -> None:
    here, link = tmp_path / "here", tmp_path / "link"
    here.mkdir()
    link.symlink_to(here)
    source = GlobusCollection(base_path=str(here))
    for path in ("", ".", "./"):
        with pytest.raises(SpecError, match="name the file or directory to prune"):
            refuse(source, SOURCE, path)
    with pytest.raises(SpecError, match="needs a check collection"):
        refuse(source, None, "rec")
    for one, other in ((source, CHECK), (SOURCE, source)):
        with pytest.raises(SpecError, match="cannot be compared"):
            refuse(one, other, "rec")
    for one, other in ((source, GlobusCollection(base_path=str(link))), (SOURCE, SOURCE.model_copy())):
        with pytest.raises(SpecError, match="are the same directory"):
            refuse(one, other, "rec")
    elsewhere = SOURCE.model_copy(update={"base_path": "/elsewhere"})
    assert refuse(SOURCE, elsewhere, "rec") is elsewhere
    same_base = CHECK.model_copy(update={"base_path": SOURCE.base_path})
    assert refuse(SOURCE, same_base, "rec") is same_base


# ----------------------------------------------------------------------------------------- this machine


async def test_on_this_machine_only_equal_files_go(places: tuple[Place, Place]) -> None:
    away, home = places
    for name in ("held", "sub/held", "lacking", "short", "other"):
        away.write(f"rec/{name}", b"0123456789")
        if name != "lacking":
            home.write(f"rec/{name}", b"01234" if name == "short" else b"0123456789")
    home.write("rec/other", b"012345678X")
    away.write("rec/one inode")
    os.link(away.root / "rec/one inode", home.root / "rec/one inode")
    away.write("rec/hidden", b"x" * 10)
    (home.root / "rec/hidden").mkdir()
    (away.root / "rec/link").symlink_to("held")
    report = await make_plan(away.block, home.block, "rec", NONE, dry_run=False)
    assert not report.dry_run
    found = verdicts(report.files)
    unproven = PruneVerdict.unproven
    assert found == {
        "rec/held": (PruneVerdict.delete, ""),
        "rec/sub/held": (PruneVerdict.delete, ""),
        "rec/lacking": (unproven, "is not there at the check"),
        "rec/short": (unproven, "has 10 bytes, and 5 at the check"),
        "rec/other": (unproven, "has another checksum at the check"),
        "rec/one inode": (unproven, "is the same file as at the check, not a copy"),
        "rec/hidden": (unproven, "is not there at the check"),
        "rec/link": (unproven, "is a link, and only files are compared"),
    }
    before = home.files()
    report = await carry_out_plan(away.block, home.block, report)
    assert {file.path for file in report.having(PruneVerdict.deleted)} == {"rec/held", "rec/sub/held"}
    assert set(away.files("rec")) == {"lacking", "short", "other", "one inode", "hidden"}
    assert home.files() == before


async def test_young_files_are_left_out(places: tuple[Place, Place]) -> None:
    away, home = places
    for place in places:
        place.write("rec/old", age=7200)
        place.write("rec/young", age=1800)
    report = await make_plan(away.block, home.block, "rec", timedelta(hours=1), dry_run=True)
    assert report.dry_run
    assert verdicts(report.files) == {
        "rec/old": (PruneVerdict.delete, ""),
        "rec/young": (PruneVerdict.young, "changed less than 1:00:00 ago"),
    }


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("settles", [True, False])
async def test_what_changed_just_now_is_looked_at_again(
    places: tuple[Place, Place], end: int, settles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, after the time that it takes to be settled; what changes on, stays."""
    for place in places:
        place.write("rec/1")
    places[end].write("rec/1", age=0)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if settles:
            places[end].write("rec/1", age=60)

    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "sleep", sleep)
        report = await make_plan(places[0].block, places[1].block, "rec", NONE, dry_run=True)
    expected = (PruneVerdict.delete, "") if settles else (PruneVerdict.unproven, UNSETTLED)
    assert verdicts(report.files) == {"rec/1": expected}
    assert slept[0] == 3.0


@pytest.mark.parametrize(
    ("end", "reason"), [(0, "changed while it was compared"), (1, "changed at the check while it was compared")]
)
@pytest.mark.parametrize("change", ["size", "time", "gone"])
async def test_what_changes_after_the_proof_stays(
    places: tuple[Place, Place], end: int, reason: str, change: str
) -> None:
    for place in places:
        place.write("rec/1", age=60)
        place.write("rec/2", age=60)
    report = await make_plan(places[0].block, places[1].block, "rec", NONE, dry_run=False)
    if change == "gone":
        (places[end].root / "rec/1").unlink()
    else:
        places[end].write("rec/1", b"longer content" if change == "size" else b"content", age=30)
    report = await carry_out_plan(places[0].block, places[1].block, report)
    assert verdicts(report.files)["rec/1"] == (PruneVerdict.unproven, reason)
    assert verdicts(report.files)["rec/2"] == (PruneVerdict.deleted, "")
    assert not (places[0].root / "rec/2").exists()


async def test_nothing_there_is_an_empty_plan(places: tuple[Place, Place]) -> None:
    away, home = places
    report = await make_plan(away.block, home.block, "rec", NONE, dry_run=False)
    assert report.files == []
    assert (await carry_out_plan(away.block, home.block, report)).files == []


# ----------------------------------------------------------------------------------------- by Transfer


async def test_transfer_compares_in_a_room_that_goes_again(transfer: Transfer) -> None:
    for name in ("held", "sub/held", "other"):
        transfer.write(SOURCE, f"rec/{name}", b"0123456789")
        transfer.write(CHECK, f"rec/{name}", b"012345678X" if name == "other" else b"0123456789")
    before = transfer.names(CHECK)
    report = await make_plan(SOURCE, CHECK, "rec", NONE, dry_run=False)
    assert verdicts(report.files) == {
        "rec/held": (PruneVerdict.delete, ""),
        "rec/sub/held": (PruneVerdict.delete, ""),
        "rec/other": (PruneVerdict.unproven, "has another checksum at the check"),
    }
    assert transfer.names(CHECK) == before, "the room is gone"
    copy, compare, clear = transfer.orders
    room = posixpath.commonpath([destination for _, destination in copy.items])
    assert room.startswith(f"/2/rec/{ROOM}")
    assert (copy.source, copy.destination) == (str(CHECK.collection_id),) * 2
    assert (compare.source, compare.destination) == (str(SOURCE.collection_id), str(CHECK.collection_id))
    assert [destination for _, destination in compare.items] == [destination for _, destination in copy.items]
    assert (clear.destination, clear.recursive) == (None, True)
    for order in transfer.orders:
        assert order.sync == "checksum"
        assert order.deadline is not None
        assert 23 * 3600 < order.deadline - time.time() <= 24 * 3600

    await carry_out_plan(SOURCE, CHECK, report)
    assert transfer.names(SOURCE) == {"/1/rec/other"}
    assert transfer.names(CHECK) == before
    assert not transfer.orders[-1].recursive, "only the files themselves are deleted"


async def test_the_room_of_a_single_file_is_beside_it(transfer: Transfer) -> None:
    for collection in (SOURCE, CHECK):
        transfer.write(collection, "raw/scan.h5", b"raw")
    report = await make_plan(SOURCE, CHECK, "raw/scan.h5", NONE, dry_run=True)
    assert verdicts(report.files) == {"raw/scan.h5": (PruneVerdict.delete, "")}
    assert transfer.orders[0].items[0][1].startswith(f"/2/raw/{ROOM}")


async def test_many_files_travel_in_parts(transfer: Transfer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune_plan, "FILES_PER_TASK", 2)
    for collection in (SOURCE, CHECK):
        for number in range(5):
            transfer.write(collection, f"rec/{number}", b"content")
    transfer.write(CHECK, "rec/4", b"CONTENT")
    report = await make_plan(SOURCE, CHECK, "rec", NONE, dry_run=False)
    assert verdicts(report.files)["rec/4"][0] is PruneVerdict.unproven
    assert [len(order.items) for order in transfer.orders] == [2, 2, 2, 2, 1, 1, 1]
    await carry_out_plan(SOURCE, CHECK, report)
    assert [len(order.items) for order in transfer.orders[7:]] == [2, 2]
    assert transfer.names(SOURCE) == {"/1/rec/4"}


async def test_a_check_that_is_the_source_under_another_id_is_noticed(transfer: Transfer) -> None:
    check = CHECK.model_copy(update={"base_path": SOURCE.base_path})
    transfer.same[str(CHECK.collection_id)] = str(SOURCE.collection_id)
    transfer.write(SOURCE, "rec/1", b"content")
    with pytest.raises(SpecError, match="are the same directory: one copy proves nothing"):
        await make_plan(SOURCE, check, "rec", NONE, dry_run=False)
    assert ("/1/rec/1") in transfer.names(SOURCE)
    assert transfer.orders[-1].destination is None, "its room is deleted"


async def test_rooms_that_were_left_are_removed_and_their_files_are_nobodys(transfer: Transfer) -> None:
    for collection in (SOURCE, CHECK):
        transfer.write(collection, "rec/1", b"content")
    for name, age in (("old", ROOM_SECONDS + 60), ("new", ROOM_SECONDS - 60)):
        transfer.write(CHECK, f"rec/{ROOM}{name}/rec/1", b"content", age)
        transfer.write(SOURCE, f"rec/{ROOM}{name}/rec/1", b"content", age)
    report = await make_plan(SOURCE, CHECK, "rec", NONE, dry_run=True)
    assert verdicts(report.files) == {"rec/1": (PruneVerdict.delete, "")}
    assert transfer.names(CHECK) == {"/2/rec/1", f"/2/rec/{ROOM}new/rec/1"}
    assert f"/1/rec/{ROOM}old/rec/1" in transfer.names(SOURCE)


async def test_a_file_without_a_time_proves_nothing(transfer: Transfer) -> None:
    transfer.write(SOURCE, "rec/1", b"content", None)
    transfer.write(CHECK, "rec/1", b"content")
    transfer.write(SOURCE, "rec/2", b"content")
    transfer.write(CHECK, "rec/2", b"content", None)
    report = await make_plan(SOURCE, CHECK, "rec", timedelta(seconds=1), dry_run=True)
    words = "has no time of its last change, so that a change would not be noticed"
    assert verdicts(report.files) == dict.fromkeys(("rec/1", "rec/2"), (PruneVerdict.unproven, words))
    assert transfer.orders == [], "nothing is left to compare"


async def test_numbers_of_transfer_that_do_not_agree_prove_nothing(
    transfer: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for collection in (SOURCE, CHECK):
        transfer.write(collection, "rec/1", b"content")

    async def forgets(task_id: str) -> set[str]:
        return set()

    monkeypatch.setattr(transfer, "moved", forgets)
    with pytest.raises(TransferError, match="looked at 1 of 1 files, skipped 0 and names 0 as moved"):
        await make_plan(SOURCE, CHECK, "rec", NONE, dry_run=False)
    assert transfer.names(CHECK) == {"/2/rec/1"}, "the room is deleted all the same"


async def test_what_cannot_be_listed_is_an_error_and_not_an_empty_check(
    transfer: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def denied(collection: str, path: str, *, recursive: bool) -> AsyncIterator[FileEntry]:
        raise TransferError("no", cause=TransferCause.permission_denied)
        yield

    monkeypatch.setattr(transfer, "list", denied)
    with pytest.raises(TransferError, match="no"):
        await make_plan(SOURCE, CHECK, "rec", NONE, dry_run=False)

"""What a prune may delete: on real directories of this machine, and on a Transfer that is a dictionary."""

from __future__ import annotations

import asyncio
import os
import posixpath
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from prefect_psik import (
    GlobusCollection,
    PruneReport,
    PruneVerdict,
    SpecError,
    TransferError,
)
from prefect_psik.data.marks import LEASE_SECONDS, PREFIX, SKEW_SECONDS, Mark, MarkKind
from prefect_psik.data.proof import claim as prune_claim
from prefect_psik.data.proof import globus as prune_globus
from prefect_psik.data.proof import look as prune_look
from prefect_psik.data.proof.plan import UNSETTLED, Prune, refuse
from prefect_psik.models.causes import TransferCause
from prefect_psik.models.prunes import CHANGED, CHANGED_AT_CHECK, GONE, PruneFile
from prefect_psik.models.transfers import FileEntry
from tests.integration.transfer_places import Place, local
from tests.unit.memory_transfer import Transfer

NONE = timedelta(0)
#: Where prunes ask for what moves data.
CARRIERS = ((prune_claim, "carrier_of"), (prune_look, "carrier_of"), (prune_globus, "globus_carrier_of"))
SOURCE, CHECK = (GlobusCollection(collection_id=UUID(int=n), base_path=f"/{n}") for n in (1, 2))


@pytest.fixture
def transfer(monkeypatch: pytest.MonkeyPatch) -> Transfer:
    made = Transfer()
    for module, name in CARRIERS:
        monkeypatch.setattr(module, name, lambda _: made)
    return made


@pytest.fixture
def places(tmp_path: Path) -> tuple[Place, Place]:
    return local(tmp_path / "away"), local(tmp_path / "home")


async def planned(*given: Any, **options: Any) -> PruneReport:
    """What a prune would do; its marks are gone again."""
    prune = Prune(*given, **options)
    try:
        return await prune.make_plan()
    finally:
        await prune.let_go()


async def done(*given: Any, **options: Any) -> PruneReport:
    """A whole prune."""
    prune = Prune(*given, **options)
    try:
        await prune.make_plan()
        return await prune.carry_out()
    finally:
        await prune.let_go()


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
    prune = Prune(away.block, home.block, "rec")
    report = await prune.make_plan()
    assert not report.dry_run
    found = verdicts(report.files)
    unproven = PruneVerdict.unproven
    assert found == {
        "rec/held": (PruneVerdict.delete, ""),
        "rec/sub/held": (PruneVerdict.delete, ""),
        "rec/lacking": (unproven, "is missing at the check"),
        "rec/short": (unproven, "has 10 bytes, but 5 at the check"),
        "rec/other": (unproven, "has different contents at the check"),
        "rec/one inode": (unproven, "is the same file as at the check, not a copy"),
        "rec/hidden": (unproven, "is missing at the check"),
        "rec/link": (unproven, "is a link, and only files are compared"),
    }
    before = home.files()
    report = await prune.carry_out()
    await prune.let_go()
    assert {file.path for file in report.having(PruneVerdict.deleted)} == {"rec/held", "rec/sub/held"}
    assert set(away.files("rec")) == {"lacking", "short", "other", "one inode", "hidden"}
    assert home.files() == before
    assert {path.name for place in places for path in place.root.rglob("*") if path.is_dir()} == {
        "rec",
        "sub",
        "hidden",
    }


async def test_young_files_are_left_out(places: tuple[Place, Place]) -> None:
    away, home = places
    for place in places:
        place.write("rec/old", age=7200)
        place.write("rec/young", age=1800)
    report = await planned(away.block, home.block, "rec", timedelta(hours=1), dry_run=True)
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
        report = await planned(places[0].block, places[1].block, "rec", NONE, dry_run=True)
    expected = (PruneVerdict.delete, "") if settles else (PruneVerdict.unproven, UNSETTLED)
    assert verdicts(report.files) == {"rec/1": expected}
    assert slept[0] == 3.0


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("change", ["size", "time", "gone"])
async def test_what_changes_after_the_proof_is_not_deleted(
    places: tuple[Place, Place], end: int, change: str
) -> None:
    for place in places:
        place.write("rec/1", age=60)
        place.write("rec/2", age=60)
    prune = Prune(places[0].block, places[1].block, "rec")
    await prune.make_plan()
    if change == "gone":
        (places[end].root / "rec/1").unlink()
    else:
        places[end].write("rec/1", b"longer content" if change == "size" else b"content", age=30)
    report = await prune.carry_out()
    await prune.let_go()
    expected = (PruneVerdict.unproven, CHANGED_AT_CHECK if end else CHANGED)
    if (end, change) == (0, "gone"):
        expected = (PruneVerdict.gone, GONE)
    assert verdicts(report.files)["rec/1"] == expected
    assert verdicts(report.files)["rec/2"] == (PruneVerdict.deleted, "")
    assert not (places[0].root / "rec/2").exists()


async def test_nothing_there_is_an_empty_plan(places: tuple[Place, Place]) -> None:
    away, home = places
    assert (await done(away.block, home.block, "rec")).files == []
    assert list(away.root.iterdir()) == list(home.root.iterdir()) == []


# ----------------------------------------------------------------------------------------- by Transfer


async def test_transfer_compares_in_a_room_that_goes_again(transfer: Transfer) -> None:
    for name in ("held", "sub/held", "other"):
        transfer.write(SOURCE, f"rec/{name}", b"0123456789")
        transfer.write(CHECK, f"rec/{name}", b"012345678X" if name == "other" else b"0123456789")
    before = transfer.names(CHECK)
    prune = Prune(SOURCE, CHECK, "rec")
    report = await prune.make_plan()
    assert verdicts(report.files) == {
        "rec/held": (PruneVerdict.delete, ""),
        "rec/sub/held": (PruneVerdict.delete, ""),
        "rec/other": (PruneVerdict.unproven, "has different contents at the check"),
    }
    copy, compare = transfer.orders
    room = posixpath.commonpath([destination for _, destination in copy.items])
    assert room.startswith(f"/2/rec/{PREFIX}check-")
    assert (copy.source, copy.destination) == (str(CHECK.collection_id),) * 2
    assert (compare.source, compare.destination) == (str(SOURCE.collection_id), str(CHECK.collection_id))
    assert [destination for _, destination in compare.items] == [destination for _, destination in copy.items]

    await prune.carry_out()
    assert transfer.names(CHECK) > before, "the marks stay until the deletion has ended"
    await prune.let_go()
    assert transfer.names(SOURCE) == {"/1/rec/other"}
    assert transfer.names(CHECK) == before, "marks and room are gone"
    delete, *clear = transfer.orders[2:]
    assert [item for item, _ in delete.items] == ["/1/rec/held", "/1/rec/sub/held"]
    assert not delete.recursive, "only the files themselves are deleted"
    assert [(order.destination, order.recursive) for order in clear] == [(None, True)] * 2
    for order in (copy, compare, delete):
        assert order.sync == "checksum"
        assert order.deadline is not None
        assert 23 * 3600 < order.deadline - time.time() <= 24 * 3600


async def test_the_room_of_a_single_file_is_beside_it(transfer: Transfer) -> None:
    for collection in (SOURCE, CHECK):
        transfer.write(collection, "raw/scan.h5", b"raw")
    report = await planned(SOURCE, CHECK, "raw/scan.h5", NONE, dry_run=True)
    assert verdicts(report.files) == {"raw/scan.h5": (PruneVerdict.delete, "")}
    assert transfer.orders[0].items[0][1].startswith(f"/2/raw/{PREFIX}check-")


async def test_many_files_travel_in_parts(transfer: Transfer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune_globus, "FILES_PER_TASK", 2)
    monkeypatch.setattr(prune_globus, "FILES_PER_DELETION", 3)
    for collection in (SOURCE, CHECK):
        for number in range(5):
            transfer.write(collection, f"rec/{number}", b"content")
    transfer.write(CHECK, "rec/4", b"CONTENT")
    report = await done(SOURCE, CHECK, "rec")
    assert verdicts(report.files)["rec/4"][0] is PruneVerdict.unproven
    assert [len(order.items) for order in transfer.orders] == [2, 2, 2, 2, 1, 1, 3, 1, 1, 1]
    assert transfer.names(SOURCE) == {"/1/rec/4"}


async def test_a_check_that_is_the_source_under_another_id_is_noticed(transfer: Transfer) -> None:
    check = CHECK.model_copy(update={"base_path": SOURCE.base_path})
    transfer.same[str(CHECK.collection_id)] = str(SOURCE.collection_id)
    transfer.write(SOURCE, "rec/1", b"content")
    with pytest.raises(SpecError, match="are the same directory: one copy proves nothing"):
        await done(SOURCE, check, "rec")
    assert transfer.names(SOURCE) == {"/1/rec/1"}, "and the marks are gone"


async def test_what_abandoned_prunes_left_is_removed_at_both_ends_and_belongs_to_nobody(
    transfer: Transfer,
) -> None:
    mark = Mark.of(None, by_globus=True)
    old = replace(mark, since=mark.since - LEASE_SECONDS - SKEW_SECONDS - 60)
    for collection, mark in ((SOURCE, old), (CHECK, replace(old, kind=MarkKind.source))):
        transfer.write(collection, "rec/1", b"content")
        await transfer.make_directory(str(collection.collection_id), collection.path(f"rec/{mark.name}"))
        transfer.write(collection, f"rec/{mark.name}/rec/1", b"content")
    report = await planned(SOURCE, CHECK, "rec", dry_run=True)
    assert verdicts(report.files) == {"rec/1": (PruneVerdict.delete, "")}
    assert (transfer.names(SOURCE), transfer.names(CHECK)) == ({"/1/rec/1"}, {"/2/rec/1"})


async def test_a_file_without_a_time_proves_nothing(transfer: Transfer) -> None:
    transfer.write(SOURCE, "rec/1", b"content", None)
    transfer.write(CHECK, "rec/1", b"content")
    transfer.write(SOURCE, "rec/2", b"content")
    transfer.write(CHECK, "rec/2", b"content", None)
    report = await planned(SOURCE, CHECK, "rec", timedelta(seconds=1), dry_run=True)
    words = "has no modification time, so a change would go unnoticed"
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
    with pytest.raises(TransferError, match="compared 1 of 1 files, skipped 0 and lists 0 as moved"):
        await done(SOURCE, CHECK, "rec")
    assert transfer.names(CHECK) == {"/2/rec/1"}, "the room is deleted all the same"


async def test_what_cannot_be_listed_is_an_error_and_not_an_empty_check(
    transfer: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def denied(collection: str, path: str, *, recursive: bool) -> AsyncIterator[FileEntry]:
        raise TransferError("no", cause=TransferCause.permission_denied)
        yield

    monkeypatch.setattr(transfer, "list", denied)
    with pytest.raises(TransferError, match="no"):
        await done(SOURCE, CHECK, "rec")

"""What a prune may delete: files on this disk, moved and compared by a carrier that stands for Globus Transfer."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from prefect_psik import GlobusCollection, PruneReport, PruneVerdict, SpecError, TransferError, prune_plan
from prefect_psik import transfer_waits as waits
from prefect_psik.prune_plan import ROOM, ROOM_SECONDS, carry_out_plan, make_plan, refuse
from prefect_psik.transfer_local import LocalCarrier, digest
from prefect_psik.transfer_models import Order
from prefect_psik.transfer_runs import name_of
from tests.integration.transfer_places import Place

AGELESS = timedelta()
KEPT = (PruneVerdict.unproven, PruneVerdict.young)


class Transfer(LocalCarrier):
    """Globus Transfer on this disk: it names what it had to move. Each order is kept."""

    orders: list[Order]
    named: dict[str, set[str]]

    def __init__(self) -> None:
        self.orders, self.named = [], {}
        self.before: Callable[[Order], None] = lambda order: None

    async def submit(self, order: Order, submission_id: str) -> tuple[str, bool]:
        self.before(order)
        self.orders.append(order)
        differ = {one for one, other in order.items if order.destination and not _same(Path(one), Path(other))}
        self.named[submission_id] = differ
        return await super().submit(order, submission_id)

    async def moved(self, task_id: str) -> set[str]:
        return self.named[task_id]


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and digest(one) == digest(other)


@pytest.fixture
def transfer(monkeypatch: pytest.MonkeyPatch) -> Transfer:
    found = Transfer()
    monkeypatch.setattr(waits, "LOCAL_PAUSES_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(prune_plan, "globus_carrier_of", lambda collection: found)
    monkeypatch.setattr(
        prune_plan, "carrier_of", lambda collection: found if collection.collection_id else LocalCarrier()
    )
    return found


@pytest.fixture(params=["local", "transfer"])
def places(request: pytest.FixtureRequest, tmp_path: Path, transfer: Transfer) -> tuple[Place, Place]:
    """The source, and the check."""
    one, other = (_place(tmp_path / name, on_globus=request.param == "transfer") for name in ("away", "home"))
    return one, other


@pytest.fixture
def on_globus(tmp_path: Path, transfer: Transfer) -> tuple[Place, Place]:
    return _place(tmp_path / "away", on_globus=True), _place(tmp_path / "home", on_globus=True)


def _place(root: Path, *, on_globus: bool) -> Place:
    root.mkdir()
    return Place(GlobusCollection(collection_id=uuid.uuid4() if on_globus else None, base_path=str(root)), root)


async def _plan(
    source: Place, check: Place, path: str = "rec", age: timedelta = AGELESS, *, dry_run: bool = False
) -> PruneReport:
    return await make_plan(source.block, check.block, path, age, dry_run=dry_run)


async def _prune(source: Place, check: Place, path: str = "rec") -> PruneReport:
    return await carry_out_plan(source.block, check.block, await _plan(source, check, path))


def _both(places: tuple[Place, Place], *names: str, content: bytes = b"0123456789") -> None:
    for place in places:
        for name in names:
            place.write(name, content)


def _reasons(report: PruneReport) -> dict[str, str]:
    return {file.path: file.reason for file in report.having(*KEPT)}


async def test_what_the_check_holds_goes_and_all_else_stays(places: tuple[Place, Place]) -> None:
    away, home = places
    _both(places, "rec/held", "rec/sub/held", "rec/lacking", "rec/longer", "rec/other", "rec/kind", "beside")
    (home.root / "rec/lacking").unlink()
    home.write("rec/longer", bytes(12345))
    home.write("rec/other", b"012345678X")
    (home.root / "rec/kind").unlink()
    (home.root / "rec/kind").symlink_to("held")
    (away.root / "rec/link").symlink_to("held")
    before = home.files()

    report = await _prune(away, home)

    assert sorted(away.files()) == ["beside", "rec/kind", "rec/lacking", "rec/longer", "rec/other"]
    assert (away.root / "rec/link").is_symlink()
    assert home.files() == before
    assert not list(home.root.rglob(f"{ROOM}*"))
    assert _reasons(report) == {
        "rec/kind": "is a link at the check",
        "rec/lacking": "is not there at the check",
        "rec/link": "is a link, and only files are compared",
        "rec/longer": "has 10 bytes, and 12,345 at the check",
        "rec/other": "has another checksum at the check",
    }
    assert [file.path for file in report.having(PruneVerdict.deleted)] == ["rec/held", "rec/sub/held"]
    [held] = [file for file in report.files if file.path == "rec/held"]
    assert held.check_modified == (home.root / "rec/held").stat().st_mtime
    assert (report.source, report.check, report.path) == (*(name_of(p.block) for p in places), "rec")


async def test_a_single_file(places: tuple[Place, Place]) -> None:
    away, home = places
    _both(places, "rec/one", "rec/two")
    await _prune(away, home, "rec/one")
    assert list(away.files()) == ["rec/two"]
    assert sorted(home.files()) == ["rec/one", "rec/two"]


async def test_a_path_that_is_nowhere_has_no_files(places: tuple[Place, Place]) -> None:
    assert (await _prune(*places, "never")).files == []
    away, home = places
    away.write("rec/a")
    assert _reasons(await _plan(away, home)) == {"rec/a": "is not there at the check"}


async def test_a_collection_that_cannot_be_listed_is_not_an_empty_one(
    places: tuple[Place, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def denied(*_: object, **__: object) -> None:
        raise TransferError("You may not.")

    monkeypatch.setattr(prune_plan, "list_below", denied)
    with pytest.raises(TransferError, match="may not"):
        await _plan(*places)


async def test_young_files_stay_by_their_age_at_the_source(places: tuple[Place, Place]) -> None:
    away, home = places
    away.write("rec/old", age=7200)
    away.write("rec/young", age=1800)
    for name in ("old", "young"):
        home.write(f"rec/{name}", age=60)
    report = await _plan(away, home, age=timedelta(hours=1), dry_run=True)
    assert report.dry_run
    assert {file.path: file.verdict for file in report.files} == {
        "rec/old": PruneVerdict.delete,
        "rec/young": PruneVerdict.young,
    }
    assert _reasons(report) == {"rec/young": "changed less than 1:00:00 ago"}


@pytest.mark.parametrize("end", [0, 1])
async def test_what_is_still_written_proves_nothing(
    places: tuple[Place, Place], end: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _both(places, "rec/a")
    file = places[end].root / "rec/a"
    future = time.time() + 60
    os.utime(file, (future, future))
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert _reasons(await _plan(*places)) == {"rec/a": "was changed less than 3 s ago, there or at the check"}
    assert slept == [3.0]


async def test_what_has_just_arrived_is_looked_at_again(
    places: tuple[Place, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    _both(places, "rec/a")
    away, home = places
    home.write("rec/a", b"0123456789", age=0)

    async def sleep(seconds: float) -> None:
        home.write("rec/a", b"0123456789", age=60)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert (await _plan(away, home)).having(PruneVerdict.delete)


@pytest.mark.parametrize(("end", "words"), [(0, "changed while"), (1, "changed at the check while")])
@pytest.mark.parametrize("change", ["size", "time", "gone", "kind"])
async def test_what_changes_after_the_proof_stays(
    places: tuple[Place, Place], end: int, words: str, change: str
) -> None:
    away, home = places
    _both(places, "rec/a", "rec/b")
    report = await _plan(away, home)
    file = places[end].root / "rec/a"
    stat = file.stat()
    if change == "time":
        os.utime(file, (1.0, 1.0))
    else:
        file.unlink()
    if change == "size":
        file.write_bytes(b"01234567890")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "kind":
        file.symlink_to("b")
    report = await carry_out_plan(away.block, home.block, report)
    assert _reasons(report) == {"rec/a": f"{words} it was compared"}
    assert (file.name in os.listdir(file.parent)) is (change != "gone")
    assert not (away.root / "rec/b").exists()


async def test_many_files_are_several_tasks(
    on_globus: tuple[Place, Place], transfer: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune_plan, "FILES_PER_TASK", 2)
    away, home = on_globus
    _both(on_globus, *(f"rec/{n}" for n in range(5)))
    home.write("rec/4", b"012345678X")
    assert _reasons(await _prune(away, home)) == {"rec/4": "has another checksum at the check"}
    assert list(away.files("rec")) == ["4"]
    sizes = [(order.destination is None, len(order.items)) for order in transfer.orders]
    assert sizes == [(False, 2)] * 4 + [(False, 1)] * 2 + [(True, 1)] + [(True, 2)] * 2
    assert all(order.deadline and 86000 < order.deadline - time.time() <= 86400 for order in transfer.orders)


def test_a_prune_that_can_prove_nothing_is_refused(places: tuple[Place, Place], tmp_path: Path) -> None:
    away, home = places
    assert refuse(away.block, home.block, "rec") is home.block
    for path in ("", ".", "./", "a/..", "../rec"):
        with pytest.raises(SpecError):
            refuse(away.block, home.block, path)
    with pytest.raises(SpecError, match="needs a check"):
        refuse(away.block, None, "rec")
    with pytest.raises(SpecError, match="the same directory"):
        refuse(away.block, away.block.model_copy(), "rec")
    below = away.block.model_copy(update={"base_path": f"{away.root}/below"})
    assert refuse(away.block, below, "rec") is below
    other = away.block.model_copy(update={"collection_id": None if away.block.collection_id else uuid.uuid4()})
    with pytest.raises(SpecError, match="cannot be compared"):
        refuse(away.block, other, "rec")


async def test_one_file_under_two_names_is_no_copy(tmp_path: Path, transfer: Transfer) -> None:
    away, home = (_place(tmp_path / name, on_globus=False) for name in ("away", "home"))
    away.write("rec/a")
    (home.root / "rec").mkdir()
    os.link(away.root / "rec/a", home.root / "rec/a")
    assert _reasons(await _prune(away, home)) == {"rec/a": "is the same file as at the check, not a copy"}
    (tmp_path / "link").symlink_to(away.root)
    with pytest.raises(SpecError, match="the same directory"):
        refuse(away.block, GlobusCollection(base_path=str(tmp_path / "link")), "rec")


async def test_one_directory_under_two_collections_is_no_copy(
    on_globus: tuple[Place, Place], transfer: Transfer
) -> None:
    away, _ = on_globus
    away.write("rec/a")
    twin = Place(away.block.model_copy(update={"collection_id": uuid.uuid4()}), away.root)
    with pytest.raises(SpecError, match="the same directory"):
        await _plan(away, twin)
    assert away.files() == {"rec/a": b"content"}, "and the room is removed"
    assert not list(away.root.rglob(f"{ROOM}*"))


async def test_numbers_and_names_of_transfer_that_do_not_agree_prove_nothing(
    on_globus: tuple[Place, Place], transfer: Transfer
) -> None:
    away, home = on_globus
    _both(on_globus, "rec/a")
    original = transfer.moved

    async def moved(task_id: str) -> set[str]:
        found = await original(task_id)
        return {f"/elsewhere{path}" for path in found} or {"/more"}

    for named, words in ((lambda _: asyncio.sleep(0, set()), "names 0 as moved"), (moved, "not submitted under")):
        transfer.moved = named  # type: ignore[method-assign]
        with pytest.raises(TransferError, match=words):
            await _plan(away, home)
        assert not list(home.root.rglob(f"{ROOM}*"))
    assert list(away.files()) == list(home.files()) == ["rec/a"]


async def test_rooms_that_killed_prunes_left_are_removed_when_no_prune_can_use_them(
    on_globus: tuple[Place, Place], transfer: Transfer
) -> None:
    away, home = on_globus
    _both(on_globus, "rec/a")
    for name, age in ((f"{ROOM}old", ROOM_SECONDS + 60), (f"{ROOM}new", ROOM_SECONDS - 600), ("mine", 1e6)):
        home.write(f"rec/{name}/a")
        moment = time.time() - age
        os.utime(home.root / "rec" / name, (moment, moment))
    home.write(f"rec/{ROOM}file", age=1e6)
    report = await _plan(away, home)
    assert sorted(home.files("rec")) == [f"{ROOM}file", f"{ROOM}new/a", "a", "mine/a"]
    assert [file.path for file in report.files] == ["rec/a"]
    home_first = await make_plan(home.block, away.block, "rec", AGELESS, dry_run=False)
    assert [file.path for file in home_first.files] == ["rec/a", "rec/mine/a"], "rooms are not pruned"


async def test_a_room_that_may_not_be_removed_does_not_stop_a_prune(
    on_globus: tuple[Place, Place], transfer: Transfer
) -> None:
    away, home = on_globus
    _both(on_globus, "rec/a")
    home.write(f"rec/{ROOM}old/a")
    os.utime(home.root / f"rec/{ROOM}old", (1.0, 1.0))

    def denied(order: Order) -> None:
        if order.items[0][0].endswith(f"{ROOM}old"):
            raise TransferError("You may not.")

    transfer.before = denied
    assert (await _plan(away, home)).having(PruneVerdict.delete)


async def test_a_prune_that_is_stopped_removes_its_room_without_waiting(
    on_globus: tuple[Place, Place], transfer: Transfer
) -> None:
    away, home = on_globus
    _both(on_globus, "rec/a")
    begun = asyncio.Event()

    def stop(order: Order) -> None:
        if order.source == str(away.block.collection_id):
            begun.set()

    transfer.before = stop
    task = asyncio.create_task(_plan(away, home))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    last = transfer.orders[-1]
    assert (last.destination, last.recursive, ROOM in last.items[0][0]) == (None, True, True)
    assert replace(last, items=[], recursive=False, label="") == replace(
        Order(str(home.block.collection_id), None, []), label=""
    )
    async with asyncio.timeout(20):
        while list(home.root.rglob(f"{ROOM}*")):
            await asyncio.sleep(0.01)

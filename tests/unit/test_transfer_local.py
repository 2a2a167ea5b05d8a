"""Copies between directories of this machine: bytes, modes, times, and what is left on disk."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefect_psik import (
    GlobusCollection,
    SpecError,
    TransferCause,
    TransferError,
    TransferResult,
    delete_files,
    list_files,
    run_transfer,
)
from prefect_psik.data.carriers import local as transfer_local
from prefect_psik.data.carriers.file import PART, Changed, IrregularFile, copy_file, open_file
from prefect_psik.data.carriers.local import LocalCarrier
from prefect_psik.data.submit import list_below
from prefect_psik.models.transfers import Order, TransferStatus

OLD = time.time() - 1000


@pytest.fixture
def ends(tmp_path: Path) -> tuple[Path, Path]:
    """Two directories: home, which has a file, and away, which is empty."""
    home, away = tmp_path / "home", tmp_path / "away"
    (home / "d").mkdir(parents=True)
    away.mkdir()
    _write(home / "d" / "file", b"old content")
    return home, away


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.utime(path, (OLD, OLD))


def _move(ends: tuple[Path, Path], items: Any = "d", **options: Any) -> TransferResult:
    home, away = (GlobusCollection(base_path=str(end)) for end in ends)
    return run_transfer.fn(home, away, items, **options)


def _below(path: Path) -> list[str]:
    return sorted(str(one.relative_to(path)) for one in path.rglob("*"))


# --------------------------------------------------------------------------------- one state of the source


def _replaced(path: Path) -> None:
    path.write_bytes(b"new content")
    os.utime(path, (OLD, OLD))  # as `cp -p` does it: only ctime tells


def _grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b", more")


def _shrunk(path: Path) -> None:
    os.truncate(path, 3)


def _while_it_is_read(monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], times: int) -> None:
    """Have a file changed while it is copied, in so many copies."""
    left = [change] * times

    def disturbed(source: Path, target: Path, step: Callable[[int], None]) -> int:
        changes = [left.pop()] if left else []

        def changing(size: int) -> None:
            if changes and size:
                changes.pop()(source)
            step(size)

        return copy_file(source, target, changing)

    monkeypatch.setattr(transfer_local, "copy_file", disturbed)


@pytest.mark.parametrize("change", [_replaced, _grown, _shrunk])
def test_a_file_that_changes_while_it_is_read_is_copied_once_more(
    ends: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    home, away = ends
    _while_it_is_read(monkeypatch, change, 1)
    found = _move(ends)
    one, other = home / "d" / "file", away / "d" / "file"
    assert other.read_bytes() == one.read_bytes() != b"old content"
    assert other.stat().st_mtime_ns == one.stat().st_mtime_ns
    assert (found.faults, found.bytes_transferred) == (1, one.stat().st_size)


def test_a_file_that_changes_again_fails_and_leaves_the_destination_as_it_was(
    ends: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, away = ends
    (away / "d").mkdir()
    _write(away / "d" / "file", b"the copy before")
    _while_it_is_read(monkeypatch, _grown, 2)
    with pytest.raises(TransferError) as caught:
        _move(ends)
    words = (
        f"failed (changed, after 1 faults): {ends[0]}/d/file changed twice while it was being read; 0 of 0 files"
    )
    assert words in str(caught.value)
    assert str(caught.value).endswith("Retry when nothing is writing to the file.")
    assert (caught.value.cause, caught.value.transient) == (TransferCause.changed, True)
    assert _below(away) == ["d", "d/file"]
    assert (away / "d" / "file").read_bytes() == b"the copy before"


def test_a_change_in_the_tick_of_the_one_before_is_seen(
    ends: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 6.13, and on file servers, two writes within 10 ms can get the same time."""
    home, away = ends
    file = home / "d" / "file"
    fstat = os.fstat

    def coarse(descriptor: int) -> SimpleNamespace:
        found = fstat(descriptor)
        fields = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        times = {name: fields[name] // 10_000_000 * 10_000_000 for name in ("st_mtime_ns", "st_ctime_ns")}
        return SimpleNamespace(**fields | times)

    monkeypatch.setattr(os, "fstat", coarse)

    def change(size: int) -> None:
        if size:
            file.write_bytes(b"new content")

    for _ in range(20):
        file.write_bytes(b"old content")
        with pytest.raises(Changed):
            copy_file(file, away / "copy", change)
    assert _below(away) == []


def test_the_time_is_the_one_before_the_read_so_that_a_later_sync_repairs(
    ends: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, away = ends
    fsync = os.fsync

    def late(descriptor: int) -> None:
        (home / "d" / "file").write_bytes(b"new content")
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", late)
        _move(ends)
    assert (away / "d" / "file").read_bytes() == b"old content"
    assert (away / "d" / "file").stat().st_mtime == pytest.approx(OLD, abs=1e-3)
    assert _move(ends, sync="mtime").files_transferred == 1
    assert (away / "d" / "file").read_bytes() == b"new content"


@pytest.mark.parametrize(("sync", "repaired"), [("checksum", True), ("mtime", False), ("size", False)])
def test_only_checksums_find_a_copy_of_the_right_size_and_time(
    ends: tuple[Path, Path], sync: str, repaired: bool
) -> None:
    _, away = ends
    (away / "d").mkdir()
    _write(away / "d" / "file", b"bad content")
    assert _move(ends, sync=sync).files_transferred == int(repaired)
    expected = b"old content" if repaired else b"bad content"
    assert (away / "d" / "file").read_bytes() == expected


def test_a_copy_that_cannot_be_read_back_is_not_left(
    ends: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, away = ends
    fsync = os.fsync

    def flips_a_bit(descriptor: int) -> None:
        fsync(descriptor)
        os.pwrite(descriptor, b"O", 0)

    monkeypatch.setattr(os, "fsync", flips_a_bit)
    with pytest.raises(TransferError) as caught:
        _move(ends)
    assert caught.value.cause is TransferCause.checksum
    assert _below(away) == ["d"]


# --------------------------------------------------------------------------------- modes and attributes


@pytest.mark.parametrize(("mode", "expected"), [(0o6755, 0o755), (0o1777, 0o777), (0o600, 0o600), (0o444, 0o444)])
def test_of_the_mode_only_the_permissions_are_copied(ends: tuple[Path, Path], mode: int, expected: int) -> None:
    home, away = ends
    (home / "d" / "file").chmod(mode)
    _move(ends)
    assert stat.S_IMODE((away / "d" / "file").stat().st_mode) == expected


def test_extended_attributes_are_not_copied(ends: tuple[Path, Path]) -> None:
    home, away = ends
    try:
        os.setxattr(home / "d" / "file", "user.note", b"x")
    except OSError as err:
        pytest.skip(f"this file system has no attributes of users: {err}")
    if os.geteuid() == 0:
        capability = bytes.fromhex("0100000280000000000000000000000000000000")  # cap_setuid, effective
        os.setxattr(home / "d" / "file", "security.capability", capability)
    _move(ends)
    assert os.listxattr(home / "d" / "file") != []
    assert os.listxattr(away / "d" / "file") == []


def test_nobody_else_can_read_a_copy_before_it_has_its_permissions(
    ends: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _ = ends
    (home / "d" / "file").chmod(0o600)
    seen: list[int] = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    umask = os.umask(0)
    try:
        _move(ends)
    finally:
        os.umask(umask)
    assert seen == [0o600]


# --------------------------------------------------------------------------------- refused, and nothing written


@pytest.mark.parametrize(
    "items",
    [
        [("d/1", "x"), ("d/2", "x")],
        [("d/1", "x"), ("d/2", "./x/.")],
        [("d/1", "x/1"), ("d/2", "x//1")],
        [("d/1", "link/1"), ("d/2", "real/1")],
        [("d", "x"), ("e/1", "x/1")],
        [("e/1", "x/1"), ("d", "x")],
    ],
)
def test_two_items_with_one_destination(ends: tuple[Path, Path], items: list[tuple[str, str]]) -> None:
    home, away = ends
    (home / "e").mkdir()
    for path in ("d/1", "d/2", "e/1"):
        (home / path).write_text(path)
    (away / "real").mkdir()
    (away / "link").symlink_to("real")
    with pytest.raises(SpecError, match="both go to") as caught:
        _move(ends, items)
    assert "destination of its own" in str(caught.value)
    assert _below(away) == ["link", "real"]


def test_items_beside_and_below_each_other_are_no_matter(ends: tuple[Path, Path]) -> None:
    home, away = ends
    (home / "e").mkdir()
    (home / "e" / "1").write_text("one")
    assert _move(ends, [("d", "x"), ("e", "x/e"), ("d/file", "y")]).files == 3
    assert _below(away) == ["x", "x/e", "x/e/1", "x/file", "y"]


@pytest.mark.parametrize("target", ["d", "d/sub", "d/sub/sub", "link", "link/sub", "above/d/sub"])
def test_a_directory_into_itself(ends: tuple[Path, Path], target: str) -> None:
    home, _ = ends
    (home / "link").symlink_to("d")
    (home / "above").symlink_to(".")
    before = _below(home)
    with pytest.raises(SpecError, match="into itself"):
        _move((home, home), [("d", target)])
    assert _below(home) == before


@pytest.mark.parametrize("base", ["", "home", "./home", "~", "$HOME"])
def test_a_base_path_that_is_not_absolute(
    ends: tuple[Path, Path], base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, away = ends
    monkeypatch.chdir(home.parent)
    block = GlobusCollection(base_path=base)
    good = GlobusCollection(base_path=str(away))
    before = _below(home.parent)
    for call in (
        lambda: run_transfer.fn(block, good, "d"),
        lambda: run_transfer.fn(good, block, "d"),
        lambda: list_files.fn(block),
        lambda: delete_files.fn(block, "d", recursive=True),
    ):
        with pytest.raises(SpecError, match="absolute path"):
            call()
    assert _below(home.parent) == before


# --------------------------------------------------------------------------------- what is no file


def _special(path: Path, kind: str) -> None:
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            here = Path.cwd()
            os.chdir(path.parent)  # the path of a socket is short
            server.bind(path.name)
            os.chdir(here)
    else:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))


@pytest.fixture(params=["FIFO", "socket", "device"])
def special(request: pytest.FixtureRequest, ends: tuple[Path, Path]) -> str:
    """A thing in home's directory that is no file."""
    if request.param == "device" and os.geteuid() != 0:
        pytest.skip("only root makes devices")
    _special(ends[0] / "d" / "special", request.param)
    return str(request.param)


def test_what_is_no_file_is_left_out_of_a_directory_and_counted(ends: tuple[Path, Path], special: str) -> None:
    home, away = ends
    found = _move(ends, deadline=timedelta(seconds=60))
    assert _below(away) == ["d", "d/file"]
    [left] = found.left_out
    assert (left.reason, left.count, left.paths) == (special, 1, [str(home / "d" / "special")])
    assert found.files == 1


def test_what_is_no_file_is_refused_as_an_item(ends: tuple[Path, Path], special: str) -> None:
    _, away = ends
    with pytest.raises(SpecError, match=f"is a {special}, and only files"):
        _move(ends, [("d/file", "file"), ("d/special", "special")])
    assert _below(away) == []


def test_a_file_that_became_something_else_after_the_look_is_not_opened(
    ends: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _ = ends
    before = (home / "d" / "file").lstat()
    os.mkfifo(home / "fifo")
    (home / "link").symlink_to("d/file")
    monkeypatch.setattr(Path, "lstat", lambda path: before)
    with pytest.raises(IrregularFile, match="is a FIFO"):
        open_file(home / "fifo")
    with pytest.raises(OSError, match="symbolic links"):
        open_file(home / "link")


def test_a_fifo_at_the_destination_is_replaced(ends: tuple[Path, Path]) -> None:
    _, away = ends
    (away / "d").mkdir()
    os.mkfifo(away / "d" / "file")
    assert _move(ends).files_transferred == 1
    assert (away / "d" / "file").read_bytes() == b"old content"


def test_the_deadline_holds_while_checksums_are_compared(ends: tuple[Path, Path]) -> None:
    for end in ends:
        (end / "d").mkdir(exist_ok=True)
        (end / "d" / "huge").touch()
        os.truncate(end / "d" / "huge", 256 * 1024**3)  # takes no room, and minutes to read
    begin = time.monotonic()
    with pytest.raises(TransferError) as caught:
        _move(ends, deadline=timedelta(seconds=1))
    assert caught.value.cause is TransferCause.deadline
    assert time.monotonic() - begin < 30


# --------------------------------------------------------------------------------- links and directories


def test_links_of_a_directory_are_left_out_and_counted_by_where_they_lead(ends: tuple[Path, Path]) -> None:
    home, away = ends
    (home / "d" / "inside").symlink_to("file")
    (home / "d" / "dangling").symlink_to("nothing")
    (home / "d" / "etc").symlink_to("/etc")
    for number in range(7):
        (home / "d" / f"out{number}").symlink_to("/etc/hostname")
    found = _move(ends)
    assert _below(away) == ["d", "d/file"]
    assert {one.reason: one.count for one in found.left_out} == {
        "link": 2,
        "link that leads out of the base path": 8,
    }
    assert [len(one.paths) for one in found.left_out] == [2, 5]


def test_a_link_that_is_an_item_is_followed_within_the_base_path(ends: tuple[Path, Path]) -> None:
    home, away = ends
    (home / "link").symlink_to("d/file")
    (home / "all").symlink_to("d")
    _move(ends, [("link", "one"), ("all", "two"), ("all/file", "three")])
    assert _below(away) == ["one", "three", "two", "two/file"]
    assert not any((away / name).is_symlink() for name in ("one", "two", "three"))


@pytest.mark.parametrize("item", ["link", "out/secret", "out"])
def test_no_item_leads_out_of_the_base_path_by_a_link(ends: tuple[Path, Path], item: str) -> None:
    home, away = ends
    outside = home.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (home / "link").symlink_to(outside / "secret")
    (home / "out").symlink_to(outside)
    with pytest.raises(SpecError, match="out of the base path"):
        _move(ends, [("d", "d"), (item, "copy")])
    assert _below(away) == []


@pytest.mark.parametrize("target", ["out/x", "out", "d"])
def test_nothing_is_written_through_a_link_that_leads_out_of_the_base_path(
    ends: tuple[Path, Path], target: str
) -> None:
    home, away = ends
    outside = home.parent / "outside"
    outside.mkdir()
    (home / "d" / "sub").mkdir()
    (home / "d" / "sub" / "1").write_text("one")
    (away / "out").symlink_to(outside)
    (away / "d").mkdir()
    (away / "d" / "sub").symlink_to(outside)
    with pytest.raises((SpecError, TransferError), match="out of the base path"):
        _move(ends, [("d", target)])
    assert _below(outside) == []


def test_nothing_is_deleted_through_a_link_that_leads_out_of_the_base_path(ends: tuple[Path, Path]) -> None:
    home, away = ends
    (away / "kept").write_text("kept")
    (home / "out").symlink_to(away)
    block = GlobusCollection(base_path=str(home))
    with pytest.raises(SpecError, match="out of the base path"):
        delete_files.fn(block, "out/kept")
    delete_files.fn(block, "out")
    assert (_below(away), _below(home)) == (["kept"], ["d", "d/file"])


def test_a_link_at_the_destination_is_no_copy(ends: tuple[Path, Path]) -> None:
    _, away = ends
    (away / "d").mkdir()
    (away / "same").write_bytes(b"old content")
    (away / "d" / "file").symlink_to("../same")
    assert _move(ends).files_transferred == 1
    assert not (away / "d" / "file").is_symlink()


def test_marks_of_prunes_are_not_copied(ends: tuple[Path, Path]) -> None:
    home, away = ends
    for name in ("d/.prefect-psik-prune-check-1", "d/.prefect-psik-prune-source-2", "d/empty"):
        (home / name).mkdir(parents=True)
    _move(ends)
    assert _below(away) == ["d", "d/empty", "d/file"]


def test_empty_directories_are_made(ends: tuple[Path, Path]) -> None:
    home, away = ends
    (home / "d" / "empty" / "too").mkdir(parents=True)
    (home / "e").mkdir()
    found = _move(ends, [("d", "d"), ("e", "e")])
    assert _below(away) == ["d", "d/empty", "d/empty/too", "d/file", "e"]
    assert (found.files, found.left_out) == (1, [])


def test_a_tree_may_be_deep(ends: tuple[Path, Path]) -> None:
    home, away = ends
    deep = str(home / "d")
    for _ in range(1200):
        deep += "/x"
        os.mkdir(deep)
    Path(deep, "file").write_text("down here")
    try:
        assert _move(ends).files == 2
        assert Path(deep.replace(str(home), str(away)), "file").read_text() == "down here"
    finally:  # before pytest does it recursively
        subprocess.run(["rm", "-rf", str(home), str(away)], check=True)


# --------------------------------------------------------------------------------- names


def test_a_name_that_is_no_text_is_copied_and_can_be_told(ends: tuple[Path, Path]) -> None:
    home, away = ends
    name = os.fsdecode(b"scan\xe9\n.h5")
    (home / "d" / name).write_text("x")
    (home / "d" / f"{name}link").symlink_to("file")
    found = _move(ends)
    assert (away / "d" / name).read_text() == "x"
    assert TransferResult.model_validate_json(found.model_dump_json()) == found
    assert found.left_out[0].paths == [f"{home}/d/scan\\xe9\\n.h5link"]


def test_only_our_own_parts_are_taken_for_parts(ends: tuple[Path, Path]) -> None:
    home, away = ends
    (away / "d").mkdir()
    part = f".{'0' * 32}{PART}"
    for path in (home / "d" / part, home / "d" / f"x{PART}", away / "d" / part, away / "d" / f".mine{PART}"):
        _write(path, b"x")
    found = _move(ends)
    assert _below(away) == ["d", f"d/.mine{PART}", "d/file", f"d/x{PART}"]
    assert [(one.reason, one.count) for one in found.left_out] == [("unfinished copy", 1)]


# --------------------------------------------------------------------------------- known again


def _carry_out(carrier: LocalCarrier, source: Path, target: Path) -> tuple[str, TransferStatus]:
    async def work() -> tuple[str, TransferStatus]:
        order = Order("local", "local", [(str(source), str(target))])
        task_id, _ = await carrier.submit(order, await carrier.reserve())
        while not (status := await carrier.look(task_id)).state.is_final:
            await asyncio.sleep(0.01)
        return task_id, status

    return asyncio.run(work())


async def test_another_process_knows_a_copy_again_by_names_and_sizes(
    ends: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, away = ends
    (home / "d" / "more").write_text("more")
    carrier = LocalCarrier()
    task_id, status = await asyncio.to_thread(_carry_out, carrier, home / "d", away / "d")
    arrival = await carrier.arrival(task_id)
    assert arrival is not None
    monkeypatch.setattr(transfer_local, "_tasks", {})
    with pytest.raises(TransferError, match="has ended"):
        await carrier.look(task_id)
    await carrier.recall(task_id, type(arrival).model_validate_json(arrival.model_dump_json()))
    assert await carrier.look(task_id) == status
    files = {str(away / "d" / "file"): 11, str(away / "d" / "more"): 4}
    assert await carrier.holds(task_id, files | {"something else": 1})
    assert not await carrier.holds(task_id, files | {str(away / "d" / "more"): 5})
    assert not await carrier.holds(task_id, {str(away / "d" / "file"): 11, str(away / "d" / "other"): 4})


async def test_what_is_too_much_to_keep_is_not_known_again(
    ends: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, away = ends
    monkeypatch.setattr(transfer_local, "MOST_NAMES", 1)
    carrier = LocalCarrier()
    task_id, _ = await asyncio.to_thread(_carry_out, carrier, home / "d", away / "d")
    assert await carrier.arrival(task_id) is not None
    (home / "d" / "more").write_text("more")
    task_id, _ = await asyncio.to_thread(_carry_out, carrier, home / "d", away / "d")
    assert await carrier.arrival(task_id) is None
    assert not await carrier.holds(task_id, {str(away / "d" / "file"): 11, str(away / "d" / "more"): 4})


@pytest.mark.parametrize("base", ["", "/", "//"])
@pytest.mark.parametrize("path", ["rec", "rec/", "./rec", "rec//.", "", ".", "rec/sub", "rec/1"])
def test_paths_of_a_list_are_below_the_base_path_however_they_are_spelled(
    tmp_path: Path, base: str, path: str
) -> None:
    (tmp_path / "rec/sub").mkdir(parents=True)
    for name in ("1", "sub/rec"):
        (tmp_path / "rec" / name).write_text("x")
    collection = GlobusCollection(base_path=f"{tmp_path}{base}")
    listed = asyncio.run(list_below(LocalCarrier(), collection, collection.path(path), recursive=True))
    everything = ["rec", "rec/1", "rec/sub", "rec/sub/rec"]
    top = os.path.normpath(path or ".")
    below = [name for name in everything if top == "." or name.startswith(f"{top}/")]
    assert [entry.path for entry in listed] == (below or [top])

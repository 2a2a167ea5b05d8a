"""Prunes between directories of this machine: the same disk by two ways, changes, odd names, marks of the dead."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from prefect_psik import PruneReport, PruneVerdict, SpecError, TransferError
from prefect_psik.data.marks import LEASE_SECONDS, PREFIX, SKEW_SECONDS, Mark, MarkKind, activate, deactivate
from prefect_psik.data.proof import local as prune_local
from prefect_psik.data.proof.plan import Prune
from tests.integration.transfer_places import Place, local
from tests.unit.test_prune_plan import done, planned

FILES = [f"rec/sub/scan{number}.h5" for number in range(3)]


@pytest.fixture
def places(tmp_path: Path) -> tuple[Place, Place]:
    return local(tmp_path / "away"), local(tmp_path / "home")


def marks_in(*places: Place) -> list[Path]:
    return sorted(path for place in places for path in place.root.rglob(f"{PREFIX}*"))


def reasons(report: PruneReport) -> dict[str, str]:
    return {file.path: file.reason for file in report.unproven}


# ------------------------------------------------------------------------------- one directory, two ways in


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Mounts something for one test; where that is not possible the test is skipped with the reason."""
    mounted: list[str] = []

    def at(place: Path, *command: str) -> None:
        program = shutil.which(command[0])
        if program is None:
            pytest.skip(f"{command[0]} is not installed")
        ran = subprocess.run([program, *command[1:], str(place)], capture_output=True, text=True, check=False)
        if ran.returncode:
            pytest.skip(f"{command[0]} does not work here: {ran.stderr.strip()}")
        mounted.append(str(place))

    yield at
    for place in reversed(mounted):
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("where", ["", "rec", "rec/sub"], ids=["base", "path", "subdirectory"])
@pytest.mark.parametrize("way", ["bind", "bindfs", "overlay", "overlay read-only", "overlay is pruned", "link"])
async def test_a_check_that_is_the_source_by_another_way_in_is_no_copy(
    places: tuple[Place, Place], tmp_path: Path, mount: Callable[..., None], way: str, where: str
) -> None:
    """Names, sizes, checksums agree, and through some of these ways device and inode do not."""
    away, home = places
    for file in FILES:
        away.write(file, os.urandom(1000))
    disk, other = away.root / where, home.root / where
    other.mkdir(parents=True, exist_ok=True)
    if way == "link":
        other.rmdir()
        other.symlink_to(disk)
    elif way.startswith("overlay"):
        layers = [tmp_path / "layers" / name for name in ("up", "work", "more")]
        for layer in layers:
            layer.mkdir(parents=True)
        up, work, more = layers
        written = f"lowerdir={disk},upperdir={up},workdir={work}"
        options = f"lowerdir={disk}:{more}" if way == "overlay read-only" else written
        mount(other, "mount", "-t", "overlay", "psik-test", "-o", options)
    else:
        mount(other, *(["mount", "--bind"] if way == "bind" else ["bindfs"]), str(disk))
    before = away.files()
    source, check = (home, away) if way == "overlay is pruned" else (away, home)
    caught: SpecError | None = None
    try:
        report = await done(source.block, check.block, "rec")
    except SpecError as err:
        caught = err
    if caught is None:  # what cannot be marked, or not be followed, proves nothing
        assert way in ("overlay read-only", "link")
        assert set(reasons(report)) == set(FILES)
        assert "Read-only file system" in str(reasons(report)) or way == "link"
    else:
        assert "are the same directory: one copy proves nothing" in str(caught)
    assert away.files() == home.files() == before or way == "link"
    assert away.files() == before
    assert marks_in(away) == []


async def test_a_second_copy_on_a_mount_of_its_own_is_one(
    places: tuple[Place, Place], tmp_path: Path, mount: Callable[..., None]
) -> None:
    away, home = places
    mount(home.root, "mount", "-t", "tmpfs", "psik-test")
    for place in places:
        for file in FILES:
            place.write(file, file.encode())
    assert len((await done(away.block, home.block, "rec")).having(PruneVerdict.deleted)) == len(FILES)
    assert (away.files(), len(home.files()), marks_in(away, home)) == ({}, len(FILES), [])


# ----------------------------------------------------------------------------------- changes since the proof


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("change", ["contents", "replaced", "touched back", "mode", "link"])
async def test_a_file_goes_only_in_the_state_that_was_proven(
    places: tuple[Place, Place], end: int, change: str
) -> None:
    for place in places:
        for file in FILES:
            place.write(file, file.encode())
    prune = Prune(places[0].block, places[1].block, "rec")
    await prune.make_plan()
    path = places[end].root / FILES[1]
    before = path.stat()
    if change == "contents":
        path.write_bytes(path.read_bytes().swapcase())
    elif change in ("replaced", "link"):
        path.rename(path.with_name("aside"))
        if change == "link":
            path.symlink_to("aside")
        else:
            shutil.copy2(path.with_name("aside"), path)
    elif change == "touched back":  # as rsync -t, cp -p and tar do: size and time are as before
        path.write_bytes(path.read_bytes().swapcase())
    elif change == "mode":
        path.chmod(0o600)
    if change in ("replaced", "touched back"):
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    report = await prune.carry_out()
    await prune.let_go()
    where = "changed at the check while it was compared" if end else "changed while it was compared"
    assert reasons(report) == {FILES[1]: where}
    assert [file for file in FILES if (places[0].root / file).exists()] == [FILES[1]]


async def test_a_file_that_is_written_while_others_are_deleted_stays(
    places: tuple[Place, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in places:
        for file in FILES:
            place.write(file, b"old data")
    last, unlink = places[0].root / FILES[-1], os.unlink

    def slow(path: str) -> None:
        unlink(path)
        if path.endswith(FILES[0]):
            last.write_bytes(b"NEW DATA")

    prune = Prune(places[0].block, places[1].block, "rec")
    await prune.make_plan()
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", slow)
        report = await prune.carry_out()
    await prune.let_go()
    assert reasons(report) == {FILES[-1]: "changed while it was compared"}
    assert last.read_bytes() == b"NEW DATA"


@pytest.mark.parametrize("most", [1, 7, 2**20], ids=["1 byte", "7 bytes", "all at once"])
async def test_files_are_compared_to_their_last_byte_however_they_are_read(
    places: tuple[Place, Place], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Some file systems hand out less than was asked for; large files are read in parts."""
    content = bytes(range(50))
    for place in places:
        for name in ("same", "first", "middle", "last", "empty"):
            place.write(f"rec/{name}", b"" if name == "empty" else content)
    for name, at in (("first", 0), ("middle", 16), ("last", 49)):
        places[1].write(f"rec/{name}", content[:at] + b"X" + content[at + 1 :])
    read = os.read
    with monkeypatch.context() as patched:
        patched.setattr(os, "read", lambda descriptor, size: read(descriptor, min(size, most)))
        patched.setattr(prune_local, "_CHUNK_BYTES", 16)
        report = await done(places[0].block, places[1].block, "rec")
    different = {f"rec/{name}": "has different contents at the check" for name in ("first", "last", "middle")}
    assert reasons(report) == different
    assert set(places[0].files()) == set(different)


@pytest.mark.parametrize("end", [0, 1])
async def test_what_is_no_file_any_more_when_it_is_compared_is_not_waited_for(
    places: tuple[Place, Place], end: int
) -> None:
    for place in places:
        place.write("rec/1", b"")
    report = await planned(places[0].block, places[1].block, "rec", dry_run=True)
    odd = places[end].root / "rec/1"
    odd.unlink()
    os.mkfifo(odd)
    work = prune_local.LocalPrune(places[0].block, places[1].block, "mark", time.time() + 60)
    where = "changed at the check while it was compared" if end else "changed while it was compared"
    assert await work.prove(report.files) == {"rec/1": where}
    assert stat.S_ISFIFO(odd.lstat().st_mode)


async def test_what_another_prune_took_away_is_gone_and_does_not_stay(places: tuple[Place, Place]) -> None:
    for place in places:
        for file in FILES:
            place.write(file, file.encode())
    slow, quick = Prune(places[0].block, places[1].block, "rec"), Prune(places[0].block, places[1].block, "rec")
    try:
        await slow.make_plan()
        assert len((await quick.make_plan()).having(PruneVerdict.delete)) == len(FILES)
        (places[0].root / FILES[0]).unlink()
        assert len((await quick.carry_out()).having(PruneVerdict.deleted)) == len(FILES) - 1
        report = await slow.carry_out()
    finally:
        await slow.let_go()
        await quick.let_go()
    assert [file.verdict for file in report.files] == [PruneVerdict.gone] * len(FILES)
    assert str(report).endswith(f": {len(FILES)} gone")
    assert set(places[1].files()) == set(FILES)


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_files_whose_file_system_went_away_are_not_gone(
    places: tuple[Place, Place], tmp_path: Path, is_replaced: bool
) -> None:
    for place in places:
        place.write(FILES[0])
    prune = Prune(places[0].block, places[1].block, "rec")
    disk = places[0].root / "rec/sub"
    try:
        await prune.make_plan()
        disk.rename(tmp_path / "disk")
        if is_replaced:
            disk.mkdir()
        report = await prune.carry_out()
        if is_replaced:
            disk.rmdir()
        (tmp_path / "disk").rename(disk)
    finally:
        await prune.let_go()
    assert reasons(report) == {FILES[0]: "changed while it was compared"}
    assert set(places[0].files()) == {FILES[0]}


async def test_what_cannot_be_deleted_stays_with_its_reason(
    places: tuple[Place, Place], tmp_path: Path, mount: Callable[..., None]
) -> None:
    for place in places:
        for file in FILES:
            place.write(file, file.encode())
    stuck = places[0].root / FILES[0]
    mount(stuck, "mount", "--bind", str(stuck))  # a file that is a mount point cannot be unlinked
    report = await done(places[0].block, places[1].block, "rec")
    assert reasons(report) == {FILES[0]: "could not be deleted: Device or resource busy"}
    assert set(places[0].files()) == {FILES[0]}


# ------------------------------------------------------------------------------------------------ odd names


@pytest.mark.parametrize(
    ("name", "shown", "reason"),
    [
        (b"new\nline.h5", r"rec/new\nline.h5", "has a control character in its name"),
        (b"a\x1b[31m.h5", r"rec/a\x1b[31m.h5", "has a control character in its name"),
        (b"scan\xe9.h5", r"rec/scan\xe9.h5", "has a name that is not UTF-8"),
        (b"scan\xe9/scan.h5", r"rec/scan\xe9/scan.h5", "has a name that is not UTF-8"),
        (b"a\rb/scan.h5", r"rec/a\rb/scan.h5", "has a control character in its name"),
    ],
)
async def test_one_odd_name_blocks_only_itself(
    places: tuple[Place, Place], name: bytes, shown: str, reason: str
) -> None:
    for place in places:
        place.write("rec/good.h5")
        place.write("rec/-rf ü☃ .h5")
        odd = Path(os.fsdecode(os.fsencode(place.root) + b"/rec/" + name))
        odd.parent.mkdir(exist_ok=True)
        shutil.copy2(place.root / "rec/good.h5", odd)
    report = await done(places[0].block, places[1].block, "rec")
    [file] = report.unproven
    assert (file.shown, file.reason.split(";")[0].split(",")[0]) == (shown, reason)
    assert [file.path for file in report.having(PruneVerdict.deleted)] == ["rec/-rf ü☃ .h5", "rec/good.h5"]
    left = [os.fsencode(path) for path in places[0].root.rglob("*") if path.is_file()]
    assert left == [os.fsencode(places[0].root) + b"/rec/" + name]
    assert report.model_validate_json(report.model_dump_json()) == report, "it can be stored"


# ---------------------------------------------------------------------------------------- marks of others


def both(places: tuple[Place, Place]) -> None:
    for place in places:
        for file in FILES:
            place.write(file, file.encode())


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("kind", list(MarkKind))
async def test_whoever_is_in_the_way_is_named(places: tuple[Place, Place], end: int, kind: MarkKind) -> None:
    """At the source somebody who relies on it; at the check somebody who deletes there."""
    both(places)
    other = replace(Mark.of("3b0dd9a5-9ac5-4d47-a3a6-2a4f8f3dd5c3", by_globus=False), kind=kind, host="worker-3")
    activate(other.id)
    mark = places[end].root / "rec" / other.name
    mark.mkdir()
    hinders = (end, kind) in ((0, MarkKind.check), (1, MarkKind.source))
    if hinders:
        with pytest.raises(TransferError) as caught:
            await done(places[0].block, places[1].block, "rec")
        assert caught.value.transient
        words = (
            f"process {os.getpid()} of flow run {other.flow_run} on worker-3, since 20",
            f"delete {mark} and all",
        )
        assert all(word in str(caught.value) for word in words)
        assert set(places[0].files()) == set(FILES)
    else:
        await done(places[0].block, places[1].block, "rec")
        assert not places[0].files()
    assert marks_in(*places) == [mark], "it is somebody else's"
    deactivate(other.id)
    both(places)
    await done(places[0].block, places[1].block, "rec")
    assert not places[0].files()
    assert marks_in(*places) == [], "its prune has ended"


_DIES = """
import asyncio, os, sys
from prefect_psik import GlobusCollection
from prefect_psik.data.proof.plan import Prune
source, check = (GlobusCollection(base_path=path) for path in sys.argv[1:])
asyncio.run(Prune(source, check, "rec").make_plan())
print("marked", flush=True)
sys.stdin.read()
"""


def test_a_mark_of_a_process_that_was_killed_hinders_nobody(places: tuple[Place, Place]) -> None:
    both(places)
    away, home = places
    command = [sys.executable, "-c", _DIES, str(away.root), str(home.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"marked\n"
            with pytest.raises(TransferError, match=f"process {process.pid} on "):
                asyncio.run(done(home.block, away.block, "rec"))
            assert len(asyncio.run(planned(away.block, home.block, "rec")).having(PruneVerdict.delete)) == len(
                FILES
            )
        finally:
            process.kill()
    asyncio.run(done(home.block, away.block, "rec"))
    assert (set(away.files()), home.files(), marks_in(*places)) == (set(FILES), {}, [])


async def test_a_mark_is_over_after_its_time_whoever_wrote_it(places: tuple[Place, Place]) -> None:
    both(places)
    mark = replace(Mark.of(None, by_globus=True), machine="elsewhere")
    for age, passes in ((LEASE_SECONDS, False), (LEASE_SECONDS + SKEW_SECONDS + 60, True)):
        left = replace(mark, since=mark.since - age)
        (places[0].root / "rec" / left.name).mkdir()
        if passes:
            await done(places[0].block, places[1].block, "rec")
        else:
            with pytest.raises(TransferError, match="Another prune relies on the copies"):
                await done(places[0].block, places[1].block, "rec")
            shutil.rmtree(places[0].root / "rec" / left.name)
    assert not places[0].files()


async def test_nothing_is_deleted_when_the_time_of_the_marks_is_over(
    places: tuple[Place, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    both(places)
    prune = Prune(places[0].block, places[1].block, "rec")
    await prune.make_plan()
    with monkeypatch.context() as patched:
        now = time.time()
        patched.setattr(time, "time", lambda: now + LEASE_SECONDS + 60)
        report = await prune.carry_out()
    await prune.let_go()
    assert set(reasons(report).values()) == {"was not deleted before the prune's time limit; prune again"}
    assert set(places[0].files()) == set(FILES)


@pytest.mark.parametrize("name", [f"{PREFIX}{'0' * 32}", f"{PREFIX}check-0", f"{PREFIX}source-x", PREFIX])
def test_a_mark_that_cannot_be_read_counts_as_one_of_a_check(name: str) -> None:
    for modified, over in ((time.time() - 60, False), (time.time() - LEASE_SECONDS - 7200, True), (None, False)):
        mark = Mark.read(name, modified)
        assert mark is not None
        assert (mark.kind, mark.is_abandoned()) == (MarkKind.check, over)
    assert Mark.read("scan.h5", None) is None


@pytest.mark.parametrize("by_globus", [True, False])
def test_a_mark_is_read_as_it_was_written(by_globus: bool) -> None:
    for kind in MarkKind:
        mark = replace(Mark.of("3b0dd9a5-9ac5-4d47-a3a6-2a4f8f3dd5c3", by_globus=by_globus), kind=kind)
        assert Mark.read(mark.name, 0.0) == mark
        assert len(mark.name) <= 255

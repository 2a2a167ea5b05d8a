"""Prunes: what is left on disk at the source and at the check, on emulated Transfer and on this machine."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Completed, Crashed, Running

from flows.prune import prune_data
from prefect_psik import (
    GlobusCollection,
    PruneIncomplete,
    PruneReport,
    PruneVerdict,
    ScheduledPrune,
    ScheduleError,
    SpecError,
    TransferError,
    aprune,
    prune,
    schedule_prune,
)
from prefect_psik.data.marks import LEASE_SECONDS, PREFIX, SKEW_SECONDS, Mark
from prefect_psik.data.proof.plan import SETTLED_SECONDS, Prune
from tests.integration.local import wait_until
from tests.integration.transfer_places import Place, emulated, local
from tests.testbed.globus import Globus

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(params=["emulated", "local"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Place, Place]:
    """Where files are pruned, and the check."""
    if request.param == "local":
        return local(tmp_path / "away é"), local(tmp_path / "home")
    globus: Globus = request.getfixturevalue("globus")
    base = uuid.uuid4().hex
    return emulated(globus, "scratch", f"{base} é"), emulated(globus, "home", base)


def marks_in(place: Place) -> list[Path]:
    """The directories that prunes made and have not removed."""
    return sorted(place.root.rglob(f"{PREFIX}*"))


def test_only_what_the_check_is_proven_to_hold_goes(places: tuple[Place, Place]) -> None:
    away, home = places
    for name in ("held", "sub/held too", "lacking", "truncated", "changed"):
        away.write(f"rec/{name}", b"0123456789")
        home.write(f"rec/{name}", b"0123456789")
    (home.root / "rec/lacking").unlink()
    home.write("rec/truncated", b"01234")
    changed = away.root / "rec/changed"
    home.write("rec/changed", b"012345678X")
    os.utime(home.root / "rec/changed", (changed.stat().st_atime, changed.stat().st_mtime))  # only the byte tells
    before = home.files()

    with pytest.raises(PruneIncomplete) as caught:
        prune(away.block, "rec", check=home.block)

    stay = dict.fromkeys(("changed", "lacking", "truncated"), b"0123456789")
    assert away.files("rec") == stay
    assert home.files() == before, "nothing is written on the check, and nothing is left there"
    report = caught.value.report
    assert report is not None
    assert {file.path: file.reason for file in report.unproven} == {
        "rec/lacking": "is missing at the check",
        "rec/truncated": "has 10 bytes, but 5 at the check",
        "rec/changed": "has different contents at the check",
    }
    for name in stay:
        assert f"rec/{name}" in str(caught.value)
    assert [file.path for file in report.having(PruneVerdict.deleted)] == ["rec/held", "rec/sub/held too"]


@pytest.mark.parametrize("spelled", ["{}", "//{}", "/.//{}/", "/x/../{}"])
def test_a_base_path_in_other_words_hides_no_difference(globus: Globus, spelled: str) -> None:
    """Transfer names the files that it had to move in its own spelling of their paths."""
    base = f"{uuid.uuid4().hex}/y"
    away, home = (
        Place(place.block.model_copy(update={"base_path": spelled.format(base.replace("/", "//"))}), place.root)
        for place in (emulated(globus, "scratch", base), emulated(globus, "home", base))
    )
    for place in (away, home):
        place.write("rec/held", b"0123456789")
    away.write("rec/changed", b"0123456789")
    home.write("rec/changed", b"012345678X")
    with pytest.raises(PruneIncomplete, match="different contents"):
        prune(away.block, "rec", check=home.block)
    assert away.files("rec") == {"changed": b"0123456789"}


async def test_twice_and_a_single_file(places: tuple[Place, Place]) -> None:
    away, home = places
    for place in places:
        place.write("raw/scan.h5", b"raw")
        place.write("raw/other.h5", b"other")
    report = await aprune(away.block, "raw/scan.h5", check=home.block)
    assert [file.path for file in report.having(PruneVerdict.deleted)] == ["raw/scan.h5"]
    assert (await aprune(away.block, "raw/scan.h5", check=home.block)).files == []
    assert away.files() == {"raw/other.h5": b"other"}
    assert home.files() == {"raw/scan.h5": b"raw", "raw/other.h5": b"other"}


def test_a_dry_run_deletes_nothing(places: tuple[Place, Place]) -> None:
    away, home = places
    away.write("rec/1")
    home.write("rec/1")
    away.write("rec/2")
    report = prune(away.block, "rec", check=home.block, dry_run=True)
    assert [(file.path, file.verdict) for file in report.files] == [
        ("rec/1", PruneVerdict.delete),
        ("rec/2", PruneVerdict.unproven),
    ]
    assert set(away.files()) == {"rec/1", "rec/2"}


def test_young_files_stay(places: tuple[Place, Place]) -> None:
    away, home = places
    for place in places:
        place.write("rec/old", age=3 * 86400)
        place.write("rec/young", age=3600)
    report = prune(away.block, "rec", check=home.block, min_age=timedelta(days=1))
    assert set(away.files()) == {"rec/young"}
    assert [file.path for file in report.having(PruneVerdict.young)] == ["rec/young"]


@pytest.mark.parametrize("end", ["source", "check"])
def test_what_changes_after_the_proof_stays(places: tuple[Place, Place], end: str) -> None:
    away, home = places
    for place in places:
        place.write("rec/1", b"proven")
        place.write("rec/2", b"proven")
    changing = away if end == "source" else home

    async def whole() -> PruneReport:
        work = Prune(away.block, home.block, "rec")
        try:
            report = await work.make_plan()
            assert len(report.having(PruneVerdict.delete)) == 2
            changing.write("rec/2", b"PROVEN", age=0)  # a detector's file keeps its size
            return await work.carry_out()
        finally:
            await work.let_go()

    report = asyncio.run(whole())
    assert [file.path for file in report.unproven] == ["rec/2"]
    assert "while it was compared" in report.unproven[0].reason
    assert set(away.files("rec")) == {"2"}


def test_what_has_just_arrived_is_pruned_a_little_later(places: tuple[Place, Place]) -> None:
    away, home = places
    for place in places:
        place.write("rec/1", age=0)
    begin = time.monotonic()
    prune(away.block, "rec", check=home.block)
    assert time.monotonic() - begin > SETTLED_SECONDS
    assert away.files() == {}


def test_a_check_that_is_still_written_proves_nothing(places: tuple[Place, Place]) -> None:
    away, home = places
    away.write("rec/1")
    home.write("rec/1", age=-3600)  # as one that is written all the time
    with pytest.raises(PruneIncomplete, match="at the check"):
        prune(away.block, "rec", check=home.block)
    assert set(away.files()) == {"rec/1"}


@pytest.mark.parametrize("end", ["scratch", "home"])
@pytest.mark.parametrize("min_age", [timedelta(0), timedelta(days=1)])
def test_a_file_without_a_time_is_not_taken_for_an_old_one(globus: Globus, end: str, min_age: timedelta) -> None:
    base = uuid.uuid4().hex
    away, home = emulated(globus, "scratch", base), emulated(globus, "home", base)
    for place in (away, home):
        place.write("rec/1", age=7 * 86400)
    globus.order_fault("no_time", match=f"{end}/{base}/rec", seconds=3600)
    with pytest.raises(PruneIncomplete, match="no modification time"):
        prune(away.block, "rec", check=home.block, min_age=min_age)
    assert set(away.files()) == {"rec/1"}


def test_a_link_is_no_copy_and_no_file(places: tuple[Place, Place]) -> None:
    away, home = places
    away.write("rec/1")
    home.write("elsewhere")
    (home.root / "rec").mkdir()
    (home.root / "rec/1").symlink_to(home.root / "elsewhere")
    (away.root / "rec/2").symlink_to(away.root / "rec/1")
    with pytest.raises(PruneIncomplete, match="is a link") as caught:
        prune(away.block, "rec", check=home.block)
    assert caught.value.report is not None
    assert len(caught.value.report.unproven) == 2
    assert set(away.files()) == {"rec/1", "rec/2"}


def test_without_a_check_or_against_itself(places: tuple[Place, Place]) -> None:
    away, home = places
    away.write("rec/1")
    with pytest.raises(SpecError, match="needs a check collection"):
        prune(away.block, "rec", check=None)
    with pytest.raises(SpecError, match="the same directory"):
        prune(away.block, "rec", check=away.block)
    with pytest.raises(SpecError, match="all of"):
        prune(away.block, ".", check=home.block)
    with pytest.raises(SpecError):
        prune(away.block, "../rec", check=home.block)
    assert set(away.files()) == {"rec/1"}


def test_one_directory_under_two_collections_is_no_copy(globus: Globus) -> None:
    """Two collections may lead to the same directory, which their ids do not tell."""
    away = emulated(globus, "scratch", uuid.uuid4().hex)
    alias = emulated(globus, "mapped", uuid.uuid4().hex)
    away.write("rec/1")
    alias.root.rmdir()
    alias.root.symlink_to(away.root)
    with pytest.raises(SpecError, match="the same directory"):
        prune(away.block, "rec", check=alias.block)
    assert away.files() == {"rec/1": b"content"}


def test_a_subdirectory_that_two_collections_share_is_no_copy(globus: Globus) -> None:
    """The rest is a real copy, and device and inode are what no collection shows."""
    base = uuid.uuid4().hex
    away, home = emulated(globus, "scratch", base), emulated(globus, "home", base)
    for place in (away, home):
        place.write("rec/1")
    away.write("rec/sub/2")
    shared = home.root / "rec/sub"
    shared.mkdir()
    command = ["mount", "--bind", str(away.root / "rec/sub"), str(shared)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(SpecError, match=r"are the same directory: .* shows in the other, at rec/sub"):
            prune(away.block, "rec", check=home.block)
        assert marks_in(away) == marks_in(home) == []
    finally:
        subprocess.run(["umount", str(shared)], check=True)
    assert set(away.files()) == {"rec/1", "rec/sub/2"}


def test_two_prunes_crosswise_lose_nothing(places: tuple[Place, Place]) -> None:
    names = [f"rec/{number}" for number in range(40)]
    for place in places:
        for name in names:
            place.write(name)

    def one(source: Place, check: Place) -> str:
        try:
            prune.fn(source.block, "rec", check=check.block)
        except TransferError as err:
            return "refused" if "Another prune" in str(err) and err.transient else str(err)
        except PruneIncomplete as err:  # the other one had ended before
            return "refused" if "is missing at the check" in str(err) else str(err)
        return "pruned"

    with ThreadPoolExecutor() as threads:
        ends = [threads.submit(one, *pair) for pair in (places, places[::-1])]
        outcomes = sorted(end.result() for end in ends)
    assert outcomes in (["pruned", "refused"], ["refused", "refused"])
    left = [place.files() for place in places]
    assert sorted(map(len, left)) == ([0, 40] if "pruned" in outcomes else [40, 40])
    assert set().union(*left) == set(names)
    assert [marks_in(place) for place in places] == [[], []]


def test_one_odd_name_blocks_only_itself(places: tuple[Place, Place]) -> None:
    names = (b"new\nline", b"esc\x1b[31m", b"tab\t/1", b"tab\t/2")
    for place in places:
        place.write("rec/good")
        for name in names:
            odd = Path(os.fsdecode(os.fsencode(place.root) + b"/rec/" + name))
            odd.parent.mkdir(exist_ok=True)
            shutil.copy2(place.root / "rec/good", odd)
    with pytest.raises(PruneIncomplete, match="4 files") as caught:
        prune(places[0].block, "rec", check=places[1].block)
    for shown in (r"rec/new\nline", r"rec/esc\x1b[31m", r"rec/tab\t/1"):
        assert f"\n- {shown}" in str(caught.value)
    assert "\x1b" not in str(caught.value), "no name acts on a terminal"
    left = {os.fsencode(path) for path in (places[0].root / "rec").rglob("*") if path.is_file()}
    assert left == {os.fsencode(places[0].root) + b"/rec/" + name for name in names}


def test_a_listing_of_globus_that_cannot_be_read_deletes_nothing(globus: Globus) -> None:
    base = uuid.uuid4().hex
    away, home = emulated(globus, "scratch", base), emulated(globus, "home", base)
    for place in (away, home):
        place.write("rec/good")
    odd = os.fsencode(away.root) + b"/rec/scan\xe9"
    Path(os.fsdecode(odd)).write_bytes(b"odd")
    with pytest.raises(
        TransferError, match=r"listing of '.*/rec' cannot be read; a file name in it may not be UTF-8"
    ):
        prune(away.block, "rec", check=home.block)
    assert len(list((away.root / "rec").iterdir())) == 2


def test_a_check_that_is_a_link_to_the_source_is_no_copy(places: tuple[Place, Place]) -> None:
    away, home = places
    away.write("rec/1")
    (home.root / "rec").symlink_to(away.root / "rec")
    with pytest.raises((SpecError, PruneIncomplete), match=r"same (directory|file)"):
        prune(away.block, "rec", check=home.block)
    assert away.files() == {"rec/1": b"content"}


def test_hard_links_on_this_machine_are_no_copy(tmp_path: Path) -> None:
    away, home = local(tmp_path / "away"), local(tmp_path / "home")
    away.write("1")
    (home.root / "1").hardlink_to(away.root / "1")
    with pytest.raises(PruneIncomplete, match="the same file"):
        prune(away.block, "1", check=home.block)
    assert set(away.files()) == {"1"}


@pytest.mark.parametrize(
    ("kind", "after"),
    [("transfer", 0), ("transfer", 1), ("delete", 0)],
    ids=["copying", "comparing", "deleting"],
)
def test_refused_at_any_step_it_deletes_nothing_and_goes_on_the_next_time(
    globus: Globus, kind: str, after: int
) -> None:
    base = uuid.uuid4().hex
    away, home = emulated(globus, "scratch", base), emulated(globus, "home", base)
    for number in range(3):
        for place in (away, home):
            place.write(f"rec/{number}", bytes([number]))
    away.write("rec/unique", b"unique")
    globus.order_fault("error", match=f"POST /v0.10/{kind}", after=after, status=403, code="Refused")
    with pytest.raises(TransferError, match="Refused"):
        prune(away.block, "rec", check=home.block)
    assert set(away.files()) == {"rec/0", "rec/1", "rec/2", "rec/unique"}
    with pytest.raises(PruneIncomplete, match="rec/unique"):
        prune(away.block, "rec", check=home.block)
    assert away.files() == {"rec/unique": b"unique"}
    assert set(home.files()) == {"rec/0", "rec/1", "rec/2"}
    assert marks_in(away) == marks_in(home) == []


def test_marks_that_cannot_be_removed_are_told_and_hinder_no_prune_the_same_way(
    globus: Globus, caplog: pytest.LogCaptureFixture
) -> None:
    base = uuid.uuid4().hex
    away, home = emulated(globus, "scratch", base), emulated(globus, "home", base)
    for place in (away, home):
        place.write("rec/1")
    globus.order_fault("error", match="POST /v0.10/delete", after=1, status=403, code="Refused")
    prune(away.block, "rec", check=home.block)
    assert away.files() == {}
    assert "left its marks" in caplog.text
    assert len(marks_in(home) + marks_in(away)) == 1, "one task was refused, for the marks at one end"
    away.write("rec/1")
    prune(away.block, "rec", check=home.block)
    assert away.files() == {}
    away.write("rec/1")
    with pytest.raises(TransferError, match=r"Another prune (relies on the copies|deletes files)") as caught:
        prune(home.block, "rec", check=away.block)
    assert caught.value.transient
    [left] = marks_in(home) + marks_in(away)
    assert f"rec/{left.name} and all other" in str(caught.value), "which directory to delete"
    shutil.rmtree(left)
    prune(home.block, "rec", check=away.block)
    assert (away.files(), home.files()) == ({"rec/1": b"content"}, {})


_KILLED = """
import sys
from uuid import UUID
from prefect import flow
from prefect_psik import GlobusCollection, prune

@flow
def prunes(away, home, base):
    one, two = (GlobusCollection(collection_id=UUID(key), base_path=base) for key in (away, home))
    prune(one, "rec", check=two)

prunes(*sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("end", "after", "tasks"),
    # Transfer looks at a file of the source twice to compare it, and at its place in the room once.
    [("home", 0, 1), ("scratch", 0, 2), ("scratch", 2, 3)],
    ids=["copying", "comparing", "deleting"],
)
def test_killed_in_the_middle(globus: Globus, end: str, after: int, tasks: int) -> None:
    base = uuid.uuid4().hex
    away, home = emulated(globus, "scratch", base), emulated(globus, "home", base)
    for number in range(4):
        for place in (away, home):
            place.write(f"rec/{number}", b"same")
    home.write("rec/2", b"diff")
    globus.order_fault("slow_path", match=f"{end}/{base}/rec/1", after=after, seconds=600)
    before = len(globus.transfers())
    keys = [str(place.block.collection_id) for place in (away, home)]
    env = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    process = subprocess.Popen([sys.executable, "-c", _KILLED, *keys, f"/{base}"], env=env)
    try:
        wait_until(lambda: len(globus.transfers()) >= before + tasks, 300)
        wait_until(lambda: ("rec/0" not in away.files()) == (tasks == 3))
    finally:
        process.kill()
        process.wait()
    globus.clear_faults()
    assert set(away.files("rec")) == ({"1", "2", "3"} if tasks == 3 else {"0", "1", "2", "3"})
    with pytest.raises(PruneIncomplete, match="rec/2"):
        prune(away.block, "rec", check=home.block)
    assert away.files() == {"rec/2": b"same"}
    assert {path: data for path, data in home.files("rec").items() if PREFIX not in path} == {
        "0": b"same",
        "1": b"same",
        "2": b"diff",
        "3": b"same",
    }


def test_what_killed_prunes_left_is_removed_when_their_time_is_over(globus: Globus) -> None:
    base = uuid.uuid4().hex
    away, home = emulated(globus, "scratch", base), emulated(globus, "home", base)
    for place in (away, home):
        place.write("rec/1")
    mark = Mark.of(None, by_globus=True)
    old = replace(mark, since=mark.since - LEASE_SECONDS - SKEW_SECONDS - 60)
    in_use = replace(mark, since=mark.since - LEASE_SECONDS + 60)
    for kept in (old, in_use):
        home.write(f"rec/{kept.name}/rec/1")
    prune(away.block, "rec", check=home.block)
    assert set(home.files("rec")) == {"1", f"{in_use.name}/rec/1"}
    assert marks_in(home) == [home.root / "rec" / in_use.name]


async def test_two_prunes_in_one_directory_leave_each_others_rooms(globus: Globus) -> None:
    base = uuid.uuid4().hex
    away, home = emulated(globus, "scratch", base), emulated(globus, "home", base)
    for place in (away, home):
        place.write("rec/1", b"one")
        place.write("rec/2", b"two")
    globus.order_fault("slow_path", match=f"scratch/{base}/rec/1", seconds=6)
    begun = len(globus.transfers())

    async def other() -> None:
        await asyncio.to_thread(wait_until, lambda: len(globus.transfers()) >= begun + 2)
        await aprune(away.block, "rec/2", check=home.block)

    await asyncio.gather(aprune(away.block, "rec/1", check=home.block), other())
    assert away.files() == {}
    assert home.files() == {"rec/1": b"one", "rec/2": b"two"}


def test_many_that_differ_are_all_named_by_transfer_in_pages(globus: Globus) -> None:
    base = uuid.uuid4().hex
    away, home = emulated(globus, "scratch", base), emulated(globus, "home", base)
    for number in range(250):  # the service names 100 a page
        away.write(f"rec/{number:03}", b"good")
        home.write(f"rec/{number:03}", b"evil")
    home.write("rec/100", b"good")
    with pytest.raises(PruneIncomplete, match="249 files") as caught:
        prune(away.block, "rec", check=home.block)
    assert caught.value.report is not None
    assert len(caught.value.report.unproven) == 249
    assert len(away.files()) == 249
    assert len(home.files()) == 250


def test_the_plan_is_a_table(places: tuple[Place, Place]) -> None:
    away, home = places
    away.write("rec/1")
    home.write("rec/1")
    away.write("rec/2")

    @flow
    def prunes() -> None:
        prune(away.block, "rec", check=home.block, dry_run=True)

    state = prunes(return_state=True)
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        [artifact] = client.read_artifacts(artifact_filter=wanted)
    assert artifact.type == "table"
    assert '"path": "rec/2"' in str(artifact.data)
    assert "1 delete, 1 unproven" in str(artifact.description)


async def test_a_scheduled_prune_exists(tmp_path: Path) -> None:
    away, home = local(tmp_path / "away"), local(tmp_path / "home")
    names = [f"{name}-{uuid.uuid4().hex[:8]}" for name in ("away", "home")]
    for name, place in zip(names, (away, home), strict=True):
        await place.block.asave(name)
    async with get_client() as client:
        flow_id = await client.create_flow(prune_data)
        await client.create_deployment(flow_id, "prune")
    begun = []

    @flow(retries=1)
    def schedules() -> None:
        begun.append(schedule_prune(names[0], "raw", check=names[1], after=timedelta(days=7)))
        if len(begun) == 1:
            raise RuntimeError("after the scheduling")

    await asyncio.to_thread(schedules)
    assert len({prune.flow_run_id for prune in begun}) == 1, "a retry schedules no second one"
    async with get_client() as client:
        run = await client.read_flow_run(begun[0].flow_run_id)
    assert run.state is not None
    assert run.state.is_scheduled()
    assert run.parameters == {"source": names[0], "path": "raw", "check": names[1]}
    assert run.expected_start_time is not None
    assert abs(run.expected_start_time.timestamp() - time.time() - 7 * 86400) < 600


@pytest.mark.parametrize(
    ("state", "passes"), [(Running(), True), (Completed(), True), (Cancelled(), False), (Crashed(), False)]
)
def test_a_retry_does_not_take_a_prune_that_will_not_come(tmp_path: Path, state: State[Any], passes: bool) -> None:
    names = [f"{name}-{uuid.uuid4().hex[:8]}" for name in ("away", "home")]
    for name in names:
        local(tmp_path / name).block.save(name)
    begun: list[ScheduledPrune] = []

    @flow(retries=1)
    def schedules() -> None:
        with get_client(sync_client=True) as client:
            if not begun:
                client.create_deployment(client.create_flow(prune_data), "prune")
            begun.append(schedule_prune(names[0], "raw", check=names[1], after=timedelta(days=7)))
            if len(begun) == 1:
                client.set_flow_run_state(begun[0].flow_run_id, state, force=True)
                raise RuntimeError("after the scheduling")

    ended = schedules(return_state=True)
    assert ended.is_completed() == passes
    if not passes:
        assert f"is {state.name} and will not prune anything more" in str(ended.message)


@pytest.mark.parametrize("end", ["scratch", "home"])
def test_a_collection_that_is_not_there_is_not_an_empty_one(globus: Globus, end: str) -> None:
    base = uuid.uuid4().hex
    blocks = {name: emulated(globus, name, base).block for name in ("scratch", "home")}
    blocks[end] = blocks[end].model_copy(update={"collection_id": uuid.uuid4()})
    with pytest.raises(TransferError, match=r"EndpointNotFound.*Check the collection_id"):
        prune(blocks["scratch"], "rec", check=blocks["home"])


def test_the_flow_that_is_deployed(tmp_path: Path) -> None:
    away, home = local(tmp_path / "away"), local(tmp_path / "home")
    names = [f"{name}-{uuid.uuid4().hex[:8]}" for name in ("away", "home")]
    for name, place in zip(names, (away, home), strict=True):
        place.block.save(name)
        place.write("raw/1")
    away.write("raw/2")
    assert prune_data(names[0], "raw", names[1], return_state=True).is_failed(), "what stays is no success"
    assert set(away.files()) == {"raw/2"}


def test_a_prune_that_cannot_be_scheduled_is_an_error(tmp_path: Path) -> None:
    away, home = local(tmp_path / "away"), local(tmp_path / "home")
    with pytest.raises(SpecError, match="not saved"):
        schedule_prune(away.block, "raw", check=home.block, after=timedelta(days=1))
    with pytest.raises(SpecError, match="no collection 'nowhere'"):
        schedule_prune("nowhere", "raw", check=home.block, after=timedelta(days=1))
    names = [f"{name}-{uuid.uuid4().hex[:8]}" for name in ("away", "home")]
    for name, place in zip(names, (away, home), strict=True):
        place.block.save(name)
    with pytest.raises(SpecError, match="needs a check"):
        schedule_prune(names[0], "raw", check=None, after=timedelta(days=1))
    with pytest.raises(ScheduleError, match="no deployment 'prune/none'"):
        schedule_prune(names[0], "raw", check=names[1], after=timedelta(days=1), deployment="prune/none")


def test_two_kinds_cannot_be_compared(tmp_path: Path) -> None:
    away = GlobusCollection(collection_id=uuid.uuid4(), base_path="/a")
    with pytest.raises(SpecError, match="cannot be compared"):
        prune(away, "raw", check=local(tmp_path / "home").block)

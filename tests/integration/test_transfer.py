"""Transfers between collections of the emulator and between directories: bytes on disk, tasks at Globus."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact, State

from prefect_psik import (
    ConsentRequired,
    GlobusCollection,
    SpecError,
    SyncCallError,
    TransferCause,
    TransferError,
    TransferResult,
    TransferState,
    TransferStatus,
    acancel_transfer,
    arun_transfer,
    asubmit_transfer,
    await_for_transfer,
    cancel_transfer,
    delete_files,
    list_files,
    run_transfer,
    submit_transfer,
    wait_for_transfer,
)
from prefect_psik.credentials import transfer_login
from prefect_psik.data import wait as transfer_waits
from prefect_psik.data.carriers import local as transfer_local
from prefect_psik.data.carriers.file import PART
from prefect_psik.data.carriers.globus import GlobusCarrier
from prefect_psik.data.carriers.local import LocalCarrier
from prefect_psik.models.transfers import Order
from tests.integration.transfer_places import Place, emulated, local
from tests.testbed.globus import Globus

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(params=["emulated", "local"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Place, Place]:
    """Two places between which data moves: home and away."""
    if request.param == "local":
        return local(tmp_path / "home é"), local(tmp_path / "away")
    globus: Globus = request.getfixturevalue("globus")
    base = uuid.uuid4().hex
    return emulated(globus, "home", f"{base} é"), emulated(globus, "scratch", base)


def test_a_file_and_a_directory_arrive(places: tuple[Place, Place]) -> None:
    home, away = places
    home.write("raw/scan.h5", b"raw")
    home.write("rec/a b/1.tiff", b"one")
    home.write("rec/2.tiff", b"two")
    items = [("raw/scan.h5", "in/scan.h5"), ("rec", "rec")]
    found = run_transfer(home.block, away.block, items)
    assert away.files() == {"in/scan.h5": b"raw", "rec/a b/1.tiff": b"one", "rec/2.tiff": b"two"}
    assert (found.files, found.files_transferred, found.files_skipped, found.bytes_transferred) == (3, 3, 0, 9)


def test_what_is_there_is_not_moved_again_and_what_differs_is(places: tuple[Place, Place]) -> None:
    home, away = places
    for number in range(5):
        home.write(f"rec/{number}", bytes([number]) * 10)
    run_transfer(home.block, away.block, "rec")
    away.write("rec/3", b"xxxxxxxxxx")  # the same size, and newer than the source
    found = run_transfer(home.block, away.block, "rec")
    assert (found.files_transferred, found.files_skipped) == (1, 4)
    assert away.files() == home.files()


def test_marks_of_prunes_stay_where_they_are(places: tuple[Place, Place]) -> None:
    """With the copies that a prune compares; a directory of data that is empty arrives."""
    source, destination = places
    source.write("raw/1")
    source.write("raw/.prefect-psik-prune-check-0/raw/1")
    for name in ("raw/sub/.prefect-psik-prune-source-0", "raw/empty"):
        (source.root / name).mkdir(parents=True)
    assert run_transfer(source.block, destination.block, "raw").files == 1
    there = destination.root / "raw"
    assert {str(path.relative_to(there)) for path in there.rglob("*")} == {"1", "sub", "empty"}


async def test_the_async_twins(places: tuple[Place, Place]) -> None:
    home, away = places
    home.write("raw", b"raw")
    handle = await asubmit_transfer(home.block, away.block, [("raw", "raw")])
    assert (await await_for_transfer(handle)).files_transferred == 1
    assert (await acancel_transfer(handle)).state is TransferState.succeeded, "what has ended keeps its end"
    with pytest.raises(SyncCallError, match="arun_transfer"):
        run_transfer(home.block, away.block, "raw")


def test_listing_and_deleting(places: tuple[Place, Place]) -> None:
    home, _ = places
    home.write("a/1", b"one")
    home.write("a/b/2", b"four")
    assert [(entry.path, entry.kind) for entry in list_files(home.block, "a")] == [
        ("a/1", "file"),
        ("a/b", "directory"),
    ]
    everything = list_files(home.block, recursive=True)
    assert [entry.path for entry in everything] == ["a", "a/1", "a/b", "a/b/2"]
    assert [entry.size for entry in everything if entry.kind == "file"] == [3, 4]
    assert [entry.path for entry in list_files(home.block, "a/1")] == ["a/1"]
    delete_files(home.block, ["a/1", "never/there"])
    assert home.files() == {"a/b/2": b"four"}
    with pytest.raises(TransferError, match="directory"):
        delete_files(home.block, "a")
    delete_files(home.block, "a", recursive=True)
    assert list_files(home.block) == []


def test_a_deletion_on_this_machine_names_what_stays_and_deletes_the_rest(tmp_path: Path) -> None:
    home = local(tmp_path / "home")
    for name in ("a/1", "a/stuck/2", "a/z/3", "b"):
        home.write(name)
    stuck = home.root / "a/stuck"
    mount = ["mount", "-t", "tmpfs", "psik-test", str(stuck)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        with pytest.raises(TransferError, match=f"{stuck}: Device or resource busy"):
            delete_files(home.block, ["a", "b"], recursive=True)
    finally:
        subprocess.run(["umount", stuck], check=True)
    assert set(home.files()) == {"a/stuck/2"}


def test_a_long_directory_is_listed_in_pages(globus: Globus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_psik.data.carriers.globus.PAGE", 7)
    home, _ = _pair(globus)
    for number in range(21):
        home.write(f"rec/{number:02}")
    assert [entry.path for entry in list_files(home.block, "rec")] == [f"rec/{number:02}" for number in range(21)]


def test_thousands_of_files_are_one_item(globus: Globus) -> None:
    home, away = _pair(globus)
    for number in range(3000):
        home.write(f"rec/{number % 30}/{number}", str(number).encode())
    assert run_transfer(home.block, away.block, "rec").files_transferred == 3000
    assert globus.transfers()[-1]["items"] == 1
    assert away.files() == home.files()


def test_thousands_of_files_on_this_machine(tmp_path: Path) -> None:
    home, away = local(tmp_path / "home"), local(tmp_path / "away")
    for number in range(3000):
        home.write(f"rec/{number % 30}/{number}", str(number).encode())
    assert run_transfer(home.block, away.block, "rec").files_transferred == 3000
    assert away.files() == home.files()


def test_a_path_that_is_not_there(places: tuple[Place, Place]) -> None:
    home, away = places
    with pytest.raises(TransferError) as caught:
        run_transfer(home.block, away.block, "missing")
    assert caught.value.cause is TransferCause.not_found
    with pytest.raises(TransferError) as caught:
        list_files(home.block, "missing")
    assert caught.value.cause is TransferCause.not_found


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a\n"])
def test_nothing_outside_of_the_base_path(places: tuple[Place, Place], path: str) -> None:
    home, away = places
    with pytest.raises(SpecError):
        run_transfer(home.block, away.block, [(path, "x")])
    with pytest.raises(SpecError):
        run_transfer(home.block, away.block, [("x", path)])
    with pytest.raises(SpecError):
        delete_files(home.block, path)


@pytest.mark.parametrize("path", ["", ".", "./"])
def test_all_of_a_collection_is_not_deleted(places: tuple[Place, Place], path: str) -> None:
    home, _ = places
    home.write("a")
    with pytest.raises(SpecError, match="all of"):
        delete_files(home.block, path, recursive=True)
    assert home.files() == {"a": b"content"}


def test_a_deadline(globus: Globus) -> None:
    home, away = _pair(globus)
    home.write("slow")
    globus.order_fault("slow_path", match="*slow", seconds=30)
    with pytest.raises(TransferError, match="deadline") as caught:
        run_transfer(home.block, away.block, "slow", deadline=timedelta(seconds=1))
    assert caught.value.cause is TransferCause.deadline
    assert globus.transfers()[-1]["status"] == "FAILED"


def test_an_endpoint_that_is_away_is_waited_for(globus: Globus, caplog: pytest.LogCaptureFixture) -> None:
    home, away = _pair(globus)
    home.write("raw", b"raw")
    globus.order_fault("path", match="scratch*raw", code="GC_NOT_CONNECTED", seconds=8)
    found = run_transfer(home.block, away.block, "raw")
    assert away.files() == {"raw": b"raw"}
    assert found.faults > 0
    assert "GC_NOT_CONNECTED: globus connect offline" in caplog.text


def test_a_permission_error_is_not_waited_for(globus: Globus) -> None:
    home, away = _pair(globus)
    home.write("raw")
    globus.order_fault("path", match="scratch*raw", code="PERMISSION_DENIED", seconds=3600)
    with pytest.raises(TransferError, match="administrator") as caught:
        run_transfer(home.block, away.block, "raw")
    assert caught.value.cause is TransferCause.permission_denied
    assert not caught.value.transient
    assert globus.transfers()[-1]["fatal_error"]["code"] == "CANCELED", "nothing goes on at Globus"


def test_a_service_that_stumbles_begins_one_transfer(globus: Globus) -> None:
    home, away = _pair(globus)
    home.write("raw")
    before = len(globus.transfers())
    globus.order_fault("drop_reply", match="POST /v0.10/transfer", times=4)
    globus.order_fault("error", match="GET /v0.10/task/*", times=4, status=503)
    assert run_transfer(home.block, away.block, "raw").files_transferred == 1
    assert len(globus.transfers()) == before + 1


def test_a_consent_that_the_client_can_give_itself_is_given(globus: Globus) -> None:
    home, _ = _pair(globus)
    mapped = emulated(globus, "mapped", uuid.uuid4().hex)
    home.write("raw", b"raw")
    run_transfer(home.block, mapped.block, "raw")
    assert mapped.files() == {"raw": b"raw"}


def test_a_consent_that_a_client_is_refused_is_told_with_what_helps(globus: Globus) -> None:
    home, _ = _pair(globus)
    vault = emulated(globus, "vault", "v")
    home.write("raw")
    with pytest.raises(ConsentRequired) as caught:
        run_transfer(home.block, vault.block, "raw")
    assert f"role or permission to {globus.login('client')[0]}@clients.auth.globus.org" in str(caught.value)
    assert "globus session consent" not in str(caught.value), "which does nothing for a client"
    [scope] = caught.value.scopes
    assert scope.endswith(f"{vault.block.collection_id}/data_access]")


async def test_two_first_calls_at_once_give_themselves_the_consent(globus: Globus) -> None:
    """Both are refused before either has logged in anew."""
    carrier = GlobusCarrier(transfer_login(None))
    mapped = emulated(globus, "mapped", uuid.uuid4().hex)
    mapped.write("raw")
    globus.order_fault("delay", match="GET */stat*", after=1, seconds=3)

    async def look() -> int:
        key, path = str(mapped.block.collection_id), mapped.block.path("raw")
        return len([entry async for entry in carrier.list(key, path, recursive=False)])

    assert await asyncio.gather(*(look() for _ in range(4))) == [1] * 4


@pytest.mark.parametrize(
    ("code", "transient"), [("CONNECT_FAILED", True), ("TIMEOUT", True), ("PERMISSION_DENIED", False)]
)
def test_one_that_failed_is_transient_if_its_cause_passes(globus: Globus, code: str, transient: bool) -> None:
    home, away = _pair(globus)
    home.write("raw")
    globus.order_fault("fatal_path", match="home*raw", code=code)
    with pytest.raises(TransferError, match=code) as caught:
        run_transfer(home.block, away.block, "raw")
    assert caught.value.transient == transient


def test_a_retry_of_the_task_begins_one_that_failed_anew(globus: Globus) -> None:
    home, away = _pair(globus)
    home.write("raw")
    before = len(globus.transfers())
    globus.order_fault("fatal_path", match="home*raw", code="CONNECT_FAILED")

    @flow
    def moves() -> None:
        run_transfer.with_options(retries=1)(home.block, away.block, "raw")

    moves()
    assert away.files() == {"raw": b"content"}
    assert [task["status"] for task in globus.transfers()[before:]] == ["FAILED", "SUCCEEDED"]


def test_a_cancel(globus: Globus) -> None:
    home, away = _pair(globus)
    home.write("slow")
    globus.order_fault("slow_path", match="*slow", seconds=60)
    handle = submit_transfer(home.block, away.block, "slow")
    assert cancel_transfer(handle).cause is TransferCause.canceled
    with pytest.raises(TransferError) as caught:
        wait_for_transfer(handle)
    assert caught.value.cause is TransferCause.canceled


def test_a_retry_gets_the_same_transfer_and_a_newer_attempt_begins_a_failed_one_anew(globus: Globus) -> None:
    home, away = _pair(globus)
    home.write("raw")
    before = len(globus.transfers())
    globus.order_fault("path", match="scratch*raw", code="PERMISSION_DENIED", seconds=3600)
    seen: list[Any] = []

    @flow(retries=2)
    def moves() -> None:
        if len(seen) == 2:
            globus.clear_faults()
        seen.append(submit_transfer(home.block, away.block, "raw"))
        if len(seen) == 1:
            raise RuntimeError("after the submission")
        wait_for_transfer(seen[-1])

    moves()
    first, again, anew = (handle.task_id for handle in seen)
    assert first == again, "it was still under way"
    assert anew != first, "it had failed"
    assert len(globus.transfers()) == before + 2
    assert away.files() == {"raw": b"content"}


def _lose(place: Place, what: str) -> None:
    if what == "deleted":
        (place.root / "raw").unlink()
    elif what == "replaced by another":
        (place.root / "raw").rename(place.root / "other")
    elif what == "cut":
        place.write("raw", b"half")


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("lost", ["nothing", "deleted", "replaced by another", "cut"])
def test_a_newer_attempt_moves_again_what_the_destination_lost_since(
    places: tuple[Place, Place], monkeypatch: pytest.MonkeyPatch, lost: str, crash: bool, pruned: bool
) -> None:
    """One that is still there, by names and sizes, stands, though its source is pruned and its process gone."""
    home, away = places
    home.write("raw", b"content")
    seen: list[TransferResult] = []

    @flow(retries=1)
    def moves() -> None:
        seen.append(run_transfer(home.block, away.block, [("raw", "raw")]))
        if len(seen) == 1:
            _lose(away, lost)
            away.write("later", b"not of this transfer")
            if pruned:
                (home.root / "raw").unlink()
            if crash:
                monkeypatch.setattr(transfer_local, "_tasks", {})
            raise RuntimeError("after the transfer")

    if pruned and lost != "nothing":
        monkeypatch.setattr(transfer_waits, "PAUSES_SECONDS", (0.1, 0.1))
        with pytest.raises(TransferError) as caught:
            moves()
        assert caught.value.cause is TransferCause.not_found
        return
    moves()
    assert away.files()["raw"] == b"content"
    again = seen[0].handle.task_id != seen[1].handle.task_id
    assert again == (lost != "nothing")
    assert seen[1].files_transferred == 1


def test_a_newer_attempt_moves_again_what_the_source_has_since(places: tuple[Place, Place]) -> None:
    home, away = places
    home.write("rec/1", b"one")
    tries = []

    @flow(retries=1)
    def moves() -> None:
        run_transfer(home.block, away.block, "rec")
        tries.append(away.files())
        if len(tries) == 1:
            home.write("rec/2", b"two")
            raise RuntimeError("after the transfer")

    moves()
    assert tries == [{"rec/1": b"one"}, {"rec/1": b"one", "rec/2": b"two"}]


def test_a_newer_attempt_deletes_again(places: tuple[Place, Place]) -> None:
    home, _ = places
    home.write("raw")
    tries = []

    @flow(retries=1)
    def deletes() -> None:
        delete_files(home.block, "raw")
        tries.append(home.files())
        if len(tries) == 1:
            home.write("raw")
            raise RuntimeError("after the deletion")

    deletes()
    assert tries == [{}, {}]


def test_intended_twins_are_two(places: tuple[Place, Place]) -> None:
    home, away = places
    home.write("raw", b"old")

    @flow
    def moves() -> set[str]:
        first = run_transfer(home.block, away.block, "raw")
        home.write("raw", b"new")
        return {first.handle.task_id, run_transfer(home.block, away.block, "raw").handle.task_id}

    assert len(moves()) == 2
    assert away.files() == {"raw": b"new"}


def test_a_retry_of_the_task_begins_a_copy_that_failed_anew(tmp_path: Path) -> None:
    home, away = local(tmp_path / "home"), local(tmp_path / "away")

    @flow
    def moves() -> None:
        moving = run_transfer.with_options(retries=1, retry_condition_fn=lambda *_: bool(home.write("raw")))
        moving(home.block, away.block, "raw")

    moves()
    assert away.files() == {"raw": b"content"}


async def test_progress_is_an_artifact(globus: Globus) -> None:
    home, away = _pair(globus)
    home.write("raw", b"12345")

    @flow
    async def moves() -> None:
        await arun_transfer(home.block, away.block, "raw")

    artifact = await _artifact(await moves(return_state=True))
    assert artifact.type == "progress"
    assert artifact.data == 100.0
    assert "succeeded, 1 of 1 files moved, 5 B" in str(artifact.description)


async def test_what_was_left_out_is_a_warning_and_on_the_card(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home, away = local(tmp_path / "home"), local(tmp_path / "away")
    home.write("rec/1")
    (home.root / "rec" / "link").symlink_to("1")
    os.mkfifo(home.root / "rec" / "fifo")

    @flow
    async def moves() -> TransferResult:
        return await arun_transfer(home.block, away.block, "rec")

    state = await moves(return_state=True)
    found = await state.result()  # type: ignore[misc]
    assert [(one.reason, one.count) for one in found.left_out] == [("FIFO", 1), ("link", 1)]
    words = f"left out: 1 × FIFO ({home.root}/rec/fifo), 1 × link ({home.root}/rec/link)"
    assert words in str((await _artifact(state)).description)
    [warning] = [record for record in caplog.records if words in record.message]
    assert warning.levelname == "WARNING"


async def _artifact(state: State[Any]) -> Artifact:
    assert state.state_details.flow_run_id is not None
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    async with get_client() as client:
        [artifact] = await client.read_artifacts(artifact_filter=wanted)
    return artifact


def test_an_empty_login_is_none_so_that_the_other_ends_is_used(
    globus: Globus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect's forms store `credentials: {}` where nobody filled anything in."""
    home, away = _pair(globus)
    home.write("raw", b"raw")
    client_id, secret = globus.login("client")
    monkeypatch.delenv("GLOBUS_COMPUTE_CLIENT_ID")
    monkeypatch.delenv("GLOBUS_COMPUTE_CLIENT_SECRET")
    login = {"client_id": client_id, "client_secret": secret}
    stored = [block.block.model_dump() for block in (home, away)]
    source = GlobusCollection.model_validate(stored[0] | {"credentials": {}})
    run_transfer(source, GlobusCollection.model_validate(stored[1] | {"credentials": login}), "raw")
    assert away.files() == {"raw": b"raw"}


def test_a_directory_and_a_collection_cannot_be_combined(globus: Globus, tmp_path: Path) -> None:
    home, _ = _pair(globus)
    with pytest.raises(SpecError, match="collection_id of this machine"):
        run_transfer(home.block, GlobusCollection(base_path=str(tmp_path)), "raw")


def test_a_copy_that_broke_off_leaves_no_half_file_and_is_taken_up(tmp_path: Path) -> None:
    home, away = local(tmp_path / "home"), local(tmp_path / "away")
    for number in range(20):
        home.write(f"rec/{number:02}", os.urandom(1000))
    away.write("rec/00", home.files("rec")["00"])
    away.write(f"rec/.{uuid.uuid4().hex}{PART}", b"half", age=3600)
    found = run_transfer(home.block, away.block, "rec")
    assert (found.files_transferred, found.files_skipped) == (19, 1)
    assert away.files() == home.files()


def test_two_copies_of_one_file_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is verified, and not yet renamed, when the other is made from its beginning to its end."""
    target, carrier = tmp_path / "target", LocalCarrier()
    for name in ("early", "late"):
        (tmp_path / name).write_text(name)
    utime = os.utime
    seen: list[int | str] = []

    def meanwhile(*args: Any, **options: Any) -> None:
        utime(*args, **options)
        if not seen:
            seen.append(len(list(tmp_path.glob(f".*{PART}"))))
            other = asyncio.run(_copy(carrier, tmp_path / "late", target))
            assert asyncio.run(_ended(carrier, other)).files_transferred == 1
            seen.append(target.read_text())

    monkeypatch.setattr(os, "utime", meanwhile)
    whole = asyncio.run(_copy(carrier, tmp_path / "early", target))
    assert asyncio.run(_ended(carrier, whole)).files_transferred == 1
    assert (seen, target.read_text()) == ([1, "late"], "early")
    assert list(tmp_path.glob(f".*{PART}")) == []


async def _copy(carrier: LocalCarrier, source: Path, target: Path) -> str:
    task_id, _ = await carrier.submit(
        Order("local", "local", [(str(source), str(target))]), await carrier.reserve()
    )
    return task_id


async def _ended(carrier: LocalCarrier, task_id: str) -> TransferStatus:
    while not (status := await carrier.look(task_id)).state.is_final:
        await asyncio.sleep(0.05)
    return status


def test_a_file_is_not_copied_onto_itself(tmp_path: Path) -> None:
    home = local(tmp_path / "home")
    home.write("raw", b"raw")
    with pytest.raises(TransferError, match="same file"):
        run_transfer(home.block, home.block, "raw")
    assert home.files() == {"raw": b"raw"}


def test_without_a_login(globus: Globus, monkeypatch: pytest.MonkeyPatch) -> None:
    home, away = _pair(globus)
    monkeypatch.delenv("GLOBUS_COMPUTE_CLIENT_SECRET")
    with pytest.raises(SpecError, match="globus-credentials"):
        run_transfer(home.block, away.block, "raw")


def _pair(globus: Globus) -> tuple[Place, Place]:
    base = uuid.uuid4().hex
    return emulated(globus, "home", base), emulated(globus, "scratch", base)

"""What Globus Transfer says, read; when a transfer is given up; what people are told."""

from __future__ import annotations

import asyncio
import sys
import time
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import requests
from globus_sdk import TransferAPIError
from hypothesis import given
from hypothesis import strategies as st

from prefect_psik import (
    ConsentRequired,
    GlobusCollection,
    GlobusCredentials,
    PruneVerdict,
    SpecError,
    TransferCause,
    TransferError,
    TransferHandle,
    TransferResult,
    TransferState,
)
from prefect_psik.data import submit as transfer_runs
from prefect_psik.data import wait as waits
from prefect_psik.data.carriers.globus import GlobusCarrier, collections_in, error_of, status_of
from prefect_psik.data.once import LABEL, Kept, transfers_of
from prefect_psik.data.proof import globus as prune_globus
from prefect_psik.data.report import amount, describe
from prefect_psik.models.prunes import PruneFile
from prefect_psik.models.transfers import Order, TransferStatus, TransferUpdate
from prefect_psik.session.poller import Subscription

HANDLE = TransferHandle(task_id="t", source="home:raw", destination="away:raw")


@pytest.mark.parametrize(
    ("task", "state", "is_ok", "cause"),
    [
        ({"status": "ACTIVE", "is_ok": True, "nice_status": "OK"}, TransferState.active, True, None),
        ({"status": "ACTIVE", "is_ok": None, "nice_status": "Queued"}, TransferState.active, True, None),
        (
            {"status": "ACTIVE", "is_ok": False, "nice_status": "PERMISSION_DENIED"},
            TransferState.active,
            False,
            TransferCause.permission_denied,
        ),
        (
            {"status": "ACTIVE", "is_ok": False, "nice_status": "SOMETHING_NEW"},
            TransferState.active,
            False,
            TransferCause.other,
        ),
        ({"status": "INACTIVE", "is_ok": None}, TransferState.inactive, False, TransferCause.other),
        ({"status": "SUCCEEDED", "is_ok": None, "nice_status": None}, TransferState.succeeded, True, None),
        (
            {"status": "FAILED", "is_ok": None, "fatal_error": {"code": "CANCELED", "description": "canceled"}},
            TransferState.failed,
            False,
            TransferCause.canceled,
        ),
        (
            {"status": "FAILED", "fatal_error": None},
            TransferState.failed,
            False,
            TransferCause.other,
        ),
    ],
)
def test_a_task_document_is_read(
    task: dict[str, Any], state: TransferState, is_ok: bool, cause: TransferCause | None
) -> None:
    found = status_of(task)
    assert (found.state, found.is_ok, found.cause) == (state, is_ok, cause)


@pytest.mark.parametrize("state", [TransferState.failed, TransferState.active, TransferState.inactive])
def test_only_succeeded_is_success(state: TransferState) -> None:
    with pytest.raises(TransferError):
        waits.succeeded(HANDLE, TransferStatus(state=state))
    with pytest.raises(TransferError):
        waits.succeeded(HANDLE, None)
    assert waits.succeeded(HANDLE, TransferStatus(state=TransferState.succeeded, files=2)).files == 2


def test_a_result_that_an_older_release_stored_is_read() -> None:
    stored = {"handle": HANDLE.model_dump(), "files": 2, "files_transferred": 1, "files_skipped": 1}
    stored |= {"bytes_transferred": 3, "bytes_per_second": 3, "faults": 0}
    assert TransferResult.model_validate(stored).left_out == []


class Service:
    """A carrier that says what a test wrote down, and notes cancels."""

    def __init__(self, *script: TransferStatus | TransferError) -> None:
        self.script = list(script)
        self.cancels = 0

    async def look(self, task_id: str) -> TransferStatus:
        said = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(said, TransferError):
            raise said
        return said

    async def cancel(self, task_id: str) -> None:
        self.cancels += 1
        self.script = [TransferStatus(state=TransferState.failed, cause=TransferCause.canceled)]


ACTIVE = TransferStatus(state=TransferState.active)
DONE = TransferStatus(state=TransferState.succeeded)
DENIED = TransferStatus(state=TransferState.active, is_ok=False, cause=TransferCause.permission_denied)
AWAY = TransferStatus(state=TransferState.active, is_ok=False, cause=TransferCause.away)


def _follow(service: Service, monkeypatch: pytest.MonkeyPatch, deadline: float | None = None) -> TransferUpdate:
    """The last that is told; an error is raised."""
    monkeypatch.setattr(waits, "PAUSES_SECONDS", (0.0, 0.0))
    handle = HANDLE.model_copy(update={"deadline": deadline})

    async def work() -> TransferUpdate:
        subscription: Subscription[TransferUpdate] = Subscription()
        await waits.follow(service, handle, subscription)  # type: ignore[arg-type]
        while True:
            update = await asyncio.wrap_future(subscription.next())
            if update.is_final:
                return update

    return asyncio.run(work())


def test_an_end_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(ACTIVE, *[AWAY] * 5, TransferError("x", transient=True), ACTIVE, DONE)
    assert _follow(service, monkeypatch).status == DONE
    assert service.cancels == 0


def test_one_denied_look_is_not_the_end_and_two_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _follow(Service(DENIED, ACTIVE, DENIED, DONE), monkeypatch).status == DONE
    service = Service(ACTIVE, DENIED, DENIED, DONE)
    found = _follow(service, monkeypatch).status
    assert found is not None
    assert (found.state, found.cause, service.cancels) == (
        TransferState.failed,
        TransferCause.permission_denied,
        1,
    )


def test_a_deadline_cancels_once(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(ACTIVE)
    found = _follow(service, monkeypatch, time.time() - 1).status
    assert found is not None
    assert (found.cause, service.cancels) == (TransferCause.deadline, 1)


def test_a_service_that_stays_silent_past_the_deadline_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(TransferError("silence", transient=True))
    with pytest.raises(TransferError, match="whether it has ended is unknown"):
        _follow(service, monkeypatch, time.time() - waits.GRACE_SECONDS - 1)


def test_what_is_no_trouble_on_the_way_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TransferError, match="gone"):
        _follow(Service(TransferError("gone")), monkeypatch)


async def test_files_that_were_not_submitted_under_that_name_prove_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Renaming(Service):
        async def reserve(self) -> str:
            return "s"

        async def submit(self, order: Order, submission_id: str) -> tuple[str, bool]:
            return "t", True

        async def moved(self, task_id: str) -> set[str]:
            return {"/home/u/data/1"}

    service = Renaming(TransferStatus(state=TransferState.succeeded, files=1, files_transferred=1))
    monkeypatch.setattr(prune_globus, "globus_carrier_of", lambda _: service)
    away = GlobusCollection(collection_id=UUID(int=1), base_path="/~/data")
    work = prune_globus.GlobusPrune(away, away, "mark", time.time() + 60, "1", "room")
    file = PruneFile(path="1", size=1, modified=1.0, verdict=PruneVerdict.delete)
    with pytest.raises(TransferError, match="'/home/u/data/1' as moved"):
        await work.prove([file])


def test_a_cancel_that_does_not_end_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_runs, "CANCEL_SECONDS", 0.2)

    class Deaf(Service):
        async def cancel(self, task_id: str) -> None:
            return

    with pytest.raises(TransferError, match="has not ended; it may still be running"):
        transfer_runs.cancel(Deaf(ACTIVE), HANDLE).result(60)  # type: ignore[arg-type]


async def test_a_look_that_wants_to_exit_is_a_passing_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the SDK logs and nobody reads the output: the worker was killed."""

    def exits(login: GlobusCredentials) -> None:
        sys.exit(1)

    monkeypatch.setattr(GlobusCredentials, "get_client", exits)
    with pytest.raises(TransferError, match="cut off") as caught:
        await GlobusCarrier(GlobusCredentials()).look("t")
    assert caught.value.transient


def test_a_person_is_told_the_command_of_a_missing_consent() -> None:
    answer = requests.Response()
    answer.status_code = 403
    answer.headers["Content-Type"] = "application/json"
    answer._content = b'{"code": "ConsentRequired", "message": "Missing.", "required_scopes": ["s[*t]", "u"]}'
    answer.request = requests.Request("GET", "https://transfer.api.globus.org/").prepare()
    found = error_of(TransferAPIError(answer), None)
    assert isinstance(found, ConsentRequired)
    assert str(found).endswith("running: globus session consent 's[*t]' 'u'")


def test_a_collection_is_read_from_its_scope() -> None:
    key = "f858bcaa-a9b3-4036-9cb3-fbfe6ec97453"
    scope = f"urn:globus:auth:scope:transfer.api.globus.org:all[*https://auth.globus.org/scopes/{key}/data_access]"
    assert collections_in([scope]) == {key}
    assert collections_in(["urn:globus:auth:scope:transfer.api.globus.org:all"]) == set()


def test_labels_of_others_are_left_out() -> None:
    kept = Kept(submission_id="s", attempt=[1, 1])
    labels = {LABEL + "k": kept.model_dump_json(), LABEL + "broken": "{", "psik.place.x": "{}", "n": 3}
    assert transfers_of(labels) == {"k": kept}


def test_what_holds_it_up_is_told() -> None:
    status = TransferStatus(
        state=TransferState.active,
        nice_status="GC_NOT_CONNECTED",
        detail="globus connect offline",
        files=10,
        files_transferred=3,
        files_skipped=2,
        bytes_transferred=1_500_000,
        bytes_per_second=20_000,
        faults=4,
    )
    assert describe(status) == (
        "active (GC_NOT_CONNECTED: globus connect offline), 3 of 10 files moved, 2 already there, 1.5 MB, "
        "20.0 kB/s, 4 faults"
    )
    assert status.progress == 50.0
    assert amount(3) == "3 B"
    assert amount(2.5e15) == "2500.0 TB"


@given(st.text(max_size=30))
def test_no_path_leaves_the_base_path(path: str) -> None:
    block = GlobusCollection(base_path="/als/832", posix_root="/pscratch/sd/a")
    try:
        found = block.path(path)
    except SpecError:
        return
    assert found.startswith("/als/832/")
    assert "/.." not in found
    assert block.posix(path).startswith("/pscratch/sd/a/als/832")


async def test_a_transfer_excludes_the_marks_of_prunes_by_a_filter_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []

    def submit_transfer(data: dict[str, Any]) -> dict[str, str]:
        sent.append(dict(data))
        return {"task_id": "1", "code": "Accepted"}

    client = SimpleNamespace(submit_transfer=submit_transfer)
    monkeypatch.setattr(GlobusCarrier, "_connected", lambda _: (client, frozenset()))
    assert await GlobusCarrier(GlobusCredentials()).submit(Order("a", "b", [("/x", "/y")]), "s") == ("1", True)
    [rule] = sent[0]["filter_rules"]
    assert (rule["method"], rule["name"], rule["type"]) == ("exclude", ".prefect-psik-prune-*", "dir")

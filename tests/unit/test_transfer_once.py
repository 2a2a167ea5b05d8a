"""One transfer for one submission: which task a retry gets, and where that is kept."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from prefect_psik import TransferCause, TransferError, TransferState
from prefect_psik.data import once as transfer_once
from prefect_psik.data.once import Keeping, Kept, keep_arrival, repeated, submit_once, transfers_of
from prefect_psik.models.transfers import Arrival, FileEntry, Order, TransferStatus

ROOT, CHILD = str(uuid.uuid4()), str(uuid.uuid4())
ORDER = Order("here", "there", [("a", "a"), ("b", "b")])
FIRST = Keeping(key="k", flow_runs=(ROOT, CHILD), attempt=(1, 1), collection="home", cancel=False)
SECOND = replace(FIRST, attempt=(1, 2))
DONE = TransferStatus(state=TransferState.succeeded, files=2)
FAILED = TransferStatus(state=TransferState.failed, cause=TransferCause.quota, files=2)


@dataclass
class Service:
    """Transfer as these tests need it: tasks, what became of them, and what is at the destination."""

    status: TransferStatus = field(default_factory=lambda: DONE)
    there: dict[str, int | str] = field(default_factory=lambda: {"a": 1, "b": 2})
    here: dict[str, int | str] = field(default_factory=dict)
    moved: dict[str, int] | None = None
    tasks: dict[str, str] = field(default_factory=dict)
    recalled: list[Arrival] = field(default_factory=list)
    ended: Arrival | None = None

    async def reserve(self) -> str:
        return f"submission {len(self.tasks)}"

    async def submit(self, order: Order, submission_id: str) -> tuple[str, bool]:
        created = submission_id not in self.tasks
        return self.tasks.setdefault(submission_id, f"task {len(self.tasks)}"), created

    async def look(self, task_id: str) -> TransferStatus:
        return self.status

    async def holds(self, task_id: str, files: Mapping[str, int]) -> bool:
        return self.moved is None or self.moved.items() <= files.items()

    async def arrival(self, task_id: str) -> Arrival | None:
        return self.ended

    async def recall(self, task_id: str, arrival: Arrival) -> None:
        self.recalled.append(arrival)

    async def list(self, collection: str, path: str, *, recursive: bool) -> AsyncIterator[FileEntry]:
        """Files by their sizes, other entries by their kinds."""
        files = self.there if collection == "there" else self.here
        found = {name: size for name, size in files.items() if name == path or name.startswith(f"{path}/")}
        if not found:
            raise TransferError("It is not there.", cause=TransferCause.not_found)
        for name, size in found.items():
            if size == "denied":
                raise TransferError("You may not.", cause=TransferCause.permission_denied)
            entry = {"kind": "file", "size": size} if isinstance(size, int) else {"kind": size, "size": 7}
            yield FileEntry.model_validate({"path": name, **entry})


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The labels of flow runs, as Prefect keeps them."""
    kept: dict[str, dict[str, Any]] = {ROOT: {}, CHILD: {}}

    class Client:
        async def read_flow_run(self, flow_run: uuid.UUID) -> Any:
            if str(flow_run) not in kept:
                raise httpx.ConnectError("nobody answers")
            return SimpleNamespace(labels=kept[str(flow_run)])

    @contextlib.asynccontextmanager
    async def client() -> AsyncIterator[Client]:
        yield Client()

    async def set_label(flow_run: str, name: str, value: str) -> None:
        if flow_run not in kept:
            raise httpx.ConnectError("nobody answers")
        kept[flow_run][name] = value

    monkeypatch.setattr(transfer_once, "get_client", client)
    monkeypatch.setattr(transfer_once, "set_label", set_label)
    return kept


async def _submit(service: Service, keeping: Keeping, order: Order = ORDER) -> tuple[str, bool]:
    return await submit_once(service, order, keeping)  # type: ignore[arg-type]


async def test_it_is_kept_at_the_root_and_at_each_flow_run_that_a_cancel_may_end(
    labels: dict[str, dict[str, Any]],
) -> None:
    assert await _submit(Service(), FIRST) == ("task 0", True)
    kept = Kept(submission_id="submission 0", attempt=[1, 1], task_id="task 0", collection="home", cancel=False)
    for flow_run in (ROOT, CHILD):
        assert {name: Kept.model_validate_json(text) for name, text in labels[flow_run].items()} == {
            "psik.transfer.k": kept
        }


@pytest.mark.parametrize("status", [FAILED, DONE, TransferStatus(state=TransferState.active)])
async def test_the_same_attempt_gets_the_same_task_whatever_became_of_it(
    labels: dict[str, dict[str, Any]], status: TransferStatus
) -> None:
    service = Service(status, there={})
    await _submit(service, SECOND)
    assert await _submit(service, SECOND) == ("task 0", False)
    assert await _submit(service, FIRST) == ("task 0", False), "a late word of an older attempt"
    assert len(service.tasks) == 1


ONE = TransferStatus(state=TransferState.succeeded, files=1)


@pytest.mark.parametrize(
    ("status", "there", "here", "anew"),
    [
        (FAILED, {"a": 1, "b": 2}, {}, True),
        (TransferStatus(state=TransferState.active), {}, {}, False),
        (DONE, {"a": 1, "b": 2}, {}, False),
        (DONE, {"a": "directory", "a/1": 1, "a/2": 1}, {}, False),
        (DONE, {"a": 1}, {}, True),
        (DONE, {"a": "directory", "a/1": 1}, {}, True),
        (DONE, {"a": 1, "b": "link"}, {}, True),
        (ONE, {"a": 1}, {}, False),
        (TransferStatus(state=TransferState.succeeded, files=0), {"a": 1}, {}, True),
        # What is at the source now must be at the destination, by name and size.
        (DONE, {"a": 1, "b": 2}, {"a": 1, "b": 2}, False),
        (DONE, {"a": 1, "b": 2}, {"b": 2}, False),
        (DONE, {"a": 1, "b": 2}, {"a": 1, "b": 3}, True),
        (DONE, {"a/1": 1, "a/2": 2}, {"a/1": 1, "a/3": 2}, True),
        (DONE, {"a/1": 1, "a/2": 2, "a/later": 3}, {"a/1": 1, "a/2": 2}, False),
        (DONE, {"a": 1, "b": 2}, {"a": "denied"}, False),
    ],
)
async def test_a_newer_attempt_begins_anew_what_failed_or_is_not_whole_any_more(
    labels: dict[str, dict[str, Any]],
    status: TransferStatus,
    there: dict[str, int | str],
    here: dict[str, int | str],
    anew: bool,
) -> None:
    service = Service(status, there, here)
    await _submit(service, FIRST)
    assert await _submit(service, SECOND) == (("task 1", True) if anew else ("task 0", False))
    assert await _submit(service, SECOND) == (f"task {int(anew)}", False)
    assert Kept.model_validate_json(labels[ROOT]["psik.transfer.k"]).attempt == [1, 2 if anew else 1]


@pytest.mark.parametrize(
    ("moved", "anew"), [({"a": 1, "b": 2}, False), ({"a": 1, "b": 3}, True), ({"c": 1}, True)]
)
async def test_a_newer_attempt_begins_anew_what_was_replaced_since(
    labels: dict[str, dict[str, Any]], moved: dict[str, int], anew: bool
) -> None:
    service = Service(moved=moved)
    await _submit(service, FIRST)
    assert await _submit(service, SECOND) == (("task 1", True) if anew else ("task 0", False))


async def test_where_files_go_is_compared_and_not_where_they_came_from(labels: dict[str, dict[str, Any]]) -> None:
    order = replace(ORDER, items=[("from/a", "to/b"), ("one", "two")])
    service = Service(there={"to/b/1": 1, "two": 2}, here={"from/a/1": 1, "one": 2})
    await _submit(service, FIRST, order)
    assert await _submit(service, SECOND, order) == ("task 0", False)
    service.there["two"] = 3
    assert await _submit(service, SECOND, order) == ("task 1", True)


async def test_copies_that_a_prune_made_are_no_data(labels: dict[str, dict[str, Any]]) -> None:
    """They exist while it lasts, beside the files of its check, and no transfer takes them along."""
    service = Service(here={"a": 1, "b/.prefect-psik-prune-check-1/b/c": 5, "b/c": 2}, there={"a": 1, "b/c": 2})
    await _submit(service, FIRST)
    assert await _submit(service, SECOND) == ("task 0", False)
    service.here["b/d"] = 5
    assert await _submit(service, SECOND) == ("task 1", True)


async def test_how_a_copy_ended_is_kept_for_the_process_after_this_one(labels: dict[str, dict[str, Any]]) -> None:
    service = Service(ended=Arrival(status=DONE, names="YWJj"))
    await _submit(service, FIRST)
    await keep_arrival(service, "submission 0", [ROOT, CHILD])  # type: ignore[arg-type]
    assert Kept.model_validate_json(labels[ROOT]["psik.transfer.k"]).arrival == service.ended
    await _submit(service, SECOND)
    assert service.recalled == [service.ended]


@pytest.mark.parametrize("flow_runs", [[], [str(uuid.uuid4())]])
async def test_a_copy_succeeds_where_its_end_cannot_be_kept(
    labels: dict[str, dict[str, Any]], flow_runs: list[str]
) -> None:
    service = Service(ended=Arrival(status=DONE, names=""))
    await _submit(service, FIRST)
    await keep_arrival(service, "submission 0", flow_runs)  # type: ignore[arg-type]
    assert Kept.model_validate_json(labels[ROOT]["psik.transfer.k"]).arrival is None


@pytest.mark.parametrize(
    ("order", "anew"),
    [
        (replace(ORDER, destination=None), True),
        (replace(ORDER, items=[]), True),
        (replace(ORDER, items=[("all", "all")]), False),
        (replace(ORDER, items=[("all", "all")] * 20), False),
        (replace(ORDER, items=[("all", "all")] * 21), True),
    ],
)
async def test_what_cannot_be_looked_at_is_begun_anew(
    labels: dict[str, dict[str, Any]], order: Order, anew: bool
) -> None:
    service = Service(there={"a": 1, "all/1": 1, "all/2": 1})
    await _submit(service, FIRST, order)
    assert await _submit(service, SECOND, order) == (("task 1", True) if anew else ("task 0", False))


async def test_a_destination_that_is_not_seen_is_not_taken_for_an_empty_one(
    labels: dict[str, dict[str, Any]],
) -> None:
    service = Service(there={"a": "denied"})
    await _submit(service, FIRST)
    with pytest.raises(TransferError, match="may not"):
        await _submit(service, SECOND)
    assert len(service.tasks) == 1


@pytest.mark.parametrize("keeping", [replace(FIRST, key=None), replace(FIRST, flow_runs=())])
async def test_outside_of_a_flow_nothing_is_kept(labels: dict[str, dict[str, Any]], keeping: Keeping) -> None:
    service = Service()
    assert await _submit(service, keeping) == ("task 0", True)
    assert await _submit(service, keeping) == ("task 1", True)
    assert labels == {ROOT: {}, CHILD: {}}


async def test_where_it_cannot_be_kept_nothing_is_submitted_and_a_retry_may_help(
    labels: dict[str, dict[str, Any]],
) -> None:
    service = Service()
    del labels[CHILD]  # it is read at the root, and written at both
    for keeping in (FIRST, replace(FIRST, flow_runs=(CHILD,))):
        with pytest.raises(TransferError, match="nobody answers") as caught:
            await _submit(service, keeping)
        assert caught.value.transient
    assert service.tasks == {}


def test_what_others_wrote_there_is_left_out_and_what_another_release_wrote_is_read() -> None:
    labels = {
        "psik.transfer.k": '{"submission_id": "s", "attempt": [1], "later": 1}',
        "psik.transfer.l": "garbage",
        "theirs": '{"submission_id": "s", "attempt": [1]}',
    }
    assert transfers_of(labels) == {"k": Kept(submission_id="s", attempt=[1])}
    assert Kept(submission_id="s", attempt=[1]).cancel
    assert Keeping().cancel


async def test_a_cancel_from_outside_may_miss_it_but_a_retry_does_not(labels: dict[str, dict[str, Any]]) -> None:
    """The task's id is written a second time, for cancels; without it the submission's id is enough."""
    service = Service()
    original = service.submit

    async def submit_and_lose_the_api(order: Order, submission_id: str) -> tuple[str, bool]:
        kept.update(labels)
        labels.clear()
        return await original(order, submission_id)

    kept: dict[str, dict[str, Any]] = {}
    service.submit = submit_and_lose_the_api  # type: ignore[method-assign]
    assert await _submit(service, FIRST) == ("task 0", True)
    labels.update(kept)
    service.submit = original  # type: ignore[method-assign]
    assert await _submit(service, FIRST) == ("task 0", False)
    assert Kept.model_validate_json(labels[ROOT]["psik.transfer.k"]).task_id == "task 0"


@pytest.mark.parametrize(("transient", "calls"), [(True, 3), (False, 1)])
async def test_only_a_transient_error_is_answered_with_another_call(
    transient: bool, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def call() -> str:
        made.append(1)
        if len(made) < 3:
            raise TransferError("It stumbled.", transient=transient)
        return "done"

    monkeypatch.setattr(asyncio, "sleep", sleep)
    made: list[int] = []
    if transient:
        assert await repeated(call) == "done"
        assert 0.5 <= slept[0] <= 1.0 <= slept[1] <= 1.5
    else:
        with pytest.raises(TransferError, match="stumbled"):
            await repeated(call)
    assert len(made) == calls


async def test_a_call_is_given_up_after_two_minutes_with_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal clock
        clock += seconds
        slept.append(seconds)

    async def call() -> None:
        raise TransferError("It stumbled.", transient=True)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    with pytest.raises(TransferError, match="stumbled"):
        await repeated(call)
    assert 120 <= clock < 145
    assert 20 <= max(slept) <= 20.5

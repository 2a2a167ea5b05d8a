"""Tests of the labels that say where a flow run has jobs: what Prefect keeps, and what a cancel reads of it."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from prefect_psik import PsikBackend
from prefect_psik.flow_run import labels as marks
from prefect_psik.flow_run.labels import LABEL, Place, mark, place_of, places_of, set_label

ENDPOINT = UUID("11111111-2222-4333-8444-555555555555")
PLACE = Place(endpoint_id=ENDPOINT, prefix="/psik", backend="perlmutter")


class Server:
    """Labels of flow runs; as Prefect's server does, it reads all of them before it writes all of them."""

    def __init__(self) -> None:
        self.labels: dict[UUID, dict[str, Any]] = {}
        self.updates = 0
        self.down: Exception | None = None

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def update_flow_run_labels(self, flow_run: UUID, labels: dict[str, Any]) -> None:
        self.updates += 1
        present = self.labels.get(flow_run, {})
        await asyncio.sleep(0)
        if self.down is not None:
            raise self.down
        self.labels[flow_run] = present | labels


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(marks, "get_client", lambda: server)
    return server


@pytest.fixture
def flow_run() -> str:
    return str(uuid4())


async def test_cancel_reads_the_places_of_the_jobs_from_the_labels(server: Server, flow_run: str) -> None:
    parent, other = str(uuid4()), Place(prefix="/home/me/psik")
    assert await mark([flow_run, parent], PLACE) == []
    assert await mark([flow_run], other) == []
    assert places_of(server.labels[UUID(flow_run)]) == [PLACE, other]
    assert places_of(server.labels[UUID(parent)]) == [PLACE]


async def test_flow_run_is_marked_once_for_each_place(server: Server, flow_run: str) -> None:
    await asyncio.gather(*(mark([flow_run], PLACE) for _ in range(3)))
    await mark([flow_run], PLACE.model_copy(update={"backend": "renamed"}))
    assert server.updates == 1
    await mark([flow_run], PLACE.model_copy(update={"prefix": "/other"}))
    assert server.updates == 2


async def test_labels_that_are_set_at_the_same_time_all_stay(server: Server, flow_run: str) -> None:
    await asyncio.gather(*(set_label(flow_run, f"psik.{n}", str(n)) for n in range(5)))
    assert server.labels[UUID(flow_run)] == {f"psik.{n}": str(n) for n in range(5)}


async def test_mark_is_written_although_the_submission_that_asked_is_cancelled(
    server: Server, flow_run: str
) -> None:
    asking = asyncio.create_task(mark([flow_run], PLACE))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await mark([flow_run], PLACE)
    assert (places_of(server.labels[UUID(flow_run)]), server.updates) == ([PLACE], 1)


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), OSError("no route"), ValueError("no such label")]
)
async def test_mark_that_fails_is_reported_and_written_by_the_next_submission(
    server: Server, flow_run: str, error: Exception
) -> None:
    server.down = error
    (trouble,) = await mark([flow_run], PLACE)
    assert trouble == f"flow run {flow_run} could not be labeled as having jobs under /psik: {error}"
    server.down = None
    assert await mark([flow_run], PLACE) == []
    assert places_of(server.labels[UUID(flow_run)]) == [PLACE]


def test_label_is_the_same_for_the_same_endpoint_and_prefix_alone() -> None:
    """Labels outlive a release: another name for the same place would hide the jobs of older flow runs."""
    assert PLACE.label == "psik.place.40086fccdd96"
    others = [Place(endpoint_id=ENDPOINT, prefix="/psik/x"), Place(prefix="/psik")]
    assert len({PLACE.label, *(other.label for other in others)}) == 3


def test_place_of_a_block_is_its_endpoint_and_prefix_under_its_name() -> None:
    block = PsikBackend(endpoint_id=ENDPOINT, prefix="/psik")
    block._block_document_name = "perlmutter"
    assert place_of(block) == PLACE


def test_labels_that_are_not_of_ours_or_not_readable_are_left_out() -> None:
    text = PLACE.model_dump_json()
    labels = {"mine": text, f"{LABEL}1": "not JSON", f"{LABEL}2": 3, f"{LABEL}3": "{}", PLACE.label: text}
    assert places_of(labels) == [PLACE]


def test_label_of_a_newer_release_is_read_as_far_as_it_is_known() -> None:
    assert places_of({f"{LABEL}1": '{"prefix": "/psik", "cluster": "alps"}'}) == [Place(prefix="/psik")]

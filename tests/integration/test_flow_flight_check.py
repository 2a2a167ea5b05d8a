"""flows/flight_check.py: a verdict for each place; what does not work is an event and a red run."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

import flows.flight_check
from flows.flight_check import flight_check, saved
from prefect_psik import GlobusCollection, PsikBackend
from tests.integration.local import backend_at, runs
from tests.integration.test_slurm_jobs import backend, client, with_attributes
from tests.integration.transfer_places import emulated
from tests.testbed.facility import Facility
from tests.testbed.globus import Globus

__all__ = ["backend", "client"]

pytestmark = pytest.mark.usefixtures("prefect_server")


def newest_table() -> dict[str, str]:
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["flight-check"]))
    with get_client(sync_client=True) as api:
        newest = max(api.read_artifacts(artifact_filter=wanted), key=lambda one: str(one.created))
    return {row["name"]: f"{row['verdict']}: {row['found']}" for row in json.loads(str(newest.data))}


async def events(name: str, place: str) -> list[str]:
    """The places that events of this kind name, once this one is among them."""
    for _ in range(360):
        async with get_client() as api:
            answer = await api._client.post("/events/filter", json={"filter": {"event": {"name": [name]}}})
        found = [event["resource"]["prefect.resource.name"] for event in answer.json()["events"]]
        if place in found:
            return found
        await asyncio.sleep(0.5)
    return []


async def test_each_backend_has_a_verdict_and_trouble_is_an_event(
    facility: Facility, backend: PsikBackend, prefix: Path
) -> None:
    await backend.asave("checked", overwrite=True)
    await with_attributes(backend, queue_name="off").asave("checked-off", overwrite=True)
    await backend_at(prefix).asave("checked-here", overwrite=True)
    closed = backend_at(prefix).model_copy(update={"accept_jobs": False, "note": "maintenance"})
    await closed.asave("checked-closed", overwrite=True)
    names = ["checked", "checked-off", "checked-here", "checked-closed", "checked-missing"]
    with pytest.raises(RuntimeError, match="2 of 5 checks failed") as told:
        await flight_check(names)
    assert "DOWN" in str(told.value)
    table = newest_table()
    assert table["checked"].startswith("works: ")
    assert table["checked-here"].startswith("works: ")
    assert table["checked-closed"] == "closed: maintenance"
    assert table["checked-off"].startswith("failed: ")
    assert table["checked-missing"].startswith("failed: ")
    assert runs(prefix) == [[1]]
    assert set(await events("psik.flight-check.failed", "checked-missing")) >= {"checked-off", "checked-missing"}


async def test_a_tiny_file_goes_to_each_collection_and_back(globus: Globus, tmp_path: Path) -> None:
    base = f"flight-{tmp_path.name}"
    home, away = emulated(globus, "home", base), emulated(globus, "scratch", base)
    denied = emulated(globus, "scratch", f"{base}-denied")
    root = str(home.root).removesuffix(home.block.base_path)
    await home.block.model_copy(update={"posix_root": root}).asave("flight-home", overwrite=True)
    await away.block.asave("flight-away", overwrite=True)
    await denied.block.asave("flight-denied", overwrite=True)
    await away.block.asave("flight-twin", overwrite=True)  # another name of the same place
    await GlobusCollection(base_path=str(tmp_path)).asave("flight-local", overwrite=True)
    globus.order_fault("path", match="scratch*denied*", code="PERMISSION_DENIED", seconds=3600)
    names = ["flight-away", "flight-twin", "flight-denied", "flight-local"]
    with pytest.raises(RuntimeError, match="1 of 4 checks failed"):
        await flight_check([], names, home="flight-home")
    table = newest_table()
    assert table["flight-away"].startswith("works: ")
    assert table["flight-twin"].startswith("works: ")
    assert table["flight-denied"].startswith("failed: ")
    assert table["flight-local"].startswith("skipped: ")
    assert away.files() == denied.files() == home.files() == {}, "also what a failed check sent is removed"


async def test_a_network_that_fails_in_one_check_is_its_verdict(
    prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("checked-here", "checked-far"):
        await backend_at(prefix).asave(name, overwrite=True)

    async def breaks(block: PsikBackend) -> None:
        if block.document_name == "checked-far":
            raise httpx.ReadTimeout("")

    monkeypatch.setattr(flows.flight_check, "arun_preflight", breaks)
    with pytest.raises(RuntimeError, match="1 of 2 checks failed"):
        await flight_check(["checked-here", "checked-far"])
    table = newest_table()
    assert table["checked-here"].startswith("works: ")
    assert table["checked-far"] == "failed: ReadTimeout('')"
    assert "checked-far" in await events("psik.flight-check.failed", "checked-far")


async def test_by_itself_it_checks_all_saved_backends(prefix: Path) -> None:
    await backend_at(prefix).asave("checked-here", overwrite=True)
    assert "checked-here" in await saved("psik-backend")

"""flows/dispatcher.py with a real server and worker: a verdict for each facility, and red where one is missing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.states import Cancelling
from prefect.variables import Variable

from flows.dispatcher import cancel_children, dispatcher
from flows.store import Phantom, take_scan
from prefect_psik import GlobusCollection
from tests.integration.local import backend_at, wait_until
from tests.integration.prefect_services import POOL, Services
from tests.integration.prefect_services import own_services as services
from tests.integration.test_flows import SMALL, needs_tomography
from tests.integration.transfer_places import Place, local

__all__ = ["services"]


@pytest.fixture(scope="module")
def worker(services: Services) -> Iterator[Services]:
    services.prefect("deploy", "tests/integration/children.py:child", "--name", "child", "--pool", POOL)
    services.prefect("deploy", "--name", "prune")
    services.worker()
    with services.api():
        yield services
    services.end_children()


@pytest.fixture
def data(worker: Services, tmp_path: Path) -> dict[str, Place]:
    """Detector and data store on this machine, as blocks; a scan has arrived."""
    found = {name: local(tmp_path / "data" / name) for name in ("detector", "store")}
    for name, place in found.items():
        place.block.save(name, overwrite=True)
    found["detector"].write("raw/scan-1.h5", b"counts")
    return found


@pytest.fixture
def marks(tmp_path: Path, data: dict[str, Place]) -> Path:
    """Where the children leave their marks."""
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


async def dispatch(marks: Path, choices: Any, *, retries: int = 0, **options: Any) -> Any:
    await Variable.aset("facilities", choices, overwrite=True)
    run = dispatcher.with_options(retries=retries)
    options = {"deployment": "child/child", "parameters": {"marks": str(marks)}, **options}
    return await run("scan-1", "detector", "store", **options)


def names(marks: Path) -> set[str]:
    """Scan, facility and attempt of each child that ran."""
    return {path.name for path in marks.iterdir()}


def table(worker: Services) -> dict[str, str]:
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["dispatcher"]))
    with worker.client() as api:
        newest = max(api.read_artifacts(artifact_filter=wanted), key=lambda one: str(one.created))
    return {row["facility"]: row["verdict"] for row in json.loads(str(newest.data))}


async def test_an_optional_facility_that_fails_is_told(worker: Services, marks: Path) -> None:
    choices = {"good": "required", "broken": "optional", "other": "off"}
    verdicts = await dispatch(marks, choices)
    assert verdicts["good"].startswith("Completed")
    assert "The facility is broken" in verdicts["broken"]
    assert table(worker)["other"] == "turned off"
    assert names(marks) == {"scan-1.good.1", "scan-1.broken.1"}


async def test_s8_a_required_child_that_fails_makes_the_run_red(worker: Services, marks: Path) -> None:
    """In splash-flows the dispatcher is always green. Here it fails, and stops no other child (S9)."""
    with pytest.raises(RuntimeError, match=r"not completed at broken: Failed: .*The facility is broken"):
        await dispatch(marks, {"broken": "required", "good": "optional"})
    assert table(worker)["good"].startswith("Completed")


async def test_a_retry_runs_only_the_failed_child_again(worker: Services, marks: Path) -> None:
    with pytest.raises(RuntimeError):
        await dispatch(marks, {"broken": "required", "good": "required"}, retries=1)
    assert names(marks) == {"scan-1.broken.1", "scan-1.good.1", "scan-1.broken.2"}


async def test_a_cancel_reaches_the_children(worker: Services, marks: Path) -> None:
    task = asyncio.create_task(dispatch(marks, {"slow": "required"}))
    await asyncio.to_thread(wait_until, lambda: names(marks), 180)
    parent, child = worker.newest("dispatcher"), worker.newest("child")
    worker.cancel(parent)
    with worker.client() as api:
        await asyncio.to_thread(cancel_children, dispatcher, api.read_flow_run(parent), Cancelling())
    with pytest.raises(RuntimeError, match="not completed at slow: Cancelled"):
        await task
    assert worker.state(child).is_cancelled()


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"good": "yes"}, "is not valid: .*Write it as"),
        ({"good": "off"}, "turns all facilities off"),
        ("perlmutter", "is not valid"),
    ],
)
async def test_a_variable_that_is_wrong_is_told(worker: Services, marks: Path, choices: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        await dispatch(marks, choices)
    assert names(marks) == set()


async def test_an_attempt_that_goes_on_is_waited_for_and_not_begun_anew(worker: Services, marks: Path) -> None:
    with pytest.raises(RuntimeError, match="not completed at slow: It was still"):
        await dispatch(marks, {"slow": "required"}, retries=1, limit=timedelta(seconds=25))
    await asyncio.to_thread(wait_until, lambda: names(marks))
    assert names(marks) == {"scan-1.slow.1"}
    worker.cancel(worker.newest("child"))


async def test_s9_a_missing_variable_is_told_as_that(worker: Services) -> None:
    """In splash-flows `None.get` is told as a failure of another task. Here a sentence says what is missing."""
    with pytest.raises(LookupError, match="There is no Prefect Variable 'nothing'"):
        await dispatcher("scan-1", "detector", "store", variable="nothing")


@pytest.mark.parametrize("refused", [{"deployment": "child/nothing"}, {"parameters": {"marks": ["no", "text"]}}])
async def test_a_child_that_cannot_be_started_is_told(
    worker: Services, marks: Path, refused: dict[str, Any]
) -> None:
    with pytest.raises(RuntimeError, match="not completed at good: It was not started"):
        await dispatch(marks, {"good": "required"}, **refused)
    assert table(worker)["good"].startswith("It was not started")


async def test_s9_a_facility_that_is_refused_abandons_no_other(worker: Services, marks: Path) -> None:
    """In splash-flows one exception ends the gather. Here each facility has a verdict, and the table is there."""
    with pytest.raises(RuntimeError, match=r"not completed at unknown: It was not started(.|\n)*unknown"):
        await dispatch(marks, {"unknown": "required", "good": "required"})
    assert table(worker)["good"].startswith("Completed")
    assert names(marks) == {"scan-1.good.1"}


async def test_export_controlled_data_is_stored_and_goes_nowhere_else(marks: Path, data: dict[str, Place]) -> None:
    assert await dispatch(marks, {"good": "required"}, export_controlled=True) == {}
    assert data["store"].files() == {"raw/scan-1.h5": b"counts"}
    assert names(marks) == set()


async def test_two_facilities_share_the_raw_data_and_have_results_of_their_own(
    worker: Services, data: dict[str, Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_tomography()
    facilities = ("one", "two")
    for name in facilities:
        await backend_at(tmp_path / f"psik-{name}").asave(name, overwrite=True)
        await local(tmp_path / "data" / f"{name}-scratch").block.asave(f"{name}-scratch", overwrite=True)
    raw = data["detector"].root / "raw/shared.h5"
    take_scan.fn(raw, Phantom(**SMALL))
    monkeypatch.setenv("CATALOGUE", str(tmp_path / "catalogue"))
    worker.prefect("deploy", "--name", "tomography", "--job-variable", f"env.CATALOGUE={tmp_path / 'catalogue'}")
    await Variable.aset("facilities", dict.fromkeys(facilities, "required"), overwrite=True)
    hook = "tests.integration.children:catalogue"
    await dispatcher("shared", "detector", "store", hook=hook, hook_required=True)

    store, scratch = data["store"], {name: tmp_path / f"data/{name}-scratch" for name in facilities}
    assert (store.root / "raw/shared.h5").read_bytes() == raw.read_bytes()
    for name, root in scratch.items():
        assert [path.name for path in (root / "rec").iterdir()] == [name]
        made = Place(GlobusCollection(), root).files(f"rec/{name}")
        assert store.files(f"rec/{name}") == made
        slices = {path for path in made if path.startswith("shared/slice_")}
        assert len(slices) == SMALL["slices"]
        assert "shared.zarr/zarr.json" in made
    told = [json.loads(line) for line in (tmp_path / "catalogue").read_text().splitlines()]
    assert [one["stage"] for one in told] == ["raw", "results", "results"]
    assert {one["facility"] for one in told[1:]} == set(facilities)
    assert {one["made_of"] for one in told[1:]} == {"the raw of shared"}
    for one in told[1:]:
        assert all(path.startswith(f"rec/{one['facility']}/") for path in one["files"])

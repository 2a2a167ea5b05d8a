"""flows/dispatcher.py with a real server and worker: a verdict for each facility, and red where one is missing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.states import Cancelling
from prefect.variables import Variable

from flows.dispatcher import cancel_children, dispatcher
from tests.integration.local import wait_until
from tests.integration.prefect_services import POOL, Services, services

__all__ = ["services"]


@pytest.fixture(scope="module")
def worker(services: Services) -> Iterator[Services]:
    services.prefect("deploy", "tests/integration/children.py:child", "--name", "child", "--pool", POOL)
    services.worker()
    with services.api():
        yield services
    services.end_children()


async def dispatch(worker: Services, marks: Path, choices: Any, **options: Any) -> Any:
    await Variable.aset("facilities", choices, overwrite=True)
    run = dispatcher.with_options(retries=options.pop("retries", 0))
    return await run("scan-1", "child/child", {"marks": str(marks)}, **options)


def names(marks: Path) -> set[str]:
    """Scan, facility and attempt of each child that ran."""
    return {path.name for path in marks.iterdir()}


def table(worker: Services) -> dict[str, str]:
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["dispatcher"]))
    with worker.client() as api:
        newest = max(api.read_artifacts(artifact_filter=wanted), key=lambda one: str(one.created))
    return {row["facility"]: row["verdict"] for row in json.loads(str(newest.data))}


async def test_an_optional_facility_that_fails_is_told(worker: Services, tmp_path: Path) -> None:
    choices = {"good": "required", "broken": "optional", "other": "off"}
    verdicts = await dispatch(worker, tmp_path, choices)
    assert verdicts["good"].startswith("Completed")
    assert "The facility is broken" in verdicts["broken"]
    assert table(worker)["other"] == "not asked for"
    assert names(tmp_path) == {"scan-1.good.1", "scan-1.broken.1"}


async def test_s8_a_required_child_that_fails_makes_the_run_red(worker: Services, tmp_path: Path) -> None:
    """In splash-flows the dispatcher is always green. Here it fails, and stops no other child (S9)."""
    with pytest.raises(RuntimeError, match=r"not done at broken: Failed: .*The facility is broken"):
        await dispatch(worker, tmp_path, {"broken": "required", "good": "optional"})
    assert table(worker)["good"].startswith("Completed")


async def test_a_retry_runs_only_the_failed_child_again(worker: Services, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        await dispatch(worker, tmp_path, {"broken": "required", "good": "required"}, retries=1)
    assert names(tmp_path) == {"scan-1.broken.1", "scan-1.good.1", "scan-1.broken.2"}


async def test_a_cancel_reaches_the_children(worker: Services, tmp_path: Path) -> None:
    task = asyncio.create_task(dispatch(worker, tmp_path, {"slow": "required"}))
    await asyncio.to_thread(wait_until, lambda: names(tmp_path), 180)
    parent, child = worker.newest("dispatcher"), worker.newest("child")
    worker.cancel(parent)
    with worker.client() as api:
        await asyncio.to_thread(cancel_children, dispatcher, api.read_flow_run(parent), Cancelling())
    with pytest.raises(RuntimeError, match="not done at slow: Cancelled"):
        await task
    assert worker.state(child).is_cancelled()


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"good": "yes"}, "is not usable: .*Write it as"),
        ({"good": "off"}, "turns all facilities off"),
        ("perlmutter", "is not usable"),
    ],
)
async def test_a_variable_that_is_wrong_is_told(
    worker: Services, tmp_path: Path, choices: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        await dispatch(worker, tmp_path, choices)
    assert names(tmp_path) == set()


async def test_s9_a_missing_variable_is_told_as_that(worker: Services) -> None:
    """In splash-flows `None.get` is told as a failure of another task. Here a sentence says what is missing."""
    with pytest.raises(LookupError, match="There is no Prefect Variable 'nothing'"):
        await dispatcher("scan-1", variable="nothing")
    await Variable.aset("facilities", {"good": "required"}, overwrite=True)
    with pytest.raises(RuntimeError, match="not done at good: It was not started"):
        await dispatcher("scan-1", "child/nothing")

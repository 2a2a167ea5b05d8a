"""The whole pipeline: real Slurm, real endpoint, emulated Transfer, started from deployments by a worker."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.schedules import CronSchedule

from tests.integration.local import wait_until
from tests.integration.prefect_services import Services
from tests.integration.prefect_services import own_services as services
from tests.integration.slurm_view import accounted
from tests.integration.test_flows import GOOD_NRMSE, SMALL
from tests.integration.transfer_places import Place, emulated
from tests.testbed.facility import Facility

__all__ = ["services"]


@pytest.fixture(scope="module")
def places(facility: Facility, services: Services, block: str) -> dict[str, Place]:
    """Collections of the emulated Transfer, as blocks; jobs see the facility's."""
    base = f"pipeline-{time.time_ns():x}"
    found = {
        "detector": emulated(facility.globus, "home", f"{base}/detector"),
        "store": emulated(facility.globus, "home", f"{base}/store"),
        f"{block}-scratch": emulated(facility.globus, "scratch", base),
    }
    (found[f"{block}-scratch"].root / "rec").mkdir()
    for directory in (found[f"{block}-scratch"].root, found[f"{block}-scratch"].root / "rec"):
        directory.chmod(0o777)
    with services.api():
        for name, place in found.items():
            root = str(place.root).removesuffix(place.block.base_path)
            place.block.model_copy(update={"posix_root": root}).save(name, overwrite=True)
    return found


@pytest.fixture(scope="module")
def worker(services: Services) -> Iterator[Services]:
    services.prefect("deploy", "--name", "prune")
    services.worker()
    yield services
    services.end_children()


@pytest.fixture
def parameters(facility: Facility, block: str, tmp_path: Path) -> dict[str, Any]:
    return {
        "facility": block,
        "detector": "detector",
        "store": "store",
        "phantom": SMALL,
        "resources": {"python": str(facility.science_python)},
        "local": str(tmp_path),
    }


def ended_well(services: Services, run: UUID) -> None:
    wait_until(lambda: services.state(run).is_final(), 400)
    state = services.state(run)
    assert state.is_completed(), f"{state.message}\n" + "\n".join(services.logs(run)[-30:])


def assert_the_scan_is_home(places: dict[str, Place], scan: str) -> None:
    """Slices, image and raw data are in the data store, with the bytes that the facility has."""
    store, scratch = places["store"], places["facility-scratch"]
    rec = f"rec/facility/{scan}"
    assert set(store.files(rec)) == {f"slice_{number:04d}.tiff" for number in range(SMALL["slices"])}
    assert store.files(rec) == scratch.files(rec)
    assert store.files(f"{rec}.zarr") == scratch.files(f"{rec}.zarr") != {}
    raw = f"raw/{scan}.h5"
    assert (store.root / raw).read_bytes() == (scratch.root / raw).read_bytes()


def assert_the_report_is_good(services: Services, run: UUID) -> None:
    """The artifact of this run has the pictures, and the error against the phantom."""
    key, own = ArtifactFilterKey(any_=["tomography-report"]), ArtifactFilterFlowRunId(any_=[run])
    with services.client() as api:
        [found] = api.read_artifacts(artifact_filter=ArtifactFilter(key=key, flow_run_id=own))
    text = str(found.data)
    pictures = re.findall(r"!\[slice_\w\.png\]\(data:image/png;base64,([^)]+)\)", text)
    assert len(pictures) == 3
    for picture in pictures:
        assert base64.b64decode(picture, validate=True).startswith(b"\x89PNG")
    [nrmse] = re.findall(r"^\| nrmse \| ([\d.]+) \|$", text, re.MULTILINE)
    assert 0 < float(nrmse) < GOOD_NRMSE


def prunes(services: Services, scan: str, wanted: StateType) -> set[tuple[Any, ...]]:
    """Source, path and check of the prunes of a scan that are in this state."""
    with services.client() as api:
        runs = [run for run in api.read_flow_runs() if run.state is not None and run.state.type is wanted]
    found = {
        (run.parameters.get("source"), run.parameters.get("path"), run.parameters.get("check")) for run in runs
    }
    return {entry for entry in found if scan in str(entry[1])}


@pytest.mark.timeout(900)
def test_from_a_schedule(
    facility: Facility, worker: Services, places: dict[str, Place], parameters: dict[str, Any]
) -> None:
    """The deployment of each night, its cron moved from 05:00 to the next minute, so that it can be awaited.

    Its prune at the detector is due at once: the worker runs that, too.
    """
    before = {name: accounted(facility, name) for name in ("reconstruct", "multiscale", "report")}
    given = {"scan": "scheduled", "keep": {"detector": "PT1S"}, **parameters}
    worker.prefect("deploy", "--name", "phantom", "--params", json.dumps(given))
    with worker.client() as api:
        deployment = api.read_deployment_by_name("tomography/phantom").id
        [schedule] = api.read_deployment_schedules(deployment)
        assert isinstance(schedule.schedule, CronSchedule)
        assert schedule.schedule.cron == "0 5 * * *"
    moved = float("-inf")

    def started() -> UUID | None:
        nonlocal moved
        with worker.client() as api:
            found = [run for run in api.read_flow_runs() if run.auto_scheduled and run.start_time]
            if not found and time.monotonic() > moved + 180:  # a busy server may have missed the minute
                soon = datetime.now(UTC) + timedelta(seconds=80)
                cron = CronSchedule(cron=f"{soon.minute} {soon.hour} * * *", timezone="UTC")
                api.update_deployment_schedule(deployment, schedule.id, schedule=cron)
                moved = time.monotonic()
        return found[0].id if found else None

    wait_until(lambda: started() is not None, 600)
    run = started()
    assert run is not None
    ended_well(worker, run)
    assert_the_scan_is_home(places, "scheduled")
    for name, jobs in before.items():
        assert len(accounted(facility, name)) == len(jobs) + 1
    assert_the_report_is_good(worker, run)
    due = ("detector", "raw/scheduled.h5", "store")
    wait_until(lambda: prunes(worker, "scheduled", StateType.COMPLETED) == {due}, 180)
    assert "raw/scheduled.h5" not in places["detector"].files()
    assert prunes(worker, "scheduled", StateType.SCHEDULED) == {
        ("facility-scratch", "raw/scheduled.h5", "store"),
        ("facility-scratch", "rec/facility/scheduled", "store"),
        ("facility-scratch", "rec/facility/scheduled.zarr", "store"),
    }


def test_export_controlled_data_goes_nowhere_else(
    worker: Services, places: dict[str, Place], parameters: dict[str, Any]
) -> None:
    worker.prefect("deploy", "--name", "tomography")
    run = worker.run_deployment("tomography/tomography", scan="secret", export_controlled=True, **parameters)
    ended_well(worker, run)
    assert (places["store"].root / "raw/secret.h5").is_file()
    assert not (places["facility-scratch"].root / "raw/secret.h5").exists()
    assert prunes(worker, "secret", StateType.SCHEDULED) == {("detector", "raw/secret.h5", "store")}

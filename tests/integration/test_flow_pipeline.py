"""The whole pipeline: real Slurm, real endpoint, emulated Transfer, started from deployments by a worker."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from tests.integration.local import wait_until
from tests.integration.prefect_services import POOL, Services, block, services
from tests.integration.slurm_view import accounted
from tests.integration.test_flows import GOOD_NRMSE, SMALL
from tests.integration.transfer_places import Place, emulated
from tests.testbed.facility import Facility

__all__ = ["block", "services"]


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
    """Slices, image and raw data are in the data store, with the bytes that the facility made."""
    store, scratch = places["store"], places["facility-scratch"]
    assert set(store.files(f"rec/{scan}")) == {f"slice_{number:04d}.tiff" for number in range(SMALL["slices"])}
    assert store.files(f"rec/{scan}") == scratch.files(f"rec/{scan}")
    assert store.files(f"rec/{scan}.zarr") == scratch.files(f"rec/{scan}.zarr") != {}
    assert (store.root / f"raw/{scan}.h5").read_bytes() == (
        places["detector"].root / f"raw/{scan}.h5"
    ).read_bytes()


def report(services: Services) -> str:
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["tomography-report"]))
    with services.client() as api:
        return str(max(api.read_artifacts(artifact_filter=wanted), key=lambda one: str(one.created)).data)


def scheduled_prunes(services: Services, scan: str) -> set[tuple[Any, ...]]:
    """Source, path and check of the prunes of a scan that Prefect will run."""
    with services.client() as api:
        runs = [run for run in api.read_flow_runs() if run.state is not None and run.state.is_scheduled()]
    found = {
        (run.parameters.get("source"), run.parameters.get("path"), run.parameters.get("check")) for run in runs
    }
    return {entry for entry in found if scan in str(entry[1])}


def test_from_a_deployment(
    facility: Facility, worker: Services, places: dict[str, Place], parameters: dict[str, Any]
) -> None:
    before = {name: accounted(facility, name) for name in ("reconstruct", "multiscale", "report")}
    worker.prefect("deploy", "--name", "phantom")
    run = worker.run_deployment("tomography/phantom", scan="deployed", **parameters)
    ended_well(worker, run)
    assert_the_scan_is_home(places, "deployed")
    for name, jobs in before.items():
        assert len(accounted(facility, name)) == len(jobs) + 1
    assert scheduled_prunes(worker, "deployed") == {
        ("detector", "raw/deployed.h5", "store"),
        ("facility-scratch", "raw/deployed.h5", "store"),
        ("facility-scratch", "rec/deployed", "store"),
        ("facility-scratch", "rec/deployed.zarr", "store"),
    }
    text = report(worker)
    assert text.count("![slice_") == 3
    assert "data:image/png;base64,iVBOR" in text
    nrmse = float(next(line for line in text.splitlines() if line.startswith("| nrmse")).split("|")[2])
    assert 0 < nrmse < GOOD_NRMSE


def test_from_a_schedule(worker: Services, places: dict[str, Place], parameters: dict[str, Any]) -> None:
    worker.prefect(
        "deploy",
        "flows/tomography.py:tomography",
        *("--name", "scheduled", "--pool", POOL, "--interval", "60"),
        *("--concurrency-limit", "1", "--collision-strategy", "CANCEL_NEW"),
        *("--params", json.dumps({"scan": "scheduled", **parameters})),
    )

    def started() -> UUID | None:
        with worker.client() as api:
            found = [run for run in api.read_flow_runs() if run.auto_scheduled and run.start_time]
        return found[0].id if found else None

    wait_until(lambda: started() is not None, 300)
    run = started()
    assert run is not None
    ended_well(worker, run)
    assert_the_scan_is_home(places, "scheduled")


def test_export_controlled_data_goes_nowhere_else(
    worker: Services, places: dict[str, Place], parameters: dict[str, Any]
) -> None:
    worker.prefect("deploy", "--name", "tomography")
    run = worker.run_deployment("tomography/tomography", scan="secret", export_controlled=True, **parameters)
    ended_well(worker, run)
    assert (places["store"].root / "raw/secret.h5").is_file()
    assert not (places["facility-scratch"].root / "raw/secret.h5").exists()
    assert scheduled_prunes(worker, "secret") == {("detector", "raw/secret.h5", "store")}

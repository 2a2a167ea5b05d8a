"""The set-up guide's own files, whole: psik.json becomes a block, job.yaml runs; and the flows by block names."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import prefect.settings
import pytest

from flows.hello_job import hello_job
from flows.store import Phantom
from flows.tomography import Resources, tomography
from prefect_psik import BackendAttributes, GlobusCollection, GlobusCredentials, PsikBackend
from tests.integration.local import wait_until
from tests.integration.slurm_view import account_of
from tests.testbed.facility import Facility

pytestmark = pytest.mark.usefixtures("prefect_server")

FIXTURES = Path(__file__).parents[1] / "fixtures"
#: The prefix in the guide's psik.json.
LUSTRE = Path("/lustre/stf006/psik_jobs")


@pytest.fixture
def lustre(facility: Facility) -> Iterator[Path]:
    """The guide's prefix, made for this test unless the machine has it."""
    top = next(path for path in reversed([LUSTRE, *LUSTRE.parents]) if not path.exists())
    LUSTRE.mkdir(parents=True)
    shutil.chown(LUSTRE, facility.user)
    try:
        yield LUSTRE
    finally:
        shutil.rmtree(top)


def prefect_psik(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person would, with the worker's own login."""
    command = [sys.executable, "-m", "prefect_psik.cli", *arguments]
    api = {"PREFECT_API_URL": str(prefect.settings.PREFECT_API_URL.value())}
    return subprocess.run(command, env={**os.environ, **env, **api}, capture_output=True, text=True, timeout=300)


def test_import_and_run_of_the_guides_files(facility: Facility, lustre: Path) -> None:
    given = f"polaris={facility.endpoint_id}"
    files = (str(FIXTURES / "psik.json"), "--endpoint", given, "--overwrite")
    imported = prefect_psik("import", *files, env=facility.env)
    assert imported.returncode == 0, imported.stderr
    facility.globus.reset_meter()
    done = prefect_psik("run", str(FIXTURES / "job.yaml"), env=facility.env)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"base={lustre}/" in done.stdout, "printenv ran in the job"
    assert lines[-1] == "srun", "psik's $mpirun on Slurm"
    assert facility.meter()["routes"]["POST /v3/endpoints/*/submit"] >= 2
    native_id = next(line.split("=")[1] for line in lines if line.startswith("SLURM_JOB_ID="))
    wait_until(lambda: native_id not in facility.squeue("-h", "-o", "%i").split())
    assert account_of(facility, native_id, "Account,Partition,State") == "stf006|batch|COMPLETED"


@pytest.fixture
def block_names(facility: Facility) -> Iterator[tuple[str, str]]:
    """Two blocks: this machine, and the facility."""
    PsikBackend(prefix=str(facility.data / "local-psik")).save("here", overwrite=True)
    PsikBackend(
        endpoint_id=UUID(facility.endpoint_id),
        prefix=str(facility.prefix),
        attributes=BackendAttributes(type="slurm", queue_name="debug", project_name="proj1"),
        credentials=GlobusCredentials(client_id=UUID(facility.client_id), client_secret=facility.client_secret),
    ).save("facility", overwrite=True)
    with facility.client():
        yield "here", "facility"


async def test_the_flows_run_anywhere_by_changing_the_blocks_name(
    facility: Facility, block_names: tuple[str, str], tmp_path: Path
) -> None:
    for name in block_names:
        assert "Hello from" in await asyncio.to_thread(hello_job, name)
    errors = []
    for name in block_names:
        data = facility.data / f"tomography-{name}"
        (data / "rec").mkdir(parents=True)
        (data / "rec").chmod(0o777)
        await GlobusCollection(base_path=str(data)).asave(f"{name}-scratch", overwrite=True)
        found = await tomography(
            "phantom",
            name,
            phantom=Phantom(size=48, slices=8, angles=60),
            resources=Resources(python=str(facility.science_python)),
            local=tmp_path / name,
        )
        errors.append(found)
        assert (tmp_path / name / "slice_z.png").read_bytes().startswith(b"\x89PNG")
    assert errors[0]["nrmse"] == pytest.approx(errors[1]["nrmse"], rel=1e-3)
    assert errors[0]["nrmse"] < 0.35

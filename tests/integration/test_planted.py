"""A second user of the facility plants job directories where those of the first one's jobs would be."""

from __future__ import annotations

import os
import pwd
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from prefect_psik import (
    BackendAttributes,
    FacilitySetupError,
    GlobusCredentials,
    JobHandle,
    JobSpec,
    PsikBackend,
    ResourceSpec,
    cancel_job,
    list_jobs,
    poll_job,
    run_job,
    run_preflight,
    submit_job,
    wait_for_job,
)
from prefect_psik.models.jobs import Verdict
from prefect_psik.spec.identity import stamp_of
from tests.testbed.facility import Facility
from tests.testbed.packages import MAPPED_USER

pytestmark = pytest.mark.usefixtures("prefect_server")

LOGIN = ("GLOBUS_COMPUTE_CLIENT_ID", "GLOBUS_COMPUTE_CLIENT_SECRET")
SPEC = JobSpec(
    name="recon",
    script="#!/bin/bash\nid -un > who.txt\n",
    outputs=["who.txt"],
    expect=["who.txt"],
    resources=ResourceSpec(duration=5, exclusive_node_use=False),
)
#: What a job that completed leaves, with forged results and a script that shows whether it ran.
_PLANT = """\
set -e
umask 0
mkdir {base} {base}/prefect {base}/work {base}/log
echo forged > {base}/work/who.txt
printf '#!/bin/bash\\nid -un > {canary}\\n' > {base}/prefect/script
cp {base}/prefect/script {base}/spec.json
cd {base}/prefect
echo '{{"key": "{key}", "digest": "", "type": "slurm", "outputs": ["who.txt"], "expect": []}}' > job.json
printf '{now},0,new,{{}}\\n{now},1,queued,999999\\n{now},1,active,\\n{now},1,completed,\\n' > {base}/status.csv
"""


@pytest.fixture(autouse=True)
def client(facility: Facility) -> Iterator[None]:
    """Be a client of the facility; secrets are in the blocks, not in the environment."""
    with facility.client():
        for name in LOGIN:
            os.environ.pop(name)
        yield


@pytest.fixture
def prefix(facility: Facility) -> Path:
    """A group's directory, in which the facility's user and the second one may write."""
    path, user = facility.prefix / f"shared-{uuid4().hex}", pwd.getpwnam(facility.user)
    path.mkdir()
    os.chown(path, user.pw_uid, user.pw_gid)
    path.chmod(0o3770)
    return path


@pytest.fixture
def backend(facility: Facility, prefix: Path) -> PsikBackend:
    return PsikBackend(
        endpoint_id=UUID(facility.endpoint_id),
        prefix=str(prefix),
        attributes=BackendAttributes(type="slurm", queue_name="debug", project_name="proj1"),
        credentials=GlobusCredentials(client_id=UUID(facility.client_id), client_secret=facility.client_secret),
        poll_interval_seconds=3,
    )


def plant(prefix: Path, key: str, canary: Path) -> Path:
    """Make the directory of a job to come, as the second user, who is a member of the prefix' group."""
    base = prefix / stamp_of(key)
    second = pwd.getpwnam(MAPPED_USER)
    subprocess.run(
        ["/bin/sh", "-c", _PLANT.format(base=base, canary=canary, key=key, now=time.time())],
        user=second.pw_uid,
        group=second.pw_gid,
        extra_groups=[prefix.stat().st_gid],
        cwd="/",
        check=True,
    )
    return base


def test_what_a_second_user_plants_neither_runs_nor_counts(
    facility: Facility, backend: PsikBackend, prefix: Path
) -> None:
    canary = facility.data / f"ran-{uuid4().hex}"  # everybody may write there
    base = plant(prefix, "scan 42", canary)
    handle = JobHandle(
        endpoint_id=backend.endpoint_id, prefix=str(prefix), stamp=base.name, key="scan 42", type="slurm"
    )
    expected = (
        rf"{base} on \S+ belongs neither to {facility.user} nor to root \(owner {MAPPED_USER}, .* mode [02]777\)"
    )
    for work in (
        lambda: submit_job(backend, SPEC, key="scan 42"),
        lambda: run_job(backend, SPEC, key="scan 42"),
        lambda: poll_job(handle, backend=backend),
        lambda: wait_for_job(handle, backend=backend),
        lambda: cancel_job(handle, backend=backend),
    ):
        with pytest.raises(FacilitySetupError, match=expected):
            work()
    assert list_jobs(backend) == []
    [owners] = [check for check in run_preflight(backend).checks if check.name == "owners"]
    assert owners.verdict is Verdict.warning
    assert str(base) in owners.message
    assert run_job(backend, SPEC, key="scan 43").outputs["who.txt"] == f"{facility.user}\n".encode(), (
        "others go on"
    )
    assert not canary.exists()
    assert (base / "work" / "who.txt").read_text() == "forged\n"

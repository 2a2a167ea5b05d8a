"""An endpoint that root runs: jobs are the mapped user's, strangers get nowhere, the site pins what it likes."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
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
    JobState,
    PsikBackend,
    ResourceSpec,
    SubmitRejected,
    cancel_job,
    poll_job,
    run_job,
    submit_job,
)
from tests.integration.local import wait_until
from tests.testbed.facility import Facility
from tests.testbed.fixtures import REQUIRE_VARIABLE
from tests.testbed.multi_user import MultiUserEndpoint, mapped_prefix, multi_user_endpoint

pytestmark = pytest.mark.usefixtures("prefect_server")

LOGIN = ("GLOBUS_COMPUTE_CLIENT_ID", "GLOBUS_COMPUTE_CLIENT_SECRET")
SMALL = ResourceSpec(duration=5, exclusive_node_use=False)


@pytest.fixture(autouse=True)
def client(facility: Facility) -> Iterator[None]:
    """Be a client of the facility; secrets are in the blocks, not in the environment."""
    with facility.client():
        for name in LOGIN:
            os.environ.pop(name)
        yield


@pytest.fixture(scope="module")
def endpoint(facility: Facility) -> Iterator[MultiUserEndpoint]:
    with multi_user_endpoint(facility) as running:
        yield running


def backend_of(facility: Facility, endpoint: MultiUserEndpoint) -> PsikBackend:
    return PsikBackend(
        endpoint_id=UUID(endpoint.endpoint_id),
        prefix=str(mapped_prefix(facility)),
        attributes=BackendAttributes(type="slurm", queue_name="debug", project_name="proj1"),
        credentials=GlobusCredentials(client_id=UUID(facility.client_id), client_secret=facility.client_secret),
        poll_interval_seconds=3,
    )


def script(text: str, name: str = "mapped") -> JobSpec:
    return JobSpec(name=name, script=f"#!/bin/bash\n{text}\n", resources=SMALL)


def test_a_job_runs_as_the_mapped_user(facility: Facility, endpoint: MultiUserEndpoint) -> None:
    result = run_job(backend_of(facility, endpoint), script("id -un; touch made; env"))
    user, *environment = result.stdout.splitlines()
    assert user == endpoint.user
    assert user not in (facility.user, "root")
    assert [line for line in environment if "SECRET" in line or "GLOBUS" in line] == []
    wait_until(
        lambda: (
            facility.sacct("-n", "-P", "-X", "-j", str(result.handle.native_id), "-o", "User,Account").strip()
            == f"{user}|proj1"
        )
    )
    uid = pwd.getpwnam(user).pw_uid
    path = Path(result.handle.path)
    assert (path / "work" / "made").exists()
    assert {found.lstat().st_uid for found in (path, *path.rglob("*"))} == {uid}
    assert (path.parent / "audit.jsonl").stat().st_uid == uid


def test_a_job_of_the_mapped_user_is_canceled(facility: Facility, endpoint: MultiUserEndpoint) -> None:
    backend = backend_of(facility, endpoint)
    backend.save("mapped", overwrite=True)
    handle = submit_job("mapped", script("sleep 300"))
    assert cancel_job(handle).state is JobState.canceled
    listed = facility.squeue("-h", "-t", "all", "-j", str(handle.native_id), "-o", "%T %u").split()
    assert listed == ["CANCELLED", endpoint.user]


def test_the_files_of_other_users_stay_theirs(facility: Facility, endpoint: MultiUserEndpoint) -> None:
    """The same client has a job of the facility's user, on the endpoint which that user runs."""
    own = backend_of(facility, endpoint).model_copy(
        update={"endpoint_id": UUID(facility.endpoint_id), "prefix": str(facility.prefix)}
    )
    theirs = run_job(own, script("id -un", name="theirs")).handle
    assert poll_job(theirs, backend=own).state is JobState.completed
    handle = JobHandle.model_validate(theirs.model_dump() | {"endpoint_id": endpoint.endpoint_id})
    with pytest.raises(FacilitySetupError, match=f"belongs neither to {endpoint.user} nor to root"):
        poll_job(handle, backend=backend_of(facility, endpoint))


def test_a_stranger_is_refused_in_a_sentence(facility: Facility, endpoint: MultiUserEndpoint) -> None:
    client_id, secret = facility.globus.login("stranger")
    login = GlobusCredentials(client_id=UUID(client_id), client_secret=secret)
    stranger = backend_of(facility, endpoint).model_copy(update={"credentials": login})
    before = sorted(os.listdir(mapped_prefix(facility)))
    with pytest.raises(FacilitySetupError, match=f"has no user for the client {client_id}"):
        submit_job(stranger, script("true"))
    assert sorted(os.listdir(mapped_prefix(facility))) == before


# ------------------------------------------------------------------------------------- the site's own psik.json

#: Put a file to /etc/prefect-psik/psik.json that only this program and what it starts can see.
_WITH_SITE_FILE = """\
set -e
cp -a /etc "$1"
mkdir -p -m 755 "$1/prefect-psik"
cp "$2" "$1/prefect-psik/psik.json"
chmod 644 "$1/prefect-psik/psik.json"
mount --bind "$1" /etc
shift 2
exec "$@"
"""


@pytest.fixture
def site_endpoint(facility: Facility, tmp_path: Path) -> Iterator[MultiUserEndpoint]:
    """The endpoint of a site that allows one prefix, and the partition debug with the account proj1."""
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        why = "no mounts can be made here that only one process sees"
        if os.environ.get(REQUIRE_VARIABLE) == "1":
            pytest.fail(why)
        pytest.skip(why)
    pins = {
        "prefix": str(mapped_prefix(facility)),
        "backends": {"debug": {"type": "slurm", "queue_name": "debug", "project_name": "proj1"}},
    }
    (tmp_path / "psik.json").write_text(json.dumps(pins))
    etc = facility.state.root / "site-etc"
    wrapper = ["unshare", "--mount", "sh", "-c", _WITH_SITE_FILE, "sh", str(etc), str(tmp_path / "psik.json")]
    with multi_user_endpoint(facility, daemon="site-endpoint", wrapper=wrapper) as running:
        yield running
    subprocess.run(["rm", "-rf", str(etc)], check=True)


def test_what_the_site_pins(facility: Facility, site_endpoint: MultiUserEndpoint) -> None:
    backend = backend_of(facility, site_endpoint)
    assert not Path("/etc/prefect-psik").exists(), "other endpoints of this machine see nothing of it"
    assert run_job(backend, script("id -un", name="allowed")).stdout.strip() == site_endpoint.user
    before = sorted(os.listdir(mapped_prefix(facility)))
    other = backend.attributes.model_copy(update={"queue_name": "batch"})
    with pytest.raises(SubmitRejected) as err:
        submit_job(backend.model_copy(update={"attributes": other}), script("true", name="partition"))
    assert "/etc/prefect-psik/psik.json" in str(err.value)
    assert "queue_name batch" in str(err.value)
    assert "Allowed: debug (type slurm, queue_name debug, project_name proj1)" in str(err.value)
    new, private = facility.data / f"new-{uuid4().hex}", facility.data / f"private-{uuid4().hex}"
    private.mkdir(mode=0o700)
    for prefix in (new, private):
        with pytest.raises(SubmitRejected, match="does not allow the prefix"):
            submit_job(backend.model_copy(update={"prefix": str(prefix)}), script("true", name="prefix"))
    assert sorted(os.listdir(mapped_prefix(facility))) == before
    assert not new.exists()
    assert os.listdir(private) == []
    queued = facility.squeue("-h", "-t", "all", "-u", site_endpoint.user, "-o", "%j").split()
    assert not {"partition", "prefix"}.intersection(queued)

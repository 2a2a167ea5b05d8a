"""What docs/security.md says of the facility's disk, of the wire and of secrets, looked at after real jobs."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

import pytest
from prefect import flow

from prefect_psik import (
    BackendAttributes,
    GlobusCredentials,
    JobResult,
    JobSpec,
    PsikBackend,
    ResourceSpec,
    cancel_job,
    clean_jobs,
    run_job,
    submit_job,
)
from tests.integration.test_docs import document
from tests.testbed.facility import Facility

pytestmark = pytest.mark.usefixtures("prefect_server")

LOGIN = ("GLOBUS_COMPUTE_CLIENT_ID", "GLOBUS_COMPUTE_CLIENT_SECRET")


@pytest.fixture(autouse=True)
def client(facility: Facility) -> Iterator[None]:
    """Be a client of the facility; secrets are in the blocks, not in the environment."""
    with facility.client():
        for name in LOGIN:
            os.environ.pop(name)
        yield


@pytest.fixture
def prefix(facility: Facility) -> Path:
    """A prefix that does not exist yet, so that everything below is ours."""
    return facility.prefix / f"security-{os.urandom(4).hex()}"


@pytest.fixture
def backend(facility: Facility, prefix: Path) -> PsikBackend:
    return PsikBackend(
        endpoint_id=UUID(facility.endpoint_id),
        prefix=str(prefix),
        attributes=BackendAttributes(type="slurm", queue_name="debug", project_name="proj1"),
        credentials=GlobusCredentials(client_id=UUID(facility.client_id), client_secret=facility.client_secret),
        poll_interval_seconds=3,
    )


def script(text: str, **fields: Any) -> JobSpec:
    resources = ResourceSpec(duration=5, exclusive_node_use=False)
    return JobSpec.model_validate(
        {"name": "security", "script": f"#!/bin/bash\n{text}\n", "resources": resources, **fields}
    )


def with_local(backend: PsikBackend) -> PsikBackend:
    return backend.model_copy(update={"attributes": BackendAttributes(type="local")})


def documented_modes() -> dict[str, str]:
    """The table of docs/security.md: path below the prefix -> mode."""
    found = re.findall(r"^\| `(\S+)` \| (\d{4}) \|", document("security.md"), re.MULTILINE)
    assert found
    return dict(found)


def modes(prefix: Path, result: JobResult) -> dict[str, str]:
    """Modes of all that lies below a prefix; numbers of this job are left out of its names."""
    found = {}
    for path in sorted(prefix.rglob("*")):
        name = str(path.relative_to(prefix)).replace(result.handle.stamp, "STAMP")
        name = name.replace(f".{result.handle.native_id}", ".ID")
        status = path.lstat()
        if not stat.S_ISLNK(status.st_mode):
            found[name] = f"{stat.S_IMODE(status.st_mode):04o}"
    return found


@pytest.mark.parametrize("scheduler", ["slurm", "local"])
def test_the_modes_are_those_of_the_document(backend: PsikBackend, prefix: Path, scheduler: str) -> None:
    block = backend if scheduler == "slurm" else with_local(backend)

    @flow(name="looked at")
    def looked_at() -> JobResult:
        return run_job(block, script("echo hello > made.txt", files={"in.txt": "x"}, outputs=["made.txt"]))

    result = looked_at()
    assert stat.S_IMODE(prefix.stat().st_mode) == 0o700
    known, found = documented_modes(), modes(prefix, result)
    assert any(PurePath(name).match(".runs/*/STAMP") for name in found)
    for name, mode in found.items():
        matching = [known[pattern] for pattern in known if PurePath(name).match(pattern)]
        assert matching[:1] == [mode], (name, mode)


def test_nobody_else_can_read_a_job(facility: Facility, backend: PsikBackend, prefix: Path) -> None:
    result = run_job(backend, script("echo hello"))
    for path in (
        str(prefix),
        result.handle.path,
        f"{result.handle.path}/spec.json",
        f"{prefix}/audit.jsonl",
        f"{prefix}/.locks",
    ):
        done = facility.slurm.run("cat", path, user="psikmapped")
        assert "Permission denied" in done.stderr, path


def test_the_audit_file_tells_who_did_what(facility: Facility, backend: PsikBackend, prefix: Path) -> None:
    @flow(name="audited")
    def audited() -> None:
        handle = submit_job(backend, script("sleep 300"))
        cancel_job(handle, backend=backend)

    audited()
    facility.globus.order_fault("delay", match="POST /v3/endpoints/*/submit", seconds=3)  # no matter for ages
    [removed] = clean_jobs(backend, older_than=timedelta(0), keep_failed=False)
    assert removed.kept is None
    lines = [json.loads(line) for line in (prefix / "audit.jsonl").read_text().splitlines()]
    assert [line["operation"] for line in lines] == ["submit", "cancel", "remove"]
    for line in lines:
        assert (line["user"], line["stamp"]) == (facility.user, removed.handle.stamp)
    for line in lines[:2]:
        assert UUID(line["owner"]["root_flow_run"])
    assert "sleep 300" not in (prefix / "audit.jsonl").read_text()


@pytest.mark.parametrize("scheduler", ["slurm", "local"])
def test_no_secret_reaches_a_job_or_the_disk(
    facility: Facility, backend: PsikBackend, prefix: Path, scheduler: str
) -> None:
    block = backend if scheduler == "slurm" else with_local(backend)
    result = run_job(block, script("env"))
    assert [line for line in result.stdout.splitlines() if line.startswith(LOGIN)] == []
    secrets = (facility.client_secret, facility.globus.env("owner")[LOGIN[1]])
    for path in prefix.rglob("*"):
        text = path.read_bytes() if path.is_file() else b""
        assert not any(secret.encode() in text for secret in secrets), path


def test_no_secret_and_no_pickle_crosses_the_wire(facility: Facility, backend: PsikBackend) -> None:
    begin = time.time()  # tests of the testbed plant pickles
    run_job(backend, script("echo hello"))
    assert facility.globus.pickles(since=begin) == []
    crossed = b"".join(message.body for message in facility.globus.messages())
    assert b"echo hello" in crossed, "what is sent is seen"
    assert facility.client_secret.encode() not in crossed

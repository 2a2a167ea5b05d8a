"""`prefect-psik functions register`, and endpoints that allow only the function that it registered."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import prefect.settings
import pytest

from prefect_psik import (
    BackendAttributes,
    FacilitySetupError,
    GlobusCredentials,
    JobSpec,
    PsikBackend,
    ResourceSpec,
    run_job,
    submit_job,
)
from prefect_psik.cli import main
from prefect_psik.remote import letter
from prefect_psik.transport.globus import transport as globus
from tests.testbed.facility import Facility
from tests.testbed.multi_user import pinned_endpoint
from tests.testbed.probes import get

pytestmark = pytest.mark.usefixtures("prefect_server")

LOGIN = ("GLOBUS_COMPUTE_CLIENT_ID", "GLOBUS_COMPUTE_CLIENT_SECRET")
JOB = JobSpec(
    name="pinned", script="#!/bin/bash\nid -un\n", resources=ResourceSpec(duration=5, exclusive_node_use=False)
)


@pytest.fixture(autouse=True)
def client(facility: Facility) -> Iterator[None]:
    """Be a client of the facility."""
    with facility.client():
        yield
    facility.globus.clear_faults()


@pytest.fixture
def backend(facility: Facility) -> PsikBackend:
    """The facility as a block, with its login."""
    return PsikBackend(
        endpoint_id=UUID(facility.endpoint_id),
        prefix=str(facility.prefix),
        attributes=BackendAttributes(type="slurm", queue_name="debug", project_name="proj1"),
        credentials=GlobusCredentials(client_id=UUID(facility.client_id), client_secret=facility.client_secret),
        poll_interval_seconds=3,
    )


def register(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command; its exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as end:
        main(["functions", "register", *arguments])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out.strip(), " ".join(err.split())


def forget_allowed_functions(facility: Facility, endpoint_id: str) -> None:
    """Register an endpoint again, as its owner, without a list of functions; the endpoint itself goes on."""
    login = facility.globus.env("owner")
    basic = base64.b64encode(":".join(login[name] for name in LOGIN).encode()).decode()
    grant = urllib.request.Request(
        f"{facility.globus.url}/v2/oauth2/token",
        data=b"grant_type=client_credentials",
        headers={"Authorization": f"Basic {basic}"},
    )
    with urllib.request.urlopen(grant, timeout=10) as reply:
        token = json.load(reply)["access_token"]
    again = urllib.request.Request(
        f"{facility.globus.url}/v3/endpoints/{endpoint_id}",
        data=b'{"endpoint_name": "again"}',
        headers={"Authorization": f"Bearer {token}"},
        method="PUT",
    )
    urllib.request.urlopen(again, timeout=10).close()
    assert get(facility, f"/v3/endpoints/{endpoint_id}/allowed_functions")["restricted"] is False


def known_function(facility: Facility, function_id: str) -> Any:
    return get(facility, f"/v2/functions/{function_id}")


# ------------------------------------------------------------------------------------------------ register


def test_the_whole_text_is_registered_and_told(facility: Facility, capsys: pytest.CaptureFixture[str]) -> None:
    code, function_id, told = register(capsys)
    assert code == 0
    known = known_function(facility, str(UUID(function_id)))
    source = known["function_code"].rpartition("\nst\ncall:")[2]  # older SDKs pack it themselves
    assert source == letter()
    assert known["function_name"] == "call"
    assert known["group"] is None
    digest = hashlib.sha256(source.encode()).hexdigest()
    assert digest in known["description"]
    assert f"SHA-256 of its text: {digest}" in told
    assert f"function_id: {function_id}" in told
    assert f"allowed_functions: - {function_id}" in told


@pytest.mark.parametrize(("option", "field"), [("--group", "group"), ("--ha-endpoint", "ha_endpoint_id")])
def test_a_function_belongs_to_a_group_or_endpoint(
    facility: Facility, capsys: pytest.CaptureFixture[str], option: str, field: str
) -> None:
    owner = str(uuid4())
    _, function_id, _ = register(capsys, option, owner)
    assert known_function(facility, function_id)[field] == owner


def test_the_login_is_the_blocks(
    facility: Facility, backend: PsikBackend, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LOGIN:
        monkeypatch.delenv(name)
    backend.save("pinned-login", overwrite=True)
    _, function_id, told = register(capsys, "--backend", "pinned-login")
    assert known_function(facility, function_id)["owner"] == facility.client_id
    assert f"as client {facility.client_id}" in told
    assert facility.client_secret not in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--group", "beamline"], "--group takes a UUID, not 'beamline'."),
        (["--ha-endpoint", "1"], "--ha-endpoint takes a UUID, not '1'."),
        (["--group", str(uuid4()), "--ha-endpoint", str(uuid4())], "not both. Give only one of --group and"),
        (["--backend", "this-machine"], "The backend this-machine has no endpoint_id, so it runs jobs on"),
        (["--backend", "no-such"], "There is no backend 'no-such'"),
    ],
)
def test_bad_input_is_a_sentence_and_registers_nothing(
    facility: Facility, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    PsikBackend().save("this-machine", overwrite=True)
    facility.globus.reset_meter()
    code, out, told = register(capsys, *arguments)
    assert code in (1, 2)
    assert out == ""
    assert words in told
    assert facility.meter()["requests"] == 0


@pytest.mark.parametrize(
    ("status", "arguments", "words"),
    [
        (403, ["--group", "11111111-2222-3333-4444-555555555555"], "for the group 11111111-2222-3333-4444-5555"),
        (403, [], "does not let the worker's own login register a function (403: Ordered by a test)."),
        (422, [], "does not let the worker's own login register a function (422: Ordered by a test)."),
    ],
)
def test_a_refusal_is_a_sentence(
    facility: Facility, capsys: pytest.CaptureFixture[str], status: int, arguments: list[str], words: str
) -> None:
    facility.globus.order_fault("error", match="POST /v3/functions", status=status)
    code, out, told = register(capsys, *arguments)
    assert (code, out) == (1, "")
    assert words in told


def test_a_wrong_secret_is_told_and_not_shown(
    facility: Facility, backend: PsikBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = GlobusCredentials(client_id=UUID(facility.client_id), client_secret="wrong-secret-123")
    backend.model_copy(update={"credentials": wrong}).save("pinned-wrong", overwrite=True)
    code, _, told = register(capsys, "--backend", "pinned-wrong")
    assert code == 1
    assert f"Globus refused the client {facility.client_id}" in told
    assert "wrong-secret-123" not in told


# ---------------------------------------------------------------------------------------- allowed_functions


def test_an_endpoint_that_allows_only_our_function(
    facility: Facility, backend: PsikBackend, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, function_id, _ = register(capsys)
    with pinned_endpoint(facility, function_id) as endpoint:
        pinned = backend.model_copy(
            update={"endpoint_id": UUID(endpoint.endpoint_id), "function_id": UUID(function_id)}
        )
        facility.globus.reset_meter()
        assert run_job(pinned, JOB).stdout.strip() == facility.user
        assert "POST /v3/functions" not in facility.meter()["routes"]

        # a second process, with the block of the API
        pinned.save("pinned", overwrite=True)
        spec = tmp_path / "job.yaml"
        spec.write_text("name: second\nscript: |\n  #!/bin/bash\n  echo from the second process\n")
        again = [sys.executable, "-m", "prefect_psik.cli", "run", str(spec), "--backend", "pinned"]
        env = os.environ | {"PREFECT_API_URL": str(prefect.settings.PREFECT_API_URL.value())}
        done = subprocess.run(again, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert (done.returncode, done.stdout) == (0, "from the second process\n"), done.stderr

        # the endpoint, restarted
        endpoint.stop()
        endpoint.start({**facility.globus.env("owner"), **facility.slurm.env})
        assert run_job(pinned, JOB).stdout.strip() == facility.user

        # another function: one that a block without function_id registers anew
        globus._functions.clear()
        before = sorted(os.listdir(facility.prefix))
        with pytest.raises(FacilitySetupError, match=r"set function_id of the block to the id of one") as err:
            submit_job(pinned.model_copy(update={"function_id": None}), JOB)
        assert "prefect-psik functions register" in str(err.value)
        assert sorted(os.listdir(facility.prefix)) == before

        # the same with the service told that anything goes, as somebody with the owner's secret could
        forget_allowed_functions(facility, endpoint.endpoint_id)
        with pytest.raises(FacilitySetupError, match=r"does not run our function: .*not permitted"):
            submit_job(pinned.model_copy(update={"function_id": None}), JOB)
        assert sorted(os.listdir(facility.prefix)) == before

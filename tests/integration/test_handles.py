"""A handle finds its job from another process and flow, however it was kept, also after the block was edited."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import prefect.settings
import pytest
from prefect import flow

from prefect_psik import JobHandle, PsikBackend, submit_job
from tests.integration.slurm_view import accounted
from tests.integration.test_slurm_jobs import backend, client, script
from tests.testbed.facility import Facility

__all__ = ["backend", "client"]

pytestmark = pytest.mark.usefixtures("prefect_server")

#: Another process, that knows what kept the handles of two jobs, and the file for which the first one waits.
OTHER_PROCESS = """
import sys
from pathlib import Path
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client

from prefect_psik import cancel_job, poll_job, wait_for_job

kept, go, *texts = sys.argv[1:]
if kept == "result":
    with get_client(sync_client=True) as api:
        texts = api.read_flow_run(UUID(texts[0])).state.result()
elif kept == "file":
    texts = [Path(text).read_text() for text in texts]

@flow
def another() -> None:
    assert not any(poll_job(handle).state.is_final for handle in texts)
    assert cancel_job(texts[1]).state == "canceled"
    Path(go).touch()
    assert wait_for_job(texts[0]).stdout == "found\\n"

another()
"""


@flow(persist_result=True)
def leave_two(block: str, go: Path) -> list[JobHandle]:
    """Submit two jobs that nobody waits for."""
    spec = script(f"until [ -e {go} ]; do sleep 1; done; echo found")
    return [submit_job(block, spec.replace(name=f"{block}-{what}")) for what in ("wait", "cancel")]


@pytest.mark.parametrize("kept", ["result", "file", "string"])
def test_a_handle_that_was_kept(facility: Facility, backend: PsikBackend, tmp_path: Path, kept: str) -> None:
    block = f"handles-{time.time_ns():x}"
    backend.save(block)
    go = facility.data / block
    state = leave_two(block, go, return_state=True)
    handles = state.result()
    if kept == "result":
        arguments = [str(state.state_details.flow_run_id)]
    elif kept == "file":
        paths = [tmp_path / "wait.json", tmp_path / "cancel.json"]
        for path, handle in zip(paths, handles, strict=True):
            path.write_text(handle.model_dump_json())
        arguments = [str(path) for path in paths]
    else:
        arguments = [handle.model_dump_json() for handle in handles]
    attributes = backend.attributes.model_copy(update={"queue_name": "nowhere"})
    edited = backend.model_copy(update={"prefix": "/nowhere", "attributes": attributes, "accept_jobs": False})
    edited.save(block, overwrite=True)

    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, kept, str(go), *arguments],
        env={**os.environ, "PREFECT_API_URL": str(prefect.settings.PREFECT_API_URL.value())},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert list(accounted(facility, f"{block}-wait").values()) == ["COMPLETED"]
    [state_of_other] = accounted(facility, f"{block}-cancel").values()
    assert state_of_other.startswith("CANCELLED")

"""Jobs that an older release left: the present one lists them, waits on them, finds them by their key, cancels.

`tests/fixtures/release-0.1.0.json` is the prefix, with a completed job and a live one, and their handles, as
version 0.1.0 wrote them at commit 5898090.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prefect_psik import JobState, cancel_job, list_jobs, poll_job, submit_job, wait_for_job
from tests.integration.local import backend_at, bash

FROZEN = Path(__file__).parents[1] / "fixtures/release-0.1.0.json"
#: In the frozen files.
PREFIX, FLOW_RUN = "/srv/psik", "3b6383bd-ae92-4301-8f5e-3ad66a6ba8ed"
RUNNER = "12841"

pytestmark = pytest.mark.usefixtures("prefect_server")


@dataclass(frozen=True)
class Left:
    """What is left of the older release, and the process of its live job."""

    done: str
    live: str
    process: subprocess.Popen[bytes]


@pytest.fixture
def left(prefix: Path) -> Iterator[Left]:
    """Unpack the prefix, and have a process of this machine be the live job's."""
    frozen: dict[str, Any] = json.loads(FROZEN.read_text().replace(PREFIX, str(prefix)))
    for directory in ("", *frozen["directories"]):
        (prefix / directory).mkdir(mode=0o700)
    for name, text in frozen["files"].items():
        (prefix / name).write_text(text)
    for name, target in frozen["links"].items():
        (prefix / name).symlink_to(target)
    live = prefix / frozen["handles"]["live"]["stamp"]
    process = subprocess.Popen(
        ["sleep", "600"], cwd=live / "work", env={"base": str(live)}, start_new_session=True
    )
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    note = {"pid": process.pid, "start": stat.rpartition(") ")[2].split()[19], "session": process.pid}
    (live / "prefect/native.1").write_text(json.dumps(note))
    (live / f"prefect/process.1.{RUNNER}").rename(live / f"prefect/process.1.{process.pid}").write_text(stat)
    (live / "prefect/owner.1").unlink()
    (live / "prefect/owner.1").symlink_to(str(process.pid))
    status = live / "status.csv"
    status.write_text(status.read_text().replace(RUNNER, str(process.pid)))
    frozen["handles"]["live"]["native_id"] = str(process.pid)
    yield Left(json.dumps(frozen["handles"]["done"]), json.dumps(frozen["handles"]["live"]), process)
    process.kill()
    process.wait()


def test_they_are_listed(left: Left, prefix: Path) -> None:
    backend = backend_at(prefix)
    for records in (list_jobs.fn(backend), list_jobs.fn(backend, flow_run=FLOW_RUN)):
        assert {record.handle.name: record.state for record in records} == {
            "done": JobState.completed,
            "live": JobState.active,
        }
        assert {record.flow_run for record in records} == {FLOW_RUN}


def test_one_is_waited_on(left: Left) -> None:
    found = wait_for_job.fn(left.done)
    assert (found.state, found.exit_code) == (JobState.completed, 0)
    assert (found.stdout, found.outputs) == ("hello\n", {"result.txt": b"42\n"})


def test_its_key_still_stands_for_it(left: Left, prefix: Path) -> None:
    spec = bash("echo hello; echo 42 > result.txt", "done", outputs=["result.txt"])
    spec = spec.replace(resources=spec.resources.model_copy(update={"duration": 60}))
    handle = submit_job.fn(backend_at(prefix), spec, key="scan-1")
    assert handle.stamp == json.loads(left.done)["stamp"]
    assert handle.native_id == json.loads(left.done)["native_id"], "it was found, not submitted again"


def test_one_is_canceled(left: Left) -> None:
    assert poll_job.fn(left.live).state is JobState.active
    assert cancel_job.fn(left.live).state is JobState.canceled
    left.process.wait(30)
    assert poll_job.fn(left.live).state is JobState.canceled

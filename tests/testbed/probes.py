"""What the testbed's own tests share: small functions to run at the endpoint, and ways to ask and to wait."""

from __future__ import annotations

import base64
import json
import time
import urllib.parse
import urllib.request
from typing import Any

from globus_compute_sdk import Client
from globus_compute_sdk.errors import TaskExecutionFailed, TaskPending

from tests.testbed.facility import Facility
from tests.testbed.state import wait_until

JSON = "globus_compute_sdk.serialize.JSONData"
SOURCE = """
import subprocess

TITLE = "constant of the module"


def _say(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout


def call(name, payload):
    return {"who": _say("id", "-un").strip(), "sinfo": _say("sinfo", "-h"), "said": [TITLE, name, payload]}
"""

PSIK_SOURCE = """
import asyncio


async def _submit(prefix, script):
    from psik import Config, JobManager, JobSpec
    from psik.models import BackendConfig

    slurm = BackendConfig(type="slurm", queue_name="debug", project_name="proj1")
    manager = JobManager(Config(prefix=prefix, backends={"default": slurm}))
    job = await manager.create(JobSpec(name="probe", script=script))
    _, native_id = await job.submit()
    return [str(job.base), native_id]


def call(prefix, script):
    return asyncio.run(_submit(prefix, script))
"""


def token(facility: Facility, secret: str | None = None, *, login: str = "probe") -> str:
    """Log in, with the login's own secret or another; return the access token."""
    client_id, own = facility.globus.login(login)
    basic = base64.b64encode(f"{client_id}:{secret or own}".encode()).decode()
    request = urllib.request.Request(
        f"{facility.globus.url}/v2/oauth2/token",
        data=urllib.parse.urlencode({"grant_type": "client_credentials"}).encode(),
        headers={"Authorization": f"Basic {basic}"},
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        access: str = json.load(reply)["access_token"]
    return access


def get(facility: Facility, path: str, *, data: bytes | None = None, access: str | None = None) -> Any:
    """Call the emulator's compute service without the SDK; POST if there is data."""
    access = access or token(facility)
    request = urllib.request.Request(
        f"{facility.globus.url}{path}", data=data, headers={"Authorization": f"Bearer {access}"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


def sbatch(facility: Facility, *options: str, script: str = "sleep 3000") -> str:
    """Submit a job as the facility's user; return its id."""
    done = facility.as_user("sbatch", "--parsable", "-o", "/dev/null", *options, "--wrap", script)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def sacct_state(facility: Facility, job: str) -> str:
    """Return a job's state by sacct."""
    return facility.sacct("-n", "-P", "-X", "-j", job, "-o", "State").strip()


def await_state(facility: Facility, job: str, state: str) -> None:
    """Wait until a job is in this state by sacct, which may be some seconds behind."""
    wait_until(lambda: sacct_state(facility, job).startswith(state), seconds=180, what=f"job {job} {state}")


def send(facility: Facility, client: Client, function_id: str, *args: object) -> str:
    """Submit one call over the HTTP batch interface; return the id of the Compute task."""
    batch = client.create_batch(result_serializers=[JSON])
    batch.add(function_id, args=args)
    task_id: str = client.batch_run(facility.endpoint_id, batch)["tasks"][function_id][0]
    return task_id


def call(facility: Facility, client: Client, function_id: str, *args: object) -> Any:
    """Submit one call and return its result."""
    task_id = send(facility, client, function_id, *args)
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        answer = client.get_batch_result([task_id]).get(task_id, {})
        if not answer.get("pending", True):
            return answer["result"]
        time.sleep(1.2)
    raise AssertionError(f"no result of task {task_id}")


def is_done(client: Client, task_id: str) -> bool:
    """Say whether a Compute task has ended, well or not; slowly, as the service limits requests."""
    time.sleep(0.7)
    try:
        client.get_result(task_id)
    except TaskPending:
        return False
    except TaskExecutionFailed:
        return True
    return True

"""The smoke test for the hosted Globus works on the day when somebody runs it: it is run on the testbed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

from tests.system.steps import NEEDED, STEPS
from tests.testbed.facility import Facility

ROOT = Path(__file__).parents[2]


def smoke(facility: Facility, tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run it as a person does, who has a login and no Prefect server."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_API", "GLOBUS_"))}
    env |= facility.env | {"PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    command = [sys.executable, "-m", "tests.system", *options]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)


def verdicts(report: str) -> dict[str, str]:
    found = re.findall(r"^(ok|FAILED|left out) +\d+\.\d s  (.*)", report, re.MULTILINE)
    return {name: verdict for verdict, rest in found for name in STEPS if rest[:34].strip() == name}


def test_all_steps_pass_on_the_testbed(facility: Facility, tmp_path: Path) -> None:
    prefix = facility.prefix / f"smoke-{os.urandom(4).hex()}"
    where = ("--endpoint", facility.endpoint_id, "--prefix", str(prefix), "--queue", "debug", "--account", "proj1")
    done = smoke(facility, tmp_path, *where)
    assert verdicts(done.stdout) == dict.fromkeys(STEPS, "ok"), done.stdout + done.stderr
    assert done.returncode == 0
    assert f"{len(STEPS)} ok, 0 failed, 0 left out" in done.stdout
    assert "globus-compute-endpoint 4.19.0" in done.stdout
    for hidden in (facility.client_secret, facility.client_id, facility.endpoint_id):
        assert hidden not in done.stdout + done.stderr
    jobs = [path for path in prefix.iterdir() if path.name.isdigit()]
    assert len(jobs) == 4 + 5, "one for each step that submits, and five at once"


def test_what_is_wrong_is_told_and_the_rest_left_out(facility: Facility, tmp_path: Path) -> None:
    done = smoke(facility, tmp_path, "--endpoint", str(uuid4()))
    assert done.returncode == 1
    assert verdicts(done.stdout) == {name: "FAILED" if name == NEEDED[0] else "left out" for name in STEPS}, (
        done.stdout + done.stderr
    )
    assert "Traceback" not in done.stderr

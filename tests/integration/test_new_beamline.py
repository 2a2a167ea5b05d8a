"""The commands of docs/how-to/new-beamline.md, as they stand there, on the testbed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.prefect_services import Services
from tests.integration.prefect_services import own_services as services
from tests.integration.test_flows import SMALL
from tests.testbed.facility import Facility

__all__ = ["services"]

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/how-to/new-beamline.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    found = re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL)
    return [line for block in found for line in block.strip().splitlines()]


@pytest.mark.timeout(900)
def test_the_guide_leads_to_a_reconstruction(facility: Facility, services: Services, tmp_path: Path) -> None:
    for part in ("flows", "blocks"):
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy(ROOT / "prefect.yaml", tmp_path)
    home, scratch = facility.globus.collection("home"), facility.globus.collection("scratch")
    for directory in ("detector", "store"):
        (Path(home.root) / directory).mkdir(exist_ok=True)
    environment = {
        **services.environment,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MYSITE_ENDPOINT_ID": facility.endpoint_id,
        "MYSITE_SCRATCH": scratch.root,
        "MYSITE_PARTITION": "debug",
        "MYSITE_ACCOUNT": facility.account,
        "MYSITE_COLLECTION_ID": scratch.id,
        "BEAMLINE_COLLECTION_ID": home.id,
        "BEAMLINE_ROOT": home.root,
    }

    def run(command: str) -> str:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    copy, deploy, start_worker, check, phantom, dispatch = commands()
    run(copy)
    assert "streaming/streaming" in run(deploy), "the last deployment of prefect.yaml"
    assert start_worker == "prefect worker start --pool beamline"
    services.worker()
    run(check)
    resources = f'{{"python": "{facility.science_python}"}}'
    run(f"{phantom} --param 'resources={resources}' --param 'phantom={json.dumps(SMALL)}'")
    raw, rec = Path(home.root) / "detector/raw", Path(home.root) / "store/rec/mysite"
    assert len(list((rec / "phantom").glob("slice_*.tiff"))) == SMALL["slices"]
    assert (rec / "phantom.zarr/zarr.json").is_file()
    shutil.copy(raw / "phantom.h5", raw / "another.h5")  # a scan arrives
    dispatch = dispatch.replace("SCAN", "another")
    run(f"""{dispatch} --watch --param 'parameters={{"resources": {resources}}}'""")
    assert len(list((rec / "another").glob("slice_*.tiff"))) == SMALL["slices"]
    services.end_children()

"""The suite's first two columns: this Python, on this machine and on the testbed's endpoint."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.client import run_case
from tests.conformance.suite import Place, cases
from tests.testbed.facility import Facility

_REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", cases(Place(None, "")))
def test_on_this_machine(name: str, tmp_path: Path) -> None:
    place = Place(None, str(tmp_path))
    assert asyncio.run(run_case(cases(place)[name], place)) == ""


@pytest.mark.timeout(900)
def test_on_the_endpoint(facility: Facility) -> None:
    """In a process of its own, as `make conformance` does."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.conformance.client", "globus"],
        cwd=_REPOSITORY,
        env={**os.environ, "PREFECT_PSIK_TESTBED": str(facility.state.root)},
        capture_output=True,
        text=True,
        timeout=2400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])["cases"]
    assert found.keys() == cases(Place(facility, "")).keys()
    assert {name: failure for name, (_, failure) in found.items() if failure} == {}
    assert facility.globus.over_the_limit() == {}

"""What the tests on this machine share: a backend, and what the job directories say."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from prefect_psik import JobSpec, PsikBackend, ResourceSpec
from prefect_psik.outcome.judge import Row, parse_status


def backend_at(prefix: Path) -> PsikBackend:
    """The embedded default, on a prefix of the test."""
    return PsikBackend(prefix=str(prefix), poll_interval_seconds=0.5)


def bash(script: str, name: str = "test", **fields: object) -> JobSpec:
    """A job spec of a few lines of bash."""
    return JobSpec.model_validate(
        {"name": name, "script": f"#!/bin/bash\n{script}\n", "resources": ResourceSpec(duration=5), **fields}
    )


def job_directories(prefix: Path) -> list[Path]:
    """All of psik's job directories."""
    return sorted(path.parent for path in prefix.glob("*/status.csv"))


def rows(directory: Path) -> list[Row]:
    """psik's record of one job."""
    return parse_status((directory / "status.csv").read_text())


def runs(prefix: Path) -> list[list[int]]:
    """For each job directory, the numbers of the runs that were started."""
    return sorted([row.jobndx for row in rows(path) if row.state == "queued"] for path in job_directories(prefix))


def spec_of(directory: Path) -> dict[str, object]:
    """psik's own record of the spec."""
    document: dict[str, object] = json.loads((directory / "spec.json").read_text())
    return document


def wait_until(condition: Callable[[], object], seconds: float = 180) -> None:
    """Wait for an effect of another process or thread; what takes long is looked for less often."""
    begin = time.monotonic()
    while not condition():
        waited = time.monotonic() - begin
        assert waited < seconds, "nothing happened in time"
        time.sleep(min(0.5, 0.05 + waited / 20))

"""Results that an older release stored, as Prefect does by default: pickled, so by the place of their classes.

`tests/fixtures/results-0.1.0.json` was written by `python -m tests.unit.test_stored_results` at commit 3e027d5. It
is never written again: a later release gets a file of its own.
"""

from __future__ import annotations

import inspect
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.serializers import PickleSerializer

import prefect_psik
from prefect_psik import (
    BackendAttributes,
    Expected,
    FailureCause,
    FileEntry,
    GlobusCollection,
    Growth,
    JobHandle,
    JobRecord,
    JobResult,
    JobSpec,
    JobState,
    JobStatus,
    PreflightReport,
    PruneFile,
    PruneIncomplete,
    PruneReport,
    PruneVerdict,
    PsikBackend,
    RemovedJob,
    ResourceSpec,
    ScheduledPrune,
    ScriptFailed,
    TransferCause,
    TransferError,
    TransferHandle,
    TransferResult,
    TransferState,
    TransferStatus,
    WaitLimits,
)

STORED = Path(__file__).parents[1] / "fixtures/results-0.1.0.json"


def results() -> dict[str, Any]:
    """One of each class that a task or flow returns, takes or raises."""
    job = JobHandle(
        endpoint_id=UUID(int=7),
        prefix="/srv/psik",
        stamp="12345678901234567890",
        jobndx=2,
        native_id="77",
        key="scan-1",
        type="slurm",
        name="recon",
        backend="perlmutter",
        duration=60,
        memory="4G",
    )
    failed = JobResult(
        handle=job, state=JobState.failed, cause=FailureCause.script, exit_code=3, outputs={"a": b"\0"}
    )
    transfer = TransferHandle(task_id="t-1", source="home", destination="scratch")
    pruned = PruneReport(
        source="home",
        check="store",
        path="raw",
        files=[PruneFile(path="raw/1", size=3, modified=1.5, verdict=PruneVerdict.unproven, reason="is new")],
    )
    return {
        "JobHandle": job,
        "JobStatus": JobStatus(handle=job, state=JobState.active, cause=None, warnings=["w"]),
        "JobResult": failed,
        "JobRecord": JobRecord(handle=job, state=JobState.completed, flow_runs=["f"]),
        "RemovedJob": RemovedJob(handle=job, state=JobState.completed, kept="it runs"),
        "PreflightReport": PreflightReport.model_validate(
            {"backend": "perlmutter", "checks": [{"name": "psik", "verdict": "warning", "message": "old"}]}
        ),
        "TransferHandle": transfer,
        "TransferStatus": TransferStatus(state=TransferState.failed, cause=TransferCause.quota),
        "TransferResult": TransferResult.model_validate(
            {
                "handle": transfer,
                "files": 2,
                "files_transferred": 1,
                "files_skipped": 1,
                "bytes_transferred": 3,
                "bytes_per_second": 1,
                "faults": 0,
                "left_out": [{"reason": "is a FIFO", "count": 1, "paths": ["a"]}],
            }
        ),
        "FileEntry": FileEntry(path="raw/1", kind="file", size=3, modified=1.5),
        "PruneReport": pruned,
        "ScheduledPrune": ScheduledPrune(
            flow_run_id=UUID(int=8), at=datetime(2026, 11, 27, tzinfo=UTC), deployment="prune/prune"
        ),
        "JobSpec": JobSpec(
            script="#!/bin/bash\ntrue\n", resources=ResourceSpec(duration=5), expect=[Expected(path="a", count=2)]
        ),
        "Growth": Growth(factor=2.0, max_duration=120),
        "WaitLimits": WaitLimits(queue=timedelta(hours=1), on_limit="cancel"),
        "PsikBackend": PsikBackend(
            endpoint_id=UUID(int=9), prefix="/srv/psik", attributes=BackendAttributes(type="slurm", qos="debug")
        ),
        "GlobusCollection": GlobusCollection(collection_id=UUID(int=10), base_path="/als"),
        "ScriptFailed": ScriptFailed("It failed.", result=failed),
        "TransferError": TransferError("No room.", cause=TransferCause.quota),
        "PruneIncomplete": PruneIncomplete("A file stays.", report=pruned),
    }


@pytest.mark.parametrize("name", results())
def test_a_result_that_was_stored_once_loads_for_ever(name: str) -> None:
    loaded = PickleSerializer().loads(json.loads(STORED.read_text(encoding="utf-8"))[name].encode())
    expected = results()[name]
    assert type(loaded) is type(expected)
    if isinstance(expected, Exception):
        assert (str(loaded), vars(loaded)) == (str(expected), vars(expected))
    else:
        assert loaded == expected


@pytest.mark.parametrize("name", [name for name in prefect_psik.__all__ if name[0].isupper()])
def test_a_public_class_is_stored_under_its_public_name(name: str) -> None:
    """So it may move within the package."""
    found = getattr(prefect_psik, name)
    assert inspect.isclass(found)
    assert (found.__module__, found.__qualname__) == ("prefect_psik", name)


def main() -> None:
    """Print what these results are when they are stored."""
    stored = {name: PickleSerializer().dumps(result).decode() for name, result in results().items()}
    json.dump(stored, sys.stdout, indent=1)


if __name__ == "__main__":
    main()

"""The ingest hook: registers a scan in a catalogue once its raw data is stored, and again once its results are.

A hook is a plain callable that takes a `Stored` and returns its id in the catalogue. A flow refers to it as
`path/of/file.py:function` or `module:function`. `scicat` is a hook for SciCat; it needs the `scicat` extra, and
`SCICAT_URL` and `SCICAT_TOKEN` in the environment of the worker.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.utilities.importtools import import_object


@dataclass(frozen=True)
class Stored:
    """New data in the data store that is not in the catalogue yet.

    Args:
        scan: Name of the scan.
        stage: Whether this is its raw data, or its results.
        directory: Path of the data store, as users see it.
        files: Path below the directory -> size in bytes.
        made_of: For results: what the hook returned for the raw data.
        facts: Further facts, such as the error of a reconstruction.
        facility: Where the results were made.
    """

    scan: str
    stage: Literal["raw", "results"]
    directory: str
    files: dict[str, int]
    made_of: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    facility: str | None = None


@task(name="ingest", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=5)
async def ingest(hook: str, stored: Stored) -> str:
    """Call a hook; retried in case the catalogue is temporarily unavailable."""
    return str(await asyncio.to_thread(import_object(hook), stored))


def scicat(stored: Stored) -> str:
    """Register a scan in SciCat, once; returns the dataset's persistent identifier."""
    from pyscicat.client import from_token
    from pyscicat.model import CreateDatasetOrigDatablockDto, DataFile, DerivedDataset, RawDataset

    client = from_token(os.environ["SCICAT_URL"], os.environ["SCICAT_TOKEN"])
    name = f"{stored.scan} {stored.stage}" + (f" of {stored.facility}" if stored.facility else "")
    size = sum(stored.files.values())
    common: dict[str, Any] = {
        "datasetName": name,
        "owner": "beamline",
        "ownerGroup": "beamline",
        "contactEmail": "beamline@example.org",
        "creationTime": datetime.now(UTC).isoformat(),
        "sourceFolder": stored.directory,
        "numberOfFiles": len(stored.files),
        "size": size,
        "scientificMetadata": stored.facts,
    }
    known = client.datasets_get_many({"datasetName": name, "sourceFolder": stored.directory})
    if known:  # a retry after a failure halfway
        pid = str(known[0]["pid"])
    elif stored.stage == "raw":
        raw = RawDataset(**common, creationLocation="beamline", principalInvestigator="beamline")
        pid = str(client.datasets_create(raw))
    else:
        made_of = [stored.made_of] if stored.made_of else []
        results = DerivedDataset(
            **common, investigator="beamline", inputDatasets=made_of, usedSoftware=["scikit-image"]
        )
        pid = str(client.datasets_create(results))
    if known and client.datasets_origdatablocks_get_one(pid):
        return pid
    files = [DataFile(path=path, size=bytes_) for path, bytes_ in stored.files.items()]
    client.datasets_origdatablock_create(pid, CreateDatasetOrigDatablockDto(size=size, dataFileList=files))
    return pid

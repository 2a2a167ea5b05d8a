"""The backends where a flow run has jobs: kept as labels of the flow run, so that its cancel finds them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from pydantic import BaseModel, ConfigDict, ValidationError

from prefect_psik.blocks import PsikBackend

#: Labels of ours begin with this.
LABEL = "psik.place."

_marked: dict[tuple[str, str], asyncio.Task[str | None]] = {}
_locks: dict[str, asyncio.Lock] = {}


class Place(BaseModel):
    """Where a flow run has jobs, even if the block has changed or been deleted since."""

    model_config = ConfigDict(extra="ignore")

    endpoint_id: UUID | None = None
    prefix: str
    backend: str | None = None

    @property
    def label(self) -> str:
        """The label's name: one for each endpoint and prefix."""
        return LABEL + hashlib.sha256(f"{self.endpoint_id}|{self.prefix}".encode()).hexdigest()[:12]


def place_of(block: PsikBackend) -> Place:
    """The place where a block's jobs are."""
    return Place(endpoint_id=block.endpoint_id, prefix=block.prefix, backend=block.document_name)


async def mark(flow_runs: list[str], place: Place) -> list[str]:
    """Label the flow runs as having jobs here. On the session's loop, once for each process and place.

    This happens before the submission, so that a crash in between loses nothing. If Prefect's API does not answer,
    the submission continues: the waits of this process can still cancel the job.

    Returns:
        Errors, for the run's log.
    """
    troubles = []
    for flow_run in flow_runs:
        key = (flow_run, place.label)
        if key not in _marked:
            _marked[key] = asyncio.create_task(_set_label(flow_run, place))
        trouble = await asyncio.shield(_marked[key])
        if trouble is not None:
            _marked.pop(key, None)
            troubles.append(trouble)
    return troubles


async def _set_label(flow_run: str, place: Place) -> str | None:
    try:
        await set_label(flow_run, place.label, place.model_dump_json())
    except (PrefectException, httpx.HTTPError, OSError, ValueError) as err:
        return f"flow run {flow_run} could not be labeled as having jobs under {place.prefix}: {err}"
    return None


async def set_label(flow_run: str, name: str, value: str) -> None:
    """Set a label of a flow run; one at a time, since the server reads all labels and writes them all back."""
    async with _locks.setdefault(flow_run, asyncio.Lock()), get_client() as client:
        await client.update_flow_run_labels(UUID(flow_run), {name: value})


def places_of(labels: Mapping[str, Any]) -> list[Place]:
    """Read the places from a flow run's labels; labels of ours that somebody else wrote are skipped."""
    found = []
    for name, value in labels.items():
        if name.startswith(LABEL):
            with contextlib.suppress(ValidationError):
                found.append(Place.model_validate_json(str(value)))
    return found

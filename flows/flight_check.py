"""Flight check: find out whether each backend and collection works before a scan needs it.

A backend gets a preflight and a tiny job; a collection gets a tiny file, there and back. All verdicts are in a
table artifact. Each failure emits an event, `psik.flight-check.failed`, so that an automation can notify people,
and makes the flow run fail. A backend that operators have closed does not count as a failure.
"""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from pathlib import Path
from typing import Literal

import httpx
from prefect import flow
from prefect.artifacts import acreate_table_artifact
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from prefect_psik import (
    GlobusCollection,
    JobSpec,
    PrefectPsikError,
    PsikBackend,
    ResourceSpec,
    WaitLimits,
    adelete_files,
    arun_job,
    arun_preflight,
    arun_transfer,
    cancel_psik_jobs,
)

TINY = JobSpec(
    name="flight-check",
    script='#!/bin/bash\necho "$(uname -n) works"\n',
    resources=ResourceSpec(duration=1, exclusive_node_use=False),
)

#: Errors that make one check fail without ending the others. A ValueError means that the block cannot be loaded.
TROUBLE = (PrefectPsikError, PrefectException, httpx.HTTPError, OSError, ValueError)

Row = dict[str, str]


@flow(name="flight check", on_cancellation=[cancel_psik_jobs])
async def flight_check(
    backends: list[str] | None = None,
    collections: list[str] | None = None,
    home: str | None = None,
    patience: timedelta = timedelta(minutes=15),
) -> list[Row]:
    """Check whether backends and collections work.

    Args:
        backends: Names of `psik-backend` blocks. Empty: all.
        collections: Names of `globus-collection` blocks. Empty: all.
        home: Name of a collection whose files this machine can access: a tiny file is sent from there to each
            collection and back. Empty: collections are not checked.
        patience: Longest time for the tiny job in the queue, and for each transfer.
    """
    names = backends if backends is not None else await saved("psik-backend")
    checks = [check_backend(name, patience) for name in names]
    if home:
        names = collections if collections is not None else await saved("globus-collection")
        checks += [check_collection(name, home, patience) for name in names if name != home]
    rows = await asyncio.gather(*checks)
    failed = [row for row in rows if row["verdict"] == "failed"]
    await acreate_table_artifact(
        rows, key="flight-check", description=f"{len(rows) - len(failed)} of {len(rows)} checks did not fail"
    )
    for row in failed:
        emit_event(
            "psik.flight-check.failed",
            resource={
                "prefect.resource.id": f"psik.{row['kind']}.{row['name']}",
                "prefect.resource.name": row["name"],
            },
            payload=row,
        )
    if failed:
        told = " ".join(f"{row['name']}: {row['found']}" for row in failed)
        raise RuntimeError(f"{len(failed)} of {len(rows)} checks failed. {told}")
    get_run_logger().info("None of the %d checks failed", len(rows))
    return rows


async def check_backend(name: str, patience: timedelta) -> Row:
    """Run a preflight and a tiny job."""
    try:
        block: PsikBackend = await PsikBackend.aload(name)
        if not block.accept_jobs:
            return verdict_on("backend", name, "closed", block.note or "Its note is empty.")
        await arun_preflight(block)
        limits = WaitLimits(queue=patience, trouble=patience, on_limit="cancel")
        done = await arun_job(block, TINY, key=f"{flow_run.id} {name}", limits=limits)
    except TROUBLE as err:
        return verdict_on("backend", name, "failed", str(err) or repr(err))
    queued = f"{done.queue_seconds or 0:.0f} s in the queue"
    return verdict_on("backend", name, "works", f"{done.stdout.strip()}, after {queued}")


async def check_collection(name: str, home: str, patience: timedelta) -> Row:
    """Send a tiny file there and back, and compare."""
    try:
        here: GlobusCollection = await GlobusCollection.aload(home)
        there: GlobusCollection = await GlobusCollection.aload(name)
        if (here.collection_id is None) != (there.collection_id is None):
            return verdict_on("collection", name, "skipped", f"There is no direct transfer between it and {home}.")
        same = await there_and_back(here, there, f"flight-check-{flow_run.id}-{name}", patience)
    except TROUBLE as err:
        return verdict_on("collection", name, "failed", str(err) or repr(err))
    if not same:
        return verdict_on("collection", name, "failed", "The tiny file came back with different contents.")
    return verdict_on("collection", name, "works", f"A tiny file went there from {home} and came back unchanged.")


async def there_and_back(here: GlobusCollection, there: GlobusCollection, tiny: str, patience: timedelta) -> bool:
    """Whether a tiny file comes back unchanged. Its three copies are always removed, and nothing else is."""
    away, back = f"{tiny}.away", f"{tiny}.back"
    try:
        content = write_tiny(Path(here.posix(tiny)))
        await arun_transfer(here, there, [(tiny, away)], deadline=patience)
        await arun_transfer(there, here, [(away, back)], deadline=patience)
        same = read_tiny(Path(here.posix(back))) == content
    finally:
        removed = await asyncio.gather(
            adelete_files(here, [tiny, back], deadline=patience),
            adelete_files(there, away, deadline=patience),
            return_exceptions=True,
        )
    for trouble in removed:
        if isinstance(trouble, BaseException):
            raise trouble
    return same


def write_tiny(path: Path) -> bytes:
    """Write a file of random bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = os.urandom(1024)
    path.write_bytes(content)
    return content


def read_tiny(path: Path) -> bytes:
    """Read the file that came back."""
    return path.read_bytes()


def verdict_on(kind: Literal["backend", "collection"], name: str, verdict: str, found: str) -> Row:
    """One line of the table."""
    return {"kind": kind, "name": name, "verdict": verdict, "found": found}


async def saved(slug: str) -> list[str]:
    """Names of all saved blocks of a type."""
    async with get_client() as api:
        try:
            documents = await api.read_block_documents_by_type(slug)
        except ObjectNotFound:
            return []
    return sorted(document.name for document in documents if document.name)


if __name__ == "__main__":
    asyncio.run(flight_check())

"""Sweep: one job for each row of a table of parameters, as many at a time as the queue accepts; restartable.

Each value of a row is an environment variable of the job's script. The key of a row's job is made from the name of
the sweep and the row, so a sweep that is run again under its name finds the rows that are done, and waits for the
rows that are running.
"""

from __future__ import annotations

import asyncio
import csv
import json
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.artifacts import acreate_table_artifact
from prefect.logging import get_run_logger
from pydantic import Field

from prefect_psik import (
    FlowRunCancelling,
    JobResult,
    JobSpec,
    PrefectPsikError,
    PsikBackend,
    ResourceSpec,
    WaitLimits,
    arun_job,
    cancel_psik_jobs,
)
from prefect_psik.plain_text import plain_values

Row = dict[str, str | int | float]

EXAMPLE = Path(__file__).parent / "scripts" / "sweep.sh"


@flow(name="sweep", flow_run_name="sweep {name}", on_cancellation=[cancel_psik_jobs])
async def sweep(
    name: str,
    table: list[Row] | Path,
    script: Path = EXAMPLE,
    backend: str | None = None,
    resources: ResourceSpec = ResourceSpec(duration=10, exclusive_node_use=False),  # noqa: B008 - a default of the form
    at_once: Annotated[int | None, Field(ge=1)] = None,
    tries: Annotated[int, Field(ge=1, le=9)] = 1,
    patience: timedelta | None = None,
) -> list[Row]:
    """Run a script once for each row of a table.

    Args:
        name: Name of the sweep. Running it again under the same name continues where it stopped.
        table: Rows of names and values, or a CSV or JSON file of such rows. Names become environment variables.
        script: Path of the script on this machine. It writes its result, a mapping, to `result.json`.
        backend: Name of a `psik-backend` block. Empty: this machine, without Globus or Slurm.
        resources: Resources for the job of one row.
        at_once: How many jobs may be in the queue or running at the same time. Empty: as many as the facility
            accepts; the others wait for a place in its queue.
        tries: How many jobs a row may use. A new run with a higher number runs failed rows again.
        patience: Longest time of a job in the queue before it is canceled. Empty: no limit.

    Returns:
        The rows with their results, in the order of the table.
    """
    rows = table if isinstance(table, list) else read_table(table)
    if not rows:
        raise ValueError(f"The table of the sweep {name} has no rows. Add at least one.")
    where = await PsikBackend.aload(backend) if backend else PsikBackend()
    limits = WaitLimits(queue=patience, on_limit="cancel")
    room = asyncio.Semaphore(at_once or len(rows))

    async def one(row: Row) -> Row:
        job = JobSpec.from_script(
            script,
            environment={key: str(value) for key, value in row.items()},
            resources=resources,
            outputs=["result.json"],
        )
        async with room:
            for number in range(1, tries + 1):
                try:
                    done = await arun_job(where, job, key=key_of(name, job, number), limits=limits)
                    return {**row, **result_of(done), "state": "completed"}
                except FlowRunCancelling:
                    raise
                except (PrefectPsikError, ValueError) as err:
                    why = str(err)
        return {**row, "state": "failed", "why": why.splitlines()[0]}

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(one(row)) for row in rows]
    results = [task.result() for task in running]

    failed = sum(row["state"] == "failed" for row in results)
    await acreate_table_artifact(
        plain_values(results),
        key=f"sweep-{artifact_name(name)}",
        description=f"{len(rows) - failed} of {len(rows)} completed",
    )
    if failed:
        raise RuntimeError(
            f"{failed} of {len(rows)} rows of the sweep {name} failed; the table artifact says why. Retry this "
            f"flow run, or run the sweep again with tries={tries + 1}: rows that are done are not run again."
        )
    get_run_logger().info("All %d rows of the sweep %s have completed", len(rows), name)
    return results


def result_of(done: JobResult) -> Row:
    """What the script wrote to `result.json`."""
    try:
        found = json.loads(done.outputs.get("result.json", b""))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{done.handle} completed, but its result.json is not a JSON mapping. Fix the script.")
    return found


def read_table(path: Path) -> list[Row]:
    """Read a table: JSON is a list of mappings, anything else is CSV with a line of names."""
    with path.open(newline="", encoding="utf-8") as file:
        return json.load(file) if path.suffix == ".json" else list(csv.DictReader(file))


def key_of(name: str, job: JobSpec, number: int) -> str:
    """The key of a row's job: the same for the same row of the same sweep, whatever its place in the table."""
    return f"sweep {name} {job.digest()[:16]} {number}"


def artifact_name(name: str) -> str:
    """A name that Prefect accepts as part of an artifact key."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())


if __name__ == "__main__":
    asyncio.run(sweep("demo", [{"ANGLES": angles} for angles in (45, 90, 180)]))

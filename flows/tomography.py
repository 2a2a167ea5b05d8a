"""The whole tomography pipeline: store a new scan, process it at a facility, and store the verified results.

    detector ──> data store ──> facility: reconstruct ──> multiscale image ──> data store
                    └ export-controlled: no further

One flow serves all facilities; the block chooses one. Data is deleted by prunes, which this flow schedules, and
which delete only what the data store is proven to hold. The scripts in `flows/scripts` run unchanged at the
facility; they need the `tomography` extra there. Run as a script, this flow scans a phantom, and needs only this
machine.
"""

from __future__ import annotations

import asyncio
import base64
import glob
import json
import sys
from collections.abc import Awaitable
from pathlib import Path, PurePosixPath
from typing import Any

from prefect import flow
from prefect.artifacts import acreate_markdown_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import BaseModel, Field
from rich.console import Console
from rich.table import Table

from flows.ingest import Stored
from flows.store import Keep, Phantom, RawData, ScanName, place, proven, store_scan, tell
from prefect_psik import (
    JobResult,
    JobSpec,
    PsikBackend,
    ResourceSpec,
    arun_job,
    arun_transfer,
    aschedule_prune,
    cancel_psik_jobs,
)
from prefect_psik.plain_text import markdown

SCRIPTS = Path(__file__).parent / "scripts"


class Resources(BaseModel):
    """Resources for each job."""

    minutes: int = Field(default=10, ge=1, description="Walltime of each job, in minutes.")
    cores: int = Field(default=2, ge=1, description="CPU cores of each job, on one node.")
    python: str = Field(
        default="",
        description="Python with the `tomography` extra at the facility. Empty: the Python of this flow.",
    )


def run_name() -> str:
    """The name of the flow run."""
    return f"tomography {flow_run.parameters['scan']} @ {flow_run.parameters.get('facility') or 'this machine'}"


@flow(name="tomography", flow_run_name=run_name, on_cancellation=[cancel_psik_jobs])
async def tomography(
    scan: ScanName,
    facility: str | None = None,
    detector: str | None = None,
    store: str | None = None,
    scratch: str | None = None,
    stored: RawData | None = None,
    export_controlled: bool = False,
    phantom: Phantom | None = None,
    resources: Resources = Resources(),  # noqa: B008 - a default of the form
    keep: Keep = Keep(),  # noqa: B008
    hook: str | None = None,
    hook_required: bool = False,
    key: str | None = None,
    local: Path = Path("demo-output"),
) -> dict[str, Any]:
    """Store a scan, reconstruct it, and store the results.

    Args:
        scan: Name of the scan: its raw data is `raw/SCAN.h5`, its results are `rec/FACILITY/SCAN` and
            `rec/FACILITY/SCAN.zarr`, or `rec/SCAN` where no facility is named.
        facility: Name of a `psik-backend` block. Empty: this machine, without Globus or Slurm.
        detector: Name of the `globus-collection` block where scans arrive. Empty: a directory of this machine.
        store: Name of the `globus-collection` block of the data store. Empty: a directory of this machine.
        scratch: Name of the facility's `globus-collection` block. Empty: `FACILITY-scratch` if a facility is
            named, or else a directory of this machine.
        stored: The raw data, if the dispatcher has already stored it for all facilities. Empty: store it.
        export_controlled: Store the scan, but send it nowhere else.
        phantom: Compute the scan of a phantom at the detector first, and compare the result with the phantom.
        resources: Resources for each job.
        keep: How long data stays at the detector and at the facility.
        hook: Function that registers data in a catalogue, as `file.py:function` or `module:function`. Empty: none.
        hook_required: Fail if the hook fails. If not set, the failure is only shown.
        key: Runs with the same key share their jobs. Empty: each run has its own jobs.
        local: Directory on this machine for its data directories, and for the pictures of a phantom.

    Returns:
        Facts about the result; for a phantom its errors: `nrmse` is relative to the phantom's own root mean
        square.
    """
    where = await PsikBackend.aload(facility) if facility else PsikBackend()
    home = await place(store, local / "data/store")
    scratch = scratch or (facility and f"{facility}-scratch")
    away = await place(scratch, local / "data/facility")
    # Each facility has its own results, since several may process the same scan.
    rec = str(PurePosixPath("rec", facility or "", scan))
    image = f"{rec}.zarr"
    key = key or str(flow_run.id)

    stored = stored or await store_scan(
        scan,
        detector,
        store,
        phantom=phantom,
        keep=keep,
        hook=hook,
        hook_required=hook_required,
        local=local,
    )
    raw = stored.path
    if export_controlled:
        return {"stored": home.posix(raw)}

    async def run(name: str, environment: dict[str, str], **promises: list[str]) -> JobResult:
        job = script_job(name, environment, resources).replace(**promises)
        return await arun_job(where, job, key=f"{key} {name}")

    at = {"RAW": away.posix(raw), "REC": away.posix(rec), "ZARR": away.posix(image)}
    await arun_transfer(home, away, [(raw, raw)])
    slices, header = glob.escape(at["REC"]) + "/slice_*.tiff", glob.escape(at["ZARR"]) + "/zarr.json"
    await run("reconstruct", {"RAW": at["RAW"], "OUT": at["REC"]}, expect=[slices])
    await together(
        run("multiscale", {"IN": at["REC"], "OUT": at["ZARR"]}, expect=[header]),
        arun_transfer(away, home, [(rec, rec)]),
    )
    await arun_transfer(away, home, [(image, image)])
    files = await proven(away, home, [rec, image])
    if scratch and store:
        for path in (raw, rec, image):
            await aschedule_prune(scratch, path, check=store, after=keep.facility)

    facts: dict[str, Any] = {"files": len(files)}
    if phantom:
        report = await run("report", {**at, "OUT": "report"}, outputs=["report/*.png", "report/report.json"])
        facts |= json.loads(report.outputs.pop("report/report.json"))
        card = report_card(scan, facts, report.outputs, local)
        await acreate_markdown_artifact(card, key="tomography-report", description=f"nrmse {facts['nrmse']:.3f}")
    told = Stored(scan, "results", home.posix(""), files, stored.catalogued, facts, facility)
    await tell(hook, hook_required, told)
    return facts


def script_job(name: str, environment: dict[str, str], resources: Resources) -> JobSpec:
    """Make a job from one of the scripts, run by the Python at the facility that has its libraries."""
    text = (SCRIPTS / f"{name}.py").read_text(encoding="utf-8")
    return JobSpec(
        name=name,
        script=f"#!{resources.python or sys.executable}\n{text}",
        environment=environment,
        resources=ResourceSpec(
            duration=resources.minutes,
            node_count=1,
            cpu_cores_per_process=resources.cores,
            exclusive_node_use=False,
        ),
    )


async def together(*work: Awaitable[Any]) -> None:
    """Run several awaitables concurrently until all have ended; then raise the first error."""
    for done in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(done, BaseException):
            raise done


def report_card(scan: str, facts: dict[str, Any], pictures: dict[str, bytes], directory: Path) -> str:
    """The errors and the pictures as Markdown; the pictures are also written as files."""
    directory.mkdir(parents=True, exist_ok=True)
    get_run_logger().info("Error against the phantom: %.3f; pictures in %s", facts["nrmse"], directory.resolve())
    text = f"## {markdown(scan)}\n\n| | |\n|---|---|\n"
    text += "".join(
        f"| {markdown(name)} | {markdown(value)} |\n" for name, value in facts.items() if name != "images"
    )
    for path, content in pictures.items():
        name = Path(path).name
        (directory / name).write_bytes(content)
        text += f"\n![{markdown(name)}](data:image/png;base64,{base64.b64encode(content).decode()})\n"
    return text


if __name__ == "__main__":
    result = asyncio.run(tomography("phantom", phantom=Phantom()))
    table = Table("what", "value", title="Reconstruction against the phantom")
    for name, value in result.items():
        table.add_row(name, str(value))
    table.add_row("pictures", str(Path("demo-output").resolve()))
    Console().print(table)

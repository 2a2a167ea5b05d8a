"""Tomography, whole: a new scan goes to the data store and to a facility, and its results come back, proven.

    detector ──> data store ──> facility: reconstruct ──> multiscale image ──> data store
                    └ export-controlled: no further

One flow for any facility: the block chooses. Data is deleted by prunes, which are scheduled here and delete only
what the data store is proven to hold. The scripts in `flows/scripts` run as they are at the facility; they need
the `tomography` extra there. Run as a script, this flow scans a phantom, and needs nothing but this machine.
"""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import Awaitable
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import BaseModel, Field
from rich.console import Console
from rich.table import Table

from flows.ingest import Stored, ingest
from prefect_psik import (
    GlobusCollection,
    JobResult,
    JobSpec,
    PsikBackend,
    ResourceSpec,
    alist_files,
    arun_job,
    arun_transfer,
    aschedule_prune,
    cancel_psik_jobs,
)

SCRIPTS = Path(__file__).parent / "scripts"


class Phantom(BaseModel):
    """A computed scan in place of a measured one, so that the error of the whole way comes out as a number."""

    size: int = Field(default=128, ge=16, description="Columns of the detector, in pixels.")
    slices: int = Field(default=64, ge=1, description="Rows of the detector, in pixels.")
    angles: int = Field(default=180, ge=1, description="Projections over 180 degrees.")


class Resources(BaseModel):
    """What the jobs ask for."""

    minutes: int = Field(default=10, ge=1, description="Walltime of each job.")
    cores: int = Field(default=2, ge=1, description="CPU cores of each job, on one node.")
    python: str = Field(default="", description="Python with the `tomography` extra there. Empty: this one.")


class Keep(BaseModel):
    """How long data stays where it is not needed for ever. The data store is never pruned."""

    detector: timedelta = Field(default=timedelta(days=1), description="At the detector.")
    facility: timedelta = Field(default=timedelta(days=7), description="At the facility.")


def run_name() -> str:
    """What the flow run is called."""
    return f"tomography {flow_run.parameters['scan']} @ {flow_run.parameters.get('facility') or 'this machine'}"


@flow(name="tomography", flow_run_name=run_name, on_cancellation=[cancel_psik_jobs])
async def tomography(
    scan: str,
    facility: str | None = None,
    detector: str | None = None,
    store: str | None = None,
    scratch: str | None = None,
    export_controlled: bool = False,
    phantom: Phantom | None = None,
    resources: Resources = Resources(),  # noqa: B008 - a default of the form
    keep: Keep = Keep(),  # noqa: B008
    hook: str | None = None,
    hook_required: bool = False,
    key: str | None = None,
    local: Path = Path("demo-output"),
) -> dict[str, Any]:
    """Bring a scan from the detector to its reconstruction.

    Args:
        scan: Name of the scan: its raw data is `raw/SCAN.h5`, its results are `rec/SCAN` and `rec/SCAN.zarr`.
        facility: Name of a `psik-backend` block. Empty: this machine, without Globus or Slurm.
        detector: Name of the `globus-collection` block where scans arrive. Empty: a directory of this machine.
        store: The data store, likewise.
        scratch: The facility's collection, likewise. Empty: `FACILITY-scratch`, if a facility is named.
        export_controlled: Store the scan, and send it nowhere else.
        phantom: Compute the scan of a phantom at the detector first, and compare the result with the phantom.
        resources: What the jobs ask for.
        keep: How long data stays at the detector and at the facility.
        hook: What tells a catalogue, as `file.py:function` or `module:function`. Empty: none.
        hook_required: Fail if the hook fails; otherwise that is only shown.
        key: What makes two runs of this flow the same one. Empty: each run is its own.
        local: Where the directories of this machine are, and the pictures of a phantom.

    Returns:
        What is known of the result; for a phantom its errors: `nrmse` is relative to the phantom's own root mean
        square.
    """
    where = await PsikBackend.aload(facility) if facility else PsikBackend()
    arrives = await place(detector, local / "data/detector")
    home = await place(store, local / "data/store")
    scratch = scratch or (facility and f"{facility}-scratch")
    away = await place(scratch, local / "data/facility")
    raw, rec, image = f"raw/{scan}.h5", f"rec/{scan}", f"rec/{scan}.zarr"
    key = key or str(flow_run.id)

    if phantom:
        take_scan(Path(arrives.posix(raw)), phantom)
    await arun_transfer(arrives, home, [(raw, raw)])
    raw_files = await proven(arrives, home, [raw])
    raw_name = await tell(hook, hook_required, Stored(scan, "raw", home.posix(""), raw_files))
    if detector and store:  # directories of this machine without a block are not pruned
        await aschedule_prune(detector, raw, check=store, after=keep.detector)
    if export_controlled:
        return {"stored": home.posix(raw)}

    async def run(name: str, environment: dict[str, str], **promises: list[str]) -> JobResult:
        job = script_job(name, environment, resources).replace(**promises)
        return await arun_job(where, job, key=f"{key} {name}")

    at = {"RAW": away.posix(raw), "REC": away.posix(rec), "ZARR": away.posix(image)}
    await arun_transfer(home, away, [(raw, raw)])
    await run("reconstruct", {"RAW": at["RAW"], "OUT": at["REC"]}, expect=[f"{at['REC']}/slice_*.tiff"])
    await together(
        run("multiscale", {"IN": at["REC"], "OUT": at["ZARR"]}, expect=[f"{at['ZARR']}/zarr.json"]),
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
    await tell(hook, hook_required, Stored(scan, "results", home.posix(""), files, raw_name, facts))
    return facts


def script_job(name: str, environment: dict[str, str], resources: Resources) -> JobSpec:
    """Make a job of one of the scripts, for the Python that has its libraries at the facility."""
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


async def place(name: str | None, directory: Path) -> GlobusCollection:
    """A collection by its block's name, or a directory of this machine."""
    return await GlobusCollection.aload(name) if name else here(directory)


def here(directory: Path) -> GlobusCollection:
    """A directory of this machine, made if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    return GlobusCollection(base_path=str(directory.resolve()))


@task(name="take scan", cache_policy=NO_CACHE)
def take_scan(raw: Path, phantom: Phantom) -> None:
    """Stand in for the beamline: compute a raw scan in the DXchange layout."""
    raw.parent.mkdir(parents=True, exist_ok=True)
    arguments = [text for name, value in phantom for text in (f"--{name}", str(value))]
    subprocess.run([sys.executable, SCRIPTS / "make_scan.py", "--out", raw, *arguments], check=True)  # noqa: S603


async def proven(source: GlobusCollection, destination: GlobusCollection, paths: list[str]) -> dict[str, int]:
    """The files below some paths, with their sizes, once both places are seen to have the same ones."""

    async def listed(collection: GlobusCollection) -> dict[str, int]:
        lists = await asyncio.gather(*(alist_files(collection, path, recursive=True) for path in paths))
        return {entry.path: entry.size for entries in lists for entry in entries if entry.kind == "file"}

    there, copy = await asyncio.gather(listed(source), listed(destination))
    if wrong := sorted(path for path in there if copy.get(path) != there[path]):
        raise RuntimeError(
            f"{len(wrong)} of {len(there)} files are not the same at both places, although their transfer "
            f"succeeded, such as {wrong[0]}. Did something write to them meanwhile? Retry."
        )
    return {path: copy[path] for path in there}


async def together(*work: Awaitable[Any]) -> None:
    """Do several things at the same time, each to its end; then raise what failed first."""
    for done in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(done, BaseException):
            raise done


async def tell(hook: str | None, required: bool, stored: Stored) -> str | None:
    """Tell a catalogue. A failure is a red task of the run; the run goes on unless the hook is required."""
    if hook is None:
        return None
    try:
        return await ingest(hook, stored)
    except Exception as err:  # whatever a hook raises
        if required:
            raise
        get_run_logger().error("The catalogue does not know the %s of %s: %s", stored.stage, stored.scan, err)
        return None


def report_card(scan: str, facts: dict[str, Any], pictures: dict[str, bytes], directory: Path) -> str:
    """The errors and the pictures as Markdown; the pictures are also left as files."""
    directory.mkdir(parents=True, exist_ok=True)
    get_run_logger().info("Error against the phantom: %.3f; pictures in %s", facts["nrmse"], directory.resolve())
    text = f"## {scan}\n\n| | |\n|---|---|\n"
    text += "".join(f"| {name} | {value} |\n" for name, value in facts.items() if name != "images")
    for path, content in pictures.items():
        name = Path(path).name
        (directory / name).write_bytes(content)
        text += f"\n![{name}](data:image/png;base64,{base64.b64encode(content).decode()})\n"
    return text


if __name__ == "__main__":
    result = asyncio.run(tomography("phantom", phantom=Phantom()))
    table = Table("what", "value", title="Reconstruction against the phantom")
    for name, value in result.items():
        table.add_row(name, str(value))
    table.add_row("pictures", str(Path("demo-output").resolve()))
    Console().print(table)

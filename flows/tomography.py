"""Tomography, lean: take a scan, reconstruct it and make a multiscale image as batch jobs, and look at it.

The scan is computed from a 3-D phantom, so that the error of the whole chain comes out as a number. The
scripts in `flows/scripts` run as they are at the facility; they need the `tomography` extra there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from rich.console import Console
from rich.table import Table

from prefect_psik import JobSpec, PsikBackend, ResourceSpec, run_job

SCRIPTS = Path(__file__).parent / "scripts"


@task(name="take scan", cache_policy=NO_CACHE)
def take_scan(raw: Path, size: int, slices: int, angles: int) -> None:
    """Stand in for the beamline: compute a raw scan in the DXchange layout."""
    raw.parent.mkdir(parents=True, exist_ok=True)
    shape = {"--size": size, "--slices": slices, "--angles": angles}
    arguments = [text for name, value in shape.items() for text in (name, str(value))]
    subprocess.run([sys.executable, SCRIPTS / "make_scan.py", "--out", raw, *arguments], check=True)  # noqa: S603


def script_job(name: str, python: str, environment: dict[str, Path], **fields: list[str]) -> JobSpec:
    """Make a job of one of the scripts, for the Python that has its libraries at the facility."""
    text = (SCRIPTS / f"{name}.py").read_text(encoding="utf-8")
    return JobSpec(
        name=name,
        script=f"#!{python}\n{text}",
        environment={key: str(path) for key, path in environment.items()},
        resources=ResourceSpec(duration=10, node_count=1, cpu_cores_per_process=2, exclusive_node_use=False),
        **fields,
    )


@flow(name="tomography", flow_run_name="tomography {scan}")
def tomography(
    scan: str = "phantom",
    backend: str | None = None,
    data: Path = Path("demo-output/data"),
    pictures: Path = Path("demo-output"),
    size: int = 128,
    slices: int = 64,
    angles: int = 180,
    python: str | None = None,
) -> dict[str, float]:
    """Reconstruct a scan of a phantom, and compare the result with the phantom.

    Args:
        scan: Name of the scan and of its files.
        backend: Name of a `psik-backend` block. Empty: this machine, without Globus or Slurm.
        data: Directory that this process and the facility's jobs both see.
        pictures: Where the pictures go, on this machine.
        size: Columns of the detector, in pixels.
        slices: Rows of the detector, in pixels.
        angles: Projections over 180 degrees.
        python: Interpreter of the scripts, at the facility. Empty: this one.

    Returns:
        The errors against the phantom; `nrmse` is relative to the phantom's own root mean square.
    """
    where = backend or PsikBackend()
    python = python or sys.executable
    top = data.resolve()
    raw, rec, image = top / f"raw/{scan}.h5", top / f"rec/{scan}", top / f"rec/{scan}.zarr"

    take_scan(raw, size, slices, angles)
    last = f"{rec}/slice_{slices - 1:04d}.tiff"
    run_job(where, script_job("reconstruct", python, {"RAW": raw, "OUT": rec}, expect=[last]))
    run_job(where, script_job("multiscale", python, {"IN": rec, "OUT": image}, expect=[f"{image}/zarr.json"]))
    inputs = {"RAW": raw, "REC": rec, "ZARR": image, "OUT": Path("report")}
    report = run_job(where, script_job("report", python, inputs, outputs=["report/*.png", "report/report.json"]))

    pictures.mkdir(parents=True, exist_ok=True)
    for name, content in report.outputs.items():
        (pictures / Path(name).name).write_bytes(content)
    errors: dict[str, float] = json.loads(report.outputs["report/report.json"])
    get_run_logger().info("Error against the phantom: %.3f; pictures in %s", errors["nrmse"], pictures.resolve())
    numbers = "\n".join(f"| {name} | {value} |" for name, value in errors.items() if name != "images")
    create_markdown_artifact(f"## {scan}\n\n| | |\n|---|---|\n{numbers}\n", key="tomography-report")
    return errors


if __name__ == "__main__":
    result = tomography()
    table = Table("what", "value", title="Reconstruction against the phantom")
    for name, value in result.items():
        table.add_row(name, str(value))
    table.add_row("pictures", str(Path("demo-output").resolve()))
    Console().print(table)

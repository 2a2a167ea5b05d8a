"""Store: copy a new scan from the detector to the data store, verify the copy, and register it in a catalogue.

The first step of `tomography.py`. The dispatcher runs it once for all facilities, since two flow runs that store
the same scan at the same time would write to the same file.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from pydantic import AfterValidator, BaseModel, Field

from flows.ingest import Stored, ingest
from prefect_psik import GlobusCollection, alist_files, arun_transfer, aschedule_prune

SCRIPTS = Path(__file__).parent / "scripts"


def one_name(scan: str) -> str:
    """Refuse text that cannot be a file name; blanks, quotes and other special characters are allowed."""
    if scan in (".", "..") or not re.fullmatch(r"[^/\x00-\x1f\x7f]+", scan):
        raise ValueError(
            f"{scan!r} is not a scan name, since files are named after it. Use neither '/' nor control characters."
        )
    return scan


ScanName = Annotated[str, AfterValidator(one_name)]


class Phantom(BaseModel):
    """A computed scan in place of a measured one, so that the error of the whole pipeline can be measured."""

    size: int = Field(default=128, ge=16, description="Columns of the detector, in pixels.")
    slices: int = Field(default=64, ge=1, description="Rows of the detector, in pixels.")
    angles: int = Field(default=180, ge=1, description="Projections over 180 degrees.")


class Keep(BaseModel):
    """How long data is kept outside the data store, which is never pruned."""

    detector: timedelta = Field(default=timedelta(days=1), description="How long data stays at the detector.")
    facility: timedelta = Field(default=timedelta(days=7), description="How long data stays at the facility.")


class RawData(BaseModel):
    """Raw data in the data store."""

    path: str = Field(description="Path below the data store.")
    catalogued: str | None = Field(default=None, description="Its id in the catalogue.")


async def store_scan(
    scan: ScanName,
    detector: str | None,
    store: str | None,
    *,
    phantom: Phantom | None = None,
    keep: Keep,
    hook: str | None,
    hook_required: bool,
    local: Path = Path("demo-output"),
) -> RawData:
    """Store the raw data of a scan. The arguments are those of the tomography."""
    arrives, home = await place(detector, local / "data/detector"), await place(store, local / "data/store")
    raw = f"raw/{scan}.h5"
    if phantom:
        take_scan(Path(arrives.posix(raw)), phantom)
    await arun_transfer(arrives, home, [(raw, raw)])
    files = await proven(arrives, home, [raw])
    catalogued = await tell(hook, hook_required, Stored(scan, "raw", home.posix(""), files))
    if detector and store:  # directories of this machine without a block are not pruned
        await aschedule_prune(detector, raw, check=store, after=keep.detector)
    return RawData(path=raw, catalogued=catalogued)


async def place(name: str | None, directory: Path) -> GlobusCollection:
    """A collection by the name of its block, or a directory of this machine."""
    return await GlobusCollection.aload(name) if name else here(directory)


def here(directory: Path) -> GlobusCollection:
    """A directory of this machine as a collection; created if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    return GlobusCollection(base_path=str(directory.resolve()))


@task(name="take scan", cache_policy=NO_CACHE)
def take_scan(raw: Path, phantom: Phantom) -> None:
    """Stand in for the beamline: compute a raw scan in the DXchange layout."""
    raw.parent.mkdir(parents=True, exist_ok=True)
    arguments = [text for name, value in phantom for text in (f"--{name}", str(value))]
    subprocess.run([sys.executable, SCRIPTS / "make_scan.py", "--out", raw, *arguments], check=True)  # noqa: S603


async def proven(source: GlobusCollection, destination: GlobusCollection, paths: list[str]) -> dict[str, int]:
    """The files below some paths, with their sizes, after a check that both collections have the same ones."""

    async def listed(collection: GlobusCollection) -> dict[str, int]:
        lists = await asyncio.gather(*(alist_files(collection, path, recursive=True) for path in paths))
        return {entry.path: entry.size for entries in lists for entry in entries if entry.kind == "file"}

    there, copy = await asyncio.gather(listed(source), listed(destination))
    if wrong := sorted(path for path in there if copy.get(path) != there[path]):
        raise RuntimeError(
            f"{len(wrong)} of {len(there)} files differ between source and destination, although their transfer "
            f"succeeded, such as {wrong[0]}. Something may have written to them in the meantime. Retry."
        )
    return {path: copy[path] for path in there}


async def tell(hook: str | None, required: bool, stored: Stored) -> str | None:
    """Register data in a catalogue. If that fails, its task is red; the run fails only if the hook is required."""
    if hook is None:
        return None
    try:
        return await ingest(hook, stored)
    except Exception as err:  # whatever a hook raises
        if required:
            raise
        get_run_logger().error("The catalogue has no entry for scan %s (%s): %s", stored.scan, stored.stage, err)
        return None

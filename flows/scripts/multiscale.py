#!/usr/bin/env python3
"""Turn a directory of TIFF slices into a multiscale OME-Zarr image, for viewers that load what they show.

Environment:

    IN      Directory of TIFF slices (y, x), all of one shape, numbered without a gap, in the order of z.
    OUT     Path of the image to write; it ends in `.zarr`. An image of an earlier run is replaced.

Writes OME-Zarr 0.5 (Zarr format 3): float32 arrays `0`, `1`, `2` ... (z, y, x), each the mean of 2 x 2 x 2
voxels of the one before, down to 64 voxels along the longest axis and at least three of them. Scales are in
micrometers if the TIFFs carry the size of a pixel (a slice is as thick as a pixel is wide), else in voxels.
Chunks have 64 voxels a side, and all chunks of 64 slices lie in one file, to spare the file system. OUT
appears only when it is whole. Exits with 1 and one sentence on stderr if the input cannot be used.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import zarr

Array = npt.NDArray[np.float32]
Shape = tuple[int, int, int]

AXES = ("z", "y", "x")
CHUNK = 64  # voxels a side: 1 MiB
MIN_LEVELS = 3


class JobError(Exception):
    """The job cannot be done; the text is the sentence for its log."""


def main() -> None:
    """Write the slices of IN as the image OUT."""
    try:
        slices = find_slices(Path(_from_environment("IN")))
        out = Path(_from_environment("OUT"))
        if out.suffix != ".zarr" or (out.exists() and not (out / "zarr.json").is_file()):
            raise JobError(f"OUT must end in .zarr and be new or an earlier image, but is {out}.")
        part = out.with_name(f".{out.name}.part")
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        try:
            write_image(part, slices, name=out.stem)
            _put_in_place(part, out)
        except OSError as error:
            raise JobError(f"OUT: {out} cannot be written: {error}.") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except (JobError, OSError) as error:
        sys.exit(f"multiscale: {error}")


def find_slices(directory: Path) -> list[Path]:
    """List the TIFFs of a directory in the order of z.

    Raises:
        JobError: There are none, or a number is missing between the first and the last.
    """
    if not directory.is_dir():
        raise JobError(f"IN: there is no directory {directory}.")
    found: dict[int, Path] = {}
    for path in sorted(directory.iterdir()):
        if path.suffix in (".tif", ".tiff") and not path.name.startswith("."):
            number = re.search(r"\d+$", path.stem)
            if number is None or int(number[0]) in found:
                raise JobError(f"IN: {path} has no slice number of its own.")
            found[int(number[0])] = path
    if not found:
        raise JobError(f"IN: there are no TIFF slices in {directory}.")
    missing = sorted(set(range(min(found), max(found))) - set(found))
    if missing:
        raise JobError(f"IN: {len(missing)} slices are missing in {directory}, first number {missing[0]}.")
    return [found[number] for number in sorted(found)]


def write_image(path: Path, slices: list[Path], *, name: str) -> None:
    """Write all levels of the image to `path`."""
    first, pixel_size = _read_slice(slices[0]), _pixel_size_micrometers(slices[0])
    shapes = level_shapes((len(slices), *first.shape))
    attributes = {"ome": describe(len(shapes), name=name, pixel_size=pixel_size)}
    image = zarr.create_group(store=path, zarr_format=3, attributes=attributes)

    level = _create_level(image, 0, shapes[0])
    for start in range(0, len(slices), CHUNK):
        batch = [_read_slice(slice_) for slice_ in slices[start : start + CHUNK]]
        for slice_, pixels in zip(slices[start:], batch, strict=False):
            if pixels.shape != first.shape:
                raise JobError(
                    f"IN: {slice_} has the shape {pixels.shape}, but the first slice has {first.shape}."
                )
        level[start : start + len(batch)] = np.stack(batch)
    print(f"level 0: {shapes[0]}", flush=True)

    for number, shape in enumerate(shapes[1:], start=1):
        finer, level = level, _create_level(image, number, shape)
        for start in range(0, shape[0], CHUNK):
            block = np.asarray(finer[2 * start : 2 * (start + CHUNK)])
            level[start : start + CHUNK] = halve(block)
        print(f"level {number}: {shape}", flush=True)


def level_shapes(shape: Shape) -> list[Shape]:
    """Give the shape of each level, the finest first.

    Example:
        >>> level_shapes((64, 128, 128))
        [(64, 128, 128), (32, 64, 64), (16, 32, 32)]
    """
    shapes = [shape]
    while len(shapes) < MIN_LEVELS or max(shapes[-1]) > CHUNK:
        z, y, x = shapes[-1]
        shapes.append(((z + 1) // 2, (y + 1) // 2, (x + 1) // 2))
    return shapes


def halve(volume: Array) -> Array:
    """Average 2 x 2 x 2 voxels into one. At an odd end, the last voxel counts twice."""
    even = np.pad(volume, [(0, length % 2) for length in volume.shape], mode="edge")
    z, y, x = (length // 2 for length in even.shape)
    mean: Array = even.reshape(z, 2, y, 2, x, 2).mean(axis=(1, 3, 5), dtype=np.float64).astype(np.float32)
    return mean


def describe(levels: int, *, name: str, pixel_size: float | None) -> dict[str, Any]:
    """Write the OME-Zarr 0.5 metadata of an image with cubic voxels.

    A coarse voxel covers 2**n fine ones, so its centre lies half of (2**n - 1) fine voxels further in: the
    translation. Without it, viewers draw the levels shifted against each other.
    """
    edge = 1.0 if pixel_size is None else pixel_size
    axes = [{"name": axis, "type": "space"} | ({"unit": "micrometer"} if pixel_size else {}) for axis in AXES]
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [
                {"type": "scale", "scale": [edge * 2**level] * 3},
                {"type": "translation", "translation": [edge * (2**level - 1) / 2] * 3},
            ],
        }
        for level in range(levels)
    ]
    method = {"description": "Mean of 2 x 2 x 2 voxels of the level before."}
    image = {"name": name, "axes": axes, "datasets": datasets, "type": "mean", "metadata": method}
    return {"version": "0.5", "multiscales": [image]}


def _create_level(image: zarr.Group, level: int, shape: Shape) -> zarr.Array[Any]:
    chunks = tuple(min(CHUNK, length) for length in shape)
    across = (-(-length // chunk) * chunk for length, chunk in zip(shape[1:], chunks[1:], strict=True))
    return image.create_array(
        str(level),
        shape=shape,
        dtype="float32",
        chunks=chunks,
        shards=(chunks[0], *across),
        dimension_names=AXES,
    )


def _read_slice(path: Path) -> Array:
    try:
        pixels = tifffile.imread(path)
    except (OSError, ValueError, struct.error) as error:  # a broken file raises any of them
        raise JobError(f"IN: {path} cannot be read as TIFF: {error}.") from error
    if pixels.ndim != 2:
        raise JobError(f"IN: {path} is not one slice: it has the shape {pixels.shape}.")
    return np.asarray(pixels, np.float32)


def _pixel_size_micrometers(path: Path) -> float | None:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        if page.resolutionunit == tifffile.RESUNIT.NONE:
            return None
        return 1e4 / float(page.get_resolution(tifffile.RESUNIT.CENTIMETER)[0])


def _put_in_place(part: Path, out: Path) -> None:
    """Rename `part` to `out`; an old image steps aside first, since a full directory cannot be replaced."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.replace(old)
    part.replace(out)
    shutil.rmtree(old, ignore_errors=True)


def _from_environment(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise JobError(f"{name} is not set.")
    return value


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Compare a reconstruction with the phantom that was scanned: pictures and numbers.

Environment:

    RAW     Scan made by `make_scan.py`; its `/phantom/data` (z, y, x) is the truth, in attenuation per pixel.
    REC     Directory of the TIFF slices that `reconstruct.py` wrote.
    ZARR    The OME-Zarr image that `multiscale.py` wrote. Its level 0 must equal the slices.
    OUT     Directory to write to:

            slice_z.png, slice_y.png, slice_x.png   central slices: reconstruction, phantom, difference
            report.json                             nrmse, psnr_db, ssim, shape, levels, images

`nrmse` is the root mean square error in the circle that every projection sees, over the root mean square of
the phantom there: 0 is perfect, 1 is as wrong as an empty image. `psnr_db` relates the error to the range of
the phantom, and `ssim` is the mean structural similarity of the slices, both in that circle. Prints one line.
`report.json` is written last, so if it exists, everything does. Exits with 1 and one sentence on stderr if
something is missing or the image disagrees with the slices.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import tifffile
import zarr
from PIL import Image, ImageDraw, ImageFont
from skimage.metrics import structural_similarity

Array = npt.NDArray[np.float32]

PANEL_WIDTH = 384  # screen pixels
CAPTION_HEIGHT = 26
DIFFERENCE_GAIN = 4
SSIM_WINDOW = 7  # pixels; scikit-image's own default


class JobError(Exception):
    """The job cannot be done; the text is the sentence for its log."""


def main() -> None:
    """Write the report on REC and ZARR against RAW to OUT."""
    try:
        truth = read_phantom(Path(_from_environment("RAW")))
        found = read_slices(Path(_from_environment("REC")), truth.shape)
        levels = check_image(Path(_from_environment("ZARR")), found)
        out = Path(_from_environment("OUT"))
        report = measure(found, truth) | {"shape": list(truth.shape), "levels": levels}
        try:
            out.mkdir(parents=True, exist_ok=True)
            report["images"] = write_pictures(out, found, truth)
            with _written_whole(out / "report.json") as part:
                part.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise JobError(f"OUT: {out} cannot be written: {error}.") from error
    except (JobError, OSError) as error:
        sys.exit(f"report: {error}")
    print(
        f"nrmse {report['nrmse']:.4f}, psnr {report['psnr_db']:.1f} dB, ssim {report['ssim']:.3f} over "
        f"{truth.shape[0]} slices; the image has {levels} levels and equals the slices"
    )


def read_phantom(path: Path) -> Array:
    """Read the truth from the scan."""
    if not path.is_file():
        raise JobError(f"RAW: there is no file {path}.")
    with h5py.File(path, "r") as file:
        if "phantom/data" not in file:
            raise JobError(f"RAW: {path} holds no /phantom/data to compare with.")
        truth: Array = file["phantom/data"][:]
    return truth


def read_slices(directory: Path, shape: tuple[int, ...]) -> Array:
    """Read the reconstruction, which must have the shape of the phantom."""
    paths = sorted(directory.glob("slice_*.tiff"))
    if len(paths) != shape[0]:
        raise JobError(f"REC: {directory} holds {len(paths)} slices, but the scan has {shape[0]}.")
    try:
        volume = np.stack([tifffile.imread(path) for path in paths])
    except (OSError, ValueError, struct.error) as error:  # a broken file raises any of them
        raise JobError(f"REC: the slices in {directory} cannot be read as one volume: {error}.") from error
    if volume.shape != shape:
        raise JobError(
            f"REC: the slices in {directory} have the shape {volume.shape}, but the phantom has {shape}."
        )
    return volume.astype(np.float32)


def check_image(path: Path, volume: Array) -> int:
    """Check that the image opens and that its finest level is `volume`; return the number of levels."""
    try:
        image: Any = zarr.open_group(path, mode="r")
        datasets = image.attrs["ome"]["multiscales"][0]["datasets"]
        levels = [image[dataset["path"]] for dataset in datasets]
        finest = np.asarray(levels[0][:])
    except (KeyError, IndexError, ValueError, OSError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise JobError(f"ZARR: {path} cannot be read as OME-Zarr 0.5: {cause}.") from error
    if not np.array_equal(finest, volume):
        raise JobError(f"ZARR: level 0 of {path} differs from the slices.")
    return len(levels)


def measure(found: Array, truth: Array) -> dict[str, Any]:
    """Compute the errors within the circle of reconstruction."""
    size = truth.shape[-1]
    offset = np.arange(size) - size // 2
    circle = offset[:, None] ** 2 + offset[None, :] ** 2 <= (size // 2) ** 2
    error = (found - truth)[:, circle].astype(np.float64)
    span = float(truth.max() - truth.min())
    similar = [
        structural_similarity(a, b, win_size=SSIM_WINDOW, data_range=span, full=True)[1][circle].mean()
        for a, b in zip(found, truth, strict=True)
    ]
    return {
        "nrmse": float(np.sqrt(np.sum(error**2) / np.sum(truth[:, circle].astype(np.float64) ** 2))),
        "psnr_db": float(20 * np.log10(span) - 10 * np.log10(np.mean(error**2))),
        "ssim": float(np.mean(similar)),
    }


def write_pictures(out: Path, found: Array, truth: Array) -> list[str]:
    """Write the three central slices and return the names of the files."""
    names = []
    for axis, letter in enumerate("zyx"):
        middle = truth.shape[axis] // 2
        names.append(f"slice_{letter}.png")
        picture = draw(found.take(middle, axis), truth.take(middle, axis), title=f"{letter} = {middle}")
        with _written_whole(out / names[-1]) as part:
            picture.save(part, format="PNG")
    return names


def draw(found: Array, truth: Array, *, title: str) -> Image.Image:
    """Put a slice, its truth and their difference side by side, on one grey scale."""
    # The skull is five times as dense as what is inside; half the range shows the inside.
    white = float(truth.max()) / 2 or 1.0
    panels = {
        f"reconstruction, {title}": found / white,
        f"phantom, 0 to {white:.3f} per pixel": truth / white,
        f"difference x {DIFFERENCE_GAIN}": 0.5 + (found - truth) * (DIFFERENCE_GAIN / white / 2),
    }
    zoom = max(1, PANEL_WIDTH // truth.shape[1])
    height, width = truth.shape[0] * zoom, truth.shape[1] * zoom
    picture = Image.new("L", (len(panels) * width, height + CAPTION_HEIGHT))
    pen = ImageDraw.Draw(picture)
    for number, (caption, values) in enumerate(panels.items()):
        grey = (values.clip(0, 1) * 255).astype(np.uint8).repeat(zoom, axis=0).repeat(zoom, axis=1)
        picture.paste(Image.fromarray(grey), (number * width, CAPTION_HEIGHT))
        pen.text((number * width + 6, 5), caption, fill=255, font=ImageFont.load_default(14))
    return picture


@contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """Give a hidden name beside `path`, and rename it to `path` only if all went well."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _from_environment(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise JobError(f"{name} is not set.")
    return value


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Make a raw tomography scan of a known phantom, to have something to reconstruct.

    python make_scan.py --out scan.h5 [--size 128] [--slices 64] [--angles 180] [--noise 0.005] [--seed 0]

The sample is the 3-D Shepp-Logan head phantom. Its projections are computed from the formula of each
ellipsoid, never from the voxels, so that a reconstruction is measured against something that it did not come
from. The file follows the Data Exchange layout as ALS beamline 8.3.2 writes it:

| Dataset                                       | Shape                | Type    | Unit    |
|-----------------------------------------------|----------------------|---------|---------|
| `/exchange/data`                              | angles, slices, size | uint16  | counts  |
| `/exchange/data_white`, `data_dark`           | 20, slices, size     | uint16  | counts  |
| `/exchange/theta`                             | angles               | float32 | degrees |
| `/measurement/instrument/detector/pixel_size` | 1                    | float64 | mm      |
| `/phantom/data`                               | slices, size, size   | float32 | 1/pixel |

Detector row z sees slice z. The rotation axis is on column `size // 2`. The detector has a fixed pattern
(stripes, a beam profile, uneven pixels) and a dark current, which a reconstruction must correct. The noise of
photon counting is in every frame. The same arguments and seed give the same numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# One ellipsoid a line: density, semi-axes a b c, centre x y z, turn about z in degrees. Half the field of
# view is 1. The table is Schabel's `phantom3d` (Kak and Slaney's ellipsoids, with the contrast of Toft's
# thesis); the two ventricles are turned by 18 degrees, as in the 2-D head phantom.
ELLIPSOIDS = (
    (1.0, 0.6900, 0.920, 0.810, 0.00, 0.0000, 0.00, 0.0),
    (-0.8, 0.6624, 0.874, 0.780, 0.00, -0.0184, 0.00, 0.0),
    (-0.2, 0.1100, 0.310, 0.220, 0.22, 0.0000, 0.00, -18.0),
    (-0.2, 0.1600, 0.410, 0.280, -0.22, 0.0000, 0.00, 18.0),
    (0.1, 0.2100, 0.250, 0.410, 0.00, 0.3500, -0.15, 0.0),
    (0.1, 0.0460, 0.046, 0.050, 0.00, 0.1000, 0.25, 0.0),
    (0.1, 0.0460, 0.046, 0.050, 0.00, -0.1000, 0.25, 0.0),
    (0.1, 0.0460, 0.023, 0.050, -0.08, -0.6050, 0.00, 0.0),
    (0.1, 0.0230, 0.023, 0.020, 0.00, -0.6060, 0.00, 0.0),
    (0.1, 0.0230, 0.046, 0.020, 0.06, -0.6050, 0.00, 0.0),
)
FIELD_OF_VIEW_MM = 12.8
# Makes the skull about as dense to the beam as bone is at 20 keV; the darkest ray keeps an eighth.
ATTENUATION_PER_MM = 0.625
OVERSAMPLING = 2  # points along each edge of a pixel or voxel; a detector sees soft edges
CALIBRATION_FRAMES = 20
OPEN_BEAM_COUNTS = 50_000
DARK_COUNTS = 2000
READ_NOISE_COUNTS = 5.0


def make_scan(
    path: Path,
    *,
    size: int = 128,
    slices: int = 64,
    angles: int = 180,
    noise: float = 0.005,
    seed: int = 0,
) -> None:
    """Write a scan to `path`, whole or not at all.

    Args:
        path: The HDF5 file to write. One that exists is replaced.
        size: Detector columns; the phantom has `size` x `size` voxels a slice.
        slices: Detector rows, centred on the phantom's middle.
        angles: Projections, evenly over [0, 180) degrees.
        noise: Relative noise of a pixel in the brightest open beam: 0.005 stands for 40 000 photons. 0 makes
            every frame exact.
        seed: Of the fixed pattern and the noise.

    Raises:
        ValueError: A number is out of range.
    """
    if size < 16 or slices < 1 or angles < 2 or not 0 <= noise <= 0.5:
        raise ValueError("a scan needs size >= 16, slices >= 1, angles >= 2 and noise between 0 and 0.5.")
    rng = np.random.default_rng(seed)
    detector = Detector(rng, rows=slices, columns=size, noise=noise)
    theta = np.arange(angles) * (180.0 / angles)
    with _written_whole(path) as part, h5py.File(part, "w") as file:
        file["implements"] = "exchange:measurement"
        exchange = file.create_group("exchange")
        exchange["title"] = "Shepp-Logan phantom, absorption tomography"
        data = exchange.create_dataset("data", (angles, slices, size), np.uint16)
        for index, angle in enumerate(theta):
            data[index] = detector.frame(transmission(angle, slices=slices, size=size))
        calibration = (CALIBRATION_FRAMES, slices, size)
        white = exchange.create_dataset("data_white", calibration, np.uint16)
        dark = exchange.create_dataset("data_dark", calibration, np.uint16)
        for index in range(CALIBRATION_FRAMES):
            white[index] = detector.frame(1.0)
            dark[index] = detector.frame(0.0)
        for dataset in (data, white, dark):
            _describe(dataset, axes="theta:y:x", units="counts")
        exchange["theta"] = theta.astype(np.float32)
        _describe(exchange["theta"], units="deg")
        file["measurement/instrument/detector/pixel_size"] = [FIELD_OF_VIEW_MM / size]
        _describe(file["measurement/instrument/detector/pixel_size"], units="mm")
        truth = file.create_dataset("phantom/data", (slices, size, size), np.float32)
        for z in range(slices):
            truth[z] = phantom_slice(z, slices=slices, size=size)
        _describe(truth, axes="z:y:x", units="1/pixel", description="linear attenuation")


class Detector:
    """A detector with faults of its own, the same ones in every frame."""

    def __init__(self, rng: np.random.Generator, *, rows: int, columns: int, noise: float) -> None:
        self._rng = rng
        self._noise = noise
        v = np.linspace(-1, 1, rows)[:, None] if rows > 1 else np.zeros((1, 1))
        u = np.linspace(-1, 1, columns)[None, :]
        beam = np.exp(-0.4 * v**2) * (1 - 0.15 * u)
        stripes = 1 + 0.1 * rng.standard_normal((1, columns)).clip(-3, 3)
        pixels = 1 + 0.02 * rng.standard_normal((rows, columns)).clip(-3, 3)
        response = beam * stripes * pixels
        self._response = response / response.max()
        self._dark = DARK_COUNTS * (1 + 0.2 * rng.random((rows, columns)))

    def frame(self, transmitted: Array | float) -> npt.NDArray[np.uint16]:
        """Expose one frame, in counts, to this fraction of the open beam."""
        light = transmitted * self._response
        if self._noise:
            photons = 1 / self._noise**2
            light = self._rng.poisson(light * photons) / photons
        counts = light * OPEN_BEAM_COUNTS + self._dark
        if self._noise:
            counts = counts + READ_NOISE_COUNTS * self._rng.standard_normal(counts.shape)
        pixels: npt.NDArray[np.uint16] = np.rint(counts).clip(0, 65535).astype(np.uint16)
        return pixels


def transmission(angle: float, *, slices: int, size: int) -> Array:
    """Compute the fraction of the beam that comes through at `angle` degrees: (slices, size)."""
    z = _points(slices, size)[:, None]
    t = _points(size, size)[None, :]
    path_length = np.zeros((z.size, t.size))
    for density, a, b, c, x0, y0, z0, turn in ELLIPSOIDS:
        # At height z the ellipsoid is an ellipse with semi-axes k a and k b. Kak and Slaney, "Principles of
        # Computerized Tomographic Imaging", section 3.1, give the chord that a ray at distance t cuts off.
        k2 = 1 - ((z - z0) / c) ** 2
        phi = np.deg2rad(angle)
        s2 = (a * np.cos(phi - np.deg2rad(turn))) ** 2 + (b * np.sin(phi - np.deg2rad(turn))) ** 2
        distance = t - x0 * np.cos(phi) - y0 * np.sin(phi)
        path_length += density * 2 * a * b / s2 * np.sqrt(np.maximum(k2 * s2 - distance**2, 0))
    # A pixel sums light, so the mean is taken after the exponential.
    return _pixels(np.exp(-path_length * ATTENUATION_PER_MM * FIELD_OF_VIEW_MM / 2))


def phantom_slice(index: int, *, slices: int, size: int) -> Array:
    """Rasterise one slice of the phantom, in attenuation per pixel: (size, size), y pointing up."""
    heights = _points(slices, size)[index * OVERSAMPLING : (index + 1) * OVERSAMPLING]
    x = _points(size, size)[None, :]
    y = -_points(size, size)[:, None]
    density = np.zeros((y.size, x.size))
    for value, a, b, c, x0, y0, z0, turn in ELLIPSOIDS:
        cos, sin = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
        along = ((x - x0) * cos + (y - y0) * sin) / a
        across = ((y - y0) * cos - (x - x0) * sin) / b
        radius2 = along**2 + across**2
        for z in heights:
            density += value / OVERSAMPLING * (radius2 <= 1 - ((z - z0) / c) ** 2)
    return _pixels(density) * (ATTENUATION_PER_MM * FIELD_OF_VIEW_MM / size)


def _points(count: int, size: int) -> Array:
    """Give the sample points of `count` pixels about pixel `count // 2`; `size` pixels are two units wide."""
    fine = (np.arange(count * OVERSAMPLING) + 0.5) / OVERSAMPLING - 0.5
    return (fine - count // 2) * (2 / size)


def _pixels(fine: Array) -> Array:
    """Average the sample points of each pixel."""
    rows, columns = (length // OVERSAMPLING for length in fine.shape)
    mean: Array = fine.reshape(rows, OVERSAMPLING, columns, OVERSAMPLING).mean(axis=(1, 3))
    return mean


def _describe(dataset: Any, **attributes: str) -> None:
    dataset.attrs.update(attributes)


@contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """Give a hidden name beside `path`, and rename it to `path` only if all went well."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def main() -> None:
    """Read the command line and write the scan."""
    parser = argparse.ArgumentParser(description="Make a raw tomography scan of the 3-D Shepp-Logan phantom.")
    parser.add_argument("--out", type=Path, required=True, help="HDF5 file to write")
    parser.add_argument("--size", type=int, default=128, help="detector columns (default: %(default)s)")
    parser.add_argument("--slices", type=int, default=64, help="detector rows (default: %(default)s)")
    parser.add_argument(
        "--angles", type=int, default=180, help="projections over 180 degrees (default: %(default)s)"
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=0.005,
        help="relative noise of an open-beam pixel (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of pattern and noise (default: %(default)s)")
    options = parser.parse_args()
    try:
        make_scan(
            options.out,
            size=options.size,
            slices=options.slices,
            angles=options.angles,
            noise=options.noise,
            seed=options.seed,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"make_scan: cannot write {options.out}: {error}")
    print(f"{options.out}: {options.angles} projections of {options.slices} x {options.size} pixels")


if __name__ == "__main__":
    main()

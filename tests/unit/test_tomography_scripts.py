"""The job scripts of the tomography demo: run as a job runs them, and judged by the files that they leave."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

np = pytest.importorskip("numpy")
h5py = pytest.importorskip("h5py")
tifffile = pytest.importorskip("tifffile")
zarr = pytest.importorskip("zarr")
pillow = pytest.importorskip("PIL.Image")
pytest.importorskip("skimage")

SCRIPTS = Path(__file__).parents[2] / "flows" / "scripts"
NAMES = ("make_scan.py", "reconstruct.py", "multiscale.py", "report.py")
PARAMETERS = ("RAW", "OUT", "IN", "REC", "ZARR", "NPROC", "SLURM_CPUS_PER_TASK")
LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
runpy.run_path(sys.argv[1], run_name="__main__")
"""
SIZE, SLICES, ANGLES = 96, 9, 150
PIXEL_SIZE_MICROMETERS = 12_800 / SIZE
# The chain reaches 0.174 at this size. Without the dark field it is 0.25, without the flat field 0.38.
GOOD_NRMSE = 0.2


def load(name: str) -> ModuleType:
    """Import a script by its path: `flows/scripts` is a folder of programs, not a package."""
    spec = importlib.util.spec_from_file_location(f"tomography_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


make_scan = load("make_scan")
reconstruct = load("reconstruct")
multiscale = load("multiscale")
report = load("report")


def run(
    script: str, *arguments: str, file_size_limit: int | None = None, **environment: Path | str
) -> subprocess.CompletedProcess[str]:
    """Run a script as a job: a process of its own, with its parameters in the environment.

    With `file_size_limit` (bytes), writing fails as it does on a full disk.
    """
    inherited = {key: value for key, value in os.environ.items() if key not in PARAMETERS}
    program = [sys.executable]
    if file_size_limit is not None:
        program += ["-c", LIMITED.format(limit=file_size_limit)]
    return subprocess.run(
        [*program, SCRIPTS / script, *arguments],
        env=inherited | {key: str(value) for key, value in environment.items()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refusal(script: ModuleType, monkeypatch: pytest.MonkeyPatch, **environment: Path | str | None) -> str:
    """Run a script in this process, expect it to refuse, and return its sentence."""
    for key in PARAMETERS:
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        if value is not None:
            monkeypatch.setenv(key, str(value))
    with pytest.raises(SystemExit) as refused:
        script.main()
    assert isinstance(refused.value.code, str), "Python prints a text to stderr and exits with 1"
    return refused.value.code


def files(directory: Path) -> list[str]:
    """Everything below a directory, hidden or not."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def nrmse(scan: Path, slices: Path) -> float:
    """Measure a reconstruction apart from `report.py`: in a circle one pixel smaller, to stay off its rim."""
    with h5py.File(scan) as file:
        truth = file["phantom/data"][:]
    found = np.stack([tifffile.imread(path) for path in sorted(slices.glob("*.tiff"))])
    offset = np.arange(truth.shape[-1]) - truth.shape[-1] // 2
    circle = np.hypot(offset[:, None], offset[None, :]) <= truth.shape[-1] // 2 - 1
    return float(np.linalg.norm((found - truth)[:, circle]) / np.linalg.norm(truth[:, circle]))


@dataclass(frozen=True)
class Chain:
    """One run of all four scripts."""

    scan: Path
    slices: Path
    image: Path
    report: Path
    outputs: dict[str, str]

    @property
    def volume(self) -> Any:
        return np.stack([tifffile.imread(path) for path in sorted(self.slices.glob("*.tiff"))])


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    top = tmp_path_factory.mktemp("a chain")
    scan, slices, image, out = top / "scan.h5", top / "rec", top / "rec.zarr", top / "report"
    size = ("--size", str(SIZE), "--slices", str(SLICES), "--angles", str(ANGLES))
    runs = {
        "make_scan": run("make_scan.py", "--out", str(scan), *size),
        "reconstruct": run("reconstruct.py", RAW=scan, OUT=slices, SLURM_CPUS_PER_TASK="2"),
        "multiscale": run("multiscale.py", IN=slices, OUT=image),
        "report": run("report.py", RAW=scan, REC=slices, ZARR=image, OUT=out),
    }
    for name, process in runs.items():
        assert process.returncode == 0, f"{name}: {process.stderr}"
    assert not any(".part" in name for name in files(top))
    return Chain(scan, slices, image, out, {name: process.stdout for name, process in runs.items()})


@pytest.fixture
def scan(chain: Chain, tmp_path: Path) -> Path:
    """A scan that a test may spoil."""
    return Path(shutil.copy(chain.scan, tmp_path / "scan.h5"))


@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_a_program_that_needs_only_the_libraries_of_the_field(name: str) -> None:
    path = SCRIPTS / name
    source = path.read_text(encoding="utf-8")
    assert source.startswith("#!/usr/bin/env python3\n")
    assert os.access(path, os.X_OK)
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    field = {"numpy", "h5py", "skimage", "tifffile", "zarr", "PIL"}
    assert imported - sys.stdlib_module_names <= field


def test_the_examples_in_the_docstrings_are_true() -> None:
    results = doctest.testmod(multiscale)
    assert results.attempted > 0
    assert results.failed == 0


# The scan


def test_a_scan_has_the_data_exchange_layout(chain: Chain) -> None:
    with h5py.File(chain.scan) as file:
        layout = {
            name: (file[name].shape, file[name].dtype, file[name].attrs["units"])
            for name in ("exchange/data", "exchange/data_white", "exchange/data_dark", "exchange/theta")
        }
        frame = (SLICES, SIZE)
        assert layout == {
            "exchange/data": ((ANGLES, *frame), np.uint16, "counts"),
            "exchange/data_white": ((20, *frame), np.uint16, "counts"),
            "exchange/data_dark": ((20, *frame), np.uint16, "counts"),
            "exchange/theta": ((ANGLES,), np.float32, "deg"),
        }
        assert file["implements"][()] == b"exchange:measurement"
        assert np.allclose(file["exchange/theta"], np.arange(ANGLES) * 180 / ANGLES)
        pixel_size = file["measurement/instrument/detector/pixel_size"]
        assert pixel_size[0] * 1000 == pytest.approx(PIXEL_SIZE_MICROMETERS)
        assert pixel_size.attrs["units"] == "mm"
        phantom = file["phantom/data"]
        assert (phantom.shape, phantom.dtype) == ((SLICES, SIZE, SIZE), np.float32)
        assert phantom.attrs["units"] == "1/pixel"


def test_a_scan_has_a_fixed_pattern_a_dark_current_and_noise(chain: Chain) -> None:
    with h5py.File(chain.scan) as file:
        white, dark = file["exchange/data_white"][:], file["exchange/data_dark"][:]
        data = file["exchange/data"][:]
    beam = white.mean(axis=0) - dark.mean(axis=0)
    assert np.std(beam) / np.mean(beam) > 0.1, "stripes, profile and uneven pixels"
    assert np.corrcoef(white[0].ravel(), white[1].ravel())[0, 1] > 0.9, "the pattern is in every frame"
    assert 1500 < dark.mean() < 3000
    relative_noise = white.std(axis=0, ddof=1).mean() / beam.mean()
    assert 0.005 < relative_noise < 0.01, "0.5 % in the brightest pixel, more where less light falls"
    assert data.max() < 65535
    assert data.min() > dark.mean(), "no ray is swallowed whole"


@pytest.mark.parametrize(
    ("angle_index", "line_integral"),
    [(0, lambda truth: truth.sum(axis=1)), (2, lambda truth: np.roll(truth.sum(axis=2)[:, ::-1], 1, axis=1))],
    ids=["0 degrees: along y", "90 degrees: along x, and y points up"],
)
def test_the_projections_are_line_integrals_of_the_phantom(
    tmp_path: Path, angle_index: int, line_integral: Any
) -> None:
    make_scan.make_scan(tmp_path / "exact.h5", size=64, slices=4, angles=4, noise=0)
    with h5py.File(tmp_path / "exact.h5") as file:
        white, dark = (
            file["exchange/data_white"][0].astype(float),
            file["exchange/data_dark"][0].astype(float),
        )
        measured = -np.log((file["exchange/data"][angle_index] - dark) / (white - dark))
        expected = line_integral(file["phantom/data"][:].astype(float))
    assert expected.max() > 1
    assert np.sqrt(np.mean((measured - expected) ** 2)) < 0.04 * np.sqrt(np.mean(expected**2)), (
        "0.05 is a quarter of a pixel"
    )


def test_the_seed_fixes_every_number(tmp_path: Path) -> None:
    def data(seed: int, noise: float) -> Any:
        path = tmp_path / "scan.h5"
        make_scan.make_scan(path, size=16, slices=2, angles=3, seed=seed, noise=noise)
        with h5py.File(path) as file:
            return file["exchange/data_white"][:]

    assert np.array_equal(data(1, 0.01), data(1, 0.01))
    assert not np.array_equal(data(1, 0.01), data(2, 0.01))
    exact = data(1, 0)
    assert np.array_equal(exact[0], exact[1])


def test_a_scan_that_cannot_be_made_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    made = run("make_scan.py", "--out", str(tmp_path / "scan.h5"), "--noise", "2")
    assert made.returncode == 1
    assert made.stderr.endswith("noise between 0 and 0.5.\n")
    assert files(tmp_path) == []


# The reconstruction


def test_a_reconstruction_is_one_whole_tiff_a_slice(chain: Chain) -> None:
    assert files(chain.slices) == [f"slice_{row:04d}.tiff" for row in range(SLICES)]
    with tifffile.TiffFile(chain.slices / "slice_0004.tiff") as tiff:
        page = tiff.pages.first
        assert (page.shape, page.dtype) == ((SIZE, SIZE), np.float32)
        assert tiff.shaped_metadata[0]["unit"] == "1/pixel"
        assert page.get_resolution("micrometer") == pytest.approx((1 / PIXEL_SIZE_MICROMETERS,) * 2)
    assert chain.outputs["reconstruct"].splitlines() == [f"slice {n}/{SLICES}" for n in range(1, SLICES + 1)]


def test_a_reconstruction_is_close_to_the_phantom(chain: Chain) -> None:
    assert nrmse(chain.scan, chain.slices) < GOOD_NRMSE


def without_flat_field(exchange: Any) -> None:
    exchange["data_white"][:] = exchange["data_white"][:].mean()
    exchange["data_dark"][:] = exchange["data_dark"][:].mean()


def without_dark_current(exchange: Any) -> None:
    exchange["data_dark"][:] = 0


def turned_the_other_way(exchange: Any) -> None:
    exchange["theta"][:] = -exchange["theta"][:]


@pytest.mark.parametrize("spoil", [without_flat_field, without_dark_current, turned_the_other_way])
def test_the_bound_on_the_error_tells_a_wrong_reconstruction(scan: Path, tmp_path: Path, spoil: Any) -> None:
    with h5py.File(scan, "r+") as file:
        spoil(file["exchange"])
    reconstruct.reconstruct(reconstruct.open_scan(scan), tmp_path / "rec", threads=2)
    assert nrmse(scan, tmp_path / "rec") > 1.1 * GOOD_NRMSE


def test_dead_pixels_are_filled_from_their_neighbours(scan: Path, tmp_path: Path) -> None:
    with h5py.File(scan, "r+") as file:
        for name in ("data", "data_white", "data_dark"):
            file["exchange"][name][:, :, 20] = 0
    reconstruct.reconstruct(reconstruct.open_scan(scan), tmp_path / "rec", threads=2)
    assert nrmse(scan, tmp_path / "rec") < 1.2 * GOOD_NRMSE


def test_the_number_of_threads_changes_nothing_else(chain: Chain, tmp_path: Path) -> None:
    reconstruct.reconstruct(reconstruct.open_scan(chain.scan), tmp_path, threads=1)
    again = np.stack([tifffile.imread(path) for path in sorted(tmp_path.iterdir())])
    assert np.array_equal(again, chain.volume)


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"SLURM_CPUS_PER_TASK": "3"}, 3),
        ({"SLURM_CPUS_PER_TASK": "3", "NPROC": "5"}, 5),
        ({"NPROC": "100000"}, 64),
    ],
)
def test_the_job_says_how_many_threads(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], threads: int
) -> None:
    for name in PARAMETERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert reconstruct.count_threads() == threads


def test_slices_of_an_earlier_scan_do_not_stay(chain: Chain, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "slice_0099.tiff", np.zeros((4, 4), np.float32))
    reconstruct.reconstruct(reconstruct.open_scan(chain.scan), tmp_path, threads=2)
    assert files(tmp_path) == files(chain.slices)


def no_dataset(exchange: Any) -> None:
    del exchange["data_white"]


def too_few_angles(exchange: Any) -> None:
    del exchange["theta"]
    exchange["theta"] = np.zeros(ANGLES - 1, np.float32)


def other_rows(exchange: Any) -> None:
    del exchange["data_dark"]
    exchange["data_dark"] = np.zeros((20, SLICES - 1, SIZE), np.uint16)


def flat_projections(exchange: Any) -> None:
    del exchange["data"]
    exchange["data"] = np.zeros((ANGLES, SIZE), np.uint16)


def zero_white_field(exchange: Any) -> None:
    exchange["data_white"][:] = 0


def strange_unit(exchange: Any) -> None:
    pixel_size = exchange.file["measurement/instrument/detector/pixel_size"]
    pixel_size[:] = 12
    pixel_size.attrs["units"] = "furlong"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (no_dataset, "{scan}: there is no dataset /exchange/data_white."),
        (too_few_angles, "{scan}: /exchange/theta has the shape (149,) for 150 projections."),
        (
            other_rows,
            "{scan}: /exchange/data_dark must be (frames, 9, 96) like the projections, "
            "but has the shape (20, 8, 96).",
        ),
        (flat_projections, "{scan}: /exchange/data must be (angles, rows, columns), but has the shape (150, 96)."),
        (
            zero_white_field,
            "{scan}: the white field is brighter than the dark field in only 0 of 96 pixels of row 0, "
            "so there is nothing to divide by.",
        ),
        (
            strange_unit,
            "{scan}: /measurement/instrument/detector/pixel_size is 12.0 furlong, "
            "not a length in m, mm, um, micron, microns.",
        ),
    ],
)
def test_a_scan_that_cannot_be_reconstructed_is_refused_before_anything_is_written(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, sentence: str
) -> None:
    with h5py.File(scan, "r+") as file:
        spoil(file["exchange"])
    said = refusal(reconstruct, monkeypatch, RAW=scan, OUT=tmp_path / "rec")
    assert said == "reconstruct: " + sentence.format(scan=scan)
    assert not (tmp_path / "rec").exists()


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"RAW": None}, "RAW is not set."),
        ({"OUT": None}, "OUT is not set."),
        ({"RAW": "gone.h5"}, "RAW: there is no file gone.h5."),
        ({"RAW": __file__}, f"RAW: {__file__} cannot be read as HDF5: "),
        ({"NPROC": "two"}, "NPROC must be a whole number, 1 or more, but is 'two'."),
    ],
)
def test_a_wrong_environment_is_refused(
    chain: Chain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str | None],
    sentence: str,
) -> None:
    good: dict[str, Path | str | None] = {"RAW": chain.scan, "OUT": tmp_path / "rec"}
    assert refusal(reconstruct, monkeypatch, **(good | environment)).startswith(f"reconstruct: {sentence}")
    assert files(tmp_path) == []


def test_a_refusal_is_one_line_on_stderr_and_exit_code_1() -> None:
    for script in ("reconstruct.py", "multiscale.py", "report.py"):
        refused = run(script)
        assert refused.returncode == 1
        missing = "IN" if script == "multiscale.py" else "RAW"
        assert refused.stderr.splitlines()[-1] == f"{script[:-3]}: {missing} is not set."
        assert refused.stdout == ""


def test_a_slice_that_cannot_be_written_whole_is_not_there(chain: Chain, tmp_path: Path) -> None:
    failed = run("reconstruct.py", RAW=chain.scan, OUT=tmp_path / "rec", file_size_limit=4096)
    assert failed.returncode == 1
    sentence = f"reconstruct: OUT: {tmp_path}/rec/slice_0000.tiff cannot be written: "
    assert failed.stderr.splitlines()[-1].startswith(sentence)
    assert files(tmp_path / "rec") == []


# The multiscale image


def test_an_image_has_valid_ome_zarr_metadata(chain: Chain) -> None:
    assert json.loads((chain.image / "zarr.json").read_text())["zarr_format"] == 3
    image = zarr.open_group(chain.image, mode="r")
    ome = image.attrs["ome"]
    assert ome["version"] == "0.5"
    (multiscales,) = ome["multiscales"]
    assert multiscales["axes"] == [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    assert [dataset["path"] for dataset in multiscales["datasets"]] == ["0", "1", "2"]
    for level, dataset in enumerate(multiscales["datasets"]):
        scale, translation = dataset["coordinateTransformations"]
        edge = PIXEL_SIZE_MICROMETERS * 2**level
        assert scale == {"type": "scale", "scale": pytest.approx([edge] * 3)}
        # The corner of the volume is at the same place in every level: half a voxel before the first centre.
        corner = np.array(translation["translation"]) - edge / 2
        assert corner == pytest.approx([-PIXEL_SIZE_MICROMETERS / 2] * 3)
        array = image[dataset["path"]]
        assert array.metadata.dimension_names == ("z", "y", "x")
        assert array.dtype == np.float32
    assert [image[str(level)].shape for level in range(3)] == [(9, 96, 96), (5, 48, 48), (3, 24, 24)]


def test_the_levels_hold_the_slices_and_their_means(chain: Chain) -> None:
    image = zarr.open_group(chain.image, mode="r")
    fine, coarse = image["0"][:], image["1"][:]
    assert np.array_equal(fine, chain.volume)
    assert coarse[1, 10, 20] == pytest.approx(fine[2:4, 20:22, 40:42].mean(), rel=1e-5)
    assert coarse[4, 10, 20] == pytest.approx(fine[8, 20:22, 40:42].mean(), rel=1e-5), "the odd slice"
    assert np.ptp(image["2"][:]) > 0


def test_a_volume_of_many_chunks_comes_out_whole(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).random((131, 70, 65), np.float32)
    (tmp_path / "rec").mkdir()
    for z, pixels in enumerate(volume):
        tifffile.imwrite(tmp_path / "rec" / f"slice_{z:04d}.tiff", pixels)
    made = run("multiscale.py", IN=tmp_path / "rec", OUT=tmp_path / "new" / "rec.zarr")
    assert made.returncode == 0, made.stderr
    image = zarr.open_group(tmp_path / "new" / "rec.zarr", mode="r")
    assert np.array_equal(image["0"][:], volume)
    assert image["0"].chunks == (64, 64, 64)
    even = np.pad(volume, ((0, 1), (0, 0), (0, 1)), mode="edge")
    pooled = even.reshape(66, 2, 35, 2, 33, 2).mean(axis=(1, 3, 5))
    assert np.allclose(image["1"][:], pooled, rtol=1e-5)
    stored = [path for path in (tmp_path / "new" / "rec.zarr" / "0" / "c").rglob("*") if path.is_file()]
    assert len(stored) == 3, "one file for 64 slices"
    (axes,) = {axis.get("unit") for axis in image.attrs["ome"]["multiscales"][0]["axes"]}
    assert axes is None, "these TIFFs do not say how large a pixel is"


def test_an_image_replaces_that_of_an_earlier_run(chain: Chain, tmp_path: Path) -> None:
    old = tmp_path / "rec.zarr"
    shutil.copytree(chain.image, old)
    (old / "stale").touch()
    assert run("multiscale.py", IN=chain.slices, OUT=old).returncode == 0
    assert files(tmp_path / "rec.zarr") == files(chain.image)
    assert [path.name for path in tmp_path.iterdir()] == ["rec.zarr"]


def test_an_image_that_cannot_be_written_whole_is_not_there(chain: Chain, tmp_path: Path) -> None:
    failed = run("multiscale.py", IN=chain.slices, OUT=tmp_path / "rec.zarr", file_size_limit=16_384)
    assert failed.returncode == 1
    sentence = f"multiscale: OUT: {tmp_path}/rec.zarr cannot be written: "
    assert failed.stderr.splitlines()[-1].startswith(sentence)
    assert files(tmp_path) == []


def without_a_slice(slices: Path) -> None:
    (slices / "slice_0003.tiff").unlink()


def with_a_small_slice(slices: Path) -> None:
    tifffile.imwrite(slices / "slice_0003.tiff", np.zeros((4, 4), np.float32))


def with_a_cut_slice(slices: Path) -> None:
    os.truncate(slices / "slice_0003.tiff", 20_000)


def with_half_a_header(slices: Path) -> None:
    os.truncate(slices / "slice_0003.tiff", 5)


def with_an_unnumbered_slice(slices: Path) -> None:
    (slices / "mean.tiff").touch()


def empty(slices: Path) -> None:
    for path in slices.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (without_a_slice, "IN: 1 slices are missing in {slices}, first number 3."),
        (
            with_a_small_slice,
            "IN: {slices}/slice_0003.tiff has the shape (4, 4), but the first slice has (96, 96).",
        ),
        (with_a_cut_slice, "IN: {slices}/slice_0003.tiff cannot be read as TIFF: "),
        (with_half_a_header, "IN: {slices}/slice_0003.tiff cannot be read as TIFF: "),
        (with_an_unnumbered_slice, "IN: {slices}/mean.tiff has no slice number of its own."),
        (empty, "IN: there are no TIFF slices in {slices}."),
        (shutil.rmtree, "IN: there is no directory {slices}."),
    ],
)
def test_slices_that_make_no_volume_are_refused(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, sentence: str
) -> None:
    slices = tmp_path / "rec"
    shutil.copytree(chain.slices, slices)
    spoil(slices)
    (tmp_path / "out").mkdir()
    said = refusal(multiscale, monkeypatch, IN=slices, OUT=tmp_path / "out" / "rec.zarr")
    assert said.startswith("multiscale: " + sentence.format(slices=slices))
    assert files(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["home", "home.zarr"])
def test_a_directory_that_is_no_image_is_never_replaced(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").touch()
    said = refusal(multiscale, monkeypatch, IN=chain.slices, OUT=tmp_path / name)
    sentence = f"OUT must end in .zarr and be new or an earlier image, but is {tmp_path / name}."
    assert said == f"multiscale: {sentence}"
    assert files(tmp_path) == [name, f"{name}/thesis.tex"]


# The report


def test_a_report_measures_the_error(chain: Chain) -> None:
    found = json.loads((chain.report / "report.json").read_text())
    assert found["nrmse"] == pytest.approx(nrmse(chain.scan, chain.slices), rel=0.02)
    assert found["nrmse"] < GOOD_NRMSE
    assert found["psnr_db"] > 24
    assert 0.8 < found["ssim"] <= 1
    assert (found["shape"], found["levels"]) == ([SLICES, SIZE, SIZE], 3)
    assert chain.outputs["report"].startswith(f"nrmse {found['nrmse']:.4f}, ")
    assert chain.outputs["report"].count("\n") == 1


def test_a_report_shows_three_slices_beside_the_phantom(chain: Chain) -> None:
    found = json.loads((chain.report / "report.json").read_text())
    assert files(chain.report) == sorted([*found["images"], "report.json"])
    for name, rows in zip(found["images"], (SIZE, SLICES, SLICES), strict=True):
        with pillow.open(chain.report / name) as picture:
            grey = np.asarray(picture).astype(float)[report.CAPTION_HEIGHT :]
        zoom = report.PANEL_WIDTH // SIZE
        assert grey.shape == (rows * zoom, 3 * SIZE * zoom)
        reconstruction, phantom, difference = np.split(grey, 3, axis=1)
        assert np.corrcoef(reconstruction.ravel(), phantom.ravel())[0, 1] > 0.9, name
        assert abs(difference.mean() - 127) < 20


def test_a_report_that_cannot_be_written_whole_is_not_there(chain: Chain, tmp_path: Path) -> None:
    job = {"RAW": chain.scan, "REC": chain.slices, "ZARR": chain.image, "OUT": tmp_path / "report"}
    failed = run("report.py", file_size_limit=2048, **job)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith(f"report: OUT: {tmp_path}/report cannot be written: ")
    assert files(tmp_path / "report") == []


def test_a_report_refuses_an_image_that_is_not_of_these_slices(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "rec.zarr"
    shutil.copytree(chain.image, other)
    zarr.open_group(other, mode="r+")["0"][0, 0, 0] = 1
    said = refusal(report, monkeypatch, RAW=chain.scan, REC=chain.slices, ZARR=other, OUT=tmp_path / "report")
    assert said == f"report: ZARR: level 0 of {other} differs from the slices."
    assert not (tmp_path / "report").exists()


def test_a_report_refuses_what_is_not_there(
    chain: Chain, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(scan, "r+") as file:
        del file["phantom"]
    (tmp_path / "empty").mkdir()
    good = {"RAW": chain.scan, "REC": chain.slices, "ZARR": chain.image, "OUT": tmp_path / "report"}
    for wrong, sentence in [
        ({"RAW": scan}, f"RAW: {scan} holds no /phantom/data to compare with."),
        (
            {"REC": tmp_path / "empty"},
            f"REC: {tmp_path / 'empty'} holds 0 slices, but the scan has {SLICES}.",
        ),
        ({"ZARR": tmp_path / "gone"}, f"ZARR: {tmp_path / 'gone'} cannot be read as OME-Zarr 0.5: "),
    ]:
        assert refusal(report, monkeypatch, **(good | wrong)).startswith(f"report: {sentence}")
    assert not (tmp_path / "report").exists()

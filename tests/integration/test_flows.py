"""The flows in flows/ run for real, at small sizes; what they leave is looked at."""

from __future__ import annotations

import asyncio
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

from prefect_psik import BackendNotFound, JobFailed
from tests.integration.local import backend_at, job_directories, runs, spec_of

pytestmark = pytest.mark.usefixtures("prefect_server")

FLOWS = Path(__file__).parents[2] / "flows"
#: The right reconstruction of the small scan has 0.25; turned the other way or without flat field, 0.49.
GOOD_NRMSE = 0.3
SMALL = {"size": 48, "slices": 8, "angles": 60}


def scanned(module: dict[str, Any], scan: str, local: Path, **parameters: Any) -> dict[str, Any]:
    """Run the tomography of a module, on a small phantom."""
    flow = module["tomography"](scan, phantom=module["Phantom"](**SMALL), local=local, **parameters)
    found: dict[str, Any] = asyncio.run(flow)
    return found


def load(name: str) -> dict[str, Any]:
    """A flow's module, from its file."""
    return runpy.run_path(str(FLOWS / f"{name}.py"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own: the embedded default keeps its jobs in $HOME/psik."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_hello_job_on_the_embedded_default(home: Path) -> None:
    said = load("hello_job")["hello_job"]()
    assert said.startswith("Hello from ")
    assert runs(home / "psik") == [[1]]
    (directory,) = job_directories(home / "psik")
    assert (directory / "log/stdout.1").read_text() == said


def test_hello_job_on_a_named_backend(prefix: Path) -> None:
    hello_job = load("hello_job")["hello_job"]
    backend_at(prefix).save("hello-backend", overwrite=True)
    assert "Hello from " in hello_job("hello-backend")
    assert [spec_of(directory)["name"] for directory in job_directories(prefix)] == ["hello"]
    with pytest.raises(BackendNotFound, match="hello-backend"):
        hello_job("hello-backen")


def needs_tomography() -> None:
    """Skip with the reason where the `tomography` extra is not installed."""
    for name in ("h5py", "numpy", "PIL", "skimage", "tifffile", "zarr"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'prefect-psik[tomography]'")


def test_tomography_ends_with_pictures_and_a_small_error(home: Path) -> None:
    needs_tomography()
    from PIL import Image

    errors = scanned(load("tomography"), "small", home / "out")
    assert 0 < errors["nrmse"] < GOOD_NRMSE
    pictures = sorted((home / "out").glob("*.png"))
    assert pictures
    for path in pictures:
        with Image.open(path) as picture:
            low, high = picture.convert("L").getextrema()
            assert low != high, f"{path.name} shows nothing"
            assert min(picture.size) >= SMALL["slices"]
    tiffs = sorted((home / "out/data/store/rec/small").glob("slice_*.tiff"))
    assert len(tiffs) == SMALL["slices"]
    assert (home / "out/data/store/rec/small.zarr/zarr.json").is_file()
    names = [str(spec_of(directory)["name"]) for directory in job_directories(home / "psik")]
    assert sorted(names) == ["multiscale", "reconstruct", "report"]
    assert runs(home / "psik") == [[1], [1], [1]]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("theta=theta,", "theta=-theta,"),
        (
            'white=_mean_row(exchange["data_white"], row)',
            'white=_mean_row(exchange["data_white"], row) * 0 + 60000',
        ),
    ],
)
def test_a_wrong_reconstruction_would_exceed_the_bound(home: Path, right: str, wrong: str) -> None:
    needs_tomography()
    shutil.copytree(FLOWS, home / "flows")
    script = home / "flows/scripts/reconstruct.py"
    text = script.read_text()
    assert text.count(right) == 1
    script.write_text(text.replace(right, wrong))
    errors = scanned(runpy.run_path(str(home / "flows/tomography.py")), "wrong", home / "out")
    assert errors["nrmse"] > 1.5 * GOOD_NRMSE


def test_tomography_fails_where_its_first_job_fails(home: Path) -> None:
    """A red run says why, and no later job is submitted."""
    needs_tomography()
    shutil.copytree(FLOWS, home / "flows")
    script = home / "flows/scripts/reconstruct.py"
    script.write_text(
        script.read_text().replace("def main() -> None:", "def main() -> None:\n    sys.exit('No beam.')")
    )
    module = runpy.run_path(str(home / "flows/tomography.py"))
    with pytest.raises(JobFailed, match=r"exit code 1(.|\n)*No beam"):
        scanned(module, "broken", home / "out")
    assert [spec_of(directory)["name"] for directory in job_directories(home / "psik")] == ["reconstruct"]
    assert list((home / "out").glob("*.png")) == []
    assert not (home / "out/data/store/rec").exists()

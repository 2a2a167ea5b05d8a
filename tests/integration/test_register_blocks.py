"""blocks/register.py: facility files become blocks, or a sentence says why not and nothing is saved."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import prefect.settings
import pytest
import yaml
from prefect.variables import Variable

from prefect_psik import GlobusCollection, GlobusCredentials, PsikBackend, run_job
from tests.integration.local import bash
from tests.integration.test_blocks import api

pytestmark = pytest.mark.usefixtures("prefect_server")

BLOCKS = Path(__file__).parents[2] / "blocks"
ENDPOINT = "11111111-2222-3333-4444-555555555555"
SITE = {
    "PERLMUTTER_ENDPOINT_ID": ENDPOINT,
    "PERLMUTTER_COLLECTION_ID": ENDPOINT,
    "NERSC_ACCOUNT": "als",
    "PERLMUTTER_SCRATCH": "/pscratch/sd/a/als",
    "SPOT832_COLLECTION_ID": ENDPOINT,
    "DATA832_COLLECTION_ID": ENDPOINT,
    "FRONTIER_ENDPOINT_ID": ENDPOINT,
    "FRONTIER_COLLECTION_ID": ENDPOINT,
    "OLCF_PROJECT": "abc123",
    "POLARIS_ENDPOINT_ID": ENDPOINT,
    "EAGLE_COLLECTION_ID": ENDPOINT,
    "ALCF_PROJECT": "IRIBeta",
    "MYSITE_ENDPOINT_ID": ENDPOINT,
    "MYSITE_COLLECTION_ID": ENDPOINT,
    "MYSITE_SCRATCH": "/scratch",
    "MYSITE_PARTITION": "batch",
    "MYSITE_ACCOUNT": "als",
    "BEAMLINE_COLLECTION_ID": ENDPOINT,
    "BEAMLINE_ROOT": "/data",
}


def register(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a person would, on the server of the tests."""
    command = [sys.executable, str(BLOCKS / "register.py"), *map(str, arguments)]
    clean = {**api_environment(), **environment}
    return subprocess.run(command, env=clean, capture_output=True, text=True, timeout=300)


def api_environment() -> dict[str, str]:
    """The environment of a person who uses the server of the tests."""
    clean = {name: value for name, value in os.environ.items() if name not in SITE}
    return clean | {"PREFECT_API_URL": str(prefect.settings.PREFECT_API_URL.value())}


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def register_here(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the script in this process, where the imports are done."""
    main = runpy.run_path(str(BLOCKS / "register.py"))["main"]

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, said.out, said.err)

    return run


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The sentence of a refusal: one paragraph on stderr, exit code 2, no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def names() -> set[str]:
    return {document["name"] for document in api("POST", "/block_documents/filter", {"limit": 200})}


def facility(path: Path, name: str, **fields: object) -> Path:
    document: dict[str, object] = {"name": name, "backend": {"prefix": "$HOME/psik"}, **fields}
    path.write_text(yaml.safe_dump(document))
    return path


def test_every_file_here_becomes_blocks() -> None:
    files = sorted(BLOCKS.glob("*.yaml"))
    assert [path.stem for path in files] == ["als", "frontier", "local", "perlmutter", "polaris", "template"]
    # als.yaml, local.yaml and a copy of template.yaml are a beamline each: they have blocks of the same names.
    beamlines = [BLOCKS / f"{name}.yaml" for name in ("template", "local", "als")]
    for together in (beamlines[:1], beamlines[1:2], [path for path in files if path not in beamlines[:2]]):
        done = register(*together, "--overwrite", **SITE)
        assert done.returncode == 0, done.stderr
    polaris, perlmutter = PsikBackend.load("polaris"), PsikBackend.load("perlmutter")
    assert isinstance(polaris, PsikBackend)
    assert (polaris.prefix, polaris.endpoint) == ("/eagle/IRIBeta/psik", ENDPOINT)
    assert isinstance(perlmutter, PsikBackend)
    assert perlmutter.prefix == "$SCRATCH/psik", "the facility's variable is left to the facility"
    assert perlmutter.attributes.sbatch_options() == {"--qos": "regular", "--constraint": "cpu"}
    assert perlmutter.attributes.project_name == "als"
    seen_by_jobs = {
        "frontier-scratch": "/lustre/orion/abc123/scratch/raw/1.h5",
        "perlmutter-scratch": "/pscratch/sd/a/als/beamline/raw/1.h5",
        "polaris-scratch": "/eagle/IRIBeta/beamline/raw/1.h5",
        "store": "/data/raw/1.h5",
    }
    for name, path in seen_by_jobs.items():
        collection = GlobusCollection.load(name)
        assert isinstance(collection, GlobusCollection)
        assert collection.posix("raw/1.h5") == path


def test_polaris_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """On a login node with PBS: `qsub` is there, and no `sbatch`."""
    assert register(BLOCKS / "polaris.yaml", "--overwrite", **SITE).returncode == 0
    polaris = PsikBackend.load("polaris")
    assert isinstance(polaris, PsikBackend)
    polaris.endpoint_id, polaris.prefix = None, str(tmp_path / "psik")  # as if its endpoint were this machine
    polaris.save("polaris-here", overwrite=True)
    (tmp_path / "qsub").touch(mode=0o755)
    done = subprocess.run(
        [sys.executable, "-m", "prefect_psik.cli", "preflight", "polaris-here"],
        env={**api_environment(), "PATH": str(tmp_path), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    (line,) = [line for line in done.stdout.splitlines() if "failed" in line]
    assert (
        "There is no sbatch, only qsub (PBS), which psik 3.1.1 does not support. Choose a facility with Slurm."
        in line
    )


def test_the_files_hold_no_uuid_and_no_secret() -> None:
    for path in BLOCKS.glob("*.yaml"):
        text = path.read_text()
        assert re.findall(r"[0-9a-f]{8}-[0-9a-f]{4}", text) == []
        assert "credentials" not in text


def test_what_operators_changed_in_the_ui_stays(tmp_path: Path, register_here: Run) -> None:
    path = facility(tmp_path / "kept.yaml", "kept", variables={"kept_choices": {"kept": "required"}})
    assert register_here(path).returncode == 0
    assert Variable.get("kept_choices") == {"kept": "required"}
    Variable.set("kept_choices", {"kept": "off"}, overwrite=True)
    PsikBackend(accept_jobs=False, note="maintenance").save("kept", overwrite=True)
    assert register_here(path, "--overwrite").returncode == 0
    assert Variable.get("kept_choices") == {"kept": "off"}
    loaded = PsikBackend.load("kept")
    assert isinstance(loaded, PsikBackend)
    assert (loaded.prefix, loaded.accept_jobs, loaded.note) == ("$HOME/psik", False, "maintenance")


def test_a_second_time_needs_overwrite(tmp_path: Path, register_here: Run) -> None:
    path = facility(tmp_path / "twice.yaml", "twice")
    assert register_here(path).returncode == 0
    said = refused(register_here(path))
    assert "psik-backend/twice" in said
    assert "--overwrite" in said
    facility(path, "twice", backend={"prefix": "/changed"})
    for _ in range(2):
        assert register_here(path, "--overwrite").returncode == 0
    loaded = PsikBackend.load("twice")
    assert isinstance(loaded, PsikBackend)
    assert loaded.prefix == "/changed"


def test_text_of_a_file_keeps_its_spelling(tmp_path: Path, register_here: Run) -> None:
    path = tmp_path / "spelt.yaml"
    path.write_text(
        "name: spelt\n"
        "backend:\n"
        "  umask: 0027\n"
        "  poll_interval_seconds: 2.5\n"
        "  accept_jobs: no\n"
        "  note: 2026-12-01\n"
        "  attributes: {type: slurm, queue_name: 20211222_125057, options: {--begin: 16:00:00, --hold: true}}\n"
        "  default_resources: {duration: 1:30:00, memory: 16000}\n"
        "  user_endpoint_config: {walltime: 00:30:00, max_blocks: 2, account: 007, debug: true}\n"
        "variables: {spelt: {scan: 20211222_125057, limit: 5}}\n"
    )
    assert register_here(path).returncode == 0
    block = PsikBackend.load("spelt")
    assert isinstance(block, PsikBackend)
    assert (block.umask, block.poll_interval_seconds, block.accept_jobs, block.note) == (
        *("0027", 2.5, False),
        "2026-12-01",
    )
    assert block.attributes.queue_name == "20211222_125057"
    assert block.attributes.options == {"--begin": "16:00:00", "--hold": "--hold"}
    assert block.default_resources is not None
    assert (block.default_resources.duration, block.default_resources.memory) == (90, "16000")
    assert block.user_endpoint_config == {
        **{"walltime": "00:30:00", "max_blocks": 2},
        **{"account": "007", "debug": True},
    }
    assert Variable.get("spelt") == {"scan": "20211222_125057", "limit": 5}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: bad\nbackend: {poll_interval_seconds: 1_0}\n", ["poll_interval_seconds", "plain digits"]),
        ("name: bad\nbackend: {default_resources: {duration: 1_0}}\n", ["duration", "plain digits"]),
        ("name: bad\nbackend: {attributes: {options: {--mail-type: [END]}}}\n", ["--mail-type", "a list"]),
        ("name: bad\nbackend: &a {attributes: *a}\n", ["bad.yaml", "contains itself"]),
        ("name: bad\nbackend: {endpoint_id: '${NOT_SET_HERE}'}\n", ["NOT_SET_HERE", "bad.yaml", "export"]),
        ("name: bad\nbackend: {prefx: /x}\n", ["prefx", "bad.yaml", "prefix", "endpoint_id"]),
        ("name: bad\nbackend: {attributes: {partition: x}}\n", ["partition", "queue_name", "bad.yaml"]),
        ("name: bad\nbackend: {default_resources: {minutes: 1}}\n", ["minutes", "duration", "bad.yaml"]),
        ("name: bad\nbackends: {}\n", ["backends", "Known fields: name, backend, collections"]),
        ("name: bad\nbackend: {}\ncollections: {c: {path: /}}\n", ["path", "base_path"]),
        ("name: bad\nbackend: {endpoint_id: polaris}\n", ["endpoint_id", "polaris", "bad.yaml"]),
        ("name: bad\nbackend: {attributes: {options: {qos: x}}}\n", ["'qos'", "--qos"]),
        ("name: bad\n", ["neither 'backend:' nor 'collections:'", "bad.yaml"]),
        ("backend: {}\n", ["name", "bad.yaml"]),
        ("name: Bad_Name\nbackend: {}\n", ["Bad_Name", "lower-case"]),
        ("- a list\n", ["bad.yaml", "list", "mapping"]),
        ("name: [", ["bad.yaml", "not valid YAML"]),
        ("", ["bad.yaml", "mapping"]),
        ("name: bad\nbackend: {credentials: {client_secret: oh}}\n", ["credentials", "no secret", "name"]),
        ("name: bad\nbackend: {credentials: nobody}\n", ["globus-credentials/nobody", "bad.yaml"]),
    ],
)
def test_nothing_is_saved_unless_all_is_good(
    tmp_path: Path, register_here: Run, text: str, words: list[str]
) -> None:
    good = facility(tmp_path / "good.yaml", "good-beside-bad")
    bad = tmp_path / "bad.yaml"
    bad.write_text(text)
    said = refused(register_here(good, bad))
    for word in words:
        assert word in said
    assert "good-beside-bad" not in names()


def test_a_missing_file_and_a_name_given_twice(tmp_path: Path, register_here: Run) -> None:
    assert "gone.yaml" in refused(register_here(tmp_path / "gone.yaml"))
    one, two = (facility(tmp_path / f"{n}.yaml", "same-name") for n in (1, 2))
    assert "same-name" in refused(register_here(one, two))
    assert "same-name" not in names()


def test_a_login_is_named_and_used(tmp_path: Path, register_here: Run, prefix: Path) -> None:
    GlobusCredentials.model_validate({"client_id": ENDPOINT, "client_secret": "s"}).save(
        "beamline", overwrite=True
    )
    path = facility(tmp_path / "f.yaml", "with-login", backend={"prefix": str(prefix), "credentials": "beamline"})
    assert register_here(path).returncode == 0
    document = api("GET", "/block_types/slug/psik-backend/block_documents/name/with-login")
    assert document["block_document_references"]["credentials"]["block_document"]["name"] == "beamline"
    assert run_job("with-login", bash("echo runs")).stdout == "runs\n"


def test_no_server_is_said(tmp_path: Path) -> None:
    done = register(facility(tmp_path / "f.yaml", "x"), PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 1
    assert "PREFECT_API_URL" in done.stderr
    assert "Traceback" not in done.stderr

"""Bad input gets a sentence that says what, where and what next; nothing is submitted, no job stays behind."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefect_psik import (
    BackendClosed,
    BackendNotFound,
    FacilityError,
    FacilitySetupError,
    JobSpec,
    KeyConflict,
    PrefectPsikError,
    PsikBackend,
    ResourceSpec,
    SpecError,
    SubmitRejected,
    arun_job,
    cancel_job,
    poll_job,
    run_job,
    submit_job,
    wait_for_job,
)
from tests.conftest import job_processes
from tests.integration.local import backend_at, bash, job_directories, rows, runs

pytestmark = pytest.mark.usefixtures("prefect_server")


def assert_nothing(prefix: Path) -> None:
    """No job directory, nor a part of one, and no process."""
    left = [path for path in prefix.glob("*") if path.name != ".locks"] if prefix.is_dir() else []
    assert left == []
    assert job_processes(prefix) == []


def assert_says(error: BaseException, *words: str) -> None:
    """It is a sentence, and has the key words."""
    text = str(error)
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
    assert text[0].isupper() or text.startswith(("psik ", "/")), text
    assert "." in text, text


# ---------------------------------------------------------------------------------------------- backends


def test_a_backend_that_does_not_exist_lists_those_that_do(prefix: Path) -> None:
    for name in ("frontier-a", "perlmutter-a"):
        backend_at(prefix).save(name, overwrite=True)
    with pytest.raises(BackendNotFound) as missing:
        run_job("perlmuter-a", bash("true"))
    assert_says(missing.value, "'perlmuter-a'", "frontier-a, ", "perlmutter-a")
    assert_nothing(prefix)


async def test_so_does_the_async_twin(prefix: Path) -> None:
    await backend_at(prefix).asave("async-here", overwrite=True)
    with pytest.raises(BackendNotFound) as missing:
        await arun_job("async-gone", bash("true"))
    assert_says(missing.value, "'async-gone'", "async-here")


def test_a_drained_backend_shows_its_note(prefix: Path) -> None:
    drained = backend_at(prefix).model_copy(update={"accept_jobs": False, "note": "Maintenance until Friday"})
    drained.save("drained", overwrite=True)
    for backend in (drained, "drained"):
        with pytest.raises(BackendClosed) as closed:
            submit_job(backend, bash("true"))
        assert_says(closed.value, "drained", "Maintenance until Friday", "use another backend")
    with pytest.raises(BackendClosed) as closed:
        run_job(PsikBackend(prefix=str(prefix), accept_jobs=False), bash("true"))
    assert_says(closed.value, "does not accept jobs")
    assert_nothing(prefix)


def test_a_drained_backend_still_tells_of_its_jobs(prefix: Path) -> None:
    backend = backend_at(prefix)
    handle = submit_job(backend, bash("sleep 300"))
    drained = backend.model_copy(update={"accept_jobs": False})
    assert not poll_job(handle, backend=drained).state.is_final
    assert cancel_job(handle, backend=drained).state.value == "canceled"


def test_no_backend_at_all(prefix: Path) -> None:
    with pytest.raises(SpecError) as nowhere:
        run_job(None, bash("true", "lonely"))
    assert_says(nowhere.value, "'lonely'", "backend", "psik-backend block")


def test_a_name_that_is_no_name_of_a_block() -> None:
    for name in ("", "no/such", "Größe"):
        with pytest.raises((BackendNotFound, SpecError)) as wrong:
            run_job(name, bash("true"))
        assert_says(wrong.value, repr(name))


def test_a_globus_backend_is_not_run_here_by_accident(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(tmp_path / "no-login"))
    for name in ("GLOBUS_COMPUTE_CLIENT_ID", "GLOBUS_COMPUTE_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    away = PsikBackend.model_validate(
        {"endpoint_id": "11111111-2222-3333-4444-555555555555", "prefix": str(prefix)}
    )
    with pytest.raises(PrefectPsikError, match="Globus"):
        submit_job.fn(away, bash("true"))
    assert_nothing(prefix)


# ----------------------------------------------------------------------------------------- the facility


def test_a_prefix_that_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    prefix = tmp_path / "file" / "below"
    with pytest.raises(FacilitySetupError) as wrong:
        run_job(backend_at(prefix), bash("true"))
    assert_says(wrong.value, str(prefix), "not writable", "Choose another prefix", "this machine")
    assert (tmp_path / "file").read_text() == "not a directory"


@pytest.mark.parametrize("given", ["relative/psik", "$NOT_SET_ANYWHERE/psik", "~nobody-of-that-name/psik"])
def test_a_prefix_that_is_no_absolute_path(given: str) -> None:
    with pytest.raises(FacilitySetupError) as wrong:
        run_job(PsikBackend(prefix=given), bash("true"))
    assert_says(wrong.value, given, "not an absolute path", "this machine")


Python = Callable[[str | None], Path]


@pytest.fixture(scope="module")
def make_python(tmp_path_factory: pytest.TempPathFactory) -> Python:
    """An interpreter of this machine without psik, or with a psik that says it is of another version."""

    def make(version: str | None) -> Path:
        place = tmp_path_factory.mktemp("python")
        venv.create(place, with_pip=False)
        if version is not None:
            (site,) = place.glob("lib/python3*/site-packages")
            (site / "psik").mkdir()
            (site / "psik/__init__.py").write_text("")
            distribution = site / f"psik-{version}.dist-info"
            distribution.mkdir()
            (distribution / "METADATA").write_text(f"Metadata-Version: 2.1\nName: psik\nVersion: {version}\n")
        return place / "bin/python"

    return make


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (None, ["psik cannot be imported", "Install it there", "pip install 'psik>=3.1.1'"]),
        ("3.0.0", ["psik 3.0.0", "too old", "3.1.1 or newer", "pip install"]),
        ("2.9", ["psik 2.9", "too old"]),
    ],
)
def test_psik_is_missing_or_too_old(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, make_python: Python, version: str | None, words: list[str]
) -> None:
    python = make_python(version)
    monkeypatch.setattr("prefect_psik.transport.local.sys.executable", str(python))
    with pytest.raises(FacilitySetupError) as wrong:
        run_job(backend_at(prefix), bash("true"))
    monkeypatch.undo()
    assert_says(wrong.value, *words)
    if version is None:
        assert_says(wrong.value, str(python))
    assert_nothing(prefix)


def test_only_submit_needs_psik(prefix: Path, monkeypatch: pytest.MonkeyPatch, make_python: Python) -> None:
    handle = submit_job(backend_at(prefix), bash("echo kept > out; echo done", outputs=["out"]))
    long = submit_job(backend_at(prefix), bash("sleep 300"))
    monkeypatch.setattr("prefect_psik.transport.local.sys.executable", str(make_python(None)))
    assert wait_for_job(handle).outputs == {"out": b"kept\n"}
    assert cancel_job(long).state.value == "canceled"


def test_an_interpreter_that_cannot_start(prefix: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("prefect_psik.transport.local.sys.executable", str(tmp_path / "no-python"))
    with pytest.raises(FacilityError) as wrong:
        run_job(backend_at(prefix), bash("true"))
    monkeypatch.undo()
    assert_says(wrong.value, "no-python")
    assert_nothing(prefix)


def test_a_directory_that_does_not_exist_there(prefix: Path, tmp_path: Path) -> None:
    gone = tmp_path / "not there"
    with pytest.raises(SpecError) as wrong:
        run_job(backend_at(prefix), bash("true", directory=str(gone)))
    assert_says(wrong.value, str(gone), "not a directory", "Create it first")
    assert_nothing(prefix)


def test_a_file_that_leaves_through_a_link(prefix: Path, tmp_path: Path) -> None:
    work, outside = tmp_path / "work", tmp_path / "outside"
    work.mkdir()
    outside.mkdir()
    (work / "link").symlink_to(outside)
    with pytest.raises(SpecError) as wrong:
        run_job(backend_at(prefix), bash("true", directory=str(work), files={"link/in.txt": "x"}))
    assert_says(wrong.value, "'link/in.txt'", "link", str(work))
    assert list(outside.iterdir()) == []
    assert_nothing(prefix)


def test_a_foreign_directory_of_that_stamp_is_not_touched(prefix: Path) -> None:
    from prefect_psik.spec.identity import stamp_of

    foreign = prefix / stamp_of("taken") / "precious"
    foreign.mkdir(parents=True)
    with pytest.raises(FacilitySetupError) as wrong:
        run_job(backend_at(prefix), bash("true"), key="taken")
    assert_says(wrong.value, str(foreign.parent), "Move it away")
    assert foreign.is_dir()


def test_default_resources_give_way_to_what_the_job_asks(prefix: Path) -> None:
    """The backend says processes a node, the job says processes in all: psik takes only one of them."""
    backend = PsikBackend.model_validate(
        {"prefix": str(prefix), "default_resources": {"processes_per_node": 4, "duration": 7}}
    )
    result = run_job(backend, bash("echo ran", resources=ResourceSpec(process_count=2)))
    assert result.stdout == "ran\n"


def test_default_resources_are_given_as_resources(prefix: Path) -> None:
    backend = PsikBackend(prefix=str(prefix), default_resources=ResourceSpec(duration=7))
    handle = submit_job(backend, JobSpec(script="true"))
    assert handle.duration == 7


# ---------------------------------------------------------------------------------------------- the key


@pytest.mark.parametrize("key", ["scan/7", "scan\n7", "-scan", "", " scan", "scan ", "\x00", "../up", "x" * 201])
def test_a_key_that_is_no_plain_word(prefix: Path, key: str) -> None:
    with pytest.raises(SpecError) as wrong:
        submit_job(backend_at(prefix), bash("true"), key=key)
    assert_says(wrong.value, "key")
    assert_nothing(prefix)


@pytest.mark.parametrize("name", ["a/b", "a\nb", "-rf", "", "x" * 101])
def test_a_name_that_is_no_plain_word(prefix: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"name": name, "script": "true"}))
    with pytest.raises(SpecError) as wrong:
        run_job(backend_at(prefix), path)
    assert_says(wrong.value, "name", str(path))
    assert_nothing(prefix)


def test_a_key_conflict_leaves_the_first_job_alone(prefix: Path) -> None:
    backend = backend_at(prefix)
    first = submit_job(backend, bash("sleep 300", "first"), key="scan 42")
    with pytest.raises(KeyConflict) as conflict:
        submit_job(backend, bash("sleep 400", "second"), key="scan 42")
    assert_says(conflict.value, "'scan 42'", "a different spec", "Choose another key", "sleep 300", "sleep 400")
    assert not poll_job(first).state.is_final
    assert runs(prefix) == [[1]]
    assert submit_job(backend, bash("sleep 300", "first"), key="scan 42") == first
    assert cancel_job(first).state.value == "canceled"
    (directory,) = job_directories(prefix)
    assert "sleep 300" in (directory / "prefect/script").read_text()


# --------------------------------------------------------------------------------------- job.yaml and spec


SCRIPT = "script: 'true'\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [unclosed", ["as YAML"]),
        ("\tname: tab\n", ["as YAML"]),
        ("- script\n- list\n", ["list", "not a mapping", "'script:'"]),
        ("just words", ["str", "not a mapping"]),
        ("", ["NoneType", "not a mapping"]),
        ("name: no script\n", ["script", "required"]),
        ("script: '  '\n", ["script is empty"]),
        (SCRIPT + "scrpt: x\n", ["scrpt", "did you mean script", "Known fields: name, script, directory"]),
        (SCRIPT + "resources: {durations: 5}\n", ["durations", "did you mean duration", "node_count"]),
        (SCRIPT + "resources: {duration: 0}\n", ["duration", "greater than or equal to 1", "0"]),
        (SCRIPT + "resources: {duration: 1.5}\n", ["duration", "1.5"]),
        (SCRIPT + "resources: {duration: an hour}\n", ["duration", "an hour"]),
        (SCRIPT + "resources: {duration: -3}\n", ["duration", "-3"]),
        (SCRIPT + "resources: {process_count: 2, processes_per_node: 2}\n", ["not both"]),
        (SCRIPT + "resources: {memory: lots}\n", ["memory", "lots"]),
        (SCRIPT + "attributes: {qos: debug}\n", ["'qos'", "'--qos'"]),
        (SCRIPT + "attributes: {--qos: ''}\n", ["--qos", "empty value", "true"]),
        (SCRIPT + "attributes: {--qos: }\n", ["--qos", "empty value"]),
        (SCRIPT + "attributes: {--array: 1-4}\n", ["--array", "submit one job for each element"]),
        (SCRIPT + "attributes: {--arr: 1-4}\n", ["--arr", "submit one job for each element"]),
        (SCRIPT + "attributes: {-o: out.txt}\n", ["-o", "logs"]),
        (SCRIPT + "attributes: {--time: 10}\n", ["--time", "resources.duration"]),
        (SCRIPT + "attributes: {--wrap: ls}\n", ["--wrap", "script"]),
        (SCRIPT + "attributes: {':': ':'}\n", ["heterogeneous", "two jobs"]),
        (SCRIPT + "files: {../../etc/x: y}\n", ["../../etc/x", "inside the job's directory"]),
        (SCRIPT + "files: {/etc/x: y}\n", ["/etc/x", "inside the job's directory"]),
        (SCRIPT + "files: {a: {text: x, base64: eA==}}\n", ["either text or base64"]),
        (SCRIPT + "files: {a: {base64: '*'}}\n", ["not base64"]),
        (SCRIPT + "files: [not-there.txt]\n", ["not-there.txt", "No such file"]),
        (SCRIPT + "outputs: [../secret]\n", ["../secret", "inside the job's directory"]),
        (SCRIPT + "directory: relative/dir\n", ["relative/dir", "absolute"]),
        (SCRIPT + "environment: {A-B: x}\n", ["A-B", "environment variable"]),
        (SCRIPT + "environment: {jobid: x}\n", ["jobid", "psik"]),
        (SCRIPT + "environment: {ON: }\n", ["ON", "no value", "quotes"]),
        (SCRIPT + "callback: http://x\ncb_secret: y\n", ["callback", "cb_secret", "not supported"]),
    ],
)
def test_a_job_yaml_says_what_is_wrong(prefix: Path, tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as wrong:
        run_job(backend_at(prefix), path)
    assert_says(wrong.value, str(path), *words)
    assert_nothing(prefix)


def test_a_job_yaml_that_cannot_be_read(prefix: Path, tmp_path: Path) -> None:
    for path, word in ((tmp_path / "gone.yaml", "No such file"), (tmp_path, "directory")):
        with pytest.raises(SpecError) as wrong:
            run_job(backend_at(prefix), path)
        assert_says(wrong.value, str(path), word)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00script")
    with pytest.raises(SpecError) as wrong:
        run_job(backend_at(prefix), binary)
    assert_says(wrong.value, str(binary))
    assert_nothing(prefix)


def test_files_over_the_limit_name_globus_transfer(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(b"\x00" * 1_500_001)
    (tmp_path / "other.bin").write_bytes(b"\x00" * 500_000)
    path = tmp_path / "job.yaml"
    path.write_text(SCRIPT + "files: [big.bin, other.bin]\n")
    with pytest.raises(SpecError) as wrong:
        run_job(backend_at(prefix), path)
    assert_says(wrong.value, "2,000,001", "2,000,000", "big.bin", "Globus Transfer")
    assert_nothing(prefix)


def test_files_at_the_limit_arrive(prefix: Path) -> None:
    spec = bash("stat -c %s a b", files={"a": b"\xff" * 1_000_000, "b": b"\xfe" * 999_999})
    assert run_job(backend_at(prefix), spec).stdout == "1000000\n999999\n"


def test_text_of_the_limit_that_json_swells_is_refused_or_arrives(prefix: Path) -> None:
    """Control characters take six bytes each in JSON: what fits by itself may not fit the wire."""
    swollen = {"a": "\x01" * 1_900_000}
    try:
        result = run_job(backend_at(prefix), bash("stat -c %s a", files=swollen))
    except PrefectPsikError as err:
        assert_says(err, "limit", "Globus Transfer")
        assert_nothing(prefix)
    else:
        assert result.stdout == "1900000\n"


def test_what_is_no_handle() -> None:
    for handle in ("not json", "{}", '{"prefix": "/x", "stamp": 1, "key": []}'):
        with pytest.raises(SpecError) as wrong:
            wait_for_job(handle)
        assert_says(wrong.value, "handle", "submit_job")


def test_a_stamp_that_climbs_out_is_refused(prefix: Path) -> None:
    prefix.mkdir()
    (prefix.parent / "victim").mkdir()
    handle = {"prefix": str(prefix), "stamp": "../victim", "key": "k"}
    with pytest.raises(PrefectPsikError, match="not a psik stamp"):
        cancel_job(handle)
    assert (prefix.parent / "victim").is_dir()


def test_a_job_that_is_gone_is_lost_and_not_completed(prefix: Path) -> None:
    prefix.mkdir()
    handle = {"prefix": str(prefix), "stamp": "123", "key": "k"}
    status = poll_job(handle)
    assert status.state.value == "failed"
    assert status.cause is not None
    assert status.cause.value == "lost"
    assert "no longer exists" in status.message
    assert_nothing(prefix)


def test_a_launch_that_psik_refuses_leaves_nothing(prefix: Path, tmp_path: Path) -> None:
    """A job directory whose logs cannot be written: psik's own trouble is told, no job looks alive."""
    backend = backend_at(prefix)
    spec = bash("true", directory=str(tmp_path))
    try:
        result = run_job(backend, spec)
    except SubmitRejected as err:
        assert_says(err)
        assert_nothing(prefix)
    else:
        assert result.state.value == "completed"
    for directory in job_directories(prefix):
        assert rows(directory)[-1].state.is_final


def test_an_error_survives_the_way_to_another_process(prefix: Path) -> None:
    code = (
        "import sys, json\n"
        "from prefect_psik import PsikBackend, JobSpec, SpecError, run_job\n"
        "try:\n"
        "    run_job.fn(PsikBackend(prefix=sys.argv[1]), JobSpec(script='true', directory='/no/such/place'))\n"
        "except SpecError as err:\n"
        "    print(json.dumps(str(err)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(prefix)], capture_output=True, text=True, timeout=180, check=True
    )
    said: Any = json.loads(done.stdout)
    assert "/no/such/place" in said
    assert_nothing(prefix)

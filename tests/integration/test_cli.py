"""The command line as people run it: a process, its two streams and its exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import prefect.settings
import psutil
import pytest
import yaml

from prefect_psik import JobHandle, PsikBackend, poll_job, submit_job
from prefect_psik.cli import main
from tests.conftest import job_processes
from tests.integration.local import backend_at, bash, job_directories, rows, runs

pytestmark = pytest.mark.usefixtures("prefect_server")

FIXTURES = Path(__file__).parents[1] / "fixtures"
UUID = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The tests' server, and a home of its own: the embedded default keeps its jobs in $HOME/psik."""
    home = tmp_path / "home"
    home.mkdir()
    return os.environ | {
        "PREFECT_API_URL": str(prefect.settings.PREFECT_API_URL.value()),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "HOME": str(home),
        "COLUMNS": "250",
    }


def command(*arguments: str | Path) -> list[str]:
    """The installed program, run by this interpreter."""
    return [sys.executable, str(Path(sys.executable).parent / "prefect-psik"), *map(str, arguments)]


def cli(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*arguments), env=environment, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def job_yaml(path: Path, script: str, **fields: Any) -> Path:
    path.write_text(yaml.safe_dump({"name": "job", "script": script, **fields}))
    return path


# -------------------------------------------------------------------------------------------------- run


def test_run_prints_exactly_what_the_job_prints(environment: dict[str, str], tmp_path: Path) -> None:
    script = (
        "#!/bin/bash\necho one\necho '  two  [bold] größe'\necho to stderr >&2\nprintf 'no newline at the end'\n"
    )
    done = cli(environment, "run", job_yaml(tmp_path / "job.yaml", script))
    assert done.stdout == "one\n  two  [bold] größe\nno newline at the end\n"
    assert done.returncode == 0, done.stderr
    assert "to stderr\n" in done.stderr
    assert re.search(r"job 'job' \d+ \(pid \d+\) submitted on this machine", done.stderr)
    assert runs(tmp_path / "home/psik") == [[1]]


def test_blank_and_long_lines_come_whole(environment: dict[str, str], tmp_path: Path) -> None:
    script = "#!/bin/bash\necho a\necho\necho b\nprintf 'x%.0s' {1..2000}\necho\n"
    done = cli(environment, "run", job_yaml(tmp_path / "job.yaml", script))
    assert done.stdout == "a\n\nb\n" + "x" * 2000 + "\n"


def test_the_seeds_job_runs(environment: dict[str, str], tmp_path: Path) -> None:
    backend_at(tmp_path / "psik").save("polaris", overwrite=True)
    done = cli(environment, "run", FIXTURES / "job.yaml")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert os.uname().nodename in lines
    assert any(line.startswith("HOME=") for line in lines)
    (directory,) = job_directories(tmp_path / "psik")
    assert json.loads((directory / "spec.json").read_text())["name"] == "test"


@pytest.mark.parametrize(("script", "code"), [("exit 5", 5), ("false", 1), ("kill -9 $$", 1), ("exit 255", 255)])
def test_run_ends_as_the_script_ends(environment: dict[str, str], tmp_path: Path, script: str, code: int) -> None:
    text = f"#!/bin/bash\necho out\necho the last words >&2\n{script}\n"
    done = cli(environment, "run", job_yaml(tmp_path / "job.yaml", text))
    assert done.returncode == code, done.stderr
    assert done.stdout == "out\n"
    assert "the last words" in done.stderr
    assert "failed on this machine" in done.stderr
    (directory,) = job_directories(tmp_path / "home/psik")
    assert str(directory) in done.stderr.replace("\n", ""), "where to look"


def test_run_refuses_bad_input_with_2(environment: dict[str, str], tmp_path: Path) -> None:
    unknown = job_yaml(tmp_path / "job.yaml", "true", scrpt="x")
    for path, word in ((tmp_path / "gone.yaml", "No such file"), (unknown, "did you mean script?")):
        done = cli(environment, "run", path)
        assert done.returncode == 2
        assert done.stdout == ""
        assert word in done.stderr
        assert path.name in done.stderr
    assert not (tmp_path / "home/psik").exists()


def test_run_names_the_backends_that_exist(environment: dict[str, str], tmp_path: Path) -> None:
    backend_at(tmp_path / "psik").save("here-for-the-cli", overwrite=True)
    done = cli(environment, "run", job_yaml(tmp_path / "job.yaml", "true"), "--backend", "nowhere")
    assert done.returncode not in (0, 130)
    assert "'nowhere'" in done.stderr
    assert "here-for-the-cli" in done.stderr
    assert job_directories(tmp_path / "psik") == []


def test_run_takes_a_backend_and_a_key(environment: dict[str, str], tmp_path: Path) -> None:
    backend_at(tmp_path / "psik").save("for-the-cli", overwrite=True)
    path = job_yaml(tmp_path / "job.yaml", "#!/bin/bash\necho $RANDOM\n")
    first, second = (
        cli(environment, "run", path, "--backend", "for-the-cli", "--key", "scan-7") for _ in range(2)
    )
    assert first.returncode == second.returncode == 0
    assert first.stdout == second.stdout != ""
    assert runs(tmp_path / "psik") == [[1]]


# ----------------------------------------------------------------------------------------------- import


def saved(name: str) -> PsikBackend:
    found = PsikBackend.load(name)
    assert isinstance(found, PsikBackend)
    return found


def test_import_of_the_seeds_psik_json(environment: dict[str, str]) -> None:
    if "polaris" in existing():
        PsikBackend.delete("polaris")
    refused = cli(environment, "import", FIXTURES / "psik.json")
    assert refused.returncode == 2
    assert "UUID-for-your-Globus-compute-endpoint" in refused.stderr
    assert "--endpoint polaris=UUID" in refused.stderr
    assert "polaris" not in existing()

    done = cli(environment, "import", FIXTURES / "psik.json", "--endpoint", f"polaris={UUID}")
    assert done.returncode == 0, done.stderr
    for word in ("polaris", UUID, "/lustre/stf006/psik_jobs", "stf006", "batch"):
        assert word in done.stdout
    block = saved("polaris")
    assert (block.endpoint, block.prefix) == (UUID, "/lustre/stf006/psik_jobs")
    assert block.attributes.model_dump(exclude_defaults=True) == {
        "type": "slurm",
        "project_name": "stf006",
        "queue_name": "batch",
    }

    again = cli(environment, "import", FIXTURES / "psik.json", "--endpoint", f"polaris={UUID}")
    assert again.returncode == 2
    assert "psik-backend/polaris" in again.stderr
    assert "--overwrite" in again.stderr
    other = UUID.replace("1", "9")
    done = cli(environment, "import", FIXTURES / "psik.json", "--endpoint", f"polaris={other}", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert saved("polaris").endpoint == other


def existing() -> set[str]:
    from tests.integration.test_blocks import api

    return {document["name"] for document in api("POST", "/block_documents/filter", {"limit": 200})}


def test_import_is_all_or_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    """The second of two names is taken: the first is not saved either."""
    backend_at(tmp_path).save("taken-name", overwrite=True)
    local = {"type": "local"}
    (tmp_path / "psik.json").write_text(
        json.dumps({"prefix": "/tmp/p", "backends": {"fresh-name": local, "taken-name": local}})
    )
    done = cli(environment, "import", tmp_path / "psik.json")
    assert done.returncode == 2
    assert "taken-name" in done.stderr
    assert "fresh-name" not in existing()


def test_import_of_a_chosen_backend_under_another_name(environment: dict[str, str], tmp_path: Path) -> None:
    """A bad name, or a backend of another kind, keeps the good ones from being saved unless these are chosen."""
    backends = {"first-good": {"type": "local"}, "bad_name": {"type": "local"}, "nersc": {"type": "nersc"}}
    (tmp_path / "psik.json").write_text(json.dumps({"prefix": "/tmp/p", "backends": backends}))
    done = cli(environment, "import", tmp_path / "psik.json")
    assert done.returncode == 2
    for words in ("'nersc'", "--rename bad_name=bad-name", "--only first-good"):
        assert words in " ".join(done.stderr.split())
    assert "first-good" not in existing()
    chosen = ("--only", "first-good", "--only", "bad_name", "--rename", "bad_name=good-name")
    done = cli(environment, "import", tmp_path / "psik.json", *chosen)
    assert done.returncode == 0, done.stderr
    assert {"first-good", "good-name"} <= existing()


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("{", [], ["not JSON", "psik.json"]),
        ("[]", [], ["backends"]),
        ('{"backends": {"a": {"type": "iri"}}}', [], ["'a'", "'iri'"]),
        ('{"backends": {"a": {"type": "local", "partition": "x"}}}', [], ["partition", "queue_name"]),
        ('{"backends": {"a": {"type": "local"}}}', ["--endpoint", "b=x"], ["b", "It has: a"]),
        ('{"backends": {"a": {"type": "local"}}}', ["--endpoint", "b"], ["NAME=UUID", "'b'"]),
        ('{"backends": {"a": {"type": "local"}}}', ["--only", "b"], ["b", "It has: a"]),
        ('{"backends": {"a": {"type": "local"}}}', ["--rename", "a"], ["NAME=BLOCK", "'a'"]),
    ],
)
def test_import_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, arguments: list[str], words: list[str]
) -> None:
    path = tmp_path / "psik.json"
    path.write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["import", str(path), *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    for word in words:
        assert word in said.err


# ----------------------------------------------------------------------------------------------- cancel


def test_cancel_takes_a_handle_or_a_file_of_it(environment: dict[str, str], prefix: Path, tmp_path: Path) -> None:
    first, second = (submit_job(backend_at(prefix), bash(f"sleep 300 # {n}")) for n in range(2))
    done = cli(environment, "cancel", first.model_dump_json())
    assert done.returncode == 0, done.stderr
    assert first.stamp in done.stderr
    assert "canceled" in done.stderr
    (tmp_path / "handle.json").write_text(second.model_dump_json())
    assert cli(environment, "cancel", tmp_path / "handle.json").returncode == 0
    assert job_processes(prefix) == []
    assert sorted(rows(path)[-1].state.value for path in job_directories(prefix)) == ["canceled", "canceled"]
    ended = cli(environment, "cancel", first.model_dump_json())
    assert ended.returncode == 0, "canceled already"


def test_prefix_and_stamp_are_enough_of_a_handle(environment: dict[str, str], prefix: Path) -> None:
    handle = submit_job(backend_at(prefix), bash("sleep 300"))
    text = json.dumps({"prefix": str(prefix), "stamp": handle.stamp, "key": "?"})
    assert cli(environment, "cancel", text).returncode == 0
    assert job_processes(prefix) == []


def test_cancel_of_nonsense(environment: dict[str, str], tmp_path: Path) -> None:
    for handle in ('{"not": "a handle"}', str(tmp_path / "gone.json")):
        done = cli(environment, "cancel", handle)
        assert done.returncode == 2
        assert "handle" in done.stderr


def test_ctrl_c_leaves_the_job_and_tells_how_to_cancel_it(environment: dict[str, str], tmp_path: Path) -> None:
    prefix = tmp_path / "home/psik"
    script = "#!/bin/bash\necho begun\nsleep 300\n"
    process = subprocess.Popen(
        command("run", job_yaml(tmp_path / "job.yaml", script)),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell without job control starts what runs in the background with SIGINT ignored, and we inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert "Traceback" not in said
        assert "keeps running" in said
        found = re.search(r"prefect-psik cancel '(\{.*\})'", said)
        assert found, said
        handle = JobHandle.model_validate_json(found[1])
        alive = job_processes(prefix)
        assert any("sleep" in part for process in alive for part in process.cmdline())
        assert poll_job(handle).state.value == "active"
        done = cli(environment, "cancel", found[1])
        assert done.returncode == 0, done.stderr
        _, left = psutil.wait_procs(alive, timeout=60)
        assert left == []
        assert job_processes(prefix) == []
    finally:
        process.kill()
        for alive_process in job_processes(prefix):
            with suppress(psutil.NoSuchProcess):
                alive_process.kill()


# ------------------------------------------------------------------------------------------------ itself


def test_help_names_the_commands(environment: dict[str, str]) -> None:
    done = cli(environment, "--help")
    assert done.returncode == 0
    for name in ("run", "import", "cancel"):
        assert re.search(rf"\b{name}\b", done.stdout)


def test_no_server_is_said(environment: dict[str, str], tmp_path: Path) -> None:
    environment["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
    done = cli(environment, "run", job_yaml(tmp_path / "job.yaml", "true"), "--backend", "any")
    assert done.returncode not in (0, 130)
    assert "PREFECT_API_URL" in done.stderr

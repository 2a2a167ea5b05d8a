"""What a job prints and is called, where Prefect stores it and the command line shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_psik import list_jobs, run_job
from prefect_psik.cli import main
from tests.integration.local import backend_at, bash, job_directories
from tests.newest.postgresql import postgresql
from tests.testbed.fixtures import REQUIRE_VARIABLE

_FLOW = """
import sys
from prefect import flow
from prefect.client.orchestration import get_client
from prefect_psik import JobSpec, PsikBackend, run_job

@flow
def reader():
    script = r"printf 'read\\0 error\\033[2J\\n' >&2; exit 4"
    run_job(PsikBackend(prefix=sys.argv[1]), JobSpec(name="reader", script=script))

reader(return_state=True)
with get_client(sync_client=True) as client:
    [run] = client.read_flow_runs()
    print(run.state.type.value, ascii(run.state.message))
"""


def test_a_job_that_prints_a_nul_fails_its_flow_run_on_postgresql(tmp_path: Path) -> None:
    """PostgreSQL stores no NUL: the state was refused, and the flow run stayed RUNNING."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        why = "there is no PostgreSQL on this machine"
        if os.environ.get(REQUIRE_VARIABLE) == "1":
            pytest.fail(why)
        pytest.skip(why)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with postgresql() as address:
        own = {
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PREFECT_API_DATABASE_CONNECTION_URL": address,
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        }
        arguments = [sys.executable, "-c", _FLOW, str(tmp_path / "psik")]
        done = subprocess.run(arguments, env=kept | own, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("FAILED "), done.stdout + done.stderr
    assert "read\\u2400 error\\u241b[2J" in done.stdout


@pytest.mark.usefixtures("prefect_server")
def test_names_show_whole_in_a_table_and_end_no_command(
    prefix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    backend = backend_at(prefix)
    backend.save("names", overwrite=True)
    for name in ("recon [final]", ":smile: [red]x", "other"):
        run_job(backend, bash("true", name))
    [other] = [record.handle for record in list_jobs(backend) if record.handle.name == "other"]
    [directory] = [path for path in job_directories(prefix) if path.name == other.stamp]
    record = directory / "prefect" / "job.json"
    document = json.loads(record.read_text())
    record.write_text(json.dumps(document | {"name": "x[/y]\x1b[2J\u202e"}))  # by another client
    for arguments in (
        ["ls", "--backend", "names"],
        ["status", other.stamp, "--backend", "names"],
        ["clean", "--backend", "names", "--older-than", "0m", "--dry-run"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code
        shown = capsys.readouterr().out
        assert "x[/y]␛[2J�" in shown
        if arguments[0] != "status":
            assert "recon [final]" in shown
            assert ":smile: [red]x" in shown

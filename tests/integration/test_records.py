"""Jobs found again from the facility's own records: listed, read, canceled by flow run, removed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Cancelling, Running

from prefect_psik import (
    JobFailed,
    JobHandle,
    JobState,
    PsikBackend,
    SpecError,
    cancel_job,
    cancel_psik_jobs,
    clean_jobs,
    list_jobs,
    poll_job,
    run_job,
    submit_job,
)
from prefect_psik.cli import main
from prefect_psik.flow_run.cancellation import OnCancel
from prefect_psik.flow_run.labels import places_of
from tests.integration.local import backend_at, bash, job_directories

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def backend(prefix: Path) -> PsikBackend:
    return backend_at(prefix)


@pytest.fixture
def saved(backend: PsikBackend) -> Iterator[str]:
    """The backend as a saved block, for the command line."""
    name = f"records-{uuid4().hex[:8]}"
    backend.save(name)
    yield name
    PsikBackend.delete(name)


def command(*arguments: str) -> int:
    """Run the command line in this process."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@flow
def leave_jobs(backend: PsikBackend, count: int, on_cancel: OnCancel = "cancel") -> tuple[str, list[JobHandle]]:
    """Submit jobs that nobody waits for."""
    jobs = [submit_job(backend, bash("sleep 300", f"job {n}"), on_cancel=on_cancel) for n in range(count)]
    return str(flow_run.id), jobs


def test_jobs_are_listed_newest_first_and_by_flow_run(backend: PsikBackend) -> None:
    run_job(backend, bash("true", "alone"))
    run, handles = leave_jobs(backend, 2)
    try:
        found = list_jobs.fn(backend)
        assert [record.handle.name for record in found][-1] == "alone"
        assert {record.handle.stamp for record in found} == {h.stamp for h in handles} | {found[-1].handle.stamp}
        mine = list_jobs.fn(backend, flow_run=run)
        assert {record.handle.stamp for record in mine} == {handle.stamp for handle in handles}
        assert all(record.flow_run == run and record.state is not JobState.completed for record in mine)
        assert [poll_job.fn(record.handle).state.is_final for record in mine] == [False, False]
        assert len(list_jobs.fn(backend, limit=2)) == 2
    finally:
        for handle in handles:
            cancel_job.fn(handle)


def test_what_a_flow_run_is_called_is_no_path(backend: PsikBackend) -> None:
    run_job(backend, bash("true"))
    with pytest.raises(Exception, match="not a flow run id"):
        list_jobs.fn(backend, flow_run="../../etc")


# ------------------------------------------------------------------------------------------------- the hook


def set_state(run: str, state: object) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run), state, force=True)  # type: ignore[arg-type]


def call_hook(run: str) -> None:
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(UUID(run))
    assert found.state is not None
    cancel_psik_jobs(flow=leave_jobs, flow_run=found, state=found.state)


def test_the_hook_cancels_what_nobody_waits_for(backend: PsikBackend) -> None:
    run, handles = leave_jobs(backend, 2)
    set_state(run, Cancelling())
    call_hook(run)
    assert [poll_job.fn(handle).state for handle in handles] == [JobState.canceled] * 2


def test_the_hook_leaves_jobs_when_a_runner_is_only_stopped(backend: PsikBackend) -> None:
    run, [handle] = leave_jobs(backend, 1)
    set_state(run, Running())
    call_hook(run)
    assert not poll_job.fn(handle).state.is_final
    cancel_job.fn(handle)


def test_the_hook_leaves_jobs_that_asked_for_it(backend: PsikBackend) -> None:
    run, [handle] = leave_jobs(backend, 1, on_cancel="leave")
    set_state(run, Cancelling())
    call_hook(run)
    assert not poll_job.fn(handle).state.is_final
    cancel_job.fn(handle)


def test_the_flow_run_tells_where_its_jobs_are(backend: PsikBackend) -> None:
    run, [handle] = leave_jobs(backend, 1)
    cancel_job.fn(handle)
    with get_client(sync_client=True) as client:
        [place] = places_of(client.read_flow_run(UUID(run)).labels)
    assert (place.prefix, place.endpoint_id, place.backend) == (backend.prefix, None, None)
    assert places_of({"psik.place.x": "no JSON", "other": "1"}) == []


# ------------------------------------------------------------------------------------------------- cleaning


def test_old_jobs_go_and_live_ones_stay(backend: PsikBackend, prefix: Path) -> None:
    done = run_job(backend, bash("true", "done"), key="done").handle
    with pytest.raises(JobFailed):
        run_job(backend, bash("exit 1", "failed"))
    live = submit_job(backend, bash("sleep 300", "live"))
    try:
        assert clean_jobs.fn(backend, older_than=timedelta(hours=1)) == []
        time.sleep(0.1)
        planned = clean_jobs.fn(backend, older_than=timedelta(0), dry_run=True)
        assert [found.handle.name for found in planned] == ["done"]
        assert len(job_directories(prefix)) == 3, "a dry run removes nothing"
        removed = clean_jobs.fn(backend, older_than=timedelta(0))
        assert [(found.handle.stamp, found.kept) for found in removed] == [(done.stamp, None)]
        assert not (prefix / done.stamp).exists()
        assert not (prefix / ".locks" / done.stamp).exists()
        assert clean_jobs.fn(backend, older_than=timedelta(0)) == [], "twice is once"
        clean_jobs.fn(backend, older_than=timedelta(0), keep_failed=False)
        assert [path.name for path in job_directories(prefix)] == [live.stamp]
    finally:
        cancel_job.fn(live)
    again = run_job(backend, bash("true", "done"), key="done")
    assert again.handle.stamp == done.stamp, "its key is free again"


def test_a_negative_age_is_refused(backend: PsikBackend) -> None:
    run_job(backend, bash("true"))
    with pytest.raises(SpecError, match="older_than"):
        clean_jobs.fn(backend, older_than=timedelta(days=-1))


# -------------------------------------------------------------------------------------------- command line


def test_the_command_line_finds_jobs_again(
    backend: PsikBackend, saved: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, [handle] = leave_jobs(backend, 1)
    done = run_job(backend, bash("echo hello; echo oops >&2", "spoke")).handle
    assert command("ls", "--backend", saved, "--as-json") == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {job["handle"]["name"]: job["status"]["state"] for job in listed}["spoke"] == "completed"
    assert command("ls", "--backend", saved, "--flow-run", run) == 0
    assert "spoke" not in capsys.readouterr().out

    assert command("status", done.stamp, "--backend", saved) == 0
    assert "completed" in capsys.readouterr().out
    (tmp_path / "handle.json").write_text(handle.model_dump_json())
    assert command("status", str(tmp_path / "handle.json")) == 0
    assert command("status", handle.model_dump_json()) == 0
    capsys.readouterr()

    assert command("logs", done.stamp, "--backend", saved) == 0
    assert capsys.readouterr().out == "hello\n"
    assert command("logs", done.stamp, "--backend", saved, "--stream", "stderr", "-f") == 0
    assert capsys.readouterr().out == "oops\n"

    assert command("cancel", "--flow-run", run, "--backend", saved) == 0
    assert "is canceled" in capsys.readouterr().err
    assert poll_job.fn(handle).state is JobState.canceled
    assert command("status", handle.stamp, "--backend", saved) == 1
    assert command("clean", "--backend", saved, "--older-than", "30d", "--dry-run") == 0


def test_a_job_with_damaged_records_does_not_count_as_asked_to_stop(
    backend: PsikBackend, saved: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, [handle, damaged] = leave_jobs(backend, 2)
    record = Path(damaged.path) / "prefect" / "job.json"
    whole = record.read_bytes()
    try:
        record.write_text("{}")
        assert command("cancel", "--flow-run", run, "--backend", saved) == 1
        said = " ".join(capsys.readouterr().err.split())
        assert f"Flow run {run}: 1 job was asked to stop; 1 may still be running, see above." in said
        assert poll_job.fn(handle).state is JobState.canceled
    finally:
        record.write_bytes(whole)
        cancel_job.fn(damaged)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "123"], "There is no job 123"),
        (["cancel"], "Give either a job or --flow-run"),
        (["cancel", "x", "--flow-run", "y"], "Give either a job or --flow-run"),
        (["clean", "--older-than", "soon"], "not 'soon'"),
        (["logs", "no-such-file"], "Cannot read the handle"),
    ],
)
def test_bad_input_is_a_sentence(
    arguments: list[str], words: str, saved: str, backend: PsikBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    run_job(backend, bash("true"))
    assert command(*arguments, "--backend", saved) == 2
    assert words in capsys.readouterr().err.replace("\n", " ")

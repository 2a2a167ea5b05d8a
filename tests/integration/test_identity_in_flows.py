"""Submitted once, under Prefect's own retries: job directories and runs are counted on disk."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, task, unmapped
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.states import Cancelling
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_psik import FacilityError, JobFailed, JobHandle, KeyConflict, PsikBackend, run_job, submit_job
from prefect_psik.transport.local import LocalTransport
from tests.conftest import job_processes
from tests.integration.local import backend_at, bash, runs, wait_until

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def lose_replies(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the next submits be carried out and their replies be lost, as an error or as silence."""
    plan: list[Exception] = []
    real = LocalTransport.call

    async def call(self: LocalTransport, name: str, payload: dict[str, Any], **options: Any) -> dict[str, Any]:
        answer = await real(self, name, payload, **options)
        if name == "submit" and plan:
            raise plan.pop(0)
        return answer

    monkeypatch.setattr(LocalTransport, "call", call)
    return plan.extend


def test_a_task_retry_after_a_lost_reply_gets_the_same_job(prefix: Path, lose_replies: Any) -> None:
    lose_replies([FacilityError("The reply was lost.")])

    @flow
    def once() -> str:
        return run_job.with_options(retries=1)(backend_at(prefix), bash("echo done")).stdout

    assert once() == "done\n"
    assert runs(prefix) == [[1]]


def test_a_lost_reply_is_asked_for_again_without_a_retry(prefix: Path, lose_replies: Any) -> None:
    lose_replies([FacilityError("Lost.", transient=True)] * 2)
    assert run_job(backend_at(prefix), bash("echo done")).stdout == "done\n"
    assert runs(prefix) == [[1]]


def test_a_users_own_task_with_retries_submits_once(prefix: Path) -> None:
    attempts = []

    @task(retries=1)
    def prepare_and_submit() -> list[JobHandle]:
        handles = [submit_job(backend_at(prefix), bash("echo twin")) for _ in range(2)]
        attempts.append([handle.stamp for handle in handles])
        if len(attempts) == 1:
            raise RuntimeError("fails after submitting")
        return handles

    @flow
    def outer() -> None:
        prepare_and_submit()

    outer()
    assert len(set(attempts[0])) == 2, "two intended twins"
    assert attempts[0] == attempts[1]
    assert runs(prefix) == [[1], [1]]


def test_a_subflow_under_a_flow_retry_submits_once(prefix: Path) -> None:
    seen: list[Any] = []

    @flow
    def sub(number: int) -> str:
        return run_job(backend_at(prefix), bash("echo same spec in both subflows")).handle.stamp

    @flow(retries=1)
    def parent() -> None:
        seen.append([sub(1), sub(2)])
        if len(seen) == 1:
            raise RuntimeError("fails once")

    parent()
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 2
    assert runs(prefix) == [[1], [1]]


def test_twins_in_a_map_are_as_many_as_intended_also_after_a_retry(prefix: Path) -> None:
    count = []

    @flow(retries=1)
    def twins() -> None:
        specs = [bash("echo twin"), bash("echo twin"), bash("echo other")]
        run_job.map(unmapped(backend_at(prefix)), specs).result()
        count.append(1)
        if len(count) == 1:
            raise RuntimeError("fails once")

    twins()
    assert runs(prefix) == [[1], [1], [1]]


def test_a_mended_input_and_a_flow_retry_run_the_job_again_as_run_2(prefix: Path, tmp_path: Path) -> None:
    data = tmp_path / "input.txt"
    results = []

    @flow(retries=1)
    def reconstruct() -> None:
        try:
            results.append(run_job(backend_at(prefix), bash(f"cat '{data}'")))
        except JobFailed:
            data.write_text("mended\n")
            raise

    state = reconstruct(return_state=True)
    assert state.is_completed()
    assert results[0].stdout == "mended\n"
    assert results[0].handle.jobndx == 2
    assert runs(prefix) == [[1, 2]]


def test_rerun_never_gets_the_failed_job_back(prefix: Path) -> None:
    @flow(retries=1)
    def stubborn() -> None:
        run_job(backend_at(prefix), bash("exit 3"), rerun="never")

    assert stubborn(return_state=True).is_failed()
    assert runs(prefix) == [[1]]


def test_one_attempt_never_runs_a_failed_job_twice(prefix: Path) -> None:
    @flow
    def twice() -> list[int]:
        found = []
        for _ in range(2):
            handle = submit_job(backend_at(prefix), bash("exit 3"), key="scan 7")
            with pytest.raises(JobFailed):
                run_job(backend_at(prefix), bash("exit 3"), key="scan 7")
            found.append(handle.jobndx)
        return found

    assert twice() == [1, 1]
    assert runs(prefix) == [[1]]


def test_an_explicit_key_is_one_job_for_everybody_at_the_same_moment(prefix: Path) -> None:
    stamps = []

    @flow
    def scan() -> None:
        stamps.append(submit_job(backend_at(prefix), bash("echo scan"), key="scan-0042").stamp)

    threads = [threading.Thread(target=scan) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stamps) == 4
    assert len(set(stamps)) == 1
    assert runs(prefix) == [[1]]


def test_the_same_key_with_another_spec_shows_the_difference(prefix: Path) -> None:
    submit_job(backend_at(prefix), bash("echo first"), key="scan-1")
    with pytest.raises(KeyConflict) as conflict:
        submit_job(backend_at(prefix), bash("echo second"), key="scan-1")
    assert "echo first" in str(conflict.value)
    assert "echo second" in str(conflict.value)
    assert runs(prefix) == [[1]]


def test_the_block_may_be_edited_between_attempts(prefix: Path) -> None:
    seen: list[Any] = []

    @flow(retries=1)
    def edited() -> None:
        backend = backend_at(prefix).model_copy(update={"note": f"edit {len(seen)}", "umask": "0077"})
        seen.append(run_job(backend, bash("echo x")).handle)
        if len(seen) == 1:
            raise RuntimeError("fails once")

    edited()
    assert seen[0] == seen[1]


def test_a_flow_run_that_is_cancelled_frees_its_jobs(prefix: Path) -> None:
    """Nobody supervises this flow run: the watcher alone learns of the cancel."""
    backend = backend_at(prefix)

    @flow
    def long() -> None:
        run_job.map(unmapped(backend), [bash(f"sleep 300 # {n}") for n in range(3)]).result()

    ids: list[Any] = []

    @flow
    def parent() -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        ids.append(context.flow_run.id)
        long()

    thread = threading.Thread(target=lambda: parent(return_state=True))
    thread.start()
    wait_until(lambda: len(runs(prefix)) == 3 and len(job_processes(prefix)) >= 3)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(ids[0], Cancelling(), force=True)
    thread.join(timeout=180)  # SQLite may keep Prefect waiting for a minute
    assert not thread.is_alive()
    assert job_processes(prefix) == []


def test_a_flow_run_that_is_cancelled_submits_nothing_more(prefix: Path) -> None:
    """Neither its tasks' retries nor the tasks that had no turn yet."""
    backend, run_ids = backend_at(prefix), []

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=2))  # type: ignore[arg-type]
    def crowded() -> None:
        run_ids.append(UUID(flow_run.id))
        specs = [bash(f"sleep 300 # {n}") for n in range(6)]
        run_job.with_options(retries=2).map(unmapped(backend), specs).result()

    thread = threading.Thread(target=lambda: crowded(return_state=True))
    thread.start()
    wait_until(lambda: len(runs(prefix)) == 2 and len(job_processes(prefix)) >= 2)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_ids[0], Cancelling(), force=True)
        thread.join(timeout=180)  # SQLite may keep Prefect waiting for a minute
        assert not thread.is_alive()
        # Its tasks end one by one; the flow run is told as the last of it.
        wait_until(lambda: client.read_flow_run(run_ids[0]).state.is_final())  # type: ignore[union-attr]
    assert runs(prefix) == [[1], [1]]
    assert job_processes(prefix) == []


def test_prefix_is_part_of_the_identity(prefix: Path) -> None:
    prefix.mkdir()

    @flow
    def two_places() -> None:
        for place in ("a", "b"):
            submit_job(PsikBackend(prefix=str(prefix / place)), bash("echo x"))

    two_places()
    assert runs(prefix / "a") == runs(prefix / "b") == [[1]]

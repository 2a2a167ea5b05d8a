"""Jobs on this machine through real psik: what becomes of them, and what stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect import flow, task, unmapped
from prefect.client.orchestration import get_client
from prefect.deployments import arun_deployment
from prefect.futures import wait

from prefect_psik import (
    BackendAttributes,
    FailureCause,
    JobCanceled,
    JobFailed,
    JobHandle,
    JobResult,
    JobSpec,
    JobState,
    MissingOutput,
    PreflightFailed,
    PsikBackend,
    ResourceSpec,
    SyncCallError,
    apoll_job,
    arun_job,
    asubmit_job,
    await_for_job,
    cancel_job,
    poll_job,
    run_job,
    run_preflight,
    submit_job,
    wait_for_job,
    wait_for_start,
)
from prefect_psik.spec.identity import Identity
from tests.conftest import job_processes
from tests.integration.local import backend_at, bash, job_directories, rows, runs, wait_until

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_three_jobs_one_fails_one_is_canceled_from_another_process(prefix: Path) -> None:
    backend = backend_at(prefix)
    errors: list[BaseException] = []

    @flow
    def three() -> list[Any]:
        futures = [
            run_job.submit(backend, bash("echo fine", "good")),
            run_job.submit(backend, bash("echo some words >&2; echo last words >&2; exit 3", "bad")),
            run_job.submit(backend, bash("sleep 300 & sleep 300", "long")),
        ]
        wait(futures)
        return [future.state for future in futures]

    def cancel_from_outside() -> None:
        def long_running() -> list[Path]:
            return [
                path for path in job_directories(prefix) if "sleep 300" in (path / "prefect/script").read_text()
            ]

        try:
            wait_until(lambda: long_running() and any(row.state == "active" for row in rows(long_running()[0])))
            stamp = long_running()[0].name
            handle = JobHandle(prefix=str(prefix), stamp=stamp, key="?").model_dump_json()
            code = "import sys; from prefect_psik import cancel_job; print(cancel_job.fn(sys.argv[1]).state.value)"
            done = subprocess.run(
                [sys.executable, "-c", code, handle], capture_output=True, text=True, timeout=120
            )
            assert done.stdout.strip() == "canceled", done.stderr
        except BaseException as err:
            errors.append(err)
            raise

    canceler = threading.Thread(target=cancel_from_outside)
    canceler.start()
    good, bad, long = three()
    canceler.join()
    assert not errors
    assert good.is_completed()
    assert bad.is_failed()
    failure = bad.result(raise_on_failure=False)
    assert isinstance(failure, JobFailed)
    assert failure.cause is FailureCause.script
    assert failure.result is not None
    assert failure.result.exit_code == 3
    assert "exit code 3" in str(failure)
    assert "some words\nlast words" in str(failure)
    canceled = long.result(raise_on_failure=False)
    assert isinstance(canceled, JobCanceled)
    assert canceled.cause is FailureCause.canceled_by_us
    assert job_processes(prefix) == []
    assert runs(prefix) == [[1], [1], [1]]
    ends = sorted(rows(path)[-1].state.value for path in job_directories(prefix))
    assert ends == ["canceled", "completed", "failed"]


def test_a_command_that_reads_stdin_does_not_eat_the_script(prefix: Path) -> None:
    with pytest.raises(JobFailed) as failed:
        run_job(backend_at(prefix), bash("cat\necho after\nexit 5"))
    assert failed.value.result is not None
    assert failed.value.result.exit_code == 5
    assert failed.value.result.stdout == "after\n"


@pytest.mark.parametrize(
    ("script", "stdout"),
    [
        ("#!/bin/bash\r\necho crlf\r\nexit 0\r\n", "crlf\n"),
        ("echo ${BASH##*/}", "bash\n"),
        ("#!/usr/bin/env bash -e\nfalse\necho not reached", None),
        ("\n\n#!/usr/bin/env python3\nimport os\nprint(os.path.basename(__file__))", "script\n"),
        ("#!/usr/bin/env -S python3 -u\nprint('unbuffered')", "unbuffered\n"),
        ("\ufeff#!/bin/sh\necho bom", "bom\n"),
        ("#!/bin/bash\necho 'größe µ'", "größe µ\n"),
    ],
)
def test_scripts_run_as_their_author_meant(prefix: Path, script: str, stdout: str | None) -> None:
    spec = JobSpec(name="script", script=script)
    if stdout is None:
        with pytest.raises(JobFailed, match="exit code 1"):
            run_job(backend_at(prefix), spec)
    else:
        assert run_job(backend_at(prefix), spec).stdout == stdout


def test_a_missing_interpreter_is_named(prefix: Path) -> None:
    with pytest.raises(JobFailed, match=r"exit code 12[67](.|\n)*no/such/interpreter"):
        run_job(backend_at(prefix), JobSpec(script="#!/no/such/interpreter -x\n"))


def test_inputs_outputs_directory_and_modes(prefix: Path, tmp_path: Path) -> None:
    blob = bytes(range(256))
    spec = bash(
        "cat sub/in.txt > out.txt; cp blob.bin copy.bin; mkdir -p deep/er; echo x > deep/er/x.log; umask",
        files={"sub/in.txt": "größe", "blob.bin": blob},
        outputs=["out.txt", "*.bin", "deep/**/*.log"],
        expect=["out.txt", str(tmp_path)],
    )
    result = run_job(backend_at(prefix), spec)
    assert result.outputs == {
        "out.txt": "größe".encode(),
        "copy.bin": blob,
        "deep/er/x.log": b"x\n",
    }
    [warning] = result.warnings
    assert warning.startswith("The output blob.bin was written at "), "it came with the job and is no result of it"
    assert result.stdout == "0027\n"
    job = Path(result.handle.path)
    assert oct(job.stat().st_mode & 0o777) == "0o700"
    for private in ("spec.json", "prefect/job.json", "status.csv"):
        assert oct((job / private).stat().st_mode & 0o777) == "0o600"
    assert (job / "work/out.txt").stat().st_mode & 0o777 == 0o640


def test_what_the_job_promised_must_be_there(prefix: Path) -> None:
    with pytest.raises(MissingOutput, match=r"nothing matches rec/\*\.tiff; nothing matches report\.json"):
        run_job(backend_at(prefix), bash("true", expect=["rec/*.tiff"], outputs=["report.json"]))


def test_a_large_output_is_told_and_not_lost(prefix: Path) -> None:
    result = run_job(backend_at(prefix), bash("head -c 5000000 /dev/zero > big; echo s > small", outputs=["*"]))
    assert list(result.outputs) == ["small"]
    assert "5,000,000" in result.warnings[0]
    assert "Globus Transfer" in result.warnings[0]


def sleeps(prefix: Path) -> bool:
    """Whether the script of a job has come to its sleep."""
    for process in job_processes(prefix):
        with suppress(psutil.NoSuchProcess):
            if process.cmdline()[:1] == ["sleep"]:
                return True
    return False


def test_a_job_whose_processes_are_killed_is_noticed(prefix: Path) -> None:
    backend = backend_at(prefix)
    handle = submit_job(backend, bash("sleep 300"))
    assert handle.native_id is not None
    wait_until(lambda: poll_job(handle).state is JobState.active and sleeps(prefix))
    runner = psutil.Process(int(handle.native_id))
    # The runner first: it would note how the script ended.
    for process in [runner, *runner.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    with pytest.raises(JobFailed, match="vanished") as failed:
        wait_for_job(handle)
    assert failed.value.cause is FailureCause.lost


def test_a_job_that_is_terminated_from_outside_is_canceled_outside(prefix: Path) -> None:
    handle = submit_job(backend_at(prefix), bash("sleep 300"))
    wait_until(lambda: poll_job(handle).state is JobState.active and sleeps(prefix))
    os.kill(int(handle.native_id or 0), signal.SIGTERM)
    with pytest.raises(JobCanceled) as canceled:
        wait_for_job(handle)
    assert canceled.value.cause is FailureCause.canceled_outside


def test_cancel_ends_children_that_ignore_it_and_keeps_an_end(prefix: Path) -> None:
    backend = backend_at(prefix)
    stubborn = submit_job(backend, bash("trap '' TERM; setsid sleep 300 & sleep 300 & wait"))
    wait_until(lambda: len(job_processes(prefix)) >= 3)
    assert cancel_job(stubborn).state is JobState.canceled
    assert cancel_job(stubborn).state is JobState.canceled
    assert [row.state.value for row in rows(Path(stubborn.path))].count("canceled") == 1
    left = [p for p in job_processes(prefix) if p.cmdline()[:1] != ["sleep"] or os.getsid(p.pid) != p.pid]
    assert left == [], "only what made a session of its own may be left"
    ended = submit_job(backend, bash("exit 4", "ended"))
    with pytest.raises(JobFailed):
        wait_for_job(ended)
    assert cancel_job(ended).exit_code == 4


def test_walltime_is_psiks_timer_on_this_machine(prefix: Path) -> None:
    handle = submit_job(backend_at(prefix), bash("sleep 300", resources={"duration": 1}))
    with pytest.raises(JobFailed, match="time limit of 1 min") as failed:
        wait_for_job(handle)
    assert failed.value.cause is FailureCause.walltime
    assert job_processes(prefix) == []


def test_secrets_of_this_process_are_not_in_the_job(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOBUS_COMPUTE_CLIENT_SECRET", "leak-secret-1")
    monkeypatch.setenv("SOME_PASSWORD", "leak-secret-2")
    result = run_job(backend_at(prefix), bash("env; echo; cat /proc/$PPID/environ | tr '\\0' '\\n'"))
    log = (Path(result.handle.path) / "log/stdout.1").read_text()
    assert "HOME=" in log
    assert "leak-secret" not in log


# ------------------------------------------------------------------------------------ ways to call the tasks


def test_from_sync_flows_tasks_subflows_and_outside(prefix: Path) -> None:
    backend = backend_at(prefix)

    @task
    def outer(number: int) -> str:
        return run_job(backend, bash(f"echo nested {number}")).stdout

    @flow
    def sub() -> str:
        return run_job(backend, bash("echo sub")).stdout

    @flow
    def everything() -> list[str]:
        mapped = run_job.map(unmapped(backend), [bash(f"echo map {n}") for n in range(3)])
        handle = submit_job.submit(backend, bash("echo apart"))
        waited = wait_for_job.submit(handle)  # type: ignore[call-overload]
        return [
            run_job(backend, bash("echo direct")).stdout,
            *[future.result().stdout for future in mapped],
            waited.result().stdout,
            outer(1),
            outer.submit(2).result(),
            sub(),
        ]

    said = [text.strip() for text in everything()]
    assert said == ["direct", "map 0", "map 1", "map 2", "apart", "nested 1", "nested 2", "sub"]
    assert run_job(backend, bash("echo outside")).stdout == "outside\n"
    assert run_job.fn(backend, bash("echo bare")).stdout == "bare\n"


async def test_from_async_flows(prefix: Path) -> None:
    backend = backend_at(prefix)

    @flow
    async def sub() -> str:
        return (await arun_job(backend, bash("echo sub"))).stdout

    @flow
    async def everything() -> list[str]:
        handle = await asubmit_job(backend, bash("echo apart"))
        many = await asyncio.gather(*(arun_job(backend, bash(f"echo {n}")) for n in range(5)))
        waited = await await_for_job(handle)
        assert (await apoll_job(handle)).state is JobState.completed
        submitted = run_job.submit(backend, bash("echo thread"))
        return [result.stdout for result in many] + [waited.stdout, submitted.result().stdout, await sub()]

    assert [text.strip() for text in await everything()] == ["0", "1", "2", "3", "4", "apart", "thread", "sub"]


async def test_a_sync_task_on_a_running_loop_names_its_twin(prefix: Path) -> None:
    with pytest.raises(SyncCallError, match="await arun_job"):
        run_job(backend_at(prefix), bash("true"))
    assert not job_directories(prefix)


async def test_a_sync_flow_in_a_notebook_says_how_to_write_it(prefix: Path) -> None:
    @flow
    def cell() -> JobResult:
        return run_job(backend_at(prefix), bash("true"))

    with pytest.raises(SyncCallError, match=r"await arun_job.*async def.*call it with `await`.*notebook"):
        cell()
    assert not job_directories(prefix)


def test_a_handle_is_found_again_as_text_from_another_process(prefix: Path) -> None:
    handle = submit_job(backend_at(prefix), bash("sleep 2; echo later"))
    code = "import sys; from prefect_psik import wait_for_job; print(wait_for_job.fn(sys.argv[1]).stdout)"
    done = subprocess.run(
        [sys.executable, "-c", code, handle.model_dump_json()], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "later", done.stderr


def test_many_waits_share_their_calls(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect_psik.transport.local import LocalTransport

    calls: list[str] = []
    real = LocalTransport.call

    async def counted(self: LocalTransport, name: str, payload: dict[str, Any], **options: Any) -> dict[str, Any]:
        calls.append(name)
        return await real(self, name, payload, **options)

    monkeypatch.setattr(LocalTransport, "call", counted)

    @flow
    async def many() -> list[JobResult]:
        backend = PsikBackend(prefix=str(prefix))
        return list(await asyncio.gather(*(arun_job(backend, bash(f"echo {n}")) for n in range(60))))

    results = asyncio.run(many())
    assert sorted(int(result.stdout) for result in results) == list(range(60))
    assert runs(prefix) == [[1]] * 60
    assert calls.count("submit") <= 20


def test_a_wait_for_the_start_ends_while_the_job_runs(prefix: Path) -> None:
    backend = backend_at(prefix)
    gate = prefix.parent / "gate"
    handle = submit_job(backend, bash(f'until [ -e "{gate}" ]; do sleep 0.1; done; echo ended'))
    status = wait_for_start(handle)
    assert status.state is JobState.active
    assert status.started is not None
    gate.touch()
    assert wait_for_job(handle).stdout == "ended\n"
    assert wait_for_start(handle).state is JobState.completed


def test_map_takes_a_block_for_one_thing(prefix: Path) -> None:
    @flow
    def many() -> list[str]:
        return [
            result.stdout
            for result in run_job.map(backend_at(prefix), [bash(f"echo {n}") for n in range(3)]).result()
        ]

    assert many() == ["0\n", "1\n", "2\n"]


def test_map_takes_a_spec_for_one_thing(prefix: Path) -> None:
    @flow
    def twice() -> list[str]:
        mapped = run_job.map(backend_at(prefix), bash('echo "$base"'), key=["first", "second"])
        return [result.stdout for result in mapped.result()]

    assert len(set(twice())) == 2


def test_script_gets_its_arguments(prefix: Path) -> None:
    spec = bash('printf "%s|" "$@"', arguments=["scan 7", "", "$HOME", 3])
    assert run_job(backend_at(prefix), spec).stdout == "scan 7||$HOME|3|"


def test_directives_are_ignored_on_this_machine_and_that_is_logged(
    prefix: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    spec = JobSpec(name="headed", script="#!/bin/bash\n#SBATCH -N 2\n#SBATCH --array=0-9\necho done\n")
    assert run_job(backend_at(prefix), spec).stdout == "done\n"
    said = [record.getMessage() for record in caplog.records if "SBATCH" in record.getMessage()]
    assert said == [
        "job 'headed': script, line 2: #SBATCH -N 2 and 1 more: no effect on a local backend, which has no "
        "scheduler"
    ]


async def test_spec_that_prefect_kept_as_a_parameter_is_the_same_job() -> None:
    block = PsikBackend(
        attributes=BackendAttributes(type="slurm"),
        default_resources={"node_count": 4, "duration": 30, "memory": "8G"},
    )

    @flow
    def with_spec(spec: JobSpec) -> None: ...

    spec = bash("true").replace(resources=ResourceSpec(gpu_cores_per_process=1))
    async with get_client() as client:
        flow_id = await client.create_flow(with_spec)
        await client.create_deployment(flow_id, "kept")
        run = await arun_deployment("with-spec/kept", parameters={"spec": spec}, timeout=0)
        kept = await client.read_flow_run(run.id)
    found = with_spec.validate_parameters(kept.parameters)["spec"]
    assert isinstance(found, JobSpec)
    assert found is not spec
    identity = Identity("k", "1")
    assert block.submission(found, identity, {}) == block.submission(spec, identity, {})
    assert block.submission(found, identity, {})["asked"] == {"duration": 30, "memory": "8G"}


def test_preflight_has_a_row_for_the_directives_of_a_script(prefix: Path) -> None:
    spec = JobSpec(script="#!/bin/bash\n#SBATCH --array=0-9\ntrue\n")
    report = run_preflight(backend_at(prefix), spec)
    assert [check.message for check in report.checks if check.name == "directives"] == [
        "Script, line 2: #SBATCH --array=0-9: no effect on a local backend, which has no scheduler."
    ]
    slurm = backend_at(prefix).model_copy(update={"attributes": BackendAttributes(type="slurm")})
    with pytest.raises(PreflightFailed, match="directives: Line 2 of the script, '#SBATCH --array=0-9'"):
        run_preflight(slurm, spec)

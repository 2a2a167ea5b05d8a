"""The eighteen defects of the baseline, splash-flows: what it does there, and what this package does.

S8 and S9 are in `test_flow_dispatcher.py`, where the children run; S3 to S6, S14 to S16 and S18, of data, in
`test_splash_data.py`.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.context import get_run_context
from prefect.states import Cancelling

from flows.tomography import tomography
from prefect_psik import (
    FlowRunCancelling,
    JobCanceled,
    JobHandle,
    JobState,
    PsikBackend,
    QueueLimitReached,
    ResourceSpec,
    ScriptFailed,
    WaitLimits,
    WalltimeExceeded,
    apoll_job,
    arun_job,
    asubmit_job,
    await_for_job,
    run_job,
    submit_job,
    wait_for_job,
)
from tests.conftest import job_processes
from tests.integration.local import backend_at, bash, runs, wait_until
from tests.integration.test_flows import home
from tests.integration.test_slurm_jobs import backend, client, script, with_attributes
from tests.testbed.facility import Facility

__all__ = ["backend", "client", "home"]

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_s1_a_failed_reconstruction_is_no_success(prefix: Path) -> None:
    """There, the wrapper's text, exit code 2 in it, counts as success. Here the exit code is the outcome."""
    with pytest.raises(ScriptFailed, match="exit code 2") as failed:
        run_job(backend_at(prefix), bash("python3 /there/is/no/reconstruction.py"))
    assert failed.value.result is not None
    assert "No such file" in failed.value.result.stderr


async def test_s2_a_job_that_slurm_ended_is_no_success(facility: Facility, backend: PsikBackend) -> None:
    """There, any final state counts as success. Here failed, timed out and canceled are errors of their own."""
    short = ResourceSpec(duration=1, exclusive_node_use=False)
    specs = [script("exit 3", "s2"), script("sleep 600", "s2", resources=short), script("sleep 601", "s2")]
    handles = [await asubmit_job(backend, spec) for spec in specs]
    waits = asyncio.gather(*(await_for_job(handle, backend=backend) for handle in handles), return_exceptions=True)
    while (await apoll_job(handles[2], backend=backend)).state is not JobState.active:
        await asyncio.sleep(1)
    facility.as_user("scancel", str(handles[2].native_id))
    assert [type(outcome) for outcome in await waits] == [ScriptFailed, WalltimeExceeded, JobCanceled]


async def test_s7_a_flow_that_failed_is_red(home: Path) -> None:
    """There, the flow returns False, which Prefect calls Completed. Here a failed step fails the run."""
    state = await tomography("s7", local=home / "out", return_state=True)  # nobody took this scan
    async with get_client() as api:
        known = await api.read_flow_run(state.state_details.flow_run_id)  # type: ignore[arg-type]
    assert known.state is not None
    assert known.state.is_failed()
    assert "raw/s7.h5" in str(known.state.message)


async def test_s10_the_queue_does_not_count_and_a_cancel_is_real(facility: Facility, backend: PsikBackend) -> None:
    """There, 20 min hold for queue and run, and `cancel` stays local. Here each has its own, and Slurm is told."""
    later = with_attributes(backend, options={"--begin": "now+1hour"})
    limits = WaitLimits(run=timedelta(seconds=1), queue=timedelta(seconds=8), on_limit="cancel")
    with pytest.raises(QueueLimitReached) as reached:
        await arun_job(later, script("true", "s10"), limits=limits)
    handle = reached.value.handle
    assert handle is not None
    assert facility.squeue("-h", "-j", str(handle.native_id), "-t", "PD,R", "-o", "%T").strip() == ""


def test_s11_a_job_is_found_again(prefix: Path) -> None:
    """There, a restart loses the job and submits another. Here the retry gets the same one."""
    attempts: list[JobHandle] = []

    @flow(retries=1)
    def reconstruct() -> str:
        attempts.append(submit_job(backend_at(prefix), bash("sleep 2; echo done")))
        if len(attempts) == 1:
            raise RuntimeError("the worker died")
        return wait_for_job(attempts[-1]).stdout

    assert reconstruct() == "done\n"
    assert attempts[0].native_id == attempts[1].native_id
    assert runs(prefix) == [[1]]


async def test_s12_a_cancel_in_prefect_ends_the_job(prefix: Path) -> None:
    """There, the job goes on and burns the allocation. Here it is gone."""

    @flow
    async def reconstruct() -> None:
        flow_run = get_run_context().flow_run  # type: ignore[union-attr]
        handle = await asubmit_job(backend_at(prefix), bash("sleep 600"))
        async with get_client() as api:
            await api.set_flow_run_state(flow_run.id, Cancelling(), force=True)  # type: ignore[union-attr]
        await await_for_job(handle)

    with pytest.raises((FlowRunCancelling, JobCanceled, asyncio.CancelledError)):
        await reconstruct()
    wait_until(lambda: job_processes(prefix) == [])


async def test_s13_one_process_waits_for_many_jobs(prefix: Path) -> None:
    """There, each scan blocks a worker process. Here all wait in this one, beside other work."""
    gate = prefix.parent / "gate"
    spec = 'touch "$base/started"; until [ -e "$GATE" ]; do sleep 0.2; done; echo $PPID'
    jobs = [bash(spec, f"s13-{number}", environment={"GATE": str(gate)}) for number in range(8)]
    waits = asyncio.gather(*(arun_job(backend_at(prefix), job) for job in jobs))
    await asyncio.to_thread(wait_until, lambda: len(list(prefix.glob("*/started"))) == len(jobs))
    await asyncio.to_thread(gate.touch)
    assert len(await waits) == len(jobs)


def test_s17_a_path_is_not_pasted_into_a_command(prefix: Path) -> None:
    """There, paths are pasted into bash and split at blanks. Here a script gets them as variables."""
    odd = "a b;touch pwned $(touch pwned) `touch pwned` 'q' \"é\" *"
    done = run_job(backend_at(prefix), bash('printf %s "$RAW"; ls', environment={"RAW": odd}))
    assert done.stdout == odd

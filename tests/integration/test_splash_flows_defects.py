"""The eighteen defects of the baseline, splash-flows: what it does there, and what this package does.

Those of data are in `test_splash_data.py`, S8 and S9 in `test_flow_dispatcher.py`, where the children run.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import ParameterTypeError

from flows.store import Phantom
from flows.tomography import tomography
from prefect_psik import (
    JobCanceled,
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
)
from tests.integration.local import backend_at, bash, wait_until
from tests.integration.prefect_services import Child, Services, kill_all
from tests.integration.slurm_view import account_of, live, wait_running
from tests.integration.test_flows import GOOD_NRMSE, SMALL, home, needs_tomography
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
    """There, any final state counts as success. Here failed, timed out and canceled are errors of their own.

    So is out of memory, on the Slurm of `make outcomes`, which can limit it.
    """
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


@pytest.mark.usefixtures("alone")
def test_s11_after_kill_9_the_job_is_found_again(facility: Facility, services: Services, block: str) -> None:
    """There, a restart loses the job and submits another. Here the retry finds the one that runs."""
    served, run, running = begin(services, facility, block, "s11")
    kill_all(served.descendants())  # the process of the flow
    wait_until(lambda: services.state(run).is_crashed(), 180)
    services.retry(run)
    wait_until(lambda: any("found again" in line for line in services.logs(run)), 180)
    assert live(facility, "s11") == running


@pytest.mark.usefixtures("alone")
def test_s12_a_cancel_in_prefect_ends_the_job(facility: Facility, services: Services, block: str) -> None:
    """There, the job goes on and burns the allocation. Here it is canceled, and then the flow run is."""
    _, run, running = begin(services, facility, block, "s12")
    services.cancel(run)
    wait_until(lambda: services.state(run).is_final(), 120)
    assert services.state(run).is_cancelled()
    wait_until(lambda: live(facility, "s12") == {})
    (native_id,) = running
    assert account_of(facility, native_id, "State").startswith("CANCELLED")


def begin(services: Services, facility: Facility, block: str, tag: str) -> tuple[Child, UUID, dict[str, str]]:
    """Start a flow run that waits for a job; returns who serves it, the flow run, and the job in the queue."""
    served = services.python("tests/integration/places.py", "serve")
    wait_until(lambda: services.deployed("direct/served"), 180)
    run = services.run_deployment("direct/served", backend=block, tag=f"{tag}-{uuid.uuid4().hex[:8]}")
    wait_until(lambda: any(" submitted on " in line for line in services.logs(run)))
    return served, run, wait_running(facility, tag)


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


async def test_s17_a_scan_may_be_called_anything_that_a_file_may(home: Path) -> None:
    """There, an odd name breaks the job or acts in its shell. Here it goes the whole way, or is refused."""
    needs_tomography()
    scan = "a 'b' $(touch x) [1] *"
    facts = await tomography(scan, phantom=Phantom(**SMALL), local=home / "out")
    assert 0 < facts["nrmse"] < GOOD_NRMSE
    rec = home / "out/data/store/rec"
    assert {path.name for path in rec.iterdir()} == {scan, f"{scan}.zarr"}
    assert len(list((rec / scan).iterdir())) == SMALL["slices"]
    assert "x" not in {name for _, _, names in os.walk(home) for name in names}
    for no_name in ("../etc", "a/b", "..", ""):
        with pytest.raises(ParameterTypeError, match="is not a scan name"):
            await tomography(no_name, phantom=Phantom(**SMALL), local=home / "out")

"""Signals for the batch shell of a job, on a real Slurm: they reach its script, and nobody else is blamed."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_psik import (
    FailureCause,
    JobCanceled,
    JobError,
    JobHandle,
    JobSpec,
    JobState,
    PsikBackend,
    ResourceSpec,
    ScriptFailed,
    WalltimeExceeded,
    poll_job,
    run_job,
    submit_job,
    wait_for_job,
)
from tests.integration.local import wait_until
from tests.integration.test_slurm_jobs import SMALL, backend, client, script
from tests.testbed.facility import Facility

__all__ = ["backend", "client"]

pytestmark = pytest.mark.usefixtures("prefect_server")

#: Slurm warns up to a minute earlier than asked: with less, it would before the script begins.
WARNED = ResourceSpec(duration=2, exclusive_node_use=False)
#: Work of two steps, of which the first run does one: as a script with a checkpoint is written by hand.
CHECKPOINT = """\
step=$(cat checkpoint 2> /dev/null || echo 0)
echo "from step $step"
save() { echo $((step + 1)) > checkpoint; echo "saved at $1"; kill $worker; exit 85; }
trap 'save USR1' USR1
if [ "$step" = 0 ]; then
  sleep 600 & worker=$!
  wait $worker
fi
echo done > result.txt
"""


def started(handle: JobHandle, backend: PsikBackend) -> JobHandle:
    """The job, once its script runs: it says so in its log."""
    wait_until(lambda: poll_job(handle, backend=backend).state is JobState.active, 120)
    wait_until(lambda: "ready" in _stdout(handle), 60)
    return handle


def _stdout(handle: JobHandle) -> str:
    with open(f"{handle.path}/log/stdout.{handle.jobndx}") as file:
        return file.read()


def send(facility: Facility, handle: JobHandle, name: str, *options: str) -> None:
    """Send a signal to the batch shell alone, as Slurm does for `--signal=B:`."""
    sent = facility.as_user("scancel", "--batch", f"--signal={name}", *options, str(handle.native_id))
    assert sent.returncode == 0, sent.stderr


def test_the_next_run_continues_from_the_checkpoint_of_the_trap(backend: PsikBackend) -> None:
    spec = script(CHECKPOINT, resources=WARNED, warn_before=30, outputs=["result.txt"])
    result = run_job(backend, spec, retry_on={"walltime"})
    assert (result.state, result.handle.jobndx, result.to_be_continued) == (JobState.completed, 2, False)
    assert result.stdout == "from step 1\n"
    assert result.outputs == {"result.txt": b"done\n"}
    with open(f"{result.handle.path}/log/stdout.1") as file:
        assert file.read() == "from step 0\nsaved at USR1\n"


def test_without_a_retry_the_error_says_that_the_work_can_continue(backend: PsikBackend) -> None:
    text = "trap 'echo saved > checkpoint; exit 0' USR1\nsleep 600 & wait"
    spec = script(f"#SBATCH --signal=B:USR1@30\n{text}", resources=WARNED, expect=["result.txt"])
    with pytest.raises(WalltimeExceeded, match=r"exit code 0 after its warning \(SIGUSR1, 30 s before") as failed:
        run_job(backend, spec)
    assert failed.value.result is not None
    assert failed.value.result.to_be_continued
    assert "continues from what it saved" in failed.value.next_step


@pytest.mark.parametrize("name", ["USR1", "USR2", "HUP", "QUIT", "ALRM", "36"])
def test_a_signal_for_the_batch_shell_reaches_the_trap_once(
    facility: Facility, backend: PsikBackend, name: str
) -> None:
    text = f"trap 'echo got {name}; exit 3' {name}\necho ready\nsleep 600 & wait\n"
    handle = started(submit_job(backend, script(text)), backend)
    send(facility, handle, name)
    with pytest.raises(ScriptFailed) as failed:
        wait_for_job(handle, backend=backend)
    assert failed.value.result is not None
    assert (failed.value.result.exit_code, failed.value.result.stdout) == (3, f"ready\ngot {name}\n")


@pytest.mark.parametrize(
    ("name", "error", "cause"),
    [
        ("USR1", ScriptFailed, FailureCause.script),
        ("HUP", ScriptFailed, FailureCause.script),
        ("INT", JobCanceled, FailureCause.canceled_outside),
        ("TERM", JobCanceled, FailureCause.canceled_outside),
    ],
)
def test_a_job_that_a_signal_ended_says_so_and_blames_no_backend(
    facility: Facility, backend: PsikBackend, name: str, error: type[JobError], cause: FailureCause
) -> None:
    handle = started(submit_job(backend, script("echo ready\nsleep 600")), backend)
    send(facility, handle, name)
    with pytest.raises(error, match=f"SIG{name}.* from outside") as failed:
        wait_for_job(handle, backend=backend)
    assert failed.value.cause is cause
    assert "backend or its environment" not in str(failed.value)


def test_a_signal_for_the_steps_does_not_touch_the_script(facility: Facility, backend: PsikBackend) -> None:
    text = "srun bash -c 'trap \"exit 7\" USR1; echo ready; sleep 600 & wait'\necho srun ended with $?"
    handle = started(submit_job(backend, script(text)), backend)
    sent = facility.as_user("scancel", "--signal=USR1", str(handle.native_id))
    assert sent.returncode == 0, sent.stderr
    result = wait_for_job(handle, backend=backend)
    assert result.stdout == "ready\nsrun ended with 7\n"


def test_a_warning_on_this_machine_reaches_the_trap(prefix: Path) -> None:
    here = PsikBackend(prefix=str(prefix))
    spec = JobSpec(name="here", script=CHECKPOINT, resources=ResourceSpec(duration=1), warn_before=55)
    result = run_job(here, spec, retry_on={"walltime"})
    assert (result.handle.jobndx, result.stdout) == (2, "from step 1\n")


def test_a_script_that_ends_early_is_not_held_up_by_its_warning(backend: PsikBackend) -> None:
    assert SMALL.duration is not None
    result = run_job(backend, script("echo $BASHPID", warn_before=60))
    assert result.state is JobState.completed
    assert not result.warnings

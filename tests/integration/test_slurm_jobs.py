"""Jobs through the real chain: SDK, emulated service, RabbitMQ, real endpoint, psik and a real Slurm."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, unmapped

from prefect_psik import (
    BackendAttributes,
    FacilityError,
    FailureCause,
    GlobusCredentials,
    JobCanceled,
    JobFailed,
    JobHandle,
    JobResult,
    JobSpec,
    JobState,
    MissingOutput,
    PsikBackend,
    ResourceSpec,
    SpecError,
    SubmitRejected,
    arun_job,
    cancel_job,
    list_jobs,
    poll_job,
    run_job,
    submit_job,
    wait_for_job,
)
from prefect_psik.blocks import DefaultResources
from prefect_psik.remote import letter
from prefect_psik.session import batcher as batches
from prefect_psik.session import session
from prefect_psik.spec.identity import Identity
from prefect_psik.transport.globus.transport import GlobusTransport
from tests.integration.local import wait_until
from tests.integration.slurm_view import account_of
from tests.testbed.facility import Facility

pytestmark = pytest.mark.usefixtures("prefect_server")

SMALL = ResourceSpec(duration=5, exclusive_node_use=False)
#: For what goes on until a test ends it, however long that takes.
LONG = ResourceSpec(duration=60, exclusive_node_use=False)


@pytest.fixture(autouse=True)
def client(facility: Facility) -> Iterator[None]:
    """Make the test a client of the facility; secrets are in the blocks, not in the environment."""
    login = ("GLOBUS_COMPUTE_CLIENT_ID", "GLOBUS_COMPUTE_CLIENT_SECRET")
    with facility.client():
        for name in login:
            os.environ.pop(name, None)
        yield


@pytest.fixture
def backend(facility: Facility) -> PsikBackend:
    """The facility as a block, with its login."""
    return PsikBackend(
        endpoint_id=UUID(facility.endpoint_id),
        prefix=str(facility.prefix),
        attributes=BackendAttributes(type="slurm", queue_name="debug", project_name="proj1"),
        credentials=GlobusCredentials(client_id=UUID(facility.client_id), client_secret=facility.client_secret),
        poll_interval_seconds=3,
    )


def script(text: str, name: str = "test", **fields: Any) -> JobSpec:
    """A small job of a few lines of bash."""
    return JobSpec.model_validate({"name": name, "script": f"#!/bin/bash\n{text}\n", "resources": SMALL, **fields})


def with_attributes(backend: PsikBackend, **changes: Any) -> PsikBackend:
    """The same backend with other attributes; no copy, which a save would write over the block that it is of."""
    return PsikBackend(**dict(backend) | {"attributes": backend.attributes.model_copy(update=changes)})


def rows_of(facility: Facility, handle: JobHandle) -> int:
    """How many Slurm jobs were ever made of a job, once the accounting, which lags, has heard of any after it."""
    later = f"after-{time.time_ns()}"
    known = ""

    def later_is_known() -> bool:
        nonlocal known
        known = facility.sacct("-n", "-P", "-X", "-S", "now-1days", "-o", "JobID,JobName,WorkDir")
        return f"|{later}|" in known and handle.path in known

    queued = facility.as_user("sbatch", "--parsable", "-J", later, "-o", "/dev/null", "--wrap", "true")
    assert queued.returncode == 0, queued.stderr
    wait_until(later_is_known)
    # By its whole path: two tests that use one key have the same stamp.
    return sum(line.endswith(f"|{handle.path}") for line in known.splitlines())


def test_a_job_runs_under_the_blocks_account_and_partition(facility: Facility, backend: PsikBackend) -> None:
    result = run_job(
        backend, script("id -un; pwd; cat in.txt > out.txt", outputs=["out.txt"], files={"in.txt": "größe"})
    )
    user, directory = result.stdout.split()
    assert user == facility.user
    assert directory == f"{result.handle.path}/work"
    assert result.outputs == {"out.txt": "größe".encode()}
    assert result.queue_seconds is not None
    row = account_of(facility, result.handle.native_id, "Account,Partition,Timelimit,JobName")
    assert row == "proj1|debug|00:05:00|test"


def test_a_multi_node_allocation_has_its_steps_and_the_script_goes_on(backend: PsikBackend) -> None:
    spec = script(
        "srun -N2 hostname\nsrun -N2 printenv SLURM_PROCID\ncat\necho after $SLURM_JOB_NUM_NODES\nexit 5"
    )
    spec = spec.replace(resources=ResourceSpec(duration=5, node_count=2, exclusive_node_use=False))
    with pytest.raises(JobFailed) as failed:
        run_job(backend, spec)
    assert failed.value.result is not None
    assert failed.value.result.exit_code == 5
    lines = failed.value.result.stdout.split("\n")
    assert lines[0] == lines[1] != ""
    assert sorted(lines[2:4]) == ["0", "1"]
    assert lines[4:] == ["after 2", ""]


def test_the_job_sees_a_login_and_nothing_of_the_endpoint(facility: Facility, backend: PsikBackend) -> None:
    profile = "mymodule() { echo loaded $1; }"
    text = f"cat > $HOME/.bash_profile <<'END'\n{profile}\nEND"
    done = facility.as_user("bash", "-c", text)
    assert done.returncode == 0, done.stderr
    try:
        spec = JobSpec(
            name="login",
            script="#!/bin/bash -l\nmymodule gcc\necho $HOME; echo $SLURM_JOB_ID; echo $MINE\nenv\n",
            environment={"MINE": "given"},
            resources=SMALL,
        )
        result = run_job(backend, spec)
    finally:
        facility.as_user("bash", "-c", "rm -f $HOME/.bash_profile")
    lines = (Path(result.handle.path) / "log/stdout.1").read_text().splitlines()
    assert lines[0] == "loaded gcc"
    assert lines[1].endswith(facility.user)
    assert lines[2].isdigit()
    assert lines[3] == "given"
    # The endpoint's own process has its login in its environment, as the seed's guide has it.
    assert not [line for line in lines if line.startswith(("GLOBUS", "PREFECT"))]


def test_sbatch_refusals_in_its_own_words_leave_nothing(facility: Facility, backend: PsikBackend) -> None:
    before = set(facility.prefix.iterdir()) if facility.prefix.exists() else set()
    with pytest.raises(SubmitRejected, match="Invalid partition name"):
        submit_job(with_attributes(backend, queue_name="nope"), script("true"))
    with pytest.raises(SubmitRejected, match="Invalid account"):
        submit_job(with_attributes(backend, project_name="proj2"), script("true"))
    with pytest.raises(SubmitRejected, match=r"[Rr]eservation"):
        submit_job(with_attributes(backend, reservation_id="nosuchres"), script("true"))
    assert {path for path in facility.prefix.iterdir() if path.name.isdigit()} <= before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"--gpu-per-node": "4"}, "unrecognized option '--gpu-per-node=4'"),
        ({"--requeue": "true"}, "option '--requeue' doesn't allow an argument"),
        ({"--distribution": "nonsense"}, "Invalid --distribution specification"),
        ({"--gres": "nosuch:1"}, "Invalid generic resource"),
    ],
)
def test_a_usage_error_is_a_refusal_and_not_a_lost_reply(
    facility: Facility, backend: PsikBackend, options: dict[str, str], words: str
) -> None:
    begin = time.monotonic()
    with pytest.raises(SubmitRejected, match=words) as refused:
        submit_job(backend, script("true", "usage", attributes=options))
    assert time.monotonic() - begin < 60, "what is not confirmed is asked about for two minutes"
    assert not refused.value.transient
    assert "usage" not in {record.handle.name for record in list_jobs(backend)}


class Here:
    """The code of the facility in this process, as an endpoint runs it; what it submits is held."""

    def __init__(self, backend: PsikBackend, prefix: Path) -> None:
        self.names: dict[str, Any] = {"__name__": "remote"}
        exec(compile(letter(), "<letter>", "exec"), self.names)
        self.backend, self.prefix = with_attributes(backend, options={"--begin": "now+1hour"}), prefix

    def submit(self, stamp: str, change: Callable[[dict[str, Any]], None] = lambda job: None) -> dict[str, Any]:
        """Submit a job, as our side sends it or changed; its answer."""
        spec = script("true", "held", resources=SMALL)
        job = self.backend.submission(spec, Identity(key=stamp, stamp=stamp, attempt=[1]), {})
        change(job)
        answer = self.names["call"]("submit", {"prefix": str(self.prefix), "jobs": [job]})
        return dict(answer if "error" in answer else answer["jobs"][stamp])


@pytest.fixture
def here(
    facility: Facility, backend: PsikBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Here]:
    """The facility's code in this process; its jobs are canceled at the end."""
    for name, value in facility.slurm.env.items():
        monkeypatch.setenv(name, value)
    yield Here(backend, tmp_path / "psik")
    facility.slurm.run("scancel", "--name=held")


def test_the_environment_of_the_endpoint_adds_no_options(
    facility: Facility, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of these can be taken back by an option on the command line."""
    options = {"SBATCH_ARRAY_INX": "0-2", "SBATCH_WAIT": "1", "SBATCH_EXCLUSIVE": "1", "SBATCH_CLUSTERS": "other"}
    for name, value in options.items():
        monkeypatch.setenv(name, value)
    answer = here.submit("1")
    assert answer["native_id"].isdecimal(), answer
    [warning] = answer["warnings"]
    assert all(name in warning for name in options)
    shown = facility.scontrol("show", "job", answer["native_id"])
    assert "JobState=PENDING Reason=BeginTime" in shown
    assert "ArrayJobId" not in shown
    assert "OverSubscribe=OK" in shown


#: Ways to write an option of sbatch that names another partition than the pinned one, as key and value.
_PARTITIONS = [
    *({name: "high"} for name in ("-p", "--partition", "--part", "--p")),
    *({text: text} for text in ("-phigh", "--partition=high", "--parti=high", "-Hphigh")),
    *({"--comment": text} for text in ("-phigh", "--partition=high")),
    {"-M": "other"},
    {"--clusters": "other"},
    {"--hold": "--hold", "-I": "-phigh"},
]
_PLACES: dict[str, Callable[[dict[str, Any], dict[str, str]], None]] = {
    "backend": lambda job, options: job["backend"].update(attributes=options),
    "spec": lambda job, options: job["spec"]["attributes"].update(options),
    "psik_python": lambda job, options: job["backend"].update(
        attributes={"psik_python": "/usr/bin/python3\n#SBATCH " + " ".join(options.values())}
    ),
    "name": lambda job, options: job["spec"].update(name=" ".join(options)),
    "queue": lambda job, options: job["backend"].update(queue_name="debug " + " ".join(options)),
}


def test_nothing_in_a_payload_runs_outside_of_what_the_site_pins(
    facility: Facility, here: Here, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Whatever is refused is refused; what passes is asked of Slurm: all of it is in the pinned partition."""
    request.addfinalizer(lambda: facility.slurm.ask("scancel", "-u", "root"))  # some wait for a time, or are held
    site = tmp_path / "etc" / "psik.json"
    site.parent.mkdir()
    site.write_text(
        json.dumps({"backends": {"debug": {"type": "slurm", "queue_name": "debug", "project_name": "proj1"}}})
    )
    site.parent.chmod(0o755)
    site.chmod(0o644)
    here.names["SITE_FILE"] = str(site)
    cases = [(place, options) for place in _PLACES for options in _PARTITIONS]
    passed = {"plain": here.submit("1")["native_id"]}
    for number, (place, options) in enumerate(cases, 2):
        answer = here.submit(str(number), lambda job: _PLACES[place](job, dict(options)))  # noqa: B023 - called at once
        if "error" not in answer:
            passed[f"{options} in {place}"] = answer["native_id"]
    assert len(passed) > 1, "names are free"
    for what, native_id in passed.items():
        shown = facility.scontrol("show", "job", native_id)
        assert "Partition=debug " in f"{shown} ".replace("\n", " "), what
        assert "Account=proj1 " in shown, what


def test_a_pending_job_of_a_site_that_names_its_cluster_is_canceled(
    facility: Facility, backend: PsikBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = with_sbatch_ending("true", facility, backend, tmp_path, monkeypatch)
    wrapper = f'#!/bin/bash\nout=$({shutil.which("sbatch")} "$@") || exit\necho "$out on cluster nautilus"\n'
    (tmp_path / "sbatch").write_text(wrapper)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    held = with_attributes(here, options={"--begin": "now+1hour"})
    handle = submit_job(held, script("true", "nautilus"))
    assert str(handle.native_id).isdecimal()
    assert cancel_job(handle, backend=here).state is JobState.canceled
    assert account_of(facility, handle.native_id, "State").startswith("CANCELLED")


def test_options_reach_sbatch_as_they_are(facility: Facility, backend: PsikBackend) -> None:
    held = submit_job(
        with_attributes(backend, options={"--hold": "--hold"}), script("true", attributes={"--nice": "5"})
    )
    poll_until(held, lambda status: "JobHeldUser" in (status.reason or ""))
    shown = facility.scontrol("show", "job", str(held.native_id))
    assert "Requeue=0" in shown
    assert "Nice=5" in shown
    assert cancel_job(held, backend=backend).cause is FailureCause.canceled_by_us


def poll_until(handle: JobHandle, condition: Any, seconds: float = 300) -> Any:
    """Look until a condition holds."""
    deadline = time.monotonic() + seconds
    while True:
        status = poll_job.fn(handle, backend=_BACKENDS[0])
        if condition(status):
            return status
        assert time.monotonic() < deadline, f"still {status}"
        time.sleep(2)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in doubt is asked for longer than a busy machine takes to be in order again."""
    for module in (batches, session):
        monkeypatch.setattr(module, "REPEAT_SECONDS", 900.0)


_BACKENDS: list[PsikBackend] = []


@pytest.fixture(autouse=True)
def known_backend(backend: PsikBackend) -> Iterator[None]:
    """For `poll_until`."""
    _BACKENDS[:] = [backend]
    yield
    _BACKENDS.clear()


def test_a_job_that_never_starts_by_itself_says_why(facility: Facility, backend: PsikBackend) -> None:
    down = submit_job(with_attributes(backend, queue_name="off"), script("true"))
    long = submit_job(backend, script("true", resources=ResourceSpec(duration=600, exclusive_node_use=False)))
    poll_until(down, lambda status: "queue is down" in (status.reason or ""))
    poll_until(long, lambda status: "shorter duration" in (status.reason or ""))
    for handle in (down, long):
        assert cancel_job(handle, backend=backend).state is JobState.canceled
        assert account_of(facility, handle.native_id, "State").startswith("CANCELLED")


def test_our_cancel_frees_the_node_and_says_so_twice(facility: Facility, backend: PsikBackend) -> None:
    handle = submit_job(backend, script("trap '' TERM; echo up; sleep 600 & wait"))
    poll_until(handle, lambda status: status.state is JobState.active)
    assert cancel_job(handle, backend=backend).cause is FailureCause.canceled_by_us
    wait_until(lambda: str(handle.native_id) not in facility.squeue("-h", "-o", "%i").split())
    assert cancel_job(handle, backend=backend).state is JobState.canceled
    assert account_of(facility, handle.native_id, "State").startswith("CANCELLED")


@pytest.mark.parametrize(
    ("options", "state"), [({}, JobState.active), ({"--hold": "--hold"}, JobState.queued)], ids=["running", "held"]
)
def test_a_cancel_from_outside_names_who(
    facility: Facility, backend: PsikBackend, options: dict[str, str], state: JobState
) -> None:
    handle = submit_job(with_attributes(backend, options=options), script("sleep 3000", resources=LONG))
    poll_until(handle, lambda status: status.state is state)
    facility.slurm.ask("scancel", str(handle.native_id))
    # Who it was is looked for in accounting, for a while.
    wait_until(lambda: account_of(facility, handle.native_id, "State") == "CANCELLED by 0")
    with pytest.raises(JobCanceled, match="by user id 0, outside of Prefect") as canceled:
        wait_for_job(handle, backend=backend)
    assert canceled.value.cause is FailureCause.canceled_outside


def test_slurms_time_limit_is_walltime(facility: Facility, backend: PsikBackend) -> None:
    spec = script("echo begin; sleep 600", resources=ResourceSpec(duration=1, exclusive_node_use=False))
    with pytest.raises(JobFailed, match="time limit of 1 min") as failed:
        run_job(backend, spec)
    assert failed.value.cause is FailureCause.walltime
    assert failed.value.result is not None
    assert account_of(facility, failed.value.result.handle.native_id, "State") == "TIMEOUT"


def test_a_lost_reply_and_a_doubled_task_submit_once(facility: Facility, backend: PsikBackend) -> None:
    marker = facility.data / f"ran-{time.time_ns()}"
    facility.globus.order_fault("drop_reply", match="POST /v3/endpoints/*/submit")
    result = run_job(backend, script(f"echo x >> {marker}", "once"))
    assert marker.read_text() == "x\n"
    assert rows_of(facility, result.handle) == 1


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("seconds", [25, 50])
def test_a_submission_that_slurm_did_not_confirm_is_found_again(
    facility: Facility, backend: PsikBackend, seconds: float
) -> None:
    """slurmctld hangs during sbatch: sbatch gives up after 20 s, and Slurm carries it out later.

    50 s is longer than the time after which a submission without a trace is made again, 20 s + 10 s.
    """
    import signal
    import threading

    marker = facility.data / f"ran-{time.time_ns()}"
    run_job(backend, script("true", "warm"))
    facility.daemons.signal("slurmctld", signal.SIGSTOP)
    timer = threading.Timer(seconds, lambda: facility.daemons.signal("slurmctld", signal.SIGCONT))
    timer.start()
    try:
        result = run_job(backend, script(f"echo x >> {marker}", "late"))
    finally:
        timer.join()
    assert marker.read_text() == "x\n"
    assert result.state is JobState.completed
    assert rows_of(facility, result.handle) == 1


def with_sbatch_ending(
    end: str, facility: Facility, backend: PsikBackend, directory: Path, patch: pytest.MonkeyPatch
) -> PsikBackend:
    """Slurm as of this process, and in the directory an sbatch that does its work and then ends like this."""
    real = shutil.which("sbatch")
    (directory / "sbatch").write_text(f'#!/bin/bash\n{real} "$@" > /dev/null\n{end}\n')
    (directory / "sbatch").chmod(0o755)
    for name, value in facility.slurm.env.items():
        patch.setenv(name, value)
    return backend.model_copy(update={"endpoint_id": None, "prefix": str(directory / "psik")})


@pytest.mark.parametrize(
    "end",
    [
        "kill -9 $$",
        'echo "sbatch: error: Batch job submission failed: Unable to contact slurm controller" >&2; exit 1',
    ],
    ids=["killed", "slurmctld killed"],
)
def test_an_sbatch_that_does_not_hear_of_its_work_is_no_refusal(
    facility: Facility, backend: PsikBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Slurm has the job, and nobody has its id: the same submission finds it, and so does a cancel."""
    here = with_sbatch_ending(end, facility, backend, tmp_path, monkeypatch)
    with monkeypatch.context() as killed:
        killed.setattr(batches, "REPEAT_SECONDS", 0.0)
        killed.setenv("PATH", str(tmp_path), prepend=":")
        held = with_attributes(here, options={"--begin": "now+1hour"})  # so that it leaves no trace of its own
        for name, place in {"found": here, "canceled": held}.items():
            with pytest.raises(FacilityError, match="did not confirm"):
                submit_job(place, script("sleep 3000", name, resources=LONG), key=name)
    handle = submit_job(here, script("sleep 3000", "found", resources=LONG), key="found")
    assert rows_of(facility, handle) == 1
    assert cancel_job(handle).state is JobState.canceled
    [record] = [record for record in list_jobs(here) if record.handle.key == "canceled"]
    assert record.handle.native_id is None
    status = cancel_job(record.handle)
    assert status.state is JobState.canceled
    assert account_of(facility, status.handle.native_id, "State").startswith("CANCELLED")


def test_what_sbatch_calls_refused_is_taken_if_slurm_has_it(
    facility: Facility, backend: PsikBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = 'echo "sbatch: error: Words of another version" >&2; exit 1'
    here = with_sbatch_ending(end, facility, backend, tmp_path, monkeypatch)
    with monkeypatch.context() as unheard:
        unheard.setenv("PATH", str(tmp_path), prepend=":")
        handle = submit_job(here, script("sleep 3000", "taken", resources=LONG))
    assert rows_of(facility, handle) == 1
    assert handle.native_id
    assert cancel_job(handle).state is JobState.canceled


def test_a_job_that_began_is_found_by_its_guard_alone(
    facility: Facility, backend: PsikBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm cannot be asked, and a full disk left the file of the process empty."""
    here = with_sbatch_ending("kill -9 $$", facility, backend, tmp_path, monkeypatch)
    with monkeypatch.context() as unheard:
        unheard.setattr(batches, "REPEAT_SECONDS", 0.0)
        unheard.setenv("PATH", str(tmp_path), prepend=":")
        with pytest.raises(FacilityError, match="did not confirm"):
            submit_job(here, script("sleep 3000", "guarded", resources=LONG), key="guarded")
        wait_until(lambda: list((tmp_path / "psik").glob("*/prefect/owner.*")))
        [guard] = (tmp_path / "psik").glob("*/prefect/owner.*")
        [process] = guard.parent.glob("process.1.*")
        process.write_text("")
        (tmp_path / "squeue").write_text("#!/bin/bash\nexit 1\n")
        (tmp_path / "squeue").chmod(0o755)
        handle = submit_job(here, script("sleep 3000", "guarded", resources=LONG), key="guarded")
    assert handle.native_id == str(guard.readlink())
    assert rows_of(facility, handle) == 1
    assert cancel_job(handle).state is JobState.canceled


def test_what_never_reached_slurm_is_canceled_after_a_while(facility: Facility, backend: PsikBackend) -> None:
    """Nothing of it is in the queue or in accounting for longer than a request can be on its way."""
    handle = submit_job(backend, script("sleep 300", "never"))
    assert cancel_job(handle, backend=backend).state is JobState.canceled
    lost = facility.prefix / "9"
    copied = ("cp", "-r", str(facility.prefix / handle.stamp), str(lost))
    facility.slurm.run("runuser", "-u", facility.user, "--", *copied)
    (lost / "status.csv").write_text(f"{time.time()},0,new,\n")
    for path in (lost / "prefect").glob("*.1*"):
        path.unlink()
    (lost / "prefect" / "intent.1").write_text(json.dumps({"time": time.time()}))
    (lost / "prefect" / "none.1").write_text(json.dumps({"time": time.time() - 200}))
    unconfirmed = handle.model_copy(update={"stamp": "9", "native_id": None})
    assert cancel_job(unconfirmed, backend=backend).state is JobState.canceled


def test_many_jobs_share_calls_and_stay_within_the_limit(
    facility: Facility, backend: PsikBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    facility.globus.reset_meter()
    calls: list[tuple[str, int]] = []
    real = GlobusTransport.call

    async def noted(transport: GlobusTransport, operation: str, payload: Any, **options: Any) -> Any:
        calls.append((operation, len(payload.get("jobs", []))))
        return await real(transport, operation, payload, **options)

    monkeypatch.setattr(GlobusTransport, "call", noted)

    @flow
    async def many() -> list[str]:
        results = await asyncio.gather(*(arun_job(backend, script(f"echo {n}", f"job {n}")) for n in range(40)))
        return [result.stdout for result in results]

    assert sorted(int(text) for text in asyncio.run(many())) == list(range(40))
    assert facility.meter()["most_in_10_s"] <= 20
    assert sum(operation == "submit" for operation, _ in calls) < 40
    assert max(jobs for operation, jobs in calls if operation == "status") > 1


def test_map_and_a_second_process_find_the_same_job(facility: Facility, backend: PsikBackend) -> None:
    @flow
    def mapped() -> list[str]:
        specs = [script(f"echo {n}") for n in range(3)]
        return [future.result().stdout for future in run_job.map(unmapped(backend), specs)]

    assert mapped() == ["0\n", "1\n", "2\n"]
    handle = submit_job(backend, script("echo found again"))
    code = "import sys; from prefect_psik import wait_for_job; print(wait_for_job.fn(sys.argv[1]).stdout)"
    done = subprocess.run(
        [sys.executable, "-c", code, handle.model_dump_json()],
        env={**os.environ, **facility.env},  # the worker's own login
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.stdout.strip() == "found again", done.stderr


def test_no_secret_lies_at_the_facility_and_no_pickle_crossed(facility: Facility, backend: PsikBackend) -> None:
    begin = time.time()  # tests of the testbed plant pickles
    result = run_job(backend, script("env"))
    found = subprocess.run(
        ["grep", "-rl", facility.client_secret, str(facility.prefix)], capture_output=True, text=True, check=False
    )
    assert found.stdout == ""
    assert facility.client_secret not in result.stdout
    assert facility.globus.pickles(since=begin) == []
    assert list(facility.globus.messages()), "nothing crossed, so this test shows nothing"


def test_the_files_of_a_job_are_its_owners_alone(backend: PsikBackend) -> None:
    result = run_job(backend, script("true"))
    job = Path(result.handle.path)
    assert oct(job.stat().st_mode & 0o777) == "0o700"
    for private in ("spec.json", "prefect/job.json", "status.csv"):
        assert oct((job / private).stat().st_mode & 0o777) == "0o600"


def test_what_a_failed_run_left_on_slurm_is_no_result_of_the_next(backend: PsikBackend) -> None:
    text = '[ "$jobndx" = 1 ] && { for n in 1 2 3; do echo $n > $n.tiff; done; exit 1; }; echo 4 > 4.tiff'

    @flow
    def recon() -> JobResult:
        spec = script(text, expect=[{"path": "*.tiff", "count": 4}], outputs=["4.tiff"])
        return run_job(backend, spec, retry_on={"script"}, max_runs=2)

    with pytest.raises(MissingOutput) as caught:
        recon()
    assert "1 of 4 match *.tiff (3 more do not count); 1.tiff was written at" in str(caught.value)


def test_directives_of_a_script_are_what_slurm_does(facility: Facility, backend: PsikBackend) -> None:
    """The header of a script as sites document it: account, partition, nodes, time, name."""
    spec = JobSpec(
        script="#!/bin/bash\n#SBATCH -A proj1\n#SBATCH -p high -N 2\n#SBATCH -t 00:03:00\n"
        "#SBATCH --job-name=headed\n#SBATCH --oversubscribe\n"
        "##SBATCH -N 4\nsrun hostname | wc -l\n",
    )
    result = run_job(with_attributes(backend, project_name="proj2"), spec)
    assert result.stdout == "2\n"
    row = account_of(facility, result.handle.native_id, "Account,Partition,Timelimit,JobName,NNodes")
    assert row == "proj1|high|00:03:00|headed|2"


def test_script_that_slurm_could_not_honour_leaves_no_job(facility: Facility, backend: PsikBackend) -> None:
    before = list(facility.prefix.glob("*/status.csv"))
    with pytest.raises(SpecError, match="Line 2 of the script, '#SBATCH --array=0-9'"):
        run_job(backend, JobSpec(script="#!/bin/bash\n#SBATCH --array=0-9\ntrue\n"))
    assert list(facility.prefix.glob("*/status.csv")) == before


def test_submit_dir_is_where_the_script_starts_and_arguments_arrive(backend: PsikBackend) -> None:
    spec = script(
        "cd / && cd $SLURM_SUBMIT_DIR\n"
        'srun bash -c \'cd / && cd $SLURM_SUBMIT_DIR && echo "$0" > result.txt\' "$1"',
        arguments=["two words; $HOME"],
        expect=["result.txt"],
        outputs=["result.txt"],
    )
    assert run_job(backend, spec).outputs == {"result.txt": b"two words; $HOME\n"}


@pytest.mark.parametrize("choice", [{"--mem-per-cpu": "16M"}, {"--mem": "32M"}])
def test_jobs_memory_replaces_the_blocks(facility: Facility, backend: PsikBackend, choice: dict[str, str]) -> None:
    block = backend.model_copy(update={"default_resources": DefaultResources(memory="64M")})
    result = run_job(block, script("true", attributes=choice))
    asked = account_of(facility, result.handle.native_id, "ReqMem")
    assert asked.startswith(next(iter(choice.values()))), asked

"""Cases of a Slurm that fails itself: its daemons hang or end, its nodes go down, its memory runs out."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

from prefect_psik import JobState, ResourceSpec
from prefect_psik.models.causes import FailureCause
from prefect_psik.models.jobs import JobHandle
from tests.outcomes.case import Seen, case
from tests.outcomes.site import Site
from tests.testbed.slurm import can_limit_memory
from tests.unit.reports import judge

HANG_SECONDS = 30.0
HANGS = tuple(f"slurmctld stopped for 30 s during {what}" for what in ("submit", "status", "cancel"))
MEMORY_NODE = "n4"
#: Python that takes more memory than its job has.
GREEDY = "bytearray(400_000_000)"


def _hang(site: Site) -> None:
    """Stop slurmctld for a while, once for all cases that wait for it."""

    def stop() -> None:
        site.slurm.daemons.signal("slurmctld", signal.SIGSTOP)
        threading.Timer(HANG_SECONDS, site.slurm.daemons.signal, ("slurmctld", signal.SIGCONT)).start()

    site.meet("hang", HANGS, stop)


@case(HANGS[0], "completed", exit_code=0, says="^completed$", site="faults")
def hang_submit(site: Site) -> Seen:
    marker = site.data / "ran during submit"
    _hang(site)
    seen = site.run(f"echo once >> '{marker}'")
    assert marker.read_text() == "once\n"
    return seen


@case(HANGS[1], "completed", exit_code=0, says="^completed$", site="faults")
def hang_status(site: Site) -> Seen:
    handle = site.active(site.submit("sleep 75"))
    _hang(site)
    site.forget_snapshots()
    begin, reasons = time.monotonic(), []
    while time.monotonic() - begin < HANG_SECONDS + 5:
        status = site.poll(handle)
        assert status.state is JobState.active, status
        reasons.append(status.reason or "")
        time.sleep(2)
    assert any("squeue" in reason or "timed out" in reason for reason in reasons), reasons
    return site.end(handle)


@case(HANGS[2], "canceled", "canceled_by_us", says="on request", site="faults")
def hang_cancel(site: Site) -> Seen:
    handle = site.active(site.submit("sleep 600"))
    _hang(site)
    return site.seen(site.cancel(handle))


@case("slurmd killed, with requeue", "completed", exit_code=0, says="^completed$", site="faults", phase=1)
def node_killed_requeue(site: Site) -> Seen:
    # The first start outlives its slurmd, and writes psik's line when Slurm has long given the job up.
    script = "if mkdir first; then sleep 55; echo first; else echo second; fi"
    options = {"--requeue": "--requeue", "--nodelist": "n1"}
    handle = site.active(site.submit(script, at=site.at(options=options)))
    site.slurm.daemons.signal("slurmd-n1", signal.SIGKILL)
    threading.Timer(90, site.slurm.start_node, ("n1",)).start()
    result = site.wait(handle)
    assert result.stdout == "second\n", result.stdout
    assert any("2 times" in warning for warning in result.warnings), result.warnings
    return site.seen(result)


@case("slurmd killed, without requeue", "failed", "node_failure", says="node n2 failed", site="faults", phase=1)
def node_killed(site: Site) -> Seen:
    handle = site.active(site.submit("sleep 70; echo late", at=site.at(options={"--nodelist": "n2"})))
    site.slurm.daemons.signal("slurmd-n2", signal.SIGKILL)
    result = site.wait(handle)
    deadline = time.monotonic() + 90
    while "completed" not in site.psik_says(handle):
        assert time.monotonic() < deadline, "the orphan of the killed slurmd wrote no end"
        time.sleep(2)
    later = site.poll(handle)
    assert (later.state, later.cause) == (result.state, result.cause), f"the end has changed: {later}"
    return site.seen(result)


@case("node set down", "failed", "node_failure", says="node n3 failed", site="faults", phase=1)
def node_down(site: Site) -> Seen:
    handle = site.active(site.submit("sleep 600", at=site.at(options={"--nodelist": "n3"})))
    site.ask("scontrol", "update", "nodename=n3", "state=down", "reason=test")
    return site.end(handle)


@case("slurmdbd stopped", "canceled", "canceled_outside", says="user id 0", site="database")
def database_stopped(site: Site) -> Seen:
    before = site.submit("true", at=site.at(options={"--hold": "--hold"}))
    time.sleep(8)  # slurmctld hands its records on in a while
    site.slurm.daemons.stop("slurmdbd")
    during = site.submit("true", at=site.at(options={"--hold": "--hold"}))
    fine = site.submit("exit 4")
    assert site.wait(fine).exit_code == 4
    site.ask("scancel", str(before.native_id), str(during.native_id))
    for handle in (before, during):
        site.forgotten(handle)
    for handle in (before, during):
        status = site.until(handle, lambda status: status.reason)
        assert not status.state.is_final, status
        assert "database" in (status.reason or ""), status
    site.slurm.start()
    told = site.wait(during)
    assert (told.state, told.cause) == (JobState.canceled, FailureCause.canceled_outside), told
    return site.end(before)


def _memory_case(site: Site, script: str, memory: str) -> Seen:
    resources = ResourceSpec(duration=5, memory=memory, exclusive_node_use=False)
    return site.run(script, at=site.at(options={"--nodelist": MEMORY_NODE}), resources=resources)


def _recorded(name: str) -> Seen:
    """What the rules say of a run that was recorded on a Slurm that limits memory."""
    row = ["OUT_OF_MEMORY", "1795392775", "1795392776", "0:125", "n4", "OutOfMemory"]
    facts = {
        "type": "slurm",
        "native_id": "1",
        "alive": False,
        "squeue": row,
        "status": "1.0,1,queued,1\n2.0,1,active,\n3.0,1,failed,-9\n",
    }
    status = judge(facts, JobHandle(prefix="/psik", stamp="1", key="k", native_id="1", type="slurm"))
    seen = Seen(status.state.value, status.cause.value if status.cause else None, status.exit_code, status.message)
    seen.psik, seen.slurm = "failed -9", "OUT_OF_MEMORY 0:125"
    seen.notes.append(f"a recorded row: this machine cannot limit memory ({name})")
    return seen


@case("out of memory: the script", "failed", "out_of_memory", says="memory limit on n4", site="faults", phase=1)
def memory_script(site: Site) -> Seen:
    if not can_limit_memory():
        return _recorded("script")
    return _memory_case(site, f"#!/usr/bin/python3\n{GREEDY}\n", "150M")


@case("out of memory: psik itself", "failed", "out_of_memory", says="memory limit on n4", site="faults", phase=1)
def memory_psik(site: Site) -> Seen:
    if not can_limit_memory():
        return _recorded("psik")
    return _memory_case(site, "true", "8M")


@case(
    "out of memory: a child, the script goes on",
    "completed",
    exit_code=0,
    says="completed",
    site="faults",
    phase=1,
)
def memory_child(site: Site) -> Seen:
    if not can_limit_memory():
        return Seen(
            "completed", exit_code=0, message="completed", notes=["not run: this machine cannot limit memory"]
        )
    seen = _memory_case(site, f"/usr/bin/python3 -c '{GREEDY}'\ntrue", "150M")
    assert any("OUT_OF_MEMORY" in note for note in seen.notes), seen.notes
    return seen


@case(
    "out of memory: a child, the script fails", "failed", "script", 1, says="exit code 1", site="faults", phase=1
)
def memory_child_fails(site: Site) -> Seen:
    if not can_limit_memory():
        return Seen("failed", "script", 1, "exit code 1", notes=["not run: this machine cannot limit memory"])
    seen = _memory_case(site, f"/usr/bin/python3 -c '{GREEDY}' || exit 1", "150M")
    assert any("OUT_OF_MEMORY" in note for note in seen.notes), seen.notes
    return seen


@case("no accounting: exit 3", "failed", "script", 3, says="exit code 3", site="bare")
def bare_exit(site: Site) -> Seen:
    return site.run("exit 3")


@case("no accounting: Slurm's time limit", "failed", "walltime", says="time limit of 1 min", site="bare")
def bare_limit(site: Site) -> Seen:
    return site.run("sleep 600", resources=ResourceSpec(duration=1, exclusive_node_use=False))


@case(
    "no accounting, MinJobAge passed: it ran",
    "canceled",
    "canceled_outside",
    says="outside of Prefect",
    site="bare",
)
def bare_forgotten(site: Site) -> Seen:
    handle = site.submit("echo up > started; sleep 600")
    deadline = time.monotonic() + 60
    while not (Path(handle.path) / "work" / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(1)
    site.ask("scancel", str(handle.native_id))
    site.forgotten(handle)
    return site.end(handle)


@case("no accounting, MinJobAge passed: it never ran", "failed", "lost", says="no longer knows it", site="bare")
def bare_pending(site: Site) -> Seen:
    handle = site.submit("true", at=site.at(options={"--hold": "--hold"}))
    site.ask("scancel", str(handle.native_id))
    site.forgotten(handle)
    return site.end(handle)

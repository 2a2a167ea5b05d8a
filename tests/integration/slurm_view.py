"""What Slurm itself says of jobs that tests know by their names."""

from __future__ import annotations

import time

from tests.integration.local import wait_until
from tests.testbed.facility import Facility

#: States in which a job still holds, or waits for, a node.
LIVE = "PENDING,RUNNING,SUSPENDED,COMPLETING"
_GOING = "PENDING,RUNNING,SUSPENDED"


def live(facility: Facility, name: str) -> dict[str, str]:
    """Native ids of the jobs in the queue whose names begin so, with their states."""
    lines = facility.squeue("-h", "-t", LIVE, "-o", "%i|%T|%j").splitlines()
    found = [line.split("|", 2) for line in lines]
    return {native_id: state for native_id, state, called in found if called.startswith(name)}


def wait_running(facility: Facility, name: str, count: int = 1, seconds: float = 180) -> dict[str, str]:
    """Wait until so many jobs whose names begin so run; returns their ids."""
    wait_until(lambda: list(live(facility, name).values()).count("RUNNING") == count, seconds)
    return live(facility, name)


def accounted(facility: Facility, name: str) -> dict[str, str]:
    """Native ids of all jobs that ever had this name, with their states.

    Accounting lags: it is asked until it knows a job that was submitted only now.
    """
    last = f"last-{time.time_ns()}"
    queued = facility.as_user("sbatch", "-J", last, "-o", "/dev/null", "--wrap", "true")
    assert queued.returncode == 0, queued.stderr

    def accounting(*options: str) -> list[str]:
        # By default it tells of today only, and a test may begin before midnight.
        wanted = ("-n", "-P", "-X", "-S", "now-1days", "-o", "JobID,State,JobName", *options)
        return facility.sacct(*wanted).splitlines()

    wait_until(lambda: accounting("--name", last), 120)
    wait_until(lambda: is_level(facility, *queued_ids(facility, name)), 120)
    found = [line.split("|", 2) for line in accounting()]
    return {native_id: state for native_id, state, called in found if called == name}


def account_of(facility: Facility, native_id: str | None, fields: str) -> str:
    """What sacct says of one job in these fields, once it is level with the queue."""
    assert native_id is not None
    wait_until(lambda: is_level(facility, native_id), 120)
    return facility.sacct("-n", "-P", "-X", "-j", native_id, "-o", fields).strip()


def queued_ids(facility: Facility, name: str) -> list[str]:
    """Native ids of the jobs of this name that Slurm's controller still knows, ended ones, too."""
    lines = facility.squeue("-h", "-t", "all", "-o", "%i|%j").splitlines()
    return [native_id for native_id, _, called in (line.partition("|") for line in lines) if called == name]


def is_level(facility: Facility, *native_ids: str) -> bool:
    """Whether accounting has of these jobs what the queue has.

    It lags. Slurm sends it the begin and the end of a job by two ways, and of a job whose end comes first it has
    a row without name, partition and directory until the begin comes.
    """
    if not native_ids:
        return True
    going = facility.squeue("-h", "-t", _GOING, "-o", "%i").split()
    lines = facility.sacct("-n", "-P", "-X", "-j", ",".join(native_ids), "-o", "JobID,State,WorkDir").splitlines()
    whole = [(native_id, state) for native_id, state, place in (line.split("|", 2) for line in lines) if place]
    level = {native_id for native_id, state in whole if native_id in going or state not in _GOING.split(",")}
    return level.issuperset(native_ids)


def lines_of(facility: Facility, name: str) -> list[str]:
    """What the jobs of this name appended to the file of this name: a line for each start of a script."""
    path = facility.data / name
    return path.read_text().splitlines() if path.exists() else []

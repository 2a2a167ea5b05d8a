"""What Slurm says of a job -> what it means, as tables; the part of `outcome.py` that knows Slurm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from prefect_psik.exceptions import FailureCause
from prefect_psik.models import JobHandle, JobState, JobStatus


class SlurmRow(NamedTuple):
    """One job as squeue or sacct lists it; times are Unix times as text, or `Unknown`."""

    state: str
    start: str
    end: str
    exit_code: str
    nodes: str
    reason: str


#: Ends that Slurm brought about: cause, and what a person should know.
_KILLED: dict[str, tuple[FailureCause, str]] = {
    "TIMEOUT": (
        FailureCause.walltime,
        "Slurm stopped it at its time limit{limit}; ask for a longer duration",
    ),
    "OUT_OF_MEMORY": (
        FailureCause.out_of_memory,
        "it went over its memory limit on {nodes}; ask for more memory",
    ),
    "NODE_FAIL": (
        FailureCause.node_failure,
        "its node {nodes} failed, which is not the script's fault; it can be tried again",
    ),
    "BOOT_FAIL": (
        FailureCause.node_failure,
        "its node {nodes} failed to boot, which is not the script's fault; it can be tried again",
    ),
    "PREEMPTED": (
        FailureCause.preempted,
        "a job of higher priority took its nodes {nodes}; it can be tried again",
    ),
    "DEADLINE": (FailureCause.deadline, "Slurm removed it, because it could not finish before its deadline"),
    "REVOKED": (FailureCause.lost, "it was moved to another cluster of the federation, where nobody looks"),
}

#: Words of slurmstepd and psik in log/console, for where Slurm no longer tells; the state they stand for.
_CONSOLE: tuple[tuple[str, str], ...] = (
    (r"DUE TO TIME LIMIT", "TIMEOUT"),
    (r"DUE TO NODE FAILURE", "NODE_FAIL"),
    (r"DUE TO PREEMPTION", "PREEMPTED"),
    (r"oom[-_ ]kill", "OUT_OF_MEMORY"),
    (r"CANCELLED AT|caught signal", "CANCELLED"),
)


class Pending(NamedTuple):
    """Why a job has not started: in Slurm's words with a hint, and whether it will ever start by itself."""

    reason: str
    stuck: bool


#: Reasons of pending jobs: words of Slurm, what a person can do, whether the job never starts by itself.
_PENDING: tuple[tuple[str, str, bool], ...] = (
    (
        r"PartitionTimeLimit",
        "it asks for more time than the queue allows; cancel it and ask for a shorter duration",
        True,
    ),
    (
        r"PartitionNodeLimit|PartitionConfig",
        "it asks for more nodes than the queue has or allows; cancel it and ask for fewer",
        True,
    ),
    (r"PartitionDown", "the queue is down; wait for its operators, or use another queue", True),
    (r"PartitionInactive", "the queue is inactive; wait for its operators, or use another queue", True),
    (r"DependencyNeverSatisfied", "a job it depends on failed; cancel it", True),
    (r"JobHeld", "it is held; release it with scontrol release", True),
    (
        r"Invalid",
        "its account or quality of service is not valid here; cancel it and mend the backend's block",
        True,
    ),
    (r"BadConstraints", "no node has the features it asks for; cancel it and mend them", True),
    (r"AccountNotAllowed", "its account may not use this queue; cancel it and mend the backend's block", True),
    (
        r"QOSNotAllowed",
        "its quality of service may not use this queue; cancel it and mend the backend's block",
        True,
    ),
    (
        r"^(QOS|Assoc).*(PerJob|MaxWall|WallDuration)",
        "one job may not ask for so much there; cancel it and ask for less",
        True,
    ),
    (
        r"^(QOS|Assoc).*Minutes",
        "its account's hours are used up; cancel it, or ask the project's owner for more",
        True,
    ),
    (r"^QOS", "it is over a limit of its quality of service; it starts once others of that limit end", False),
    (r"^Assoc", "it is over a limit of its account; it starts once others of that limit end", False),
    (r"^BeginTime", "it is not to start before a given time", False),
    (r"^(ReqNodeNotAvail|Nodes required)", "nodes it needs are down, drained or reserved", False),
)


def row_of(facts: Mapping[str, Any]) -> SlurmRow | None:
    """The queue's row, else accounting's."""
    row = facts.get("squeue") or facts.get("sacct")
    return SlurmRow(*row) if row else None


def pending(facts: Mapping[str, Any]) -> Pending | None:
    """Why a job has not started, in Slurm's words with a hint; None if it has, or if there is nothing to say."""
    row = row_of(facts)
    if row is None or row.state != "PENDING" or row.reason in ("", "None"):
        return None
    for words, hint, stuck in _PENDING:
        if re.search(words, row.reason):
            return Pending(f"{row.reason}: {hint}", stuck)
    return Pending(row.reason, False)


def slurm_end(facts: Mapping[str, Any]) -> float | None:
    """When the job ended, by Slurm's clock."""
    row = row_of(facts)
    return float(row.end) if row and row.end.isdigit() else None


def judge_slurm(facts: Mapping[str, Any], handle: JobHandle) -> JobStatus | None:
    """The end that Slurm brought about, or None if it knows of none: then psik's record decides."""
    row = row_of(facts)
    word = row.state.split()[0] if row and row.state else ""
    nodes = row.nodes if row else ""
    if row is None and facts.get("alive") is False:
        console = facts.get("tails", {}).get("console", "")
        word = next((state for pattern, state in _CONSOLE if re.search(pattern, console)), "")
    if word == "CANCELLED":
        by = re.search(r"by (\d+)", row.state) if row else None
        who = f" by user id {by.group(1)}" if by else ""
        return canceled(facts, handle, outside=f"it was canceled{who}, outside of Prefect")
    if word not in _KILLED:
        return None
    cause, text = _KILLED[word]
    limit = f" of {handle.duration} min" if handle.duration else ""
    return ended(handle, JobState.failed, cause, text.format(limit=limit, nodes=nodes or "the node"))


def no_record(facts: Mapping[str, Any], handle: JobHandle) -> JobStatus:
    """Nothing runs any more, Slurm did not stop it, and psik recorded no end: a failure that says so."""
    row = row_of(facts)
    if row is not None and row.state.split()[0] == "FAILED":
        text = f"its batch script failed before the script of the job began (Slurm: {row.exit_code or row.reason})"
        return ended(handle, JobState.failed, FailureCause.launch, text)
    if row is not None:
        text = f"Slurm calls it {row.state}, but psik recorded no end; what became of its script is not known"
    else:
        text = "Slurm no longer knows it, and psik recorded no end; what became of its script is not known"
    return ended(handle, JobState.failed, FailureCause.lost, text)


def canceled(facts: Mapping[str, Any], handle: JobHandle, *, outside: str) -> JobStatus:
    """A canceled job: by us if we asked for it, else as `outside` says."""
    if facts.get("cancel_asked") is not None:
        return ended(handle, JobState.canceled, FailureCause.canceled_by_us, "it was canceled on request")
    return ended(handle, JobState.canceled, FailureCause.canceled_outside, outside)


def ended(
    handle: JobHandle, state: JobState, cause: FailureCause | None, text: str, *, exit_code: int | None = None
) -> JobStatus:
    """A final status."""
    return JobStatus(handle=handle, state=state, cause=cause, message=text, exit_code=exit_code)

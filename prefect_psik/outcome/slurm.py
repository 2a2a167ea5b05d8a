"""What Slurm's states and reasons mean, as tables; the part of `judge` that knows Slurm."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from prefect_psik.models.causes import FailureCause
from prefect_psik.models.jobs import JobHandle, JobState, JobStatus
from prefect_psik.outcome.answers import Facts, SlurmRow
from prefect_psik.outcome.arrival import LAST_SECOND
from prefect_psik.outcome.reservations import held_by

#: How long psik's last line may take to reach the login node after Slurm reports the end of the job.
SHARED_FILE_SYSTEM_SECONDS = 60.0
#: After this time without a record in Slurm's accounting, a job that left the queue counts as lost.
FORGOTTEN_SECONDS = 600.0
#: The clocks of nodes and of Slurm differ by less than this.
LATE_SECONDS = 2.0
#: How long to wait for accounting to say who canceled a job.
WHO_SECONDS = 40.0


#: States in which Slurm itself ended the job: cause and message.
_KILLED: dict[str, tuple[FailureCause, str]] = {
    "TIMEOUT": (
        FailureCause.walltime,
        "Slurm stopped it at its time limit{limit}",
    ),
    "OUT_OF_MEMORY": (
        FailureCause.out_of_memory,
        "it went over its memory limit{on}",
    ),
    "NODE_FAIL": (
        FailureCause.node_failure,
        "its node{nodes} failed, which is not the script's fault",
    ),
    "BOOT_FAIL": (
        FailureCause.node_failure,
        "its node{nodes} failed to boot, which is not the script's fault",
    ),
    "PREEMPTED": (
        FailureCause.preempted,
        "a job of higher priority took its nodes{nodes}",
    ),
    "DEADLINE": (FailureCause.deadline, "Slurm removed it, because it could not finish before its deadline"),
    "REVOKED": (FailureCause.lost, "it was moved to another cluster of the federation, which is not monitored"),
}

#: Final states that do not say how the script ended: psik's record decides.
_ENDED = frozenset({"COMPLETED", "FAILED"})
#: States of a job that has yet to run, or to run again.
_WAITING = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)

#: What slurmstepd and psik write to log/console, and the state it stands for; used when Slurm has no record left.
_CONSOLE: tuple[tuple[str, str], ...] = (
    (r"DUE TO TIME LIMIT", "TIMEOUT"),
    (r"DUE TO NODE FAILURE", "NODE_FAIL"),
    (r"DUE TO PREEMPTION", "PREEMPTED"),
    (r"oom[-_ ]kill", "OUT_OF_MEMORY"),
    (r"CANCELLED AT|caught signal", "CANCELLED"),
)


class Pending(NamedTuple):
    """Why a job has not started: Slurm's reason with a hint, and whether it is stuck until somebody acts."""

    reason: str
    stuck: bool


#: Reasons of pending jobs: Slurm's word for it, what a person can do, whether the job is stuck until then.
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
        "its account or quality of service is not valid here; cancel it and correct the backend's block",
        True,
    ),
    (r"BadConstraints", "no node has the features it asks for; cancel it and correct them", True),
    (r"AccountNotAllowed", "its account may not use this queue; cancel it and correct the backend's block", True),
    (
        r"QOSNotAllowed",
        "its quality of service may not use this queue; cancel it and correct the backend's block",
        True,
    ),
    (
        r"^(QOS|Assoc).*(PerJob|MaxWall|WallDuration)",
        "it asks for more than one job may use there; cancel it and ask for less",
        True,
    ),
    (
        r"^(QOS|Assoc).*Minutes",
        "its account's hours are used up; cancel it, or ask the project's owner for more",
        True,
    ),
    (
        r"^QOS",
        "it is over a limit of its quality of service; it starts once other jobs under that limit end",
        False,
    ),
    (r"^Assoc", "it is over a limit of its account; it starts once other jobs under that limit end", False),
    (r"^BeginTime", "its earliest start time has not come yet", False),
    (r"^(ReqNodeNotAvail|Nodes required)", "nodes it needs are down, drained or reserved", False),
)


def row_of(facts: Facts) -> SlurmRow | None:
    """The queue's row, or else accounting's; only accounting knows who canceled a job."""
    queue, accounted = facts.squeue, facts.sacct
    if queue and accounted and queue.state == "CANCELLED" and accounted.state.startswith("CANCELLED by"):
        queue = None
    return queue or accounted


def pending(facts: Facts) -> Pending | None:
    """Why a job has not started: Slurm's reason with a hint; None if it has, or if Slurm gives no reason."""
    row = row_of(facts)
    if row is None or row.state != "PENDING" or row.reason in ("", "None"):
        return None
    if text := _held(facts, row.reason):
        return Pending(f"{row.reason}: {text}", False)
    for words, hint, stuck in _PENDING:
        if re.search(words, row.reason):
            return Pending(f"{row.reason}: {hint}", stuck)
    return Pending(row.reason, False)


def _held(facts: Facts, reason: str) -> str | None:
    """Which reservation a job waits for, in words."""
    if facts.held is None or not re.search("ReqNodeNotAvail|reserved", reason, re.IGNORECASE):
        return None
    limit = _seconds(facts.held.limit)
    return held_by(facts.held, math.inf if limit is None else limit, facts.now, reason)


def slurm_end(facts: Facts) -> float | None:
    """When the job ended, by Slurm's clock."""
    row = row_of(facts)
    return _unix_time(row.end) if row else None


def _unix_time(text: str) -> float | None:
    time = float(text) if text.isdecimal() else LAST_SECOND + 1
    return time if time <= LAST_SECOND else None


def presence(facts: Facts, *, has_end: bool) -> tuple[bool, str | None]:
    """Decide whether Slurm may still run a job, or run it again; if so, nothing is final.

    A Slurm command that fails says nothing about the job. A job that the queue no longer lists has ended; how it
    ended may be known only to accounting, which lags behind, or does not answer for a while.

    Args:
        facts: Of one job.
        has_end: Whether psik recorded the end of its last start.

    Returns:
        Whether to wait, and what for, unless that is obvious.
    """
    if not facts.asks_who_lives:
        return not has_end, None
    row, alive = row_of(facts), facts.alive
    if row is not None and alive is False:
        if not has_end and _asks_more(row, facts):
            if row.state == "CANCELLED":
                return True, "it was canceled; waiting for Slurm's accounting to say by whom"
            return True, "it failed; waiting for Slurm's accounting to say how"
        return False, None
    if facts.vanished is None:
        return alive is True or facts.native_id is not None or not has_end, facts.squeue_error
    if alive is not True and (has_end or console_state(facts)):
        return False, None
    age = facts.now - facts.vanished
    match facts.accounting:
        case "none":
            return (
                age < SHARED_FILE_SYSTEM_SECONDS,
                "it has left Slurm's queue, and this site keeps no accounting",
            )
        case "answers":
            # Accounting that still lists it as live, or not at all, lags behind; but not for ever.
            text = "it has left Slurm's queue, and Slurm's accounting has not recorded its end yet"
            return age < FORGOTTEN_SECONDS, text
    why = facts.sacct_error or "it was not asked yet"
    return True, f"it has left Slurm's queue, and Slurm's accounting does not answer: {why}"


def _asks_more(row: SlurmRow, facts: Facts) -> bool:
    """Whether to wait a little for accounting to say who canceled a job, or what ended its batch shell."""
    end = _unix_time(row.end)
    failed = row.state == "FAILED" and not (facts.sacct and facts.sacct.state.startswith("FAILED"))
    if not (failed or row.state == "CANCELLED") or facts.cancel_asked is not None or end is None:
        return False
    return facts.now - end < WHO_SECONDS and facts.accounting in ("answers", "unasked")


def is_waiting(facts: Facts) -> bool:
    """Whether a job is in Slurm's queue but not running."""
    row = row_of(facts)
    return row is not None and row.state in _WAITING


def console_state(facts: Facts) -> str:
    """The Slurm state that log/console points to, or an empty string."""
    return next((state for pattern, state in _CONSOLE if re.search(pattern, facts.console)), "")


def judge_slurm(facts: Facts, handle: JobHandle) -> JobStatus | None:
    """The end of a job that Slurm stopped; None if Slurm did not stop it, so that psik's record decides."""
    row = row_of(facts)
    word = row.state.split()[0] if row else ""
    nodes = row.nodes if row else ""
    if word not in (*_KILLED, *_ENDED, "CANCELLED") and facts.asks_who_lives:
        word = console_state(facts)
    if word == "CANCELLED":
        by = re.search(r"by (\d+)", row.state) if row else None
        who = f" by user id {by.group(1)}" if by else ""
        return canceled(facts, handle, outside=f"it was canceled{who}, outside of Prefect")
    if word not in _KILLED:
        return None
    cause, text = _KILLED[word]
    limit = f" of {handle.duration} min" if handle.duration else ""
    nodes = "" if nodes in ("", "None assigned") else f" {nodes}"
    return ended(handle, JobState.failed, cause, text.format(limit=limit, nodes=nodes, on=nodes and f" on{nodes}"))


def outlived(facts: Facts, time: float) -> bool:
    """Whether a line was written after Slurm had ended the job, by processes that Slurm no longer controls."""
    row = row_of(facts)
    end = _unix_time(row.end) if row and row.state.startswith((*_KILLED, "CANCELLED")) else None
    return end is not None and time > end + LATE_SECONDS


def odd_state(state: str) -> str | None:
    """Explain a Slurm state that does not fit a job whose script ended on its own, with whatever exit code."""
    word = state.split()[0] if state else ""
    if word == "OUT_OF_MEMORY":
        return (
            "Slurm reports OUT_OF_MEMORY: one of its processes was killed, and its script kept running for a while"
        )
    return f"Slurm reports {word}, although its script ended on its own" if word in _KILLED else None


def no_record(facts: Facts, handle: JobHandle, *, started: bool) -> JobStatus:
    """The job no longer runs, Slurm did not stop it, and psik recorded no end: a failure that says so."""
    row = row_of(facts)
    console = facts.console.strip()
    last = f": {console.splitlines()[-1].strip()[:300]}" if console else ""
    if row is not None and row.state.startswith("FAILED"):
        reason = row.reason if row.reason not in ("", "None") else f"exit code {row.exit_code}"
        when = "while the script of the job ran" if started else "before the script of the job began"
        text = f"its batch script failed {when}{last or f' (Slurm: {reason})'}"
        return ended(handle, JobState.failed, FailureCause.launch, text)
    if row is not None:
        text = f"Slurm reports {row.state}, but psik recorded no end; what became of its script is unknown{last}"
    else:
        text = f"Slurm no longer knows it, and psik recorded no end; what became of its script is unknown{last}"
    return ended(handle, JobState.failed, FailureCause.lost, text)


def canceled(facts: Facts, handle: JobHandle, *, outside: str) -> JobStatus:
    """A canceled job: by us if we asked for it; if not, `outside` is the message."""
    if facts.cancel_asked is not None:
        return ended(handle, JobState.canceled, FailureCause.canceled_by_us, "it was canceled on request")
    return ended(handle, JobState.canceled, FailureCause.canceled_outside, outside)


def ended(
    handle: JobHandle, state: JobState, cause: FailureCause | None, text: str, *, exit_code: int | None = None
) -> JobStatus:
    """A final status."""
    return JobStatus(handle=handle, state=state, cause=cause, message=text, exit_code=exit_code)


class Usage(NamedTuple):
    """What a job used, as far as accounting knows; memory in bytes, efficiency from 0 to 1."""

    state: str = ""
    elapsed: float | None = None
    nodes: int | None = None
    node_list: str | None = None
    peak_memory: int | None = None
    cpu_efficiency: float | None = None


def usage_of(rows: Sequence[Sequence[str]]) -> Usage:
    """Read sacct's lines of a job and its steps: id, state, elapsed, CPU time, used CPU time, memory, nodes."""
    jobs = [row for row in rows if len(row) == 8 and "." not in row[0]]
    if not jobs:
        return Usage()
    _, state, elapsed, cpu_seconds, used, _, nodes, node_list = jobs[-1]
    peaks = [size for row in rows if len(row) == 8 and (size := _bytes(row[5])) is not None]
    used_seconds = _seconds(used)
    efficiency = None
    if used_seconds is not None and (whole := _number(cpu_seconds)):
        efficiency = min(1.0, used_seconds / whole)
    return Usage(
        state=state,
        elapsed=_number(elapsed),
        nodes=_number(nodes) or None,
        node_list=node_list if node_list not in ("", "None assigned") else None,
        # Slurm samples the memory every 30 s or so: for a short job the value is missing or too low.
        peak_memory=max(peaks, default=0) or None,
        cpu_efficiency=efficiency,
    )


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,12}", text) else None


def _bytes(text: str) -> int | None:
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]*)?)([KMGT]?)", text)
    return int(float(found.group(1)) * 1024 ** " KMGT".index(found.group(2) or " ")) if found else None


def _seconds(text: str) -> float | None:
    """Read `[days-][hours:]minutes:seconds[.fraction]`."""
    found = re.fullmatch(r"(?:([0-9]{1,9})-)?(?:([0-9]{1,9}):)?([0-9]{1,9}):([0-9]{1,9}(?:\.[0-9]+)?)", text)
    if not found:
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds

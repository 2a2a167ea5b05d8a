"""Facts from the facility -> JobStatus: pure functions, the only place that decides what became of a job.

It never defaults to success. Completed needs psik's own completed line and everything that `expect` and
`outputs` name. What cannot be known yet is not final; what stays unknowable is a failure that says so.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any, NamedTuple

from prefect_psik.exceptions import FailureCause
from prefect_psik.launcher import NOT_THE_OWNER
from prefect_psik.models import JobHandle, JobState, JobStatus
from prefect_psik.slurm_outcome import canceled, ended, judge_slurm, no_record, pending, slurm_end

#: psik's exit code for its own timer, for a missing interpreter and for a broken pipe.
PSIK_TROUBLE = "9"
#: How long psik's last line may take to be seen on the login node after Slurm calls the job ended.
SHARED_FILE_SYSTEM_SECONDS = 60.0


class Row(NamedTuple):
    """One line of psik's status.csv."""

    time: float
    jobndx: int
    state: JobState
    info: str


def parse_status(text: str) -> list[Row]:
    """Read psik's status.csv; lines that are truncated or no rows at all are left out."""
    rows = []
    for line in text.splitlines():
        fields = line.split(",", 3)
        try:
            rows.append(Row(float(fields[0]), int(fields[1]), JobState(fields[2]), fields[3].strip()))
        except (ValueError, IndexError):
            continue
    return rows


def rows_of_run(rows: list[Row], jobndx: int, refused: int = 0) -> list[Row]:
    """Select what one run wrote.

    psik's own cancel writes run number 0, which then stands for the run submitted last. A second Slurm
    job of the same run that the launcher's guard refused wrote a line when it began and one when it ended;
    neither counts.
    """
    selected: list[Row] = []
    current = 0
    for row in rows:
        if row.state is JobState.queued:
            current = row.jobndx
        if row.jobndx == jobndx or (row.jobndx == 0 and row.state is JobState.canceled and current == jobndx):
            selected.append(row)
    for _ in range(refused):
        ends = [
            n for n, row in enumerate(selected) if row.state is JobState.failed and row.info == str(NOT_THE_OWNER)
        ]
        if not ends:
            break
        begins = [n for n in range(ends[0]) if selected[n].state is JobState.active]
        for n in (ends[0], *begins[-1:]):
            del selected[n]
    return selected


def judge(facts: Mapping[str, Any], handle: JobHandle) -> JobStatus:
    """Decide the state of a job, and if it is final, the cause.

    Args:
        facts: Of one job, as `remote.status` gathers them.
        handle: Of the run that is looked at.
    """
    if facts.get("missing"):
        return ended(
            handle,
            JobState.failed,
            FailureCause.lost,
            f"its directory {handle.path} is gone, so nothing is known of its end",
        )
    rows = rows_of_run(parse_status(facts["status"]), handle.jobndx, facts.get("refused", 0))
    times = _times(rows)
    native = facts.get("native_id")
    if native is not None and native != handle.native_id:
        handle = handle.model_copy(update={"native_id": native})
    final = _final_row(rows)
    slurm = judge_slurm(facts, handle) if facts.get("type") == "slurm" else None
    if facts.get("alive", final is None) is not False:
        # Somebody still has it to run, or may have: not final, whatever psik wrote before.
        why = pending(facts)
        reason = why.reason if why else facts.get("squeue_error")
        return JobStatus(
            handle=handle, state=_live_state(rows), reason=reason, stuck=why is not None and why.stuck, **times
        )
    if slurm is not None and (final is None or final.state is JobState.failed):
        status = slurm  # Slurm killed it; what psik saw of that is only the effect
    elif final is not None:
        status = _from_psik(final, facts, handle)
    elif facts.get("type") != "slurm":
        status = _gone(facts, handle, started="started" in times)
    elif _may_come_late(facts):
        return JobStatus(handle=handle, state=_live_state(rows), **times)
    else:
        status = no_record(facts, handle)
    end = final.time if final else slurm_end(facts)
    return status.model_copy(update={**times, "ended": end})


def _may_come_late(facts: Mapping[str, Any]) -> bool:
    """Whether psik's last line may still be on its way through a shared file system."""
    end = slurm_end(facts)
    return end is not None and float(facts.get("now", 0.0)) - end < SHARED_FILE_SYSTEM_SECONDS


def _times(rows: list[Row]) -> dict[str, float]:
    queued = [row.time for row in rows if row.state is JobState.queued]
    active = [row.time for row in rows if row.state is JobState.active]
    return {
        **({"submitted": queued[-1]} if queued else {}),
        **({"started": active[-1]} if active else {}),
    }


def _final_row(rows: list[Row]) -> Row | None:
    """The first end after the last start: a requeued job starts again, and a late cancel changes no end."""
    begin = max((n for n, row in enumerate(rows) if row.state is JobState.active), default=-1)
    return next((row for row in rows[begin + 1 :] if row.state.is_final), None)


def _live_state(rows: list[Row]) -> JobState:
    states = {row.state for row in rows}
    for state in (JobState.active, JobState.queued):
        if state in states:
            return state
    return JobState.new


def _from_psik(final: Row, facts: Mapping[str, Any], handle: JobHandle) -> JobStatus:
    if final.state is JobState.canceled:
        return _canceled(facts, handle)
    if final.state is JobState.completed:
        missing = [
            glob for wanted in ("expect", "outputs") for glob, count in facts.get(wanted, {}).items() if count == 0
        ]
        if missing:
            text = f"its script ended well, but nothing matches {', '.join(missing)}"
            status = ended(handle, JobState.failed, FailureCause.missing_output, text, exit_code=0)
            return status.model_copy(update={"missing": missing})
        return ended(handle, JobState.completed, None, "completed", exit_code=0)
    console = facts.get("tails", {}).get("console", "")
    if final.info == PSIK_TROUBLE and "timed out after" in console:
        minutes = f"{handle.duration} min" if handle.duration else "the requested duration"
        text = f"it was stopped at its time limit of {minutes}; ask for a longer duration"
        return ended(handle, JobState.failed, FailureCause.walltime, text)
    try:
        code = int(final.info)
    except ValueError:
        text = f"psik could not start its script: {final.info.removeprefix('psik.hot_start error: ')}"
        return ended(handle, JobState.failed, FailureCause.launch, text)
    if final.info == PSIK_TROUBLE and console.strip():
        text = f"psik stopped it with code 9: {console.strip().splitlines()[-1]}"
        return ended(handle, JobState.failed, FailureCause.launch, text)
    text = f"its script ended with exit code {code}" if code >= 0 else f"its script was killed by {_signal(-code)}"
    return ended(handle, JobState.failed, FailureCause.script, text, exit_code=code)


def _gone(facts: Mapping[str, Any], handle: JobHandle, *, started: bool) -> JobStatus:
    """Nothing of the job is alive, and psik wrote no end."""
    if facts.get("cancel_asked") is not None:
        return _canceled(facts, handle)
    console = facts.get("tails", {}).get("console", "")
    if "caught signal" in console:
        text = "it was stopped by a signal from outside of Prefect"
        return ended(handle, JobState.canceled, FailureCause.canceled_outside, text)
    when = "while it ran" if started else "before its script began"
    text = (
        f"its processes vanished {when} without recording an end: they were killed, or the machine was restarted"
    )
    return ended(handle, JobState.failed, FailureCause.lost, text)


def _canceled(facts: Mapping[str, Any], handle: JobHandle) -> JobStatus:
    return canceled(facts, handle, outside="it was canceled through psik, outside of Prefect")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

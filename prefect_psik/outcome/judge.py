"""Turn facts from the facility into a JobStatus: pure functions, the only code that decides what became of a job.

It never defaults to success. A job is completed only if psik recorded that, and if everything that `expect` and
`outputs` name was found, once that has been checked: `may_lack` says when it must be. While the outcome is still
unknown, the status is not final; if it stays unknown, the job failed, and the message says so.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from prefect_psik.models.causes import FailureCause
from prefect_psik.models.jobs import JobHandle, JobState, JobStatus
from prefect_psik.outcome.answers import Facts
from prefect_psik.outcome.arrival import LAST_SECOND
from prefect_psik.outcome.results import in_words, unmet
from prefect_psik.outcome.signals import after_warning, by_signal, signal_name
from prefect_psik.outcome.slurm import (
    LATE_SECONDS,
    SHARED_FILE_SYSTEM_SECONDS,
    canceled,
    ended,
    is_waiting,
    judge_slurm,
    no_record,
    odd_state,
    outlived,
    pending,
    presence,
    row_of,
    slurm_end,
)
from prefect_psik.spec.launcher import CANCELED, NOT_THE_OWNER

#: psik's exit code for its own timer, for a missing interpreter and for a broken pipe.
PSIK_TROUBLE = "9"
#: Exit codes of a shell that need an explanation.
_EXIT_HINTS = {
    126: ": one of its commands, or its interpreter, cannot be executed",
    127: ": one of its commands, or its interpreter, was not found",
}


class Row(NamedTuple):
    """One line of psik's status.csv."""

    time: float
    jobndx: int
    state: JobState
    info: str


def parse_status(text: str) -> list[Row]:
    """Read psik's status.csv; malformed lines, and lines that are cut off, are left out."""
    rows = []
    for line in text.split("\n")[:-1]:  # the text after the last newline is a line still being written
        fields = line.split(",", 3)
        with contextlib.suppress(ValueError, IndexError):
            row = Row(float(fields[0]), int(fields[1]), JobState(fields[2]), fields[3].strip())
            if 0 <= row.time <= LAST_SECOND:
                rows.append(row)
    return rows


def rows_of_run(rows: list[Row], jobndx: int, refused: int = 0) -> list[Row]:
    """Select the rows of one job run.

    psik's own cancel writes run number 0, which means the run submitted last. If the launcher's guard refused a
    second Slurm job of the same run, that job wrote one line when it began and one when it ended; neither counts.
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


def judge(facts: Facts, handle: JobHandle) -> JobStatus:
    """Decide the state of a job, and if it is final, the cause.

    Args:
        facts: Of one job, as `remote.status` gathers them.
        handle: Of the job run in question.
    """
    if facts.missing:
        return _without_directory(facts, handle)
    rows = rows_of_run(parse_status(facts.status), handle.jobndx, facts.refused)
    times: dict[str, Any] = _times(rows) | _nodes(facts)
    if facts.native_id is not None:
        handle = handle.model_copy(update={"native_id": facts.native_id})
    slurm = facts.type == "slurm"
    final = _final_row(rows, slurm_end(facts))
    waits, why = presence(facts, has_end=final is not None) if slurm else (_is_alive(facts, final), None)
    if waits or (final is None and _may_come_late(facts)):
        return _not_final(facts, handle, rows, why).model_copy(update=times)
    killed = judge_slurm(facts, handle) if slurm else None
    if killed is not None and (final is None or final.state is JobState.failed or outlived(facts, final.time)):
        status = killed  # Slurm ended it; what psik saw of that is only the effect
        final = None if final and outlived(facts, final.time) else final
    elif final is not None:
        status = _from_psik(final, facts, handle)
    elif slurm:
        began = "started" in times
        status = by_signal(facts, handle, started=began) or no_record(facts, handle, started=began)
    else:
        status = _gone(facts, handle, started="started" in times)
    status = after_warning(status, facts)
    end = final.time if final else slurm_end(facts)
    return status.model_copy(update={**times, "ended": end, "warnings": _remarks(status, facts, rows)})


def _without_directory(facts: Facts, handle: JobHandle) -> JobStatus:
    gone = f"its directory {handle.path} no longer exists"
    row, alive = row_of(facts), facts.alive if facts.asks_who_lives else False
    unheard = alive is None and (facts.vanished is None or facts.accounting in ("silent", "unasked"))
    if alive or unheard:
        state = JobState.active if row and not is_waiting(facts) else JobState.queued
        still = (
            "Slurm still has the job: cancel it" if alive else "Slurm does not say whether it still has the job"
        )
        return JobStatus(handle=handle, state=state, reason=f"{gone}, but {still}")
    killed = judge_slurm(facts, handle)
    if killed is not None:
        return killed.model_copy(update={"ended": slurm_end(facts), "warnings": [f"In addition, {gone}."]})
    says = f" (Slurm reports {row.state})" if row else ""
    text = f"{gone}, so how it ended is unknown{says}"
    return ended(handle, JobState.failed, FailureCause.lost, text)


def _is_alive(facts: Facts, final: Row | None) -> bool:
    # While it is, or may be, queued or running, nothing is final, whatever psik wrote before.
    return facts.alive is not False if facts.asks_who_lives else final is None


def _not_final(facts: Facts, handle: JobHandle, rows: list[Row], why: str | None) -> JobStatus:
    wait = pending(facts)
    reason = wait.reason if wait else why
    state = _live_state(rows)
    started = max((row.time for row in rows if row.state is JobState.active), default=None)
    if started is not None and is_waiting(facts) and facts.squeue_time > started:
        state = JobState.queued
        reason = f"{reason or 'waiting'}; Slurm will start it again, with new logs"
    return JobStatus(handle=handle, state=state, reason=reason, stuck=wait is not None and wait.stuck)


def _remarks(status: JobStatus, facts: Facts, rows: list[Row]) -> list[str]:
    """Warnings: what a person should know besides the outcome."""
    remarks = list(status.warnings)
    starts = sum(row.state is JobState.active for row in rows)
    if starts > 1 and facts.type == "slurm":
        remarks.append(f"Slurm started it {starts} times; the logs are from the last start only.")
    row = row_of(facts)
    odd = odd_state(row.state) if row and status.state is JobState.completed else None
    return [*remarks, *([f"{odd}."] if odd else [])]


def _may_come_late(facts: Facts) -> bool:
    """Whether psik's last line may still be on its way through a shared file system."""
    row, end = row_of(facts), slurm_end(facts)
    ended_well = row is not None and row.state.startswith("COMPLETED")
    return ended_well and end is not None and facts.now - end < SHARED_FILE_SYSTEM_SECONDS


def _times(rows: list[Row]) -> dict[str, float]:
    queued = [row.time for row in rows if row.state is JobState.queued]
    active = [row.time for row in rows if row.state is JobState.active]
    return {
        **({"submitted": queued[-1]} if queued else {}),
        **({"started": active[-1]} if active else {}),
    }


def _nodes(facts: Facts) -> dict[str, Any]:
    """The number of nodes and their names, from the launcher's line `2 n[1-2]`."""
    words = re.fullmatch(r"([0-9]{1,9})(?: (.*))?", facts.nodes or "")
    return {"nodes": int(words[1]), "node_list": words[2] or None} if words else {}


def _final_row(rows: list[Row], slurm_ended: float | None) -> Row | None:
    """The end of the last start: a requeued job starts again, and a late cancel changes no end."""
    starts = [n for n, row in enumerate(rows) if row.state is JobState.active]
    finals = [row for row in rows[max(starts, default=-1) + 1 :] if row.state.is_final]
    if len(starts) > 1:
        # Processes of an earlier start that lost Slurm may still record their end after the last start began.
        latest = float("inf") if slurm_ended is None else slurm_ended + LATE_SECONDS
        own = [row for row in finals if row.state is not JobState.canceled and row.time <= latest]
        if own:
            return own[-1]
    return finals[0] if finals else None


def _live_state(rows: list[Row]) -> JobState:
    states = {row.state for row in rows}
    for state in (JobState.active, JobState.queued):
        if state in states:
            return state
    return JobState.new


def _from_psik(final: Row, facts: Facts, handle: JobHandle) -> JobStatus:
    never_began = final.info == str(CANCELED) and facts.cancel_asked is not None
    if final.state is JobState.canceled or never_began:
        return _canceled(facts, handle)
    if final.state is JobState.completed:
        well = ended(handle, JobState.completed, None, "completed", exit_code=0)
        missing = unmet(facts.found or [])
        return lacking(well, missing) if missing else well
    console = facts.console
    if final.info == PSIK_TROUBLE and "timed out after" in console:
        minutes = f"{handle.duration} min" if handle.duration else "the requested duration"
        text = f"it was stopped at its time limit of {minutes}"
        return ended(handle, JobState.failed, FailureCause.walltime, text)
    if not re.fullmatch("-?[0-9]{1,9}", final.info):
        text = f"psik could not start its script: {final.info.removeprefix('psik.hot_start error: ')}"
        return ended(handle, JobState.failed, FailureCause.launch, text)
    if final.info == PSIK_TROUBLE and console.strip():
        text = f"psik stopped it with code 9: {console.strip().splitlines()[-1]}"
        return ended(handle, JobState.failed, FailureCause.launch, text)
    code = int(final.info)
    text = f"its script ended with exit code {code}{_EXIT_HINTS.get(code, '')}"
    if code < 0:
        text = f"its script was killed by {signal_name(-code)}{_sent(-code, facts)}"
    return ended(handle, JobState.failed, FailureCause.script, text, exit_code=code)


def lacking(status: JobStatus, missing: Sequence[tuple[str, str]]) -> JobStatus:
    """Turn a job that ended well into a failed one, because some of its results are missing.

    Args:
        status: Of the job.
        missing: Entries of `expect` and `outputs`, each with a sentence.
    """
    text = f"its script succeeded, but {in_words([sentence for _, sentence in missing])}"
    changes = {"state": JobState.failed, "cause": FailureCause.missing_output, "message": text}
    return status.model_copy(update={**changes, "missing": [path for path, _ in missing]})


def may_lack(status: JobStatus, facts: Facts) -> bool:
    """Whether the outcome depends on the job's results, so that `remote.check` has to verify them."""
    return status.exit_code == 0 and facts.to_check


def _gone(facts: Facts, handle: JobHandle, *, started: bool) -> JobStatus:
    """No process of the job is alive, and psik recorded no end."""
    if facts.cancel_asked is not None:
        return _canceled(facts, handle)
    console = facts.console
    if "caught signal" in console:
        text = "it was stopped by a signal from outside of Prefect"
        return ended(handle, JobState.canceled, FailureCause.canceled_outside, text)
    when = "while it ran" if started else "before its script began"
    text = (
        f"its processes vanished {when} without recording an end: they were killed, or the machine was restarted"
    )
    return ended(handle, JobState.failed, FailureCause.lost, text)


def _canceled(facts: Facts, handle: JobHandle) -> JobStatus:
    return canceled(facts, handle, outside="it was canceled through psik, outside of Prefect")


def _sent(number: int, facts: Facts) -> str:
    """Where the signal that killed a script came from, if the batch shell got it."""
    sent = signal_name(number) in facts.signals
    return ", which was sent to the job from outside and which it does not handle" if sent else ""

"""How signals from outside change the outcome: what caused the end, and whether the work is to be continued."""

from __future__ import annotations

import re
import signal

from prefect_psik.models.causes import FailureCause
from prefect_psik.models.jobs import JobHandle, JobState, JobStatus
from prefect_psik.outcome.answers import Facts
from prefect_psik.outcome.slurm import canceled, ended, row_of

#: Signals that come from outside: a faulty process does not raise them itself, and if Slurm sends them, its state
#: says so.
_FROM_OUTSIDE = frozenset(
    {
        *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGTERM),
        *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGXCPU),
    }
)


def signal_name(number: int) -> str:
    """The name of a signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def by_signal(facts: Facts, handle: JobHandle, *, started: bool) -> JobStatus | None:
    """The end of a job whose batch shell (psik) was ended by a signal; None if it was not."""
    number = _batch_shell_ended_by(facts)
    if number is None:
        return None
    if number == signal.SIGKILL:
        text = "its batch shell was killed by SIGKILL from outside, so what became of its script is unknown"
        return ended(handle, JobState.failed, FailureCause.lost, text)
    what = "script" if started else "job, before its script began,"
    outside = f"its {what} was ended by {signal_name(number)}, sent from outside of Prefect"
    return canceled(facts, handle, outside=outside)


def _batch_shell_ended_by(facts: Facts) -> int | None:
    row = row_of(facts)
    if row is None or not row.state.startswith("FAILED"):
        return None
    caught = re.search(r"caught signal ([0-9]+)", facts.console)
    # Only accounting has the exit code.
    code = re.fullmatch(r"0:([0-9]+)", (facts.sacct or row).exit_code)
    number = int((caught or code or ["", "0"])[1])
    return number if number in _FROM_OUTSIDE else None


def after_warning(status: JobStatus, facts: Facts) -> JobStatus:
    """Judge the end of a job that was warned, with `warn_before` or `--signal`.

    After the warning, exit code 0 means that the work is done, provided that `expect` and `outputs` are complete;
    any other exit code means that the work is to be continued. So does reaching the time limit.

    Args:
        status: The outcome without regard to the warning.
        facts: Of the job; `signals` are those that its script received, `warning` is the one asked for.
    """
    if facts.warning is None:
        return status
    name = facts.warning.name
    number = _batch_shell_ended_by(facts)
    if number is not None and signal_name(number) == name:
        text = f"its warning ({name}) came before its script could receive it: its work is to be continued"
        changes = {
            "state": JobState.failed,
            "cause": FailureCause.walltime,
            "message": text,
            "to_be_continued": True,
        }
        return status.model_copy(update=changes)
    if name not in facts.signals:
        return status
    when = f"{name}, {facts.warning.seconds} s before its time limit"
    code = status.exit_code
    if status.cause is FailureCause.walltime:
        text = f"{status.message}, although it was warned ({when}): its work is to be continued"
        return status.model_copy(update={"message": text, "to_be_continued": True})
    if status.cause is FailureCause.script and code is not None and code < 0 and signal_name(-code) == name:
        text = f"its script does not handle the warning ({when}) and was killed by it"
        return status.model_copy(update={"message": text})
    if status.cause is FailureCause.missing_output or (status.cause is FailureCause.script and (code or 0) > 0):
        text = f"its script stopped with exit code {code} after its warning ({when}): its work is to be continued"
        changes = {"cause": FailureCause.walltime, "message": text, "to_be_continued": True}
        return status.model_copy(update=changes)
    if status.state is JobState.completed and not facts.to_check:
        text = (
            f"It was warned ({when}) and ended with exit code 0, which counts as done. List its results in "
            "expect, or let its script exit with another code when it stops early."
        )
        return status.model_copy(update={"warnings": [*status.warnings, text]})
    return status

"""Run Slurm's commands and read their output."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from typing import Any

from prefect_psik.remote.files import _user
from prefect_psik.remote.job_directory import _rows
from prefect_psik.remote.wire import Trouble

COMMAND_SECONDS = 30.0
#: State, start, end, exit code, nodes and reason of a job.
ROW_FIELDS = 6
#: How sacct says that this site keeps no accounting, which is not an error.
NO_ACCOUNTING = re.compile(
    r"accounting storage is disabled|not running a supported accounting_storage|sacct is not on"
)
#: Slurm's commands read options from these, which would then apply to jobs that did not ask for them.
OPTION_VARIABLES = re.compile("(SBATCH|SLURM|SQUEUE|SACCT|SCANCEL|SCONTROL)_")
#: Of these, the ones that say where Slurm is and how to log in.
REACH_VARIABLES = re.compile("SLURM_(CONF|CONF_SERVER|JWT|SACK_.*)$")
#: Slurm's states that end a job; all others are live.
SLURM_FINAL = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    ]
)


def _slurm_environment() -> dict[str, str]:
    """The environment for Slurm's commands, without the options that they would read from it."""
    return {
        name: value
        for name, value in os.environ.items()
        if not OPTION_VARIABLES.match(name) or REACH_VARIABLES.match(name)
    }


def _slurm(*command: str, script: str | None = None, seconds: float = COMMAND_SECONDS) -> tuple[bool, str]:
    """Run one of Slurm's commands; returns whether it succeeded, and what it printed.

    With a script as its input, stderr is included, since sbatch answers there.
    """
    environment = {**_slurm_environment(), "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            input=script or "",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            env=environment,
        )
    except FileNotFoundError:
        return False, f"{command[0]} is not on the PATH of the endpoint on {socket.gethostname()}"
    except subprocess.TimeoutExpired:
        return False, f"{command[0]} did not answer within {seconds:.0f} s"
    if done.returncode:
        return False, (done.stderr.strip() or f"{command[0]} ended with {done.returncode}")[-1000:]
    return True, done.stdout if script is None else done.stderr + done.stdout


def _rows_by_id(text: str) -> dict[str, list[str]]:
    """Read lines of `id|state|start|end|exit code|nodes|reason`."""
    rows = {}
    for line in text.splitlines():
        fields = line.strip().split("|", 6)
        if len(fields) == ROW_FIELDS + 1 and fields[0].isdecimal() and fields[1].strip():
            rows[fields[0]] = fields[1:]
    return rows


def _ask_squeue(*which: str) -> tuple[bool, str]:
    return _slurm("squeue", "-h", "-t", "all", *which, "-o", "%i|%T|%S|%e||%N|%r")


def _ask_sacct(native_ids: list[str]) -> tuple[bool, str]:
    fields = "JobID,State,Start,End,ExitCode,NodeList,Reason"
    return _slurm("sacct", "-n", "-P", "-X", "-j", ",".join(native_ids), "-o", fields)


def _has_ended(row: list[str] | None) -> bool:
    return row is not None and row[0].split()[0] in SLURM_FINAL


def _is_row(row: Any) -> bool:
    """Whether this is a job as `_rows_by_id` reads it."""
    whole = isinstance(row, list) and len(row) == ROW_FIELDS and all(isinstance(field, str) for field in row)
    return whole and bool(row[0].strip())


def _find_in_slurm(base: str, since: float) -> str | None:
    """Look for a job of this directory that was submitted since then, in the queue and in accounting.

    Raises:
        Trouble: Slurm does not answer, so whether there is one is unknown.
    """
    taken = {row[3] for row in _rows(base) if row[2] == "queued"}
    ok, listed = _slurm("squeue", "-h", "-t", "all", "-u", _user(), "-o", "%i|%Z")
    if not ok:
        raise Trouble("busy", f"squeue failed, so it is unknown whether job {base} was submitted: {listed}")
    found = [line.strip().split("|") for line in listed.splitlines()]
    begin = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since - 60))
    which = ("-u", _user(), "-S", begin)
    ok, accounted = _slurm("sacct", "-n", "-P", "-X", *which, "-o", "JobID,WorkDir,State,Start")
    if not ok and not NO_ACCOUNTING.search(accounted):
        raise Trouble("busy", f"sacct failed, so it is unknown whether job {base} was submitted: {accounted}")
    for line in accounted.splitlines() if ok else []:
        fields = line.strip().rsplit("|", 2)
        # A job that sbatch refused may be listed too: failed, and never started.
        if len(fields) == 3 and not (fields[1].startswith("FAILED") and not fields[2].isdecimal()):
            found.append(fields[0].split("|", 1))
    return next(
        (
            row[0]
            for row in found
            if len(row) == 2 and row[1] == base and row[0].isdecimal() and row[0] not in taken
        ),
        None,
    )


def _submit_limit_is_zero(account: str | None, qos: str | None) -> bool:
    """Whether this user may not have a single job in the queue; False where Slurm does not show its limits."""
    which = [f"users={_user()}"]
    which += [f"accounts={account}"] if account else []
    which += [f"qos={qos}", "flags=assoc,qos"] if qos else ["flags=assoc"]
    ok, text = _slurm("scontrol", "-o", "show", "assoc_mgr", *which)
    lines = text.splitlines() if ok else []
    ours = [line for line in lines if account or "Account=" not in line or " DefAssoc=Yes " in line]
    return any(re.search(r"SubmitJobs\w*=0\(", line) for line in ours)


def _slurm_message_seconds() -> float:
    """Slurm's MessageTimeout, after which nobody may still carry out a request."""
    ok, text = _slurm("scontrol", "show", "config")
    found = re.search(r"MessageTimeout\s*=\s*(\d+)", text) if ok else None
    return float(found.group(1)) if found else 100.0

"""Slurm's commands, and what they said last, shared by all callers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import time
from typing import Any

from prefect_psik.remote.directory import _rows
from prefect_psik.remote.files import _lock_file, _read_json, _try_lock, _user, _write_whole
from prefect_psik.remote.payload import Trouble

#: Slurm is asked about all jobs of this user at once, and not more often than this.
SQUEUE_SECONDS = 15.0
SACCT_SECONDS = 60.0
COMMAND_SECONDS = 30.0
#: What the clocks of login nodes differ by, at most.
CLOCK_SECONDS = 600.0
#: State, start, end, exit code, nodes and reason of a job.
ROW_FIELDS = 6
#: Ended jobs whose row in accounting is kept for all callers; those that were asked for first go first.
SACCT_ROWS = 5000
#: How sacct says that this site keeps no accounts, which is no trouble.
NO_ACCOUNTING = re.compile(
    r"accounting storage is disabled|not running a supported accounting_storage|sacct is not on"
)
#: Reasons of pending jobs behind which a reservation may stand.
RESERVED = re.compile("ReqNodeNotAvail|[Rr]eserved")
#: What is kept of a reservation.
RESERVATION_FIELDS = re.compile(r"(?<!\S)(?:ReservationName|StartTime|EndTime|Nodes|Flags)=\S*")
#: Slurm's commands read options from these, which would count for jobs that do not ask for them.
OPTION_VARIABLES = re.compile("(SBATCH|SLURM|SQUEUE|SACCT|SCANCEL|SCONTROL)_")
#: Of these, where Slurm is and the login there.
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
    """The environment of Slurm's commands: all but the options that they would read from it."""
    return {
        name: value
        for name, value in os.environ.items()
        if not OPTION_VARIABLES.match(name) or REACH_VARIABLES.match(name)
    }


def _slurm(*command: str, script: str | None = None) -> tuple[bool, str]:
    """Run one of Slurm's commands; returns whether it succeeded, and what it printed.

    With a script as its input, what it says on stderr counts too: there sbatch answers.
    """
    environment = {**_slurm_environment(), "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            input=script or "",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_SECONDS,
            env=environment,
        )
    except FileNotFoundError:
        return False, f"{command[0]} is not on the PATH of the endpoint on {socket.gethostname()}"
    except subprocess.TimeoutExpired:
        return False, f"{command[0]} did not answer within {COMMAND_SECONDS:.0f} s"
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


def _shared_queue(prefix: str) -> dict[str, Any]:
    """What squeue said last, renewed by one caller for all.

    Returns:
        `{"time", "rows", "error", "held"}`: after an error the rows are those of the last answer. `held` has what
        may keep pending jobs from their start, by their ids.
    """
    path = os.path.join(prefix, ".locks", "squeue.json")
    nothing: dict[str, Any] = {"time": 0.0, "rows": {}, "error": None}
    with _lock_file(f"{path}.lock") as handle:
        known = _shared(path, nothing)
        if time.time() - known["time"] < SQUEUE_SECONDS or not _try_lock(handle):
            return known
        known = _shared(path, nothing)  # another caller may have renewed it meanwhile
        if time.time() - known["time"] < SQUEUE_SECONDS:
            return known
        begin = time.time()
        ok, text = _ask_squeue("-u", _user())
        rows = _rows_by_id(text) if ok else known["rows"]
        fresh = {"time": begin, "rows": rows, "error": None if ok else text, "held": _held(rows)}
        _share(path, fresh)
        return fresh


def _held(rows: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """What pending jobs ask for and which reservations there are, where Slurm speaks of any."""
    if not any(row[0] == "PENDING" and RESERVED.search(row[5]) for row in rows.values()):
        return {}
    reserved = _reservations()
    ok, text = _slurm("squeue", "-h", "-t", "PD", "-u", _user(), "-o", "%i|%P|%l|%D|%n|%x|%r")
    held = {}
    for line in text.splitlines() if ok else []:
        fields = line.strip().split("|", 6)
        if len(fields) == 7 and RESERVED.search(fields[6]):
            asked = dict(zip(("partition", "limit", "nodes", "required", "excluded"), fields[1:6], strict=True))
            held[fields[0]] = {**asked, **reserved}
    return held


def _reservations() -> dict[str, Any]:
    """All reservations, the nodes of all partitions, and what the clocks here show at their times."""
    ok, text = _slurm("scontrol", "-o", "show", "reservation")
    found = [" ".join(RESERVATION_FIELDS.findall(line)) for line in text.splitlines()] if ok else []
    ok, text = _slurm("scontrol", "-o", "show", "partition")
    nodes = re.findall(r"(?m)^PartitionName=(\S+).*?\sNodes=(\S*)", text) if ok else []
    times = set(re.findall(r"(?:Start|End)Time=(\d{1,12})(?!\S)", " ".join(found)))
    clock = {moment: time.strftime("%d %b %H:%M %Z", time.localtime(int(moment))).lstrip("0") for moment in times}
    return {"reservations": list(filter(None, found)), "partitions": dict(nodes), "clock": clock}


def _shared_accounts(prefix: str, wanted: list[str]) -> dict[str, Any]:
    """What sacct said last, renewed by one caller for all who wanted to know something since.

    The end of a job is asked for until it is known, at most once a minute; a job that was never asked for
    comes up sooner.

    Returns:
        `{"time", "rows", "error", "asked", "wanted"}`.
    """
    path = os.path.join(prefix, ".locks", "sacct.json")
    nothing: dict[str, Any] = {"time": 0.0, "rows": {}, "error": None, "asked": [], "wanted": []}
    with _lock_file(f"{path}.lock") as handle:
        known = _shared(path, nothing)
        missing = [native_id for native_id in wanted if not _has_ended(known["rows"].get(native_id))]
        if not missing or not _try_lock(handle):
            return known
        known = _shared(path, nothing)
        wishes = list(dict.fromkeys([*known["wanted"], *missing]))
        new = set(wishes) - set(known["asked"])
        if time.time() - known["time"] < (SQUEUE_SECONDS if new else SACCT_SECONDS):
            if wishes == known["wanted"]:
                return known
            fresh = {**known, "wanted": wishes}
        else:
            begin = time.time()
            ok, text = _ask_sacct(wishes)
            rows = {**known["rows"], **(_rows_by_id(text) if ok else {})}
            fresh = {
                "time": begin,
                "rows": dict(list(rows.items())[-SACCT_ROWS:]),
                "error": None if ok else text,
                "asked": wishes,
                "wanted": [],
            }
        _share(path, fresh)
        return fresh


def _share(path: str, fresh: dict[str, Any]) -> None:
    """Keep what Slurm said for others; where the disk is full, they ask themselves."""
    with contextlib.suppress(OSError):
        _write_whole(path, json.dumps(fresh).encode())


def _has_ended(row: list[str] | None) -> bool:
    return row is not None and row[0].split()[0] in SLURM_FINAL


def _is_row(row: Any) -> bool:
    """Whether this is a job as `_rows_by_id` reads it."""
    whole = isinstance(row, list) and len(row) == ROW_FIELDS and all(isinstance(field, str) for field in row)
    return whole and bool(row[0].strip())


def _shared(path: str, nothing: dict[str, Any]) -> dict[str, Any]:
    """What a command of Slurm said last, if it is what we keep: every job of this user can write there."""
    known = nothing
    with contextlib.suppress(OSError):
        known = {**nothing, **(_read_json(path) or {})}
    fits = all(_is_like(known[name], nothing[name]) for name in nothing)
    recent = fits and 0 <= known["time"] <= time.time() + CLOCK_SECONDS
    return known if recent and all(map(_is_row, known["rows"].values())) else nothing


def _is_like(value: Any, other: Any) -> bool:
    if isinstance(other, list):
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if other is None:
        return value is None or isinstance(value, str)
    return isinstance(value, (int, float) if isinstance(other, float) else type(other))


def _find_in_slurm(base: str, since: float) -> str | None:
    """Look for a job of this directory that was submitted since then, in the queue and in accounting.

    Raises:
        Trouble: Slurm does not answer, so nothing is known.
    """
    taken = {row[3] for row in _rows(base) if row[2] == "queued"}
    ok, listed = _slurm("squeue", "-h", "-t", "all", "-u", _user(), "-o", "%i|%Z")
    if not ok:
        raise Trouble("busy", f"Slurm cannot be asked whether job {base} was submitted: {listed}")
    found = [line.strip().split("|") for line in listed.splitlines()]
    begin = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since - 60))
    which = ("-u", _user(), "-S", begin)
    ok, accounted = _slurm("sacct", "-n", "-P", "-X", *which, "-o", "JobID,WorkDir,State,Start")
    if not ok and not NO_ACCOUNTING.search(accounted):
        raise Trouble("busy", f"Slurm's accounting cannot be asked whether job {base} was submitted: {accounted}")
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


#: Ends of which accounting knows more than the queue: who brought them about, and the exit code.
TOLD_BY_ACCOUNTING = ("CANCELLED", "FAILED")


def _slurm_facts(
    base: str, jobndx: int, native_id: str | None, intent: float | None, shared: Any
) -> dict[str, Any]:
    """What Slurm says of one job: its row in the queue, else in accounting.

    Args:
        base: The job's directory.
        jobndx: Of the run.
        native_id: Slurm's id of it.
        intent: When it was about to be submitted; a list that is older says nothing of it.
        shared: What was looked up for all jobs.
    """
    if native_id is None or not native_id.isdecimal():
        return {"alive": None}
    queue = shared.squeue
    row = queue["rows"].get(native_id)
    facts: dict[str, Any] = {"squeue": row, "squeue_error": queue["error"], "alive": None}
    if native_id in queue.get("held", {}):
        facts["held"] = queue["held"][native_id]
    if row is not None:
        facts["alive"] = not _has_ended(row)
        if row[0] not in TOLD_BY_ACCOUNTING:
            return facts
    elif queue["error"] is not None or queue["time"] <= (intent or 0.0) + 10.0:
        return facts
    else:
        facts["vanished"] = _vanished(base, jobndx, queue["time"])
    accounts = shared.sacct(native_id)
    facts["sacct"] = accounts["rows"].get(native_id)
    error = accounts["error"]
    if error is None or not NO_ACCOUNTING.search(error):
        asked = native_id in accounts["asked"]
        facts["accounting"] = "unasked" if not asked else "silent" if error else "answers"
        facts["sacct_error"] = error
    else:
        facts["accounting"] = "none"
    if row is None and facts["sacct"] is not None:
        facts["alive"] = not _has_ended(facts["sacct"])
    return facts


def _vanished(base: str, jobndx: int, now: float) -> float:
    """When the queue was first seen without this job."""
    path = os.path.join(base, "prefect", f"vanished.{jobndx}")
    note = _read_json(path)
    if note is None:
        note = {"time": now}
        with contextlib.suppress(OSError):
            _write_whole(path, json.dumps(note).encode())
    return float(note["time"])

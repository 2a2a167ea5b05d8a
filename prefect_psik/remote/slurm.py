"""Slurm's commands, and what they said last, shared by all callers."""

from __future__ import annotations

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


def _slurm(*command: str, script: str | None = None) -> tuple[bool, str]:
    """Run one of Slurm's commands; returns whether it succeeded, and what it printed.

    With a script as its input, what it says on stderr counts too: there sbatch answers.
    """
    environment = {**os.environ, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"}
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
        if len(fields) == 7 and fields[0].isdigit():
            rows[fields[0]] = fields[1:]
    return rows


def _ask_squeue(*which: str) -> tuple[bool, str]:
    return _slurm("squeue", "-h", "-t", "all", *which, "-o", "%i|%T|%S|%e||%N|%r")


def _ask_sacct(native_ids: list[str]) -> tuple[bool, str]:
    fields = "JobID,State,Start,End,ExitCode,NodeList,Reason"
    return _slurm("sacct", "-n", "-P", "-X", "-j", ",".join(native_ids), "-o", fields)


def _shared(prefix: str, name: str, seconds: float, wanted: list[str], ask: Any) -> dict[str, Any]:
    """What a command of Slurm said last, renewed by one caller for all if it is older than `seconds`.

    Returns:
        `{"time", "rows", "error", "wanted"}`; rows of ended jobs that were `wanted` before are kept.
    """
    path = os.path.join(prefix, ".locks", f"{name}.json")
    nothing: dict[str, Any] = {"time": 0.0, "rows": {}, "error": None, "wanted": []}
    with _lock_file(f"{path}.lock") as handle:
        known = _read_json(path) or nothing
        if not set(wanted) <= set(known["wanted"]):
            seconds = min(seconds, SQUEUE_SECONDS)
        if time.time() - known["time"] < seconds or not _try_lock(handle):
            return known
        known = _read_json(path) or nothing  # another caller may have renewed it meanwhile
        if time.time() - known["time"] < seconds:
            return known
        fresh: dict[str, Any] = {"time": time.time(), "wanted": wanted}
        ok, text = ask()
        kept = known["rows"] if not ok else {key: known["rows"][key] for key in wanted if key in known["rows"]}
        fresh.update(rows={**kept, **(_rows_by_id(text) if ok else {})}, error=None if ok else text)
        _write_whole(path, json.dumps(fresh).encode())
        return fresh


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
    if not ok and "accounting storage is disabled" not in accounted:
        raise Trouble("busy", f"Slurm's accounting cannot be asked whether job {base} was submitted: {accounted}")
    for line in accounted.splitlines() if ok else []:
        fields = line.strip().rsplit("|", 2)
        # A job that sbatch refused may be listed too: failed, and never started.
        if len(fields) == 3 and not (fields[1].startswith("FAILED") and not fields[2].isdigit()):
            found.append(fields[0].split("|", 1))
    return next(
        (row[0] for row in found if len(row) == 2 and row[1] == base and row[0].isdigit() and row[0] not in taken),
        None,
    )


def _slurm_message_seconds() -> float:
    """Slurm's MessageTimeout, after which nobody may still carry out a request."""
    ok, text = _slurm("scontrol", "show", "config")
    found = re.search(r"MessageTimeout\s*=\s*(\d+)", text) if ok else None
    return float(found.group(1)) if found else 100.0


def _slurm_alive(facts: dict[str, Any]) -> bool | None:
    """Whether Slurm still has the job to run or runs it; None if Slurm has not said."""
    row = facts.get("squeue") or facts.get("sacct")
    if row is not None:
        return row[0].split()[0] not in SLURM_FINAL
    no_accounting = "accounting storage is disabled" in (facts.get("sacct_error") or "")
    return False if facts.get("unknown_to_sacct") or no_accounting else None


def _slurm_facts(prefix: str, native_id: str, intent: float | None, snapshot: Any) -> dict[str, Any]:
    """What Slurm says of one job: its row in the queue, else in accounting."""
    queue = snapshot.squeue(prefix)
    facts: dict[str, Any] = {"squeue": queue["rows"].get(native_id), "squeue_error": queue["error"]}
    # A list that is older than the submission says nothing of it.
    if facts["squeue"] is None and queue["error"] is None and queue["time"] > (intent or 0.0) + 10.0:
        accounting = snapshot.sacct(prefix, native_id)
        asked = native_id in accounting["wanted"]
        facts["sacct"] = accounting["rows"].get(native_id)
        facts["sacct_error"] = accounting["error"] if asked else None
        facts["unknown_to_squeue"] = True
        facts["unknown_to_sacct"] = asked and facts["sacct"] is None and accounting["error"] is None
    return facts

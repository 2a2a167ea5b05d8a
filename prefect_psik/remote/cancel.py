"""End jobs, confirm that they ended, and record it: the operation `cancel`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from typing import Any

from prefect_psik.remote.files import _append, _audit, _lock_file, _read_json, _try_lock, _user, _write_whole
from prefect_psik.remote.job_directory import _has_end, _last_run, _native_id, _recorded_id
from prefect_psik.remote.launch import _adopt, _doubt_left
from prefect_psik.remote.ownership import _job_directory
from prefect_psik.remote.processes import _members, _processes
from prefect_psik.remote.slurm import SLURM_FINAL, _ask_squeue, _rows_by_id, _slurm
from prefect_psik.remote.status import _facts, _Snapshot
from prefect_psik.remote.wire import DEFECTS, Trouble, _defect, _existing_prefix, _jobs, _os_trouble

#: psik gives a script 5 s after SIGTERM before it kills it.
TERM_SECONDS = 7.0
KILL_SECONDS = 3.0
SCANCEL_SECONDS = 15.0


def cancel(payload: dict[str, Any]) -> dict[str, Any]:
    """End jobs, confirm that they ended, then record it; a job that had already ended keeps its end.

    Returns:
        `{"jobs": {stamp: facts or {"error"}}}`.
    """
    prefix = _existing_prefix(payload, "busy")
    jobs = {job["stamp"]: job for job in _jobs(payload)}
    runs: dict[str, dict[str, int]] = {"local": {}, "slurm": {}}
    answers: dict[str, Any] = {}
    for stamp, job in jobs.items():
        try:
            _note_cancel(_job_directory(prefix, stamp), job, runs)
        except OSError as err:
            answers[stamp] = {"error": _os_trouble(err).answer}
        except DEFECTS as err:
            answers[stamp] = {"error": _defect("cancel", err).answer}
    unknown = {
        base: why for base, jobndx in runs["slurm"].items() if (why := _find_unrecorded(prefix, base, jobndx))
    }
    remaining, cancelled = _end_in_slurm({base: n for base, n in runs["slurm"].items() if base not in unknown})
    remaining |= unknown
    remaining.update(_end_processes(list(runs["local"].items())))
    for base, jobndx in {**runs["local"], **runs["slurm"]}.items():
        stamp = os.path.basename(base)
        if base in remaining:
            message = f"Job {stamp} has not ended yet: {remaining[base]}."
            answers[stamp] = {"error": Trouble("busy", message).answer}
        elif base in cancelled or (base in runs["local"] and not _has_end(base, jobndx)):
            with contextlib.suppress(OSError):
                if not _has_end(base, jobndx):  # psik may have been faster
                    _append(os.path.join(base, "status.csv"), f"{time.time()},{jobndx},canceled,")
                _audit(prefix, "cancel", jobs[stamp], jobndx=jobndx)
    if any(base not in remaining and base not in cancelled for base in runs["slurm"]):
        # It has ended on its own in the meantime, so Slurm's earlier answer is out of date.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(prefix, ".locks", "squeue.json"))
    snapshot = _Snapshot(prefix, [])
    for stamp, job in jobs.items():
        if stamp not in answers:
            answers[stamp] = _facts(prefix, job, snapshot)
    return {"jobs": answers}


def _note_cancel(base: str, job: dict[str, Any], runs: dict[str, dict[str, int]]) -> None:
    """Record that a run is to be canceled, unless it has ended, and add it to the runs of its kind."""
    record = _read_json(os.path.join(base, "prefect", "job.json"))
    jobndx = job.get("jobndx") or _last_run(base) or 1
    if record is None or _has_end(base, jobndx):
        return
    kind = "slurm" if record["type"] == "slurm" else "local"
    asked = {"time": time.time(), "user": _user(), "owner": job.get("owner")}
    with contextlib.suppress(OSError):  # a full disk must not keep a job on its nodes
        _write_whole(os.path.join(base, "prefect", f"cancel.{jobndx}"), json.dumps(asked).encode())
    runs[kind][base] = jobndx


def _end_in_slurm(runs: dict[str, int]) -> tuple[dict[str, str], set[str]]:
    """Ask Slurm to end these runs, wait until it reports their end; touches only ids that this prefix recorded.

    Returns:
        Why some keep running, and those that Slurm reports as cancelled. A run that ended in another way needs no
        record of ours: `status` finds out how.
    """
    ids = {base: _native_id(base, jobndx) or "" for base, jobndx in runs.items()}
    cancelled = {base for base, native_id in ids.items() if not native_id}  # it never began
    waiting = {base: native_id for base, native_id in ids.items() if native_id.isdecimal()}
    # A job can write to its own record; scancel might read an option there, or the ids of other jobs.
    odd = {base: f"{ids[base]!r} is not a Slurm job id" for base in ids.keys() - waiting.keys() - cancelled}
    if not waiting:
        return odd, cancelled
    ok, text = _slurm("scancel", *waiting.values())
    deadline = time.monotonic() + SCANCEL_SECONDS
    answer = "Slurm has not been asked"
    while waiting and time.monotonic() < deadline:
        listed, answer = _ask_squeue("-j", ",".join([*waiting.values(), "999999999", "999999998"]))
        if listed:
            rows = _rows_by_id(answer)
            # A job that squeue no longer lists has ended; its row stays for a while after the end.
            states = {
                base: rows[native_id][0] if native_id in rows else "gone" for base, native_id in waiting.items()
            }
            cancelled |= {base for base, state in states.items() if state == "CANCELLED"}
            waiting = {
                base: waiting[base] for base, state in states.items() if state not in SLURM_FINAL | {"gone"}
            }
            how = "accepted" if ok else f"refused ({text})"
            answer = f"scancel was {how}, but Slurm still reports {', '.join(sorted(set(states.values())))}"
        if waiting:
            time.sleep(0.5)
    return {**odd, **dict.fromkeys(waiting, answer)}, cancelled


def _find_unrecorded(prefix: str, base: str, jobndx: int) -> str | None:
    """Look for a run whose submission was never confirmed, and record its id.

    Returns:
        Why nothing is known about it yet; None if it now has an id, or is known not to have begun.
    """
    if _recorded_id(base, jobndx) is not None:
        return None
    with _lock_file(os.path.join(prefix, ".locks", os.path.basename(base))) as handle:
        if not _try_lock(handle):
            return "it is being submitted right now"
        try:
            intent = _read_json(os.path.join(base, "prefect", f"intent.{jobndx}"))
            if intent is None or _adopt(base, jobndx, float(intent["time"])) is not None:
                return None
        except (Trouble, OSError, *DEFECTS) as err:
            return str(err)
        left = _doubt_left(base, jobndx, slurm=True)
    return f"Slurm has no trace of it yet, but one may still appear for {left:.0f} s" if left > 0 else None


def _end_processes(runs: list[tuple[str, int]]) -> dict[str, str]:
    """Ask all processes of these runs to end, then kill them; return the runs that still have some."""
    begin = time.monotonic()
    asked: set[tuple[str, int]] = set()
    alive: dict[str, str] = {}
    damaged: dict[str, str] = {}
    quiet = 0
    while runs and quiet < 2 and time.monotonic() - begin < TERM_SECONDS + KILL_SECONDS:
        table = _processes()
        force = time.monotonic() - begin > TERM_SECONDS
        alive = {}
        for base, jobndx in runs:
            try:
                members = _members(base, jobndx, table)
            except (OSError, *DEFECTS) as err:
                members, damaged[base] = [], f"its records cannot be read ({err!r})"
            if members:
                alive[base] = f"processes {[process.pid for process in members]} are still running"
            # psik's runner passes the signal on to the script; when forcing, every process gets one.
            for process in members if force else members[:1]:
                if force or (base, process.pid) not in asked:
                    asked.add((base, process.pid))
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL if force else signal.SIGTERM)
        quiet = 0 if alive else quiet + 1
        time.sleep(0.05)
    return {**damaged, **alive}

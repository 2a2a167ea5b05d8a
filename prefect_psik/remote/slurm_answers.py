"""The last answers of Slurm's commands, shared by all callers, and what they say about one job."""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import Any, Callable

from prefect_psik.remote.files import _lock_file, _read_json, _try_lock, _user, _write_whole
from prefect_psik.remote.reservations import _held, _held_of
from prefect_psik.remote.slurm import NO_ACCOUNTING, _ask_sacct, _ask_squeue, _has_ended, _is_row, _rows_by_id

#: Slurm is asked about all jobs of this user at once, and not more often than this.
SQUEUE_SECONDS = 15.0
SACCT_SECONDS = 60.0
#: The largest difference between the clocks of login nodes.
CLOCK_SECONDS = 600.0
#: How many rows of ended jobs in accounting are kept for all callers; the oldest are dropped first.
SACCT_ROWS = 5000
#: Final states of which accounting knows more than the queue: who caused them, and the exit code.
TOLD_BY_ACCOUNTING = ("CANCELLED", "FAILED")


def _shared_queue(prefix: str) -> dict[str, Any]:
    """The last answer of squeue, renewed by one caller for all.

    Returns:
        `{"time", "rows", "error", "held"}`: after an error, the rest is from the last good answer. `held` is what
        may keep pending jobs from starting, as `_held` looked it up.
    """
    path = os.path.join(prefix, ".locks", "squeue.json")
    nothing: dict[str, Any] = {"time": 0.0, "rows": {}, "error": None, "held": {}}
    with _lock_file(f"{path}.lock") as handle:
        known = _shared(path, nothing)
        if time.time() - known["time"] < SQUEUE_SECONDS or not _try_lock(handle):
            return known
        known = _shared(path, nothing)  # another caller may have renewed it meanwhile
        if time.time() - known["time"] < SQUEUE_SECONDS:
            return known
        begin = time.time()
        ok, text = _ask_squeue("-u", _user())
        if ok:
            rows = _rows_by_id(text)
            fresh = {"time": begin, "rows": rows, "error": None, "held": _held(rows)}
        else:
            fresh = {**known, "time": begin, "error": text}
        _share(path, fresh)
        return fresh


def _shared_accounts(prefix: str, wanted: list[str]) -> dict[str, Any]:
    """The last answer of sacct, renewed by one caller for all that have asked since.

    The end of a job is asked for until it is known, at most once a minute; for a job that was never asked about,
    sooner.

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
    """Keep Slurm's answer for other callers; if the disk is full, they ask Slurm themselves."""
    with contextlib.suppress(OSError):
        _write_whole(path, json.dumps(fresh).encode())


def _shared(path: str, nothing: dict[str, Any], is_known: Callable[[Any], bool] = _is_row) -> dict[str, Any]:
    """The last answer of a Slurm command, if it is valid: every job of this user can write to the file.

    Args:
        path: The file.
        nothing: Returned for an unusable file; each value in the file must be of the same type as here.
        is_known: Whether a value of `rows` is valid.
    """
    known = nothing
    with contextlib.suppress(OSError):
        known = {**nothing, **(_read_json(path) or {})}
    fits = all(_is_like(known[name], nothing[name]) for name in nothing)
    recent = fits and 0 <= known["time"] <= time.time() + CLOCK_SECONDS
    return known if recent and all(map(is_known, known["rows"].values())) else nothing


def _is_like(value: Any, other: Any) -> bool:
    if isinstance(other, list):
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if other is None:
        return value is None or isinstance(value, str)
    return isinstance(value, (int, float) if isinstance(other, float) else type(other))


def _slurm_facts(
    base: str, jobndx: int, native_id: str | None, intent: float | None, shared: Any
) -> dict[str, Any]:
    """What Slurm says about one job: its row in the queue, or else in accounting.

    Args:
        base: The job's directory.
        jobndx: Of the run.
        native_id: Slurm's id of it.
        intent: When it was about to be submitted; an older list says nothing about it.
        shared: The answers for all jobs.
    """
    if native_id is None or not native_id.isdecimal():
        return {"alive": None}
    queue = shared.squeue
    row = queue["rows"].get(native_id)
    facts: dict[str, Any] = {"squeue": row, "squeue_error": queue["error"], "alive": None}
    held = _held_of(queue["held"], native_id)
    if held is not None:
        facts["held"] = held
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
    """When the queue first no longer listed this job."""
    path = os.path.join(base, "prefect", f"vanished.{jobndx}")
    note = _read_json(path)
    if note is None:
        note = {"time": now}
        with contextlib.suppress(OSError):
            _write_whole(path, json.dumps(note).encode())
    return float(note["time"])

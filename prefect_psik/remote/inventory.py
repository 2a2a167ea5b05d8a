"""The jobs under a prefix: the operations `list` and `remove`."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import stat
from typing import Any, Iterator

from prefect_psik.remote.files import (
    AUDIT,
    _audit,
    _lock_file,
    _make_directory,
    _read_json,
    _remove_tree,
    _try_lock,
    _write,
)
from prefect_psik.remote.job_directory import _asked, _last_run, _native_id, _rows
from prefect_psik.remote.ownership import _check_one, _job_directory
from prefect_psik.remote.status import _facts, _Snapshot
from prefect_psik.remote.wire import DEFECTS, STAMP, Trouble, _defect, _existing_prefix, _jobs, _os_trouble

LIST_LIMIT = 500
RUN_ID = re.compile(r"[0-9a-f-]{8,64}")


def list_jobs(payload: dict[str, Any]) -> dict[str, Any]:
    """List the jobs under a prefix, newest first.

    Payload:
        prefix, and optionally jobs (only these stamps), flow_run (only what it submitted), skip and limit.

    Returns:
        `{"jobs": {stamp: entry or {"error"}}, "more": bool}`; an error stands for a job whose directory or
        records cannot be read, or may be somebody else's.
    """
    prefix = _existing_prefix(payload)
    skip, limit = int(payload.get("skip") or 0), min(int(payload.get("limit") or LIST_LIMIT), LIST_LIMIT)
    stamps = [job["stamp"] for job in _jobs({"jobs": payload.get("jobs") or []})]
    if payload.get("flow_run") is not None:
        stamps = _stamps_of_run(prefix, payload["flow_run"])
    elif not stamps:
        stamps = _all_stamps(prefix)
    wanted = stamps[skip : skip + limit]
    noted = _runs_by_stamp(prefix)
    entries = {stamp: _legible_entry(prefix, stamp, noted.get(stamp, [])) for stamp in wanted}
    return {
        "jobs": {stamp: entry for stamp, entry in entries.items() if entry is not None},
        "more": len(stamps) > skip + limit,
    }


def _all_stamps(prefix: str) -> list[str]:
    found = []
    with os.scandir(prefix) as entries:
        for entry in entries:
            if STAMP.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    found.append((entry.stat(follow_symlinks=False).st_mtime, entry.name))
    return [name for _, name in sorted(found, reverse=True)]


def _run_directory(prefix: str, flow_run: Any) -> str:
    if not isinstance(flow_run, str) or not RUN_ID.fullmatch(flow_run):
        raise Trouble("payload", f"{flow_run!r} is not a flow run id.")
    return os.path.join(prefix, ".runs", flow_run)


def _stamps_of_run(prefix: str, flow_run: Any) -> list[str]:
    try:
        return sorted(name for name in os.listdir(_run_directory(prefix, flow_run)) if STAMP.fullmatch(name))
    except FileNotFoundError:
        return []


def _note_owner(prefix: str, job: dict[str, Any]) -> None:
    """Record the job under each flow run that submitted or re-found it, so that a cancel of the run finds it."""
    owner = job.get("owner") or {}
    for flow_run in owner.get("flow_runs") or []:
        directory = _run_directory(prefix, flow_run)
        _make_directory(os.path.dirname(directory))
        _make_directory(directory)
        _write(os.path.join(directory, job["stamp"]), b"")


def _runs_by_stamp(prefix: str) -> dict[str, list[str]]:
    """The flow runs recorded for each job."""
    found: dict[str, list[str]] = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(prefix), ".runs", "*", "*"))):
        found.setdefault(os.path.basename(path), []).append(os.path.basename(os.path.dirname(path)))
    return found


def _legible_entry(prefix: str, stamp: str, flow_runs: list[str]) -> dict[str, Any] | None:
    """List one job; bad records become its own `{"error"}` and affect no other job."""
    try:
        return _entry(_job_directory(prefix, stamp), flow_runs)
    except OSError as err:
        return {"error": _os_trouble(err).answer}
    except DEFECTS as err:
        return {"error": _defect("list", err).answer}


def _entry(base: str, flow_runs: list[str]) -> dict[str, Any] | None:
    record = _read_json(os.path.join(base, "prefect", "job.json"))
    if record is None:
        return None
    jobndx = _last_run(base) or 1
    states = [row[2] for row in _rows(base) if row[1] in (jobndx, 0)]
    return {
        "key": record["key"],
        "name": record.get("name"),
        "type": record["type"],
        "owner": record.get("owner"),
        "flow_runs": flow_runs,
        "created": record.get("created"),
        "jobndx": jobndx,
        "native_id": _native_id(base, jobndx),
        "asked": _asked(base, jobndx),
        "state": states[-1] if states else "new",
        "prefix": os.path.dirname(base),
    }


def remove(payload: dict[str, Any]) -> dict[str, Any]:
    """Remove the directories of jobs that have ended; a job that may still be running is kept.

    Returns:
        `{"jobs": {stamp: {"removed": true} or {"kept": why}}}`; removed means that the whole directory has been
        deleted. Parts that cannot be deleted stay in `.locks/removed.STAMP`, and every later call tries again.
    """
    prefix = _existing_prefix(payload)
    _check_one(os.path.join(prefix, AUDIT), stat.S_IFREG)
    for left in glob.glob(os.path.join(glob.escape(prefix), ".locks", "removed.*")):
        _remove_tree(left)
    jobs = _jobs(payload)
    snapshot = _Snapshot(prefix, jobs)
    return {"jobs": {job["stamp"]: _remove_one(prefix, job, snapshot) for job in jobs}}


def _remove_one(prefix: str, job: dict[str, Any], snapshot: _Snapshot) -> dict[str, Any]:
    stamp = job["stamp"]
    base = os.path.join(prefix, stamp)
    lock = os.path.join(prefix, ".locks", stamp)
    with _lock_file(lock) as handle:
        if not _try_lock(handle):
            return {"kept": "another call is working on it"}
        facts = _facts(prefix, {"stamp": stamp}, snapshot)
        if "error" in facts:
            return {"kept": facts["error"]["message"]}
        if facts.get("missing"):
            return {"kept": "it is not a job of prefect-psik"}
        if facts.get("alive", False) is not False:
            return {"kept": "it may still be running"}
        if facts["jobndx"] != job.get("jobndx", facts["jobndx"]):
            return {"kept": "it has been run again since"}
        # Rename it first, so that nobody ever sees half a job directory.
        away = os.path.join(prefix, ".locks", f"removed.{stamp}")
        try:
            os.rename(base, away)
        except OSError as err:
            return {"kept": f"it cannot be moved to {away}: {err.strerror}"}
        left = _remove_tree(away)
        for path in _noted(prefix, stamp):
            with contextlib.suppress(OSError):
                os.unlink(path)
                os.rmdir(os.path.dirname(path))
        os.unlink(lock)
    _audit(prefix, "remove", job)
    if left:
        return {"kept": f"parts of it, now in {away}, cannot be deleted: {'; '.join(left)}"}
    return {"removed": True}


def _noted(prefix: str, stamp: str) -> Iterator[str]:
    yield from glob.iglob(os.path.join(glob.escape(prefix), ".runs", "*", stamp))

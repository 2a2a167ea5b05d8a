"""What ended jobs used, by Slurm's accounting: the operation `usage`."""

from __future__ import annotations

import os
import time
from typing import Any

from prefect_psik.remote.files import _lock_file, _try_lock
from prefect_psik.remote.slurm import NO_ACCOUNTING, SLURM_FINAL, _slurm
from prefect_psik.remote.slurm_answers import _share, _shared
from prefect_psik.remote.status import _legible_id
from prefect_psik.remote.wire import _existing_prefix, _jobs

#: sacct is asked for all callers at once, and only while jobs end.
USAGE_SECONDS = 5.0
USAGE_ROWS = 1000
USAGE_FIELDS = "JobID,State,ElapsedRaw,CPUTimeRAW,TotalCPU,MaxRSS,NNodes,NodeList"


def usage(payload: dict[str, Any]) -> dict[str, Any]:
    """Report what ended jobs used, as far as accounting knows by now.

    Payload:
        prefix, and jobs: each with stamp and jobndx.

    Returns:
        `{"jobs": {stamp: {"usage", "wait"}}}`: sacct's lines for the job and its steps; if they are not complete
        yet, the seconds after which to ask again, or None if asking again is useless.
    """
    prefix = _existing_prefix(payload)
    ids = {job["stamp"]: _legible_id(prefix, job) for job in _jobs(payload)}
    known, wait = _shared_usage(prefix, [native_id for native_id in ids.values() if native_id])
    answers = {}
    for stamp, native_id in ids.items():
        rows = known.get(native_id or "")
        answers[stamp] = {"usage": rows, "wait": wait if native_id and not _is_whole(rows) else None}
    return {"jobs": answers}


def _shared_usage(prefix: str, wanted: list[str]) -> tuple[dict[str, list[list[str]]], float | None]:
    """Rows by native id, and when to ask for those that are missing."""
    path = os.path.join(prefix, ".locks", "usage.json")
    with _lock_file(f"{path}.lock") as handle:
        known = _shared(path, {"time": 0.0, "rows": {}}, _are_lines)
        missing = [native_id for native_id in wanted if not _is_whole(known["rows"].get(native_id))]
        left = known["time"] + USAGE_SECONDS - time.time()
        if not missing or left > 0:
            return known["rows"], max(left, 0.1)
        if not _try_lock(handle):
            return known["rows"], 1.0
        begin = time.time()
        ok, text = _slurm("sacct", "-n", "-P", "--noconvert", "-j", ",".join(missing), "-o", USAGE_FIELDS)
        if not ok:
            return known["rows"], None if NO_ACCOUNTING.search(text) else USAGE_SECONDS
        rows = {native_id: rows for native_id, rows in known["rows"].items() if native_id not in missing}
        for line in text.splitlines():
            fields = line.split("|")
            if _are_lines([fields]):
                rows.setdefault(fields[0].split(".")[0], []).append(fields)
        rows = dict(list(rows.items())[-USAGE_ROWS:])
        _share(path, {"time": begin, "rows": rows})
        return rows, USAGE_SECONDS


def _are_lines(rows: Any) -> bool:
    """Whether these are lines of sacct with our fields, each with a state."""
    number = USAGE_FIELDS.count(",") + 1
    return isinstance(rows, list) and all(
        isinstance(row, list)
        and len(row) >= number
        and all(isinstance(field, str) for field in row)
        and row[1].strip()
        for row in rows
    )


def _is_whole(rows: list[list[str]] | None) -> bool:
    """Whether accounting has the end of the job, and of its batch step."""
    states = {row[0].partition(".")[2]: row[1].split()[0] for row in rows or []}
    return states.get("") in SLURM_FINAL and states.get("batch") in SLURM_FINAL

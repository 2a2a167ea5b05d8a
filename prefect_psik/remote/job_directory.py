"""The records in a job directory: psik's and ours."""

from __future__ import annotations

import contextlib
import glob
import os
import stat
from typing import Any

from prefect_psik.remote.files import _read, _read_json
from prefect_psik.remote.ownership import _check_owned

FINAL = ("completed", "failed", "canceled")
STATES = ("new", "queued", "active", *FINAL)
#: The end of the year 9999: later times are not accepted.
LAST_SECOND = 253_402_300_799.0
STREAMS = ("stdout", "stderr", "console")


def _rows(base: str) -> list[tuple[float, int, str, str]]:
    """Read psik's status.csv: time, jobndx, state, info; malformed lines are left out."""
    return _parsed(_status_text(base))


def _status_text(base: str) -> str:
    return (_read(os.path.join(base, "status.csv")) or b"").decode("utf-8", "replace")


def _parsed(text: str) -> list[tuple[float, int, str, str]]:
    rows = []
    for line in text.split("\n")[:-1]:  # the text after the last newline is a line still being written
        fields = line.split(",", 3)
        with contextlib.suppress(ValueError, IndexError):
            row = float(fields[0]), int(fields[1]), fields[2], fields[3].strip()
            if 0 <= row[0] <= LAST_SECOND and row[2] in STATES:
                rows.append(row)
    return rows


def _last_run(base: str) -> int:
    """The highest run number that was, or was about to be, submitted; 0 if there is none."""
    numbers = [row[1] for row in _rows(base)]
    for path in glob.glob(os.path.join(glob.escape(base), "prefect", "intent.*")):
        with contextlib.suppress(ValueError):
            numbers.append(int(path.rsplit(".", 1)[1]))
    return max(numbers, default=0)


def _native_id(base: str, jobndx: int) -> str | None:
    """The id of the job that does the work of a run: that which passed the launcher's guard, or was recorded."""
    return _owner(base, jobndx) or _recorded_id(base, jobndx)


def _recorded_id(base: str, jobndx: int) -> str | None:
    return next((row[3] for row in reversed(_rows(base)) if row[1] == jobndx and row[2] == "queued"), None)


def _owner(base: str, jobndx: int) -> str | None:
    """The id in the launcher's link, if there is one.

    Raises:
        NotOurs: Somebody else made the link.
    """
    path = os.path.join(base, "prefect", f"owner.{jobndx}")
    try:
        owner, found = os.readlink(path), os.lstat(path)
    except OSError:
        return None
    _check_owned(path, found, stat.S_IFLNK)
    return owner if owner.isdecimal() else None


def _launched(base: str, jobndx: int) -> tuple[str, str] | None:
    """Native id and the script's process line, as the launcher left them."""
    owner = _owner(base, jobndx)
    if owner is None:
        return None
    process = os.path.join(base, "prefect", f"process.{jobndx}.{owner}")
    text = (_read(process) or b"").decode("utf-8", "replace")
    return (owner, text.strip()) if text.strip() else None


def _directory(base: str, record: dict[str, Any]) -> str:
    return str(record.get("directory") or os.path.join(base, "work"))


def _attempt(base: str, jobndx: int) -> list[int]:
    intent = _read_json(os.path.join(base, "prefect", f"intent.{jobndx}")) or {}
    return list(intent.get("attempt") or [])


def _has_end(base: str, jobndx: int) -> bool:
    return any(row[1] == jobndx and row[2] in FINAL for row in _rows(base))


def _log(base: str, stream: str, jobndx: int) -> str:
    numbered = os.path.join(base, "log", f"{stream}.{jobndx}")
    # Slurm overwrites log/console in each run; the log of an earlier run is kept under its number.
    return (
        os.path.join(base, "log", "console") if stream == "console" and not os.path.exists(numbered) else numbered
    )


def _asked(base: str, jobndx: int) -> dict[str, Any]:
    """Duration and memory that a run asked for."""
    return dict((_read_json(os.path.join(base, "prefect", f"intent.{jobndx}")) or {}).get("asked") or {})

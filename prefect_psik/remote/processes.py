"""The process table, for jobs of psik's local backend."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess

from prefect_psik.remote.files import _read_json, _write_whole
from prefect_psik.remote.job_directory import _directory, _launched, _native_id


class Process:
    """One row of the process table."""

    def __init__(self, pid: int, parent: int, group: int, session: int | None, start: str) -> None:
        self.pid, self.parent, self.group, self.session, self.start = pid, parent, group, session, start


def _parse_stat(text: str) -> Process:
    pid, rest = text.split(" ", 1)
    fields = rest.rsplit(")", 1)[1].split()
    if fields[0] in "ZX":
        raise ValueError("a zombie")
    return Process(int(pid), int(fields[1]), int(fields[2]), int(fields[3]), fields[19])


def _processes() -> dict[int, Process]:
    """The process table without zombies, from /proc or else from ps."""
    table: dict[int, Process] = {}
    if os.path.exists("/proc/self/stat"):
        for name in os.listdir("/proc"):
            if name.isdecimal():
                with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat") as file:
                    process = _parse_stat(file.read())
                    table[process.pid] = process
        return table
    command = ["ps", "-A", "-o", "pid=", "-o", "ppid=", "-o", "pgid=", "-o", "stat=", "-o", "lstart="]
    listing = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    for line in listing.splitlines():
        pid, parent, group, state, start = line.split(None, 4)
        if not state.startswith("Z"):
            table[int(pid)] = Process(int(pid), int(parent), int(group), None, start)
    return table


def _note_process(base: str, jobndx: int, native_id: str) -> None:
    """Record the process that was started, so that a reused pid is never mistaken for it."""
    process = _processes().get(int(native_id))
    note = {"pid": int(native_id), "start": process and process.start, "session": process and process.session}
    _write_whole(os.path.join(base, "prefect", f"native.{jobndx}"), json.dumps(note).encode())


def _members(base: str, jobndx: int, table: dict[int, Process]) -> list[Process]:
    """The live processes of one run on the local backend: psik's runner first, then what it started."""
    note = _read_json(os.path.join(base, "prefect", f"native.{jobndx}"))
    launched = _launched(base, jobndx)
    native = str(note["pid"]) if note else _native_id(base, jobndx) or (launched[0] if launched else "")
    runner = table.get(int(native)) if native.isdecimal() else None
    if runner and not (note["start"] == runner.start if note else _works_in(runner.pid, base)):
        runner = None  # another process got its pid
    session = note.get("session") if note else None
    group = int(launched[1].split(" ", 1)[0]) if launched else None
    mark = f"base={base}".encode()
    found = [runner] if runner else []
    for process in table.values():
        if process is runner or process.pid == os.getpid():
            continue
        related = (session is not None and process.session == session) or process.group == group
        if related and (runner or _has_variable(process.pid, mark)):
            found.append(process)
    return found


def _works_in(pid: int, base: str) -> bool:
    """Whether a process works in the job's directory, as psik's runner does; assumed if there is no /proc."""
    record = _read_json(os.path.join(base, "prefect", "job.json")) or {}
    try:
        return os.readlink(f"/proc/{pid}/cwd") == os.path.realpath(_directory(base, record))
    except OSError:
        return not os.path.exists("/proc/self/stat")


def _has_variable(pid: int, mark: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return mark in file.read().split(b"\0")
    except OSError:
        return not os.path.exists("/proc/self/stat")

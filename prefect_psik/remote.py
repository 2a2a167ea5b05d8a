"""AT THE FACILITY: everything that runs there, as one text that is sent there, behind one entry: `call`.

This file is a letter. It imports nothing of ours, only the standard library, and psik where a job is
submitted. JSON goes in and out; every operation is short, safe to run twice, and changes no state of its
process (umask, working directory, environment, signals, log levels), because an endpoint may run several
calls as threads of one process. It gathers facts and does atomic file work; what the facts mean is decided
by `outcome.py` on our side.

A job directory is psik's, with one directory of ours in it::

    PREFIX/STAMP/  spec.json status.csv work/ log/        psik's
                   prefect/job.json                       key, spec and owner; written last when creating
                           script                         the user's script
                           intent.N                       run N is about to be submitted: time and attempt
                           native.N                       what was started: pid, start, session (local)
                           process.N.ID owner.N refused.N.ID     written by the launcher in the job
                           cancel.N                       somebody asked us to cancel run N
    PREFIX/.locks/STAMP                                   held while a job is created and submitted
    PREFIX/.locks/squeue.json sacct.json                  what Slurm said last, shared by all callers
    PREFIX/audit.jsonl                                    who submitted and canceled what
"""

from __future__ import annotations

import base64
import binascii
import codecs
import contextlib
import errno
import fcntl
import getpass
import glob
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Iterator

PROTOCOL = 1
PSIK_OLDEST = (3, 1, 1)
LOCK_SECONDS = 10.0
#: An intent without a trace of the job is believed to have died only after this time.
DOUBT_SECONDS = 15.0
#: psik gives a script 5 s after SIGTERM before it kills it.
TERM_SECONDS = 7.0
KILL_SECONDS = 3.0
#: Slurm is asked about all jobs of this user at once, and not more often than this.
SQUEUE_SECONDS = 15.0
SACCT_SECONDS = 60.0
COMMAND_SECONDS = 30.0
SCANCEL_SECONDS = 15.0
PARALLEL_SUBMITS = 16
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
#: psik's exit codes behind which Slurm may stand: its own timer, SIGKILL, and a child killed by SIGKILL.
KILLED = ("9", "-9", "137")
#: sbatch's words when the request may have arrived all the same, and when it cannot have.
MAYBE_SUBMITTED = ("timed out", "Zero Bytes", "receive failure", "shutdown in progress")
NOT_SUBMITTED = ("Unable to contact", "Connection refused", "temporarily unable", "Resource temporarily")
STATUS_LIMIT = 64 * 1024
TAIL_BYTES = 4096
LOG_CHUNK_BYTES = 16 * 1024
LOG_CALL_BYTES = 1024 * 1024
OUTPUT_BYTES = 3 * 1024 * 1024
STAMP = re.compile(r"[0-9]+(\.[0-9]+)?")
FINAL = ("completed", "failed", "canceled")
STREAMS = ("stdout", "stderr", "console")


#: What a malformed payload or a defect of this file raises; never the whole of Exception.
DEFECTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class Trouble(Exception):
    """Something that the caller must know, as a sentence.

    `kind` is one of: payload, setup, spec, rejected, conflict, busy, missing.
    """

    def __init__(self, kind: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.answer = {"kind": kind, "message": message, **details}


def call(name: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Carry out one operation; the only entry.

    Returns:
        The operation's answer, or `{"error": {"kind", "message", ...}}`; always with the facility's clock.
    """
    operations = {"submit": submit, "status": status, "cancel": cancel, "fetch": fetch, "hello": hello}
    try:
        if name not in operations or not isinstance(payload, dict):
            raise Trouble("payload", f"There is no operation {name!r} in protocol {PROTOCOL}.")
        answer = operations[name](payload)
    except Trouble as trouble:
        answer = {"error": trouble.answer}
    except OSError as err:
        answer = {"error": _os_trouble(err).answer}
    except DEFECTS as err:
        answer = {"error": _defect(name, err).answer}
    answer["now"] = time.time()
    return answer


def hello(payload: dict[str, Any]) -> dict[str, Any]:
    """Say who and what answers."""
    return {
        "protocol": PROTOCOL,
        "host": socket.gethostname(),
        "user": _user(),
        "python": platform.python_version(),
        "executable": sys.executable,
    }


# ---------------------------------------------------------------------------------------------- payloads


def _defect(name: str, err: BaseException) -> Trouble:
    """What nobody foresaw: a sentence, and the traceback for those who mend it."""
    import traceback

    text = f"The call {name!r} cannot be carried out: {err!r}. Its payload is malformed, or this is a defect."
    return Trouble("payload", text, traceback="".join(traceback.format_exception(err)))


def _jobs(payload: dict[str, Any]) -> list[dict[str, Any]]:
    jobs = payload["jobs"]
    if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
        raise Trouble("payload", "The payload's jobs are no list of objects.")
    for job in jobs:
        if not isinstance(job["stamp"], str) or not STAMP.fullmatch(job["stamp"]):
            raise Trouble(
                "payload", f"{job['stamp']!r} is no stamp of psik: it must be digits, with at most one dot."
            )
        if not isinstance(job.get("jobndx", 1), int):
            raise Trouble("payload", f"{job['jobndx']!r} is no run number of job {job['stamp']}.")
    return list(jobs)


def _prefix(payload: dict[str, Any]) -> str:
    given = payload["prefix"]
    if not isinstance(given, str) or "\0" in given or "\n" in given:
        raise Trouble("payload", f"{given!r} is no path.")
    path = os.path.expanduser(os.path.expandvars(given))
    if "$" in path or not os.path.isabs(path):
        raise Trouble(
            "setup",
            f"The prefix {given!r} becomes {path!r} on {socket.gethostname()}, which is no absolute path. "
            "Use variables that are set there, or write the path out.",
        )
    return os.path.normpath(path)


def _existing_prefix(payload: dict[str, Any]) -> str:
    prefix = _prefix(payload)
    if not os.path.isdir(prefix):
        raise Trouble(
            "setup",
            f"The prefix {prefix} does not exist on {socket.gethostname()}: its file system is not mounted, or "
            "it was removed.",
        )
    return prefix


def _writable_prefix(payload: dict[str, Any]) -> str:
    prefix = _prefix(payload)
    try:
        os.makedirs(os.path.join(prefix, ".locks"), mode=0o700, exist_ok=True)
        probe = os.path.join(prefix, ".locks", f".probe.{os.getpid()}.{time.monotonic_ns()}")
        _write(probe, b"")
        os.unlink(probe)
    except OSError as err:
        raise Trouble(
            "setup",
            f"The prefix {prefix} on {socket.gethostname()} is not writable for {_user()}: {err.strerror}. "
            "Choose another prefix in the block, or mend its permissions or quota.",
        ) from None
    return prefix


def _os_trouble(err: OSError) -> Trouble:
    transient = err.errno in (errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE)
    return Trouble(
        "busy" if transient else "setup",
        f"The file system of {socket.gethostname()} said: {err.strerror or err} ({err.filename}).",
    )


# -------------------------------------------------------------------------------------------------- files


def _write(path: str, data: bytes, mode: int = 0o600) -> None:
    """Create a file that must not exist, or must be a plain file; never through a link."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)


def _write_whole(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write a file so that it is either whole or absent."""
    temporary = f"{path}.{os.getpid()}.{time.monotonic_ns()}.tmp"
    try:
        _write(temporary, data, mode)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _append(path: str, line: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, line.encode() + b"\n")
    finally:
        os.close(handle)


def _read(path: str, limit: int = STATUS_LIMIT) -> bytes | None:
    """Read the end of a file, or None if there is none."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - limit))
            return file.read(limit)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read_json(path: str) -> dict[str, Any] | None:
    data = _read(path, 4 * 1024 * 1024)
    if data is None:
        return None
    try:
        document = json.loads(data)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _audit(prefix: str, operation: str, job: dict[str, Any], **details: Any) -> None:
    entry = {"time": round(time.time(), 3), "operation": operation, "stamp": job["stamp"], "user": _user()}
    _append(os.path.join(prefix, "audit.jsonl"), json.dumps({**entry, "owner": job.get("owner"), **details}))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


@contextlib.asynccontextmanager
async def _locked(prefix: str, stamp: str) -> Any:
    """Hold the job's own lock; yields False if somebody else holds it for too long.

    It is released explicitly: a job that psik forks on its local backend inherits the descriptor.
    """
    import asyncio

    with _lock_file(os.path.join(prefix, ".locks", stamp)) as handle:
        deadline = time.monotonic() + LOCK_SECONDS
        while not (held := _try_lock(handle)) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        yield held


@contextlib.contextmanager
def _lock_file(path: str) -> Iterator[int]:
    """Open a file to lock; whatever was locked through it is released at the end."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield handle
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# -------------------------------------------------------------------------------------------- job directory


def _rows(base: str) -> list[tuple[float, int, str, str]]:
    """Read psik's status.csv: time, jobndx, state, info; lines that are no such thing are left out."""
    rows = []
    for line in (_read(os.path.join(base, "status.csv")) or b"").decode("utf-8", "replace").splitlines():
        fields = line.split(",", 3)
        with contextlib.suppress(ValueError, IndexError):
            rows.append((float(fields[0]), int(fields[1]), fields[2], fields[3]))
    return rows


def _last_run(base: str) -> int:
    """The highest run number that was submitted or meant to be, 0 if none."""
    numbers = [row[1] for row in _rows(base)]
    for path in glob.glob(os.path.join(glob.escape(base), "prefect", "intent.*")):
        with contextlib.suppress(ValueError):
            numbers.append(int(path.rsplit(".", 1)[1]))
    return max(numbers, default=0)


def _native_id(base: str, jobndx: int) -> str | None:
    return next((row[3] for row in reversed(_rows(base)) if row[1] == jobndx and row[2] == "queued"), None)


def _launched(base: str, jobndx: int) -> tuple[str, str] | None:
    """Native id and the script's process line, as the launcher left them."""
    ours = os.path.join(base, "prefect")
    try:
        owner = os.readlink(os.path.join(ours, f"owner.{jobndx}"))
    except OSError:
        return None
    text = (_read(os.path.join(ours, f"process.{jobndx}.{os.path.basename(owner)}")) or b"").decode(
        "utf-8", "replace"
    )
    return (owner, text.strip()) if text.strip() else None


def _directory(base: str, record: dict[str, Any]) -> str:
    return str(record.get("directory") or os.path.join(base, "work"))


# ------------------------------------------------------------------------------------------------- processes


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
            if name.isdigit():
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
    """Remember what was started, so that a recycled pid is never taken for it."""
    process = _processes().get(int(native_id))
    note = {"pid": int(native_id), "start": process and process.start, "session": process and process.session}
    _write_whole(os.path.join(base, "prefect", f"native.{jobndx}"), json.dumps(note).encode())


def _members(base: str, jobndx: int, table: dict[int, Process]) -> list[Process]:
    """The live processes of one run on the local backend: psik's runner first, then what it started."""
    note = _read_json(os.path.join(base, "prefect", f"native.{jobndx}"))
    launched = _launched(base, jobndx)
    native = str(note["pid"]) if note else _native_id(base, jobndx) or (launched[0] if launched else "")
    runner = table.get(int(native)) if native.isdigit() else None
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
    """Whether a process has the job's directory as its own, as psik's runner has; unknowable without /proc."""
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


# ----------------------------------------------------------------------------------------------------- Slurm


def _slurm(*command: str) -> tuple[bool, str]:
    """Run one of Slurm's commands; returns whether it succeeded, and what it printed."""
    environment = {**os.environ, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
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
    return True, done.stdout


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


# ---------------------------------------------------------------------------------------------------- submit


def submit(payload: dict[str, Any]) -> dict[str, Any]:
    """Create or get jobs: each stamp is submitted once, however often this is called.

    Payload:
        prefix, and jobs: each with stamp, key, digest, canonical, attempt, backend (psik's BackendConfig),
        spec (psik's JobSpec), script, files, outputs, expect, owner, and optionally rerun_after: the run
        that ended badly, after which a newer attempt may start the next one.

    Returns:
        `{"jobs": {stamp: {"created", "prefix", "jobndx", "native_id", "attempt", "facts"} or {"error"}}}`.
    """
    import asyncio

    jobs = _jobs(payload)
    prefix = _writable_prefix(payload)
    psik = _import_psik()
    loop = asyncio.new_event_loop()
    try:
        answers = loop.run_until_complete(_submit_all(psik, prefix, jobs))
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
    return {"jobs": answers}


async def _submit_all(psik: Any, prefix: str, jobs: list[dict[str, Any]]) -> dict[str, Any]:
    import asyncio

    # psik's local backend forks: one at a time.
    parallel = 1 if any(job["backend"].get("type") != "slurm" for job in jobs) else PARALLEL_SUBMITS
    turns = asyncio.Semaphore(parallel)

    async def one(job: dict[str, Any]) -> dict[str, Any]:
        async with turns:
            try:
                return await _submit_one(psik, prefix, job)
            except Trouble as trouble:
                return {"error": trouble.answer}
            except OSError as err:
                return {"error": _os_trouble(err).answer}
            except DEFECTS as err:
                return {"error": _defect("submit", err).answer}

    answers = await asyncio.gather(*(one(job) for job in jobs))
    return {job["stamp"]: answer for job, answer in zip(jobs, answers, strict=True)}


def _import_psik() -> Any:
    try:
        import importlib.metadata

        import psik

        version = importlib.metadata.version("psik")
    except ImportError as err:
        raise Trouble(
            "setup",
            f"psik cannot be imported by {sys.executable} on {socket.gethostname()} ({err}). Install it there: "
            "pip install 'psik>=3.1.1'.",
        ) from None
    if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < PSIK_OLDEST:
        oldest = ".".join(map(str, PSIK_OLDEST))
        raise Trouble(
            "setup",
            f"psik {version} on {socket.gethostname()} is too old: {oldest} or newer is needed. Upgrade it there: "
            f"pip install 'psik>={oldest}'.",
        )
    return psik


async def _submit_one(psik: Any, prefix: str, job: dict[str, Any]) -> dict[str, Any]:
    base = os.path.join(prefix, job["stamp"])
    async with _locked(prefix, job["stamp"]) as held:
        if not held:
            # A call that was killed between fork and release leaves the lock with the job it started.
            last = _last_run(base)
            if last and _launched(base, last):
                return _existing(prefix, base, job, last)
            raise Trouble("busy", f"Another call has been submitting job {job['stamp']} for {LOCK_SECONDS:.0f} s.")
        record = _read_json(os.path.join(base, "prefect", "job.json"))
        created = None
        if record is None:
            created = await _create(psik, prefix, base, job)
            jobndx = 1
        else:
            if record["key"] != job["key"] or record["digest"] != job["digest"]:
                raise Trouble(
                    "conflict",
                    f"The job directory {base} belongs to key {record['key']!r}.",
                    key=record["key"],
                    canonical=record["canonical"],
                )
            last = _last_run(base)
            if job.get("rerun_after") == last and _attempt(base, last) < job["attempt"]:
                jobndx = last + 1
            elif last and _native_id(base, last) is not None:
                return _existing(prefix, base, job, last)
            else:
                jobndx = last or 1
        native_id, warnings = await _launch(psik, prefix, base, job, jobndx, created)
    return {
        "created": True,
        "prefix": prefix,
        "jobndx": jobndx,
        "native_id": native_id,
        "attempt": job["attempt"],
        "warnings": warnings,
    }


def _attempt(base: str, jobndx: int) -> list[int]:
    intent = _read_json(os.path.join(base, "prefect", f"intent.{jobndx}")) or {}
    return list(intent.get("attempt") or [])


def _existing(prefix: str, base: str, job: dict[str, Any], jobndx: int) -> dict[str, Any]:
    facts = _facts(prefix, {"stamp": job["stamp"], "jobndx": jobndx}, _Snapshot([]))
    return {
        "created": False,
        "prefix": prefix,
        "jobndx": jobndx,
        "native_id": facts.get("native_id"),
        "attempt": _attempt(base, jobndx),
        "facts": facts,
    }


async def _create(psik: Any, prefix: str, base: str, job: dict[str, Any]) -> Any:
    """Make the job directory; job.json is written last, so a directory without it can go. Returns psik's job."""
    import anyio
    import psik.config
    import psik.models

    ours = os.path.join(base, "prefect")
    if job["backend"].get("type") == "slurm" and re.search(r"\s", base):
        raise Trouble(
            "setup", f"psik cannot submit to Slurm below {prefix}: the path has a blank. Choose another."
        )
    if os.path.lexists(base):
        if not os.path.isdir(ours) and os.listdir(base):
            raise Trouble("setup", f"{base} exists and is no job directory of prefect-psik. Move it away.")
        shutil.rmtree(base)
    spec = dict(job["spec"])
    try:
        os.mkdir(base, 0o700)
        os.mkdir(ours, 0o700)
        if spec.get("directory"):
            spec["directory"] = _given_directory(spec["directory"])
        else:
            spec["directory"] = os.path.join(base, "work")
            os.mkdir(spec["directory"], 0o700)
        _write(os.path.join(ours, "script"), job["script"].encode(), 0o700)
        _write_inputs(spec["directory"], job["files"])
        backend = psik.models.BackendConfig.model_validate(job["backend"])
        config = psik.config.Config(prefix=prefix, backends={"default": backend})
        model = psik.models.JobSpec.model_validate(spec)
        created = await psik.JobManager(config).create(model, base=anyio.Path(base))
        os.chmod(os.path.join(base, "log"), 0o700)
        os.chmod(os.path.join(base, "spec.json"), 0o600)
        os.chmod(os.path.join(base, "status.csv"), 0o600)
        kept = ("key", "digest", "canonical", "outputs", "expect", "owner")
        record = {name: job[name] for name in kept}
        requeue = any(option.startswith("--req") for option in spec["attributes"])
        record.update(
            version=PROTOCOL, requeue=requeue, type=backend.type, directory=spec["directory"], created=time.time()
        )
        _write_whole(os.path.join(ours, "job.json"), json.dumps(record).encode())
        return created
    except (OSError, Trouble, *DEFECTS):
        shutil.rmtree(base, ignore_errors=True)
        raise


def _given_directory(given: str) -> str:
    path = os.path.expanduser(os.path.expandvars(given))
    if not os.path.isdir(path) or not os.path.isabs(path):
        raise Trouble(
            "spec",
            f"The job's directory {given!r} is no directory on {socket.gethostname()} ({path}). Create it first.",
        )
    return os.path.normpath(path)


def _write_inputs(directory: str, files: dict[str, dict[str, Any]]) -> None:
    top = os.path.realpath(directory)
    for name, content in files.items():
        path = os.path.normpath(os.path.join(top, name))
        parent = os.path.dirname(path)
        if not path.startswith(top + os.sep):
            raise Trouble("spec", f"The input file {name!r} would lie outside of the job's directory {top}.")
        if not (os.path.realpath(parent) + os.sep).startswith(top + os.sep):
            raise Trouble("spec", f"The input file {name!r} would leave the job's directory {top} through a link.")
        os.makedirs(parent, mode=0o700, exist_ok=True)
        try:
            data = (
                content["text"].encode()
                if content.get("text") is not None
                else base64.b64decode(content["base64"])
            )
        except binascii.Error as err:
            raise Trouble("spec", f"The input file {name!r} is not base64: {err}.") from None
        _write(path, data)


async def _launch(
    psik: Any, prefix: str, base: str, job: dict[str, Any], jobndx: int, created: Any
) -> tuple[str, list[str]]:
    """Submit one run through psik, or adopt what an earlier call that died has already started."""
    slurm = job["backend"].get("type") == "slurm"
    intent = os.path.join(base, "prefect", f"intent.{jobndx}")
    if os.path.exists(intent):
        since = (_read_json(intent) or {}).get("time", os.stat(intent).st_mtime)
        adopted = _adopt(base, jobndx, since if slurm else None)
        if adopted is not None:
            _audit(prefix, "adopt", job, jobndx=jobndx, native_id=adopted)
            return adopted, []
        age = time.time() - since
        doubt = _slurm_message_seconds() + 10 if slurm else DOUBT_SECONDS
        if age < doubt:
            raise Trouble(
                "busy",
                f"An earlier call may have started job {job['stamp']} {age:.0f} s ago, without a trace yet; it is "
                f"submitted again if there is none after {doubt:.0f} s.",
            )
    # psik's local backend appends the console of all runs to one file; Slurm begins it anew.
    console = 0 if slurm else _size(_log(base, "console", jobndx))
    intended = {"time": time.time(), "attempt": job["attempt"], "console": console}
    _write_whole(intent, json.dumps(intended).encode())
    pid = os.getpid()
    said: list[str] = []
    try:
        number, native_id = await _psik_submit(created or await psik.Job(base), base, said, slurm)
    except (psik.exceptions.SubmitException, FileNotFoundError, IndexError) as err:
        raise _refusal(base, intent, jobndx, " ".join(said) or str(err), slurm) from None
    finally:
        # psik's local backend forks; should the child come back up here, it must not go on as this process.
        if os.getpid() != pid:
            os._exit(70)
    if not slurm:
        _note_process(base, number, native_id)
    _audit(prefix, "submit", job, jobndx=number, native_id=native_id)
    return str(native_id), said


async def _psik_submit(job: Any, base: str, said: list[str], slurm: bool) -> tuple[int, str]:
    job.spec.attributes.pop("psik_python", None)
    if slurm:
        # The working directory is kept in Slurm's accounting too: by it a job is found after a lost reply.
        job.spec.attributes[f"--chdir={base}"] = f"--chdir={base}"
    # A job that psik forks would inherit the listener, and its warnings would not reach its console.
    with _listening(said) if slurm else contextlib.nullcontext():
        number, native_id = await job.submit()
    return number, native_id


@contextlib.contextmanager
def _listening(said: list[str]) -> Iterator[None]:
    """Collect what sbatch says: psik only logs it. Other jobs of this process are not heard."""
    import contextvars
    import logging

    mine: contextvars.ContextVar[bool] = contextvars.ContextVar("mine", default=False)

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if mine.get() and text.startswith("sbatch stderr: "):
                lines = text.split(": ", 1)[1].splitlines()
                said.append(" ".join(re.sub("^sbatch: (error: )?", "", line).strip() for line in lines))

    ear, logger = Ear(), logging.getLogger("psik.console")
    token = mine.set(True)
    logger.addHandler(ear)
    try:
        yield
    finally:
        logger.removeHandler(ear)
        mine.reset(token)


def _refusal(base: str, intent: str, jobndx: int, text: str, slurm: bool) -> Trouble:
    """Word a submission that failed; only where nothing can have been submitted, its traces go."""
    if slurm and any(words in text for words in MAYBE_SUBMITTED):
        return Trouble("busy", f"Slurm did not confirm the submission: {text}")
    os.unlink(intent)
    if jobndx == 1:
        shutil.rmtree(base, ignore_errors=True)
    if slurm and any(words in text for words in NOT_SUBMITTED):
        return Trouble("busy", f"Slurm cannot be reached: {text}")
    if "No such file or directory: 'sbatch'" in text:
        return Trouble("setup", f"sbatch is not on the PATH of the endpoint on {socket.gethostname()}.")
    return Trouble("rejected", f"The facility refused the job: {text}")


def _adopt(base: str, jobndx: int, slurm_since: float | None) -> str | None:
    """Find the job that an earlier call started, and record its id; None if there is no trace of it."""
    native_id = _native_id(base, jobndx)
    if native_id is not None:
        return native_id
    launched = _launched(base, jobndx)
    found = launched[0] if launched else None
    if found is None and slurm_since is not None:
        found = _find_in_slurm(base, slurm_since)
    if found is None:
        return None
    _append(os.path.join(base, "status.csv"), f"{time.time()},{jobndx},queued,{found}")
    if slurm_since is None:
        _note_process(base, jobndx, found)
    return found


# ---------------------------------------------------------------------------------------------------- status


class _Snapshot:
    """What is looked up once for all jobs of a call, when first needed."""

    def __init__(self, native_ids: list[str | None]) -> None:
        self.log_budget = LOG_CALL_BYTES
        self._native_ids = [native_id for native_id in native_ids if native_id]
        self._processes: dict[int, Process] | None = None
        self._squeue: dict[str, Any] | None = None
        self._sacct: dict[str, Any] | None = None

    @property
    def processes(self) -> dict[int, Process]:
        if self._processes is None:
            self._processes = _processes()
        return self._processes

    def squeue(self, prefix: str) -> dict[str, Any]:
        if self._squeue is None:
            self._squeue = _shared(prefix, "squeue", SQUEUE_SECONDS, [], lambda: _ask_squeue("-u", _user()))
        return self._squeue

    def sacct(self, prefix: str, native_id: str) -> dict[str, Any]:
        if self._sacct is None:
            listed = self.squeue(prefix)["rows"]
            wanted = sorted({native_id, *(job for job in self._native_ids if job not in listed)})
            self._sacct = _shared(prefix, "sacct", SACCT_SECONDS, wanted, lambda: _ask_sacct(wanted))
        return self._sacct


def status(payload: dict[str, Any]) -> dict[str, Any]:
    """Gather facts of many jobs.

    Payload:
        prefix, and jobs: each with stamp, jobndx, seen (the token of the last answer), and offsets: bytes
        already read of each log; without offsets no log text comes.

    Returns:
        `{"jobs": {stamp: facts}}`; a job whose token is unchanged comes as `{"same": true}`.
    """
    prefix = _existing_prefix(payload)
    jobs = _jobs(payload)
    snapshot = _Snapshot([_native_id(os.path.join(prefix, job["stamp"]), job.get("jobndx") or 1) for job in jobs])
    answers: dict[str, Any] = {}
    for job in jobs:
        facts = _facts(prefix, job, snapshot)
        same = facts["token"] is not None and facts["token"] == job.get("seen")
        answers[job["stamp"]] = {"same": True} if same else facts
    return {"jobs": answers}


def _facts(prefix: str, job: dict[str, Any], snapshot: _Snapshot) -> dict[str, Any]:
    base = os.path.join(prefix, job["stamp"])
    record = _read_json(os.path.join(base, "prefect", "job.json"))
    if record is None:
        return {"missing": True, "token": "missing"}
    jobndx = job.get("jobndx") or _last_run(base) or 1
    ours = os.path.join(base, "prefect")
    native_id = _native_id(base, jobndx)
    intent = _read_json(os.path.join(ours, f"intent.{jobndx}")) or {}
    begins = {"console": int(intent.get("console", 0))}
    facts: dict[str, Any] = {
        "jobndx": jobndx,
        "native_id": native_id,
        "type": record["type"],
        "intent": intent.get("time"),
        "cancel_asked": (_read_json(os.path.join(ours, f"cancel.{jobndx}")) or {}).get("time"),
        "refused": len(glob.glob(os.path.join(glob.escape(ours), f"refused.{jobndx}.*"))),
    }
    lasting = _has_end(base, jobndx) and not _doubtful(base, jobndx, record)
    if not lasting:
        # Who is alive first, then psik's record: a job that ends in between has written its last line.
        if record["type"] == "slurm":
            facts.update(_slurm_facts(prefix, native_id, facts["intent"], snapshot) if native_id else {})
            facts["alive"] = _slurm_alive(facts)
        else:
            facts["alive"] = bool(_members(base, jobndx, snapshot.processes))
    facts["status"] = (_read(os.path.join(base, "status.csv")) or b"").decode("utf-8", "replace")
    facts["sizes"] = {stream: _size(_log(base, stream, jobndx)) for stream in STREAMS}
    ended = _has_end(base, jobndx)
    if lasting or facts.get("alive") is False:
        facts["tails"] = {stream: _tail(_log(base, stream, jobndx), begins.get(stream, 0)) for stream in STREAMS}
        facts["expect"] = {pattern: _count(_directory(base, record), pattern) for pattern in record["expect"]}
        facts["outputs"] = {
            pattern: len(_output_files(_directory(base, record), pattern)) for pattern in record["outputs"]
        }
    token = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    # Where Slurm tells an end and psik does not yet, time alone changes what it means.
    facts["token"] = None if facts.get("alive") is False and not ended else token
    facts["now"] = time.time()
    if job.get("offsets") is not None:
        facts["logs"] = {
            stream: _log_text(
                _log(base, stream, jobndx),
                max(int(job["offsets"].get(stream, 0)), begins.get(stream, 0)),
                snapshot,
            )
            for stream in STREAMS
        }
    return facts


def _doubtful(base: str, jobndx: int, record: dict[str, Any]) -> bool:
    """Whether Slurm must be heard although psik recorded an end: it may run the job again, or have killed it."""
    killed = any(row[1] == jobndx and row[2] == "failed" and row[3] in KILLED for row in _rows(base))
    return record["type"] == "slurm" and (bool(record.get("requeue")) or killed)


def _has_end(base: str, jobndx: int) -> bool:
    return any(row[1] == jobndx and row[2] in FINAL for row in _rows(base))


def _log(base: str, stream: str, jobndx: int) -> str:
    return os.path.join(base, "log", "console" if stream == "console" else f"{stream}.{jobndx}")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _tail(path: str, begin: int) -> str:
    length = min(_size(path) - begin, TAIL_BYTES)
    return (_read(path, length) or b"").decode("utf-8", "replace") if length > 0 else ""


def _log_text(path: str, offset: int, snapshot: _Snapshot) -> dict[str, Any]:
    """Text of a log from a byte offset on; a log that became shorter was begun anew."""
    size = _size(path)
    begin = offset if 0 <= offset <= size else 0
    length = min(size - begin, LOG_CHUNK_BYTES, snapshot.log_budget)
    data = b""
    if length > 0:
        with open(path, "rb") as file:
            file.seek(begin)
            data = file.read(length)
    snapshot.log_budget -= len(data)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    # The beginning of a character that is not all there yet waits for the next time.
    return {"text": text, "next": begin + len(data) - len(decoder.getstate()[0]), "size": size}


def _count(directory: str, pattern: str) -> int:
    """How many existing paths a glob matches, counted up to 1000."""
    absolute = os.path.expanduser(os.path.expandvars(pattern))
    if not os.path.isabs(absolute):
        absolute = os.path.join(glob.escape(directory), absolute)
    return sum(1 for _ in itertools.islice(glob.iglob(absolute, recursive=True), 1000))


# ---------------------------------------------------------------------------------------------------- cancel


def cancel(payload: dict[str, Any]) -> dict[str, Any]:
    """End jobs, confirm that they ended, then record it; a job that had already ended keeps its end.

    Returns:
        `{"jobs": {stamp: facts or {"error"}}}`.
    """
    prefix = _existing_prefix(payload)
    jobs = {job["stamp"]: job for job in _jobs(payload)}
    runs: dict[str, dict[str, int]] = {"local": {}, "slurm": {}}
    for stamp, job in jobs.items():
        base = os.path.join(prefix, stamp)
        record = _read_json(os.path.join(base, "prefect", "job.json"))
        jobndx = job.get("jobndx") or _last_run(base) or 1
        if record is not None and not _has_end(base, jobndx):
            asked = {"time": time.time(), "user": _user(), "owner": job.get("owner")}
            _write_whole(os.path.join(base, "prefect", f"cancel.{jobndx}"), json.dumps(asked).encode())
            runs["slurm" if record["type"] == "slurm" else "local"][base] = jobndx
    remaining, cancelled = _end_in_slurm(runs["slurm"])
    remaining.update(_end_processes(list(runs["local"].items())))
    answers: dict[str, Any] = {}
    for base, jobndx in {**runs["local"], **runs["slurm"]}.items():
        stamp = os.path.basename(base)
        if base in remaining:
            message = f"Job {stamp} has not ended yet: {remaining[base]}."
            answers[stamp] = {"error": Trouble("busy", message).answer}
        elif not _has_end(base, jobndx) and (base in cancelled or base in runs["local"]):
            _append(os.path.join(base, "status.csv"), f"{time.time()},{jobndx},canceled,")
            _audit(prefix, "cancel", jobs[stamp], jobndx=jobndx)
    snapshot = _Snapshot([])
    for stamp, job in jobs.items():
        if stamp not in answers:
            answers[stamp] = _facts(prefix, job, snapshot)
    return {"jobs": answers}


def _end_in_slurm(runs: dict[str, int]) -> tuple[dict[str, str], set[str]]:
    """Ask Slurm to end these runs and wait until it says so; only ids that this prefix recorded are touched.

    Returns:
        What it says of those that go on, and those that it calls cancelled. One that ended in another way
        needs no record of ours: `status` reads why.
    """
    cancelled: set[str] = set()
    ids = {base: _native_id(base, jobndx) or "" for base, jobndx in runs.items()}
    remaining = {base: "its submission is not confirmed yet" for base, native_id in ids.items() if not native_id}
    waiting = {base: native_id for base, native_id in ids.items() if native_id}
    if not waiting:
        return remaining, cancelled
    ok, text = _slurm("scancel", *waiting.values())
    deadline = time.monotonic() + SCANCEL_SECONDS
    answer = "Slurm has not been asked"
    while waiting and time.monotonic() < deadline:
        listed, answer = _ask_squeue("-j", ",".join([*waiting.values(), "999999999", "999999998"]))
        if listed:
            rows = _rows_by_id(answer)
            # What squeue no longer lists has ended; its row stays for a while after the end.
            states = {
                base: rows[native_id][0] if native_id in rows else "gone" for base, native_id in waiting.items()
            }
            cancelled |= {base for base, state in states.items() if state == "CANCELLED"}
            waiting = {
                base: waiting[base] for base, state in states.items() if state not in SLURM_FINAL | {"gone"}
            }
            how = "accepted" if ok else f"refused ({text})"
            answer = f"scancel was {how}, but Slurm has it as {set(states.values())}"
        if waiting:
            time.sleep(0.5)
    return {**remaining, **dict.fromkeys(waiting, answer)}, cancelled


def _end_processes(runs: list[tuple[str, int]]) -> dict[str, str]:
    """Ask all processes of these runs to end, then force them; return those that are still there."""
    begin = time.monotonic()
    asked: set[tuple[str, int]] = set()
    alive: dict[str, str] = {}
    quiet = 0
    while runs and quiet < 2 and time.monotonic() - begin < TERM_SECONDS + KILL_SECONDS:
        table = _processes()
        force = time.monotonic() - begin > TERM_SECONDS
        alive = {}
        for base, jobndx in runs:
            members = _members(base, jobndx, table)
            if members:
                alive[base] = f"processes {[process.pid for process in members]} are alive"
            # psik's runner passes the signal on to the script; without it we tell everybody.
            for process in members if force else members[:1]:
                if force or (base, process.pid) not in asked:
                    asked.add((base, process.pid))
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL if force else signal.SIGTERM)
        quiet = 0 if alive else quiet + 1
        time.sleep(0.05)
    return alive


# ----------------------------------------------------------------------------------------------------- fetch


def fetch(payload: dict[str, Any]) -> dict[str, Any]:
    """Bring back the small result files that the job's `outputs` name.

    Returns:
        `{"jobs": {stamp: {"files": {path: base64}, "too_large": {path: size}}}}`, paths relative to the
        job's directory. What does not fit into the answer is in too_large.
    """
    prefix = _prefix(payload)
    budget = OUTPUT_BYTES
    answers: dict[str, Any] = {}
    for job in _jobs(payload):
        base = os.path.join(prefix, job["stamp"])
        record = _read_json(os.path.join(base, "prefect", "job.json"))
        if record is None:
            answers[job["stamp"]] = {"missing": True}
            continue
        files: dict[str, str] = {}
        too_large: dict[str, int] = {}
        for pattern in record["outputs"]:
            for name, path in _output_files(_directory(base, record), pattern).items():
                size = os.stat(path).st_size
                if name in files:
                    continue
                if size > budget:
                    too_large[name] = size
                    continue
                with open(path, "rb") as file:
                    data = file.read(budget)
                budget -= len(data)
                files[name] = base64.b64encode(data).decode()
        answers[job["stamp"]] = {"files": files, "too_large": too_large}
    return {"jobs": answers}


def _output_files(directory: str, pattern: str) -> dict[str, str]:
    """Plain files of the job's directory that a glob matches: name -> path; links out of it do not count."""
    top = os.path.realpath(directory)
    found = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(top), pattern), recursive=True)):
        real = os.path.realpath(path)
        if os.path.isfile(real) and real.startswith(top + os.sep):
            found[os.fsencode(os.path.relpath(path, top)).decode("utf-8", "replace")] = real
    return found

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
STATUS_LIMIT = 64 * 1024
TAIL_BYTES = 4096
LOG_CHUNK_BYTES = 16 * 1024
LOG_CALL_BYTES = 1024 * 1024
OUTPUT_BYTES = 3 * 1024 * 1024
STAMP = re.compile(r"[0-9]+(\.[0-9]+)?")
FINAL = ("completed", "failed", "canceled")
STREAMS = ("stdout", "stderr", "console")


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
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        if name in operations and _well_formed(payload):
            raise
        answer = {"error": Trouble("payload", f"The payload of {name!r} is malformed: {err!r}.").answer}
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


def _well_formed(payload: Any) -> bool:
    jobs = payload.get("jobs") if isinstance(payload, dict) else None
    return isinstance(jobs, list) and all(isinstance(job, dict) and "stamp" in job for job in jobs)


def _jobs(payload: dict[str, Any]) -> list[dict[str, Any]]:
    jobs = payload["jobs"]
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


@contextlib.contextmanager
def _locked(prefix: str, stamp: str) -> Iterator[bool]:
    """Hold the job's own lock; yields False if somebody else holds it for too long.

    It is released explicitly: a job that psik forks on its local backend inherits the descriptor.
    """
    handle = os.open(os.path.join(prefix, ".locks", stamp), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_SECONDS
    held = False
    try:
        while not held and time.monotonic() < deadline:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                time.sleep(0.05)
        yield held
    finally:
        if held:
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


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
    for path in glob.glob(os.path.join(glob.escape(base), "prefect", f"process.{jobndx}.*")):
        text = (_read(path) or b"").decode("utf-8", "replace").strip()
        if text:
            return path.split(f"process.{jobndx}.", 1)[1], text
    return None


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
    if runner and note and note["start"] != runner.start:
        runner = None
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


def _has_variable(pid: int, mark: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return mark in file.read().split(b"\0")
    except OSError:
        return not os.path.exists("/proc/self/stat")


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
    answers: dict[str, Any] = {}
    loop = asyncio.new_event_loop()
    try:
        for job in jobs:
            try:
                answers[job["stamp"]] = _submit_one(loop, psik, prefix, job)
            except Trouble as trouble:
                answers[job["stamp"]] = {"error": trouble.answer}
            except OSError as err:
                answers[job["stamp"]] = {"error": _os_trouble(err).answer}
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    return {"jobs": answers}


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


def _submit_one(loop: Any, psik: Any, prefix: str, job: dict[str, Any]) -> dict[str, Any]:
    base = os.path.join(prefix, job["stamp"])
    if job["backend"].get("type") != "local":
        raise Trouble("setup", "This version submits to psik's `local` backend only. Use a block of type local.")
    with _locked(prefix, job["stamp"]) as held:
        if not held:
            # A call that was killed between fork and release leaves the lock with the job it started.
            last = _last_run(base)
            if last and _launched(base, last):
                return _existing(prefix, base, job, last)
            raise Trouble("busy", f"Another call has been submitting job {job['stamp']} for {LOCK_SECONDS:.0f} s.")
        record = _read_json(os.path.join(base, "prefect", "job.json"))
        if record is None:
            _create(loop, psik, prefix, base, job)
            jobndx = 1
        else:
            if record["key"] != job["key"] or record["digest"] != job["digest"]:
                raise Trouble(
                    "conflict",
                    f"The job directory {base} belongs to key {record['key']!r}.",
                    key=record["key"],
                    canonical=record["canonical"],
                )
            jobndx = last = _last_run(base)
            if last == 0:
                jobndx = 1
            elif job.get("rerun_after") == last and _attempt(base, last) < job["attempt"]:
                jobndx = last + 1
            elif _native_id(base, last) is not None:
                return _existing(prefix, base, job, last)
        native_id = _launch(loop, psik, prefix, base, job, jobndx)
    return {
        "created": True,
        "prefix": prefix,
        "jobndx": jobndx,
        "native_id": native_id,
        "attempt": job["attempt"],
        "facts": _facts(prefix, {"stamp": job["stamp"], "jobndx": jobndx}, _Snapshot()),
    }


def _attempt(base: str, jobndx: int) -> list[int]:
    intent = _read_json(os.path.join(base, "prefect", f"intent.{jobndx}")) or {}
    return list(intent.get("attempt") or [])


def _existing(prefix: str, base: str, job: dict[str, Any], jobndx: int) -> dict[str, Any]:
    facts = _facts(prefix, {"stamp": job["stamp"], "jobndx": jobndx}, _Snapshot())
    return {
        "created": False,
        "prefix": prefix,
        "jobndx": jobndx,
        "native_id": facts.get("native_id"),
        "attempt": _attempt(base, jobndx),
        "facts": facts,
    }


def _create(loop: Any, psik: Any, prefix: str, base: str, job: dict[str, Any]) -> None:
    """Make psik's job directory; job.json is written last, so a directory without it can go."""
    import anyio
    import psik.config
    import psik.models

    ours = os.path.join(base, "prefect")
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
        loop.run_until_complete(psik.JobManager(config).create(model, base=anyio.Path(base)))
        os.chmod(os.path.join(base, "log"), 0o700)
        os.chmod(os.path.join(base, "spec.json"), 0o600)
        os.chmod(os.path.join(base, "status.csv"), 0o600)
        kept = ("key", "digest", "canonical", "outputs", "expect", "owner")
        record = {name: job[name] for name in kept}
        record.update(version=PROTOCOL, type=backend.type, directory=spec["directory"], created=time.time())
        _write_whole(os.path.join(ours, "job.json"), json.dumps(record).encode())
    except (OSError, Trouble):
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
        os.makedirs(parent, mode=0o700, exist_ok=True)
        if not (os.path.realpath(parent) + os.sep).startswith(top + os.sep):
            raise Trouble("spec", f"The input file {name!r} would leave the job's directory {top} through a link.")
        try:
            data = (
                content["text"].encode()
                if content.get("text") is not None
                else base64.b64decode(content["base64"])
            )
        except binascii.Error as err:
            raise Trouble("spec", f"The input file {name!r} is not base64: {err}.") from None
        _write(path, data)


def _launch(loop: Any, psik: Any, prefix: str, base: str, job: dict[str, Any], jobndx: int) -> str:
    """Submit one run through psik, or adopt what an earlier call that died has already started."""
    intent = os.path.join(base, "prefect", f"intent.{jobndx}")
    earlier = _read_json(intent) if os.path.exists(intent) else None
    if os.path.exists(intent):
        adopted = _adopt(base, jobndx)
        if adopted is not None:
            _audit(prefix, "adopt", job, jobndx=jobndx, native_id=adopted)
            return adopted
        age = time.time() - (earlier or {}).get("time", os.stat(intent).st_mtime)
        if age < DOUBT_SECONDS:
            raise Trouble(
                "busy",
                f"An earlier call may have started job {job['stamp']} {age:.1f} s ago, without a trace yet.",
            )
    _write_whole(intent, json.dumps({"time": time.time(), "attempt": job["attempt"]}).encode())
    pid = os.getpid()
    try:
        number, native_id = loop.run_until_complete(_psik_submit(psik, base))
    except psik.exceptions.SubmitException as err:
        os.unlink(intent)
        if jobndx == 1:
            shutil.rmtree(base, ignore_errors=True)
        raise Trouble("rejected", str(err)) from None
    finally:
        # psik's local backend forks; should the child come back up here, it must not go on as this process.
        if os.getpid() != pid:
            os._exit(70)
    _note_process(base, number, native_id)
    _audit(prefix, "submit", job, jobndx=number, native_id=native_id)
    return str(native_id)


async def _psik_submit(psik: Any, base: str) -> tuple[int, str]:
    job = await psik.Job(base)
    job.spec.attributes.pop("psik_python", None)
    number, native_id = await job.submit()
    return number, native_id


def _adopt(base: str, jobndx: int) -> str | None:
    native_id = _native_id(base, jobndx)
    if native_id is not None:
        return native_id
    launched = _launched(base, jobndx)
    if launched is None:
        return None
    _append(os.path.join(base, "status.csv"), f"{time.time()},{jobndx},queued,{launched[0]}")
    _note_process(base, jobndx, launched[0])
    return launched[0]


# ---------------------------------------------------------------------------------------------------- status


class _Snapshot:
    """What is looked up once for all jobs of a call, when first needed."""

    def __init__(self) -> None:
        self.log_budget = LOG_CALL_BYTES
        self._processes: dict[int, Process] | None = None

    @property
    def processes(self) -> dict[int, Process]:
        if self._processes is None:
            self._processes = _processes()
        return self._processes


def status(payload: dict[str, Any]) -> dict[str, Any]:
    """Gather facts of many jobs.

    Payload:
        prefix, and jobs: each with stamp, jobndx, seen (the token of the last answer), and offsets: bytes
        already read of each log; without offsets no log text comes.

    Returns:
        `{"jobs": {stamp: facts}}`; a job whose token is unchanged comes as `{"same": true}`.
    """
    prefix = _prefix(payload)
    snapshot = _Snapshot()
    answers: dict[str, Any] = {}
    for job in _jobs(payload):
        facts = _facts(prefix, job, snapshot)
        answers[job["stamp"]] = {"same": True} if facts.get("token") == job.get("seen") else facts
    return {"jobs": answers}


def _facts(prefix: str, job: dict[str, Any], snapshot: _Snapshot) -> dict[str, Any]:
    base = os.path.join(prefix, job["stamp"])
    record = _read_json(os.path.join(base, "prefect", "job.json"))
    if record is None:
        return {"missing": True, "token": "missing"}
    jobndx = job.get("jobndx") or _last_run(base) or 1
    ours = os.path.join(base, "prefect")
    native_id = _native_id(base, jobndx)
    facts: dict[str, Any] = {
        "jobndx": jobndx,
        "native_id": native_id,
        "type": record["type"],
        "intent": (_read_json(os.path.join(ours, f"intent.{jobndx}")) or {}).get("time"),
        "cancel_asked": (_read_json(os.path.join(ours, f"cancel.{jobndx}")) or {}).get("time"),
        "refused": len(glob.glob(os.path.join(glob.escape(ours), f"refused.{jobndx}.*"))),
    }
    ended = any(row[1] == jobndx and row[2] in FINAL for row in _rows(base))
    if not ended:
        # The processes first, then psik's record: one that ends in between has written its last line.
        facts["alive"] = bool(_members(base, jobndx, snapshot.processes))
    facts["status"] = (_read(os.path.join(base, "status.csv")) or b"").decode("utf-8", "replace")
    ended = any(row[1] == jobndx and row[2] in FINAL for row in _rows(base))
    gone = not ended and facts.get("alive") is False
    facts["sizes"] = {stream: _size(_log(base, stream, jobndx)) for stream in STREAMS}
    if ended or gone:
        facts["tails"] = {stream: _tail(_log(base, stream, jobndx)) for stream in STREAMS}
        facts["expect"] = {pattern: _count(_directory(base, record), pattern) for pattern in record["expect"]}
        facts["outputs"] = {
            pattern: len(_output_files(_directory(base, record), pattern)) for pattern in record["outputs"]
        }
    facts["token"] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    if job.get("offsets") is not None:
        facts["logs"] = {
            stream: _log_text(_log(base, stream, jobndx), int(job["offsets"].get(stream, 0)), snapshot)
            for stream in STREAMS
        }
    return facts


def _log(base: str, stream: str, jobndx: int) -> str:
    return os.path.join(base, "log", "console" if stream == "console" else f"{stream}.{jobndx}")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _tail(path: str) -> str:
    return (_read(path, TAIL_BYTES) or b"").decode("utf-8", "replace")


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
    prefix = _prefix(payload)
    jobs = _jobs(payload)
    answers: dict[str, Any] = {}
    ending: dict[str, tuple[dict[str, Any], str, int]] = {}
    for job in jobs:
        base = os.path.join(prefix, job["stamp"])
        if _read_json(os.path.join(base, "prefect", "job.json")) is None:
            answers[job["stamp"]] = {"missing": True, "token": "missing"}
            continue
        jobndx = job.get("jobndx") or _last_run(base) or 1
        if not any(row[1] == jobndx and row[2] in FINAL for row in _rows(base)):
            asked = {"time": time.time(), "user": _user(), "owner": job.get("owner")}
            _write_whole(os.path.join(base, "prefect", f"cancel.{jobndx}"), json.dumps(asked).encode())
            ending[job["stamp"]] = (job, base, jobndx)
    remaining = _end_processes([(base, jobndx) for _, base, jobndx in ending.values()])
    for stamp, (job, base, jobndx) in ending.items():
        if base in remaining:
            answers[stamp] = {
                "error": Trouble("busy", f"Processes of job {stamp} are still alive: {remaining[base]}.").answer
            }
            continue
        if not any(row[1] == jobndx and row[2] in FINAL for row in _rows(base)):
            _append(os.path.join(base, "status.csv"), f"{time.time()},{jobndx},canceled,")
            _audit(prefix, "cancel", job, jobndx=jobndx)
    snapshot = _Snapshot()
    for job in jobs:
        if job["stamp"] not in answers:
            answers[job["stamp"]] = _facts(prefix, job, snapshot)
    return {"jobs": answers}


def _end_processes(runs: list[tuple[str, int]]) -> dict[str, list[int]]:
    """Ask all processes of these runs to end, then force them; return those that are still there."""
    begin = time.monotonic()
    asked: set[tuple[str, int]] = set()
    alive: dict[str, list[int]] = {}
    quiet = 0
    while quiet < 2 and time.monotonic() - begin < TERM_SECONDS + KILL_SECONDS:
        table = _processes()
        force = time.monotonic() - begin > TERM_SECONDS
        alive = {}
        for base, jobndx in runs:
            members = _members(base, jobndx, table)
            if members:
                alive[base] = [process.pid for process in members]
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
            found[os.path.relpath(path, top)] = real
    return found

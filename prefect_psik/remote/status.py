"""Gather the facts about jobs: the operation `status`."""

from __future__ import annotations

import codecs
import contextlib
import glob
import hashlib
import json
import os
import time
from typing import Any

from prefect_psik.remote.fetch import _wanted
from prefect_psik.remote.files import _open, _read, _read_json, _read_log, _size, _write_whole
from prefect_psik.remote.job_directory import (
    FINAL,
    STREAMS,
    _last_run,
    _launched,
    _log,
    _native_id,
    _parsed,
    _status_text,
)
from prefect_psik.remote.ownership import _job_directory
from prefect_psik.remote.processes import Process, _members, _processes
from prefect_psik.remote.signals import _signals
from prefect_psik.remote.slurm import _has_ended, _is_row
from prefect_psik.remote.slurm_answers import _shared_accounts, _shared_queue, _slurm_facts
from prefect_psik.remote.wire import DEFECTS, Trouble, _defect, _existing_prefix, _jobs, _os_trouble

#: Exit codes in psik's record that Slurm may have caused: of psik's timer, SIGKILL, and a child killed by SIGKILL.
KILLED = ("9", "-9", "137")
TAIL_BYTES = 4096
LOG_CHUNK_BYTES = 16 * 1024
LOG_CALL_BYTES = 1024 * 1024
#: Most bytes of facts in one answer, log tails included; the transport takes 5 MB.
FACTS_CALL_BYTES = 3 * 1024 * 1024
#: Most bytes of facts about one job.
FACTS_JOB_BYTES = 1024 * 1024


class _Snapshot:
    """What is looked up once for all jobs of a call, when first needed, and how much its answer may still hold."""

    def __init__(self, prefix: str, jobs: list[dict[str, Any]]) -> None:
        self.log_budget = LOG_CALL_BYTES
        self.facts_budget = FACTS_CALL_BYTES
        self._prefix = prefix
        self._jobs = jobs
        self._processes: dict[int, Process] | None = None
        self._squeue: dict[str, Any] | None = None
        self._sacct: dict[str, Any] | None = None

    @property
    def processes(self) -> dict[int, Process]:
        if self._processes is None:
            self._processes = _processes()
        return self._processes

    @property
    def squeue(self) -> dict[str, Any]:
        if self._squeue is None:
            self._squeue = _shared_queue(self._prefix)
        return self._squeue

    def sacct(self, native_id: str) -> dict[str, Any]:
        if self._sacct is None:
            native_ids = {_legible_id(self._prefix, job) for job in self._jobs}
            gone = {known for known in native_ids if known and known not in self.squeue["rows"]}
            self._sacct = _shared_accounts(self._prefix, sorted({native_id, *gone}))
        elif native_id not in self._sacct["asked"]:
            self._sacct = _shared_accounts(self._prefix, [native_id])
        return self._sacct


def _legible_id(prefix: str, job: dict[str, Any]) -> str | None:
    """The native id of a job; None if its records do not have it, which the job's own answer explains."""
    try:
        base = _job_directory(prefix, job["stamp"])
        native_id = _native_id(base, job.get("jobndx") or _last_run(base) or 1)
    except (OSError, *DEFECTS):
        return None
    return native_id if native_id and native_id.isdecimal() else None


def status(payload: dict[str, Any]) -> dict[str, Any]:
    """Gather facts of many jobs.

    Payload:
        prefix, and jobs: each with stamp, jobndx, native_id and type (for a job without its directory),
        seen (the token of the last answer), and offsets: bytes already read of each log; without offsets no
        log text comes.

    Returns:
        `{"jobs": {stamp: facts or {"error"}}}`; a job whose token is unchanged is `{"same": true}`, and one
        that does not fit into this answer is `{"same": true, "later": true}`.
    """
    prefix = _existing_prefix(
        payload, "busy"
    )  # it existed when the jobs were submitted, so a wait sits out a missing mount
    jobs = _jobs(payload)
    snapshot = _Snapshot(prefix, jobs)
    answers: dict[str, Any] = {}
    for job in jobs:
        if snapshot.facts_budget <= 0:
            answers[job["stamp"]] = {"same": True, "later": True}
            continue
        facts = _facts(prefix, job, snapshot)
        same = facts.get("token") is not None and facts["token"] == job.get("seen")
        answers[job["stamp"]] = {"same": True} if same else facts
        snapshot.facts_budget -= 0 if same else len(json.dumps(facts))
    return {"jobs": answers}


def _facts(prefix: str, job: dict[str, Any], snapshot: _Snapshot) -> dict[str, Any]:
    """Gather the facts about one job; a bad directory becomes its own `{"error"}` and affects no other job."""
    try:
        facts = _gathered(prefix, job, snapshot)
        size = len(json.dumps(facts))
        if size > FACTS_JOB_BYTES:
            raise Trouble(
                "payload", f"The records of job {job['stamp']} have {size:,} bytes, too many for one answer."
            )
        return facts
    except Trouble as trouble:
        return {"error": trouble.answer}
    except OSError as err:
        return {"error": _os_trouble(err).answer}
    except DEFECTS as err:
        return {"error": _defect("status", err).answer}


def _gathered(prefix: str, job: dict[str, Any], snapshot: _Snapshot) -> dict[str, Any]:
    base = _job_directory(prefix, job["stamp"])
    record = _read_json(os.path.join(base, "prefect", "job.json"))
    if record is None:
        return _facts_without_directory(base, job, snapshot)
    jobndx = job.get("jobndx") or _last_run(base) or 1
    ours = os.path.join(base, "prefect")
    text = _status_text(base)
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
        "nodes": _nodes(base, jobndx),
    }
    end = _kept_end(ours, jobndx)
    if end is not None:
        facts.update(end)
    elif not _is_lasting(_parsed(text), jobndx, record):
        # First what is alive, then psik's record: a job that ends in between has then written its last line.
        if record["type"] == "slurm":
            facts.update(_slurm_facts(base, jobndx, native_id, facts["intent"], snapshot))
        else:
            facts["alive"] = bool(_members(base, jobndx, snapshot.processes))
        text = _status_text(base)
    _keep_end(ours, jobndx, facts, record, ended=_ends(_parsed(text), jobndx))
    facts["status"] = text
    facts["sizes"] = {stream: _size(_log(base, stream, jobndx)) for stream in STREAMS}
    if "alive" not in facts or facts["alive"] is False or facts.get("vanished"):
        facts["tails"] = {stream: _tail(_log(base, stream, jobndx), begins.get(stream, 0)) for stream in STREAMS}
        facts["outputs"] = [wanted["path"] for wanted in _wanted(record) if wanted["brought"]]
        facts["signals"] = _signals(base, jobndx)
        facts["warning"] = record.get("warning")
        facts["to_check"] = bool(_wanted(record))
        facts["found"] = (_read_json(os.path.join(ours, f"found.{jobndx}")) or {}).get("found")
    return _with_token(facts, snapshot) | _log_facts(base, job, jobndx, begins, snapshot)


def _with_token(facts: dict[str, Any], snapshot: _Snapshot) -> dict[str, Any]:
    """Add the token, then the facts that change with time and so do not count for it."""
    token = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    # If Slurm reports an end, or nothing, and psik no end yet, their meaning changes with time alone.
    timed = facts.get("vanished") or facts.get("alive") is False
    facts["token"] = None if timed else token
    facts["now"] = time.time()
    if facts.get("squeue") is not None:
        facts["squeue_time"] = snapshot.squeue["time"]
    return facts


def _log_facts(
    base: str, job: dict[str, Any], jobndx: int, begins: dict[str, int], snapshot: _Snapshot
) -> dict[str, Any]:
    if job.get("offsets") is None:
        return {}
    offsets = {stream: max(int(job["offsets"].get(stream, 0)), begins.get(stream, 0)) for stream in STREAMS}
    return {
        "logs": {stream: _log_text(_log(base, stream, jobndx), offsets[stream], snapshot) for stream in STREAMS}
    }


def _facts_without_directory(base: str, job: dict[str, Any], snapshot: _Snapshot) -> dict[str, Any]:
    facts: dict[str, Any] = {"missing": True}
    native_id = job.get("native_id")
    if job.get("type") != "slurm" or not isinstance(native_id, str) or not native_id.isdecimal():
        return {**facts, "token": "missing"}
    with contextlib.suppress(FileNotFoundError):  # not even the directory for Slurm's answers exists
        facts.update(_slurm_facts(base, job.get("jobndx") or 1, native_id, None, snapshot))
    return _with_token(facts, snapshot)


def _ends(rows: list[tuple[float, int, str, str]], jobndx: int) -> bool:
    return any(row[1] == jobndx and row[2] in FINAL for row in rows)


def _is_lasting(rows: list[tuple[float, int, str, str]], jobndx: int, record: dict[str, Any]) -> bool:
    """Whether psik's record of the end is final; if not, Slurm may run the job again, or have killed it."""
    killed = any(row[1] == jobndx and row[2] == "failed" and row[3] in KILLED for row in rows)
    doubtful = record["type"] == "slurm" and (bool(record.get("requeue")) or killed)
    return _ends(rows, jobndx) and not doubtful


def _kept_end(ours: str, jobndx: int) -> dict[str, Any] | None:
    """The end that was kept, if it is valid: the job itself can write to the file."""
    kept = _read_json(os.path.join(ours, f"end.{jobndx}")) or {}
    rows = {name: kept.get(name) if _is_row(kept.get(name)) else None for name in ("squeue", "sacct")}
    return {"alive": False, **rows} if any(map(_has_ended, rows.values())) else None


def _keep_end(ours: str, jobndx: int, facts: dict[str, Any], record: dict[str, Any], *, ended: bool) -> None:
    """Keep an end that Slurm reported but psik did not record.

    Slurm forgets it, and processes that Slurm no longer controls may record another end later.
    """
    row = facts.get("sacct") or facts.get("squeue")
    if facts.get("alive") is not False or row is None or ended or record.get("requeue"):
        return
    more = row[0] == "CANCELLED" or (row[0] == "FAILED" and not facts.get("sacct"))
    if row[0] == "COMPLETED" or (more and facts.get("accounting") != "none"):
        return  # psik or accounting may still report more
    path = os.path.join(ours, f"end.{jobndx}")
    if not os.path.exists(path):
        kept = {"alive": False, "squeue": facts.get("squeue"), "sacct": facts.get("sacct")}
        with contextlib.suppress(OSError):
            _write_whole(path, json.dumps(kept).encode())


def _nodes(base: str, jobndx: int) -> str | None:
    """How many nodes the job got, and their names, as the launcher wrote them down."""
    launched = _launched(base, jobndx)
    data = launched and _read(os.path.join(base, "prefect", f"nodes.{jobndx}.{launched[0]}"), 4096)
    return data.decode("utf-8", "replace").strip() if data else None


def _tail(path: str, begin: int) -> str:
    length = min(_size(path) - begin, TAIL_BYTES)
    return (_read_log(path, length) or b"").decode("utf-8", "replace") if length > 0 else ""


def _log_text(path: str, offset: int, snapshot: _Snapshot) -> dict[str, Any]:
    """Text of a log from a byte offset on; a log that has become shorter was started again."""
    size = _size(path)
    begin = offset if 0 <= offset <= size else 0
    length = min(size - begin, LOG_CHUNK_BYTES, snapshot.log_budget)
    data = b""
    if length > 0:
        with contextlib.suppress(FileNotFoundError), _open(path) as file:  # it may just be renamed
            file.seek(begin)
            data = file.read(length)
    snapshot.log_budget -= len(data)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    # The first bytes of an incomplete character are left for the next call.
    return {"text": text, "next": begin + len(data) - len(decoder.getstate()[0]), "size": size}

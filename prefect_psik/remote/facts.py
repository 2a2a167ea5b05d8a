"""The facts of jobs: the operation `status`."""

from __future__ import annotations

import codecs
import glob
import hashlib
import itertools
import json
import os
import time
from typing import Any

from prefect_psik.remote.directory import STREAMS, _directory, _has_end, _last_run, _log, _native_id, _rows
from prefect_psik.remote.files import _read, _read_json, _size, _user
from prefect_psik.remote.outputs import _output_files
from prefect_psik.remote.payload import _existing_prefix, _jobs
from prefect_psik.remote.processes import Process, _members, _processes
from prefect_psik.remote.slurm import (
    SACCT_SECONDS,
    SQUEUE_SECONDS,
    _ask_sacct,
    _ask_squeue,
    _shared,
    _slurm_alive,
    _slurm_facts,
)

#: psik's exit codes behind which Slurm may stand: its own timer, SIGKILL, and a child killed by SIGKILL.
KILLED = ("9", "-9", "137")
TAIL_BYTES = 4096
LOG_CHUNK_BYTES = 16 * 1024
LOG_CALL_BYTES = 1024 * 1024


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

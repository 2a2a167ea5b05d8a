"""Create jobs, or find them again: the operation `submit`."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import shutil
import socket
import sys
import time
from typing import Any

from prefect_psik.remote.files import LOCK_SECONDS, _locked, _read_json, _write, _write_whole
from prefect_psik.remote.inventory import _note_owner
from prefect_psik.remote.job_directory import _asked, _attempt, _has_end, _last_run, _launched, _recorded_id
from prefect_psik.remote.launch import _launch, _no_place, _plain
from prefect_psik.remote.ownership import _check_place, _job_directory
from prefect_psik.remote.sbatch import _sbatch_loop
from prefect_psik.remote.site import _check_backend, _check_prefix, _site_rules
from prefect_psik.remote.status import _facts, _Snapshot
from prefect_psik.remote.wire import (
    DEFECTS,
    PROTOCOL,
    Trouble,
    _defect,
    _jobs,
    _named_prefix,
    _os_trouble,
    _writable_prefix,
)

PSIK_OLDEST = (3, 1, 1)
PARALLEL_SUBMITS = 16


def submit(payload: dict[str, Any]) -> dict[str, Any]:
    """Create or get jobs: each stamp is submitted once, however often this is called.

    Payload:
        prefix, and jobs: each with stamp, key, digest, canonical, attempt, backend (psik's BackendConfig),
        spec (psik's JobSpec), script, files, outputs, expect, owner, and optionally rerun_after: the run
        that ended badly, after which a newer attempt may start the next one; line: the account, quality of
        service and partition, on which limits of the queue depend; full: the limit that the queue is known to have
        reached, so that the job is only searched for.

    Returns:
        `{"jobs": {stamp: answer or {"error"}}}`, an answer being `{"created", "prefix", "jobndx", "native_id",
        "attempt", "asked"}`, where `asked` has the minutes and memory per node that the run asked for; a created
        job also has `warnings`, sentences for its owner, and one that existed has its `facts`.
    """
    jobs = _jobs(payload)
    rules = _site_rules()
    named = _named_prefix(payload)
    if not all(_is_kept(named, job["stamp"]) for job in jobs):
        _check_prefix(rules, named)
    prefix = _writable_prefix(payload)
    psik = _import_psik()
    loop = _sbatch_loop()
    try:
        answers = loop.run_until_complete(_submit_all(psik, rules, prefix, jobs))
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
    return {"jobs": answers}


async def _submit_all(psik: Any, rules: dict[str, Any], prefix: str, jobs: list[dict[str, Any]]) -> dict[str, Any]:
    import asyncio

    # psik's local backend forks: one at a time.
    parallel = 1 if any(job["backend"].get("type") != "slurm" for job in jobs) else PARALLEL_SUBMITS
    turns = asyncio.Semaphore(parallel)
    full: dict[str, str] = {}

    async def one(job: dict[str, Any]) -> dict[str, Any]:
        async with turns:
            line = json.dumps(job.get("line") or job["stamp"])
            try:
                return await _submit_one(psik, rules, prefix, {"full": full.get(line), **job})
            except Trouble as trouble:
                if trouble.answer["kind"] == "full":
                    full[line] = trouble.answer["limit"]  # the next job in this line need not ask sbatch
                return {"error": trouble.answer}
            except OSError as err:
                return {"error": _os_trouble(err).answer}
            except DEFECTS as err:
                return {"error": _defect("submit", err).answer}

    answers = await asyncio.gather(*(one(job) for job in jobs))
    return {job["stamp"]: answer for job, answer in zip(jobs, answers)}


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


async def _submit_one(psik: Any, rules: dict[str, Any], prefix: str, job: dict[str, Any]) -> dict[str, Any]:
    async with _locked(prefix, job["stamp"]) as held:
        base = _job_directory(prefix, job["stamp"])
        if not held:
            # A call that was killed between fork and release leaves the lock with the job it started.
            last = _last_run(base)
            if last and _launched(base, last):
                return _existing(prefix, base, job, last)
            raise Trouble("busy", f"Another call has been submitting job {job['stamp']} for {LOCK_SECONDS:.0f} s.")
        record = _record(prefix, job["stamp"])
        created = None
        if record is None:
            _check_backend(rules, job["backend"], job["spec"]["attributes"])
            _check_queue(base, job, 1)
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
                _check_queue(base, job, jobndx)
                if job.get("changed"):
                    created = await _change(psik, base, job)
            elif last and (_recorded_id(base, last) is not None or _has_end(base, last)):
                return _existing(prefix, base, job, last)
            else:
                jobndx = last or 1
                _check_queue(base, job, jobndx)
            created = await _allowed(psik, rules, prefix, base)
        shared = _check_place(prefix)  # an error after the launch would hide a submitted job
        native_id, warnings = await _launch(psik, prefix, base, job, jobndx, created)
    return {
        "created": True,
        "prefix": prefix,
        "jobndx": jobndx,
        "native_id": native_id,
        "attempt": job["attempt"],
        "asked": job.get("asked", {}),
        "warnings": [*warnings, *shared],
    }


def _check_queue(base: str, job: dict[str, Any], jobndx: int) -> None:
    """Do not submit a run while the queue is known to be full, unless an earlier call may have started it."""
    if job.get("full") and not os.path.exists(os.path.join(base, "prefect", f"intent.{jobndx}")):
        raise _no_place(job["full"], "other jobs are already waiting for a place")


def _is_kept(prefix: str, stamp: str) -> bool:
    """Whether a prefix has this job. An unreadable prefix has not: the site's rules are checked first."""
    try:
        return _record(prefix, stamp) is not None
    except OSError:
        return False


def _record(prefix: str, stamp: str) -> dict[str, Any] | None:
    return _read_json(os.path.join(prefix, stamp, "prefect", "job.json"))


async def _allowed(psik: Any, rules: dict[str, Any], prefix: str, base: str) -> Any:
    """Read a stored job that is to run again, and check it: the site's rules may have changed since."""
    _check_prefix(rules, prefix)
    try:
        stored = await psik.Job(base)
    except FileNotFoundError:
        if rules:
            raise
        return None  # it cannot be started, but an earlier call may have done so
    backend = stored.info.backend.model_dump()
    arguments = {key: value for key, value in stored.spec.attributes.items() if key not in backend["attributes"]}
    _check_backend(rules, backend, arguments)
    return stored


def _existing(prefix: str, base: str, job: dict[str, Any], jobndx: int) -> dict[str, Any]:
    _note_owner(prefix, job)
    facts = _facts(prefix, {"stamp": job["stamp"], "jobndx": jobndx}, _Snapshot(prefix, []))
    return {
        "created": False,
        "prefix": prefix,
        "jobndx": jobndx,
        "native_id": facts.get("native_id"),
        "attempt": _attempt(base, jobndx),
        "asked": _asked(base, jobndx),
        "facts": facts,
    }


async def _create(psik: Any, prefix: str, base: str, job: dict[str, Any]) -> Any:
    """Make the job directory; job.json is written last, so one without it can be removed. Returns psik's job."""
    import anyio
    import psik.config
    import psik.models

    ours = os.path.join(base, "prefect")
    if job["backend"].get("type") == "slurm":
        _plain(base)
    if os.path.lexists(base):
        if not os.path.isdir(ours) and os.listdir(base):
            raise Trouble("setup", f"{base} exists, but is not a job directory of prefect-psik. Move it away.")
        shutil.rmtree(base)
    spec = dict(job["spec"])
    os.mkdir(base, 0o700)  # it fails if somebody else was faster; their files are not ours to remove
    try:
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
            version=PROTOCOL,
            name=spec.get("name"),
            requeue=requeue,
            warning=job.get("warning"),
            type=backend.type,
            directory=spec["directory"],
            created=time.time(),
        )
        _write_whole(os.path.join(ours, "job.json"), json.dumps(record).encode())
        return created
    except (OSError, Trouble, *DEFECTS):
        shutil.rmtree(base, ignore_errors=True)
        raise


async def _change(psik: Any, base: str, job: dict[str, Any]) -> Any:
    """Give the next run of a job other resources; psik on the node reads them from spec.json."""
    import psik.models

    changed = await psik.Job(base)
    wanted = psik.models.JobSpec.model_validate(job["spec"])
    changed.spec.resources = wanted.resources
    changed.spec.script = wanted.script  # the launcher's warning depends on the duration
    changed.spec.attributes = wanted.attributes
    _write_whole(os.path.join(base, "spec.json"), changed.spec.model_dump_json(indent=4).encode())
    return changed


def _given_directory(given: str) -> str:
    path = os.path.expanduser(os.path.expandvars(given))
    if not os.path.isdir(path) or not os.path.isabs(path):
        raise Trouble(
            "spec",
            f"The job's directory {given!r} is not a directory on {socket.gethostname()} ({path}). Create it "
            "first.",
        )
    return os.path.normpath(path)


def _write_inputs(directory: str, files: dict[str, dict[str, Any]]) -> None:
    top = os.path.realpath(directory)
    for name, content in files.items():
        path = os.path.normpath(os.path.join(top, name))
        parent = os.path.dirname(path)
        if not path.startswith(top + os.sep):
            raise Trouble("spec", f"The input file {name!r} would be outside the job's directory {top}.")
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

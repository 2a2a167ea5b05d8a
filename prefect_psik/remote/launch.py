"""Submit one job run through psik, once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import time
from typing import Any

from prefect_psik.remote.files import _append, _audit, _read_json, _size, _write_whole
from prefect_psik.remote.inventory import _note_owner
from prefect_psik.remote.job_directory import _log, _native_id, _owner, _recorded_id
from prefect_psik.remote.ownership import _check_above
from prefect_psik.remote.processes import _note_process
from prefect_psik.remote.sbatch import _Heard, _left_out, _listening
from prefect_psik.remote.slurm import _find_in_slurm, _slurm_message_seconds, _submit_limit_is_zero
from prefect_psik.remote.wire import Trouble

#: An intent without a trace of the job counts as abandoned only after this time.
DOUBT_SECONDS = 15.0
#: Characters that a path in psik's batch script must not contain.
NOT_PLAIN = r"[^\w./+,:=@~-]"


async def _launch(
    psik: Any, prefix: str, base: str, job: dict[str, Any], jobndx: int, created: Any
) -> tuple[str, list[str]]:
    """Submit one run through psik, or adopt what an earlier call that died has already started."""
    slurm = job["backend"].get("type") == "slurm"
    intent = os.path.join(base, "prefect", f"intent.{jobndx}")
    if os.path.exists(intent):
        note = _read_json(intent) or {}
        said = f"Slurm did not confirm the submission: {note['said']}. " if note.get("said") else ""
        since = note.get("time", os.stat(intent).st_mtime)
        try:
            adopted = _adopt(base, jobndx, since if slurm else None)
        except Trouble as trouble:
            raise Trouble(trouble.answer["kind"], f"{said}{trouble.answer['message']}") from None
        if adopted is not None:
            _audit(prefix, "adopt", job, jobndx=jobndx, native_id=adopted)
            return adopted, []
        left = _doubt_left(base, jobndx, slurm=slurm)
        if left > 0:
            raise Trouble(
                "busy",
                f"{said}An earlier call may have started job {job['stamp']}, but there is no trace of it yet. It "
                f"is submitted again if there is still none in {left:.0f} s.",
            )
    # psik's local backend appends the console of all runs to one file; Slurm overwrites it.
    console = 0 if slurm else _size(_log(base, "console", jobndx))
    if slurm and jobndx > 1:
        _keep_console(base, jobndx - 1)
    _note_owner(prefix, job)
    begin = time.time()
    intended = {"time": begin, "attempt": job["attempt"], "asked": job.get("asked"), "console": console}
    _write_whole(intent, json.dumps(intended).encode())
    for old in ("none", "cancel"):  # of an earlier try to start this run
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(base, "prefect", f"{old}.{jobndx}"))
    pid = os.getpid()
    heard = _Heard()
    try:
        number, native_id = await _psik_submit(created or await psik.Job(base), base, heard, slurm)
    except (psik.exceptions.SubmitException, FileNotFoundError, IndexError) as err:
        text = " ".join(heard.said) or str(err)
        if slurm and not isinstance(err, FileNotFoundError):
            if not heard.refused:
                with contextlib.suppress(OSError):
                    _write_whole(intent, json.dumps({**intended, "said": text.rstrip(".")}).encode())
                raise Trouble("busy", f"Slurm did not confirm the submission: {text}") from None
            # The option parser sends nothing.
            adopted = None if heard.is_usage else _adopt(base, jobndx, begin)
            if adopted is not None:
                _audit(prefix, "adopt", job, jobndx=jobndx, native_id=adopted)
                return adopted, heard.said
        _remove_traces(base, intent, jobndx)
        if heard.submit_limit and not _is_closed(job):
            raise _no_place(heard.submit_limit, text) from None
        raise _refusal(text, heard.submit_limit) from None
    finally:
        # psik's local backend forks; if the child returns to this point, it must not continue as this process.
        if os.getpid() != pid:
            os._exit(70)
    if not slurm:
        _note_process(base, number, native_id)
    _audit(prefix, "submit", job, jobndx=number, native_id=native_id)
    return str(native_id), [*heard.said, *(_left_out() if slurm else [])]


def _doubt_left(base: str, jobndx: int, *, slurm: bool) -> float:
    """Seconds for which a run without a trace may still turn up, counted from the first search without one."""
    path = os.path.join(base, "prefect", f"none.{jobndx}")
    note = _read_json(path)
    if note is None:
        note = {"time": time.time()}
        _write_whole(path, json.dumps(note).encode())
    doubt = _slurm_message_seconds() + 10 if slurm else DOUBT_SECONDS
    return float(note["time"]) + doubt - time.time()


def _keep_console(base: str, jobndx: int) -> None:
    kept = os.path.join(base, "log", f"console.{jobndx}")
    with contextlib.suppress(FileNotFoundError):
        if not os.path.exists(kept):
            os.rename(os.path.join(base, "log", "console"), kept)


async def _psik_submit(job: Any, base: str, heard: _Heard, slurm: bool) -> tuple[int, str]:
    job.spec.attributes.pop("psik_python", None)
    if slurm:
        job.base = type(job.base)(_plain(base))
        # Slurm's accounting keeps the working directory, too: it identifies a job whose reply was lost.
        job.spec.attributes[f"--chdir={base}"] = f"--chdir={base}"
    # A job that psik forks would inherit the listener, and its warnings would not reach its console.
    with _listening(heard) if slurm else contextlib.nullcontext():
        number, native_id = await job.submit()
    return number, native_id


def _plain(base: str) -> str:
    """The job's directory by a name that psik's batch script can hold.

    psik writes it into sbatch options, which end at blanks and interpret quotes and %, and into a Python string.
    If the path has such characters, a link to the prefix is made beside its first odd part, or else in the home
    directory.

    Raises:
        Trouble: Neither link can be made.
    """
    if not re.search(NOT_PLAIN, base):
        return base
    prefix, stamp = os.path.split(base)
    beside = re.split(f"[^/]*{NOT_PLAIN}", prefix, maxsplit=1)[0]
    name = f".psik-{hashlib.sha256(os.fsencode(prefix)).hexdigest()[:16]}"
    places = [place for place in (beside, os.path.expanduser("~")) if not re.search(NOT_PLAIN, place)]
    for place in places:
        link = os.path.join(place, name)
        with contextlib.suppress(OSError):
            _check_above(link)
            if not os.path.lexists(link):
                with contextlib.suppress(FileExistsError):
                    os.symlink(prefix, link)
            if os.lstat(link).st_uid == os.getuid() and os.readlink(link) == prefix:
                return os.path.join(link, stamp)
    raise Trouble(
        "setup",
        f"psik cannot submit to Slurm below {prefix}: the path contains blanks, quotes or other special "
        f"characters, and no link without them can be made in {' or '.join(places)}. Choose another prefix.",
    )


def _remove_traces(base: str, intent: str, jobndx: int) -> None:
    """Remove what was written for a submission that was refused."""
    os.unlink(intent)
    if jobndx == 1:
        shutil.rmtree(base, ignore_errors=True)


def _no_place(limit: str, text: str) -> Trouble:
    """Word the error for a submission that has to wait for a place in the queue."""
    return Trouble("full", f"The queue takes no more jobs for now ({limit}): {text}", limit=limit)


def _is_closed(job: dict[str, Any]) -> bool:
    """Whether the limit on jobs in the queue is 0, so that no place will ever become free."""
    return _submit_limit_is_zero(*(job.get("line") or (None, None))[:2])


def _refusal(text: str, limit: str | None) -> Trouble:
    """Word the error for a submission that was refused."""
    if limit:
        text += f". The limit {limit} is 0, so waiting does not help: choose another account or quality of service"
    if "No such file or directory: 'sbatch'" in text:
        return Trouble("setup", f"sbatch is not on the PATH of the endpoint on {socket.gethostname()}.")
    return Trouble("rejected", f"The facility refused the job: {text}")


def _adopt(base: str, jobndx: int, slurm_since: float | None) -> str | None:
    """Find the job that an earlier call started, and record its id; None if there is no trace of it."""
    if _recorded_id(base, jobndx) is not None:
        return _native_id(base, jobndx)
    found = _owner(base, jobndx)
    if found is None and slurm_since is not None:
        found = _find_in_slurm(base, slurm_since)
    if found is None:
        return None
    _append(os.path.join(base, "status.csv"), f"{time.time()},{jobndx},queued,{found}")
    if slurm_since is None:
        _note_process(base, jobndx, found)
    return found

"""Checks of incoming payloads, and how errors are sent back."""

from __future__ import annotations

import errno
import os
import re
import shlex
import socket
import stat
import time
from typing import Any

from prefect_psik.remote.files import AUDIT, _make_directory, _user, _write
from prefect_psik.remote.ownership import NotOurs, _check_one, _check_place

PROTOCOL = 1
#: The digest of the text that answers; the joined letter ends by setting its own.
LETTER = ""
#: Our own directories below a prefix, beside those of the jobs.
OWN_DIRECTORIES = (".locks", ".runs")
STAMP = re.compile(r"[0-9]+(\.[0-9]+)?")
#: Raised by a malformed payload or a bug in this code; never plain Exception.
DEFECTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
#: Errors that may pass on their own. Somebody often soon makes space on a full disk.
PASSING = (
    errno.EAGAIN,
    errno.EINTR,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOSPC,
    errno.EDQUOT,
)


class Trouble(Exception):
    """An error for the caller, worded as a sentence.

    `kind` is one of: payload, setup, foreign, spec, rejected, full, conflict, busy.
    """

    def __init__(self, kind: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.answer = {"kind": kind, "message": message, **details}


def _defect(name: str, err: BaseException) -> Trouble:
    """Word an unforeseen error: a sentence, with the traceback for those who fix it."""
    import traceback

    text = f"The call {name!r} failed: {err!r}. Its payload is malformed, or this is a bug in prefect-psik."
    return Trouble(
        "payload", text, traceback="".join(traceback.format_exception(type(err), err, err.__traceback__))
    )


def _jobs(payload: dict[str, Any]) -> list[dict[str, Any]]:
    jobs = payload["jobs"]
    if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
        raise Trouble("payload", "The payload's jobs are not a list of objects.")
    for job in jobs:
        if not isinstance(job["stamp"], str) or not STAMP.fullmatch(job["stamp"]):
            raise Trouble(
                "payload", f"{job['stamp']!r} is not a psik stamp: it must be digits, with at most one dot."
            )
        if not isinstance(job.get("jobndx", 1), int):
            raise Trouble("payload", f"{job['jobndx']!r} is not a run number of job {job['stamp']}.")
    return list(jobs)


def _named_prefix(payload: dict[str, Any]) -> str:
    """The path of the prefix, without a check of its owner: for comparison with the site's rules."""
    given = payload["prefix"]
    if not isinstance(given, str) or "\0" in given or "\n" in given:
        raise Trouble("payload", f"The prefix {given!r} is not a path.")
    path = os.path.expanduser(os.path.expandvars(given))
    if "$" in path or not os.path.isabs(path):
        raise Trouble(
            "setup",
            f"The prefix {given!r} becomes {path!r} on {socket.gethostname()}, which is not an absolute path. "
            "Use variables that are set there, or write out the path.",
        )
    return os.path.normpath(path)


def _prefix(payload: dict[str, Any]) -> str:
    path = _named_prefix(payload)
    try:
        _check_place(path)
        _check_records(path)
    except OSError as err:
        raise _os_trouble(err) from None
    return path


def _check_records(prefix: str) -> None:
    """Refuse records beside the jobs' directories that somebody else may have put there, or can change."""
    for name in OWN_DIRECTORIES:
        _check_one(os.path.join(prefix, name), stat.S_IFDIR)


def _existing_prefix(payload: dict[str, Any], kind: str = "setup") -> str:
    """Return the prefix, or raise a Trouble of this kind if it does not exist."""
    prefix = _prefix(payload)
    if not os.path.isdir(prefix):
        raise Trouble(
            kind,
            f"The prefix {prefix} does not exist on {socket.gethostname()}: its file system is not mounted, or "
            "the directory was deleted.",
        )
    return prefix


def _writable_prefix(payload: dict[str, Any]) -> str:
    """Return the prefix; created if only its last component is missing, or if it is below a mount point."""
    prefix = _prefix(payload)
    try:
        for directory in (*_missing_above(prefix), prefix):
            _make_directory(directory)
        _check_place(prefix)  # somebody else may have created it in the meantime
        _make_directory(os.path.join(prefix, ".locks"))
        _check_records(prefix)
        _check_one(os.path.join(prefix, AUDIT), stat.S_IFREG)
        probe = os.path.join(prefix, ".locks", f".probe.{os.getpid()}.{time.monotonic_ns()}")
        _write(probe, b"")
        os.unlink(probe)
    except NotOurs as err:
        raise _os_trouble(err) from None
    except OSError as err:
        raise Trouble(
            "busy" if err.errno in PASSING else "setup",
            f"The prefix {prefix} on {socket.gethostname()} is not writable by {_user()}: {err.strerror}. "
            "Choose another prefix in the block, or fix its permissions or quota.",
        ) from None
    return prefix


def _missing_above(prefix: str) -> list[str]:
    """The missing directories above a prefix, which may be created.

    If they are missing, the file system of the prefix may not be mounted. A prefix created on the bare mount point
    would not have the records of the real one, so that its jobs would run again.
    """
    above = path = os.path.dirname(prefix)
    missing: list[str] = []
    while _is_missing(path):
        missing.insert(0, path)
        path = os.path.dirname(path)
    if missing and (path == os.sep or not os.path.ismount(path)):
        raise Trouble(
            "setup",
            f"The prefix {prefix} on {socket.gethostname()} cannot be used: {above} does not exist. If its "
            "file system is not mounted, mount it. If the directory has never existed, create it there, once "
            f"(mkdir -p {shlex.quote(above)}). Then submit again.",
        )
    return missing


def _is_missing(path: str) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    return False


def _os_trouble(err: OSError) -> Trouble:
    if isinstance(err, NotOurs):
        return Trouble("foreign", str(err))
    where = f" ({err.filename})" if err.filename else ""
    return Trouble(
        "busy" if err.errno in PASSING else "setup",
        f"The file system of {socket.gethostname()} said: {err.strerror or err}{where}.",
    )

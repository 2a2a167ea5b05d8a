"""Check what a submission needs, without submitting: the operation `preflight`."""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import stat
import sys
import time
from typing import Any

from prefect_psik.remote.files import _lock_file, _try_lock, _user, _write
from prefect_psik.remote.inventory import _all_stamps
from prefect_psik.remote.ownership import NotOurs, _check_one, _check_place
from prefect_psik.remote.reservations import _reservations
from prefect_psik.remote.sbatch import _submit_limit
from prefect_psik.remote.site import _check_backend, _check_prefix, _site_rules
from prefect_psik.remote.slurm import COMMAND_SECONDS, _slurm, _submit_limit_is_zero
from prefect_psik.remote.wire import LETTER, PROTOCOL, Trouble, _named_prefix, _prefix, _writable_prefix

#: Size of a file that is written and removed again: a full quota shows only when bytes are written.
PROBE_BYTES = 256 * 1024
#: How many directories that belong to others are described at most.
PLANTED = 5
#: Submit commands of other schedulers, to name the one a site has if it is not Slurm.
SUBMIT_COMMANDS = ("sbatch", "qsub", "bsub", "condor_submit", "flux")
PACKAGES = ("psik", "globus-compute-endpoint", "globus-compute-sdk")


def preflight(payload: dict[str, Any]) -> dict[str, Any]:
    """Gather all that decides whether a job can be submitted; submits nothing.

    Payload:
        prefix, backend (psik's BackendConfig), spec (psik's JobSpec) and line, as for `submit`.

    Returns:
        Facts of this Python, of the prefix, and of the scheduler.
    """
    facts: dict[str, Any] = {
        "protocol": PROTOCOL,
        "letter": LETTER,
        "host": socket.gethostname(),
        "user": _user(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "versions": {name: _version(name) for name in PACKAGES},
        "site": _look_at_site(payload),
    }
    if "error" in facts["site"]:
        return facts  # a prefix or backend that the site forbids is not touched
    facts["prefix"] = _look_at_prefix(payload)
    backend = payload["backend"]
    if backend.get("type") == "slurm":
        facts["slurm"] = _look_at_slurm(backend, payload["spec"], facts["versions"]["psik"] is not None)
        test = facts["slurm"].get("test", {})
        if test.get("full") and _submit_limit_is_zero(*(payload.get("line") or (None, None))[:2]):
            test["full"] = None
    given = backend.get("attributes", {}).get("psik_python")
    if given:
        facts["psik_python"] = {"path": given, "executable": os.access(given, os.X_OK)}
    return facts


def _look_at_site(payload: dict[str, Any]) -> dict[str, Any]:
    try:
        rules = _site_rules()
        if rules:
            _check_prefix(rules, _named_prefix(payload))
        _check_backend(rules, payload["backend"], payload["spec"]["attributes"])
    except Trouble as trouble:
        return {"error": trouble.answer["message"]}
    return {"file": rules.get("file")}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _look_at_prefix(payload: dict[str, Any]) -> dict[str, Any]:
    try:
        path = _prefix(payload)
        _writable_prefix(payload)
        probe = os.path.join(path, ".locks", f".probe.{os.getpid()}.{time.monotonic_ns()}")
        try:
            _write(probe, bytes(PROBE_BYTES))
        finally:
            if os.path.lexists(probe):
                os.unlink(probe)
        space = os.statvfs(path)
        return {
            "path": path,
            "free_bytes": space.f_bavail * space.f_frsize,
            # A file system without a table of inodes counts none at all.
            "free_inodes": space.f_favail if space.f_files else None,
            "locks": _locks_work(os.path.join(path, ".locks", "preflight")),
            "owners": {"shared": _check_place(path), "planted": _planted(path)},
        }
    except Trouble as trouble:
        return {"error": trouble.answer["message"]}
    except OSError as err:
        reason = "its quota is used up" if err.errno == errno.EDQUOT else err.strerror or str(err)
        return {"error": f"{PROBE_BYTES:,} bytes cannot be written below {payload['prefix']}: {reason}."}


def _planted(prefix: str) -> list[str]:
    """Describe job directories that belong to somebody else: the first few of them."""
    found: list[str] = []
    for stamp in _all_stamps(prefix):
        try:
            _check_one(os.path.join(prefix, stamp), stat.S_IFDIR)
        except NotOurs as err:
            found.append(str(err))
            if len(found) >= PLANTED:
                break
    return found


def _locks_work(path: str) -> bool:
    """Whether a lock really excludes others: some network file systems accept locks but ignore them."""
    try:
        with _lock_file(path) as mine, _lock_file(path) as other:
            if not _try_lock(mine):
                return True  # another preflight holds it
            kept_out = not _try_lock(other)
            fcntl.flock(mine, fcntl.LOCK_UN)
            return kept_out and _try_lock(other)
    except OSError:
        return False


def _look_at_slurm(backend: dict[str, Any], spec: dict[str, Any], has_psik: bool) -> dict[str, Any]:
    commands = [name for name in SUBMIT_COMMANDS if shutil.which(name)]
    facts: dict[str, Any] = {"commands": commands}
    if "sbatch" not in commands:
        return facts
    ok, text = _slurm("sbatch", "--version")
    facts["version"] = text.strip() if ok else None
    ok, text = _slurm("scontrol", "ping")
    facts["controller"] = {"ok": ok and "is UP" in text, "text": text.strip()}
    if not facts["controller"]["ok"]:
        return facts
    ok, text = _slurm("sacct", "-n", "-X", "-j", "999999999")
    facts["accounting"] = {"ok": ok, "text": "" if ok else text}
    facts["partition"] = _partition(backend.get("queue_name"))
    facts["held"] = _reservations(COMMAND_SECONDS)
    if has_psik:
        facts["test"] = _test_only(backend, spec)
    return facts


def _partition(name: str | None) -> dict[str, str] | None:
    """What Slurm says about a partition, or the default one: `sbatch --test-only` does not check its limits."""
    ok, text = _slurm("scontrol", "-o", "show", "partition", *([name] if name else []))
    for line in text.splitlines() if ok else []:
        fields = dict(field.split("=", 1) for field in line.split() if "=" in field)
        if "PartitionName" in fields and (name or fields.get("Default") == "YES"):
            wanted = ("PartitionName", "State", "MaxTime", "MaxNodes", "TotalNodes")
            return {key: fields[key] for key in wanted if key in fields}
    return None


def _test_only(backend: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """Ask sbatch whether it would take a job with the very options that psik gives it."""
    try:
        import psik.backends.slurm
        import psik.models

        attributes = {key: value for key, value in spec["attributes"].items() if key != "psik_python"}
        model = psik.models.JobSpec.model_validate({**spec, "attributes": attributes, "directory": "/"})
        config = psik.models.BackendConfig.model_validate(backend)
        arguments = psik.backends.slurm.mk_args(model, psik.models.ExtraInfo(backend=config))
    except (ImportError, AttributeError) as err:
        return {"ok": None, "text": f"this version of psik does not expose its sbatch options ({err})"}
    ok, text = _slurm("sbatch", "--test-only", *arguments, script="#!/bin/sh\ntrue\n")
    lines = [re.sub("^(sbatch|allocation failure): (error: )?", "", line) for line in text.splitlines()]
    full = None if ok else _submit_limit(text)
    return {"ok": ok, "full": full, "text": " ".join(line.strip() for line in lines if line.strip())}
